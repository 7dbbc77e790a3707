"""Layers of a scene: some bands from one place, brought to the scene's grid as windows of it are read."""

import itertools
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple, Protocol

import numpy as np
import rasterio
from rasterio.enums import MaskFlags, Resampling
from rasterio.errors import RasterioError
from rasterio.transform import rowcol
from rasterio.vrt import WarpedVRT
from rasterio.warp import reproject
from rasterio.warp import transform as warp_points
from rasterio.windows import Window as RasterWindow
from rasterio.windows import transform as window_transform

from multimae_eo.data.alone import open_alone
from multimae_eo.data.geotiff_source import Grid
from multimae_eo.errors import DataError

# What a file may be: containers that could point to further files or addresses are not among them.
DRIVERS = {".jp2": "JP2OpenJPEG"}  # by the end of the name; else a GeoTIFF
SMALLEST = 64  # edge of the pieces that a window with damaged blocks is read in


class Window(NamedTuple):
    """A part of a grid in pixels; may reach beyond it."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class Band:
    """One band of a layer: its canonical name, where it is (file and number from 1, or variable), and its kind.

    classes: whether its values are classes, which are resampled to the nearest; nodata: a value that is none.
    """

    name: str
    place: str
    index: int = 1
    classes: bool = False
    nodata: float | None = None


class Layer(Protocol):
    """Bands on the grid of a scene."""

    bands: list[Band]

    def read(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """Values float32 and validity, both [bands, height, width]; nothing is valid where there is no data.

        Where a part cannot be read, it is not valid, and noted by the layer.
        """
        ...

    def close(self) -> None: ...


@dataclass
class Damage:
    """What could not be read: windows of the scene, per file."""

    windows: dict[str, set[Window]] = field(default_factory=dict)
    lock: Any = field(default_factory=Lock)

    def note(self, place: str, window: Window) -> None:
        self.add({place: [window]})

    def add(self, windows: Mapping[str, Collection[Window]]) -> None:
        with self.lock:  # a thread reads ahead
            for place, more in windows.items():
                self.windows.setdefault(place, set()).update(more)

    def listed(self) -> dict[str, list[Window]]:
        """A copy, in order."""
        with self.lock:
            return {place: sorted(windows) for place, windows in self.windows.items()}

    def __bool__(self) -> bool:
        return bool(self.windows)

    def describe(self) -> str:
        """One clause per file."""
        parts = []
        for place, windows in self.windows.items():
            top, left = min(w.top for w in windows), min(w.left for w in windows)
            bottom, right = max(w.top + w.height for w in windows), max(w.left + w.width for w in windows)
            where = f"rows {top} to {bottom}, columns {left} to {right}"
            parts.append(f"'{place}' could not be read within {where} of the map ({len(windows)} pieces)")
        return "; ".join(parts)


def open_file(path: str | Path) -> Any:
    """A rasterio dataset of a raster file; raises DataError."""
    try:
        return open_alone(path, DRIVERS.get(Path(path).suffix.lower(), "GTiff"))
    except RasterioError as error:
        raise DataError(
            f"'{path}' cannot be read as a GeoTIFF or JPEG 2000 file ({error}). Convert or fetch it again."
        ) from error


class FileLayer:
    """Bands of raster files, through GDAL's warped VRTs: bilinear for measurements, nearest for classes.

    A file that lies on the scene's grid already is read as it is.
    """

    def __init__(self, bands: Sequence[Band], grid: Grid, damage: Damage):
        self.bands, self.grid, self.damage = list(bands), grid, damage
        self._files = ExitStack()
        self._open: dict[tuple[str, bool, float | None], tuple[Any, bool]] = {}

    def close(self) -> None:
        self._files.close()
        self._open.clear()

    def read(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        values = np.zeros((len(self.bands), window.height, window.width), np.float32)
        valid = np.zeros(values.shape, bool)
        groups: dict[tuple[str, bool, float | None], list[int]] = {}
        for i, band in enumerate(self.bands):
            groups.setdefault((band.place, band.classes, band.nodata), []).append(i)
        for key, members in groups.items():
            self._fill(key, [self.bands[i].index for i in members], window, (values, valid), members)
        return values, valid

    def _fill(
        self,
        key: tuple[str, bool, float | None],
        indexes: list[int],
        window: Window,
        out: tuple[np.ndarray, np.ndarray],
        members: list[int],
    ) -> None:
        """Read what lies within the file, in ever smaller pieces where that fails."""
        dataset, alpha = self._dataset(key)
        shift = self._shift(dataset)
        top, left = max(window.top, shift[0], 0), max(window.left, shift[1], 0)
        bottom = min(window.top + window.height, shift[0] + dataset.height, self.grid.height)
        right = min(window.left + window.width, shift[1] + dataset.width, self.grid.width)
        todo = [(top, left, bottom, right)] if top < bottom and left < right else []
        while todo:
            top, left, bottom, right = todo.pop()
            inside = RasterWindow(left - shift[1], top - shift[0], right - left, bottom - top)
            place = np.s_[top - window.top : bottom - window.top, left - window.left : right - window.left]
            try:
                raw, known = self._read(dataset, indexes, inside, key[2], alpha)
            except (RasterioError, OSError):
                edge = next((e for e in (4 * SMALLEST, SMALLEST) if not is_inside(top, left, bottom, right, e)), None)
                if edge is not None:
                    todo += pieces(top, left, bottom, right, edge)
                else:
                    self.damage.note(key[0], Window(top, left, bottom - top, right - left))
                continue
            for i, plane, there in zip(members, raw, known, strict=True):
                out[0][i][place], out[1][i][place] = plane, there

    def _read(
        self, dataset: Any, indexes: list[int], inside: RasterWindow, nodata: float | None, alpha: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        if alpha:
            *raw, there = dataset.read([*indexes, dataset.count], window=inside)
            raw = np.stack(raw)
            known = np.broadcast_to(there > 0, raw.shape).copy()
        else:
            raw = dataset.read(indexes, window=inside)
            known = raw != nodata if nodata is not None else dataset.read_masks(indexes, window=inside) > 0
        if raw.dtype.kind == "f":
            known &= np.isfinite(raw)
        return raw, known

    def _dataset(self, key: tuple[str, bool, float | None]) -> tuple[Any, bool]:
        """The file on the scene's grid, and whether its last band is one of validity."""
        if key not in self._open:
            place, classes, nodata = key
            dataset = self._files.enter_context(open_file(place))
            alpha = False
            if shift_between(dataset, self.grid) is None:
                missing = nodata if nodata is not None else dataset.nodata
                alpha = missing is None and MaskFlags.alpha not in dataset.mask_flag_enums[0]
                vrt = WarpedVRT(
                    dataset,
                    crs=self.grid.crs,
                    transform=self.grid.transform,
                    width=self.grid.width,
                    height=self.grid.height,
                    resampling=Resampling.nearest if classes else Resampling.bilinear,
                    tolerance=1e-3,  # pixels; the default would depend on where a window begins
                    UNIFIED_SRC_NODATA="NO",  # each band has its own pixels without data
                    **scale_between(dataset.crs, dataset.transform, self.grid),
                    **({"add_alpha": True} if alpha else {"src_nodata": missing, "nodata": missing}),
                )
                dataset = self._files.enter_context(vrt)
            self._open[key] = dataset, alpha
        return self._open[key]

    def _shift(self, dataset: Any) -> tuple[int, int]:
        shift = shift_between(dataset, self.grid)
        assert shift is not None
        return shift


