"""SIGKILL at random moments of a pre-training run, which goes on with the same command: equal to one left alone?

    python benchmarks/faults/kills.py [--kills 50] [--processes 1,2] [--seed 0] [--json runs/faults/kills.json]

Of the kills of each number of processes, two in three come a random while after the start of the process or after a
step, one in three as soon as the file of a state is being written. After each one the saved state must be whole. In the
end weights, optimizer state and metrics.csv must be equal to the bit to those of a run that was left alone, and every
epoch must have learnt from each of its tiles once. 50 kills take about 12 minutes on two cores. Exit code 1 where
anything differs.
"""

import argparse
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch

from multimae_eo.data.synthetic import generate
from multimae_eo.data.tiles import read_json
from multimae_eo.tasks.state import start_of, state_path

BATCH, SAVE_EVERY = 4, 2
OPTIONS = (
    "--model.size demo --optim.lr 0.05 --optim.warmup_steps 2 --optim.clip_norm 1 --trainer.accelerator cpu "
    "--trainer.log_every 1 --trainer.panels 0 --trainer.progress false --trainer.threads 1 --trainer.loggers=[] "
    f"--optim.batch_size {BATCH} --trainer.save_every {SAVE_EVERY} --trainer.val_every 10 --data.workers 1 "
    "--resume true"
)
PER_KILL = 4  # steps that a run has for each kill, so that it does not end before the last


def main(kills: int, processes: list[int], seed: int, path: Path | None) -> bool:
    """Kill and compare; prints a line per number of processes."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        world = generate(folder, tiles=60, val_fraction=0.2)
        for i, number in enumerate(processes):
            share = kills * (i + 1) // len(processes) - kills * i // len(processes)
            rows.append(trial(Path(folder) / str(number), world, number, share, random.Random(seed + number)))
            print(*(f"{key}: {value}" for key, value in rows[-1].items()), sep="\n  ", flush=True)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(rows, indent=1) + "\n")
    return all(row["equal"] for row in rows)


def trial(folder: Path, world: Path, number: int, kills: int, draw: random.Random) -> dict[str, object]:
    """One run left alone, and one that is killed."""
    folder.mkdir()
    steps = SAVE_EVERY * -(-max(12, PER_KILL * kills) // SAVE_EVERY)
    command = [sys.executable, str(Path(__file__).with_name("watched.py")), "pretrain", "--data.root", str(world)]
    command += [*shlex.split(OPTIONS), "--trainer.devices", str(number), "--optim.steps", str(steps)]
    alone, killed = folder / "alone", folder / "killed"
    began = time.perf_counter()
    started(command, alone).wait()
    writing = 0
    for kill in range(kills):
        writing += kill_once(command, killed, draw, while_writing=kill % 3 == 2)
        start_of(state_path(killed) if state_path(killed).exists() else None)  # whole
        print(f"  kill {kill + 1} of {kills}, step {last_step(killed)} of {steps}", file=sys.stderr, flush=True)
    started(command, killed).wait()
    differences = [what for what, same in compared(alone, killed).items() if not same]
    differences += seen_wrong(killed.with_suffix(".seen"), world, steps)
    left = [p.name for p in killed.rglob(".*")]
    return {
        "fault": f"SIGKILL, {number} process{'es' * (number > 1)}",
        "times": kills,
        "while a state was written": writing,
        "steps": steps,
        "seconds": round(time.perf_counter() - began),
        "equal": not differences and not left,
        "differences": [*differences, *(f"left behind: {name}" for name in left)],
    }


def started(command: list[str], out: Path) -> subprocess.Popen[bytes]:
    """A run in a process group of its own."""
    environment = {**os.environ, "SEEN": str(out.with_suffix(".seen")), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, "--out", str(out)], env=environment, start_new_session=True, stdout=subprocess.DEVNULL
    )


def kill_once(command: list[str], out: Path, draw: random.Random, *, while_writing: bool) -> bool:
    """Start a run and kill it and its processes; whether a state was being written."""
    process, before = started(command, out), last_step(out)
    if while_writing:
        until(process, lambda: being_written(out))
    elif draw.random() < 0.2:
        time.sleep(draw.uniform(0, 8))  # while it starts
    else:
        wanted = before + draw.randrange(3)
        until(process, lambda: last_step(out) > wanted or last_step(out) < before)
        time.sleep(draw.uniform(0, 0.2))
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return being_written(out)


def until(process: subprocess.Popen[bytes], condition: Callable[[], bool]) -> None:
    while not condition():
        assert process.poll() is None, f"the run ended by itself with {process.returncode}"
        time.sleep(0.0005)


def being_written(out: Path) -> bool:
    return any(state_path(out).parent.glob(".*partial*"))


def last_step(out: Path) -> int:
    """The last training step in metrics.csv, 0 without one."""
    path = out / "metrics.csv"
    steps = [line.split(",")[0] for line in path.read_text().splitlines()[1:]] if path.exists() else []
    return int(steps[-1]) if steps and steps[-1].isdigit() else 0


def compared(one: Path, two: Path) -> dict[str, bool]:
    """Whether two runs left the same."""
    states = [torch.load(state_path(out), weights_only=True) for out in (one, two)]
    files = ("metrics.csv", "checkpoint/model.safetensors", "checkpoint/config.json")
    return {
        **{name: (one / name).read_bytes() == (two / name).read_bytes() for name in files},
        "weights": equal(*(s["state_dict"] for s in states)),
        "optimizer state": equal(*(s["optimizer_states"] for s in states)),
    }


def equal(one: object, two: object) -> bool:
    """Whether two nested contents are equal to the bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(two, torch.Tensor) and torch.equal(one, two)
    if isinstance(one, dict):
        return isinstance(two, dict) and one.keys() == two.keys() and all(equal(one[k], two[k]) for k in one)
    if isinstance(one, list | tuple):
        return isinstance(two, type(one)) and len(one) == len(two) and all(map(equal, one, two))
    return one == two


def seen_wrong(path: Path, world: Path, steps: int) -> list[str]:
    """What is wrong with the tiles that the steps of the final run learnt from: each once per epoch."""
    last = {}
    for line in path.read_text().splitlines():
        step, process, rows = line.split(",")
        last[int(step), int(process)] = [int(row) for row in rows.split()]  # what a killed run did later is undone
    train = read_json(world, world.name, "splits")["train"]
    per_epoch = len(train) // BATCH
    problems = []
    for epoch in range(steps // per_epoch + 1):
        range_ = range(epoch * per_epoch + 1, min((epoch + 1) * per_epoch, steps) + 1)
        count = Counter(row for (step, _), rows in last.items() if step in range_ for row in rows)
        if len(count) != BATCH * len(range_) or set(count.values()) - {1} or not count.keys() <= set(train):
            problems.append(f"epoch {epoch}: {len(count)} tiles, some of them up to {max(count.values())} times")
    return problems


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--processes", default="1,2")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    good = main(given.kills, [int(n) for n in given.processes.split(",")], given.seed, given.json)
    sys.exit(0 if good else 1)
