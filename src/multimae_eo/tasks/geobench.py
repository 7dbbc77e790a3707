"""Protocols over GEO-Bench data sets: cells that are run once, a row each, resumable, and tables of them."""

import dataclasses
import hashlib
import itertools
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from multimae_eo import checkpoint
from multimae_eo.data.folders import leaving_nothing, writable
from multimae_eo.data.geobench import PARTITIONS, GeoBench
from multimae_eo.data.geobench_sets import SETS
from multimae_eo.errors import ConfigError, DataError, MultiMAEError, UnknownNameError, reason
from multimae_eo.finetune_options import FinetuneOptim, FinetuneOptions, GeobenchOptions, LabelledOptions, given
from multimae_eo.modalities import INPUT_SETTINGS
from multimae_eo.tasks.evaluate import flat, write_table
from multimae_eo.tasks.features import Extractor, Frozen, Init, extractor, frozen_features
from multimae_eo.tasks.finetune import finetune
from multimae_eo.tasks.kinds import task_for
from multimae_eo.tasks.labels import summarise
from multimae_eo.tasks.probe import NEIGHBOURS, Probe, probe_task, run_probes
from multimae_eo.tasks.report import normalised, read_results, write_report
from multimae_eo.tasks.samples import Setup, notes_of, set_up
from multimae_eo.tasks.task import Task, intervals, undefined
from multimae_eo.tasks.trainer import prepare
from multimae_eo.whole import claimed

PROTOCOLS = ("knn", "linear", "finetune")
INITS = ("pretrained", "random", "band_statistics", "random_convolutions")
# Initialisations whose features depend on the seed.
SEEDED = ("random", "random_convolutions")
METRICS = ("accuracy", "accuracy_macro", "f1_micro", "f1_macro", "map_micro", "miou", "pixel_accuracy")
COLUMNS = (
    *("dataset", "task", "protocol", "setting", "inputs", "bands", "absent_bands", "statistics", "partition", "init"),
    *("checkpoint", "data", "seed", "head", "settings", "metric", "value", "low", "high", "last_value", "normalised"),
    *(f"{name}{end}" for name in METRICS for end in ("", "_low", "_high")),
    *("train_samples", "valid_samples", "test_samples", "notes", "warnings", "seconds", "version", "torch"),
)


@dataclass(frozen=True)
class Cell:
    """One thing to run; what a finished row is known by."""

    dataset: str
    setting: str
    protocol: str
    partition: str
    init: str
    seed: int

    def __str__(self) -> str:
        return f"{self.dataset}, {self.setting}, {self.protocol}, {self.partition}, {self.init}, seed {self.seed}"


def run_geobench(options: GeobenchOptions) -> Path:
    """Run what is not in results.csv yet, and write report.html and report.md; returns the CSV.

    A data set that is not in `data_root` is left out where datasets is all, else an error. A cell that fails on its
    data is named and left out; the others go on.
    """
    with claimed(options.out):
        return _run(options)


def _run(options: GeobenchOptions) -> Path:
    prepare(options.trainer, workers=options.workers)
    results = options.out / "results.csv"
    with leaving_nothing(options.out), leaving_nothing(options.out / "features"):
        options, cells, done, key = begun(options)
        writable(options.out)
        failed = run_cells(cells, done, options, key)
        if not results.exists():
            raise DataError(f"none of {len(cells)} cells could be run. First: {failed[0]}")
    write_report(results, options.out)
    if failed:
        raise DataError(
            f"{len(failed)} of {len(cells)} cells were left out; the others are in '{results}'. First: {failed[0]}"
        )
    return results


def begun(options: GeobenchOptions) -> tuple[GeobenchOptions, list[Cell], set[Cell], str]:
    """The options with the folder of the data, every cell, those that are in the table, the checkpoint's fingerprint.

    Raises ConfigError where there is nothing to run, and as `finished` does; CheckpointError.
    """
    options = dataclasses.replace(options, data_root=data_root_of(options))
    cells, key = list(all_cells(options)), checkpoint.fingerprint(given(options.checkpoint, "checkpoint"))
    if not cells:
        raise ConfigError(
            f"nothing to run: {options.datasets} with protocol {options.protocol}, inputs {options.inputs} and inits "
            f"{options.inits}. k-NN needs one label per image, and baselines too; an input setting needs its bands."
        )
    results = options.out / "results.csv"
    done = finished(results, options, key, set(cells)) if results.exists() else set()
    return options, cells, done, key


