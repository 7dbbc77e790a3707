"""Tiles: they cover every cell, their weights add up to one, and blending is exact for what sees no further than it."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from multimae_eo.errors import ConfigError
from multimae_eo.maps.tiling import TileRow, Tiling, blend, touching


@st.composite
def tilings(draw):
    unit = draw(st.sampled_from([1, 4]))
    margin = draw(st.integers(0, 3)) * unit
    overlap = 2 * margin + draw(st.integers(0, 6)) * unit
    stride = max(overlap, unit) + draw(st.integers(0, 8)) * unit
    return Tiling(stride + overlap, stride, margin, unit)


@given(tilings(), st.integers(1, 200))
def test_tiles_cover_an_axis_and_their_weights_add_up_to_one(tiling, length):
    origins = tiling.origins(length)
    assert all(origin % tiling.unit == 0 for origin in origins)
    total = np.zeros(length + 2 * tiling.size)
    for origin in origins:
        total[origin + tiling.size : origin + 2 * tiling.size] += tiling.weights()
    inside = total[tiling.size : tiling.size + length]
    assert (inside > 0).all()
    fade = tiling.size - tiling.stride
    middle = inside[fade : length - fade] if len(origins) > 1 else inside[:0]
    assert np.allclose(middle, 1, atol=1e-6)
    beyond = [-origins[0] - tiling.margin, origins[-1] + tiling.size - tiling.margin - length]
    assert min(beyond) >= 0
    assert max(beyond) <= tiling.size
    assert abs(beyond[0] - beyond[1]) <= 2 * tiling.unit or beyond[0] < beyond[1]


def compute(tiling, field, work):
    """Rows of tiles over a field [h, w], with nothing beyond it."""
    size = tiling.size
    weights = np.outer(tiling.weights(), tiling.weights())
    padded = np.pad(field, 2 * size)

    def row(top, lefts):
        sums = np.zeros((2, size, lefts[-1] - lefts[0] + size), np.float32)
        for left in lefts:
            tile = padded[top + 2 * size : top + 3 * size, left + 2 * size : left + 3 * size]
            place = slice(left - lefts[0], left - lefts[0] + size)
            sums[0, :, place] += work(tile) * weights
            sums[1, :, place] += weights
        return TileRow(sums, np.ones(sums.shape[1:], bool), lefts[0])

    return row


def assembled(tiling, rows, columns, shape, row):
    out = np.full((len(rows), len(columns)), np.nan, np.float32)
    for top, values, valid in blend(tiling, rows, columns, shape, row):
        out[top - rows.start : top - rows.start + values.shape[1]] = np.where(valid, values[0], np.nan)
    return out


@given(tilings(), st.integers(1, 60), st.integers(1, 60), st.data())
def test_any_window_is_the_same_part_of_the_whole(tiling, height, width, data):
    field = np.random.default_rng(0).normal(size=(height, width)).astype(np.float32)
    row = compute(tiling, field, lambda tile: tile * 2 + tile.mean())
    whole = assembled(tiling, range(height), range(width), (height, width), row)
    assert np.isfinite(whole).all()
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    window = range(top, data.draw(st.integers(top + 1, height))), range(left, data.draw(st.integers(left + 1, width)))
    part = assembled(tiling, *window, (height, width), row)
    assert np.allclose(part, whole[window[0].start : window[0].stop, window[1].start : window[1].stop], atol=1e-5)


@pytest.mark.parametrize(
    ("size", "overlap", "margin", "exact"), [(56, 16, 4, True), (64, 24, 5, True), (56, 16, 0, False)]
)
def test_blending_is_exact_for_a_convolution_whose_reach_is_the_margin(size, overlap, margin, exact):
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.Tanh(), torch.nn.Conv2d(4, 1, 7, padding=3)]
    network = torch.nn.Sequential(*layers)
    for layer in (layers[0], layers[2]):
        torch.nn.init.normal_(layer.weight, std=0.5)
        torch.nn.init.zeros_(layer.bias)

    @torch.no_grad()
    def work(tile):
        return network(torch.from_numpy(np.ascontiguousarray(tile))[None, None])[0, 0].numpy()

    field = np.random.default_rng(1).normal(size=(150, 211)).astype(np.float32)
    tiling = Tiling(size, size - overlap, margin)
    blended = assembled(tiling, range(150), range(211), (150, 211), compute(tiling, field, work))
    assert (np.abs(blended - work(np.pad(field, 8))[8:-8, 8:-8]).max() < 1e-4) == exact


def test_only_what_touches_is_computed():
    assert touching(Tiling(8, 6), [-1, 5, 11], range(5, 11)) == [-1, 5]


@pytest.mark.parametrize(
    ("size", "stride", "margin", "says"),
    [(8, 3, 0, "half of the size"), (8, 0, 0, "half"), (8, 6, 2, "margin 2 is more"), (10, 8, 1, "multiples of 4")],
)
def test_impossible_tiles(size, stride, margin, says):
    with pytest.raises(ConfigError, match=says):
        Tiling(size, stride, margin, 4 if "multiples" in says else 1)
