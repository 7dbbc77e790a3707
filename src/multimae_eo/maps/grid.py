"""The grid of a scene: 10 m pixels, north up, in metres; and where a source lies on it."""

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import rasterio
from rasterio.warp import calculate_default_transform, transform_bounds

from multimae_eo.data.geotiff_source import METRES, Grid
from multimae_eo.errors import ConfigError, GridError
from multimae_eo.maps.finding import Found
from multimae_eo.maps.layers import Window, open_file
from multimae_eo.maps.options import GridOptions

MERCATOR = 20_037_508.34  # x of the 180th meridian in EPSG:3857, m
Bounds = tuple[float, float, float, float]  # left, bottom, right, top


def grid_of(founds: Sequence[Found], options: GridOptions, wanted: Iterable[str]) -> Grid:
    """The grid of a scene: of 10 m pixels, north up, in metres."""
    if options.like is not None:
        with open_file(options.like) as dataset:
            grid = Grid(dataset.crs, dataset.transform, dataset.height, dataset.width)
        if grid.crs is None or not is_metric(grid):
            raise GridError(f"'{options.like}': expected a north-up grid of 10 m, got {grid.describe()}.")
    else:
        native = [g for found in founds for g in grids_of(found, wanted)]
        grid = next((g for g in native if is_metric(g)), None) or _warped(native[0], None)
        if options.crs is not None:
            grid = _warped(grid, _parsed(options.crs))
    return grid if options.bounds is None else _cropped(grid, options.bounds)


def grids_of(found: Found, wanted: Iterable[str]) -> list[Grid]:
    """The grids that some bands of a source lie on; raises GridError where it does not say where it lies."""
    if found.cube is not None:
        return [_cube_grid(found)]
    grids = []
    for where in dict.fromkeys(p.where for band, p in found.places.items() if band in wanted):
        with open_file(where if found.item is None else found.item.assets[where].get_absolute_href()) as dataset:
            if dataset.crs is None:
                raise GridError(
                    f"{found.says} has no coordinate reference system. Assign it: gdal_edit.py -a_srs EPSG:<code> FILE."
                )
            grids.append(Grid(dataset.crs, dataset.transform, dataset.height, dataset.width))
    return grids


def _cube_grid(found: Found) -> Grid:
    box = found.cube.odc.geobox
    if box is None or box.crs is None:
        raise GridError(
            f"{found.says} does not say where it lies: it has no coordinate reference system, or its x and y are not "
            "evenly spaced. Assign one: data.odc.assign_crs(32632)."
        )
    return Grid(rasterio.crs.CRS.from_wkt(box.crs.wkt), box.affine, *box.shape)


def keeps_lengths(crs: Any) -> bool:
    """Whether a reference system is projected, and none in which a metre is longer than one (Mercator's)."""
    return crs.is_projected and not re.search(r'PROJECTION\["(Popular_Visualisation_Pseudo_)?Mercator', crs.to_wkt())


def is_metric(grid: Grid) -> bool:
    """Whether a grid is north up with pixels of 10 x 10 m, to 1 %."""
    t, metres = grid.transform, grid.crs.linear_units_factor[1] if keeps_lengths(grid.crs) else math.nan
    return not (t.b or t.d) and all(abs(edge * metres - METRES) <= METRES / 100 for edge in (t.a, -t.e))


