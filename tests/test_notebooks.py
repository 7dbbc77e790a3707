"""The notebooks run, one after the other from an empty folder, and are stored without what they print."""

import ast
import json
import sys

import pytest
from conftest import ROOT

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
# What `pip install "multimae-eo[all]"` brings.
BROUGHT = {"multimae_eo", "torch", "numpy", "matplotlib", "xarray", "rasterio", *sys.stdlib_module_names}


def cells(path, kind):
    return ["".join(c["source"]) for c in json.loads(path.read_text())["cells"] if c["cell_type"] == kind]


def test_there_are_three():
    assert {p.stem for p in NOTEBOOKS} == {"first_look", "fine_tune", "map_a_scene"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_stored_without_outputs_and_with_what_is_brought_only(path):
    content = json.loads(path.read_text())
    assert content["nbformat"] == 4
    for cell in content["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
    for code in cells(path, "code"):
        for node in ast.walk(ast.parse(code)):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            assert {name.split(".")[0] for name in names} <= BROUGHT
    assert cells(path, "markdown")[0].startswith("# ")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Empty at first; what one notebook has made, the next finds, as for a reader who goes through them."""
    return tmp_path_factory.mktemp("notebooks")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["first_look", "fine_tune", "map_a_scene"])
def test_runs(name, folder):
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(ROOT / "docs" / "notebooks" / f"{name}.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    pictures = [o for c in notebook.cells for o in c.get("outputs", []) if "image/png" in o.get("data", {})]
    assert len(pictures) >= 4
