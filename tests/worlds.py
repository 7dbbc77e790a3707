"""Tiny data sets in the MMEarth layout: smooth content that all modalities share, written in a fraction of a second."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from multimae_eo.data.layout import ARRAYS, LayoutWriter, Tile, encode_tile

PAPER_ARRAYS = ("sentinel2", "aster", "esa_worldcover")
CODES = np.array([10, 20, 30, 40, 50, 60, 80, 90], dtype=np.uint8)
TILES_PER_BLOCK = 3


def write_world(
    root: Path,
    name: str = "tiny",
    *,
    tiles: int = 24,
    tile_px: int = 64,
    arrays: Sequence[str] = PAPER_ARRAYS,
    seed: int = 0,
    products: Sequence[str] = ("L1C", "L2A"),
    val: int = 0,
    test: int = 0,
) -> Path:
    """Write a data set to root/name and return that folder.

    Three tiles lie in each block of one degree, products take turns, the last tiles are those of the splits "val" and
    "test" (none by default, as in the release). Every value is measured, but for the top left 4 x 4 pixels of each
    array, and Sentinel-1, of which tiles have in turn both orbits, the descending, the ascending, and none.
    """
    random = np.random.default_rng(seed)
    splits = ["train"] * (tiles - val - test) + ["val"] * val + ["test"] * test
    with LayoutWriter(root, name, tile_px=tile_px, arrays=arrays) as writer:
        for row, split in enumerate(splits):
            block = row // TILES_PER_BLOCK
            tile = Tile(
                f"{name}_{row:04d}",
                products[row % len(products)],
                lat=40.5 + 2 * (block % 5) + 0.1 * (row % TILES_PER_BLOCK),
                lon=5.5 + 3 * (block // 5),
                date=f"2018-{1 + row % 12:02d}-15",
                arrays=content(random, row, tile_px, arrays),
                split=split,
            )
            writer.add(encode_tile(tile, arrays, tile_px, level=1))
    return root / name


def content(random: np.random.Generator, row: int, tile_px: int, arrays: Sequence[str]) -> dict[str, np.ndarray]:
    """Arrays that are all functions of one smooth field, with a little noise."""
    y, x = np.mgrid[:tile_px, :tile_px] / tile_px
    waves = random.uniform(-6, 6, (3, 2))
    field = sum(np.sin(a * y + b * x + c) for (a, b), c in zip(waves, random.uniform(0, 6, 3), strict=True)) / 3
    noise = random.integers(0, 8, (13, tile_px, tile_px))
    channels = np.arange(1, 14)[:, None, None]
    made = {
        "sentinel2": 1000 + 100 * channels + 40 * (channels - 4) * field + noise,
        "sentinel1": -12 - 7 * (np.arange(8) % 2)[:, None, None] + 2 * field + noise[:8] / 8,
        "aster": np.stack([500 + 300 * field, 10 + 5 * field]),
        "esa_worldcover": CODES[((field[None] + 1) / 2.001 * len(CODES)).astype(int)],
        "canopy_height_eth": np.stack([12 + 10 * field, 3 + field]),
    }
    made["sentinel1"][[2, 3, 6, 7]] = -np.inf
    if row % 4 in (2, 3):
        made["sentinel1"][4:] = -np.inf
    if row % 4 in (1, 3):
        made["sentinel1"][:4] = -np.inf
    for name, values in made.items():
        values[:, :4, :4] = ARRAYS[name].missing
    return {name: made[name].astype(ARRAYS[name].dtype) for name in arrays}


@contextmanager
def edited(folder: Path, kind: str) -> Iterator[Any]:
    """The content of a side file, written back at the end."""
    path = folder / f"{folder.name}_{kind}.json"
    table = json.loads(path.read_text())
    yield table
    path.write_text(json.dumps(table))


def rewrite(folder: Path, array: str, values: np.ndarray | None) -> None:
    """Replace an array of the file; none: delete it."""
    with h5py.File(folder / f"{folder.name}.h5", "r+") as file:
        del file[array]
        if values is not None:
            chunks = (1, *values.shape[1:])
            file.create_dataset(array, data=values, chunks=chunks, compression="gzip")


def read_array(folder: Path, array: str) -> np.ndarray:
    """All of an array, as on disk."""
    with h5py.File(folder / f"{folder.name}.h5", "r") as file:
        return file[array][:]


def corrupt(folder: Path, array: str, row: int) -> None:
    """Overwrite the stored bytes of one tile of an array."""
    path = folder / f"{folder.name}.h5"
    with h5py.File(path, "r") as file:
        chunk = file[array].id.get_chunk_info_by_coord((row, 0, 0, 0))
    with open(path, "r+b") as stream:
        stream.seek(chunk.byte_offset)
        stream.write(b"\xa5" * chunk.size)