def _warped(grid: Grid, crs: Any) -> Grid:
    """The 10 m grid that covers another one, in a reference system, or in UTM."""
    if crs is None:
        left, bottom, right, top = transform_bounds(grid.crs, "EPSG:4326", *_outline(grid))
        right += 360 * (right < left)  # across the 180th meridian
        zone = int(((left + right) / 2 + 180) // 6) % 60 + 1
        crs = rasterio.crs.CRS.from_epsg((32600 if bottom + top >= 0 else 32700) + zone)
        if keeps_lengths(grid.crs) and abs(grid.crs.linear_units_factor[1] - 1) < 1e-9:
            crs = grid.crs
    transform, width, height = calculate_default_transform(
        grid.crs, crs, grid.width, grid.height, *_outline(grid), resolution=METRES
    )
    return Grid(crs, transform, height, width)


def _outline(grid: Grid) -> Bounds:
    """left, bottom, right, top of a grid that may be rotated."""
    t = grid.transform
    corners = [(x, y) for x in (0, grid.width) for y in (0, grid.height)]
    xs, ys = zip(*((t.a * x + t.b * y + t.c, t.d * x + t.e * y + t.f) for x, y in corners), strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def _parsed(crs: str) -> Any:
    try:
        found = rasterio.crs.CRS.from_user_input(crs)
    except rasterio.errors.CRSError as error:
        raise ConfigError(
            f"grid.crs '{crs}' is no reference system: {error}. Expected one such as EPSG:32632."
        ) from error
    if not keeps_lengths(found) or abs(found.linear_units_factor[1] - 1) > 1e-9:
        raise ConfigError(f"grid.crs '{crs}' is not in metres; take the UTM zone of the scene, e.g. EPSG:32632.")
    return found


def _cropped(grid: Grid, bounds: Sequence[float]) -> Grid:
    left, bottom, right, top = bounds
    t = grid.transform
    first, above = math.floor((left - t.c) / t.a + 1e-6), math.floor((top - t.f) / t.e + 1e-6)
    last, below = math.ceil((right - t.c) / t.a - 1e-6), math.ceil((bottom - t.f) / t.e - 1e-6)
    first, above, last, below = max(first, 0), max(above, 0), min(last, grid.width), min(below, grid.height)
    if first >= last or above >= below:
        raise ConfigError(
            f"grid.bounds {tuple(bounds)} lie outside of the grid: {grid.describe()}. Give ones within it."
        )
    transform = rasterio.Affine(t.a, t.b, t.c + first * t.a, t.d, t.e, t.f + above * t.e)
    return Grid(grid.crs, transform, below - above, last - first)


def overlap(found: Found, grid: Grid) -> Window:
    """Where a source lies on the grid, the smallest part of its bands; raises GridError where it lies beside it."""
    parts = []
    for own in grids_of(found, list(found.places)):
        if ends_at_meridian(own, grid):
            raise GridError(
                f"{found.says} goes on beyond the 180th meridian in {own.crs}, and so does the scene; half of it would "
                f"be lost. Bring it to a UTM zone first: gdalwarp -t_srs {grid.crs} FILE NEW."
            )
        box = _common(own, grid)
        if box is None:
            raise GridError(
                f"{found.says} does not overlap the scene: the scene is {grid.describe()}; the source is "
                f"{own.describe()}. Name sources of one place, or choose the grid with --grid.like or --grid.bounds."
            )
        (west, south, east, north), t = box, grid.transform
        first, last = int((west - t.c) / t.a), math.ceil((east - t.c) / t.a)
        above, below = int((north - t.f) / t.e), math.ceil((south - t.f) / t.e)
        parts.append(Window(above, first, below - above, last - first))
    return min(parts, key=lambda w: w.height * w.width)


def ends_at_meridian(own: Grid, grid: Grid) -> bool:
    """Whether a scene lies across the 180th meridian and a source, in degrees or Mercator's metres, too.

    GDAL would find the one side of such a source only; one of the whole Earth has both.
    """
    half = 180.0 if own.crs.is_geographic else math.inf if keeps_lengths(own.crs) else MERCATOR
    left, _, right, _ = _outline(own)
    pixel = abs(own.transform.a)
    if (left < -half - pixel) == (right > half + pixel):
        return False
    west, _, east, _ = transform_bounds(grid.crs, "EPSG:4326", *grid.bounds)
    return bool(west > east)


def _common(own: Grid, grid: Grid) -> Bounds | None:
    """What two grids cover both, in the reference system of the second; None if nothing.

    A source may cover the Earth, of which the scene's reference system only has a part: it is cropped in its own first.
    """
    try:
        there = transform_bounds(grid.crs, own.crs, *grid.bounds)
        if own.crs.is_geographic and there[0] > there[2]:  # across the 180th meridian
            there = (-180.0, there[1], 180.0, there[3])
        part = _intersection(there, _outline(own))
        return part and _intersection(transform_bounds(own.crs, grid.crs, *part), grid.bounds)
    except (rasterio.errors.RasterioError, ValueError):  # too far away for the other's reference system
        return None


def _intersection(a: Bounds, b: Bounds) -> Bounds | None:
    left, bottom, right, top = max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])
    return (left, bottom, right, top) if left < right and bottom < top else None
