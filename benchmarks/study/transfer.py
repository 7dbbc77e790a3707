"""Question 2: what pre-training is worth on labelled tiles, against starting anew, simple features, and simpler MAEs.

    python benchmarks/study/transfer.py [--seeds 0,1,2,3,4,5,6] [--work runs/study] [--jobs 2]

k-NN, linear probe and fine-tuning at 1, 10 and 100 % of the labels (one label per tile), a linear probe and fine-tuning
at 100 % (one label per pixel), from RGB alone and from the ten bands of Sentinel-2. Rivals: random weights; statistics
of the bands and random convolutions; an MAE of RGB alone, and one of all ten bands stacked as channels of one modality,
with three quarters of their tokens hidden, in the same harness, on the same tiles for as many steps; these take fewer
operations, as they see 12 tokens of a tile where the paper's model sees 49. All that is trained is trained for four
times the steps of the other studies, as these had shown that little is learned in so few; models of a quarter, which
screen only, say how that changes the answer. Fine-tuning takes 75, 150, 400 steps of 16 tiles at 1, 10 and 100 %, by
the same settings from all weights. Prints a table, draws docs/study_transfer.png and puts the table into
docs/results.md.
"""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from frozen import probes
from show import Question
from study import LONG, PARTITIONS, STACKED, Arm, Budget, Kept, Place, labelled, model

from multimae_eo import checkpoint
from multimae_eo.config import HeadName
from multimae_eo.finetune_options import FinetuneOptim, FinetuneOptions, LabelledOptions
from multimae_eo.modalities import INPUT_SETTINGS
from multimae_eo.tasks.features import Init, extractor, frozen_features
from multimae_eo.tasks.finetune import FinetuneResult, finetune
from multimae_eo.tasks.kinds import task_for
from multimae_eo.tasks.labels import summarise
from multimae_eo.tasks.probe import probe_task, run_probes
from multimae_eo.tasks.samples import set_up

KINDS = ("class", "map")
BATCH = 16
STEPS = {"0.01x": 75, "0.10x": 150, "1.00x": 400}  # of fine-tuning, by the share of the labels
# Per 256 tiles. On validation tiles of one seed, pre-trained and random weights alike learned maps better by it than by
# a third of it, and better than with lower layers that learn slower (LOG.md).
RATE = 4.8e-2
FED = {"rgb-only": "RGB", "multispectral": "Sentinel-2"}
VISIBLE = 12  # a quarter of the tokens of one modality, as in MAE


def single(modality: str) -> dict[str, Any]:
    """How an MAE of one modality differs, a tile of which can have fewer valid tokens than are to be visible."""
    return {
        "model.inputs": [modality],
        "model.targets": [modality, f"{modality}:patch"],
        "mask.num_visible": VISIBLE,
        "mask.short_samples": "mask",
    }


# The baselines use the paper's model for its sizes and statistics, not its weights.
RIVALS = (
    Arm("random weights", {"init": "random"}),
    Arm("band statistics", {"init": "band_statistics"}),
    Arm("random convolutions", {"init": "random_convolutions"}),
    Arm("MAE of RGB", single("rgb") | LONG.changes),
    Arm("MAE of stacked bands", single(STACKED.name) | LONG.changes),
)
SHORT = (
    Arm("a quarter of the steps"),
    Arm("MAE of RGB, a quarter", single("rgb")),
    Arm("MAE of stacked bands, a quarter", single(STACKED.name)),
)


def settings_of(inputs: list[str]) -> dict[str, str]:
    """What a model is judged on, "rgb-only" and "multispectral", and what it is fed for it."""
    if inputs == [STACKED.name]:
        return {"multispectral": "all"}  # that it has
    return {name: name for name in FED if set(INPUT_SETTINGS[name].modalities) <= set(inputs)}


