"""What came down: whether a file is whole, and zips unpacked without leaving their folder."""

import hashlib
import json
import os
import shutil
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from multimae_eo.data.releases import Remote, parts_of
from multimae_eo.errors import DataError, WriteError

HEAD_BYTES = 64  # enough to tell what a file is
CHUNK = 1 << 20
_HDF5 = b"\x89HDF\r\n\x1a\n"


@contextmanager
def on_disk(path: Path) -> Iterator[None]:
    """WriteError where the disk does not take or give what is at `path`."""
    try:
        yield
    except OSError as error:
        raise WriteError(
            f"'{path}' could not be written: {error.strerror or error}. What has come down is kept; mend that, and the "
            "same command goes on."
        ) from error


def check_room(folder: Path, needed: int, what: str) -> None:
    """Raise WriteError where a folder's disk has fewer bytes free than needed."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise WriteError(
            f"'{folder}': {what} needs {needed / 1e9:.2f} GB more, but {free / 1e9:.2f} GB are free. Make room, or "
            "give another --out."
        )


def flaw_of(name: str, head: bytes, size: int | None) -> str:
    """What is wrong with a file by its first bytes and its size (None: not known), "" for nothing."""
    start = head[:HEAD_BYTES].lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "is a web page, not data"
    if name.endswith((".h5", ".hdf5")):
        end = _end_of_hdf5(head)
        if end is None:
            return "is no HDF5 file"
        cut = size is not None and size < end
        return f"is cut off: its header tells of {end} bytes, it has {size}" if cut else ""
    if name.endswith(".json") and not start.startswith((b"{", b"[")):
        return "is no JSON file"
    if name.endswith(".zip") and not start.startswith(b"pk"):
        return "is no zip file"
    return ""


def _end_of_hdf5(head: bytes) -> int | None:
    """Where an HDF5 file ends by its own header, None where it is none.

    Source: HDF5 File Format Specification, superblocks of versions 0 to 3.
    """
    if not head.startswith(_HDF5) or len(head) < HEAD_BYTES or head[8] > 3:
        return None
    width, base = (head[13], 24 + 4 * head[8]) if head[8] < 2 else (head[9], 12)
    place = base + 2 * width  # behind the base address and another one
    return int.from_bytes(head[base : base + width], "little") + int.from_bytes(head[place : place + width], "little")


def damage_of(path: Path, file: Remote) -> str:
    """What is wrong with the bytes at `path`, "" for nothing; reads all of them where a checksum is published."""
    with open(path, "rb") as content:
        size = os.fstat(content.fileno()).st_size
        if file.size not in (None, size):
            return f"has {size} bytes, expected {file.size}"
        flaw = flaw_of(file.name, content.read(HEAD_BYTES), size)
        kind, _, expected = file.digest.partition(":")
        if flaw or not kind:
            return flaw or _flaw_of_end(file.name, content)
        content.seek(0)
        found = hashlib.file_digest(content, lambda: _hash(kind, size)).hexdigest()
    return "" if found == expected else f"is damaged: its checksum ({kind}) is {found}, expected {expected}"


def _flaw_of_end(name: str, content: BinaryIO) -> str:
    """JSON has nothing but its last bracket to tell that it is whole."""
    content.seek(0)
    first = content.read(HEAD_BYTES).lstrip()[:1]
    content.seek(-min(HEAD_BYTES, content.seek(0, os.SEEK_END)), os.SEEK_END)
    whole = not name.endswith(".json") or content.read().rstrip().endswith(b"}" if first == b"{" else b"]")
    return "" if whole else "is cut off: it does not end as it begins"


def _hash(kind: str, size: int) -> "hashlib._Hash":
    if kind == "git":
        return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    return hashlib.new(kind)


def _receipt(folder: Path, file: Remote) -> Path:
    """The note beside a set's folder that says that a zip was unpacked into it."""
    return folder.with_name(f".{file.name}.unpacked.json")


def is_unpacked(folder: Path, file: Remote) -> bool:
    """Whether this very zip was unpacked to the end, and the folder has as many files as it had then."""
    try:
        note = json.loads(_receipt(folder, file).read_text())
        same = (note["size"], note["digest"]) == (file.size, file.digest)
        return same and _count(folder) >= int(note["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _count(folder: Path) -> int:
    return sum(len(files) for _, _, files in os.walk(folder))


def unpack(path: Path, folder: Path, file: Remote, pause: Callable[[], None]) -> None:
    """Unpack a zip into the folder of its set, note that, and remove the zip.

    Every name is checked before anything is written, and no file becomes larger than the zip states. What an earlier
    call has written is kept where its checksum is the zip's. pause: called before each file; what it raises gets out.
    Raises DataError for a hostile or damaged zip, WriteError for the disk.
    """
    try:
        with on_disk(folder), zipfile.ZipFile(path) as archive:
            members = _members(archive, folder)
            folder.mkdir(parents=True, exist_ok=True)
            left = {target: member for target, member in members.items() if not _is_there(target, member)}
            check_room(folder, sum(member.file_size for member in left.values()), f"unpacking '{path.name}'")
            for target, member in left.items():
                pause()
                _write(archive, member, target, folder / f".{path.name}.partial")
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise DataError(
            f"'{path}' cannot be unpacked: {error}. Delete it, and the same command fetches it anew."
        ) from error
    note = {"size": file.size, "digest": file.digest, "files": len(members)}
    with on_disk(folder):
        _receipt(folder, file).write_text(json.dumps(note))
        path.unlink()


def _members(archive: zipfile.ZipFile, folder: Path) -> dict[Path, zipfile.ZipInfo]:
    """Where each file of a zip goes below `folder`, whether or not the zip begins with the folder itself."""
    members = {}
    for member in archive.infolist():
        parts = parts_of(member.orig_filename.removesuffix("/"), str(archive.filename))
        if stat.S_ISLNK(member.external_attr >> 16):
            raise DataError(f"'{archive.filename}': {member.filename!r} is a link; nothing of it is written.")
        if member.is_dir() or parts[0] == "__MACOSX" or parts[-1] == ".DS_Store":
            continue
        if folder.name in parts[:2]:
            parts = parts[parts.index(folder.name) + 1 :]
        if parts:
            members[folder.joinpath(*parts)] = member
    if not members:
        raise DataError(f"'{archive.filename}' holds no file; delete it, and the same command fetches it anew.")
    return members


def _is_there(target: Path, member: zipfile.ZipInfo) -> bool:
    if not target.is_file() or target.stat().st_size != member.file_size:
        return False
    total = 0
    with open(target, "rb") as content:
        while chunk := content.read(CHUNK):
            total = zlib.crc32(chunk, total)
    return total == member.CRC


def _write(archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path, partial: Path) -> None:
    """One file, under its name only when whole."""
    try:
        size = 0
        with archive.open(member) as packed, open(partial, "wb") as content:
            while chunk := packed.read(CHUNK):  # never more than the zip states, and with its checksum
                size += content.write(chunk)
        if size != member.file_size:
            raise zipfile.BadZipFile(f"{member.filename!r} has {size} bytes, the zip states {member.file_size}")
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
