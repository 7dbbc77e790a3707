"""Checkpoints and the reference layout: round trips, strictness, reports, files that must not be executed."""

import json
import os
import pickle

import pytest
import torch
from batches import demo_config, random_batch
from conftest import SHARED
from safetensors.torch import load_file, save_file

from multimae_eo import checkpoint, reference
from multimae_eo.config import TaskConfig, from_json, to_json
from multimae_eo.errors import CheckpointError, ConfigError
from multimae_eo.modalities import MODALITIES
from multimae_eo.model import MultiMAE
from multimae_eo.predictor import Predictor

GOLDEN = SHARED / "golden" / "patch8_56x56" / "checkpoint-999.pth"


@pytest.fixture
def model():
    torch.manual_seed(0)
    return MultiMAE(demo_config(inputs=("rgb", "sar", "elevation:sample"), positions="fixed_pitch")).eval()


def test_a_saved_model_is_the_same_model(model, tmp_path):
    checkpoint.save(model, tmp_path / "a", extra={"steps": 3})
    loaded = checkpoint.load_model(tmp_path / "a")
    assert loaded.config == model.config
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name])
    encoder = checkpoint.load(tmp_path / "a")
    batch = {n: r for n, r in random_batch(model.config).items() if n in encoder.tokenizers}
    assert torch.equal(encoder(batch), model.encoder(batch))
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["config.json", "model.safetensors"]
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_config_json_describes_bands_units_classes_and_statistics(model, tmp_path):
    checkpoint.save(model, tmp_path / "a")
    content = json.loads((tmp_path / "a" / "config.json").read_text())["model"]
    rgb, cover = content["modalities"]["rgb"], content["modalities"]["land_cover"]
    assert rgb["bands"] == ["B04", "B03", "B02"]
    assert rgb["unit"] == "reflectance x 10000"
    assert set(rgb["statistics"]) == {"L1C", "L2A"}
    assert [c["code"] for c in cover["classes"]] == [10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 100]
    assert from_json(json.loads(json.dumps(to_json(model.config)))) == model.config


def test_loading_is_strict_and_names_what_does_not_fit(model, tmp_path):
    path = checkpoint.save(model, tmp_path / "a") / "model.safetensors"
    good = {name: tensor.clone() for name, tensor in load_file(path).items()}  # the file is written over
    name = "encoder.blocks.0.attn.qkv.weight"
    spoiled = {
        f"'{name}' is missing": {n: t for n, t in good.items() if n != name},
        "'stranger' is unknown": {**good, "stranger": torch.zeros(1)},
        f"'{name}' has shape": {**good, name: torch.zeros(3, 3)},
    }
    for message, tensors in spoiled.items():
        save_file(tensors, path)
        with pytest.raises(CheckpointError, match=message):
            checkpoint.load_model(tmp_path / "a")


def test_the_report_lists_loaded_new_and_unused(model):
    tensors = {n: t for n, t in model.state_dict().items() if not n.startswith("decoders")}
    report = checkpoint.load_tensors(model, {**tensors, "stranger": torch.zeros(1)}, source="x", strict=False)
    assert len(report.loaded) == len(tensors)
    assert all(n.startswith("decoders") for n in report.new)
    assert report.new
    assert report.unused == ("stranger",)
    assert f"{len(tensors)} tensors loaded" in str(report)
    assert "unused: stranger" in str(report)


@pytest.mark.skipif(not GOLDEN.exists(), reason=f"{GOLDEN} does not exist")
def test_convert_writes_a_checkpoint_with_the_published_statistics(tmp_path):
    report = reference.convert(GOLDEN, tmp_path / "converted")
    assert report.new == report.unused == ()
    config = checkpoint.load_model(tmp_path / "converted").config
    assert config.modalities["rgb"].statistics["L1C"] == config.modalities["rgb"].statistics["L2A"]
    assert len(config.modalities["land_cover"].classes) == 12
    assert "elevation:sample" in config.inputs
    assert config.targets[-1] == "rgb:patch"


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_hostile_pickle_is_refused_and_nothing_runs(tmp_path, zipped):
    target = tmp_path / "executed"
    path = tmp_path / "evil.pth"
    if zipped:
        torch.save({"model": {"global_tokens": torch.zeros(1)}, "args": Evil(target)}, path)
    else:
        path.write_bytes(pickle.dumps(Evil(target)))
    with pytest.raises(CheckpointError, match="not a file of tensors"):
        reference.convert(path, tmp_path / "out")
    assert not target.exists()
    assert not (tmp_path / "out").exists()


def test_a_loaded_model_is_that_which_was_saved_in_all_that_it_holds(tmp_path):
    """It is built without memory: nothing of that may stay, and what is not in the file must be there all the same."""
    torch.manual_seed(0)
    config = demo_config()
    model, task = (
        MultiMAE(config).eval(),
        TaskConfig("segmentation", "convnext", ("rgb", "nir"), classes=MODALITIES["land_cover"].classes),
    )
    predictor = Predictor(config, task).eval()
    checkpoint.save(model, tmp_path / "model")
    checkpoint.save(predictor, tmp_path / "predictor")
    for saved, loaded in (
        (model, checkpoint.load_model(tmp_path / "model")),
        (predictor, checkpoint.load_predictor(tmp_path / "predictor")),
    ):
        theirs = dict((*loaded.named_parameters(), *loaded.named_buffers()))
        for name, tensor in (*saved.named_parameters(), *saved.named_buffers()):
            assert theirs[name].device == tensor.device, name
            assert theirs[name].requires_grad == tensor.requires_grad, name
            assert torch.equal(theirs[name], tensor), name
    loaded = checkpoint.load_model(tmp_path / "model")
    with torch.no_grad():
        for parameter in loaded.parameters():
            parameter.add_(1.0)  # what is mapped is written to in memory only
    assert torch.equal(checkpoint.load_model(tmp_path / "model").encoder.global_tokens, model.encoder.global_tokens)
    checkpoint.save(model.half(), tmp_path / "half")
    assert checkpoint.load_model(tmp_path / "half").encoder.global_tokens.dtype == torch.float32


def test_a_compiled_model_is_saved_as_what_it_is(tmp_path):
    model = MultiMAE(demo_config())
    checkpoint.save(torch.compile(model), tmp_path / "checkpoint")
    same = checkpoint.load_model(tmp_path / "checkpoint").state_dict()
    assert all(torch.equal(value, same[name]) for name, value in model.state_dict().items())
    with pytest.raises(ConfigError, match="got DataParallel; save the model that it holds"):
        checkpoint.save(torch.nn.DataParallel(model), tmp_path / "other")
    assert not (tmp_path / "other").exists()
