"""What fine-tuning is fed: dropped modalities, flips, order, sizes, products, statistics; and small data to learn."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from batches import demo_config

from multimae_eo.config import ModelConfig
from multimae_eo.data.torch_dataset import TorchSource
from multimae_eo.errors import ConfigError, StatisticsError
from multimae_eo.finetune_options import FinetuneOptim, FinetuneOptions, LabelledOptions
from multimae_eo.raster import Raster
from multimae_eo.tasks.samples import (
    LabelledData,
    LabelledExample,
    LabelledExamples,
    Setup,
    collate,
    drop,
    in_order,
    open_source,
    set_up,
)

# Channels of three modalities, of which class i makes the i-th brighter.
BANDS = ("B04", "B03", "B02", "B11", "B12", "B8A", "B08")
CHANNELS = (slice(0, 3), slice(3, 5), slice(5, 7))
CLASSES = ("first", "second", "third")
SPLITS = ("train", "valid", "test")


class Items:
    """A data set of arrays, one item per row."""

    def __init__(self, **columns: np.ndarray):
        self.columns = columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: column[index] for name, column in self.columns.items()}


def toy_items(task: str, number: int, seed: int, pixels: int) -> Items:
    """Images whose bands show their label, of the image or of each patch of 8 pixels."""
    random = np.random.default_rng(seed)
    cells = pixels // 8
    bright = np.zeros((number, 3, cells, cells))
    if task in ("segmentation", "regression"):
        which = random.integers(0, 3, (number, cells, cells))
        bright = np.eye(3)[which].transpose(0, 3, 1, 2)
    elif task == "classification":
        which = np.arange(number) % 3
        bright += np.eye(3)[which][..., None, None]
    else:
        which = random.integers(0, 2, (number, 3))
        bright += which[..., None, None]
    bright = bright.repeat(8, axis=2).repeat(8, axis=3)
    images = 2000 + 400 * random.standard_normal((number, len(BANDS), pixels, pixels))
    for i, channels in enumerate(CHANNELS):
        images[:, channels] += 900 * bright[:, i, None]
    images = images.astype(np.float32)
    if task == "segmentation":
        return Items(image=images, mask=bright.argmax(axis=1))
    if task == "regression":
        return Items(image=images, mask=(10 + 5 * bright[:, 0]).astype(np.float32))
    return Items(image=images, label=which)


def toy(
    task: str = "classification",
    sizes: tuple[int, int, int] = (48, 24, 24),
    *,
    pixels: int = 16,
    seed: int = 0,
    **fields: Any,
) -> TorchSource:
    """Small labelled data that a tiny model learns in seconds."""
    items = {s: toy_items(task, n, 10 * seed + i, pixels) for i, (s, n) in enumerate(zip(SPLITS, sizes, strict=True))}
    classes = () if task == "regression" else CLASSES
    given = {"name": "toy", "task": task, "bands": BANDS, "classes": classes, "products": ("L2A",), **fields}
    return TorchSource(items, **given)


def toy_setup(
    task: str = "classification", config: ModelConfig | None = None, data: dict | None = None, **fields
) -> Setup:
    return set_up(toy(task, **fields), config or demo_config(), LabelledOptions(**(data or {})))


def equal(one: LabelledExample, two: LabelledExample) -> bool:
    tensors = [[*(part for raster in e.batch.values() for part in raster), e.label, e.known] for e in (one, two)]
    return one.batch.keys() == two.batch.keys() and all(map(torch.equal, *tensors))


# Dropping


def full(channels: int = 2, names: str = "abc") -> dict[str, Raster]:
    valid = torch.ones(channels, 4, 4, dtype=torch.bool)
    return {name: Raster(torch.ones(channels, 4, 4), valid, torch.tensor(0)) for name in names}


def stays(batch: dict[str, Raster]) -> np.ndarray:
    """Which bands of which modality have a valid pixel."""
    return np.array([raster.valid.any(dim=2).any(dim=1).numpy() for raster in batch.values()])


def test_nothing_is_dropped_unless_it_is_asked_for():
    before = full()
    after = drop(before, np.random.default_rng(0), modality=0.0, channel=0.0)
    assert all(torch.equal(after[name].valid, before[name].valid) for name in before)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9, 1.0])
def test_modalities_are_dropped_whole_and_one_stays(rate):
    random = np.random.default_rng(0)
    kept = np.stack([stays(drop(full(), random, modality=rate, channel=0.0)) for _ in range(2500)])
    assert (kept[..., 0] == kept[..., 1]).all()
    kept = kept[..., 0]
    assert kept.any(axis=1).all()
    share = 1 - rate + rate**3 / 3  # where all three would go, each stays with equal probability
    assert kept.mean(axis=0) == pytest.approx([share] * 3, abs=0.025)


def test_bands_are_dropped_one_by_one():
    random = np.random.default_rng(0)
    before = full()
    before["a"].valid[0, 2] = False
    kept = [drop(before, random, modality=0.0, channel=0.3) for _ in range(3000)]
    shares = np.stack([stays(batch) for batch in kept]).mean(axis=0)
    expected = 0.7 + 0.3**2 / 2 / 3  # one of both bands of the one modality in three that stays
    assert shares == pytest.approx(np.full((3, 2), expected), abs=0.03)
    assert not any(batch["a"].valid[0, 2].any() for batch in kept)
    assert before["a"].valid.sum() == 28


def test_something_always_stays():
    random, before = np.random.default_rng(0), full()
    before["b"] = before["b"]._replace(valid=torch.zeros_like(before["b"].valid))
    for _ in range(300):
        assert stays(drop(before, random, modality=0.9, channel=0.9)).any()


def test_a_modality_without_a_valid_token_is_not_the_one_that_stays():
    random, before = np.random.default_rng(0), full()
    name, *others = before
    for other in others:
        before[other] = before[other]._replace(valid=torch.zeros_like(before[other].valid))
        before[other].valid[..., 0, 0] = True  # a pixel is no token
    for _ in range(100):
        assert drop(before, random, modality=0.5, channel=0.0, patch=4)[name].valid.any()


# Flips and determinism


@pytest.mark.parametrize("flips", ["none", "horizontal", "both"])
def test_flips_move_image_and_label_together(flips):
    setup = toy_setup("segmentation", sizes=(24, 3, 3))
    examples = LabelledExamples(setup, "train", options=LabelledOptions(flips=flips))
    plain = LabelledExamples(setup, "train")
    seen = set()
    for row in range(24):
        one, other = examples[0, row], plain[0, row]
        for axes in ((), (-1,), (-2,), (-1, -2)):
            moved = {
                name: r._replace(values=r.values.flip(axes), valid=r.valid.flip(axes))
                for name, r in other.batch.items()
            }
            if equal(one, LabelledExample(moved, other.label.flip(axes), other.known.flip(axes), row)):
                seen.add(axes)
                break
        else:
            pytest.fail(f"row {row} is no mirror image of itself")
    wanted = {"none": {()}, "horizontal": {(), (-1,)}, "both": {(), (-1,), (-2,), (-1, -2)}}
    assert seen == wanted[flips]


def test_labels_of_images_are_left_alone_by_flips():
    setup = toy_setup("multilabel", sizes=(16, 3, 3))
    examples = LabelledExamples(setup, "train", options=LabelledOptions(flips="both"))
    for row in range(16):
        assert examples[0, row].label.tolist() == setup.source.label(f"train/{row}").values.tolist()


def test_an_example_is_pure_in_seed_epoch_and_row():
    setup = toy_setup("segmentation")
    options = LabelledOptions(flips="both", drop_modality=0.4, drop_channel=0.3)
    one, two = (LabelledExamples(setup, "train", options=options, seed=3) for _ in range(2))
    first = [one[2, row] for row in range(12)]
    again = [two[2, row] for row in reversed(range(12))][::-1]
    assert all(map(equal, first, again))
    other_epoch = [one[3, row] for row in range(12)]
    other_seed = [LabelledExamples(setup, "train", options=options, seed=4)[2, row] for row in range(12)]
    for others in (other_epoch, other_seed):
        assert not all(map(equal, first, others))


@pytest.mark.parametrize("drop_modality", [0.0, 0.4])
def test_training_batches_are_the_same_for_any_number_of_workers(drop_modality):
    setup = toy_setup("segmentation", sizes=(20, 3, 3))
    found = []
    for workers in (0, 2):
        data = LabelledOptions(workers=workers, drop_modality=drop_modality)
        loaders = LabelledData(setup, FinetuneOptions(data=data, optim=FinetuneOptim(batch_size=8), seed=5))
        assert (loaders.batch_size, loaders.per_epoch) == (8, 2)
        loaders.trainer = SimpleNamespace(max_steps=5)
        found.append(list(loaders.train_dataloader()))
    assert len(found[0]) == len(found[1]) == 5
    assert all(map(equal, *found))
    rows = [tuple(example.row.tolist()) for example in found[0]]
    for epoch in (rows[:2], rows[2:4]):
        assert len(set(sum(epoch, ()))) == 16
    assert rows[:2] != rows[2:4]


def test_a_batch_is_not_larger_than_the_training_split():
    loaders = LabelledData(toy_setup(sizes=(5, 3, 3)), FinetuneOptions(optim=FinetuneOptim(batch_size=64)))
    assert (loaders.batch_size, loaders.per_epoch) == (5, 1)


def test_evaluation_reads_every_image_once_and_as_it_is():
    setup = toy_setup("regression", sizes=(3, 3, 7))
    found = list(in_order(setup, "test", 3, workers=0))
    assert [[e.row.tolist() for e in groups] for groups in found] == [[[0, 1, 2]], [[3, 4, 5]], [[6]]]
    values = setup.source.read("test/5").values
    assert torch.equal(found[1][0].batch["rgb"].values[2], torch.from_numpy(values[:3]))


# Sizes


class Mixed(Items):
    """Images of two sizes, with maps of classes."""

    def __init__(self):
        super().__init__(row=np.arange(2))

    def __getitem__(self, index: int) -> dict[str, Any]:
        height, width = ((10, 17), (16, 9))[index]
        random = np.random.default_rng(index)
        image = random.normal(1000, 300, (4, height, width)).astype(np.float32)
        image[3] = 10
        return {"image": image, "mask": random.integers(0, 3, (height, width))}


def test_images_of_different_sizes_are_padded_with_what_is_not_valid_and_not_known():
    bands = ("B04", "B03", "B02", "worldcover")
    splits = {split: Mixed() for split in SPLITS}
    source = TorchSource(splits, name="mixed", task="segmentation", bands=bands, classes=CLASSES)
    setup = set_up(source, demo_config(), LabelledOptions())
    assert setup.inputs == ("rgb", "land_cover")
    one, two = (LabelledExamples(setup, "train")[0, row] for row in range(2))
    assert one.batch["rgb"].values.shape == (3, 16, 24)  # padded to the patch of 8
    assert one.batch["land_cover"].values.shape == (1, 4, 6)
    assert one.label.shape == (10, 17)
    both = collate([one, two])
    rgb, cover = both.batch["rgb"], both.batch["land_cover"]
    assert (rgb.values.shape, cover.values.shape) == ((2, 3, 16, 24), (2, 1, 4, 6))
    assert (both.label.shape, both.known.shape) == ((2, 16, 17), (2, 16, 17))
    for i, (height, width) in enumerate(((10, 17), (16, 9))):
        sample = source.read(f"train/{i}")
        assert torch.equal(rgb.values[i, :, :height, :width], torch.from_numpy(sample.values[:3]))
        assert rgb.valid[i].sum() == 3 * height * width == 3 * rgb.valid[i, 0, :height, :width].sum()
        assert cover.valid[i].sum() == -(-height // 4) * -(-width // 4)
        assert torch.equal(both.label[i, :height, :width], torch.from_numpy(sample.label.values))
        assert both.known[i].sum() == height * width == both.known[i, :height, :width].sum()
    assert both.row.tolist() == [0, 1]


# Setting up


def test_inputs_are_in_the_models_order_and_products_are_those_of_the_data():
    setup = toy_setup(data={"inputs": ["nir", "rgb"]})
    assert setup.inputs == ("rgb", "nir")
    for name in setup.inputs:
        assert setup.config.modalities[name].products == ("L1C", "L2A", "toy")
        assert setup.products[name] == 2
    by_model = toy_setup(data={"statistics": "model"})
    assert by_model.inputs == ("rgb", "swir", "nir")
    assert by_model.products == {"rgb": 1, "swir": 1, "nir": 1}
    assert by_model.config == demo_config()
    assert [int(r.product) for r in LabelledExamples(by_model, "test")[0, 0].batch.values()] == [1, 1, 1]
    facts = by_model.facts()
    assert facts["inputs"] == "rgb+swir+nir"
    assert facts["bands"] == "B04 B03 B02 B11 B12 B8A B08"
    assert (facts["absent_bands"], facts["statistics"]) == ("", "L2A")
    assert setup.facts()["statistics"] == "toy"


def test_bands_that_the_data_lack_are_never_valid():
    source = toy(bands=("B04", "B03", "-", "B11", "B12", "-", "B08"))
    setup = set_up(source, demo_config(), LabelledOptions())
    assert setup.facts()["absent_bands"] == "B02 B8A"
    batch = LabelledExamples(setup, "train")[0, 0].batch
    assert batch["rgb"].valid.any(dim=2).any(dim=1).tolist() == [True, True, False]
    assert batch["nir"].valid.any(dim=2).any(dim=1).tolist() == [False, True]


@pytest.mark.parametrize(
    ("data", "fields", "says"),
    [
        ({"inputs": ["rgb", "elevation"]}, {}, "'elevation' cannot be fed from 'toy'.*choose among rgb, swir, nir"),
        ({"inputs": ["rbg"]}, {}, "'rbg'. Did you mean 'rgb'"),
        ({"inputs": ["sar"]}, {}, "unknown modality in data.inputs 'sar'"),
        ({}, {"bands": ("VV", *["-"] * 6)}, "none of the model's inputs .* has half of its bands in 'toy'"),
        ({"statistics": "model"}, {"products": ()}, "'toy' has none of the products of 'rgb'.*statistics to dataset"),
    ],
)
def test_what_the_data_cannot_give_is_refused(data, fields, says):
    with pytest.raises(ConfigError, match=says):
        toy_setup(data=data, **fields)


def test_statistics_that_standardise_nothing_are_refused():
    with pytest.raises(StatisticsError, match=r"'toy': band B03 has mean 5\.0 and standard deviation 0\.0"):
        toy_setup(statistics={**dict.fromkeys(BANDS, (1.0, 1.0)), "B03": (5.0, 0.0)})


def test_data_must_have_a_folder():
    with pytest.raises(ConfigError, match=r"data\.root is not set"):
        open_source(LabelledOptions(name="m-eurosat"))


def test_with_the_statistics_of_the_data_network_values_are_z_scores():
    from multimae_eo.codecs import codec_for

    setup = toy_setup(sizes=(30, 3, 3))
    batch = next(iter(in_order(setup, "train", 30, workers=0)))[0].batch
    for name, raster in batch.items():
        values, valid = codec_for(setup.modalities[name], "band", 1).encode(raster)
        assert valid.all()
        assert values.mean(dim=(0, 2, 3)).numpy() == pytest.approx(np.zeros(values.shape[1]), abs=1e-4)
        assert values.std(dim=(0, 2, 3)).numpy() == pytest.approx(np.ones(values.shape[1]), rel=1e-3)
