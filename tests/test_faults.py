"""Runs that are told to end, killed, starved of disk, fed what cannot be read: they go on, or say why not."""

import csv
import json
import multiprocessing
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch
from test_pretrain import COMMAND, options, outcome

import multimae_eo
from multimae_eo.cli import main
from multimae_eo.data.geobench import GeoBench
from multimae_eo.data.layout import ARRAYS
from multimae_eo.data.mmearth import MMEarth, read_statistics
from multimae_eo.data.packing import pack
from multimae_eo.data.patience import Patience, left_out
from multimae_eo.data.verify import verify
from multimae_eo.errors import ConfigError, DataError, DivergedError, UnreadError
from multimae_eo.finetune_options import FinetuneOptions, LabelledOptions, MachineOptions
from multimae_eo.modalities import MODALITIES
from multimae_eo.model import MultiMAE
from multimae_eo.options import MaskOptions, ModelOptions
from multimae_eo.tasks.examples import PretrainData
from multimae_eo.tasks.finetune import finetune
from multimae_eo.tasks.pretrain import PretrainTask
from multimae_eo.tasks.rows import read_rows
from multimae_eo.tasks.run import pretrain
from multimae_eo.tasks.state import start_of, state_path
from multimae_eo.whole import LOCK, claimed, written

STEPS = "--trainer.devices 1 --data.workers 1 --trainer.val_every 50 --trainer.save_every 50"


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr("multimae_eo.data.patience.PAUSE_S", 0.01)
    monkeypatch.setattr("multimae_eo.tasks.loading.PAUSE_S", 0.01)


@pytest.fixture
def own_world(world, tmp_path):
    return shutil.copytree(world, tmp_path / "own")


def rows_of(out):
    path = out / "metrics.csv"
    return len(path.read_text().splitlines()) - 1 if path.exists() else 0


def started(command, out):
    process = subprocess.Popen([*command, "--out", str(out)], stderr=subprocess.PIPE, text=True)
    while rows_of(out) < 4:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    return process


# Told to end


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_terminated_run_saves_its_state_and_goes_on_to_the_same_bits(world, tmp_path, processes):
    command = [*COMMAND, "--data.root", str(world), *shlex.split(STEPS), "--optim.steps", "60", "--resume", "true"]
    command[command.index("--trainer.devices") + 1] = str(processes)
    process = started(command, tmp_path / "told")
    process.send_signal(signal.SIGTERM)
    message = process.communicate(timeout=120)[1]
    assert process.returncode == 75, message
    assert "terminated: told to end at step" in message
    assert f"--resume true --out {tmp_path / 'told'}" in message
    assert message.count("terminated:") == 1
    assert "Traceback" not in message
    saved = start_of(state_path(tmp_path / "told"))
    assert 0 < saved < 50  # not one of the regular ones
    for name in ("told", "whole"):
        subprocess.run([*command, "--out", str(tmp_path / name)], check=True, timeout=300)
    files = ("metrics.csv", "checkpoint/model.safetensors")
    assert all((tmp_path / "told" / f).read_bytes() == (tmp_path / "whole" / f).read_bytes() for f in files)


# No room


@pytest.mark.slow
def test_a_full_disk_keeps_the_last_state(world, tmp_path):
    """A limit on the size of files stands for a disk that is full: the system refuses to write on."""
    out = tmp_path / "run"
    pretrain(options(world, out, optim__steps=4))
    before = state_path(out).read_bytes()
    command = [*COMMAND, "--data.root", str(world), "--data.workers", "0", "--trainer.devices", "1", "--out", str(out)]
    command += shlex.split("--optim.steps 8 --trainer.save_every 6 --trainer.val_every 4 --resume true")
    small = len(before) // 2

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (small, small))

    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limited)
    assert done.returncode == 2, done.stderr
    assert "the state of step 6 could not be written" in done.stderr
    assert "that of step 4 is kept" in done.stderr
    assert "Traceback" not in done.stderr
    assert state_path(out).read_bytes() == before
    assert not list(out.rglob(".*"))
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert read_rows(out / "metrics.csv")[-1]["step"] == "8"  # on beyond what it was first given


def test_a_file_is_whole_or_is_the_one_before(tmp_path):
    path = tmp_path / "file"
    path.write_text("before")
    with pytest.raises(FileNotFoundError), written(path) as partial:
        partial.write_text((tmp_path / "nothing").read_text())
    assert path.read_text() == "before"
    with written(path) as partial:
        partial.write_text("after")
        assert path.read_text() == "before"
    assert path.read_text() == "after"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


