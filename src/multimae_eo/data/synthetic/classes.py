"""Land cover: the ESA WorldCover class of every pixel, decided by climate, water, slope and people."""

from dataclasses import dataclass

import numpy as np

from multimae_eo.data.synthetic.climate import Place
from multimae_eo.data.synthetic.fields import blur, fractal, ramp
from multimae_eo.data.synthetic.terrain import Terrain

TREE, SHRUB, GRASS, CROP, BUILT, BARE, SNOW, WATER = range(10, 90, 10)
WETLAND, MANGROVE, MOSS = 90, 95, 100


@dataclass(frozen=True)
class Cover:
    """Maps [h, w] of what covers the ground and of what decided it."""

    codes: np.ndarray  # uint8, WorldCover
    moisture: np.ndarray  # available to plants: rain and shape of the ground, less what warmth evaporates
    parcels: np.ndarray  # int, numbered from 0: fields
    streets: np.ndarray  # bool: roads, and streets in towns
    blocks: np.ndarray  # int, numbered from 0: blocks of buildings
    patches: np.ndarray  # [4, h, w]: standard normal fields with patches of some 100 m


@dataclass(frozen=True)
class _Grid:
    """A slanted grid of parcels in strips."""

    ids: np.ndarray  # int [h, w], from 0
    across: np.ndarray  # pixels from the strip's edge
    strip: np.ndarray  # int [h, w]

    def mean(self, field: np.ndarray) -> np.ndarray:
        """Mean of field [h, w] over each parcel, as a map [h, w]."""
        ids = self.ids.ravel()
        return (np.bincount(ids, field.ravel()) / np.maximum(np.bincount(ids), 1))[self.ids]

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """A uniform number per parcel, as a map [h, w]."""
        return rng.random(self.ids.max() + 1, np.float32)[self.ids]


def _grid(rng: np.random.Generator, size: int, width: float, length: float) -> _Grid:
    angle = rng.uniform(0, np.pi)
    y, x = np.mgrid[:size, :size] - size / 2
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle) + 0.75 * size
    edges = np.cumsum(width * rng.uniform(0.6, 1.4, int(1.5 * size / (0.6 * width)) + 2))
    strip = np.searchsorted(edges, v)
    lengths = length * rng.uniform(0.7, 1.5, len(edges) + 1)
    cell = np.floor((u + rng.uniform(0, length, len(edges) + 1)[strip]) / lengths[strip]).astype(np.int64)
    cell -= cell.min()
    return _Grid(strip * (cell.max() + 1) + cell, v - np.append(0.0, edges)[strip], strip)


