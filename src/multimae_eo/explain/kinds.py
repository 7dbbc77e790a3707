"""Decides what a path is by the names and first bytes of files, and has it explained; nothing is loaded to decide."""

from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import islice
from pathlib import Path

from multimae_eo.errors import DataError, MultiMAEError
from multimae_eo.explain.page import listed

# What can be explained, in the words of an error message.
EXPECTED = (
    "a checkpoint directory",
    "a run of pretrain or finetune",
    "a data set in the MMEarth layout (NAME.h5 and its side files), or a packed copy of one (NAME_pack.json)",
    "GEO-Bench, one set or the folder of all",
    "a scene (GeoTIFF, JPEG 2000, NetCDF, Zarr, a STAC item, .SAFE), or a folder of such rasters",
)
RASTERS = (".tif", ".tiff", ".jp2")
CUBES = (".nc", ".zarr")
BENCHMARK = ("classification_v1.0", "segmentation_v1.0")
MODELS = ("checkpoint", "best", "last")  # folders of a run
_SIDE_FILES = ("_pack.json", "_splits.json", "_band_stats.json", "_tile_info.json", "_tiles.npy")
_TORCH = (".pth", ".pt", ".ckpt", ".bin")
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

_MANY = 1000  # folders below one that are looked into

Explainer = Callable[[Path, Path | None], str]


def explain(path: Path, *, out: Path | None = None) -> str:
    """What a path is and what to do with it, as text for one screen.

    out: where to write the picture of a data set of tiles; none is drawn without it, or for anything else. Raises a
    MultiMAEError where the path is nothing of the package's, does not exist, or is damaged. Nothing in a file is
    executed, and pixels are only sampled.
    """
    path = Path(path)
    try:
        if not path.exists():
            raise DataError(f"'{path}' does not exist.{_nearby(path)}")
        found = _folder(path) if path.is_dir() else _file(path)
        if found is None:
            raise DataError(f"'{path}' cannot be explained: {_holds(path)} Expected {'; '.join(EXPECTED)}.")
        explainer, place = found
        return explainer(place, out)
    except MultiMAEError:
        raise
    except (OSError, ValueError, KeyError, EOFError, RuntimeError) as error:  # libraries have many words for damage
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"'{path}' cannot be read, it may be damaged: {what}.") from error


def _file(path: Path) -> tuple[Explainer, Path] | None:
    """By the name of a file, or by its first bytes; most files stand for their folder."""
    name, folder = path.name, path.parent
    if name in ("config.json", "model.safetensors"):
        return _checkpoint, folder
    if path.suffix.lower() in (*_TORCH, ".safetensors"):
        raise DataError(
            f"'{path}' holds weights outside of a checkpoint directory; such files are not opened here. Those in the "
            f"layout of the paper's code become a checkpoint with `multimae-eo convert {path} OUT_DIR`."
        )
    if name in ("metrics.csv", "results.json", "config.yaml") and _is_run(folder):
        return _run, folder
    if path.suffix == ".hdf5" or name.endswith("_partition.json") or name == "task_specs.pkl":
        return _geobench, folder
    if (path.suffix == ".h5" or name.endswith(_SIDE_FILES)) and _is_tiles(folder):
        return _tiles, folder
    if path.suffix.lower() in (*RASTERS, *CUBES) or _start(path, 4) in _TIFF:
        return _scene, path
    if path.suffix == ".json" and b'"stac_version"' in _start(path, 100_000):
        return _scene, path
    if path.suffix.lower() in (".yaml", ".yml"):
        raise DataError(f"'{path}' holds options or sources: give it to a command, as --config or as --scene.")
    return None


