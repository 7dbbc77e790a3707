"""Explains rasters as a map would read them: bands, what their numbers mean, and the command that maps them."""

from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np

from multimae_eo.data.geotiff_baseline import OFFSET
from multimae_eo.data.geotiff_source import Grid
from multimae_eo.data.layout import MODALITY_OF
from multimae_eo.errors import DataError, GridError
from multimae_eo.explain.kinds import PRODUCT, RASTERS
from multimae_eo.explain.page import amount, block, command, facts, fed, listed, page, source_name, table
from multimae_eo.maps.finding import Found, import_extra, known_band, look, place_in
from multimae_eo.maps.grid import grids_of, is_metric
from multimae_eo.maps.layers import Damage, Window, open_file
from multimae_eo.maps.options import SourceOptions
from multimae_eo.maps.scene import SCENE_CLASSES, layer_of, misfit, offset_of, spread_windows, stated_of
from multimae_eo.modalities import BANDS, MODALITIES, REFLECTANCE
from multimae_eo.units import looks_like

MOST = 32  # bands of a file that are looked at; the 400 of an imaging spectrometer are not for these models
_KINDS = {".jp2": "JPEG 2000", ".nc": "NetCDF", ".zarr": "Zarr", ".json": "STAC item", ".safe": ".SAFE"}
_SOURCES = 8  # more rasters in one folder than these are places, not sources of one scene
_COUNTED = 5000  # rasters of one folder


@dataclass
class Study:
    """One source of a scene. told: facts; rows: of its bands; words: its options in a command; usable: by a map."""

    path: Path
    found: Found
    told: list[tuple[str, str]] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    usable: bool = True

    @property
    def key(self) -> str:
        """What its options begin with."""
        return f"--source.{self.found.name}"

    @property
    def bands(self) -> list[str]:
        """The canonical bands that a modality takes."""
        return [name for name in self.found.places if name in MODALITY_OF and name in MODALITY_OF[name].bands]


def explain(path: Path, out: Path | None = None) -> str:
    """What a raster is, or a folder of them; raises DataError or ConfigError where one cannot be read."""
    sources = _sources(path)
    if not sources:
        return _places(path)
    studies = [study(source) for source in sources]
    names = [one.found.name for one in studies]
    number = amount(sum(len(one.found.places) for one in studies), "band")
    title = f"{_KINDS.get(path.suffix.lower(), 'Folder' if path.is_dir() else 'GeoTIFF')}: {number}"
    if len(sources) > 1:
        apart = len(set(names)) < len(names)
        title += f" of {len(sources)} rasters, " + (
            "some the same: each is a scene of its own" if apart else "as sources of one scene"
        )
        studies = studies[:1] if apart else studies
    told = [block(f"{one.path.name}:", facts(*one.told)) if len(sources) > 1 else facts(*one.told) for one in studies]
    rows = [row for one in studies for row in one.rows]
    bands = table(["band", "from", "type", "no data", "numbers", "for"], rows[:MOST])
    more = f"\n  and {amount(len(rows) - MOST, 'more band')}" if len(rows) > MOST else ""
    return page(title, path, *told, bands + more, facts(*fed(b for one in studies for b in one.bands)), _use(studies))


def _sources(path: Path) -> list[Path]:
    """The sources of a scene: the path, or the rasters in a folder; none where there are too many."""
    inside = sorted(p for p in path.iterdir() if p.suffix.lower() in RASTERS) if path.is_dir() else []
    whole = path.suffix.lower() == ".zarr" or any((path / name).is_dir() for name in PRODUCT)
    if not path.is_dir() or whole or _is_one_per_band(inside):
        return [path]
    return inside if len(inside) <= _SOURCES else []


def _is_one_per_band(files: list[Path]) -> bool:
    """Whether files are called after bands; a height model beside an image is a source of its own."""
    found = [next((b for part in (p.stem, *p.stem.split("_")) if (b := known_band(part))), None) for p in files]
    named = [band for band in found if band is not None]
    optical = [band for band in named if MODALITY_OF[band].unit == REFLECTANCE]
    return len(optical) >= 3 or (len(files) > 1 and len(named) == len(files))