def measure(arm: Arm, place: Place, budget: Budget, seed: int) -> dict[str, float]:
    """Accuracies "class INPUTS PROTOCOL PARTITION" and mIoUs "map INPUTS PROTOCOL", with linear, knn-20, finetune."""
    init = cast(Init, arm.changes.get("init", "pretrained"))
    trained = Arm(arm.name, {name: value for name, value in arm.changes.items() if name != "init"})
    directory, options = model(trained, place, budget, seed)
    found: dict[str, float] = {}
    for setting, feed in settings_of(list(options.model.config().inputs)).items():
        of = probes(directory, place, budget, seed, "class", feed, init)
        found |= {f"class {setting} {name}": value for name, value in of.items()}
        if init not in ("pretrained", "random"):
            continue
        fed = inputs_of(feed)
        for partition in PARTITIONS:
            share = float(partition[:-1])
            few = labelled(place, budget, seed, "class", partition=partition, valid=max(30, round(300 * share)))
            result = tune(directory, few, fed, place, seed, "linear", steps=STEPS[partition], init=init)
            found[f"class {setting} finetune {partition}"] = accuracy(result)
        whole = labelled(place, budget, seed, "map")
        found[f"map {setting} linear"] = dense_probe(directory, whole, feed, init, place, seed)
        result = tune(directory, whole, fed, place, seed, "linear_dense", steps=STEPS["1.00x"], init=init)
        found[f"map {setting} finetune"] = accuracy(result)
    return found


def inputs_of(setting: str) -> LabelledOptions:
    """What is fed."""
    return LabelledOptions(inputs=[] if setting == "all" else list(INPUT_SETTINGS[setting].modalities), workers=0)


def tune(
    directory: Path,
    source: Kept,
    data: LabelledOptions,
    place: Place,
    seed: int,
    head: HeadName,
    *,
    steps: int,
    init: Init = "pretrained",
) -> FinetuneResult:
    """Fine-tune into this process's `tuned_folder`, in the place of what was there."""
    out = tuned_folder(place)
    shutil.rmtree(out, ignore_errors=True)
    optim = FinetuneOptim(
        batch_size=BATCH,
        steps=steps,
        lr=RATE,
        warmup_epochs=0.1,
        layer_decay=1.0,
        drop_path=0.0,
        clip_norm=1.0,
    )
    options = FinetuneOptions(
        checkpoint=directory,
        out=out,
        init=cast(Any, init),
        head=head,
        seed=seed,
        data=data,
        optim=optim,
        trainer=place.machine,
    )
    return finetune(options, source)


def tuned_folder(place: Place) -> Path:
    """Where this process fine-tunes: arms that differ in that alone share the folder of a model."""
    return place.work / "finetune" / str(os.getpid())


def accuracy(result: FinetuneResult) -> float:
    """The test score of the last weights."""
    return result.last.metrics[result.primary][0]


def dense_probe(directory: Path, source: Kept, setting: str, init: Init, place: Place, seed: int) -> float:
    """The mIoU of a linear layer on frozen tokens."""
    config = checkpoint.load_config(directory)
    setup = set_up(source, config, inputs_of(setting))
    made = extractor(setup, directory, init, seed=seed)
    features = frozen_features(setup, made, place.machine, folder=directory.parent / "features", workers=0)
    task = probe_task(source.about, summarise(source), setup.inputs)
    (probe,) = run_probes(task, config, features, ("linear",), seed=seed)
    kind = task_for(task)
    return float(kind.score(probe.evidence)[kind.primary])


SHARES = {"0.01x": "1 %", "0.10x": "10 %", "1.00x": "100 %"}
PROTOCOLS = {"linear": "linear", "knn-20": "k-NN", "finetune": "fine-tuned"}


def mean_of(inputs: str, protocols: Sequence[str]) -> str:
    """What was measured by some protocols at all shares of the labels, as one figure."""
    return " & ".join(f"class {inputs} {protocol} {share}" for protocol in protocols for share in SHARES)


# The first four decide; the others say where a difference comes from.
MEASURES = (
    {mean_of(inputs, ("linear", "knn-20")): f"{word}, mean of six frozen" for inputs, word in FED.items()}
    | {mean_of(inputs, ("finetune",)): f"{word}, mean of three fine-tuned" for inputs, word in FED.items()}
    | {
        f"class {inputs} {protocol} {share}": f"{word}, {name}, {percent}"
        for inputs, word in FED.items()
        for protocol, name in PROTOCOLS.items()
        for share, percent in SHARES.items()
    }
    | {
        f"map {inputs} {protocol}": f"{word}, map, {PROTOCOLS[protocol]}"
        for inputs, word in FED.items()
        for protocol in ("linear", "finetune")
    }
)

TRANSFER = Question(
    name="transfer",
    title="Rivals of pre-training, four times the steps named below",
    base=Arm("pre-training", LONG.changes),
    arms=(*RIVALS, *SHORT),
    confirmed=tuple(arm.name for arm in RIVALS),
    measures=MEASURES,
    deciding=4,
    battery="transfer",
    unit="accuracy or mIoU, %",
)

if __name__ == "__main__":
    TRANSFER.answer(__doc__)
