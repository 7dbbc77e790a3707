"""Pre-training: masked reconstruction of every view, as a Lightning module."""

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from multimae_eo.config import ModelConfig
from multimae_eo.data.patience import left_out, number_of, too_many
from multimae_eo.errors import DataError, DivergedError, TerminatedError
from multimae_eo.losses import UncertaintyWeights, ViewLosses, count_samples, reconstruction_losses
from multimae_eo.masking import TokenMask, place_mask
from multimae_eo.model import MultiMAE
from multimae_eo.optim import parameter_groups
from multimae_eo.options import PretrainOptions
from multimae_eo.raster import Batch, rows
from multimae_eo.tasks.examples import UNREAD, Examples, Prepare, PretrainData
from multimae_eo.tasks.rows import note_skipped
from multimae_eo.tasks.sharding import is_sharded, shard
from multimae_eo.tasks.stepping import SteppedTask, parts

# Of a run: the tiles of steps that were skipped.
SKIPPED = "skipped.csv"


def metric_name(view: str) -> str:
    """A view in the name of a metric: "rgb:patch" becomes "rgb_per_patch", which every logger accepts."""
    return view.replace(":", "_per_")


class Pending(NamedTuple):
    """Figures of a step and the last skipped steps on their way to the host; when they are there (None: they are)."""

    step: int
    figures: Tensor
    skipped_steps: Tensor
    arrived: torch.cuda.Event | None


