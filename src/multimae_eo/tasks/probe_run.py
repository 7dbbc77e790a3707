"""Frozen evaluation of one data set, as the command `probe` runs it."""

import json
from pathlib import Path
from typing import Any

from multimae_eo import checkpoint
from multimae_eo.data.folders import leaving_nothing
from multimae_eo.data.labelled import Description, Labelled
from multimae_eo.errors import ConfigError, DataError
from multimae_eo.finetune_options import ProbeOptions, given
from multimae_eo.tasks.features import extractor, frozen_features
from multimae_eo.tasks.geobench import PROTOCOLS, names_in
from multimae_eo.tasks.kinds import task_for
from multimae_eo.tasks.labels import summarise
from multimae_eo.tasks.probe import probe_task, run_probes
from multimae_eo.tasks.samples import open_source, set_up
from multimae_eo.tasks.task import intervals, undefined
from multimae_eo.tasks.trainer import prepare, write_json
from multimae_eo.whole import claimed


def probe(options: ProbeOptions, source: Labelled | None = None) -> list[dict[str, Any]]:
    """Run the protocols on frozen features; a row each, which are added to results.json in `options.out`.

    source: the data, where they are not those that options.data names.
    """
    with claimed(options.out):
        return _probe(options, source)


def _probe(options: ProbeOptions, source: Labelled | None) -> list[dict[str, Any]]:
    protocols = names_in(options.protocols, PROTOCOLS[:2], "protocol")
    directory = given(options.checkpoint, "checkpoint")
    prepare(options.trainer, workers=options.data.workers)
    source = source or open_source(options.data)
    check_dense(source.about, protocols, options.init)
    config = checkpoint.load_config(directory)
    setup = set_up(source, config, options.data)
    labels = summarise(source)
    results = options.out / "results.json"
    before = earlier(results)
    with leaving_nothing(options.out, "features"):
        made = extractor(setup, directory, options.init, seed=options.seed)
        folder, workers = options.out / "features", options.data.workers
        features = frozen_features(setup, made, options.trainer, folder=folder, workers=workers)
        task = probe_task(source.about, labels, setup.inputs)
        found = run_probes(task, config, features, protocols, seed=options.seed, refit_on_valid=options.refit_on_valid)
    what: dict[str, Any] = {"dataset": source.about.name, "partition": options.data.partition, "init": options.init}
    what |= {"checkpoint": checkpoint.fingerprint(directory), "data": source.fingerprint(), "seed": options.seed}
    what |= {f"{split}_samples": len(ids) for split, ids in source.ids.items()}
    rows = []
    for one in found:
        metrics = intervals(task_for(task), one.evidence, seed=options.seed)
        warnings = [*labels.warnings, *one.warnings, *undefined(metrics)]
        facts = {"protocol": one.protocol, "settings": dict(one.settings), "warnings": warnings}
        rows.append({**what, **facts, **setup.facts(), "metrics": metrics})
    write_json([*before, *rows], results)
    return rows


def earlier(results: Path) -> list[Any]:
    """The rows of earlier runs in the same folder; raises DataError."""
    try:
        return [*json.loads(results.read_text())] if results.exists() else []
    except (ValueError, TypeError) as error:
        raise DataError(f"'{results}' is not JSON of results: {error}. Remove it, or give another --out.") from error


def check_dense(about: Description, protocols: tuple[str, ...], init: str) -> None:
    """Raise ConfigError for what labels of pixels do not have, before anything is computed."""
    if about.dense and ("knn" in protocols or init not in ("pretrained", "random")):
        raise ConfigError(
            f"'{about.name}' has a label per pixel: choose --protocols linear, and --init pretrained or random; "
            f"got {','.join(protocols)} and {init}."
        )
