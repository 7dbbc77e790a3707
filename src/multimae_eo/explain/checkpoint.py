"""Explains a checkpoint, by its config.json and the header of its weights, and the folder of a run."""

import csv
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from multimae_eo.checkpoint import CONFIG, WEIGHTS, load_config, read_content
from multimae_eo.config import SIZES, ModelConfig, TaskConfig, task_from_json
from multimae_eo.errors import CheckpointError, DataError
from multimae_eo.explain.page import block, command, facts, listed, page, source_name, table
from multimae_eo.modalities import REFLECTANCE, Continuous, Modality

PIXEL = 10  # m, of the frame of every model
_MODELS = {
    "checkpoint": "the pre-trained model",
    "best": "the fine-tuned model that was best on valid",
    "last": "the fine-tuned model of the last step",
}


def explain(path: Path, out: Path | None = None) -> str:
    """What a checkpoint directory or the folder of a run holds; raises CheckpointError or DataError for damage."""
    if not any((path / name).is_file() for name in (CONFIG, WEIGHTS)):
        return _run(path)
    content, config = read_content(path), load_config(path)
    task = task_from_json(content["task"]) if "task" in content else None
    extra = content["extra"] if isinstance(content.get("extra"), dict) else {}
    edge, patch = config.image_size, config.patch_size
    frame = f"{edge} x {edge} px of {PIXEL} m ({edge * PIXEL} m), patches of {patch} x {patch} px"
    short = {k: v for k, v in extra.items() if isinstance(v, str | int | float) and v != ""}
    about = facts(
        ("model", _sizes(config)),
        ("parameters", _parameters(path / WEIGHTS)),
        ("images", frame + (f"; fine-tuned on images of {short['image_px']} px" if "image_px" in short else "")),
        ("predicts", listed(config.targets) if task is None else _predicted(task)),
        ("trained on", task.dataset if task is not None else ""),
        ("recorded", "; ".join(f"{name} {value}" for name, value in short.items() if name != "image_px")),
    )
    names = config.input_modalities if task is None else task.inputs
    title = "Pre-trained checkpoint" if task is None else f"Fine-tuned checkpoint: {task.task}"
    sources = _sources(config.modalities[name] for name in names)
    use = _use(path, config, sources) if task is None else _use_tuned(path, sources)
    return page(title, path, about, _inputs(config, task), use)


def _sizes(config: ModelConfig) -> str:
    """The name of the size, and what it is made of."""
    own = {key: getattr(config, key) for key in SIZES["base"]}
    name = next((name for name, sizes in SIZES.items() if sizes == own), "own size")
    return f"{name}: {config.depth} blocks, {config.dim} wide, {config.heads} heads; positions {config.positions}"


def _parameters(weights: Path) -> str:
    """Numbers in the encoder and in the rest, from the shapes that the header states."""
    if not weights.is_file():
        raise CheckpointError(f"'{weights}' does not exist; the checkpoint is not complete. Copy it anew.")
    parts: dict[str, int] = {}
    try:
        with safe_open(weights, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118
                part = name.split(".")[0]
                parts[part] = parts.get(part, 0) + math.prod(file.get_slice(name).get_shape())
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"'{weights}' is not a safetensors file, or is damaged: {error}. Fetch it again."
        ) from error
    said = ", ".join(f"{name} {size / 1e6:.2f} M" for name, size in parts.items())
    return f"{sum(parts.values()) / 1e6:.2f} M ({said})"


def _predicted(task: TaskConfig) -> str:
    each = "for every pixel" if task.dense else "for every image"
    if not task.classes:
        return f"{each} a number{f' in {task.unit}' if task.unit else ''}"
    kind = "any number of" if task.task == "multilabel" else "one of"
    return f"{each} {kind} {len(task.classes)} classes: {listed((c.name for c in task.classes), 14)}"


def _inputs(config: ModelConfig, task: TaskConfig | None) -> str:
    """One row per view that is fed."""
    rows = []
    for view in config.input_views:
        m = config.modalities[view.modality]
        if task is None or m.name in task.inputs:
            products = ", ".join(m.products) if task is None else task.products.get(m.name, ", ".join(m.products))
            rows.append([str(view), " ".join(m.bands), m.unit, f"{PIXEL * m.stride} m", products])
    return table(["input", "bands", "unit", "pixels", "products"], rows)


def _sources(modalities: Iterable[Modality]) -> list[str]:
    """A source option for every kind of source that some modalities take their bands from, ready to be filled in."""
    names = dict.fromkeys(source_name([m]) for m in modalities)
    return [word for name in names for word in ("--source", f"{name}={name.upper()}.tif")]


def _use_tuned(path: Path, sources: list[str]) -> str:
    lines = [command("predict", path, *sources, "--out", "map.tif"), command("evaluate", path)]
    return block("Map a scene with it (docs/maps.md), or test it again:", *lines)


def _use(path: Path, config: ModelConfig, sources: list[str]) -> str:
    code = [f'encoder = multimae_eo.load("{path}")']
    inputs = [config.modalities[name] for name in config.input_modalities]
    modality = next((m for m in inputs if isinstance(m, Continuous)), None)
    if modality is not None:
        bands = ", ".join(f'"{band}"' for band in modality.bands)
        units = ', units="dn"' if modality.unit == REFLECTANCE else ""
        code.append(f'tokens = encoder(images, bands=[{bands}]{units}, product="{modality.products[-1]}")')
    lines = [
        command("finetune", "--checkpoint", path, "--data.root", "DIR", "--data.name", "NAME"),
        command("embed", path, *sources, "--out", "embeddings.tif"),
    ]
    return "\n\n".join([block("Use it in Python:", *code), block("Or on the command line:", *lines)])


def _run(path: Path) -> str:
    """How far a run came, what it found, and what it leads to."""
    models = [name for name in _MODELS if (path / name / CONFIG).is_file()]
    results = _results(path / "results.json")
    about = facts(
        ("trained", _progress(path / "metrics.csv", bool(models))),
        *((name, _MODELS[name] + _score(results.get(name))) for name in models),
    )
    config = ["--config", path / "config.yaml"] if (path / "config.yaml").is_file() else []
    go_on = command("pretrain", *config, "--out", path, "--resume", "true")
    lines = [command("inspect", path / models[0])] if models else [go_on] * (path / "state").is_dir()
    return page("Run", path, about, block("What to do:", *lines, command("report", path)))


def _results(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise DataError(f"'{path}' is not JSON: {error}. Move it away to see the rest of the run.") from error
    return found if isinstance(found, dict) else {}


def _progress(path: Path, finished: bool) -> str:
    """The last step of metrics.csv and its loss."""
    if not path.is_file():
        return ""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    losses = [row["val/loss"] for row in rows if row.get("val/loss")]
    text = f"{rows[-1].get('step')} steps" if rows else "no step yet"
    text += f", last validation loss {float(losses[-1]):.4g}" if losses else ""
    return text + ("" if finished else "; not finished, or it was interrupted")


def _score(found: Any) -> str:
    """The metrics on test of one checkpoint, with their 95 % intervals."""
    scores = {k: v for k, v in found.items() if isinstance(v, list)} if isinstance(found, dict) else {}
    known = {k: v for k, v in scores.items() if len(v) == 3 and None not in v}
    parts = [f"{metric} {mean:.3f} ({low:.3f} to {high:.3f})" for metric, (mean, low, high) in known.items()]
    return f"; on test {', '.join(parts)}" if parts else ""
