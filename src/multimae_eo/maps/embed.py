"""Embeddings of a scene: one vector per patch, as a COG, a Zarr store or GeoParquet."""

import dataclasses
import itertools
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from multimae_eo import checkpoint
from multimae_eo.config import TaskConfig
from multimae_eo.data.geotiff_source import Grid
from multimae_eo.encoder import Encoder
from multimae_eo.errors import ConfigError
from multimae_eo.maps.feeding import bands_of, feed_of
from multimae_eo.maps.finding import import_extra
from multimae_eo.maps.mapping import TileRows, Work, device_of, tiling_for
from multimae_eo.maps.options import EmbedOptions
from multimae_eo.maps.run import Encode, about, map_scene, prepared, sources_of
from multimae_eo.maps.scene import Scene, open_scene
from multimae_eo.maps.writing import Layout, Strips, blocks, write_cog
from multimae_eo.raster import Batch
from multimae_eo.visualize import MISSING

LARGEST = 127  # of int8; -128 is no data
LARGEST_PREVIEW = 2048  # cells of the longer side
ROOM = 1.25  # for what a sample does not show, before numbers are cut off
ENOUGH, SAMPLED = 64, 4096  # cells that scales and principal components are found on
FORMATS = {".tif": ("int8", "float32"), ".zarr": ("int8", "float16", "float32")}
FORMATS[".parquet"] = FORMATS[".zarr"]


def embed_scene(options: EmbedOptions) -> Path:
    """Write the embeddings that some options describe; returns their path. Errors as of `predict_map`."""
    _check(options)
    with prepared(options.tiles):
        encoder, task = load(options.checkpoint)
        config = encoder.config
        trained = checkpoint.read_content(options.checkpoint).get("extra", {}).get("image_px")
        tiling = tiling_for(options.tiles, config, cell=config.patch_size, trained=trained)
        inputs = config.input_modalities if task is None else task.inputs
        scene = open_scene(sources_of(options, config.modalities), bands_of(inputs, config.modalities), options.grid)
        feed = feed_of(scene.bands, scene.product_of, config, task)
        work = embedding(encoder.to(device_of(options.tiles.device)))
        rows = TileRows(
            scene.read,
            feed,
            tiling,
            work,
            outputs=config.dim,
            config=config,
            options=options.tiles,
            cell=config.patch_size,
        )
        grid = coarser(scene.grid, config.patch_size)
        sample = sampled(scene, rows)
        scales = ROOM * np.abs(sample).max(axis=0) / LARGEST if options.dtype == "int8" else np.ones(config.dim)
        encode, nodata = encoding(options.dtype, scales)
        tags = {"TITLE": "embeddings", "SOURCES": ", ".join(s.found.options.path for s in scene.sources)}
        names = [f"dimension {i}" for i in range(config.dim)]
        layout = Layout(options.dtype, nodata, names, tags)
        if options.dtype == "int8":
            layout = dataclasses.replace(layout, scales=scales.tolist(), offsets=[0.0] * config.dim)
        written = map_scene(
            scene,
            rows,
            options.out,
            layout,
            encode,
            about=about(options, scene),
            tiles=options.tiles,
            grid=grid,
            write=writing(options, sample),
        )
        if isinstance(encode, Quantized) and encode.note:
            tqdm.write(encode.note, file=sys.stderr)
        return written


def _check(options: EmbedOptions) -> None:
    suffix = options.out.suffix.lower()
    if suffix not in FORMATS:
        raise ConfigError(f"out '{options.out}': expected a name that ends in {', '.join(FORMATS)}.")
    if options.dtype not in FORMATS[suffix]:
        raise ConfigError(f"dtype {options.dtype}: {suffix} takes {', '.join(FORMATS[suffix])}.")
    if suffix == ".zarr":
        import_extra("zarr", "writes Zarr")
    if suffix == ".parquet":
        import_extra("pyarrow", "writes GeoParquet")


def load(directory: Path) -> tuple[Encoder, TaskConfig | None]:
    """The encoder of a checkpoint directory, and the task if it was fine-tuned."""
    if "task" in checkpoint.read_content(directory):
        model = checkpoint.load_predictor(directory)
        return model.encoder, model.task
    return checkpoint.load(directory), None


def embedding(encoder: Encoder) -> Work:
    """The encoder as a function of tiles: per patch the mean over the modalities with a valid token there, else NaN."""

    def work(batch: Batch, _: object) -> Tensor:
        seen = encoder.see(batch)
        return seen.places().masked_fill(~seen.anything()[:, None], torch.nan)

    return work


