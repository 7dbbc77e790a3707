"""Spectra: reflectance of pure materials in the bands of Sentinel-2, and of which materials each class consists.

Representative values after the USGS (Kokaly et al., 2017) and ECOSTRESS (Meerdink et al., 2019) spectral libraries,
read at the bands' centres and rounded; real materials vary by a third about them. Vegetation is of closed canopies,
not of single leaves.
"""

from collections.abc import Mapping

import numpy as np

from multimae_eo.data.synthetic import classes as c
from multimae_eo.data.synthetic.classes import Cover
from multimae_eo.data.synthetic.climate import Place
from multimae_eo.data.synthetic.fields import ramp
from multimae_eo.data.synthetic.surface import Surface
from multimae_eo.data.synthetic.terrain import Terrain

# In the order of SENTINEL2_CHANNELS: 443, 490, 560, 665, 705, 740, 783, 865, 842, 945, 1375, 1610 and 2190 nm.
SPECTRA: Mapping[str, np.ndarray] = {
    name: np.array(values, np.float32)
    for name, values in {
        "broadleaf": (0.020, 0.024, 0.055, 0.028, 0.090, 0.30, 0.38, 0.42, 0.40, 0.41, 0.33, 0.21, 0.09),
        "needleleaf": (0.016, 0.019, 0.036, 0.023, 0.055, 0.16, 0.20, 0.23, 0.22, 0.23, 0.18, 0.11, 0.05),
        "herb": (0.028, 0.036, 0.080, 0.046, 0.12, 0.30, 0.37, 0.42, 0.40, 0.41, 0.34, 0.26, 0.14),
        "crop": (0.026, 0.032, 0.078, 0.034, 0.11, 0.38, 0.48, 0.52, 0.50, 0.51, 0.38, 0.25, 0.11),
        "straw": (0.070, 0.090, 0.14, 0.19, 0.22, 0.25, 0.28, 0.32, 0.30, 0.33, 0.35, 0.39, 0.29),
        "litter": (0.035, 0.042, 0.060, 0.078, 0.10, 0.13, 0.15, 0.19, 0.18, 0.20, 0.22, 0.25, 0.18),
        "sand": (0.14, 0.18, 0.27, 0.37, 0.40, 0.42, 0.44, 0.47, 0.46, 0.48, 0.50, 0.56, 0.52),
        "brown soil": (0.060, 0.075, 0.11, 0.15, 0.17, 0.19, 0.21, 0.24, 0.23, 0.25, 0.28, 0.32, 0.27),
        "dark soil": (0.030, 0.040, 0.055, 0.075, 0.085, 0.10, 0.11, 0.13, 0.125, 0.14, 0.16, 0.19, 0.16),
        "red soil": (0.040, 0.050, 0.090, 0.20, 0.23, 0.25, 0.27, 0.29, 0.285, 0.30, 0.33, 0.37, 0.31),
        "rock": (0.11, 0.125, 0.15, 0.17, 0.18, 0.185, 0.19, 0.20, 0.20, 0.205, 0.21, 0.23, 0.21),
        "asphalt": (0.060, 0.065, 0.075, 0.085, 0.090, 0.095, 0.10, 0.105, 0.10, 0.11, 0.115, 0.13, 0.125),
        "concrete": (0.17, 0.20, 0.24, 0.27, 0.28, 0.29, 0.30, 0.31, 0.305, 0.315, 0.32, 0.34, 0.32),
        "clay tiles": (0.070, 0.080, 0.11, 0.20, 0.23, 0.25, 0.27, 0.30, 0.29, 0.31, 0.33, 0.36, 0.33),
        "metal": (0.40, 0.43, 0.46, 0.48, 0.48, 0.49, 0.49, 0.50, 0.49, 0.50, 0.48, 0.48, 0.44),
        "fresh snow": (0.93, 0.94, 0.93, 0.92, 0.90, 0.88, 0.86, 0.82, 0.83, 0.72, 0.20, 0.12, 0.10),
        "old ice": (0.62, 0.65, 0.62, 0.55, 0.50, 0.45, 0.40, 0.33, 0.35, 0.25, 0.05, 0.04, 0.03),
        "clear water": (0.040, 0.040, 0.034, 0.018, 0.012, 0.008, 0.007, 0.005, 0.006, 0.004, 0.003, 0.003, 0.002),
        "turbid water": (0.065, 0.080, 0.115, 0.105, 0.095, 0.058, 0.052, 0.030, 0.034, 0.020, 0.010, 0.010, 0.008),
        "lichen": (0.070, 0.090, 0.13, 0.14, 0.17, 0.24, 0.27, 0.31, 0.30, 0.31, 0.30, 0.30, 0.22),
        "shade": (0.005, 0.005, 0.006, 0.005, 0.007, 0.012, 0.014, 0.015, 0.014, 0.015, 0.012, 0.010, 0.006),
    }.items()
}

Shares = dict[str, np.ndarray]  # material -> share of the pixel [h, w]; they add up to 1


