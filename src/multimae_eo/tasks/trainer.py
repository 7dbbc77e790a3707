"""Lightning's Trainer as every run here uses it: one pass over a stream of steps, user errors instead of its own."""

import dataclasses
import json
import logging
import math
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import lightning.pytorch as lightning
import torch
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, Checkpoint, TQDMProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import Strategy

from multimae_eo.data.folders import writable
from multimae_eo.errors import ConfigError
from multimae_eo.whole import written


class Machine(Protocol):
    """Where to run: what the options of all runs have in common."""

    accelerator: str
    threads: int | None
    precision: Literal["32-true", "bf16-mixed"]
    progress: bool


def make_trainer(
    run: Machine,
    *,
    out: Path,
    steps: int,
    val_every: int,
    log_every: int,
    loggers: Sequence[Logger],
    callbacks: Sequence[Callback],
    devices: int | str = 1,
    nodes: int = 1,
    strategy: Strategy | str = "auto",
) -> lightning.Trainer:
    """A Trainer for one pass over a stream of `steps` batches, validating every `val_every`; raises ConfigError."""
    quiet()
    bar: list[Callback] = []
    if run.progress:
        often = log_every // 5 if sys.stdout.isatty() else min(val_every, steps) // 10  # a log file needs fewer lines
        bar = [TQDMProgressBar(refresh_rate=max(1, often))]
    try:
        return lightning.Trainer(
            accelerator=run.accelerator,
            devices=devices,
            num_nodes=nodes,
            strategy=strategy,
            precision=run.precision,
            max_steps=steps,
            max_epochs=1,
            val_check_interval=min(val_every, steps),
            num_sanity_val_steps=0,
            log_every_n_steps=log_every,
            logger=list(loggers),
            callbacks=[*callbacks, *bar],
            enable_checkpointing=any(isinstance(c, Checkpoint) for c in callbacks),
            use_distributed_sampler=False,
            enable_progress_bar=run.progress,
            enable_model_summary=False,
            default_root_dir=out,
        )
    except (MisconfigurationException, RuntimeError, ValueError, TypeError) as error:  # RuntimeError: under SLURM
        what = f"accelerator '{run.accelerator}', devices {devices}, nodes {nodes}"
        raise ConfigError(f"trainer: {what} cannot be used here: {str(error).splitlines()[0]}") from error


class Begun(Callback):
    """Clears the names of files that a failure removes, once a step is done: from then on they are worth keeping."""

    def __init__(self, new: list[str]):
        self.new = new

    def on_train_batch_end(self, *_: Any) -> None:
        self.new.clear()


def prepare(run: Machine, *, workers: int) -> None:
    """Set the threads of torch, and check where to run; raises ConfigError."""
    if run.threads is not None and run.threads < 1:
        raise ConfigError(f"trainer.threads must be 1 or more; got {run.threads}.")
    if workers < 0:
        raise ConfigError(f"workers must be 0 or more; got {workers}.")
    if run.threads is not None:
        torch.set_num_threads(run.threads)


def quiet() -> None:
    """Silence what Lightning says that is not about this run: tips, devices, and advice that does not apply here."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",  # data.workers is the user's choice
        ".*is smaller than the logging interval.*",  # short runs log less
        ".*your dataloader is not resumable.*",  # its batches are a function of the step, and it skips those done
        ".*It is recommended to use .*sync_dist=True.*",  # figures are summed over devices before they are logged
        ".*WeightAveraging doesn't support sharding.*",  # `build` keeps the two apart
        ".*LeafSpec.* is deprecated.*",  # lightning 2.6 with torch 2.13
        ".*loading a checkpoint outside the 'fit' stage.*",  # validation of a resumed moving average
    ):
        warnings.filterwarnings("ignore", message=message)


def as_yaml(options: Any) -> str:
    """The options of a run, as `--config` takes them."""
    content = json.loads(json.dumps(dataclasses.asdict(options), default=str))
    content.pop("dry_run", None)  # no property of a run
    return yaml.safe_dump(content, sort_keys=False)


def write_options(options: Any, out: Path) -> None:
    """Keep the options of a run beside what comes of it; `--config OUT/config.yaml` repeats the run."""
    writable(out)
    try:
        (out / "config.yaml").write_text(as_yaml(options))
    except OSError as error:
        raise ConfigError(f"'{out}' is no folder that can be written: {error.strerror}. Give another one.") from error


def write_json(content: object, path: Path) -> None:
    """Write JSON; it appears under its name only when complete."""
    with written(path) as partial:
        partial.write_text(json.dumps(without_nan(content), indent=1) + "\n")


def without_nan(content: Any) -> Any:
    """JSON-ready content in which a number that is none is null."""
    if isinstance(content, dict):
        return {name: without_nan(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [without_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
