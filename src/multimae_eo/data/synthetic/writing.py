"""Writes a synthetic world in the MMEarth layout, with worker processes that import neither torch nor the caller."""

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue

from multimae_eo.data.layout import ARRAYS, EncodedTile, LayoutWriter, encode_tile
from multimae_eo.data.synthetic.climate import Block, block_of, split_draw, tile_block
from multimae_eo.data.synthetic.world import check_world, make_tile
from multimae_eo.errors import ConfigError

_CHUNK = 16  # tiles per request to a worker: 0.2 s of work
_LEVEL = 1  # of deflate: 2 % larger than level 4 in half of the time
# What a worker runs. Not multiprocessing: its spawned children run the caller's main script again, which fails where
# that is unguarded or read from a pipe, and imports torch again where it is not.
_COMMAND = "import sys; sys.path[:] = {path!r}; from multimae_eo.data.synthetic.writing import serve; serve()"

Request = tuple[int, int, int, int]  # seed, first tile, the one after the last, tile_px


def generate(
    root: str | os.PathLike[str],
    name: str = "synthetic",
    *,
    tiles: int = 1000,
    seed: int = 0,
    tile_px: int = 64,
    val_fraction: float = 0.1,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a synthetic world in the MMEarth layout; returns the folder root/name.

    tiles: how many, at least 2. Tile i is the same whatever their number, and whatever the number of workers.
    val_fraction: share of the blocks of 5 degrees whose tiles are for validation. If no block of a small world would
        be, the last tile's is; if all would be, the first tile's is for training.
    workers: processes; all cores by default, 1 for none but this one.
    progress: called with (tiles written, tiles).
    Raises ConfigError for impossible arguments, DataError if root/name exists. Interrupted, it leaves nothing.
    """
    check_world(seed, tile_px)
    if tiles < 2:
        raise ConfigError(f"tiles is {tiles}; expected at least 2, one to train and one to validate.")
    if not 0 < val_fraction < 1:
        raise ConfigError(f"val_fraction is {val_fraction}; expected a number between 0 and 1.")
    if workers is not None and workers < 1:
        raise ConfigError(f"workers is {workers}; expected at least 1.")
    splits = _splits(seed, tiles, val_fraction)
    requests = [(seed, first, min(first + _CHUNK, tiles), tile_px) for first in range(0, tiles, _CHUNK)]
    with LayoutWriter(root, name, tile_px=tile_px) as writer, ExitStack() as stack:
        for done, encoded in enumerate(_encode_all(requests, workers or _cores(), stack), start=1):
            block = block_of(encoded.tile.lat, encoded.tile.lon)
            writer.add(encoded._replace(tile=replace(encoded.tile, split=splits[block])))
            if progress is not None:
                progress(done, tiles)
    return writer.folder


def _splits(seed: int, tiles: int, val_fraction: float) -> dict[Block, str]:
    """The split of every block that has tiles."""
    blocks = [tile_block(seed, index) for index in range(tiles)]
    splits = {block: "val" if split_draw(seed, block) < val_fraction else "train" for block in blocks}
    if "val" not in splits.values():
        splits[blocks[-1]] = "val"
    if "train" not in splits.values():
        splits[blocks[0]] = "train"
    return splits


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def encode_range(request: Request) -> list[EncodedTile]:
    """The tiles of a request, made and deflated."""
    seed, first, end, tile_px = request
    return [encode_tile(make_tile(seed, i, tile_px), tuple(ARRAYS), tile_px, level=_LEVEL) for i in range(first, end)]


def serve() -> None:
    """What a worker process does: answers pickled requests on its standard input until that ends."""
    while True:
        try:
            request: Request = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        pickle.dump(encode_range(request), sys.stdout.buffer, pickle.HIGHEST_PROTOCOL)
        sys.stdout.buffer.flush()


def _encode_all(requests: list[Request], workers: int, stack: ExitStack) -> Iterator[EncodedTile]:
    """Encoded tiles in order, from worker processes; from this one if they are not wanted or cannot start."""
    pool = _start(min(workers, len(requests)), stack) if min(workers, len(requests)) > 1 else []
    chunks: Iterable[list[EncodedTile]] = map(encode_range, requests)
    if pool:
        idle: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()
        for process in pool:
            idle.put(process)
        threads = ThreadPoolExecutor(len(pool))
        # On the way out, in reverse: drop what is queued, end the workers, which wakes the threads, and join these.
        stack.callback(threads.shutdown)
        stack.callback(_stop, pool)
        stack.callback(threads.shutdown, wait=False, cancel_futures=True)
        chunks = threads.map(lambda request: _ask(idle, request), requests)
    for chunk in chunks:
        yield from chunk


def _ask(idle: "SimpleQueue[subprocess.Popen[bytes]]", request: Request) -> list[EncodedTile]:
    """Have an idle worker answer a request; if it has died, answer here."""
    process = idle.get()
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        pickle.dump(request, process.stdin)
        process.stdin.flush()
        answer: list[EncodedTile] = pickle.load(process.stdout)
        return answer
    except (OSError, EOFError, pickle.UnpicklingError):
        return encode_range(request)
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
            if pipe is not None and not pipe.closed:
                pipe.close()
