"""Explains a data set of tiles, in the MMEarth layout or as a packed copy, from its small arrays and a few tiles."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from multimae_eo.config import ModelConfig
from multimae_eo.data.layout import SPLITS
from multimae_eo.data.mmearth import PLACES, MMEarth, read_statistics
from multimae_eo.data.packed import open_tiles
from multimae_eo.data.tiles import ALL_TILES, Tiles, find, read_json
from multimae_eo.errors import DataError, MultiMAEError
from multimae_eo.explain.page import amount, block, command, facts, listed, page, table
from multimae_eo.modalities import MODALITIES, PAPER_INPUTS, PAPER_TARGETS, Modality, parse_view

PIXEL = 10  # m
# Tiles whose place is looked at, and those that are read; both are spread evenly.
PLACED, READ = 100_000, 100
# What a model is by default: edges of its images and patches in pixels, and how many tokens are visible.
_FRAME, _PATCH, _VISIBLE = ModelConfig().image_size, ModelConfig().patch_size, 49


def explain(path: Path, out: Path | None = None) -> str:
    """What a data set of tiles holds and which modalities it feeds; raises DataError where it is damaged.

    out: where to draw where the tiles lie and in which months.
    """
    folder, name = find(path)
    rows, fed, tiles, problem = [], [], None, ""
    for modality in MODALITIES.values():
        try:
            own = open_tiles(folder, [modality])
            tiles = own if tiles is None else tiles
            said = _products(folder, modality)
            fed.append(modality.name)
        except MultiMAEError as error:
            short = re.sub(rf"'{re.escape(str(folder))}/[^']*'", "it", str(error))
            said = "no: " + re.split(r"; |\. ", short)[0]
            problem = problem or str(error)
        rows.append([modality.name, " ".join(modality.bands), said])
    if tiles is None:
        raise DataError(problem)
    places, month, split = _where(tiles), _months(tiles), _splits(folder, name, tiles.length)
    counts = {key: int((split == i).sum()) for i, key in enumerate(SPLITS)}
    absent = [m for m in range(1, 13) if m not in month]
    about = facts(
        ("splits", ", ".join(f"{key} {n:,}" for key, n in counts.items() if n) or f"none: {name}_splits.json has none"),
        ("places", _extent(*places)),
        ("months", (f"none in {listed(absent)}" if absent else "all twelve") if month.size else ""),
    )
    kind = "Data set in the MMEarth layout" if isinstance(tiles, MMEarth) else "Packed copy of a data set"
    px = tiles.tile_px
    title = f"{kind}: {amount(tiles.length, 'tile')} of {px} x {px} px ({px * PIXEL} m)"
    parts = [about, table(["modality", "bands", "products, or why it is not fed"], rows), _next(folder, fed, px)]
    if out is not None:
        parts.append(_drawn(places, month, split[:: _step(tiles)], out, title))
    return page(title, tiles.path, *parts)


def _products(folder: Path, modality: Modality) -> str:
    """The products of some tiles of a modality, which are read."""
    own = read_statistics(folder, [modality])[modality.name]
    tiles = open_tiles(folder, [own])
    rows = np.unique(np.linspace(0, tiles.length - 1, min(tiles.length, READ)).astype(int))
    raster = tiles.read(rows.tolist())[modality.name]
    tiles.close()
    there = raster.valid.flatten(1).any(dim=1)
    found = Counter(raster.product[there].tolist())
    shares = {own.products[i]: 100 * n / len(rows) for i, n in sorted(found.items())}
    shares |= {"none in": 100 - 100 * int(there.sum()) / len(rows)} if not there.all() else {}
    if not there.any():
        raise DataError(f"no pixel is measured in the {len(rows)} tiles that were read")
    return ", ".join(product + (f" {part:.0f} %" if part < 100 else "") for product, part in shares.items())


def _step(tiles: Tiles) -> int:
    return -(-tiles.length // PLACED)


def _where(tiles: Tiles) -> tuple[np.ndarray, np.ndarray]:
    """Latitude and longitude of the tiles that are looked at; empty where the data set does not say them."""
    try:
        if isinstance(tiles, MMEarth):
            return tuple(np.degrees(tiles.angles(name, _step(tiles))) for name in PLACES)
        return tiles.places(np.arange(0, tiles.length, _step(tiles)))
    except DataError:
        return np.empty(0), np.empty(0)


def _months(tiles: Tiles) -> np.ndarray:
    """1 to 12, of the tiles that are looked at; empty where the data set does not say them."""
    try:
        turns = tiles.angles("month", _step(tiles)) / (2 * np.pi) if isinstance(tiles, MMEarth) else np.empty(0)
    except DataError:
        return np.empty(0, int)
    return (np.rint(12 * turns).astype(int) - 1) % 12 + 1


def _splits(folder: Path, name: str, length: int) -> np.ndarray:
    """The split of each row as an index into `layout.SPLITS`, -1 for none."""
    split = np.full(length, -1, np.int8)
    try:
        content = read_json(folder, name, "splits", megabytes=ALL_TILES)
    except DataError:
        return split
    for number, key in enumerate(SPLITS):
        members = np.asarray(content.get(key, []) if isinstance(content, dict) else [])
        if members.dtype.kind == "i":
            split[members[(members >= 0) & (members < length)]] = number
    return split


def _extent(lat: np.ndarray, lon: np.ndarray) -> str:
    if not lat.size:
        return "not known: there is no 'lat' and 'lon', which a split by blocks needs"
    ends = zip(np.r_[lat.min(), lat.max(), lon.min(), lon.max()], ("NS", "NS", "EW", "EW"), strict=True)
    south, north, west, east = (f"{abs(value):.1f} {sides[int(value < 0)]}" for value, sides in ends)
    return f"{south} to {north}, {west} to {east}"


def _next(folder: Path, fed: Sequence[str], px: int) -> str:
    """The command that pre-trains on it, without the views that it cannot feed."""
    inputs, targets = (
        [view for view in views if parse_view(view).modality in fed] for views in (PAPER_INPUTS, PAPER_TARGETS)
    )
    if not inputs or px < _PATCH:
        return "Nothing can be trained on it as it is: it feeds no modality, or its tiles are smaller than a patch."
    words: list[object] = ["--data.root", folder]
    for option, views, all_views in (("inputs", inputs, PAPER_INPUTS), ("targets", targets, PAPER_TARGETS)):
        words += [f"--model.{option}", f"[{','.join(views)}]"] if len(views) < len(all_views) else []
    words += ["--model.image_size", px // _PATCH * _PATCH] if px < _FRAME else []
    tokens = len(inputs) * (min(px, _FRAME) // _PATCH) ** 2
    words += ["--mask.num_visible", max(1, tokens // len(PAPER_INPUTS))] if tokens <= _VISIBLE else []
    return block("Pre-train on it (docs/pretrain.md):", command("pretrain", *words))


def _drawn(places: tuple[np.ndarray, np.ndarray], month: np.ndarray, split: np.ndarray, out: Path, title: str) -> str:
    """Draw where the tiles lie; says where the picture is, or why there is none."""
    if not places[0].size:
        return "No picture: it is not known where the tiles lie."
    from multimae_eo.visualize_tiles import save_tiles

    try:
        return f"Look at {save_tiles(*places, month, split, out, title=title)}."
    except OSError as error:
        raise MultiMAEError(f"'{out}' cannot be written: {error.strerror}.") from error
