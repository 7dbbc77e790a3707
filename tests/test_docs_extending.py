"""The diffs of docs/extending.md apply to the sources as they are, and what they add works."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

pytest.importorskip("h5py")
pytest.importorskip("lightning")
pytest.importorskip("rasterio")
if shutil.which("git") is None:
    pytest.skip("git applies the diffs", allow_module_level=True)

PAGE = (ROOT / "docs" / "extending.md").read_text()
NAMES = ("atmosphere", "slope", "address", "orchards", "directions")
DIFFS = dict(zip(NAMES, re.findall(r"^```diff\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE), strict=True))

BEGIN = """
import sys, warnings
from pathlib import Path
import numpy as np
import torch
import multimae_eo
torch.set_num_threads(1)
tmp = Path(sys.argv[1])
assert str(Path(multimae_eo.__file__)).startswith(str(tmp))
"""
PRETRAIN = """
from multimae_eo.options import DataOptions, ModelOptions, OptimOptions, PretrainOptions, TrainerOptions
from multimae_eo.tasks.run import pretrain
from worlds import write_world

def train(name, world):
    views = ["rgb", "nir", name]
    machine = TrainerOptions(accelerator="cpu", devices=1, panels=1, loggers=[], progress=False, log_every=1)
    optim, data = OptimOptions(batch_size=4, steps=2), DataOptions(root=world, workers=0, val_fraction=0.2)
    model = ModelOptions(size="demo", inputs=views, targets=views)
    result = pretrain(PretrainOptions(out=tmp / name, model=model, optim=optim, data=data, trainer=machine))
    assert np.isfinite(result.last[name]) and result.last[name] > 0
    assert name in multimae_eo.load(tmp / name / "checkpoint").config.modalities
"""
# What each diff adds, at work: the first two need no other change.
WORKS = {
    "atmosphere": PRETRAIN
    + """
train("atmosphere", write_world(tmp, tiles=12))
""",
    "slope": """
config = multimae_eo.sized("demo", inputs=("rgb", "terrain_slope"), targets=("terrain_slope",))
encoder = multimae_eo.Encoder(config)
seen = encoder.see({"slope": np.full((1, 56, 56), 12.0)})
assert seen.layout.names == ("terrain_slope",) and seen.valid.all()

from geotiff_scene import write
from multimae_eo.data.folder import GeoTIFFFolder
from multimae_eo.finetune_options import LabelledOptions
from multimae_eo.tasks.samples import set_up
for name in ("a", "b", "c"):
    write(tmp / "tiles" / f"{name}.tif", np.random.default_rng(0).uniform(0, 40, (1, 16, 16)).astype(np.float32))
(tmp / "tiles" / "labels.csv").write_text("path,label,split\\na.tif,x,train\\nb.tif,y,valid\\nc.tif,y,test\\n")
source = GeoTIFFFolder(tmp / "tiles", task="classification", bands=["slope"], classes=["x", "y"])
assert set_up(source, config, LabelledOptions()).inputs == ("terrain_slope",)
""",
    "address": PRETRAIN
    + """
train("terrain_slope", write_world(tmp, name="steep", tiles=12))
""",
    "orchards": """
import json
import h5py
folder = tmp / "sets" / "segmentation_v1.0" / "orchards"
folder.mkdir(parents=True)
rng, ids = np.random.default_rng(0), [f"orchard_{i}" for i in range(6)]
for sample_id in ids:
    with h5py.File(folder / f"{sample_id}.hdf5", "w") as file:
        for key in ("Red", "Green", "Blue", "NIR"):
            file[key] = rng.integers(200, 3000, (16, 16)).astype(np.uint16)
        file["Height"] = rng.uniform(300, 400, (16, 16)).astype(np.float32)
        file["label"] = np.arange(256).reshape(16, 16) % 2
splits = {"train": ids[:4], "valid": ids[4:5], "test": ids[5:]}
(folder / "default_partition.json").write_text(json.dumps(splits))
statistics = {key: {"mean": 1600.0, "std": 800.0} for key in ("Red", "Green", "Blue", "NIR")}
(folder / "band_stats.json").write_text(json.dumps({**statistics, "Height": {"mean": 350.0, "std": 30.0}}))

