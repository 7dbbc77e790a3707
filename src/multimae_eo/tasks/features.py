"""Frozen features of images: of an encoder, or of a baseline that learned nothing; kept on disk."""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import lightning.pytorch as lightning
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multimae_eo import checkpoint
from multimae_eo.codecs import codec_for
from multimae_eo.data.labelled import SPLITS, SplitName
from multimae_eo.encoder import Encoder, Seen, TokenLayout
from multimae_eo.errors import DataError
from multimae_eo.finetune_options import MachineOptions
from multimae_eo.raster import Batch
from multimae_eo.shapes import Float
from multimae_eo.tasks.evaluate import batches, device_of
from multimae_eo.tasks.samples import Setup

Init = Literal["pretrained", "random", "band_statistics", "random_convolutions"]
# Filters of the random convolutions; each gives two numbers.
FILTERS = 256
# What a change of these functions changes: part of the name of every cache file.
VERSION = 1


class Frozen(NamedTuple):
    """Features of some images. values: [n, d], or tokens [n, m t, d] for pixels; valid: [n, m t], of tokens.

    label, known: as in `data.labelled.Label`, stacked; layout: where the tokens stand.
    """

    values: np.ndarray
    label: np.ndarray
    known: np.ndarray
    valid: np.ndarray
    layout: TokenLayout | None = None

    def rows(self, chosen: np.ndarray) -> "Frozen":
        """Some of the images."""
        values, label, known, valid = (part[chosen] for part in self[:4])
        return Frozen(values, label, known, valid, self.layout)

    def seen(self, chosen: np.ndarray) -> Seen:
        """Tokens of some images, as a head wants them."""
        assert self.layout is not None
        tokens = torch.from_numpy(np.asarray(self.values[chosen], np.float32))
        return Seen(tokens, torch.from_numpy(np.asarray(self.valid[chosen])), self.layout)


@dataclass(frozen=True)
class Extractor:
    """A function from batches to features [b, d]; a text that tells it from others; its encoder, if it has one."""

    function: Callable[[Batch], Tensor]
    key: str
    encoder: Encoder | None = None


def extractor(setup: Setup, directory: Path, init: Init, *, seed: int) -> Extractor:
    """What makes features of these data: the mean of all valid tokens of an encoder, or a baseline."""
    if init == "band_statistics":
        return Extractor(BandStatistics(setup), init)
    if init == "random_convolutions":
        return Extractor(RandomConvolutions(setup, seed=seed), f"{init} {seed}")
    if init == "pretrained":
        encoder, key = checkpoint.load(directory, setup.config), checkpoint.fingerprint(directory)
    else:
        lightning.seed_everything(seed, verbose=False)
        encoder, key = Encoder(setup.config).eval(), f"{init} {seed} {checkpoint.fingerprint(directory)}"
    return Extractor(lambda batch: encoder.see(batch).mean(), key, encoder)


class BandStatistics(nn.Module):
    """Mean, deviation, least and largest valid value of every band in network units; shares of classes.

    A baseline that knows no neighbourhood: [b, 4 c].
    """

    def __init__(self, setup: Setup):
        super().__init__()
        kinds = setup.modalities.items()
        self.codecs = nn.ModuleDict({name: codec_for(m, "band", 1) for name, m in kinds})

    def forward(self, batch: Batch) -> Float[Tensor, "b f"]:
        parts = []
        for name, codec in self.codecs.items():
            values, valid = codec.encode(batch[name])  # type: ignore[operator]
            valid = valid.expand_as(values)
            number = valid.sum(dim=(2, 3)).clamp(min=1)
            mean = values.sum(dim=(2, 3)) / number
            spread = (values - mean[..., None, None]).masked_fill(~valid, 0.0).square().sum(dim=(2, 3)) / number
            there = valid.any(dim=3).any(dim=2)
            low = values.masked_fill(~valid, torch.inf).amin(dim=(2, 3)).where(there, 0.0)
            high = values.masked_fill(~valid, -torch.inf).amax(dim=(2, 3)).where(there, 0.0)
            parts += [mean, spread.sqrt(), low, high]
        return torch.cat(parts, dim=1)