# Steps that are not finite


def poison(monkeypatch, steps):
    backward = PretrainTask._backward

    def poisoned(self, batch, mask, samples):
        sums = backward(self, batch, mask, samples)
        if self.global_step in steps:
            next(self.model.parameters()).grad.fill_(float("nan"))
        return sums

    monkeypatch.setattr(PretrainTask, "_backward", poisoned)


def test_the_tiles_of_skipped_steps_are_listed(world, tmp_path, monkeypatch):
    poison(monkeypatch, (2, 5))
    run = options(world, tmp_path / "run", optim__steps=8, trainer__log_every=4)
    pretrain(run)
    listed = read_rows(run.out / "skipped.csv")
    assert [row["step"] for row in listed] == ["3", "6"]
    data = PretrainData(MMEarth(world, [*ModelOptions(size="demo").config().modalities.values()]), demo(), run)
    expected = [[row for _, row in batch] for batch in data.steps(8)]
    assert [[int(r) for r in row["rows"].split()] for row in listed] == [expected[2], expected[5]]


def demo():
    return ModelOptions(size="demo").config()


def test_a_run_that_diverges_saves_its_last_good_state(world, tmp_path, monkeypatch):
    poison(monkeypatch, range(5, 100))
    run = options(world, tmp_path / "run", optim__steps=20, optim__max_skipped=2, trainer__save_every=100)
    with pytest.raises(DivergedError, match=r"step 8: .* for 3 steps in a row.*skipped.csv.*state before them"):
        pretrain(run)
    state = torch.load(state_path(run.out), weights_only=True)
    assert state["global_step"] == 8
    monkeypatch.undo()
    good = options(world, tmp_path / "good", optim__steps=20, trainer__save_every=5)
    steps = iter(range(5))
    step = PretrainTask.training_step

    def stop(self, *rest):
        if next(steps, None) is None:
            raise RuntimeError("enough")
        step(self, *rest)

    monkeypatch.setattr(PretrainTask, "training_step", stop)
    with pytest.raises(RuntimeError, match="enough"):
        pretrain(good)
    expected = torch.load(state_path(good.out), weights_only=True)["state_dict"]
    assert all(torch.equal(state["state_dict"][n], t) for n, t in expected.items() if n.startswith("model."))


def test_a_loss_that_is_not_finite_is_skipped_too(world, tmp_path, monkeypatch):
    totals = PretrainTask.totals

    def infinite(self, batch, mask):
        found = totals(self, batch, mask)
        return found + torch.where(self.skipped + self.global_step == 1, torch.inf, 0.0)  # its gradient is finite

    monkeypatch.setattr(PretrainTask, "totals", infinite)
    run = options(world, tmp_path / "run", optim__steps=3)
    pretrain(run)
    train = [row for row in read_rows(run.out / "metrics.csv") if row["kind"] == "train"]
    assert [float(row["train/skipped"]) for row in train] == [0, 1, 1]


@pytest.mark.slow
def test_a_modality_that_is_absent_everywhere_trains_on_two_processes(own_world, tmp_path):
    with h5py.File(own_world / "synthetic.h5", "r+") as file:
        file["aster"][:] = ARRAYS["aster"].missing
    command = [*COMMAND, "--data.root", str(own_world), "--data.workers", "0", "--trainer.devices", "2"]
    command += shlex.split("--optim.steps 6 --trainer.val_every 3 --trainer.save_every 6")
    subprocess.run([*command, "--out", str(tmp_path / "run")], check=True, timeout=200)
    rows = [r for r in read_rows(tmp_path / "run" / "metrics.csv") if r["kind"] == "train"]
    assert all(float(r["train/elevation_per_sample"]) == 0 < float(r["train/rgb"]) for r in rows)


# Data that cannot be read


def spoil(world, row, array="sentinel2"):
    """Overwrite the stored bytes of one tile; returns the row."""
    with h5py.File(world / "synthetic.h5") as file:
        place = file[array].id.get_chunk_info_by_coord((row, 0, 0, 0))
    with open(world / "synthetic.h5", "r+b") as file:
        file.seek(place.byte_offset)
        file.write(b"\xff" * place.size)
    return row


def train_row(world, run):
    tiles = MMEarth(world, [*demo().modalities.values()])
    return PretrainData(tiles, demo(), run).rows["train"][0]


