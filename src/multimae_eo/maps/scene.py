"""A scene: rasters with a place on Earth. Several sources on one grid, read window by window, in the model's units."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import rasterio
from rasterio.warp import calculate_default_transform, transform_bounds

from multimae_eo.data.geotiff_baseline import OFFSET, Decision, Survey, decide, stated_baseline
from multimae_eo.data.geotiff_source import METRES, Grid
from multimae_eo.errors import ConfigError, DataError, GridError
from multimae_eo.maps.finding import Found, Place, look
from multimae_eo.maps.layers import Band, CubeLayer, Damage, FileLayer, ItemLayer, Layer, Window, open_file
from multimae_eo.maps.options import GridOptions, SourceOptions
from multimae_eo.modalities import MODALITIES, REFLECTANCE, Categorical, Modality

# Sen2Cor's scene classes: no data, defective, cloud shadow, clouds of medium and high probability, cirrus.
CLOUDS = (0, 1, 3, 8, 9, 10)
SCENE_CLASSES = "SCL"
_MODALITY_OF: Mapping[str, Modality] = {band: m for m in MODALITIES.values() for band in m.bands}


@dataclass
class Source:
    """One source on the scene's grid.

    layer: its bands, and last the mask if it has one; offset: what is taken off of reflectance x 10000; stated: scale
    and offset of each band as its file states them.
    """

    found: Found
    layer: Layer
    bands: tuple[str, ...]
    masked: tuple[int, ...] = ()
    offset: int = 0
    stated: tuple[tuple[float, float], ...] = ()

    def read(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """Values in the modality's unit (class codes), float32, and validity, [bands, h, w]."""
        values, valid = self.layer.read(window)
        if self.masked:
            clouds = ~valid[-1] | np.isin(values[-1], self.masked)
            values, valid = values[:-1], valid[:-1] & ~clouds
        options = self.found.options
        for i, band in enumerate(self.bands):
            modality = _MODALITY_OF[band]
            if isinstance(modality, Categorical):
                self._classes(values[i], valid[i], options.classes)
                continue
            if options.scale is not None:
                values[i] *= options.scale
            elif self.stated[i] != (1.0, 0.0):
                values[i] = values[i] * self.stated[i][0] + self.stated[i][1]
            if modality.unit == REFLECTANCE:
                valid[i] &= values[i] > 0  # DN 0 is no data in ESA's products; below it lies no DN
                if self.offset:
                    values[i] = np.maximum(values[i] - self.offset, 1)
        values[~valid] = 0
        return values, valid

    def _classes(self, codes: np.ndarray, valid: np.ndarray, table: Mapping[int, int] | None) -> None:
        if table is not None:
            given = codes.copy()
            valid &= np.isin(given, list(table))
            for code, meant in table.items():
                codes[given == code] = meant
        valid &= codes != 0