def run_cells(cells: Sequence[Cell], done: set[Cell], options: GeobenchOptions, key: str) -> list[str]:
    """Run the cells that are not done, each a row or more of the table; returns what is wrong with those left out."""
    results, left = options.out / "results.csv", [cell for cell in cells if cell not in done]
    print(f"{len(cells)} cells, {len(cells) - len(left)} of them done before.", flush=True)
    began, failed = time.perf_counter(), []
    for number, cell in enumerate(left):
        spent = time.perf_counter() - began
        rest = f", about {spent / number * (len(left) - number) / 60:.0f} min left" if number else ""
        print(f"[{number + 1}/{len(left)}{rest}] {cell}", flush=True)
        try:
            append(results, run_cell(cell, options, key))
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"{number} cells are new in {results}; the same command goes on") from None
        except MultiMAEError as error:
            failed.append(f"{cell}: {reason(error)}")
            print(f"  left out: {reason(error)}", flush=True)
    return failed


def data_root_of(options: GeobenchOptions) -> Path:
    """The folder of the data sets: as given, or as GEO-Bench's own variable says."""
    if options.data_root is not None:
        return options.data_root
    if "GEO_BENCH_DIR" not in os.environ:
        raise ConfigError("--data-root is not set, and neither is the variable GEO_BENCH_DIR; give one of them.")
    return Path(os.environ["GEO_BENCH_DIR"])


def names_in(text: str, known: Sequence[str], what: str) -> tuple[str, ...]:
    """Comma-separated names; raises UnknownNameError."""
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    for name in names:
        if name not in known:
            raise UnknownNameError(what, name, known)
    if not names:
        raise ConfigError(f"name at least one {what}: {', '.join(known)}.")
    return names


def all_cells(options: GeobenchOptions) -> Iterator[Cell]:
    """Every cell of some options, data set by data set; protocols without randomness have one seed."""
    protocols = names_in(options.protocol, PROTOCOLS, "protocol")
    settings = names_in(options.inputs, (*INPUT_SETTINGS, "all"), "input setting")
    inits = names_in(options.inits, INITS, "initialisation")
    partitions = names_in(options.partitions, PARTITIONS, "partition")
    if options.seeds < 1:
        raise ConfigError(f"seeds must be 1 or more; got {options.seeds}.")
    if not 0 <= options.first_seed < 2**32 - options.seeds:
        raise ConfigError(f"first_seed must be 0 or more and below 2^32; got {options.first_seed}.")
    for name, setting in itertools.product(data_sets(options), settings):
        if not feeds(name, setting):
            continue
        for partition, init, protocol in itertools.product(partitions, inits, protocols):
            dense = SETS[name].task == "segmentation"
            trains = protocol == "finetune" or (dense and protocol == "linear")
            if (dense and protocol == "knn") or (init not in ("pretrained", "random") and (trains or dense)):
                continue
            seeds = options.seeds if trains or init in SEEDED else 1
            for seed in range(options.first_seed, options.first_seed + seeds):
                yield Cell(name, setting, protocol, partition, init, seed)


def data_sets(options: GeobenchOptions) -> tuple[str, ...]:
    """The data sets to run: those named, or all that are there."""
    if options.datasets != "all":
        return names_in(options.datasets, tuple(SETS), "GEO-Bench data set")
    root = data_root_of(options)
    there = tuple(name for name, s in SETS.items() if any((root / p / name).is_dir() for p in (s.folder, ".")))
    if not there:
        raise ConfigError(f"data_root '{root}' holds none of the data sets: {', '.join(SETS)}.")
    return there


def feeds(name: str, setting: str) -> bool:
    """Whether a data set can feed every modality of an input setting; "all" fits any."""
    return setting == "all" or INPUT_SETTINGS[setting].fits(layer.band for layer in SETS[name].layers)


