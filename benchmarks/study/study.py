"""What the studies share: worlds, models that are trained on them, what is measured of each, and the records of it.

A model is an `Arm`, what differs from the paper's recipe, trained with a seed. Seed s means world s, labelled worlds s,
initialisation, order and masks s, so that two arms differ in nothing else, and their difference is taken per seed.
What was measured goes into records/models.jsonl, a line per arm and seed, and nothing that stands there is done again:
studies share their models, and their tables can be printed without training.
"""

import argparse
import dataclasses
import hashlib
import json
import multiprocessing
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from multimae_eo import checkpoint
from multimae_eo.data.geobench import GeoBench
from multimae_eo.data.labelled import SPLITS, Label, Sample
from multimae_eo.data.packing import pack
from multimae_eo.data.synthetic import SHIFTED, generate, generate_downstream
from multimae_eo.data.tiles import INDEX
from multimae_eo.finetune_options import LabelledOptions, MachineOptions
from multimae_eo.losses import ViewLosses, reconstruction_losses
from multimae_eo.modalities import INPUT_SETTINGS, PAPER_INPUTS, get_modality, parse_view
from multimae_eo.options import PretrainOptions, demo_options
from multimae_eo.tasks.features import extractor, frozen_features
from multimae_eo.tasks.kinds import task_for
from multimae_eo.tasks.labels import summarise
from multimae_eo.tasks.probe import probe_task, run_probes
from multimae_eo.tasks.run import build, run
from multimae_eo.tasks.samples import set_up
from multimae_eo.whole import written

RECORDS = Path(__file__).parent / "records" / "models.jsonl"
DATASET = "synthetic-class"
PARTITIONS = ("0.01x", "0.10x", "1.00x")
# The learning rate per 256 tiles of each size; the demo's was chosen for it (LOG.md), the others scale with the width.
RATES = {"demo": 1.6e-2, "tiny": 8e-3, "small": 4e-3, "base": 2e-3}


@dataclass(frozen=True)
class Budget:
    """What every model of a study gets: its size, tiles to learn from, steps, and labelled tiles to be judged by."""

    size: str = "demo"
    tiles: int = 20_000
    steps: int = 1_000
    batch: int = 32
    labelled: int = 3_000
    shifted: int = 1_500

    def words(self) -> str:
        """In a caption."""
        return f"{self.size}, {self.steps:,} steps of {self.batch} of {self.tiles:,} tiles"


@dataclass(frozen=True)
class Arm:
    """A way to pre-train: its name, and the options in which it differs from the paper's recipe at the same budget.

    Beside options, "faults" names those of faults.py.
    """

    name: str
    changes: Mapping[str, Any] = field(default_factory=dict)


PAPER = Arm("paper")


@dataclass(frozen=True)
class Place:
    """Where a study works: folder, records, processes, device."""

    work: Path
    records: Path = RECORDS
    jobs: int = 2
    accelerator: str = "cpu"


def world(place: Place, budget: Budget, seed: int, *, workers: int = 1) -> Path:
    """The tiles that the models of a seed learn from, packed."""
    folder = place.work / f"world{seed}-{budget.tiles}"
    packed = folder / "packed" / "synthetic"
    if not (packed / f"synthetic{INDEX}").exists():
        plain = folder / "synthetic"
        if not plain.exists():
            generate(folder, tiles=budget.tiles, seed=seed, workers=workers)
        pack(plain, folder / "packed", [get_modality(parse_view(v).modality) for v in PAPER_INPUTS])
    return packed


class Kept:
    """A labelled world (a `Labelled`), read once: one file per sample takes longer to open than to look at."""

    def __init__(self, root: Path, partition: str):
        self.source = source = GeoBench(root, DATASET, partition=partition)
        self.about, self.ids, folder = source.about, source.ids, root / "kept"
        names = [name for split in SPLITS for name in GeoBench(root, DATASET).ids[split]]
        self.row = {name: i for i, name in enumerate(names)}
        if not (folder / "labels.npy").exists():
            folder.mkdir(parents=True, exist_ok=True)
            samples = [source.read(name) for name in names]
            np.save(folder / "values.npy", np.stack([s.values for s in samples]))
            np.save(folder / "valid.npy", np.stack([s.valid for s in samples]))
            with written(folder / "labels.npy") as partial, open(partial, "wb") as file:
                np.save(file, np.stack([s.label.values for s in samples]))
        self.values, self.valid = (np.load(folder / f"{n}.npy", mmap_mode="r") for n in ("values", "valid"))
        self.labels = np.load(folder / "labels.npy")

    def read(self, sample_id: str) -> Sample:
        """As `Labelled.read`."""
        row = self.row[sample_id]
        return Sample(np.array(self.values[row]), np.array(self.valid[row]), self.label(sample_id))

    def label(self, sample_id: str) -> Label:
        """As `Labelled.label`."""
        values = self.labels[self.row[sample_id]]
        return Label(values, np.ones(values.shape, bool))

    def statistics(self) -> Mapping[str, tuple[float, float]]:
        """As `Labelled.statistics`."""
        return self.source.statistics()

    def fingerprint(self) -> str:
        """As `Labelled.fingerprint`."""
        return self.source.fingerprint()


