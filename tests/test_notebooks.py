"""The notebooks: valid, without outputs, importing little; and they run, from an empty folder."""

import ast
import re
import sys
import time

import pytest
from conftest import ROOT

nbformat = pytest.importorskip("nbformat", reason="notebooks are read with nbformat: pip install nbformat")

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
MAY_IMPORT = {"multimae_eo", "torch", "numpy", "matplotlib", "xarray", "rasterio"}
# What a step that several notebooks share is recognised by; it must be the same in all, as they reuse what it leaves.
SHARED = ("generate(", "pretrain(", "generate_downstream(", "segmentation = ")
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code(path):
    """The code cells of a notebook, as text."""
    return [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def imported(text):
    """The packages that some code imports."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").split(".")[0]


def test_there_are_notebooks():
    assert {path.stem for path in NOTEBOOKS} == {"first_look", "fine_tune", "map_a_scene"}


@each
def test_valid_and_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert path.stat().st_size < 50_000
    for cell in notebook.cells:
        assert not cell.metadata
        if cell.cell_type == "code":
            assert not cell.outputs
            assert cell.execution_count is None


@each
def test_code_compiles_and_imports_little(path):
    cells = code(path)
    for i, text in enumerate(cells):
        compile(text, f"{path.name}, code cell {i}", "exec")
        assert max(len(line) for line in text.splitlines()) <= 120
    assert set(imported("\n\n".join(cells))) <= MAY_IMPORT | set(sys.stdlib_module_names)


@each
def test_every_link_leads_somewhere(path):
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            for link in re.findall(r"\]\((?!http)([^)]+)\)", cell.source):
                assert (path.parent / link).exists(), link


@pytest.mark.parametrize("step", SHARED)
def test_shared_steps_are_the_same(step):
    word = rf"(?m)^\s*{re.escape(step)}"
    found = {text for path in NOTEBOOKS for text in code(path) if re.search(word, text)}
    assert len(found) == 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Empty at first; the steps that notebooks share, which are the same in all, run once."""
    return tmp_path_factory.mktemp("notebooks")


@pytest.mark.slow
@each
def test_runs(path, folder, capsys):
    nbclient = pytest.importorskip("nbclient", reason="notebooks are executed with nbclient: pip install nbclient")
    pytest.importorskip("ipykernel", reason="notebooks are executed with ipykernel: pip install ipykernel")
    notebook = nbformat.read(path, as_version=4)
    where = {"metadata": {"path": str(folder)}}
    began = time.perf_counter()
    nbclient.NotebookClient(notebook, timeout=500, kernel_name="python3", resources=where).execute()
    with capsys.disabled():
        print(f"\n{path.name}: {time.perf_counter() - began:.0f} s")
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 5
    spoken = "".join(output.text for output in outputs if output.get("name") == "stderr")
    assert "multimae_eo" not in spoken  # a warning of our own
