"""Every option of pre-training, as plain dataclasses with the paper's values as defaults; imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from multimae_eo.config import SIZES, ModelConfig, Positions, SizeName
from multimae_eo.errors import ConfigError
from multimae_eo.modalities import (
    MODALITIES,
    PAPER_INPUTS,
    PAPER_TARGETS,
    RECIPE_INPUTS,
    Modality,
    get_modality,
)


@dataclass
class ModelOptions:
    """What the model is made of.

    Args:
        size: demo, tiny, small, base or large.
        inputs: views that are fed, e.g. "rgb" or "elevation:sample"; one per modality. Default: those of the recipe.
        targets: views that are predicted.
        image_size: edge of the training frame in pixels of 10 m.
        patch_size: edge of a patch in pixels; a multiple of 4 that divides 224.
        positions: "resized" (paper) or "fixed_pitch" (a token step means one distance at every image size).
        num_global_tokens: learned tokens that belong to no place.
        decoder_dim: width of the decoders; default: that of the size.
        decoder_depth: self-attention blocks per decoder; default: that of the size.
        drop_path: stochastic depth of the last encoder block.
    """

    size: SizeName = "base"
    inputs: list[str] | None = None
    targets: list[str] = field(default_factory=lambda: list(PAPER_TARGETS))
    image_size: int = 56
    patch_size: int = 8
    positions: Positions = "resized"
    num_global_tokens: int = 1
    decoder_dim: int | None = None
    decoder_depth: int | None = None
    drop_path: float = 0.0

    def config(self, modalities: dict[str, Modality] | None = None) -> ModelConfig:
        """The model configuration, with these descriptions of the modalities (default: the package's)."""
        sizes = dict(SIZES[self.size])
        sizes |= {k: v for k in ("decoder_dim", "decoder_depth") if (v := getattr(self, k)) is not None}
        return ModelConfig(
            **sizes,
            inputs=tuple(PAPER_INPUTS if self.inputs is None else self.inputs),
            targets=tuple(self.targets),
            image_size=self.image_size,
            patch_size=self.patch_size,
            num_global_tokens=self.num_global_tokens,
            positions=self.positions,
            drop_path=self.drop_path,
            modalities=MODALITIES if modalities is None else modalities,
        )


@dataclass
class MaskOptions:
    """Which tokens are visible.

    Args:
        num_visible: visible tokens of all modalities together.
        alpha: of the symmetric Dirichlet from which the shares of the modalities are drawn.
        alphas: alpha of single modalities, where it differs.
        random_subset: first choose a random non-empty subset of the modalities.
        short_samples: what to do with a tile with fewer valid tokens than num_visible: stop with an error, or mask
            the places it cannot fill (then attention takes a key mask throughout, which costs a little speed).
    """

    num_visible: int = 49
    alpha: float = 1.0
    alphas: dict[str, float] = field(default_factory=dict)
    random_subset: bool = False
    short_samples: Literal["error", "mask"] = "error"

    def per_modality(self, names: tuple[str, ...]) -> list[float]:
        """One alpha for each of some modalities."""
        for name, value in {**self.alphas, "alpha": self.alpha}.items():
            if name != "alpha":
                get_modality(name)
            if not value > 0:
                raise ConfigError(f"mask: alpha must be positive, got {value} for '{name}'.")
        return [self.alphas.get(name, self.alpha) for name in names]


@dataclass
class DataOptions:
    """The tiles.

    Args:
        root: folder of a data set in the MMEarth layout (NAME.h5 and its side files), or of a packed copy; the latter
            also behind a URL ("s3://bucket/folder"; needs universal-pathlib and what the protocol needs).
        workers: processes that read tiles; 0 reads in the main process.
        flips: mirror training tiles at random.
        val_fraction: share of the tiles held out, in whole blocks, where the data set has no validation split.
        val_block_degrees: edge of those blocks in degrees, at least 1.
        val_tiles: validate on at most so many tiles.
        retries: how often to try again where a tile cannot be read or a reading process is killed, after pauses of
            0.5 s, 1 s, 2 s, ... up to a minute.
        max_unread: how many different tiles may stay unreadable; they are left out, and listed in OUT/unread.csv.
    """

    root: str | Path | None = None
    workers: int = 4
    flips: Literal["none", "horizontal", "both"] = "horizontal"
    val_fraction: float = 0.01
    val_block_degrees: float = 1.0
    val_tiles: int = 4096
    retries: int = 4
    max_unread: int = 0


@dataclass
class OptimOptions:
    """Optimisation: AdamW with linear warm-up and a cosine to zero.

    Args:
        batch_size: tiles per step, over all devices and micro-batches.
        micro_batches: in how many parts a device works through its share of a batch; changes memory, not results.
        epochs: passes over the training tiles; ignored where steps is given.
        steps: number of steps.
        lr: learning rate per 256 tiles of batch; the rate used is lr * batch_size / 256.
        warmup_epochs: length of the warm-up; ignored where warmup_steps is given.
        warmup_steps: length of the warm-up in steps.
        warmup_lr: learning rate of the first step.
        weight_decay: not applied to biases, norms, embeddings and tokens.
        betas: of AdamW.
        clip_norm: largest norm of the gradient; none by default.
        ema: decay of an exponential moving average of the weights, which is then validated and saved; none by default.
            The decay of update n is at most (1 + n) / (10 + n), so that untrained weights do not stay in it.
        weighting: sum of the losses of the views, or learned uncertainty weights.
        max_skipped: stop after so many steps in a row with a loss or gradient that is not finite.
    """

    batch_size: int = 512
    micro_batches: int = 1
    epochs: int = 1000
    steps: int | None = None
    lr: float = 1e-4
    warmup_epochs: float = 1.0
    warmup_steps: int | None = None
    warmup_lr: float = 1e-6
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    clip_norm: float | None = None
    ema: float | None = None
    weighting: Literal["sum", "uncertainty"] = "sum"
    max_skipped: int = 20


@dataclass
class TrainerOptions:
    """How and where to run; these go to the Lightning Trainer.

    Args:
        accelerator: "auto", "cpu", "gpu", ...
        devices: number of devices per node, or "auto".
        nodes: number of nodes.
        threads: of torch on the CPU; by default torch's own number.
        strategy: "ddp" keeps the whole model on every device, "fsdp" a part of it (FSDP2), for models that need it.
        precision: the paper used fp16; bf16 needs no loss scaling.
        compile: compile the step (torch.compile): faster from the second step on, the first takes a minute or more.
        grad_checkpointing: compute encoder blocks again in the backward pass: less memory, a third more arithmetic.
        val_every: steps between validations.
        save_every: steps between saved states.
        log_every: steps between logged rows.
        panels: tiles in a reconstruction picture; 0 draws none.
        loggers: "tensorboard", "wandb", "mlflow"; metrics.csv is always written.
        progress: show a progress bar.
    """

    accelerator: str = "auto"
    devices: int | str = "auto"
    nodes: int = 1
    threads: int | None = None
    strategy: Literal["ddp", "fsdp"] = "ddp"
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    compile: bool = False
    grad_checkpointing: bool = False
    val_every: int = 2000
    save_every: int = 2000
    log_every: int = 50
    panels: int = 3
    loggers: list[Literal["tensorboard", "wandb", "mlflow"]] = field(default_factory=lambda: ["tensorboard"])
    progress: bool = True


@dataclass
class PretrainOptions:
    """Pre-train a multi-modal masked autoencoder.

    Args:
        out: folder of the run; must be new unless resume is given.
        recipe: the set of defaults; "paper" is the published recipe without its faults, "v2" what our studies found
            to be better: land cover is predicted and not fed.
        seed: decides initialisation, order, crops, flips and masks.
        resume: go on from the last saved state of `out`, or start there where there is none.
        dry_run: print the options and a plan (samples, steps, hours, memory) from a few measured steps; write nothing.
        model: the model.
        mask: the masks.
        data: the tiles.
        optim: the optimisation.
        trainer: how and where to run.
    """

    out: Path = Path("runs/pretrain")
    recipe: Literal["paper", "v2"] = "paper"
    seed: int = 0
    resume: bool = False
    dry_run: bool = False
    model: ModelOptions = field(default_factory=ModelOptions)
    mask: MaskOptions = field(default_factory=MaskOptions)
    data: DataOptions = field(default_factory=DataOptions)
    optim: OptimOptions = field(default_factory=OptimOptions)
    trainer: TrainerOptions = field(default_factory=TrainerOptions)

    def __post_init__(self) -> None:
        if self.model.inputs is None:
            self.model = replace(self.model, inputs=list(RECIPE_INPUTS[self.recipe]))


# The numbers that make sense: the least, and what they stay below (None: no bound).
RANGES: dict[str, tuple[float, float | None]] = {
    "seed": (0, 2**32),
    "mask.num_visible": (1, None),
    "data.workers": (0, None),
    "data.val_tiles": (1, None),
    "data.retries": (0, None),
    "data.max_unread": (0, None),
    "optim.batch_size": (1, None),
    "optim.micro_batches": (1, None),
    "optim.epochs": (1, None),
    "optim.steps": (1, None),
    "optim.lr": (0, None),
    "optim.warmup_epochs": (0, None),
    "optim.warmup_steps": (0, None),
    "optim.warmup_lr": (0, None),
    "optim.weight_decay": (0, None),
    "optim.betas": (0, 1),
    "optim.clip_norm": (0, None),
    "optim.ema": (0, 1),
    "optim.max_skipped": (0, None),
    "trainer.devices": (1, None),
    "trainer.nodes": (1, None),
    "trainer.threads": (1, None),
    "trainer.val_every": (1, None),
    "trainer.save_every": (1, None),
    "trainer.log_every": (1, None),
    "trainer.panels": (0, None),
}


def check(options: object, ranges: Mapping[str, tuple[float, float | None]] = RANGES) -> None:
    """Raise ConfigError for a number outside of its range."""
    for name, (low, high) in ranges.items():
        value = options
        for part in name.split("."):
            value = getattr(value, part)
        for number in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(number, (int, float)) and not (low <= number and (high is None or number < high)):
                raise ConfigError(f"{name} must be {low} or more{f' and below {high}' if high else ''}; got {number}.")


def check_pretrain(options: PretrainOptions) -> None:
    """Raise ConfigError for a number outside of its range, or for options that do not go together."""
    check(options)
    if options.trainer.strategy == "fsdp" and options.optim.ema is not None:
        raise ConfigError(
            "optim.ema keeps a copy of all weights, and trainer.strategy fsdp cuts them up; leave out one."
        )


def demo_options() -> PretrainOptions:
    """A run that two cores finish in about two minutes: one computes, one reads.

    Two threads of torch would be faster while nothing else runs, and many times slower as soon as anything does.
    """
    options = PretrainOptions(
        model=ModelOptions(size="demo"),
        data=DataOptions(workers=1),
        optim=OptimOptions(batch_size=32, steps=600, lr=1.6e-2, warmup_steps=40, clip_norm=1.0),
        trainer=TrainerOptions(accelerator="cpu", devices=1, threads=1, val_every=200, save_every=200, log_every=20),
    )
    options.model.inputs = None  # left to the recipe, also where another one is asked for
    return options
