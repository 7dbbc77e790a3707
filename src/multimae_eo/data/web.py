"""Asks web servers: by http and https alone, patiently where that may help, with errors that say what to do.

Errors name the address. `Dropped` never leaves the download: it becomes a DataError once patience is at its end.
"""

import http.client
import json
import os
import re
import socket
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

from multimae_eo import __version__
from multimae_eo.errors import ConfigError, DataError

T = TypeVar("T")
Pause = Callable[[float], None]  # waits some seconds, or raises what ends the waiting

BACKOFF_S: tuple[float, ...] = (1, 2, 4, 8, 16, 30)  # between tries in a row that brought nothing; then it is an error
TIMEOUT_S = 30.0  # without a single byte
LONGEST_WAIT_S = 600.0  # that a server may ask for
PAGES = 1000  # of a list of files
BY_HAND = "Files fetched by hand are taken too (docs/download.md); --base names a mirror."

_MEANING = {401: "wants a login", 403: "refuses the file", 404: "has no such file", 410: "has no such file any more"}


class _Redirects(urllib.request.HTTPRedirectHandler):
    """urllib's own asks with GET where the first request was a HEAD."""

    def redirect_request(self, req: urllib.request.Request, *answer: Any) -> urllib.request.Request | None:
        following = super().redirect_request(req, *answer)
        if following:
            following.method = req.get_method()
        return following


# Of all that urllib can open, only http and https: file:// is no answer to a redirect either.
_HANDLERS = (
    *(urllib.request.ProxyHandler, urllib.request.HTTPHandler, urllib.request.HTTPSHandler, _Redirects),
    *(urllib.request.UnknownHandler, urllib.request.HTTPDefaultErrorHandler, urllib.request.HTTPErrorProcessor),
)


class Dropped(Exception):
    """Trying again may help. after: seconds that the server asks for. unnamed: its host has no address."""

    def __init__(self, why: str, *, after: float | None = None, unnamed: bool = False):
        super().__init__(why)
        self.after, self.unnamed = after, unnamed


class Refused(DataError):
    """The server answers, and the answer is no."""

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


class Patience:
    """Waits between tries, longer each time, and gives up when several in a row have brought nothing.

    named: whether the host had an address before; one that never had is not tried again.
    """

    def __init__(self, pause: Pause, *, named: bool):
        self.pause, self.named, self.tries, self.best = pause, named, 0, 0

    def wait(self, dropped: Dropped, reached: int = 0) -> None:
        """Raises DataError at the end of patience. reached: bytes of the file that are there."""
        if reached > self.best:
            self.tries, self.best = 0, reached
        if self.tries >= len(BACKOFF_S) or (dropped.unnamed and not self.named):
            raise DataError(f"{dropped} What has come down is kept; the same command goes on. {BY_HAND}") from dropped
        seconds = BACKOFF_S[self.tries] if dropped.after is None else dropped.after
        if seconds > LONGEST_WAIT_S:
            raise DataError(f"{dropped} It asks to come back in {seconds:.0f} s; the same command goes on then.")
        self.tries += 1
        self.pause(seconds)


def patiently(do: Callable[[], T], pause: Pause) -> T:
    """What `do` returns, trying again while that may help."""
    patience = Patience(pause, named=False)
    while True:
        try:
            return do()
        except Dropped as dropped:
            patience.wait(dropped)


def address(base: str) -> str:
    """An address without a slash at its end; raises ConfigError where it is not of http or https."""
    parts = urllib.parse.urlsplit(base)
    if parts.scheme not in ("http", "https") or not parts.hostname or any(c.isspace() for c in base):
        raise ConfigError(f"base '{base}' is no address of a server; expected http://... or https://...")
    return base.rstrip("/")


def ask(url: str, headers: Mapping[str, str] | None = None, *, method: str = "GET") -> http.client.HTTPResponse:
    """The answer to a request, after redirects; raises Dropped, Refused or DataError."""
    opener = urllib.request.OpenerDirector()
    for handler in _HANDLERS:
        opener.add_handler(handler())
    known = {"User-Agent": f"multimae-eo/{__version__}", "Accept-Encoding": "identity"}
    request = urllib.request.Request(url, headers={**known, **(headers or {})}, method=method)
    with network(url):
        return opener.open(request, timeout=TIMEOUT_S)


