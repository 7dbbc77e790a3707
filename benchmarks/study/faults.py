"""Question 4: what the mended faults of the published run are worth, each put back alone, and all together.

    python benchmarks/study/faults.py [--seeds 0,1,2,3,4,5,6] [--work runs/study] [--jobs 2]

The statistics of L2A for every product; class codes resampled bilinearly; no validity masks; tiles resized from 64
to 56 pixels instead of cropped (docs/model.md, section 7). Only pre-training has the fault: what it left is judged on
right data, labelled tiles of L2A; a model's faults on L1C are not seen there. All four are put back into four times the
steps too. Prints the tables, draws docs/study_faults.png and docs/study_faults_longer.png, and puts the tables into
docs/results.md.
"""

import dataclasses
from collections.abc import Callable

import lightning.pytorch as lightning
import torch
import torch.nn.functional as F
from show import ACCURACIES, Question
from study import LONG, PAPER, Arm
from torch import Tensor, nn

from multimae_eo.config import ModelConfig
from multimae_eo.modalities import Categorical, Continuous
from multimae_eo.raster import Batch, OwnGrids, Raster
from multimae_eo.tasks.examples import Prepare
from multimae_eo.tasks.pretrain import PretrainTask


class Bilinear(nn.Module):
    """Reduces classes as if their indices were measurements: bilinear, without antialiasing, cut to whole numbers."""

    codes: Tensor

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.classes = {n: m for n, m in config.modalities.items() if isinstance(m, Categorical)}

    def forward(self, batch: Batch) -> Batch:
        """As `OwnGrids.forward`."""
        reduced = {}
        for name, modality in self.classes.items():
            raster = batch[name]
            codes = torch.tensor(modality.codes, device=raster.values.device)
            index = (raster.values.int()[..., None] == codes).int().argmax(dim=-1).float()
            size = [edge // modality.stride for edge in index.shape[-2:]]
            mixed = F.interpolate(index, size, mode="bilinear", align_corners=False).long()
            valid = F.interpolate(raster.valid.float(), size, mode="nearest") > 0
            reduced[name] = Raster(codes[mixed].to(raster.values.dtype), valid, raster.product)
        return batch | reduced


class Resize(Prepare):
    """Resizes whole tiles instead of cutting them: measurements bilinear, classes and validity nearest; then flips.

    Measurements are means of what is valid, so that this fault brings no other.
    """

    def forward(self, batch: Batch, window: Tensor) -> Batch:
        """As `Prepare.forward`."""
        size = [self.size, self.size]
        whole = torch.cat([torch.zeros_like(window[:, :2]), window[:, 2:]], dim=1)
        resized = {}
        for name, raster in batch.items():
            values, there = raster.values.float(), raster.valid.float()
            nearest = F.interpolate(values, size, mode="nearest")
            if name not in self.classes:
                known = F.interpolate(there, size, mode="bilinear")
                smooth = F.interpolate(values * there, size, mode="bilinear") / known
                nearest = torch.where(known > 0, smooth, nearest)
            valid = F.interpolate(there, size, mode="nearest") > 0
            resized[name] = Raster(nearest, valid, raster.product)
        return super().forward(resized, whole)


class Unmasked(Prepare):
    """Declares every pixel valid before a preparation, whatever number stands for no data; no class becomes one."""

    def __init__(self, config: ModelConfig, prepare: Prepare):
        super().__init__(config)
        self.prepare = prepare
        self.first = {name: m.codes[0] for name, m in config.modalities.items() if isinstance(m, Categorical)}

    def forward(self, batch: Batch, window: Tensor) -> Batch:
        """As `Prepare.forward`."""
        claimed = {}
        for name, raster in batch.items():
            values = raster.values
            if name in self.first:
                values = torch.where(raster.valid, values, self.first[name])
            claimed[name] = Raster(values, torch.ones_like(raster.valid), raster.product)
        return self.prepare(claimed, window)


def statistics(task: PretrainTask) -> PretrainTask:
    """The task with one product's statistics for all: that of L2A."""
    config = task.model.config
    modalities = {
        name: dataclasses.replace(m, statistics=dict.fromkeys(m.statistics, m.statistics["L2A"]))
        if isinstance(m, Continuous) and "L2A" in m.statistics
        else m
        for name, m in config.modalities.items()
    }
    lightning.seed_everything(task.options.seed, verbose=False)  # as for the task that it replaces
    return PretrainTask(dataclasses.replace(config, modalities=modalities), task.options)


def labels(task: PretrainTask) -> PretrainTask:
    """The task with bilinear labels."""
    assert isinstance(task.cut.own_grids, OwnGrids)
    task.cut.own_grids = Bilinear(task.model.config)  # type: ignore[assignment]
    return task


def resized(task: PretrainTask) -> PretrainTask:
    """The task with resized tiles."""
    task.cut = Resize(task.model.config)
    return task


def unmasked(task: PretrainTask) -> PretrainTask:
    """The task without validity."""
    task.cut = Unmasked(task.model.config, task.cut)
    return task


# In the order in which several are put back.
FAULTS: dict[str, Callable[[PretrainTask], PretrainTask]] = {
    "statistics": statistics,
    "resized": resized,
    "labels": labels,
    "unmasked": unmasked,
}


def put_back(task: PretrainTask, names: list[str]) -> PretrainTask:
    """The task with some faults."""
    for name, fault in FAULTS.items():
        task = fault(task) if name in names else task
    return task


QUESTION = Question(
    name="faults",
    title="Faults of the published run, put back",
    base=PAPER,
    arms=(
        Arm("L2A statistics for all", {"faults": ["statistics"]}),
        Arm("bilinear labels", {"faults": ["labels"]}),
        Arm("no validity masks", {"faults": ["unmasked"]}),
        Arm("resized, not cropped", {"faults": ["resized"]}),
        Arm("all four", {"faults": list(FAULTS)}),
    ),
    confirmed=("all four",),
    measures=ACCURACIES,
)
# Whether they show where the model has learned more; asked after the first had been screened.
LONGER = Question(
    name="faults_longer",
    title="Faults put back, four times the steps named below",
    base=LONG,
    arms=(Arm("all four", {"faults": list(FAULTS), **LONG.changes}),),
    confirmed=("all four",),
    measures=ACCURACIES,
)

if __name__ == "__main__":
    QUESTION.answer(__doc__)
    LONGER.answer(__doc__)
