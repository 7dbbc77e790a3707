"""Checkpoints: a directory with config.json (sizes, modalities, bands, units, statistics) and model.safetensors."""

import dataclasses
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
import torch
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError
from torch import Tensor, nn

from multimae_eo.config import ModelConfig, from_json, task_from_json, to_json
from multimae_eo.encoder import Encoder
from multimae_eo.errors import CheckpointError
from multimae_eo.model import MultiMAE
from multimae_eo.predictor import Predictor

CONFIG, WEIGHTS = "config.json", "model.safetensors"
# What the names of the encoder's tensors begin with.
ENCODER = "encoder."
FORMAT = 1
NO_WEIGHTS = (
    "No pre-trained weights come with this package: pre-train your own, or convert the release of the paper's authors "
    "(docs/weights.md)."
)
_HUB_ID = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class LoadReport:
    """What happened to each tensor: loaded; new (in the model only, kept as initialised); unused (in the file only)."""

    loaded: tuple[str, ...]
    new: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} tensors loaded, {len(self.new)} new, {len(self.unused)} unused"]
        parts += [f"  {what}: {name}" for what in ("new", "unused") for name in getattr(self, what)]
        return "\n".join(parts)


def load_tensors(
    module: nn.Module, tensors: Mapping[str, Tensor], *, source: str, strict: bool = True, assign: bool = False
) -> LoadReport:
    """Copy tensors into a module; strict: raise CheckpointError on any name or shape that does not match.

    Not strict, unmatched names are reported; a wrong shape is always an error. assign: the tensors become the module's
    own instead of being copied (their type is that of the module).
    """
    own = module.state_dict()
    new, unused = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    shapes = [
        f"'{name}' has shape {list(tensors[name].shape)}, expected {list(own[name].shape)}"
        for name in own
        if name in tensors and tensors[name].shape != own[name].shape
    ]
    problems = shapes + ([f"'{n}' is missing" for n in new] + [f"'{n}' is unknown" for n in unused]) * strict
    if problems:
        shown = "; ".join(problems[:4]) + (f"; and {len(problems) - 4} more" if len(problems) > 4 else "")
        raise CheckpointError(f"{source} does not fit the model: {shown}. Is it of another size or set of modalities?")
    loaded = tuple(name for name in own if name in tensors)
    module.load_state_dict({n: tensors[n].to(own[n].dtype) for n in loaded}, strict=False, assign=assign)
    return LoadReport(loaded, tuple(new), tuple(unused))


def save(
    model: MultiMAE | Predictor | Encoder,
    directory: str | os.PathLike[str],
    *,
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Write a checkpoint directory; it appears under its name only when complete, replacing an older one.

    extra: JSON-ready facts to keep in config.json beside the model's (training steps, source of the weights).
    """
    directory = Path(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    partial = directory.with_name(f".{directory.name}.partial-{os.getpid()}")
    partial.mkdir()
    try:
        write_files(model, partial, extra=extra)
        if directory.exists():
            shutil.rmtree(directory)
        os.replace(partial, directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return directory


def write_files(model: MultiMAE | Predictor | Encoder, folder: Path, *, extra: Mapping[str, Any] | None) -> None:
    """Write the files of a checkpoint into a folder that exists, replacing those that are there."""
    content = {"format": FORMAT, "model": to_json(model.config), "extra": dict(extra or {})}
    if isinstance(model, Predictor):
        content["task"] = dataclasses.asdict(model.task)
    prefix = ENCODER if isinstance(model, Encoder) else ""
    tensors = {prefix + name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    partial = {name: folder / f".{name}.partial-{os.getpid()}" for name in (WEIGHTS, CONFIG)}
    try:  # beside, as the model's own weights may be mapped from the file that is replaced
        safetensors.torch.save_file(tensors, partial[WEIGHTS], metadata={"format": "pt"})
        partial[CONFIG].write_text(json.dumps(content, indent=1) + "\n")
        for name, path in partial.items():
            os.replace(path, folder / name)
    finally:
        for path in partial.values():
            path.unlink(missing_ok=True)


def locate(name: str | os.PathLike[str]) -> Path:
    """The directory of a checkpoint: of that path, or of a model on the Hugging Face Hub, which is downloaded once.

    name: a path, "organisation/name" or "organisation/name@revision". A path that exists comes first; what begins
    with a folder that exists is a path. Raises CheckpointError where the Hub has no such model, or cannot be reached.
    """
    path, words = Path(name), _HUB_ID.fullmatch(str(name))
    if words is None or path.exists() or Path(path.parts[0]).is_dir():
        return path
    from huggingface_hub import snapshot_download

    try:
        found = snapshot_download(words["id"], revision=words["revision"], allow_patterns=[CONFIG, WEIGHTS])
    except (HfHubHTTPError, OSError, ValueError) as error:  # ValueError: a name that the Hub does not allow
        why = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"'{name}' is no folder, and no model that can be had from the Hugging Face Hub ({why}). {NO_WEIGHTS}"
        ) from error
    return Path(found)


def read_content(name: str | os.PathLike[str]) -> dict[str, Any]:
    """The config.json of a checkpoint: entries "format", "model", "extra", and "task" of a fine-tuned one."""
    directory = locate(name)
    path = directory / CONFIG
    if not path.is_file():
        raise CheckpointError(
            f"'{name}' is no checkpoint: it has no {CONFIG}. Expected a directory written by pre-training, by "
            f"fine-tuning, or by `multimae-eo convert`. {NO_WEIGHTS}"
        )
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise CheckpointError(f"'{path}' is not JSON: {error}. Was it cut? Copy the checkpoint anew.") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else None
        raise CheckpointError(f"'{path}' has format {found!r}, expected {FORMAT}; was it written by a newer version?")
    if "model" not in content:
        raise CheckpointError(f"'{path}' has no entry 'model', which describes the model; was it cut or edited?")
    return content


def load_config(directory: str | os.PathLike[str]) -> ModelConfig:
    """Read the configuration of a checkpoint."""
    return _described(from_json, read_content(directory)["model"], directory)


def _described(read: Callable[[Any], T], entry: Any, directory: str | os.PathLike[str]) -> T:
    try:
        return read(entry)
    except CheckpointError as error:
        raise CheckpointError(f"'{Path(directory) / CONFIG}': {error}") from error


def read_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read a safetensors file."""
    if not Path(path).is_file():
        raise CheckpointError(f"'{path}' does not exist; a checkpoint needs both of its files. Copy it anew.")
    try:
        return safetensors.torch.load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"'{path}' is not a safetensors file, or is damaged: {error}. Fetch it again.") from error


