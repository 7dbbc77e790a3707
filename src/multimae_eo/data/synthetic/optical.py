"""Sentinel-2: from materials to counts, through light, clouds, air, optics and noise."""

import math
from functools import lru_cache

import numpy as np

from multimae_eo.data.layout import SENTINEL2_CHANNELS
from multimae_eo.data.synthetic.classes import BUILT, MANGROVE, SNOW, TREE, WATER, Cover
from multimae_eo.data.synthetic.climate import Place
from multimae_eo.data.synthetic.fields import PIXEL_M, fractal, ramp
from multimae_eo.data.synthetic.spectra import SPECTRA, Shares, built_shares, class_shares
from multimae_eo.data.synthetic.surface import Surface
from multimae_eo.data.synthetic.terrain import Terrain

_NANOMETRES = np.array([443, 490, 560, 665, 705, 740, 783, 865, 842, 945, 1375, 1610, 2190], np.float32)
# Native pixel of each band in pixels of 10 m.
_PITCHES = {"B01": 6, "B09": 6, "B10": 6, "B02": 1, "B03": 1, "B04": 1, "B08": 1}
_PITCH = tuple(_PITCHES.get(band, 2) for band in SENTINEL2_CHANNELS)
_CIRRUS = SENTINEL2_CHANNELS.index("B10")

# Rayleigh scattering goes with wavelength^-4, optical depth 0.236 at 443 nm; aerosol with ^-1.3 (continental).
_RAYLEIGH = 0.236 * (_NANOMETRES / 443) ** -4
_AEROSOL = (_NANOMETRES / 550) ** -1.3
# Two-way transmission of gases: ozone in the visible, water vapour at 945 nm and, opaque, at 1375 nm.
_GASES = np.array([1.0, 0.98, 0.93, 0.95, 0.96, 0.95, 0.97, 0.98, 0.95, 0.35, 0.002, 0.96, 0.95], np.float32)
_CLOUD = np.array([0.72, 0.72, 0.72, 0.72, 0.72, 0.72, 0.72, 0.71, 0.71, 0.66, 0.35, 0.50, 0.36], np.float32)
_CLOUDY_SHARE = 0.10  # MMEarth chose images with few clouds, not without
_GAP_SHARE = 0.05  # edges of swaths, and holes
_BAND_LOSS_SHARE = 0.005  # tiles that lack their 20 m bands
_VARIATION = 0.12  # deviation of a material's brightness from place to place, relative


def render(rng: np.random.Generator, place: Place, terrain: Terrain, cover: Cover, surface: Surface) -> np.ndarray:
    """Counts (reflectance x 10,000; 0 for no data) [13, h, w] uint16, bands in the order of SENTINEL2_CHANNELS."""
    size = len(terrain.height_m)
    shares = _mix(rng, place, terrain, cover, surface)
    light = _reflect(rng, shares, size) * _illumination(place, terrain)
    light, cloud = _clouds(rng, place, light)
    light = _atmosphere(rng, place, light)
    if place.product == "L1C":  # high clouds alone shine at 1375 nm
        light[_CIRRUS] += 0.03 * cloud
    light = _optics(light)
    # Signal-to-noise of about 150 at a reflectance of 0.1, limited by photons, with a floor of read-out noise.
    deviation = np.sqrt(1e-7 + 4e-6 * np.maximum(light, 0))
    light += place.noise * deviation * rng.standard_normal(light.shape, np.float32)
    counts = np.clip(np.rint(light * 10000), 1, 20000).astype(np.uint16)
    if place.product == "L2A":
        counts[_CIRRUS] = 0
    return _gaps(rng, counts)


def _mix(rng: np.random.Generator, place: Place, terrain: Terrain, cover: Cover, surface: Surface) -> Shares:
    """Shares of the materials in every pixel, with the snow of the season above them."""
    shares: Shares = {}
    for code in np.unique(cover.codes):
        inside = cover.codes == code
        parts = (
            built_shares(rng, cover, surface) if code == BUILT else class_shares(code, place, terrain, cover, surface)
        )
        for name, part in parts.items():
            shares[name] = shares.get(name, 0.0) + inside * part
    hidden = np.select([np.isin(cover.codes, (TREE, MANGROVE)), cover.codes == BUILT], [0.65, 0.45], 0.05)
    white = surface.snow * (1 - hidden)
    ice = 0.0 if terrain.kind == "coast" else ramp(place.celsius(terrain.height_m, "now"), -3, -8)
    white = np.where(cover.codes == WATER, ice, white)
    white = np.where(cover.codes == SNOW, 0.0, white).astype(np.float32)
    if white.any():
        shares = {name: part * (1 - white) for name, part in shares.items()}
        shares["fresh snow"] = shares.get("fresh snow", 0.0) + white
    return shares


def _reflect(rng: np.random.Generator, shares: Shares, size: int) -> np.ndarray:
    """Linear mixing; a material's brightness and tilt differ from place to place, and pixels by their roughness."""
    reflectance = np.zeros((len(_NANOMETRES), size, size), np.float32)
    tilt = np.log(_NANOMETRES / 900)
    variation = _VARIATION * rng.standard_normal((len(SPECTRA), 2))
    for (name, spectrum), (brightness, slope) in zip(SPECTRA.items(), variation, strict=True):
        if name in shares:
            own = spectrum * np.exp(brightness + 0.5 * slope * tilt) if spectrum[0] < 0.5 else spectrum
            reflectance += own.astype(np.float32)[:, None, None] * shares[name].astype(np.float32)
    texture = fractal(rng, size, exponent=1.6, wavelength=10)[0]
    return reflectance * (1 + 0.05 * texture)


