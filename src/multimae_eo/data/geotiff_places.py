"""What to import: the options checked, the places found by their file names, and every file checked before writing."""

import glob
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
from rasterio.warp import transform_bounds

from multimae_eo.data import geotiff_baseline as baseline
from multimae_eo.data.folders import plain
from multimae_eo.data.geotiff_source import SOURCES, Grid, Source, check_same_grid, check_source, class_table, survey
from multimae_eo.data.import_options import ImportOptions, SourceOptions
from multimae_eo.errors import ConfigError, DataError, GridError, UnknownNameError
from multimae_eo.modalities import WORLDCOVER

PRODUCTS = {"s2_l1c": "L1C", "s2_l2a": "L2A"}
SPLITS = ("train", "val", "test")
# Tags that state when an image was taken, in the order in which they are believed (lower case).
DATE_TAGS = ("product_start_time", "acquisitiondatetime", "sensing_time", "datetime", "tifftag_datetime")


@dataclass(frozen=True)
class Place:
    """A place whose files were checked.

    sources: by key; date: of the Sentinel-2 image; offsets: {key: "on" or "off"}, whether a file carries the +1000.
    """

    name: str
    sources: Mapping[str, Source]
    date: str
    split: str
    offsets: Mapping[str, str]

    @property
    def grid(self) -> Grid:
        """The grid that all its files share; a Sentinel-2 file states it."""
        return next(source.grid for key, source in self.sources.items() if key in PRODUCTS)


def given_sources(options: ImportOptions) -> dict[str, SourceOptions]:
    """The sources that are asked for, by key; Sentinel-2 first."""
    every = {key: getattr(options, key) for key in SOURCES}
    return {key: source for key, source in every.items() if source is not None}


def check_options(options: ImportOptions) -> None:
    given = given_sources(options)
    if not any(key in PRODUCTS for key in given):
        raise ConfigError("name Sentinel-2 files: s2_l1c.files or s2_l2a.files, or both.")
    if options.tile_px < 8 or (options.stride_px is not None and options.stride_px < 1):
        raise ConfigError(
            f"tile_px must be at least 8 and stride_px at least 1, got {options.tile_px}, {options.stride_px}."
        )
    if not 0 <= options.min_valid <= 1:
        raise ConfigError(f"min_valid must lie in [0, 1], got {options.min_valid:g}.")
    plain(options.name)
    for place, split in options.splits.items():
        if split not in SPLITS:
            raise UnknownNameError(f"split of place '{place}':", split, SPLITS)
    for text in (*options.dates.values(), *([options.date] if options.date else [])):
        if _day(text) is None or len(text) != 10:
            raise ConfigError(f"date '{text}': expected YYYY-MM-DD.")
    for key, source in given.items():
        if not np.isfinite(source.scale) or source.scale <= 0:
            raise ConfigError(f"{key}.scale must be positive, got {source.scale:g}.")
        if source.classes is not None and key != "worldcover":
            raise ConfigError(f"{key}.classes: only worldcover has classes.")
    if "worldcover" in given:
        known = {0, *(c.code for c in WORLDCOVER)}
        for code, meant in class_table(given["worldcover"]).items():
            if meant not in known:
                raise UnknownNameError(f"WorldCover code of class {code}:", str(meant), map(str, sorted(known)))


def find_places(options: ImportOptions) -> dict[str, dict[str, Path]]:
    """{place: {source: file}} for every place that has a Sentinel-2 file; raises DataError or UnknownNameError."""
    if not options.root.is_dir():
        raise DataError(f"root '{options.root}' is no folder; expected the one that the files lie in.")
    given = given_sources(options)
    found = {key: _match(options.root, key, source.files) for key, source in given.items()}
    names = sorted({place for key in PRODUCTS for place in found.get(key, {})})
    if not names:
        templates = " or ".join(f"'{given[key].files}' ({key}.files)" for key in PRODUCTS if key in given)
        raise DataError(f"no place found: no file in '{options.root}' matches {templates}. Check root and template.")
    _check_names(options, found, names)
    chosen = names if options.places is None else list(dict.fromkeys(options.places))
    lacks = [(n, k) for n in chosen for k in given if n not in found[k] and not given[k].optional]
    if lacks:
        missing = "; ".join(f"'{given[key].files}' of {key} for place '{place}'" for place, key in lacks)
        raise DataError(
            f"files are missing in '{options.root}': {missing}. Add them, leave the places out with `places`, "
            f"or set {lacks[0][1]}.optional: true."
        )
    return {place: {key: files[place] for key, files in found.items() if place in files} for place in chosen}


def _check_names(options: ImportOptions, found: Mapping[str, Mapping[str, Path]], places: Sequence[str]) -> None:
    """What options say of single places must be of places that exist; raises UnknownNameError or ConfigError."""
    if options.places is not None and not options.places:
        raise ConfigError("places is an empty list; name places, or leave it out for all.")
    for name in (*(options.places or ()), *options.splits, *options.dates, *options.s1_pass_of):
        if name not in places:
            raise UnknownNameError("place", name, places)
    images = [f"{place}_{PRODUCTS[key]}" for key in PRODUCTS for place in found.get(key, {})]
    for name in options.baseline_offset_of:
        if name not in images:
            raise UnknownNameError("entry of baseline_offset_of", name, images)