class RandomConvolutions(nn.Module):
    """Means of rectified random 3 x 3 convolutions over all bands in network units: [b, 2 FILTERS].

    Source: Rolf et al., "A generalizable and accessible approach to machine learning with global satellite imagery",
    Nature Communications 2021, with Gaussian filters.
    """

    weight: Tensor

    def __init__(self, setup: Setup, *, seed: int):
        super().__init__()
        kinds = setup.modalities.items()
        self.codecs = nn.ModuleDict({name: codec_for(m, "band", 1) for name, m in kinds})
        self.strides = {name: m.stride for name, m in kinds}
        channels = sum(m.channels for _, m in kinds)
        random = np.random.Generator(np.random.Philox(key=[seed, 0]))
        weight = random.standard_normal((FILTERS, channels, 3, 3)) / np.sqrt(9 * channels)
        self.register_buffer("weight", torch.from_numpy(weight.astype(np.float32)), persistent=False)

    def forward(self, batch: Batch) -> Float[Tensor, "b f"]:
        parts = []
        for name, codec in self.codecs.items():
            values = codec.encode(batch[name]).values  # type: ignore[operator]
            step = self.strides[name]
            parts.append(values.repeat_interleave(step, 2).repeat_interleave(step, 3))
        answers = F.conv2d(torch.cat(parts, dim=1), self.weight, padding=1)
        return torch.cat([answers.relu().mean(dim=(2, 3)), (-answers).relu().mean(dim=(2, 3))], dim=1)


def frozen_features(
    setup: Setup, made: Extractor, run: MachineOptions, *, folder: Path, workers: int
) -> dict[SplitName, Frozen]:
    """Features of every split; read from `folder` where they were made before from the same weights and data."""
    return {split: _split_features(setup, made, split, run, folder, workers) for split in SPLITS}


def _split_features(
    setup: Setup, made: Extractor, split: SplitName, run: MachineOptions, folder: Path, workers: int
) -> Frozen:
    facts = [
        VERSION,
        made.key,
        setup.source.fingerprint(),
        setup.source.about.dense,
        (run.precision, setup.config.patch_size),
        setup.facts(),
        {name: dataclasses.asdict(m) for name, m in setup.modalities.items()},  # for the statistics
        setup.source.ids[split],
    ]
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:20]
    place = folder / f"{setup.source.about.name}-{split}-{key}"
    if not place.is_dir():
        _write(setup, made, split, run, place, workers)
    values, label, known, valid = (np.load(place / f"{name}.npy", mmap_mode="r") for name in Frozen._fields[:4])
    layout = json.loads((place / "layout.json").read_text())
    return Frozen(values, label, known, valid, TokenLayout(tuple(layout[0]), tuple(layout[1])) if layout else None)


def _write(setup: Setup, made: Extractor, split: SplitName, run: MachineOptions, place: Path, workers: int) -> None:
    """Compute the features of a split; the folder appears under its name only when complete, else nothing is left."""
    partial = place.with_name(f".{place.name}.partial-{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        _fill(setup, made, split, run, partial, workers)
        os.replace(partial, place)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _fill(setup: Setup, made: Extractor, split: SplitName, run: MachineOptions, partial: Path, workers: int) -> None:
    """Write the arrays of a split into a folder; raises DataError for tokens of images of several sizes."""
    modules = made.encoder or made.function
    if isinstance(modules, nn.Module):
        modules.to(device_of(run))
    count, files, layout = len(setup.source.ids[split]), {}, None
    for example in batches(setup, split, run, workers=workers, what=f"features of {split}"):
        if setup.source.about.dense:
            assert made.encoder is not None
            seen = made.encoder.see(example.batch)
            layout, number = seen.layout, seen.layout.num_tokens * len(seen.layout.names)
            values, valid = seen.tokens[:, :number].half(), seen.valid[:, :number]
        else:
            values = made.function(example.batch).float()
            valid = torch.ones(len(values), 1, dtype=torch.bool)
        for name, part in zip(Frozen._fields, (values, example.label, example.known, valid), strict=False):
            array = part.cpu().numpy()
            if name not in files:
                shape = (count, *array.shape[1:])
                files[name] = np.lib.format.open_memmap(partial / f"{name}.npy", "w+", array.dtype, shape)
            if files[name].shape[1:] != array.shape[1:]:
                raise DataError(
                    f"'{setup.source.about.name}', split '{split}': images differ in size; frozen features of pixels "
                    "need one size. Cut the images to one size, or fine-tune with --optim.freeze 1 instead."
                )
            files[name][np.asarray(example.row)] = array
    for file in files.values():
        file.flush()
    (partial / "layout.json").write_text(json.dumps(layout))
