"""What pre-training is fed: crops, flips and mask noise, each a pure function of (seed, epoch, row)."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import lightning.pytorch as lightning
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler

from multimae_eo.config import ModelConfig
from multimae_eo.data.patience import Patience
from multimae_eo.data.tiles import Tiles
from multimae_eo.errors import ConfigError, DataError, SizeError
from multimae_eo.masking import MaskNoise, draw_noise, enough_tokens
from multimae_eo.modalities import Categorical
from multimae_eo.options import PretrainOptions
from multimae_eo.raster import Batch, OwnGrids, Raster, cut, rows, token_valid
from multimae_eo.shapes import Bool, Int
from multimae_eo.tasks.loading import Loader

# What a random stream is for; a part of its key.
ORDER, TRAIN, VALIDATE = 1, 2, 3
# Of a run: what could not be read.
UNREAD = "unread.csv"


def philox(seed: int, purpose: int, epoch: int = 0, row: int = 0) -> np.random.Generator:
    """A generator that depends on nothing but its arguments (docs/design.md, F)."""
    return np.random.Generator(np.random.Philox(key=[seed, purpose], counter=[0, 0, epoch, row]))


class Examples(NamedTuple):
    """A batch as the loader hands it over: whole tiles as they are stored, and what is still to be done with them.

    batch: rasters [b, c, tile_px, tile_px] of integers, with validity; window: [b, 4], see `raster.cut`; noise: of the
    masks; rows: [b], of the file; unread: bool [b], tiles that could not be read and are valid nowhere.
    """

    batch: Batch
    window: Int[Tensor, "b 4"]
    noise: MaskNoise
    rows: Int[Tensor, " b"]
    unread: Bool[Tensor, " b"]

    def to(self, device: torch.device) -> "Examples":
        """The same on the device that computes; from pinned memory without waiting for it."""

        def move(parts: Iterable[Tensor]) -> list[Tensor]:
            return [part.to(device, non_blocking=True) for part in parts]

        batch = {name: Raster(*move(raster)) for name, raster in self.batch.items()}
        window, rows, unread = move((self.window, self.rows, self.unread))
        return Examples(batch, window, MaskNoise(*move(self.noise)), rows, unread)


class Prepare(nn.Module):
    """Crops, flips and reduces labels to their own grids, for a whole batch, on the device that its tensors are on.

    The result is in physical units; the model's codecs standardise it, on the same device.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.size, self.own_grids = config.image_size, OwnGrids(config.modalities)
        self.classes = tuple(name for name, m in config.modalities.items() if isinstance(m, Categorical))

    def forward(self, batch: Batch, window: Int[Tensor, "b 4"]) -> Batch:
        """Whole tiles and where to cut them (see `Examples`) -> rasters on their own grids, measurements as float32."""
        measured = {n: r if n in self.classes else r._replace(values=r.values.float()) for n, r in batch.items()}
        return self.own_grids(cut(measured, window, self.size))