def _match(root: Path, key: str, template: str) -> dict[str, Path]:
    """{place: file} of the files that match a template; raises DataError where two files are one place."""
    found: dict[str, Path] = {}
    wild = template.replace("[", "[[]").replace("{place}", "*")
    pieces = [
        re.escape(p).replace(r"\*\*/", "(?:.*/)?").replace(r"\*", "[^/]*").replace(r"\?", "[^/]")
        for p in template.split("{place}")
    ]
    pattern = pieces[0] + "".join(("(?P=place)" if i else "(?P<place>[^/]+)") + p for i, p in enumerate(pieces[1:]))
    for name in sorted(glob.glob(wild, root_dir=root, recursive=True)):
        match = re.fullmatch(pattern, name)
        if match is None or not (root / name).is_file():
            continue
        place = match["place"] if len(pieces) > 1 else Path(name).stem
        if place in found:
            raise DataError(
                f"two files of {key} are place '{place}': '{found[place]}' and '{root / name}'. "
                f"Make {key}.files more exact; {{place}} stands for the place's name in it."
            )
        found[place] = root / name
    return found


def check_places(
    options: ImportOptions, places: Mapping[str, Mapping[str, Path]], say: Callable[[str], None]
) -> list[Place]:
    """Open and survey all files, so that what is wrong is known before anything is written."""
    checked, undecided = [], []
    for name, files in places.items():
        sources = _check_files(options, name, files)
        offsets = {}
        for key, product in PRODUCTS.items():
            if key in sources:
                decision = _decide(options, f"{name}_{product}", sources[key], product)
                say(f"{sources[key].path}: baseline offset {decision.offset} ({decision.why})")
                offsets[key] = decision.offset
                undecided += [f"{name}_{product} ({decision.why})"] if decision.offset == "undecided" else []
        day = _date(options, name, sources, say)
        checked.append(Place(name, sources, day, options.splits.get(name, "train"), offsets))
    if undecided:
        raise ConfigError(
            "whether these files carry the +1000 offset of processing baseline 04 cannot be told from them; say it "
            f"with baseline_offset_of (name: on or off), or for all with baseline_offset: {'; '.join(undecided)}."
        )
    _tell_overlaps(checked, say)
    return checked


def _tell_overlaps(places: Sequence[Place], say: Callable[[str], None]) -> None:
    """Ground that lies in two splits makes validation look better than it is; adjacent Sentinel-2 tiles overlap."""
    boxes = [transform_bounds(p.grid.crs, "EPSG:4326", *p.grid.bounds) for p in places]
    for i, (a, box) in enumerate(zip(places, boxes, strict=True)):
        for b, other in zip(places[:i], boxes[:i], strict=True):
            apart = box[0] >= other[2] or other[0] >= box[2] or box[1] >= other[3] or other[1] >= box[3]
            if a.split != b.split and not apart:
                say(f"careful: '{b.name}' ({b.split}) and '{a.name}' ({a.split}) overlap; crop one, or use one split")


def _check_files(options: ImportOptions, place: str, files: Mapping[str, Path]) -> dict[str, Source]:
    """The sources of a place: readable, on one grid, large enough, with sensible values."""
    given = given_sources(options)
    sources = {key: check_source(key, path, given[key]) for key, path in files.items()}
    first, *others = sources.values()
    for other in others:
        check_same_grid(first, other)
    if min(first.grid.height, first.grid.width) < options.tile_px:
        raise GridError(
            f"'{first.path}': the scene of {first.grid.width} x {first.grid.height} px is smaller than a tile of "
            f"{options.tile_px} px. Choose a smaller tile_px, or leave the place out with `places`."
        )
    if len(f"{place}_L1C_9999_9999".encode()) > 100:
        raise ConfigError(f"place '{place}': the layout holds tile names of at most 100 bytes; shorten the name.")
    for key in sources.keys() - PRODUCTS.keys():
        survey(sources[key])
    return sources


def _decide(options: ImportOptions, name: str, source: Source, product: str) -> baseline.Decision:
    judged = baseline.decide(product, source.tags, baseline.survey(source))
    said = options.offset_of(name)
    if said == "auto":
        return judged
    doubt = "" if judged.offset in (said, "undecided") else f", but by itself it looks {judged.offset}: {judged.why}"
    return baseline.Decision(said, f"given by the options{doubt}")


def _date(options: ImportOptions, place: str, sources: Mapping[str, Source], say: Callable[[str], None]) -> str:
    """The options' date, else the first tag of the files: Sentinel-2's own, then Sentinel-1's, then land cover's."""
    stated = options.dates.get(place, options.date)
    if stated is not None:
        return stated
    for key in (*PRODUCTS, "s1", "worldcover"):
        for tag in DATE_TAGS:
            day = _day(sources[key].tags.get(tag, "")) if key in sources else None
            if day is not None:
                say(f"{place}: date {day} from tag '{tag}' of {sources[key].path}")
                return day.isoformat()
    raise DataError(
        f"place '{place}' has no date: '{sources[next(iter(sources))].path}' and the files beside it have no such tag. "
        "Give it as `date` for all places or as `dates: {place: YYYY-MM-DD}`."
    )


def _day(text: str) -> date | None:
    match = re.match(r"(\d{4})[-:](\d{2})[-:](\d{2})", text)
    try:
        return date(*map(int, match.groups())) if match else None
    except ValueError:
        return None
