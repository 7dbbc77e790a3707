"""Programs of torch.export and ONNX give what the model gives, for any number of samples and with gaps."""

import json
import re

import pytest
import torch
from conftest import ROOT

import multimae_eo
from multimae_eo import MODALITIES, MultiMAE, Predictor, sized
from multimae_eo.config import TaskConfig
from multimae_eo.errors import CheckpointError, ConfigError, UnknownNameError
from multimae_eo.integrations.export import about, example, export, program_of

INPUTS = ("rgb", "nir", "elevation", "land_cover")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's exporters


def pretrained(folder, **fields):
    torch.manual_seed(0)
    return multimae_eo.save(MultiMAE(sized("demo", **fields)), folder / "pretrained")


def finetuned(folder, task="segmentation", head="convnext"):
    torch.manual_seed(0)
    classes = MODALITIES["land_cover"].classes[:3] if task != "regression" else ()
    about = TaskConfig(task, head, ("rgb", "elevation"), classes=classes, products={"rgb": "L2A", "elevation": "ASTER"})
    return multimae_eo.save(Predictor(sized("demo"), about), folder / "finetuned", extra={"image_px": 30})


def values(program, samples):
    """Values like those of images, with gaps, and one input that is missing altogether in the first sample."""
    generator = torch.Generator().manual_seed(samples)
    found = []
    for name, level in zip(program.inputs, example(program, samples), strict=True):
        noise = torch.randn(level.shape, generator=generator)
        found.append(level if name == "land_cover" else level + 300 * noise)
        found[-1][torch.rand(level.shape, generator=generator) < 0.2] = torch.nan
    if len(found) > 1:
        found[1][0] = torch.nan
    return tuple(found)


def agree(ours, theirs):
    ours, theirs = (x if isinstance(x, tuple | list) else [x] for x in (ours, theirs))
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape
        assert torch.isfinite(a).all()
        assert (a - b).abs().max() < 1e-4


FIXED = {"positions": "fixed_pitch"}


@pytest.mark.parametrize(
    ("fields", "size"),
    [({}, None), *(pytest.param(f, s, marks=pytest.mark.slow) for f, s in (({}, 64), (FIXED, None), (FIXED, 64)))],
)
def test_torch_export(tmp_path, fields, size):
    program = program_of(pretrained(tmp_path, **fields), INPUTS, product="L2A", image_size=size)
    path = export(program, tmp_path / "model.pt2")
    loaded = torch.export.load(path, extra_files=(extra := {"about.json": ""})).module()
    assert json.loads(extra["about.json"]) == about(program)
    for samples in (1, 2, 5):
        given = values(program, samples)
        with torch.no_grad():
            agree(program(*given), loaded(*given))
    encoder = multimae_eo.load(tmp_path / "pretrained")
    images = dict(zip(program.inputs, given, strict=True))
    seen = encoder.see(images, units="dn", product="L2A")
    agree((seen.mean(), seen.places()), program(*given))


@pytest.mark.slow
def test_a_fine_tuned_model_as_a_program(tmp_path):
    program = program_of(finetuned(tmp_path))
    assert program.image_size == 32  # images of 30 px, padded
    assert about(program)["inputs"]["rgb"]["product"] == "L2A"
    assert about(program)["classes"] == ["Tree cover", "Shrubland", "Grassland"]
    loaded = torch.export.load(export(program, tmp_path / "model.pt2")).module()
    for samples in (1, 3):
        given = values(program, samples)
        with torch.no_grad():
            assert program(*given).shape == (samples, 3, 32, 32)
            agree(program(*given), loaded(*given))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pretrained", "finetuned", "classification", "regression"])
def test_onnx(tmp_path, kind):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    if kind == "pretrained":
        program = program_of(pretrained(tmp_path), INPUTS, product="L2A")
    else:
        heads = {"classification": ("classification", "attentive"), "regression": ("regression", "linear_dense")}
        program = program_of(finetuned(tmp_path, *heads.get(kind, ())))
    session = onnxruntime.InferenceSession(export(program, tmp_path / "model.onnx"))
    assert [i.name for i in session.get_inputs()] == list(program.inputs)
    assert [i.shape for i in session.get_inputs()] == [["samples", *program.shape(name)] for name in program.inputs]
    assert [o.name for o in session.get_outputs()] == list(program.outputs)
    assert json.loads(session.get_modelmeta().custom_metadata_map["about"]) == about(program)
    for samples in (1, 2, 5):
        given = values(program, samples)
        found = session.run(None, {name: own.numpy() for name, own in zip(program.inputs, given, strict=True)})
        with torch.no_grad():
            agree(program(*given), [torch.from_numpy(f) for f in found])


@pytest.mark.slow
def test_the_page(tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnxruntime")
    from multimae_eo.cli import main

    monkeypatch.chdir(tmp_path)
    multimae_eo.save(MultiMAE(sized("demo")), "runs/demo/checkpoint")
    page = (ROOT / "docs" / "export.md").read_text()
    for command in "".join(re.findall(r"```sh\n(.*?)```", page, re.DOTALL)).strip().splitlines():
        main(command.split()[1:])
    for snippet in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(compile(snippet, "export.md", "exec"), {})
    assert "(4, 96) (4, 96, 7, 7)" in capsys.readouterr().out


def test_mistakes(tmp_path):
    place = pretrained(tmp_path)
    with pytest.raises(UnknownNameError, match=r"input 'rbg'\. Did you mean 'rgb'"):
        program_of(place, ["rbg"], product="L2A")
    with pytest.raises(ConfigError, match="product of rgb is not stated"):
        program_of(place, ["rgb"])
    with pytest.raises(ConfigError, match="each once"):
        program_of(place, ["rgb", "rgb"], product="L2A")
    with pytest.raises(ConfigError, match="60 is not a multiple of the patch size 8"):
        program_of(place, ["rgb"], product="L2A", image_size=60)
    program = program_of(place, ["rgb"], product="L2A")
    with pytest.raises(ConfigError, match=r"ends in .onnx or .pt2"):
        export(program, tmp_path / "model.pth")
    assert not list(tmp_path.glob("*model*"))
    with pytest.raises(CheckpointError):
        program_of(tmp_path / "nothing")
