"""Requests over http and https: what can pass is tried again, the rest becomes an error that says what to do.

Errors name the address. `Dropped` never leaves the download: it becomes a DataError once patience is at its end.
"""

import http.client
import socket
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

from multimae_eo import __version__
from multimae_eo.errors import ConfigError, DataError

T = TypeVar("T")
Pause = Callable[[float], None]  # waits some seconds, or raises what ends the waiting

BACKOFF_S: tuple[float, ...] = (1, 2, 4, 8, 16, 30)  # between tries in a row that brought nothing; then it is an error
TIMEOUT_S = 30.0  # without a single byte
LONGEST_WAIT_S = 600.0  # that a server may ask for
BY_HAND = "Files fetched by hand are taken too (docs/download.md); --base names a mirror."

_MEANING = {401: "wants a login", 403: "refuses the file", 404: "has no such file", 410: "has no such file any more"}

# Of all that urllib can open, only http and https: file:// and ftp:// are no answer to a redirect either.
_HANDLERS = (
    *(urllib.request.ProxyHandler, urllib.request.HTTPHandler, urllib.request.HTTPSHandler),
    *(urllib.request.HTTPRedirectHandler, urllib.request.UnknownHandler),
    *(urllib.request.HTTPDefaultErrorHandler, urllib.request.HTTPErrorProcessor),
)


class Dropped(Exception):
    """Trying again may help. after: seconds that the server asks for. unnamed: its host has no address."""

    def __init__(self, why: str, *, after: float | None = None, unnamed: bool = False):
        super().__init__(why)
        self.after, self.unnamed = after, unnamed


def patiently(do: Callable[[], T], pause: Pause, reached: Callable[[], int] | None = None) -> T:
    """What `do` returns; tried again while that may help, after longer and longer pauses.

    reached: the bytes of a file that are there; only tries in a row that add nothing count. Without it, a host that
    has no address is not tried again. Raises DataError at the end of patience.
    """
    tries, best = 0, 0
    while True:
        try:
            return do()
        except Dropped as dropped:
            there = reached() if reached is not None else 0
            tries, best = (0, there) if there > best else (tries, best)
            hopeless = dropped.unnamed and reached is None
            if hopeless or tries >= len(BACKOFF_S) or (dropped.after or 0) > LONGEST_WAIT_S:
                raise DataError(
                    f"{dropped} What has come down is kept; the same command goes on. {BY_HAND}"
                ) from dropped
            pause(BACKOFF_S[tries] if dropped.after is None else dropped.after)
            tries += 1


def address(base: str) -> str:
    """An address without a slash at its end; raises ConfigError where it is not of http or https."""
    parts = urllib.parse.urlsplit(base)
    if parts.scheme not in ("http", "https") or not parts.hostname or any(c.isspace() for c in base):
        raise ConfigError(f"base '{base}' is no address of a server; expected http://... or https://...")
    return base.rstrip("/")


def ask(url: str, headers: Mapping[str, str] | None = None) -> http.client.HTTPResponse:
    """The answer to a request, after redirects; raises Dropped or DataError."""
    opener = urllib.request.OpenerDirector()
    for handler in _HANDLERS:
        opener.add_handler(handler())
    known = {"User-Agent": f"multimae-eo/{__version__}", "Accept-Encoding": "identity"}
    with network(url):
        return opener.open(urllib.request.Request(url, headers={**known, **(headers or {})}), timeout=TIMEOUT_S)


@contextmanager
def network(url: str) -> Iterator[None]:
    """Turns what can go wrong on the way to a server into Dropped or DataError."""
    try:
        yield
    except urllib.error.HTTPError as error:
        error.close()
        raise _answer(url, error) from error
    except (OSError, http.client.HTTPException) as error:
        cause = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(cause, str | ssl.SSLCertVerificationError):  # text: what urllib refuses, such as another scheme
            raise DataError(f"'{url}' cannot be fetched: {cause}. {BY_HAND}") from error
        if isinstance(cause, socket.gaierror):
            host = urllib.parse.urlsplit(url).hostname
            why = f"'{url}': host '{host}' is not found. Is there a network, or a proxy to name in https_proxy?"
            raise Dropped(why, unnamed=True) from error
        raise Dropped(f"'{url}' broke off: {cause or type(cause).__name__}.") from error


def _answer(url: str, error: urllib.error.HTTPError) -> Exception:
    """What an answer other than success means."""
    status, wait = error.code, (error.headers["Retry-After"] or "").strip()
    if status in (408, 429) or (status >= 500 and status != 501):
        after = float(wait) if wait.isdigit() else None
        asks = f" It asks to come back in {wait} s." if after is not None else ""
        return Dropped(f"'{url}' answers with {status} ({error.reason}).{asks}", after=after)
    if status < 400:  # urllib has followed all that it may
        return DataError(f"'{url}' leads to an address that is not fetched: {' '.join(error.reason.split())}.")
    meaning = _MEANING.get(status, "refuses the request")
    look = "Look at the address in a browser: the release may have moved."
    return DataError(f"'{url}': the server {meaning} ({status}). {look} {BY_HAND}")


def size_of(response: http.client.HTTPResponse) -> int:
    """Bytes of the whole file, also where an answer holds a part of it; 0 where the server does not say."""
    part = (response.headers["Content-Range"] or "").rpartition("/")[2]
    text = part if response.status == 206 else response.headers["Content-Length"] or ""
    return int(text) if text.isdigit() else 0


def version_of(response: http.client.HTTPResponse) -> str:
    """What tells this version of a file from others, as If-Range takes it; "" where the server does not say."""
    etag = response.headers["ETag"] or ""
    return etag if etag.startswith('"') else response.headers["Last-Modified"] or ""  # a weak ETag is not about bytes


def read(url: str, pause: Pause) -> bytes:
    """The whole answer to a request."""

    def content() -> bytes:
        with ask(url) as response, network(url):
            return response.read()

    return patiently(content, pause)
