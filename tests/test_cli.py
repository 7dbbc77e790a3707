"""The command line as a whole: completion, plans that write nothing, what is missing and how to get it."""

import subprocess
import sys

import pytest
import torch

import multimae_eo
from multimae_eo import MultiMAE, commands, sized
from multimae_eo.cli import ALL, build_parser, main, parse


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    multimae_eo.save(MultiMAE(sized("demo")), "runs/demo/checkpoint")
    return tmp_path


def test_every_command_has_a_line_of_help_and_a_first_sentence():
    text = build_parser().format_help()
    for name, (options, _) in ALL.items():
        assert f"    {name}" in text
        assert (options.__doc__ or "").split("\n")[0].endswith((".", "download."))


@pytest.mark.parametrize(("typed", "found"), [("pretr", "pretrain"), ("exp", "export"), ("insp", "inspect")])
def test_completion_in_bash(typed, found, capsys, tmp_path):
    pytest.importorskip("shtab")
    main(["completion", "bash"])
    (tmp_path / "complete.bash").write_text(capsys.readouterr().out)
    ask = f"COMP_WORDS=(multimae-eo {typed}); COMP_CWORD=1; _shtab_multimae_eo; echo ${{COMPREPLY[@]}}"
    code = f"source complete.bash; {ask}"
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.split() == [found], done.stderr


def test_completion_of_a_shell_that_is_not_known(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["completion", "fish"])
    assert "bash" in capsys.readouterr().err


COMMON = ["--dry-run", "--trainer.accelerator", "cpu", "--data.workers", "0"]


def test_a_plan_of_pretraining_writes_nothing(folder, world, capsys):
    words = ["--data.root", str(world), "--model.size", "demo", "--optim.batch_size", "8", "--optim.steps", "3600"]
    before = sorted(folder.rglob("*"))
    main(["pretrain", *COMMON, *words])
    text = capsys.readouterr().out
    assert sorted(folder.rglob("*")) == before
    assert "batch_size: 8" in text
    plan = dict(line.split(maxsplit=1) for line in text.split("\nPlan\n")[1].strip().splitlines())
    assert plan["samples"].startswith("41 tiles to train on, 19 held out")
    assert plan["steps"] == "3600 of 8 samples, 5 per epoch, on one device"
    seconds = float(plan["measured"].split()[0])
    value, unit = plan["time"].split()[:2]
    assert float(value) == pytest.approx(seconds * (1 if unit.startswith("hour") else 60), rel=0.1, abs=0.06)
    assert 0.05 < float(plan["memory"].split()[0]) < 24


def test_the_options_of_a_plan_are_a_config(folder, world, capsys, tmp_path):
    words = ["--data.root", str(world), "--model.size", "demo", "--optim.batch_size", "8", "--optim.steps", "2"]
    main(["pretrain", *COMMON, *words])
    text = capsys.readouterr().out.split("\nPlan\n")[0]
    (tmp_path / "again.yaml").write_text(text)
    main(["pretrain", "--config", "again.yaml", "--dry-run"])
    assert capsys.readouterr().out.split("\nPlan\n")[0] == text


def test_a_plan_of_fine_tuning_writes_nothing(folder, labelled_world, capsys):
    words = [
        "--checkpoint",
        "runs/demo/checkpoint",
        "--data.root",
        str(labelled_world),
        "--data.name",
        "synthetic-class",
    ]
    before = sorted(folder.rglob("*"))
    main(["finetune", *COMMON, *words])
    text = capsys.readouterr().out
    assert sorted(folder.rglob("*")) == before
    assert "samples   synthetic-class, classification:" in text
    assert "head linear" in text


def test_a_plan_finds_the_mistakes_that_a_run_would(folder, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["pretrain", "--dry-run", "--data.root", "nothing"])
    assert "nothing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "module", "extra"),
    [
        ("export runs/demo/checkpoint --out m.onnx --product L2A --inputs rgb", "onnxscript", "export"),
        ("pretrain --data.root x", "lightning", "train"),
        ("embed runs/demo/checkpoint --source s2=x.tif", "matplotlib", "maps"),
        ("geobench --checkpoint runs/demo/checkpoint --data-root x", "h5py", "train"),
        ("completion bash", "shtab", "completion"),
    ],
)
def test_what_is_not_installed_is_named_with_its_extra(folder, command, module, extra):
    block = f"import sys; sys.modules['{module}'] = None; from multimae_eo.cli import main; main({command.split()!r})"
    done = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert f"pip install 'multimae-eo[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_download_goes_through_the_command(folder, capsys, monkeypatch):
    asked = {}

    def download(what, out, **options):
        asked.update(options, what=what, out=out)
        options["progress"](5 * 10**8, 10**9)
        options["progress"](10**9, 10**9)
        return out / "data"

    monkeypatch.setattr("multimae_eo.data.download.download", download)
    main(["download", "mmearth64", "--out", "data", "--only", "*.json", "--only", "*.h5", "--workers", "2"])
    assert asked["what"] == "mmearth64"
    assert asked["only"] == ["*.json", "*.h5"]
    output = capsys.readouterr()
    assert "1.00/1.00 GB" in output.err
    assert "multimae-eo inspect data/data" in output.out


def test_download_of_what_is_not_known(folder, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["download", "mmearth46", "--out", "data"])
    assert "Did you mean 'mmearth64'" in capsys.readouterr().err


def test_time_left_does_not_count_what_was_done_before(capsys, monkeypatch):
    now = iter([0.0, 0.0, 10.0])
    monkeypatch.setattr(commands.time, "perf_counter", lambda: next(now))
    left = commands.TimeLeft()
    left(90, 110)
    left(100, 110)
    assert "100/110 tiles, 10 s, 10 s left" in capsys.readouterr().err


def test_what_a_command_denies_stays_allowed_to_others(folder, capsys):
    """The settings of jsonargparse are those of the process."""
    from jsonargparse import get_loader
    from jsonargparse._common import parsing_settings

    before = dict(parsing_settings), get_loader("yaml")
    with pytest.raises(SystemExit):
        main(["pretrain", "--no-such-option", "1"])
    main(["completion", "bash"])
    assert (dict(parsing_settings), get_loader("yaml")) == before


@pytest.mark.parametrize("command", ["embed", "fill", "predict"])
def test_options_may_stand_before_everything(command, tmp_path):
    """The second word of a command that maps is a scene, unless options stand before it."""
    config = tmp_path / "config.yaml"
    config.write_text(f"checkpoint: {tmp_path}\nout: {tmp_path / 'out.tif'}\n")
    for arguments in ([command, "--config", str(config)], [command, "--out", "x.tif", str(tmp_path)]):
        assert parse(arguments)[1].checkpoint == tmp_path
