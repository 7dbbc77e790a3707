"""What pre-training is worth on labelled tiles of other worlds, over several seeds, and what missing modalities cost.

    python benchmarks/transfer.py OUT [SEED ...]

Per seed: a world of 2,000 tiles is pre-trained on for 1,500 steps (demo size), a labelled world of 5,000 tiles from
other places is written (2,500 train, 500 valid, 2,000 test), encoders and baselines are probed at 1 %, 10 % and 100 %
of the labels, and two models are fine-tuned on 10 %: on all modalities with modality drop-out, and on RGB alone. Then
tables of all seeds that are finished, with paired bootstrap intervals over seeds and tiles, are printed, and OUT gets
transfer.png. Parts that are done are not done again; seeds may run side by side. Default: seeds 0 to 4.
"""

import sys
from pathlib import Path

import numpy as np
import torch

from multimae_eo import checkpoint
from multimae_eo.data.synthetic import generate, generate_downstream
from multimae_eo.finetune_options import (
    FinetuneOptim,
    FinetuneOptions,
    GeobenchOptions,
    LabelledOptions,
    MachineOptions,
)
from multimae_eo.modalities import INPUT_SETTINGS
from multimae_eo.options import demo_options
from multimae_eo.tasks.evaluate import evidence_of, set_up_like
from multimae_eo.tasks.finetune import finetune
from multimae_eo.tasks.geobench import run_geobench
from multimae_eo.tasks.kinds import task_for
from multimae_eo.tasks.report import read_results
from multimae_eo.tasks.run import pretrain
from multimae_eo.tasks.samples import open_source
from multimae_eo.visualize_labels import save_transfer

DATASET, ALL, RGB = "synthetic-class", "all", "rgb-only"
PARTITIONS = ("0.01x", "0.10x", "1.00x")
INITS = ("pretrained", "random", "band_statistics", "random_convolutions")
PROTOCOLS = ("knn-5", "knn-20", "linear")
RESAMPLES = 2000
MACHINE = MachineOptions(accelerator="cpu", threads=1, progress=False)


def pretrained(out: Path, seed: int) -> Path:
    """The checkpoint of a seed."""
    options = demo_options()
    options.seed, options.out, options.resume = seed, out / f"pre{seed}", True
    if not (options.out / "checkpoint").exists():
        world = out / f"world{seed}" / "synthetic"
        options.data.root = world if world.exists() else generate(world.parent, tiles=2000, seed=seed, workers=1)
        options.optim.steps = 1500
        options.trainer.progress, options.trainer.panels, options.trainer.loggers = False, 0, []
        options.trainer.val_every, options.trainer.save_every = 500, 500
        pretrain(options)
    return options.out / "checkpoint"


def labelled(out: Path, seed: int) -> Path:
    """The labelled world of a seed."""
    root = out / f"gb{seed}"
    if not (root / "classification_v1.0" / DATASET).exists():
        generate_downstream(root, tiles=5000, seed=seed, workers=1, sets=(DATASET,))
    return root


def probe(out: Path, seed: int, model: Path, root: Path) -> None:
    """Frozen features of encoders and baselines."""
    run_geobench(
        GeobenchOptions(
            checkpoint=model,
            data_root=root,
            datasets=DATASET,
            inputs=f"{RGB},{ALL}",
            partitions=",".join(PARTITIONS),
            inits=",".join(INITS),
            seeds=1,
            first_seed=seed,
            out=out / f"r{seed}",
            workers=1,
            trainer=MACHINE,
        )
    )


def missing_modalities(out: Path, seed: int, model: Path, root: Path) -> None:
    """Fine-tune with modality drop-out and on RGB alone, and keep what each subset gets right."""
    done = out / f"d{seed}" / "evidence.npz"
    if done.exists():
        return
    found = {}
    for name, inputs, share in ((ALL, [], 0.3), (RGB, list(INPUT_SETTINGS[RGB].modalities), 0.0)):
        folder = out / f"d{seed}" / name
        if not (folder / "results.json").exists():
            if folder.exists():
                sys.exit(f"'{folder}' is of a run that was stopped; remove it.")
            data = LabelledOptions(
                root=root, name=DATASET, partition="0.10x", inputs=inputs, drop_modality=share, workers=1
            )
            optim = FinetuneOptim(
                batch_size=32, epochs=12, lr=8e-3, warmup_epochs=1, layer_decay=0.75, drop_path=0.0, clip_norm=1.0
            )
            finetune(FinetuneOptions(checkpoint=model, out=folder, seed=seed, data=data, optim=optim, trainer=MACHINE))
        tuned = checkpoint.load_predictor(folder / "best")
        setup = set_up_like(tuned, open_source(LabelledOptions(root=root, name=DATASET)))
        subsets = {"": setup.inputs}
        if name == ALL:
            subsets |= {f"without {n}": tuple(i for i in setup.inputs if i != n) for n in setup.inputs}
            subsets["RGB only"] = INPUT_SETTINGS[RGB].modalities
        evidence = evidence_of(
            tuned, task_for(tuned.task), setup, "test", MACHINE, workers=1, subsets=list(subsets.values())
        )
        found |= {f"{name} {subset}".strip(): e.numpy() for subset, e in zip(subsets, evidence, strict=True)}
    np.savez(done, **found)