class PretrainTask(SteppedTask):
    """MultiMAE with its losses and optimizer.

    A step works through its share of the batch in micro-batches; counts are summed over these and over all devices
    first, so that neither number changes the result (docs/model.md, section 6).
    """

    unread: Tensor
    asked: Tensor

    def __init__(self, config: ModelConfig, options: PretrainOptions):
        super().__init__(options.optim, options.optim.warmup_steps)
        self.options = options
        self.model = MultiMAE(config)
        self.cut = Prepare(config)
        self.weights = UncertaintyWeights(len(config.targets)) if options.optim.weighting == "uncertainty" else None
        self.names = [metric_name(view) for view, _ in self.model.views()]
        self.start_step = 0  # what `validate` outside of `fit` is logged under
        self.validation: dict[str, float] = {}
        self._validation: list[ViewLosses] = []
        self._unread: list[Tensor] = []  # in this validation
        self.noted_step = 0
        self._pending: Pending | None = None
        self.model.encoder.grad_checkpointing = options.trainer.grad_checkpointing
        self.register_buffer("unread", torch.zeros(()))
        self.register_buffer("asked", torch.zeros(2), persistent=False)
        self.too_many_unread = False  # this process found it out
        self._unread_before = number_of(options.out / UNREAD)  # by sessions before this one
        self._begin, self._totals = self.begin, self.totals
        self.sharded = options.trainer.strategy == "fsdp"
        if options.trainer.compile:  # but not validation, whose last batch is smaller
            compiled = partial(torch.compile, fullgraph=True, dynamic=False)
            self._begin = compiled(self.begin)
            self._totals = self.totals if self.sharded else compiled(self.totals)

    @property
    def metric_names(self) -> list[str]:
        """The columns of metrics.csv."""
        train = ("loss", *self.names, "lr", "grad_norm", "skipped", "unread")
        return [*(f"train/{n}" for n in train), *(f"val/{n}" for n in ("loss", *self.names, "unread"))]

    def configure_model(self) -> None:
        if self.sharded and not is_sharded(self.model):
            shard(self.model.to(self.trainer.strategy.root_device), self.weights, compiled=self.options.trainer.compile)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optim = self.options.optim
        groups = parameter_groups(self, optim.weight_decay)
        return torch.optim.AdamW(groups, lr=optim.warmup_lr, betas=optim.betas, fused=True)

    def prepare(self, examples: Examples) -> tuple[Batch, TokenMask]:
        """What the model is given: rasters, and the masks that the noise gives on the validity of their tokens."""
        batch, mask = self.cut(examples.batch, examples.window), self.options.mask
        valid = self.model.encoder.valid_tokens(batch)
        return batch, place_mask(valid, examples.noise, mask.num_visible, keys=mask.short_samples == "mask")

    def begin(self, examples: Examples) -> tuple[Batch, TokenMask, Tensor]:
        """As `prepare`, and how many samples count for each view on this device."""
        batch, mask = self.prepare(examples)
        return batch, mask, count_samples(self.model, batch, mask)

    def totals(self, batch: Batch, mask: TokenMask) -> Tensor:
        """Sums of the losses of samples, per view."""
        return reconstruction_losses(self.model, self.model(batch, mask), batch, mask).total

    def training_step(self, examples: Examples, _: int) -> None:
        if self.model.config.drop_path:  # the only random numbers of a step that are drawn in it
            torch.manual_seed(hash((self.options.seed, self.global_step, self.global_rank)) % 2**63)
        batch, mask, samples = self._begin(examples)
        samples = self._agree(samples, examples.unread)
        totals = self._backward(batch, mask, samples)
        norm = self._update(totals.sum())
        self._write_pending()
        if (self.global_step % self.options.trainer.log_every) == 0:
            self._note(self._sum(totals) / samples.clamp(min=1), norm)

    def _agree(self, samples: Tensor, unread: Tensor) -> Tensor:
        """Sum over devices how many samples count, what was left out, and whether a device asks the run to end."""
        here = (self.told_to_end, self.too_many_unread)
        asked = [torch.full((1,), float(wish), device=samples.device) for wish in here]
        summed = self._sum(torch.cat([samples, unread.sum()[None], *asked]))
        self.unread += summed[-3]
        self.asked.copy_(summed[-2:])
        return summed[:-3]

    def _backward(self, batch: Batch, mask: TokenMask, samples: Tensor) -> Tensor:
        """Gradients of the loss of the global batch; returns this device's sums of losses per view."""
        pieces = split(batch, mask, self.options.optim.micro_batches)
        devices, sums = self.trainer.world_size, torch.zeros_like(samples)
        for index, (rasters, places) in enumerate(pieces):
            self._synchronise(index == len(pieces) - 1)
            total = self._totals(rasters, places)
            losses = total / samples.clamp(min=1)
            if self.weights is not None:
                losses = self.weights(losses, samples > 0, 1 / (devices * len(pieces)))
            self.manual_backward(devices * losses.sum())  # devices: their gradients are averaged
            sums += total.detach()
        return sums

    def _note(self, losses: Tensor, norm: Tensor) -> None:
        """Start copying the figures of a step to the host; they are written once later steps are queued behind them."""
        counts = torch.stack([norm, self.skipped, self.skipped_in_a_row, self.unread, *self.asked])
        figures = torch.cat([losses, counts])
        copied, steps = (part.to("cpu", non_blocking=True) for part in (figures, self.skipped_steps))
        arrived = torch.cuda.Event() if figures.is_cuda else None
        if arrived is not None:
            arrived.record()
        self._pending = Pending(self.global_step, copied, steps, arrived)
        if arrived is None:
            self._write_pending()

    def _write_pending(self, progress: bool = True) -> None:
        """Write the figures of the last logged step, if they are not written yet, and see whether the run is to end."""
        if self._pending is None:
            return
        (step, figures, steps, arrived), self._pending = self._pending, None
        if arrived is not None:
            arrived.synchronize()
        *losses, norm, skipped, in_a_row, unread, told, full = figures.tolist()
        self._note_skipped(steps.tolist())
        if unread:
            self._look_at_unread()
        self._end(step, in_a_row, told, full)
        values = {f"train/{name}": loss for name, loss in zip(self.names, losses, strict=True)}
        extra = {"train/lr": self.learning_rate(step - 1), "train/grad_norm": norm, "train/skipped": skipped}
        extra["train/unread"] = unread
        self._write({"train/loss": sum(losses), **values, **extra}, step)
        if progress:
            self.log("loss", sum(losses), prog_bar=True, logger=False)

    def _note_skipped(self, steps: list[int]) -> None:
        """List the tiles of steps that were skipped since the last look, of all devices."""
        new = sorted(step for step in steps if step > self.noted_step)
        if new and self.trainer.is_global_zero:
            data: PretrainData = self.trainer.datamodule  # type: ignore[attr-defined]
            order = data.steps(self.trainer.max_steps)
            note_skipped(self.options.out / SKIPPED, {step: order.batch(step - 1).tolist() for step in new})
        self.noted_step = max([self.noted_step, *new])

    def _end(self, step: int, skipped_in_a_row: float, told: float, full: float) -> None:
        """Set `ending` where the run is to end; figures are the same on every device, and so is this."""
        if full:
            self.ending = self._too_many()
        elif told:
            self.ending = TerminatedError(f"told to end at step {step}")
        else:
            listed = f"the tiles of these steps are listed in '{self.options.out / SKIPPED}'"
            self.ending = self.diverged(step, skipped_in_a_row, f"{listed}. The state before them is saved.")

    def _look_at_unread(self) -> None:
        """See whether more tiles were left out than may be; the others learn it with the next step."""
        found = left_out(self.options.out / UNREAD, self._unread_before) if self.trainer.is_global_zero else {}
        self.too_many_unread = len(found) > self.options.data.max_unread

    def _too_many(self) -> DataError:
        record, limit = self.options.out / UNREAD, self.options.data.max_unread
        causes = [*left_out(record, self._unread_before).values()]
        return too_many(max(len(causes), limit + 1), limit, record, causes[-1] if causes else "")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """What a resumed run finds written must reach up to the state that it resumes from."""
        self._write_pending(progress=False)

    def on_validation_start(self) -> None:
        self._write_pending(progress=False)

    def on_train_end(self) -> None:
        self._write_pending(progress=False)
        if isinstance(self.ending, DivergedError):
            raise self.ending

    def _write(self, values: dict[str, float], step: int) -> None:
        for logger in self.loggers:
            logger.log_metrics(values, step=step)

    def validation_step(self, examples: Examples, index: int) -> None:
        batch, mask = self.prepare(examples)
        found = reconstruction_losses(self.model, self.model(batch, mask), batch, mask)
        counted = index < self.trainer.datamodule.counted  # type: ignore[attr-defined]
        self._unread.append(examples.unread.sum() * counted)
        self._validation.append(found if counted else ViewLosses(*map(torch.zeros_like, found)))

    def on_validation_epoch_end(self) -> None:
        total, samples = (torch.stack(part).sum(dim=0) for part in zip(*self._validation, strict=True))
        unread = self._sum(torch.stack(self._unread).sum()).item()
        self._validation.clear()
        self._unread.clear()
        if unread:
            self._look_at_unread()
        losses = ViewLosses(self._sum(total), self._sum(samples)).mean()
        step = self.global_step if self.trainer.state.fn == "fit" else self.start_step
        found = losses.tolist()
        values = {f"val/{name}": loss for name, loss in zip(self.names, found, strict=True)}
        self._write({"val/loss": sum(found), **values, "val/unread": unread}, step)
        self.log("val_loss", sum(found), prog_bar=True, logger=False)
        self.validation = {view: loss for (view, _), loss in zip(self.model.views(), found, strict=True)}


def split(batch: Batch, mask: TokenMask, number: int) -> list[tuple[Batch, TokenMask]]:
    """Cut a batch and its mask into parts of about equal size."""
    pieces = []
    for part in parts(len(mask.visible), number):
        real = None if mask.real is None else mask.real[part]
        pieces.append((rows(batch, part), TokenMask(mask.visible[part], real)))
    return pieces
