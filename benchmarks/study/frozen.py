"""The battery of frozen features: reconstruction losses, k-NN and linear probes, at home and in shifted worlds."""

import dataclasses
from pathlib import Path
from typing import cast

import numpy as np
import torch
from study import PARTITIONS, Arm, Budget, Kept, Place, labelled, model, tiles_elsewhere

from multimae_eo import checkpoint
from multimae_eo.data.labelled import SplitName
from multimae_eo.finetune_options import LabelledOptions
from multimae_eo.losses import ViewLosses, reconstruction_losses
from multimae_eo.modalities import INPUT_SETTINGS
from multimae_eo.options import PretrainOptions
from multimae_eo.tasks.features import Frozen, Init, extractor, frozen_features
from multimae_eo.tasks.kinds import task_for
from multimae_eo.tasks.labels import summarise
from multimae_eo.tasks.probe import probe_task, run_probes
from multimae_eo.tasks.run import build
from multimae_eo.tasks.samples import Setup, set_up

# The labelled worlds that it needs.
KINDS = ("class", "shifted-class")


def measure(arm: Arm, place: Place, budget: Budget, seed: int) -> dict[str, float]:
    """Pre-train, unless that was done, and measure: {what: figure}.

    "val VIEW", "shifted VIEW": reconstruction losses on held-out tiles of the world, and of a shifted one.
    "class INPUTS PROTOCOL PARTITION": accuracy on the labelled world, "shifted-class ..." on the shifted one; "moved
    ...": on the shifted one, of what was fitted and standardised at home. Of an arm with an init no losses.
    """
    init = cast(Init, arm.changes.get("init", "pretrained"))
    trained = Arm(arm.name, {name: value for name, value in arm.changes.items() if name != "init"})
    directory, options = model(trained, place, budget, seed)
    found: dict[str, float] = {}
    if init == "pretrained":
        found |= {f"val {view}": loss for view, loss in losses(directory, options).items()}
        root = tiles_elsewhere(place, budget, shifted=True)
        elsewhere = dataclasses.replace(options, data=dataclasses.replace(options.data, root=root))
        found |= {f"shifted {view}": loss for view, loss in losses(directory, elsewhere).items()}
    for kind, setting in (("class", "all"), ("class", "rgb-only"), ("shifted-class", "all")):
        if setting == "all" or set(INPUT_SETTINGS[setting].modalities) <= set(options.model.config().inputs):
            for name, accuracy in probes(directory, place, budget, seed, kind, setting, init).items():
                found[f"{kind} {setting} {name}"] = accuracy
    moved = probes(directory, place, budget, seed, "class", "all", init, judged="shifted-class")
    return found | {f"moved all {name}": accuracy for name, accuracy in moved.items()}


@torch.no_grad()
def losses(directory: Path, options: PretrainOptions) -> dict[str, float]:
    """Reconstruction losses per view over the validation tiles of some options."""
    task, data = build(options)
    task.model = checkpoint.load_model(directory)
    sums = []
    for examples in data.validation_batches():
        batch, mask = task.prepare(examples)
        sums.append(reconstruction_losses(task.model, task.model(batch, mask), batch, mask))
    total, samples = (torch.stack(part).sum(dim=0) for part in zip(*sums, strict=True))
    views = [view for view, _ in task.model.views()]
    return dict(zip(views, ViewLosses(total, samples).mean().tolist(), strict=True))


def probes(
    directory: Path,
    place: Place,
    budget: Budget,
    seed: int,
    kind: str,
    setting: str,
    init: Init = "pretrained",
    *,
    judged: str | None = None,
) -> dict[str, float]:
    """Accuracies of k-NN and of the linear probe at shares of the labels, on frozen features.

    judged: another labelled world, for whose test tiles everything stays as it was at home, the statistics too.
    """
    config = checkpoint.load_config(directory)
    inputs = [] if setting == "all" else list(INPUT_SETTINGS[setting].modalities)
    whole = labelled(place, budget, seed, kind)

    def features_of(source: Kept) -> tuple[Setup, dict[SplitName, Frozen]]:
        setup = set_up(source, config, LabelledOptions(inputs=inputs))
        made, folder = extractor(setup, directory, init, seed=seed), directory.parent / "features"
        return setup, frozen_features(setup, made, place.machine, folder=folder, workers=0)

    setup, features = features_of(whole)
    if judged is not None:
        elsewhere = labelled(place, budget, seed, judged)
        elsewhere.standard = whole
        features = {**features, "test": features_of(elsewhere)[1]["test"]}
    row, found = {name: i for i, name in enumerate(whole.ids["train"])}, {}
    for partition in PARTITIONS:
        part = labelled(place, budget, seed, kind, partition=partition)
        rows = np.array([row[name] for name in part.ids["train"]])
        task = probe_task(part.about, summarise(part), setup.inputs)
        some = {**features, "train": features["train"].rows(rows)}
        for probe in run_probes(task, config, some, ("knn", "linear"), seed=seed):
            found[f"{probe.protocol} {partition}"] = float(task_for(task).score(probe.evidence)["accuracy"])
    return found
