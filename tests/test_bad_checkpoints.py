"""Checkpoints that are missing, damaged or hostile: each is named with its fault, nothing in it is executed."""

import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("h5py")
pytest.importorskip("lightning")

from bad_inputs import check_message, fails, files_below
from batches import demo_config
from safetensors.torch import load_file, save_file
from test_bad_input import one_thread, original  # noqa: F401
from worlds import edited

from multimae_eo import checkpoint, cli
from multimae_eo.model import MultiMAE


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A checkpoint directory of a small model that was never trained."""
    torch.manual_seed(0)
    return checkpoint.save(MultiMAE(demo_config()), tmp_path_factory.mktemp("saved") / "checkpoint")


def tensors(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        content = load_file(folder / "model.safetensors")
        change(content)
        save_file(content, folder / "model.safetensors")

    return spoil


def config(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        content = json.loads((folder / "config.json").read_text())
        change(content)
        (folder / "config.json").write_text(json.dumps(content))

    return spoil


def cut(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(
        (folder / name).read_bytes()[: (folder / name).stat().st_size // 2]
    )


TOKENS = "encoder.global_tokens"
DOCTORED = {
    "missing": (shutil.rmtree, ["checkpoint' is no checkpoint", "no config.json", "Expected a directory"]),
    "no config": (
        lambda f: (f / "config.json").unlink(),
        ["checkpoint' is no checkpoint", "no config.json", "multimae-eo convert"],
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), ["model.safetensors' does not exist"]),
    "config is no JSON": (cut("config.json"), ["config.json' is not JSON"]),
    "config is a list": (
        lambda f: (f / "config.json").write_text("[]"),
        ["config.json' has format None", "expected 1"],
    ),
    "config is newer": (config(lambda c: c.update(format=2)), ["has format 2", "expected 1", "newer version"]),
    "config lacks the model": (config(lambda c: c.pop("model")), ["config.json", "model"]),
    "config lacks an entry": (config(lambda c: c["model"].pop("depth")), ["config.json", "missing entries ['depth']"]),
    "config has another entry": (config(lambda c: c["model"].update(x=1)), ["config.json", "unknown entries ['x']"]),
    "config has a word": (config(lambda c: c["model"].update(depth="two")), ["config.json", "depth"]),
    "config is impossible": (config(lambda c: c["model"].update(image_size=57)), ["config.json", "image_size 57"]),
    "config lacks statistics": (
        config(lambda c: c["model"]["modalities"]["rgb"].pop("statistics")),
        ["config.json", "statistics"],
    ),
    "tensor missing": (
        tensors(lambda t: t.pop(TOKENS)),
        [f"model.safetensors' does not fit the model: '{TOKENS}' is missing", "another size or set"],
    ),
    "tensor unknown": (tensors(lambda t: t.update(extra=torch.zeros(1))), ["model.safetensors'", "'extra' is unknown"]),
    "tensor misshapen": (
        tensors(lambda t: t.update({TOKENS: torch.zeros(1, 2, 32)})),
        ["model.safetensors'", f"'{TOKENS}' has shape [1, 2, 32], expected [1, 1, 32]"],
    ),
    "all tensors missing": (tensors(lambda t: t.clear()), ["model.safetensors'", "is missing", "more"]),
    "weights truncated": (cut("model.safetensors"), ["model.safetensors' is not a safetensors file, or is damaged"]),
    "weights are text": (
        lambda f: (f / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1"),
        ["model.safetensors' is not a safetensors file"],
    ),
}


def reconstruct(folder: Path, data: Path, out: Path, *extra: str) -> list[str]:
    return ["reconstruct", str(folder), str(data), "--out", str(out), *extra]


@pytest.mark.parametrize("name", DOCTORED)
def test_a_doctored_checkpoint(name, saved, original, tmp_path, capfd):  # noqa: F811
    spoil, says = DOCTORED[name]
    folder = shutil.copytree(saved, tmp_path / "checkpoint")
    spoil(folder)
    before = files_below(tmp_path)
    fails(reconstruct(folder, original, tmp_path / "picture.png"), [str(folder), *says], capfd)
    assert files_below(tmp_path) == before


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        (["--split", "test"], ["tiny.h5': split 'test' is empty"]),
        (["--split", "exam"], ["split", "'train', 'val', 'test'", "exam"]),
        (["--num_visible", "1000"], ["294", "1000", "num_visible"]),
        (["--num_visible", "0"], ["num_visible", "0"]),
        (["--tiles", "0"], ["tiles", "0"]),
        (["--root", "none"], ["--root"]),
    ],
    ids=lambda value: " ".join(value) if value[0].startswith("--") else "",
)
def test_reconstruct_with_bad_options(saved, original, tmp_path, extra, says, capfd):  # noqa: F811
    fails(reconstruct(saved, original, tmp_path / "picture.png", *extra), says, capfd)
    assert not files_below(tmp_path)


def test_reconstruct_with_bad_data(saved, original, tmp_path, capfd):  # noqa: F811
    out = tmp_path / "out" / "picture.png"
    fails(reconstruct(saved, tmp_path / "none", out), [f"'{tmp_path / 'none'}'", "expected"], capfd)
    data = shutil.copytree(original, tmp_path / "tiny")
    with edited(data, "splits") as table:
        table["train"] = [0, 99]
    fails(reconstruct(saved, data, out), ["tiny_splits.json'", "row 99", "15 rows"], capfd)
    assert not out.exists()
    cli.main(reconstruct(saved, original, out))
    assert out.is_file()


class Hostile:
    """A pickle that would create a file when loaded."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return (open, (str(self.target), "w"))


