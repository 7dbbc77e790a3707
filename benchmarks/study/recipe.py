"""Question 7: which recipe: one thing at a time is changed from the paper's.

    python benchmarks/study/recipe.py [--seeds 0,1,2,3,4,5,6] [--work runs/study] [--jobs 2]

Token budget, Dirichlet alpha, width and depth of the decoders, weighting, the target per patch, patch size, moving
average, batch and learning rate, which is per 256 tiles and so follows the batch. The same number of tiles is seen,
with unlike operations, which the table has. What the settings themselves give without training is shown by random
weights of three patch sizes. Whole tiles are trained at the size that they are judged at, 64 pixels, all others at 56.
So few steps do not let uncertainties settle. Screened with two seeds; a change that could become a default is
confirmed with five others. Prints a table, draws docs/study_recipe.png and puts the table into docs/results.md.
"""

from show import ACCURACIES, Question
from study import PAPER, Arm, times

from multimae_eo.modalities import PAPER_TARGETS

# 56 pixels are no whole number of patches of 16; whole tiles leave no room to cut at random.
PATCH_4 = {"model.patch_size": 4, "mask.num_visible": 196}
PATCH_16 = {"model.patch_size": 16, "model.image_size": 64, "mask.num_visible": 16}
HALF_AS_LONG = {"optim.batch_size": times(2), "optim.steps": times(0.5)}

RECIPE = Question(
    name="recipe",
    title="One change from the paper's recipe",
    base=PAPER,
    arms=(
        Arm("visible: 1/12", {"mask.num_visible": 24}),
        Arm("visible: 1/3", {"mask.num_visible": 98}),
        Arm("alpha: 0.5", {"mask.alpha": 0.5}),
        Arm("alpha: 4", {"mask.alpha": 4.0}),
        Arm("decoders: half as wide", {"model.decoder_dim": times(0.5)}),
        Arm("decoders: twice as wide", {"model.decoder_dim": times(2)}),
        Arm("decoders: twice as deep", {"model.decoder_depth": times(2)}),
        Arm("uncertainty weighting", {"optim.weighting": "uncertainty"}),
        Arm("no target per patch", {"model.targets": [v for v in PAPER_TARGETS if not v.endswith(":patch")]}),
        Arm("all spectra per patch", {"model.targets": [*PAPER_TARGETS, "red_edge:patch", "swir:patch", "nir:patch"]}),
        Arm("patch: 4 px", PATCH_4),
        Arm("patch: 16 px, whole tiles", PATCH_16),
        Arm("whole tiles", {"model.image_size": 64, "mask.num_visible": 64}),
        Arm("moving average", {"optim.ema": 0.998}),
        Arm("rate: half", {"optim.lr": times(0.5)}),
        Arm("rate: twice", {"optim.lr": times(2)}),
        Arm("batch and rate: twice, half the steps", HALF_AS_LONG),
        Arm("batch: twice, half the steps", {**HALF_AS_LONG, "optim.lr": times(0.5)}),
        Arm("random weights", {"init": "random"}),
        Arm("random weights, patch: 4 px", {"init": "random", **PATCH_4}),
        Arm("random weights, patch: 16 px", {"init": "random", **PATCH_16}),
    ),
    confirmed=(),
    measures=ACCURACIES,
    operations=True,
)

if __name__ == "__main__":
    RECIPE.answer(__doc__)
