"""Overlapping tiles over a scene of any size, blended without a seam, one row of tiles at a time."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from multimae_eo.errors import ConfigError


@dataclass(frozen=True)
class Tiling:
    """Tiles of an edge, in steps; all in cells of the result (pixels, or tokens).

    margin: cells at the edges of a tile that are not used; unit: what the places of tiles are multiples of, and so lie
    on the grids of all modalities. Between its margin and the step, a tile fades in as a squared sine, so that the
    weights of neighbours add up to one, and no tile has an edge that could be seen.
    """

    size: int
    stride: int
    margin: int = 0
    unit: int = 1

    def __post_init__(self) -> None:
        overlap = self.size - self.stride
        if self.size < 1 or not 0 < self.stride <= self.size or self.margin < 0 or 2 * overlap > self.size:
            raise ConfigError(
                f"tiles: size {self.size} and overlap {overlap}: the overlap must be 0 to half of the size."
            )
        if 2 * self.margin > overlap:
            raise ConfigError(f"tiles: margin {self.margin} is more than half of the overlap, {overlap}.")
        for name in ("size", "stride", "margin"):
            if getattr(self, name) % self.unit:
                what = f"tiles: size {self.size}, overlap {overlap} and margin {self.margin}"
                raise ConfigError(f"{what} must be multiples of {self.unit}, the coarsest grid of the model.")

    def origins(self, length: int) -> list[int]:
        """Where tiles begin along an axis of `length` cells; what they reach beyond it is about equal at both ends."""
        used = self.size - 2 * self.margin
        number = max(1, -(-(length - used) // self.stride) + 1)
        beyond = (number - 1) * self.stride + used - length
        first = -(self.margin + beyond // 2 // self.unit * self.unit)
        return [first + i * self.stride for i in range(number)]

    def weights(self) -> np.ndarray:
        """The weight of the cells of a tile along one axis, float32 [size]."""
        fade = self.size - self.stride - 2 * self.margin
        ramp = np.sin(np.pi / 2 * (np.arange(fade) + 0.5) / max(1, fade)) ** 2
        full = np.ones(self.size - 2 * self.margin - 2 * fade)
        rest = np.zeros(self.margin)
        return np.concatenate([rest, ramp, full, ramp[::-1], rest]).astype(np.float32)


@dataclass(frozen=True)
class TileRow:
    """What the tiles of one row add up to.

    sums: float32 [k + 1, size, width], of weighted results and, last, of the weights; known: bool [size, width], the
    cells that may get a result; left: column of the first cell.
    """

    sums: np.ndarray
    known: np.ndarray
    left: int


def blend(
    tiling: Tiling,
    rows: range,
    columns: range,
    shape: tuple[int, int],
    compute: Callable[[int, Sequence[int]], TileRow],
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Blended results of a window of a scene, strip by strip: (first row, [k, rows, columns], valid [rows, columns]).

    shape: of the whole scene, over which the tiles lie; compute(top, lefts): the tiles that begin in row `top` at these
    columns. Only the rows that a next row of tiles adds to are kept in memory. A strip does not depend on the window it
    was asked for in, but for the order in which tiles are computed.
    """
    lefts = touching(tiling, tiling.origins(shape[1]), columns)
    tops = touching(tiling, tiling.origins(shape[0]), rows)
    carried: np.ndarray | None = None
    overlap = tiling.size - tiling.stride
    for number, top in enumerate(tops):
        row = compute(top, lefts)
        sums = row.sums
        if carried is not None:
            sums[:, :overlap] += carried
        carried = sums[:, tiling.stride :].copy()
        last = number == len(tops) - 1
        begin, end = max(top, rows.start), min(top + (tiling.size if last else tiling.stride), rows.stop)
        if begin < end:
            down, across = slice(begin - top, end - top), slice(columns.start - row.left, columns.stop - row.left)
            weight = sums[-1, down, across]
            valid = row.known[down, across] & (weight > 0)
            yield begin, sums[:-1, down, across] / np.where(weight > 0, weight, 1), valid


def touching(tiling: Tiling, origins: Sequence[int], cells: range) -> list[int]:
    """The tiles that add to any of some cells along an axis."""
    return [o for o in origins if o < cells.stop and o + tiling.size > cells.start]
