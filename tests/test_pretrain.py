"""Pre-training: it learns, is the same for any loaders and micro-batches, resumes to the bit, skips bad steps."""

import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from batches import demo_config, random_batch
from safetensors.torch import load_file
from worlds import write_world

from multimae_eo.data.mmearth import MMEarth, read_statistics
from multimae_eo.data.packing import pack
from multimae_eo.errors import ConfigError, DivergedError
from multimae_eo.losses import reconstruction_losses
from multimae_eo.masking import sample_mask
from multimae_eo.modalities import MODALITIES
from multimae_eo.model import MultiMAE
from multimae_eo.optim import learning_rate, parameter_groups
from multimae_eo.options import DataOptions, MaskOptions, ModelOptions, OptimOptions, PretrainOptions, TrainerOptions
from multimae_eo.tasks.examples import spread
from multimae_eo.tasks.pretrain import PretrainTask
from multimae_eo.tasks.rows import Rows, read_rows, truncate
from multimae_eo.tasks.run import build, pretrain, reconstruct

slow = pytest.mark.slow
COMMAND = [
    sys.executable,
    "-m",
    "multimae_eo.cli",
    "pretrain",
    *shlex.split(
        "--model.size demo --optim.batch_size 4 --trainer.log_every 1 --trainer.panels 0 --trainer.progress false "
        "--trainer.accelerator cpu --trainer.loggers=[]"
    ),
]


def options(world, out, **fields) -> PretrainOptions:
    trainer = TrainerOptions(
        accelerator="cpu", devices=1, val_every=4, save_every=4, log_every=1, panels=0, loggers=[], progress=False
    )
    optim = OptimOptions(batch_size=4, steps=10, lr=0.1, warmup_steps=2)
    model, data = ModelOptions(size="demo"), DataOptions(root=world, workers=0)
    base = PretrainOptions(out=out, model=model, data=data, optim=optim, trainer=trainer)
    for name, value in fields.items():
        group, _, key = name.partition("__")
        base = replace(base, **{group: replace(getattr(base, group), **{key: value}) if key else value})
    return base


def outcome(run: PretrainOptions):
    return (run.out / "metrics.csv").read_bytes(), (run.out / "checkpoint" / "model.safetensors").read_bytes()


def test_same_seed_same_curve_for_any_number_of_workers(world, tmp_path):
    runs = [options(world, tmp_path / str(n), data__workers=n) for n in (0, 4)]
    for run in runs:
        pretrain(run)
    assert outcome(runs[0]) == outcome(runs[1])
    other = options(world, tmp_path / "other", seed=1)
    pretrain(other)
    assert outcome(other)[0] != outcome(runs[0])[0]


@pytest.mark.parametrize(
    "extra",
    [
        {},
        pytest.param({"optim__ema": 0.8, "optim__weighting": "uncertainty", "optim__clip_norm": 1.0}, marks=slow),
        pytest.param({"model__drop_path": 0.3, "optim__steps": 9}, marks=slow),
    ],
)
def test_an_interrupted_run_resumes_to_the_bit(world, tmp_path, extra, monkeypatch):
    whole = options(world, tmp_path / "whole", **extra)
    pretrain(whole)
    step = PretrainTask.training_step

    def fail_at(number):
        def training_step(self, example, index):
            if self.global_step == number:
                raise RuntimeError("power cut")
            return step(self, example, index)

        return training_step

    broken = options(world, tmp_path / "broken", **extra, resume=True)
    for number in (
        2,
        6,
        8,
        whole.optim.steps - 1,
    ):  # before any state, within an interval, right after a state was saved, and once more
        monkeypatch.setattr(PretrainTask, "training_step", fail_at(number))
        with pytest.raises(RuntimeError, match="power cut"):
            pretrain(broken)
    monkeypatch.setattr(PretrainTask, "training_step", step)
    pretrain(broken)
    assert outcome(broken) == outcome(whole)


def test_a_run_goes_on_with_its_own_random_numbers_and_tiles(world, tmp_path, capsys):
    run = options(world, tmp_path / "run", optim__steps=4, optim__warmup_steps=4)
    pretrain(run)
    assert "Note: the warm-up of 4 steps is as long as the run or longer, which has 4" in capsys.readouterr().out
    for name, now in (("seed", 1), ("data__val_fraction", 0.3)):
        other = options(world, tmp_path / "run", optim__steps=8, resume=True, **{name: now})
        with pytest.raises(ConfigError, match=rf"was begun with {name.replace('__', '.')} 0.*, not {now}"):
            pretrain(other)
    pretrain(options(world, tmp_path / "run", optim__steps=8, resume=True))
    assert "Note:" not in capsys.readouterr().out


