"""Maps of what a fine-tuned model predicts: of classes, of probabilities, or of values with a unit."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from multimae_eo import checkpoint
from multimae_eo.config import TaskConfig
from multimae_eo.errors import ConfigError
from multimae_eo.maps.feeding import bands_of, feed_of, missing
from multimae_eo.maps.mapping import TileRows, Work, device_of, tiling_for
from multimae_eo.maps.options import PredictOptions
from multimae_eo.maps.run import Encode, about, map_scene, prepared, sources_of
from multimae_eo.maps.scene import open_scene
from multimae_eo.maps.writing import Layout
from multimae_eo.predictor import Predictor
from multimae_eo.raster import Batch

STEPS, NO_SHARE = 250, 255  # probabilities are stored as whole numbers of 1 / 250; 255 is no data


def predict_map(options: PredictOptions) -> Path:
    """Write the map that some options describe; returns its path.

    Raises ConfigError, DataError, GridError or CheckpointError before anything is written, WriteError where the disk
    fails (the same command then goes on), and IncompleteError after writing where a part of a source is damaged.
    """
    with prepared(options.tiles):
        model = checkpoint.load_predictor(options.checkpoint)
        trained = checkpoint.read_content(options.checkpoint).get("extra", {})
        tiling = tiling_for(options.tiles, model.config, trained=trained.get("image_px"))
        layout, encode = layout_of(model.task, options.probabilities)
        scene = open_scene(
            sources_of(options, model.config.modalities),
            bands_of(model.task.inputs, model.config.modalities),
            options.grid,
        )
        feed = feed_of(scene.bands, scene.product_of, model.config, model.task)
        scene.notes += missing(feed, model.task, droppable=dropped(trained), allowed=options.allow_missing)
        work = predicting(model.to(device_of(options.tiles.device)))
        rows = TileRows(
            scene.read, feed, tiling, work, outputs=model.task.num_outputs, config=model.config, options=options.tiles
        )
        title = f"{model.task.task} of {model.task.dataset or 'a scene'}"
        layout = dataclasses.replace(layout, tags={"TITLE": title, **layout.tags})
        return map_scene(scene, rows, options.out, layout, encode, about=about(options, scene), tiles=options.tiles)


def predicting(model: Predictor) -> Work:
    """The model as a function of tiles: probabilities of classes, or values; of an image's label the whole tile's."""

    def work(batch: Batch, _: object) -> Tensor:
        scores = model(batch)
        if model.task.task == "multilabel":
            scores = scores.sigmoid()
        elif model.task.task != "regression":
            scores = scores.softmax(dim=1)
        if model.task.dense:
            return scores
        name, raster = next(iter(batch.items()))
        edge = raster.values.shape[-1] * model.config.modalities[name].stride
        return scores[:, :, None, None].expand(-1, -1, edge, edge)

    return work


def layout_of(task: TaskConfig, probabilities: bool) -> tuple[Layout, Encode]:
    """What the file of a task's map looks like, and how blended results become what it stores."""
    if task.task == "regression":
        if probabilities:
            raise ConfigError("probabilities: a regression has none.")

        def values(results: np.ndarray, valid: np.ndarray, _: object) -> np.ndarray:
            return np.where(valid, results, np.nan).astype(np.float32)

        return Layout("float32", np.nan, [task.dataset or "value"], units=[task.unit]), values
    names = {str(c.code): c.name for c in task.classes}
    tags = {"CLASSES": json.dumps(names)}
    if probabilities or task.task == "multilabel":

        def shares(results: np.ndarray, valid: np.ndarray, _: object) -> np.ndarray:
            return np.where(valid, np.rint(results * STEPS), NO_SHARE).astype(np.uint8)

        count = len(task.classes)
        bands = [c.name for c in task.classes]
        return Layout("uint8", NO_SHARE, bands, tags, scales=[1 / STEPS] * count, offsets=[0.0] * count), shares
    codes = np.array([c.code for c in task.classes])
    dtype, nodata = _code_type(codes)

    def classes(results: np.ndarray, valid: np.ndarray, _: object) -> np.ndarray:
        return np.where(valid, codes[results.argmax(axis=0)], nodata).astype(dtype)[None]

    colors = {c.code: c.color for c in task.classes} if dtype == "uint8" else {}
    return Layout(dtype, nodata, ["class"], tags, colors=colors, average=False), classes


def _code_type(codes: np.ndarray) -> tuple[str, int]:
    """The smallest type for some codes, and a value that is none of them, for no data."""
    for dtype in ("uint8", "uint16"):
        free = [v for v in (np.iinfo(dtype).max, 0) if v not in codes]
        if codes.min() >= 0 and codes.max() <= np.iinfo(dtype).max and free:
            return dtype, int(free[0])
    return "int32", int(np.iinfo("int32").min)


def dropped(extra: Mapping[str, Any]) -> bool:
    """Whether a checkpoint was trained with modalities left out at random."""
    data = extra.get("data")
    return isinstance(data, dict) and float(data.get("drop_modality") or 0) > 0
