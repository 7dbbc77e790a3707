"""Explains a scene: its bands and what their numbers mean, where it lies, and the commands that map it."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from multimae_eo.data.geotiff_baseline import OFFSET, Decision, Survey, decide
from multimae_eo.data.geotiff_source import METRES
from multimae_eo.explain.feeds import fed, not_fed, source_name
from multimae_eo.explain.page import amount, block, command, facts, listed, page, table
from multimae_eo.explain.source import (
    MOST,
    Seen,
    Source,
    is_reflectance,
    look_into,
    metres,
    modality_of,
    pixels_in_words,
    unit_of,
)
from multimae_eo.modalities import MODALITIES, REFLECTANCE, WORLDCOVER, Continuous

FRACTIONS, EIGHT_BIT, POWER, CODES, UNKNOWN = "reflectance 0 to 1", "8-bit numbers", "linear power", "class codes", "?"
SHARED = "optical"  # bands that have one unit
_CLASSES = 32  # more different numbers than these are no class codes
_LAND = (-1000, 9500)  # m
_DECIBEL = (-100, 50)
_KNOWN_CODES = {c.code for c in WORLDCOVER} | {0, 255}


@dataclass(frozen=True)
class Guess:
    """What the numbers of a band probably are.

    unit: in words, one of the package's where they are in it; why: one clause; scale: the factor to the package's unit,
    none where no factor leads there.
    """

    unit: str
    why: str
    scale: float | None = 1.0


def guess_unit(values: np.ndarray, band: str | None = None, *, bands: int = 1) -> Guess:
    """Guess the unit of measured numbers of one band.

    values: any shape and number type, without no-data; band: the canonical band that they are of, if it is known;
    bands: how many the file has, which tells a map of classes or heights from an image where `band` does not.
    """
    if not values.size:
        return Guess(UNKNOWN, "no pixel that was looked at is measured", None)
    flat = values.ravel()
    if band is None:
        return _of_unknown(flat, bands)
    return {"m": _heights, "dB": _radar, "class": _codes}.get(unit_of(band), _optical)(flat)


def _whole(values: np.ndarray) -> bool:
    return values.dtype.kind in "iu" or bool((values == np.rint(values)).all())


def _ends(values: np.ndarray) -> str:
    return f"{float(values.min()):.4g} to {float(values.max()):.4g}"


def _optical(values: np.ndarray) -> Guess:
    low, high, whole = float(values.min()), float(values.max()), _whole(values)
    if low < -0.5 and high < 50:
        return Guess(UNKNOWN, f"{_ends(values)}: standardised numbers? Give the original ones", None)
    if not whole and high <= 2:
        return Guess(FRACTIONS, f"fractions, {_ends(values)}", 10_000)
    if values.dtype == np.uint8 or (whole and high <= 255):
        return Guess(EIGHT_BIT, f"whole numbers, {_ends(values)}: a picture, not a measurement", None)
    if high > 65535:
        return Guess(UNKNOWN, f"{_ends(values)}: more than reflectance x 10000 can be; a mark for no data?", None)
    return Guess(REFLECTANCE, _ends(values))


def _heights(values: np.ndarray) -> Guess:
    if values.min() < _LAND[0] or values.max() > _LAND[1]:
        return Guess(UNKNOWN, f"{_ends(values)}: no heights of land in metres; a mark for no data?", None)
    return Guess("m", _ends(values))


def _radar(values: np.ndarray) -> Guess:
    if values.min() >= 0:
        return Guess(POWER, f"no number below 0 ({_ends(values)}); take 10 log10 of it for dB", None)
    if values.min() < _DECIBEL[0]:
        return Guess(UNKNOWN, f"{_ends(values)}: less than dB are; a mark for no data?", None)
    return Guess("dB", f"mostly below 0, {_ends(values)}")


def _codes(values: np.ndarray) -> Guess:
    codes = {float(c) for c in np.unique(values)}
    strange = sorted(codes - _KNOWN_CODES)
    if len(codes) > 4 * _CLASSES or not _whole(values):
        return Guess(UNKNOWN, f"{_ends(values)}: no class codes", None)
    if strange:
        return Guess(CODES, f"not those of WorldCover: {listed((f'{c:g}' for c in sorted(codes)), 16)}", None)
    return Guess(CODES, f"those of WorldCover: {listed((f'{c:g}' for c in sorted(codes)), 16)}")


def _of_unknown(values: np.ndarray, bands: int) -> Guess:
    """By the numbers alone."""
    low, high, whole = float(values.min()), float(values.max()), _whole(values)
    if bands == 1 and whole and low >= 0 and high <= 255 and len(codes := np.unique(values)) <= _CLASSES:
        if values.dtype.itemsize == 1 or {float(code) for code in codes} <= _KNOWN_CODES:
            return _codes(values)
        return Guess(UNKNOWN, f"{_ends(values)}: class codes, or heights of flat land", None)
    if bands == 1 and whole and high > 255 and _LAND[0] <= low and high <= _LAND[1]:
        if values.dtype.kind == "u":
            return Guess(UNKNOWN, f"{_ends(values)}: heights in metres, or one band of reflectance x 10000", None)
        return Guess("m", f"one band of whole numbers, {_ends(values)}, as heights are")
    if whole and low >= 0:
        return _optical(values)
    if low >= 0 and high <= 2:
        kind = Guess(POWER, f"two bands of fractions, {_ends(values)}", None)
        return kind if bands == 2 else Guess(FRACTIONS, f"fractions, {_ends(values)}", 10_000)
    if float(np.median(values)) < 0 and low >= _DECIBEL[0] and high <= _DECIBEL[1]:
        return Guess("dB", f"mostly below 0, {_ends(values)}")
    if bands == 1 and _LAND[0] <= low and high <= _LAND[1]:
        return Guess("m", f"one band of {_ends(values)}")
    return Guess(UNKNOWN, _ends(values), None)


@dataclass
class Study:
    """A source, what its bands probably are, and how it is given to a command.

    name: of the source in a command; words: its options there; usable: whether a command takes it.
    """

    source: Source
    name: str
    guesses: list[Guess]
    words: list[str]
    told: list[tuple[str, str]]
    usable: bool = True


def study(path: Path) -> Study:
    """Look into a source and judge it; raises DataError or ConfigError where it cannot be read."""
    source = look_into(path)
    for seen in source.bands:
        if is_reflectance(seen.band) and seen.nodata is None and seen.values.size:
            seen.values = seen.values[seen.values != 0]  # as it is read: 0 is no data in ESA's products
    guesses = _guesses(source)
    if len(source.bands) == 1 and source.bands[0].band is None:
        source.bands[0].band = {"m": "dem", CODES: "worldcover"}.get(guesses[0].unit)
    name = source_name(source.names, path.stem if path.stem.isidentifier() else "scene")
    found = Study(source, name, guesses, ["--source", f"{name}={path}"], [])
    _place(found)
    _bands(found)
    _products(found)
    _numbers(found)
    return found


def _guesses(source: Source) -> list[Guess]:
    """The units of all bands. Those of Sentinel-2 share one, and so do the bands of a file that names none of them."""
    groups: dict[str, list[int]] = {}
    for i, seen in enumerate(source.bands):
        if seen.band is not None or source.found is None:
            groups.setdefault(SHARED if is_reflectance(seen.band) else modality_of(seen.band), []).append(i)
    guesses = dict.fromkeys(range(len(source.bands)), Guess("", "of no band that is known here", None))
    for members in groups.values():
        some = [source.bands[i] for i in members]
        values = np.concatenate([_as_read(seen) for seen in some])
        guess = guess_unit(values, some[0].band, bands=len(source.bands))
        guesses |= dict.fromkeys(members, guess)
    return [guesses[i] for i in range(len(source.bands))]


def _as_read(seen: Seen) -> np.ndarray:
    """Values in the units that the file states; those of reflectance are told by the numbers themselves."""
    if (seen.scale, seen.offset) == (1.0, 0.0) or is_reflectance(seen.band):
        return seen.values
    return seen.values * seen.scale + seen.offset


def _place(found: Study) -> None:
    """Size, reference system and pixels."""
    source = found.source
    if not source.width:
        return
    sizes = sorted({seen.pixel for seen in source.bands if math.isfinite(seen.pixel)})
    size = f"{source.width:,} x {source.height:,} px"
    if source.crs is None:
        fix = f"a map needs one: gdal_edit.py -a_srs EPSG:<code> {source.path}"
        found.told += [("size", size), ("place", f"no coordinate reference system; {fix}")]
        found.usable = False
        return
    edge = metres(source, sizes[0])
    if math.isfinite(edge):
        size += f" ({source.width * edge / 1000:.3g} x {source.height * edge / 1000:.3g} km)"
    pixels = pixels_in_words(source, sizes)
    if not math.isfinite(edge):
        pixels += "; maps are made on a grid of 10 m in UTM"
    elif any(abs(metres(source, pixel) - METRES) > METRES / 100 for pixel in sizes):
        pixels += f"; the models know pixels of {METRES:g} m, to which a map resamples it"
    found.told += [("size", size), ("place", source.crs.name), ("pixels", pixels)]


def _bands(found: Study) -> None:
    """What the bands are, where their source does not say it."""
    source, option = found.source, f"--source.{found.name}.bands"
    if source.assumed:
        names = f"[{', '.join(source.names)}]"
        found.words += [option, names]
        found.told.append(("bands", f"the file does not name them; taken as {names}: {source.assumed}. Check that"))
    elif source.found is None and source.names:
        found.told.append(("bands", f"the file does not name its band; taken for {source.names[0]} by its numbers"))
    elif source.found is None:
        say = f"say them in their order: {option} '[B02, B03, ...]', '-' for one to leave out"
        found.told.append(("bands", f"the file does not name its {amount(len(source.bands), 'band')}; {say}"))
        found.usable = False
    unknown = [seen.label for seen in source.bands if seen.band is None and seen.label != "SCL"]
    if source.found is not None and unknown:
        say = f"where one is a band of the package, say so in {option}"
        found.told.append(("unknown", f"{listed(unknown, 6)}: left out; {say}"))
    if len(source.days) > 1:
        option = f"--source.{found.name}.date"
        days = f"{amount(len(source.days), 'time step')}, {source.days[0]} to {source.days[-1]}"
        found.told.append(("dates", f"{days}; choose one with {option}. The last one is looked at"))
        found.words += [option, source.days[-1]]
    elif source.found is not None and source.found.date:
        found.told.append(("date", source.found.date))
    if source.found is not None and "SCL" in source.found.places:
        found.told.append(("clouds", f"--source.{found.name}.mask SCL leaves them out, by the scene classes"))


def _products(found: Study) -> None:
    """Which of the model's statistics fit: stated, or assumed."""
    source = found.source
    names = [modality_of(band) for band in source.names]
    modality = next((m for n in names if n and isinstance(m := MODALITIES[n], Continuous)), None)
    if modality is None:
        return
    stated = source.found.product if source.found is not None else None
    labelled = [p for p in modality.products if all(p in s.label for s in source.bands if s.band in modality.bands)]
    if stated is not None:
        found.told.append(("product", stated))
    elif len(labelled) == 1:
        found.told.append(("product", f"{labelled[0]}, as the names of the bands say"))
        found.words += [f"--source.{found.name}.product", labelled[0]]
    elif len(modality.products) > 1:
        has_cirrus = "B10" in source.names
        chosen = "L1C" if has_cirrus else "L2A" if "L2A" in modality.products else modality.products[0]
        why = ", because it has B10" if has_cirrus else f"; if it is not, say {_others(modality, chosen)}"
        found.told.append(("product", f"not stated; taken for {chosen} below{why}"))
        found.words += [f"--source.{found.name}.product", chosen]


