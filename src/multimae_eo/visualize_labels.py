"""Pictures of labels: predictions beside the labels, curves of fine-tuning, and transfer over the number of labels."""

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from multimae_eo.modalities import Continuous
from multimae_eo.predictor import Predictor
from multimae_eo.raster import Batch
from multimae_eo.visualize import MISSING, save_figure


def save_predictions(
    model: Predictor,
    batch: Batch,
    label: Tensor,
    known: Tensor,
    path: str | os.PathLike[str],
    *,
    names: Sequence[str],
    title: str,
) -> Path:
    """Draw images, their labels, predictions and errors, a row per sample.

    batch: rasters [b, c, h, w]; label, known: [b, h, w], as in `data.labelled.Label`.
    """
    predicted = model.predict(batch)[..., : label.shape[-2], : label.shape[-1]].cpu().numpy()
    truth, counted = label.cpu().numpy(), known.cpu().numpy()
    figure = Figure(figsize=(8.6, 2.0 * len(names) + 1.4), dpi=110, layout="constrained")
    figure.suptitle(title, fontsize=10)
    axes = figure.subplots(len(names), 4, squeeze=False)
    shown = _scale(model, truth, counted)
    for row, name in enumerate(names):
        image, what = _image(model, batch, row, truth.shape[-2:])
        wrong = _errors(model, predicted[row], truth[row])
        pictures = (image, shown(truth[row]), shown(predicted[row]), wrong)
        for axis, picture, grey in zip(axes[row], pictures, (False, True, False, True), strict=True):
            seen = np.expand_dims(counted[row], 2) if grey else np.ones(1, bool)
            axis.imshow(np.where(seen, picture, MISSING), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
        axes[row][0].set_ylabel(name, fontsize=7)
        axes[row][0].set_xlabel(what, fontsize=6)
        axes[row][3].set_xlabel(_summary(model, predicted[row], truth[row], counted[row]), fontsize=7)
    for axis, column in zip(axes[0], ("image", "label", "prediction", "error"), strict=True):
        axis.set_title(column, fontsize=9)
    _label_legend(figure, model, axes, truth, counted)
    return save_figure(figure, path)


def _image(model: Predictor, batch: Batch, row: int, size: tuple[int, int]) -> tuple[np.ndarray, str]:
    """The first modality of three bands as red, green and blue, else the first continuous band in grey."""
    kinds = {n: m for n in batch if isinstance(m := model.config.modalities[n], Continuous)}
    name = next((n for n, m in kinds.items() if len(m.bands) == 3), next(iter(kinds), None))
    if name is None:
        return np.ones((*size, 3)), ""
    raster, bands = batch[name], kinds[name].bands
    values = raster.values[row].float().cpu().numpy()[:, : size[0], : size[1]]
    valid = raster.valid[row].expand_as(raster.values[row]).cpu().numpy()[:, : size[0], : size[1]]
    chosen = [0, 1, 2] if len(bands) == 3 else [0, 0, 0]
    seen = values[chosen][valid[chosen]]
    low, high = np.percentile(seen, (1, 99)) if seen.size else (0.0, 1.0)
    scaled = np.clip((values[chosen] - low) / max(high - low, 1e-9), 0, 1).transpose(1, 2, 0)
    there = np.expand_dims(valid[chosen].all(axis=0), 2)
    named = " ".join(bands if len(bands) == 3 else bands[:1])
    return np.where(there, scaled, MISSING), f"{named}: {low:.4g} to {high:.4g}"


def _scale(model: Predictor, truth: np.ndarray, counted: np.ndarray) -> Any:
    """A function from labels [h, w] to colours [h, w, 3]."""
    if model.task.classes:
        table = np.array([matplotlib.colors.to_rgb(c.color) for c in model.task.classes])
        return lambda codes: table[codes]
    low, high = _range(truth, counted)
    return lambda values: matplotlib.colormaps["viridis"](np.clip((values - low) / max(high - low, 1e-9), 0, 1))[
        ..., :3
    ]


def _range(truth: np.ndarray, counted: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(truth[counted], (1, 99)) if counted.any() else (0.0, 1.0)
    return float(low), float(high)


def _errors(model: Predictor, predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    if model.task.classes:
        return np.where((predicted != truth)[..., None], (0.8, 0.1, 0.1), (1.0, 1.0, 1.0))
    return matplotlib.colormaps["magma"](np.clip(np.abs(predicted - truth) / (2 * model.task.std), 0, 1))[..., :3]


def _summary(model: Predictor, predicted: np.ndarray, truth: np.ndarray, counted: np.ndarray) -> str:
    if not counted.any():
        return "no label"
    if model.task.classes:
        return f"{100 * (predicted != truth)[counted].mean():.0f} % wrong"
    return f"mean error {np.abs(predicted - truth)[counted].mean():.3g} {model.task.unit}"


def _label_legend(figure: Figure, model: Predictor, axes: np.ndarray, truth: np.ndarray, counted: np.ndarray) -> None:
    missing = Patch(color=MISSING, label="not measured, or no label")
    if model.task.classes:
        handles = [Patch(color=c.color, label=c.name) for c in model.task.classes]
        figure.legend(handles=[*handles, missing], loc="outside lower center", ncols=4, fontsize=7, frameon=False)
        return
    scale = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(*_range(truth, counted)), "viridis")
    figure.colorbar(scale, ax=axes[:, 1:3].ravel().tolist(), shrink=0.6).set_label(
        model.task.unit or "label", fontsize=8
    )
    figure.legend(handles=[missing], loc="outside lower center", fontsize=7, frameon=False)


def save_finetune_curves(metrics: str | os.PathLike[str], path: str | os.PathLike[str], *, primary: str) -> Path:
    """Draw the losses and the primary validation metric over the steps of a metrics.csv."""
    with open(metrics, newline="") as file:
        rows = list(csv.DictReader(file))
    figure = Figure(figsize=(8, 3), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2)
    for column, color in (("train/loss", "0.7"), ("val/loss", "C0")):
        _curve(left, rows, column, color)
    _curve(right, rows, f"val/{primary}", "C0")
    left.set(xlabel="step", ylabel="loss")
    right.set(xlabel="step", ylabel=f"{primary} on valid")
    left.legend(fontsize=8)
    return save_figure(figure, path)


def _curve(axis: Axes, rows: Sequence[Mapping[str, str]], column: str, color: str) -> None:
    points = [(int(r["step"]), float(r[column])) for r in rows if r.get(column)]
    if points:
        axis.plot(*np.array(points).T, color=color, label=column, marker="." if "val" in column else "", linewidth=1.2)


def save_transfer(rows: Sequence[Mapping[str, Any]], path: str | os.PathLike[str], *, title: str) -> Path:
    """Draw a metric over the share of labels: a panel per task and protocol, a line per initialisation and inputs.

    rows: with task, protocol, inputs, init, labels, metric, mean, low and high, as in a demo's summary.json.
    """
    panels = list(dict.fromkeys((r["task"], r["protocol"]) for r in rows))
    lines = list(dict.fromkeys((r["init"], r["inputs"]) for r in rows))
    inits = list(dict.fromkeys(init for init, _ in lines))
    figure = Figure(figsize=(3.4 * len(panels), 3.8), dpi=110, layout="constrained")
    figure.suptitle(title, fontsize=10)
    for axis, panel in zip(figure.subplots(1, len(panels), squeeze=False, sharey=True)[0], panels, strict=True):
        for init, inputs in lines:
            line = [r for r in rows if (r["task"], r["protocol"], r["init"], r["inputs"]) == (*panel, init, inputs)]
            if line:
                style = {"color": f"C{inits.index(init)}", "linestyle": "-" if inputs == "all" else ":"}
                axis.plot(
                    [r["labels"] for r in line],
                    [r["mean"] for r in line],
                    marker=".",
                    label=f"{init}, {inputs}",
                    **style,
                )
                bounds = [[r[end] for r in line] for end in ("low", "high")]
                axis.fill_between([r["labels"] for r in line], *bounds, color=style["color"], alpha=0.12, linewidth=0)
        shares = sorted({r["labels"] for r in rows})
        axis.set(xscale="log", xlabel="share of the training labels", title=" ".join(panel))
        axis.set_xticks(shares, [f"{100 * s:g} %" for s in shares])
        axis.minorticks_off()
        axis.set_ylabel(next(r["metric"] for r in rows if (r["task"], r["protocol"]) == panel))
        axis.title.set_fontsize(9)
    figure.legend(
        *figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=7, frameon=False
    )
    return save_figure(figure, path)