from multimae_eo.finetune_options import FinetuneOptim, FinetuneOptions, LabelledOptions, MachineOptions
from multimae_eo.tasks import task
from multimae_eo.tasks.finetune import finetune
task.RESAMPLES = 10
config = multimae_eo.sized("demo", inputs=("rgb", "nir", "elevation"), targets=("rgb",))
multimae_eo.save(multimae_eo.MultiMAE(config), tmp / "model")
data = LabelledOptions(root=tmp / "sets", name="orchards", workers=0)
machine, optim = MachineOptions(accelerator="cpu", progress=False), FinetuneOptim(steps=1)
options = FinetuneOptions(checkpoint=tmp / "model", out=tmp / "orchards", data=data, optim=optim, trainer=machine)
result = finetune(options)
assert set(result.best.metrics) == {"miou", "pixel_accuracy"}
assert "masks drawn from images of one summer" in result.facts["notes"]
""",
    "directions": """
from multimae_eo.config import TaskConfig
from multimae_eo.tasks.kinds import task_for
config = TaskConfig("regression", "convnext", ("rgb",), unit="degrees", mean=180.0, std=90.0)
kind = task_for(config)
known = torch.ones(1, 4, 4, dtype=torch.bool)
predicted, label = torch.full((1, 1, 4, 4), 359.0), torch.ones(1, 4, 4)
label[0, 0, 0] = 5.0
assert torch.allclose(kind.losses(predicted, label, known), torch.tensor([(15 * 4 + 36) / 16 / 90**2]))
score = kind.score(kind.evidence(predicted, label, known))
assert abs(score["mae"] - (15 * 2 + 6) / 16) < 1e-6
plain = task_for(TaskConfig("regression", "convnext", ("rgb",), unit="t/ha", std=90.0))
assert plain.losses(predicted, label, known) > 10 * kind.losses(predicted, label, known)
""",
}
ALONE = {name: (name,) for name in NAMES} | {"address": ("slope", "address")}


def changed(folder: Path, *names: str) -> Path:
    """A copy of the sources with some of the diffs."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "src", folder / "src", ignore=ignored)
    for name in names:
        subprocess.run(["git", "apply", "-p1"], input=DIFFS[name], text=True, cwd=folder, check=True)
    return folder


def run(folder: Path, *parts: str) -> None:
    """Run what was added in a process that sees the changed sources."""
    paths = os.pathsep.join([str(folder / "src"), str(ROOT / "tests")])
    code = "\n".join([BEGIN, *parts])
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_a_diff_changes_one_file_and_breaks_no_rule(name, tmp_path):
    folder = changed(tmp_path, *ALONE[name])
    assert DIFFS[name].count("\n+++ ") == 1
    before = {p.relative_to(ROOT / "src"): p.read_text() for p in (ROOT / "src").rglob("*.py")}
    after = {p.relative_to(folder / "src"): p.read_text() for p in (folder / "src").rglob("*.py")}
    assert before.keys() == after.keys()
    assert sum(before[path] != after[path] for path in before) == len(ALONE[name])
    for path in after:
        if before[path] != after[path]:
            compile(after[path], str(path), "exec")
            assert len(after[path].splitlines()) <= 400


@pytest.mark.slow
def test_what_the_diffs_add_works(tmp_path):
    folder = changed(tmp_path, *NAMES)
    run(folder, *WORKS.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_what_a_diff_adds_works_without_the_others(name, tmp_path):
    run(changed(tmp_path, *ALONE[name]), WORKS[name])


@pytest.mark.slow
def test_the_rules_hold_with_all_of_them(tmp_path):
    folder = changed(tmp_path, *NAMES)
    names = "test_no_name_of_a_modality or test_imports_run_one_way or test_files_and_functions"
    paths = os.pathsep.join([str(folder / "src"), str(ROOT / "tests")])
    arguments = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        str(ROOT / "tests" / "test_architecture.py"),
    ]
    environment = {**os.environ, "PYTHONPATH": paths, "MULTIMAE_EO_UNCHECKED": "1"}
    done = subprocess.run([*arguments, "-k", names], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