class ExampleSource(Dataset[Examples]):
    """Examples by lists of (epoch, row): tiles, where to cut and flip them, and mask noise.

    purpose: TRAIN crops and flips at random, VALIDATE takes the centre. Raises BatchError where a tile has fewer valid
    tokens than the budget, unless short samples are masked, and DataError where too many cannot be read.
    """

    def __init__(self, tiles: Tiles, config: ModelConfig, options: PretrainOptions, purpose: int):
        if tiles.tile_px < config.image_size:
            raise SizeError(f"tiles of {tiles.tile_px} px cannot be cropped to model.image_size {config.image_size}.")
        self.tiles, self.config, self.purpose = tiles, config, purpose
        self.patience = Patience(options.data.retries, options.data.max_unread, options.out / UNREAD)
        self.prepare = Prepare(config)
        self.seed, self.flips, self.mask = options.seed, options.data.flips, options.mask
        self.alphas = options.mask.per_modality(config.input_modalities)
        self.shape = (len(config.inputs), (config.image_size // config.patch_size) ** 2)

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> Examples:
        """The examples of some keys, as one batch; a loader takes them as they are (`collate_fn=as_read`)."""
        chosen = [row for _, row in keys]
        windows, noise = zip(*(self._draw(epoch, row) for epoch, row in keys), strict=True)
        batch, unread = self.tiles.read_patiently(chosen, self.patience)
        examples = Examples(
            batch,
            torch.tensor(windows),
            MaskNoise(*(torch.stack(part) for part in zip(*noise, strict=True))),
            torch.tensor(chosen),
            torch.from_numpy(unread),
        )
        if self.mask.short_samples == "error":
            self._check(examples)
        return examples

    def _draw(self, epoch: int, row: int) -> tuple[list[int], MaskNoise]:
        random = philox(self.seed, self.purpose, epoch, row)
        spare = self.tiles.tile_px - self.config.image_size
        window = [spare // 2, spare // 2, 0, 0]
        if self.purpose == TRAIN:
            top, left, mirror, turn = random.integers(0, (spare + 1, spare + 1, 2, 2)).tolist()
            window = [top, left, mirror * (self.flips != "none"), turn * (self.flips == "both")]
        return window, draw_noise(random, self.shape, alpha=self.alphas, random_subset=self.mask.random_subset)

    def _check(self, examples: Examples) -> None:
        """Count valid tokens, exactly only where a tile has so many invalid pixels that it could have too few."""
        lost = sum(self._most_invalid(name, examples.batch[name]) for name in self.config.input_modalities)
        short = self.shape[0] * self.shape[1] - lost < self.mask.num_visible
        for index in np.flatnonzero(short & ~examples.unread.numpy()).tolist():
            one = slice(index, index + 1)
            batch = self.prepare(rows(examples.batch, one), examples.window[one])
            number = sum(
                int(token_valid(batch[name].valid, self.config.patch_edge(name)).sum())
                for name in self.config.input_modalities
            )
            row = int(examples.rows[index])
            if number < self.mask.num_visible:  # the name costs a read, so it is looked up only now
                enough_tokens(number, self.mask.num_visible, f"tile '{self.tiles.tile_id(row)}' (row {row})")

    def _most_invalid(self, name: str, raster: Raster) -> np.ndarray:
        """How many tokens of each tile its invalid pixels could make invalid, each taking over half of one -> [b]."""
        modality, valid = self.config.modalities[name], raster.valid.numpy()
        if isinstance(modality, Categorical):
            valid = valid & np.isin(raster.values.numpy(), modality.codes)
        invalid = valid[0].size - np.count_nonzero(valid, axis=(1, 2, 3))
        return np.minimum(2 * invalid // (len(modality.bands) * self.config.patch_size**2), self.shape[1])


def as_read(examples: Examples) -> Examples:
    """What a loader does with a batch that was read as one."""
    return examples


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
        self._order: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in range(self.start, self.steps):
            yield [(step // self.per_epoch, int(row)) for row in self.batch(step)[self.rank :: self.ranks]]

    def batch(self, step: int) -> np.ndarray:
        """The rows of a step, of all ranks; steps count from 0."""
        epoch, part = divmod(step, self.per_epoch)
        if self._order is None or epoch != self._order[0]:
            self._order = epoch, philox(self.seed, ORDER, epoch).permutation(self.rows)
        return self._order[1][part * self.batch_size : (part + 1) * self.batch_size]


class PretrainData(lightning.LightningDataModule):
    """Loaders over the tiles of a data set; validation rows and masks are the same at every step."""

    def __init__(self, tiles: Tiles, config: ModelConfig, options: PretrainOptions):
        super().__init__()
        self.tiles, self.config, self.options = tiles, config, options
        data = options.data
        self.rows = tiles.splits(
            val_fraction=data.val_fraction, block_degrees=data.val_block_degrees, seed=options.seed
        )
        self.steps(0)  # checks the sizes
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

    def train_dataloader(self) -> Loader[Examples]:
        trainer = self.trainer
        assert trainer is not None
        steps = self.steps(trainer.max_steps, trainer.global_step, trainer.global_rank, trainer.world_size)
        return self._loader(TRAIN, steps)

    def steps(self, steps: int, start: int = 0, rank: int = 0, ranks: int = 1) -> Steps:
        """The batches of the training steps of one device."""
        size = self.options.optim.batch_size
        rows, seed = self.rows["train"], self.options.seed
        return Steps(rows, batch_size=size, steps=steps, seed=seed, start=start, rank=rank, ranks=ranks)

    def val_dataloader(self) -> Loader[Examples]:
        trainer = self.trainer
        assert trainer is not None
        return self.validation_batches(trainer.global_rank, trainer.world_size)

    def validation_batches(self, rank: int = 0, ranks: int = 1) -> Loader[Examples]:
        """The validation examples of one device, in batches; the same at every call.

        Devices work together, so each has as many batches as the first; only so many as `counted` are to be counted.
        """
        val = self.rows["val"]
        own, first = val[rank::ranks].tolist(), val[::ranks].tolist()
        size = max(1, self.options.optim.batch_size // self.options.optim.micro_batches // ranks)
        self.counted = -(-len(own) // size)
        batches = [[(0, row) for row in own[i : i + size] or first[i : i + size]] for i in range(0, len(first), size)]
        return self._loader(VALIDATE, batches)

    def training_batches(self) -> Loader[Examples]:
        """The training examples of the first epoch, in batches."""
        return self._loader(TRAIN, self.steps(self.per_epoch))

    def examples(self, purpose: int) -> ExampleSource:
        """The source of the examples, in this process."""
        return ExampleSource(self.tiles, self.config, self.options, purpose)

    def _loader(self, purpose: int, batches: object) -> Loader[Examples]:
        data = self.options.data
        return Loader(self.examples(purpose), batches, workers=data.workers, collate_fn=as_read, retries=data.retries)
