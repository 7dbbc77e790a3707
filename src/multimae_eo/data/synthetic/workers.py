"""Worker processes that import neither torch nor the caller: they answer requests with a function of this package."""

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from queue import SimpleQueue
from typing import TypeVar

Request = TypeVar("Request")
Answer = TypeVar("Answer")

# What a worker runs. Not multiprocessing: its spawned children run the caller's main script again, which fails where
# that is unguarded or read from a pipe, and imports torch again where it is not.
_COMMAND = "import sys; sys.path[:] = {path!r}; from multimae_eo.data.synthetic.workers import serve; serve()"


def count_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def serve() -> None:
    """What a worker process does: answers pickled (function, request) on its standard input until that ends."""
    while True:
        try:
            function, request = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        pickle.dump(function(request), sys.stdout.buffer, pickle.HIGHEST_PROTOCOL)
        sys.stdout.buffer.flush()


def answers(
    function: Callable[[Request], Answer], requests: Sequence[Request], *, workers: int, stack: ExitStack
) -> Iterator[Answer]:
    """function(request) of every request, in order, from worker processes.

    From this process if one is enough or they cannot start. function: of a module of this package, at its top level,
    and pure but for what it writes. stack: ends the workers when it closes.
    """
    num = min(workers, len(requests))
    pool = _start(num, stack) if num > 1 else []
    if not pool:
        return map(function, requests)
    idle: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()
    for process in pool:
        idle.put(process)
    threads = ThreadPoolExecutor(len(pool))
    # On the way out, in reverse: drop what is queued, end the workers, which wakes the threads, and join these.
    stack.callback(threads.shutdown)
    stack.callback(_stop, pool)
    stack.callback(threads.shutdown, wait=False, cancel_futures=True)
    return threads.map(lambda request: _ask(idle, function, request), requests)


def _ask(
    idle: "SimpleQueue[subprocess.Popen[bytes]]", function: Callable[[Request], Answer], request: Request
) -> Answer:
    """Have an idle worker answer a request; if it has died, answer here."""
    process = idle.get()
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        pickle.dump((function, request), process.stdin)
        process.stdin.flush()
        answer: Answer = pickle.load(process.stdout)
        return answer
    except (OSError, EOFError, pickle.UnpicklingError):
        return function(request)
    finally:
        idle.put(process)


def _start(num: int, stack: ExitStack) -> list[subprocess.Popen[bytes]]:
    command = [sys.executable, "-c", _COMMAND.format(path=sys.path)]
    pool: list[subprocess.Popen[bytes]] = []
    stack.callback(_stop, pool)
    pipe, silent = subprocess.PIPE, subprocess.DEVNULL
    try:
        while len(pool) < num:
            pool.append(subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=silent))
    except OSError:  # no interpreter to start, as in a frozen program
        _stop(pool)
        return []
    return pool


def _stop(pool: list[subprocess.Popen[bytes]]) -> None:
    """End the workers and close their pipes."""
    for process in pool:
        process.kill()
    for process in pool:
        process.wait()
        for pipe in (process.stdin, process.stdout):
            # A request that its worker did not live to read is still in the buffer, and closing tries to send it.
            with suppress(BrokenPipeError):
                if pipe is not None:
                    pipe.close()
