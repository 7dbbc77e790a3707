"""Writes a packed copy of a data set: shard by shard, each under its name only when whole, so that it can go on."""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from multimae_eo.data.layout import ARRAYS
from multimae_eo.data.mmearth import MMEarth, array_of
from multimae_eo.data.packed import (
    FORMAT,
    PRODUCTS,
    TILE,
    TILES,
    Index,
    Packed,
    Shard,
    Stored,
    checksum,
    parse_index,
    shard_name,
)
from multimae_eo.data.tiles import INDEX, Tiles, find, read_json
from multimae_eo.errors import ConfigError, DataError
from multimae_eo.modalities import Modality
from multimae_eo.whole import claimed, written

SIDE_FILES = ("band_stats", "splits")
AT_A_TIME = 64  # tiles that are read and written together
Progress = Callable[[int, int], None]


def pack(
    root: str | os.PathLike[str],
    out: str | os.PathLike[str],
    modalities: Sequence[Modality],
    *,
    tiles_per_shard: int = 4096,
    progress: Progress | None = None,
) -> Path:
    """Write out/NAME, a copy of the bands of some modalities of the data set at `root`; returns that folder.

    Goes on where an earlier call with the same arguments was stopped: a shard that is there is checked and kept. A
    complete pack is only checked. progress: called with the number of tiles done, and of all. Raises ConfigError where
    the folder holds a pack of something else, DataError where a file is damaged or the disk too small.
    """
    if tiles_per_shard < 1:
        raise ConfigError(f"tiles_per_shard must be 1 or more; got {tiles_per_shard}.")
    if not modalities:
        raise ConfigError("modalities is empty; name at least one to keep, or leave the option out.")
    known, name = find(root)
    if (known / f"{name}{INDEX}").is_file():
        raise ConfigError(f"'{known}' is a packed copy already; give the data set that it was made from.")
    source = MMEarth(root, modalities)
    for kind in SIDE_FILES:
        read_json(source.folder, source.name, kind)
    if not len(source):
        raise DataError(f"'{source.path}' has no tile to pack.")
    folder = Path(out) / source.name
    if folder.resolve() == source.folder.resolve():
        raise ConfigError(f"'{folder}' holds the data set itself; give another --out.")
    try:
        with claimed(folder):
            return _write(source, folder, tiles_per_shard, progress)
    except OSError as error:
        raise DataError(
            f"'{folder}' cannot be written: {error.strerror}. Make room, or give another --out, and run it again."
        ) from error


def _write(source: MMEarth, folder: Path, tiles_per_shard: int, progress: Progress | None) -> Path:
    """The shards that are not there yet, the facts of the tiles, the side files, and last the index."""
    plan = _plan(source, tiles_per_shard)
    index = _go_on(folder, source.name, plan)
    _room(folder, plan, index)
    done = 0
    for number, size in enumerate(plan.sizes):
        rows = range(number * tiles_per_shard, number * tiles_per_shard + size)
        shard = _kept(folder, source.name, number, index) or _write_shard(source, rows, folder, number, plan)
        index = _noted(index, number, shard)
        _write_json(_draft(folder, source.name), index)
        done += size
        if progress:
            progress(done, plan.tiles)
    index = dataclasses.replace(index, tiles_sha256=_write_facts(source, folder))
    for kind in SIDE_FILES:
        side = f"{source.name}_{kind}.json"
        _replace(folder / side, (source.folder / side).read_bytes())
    _write_json(folder / f"{source.name}{INDEX}", index)
    _draft(folder, source.name).unlink()
    Packed(folder, source.modalities)  # what was written can be read
    return folder


def _plan(source: MMEarth, tiles_per_shard: int) -> Index:
    """What will be written, without shards."""
    stored = {}
    for m in source.modalities:
        spec = ARRAYS[array_of(m)]
        dtype = np.dtype(spec.dtype).newbyteorder("<").str
        stored[m.name] = Stored(m.bands, m.products, dtype, repr(float(spec.missing)))
    size = source.path.stat().st_size
    return Index(source.path.name, size, source.length, source.tile_px, tiles_per_shard, stored, [])


