"""The MMEarth layout on disk: its arrays, where each band lives, what counts as no data, and a writer of it.

Source: MMEarth v001 (Nedungadi et al., ECCV 2024): `<NAME>.h5` with one gzip chunk per tile and array, and the side
files `<NAME>_band_stats.json`, `<NAME>_splits.json` and `<NAME>_tile_info.json`, all in a folder `<NAME>`.
"""

import json
import math
import os
import shutil
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import h5py
import numpy as np

from multimae_eo.data.folders import plain, writable
from multimae_eo.errors import DataError
from multimae_eo.modalities import MODALITIES, REFLECTANCE, Modality

SENTINEL2_CHANNELS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B8A", "B08", "B09", "B10", "B11", "B12")

# Whose unit a band has: those of Sentinel-2 that no modality takes have the unit of those that one does.
MODALITY_OF: Mapping[str, Modality] = {
    **dict.fromkeys(SENTINEL2_CHANNELS, next(m for m in MODALITIES.values() if m.unit == REFLECTANCE)),
    **{band: m for m in MODALITIES.values() for band in m.bands},
}

SPLITS = ("train", "val", "test")
TILE_ID_BYTES = 100


class ArraySpec(NamedTuple):
    """One array of the HDF5 file: its channels, its type on disk, and what is written where nothing was measured."""

    channels: int
    dtype: str
    missing: float


ARRAYS: Mapping[str, ArraySpec] = {
    "sentinel2": ArraySpec(13, "uint16", 0),
    "sentinel1": ArraySpec(8, "float32", -math.inf),
    "aster": ArraySpec(2, "int16", -32768),
    "esa_worldcover": ArraySpec(1, "uint8", 0),
    "canopy_height_eth": ArraySpec(2, "int8", 127),
}


class Address(NamedTuple):
    """Where one band of one product lives: array, channel, and its key in the statistics file."""

    array: str
    channel: int
    statistics: str | None


# band -> product -> address. A tile is of the product that its metadata names, or of the first that has valid pixels.
ADDRESSES: dict[str, dict[str, Address]] = {
    **{
        band: {p: Address("sentinel2", channel, f"sentinel2_{p.lower()}") for p in ("L1C", "L2A")}
        for channel, band in enumerate(SENTINEL2_CHANNELS)
    },
    "VV": {"descending": Address("sentinel1", 4, "sentinel1"), "ascending": Address("sentinel1", 0, "sentinel1")},
    "VH": {"descending": Address("sentinel1", 5, "sentinel1"), "ascending": Address("sentinel1", 1, "sentinel1")},
    "dem": {"ASTER": Address("aster", 0, "aster")},
    "worldcover": {"WorldCover": Address("esa_worldcover", 0, None)},
    "chm": {"ETH": Address("canopy_height_eth", 0, "canopy_height_eth")},
}


def valid_pixels(array: str, raw: np.ndarray) -> np.ndarray:
    """Which values were measured. raw [c, h, w] as on disk -> bool [c, h, w]."""
    match array:
        case "sentinel2":
            return raw != 0
        case "sentinel1":
            return np.isfinite(raw)
        case "aster":
            return raw != -32768
        case "esa_worldcover":
            return (raw != 0) & (raw != 255)
        case "canopy_height_eth":  # 255 was declared, int8 saturates to 127; the second channel is the deviation
            return np.broadcast_to(((raw != 127) & (raw >= 0)).all(axis=0, keepdims=True), raw.shape)
    raise DataError(f"array '{array}' is not one of the MMEarth layout: {', '.join(ARRAYS)}.")


def settled(array: str, raw: np.ndarray) -> np.ndarray:
    """The values as on disk, with the array's one missing value wherever nothing was measured, and nowhere else."""
    if array in ("sentinel2", "aster"):  # these have no other mark
        return raw
    if array == "esa_worldcover":
        return _WORLDCOVER.take(raw)
    return np.where(valid_pixels(array, raw), raw, raw.dtype.type(ARRAYS[array].missing))


