"""Every option of fine-tuning, probing and evaluation, as plain dataclasses; imports no torch."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from multimae_eo.config import HeadName, TaskName
from multimae_eo.errors import CheckpointError, ConfigError
from multimae_eo.options import RANGES, check


@dataclass
class FolderOptions:
    """Your own GeoTIFFs, where data.source is folder (docs/own_geotiffs.md).

    Args:
        task: classification, multilabel, segmentation or regression.
        bands: what the channels of the files are, in their order; "-" leaves one out.
        table: CSV with columns path, label (or mask) and split, relative to data.root.
        classes: names of the classes in the order of their indices; none for regression.
        product: the package's product whose units the files have, such as L2A; none: units of their own.
        nodata: value of pixels that were not measured; default: what the files say.
        scale: factor from the files' numbers to the units of the product.
        offset: taken off reflectance x 10000: 1000 for images of processing baseline 04, as ESA delivers them since
            2022; default: nothing, and an error where they carry it although a product is named.
        ignore: values of a mask that are no class.
        unit: of the labels of a regression.
    """

    task: TaskName = "classification"
    bands: list[str] = field(default_factory=list)
    table: str = "labels.csv"
    classes: list[str] = field(default_factory=list)
    product: str | None = None
    nodata: float | None = None
    scale: float = 1.0
    offset: float | None = None
    ignore: list[int] = field(default_factory=list)
    unit: str = ""


@dataclass
class LabelledOptions:
    """Labelled images.

    Args:
        source: a GEO-Bench v1 data set in its original folders, or a folder of your own GeoTIFFs.
        root: folder that holds classification_v1.0 and segmentation_v1.0, or your GeoTIFFs.
        name: of the GEO-Bench data set, such as m-eurosat; of your own, any (default: that of its folder).
        partition: default, or 0.01x, 0.02x, 0.05x, 0.10x, 0.20x, 0.50x, 1.00x of the training labels.
        ignore_class0: whether class 0, which means "no data", counts as no class; must be said for the data sets that
            have such a class.
        allow_leaks: accept samples that are in two splits.
        inputs: modalities to feed; default: all of the model's that share a band with the data.
        statistics: standardise with the data set's own statistics, or with the model's of the product that the data
            set names.
        workers: processes that read images; 0 reads in the main process.
        flips: mirror training images at random.
        drop_modality: probability with which each modality of a training image is hidden from the model; one stays.
        drop_channel: probability with which each band of a training image is hidden from the model.
        retries: how often to try again where an image cannot be read or a reading process is killed, after pauses of
            0.5 s, 1 s, 2 s, ... up to a minute.
        max_unread: how many different training images may stay unreadable; they are left out, and listed in
            OUT/unread.csv. Of other splits none may.
        folder: what your GeoTIFFs hold.
    """

    source: Literal["geobench", "folder"] = "geobench"
    root: Path | None = None
    name: str = ""
    partition: str = "default"
    ignore_class0: bool | None = None
    allow_leaks: bool = False
    inputs: list[str] = field(default_factory=list)
    statistics: Literal["dataset", "model"] = "dataset"
    workers: int = 2
    flips: Literal["none", "horizontal", "both"] = "both"
    drop_modality: float = 0.0
    drop_channel: float = 0.0
    retries: int = 4
    max_unread: int = 0
    folder: FolderOptions = field(default_factory=FolderOptions)


def labelled_from_json(content: dict[str, Any], where: str) -> LabelledOptions:
    """Options of labelled data from what `dataclasses.asdict` and JSON make of them; raises CheckpointError."""
    try:
        options = LabelledOptions(**content)
        options.folder = FolderOptions(**content.get("folder", {}))
    except TypeError as error:
        raise CheckpointError(f"{where} describes no data: {error}. Was it written by another version?") from error
    options.root = Path(options.root) if options.root is not None else None
    return options


@dataclass
class FinetuneOptim:
    """Optimisation: AdamW with linear warm-up and a cosine to zero; a step that is not finite is skipped.

    Args:
        batch_size: images per step, over all micro-batches; that of the training split where this is smaller.
        micro_batches: in how many parts a batch is worked through; changes memory, and what drop_path draws.
        epochs: passes over the training images; ignored where steps is given.
        steps: number of steps.
        lr: learning rate per 256 images of batch; the rate used is lr * batch_size / 256.
        warmup_epochs: length of the warm-up.
        warmup_lr: learning rate of the first step.
        weight_decay: not applied to biases, norms and tokens.
        layer_decay: factor of the learning rate from each layer to the one below it.
        betas: of AdamW.
        clip_norm: largest norm of the gradient; none by default.
        drop_path: stochastic depth of the last encoder block.
        label_smoothing: share of a label that is spread over all classes.
        dice: weight of the Dice loss beside the cross-entropy of a segmentation.
        freeze: share of the run in which the encoder is frozen: 0 is full fine-tuning, 1 trains the head alone,
            anything between unfreezes the encoder then.
        max_skipped: stop after so many steps in a row with a loss or gradient that is not finite.
    """

    batch_size: int = 64
    micro_batches: int = 1
    epochs: int = 100
    steps: int | None = None
    lr: float = 5e-4
    warmup_epochs: float = 5.0
    warmup_lr: float = 1e-6
    weight_decay: float = 0.05
    layer_decay: float = 0.65
    betas: tuple[float, float] = (0.9, 0.999)
    clip_norm: float | None = None
    drop_path: float = 0.1
    label_smoothing: float = 0.0
    dice: float = 0.0
    freeze: float = 0.0
    max_skipped: int = 20


def dense_optim() -> FinetuneOptim:
    """The paper's settings for labels of pixels (docs/model.md, section 8)."""
    return FinetuneOptim(batch_size=16, epochs=64, lr=1.6e-3, warmup_epochs=1.0, layer_decay=0.75)


