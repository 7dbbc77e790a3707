"""The six rules that keep the package small: names, imports, sizes."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import multimae_eo
from multimae_eo import MultiMAE, sized
from multimae_eo.modalities import MODALITIES

SOURCE = Path(multimae_eo.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
# What may be imported only by whom (folders and files below the package).
ALLOWED = {
    "h5py": ("data", "maps"),
    "rasterio": ("data", "maps"),
    "isal": ("data", "maps"),
    "upath": ("data", "maps"),
    "lightning": ("tasks", "integrations"),
    "timm": ("integrations",),
    "terratorch": ("integrations",),
    "torchgeo": ("integrations",),
    "torchgeo_bench": ("integrations",),
    "onnx": ("integrations",),
    "matplotlib": ("visualize.py", "visualize_labels.py", "visualize_tiles.py", "maps"),
    "torchmetrics": ("tasks",),
    "sklearn": ("tasks",),
    "tqdm": ("tasks", "maps"),
    "jsonargparse": ("cli.py",),
}
# A file may import from its own level and from those before it.
LEVELS = (
    ("errors.py", "shapes.py"),
    ("whole.py", "documents.py"),
    ("modalities.py",),
    ("config.py",),
    ("options.py",),
    ("finetune_options.py",),
    ("raster.py",),
    ("units.py",),
    ("inputs.py",),
    ("codecs.py",),
    ("layers.py", "masking.py"),
    ("encoder.py",),
    ("model.py",),
    ("losses.py", "heads.py"),
    ("predictor.py",),
    ("checkpoint.py", "optim.py"),
    ("reference.py",),
    ("data", "visualize.py", "visualize_labels.py", "visualize_tiles.py"),
    ("tasks",),
    ("maps",),
    ("explain",),
    ("integrations",),
    ("commands.py",),
    ("cli.py",),
)
DATA_MAY_KNOW = ("errors", "documents", "whole", "modalities", "raster", "units", "config", "data")


def relative(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


def imports(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return found


def level(name: str) -> int | None:
    first = name.split("/")[0]
    return next((i for i, names in enumerate(LEVELS) if first in names), None)


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_no_name_of_a_modality_outside_of_two_files(path):
    if relative(path) in ("modalities.py", "reference.py"):
        return
    for node in ast.walk(ast.parse(path.read_text())):
        words = [getattr(node, field, None) for field in ("id", "attr", "arg", "name", "value")]
        named = [w for w in words if isinstance(w, str) and w in MODALITIES]
        assert not named, f"{relative(path)}:{node.lineno} names {named}"


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_imports_run_one_way(path):
    own = level(relative(path))
    if own is None:
        assert relative(path) == "__init__.py"
        return
    for name in imports(path):
        parts = name.split(".")
        if parts[0] != "multimae_eo" or len(parts) == 1:
            continue
        home = parts[1] if (SOURCE / parts[1]).is_dir() else f"{parts[1]}.py"
        if (SOURCE / home).exists():
            assert level(home) is not None
            assert level(home) <= own, f"{relative(path)} imports {name}"
            if relative(path).startswith("data/"):
                assert parts[1] in DATA_MAY_KNOW, f"{relative(path)} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_optional_dependencies_stay_where_they_belong(path):
    for name in imports(path):
        homes = ALLOWED.get(name.split(".")[0])
        assert homes is None or relative(path).startswith(homes), f"{relative(path)} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_files_and_functions_are_short_and_well_named(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    assert path.stem not in ("utils", "misc", "helpers", "common", "engine", "manager")
    tree = ast.parse(text)
    assert ast.get_docstring(tree), f"{relative(path)} has no sentence of purpose"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 60, f"{relative(path)}: {node.name}"


def test_the_core_is_small():
    """What a model is made of, and what is done with it: pre-training, fine-tuning, probing, benchmarks."""
    lines = {relative(p): len(p.read_text().splitlines()) for p in FILES}
    outside = ("data/", "maps/", "integrations/", "explain/", "cli.py", "commands.py", "tasks/")
    assert sum(n for name, n in lines.items() if not name.startswith(outside)) < 4450
    assert sum(n for name, n in lines.items() if name.startswith("tasks/")) < 4200


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_importing_the_package_imports_no_torch():
    heavy = ("torch", "lightning", "h5py", "rasterio", "matplotlib", "numpy")
    out = run(f"import sys, multimae_eo, multimae_eo.cli; print([m for m in {heavy} if m in sys.modules])")
    assert out.strip() == "[]"


HEAVY = ("lightning", "h5py", "isal", "rasterio", "matplotlib", "tensorboard", "sklearn", "xarray", "tqdm")


def test_the_core_needs_no_optional_dependency():
    block = f"import sys\nfor m in {HEAVY}: sys.modules[m] = None\n"
    core = "import multimae_eo; [getattr(multimae_eo, n) for n in multimae_eo.__all__]; print(multimae_eo.MultiMAE)"
    assert "MultiMAE" in run(block + core)


def test_the_core_explains_a_checkpoint(tmp_path):
    """As in `make core`: every extra is absent."""
    multimae_eo.save(MultiMAE(sized("demo")), tmp_path / "model")
    block = f"import sys\nfor m in {HEAVY}: sys.modules[m] = None\n"
    inspect = f"from multimae_eo.cli import main; main(['inspect', {str(tmp_path / 'model')!r}])"
    assert "B04 B03 B02" in run(block + inspect)
