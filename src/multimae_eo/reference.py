"""Reads weights in the public layout of the paper's code, without executing them, into a model of this package."""

import argparse
import dataclasses
import math
import os
import pickle
import pickletools
import re
import reprlib
import zipfile
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from multimae_eo.checkpoint import LoadReport, load_tensors, read_tensors, save
from multimae_eo.config import SIZES, TABLE_SIZE, ModelConfig, with_statistics
from multimae_eo.documents import read_json
from multimae_eo.errors import CheckpointError, ConfigError
from multimae_eo.layers import sine_cosine_table
from multimae_eo.modalities import MODALITIES, Categorical, Continuous, MapClass, Modality
from multimae_eo.model import MultiMAE

# The paper's code's names -> ours, in its order (docs/model.md, section 1).
INPUTS = {
    "rgb": "rgb",
    "depth": "elevation:sample",
    "semseg": "land_cover",
    "ired": "red_edge",
    "sired": "swir",
    "ebands": "nir",
}
TARGETS = {**INPUTS, "norm_rgb": "rgb:patch"}
LONGEST = 4096  # characters of a name or another text in a pickle
NO_DATA_CLASS = MapClass(255, "No data", "#000000")

_DECODER_PARTS = {
    "mask_token": "mask_token",
    "proj_context": "context",
    "query_norm": "query_norm",
    "context_norm": "context_norm",
    "out_norm": "out_norm",
    "decoder": "cross",
    "mlp": "mlp",
    "decoder_transformer": "blocks",
    "out_proj": "out",
}


@dataclasses.dataclass(frozen=True)
class Reference:
    """Weights in the public layout: tensors as read, and what else the file or its neighbour says of them."""

    path: Path
    tensors: Mapping[str, Tensor]
    settings: Mapping[str, Any]  # of the checkpoint's `args`, then of a config.json beside it