def classify(rng: np.random.Generator, place: Place, terrain: Terrain) -> Cover:
    """What grows and stands where."""
    size = len(terrain.height_m)
    patches = fractal(rng, size, exponent=4.6, wavelength=30, count=4)
    moisture = _moisture(place, terrain, patches[0])
    codes = _shores(place, terrain, patches, moisture, _natural(place, terrain, patches, moisture))
    codes = _majority(codes)
    # Fields of 60 to 500 m, larger where the world is emptier.
    width = float(np.clip(rng.lognormal(2.5 + 0.8 * (0.6 - place.people), 0.4), 5, 45))
    fields = _grid(rng, size, width, width * float(rng.uniform(1, 3)))
    town = _grid(rng, size, 11.0, 14.0)
    codes = _farm(rng, place, terrain, patches[3], moisture, fields, codes)
    built = town.mean(2.6 * place.people - 2.4 + 0.45 * patches[1]) > 0
    built &= town.mean(terrain.slope) < np.radians(14)
    streets = built & (town.across < 1.0)
    if place.people > 0.45:  # a country road along the edge of a strip, near the middle
        streets |= (fields.strip == fields.strip[size // 2, size // 2]) & (fields.across < 1.0)
    inhabited = (codes != SNOW) & (place.celsius(terrain.height_m, "warmest") > 5)
    codes[(built | streets) & inhabited] = BUILT
    codes[terrain.water] = WATER
    return Cover(codes, moisture, fields.ids, streets, town.ids, patches)


def _moisture(place: Place, terrain: Terrain, patch: np.ndarray) -> np.ndarray:
    """Rain, plus the water that gathers in hollows and by rivers and stays on slopes that face the pole."""
    shade = (terrain.north if place.lat >= 0 else -terrain.north) * -1.0  # falls towards the pole
    near = np.exp(-np.maximum(terrain.above_water_m, 0) / 3.0)
    ground = place.moisture + 0.14 * (terrain.wetness - 0.45) + 0.12 * np.clip(shade, -1, 1) + 0.12 * near
    evaporation = 0.008 * (place.celsius(terrain.height_m) - 12)
    return (ground - evaporation + 0.03 * patch).astype(np.float32)


def _natural(place: Place, terrain: Terrain, patches: np.ndarray, moisture: np.ndarray) -> np.ndarray:
    """The potential vegetation by moisture, the tree line at 10 C in the warmest month, tundra, glaciers, rock."""
    warmest = place.celsius(terrain.height_m, "warmest") + 0.6 * patches[0]
    openness = moisture + 0.06 * patches[1]
    codes = np.select(
        [openness < 0.14, openness < 0.24 + 0.03 * patches[2], openness < 0.40], [BARE, SHRUB, GRASS], TREE
    )
    clearing = patches[2] > 2.1 - 0.8 * place.people  # wind, fire and axe
    codes = np.where((codes == TREE) & clearing, np.where(patches[0] > 0, GRASS, SHRUB), codes)
    cold = warmest < 10
    tundra = np.select([moisture < 0.2, warmest + 1.5 * patches[2] < 6.5, patches[1] > 0.4], [BARE, MOSS, SHRUB], GRASS)
    codes = np.where(cold, tundra, codes)
    codes = np.where((warmest < 2.5) & (patches[1] > -0.6), BARE, codes)
    steep = terrain.slope + np.radians(3) * patches[2]
    codes = np.where(steep > np.radians(np.where(cold, 32, 48)), BARE, codes)
    ice = (warmest < 0.8) & (moisture > 0.25) & (steep < np.radians(45))
    return np.where(ice, SNOW, codes).astype(np.uint8)


def _shores(place: Place, terrain: Terrain, patches: np.ndarray, moisture: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Beaches, marshes and bogs, and mangroves where no month is colder than 16 C."""
    low, level = terrain.above_water_m, terrain.slope < np.radians(2.5)
    warm = place.celsius(terrain.height_m, "warmest") > 3
    codes = np.where((low < 0.7) & (moisture < 0.25), BARE, codes)  # sand bars
    bog = (terrain.wetness > 0.6) & (patches[3] > 1.1 - 0.8 * ramp(moisture, 0.4, 0.7)) & (moisture > 0.4)
    marsh = (low < 1.6) & (patches[3] > -0.3) & (moisture > 0.3)
    codes = np.where((bog | marsh) & level & warm & (codes != SNOW), WETLAND, codes)
    if terrain.kind == "coast":
        codes = np.where((low < 0.8) & (patches[3] < 0.2) & (codes != SNOW), BARE, codes)  # beaches
        if place.mean_c - place.swing_c > 16:
            codes = np.where((low < 2.2) & (patches[3] > -0.9) & (moisture > 0.12), MANGROVE, codes)
    return codes.astype(np.uint8)


def _majority(codes: np.ndarray) -> np.ndarray:
    """The most frequent class of the neighbourhood: a map's minimum mapping unit."""
    present = np.unique(codes)
    votes = blur((codes == present[:, None, None]).astype(np.float32), 2)
    return present[votes.argmax(axis=0)]


def _farm(
    rng: np.random.Generator,
    place: Place,
    terrain: Terrain,
    patch: np.ndarray,
    moisture: np.ndarray,
    fields: _Grid,
    codes: np.ndarray,
) -> np.ndarray:
    """Crops on whole fields where the ground is gentle, warm and neither dry nor drowned; pasture beside them."""
    suited = ramp(terrain.slope, np.radians(9), np.radians(4)) * ramp(moisture, 0.14, 0.28)
    suited *= ramp(place.celsius(terrain.height_m, "warmest"), 11, 14)
    share = float(ramp(place.people, 0.3, 0.8)) * fields.mean(suited * ~terrain.water)
    chance = 1 / (1 + np.exp(-0.8 * fields.mean(patch) - 2.0 * (2 * fields.draw(rng) - 1)))
    tillable = ~np.isin(codes, (WETLAND, MANGROVE, SNOW)) & (terrain.slope < np.radians(11))
    codes = np.where((chance < share) & tillable, CROP, codes)
    pasture = (chance < 1.3 * share) & (codes == TREE)
    return np.where(pasture & tillable, GRASS, codes).astype(np.uint8)
