"""What a source holds: bands by name in a file, a folder, NetCDF, Zarr or a STAC item, and what is said of it."""

import math
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rasterio.enums import MaskFlags

from multimae_eo.data.alone import check_cube
from multimae_eo.data.geotiff_source import SKIPPED
from multimae_eo.data.layout import SENTINEL2_CHANNELS
from multimae_eo.documents import read_json
from multimae_eo.errors import ConfigError, DataError, MultiMAEError, UnknownNameError, shown
from multimae_eo.maps.layers import open_file
from multimae_eo.maps.options import SourceOptions, checked
from multimae_eo.modalities import MODALITIES, canonical_band

FILES = (".tif", ".tiff", ".jp2")
_PROTOCOLS = ("http", "https", "s3", "gs", "az")  # of rasters that are no files here
_PRODUCTS = tuple(dict.fromkeys(p for m in MODALITIES.values() for p in m.products))


@dataclass(frozen=True)
class Place:
    """Where one band is: a file and its number from 1, or a variable of a data set.

    nodata, scale, offset: as the place states them; masked: whether it has a mask of its own.
    """

    where: str
    index: int = 1
    nodata: float | None = None
    scale: float = 1.0
    offset: float = 0.0
    masked: bool = False


@dataclass
class Found:
    """One source, looked into.

    places: of bands by canonical name, and of other layers (scene classes) under their own names; tags: what it states,
    names in lower case; cube, item: an opened xarray data set, or a STAC item.
    """

    name: str
    options: SourceOptions
    places: dict[str, Place]
    tags: dict[str, str] = field(default_factory=dict)
    cube: Any = None
    item: Any = None

    @property
    def product(self) -> str | None:
        """What the values are of, as the options, the name, the path or the tags say."""
        if self.options.product is not None:
            return self.options.product
        path = Path(self.options.path)
        said = [self.name, path.name, path.parent.name, *(self.tags.get(k, "") for k in ("product", "collection"))]
        for text in said:
            for product in _PRODUCTS:
                if re.search(rf"(?<![A-Za-z0-9])(S2|s2|MSI)?[_-]?({product}|{product.lower()})(?![A-Za-z0-9])", text):
                    return product
        return None

    @property
    def date(self) -> str | None:
        """The day of the image, YYYY-MM-DD, where anything says so."""
        if self.options.date is not None:
            return self.options.date
        for key in ("datetime", "date", "acquisition_date", "sensing_time"):
            if match := re.match(r"\d{4}-\d\d-\d\d", self.tags.get(key, "")):
                return match.group()
        for text in (self.options.path, *(place.where for place in self.places.values())):
            if day := day_in(Path(text).name):
                return day
        return None

    def path_of(self, place: str) -> str:
        """The file or address of one of its places."""
        return str(self.item.assets[place].get_absolute_href()) if self.item is not None else place

    @property
    def says(self) -> str:
        """The source in a message."""
        return f"source '{self.name}' ('{self.options.path}')"


def day_in(text: str) -> str | None:
    """YYYY-MM-DD, where a name holds a day like 20230615 or 20230615T101601."""
    match = re.search(r"(?<!\d)(20\d\d)([01]\d)([0-3]\d)(T\d{6}|(?!\d))", text)
    return "-".join(match.groups()[:3]) if match else None


def look(name: str, options: SourceOptions, given: Any = None) -> Found:
    """Look into a source; raises DataError, ConfigError.

    given: an xarray data set or a STAC item that is open already.
    """
    options = checked(name, options)
    found = Found(name, options, {})
    try:
        return _looked(found, Path(options.path), given)
    except MultiMAEError:
        raise
    except Exception as error:  # libraries raise nearly anything where a file is damaged
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{found.says} cannot be read, it may be damaged: {why}.") from error


