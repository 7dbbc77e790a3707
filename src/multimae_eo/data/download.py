"""Downloads MMEarth and GEO-Bench: resumable, checked, several files at once, each under its name only when whole."""

import dataclasses
import hashlib
import os
import shutil
import stat
import struct
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from multimae_eo.data import web
from multimae_eo.data.releases import FOLDERS, MMEARTH, NAMES, Remote, chosen, hub_files, hub_list, mmearth_files
from multimae_eo.errors import ConfigError, DataError, UnknownNameError, WriteError
from multimae_eo.whole import held

Progress = Callable[[int, int], None]
PROGRESS_S = 0.2
CHUNK = 1 << 20
# What zipfile raises where an archive is damaged.
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, UnicodeError, ArithmeticError, struct.error)
# What files begin with, by the end of their names.
_BEGINS = {".h5": b"\x89HDF", ".zip": b"PK", ".json": b"{"}


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

    Goes on where an earlier call was stopped, at whatever byte. Files that are there are kept and not written over, and
    so are the folders of sets. Ctrl-C leaves what is there.
    Raises UnknownNameError, ConfigError, DataError where a server or its data are in the way, WriteError for the disk.
    """
    if what not in NAMES:
        raise UnknownNameError("data set", what, NAMES)
    if workers < 1:
        raise ConfigError(f"workers must be 1 or more; got {workers}.")
    base = None if base is None else web.address(base)
    with held(Path(out) / f".{what.replace(':', '-')}.lock", Path(out)):
        return _download(what, _Job(Path(out)), only, workers, base, progress)


def _download(
    what: str, job: "_Job", only: Sequence[str], workers: int, base: str | None, progress: Progress | None
) -> Path:
    if what in MMEARTH:
        listed = mmearth_files(what, base)
    else:
        listed = hub_files(what, base, web.read(hub_list(base), job.pause))
    files = [file for one in chosen(listed, only) if (file := _measured(one, job)) is not None]
    with _on_disk(job.out):
        job.out.mkdir(parents=True, exist_ok=True)
        _check_room(job.out, _needed([file for file in files if not job.has(file)], job), f"'{what}'")
    _bring_all(files, job, workers, progress)
    return job.out / MMEARTH[what][0] if what in MMEARTH else job.out


class _Stopped(Exception):
    """Another file failed, or the user interrupts."""


@dataclass
class _Job:
    """A download: where to, the bytes of each file that are there, and whether to stop."""

    out: Path
    done: dict[str, int] = field(default_factory=dict)
    stop: threading.Event = field(default_factory=threading.Event)

    def path(self, file: Remote) -> Path:
        return self.out / file.path

    def has(self, file: Remote) -> bool:
        """Whether a file is there, or the folder of a set, which has its name only when it is whole."""
        return self.path(file).exists() or bool(file.unpack and (self.out / file.unpack).is_dir())

    def pause(self, seconds: float = 0.0) -> None:
        """Wait; raises _Stopped."""
        if self.stop.wait(seconds) if seconds > 0 else self.stop.is_set():
            raise _Stopped


@contextmanager
def _on_disk(path: Path) -> Iterator[None]:
    """WriteError where the disk does not take or give what is at `path`."""
    try:
        yield
    except OSError as error:
        raise WriteError(
            f"'{path}' could not be written: {error.strerror or error}. What has come down is kept; mend that, and the "
            "same command goes on."
        ) from error


def _check_room(folder: Path, needed: int, what: str) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise WriteError(
            f"'{folder}': {what} needs {needed / 1e9:.2f} GB more, but {free / 1e9:.2f} GB are free. Make room, or "
            "give another --out."
        )


def _measured(file: Remote, job: _Job) -> Remote | None:
    """The file with the size that its server states; None where a server lacks one that it may lack."""
    if file.size:
        return file
    try:
        if size := web.patiently(lambda: _stated(file), job.pause):
            return dataclasses.replace(file, size=size)
        raise DataError(f"'{file.url}': the server does not say how long it is, so it cannot be checked. {web.BY_HAND}")
    except DataError:
        if file.optional:
            return None
        raise


def _stated(file: Remote) -> int:
    """The size that a server states, 0 where it states none; not with HEAD, which some do not answer."""
    with web.ask(file.url, {"Range": "bytes=0-0"}) as response:
        with web.network(file.url):
            _check_kind(file, response.read1(16))
        return web.size_of(response)


def _needed(lacking: Sequence[Remote], job: _Job) -> int:
    """Bytes that the disk has to hold besides what is there; a zip and what it holds lie side by side for a while."""
    there = [path.stat().st_size for file in lacking if (path := _partial(job.path(file))).is_file()]
    left = sum(file.size for file in lacking) - sum(there)
    return left + max((file.size for file in lacking if file.unpack), default=0)


def _partial(path: Path, more: str = "") -> Path:
    return path.with_name(f"{path.name}.partial{more}")


def _bring_all(files: Sequence[Remote], job: _Job, workers: int, progress: Progress | None) -> None:
    """As many files at a time as there are workers; the first error stops the others, which keep what they have."""
    total = sum(file.size for file in files)
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
            raise


def _bring(file: Remote, job: _Job) -> None:
    """One file, whole and under its name, or the folder that it unpacks to."""
    job.pause()
    path, folder = job.path(file), job.out / file.unpack
    with _on_disk(path):
        if not job.has(file):
            _fetch(file, path, job)
        elif path.exists() and (damage := _damage_of(path, file)):
            raise DataError(f"'{path}' is there already, but {damage}. Move it away, or name the others with --only.")
        if file.unpack and not folder.is_dir():
            _unpack(path, folder, job.pause)
    job.done[file.path] = file.size


def _fetch(file: Remote, path: Path, job: _Job) -> None:
    """Into NAME.partial until it is whole; what tells its version stands in NAME.partial.version."""
    partial = _partial(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(partial, "ab") as content:
        web.patiently(lambda: _receive(file, content, path, job), job.pause, lambda: content.seek(0, os.SEEK_END))
        content.flush()
        os.fsync(content.fileno())
    damage = _damage_of(partial, file)
    if not damage:
        os.replace(partial, path)
    partial.unlink(missing_ok=True)  # nothing of it can be gone on with
    _partial(path, ".version").unlink(missing_ok=True)
    if damage:
        raise DataError(f"'{file.url}' {damage}. It was thrown away; run the same command again. {web.BY_HAND}")


def _receive(file: Remote, content: BinaryIO, path: Path, job: _Job) -> None:
    """Append what is missing, or begin anew where the file has changed or the server sends all of it.

    Raises Dropped where the rest is to be asked for again.
    """
    notes = _partial(path, ".version")
    start, known = content.seek(0, os.SEEK_END), notes.read_text() if notes.is_file() else ""
    if start == file.size:
        return
    start = start if start < file.size else 0
    headers = {"Range": f"bytes={start}-"} if start else {}
    if start and known:
        headers["If-Range"] = known
    with web.ask(file.url, headers) as response:
        version, part = web.version_of(response), response.status == 206
        begins = f"bytes {start}-{file.size - 1}/{file.size}" == response.headers["Content-Range"]
        if start and not (part and begins and version == known):
            start = 0
            if part:  # of another version
                _empty(content)
                raise web.Dropped(f"'{file.url}' has changed.", after=0)
        while start <= file.size:
            job.pause()
            job.done[file.path] = start
            with web.network(file.url):
                chunk = response.read1(CHUNK)
            if not chunk:
                break
            if not start:
                _check_kind(file, chunk)  # now, and not after hours; what is there stays until something better comes
                _empty(content)
                notes.write_text(version)
            start += content.write(chunk)
    if start < file.size:
        raise web.Dropped(f"'{file.url}' broke off after {start} of {file.size} bytes.")


def _check_kind(file: Remote, first: bytes) -> None:
    """Raise DataError where the first bytes of an answer are of no such file, but of a web page, perhaps."""
    kind = PurePosixPath(file.path).suffix
    begins, text = _BEGINS.get(kind, b""), first.lstrip()
    page = not begins and text.startswith(b"<")
    if text and (page or not text.startswith(begins[: len(text)])):
        what = f"is no {kind[1:]} file, it begins with" if kind else "begins like a web page,"
        raise DataError(
            f"'{file.url}' {what} {first[:40]!r}. Open it in a browser: a web page may ask to log in. {web.BY_HAND}"
        )


def _empty(content: BinaryIO) -> None:
    content.truncate(0)
    content.seek(0)


def _damage_of(path: Path, file: Remote) -> str:
    """What is wrong with the bytes at `path`, "" for nothing; reads all of them where a checksum is published."""
    size = path.stat().st_size
    if size != file.size:
        return f"has {size} bytes, expected {file.size}"
    if not file.sha256:
        return ""
    with open(path, "rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
    return "" if found == file.sha256 else f"is damaged: its SHA-256 is {found}, expected {file.sha256}"


def _unpack(path: Path, folder: Path, pause: Callable[[], None]) -> None:
    """Unpack a zip to the folder of its set, which gets its name only when it is whole, and remove the zip.

    Every name is checked before anything is written, and no file becomes larger than the zip states. pause: called
    before each file; what it raises gets out. Raises DataError for a hostile or damaged zip, WriteError for the disk.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with zipfile.ZipFile(path) as archive:
            members = _members(archive, path, folder.name)
            _check_room(folder.parent, sum(member.file_size for member in members.values()), f"unpacking '{path.name}'")
            for name, member in members.items():
                pause()
                (partial / name).parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as packed, open(partial / name, "wb") as content:
                    shutil.copyfileobj(packed, content, CHUNK)  # held against the zip's own checksum
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        RuntimeError,
        UnicodeError,
        ArithmeticError,
        struct.error,
    ) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise DataError(f"'{path}' cannot be unpacked: {error}. Delete it, and try again.") from error
    os.replace(partial, folder)
    path.unlink()


def _members(archive: zipfile.ZipFile, path: Path, name: str) -> dict[str, zipfile.ZipInfo]:
    """The files of a set by their paths in its folder NAME, which may lie in that of its kind of task."""
    members = {}
    for member in archive.infolist():
        parts = member.orig_filename.removesuffix("/").split("/")
        if any(part in ("", ".", "..") or set(part) & {"\\", ":", "\0"} for part in parts):
            raise DataError(f"'{path}' names the path {member.orig_filename!r}, which leads out of its folder.")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise DataError(f"'{path}': {member.filename!r} is a link; nothing of it is written.")
        parts = parts[1:] if parts[0] in FOLDERS else parts
        if parts[:1] == [name] and len(parts) > 1 and not member.is_dir():
            members["/".join(parts[1:])] = member
    if not members:
        raise DataError(f"'{path}' holds no file in a folder '{name}'. Delete it, and try again.")
    return members