def study(path: Path) -> Study:
    """Look into a source and judge it; raises DataError or ConfigError where it cannot be read."""
    one = Study(path, _look(path))
    found = one.found
    otherwise = path.stem if path.stem.isidentifier() else "scene"
    found.name = source_name((MODALITY_OF[b] for b in found.places if b in MODALITY_OF), otherwise)
    one.words += ["--source", f"{found.name}={path}"]
    _tell_source(one)
    grid, sample, types = None, {}, {}
    if found.item is None:
        types = _types(found)
        try:
            grid = min(grids_of(found, found.places), key=lambda g: abs(g.transform.a))
        except GridError as error:
            one.told.append(("grid", str(error)))
            one.usable = False
    if grid is not None:
        one.told.append(("grid", grid.describe() + "; a map resamples it to 10 m" * (not is_metric(grid))))
        sample = _sample(found, grid, types)
        _tell_numbers(one, sample)
    inside = found.cube is not None or found.item is not None
    for name, place in found.places.items():
        where = place.where if inside else Path(place.where).name
        where += f", {place.index}" * (path.is_file() and len(found.places) > 1 and not inside)
        nodata = "" if place.nodata is None else f"{place.nodata:g}"
        takes = MODALITY_OF[name].name if name in one.bands else "-"
        one.rows.append([name, where, types.get(name, ""), nodata, _span(sample.get(name, np.empty(0))), takes])
    return one


def _look(path: Path) -> Found:
    """A source as a map finds it; bands that nothing names go by their numbers, of several dates the last counts."""
    end, options = path.suffix.lower(), SourceOptions(str(path))
    if path.is_file() and end in RASTERS:
        with open_file(path) as dataset:
            if dataset.count > 1 and not any(known_band(text or "") for text in dataset.descriptions):
                numbers = range(1, dataset.count + 1)
                return Found(path.stem, options, {str(i): place_in(dataset, str(path), i) for i in numbers})
    elif end in (".nc", ".zarr"):
        xarray = import_extra("xarray", "reads NetCDF and Zarr")
        how = {"engine": "zarr", "consolidated": False} if end == ".zarr" else {}
        with suppress(OSError, ValueError), xarray.open_dataset(path, **how) as cube:
            days = [str(v)[:10] for dim in ("time", "t") if dim in cube.dims for v in cube[dim].values]
            options.date = max(days) if len(days) > 1 else None
    found = look(path.stem, options)
    if path.is_dir():  # which lists its files in any order
        found.places = dict(sorted(found.places.items(), key=lambda item: [*BANDS, item[0]].index(item[0])))
    return found


def _types(found: Found) -> dict[str, str]:
    """The number type of each band."""
    if found.cube is not None:
        return {name: str(found.cube[place.where].dtype) for name, place in found.places.items()}
    types = {}
    for name, place in found.places.items():
        with open_file(place.where) as dataset:
            types[name] = str(dataset.dtypes[place.index - 1])
    return types


def _sample(found: Found, grid: Grid, types: dict[str, str]) -> dict[str, np.ndarray]:
    """Measured values of each band, in the numbers and the type of the source, from windows spread over it."""
    names, damage = list(found.places)[:MOST], Damage()
    layer = layer_of(found, names, grid, damage)
    parts = [layer.read(window) for window in spread_windows(Window(0, 0, grid.height, grid.width), 3, 256)]
    layer.close()
    if damage:
        raise DataError(f"{found.says} is truncated or damaged: {damage.describe()}.")
    values, valid = (np.concatenate([p.reshape(len(names), -1) for p in both], 1) for both in zip(*parts, strict=True))
    return {name: v[known].astype(types[name]) for name, v, known in zip(names, values, valid, strict=True)}


def _span(values: np.ndarray) -> str:
    return f"{values.min():.4g} to {values.max():.4g}" if values.size else ""


def _tell_source(one: Study) -> None:
    """What the source says of itself, and what has to be said in its place."""
    found = one.found
    unknown = [name for name in found.places if name not in MODALITY_OF and name != SCENE_CLASSES]
    if unknown:
        say = f"name all in their order if one is: {one.key}.bands '[B02, B03, ...]', '-' for one to leave out"
        one.told.append(("unknown", f"{listed(unknown, 6)}: not named like a band of the package, so left out; {say}"))
    if found.options.date is not None:
        one.told.append(("date", f"{found.date}, the last of several; another one with {one.key}.date"))
        one.words += [f"{one.key}.date", found.options.date]
    elif found.date is not None:
        one.told.append(("date", found.date))
    products = [m.products for m in MODALITIES.values() if set(m.bands) & set(one.bands)]
    if found.product is not None:
        one.told.append(("product", found.product))
    elif products and len(products[0]) > 1:
        choice = f"{one.key}.product {' or '.join(products[0])}"
        one.told.append(("product", f"not stated; the statistics of the model depend on it: {choice}"))
        one.words += [f"{one.key}.product", "_OR_".join(products[0])]
    if SCENE_CLASSES in found.places:
        one.told.append(("clouds", f"{one.key}.mask {SCENE_CLASSES} leaves them out, by the scene classes"))


