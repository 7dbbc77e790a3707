"""Transfer in the demo: what pre-training is worth to labelled tiles of another world, by the number of labels."""

from pathlib import Path
from typing import Any

from multimae_eo.data.synthetic import generate_downstream
from multimae_eo.finetune_options import (
    FinetuneOptim,
    FinetuneOptions,
    GeobenchOptions,
    LabelledOptions,
    MachineOptions,
)
from multimae_eo.tasks.finetune import finetune
from multimae_eo.tasks.geobench import run_geobench
from multimae_eo.tasks.report import read_results
from multimae_eo.visualize_labels import save_transfer

CLASSIFY, SEGMENT = "synthetic-class", "synthetic-map"
PARTITIONS = "0.01x,0.10x,1.00x"
# The edge of the training frame of pre-training.
TILE_PX = 56
ON_CPU = MachineOptions(accelerator="cpu", threads=1, progress=False)


def transfer(checkpoint: Path, out: Path, *, tiles: int, seed: int) -> list[dict[str, Any]]:
    """Write labelled tiles, probe them with the checkpoint's encoder and a random one, fine-tune once for segmentation.

    Rows as in summary.json: task, protocol, inputs, init, labels (share of the training labels), metric, mean and its
    95 % bootstrap interval over test tiles. Leaves transfer.png, probes/report.html and segmentation/predictions.png
    in `out`.
    """
    root = generate_downstream(out / "labelled", tiles=tiles, tile_px=TILE_PX, seed=seed, sets=(CLASSIFY, SEGMENT))
    results = run_geobench(
        GeobenchOptions(
            checkpoint=checkpoint,
            data_root=root,
            datasets=CLASSIFY,
            inputs="rgb-only,all",
            partitions=PARTITIONS,
            inits="pretrained,random",
            seeds=1,
            first_seed=seed,
            out=out / "probes",
            workers=1,
            trainer=ON_CPU,
        )
    )
    rows = [transfer_row(row) for row in read_results(results)]
    title = f"synthetic world: {tiles} labelled tiles, one seed, 95 % intervals over test tiles"
    save_transfer(rows, out / "transfer.png", title=title)
    return [*rows, segmentation(checkpoint, root, out, seed=seed)]


def transfer_row(row: dict[str, str]) -> dict[str, Any]:
    """A row of results.csv as one of summary.json."""
    share = 1.0 if row["partition"] == "default" else float(row["partition"].removesuffix("x"))
    return {
        "task": row["task"],
        "protocol": row["protocol"],
        "inputs": "all" if row["setting"] == "all" else row["inputs"],
        "init": row["init"],
        "labels": share,
        "metric": row["metric"],
        **{name: float(row[column]) for name, column in (("mean", "value"), ("low", "low"), ("high", "high"))},
    }


def segmentation(checkpoint: Path, root: Path, out: Path, *, seed: int) -> dict[str, Any]:
    """A short fine-tuning for a map of every pixel, and its row."""
    options = FinetuneOptions(
        checkpoint=checkpoint,
        out=out / "segmentation",
        seed=seed,
        data=LabelledOptions(root=root, name=SEGMENT, workers=1),
        optim=FinetuneOptim(
            batch_size=16, epochs=3, lr=1.6e-2, warmup_epochs=0.2, layer_decay=0.75, drop_path=0.0, clip_norm=1.0
        ),
        trainer=ON_CPU,
    )
    result = finetune(options)
    mean, low, high = result.best.metrics[result.primary]
    facts = {"task": "segmentation", "protocol": "finetune", "inputs": "all", "init": "pretrained", "labels": 1.0}
    return {**facts, "metric": result.primary, "mean": mean, "low": low, "high": high}
