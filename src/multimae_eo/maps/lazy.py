"""Past one machine: predictions over xarray data, lazy in and lazy out, for any scheduler of Dask."""

from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from rasterio.crs import CRS

from multimae_eo import checkpoint
from multimae_eo.config import TaskConfig
from multimae_eo.data.geotiff_source import METRES
from multimae_eo.errors import ConfigError, GridError
from multimae_eo.maps.feeding import Stated, feed_of, missing
from multimae_eo.maps.finding import import_extra, known_band
from multimae_eo.maps.grid import keeps_lengths
from multimae_eo.maps.layers import Window
from multimae_eo.maps.mapping import TileRows, device_of, tiling_for
from multimae_eo.maps.options import TileOptions
from multimae_eo.maps.predict import dropped, layout_of, predicting
from multimae_eo.maps.tiling import Tiling, blend
from multimae_eo.maps.writing import Layout
from multimae_eo.modalities import MODALITIES, REFLECTANCE, Categorical
from multimae_eo.predictor import Predictor

QUIET = TileOptions(progress=False)


def predict_dataarray(
    model: str | Path,
    data: Any,
    *,
    products: Mapping[str, str] | None = None,
    probabilities: bool = False,
    allow_missing: bool = False,
    tiles: TileOptions = QUIET,
) -> Any:
    """Map what a fine-tuned checkpoint predicts over an xarray object on a 10 m grid; nothing is computed yet.

    model: a checkpoint directory that every worker can read. data: a Dataset whose variables are bands, or a DataArray
    with a coordinate "band" of their names, in the model's units (reflectance x 10000 without offset, m, dB), NaN or
    the attribute "nodata" (0 in reflectance) where nothing was measured. products: {modality: product}, where the
    checkpoint does not say. Returns a DataArray on the same grid, chunked like the data: class codes [y, x], or
    probabilities or values [band, y, x]; no data is its attribute "nodata". Each chunk computes the tiles that touch
    it, so that chunks of 1,000 px and more waste little. allow_missing: as of `predict`. Raises ConfigError, GridError.
    """
    xarray, dask = import_extra("xarray", "holds arrays with coordinates"), import_extra("dask.array", "is lazy")
    predictor = _loaded(str(model))
    array, names, nodata = _as_array(data, xarray)
    trained = checkpoint.read_content(model).get("extra", {})
    tiling = tiling_for(tiles, predictor.config, trained=trained.get("image_px"))
    feed = feed_of(names, _stated(products or {}), predictor.config, predictor.task)
    missing(feed, predictor.task, droppable=dropped(trained), allowed=allow_missing)
    layout, _ = layout_of(predictor.task, probabilities)
    lazy = array.data if hasattr(array.data, "dask") else dask.from_array(array.data)
    lazy = lazy.rechunk((-1, *(_at_least(tiling.size, sizes) for sizes in lazy.chunks[1:])))
    depth = [tiling.size if len(sizes) > 1 else 0 for sizes in lazy.chunks[1:]]
    work = partial(
        _block,
        model=str(model),
        names=names,
        nodata=nodata,
        products=dict(products or {}),
        probabilities=probabilities,
        tiles=tiles,
        tiling=tiling,
        depth=depth,
        edges=[np.cumsum([0, *sizes]).tolist() for sizes in lazy.chunks[1:]],
    )
    mapped = dask.map_overlap(
        work,
        lazy.astype(np.float32),
        depth=dict(enumerate([0, *depth])),
        boundary={0: "none", 1: np.nan, 2: np.nan},
        trim=False,
        dtype=layout.dtype,
        chunks=((len(layout.bands),), *lazy.chunks[1:]),
        meta=np.empty((0, 0, 0), layout.dtype),
    )
    return _described(mapped, array, layout, predictor.task, xarray)


def _described(mapped: Any, array: Any, layout: Layout, task: TaskConfig, xarray: Any) -> Any:
    """The result with the coordinates of the data, and what its numbers mean."""
    coords = {d: array.coords[d] for d in array.dims[1:] if d in array.coords}
    coords |= {name: c for name, c in array.coords.items() if c.ndim == 0}
    about = {"nodata": layout.nodata, "_FillValue": layout.nodata, **{k.lower(): v for k, v in layout.tags.items()}}
    if list(layout.bands) == ["class"]:
        about |= {"flag_values": [c.code for c in task.classes]}
        about |= {"flag_meanings": " ".join(c.name.replace(" ", "_") for c in task.classes)}
    if layout.scales:
        about |= {"scale_factor": layout.scales[0], "add_offset": 0.0}
    result = xarray.DataArray(mapped, dims=("band", *array.dims[1:]), coords=coords, attrs=about)
    if len(layout.bands) == 1:
        return result.isel(band=0).rename("prediction")
    return result.assign_coords(band=list(layout.bands)).rename("prediction")