def shift_between(dataset: Any, grid: Grid) -> tuple[int, int] | None:
    """Row and column of the grid at which the pixels of a dataset begin, or None where they lie on another grid."""
    a, b = dataset.transform, grid.transform
    if dataset.crs != grid.crs or not np.allclose([a.a, a.b, a.d, a.e], [b.a, b.b, b.d, b.e], rtol=1e-9):
        return None
    row, column = (a.f - b.f) / b.e, (a.c - b.c) / b.a  # a scene's grid is north up
    near = (round(row), round(column))
    return near if abs(row - near[0]) < 1e-3 and abs(column - near[1]) < 1e-3 else None


def scale_between(crs: Any, transform: Any, grid: Grid) -> dict[str, float]:
    """How many pixels of a grid one of a source spans in the middle of the grid, as GDAL's warper is told.

    It would find out from each window, and smooth as if for a coarser grid where a window is long and turned.
    """
    t, step = grid.transform, 16  # a scene's grid is north up
    x, y = t.c + t.a * grid.width / 2, t.f + t.e * grid.height / 2
    east, north = warp_points(grid.crs, crs, [x, x + step * t.a, x], [y, y, y + step * t.e])
    right, down = ((east[i] - east[0], north[i] - north[0]) for i in (1, 2))
    pixel = step * float(np.sqrt(abs(transform.determinant / np.linalg.det([right, down]))))
    return {"XSCALE": pixel, "YSCALE": pixel}


def on_grid(grid: Grid, window: Window) -> np.ndarray:
    """Which pixels of a window, [h, w], are on a grid."""
    inside = np.zeros((window.height, window.width), bool)
    bottom, right = grid.height - window.top, grid.width - window.left
    inside[max(0, -window.top) : max(0, bottom), max(0, -window.left) : max(0, right)] = True
    return inside


def part_of(transform: Any, left: int, top: int) -> Any:
    """The transform of a window that begins at a column and row."""
    return window_transform(RasterWindow(left, top, 1, 1), transform)


def is_inside(top: int, left: int, bottom: int, right: int, edge: int) -> bool:
    """Whether a window lies in one of the squares that begin at multiples of an edge."""
    return top // edge == (bottom - 1) // edge and left // edge == (right - 1) // edge


