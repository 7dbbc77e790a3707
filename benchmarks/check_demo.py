"""Check a demo's summary.json: in time, and better than all trivial predictors on every compared view.

    python benchmarks/check_demo.py runs/demo/summary.json [SECONDS]

SECONDS is 180 unless given; a busy machine needs more.
"""

import json
import sys


def main(path: str, limit: float = 180) -> None:
    """Print the comparison and exit with 1 where the demo misses its mark."""
    with open(path) as file:
        run = json.load(file)["pretrain"]
    missed = []
    for view, row in run["validation"].items():
        best = min(row[name] for name in ("band_mean", "visible_mean", "nearest_patch"))
        print(f"{view:20} {row['last']:.3f}, best trivial {best:.3f}, ratio {row['last'] / best:.2f}")
        if not view.endswith(":patch") and row["last"] >= best:
            missed.append(f"{view} does not beat the trivial predictors")
    print(f"{run['seconds']:.0f} s of {limit:.0f}")
    if run["seconds"] > limit:
        missed.append(f"took more than {limit:.0f} s")
    if missed:
        sys.exit("; ".join(missed))


if __name__ == "__main__":
    main(sys.argv[1], *map(float, sys.argv[2:]))
