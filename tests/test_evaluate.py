"""Evaluation of fine-tuned checkpoints: subsets of the modalities, moved data, tables; also from the command line."""

import csv
import itertools
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from bad_inputs import fails
from geobench_files import write_set
from sklearn.metrics import accuracy_score
from test_finetune import QUIET, options, pretrained, quick, save_model  # noqa: F401
from test_samples import toy

from multimae_eo import checkpoint, cli
from multimae_eo.errors import ConfigError, DataError, UnknownNameError
from multimae_eo.finetune_options import EvaluateOptions
from multimae_eo.tasks.evaluate import evaluate, evidence_of, set_up_like, table_in_words
from multimae_eo.tasks.finetune import finetune
from multimae_eo.tasks.kinds import task_for
from multimae_eo.tasks.samples import LabelledExamples, collate

FLAGS = ["--trainer.accelerator", "cpu", "--trainer.progress", "false"]
INPUTS = ("rgb", "swir", "nir")


@contextmanager
def undrawn() -> Iterator[None]:
    """Few resamples and no pictures, where the fixture of one test does not reach."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("multimae_eo.tasks.task.RESAMPLES", 20)
        patch.setattr("multimae_eo.tasks.finetune.draw", lambda task, setup: None)
        yield


@pytest.fixture(scope="module")
def tuned(tmp_path_factory) -> Path:
    """The folder of a short run on toy data, which its checkpoints do not name."""
    place = tmp_path_factory.mktemp("tuned")
    with undrawn():
        finetune(options(save_model(place / "model"), place / "run", optim__epochs=6), toy())
    return place / "run"


@pytest.fixture(scope="module")
def on_files(tmp_path_factory) -> Path:
    """A run by the command line on a small fake EuroSAT beside it."""
    place = tmp_path_factory.mktemp("on_files")
    write_set(place / "data", "m-eurosat", train=20, valid=10, test=20, size=16)
    model = save_model(place / "model")
    arguments = ["finetune", *FLAGS, "--checkpoint", str(model), "--out", str(place / "run"), "--data.workers", "0"]
    data = ["--data.root", str(place / "data"), "--data.name", "m-eurosat"]
    with undrawn():
        cli.main([*arguments, *data, "--optim.steps", "4", "--optim.batch_size", "10"])
    return place / "run"


def asked(place: Path, **fields) -> EvaluateOptions:
    return EvaluateOptions(place, **{"trainer": QUIET, **fields})


def test_the_metrics_are_those_of_the_model(tuned):
    (row,) = evaluate(asked(tuned / "best"), toy())
    model = checkpoint.load_predictor(tuned / "best")
    setup = set_up_like(model, toy())
    examples = LabelledExamples(setup, "test")
    batch = collate([examples[0, i] for i in range(24)])
    assert row["accuracy"] == pytest.approx(accuracy_score(batch.label, model.predict(batch.batch)))
    assert row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"]
    assert (row["inputs"], row["dropped"], row["samples"]) == ("rgb+swir+nir", "", 24)
    others = {split: evaluate(asked(tuned / "best", split=split), toy())[0] for split in ("train", "valid")}
    assert others["train"]["samples"] == 48
    extra = checkpoint.read_content(tuned / "best")["extra"]
    assert others["valid"]["accuracy"] == pytest.approx(extra["valid_accuracy"])


def test_all_subsets(tuned):
    rows = evaluate(asked(tuned / "best", all_subsets=True), toy())
    assert [row["inputs"] for row in rows] == [
        *("rgb+swir+nir", "rgb+swir", "rgb+nir", "swir+nir", "rgb", "swir", "nir"),
    ]
    assert [row["dropped"] for row in rows] == ["", "nir", "swir", "rgb", "swir+nir", "rgb+nir", "rgb+swir"]
    assert len({row["accuracy"] for row in rows}) > 1
    table = table_in_words(rows)
    assert len(table.splitlines()) == 8
    assert all(word in table.splitlines()[0] for word in ("inputs", "accuracy", "accuracy_macro"))


def test_a_subset_equals_the_evaluation_without_the_others(tuned):
    model = checkpoint.load_predictor(tuned / "best")
    task, setup = task_for(model.task), set_up_like(model, toy())
    subsets = [c for n in (1, 2, 3) for c in itertools.combinations(INPUTS, n)]
    together = evidence_of(model, task, setup, "test", QUIET, workers=0, subsets=subsets)
    examples = LabelledExamples(setup, "test")
    batch = collate([examples[0, i] for i in range(24)])
    for subset, evidence in zip(subsets, together, strict=True):
        alone = model({name: batch.batch[name] for name in subset})
        assert torch.equal(evidence[:, 0].long(), alone.argmax(dim=1))


def test_dropping(tuned):
    rows = {row["dropped"]: row for row in evaluate(asked(tuned / "best", all_subsets=True), toy())}
    found = evaluate(asked(tuned / "best", drop=["nir", "swir"]), toy())
    assert found == [rows[""], rows["swir+nir"]]
    subsets = evaluate(asked(tuned / "best", drop=["nir"], all_subsets=True), toy())
    assert subsets == [rows["nir"], rows["swir+nir"], rows["rgb+nir"]]
    with pytest.raises(UnknownNameError, match=r"modality of this model to drop 'swirr'\. Did you mean 'swir'"):
        evaluate(asked(tuned / "best", drop=["swirr"]), toy())
    with pytest.raises(ConfigError, match="--drop leaves no modality; the model has rgb, swir, nir"):
        evaluate(asked(tuned / "best", drop=list(INPUTS)), toy())


def test_dropping_everything_from_all_subsets_is_an_error_too(tuned):
    with pytest.raises(ConfigError, match="--drop leaves no modality"):
        evaluate(asked(tuned / "best", drop=list(INPUTS), all_subsets=True), toy())


def test_dense_models_are_evaluated_on_images_of_any_size(pretrained, tmp_path):  # noqa: F811
    run = options(pretrained, tmp_path / "run", optim__epochs=1)
    finetune(run, toy("segmentation"))
    (row,) = evaluate(asked(run.out / "best"), toy("segmentation", pixels=24))
    assert row["samples"] == 24
    assert 0 < row["miou"] <= 1


def test_data_of_another_kind_are_refused(tuned):
    with pytest.raises(ConfigError, match=r"predicts classification of \[.*'toy' is multilabel"):
        evaluate(asked(tuned / "best"), toy("multilabel"))
    with pytest.raises(ConfigError, match=r"\['first', 'second', 'third'\].*\['one', 'two', 'three'\]"):
        evaluate(asked(tuned / "best"), toy(classes=("one", "two", "three")))
    with pytest.raises(ConfigError, match="bands VV, none of those that the model was fine-tuned on"):
        evaluate(asked(tuned / "best"), toy(bands=("VV", *["-"] * 6)))
    with pytest.raises(ConfigError, match="fine-tuned from Python on data of your own"):
        evaluate(asked(tuned / "best"))


def test_data_with_fewer_bands_are_evaluated_with_the_statistics_of_training(tuned):
    fewer = toy(bands=("B04", "B03", "B02", *["-"] * 4), statistics=dict.fromkeys(("B04", "B03", "B02"), (0.0, 1.0)))
    (row,) = evaluate(asked(tuned / "best"), fewer)
    rows = {row["inputs"]: row for row in evaluate(asked(tuned / "best", all_subsets=True), toy())}
    assert row == {**rows["rgb"], "dropped": ""}


def test_a_split_without_a_known_pixel_has_no_value(pretrained, tmp_path):  # noqa: F811
    run = options(pretrained, tmp_path / "run", optim__steps=1)
    finetune(run, toy("segmentation"))
    source = toy("segmentation", ignore=9)
    source._splits["test"].columns["mask"][:] = 9
    (row,) = evaluate(asked(run.out / "best"), source)
    assert row["samples"] == 24
    assert all(math.isnan(row[name]) for name in ("miou", "miou_low", "pixel_accuracy", "pixel_accuracy_high"))


# From the command line


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_the_data_are_named_in_the_checkpoint(on_files, tmp_path, capsys):
    out = tmp_path / "tables" / "drop.csv"
    arguments = ["evaluate", str(on_files / "best"), "--drop", "nir", "--drop", "swir", "--out", str(out)]
    cli.main([*arguments, *FLAGS])
    printed = capsys.readouterr().out
    assert f"Wrote {out}." in printed
    rows = table(out)
    assert [row["dropped"] for row in rows] == ["", "swir+nir"]
    assert [row["inputs"] for row in rows] == ["rgb+red_edge+swir+nir", "rgb+red_edge"]
    assert {row["samples"] for row in rows} == {"20"}
    assert all("band names corrected" in row["notes"] for row in rows)
    for row in rows:
        assert float(row["accuracy_low"]) <= float(row["accuracy"]) <= float(row["accuracy_high"])
        assert f"{float(row['accuracy']):.3f}" in printed
    assert not list(out.parent.glob(".*"))


def test_all_subsets_from_the_command_line(on_files, tmp_path):
    out = tmp_path / "all.csv"
    cli.main(["evaluate", str(on_files / "best"), "--all-subsets", "--out", str(out), *FLAGS])
    rows = table(out)
    assert len(rows) == len({row["inputs"] for row in rows}) == 2**4 - 1


def test_data_that_have_moved(on_files, tmp_path, capfd):
    moved = shutil.copytree(on_files.parent, tmp_path / "copy")
    here = moved / "run" / "best"
    text = (here / "config.json").read_text()
    (here / "config.json").write_text(text.replace(str(on_files.parent / "data"), "gone"))
    fails(["evaluate", str(here), *FLAGS], ["gone", "is no folder"], capfd)
    cli.main(["evaluate", str(here), "--root", str(moved / "data"), *FLAGS])
    assert "accuracy" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--drop", "swirr"], ["unknown modality of this model to drop 'swirr'", "Did you mean 'swir'?"]),
        (["--drop", "elevation"], ["unknown modality of this model to drop 'elevation'", "rgb, red_edge, swir, nir"]),
        (["--split", "val"], ["split"]),
    ],
)
def test_wrong_arguments(on_files, arguments, says, capfd):
    fails(["evaluate", str(on_files / "best"), *arguments, *FLAGS], says, capfd)


def test_a_model_without_a_head(on_files, capfd):
    says = ["pre-trained model without a head", "the folder best of `multimae-eo finetune`"]
    fails(["evaluate", str(on_files.parent / "model"), *FLAGS], says, capfd)


def test_a_damaged_entry_of_the_data(on_files, tmp_path, capfd):
    place = shutil.copytree(on_files / "best", tmp_path / "best")
    text = (place / "config.json").read_text()
    (place / "config.json").write_text(text.replace('"allow_leaks"', '"allow_cats"'))
    fails(["evaluate", str(place), *FLAGS], ["entry 'extra.data' describes no data", "allow_cats"], capfd)


def test_images_without_a_known_label_are_an_error(tuned, monkeypatch):
    monkeypatch.setattr(LabelledExamples, "__getitem__", unknown(LabelledExamples.__getitem__))
    with pytest.raises(DataError, match="'toy', split 'test': no label is known; nothing to evaluate"):
        evaluate(asked(tuned / "best"), toy())


def unknown(read):
    def __getitem__(self, index):
        example = read(self, index)
        return example._replace(known=torch.zeros_like(example.known))

    return __getitem__