def test_a_corrupt_tile_ends_a_run_that_allows_none(own_world, tmp_path):
    run = options(own_world, tmp_path / "run")
    row = spoil(own_world, train_row(own_world, run))
    with pytest.raises(DataError, match=rf"row {row} cannot be read.*tried 5 times.*data\.max_unread"):
        pretrain(run)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_tile_is_left_out_and_recorded(own_world, tmp_path, workers, capfd):
    changes = {"data__max_unread": 1, "data__workers": workers, "data__retries": 1, "optim__steps": 12}
    run = options(own_world, tmp_path / "run", **changes)
    row = spoil(own_world, train_row(own_world, run))
    pretrain(run)
    ((name, cause),) = left_out(run.out / "unread.csv").items()
    assert name == f"row {row} of synthetic.h5"
    assert "cannot be inflated" in cause
    assert f"left out: {name}" in capfd.readouterr().err
    train = [r for r in read_rows(run.out / "metrics.csv") if r["kind"] == "train"]
    assert float(train[-1]["train/unread"]) == 1  # 12 steps of 4 tiles: 40 in the first epoch, 8 in the second


def test_a_tile_that_is_left_out_counts_like_one_of_which_nothing_was_measured(own_world, tmp_path):
    changes = {"data__max_unread": 1, "data__retries": 0, "optim__steps": 12}
    worlds = [own_world, shutil.copytree(own_world, tmp_path / "spoilt")]
    row = train_row(shutil.copytree(own_world, tmp_path / "third"), options(own_world, tmp_path / "x", **changes))
    with h5py.File(worlds[0] / "synthetic.h5", "r+") as file:
        for array in ("sentinel2", "aster", "esa_worldcover"):
            file[array][row] = ARRAYS[array].missing
    spoil(worlds[1], row)
    losses = []
    for number, one in enumerate(worlds):
        run = replace(options(one, tmp_path / str(number), **changes), mask=MaskOptions(short_samples="mask"))
        pretrain(run)
        losses.append([{k: v for k, v in r.items() if "unread" not in k} for r in read_rows(run.out / "metrics.csv")])
    assert losses[0] == losses[1]


def test_more_unread_tiles_than_allowed_end_the_run(own_world, tmp_path):
    run = options(own_world, tmp_path / "run", data__max_unread=1, data__retries=0, optim__steps=30)
    tiles = MMEarth(own_world, [*demo().modalities.values()])
    first, second = PretrainData(tiles, demo(), run).rows["train"][:2]
    tiles.close()
    whole = shutil.copy(own_world / "synthetic.h5", tmp_path / "whole.h5")
    for row in (first, second):
        spoil(own_world, row)
    with pytest.raises(DataError, match=r"2 tiles or images could not be read, more than data\.max_unread, 1"):
        pretrain(run)
    # What an earlier session left out may have been mended since; this one counts anew.
    shutil.copy(whole, own_world / "synthetic.h5")
    spoil(own_world, first)
    pretrain(replace(run, resume=True))
    assert len(left_out(run.out / "unread.csv")) == 2


def test_a_file_that_comes_back_is_read(own_world):
    tiles = MMEarth(own_world, [MODALITIES["rgb"]])
    expected = tiles.read([3])["rgb"].values
    tiles.close()
    path, away = tiles.path, tiles.path.with_suffix(".away")
    path.rename(away)
    threading.Timer(0.3, lambda: away.rename(path)).start()
    batch, unread = tiles.read_patiently([3], Patience(8, 0, None))
    assert not unread.any()
    assert torch.equal(batch["rgb"].values, expected)


def test_a_stale_mount_is_opened_again(own_world, monkeypatch):
    tiles, opened = MMEarth(own_world, [MODALITIES["rgb"]]), []
    read = MMEarth.read

    def stale(self, rows):
        if len(opened) < 2:
            raise UnreadError(os.strerror(116))
        return read(self, rows)

    monkeypatch.setattr(MMEarth, "read", stale)
    monkeypatch.setattr(tiles, "close", lambda: opened.append(time.monotonic()))
    _, unread = tiles.read_patiently([1, 2], Patience(4, 0, None))
    assert not unread.any()
    assert len(opened) == 2


def test_pauses_grow_and_end(monkeypatch):
    pauses = []
    monkeypatch.setattr("multimae_eo.data.patience.PAUSE_S", 0.5)
    monkeypatch.setattr("time.sleep", pauses.append)

    def fails():
        raise UnreadError("gone")

    with pytest.raises(UnreadError, match="tried 10 times"):
        Patience(9, 0, None).read("x", fails)
    assert pauses == [0.5, 1, 2, 4, 8, 16, 32, 60, 60]