def finished(results: Path, options: GeobenchOptions, key: str, wanted: set[Cell]) -> set[Cell]:
    """Which of the wanted cells a table has rows of.

    Raises ConfigError where those are of another checkpoint, of other data or of other settings, DataError for a table
    that is none of this command's.
    """
    rows_of: dict[Cell, set[str]] = {}
    of_any_seed = {dataclasses.replace(cell, seed=0) for cell in wanted}
    for row in read_results(results):
        try:
            protocol = row["protocol"].split("-")[0]
            cell = Cell(row["dataset"], row["setting"], protocol, row["partition"], row["init"], int(row["seed"]))
            known = {"checkpoint": row["checkpoint"], "data": row["data"], **json.loads(row["settings"])["options"]}
        except (KeyError, ValueError, TypeError) as error:
            raise DataError(f"'{results}' is not a table of this command: {error!r}. Give another --out.") from error
        if dataclasses.replace(cell, seed=0) not in of_any_seed:
            continue
        now = {"checkpoint": key, "data": data_key(cell, options), **settings_of(cell, options)}
        if name := next((name for name in now if known.get(name) != now[name]), None):
            raise ConfigError(
                f"'{results}' has a row of {cell} with another {name}: {known.get(name)}, now {now[name]}. "
                "Give another --out."
            )
        rows_of.setdefault(cell, set()).add(row["protocol"])
    return {cell for cell, names in rows_of.items() if cell.protocol != "knn" or len(names) == len(NEIGHBOURS)}


def data_key(cell: Cell, options: GeobenchOptions) -> str:
    """A fingerprint of a cell's images and splits; empty where they cannot be opened, which running it will say."""
    try:
        source = _open(labelled_options(cell, options))
        return hashlib.sha256(repr((source.fingerprint(), sorted(source.ids.items()))).encode()).hexdigest()[:16]
    except MultiMAEError:
        return ""


def settings_of(cell: Cell, options: GeobenchOptions) -> dict[str, Any]:
    """The options that decide the result of a cell beside what names it."""
    data = labelled_options(cell, options)
    facts: dict[str, Any] = {"precision": options.trainer.precision, "allow_leaks": data.allow_leaks}
    facts |= {"ignore_class0": data.ignore_class0, "statistics": data.statistics}
    if cell.protocol == "linear":
        facts["refit_on_valid"] = options.refit_on_valid
    if cell.protocol == "finetune":
        facts |= {"flips": data.flips, **json.loads(json.dumps(dataclasses.asdict(optim_of(cell, options))))}
    return facts


def optim_of(cell: Cell, options: GeobenchOptions) -> FinetuneOptim:
    """How a cell is fine-tuned."""
    return options.finetune_dense if SETS[cell.dataset].task == "segmentation" else options.finetune