def _looked(found: Found, path: Path, given: Any) -> Found:
    options = found.options
    if given is not None and not hasattr(given, "data_vars"):
        return _item(found, given)
    if given is not None or path.suffix.lower() in (".nc", ".zarr"):
        return _cube(found, given)
    if options.path.partition("://")[0].lower() not in _PROTOCOLS and not path.exists():
        raise DataError(
            f"{found.says} does not exist; expected a raster, a folder of them, or a STAC item. Check the path."
        )
    if path.suffix.lower() == ".json":
        return _item(found, _read_item(path))
    if path.is_dir():
        return _folder(found, path)
    return _file(found, options.path)


def _file(found: Found, path: str) -> Found:
    names = found.options.bands
    with open_file(path) as dataset:
        stated = [d or "" for d in dataset.descriptions]
        if names is None and dataset.count == 1 and known_band(stated[0]) is None:
            names = [found.name if known_band(found.name) else Path(path).stem]
        if names is None and not any(known_band(n) for n in stated):
            raise DataError(
                f"{found.says} does not describe its {dataset.count} bands; name them in file order: "
                f"--source.{found.name}.bands '[B02, B03, ...]', '{SKIPPED}' for one to leave out."
            )
        names = names if names is not None else stated
        if len(names) != dataset.count:
            raise ConfigError(
                f"{found.says}: bands names {len(names)} ({', '.join(names)}), but it has {dataset.count}. Name "
                f"them all, '{SKIPPED}' for one to leave out."
            )
        for index, text in enumerate(names, 1):
            if text != SKIPPED:
                _add(found, text, place_in(dataset, path, index), found.options.bands is not None)
        found.tags |= {k.lower(): v for space in ("IMAGERY", None) for k, v in dataset.tags(ns=space).items()}
    return found


def place_in(dataset: Any, path: str, index: int) -> Place:
    """A band of an open file, and what the file states of it."""
    own = {MaskFlags.per_dataset, MaskFlags.alpha} & set(dataset.mask_flag_enums[index - 1])
    at = index - 1
    return Place(path, index, dataset.nodatavals[at], dataset.scales[at], dataset.offsets[at], bool(own))


def _only(found: Found) -> None:
    """Of bands that are called by their files or assets, leave out those that the options do not name."""
    if found.options.bands is not None:
        wanted = {canonical_band(name) for name in found.options.bands if name not in (SKIPPED, "SCL")}
        missing = wanted - found.places.keys()
        if missing:
            raise ConfigError(f"{found.says} has no {', '.join(sorted(missing))}; it has {' '.join(found.places)}.")
        found.places = {n: p for n, p in found.places.items() if n in wanted or n == "SCL"}


def _folder(found: Found, folder: Path) -> Found:
    """One file per band; of a band in several resolutions the finest."""
    candidates: dict[str, list[tuple[float, str, Place]]] = {}
    inside = sorted(p for p in folder.rglob("*") if p.suffix.lower() in FILES and "QI_DATA" not in p.parts)
    for path in inside:
        parts = [p for p in re.split(r"[_.]", path.stem) if p]
        names = [n for p in reversed(parts) if (n := known_band(p) or (p if p == "SCL" else None))]
        if names:
            with open_file(path) as dataset:
                entry = (abs(dataset.transform.a), str(path), place_in(dataset, str(path), 1))
                candidates.setdefault(names[0], []).append(entry)
                found.tags |= {k.lower(): v for k, v in dataset.tags().items()}
    for name, several in candidates.items():
        found.places[name] = min(several, key=lambda c: c[:2])[2]
    _only(found)
    _check_one_image(found, {name: candidates[name] for name in found.places})
    if not found.places:
        raise DataError(
            f"{found.says}: expected files named after a band (..._B04_10m.jp2, B04.tif), found {len(inside)} other "
            f"rasters ({', '.join(FILES)}). Name a file instead."
        )
    if match := re.search(r"_N(\d{2})(\d{2})_", folder.name):
        found.tags.setdefault("processing_baseline", f"{match[1]}.{match[2]}")
    return found


