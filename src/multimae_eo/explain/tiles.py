"""Explains a data set of tiles, in the MMEarth layout or as a packed copy; reads the small arrays, never the pixels."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np

from multimae_eo.config import ModelConfig
from multimae_eo.data.layout import ADDRESSES, ARRAYS, SPLITS
from multimae_eo.data.mmearth import PLACES, MMEarth, array_of, read_statistics
from multimae_eo.data.packed import PRODUCTS, TILES, Index, Packed, shard_name
from multimae_eo.data.tiles import INDEX, find, read_json
from multimae_eo.errors import DataError, MultiMAEError, StatisticsError
from multimae_eo.explain.page import amount, block, command, facts, file_size, listed, page, share, table
from multimae_eo.modalities import MODALITIES, PAPER_INPUTS, PAPER_TARGETS, Continuous, Modality, parse_view

PIXEL = 10  # m
# Of more tiles than these only so many are looked at: the release has a chunk per tile, which takes 10 us each.
LOOKED_AT = 200_000
_SLICE = 5_000
_PACKED_PRODUCTS = 2_000  # tiles whose products are looked up; each is a page of the disk
_DATES = 32 << 20  # bytes of tile_info.json that dates are taken from
# What a model is by default: edges of its images and patches in pixels, and how many tokens are visible.
_FRAME, _PATCH, _VISIBLE = ModelConfig().image_size, ModelConfig().patch_size, 49
_SIDE_FILES = ("band_stats", "splits", "tile_info")
# The arrays of single numbers that the layout has beside the images.
_FACTS = (*PLACES, "month", "metadata")


@dataclass
class Facts:
    """What is known of the tiles that were looked at; an array is empty where the data set does not say it.

    rows: their numbers, int64 [n]; lat, lon: degrees, float [n]; month: 1 to 12, int [n]; split: int [all tiles], an
    index into `layout.SPLITS`, or -1; products: how many are L1C and L2A.
    """

    rows: np.ndarray
    lat: np.ndarray
    lon: np.ndarray
    month: np.ndarray
    split: np.ndarray
    products: Counter[str] = field(default_factory=Counter)


class Contents(MMEarth):
    """The file of a data set, whatever it holds: nothing is asked of it when it is opened, so that it can be told."""

    def __init__(self, root: Path):
        self.folder, self.name = find(root)
        self.path = self.folder / f"{self.name}.h5"
        self._open, self._chunks, self.modalities = None, {}, ()
        file = self._file()
        self.found = {str(n): (a.dtype, a.shape) for n, a in file.items() if hasattr(a, "shape")}
        images = [shape for name, (_, shape) in self.found.items() if name in ARRAYS and len(shape) == 4]
        if not images:
            inside = listed(file) or "nothing"
            raise DataError(f"'{self.path}' is no MMEarth layout: it holds {inside}; expected any of {listed(ARRAYS)}.")
        self.length, self.tile_px = images[0][0], images[0][2]

    def column(self, name: str, width: int) -> np.ndarray:
        """The rows of a small array [tiles, width] that are looked at; empty where it is missing or another shape."""
        dtype, shape = self.found.get(name, (np.dtype("f4"), ()))
        if shape != (self.length, width) or dtype.kind != "f":
            return np.empty((0, width))
        return self._looked_at(name)

    def products(self) -> Counter[str]:
        """How many of the tiles that are looked at are of each product."""
        dtype, shape = self.found.get("metadata", (np.dtype("f4"), ()))
        if "S2_type" not in (dtype.names or ()) or shape != (self.length,):
            return Counter()
        names, counts = np.unique(self._looked_at("metadata", "S2_type"), return_counts=True)
        return Counter({n.decode("ascii", "replace").upper(): int(c) for n, c in zip(names, counts, strict=True)})

    def _looked_at(self, name: str, part: str | None = None) -> np.ndarray:
        array: Any = self._file()[name]
        try:
            source = array.fields(part) if part else array
            return np.concatenate([source[rows] for rows in slices(self.length)])
        except OSError as error:
            raise DataError(f"'{self.path}', array '{name}' cannot be read, it may be truncated: {error}.") from error


def slices(length: int) -> Iterator[slice]:
    """The rows that are looked at: all, or as many as `LOOKED_AT` in slices that are spread evenly."""
    number = -(-min(length, LOOKED_AT) // _SLICE)
    size = length if not number else -(-min(length, LOOKED_AT) // number)
    for start in np.linspace(0, max(0, length - size), max(1, number)).astype(int):
        yield slice(int(start), int(start) + size)


def explain_tiles(path: Path, *, out: Path | None = None) -> str:
    """What a data set of tiles holds and which modalities it feeds; raises DataError where it is damaged.

    out: where to draw where the tiles lie and in which months.
    """
    folder, name = find(path)
    if (folder / f"{name}{INDEX}").is_file():
        pack = Packed(folder, [])
        known, length = _of_pack(pack), pack.length
        text = _pack(pack, folder, name, _told(known, length, folder, name))
    else:
        contents = Contents(folder)
        try:
            known, length = _of_layout(contents), contents.length
            text = _layout(contents, _told(known, length, folder, name))
        finally:
            contents.close()
    return text + _drawn(known, length, name, out)


def _of_layout(contents: Contents) -> Facts:
    """Facts from the arrays beside the images; angles are stored as sines and cosines."""
    rows = np.concatenate([np.arange(s.start, s.stop) for s in slices(contents.length)])
    lat, lon = (np.degrees(_angle(contents.column(name, 2))) for name in PLACES)
    month = np.rint(_angle(contents.column("month", 2)) * 6 / np.pi).astype(int)
    month = (month - 1) % 12 + 1
    split = _splits(contents.folder, contents.name, contents.length)
    return Facts(rows, lat, lon, month, split, contents.products())


def _angle(pairs: np.ndarray) -> np.ndarray:
    return np.arctan2(pairs[:, 0], pairs[:, 1])


def _of_pack(pack: Packed) -> Facts:
    rows = np.concatenate([np.arange(s.start, s.stop) for s in slices(pack.length)])
    try:
        lat, lon = pack.places(rows)
    except DataError:  # the packed file had none
        lat = lon = np.empty(0)
    except (ValueError, EOFError, OSError, TokenError) as error:  # what NumPy makes of a damaged header
        raise DataError(f"'{pack.folder}/{pack.name}{TILES}' is cut or damaged ({error}); pack again.") from error
    split = _splits(pack.folder, pack.name, pack.length)
    return Facts(rows, lat, lon, np.empty(0, int), split, _packed_products(pack))


def _packed_products(pack: Packed) -> Counter[str]:
    """Of Sentinel-2, from tiles that are spread evenly; each record has the number of its product."""
    index = pack.index
    place = next((i for i, stored in enumerate(index.modalities.values()) if "L1C" in stored.products), None)
    if place is None:
        return Counter()
    names = list(index.modalities.values())[place].products
    chosen = np.unique(np.linspace(0, pack.length - 1, min(pack.length, _PACKED_PRODUCTS)).astype(int))
    found: Counter[str] = Counter()
    for number in range(len(index.shards)):
        own = chosen[chosen // index.tiles_per_shard == number] % index.tiles_per_shard
        if own.size:
            path = pack.folder / shard_name(pack.name, number)
            shard = index.shards[number]  # its length is checked by now, and its header told by the index
            kinds = np.memmap(path, pack.record, "r", shard.header, shard.tiles)[PRODUCTS][own, place]
            found.update(names[kind] for kind in kinds.tolist() if kind < len(names))
    return found


def _splits(folder: Path, name: str, length: int) -> np.ndarray:
    """The split of each row, -1 for none; empty where the side file is missing."""
    try:
        table = read_json(folder, name, "splits")
    except DataError:
        return np.empty(0, int)
    split = np.full(length, -1)
    for number, key in enumerate(SPLITS):
        members = np.asarray(table.get(key, []) if isinstance(table, dict) else [])
        if members.dtype.kind == "i":
            split[members[(members >= 0) & (members < length)]] = number
    return split


def _told(known: Facts, length: int, folder: Path, name: str) -> str:
    """Splits, places, dates and products as lines."""
    looked = len(known.rows)
    partly = f" (of {looked:,} tiles that were looked at, spread evenly)" if looked < length else ""
    counts = {split: int((known.split == i).sum()) for i, split in enumerate(SPLITS)}
    splits = ", ".join(f"{split} {n:,}" for split, n in counts.items() if n)
    if splits and not counts["val"]:
        splits += "; pre-training holds some of train out for validation, in blocks of 1 degree"
    if not known.split.size:
        splits = f"{name}_splits.json is missing; pre-training needs it"
    total = sum(known.products.values())
    products = ", ".join(f"{n} {share(count, total)}" for n, count in sorted(known.products.items()))
    missing = [f"{name}_{kind}.json" for kind in _SIDE_FILES[:2] if not (folder / f"{name}_{kind}.json").is_file()]
    return facts(
        ("splits", splits),
        ("places", _places(known) + partly * bool(known.lat.size)),
        ("dates", _dates(folder, name, known)),
        ("Sentinel-2", f"{products} of the tiles{partly}" if products else ""),
        ("statistics", f"missing: {listed(missing)}" if missing else f"{name}_band_stats.json"),
    )


def _places(known: Facts) -> str:
    if not known.lat.size:
        return "not known: there is no 'lat' and 'lon', which a split by blocks needs"
    north, south = (_degrees(v, "N", "S") for v in (known.lat.max(), known.lat.min()))
    west, east = (_degrees(v, "E", "W") for v in (known.lon.min(), known.lon.max()))
    return f"{south} to {north}, {west} to {east}"


def _degrees(value: float, positive: str, negative: str) -> str:
    return f"{abs(value):.1f} {positive if value >= 0 else negative}"


def _dates(folder: Path, name: str, known: Facts) -> str:
    """The first and last day in the side file, as far as it is read, and the months that occur."""
    path = folder / f"{name}_tile_info.json"
    text = "" if known.month.size or path.is_file() else "not in a packed copy, nor the months"
    if path.is_file():
        with path.open("rb") as file:
            days = re.findall(rb'"S2_DATE":\s*"(\d{4}-\d\d-\d\d)"', file.read(_DATES))
        if days:
            text = f"{min(days).decode()} to {max(days).decode()}"
            text += " (of the first tiles)" if path.stat().st_size > _DATES else ""
    if known.month.size:
        absent = [m for m in range(1, 13) if m not in known.month]
        seasons = "every month" if not absent else f"no tile of month {listed(absent)}"
        text += f"; {seasons}" if text else f"the year is not known; {seasons}"
    return text


def _layout(contents: Contents, told: str) -> str:
    """The page of a data set in the MMEarth layout. told: what is known of its tiles."""
    rows, fed = [], []
    for name, modality in MODALITIES.items():
        array, problem, products = array_of(modality), "", ""
        problem = _array_problem(contents, array)
        if not problem:
            products, problem = _statistics(contents.folder, modality)
        fed += [] if problem else [name]
        dtype = str(contents.found[array][0]) if array in contents.found else ""
        rows.append([name, " ".join(modality.bands), array, dtype, f"no: {problem}" if problem else products])
    others = [n for n in contents.found if n not in ARRAYS]
    px, size = contents.tile_px, file_size(contents.path.stat().st_size)
    title = f"Data set in the MMEarth layout: {_tiles(contents.length, px)}, {size}"
    head = ["modality", "bands", "array", "type", "fed, with statistics of"]
    more = facts(
        ("also there", listed(others)),
        ("missing", listed(n for n in _FACTS if n not in contents.found)),
    )
    return page(title, contents.path, told, table(head, rows), more, _next(contents.folder, fed, px, packed=False))


def _tiles(number: int, px: int) -> str:
    return f"{amount(number, 'tile')} of {px} x {px} px ({px * PIXEL} m)"


def _array_problem(contents: Contents, array: str) -> str:
    """Why an array does not feed its modality; nothing where it does."""
    if array not in contents.found:
        return f"the file has no array '{array}'"
    spec, (dtype, shape) = ARRAYS[array], contents.found[array]
    expected = (contents.length, spec.channels, contents.tile_px, contents.tile_px)
    if shape != expected or dtype != np.dtype(spec.dtype):
        return f"'{array}' is {dtype} {list(shape)}, expected {spec.dtype} {list(expected)}"
    names = contents.found.get("metadata", (np.dtype("f4"), ()))[0].names or ()
    if array == "sentinel2" and "tile_id" not in names:
        return "'metadata' does not say which tile is L1C and which L2A"
    return ""


def _statistics(folder: Path, modality: Modality) -> tuple[str, str]:
    """The products that there are statistics of, and what is wrong with them."""
    if not isinstance(modality, Continuous):
        return "classes need none", ""
    try:
        return ", ".join(read_statistics(folder, [modality])[modality.name].products), ""
    except (StatisticsError, DataError):
        keys = dict.fromkeys(a.statistics or "" for b in modality.bands for a in ADDRESSES[b].values())
        return "", f"no statistics ({' or '.join(keys)})"


def _pack(pack: Packed, folder: Path, name: str, told: str) -> str:
    """The page of a packed copy. told: what is known of its tiles."""
    index: Index = pack.index
    rows = []
    for modality in MODALITIES.values():
        stored = index.modalities.get(modality.name)
        said = ", ".join(stored.products) if stored else "no: it was not packed"
        bands = " ".join(stored.bands if stored else modality.bands)
        rows.append([modality.name, bands, np.dtype(stored.dtype).name if stored else "", said])
    size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    title = f"Packed copy of '{index.source}': {_tiles(index.tiles, index.tile_px)}, {file_size(size)}"
    title += f" in {amount(len(index.shards), 'shard')}"
    fed = [name for name in MODALITIES if name in index.modalities]
    parts = (table(["modality", "bands", "type", "fed, with statistics of"], rows),)
    return page(title, folder / f"{name}{INDEX}", told, *parts, _next(folder, fed, index.tile_px, packed=True))


def _next(folder: Path, fed: Sequence[str], px: int, *, packed: bool) -> str:
    """The command that pre-trains on it, without the views that it cannot feed."""
    inputs, targets = (
        [view for view in views if parse_view(view).modality in fed] for views in (PAPER_INPUTS, PAPER_TARGETS)
    )
    if not inputs or px < _PATCH:
        return "Nothing can be trained on it as it is: no modality can be fed, or its tiles are smaller than a patch."
    words: list[object] = ["--data.root", folder]
    for option, views, all_views in (("inputs", inputs, PAPER_INPUTS), ("targets", targets, PAPER_TARGETS)):
        words += [f"--model.{option}", f"[{','.join(views)}]"] if len(views) < len(all_views) else []
    if px < _FRAME:
        words += ["--model.image_size", px // _PATCH * _PATCH]
    tokens = len(inputs) * (min(px, _FRAME) // _PATCH) ** 2
    if tokens <= _VISIBLE:
        words += ["--mask.num_visible", max(1, tokens // len(PAPER_INPUTS))]
    lines = [command("pretrain", *words)]
    if not packed:
        lines.append(command("pack", folder, "packs") + "    # a copy that trains faster")
    return block("Pre-train on it:", *lines)


def _drawn(known: Facts, length: int, name: str, out: Path | None) -> str:
    """Draw where the tiles lie; says where the picture is, or why there is none."""
    if out is None:
        return ""
    if not known.lat.size:
        return "\n\nNo picture: it is not known where the tiles lie."
    try:
        from multimae_eo.visualize_tiles import save_tiles

        title = f"{name}: {amount(length, 'tile')}"
        split = known.split[known.rows] if known.split.size else known.split
        title += f" ({len(known.rows):,} shown, spread evenly)" if len(known.rows) < length else ""
        return f"\n\nLook at {save_tiles(known.lat, known.lon, known.month, split, out, title=title)}."
    except OSError as error:
        raise MultiMAEError(f"'{out}' cannot be written: {error.strerror}.") from error
