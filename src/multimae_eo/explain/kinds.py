"""Decides what a path is by the names of files, and has it explained; nothing is loaded to decide."""

import csv
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from tokenize import TokenError

from multimae_eo.errors import DataError, MultiMAEError
from multimae_eo.explain.page import listed

# What can be explained, in the words of an error message.
EXPECTED = (
    "a checkpoint directory; the folder of a run; a data set in the MMEarth layout (NAME.h5 and its side files), or a "
    "packed copy of one (NAME_pack.json); GEO-Bench, one set or the folder of all; a raster (GeoTIFF, JPEG 2000, "
    "NetCDF, Zarr, a STAC item, .SAFE), or a folder of such"
)
RASTERS = (".tif", ".tiff", ".jp2")
BENCHMARK = ("classification_v1.0", "segmentation_v1.0")
CHECKPOINT, RUN = ("config.json", "model.safetensors"), ("metrics.csv", "results.json")
MODELS = ("checkpoint", "best", "last")  # folders of a run
PRODUCT = ("GRANULE", "IMG_DATA", "R10m")  # folders of a Sentinel-2 product
_OF_BENCHMARK = (".hdf5", "_partition.json", "task_specs.pkl")
_OF_TILES = (".h5", "_pack.json", "_splits.json", "_band_stats.json", "_tile_info.json")
# What libraries raise where a file is damaged.
_DAMAGE = (OSError, ValueError, LookupError, EOFError, RuntimeError, TokenError, csv.Error)
_WEIGHTS = (".pth", ".pt", ".ckpt", ".bin")


def explain(path: Path, *, out: Path | None = None) -> str:
    """What a path is and what to do with it, as text for one screen.

    out: where to write the picture of a data set of tiles; none is drawn without it, or for anything else. Raises a
    MultiMAEError where the path is nothing of the package's, does not exist, or is damaged. Nothing in a file is
    executed, and pixels are only sampled.
    """
    path = Path(path)
    try:
        if not path.exists():
            raise DataError(f"'{path}' does not exist; check the path.")
        if path.suffix.lower() in _WEIGHTS:
            raise DataError(
                f"'{path}' holds weights outside of a checkpoint directory; such files are not opened here. Those in "
                f"the layout of the paper's code become a checkpoint with `multimae-eo convert {path} OUT_DIR`."
            )
        folder = path if path.is_dir() else path.parent
        kind = "scene" if _is_raster(path) else _kind(folder) if path.is_dir() or _is_part(path) else None
        if kind is None:
            inside = listed((p.name for p in sorted(folder.iterdir())), 6) or "nothing"
            what = f"a folder that holds {inside}" if path.is_dir() else "a file of another kind"
            raise DataError(f"'{path}' cannot be explained: it is {what}. Expected {EXPECTED}.")
        # Imported when it is needed: a checkpoint is explained without rasterio.
        module = import_module(f"multimae_eo.explain.{kind}")
        text: str = module.explain(path if kind == "scene" else folder, out)
        return text
    except MultiMAEError:
        raise
    except _DAMAGE as error:
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"'{path}' cannot be read, it may be damaged: {what}.") from error


def _is_raster(path: Path) -> bool:
    end = path.suffix.lower()
    if end == ".json" and path.is_file():
        with path.open("rb") as file:
            return b'"stac_version"' in file.read(100_000)
    return end in (*RASTERS, ".nc", ".zarr", ".safe")


def _is_part(path: Path) -> bool:
    """Whether a file stands for its folder."""
    return path.name in (*CHECKPOINT, *RUN, "config.yaml") or path.name.endswith((*_OF_TILES, *_OF_BENCHMARK))


def _kind(folder: Path) -> str | None:
    """The module that explains a folder, by the names in it, or in those below where it holds one data set."""
    names = {p.name for p in folder.iterdir()}
    if {*CHECKPOINT, *RUN} & names or any((folder / name / CHECKPOINT[0]).is_file() for name in MODELS):
        return "checkpoint"
    if folder.resolve().name in BENCHMARK or any(n in BENCHMARK or n.endswith(_OF_BENCHMARK) for n in names):
        return "geobench"
    from multimae_eo.data.tiles import find  # needs h5py, which explaining a checkpoint does not

    with suppress(DataError):
        find(folder)
        return "tiles"
    rasters = any(p.suffix.lower() in RASTERS for below in ("*", "*/*") for p in folder.glob(below))
    return "scene" if rasters or {*PRODUCT} & names else None
