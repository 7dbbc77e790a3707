"""A scene: rasters with a place on Earth. Several sources on one grid, read window by window, in the model's units."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from multimae_eo.data.geotiff_baseline import OFFSET, Decision, Survey, decide, stated_baseline
from multimae_eo.data.geotiff_source import Grid
from multimae_eo.data.layout import MODALITY_OF
from multimae_eo.errors import ConfigError, DataError, MultiMAEError
from multimae_eo.maps.finding import Found, Place, look
from multimae_eo.maps.grid import grid_of, overlap
from multimae_eo.maps.layers import Band, CubeLayer, Damage, FileLayer, ItemLayer, Layer, Window
from multimae_eo.maps.options import GridOptions, SourceOptions
from multimae_eo.modalities import REFLECTANCE, Categorical, Modality, lacks
from multimae_eo.units import EIGHT_BIT, looks_like

# Sen2Cor's scene classes: no data, defective, cloud shadow, clouds of medium and high probability, cirrus.
CLOUDS = (0, 1, 3, 8, 9, 10)
SCENE_CLASSES = "SCL"
_REMEDIES = {
    "reflectance": "Set {key}.scale 10000.",
    "linear power": "Take 10 log10 of it.",
    "none of this unit": "Set {key}.nodata or {key}.scale.",
    "standardised numbers": "Give them as they were measured: the model standardises them itself.",
    EIGHT_BIT: "Only a model that was trained on such numbers can take them.",
}


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
            modality = MODALITY_OF[band]
            if isinstance(modality, Categorical):
                self._classes(values[i], valid[i], options.classes)
                continue
            above = values[i] > 0  # DN 0 is no data in ESA's products; below it lies no DN
            if options.scale is not None:
                values[i] *= options.scale
            elif self.stated[i] != (1.0, 0.0):  # as the file states
                values[i] = values[i] * self.stated[i][0] + self.stated[i][1]
            if modality.unit == REFLECTANCE:
                valid[i] &= above
                if self.offset or self.stated[i][1]:  # what an offset takes below 0 was measured all the same
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
        """What the bands of a modality are of, as their source says; raises ConfigError where a model lacks that."""
        for source in self.sources:
            said = source.found.product
            if said is None or not set(source.bands) & set(modality.bands):
                continue
            if lacks(modality, said):
                raise ConfigError(
                    f"{source.found.says} is {said}, but the model knows {modality.name} of "
                    f"{', '.join(modality.products)}. Take a scene of that; to read this one as such all the same: "
                    f"--source.{source.found.name}.product {modality.products[0]}"
                )
            if said in modality.products:
                return said
        return modality.products[0] if len(modality.products) == 1 else None

    def read(self, window: Window, bands: Sequence[str] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Values float32 in the modalities' units, and validity, [bands, h, w]; beyond the grid nothing is valid.

        bands: all of these, in this order, one that the scene lacks without a valid pixel; by default those of the
        scene in its own.
        """
        parts = zip(*(source.read(window) for source in self.sources), strict=True)
        values, valid = (np.concatenate(part) for part in parts)
        if bands is None:
            return values, valid
        there = {band: i for i, band in enumerate(self.bands)}
        order = [there.get(band, 0) for band in bands]
        lacking = [band not in there for band in bands]
        values, valid = values[order], valid[order]
        values[lacking], valid[lacking] = 0, False
        return values, valid

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
    sources: Mapping[str, SourceOptions | Any],
    wanted: Iterable[str],
    options: GridOptions | Grid | None = None,
    damage: Damage | None = None,
) -> Scene:
    """Open the bands that are wanted, as far as the sources have them.

    sources: options, or xarray data sets or STAC items that are open already, by name; damage: where what cannot be
    read is noted, if not in the scene's own. Raises ConfigError for bands that are there twice, DataError for what
    cannot be read, GridError for what does not lie on the grid.
    """
    try:
        return _opened(
            sources, list(dict.fromkeys(wanted)), options or GridOptions(), Damage() if damage is None else damage
        )
    except MultiMAEError:
        raise
    except Exception as error:  # a damaged file may state a reference system that makes PROJ raise nearly anything
        names = ", ".join(f"'{name}'" for name in sources)
        raise DataError(f"the sources {names} cannot be brought to one grid, one may be damaged: {error}.") from error


def _opened(
    sources: Mapping[str, SourceOptions | Any],
    wanted: Sequence[str],
    options: GridOptions | Grid,
    damage: Damage | None,
) -> Scene:
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
    grid = options if isinstance(options, Grid) else grid_of(used, options, wanted)
    damage = Damage() if damage is None else damage
    scene = Scene(grid, [], damage)
    for found in founds:
        if found not in used:
            scene.notes.append(f"{found.says} has nothing that the checkpoint takes ({' '.join(found.places)}).")
            continue
        part, names = overlap(found, grid), [b for b in wanted if b in found.places]
        scene.sources.append(_source(found, names, grid, part, damage, scene.notes))
    return scene


def stated_of(found: Found, band: str) -> tuple[float, float]:
    """Scale and offset that a file states for a band; of reflectance from 0 to 1, those to reflectance x 10000.

    An offset of reflectance is that of the processing baseline, unless the options say whether it is in the values.
    """
    place, options = found.places[band], found.options
    if options.scale is not None:
        return 1.0, 0.0
    if MODALITY_OF[band].unit != REFLECTANCE:
        return place.scale, place.offset
    factor = 1 if place.scale > 0.01 else 10_000
    if options.baseline != "auto":
        return factor * place.scale, 0.0
    if place.offset:
        found.tags["offset"] = "off"
    return factor * place.scale, factor * place.offset


