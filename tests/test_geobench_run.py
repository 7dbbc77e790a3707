"""The GEO-Bench runner on small fake sets: every cell once, resumable, named when left out, features shared."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bad_inputs import fails
from geobench_files import write_set
from test_finetune import QUIET, pretrained, save_model  # noqa: F401

from multimae_eo import cli
from multimae_eo.errors import CheckpointError, ConfigError, DataError, UnknownNameError
from multimae_eo.finetune_options import FinetuneOptim, GeobenchOptions, MachineOptions
from multimae_eo.tasks import features, geobench, probe
from multimae_eo.tasks.geobench import COLUMNS, all_cells, run_geobench
from multimae_eo.tasks.report import read_results

EUROSAT, CASHEW = "m-eurosat", "m-cashew-plant"
FLAGS = ["--trainer.accelerator", "cpu", "--trainer.progress", "false", "--workers", "0", "--seeds", "1"]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Few resamples and steps, and no pictures."""
    monkeypatch.setattr("multimae_eo.tasks.task.RESAMPLES", 20)
    monkeypatch.setattr("multimae_eo.tasks.finetune.draw", lambda task, setup: None)
    monkeypatch.setattr(probe, "DENSE_STEPS", 3)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """One set of classes and one of masks; a partition of four training images of the first."""
    place = tmp_path_factory.mktemp("sets")
    folder = write_set(place, EUROSAT, train=24, valid=10, test=12, size=16)
    path = folder / "0.01x_train_partition.json"
    reduced = json.loads(path.read_text())
    reduced["train"] = json.loads((folder / "default_partition.json").read_text())["train"][3:7]
    path.write_text(json.dumps(reduced))
    write_set(place, CASHEW, size=16)
    return place


def asked(root: Path, pretrained: Path, out: Path, **fields) -> GeobenchOptions:  # noqa: F811
    optim = FinetuneOptim(batch_size=6, steps=2)
    given = {"checkpoint": pretrained, "data_root": root, "out": out, "seeds": 1, "workers": 0, "trainer": QUIET}
    return GeobenchOptions(**{**given, "finetune": optim, "finetune_dense": optim, **fields})


def counted(monkeypatch, fail_at: int | None = None) -> list[str]:
    """The cells that are run from now on."""
    plain, cells = geobench.run_cell, []

    def run_cell(cell, options, key):
        cells.append(str(cell))
        if len(cells) == fail_at:
            raise KeyboardInterrupt
        return plain(cell, options, key)

    monkeypatch.setattr(geobench, "run_cell", run_cell)
    return cells


def names(rows: list[dict[str, str]]) -> list[tuple[str, ...]]:
    return [(row["dataset"], row["protocol"], row["setting"], row["init"], row["seed"]) for row in rows]


def test_rows_and_columns_are_complete_and_nothing_is_run_twice(root, pretrained, tmp_path, monkeypatch, capsys):  # noqa: F811
    cells = counted(monkeypatch)
    options = asked(root, pretrained, tmp_path / "out", datasets="all", protocol="knn,linear,finetune")
    results = run_geobench(options)
    rows = read_results(results)
    wanted = [(EUROSAT, p) for p in ("knn-5", "knn-20", "linear", "finetune")]
    wanted += [(CASHEW, p) for p in ("linear", "finetune")]
    assert names(rows) == [(*pair, "all", "pretrained", "0") for pair in wanted]
    assert len(cells) == 5
    for row in rows:
        assert tuple(row) == COLUMNS
        dense = row["dataset"] == CASHEW
        assert (row["task"], row["metric"]) == (("segmentation", "miou") if dense else ("classification", "accuracy"))
        assert float(row["low"]) <= float(row["value"]) <= float(row["high"])
        assert row["value"] == row[row["metric"]]
        assert row["inputs"] == "rgb+red_edge+swir+nir"
        assert row["partition"] == "default"
        assert [int(row[f"{s}_samples"]) for s in ("train", "valid", "test")] == ([6, 3, 3] if dense else [24, 10, 12])
        assert bool(row["last_value"]) is (row["protocol"] == "finetune")
        assert float(row["normalised"]) < 2
        assert ("class 0" in row["notes"]) is dense
        assert json.loads(row["settings"])["options"]
        for column in ("statistics", "checkpoint", "data", "version", "torch", "seconds"):
            assert row[column], column
        assert bool(row["head"]) is not row["protocol"].startswith("knn")
        evidence = tmp_path / "out" / "evidence" / f"{row['dataset']}_all_{row['protocol']}_default_pretrained_0.npy"
        assert len(np.load(evidence)) == int(row["test_samples"])
    for name in ("report.html", "report.md"):
        assert EUROSAT in (tmp_path / "out" / name).read_text()
    before = results.read_bytes()
    capsys.readouterr()
    assert run_geobench(options) == results
    assert len(cells) == 5
    assert results.read_bytes() == before
    assert "5 cells, 5 of them done before." in capsys.readouterr().out


