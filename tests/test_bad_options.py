"""Every impossible option is named with what is possible, before anything is written."""

from pathlib import Path

import pytest

pytest.importorskip("h5py")
pytest.importorskip("lightning")

from test_bad_input import QUICK, Case, one_thread, original, run_case, train  # noqa: F401


def write(name: str, text: str):
    """A file beside the folder of the data sets."""

    def spoil(folder: Path) -> None:
        path = folder.parent.parent / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    return spoil


def with_yaml(text: str):
    return train("--config", "{here}/run.yaml"), write("run.yaml", text)


def yaml_case(name: str, text: str, *says: str) -> Case:
    arguments, spoil = with_yaml(text)
    return Case(name, arguments, says, spoil)


def option(key: str, value: str, *says: str) -> Case:
    return Case(f"{key} {value}", train(f"--{key}", value), says)


VIEWS = [
    option("model.targets", "['elevatoin']", "modality 'elevatoin'", "Did you mean 'elevation'?"),
    option("model.inputs", "['rgb:pixel']", "view 'rgb:pixel'", "'pixel'", "Known: band, patch, sample"),
    option("model.inputs", "['land_cover:patch']", "'land_cover:patch'", "write 'land_cover'"),
    option("model.inputs", "['rgb','swir','rgb']", "inputs: 'rgb' is given more than once"),
    option("model.inputs", "['rgb','rgb:patch']", "inputs: 'rgb' is given more than once"),
    option("model.targets", "['rgb','rgb']", "targets: 'rgb' is given more than once"),
    option("model.inputs", "[]", "inputs: name at least one view"),
    option("model.targets", "[]", "targets: name at least one view"),
    option("mask.alphas", "{rbg: 1}", "modality 'rbg'", "Did you mean 'rgb'?"),
]

NAMES = [
    yaml_case("yaml, unknown group", "optimm:\n  lr: 1\n", "optimm.lr", "Did you mean 'optim.lr'?"),
    option("optm.steps", "3", "optm.steps", "Did you mean 'optim.steps'?"),
    option("sed", "3", "--sed", "Did you mean 'seed'?"),
]

TYPES = [
    option("optim.steps", "many", "optim.steps", "Expected a", "int", "many"),
    option("optim.lr", "fast", "optim.lr", "Expected a", "float", "fast"),
    option("trainer.progress", "maybe", "trainer.progress", "bool", "maybe"),
    option("model.size", "huge", "model.size", "'demo', 'tiny', 'small', 'base', 'large'", "huge"),
    option("data.flips", "up", "data.flips", "'none', 'horizontal', 'both'", "up"),
    option("optim.betas", "[0.9]", "optim.betas", "2 elements", "[0.9]"),
    option("trainer.precision", "8", "trainer.precision", "'32-true'", "Got value: 8"),
    option("model.inputs", "rgb", "model.inputs", "list", "Got value: rgb"),
]

NUMBERS = [
    option("model.image_size", "60", "image_size 60 is not a multiple of patch_size 8"),
    option("model.image_size", "0", "image_size", "multiple of patch_size 8"),
    option("model.patch_size", "6", "patch_size must be a multiple of 4", "got 6"),
    option("model.patch_size", "0", "patch_size must be", "got 0"),
    option("model.patch_size", "-8", "patch_size must be", "got -8"),
    option("model.decoder_dim", "30", "decoder_dim", "multiple of 4", "got 30"),
    option("model.drop_path", "1", "drop_path", "[0, 1)", "got 1"),
    option("optim.batch_size", "13", "optim.batch_size 13 is larger than the 12 training tiles", "lower it"),
    option("optim.batch_size", "0", "optim.batch_size", "0"),
    option("optim.batch_size", "-4", "optim.batch_size", "-4"),
    option("optim.micro_batches", "0", "optim.micro_batches", "0"),
    option("optim.steps", "-3", "optim.steps", "-3"),
    option("optim.ema", "2", "optim.ema", "2"),
    option("mask.num_visible", "295", "mask.num_visible 295 is more than all tokens", "294"),
    option("mask.num_visible", "0", "mask.num_visible", "0"),
    option("mask.num_visible", "-1", "mask.num_visible", "-1"),
    option("mask.alpha", "0", "alpha must be positive", "got 0"),
    option("seed", "-1", "seed", "-1"),
    option("seed", "99999999999999999999", "seed", "99999999999999999999"),
    option("data.workers", "-1", "data.workers", "-1"),
    option("data.val_fraction", "2", "fraction in (0, 1)", "2.0"),
    option("data.val_block_degrees", "0.5", "blocks of at least 1 degree", "0.5"),
    option("data.val_tiles", "0", "data.val_tiles", "0"),
    option("trainer.val_every", "0", "trainer.val_every", "0"),
    option("trainer.log_every", "0", "trainer.log_every", "0"),
    option("trainer.devices", "0", "devices", "0"),
    Case(
        "a moving average of parts",
        train("--trainer.strategy", "fsdp", "--optim.ema", "0.9"),
        ["optim.ema", "trainer.strategy fsdp", "leave out one"],
    ),
    Case("out is a file", train(), ["'{out}'", "folder"], write("out", "")),
]


@pytest.mark.parametrize("case", [*VIEWS, *NAMES, *TYPES, *NUMBERS], ids=lambda case: case.name)
def test_a_bad_option(case, original, tmp_path, capfd):  # noqa: F811
    run_case(case, original, tmp_path, capfd)