@dataclass
class MachineOptions:
    """Where to run.

    Args:
        accelerator: "auto", "cpu", "gpu", ...; one device is used.
        threads: of torch on the CPU; by default torch's own number.
        precision: bf16 needs a device that has it.
        progress: show a progress bar.
    """

    accelerator: str = "auto"
    threads: int | None = None
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    progress: bool = True


@dataclass
class FinetuneOptions:
    """Fine-tune the encoder of a checkpoint on labelled images.

    Args:
        checkpoint: directory of a pre-trained model.
        out: folder of the run; must be new.
        init: start from the weights of the checkpoint, or from random ones of the same sizes.
        head: linear or attentive for one label per image, convnext or linear_dense for one per pixel; default: the
            paper's, linear or convnext.
        seed: decides initialisation, order, flips and what is dropped.
        dry_run: print the options and a plan (samples, steps, hours, memory) from a few measured steps; write nothing.
        data: the images.
        optim: the optimisation.
        trainer: where to run.
    """

    checkpoint: Path | None = None
    out: Path = Path("runs/finetune")
    init: Literal["pretrained", "random"] = "pretrained"
    head: HeadName | None = None
    seed: int = 0
    dry_run: bool = False
    data: LabelledOptions = field(default_factory=LabelledOptions)
    optim: FinetuneOptim = field(default_factory=FinetuneOptim)
    trainer: MachineOptions = field(default_factory=MachineOptions)


@dataclass
class EvaluateOptions:
    """Evaluate a fine-tuned checkpoint, also without some of its modalities.

    Args:
        checkpoint: directory of a fine-tuned model, such as the folder best of a run.
        root: folder of the data, where it has moved since fine-tuning.
        split: which images.
        drop: modalities to leave out; may be given several times.
        all_subsets: evaluate every non-empty subset of the modalities.
        out: a CSV to write the table to.
        seed: decides the bootstrap.
        trainer: where to run.
    """

    checkpoint: Path
    root: Path | None = None
    split: Literal["train", "valid", "test"] = "test"
    drop: list[str] = field(default_factory=list)
    all_subsets: bool = False
    out: Path | None = None
    seed: int = 0
    trainer: MachineOptions = field(default_factory=MachineOptions)


