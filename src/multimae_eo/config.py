"""What a model is made of, as a plain dataclass: sizes, views and modalities; imports no torch."""

import dataclasses
import math
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin, get_type_hints

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
TaskName = Literal["classification", "multilabel", "segmentation", "regression"]
HeadName = Literal["linear", "attentive", "linear_dense", "convnext"]

# The heads that fit a task, the paper's first (docs/model.md, section 8).
HEADS: Mapping[TaskName, tuple[HeadName, ...]] = {
    "classification": ("linear", "attentive"),
    "multilabel": ("linear", "attentive"),
    "segmentation": ("convnext", "linear_dense"),
    "regression": ("convnext", "linear_dense"),
}

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

# Far above any model that fits this layout (large: 24 blocks, 1024 wide, 0.3 billion parameters): a description that
# asks for more is damaged or hostile, and is refused before anything is built.
MOST: Mapping[str, int] = {
    **{"dim": 16_384, "depth": 256, "decoder_dim": 16_384, "decoder_depth": 256, "num_global_tokens": 16_384},
    **{"image_size": 8_192, "views": 64, "classes": 4_096, "code": 65_535},
}
MOST_PARAMETERS = 10_000_000_000
MOST_TABLE_BYTES = 1 << 30  # of the positions of the training frame


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
        self._check_total()

    @property
    def input_views(self) -> tuple[View, ...]:
        return tuple(parse_view(text, self.modalities) for text in self.inputs)

    @property
    def target_views(self) -> tuple[View, ...]:
        return tuple(parse_view(text, self.modalities) for text in self.targets)

    @property
    def input_modalities(self) -> tuple[str, ...]:
        return tuple(view.modality for view in self.input_views)

    @property
    def bands(self) -> tuple[str, ...]:
        """The bands of all inputs."""
        return tuple(band for name in self.input_modalities for band in self.modalities[name].bands)

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
        for name in ("dim", "depth", "decoder_dim", "decoder_depth", "num_global_tokens", "image_size"):
            if getattr(self, name) > MOST[name]:
                raise ConfigError(f"{name} must be at most {MOST[name]}, got {reprlib.repr(getattr(self, name))}.")
        if not 0 <= self.drop_path < 1:
            raise ConfigError(f"drop_path must lie in [0, 1), got {self.drop_path}.")

    def _check_views(self) -> None:
        for what in ("inputs", "targets"):
            if not 0 < len(getattr(self, what)) <= MOST["views"]:
                raise ConfigError(f"{what}: name at least one view, and at most {MOST['views']}.")
        for what, items in (("inputs", self.input_modalities), ("targets", self.targets)):
            twice = sorted({i for i in items if items.count(i) > 1})
            if twice:
                raise ConfigError(f"{what}: '{twice[0]}' is given more than once; a modality has one tokenizer.")
        for modality in self.modalities.values():
            if not (1 <= modality.stride <= TABLE_SIZE and modality.bands and modality.products):
                raise ConfigError(
                    f"modality '{modality.name}' must have a stride from 1 to {TABLE_SIZE}, a band and a product; got "
                    f"stride {reprlib.repr(modality.stride)}, {len(modality.bands)} bands, {len(modality.products)} "
                    "products."
                )
            if self.patch_size % modality.stride:
                raise ConfigError(
                    f"modality '{modality.name}' has a pixel of {modality.stride} x {modality.stride} of the others', "
                    f"which patches of {self.patch_size} px do not hold in whole numbers."
                )
            if isinstance(modality, Categorical):
                check_classes(modality.classes, f"modality '{modality.name}'")
            else:
                _check_statistics(modality)

    def _check_total(self) -> None:
        """Before anything is built: whether it would fit the memory of any machine."""
        parameters, tokens = num_parameters(self), (self.image_size // self.patch_size) ** 2
        table = 4 * tokens * max(self.dim, self.decoder_dim)
        if parameters > MOST_PARAMETERS or table > MOST_TABLE_BYTES:
            raise ConfigError(
                f"the model would have {parameters:.3g} parameters ({4 * parameters / 1e9:.4g} GB) and a table of "
                f"positions of {table / 1e9:.4g} GB; expected at most {MOST_PARAMETERS:.3g} parameters and "
                f"{MOST_TABLE_BYTES / 1e9:.4g} GB. Lower its widths, depths or image_size; nothing was built."
            )


def check_classes(classes: Sequence[MapClass], where: str) -> None:
    """Raise ConfigError for classes that no map can hold: too many, or codes that are no small whole numbers."""
    if not 0 < len(classes) <= MOST["classes"]:
        raise ConfigError(f"{where} must have 1 to {MOST['classes']} classes, got {len(classes)}.")
    codes = [c.code for c in classes]
    if len(set(codes)) < len(codes):
        raise ConfigError(f"{where}: two classes have one code; got {reprlib.repr(codes)}.")
    wrong = next((c for c in classes if not 0 <= c.code <= MOST["code"]), None)
    if wrong is not None:
        raise ConfigError(
            f"{where}: the code of a class must lie in 0 to {MOST['code']}, got {reprlib.repr(wrong.code)}."
        )


def num_parameters(config: ModelConfig) -> int:
    """How many numbers a model has, from its description alone: tokenizers, blocks, and a decoder per target."""

    def block(dim: int) -> int:
        return 12 * dim * dim + 13 * dim

    def pixels(view: View) -> int:
        return config.modalities[view.modality].channels * config.patch_edge(view.modality) ** 2

    dim, small = config.dim, config.decoder_dim
    encoder = config.depth * block(dim) + config.num_global_tokens * dim
    encoder += sum(dim * (pixels(view) + 1) for view in config.input_views)
    each = dim * small + small * (2 + len(config.inputs)) + (config.decoder_depth + 1) * block(small) + 2 * small
    return encoder + sum(each + (small + 1) * pixels(view) for view in config.target_views)


@dataclass(frozen=True)
class TaskConfig:
    """Everything that defines a fine-tuned model beside its encoder; travels in config.json.

    inputs: the modalities that it was trained on; a dense head has a slot for each (docs/design.md, J).
    classes: of the labels, in the order of the outputs; empty for regression. unit, mean, std: of a regression's
    labels, in whose units it predicts. dataset: what it was trained on; products: {modality: product} its data are read
    as; bands: those that the data set has, so that the others were never valid in training.
    """

    task: TaskName
    head: HeadName
    inputs: tuple[str, ...]
    classes: tuple[MapClass, ...] = ()
    unit: str = ""
    mean: float = 0.0
    std: float = 1.0
    dataset: str = ""
    products: Mapping[str, str] = field(default_factory=dict, hash=False)
    bands: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.head not in HEADS[self.task]:
            raise ConfigError(f"head '{self.head}' does not fit {self.task}; expected {' or '.join(HEADS[self.task])}.")
        if not self.inputs:
            raise ConfigError("inputs: name at least one modality.")
        if self.classes:
            check_classes(self.classes, f"a model for {self.task}")

    @property
    def dense(self) -> bool:
        """Whether every pixel is predicted."""
        return self.task in ("segmentation", "regression")

    @property
    def num_outputs(self) -> int:
        """Numbers per sample, or per pixel."""
        return len(self.classes) or 1


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


def from_json(content: Any) -> ModelConfig:
    """The inverse of `to_json`; raises CheckpointError naming the entry that does not fit."""
    try:
        return _from_json(ModelConfig, content, "model")
    except ConfigError as error:
        raise CheckpointError(f"entry 'model' describes no model: {error}") from error


def task_from_json(content: Any) -> TaskConfig:
    """A TaskConfig from what `dataclasses.asdict` makes of it; raises CheckpointError."""
    try:
        return _from_json(TaskConfig, content, "task")
    except ConfigError as error:
        raise CheckpointError(f"entry 'task' describes no task: {error}") from error


def _from_json(kind: Any, value: Any, where: str) -> Any:
    """A JSON value as the type of a field; where: the names of the entries that lead to it."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind == Modality:
        return _modality_from_json(value, where)
    if isinstance(value, Mapping) and dataclasses.is_dataclass(kind):
        return _fields_from_json(kind, value, where)
    if isinstance(value, Mapping) and origin is Mapping:
        return {key: _from_json(inner[1], item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple) and origin is tuple:
        return tuple(_from_json(inner[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if type(value) is kind or (origin is Literal and value in inner):
        return value
    if type(value) is int and kind is float and abs(value) < 2**1000:  # what a float can be
        return float(value)
    words = {int: "a whole number", float: "a number", str: "a string", tuple: "a list", Literal: f"one of {inner}"}
    expected = words.get(origin or kind, "an object")
    raise CheckpointError(f"entry '{where}': expected {expected}, got {reprlib.repr(value)}.")


def _fields_from_json(kind: Any, entries: Mapping[str, Any], where: str) -> Any:
    """A dataclass from its fields; those with a default may be missing, but for the model's own."""
    fields = {f.name: f for f in dataclasses.fields(kind) if f.init}
    types = get_type_hints(kind)
    optional = {n for n, f in fields.items() if (f.default, f.default_factory) != (dataclasses.MISSING,) * 2}
    required = fields.keys() - (set() if kind is ModelConfig else optional)
    unknown, missing = sorted(entries.keys() - types.keys()), sorted(required - entries.keys())
    problems = [f"{what} entries {names}" for what, names in (("unknown", unknown), ("missing", missing)) if names]
    if problems:
        raise CheckpointError(f"entry '{where}': {', '.join(problems)}; was it written by another version?")
    return kind(**{n: _from_json(types[n], v, f"{where}.{n}") for n, v in entries.items() if n in fields})


def _modality_from_json(entry: Any, where: str) -> Modality:
    kinds = {"continuous": Continuous, "categorical": Categorical}
    kind = entry.get("kind") if isinstance(entry, Mapping) else entry
    if not isinstance(kind, str) or kind not in kinds:
        raise CheckpointError(
            f"entry '{where}': expected an object whose 'kind' is one of {', '.join(kinds)}, got {reprlib.repr(kind)}."
        )
    return _fields_from_json(kinds[kind], {n: v for n, v in entry.items() if n != "kind"}, where)


def _check_statistics(modality: Continuous) -> None:
    for product, of in modality.statistics.items():
        if not len(of.mean) == len(of.std) == len(modality.bands):
            number = f"{len(of.mean)} and {len(of.std)}"
            raise ConfigError(
                f"'{modality.name}', product {product}: expected {len(modality.bands)} means and deviations, "
                f"got {number}."
            )
        if not all(math.isfinite(m) and math.isfinite(s) and s > 0 for m, s in zip(of.mean, of.std, strict=True)):
            raise ConfigError(
                f"'{modality.name}', product {product}: means must be finite, and deviations positive and finite."
            )


def with_statistics(modality: Modality, statistics: Mapping[str, Statistics]) -> Modality:
    """The same modality with other statistics per product (classes have none)."""
    return dataclasses.replace(modality, statistics=dict(statistics)) if isinstance(modality, Continuous) else modality
