"""Reads data sets in the MMEarth layout: one batch entry per tile, in physical units, with validity and product.

Source: MMEarth (Nedungadi et al., ECCV 2024), variants data_1M_v001, data_1M_v001_64 and data_100k_v001, and whatever
`multimae-eo import` and the synthetic world write in that layout.
"""

import math
import os
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from multimae_eo.data.chunks import TileChunks
from multimae_eo.data.hdf5 import MOST_TILES, open_hdf5, read, size_of
from multimae_eo.data.layout import ADDRESSES, ARRAYS, Address, settled
from multimae_eo.data.tiles import ALL_TILES, Buffers, Tiles, find, read_json
from multimae_eo.errors import ConfigError, DataError, StatisticsError, UnreadError
from multimae_eo.modalities import Continuous, Modality, Statistics
from multimae_eo.raster import Batch

PLACES = ("lat", "lon")


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
        there = [not (math.isnan(mean) and math.isnan(std)) for mean, std in rows]
        if not any(there):
            continue  # the data set has no tile of this product
        if 2 * sum(there) >= len(rows) and product in modality.statistics:
            # Bands that were measured nowhere are valid nowhere; half of a modality is fed (docs/design.md, A).
            usual = modality.statistics[product]
            rows = [r if t else u for r, t, u in zip(rows, there, zip(usual.mean, usual.std, strict=True), strict=True)]
        for band, (mean, std) in zip(modality.bands, rows, strict=True):
            if not (math.isfinite(mean) and math.isfinite(std) and std > 0):
                raise StatisticsError(
                    f"'{path}': band {band} of '{modality.name}', product {product}, has mean {mean} and standard "
                    f"deviation {std}; both must be finite, and the deviation positive. Recompute them, or leave "
                    "the modality out."
                )
        found[product] = Statistics(*map(tuple, zip(*rows, strict=True)))
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
    except (KeyError, IndexError, TypeError, ValueError, OverflowError):
        raise StatisticsError(
            f"'{path}': entry '{address.statistics}' has no mean and std for channel {address.channel} (band {band}); "
            f"expected {ARRAYS[address.array].channels} numbers each."
        ) from None


