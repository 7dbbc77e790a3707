"""Codecs and rasters: units and back, validity, flips, majority."""

import pytest
import torch
from batches import demo_config, random_batch, random_raster
from hypothesis import given, settings
from hypothesis import strategies as st

from multimae_eo.codecs import OneHot, Standardize, codec_for
from multimae_eo.errors import SizeError
from multimae_eo.modalities import MODALITIES, Categorical, Continuous
from multimae_eo.raster import Majority, Raster, cut, flip, token_valid

CONTINUOUS = [m for m in MODALITIES.values() if isinstance(m, Continuous)]
KINDS = ("band", "patch", "sample")
VIEWS = [(m, how) for m in MODALITIES.values() for how in (KINDS if isinstance(m, Continuous) else KINDS[:1])]
IDS = [f"{m.name}-{how}" for m, how in VIEWS]


@pytest.mark.parametrize(("modality", "how"), VIEWS, ids=IDS)
def test_decode_inverts_encode_where_valid(modality, how):
    raster = random_raster(modality, invalid=0.2)
    codec = codec_for(modality, how, 8 // modality.stride)
    encoded = codec.encode(raster)
    decoded = codec.decode(encoded.values, raster)
    valid = codec.valid(raster)[:, : raster.values.shape[1]]
    torch.testing.assert_close(decoded[valid].float(), raster.values[valid].float(), rtol=1e-4, atol=2e-2)
    assert not encoded.values[~encoded.valid.expand_as(encoded.values)].any()


@pytest.mark.parametrize(("modality", "how"), VIEWS, ids=IDS)
@pytest.mark.parametrize("horizontal", [True, False])
def test_flips_commute_with_encode_and_decode(modality, how, horizontal):
    batch = {modality.name: random_raster(modality, invalid=0.1)}
    turn = {"horizontal": horizontal, "vertical": not horizontal}
    axis = -1 if horizontal else -2
    codec = codec_for(modality, how, 8 // modality.stride)
    flipped = flip(batch, **turn)[modality.name]
    encoded = codec.encode(batch[modality.name])
    torch.testing.assert_close(codec.encode(flipped).values, encoded.values.flip(axis), rtol=1e-5, atol=1e-5)
    there = codec.decode(encoded.values.flip(axis), flipped)
    torch.testing.assert_close(
        there, codec.decode(encoded.values, batch[modality.name]).flip(axis), rtol=1e-5, atol=1e-2
    )


@pytest.mark.parametrize(("modality", "how"), VIEWS, ids=IDS)
@pytest.mark.parametrize("junk", [float("nan"), float("inf"), 1e30, 0.0])
def test_values_under_invalid_pixels_change_no_bit(modality, how, junk):
    raster = random_raster(modality, invalid=0.3)
    values = raster.values.float()
    spoiled = raster._replace(values=torch.where(raster.valid, values, junk))
    codec = codec_for(modality, how, 8 // modality.stride)
    for ours, theirs in zip(codec.encode(raster._replace(values=values)), codec.encode(spoiled), strict=True):
        assert torch.equal(ours, theirs)


def test_statistics_of_the_sample_s_own_product():
    modality = next(m for m in CONTINUOUS if m.products == ("L1C", "L2A"))
    values = torch.full((2, len(modality.bands), 8, 8), 2000.0)
    raster = Raster(values, torch.ones_like(values, dtype=torch.bool), torch.tensor([0, 1]))
    encoded = Standardize(modality, "band", 8).encode(raster).values
    for row, product in enumerate(modality.products):
        s = modality.statistics[product]
        expected = (2000 - torch.tensor(s.mean)) / torch.tensor(s.std)
        torch.testing.assert_close(encoded[row, :, 0, 0], expected)


@pytest.mark.parametrize("how", ["patch", "sample"])
def test_a_flat_elevation_tile_stays_finite_and_small(how):
    modality = next(m for m in CONTINUOUS if m.unit == "m")
    flat = torch.full((1, 1, 56, 56), 812.0)
    flat[0, 0, 3, 4] += 1.0
    raster = Raster(flat, torch.ones_like(flat, dtype=torch.bool), torch.zeros(1, dtype=torch.int64))
    encoded = Standardize(modality, how, 8).encode(raster).values
    assert encoded.isfinite().all()
    assert encoded.abs().max() < 10


def test_trimmed_moments_with_few_valid_pixels():
    modality = next(m for m in CONTINUOUS if m.unit == "m")
    for number in range(5):
        values, valid = torch.rand(1, 1, 8, 8) * 1000, torch.zeros(1, 1, 8, 8, dtype=torch.bool)
        valid.view(-1)[:number] = True
        raster = Raster(values, valid, torch.zeros(1, dtype=torch.int64))
        encoded = Standardize(modality, "sample", 8).encode(raster).values
        assert encoded.isfinite().all()
        assert (encoded != 0).sum() <= number


def test_one_hot_of_unknown_codes_is_invalid():
    modality = next(m for m in MODALITIES.values() if isinstance(m, Categorical))
    values = torch.tensor([[[[10, 11], [255, 100]]]])
    encoded = OneHot(modality).encode(
        Raster(values, torch.ones(1, 1, 2, 2, dtype=torch.bool), torch.zeros(1, dtype=torch.int64))
    )
    assert encoded.valid.tolist() == [[[[True, False], [False, True]]]]
    assert encoded.values.sum() == 2


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), share=st.floats(0, 1))
def test_majority_against_counting(seed, share):
    g = torch.Generator().manual_seed(seed)
    codes = (10, 20, 30)
    values = torch.tensor([10, 20, 30, 77])[torch.randint(4, (1, 8, 8), generator=g)]
    valid = torch.rand(1, 8, 8, generator=g) < share
    reduced = Majority(codes, 4)(Raster(values, valid, torch.tensor(0)))
    for i in range(2):
        for j in range(2):
            window = (0, slice(4 * i, 4 * i + 4), slice(4 * j, 4 * j + 4))
            seen = values[window][valid[window]].tolist()
            counts = [seen.count(c) for c in codes]
            assert bool(reduced.valid[0, i, j]) == (max(counts) > 0)
            if max(counts) > 0:
                assert int(reduced.values[0, i, j]) == codes[counts.index(max(counts))]


def test_token_valid_needs_half_of_the_values():
    valid = torch.ones(1, 2, 8, 8, dtype=torch.bool)
    valid[:, 1] = False  # one band of two is absent: still half
    assert token_valid(valid, 8).all()
    valid[0, 0, 0, 0] = False
    assert not token_valid(valid, 8).any()


def test_cuts_move_all_modalities_together_sample_by_sample_and_are_checked():
    config = demo_config(inputs=("rgb", "nir"), targets=("rgb",))
    batch = random_batch(config, size=4, pixels=64)
    windows = [(3, 5, 0, 0), (8, 0, 1, 0), (0, 8, 0, 1), (4, 4, 1, 1)]
    found = cut(batch, torch.tensor(windows), 56)
    for name, raster in batch.items():
        for row, (top, left, mirror, turn) in enumerate(windows):
            axes = [axis for axis, wanted in ((-1, mirror), (-2, turn)) if wanted]
            for mine, whole in zip(found[name][:2], raster[:2], strict=True):
                expected = whole[row, :, top : top + 56, left : left + 56].flip(axes)
                assert torch.equal(mine[row], expected), (name, row)
        assert found[name].product is raster.product
    with pytest.raises(SizeError, match="larger than the rasters of 64 x 64 px"):
        cut(batch, torch.tensor(windows), 72)
    with pytest.raises(SizeError, match="one grid"):
        cut(random_batch(demo_config(), size=4), torch.tensor(windows), 8)