def load(name: str | os.PathLike[str], config: ModelConfig | None = None) -> Encoder:
    """Load the encoder of a checkpoint strictly, without its decoders or head.

    name: a checkpoint directory, pre-trained or fine-tuned, or a model on the Hugging Face Hub (see `locate`).
    config: the checkpoint's own with what does not change the weights replaced (statistics, drop path).
    Raises CheckpointError.
    """
    directory = locate(name)
    described = config or load_config(directory)
    return filled(lambda: Encoder(described), directory, prefix=ENCODER)


def load_model(name: str | os.PathLike[str]) -> MultiMAE:
    """Load a pre-trained model, encoder and decoders, strictly; name as of `load`; raises CheckpointError."""
    directory = locate(name)
    config = load_config(directory)
    return filled(lambda: MultiMAE(config), directory)


def load_predictor(name: str | os.PathLike[str]) -> Predictor:
    """Load a fine-tuned model, the encoder with its head, strictly; name as of `load`; raises CheckpointError."""
    directory = locate(name)
    content = read_content(directory)
    if "task" not in content:
        raise CheckpointError(
            f"'{directory}' is a pre-trained model without a head; expected a fine-tuned one, such as the "
            "folder best of `multimae-eo finetune`."
        )
    task = _described(task_from_json, content["task"], directory)
    config = load_config(directory)
    return filled(lambda: Predictor(config, task), directory)


def filled(build: Callable[[], M], directory: str | os.PathLike[str], *, prefix: str = "") -> M:
    """A module with the weights of a checkpoint directory, whose names begin with `prefix`.

    It is built without memory or initialisation, and its weights are those of the file, mapped and read when used.
    """
    path = Path(directory) / WEIGHTS
    tensors = {n.removeprefix(prefix): t for n, t in read_tensors(path).items() if n.startswith(prefix)}
    with torch.device("meta"):
        module = build()
    load_tensors(module, tensors, source=f"'{path}'", assign=True)
    return module.eval()


def fingerprint(name: str | os.PathLike[str]) -> str:
    """A short text that changes with the weights or the configuration of a checkpoint; raises CheckpointError."""
    directory = locate(name)
    read_content(directory)
    if not (Path(directory) / WEIGHTS).is_file():
        raise CheckpointError(f"'{Path(directory) / WEIGHTS}' does not exist; copy the checkpoint anew.")
    digest = hashlib.sha256((Path(directory) / CONFIG).read_bytes())
    with open(Path(directory) / WEIGHTS, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()[:16]


def describe(module: nn.Module) -> str:
    """The size of a model in words."""
    return f"{sum(p.numel() for p in module.parameters()) / 1e6:.2f} M parameters"
