"""The demo: a synthetic world, a small model pre-trained on it, and a comparison with trivial predictors."""

import dataclasses
import platform
import shutil
import time
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from multimae_eo.data.synthetic import generate
from multimae_eo.errors import ConfigError
from multimae_eo.options import PretrainOptions, check_pretrain
from multimae_eo.tasks.baselines import NAMES, class_priors, trivial_losses
from multimae_eo.tasks.pretrain import metric_name
from multimae_eo.tasks.rows import read_rows
from multimae_eo.tasks.run import Result, pretrain
from multimae_eo.tasks.trainer import write_json
from multimae_eo.tasks.transfer import transfer

FEWEST = 10  # labelled tiles
PACKAGES = ("multimae-eo", "torch", "lightning", "numpy", "h5py")
# Training batches that the prior of the classes is taken from.
PRIOR_BATCHES = 30
LOOK_AT = (
    *("reconstruction.png", "curves.png", "transfer.png", "segmentation/predictions.png", "probes/report.html"),
    *("summary.json", "metrics.csv", "checkpoint"),
)


def demo(out: Path, tiles: int, labelled_tiles: int, options: PretrainOptions) -> dict[str, Any]:
    """Run the demo and write `out`: data/, checkpoint/, metrics.csv, pictures and summary.json (returned).

    tiles: of the world that is pre-trained on; labelled_tiles: of another one that the encoder is then tried on.
    """
    check_demo(tiles, labelled_tiles, options)
    if out.exists():
        if not out.is_dir():
            raise ConfigError(f"'{out}' is no folder; choose another --out.")
        if any(out.iterdir()) and not (out / "data" / "synthetic").exists():
            raise ConfigError(f"'{out}' is not empty and is no earlier demo; choose another --out.")
        shutil.rmtree(out)
    began = time.perf_counter()
    folder = generate(out / "data", "synthetic", tiles=tiles, seed=options.seed)
    print(f"Wrote a synthetic world of {tiles} tiles in {time.perf_counter() - began:.0f} s; pre-training.", flush=True)
    run = dataclasses.replace(options, out=out, data=dataclasses.replace(options.data, root=folder))
    started = time.perf_counter()
    result = pretrain(run)
    seconds = time.perf_counter() - started
    table = compare(result, out / "metrics.csv")
    print("Transfer to labelled tiles of another world.", flush=True)
    rows = transfer(out / "checkpoint", out, tiles=labelled_tiles, seed=options.seed)
    total = time.perf_counter() - began
    pretraining = {"seconds": round(seconds, 1), "validation": table}
    summary = {"seconds": round(total, 1), "pretrain": pretraining, "transfer": rows, "versions": versions()}
    write_json(summary, out / "summary.json")
    report(out, table, rows, total)
    return summary


def check_demo(tiles: int, labelled_tiles: int, options: PretrainOptions) -> None:
    """Raise ConfigError for what would fail only after minutes."""
    check_pretrain(options)
    options.model.config()
    if tiles < 2:
        raise ConfigError(f"tiles is {tiles}; expected at least 2, one to train and one to validate.")
    if labelled_tiles < FEWEST:
        raise ConfigError(f"labelled_tiles is {labelled_tiles}; expected at least {FEWEST}, so that a tenth is one.")


def compare(result: Result, metrics: Path) -> dict[str, dict[str, float]]:
    """Per view: the model's validation loss before and after, and that of the trivial predictors on the same pixels."""
    task, data = result.task, result.data
    data.tiles.close()
    with torch.no_grad():
        priors = class_priors(task.model, (task.prepare(e)[0] for e in islice(data.training_batches(), PRIOR_BATCHES)))
        sums: dict[tuple[str, str], list[torch.Tensor]] = {}
        for examples in data.validation_batches():
            losses = trivial_losses(task.model, *task.prepare(examples), priors)
            for view, by_name in losses.items():
                for name, pair in by_name.items():
                    sums.setdefault((view, name), []).append(torch.stack(pair))
    before = next(row for row in read_rows(metrics) if row["kind"] == "val")
    table = {v: {"first": float(before[f"val/{metric_name(v)}"]), "last": loss} for v, loss in result.last.items()}
    for (view, name), pairs in sums.items():
        total, samples = torch.stack(pairs).sum(dim=0).tolist()
        table[view][name] = total / max(1.0, samples)
    return table


def versions() -> dict[str, str]:
    """Of Python and the packages that decide the numbers."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def report(out: Path, table: dict[str, dict[str, float]], rows: list[dict[str, Any]], seconds: float) -> None:
    """Print short tables, and where to look."""
    columns = ("first", "last", *NAMES)
    print(f"\nvalidation loss {'':10}" + "".join(f"{c:>14}" for c in columns))
    for view, row in table.items():
        print(f"  {view:24}" + "".join(f"{row[c]:14.3f}" for c in columns) + verdict(view, row))
    print(
        f"\n{'transfer':16}{'protocol':10}{'inputs':8}{'init':12}{'labels':>8}{'metric':>10}{'value':>8}  95 % interval"
    )
    for r in rows:
        interval = f"{r['low']:.3f} to {r['high']:.3f}"
        words = (
            f"{r['task']:16}{r['protocol']:10}{r['inputs']:8}{r['init']:12}{100 * r['labels']:>6g} %{r['metric']:>10}"
        )
        print(f"{words}{r['mean']:8.3f}  {interval}")
    print(f"\nDone in {seconds:.0f} s. Look at:")
    for name in LOOK_AT:
        print(f"  {out / name}")


def verdict(view: str, row: dict[str, float]) -> str:
    """Whether the model beats all trivial predictors; views per patch are reported, not compared."""
    if view.endswith(":patch"):
        return "  (not compared)"
    return "  beats all three" if row["last"] < min(row[name] for name in NAMES) else "  does NOT beat all three"
