"""Looks into one source of a scene: its bands with a sample of their values, and where it lies; reads few pixels."""

import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from multimae_eo.data.layout import SENTINEL2_CHANNELS
from multimae_eo.errors import DataError
from multimae_eo.maps.finding import Found, Place, import_extra, known_band, look
from multimae_eo.maps.grid import keeps_lengths
from multimae_eo.maps.layers import Window, open_file
from multimae_eo.maps.options import SourceOptions
from multimae_eo.maps.scene import spread_windows
from multimae_eo.modalities import BANDS, MODALITIES, REFLECTANCE

# Up to so many pixels all of a band is read; else an overview with edges of at least SMALLEST, or windows.
WHOLE = 1 << 20
SMALLEST = 256
MOST = 32  # bands of a file that are sampled; the 400 of an imaging spectrometer are not for these models
METRES_PER_DEGREE = 111_320  # of latitude

# The orders in which files hold bands of Sentinel-2 without naming them.
USUAL = tuple(sorted(SENTINEL2_CHANNELS, key=lambda band: float(band[1:].replace("8A", "8.5"))))
EUROSAT = (*(band for band in USUAL if band != "B8A"), "B8A")
_WITHOUT: dict[int, tuple[str, ...]] = {13: (), 12: ("B10",), 10: ("B01", "B09", "B10")}
_FEW: dict[int, tuple[str, ...]] = {4: ("B02", "B03", "B04", "B08"), 3: ("B04", "B03", "B02")}


@dataclass
class Seen:
    """One band: what its source calls it, the canonical band that it is (or none), and what was read of it.

    values: a sample of the measured ones, of any type, [n]; pixel: edge in units of the reference system.
    """

    label: str
    band: str | None
    dtype: str = ""
    nodata: float | None = None
    scale: float = 1.0
    offset: float = 0.0
    values: np.ndarray = field(default_factory=lambda: np.empty(0))
    pixel: float = math.nan


@dataclass
class Source:
    """One source: its bands, and where it lies.

    kind: of its file. found: as the maps find it; none where they cannot, because nothing names its bands. assumed: why
    the bands are taken for what they are, where the file does not say it. transform: affine, as rasterio's. days: of
    its time steps.
    """

    path: Path
    kind: str
    found: Found | None = None
    bands: list[Seen] = field(default_factory=list)
    assumed: str = ""
    width: int = 0
    height: int = 0
    crs: "Reference | None" = None
    transform: Any = None
    days: list[str] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """The canonical bands that it has."""
        return [seen.band for seen in self.bands if seen.band is not None]


def look_into(path: Path) -> Source:
    """One source with a sample of its values; raises DataError or ConfigError where it cannot be read."""
    end = path.suffix.lower()
    if end in (".nc", ".zarr"):
        return _cube(path, "Zarr" if end == ".zarr" else "NetCDF")
    if end == ".json":
        source = Source(path, "STAC item", look("source", SourceOptions(str(path))))
        assert source.found is not None
        source.bands = [Seen(place.where, _canonical(name)) for name, place in source.found.places.items()]
        return source
    if path.is_dir():
        return _folder(path)
    return _file(path)


def _canonical(name: str) -> str | None:
    return name if name in BANDS else None


def _file(path: Path) -> Source:
    source = Source(path, "JPEG 2000" if path.suffix.lower() == ".jp2" else "GeoTIFF")
    with open_file(path) as dataset:
        source.width, source.height = dataset.width, dataset.height
        source.crs, source.transform = _reference(dataset.crs), dataset.transform
        labels = [text or "" for text in dataset.descriptions]
        indexes = list(range(1, dataset.count + 1))
        samples = sample(dataset, indexes[:MOST], path) + [np.empty(0)] * (dataset.count - MOST)
        types, colours = dataset.dtypes, [colour.name for colour in dataset.colorinterp]
    names, source.assumed = _names(labels, samples, colours, path)
    if names is not None:
        options = SourceOptions(str(path), bands=list(names)) if source.assumed else SourceOptions(str(path))
        source.found = look(path.stem, options)
    places = source.found.places if source.found is not None else {}
    for index, label in enumerate(labels, 1):
        name, place = next(((n, p) for n, p in places.items() if p.index == index), (None, Place(str(path), index)))
        seen = Seen(
            label or f"{index}", _canonical(name) if name else None, types[index - 1], values=samples[index - 1]
        )
        seen.nodata, seen.scale, seen.offset = place.nodata, place.scale, place.offset
        seen.pixel = abs(source.transform.a)
        source.bands.append(seen)
    return source


