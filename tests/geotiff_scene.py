"""A small scene of two places as GeoTIFFs, options that read it, and readers of what is written, for the tests."""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from multimae_eo.data.geotiff import import_geotiffs
from multimae_eo.data.import_options import ImportOptions, SourceOptions
from multimae_eo.errors import MultiMAEError

L1C = ["B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12"]
L2A = [band for band in L1C if band != "B10"]
ORIGIN = (500000.0, 5000000.0)
HEIGHT, WIDTH = 50, 70  # tiles of 16: 3 x 4, with 2 rows and 6 columns left over


def write(
    path: Path, array: np.ndarray, *, edge: float = 10, origin=ORIGIN, crs="EPSG:32632", tags=None, **profile: Any
):
    """A GeoTIFF of an array [c, h, w]; names: its band descriptions."""
    names = profile.pop("names", None)
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {"crs": crs, "transform": from_origin(*origin, edge, edge), "dtype": array.dtype, **profile}
    size = {"count": len(array), "height": array.shape[1], "width": array.shape[2]}
    with rasterio.open(path, "w", driver="GTiff", **size, **profile) as file:
        file.write(array)
        file.update_tags(**(tags or {}))
        for i, name in enumerate(names or (), 1):
            file.set_band_description(i, name)


def numbers(bands: int, seed: int = 0, low: int = 100, high: int = 4000, shape=(HEIGHT, WIDTH)) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high, (bands, *shape)).astype(np.uint16)


def make_scene(tmp_path: Path) -> Path:
    """Two places with all sources; the L1C images carry the offset."""
    for seed, place in enumerate(("alp", "bay")):
        l1c = numbers(13, seed, 1100)
        l1c[10] = 1010
        write(tmp_path / f"l1c/{place}.tif", l1c)
        write(tmp_path / f"l2a/{place}.tif", numbers(12, seed + 10), names=[b.lower() for b in L2A])
        y, x = np.mgrid[:HEIGHT, :WIDTH]
        write(tmp_path / f"dem/{place}.tif", (300 + 5 * y + 2.4 * x)[None].astype(np.float32))
        write(
            tmp_path / f"lc/{place}.tif",
            np.random.default_rng(seed).integers(1, 4, (1, HEIGHT, WIDTH)).astype(np.uint8),
        )
        s1 = np.random.default_rng(seed).normal(-12, 3, (2, HEIGHT, WIDTH)).astype(np.float32)
        write(tmp_path / f"s1/{place}.tif", s1, tags={"datetime": "2021-07-21T08:40:10.0"})
    return tmp_path


def options(folder: Path, **changes: Any) -> ImportOptions:
    sources = {
        "s2_l1c": SourceOptions("l1c/{place}.tif", bands=L1C),
        "s2_l2a": SourceOptions("l2a/{place}.tif"),
        "dem": SourceOptions("dem/{place}.tif"),
        "worldcover": SourceOptions("lc/{place}.tif", classes={1: 80, 2: 10, 3: 0}),
        "s1": SourceOptions("s1/{place}.tif", bands=["VV", "VH"]),
    }
    base: dict[str, Any] = {"out": folder / "out", "root": folder, "tile_px": 16, "date": "2021-07-23"}
    return ImportOptions(**{**base, **sources, "splits": {"bay": "val"}, **changes})


def only(folder: Path, source: str, **changes: Any) -> ImportOptions:
    """Options that read one Sentinel-2 product and nothing else."""
    rest = {key: None for key in ("s2_l1c", "s2_l2a", "dem", "worldcover", "s1") if key != source}
    return options(folder, **{**rest, **changes})


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as file:
        return file.read()


def load(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, Any], dict[str, Any], dict[str, Any]]:
    """arrays, tile_info, splits, band_stats"""
    with h5py.File(folder / f"{folder.name}.h5") as file:
        arrays = {name: dataset[:] for name, dataset in file.items()}
    kinds = ("tile_info", "splits", "band_stats")
    info, splits, stats = (json.loads((folder / f"{folder.name}_{kind}.json").read_text()) for kind in kinds)
    return arrays, info, splits, stats


def quiet(line: str) -> None:
    pass


def fails(error: type[Exception], wanted: ImportOptions, *words: str) -> None:
    """The import fails with all these words and leaves nothing behind."""
    with pytest.raises(error) as caught:
        import_geotiffs(wanted, say=quiet)
    assert isinstance(caught.value, MultiMAEError)
    for word in words:
        assert word in str(caught.value), f"'{word}' is not in: {caught.value}"
    assert not list(Path(wanted.out).glob("**/*"))
