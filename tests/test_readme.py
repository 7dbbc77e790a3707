"""The README runs: its snippet, its commands, and its list of files."""

import re
import shlex

import pytest
import torch
from conftest import ROOT, SHARED

from multimae_eo import MultiMAE, save, sized
from multimae_eo.cli import main
from multimae_eo.data.synthetic import generate_scene
from multimae_eo.tasks import probe, task

README = (ROOT / "README.md").read_text()
SMALL = (
    "--model.size demo --optim.steps 2 --optim.batch_size 4 --data.workers 0 --trainer.accelerator cpu "
    "--trainer.devices 1 --trainer.panels 0 --trainer.precision 32-true --trainer.progress false --out runs/small"
)
# What the README leaves to the reader: the places of files.
PLACES = {
    "TERRAMESH": str(SHARED / "real" / "terramesh"),
    "CHECKPOINT.pth": str(SHARED / "golden" / "patch8_56x56" / "checkpoint-999.pth"),
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


SHORT = "--optim.steps 2 --optim.batch_size 4 --data.workers 0 --trainer.accelerator cpu --trainer.progress false"


@pytest.fixture
def folder(tmp_path, monkeypatch, world, labelled_world):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(task, "RESAMPLES", 10)
    monkeypatch.setattr(probe, "DENSE_STEPS", 5)
    monkeypatch.setattr(probe, "STRENGTHS", (0.1, 1.0))
    torch.manual_seed(0)
    save(MultiMAE(sized("demo")), "runs/demo/checkpoint")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "synthetic").symlink_to(world)
    (tmp_path / "data" / "labelled").symlink_to(labelled_world)
    return tmp_path


def test_the_snippet(folder, capsys):
    (snippet,) = blocks("python")
    assert len([line for line in snippet.splitlines() if line.strip()]) == 10
    exec(compile(snippet, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip().splitlines() == [
        str(sized("demo").bands),
        "torch.Size([2, 99, 96]) torch.Size([2, 96]) torch.Size([2, 96, 7, 7])",
    ]


@pytest.mark.parametrize("command", [c for b in blocks("sh") for c in b.strip().splitlines()])
def test_commands(command, folder):
    for place, path in PLACES.items():
        if place in command and not SHARED.is_dir():
            pytest.skip(f"no shared data: {SHARED} does not exist (set MULTIMAE_EO_SHARED)")
        command = command.replace(place, path)
    if " synthesize " in command:
        command = command.replace("512", "96") if "scene" in command else f"{command}2 --tiles 20"
    if " embed " in command or " fill " in command:
        generate_scene("data", tile_px=96)
    if " finetune " in command:
        command = f"{command} {SHORT}"
    if " evaluate " in command:  # what the command before it leaves
        config = "configs/finetune/synthetic-map_multispectral.yaml"
        given = f"finetune --config {config} --checkpoint runs/demo/checkpoint --data.root data/labelled {SHORT}"
        main(shlex.split(given))
    if " pretrain " in command:
        command = f"{command} {SMALL}"
    main(shlex.split(command)[1:])


def test_every_file_is_listed_and_every_listed_file_exists():
    tree = README.split("## Files")[1]
    listed = set(re.findall(r"^ *(\w+\.py)", tree, re.MULTILINE))
    package = ROOT / "src" / "multimae_eo"
    files = {p.name for p in package.rglob("*.py") if p.parent.name != "synthetic"}
    assert listed == files
    assert all((package / folder).is_dir() for folder in ("data/synthetic", "tasks"))


def test_every_link_leads_somewhere():
    for link in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / link).exists(), link