def _names(
    labels: Sequence[str], samples: Sequence[np.ndarray], colours: Sequence[str], path: Path
) -> tuple[Sequence[str] | None, str]:
    """The bands of a file, none where nothing tells them; and the reason where the file itself does not."""
    if any(known_band(label) for label in labels):
        return labels, ""
    if len(labels) == 1:  # it is called like its file, or like the folder
        home = path.absolute().parent.name
        if known_band(path.stem):
            return [path.stem], ""
        return ([home], f"the folder is called {home}") if known_band(home) else (None, "")
    if colours[:3] == ["red", "green", "blue"] and len(labels) == 3:
        return ("B04", "B03", "B02"), "they are marked as red, green and blue"
    if len(labels) == 2 and all(v.dtype.kind == "f" and v.size and np.median(v) < 0 for v in samples):
        # A surface sends back more of the polarisation that came in than of the other.
        names = ("VV", "VH") if np.median(samples[0]) >= np.median(samples[1]) else ("VH", "VV")
        return names, "two bands of dB, of which VV is the stronger one"
    return usual_order([float(np.median(v)) if v.size else math.nan for v in samples])


def usual_order(medians: Sequence[float]) -> tuple[Sequence[str] | None, str]:
    """The bands that so many channels of Sentinel-2 usually are, and why; none for any other number.

    Of 13, the darkest by far is the cirrus band B10; in EuroSAT, whose last band is B8A, it is the tenth.
    """
    count = len(medians)
    if count in _FEW:
        return _FEW[count], f"the usual order of {count} bands of Sentinel-2"
    if count not in _WITHOUT:
        return None, ""
    darkest = int(np.argmin(np.nan_to_num(medians, nan=math.inf)))
    if count == 13 and darkest == EUROSAT.index("B10"):
        return EUROSAT, "channel 10 is the darkest, so it is B10; this is the order of EuroSAT"
    names = tuple(band for band in USUAL if band not in _WITHOUT[count])
    why = f"the usual order of {count} bands of Sentinel-2"
    if count == 13 and darkest == names.index("B10"):
        why += "; channel 11 is the darkest, as B10 has to be"
    return names, why


