"""Pictures: reconstruction panels, one row per view, and loss curves; units, legends and true proportions included."""

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from multimae_eo.encoder import layout_of, with_absent
from multimae_eo.errors import WriteError
from multimae_eo.masking import TokenMask
from multimae_eo.modalities import Categorical, Continuous, Modality
from multimae_eo.model import Decoder, MultiMAE
from multimae_eo.raster import Batch, Raster
from multimae_eo.whole import written

# Grey of pixels that are hidden, and of those that were never measured.
HIDDEN, MISSING = (0.80, 0.80, 0.80), (0.45, 0.45, 0.45)
COLUMNS = ("target", "visible", "reconstruction", "error")


class Strip(NamedTuple):
    """One row of a panel as numpy arrays: physical values [c, h, w], validity [h, w] and which pixels are hidden."""

    modality: Modality
    target: np.ndarray
    valid: np.ndarray
    hidden: np.ndarray
    predicted: np.ndarray


def save_panels(
    model: MultiMAE, batch: Batch, mask: TokenMask, path: str | os.PathLike[str], *, names: Sequence[str], title: str
) -> Path:
    """Draw what the model makes of a batch: per view (rows) target, what was visible, reconstruction and error.

    batch: rasters [b, c, h, w] in physical units; names: one per sample, which stand side by side. Three bands are
    shown as red, green and blue with one stretch per view and sample, else the first band with its colour bar.
    """
    was_training = model.training
    model.eval()
    with torch.no_grad():
        predicted = model.reconstruct(batch, mask)
    model.train(was_training)
    views = list(model.views())
    width = len(COLUMNS) + 1.1
    figure = Figure(figsize=(1.35 * width * len(names) + 1.2, 1.42 * len(views) + 1.3), dpi=110, layout="constrained")
    figure.suptitle(title)
    columns = figure.subfigures(1, len(names), squeeze=False)[0]
    for sample, (part, name) in enumerate(zip(columns, names, strict=True)):
        part.suptitle(name, fontsize=9)
        axes = part.subplots(len(views), len(COLUMNS) + 1, width_ratios=[1, 1, 1, 1, 0.1], squeeze=False)
        for row, (view, decoder) in enumerate(views):
            strip = _strip(model, decoder, batch, mask, predicted[view], sample)
            _draw_strip(axes[row], strip, view if sample == 0 else "")
        for axis, column in zip(axes[0], COLUMNS, strict=False):
            axis.set_title(column, fontsize=8)
    _legend(figure, [m for m in model.config.modalities.values() if isinstance(m, Categorical)])
    return save_figure(figure, path)


def _strip(model: MultiMAE, decoder: Decoder, batch: Batch, mask: TokenMask, predicted: Tensor, sample: int) -> Strip:
    layout = layout_of(model.config, batch)
    raster: Raster = with_absent(model.config, batch, (decoder.modality,))[decoder.modality]
    hidden = torch.ones(layout.grid, dtype=torch.bool)
    if decoder.modality in layout.names:
        tokens = mask.hidden(*layout.shape)[sample, layout.names.index(decoder.modality)]
        hidden = tokens.unflatten(0, layout.grid).cpu()
    return Strip(
        model.config.modalities[decoder.modality],
        raster.values[sample].float().cpu().numpy(),
        decoder.codec.valid(raster)[sample].all(dim=0).cpu().numpy(),
        hidden.repeat_interleave(decoder.patch, 0).repeat_interleave(decoder.patch, 1).numpy(),
        predicted[sample].float().cpu().numpy(),
    )


def _draw_strip(axes: np.ndarray, strip: Strip, label: str) -> None:
    for axis in axes[:-1]:
        axis.set(xticks=[], yticks=[])
    axes[0].set_ylabel(label.replace(":", "\nper "), fontsize=8)
    if isinstance(strip.modality, Categorical):
        _draw_classes(axes, strip, strip.modality)
    else:
        _draw_values(axes, strip, strip.modality)


def _draw_classes(axes: np.ndarray, strip: Strip, modality: Categorical) -> None:
    colors = {c.code: matplotlib.colors.to_rgb(c.color) for c in modality.classes}

    def paint(codes: np.ndarray) -> np.ndarray:
        return np.array([[colors.get(int(c), MISSING) for c in row] for row in codes[0]])

    wrong = (strip.target != strip.predicted)[0]
    error = np.where(wrong[..., None], (0.8, 0.1, 0.1), (1.0, 1.0, 1.0))
    pictures = _cover(strip, paint(strip.target), paint(strip.predicted), error)
    for axis, picture in zip(axes[:-1], pictures, strict=True):
        axis.imshow(picture, interpolation="nearest")
    share = wrong[strip.valid].mean() if strip.valid.any() else float("nan")
    axes[3].set_xlabel(f"{100 * share:.0f} % wrong", fontsize=7)
    axes[-1].axis("off")


