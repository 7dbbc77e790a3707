"""Fine-tuning learns every task, is the same to the bit each time, freezes what it should, and skips bad steps."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from batches import demo_config
from safetensors.torch import load_file
from test_samples import CLASSES, Items, toy, toy_items

from multimae_eo import checkpoint
from multimae_eo.data.torch_dataset import TorchSource
from multimae_eo.errors import CheckpointError, ConfigError, DataError, DivergedError
from multimae_eo.finetune_options import FinetuneOptim, FinetuneOptions, LabelledOptions, MachineOptions
from multimae_eo.model import MultiMAE
from multimae_eo.tasks.finetune import FinetuneTask, draw, finetune
from multimae_eo.tasks.rows import read_rows

QUIET = MachineOptions(accelerator="cpu", progress=False)


def save_model(place: Path, seed: int = 7) -> Path:
    """A checkpoint of a tiny model that has learned nothing."""
    torch.manual_seed(seed)
    return checkpoint.save(MultiMAE(demo_config()), place)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("pretrained") / "checkpoint")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Few resamples and no pictures, which take longer than the training."""
    monkeypatch.setattr("multimae_eo.tasks.task.RESAMPLES", 20)
    monkeypatch.setattr("multimae_eo.tasks.finetune.draw", lambda task, setup: None)


def options(pretrained: Path, out: Path, **fields) -> FinetuneOptions:
    """Options of a short run; fields: of groups as group__name."""
    optim = FinetuneOptim(batch_size=16, epochs=8, lr=0.1, warmup_epochs=1.0, layer_decay=1.0, drop_path=0.0)
    base = FinetuneOptions(
        checkpoint=pretrained, out=out, data=LabelledOptions(workers=0), optim=optim, trainer=replace(QUIET)
    )
    for name, value in fields.items():
        group, _, key = name.partition("__")
        base = replace(base, **{group: replace(getattr(base, group), **{key: value}) if key else value})
    return base


def short(pretrained: Path, out: Path, **fields) -> FinetuneOptions:
    return options(pretrained, out, **{"optim__epochs": 2, **fields})


def weights(out: Path, name: str = "last") -> dict[str, torch.Tensor]:
    return load_file(out / name / "model.safetensors")


def encoder_of(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name.startswith("encoder.")}


