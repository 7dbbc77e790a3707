"""Whether a Sentinel-2 file carries the +1000 of ESA's processing baseline 04: evidence, and a decision that says why.

Source: ESA, Sentinel-2 products specification, processing baseline 04.00 (25 January 2022): DN 0 stays no data, and
reflectance = (DN + RADIO_ADD_OFFSET or BOA_ADD_OFFSET) / 10000 with an offset of -1000 in every band. The date of the
image decides nothing: images from before that day were processed again with the offset (Collection 1), and providers
who harmonise take it away from later ones.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from multimae_eo.data.geotiff_source import Source, open_raster, read_reflectance, strips
from multimae_eo.errors import DataError

OFFSET = 1000
# With the offset, a DN below 500 is a reflectance below -0.05, which an atmospheric correction yields in few pixels.
BELOW = 500
# With the offset, shadows, water and forests of most scenes put the darkest pixels of most bands here.
FLOOR = (900, 1400)
# Cirrus band of L1C with the offset: next to no light from the ground reaches it. Clear scenes lie at 1005 to 1050.
CIRRUS = (900, 1100)


@dataclass(frozen=True)
class Survey:
    """What a pass over a Sentinel-2 file found: per measured band its darkest hundredth (DN), and the largest value."""

    darkest: Mapping[str, int]
    largest: int


@dataclass(frozen=True)
class Decision:
    """offset: "on" if the file carries it, "off" if not, "undecided"; why: one clause for the report."""

    offset: Literal["on", "off", "undecided"]
    why: str


def survey(source: Source) -> Survey:
    """Read the whole file once, strip by strip; raises DataError where it holds no DN at all."""
    counts = np.zeros((len(source.read_bands), 65536), np.int64)
    with open_raster(source.path) as dataset:
        if {*dataset.dtypes} == {"uint8"}:
            raise DataError(
                f"'{source.path}' ({source.key}): expected reflectance x 10000, got 8-bit numbers: a picture that was "
                "stretched to colours. Take the bands that it was made of."
            )
        for top, rows in strips(source.grid.height):
            numbers = read_reflectance(source, dataset, top, rows)
            for band, plane in enumerate(numbers):
                counts[band] += np.bincount(plane.ravel(), minlength=65536)
        fractions = any(np.dtype(t).kind == "f" for t in dataset.dtypes)
    counts[:, 0] = 0
    measured = counts.sum(axis=1)
    if not measured.any():
        marks = "0" if source.options.nodata is None else f"0 and {source.options.nodata:g}"
        raise DataError(
            f"'{source.path}' ({source.key}) has no measured pixel: all are no data ({marks}, the file's mask, or "
            f"negative). Leave the place out with `places`, or set {source.key}.nodata."
        )
    largest = int(np.flatnonzero(counts.any(axis=0)).max())
    usual = int(np.searchsorted(np.cumsum(counts.sum(axis=0)), 0.99 * measured.sum()))  # some pixels glint
    if fractions and usual <= 2:
        raise DataError(
            f"'{source.path}' ({source.key}): expected reflectance x 10000, but 99 % of the values are at most {usual} "
            f"after the scale {source.options.scale:g}; they look like reflectance. Set {source.key}.scale: 10000."
        )
    darkest = {
        band: int(np.searchsorted(np.cumsum(row), 0.01 * row.sum()))
        for band, row, some in zip(source.read_bands, counts, measured, strict=True)
        if some
    }
    return Survey(darkest, largest)


def decide(product: str, tags: Mapping[str, str], found: Survey) -> Decision:
    """Judge one file. product: "L1C" or "L2A"; tags: of the file, names in lower case."""
    pixels = _from_pixels(product, found.darkest)
    stated = stated_baseline(tags)
    if stated is None:
        return pixels
    name, baseline = stated
    offset: Literal["on", "off"] = "on" if baseline >= 4 else "off"
    why = f"tag {name} states processing baseline {baseline:05.2f}"
    if pixels.offset not in (offset, "undecided"):
        return Decision("undecided", f"{why}, which speaks for {offset}, but {pixels.why}")
    return Decision(offset, why)


def stated_baseline(tags: Mapping[str, str]) -> tuple[str, float] | None:
    """The tag that names a processing baseline ("04.00", "5.09", "N0400"), and its number."""
    for name, text in tags.items():
        match = re.fullmatch(r"N?(\d{2})\.?(\d{2})|(\d)\.(\d{2})", text.strip().upper())
        if match and re.search(r"processing.?baseline", name):
            whole, hundredths = (g for g in match.groups() if g is not None)
            return name.upper(), int(whole) + int(hundredths) / 100
    return None


def _from_pixels(product: str, darkest: Mapping[str, int]) -> Decision:
    dark_band = min(darkest, key=lambda band: darkest[band])
    dark = darkest[dark_band]
    if dark < BELOW:
        return Decision("off", f"the darkest hundredth of {dark_band} lies at {dark}, far below 1000")
    cirrus = darkest.get("B10")
    if product == "L1C" and cirrus is not None and CIRRUS[0] <= cirrus <= CIRRUS[1]:
        return Decision("on", f"the darkest hundredth of the cirrus band B10 lies at {cirrus}, without it near 10")
    at_floor = [band for band, value in darkest.items() if FLOOR[0] <= value <= FLOOR[1]]
    where = f"the darkest hundredth of {len(at_floor)} of {len(darkest)} bands lies in {FLOOR[0]} to {FLOOR[1]}"
    if 2 * len(at_floor) >= len(darkest) >= 4 and dark >= FLOOR[0]:
        return Decision("on", f"{where} and that of none below (lowest {dark_band}: {dark})")
    return Decision("undecided", f"{where}, the lowest is {dark_band}: {dark}; neither speaks clearly")