@dataclass
class ProbeOptions:
    """Frozen features: k-NN, linear probe and linear segmentation probe; features are kept on disk.

    Args:
        checkpoint: directory of a model; its encoder is used as it is.
        init: pretrained; or a baseline: random weights, the statistics of the bands, random convolutions.
        protocols: comma-separated: knn, linear.
        out: folder for results and features.
        seed: of random weights, of random convolutions and of the bootstrap.
        refit_on_valid: fit the linear probe again on train and valid once its C is chosen, as torchgeo-bench does.
        data: the images.
        trainer: where to run.
    """

    checkpoint: Path | None = None
    init: Literal["pretrained", "random", "band_statistics", "random_convolutions"] = "pretrained"
    protocols: str = "knn,linear"
    out: Path = Path("runs/probe")
    seed: int = 0
    refit_on_valid: bool = False
    data: LabelledOptions = field(default_factory=LabelledOptions)
    trainer: MachineOptions = field(default_factory=MachineOptions)


@dataclass
class GeobenchOptions:
    """Run protocols over GEO-Bench data sets; goes on where an earlier run of the same folder stopped.

    Args:
        checkpoint: directory of a pre-trained model.
        data_root: folder that holds classification_v1.0 and segmentation_v1.0; default: the variable GEO_BENCH_DIR.
        datasets: comma-separated names, or all.
        protocol: comma-separated: knn, linear, finetune.
        inputs: comma-separated settings: all, or the paper's rgb-only, multispectral and rgb-relief; a data set is left
            out of a setting whose bands it lacks.
        partitions: comma-separated partitions of the training labels.
        inits: comma-separated: pretrained, random, band_statistics, random_convolutions.
        seeds: how many; protocols without randomness run once.
        first_seed: the first of them.
        ignore_class0: whether class 0 counts as no class where it means "no data" (m-cashew-plant, m-SA-crop-type);
            false scores it like any class, as GEO-Bench does.
        out: folder for results.csv, tables and features.
        allow_leaks: accept samples that are in two splits.
        refit_on_valid: fit the linear probe again on train and valid once its C is chosen, as torchgeo-bench does.
        workers: processes that read images.
        dry_run: print the options, how many cells there are and how many of them are done; write nothing.
        finetune: options of fine-tuning where an image has one label.
        finetune_dense: options of fine-tuning where every pixel has one.
        trainer: where to run.
    """

    checkpoint: Path | None = None
    data_root: Path | None = None
    datasets: str = "all"
    protocol: str = "knn,linear"
    inputs: str = "all"
    partitions: str = "default"
    inits: str = "pretrained"
    seeds: int = 5
    first_seed: int = 0
    ignore_class0: bool = False
    out: Path = Path("runs/geobench")
    allow_leaks: bool = False
    refit_on_valid: bool = False
    workers: int = 2
    dry_run: bool = False
    finetune: FinetuneOptim = field(default_factory=FinetuneOptim)
    finetune_dense: FinetuneOptim = field(default_factory=dense_optim)
    trainer: MachineOptions = field(default_factory=MachineOptions)


FINETUNE_RANGES: dict[str, tuple[float, float | None]] = {
    **{n: r for n, r in RANGES.items() if n.split(".")[-1] in {f.name for f in fields(FinetuneOptim)}},
    **{name: RANGES[name] for name in ("seed", "data.workers", "data.retries", "data.max_unread", "trainer.threads")},
    "data.drop_modality": (0, 1),
    "data.drop_channel": (0, 1),
    "optim.layer_decay": (0, None),
    "optim.drop_path": (0, 1),
    "optim.label_smoothing": (0, 1),
    "optim.dice": (0, None),
    "optim.freeze": (0, None),
}


def given(path: Path | None, option: str) -> Path:
    """A path that must be given; raises ConfigError."""
    if path is None:
        raise ConfigError(f"--{option} is not set; give it on the command line or in the YAML file.")
    return path


def check_finetune(options: FinetuneOptions) -> None:
    """Raise ConfigError for a number outside of its range."""
    check(options, FINETUNE_RANGES)
    if options.optim.freeze > 1:
        raise ConfigError(f"optim.freeze is a share of the run, from 0 to 1; got {options.optim.freeze}.")
