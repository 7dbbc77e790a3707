"""A small share of benchmarks/faults/fuzz.py: damaged files for every reader, of which only our own errors come out."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("h5py")
pytest.importorskip("hypothesis")
pytest.importorskip("lightning")
pytest.importorskip("rasterio")

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "faults" / "fuzz.py"


@pytest.mark.slow
def test_readers_of_files_survive_damage(tmp_path):
    out = tmp_path / "fuzz.json"
    command = [sys.executable, str(SCRIPT), "--inputs", "5000", "--seed", "4", "--json", str(out)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-2000:]
    rows = json.loads(out.read_text())
    assert sum(row["inputs"] for row in rows) >= 4990
    assert all(row["inputs"] == row["accepted"] + row["refused"] for row in rows)