def sample(dataset: Any, indexes: list[int], path: Path) -> list[np.ndarray]:
    """Measured values of some bands of an open file, [n] each: of all pixels, an overview, or windows spread over it.

    What a file states as no data, or masks, does not count, and numbers that are not finite never do.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # NaN in a mask
            parts = [dataset.read(indexes, masked=True, **how) for how in _parts(dataset, len(indexes))]
    except Exception as error:
        if type(error).__module__.split(".")[0] != "rasterio":
            raise
        raise DataError(f"'{path}' cannot be read, it is truncated or damaged ({error.__cause__ or error}).") from error
    found = []
    for i in range(len(indexes)):
        flat = np.concatenate([part[i].compressed() for part in parts])
        found.append(flat[np.isfinite(flat)] if flat.dtype.kind == "f" else flat)
    return found


def _parts(dataset: Any, bands: int) -> Iterator[dict[str, Any]]:
    """What is read of some bands of a file, as arguments of rasterio's `read`."""
    height, width = dataset.height, dataset.width
    factors = [f for f in dataset.overviews(1) if min(height, width) / f >= SMALLEST]
    if height * width <= WHOLE:
        yield {}
    elif factors:
        yield {"out_shape": (bands, height // max(factors), width // max(factors))}
    else:
        for window in spread_windows(Window(0, 0, height, width)):
            rows, columns = (window.top, window.top + window.height), (window.left, window.left + window.width)
            yield {"window": (rows, columns)}


def _folder(path: Path) -> Source:
    """One file per band; the finest says where the folder lies."""
    source = Source(path, ".SAFE" if path.suffix == ".SAFE" else "Folder of band files")
    source.found = look(path.stem, SourceOptions(str(path)))
    finest = math.inf
    for name, place in source.found.places.items():
        with open_file(place.where) as dataset:
            seen = Seen(Path(place.where).name, _canonical(name), dataset.dtypes[0], place.nodata)
            seen.values = sample(dataset, [1], Path(place.where))[0]
            seen.pixel, seen.scale, seen.offset = abs(dataset.transform.a), place.scale, place.offset
            if seen.pixel < finest:
                finest, source.width, source.height = seen.pixel, dataset.width, dataset.height
                source.crs, source.transform = _reference(dataset.crs), dataset.transform
        source.bands.append(seen)
    source.bands.sort(key=lambda seen: USUAL.index(seen.band) if seen.band in USUAL else len(USUAL))
    return source


def _cube(path: Path, kind: str) -> Source:
    try:
        source = Source(path, kind, days=_days(path))
        date = source.days[-1] if len(source.days) > 1 else None
        source.found = look(path.stem, SourceOptions(str(path), date=date))
    except (KeyError, RuntimeError) as error:  # what HDF5 and Zarr make of damaged metadata
        raise DataError(f"'{path}' cannot be read as {kind}, it is damaged: {error}.") from error
    cube = source.found.cube
    if not source.found.places:
        raise DataError(f"'{path}' has no variable over x and y; it holds {', '.join(map(str, cube)) or 'nothing'}.")
    source.height, source.width = (cube.sizes[dim] for dim in cube.odc.spatial_dims)
    box = cube.odc.geobox
    if box is not None and box.crs is not None:
        source.transform, source.crs = box.affine, _cube_reference(box.crs)
    for name, place in source.found.places.items():
        seen = Seen(
            place.where, _canonical(name), str(cube[place.where].dtype), place.nodata, place.scale, place.offset
        )
        seen.values = _cube_sample(cube, place, (source.height, source.width))
        seen.pixel = abs(source.transform.a) if source.transform is not None else math.nan
        source.bands.append(seen)
    cube.close()
    return source


def _days(path: Path) -> list[str]:
    """The days of the time steps of a data set; none where it has no time."""
    xarray = import_extra("xarray", "reads NetCDF and Zarr")
    how = {"engine": "zarr", "consolidated": False} if path.suffix.lower() == ".zarr" else {}
    with suppress(OSError, ValueError), xarray.open_dataset(path, **how) as cube:
        return [str(v)[:10] for d in ("time", "t") if d in cube.dims and d in cube.coords for v in cube[d].values]
    return []


def _cube_sample(cube: Any, place: Place, size: tuple[int, int]) -> np.ndarray:
    """Measured values of a variable [n]."""
    (height, width), (down, right) = size, cube.odc.spatial_dims
    windows = [Window(0, 0, height, width)] if height * width <= WHOLE else spread_windows(Window(0, 0, *size), 3)
    try:
        parts = [
            cube[place.where]
            .isel({down: slice(w.top, w.top + w.height), right: slice(w.left, w.left + w.width)})
            .values
            for w in windows
        ]
    except (OSError, RuntimeError) as error:
        raise DataError(f"'{place.where}' cannot be read, the data set is damaged: {error}.") from error
    flat = np.concatenate([part.ravel() for part in parts])
    flat = flat[np.isfinite(flat)] if flat.dtype.kind == "f" else flat
    return flat if place.nodata is None else flat[flat != place.nodata]


def is_reflectance(band: str | None) -> bool:
    """Whether a band is one of Sentinel-2's."""
    return band in SENTINEL2_CHANNELS


def modality_of(band: str | None) -> str:
    """The modality that takes a band; none for those that no modality does."""
    return next((name for name, m in MODALITIES.items() if band in m.bands), "")


def unit_of(band: str) -> str:
    """The package's unit of a band."""
    name = modality_of(band)
    return MODALITIES[name].unit if name else REFLECTANCE


@dataclass(frozen=True)
class Reference:
    """A coordinate reference system.

    name: its code and name; metres: how long its unit is, NaN of degrees; true: whether a metre is one on the ground.
    """

    name: str
    metres: float
    true: bool


def _reference(crs: Any) -> Reference | None:
    """Of rasterio's."""
    if crs is None:
        return None
    match = re.match(r'\w+\["([^"]+)"', crs.to_wkt())
    factor = crs.linear_units_factor[1] if crs.is_projected else math.nan
    return Reference(_named(crs.to_epsg(), match[1] if match else "no name"), factor, keeps_lengths(crs))


def _cube_reference(crs: Any) -> Reference:
    """Of odc-geo's, which wraps pyproj's."""
    own = crs.proj
    factor = own.axis_info[0].unit_conversion_factor if own.is_projected else math.nan
    return Reference(_named(crs.to_epsg(), own.name), factor, bool(own.is_projected) and not _MERCATOR.search(own.name))


_MERCATOR = re.compile(r"(Pseudo-|World )Mercator")


def _named(code: int | None, name: str) -> str:
    return f"EPSG:{code} ({name})" if code is not None else name


def pixels_in_words(source: Source, sizes: Sequence[float]) -> str:
    """The edges of pixels in metres; of those in degrees about how many the finest is, at its place."""
    assert source.crs is not None
    if math.isfinite(source.crs.metres):
        text = ", ".join(f"{metres(source, pixel):.4g} m" for pixel in sizes)
        return text + ("" if source.crs.true else " of Mercator, which are shorter on the ground")
    middle = source.transform.f + source.transform.e * source.height / 2
    north, east = (sizes[0] * METRES_PER_DEGREE * f for f in (1, math.cos(math.radians(middle))))
    finest = "the finest " * (len(sizes) > 1)
    return f"{', '.join(f'{s:.4g}' for s in sizes)} degrees ({finest}about {east:.3g} x {north:.3g} m here)"


def metres(source: Source, pixel: float) -> float:
    """The edge of a pixel in metres, NaN where it is not known."""
    return pixel * source.crs.metres if source.crs is not None else math.nan
