"""Labelled images from PyTorch data sets: what their items may look like, and errors that say what was expected."""

from typing import Any

import numpy as np
import pytest
import torch

from multimae_eo.data.labelled import Sample, with_own_statistics
from multimae_eo.data.torch_dataset import TorchSource
from multimae_eo.errors import ConfigError, DataError, UnknownNameError
from multimae_eo.modalities import MODALITIES

BANDS = ["B2", "-", "nir"]
CLASSES = ["water", "forest", "field"]
SIZE = (4, 5)


class Fake(torch.utils.data.Dataset):
    """Items of a random image and whatever else they are given."""

    def __init__(self, length: int, seed: int = 0, **rest: Any):
        random = np.random.default_rng(seed)
        self.images = torch.from_numpy(random.normal(1000, 300, (length, 3, *SIZE)).astype(np.float32))
        self.rest = rest

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.images[index], **self.rest}


def source(changes: dict[str, Any] | None = None, /, **rest: Any) -> TorchSource:
    """Three splits of items with a label; rest: entries of the items."""
    splits = {split: Fake(n, n, **{"label": 1, **rest}) for split, n in (("train", 5), ("valid", 2), ("test", 3))}
    return TorchSource(
        **{
            "splits": splits,
            "name": "fake",
            "task": "classification",
            "bands": BANDS,
            "classes": CLASSES,
            **(changes or {}),
        }
    )


def read(changes: dict[str, Any], /, **rest: Any) -> Sample:
    return source(changes, **rest).read("train/0")


SEGMENTATION = {"task": "segmentation"}
REGRESSION = {"task": "regression", "classes": (), "unit": "m"}
MULTILABEL = {"task": "multilabel"}


@pytest.mark.parametrize("label", [2, np.int32(2), torch.tensor(2), torch.tensor([2]), np.array(2, np.uint8)])
def test_class_indices(label: Any):
    data = source(label=label)
    assert data.ids["train"] == tuple(f"train/{i}" for i in range(5))
    assert data.about.bands == ("B02", "B08")
    found = data.read("train/4")
    assert np.array_equal(found.values, Fake(5, 5).images[4][[0, 2]].numpy())
    assert (int(found.label.values), found.label.values.dtype, bool(found.label.known)) == (2, np.int64, True)
    assert int(data.label("test/2").values) == 2


@pytest.mark.parametrize("label", [torch.tensor([0, 1, 1]), [0, 1, 1], np.array([False, True, True])])
def test_several_labels(label: Any):
    found = read(MULTILABEL, label=label).label
    assert (found.values.tolist(), found.values.dtype) == ([0, 1, 1], np.float32)


@pytest.mark.parametrize("kind", [torch.int64, torch.uint8, torch.int16])
@pytest.mark.parametrize("leading", [(), (1,)])
def test_masks_of_classes(kind: torch.dtype, leading: tuple[int, ...]):
    mask = torch.arange(20).reshape(*leading, *SIZE) % 3
    mask[..., 0, 0] = 99
    values, known = read({**SEGMENTATION, "ignore": 99}, mask=mask.to(kind)).label
    assert known.sum() == 19
    assert not known[0, 0]
    assert np.array_equal(values, np.where(known, np.arange(20).reshape(SIZE) % 3, 0))


def test_a_mask_of_two_classes_may_be_true_and_false():
    mask = torch.rand(SIZE) > 0.5
    assert np.array_equal(read({**SEGMENTATION, "classes": ["no", "yes"]}, mask=mask).label.values, mask.int().numpy())


def test_masks_of_numbers():
    mask = torch.rand(1, *SIZE, dtype=torch.float64)
    mask[0, 1, 2], mask[0, 0, 0] = float("nan"), -1
    values, known = read({**REGRESSION, "ignore": -1}, mask=mask).label
    assert (known.sum(), values.dtype, values[1, 2]) == (18, np.float32, 0)
    assert np.array_equal(values[known], mask[0].numpy().astype(np.float32)[known])


def test_validity():
    data = source(valid=torch.ones(1, *SIZE, dtype=torch.bool).index_fill(2, torch.tensor([3]), False))
    data._splits["train"].images[0, 2, 1, 1] = float("nan")
    found = data.read("train/0")
    assert found.valid.sum(axis=(1, 2)).tolist() == [16, 15]
    assert not found.valid[:, :, 3].any()
    assert np.isfinite(found.values).all()


def test_masked_arrays():
    image = np.ma.masked_equal(np.full((3, *SIZE), 7, np.int16), -9999)
    image[0, 1, 2] = np.ma.masked
    assert not (found := read({}, image=image)).valid[0, 1, 2]
    assert found.valid.sum() == found.valid.size - 1


def test_statistics_are_measured_or_given():
    data = source(valid=torch.ones(3, *SIZE, dtype=torch.bool).index_fill(1, torch.tensor([0]), False))
    pixels = Fake(5, 5).images[:, :, 1:].double().numpy()
    for band, channel in (("B02", 0), ("B08", 2)):
        want = pixels[:, channel].mean(), pixels[:, channel].std()
        assert data.statistics()[band] == pytest.approx(want, rel=1e-6)
    assert with_own_statistics(MODALITIES, data.about, data.statistics())
    assert source({"statistics": {"blue": (1.0, 2.0)}}).statistics() == {"B02": (1.0, 2.0)}


