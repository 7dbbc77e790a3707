"""Every configuration builds and takes two steps at demo size; the targets of full runs plan them."""

import dataclasses
import re
import shlex
import subprocess
import sys

import pytest
import torch
import yaml
from conftest import ROOT
from geobench_files import write_set

from multimae_eo import MultiMAE, save, sized
from multimae_eo.cli import main, parse
from multimae_eo.data.geobench_sets import SETS
from multimae_eo.modalities import INPUT_SETTINGS, PAPER_INPUTS, PAPER_TARGETS
from multimae_eo.options import PretrainOptions
from multimae_eo.tasks import finetune, task

SMALL = shlex.split(
    "--model.size demo --optim.steps 2 --optim.batch_size 4 --data.workers 0 --trainer.accelerator cpu "
    "--trainer.devices 1 --trainer.panels 0 --trainer.precision 32-true --trainer.progress false"
)
SHORT = shlex.split(
    "--optim.steps 2 --optim.batch_size 4 --data.workers 0 --trainer.accelerator cpu --trainer.threads 1 "
    "--trainer.progress false"
)
FINETUNE = sorted((ROOT / "configs" / "finetune").glob("*.yaml"))


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("pretrain_*.yaml")), ids=lambda p: p.stem)
def test_two_steps(path, tmp_path, world):
    main(["pretrain", "--config", str(path), "--data.root", str(world), "--out", str(tmp_path / "run"), *SMALL])
    assert (tmp_path / "run" / "checkpoint" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("given", "inputs"),
    [
        ([], PAPER_INPUTS),
        (["--recipe", "v2"], ("rgb", "red_edge", "swir", "nir", "elevation:sample")),
        (["--recipe", "v2", "--model.size", "demo"], ("rgb", "red_edge", "swir", "nir", "elevation:sample")),
        (["--recipe", "v2", "--model.inputs", "[rgb, land_cover]"], ("rgb", "land_cover")),
    ],
)
def test_what_a_recipe_feeds(given, inputs):
    parsed = PretrainOptions(**vars(parse(["pretrain", *given])[1]))
    of_demo = parse(["demo", *(word.replace("--", "--pretrain.") for word in given)])[1].pretrain
    for options in (parsed, of_demo, dataclasses.replace(parsed, seed=1)):
        assert options.model.config().inputs == inputs
        assert options.model.config().targets == PAPER_TARGETS


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    return save(MultiMAE(sized("demo", dim=32, depth=2, heads=2)), tmp_path_factory.mktemp("pretrained") / "checkpoint")


@pytest.mark.parametrize("path", FINETUNE, ids=lambda p: p.stem)
def test_two_steps_of_fine_tuning(path, tmp_path, checkpoint, monkeypatch):
    monkeypatch.setattr(task, "RESAMPLES", 10)
    monkeypatch.setattr(finetune, "draw", lambda *_: None)  # a third of the time
    root, out = tmp_path / "sets", tmp_path / "run"
    write_set(root, yaml.safe_load(path.read_text())["data"]["name"], size=16)
    given = ["--config", str(path), "--checkpoint", str(checkpoint), "--data.root", str(root), "--out", str(out)]
    main(["finetune", *given, *SHORT])
    assert (out / "best" / "model.safetensors").exists()
    assert (out / "last" / "model.safetensors").exists()


def test_every_data_set_has_a_config_of_every_setting_that_its_bands_allow():
    allowed = {
        f"{name}_{setting}"
        for name, described in SETS.items()
        for setting, choice in INPUT_SETTINGS.items()
        if choice.fits(layer.band for layer in described.layers)
    }
    assert {path.stem for path in FINETUNE} == allowed
    for path in FINETUNE:
        assert (
            tuple(yaml.safe_load(path.read_text())["data"]["inputs"])
            == INPUT_SETTINGS[path.stem.split("_")[-1]].modalities
        )


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda p: p.stem)
def test_the_head_comment_names_its_command(path):
    head = path.read_text().split("\n\n")[0]
    assert "multimae-eo " in head
    assert path.relative_to(ROOT).as_posix() in head


def full(target, *variables):
    """What a target of the full runs prints as a dry run, in the environment of the tests."""
    command = ["make", "-s", "-o", "install", target, f"BIN={sys.prefix}/bin", "DRY=true", *variables]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mmearth64", "mmearth100k"])
def test_full_pre_training_is_planned(name, world, tmp_path):
    out = full(f"full-{name}", f"DATA={world}", f"MORE=--out {tmp_path / 'run'} {shlex.join(SMALL)}")
    assert "tiles to train on" in out.split("Plan\n")[1]
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_full_geobench_is_planned(checkpoint, tmp_path):
    write_set(tmp_path / "sets", "m-eurosat", size=16)
    data = f"DATA={tmp_path / 'sets'}"
    out = full("full-geobench", data, f"CHECKPOINT={checkpoint}", f"MORE=--out {tmp_path / 'run'} --workers 0")
    # two settings, three partitions; k-NN and linear probes run once but for random weights; five seeds of fine-tuning
    assert re.search(r"m-eurosat +knn 36, linear 36, finetune 60", out)


@pytest.mark.slow
def test_full_studies_are_planned(tmp_path):
    before = {p: p.stat().st_mtime_ns for p in (ROOT / "docs").glob("study_*.png")}
    out = full("full-studies", "ALL_STUDIES=transfer filling law", f"MORE=--work {tmp_path / 'work'}")
    assert "\ntransfer, small, 20,000 steps of 256 of 100,000 tiles: " in "\n" + out
    assert "\nlaw, small, 20,000 steps of 256 of 100,000 tiles: " in "\n" + out
    assert "base, 2 times" in out
    assert not (tmp_path / "work").exists()
    assert {p: p.stat().st_mtime_ns for p in (ROOT / "docs").glob("study_*.png")} == before