def _source(found: Found, names: Sequence[str], grid: Grid, part: Window, damage: Damage, notes: list[str]) -> Source:
    """A source on the grid; part: where it lies on it, in which its values are looked at."""
    options = found.options
    for name in names:
        _check_classes(found, MODALITY_OF[name])
    mask, masked = _mask(found)
    layer = layer_of(found, names, grid, damage, mask)
    if SCENE_CLASSES in found.places and not masked:
        notes.append(f"{found.says} has scene classes; --source.{found.name}.mask {SCENE_CLASSES} leaves clouds out.")
    stated = tuple(stated_of(found, name) for name in names)
    source = Source(found, layer, tuple(names), masked, stated=stated)
    sample = [source.read(window) for window in spread_windows(part)]
    values, valid = (np.stack(part, axis=1) for part in zip(*sample, strict=True))
    if masked and not valid.any():
        notes.append(
            f"{found.says}: its mask '{options.mask}' leaves no pixel of those that were looked at. Its values "
            f"{', '.join(map(str, masked))} mean clouds, and its no-data value means that nothing is known."
        )
    for i, name in enumerate(names):
        known, classes = values[i][valid[i]], isinstance(MODALITY_OF[name], Categorical)
        guess = looks_like(MODALITY_OF[name], known) if known.size else None
        if guess not in (None, EIGHT_BIT) and not (classes and options.classes is not None):
            raise DataError(f"{found.says}: {misfit(found, name, known, str(guess))}")
    optical = [i for i, name in enumerate(names) if MODALITY_OF[name].unit == REFLECTANCE]
    if optical:
        source.offset = _offset(found, {names[i]: values[i][valid[i]] for i in optical})
    return source


def _check_classes(found: Found, modality: Modality) -> None:
    """Raise ConfigError where codes are said to mean what is no class."""
    if not isinstance(modality, Categorical):
        return
    strange = sorted({*(found.options.classes or {}).values()} - {0, *modality.codes})
    if strange:
        raise ConfigError(
            f"{found.says}: --source.{found.name}.classes names {', '.join(map(str, strange))}, which is no class of "
            f"{modality.name}; its classes are {', '.join(map(str, modality.codes))}, and 0 is none."
        )


def layer_of(
    found: Found, names: Sequence[str], grid: Grid, damage: Damage, mask: Sequence[Band] = ()
) -> FileLayer | CubeLayer | ItemLayer:
    """Some bands of a source, and what masks them, on a grid; values as the source has them."""
    bands = [*(_band(name, found.places[name], found.options) for name in names), *mask]
    if found.item is not None:
        return ItemLayer(bands, found.item, grid, damage)
    if found.cube is not None:
        return CubeLayer(bands, found.cube, grid, damage, found.options.path)
    return FileLayer(bands, grid, damage)


def _band(name: str, place: Place, options: SourceOptions) -> Band:
    modality = MODALITY_OF.get(name)
    nodata = options.nodata if options.nodata is not None else place.nodata
    optical = modality is not None and modality.unit == REFLECTANCE
    zero = 0 not in modality.codes if isinstance(modality, Categorical) else optical
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


def misfit(found: Found, band: str, known: np.ndarray, guess: str) -> str:
    """In words what is wrong with numbers that look like something else than the unit or codes, and how to mend it."""
    modality, key = MODALITY_OF[band], f"--source.{found.name}"
    if isinstance(modality, Categorical):
        strange = [f"{c:g}" for c in sorted({float(c) for c in np.unique(known)} - set(modality.codes))]
        return (
            f"{band} holds codes that have no meaning here: {', '.join(strange[:8])}; known: "
            f"{', '.join(map(str, modality.codes))}. Say what they mean: {key}.classes "
            f"'{{{strange[0]}: {modality.codes[0]}, ...}}', 0 if nothing."
        )
    span = f"{float(known.min()):g} to {float(known.max()):g}"
    remedy = _REMEDIES[guess].format(key=key)
    return f"expected {modality.unit}, got {span} in {band}, which looks like {guess}. {remedy}"


def offset_of(found: Found, known: Mapping[str, np.ndarray]) -> Decision:
    """Whether values of reflectance x 10000 carry the offset: stated, or judged from metadata and pixels."""
    said = found.options.baseline if found.options.baseline != "auto" else found.tags.get("offset", "auto")
    if said != "auto":
        return Decision("on" if said == "on" else "off", "the source says so")
    darkest = {band: int(np.percentile(values, 1)) for band, values in known.items() if values.size}
    if darkest:
        largest = int(max(values.max(initial=0) for values in known.values()))
        return decide(found.product or ("L1C" if "B10" in known else "L2A"), found.tags, Survey(darkest, largest))
    if (stated := stated_baseline(found.tags)) is not None:
        return Decision("on" if stated[1] >= 4 else "off", f"tag {stated[0]}")
    return Decision("undecided", "no tag names the baseline, and no pixel that was looked at is measured")


def _offset(found: Found, known: Mapping[str, np.ndarray]) -> int:
    """What is to be taken off; raises ConfigError where that cannot be told."""
    decision = offset_of(found, known)
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
