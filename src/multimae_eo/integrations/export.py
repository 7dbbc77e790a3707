"""Programs for a fixed set of inputs: `torch.export` and ONNX, with any number of samples."""

import copy
import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from multimae_eo.checkpoint import load, load_predictor, read_content
from multimae_eo.config import ModelConfig
from multimae_eo.encoder import Encoder
from multimae_eo.errors import ConfigError, UnknownNameError, WriteError
from multimae_eo.inputs import product_index
from multimae_eo.modalities import Continuous
from multimae_eo.predictor import Predictor
from multimae_eo.raster import Raster

FORMATS = (".onnx", ".pt2")
# Samples that a program is traced with; any number may be given to it afterwards.
TRACED = 2


class Table(nn.Module):
    """The positions of one grid, as a constant."""

    table: Tensor

    def __init__(self, table: Tensor):
        super().__init__()
        self.register_buffer("table", table)

    def forward(self, grid: tuple[int, int]) -> Tensor:
        return self.table


class Program(nn.Module):
    """A model for some inputs, of one size and product each, as a function of tensors.

    `program(*values)` takes one float tensor [b, c, h, w] per input, in the order of `inputs`, in physical units (class
    codes), NaN where nothing was measured, on the grid of the modality. A pre-trained model gives an embedding [b, d],
    and features [b, d, h / patch, w / patch]; a fine-tuned one its scores or values, [b, k] or [b, k, h, w].
    """

    def __init__(
        self, model: Encoder | Predictor, inputs: Sequence[str], *, product: str | Sequence[str] | None, image_size: int
    ):
        super().__init__()
        config = model.config
        self.inputs, self.image_size = tuple(inputs), image_size
        known = config.input_modalities if isinstance(model, Encoder) else model.task.inputs
        for name in self.inputs:
            if name not in known:
                raise UnknownNameError("input", name, known)
        if not self.inputs or len(set(self.inputs)) < len(self.inputs):
            raise ConfigError(f"inputs: name at least one, each once, of {', '.join(known)}; got {' '.join(inputs)}.")
        if image_size <= 0 or image_size % config.patch_size:
            raise ConfigError(f"image_size {image_size} is not a multiple of the patch size {config.patch_size}.")
        self.products = tuple(product_index(config.modalities[name], product) for name in self.inputs)
        self.model = copy.deepcopy(model).eval()
        encoder = self.model if isinstance(self.model, Encoder) else self.model.encoder
        grid = (image_size // config.patch_size,) * 2
        for mode, table in encoder.positions.items():
            encoder.positions[mode] = Table(table(grid))

    @property
    def outputs(self) -> tuple[str, ...]:
        return ("embedding", "features") if isinstance(self.model, Encoder) else ("scores",)

    def shape(self, name: str) -> tuple[int, int, int]:
        """Bands, height and width of an input."""
        modality = self.model.config.modalities[name]
        edge = self.image_size // modality.stride
        return len(modality.bands), edge, edge

    def forward(self, *values: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        batch = {}
        for name, own, product in zip(self.inputs, values, self.products, strict=True):
            known = own.abs() < torch.inf  # neither infinite nor not a number
            index = torch.zeros_like(own[:, 0, 0, 0], dtype=torch.int64) + product
            batch[name] = Raster(torch.where(known, own, 0.0), known, index)
        if isinstance(self.model, Predictor):
            scores: Tensor = self.model(batch)
            return scores
        seen = self.model.see(batch)
        return seen.mean(), seen.places()


def program_of(
    checkpoint: str | os.PathLike[str],
    inputs: Sequence[str] | None = None,
    *,
    product: str | Sequence[str] | None = None,
    image_size: int | None = None,
) -> Program:
    """The program of a checkpoint, pre-trained or fine-tuned.

    inputs: modalities, all by default. product: what their values are of ("L2A"), as of `inputs.read_images`; of a
    fine-tuned model by default what it was trained on. image_size: edge in pixels of 10 m; by default that of training.
    Raises CheckpointError, UnknownNameError or ConfigError.
    """
    content = read_content(checkpoint)
    model = load_predictor(checkpoint) if "task" in content else load(checkpoint)
    if isinstance(model, Predictor):
        chosen = inputs or model.task.inputs
        trained = [model.task.products[name] for name in chosen if name in model.task.products]
        return Program(model, chosen, product=product or trained, image_size=_size(model.config, content, image_size))
    chosen = inputs or model.config.input_modalities
    return Program(model, chosen, product=product, image_size=_size(model.config, content, image_size))


def _size(config: ModelConfig, content: Mapping[str, Any], asked: int | None) -> int:
    trained = content.get("extra", {}).get("image_px") or config.image_size
    return -(-trained // config.patch_size) * config.patch_size if asked is None else asked


def example(program: Program, samples: int = TRACED) -> tuple[Tensor, ...]:
    """Values that a program can be called with: the mean of the statistics, or the first class."""
    values = []
    for name, product in zip(program.inputs, program.products, strict=True):
        modality = program.model.config.modalities[name]
        own = tuple(modality.statistics.values())[product].mean if isinstance(modality, Continuous) else modality.codes
        level = own[: len(modality.bands)]
        values.append(torch.tensor(level).float()[:, None, None].expand(samples, *program.shape(name)).clone())
    return tuple(values)


def export(program: Program, out: str | os.PathLike[str]) -> Path:
    """Write a program as .onnx (needs onnx and onnxscript) or .pt2 (`torch.export.load` reads it); returns the path.

    What goes in and comes out is in the file's metadata too, as JSON. Raises ConfigError for other names, WriteError.
    """
    out = Path(out)
    if out.suffix not in FORMATS:
        raise ConfigError(f"out '{out}': expected a name that ends in {' or '.join(FORMATS)}.")
    if out.suffix == ".onnx":
        for needed in ("onnx", "onnxscript"):
            import_module(needed)  # now rather than after the minute that tracing may take
    partial = out.with_name(f".{out.stem}.partial-{os.getpid()}{out.suffix}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with _quiet():
            write_onnx(program, partial) if out.suffix == ".onnx" else write_pt2(program, partial)
        os.replace(partial, out)
    except OSError as error:
        raise WriteError(f"'{out}' could not be written: {error.strerror or error}. Give another --out.") from error
    finally:
        if partial.exists():
            partial.unlink()
    return out


def exported(program: Program) -> torch.export.ExportedProgram:
    """The program of `torch.export`, for any number of samples."""
    samples = torch.export.Dim("samples", min=1)
    shapes = ({0: samples},) * len(program.inputs)
    with torch.no_grad():
        return torch.export.export(program, example(program), dynamic_shapes=(shapes,), strict=False)


def write_pt2(program: Program, path: Path) -> None:
    """Write a program of `torch.export`; what goes in and comes out is its extra file about.json."""
    torch.export.save(exported(program), path, extra_files={"about.json": json.dumps(about(program))})


def write_onnx(program: Program, path: Path) -> None:
    """Write ONNX, with weights in the file."""
    import onnx

    written = torch.onnx.export(
        exported(program), input_names=list(program.inputs), output_names=list(program.outputs), verbose=False
    )
    assert written is not None
    model = written.model_proto
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "samples"
    onnx.helper.set_model_props(model, {"about": json.dumps(about(program))})
    onnx.save(model, path)


def about(program: Program) -> dict[str, Any]:
    """What goes into a program and comes out of it, JSON-ready."""
    config = program.model.config
    described: dict[str, Any] = {"inputs": {}, "outputs": list(program.outputs)}
    for name, product in zip(program.inputs, program.products, strict=True):
        modality = config.modalities[name]
        described["inputs"][name] = {
            "bands": list(modality.bands),
            "unit": modality.unit,
            "product": modality.products[product],
            "shape": ["samples", *program.shape(name)],
            "not measured": "NaN",
        }
    if isinstance(program.model, Predictor):
        described["classes"] = [c.name for c in program.model.task.classes]
    return described


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporters of torch say about themselves."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
