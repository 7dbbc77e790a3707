"""Evaluation of fine-tuned models: over a split, with all modalities, without some, or over every subset of them."""

import csv
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from multimae_eo import checkpoint
from multimae_eo.data.folders import leaving_nothing, writable
from multimae_eo.data.labelled import Labelled, SplitName
from multimae_eo.errors import ConfigError, DataError, UnknownNameError
from multimae_eo.finetune_options import EvaluateOptions, MachineOptions, labelled_from_json
from multimae_eo.modalities import fed_by
from multimae_eo.predictor import Predictor
from multimae_eo.raster import Batch, Raster
from multimae_eo.tasks.kinds import task_for
from multimae_eo.tasks.samples import LabelledExample, Setup, in_order, notes_of, open_source
from multimae_eo.tasks.task import Task, intervals
from multimae_eo.tasks.trainer import prepare
from multimae_eo.whole import written

Metrics = dict[str, tuple[float, float, float]]


@dataclass(frozen=True)
class Evaluation:
    """What one evaluation found: {metric: (value, low, high)} and the evidence of every sample."""

    metrics: Metrics
    evidence: Tensor


def device_of(run: MachineOptions) -> torch.device:
    """The device that the options of a run mean outside of a Trainer."""
    if run.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return torch.device("cuda")
    if run.accelerator in ("gpu", "cuda"):
        raise ConfigError(f"trainer.accelerator is '{run.accelerator}', but torch finds no GPU here.")
    if run.accelerator not in ("auto", "cpu"):
        raise ConfigError(f"trainer.accelerator is '{run.accelerator}'; expected auto, cpu or gpu.")
    return torch.device("cpu")


def to_device(example: LabelledExample, device: torch.device) -> LabelledExample:
    """The example on another device."""
    batch = {name: Raster(*(part.to(device) for part in raster)) for name, raster in example.batch.items()}
    return LabelledExample(batch, example.label.to(device), example.known.to(device), example.row)


def batches(
    setup: Setup, split: SplitName, run: MachineOptions, *, workers: int, what: str
) -> Iterator[LabelledExample]:
    """All images of a split on the device, with a progress bar."""
    device, loader = device_of(run), in_order(setup, split, 64, workers)
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=run.precision == "bf16-mixed"):
        for examples in tqdm(loader, desc=what, disable=not run.progress, leave=False):
            for example in examples:
                yield to_device(example, device)


def keep_only(batch: Batch, keep: Sequence[str]) -> Batch:
    """The batch without other modalities."""
    return {name: raster for name, raster in batch.items() if name in keep}


def evidence_of(
    model: Predictor,
    task: Task,
    setup: Setup,
    split: SplitName,
    run: MachineOptions,
    *,
    workers: int,
    subsets: Sequence[Sequence[str]] | None = None,
) -> list[Tensor]:
    """The evidence of a split for each subset of the inputs, in the order of its ids; the images are read once."""
    subsets = [setup.inputs] if subsets is None else subsets
    model.to(device_of(run)).eval()
    parts: list[list[Tensor]] = [[] for _ in subsets]
    rows: list[Tensor] = []
    for example in batches(setup, split, run, workers=workers, what=f"evaluating {split}"):
        known = example.known.cpu()
        rows.append(torch.as_tensor(example.row)[known if known.ndim == 1 else ...])
        for part, keep in zip(parts, subsets, strict=True):
            predicted = model(keep_only(example.batch, keep)).float()
            if model.task.dense:
                height, width = example.label.shape[-2:]
                predicted = predicted[..., :height, :width]
            part.append(task.evidence(predicted, example.label, example.known))
    order = torch.cat(rows).argsort()
    return [torch.cat(part)[order] for part in parts]


def subsets_of(options: EvaluateOptions, inputs: Sequence[str]) -> list[tuple[str, ...]]:
    """Which modalities each row of the table is evaluated with: all of them first."""
    for name in options.drop:
        if name not in inputs:
            raise UnknownNameError("modality of this model to drop", name, inputs)
    kept = tuple(name for name in inputs if name not in options.drop)
    if not kept:
        raise ConfigError(f"--drop leaves no modality; the model has {', '.join(inputs)}.")
    if options.all_subsets:
        return [c for n in range(len(kept), 0, -1) for c in itertools.combinations(kept, n)]
    return [tuple(inputs), kept] if options.drop else [tuple(inputs)]


