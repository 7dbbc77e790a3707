"""One run in one process, in several (DDP and FSDP over gloo), and in parts: equal losses and predictions.

    python benchmarks/scaling.py [--json FILE] [--steps 50] [--runs ddp:2,ddp:4,fsdp:2,parts:4] [--batch 8]

`parts:4` is one process that works through each batch in four parts (optim.micro_batches).

Every third tile has no elevation, every fourth no land cover, every fifth no optical image, so that the counts of a
loss differ from process to process. Weights are compared but for the biases of keys, whose gradient is rounding noise
that Adam amplifies, and which change no output. About 20 s per process on one core each.
"""

import csv
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import torch
from measure import Table, arguments

import multimae_eo
from multimae_eo.data.layout import ARRAYS
from multimae_eo.data.packed import open_tiles
from multimae_eo.data.synthetic import generate
from multimae_eo.masking import place_mask
from multimae_eo.options import DataOptions, MaskOptions, PretrainOptions
from multimae_eo.tasks.examples import VALIDATE, ExampleSource, Prepare

VISIBLE = 49


def main(steps: int, several: list[str], batch: int, path: Path | None) -> None:
    """Print the table."""
    table = Table(f"{steps} steps of {batch} samples, some of which lack modalities, against one process")
    with tempfile.TemporaryDirectory() as folder:
        world = generate(folder, tiles=80, val_fraction=0.2)
        take_out(world / f"{world.name}.h5")
        runs = {}
        for name in ("ddp:1", *several):
            strategy, number = name.split(":")
            out = Path(folder) / name.replace(":", "")
            began = time.perf_counter()
            train(world, out, strategy, int(number), steps, batch)
            table.value(f"{name}: seconds, starting included", time.perf_counter() - began, "s")
            runs[name] = losses(out), predictions(out, world), weights(out)
        for name in several:
            for what, one, other in zip(("losses", "predictions", "weights"), runs["ddp:1"], runs[name], strict=True):
                table.value(f"{name}: largest difference of {what}, over their scale", apart(one, other), "")
    table.finish(path)


def take_out(path: Path) -> None:
    """Remove arrays from some tiles."""
    with h5py.File(path, "r+") as file:
        for every, name in ((3, "aster"), (4, "esa_worldcover"), (5, "sentinel2")):
            file[name][every - 1 :: every] = ARRAYS[name].missing


def train(world: Path, out: Path, strategy: str, processes: int, steps: int, batch: int) -> None:
    """Pre-train with the command line."""
    parts = processes if strategy == "parts" else 1
    options = {
        "optim.micro_batches": parts,
        "data.root": world,
        "data.workers": 0,
        "out": out,
        "model.size": "demo",
        "mask.short_samples": "mask",
        "optim.batch_size": batch,
        "optim.steps": steps,
        "optim.warmup_steps": 5,
        "optim.lr": 0.01,
        "trainer.accelerator": "cpu",
        "trainer.devices": processes // parts,
        "trainer.strategy": "ddp" if parts > 1 else strategy,
        "trainer.threads": 1,
        "trainer.val_every": steps,
        "trainer.save_every": steps,
        "trainer.log_every": 1,
        "trainer.panels": 0,
        "trainer.progress": "false",
        "trainer.loggers": "[]",
    }
    command = [sys.executable, "-m", "multimae_eo.cli", "pretrain", *(f"--{k}={v}" for k, v in options.items())]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def losses(out: Path) -> dict[str, torch.Tensor]:
    """The curves of a run."""
    with open(out / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    names = [name for name in rows[0] if "/" in name and name not in ("train/lr", "train/grad_norm")]
    return {name: torch.tensor([float(row[name]) for row in rows if row[name]]) for name in names}


def predictions(out: Path, world: Path) -> dict[str, torch.Tensor]:
    """What the trained model makes of some validation tiles."""
    model = multimae_eo.load_model(out / "checkpoint")
    tiles = open_tiles(world, list(model.config.modalities.values()))
    options = PretrainOptions(data=DataOptions(root=world), mask=MaskOptions(short_samples="mask"))
    source = ExampleSource(tiles, model.config, options, VALIDATE)
    rows = tiles.splits(val_fraction=0.2)["val"][:8].tolist()
    examples = source.__getitems__([(0, row) for row in rows])
    batch = Prepare(model.config)(examples.batch, examples.window)
    mask = place_mask(model.encoder.valid_tokens(batch), examples.noise, VISIBLE, keys=True)
    with torch.no_grad():
        return model(batch, mask)


def weights(out: Path) -> dict[str, torch.Tensor]:
    """The weights, without the biases of keys."""
    found = {}
    for name, tensor in multimae_eo.load_model(out / "checkpoint").state_dict().items():
        parts = 3 if name.endswith("qkv.bias") else 2 if name.endswith("kv.bias") else 0
        found[name] = torch.cat([*tensor.chunk(parts)[: parts - 2], tensor.chunk(parts)[-1]]) if parts else tensor
    return found


def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest difference of any tensor, over its largest value or 1."""
    differences = [(a - other[n]).abs().max() / max(1.0, float(a.abs().max())) for n, a in one.items() if a.numel()]
    return float(np.max(differences))


if __name__ == "__main__":
    given = arguments(__doc__, steps=50, runs="ddp:2,ddp:4,fsdp:2,parts:4", batch=8)
    main(given.steps, given.runs.split(","), given.batch, given.json)
