"""Pictures of a data set of tiles: where they lie, and in which months they were seen."""

import os
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from multimae_eo.visualize import save_figure

# Okabe and Ito's: colours that differ for everybody.
_SPLITS = {-1: ("in no split", "#666666"), 0: ("train", "#0072b2"), 1: ("val", "#e69f00"), 2: ("test", "#009e73")}
CROWDED = 3_000  # more tiles than these are drawn as a density


def save_tiles(
    lat: np.ndarray, lon: np.ndarray, month: np.ndarray, split: np.ndarray, path: str | os.PathLike[str], *, title: str
) -> Path:
    """Draw a map of tiles, and how many there are in each month.

    lat, lon: degrees [n]; month: 1 to 12 [n], empty where it is not known; split: index into train, val, test, or -1
    [n].
    """
    figure = Figure(figsize=(9.0, 7.2 if month.size else 5.0), dpi=110, layout="constrained")
    figure.suptitle(title, fontsize=11)
    rows = 2 if month.size else 1
    chart, *seasons = figure.subplots(rows, 1, height_ratios=[2, 1][:rows], squeeze=False)[:, 0]
    _map(chart, lat, lon, split)
    for axes in seasons:
        north, south = (np.bincount(month[half], minlength=13)[1:13] for half in (lat >= 0, lat < 0))
        axes.bar(range(1, 13), north, color="#56b4e9", label="northern hemisphere")
        axes.bar(range(1, 13), south, bottom=north, color="#d55e00", label="southern hemisphere")
        axes.set(xticks=range(1, 13), xlabel="month", ylabel="tiles", ylim=(0, 1.4 * (north + south).max()))
        axes.legend(fontsize=8)
    return save_figure(figure, path)


def _map(axes: Axes, lat: np.ndarray, lon: np.ndarray, split: np.ndarray) -> None:
    """A degree of longitude is as long as it is in the middle of the map."""
    axes.set(xlabel="degrees east", ylabel="degrees north")
    axes.set_aspect(1 / np.cos(np.radians((lat.min() + lat.max()) / 2)), adjustable="datalim")
    if len(lat) > CROWDED:
        shown = axes.hexbin(lon, lat, bins="log", mincnt=1, gridsize=120)
        axes.figure.colorbar(shown, ax=axes, label="tiles")
        return
    for number, (name, color) in _SPLITS.items():
        own = split == number
        if own.any():
            axes.scatter(lon[own], lat[own], s=8, color=color, label=f"{name}: {own.sum():,}")
    axes.legend(fontsize=8)