def labelled(place: Place, budget: Budget, seed: int, *, shifted: bool, partition: str = "1.00x") -> Kept:
    """The labelled world of a seed, or the shifted one."""
    tiles = budget.shifted if shifted else budget.labelled
    folder = place.work / f"labelled{'-shifted' if shifted else ''}{seed}-{tiles}"
    if not (folder / "classification_v1.0" / DATASET).exists():
        generate_downstream(folder, tiles=tiles, seed=seed + SHIFTED * shifted, workers=1, sets=(DATASET,))
    return Kept(folder, partition)


def shifted_tiles(place: Place, budget: Budget) -> Path:
    """Tiles of a shifted world to measure reconstruction on, the same for all models; half of them are."""
    folder = place.work / "shifted"
    if not (folder / "synthetic").exists():
        generate(folder, tiles=min(1000, budget.tiles), seed=SHIFTED + 10**6, val_fraction=0.5, workers=1)
    return folder / "synthetic"


def options_of(arm: Arm, place: Place, budget: Budget, seed: int) -> PretrainOptions:
    """How an arm is pre-trained."""
    options = demo_options()
    options.seed, options.out, options.resume = seed, place.work / "models" / f"{key_of(arm, budget)}-{seed}", True
    options.model.size = cast(Any, budget.size)
    options.data.root, options.data.workers, options.data.val_tiles = world(place, budget, seed), 0, 512
    options.optim.steps, options.optim.batch_size, options.optim.lr = budget.steps, budget.batch, RATES[budget.size]
    options.optim.warmup_steps = max(1, budget.steps // 15)
    machine = options.trainer
    machine.accelerator, machine.progress, machine.panels, machine.loggers = place.accelerator, False, 0, []
    machine.val_every = machine.save_every = budget.steps
    for name, value in arm.changes.items():
        if name == "faults":
            continue
        *path, last = name.split(".")
        section: Any = options
        for part in path:
            section = getattr(section, part)
        if not hasattr(section, last):
            raise AttributeError(f"no option '{name}'")
        setattr(section, last, value)
    return options


def key_of(arm: Arm, budget: Budget) -> str:
    """A text that tells a model of a budget from others."""
    text = json.dumps([dataclasses.asdict(budget), dict(arm.changes)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def measure(arm: Arm, place: Place, budget: Budget, seed: int) -> dict[str, float]:
    """Pre-train, unless that was done, and measure: {what: figure}.

    "val VIEW", "shifted VIEW": reconstruction losses on held-out tiles of the world, and of a shifted one.
    "class INPUTS PROTOCOL PARTITION": accuracy on the labelled world, "shifted-class ..." on the shifted one.
    """
    options = options_of(arm, place, budget, seed)
    directory = options.out / "checkpoint"
    if not directory.exists():
        task, data = build(options)
        if "faults" in arm.changes:
            from faults import put_back  # which imports this module

            task = put_back(task, arm.changes["faults"])
        run(options, task, data)
    found = {f"val {view}": loss for view, loss in losses(directory, options).items()}
    elsewhere = dataclasses.replace(options, data=dataclasses.replace(options.data, root=shifted_tiles(place, budget)))
    found |= {f"shifted {view}": loss for view, loss in losses(directory, elsewhere).items()}
    machine = MachineOptions(accelerator=place.accelerator, threads=1, progress=False)
    for shifted in (False, True):
        for setting in ("all",) if shifted else ("all", "rgb-only"):
            for name, accuracy in probes(directory, place, budget, seed, setting, shifted, machine).items():
                found[f"{'shifted-' if shifted else ''}class {setting} {name}"] = accuracy
    return found


@torch.no_grad()
def losses(directory: Path, options: PretrainOptions) -> dict[str, float]:
    """Reconstruction losses per view over the validation tiles of some options."""
    task, data = build(options)
    task.model = checkpoint.load_model(directory)
    sums = []
    for examples in data.validation_batches():
        batch, mask = task.prepare(examples)
        sums.append(reconstruction_losses(task.model, task.model(batch, mask), batch, mask))
    total, samples = (torch.stack(part).sum(dim=0) for part in zip(*sums, strict=True))
    views = [view for view, _ in task.model.views()]
    return dict(zip(views, ViewLosses(total, samples).mean().tolist(), strict=True))


def probes(
    directory: Path, place: Place, budget: Budget, seed: int, setting: str, shifted: bool, machine: MachineOptions
) -> dict[str, float]:
    """Accuracies of k-NN and of the linear probe at shares of the labels, on frozen features."""
    config = checkpoint.load_config(directory)
    inputs = [] if setting == "all" else list(INPUT_SETTINGS[setting].modalities)
    whole = labelled(place, budget, seed, shifted=shifted)
    setup = set_up(whole, config, LabelledOptions(inputs=inputs))
    made = extractor(setup, directory, "pretrained", seed=seed)
    features = frozen_features(setup, made, machine, folder=directory.parent / "features", workers=0)
    row, found = {name: i for i, name in enumerate(whole.ids["train"])}, {}
    for partition in PARTITIONS:
        part = labelled(place, budget, seed, shifted=shifted, partition=partition)
        rows = np.array([row[name] for name in part.ids["train"]])
        task = probe_task(part.about, summarise(part), setup.inputs)
        some = {**features, "train": features["train"].rows(rows)}
        for probe in run_probes(task, config, some, ("knn", "linear"), seed=seed):
            found[f"{probe.protocol} {partition}"] = float(task_for(task).score(probe.evidence)["accuracy"])
    return found


def read(path: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """The records, by model and seed."""
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {(key_of(Arm("", row["changes"]), Budget(**row["budget"])), row["seed"]): row for row in rows}


def job(arm: Arm, place: Place, budget: Budget, seed: int) -> dict[str, Any]:
    """One line of the records; what the run says goes into its log."""
    torch.set_num_threads(1)
    began = time.perf_counter()
    log = place.work / "logs" / f"{key_of(arm, budget)}-{seed}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a") as file, redirect_stdout(file):
        found = measure(arm, place, budget, seed)
    return {
        "seed": seed,
        "budget": dataclasses.asdict(budget),
        "changes": dict(arm.changes),
        "seconds": round(time.perf_counter() - began),
        "device": place.accelerator,
        "torch": torch.__version__,
        "measured": {name: float(f"{value:.5g}") for name, value in found.items()},
    }


def trained(arms: Iterable[Arm], seeds: Sequence[int], place: Place, budget: Budget) -> dict[tuple[str, int], Any]:
    """The records of all arms and seeds; those that are missing are made, seed by seed, `jobs` at a time."""
    known, arms = read(place.records), list(arms)
    missing = [(arm, seed) for seed in seeds for arm in arms if (key_of(arm, budget), seed) not in known]
    if not missing:
        return known
    place.work.mkdir(parents=True, exist_ok=True)
    place.records.parent.mkdir(parents=True, exist_ok=True)
    for seed in dict.fromkeys(seed for _, seed in missing):  # before the processes, who would all make them
        print(f"worlds of seed {seed} ...", flush=True)
        world(place, budget, seed, workers=place.jobs)
        for shifted in (False, True):
            labelled(place, budget, seed, shifted=shifted)
    shifted_tiles(place, budget)
    context = multiprocessing.get_context("spawn")
    began = time.perf_counter()
    with ProcessPoolExecutor(place.jobs, mp_context=context) as pool, ExitStack() as stack:
        stack.callback(pool.shutdown, wait=False, cancel_futures=True)  # an error ends what is running, and no more
        waiting = {pool.submit(job, arm, place, budget, seed): (arm, seed) for arm, seed in missing}
        for done, future in enumerate(as_completed(waiting), start=1):
            arm, seed = waiting[future]
            with open(place.records, "a") as file:
                file.write(json.dumps(future.result()) + "\n")
            minutes = (time.perf_counter() - began) / 60
            left = minutes / done * (len(missing) - done)
            print(f"{done}/{len(missing)} {arm.name}, seed {seed}: {minutes:.0f} min, {left:.0f} min left", flush=True)
    return read(place.records)


def arguments(description: str | None) -> tuple[Place, Budget, list[int]]:
    """The command line of a study: where, which seeds, which budget."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--work", type=Path, default=Path("runs/study"), help="folder for worlds and models")
    parser.add_argument("--records", type=Path, default=RECORDS)
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--jobs", type=int, default=2, help="models at a time, a thread each")
    parser.add_argument("--accelerator", default="cpu")
    for entry in dataclasses.fields(Budget):
        parser.add_argument(f"--{entry.name}", type=type(entry.default), default=entry.default)
    given = parser.parse_args()
    budget = Budget(**{entry.name: getattr(given, entry.name) for entry in dataclasses.fields(Budget)})
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    place = Place(given.work, given.records, given.jobs, given.accelerator)
    return place, budget, [int(seed) for seed in given.seeds.split(",")]
