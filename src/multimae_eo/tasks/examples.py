"""What pre-training is fed: crops, flips and mask noise, each a pure function of (seed, epoch, row)."""

import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, NamedTuple

import lightning.pytorch as lightning
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from multimae_eo.config import ModelConfig
from multimae_eo.data.tiles import Tiles
from multimae_eo.errors import ConfigError, DataError, SizeError
from multimae_eo.masking import MaskNoise, draw_noise, enough_tokens
from multimae_eo.modalities import Categorical
from multimae_eo.options import PretrainOptions
from multimae_eo.raster import Batch, OwnGrids, Raster, cut, rows, token_valid
from multimae_eo.shapes import Int

# What a random stream is for; a part of its key.
ORDER, TRAIN, VALIDATE = 1, 2, 3


def philox(seed: int, purpose: int, epoch: int = 0, row: int = 0) -> np.random.Generator:
    """A generator that depends on nothing but its arguments (docs/design.md, F)."""
    return np.random.Generator(np.random.Philox(key=[seed, purpose], counter=[0, 0, epoch, row]))


class Examples(NamedTuple):
    """A batch as the loader hands it over: whole tiles as they are stored, and what is still to be done with them.

    batch: rasters [b, c, tile_px, tile_px] of integers, with validity; window: [b, 4], see `raster.cut`; noise: of the
    masks; rows: [b], of the file.
    """

    batch: Batch
    window: Int[Tensor, "b 4"]
    noise: MaskNoise
    rows: Int[Tensor, " b"]

    def to(self, device: torch.device) -> "Examples":
        """The same on the device that computes; from pinned memory without waiting for it."""

        def move(parts: Iterable[Tensor]) -> list[Tensor]:
            return [part.to(device, non_blocking=True) for part in parts]

        batch = {name: Raster(*move(raster)) for name, raster in self.batch.items()}
        window, rows = move((self.window, self.rows))
        return Examples(batch, window, MaskNoise(*move(self.noise)), rows)


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
    tokens than the budget, unless short samples are masked.
    """

    def __init__(self, tiles: Tiles, config: ModelConfig, options: PretrainOptions, purpose: int):
        if tiles.tile_px < config.image_size:
            raise SizeError(f"tiles of {tiles.tile_px} px cannot be cropped to model.image_size {config.image_size}.")
        self.tiles, self.config, self.purpose = tiles, config, purpose
        self.prepare = Prepare(config)
        self.seed, self.flips, self.mask = options.seed, options.data.flips, options.mask
        self.alphas = options.mask.per_modality(config.input_modalities)
        self.shape = (len(config.inputs), (config.image_size // config.patch_size) ** 2)

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> Examples:
        """The examples of some keys, as one batch; a loader takes them as they are (`collate_fn=as_read`)."""
        chosen = [row for _, row in keys]
        windows, noise = zip(*(self._draw(epoch, row) for epoch, row in keys), strict=True)
        examples = Examples(
            self.tiles.read(chosen),
            torch.tensor(windows),
            MaskNoise(*(torch.stack(part) for part in zip(*noise, strict=True))),
            torch.tensor(chosen),
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
        for index in np.flatnonzero(self.shape[0] * self.shape[1] - lost < self.mask.num_visible).tolist():
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

    def __init__(self, tiles: Tiles, config: ModelConfig, options: PretrainOptions):
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

    def train_dataloader(self) -> DataLoader[Examples]:
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

    def val_dataloader(self) -> DataLoader[Examples]:
        trainer = self.trainer
        assert trainer is not None
        return self.validation_batches(trainer.global_rank, trainer.world_size)

    def validation_batches(self, rank: int = 0, ranks: int = 1) -> DataLoader[Examples]:
        """The validation examples of one device, in batches; the same at every call."""
        rows = self.rows["val"][rank::ranks].tolist()
        size = max(1, self.options.optim.batch_size // self.options.optim.micro_batches // ranks)
        batches = [[(0, row) for row in rows[i : i + size]] for i in range(0, len(rows), size)]
        return self._loader(VALIDATE, batches)

    def training_batches(self) -> DataLoader[Examples]:
        """The training examples of the first epoch, in batches."""
        size = self.options.optim.batch_size
        return self._loader(
            TRAIN, Steps(self.rows["train"], batch_size=size, steps=self.per_epoch, seed=self.options.seed)
        )

    def examples(self, purpose: int) -> ExampleSource:
        """The source of the examples, in this process."""
        return ExampleSource(self.tiles, self.config, self.options, purpose)

    def _loader(self, purpose: int, batches: object) -> DataLoader[Examples]:
        return loader(self.examples(purpose), batches, self.options.data.workers, as_read)


def loader(source: Dataset[Any], batches: object, workers: int, collate_fn: Callable[..., Any]) -> DataLoader[Any]:
    """A loader of batches of (epoch, row), as every run here uses it."""
    return DataLoader(
        source,
        batch_sampler=batches,  # type: ignore[arg-type]
        collate_fn=collate_fn,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=in_worker,
    )


def in_worker(_: int) -> None:
    """What a process of a loader begins with: interrupts are left to its parent, whose end is no error of its own.

    A parent that stops while a tensor is handed over breaks a connection; the thread that serves it would print that.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    printed = sys.excepthook

    def unless_disconnected(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not issubclass(kind, ConnectionError | EOFError):
            printed(kind, error, trace)

    sys.excepthook = unless_disconnected
