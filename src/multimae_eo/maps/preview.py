"""Maps as small pictures: colours of their classes or of a scale, and what they were made from on the same grid."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import rasterio
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT

from multimae_eo.errors import GridError
from multimae_eo.maps.finding import known_band
from multimae_eo.maps.layers import open_file
from multimae_eo.modalities import MODALITIES

EDGE = 1200  # px of the longer side of a preview
COLORS = ("B04", "B03", "B02")


class Preview(NamedTuple):
    """A map in pictures [h, w, 4], uint8, and the words that go with them; before: what it was made from."""

    title: str
    about: str
    after: np.ndarray
    legend: dict[str, str]
    before: np.ndarray | None


def preview(path: Path, before: Path | None) -> Preview:
    """A map, decimated; before: a raster that overlaps it, whose B04, B03 and B02 (or first bands) are shown."""
    with open_file(path) as file:
        if file.crs is None:
            raise GridError(f"'{path}' has no coordinate reference system: it is no map.")
        times = max(1.0, max(file.height, file.width) / EDGE)
        height, width = max(1, round(file.height / times)), max(1, round(file.width / times))
        tags = file.tags()
        values = file.read(1, out_shape=(height, width), resampling=Resampling.nearest)
        known = file.read_masks(1, out_shape=(height, width), resampling=Resampling.nearest) > 0
        if values.dtype.kind == "f":
            known &= np.isfinite(values)
        painted, legend = _painted(file, values, known, tags)
        t = file.transform
        grid = rasterio.Affine(t.a * file.width / width, t.b, t.c, t.d, t.e * file.height / height, t.f)
        pixel = f"{abs(t.a):g} m" if file.crs.is_projected else f"{abs(t.a):g} degrees"
        about = f"{path.name}: {file.width} x {file.height} pixels of {pixel}, {file.crs}"
        about += "".join(f"; {key.lower()}: {tags[key]}" for key in ("INPUTS", "DATES") if tags.get(key))
        under = _before(before, file.crs, grid, height, width) if before is not None else None
    return Preview(tags.get("TITLE", path.stem), about + ".", painted, legend, under)


def _painted(
    file: Any, values: np.ndarray, known: np.ndarray, tags: dict[str, str]
) -> tuple[np.ndarray, dict[str, str]]:
    """Colours [h, w, 4], and the legend: name -> colour."""
    picture = np.zeros((*values.shape, 4), np.uint8)
    names = json.loads(tags["CLASSES"]) if "CLASSES" in tags and file.descriptions[0] == "class" else {}
    if names:
        colors = _class_colors(file, tags)
        for code in map(int, names):
            picture[known & (values == code)] = (*bytes.fromhex(colors[code][1:]), 255)
        present = set(np.unique(values[known]).tolist())
        return picture, {name: colors[int(code)] for code, name in names.items() if int(code) in present}
    scale = (file.scales[0] or 1.0, file.offsets[0] or 0.0)
    real = values.astype(np.float64) * scale[0] + scale[1]
    low, high = np.percentile(real[known], (1, 99)) if known.any() else (0.0, 1.0)
    name = file.descriptions[0] or "value"
    band = known_band(name)
    maps = {b: getattr(m, "colormap", "viridis") for m in MODALITIES.values() for b in m.bands}
    shades = matplotlib.colormaps[maps.get(band or "", "viridis")]
    scaled = np.clip((real - low) / max(high - low, 1e-9), 0, 1)
    picture = (shades(np.nan_to_num(scaled)) * 255).astype(np.uint8)
    picture[..., 3] = np.where(known, 255, 0)
    unit = file.units[0] or ""
    steps = [low + (high - low) * i / 4 for i in range(5)]
    ends = {f"{name} {low:.4g} {unit}".strip(): 0.0, **{f"{s:.4g}": i / 4 for i, s in enumerate(steps) if 0 < i < 4}}
    ends[f"{high:.4g} {unit}".strip()] = 1.0
    return picture, {text: matplotlib.colors.to_hex(shades(place)) for text, place in ends.items()}


def _class_colors(file: Any, tags: dict[str, str]) -> dict[int, str]:
    """Code -> #rrggbb, from the colour table or the tag COLORS."""
    if "COLORS" in tags:
        return {int(code): color for code, color in json.loads(tags["COLORS"]).items()}
    try:
        table = file.colormap(1)
    except ValueError:
        codes = [int(code) for code in json.loads(tags["CLASSES"])]
        return {code: matplotlib.colors.to_hex(matplotlib.colormaps["tab20"](i % 20)) for i, code in enumerate(codes)}
    return {code: "#{:02x}{:02x}{:02x}".format(*color[:3]) for code, color in table.items()}


def _before(path: Path, crs: Any, transform: Any, height: int, width: int) -> np.ndarray:
    """Three bands on the grid of the preview, stretched from 2 to 98 %."""
    with open_file(path) as file:
        names = [known_band(d or "") for d in file.descriptions]
        bands = (
            [names.index(b) + 1 for b in COLORS] if set(COLORS) <= set(names) else [*range(1, min(3, file.count) + 1)]
        )
        with WarpedVRT(
            file,
            crs=crs,
            transform=transform,
            height=height,
            width=width,
            resampling=Resampling.average,
            add_alpha=True,
        ) as warped:
            *planes, there = warped.read([*bands, warped.count])
    image = np.stack(planes if len(planes) == 3 else [planes[0]] * 3, axis=2).astype(np.float64)
    known = (there > 0) & np.isfinite(image).all(axis=2)
    low, high = np.percentile(image[known], (2, 98)) if known.any() else (0.0, 1.0)
    shown = np.clip((np.nan_to_num(image) - low) / max(high - low, 1e-9), 0, 1) ** 0.8
    return np.concatenate([shown * 255, 255.0 * known[..., None]], axis=2).astype(np.uint8)
