"""A run that is only planned: its options, and how long it will take, from a few measured steps, or its cells."""

import dataclasses
import resource
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as lightning
import torch
from lightning.pytorch.callbacks import Callback

from multimae_eo import checkpoint
from multimae_eo.finetune_options import FinetuneOptions, GeobenchOptions
from multimae_eo.options import PretrainOptions
from multimae_eo.tasks.finetune import assemble
from multimae_eo.tasks.geobench import begun
from multimae_eo.tasks.run import build, build_trainer
from multimae_eo.tasks.trainer import Machine, as_yaml, make_trainer

# Steps that are measured, after those that warm up.
MEASURED, WARMING = 5, 2


class Measured(NamedTuple):
    """Median seconds of a step, reading included, and the most memory in bytes: of the device, or of this process."""

    seconds: float
    memory: int
    where: str


class Clock(Callback):
    """Notes when steps end."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())


def measure(
    task: lightning.LightningModule, data: lightning.LightningDataModule, machine: Machine, steps: int
) -> Measured:
    """Train for a few steps in this process, on one device, and forget what came of it."""
    number, clock = min(steps, MEASURED + WARMING), Clock()
    with tempfile.TemporaryDirectory() as out:
        trainer = make_trainer(
            machine, out=Path(out), steps=number, val_every=number, log_every=number, loggers=[], callbacks=[clock]
        )
        trainer.limit_val_batches = 0
        began = time.perf_counter()
        trainer.fit(task, datamodule=data)
    device = trainer.strategy.root_device
    first, *others = [began, *clock.ends][min(WARMING, number - 1) :]
    seconds = statistics.median(b - a for a, b in zip([first, *others], others, strict=False))
    if device.type == "cuda":
        return Measured(seconds, torch.cuda.max_memory_allocated(device), "of the device")
    return Measured(seconds, 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, "of this process")


def plan_pretrain(options: PretrainOptions) -> str:
    """The options of pre-training and what they come to; trains a few steps, and writes nothing."""
    quiet = dataclasses.replace(options.trainer, progress=False, loggers=[], panels=0, strategy="ddp")
    task, data = build(options)
    per_epoch, steps = data.per_epoch, options.optim.steps or options.optim.epochs * data.per_epoch
    devices = build_trainer(dataclasses.replace(options, trainer=quiet), task, 1).world_size
    share = max(1, options.optim.batch_size // devices)
    own = dataclasses.replace(options, trainer=quiet, optim=dataclasses.replace(options.optim, batch_size=share))
    task, data_of_one = build(own)
    found = measure(task, data_of_one, quiet, steps)
    config = task.model.config
    tokens = len(config.inputs) * (config.image_size // config.patch_size) ** 2
    return _page(
        options,
        {
            "samples": f"{len(data.rows['train'])} tiles to train on, {len(data.rows['val'])} held out",
            "model": f"{checkpoint.describe(task.model)}; {options.mask.num_visible} of {tokens} tokens visible",
            "steps": f"{steps} of {options.optim.batch_size} samples, {per_epoch} per epoch, on {_devices(devices)}",
        },
        found,
        steps,
        share if devices > 1 else None,
    )


def plan_finetune(options: FinetuneOptions) -> str:
    """The options of fine-tuning and what they come to; trains a few steps, and writes nothing."""
    task, data, setup, _ = assemble(options)
    steps = options.optim.steps or options.optim.epochs * data.per_epoch
    found = measure(task, data, dataclasses.replace(options.trainer, progress=False), steps)
    sizes = ", ".join(f"{len(ids)} {split}" for split, ids in setup.source.ids.items())
    about = setup.source.about
    return _page(
        options,
        {
            "samples": f"{about.name}, {about.task}: {sizes}",
            "model": f"{checkpoint.describe(task.model)}; {', '.join(setup.inputs)}; head {task.model.task.head}",
            "steps": f"{steps} of {data.batch_size} samples, {data.per_epoch} per epoch, on one device",
        },
        found,
        steps,
        None,
    )


def plan_geobench(options: GeobenchOptions) -> str:
    """The options of a protocol and what it comes to: how many cells of each data set, and which are done."""
    found, cells, done, _ = begun(options)
    rows = {"cells": f"{len(cells)}, {len(done)} of them done"}
    for name in dict.fromkeys(cell.dataset for cell in cells):
        own = Counter(cell.protocol for cell in cells if cell.dataset == name)
        rows[name] = ", ".join(f"{protocol} {number}" for protocol, number in own.items())
    rows["writes"] = f"{options.out}; nothing yet"
    width = max(map(len, rows)) + 1
    return "\n".join([as_yaml(found), "Plan", *(f"  {name:<{width}}{text}" for name, text in rows.items())])


def _page(options: Any, facts: dict[str, str], found: Measured, steps: int, share: int | None) -> str:
    """The text of a plan."""
    hours = found.seconds * steps / 3600
    time_needed = f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.1f} minutes"
    of = "" if share is None else f", {share} samples on one of the devices"
    facts = facts | {
        "measured": f"{found.seconds:.3g} s per step (median of {MEASURED}, reading included{of})",
        "time": f"{time_needed}, without validation and pictures",
        "memory": f"{found.memory / 1e9:.2f} GB {found.where} at most",
        "writes": f"{options.out}; nothing yet",
    }
    rows = [f"  {name:<10}{text}" for name, text in facts.items()]
    return "\n".join([as_yaml(options), "Plan", *rows])


def _devices(number: int) -> str:
    return "one device" if number == 1 else f"{number} devices"
