"""Frozen evaluation of one data set, as the command `probe` runs it."""

import json
from typing import Any

from multimae_eo import checkpoint
from multimae_eo.data.labelled import Labelled
from multimae_eo.finetune_options import ProbeOptions, given
from multimae_eo.tasks.features import extractor, frozen_features
from multimae_eo.tasks.geobench import PROTOCOLS, names_in
from multimae_eo.tasks.kinds import task_for
from multimae_eo.tasks.labels import summarise
from multimae_eo.tasks.probe import probe_task, run_probes
from multimae_eo.tasks.samples import open_source, set_up
from multimae_eo.tasks.task import intervals, undefined
from multimae_eo.tasks.trainer import write_json


def probe(options: ProbeOptions, source: Labelled | None = None) -> list[dict[str, Any]]:
    """Run the protocols on frozen features; a row each, which results.json in `options.out` keeps.

    source: the data, where they are not those that options.data names.
    """
    protocols = names_in(options.protocols, PROTOCOLS[:2], "protocol")
    source = source or open_source(options.data)
    directory = given(options.checkpoint, "checkpoint")
    config = checkpoint.load_config(directory)
    setup = set_up(source, config, options.data)
    labels = summarise(source)
    made = extractor(setup, directory, options.init, seed=options.seed)
    folder, workers = options.out / "features", options.data.workers
    features = frozen_features(setup, made, options.trainer, folder=folder, workers=workers)
    task = probe_task(source.about, labels, setup.inputs)
    found = run_probes(task, config, features, protocols, seed=options.seed, refit_on_valid=options.refit_on_valid)
    rows = []
    for one in found:
        metrics = intervals(task_for(task), one.evidence, seed=options.seed)
        warnings = [*labels.warnings, *one.warnings, *undefined(metrics)]
        facts = {"protocol": one.protocol, "init": options.init, "settings": dict(one.settings), "warnings": warnings}
        rows.append({**facts, **setup.facts(), "metrics": metrics})
    write_json(json.loads(json.dumps(rows)), options.out / "results.json")
    return rows