def _others(modality: Continuous, chosen: str) -> str:
    return " or ".join(product for product in modality.products if product != chosen)


def _numbers(found: Study) -> None:
    """What the numbers are, per group of bands, and what has to be said of them."""
    groups: dict[str, list[int]] = {}
    for i, guess in enumerate(found.guesses):
        groups.setdefault(guess.unit, []).append(i)
    key = f"--source.{found.name}"
    for unit, members in groups.items():
        seen, guess = [found.source.bands[i] for i in members], found.guesses[members[0]]
        if not unit or (unit == UNKNOWN and not found.source.width):
            continue  # of no known band, or nothing was read
        who = "" if len(groups) == 1 else f" ({listed((s.band or s.label for s in seen), 6)})"
        text = f"{unit if unit != UNKNOWN else 'not known what they are'}{who}: {guess.why}"
        stated = seen[0].scale, seen[0].offset
        if stated != (1.0, 0.0):
            text += f"; the file states scale {stated[0]:g} and offset {stated[1]:g}, which are applied"
        elif guess.scale not in (1.0, None) and seen[0].band is not None:
            text += f"; {key}.scale {guess.scale:g} is needed"
            found.words += [f"{key}.scale", f"{guess.scale:g}"]
        if unit == EIGHT_BIT:
            text += "; only a model that was trained on such numbers can take them"
        if unit == CODES and guess.scale is None:
            codes = ", ".join(f"{code:g}: ?" for code in np.unique(seen[0].values)[:16])
            text += f"; say which code of WorldCover each is, 0 for none: {key}.classes '{{{codes}}}'"
        found.usable &= guess.scale is not None or not any(modality_of(s.band) for s in seen)
        found.told.append(("numbers", text))
    _baseline(found)


