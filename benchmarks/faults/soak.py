"""Training, evaluation and mapping in turn, for as long as is asked: do memory, files, threads or temporary files grow?

    python benchmarks/faults/soak.py [--minutes 30] [--json runs/faults/soak.json]

One process works at demo size: a round pre-trains with two reading processes, saves, fine-tunes and tests the result,
and maps a scene. After each round it counts its resident memory, its open files, its threads, its child processes and
what lies in its temporary folder. The first tenth of the time fills caches and is not counted. Exit code 1 where a
figure of the last third is more than that of the second by over 2 % of memory, or by any file, thread, process or
temporary file. Linux only: it reads /proc.
"""

import argparse
import gc
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import torch

from multimae_eo.data.synthetic import generate, generate_downstream, generate_scene
from multimae_eo.finetune_options import FinetuneOptim, FinetuneOptions, LabelledOptions, MachineOptions
from multimae_eo.maps.options import PredictOptions, SourceOptions, TileOptions
from multimae_eo.maps.predict import predict_map
from multimae_eo.options import DataOptions, ModelOptions, OptimOptions, PretrainOptions, TrainerOptions
from multimae_eo.tasks.finetune import finetune
from multimae_eo.tasks.run import pretrain

FIGURES = {"memory": "MB", "open files": "", "threads": "", "child processes": "", "temporary files": ""}
GROWTH = 1.02


def main(minutes: float, path: Path | None) -> bool:
    """Work, count and compare; prints a table."""
    home = Path(tempfile.mkdtemp())
    tempfile.tempdir = str(home / "temporary")
    (home / "temporary").mkdir()
    try:
        world = generate(home, tiles=60, val_fraction=0.2)
        labelled = generate_downstream(home / "labelled", tiles=60, tile_px=32)
        scene = generate_scene(home, "scene", tile_px=256)
        began, found = time.monotonic(), list[tuple[float, dict[str, float]]]()
        while (passed := time.monotonic() - began) < 60 * minutes or len(found) < 4:
            with quiet():
                work(home / "round", world, labelled, scene)
            shutil.rmtree(home / "round")
            gc.collect()
            found.append((passed, counted(home / "temporary")))
            left = max(0, minutes - passed / 60)
            print(f"round {len(found)}, {left:.1f} min left: {words(found[-1][1])}", file=sys.stderr, flush=True)
        rows = compared([figures for seconds, figures in found if seconds > 6 * minutes])
        seconds = time.monotonic() - began
    finally:
        shutil.rmtree(home, ignore_errors=True)
    print(f"{len(found)} rounds in {seconds / 60:.1f} min")
    for row in rows:
        print(
            f"{row['name']:16} {row['first']:10.1f} -> {row['last']:10.1f} {FIGURES[row['name']]:3} flat: {row['flat']}"
        )
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"minutes": seconds / 60, "rounds": len(found), "rows": rows}, indent=1) + "\n")
    return all(row["flat"] for row in rows)


@contextmanager
def quiet() -> Iterator[None]:
    """Without what the works print."""
    with open(os.devnull, "w") as nothing, redirect_stdout(nothing), redirect_stderr(nothing):
        yield


def work(out: Path, world: Path, labelled: Path, scene: Path) -> None:
    """One round."""
    pretrain(
        PretrainOptions(
            out=out / "pretrained",
            model=ModelOptions(size="demo"),
            data=DataOptions(root=world, workers=2),
            optim=OptimOptions(batch_size=8, steps=20, warmup_steps=2),
            trainer=TrainerOptions(
                accelerator="cpu", devices=1, threads=1, val_every=10, save_every=5, log_every=5, progress=False
            ),
        )
    )
    checkpoint = out / "pretrained" / "checkpoint"
    finetune(
        FinetuneOptions(
            out=out / "tuned",
            checkpoint=checkpoint,
            data=LabelledOptions(root=labelled, name="synthetic-map", workers=1),
            optim=FinetuneOptim(batch_size=8, steps=6),
            trainer=MachineOptions(accelerator="cpu", threads=1, progress=False),
        )
    )
    sources = {name: SourceOptions(path=str(path)) for name, path in sources_of(scene).items()}
    predict_map(
        PredictOptions(
            checkpoint=out / "tuned" / "best", source=sources, out=out / "map.tif", tiles=TileOptions(progress=False)
        )
    )


def sources_of(scene: Path) -> dict[str, Path]:
    """The files of a synthetic scene, by the names of the sources."""
    return {path.stem: path for path in sorted(scene.glob("*.tif"))}


def counted(temporary: Path) -> dict[str, float]:
    """What this process holds."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    tasks = Path("/proc/self/task")
    children = {pid for task in tasks.iterdir() for pid in (task / "children").read_text().split()}
    return {
        "memory": int(status["VmRSS"].split()[0]) / 1024,
        "open files": len(os.listdir("/proc/self/fd")),
        "threads": int(status["Threads"]),
        "child processes": len(children),
        "temporary files": sum(1 for _ in temporary.rglob("*")),
    }


def compared(found: list[dict[str, float]]) -> list[dict[str, object]]:
    """The medians of the second and of the last third, and whether the last is no more."""
    third = max(1, len(found) // 3)
    rows = []
    for name in FIGURES:
        first, last = (
            statistics.median(f[name] for f in part) for part in (found[-2 * third : -third], found[-third:])
        )
        flat = last <= first * (GROWTH if name == "memory" else 1)
        rows.append({"name": name, "first": first, "last": last, "flat": flat})
    return rows


def words(figures: dict[str, float]) -> str:
    return ", ".join(f"{value:.0f} {FIGURES[name]} {name}".replace("  ", " ") for name, value in figures.items())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    sys.exit(0 if main(given.minutes, given.json) else 1)
