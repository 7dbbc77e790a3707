"""A pre-training run: builds data, task and Trainer from the options, trains, leaves a checkpoint and pictures."""

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import lightning.pytorch as lightning
import torch
import yaml
from lightning.pytorch.callbacks import Callback, WeightAveraging
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from multimae_eo import checkpoint, visualize
from multimae_eo.data.folders import leaving_nothing
from multimae_eo.data.mmearth import read_statistics
from multimae_eo.data.packed import open_tiles
from multimae_eo.documents import read_yaml
from multimae_eo.errors import ConfigError, DataError, MultiMAEError, TerminatedError
from multimae_eo.masking import place_mask
from multimae_eo.model import MultiMAE
from multimae_eo.options import MaskOptions, PretrainOptions, check_pretrain
from multimae_eo.tasks.examples import VALIDATE, ExampleSource, Prepare, PretrainData, spread
from multimae_eo.tasks.pretrain import PretrainTask
from multimae_eo.tasks.rows import Rows, truncate
from multimae_eo.tasks.sharding import strategy_for, whole
from multimae_eo.tasks.state import FOLDER, SavedState, StateFile, start_of, state_path
from multimae_eo.tasks.trainer import Begun, make_trainer, write_options
from multimae_eo.whole import claimed

# Of a run: the directory of the trained model.
CHECKPOINT = "checkpoint"


@dataclass(frozen=True)
class Result:
    """What a run leaves in memory: the trained task, its data, and the last validation losses per view."""

    task: PretrainTask
    data: PretrainData
    last: dict[str, float]