def _baseline(found: Study) -> None:
    """The +1000 of processing baseline 04, judged as a map would."""
    source = found.source
    pairs = [(s, g) for s, g in zip(source.bands, found.guesses, strict=True) if is_reflectance(s.band)]
    measured = {s.band: s.values for s, g in pairs if g.unit in (REFLECTANCE, FRACTIONS) and s.values.size and s.band}
    if not measured or source.found is None or any(s.offset for s, _ in pairs):
        return
    scale = 10_000 if any(g.unit == FRACTIONS for _, g in pairs) else 1
    product = source.found.product or ("L1C" if "B10" in measured else "L2A")
    taken = {band: values for band, values in measured.items() if modality_of(band)}
    decision = _decide(measured, scale, product, source.found.tags)
    as_mapped = _decide(taken, scale, product, source.found.tags) if taken else decision
    option = f"--source.{found.name}.offset"
    said = {
        "on": f"the numbers carry it, and it is taken off: {decision.why}",
        "off": f"the numbers do not carry it: {decision.why}",
        "undecided": f"cannot be told: {decision.why}. Say {option} on (as ESA delivers since 2022) or off",
    }
    found.told.append((f"+{OFFSET}", said[decision.offset]))
    if decision.offset == "undecided":
        found.words += [option, "ON_OR_OFF"]
    elif as_mapped.offset != decision.offset:  # a map looks at fewer bands
        found.words += [option, decision.offset]