_CODES = np.arange(256, dtype=np.uint8)
_WORLDCOVER = np.where(valid_pixels("esa_worldcover", _CODES), _CODES, np.uint8(ARRAYS["esa_worldcover"].missing))


@dataclass(frozen=True)
class Tile:
    """One place: arrays [channels, h, w] as in `ARRAYS` (those not given are missing), and what is known of it."""

    tile_id: str
    product: str  # "L1C" or "L2A"
    lat: float  # degrees
    lon: float
    date: str  # YYYY-MM-DD, of the Sentinel-2 image
    arrays: Mapping[str, np.ndarray]
    crs: str = "EPSG:4326"
    split: str = "train"
    extra: Mapping[str, Any] = field(default_factory=dict)  # further entries of tile_info.json


class EncodedTile(NamedTuple):
    """A tile as deflated chunks with its part of the band statistics; what a worker process hands back."""

    tile: Tile  # without arrays
    chunks: dict[str, bytes]
    moments: dict[str, np.ndarray]  # statistics key -> [5, channels]: count, sum, sum of squares, min, max


def encode_tile(tile: Tile, arrays: Sequence[str], tile_px: int, *, level: int = 4) -> EncodedTile:
    """Check and deflate a tile; pure, so that it runs in any process."""
    chunks, moments = {}, {}
    for name in arrays:
        spec = ARRAYS[name]
        shape = (spec.channels, tile_px, tile_px)
        raw = tile.arrays.get(name)
        if raw is None:
            raw = np.full(shape, spec.missing, spec.dtype)
        if raw.shape != shape or raw.dtype != np.dtype(spec.dtype):
            raise DataError(
                f"tile '{tile.tile_id}', array '{name}': expected {spec.dtype} {shape}, got {raw.dtype} {raw.shape}."
            )
        chunks[name] = zlib.compress(np.ascontiguousarray(raw).tobytes(), level)
        key = f"{name}_{tile.product.lower()}" if name == "sentinel2" else name
        if name != "esa_worldcover":
            moments[key] = _moments(raw, valid_pixels(name, raw))
    bare = Tile(tile.tile_id, tile.product, tile.lat, tile.lon, tile.date, {}, tile.crs, tile.split, tile.extra)
    return EncodedTile(bare, chunks, moments)


def _moments(raw: np.ndarray, valid: np.ndarray) -> np.ndarray:
    values = np.where(valid, raw, 0).astype(np.float64)
    axes = (1, 2)
    low = np.where(valid, raw, np.inf).min(axis=axes)
    high = np.where(valid, raw, -np.inf).max(axis=axes)
    return np.stack([valid.sum(axis=axes), values.sum(axis=axes), (values**2).sum(axis=axes), low, high])