def all_equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("task", "head", "dice", "metric", "chance"),
    [
        ("classification", "linear", 0.0, "accuracy", 0.55),
        ("classification", "attentive", 0.0, "accuracy", 0.55),
        ("multilabel", "linear", 0.0, "map_micro", 0.7),
        ("segmentation", "convnext", 1.0, "miou", 0.4),
        ("segmentation", "linear_dense", 0.0, "miou", 0.4),
        ("regression", "convnext", 0.0, "r2", 0.3),
    ],
)
def test_a_tiny_model_learns(task, head, dice, metric, chance, pretrained, tmp_path, monkeypatch):
    drawn = head in ("convnext", "attentive")
    if drawn:
        monkeypatch.setattr("multimae_eo.tasks.finetune.draw", draw)
    run = options(pretrained, tmp_path / "run", head=head, optim__dice=dice)
    result = finetune(run, toy(task))
    value, low, high = result.best.metrics[metric]
    assert value > chance
    assert low <= value <= high
    written = json.loads((run.out / "results.json").read_text())
    for name in ("best", "last"):
        assert written[name] == {m: list(values) for m, values in getattr(result, name).metrics.items()}
        assert checkpoint.load_predictor(run.out / name).task.head == head
    assert written["primary"] == result.primary
    assert (written["inputs"], written["head"], written["warnings"]) == ("rgb+swir+nir", head, "")
    assert [written[f"{split}_samples"] for split in ("train", "valid", "test")] == [48, 24, 24]
    for picture, there in (("curves.png", drawn), ("predictions.png", drawn and task != "classification")):
        path = run.out / picture
        assert path.is_file() is there
        assert not there or path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_best_is_the_checkpoint_that_validated_best(pretrained, tmp_path):
    run = options(pretrained, tmp_path / "run", optim__epochs=6)
    finetune(run, toy())
    with open(run.out / "metrics.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["kind"] == "val"]
    assert len(rows) == 6
    scores = [float(row["val/accuracy"]) for row in rows]
    extras = {name: checkpoint.read_content(run.out / name)["extra"] for name in ("best", "last")}
    assert extras["best"]["valid_accuracy"] == max(scores)
    assert extras["best"]["image_px"] == 16
    assert extras["best"]["step"] == int(rows[int(np.argmax(scores))]["step"])
    assert (extras["last"]["step"], extras["last"]["valid_accuracy"]) == (18, scores[-1])


def test_a_run_of_steps_validates_at_its_end(pretrained, tmp_path):
    run = options(pretrained, tmp_path / "run", optim__steps=5)
    finetune(run, toy())
    rows = read_rows(run.out / "metrics.csv")
    assert [int(row["step"]) for row in rows if row["kind"] == "val"] == [3, 5]
    assert checkpoint.read_content(run.out / "last")["extra"]["step"] == 5


def test_the_learning_rate_is_scaled_by_the_batch(pretrained, tmp_path):
    run = options(pretrained, tmp_path / "run", optim__steps=6, optim__lr=0.256, optim__warmup_epochs=0.0)
    finetune(run, toy())
    rates = [float(row["train/lr"]) for row in read_rows(run.out / "metrics.csv") if row["kind"] == "train"]
    assert rates == pytest.approx([0.008 * (1 + np.cos(np.pi * step / 6)) for step in range(6)])


def test_one_seed_one_result_to_the_bit(pretrained, tmp_path):
    fields = {"optim__drop_path": 0.3, "data__drop_modality": 0.3, "data__drop_channel": 0.1}
    first, second, other = (
        short(pretrained, tmp_path / str(i), **fields, seed=seed, data__workers=workers)
        for i, (seed, workers) in enumerate(((1, 0), (1, 1), (2, 0)))
    )
    results = [finetune(run, toy("segmentation")) for run in (first, second, other)]
    assert (first.out / "metrics.csv").read_bytes() == (second.out / "metrics.csv").read_bytes()
    for name in ("best", "last"):
        assert all_equal(weights(first.out, name), weights(second.out, name))
        assert getattr(results[0], name).metrics == getattr(results[1], name).metrics
    assert not all_equal(weights(first.out), weights(other.out))


@pytest.mark.parametrize("task", ["classification", "segmentation"])
def test_micro_batches_change_memory_and_not_results(task, pretrained, tmp_path):
    """Also where labels are known for a part of the pixels only, and samples differ in how many."""
    items = {split: toy_items(task, 24, i, 16) for i, split in enumerate(("train", "valid", "test"))}
    ignore = None
    if task == "segmentation":
        items["train"].columns["mask"][:5] = 99
        items["train"].columns["mask"][5:9, :, 3:] = 99
        ignore = 99
    bands, classes = toy().about.bands, tuple(c.name for c in toy().about.classes)
    source = TorchSource(items, name="toy", task=task, bands=bands, classes=classes, ignore=ignore)
    runs = [short(pretrained, tmp_path / str(n), optim__micro_batches=n, optim__lr=0.005) for n in (1, 3)]
    for run in runs:
        finetune(run, source)
    one, three = (weights(run.out) for run in runs)
    for name, tensor in one.items():
        if name.endswith("qkv.bias"):  # that of the keys has no gradient but rounding, which AdamW blows up
            tensor[32:64], three[name][32:64] = 0, 0
        torch.testing.assert_close(three[name], tensor, atol=1e-5, rtol=1e-5)
    start = encoder_of(load_file(pretrained / "model.safetensors"))
    assert max((one[name] - start[name]).abs().max() for name in start) > 1e-4


@pytest.mark.parametrize("freeze", [1.0, 0.5, 0.0])
def test_a_frozen_encoder_stays_as_it_is(freeze, pretrained, tmp_path, monkeypatch):
    changed = []
    start = {name: t.clone() for name, t in checkpoint.load(pretrained).state_dict().items()}
    step = FinetuneTask.training_step

    def training_step(self, example, index):
        step(self, example, index)
        changed.append(not all_equal(dict(self.model.encoder.state_dict()), start))

    monkeypatch.setattr(FinetuneTask, "training_step", training_step)
    run = short(pretrained, tmp_path / "run", optim__freeze=freeze, optim__epochs=4, optim__warmup_lr=1e-4)
    finetune(run, toy())
    frozen = round(12 * freeze)
    assert changed == [False] * frozen + [True] * (12 - frozen)
    tensors = weights(run.out)
    same = all_equal(encoder_of(tensors), {f"encoder.{name}": t for name, t in start.items()})
    assert same is (freeze == 1)
    assert tensors["head.out.bias"].abs().max() > 0


def test_random_weights_instead_of_those_of_the_checkpoint(pretrained, tmp_path):
    runs = [short(pretrained, tmp_path / i, init=i, optim__freeze=1.0) for i in ("pretrained", "random")]
    for run in runs:
        finetune(run, toy())
    start = encoder_of(load_file(pretrained / "model.safetensors"))
    found = [encoder_of(weights(run.out)) for run in runs]
    assert all_equal(found[0], start)
    assert not all_equal(found[1], start)


def test_steps_that_are_not_finite_are_skipped_counted_and_end_the_run(pretrained, tmp_path, monkeypatch):
    losses = "multimae_eo.tasks.classify.Classification.losses"
    from multimae_eo.tasks.classify import Classification

    plain, calls = Classification.losses, []

    def poisoned(self, predicted, label, known):
        found = plain(self, predicted, label, known)
        if predicted.requires_grad:
            calls.append(len(calls))
        return found * float("nan") if predicted.requires_grad and calls[-1] in (1, 2) else found

    monkeypatch.setattr(losses, poisoned)
    run = short(pretrained, tmp_path / "run")
    finetune(run, toy())
    assert all(tensor.isfinite().all() for tensor in weights(run.out).values())
    rows = [row for row in read_rows(run.out / "metrics.csv") if row["kind"] == "train"]
    assert [float(row["train/skipped"]) for row in rows] == [0, 1, 2, 2, 2, 2]
    calls.clear()
    with pytest.raises(DivergedError, match="steps in a row"):
        finetune(short(pretrained, tmp_path / "strict", optim__max_skipped=1), toy())


def test_a_run_is_not_overwritten(pretrained, tmp_path):
    run = short(pretrained, tmp_path / "run", optim__steps=1)
    finetune(run, toy())
    before = weights(run.out)
    with pytest.raises(ConfigError, match=r"holds a run; remove it, or give another --out"):
        finetune(run, toy())
    assert all_equal(weights(run.out), before)


def test_dropping_modalities_in_training_makes_a_model_that_does_without(pretrained, tmp_path):
    """What the option is for: the label is shown by every modality, and the model may lean on one alone."""
    random = np.random.default_rng(0)
    which = np.arange(72) % 2
    images = 2000 + 400 * random.standard_normal((72, 7, 16, 16)) + (300 * which - 150)[:, None, None, None]
    parts = {"train": slice(0, 48), "valid": slice(48, 60), "test": slice(60, 72)}
    items = {s: Items(image=images[p].astype(np.float32), label=which[p]) for s, p in parts.items()}
    source = TorchSource(items, name="toy", task="classification", bands=toy().about.bands, classes=("no", "yes"))
    run = options(pretrained, tmp_path / "run", data__drop_modality=0.5)
    finetune(run, source)
    from multimae_eo.finetune_options import EvaluateOptions
    from multimae_eo.tasks.evaluate import evaluate

    rows = evaluate(EvaluateOptions(run.out / "last", all_subsets=True, trainer=QUIET), source)
    assert min(row["accuracy"] for row in rows) > 0.8


def test_a_class_that_training_lacks_is_a_warning_in_the_results(pretrained, tmp_path):
    items = {split: toy_items("classification", 18, i, 16) for i, split in enumerate(("train", "valid", "test"))}
    label = items["train"].columns["label"]
    label[label == 1] = 0
    bands = toy().about.bands
    source = TorchSource(items, name="toy", task="classification", bands=bands, classes=("first", "second", "third"))
    run = short(pretrained, tmp_path / "run")
    assert finetune(run, source).facts["warnings"] == "missing in train: second"
    assert json.loads((run.out / "results.json").read_text())["warnings"] == "missing in train: second"
    label[:] = 0
    with pytest.raises(DataError, match="one class only, 'first'"):
        finetune(short(pretrained, tmp_path / "other"), source)
    assert not (tmp_path / "other").exists()


def test_what_the_steps_were_is_said_in_the_results(pretrained, tmp_path):
    run = short(pretrained, tmp_path / "run", optim__warmup_epochs=9.0, optim__lr=1e30, optim__max_skipped=99)
    said = finetune(run, toy()).facts["warnings"]
    assert re.search(r"the warm-up of \d+ steps is as long as the run or longer, which has \d+", said)
    assert re.search(r"\d+ of \d+ steps were skipped", said)


def test_the_loss_of_validation_is_that_of_labels(pretrained, tmp_path):
    """Images without a known label do not count as a loss of 0."""
    items = {split: toy_items("segmentation", 8, i, 16) for i, split in enumerate(("train", "valid", "test"))}
    image, mask = (items["valid"].columns[name] for name in ("image", "mask"))
    unknown = np.concatenate([mask[:2], np.full_like(mask[2:], 255)])
    found = []
    for valid in (Items(image=image[:2], mask=mask[:2]), Items(image=image, mask=unknown)):
        given = {"task": "segmentation", "bands": toy().about.bands, "classes": CLASSES, "ignore": 255}
        run = short(pretrained, tmp_path / str(len(valid)))
        finetune(run, TorchSource({**items, "valid": valid}, name="toy", **given))
        found.append([float(row["val/loss"]) for row in read_rows(run.out / "metrics.csv") if row["val/loss"]])
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_no_metric_on_valid_leaves_the_last_checkpoint_as_the_best(pretrained, tmp_path):
    items = {split: toy_items("regression", 18, i, 16) for i, split in enumerate(("train", "valid", "test"))}
    items["valid"].columns["mask"][:] = 12
    source = TorchSource(items, name="toy", task="regression", bands=toy().about.bands, unit="m")
    run = short(pretrained, tmp_path / "run")
    assert finetune(run, source).facts["warnings"] == "r2 had no value on valid; best is the last"
    assert all_equal(weights(run.out, "best"), weights(run.out, "last"))


@pytest.mark.parametrize(
    ("fields", "error", "says"),
    [
        ({"checkpoint": None}, ConfigError, "--checkpoint is not set"),
        ({"checkpoint": Path("none")}, CheckpointError, "'none' is no checkpoint"),
        ({"head": "convnext"}, ConfigError, "head 'convnext' does not fit classification; expected linear or"),
        ({"optim__batch_size": 0}, ConfigError, r"optim\.batch_size"),
        ({"optim__label_smoothing": -0.1}, ConfigError, r"optim\.label_smoothing"),
        ({"data__drop_modality": -1.0}, ConfigError, r"data\.drop_modality"),
        ({"data__inputs": ["nri"]}, ConfigError, "'nri'. Did you mean 'nir'"),
        ({"trainer__accelerator": "abacus"}, ConfigError, "accelerator 'abacus'.* cannot be used here"),
    ],
)
def test_impossible_options_are_refused(fields, error, says, pretrained, tmp_path):
    with pytest.raises(error, match=says):
        finetune(short(pretrained, tmp_path / "run", **fields), toy())
