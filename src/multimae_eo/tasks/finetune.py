"""Fine-tuning: the encoder of a checkpoint with a head, on labelled images, as a Lightning module and a run."""

import dataclasses
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch
from torch import Tensor

from multimae_eo import checkpoint
from multimae_eo.config import HEADS, ModelConfig, TaskConfig
from multimae_eo.data.folders import leaving_nothing
from multimae_eo.data.labelled import SPLITS, Labelled
from multimae_eo.errors import ConfigError
from multimae_eo.finetune_options import FinetuneOptions, check_finetune, given
from multimae_eo.optim import parameter_groups
from multimae_eo.predictor import Predictor
from multimae_eo.raster import rows
from multimae_eo.tasks.classify import Classification
from multimae_eo.tasks.evaluate import Evaluation, evidence_of
from multimae_eo.tasks.examples import spread
from multimae_eo.tasks.kinds import task_for
from multimae_eo.tasks.labels import LabelSummary, summarise
from multimae_eo.tasks.rows import Rows
from multimae_eo.tasks.samples import (
    LabelledData,
    LabelledExample,
    LabelledExamples,
    Setup,
    collate,
    open_source,
    set_up,
)
from multimae_eo.tasks.segment import Segmentation
from multimae_eo.tasks.stepping import SteppedTask, parts
from multimae_eo.tasks.task import Task, intervals, undefined
from multimae_eo.tasks.trainer import Begun, make_trainer, prepare, write_json, write_options
from multimae_eo.visualize_labels import save_finetune_curves, save_predictions
from multimae_eo.whole import claimed

# Of a run: the checkpoint that validated best, and the last one.
WEIGHTS = ("best", "last")


class FinetuneTask(SteppedTask):
    """A predictor with the losses and metrics of its task; keeps the weights that validate best.

    The loss of a batch is the mean over its samples with any known label, each the mean over its own labels, so that
    neither micro-batches nor padding change it.
    """

    def __init__(self, model: Predictor, task: Task, options: FinetuneOptions, batch_size: int, extra: dict[str, Any]):
        super().__init__(dataclasses.replace(options.optim, batch_size=batch_size))
        self.model, self.task, self.options, self.extra = model, task, options, extra
        self.best = self.last = -math.inf
        self.log_every = 1
        self.warnings: list[str] = []
        self._evidence: list[Tensor] = []
        self._losses: list[Tensor] = []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optim = self.options.optim
        groups = parameter_groups(
            self.model, optim.weight_decay, layer_decay=optim.layer_decay, depth=self.model.config.depth
        )
        return torch.optim.AdamW(groups, lr=optim.warmup_lr, betas=optim.betas, fused=True)

    def training_step(self, example: LabelledExample, _: int) -> None:
        self._freeze(self.global_step < self.options.optim.freeze * self.trainer.max_steps)
        number = counted(example).sum().clamp(min=1)
        total = torch.zeros((), device=self.device)
        for part in split(example, self.options.optim.micro_batches):
            loss = self.task.losses(self._predict(part), part.label, part.known).sum() / number
            self.manual_backward(loss)
            total += loss.detach()
        norm = self._update(total)
        if self.global_step % self.log_every == 0:
            in_a_row = self.skipped_in_a_row.item()
            if error := self.diverged(self.global_step, in_a_row, "'best' holds the weights that validated best."):
                raise error
            rate = self.learning_rate(self.global_step - 1)
            self._write({"train/loss": total, "train/lr": rate, "train/grad_norm": norm, "train/skipped": self.skipped})
            self.log("loss", total, prog_bar=True, logger=False)

    def _freeze(self, frozen: bool) -> None:
        encoder = self.model.encoder
        if encoder.training == frozen:  # also after Lightning has set the mode of all modules
            encoder.train(not frozen)
            encoder.requires_grad_(not frozen)

    def _predict(self, example: LabelledExample) -> Tensor:
        predicted = self.model(example.batch)
        if self.model.task.dense:
            height, width = example.label.shape[-2:]
            predicted = predicted[..., :height, :width]
        return predicted

    def validation_step(self, examples: list[LabelledExample], _: int) -> None:
        for example in examples:
            predicted = self._predict(example).float()
            self._evidence.append(self.task.evidence(predicted, example.label, example.known))
            self._losses.append(self.task.losses(predicted, example.label, example.known)[counted(example)].cpu())

    def on_validation_epoch_end(self) -> None:
        values = self.task.score(torch.cat(self._evidence))
        loss = float(torch.cat(self._losses).mean())
        self._evidence.clear()
        self._losses.clear()
        self._write({"val/loss": loss, **{f"val/{name}": value for name, value in values.items()}})
        found = self.last = values[self.task.primary]
        self.log(f"val_{self.task.primary}", found, prog_bar=True, logger=False)
        if math.isfinite(found) and found > self.best:
            self.best = found
            self.save("best", found)

    def save(self, name: str, value: float) -> Path:
        """Write the checkpoint directory `name` of the run."""
        facts = {"step": self.global_step, f"valid_{self.task.primary}": value if math.isfinite(value) else None}
        return checkpoint.save(self.model, self.options.out / name, extra={**self.extra, **facts})

    def _write(self, values: dict[str, Any]) -> None:
        for logger in self.loggers:
            logger.log_metrics({name: float(value) for name, value in values.items()}, step=self.global_step)


