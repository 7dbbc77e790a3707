"""Writes labelled data sets of a synthetic world in the layout of GEO-Bench v1: one per task, over the same tiles.

Source of the layout: GEO-Bench v1.0 (Lacoste et al., NeurIPS 2023): one HDF5 file per sample, `band_stats.json`,
`default_partition.json` and `<share>x_train_partition.json`.
"""

import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from multimae_eo.data.folders import writable
from multimae_eo.data.layout import ADDRESSES, SENTINEL2_CHANNELS, Tile, valid_pixels
from multimae_eo.data.synthetic.climate import NUM_REGIONS, draw_place, split_draw, tile_block
from multimae_eo.data.synthetic.fields import stream
from multimae_eo.data.synthetic.ground import NUM_STATES, ground_states
from multimae_eo.data.synthetic.workers import answers, count_cores
from multimae_eo.data.synthetic.world import check_world, make_ground_and_tile
from multimae_eo.errors import ConfigError, DataError, UnknownNameError

# Set -> the folder of the benchmark in which it lies.
SETS: Mapping[str, str] = {
    "synthetic-class": "classification_v1.0",
    "synthetic-multilabel": "classification_v1.0",
    "synthetic-map": "segmentation_v1.0",
}
FIRST_WORLD = 1_000_000  # worlds of labelled data are numbered from here, so that pre-training has other places
SHARES = {"train": 0.5, "valid": 0.1, "test": 0.4}
TRAIN_SHARES = ("0.01", "0.02", "0.05", "0.10", "0.20", "0.50", "1.00")
PRESENT = 0.05  # share of a tile from which on a state is one of its labels

_SENTINEL2 = {
    "01 - Coastal aerosol": "B01",
    "02 - Blue": "B02",
    "03 - Green": "B03",
    "04 - Red": "B04",
    "05 - Vegetation Red Edge": "B05",
    "06 - Vegetation Red Edge": "B06",
    "07 - Vegetation Red Edge": "B07",
    "08 - NIR": "B08",
    "08A - Vegetation Red Edge": "B8A",
    "09 - Water vapour": "B09",
    "11 - SWIR": "B11",
    "12 - SWIR": "B12",
}
KEYS = (*_SENTINEL2, "VV", "VH", "dem")
_ORDER = 2**64 - 3  # the random stream that orders the training tiles; those of tiles are numbered from 0
_CHUNK = 16  # tiles per request to a worker: 0.3 s of work


class Request(NamedTuple):
    """Tiles of a world to be written into folders, {set: folder}."""

    world: int
    indices: Sequence[int]
    tile_px: int
    folders: Mapping[str, str]


class Written(NamedTuple):
    """What is kept of a tile: pixels of each state [states]; count, sum, sum of squares, min and max [keys, 5]."""

    number: int
    counts: np.ndarray
    moments: np.ndarray


def generate_downstream(
    root: str | os.PathLike[str],
    *,
    tiles: int = 1000,
    seed: int = 0,
    tile_px: int = 64,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    sets: Sequence[str] = tuple(SETS),
) -> Path:
    """Write labelled data sets over the same tiles into root/classification_v1.0 and root/segmentation_v1.0.

    The labels are states of the ground (`ground_states`): the most frequent of a tile (synthetic-class), those that
    cover 5 % of it (synthetic-multilabel), and that of every pixel (synthetic-map). All tiles are L2A.

    tiles: how many, at least 10: half to train, a tenth to validate and the rest to test, exactly. A block of 5
        degrees lies in one split.
    seed: world 1,000,000 + seed is drawn. workers: processes; all cores by default, 1 for none but this one.
    progress: called with (tiles written, tiles).
    Returns root. Raises ConfigError for impossible arguments, DataError if a set exists. Interrupted, it leaves
    nothing.
    """
    world = FIRST_WORLD + seed
    _check(seed, tiles, tile_px, workers, sets)
    split_of = choose_tiles(world, tiles)
    indices = list(split_of)
    with _new_folders(Path(root), sets) as folders, ExitStack() as stack:
        requests = [
            Request(world, indices[i : i + _CHUNK], tile_px, {name: str(path) for name, path in folders.items()})
            for i in range(0, tiles, _CHUNK)
        ]
        written = []
        chunks = answers(write_tiles, requests, workers=workers or count_cores(), stack=stack)
        for tile in chain.from_iterable(chunks):
            written.append(tile)
            if progress is not None:
                progress(len(written), tiles)
        for folder in folders.values():
            _write_tables(folder, world, written, split_of)
    return Path(root)


