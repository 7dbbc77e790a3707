"""The Hugging Face Hub: models with save_pretrained, from_pretrained and push_to_hub, and their model cards.

What they read and write is a checkpoint directory (checkpoint.py) and a README.md; `multimae_eo.load` reads it too.
"""

from pathlib import Path
from typing import Any, Self

from huggingface_hub import ModelCard, ModelCardData, PyTorchModelHubMixin, snapshot_download

from multimae_eo.checkpoint import (
    CONFIG,
    ENCODER,
    WEIGHTS,
    config_of,
    describe,
    filled,
    read_content,
    task_of,
    write_files,
)
from multimae_eo.config import TaskConfig
from multimae_eo.encoder import Encoder
from multimae_eo.errors import ConfigError
from multimae_eo.modalities import MODALITIES, Categorical, Modality
from multimae_eo.model import MultiMAE
from multimae_eo.predictor import Predictor

PAPER = "https://arxiv.org/abs/2505.14951"
PIPELINES = {"classification": "image-classification", "multilabel": "image-classification"}
PIPELINES |= {"segmentation": "image-segmentation", "regression": "image-to-image"}


class _Hub(PyTorchModelHubMixin, library_name="multimae-eo", paper_url=PAPER):
    """What the classes below share; `extra` is what config.json keeps of the making of the weights."""

    extra: dict[str, Any]

    def __init__(self, *parts: Any):
        super().__init__(*parts)
        self.extra = {}

    @classmethod
    def _built(cls, directory: Path) -> Self:
        raise NotImplementedError

    def _save_pretrained(self, save_directory: Path) -> None:
        write_files(self, save_directory, extra=self.extra)  # type: ignore[arg-type]

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        map_location: str = "cpu",
        **more: object,  # before the Hub's version 1, two that change nothing here
    ) -> Self:
        if unknown := more.keys() - {"proxies", "resume_download"}:
            raise ConfigError(f"from_pretrained takes no {', '.join(sorted(unknown))}; a checkpoint says what it is.")
        directory = Path(model_id)
        if not directory.is_dir():
            found = snapshot_download(
                model_id,
                revision=revision,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                token=token,
                allow_patterns=[CONFIG, WEIGHTS],
            )
            directory = Path(found)
        model = cls._built(directory)
        model.extra = read_content(directory).get("extra", {})
        return model.to(map_location)  # type: ignore[attr-defined]

    def generate_model_card(
        self, *, data: str | None = None, license: str | None = None, limits: str | None = None
    ) -> ModelCard:
        """A model card: what goes in and comes out, in which units, and what is known of data, licence and limits.

        data: what the weights were trained on; license: of the weights, an identifier of the Hub ("cc-by-4.0");
        limits: what they are not good for. What is not given, the card says is not stated.
        """
        return model_card(self, data=data, license=license, limits=limits)  # type: ignore[arg-type]


class HubEncoder(_Hub, Encoder):
    """An encoder that saves itself and can be pushed to the Hub; of any checkpoint."""

    @classmethod
    def _built(cls, directory: Path) -> Self:
        return filled(lambda content: cls(config_of(content, directory)), directory, prefix=ENCODER)


class HubModel(_Hub, MultiMAE):
    """A pre-trained model, encoder and decoders, that saves itself and can be pushed to the Hub."""

    @classmethod
    def _built(cls, directory: Path) -> Self:
        return filled(lambda content: cls(config_of(content, directory)), directory)


class HubPredictor(_Hub, Predictor):
    """A fine-tuned model that saves itself and can be pushed to the Hub."""

    @classmethod
    def _built(cls, directory: Path) -> Self:
        return filled(lambda content: cls(config_of(content, directory), task_of(content, directory)), directory)


def model_card(
    model: MultiMAE | Predictor | Encoder, *, data: str | None, license: str | None, limits: str | None
) -> ModelCard:
    """The model card of a model, as YAML and Markdown."""
    config, task = model.config, getattr(model, "task", None)
    about = ModelCardData(
        library_name="multimae-eo",
        license=license,
        pipeline_tag=PIPELINES[task.task] if task is not None else "image-feature-extraction",
        tags=["earth-observation", "remote-sensing", "sentinel-2", "masked-autoencoder", "multi-modal"],
    )
    names = config.input_modalities if task is None else task.inputs
    lines = [
        *("---", about.to_yaml(), "---", ""),
        f"# A {'fine-tuned ' if task is not None else ''}model of multimae-eo",
        "",
        f"{describe(model)}; patches of {config.patch_size} x {config.patch_size} pixels of 10 m, trained on images of "
        f"{config.image_size} x {config.image_size}. After [MultiMAE Meets Earth Observation]({PAPER}).",
        *("", "## What goes in", "", "Any subset of these, per sample; invalid pixels are left out.", ""),
        "| input | bands | unit | products with statistics | pixel |",
        "|---|---|---|---|---|",
        *(_row(config.modalities[name], task) for name in names),
        *("", "Sentinel-2 without the +1000 of processing baseline 04 (or say `offset=1000`).", ""),
        *("## What comes out", "", _out(task, config.targets)),
        *("", "## How to use it", "", "```python", *_use(task, config.modalities[names[0]]), "```"),
        *("", "## Data, licence, limits", ""),
        f"- Trained on: {data or (task.dataset if task is not None else '') or 'not stated'}",
        f"- Licence of the weights: {license or 'not stated'}",
        f"- Limits: {limits or 'not stated'}",
        *(f"- {key}: {value}" for key, value in getattr(model, "extra", {}).items()),
        "",
    ]
    return ModelCard("\n".join(lines))


def _row(modality: Modality, task: TaskConfig | None) -> str:
    classes = f", {len(modality.classes)} classes" if isinstance(modality, Categorical) else ""
    known = modality.products if task is None else (_product(modality, task),)
    products, metres = ", ".join(known), 10 * modality.stride
    described = MODALITIES[modality.name].products if modality.name in MODALITIES else known
    unit = modality.unit if {*known} <= {*described} else f"as in {products}"
    return f"| `{modality.name}` | {' '.join(modality.bands)} | {unit}{classes} | {products} | {metres} m |"


def _out(task: TaskConfig | None, targets: tuple[str, ...]) -> str:
    if task is None:
        return f"Tokens, vectors and maps of features; the decoders' views are {', '.join(targets)}."
    if task.classes:
        where = "pixel" if task.dense else "image"
        return f"Per {where} scores of {len(task.classes)} classes: {', '.join(c.name for c in task.classes)}."
    return f"Per pixel a value in {task.unit or 'the unit of the labels'}."


def _product(modality: Modality, task: TaskConfig | None) -> str:
    """What a model was fine-tuned on, else the last of what it knows."""
    return modality.products[-1] if task is None else task.products.get(modality.name, modality.products[-1])


def _use(task: TaskConfig | None, modality: Modality) -> list[str]:
    stated = f'bands={list(modality.bands)}, units="dn", product="{_product(modality, task)}"'
    if task is None:
        return ["import multimae_eo", "", 'encoder = multimae_eo.load("NAME")', f"encoder(images, {stated})"]
    read = f"model.encoder.read(images, {stated})"
    return ["import multimae_eo", "", 'model = multimae_eo.load_predictor("NAME")', f"model.predict({read})"]