def counted(example: LabelledExample) -> Tensor:
    """Which samples have any known label [b]."""
    return example.known.flatten(1).any(dim=1) if example.known.ndim > 1 else example.known


def split(example: LabelledExample, number: int) -> list[LabelledExample]:
    """Cut a batch into parts of about equal size."""
    return [
        LabelledExample(rows(example.batch, part), example.label[part], example.known[part], example.row)
        for part in parts(len(example.label), number)
    ]


@dataclass(frozen=True)
class FinetuneResult:
    """What a run found on the test split: the checkpoint that validated best, the last one, and the facts of both."""

    best: Evaluation
    last: Evaluation
    primary: str
    facts: dict[str, Any]


def task_config(setup: Setup, options: FinetuneOptions, labels: LabelSummary) -> TaskConfig:
    """What the fine-tuned model is to predict, and from what."""
    about = setup.source.about
    return TaskConfig(
        task=about.task,
        head=options.head or HEADS[about.task][0],
        inputs=setup.inputs,
        classes=about.classes,
        unit=about.unit,
        mean=labels.mean,
        std=labels.std,
        dataset=about.name,
        products={name: setup.config.modalities[name].products[i] for name, i in setup.products.items()},
        bands=about.bands,
    )


def build(options: FinetuneOptions, setup: Setup, labels: LabelSummary) -> Predictor:
    """The model to fine-tune: the checkpoint's encoder, or one of its sizes with random weights, and a new head."""
    lightning.seed_everything(options.seed, verbose=False)
    config: ModelConfig = dataclasses.replace(setup.config, drop_path=options.optim.drop_path)
    model = Predictor(config, task_config(setup, options, labels))
    if options.init == "pretrained":
        weights = checkpoint.load(given(options.checkpoint, "checkpoint"), config).state_dict()
        model.encoder.load_state_dict(weights)
    return model


def finetune(options: FinetuneOptions, source: Labelled | None = None) -> FinetuneResult:
    """Fine-tune as the options say and test the best and the last checkpoint; see docs/finetune.md for what it writes.

    source: the data, where they are not those that options.data names (`TorchSource`, for example).
    """
    with claimed(options.out, *WEIGHTS):
        if (options.out / "config.yaml").exists():
            raise ConfigError(f"'{options.out}' holds a run; remove it, or give another --out.")
        task, data, setup, labels = assemble(options, source)
        with leaving_nothing(options.out, "config.yaml", "metrics.csv") as new:
            write_options(options, options.out)
            seconds = fit(task, data, new)
        return finish(task, setup, labels, seconds)