def test_pictures_of_held_out_tiles_are_of_those_that_the_run_held_out(tmp_path, monkeypatch):
    """Where the data set names none, the seed of the run decides, not that of the pictures."""
    data = write_world(tmp_path, tiles=40)
    pretrain(options(data, tmp_path / "run", optim__steps=1, seed=3, data__val_fraction=0.2))
    wanted = MMEarth(data, [MODALITIES["rgb"]]).splits(val_fraction=0.2, seed=3)["val"]
    shown = []
    monkeypatch.setattr("multimae_eo.tasks.run.spread", lambda rows, number: shown.extend(rows) or spread(rows, number))
    out = tmp_path / "picture.png"
    reconstruct(tmp_path / "run" / "checkpoint", data, split="val", tiles=1, num_visible=9, seed=5, out=out)
    assert shown == wanted.tolist()


def test_a_packed_copy_trains_to_the_same_bits(world, tmp_path):
    modalities = [m for m in MODALITIES.values() if m.name in ModelOptions().config().modalities]
    found = read_statistics(world, modalities)
    packed = pack(world, tmp_path / "packed", list(found.values()), tiles_per_shard=16)
    runs = [options(root, tmp_path / str(i), optim__steps=4) for i, root in enumerate((world, packed))]
    for run in runs:
        pretrain(run)
    assert outcome(runs[0]) == outcome(runs[1])


def test_a_run_is_not_overwritten(world, tmp_path):
    run = options(world, tmp_path / "run", optim__steps=1)
    pretrain(run)
    with pytest.raises(ConfigError, match="--resume true"):
        pretrain(run)


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "strategy"), [(7, "ddp"), (12, "fsdp")])
def test_a_killed_process_resumes_to_the_bit(world, tmp_path, rows, strategy):
    command = [*COMMAND, "--data.root", str(world), "--trainer.devices", "1", "--data.workers", "1"]
    command += shlex.split(
        f"--optim.steps 16 --trainer.val_every 5 --trainer.save_every 5 --trainer.strategy {strategy}"
    )
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    subprocess.run([*command, "--out", str(whole)], check=True)
    process = subprocess.Popen([*command, "--out", str(broken)])
    metrics = broken / "metrics.csv"
    while not metrics.exists() or len(metrics.read_text().splitlines()) < rows:
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    subprocess.run([*command, "--out", str(broken), "--resume", "true"], check=True)
    assert metrics.read_bytes() == (whole / "metrics.csv").read_bytes()
    weights = [(run / "checkpoint" / "model.safetensors").read_bytes() for run in (whole, broken)]
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_an_interrupt_says_how_to_go_on(world, tmp_path):
    command = [*COMMAND, "--data.root", str(world), "--data.workers", "1", "--trainer.devices", "1"]
    command += shlex.split("--optim.steps 2000 --trainer.val_every 1000 --trainer.save_every 1000")
    out = tmp_path / "run"
    # A job that a shell started in the background inherits an ignored interrupt, and Python then never sees one.
    process = subprocess.Popen(
        [*command, "--out", str(out)],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not (out / "metrics.csv").exists() or len((out / "metrics.csv").read_text().splitlines()) < 5:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    try:
        _, message = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert f"interrupted; go on with --resume true --out {out}" in message
    assert "Traceback" not in message


def close_runs(one, two):
    for a, b in zip(read_rows(one / "metrics.csv"), read_rows(two / "metrics.csv"), strict=True):
        for name in a:
            if name != "kind" and a[name]:
                assert float(a[name]) == pytest.approx(float(b[name]), rel=2e-4), (a["step"], name)


@pytest.mark.parametrize("weighting", ["sum", "uncertainty"])
def test_micro_batches_change_memory_and_not_results(world, tmp_path, weighting):
    for parts in (1, 3):
        run = options(
            world, tmp_path / str(parts), optim__micro_batches=parts, optim__steps=4, optim__weighting=weighting
        )
        pretrain(run)
    close_runs(tmp_path / "1", tmp_path / "3")


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_devices_validate_in_as_many_batches_and_count_every_tile_once(world, tmp_path, ranks):
    _, data = build(options(world, tmp_path / "run", data__val_tiles=5, optim__micro_batches=2))
    counted, lengths = [], set()
    for rank in range(ranks):
        batches = list(data.validation_batches(rank, ranks).batch_sampler)
        counted += [row for batch in batches[: data.counted] for _, row in batch]
        lengths.add(len(batches))
    assert sorted(counted) == data.rows["val"].tolist()
    assert len(lengths) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "val_tiles"), [("ddp", 1), ("fsdp", 5)])  # one device has fewer batches of them
def test_two_processes_equal_one(strategy, val_tiles, world, tmp_path):
    command = [*COMMAND, "--data.root", str(world), "--data.workers", "0", "--data.val_tiles", str(val_tiles)]
    command += shlex.split("--optim.weighting uncertainty --optim.steps 6 --trainer.val_every 3 --trainer.save_every 3")
    for devices in (1, 2):
        extra = ["--trainer.devices", str(devices), "--out", str(tmp_path / str(devices))]
        extra += ["--optim.micro_batches", "2", "--trainer.strategy", strategy] if devices == 2 else []
        subprocess.run([*command, *extra], check=True, timeout=300)
    close_runs(tmp_path / "1", tmp_path / "2")