def read(path: str | os.PathLike[str]) -> Reference:
    """Read a .pth checkpoint (its pickle is never executed) or a .safetensors file in the public layout."""
    path = Path(path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise CheckpointError(f"'{path}' {what}; expected a .pth or .safetensors file of weights.")
    if path.suffix == ".safetensors":
        content: Any = read_tensors(path)
    else:
        try:
            _check_archive(path)
            _check_texts(path)
            with torch.serialization.safe_globals([argparse.Namespace]):
                content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # bytes that are no pickle make the reader fail in any way
            raise CheckpointError(
                f"'{path}' is not a file of tensors: {_unreadable(path, error)}. Nothing in it was executed. "
                "Expected a dictionary of tensors, or one with the entry 'model'."
            ) from error
    settings = _settings(content, path)
    tensors = content.get("model", content) if isinstance(content, dict) else content
    named = isinstance(tensors, dict) and all(isinstance(name, str) for name in tensors)
    if not named or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise CheckpointError(f"'{path}': expected a dictionary of tensors, or one with the entry 'model'.")
    for name, tensor in tensors.items():
        if not _is_plain(tensor):
            raise CheckpointError(
                f"'{path}', tensor {reprlib.repr(name)}: expected one whose numbers are all in the file, got a view or "
                f"another kind of {reprlib.repr(list(tensor.shape))}. Save plain tensors: t.contiguous()."
            )
    return Reference(path, tensors, settings)


def _check_archive(path: Path) -> None:
    """Raise UnpicklingError for a zip that becomes larger than it is: torch.save compresses nothing."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            size = sum(max(entry.file_size, entry.compress_size) for entry in archive.infolist())
        if size > path.stat().st_size:
            raise _Larger(f"its entries would take {size} bytes, but the file has {path.stat().st_size}")


def _check_texts(path: Path) -> None:
    """Raise UnpicklingError for a text that no checkpoint has: torch looks at names for the square of their length."""
    with suppress(ValueError, EOFError, KeyError), ExitStack() as stack:  # damage, which torch finds too
        if zipfile.is_zipfile(path):
            archive = stack.enter_context(zipfile.ZipFile(path))
            (name,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            file, pickles = stack.enter_context(archive.open(name)), 1
        else:
            file, pickles = stack.enter_context(open(path, "rb")), 5
        for _ in range(pickles):
            for _, argument, _ in pickletools.genops(file):
                if isinstance(argument, str) and len(argument) > LONGEST:
                    raise _Larger(f"it holds a text of {len(argument)} characters, expected at most {LONGEST}")


class _Larger(pickle.UnpicklingError):
    """A file that takes more than it should."""


def _is_plain(tensor: Tensor) -> bool:
    """Whether every number is stored once: no view of a smaller tensor, nothing sparse or without numbers."""
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        return False
    return math.prod(tensor.shape) * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _unreadable(path: Path, error: Exception) -> str:
    """What is wrong, in our words: those of torch advise to execute the file."""
    if not path.stat().st_size:
        return "it is empty"
    if isinstance(error, OSError):
        return f"it cannot be read ({error})"
    if isinstance(error, _Larger):
        return f"{error}"
    if not isinstance(error, pickle.UnpicklingError):
        return "it is damaged, truncated, or of another format"
    refused = re.search(r"GLOBAL ([\w.]+)", str(error))
    named = f" ({refused[1]})" if refused else ", or is of another format"
    return f"it holds objects other than tensors{named}"


def _settings(content: Any, path: Path) -> dict[str, Any]:
    args = content.get("args") if isinstance(content, dict) else None
    settings = dict(vars(args)) if isinstance(args, argparse.Namespace) else {}
    beside = path.with_name("config.json")
    if beside.is_file():
        entries = read_json(beside, CheckpointError)
        if not isinstance(entries, dict):
            raise CheckpointError(
                f"'{beside}', beside the weights '{path}': expected an object with entries such as 'encoder_heads', "
                f"got a {type(entries).__name__}."
            )
        settings |= entries
    return settings


def _number(reference: Reference, *names: str, default: int) -> int:
    """The first of the settings that is given; raises CheckpointError where it is no whole number."""
    name = next((n for n in names if n in reference.settings), None)
    value = default if name is None else reference.settings[name]
    if type(value) is not int:
        raise CheckpointError(
            f"the settings of '{reference.path}' (its 'args', or '{reference.path.with_name('config.json')}'): "
            f"'{name}' must be a whole number, got {reprlib.repr(value)}."
        )
    return value


def _heads(reference: Reference) -> int:
    if "encoder_heads" in reference.settings:
        return _number(reference, "encoder_heads", default=0)
    for size in ("base", "large"):
        if size in str(reference.settings.get("model", "")):
            return SIZES[size]["heads"]
    raise CheckpointError(
        f"the number of attention heads cannot be read from the weights '{reference.path}': put a config.json with "
        "'encoder_heads' (and 'decoder_heads') beside the file, or use a checkpoint whose 'args' name the model."
    )


def _shape(reference: Reference, name: str, dims: int) -> torch.Size:
    if name not in reference.tensors:
        raise CheckpointError(f"'{reference.path}' has no tensor '{name}': it is not in the paper's layout.")
    shape = reference.tensors[name].shape
    if len(shape) != dims:
        raise CheckpointError(
            f"'{reference.path}', tensor '{name}': expected {dims} dimensions, got {list(shape)}; it is not in the "
            "paper's layout."
        )
    return shape


def config_of(reference: Reference) -> ModelConfig:
    """The configuration that fits the tensors; L2A statistics for every product, and 12 land cover classes."""
    inputs = [n for n in INPUTS if f"input_adapters.{n}.proj.weight" in reference.tensors]
    targets = [n for n in TARGETS if f"output_adapters.{n}.out_proj.weight" in reference.tensors]
    if not inputs or not targets:
        raise CheckpointError(f"'{reference.path}' holds no input or output adapters: it is not in the paper's layout.")
    dim, _, _, edge = _shape(reference, f"input_adapters.{inputs[0]}.proj.weight", 4)
    stride = 4 if inputs[0] == "semseg" else 1
    decoder = f"output_adapters.{targets[0]}"
    sizes = {
        "dim": dim,
        "depth": _count(reference, "encoder"),
        "heads": _heads(reference),
        "decoder_dim": _shape(reference, f"{decoder}.mask_token", 3)[-1],
        "decoder_depth": _count(reference, f"{decoder}.decoder_transformer"),
        "decoder_heads": _number(reference, "decoder_heads", "decoder_num_heads", default=8),
        "image_size": _number(reference, "input_size", "image_height", default=56),
        "patch_size": edge * stride,
        "num_global_tokens": _shape(reference, "global_tokens", 3)[1],
    }
    try:
        return ModelConfig(
            **sizes,  # type: ignore[arg-type]
            inputs=tuple(INPUTS[n] for n in inputs),
            targets=tuple(TARGETS[n] for n in targets),
            modalities={name: _as_trained(m) for name, m in MODALITIES.items()},
        )
    except ConfigError as error:
        raise CheckpointError(
            f"'{reference.path}' and its settings (its 'args', or a config.json beside it) describe no model: {error}"
        ) from error


def _as_trained(modality: Modality) -> Modality:
    """The published training used L2A statistics for every product, and counted no data as a class."""
    if isinstance(modality, Categorical):
        return dataclasses.replace(modality, classes=(*modality.classes, NO_DATA_CLASS))
    if isinstance(modality, Continuous) and "L2A" in modality.statistics:
        return with_statistics(modality, dict.fromkeys(modality.products, modality.statistics["L2A"]))
    return modality


def _count(reference: Reference, prefix: str) -> int:
    """How many blocks there are below a name."""
    depth = len(prefix.split("."))
    blocks = {n.split(".")[depth] for n in reference.tensors if n.startswith(prefix + ".")}
    if not blocks:
        raise CheckpointError(f"'{reference.path}' has no tensors '{prefix}.*': it is not in the paper's layout.")
    return len(blocks)


def translate(reference: Reference, config: ModelConfig) -> dict[str, Tensor]:
    """The tensors under this package's names: class embeddings folded into the projection, position tables checked."""
    own: dict[str, Tensor] = {}
    embeddings: dict[str, dict[str, Tensor]] = {}
    inputs = {INPUTS[n].partition(":")[0]: n for n in INPUTS}
    for name, tensor in reference.tensors.items():
        section, _, rest = name.partition(".")
        key, _, part = rest.partition(".")
        if part == "pos_emb":
            _check_table(reference.path, name, tensor, config)
        elif name == "global_tokens":
            own["encoder.global_tokens"] = tensor
        elif section == "encoder":
            own[f"encoder.blocks.{rest}"] = tensor
        elif section == "input_adapters" and key in INPUTS:
            if part != "class_emb.weight":
                own[f"encoder.tokenizers.{INPUTS[key].partition(':')[0]}.{part}"] = _fold(reference.tensors, key, part)
        elif section == "output_adapters" and key in TARGETS:
            head, _, tail = part.partition(".")
            if head == "task_embeddings":
                embeddings.setdefault(TARGETS[key], {})[tail] = tensor.flatten()
            else:
                own[".".join(filter(None, ("decoders", TARGETS[key], _DECODER_PARTS.get(head, head), tail)))] = tensor
        else:
            own[name] = tensor  # unknown: the strict load names it
    for view, rows in embeddings.items():
        order = [inputs[name] for name in config.input_modalities]
        unknown = sorted(set(rows) - set(order)) + sorted(set(order) - set(rows))
        if unknown:
            raise CheckpointError(
                f"'{reference.path}': task embeddings of '{view}' do not match the inputs: {unknown}."
            )
        own[f"decoders.{view}.modality_embeddings"] = torch.stack([rows[name] for name in order])
    return own


def _fold(tensors: Mapping[str, Tensor], name: str, part: str) -> Tensor:
    """A projection as a linear layer's weight; W[D,k,x,y] = sum_e proj[D,e,x,y] emb[k,e] for classes (section 2)."""
    tensor = tensors[f"input_adapters.{name}.{part}"]
    if part != "proj.weight":
        return tensor
    if (embedding := tensors.get(f"input_adapters.{name}.class_emb.weight")) is not None:
        tensor = torch.einsum("dexy,ke->dkxy", tensor.float(), embedding.float())
    return tensor.flatten(1)


def _check_table(path: Path, name: str, tensor: Tensor, config: ModelConfig) -> None:
    edge = TABLE_SIZE // config.patch_size
    expected = sine_cosine_table(tensor.shape[1], edge, edge) if tensor.dim() == 4 else torch.empty(0)
    if tensor.shape != expected.shape or not torch.allclose(tensor.float(), expected, atol=1e-4):
        raise CheckpointError(
            f"'{path}': '{name}' is not the fixed sine-cosine table of {edge} x {edge}; it cannot be converted."
        )


def load_reference(path: str | os.PathLike[str]) -> tuple[MultiMAE, LoadReport]:
    """Build the model of a file in the public layout and load it strictly."""
    reference = read(path)
    config = config_of(reference)
    model = MultiMAE(config)
    report = load_tensors(model, translate(reference, config), source=f"'{reference.path}'")
    return model.eval(), report


def convert(path: str | os.PathLike[str], directory: str | os.PathLike[str]) -> LoadReport:
    """Write a file in the public layout as a checkpoint directory of this package."""
    model, report = load_reference(path)
    save(model, directory, extra={"converted_from": Path(path).name})
    return report