def append(results: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add rows to the table, which is replaced at once, so that it can be read at any moment."""
    new = [{name: row.get(name, "") for name in COLUMNS} for row in rows]
    known = {_key(row) for row in new}
    before = [row for row in read_results(results) if _key(row) not in known] if results.exists() else []
    write_table([*before, *new], results)


def _key(row: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in ("dataset", "setting", "protocol", "partition", "init", "seed"))


def labelled_options(cell: Cell, options: GeobenchOptions) -> LabelledOptions:
    """The options of the data of a cell."""
    described = SETS[cell.dataset]
    return LabelledOptions(
        root=options.data_root,
        name=cell.dataset,
        partition=cell.partition,
        ignore_class0=options.ignore_class0 if described.class0_is_no_data else None,
        allow_leaks=options.allow_leaks,
        inputs=list(INPUT_SETTINGS[cell.setting].modalities) if cell.setting != "all" else [],
        workers=options.workers,
    )


def run_cell(cell: Cell, options: GeobenchOptions, key: str) -> list[dict[str, Any]]:
    """The rows of a cell: one, or one per k of k-NN."""
    rows = [finetune_cell(cell, options)] if cell.protocol == "finetune" else probe_cell(cell, options)
    common = {
        **dataclasses.asdict(cell),
        "checkpoint": key,
        "data": data_key(cell, options),
        "version": version("multimae-eo"),
        "torch": torch.__version__,
    }
    return [{**common, **row} for row in rows]


def probe_cell(cell: Cell, options: GeobenchOptions) -> list[dict[str, Any]]:
    """Frozen evaluation; features are made once for all partitions of the training labels."""
    data = labelled_options(cell, options)
    whole = dataclasses.replace(data, partition="default")
    directory = given(options.checkpoint, "checkpoint")
    config = checkpoint.load_config(directory)
    source = _open(data)
    setup = set_up(_open(whole), config, whole)
    made = extractor(setup, directory, cast(Init, cell.init), seed=cell.seed)
    features = features_of(setup, made, source, options)
    labels = summarise(source)
    task = probe_task(source.about, labels, setup.inputs)
    found = run_probes(task, config, features, (cell.protocol,), seed=cell.seed, refit_on_valid=options.refit_on_valid)
    ids = source.ids
    sizes = {f"{split}_samples": len(ids[split]) for split in ids}
    facts = {
        **setup.facts(),
        "notes": notes_of(source),
        **sizes,
        "task": source.about.task,
        "head": "" if cell.protocol == "knn" else task.head,
    }
    return [{**facts, **probe_row(p, task_for(task), labels.warnings, cell, options)} for p in found]


def _open(data: LabelledOptions) -> GeoBench:
    assert data.root is not None
    return GeoBench(
        data.root, data.name, partition=data.partition, ignore_class0=data.ignore_class0, allow_leaks=data.allow_leaks
    )


def features_of(setup: Setup, made: Extractor, source: GeoBench, options: GeobenchOptions) -> dict[Any, Frozen]:
    """Frozen features of a partition: rows of those of the whole data set."""
    folder, found = options.out / "features", {}
    features = frozen_features(setup, made, options.trainer, folder=folder, workers=options.workers)
    for split, frozen in features.items():
        row, ids = {sample_id: i for i, sample_id in enumerate(setup.source.ids[split])}, list(source.ids[split])
        if absent := [i for i in ids if i not in row]:
            raise ConfigError(f"'{source.about.name}': '{absent[0]}' of the partition is not in the default partition.")
        found[split] = frozen if ids == [*row] else frozen.rows(np.array([row[i] for i in ids]))
    return found


def probe_row(
    probe: Probe, task: Task, warnings: Sequence[str], cell: Cell, options: GeobenchOptions
) -> dict[str, Any]:
    """What a probe found, as the columns of a row."""
    metrics = intervals(task, probe.evidence, seed=cell.seed)
    settings = {**probe.settings, "options": settings_of(cell, options)}
    keep_evidence(cell, probe.protocol, probe.evidence, options.out)
    return {
        "protocol": probe.protocol,
        "settings": json.dumps(settings, sort_keys=True),
        "warnings": "; ".join([*warnings, *probe.warnings, *undefined(metrics)]),
        "seconds": round(probe.seconds, 1),
        **scores(cell, task.primary, metrics, options),
    }


def scores(
    cell: Cell, primary: str, metrics: Mapping[str, tuple[float, float, float]], options: GeobenchOptions
) -> dict[str, Any]:
    """The columns of metrics: the primary one, GEO-Bench's normalised score, and all of them.

    The range of the normalised score is that of scores with class 0; without it there is none.
    """
    value, low, high = metrics[primary]
    score = None if labelled_options(cell, options).ignore_class0 else normalised(cell.dataset, value)
    known = {"metric": primary, "value": value, "low": low, "high": high, "normalised": "" if score is None else score}
    return {**known, **flat(dict(metrics))}


def keep_evidence(cell: Cell, protocol: str, evidence: Tensor, out: Path) -> None:
    """Keep what metrics are computed from per test image, for paired comparisons."""
    folder = out / "evidence"
    folder.mkdir(parents=True, exist_ok=True)
    name = "_".join((cell.dataset, cell.setting, protocol, cell.partition, cell.init, str(cell.seed)))
    np.save(folder / f"{name}.npy", evidence.numpy())


def finetune_cell(cell: Cell, options: GeobenchOptions) -> dict[str, Any]:
    """Fine-tuning; the run's folder is made anew where an earlier one was killed."""
    name = "_".join(map(str, dataclasses.astuple(cell)))
    out = options.out / "finetune" / name
    shutil.rmtree(out, ignore_errors=True)
    run = FinetuneOptions(
        checkpoint=options.checkpoint,
        out=out,
        init="pretrained" if cell.init == "pretrained" else "random",
        seed=cell.seed,
        data=labelled_options(cell, options),
        optim=optim_of(cell, options),
        trainer=options.trainer,
    )
    result = finetune(run)
    keep_evidence(cell, cell.protocol, result.best.evidence, options.out)
    settings = {"options": settings_of(cell, options)}
    primary = result.primary
    return {
        "task": SETS[cell.dataset].task,
        "settings": json.dumps(settings, sort_keys=True),
        "last_value": result.last.metrics[primary][0],
        **result.facts,
        **scores(cell, primary, result.best.metrics, options),
    }
