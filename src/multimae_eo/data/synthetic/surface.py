"""The surface at the date of the image: season, leaves, crops, snow and the height of the canopy."""

from dataclasses import dataclass

import numpy as np

from multimae_eo.data.synthetic.classes import BUILT, CROP, GRASS, MANGROVE, SHRUB, SNOW, TREE, WATER, WETLAND, Cover
from multimae_eo.data.synthetic.climate import Place
from multimae_eo.data.synthetic.fields import blur, ramp
from multimae_eo.data.synthetic.terrain import Terrain


@dataclass(frozen=True)
class Surface:
    """Maps [h, w] float32, from 0 to 1 unless a unit is given."""

    green: np.ndarray  # how green herbs are: warmth and rain of the season
    leaves: np.ndarray  # share of the trees' leaves that are out
    needles: np.ndarray  # share of conifers among trees
    crop: np.ndarray  # stage of the crop: 0 bare or stubble, 1 closed canopy
    stubble: np.ndarray  # share of straw on fields
    snow: np.ndarray  # share of the ground under snow
    wet: np.ndarray  # moisture of the topsoil
    canopy_m: np.ndarray  # height


def dress(rng: np.random.Generator, place: Place, terrain: Terrain, cover: Cover) -> Surface:
    """What the season makes of the land cover."""
    now = place.celsius(terrain.height_m, "now")
    warmth = ramp(now, 1, 12)  # grass grows above some 5 C
    wet = ramp(cover.moisture * place.rain_now, 0.05, 0.65)
    green = warmth * (0.08 + 0.92 * ramp(wet, 0.1, 0.7))
    needles = ramp(place.mean_c + 3.0 * cover.patches[2], 11, 3)
    evergreen = np.maximum(needles, ramp(place.mean_c - place.swing_c, 4, 14) * ramp(cover.moisture, 0.3, 0.5))
    leaves = evergreen + (1 - evergreen) * ramp(now, 5, 13) * ramp(wet, 0.2, 0.5)
    stage, stubble = _crops(rng, place, cover)
    # Snow needs frost and precipitation; slopes in the sun lose it first.
    facing = terrain.north if place.lat >= 0 else -terrain.north
    cold = ramp(now + 6.0 * np.clip(facing, -0.6, 0.6) + 0.7 * cover.patches[1], 0.5, -2.0)
    snow = cold * ramp(cover.moisture, 0.15, 0.35)
    return Surface(
        green=green,
        leaves=leaves,
        needles=needles,
        crop=stage * ramp(now, 3, 9) * (0.5 + 0.5 * ramp(wet, 0.1, 0.4)),
        stubble=stubble,
        snow=np.where(cover.codes == SNOW, 1.0, snow).astype(np.float32),
        wet=wet * (1 - 0.5 * ramp(now, 20, 32)),
        canopy_m=_canopy(place, terrain, cover),
    )


def _crops(rng: np.random.Generator, place: Place, cover: Cover) -> tuple[np.ndarray, np.ndarray]:
    """Every field has a crop of its own calendar, whose peak lies some weeks about the warmest month."""
    num = int(cover.parcels.max()) + 1
    peak = (195 if place.lat >= 0 else 12) + rng.normal(0, 45 if abs(place.lat) > 23 else 90, num)
    days = np.abs((place.day.timetuple().tm_yday - peak + 182.5) % 365 - 182.5)
    stage = np.exp(-((days / 50) ** 2)) * rng.uniform(0.8, 1.0, num)
    return stage.astype(np.float32)[cover.parcels], rng.random(num, np.float32)[cover.parcels]


def _canopy(place: Place, terrain: Terrain, cover: Cover) -> np.ndarray:
    """Metres: forests of 5 m at the tree line to 36 m in the wet tropics; stands differ; crowns smooth the edges."""
    warmest = place.celsius(terrain.height_m, "warmest")
    forest = 5 + 31 * ramp(cover.moisture, 0.32, 0.70) * ramp(warmest, 9, 24)
    stand = np.clip(1 + 0.22 * cover.patches[3], 0.4, 1.6)
    codes = cover.codes
    metres = np.select(
        [codes == TREE, codes == MANGROVE, codes == SHRUB, codes == WETLAND, codes == GRASS, codes == CROP],
        [forest * stand, 9 * stand, 2.2 * stand, 0.8 * stand, 0.5 * stand, 0.5 * stand],
        0.0,
    )
    return np.where((codes == WATER) | (codes == SNOW) | (codes == BUILT), 0.0, blur(metres)).astype(np.float32)
