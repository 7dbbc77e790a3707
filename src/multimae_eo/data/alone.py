"""Opens raster files that a stranger may have written: they are read alone, and claim no absurd sizes.

GDAL follows what a file names: overviews and masks beside it may be of any format, also ones that list further files
and addresses.
"""

import json
import math
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import rasterio
from rasterio.errors import NotGeoreferencedWarning

from multimae_eo.data.hdf5 import LARGEST, check_heaps, open_hdf5, size_of
from multimae_eo.documents import read_json
from multimae_eo.errors import DataError

MOST_EDGE = 1 << 20  # pixels: 10,000 km at 10 m
LARGEST_BLOCK = 1 << 30  # bytes that GDAL holds at once: a whole Sentinel-2 tile of one band in one strip has a quarter
LARGEST_NOTES = 1 << 26  # bytes of a file of metadata
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Of Zarr: what only packs numbers. "pickle" is one of its compressors too.
_CODECS = (
    *("blosc", "zstd", "gzip", "zlib", "lz4", "lzma", "bz2", "bytes", "endian", "crc32c", "crc32", "adler32"),
    *("shuffle", "bitshuffle", "delta", "fixedscaleoffset", "quantize", "bitround", "packbits", "transpose"),
    *("sharding_indexed", "vlen-utf8", "vlen-bytes", "astype", "fletcher32"),
)


def open_alone(path: str | Path, driver: str) -> Any:
    """A rasterio dataset of a file by one of GDAL's drivers; raises DataError, and RasterioError where it is none."""
    _check_beside(Path(path))
    with warnings.catch_warnings():  # a file without georeference is an error of its own where it matters
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        dataset = rasterio.open(path, driver=driver)
    try:
        _check_claims(dataset, path)
    except BaseException:
        dataset.close()
        raise
    return dataset


def _check_beside(path: Path) -> None:
    """Overviews and masks beside a file must be TIFF files themselves, and metadata must name no other file."""
    for end in (".msk", ".MSK", ".ovr", ".OVR"):
        beside = Path(f"{path}{end}")
        if beside.is_file():
            with beside.open("rb") as file:
                begins = file.read(4)
            if begins not in _TIFF:
                raise DataError(
                    f"'{beside}', which belongs to '{path.name}', is no TIFF file but begins with {begins!r}; other "
                    "formats may point to further files and addresses. Delete it, or make it anew with gdaladdo."
                )
            _check_beside(beside)
    notes = Path(f"{path}.aux.xml")
    if notes.is_file():
        if notes.stat().st_size > LARGEST_NOTES:
            raise DataError(f"'{notes}' has {notes.stat().st_size} bytes; expected at most {LARGEST_NOTES}. Delete it.")
        if b"OVERVIEW_FILE" in notes.read_bytes():
            raise DataError(f"'{notes}' names another file to read overviews from. Delete it.")


def _check_claims(dataset: Any, path: str | Path) -> None:
    if (other := dataset.tags(ns="OVERVIEWS").get("OVERVIEW_FILE")) is not None:
        raise DataError(f"'{path}' names another file to read overviews from, '{other}'. Convert it: gdal_translate.")
    edge = max(dataset.height, dataset.width)
    together = dataset.count if getattr(dataset.interleaving, "name", "") == "pixel" else 1
    block = max((8 * together * math.prod(shape) for shape in dataset.block_shapes), default=0)
    if edge > MOST_EDGE or block > LARGEST_BLOCK:
        raise DataError(
            f"'{path}' claims {dataset.height} x {dataset.width} pixels in blocks of {block:.4g} bytes; expected at "
            f"most {MOST_EDGE} along an edge, and blocks of {LARGEST_BLOCK}. Cut it, or write it in tiles: "
            "gdal_translate -co TILED=YES."
        )


def check_cube(path: Path) -> None:
    """Look at NetCDF or Zarr before xarray opens it; raises DataError for what claims too much or lies elsewhere."""
    if path.is_dir():
        for place, about in _zarr_arrays(path):
            _check_zarr(place, about)
    elif h5py.is_hdf5(path):
        if path.stat().st_size <= LARGEST:
            check_heaps(path)
        with open_hdf5(path) as file:
            wrong = file.visititems(_too_large)
        if wrong is not None:
            raise DataError(f"'{path}', {wrong}.")


def _too_large(name: str, array: Any) -> str | None:
    """What a variable claims; xarray reads whatever has one dimension at once."""
    try:
        if isinstance(array, h5py.Dataset) and array.shape is not None:
            size_of(array, array.shape if array.ndim < 2 else ())
    except Exception as error:  # h5py does not bear an error that is raised here
        return f"'{name}' is not read: {error}"
    return None


def _zarr_arrays(path: Path) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """What the store says of each of its arrays, in version 2 or 3 of the format."""
    for place in (p for name in (".zarray", "zarr.json", ".zmetadata") for p in path.rglob(name)):
        content = read_json(place, DataError)
        if not isinstance(content, dict):
            raise DataError(f"'{place}': expected an object that describes an array or group.")
        yield place, content
        gathered = content.get("metadata") or (content.get("consolidated_metadata") or {}).get("metadata")
        for about in gathered.values() if isinstance(gathered, dict) else ():
            if isinstance(about, dict):
                yield place, about


def _check_zarr(place: Path, about: Mapping[str, Any]) -> None:
    codecs = [about.get("compressor"), *(about.get("filters") or ()), *(about.get("codecs") or ())]
    inner = [c["configuration"].get("codecs") or () for c in codecs if isinstance(c, dict) and "configuration" in c]
    for codec in [*codecs, *(c for several in inner for c in several)]:
        name = str(codec.get("id", codec.get("name"))) if isinstance(codec, dict) else str(codec)
        if codec is not None and name.removeprefix("numcodecs.") not in _CODECS:
            raise DataError(f"'{place}' is packed with '{name}', which may do anything; expected {', '.join(_CODECS)}.")
    grid = about.get("chunk_grid") or {}
    chunks: list[int] = about.get("chunks") or (grid.get("configuration") or {}).get("chunk_shape") or []
    shape: list[int] = about.get("shape") or []
    if 8 * math.prod(chunks) > LARGEST or (len(shape) == 1 and 8 * shape[0] > LARGEST):
        raise DataError(
            f"'{place}' claims the shape {json.dumps(shape)} in chunks {json.dumps(chunks)}; that is too much."
        )
