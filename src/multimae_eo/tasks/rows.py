"""metrics.csv of a run: rows are appended as they come, and a resumed run first drops those it will write again."""

import csv
import os
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from multimae_eo.errors import DataError, shown
from multimae_eo.whole import written


def read_rows(path: str | os.PathLike[str]) -> list[dict[str, str]]:
    """The rows of a metrics.csv, as strings; a last row that was cut off is dropped; raises DataError."""
    try:
        with open(path, newline="") as file:
            reader = csv.DictReader(file)
            names = reader.fieldnames or []
            whole = (row for row in reader if all(row[name] is not None for name in names))
            return [row for row in whole if None not in row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"'{path}' is no table ({error}); delete it, or what is wrong in it.") from error


def truncate(path: Path, before: Mapping[str, int]) -> None:
    """Keep the rows of a kind ("train", "val") with a step of less than before[kind]; the file is replaced at once."""
    if not path.exists():
        return
    rows = read_rows(path)
    with open(path, newline="") as file:
        names = csv.DictReader(file).fieldnames or []
    try:
        kept = [row for row in rows if int(row["step"]) < before.get(row["kind"], 0)]
    except (KeyError, ValueError) as error:
        raise DataError(f"'{path}' has a row without a step and a kind ({shown(error)}); delete it.") from error
    with written(path) as partial, open(partial, "w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(kept)


def note_skipped(path: Path, steps: Mapping[int, Sequence[int]]) -> None:
    """List the rows of the data set that some skipped steps learnt from; a step that is listed already is left out."""
    known = {row["step"] for row in read_rows(path)} if path.exists() else set()
    with open(path, "a", newline="") as file:
        writer = csv.writer(file)
        if not known:
            writer.writerow(("step", "rows"))
        writer.writerows((step, " ".join(map(str, rows))) for step, rows in steps.items() if str(step) not in known)


class Rows(Logger):
    """A Lightning logger that appends to one CSV file; each row is of a kind, "train" or "val", at a step."""

    def __init__(self, path: Path, names: Sequence[str]):
        super().__init__()
        self.path, self.names = path, ("step", "kind", *names)

    @property
    def name(self) -> str:
        return "rows"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """The run keeps its options in config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        known = {name: value for name, value in metrics.items() if name in self.names}
        for kind in ("train", "val"):
            row = {name: repr(float(value)) for name, value in known.items() if name.startswith(f"{kind}/")}
            if row:
                self._append({"step": step, "kind": kind, **row})

    def _append(self, row: Mapping[str, Any]) -> None:
        new = not self.path.exists()
        with open(self.path, "a", newline="") as file:
            writer = csv.DictWriter(file, self.names, restval="")
            if new:
                writer.writeheader()
            writer.writerow(row)