def _check(seed: int, tiles: int, tile_px: int, workers: int | None, sets: Sequence[str]) -> None:
    if not 0 <= seed < 2**62:
        raise ConfigError(f"seed is {seed}; expected an integer from 0 to 2^62 - 1.")
    check_world(seed, tile_px)
    if tiles < 10:
        raise ConfigError(f"tiles is {tiles}; expected at least 10, so that a tenth is one.")
    if workers is not None and workers < 1:
        raise ConfigError(f"workers is {workers}; expected at least 1.")
    for name in sets:
        if name not in SETS:
            raise UnknownNameError("set", name, SETS)
    if not sets or len(set(sets)) < len(sets):
        raise ConfigError(f"sets is {list(sets)}; name one or more of {', '.join(SETS)}, each once.")


def choose_tiles(world: int, tiles: int) -> dict[int, str]:
    """The splits of the first L2A tiles of a world of which each split has its share, by their index."""
    left = {split: round(share * tiles) for split, share in SHARES.items()}
    left["test"] += tiles - sum(left.values())
    owners = [_split(world, index) for index in range(NUM_REGIONS)]
    for split in left:
        if split not in owners:
            raise ConfigError(f"no block of world {world} falls into split '{split}'; choose another seed.")
    chosen: dict[int, str] = {}
    index = 0
    while len(chosen) < tiles:
        split = owners[index % NUM_REGIONS]
        if left[split] and draw_place(stream(world, index), world, index).product == "L2A":
            chosen[index] = split
            left[split] -= 1
        index += 1
    return chosen


def _split(world: int, index: int) -> str:
    draw = split_draw(world, tile_block(world, index))
    return "train" if draw < SHARES["train"] else "valid" if draw < SHARES["train"] + SHARES["valid"] else "test"


@contextmanager
def _new_folders(root: Path, sets: Sequence[str]) -> Iterator[dict[str, Path]]:
    """Folders to fill, which get their final names together if nothing fails, and vanish if anything does."""
    final = {name: root / SETS[name] / name for name in sets}
    for path in final.values():
        if path.exists():
            raise DataError(f"'{path}' exists already; remove it or choose another root.")
    hidden = root / f".downstream.partial-{os.getpid()}"
    folders = {name: hidden / name for name in sets}
    try:
        for folder in folders.values():
            writable(folder)
        yield folders
        for name, path in final.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            os.replace(folders[name], path)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def sample_id(world: int, index: int) -> str:
    """The name of a sample's file, without its ending; that of the tile in its world."""
    return f"{world}-{index:06d}"


def write_tiles(request: Request) -> list[Written]:
    """Make the tiles of a request and write their files."""
    return [_write_tile(request, index) for index in request.indices]


def _write_tile(request: Request, index: int) -> Written:
    ground, tile = make_ground_and_tile(request.world, index, request.tile_px)
    states = ground_states(*ground)
    bands = _bands(tile)
    counts = np.bincount(states.ravel(), minlength=NUM_STATES)
    labels: dict[str, int | list[int]] = {
        "synthetic-class": _class_of(counts),
        "synthetic-multilabel": _present(counts).astype(int).tolist(),
    }
    band = {"date": tile.date, "spatial_resolution": 10}
    facts = {"bands_order": list(KEYS), "lat": tile.lat, "lon": tile.lon, **{key: dict(band) for key in KEYS}}
    for name, folder in request.folders.items():
        with h5py.File(Path(folder) / f"{sample_id(request.world, index)}.hdf5", "w") as file:
            for key, (values, _) in bands.items():
                file[key] = values
            if name not in labels:
                file["label"] = states.astype(np.int16)
            label = {"label": labels.get(name, dict(band))}
            file.attrs["pickle"] = str(pickle.dumps({**label, **facts}, protocol=4))
    return Written(index, counts, np.stack([_moments(*pair) for pair in bands.values()]))


def _class_of(counts: np.ndarray) -> int:
    """The most frequent state, of several the first. counts [..., states]"""
    return int(counts.argmax())


def _present(counts: np.ndarray) -> np.ndarray:
    """Which states cover their share. counts [states] -> bool [states]"""
    return counts >= PRESENT * counts.sum()


