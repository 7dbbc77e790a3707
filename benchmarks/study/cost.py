"""Question 8: what the paper's full pre-training run on MMEarth64 takes on 1, 4 and 8 H200s, by arithmetic.

    python benchmarks/study/cost.py [--size base] [--batch 16] [--runs 5]

Operations by `benchmarks/step.py`, at half of the bf16 matrix rate of an H200, the goal, and at a quarter; no figure of
a GPU was measured yet. Memory: weights, gradients and the two moments of AdamW in float32, and what autograd keeps in
bf16, measured here with two batches, of a sample and besides. The decoder of land cover is counted as bf16 too, and
runs in float32. Beside it the rate of the same step on this machine. Prints the table and puts it into
docs/results.md, where `law.py` has what the loss does.
"""

import statistics
import sys
import tempfile
from functools import partial
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))
from measure import arguments, interleaved, machine
from show import put, turned
from step import operations, prepared, steps
from study import DOCS

from multimae_eo.config import num_parameters
from multimae_eo.data.packed import Packed
from multimae_eo.options import OptimOptions
from multimae_eo.tasks.pretrain import PretrainTask

TILES, RECIPE = 1_200_000, OptimOptions()  # MMEarth64, about (Nedungadi et al. 2024); the paper's batch and epochs
RATE = 790e12  # bf16 matrix products per second of an H200 on real data: docs/performance.md
WATTS = 700  # of an H200 at most (NVIDIA's data sheet, SXM)
SHARES = (0.5, 0.25)
GPUS = (1, 4, 8)


def kept(task: PretrainTask, given: tuple) -> int:
    """Bytes that autograd keeps between forward and backward in bf16: of the samples, and copies of the weights."""
    weights = {p.untyped_storage().data_ptr() for p in task.parameters()}
    found: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    tensors, mask, _ = given
    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x), torch.autocast("cpu", torch.bfloat16):
        loss = task.totals(tensors, mask)
    del loss
    return sum(found.values())


def main(size: str, batch: int, runs: int) -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as folder:
        task, data = prepared(Path(folder), size, batch)
        encoder, decoders = operations(task.model.config)
        rows = [(0, row) for row in data.rows["train"][:batch].tolist()]
        few, given = (task.begin(data.examples(1).__getitems__(rows[:number])) for number in (batch // 2, batch))
        some, all_of_them = kept(task, few), kept(task, given)
        each = (all_of_them - some) / (batch - batch // 2)
        copies = all_of_them - batch * each
        _, step = steps(task, compiled=False)["eager"]
        seconds = interleaved({"step": partial(step, *given)}, runs=runs, warmup=1)["step"]
        assert isinstance(data.tiles, Packed)
        tile = data.tiles.record.itemsize
    per_sample, samples = 3 * (encoder + decoders), TILES * RECIPE.epochs
    state = 16 * num_parameters(task.model.config)
    here = batch / statistics.median(seconds)
    columns = {
        f"{samples:.2g} samples, {size}": [
            "samples/s, at half of the matrix rate",
            "hours",
            "energy of the GPUs, kWh",
            "hours, at a quarter of it",
            "energy of the GPUs, kWh",
            "memory per GPU, GB",
            "reading, GB/s at half of the rate",
            "reading, TB in all",
        ]
    }
    for count in GPUS:
        cells = []
        for share in SHARES:
            rate = count * share * RATE / per_sample
            hours = samples / rate / 3600
            cells += [f"{rate:,.0f}"] if share == SHARES[0] else []
            cells += [f"{hours:,.1f}", f"{count * WATTS * hours / 1000:,.0f}"]
        memory = state + copies + each * RECIPE.batch_size / count
        fastest = count * SHARES[0] * RATE / per_sample
        cells += [f"{memory / 1e9:.1f}", f"{fastest * tile / 1e9:.1f}", f"{samples * tile / 1e12:,.0f}"]
        columns[f"{count} H200"] = cells
    text = "\n".join(
        [
            turned(columns),
            "",
            f"Per sample: {per_sample / 1e9:.1f} GFLOP, {each / 1e6:.1f} MB kept for the backward pass, "
            f"{tile / 1e3:.1f} KB read.",
            f"Weights, gradients and moments: {state / 1e9:.2f} GB, and {copies / 1e9:.2f} GB of weights in bf16.",
            f"Measured: {here:.3g} samples/s on {machine()}: {samples / here / 3600 / 8766:,.0f} years.",
        ]
    )
    print(text)
    if size == "base":
        put(DOCS / "results.md", "cost", text)


if __name__ == "__main__":
    given = arguments(__doc__, size="base", batch=16, runs=5)
    main(given.size, given.batch, given.runs)
