"""Question 3: whether more modalities pay, at the same number of visible tokens and of steps.

    python benchmarks/study/modalities.py [--seeds 0,1,2,3,4,5,6] [--work runs/study] [--jobs 2]

Pre-trained on RGB alone, on the four spectral groups, on these and elevation, and on land cover too, as input and
target or as a target alone; 24 visible tokens each. That is half of those that RGB alone has, so a model of RGB with
twelve, a quarter as MAE has them, stands beside it. Judged by frozen features: of RGB alone, which all models can be
fed, and of all that a model and the labelled tiles share, which differs in what is fed too. Prints a table, draws
docs/study_modalities.png and puts the table into docs/results.md.
"""

from show import Question
from study import Arm

VISIBLE = 24
SPECTRAL, RELIEF, LAND_COVER = ("rgb", "red_edge", "swir", "nir"), "elevation:sample", "land_cover"


def fed(name: str, *views: str, besides: tuple[str, ...] = (), visible: int = VISIBLE) -> Arm:
    """A model with these views as inputs and targets, and RGB per patch as a target, as the paper has it.

    besides: further targets. Of one modality, a tile can have fewer valid tokens than are to be visible.
    """
    return Arm(
        name,
        {
            "model.inputs": list(views),
            "model.targets": [*views, *besides, "rgb:patch"],
            "mask.num_visible": visible,
            "mask.short_samples": "mask",
        },
    )


def measures(inputs: str, word: str) -> dict[str, str]:
    """Both protocols at all shares of the labels."""
    return {
        f"class {inputs} {protocol} {share}x": f"{word}, {name}, {percent} %"
        for protocol, name in (("linear", "linear"), ("knn-20", "k-NN"))
        for share, percent in (("0.01", 1), ("0.10", 10), ("1.00", 100))
    }


FED = {"rgb-only": "RGB", "all": "all"}


MORE = Question(
    name="modalities",
    title="More modalities",
    base=fed("RGB", "rgb"),
    arms=(
        fed("four spectral groups", *SPECTRAL),
        fed("and elevation", *SPECTRAL, RELIEF),
        fed("and land cover", *SPECTRAL, RELIEF, LAND_COVER),
        fed("and land cover as a target", *SPECTRAL, RELIEF, besides=(LAND_COVER,)),
        fed("RGB, 12 visible", "rgb", visible=12),
    ),
    confirmed=("four spectral groups", "and elevation", "and land cover as a target"),
    measures={" & ".join(measures(inputs, word)): f"{word}, mean of six" for inputs, word in FED.items()}
    | measures("rgb-only", "RGB")
    | measures("all", "all"),
    deciding=2,
    operations=True,
)

if __name__ == "__main__":
    MORE.answer(__doc__)