def pieces(top: int, left: int, bottom: int, right: int, edge: int) -> list[tuple[int, int, int, int]]:
    """A window in pieces that begin at multiples of an edge."""
    ys = sorted({top, bottom, *range(-(-top // edge) * edge, bottom, edge)} & set(range(top, bottom + 1)))
    xs = sorted({left, right, *range(-(-left // edge) * edge, right, edge)} & set(range(left, right + 1)))
    return [(y, x, y2, x2) for y, y2 in itertools.pairwise(ys) for x, x2 in itertools.pairwise(xs)]


class CubeLayer:
    """Variables of an xarray data set, of one time; only what a window needs is loaded."""

    def __init__(self, bands: Sequence[Band], cube: Any, grid: Grid, damage: Damage, place: str):
        self.bands, self.cube, self.grid, self.damage, self.place = list(bands), cube, grid, damage, place
        box = cube.odc.geobox
        self.crs, self.transform = rasterio.crs.CRS.from_wkt(box.crs.wkt), box.affine
        self.rows, self.columns = box.shape
        self.scale = scale_between(self.crs, self.transform, grid)
        self.dims = cube.odc.spatial_dims

    def close(self) -> None:
        self.cube.close()

    def read(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        values = np.zeros((len(self.bands), window.height, window.width), np.float32)
        valid = np.zeros(values.shape, bool)
        rows, columns = self._needed(window)
        if rows.start >= rows.stop or columns.start >= columns.stop:
            return values, valid
        source = part_of(self.transform, columns.start, rows.start)
        try:
            part = self.cube[[b.place for b in self.bands]].isel({self.dims[0]: rows, self.dims[1]: columns}).load()
        except (OSError, RuntimeError):  # what HDF5 and Zarr make of a damaged chunk
            self.damage.note(self.place, window)
            return values, valid
        transform = part_of(self.grid.transform, window.left, window.top)
        for i, band in enumerate(self.bands):
            raw = part[band.place].transpose(*self.dims).values.astype(np.float32)
            known = np.isfinite(raw)
            if band.nodata is not None:
                known &= raw != band.nodata
            raw[~known] = np.nan
            how = {"src_transform": source, "src_crs": self.crs, "dst_transform": transform, "dst_crs": self.grid.crs}
            kind = Resampling.nearest if band.classes else Resampling.bilinear
            found = np.full(values.shape[1:], np.nan, np.float32)
            reproject(
                raw,
                found,
                **how,
                src_nodata=np.nan,
                dst_nodata=np.nan,
                resampling=kind,
                tolerance=1e-3,
                num_threads=1,
                **self.scale,
            )
            valid[i] = np.isfinite(found)
            values[i] = np.where(valid[i], found, 0)
        return values, valid & on_grid(self.grid, window)

    def _needed(self, window: Window) -> tuple[slice, slice]:
        """The part of the cube that a window is computed from, with two pixels around it."""
        ys = np.linspace(window.top, window.top + window.height, 9)
        xs = np.linspace(window.left, window.left + window.width, 9)
        edge = [(x, y) for x in xs for y in (ys[0], ys[-1])] + [(x, y) for y in ys for x in (xs[0], xs[-1])]
        a = self.grid.transform
        points = [(a.a * x + a.b * y + a.c, a.d * x + a.e * y + a.f) for x, y in edge]
        east, north = warp_points(self.grid.crs, self.crs, *zip(*points, strict=True))
        down, right = rowcol(self.transform, east, north, op=np.floor)
        low, high = int(min(down)) - 2, int(max(down)) + 3
        first, last = int(min(right)) - 2, int(max(right)) + 3
        return slice(max(0, low), min(self.rows, high)), slice(max(0, first), min(self.columns, last))


class ItemLayer:
    """Assets of a STAC item, read with odc-stac onto the window's own grid."""

    def __init__(self, bands: Sequence[Band], item: Any, grid: Grid, damage: Damage):
        self.bands, self.item, self.grid, self.damage = list(bands), item, grid, damage

    def close(self) -> None:
        """Nothing stays open."""

    def read(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        import odc.stac
        from odc.geo.geobox import GeoBox

        box = GeoBox(
            (window.height, window.width),
            part_of(self.grid.transform, window.left, window.top),
            self.grid.crs.to_wkt(),
        )
        how = {b.place: "nearest" if b.classes else "bilinear" for b in self.bands}
        values = np.zeros((len(self.bands), window.height, window.width), np.float32)
        valid = np.zeros(values.shape, bool)
        try:
            cube = odc.stac.load([self.item], bands=list(how), geobox=box, resampling=how)
        except (RasterioError, OSError):
            self.damage.note(self.item.id, window)
            return values, valid
        for i, band in enumerate(self.bands):
            found = cube[band.place]
            raw = found.values[0] if found.ndim == 3 else found.values
            missing = band.nodata if band.nodata is not None else found.attrs.get("nodata")
            valid[i] = np.isfinite(raw) if missing is None else np.isfinite(raw) & (raw != missing)
            values[i] = np.where(valid[i], raw, 0)
        return values, valid & on_grid(self.grid, window)
