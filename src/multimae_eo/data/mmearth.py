"""Reads data sets in the MMEarth layout: one batch entry per tile, in physical units, with validity and product.

Source: MMEarth (Nedungadi et al., ECCV 2024), variants data_1M_v001, data_1M_v001_64 and data_100k_v001, and whatever
`multimae-eo import` and the synthetic world write in that layout.
"""

import json
import math
import os
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch.utils.data import Dataset

from multimae_eo.data.layout import ADDRESSES, ARRAYS, SPLITS, Address, valid_pixels
from multimae_eo.errors import ConfigError, DataError, StatisticsError
from multimae_eo.modalities import Continuous, Modality, Statistics
from multimae_eo.raster import Batch, Raster

SPLITS_LAYOUT = '{"train": [rows], "val": [rows], "test": [rows]}'


def find(root: str | os.PathLike[str]) -> tuple[Path, str]:
    """The folder and NAME of the data set at `root`: a folder with NAME.h5, or the parent of just one such."""
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"'{root}' is no folder; expected one that holds NAME.h5 and its side files.")
    for pattern in ("*.h5", "*/*.h5"):
        files = sorted(p for p in root.glob(pattern) if not p.parent.name.startswith("."))
        if len(files) == 1:
            return files[0].parent, files[0].stem
        if files:
            raise DataError(
                f"'{root}' holds several data sets ({', '.join(str(f) for f in files[:4])}); name one of them."
            )
    raise DataError(
        f"'{root}' holds no NAME.h5; expected a data set in the MMEarth layout (NAME.h5, NAME_splits.json, ...)."
    )


def read_json(folder: Path, name: str, kind: str) -> Any:
    """A side file; Python's reader accepts the NaN and Infinity of the real ones."""
    path = folder / f"{name}_{kind}.json"
    if not path.is_file():
        raise DataError(f"'{path}' is missing; the data set needs it beside {name}.h5.")
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise DataError(f"'{path}' is not JSON: {error}.") from error


def read_statistics(root: str | os.PathLike[str], modalities: Iterable[Modality]) -> dict[str, Modality]:
    """The modalities with the data set's own statistics, for each product that the data set has.

    Raises StatisticsError where a modality has no product left, or a band that is used has no finite statistics.
    """
    folder, name = find(root)
    table = read_json(folder, name, "band_stats")
    path = folder / f"{name}_band_stats.json"
    if not isinstance(table, dict):
        raise StatisticsError(
            f"'{path}': expected an object with 'mean' and 'std' of each array, got a {type(table).__name__}."
        )
    return {m.name: _with_file_statistics(m, table, path) for m in modalities}


def _with_file_statistics(modality: Modality, table: Mapping[str, Any], path: Path) -> Modality:
    if not isinstance(modality, Continuous):
        return modality
    found = {}
    for product in modality.products:
        addresses = [_address(modality, band, product) for band in modality.bands]
        rows = [_moments(table, a, band, path) for a, band in zip(addresses, modality.bands, strict=True)]
        if all(math.isnan(mean) for mean, _ in rows):
            continue  # the data set has no tile of this product
        for band, (mean, std) in zip(modality.bands, rows, strict=True):
            if not (math.isfinite(mean) and math.isfinite(std) and std > 0):
                raise StatisticsError(
                    f"'{path}': band {band} of '{modality.name}', product {product}, has mean {mean} and standard "
                    f"deviation {std}; both must be finite, and the deviation positive. Recompute them, or leave "
                    "the modality out."
                )
        found[product] = Statistics(*map(tuple, zip(*rows, strict=True)))  # type: ignore[arg-type]
    if not found:
        keys = sorted({a.statistics or "" for b in modality.bands for a in ADDRESSES[b].values()})
        raise StatisticsError(f"'{path}' has no statistics for '{modality.name}': expected {' or '.join(keys)}.")
    return Continuous(**{**vars(modality), "statistics": found})


def _address(modality: Modality, band: str, product: str) -> Address:
    try:
        return ADDRESSES[band][product]
    except KeyError:
        raise ConfigError(
            f"the MMEarth layout has no band {band} of product {product} (modality '{modality.name}')."
        ) from None


def _moments(table: Mapping[str, Any], address: Address, band: str, path: Path) -> tuple[float, float]:
    entry = table.get(address.statistics or "")
    if entry is None:
        return math.nan, math.nan
    try:
        return float(entry["mean"][address.channel]), float(entry["std"][address.channel])
    except (KeyError, IndexError, TypeError, ValueError):
        raise StatisticsError(
            f"'{path}': entry '{address.statistics}' has no mean and std for channel {address.channel} (band {band}); "
            f"expected {ARRAYS[address.array].channels} numbers each."
        ) from None


