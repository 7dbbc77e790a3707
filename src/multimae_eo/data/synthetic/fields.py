"""Random fields: keyed streams, fractal fields on a tile, smooth fields on the globe, and small filters."""

from functools import lru_cache

import numpy as np

PIXEL_M = 10.0  # pitch of every tile

_GLOBAL = 2**64 - 1  # the stream of the world itself; those of tiles are numbered from 0


def stream(seed: int, index: int = _GLOBAL) -> np.random.Generator:
    """The random numbers of tile `index` of world `seed` (or of the world itself): counter-based, keyed by both."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, index], np.uint64)))


@lru_cache(maxsize=64)
def _amplitude(size: int, exponent: float, wavelength: float) -> np.ndarray:
    ky, kx = np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :]
    squared = ky**2 + kx**2
    corner = 1.0 / wavelength**2
    amplitude = (squared + corner) ** (-exponent / 4)
    amplitude[0, 0] = 0.0
    return amplitude.astype(np.float32)


def fractal(rng: np.random.Generator, size: int, *, exponent: float, wavelength: float, count: int = 1) -> np.ndarray:
    """Gaussian fields by spectral synthesis, [count, size, size] float32, each of mean 0 and deviation 1; periodic.

    Power falls as 1/k^exponent above the frequency 1/wavelength (pixels) and is flat below: the size of patches.
    """
    half = size // 2 + 1
    noise = rng.standard_normal((count, size, half, 2), np.float32).view(np.complex64)[..., 0]
    field = np.fft.irfft2(noise * _amplitude(size, exponent, wavelength), s=(size, size)).astype(np.float32)
    return field / field.std(axis=(1, 2), keepdims=True)


def blur(field: np.ndarray, passes: int = 1) -> np.ndarray:
    """Binomial 3 x 3 smoothing of [..., h, w], edges repeated."""
    for _ in range(2 * passes):  # along the rows, then along the columns
        total = 2 * field
        total[..., 1:, :] += field[..., :-1, :]
        total[..., :-1, :] += field[..., 1:, :]
        total[..., [0, -1], :] += field[..., [0, -1], :]
        field = (total / 4).swapaxes(-1, -2)
    return field


def ramp(values: np.ndarray | float, low: float, high: float) -> np.ndarray:
    """0 below low, 1 above high, linear between (low > high reverses it)."""
    return np.clip((np.asarray(values, np.float32) - low) / (high - low), 0.0, 1.0)


NUM_GLOBAL = 6  # height, relief, moisture, people, soil, warmth
_WAVES = 24


@lru_cache(maxsize=8)
def _waves(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = stream(seed)
    directions = rng.standard_normal((NUM_GLOBAL, _WAVES, 3))
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    # Wavelengths from 60 down to 9 degrees: provinces that span several blocks of a split, and no planetary gradient.
    numbers = np.geomspace(6.0, 40.0, _WAVES)
    amplitude = numbers**-0.5
    return directions * numbers[:, None], rng.uniform(0, 2 * np.pi, (NUM_GLOBAL, _WAVES)), amplitude


def global_fields(seed: int, lat: float, lon: float) -> np.ndarray:
    """The world's `NUM_GLOBAL` smooth fields at a place (degrees), each about standard normal over the globe."""
    waves, phases, amplitude = _waves(seed)
    phi, lam = np.radians(lat), np.radians(lon)
    point = np.array([np.cos(phi) * np.cos(lam), np.cos(phi) * np.sin(lam), np.sin(phi)])
    return (amplitude * np.cos((waves * point).sum(axis=-1) + phases)).sum(axis=-1) * np.sqrt(2 / (amplitude**2).sum())
