"""Downloads MMEarth and GEO-Bench: resumable, checked, several files at once, each under its name only when whole."""

import dataclasses
import http.client
import json
import os
import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from multimae_eo.data.received import CHUNK, HEAD_BYTES, check_room, damage_of, flaw_of, is_unpacked, on_disk, unpack
from multimae_eo.data.releases import MMEARTH, NAMES, Remote, check_name, chosen, hub_files, hub_list, mmearth_files
from multimae_eo.data.web import (
    BY_HAND,
    Dropped,
    Patience,
    Refused,
    address,
    ask,
    entries_of,
    hang_up,
    network,
    patiently,
    size_of,
    version_of,
)
from multimae_eo.errors import ConfigError, DataError, WriteError

try:
    import fcntl
except ImportError:  # Windows: two downloads into one folder are not kept apart there
    fcntl = None  # type: ignore[assignment]

__all__ = ["NAMES", "download"]

Progress = Callable[[int, int], None]
PROGRESS_S = 0.2


def download(
    what: str,
    out: Path,
    *,
    only: Sequence[str] = (),
    workers: int = 4,
    base: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """Download a data set into a folder; returns what --data.root takes: out/NAME of MMEarth, `out` of GEO-Bench.

    what: one of NAMES. only: names or patterns of files to take ("*.json", "m-eurosat"). workers: files at a time.
    base: for MMEarth the address of the folder that holds its files, for GEO-Bench that of a Hub, in place of the
    publishers'. progress: called with the bytes that are there and those of all files; the first can shrink where a
    file has to start over.

    Goes on where an earlier call was stopped, at whatever byte. Files that are there are kept and not written over; but
    a set that is unpacked again gets back what its zip holds. Ctrl-C leaves what is there.
    Raises UnknownNameError, ConfigError, DataError where a server or its data are in the way, WriteError for the disk.
    """
    check_name(what)
    if workers < 1:
        raise ConfigError(f"workers must be 1 or more; got {workers}.")
    base = None if base is None else address(base)
    job = _Job(Path(out))
    if what in MMEARTH:
        listed = mmearth_files(what, base)
    else:
        listed = hub_files(what, base, entries_of(hub_list(base), job.pause))
    files = [file for one in chosen(listed, only) if (file := _measured(one, job))]
    with on_disk(job.out):
        job.out.mkdir(parents=True, exist_ok=True)
        lacking = [file for file in files if job.lacks(file)]
        check_room(job.out, _needed(lacking, job), f"'{what}'")
    _bring_all(files, job, workers, progress)
    return job.out / MMEARTH[what][0] if what in MMEARTH else job.out


class _Stopped(Exception):
    """Another file failed, or the user interrupts."""


@dataclass
class _Job:
    """A download: where to, the bytes of each file that are there, the open connections, and whether to stop."""

    out: Path
    done: dict[str, int] = field(default_factory=dict)
    lines: dict[str, http.client.HTTPResponse] = field(default_factory=dict)
    stop: threading.Event = field(default_factory=threading.Event)

    def path(self, file: Remote) -> Path:
        return self.out / file.path

    def is_unpacked(self, file: Remote) -> bool:
        return bool(file.unpack) and is_unpacked(self.out / file.unpack, file)

    def pause(self, seconds: float = 0.0) -> None:
        """Wait; raises _Stopped."""
        if self.stop.wait(seconds) if seconds > 0 else self.stop.is_set():
            raise _Stopped

    def lacks(self, file: Remote) -> bool:
        """Whether a file has to be fetched; raises DataError where its name is taken by one of another size."""
        path = self.path(file)
        if self.is_unpacked(file):
            return False
        if path.exists() and file.size not in (None, path.stat().st_size):
            raise DataError(
                f"'{path}' is there already with {path.stat().st_size} bytes, but '{file.url}' has {file.size}. "
                "Move it away to fetch it anew, or name the other files with --only."
            )
        return not path.exists()


def _measured(file: Remote, job: _Job) -> Remote | None:
    """The file with the size that its server states; None where a server lacks one that it may lack."""
    if file.size is not None:
        return file
    try:
        with patiently(lambda: ask(file.url, method="HEAD"), job.pause) as response:
            return dataclasses.replace(file, size=_stated(response, file)["size"])
    except Refused as refused:
        if file.optional and refused.status in (403, 404, 410):
            return None
        if refused.status not in (403, 405, 501):  # some servers answer only to GET
            raise
    with patiently(lambda: ask(file.url, {"Range": "bytes=0-0"}), job.pause) as response:
        return dataclasses.replace(file, size=_stated(response, file)["size"])


def _stated(response: http.client.HTTPResponse, file: Remote) -> dict[str, Any]:
    """The notes on a version of a file: its size (or None), what tells it from others, and its address.

    Raises DataError for a web page, or for another size than the file is known to have.
    """
    if response.headers.get_content_type() == "text/html":
        raise DataError(
            f"'{file.url}' answers with a web page instead of data. Open it in a browser: it may ask to log in, or say "
            f"what is wrong. {BY_HAND}"
        )
    size = size_of(response)
    if file.size is not None and size is not None and size != file.size:
        raise DataError(f"'{file.url}' has {size} bytes, expected {file.size}: it has just changed. Run this again.")
    return {"size": file.size if size is None else size, "version": version_of(response), "url": file.url}


def _needed(lacking: Sequence[Remote], job: _Job) -> int:
    """Bytes that the disk has to hold besides what is there; a zip and what it holds lie side by side for a while."""
    there = [_partial(job.path(file)) for file in lacking]
    left = sum(file.size or 0 for file in lacking) - sum(path.stat().st_size for path in there if path.is_file())
    return left + max((file.size or 0 for file in lacking if file.unpack), default=0)


def _partial(path: Path) -> Path:
    return path.with_name(f"{path.name}.partial")


def _bring_all(files: Sequence[Remote], job: _Job, workers: int, progress: Progress | None) -> None:
    """As many files at a time as there are workers; the first error stops the others, which keep what they have."""
    total = sum(file.size or 0 for file in files)
    job.done = {file.path: 0 for file in files}  # all keys now: threads change only values
    with ThreadPoolExecutor(workers) as pool:
        left = {pool.submit(_bring, file, job) for file in files}
        try:
            while left:
                finished, left = wait(left, PROGRESS_S, FIRST_EXCEPTION)
                for future in finished:
                    future.result()
                if progress:
                    progress(sum(job.done.values()), total)
        except BaseException:
            job.stop.set()
            for response in list(job.lines.values()):
                hang_up(response)
            raise


def _bring(file: Remote, job: _Job) -> None:
    """One file, whole and under its name, or the folder that it unpacks to."""
    job.pause()
    path = job.path(file)
    with on_disk(path):
        if not job.is_unpacked(file):
            if not path.exists():
                _fetch(file, path, job)
            elif damage := damage_of(path, file):
                raise DataError(f"'{path}' {damage}. Delete it, and the same command fetches it anew.")
            if file.unpack:
                unpack(path, job.out / file.unpack, file, job.pause)
    job.done[file.path] = file.size or 0


def _fetch(file: Remote, path: Path, job: _Job) -> None:
    """Into NAME.partial until it is whole; the notes on its version stand in NAME.partial.json."""
    partial, patience = _partial(path), Patience(job.pause, named=True)
    notes = partial.with_name(f"{partial.name}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(partial, "ab") as content:
        _lock(content, partial)
        while True:
            try:
                _receive(file, content, notes, job)
                break
            except Dropped as dropped:
                patience.wait(dropped, content.seek(0, os.SEEK_END))
        content.flush()
        os.fsync(content.fileno())
    damage = damage_of(partial, file)
    if not damage:
        os.replace(partial, path)
    partial.unlink(missing_ok=True)  # nothing of it can be gone on with
    notes.unlink(missing_ok=True)
    if damage:
        raise DataError(f"'{file.url}' {damage}. It was thrown away; run the same command again. {BY_HAND}")


def _lock(content: BinaryIO, partial: Path) -> None:
    try:
        if fcntl:
            fcntl.flock(content, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise WriteError(f"'{partial}' is being written by another download; wait for it, or stop it.") from error
    except OSError:  # a file system without locks
        pass


def _receive(file: Remote, content: BinaryIO, notes: Path, job: _Job) -> None:
    """Append what is missing, or begin anew where the file has changed or the server sends all of it.

    Raises Dropped where the rest is to be asked for again.
    """
    start, known = content.seek(0, os.SEEK_END), _read(notes)
    version = known.get("version", "")
    if start and not (version or file.digest or known.get("url") == file.url):
        start = _empty(content)  # of another server, and nothing to know it by
    if start and start == file.size == known.get("size"):
        return
    headers = {"Range": f"bytes={start}-"} if start else {}
    if start and version:
        headers["If-Range"] = version
    try:
        response = ask(file.url, headers)
    except Refused as refused:
        if refused.status != 416:
            raise
        _empty(content)
        raise Dropped(str(refused), after=0) from refused
    with response:
        job.lines[file.path] = response
        stated = _stated(response, file)
        if start and (response.status != 206 or not _goes_on(response, start, stated, known)):
            start = _empty(content)
            if response.status == 206:  # a part of another version
                raise Dropped(f"'{file.url}' has changed.", after=0)
        notes.write_text(json.dumps(stated))
        end = _copy(response, content, file, start, job)
    del job.lines[file.path]
    if stated["size"] is not None and end < stated["size"]:
        raise Dropped(f"'{file.url}' broke off after {end} of {stated['size']} bytes.")


def _goes_on(response: http.client.HTTPResponse, start: int, stated: dict[str, Any], known: dict[str, Any]) -> bool:
    """Whether a part begins where the file ends, and is of the same version as far as the server says."""
    begins = re.match(r"bytes (\d+)-", response.headers["Content-Range"] or "")
    same = all(not stated[key] or not known.get(key) or stated[key] == known[key] for key in ("size", "version"))
    return same and begins is not None and int(begins[1]) == start


def _copy(response: http.client.HTTPResponse, content: BinaryIO, file: Remote, start: int, job: _Job) -> int:
    """Append what a server sends to the `start` bytes that are there; returns how many there are then."""
    end = start
    while True:
        job.pause()
        job.done[file.path] = end
        with network(file.url):
            chunk = response.read1(CHUNK)
        if not chunk:
            return end
        if not end and len(chunk) >= HEAD_BYTES and (flaw := flaw_of(file.name, chunk, file.size)):
            raise DataError(f"'{file.url}' {flaw}. {BY_HAND}")  # now, and not after hours
        end += content.write(chunk)


def _empty(content: BinaryIO) -> int:
    content.truncate(0)
    return content.seek(0)


def _read(notes: Path) -> dict[str, Any]:
    try:
        found = json.loads(notes.read_text())
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        return {}
