"""Pre-training: masked reconstruction of every view, as a Lightning module."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from multimae_eo.config import ModelConfig
from multimae_eo.losses import UncertaintyWeights, ViewLosses, count_samples, reconstruction_losses
from multimae_eo.masking import TokenMask, place_mask
from multimae_eo.model import MultiMAE
from multimae_eo.optim import parameter_groups
from multimae_eo.options import PretrainOptions
from multimae_eo.raster import Batch, rows
from multimae_eo.tasks.examples import Examples, Prepare
from multimae_eo.tasks.stepping import SteppedTask, parts


def metric_name(view: str) -> str:
    """A view in the name of a metric: "rgb:patch" becomes "rgb_per_patch", which every logger accepts."""
    return view.replace(":", "_per_")


class PretrainTask(SteppedTask):
    """MultiMAE with its losses and optimizer.

    A step works through its share of the batch in micro-batches; counts are summed over these and over all devices
    first, so that neither number changes the result (docs/model.md, section 6).
    """

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

    @property
    def metric_names(self) -> list[str]:
        """The columns of metrics.csv."""
        train = ["train/loss", *(f"train/{n}" for n in self.names), "train/lr", "train/grad_norm", "train/skipped"]
        return [*train, "val/loss", *(f"val/{n}" for n in self.names)]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optim = self.options.optim
        groups = parameter_groups(self, optim.weight_decay)
        return torch.optim.AdamW(groups, lr=optim.warmup_lr, betas=optim.betas, fused=True)

    def prepare(self, examples: Examples) -> tuple[Batch, TokenMask]:
        """What the model is given: rasters, and the masks that the noise gives on the validity of their tokens."""
        batch, mask = self.cut(examples.batch, examples.window), self.options.mask
        valid = self.model.encoder.valid_tokens(batch)
        return batch, place_mask(valid, examples.noise, mask.num_visible, keys=mask.short_samples == "mask")

    def training_step(self, examples: Examples, _: int) -> None:
        batch, mask = self.prepare(examples)
        samples = self._sum(count_samples(self.model, batch, mask))
        totals = self._backward(batch, mask, samples)
        norm = self._update()
        if (self.global_step % self.options.trainer.log_every) == 0:
            self._log_step(self._sum(totals) / samples.clamp(min=1), norm)

    def _backward(self, batch: Batch, mask: TokenMask, samples: Tensor) -> Tensor:
        """Gradients of the loss of the global batch; returns this device's sums of losses per view."""
        pieces = split(batch, mask, self.options.optim.micro_batches)
        devices, sums = self.trainer.world_size, torch.zeros_like(samples)
        for index, (rasters, places) in enumerate(pieces):
            self._synchronise(index == len(pieces) - 1)
            total = reconstruction_losses(self.model, self.model(rasters, places), rasters, places).total
            losses = total / samples.clamp(min=1)
            if self.weights is not None:
                losses = self.weights(losses, samples > 0, 1 / (devices * len(pieces)))
            self.manual_backward(devices * losses.sum())  # devices: their gradients are averaged
            sums += total.detach()
        return sums

    def _log_step(self, losses: Tensor, norm: Tensor) -> None:
        self.check_finite()
        values = {f"train/{name}": loss for name, loss in zip(self.names, losses, strict=True)}
        rate = self.learning_rate(self.global_step - 1)
        extra = {"train/lr": rate, "train/grad_norm": norm, "train/skipped": self.skipped}
        self._write({"train/loss": losses.sum(), **values, **extra})
        self.log("loss", losses.sum(), prog_bar=True, logger=False)

    def _write(self, values: dict[str, Any]) -> None:
        step = self.global_step if self.trainer.state.fn == "fit" else self.start_step
        for logger in self.loggers:
            logger.log_metrics({name: float(value) for name, value in values.items()}, step=step)

    def validation_step(self, examples: Examples, _: int) -> None:
        batch, mask = self.prepare(examples)
        predicted = self.model(batch, mask)
        self._validation.append(reconstruction_losses(self.model, predicted, batch, mask))

    def on_validation_epoch_end(self) -> None:
        total, samples = (torch.stack(part).sum(dim=0) for part in zip(*self._validation, strict=True))
        self._validation.clear()
        losses = ViewLosses(self._sum(total), self._sum(samples)).mean()
        values = {f"val/{name}": loss for name, loss in zip(self.names, losses, strict=True)}
        self._write({"val/loss": losses.sum(), **values})
        self.log("val_loss", losses.sum(), prog_bar=True, logger=False)
        self.validation = {view: float(loss) for (view, _), loss in zip(self.model.views(), losses, strict=True)}


def split(batch: Batch, mask: TokenMask, number: int) -> list[tuple[Batch, TokenMask]]:
    """Cut a batch and its mask into parts of about equal size."""
    pieces = []
    for part in parts(len(mask.visible), number):
        real = None if mask.real is None else mask.real[part]
        pieces.append((rows(batch, part), TokenMask(mask.visible[part], real)))
    return pieces


def state_path(out: Path) -> Path:
    """The state that a run resumes from: weights, optimizer, step."""
    return out / "state" / "last.ckpt"
