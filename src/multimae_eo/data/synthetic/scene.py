"""A synthetic scene: one place of a world, large, as georeferenced files that a map can be made of."""

import os
import shutil
from pathlib import Path

import numpy as np

from multimae_eo.data.folders import plain, writable
from multimae_eo.data.layout import ARRAYS, SENTINEL2_CHANNELS, Tile
from multimae_eo.data.synthetic.world import check_world, make_tile
from multimae_eo.errors import DataError
from multimae_eo.modalities import WORLDCOVER

SCENE_BANDS = tuple(band for band in SENTINEL2_CHANNELS if band not in ("B01", "B09", "B10"))


def generate_scene(root: str | os.PathLike[str], name: str = "scene", *, seed: int = 0, tile_px: int = 512) -> Path:
    """Write s2.tif (L2A, ten bands), s1.tif (VV, VH), dem.tif and worldcover.tif of one place; returns root/name.

    tile_px: edge in pixels of 10 m. The place is the first of the world with an L2A image and several classes; all
    files lie on one UTM grid. Raises ConfigError for impossible arguments, DataError if root/name exists.
    """
    check_world(seed, tile_px)
    folder = Path(root) / plain(name)
    if folder.exists():
        raise DataError(f"'{folder}' exists; choose another name, or remove it.")
    index = _index(seed)
    tile = make_tile(seed, index, tile_px)
    partial = folder.with_name(f".{name}.partial-{os.getpid()}")
    writable(partial)
    try:
        _write(partial, tile)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _index(seed: int) -> int:
    """The first place whose small tile is an image of L2A without gaps, of land with several classes."""
    for index in range(1000):
        tile = make_tile(seed, index, 64)
        codes, counts = np.unique(tile.arrays["esa_worldcover"], return_counts=True)
        heights = tile.arrays["aster"][0]
        if tile.product == "L2A" and (counts > 200).sum() >= 4 and np.ptp(heights[heights > -1000]) > 60 and codes[0]:
            return index
    return 0


def _write(folder: Path, tile: Tile) -> None:
    import rasterio
    from rasterio.transform import from_origin
    from rasterio.warp import transform

    zone = min(60, int((tile.lon + 180) // 6) + 1)
    crs = f"EPSG:{(32600 if tile.lat >= 0 else 32700) + zone}"
    (east,), (north,) = transform("EPSG:4326", crs, [tile.lon], [tile.lat])
    edge = tile.arrays["aster"].shape[-1]
    corner = from_origin(round(east, -2) - 5 * edge, round(north, -2) + 5 * edge, 10, 10)
    channels = [SENTINEL2_CHANNELS.index(band) for band in SCENE_BANDS]
    radar = tile.arrays["sentinel1"]
    direction, first = ("descending", 4) if np.isfinite(radar[4]).any() else ("ascending", 0)
    layers = {
        "s2": (tile.arrays["sentinel2"][channels], SCENE_BANDS, 0),
        "s1": (radar[first : first + 2], ("VV", "VH"), -np.inf),
        "dem": (tile.arrays["aster"][:1], ("dem",), ARRAYS["aster"].missing),
        "worldcover": (tile.arrays["esa_worldcover"], ("worldcover",), 0),
    }
    for name, (array, bands, nodata) in layers.items():
        profile = {"driver": "GTiff", "dtype": array.dtype, "count": len(bands), "height": edge, "width": edge}
        profile |= {"crs": crs, "transform": corner, "nodata": nodata, "compress": "deflate", "tiled": True}
        with rasterio.open(folder / f"{name}.tif", "w", **profile, blockxsize=256, blockysize=256) as file:
            file.write(array)
            file.descriptions = bands
            file.update_tags(DATE=tile.date)
            if name == "s2":
                file.update_tags(PRODUCT=tile.product, PROCESSING_BASELINE="02.14")
            if name == "s1":
                file.update_tags(PRODUCT=direction)
            if name == "worldcover":
                file.write_colormap(1, {c.code: tuple(bytes.fromhex(c.color[1:])) for c in WORLDCOVER})