def _bands(tile: Tile) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Values as they are in the files and where they were measured, both [h, w], by key."""
    optical, radar, aster = (tile.arrays[name] for name in ("sentinel2", "sentinel1", "aster"))
    bands = {}
    for key, band in _SENTINEL2.items():
        values = optical[SENTINEL2_CHANNELS.index(band)]
        bands[key] = values, values != 0
    measured = valid_pixels("sentinel1", radar)
    orbit = "descending" if measured[ADDRESSES["VV"]["descending"].channel].any() else "ascending"
    for key in ("VV", "VH"):
        channel = ADDRESSES[key][orbit].channel
        bands[key] = np.where(measured[channel], radar[channel], np.float32(np.nan)), measured[channel]
    bands["dem"] = aster[0], valid_pixels("aster", aster)[0]
    return bands


def _moments(values: np.ndarray, valid: np.ndarray) -> np.ndarray:
    kept = values[valid].astype(np.float64)
    return np.array([kept.size, kept.sum(), (kept**2).sum(), kept.min(initial=np.inf), kept.max(initial=-np.inf)])


def _write_tables(folder: Path, world: int, written: Sequence[Written], split_of: Mapping[int, str]) -> None:
    """The statistics of the training tiles, and the partitions."""
    splits: dict[str, list[int]] = {split: [] for split in SHARES}
    for index, split in split_of.items():
        splits[split].append(index)
    tables: dict[str, object] = {
        "band_stats": _statistics([tile.moments for tile in written if split_of[tile.number] == "train"]),
        "default_partition": _named(world, splits),
    }
    counts = {tile.number: tile.counts for tile in written}
    order, least = training_order(np.stack([counts[index] for index in splits["train"]]), stream(world, _ORDER))
    for share in TRAIN_SHARES:
        kept = sorted(order[: max(least, round(float(share) * len(order)))])
        tables[f"{share}x_train_partition"] = _named(world, {**splits, "train": [splits["train"][i] for i in kept]})
    for name, content in tables.items():
        (folder / f"{name}.json").write_text(json.dumps(content, indent=1))


def _named(world: int, splits: Mapping[str, Sequence[int]]) -> dict[str, list[str]]:
    return {split: [sample_id(world, index) for index in indices] for split, indices in splits.items()}


def _statistics(moments: Sequence[np.ndarray]) -> dict[str, dict[str, float]]:
    """Of each key; not numbers where no training tile has a valid pixel of it."""
    every = np.stack(moments)
    count, total, squares = every[..., :3].sum(axis=0).T
    low, high = every[..., 3].min(axis=0), every[..., 4].max(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = total / count
        std = np.sqrt(np.maximum(squares / count - mean**2, 0.0))
    rows = np.where(count > 0, np.stack([low, high, mean, std]), np.nan).T.tolist()
    return {
        key: dict(zip(("min", "max", "mean", "std"), row, strict=True)) for key, row in zip(KEYS, rows, strict=True)
    }


def training_order(counts: np.ndarray, rng: np.random.Generator) -> tuple[list[int], int]:
    """An order of the training tiles whose every beginning is a fair sample, and how long the shortest one must be.

    First a tile of every class, then one of every state that is in no label of these; then the rest, so that the
    classes grow in proportion. counts [tiles, states] -> positions of the tiles in `counts`.
    """
    classes = counts.argmax(axis=1)
    shuffled = rng.permutation(len(counts))
    first = [next(int(i) for i in shuffled if classes[i] == label) for label in np.unique(classes)]
    labelled = counts >= PRESENT * counts.sum(axis=1, keepdims=True)
    for state in range(counts.shape[1]):
        if not labelled[first, state].any() and counts[:, state].any():
            first.append(int(counts[:, state].argmax()))
    first = list(dict.fromkeys(first))  # one tile can be the richest in several rare states
    # Position of a tile within its class as a share of the class, those that come first anyway in front.
    queue = list(dict.fromkeys([*first, *shuffled.tolist()]))
    sizes, seen = np.bincount(classes, minlength=counts.shape[1]), np.zeros(counts.shape[1])
    place = {}
    for i in queue:
        place[i] = (seen[classes[i]] + 0.5) / sizes[classes[i]]
        seen[classes[i]] += 1
    rest = sorted(queue[len(first) :], key=lambda i: (place[i], classes[i]))
    return [*first, *rest], len(first)