def test_steps_that_are_not_finite_are_skipped_counted_and_end_the_run(world, tmp_path, monkeypatch):
    backward = PretrainTask._backward

    def poisoned(self, batch, mask, samples):
        sums = backward(self, batch, mask, samples)
        if self.global_step in (2, 3):
            next(self.model.parameters()).grad.fill_(float("nan"))
        return sums

    monkeypatch.setattr(PretrainTask, "_backward", poisoned)
    run = options(world, tmp_path / "run", optim__steps=6)
    result = pretrain(run)
    assert all(p.isfinite().all() for p in result.task.parameters())
    rows = [r for r in read_rows(run.out / "metrics.csv") if r["kind"] == "train"]
    assert [float(r["train/skipped"]) for r in rows] == [0, 0, 1, 2, 2, 2]
    with pytest.raises(DivergedError, match="steps in a row"):
        pretrain(options(world, tmp_path / "strict", optim__max_skipped=1))


def test_a_moving_average_is_what_is_saved(world, tmp_path):
    plain = options(world, tmp_path / "plain", optim__steps=6)
    averaged = options(world, tmp_path / "averaged", optim__steps=6, optim__ema=0.99)
    for run in (plain, averaged):
        pretrain(run)
    first, second = (load_file(r.out / "checkpoint" / "model.safetensors") for r in (plain, averaged))
    moved = {n: (first[n] - second[n]).abs().max().item() for n in first}
    assert max(moved.values()) > 1e-4
    torch.manual_seed(plain.seed)
    start = build(plain)[0].model.state_dict()
    distances = [sum((w[n] - start[n]).norm() for n in start) for w in (first, second)]
    assert 0.5 * distances[0] < distances[1] < distances[0]  # six steps, and not weights that are hardly trained


def test_short_samples_train_with_a_key_mask(world, tmp_path):
    run = options(world, tmp_path / "run", optim__steps=2)
    run = replace(run, mask=MaskOptions(num_visible=290, short_samples="mask"))
    assert np.isfinite(list(pretrain(run).last.values())).all()


@pytest.mark.slow
def test_the_demo_model_overfits_two_tiles():
    torch.manual_seed(0)
    model = MultiMAE(replace(demo_config(), dim=64, heads=4, decoder_dim=32, decoder_heads=4))
    batch = random_batch(model.config, size=2)
    for raster in batch.values():  # smooth content: one value per quarter of the tile
        edge = raster.values.shape[-1] // 2
        raster.values[:] = raster.values[..., ::edge, ::edge].repeat_interleave(edge, -1).repeat_interleave(edge, -2)
    mask = sample_mask(model.encoder.valid_tokens(batch), 49, generator=np.random.default_rng(0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(250):
        loss = reconstruction_losses(model, model(batch, mask), batch, mask).mean()
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
        losses.append(loss.detach())
    order = [view for view, _ in model.views()]
    for view, first, last in zip(order, losses[0], losses[-1], strict=True):
        if view != "rgb:patch":  # constant patches have nothing left once standardised
            assert last < 0.05 * first, view


def test_learning_rate_and_weight_decay():
    rates = [learning_rate(s, peak=1.0, steps=100, warmup_steps=10, warmup_lr=0.1) for s in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[10] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0.0, abs=1e-12)
    model = MultiMAE(demo_config())
    decayed, free = parameter_groups(model, 0.05)
    names = {id(p): n for n, p in model.named_parameters()}
    assert all(names[id(p)].endswith("weight") and p.ndim == 2 for p in decayed["params"])
    spared = {names[id(p)] for p in free["params"]}
    assert {"encoder.global_tokens", "decoders.rgb.mask_token", "decoders.rgb.modality_embeddings"} <= spared
    assert len(decayed["params"]) + len(free["params"]) == len(names)
    assert free["weight_decay"] == 0


def test_rows_are_truncated_and_a_torn_row_is_dropped(tmp_path):
    logger = Rows(tmp_path / "metrics.csv", ["train/loss", "val/loss"])
    for step in range(1, 6):
        logger.log_metrics({"train/loss": 1 / step}, step)
        logger.log_metrics({"val/loss": 2 / step, "stranger": 1.0}, step)
    with open(logger.path, "a") as file:
        file.write("6,tra")
    assert len(read_rows(logger.path)) == 10
    truncate(logger.path, {"train": 4, "val": 3})
    rows = read_rows(logger.path)
    assert [(r["step"], r["kind"]) for r in rows] == [
        ("1", "train"),
        ("1", "val"),
        ("2", "train"),
        ("2", "val"),
        ("3", "train"),
    ]
    assert float(rows[-1]["train/loss"]) == 1 / 3
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.csv"]