def coarser(grid: Grid, cell: int) -> Grid:
    """The grid of cells of some pixels each; its last ones may reach beyond the scene."""
    t = grid.transform
    transform = type(t)(t.a * cell, t.b, t.c, t.d, t.e * cell, t.f)
    return Grid(grid.crs, transform, -(-grid.height // cell), -(-grid.width // cell))


def sampled(scene: Scene, rows: TileRows) -> np.ndarray:
    """Embeddings [n, d] of some tiles, spread over a scene; of more where those of a few have none."""
    edge, found = rows.tiling.size * rows.cell, np.zeros((0, rows.outputs), np.float32)
    for number in (4, 16):
        shape = (scene.grid.height, scene.grid.width)
        axes = [{int(x) // rows.cell for x in np.linspace(0, max(0, n - edge), number)} for n in shape]
        for top, left in itertools.product(*map(sorted, axes)):
            one = rows.row(top, [left])
            good = one.known & (one.sums[-1] > 0)
            found = np.concatenate([found, (one.sums[:-1, good] / one.sums[-1, good]).T])
        if len(found) >= ENOUGH:
            break
    return found[:: max(1, len(found) // SAMPLED)] if len(found) else np.ones((1, rows.outputs), np.float32)


class Quantized:
    """Embeddings as whole numbers from -127 to 127 times a scale per dimension; counts those that are cut off."""

    def __init__(self, scales: np.ndarray):
        self.scales, self.cut, self.of = scales, 0, 0

    def __call__(self, results: np.ndarray, valid: np.ndarray, _: object) -> np.ndarray:
        numbers = np.rint(results / self.scales[:, None, None])
        self.cut += int(((np.abs(numbers) > LARGEST) & valid).sum())
        self.of += int(valid.sum()) * len(numbers)
        return np.where(valid, np.clip(numbers, -LARGEST, LARGEST), -LARGEST - 1).astype(np.int8)

    @property
    def note(self) -> str:
        """What to say of numbers that were cut off; empty where these are few."""
        share = self.cut / max(1, self.of)
        return f"{share:.2%} of the numbers were larger than int8 holds here; --dtype float32 keeps them." * (
            share > 1e-3
        )


def encoding(dtype: str, scales: np.ndarray) -> tuple[Encode, float]:
    """How embeddings are stored, and the number that is no data."""
    if dtype == "int8":
        return Quantized(scales), -LARGEST - 1
    return lambda results, valid, _: np.where(valid, results, np.nan).astype(dtype), float("nan")


def writing(options: EmbedOptions, sample: np.ndarray) -> Callable[[Strips, Grid, Layout], Path]:
    """The function that writes finished strips in the wanted format, and the preview."""
    formats = {".tif": write_cog, ".zarr": write_zarr, ".parquet": write_parquet}

    def write(strips: Strips, grid: Grid, layout: Layout) -> Path:
        if options.preview:
            try:
                save_preview(strips, grid, layout, sample, options.out.with_suffix(".png"))
            except OSError as error:
                raise strips.failed(error) from error
        return formats[options.out.suffix.lower()](strips, grid, layout)

    return write


def values_of(stored: np.ndarray, layout: Layout) -> np.ndarray:
    """Stored numbers [d, h, w] as embeddings, NaN where there is no data."""
    values = np.where(stored == layout.nodata, np.nan, stored.astype(np.float32))
    return values * np.asarray(layout.scales, np.float32)[:, None, None] if layout.scales else values


def save_preview(strips: Strips, grid: Grid, layout: Layout, sample: np.ndarray, path: Path) -> Path:
    """A picture of the first three principal components as red, green and blue, stretched from 2 to 98 %."""
    mean = sample.mean(axis=0)
    _, _, axes = np.linalg.svd(sample - mean, full_matrices=False)
    axes = axes[:3]
    low, high = np.percentile((sample - mean) @ axes.T, (2, 98), axis=0)
    step = -(-max(grid.height, grid.width) // LARGEST_PREVIEW)
    picture = np.full((-(-grid.height // step), -(-grid.width // step), 3), np.nan, np.float32)
    for top, left, height, width in blocks(grid.height, grid.width, 256 // step * step or step):
        cells = values_of(strips.window(top, left, height, width)[:, ::step, ::step], layout)
        shown = np.einsum("dhw,kd->hwk", cells - mean[:, None, None], axes)
        place = np.s_[top // step : top // step + shown.shape[0], left // step : left // step + shown.shape[1]]
        for k in range(len(axes)):
            picture[place][..., k] = (shown[..., k] - low[k]) / max(high[k] - low[k], 1e-9)
    return save_rgb(picture, path)


def save_rgb(picture: np.ndarray, path: Path, *, smallest: int = 512) -> Path:
    """Write a picture [h, w, 3] of numbers from 0 to 1 as PNG, enlarged in whole steps; grey where NaN."""
    missing = np.isnan(picture).any(axis=2)
    shown = np.where(missing[..., None], MISSING, np.clip(np.nan_to_num(picture), 0, 1))
    times = max(1, smallest // max(missing.shape))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        matplotlib.image.imsave(partial, shown.repeat(times, axis=0).repeat(times, axis=1), format="png")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def write_zarr(strips: Strips, grid: Grid, layout: Layout) -> Path:
    """A Zarr store with coordinates and reference system, as xarray and GDAL read it; appears when complete."""
    import zarr

    out, partial = strips.out, strips.out.with_name(f".{strips.out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shape = (len(layout.bands), grid.height, grid.width)
    try:
        group = zarr.open_group(partial, mode="w")
        group.attrs.update({"Conventions": "CF-1.11", **{k.lower(): v for k, v in layout.tags.items()}})
        array = group.create_array(
            "embeddings",
            shape=shape,
            chunks=(shape[0], *(min(64, edge) for edge in shape[1:])),
            dtype=layout.dtype,
            fill_value=layout.nodata,
            dimension_names=("band", "y", "x"),
        )
        array.attrs["grid_mapping"] = "spatial_ref"
        if layout.dtype == "int8":
            array.attrs["_FillValue"] = layout.nodata
        t = grid.transform
        for name, first, step, number in (("y", t.f, t.e, grid.height), ("x", t.c, t.a, grid.width)):
            axis = group.create_array(name, data=first + (np.arange(number) + 0.5) * step, dimension_names=(name,))
            axis.attrs.update({"standard_name": f"projection_{name}_coordinate", "units": "m"})
        if layout.scales:
            group.create_array("scale", data=np.asarray(layout.scales, np.float32), dimension_names=("band",))
        reference = group.create_array("spatial_ref", data=np.zeros((), np.int32), dimension_names=())
        words = " ".join(map(str, t.to_gdal()))
        reference.attrs.update({"crs_wkt": grid.crs.to_wkt(), "spatial_ref": grid.crs.to_wkt(), "GeoTransform": words})
        for top, left, height, width in blocks(grid.height, grid.width, 64):
            array[:, top : top + height, left : left + width] = strips.window(top, left, height, width)
        if out.exists():
            shutil.rmtree(out)
        os.replace(partial, out)
    except OSError as error:
        raise strips.failed(error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def write_parquet(strips: Strips, grid: Grid, layout: Layout) -> Path:
    """GeoParquet 1.1: per cell its outline, row and column, date, sources and embedding; appears when complete."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    out, partial = strips.out, strips.out.with_name(f".{strips.out.name}.partial")
    kind = {"int8": pa.int8(), "float16": pa.float16(), "float32": pa.float32()}[layout.dtype]
    fields = [("row", pa.int32()), ("column", pa.int32()), ("geometry", pa.binary()), ("date", pa.string())]
    fields += [("source_url", pa.string()), ("embeddings", pa.list_(kind, len(layout.bands)))]
    left, bottom, right, top = grid.bounds
    column = {
        "encoding": "WKB",
        "geometry_types": ["Polygon"],
        "crs": grid.crs.to_dict(projjson=True),
        "bbox": [left, bottom, right, top],
    }
    geo = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}
    said = {"geo": json.dumps(geo), "multimae_eo": json.dumps({**layout.tags, "scale": list(layout.scales)})}
    schema = pa.schema(fields, metadata=said)
    try:
        with pq.ParquetWriter(partial, schema, compression="zstd") as file:
            for block in blocks(grid.height, grid.width, 128):
                file.write_table(_cells(strips, grid, layout, block, schema))
        os.replace(partial, out)
    except OSError as error:
        raise strips.failed(error) from error
    finally:
        partial.unlink(missing_ok=True)
    return out


def _cells(strips: Strips, grid: Grid, layout: Layout, block: tuple[int, int, int, int], schema: Any) -> Any:
    """The cells of a block that have data, as a table."""
    import pyarrow as pa

    stored = strips.window(*block)
    known = np.isfinite(values_of(stored, layout)).all(axis=0)
    down, right = np.nonzero(known)
    rows, columns = down + block[0], right + block[1]
    t, number = grid.transform, len(rows)
    west, north = t.c + columns * t.a, t.f + rows * t.e
    corners = [(west, north), (west, north + t.e), (west + t.a, north + t.e), (west + t.a, north), (west, north)]
    outlines = np.zeros(
        number, [("order", "u1"), ("kind", "<u4"), ("rings", "<u4"), ("points", "<u4"), ("xy", "<f8", 10)]
    )
    outlines["order"], outlines["kind"], outlines["rings"], outlines["points"] = 1, 3, 1, 5
    outlines["xy"] = np.stack([edge for corner in corners for edge in corner], axis=1)
    vectors = np.ascontiguousarray(stored[:, down, right].T).ravel()
    embeddings = pa.FixedSizeListArray.from_arrays(pa.array(vectors), len(layout.bands))
    dates = pa.array([layout.tags["DATES"] or None] * number, pa.string())
    sources = pa.array([layout.tags["SOURCES"]] * number, pa.string())
    arrays = [pa.array(rows, pa.int32()), pa.array(columns, pa.int32())]
    arrays += [pa.array([o.tobytes() for o in outlines], pa.binary()), dates, sources, embeddings]
    return pa.table(arrays, schema=schema)
