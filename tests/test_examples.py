"""Crops, flips, coarse labels, noise and the order of batches: right pixel by pixel, and functions of their keys."""

import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

h5py = pytest.importorskip("h5py")
pytest.importorskip("lightning")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402
from worlds import read_array, rewrite, write_world  # noqa: E402

from multimae_eo.config import sized  # noqa: E402
from multimae_eo.data.mmearth import MMEarth  # noqa: E402
from multimae_eo.errors import BatchError, ConfigError, SizeError  # noqa: E402
from multimae_eo.modalities import MODALITIES  # noqa: E402
from multimae_eo.options import DataOptions, MaskOptions, PretrainOptions  # noqa: E402
from multimae_eo.raster import Majority, Raster  # noqa: E402
from multimae_eo.raster import rows as some  # noqa: E402
from multimae_eo.tasks.examples import TRAIN, VALIDATE, Examples, ExampleSource, Prepare, Steps, as_read  # noqa: E402

CONFIG = sized("demo")
NO_PRODUCT = torch.zeros(2, dtype=torch.int64)


def ramp(tile_px: int) -> np.ndarray:
    return np.arange(tile_px**2).reshape(tile_px, tile_px)


@pytest.fixture(scope="module", params=[64, 128])
def folder(request, tmp_path_factory):
    """Red is the number of the pixel + 1, elevation the number of the pixel; labels are random, some unknown."""
    px = request.param
    folder = write_world(tmp_path_factory.mktemp("ramps"), tiles=4, tile_px=px)
    sentinel2, aster = read_array(folder, "sentinel2"), read_array(folder, "aster")
    sentinel2[:, 3], aster[:, 0] = ramp(px) + 1, ramp(px)
    rewrite(folder, "sentinel2", sentinel2)
    rewrite(folder, "aster", aster)
    codes = np.random.default_rng(0).choice(np.array([0, 255, 33, 10, 90, 100], np.uint8), (4, 1, px, px))
    codes[:, :, 24:40, 24:40] = np.random.default_rng(1).choice(np.array([0, 255], np.uint8), (4, 1, 16, 16))
    rewrite(folder, "esa_worldcover", codes)
    return folder


def examples(folder, purpose=TRAIN, *, seed=0, flips="both", config=CONFIG, **mask) -> ExampleSource:
    options = PretrainOptions(seed=seed, data=DataOptions(flips=flips), mask=MaskOptions(**mask))
    return ExampleSource(MMEarth(folder, list(config.modalities.values())), config, options, purpose)


def one(source: ExampleSource, *key: int):
    """The rasters of one example, cut and on their own grids."""
    examples = source.__getitems__([key])
    return some(source.prepare(examples.batch, examples.window), 0)


def cut_of(example, tile_px: int) -> tuple[int, int, bool, bool]:
    """Top, left and the flips of an example, read off the ramp in its elevation."""
    numbers = example["elevation"].values[0].numpy().astype(int)
    ys, xs = numbers // tile_px, numbers % tile_px
    mirrored, turned = bool(xs[0, 0] > xs[0, -1]), bool(ys[0, 0] > ys[-1, 0])
    top, left = int(ys.min()), int(xs.min())
    size = len(numbers)
    window = ramp(tile_px)[top : top + size, left : left + size]
    window = window[:, ::-1] if mirrored else window
    assert np.array_equal(window[::-1] if turned else window, numbers)
    return top, left, mirrored, turned


def commonest(codes: np.ndarray) -> tuple[int, bool]:
    counts = Counter(c for c in codes.flatten().tolist() if c in MODALITIES["land_cover"].codes)
    if not counts:
        return 0, False
    most = max(counts.values())
    return min(code for code, n in counts.items() if n == most), True


def test_invalid_pixels_have_no_vote():
    values = torch.tensor([[[10, 10, 10, 90], [10, 10, 90, 30], [20, 30, 50, 60], [80, 80, 80, 80]]])
    valid = torch.tensor([[[0, 0, 0, 1], [0, 0, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]]], dtype=torch.bool)
    coarse = Majority(MODALITIES["land_cover"].codes, 2)(Raster(values, valid, torch.tensor(0)))
    assert coarse.valid.tolist() == [[[False, True], [True, False]]]
    assert coarse.values[coarse.valid].tolist() == [90, 20]


