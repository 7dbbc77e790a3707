"""Put what the scripts of this folder found into docs/reliability.md.

    python benchmarks/faults/tables.py runs/faults docs/reliability.md

FOLDER/NAME.json goes as a table between the lines `<!-- NAME -->` and `<!-- end of NAME -->`; what has no file stays.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from write_tables import main as put_in
from write_tables import table


def kills(found: Any) -> str:
    """Of kills.py: a row per number of processes."""
    rows = []
    for one in found:
        what = "equal to the bit, each tile once per epoch" if one["equal"] else "; ".join(one["differences"])
        writing = one["while a state was written"]
        rows.append((one["fault"], one["times"], writing, one["steps"], f"{one['seconds'] / 60:.0f} min", what))
    return table(("fault", "times", "while a state was written", "steps", "took", "what happened"), rows)


def soak(found: Any) -> str:
    """Of soak.py: a row per figure."""
    head = f"{found['rounds']} rounds in {found['minutes']:.0f} min."
    rows = [(r["name"], f"{r['first']:.1f}", f"{r['last']:.1f}", "yes" if r["flat"] else "no") for r in found["rows"]]
    return f"{head}\n\n" + table(("figure", "second third", "last third", "flat"), rows)


def fuzz(found: Any) -> str:
    """Of fuzz.py: a row per reader, all of its inputs together."""
    rows = []
    for name in [*dict.fromkeys(r["name"] for r in found), "all"]:
        of = [r for r in found if name in (r["name"], "all")]
        inputs, accepted, refused, seconds = (
            sum(r[k] for r in of) for k in ("inputs", "accepted", "refused", "seconds")
        )
        rows.append((name, inputs, accepted, refused, f"{seconds:.0f} s"))
    return table(("reader", "inputs", "accepted", "refused with our own error", "took"), rows)


TABLES: dict[str, Callable[[Any], str]] = {"kills": kills, "soak": soak, "fuzz": fuzz}


def main(folder: Path, page: Path) -> None:
    """Write the tables, and rewrite the page."""
    for name, made in TABLES.items():
        path = folder / f"{name}.json"
        if path.is_file():
            path.with_suffix(".md").write_text(made(json.loads(path.read_text())) + "\n")
    put_in(folder, page)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
