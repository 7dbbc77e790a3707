"""Batches from reading processes, which are started again where one of them is killed."""

import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sized
from contextlib import suppress
from itertools import islice
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from multimae_eo.data.patience import LONGEST_S, PAUSE_S
from multimae_eo.errors import DataError

T = TypeVar("T")


class Loader(DataLoader[T]):
    """The batches of a source, in the order that `batches` gives, read by some processes or in this one.

    batches: lists of keys, the same at every iteration; a batch depends on its keys alone, so that processes that
    start again go on where the killed ones were. retries: how often they may be killed without a batch in between.
    Raises DataError after that.
    """

    def __init__(
        self, source: Dataset[Any], batches: Any, *, workers: int, collate_fn: Callable[[Any], T], retries: int
    ):
        self.rest, self.retries = Rest(batches), retries
        super().__init__(
            source,
            batch_sampler=self.rest,
            collate_fn=collate_fn,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=in_worker,
        )

    def __iter__(self) -> Iterator[T]:  # type: ignore[override]
        done, deaths = 0, 0
        while True:
            self.rest.done = done
            try:
                for batch in self._batches():
                    yield batch
                    done, deaths = done + 1, 0
                return
            except RuntimeError as error:
                if not _is_death(error):
                    raise
                deaths += 1
                self._again(deaths, error)

    def _batches(self) -> Iterator[T]:
        # torch's own handler, which it sets once, raises wherever the main thread is when a process dies; asking for a
        # batch finds it out, too.
        before = signal.getsignal(signal.SIGCHLD)
        iterator: Iterator[T] = super().__iter__()
        with suppress(ValueError, TypeError):  # outside of the main thread, or set from C
            signal.signal(signal.SIGCHLD, before)
        return iterator

    def _again(self, deaths: int, error: RuntimeError) -> None:
        if deaths > self.retries:
            raise DataError(
                f"processes that read data were killed {deaths} times in a row, most likely because memory ran out "
                f"({_said(error)}). Lower data.workers (now {self.num_workers}), or ask for more memory."
            ) from error
        what = f"a process that reads data was killed ({_said(error)})"
        print(f"{what}; starting them again", file=sys.stderr, flush=True)
        time.sleep(min(PAUSE_S * 2 ** (deaths - 1), LONGEST_S))
        self._iterator = None  # the next one starts processes of its own


class Rest:
    """Batches of keys but for the first `done`."""

    def __init__(self, batches: Sized) -> None:
        self.batches, self.done = batches, 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        return islice(iter(self.batches), self.done, None)  # type: ignore[call-overload]


def _is_death(error: RuntimeError) -> bool:
    return re.match(r"DataLoader worker .*(exited unexpectedly|is killed by signal)", str(error)) is not None


def _said(error: RuntimeError) -> str:
    return str(error).split(". ")[0].rstrip(".")


def in_worker(_: int) -> None:
    """What a reading process begins with: signals are left to its parent, whose end is no error of its own.

    A parent that stops while a tensor is handed over breaks a connection; the thread that serves it would print that.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    printed = sys.excepthook

    def unless_disconnected(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not issubclass(kind, ConnectionError | EOFError):
            printed(kind, error, trace)

    sys.excepthook = unless_disconnected
