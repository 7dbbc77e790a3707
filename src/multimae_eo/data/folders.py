"""Folders that results are written to: made with those above them, and gone again where an error left them empty."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from multimae_eo.errors import ConfigError, MultiMAEError


def writable(folder: str | os.PathLike[str]) -> Path:
    """Make a folder for results; raises ConfigError where that cannot be."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"'{folder}' is no folder that can be written: {error.strerror}. Give another one, or make room for it."
        ) from error
    return folder


def plain(name: str) -> str:
    """The name of a new folder; raises ConfigError where it is a path."""
    if Path(name).name != name:
        raise ConfigError(f"name must be a plain folder name, got '{name}'.")
    return name


@contextmanager
def leaving_nothing(folder: Path, *names: str) -> Iterator[list[str]]:
    """After an error that users can cause, what is new of some names in a folder is removed, and new empty folders.

    Yields the names, which may be cleared: what is written from then on is worth keeping.
    """
    above = [path for path in (folder, *folder.parents) if not path.exists()]
    new = [name for name in names if not (folder / name).exists()]
    try:
        yield new
    except MultiMAEError:
        for name in new:
            shutil.rmtree(folder / name, ignore_errors=True)
            with suppress(OSError):
                (folder / name).unlink()
        with suppress(OSError):  # the first that is not empty ends it
            for path in above:
                path.rmdir()
        raise