def _illumination(place: Place, terrain: Terrain) -> np.ndarray:
    """Light on the slope relative to level ground, [13, h, w]; the sky's share is larger in the blue.

    L2A is processed with a terrain correction, which leaves about half of the effect in practice.
    """
    direct = np.maximum(terrain.incidence(place.sun_altitude, place.sun_azimuth), 0) / math.sin(place.sun_altitude)
    effect = 1.0 if place.product == "L1C" else 0.55
    direct = 1 + effect * (np.minimum(direct, 2.5) - 1)
    diffuse = (0.06 + 0.9 * _RAYLEIGH)[:, None, None]
    return (diffuse + (1 - diffuse) * direct).astype(np.float32)


def _clouds(rng: np.random.Generator, place: Place, light: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Thin veils or thick patches with their shadows, on some tiles. Also returns the opacity [h, w] of high clouds."""
    cloudy, thin, cover, depth, height = rng.random(5)
    size = light.shape[-1]
    if cloudy > _CLOUDY_SHARE:
        return light, np.zeros((size, size), np.float32)
    field = fractal(rng, 2 * size, exponent=3.2, wavelength=size / 1.5)[0]
    edge = 1.3 - 1.6 * cover  # a tenth to two thirds of the sky
    opacity = ramp(field, edge, edge + 1.0) * (0.1 + 0.35 * depth if thin < 0.5 else 1.0)
    metres = 600 + 1400 * height if thin >= 0.5 else 8000 + 3000 * height
    reach = metres / math.tan(place.sun_altitude) / PIXEL_M
    down, right = round(math.cos(place.sun_azimuth) * reach), round(-math.sin(place.sun_azimuth) * reach)
    shadow = np.roll(opacity, (down, right), axis=(0, 1))[:size, :size]
    above = opacity[:size, :size]
    sky = (0.1 + 0.9 * _RAYLEIGH)[:, None, None]  # what still lights the shadow
    light = light * (1 - 0.9 * shadow * (1 - sky))
    light = light * (1 - above) + _CLOUD[:, None, None] * above
    return light.astype(np.float32), above if thin < 0.5 else np.zeros_like(above)


def _atmosphere(rng: np.random.Generator, place: Place, light: np.ndarray) -> np.ndarray:
    """At the top of the atmosphere for L1C; for L2A what an imperfect correction of it leaves.

    Path radiance and transmission in the single-scattering approximation, for air masses down and up.
    """
    thickness = 0.04 + float(rng.gamma(2.0, 0.05))  # of aerosol at 550 nm: clear days of 0.05, hazy ones of 0.3
    error = 0.2 * float(rng.standard_normal())
    altitude = math.sin(place.sun_altitude)
    mass = 1 / altitude + 1
    air = math.exp(-place.base_m / 8000)  # less air above high ground
    depth = air * _RAYLEIGH + thickness * _AEROSOL
    path = (0.75 * air * _RAYLEIGH + 0.55 * thickness * _AEROSOL) / (4 * altitude)
    if place.product == "L1C":
        through = np.exp(-0.35 * depth * mass)  # most of the scattered light goes forward and arrives
        return (light * through[:, None, None] + path[:, None, None]) * _GASES[:, None, None]
    return light + np.float32(error) * path[:, None, None].astype(np.float32)


@lru_cache(maxsize=16)
def _sampling(size: int, pitch: int) -> np.ndarray:
    """Operator [size, size] along an axis: the optics' blur, the mean over native pixels, linear interpolation back."""
    position = np.arange(size)
    if pitch == 1:  # modulation of a third at the Nyquist frequency
        near = np.abs(position[:, None] - position[None, :])
        weights = np.where(near == 0, 0.68, np.where(near == 1, 0.16, 0.0))
        return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    cells = -(-size // pitch)
    mean = (position[None, :] // pitch == np.arange(cells)[:, None]).astype(float)
    mean /= mean.sum(axis=1, keepdims=True)
    at = np.clip((position + 0.5) / pitch - 0.5, 0, cells - 1)
    back = np.maximum(1 - np.abs(at[:, None] - np.arange(cells)[None, :]), 0)
    return (back @ mean).astype(np.float32)


def _optics(light: np.ndarray) -> np.ndarray:
    """Every band at its native pixel, back on the 10 m grid."""
    size = light.shape[-1]
    left = np.stack([_sampling(size, pitch) for pitch in _PITCH])
    return left @ light.astype(np.float32) @ left.transpose(0, 2, 1)


def _gaps(rng: np.random.Generator, counts: np.ndarray) -> np.ndarray:
    """No data (0) beyond the edge of the swath, in masked holes, or in the 20 m bands, on some tiles."""
    gap, hole, angle, where, loss = rng.random(5)
    size = counts.shape[-1]
    if gap < _GAP_SHARE:
        if hole < 0.5:
            missing = fractal(rng, size, exponent=3.5, wavelength=size / 2)[0] > 0.6 + where
        else:
            y, x = np.mgrid[:size, :size] / (size / 2) - 1
            missing = np.cos(2 * np.pi * angle) * x + np.sin(2 * np.pi * angle) * y > where * 1.2 - 0.2
        counts = np.where(missing, np.uint16(0), counts)
    if loss < _BAND_LOSS_SHARE:
        counts[[pitch == 2 for pitch in _PITCH]] = 0
    return counts
