"""Explains the folder of a run: how far it came, what it found, and the checkpoint and the page that it leads to."""

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from multimae_eo.errors import DataError
from multimae_eo.explain.page import block, command, facts, listed, page

_CHECKPOINTS = {
    "checkpoint": "the pre-trained model",
    "best": "the fine-tuned model that was best on valid",
    "last": "the fine-tuned model of the last step",
}
_PICTURES = ("reconstruction.png", "predictions.png", "curves.png", "report.html")


def explain_run(path: Path) -> str:
    """What the folder of a run holds; raises DataError where its results are damaged."""
    models = [name for name in _CHECKPOINTS if (path / name / "config.json").is_file()]
    results = _results(path / "results.json")
    kind = "pre-training" if "checkpoint" in models or (path / "panels").is_dir() else "fine-tuning"
    if not models and results is not None:
        kind = "evaluation of frozen features"
    about = facts(
        ("trained", _progress(path / "metrics.csv", models)),
        *((name, _CHECKPOINTS[name] + _score(results, name)) for name in models),
        ("options", "config.yaml" if (path / "config.yaml").is_file() else ""),
        ("pictures", listed(name for name in _PICTURES if (path / name).is_file())),
    )
    return page(f"Run of {kind}", path, about, block("What to do:", *_next(path, models)))


def _results(path: Path) -> Any:
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise DataError(f"'{path}' is not JSON: {error}.") from error


def _progress(path: Path, models: list[str]) -> str:
    """The last step of metrics.csv and its loss."""
    if not path.is_file():
        return ""
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"'{path}' cannot be read as CSV: {error}.") from error
    if not rows or "step" not in rows[0]:
        return "metrics.csv has no step yet"
    text = f"{rows[-1]['step']} steps"
    losses = [row["val/loss"] for row in rows if row.get("val/loss")]
    if losses:
        text += f", last validation loss {float(losses[-1]):.4g}"
    return text + ("" if models else "; not finished, or it was interrupted")


def _score(results: Any, name: str) -> str:
    """The metrics on test of one checkpoint, with their 95 % intervals."""
    found = results.get(name) if isinstance(results, Mapping) else None
    if not isinstance(found, Mapping):
        return ""
    parts = []
    for metric, value in found.items():
        if isinstance(value, list) and len(value) == 3 and None not in value:
            parts.append(f"{metric} {value[0]:.3f} ({value[1]:.3f} to {value[2]:.3f})")
    return f"; on test {', '.join(parts)}" if parts else ""


def _next(path: Path, models: list[str]) -> list[str]:
    """What leads on: the checkpoint, the page, or going on."""
    chosen = next((name for name in ("checkpoint", "best", "last") if name in models), None)
    if chosen is not None:
        return [command("inspect", path / chosen), command("report", path)]
    lines = [command("report", path)]
    if (path / "state").is_dir():
        config = ["--config", path / "config.yaml"] if (path / "config.yaml").is_file() else []
        lines.insert(0, command("pretrain", *config, "--out", path, "--resume", "true"))
    return lines