@dataclass
class Scene:
    """Bands on one grid. bands: in the order of `read`; notes: what a user should know of how they are read."""

    grid: Grid
    sources: list[Source]
    damage: Damage
    notes: list[str] = field(default_factory=list)

    @property
    def bands(self) -> tuple[str, ...]:
        return tuple(band for source in self.sources for band in source.bands)

    @property
    def dates(self) -> tuple[str, ...]:
        """The days of the images that say one."""
        return tuple(dict.fromkeys(s.found.date for s in self.sources if s.found.date is not None))

    def product_of(self, modality: Modality) -> str | None:
        """What the bands of a modality are of, as their source says."""
        for source in self.sources:
            if set(source.bands) & set(modality.bands) and source.found.product in modality.products:
                return source.found.product
        return modality.products[0] if len(modality.products) == 1 else None

    def read(self, window: Window, bands: Sequence[str] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Values float32 in the modalities' units, and validity, [bands, h, w]; beyond the grid nothing is valid.

        bands: all of these, in this order; by default those of the scene in its own.
        """
        parts = zip(*(source.read(window) for source in self.sources), strict=True)
        values, valid = (np.concatenate(part) for part in parts)
        if bands is None:
            return values, valid
        order = [self.bands.index(band) for band in bands]
        return values[order], valid[order]

    def close(self) -> None:
        for source in self.sources:
            source.layer.close()

    def describe(self) -> str:
        """Grid, and the bands of every source, one line each."""
        lines = [self.grid.describe()]
        for source in self.sources:
            name, product = source.found.name, source.found.product
            said = [
                " ".join(source.bands),
                *([product] if product else []),
                *([source.found.date] if source.found.date else []),
            ]
            said += [f"{OFFSET} taken off (baseline 04)"] * bool(source.offset) + ["masked"] * bool(source.masked)
            lines.append(f"{name}: {', '.join(said)}")
        return "\n".join([*lines, *self.notes])


def open_scene(
    sources: Mapping[str, SourceOptions | Any], wanted: Iterable[str], options: GridOptions | Grid | None = None
) -> Scene:
    """Open the bands that are wanted, as far as the sources have them.

    sources: options, or xarray data sets or STAC items that are open already, by name. Raises ConfigError for bands
    that are there twice, DataError for what cannot be read, GridError for what does not lie on the grid.
    """
    options, wanted = options or GridOptions(), list(dict.fromkeys(wanted))
    founds = []
    for name, given in sources.items():
        own = isinstance(given, SourceOptions)
        founds.append(look(name, given if own else SourceOptions(name), None if own else given))
    home: dict[str, Found] = {}
    for found in founds:
        for band in found.places:
            if band in wanted and band in home:
                raise ConfigError(f"band '{band}' is in {home[band].says} and in {found.says}; leave one out with '-'.")
            if band in wanted:
                home[band] = found
    if not home:
        there = "; ".join(f"{f.says}: {' '.join(f.places)}" for f in founds)
        raise ConfigError(f"no source has a band that is needed. Needed: {' '.join(wanted)}. Got {there}.")
    used = [f for f in founds if f in home.values()]
    grid, damage = options if isinstance(options, Grid) else grid_of(used, options, wanted), Damage()
    scene = Scene(grid, [], damage)
    for found in founds:
        if found not in used:
            scene.notes.append(f"{found.says} has nothing that the checkpoint takes ({' '.join(found.places)}).")
            continue
        part, names = overlap(found, grid), [b for b in wanted if b in found.places]
        scene.sources.append(_source(found, names, grid, part, damage, scene.notes))
    return scene


def _stated(found: Found, band: str) -> tuple[float, float]:
    """Scale and offset that a file states for a band; of reflectance from 0 to 1, those to reflectance x 10000.

    An offset is that of the processing baseline, which is then taken off with it.
    """
    place = found.places[band]
    if _MODALITY_OF[band].unit != REFLECTANCE or place.scale > 0.01:
        return place.scale, place.offset
    if place.offset:
        found.tags["offset"] = "off"
    return 10_000 * place.scale, 10_000 * place.offset


def _source(found: Found, names: Sequence[str], grid: Grid, part: Window, damage: Damage, notes: list[str]) -> Source:
    """A source on the grid; part: where it lies on it, in which its values are looked at."""
    options = found.options
    bands = [_band(name, found.places[name], options) for name in names]
    mask, masked = _mask(found)
    if found.item is not None:
        layer: Layer = ItemLayer([*bands, *mask], found.item, grid, damage)
    elif found.cube is not None:
        layer = CubeLayer([*bands, *mask], found.cube, grid, damage, options.path)
    else:
        layer = FileLayer([*bands, *mask], grid, damage)
    if SCENE_CLASSES in found.places and not masked:
        notes.append(f"{found.says} has scene classes; --source.{found.name}.mask {SCENE_CLASSES} leaves clouds out.")
    stated = tuple(_stated(found, name) for name in names)
    source = Source(found, layer, tuple(names), masked, stated=stated)
    sample = [source.read(window) for window in spread_windows(part)]
    values, valid = (np.stack(part, axis=1) for part in zip(*sample, strict=True))
    for i, name in enumerate(names):
        _check_values(found, name, values[i][valid[i]])
    optical = [i for i, name in enumerate(names) if _MODALITY_OF[name].unit == REFLECTANCE]
    if optical:
        source.offset = _offset(found, {names[i]: values[i][valid[i]] for i in optical})
    return source


def _band(name: str, place: Place, options: SourceOptions) -> Band:
    modality = _MODALITY_OF[name]
    nodata = options.nodata if options.nodata is not None else place.nodata
    zero = 0 not in modality.codes if isinstance(modality, Categorical) else modality.unit == REFLECTANCE
    if nodata is None and zero and not place.masked:  # a file with a mask of its own is believed
        nodata = 0.0
    return Band(name, place.where, place.index, isinstance(modality, Categorical), nodata)


def _mask(found: Found) -> tuple[list[Band], tuple[int, ...]]:
    options = found.options
    if options.mask is None:
        return [], ()
    place = found.places.get(options.mask) or Place(options.mask)
    if place.where == options.mask and (found.item is not None or found.cube is not None):
        raise ConfigError(f"{found.says} has no '{options.mask}' to mask with; it has {' '.join(found.places)}.")
    masked = options.masked
    if masked is None and SCENE_CLASSES not in options.mask.upper():
        raise ConfigError(f"--source.{found.name}.masked is not set: which values of '{options.mask}' mean clouds?")
    return [Band("mask", place.where, place.index, True, place.nodata)], tuple(CLOUDS if masked is None else masked)


def _check_values(found: Found, band: str, known: np.ndarray) -> None:
    """Raise DataError for numbers that look like another unit or code."""
    modality, key = _MODALITY_OF[band], f"--source.{found.name}"
    if not known.size:
        return
    if isinstance(modality, Categorical):
        strange = sorted({int(c) for c in np.unique(known)} - set(modality.codes))
        if strange and found.options.classes is None:
            codes = ", ".join(str(c) for c in modality.codes)
            raise DataError(
                f"{found.says}: {band} holds codes that have no meaning here: {', '.join(map(str, strange[:8]))}; "
                f"known: {codes}. Say what they mean: {key}.classes '{{{strange[0]}: {modality.codes[0]}, ...}}', 0 if "
                "nothing."
            )
        return
    low, high, mend = float(known.min()), float(known.max()), f"Set {key}.nodata or {key}.scale."
    if modality.unit == REFLECTANCE and high <= 2:
        raise DataError(
            f"{found.says}: expected {modality.unit}, got {low:g} to {high:g} in {band}, which looks like reflectance. "
            f"Set {key}.scale 10000."
        )
    if modality.unit == REFLECTANCE and high > 65535:
        raise DataError(
            f"{found.says}: expected {modality.unit}, got {high:g} in {band}. Set {key}.nodata or {key}.scale."
        )
    if modality.unit == "dB" and low >= 0:
        raise DataError(f"{found.says}: expected dB, got {low:g} to {high:g} in {band}, which looks like linear power.")
    if modality.unit == "dB" and low < -100:
        raise DataError(f"{found.says}: expected dB, got {low:g} to {high:g} in {band}. {mend}")
    if modality.unit == "m" and (low < -1000 or high > 9500):
        raise DataError(
            f"{found.says}: expected m, got {low:g} to {high:g} in {band}. Set {key}.nodata or {key}.scale."
        )


def _offset(found: Found, known: Mapping[str, np.ndarray]) -> int:
    """What is to be taken off: said by the options, or judged from metadata and pixels; raises ConfigError."""
    said = found.options.baseline if found.options.baseline != "auto" else found.tags.get("offset", "auto")
    if said != "auto":
        return OFFSET if said == "on" else 0
    darkest = {band: int(np.percentile(values, 1)) for band, values in known.items() if values.size}
    if darkest:
        largest = int(max(values.max(initial=0) for values in known.values()))
        decision = decide(found.product or "L2A", found.tags, Survey(darkest, largest))
    elif (stated := stated_baseline(found.tags)) is not None:
        return OFFSET if stated[1] >= 4 else 0
    else:
        decision = Decision("undecided", "no tag names the baseline, and no pixel that was looked at is measured")
    if decision.offset == "undecided":
        raise ConfigError(
            f"{found.says}: whether its values carry the +{OFFSET} of processing baseline 04 cannot be told: "
            f"{decision.why}. Say it: --source.{found.name}.offset on (images since 2022 as ESA delivers them) or off."
        )
    return OFFSET if decision.offset == "on" else 0


def spread_windows(part: Window, number: int = 5, edge: int = 64) -> list[Window]:
    """Small windows spread over a part of a grid."""
    tops, lefts = (
        sorted({first + int(x) for x in np.linspace(0, max(0, length - edge), number)})
        for first, length in ((part.top, part.height), (part.left, part.width))
    )
    return [Window(top, left, edge, edge) for top in tops for left in lefts]


def grid_of(founds: Sequence[Found], options: GridOptions, wanted: Iterable[str]) -> Grid:
    """The grid of a scene: of 10 m pixels, north up, in metres."""
    if options.like is not None:
        with open_file(options.like) as dataset:
            grid = Grid(dataset.crs, dataset.transform, dataset.height, dataset.width)
        if grid.crs is None or not is_metric(grid):
            raise GridError(f"'{options.like}': expected a north-up grid of 10 m, got {grid.describe()}.")
    else:
        native = [g for found in founds for g in _grids(found, wanted)]
        grid = next((g for g in native if is_metric(g)), None) or _warped(native[0], None)
        if options.crs is not None:
            grid = _warped(grid, _parsed(options.crs))
    return grid if options.bounds is None else _cropped(grid, options.bounds)


def _grids(found: Found, wanted: Iterable[str]) -> list[Grid]:
    """The grids that the bands of a source lie on."""
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


def is_true(crs: Any) -> bool:
    """Whether a reference system is projected, and none in which a metre is longer than one (Mercator's)."""
    return crs.is_projected and not re.search(r'PROJECTION\["(Popular_Visualisation_Pseudo_)?Mercator', crs.to_wkt())


def is_metric(grid: Grid) -> bool:
    """Whether a grid is north up with pixels of 10 x 10 m, to 1 %."""
    t, metres = grid.transform, grid.crs.linear_units_factor[1] if is_true(grid.crs) else math.nan
    return not (t.b or t.d) and all(abs(edge * metres - METRES) <= METRES / 100 for edge in (t.a, -t.e))


def _warped(grid: Grid, crs: Any) -> Grid:
    """The 10 m grid that covers another one, in a reference system, or in UTM."""
    if crs is None:
        left, bottom, right, top = transform_bounds(grid.crs, "EPSG:4326", *_outline(grid))
        zone = min(60, int(((left + right) / 2 + 180) // 6) + 1)
        crs = rasterio.crs.CRS.from_epsg((32600 if bottom + top >= 0 else 32700) + zone)
        if is_true(grid.crs) and abs(grid.crs.linear_units_factor[1] - 1) < 1e-9:
            crs = grid.crs
    transform, width, height = calculate_default_transform(
        grid.crs, crs, grid.width, grid.height, *_outline(grid), resolution=METRES
    )
    return Grid(crs, transform, height, width)


def _outline(grid: Grid) -> tuple[float, float, float, float]:
    """left, bottom, right, top of a grid that may be rotated."""
    t = grid.transform
    corners = [(x, y) for x in (0, grid.width) for y in (0, grid.height)]
    xs, ys = zip(*((t.a * x + t.b * y + t.c, t.d * x + t.e * y + t.f) for x, y in corners), strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def _parsed(crs: str) -> Any:
    try:
        found = rasterio.crs.CRS.from_user_input(crs)
    except rasterio.errors.CRSError as error:
        raise ConfigError(f"grid.crs '{crs}' is no reference system: {error}.") from error
    if not is_true(found) or abs(found.linear_units_factor[1] - 1) > 1e-9:
        raise ConfigError(f"grid.crs '{crs}' is not in metres; take the UTM zone of the scene, e.g. EPSG:32632.")
    return found


def _cropped(grid: Grid, bounds: Sequence[float]) -> Grid:
    left, bottom, right, top = bounds
    t = grid.transform
    first, above = math.floor((left - t.c) / t.a + 1e-6), math.floor((top - t.f) / t.e + 1e-6)
    last, below = math.ceil((right - t.c) / t.a - 1e-6), math.ceil((bottom - t.f) / t.e - 1e-6)
    first, above, last, below = max(first, 0), max(above, 0), min(last, grid.width), min(below, grid.height)
    if first >= last or above >= below:
        raise ConfigError(f"grid.bounds {tuple(bounds)} lie outside of the grid: {grid.describe()}.")
    transform = rasterio.Affine(t.a, t.b, t.c + first * t.a, t.d, t.e, t.f + above * t.e)
    return Grid(grid.crs, transform, below - above, last - first)


def overlap(found: Found, grid: Grid) -> Window:
    """Where a source lies on the grid, the smallest part of its bands; raises GridError where it lies beside it."""
    parts = []
    for own in _grids(found, list(found.places)):
        try:
            left, bottom, right, top = transform_bounds(own.crs, grid.crs, *_outline(own))
        except (rasterio.errors.RasterioError, ValueError):  # too far away for the grid's reference system
            left, bottom, right, top = math.inf, math.inf, -math.inf, -math.inf
        a, t = grid.bounds, grid.transform
        west, south, east, north = max(left, a[0]), max(bottom, a[1]), min(right, a[2]), min(top, a[3])
        if west >= east or south >= north:
            raise GridError(
                f"{found.says} does not overlap the scene: the scene is {grid.describe()}; the source is "
                f"{own.describe()}. Name sources of one place, or choose the grid with --grid.like or --grid.bounds."
            )
        first, last = int((west - t.c) / t.a), math.ceil((east - t.c) / t.a)
        above, below = int((north - t.f) / t.e), math.ceil((south - t.f) / t.e)
        parts.append(Window(above, first, below - above, last - first))
    return min(parts, key=lambda w: w.height * w.width)
