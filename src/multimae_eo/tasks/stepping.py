"""What every training step shares: the optimizer, its schedule, the skipping of steps that are not finite."""

import itertools
from typing import Any, Protocol

import lightning.pytorch as lightning
import torch
import torch.distributed
from torch import Tensor

from multimae_eo.errors import DivergedError, MultiMAEError
from multimae_eo.optim import learning_rate
from multimae_eo.tasks.sharding import synchronise, together

# So many of the last skipped steps are remembered.
REMEMBERED = 32


class Optim(Protocol):
    """What the options of an optimisation have in common."""

    batch_size: int
    lr: float
    warmup_epochs: float
    warmup_lr: float
    clip_norm: float | None
    max_skipped: int


class SteppedTask(lightning.LightningModule):
    """A module that optimises by hand, so that a batch may be worked through in parts, and its steps be skipped.

    A step whose gradient is not finite changes nothing: the optimizer skips it by a flag on the device, without
    waiting for the host (docs/design.md, H). warmup_steps: length of the warm-up, else it follows from the epochs.
    """

    skipped: Tensor
    skipped_in_a_row: Tensor
    skipped_steps: Tensor

    def __init__(self, optim: Optim, warmup_steps: int | None = None):
        super().__init__()
        self.automatic_optimization = False
        self.optim, self.warmup_steps = optim, warmup_steps
        self.register_buffer("skipped", torch.zeros(()))
        self.register_buffer("skipped_in_a_row", torch.zeros(()))
        self.register_buffer("skipped_steps", torch.zeros(REMEMBERED, dtype=torch.int64))
        self.told_to_end = False  # this process, by a signal
        self.ending: MultiMAEError | None = None  # why the run ends after this step, the same on every device

    def _update(self, loss: Tensor) -> Tensor:
        """One optimizer step, skipped where the gradient or the loss is not finite; returns the gradient's norm.

        Steps are counted from 1; the last ones that were skipped are kept, the latest first.
        """
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)
        parameters = [p for p in self.parameters() if p.grad is not None]
        norm = together(torch.nn.utils.get_total_norm([p.grad for p in parameters]))  # type: ignore[misc]
        bad = self._sum((~(norm.isfinite() & loss.isfinite())).float()).clamp(max=1)
        if self.optim.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.optim.clip_norm, norm)
        rate = self.learning_rate(self.global_step)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]
        optimizer.optimizer.found_inf = bad  # type: ignore[attr-defined]
        optimizer.step()
        optimizer.zero_grad()
        step = torch.full((1,), self.global_step, dtype=torch.int64, device=bad.device)
        self.skipped_steps.copy_(torch.where(bad > 0, torch.cat([step, self.skipped_steps[:-1]]), self.skipped_steps))
        self.skipped += bad
        self.skipped_in_a_row.copy_((self.skipped_in_a_row + 1) * bad)
        return norm

    def learning_rate(self, step: int) -> float:
        """The learning rate of a step."""
        optim = self.optim
        warmup = self.warmup(self.trainer.datamodule.per_epoch)  # type: ignore[attr-defined]
        peak, steps = optim.lr * optim.batch_size / 256, self.trainer.max_steps
        return learning_rate(step, peak=peak, steps=steps, warmup_steps=warmup, warmup_lr=optim.warmup_lr)

    def warmup(self, per_epoch: int) -> int:
        """Steps of the warm-up."""
        return round(self.optim.warmup_epochs * per_epoch) if self.warmup_steps is None else self.warmup_steps

    def remarks(self, steps: int, per_epoch: int) -> list[str]:
        """What a user should know of the steps that a run is to make, and has made."""
        warmup, skipped = self.warmup(per_epoch), int(self.skipped)
        short = f"the warm-up of {warmup} steps is as long as the run or longer, which has {steps}: the rate only rises"
        lost = f"{skipped} of {steps} steps were skipped, as loss or gradient was not finite"
        return [short] * (warmup >= steps) + [lost] * (skipped > 0)

    def diverged(self, step: int, skipped_in_a_row: float, remedy: str) -> DivergedError | None:
        """The error to end with after too many skipped steps in a row."""
        if skipped_in_a_row <= self.optim.max_skipped:
            return None
        return DivergedError(
            f"step {step}: loss or gradient was not finite for {int(skipped_in_a_row)} steps in a row, which were "
            f"skipped. Lower optim.lr or set optim.clip_norm; {remedy}"
        )

    def _sum(self, value: Tensor) -> Tensor:
        """Sum over devices."""
        if self.trainer.world_size > 1:
            value = value.clone()
            torch.distributed.all_reduce(value)
        return value

    def _synchronise(self, wanted: bool) -> None:
        """Whether the next backward pass averages gradients over devices: only that of the last micro-batch does."""
        wrapped: Any = self.trainer.model
        if isinstance(wrapped, torch.nn.parallel.DistributedDataParallel):
            wrapped.require_backward_grad_sync = wanted
        for child in self.children():
            synchronise(child, wanted)


def parts(number: int, wanted: int) -> list[slice]:
    """`number` samples in `wanted` parts of about equal size; parts without a sample are left out."""
    bounds = [number * i // wanted for i in range(wanted + 1)]
    return [slice(low, high) for low, high in itertools.pairwise(bounds) if high > low]