@given(st.integers(0, 10**6), st.sampled_from([2, 4, 8]), st.sampled_from([torch.uint8, torch.int16, torch.int64]))
@settings(max_examples=30, deadline=None)
def test_the_commonest_class_of_many(seed, stride, dtype):
    """40 classes need several counters; codes up to 255, unknown ones too, and ties."""
    g = np.random.default_rng(seed)
    codes = g.choice(256, 40, replace=False).tolist()
    values = g.choice(codes[:4] + codes[-4:] + [int(g.integers(256))], (2, 1, 16, 16))
    valid = g.random((2, 1, 16, 16)) < 0.5
    found = Majority(codes, stride)(Raster(torch.from_numpy(values).to(dtype), torch.from_numpy(valid), NO_PRODUCT))
    assert found.values.dtype == dtype
    for place in np.ndindex(2, 1, 16 // stride, 16 // stride):
        window = (*place[:2], *(slice(stride * i, stride * i + stride) for i in place[2:]))
        counts = [np.sum((values[window] == code) & valid[window]) for code in codes]
        assert bool(found.valid[place]) == (max(counts) > 0)
        if max(counts):
            assert int(found.values[place]) == codes[int(np.argmax(counts))]


def test_codes_that_no_class_has():
    codes = MODALITIES["land_cover"].codes
    for values in (torch.full((1, 4, 4), 10.5), torch.full((1, 4, 4), -10, dtype=torch.int8)):
        assert not Majority(codes, 4)(Raster(values, torch.ones(1, 4, 4, dtype=torch.bool), NO_PRODUCT)).valid.any()
    small = Raster(torch.full((1, 4, 4), 90, dtype=torch.int8), torch.ones(1, 4, 4, dtype=torch.bool), NO_PRODUCT)
    assert Majority(codes, 4)(small).values.item() == 90


@pytest.mark.parametrize("purpose", [TRAIN, VALIDATE])
def test_all_modalities_are_cropped_and_flipped_together_and_labels_reduced_by_majority(folder, purpose):
    source = examples(folder, purpose)
    px = source.tiles.tile_px
    files = {name: read_array(folder, name) for name in ("sentinel2", "esa_worldcover")}
    invalid = 0
    for row in range(4):
        example = one(source, 5, row)
        top, left, mirrored, turned = cut_of(example, px)
        assert torch.equal(example["rgb"].values[0] - 1, example["elevation"].values[0])
        window = (slice(None), slice(top, top + 56), slice(left, left + 56))
        steps = (slice(None), slice(None, None, -1 if turned else 1), slice(None, None, -1 if mirrored else 1))
        nir = files["sentinel2"][row][[7, 8]][window][steps]
        np.testing.assert_array_equal(example["nir"].values, nir)
        np.testing.assert_array_equal(example["nir"].valid, nir != 0)
        labels = files["esa_worldcover"][row][window][steps][0]
        land_cover = example["land_cover"]
        assert land_cover.values.shape == land_cover.valid.shape == (1, 14, 14)
        for y in range(14):
            for x in range(14):
                code, known = commonest(labels[4 * y : 4 * y + 4, 4 * x : 4 * x + 4])
                assert bool(land_cover.valid[0, y, x]) == known, (y, x)
                assert not known or int(land_cover.values[0, y, x]) == code, (y, x)
                invalid += not known
    assert invalid >= 4 or purpose == TRAIN


def test_validation_takes_the_centre_and_training_every_place(folder):
    source = examples(folder, VALIDATE)
    spare = source.tiles.tile_px - 56
    cuts = {cut_of(one(source, epoch, row), source.tiles.tile_px) for epoch in (0, 3) for row in range(4)}
    assert cuts == {(spare // 2, spare // 2, False, False)}
    source = examples(folder)
    drawn = [cut_of(one(source, epoch, 0), source.tiles.tile_px) for epoch in range(80)]
    tops, lefts, mirrored, turned = (np.array(column) for column in zip(*drawn, strict=True))
    for offsets in (tops, lefts):
        assert offsets.min() <= spare // 8
        assert offsets.max() >= spare - spare // 8
        assert len(set(offsets.tolist())) > spare // 2
    assert 0.35 < mirrored.mean() < 0.65
    assert 0.35 < turned.mean() < 0.65
    assert (tops != lefts).any()
    assert (mirrored != turned).any()


@pytest.mark.parametrize(("flips", "seen"), [("none", (False, False)), ("horizontal", (True, False))])
def test_flips_are_an_option(folder, flips, seen):
    source = examples(folder, flips=flips)
    cuts = [cut_of(one(source, epoch, 0), source.tiles.tile_px) for epoch in range(16)]
    assert (any(c[2] for c in cuts), any(c[3] for c in cuts)) == seen


def test_a_whole_tile_is_a_crop_and_a_larger_one_is_an_error(folder):
    px = MMEarth(folder, [MODALITIES["rgb"]]).tile_px
    whole = examples(folder, flips="none", config=replace(CONFIG, image_size=px))
    assert cut_of(one(whole, 0, 1), px) == (0, 0, False, False)
    with pytest.raises(SizeError, match=f"tiles of {px} px .*model.image_size {px + 8}"):
        examples(folder, config=replace(CONFIG, image_size=px + 8))


def bits(examples: Examples) -> list[bytes]:
    rasters = [part for name in sorted(examples.batch) for part in examples.batch[name]]
    return [t.numpy().tobytes() for t in (*rasters, examples.window, *examples.noise, examples.rows)]


@pytest.mark.parametrize(("workers", "start"), [(2, "fork"), (1, "spawn")])
def test_the_same_key_gives_the_same_bits_in_any_process_and_batch(folder, workers, start):
    source = examples(folder, random_subset=True)
    if start == "spawn" and source.tiles.tile_px > 64:
        pytest.skip("starting a process takes seconds; done with tiles of 64 px")
    keys = [(epoch, row) for epoch in (0, 2) for row in range(4)]
    here = [bits(source.__getitems__([key])) for key in keys]
    assert [bits(source.__getitems__([key])) for key in reversed(keys)] == here[::-1]
    batches = [[key] for key in keys] + [keys]
    loader = DataLoader(
        source, batch_sampler=batches, collate_fn=as_read, num_workers=workers, multiprocessing_context=start
    )
    *alone, together = [bits(example) for example in loader]
    assert alone == here
    assert [b"".join(parts) for parts in zip(*here, strict=True)] == together


def test_another_epoch_row_seed_or_purpose_gives_other_noise(folder):
    source, other = examples(folder), examples(folder, seed=1)
    drawn = [(source, 0, 1), (source, 1, 1), (source, 0, 2), (other, 0, 1), (examples(folder, VALIDATE), 0, 1)]
    noise = [source.__getitems__([tuple(key)]).noise for source, *key in drawn]
    assert len({n.order.numpy().tobytes() for n in noise}) == 5
    assert len({n.log_share.numpy().tobytes() for n in noise}) == 5


def test_a_loader_hands_over_integers_and_a_batch_has_the_shapes_of_the_model(folder):
    loader = DataLoader(examples(folder), batch_sampler=[[(0, 1), (0, 2)]], collate_fn=as_read)
    (read,) = loader
    px = read.batch["rgb"].values.shape[-1]
    kinds = {name: (tuple(r.values.shape), r.values.dtype) for name, r in read.batch.items()}
    assert kinds["rgb"] == ((2, 3, px, px), torch.uint16)
    assert kinds["elevation"] == ((2, 1, px, px), torch.int16)
    assert kinds["land_cover"] == ((2, 1, px, px), torch.uint8)
    assert read.noise.order.shape == (2, 6, 49)
    assert read.rows.tolist() == [1, 2]
    batch = Prepare(CONFIG)(read.batch, read.window)
    assert list(batch) == list(CONFIG.modalities)
    assert batch["rgb"].values.shape == (2, 3, 56, 56)
    assert batch["rgb"].product.tolist() == [1, 0]  # tiles take turns: L1C, L2A
    assert batch["land_cover"].values.shape == (2, 1, 14, 14)


@pytest.mark.parametrize(("known", "tokens"), [(16, 84), (8, 42), (7, 7), (4, 0)])
def test_a_tile_is_refused_exactly_where_it_has_too_few_valid_tokens(tmp_path, known, tokens):
    """All but `known` rows of pixels are measured in no modality; labels there are of a class that does not exist."""
    folder = write_world(tmp_path, tiles=2)
    for array, missing in (("sentinel2", 0), ("aster", -32768), ("esa_worldcover", 33)):
        values = read_array(folder, array)
        values[1, :, known:] = missing
        values[1, :, :4, :4] = values[1, :, :4, 4:8]  # the corner that is never measured
        rewrite(folder, array, values)
    source = examples(folder, VALIDATE, num_visible=42)  # the centre is cut from the fifth row on
    # Half of a patch is enough, and of the coarse labels one pixel of a block.
    if tokens >= 42:
        source.__getitems__([(0, 0), (0, 1)])
    else:
        with pytest.raises(BatchError, match=rf"\(row 1\): {tokens} valid tokens, but 42 are to be visible"):
            source.__getitems__([(0, 0), (0, 1)])


steps_of = st.tuples(st.integers(1, 40), st.integers(1, 4), st.integers(1, 4), st.integers(0, 25), st.integers(0, 9))


@given(steps_of)
@settings(max_examples=100, deadline=None)
def test_steps_are_a_function_of_seed_and_step_for_any_rank_and_start(drawn):
    share, ranks, spare, start, seed = drawn
    size = share * ranks
    rows = np.arange(100, 100 + size * 3 + spare % size)  # three whole batches, and less than one
    fields = {"batch_size": size, "steps": 25, "seed": seed}
    whole = list(Steps(rows, **fields))
    assert len(whole) == len(Steps(rows, **fields, start=start)) == 25
    assert list(Steps(rows, **fields)) == whole
    assert list(Steps(rows, **fields, start=start)) == whole[start:]
    assert list(Steps(rows, **{**fields, "steps": 7})) == whole[:7]
    parts = [list(Steps(rows, **fields, rank=rank, ranks=ranks)) for rank in range(ranks)]
    for step, batch in enumerate(whole):
        assert all(len(part[step]) == share for part in parts)
        assert sorted(key for part in parts for key in part[step]) == sorted(batch)
        assert {epoch for epoch, _ in batch} == {step // 3}
    for epoch in range(8):
        seen = [row for batch in whole[3 * epoch : 3 * epoch + 3] for _, row in batch]
        assert len(seen) == len(set(seen)) == 3 * size
        assert set(seen) <= set(rows.tolist())


def test_every_epoch_and_seed_has_an_order_of_its_own():
    def order(epoch, seed):
        steps = list(Steps(np.arange(64), batch_size=16, steps=4 * epoch + 4, seed=seed, start=4 * epoch))
        return tuple(row for batch in steps for _, row in batch)

    orders = {order(epoch, seed) for epoch in range(3) for seed in range(3)} | {tuple(range(64))}
    assert len(orders) == 10
    first = [next(iter(Steps(np.arange(10), batch_size=8, steps=1, seed=seed))) for seed in range(8)]
    dropped = [set(range(10)) - {row for _, row in batch} for batch in first]
    assert len(set().union(*dropped)) > 4  # what an epoch drops is random too


def test_batches_that_do_not_fit_the_rows_or_the_devices():
    with pytest.raises(ConfigError, match=r"optim\.batch_size 9 .* 8 training tiles; lower it"):
        Steps(np.arange(8), batch_size=9, steps=1, seed=0)
    with pytest.raises(ConfigError, match=r"optim\.batch_size 5 is not a multiple of the 2 devices"):
        Steps(np.arange(8), batch_size=5, steps=1, seed=0, ranks=2)


@pytest.mark.parametrize("quiet", [True, False])
def test_a_parent_that_stops_mid_transfer_leaves_no_traceback(quiet):
    script = f"""
import socket, sys, time
from multiprocessing.resource_sharer import DupFd
from multimae_eo.tasks.loading import in_worker
if {quiet}:
    in_worker(0)
address, _ = DupFd(1)._id
parent = socket.socket(socket.AF_UNIX)
parent.connect(address)
parent.close()
time.sleep(0.3)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ("Traceback" in done.stderr) != quiet
