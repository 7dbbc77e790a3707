"""Writes a synthetic world in the MMEarth layout, with worker processes."""

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain
from pathlib import Path

from multimae_eo.data.layout import ARRAYS, EncodedTile, LayoutWriter, encode_tile
from multimae_eo.data.synthetic.climate import Block, block_of, split_draw, tile_block
from multimae_eo.data.synthetic.workers import answers, count_cores
from multimae_eo.data.synthetic.world import check_world, make_tile
from multimae_eo.errors import ConfigError

_CHUNK = 16  # tiles per request to a worker: 0.2 s of work
_LEVEL = 1  # of deflate: 2 % larger than level 4 in half of the time
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

    seed: the world; from SHIFTED on all places are far from the equator, in autumn, and noisier.
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
        chunks = answers(encode_range, requests, workers=workers or count_cores(), stack=stack)
        for done, encoded in enumerate(chain.from_iterable(chunks), start=1):
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


def encode_range(request: Request) -> list[EncodedTile]:
    """The tiles of a request, made and deflated."""
    seed, first, end, tile_px = request
    return [encode_tile(make_tile(seed, i, tile_px), tuple(ARRAYS), tile_px, level=_LEVEL) for i in range(first, end)]