class MMEarth(Dataset[Batch]):
    """Tiles of a data set in the MMEarth layout, whole, at 10 m, by row of the file.

    modalities: what to read; their order of products defines `Raster.product` (see `read_statistics`).
    The file is opened once per process, on the first read there; each array is read once per tile.
    """

    def __init__(self, root: str | os.PathLike[str], modalities: Sequence[Modality]):
        self.folder, self.name = find(root)
        self.modalities = tuple(modalities)
        self.path = self.folder / f"{self.name}.h5"
        self._open: tuple[int, h5py.File] | None = None
        self._datasets: dict[str, h5py.Dataset] = {}
        addresses = [_address(m, b, p) for m in modalities for b in m.bands for p in m.products]
        self._arrays = tuple(dict.fromkeys(a.array for a in addresses))
        self._kinds: dict[str, str] | None = None
        self.length, self.tile_px = self._check()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, row: int) -> Batch:
        """{modality: Raster [c, tile_px, tile_px]}; no-data has become validity, nothing is standardised."""
        raw = {name: self._read(name, row) for name in self._arrays}
        valid = {name: valid_pixels(name, values) for name, values in raw.items()}
        kind = self._s2_type(row)
        return {m.name: self._raster(m, row, raw, valid, kind) for m in self.modalities}

    def tile_id(self, row: int) -> str:
        """The name of a tile."""
        return self._metadata(row)["tile_id"].decode()

    def splits(self, *, val_fraction: float, block_degrees: float = 1.0, seed: int = 0) -> dict[str, np.ndarray]:
        """Rows of "train", "val" and "test"; val is taken from train, by blocks, where the release has none."""
        table = read_json(self.folder, self.name, "splits")
        path = self.folder / f"{self.name}_splits.json"
        if not isinstance(table, dict):
            raise DataError(f"'{path}': expected {SPLITS_LAYOUT}, got a {type(table).__name__}.")
        rows = {split: self._rows(table.get(split, []), split, path) for split in SPLITS}
        if not len(rows["train"]):
            raise DataError(f"'{path}': split 'train' is empty.")
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

    def places(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Latitude and longitude in degrees; the file holds sines and cosines."""
        degrees = []
        for name in ("lat", "lon"):
            if name not in self._file():
                raise DataError(f"'{self.path}' has no array '{name}', which a split by blocks needs.")
            sine, cosine = self._file()[name][:][rows].T
            degrees.append(np.degrees(np.arctan2(sine, cosine)))
        return degrees[0], degrees[1]

    def _check(self) -> tuple[int, int]:
        if "sentinel2" in self._arrays:
            self._check_metadata()
        shapes = {name: self._check_array(name) for name in self._arrays}
        if len(set(shapes.values())) > 1:
            raise DataError(f"'{self.path}': arrays differ in tiles or size: {shapes}.")
        self.close()
        rows, height, width = next(iter(shapes.values()))
        if height != width:
            raise DataError(f"'{self.path}': tiles must be square, got {height} x {width} px.")
        return rows, height

    def _check_array(self, name: str) -> tuple[int, int, int]:
        """Tiles, height and width of an array that is there and of the right type."""
        spec, file = ARRAYS[name], self._file()
        needed_by = ", ".join(sorted({m.name for m in self.modalities if name in _arrays_of(m)}))
        if not isinstance(file.get(name), h5py.Dataset):
            raise DataError(
                f"'{self.path}' has no array '{name}', which '{needed_by}' needs; it has {', '.join(file)}. "
                "Leave the modality out of model.inputs and model.targets, or add the array."
            )
        shape, dtype = file[name].shape, file[name].dtype
        if len(shape) != 4 or shape[1] != spec.channels or dtype != np.dtype(spec.dtype):
            raise DataError(
                f"'{self.path}', array '{name}' (for '{needed_by}'): expected {spec.dtype} "
                f"[tiles, {spec.channels}, height, width], got {dtype} {list(shape)}."
            )
        return shape[0], *shape[2:]

    def _check_metadata(self) -> None:
        """Sentinel-2 tiles are of a product that only the metadata tell, by themselves or by the tile's name."""
        metadata = self._file().get("metadata")
        if not isinstance(metadata, h5py.Dataset):
            raise DataError(
                f"'{self.path}' has no array 'metadata', which tells the product of each tile of 'sentinel2'. "
                "Add it (fields 'tile_id' and 'S2_type'), or leave the modalities of Sentinel-2 out."
            )
        if "tile_id" not in (metadata.dtype.names or ()):
            raise DataError(
                f"'{self.path}', array 'metadata': expected the fields 'tile_id' and 'S2_type', got {metadata.dtype}."
            )

    def _file(self) -> h5py.File:
        if self._open is None or self._open[0] != os.getpid():
            try:
                self._open, self._datasets = (os.getpid(), h5py.File(self.path, "r")), {}
            except OSError as error:
                raise DataError(f"'{self.path}' cannot be read as HDF5, it may be truncated: {error}.") from error
        return self._open[1]

    def close(self) -> None:
        """Close the file; the next read opens it again."""
        if self._open is not None and self._open[0] == os.getpid():
            self._open[1].close()
        self._open, self._datasets = None, {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": None, "_datasets": {}}

    def _read(self, name: str, row: int) -> np.ndarray:
        file = self._file()
        try:
            if name not in self._datasets:
                self._datasets[name] = file[name]
            return self._datasets[name][row]
        except (OSError, ValueError, IndexError, KeyError) as error:
            raise DataError(f"'{self.path}', array '{name}', row {row} cannot be read: {error}.") from error

    def _metadata(self, row: int) -> Any:
        return self._read("metadata", row)

    def _s2_type(self, row: int) -> str | None:
        """ "L1C" or "L2A"; from the metadata, or where that lacks it from tile_info.json."""
        if "sentinel2" not in self._arrays:
            return None
        entry = self._metadata(row)
        if "S2_type" in entry.dtype.names:
            return entry["S2_type"].decode().upper()
        if self._kinds is None:
            self._kinds = self._read_kinds()
        tile = entry["tile_id"].decode()
        if tile not in self._kinds:
            raise DataError(
                f"'{self.folder / self.name}_tile_info.json' has no 'S2_type' of tile '{tile}' (row {row}), and the "
                f"metadata of '{self.path}' has none either; expected 'l1c' or 'l2a'."
            )
        return self._kinds[tile]

    def _read_kinds(self) -> dict[str, str]:
        info = read_json(self.folder, self.name, "tile_info")
        facts = info.items() if isinstance(info, dict) else ()
        kinds = {tile: known["S2_type"] for tile, known in facts if isinstance(known, dict) and "S2_type" in known}
        return {tile: str(kind).upper() for tile, kind in kinds.items()}

    def _raster(
        self,
        modality: Modality,
        row: int,
        raw: Mapping[str, np.ndarray],
        valid: Mapping[str, np.ndarray],
        kind: str | None,
    ) -> Raster:
        product = self._product(modality, row, valid, kind)
        addresses = [ADDRESSES[band][product] for band in modality.bands]
        values = np.stack([raw[a.array][a.channel] for a in addresses])
        measured = np.stack([valid[a.array][a.channel] for a in addresses])
        if isinstance(modality, Continuous):
            values = values.astype(np.float32)
        index = torch.tensor(modality.products.index(product))
        return Raster(torch.from_numpy(values), torch.from_numpy(measured), index)

    def _product(self, modality: Modality, row: int, valid: Mapping[str, np.ndarray], kind: str | None) -> str:
        """The product that the metadata names; outside Sentinel-2 the first with any valid pixel, or the first."""
        known = ADDRESSES[modality.bands[0]]
        if kind in known:
            if kind not in modality.products:
                raise StatisticsError(
                    f"'{self.path}', row {row}: the tile is of product {kind}, but '{modality.name}' has statistics of "
                    f"{', '.join(modality.products)} only. Add {known[kind].statistics} to the statistics file."
                )
            return kind
        if any(address.array == "sentinel2" for address in known.values()):
            raise DataError(
                f"'{self.path}', row {row}: the 'S2_type' of the tile is '{kind}', expected {' or '.join(known)} (for "
                f"'{modality.name}'). Correct it, or leave the tile out of the splits."
            )
        for product in modality.products:
            if any(valid[a.array][a.channel].any() for a in (ADDRESSES[b][product] for b in modality.bands)):
                return product
        return modality.products[0]


def _arrays_of(modality: Modality) -> set[str]:
    return {ADDRESSES[b][p].array for b in modality.bands for p in modality.products}


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
