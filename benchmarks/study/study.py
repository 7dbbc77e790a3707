"""What the studies share: worlds, models that are trained on them, what is measured of each, and the records of it.

A model is an `Arm`, what differs from the paper's recipe, trained with a seed. Seed s means world s, labelled worlds s,
initialisation, order and masks s, so that two arms differ in nothing else, and their difference is taken per seed.
What is measured of a model is a battery, a module with a function `measure`. Its figures go into records/BATTERY.jsonl,
a line per arm and seed, and nothing that stands there is done again: studies share their models, and their tables can
be printed without training.
"""

import argparse
import dataclasses
import hashlib
import importlib
import json
import multiprocessing
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from multimae_eo.config import SIZES
from multimae_eo.data.geobench import GeoBench
from multimae_eo.data.labelled import SPLITS, Label, Sample
from multimae_eo.data.packing import pack
from multimae_eo.data.synthetic import SHIFTED, generate, generate_downstream
from multimae_eo.data.tiles import INDEX
from multimae_eo.errors import ConfigError
from multimae_eo.finetune_options import MachineOptions
from multimae_eo.modalities import MODALITIES, PAPER_INPUTS, Continuous, Statistics, get_modality, parse_view
from multimae_eo.options import PretrainOptions, demo_options
from multimae_eo.tasks.run import build, run
from multimae_eo.whole import claimed, written

RECORDS = Path(__file__).parent / "records"
DOCS = Path(__file__).resolve().parents[2] / "docs"
SETS = {"class": "synthetic-class", "map": "synthetic-map"}
LARGE = 112  # edge of large tiles in pixels; others have 64, of which pre-training sees 56
PARTITIONS = ("0.01x", "0.10x", "1.00x")
# All bands of the spectral groups as channels of one modality, as MAEs of satellite images without groups have them.
_GROUPS = [get_modality(parse_view(view).modality) for view in PAPER_INPUTS[:4]]
STACKED = Continuous(
    "stacked",
    tuple(band for group in _GROUPS for band in group.bands),
    _GROUPS[0].unit,
    {
        product: Statistics(
            *(tuple(v for g in _GROUPS for v in getattr(g.statistics[product], part)) for part in ("mean", "std"))
        )
        for product in _GROUPS[0].products
    },
)
# The learning rate per 256 tiles of each size; the demo's was chosen for it (LOG.md), the others scale with the width.
RATES = {"demo": 1.6e-2, "tiny": 8e-3, "small": 4e-3, "base": 2e-3, "demo-48": 3.2e-2, "demo-192": 8e-3}
# The demo's encoder in other widths, for the scaling law; the package does not name them.
WIDTHS = {f"demo-{dim}": {**SIZES["demo"], "dim": dim} for dim in (48, 192)}


@dataclass(frozen=True)
class Budget:
    """What every model of a study gets: its size, tiles to learn from, steps, and labelled tiles to be judged by."""

    size: str = "demo"
    tiles: int = 20_000
    steps: int = 1_000
    batch: int = 32
    labelled: int = 3_000
    shifted: int = 1_500
    mapped: int = 1_000

    def words(self) -> str:
        """In a caption."""
        return f"{self.size}, {self.steps:,} steps of {self.batch} of {self.tiles:,} tiles"


@dataclass(frozen=True)
class Arm:
    """A way to pre-train: its name, and the options in which it differs from the paper's recipe at the same budget.

    Beside options, "faults" names those of faults.py, and "init" what stands for what was learned, "random" weights.
    """

    name: str
    changes: Mapping[str, Any] = field(default_factory=dict)


PAPER = Arm("paper")


@dataclass(frozen=True)
class Place:
    """Where a study works: its folder, that of the records, processes, device, and whether steps are compiled."""

    work: Path
    records: Path = RECORDS
    jobs: int = 2
    accelerator: str = "cpu"
    dry: bool = False
    compile: bool = False

    def file(self, battery: str) -> Path:
        """The records of a battery."""
        return self.records / f"{battery}.jsonl"

    @property
    def official(self) -> bool:
        """Whether the records are those that the docs show; a trial has its own."""
        return self.records == RECORDS

    def picture(self, name: str) -> Path:
        """Where a picture goes: into the docs, that of a trial into the working folder."""
        return (DOCS if self.official else self.work) / f"{name}.png"

    @property
    def machine(self) -> MachineOptions:
        """For probes and fine-tuning."""
        return MachineOptions(accelerator=self.accelerator, threads=1, progress=False)