@pytest.mark.slow
def test_a_killed_reading_process_changes_nothing(world, tmp_path, monkeypatch, capfd):
    whole = options(world, tmp_path / "whole", data__workers=2)
    pretrain(whole)
    step, killed = PretrainTask.training_step, []

    def kill(self, examples, index):
        if self.global_step in (2, 5):
            killed.append(multiprocessing.active_children()[-1].pid)
            os.kill(killed[-1], signal.SIGKILL)
        step(self, examples, index)

    monkeypatch.setattr(PretrainTask, "training_step", kill)
    broken = options(world, tmp_path / "broken", data__workers=2)
    pretrain(broken)
    assert len(killed) == 2
    assert "a process that reads data was killed" in capfd.readouterr().err
    assert outcome(broken) == outcome(whole)


# Two at a time

HOLD = """
import sys, time
from pathlib import Path
from multimae_eo.whole import claimed
with claimed(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_run_is_refused_with_the_first_ones_host_and_number(world, tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(
            ConfigError, match=rf"run' is being written by process {holder.pid} on {os.uname().nodename}"
        ):
            pretrain(options(world, tmp_path / "run"))
        assert [p.name for p in (tmp_path / "run").iterdir()] == [LOCK]
    finally:
        holder.kill()
        holder.wait()
    stale = tmp_path / "run" / ".x.partial-1"
    stale.write_text("left by a killed process")
    with claimed(tmp_path / "run"):
        assert not stale.exists()
    assert not (tmp_path / "run" / LOCK).exists()


def test_a_folder_that_nothing_was_written_to_goes_again(tmp_path):
    with claimed(tmp_path / "a" / "b"):
        pass
    assert not list(tmp_path.iterdir())


WRITE = """
import sys, time, torch, multimae_eo
from multimae_eo import MultiMAE, sized
models = [MultiMAE(sized("demo", drop_path=p)) for p in (0.0, 0.5)]
for model, value in zip(models, (0.0, 0.5)):
    torch.nn.init.constant_(model.encoder.global_tokens, value)
for i in range(10**9):
    multimae_eo.save(models[i % 2], sys.argv[1])
    time.sleep(0.005)
