"""Sentinel-1: backscatter of the land cover at C band, by local incidence, moisture and biomass, with speckle."""

import math
from collections.abc import Mapping

import numpy as np

from multimae_eo.data.layout import ARRAYS
from multimae_eo.data.synthetic import classes as c
from multimae_eo.data.synthetic.classes import Cover
from multimae_eo.data.synthetic.climate import Place
from multimae_eo.data.synthetic.fields import blur, ramp
from multimae_eo.data.synthetic.surface import Surface
from multimae_eo.data.synthetic.terrain import Terrain

# Mean sigma nought in dB (VV, VH) at 38 degrees of incidence, representative of published C-band signatures
# (Ulaby and Dobson, Handbook of Radar Scattering Statistics for Terrain; global Sentinel-1 composites).
_SIGNATURES: Mapping[int, tuple[float, float]] = {
    c.TREE: (-8.5, -14.0),
    c.SHRUB: (-11.0, -17.5),
    c.GRASS: (-12.5, -19.5),
    c.CROP: (-11.5, -18.5),
    c.BUILT: (-4.5, -12.5),
    c.BARE: (-14.0, -23.0),
    c.SNOW: (-11.5, -19.0),
    c.WATER: (-20.0, -28.0),
    c.WETLAND: (-10.5, -18.0),
    c.MANGROVE: (-8.0, -13.5),
    c.MOSS: (-13.0, -20.5),
}
_LOOKS = 4.4  # equivalent number, of the IW ground range product
_FLOOR = 10**-2.6  # thermal noise, linear
_ORBITS = {"ascending": 77.0, "descending": 283.0}  # direction of the look, degrees from north; at mid latitudes
_ORBIT_SHARES = {("descending",): 0.70, ("ascending",): 0.22, ("ascending", "descending"): 0.06, (): 0.02}


def sense(rng: np.random.Generator, place: Place, terrain: Terrain, cover: Cover, surface: Surface) -> np.ndarray:
    """dB [8, h, w] float32: ascending VV, VH, HH, HV, then descending; -inf where there is none (HH and HV never)."""
    spec = ARRAYS["sentinel1"]
    size = len(terrain.height_m)
    out = np.full((spec.channels, size, size), spec.missing, np.float32)
    orbits = tuple(_ORBIT_SHARES)[int(rng.choice(len(_ORBIT_SHARES), p=list(_ORBIT_SHARES.values())))]
    ground = _ground(rng, place, cover, surface)
    incidence = math.radians(float(rng.uniform(31, 45)))
    for orbit in orbits:
        first = 0 if orbit == "ascending" else 4
        out[first : first + 2] = _image(rng, ground + _geometry(terrain, cover, incidence, _ORBITS[orbit]))
    return out


def _ground(rng: np.random.Generator, place: Place, cover: Cover, surface: Surface) -> np.ndarray:
    """Mean backscatter at the reference incidence, dB [2, h, w]."""
    table = np.zeros((2, 101), np.float32)
    for code, levels in _SIGNATURES.items():
        table[:, code] = levels
    table[:, c.WATER] += rng.normal(0, 2.5)  # wind roughens water
    level = table[:, cover.codes]
    codes = cover.codes
    soil = np.isin(codes, (c.GRASS, c.CROP, c.BARE, c.SHRUB, c.MOSS))
    level += soil * 3.5 * (surface.wet - 0.4)  # wet soil is a better mirror of its roughness
    crops = (codes == c.CROP) * np.stack([1.5 * (surface.crop - 0.4), 5.0 * (surface.crop - 0.4)])
    wood = np.isin(codes, (c.TREE, c.MANGROVE)) * (np.minimum(surface.canopy_m, 25) - 15)  # saturates with biomass
    rock = (codes == c.BARE) * (4.0 * ramp(place.relief_m, 5, 40) - 1.0)  # sand is smooth, scree is rough
    level += crops + wood * np.array([0.06, 0.10])[:, None, None] + rock + 0.5 * cover.patches[3]
    # Wet snow absorbs; dry snow is transparent at C band. Frozen ground looks dry.
    melting = ramp(surface.snow, 0.2, 0.8) * (codes != c.WATER) * float(ramp(place.now_c, -4, 2))
    level -= 4.0 * melting
    towers = rng.normal(0, 3.0, int(cover.blocks.max()) + 1).astype(np.float32)[cover.blocks]
    return level + (codes == c.BUILT) * np.where(cover.streets, -7.0, towers)


def _geometry(terrain: Terrain, cover: Cover, incidence: float, look: float) -> np.ndarray:
    """dB by which slopes that face the sensor are brighter, [h, w]; forests depend on it less than bare ground."""
    local = terrain.incidence(math.pi / 2 - incidence, math.radians(look + 180))
    facing = np.clip(local, 0.05, 0.998)
    area = np.sqrt(1 - math.cos(incidence) ** 2) / np.sqrt(1 - facing**2)  # ground within a cell of slant range
    power = np.where(cover.codes == c.TREE, 1.0, 1.8)
    return 10 * np.log10(area.clip(0.2, 6)) + 10 * power * np.log10(facing / math.cos(incidence))


def _image(rng: np.random.Generator, mean_db: np.ndarray) -> np.ndarray:
    """Speckle, correlated over neighbouring pixels as the resolution is twice the pitch; noise floor; dB."""
    linear = 10 ** (np.clip(mean_db, -35, 8) / 10) + _FLOOR
    shape = _LOOKS * (6 / 16) ** 2  # the blur averages (16 / 6)^2 independent values
    speckle = rng.standard_gamma(shape, linear.shape, np.float32) / np.float32(shape)
    image = linear * blur(speckle)
    # Steps of 1/128 dB, far below the radiometric accuracy: they halve the size on disk.
    return (np.round(1280 * np.log10(np.maximum(image, 1e-4))) / 128).astype(np.float32)