def _soil(place: Place, cover: Cover, surface: Surface, share: np.ndarray) -> Shares:
    """Bare ground: sand in dry heat, red soil where iron is, dark where humus and water are, brown between."""
    sand = share * ramp(cover.moisture + 0.05 * cover.patches[1], 0.16, 0.04) * ramp(place.mean_c, 8, 16)
    dark = (share - sand) * np.clip(0.15 + 0.65 * surface.wet + 0.1 * cover.patches[1], 0, 1)
    rest = share - sand - dark
    return {"sand": sand, "dark soil": dark, "red soil": rest * place.redness, "brown soil": rest * (1 - place.redness)}


def _sparse(soil: Shares, share: np.ndarray, rest: Shares) -> Shares:
    """`rest` above, soil in the share that it leaves."""
    return {**{name: share * part for name, part in soil.items()}, **rest}


def class_shares(code: int, place: Place, terrain: Terrain, cover: Cover, surface: Surface) -> Shares:
    """Of which materials a pixel would consist if it were of a class. Maps [h, w]."""
    one = np.ones_like(surface.green)
    soil = _soil(place, cover, surface, one)
    s, texture = surface, np.clip(0.5 + 0.15 * cover.patches[0], 0.1, 0.9)
    match code:
        case c.TREE:
            crown = 0.62 + 0.2 * texture
            leaves = crown * s.leaves
            return {
                "needleleaf": leaves * s.needles,
                "broadleaf": leaves * (1 - s.needles),
                "litter": crown - leaves + 0.5 * (1 - crown),
                "shade": 0.5 * (1 - crown),
            }
        case c.SHRUB:
            woody = 0.25 + 0.35 * texture
            green = woody * (0.35 + 0.65 * s.green)
            return _sparse(soil, 0.8 - woody, {"broadleaf": green, "litter": woody - green + 0.1, "straw": 0.1 * one})
        case c.GRASS:
            sward = 0.35 + 0.6 * ramp(cover.moisture, 0.15, 0.5)
            return _sparse(soil, 1 - sward, {"herb": sward * s.green, "straw": sward * (1 - s.green)})
        case c.CROP:
            straw = (1 - s.crop) * s.stubble * 0.7
            return _sparse(soil, 1 - s.crop - straw, {"crop": s.crop, "straw": straw})
        case c.WETLAND:
            pool = 0.15 + 0.3 * (1 - texture)
            return {
                "herb": (1 - pool) * s.green,
                "litter": (1 - pool) * (1 - s.green),
                "clear water": 0.6 * pool,
                "dark soil": 0.4 * pool,
            }
        case c.MANGROVE:
            return {"broadleaf": 0.55 + 0.2 * texture, "turbid water": 0.3 - 0.2 * texture, "shade": 0.15 * one}
        case c.MOSS:
            return _sparse(
                soil,
                0.2 * one,
                {"lichen": 0.3 + 0.4 * texture, "herb": 0.3 * s.green, "straw": 0.5 - 0.4 * texture - 0.3 * s.green},
            )
        case c.BARE:
            rock = ramp(terrain.slope, np.radians(8), np.radians(35)) + ramp(place.mean_c, 2, -6)
            rock = np.clip(0.15 + 0.8 * rock, 0, 0.95)
            plants = 0.06 * s.green
            return _sparse(soil, 1 - rock - plants * (1 - rock), {"rock": rock, "herb": plants * (1 - rock)})
        case c.SNOW:
            melt = ramp(place.celsius(terrain.height_m, "now"), -4, 2) * texture
            return {"fresh snow": 1 - melt, "old ice": melt}
        case c.WATER:
            silt = np.clip(0.35 * (terrain.kind == "river") + 0.35 * texture * place.rain_now - 0.1, 0, 1)
            return {"clear water": 1 - silt, "turbid water": silt}
    raise AssertionError(f"class {code} has no spectra here")


def built_shares(rng: np.random.Generator, cover: Cover, surface: Surface) -> Shares:
    """Towns: asphalt in the streets; between them roofs of a kind per block, pavement, and gardens."""
    size = cover.codes.shape
    num = int(cover.blocks.max()) + 1
    roof, garden = rng.random(num, np.float32)[cover.blocks], 0.45 * rng.random(num, np.float32)[cover.blocks]
    roofs = np.clip(0.5 + 0.45 * rng.standard_normal(size, np.float32), 0, 1) * (1 - garden)
    paved = 1 - garden - roofs
    shares = {
        "clay tiles": roofs * (roof < 0.45),
        "concrete": roofs * ((roof >= 0.45) & (roof < 0.9)) + 0.4 * paved,
        "metal": roofs * (roof >= 0.9),
        "asphalt": 0.6 * paved,
        "broadleaf": garden * surface.leaves * 0.6,
        "herb": garden * surface.green * 0.4,
    }
    shares["litter"] = 1 - sum(shares.values())
    return {name: np.where(cover.streets, name == "asphalt", part) for name, part in shares.items()}
