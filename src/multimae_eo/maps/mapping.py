"""From windows of a scene to blended results: tiles are read ahead, cut, fed to a model in batches, and added up."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from multimae_eo.config import ModelConfig
from multimae_eo.errors import ConfigError
from multimae_eo.maps.layers import Window
from multimae_eo.maps.options import TileOptions
from multimae_eo.maps.tiling import TileRow, Tiling
from multimae_eo.modalities import Modality
from multimae_eo.raster import Batch, OwnGrids, by_modality, token_valid

Read = Callable[[Window], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Feed:
    """What a model is fed from the bands of a scene.

    modalities: those it is given, with the statistics it was trained with; products: index of the product of each.
    """

    bands: tuple[str, ...]
    modalities: Mapping[str, Modality]
    products: Mapping[str, int]

    @property
    def channels(self) -> list[int]:
        """The bands that the model is fed, as indices."""
        wanted = {band for m in self.modalities.values() for band in m.bands}
        return [i for i, band in enumerate(self.bands) if band in wanted]


# Tiles as rasters on their own grids, and the place of the first cell of each -> results [n, k, size, size] in cells.
Work = Callable[[Batch, Sequence[tuple[int, int]]], Tensor]


class TileRows:
    """Computes rows of tiles of a scene; the next row is read while one is computed.

    tiling: in cells of the result; cell: edge of a cell in pixels; outputs: numbers per cell that work gives. A cell
    may get a result where at least half (`least`) of the values of the model's bands are valid, and from tiles with
    any token of which as much is.
    """

    def __init__(
        self,
        read: Read,
        feed: Feed,
        tiling: Tiling,
        work: Work,
        *,
        outputs: int,
        config: ModelConfig,
        options: TileOptions,
        cell: int = 1,
        least: float = 0.5,
    ):
        self.read, self.feed, self.tiling, self.work = read, feed, tiling, work
        self.outputs, self.cell, self.least = outputs, cell, least
        self.device, self.batch = device_of(options.device), options.batch
        self.patch = config.patch_size
        self.own_grids = OwnGrids(feed.modalities).to(self.device)
        self.computed: Callable[[int], object] = lambda tiles: None
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="reader")
        self._ahead: dict[tuple[int, int, int], Future[tuple[np.ndarray, np.ndarray]]] = {}

    def close(self) -> None:
        self._reader.shutdown(cancel_futures=True)

    @torch.inference_mode()
    def row(self, top: int, lefts: Sequence[int]) -> TileRow:
        """The tiles whose first cells are in row `top` and these columns."""
        values, valid = self._rows(top, lefts)
        size, cell, first = self.tiling.size, self.cell, lefts[0]
        tile, channels = size * cell, self.feed.channels
        known = _mostly(valid[channels], cell, self.least)
        sums = np.zeros((self.outputs + 1, size, lefts[-1] - first + size), np.float32)
        inside = [(left - first) * cell for left in lefts]
        seen = [self._sees(valid[:, :, x : x + tile]) for x in inside]
        wanted = [left for left, any_valid in zip(lefts, seen, strict=True) if any_valid]
        self.computed(len(lefts) - len(wanted))
        for start in range(0, len(wanted), self.batch):
            part = wanted[start : start + self.batch]
            results, weights = self._compute(values, valid, [(left - first) * cell for left in part], top, part)
            for left, result, weight in zip(part, results, weights, strict=True):
                place = slice(left - first, left - first + size)
                sums[:-1, :, place] += result
                sums[-1, :, place] += weight
            self.computed(len(part))
        return TileRow(sums, known, first)

    def _sees(self, valid: np.ndarray) -> bool:
        """Whether a tile has any token that is valid enough."""
        if self.least > 0:
            return token_any(valid[self.feed.channels], self.patch)
        index = {band: i for i, band in enumerate(self.feed.bands)}
        groups = [[index[b] for b in m.bands if b in index] for m in self.feed.modalities.values()]
        return any(token_any(valid[group], self.patch) for group in groups)

    def _compute(
        self, values: np.ndarray, valid: np.ndarray, starts: Sequence[int], top: int, lefts: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Weighted results [n, k, size, size], and the weights [n, size, size]: none where a result is no number."""
        edge = self.tiling.size * self.cell
        tiles = torch.from_numpy(np.stack([values[:, :, x : x + edge] for x in starts])).to(self.device)
        there = torch.from_numpy(np.stack([valid[:, :, x : x + edge] for x in starts])).to(self.device)
        batch = by_modality(tiles, there, self.feed.bands, self.feed.modalities, self.feed.products)
        results = self.work(self.own_grids(batch), [(top, left) for left in lefts]).float()
        axis = torch.from_numpy(self.tiling.weights()).to(self.device)
        known = results.sum(dim=1).isfinite()
        weights = torch.outer(axis, axis).where(known, 0.0)
        if not known.all():
            results = results.where(known[:, None], 0.0)
        return (results * weights[:, None]).cpu().numpy(), weights.cpu().numpy()

    def _rows(self, top: int, lefts: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Values and validity of the pixels of a row of tiles; starts to read those of the next one."""
        key = (top, lefts[0], lefts[-1])
        future = self._ahead.pop(key, None)
        self._ahead.clear()  # what was read ahead for a row that does not come
        found = (future or self._reader.submit(self.read, self._window(*key))).result()  # files are for one thread
        following = (top + self.tiling.stride, *key[1:])
        self._ahead[following] = self._reader.submit(self.read, self._window(*following))
        return found

    def _window(self, top: int, first: int, last: int) -> Window:
        edge = self.tiling.size * self.cell
        return Window(top * self.cell, first * self.cell, edge, (last - first) * self.cell + edge)


def _mostly(valid: np.ndarray, cell: int, least: float) -> np.ndarray:
    """Valid [c, h, w] -> the cells [h / cell, w / cell] of whose values at least a share is."""
    bands, height, width = valid.shape
    counts = valid.reshape(bands, height // cell, cell, width // cell, cell).sum(axis=(0, 2, 4), dtype=np.int32)
    return counts >= least * bands * cell * cell


def token_any(valid: np.ndarray, patch: int) -> bool:
    """Whether a tile [c, h, w] has any patch that is valid enough to be seen."""
    height, width = (edge // patch * patch for edge in valid.shape[-2:])
    return bool(token_valid(torch.from_numpy(valid[:, :height, :width]), patch).any())


def device_of(name: str) -> torch.device:
    """A device of torch; raises ConfigError."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.zeros((), device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"tiles.device '{name}' cannot be used here: {str(error).splitlines()[0]}") from error


def tiling_for(options: TileOptions, config: ModelConfig, cell: int = 1, trained: int | None = None) -> Tiling:
    """The tiles of a model, by default of the size that it was fine-tuned (trained) or pre-trained on.

    Raises ConfigError.

    They overlap by about a quarter (see `spread_stride`), by half where cells are larger than pixels, as a fade over
    few cells is still a step.
    """
    patch, unit = config.patch_size, max(cell, *(m.stride for m in config.modalities.values()))
    size = options.size if options.size is not None else trained or config.image_size
    if size < patch or size % patch:
        raise ConfigError(f"tiles.size {size} is not a multiple of the model's patch, {patch} px.")
    if options.batch < 1:
        raise ConfigError(f"tiles.batch must be 1 or more; got {options.batch}.")
    overlap = options.overlap
    if overlap is None:
        overlap = size // (2 * unit) * unit if cell > 1 else size - unit * spread_stride(size // unit, patch // unit)
    Tiling(size, size - overlap, options.margin, unit)
    return Tiling(size // cell, (size - overlap) // cell, options.margin // cell, max(1, unit // cell))


def spread_stride(size: int, patch: int) -> int:
    """A step from tile to tile of about three quarters of its size, an odd number near 0.31 patches past a whole one.

    Where all tiles begin at one place of a patch, what a head makes of the edges of patches adds up to a regular grid
    in the map; so they begin at all places in turn, far from those before.
    """
    past = round(0.31 * patch) // 2 * 2 + 1
    wanted = [s for s in range(-(-size // 2), size) if s % patch == past % patch]
    return min(wanted, key=lambda s: abs(4 * s - 3 * size), default=max(1, -(-size // 2)))