def build(options: PretrainOptions) -> tuple[PretrainTask, PretrainData]:
    """The data and the task of some options; the statistics of the data set become the model's."""
    check_pretrain(options)
    if options.data.root is None:
        raise ConfigError("data.root is not set; give the folder of a data set in the MMEarth layout.")
    draft = options.model.config()
    modalities = read_statistics(options.data.root, draft.modalities.values())
    config = options.model.config(modalities)
    tokens = len(config.inputs) * (config.image_size // config.patch_size) ** 2
    if options.mask.num_visible > tokens:
        raise ConfigError(
            f"mask.num_visible {options.mask.num_visible} is more than all tokens of the inputs, {tokens}."
        )
    data = PretrainData(open_tiles(options.data.root, list(config.modalities.values())), config, options)
    lightning.seed_everything(options.seed, verbose=False)
    if options.trainer.threads is not None:
        torch.set_num_threads(options.trainer.threads)
    return PretrainTask(config, options), data


def state_of(options: PretrainOptions) -> Path | None:
    """The state to resume from, if any; raises ConfigError rather than write into a run that exists, or go on in one
    with other random numbers or other tiles held out.
    """
    state, path = state_path(options.out), options.out / "config.yaml"
    if options.resume and state.exists():
        before = yaml.safe_load(read_yaml(path)) if path.exists() else {}
        begun = {"seed": before.get("seed"), "data.val_fraction": before.get("data", {}).get("val_fraction")}
        for (name, then), now in zip(begun.items(), (options.seed, options.data.val_fraction), strict=True):
            if then not in (None, now):
                raise ConfigError(f"'{options.out}' was begun with {name} {then}, not {now}; resume it with that.")
        return state
    if (options.out / "metrics.csv").exists() and not options.resume:
        raise ConfigError(f"'{options.out}' holds a run; give --resume true to go on with it, or another --out.")
    return None


def pretrain(options: PretrainOptions) -> Result:
    """Run pre-training as the options say; see docs/pretrain.md for what it writes.

    Raises ConfigError where another process writes to `out`, TerminatedError after SIGTERM, DivergedError for too many
    steps that are not finite; in the last two cases the state is saved first.
    """
    task, data = build(options)
    with ExitStack() as stack:
        if rank_zero_only.rank == 0:  # type: ignore[attr-defined] # the other processes of the run write nothing
            stack.enter_context(claimed(options.out, FOLDER, CHECKPOINT))
        return run(options, task, data)


def run(options: PretrainOptions, task: PretrainTask, data: PretrainData) -> Result:
    """Train from the start or from the saved state, and leave checkpoint and pictures."""
    resumed = state_of(options)
    steps = options.optim.steps or options.optim.epochs * data.per_epoch
    with leaving_nothing(options.out, "config.yaml", "metrics.csv", "panels", "state", "tensorboard") as new:
        trainer = build_trainer(options, task, steps, Begun(new))
        write_options(options, options.out)
        train(options, task, data, trainer, resumed)
    finish(options, task, data, trainer)
    return Result(task, data, task.validation)


def train(
    options: PretrainOptions, task: PretrainTask, data: PretrainData, trainer: lightning.Trainer, resumed: Path | None
) -> None:
    """Train to the Trainer's last step, from the state to resume from, with a validation before."""
    done, steps = start_of(resumed), trainer.max_steps
    size, tiles, held = checkpoint.describe(task.model), len(data.rows["train"]), len(data.rows["val"])
    rank_zero_only(print)(
        f"Pre-training {size} on {tiles} tiles, {held} held out: steps {done} to {steps}.", flush=True
    )
    for remark in task.remarks(steps, data.per_epoch):
        rank_zero_only(print)(f"Note: {remark}.", flush=True)
    every = min(options.trainer.val_every, steps)
    if options.resume:  # also where no state was saved yet
        truncate(options.out / "metrics.csv", {"train": done + 1, "val": done + (done % every > 0)})
    path = str(resumed) if resumed else None
    task.start_step = done
    try:
        if done % every == 0:  # at the start, or where the state was saved before the validation of its step
            trainer.validate(task, datamodule=data, ckpt_path=path, verbose=False, weights_only=True)
        trainer.fit(task, datamodule=data, ckpt_path=path, weights_only=True)
    except MultiMAEError as error:
        if error is not task.ending:
            raise
        if not trainer.is_global_zero:  # all processes end at this step; the first one says why
            raise SystemExit(0) from None
        hint = f"; go on with --resume true --out {options.out}" if isinstance(error, TerminatedError) else ""
        raise type(error)(f"{error}{hint}") from error
    except SystemExit:  # what Lightning makes of an interrupt
        raise KeyboardInterrupt(f"go on with --resume true --out {options.out}") from None


def build_trainer(options: PretrainOptions, task: PretrainTask, steps: int, *more: Callback) -> lightning.Trainer:
    """Lightning's Trainer for some options."""
    run = options.trainer
    trainer = make_trainer(
        run,
        out=options.out,
        devices=run.devices,
        nodes=run.nodes,
        strategy=strategy_for(run.strategy),
        steps=steps,
        val_every=run.val_every,
        log_every=run.log_every,
        loggers=build_loggers(options, task),
        callbacks=[*build_callbacks(options), *more],
    )
    trainer.strategy.checkpoint_io = StateFile()
    return trainer


def build_loggers(options: PretrainOptions, task: PretrainTask) -> list[Logger]:
    """metrics.csv, and the loggers that the options name; these are imported only then."""
    loggers: list[Logger] = [Rows(options.out / "metrics.csv", task.metric_names)]
    for name in options.trainer.loggers:
        try:
            if name == "tensorboard":
                from lightning.pytorch.loggers import TensorBoardLogger

                loggers.append(TensorBoardLogger(options.out, name="tensorboard", version=""))
            elif name == "wandb":
                from lightning.pytorch.loggers import WandbLogger

                loggers.append(WandbLogger(project="multimae-eo", save_dir=options.out, name=options.out.name))
            else:
                from lightning.pytorch.loggers import MLFlowLogger

                folder = str(options.out / "mlruns")
                loggers.append(MLFlowLogger("multimae-eo", run_name=options.out.name, save_dir=folder))
        except ImportError as error:
            raise ConfigError(f"trainer.loggers: '{name}' is not installed: pip install {name}.") from error
    return loggers


def build_callbacks(options: PretrainOptions) -> list[Callback]:
    """Saved states, pictures, the moving average and the progress bar."""
    run = options.trainer
    callbacks: list[Callback] = [SavedState(options.out, run.save_every)]
    if options.optim.ema is not None:
        callbacks.append(WeightAveraging(use_buffers=False, avg_fn=partial(averaged, options.optim.ema)))
    if run.panels > 0:
        callbacks.append(Panels(options.out / "panels", run.panels))
    return callbacks


def averaged(decay: float, old: torch.Tensor, new: torch.Tensor, updates: torch.Tensor) -> torch.Tensor:
    """A moving average of which the first updates weigh more, so that untrained weights do not stay in it."""
    return old.lerp(new, (1 - ((1 + updates) / (10 + updates)).clamp(max=decay)).to(old.dtype))


class Panels(Callback):
    """Draws the same few validation tiles after every validation, on the first device."""

    def __init__(self, folder: Path, number: int):
        self.folder, self.number = folder, number

    def on_validation_end(self, trainer: lightning.Trainer, task: lightning.LightningModule) -> None:
        assert isinstance(task, PretrainTask)
        model = whole(task.model)
        if trainer.is_global_zero:
            step = trainer.global_step if trainer.state.fn == "fit" else task.start_step
            data = trainer.datamodule  # type: ignore[attr-defined]
            draw(task, model, data, self.number, self.folder / f"step_{step:07d}.png", title=f"step {step}")


def draw(task: PretrainTask, model: MultiMAE, data: PretrainData, number: int, path: Path, *, title: str) -> None:
    """A reconstruction picture of validation tiles, evenly spread over the split."""
    chosen = spread(data.rows["val"], number)
    examples = data.examples(VALIDATE).__getitems__([(0, row) for row in chosen])
    names = [data.tiles.tile_id(row) for row in chosen]
    batch, mask = task.prepare(examples.to(task.device))
    visualize.save_panels(model, batch, mask, path, names=names, title=title)


def finish(options: PretrainOptions, task: PretrainTask, data: PretrainData, trainer: lightning.Trainer) -> None:
    """Write the checkpoint directory and the last pictures, once."""
    model = whole(task.model)
    if not trainer.is_global_zero:
        return
    facts = {"steps": trainer.global_step, "seed": options.seed, "val_fraction": options.data.val_fraction}
    checkpoint.save(model, options.out / CHECKPOINT, extra=facts)
    if options.trainer.panels > 0:
        title = f"step {trainer.global_step}"
        draw(task, model, data, options.trainer.panels, options.out / "reconstruction.png", title=title)
        visualize.save_curves(options.out / "metrics.csv", options.out / "curves.png")


def reconstruct(directory: Path, root: Path, *, split: str, tiles: int, num_visible: int, seed: int, out: Path) -> Path:
    """Draw what the model of a checkpoint directory makes of the central crops of some tiles of a data set."""
    if tiles < 1 or num_visible < 1:
        raise ConfigError(f"tiles and num_visible must be 1 or more; got {tiles} and {num_visible}.")
    model = checkpoint.load_model(directory)
    options = PretrainOptions(seed=seed, mask=MaskOptions(num_visible=num_visible))
    source = open_tiles(root, list(model.config.modalities.values()))
    trained = checkpoint.read_content(directory).get("extra", {})
    share = trained.get("val_fraction", options.data.val_fraction)
    rows = source.splits(val_fraction=share, seed=trained.get("seed", seed))[split]
    if not len(rows):
        raise DataError(f"'{source.path}': split '{split}' is empty; choose another --split.")
    chosen = spread(rows, tiles)
    examples = ExampleSource(source, model.config, options, VALIDATE).__getitems__([(0, row) for row in chosen])
    batch = Prepare(model.config)(examples.batch, examples.window)
    mask = place_mask(model.encoder.valid_tokens(batch), examples.noise, num_visible)
    names = [source.tile_id(row) for row in chosen]
    title = f"{directory.name}, {num_visible} visible tokens"
    return visualize.save_panels(model, batch, mask, out, names=names, title=title)