def world(place: Place, budget: Budget, seed: int) -> Path:
    """The tiles that the models of a seed learn from, packed."""
    folder = place.work / f"world{seed}-{budget.tiles}"
    packed = folder / "packed" / "synthetic"
    if not (packed / f"synthetic{INDEX}").exists():
        plain = folder / "synthetic"
        if not plain.exists():
            generate(folder, tiles=budget.tiles, seed=seed, workers=1)
        pack(plain, folder / "packed", [get_modality(parse_view(v).modality) for v in (*PAPER_INPUTS, "sar")])
    return packed


class Kept:
    """A labelled world (a `Labelled`), read once: one file per sample takes longer to open than to look at.

    partition: of the training labels; valid: how many tiles to validate on, all by default. standard: data whose
    statistics it takes; its own by default.
    """

    standard: "Kept | None" = None

    def __init__(self, root: Path, name: str, partition: str, valid: int | None):
        self.source = source = GeoBench(root, name, partition=partition)
        self.about, folder = source.about, root / f"kept-{name}"
        self.ids = {**source.ids, "valid": source.ids["valid"][:valid]}
        names = [sample_id for split in SPLITS for sample_id in GeoBench(root, name).ids[split]]
        self.row = {sample_id: i for i, sample_id in enumerate(names)}
        if not (folder / "labels.npy").exists():
            folder.mkdir(parents=True, exist_ok=True)
            samples = [source.read(sample_id) for sample_id in names]
            np.save(folder / "values.npy", np.stack([s.values for s in samples]))
            np.save(folder / "valid.npy", np.stack([s.valid for s in samples]))
            with written(folder / "labels.npy") as partial, open(partial, "wb") as file:
                np.save(file, np.stack([s.label.values for s in samples]))
        self.values, self.valid, self.labels = (
            np.load(folder / f"{part}.npy", mmap_mode="r") for part in ("values", "valid", "labels")
        )

    def read(self, sample_id: str) -> Sample:
        """As `Labelled.read`."""
        row = self.row[sample_id]
        return Sample(np.array(self.values[row]), np.array(self.valid[row]), self.label(sample_id))

    def label(self, sample_id: str) -> Label:
        """As `Labelled.label`; in synthetic worlds all labels are known."""
        values = np.array(self.labels[self.row[sample_id]])
        return Label(values, np.ones(values.shape, bool))

    def statistics(self) -> Mapping[str, tuple[float, float]]:
        """As `Labelled.statistics`."""
        return (self.standard or self).source.statistics()

    def fingerprint(self) -> str:
        """As `Labelled.fingerprint`."""
        return self.source.fingerprint()


def labelled(
    place: Place,
    budget: Budget,
    seed: int,
    kind: str = "class",
    *,
    partition: str = "1.00x",
    valid: int | None = None,
) -> Kept:
    """A labelled world of a seed: "class", "map", where every pixel has a label, "shifted-class" or "large-class"."""
    shifted, edge = kind.startswith("shifted-"), LARGE if kind.startswith("large-") else 64
    name = SETS[kind.split("-")[-1]]
    tiles = {"class": budget.labelled, "map": budget.mapped}.get(kind, budget.shifted)
    folder = place.work / f"{kind}{seed}-{tiles}"
    if not folder.exists():
        world = seed + SHIFTED * shifted
        generate_downstream(folder, tiles=tiles, seed=world, tile_px=edge, workers=1, sets=(name,))
    return Kept(folder, name, partition, valid)


def tiles_elsewhere(place: Place, budget: Budget, *, shifted: bool) -> Path:
    """Tiles of another world to judge on, shifted or not, the same for all models; half of them are validation's."""
    folder, seed = place.work / ("shifted" if shifted else "other"), SHIFTED + 10**6 if shifted else 2 * 10**6
    with alone(folder):
        if not (folder / "synthetic").exists():
            generate(folder, tiles=min(1000, budget.tiles), seed=seed, val_fraction=0.5, workers=1)
    return folder / "synthetic"


