"""Small scenes, and checkpoints with random weights, for the tests of maps."""

from pathlib import Path

import numpy as np
import rasterio
import torch
from rasterio.transform import from_origin

from multimae_eo import MultiMAE, Predictor, save, sized
from multimae_eo.config import TaskConfig
from multimae_eo.modalities import MODALITIES, MapClass

BANDS = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")
CRS, WEST, NORTH = "EPSG:32632", 500_000, 5_300_000
CLASSES = tuple(
    MapClass(i, name, color) for i, (name, color) in enumerate((("a", "#ff0000"), ("b", "#00ff00"), ("c", "#0000ff")))
)


def write_raster(
    path: Path, array: np.ndarray, bands=(), *, pixel=10.0, west=WEST, north=NORTH, crs=CRS, transform=None, **profile
):
    """A GeoTIFF [bands, h, w]."""
    count, height, width = array.shape
    about = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": array.dtype, "crs": crs}
    about["transform"] = transform or from_origin(west, north, pixel, pixel)
    tags = profile.pop("tags", {})
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(path, "w", **{**about, **profile}) as file:
        file.write(array)
        if bands:
            file.descriptions = tuple(bands)
        file.update_tags(**tags)
    return path


def smooth(shape, seed=0, low=100, high=3000):
    """Smooth random fields, each over a whole range."""
    rng = np.random.default_rng(seed)
    field = torch.from_numpy(rng.normal(size=(shape[0], 1, 9, 9)))
    grown = torch.nn.functional.interpolate(field, size=shape[1:], mode="bicubic")[:, 0].numpy()
    grown -= grown.min(axis=(1, 2), keepdims=True)
    return low + (high - low) * grown / grown.max(axis=(1, 2), keepdims=True)


def write_scene(folder: Path, height=130, width=150) -> dict[str, str]:
    """s2.tif (no data in a corner) and dem.tif on one grid; paths by name."""
    s2 = smooth((len(BANDS), height, width)).astype(np.uint16)
    s2[:, :20, :30] = 0
    write_raster(folder / "s2.tif", s2, BANDS, tags={"PRODUCT": "L2A", "PROCESSING_BASELINE": "02.14"})
    dem = smooth((1, height, width), seed=1, low=200, high=900).astype(np.float32)
    write_raster(folder / "dem.tif", dem, nodata=-9999)
    return {name: str(folder / f"{name}.tif") for name in ("s2", "dem")}


def save_predictor(folder: Path, task="segmentation", head=None, inputs=("rgb", "nir", "elevation"), **extra) -> Path:
    """A fine-tuned model with random weights, sharp enough to give several classes."""
    torch.manual_seed(0)
    config = sized("demo", inputs=inputs, targets=inputs[:1])
    products = {n: "L2A" for n in inputs if "L2A" in getattr(MODALITIES[n], "products", ())} | {"elevation": "ASTER"}
    heads = {
        "segmentation": "convnext",
        "regression": "linear_dense",
        "classification": "linear",
        "multilabel": "linear",
    }
    about = TaskConfig(
        task,
        head or heads[task],
        inputs,
        classes=() if task == "regression" else CLASSES,
        unit="t/ha" if task == "regression" else "",
        mean=5.0,
        std=2.0,
        products={n: products[n] for n in inputs},
    )
    model = Predictor(config, about).eval()
    with torch.no_grad():
        model.head.out.weight.mul_(5)
    return save(model, folder, extra=extra)


def save_model(folder: Path, **fields) -> Path:
    """A pre-trained model with random weights."""
    torch.manual_seed(0)
    return save(MultiMAE(sized("demo", **fields)), folder)
