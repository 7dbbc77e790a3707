"""Question 5, second half: resized positions against those of fixed pitch, where images are larger than in training.

    python benchmarks/study/positions.py [--seeds 0,1,2,3,4,5,6] [--work runs/study] [--jobs 2]

Pre-trained on tiles of 56 pixels; judged by frozen features and by fine-tuning on labelled tiles of 64 and 112 pixels
of the same 10 m. "resized" (the paper's) stretches the table of positions to the image, so that a step between tokens
means another distance; "fixed_pitch" keeps the distance. At the size of training both are the same, so one model is
trained, and used with both. Prints a table, draws docs/study_positions.png and puts the table into docs/results.md.
"""

import dataclasses
from pathlib import Path

from frozen import probes
from show import Question
from study import PAPER, PARTITIONS, Arm, Budget, Place, labelled, model
from transfer import STEPS, accuracy, inputs_of, tune

from multimae_eo import checkpoint
from multimae_eo.config import Positions
from multimae_eo.model import MultiMAE

KINDS = ("class", "large-class")
EDGES = {"class": "64 px", "large-class": "112 px"}


def measure(arm: Arm, place: Place, budget: Budget, seed: int) -> dict[str, float]:
    """Accuracies "KIND linear|knn-20 PARTITION" and "KIND finetune"."""
    directory = positioned(model(PAPER, place, budget, seed)[0], arm.changes.get("model.positions"))
    found: dict[str, float] = {}
    for kind in KINDS:
        found |= {
            f"{kind} {name}": value for name, value in probes(directory, place, budget, seed, kind, "all").items()
        }
        source = labelled(place, budget, seed, kind)
        result = tune(directory, source, inputs_of("all"), place, seed, "linear", steps=STEPS["1.00x"])
        found[f"{kind} finetune"] = accuracy(result)
    return found


def positioned(directory: Path, positions: Positions | None) -> Path:
    """A checkpoint like another one, with other positions."""
    if positions is None:
        return directory
    trained = checkpoint.load_model(directory)
    changed = MultiMAE(dataclasses.replace(trained.config, positions=positions))
    changed.load_state_dict(trained.state_dict())
    return checkpoint.save(changed, directory.parent / positions / directory.name, extra={})


POSITIONS = Question(
    name="positions",
    title="Positions at other image sizes",
    base=PAPER,
    arms=(Arm("fixed pitch", {"model.positions": "fixed_pitch"}),),
    confirmed=("fixed pitch",),
    measures={
        **{
            " & ".join(f"{kind} {probe} {share}" for probe in ("linear", "knn-20") for share in PARTITIONS): (
                f"{edge}, mean of six"
            )
            for kind, edge in EDGES.items()
        },
        **{f"{kind} linear 1.00x": f"{edge}, linear, 100 %" for kind, edge in EDGES.items()},
        **{f"{kind} finetune": f"{edge}, fine-tuned" for kind, edge in EDGES.items()},
    },
    deciding=2,
    battery="positions",
)

if __name__ == "__main__":
    POSITIONS.answer(__doc__)
