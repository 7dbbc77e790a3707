"""Every configuration builds and takes two steps at demo size."""

import shlex

import pytest
from conftest import ROOT

from multimae_eo.cli import main

SMALL = shlex.split(
    "--model.size demo --optim.steps 2 --optim.batch_size 4 --data.workers 0 --trainer.accelerator cpu "
    "--trainer.devices 1 --trainer.panels 0 --trainer.precision 32-true --trainer.progress false"
)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("pretrain_*.yaml")), ids=lambda p: p.stem)
def test_two_steps(path, tmp_path, world):
    main(["pretrain", "--config", str(path), "--data.root", str(world), "--out", str(tmp_path / "run"), *SMALL])
    assert (tmp_path / "run" / "checkpoint" / "model.safetensors").exists()


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_the_head_comment_names_its_command(path):
    head = path.read_text().split("\n\n")[0]
    assert "multimae-eo " in head
    assert f"configs/{path.name}" in head