class LayoutWriter:
    """Writes a data set in the MMEarth layout; nothing appears under its final name before it is complete.

    Use as a context manager; `add` tiles in order. On an exception the partial folder is removed.
    root/name must not exist. arrays: which of `ARRAYS` the file holds. tile_px: edge of the tiles in pixels.
    """

    def __init__(self, root: str | os.PathLike[str], name: str, *, tile_px: int, arrays: Sequence[str] = tuple(ARRAYS)):
        self.folder = Path(root) / plain(name)
        if self.folder.exists():
            raise DataError(f"'{self.folder}' exists already; remove it or choose another name.")
        self.name, self.tile_px, self.arrays = name, tile_px, tuple(arrays)
        self._partial = Path(root) / f".{name}.partial-{os.getpid()}"
        self._tiles: list[Tile] = []
        self._ids: set[str] = set()
        self._moments: dict[str, np.ndarray] = {}

    def __enter__(self) -> "LayoutWriter":
        writable(self._partial)
        self._file = h5py.File(self._partial / f"{self.name}.h5", "w")
        for name in self.arrays:
            spec = ARRAYS[name]
            shape = (spec.channels, self.tile_px, self.tile_px)
            self._file.create_dataset(
                name, (0, *shape), spec.dtype, maxshape=(None, *shape), chunks=(1, *shape), compression="gzip"
            )
        return self

    def add(self, encoded: EncodedTile) -> None:
        """Append one tile; its id must be new and fit the file's 100 bytes."""
        row, tile = len(self._tiles), encoded.tile
        if tile.tile_id in self._ids or len(tile.tile_id.encode()) > TILE_ID_BYTES:
            raise DataError(f"tile id '{tile.tile_id}' is given twice, or is longer than {TILE_ID_BYTES} bytes.")
        if tile.split not in SPLITS:
            raise DataError(f"tile '{tile.tile_id}': split '{tile.split}' is none of {', '.join(SPLITS)}.")
        for name in self.arrays:
            dataset = self._file[name]
            if row >= len(dataset):
                dataset.resize(max(64, 2 * row), axis=0)
            dataset.id.write_direct_chunk((row, 0, 0, 0), encoded.chunks[name])
        for key, part in encoded.moments.items():
            self._moments[key] = _merge(self._moments[key], part) if key in self._moments else part
        self._ids.add(tile.tile_id)
        self._tiles.append(tile)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
                os.replace(self._partial, self.folder)
        finally:
            self._file.close()
            if self._partial.exists():
                shutil.rmtree(self._partial)

    def _finish(self) -> None:
        if not self._tiles:
            raise DataError(f"'{self.folder}': no tile to write.")
        for name in self.arrays:
            self._file[name].resize(len(self._tiles), axis=0)
        self._write_places()
        self._file.close()
        splits: dict[str, list[int]] = {split: [] for split in SPLITS}
        for row, tile in enumerate(self._tiles):
            splits[tile.split].append(row)
        self._write_json("band_stats", {key: _statistics(m) for key, m in sorted(self._moments.items())})
        self._write_json("splits", splits)
        self._write_json("tile_info", {tile.tile_id: self._info(tile) for tile in self._tiles})

    def _write_places(self) -> None:
        tiles = self._tiles
        month = 2 * np.pi * np.array([int(t.date[5:7]) for t in tiles]) / 12
        angles = {"lat": np.radians([t.lat for t in tiles]), "lon": np.radians([t.lon for t in tiles]), "month": month}
        for name, angle in angles.items():
            pairs = np.stack([np.sin(angle), np.cos(angle)], axis=1).astype(np.float32)
            self._file.create_dataset(name, data=pairs, chunks=(1, 2), compression="gzip")
        rows = [(t.tile_id.encode(), t.product.lower().encode()) for t in tiles]
        kind = np.dtype([("tile_id", f"S{TILE_ID_BYTES}"), ("S2_type", "S10")])
        self._file.create_dataset("metadata", data=np.array(rows, kind), chunks=(1,))

    def _info(self, tile: Tile) -> dict[str, Any]:
        known = {"S2_DATE": tile.date, "S2_type": tile.product.lower(), "CRS": tile.crs}
        return {**known, "lat": tile.lat, "lon": tile.lon, **tile.extra}

    def _write_json(self, kind: str, content: object) -> None:
        with open(self._partial / f"{self.name}_{kind}.json", "w") as file:
            json.dump(content, file)


def _merge(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.concatenate([a[:3] + b[:3], np.minimum(a[3:4], b[3:4]), np.maximum(a[4:], b[4:])])


def _statistics(moments: np.ndarray) -> dict[str, list[float]]:
    """JSON with NaN where a band has no valid pixel, as the release has it."""
    count, total, squares, low, high = moments
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = total / count
        std = np.sqrt(np.maximum(squares / count - mean**2, 0.0))
    return {"mean": mean.tolist(), "std": std.tolist(), "min": low.tolist(), "max": high.tolist()}
