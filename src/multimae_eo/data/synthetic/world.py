"""A synthetic world: every tile a place whose modalities follow from one terrain, one climate and one land cover."""

from typing import NamedTuple

import numpy as np

from multimae_eo.data.layout import Tile
from multimae_eo.data.synthetic.classes import WATER, Cover, classify
from multimae_eo.data.synthetic.climate import Place, draw_place
from multimae_eo.data.synthetic.fields import blur, stream
from multimae_eo.data.synthetic.optical import render
from multimae_eo.data.synthetic.radar import sense
from multimae_eo.data.synthetic.surface import Surface, dress
from multimae_eo.data.synthetic.terrain import Terrain, build_terrain
from multimae_eo.errors import ConfigError

_HOLE_SHARE = 0.02  # of tiles that lack a rectangle of the height model, and as many of the map of classes
_CANOPY_HOLE_SHARE = 0.01


def check_world(seed: int, tile_px: int) -> None:
    """Raises ConfigError for a seed or a tile size that no world has."""
    if not 0 <= seed < 2**63:
        raise ConfigError(f"seed is {seed}; expected an integer from 0 to 2^63 - 1.")
    if tile_px < 16 or tile_px % 4:
        raise ConfigError(f"tile_px is {tile_px}; expected a multiple of 4 that is at least 16, e.g. 64.")


class Ground(NamedTuple):
    """What is there, whether or not a sensor sees it."""

    place: Place
    terrain: Terrain
    cover: Cover
    surface: Surface


def make_tile(seed: int, index: int, tile_px: int = 64) -> Tile:
    """Tile `index` of world `seed`, tile_px x tile_px pixels of 10 m: a pure function of its arguments.

    Its `split` is "train"; `generate` sets it. Raises ConfigError.
    """
    return make_ground_and_tile(seed, index, tile_px)[1]


def make_ground_and_tile(seed: int, index: int, tile_px: int = 64) -> tuple[Ground, Tile]:
    """The ground of a tile, and the tile that the sensors see of it (see `make_tile`)."""
    check_world(seed, tile_px)
    if index < 0:
        raise ConfigError(f"index is {index}; tiles are numbered from 0.")
    rng = stream(seed, index)
    place = draw_place(rng, seed, index)
    terrain = build_terrain(rng, place, tile_px)
    cover = classify(rng, place, terrain)
    surface = dress(rng, place, terrain, cover)
    arrays = {
        "sentinel2": render(rng, place, terrain, cover, surface),
        "sentinel1": sense(rng, place, terrain, cover, surface),
        "aster": _heights(rng, terrain),
        "esa_worldcover": _with_hole(rng, cover.codes[None], _HOLE_SHARE, 0),
        "canopy_height_eth": _canopy(rng, cover, surface),
    }
    middle = terrain.height_m[tile_px // 2, tile_px // 2]
    extra = {
        "temperature_c": round(float(place.celsius(middle, "now")), 2),
        "moisture": round(place.moisture, 3),
        "water": terrain.kind,
    }
    tile = Tile(
        tile_id=str(1_000_000 * seed + index),  # a number, as in MMEarth
        product=place.product,
        lat=place.lat,
        lon=place.lon,
        date=place.day.isoformat(),
        arrays=arrays,
        crs=place.crs,
        extra=extra,
    )
    return Ground(place, terrain, cover, surface), tile


def _heights(rng: np.random.Generator, terrain: Terrain) -> np.ndarray:
    """Metres and degrees, int16 [2, h, w]: pixels of 30 m, errors of a metre or two on land, water levelled."""
    errors = 1.5 * blur(rng.standard_normal(terrain.height_m.shape, np.float32), 2)
    seen = np.where(terrain.water, terrain.height_m, blur(terrain.height_m, 2) + errors)
    slope = np.where(terrain.water, 0.0, np.degrees(blur(terrain.slope, 2)))
    both = np.stack([np.rint(seen), slope]).astype(np.int16)
    return _with_hole(rng, both, _HOLE_SHARE, -32768)


def _canopy(rng: np.random.Generator, cover: Cover, surface: Surface) -> np.ndarray:
    """Metres and their deviation, int8 [2, h, w]: as retrieved, with an error that grows with height."""
    error = blur(rng.standard_normal(cover.codes.shape, np.float32), 2)
    deviation = 1.2 + 0.22 * surface.canopy_m
    seen = np.where(cover.codes == WATER, 0.0, surface.canopy_m + 0.8 * deviation * error)
    both = np.clip(np.rint(np.stack([seen, deviation])), 0, 60).astype(np.int8)
    return _with_hole(rng, both, _CANOPY_HOLE_SHARE, 127)


def _with_hole(rng: np.random.Generator, values: np.ndarray, share: float, missing: int) -> np.ndarray:
    """values [c, h, w] with a rectangle of no data in `share` of all calls."""
    size = values.shape[-1]
    hit, *corner = rng.random(5)
    if hit < share:
        top, left = (int(size * v * 0.8) for v in corner[:2])
        height, width = (int(size * (0.15 + 0.5 * v)) for v in corner[2:])
        values = values.copy()
        values[:, top : top + height, left : left + width] = missing
    return values
