"""Terrain: a fractal surface with the water in it, and how wet the ground is by its shape."""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from multimae_eo.data.synthetic.climate import Place
from multimae_eo.data.synthetic.fields import PIXEL_M, blur, fractal, ramp

_COAST_SHARE = 0.5  # of the places beside the sea; high, as shores carry classes of their own


@dataclass(frozen=True)
class Terrain:
    """Maps [h, w] float32 of the ground."""

    height_m: np.ndarray
    east: np.ndarray  # rise per metre eastwards
    north: np.ndarray  # rise per metre northwards
    wetness: np.ndarray  # topographic wetness index, scaled to 0..1
    water: np.ndarray  # bool: open water, at one level in the tile
    above_water_m: np.ndarray  # height over that level, infinite where the tile has no water
    kind: str  # "dry", "river", "lake" or "coast"

    @cached_property
    def slope(self) -> np.ndarray:
        """Radians."""
        return np.arctan(np.hypot(self.east, self.north))

    def incidence(self, altitude: float, azimuth: float) -> np.ndarray:
        """Cosine between the surface normal and the direction to a source above the horizon (radians)."""
        across = -self.east * math.sin(azimuth) - self.north * math.cos(azimuth)
        up = math.sin(altitude) + across * math.cos(altitude)
        return up / np.sqrt(1 + self.east**2 + self.north**2)


def build_terrain(rng: np.random.Generator, place: Place, size: int) -> Terrain:
    """A tile of ground for a place: slopes by its relief, water where relief and moisture let it gather."""
    kind = _kind(rng, place)
    # Exponents of measured relief lie near 3 to 4 over kilometres (Turcotte, Fractals and chaos in geology); below some
    # 100 m soil creep smooths hillsides, more on plains than in young mountains.
    exponent = round(float(rng.uniform(4.2, 4.7) - 0.3 * ramp(place.relief_m, 10, 60)), 1)
    relief = place.relief_m * (size / 64) ** (exponent / 2 - 1)  # self-affine: larger tiles have more relief
    # A window of a field twice as wide, as spectral synthesis is periodic.
    height = fractal(rng, 2 * size, exponent=exponent, wavelength=4 * size)[0, :size, :size]
    height = place.base_m + relief * (height - height.mean() + _plane(rng, size, 0.8))
    distance = _curve(rng, size)
    water, level = np.zeros((size, size), bool), -math.inf
    match kind:
        case "coast":
            height, water, level = _coast(rng, height, distance)
        case "river":
            height, water, level = _river(rng, place, height, np.abs(distance))
        case "lake":
            smooth = blur(height, 3)
            level = float(np.quantile(smooth, rng.uniform(0.1, 0.6)))
            water = smooth < level
            height = np.maximum(height, level + 0.3)
    height = np.where(water, level, height).astype(np.float32)
    down, east = np.gradient(height, PIXEL_M)
    return Terrain(height, east, -down, _wetness(height, np.hypot(down, east)), water, height - level, kind)


def _kind(rng: np.random.Generator, place: Place) -> str:
    coast, water = rng.random(2)
    if coast < _COAST_SHARE * (1 - place.land_share):
        return "coast"
    flat = 1 - 0.7 * ramp(place.relief_m, 8, 50)
    rivers, lakes = 0.30 * place.moisture, 0.22 * place.moisture * flat * (1 + ramp(abs(place.lat), 45, 60))
    return "river" if water < rivers else "lake" if water < rivers + lakes else "dry"


def _plane(rng: np.random.Generator, size: int, steepness: float) -> np.ndarray:
    """A tilted plane through 0, from -steepness to steepness across the tile, towards any side."""
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[:size, :size].astype(np.float32) / (size / 2) - 1
    return steepness * (np.float32(math.cos(angle)) * x + np.float32(math.sin(angle)) * y)


def _curve(rng: np.random.Generator, size: int) -> np.ndarray:
    """Signed distance in pixels, about, to a curve that winds through the tile."""
    bends = fractal(rng, size, exponent=5.5, wavelength=36)[0]
    plane = _plane(rng, size, size / 2) + np.float32(rng.uniform(-0.25, 0.25) * size)
    field = plane + np.float32(rng.uniform(2.0, 7.0)) * bends
    down, east = np.gradient(field)
    return field / np.maximum(np.hypot(down, east), 0.4)


def _river(
    rng: np.random.Generator, place: Place, height: np.ndarray, distance: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float]:
    """Opens a valley around the curve: the relief above the river's level fades in over the valley's width."""
    level = float(np.quantile(height, 0.02))
    half_width = float(rng.uniform(0.7, 1.5) + rng.exponential(2.5) * place.moisture)
    valley = half_width + float(rng.uniform(4, 15))
    beyond = np.maximum(distance - half_width, 0)
    height = level + 0.5 + (height - level).clip(0) * beyond / (beyond + valley)
    return height, distance < half_width, level


def _coast(rng: np.random.Generator, height: np.ndarray, distance: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """The sea on one side; on the other, land that rises from the beach and whose relief fades in."""
    rise = float(rng.choice([0.02, 0.08, 0.6], p=[0.45, 0.35, 0.2]))  # m per pixel: tidal flat, plain, cliff
    inland = distance.clip(0)
    relief = np.minimum(height - height.min(), 60.0) * min(rise * 2, 1.0)
    return 0.3 + rise * inland + relief * inland / (inland + 15), distance < 0, 0.0


_STEPS = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))


def _wetness(height: np.ndarray, tangent: np.ndarray) -> np.ndarray:
    """Topographic wetness index ln(area / tan slope) (Beven and Kirkby, 1979) by steepest descent, scaled to 0..1."""
    size = len(height)
    smooth = blur(height, 2)
    padded = np.pad(smooth, 1, constant_values=np.inf)
    drops = np.stack(
        [
            (smooth - padded[1 + i : 1 + i + size, 1 + j : 1 + j + size]) / np.float32(math.hypot(i, j))
            for i, j in _STEPS
        ]
    )
    steepest = drops.argmax(axis=0)
    offsets = np.array([i * size + j for i, j in _STEPS])
    cells = size * size
    target = np.where(drops.max(axis=0) > 0, np.arange(cells).reshape(size, size) + offsets[steepest], cells).ravel()
    target = np.append(target, cells)
    # The sum over all powers of the flow step, by doubling: (1 + P)(1 + P^2)(1 + P^4)...
    area = np.append(np.ones(cells), 0.0)
    for _ in range((2 * size).bit_length()):
        area = area + np.bincount(target, area, cells + 1)
        area[cells] = 0.0
        target = target[target]
    index = np.log(PIXEL_M * area[:cells].reshape(size, size)) - np.log(blur(tangent) + 0.01)
    return blur(ramp(index, 3.0, 12.0).astype(np.float32))
