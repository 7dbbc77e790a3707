"""What every source of pre-training tiles shares: where it lies, its side files, its splits, batches of rows."""

import math
import os
import reprlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from multimae_eo import documents
from multimae_eo.data.layout import SPLITS
from multimae_eo.data.patience import Patience
from multimae_eo.errors import ConfigError, DataError, UnreadError
from multimae_eo.modalities import Modality
from multimae_eo.raster import Batch, Raster, joined
from multimae_eo.raster import rows as some

SPLITS_LAYOUT = '{"train": [rows], "val": [rows], "test": [rows]}'
# What a data set is recognised by: one HDF5 file, or the index of a packed copy.
HDF5, INDEX = ".h5", "_pack.json"
ALL_TILES = 8192  # megabytes of a side file that lists every tile; those of MMEarth's 1.2 million have about 2,000


def located(root: str | os.PathLike[str]) -> Path:
    """A folder on disk, or one that a URL names ("s3://bucket/folder", through fsspec; needs universal-pathlib)."""
    if "://" not in str(root):
        return Path(root)
    try:
        from upath import UPath

        return UPath(root)  # type: ignore[return-value]
    except (ImportError, ValueError) as error:  # fsspec knows the protocol, or names the package that does
        raise ConfigError(
            f"'{root}' cannot be reached: {error}. Install universal-pathlib and what it names."
        ) from error


def find(root: str | os.PathLike[str]) -> tuple[Path, str]:
    """The folder and NAME of the data set at `root`: a folder with NAME.h5 or NAME_pack.json, or the parent of one."""
    root = located(root)
    if not root.is_dir():
        raise DataError(f"'{root}' is no folder; expected one that holds NAME.h5 or NAME_pack.json and its side files.")
    for below in ("", "*/"):
        files = sorted(p for end in (HDF5, INDEX) for p in root.glob(f"{below}*{end}"))
        files = [p for p in files if not below or not p.parent.name.startswith(".")]
        if len(files) == 1:
            return files[0].parent, files[0].name.removesuffix(INDEX).removesuffix(HDF5)
        if files:
            raise DataError(
                f"'{root}' holds several data sets ({', '.join(str(f) for f in files[:4])}); name one of them."
            )
    raise DataError(
        f"'{root}' holds no NAME.h5; expected a data set in the MMEarth layout (NAME.h5, NAME_splits.json, ...), or a "
        "packed copy of one (NAME_pack.json, ...)."
    )


def read_json(folder: Path, name: str, kind: str, *, megabytes: int = documents.MEGABYTES) -> Any:
    """A side file; Python's reader accepts the NaN and Infinity of the real ones."""
    path = folder / f"{name}_{kind}.json"
    if not path.is_file():
        raise DataError(f"'{path}' is missing; the data set needs it beside its tiles.")
    return documents.read_json(path, DataError, megabytes=megabytes)


