"""Finds the tiles and images of a data set that cannot be read, before a run does."""

import csv
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import h5py

from multimae_eo.data.chunks import TileChunks
from multimae_eo.data.geobench import GeoBench
from multimae_eo.data.geobench_sets import SETS
from multimae_eo.data.hdf5 import open_hdf5
from multimae_eo.data.labelled import SPLITS
from multimae_eo.data.layout import ADDRESSES, ARRAYS
from multimae_eo.data.layout import SPLITS as TILE_SPLITS
from multimae_eo.data.packed import TILES, checksum, read_index, shard_name
from multimae_eo.data.tiles import HDF5, INDEX, find, read_json
from multimae_eo.errors import DataError, shown
from multimae_eo.whole import written

PRODUCTS = tuple(ADDRESSES["B04"])  # of Sentinel-2
_UNREADABLE = (OSError, RuntimeError, ValueError, IndexError)
AT_A_TIME = 256  # tiles or images of one piece of work
Progress = Callable[[int, int], None]
T = TypeVar("T")


class Fault(NamedTuple):
    """What cannot be read: a row of the file or an image, its name, the file and the array, and why."""

    row: str
    name: str
    where: str
    cause: str


# A piece of work: how many tiles or images it is, and what finds the faults among them.
Piece = tuple[int, Callable[[], list[Fault]]]


def verify(root: str | os.PathLike[str], *, workers: int | None = None, progress: Progress | None = None) -> "Report":
    """Read all of a data set: a file in the MMEarth layout, a packed copy of one, or sets of GEO-Bench.

    Tiles are decoded; a packed copy is held against its checksums, shard by shard. workers: processes, by default one
    per core. progress: called with the tiles and images done, and all. Raises DataError where it is no data set, or
    where what belongs to all of it (side files, the index) is damaged.
    """
    root = Path(root)
    pieces = list(_pieces(root if root.name not in ("", "..") else root.resolve()))
    total, done, faults = sum(number for number, _ in pieces), 0, list[Fault]()
    with ProcessPoolExecutor(workers or os.cpu_count()) as pool:
        waiting = {pool.submit(find_faults): number for number, find_faults in pieces}
        try:
            for future in as_completed(waiting):
                faults += future.result()
                done += waiting[future]
                if progress:
                    progress(done, total)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return Report(total, sorted(faults, key=lambda f: (f.where, f.row.zfill(12), f.name)))


class Report(NamedTuple):
    """How many tiles or images there are, and what cannot be read of them."""

    total: int
    faults: list[Fault]

    def write(self, path: Path) -> None:
        """As a CSV with the columns row, name, where and cause."""
        with written(path) as partial_, open(partial_, "w", newline="") as file:
            csv.writer(file).writerows([Fault._fields, *self.faults])


def _pieces(root: Path) -> Iterator[Piece]:
    sets = [name for name, s in SETS.items() if any((root / p / name).is_dir() for p in (s.folder, "."))]
    if not sets and root.name in SETS:
        root, sets = root.parent, [root.name]
    for name in sets:
        ignored = True if SETS[name].class0_is_no_data else None
        source = GeoBench(root, name, ignore_class0=ignored, allow_leaks=True, look=False)
        ids = list(dict.fromkeys(i for split in SPLITS for i in source.ids[split]))
        for some in _cut(ids):
            yield len(some), partial(_images, source, some)
    if not sets:
        yield from _of_tiles(*find(root))


def _of_tiles(folder: Path, name: str) -> Iterator[Piece]:
    for kind in ("splits", "band_stats"):
        read_json(folder, name, kind)
    if (folder / f"{name}{INDEX}").is_file():
        index = read_index(folder, name)
        for number, shard in enumerate(index.shards):
            first = number * index.tiles_per_shard
            yield shard.tiles, partial(_shard, folder / shard_name(name, number), shard.sha256, first, shard.tiles)
        yield 0, partial(_shard, folder / f"{name}{TILES}", index.tiles_sha256, 0, index.tiles)
        return
    path = folder / f"{name}{HDF5}"
    with open_hdf5(path) as file:
        arrays = [n for n in ARRAYS if isinstance(file.get(n), h5py.Dataset) and file[n].ndim == 4]
        number = max((len(file[n]) for n in arrays), default=0)
    if not number:
        raise DataError(f"'{path}' holds no tiles: none of the arrays {', '.join(ARRAYS)}.")
    table = read_json(folder, name, "splits")
    named = [table.get(split, []) for split in TILE_SPLITS] if isinstance(table, dict) else []
    if not named or not all(isinstance(rows, list) for rows in named):
        raise DataError(f"'{folder / name}_splits.json': expected an object with a list of rows for each split.")
    for row in (row for rows in named for row in rows):
        if not isinstance(row, int) or not 0 <= row < number:
            raise DataError(f"'{folder / name}_splits.json' names row {shown(row)}, but '{path}' has {number} rows.")
    for rows in _cut(range(number)):
        yield len(rows), partial(_rows, path, arrays, rows)


def _cut(items: Sequence[T]) -> Iterator[Sequence[T]]:
    return (items[i : i + AT_A_TIME] for i in range(0, len(items), AT_A_TIME))


def _rows(path: Path, arrays: Sequence[str], rows: Sequence[int]) -> list[Fault]:
    faults = []
    with open_hdf5(path) as file:
        chunks = {name: TileChunks(file[name]) for name in arrays}
        tiles = TileChunks(file["metadata"]) if isinstance(file.get("metadata"), h5py.Dataset) else None
        for row in rows:
            if "sentinel2" in chunks and tiles is not None and (cause := _product_fault(tiles, row)):
                faults.append(Fault(str(row), _tile_id(tiles, row), f"{path.name}:metadata", cause))
            for name, array in chunks.items():
                try:
                    array[row]
                except _UNREADABLE as error:
                    faults.append(Fault(str(row), _tile_id(tiles, row), f"{path.name}:{name}", _line(error)))
    return faults


def _product_fault(tiles: TileChunks, row: int) -> str:
    """What keeps the metadata of a row from telling its product; "" where they do, or a side file does."""
    try:
        entry = tiles[row]
    except _UNREADABLE as error:
        return _line(error)
    if "S2_type" not in (entry.dtype.names or ()):
        return ""
    kind = bytes(entry["S2_type"]).decode(errors="replace")
    return "" if kind.upper() in PRODUCTS else f"S2_type is {kind!r}, expected {' or '.join(PRODUCTS).lower()}"


def _tile_id(tiles: TileChunks | None, row: int) -> str:
    try:
        return str(tiles[row]["tile_id"].decode()) if tiles is not None else ""
    except _UNREADABLE:
        return ""


def _shard(path: Path, expected: str, first: int, number: int) -> list[Fault]:
    rows = f"{first} to {first + number - 1}"
    try:
        found = checksum(path)
    except OSError as error:
        return [Fault(rows, "", path.name, _line(error))]
    if found == expected:
        return []
    cause = f"SHA-256 is {found[:12]}..., expected {expected[:12]}...: delete it and pack again"
    return [Fault(rows, "", path.name, cause)]


def _images(source: GeoBench, ids: Sequence[str]) -> list[Fault]:
    faults = []
    for sample_id in ids:
        try:
            source.read(sample_id)
        except DataError as error:
            faults.append(Fault("", sample_id, source.set.name, _line(error)))
    return faults


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