def _as_array(data: Any, xarray: Any) -> tuple[Any, tuple[str, ...], tuple[float | None, ...]]:
    """[band, y, x] with canonical names of bands, and the value of each that is no data."""
    if hasattr(data, "data_vars"):
        names = [name for name in map(str, data.data_vars) if known_band(name)]
        if not names:
            raise ConfigError(f"the data set has no variable with the name of a band: {', '.join(map(str, data))}.")
        attrs = [data[name].attrs for name in names]
        array = data[names].to_array("band")
    else:
        if "band" not in data.dims or "band" not in data.coords:
            raise ConfigError("the array has no coordinate 'band' with the names of its bands.")
        array, names = data, [str(name) for name in data["band"].values]
        attrs = [data.attrs] * len(names)
    array = array.squeeze([d for d in array.dims if d in ("time", "t") and array.sizes[d] == 1], drop=True)
    if array.ndim != 3:
        raise ConfigError(f"expected data of bands, y and x, got {', '.join(map(str, array.dims))}; choose one time.")
    array = array.transpose("band", ...)
    _check_grid(array)
    known = tuple(known_band(name) or name for name in names)
    if twice := next((band for band in known if known.count(band) > 1), None):
        several = ", ".join(f"'{name}'" for name, band in zip(names, known, strict=True) if band == twice)
        raise ConfigError(f"the data have {twice} more than once: {several}. Select the bands to map.")
    stated = [a.get("nodata", a.get("_FillValue")) for a in attrs]
    # Where one mark stands for all bands, 0 is none in those that have zeros, like heights.
    marks = ((band, None if mark is None else float(mark)) for band, mark in zip(known, stated, strict=True))
    return array, known, tuple(None if mark == 0 and not zero_is_nothing(band) else mark for band, mark in marks)


def zero_is_nothing(band: str) -> bool:
    """Whether 0 is no value of a band: in reflectance, and in classes that have no code 0."""
    modality = next((m for m in MODALITIES.values() if band in m.bands), None)
    if isinstance(modality, Categorical):
        return 0 not in modality.codes
    return modality is not None and modality.unit == REFLECTANCE


def _check_grid(array: Any) -> None:
    """Raise GridError where coordinates say that pixels are not 10 x 10 m, from north to south."""
    import_extra("odc.geo.xr", "says where a data set lies")
    crs = None if array.odc.crs is None else CRS.from_wkt(array.odc.crs.wkt)
    if crs is not None and not keeps_lengths(crs):
        raise GridError(
            f"expected data in metres, in a UTM zone, got {crs}, in which a pixel of 10 m is none. Load them "
            "so: odc.stac.load(..., crs='utm', resolution=10)."
        )
    for dim, step in zip(array.dims[1:], (-METRES, METRES), strict=True):
        if dim in array.coords and array.sizes[dim] > 1:
            found = np.diff(array.coords[dim].values)
            if np.abs(found - step).max() > METRES / 100:
                raise GridError(
                    f"expected steps of {step:g} m along {dim}, got {found.min():g} to {found.max():g}. Load the data "
                    "on a grid of 10 m, north up: odc.stac.load(..., crs='utm', resolution=10)."
                )


def _stated(products: Mapping[str, str]) -> Stated:
    """The product of a modality: as given, or its only one."""
    return lambda m: products.get(m.name, m.products[0] if len(m.products) == 1 else None)


def _at_least(size: int, chunks: tuple[int, ...]) -> tuple[int, ...]:
    """The chunks of an axis, some joined where they could not hold a tile."""
    from dask.array.overlap import ensure_minimum_chunksize

    return tuple(ensure_minimum_chunksize(size, chunks)) if sum(chunks) >= size else (sum(chunks),)


@lru_cache(maxsize=2)
def _loaded(directory: str) -> Predictor:
    """A checkpoint, once per process."""
    return checkpoint.load_predictor(directory)


def _block(
    padded: np.ndarray,
    *,
    model: str,
    names: tuple[str, ...],
    nodata: tuple[float | None, ...],
    products: Mapping[str, str],
    probabilities: bool,
    tiles: TileOptions,
    tiling: Tiling,
    depth: Sequence[int],
    edges: Sequence[Sequence[int]],
    block_info: Any = None,
) -> np.ndarray:
    """One chunk of the result, from the chunk of the data with a tile's edge of its surroundings."""
    predictor = _loaded(model)
    layout, encode = layout_of(predictor.task, probabilities)
    if block_info is None or not padded.size:
        return np.empty((len(layout.bands), 0, 0), layout.dtype)
    place = block_info[0]["chunk-location"]
    rows, columns = (range(e[i], e[i + 1]) for e, i in zip(edges, place[1:], strict=True))
    feed = feed_of(names, _stated(products), predictor.config, predictor.task)
    known = np.isfinite(padded)
    for i, (band, mark) in enumerate(zip(names, nodata, strict=True)):
        if mark is not None:
            known[i] &= padded[i] != mark
        if zero_is_nothing(band):
            known[i] &= padded[i] > 0

    def read(window: Window) -> tuple[np.ndarray, np.ndarray]:
        top, left = window.top - rows.start + depth[0], window.left - columns.start + depth[1]
        values = np.zeros((len(names), window.height, window.width), np.float32)
        valid = np.zeros(values.shape, bool)
        inside = np.s_[:, max(0, top) : top + window.height, max(0, left) : left + window.width]
        height, width = padded[inside].shape[1:]
        put = np.s_[:, max(0, -top) : max(0, -top) + height, max(0, -left) : max(0, -left) + width]
        values[put], valid[put] = np.nan_to_num(padded[inside]), known[inside]
        return values, valid

    work = predicting(predictor.to(device_of(tiles.device)))
    tile_rows = TileRows(
        read, feed, tiling, work, outputs=predictor.task.num_outputs, config=predictor.config, options=tiles
    )
    out = np.empty((len(layout.bands), len(rows), len(columns)), layout.dtype)
    shape = (edges[0][-1], edges[1][-1])
    for top, values, valid in blend(tiling, rows, columns, shape, tile_rows.row):
        strip = encode(values, valid, Window(top, columns.start, *valid.shape))
        out[:, top - rows.start : top - rows.start + valid.shape[0]] = strip
    tile_rows.close()
    return out