def test_a_dry_run_names_the_cells_and_writes_nothing(root, pretrained, tmp_path, capsys):  # noqa: F811
    given = ["geobench", "--checkpoint", str(pretrained), "--data-root", str(root), *FLAGS]
    given += ["--out", str(tmp_path / "out"), "--protocol", "knn,linear"]
    cli.main([*given, "--dry-run"])
    said = capsys.readouterr().out.split("Plan\n")[1]
    assert not (tmp_path / "out").exists()
    assert said.split("\n")[0].split() == ["cells", "3,", "0", "of", "them", "done"]
    assert f"{EUROSAT}" in said
    assert "knn 1, linear 1" in said
    run_geobench(asked(root, pretrained, tmp_path / "out", datasets=EUROSAT, protocol="knn"))
    cli.main([*given, "--dry-run"])
    assert "3, 1 of them done" in capsys.readouterr().out


def test_what_class_0_means_is_in_the_notes(root, pretrained, tmp_path):  # noqa: F811
    found = {}
    for ignore in (True, False):
        out = tmp_path / str(ignore)
        options = asked(root, pretrained, out, datasets=CASHEW, protocol="linear", ignore_class0=ignore)
        (row,) = read_results(run_geobench(options))
        found[ignore] = row["notes"]
    assert "class 0" in found[True]
    assert "class 0" in found[False]
    assert found[True] != found[False]


def test_a_row_that_was_deleted_is_made_again(root, pretrained, tmp_path, monkeypatch):  # noqa: F811
    options = asked(root, pretrained, tmp_path / "out")
    results = run_geobench(options)
    rows = read_results(results)
    lines = results.read_text().splitlines(keepends=True)
    results.write_text("".join(line for line in lines if ",linear,all" not in line or CASHEW in line))
    assert len(read_results(results)) == len(rows) - 1
    cells = counted(monkeypatch)
    run_geobench(options)
    assert cells == [f"{EUROSAT}, all, linear, default, pretrained, seed 0"]
    changing = ("seconds",)
    again = [{k: v for k, v in row.items() if k not in changing} for row in read_results(results)]
    before = [{k: v for k, v in row.items() if k not in changing} for row in rows]
    assert sorted(again, key=str) == sorted(before, key=str)


def test_a_table_is_of_one_split(root, pretrained, tmp_path):  # noqa: F811
    shutil.copytree(root, tmp_path / "data")
    options = asked(tmp_path / "data", pretrained, tmp_path / "out", datasets=EUROSAT, protocol="linear")
    run_geobench(options)
    (path,) = (tmp_path / "data").rglob(f"{EUROSAT}/default_partition.json")
    table = json.loads(path.read_text())
    table["train"][0], table["test"][0] = table["test"][0], table["train"][0]
    path.write_text(json.dumps(table))
    with pytest.raises(ConfigError, match=r"a row of m-eurosat.* with another data"):
        run_geobench(options)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"checkpoint": "other"}, "another checkpoint: .* Give another --out"),
        ({"refit_on_valid": True}, "a row of m-eurosat.* with another refit_on_valid: False, now True"),
        ({"first_seed": 1, "refit_on_valid": True}, "seed 0 with another refit_on_valid: False, now True"),
        ({"allow_leaks": True}, "another allow_leaks: False, now True"),
        ({"trainer": MachineOptions(accelerator="cpu", progress=False, precision="bf16-mixed")}, "another precision"),
    ],
    ids=lambda change: next(iter(change)) if isinstance(change, dict) else "",
)
def test_a_table_is_of_one_checkpoint_and_of_one_choice_of_settings(change, says, root, pretrained, tmp_path):  # noqa: F811
    options = asked(root, pretrained, tmp_path / "out", datasets=EUROSAT, protocol="linear")
    results = run_geobench(options)
    before = results.read_bytes()
    if "checkpoint" in change:
        change = {"checkpoint": save_model(tmp_path / "model", seed=99)}
    with pytest.raises(ConfigError, match=says):
        run_geobench(replace(options, **change))
    assert results.read_bytes() == before