def _check_one_image(found: Found, candidates: Mapping[str, list[tuple[float, str, Place]]]) -> None:
    """Raise ConfigError where a folder holds several files of a band, or bands of several days: they are no image."""
    for name, several in candidates.items():
        finest = min(pixel for pixel, _, _ in several)
        same = [path for pixel, path, _ in several if pixel == finest]
        if len(same) > 1:
            raise ConfigError(
                f"{found.says} has {len(same)} files of {name}: '{same[0]}', '{same[1]}'. Name the folder of one "
                "image, or leave the others out of it."
            )
    optical = {name: day_in(Path(p.where).name) for name, p in found.places.items() if name in SENTINEL2_CHANNELS}
    days = {day: name for name, day in optical.items() if day is not None}
    if len(days) > 1:
        (first, one), (second, other), *_ = sorted(days.items())
        raise ConfigError(
            f"{found.says} has bands of several days: {one} of {first}, {other} of {second}. Name the folder of one "
            "image."
        )


def _cube(found: Found, given: Any) -> Found:
    xarray = import_extra("xarray", "reads NetCDF and Zarr")
    import_extra("odc.geo.xr", "says where a data set lies")
    cube, how = given, {}
    if cube is None:
        if not Path(found.options.path).exists():
            raise DataError(f"{found.says} does not exist. Check the path.")
        check_cube(Path(found.options.path))
        try:
            if found.options.path.rstrip("/").endswith(".zarr"):
                how = {"engine": "zarr", "consolidated": False}
            cube = xarray.open_dataset(found.options.path, decode_coords="all", mask_and_scale=False, **how)
        except (OSError, ValueError) as error:
            why = str(error).splitlines()[0].rstrip(".:")
            raise DataError(
                f"{found.says} cannot be read as NetCDF or Zarr: {why}. Fetch or write it again."
            ) from error
    found.cube = _one_time(found, cube)
    found.tags |= {str(k).lower(): str(v) for k, v in cube.attrs.items()}
    dims = set(found.cube.odc.spatial_dims or ())
    variables = [str(name) for name, v in found.cube.data_vars.items() if dims and set(v.dims) == dims]
    if "engine" in how:  # a store lists its arrays in no order
        variables.sort()
    names = found.options.bands or variables
    if found.options.bands is not None and len(names) != len(variables):
        raise ConfigError(
            f"{found.says}: bands names {len(names)}, but there are {len(variables)}: {', '.join(variables)}."
        )
    for text, variable in zip(names, variables, strict=True):
        if text == SKIPPED:
            continue
        attrs = found.cube[variable].attrs | found.cube[variable].encoding
        nodata = attrs.get("_FillValue", attrs.get("nodata"))
        own = found.cube[variable].attrs  # an encoding says how values were stored that are decoded by now
        stated = float(own.get("scale_factor", 1)), float(own.get("add_offset", 0))
        place = Place(variable, 1, None if nodata is None else float(nodata), *stated)
        _add(found, text, place, found.options.bands is not None)
    return found


def _one_time(found: Found, cube: Any) -> Any:
    times = [d for d in cube.dims if d in ("time", "t")]
    if not times:
        return cube
    (time,) = times
    if found.options.date is not None:
        days = [str(v)[:10] for v in cube[time].values]
        if found.options.date not in days:
            raise ConfigError(f"{found.says}: no time step of date {found.options.date}; it has {', '.join(days)}.")
        if days.count(found.options.date) > 1:
            raise ConfigError(
                f"{found.says} has {days.count(found.options.date)} time steps on {found.options.date}; give it with "
                "one: odc.stac.load(..., groupby='solar_day')."
            )
        return cube.isel({time: days.index(found.options.date)})
    if cube.sizes[time] > 1:
        days = [str(v)[:10] for v in cube[time].values]
        raise ConfigError(
            f"{found.says} has {len(days)} time steps; choose one: --source.{found.name}.date {days[0]} to {days[-1]}."
        )
    return cube.isel({time: 0})


def _read_item(path: Path) -> Any:
    pystac = import_extra("pystac", "reads STAC items")
    content = read_json(path, DataError)
    try:
        item = pystac.Item.from_dict(content, migrate=True)
    except Exception as error:  # an item that lacks or misuses anything makes it raise nearly anything
        raise DataError(f"'{path}' is no STAC item: {shown(error)}. Expected the JSON of one, type Feature.") from error
    if not str(item.get_self_href()).startswith(("http://", "https://")):
        item.set_self_href(str(path.absolute()))
    for key, asset in item.assets.items():
        _check_href(path, key, str(asset.get_absolute_href()))
    return item