def _folder(path: Path) -> tuple[Explainer, Path] | None:
    """By the names in a folder, and in those below where it holds one data set."""
    names = sorted(p.name for p in path.iterdir())
    if path.suffix.lower() == ".zarr" or path.suffix == ".SAFE":
        return _scene, path
    if {"config.json", "model.safetensors"} & set(names):
        return _checkpoint, path
    if _is_run(path):
        return _run, path
    if _is_benchmark(path, names):
        return _geobench, path
    if _is_tiles(path):
        return _tiles, path
    folders = islice((p for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")), _MANY)
    below = [p for p in folders if _is_tiles(p)]
    if len(below) == 1:
        return _tiles, below[0]
    if _rasters(path):
        return _scenes, path
    return None


def _is_run(path: Path) -> bool:
    """Whether a folder looks like what pre-training or fine-tuning leaves."""
    models = any((path / name / "config.json").is_file() for name in MODELS)
    return models or (path / "metrics.csv").is_file() or (path / "results.json").is_file()


def _is_benchmark(path: Path, names: Iterable[str]) -> bool:
    inside = any(n.endswith((".hdf5", "_partition.json")) or n in (*BENCHMARK, "task_specs.pkl") for n in names)
    return inside or path.resolve().name in BENCHMARK


def _is_tiles(path: Path) -> bool:
    """Whether a folder holds the index of a packed copy, or an HDF5 file that has side files or is the only one."""
    names = [p.name for p in path.iterdir() if not p.name.startswith(".")]
    files = sum(name.endswith(".h5") for name in names)
    return files == 1 or any(n.endswith(_SIDE_FILES[0]) or (files and n.endswith(_SIDE_FILES)) for n in names)


def _rasters(path: Path) -> bool:
    """Whether a folder, or those in it, hold rasters; those of a Sentinel-2 product lie deeper."""
    near = any(p.suffix.lower() in RASTERS for below in ("*", "*/*") for p in path.glob(below))
    return near or any((path / name).is_dir() for name in ("GRANULE", "IMG_DATA"))


def _start(path: Path, size: int) -> bytes:
    with path.open("rb") as file:
        return file.read(size)


def _holds(path: Path) -> str:
    """What was found instead, in a sentence."""
    if path.is_file():
        size = path.stat().st_size
        return f"it is a file of {size:,} bytes." if size else "it is an empty file."
    inside = sorted(p for p in path.iterdir())
    if not inside:
        return "it is an empty folder."
    known = next((p for p in inside if not p.name.startswith(".") and _is_known(p)), None)
    hint = f" Did you mean '{known}'?" if known is not None else ""
    return f"the folder holds {listed((p.name + '/' * p.is_dir() for p in inside), 6)}.{hint}"


def _is_known(path: Path) -> bool:
    with suppress(DataError, OSError):
        return (_folder(path) if path.is_dir() else _file(path)) is not None
    return False


def _nearby(path: Path) -> str:
    """What lies where the path ends that exists."""
    parent = next((p for p in path.absolute().parents if p.is_dir()), None)
    inside = sorted(p.name for p in parent.iterdir() if not p.name.startswith(".")) if parent is not None else []
    return f" '{parent}' holds {listed(inside, 8)}." if inside else ""


# Imported when they are needed: a picture of a GeoTIFF needs no torch, a checkpoint no rasterio.
def _checkpoint(path: Path, out: Path | None) -> str:
    from multimae_eo.explain.checkpoint import explain_checkpoint

    return explain_checkpoint(path)


def _run(path: Path, out: Path | None) -> str:
    from multimae_eo.explain.run import explain_run

    return explain_run(path)


def _tiles(path: Path, out: Path | None) -> str:
    from multimae_eo.explain.tiles import explain_tiles

    return explain_tiles(path, out=out)


def _geobench(path: Path, out: Path | None) -> str:
    from multimae_eo.explain.geobench import explain_geobench

    return explain_geobench(path)


def _scene(path: Path, out: Path | None) -> str:
    from multimae_eo.explain.scene import explain_scene

    return explain_scene(path)


def _scenes(path: Path, out: Path | None) -> str:
    from multimae_eo.explain.scenes import explain_scenes

    return explain_scenes(path)