def test_settings_of_a_protocol_that_is_not_in_the_table_may_change(root, pretrained, tmp_path, monkeypatch):  # noqa: F811
    options = asked(root, pretrained, tmp_path / "out", datasets=EUROSAT, protocol="knn")
    run_geobench(options)
    cells = counted(monkeypatch)
    run_geobench(replace(options, protocol="knn,linear", refit_on_valid=True))
    assert cells == [f"{EUROSAT}, all, linear, default, pretrained, seed 0"]


def test_an_interrupt_leaves_a_table_to_go_on_from(root, pretrained, tmp_path, monkeypatch):  # noqa: F811
    options = asked(root, pretrained, tmp_path / "out")
    with monkeypatch.context() as patch:
        assert counted(patch, fail_at=3) == []
        with pytest.raises(KeyboardInterrupt):
            run_geobench(options)
    results = tmp_path / "out" / "results.csv"
    assert [row["protocol"] for row in read_results(results)] == ["knn-5", "knn-20", "linear"]
    assert not list(results.parent.glob(".results*"))
    cells = counted(monkeypatch)
    run_geobench(options)
    assert cells == [f"{CASHEW}, all, linear, default, pretrained, seed 0"]
    assert len(read_results(results)) == 4


def test_a_set_that_cannot_be_read_is_named_and_the_others_are_run(root, pretrained, tmp_path, capfd):  # noqa: F811
    place = tmp_path / "sets"
    broken = write_set(place, EUROSAT, train=12, size=16)
    (broken / "default_partition.json").write_text("{")
    write_set(place, CASHEW, size=16)
    out = tmp_path / "out"
    arguments = ["geobench", "--checkpoint", str(pretrained), "--data-root", str(place), "--out", str(out), *FLAGS]
    says = ["2 of 3 cells were left out", f"the others are in '{out / 'results.csv'}'", EUROSAT, "is not JSON"]
    fails(arguments, says, capfd)
    assert [row["dataset"] for row in read_results(out / "results.csv")] == [CASHEW]
    assert (out / "report.html").is_file()


def test_where_nothing_can_be_run_there_is_no_table(root, pretrained, tmp_path):  # noqa: F811
    with pytest.raises(DataError, match=r"none of 2 cells could be run\. First: m-so2sat, all, knn, default"):
        run_geobench(asked(root, pretrained, tmp_path / "out", datasets="m-so2sat"))
    with pytest.raises(ConfigError, match="nothing to run: m-cashew-plant with protocol knn"):
        run_geobench(asked(root, pretrained, tmp_path / "out", datasets=CASHEW, protocol="knn"))
    with pytest.raises(CheckpointError, match="is no checkpoint"):
        run_geobench(asked(root, tmp_path / "none", tmp_path / "out"))
    assert not (tmp_path / "out" / "results.csv").exists()


def test_names_are_checked_before_anything_is_run(root, pretrained, tmp_path, capfd, monkeypatch):  # noqa: F811
    monkeypatch.delenv("GEO_BENCH_DIR", raising=False)
    options = asked(root, pretrained, tmp_path / "out")
    for field, value, says in (
        ("datasets", f"{CASHEW},m-eurosa", r"unknown GEO-Bench data set 'm-eurosa'\. Did you mean 'm-eurosat'"),
        ("protocol", "knn,finetun", r"unknown protocol 'finetun'\. Did you mean 'finetune'"),
        ("inputs", "rgb", r"unknown input setting 'rgb'\. Did you mean 'rgb-only'"),
        ("partitions", "default,0.1x", r"unknown partition '0\.1x'\. Did you mean"),
        ("inits", "pretrainde", r"unknown initialisation 'pretrainde'\. Did you mean 'pretrained'"),
    ):
        with pytest.raises(UnknownNameError, match=says):
            run_geobench(replace(options, **{field: value}))
    with pytest.raises(ConfigError, match="seeds must be 1 or more; got 0"):
        run_geobench(replace(options, seeds=0))
    with pytest.raises(ConfigError, match="neither is the variable GEO_BENCH_DIR"):
        run_geobench(replace(options, data_root=None))
    with pytest.raises(ConfigError, match="holds none of the data sets"):
        run_geobench(replace(options, data_root=tmp_path))
    assert not (tmp_path / "out").exists()
    fails(["geobench", "--datasets", "m-eurosa", "--data-root", str(root)], ["Did you mean 'm-eurosat'?"], capfd)


