"""What a model is made of, as a plain dataclass: sizes, views and modalities; imports no torch."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from multimae_eo.errors import CheckpointError, ConfigError
from multimae_eo.modalities import (
    MODALITIES,
    PAPER_INPUTS,
    PAPER_TARGETS,
    Categorical,
    Continuous,
    MapClass,
    Modality,
    Statistics,
    View,
    get_modality,
    parse_view,
)

SizeName = Literal["demo", "tiny", "small", "base", "large"]
Positions = Literal["resized", "fixed_pitch"]

# Base and large are the paper's (docs/model.md, section 4); the decoder sizes are the reference's defaults.
SIZES: Mapping[str, Mapping[str, int]] = {
    "demo": {"dim": 96, "depth": 4, "heads": 3, "decoder_dim": 32, "decoder_depth": 1, "decoder_heads": 2},
    "tiny": {"dim": 192, "depth": 12, "heads": 3, "decoder_dim": 128, "decoder_depth": 2, "decoder_heads": 8},
    "small": {"dim": 384, "depth": 12, "heads": 6, "decoder_dim": 128, "decoder_depth": 2, "decoder_heads": 8},
    "base": {"dim": 768, "depth": 12, "heads": 12, "decoder_dim": 128, "decoder_depth": 2, "decoder_heads": 8},
    "large": {"dim": 1024, "depth": 24, "heads": 16, "decoder_dim": 128, "decoder_depth": 2, "decoder_heads": 8},
}

# The frame on which the position tables are laid out, in pixels (docs/model.md, section 2).
TABLE_SIZE = 224


@dataclass(frozen=True)
class ModelConfig:
    """Everything that defines a model but its weights; travels in config.json.

    inputs, targets: views as strings ("rgb", "rgb:patch"); their order is the model's own order.
    modalities: the descriptions of all modalities among them, with the statistics the model was trained with.
    image_size: edge of the training frame in pixels; patch_size: edge of a patch on that 10 m frame.
    positions: "resized" (paper: the table is stretched to the grid) or "fixed_pitch" (a token step means the same
    distance at every image size, that of training).
    """

    dim: int = 768
    depth: int = 12
    heads: int = 12
    decoder_dim: int = 128
    decoder_depth: int = 2
    decoder_heads: int = 8
    inputs: tuple[str, ...] = PAPER_INPUTS
    targets: tuple[str, ...] = PAPER_TARGETS
    image_size: int = 56
    patch_size: int = 8
    num_global_tokens: int = 1
    positions: Positions = "resized"
    drop_path: float = 0.0
    modalities: Mapping[str, Modality] = field(default_factory=lambda: MODALITIES, hash=False)

    def __post_init__(self) -> None:
        views = (*self.input_views, *self.target_views)
        used = {v.modality: get_modality(v.modality, self.modalities) for v in views}
        object.__setattr__(self, "modalities", used)
        self._check_sizes()
        self._check_views()

    @property
    def input_views(self) -> tuple[View, ...]:
        return tuple(parse_view(text, self.modalities) for text in self.inputs)

    @property
    def target_views(self) -> tuple[View, ...]:
        return tuple(parse_view(text, self.modalities) for text in self.targets)

    @property
    def input_modalities(self) -> tuple[str, ...]:
        return tuple(view.modality for view in self.input_views)

    def patch_edge(self, modality: str) -> int:
        """Edge of a patch on the modality's own grid, in its pixels."""
        return max(1, self.patch_size // self.modalities[modality].stride)

    def _check_sizes(self) -> None:
        if self.patch_size <= 0 or self.patch_size % 4 or TABLE_SIZE % self.patch_size:
            raise ConfigError(f"patch_size must be a multiple of 4 that divides {TABLE_SIZE}, got {self.patch_size}.")
        if self.image_size % self.patch_size or self.image_size <= 0:
            raise ConfigError(f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}.")
        for name in ("dim", "decoder_dim"):
            dim, heads = getattr(self, name), getattr(self, name.replace("dim", "heads"))
            if dim <= 0 or dim % 4 or heads <= 0 or dim % heads:
                raise ConfigError(f"{name} must be a positive multiple of 4 and of its heads ({heads}), got {dim}.")
        for name in ("depth", "decoder_depth", "num_global_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not 0 <= self.drop_path < 1:
            raise ConfigError(f"drop_path must lie in [0, 1), got {self.drop_path}.")

    def _check_views(self) -> None:
        for what in ("inputs", "targets"):
            if not getattr(self, what):
                raise ConfigError(f"{what}: name at least one view.")
        for what, items in (("inputs", self.input_modalities), ("targets", self.targets)):
            twice = sorted({i for i in items if items.count(i) > 1})
            if twice:
                raise ConfigError(f"{what}: '{twice[0]}' is given more than once; a modality has one tokenizer.")


def sized(size: str, **fields: Any) -> ModelConfig:
    """The configuration of a named size ("demo", "tiny", "small", "base", "large"), with fields replaced."""
    if size not in SIZES:
        raise ConfigError(f"unknown size '{size}'. Known: {', '.join(SIZES)}.")
    return ModelConfig(**{**SIZES[size], **fields})


def to_json(config: ModelConfig) -> dict[str, Any]:
    """A config as JSON-ready numbers, strings, lists and dicts; modalities carry their kind."""
    content = dataclasses.asdict(config)
    for name, modality in config.modalities.items():
        kind = "continuous" if isinstance(modality, Continuous) else "categorical"
        content["modalities"][name] = {"kind": kind, **content["modalities"][name]}
    return content


def from_json(content: Mapping[str, Any]) -> ModelConfig:
    """The inverse of `to_json`; raises CheckpointError naming the entry that does not fit."""
    entries = dict(content)
    known = {f.name for f in dataclasses.fields(ModelConfig)}
    unknown, missing = sorted(set(entries) - known), sorted(known - set(entries))
    if unknown or missing:
        raise CheckpointError(f"config.json: unknown entries {unknown}, missing entries {missing}.")
    try:
        modalities = {name: _modality_from_json(entry) for name, entry in entries.pop("modalities").items()}
        entries["inputs"], entries["targets"] = tuple(entries["inputs"]), tuple(entries["targets"])
        return ModelConfig(**entries, modalities=modalities)
    except ConfigError as error:
        raise CheckpointError(f"config.json: {error}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"config.json does not describe a model: {error!r}.") from error


def _modality_from_json(entry: Mapping[str, Any]) -> Modality:
    fields = {**entry, "bands": tuple(entry["bands"])}
    kind = fields.pop("kind")
    if kind == "continuous":
        fields["statistics"] = {
            product: Statistics(tuple(map(float, s["mean"])), tuple(map(float, s["std"])))
            for product, s in fields["statistics"].items()
        }
        return Continuous(**fields)
    del fields["unit"]
    fields["classes"] = tuple(MapClass(**c) for c in fields["classes"])
    return Categorical(**{**fields, "products": tuple(fields["products"])})


def with_statistics(modality: Modality, statistics: Mapping[str, Statistics]) -> Modality:
    """The same modality with other statistics per product (classes have none)."""
    return dataclasses.replace(modality, statistics=dict(statistics)) if isinstance(modality, Continuous) else modality


def used_modalities(views: Sequence[str]) -> tuple[str, ...]:
    """The modalities of some views, each once, in order."""
    return tuple(dict.fromkeys(parse_view(view).modality for view in views))