def _decide(measured: Mapping[str, np.ndarray], scale: float, product: str, tags: Mapping[str, str]) -> Decision:
    darkest = {band: int(np.percentile(values, 1) * scale) for band, values in measured.items()}
    largest = int(max(values.max() for values in measured.values()) * scale)
    return decide(product, tags, Survey(darkest, largest))


def explain_scene(path: Path) -> str:
    """What a scene of one source is and how to map it; raises DataError or ConfigError where it cannot be read."""
    found = study(path)
    source = found.source
    title = f"{source.kind}: {amount(len(source.bands), 'band')}"
    lacking = facts(("feeds", fed(source.names)), ("lacks", not_fed(source.names)))
    parts = [facts(*found.told), _table(source.bands, found.guesses), lacking, use([found])]
    return page(title, path, *parts)


def _table(bands: Sequence[Seen], guesses: Sequence[Guess]) -> str:
    """A row per band: name, canonical band, type, no data, spread of its values; what all share is left out."""
    rows = []
    for seen, guess in zip(bands, guesses, strict=True):
        ends = [_number(v) for v in np.percentile(seen.values, (1, 50, 99))] if seen.values.size else ["", "", ""]
        nodata = "" if seen.nodata is None else f"{seen.nodata:g}"
        if not nodata and is_reflectance(seen.band) and seen.dtype:
            nodata = "0"
        rows.append(
            [seen.label, seen.band or "?", seen.dtype, nodata, *ends, guess.unit, modality_of(seen.band) or "-"]
        )
    head = ["in the file", "band", "type", "no data", "1 %", "median", "99 %", "unit", "for"]
    same = {0: all(row[0] == row[1] for row in rows), 7: len({row[7] for row in rows}) == 1}
    same |= {i: not any(row[i] for row in rows) for i in (2, 3, 4, 5, 6)}
    kept = [i for i in range(len(head)) if not same.get(i)]
    text = table([head[i] for i in kept], [[row[i] for i in kept] for row in rows[:MOST]])
    return text + (f"\n  and {amount(len(rows) - MOST, 'more band')}" if len(rows) > MOST else "")


def _number(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 10_000 else f"{value:.0f}"


def use(studies: Iterable[Study]) -> str:
    """The commands that map a scene of some sources, or what keeps them from it."""
    there = [s for s in studies if s.usable and any(modality_of(band) for band in s.source.names)]
    if not there:
        return "It cannot be mapped as it is; what is to be mended stands above (docs/maps.md)."
    embed = command("embed", "CHECKPOINT", *(word for s in there for word in s.words), "--out", "embeddings.tif")
    last = "  multimae-eo predict FINETUNED --out map.tif takes the same sources."
    return block("Embed it with a checkpoint that takes these, or map it with a fine-tuned one:", embed) + f"\n{last}"