def _draft(folder: Path, name: str) -> Path:
    """The index of a pack that is not complete; readers do not know it."""
    return folder / f".{name}{INDEX}.partial"


def _go_on(folder: Path, name: str, plan: Index) -> Index:
    """The index so far: of a pack that was stopped or is complete, or the bare plan."""
    for path in (folder / f"{name}{INDEX}", _draft(folder, name)):
        if not path.is_file():
            continue
        try:
            found = parse_index(json.loads(path.read_text()), path)
        except ValueError as error:
            raise DataError(f"'{path}' cannot be read ({error}); delete '{folder}' and pack again.") from error
        for key, value in vars(plan).items():
            if key not in ("shards", "tiles_sha256") and getattr(found, key) != value:
                raise ConfigError(
                    f"'{folder}' holds a pack with another '{key}'; give the same options, or another --out."
                )
        return found
    return plan


def _room(folder: Path, plan: Index, index: Index) -> None:
    """Raise DataError where the disk cannot hold what is still to be written."""
    folder.mkdir(parents=True, exist_ok=True)
    left = plan.tiles - sum(shard.tiles for shard in index.shards)
    needed, free = left * plan.record.itemsize, shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(f"'{folder}': the pack needs {needed / 1e9:.1f} GB more, but {free / 1e9:.1f} GB are free.")


def _kept(folder: Path, name: str, number: int, index: Index) -> Shard | None:
    """The shard that an earlier call wrote, if its file is there; raises DataError where that is damaged."""
    path = folder / shard_name(name, number)
    if number >= len(index.shards) or not path.is_file():
        return None
    if checksum(path) != index.shards[number].sha256:
        raise DataError(f"'{path}' is damaged, its checksum differs; delete it, and pack again with the same options.")
    return index.shards[number]


def _noted(index: Index, number: int, shard: Shard) -> Index:
    shards = [*index.shards]
    shards[number : number + 1] = [shard]
    return dataclasses.replace(index, shards=shards)


def _write_shard(source: Tiles, rows: range, folder: Path, number: int, plan: Index) -> Shard:
    path, digest = folder / shard_name(source.name, number), hashlib.sha256()
    header = {"descr": np.lib.format.dtype_to_descr(plan.record), "fortran_order": False, "shape": (len(rows),)}
    with written(path) as partial, open(partial, "w+b") as file:
        np.lib.format.write_array_header_1_0(file, header)
        start = file.tell()
        file.seek(0)
        digest.update(file.read())
        for first in range(rows.start, rows.stop, AT_A_TIME):
            content = _records(source, rows[first - rows.start :][:AT_A_TIME], plan).tobytes()
            digest.update(content)
            file.write(content)
    return Shard(len(rows), start, digest.hexdigest())


def _records(source: Tiles, rows: Sequence[int], plan: Index) -> np.ndarray:
    batch = source.read(rows)
    records = np.empty(len(rows), plan.record)
    for place, name in enumerate(plan.modalities):
        records[name] = batch[name].values.numpy()
        records[PRODUCTS][:, place] = batch[name].product.numpy()
    return records


def _write_facts(source: MMEarth, folder: Path) -> str:
    """The names and places of the tiles, for readers and for splits by blocks; returns the checksum."""
    facts = np.empty(len(source), TILE)
    facts["tile_id"] = [source.tile_id(row).encode() for row in range(len(source))]
    facts["lat"], facts["lon"] = source.places(np.arange(len(source))) if source.has_places else (np.nan, np.nan)
    path = folder / f"{source.name}{TILES}"
    with written(path) as partial, open(partial, "wb") as file:
        np.save(file, facts)
    return checksum(path)


def _write_json(path: Path, index: Index) -> None:
    content: dict[str, Any] = {"format": FORMAT, **dataclasses.asdict(index)}
    _replace(path, (json.dumps(content, indent=1) + "\n").encode())


def _replace(path: Path, content: bytes) -> None:
    """Write a file that appears under its name only when whole."""
    with written(path) as partial:
        partial.write_bytes(content)
