"""One GeoTIFF of a user: opening it, checking what it holds, and reading rows of it as an array of the MMEarth layout.

Everything a file can do wrong is found here and named with the file, what was expected and got, and the remedy.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rasterio import warp
from rasterio.errors import RasterioError
from rasterio.transform import array_bounds
from rasterio.windows import Window

from multimae_eo.data.alone import open_alone
from multimae_eo.data.import_options import SourceOptions
from multimae_eo.data.layout import ADDRESSES, ARRAYS, SENTINEL2_CHANNELS
from multimae_eo.errors import ConfigError, DataError, GridError, UnknownNameError
from multimae_eo.modalities import WORLDCOVER, canonical_bands

METRES = 10.0  # the grid of the models
DISTORTED = 0.05  # by how much a projection may stretch a pixel: Web Mercator does more from 18 degrees on
EARTH_M = 6.371e6
SKIPPED = "-"
BLOCK_ROWS = 128  # how many rows a survey holds in memory
LOWEST_DB = -100
LOWEST, HIGHEST = -500, 9000  # m; outside of it lies no land

# source -> the bands that it may hold, what its values are, and the kinds of numbers accepted (numpy's letters).
_BANDS: Mapping[str, tuple[str, ...]] = {
    "s2_l1c": SENTINEL2_CHANNELS,
    "s2_l2a": SENTINEL2_CHANNELS,
    "dem": ("dem",),
    "worldcover": ("worldcover",),
    "s1": ("VV", "VH"),
}
_NUMBERS: Mapping[str, tuple[str, str]] = {
    "s2_l1c": ("iuf", "integers or floats (reflectance x 10000)"),
    "s2_l2a": ("iuf", "integers or floats (reflectance x 10000)"),
    "dem": ("iuf", "integers or floats (m)"),
    "worldcover": ("iu", "integers (class codes)"),
    "s1": ("f", "floats (dB)"),
}
SOURCES = tuple(_BANDS)


class Grid(NamedTuple):
    """Where a raster lies: reference system, affine transform (rasterio's), height and width in pixels."""

    crs: Any
    transform: Any
    height: int
    width: int

    def describe(self) -> str:
        """Reference system, size and upper left corner, in one line."""
        t = self.transform
        pixel = f"{t.a:.10g} x {-t.e:.10g}"
        return f"{self.crs}, {self.width} x {self.height} px of {pixel}, corner at ({t.c:.10g}, {t.f:.10g})"

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """left, bottom, right, top in the units of the reference system."""
        return array_bounds(self.height, self.width, self.transform)


@dataclass(frozen=True)
class Source:
    """A checked file. bands: in file order, None for those to leave out. tags: the file's, with names in lower case."""

    key: str
    path: Path
    bands: tuple[str | None, ...]
    options: SourceOptions
    grid: Grid
    tags: Mapping[str, str]

    @property
    def indexes(self) -> list[int]:
        """rasterio's numbers of the bands that are read, from 1."""
        return [i for i, band in enumerate(self.bands, 1) if band is not None]

    @property
    def read_bands(self) -> tuple[str, ...]:
        return tuple(band for band in self.bands if band is not None)

    @property
    def written_bands(self) -> tuple[str, ...]:
        """The layout keeps B10 of L2A empty: the product has none."""
        return tuple(band for band in self.read_bands if not (self.key == "s2_l2a" and band == "B10"))


def open_raster(path: Path) -> Any:
    """A rasterio dataset of a local GeoTIFF, and of nothing else; raises DataError."""
    if not path.is_file():
        raise DataError(f"'{path}' does not exist or is no file.")
    try:
        # Only this driver: a VRT or another container could point to further files or addresses.
        return open_alone(path, "GTiff")
    except RasterioError as error:
        raise DataError(f"'{path}' cannot be read as a GeoTIFF ({error}). Convert or fetch it again.") from error


def check_source(key: str, path: Path, options: SourceOptions) -> Source:
    """Open a file and check bands, type of numbers and grid; raises DataError, GridError or UnknownNameError."""
    with open_raster(path) as dataset:
        bands = _bands(key, path, options, dataset)
        kinds, expected = _NUMBERS[key]
        wrong = {t for t in dataset.dtypes if np.dtype(t).kind not in kinds}
        if wrong:
            raise DataError(f"'{path}' ({key}): expected {expected}, got {', '.join(sorted(wrong))}. Convert it first.")
        for i, band in enumerate(bands):
            if band is not None:
                check_stated(path, dataset, i, reflectance=band in SENTINEL2_CHANNELS, scale=options.scale)
        grid = Grid(dataset.crs, dataset.transform, dataset.height, dataset.width)
        _check_grid(path, grid)
        tags = {k.lower(): v for space in ("IMAGERY", None) for k, v in dataset.tags(ns=space).items()}
    return Source(key, path, bands, options, grid, tags)


def _bands(key: str, path: Path, options: SourceOptions, dataset: Any) -> tuple[str | None, ...]:
    known = _BANDS[key]
    names = options.bands
    if names is None and len(known) == 1:
        names = list(known)
    if names is None:
        names = [name or "" for name in dataset.descriptions]
        if not all(names):
            raise DataError(
                f"'{path}' ({key}) does not describe its {dataset.count} bands; "
                f"give their names in file order as {key}.bands, e.g. [{', '.join(known[:3])}]."
            )
    if len(names) != dataset.count:
        raise DataError(
            f"'{path}' ({key}): expected {len(names)} bands ({', '.join(names)}), the file has {dataset.count}. "
            f"Name every band of the file in {key}.bands, '{SKIPPED}' for those to leave out."
        )
    read = [name for name in names if name != SKIPPED]
    try:
        canonical = iter(canonical_bands(read))
    except ConfigError as error:
        raise ConfigError(f"'{path}' ({key}): {error}") from error
    bands = tuple(None if name == SKIPPED else next(canonical) for name in names)
    for band in bands:
        if band is not None and band not in known:
            raise UnknownNameError(f"band of {key} in '{path}':", band, known)
    if not any(bands):
        raise ConfigError(f"{key}.bands leaves every band out.")
    return bands


def check_stated(path: Path, dataset: Any, channel: int, *, reflectance: bool, scale: float) -> None:
    """Raise DataError where a file states a scale or offset of a channel (from 0), which are not applied to training
    data: but for that of reflectance x 10000, and a scale in whose place one is given.
    """
    stated, offset = dataset.scales[channel], dataset.offsets[channel]
    usual = stated == 1 or scale != 1 or (reflectance and math.isclose(stated, 1e-4))
    if usual and offset == 0:
        return
    then = ", then scale: 10000" if reflectance else ""
    raise DataError(
        f"'{path}' states that a value is {stated:g} x number + {offset:g} (channel {channel + 1}). Apply that: "
        f"gdal_translate -unscale -ot Float32 IN OUT{then}; or take the statement off where the numbers are right: "
        "gdal_edit.py -scale 1 -offset 0 FILE."
    )


def _check_grid(path: Path, grid: Grid) -> None:
    remedy = "Bring it to a 10 m grid first: gdalwarp -t_srs EPSG:<UTM zone> -tr 10 10 IN OUT (-r near for classes)."
    if grid.crs is None:
        raise GridError(
            f"'{path}' has no coordinate reference system. Assign it: gdal_edit.py -a_srs EPSG:<code> FILE."
        )
    t = grid.transform
    if t.b or t.d or t.a <= 0 or t.e >= 0:
        raise GridError(f"'{path}': expected a north-up raster, got the transform {tuple(t)[:6]}. {remedy}")
    metres = grid.crs.linear_units_factor[1] if grid.crs.is_projected else math.nan
    edges = (t.a * metres, -t.e * metres)
    if not all(abs(edge - METRES) <= METRES / 100 for edge in edges):
        got = f"{t.a:g} x {-t.e:g} in units of {grid.crs}"
        raise GridError(f"'{path}': expected pixels of 10 x 10 m (within 1 %), got {got}. {remedy}")
    ground = _on_the_ground(grid)
    if any(abs(edge - METRES) > METRES * DISTORTED for edge in ground):
        got = " x ".join(f"{edge:.3g}" for edge in ground)
        raise GridError(
            f"'{path}': expected pixels of 10 x 10 m, but {grid.crs} distorts them to {got} m on the ground. {remedy}"
        )


def _on_the_ground(grid: Grid) -> tuple[float, float]:
    """Width and height in m of the pixel in the middle."""
    across, down = grid.width / 2, grid.height / 2
    t = grid.transform
    eastings, northings = [t.c + t.a * (across + i) for i in (0, 1, 0)], [t.f + t.e * (down + i) for i in (0, 0, 1)]
    longitudes, latitudes = warp.transform(grid.crs, "EPSG:4326", eastings, northings)
    east, north = np.radians(longitudes), np.radians(latitudes)
    east = (east - east[0]) * np.cos(north[0])  # the Earth as a sphere is off by half a per cent
    right, below = EARTH_M * np.hypot(east, north - north[0])[1:]
    return float(right), float(below)


def check_same_grid(reference: Source, other: Source) -> None:
    """Both must lie on one grid, to a hundredth of a pixel; raises GridError with the command that mends it."""
    a, b = reference.grid, other.grid
    near = all(abs(x - y) <= METRES / 100 for x, y in zip(a.bounds, b.bounds, strict=True))
    if a.crs == b.crs and (a.height, a.width) == (b.height, b.width) and near:
        return
    left, bottom, right, top = a.bounds
    how = "near" if other.key == "worldcover" else "bilinear"
    raise GridError(
        f"'{other.path}' ({other.key}) lies on another grid than '{reference.path}' ({reference.key}): "
        f"expected {a.describe()}; got {b.describe()}. Resample it: gdalwarp -t_srs {a.crs} "
        f"-te {left:.12g} {bottom:.12g} {right:.12g} {top:.12g} -ts {a.width} {a.height} -r {how} IN OUT."
    )


def read_values(source: Source, dataset: Any, top: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Values of the read bands and whether they were measured, both [bands, rows, width]; raises DataError."""
    window = Window(0, top, source.grid.width, rows)
    try:
        raw = dataset.read(source.indexes, window=window)
        if source.options.nodata is None:
            valid = dataset.read_masks(source.indexes, window=window) > 0
        else:
            valid = raw != source.options.nodata
    except RasterioError as error:
        raise DataError(
            f"'{source.path}' ({source.key}): rows {top} to {top + rows} cannot be read; the file is truncated or "
            f"damaged. Fetch or write it again. ({error})"
        ) from error
    if raw.dtype.kind == "f":
        valid &= np.isfinite(raw)
    return raw, valid


def read_reflectance(source: Source, dataset: Any, top: int, rows: int) -> np.ndarray:
    """uint16 [bands, rows, width] as in the file but for the scale: 0 where nothing was measured."""
    raw, valid = read_values(source, dataset, top, rows)
    scaled = raw if source.options.scale == 1 else raw * source.options.scale
    valid &= scaled > 0  # DN 0 is no data in ESA's products; below it lies no DN
    highest = scaled.max(where=valid, initial=0)
    if highest > 65535:
        raise DataError(
            f"'{source.path}' ({source.key}): expected reflectance x 10000 (at most 65535), got {highest:g}. "
            f"Set {source.key}.nodata if that is a mark for no data, or {source.key}.scale."
        )
    numbers = np.where(valid, scaled, 0)
    if numbers.dtype.kind == "f":
        numbers = np.where(valid, np.maximum(np.rint(numbers), 1), 0)  # a value below 0.5 is dark, not missing
    return numbers.astype(np.uint16)


def remove_offset(numbers: np.ndarray, offset: int) -> np.ndarray:
    """DN minus the offset; what would fall to 0 or below becomes 1, so that it stays measured. uint16 any shape."""
    lowered = np.maximum(numbers.astype(np.int32) - offset, 1)
    return np.where(numbers == 0, 0, lowered).astype(np.uint16)


def sentinel2_array(source: Source, numbers: np.ndarray) -> np.ndarray:
    """uint16 [bands, h, w] -> the layout's uint16 [13, h, w]; absent bands and B10 of L2A are 0."""
    spec = ARRAYS["sentinel2"]
    array = np.zeros((spec.channels, *numbers.shape[1:]), spec.dtype)
    for band, plane in zip(source.read_bands, numbers, strict=True):
        if band in source.written_bands:
            array[SENTINEL2_CHANNELS.index(band)] = plane
    return array


def read_aster(source: Source, dataset: Any, top: int, rows: int) -> np.ndarray:
    """Height in m and slope in degrees, rounded, int16 [2, rows, width]; -32768 where unknown.

    Slope: arctan of the gradient by central differences on the 10 m grid, one-sided at the border of the scene.
    """
    first, last = max(0, top - 1), min(source.grid.height, top + rows + 1)
    raw, valid = read_values(source, dataset, first, last - first)
    height = np.where(valid, raw, np.nan)[0].astype(np.float64) * source.options.scale
    valid = valid[0] & (raw[0] != ARRAYS["aster"].missing)
    height[~valid] = np.nan
    known = height[valid]
    if known.size and (known.min() < LOWEST or known.max() > HIGHEST):
        raise DataError(
            f"'{source.path}' ({source.key}): expected heights of {LOWEST} to {HIGHEST} m, got {known.min():g} to "
            f"{known.max():g}. Set {source.key}.nodata if that is a mark for no data, or {source.key}.scale."
        )
    down, right = np.gradient(height, METRES)
    slope = np.degrees(np.arctan(np.hypot(down, right)))
    slope[~valid] = np.nan
    both = np.stack([height, slope])[:, top - first : top - first + rows]
    return np.where(np.isfinite(both), np.rint(both), ARRAYS["aster"].missing).astype(np.int16)


def read_worldcover(source: Source, dataset: Any, top: int, rows: int) -> np.ndarray:
    """WorldCover codes uint8 [1, rows, width], 0 where unknown; raises DataError for a class without a code."""
    raw, valid = read_values(source, dataset, top, rows)
    table = class_table(source.options)
    array = np.zeros(raw.shape, np.uint8)
    unnamed = valid.copy()
    for code, meant in table.items():
        here = valid & (raw == code)
        array[here] = meant
        unnamed &= ~here
    if unnamed.any():
        codes = ", ".join(str(c) for c in np.unique(raw[unnamed]))
        kind = "the file's classes are taken as WorldCover codes" if source.options.classes is None else "mapping"
        raise DataError(
            f"'{source.path}' ({source.key}) holds classes that have no meaning here: {codes}; {kind}: "
            f"{', '.join(map(str, table))}. Add them to {source.key}.classes as 'code: WorldCover code', 0 for no data."
        )
    return array


def class_table(options: SourceOptions) -> dict[int, int]:
    """Code in the file -> WorldCover code or 0."""
    codes = [c.code for c in WORLDCOVER]
    return {0: 0, **{c: c for c in codes}, 255: 0} if options.classes is None else options.classes


def read_sentinel1(source: Source, dataset: Any, top: int, rows: int, orbit: str) -> np.ndarray:
    """dB float32 [8, rows, width] in the channels of the orbit's direction; -inf where nothing was measured."""
    raw, valid = read_values(source, dataset, top, rows)
    spec = ARRAYS["sentinel1"]
    array = np.full((spec.channels, *raw.shape[1:]), spec.missing, spec.dtype)
    for band, values, known in zip(source.read_bands, raw, valid, strict=True):
        array[ADDRESSES[band][orbit].channel] = np.where(known, values * source.options.scale, spec.missing)
    return array


def survey(source: Source) -> None:
    """Read all of a DEM, land cover or Sentinel-1 file; raises DataError for what is wrong with its values."""
    measured, lowest, negative, number = False, math.inf, 0, 0
    with open_raster(source.path) as dataset:
        for top, rows in strips(source.grid.height):
            if source.key == "dem":
                array = read_aster(source, dataset, top, rows)[:1]
                known = array[array != ARRAYS["aster"].missing]
            elif source.key == "worldcover":
                array = read_worldcover(source, dataset, top, rows)
                known = array[array != 0]
            else:
                raw, valid = read_values(source, dataset, top, rows)
                known = raw[valid] * source.options.scale
                lowest = min(lowest, known.min(initial=math.inf))
                negative, number = negative + int((known < 0).sum()), number + known.size
            measured |= known.size > 0
    if not measured:
        raise DataError(
            f"'{source.path}' ({source.key}) has no measured pixel: all are no data. Set {source.key}.nodata or "
            f"{source.key}.classes if that is wrong; else leave the file away ({source.key}.optional: true)."
        )
    if source.key == "s1" and lowest < LOWEST_DB:
        raise DataError(
            f"'{source.path}' ({source.key}): expected dB, got {lowest:g}, which nothing on Earth sends back. It means "
            f"no data, most often: set {source.key}.nodata."
        )
    if source.key == "s1" and negative < 0.01 * number:  # some filters leave linear power slightly below 0
        raise DataError(
            f"'{source.path}' ({source.key}): expected dB, got hardly a value below 0 (lowest {lowest:g}), so this is "
            "linear power. Convert it: gdal_calc.py -A IN --allBands=A --outfile=OUT --calc='10*log10(A)'."
        )


def strips(height: int) -> Iterator[tuple[int, int]]:
    """(first row, number of rows) of the strips in which a survey reads a scene."""
    for top in range(0, height, BLOCK_ROWS):
        yield top, min(BLOCK_ROWS, height - top)
