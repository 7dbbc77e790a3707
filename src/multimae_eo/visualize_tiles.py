"""Pictures of a data set of tiles: where they lie, and in which months they were seen."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator

from multimae_eo.visualize import save_figure

SPLITS = ("train", "val", "test")
# Okabe and Ito's: colours that differ for everybody.
_COLORS = ("#0072b2", "#e69f00", "#009e73")
_OTHER = "#666666"
_NORTH, _SOUTH = "#56b4e9", "#d55e00"
_ABOVE: Any = {"loc": "lower left", "bbox_to_anchor": (-0.01, 0.99), "ncols": 4, "fontsize": 8, "frameon": False}
_STEPS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20)  # degrees
CROWDED = 3_000  # more tiles than these are drawn as a density
WHOLE_EARTH = 120  # degrees of longitude from which on the map shows all of it


def save_tiles(
    lat: np.ndarray, lon: np.ndarray, month: np.ndarray, split: np.ndarray, path: str | os.PathLike[str], *, title: str
) -> Path:
    """Draw a map of tiles, and how many there are in each month.

    lat, lon: degrees [n]; month: 1 to 12 [n]; split: index into train, val, test, or -1 [n]. month and split may be
    empty where they are not known.
    """
    rows = 2 if month.size else 1
    figure = Figure(figsize=(9.0, 5.0 + 2.2 * (rows - 1)), dpi=110, layout="constrained")
    figure.suptitle(title, fontsize=11)
    chart, *seasons = figure.subplots(rows, 1, height_ratios=[2.5, 1][:rows], squeeze=False)[:, 0]
    _map(chart, lat, lon, split)
    for axes in seasons:
        _months(axes, lat, month)
    return save_figure(figure, path)


def _map(axes: Axes, lat: np.ndarray, lon: np.ndarray, split: np.ndarray) -> None:
    """Equirectangular: a degree of longitude is as long as it is in the middle of the map."""
    west, east, south, north = _extent(lat, lon)
    middle = 0.0 if east - west >= 360 else (south + north) / 2
    axes.set(xlim=(west, east), ylim=(south, north))
    axes.set_aspect(1 / np.cos(np.radians(middle)))
    step = _step(max(east - west, north - south))
    for axis, names in ((axes.xaxis, ("E", "W")), (axes.yaxis, ("N", "S"))):
        axis.set_major_locator(MultipleLocator(step))
        axis.set_major_formatter(FuncFormatter(lambda value, _, names=names: _degrees(value, *names)))
    axes.grid(color="0.85", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)
    if len(lat) > CROWDED:
        _density(axes, lat, lon, (west, east, south, north))
    else:
        _points(axes, lat, lon, split)


def _extent(lat: np.ndarray, lon: np.ndarray) -> tuple[float, float, float, float]:
    """West, east, south, north of the map: all of the Earth, or the tiles with some room around them."""
    if np.ptp(lon) >= WHOLE_EARTH:
        return -180.0, 180.0, -90.0, 90.0
    room = max(0.08 * max(np.ptp(lon), np.ptp(lat)), 0.05)
    south, north = max(-90.0, lat.min() - room), min(90.0, lat.max() + room)
    # Neither a ribbon nor a column: at least half as high as wide, and the other way round.
    stretch = np.cos(np.radians((south + north) / 2))
    wide, high = (np.ptp(lon) + 2 * room) * stretch, north - south
    more_high, more_wide = max(0.0, wide / 2 - high) / 2, max(0.0, high / 2 - wide) / 2 / stretch
    south, north = max(-90.0, south - more_high), min(90.0, north + more_high)
    return float(lon.min() - room - more_wide), float(lon.max() + room + more_wide), float(south), float(north)


def _step(span: float) -> float:
    """Degrees between the lines of the graticule."""
    return next((s for s in _STEPS if span / s <= 8), 30)


def _degrees(value: float, positive: str, negative: str) -> str:
    side = positive if value > 0 else negative if value < 0 else ""
    return f"{abs(value):.4g}°{' ' * bool(side)}{side}"


def _density(axes: Axes, lat: np.ndarray, lon: np.ndarray, extent: tuple[float, float, float, float]) -> None:
    """Tiles per square of the map, on a scale of logarithms."""
    west, east, south, north = extent
    edge = next(s for s in _STEPS if (east - west) / s <= 200)
    west, south = edge * np.floor(west / edge), edge * np.floor(south / edge)
    bins = [np.arange(west, east + edge, edge), np.arange(south, north + edge, edge)]
    counts, xs, ys = np.histogram2d(lon, lat, bins)
    shown = axes.pcolormesh(
        xs, ys, np.where(counts > 0, counts, np.nan).T, norm=LogNorm(1, max(2, counts.max())), cmap="viridis_r"
    )
    bar = axes.figure.colorbar(shown, ax=axes, shrink=0.6, pad=0.01, format="{x:,.0f}")
    bar.set_label(f"tiles per square of {edge:g}°", fontsize=8)
    bar.ax.tick_params(labelsize=8)


def _points(axes: Axes, lat: np.ndarray, lon: np.ndarray, split: np.ndarray) -> None:
    """A point per tile, in the colour of its split."""
    size = 14 if len(lat) <= 500 else 6
    split = split if split.size else np.full(len(lat), -1)
    for number, color in ((-1, _OTHER), *enumerate(_COLORS)):
        own = split == number
        if own.any():
            name = SPLITS[number] if number >= 0 else "in no split"
            axes.scatter(lon[own], lat[own], s=size, color=color, linewidth=0, label=f"{name}: {own.sum():,}", zorder=3)
    axes.legend(**_ABOVE, handletextpad=0.1)


def _months(axes: Axes, lat: np.ndarray, month: np.ndarray) -> None:
    """Tiles per month, those of the northern and the southern hemisphere side by side where there are both."""
    names = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
    both = (("northern hemisphere", lat >= 0, _NORTH), ("southern hemisphere", lat < 0, _SOUTH))
    halves = [half for half in both if half[1].any()]
    for place, (name, own, color) in enumerate(halves):
        counts = np.bincount(month[own], minlength=13)[1:13]
        where = np.arange(12) + 0.4 * (place - (len(halves) - 1) / 2)
        axes.bar(where, counts, 0.4, color=color, label=f"{name}: {own.sum():,}")
    axes.set_xticks(range(12), names)
    axes.set_ylabel("tiles", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(**_ABOVE)
