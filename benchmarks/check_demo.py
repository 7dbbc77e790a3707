"""Check a demo's summary.json: in time, better than all trivial predictors, and every row of transfer there.

    python benchmarks/check_demo.py runs/demo/summary.json [SECONDS]

SECONDS for all of it are 360 unless given; a busy machine needs more. What transfer is worth is printed, not judged:
one seed and some hundred test tiles say little (docs/results.md has five seeds).
"""

import itertools
import json
import sys
from typing import Any

PROBES = [*itertools.product(("knn-5", "knn-20", "linear"), ("rgb", "all"), ("pretrained", "random"), (0.01, 0.1, 1.0))]


def pretraining(run: dict[str, Any]) -> list[str]:
    """Print the comparison with trivial predictors; returns what was missed."""
    missed = []
    for view, row in run["validation"].items():
        best = min(row[name] for name in ("band_mean", "visible_mean", "nearest_patch"))
        print(f"{view:20} {row['last']:.3f}, best trivial {best:.3f}, ratio {row['last'] / best:.2f}")
        if not view.endswith(":patch") and row["last"] >= best:
            missed.append(f"{view} does not beat the trivial predictors")
    return missed


def transfer(rows: list[dict[str, Any]]) -> list[str]:
    """Print pre-trained beside random; returns what was missed."""
    there = {(r["protocol"], r["inputs"], r["init"], r["labels"]): r for r in rows}
    wanted = [*PROBES, ("finetune", "all", "pretrained", 1.0)]
    missed = [f"no row of transfer for {key}" for key in wanted if key not in there]
    for (protocol, inputs, init, labels), row in there.items():
        other = there.get((protocol, inputs, "random", labels))
        if init == "pretrained" and other:
            words = f"{protocol:8} {inputs:4} {100 * labels:5.0f} % of labels"
            print(f"{words}: {row['mean']:.3f} pre-trained, {other['mean']:.3f} random")
    values = [r[name] for r in rows for name in ("low", "mean", "high")]
    if not all(0 <= value <= 1 for value in values):
        missed.append("a value of transfer lies outside of 0 to 1")
    return missed


def main(path: str, limit: float = 360) -> None:
    """Print the comparison and exit with 1 where the demo misses its mark."""
    with open(path) as file:
        summary = json.load(file)
    missed = [*pretraining(summary["pretrain"]), *transfer(summary["transfer"])]
    print(f"{summary['seconds']:.0f} s of {limit:.0f}, {summary['pretrain']['seconds']:.0f} of them pre-training")
    if summary["seconds"] > limit:
        missed.append(f"took more than {limit:.0f} s")
    if missed:
        sys.exit("; ".join(missed))


if __name__ == "__main__":
    main(sys.argv[1], *map(float, sys.argv[2:]))