def evaluate(options: EvaluateOptions, source: Labelled | None = None) -> list[dict[str, Any]]:
    """One row per subset of the modalities, with metrics and their 95 % bootstrap intervals over images.

    source: the data, where they are not those that the checkpoint was fine-tuned on.
    """
    model = checkpoint.load_predictor(options.checkpoint)
    extra = checkpoint.read_content(options.checkpoint).get("extra", {})
    if source is None and not extra.get("data"):
        raise ConfigError(
            f"'{options.checkpoint}' does not say where its data are: it was fine-tuned from Python on data of "
            "your own. Evaluate it from Python too: evaluate(options, source)."
        )
    data = labelled_from_json(extra.get("data", {}), f"'{options.checkpoint}', entry 'extra.data'")
    if options.root is not None:
        data.root = options.root
    prepare(options.trainer, workers=data.workers)
    setup = set_up_like(model, source or open_source(data))
    with leaving_nothing(options.out.parent if options.out is not None else Path()):
        if options.out is not None:
            writable(options.out.parent)
            if options.out.is_dir():
                raise ConfigError(f"--out {options.out} is a folder; name a CSV file.")
        rows = rows_of(model, setup, options, data.workers)
    if options.out is not None:
        write_table(rows, options.out)
    return rows


def rows_of(model: Predictor, setup: Setup, options: EvaluateOptions, workers: int) -> list[dict[str, Any]]:
    """The rows of `evaluate`."""
    task = task_for(model.task)
    chosen = subsets_of(options, setup.inputs)
    found = evidence_of(model, task, setup, options.split, options.trainer, workers=workers, subsets=chosen)
    rows = []
    for keep, evidence in zip(chosen, found, strict=True):
        if not len(evidence):
            raise DataError(
                f"'{setup.source.about.name}', split '{options.split}': no label is known; nothing to evaluate."
            )
        row = {"inputs": "+".join(keep), "dropped": "+".join(n for n in setup.inputs if n not in keep)}
        facts = {"dataset": setup.source.about.name, "split": options.split, "notes": notes_of(setup.source)}
        rows.append({**row, **facts, "samples": len(evidence), **flat(intervals(task, evidence, seed=options.seed))})
    return rows


def set_up_like(model: Predictor, source: Labelled) -> Setup:
    """The data as a fine-tuned model was trained on them: its inputs, its statistics, its classes."""
    about = source.about
    known, own = [c.name for c in model.task.classes], [c.name for c in about.classes]
    if (about.task, about.unit, own) != (model.task.task, model.task.unit, known):
        raise ConfigError(
            f"the model predicts {model.task.task} of {known or model.task.unit}, but '{about.name}' is {about.task} "
            f"of {own or about.unit}."
        )
    shared = fed_by(about.bands, {name: model.config.modalities[name] for name in model.task.inputs})
    if not shared:
        raise ConfigError(
            f"'{about.name}' has the bands {' '.join(about.bands)}, none of those that the model was fine-tuned on "
            f"({', '.join(model.task.inputs)})."
        )
    products = {name: model.config.modalities[name].products.index(model.task.products[name]) for name in shared}
    return Setup(source, model.config, shared, products)


def flat(metrics: Metrics) -> dict[str, float]:
    """Columns NAME, NAME_low and NAME_high."""
    return {
        f"{name}{end}": value
        for name, values in metrics.items()
        for end, value in zip(("", "_low", "_high"), values, strict=True)
    }


def write_table(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write rows as a CSV, which appears under its name only when complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written(path) as partial, open(partial, "w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)), restval="")
        writer.writeheader()
        writer.writerows(rows)


def table_in_words(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a table: inputs, then every metric with its interval."""
    names = [n for n in rows[0] if f"{n}_low" in rows[0]]
    width = max(len(row["inputs"]) for row in rows)
    lines = [f"{'inputs':{width}}  " + "  ".join(f"{name:>24}" for name in names)]
    for row in rows:
        cells = (f"{row[n]:.3f} ({row[f'{n}_low']:.3f} to {row[f'{n}_high']:.3f})" for n in names)
        lines.append(f"{row['inputs']:{width}}  " + "  ".join(f"{cell:>24}" for cell in cells))
    return "\n".join(lines)
