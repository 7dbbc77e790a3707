"""Question 5, first half: one model for every subset of its inputs, against specialists for six of them.

    python benchmarks/study/subsets.py [--seeds 0,1,2,3,4,5,6] [--work runs/study] [--jobs 2]

Six inputs that labelled tiles have: the four groups of Sentinel-2, elevation, radar; land cover is a target only. One
pre-trained model is fine-tuned with all labels of one set (one label per tile, 400 steps of 16 tiles): on all inputs;
on all of them with modality drop-out, which hides each with probability 1/2; and, as a specialist, on each of six named
subsets. The first two are tested on all 63 subsets, a specialist on its own. Prints a table, draws
docs/study_subsets.png and puts the table into docs/results.md.
"""

import itertools
from pathlib import Path

from show import Question
from study import Arm, Budget, Place, labelled, model
from transfer import STEPS, tune, tuned_folder

from multimae_eo import checkpoint
from multimae_eo.finetune_options import LabelledOptions
from multimae_eo.modalities import PAPER_TARGETS, parse_view
from multimae_eo.tasks.evaluate import evidence_of, set_up_like
from multimae_eo.tasks.kinds import task_for

KINDS = ("class",)
SENTINEL2 = ("rgb", "red_edge", "swir", "nir")
VIEWS = (*SENTINEL2, "elevation:sample", "sar")
INPUTS = tuple(parse_view(view).modality for view in VIEWS)
SIX = {
    "model.inputs": list(VIEWS),
    "model.targets": [*PAPER_TARGETS, "sar"],
    "mask.short_samples": "mask",  # a tile without optical images and radar has elevation alone
}
# Those for which there are specialists.
NAMED = {
    "RGB": ("rgb",),
    "radar": ("sar",),
    "RGB and NIR": ("rgb", "nir"),
    "RGB and elevation": ("rgb", "elevation"),
    "Sentinel-2": SENTINEL2,
    "Sentinel-2 and radar": (*SENTINEL2, "sar"),
}
ALL = [c for number in range(1, len(INPUTS) + 1) for c in itertools.combinations(INPUTS, number)]


def measure(arm: Arm, place: Place, budget: Budget, seed: int) -> dict[str, float]:
    """{"A+B+C": accuracy of these inputs}: of all 63, or of the named ones."""
    way = arm.changes.get("finetune", "all")
    directory, _ = model(Arm(arm.name, {k: v for k, v in arm.changes.items() if k != "finetune"}), place, budget, seed)
    if way != "specialists":
        options = LabelledOptions(workers=0, drop_modality=0.5 if way == "drop-out" else 0.0)
        return tested(directory, place, budget, seed, options, ALL)
    found: dict[str, float] = {}
    for subset in NAMED.values():
        options = LabelledOptions(inputs=list(subset), workers=0)
        found |= tested(directory, place, budget, seed, options, [subset])
    return found


def tested(
    directory: Path, place: Place, budget: Budget, seed: int, data: LabelledOptions, subsets: list[tuple[str, ...]]
) -> dict[str, float]:
    """Fine-tune, and the accuracy of the last weights on each subset."""
    source = labelled(place, budget, seed)
    tune(directory, source, data, place, seed, "linear", steps=STEPS["1.00x"])
    tuned = checkpoint.load_predictor(tuned_folder(place) / "last")
    kind, setup = task_for(tuned.task), set_up_like(tuned, source)
    found = evidence_of(tuned, kind, setup, "test", place.machine, workers=0, subsets=subsets)
    return {"+".join(s): float(kind.score(e)["accuracy"]) for s, e in zip(subsets, found, strict=True)}


def mean_of(number: int | None = None) -> str:
    """The mean over all subsets, or over those of so many modalities."""
    return " & ".join("+".join(subset) for subset in ALL if number in (None, len(subset)))


SUBSETS = Question(
    name="subsets",
    title="One model for all subsets of its inputs",
    base=Arm("with drop-out", {**SIX, "finetune": "drop-out"}),
    arms=(Arm("without drop-out", SIX), Arm("specialists", {**SIX, "finetune": "specialists"})),
    confirmed=("without drop-out", "specialists"),
    # The first one decides between drop-out and none, the mean of the named ones between one model and specialists.
    measures={
        mean_of(): "mean of all 63",
        " & ".join("+".join(subset) for subset in NAMED.values()): "mean of the six named",
        **{mean_of(number): f"{number} of 6" for number in range(1, 7)},
        **{"+".join(subset): name for name, subset in NAMED.items()},
    },
    deciding=2,
    battery="subsets",
)

if __name__ == "__main__":
    SUBSETS.answer(__doc__)