def _draw_values(axes: np.ndarray, strip: Strip, modality: Continuous) -> None:
    channels = [0, 1, 2] if len(modality.bands) == 3 else [0]
    known = strip.target[:, strip.valid]
    low, high = np.percentile(known[channels], (1, 99)) if known.size else (0.0, 1.0)
    high = max(high, low + 1e-3 * max(1.0, abs(low)))
    error = np.abs(strip.predicted - strip.target).mean(axis=0)
    worst = float(np.percentile(error[strip.valid], 98)) if strip.valid.any() else 1.0
    shown = matplotlib.colormaps[modality.colormap]

    def paint(values: np.ndarray) -> np.ndarray:
        scaled = np.clip((values[channels] - low) / (high - low), 0, 1)
        return scaled.transpose(1, 2, 0) if len(channels) == 3 else shown(scaled[0])[..., :3]

    error_map = matplotlib.colormaps["magma"](np.clip(error / max(worst, 1e-9), 0, 1))[..., :3]
    pictures = _cover(strip, paint(strip.target), paint(strip.predicted), error_map)
    for axis, picture in zip(axes[:-1], pictures, strict=True):
        axis.imshow(picture, interpolation="nearest")
    mean = error[strip.valid].mean() if strip.valid.any() else float("nan")
    axes[3].set_xlabel(f"mean {mean:.3g}, dark 0 to light {worst:.3g}", fontsize=6)
    if len(channels) == 3:
        axes[0].set_xlabel(f"{' '.join(modality.bands)}: {low:.0f} to {high:.0f}", fontsize=6)
        axes[-1].axis("off")
        return
    axes[0].set_xlabel(modality.bands[0], fontsize=6)
    scale = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(low, high), shown)
    bar = axes[0].figure.colorbar(scale, cax=axes[-1])
    bar.ax.tick_params(labelsize=6)
    bar.set_label(modality.unit, fontsize=6)


def _cover(strip: Strip, target: np.ndarray, predicted: np.ndarray, error: np.ndarray) -> list[np.ndarray]:
    """The four pictures, with grey where nothing was measured, and lighter grey where nothing was shown."""
    missing = ~strip.valid[..., None]
    visible = np.where(strip.hidden[..., None], HIDDEN, target)
    pictures = [np.where(missing, MISSING, p) for p in (target, visible)]
    return [*pictures, predicted, np.where(missing, MISSING, error)]


def _legend(figure: Figure, modalities: Sequence[Categorical]) -> None:
    handles = [Patch(color=c.color, label=c.name) for m in modalities for c in m.classes]
    handles += [Patch(color=HIDDEN, label="hidden"), Patch(color=MISSING, label="no data")]
    columns = min(7, int(figure.get_figwidth() / 1.6))  # inches that the longest name takes
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=7, frameon=False)


def save_curves(metrics: str | os.PathLike[str], path: str | os.PathLike[str]) -> Path:
    """Draw the validation loss of every view, and the training loss, over the steps of a metrics.csv."""
    with open(metrics, newline="") as file:
        rows = list(csv.DictReader(file))
    names = [n for n in rows[0] if n.startswith("val/") and n != "val/loss"]
    figure = Figure(figsize=(3.0 * 4, 2.4 * -(-len(names) // 4)), dpi=110, layout="constrained")
    axes = list(figure.subplots(-(-len(names) // 4), 4, squeeze=False).flat)
    for axis, name in zip(axes, names, strict=False):
        for kind, color in (("train", "0.7"), ("val", "C0")):
            column = name.replace("val/", f"{kind}/")
            points = [(int(r["step"]), float(r[column])) for r in rows if r["kind"] == kind]
            if points:
                axis.plot(*np.array(points).T, color=color, label=kind, linewidth=1.2, marker="." * (kind == "val"))
        axis.set_title(name.removeprefix("val/"), fontsize=9)
        axis.set_xlabel("step", fontsize=8)
        axis.tick_params(labelsize=7)
    for axis in axes[len(names) :]:
        axis.axis("off")
    figure.axes[0].legend(fontsize=7)
    figure.axes[0].set_ylabel("loss", fontsize=8)
    return save_figure(figure, path)


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Write a figure as PNG; it appears under its name only when complete."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written(path) as partial:
            figure.savefig(partial, format="png")
    except OSError as error:
        raise WriteError(f"'{path}' could not be written: {error.strerror or error}. Give another --out.") from error
    return path