@contextmanager
def network(url: str) -> Iterator[None]:
    """Turns what can go wrong on the way to a server into Dropped, Refused or DataError."""
    try:
        yield
    except urllib.error.HTTPError as error:
        error.close()
        raise _answer(url, error) from error
    except (OSError, http.client.HTTPException) as error:
        cause = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(cause, ssl.SSLCertVerificationError):
            raise DataError(f"'{url}': the certificate is not trusted ({cause.verify_message}). {BY_HAND}") from error
        if isinstance(cause, str):  # what urllib itself refuses, such as another scheme
            raise DataError(f"'{url}' cannot be fetched: {cause}. {BY_HAND}") from error
        if isinstance(cause, socket.gaierror):
            host = urllib.parse.urlsplit(url).hostname
            why = f"'{url}': host '{host}' is not found. Is there a network, or a proxy to name in https_proxy?"
            raise Dropped(why, unnamed=True) from error
        raise Dropped(f"'{url}' broke off: {cause or type(cause).__name__}.") from error


def _answer(url: str, error: urllib.error.HTTPError) -> Exception:
    """What an answer other than success means."""
    status = error.code
    if status in (408, 429) or (status >= 500 and status != 501):
        wait = _seconds(error.headers["Retry-After"])
        return Dropped(f"'{url}' answers with {status} ({error.reason}).", after=wait)
    if status < 400:  # urllib has followed all that it may
        return DataError(f"'{url}' leads to an address that is not fetched: {' '.join(error.reason.split())}.")
    meaning = _MEANING.get(status, "refuses the request")
    return Refused(
        f"'{url}': the server {meaning} ({status}). Look at the address in a browser: the release may have moved. "
        f"{BY_HAND}",
        status,
    )


def _seconds(retry_after: str | None) -> float | None:
    """Retry-After is a number of seconds or a date."""
    text = (retry_after or "").strip()
    if text.isdigit():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None


def hang_up(response: http.client.HTTPResponse) -> None:
    """End a transfer from another thread, which may be waiting for the next byte; nothing where it has ended."""
    with suppress(OSError, ValueError, AttributeError), socket.socket(fileno=os.dup(response.fileno())) as line:
        line.shutdown(socket.SHUT_RDWR)


def size_of(response: http.client.HTTPResponse) -> int | None:
    """Bytes of the whole file, also where an answer holds a part of it; None where the server does not say."""
    part = (response.headers["Content-Range"] or "").rpartition("/")[2]
    text = part if response.status == 206 else response.headers["Content-Length"] or ""
    return int(text) if text.isdigit() else None


def version_of(response: http.client.HTTPResponse) -> str:
    """What tells this version of a file from others, as If-Range takes it; "" where the server does not say."""
    etag = response.headers["ETag"] or ""
    return etag if etag.startswith('"') else response.headers["Last-Modified"] or ""  # a weak ETag is not about bytes


def entries_of(url: str, pause: Pause) -> Iterator[Any]:
    """The entries of all pages of a list in JSON, of which each names the next in its header Link."""

    def page() -> tuple[list[Any], str]:
        with ask(url) as response, network(url):
            content, links = response.read(), response.headers["Link"] or ""
        try:
            found = json.loads(content)
        except ValueError:
            found = None
        if not isinstance(found, list):
            raise DataError(f"'{url}' answers with no list of files, but {content[:60]!r}. {BY_HAND}")
        following = re.search(r'<([^>]*)>\s*;[^,]*\brel="?next\b', links)
        return found, urllib.parse.urljoin(url, following[1]) if following else ""

    for _ in range(PAGES):
        found, url = patiently(page, pause)
        yield from found
        if not url:
            return
    raise DataError(f"the list of files has more than {PAGES} pages; the next would be '{url}'.")
