"""Checkpoints: a directory with config.json (sizes, modalities, bands, units, statistics) and model.safetensors."""

import dataclasses
import hashlib
import json
import os
import re
import reprlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
import torch
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from multimae_eo.config import ModelConfig, TaskConfig, from_json, task_from_json, to_json
from multimae_eo.documents import parse_json, read_json
from multimae_eo.encoder import Encoder
from multimae_eo.errors import CheckpointError, ConfigError, WriteError
from multimae_eo.model import MultiMAE
from multimae_eo.predictor import Predictor
from multimae_eo.whole import written

CONFIG, WEIGHTS = "config.json", "model.safetensors"
# What the names of the encoder's tensors begin with.
ENCODER = "encoder."
# The entry of config.json that tells one save from another.
SAVED = "saved"
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
    """Write a checkpoint directory, replacing the files of an older one; readers see the old or the new one, whole.

    extra: JSON-ready facts to keep in config.json beside the model's (training steps, source of the weights).
    A model that torch.compile wrapped is saved as what it is. Raises WriteError where the disk is full or the directory
    cannot be written; the older one is then kept. Raises ConfigError for what is none of these models.
    """
    directory, model = Path(directory), getattr(model, "_orig_mod", model)
    if not isinstance(model, MultiMAE | Predictor | Encoder):
        name = type(model).__name__
        raise ConfigError(f"expected a MultiMAE, a Predictor or an Encoder, got {name}; save the model that it holds.")
    try:
        if directory.is_dir():
            write_files(model, directory, extra=extra)
            return directory
        directory.parent.mkdir(parents=True, exist_ok=True)
        with written(directory) as partial:
            partial.mkdir()
            write_files(model, partial, extra=extra)
    except (OSError, SafetensorError) as error:
        raise WriteError(f"'{directory}' could not be written: {error}. What was there before is kept.") from error
    return directory