class Tiles(Dataset[Batch], ABC):
    """Whole tiles of a data set at 10 m, by row.

    modalities: what is read; their order of products defines `Raster.product`. path: the file that users know it by.
    """

    folder: Path
    name: str
    path: Path
    modalities: tuple[Modality, ...]
    length: int
    tile_px: int
    kinds: Mapping[str, tuple[int, str, float]]  # see `Buffers`

    @abstractmethod
    def read(self, rows: Sequence[int]) -> Batch:
        """{modality: Raster [len(rows), c, tile_px, tile_px]}, values in the type that they are stored in.

        They are in the modality's unit; no-data has become validity, nothing is standardised.
        """

    @abstractmethod
    def tile_id(self, row: int) -> str:
        """The name of a tile."""

    @abstractmethod
    def places(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Latitude and longitude in degrees."""

    @abstractmethod
    def close(self) -> None:
        """Close what is open; the next read opens it again."""

    def blank(self, number: int) -> Batch:
        """Tiles of which nothing was measured, as `read` gives them."""
        buffers = Buffers(number, self.tile_px, self.kinds)
        for name, values in buffers.values.items():
            values[:] = values.dtype.type(self.kinds[name][2])
        return buffers.batch({name: np.zeros(number, np.int64) for name in self.kinds})

    def read_patiently(self, rows: Sequence[int], patience: Patience) -> tuple[Batch, np.ndarray]:
        """As `read`, with patience; also which rows were left out, [len(rows)], whose tiles are valid nowhere."""
        names = [f"row {row} of {self.path.name}" for row in rows]
        if not patience.unread.keys() & names:
            with suppress(UnreadError):
                return self.read(rows), np.zeros(len(rows), bool)
        tiles = [patience.read(n, partial(self.read, [row]), self.close) for n, row in zip(names, rows, strict=True)]
        return joined([self.blank(1) if t is None else t for t in tiles]), np.array([t is None for t in tiles])

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, row: int) -> Batch:
        """One tile: {modality: Raster [c, tile_px, tile_px]}."""
        return some(self.read([row]), 0)

    def splits(self, *, val_fraction: float, block_degrees: float = 1.0, seed: int = 0) -> dict[str, np.ndarray]:
        """Rows of "train", "val" and "test"; val is taken from train, by blocks, where the release has none."""
        table = read_json(self.folder, self.name, "splits", megabytes=ALL_TILES)
        path = self.folder / f"{self.name}_splits.json"
        if not isinstance(table, dict):
            raise DataError(f"'{path}': expected {SPLITS_LAYOUT}, got a {type(table).__name__}.")
        rows = {split: self._rows(table.get(split, []), split, path) for split in SPLITS}
        if not len(rows["train"]):
            raise DataError(f"'{path}': split 'train' is empty.")
        named = np.sort(np.concatenate(list(rows.values())))
        if len(twice := named[1:][named[1:] == named[:-1]]):
            where = [split for split in SPLITS for _ in range(int((rows[split] == twice[0]).sum()))]
            raise DataError(
                f"'{path}': row {twice[0]} is named in '{where[0]}' and again in '{where[1]}'; name it once."
            )
        if not len(rows["val"]):
            in_val = blocked(*self.places(rows["train"]), fraction=val_fraction, degrees=block_degrees, seed=seed)
            rows["train"], rows["val"] = rows["train"][~in_val], rows["train"][in_val]
        return rows

    def _rows(self, rows: Any, split: str, path: Path) -> np.ndarray:
        if not isinstance(rows, list):
            raise DataError(f"'{path}', split '{split}': expected {SPLITS_LAYOUT}, got {reprlib.repr(rows)}.")
        wrong = [r for r in rows if type(r) is not int]
        if wrong:
            raise DataError(
                f"'{path}', split '{split}': expected {SPLITS_LAYOUT}, rows being whole numbers, "
                f"got {reprlib.repr(wrong[0])}."
            )
        beyond = [r for r in rows if not 0 <= r < len(self)]
        if beyond:
            raise DataError(f"'{path}': split '{split}' names row {beyond[0]}, but '{self.path}' has {len(self)} rows.")
        return np.asarray(rows, dtype=np.int64)


class Buffers:
    """Room for a batch of tiles, values and validity of all modalities in one block of memory.

    One large block costs far fewer page faults than many small ones, and these can take longer than the reading.
    kinds: {modality: (number of bands, type, value that stands for no data)}.
    """

    def __init__(self, number: int, tile_px: int, kinds: Mapping[str, tuple[int, str, float]]):
        parts = {name: ((number, bands, tile_px, tile_px), np.dtype(kind)) for name, (bands, kind, _) in kinds.items()}
        sizes = [-(-math.prod(shape) * (dtype.itemsize + 1) // 64) * 64 for shape, dtype in parts.values()]
        block, start = np.empty(sum(sizes), np.uint8), 0
        self.values, self._valid = {}, {}
        self._missing = {name: parts[name][1].type(missing) for name, (_, _, missing) in kinds.items()}
        for (name, (shape, dtype)), size in zip(parts.items(), sizes, strict=True):
            middle, end = (start + math.prod(shape) * bytes_ for bytes_ in (dtype.itemsize, dtype.itemsize + 1))
            self.values[name] = block[start:middle].view(dtype).reshape(shape)
            self._valid[name] = block[middle:end].view(np.bool_).reshape(shape)
            start += size

    def batch(self, products: Mapping[str, np.ndarray]) -> Batch:
        """The rasters, once the values are written: all but the values that stand for no data are valid."""
        rasters = {}
        for name, values in self.values.items():
            # The missing value is of the same type: comparing integers with a float takes several times longer.
            valid = np.not_equal(values, self._missing[name], out=self._valid[name])
            rasters[name] = Raster(*map(torch.from_numpy, (values, valid, products[name])))
        return rasters


def blocked(lat: np.ndarray, lon: np.ndarray, *, fraction: float, degrees: float = 1.0, seed: int = 0) -> np.ndarray:
    """Choose about `fraction` of the places for validation, in whole blocks of latitude and longitude -> bool [n].

    Blocks are drawn in a random order that `seed` and the block alone decide, until the fraction is reached; never
    all of them. degrees: edge of a block, at least 1. Raises ConfigError, or DataError where there is one block only.
    """
    if degrees < 1 or not 0 < fraction < 1:
        raise ConfigError(
            f"a blocked split needs blocks of at least 1 degree and a fraction in (0, 1), got {degrees}, {fraction}."
        )
    corners = np.stack([np.floor(lat / degrees), np.floor(lon / degrees)], axis=1).astype(np.int64)
    blocks, member = np.unique(corners, axis=0, return_inverse=True)
    if len(blocks) < 2:
        raise DataError(
            f"all tiles lie in one block of {degrees} degrees; a split by blocks needs two. Name a 'val' split."
        )
    draws = [
        np.random.Generator(np.random.Philox(key=[seed, 0], counter=[0, 0, *(b % 2**32)])).random() for b in blocks
    ]
    order = np.argsort(draws, kind="stable")
    size = np.bincount(member.ravel(), minlength=len(blocks))
    before = np.cumsum(size[order]) - size[order]
    taken = order[before < fraction * len(lat)]
    taken = taken[: len(blocks) - 1]
    return np.isin(member.ravel(), taken)
