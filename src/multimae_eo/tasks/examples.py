"""What pre-training is fed: crops, flips and mask noise, each a pure function of (seed, epoch, row)."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

import lightning.pytorch as lightning
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from multimae_eo.config import ModelConfig
from multimae_eo.data.mmearth import MMEarth
from multimae_eo.errors import ConfigError, DataError, SizeError
from multimae_eo.masking import MaskNoise, draw_noise, enough_tokens
from multimae_eo.modalities import Categorical, Modality
from multimae_eo.options import PretrainOptions
from multimae_eo.raster import Batch, Raster, crop, flip, majority, token_valid

# What a random stream is for; a part of its key.
ORDER, TRAIN, VALIDATE = 1, 2, 3


def philox(seed: int, purpose: int, epoch: int = 0, row: int = 0) -> np.random.Generator:
    """A generator that depends on nothing but its arguments (docs/design.md, F)."""
    return np.random.Generator(np.random.Philox(key=[seed, purpose], counter=[0, 0, epoch, row]))


class Example(NamedTuple):
    """One example, or a batch of them: rasters on their own grids, mask noise, and the row of the file."""

    batch: Batch
    noise: MaskNoise
    row: int


class Tiles(Protocol):
    """A source of whole tiles on the 10 m grid."""

    tile_px: int

    def __getitem__(self, row: int) -> Batch: ...

    def tile_id(self, row: int) -> str: ...


class Examples(Dataset[Example]):
    """Tiles cropped, flipped and reduced to their own grids, with mask noise; indexed by (epoch, row).

    purpose: TRAIN crops and flips at random, VALIDATE takes the centre. Raises BatchError where a tile has fewer valid
    tokens than the budget, unless short samples are masked.
    """

    def __init__(self, tiles: Tiles, config: ModelConfig, options: PretrainOptions, purpose: int):
        if tiles.tile_px < config.image_size:
            raise SizeError(f"tiles of {tiles.tile_px} px cannot be cropped to model.image_size {config.image_size}.")
        self.tiles, self.config, self.purpose = tiles, config, purpose
        self.seed, self.flips, self.mask = options.seed, options.data.flips, options.mask
        self.alphas = options.mask.per_modality(config.input_modalities)
        self.shape = (len(config.inputs), (config.image_size // config.patch_size) ** 2)

    def __getitem__(self, index: tuple[int, int]) -> Example:
        epoch, row = index
        random = philox(self.seed, self.purpose, epoch, row)
        batch = own_grids(self._cut(self.tiles[row], random), self.config.modalities.values())
        if self.mask.short_samples == "error":
            number = sum(self._num_valid(name, batch[name]) for name in self.config.input_modalities)
            if number < self.mask.num_visible:  # the name costs a read, so it is looked up only now
                enough_tokens(number, self.mask.num_visible, f"tile '{self.tiles.tile_id(row)}' (row {row})")
        noise = draw_noise(random, self.shape, alpha=self.alphas, random_subset=self.mask.random_subset)
        return Example(batch, noise, row)

    def _cut(self, batch: Batch, random: np.random.Generator) -> Batch:
        size, spare = self.config.image_size, self.tiles.tile_px - self.config.image_size
        if self.purpose == VALIDATE:
            return crop(batch, top=spare // 2, left=spare // 2, size=size)
        top, left, mirror, turn = random.integers(0, (spare + 1, spare + 1, 2, 2)).tolist()
        cut = crop(batch, top=top, left=left, size=size)
        return flip(cut, horizontal=self.flips != "none" and mirror == 1, vertical=self.flips == "both" and turn == 1)

    def _num_valid(self, name: str, raster: Raster) -> int:
        return int(token_valid(raster.valid, self.config.patch_edge(name)).sum())


def own_grids(batch: Batch, modalities: Iterable[Modality]) -> Batch:
    """Reduce the classes that live on a coarser grid, by majority over valid pixels."""
    coarse = [m for m in modalities if isinstance(m, Categorical) and m.stride > 1]
    return {**batch, **{m.name: majority(batch[m.name], m.codes, m.stride) for m in coarse if m.name in batch}}


def spread(rows: Sequence[int] | np.ndarray, number: int) -> list[int]:
    """At most `number` of the rows, evenly spread over them."""
    number = min(number, len(rows))
    return [int(rows[len(rows) * i // number]) for i in range(number)]


class Steps(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, row) for one rank, pure in (seed, step); an epoch drops its last partial batch.

    start: the steps already done, which are skipped; the length is that of the whole run.
    """

    def __init__(
        self, rows: np.ndarray, *, batch_size: int, steps: int, seed: int, start: int = 0, rank: int = 0, ranks: int = 1
    ):
        if batch_size > len(rows):
            raise ConfigError(f"optim.batch_size {batch_size} is larger than the {len(rows)} training tiles; lower it.")
        if batch_size % ranks:
            raise ConfigError(f"optim.batch_size {batch_size} is not a multiple of the {ranks} devices.")
        self.rows, self.batch_size, self.steps, self.seed = rows, batch_size, steps, seed
        self.start, self.rank, self.ranks = start, rank, ranks
        self.per_epoch = len(rows) // batch_size

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order, known = self.rows, -1
        for step in range(self.start, self.steps):
            epoch, part = divmod(step, self.per_epoch)
            if epoch != known:
                order, known = philox(self.seed, ORDER, epoch).permutation(self.rows), epoch
            batch = order[part * self.batch_size : (part + 1) * self.batch_size]
            yield [(epoch, int(row)) for row in batch[self.rank :: self.ranks]]


