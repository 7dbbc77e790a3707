"""Files that appear under their names only when whole, and folders that one process at a time writes to."""

import datetime
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from multimae_eo.errors import ConfigError

LOCK = ".lock"
_PARTIAL = ".partial"


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """A path beside `path` to write a file or a new folder to; it takes the name once the block ends.

    Where the block fails, what was written is removed. A file that is there under the name stays whole until the end,
    also where the power fails in between.
    """
    partial = path.with_name(f".{path.name}{_PARTIAL}-{os.getpid()}")
    try:
        yield partial
        if partial.is_file():
            with open(partial, "rb") as file:
                os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        _remove(partial)


@contextmanager
def claimed(folder: Path, *below: str) -> Iterator[None]:
    """Keep a folder, which is made where it is lacking, to this process; what killed ones left half-written goes.

    below: names of folders in it that are cleared too. Raises ConfigError as `held` does.
    """
    with held(folder / LOCK, folder):
        for place in (folder, *(folder / name for name in below)):
            for path in place.glob(f".*{_PARTIAL}-*"):
                _remove(path)
        yield


@contextmanager
def held(lock: Path, result: Path) -> Iterator[None]:
    """Hold a lock file, whose folder is made where it is lacking, while this process writes a result.

    The lock is the system's (POSIX record locks, which NFS has too): it ends with the process, however that ends, and
    processes that this one forks do not have it. Raises ConfigError where another process holds it, with its host and
    number, or where the folder cannot be written.
    """
    new = [place for place in lock.parents if not place.exists()]
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = _locked(lock, result)
    except OSError as error:
        what = f"'{lock.parent}' is no folder that can be written: {error.strerror}"
        raise ConfigError(f"{what}. Give another one, or make room for it.") from error
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(file)
        with suppress(OSError):  # those that nothing was written to
            for place in new:
                place.rmdir()


def _locked(lock: Path, result: Path) -> int:
    """The descriptor of the lock file, locked, with the name of this process in it."""
    import fcntl

    while True:
        file = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            holder = os.read(file, 200).decode(errors="replace").strip() or "another process"
            os.close(file)
            raise ConfigError(
                f"'{result}' is being written by {holder}. Wait for it or stop it, or give another --out."
            ) from None
        if _is_file(file, lock):  # and not one that its holder has just removed
            break
        os.close(file)
    now = datetime.datetime.now().strftime("%Y-%m-%d %H:%M:%S")
    os.ftruncate(file, 0)
    os.write(file, f"process {os.getpid()} on {socket.gethostname()}, since {now}".encode())
    return file


def _is_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