def test_fingerprint():
    first = source().fingerprint()
    assert source().fingerprint() == first
    changed = source()
    changed._splits["valid"].images[1, 0, 0, 0] += 1
    others = [changed, source(label=2), source({"name": "b"}), source({"bands": ["B3", "-", "nir"]})]
    assert len({first, *(other.fingerprint() for other in others)}) == 5


@pytest.mark.parametrize(
    ("changes", "rest", "words"),
    [
        ({}, {"image": torch.zeros(2, 4, 5)}, ["(2, 4, 5)", "[3, height, width]", "B2, -, nir"]),
        ({}, {"image": torch.zeros(4, 5)}, ["(4, 5)"]),
        ({}, {"image": torch.zeros(3, 4, 5, dtype=torch.complex64)}, ["complex64"]),
        ({}, {"label": 3}, ["the label is 3", "0 to 2"]),
        ({}, {"label": 1.0}, ["the label is", "whole number"]),
        ({}, {"label": torch.tensor([0, 1, 0])}, ["(3,)", "one class index"]),
        ({}, {"label": True}, ["the label is"]),
        ({}, {"valid": torch.ones(2, 4, 5, dtype=torch.bool)}, ["'valid' is bool (2, 4, 5)"]),
        ({}, {"valid": torch.ones(4, 5)}, ["'valid' is float32"]),
        (MULTILABEL, {"label": torch.tensor([0, 1])}, ["(2,)", "3 numbers that are 0 or 1"]),
        (MULTILABEL, {"label": torch.tensor([0, 2, 1])}, ["0 or 1"]),
        (SEGMENTATION, {}, ["no 'mask'", "it has image, label"]),
        (SEGMENTATION, {"mask": torch.zeros(4, 5)}, ["float32"]),
        (SEGMENTATION, {"mask": torch.full((4, 5), 3)}, ["the mask holds 3"]),
        (SEGMENTATION, {"mask": torch.zeros(5, 4, dtype=torch.int64)}, ["(5, 4)", "(4, 5)"]),
        (SEGMENTATION, {"mask": torch.zeros(2, 4, 5, dtype=torch.int64)}, ["(2, 4, 5)", "[1, height, width]"]),
        (REGRESSION, {"mask": torch.zeros(5, 4)}, ["(5, 4)", "(4, 5)"]),
    ],
)
def test_errors_of_items(changes: dict[str, Any], rest: dict[str, Any], words: list[str]):
    with pytest.raises(DataError) as caught:
        read(changes, **rest)
    for word in ("'fake', train/0", *words):
        assert word in str(caught.value), f"'{word}' is not in: {caught.value}"


def test_items_that_are_no_dictionaries():
    pairs = torch.utils.data.TensorDataset(torch.zeros(2, 3, *SIZE), torch.zeros(2))
    with pytest.raises(DataError, match="the item is tuple; expected a dictionary with 'image'"):
        read({"splits": dict.fromkeys(("train", "valid", "test"), pairs)})


@pytest.mark.parametrize("sample_id", ["train/5", "dev/0", "train/-1", "train"])
def test_ids_that_do_not_exist(sample_id: str):
    with pytest.raises(DataError, match=f"has no image '{sample_id}'"):
        source().read(sample_id)


@pytest.mark.parametrize(
    ("changes", "error", "word"),
    [
        ({"splits": {"train": Fake(1), "valid": Fake(1)}}, DataError, "split 'test' is empty"),
        ({"splits": {"train": Fake(1), "val": Fake(1)}}, UnknownNameError, "Did you mean 'valid'"),
        ({"bands": ["B2", "B99"]}, UnknownNameError, "B99"),
        ({"products": ["L2C"]}, UnknownNameError, "Did you mean 'L2A'"),
        ({"name": "ASTER"}, ConfigError, "name is 'ASTER'"),
        ({"statistics": {"x": (0.0, 1.0)}}, UnknownNameError, "'x'"),
    ],
)
def test_impossible_options(changes: dict[str, Any], error: type[Exception], word: str):
    with pytest.raises(error, match=word):
        source(changes)


def test_numbers_that_cannot_be_of_the_product():
    class Reflectance(Fake):
        def __getitem__(self, index):
            return {"image": self.images[index] / 10_000, **self.rest}

    splits = {split: Reflectance(2, label=1) for split in ("train", "valid", "test")}
    source({"splits": splits})  # the statistics are its own
    with pytest.raises(DataError, match=r"'fake': expected reflectance x 10000 in B02, got .* Multiply them by 10000"):
        source({"splits": splits, "products": ("L2A",)})
    with pytest.raises(DataError, match=r"in worldcover, .* which look like codes without a meaning .* Translate them"):
        source({"bands": ["B2", "-", "worldcover"]})
