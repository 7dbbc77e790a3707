"""Reads what cannot be read again, with growing pauses, then leaves it out and records it: up to a limit."""

import csv
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from multimae_eo.errors import DataError

# Seconds before the first new try; each pause is twice the last, up to the longest.
PAUSE_S, LONGEST_S = 0.5, 60.0
COLUMNS = ("time", "pid", "name", "cause")
T = TypeVar("T")


class Patience:
    """How often to try again, and how many tiles or images may stay unreadable.

    retries: new tries after a fault; limit: how many different ones a process may leave out, 0 for none; record: the
    CSV that they are written to, by every process that reads (columns `COLUMNS`).
    """

    def __init__(self, retries: int, limit: int, record: Path | None):
        self.retries, self.limit, self.record = retries, limit if record else 0, record
        self.unread: dict[str, str] = {}  # name -> cause, in this process; these are not tried again

    def read(self, name: str, read: Callable[[], T], reopen: Callable[[], None] | None = None) -> T | None:
        """What `read` returns, or None for what is left out.

        reopen: called before each new try. Raises the DataError of `read` where none may be left out, and one that
        counts them where there are more than the limit.
        """
        for attempt in range(self.retries + 1):
            if name in self.unread:
                break
            try:
                return read()
            except DataError as error:
                if attempt == self.retries:
                    self._leave_out(name, error)
                else:
                    time.sleep(min(PAUSE_S * 2**attempt, LONGEST_S))
                    if reopen:
                        reopen()
        return None

    def _leave_out(self, name: str, error: DataError) -> None:
        cause = " ".join(str(error).split())
        if not self.limit:
            hint = "To leave such ones out in training, set data.max_unread." if self.record else ""
            raise type(error)(f"{cause} It was tried {self.retries + 1} times. {hint}".strip()) from error
        self.unread[name] = cause
        self._write(name, cause)
        if len(self.unread) > self.limit:
            raise too_many(len(self.unread), self.limit, self.record, cause) from error

    def _write(self, name: str, cause: str) -> None:
        assert self.record is not None
        print(f"left out: {name}: {cause}", file=sys.stderr, flush=True)
        self.record.parent.mkdir(parents=True, exist_ok=True)
        row = (time.strftime("%Y-%m-%dT%H:%M:%S"), os.getpid(), name, cause)
        with open(self.record, "a", newline="") as file:  # one short write, which other processes do not cut in two
            csv.writer(file).writerow(row)


def too_many(number: int, limit: int, record: Path | None, cause: str) -> DataError:
    """The error to end with where more are unreadable than the user allows."""
    return DataError(
        f"{number} tiles or images could not be read, more than data.max_unread, {limit}. They are listed in "
        f"'{record}'; the last: {cause} Mend the data (`multimae-eo verify` finds all of them), or raise the limit."
    )


def left_out(record: Path, after: int = 0) -> dict[str, str]:
    """The names in a record, each with the cause that was written last; none where there is no record.

    after: as many rows before are of earlier sessions of a run, whose tiles may have been mended since.
    """
    return {row[2]: row[3] for row in _rows(record)[after:]}


def number_of(record: Path) -> int:
    """The rows of a record."""
    return len(_rows(record))


def _rows(record: Path) -> list[list[str]]:
    if not record.exists():
        return []
    with open(record, newline="") as file:
        return [row for row in csv.reader(file) if len(row) == len(COLUMNS)]