def assemble(
    options: FinetuneOptions, source: Labelled | None = None
) -> tuple[FinetuneTask, LabelledData, Setup, LabelSummary]:
    """All that a run needs: the task with its model, the loaders, and what is known of data and labels."""
    check_finetune(options)
    prepare(options.trainer, workers=options.data.workers)
    own = source is None
    source = source or open_source(options.data)
    setup = set_up(source, checkpoint.load_config(given(options.checkpoint, "checkpoint")), options.data)
    labels = summarise(source)
    model = build(options, setup, labels)
    task = task_for(model.task, label_smoothing=options.optim.label_smoothing, dice=options.optim.dice)
    data = LabelledData(setup, options)
    content = json.loads(json.dumps(dataclasses.asdict(options.data), default=str)) if own else {}
    image = LabelledExamples(setup, "train")[0, 0].batch  # maps are made of tiles of its size
    edge = max(max(r.values.shape[-2:]) * setup.modalities[name].stride for name, r in image.items())
    facts = {"data": content, "image_px": edge, **setup.facts()}
    return FinetuneTask(model, task, options, data.batch_size, facts), data, setup, labels


def fit(task: FinetuneTask, data: LabelledData, new: list[str]) -> float:
    """Train, validate after every epoch, keep the last weights too; returns the seconds it took. new: as of `Begun`."""
    options = task.options
    steps = options.optim.steps or options.optim.epochs * data.per_epoch
    names = ["train/loss", "train/lr", "train/grad_norm", "train/skipped", "val/loss"]
    table = Rows(options.out / "metrics.csv", [*names, *(f"val/{name}" for name in task.task.metrics)])
    task.log_every = max(1, steps // 100)
    trainer = make_trainer(
        options.trainer,
        out=options.out,
        steps=steps,
        val_every=data.per_epoch,
        log_every=task.log_every,
        loggers=[table],
        callbacks=[Begun(new)],
    )
    began = time.perf_counter()
    try:
        trainer.fit(task, datamodule=data)
        if steps % min(data.per_epoch, steps):  # the last part of an epoch
            trainer.validate(task, datamodule=data, verbose=False)
        task.save("last", task.last)
        task.warnings = task.remarks(steps, data.per_epoch)
    except SystemExit:  # what Lightning makes of an interrupt
        raise KeyboardInterrupt(f"nothing to go on from; remove {options.out} and start anew") from None
    return time.perf_counter() - began


def finish(task: FinetuneTask, setup: Setup, labels: LabelSummary, seconds: float) -> FinetuneResult:
    """Test the best and the last checkpoint, and write results.json and pictures."""
    options, kind = task.options, task.task
    warnings = [*labels.warnings, *task.warnings]
    if not (options.out / "best").exists():
        warnings.append(f"{kind.primary} had no value on valid; best is the last")
        task.save("best", task.last)
    found = {}
    for name in WEIGHTS:
        model = checkpoint.load_predictor(options.out / name)
        (evidence,) = evidence_of(model, kind, setup, "test", options.trainer, workers=options.data.workers)
        found[name] = Evaluation(intervals(kind, evidence, seed=options.seed), evidence)
    warnings += undefined(found["best"].metrics)
    ids = setup.source.ids
    sizes: dict[str, Any] = {f"{name}_samples": len(ids[name]) for name in SPLITS}
    facts = {
        **setup.facts(),
        **sizes,
        "head": task.model.task.head,
        "warnings": "; ".join(warnings),
        "seconds": round(seconds, 1),
    }
    metrics: dict[str, Any] = {name: evaluation.metrics for name, evaluation in found.items()}
    if isinstance(kind, Segmentation | Classification):
        metrics["confusion"] = kind.confusion(found["best"].evidence).tolist()
        metrics["classes"] = [c.name for c in task.model.task.classes]
    write_json({**facts, "primary": kind.primary, **metrics}, options.out / "results.json")
    draw(task, setup)
    return FinetuneResult(found["best"], found["last"], kind.primary, facts)


def draw(task: FinetuneTask, setup: Setup) -> None:
    """Curves of the run, and for dense tasks a few test images with their labels and predictions."""
    out = task.options.out
    save_finetune_curves(out / "metrics.csv", out / "curves.png", primary=task.task.primary)
    if task.model.task.dense:
        model = checkpoint.load_predictor(out / "best")
        examples, ids = LabelledExamples(setup, "test"), setup.source.ids["test"]
        chosen = spread(range(len(ids)), 4)
        shown = collate([examples[0, row] for row in chosen])
        save_predictions(
            model,
            shown.batch,
            shown.label,
            shown.known,
            out / "predictions.png",
            names=[ids[row] for row in chosen],
            title=f"{setup.source.about.name}, inputs {', '.join(setup.inputs)}",
        )
