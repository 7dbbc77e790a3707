"""The benchmarks run at demo size, and what does not depend on the machine is right."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("h5py")
pytest.importorskip("lightning")

from multimae_eo.config import sized
from multimae_eo.layers import Attention
from multimae_eo.model import MultiMAE

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
KEYS = {"name", "value", "unit", "rival", "ratio", "target"}


def run(name: str, out: Path, *arguments: str) -> dict[str, dict]:
    """The rows of a benchmark, by name."""
    path = out / f"{name}.json"
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), "--json", str(path), *arguments]
    environment = {**os.environ, "MULTIMAE_EO_UNCHECKED": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads(path.read_text())
    assert all(row.keys() >= KEYS for row in rows)
    assert path.with_suffix(".md").read_text().strip() in done.stdout
    return {row["name"]: row for row in rows}


@pytest.mark.slow
def test_the_step_and_its_operations(tmp_path):
    rows = run("step", tmp_path, "--size", "demo", "--batch", "4", "--runs", "2", "--compile", "0", "--device", "cpu")
    assert rows["step, eager"]["value"] > 0
    assert rows["peak memory of the device"]["value"] is None  # left open, not guessed
    assert rows["whole loop"]["ratio"] > 0
    # The operations of a sample, against what torch counts for the products of a real step.
    sys.path.insert(0, str(BENCHMARKS))
    from step import operations

    encoder, decoders = operations(sized("base"))
    assert 3 * (encoder + decoders) == pytest.approx(27e9, rel=0.03)
    assert rows["operations per sample, forward and backward"]["value"] == pytest.approx(
        3 * sum(operations(sized("demo"))) / 1e9
    )


def test_operations_are_those_that_torch_counts():
    """Of a forward pass; what we leave out, products with one-hot matrices and chosen patches, is less than 3 %."""
    sys.path.insert(0, str(BENCHMARKS))
    from batches import random_batch
    from step import operations
    from torch.utils.flop_counter import FlopCounterMode

    from multimae_eo.masking import mask_from_hidden

    config = sized("tiny", depth=2)
    model, batch = MultiMAE(config).eval(), random_batch(config, size=2)
    hidden = torch.ones(2, 294, dtype=torch.bool)
    hidden[:, ::6] = False
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(batch, mask_from_hidden(hidden.unflatten(1, (6, 49))))
    # Attention on the CPU is not counted by torch: per block and sample 4 n^2 d.
    attention = sum(4 * 50 * 50 * config.dim for m in model.encoder.modules() if isinstance(m, Attention))
    attention += len(config.targets) * (config.decoder_depth * 4 * 49 * 49 + 4 * 49 * 50) * config.decoder_dim
    counted = counter.get_total_flops() / 2
    ours = sum(operations(config))
    assert min(abs(ours - counted), abs(ours - counted - attention)) < 0.03 * ours


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_memory_of_a_worker(tmp_path):
    rows = run("memory", tmp_path, "--samples", "2400", "--tiles", "60", "--batch", "12")
    for name in ("packed", "HDF5"):
        assert rows[f"{name}: most, over that after a tenth"]["value"] < 1.1


@pytest.mark.slow
def test_processes_change_no_number(tmp_path):
    several = ("ddp:2", "fsdp:2", "parts:4")  # four processes, and 50 steps: the benchmark itself
    rows = run("scaling", tmp_path, "--steps", "15", "--runs", ",".join(several))
    for name in several:
        for what in ("losses", "predictions", "weights"):
            assert rows[f"{name}: largest difference of {what}, over their scale"]["value"] < 1e-5


@pytest.mark.slow
def test_maps_are_exact_and_their_memory_does_not_grow(tmp_path):
    pytest.importorskip("rio_cogeo")
    small = ["--size", "400", "--model", "demo", "--patch", "8", "--tile", "56", "--steps", "8"]
    rows = run("maps", tmp_path, *small)
    assert rows["blended tiles of a convolution against one big tile"]["value"] < 1e-4
    assert rows["blended: across borders of tiles, over that"]["value"] > 0
    assert rows["memory for twice the area, over that for half"]["value"] < 1.05
    assert rows["rio-cogeo accepts the map (1: yes)"]["value"] == 1
    assert rows["mapping, without the file"]["ratio"] > 0