def test_the_variable_of_geobench_names_the_folder(root, pretrained, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("GEO_BENCH_DIR", str(root))
    options = asked(root, pretrained, tmp_path / "out", data_root=None, datasets="all", protocol="knn")
    assert [row["dataset"] for row in read_results(run_geobench(options))] == [EUROSAT] * 2


def test_partitions_share_features(root, pretrained, tmp_path, monkeypatch):  # noqa: F811
    made = []
    monkeypatch.setattr(features, "_write", spy(made))
    options = asked(root, pretrained, tmp_path / "out", datasets=EUROSAT, partitions="default,0.01x")
    rows = read_results(run_geobench(options))
    assert made == ["train", "valid", "test"]
    assert [(row["partition"], row["train_samples"]) for row in rows] == [("default", "24")] * 3 + [("0.01x", "4")] * 3
    assert "partition 0.01x" in rows[3]["notes"]
    assert "partition" not in rows[0]["notes"]
    assert "4 training images, fewer than 5 neighbours" in rows[3]["warnings"]
    assert "missing in train" in rows[5]["warnings"]
    alone = asked(root, pretrained, tmp_path / "alone", datasets=EUROSAT, partitions="0.01x")
    values = [row["value"] for row in read_results(run_geobench(alone))]
    assert values == [row["value"] for row in rows[3:]]
    assert {row["test_samples"] for row in rows} == {"12"}


def spy(made: list[str]):
    plain = features._write

    def _write(setup, extractor, split, *rest):
        made.append(split)
        return plain(setup, extractor, split, *rest)

    return _write


def test_cells(root, pretrained, tmp_path):  # noqa: F811
    options = asked(root, pretrained, tmp_path, datasets=f"{EUROSAT},{CASHEW}", protocol="knn,linear,finetune", seeds=3)
    options = replace(
        options, inits="pretrained,random,band_statistics,random_convolutions", inputs="rgb-only,rgb-relief"
    )
    cells = list(all_cells(options))
    assert len(cells) == len(set(cells))
    assert {cell.setting for cell in cells} == {"rgb-only"}  # neither has an elevation
    seeds = {}
    for cell in cells:
        seeds.setdefault((cell.dataset, cell.protocol, cell.init), []).append(cell.seed)
    three = [0, 1, 2]
    assert seeds == {
        **{(EUROSAT, p, "pretrained"): [0] for p in ("knn", "linear")},
        **{(EUROSAT, p, "band_statistics"): [0] for p in ("knn", "linear")},
        **{(EUROSAT, p, i): three for p in ("knn", "linear") for i in ("random", "random_convolutions")},
        **{(name, "finetune", i): three for name in (EUROSAT, CASHEW) for i in ("pretrained", "random")},
        **{(CASHEW, "linear", i): three for i in ("pretrained", "random")},
    }


def test_input_settings_feed_what_they_name(root, pretrained, tmp_path):  # noqa: F811
    options = asked(
        root, pretrained, tmp_path / "out", datasets=EUROSAT, protocol="knn", inputs="rgb-only,multispectral"
    )
    found = [(row["setting"], row["inputs"]) for row in read_results(run_geobench(options))]
    assert found == [("rgb-only", "rgb")] * 2 + [("multispectral", "rgb+red_edge+swir+nir")] * 2


def test_a_run_from_the_command_line(root, pretrained, tmp_path, capsys):  # noqa: F811
    out = tmp_path / "out"
    arguments = ["geobench", "--checkpoint", str(pretrained), "--data-root", str(root), "--out", str(out), *FLAGS]
    cli.main([*arguments, "--datasets", EUROSAT, "--protocol", "knn"])
    printed = capsys.readouterr().out
    assert f"Wrote {out / 'results.csv'}; look at {out}/report.html." in printed
    assert f"[1/1] {EUROSAT}, all, knn, default, pretrained, seed 0" in printed


def test_what_a_killed_fine_tuning_left_is_made_anew(root, pretrained, tmp_path, monkeypatch):  # noqa: F811
    left = tmp_path / "out" / "finetune" / f"{EUROSAT}_all_finetune_default_pretrained_0"
    left.mkdir(parents=True)
    (left / "config.yaml").write_text("seed: 0\n")
    (left / "metrics.csv").write_text("step,kind\n1,tr")
    options = asked(root, pretrained, tmp_path / "out", datasets=EUROSAT, protocol="finetune")
    (row,) = read_results(run_geobench(options))
    assert row["protocol"] == "finetune"
    assert (left / "best" / "model.safetensors").is_file()


def test_a_set_that_is_named_but_not_there_is_an_error(root, pretrained, tmp_path):  # noqa: F811
    options = asked(root, pretrained, tmp_path / "out", datasets=f"{EUROSAT},m-so2sat", protocol="knn")
    with pytest.raises(DataError, match=r"1 of 2 cells were left out.*First: m-so2sat, all, knn"):
        run_geobench(options)