def write_files(model: MultiMAE | Predictor | Encoder, folder: Path, *, extra: Mapping[str, Any] | None) -> None:
    """Write the files of a checkpoint into a folder that exists, replacing those that are there.

    Two files cannot be replaced at once, so the weights carry the text of their own config.json too, and both its
    digest: where these differ, the weights' own text counts (see `read_content`).
    """
    content = {"format": FORMAT, "model": to_json(model.config), "extra": dict(extra or {})}
    if isinstance(model, Predictor):
        content["task"] = dataclasses.asdict(model.task)
    content[SAVED] = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
    prefix = ENCODER if isinstance(model, Encoder) else ""
    tensors = {prefix + name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    text = json.dumps(content, indent=1) + "\n"
    # Beside, also as the model's own weights may be mapped from the file that is replaced.
    with written(folder / CONFIG) as config, written(folder / WEIGHTS) as weights:
        safetensors.torch.save_file(tensors, weights, metadata={"format": "pt", CONFIG: text})
        _settle(weights)
        config.write_text(text)


def _settle(path: Path) -> None:
    """Sort the metadata of a safetensors file, whose order is random, so that equal weights make equal files."""
    with open(path, "r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header = {"__metadata__": dict(sorted(header.pop("__metadata__").items())), **header}
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= length
        file.seek(8)
        file.write(text.ljust(length))


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
    """The config.json of a checkpoint: entries "format", "model", "extra", and "task" of a fine-tuned one.

    Where the weights are of another save, as between the two renames of `write_files`, it is the text that they carry.
    """
    directory = locate(name)
    if not (directory / WEIGHTS).is_file():
        return _config_json(directory, name)
    with _opened(directory / WEIGHTS) as file:
        return _content_of(file, directory, name)


def _content_of(file: Any, directory: Path, name: str | os.PathLike[str]) -> dict[str, Any]:
    carried = (file.metadata() or {}).get(CONFIG)
    content = _config_json(directory, name)
    if carried is None or SAVED not in content:
        return content
    path = directory / WEIGHTS
    own = _checked(parse_json(carried.encode(), f"the metadata of '{path}'", CheckpointError), path)
    return content if own.get(SAVED) == content[SAVED] else own


def _config_json(directory: Path, name: str | os.PathLike[str]) -> dict[str, Any]:
    path = directory / CONFIG
    if not path.is_file():
        raise CheckpointError(
            f"'{name}' is no checkpoint: it has no {CONFIG}. Expected a directory written by pre-training, by "
            f"fine-tuning, or by `multimae-eo convert`. {NO_WEIGHTS}"
        )
    return _checked(read_json(path, CheckpointError), path)


def _checked(content: Any, path: Path) -> dict[str, Any]:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else None
        raise CheckpointError(
            f"'{path}' has format {reprlib.repr(found)}, expected {FORMAT}; was it written by a newer version?"
        )
    if "model" not in content:
        raise CheckpointError(f"'{path}' has no entry 'model', which describes the model; was it cut or edited?")
    return content


def load_config(directory: str | os.PathLike[str]) -> ModelConfig:
    """Read the configuration of a checkpoint."""
    return config_of(read_content(directory), directory)


def config_of(content: Mapping[str, Any], directory: str | os.PathLike[str]) -> ModelConfig:
    """The model that the content of config.json describes; raises CheckpointError."""
    return _described(from_json, content["model"], directory)


def task_of(content: Mapping[str, Any], directory: str | os.PathLike[str]) -> TaskConfig:
    """The task that the content of config.json describes; raises CheckpointError, also for a pre-trained model."""
    if "task" not in content:
        raise CheckpointError(
            f"'{directory}' is a pre-trained model without a head; expected a fine-tuned one, such as the "
            "folder best of `multimae-eo finetune`."
        )
    return _described(task_from_json, content["task"], directory)


def _described(read: Callable[[Any], T], entry: Any, directory: str | os.PathLike[str]) -> T:
    try:
        return read(entry)
    except CheckpointError as error:
        raise CheckpointError(f"'{Path(directory) / CONFIG}': {error}") from error


def read_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read a safetensors file."""
    with _opened(path) as file:
        return _tensors(file)


def _tensors(file: Any) -> dict[str, Tensor]:
    names = file.keys()
    return {name: file.get_tensor(name) for name in names}


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[Any]:
    """A safetensors file, whose header has been checked; of one save, though the library opens it twice."""
    if not Path(path).is_file():
        raise CheckpointError(f"'{path}' does not exist; a checkpoint needs both of its files. Copy it anew.")
    try:
        opened = False
        while not opened:
            known = os.stat(path)
            with safe_open(path, framework="pt") as file:
                opened = (known.st_ino, known.st_mtime_ns) == ((now := os.stat(path)).st_ino, now.st_mtime_ns)
                if opened:
                    yield file
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"'{path}' is not a safetensors file, or is damaged: {error}. Fetch it again.") from error


def load(name: str | os.PathLike[str], config: ModelConfig | None = None) -> Encoder:
    """Load the encoder of a checkpoint strictly, without its decoders or head.

    name: a checkpoint directory, pre-trained or fine-tuned, or a model on the Hugging Face Hub (see `locate`).
    config: the checkpoint's own with what does not change the weights replaced (statistics, drop path).
    Raises CheckpointError.
    """
    directory = locate(name)
    return filled(lambda content: Encoder(config or config_of(content, directory)), directory, prefix=ENCODER)


def load_model(name: str | os.PathLike[str]) -> MultiMAE:
    """Load a pre-trained model, encoder and decoders, strictly; name as of `load`; raises CheckpointError."""
    directory = locate(name)
    if "task" in read_content(directory):
        what = "is of a fine-tuned model, which has no decoders. Give the pre-trained one, or read it by load_predictor"
        raise CheckpointError(f"'{directory}' {what}.")
    return filled(lambda content: MultiMAE(config_of(content, directory)), directory)


def load_predictor(name: str | os.PathLike[str]) -> Predictor:
    """Load a fine-tuned model, the encoder with its head, strictly; name as of `load`; raises CheckpointError."""
    directory = locate(name)
    return filled(
        lambda content: Predictor(config_of(content, directory), task_of(content, directory)),
        directory,
    )


def filled(build: Callable[[dict[str, Any]], M], directory: str | os.PathLike[str], *, prefix: str = "") -> M:
    """A module that is built from the content of config.json, with the weights whose names begin with `prefix`.

    It is built without memory or initialisation, and its weights are those of the file, mapped and read when used.
    Both are of one save, also while another process writes to the directory.
    """
    path = Path(directory) / WEIGHTS
    if not path.is_file():
        _config_json(Path(directory), directory)
    with _opened(path) as file:
        content = _content_of(file, Path(directory), directory)
        tensors = {n.removeprefix(prefix): t for n, t in _tensors(file).items() if n.startswith(prefix)}
    with torch.device("meta"):
        module = build(content)
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