def _check_href(path: Path, key: str, href: str) -> None:
    """Assets of an item are on a server, or files in its own folder; raises DataError."""
    protocol, there, _ = href.partition("://")
    inside = Path(href).resolve().is_relative_to(path.parent.resolve())
    if protocol.lower() not in _PROTOCOLS if there else href.startswith("/vsi") or not inside:
        raise DataError(
            f"'{path}': its asset '{key}' is '{href}'; expected {', '.join(_PROTOCOLS)}, or a file in the folder of "
            "the item. Nothing of it was opened."
        )


def _item(found: Found, item: Any) -> Found:
    """Its assets by band; of a band in several resolutions the finest."""
    import_extra("odc.stac", "reads STAC items")
    found.item = item
    finest: dict[str, float] = {}
    for key, asset in item.assets.items():
        about = _about(asset)
        stated = (key, about.get("name", ""), about.get("common_name", about.get("eo:common_name", "")))
        name = next((n for s in stated if (n := known_band(s))), None)
        if name is None and re.fullmatch(r"SCL(_\d+m)?", key, re.IGNORECASE):
            name = "SCL"
        pixel = float(about.get("gsd") or about.get("raster:spatial_resolution") or 0)
        if name and pixel < finest.get(name, math.inf):
            nodata, scale, offset = (about.get(f"raster:{k}", about.get(k)) for k in ("nodata", "scale", "offset"))
            numbers = 1.0 if scale is None else float(scale), 0.0 if offset is None else float(offset)
            found.places[name] = Place(key, 1, None if nodata is None else float(nodata), *numbers)
            finest[name] = pixel
    _only(found)
    found.tags |= {str(k).lower().removeprefix("s2:"): str(v) for k, v in item.properties.items()}
    found.tags["collection"] = str(item.collection_id or "")
    if found.tags.get("platform", "").lower().startswith("sentinel-2") and "processing:version" in found.tags:
        found.tags.setdefault("processing_baseline", found.tags["processing:version"])  # STAC's newer name for it
    if str(item.properties.get("earthsearch:boa_offset_applied", "")).lower() == "true":
        found.tags.pop("processing_baseline", None)
        found.tags["offset"] = "off"
        found.places = {n: replace(p, offset=0.0) for n, p in found.places.items()}  # stated, but in the values already
    return found


def _about(asset: Any) -> dict[str, Any]:
    """What a STAC asset says of its only band, in fields of its own (STAC 1.1) or of the extensions eo and raster."""
    fields: dict[str, Any] = asset.extra_fields
    about: dict[str, Any] = {}
    for part in ("eo:bands", "bands", "raster:bands"):
        if len(several := fields.get(part, [])) == 1:  # several are a picture for people, like "visual"
            about |= several[0]
    return {**fields, **about}


def _add(found: Found, text: str, place: Place, strict: bool) -> None:
    """Take a band up; one whose name is not known only where it was asked for by the user."""
    name = canonical_band(text) if strict and text.upper() != "SCL" else known_band(text)
    if name is None and text:
        name = text
    if name:
        if name in found.places:
            raise ConfigError(f"{found.says} has two bands '{name}'.")
        found.places[name] = place


def known_band(text: str) -> str | None:
    """The canonical name of the band that a text means, also as a part of it ("S2-L2A-B02"); None if it means none."""
    with suppress(UnknownNameError):
        return canonical_band(text)
    for part in re.split(r"[:_. -]", text):
        with suppress(UnknownNameError):
            if re.search(r"\d", part):
                return canonical_band(part)
    return None


def import_extra(name: str, why: str) -> Any:
    """A module of the extra `cube`; raises ConfigError where it is not installed."""
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"{name.split('.')[0]} {why} and is not installed: pip install 'multimae-eo[maps]'."
        ) from error
