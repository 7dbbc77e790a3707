"""What fine-tuning and probing are fed: labelled images as rasters, flipped and with modalities dropped at random."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as lightning
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from multimae_eo.config import ModelConfig
from multimae_eo.data.labelled import (
    Labelled,
    SplitName,
    absent_bands,
    blank,
    products_of,
    rasters,
    with_own_statistics,
)
from multimae_eo.data.patience import Patience
from multimae_eo.errors import ConfigError, UnknownNameError
from multimae_eo.finetune_options import FinetuneOptions, LabelledOptions
from multimae_eo.modalities import Modality, fed_by
from multimae_eo.raster import Batch, OwnGrids, Raster, flip, pad, token_valid
from multimae_eo.tasks.examples import TRAIN, UNREAD, Steps, philox
from multimae_eo.tasks.loading import Loader


class LabelledExample(NamedTuple):
    """One labelled image, or a batch of them: rasters on their own grids, label, which of it is known, and the row.

    unread: whether it could not be read; then its rasters are valid nowhere, and nothing of its label is known.
    """

    batch: Batch
    label: Tensor
    known: Tensor
    row: Tensor | int
    unread: Tensor | bool = False


@dataclass(frozen=True)
class Setup:
    """Labelled data as one model sees them.

    config: the model's, with the data set's own statistics as one more product where these are used. inputs: the
    modalities that are fed, in the model's order; products: the index in `Raster.product` of each.
    """

    source: Labelled
    config: ModelConfig
    inputs: tuple[str, ...]
    products: dict[str, int]

    @property
    def modalities(self) -> dict[str, Modality]:
        return {name: self.config.modalities[name] for name in self.inputs}

    def facts(self) -> dict[str, str]:
        """What every result says of its inputs: modalities, bands, those that are missing, statistics, notes."""
        about = self.source.about
        bands = [b for m in self.modalities.values() for b in m.bands if b in about.bands]
        products = {self.config.modalities[name].products[index] for name, index in self.products.items()}
        return {
            "inputs": "+".join(self.inputs),
            "bands": " ".join(bands),
            "absent_bands": " ".join(absent_bands(about, self.modalities)),
            "statistics": "+".join(sorted(products)),
            "notes": notes_of(self.source),
        }


def notes_of(source: Labelled) -> str:
    """What a result says of its data, an accepted leak included."""
    ids = [sample_id for split in source.ids.values() for sample_id in split]
    shared = len(ids) - len(set(ids))
    leak = (f"{shared} of {len(ids)} images are in more than one split",) if shared else ()
    return "; ".join([*source.about.notes, *leak])


def open_source(options: LabelledOptions) -> Labelled:
    """The data that some options name."""
    if options.root is None:
        raise ConfigError("data.root is not set; give the folder of the data.")
    if options.source == "geobench":
        from multimae_eo.data.geobench import GeoBench

        return GeoBench(
            options.root,
            options.name,
            partition=options.partition,
            ignore_class0=options.ignore_class0,
            allow_leaks=options.allow_leaks,
        )
    from multimae_eo.data.folder import GeoTIFFFolder

    folder = options.folder
    return GeoTIFFFolder(
        options.root,
        task=folder.task,
        bands=folder.bands,
        table=folder.table,
        classes=folder.classes,
        product=folder.product,
        nodata=folder.nodata,
        scale=folder.scale,
        offset=folder.offset,
        ignore=folder.ignore,
        unit=folder.unit,
        name=options.name or None,
        allow_leaks=options.allow_leaks,
    )


def set_up(source: Labelled, config: ModelConfig, options: LabelledOptions) -> Setup:
    """The data as a model sees them; raises ConfigError where they share nothing, or not what `inputs` names."""
    about = source.about
    available = {name: config.modalities[name] for name in config.input_modalities}
    shared = fed_by(about.bands, available)
    facts = f"'{about.name}', whose bands are {' '.join(about.bands)}"
    if not shared:
        raise ConfigError(f"none of the model's inputs ({', '.join(available)}) has half of its bands in {facts}.")
    for name in options.inputs:
        if name not in available:
            raise UnknownNameError("modality in data.inputs", name, available)
        if name not in shared:
            raise ConfigError(f"data.inputs: '{name}' cannot be fed from {facts}; choose among {', '.join(shared)}.")
    inputs = tuple(name for name in config.input_modalities if name in (options.inputs or shared))
    chosen = {name: available[name] for name in inputs}
    if options.statistics == "dataset":
        chosen = with_own_statistics(chosen, about, source.statistics())
    products = products_of(chosen, about, options.statistics)
    config = dataclasses.replace(config, modalities={**config.modalities, **chosen})
    return Setup(source, config, inputs, products)


class LabelledExamples(Dataset[LabelledExample]):
    """Images of a split as rasters, padded to the patch; indexed by (epoch, row).

    options: flips, and drop-out of modalities and bands, for training; None leaves the images as they are. record:
    where those are listed that cannot be read, if any may be left out. Raises DataError for one that may not.
    """

    def __init__(
        self,
        setup: Setup,
        split: SplitName,
        *,
        options: LabelledOptions | None = None,
        seed: int = 0,
        record: Path | None = None,
    ):
        self.setup, self.ids, self.options, self.seed = setup, setup.source.ids[split], options, seed
        self.own_grids = OwnGrids(setup.modalities)
        patient = options or LabelledOptions()
        self.patience = Patience(patient.retries, patient.max_unread, record)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: tuple[int, int]) -> LabelledExample:
        epoch, row = index
        setup = self.setup
        sample = self.patience.read(self.ids[row], partial(setup.source.read, self.ids[row]))
        unread, patch = sample is None, setup.config.patch_size
        sample = sample or blank(setup.source.about, patch)
        batch = rasters(sample, setup.source.about, setup.modalities, setup.products)
        label, known = torch.as_tensor(sample.label.values), torch.as_tensor(sample.label.known)
        if self.options is not None:
            random = philox(self.seed, TRAIN, epoch, row)
            batch, label, known = self._flip(batch, label, known, random)
            rates = {"modality": self.options.drop_modality, "channel": self.options.drop_channel}
            batch = drop(batch, random, patch=patch, **rates)
        batch = self.own_grids(pad(batch, strides=dict.fromkeys(batch, 1), multiple=patch))
        return LabelledExample(batch, label, known, row, unread)

    def _flip(
        self, batch: Batch, label: Tensor, known: Tensor, random: np.random.Generator
    ) -> tuple[Batch, Tensor, Tensor]:
        assert self.options is not None
        mirror, turn = random.integers(0, 2, 2).tolist()
        horizontal = self.options.flips != "none" and mirror == 1
        vertical = self.options.flips == "both" and turn == 1
        axes = [axis for axis, wanted in ((-1, horizontal), (-2, vertical)) if wanted]
        if axes and self.setup.source.about.dense:
            label, known = label.flip(axes), known.flip(axes)
        return flip(batch, horizontal=horizontal, vertical=vertical), label, known


def drop(batch: Batch, random: np.random.Generator, *, modality: float, channel: float, patch: int = 1) -> Batch:
    """Make modalities and bands of one sample invalid, each with its probability.

    One modality that has a valid token always stays, with at least half of its bands, so that it still gives some.
    """
    names, whole = list(batch), pad(batch, strides=dict.fromkeys(batch, 1), multiple=patch)
    there = [i for i, n in enumerate(names) if token_valid(whole[n].valid, patch).any()] or list(range(len(names)))
    hidden = random.random(len(names)) < modality
    if hidden[there].all():
        hidden[there[random.integers(len(there))]] = False
    visible = [i for i in there if not hidden[i]]
    spared = visible[random.integers(len(visible))]
    left = {}
    for i, name in enumerate(names):
        raster = batch[name]
        order = random.random(raster.values.shape[-3])
        keep = order >= channel
        if i == spared:
            measured = raster.valid.expand_as(raster.values).flatten(-2).any(dim=-1).numpy()
            first = np.argsort(~measured * 2 - order, kind="stable")  # those with data, largest draw first
            keep[first[: -(-len(keep) // 2)]] = True
        bands = torch.from_numpy(keep & ~hidden[i])
        left[name] = raster._replace(valid=raster.valid & bands[:, None, None])
    return left


def collate(examples: Sequence[LabelledExample]) -> LabelledExample:
    """A batch of examples; where sizes differ, smaller ones are padded right and below with invalid, unknown pixels."""
    names = list(examples[0].batch)
    columns = {name: [e.batch[name] for e in examples] for name in names}
    batch = {name: Raster(*map(torch.stack, zip(*map(_padded(rs), rs), strict=True))) for name, rs in columns.items()}
    label, known = [e.label for e in examples], [e.known for e in examples]
    if label[0].ndim == 2:
        size = max(x.shape[0] for x in label), max(x.shape[1] for x in label)
        label, known = (
            [F.pad(x, (0, size[1] - x.shape[1], 0, size[0] - x.shape[0])) for x in xs] for xs in (label, known)
        )
    rows, unread = (torch.tensor([getattr(e, name) for e in examples]) for name in ("row", "unread"))
    return LabelledExample(batch, torch.stack(label), torch.stack(known), rows, unread)


def by_size(examples: Sequence[LabelledExample]) -> list[LabelledExample]:
    """Batches of examples of one size each, so that what is made of an image does not depend on its neighbours."""
    groups: dict[tuple[int, ...], list[LabelledExample]] = {}
    for example in examples:
        first = next(iter(example.batch.values()))
        groups.setdefault((*first.values.shape, *example.label.shape), []).append(example)
    return [collate(group) for group in groups.values()]


def _padded(rs: Sequence[Raster]) -> Any:
    """A function that pads a raster to the largest of some."""
    height, width = (max(r.values.shape[axis] for r in rs) for axis in (-2, -1))

    def grow(raster: Raster) -> Raster:
        margin = (0, width - raster.values.shape[-1], 0, height - raster.values.shape[-2])
        return Raster(F.pad(raster.values, margin), F.pad(raster.valid, margin), raster.product)

    return grow


class LabelledData(lightning.LightningDataModule):
    """Loaders over the splits of labelled data; training order is pure in the seed and the step."""

    def __init__(self, setup: Setup, options: FinetuneOptions):
        super().__init__()
        self.setup_, self.options = setup, options
        self.batch_size = min(options.optim.batch_size, len(setup.source.ids["train"]))

    @property
    def per_epoch(self) -> int:
        """Steps of one pass over the training images."""
        return len(self.setup_.source.ids["train"]) // self.batch_size

    def train_dataloader(self) -> Loader[LabelledExample]:
        trainer = self.trainer
        assert trainer is not None
        rows = np.arange(len(self.setup_.source.ids["train"]))
        steps = Steps(rows, batch_size=self.batch_size, steps=trainer.max_steps, seed=self.options.seed)
        options, record = self.options, self.options.out / UNREAD
        examples = LabelledExamples(self.setup_, "train", options=options.data, seed=options.seed, record=record)
        workers, retries = options.data.workers, options.data.retries
        return Loader(examples, steps, workers=workers, collate_fn=collate, retries=retries)

    def val_dataloader(self) -> Loader[list[LabelledExample]]:
        return in_order(self.setup_, "valid", self.batch_size, self.options.data.workers)


def in_order(setup: Setup, split: SplitName, size: int, workers: int) -> Loader[list[LabelledExample]]:
    """All images of a split as they are; lists of batches of images of one size, with their rows."""
    examples = LabelledExamples(setup, split)
    rows = range(len(examples))
    batches = [[(0, row) for row in rows[i : i + size]] for i in range(0, len(rows), size)]
    return Loader(examples, batches, workers=workers, collate_fn=by_size, retries=LabelledOptions().retries)