def hostile_zip(path: Path, target: Path) -> None:
    torch.save({"model": Hostile(target)}, path)


def hostile_plain(path: Path, target: Path) -> None:
    path.write_bytes(pickle.dumps({"model": Hostile(target)}))


@pytest.mark.parametrize("write", [hostile_zip, hostile_plain])
def test_a_hostile_pickle_is_not_executed(write, tmp_path, capfd):
    path, target = tmp_path / "weights.pth", tmp_path / "owned"
    write(path, target)
    says = [f"'{path}' is not a file of tensors", "Nothing in it was executed", "Expected a dictionary of tensors"]
    message = fails(["convert", str(path), str(tmp_path / "out")], says, capfd)
    assert "weights_only" not in message  # torch's advice is to execute it
    assert [p.name for p in tmp_path.iterdir()] == ["weights.pth"]
    pickle.loads(pickle.dumps(Hostile(target)))  # what was not done
    assert target.exists()


def test_a_hostile_pickle_in_a_process_of_its_own(tmp_path):
    path, target = tmp_path / "weights.pth", tmp_path / "owned"
    hostile_zip(path, target)
    command = [sys.executable, "-m", "multimae_eo.cli", "convert", str(path), str(tmp_path / "out")]
    run = subprocess.run(command, capture_output=True, text=True)
    check_message(run.returncode, run.stderr, [f"'{path}'", "Nothing in it was executed"])
    assert [p.name for p in tmp_path.iterdir()] == ["weights.pth"]


def layout() -> dict[str, torch.Tensor]:
    """The names of a file in the paper's layout, of which most are missing."""
    return {
        "global_tokens": torch.zeros(1, 1, 32),
        "input_adapters.rgb.proj.weight": torch.zeros(32, 3, 8, 8),
        "output_adapters.rgb.out_proj.weight": torch.zeros(192, 16),
        "output_adapters.rgb.mask_token": torch.zeros(1, 1, 16),
        "encoder.0.norm1.weight": torch.zeros(32),
        "output_adapters.rgb.decoder_transformer.0.norm1.weight": torch.zeros(16),
    }


def without(part: str) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in layout().items() if part not in name}


FILES = {
    "text": (lambda p: p.write_text("hello\nworld\n"), ["is not a file of tensors", "Expected a dictionary"]),
    "empty": (lambda p: p.write_bytes(b""), ["is not a file of tensors", "Expected a dictionary"]),
    "a page": (lambda p: p.write_text("<!DOCTYPE html><html></html>"), ["is not a file of tensors"]),
    "a pickle of numbers": (lambda p: p.write_bytes(pickle.dumps({"a": 1})), ["dictionary of tensors"]),
    "an array": (lambda p: p.write_bytes(pickle.dumps(np.zeros(3))), ["dictionary of tensors"]),
    "one tensor": (lambda p: torch.save(torch.zeros(3), p), ["expected a dictionary of tensors"]),
    "other weights": (lambda p: torch.save({"fc.weight": torch.zeros(3)}, p), ["not in the paper's layout"]),
    "missing keys": (lambda p: torch.save({"model": layout()}, p), ["is missing", "more", "another size or set"]),
    "missing tokens": (lambda p: torch.save({"model": without("global_tokens")}, p), ["global_tokens"]),
    "missing blocks": (lambda p: torch.save({"model": without("norm1")}, p), ["encoder"]),
    "absent": (lambda p: None, ["does not exist"]),
}
HEADS = json.dumps({"encoder_heads": 2, "decoder_heads": 2})


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_cannot_be_converted(name, tmp_path, capfd):
    spoil, says = FILES[name]
    path = tmp_path / "weights.pth"
    (tmp_path / "config.json").write_text(HEADS)
    spoil(path)
    before = files_below(tmp_path)
    message = fails(["convert", str(path), str(tmp_path / "out")], [f"'{path}'", *says], capfd)
    assert "weights_only" not in message  # torch's advice is to execute it
    assert files_below(tmp_path) == before


def test_a_settings_file_that_is_missing_or_damaged(tmp_path, capfd):
    path = tmp_path / "weights.pth"
    torch.save({"model": layout()}, path)
    command = ["convert", str(path), str(tmp_path / "out")]
    fails(command, [f"'{path}'", "encoder_heads", "put a config.json"], capfd)
    (tmp_path / "config.json").write_text("{")
    fails(command, [f"{tmp_path / 'config.json'}'", "JSON"], capfd)
    (tmp_path / "config.json").write_text('{"encoder_heads": "two"}')
    fails(command, [f"{tmp_path / 'config.json'}'", "encoder_heads", "two"], capfd)


def test_a_truncated_file_cannot_be_converted(tmp_path, capfd):
    path = tmp_path / "weights.pth"
    torch.save({"model": layout()}, path)
    cut("weights.pth")(tmp_path)
    fails(["convert", str(path), str(tmp_path / "out")], [f"'{path}' is not a file of tensors"], capfd)
    path = tmp_path / "weights.safetensors"
    save_file(layout(), path)
    cut("weights.safetensors")(tmp_path)
    fails(["convert", str(path), str(tmp_path / "out")], [f"'{path}' is not a safetensors file"], capfd)
    assert not (tmp_path / "out").exists()
