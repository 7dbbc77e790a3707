"""Import: co-registered GeoTIFFs of single places -> tiles in the MMEarth layout, with splits and statistics."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from rasterio import Affine, Env
from rasterio.warp import transform as to_crs

from multimae_eo.data.geotiff_baseline import OFFSET
from multimae_eo.data.geotiff_places import (
    PRODUCTS,
    SPLITS,
    Place,
    check_options,
    check_places,
    find_places,
    given_sources,
)
from multimae_eo.data.geotiff_source import (
    Grid,
    Source,
    open_raster,
    read_aster,
    read_reflectance,
    read_sentinel1,
    read_worldcover,
    remove_offset,
    sentinel2_array,
)
from multimae_eo.data.import_options import ImportOptions
from multimae_eo.data.layout import ADDRESSES, ARRAYS, SENTINEL2_CHANNELS, LayoutWriter, Tile, encode_tile, valid_pixels
from multimae_eo.errors import DataError

ARRAY_OF = {
    **dict.fromkeys(PRODUCTS, "sentinel2"),
    "s1": "sentinel1",
    "dem": "aster",
    "worldcover": "esa_worldcover",
}
REPORT_SECONDS = 10.0
CACHE_MB = 256  # GDAL would take a twentieth of the machine's memory


def import_geotiffs(options: ImportOptions, *, say: Callable[[str], None] = print) -> Path:
    """Check every file, then cut tiles and write `out/name`; returns that folder. Nothing is left behind on an error.

    Raises ConfigError, DataError or GridError with the file, what was expected and got, and how to mend it.
    """
    check_options(options)
    wanted = {ARRAY_OF[key] for key in given_sources(options)}
    arrays = tuple(name for name in ARRAYS if name in wanted)
    writer = LayoutWriter(options.out, options.name, tile_px=options.tile_px, arrays=arrays)
    tiles = dict.fromkeys(SPLITS, 0)
    with ExitStack() as stack:
        stack.enter_context(Env(GDAL_CACHEMAX=CACHE_MB))
        places = check_places(options, find_places(options), say)
        stack.enter_context(writer)
        for place in places:
            for key in PRODUCTS:
                if key in place.sources:
                    tiles[place.split] += _write_product(options, place, key, writer, say)
        if not any(tiles.values()):
            raise DataError(f"no tile has {options.min_valid:.0%} of its Sentinel-2 values measured; lower min_valid.")
    counts = ", ".join(f"{split} {number}" for split, number in tiles.items())
    say(f"wrote {sum(tiles.values())} tiles ({counts}) with {', '.join(arrays)} to {writer.folder}")
    return writer.folder


def _write_product(
    options: ImportOptions, place: Place, key: str, writer: LayoutWriter, say: Callable[[str], None]
) -> int:
    """All tiles of one Sentinel-2 file with what the other files of its place show there; returns their number."""
    grid, size, stride = place.grid, options.tile_px, options.stride_px or options.tile_px
    rows, columns = (1 + (edge - size) // stride for edge in (grid.height, grid.width))
    kept, last = 0, time.monotonic()
    for row, strip in enumerate(_strips(options, place, key, rows)):
        for column in range(columns):
            left = column * stride
            parts = {name: array[:, :, left : left + size] for name, array in strip.items()}
            if _measured(place.sources[key], parts["sentinel2"]) >= max(options.min_valid, 1e-9):
                tile = _tile(place, key, f"{row}_{column}", _shifted(grid, row * stride, left, size), parts)
                writer.add(encode_tile(tile, writer.arrays, size))
                kept += 1
        if time.monotonic() - last > REPORT_SECONDS:
            say(f"{place.name} {PRODUCTS[key]}: {row + 1} of {rows} rows of tiles")
            last = time.monotonic()
    inside = np.prod([(n - 1) * min(stride, size) + size for n in (rows, columns)])
    every = grid.height * grid.width
    say(
        f"{place.name} {PRODUCTS[key]}: {kept} tiles for {place.split} of {rows} x {columns} "
        f"({rows * columns - kept} have too few measured values); {every - inside} of {every} pixels lie in no tile"
    )
    return kept


def _strips(options: ImportOptions, place: Place, key: str, rows: int) -> Iterator[dict[str, np.ndarray]]:
    """Arrays [channels, tile_px, width] of the layout, one row of tiles after the other."""
    size, stride = options.tile_px, options.stride_px or options.tile_px
    sources = {k: s for k, s in place.sources.items() if k == key or k not in PRODUCTS}
    with ExitStack() as stack:
        datasets = {k: stack.enter_context(open_raster(s.path)) for k, s in sources.items()}
        for row in range(rows):
            yield {
                ARRAY_OF[k]: _read(options, place, k, source, datasets[k], row * stride, size)
                for k, source in sources.items()
            }


def _read(
    options: ImportOptions, place: Place, key: str, source: Source, dataset: Any, top: int, rows: int
) -> np.ndarray:
    """Rows of one file as an array of the layout [channels, rows, width]."""
    if key == "dem":
        return read_aster(source, dataset, top, rows)
    if key == "worldcover":
        return read_worldcover(source, dataset, top, rows)
    if key == "s1":
        return read_sentinel1(source, dataset, top, rows, options.s1_pass_of.get(place.name, options.s1_pass))
    numbers = read_reflectance(source, dataset, top, rows)
    return sentinel2_array(source, remove_offset(numbers, OFFSET) if place.offsets[key] == "on" else numbers)


def _measured(source: Source, sentinel2: np.ndarray) -> float:
    """Fraction of the values of the given bands that were measured."""
    channels = [SENTINEL2_CHANNELS.index(band) for band in source.written_bands]
    return float((sentinel2[channels] != 0).mean())


def _shifted(grid: Grid, top: int, left: int, size: int) -> Grid:
    """The grid of a tile: the scene's, moved to the tile's upper left corner."""
    t = grid.transform
    return Grid(grid.crs, Affine(t.a, 0.0, t.c + left * t.a, 0.0, t.e, t.f + top * t.e), size, size)


def _tile(place: Place, key: str, number: str, grid: Grid, arrays: dict[str, np.ndarray]) -> Tile:
    """One tile with its place on Earth; number: "<row>_<column>" of the tile in its scene."""
    left, bottom, right, top = grid.bounds
    (lon,), (lat,) = to_crs(grid.crs, "EPSG:4326", [(left + right) / 2], [(bottom + top) / 2])
    extra = {
        "place": place.name,
        "files": {
            k: f"{s.path.parent.name}/{s.path.name}" for k, s in place.sources.items() if k == key or k not in PRODUCTS
        },
        "transform": list(grid.transform)[:6],
        "baseline_offset": place.offsets[key],
        "BANDS": _bands(arrays),
    }
    crs = grid.crs.to_string()
    tile_id = f"{place.name}_{PRODUCTS[key]}_{number}"
    return Tile(tile_id, PRODUCTS[key], lat, lon, place.date, arrays, crs, place.split, extra)


def _bands(arrays: dict[str, np.ndarray]) -> dict[str, list[str] | None]:
    """Bands with any measured pixel, as MMEarth's tile_info names them; None for an array without any."""
    measured = {name: [bool(plane.any()) for plane in valid_pixels(name, array)] for name, array in arrays.items()}
    seen = {name: measured.get(name, [False] * spec.channels) for name, spec in ARRAYS.items()}
    bands = {
        "sentinel2": [
            b.replace("B0", "B") for b, some in zip(SENTINEL2_CHANNELS, seen["sentinel2"], strict=True) if some
        ],
        "sentinel1_asc": [b for b in ("VV", "VH") if seen["sentinel1"][ADDRESSES[b]["ascending"].channel]],
        "sentinel1_desc": [b for b in ("VV", "VH") if seen["sentinel1"][ADDRESSES[b]["descending"].channel]],
        "aster": ["b1", "slope"] if seen["aster"][0] else [],
        "esa_worldcover": ["Map"] if seen["esa_worldcover"][0] else [],
    }
    return {name: names or None for name, names in bands.items()}
