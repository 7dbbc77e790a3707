"""Maps on disk: finished strips beside the map until all are there, then one Cloud Optimized GeoTIFF."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
from rasterio.windows import Window as RasterWindow

from multimae_eo.data.geotiff_source import Grid
from multimae_eo.errors import ConfigError, WriteError
from multimae_eo.maps.layers import Window

BLOCK = 512
CACHE = 128 << 20  # bytes of GDAL's cache; its own default grows with the memory of the machine
BUDGET = 1 << 27  # bytes of the blocks that are put together at once


@dataclass(frozen=True)
class Layout:
    """What a map's file says. bands: their names; colors: code -> #rrggbb of a map of classes; tags: of the file.

    scale, offset: from stored numbers to what they mean; units: of that; average: whether overviews are means.
    """

    dtype: str
    nodata: float
    bands: Sequence[str]
    tags: Mapping[str, str] = field(default_factory=dict)
    colors: Mapping[int, str] = field(default_factory=dict)
    scales: Sequence[float] = ()
    offsets: Sequence[float] = ()
    units: Sequence[str] = ()
    average: bool = True


class Strips:
    """Finished strips of a map, each a file, in a folder beside the map that is to be written.

    A strip appears under its name only when complete, so that a run that was killed goes on after the last one.
    about: everything that decides the numbers; strips of other ones are discarded.
    """

    def __init__(self, out: Path, about: Mapping[str, Any]):
        self.out, self.folder = out, out.with_name(f".{out.name}.unfinished")
        text = json.dumps(about, sort_keys=True, default=str)
        self._found: list[tuple[int, int, tuple[int, int, int], Path]] = []
        self.resumed = False
        try:
            if out.is_dir() and not (out.suffix == ".zarr" and (out / "zarr.json").exists()):
                raise ConfigError(f"'{out}' is a folder; name the file to write.")
            known = self.folder / "about.json"
            if self.folder.exists() and (not known.exists() or known.read_text() != text):
                shutil.rmtree(self.folder)
            self.resumed = self.folder.exists()
            self.folder.mkdir(parents=True, exist_ok=True)
            if not self.resumed:
                partial = known.with_suffix(".partial")
                partial.write_text(text)
                os.replace(partial, known)
        except OSError as error:
            raise ConfigError(f"'{out}' cannot be written: {error.strerror}. Give another --out.") from error

    def damage(self) -> dict[str, set[Window]]:
        """What could not be read for the strips that are finished: windows per file."""
        known = self.folder / "damage.json"
        if not known.exists():
            return {}
        return {place: {Window(*w) for w in windows} for place, windows in json.loads(known.read_text()).items()}

    def save(self, top: int, left: int, values: np.ndarray, damage: Mapping[str, Sequence[Window]]) -> None:
        """Keep a strip [bands, rows, columns], and what could not be read so far.

        Raises WriteError, and leaves the strips before it.
        """
        partial = self.folder / "strip.partial"
        try:
            if damage:
                partial.write_text(json.dumps(damage))
                os.replace(partial, self.folder / "damage.json")
            with open(partial, "wb") as file:
                np.save(file, values)
            os.replace(partial, self._path(top, left))
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise self.failed(error) from error

    def failed(self, error: OSError) -> WriteError:
        """What to say where the disk does not take it."""
        return WriteError(
            f"'{self.out}' could not be written: {error.strerror or error}. What is finished is kept beside it; the "
            "same command goes on from there."
        )

    def done(self, left: int) -> int:
        """The first row that is not finished in the panel that begins at a column."""
        row = 0
        while (path := self._path(row, left)).exists():
            row += np.load(path, mmap_mode="r").shape[1]
        return row

    def window(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Part of the map, from all strips that touch it."""
        whole: np.ndarray | None = None
        for row, column, (bands, rows, columns), path in self._index():
            y, x = max(top, row), max(left, column)
            bottom, right = min(top + height, row + rows), min(left + width, column + columns)
            if y < bottom and x < right:
                strip = np.load(path, mmap_mode="r")
                if whole is None:
                    whole = np.zeros((bands, height, width), strip.dtype)
                inside = np.s_[:, y - row : bottom - row, x - column : right - column]
                whole[:, y - top : bottom - top, x - left : right - left] = strip[inside]
        assert whole is not None
        return whole

    def discard(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _index(self) -> list[tuple[int, int, tuple[int, int, int], Path]]:
        """First row, first column, shape and file of every strip."""
        if not self._found:
            for path in sorted(self.folder.glob("strip_*_*.npy")):
                _, row, column = path.stem.split("_")
                self._found.append((int(row), int(column), np.load(path, mmap_mode="r").shape, path))
        return self._found

    def _path(self, top: int, left: int) -> Path:
        return self.folder / f"strip_{top:08d}_{left:08d}.npy"


def blocks(height: int, width: int, edge: int) -> Iterator[tuple[int, int, int, int]]:
    """(top, left, height, width) of the blocks of a raster, row by row."""
    for top in range(0, height, edge):
        for left in range(0, width, edge):
            yield top, left, min(edge, height - top), min(edge, width - left)


def write_cog(strips: Strips, grid: Grid, layout: Layout, said: Callable[[str], None] = lambda text: None) -> Path:
    """Put the strips together as a Cloud Optimized GeoTIFF, which appears under its name when complete."""
    flat, partial = strips.folder / "flat.tif", strips.out.with_name(f".{strips.out.name}.partial")
    count = len(layout.bands)
    edge = BLOCK
    while edge > 64 and edge * edge * count * np.dtype(layout.dtype).itemsize > BUDGET:
        edge //= 2
    profile = {
        "driver": "GTiff",
        "dtype": layout.dtype,
        "count": count,
        "height": grid.height,
        "width": grid.width,
        "crs": grid.crs,
        "transform": grid.transform,
        "nodata": layout.nodata,
        "tiled": True,
        "blockxsize": edge,
        "blockysize": edge,
        "interleave": "band",
        "BIGTIFF": "IF_SAFER",
    }
    said("writing")
    try:
        with rasterio.Env(GDAL_CACHEMAX=CACHE):
            with rasterio.open(flat, "w", **profile) as file:
                _describe(file, layout)
                for top, left, height, width in blocks(grid.height, grid.width, edge):
                    part = strips.window(top, left, height, width)
                    file.write(part, window=RasterWindow(left, top, width, height))
            rasterio.shutil.copy(
                flat,
                partial,
                driver="COG",
                COMPRESS="DEFLATE",
                PREDICTOR="YES",
                BLOCKSIZE=BLOCK,
                BIGTIFF="IF_SAFER",
                OVERVIEWS="IGNORE_EXISTING",
                RESAMPLING="AVERAGE" if layout.average else "NEAREST",
            )
        os.replace(partial, strips.out)
    except (rasterio.errors.RasterioError, OSError) as error:
        raise strips.failed(error if isinstance(error, OSError) else OSError(str(error))) from error
    finally:
        partial.unlink(missing_ok=True)
        flat.unlink(missing_ok=True)
    return strips.out


def _describe(file: Any, layout: Layout) -> None:
    for index, name in enumerate(layout.bands, 1):
        file.set_band_description(index, name)
    if layout.colors:
        colors = {code: (*bytes.fromhex(color.lstrip("#")), 255) for code, color in layout.colors.items()}
        file.write_colormap(1, {code: colors.get(code, (0, 0, 0, 0)) for code in range(256)})
    if layout.scales:
        file.scales, file.offsets = tuple(layout.scales), tuple(layout.offsets)
    if layout.units:
        file.units = tuple(layout.units)
    file.update_tags(**layout.tags)
