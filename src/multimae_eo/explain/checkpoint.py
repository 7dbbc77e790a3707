"""Explains a checkpoint directory from its config.json and the header of its weights; loads no weights."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from multimae_eo.checkpoint import CONFIG, WEIGHTS, load_config, read_content
from multimae_eo.config import SIZES, ModelConfig, TaskConfig, task_from_json
from multimae_eo.errors import CheckpointError
from multimae_eo.explain.feeds import sources_of
from multimae_eo.explain.page import block, command, facts, file_size, listed, page, table
from multimae_eo.modalities import REFLECTANCE, Categorical, Continuous, Modality

PIXEL = 10  # m, of the frame of every model


def explain_checkpoint(path: Path) -> str:
    """What a checkpoint directory holds and how to use it; raises CheckpointError where it is damaged."""
    content = read_content(path)
    config = load_config(path)
    task = _task(content, path)
    title = "Pre-trained checkpoint" if task is None else f"Fine-tuned checkpoint: {_about(task)}"
    about = facts(
        ("model", _sizes(config)),
        ("parameters", _parameters(path / WEIGHTS)),
        ("images", _images(config, content["extra"] if isinstance(content.get("extra"), dict) else {})),
        ("predicts", _predicted(task) if task is not None else listed(config.targets)),
        ("trained on", task.dataset if task is not None else ""),
        ("needs", _needed(content.get("extra")) if task is not None else ""),
        ("recorded", _recorded(content.get("extra"))),
    )
    return page(title, path, about, _inputs(config, task), _use(path, config, task))


def _task(content: Mapping[str, Any], path: Path) -> TaskConfig | None:
    if "task" not in content:
        return None
    try:
        return task_from_json(content["task"])
    except CheckpointError as error:
        raise CheckpointError(f"'{path / CONFIG}': {error}") from error


def _about(task: TaskConfig) -> str:
    """The task in a few words."""
    if task.classes:
        return f"{task.task}, {len(task.classes)} classes"
    return f"{task.task}{f' in {task.unit}' if task.unit else ''}"


def _sizes(config: ModelConfig) -> str:
    """The name of the size, and what it is made of."""
    own = {key: getattr(config, key) for key in SIZES["base"]}
    name = next((name for name, sizes in SIZES.items() if sizes == own), "own size")
    return f"{name}: {config.depth} blocks, {config.dim} wide, {config.heads} heads; positions {config.positions}"


def _parameters(weights: Path) -> str:
    """Numbers in the encoder and in the rest, from the shapes that the header states."""
    if not weights.is_file():
        raise CheckpointError(f"'{weights}' does not exist; the checkpoint is not complete.")
    try:
        with safe_open(weights, framework="numpy") as file:
            sizes = {name: math.prod(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"'{weights}' is not a safetensors file, or is damaged: {error}.") from error
    parts: dict[str, int] = {}
    for name, size in sizes.items():
        first = name.split(".")[0]
        parts[first] = parts.get(first, 0) + size
    said = ", ".join(f"{name} {size / 1e6:.2f} M" for name, size in sorted(parts.items(), key=lambda p: -p[1]))
    return f"{sum(parts.values()) / 1e6:.2f} M ({said}); {file_size(weights.stat().st_size)} on disk"


def _images(config: ModelConfig, extra: Mapping[str, Any]) -> str:
    """The frame of training, the patch, and the size of the images that it was fine-tuned on."""
    edge, patch = config.image_size, config.patch_size
    text = f"{edge} x {edge} px of {PIXEL} m ({edge * PIXEL} m), patches of {patch} x {patch} px"
    tuned = extra.get("image_px")
    return text + (f"; fine-tuned on images of {tuned} px" if isinstance(tuned, int) else "")


def _predicted(task: TaskConfig) -> str:
    if task.classes:
        how = "every pixel" if task.dense else "every image"
        kind = "any number of" if task.task == "multilabel" else "one of"
        return f"for {how} {kind} {listed((c.name for c in task.classes), 14)} (head {task.head})"
    return f"for every pixel a number{f' in {task.unit}' if task.unit else ''}, head {task.head}"


def _needed(extra: Any) -> str:
    """Which of its inputs have to be there."""
    data = extra.get("data") if isinstance(extra, dict) else None
    if isinstance(data, dict) and data.get("drop_modality"):
        return "any one of its inputs or more: some were hidden at random while it was fine-tuned"
    return "all of its inputs, as when it was fine-tuned; predict --allow-missing true goes without some"


def _recorded(extra: Any) -> str:
    """What was written beside the model, as far as it fits into a line each."""
    if not isinstance(extra, dict):
        return ""
    told = []
    for name, value in extra.items():
        if isinstance(value, dict):
            value = ", ".join(f"{k} {v}" for k, v in value.items() if k in ("name", "root", "partition") and v)
        if value not in ("", None) and len(str(value)) <= 80 and name not in ("inputs", "bands", "image_px"):
            told.append(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}")
    return "; ".join(told)


def _inputs(config: ModelConfig, task: TaskConfig | None) -> str:
    """One row per modality that is fed."""
    rows = []
    for view in config.input_views:
        modality = config.modalities[view.modality]
        if task is None or view.modality in task.inputs:
            read_as = _products(modality, (task.products.get(view.modality) if task is not None else None))
            grid = f"{PIXEL * modality.stride} m"
            rows.append([str(view), " ".join(modality.bands), _unit(modality), grid, read_as])
    head = ["input", "bands", "unit", "pixels", "statistics of"]
    if task is not None:
        head[-1] = "read as product"
    return table(head, rows)


def _unit(modality: Modality) -> str:
    return f"class codes ({len(modality.classes)})" if isinstance(modality, Categorical) else modality.unit


def _products(modality: Modality, chosen: str | None) -> str:
    return chosen or ", ".join(modality.products)


def _use(path: Path, config: ModelConfig, task: TaskConfig | None) -> str:
    """How to use it, ready to copy."""
    if task is not None:
        sources = sources_of(config.modalities[name] for name in task.inputs)
        lines = [command("predict", path, *sources, "--out", "map.tif"), command("evaluate", path)]
        return block("Map a scene with it (docs/maps.md), or test it again:", *lines)
    names = config.input_modalities
    modality = next((m for n in names if isinstance(m := config.modalities[n], Continuous)), None)
    code = [f'encoder = multimae_eo.load("{path}")']
    if modality is not None:
        bands = ", ".join(f'"{band}"' for band in modality.bands)
        units = ', units="dn"' if modality.unit == REFLECTANCE else ""
        product = "L2A" if "L2A" in modality.products else modality.products[0]
        code.append(f'tokens = encoder(images, bands=[{bands}]{units}, product="{product}")')
    lines = [
        command("finetune", "--checkpoint", path, "--data.root", "DIR", "--data.name", "NAME"),
        command("embed", path, *sources_of(config.modalities[n] for n in names), "--out", "embeddings.tif"),
    ]
    return "\n\n".join([block("Use it in Python:", *code), block("Or on the command line:", *lines)])