def _tell_numbers(one: Study, sample: dict[str, np.ndarray]) -> None:
    """What the numbers of each unit are, as far as they are looked at, and whether they carry the offset."""
    groups: dict[str, dict[str, np.ndarray]] = {}
    for name, values in sample.items():
        if name in MODALITY_OF:
            scale, offset = stated_of(one.found, name)
            own = values if (scale, offset) == (1.0, 0.0) else values * scale + offset
            groups.setdefault(MODALITY_OF[name].unit, {})[name] = own
    for unit, bands in groups.items():
        values, names = np.concatenate(list(bands.values())), " ".join(bands)
        guess = looks_like(MODALITY_OF[next(iter(bands))], values) if values.size else "nothing"
        if guess is None:
            one.told.append(("numbers", f"{unit}: {_span(values)} in {names}"))
        elif not values.size:
            one.told.append(("numbers", f"no pixel of {names} that was looked at is measured"))
        else:
            one.told.append(("numbers", misfit(one.found, next(iter(bands)), values, guess)))
            one.words += [f"{one.key}.scale", "10000"] * (guess == "reflectance")
            one.usable &= guess == "reflectance"
        if unit == REFLECTANCE and guess in (None, "reflectance"):
            factor = 1 if guess is None else 10_000
            _tell_offset(one, {band: factor * own[own > 0] for band, own in bands.items()})


def _tell_offset(one: Study, optical: dict[str, np.ndarray]) -> None:
    """Whether values of reflectance x 10000 carry the +1000 of processing baseline 04, judged as a map would."""
    decision = offset_of(one.found, optical)
    stated = any(stated_of(one.found, band)[1] for band in optical)
    said = {
        "on": f"the numbers carry it, and it is taken off: {decision.why}",
        "off": "the file's numbers carry it: the offset that it states takes it off"
        if stated
        else f"the numbers do not carry it: {decision.why}",
        "undecided": f"cannot be told: {decision.why}. Say {one.key}.offset on (as ESA delivers since 2022) or off",
    }
    one.told.append((f"+{OFFSET}", said[decision.offset]))
    as_mapped = offset_of(one.found, {band: values for band, values in optical.items() if band in one.bands})
    if decision.offset == "undecided":
        one.words += [f"{one.key}.offset", "ON_OR_OFF"]
    elif as_mapped.offset != decision.offset:  # a map looks at fewer bands
        one.words += [f"{one.key}.offset", decision.offset]


def _use(studies: list[Study]) -> str:
    """The commands that map a scene of some sources, or what keeps them from it."""
    words = [word for one in studies if one.usable and one.bands for word in one.words]
    if not words:
        return "It cannot be mapped as it is; what is to be mended stands above (docs/maps.md)."
    embed = command("embed", "CHECKPOINT", *words, "--out", "embeddings.tif")
    last = "multimae-eo predict FINETUNED --out map.tif takes the same sources."
    return block("Embed it with a checkpoint that takes these, or map it with a fine-tuned one:", embed, last)


def _places(path: Path) -> str:
    """Many rasters."""
    found = (p for below in ("*", "*/*") for p in path.glob(below) if p.suffix.lower() in RASTERS)
    files = sorted(islice(found, _COUNTED))
    number = f"{amount(len(files), 'raster')} in {amount(len({p.parent for p in files}), 'folder')}"
    title = "Make tiles of them (docs/import.md), fine-tune on them (docs/own_geotiffs.md), or look at one:"
    make = command("import", "--config", "IMPORT.yaml", "--root", path, "--out", "data")
    return page(
        f"{'At least ' * (len(files) == _COUNTED)}{number}", path, block(title, make, command("inspect", files[0]))
    )