def right(evidence: np.ndarray) -> np.ndarray:
    """Whether each tile was classified rightly."""
    return (evidence[:, 0] == evidence[:, 1]).astype(float)


def bootstrap(per_seed: list[np.ndarray]) -> tuple[float, float, float]:
    """Mean and 95 % interval of numbers per tile, resampling seeds and tiles within each; paired for differences."""
    random = np.random.default_rng(0)
    draws = [
        np.mean(
            [
                random.choice(per_seed[i], len(per_seed[i])).mean()
                for i in random.integers(0, len(per_seed), len(per_seed))
            ]
        )
        for _ in range(RESAMPLES)
    ]
    low, high = np.percentile(draws, (2.5, 97.5))
    return float(np.mean([values.mean() for values in per_seed])), float(low), float(high)


def words(found: tuple[float, float, float], sign: str = "") -> str:
    """In per cent, with the interval."""
    mean, low, high = (100 * value for value in found)
    return f"{mean:{sign}.1f} ({low:{sign}.1f} to {high:{sign}.1f})"


def kept(out: Path, seed: int, setting: str, protocol: str, partition: str, init: str) -> np.ndarray:
    """What a probe got right, per tile."""
    name = "_".join((DATASET, setting, protocol, partition, init, str(seed)))
    return right(np.load(out / f"r{seed}" / "evidence" / f"{name}.npy"))


def probe_tables(out: Path, seeds: list[int]) -> None:
    """Accuracy of every init, and the differences that are claimed."""
    rows = []
    for protocol in PROTOCOLS:
        print(f"\n{protocol}, accuracy in % (95 % interval)\n\n| inputs, init | " + " | ".join(PARTITIONS) + " |")
        print("|---" * (len(PARTITIONS) + 1) + "|")
        for setting in (RGB, ALL):
            for init in INITS:
                cells = []
                for partition in PARTITIONS:
                    found = bootstrap([kept(out, s, setting, protocol, partition, init) for s in seeds])
                    cells.append(words(found))
                    facts = {"task": "classification", "protocol": protocol, "inputs": setting, "init": init}
                    numbers = dict(zip(("mean", "low", "high"), found, strict=True))
                    rows.append({**facts, "labels": float(partition[:-1]), "metric": "accuracy", **numbers})
                print(f"| {setting}, {init} | " + " | ".join(cells) + " |")
        pairs = [(f"{s}: pretrained - {i}", (s, "pretrained"), (s, i)) for s in (RGB, ALL) for i in INITS[1:]]
        pairs.append((f"pretrained: {ALL} - {RGB}", (ALL, "pretrained"), (RGB, "pretrained")))
        for name, (s1, i1), (s2, i2) in pairs:
            cells = [
                words(
                    bootstrap([kept(out, s, s1, protocol, p, i1) - kept(out, s, s2, protocol, p, i2) for s in seeds]),
                    "+",
                )
                for p in PARTITIONS
            ]
            print(f"| {name} | " + " | ".join(cells) + " |")
    save_transfer(
        rows, out / "transfer.png", title=f"synthetic worlds, {len(seeds)} seeds, 95 % intervals over seeds and tiles"
    )


def missing_table(out: Path, seeds: list[int]) -> None:
    """Accuracy of the fine-tuned models without each modality, beside the model of RGB alone."""
    found = [{name: right(e) for name, e in np.load(out / f"d{s}" / "evidence.npz").items()} for s in seeds]
    print("\n| fine-tuned on 10 % | accuracy in % | minus the model of RGB alone |\n|---|---|---|")
    for name in found[0]:
        own = bootstrap([f[name] for f in found])
        beside = bootstrap([f[name] - f[RGB] for f in found])
        print(f"| {name} | {words(own)} | {words(beside, '+')} |")


def main(out: Path, seeds: list[int]) -> None:
    """Do what is missing, and print the tables."""
    torch.set_num_threads(1)
    for seed in seeds:
        model, root = pretrained(out, seed), labelled(out, seed)
        probe(out, seed, model, root)
        missing_modalities(out, seed, model, root)
    shares = {r["train_samples"] for s in seeds for r in read_results(out / f"r{s}" / "results.csv")}
    print(f"\n{len(seeds)} seeds; training tiles: {', '.join(sorted(shares, key=int))}; test tiles per seed: 2000")
    probe_tables(out, seeds)
    missing_table(out, seeds)


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(s) for s in sys.argv[2:]] or list(range(5)))
