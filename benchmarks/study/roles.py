"""Question 1: what land cover and elevation should be to the model: an input, a target, both, or absent.

    python benchmarks/study/roles.py [--seeds 0,1,2,3,4,5,6] [--work runs/study] [--jobs 2]

Land cover: input and target as in the paper, target only, absent. Elevation: relief (standardised per sample) as in the
paper, absolute (by the statistics), or absolute in and both out. Judged by frozen features of Sentinel-2 and elevation
on labelled worlds, and on shifted ones; labelled tiles have no land cover. Prints a table, draws docs/study_roles.png
and puts the table into docs/results.md. A model takes some seven minutes of one core; those that are on record are not
trained again.
"""

from show import ACCURACIES, Question
from study import PAPER, Arm

from multimae_eo.modalities import PAPER_INPUTS, PAPER_TARGETS

LAND_COVER, RELIEF, HEIGHT = "land_cover", "elevation:sample", "elevation"


def swap(views: tuple[str, ...], old: str, *new: str) -> list[str]:
    """The views with one of them replaced."""
    at = views.index(old)
    return [*views[:at], *new, *views[at + 1 :]]


def views(old: str, inputs: tuple[str, ...], targets: tuple[str, ...]) -> dict[str, list[str]]:
    """The options by which these stand for a view of the paper."""
    return {
        "model.inputs": swap(PAPER_INPUTS, old, *inputs),
        "model.targets": swap(PAPER_TARGETS, old, *targets),
    }


ROLES = Question(
    name="roles",
    title="Roles of land cover and elevation",
    base=PAPER,
    arms=(
        Arm("land cover: target only", {"model.inputs": swap(PAPER_INPUTS, LAND_COVER)}),
        # 49 of five modalities are more of each than 49 of six; this hides as large a share as the paper.
        Arm(
            "land cover: target only, 41 visible",
            {"model.inputs": swap(PAPER_INPUTS, LAND_COVER), "mask.num_visible": 41},
        ),
        Arm("land cover: absent", views(LAND_COVER, (), ())),
        Arm("elevation: absolute", views(RELIEF, (HEIGHT,), (HEIGHT,))),
        Arm("elevation: absolute in, both out", views(RELIEF, (HEIGHT,), (HEIGHT, RELIEF))),
    ),
    confirmed=("land cover: target only",),
    measures={what: word for what, word in ACCURACIES.items() if not what.startswith("moved")},  # came later
    operations=True,
)

if __name__ == "__main__":
    ROLES.answer(__doc__)
