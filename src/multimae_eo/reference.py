"""Reads weights in the public layout of the paper's code, without executing them, into a model of this package."""

import argparse
import dataclasses
import json
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from multimae_eo.checkpoint import LoadReport, load_tensors, read_tensors, save
from multimae_eo.config import SIZES, TABLE_SIZE, ModelConfig, with_statistics
from multimae_eo.errors import CheckpointError
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
        raise CheckpointError(f"'{path}' does not exist.")
    if path.suffix == ".safetensors":
        content: Any = read_tensors(path)
    else:
        try:
            with torch.serialization.safe_globals([argparse.Namespace]):
                content = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
            raise CheckpointError(
                f"'{path}' is not a file of tensors: {str(error).splitlines()[0]} Nothing in it was executed. "
                "Expected a dictionary of tensors, or one with the entry 'model'."
            ) from error
    settings = _settings(content, path)
    tensors = content.get("model", content) if isinstance(content, dict) else content
    if not isinstance(tensors, dict) or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise CheckpointError(f"'{path}': expected a dictionary of tensors, or one with the entry 'model'.")
    return Reference(path, tensors, settings)


def _settings(content: Any, path: Path) -> dict[str, Any]:
    args = content.get("args") if isinstance(content, dict) else None
    settings = dict(vars(args)) if isinstance(args, argparse.Namespace) else {}
    beside = path.with_name("config.json")
    if beside.is_file():
        settings |= json.loads(beside.read_text())
    return settings


def _heads(settings: Mapping[str, Any]) -> int:
    if "encoder_heads" in settings:
        return int(settings["encoder_heads"])
    for size in ("base", "large"):
        if size in str(settings.get("model", "")):
            return SIZES[size]["heads"]
    raise CheckpointError(
        "the number of attention heads cannot be read from weights: put a config.json with 'encoder_heads' (and "
        "'decoder_heads') beside the file, or use a checkpoint whose 'args' name the model."
    )


def config_of(reference: Reference) -> ModelConfig:
    """The configuration that fits the tensors; L2A statistics for every product, and 12 land cover classes."""
    tensors, settings = reference.tensors, reference.settings

    def shape(name: str) -> torch.Size:
        if name not in tensors:
            raise CheckpointError(f"'{reference.path}' has no tensor '{name}': it is not in the paper's layout.")
        return tensors[name].shape

    inputs = [n for n in INPUTS if f"input_adapters.{n}.proj.weight" in tensors]
    targets = [n for n in TARGETS if f"output_adapters.{n}.out_proj.weight" in tensors]
    if not inputs or not targets:
        raise CheckpointError(f"'{reference.path}' holds no input or output adapters: it is not in the paper's layout.")
    dim, _, _, edge = shape(f"input_adapters.{inputs[0]}.proj.weight")
    stride = 4 if inputs[0] == "semseg" else 1
    decoder = f"output_adapters.{targets[0]}"
    return ModelConfig(
        dim=dim,
        depth=_count(tensors, "encoder"),
        heads=_heads(settings),
        decoder_dim=shape(f"{decoder}.mask_token")[-1],
        decoder_depth=_count(tensors, f"{decoder}.decoder_transformer"),
        decoder_heads=int(settings.get("decoder_heads", settings.get("decoder_num_heads", 8))),
        inputs=tuple(INPUTS[n] for n in inputs),
        targets=tuple(TARGETS[n] for n in targets),
        image_size=int(settings.get("input_size", settings.get("image_height", 56))),
        patch_size=edge * stride,
        num_global_tokens=shape("global_tokens")[1],
        modalities={name: _as_trained(m) for name, m in MODALITIES.items()},
    )


def _as_trained(modality: Modality) -> Modality:
    """The published training used L2A statistics for every product, and counted no data as a class."""
    if isinstance(modality, Categorical):
        return dataclasses.replace(modality, classes=(*modality.classes, NO_DATA_CLASS))
    if isinstance(modality, Continuous) and "L2A" in modality.statistics:
        return with_statistics(modality, dict.fromkeys(modality.products, modality.statistics["L2A"]))
    return modality


def _count(tensors: Mapping[str, Tensor], prefix: str) -> int:
    depth = len(prefix.split("."))
    return len({n.split(".")[depth] for n in tensors if n.startswith(prefix + ".")})


def translate(reference: Reference, config: ModelConfig) -> dict[str, Tensor]:
    """The tensors under this package's names: class embeddings folded into the projection, position tables checked."""
    own: dict[str, Tensor] = {}
    embeddings: dict[str, dict[str, Tensor]] = {}
    inputs = {INPUTS[n].partition(":")[0]: n for n in INPUTS}
    for name, tensor in reference.tensors.items():
        section, _, rest = name.partition(".")
        key, _, part = rest.partition(".")
        if part == "pos_emb":
            _check_table(name, tensor, config)
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


def _check_table(name: str, tensor: Tensor, config: ModelConfig) -> None:
    edge = TABLE_SIZE // config.patch_size
    expected = sine_cosine_table(tensor.shape[1], edge, edge)
    if tensor.shape != expected.shape or not torch.allclose(tensor.float(), expected, atol=1e-4):
        raise CheckpointError(
            f"'{name}' is not the fixed sine-cosine table of {edge} x {edge}; it cannot be converted."
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