class MMEarth(Tiles):
    """Tiles of a data set in the MMEarth layout.

    modalities: what to read; their order of products defines `Raster.product` (see `read_statistics`).
    The file is opened once per process, on the first read there; each array is read once per tile.
    """

    def __init__(self, root: str | os.PathLike[str], modalities: Sequence[Modality]):
        self.folder, self.name = find(root)
        self.modalities = tuple(modalities)
        self.path = self.folder / f"{self.name}.h5"
        self._open: tuple[int, h5py.File] | None = None
        self._chunks: dict[str, TileChunks] = {}
        self._sources = {m.name: _source(m) for m in self.modalities}
        self._arrays = tuple(dict.fromkeys(array for array, _ in self._sources.values()))
        specs = {name: ARRAYS[array] for name, (array, _) in self._sources.items()}
        self.kinds = {m.name: (len(m.bands), *specs[m.name][1:]) for m in self.modalities}
        self._s2_types: dict[str, str] = {}
        self._decided: dict[str | None, dict[str, int | None]] = {}
        self.length, self.tile_px = self._check()

    def read(self, rows: Sequence[int]) -> Batch:
        """See `Tiles.read`; values are of the types in `layout.ARRAYS`."""
        buffers = Buffers(len(rows), self.tile_px, self.kinds)
        products = {name: np.zeros(len(rows), np.int64) for name in self._sources}
        for place, row in enumerate(rows):
            raw = {name: settled(name, self._tile(name, row)) for name in self._arrays}
            kind = self._s2_type(row)
            if kind not in self._decided:
                self._decided[kind] = {m.name: self._product(m, row, kind) for m in self.modalities}
            decided = self._decided[kind]
            for m in self.modalities:
                array, channels = self._sources[m.name]
                product = decided[m.name]
                if product is None:  # the first with any valid pixel, or the first
                    measured = [(raw[array][members] != ARRAYS[array].missing).any() for members in channels]
                    product = int(np.argmax(measured))
                products[m.name][place] = product
                # All channels are there; "clip" only spares the copy that "raise" makes first.
                raw[array].take(channels[product], axis=0, out=buffers.values[m.name][place], mode="clip")
        return buffers.batch(products)

    def tile_id(self, row: int) -> str:
        """The name of a tile."""
        return self._word(self._tile("metadata", row), "tile_id", row)

    @property
    def has_places(self) -> bool:
        """Whether the file says where its tiles lie."""
        return all(name in self._file() for name in PLACES)

    def places(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Latitude and longitude in degrees; the file holds sines and cosines."""
        if not self.has_places:
            raise DataError(f"'{self.path}' has no array 'lat' and 'lon', which a split by blocks needs.")
        lat, lon = (np.degrees(self.angles(name)[rows]) for name in PLACES)
        return lat, lon

    def angles(self, name: str, step: int = 1) -> np.ndarray:
        """Radians of every tile, or of every few, from an array of sines and cosines; raises DataError."""
        array = self._file().get(name)
        if not isinstance(array, h5py.Dataset) or array.shape != (self.length, 2) or array.dtype.kind != "f":
            raise DataError(f"'{self.path}' has no array '{name}' of two numbers per tile.")
        try:
            sine, cosine = read(array)[::step].T
        except OSError as error:
            raise DataError(f"'{self.path}', array '{name}' cannot be read: {error}.") from error
        return np.arctan2(sine, cosine)

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
        needed_by = ", ".join(sorted(m.name for m in self.modalities if self._sources[m.name][0] == name))
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
        try:
            size_of(file[name], shape[1:])
        except OSError as error:
            raise DataError(f"'{self.path}', array '{name}' (for '{needed_by}') is not read: {error}.") from error
        if not 0 < shape[0] <= MOST_TILES:
            raise DataError(f"'{self.path}', array '{name}': expected 1 to {MOST_TILES} tiles, got {shape[0]}.")
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
        if "S2_type" not in metadata.dtype.names:  # read here, so that processes share it
            info = read_json(self.folder, self.name, "tile_info", megabytes=ALL_TILES)
            facts = info.items() if isinstance(info, dict) else ()
            kinds = {tile: known["S2_type"] for tile, known in facts if isinstance(known, dict) and "S2_type" in known}
            self._s2_types = {tile: str(kind).upper() for tile, kind in kinds.items()}

    def _file(self) -> h5py.File:
        if self._open is None or self._open[0] != os.getpid():
            self._open, self._chunks = (os.getpid(), open_hdf5(self.path)), {}
        return self._open[1]

    def close(self) -> None:
        """Close the file; the next read opens it again."""
        if self._open is not None and self._open[0] == os.getpid():
            self._open[1].close()
        self._open, self._chunks = None, {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": None, "_chunks": {}}

    def _tile(self, name: str, row: int) -> Any:
        file = self._file()
        try:
            if name not in self._chunks:
                self._chunks[name] = TileChunks(file[name])
            return self._chunks[name][row]
        except (OSError, RuntimeError, ValueError, IndexError, KeyError) as error:
            raise UnreadError(
                f"'{self.path}', array '{name}', row {row} cannot be read: {error}. Fetch the file again, or take the "
                "row out of the splits."
            ) from error

    def _s2_type(self, row: int) -> str | None:
        """ "L1C" or "L2A"; from the metadata, or where that lacks it from tile_info.json."""
        if "sentinel2" not in self._arrays:
            return None
        entry = self._tile("metadata", row)
        if "S2_type" in entry.dtype.names:
            return self._word(entry, "S2_type", row).upper()
        tile = self._word(entry, "tile_id", row)
        if tile not in self._s2_types:
            raise UnreadError(
                f"'{self.folder / self.name}_tile_info.json' has no 'S2_type' of tile '{tile}' (row {row}), and the "
                f"metadata of '{self.path}' has none either; expected 'l1c' or 'l2a'."
            )
        return self._s2_types[tile]

    def _word(self, entry: Any, name: str, row: int) -> str:
        value: Any = entry[name] if name in (entry.dtype.names or ()) else None
        try:
            return value.decode()
        except (AttributeError, UnicodeDecodeError):
            raise UnreadError(
                f"'{self.path}', array 'metadata', row {row}: '{name}' is {reprlib.repr(value)}; expected text."
            ) from None

    def _product(self, modality: Modality, row: int, kind: str | None) -> int | None:
        """The product that the metadata names, or the only one; None where the pixels decide."""
        known = ADDRESSES[modality.bands[0]]
        if kind in known:
            if kind not in modality.products:
                raise StatisticsError(
                    f"'{self.path}', row {row}: the tile is of product {kind}, but '{modality.name}' has statistics of "
                    f"{', '.join(modality.products)} only. Add {known[kind].statistics} to the statistics file."
                )
            return modality.products.index(kind)
        if self._sources[modality.name][0] == "sentinel2":
            raise UnreadError(
                f"'{self.path}', row {row}: the 'S2_type' of the tile is '{kind}', expected {' or '.join(known)} (for "
                f"'{modality.name}'). Correct it, or leave the tile out of the splits."
            )
        return 0 if len(modality.products) == 1 else None


def array_of(modality: Modality) -> str:
    """The array of the file that a modality lies in."""
    return _source(modality)[0]


def _source(modality: Modality) -> tuple[str, list[list[int]]]:
    """The array of a modality, and for each of its products the channels of its bands; raises ConfigError."""
    addresses = [[_address(modality, band, product) for band in modality.bands] for product in modality.products]
    arrays = {address.array for bands in addresses for address in bands}
    if len(arrays) > 1:
        raise ConfigError(
            f"modality '{modality.name}' takes bands from {', '.join(sorted(arrays))}; all must be of one array."
        )
    return arrays.pop(), [[address.channel for address in bands] for bands in addresses]