class PretrainData(lightning.LightningDataModule):
    """Loaders over the tiles of a data set; validation rows and masks are the same at every step."""

    def __init__(self, tiles: MMEarth, config: ModelConfig, options: PretrainOptions):
        super().__init__()
        self.tiles, self.config, self.options = tiles, config, options
        data = options.data
        self.rows = tiles.splits(
            val_fraction=data.val_fraction, block_degrees=data.val_block_degrees, seed=options.seed
        )
        Steps(self.rows["train"], batch_size=options.optim.batch_size, steps=0, seed=options.seed)  # checks the sizes
        self.examples(TRAIN)
        if not len(self.rows["val"]):
            raise DataError(f"'{tiles.path}': the validation split is empty; raise data.val_fraction.")
        if len(self.rows["val"]) > data.val_tiles:
            chosen = philox(options.seed, VALIDATE).choice(len(self.rows["val"]), data.val_tiles, replace=False)
            self.rows["val"] = self.rows["val"][np.sort(chosen)]

    @property
    def per_epoch(self) -> int:
        """Steps of one pass over the training tiles."""
        return max(1, len(self.rows["train"]) // self.options.optim.batch_size)

    def train_dataloader(self) -> DataLoader[Example]:
        optim, trainer = self.options.optim, self.trainer
        assert trainer is not None
        steps = Steps(
            self.rows["train"],
            batch_size=optim.batch_size,
            steps=trainer.max_steps,
            seed=self.options.seed,
            start=trainer.global_step,
            rank=trainer.global_rank,
            ranks=trainer.world_size,
        )
        return self._loader(TRAIN, steps)

    def val_dataloader(self) -> DataLoader[Example]:
        trainer = self.trainer
        assert trainer is not None
        return self.validation_batches(trainer.global_rank, trainer.world_size)

    def validation_batches(self, rank: int = 0, ranks: int = 1) -> DataLoader[Example]:
        """The validation examples of one device, in batches; the same at every call."""
        rows = self.rows["val"][rank::ranks].tolist()
        size = max(1, self.options.optim.batch_size // self.options.optim.micro_batches // ranks)
        batches = [[(0, row) for row in rows[i : i + size]] for i in range(0, len(rows), size)]
        return self._loader(VALIDATE, batches)

    def training_batches(self) -> DataLoader[Example]:
        """The training examples of the first epoch, in batches."""
        size = self.options.optim.batch_size
        return self._loader(
            TRAIN, Steps(self.rows["train"], batch_size=size, steps=self.per_epoch, seed=self.options.seed)
        )

    def examples(self, purpose: int) -> Examples:
        """The examples themselves, in this process."""
        return Examples(self.tiles, self.config, self.options, purpose)

    def _loader(self, purpose: int, batches: object) -> DataLoader[Example]:
        workers = self.options.data.workers
        return DataLoader(
            self.examples(purpose),
            batch_sampler=batches,  # type: ignore[arg-type]
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
        )