"""


@pytest.mark.slow
def test_readers_see_a_whole_checkpoint_while_it_is_written(tmp_path):
    multimae_eo.save(MultiMAE(multimae_eo.sized("demo")), tmp_path / "model")
    writer = subprocess.Popen([sys.executable, "-c", WRITE, str(tmp_path / "model")])
    seen, end = [], time.monotonic() + 60
    try:
        while len(seen) < 50 or len(set(seen)) < 2:
            assert time.monotonic() < end
            encoder = multimae_eo.load(tmp_path / "model")
            value = encoder.global_tokens.unique()
            if len(value) == 1:  # the first one has random tokens
                assert value.item() == encoder.config.drop_path
                seen.append(value.item())
    finally:
        writer.kill()
        writer.wait()


def test_a_kill_between_the_two_renames_leaves_a_whole_checkpoint(tmp_path):
    folders = [
        multimae_eo.save(MultiMAE(multimae_eo.sized("demo", drop_path=p)), tmp_path / str(p)) for p in (0.0, 0.5)
    ]
    shutil.copy(folders[1] / "model.safetensors", folders[0] / "model.safetensors")
    assert multimae_eo.load(folders[0]).config.drop_path == 0.5
    edited = (folders[1] / "config.json").read_text().replace('"drop_path": 0.5', '"drop_path": 0.25')
    (folders[1] / "config.json").write_text(edited)  # by a user: counts
    assert multimae_eo.load(folders[1]).config.drop_path == 0.25


def test_the_record_is_a_table(tmp_path):
    patience = Patience(0, 5, tmp_path / "unread.csv")

    def fails():
        raise UnreadError("two\nlines, and a comma")

    assert patience.read("a", fails) is None
    assert patience.read("a", fails) is None  # known, and not tried again
    with open(tmp_path / "unread.csv") as file:
        ((_, pid, name, cause),) = csv.reader(file)
    assert (pid, name, cause) == (str(os.getpid()), "a", "two lines, and a comma")
    assert np.array_equal([*left_out(tmp_path / "unread.csv")], ["a"])


# Labelled images, and what finds faults beforehand


def test_an_image_that_cannot_be_read_is_left_out_of_fine_tuning(labelled_world, tmp_path, monkeypatch):
    multimae_eo.save(MultiMAE(demo()), tmp_path / "model")
    source = GeoBench(labelled_world, "synthetic-map")
    bad, read = source.ids["train"][3], GeoBench.read

    def fails(self, sample_id):
        if sample_id == bad:
            raise DataError("the file is damaged")
        return read(self, sample_id)

    monkeypatch.setattr(GeoBench, "read", fails)
    data = LabelledOptions(root=labelled_world, name="synthetic-map", workers=0, retries=1)
    machine = MachineOptions(accelerator="cpu", threads=1, progress=False)
    run = FinetuneOptions(checkpoint=tmp_path / "model", data=data, trainer=machine, out=tmp_path / "strict")
    run.optim.epochs, run.optim.batch_size = 3, 8  # an epoch drops its last partial batch
    with pytest.raises(DataError, match=r"the file is damaged It was tried 2 times.*data\.max_unread"):
        finetune(run)
    run = replace(run, out=tmp_path / "patient", data=replace(data, max_unread=1))
    finetune(run)
    assert left_out(run.out / "unread.csv") == {bad: "the file is damaged"}


def test_verify_finds_what_is_damaged(own_world, tmp_path, capsys):
    main(["verify", str(own_world), "--workers", "1"])
    assert "60 tiles or images, all of them whole" in capsys.readouterr().out
    spoil(own_world, 7)
    spoil(own_world, 50, "aster")
    with pytest.raises(SystemExit) as ended:
        main(["verify", str(own_world), "--workers", "1", "--out", str(tmp_path / "faults.csv")])
    assert ended.value.code == 3
    output = capsys.readouterr()
    assert "row 7" in output.out
    assert "2 faults among 60" in output.err
    rows = read_rows(tmp_path / "faults.csv")
    assert [(r["row"], r["where"]) for r in rows] == [("50", "synthetic.h5:aster"), ("7", "synthetic.h5:sentinel2")]
    assert all(r["name"] and "inflated" in r["cause"] for r in rows)


def test_verify_reads_the_metadata(own_world):
    with h5py.File(own_world / "synthetic.h5", "r+") as file:
        table = file["metadata"][...]
        table["S2_type"][9] = b"l2x"
        file["metadata"][...] = table
    ((row, _, where, cause),) = verify(own_world, workers=1).faults
    assert (row, where) == ("9", "synthetic.h5:metadata")
    assert cause == "S2_type is 'l2x', expected l1c or l2a"
    tiles = MMEarth(own_world, [MODALITIES["rgb"]])
    record = own_world.parent / "unread.csv"
    _, unread = tiles.read_patiently([8, 9], Patience(0, 1, record))  # it can be left out
    assert unread.tolist() == [False, True]


@pytest.mark.parametrize("rows", [[1, None], ["1"], "all", [10**9]], ids=str)
def test_verify_says_what_is_wrong_with_the_rows_of_a_split(rows, own_world):
    path = own_world / "synthetic_splits.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"val": rows}))
    with pytest.raises(DataError, match=r"synthetic_splits.json'(: expected an object with a list| names row )"):
        verify(own_world, workers=1)


def test_verify_holds_a_packed_copy_against_its_checksums(world, tmp_path):
    found = read_statistics(world, [MODALITIES["rgb"]])
    folder = pack(world, tmp_path / "packed", list(found.values()), tiles_per_shard=16)
    assert verify(folder, workers=1).faults == []
    with open(folder / "synthetic_00001.npy", "r+b") as file:
        file.seek(5000)
        file.write(b"x")
    ((rows, _, where, cause),) = verify(folder, workers=1).faults
    assert (rows, where) == ("16 to 31", "synthetic_00001.npy")
    assert "SHA-256" in cause


def test_verify_reads_the_images_of_geobench(labelled_world, tmp_path, monkeypatch):
    root = shutil.copytree(labelled_world, tmp_path / "own")
    whole = verify(root, workers=1)
    assert whole.total == 3 * 60
    assert not whole.faults
    folder = root / "segmentation_v1.0" / "synthetic-map"
    path = folder / f"{json.loads((folder / 'default_partition.json').read_text())['train'][0]}.hdf5"
    path.write_bytes(path.read_bytes()[:2000])  # the image that is looked into when the set is opened
    ((_, name, where, _),) = verify(root, workers=1).faults
    assert (name, where) == (path.stem, "synthetic-map")
    monkeypatch.chdir(folder)
    assert verify(".", workers=1).total == 60