def worlds(place: Place, budget: Budget, seed: int, battery: str) -> None:
    """Make what the models of a seed share, before several processes want it."""
    torch.set_num_threads(1)
    world(place, budget, seed)
    for kind in importlib.import_module(battery).KINDS:
        labelled(place, budget, seed, kind)


def options_of(arm: Arm, place: Place, budget: Budget, seed: int) -> PretrainOptions:
    """How and where an arm is pre-trained."""
    options = recipe_of(arm, budget)
    options.seed, options.out, options.resume = seed, folder_of(arm, place, budget, seed), True
    options.data.root, options.data.workers, options.data.val_tiles = world(place, budget, seed), 0, 512
    if STACKED.name in options.model.config().inputs:  # the packed copy does not have it
        options.data.root = options.data.root.parent.parent / "synthetic"
    machine = options.trainer
    machine.accelerator, machine.progress, machine.panels, machine.loggers = place.accelerator, False, 0, []
    machine.compile = place.compile
    return options


def recipe_of(arm: Arm, budget: Budget) -> PretrainOptions:
    """How an arm is pre-trained; the rate follows the size, and the schedule the steps."""
    size, options = arm.changes.get("model.size", budget.size), demo_options()
    options.model.size = size
    if size in WIDTHS:
        cast(dict[str, Any], SIZES)[size] = WIDTHS[size]
    if STACKED.name in arm.changes.get("model.inputs", ()):  # the package does not know such a modality
        cast(dict[str, Any], MODALITIES)[STACKED.name] = STACKED
    options.optim.steps, options.optim.batch_size, options.optim.lr = budget.steps, budget.batch, RATES[size]
    for name, value in arm.changes.items():
        if name == "faults":
            continue
        *path, last = name.split(".")
        section: Any = options
        for part in path:
            section = getattr(section, part)
        if not hasattr(section, last):
            raise AttributeError(f"no option '{name}'")
        usual = getattr(section, last)
        setattr(section, last, resolved(value, SIZES[size][last] if usual is None and last in SIZES[size] else usual))
    steps = steps_of(arm.changes, budget)
    options.optim.warmup_steps = max(1, steps // 15)
    options.trainer.val_every = options.trainer.save_every = steps
    return options


def steps_of(changes: Mapping[str, Any], budget: Budget) -> int:
    """How long an arm is trained."""
    return resolved(changes.get("optim.steps", budget.steps), budget.steps)


def times(factor: float) -> str:
    """The value of an option that is so many times what it would be otherwise."""
    return f"x{factor:g}"


# What longer training does; law.py has the same model.
LONG = Arm("four times the steps", {"optim.steps": times(4)})


def resolved(value: Any, usual: Any) -> Any:
    """A value, also where it was written as `times`."""
    many = isinstance(value, str) and value.startswith("x")
    return type(usual)(float(value[1:]) * usual) if many else value


def folder_of(arm: Arm, place: Place, budget: Budget, seed: int) -> Path:
    """Where a model is trained."""
    return place.work / "models" / f"{key_of(arm, budget)}-{seed}"


def key_of(arm: Arm, budget: Budget) -> str:
    """A text that tells a model of a budget from others."""
    text = json.dumps([dataclasses.asdict(budget), dict(arm.changes)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def read(path: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """The records, by model and seed."""
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {(key_of(Arm("", row["changes"]), Budget(**row["budget"])), row["seed"]): row for row in rows}


def model(arm: Arm, place: Place, budget: Budget, seed: int) -> tuple[Path, PretrainOptions]:
    """The checkpoint of an arm, trained where it is not there yet, and how it was trained."""
    options = options_of(arm, place, budget, seed)
    directory = options.out / "checkpoint"
    with alone(options.out):
        if not directory.exists():
            task, data = build(options)
            if "faults" in arm.changes:
                task = importlib.import_module("faults").put_back(task, arm.changes["faults"])
            run(options, task, data)
    return directory, options


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Wait until no other process works in a folder."""
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(claimed(folder))
                break
            except ConfigError:
                time.sleep(2)
        yield


def job(arm: Arm, place: Place, budget: Budget, seed: int, battery: str) -> dict[str, Any]:
    """One line of the records; what the run says goes into its log."""
    torch.set_num_threads(1)
    began = time.perf_counter()
    log = place.work / "logs" / f"{key_of(arm, budget)}-{seed}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a") as file, redirect_stdout(file):
        found = importlib.import_module(battery).measure(arm, place, budget, seed)
    return {
        "seed": seed,
        "budget": dataclasses.asdict(budget),
        "changes": dict(arm.changes),
        "seconds": round(time.perf_counter() - began),
        "device": place.accelerator,
        "torch": torch.__version__,
        "measured": {name: float(f"{value:.5g}") for name, value in found.items()},
    }


def measured(
    arms: Iterable[Arm], seeds: Sequence[int], place: Place, budget: Budget, battery: str
) -> dict[tuple[str, int], Any]:
    """The records of all arms and seeds; those that are missing are made, seed by seed, `jobs` at a time, or named."""
    records, arms = place.file(battery), list(arms)
    known = read(records)
    missing = [(arm, seed) for seed in seeds for arm in arms if (key_of(arm, budget), seed) not in known]
    if place.dry:
        names = ", ".join(dict.fromkeys(arm.name for arm, _ in missing)) or "none"
        print(f"{battery}, {budget.words()}: {len(missing)} of {len(arms) * len(seeds)} not on record ({names})")
    if not missing or place.dry:
        return known
    place.work.mkdir(parents=True, exist_ok=True)
    place.records.mkdir(parents=True, exist_ok=True)
    context, failed = multiprocessing.get_context("spawn"), []
    with ProcessPoolExecutor(place.jobs, mp_context=context) as pool, ExitStack() as stack:
        stack.callback(pool.shutdown, wait=False, cancel_futures=True)  # an interrupt ends what is running, and no more
        wanted = list(dict.fromkeys(seed for _, seed in missing))
        print(f"worlds of seeds {', '.join(map(str, wanted))} ...", flush=True)
        for made in [pool.submit(worlds, place, budget, seed, battery) for seed in wanted]:
            made.result()
        began = time.perf_counter()
        waiting = {pool.submit(job, arm, place, budget, seed, battery): (arm, seed) for arm, seed in missing}
        for done, future in enumerate(as_completed(waiting), start=1):
            arm, seed = waiting[future]
            minutes = (time.perf_counter() - began) / 60
            left = f"{minutes:.0f} min, {minutes / done * (len(missing) - done):.0f} min left"
            try:
                row = future.result()
            except Exception as error:  # the others go on: they take hours
                failed.append(f"{arm.name}, seed {seed}: {error}")
                print(f"{done}/{len(missing)} failed: {failed[-1]}", flush=True)
                continue
            with open(records, "a") as file:
                file.write(json.dumps(row) + "\n")
            print(f"{done}/{len(missing)} {arm.name}, seed {seed}: {left}", flush=True)
    if failed:
        raise SystemExit(f"{len(failed)} of {len(missing)} failed; first: {failed[0]}")
    return read(records)


def arguments(
    description: str | None, seeds: str = "0,1,2,3,4,5,6", **defaults: int | str
) -> tuple[Place, Budget, list[int]]:
    """The command line of a study: where, which seeds, which budget; by default these."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--work", type=Path, default=Path("runs/study"), help="folder for worlds and models")
    parser.add_argument("--records", type=Path, default=RECORDS)
    parser.add_argument("--seeds", default=seeds)
    parser.add_argument("--jobs", type=int, default=2, help="models at a time, a thread each")
    parser.add_argument("--accelerator", default="cpu")
    parser.add_argument("--compile", action="store_true", help="steps of training: the same to rounding, and faster")
    parser.add_argument("--dry-run", action="store_true", help="say what is not on record; train and write nothing")
    for entry in dataclasses.fields(Budget):
        value = defaults.get(entry.name, entry.default)
        parser.add_argument(f"--{entry.name}", type=type(entry.default), default=value)
    given = parser.parse_args()
    budget = Budget(**{entry.name: getattr(given, entry.name) for entry in dataclasses.fields(Budget)})
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    place = Place(given.work, given.records, given.jobs, given.accelerator, given.dry_run, given.compile)
    return place, budget, [int(seed) for seed in given.seeds.split(",")]
