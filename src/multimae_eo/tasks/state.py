"""The state that a run resumes from: saved on time, when the run is told to end, and when its steps stay not finite."""

import signal
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as lightning
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from multimae_eo.errors import TerminatedError, WriteError
from multimae_eo.tasks.stepping import SteppedTask
from multimae_eo.whole import written

FOLDER = "state"


def state_path(out: Path) -> Path:
    """The state that a run resumes from: weights, optimizer, step."""
    return out / FOLDER / "last.ckpt"


def start_of(state: Path | None) -> int:
    """The step that a saved state was written at; 0 without one."""
    return int(torch.load(state, weights_only=True, mmap=True)["global_step"]) if state else 0


class StateFile(TorchCheckpointIO):
    """Writes a state beside the last one, which it replaces when it is whole."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with written(path) as partial:
                torch.save(checkpoint, partial)
        except (OSError, RuntimeError) as error:  # torch's own writer raises RuntimeError where the disk is full
            why = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
            kept = f"that of step {start_of(path)} is kept" if path.exists() else "there is none yet"
            raise WriteError(
                f"'{path}': the state of step {checkpoint['global_step']} could not be written ({why}); {kept}. Make "
                "room and go on with --resume true."
            ) from error


class SavedState(Checkpoint):
    """Saves the state every few steps, and once more where the run has to end, which it then does.

    A run ends early for SIGTERM, which clusters send some time before they kill, and for steps that are not finite.
    Lightning calls this after all other callbacks, so that the state holds what these have done in the step.
    """

    def __init__(self, out: Path, every: int):
        self.path, self.every = state_path(out), every

    def on_train_start(self, trainer: lightning.Trainer, task: lightning.LightningModule) -> None:
        self._listen(task)

    def on_validation_start(self, trainer: lightning.Trainer, task: lightning.LightningModule) -> None:
        self._listen(task)

    def _listen(self, task: lightning.LightningModule) -> None:
        """Note SIGTERM, in place of Lightning's handler, which has devices of several processes wait for each other."""
        assert isinstance(task, SteppedTask)

        def note(_: int, frame: FrameType | None) -> None:
            task.told_to_end = True

        with suppress(ValueError):  # outside of the main thread
            signal.signal(signal.SIGTERM, note)

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, task: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """A run may go on for more steps than it was first given."""
        checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["is_last_batch"] = False

    def on_train_batch_end(
        self, trainer: lightning.Trainer, task: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(task, SteppedTask)
        if trainer.world_size == 1 and task.told_to_end:  # several agree on a step (see `PretrainTask`)
            task.ending = TerminatedError(f"told to end at step {trainer.global_step}")
        if task.ending is not None or trainer.global_step % self.every == 0:
            trainer.save_checkpoint(self.path)
            trainer.strategy.barrier()
        if task.ending is not None:
            raise task.ending
