"""TerraTorch itself, on generated tiles: fit and predict from the page's YAML, and what it asks of a backbone."""

import copy
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("terratorch")
pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries, in versions that pip chooses

import rasterio  # noqa: E402
import yaml  # noqa: E402
from terratorch.cli_tools import build_lightning_cli  # noqa: E402
from terratorch.models import EncoderDecoderFactory  # noqa: E402
from terratorch.registry import BACKBONE_REGISTRY  # noqa: E402

import multimae_eo  # noqa: E402
import multimae_eo.integrations.terratorch  # noqa: E402
from multimae_eo.cli import main  # noqa: E402
from multimae_eo.errors import CheckpointError, ConfigError, DataError, UnknownNameError  # noqa: E402

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "terratorch.md").read_text()
(YAML,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
SNIPPETS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
(SYNTHESIZE, FIT, PREDICT) = [
    line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.strip().splitlines()
]
DECODERS = {
    "UNetDecoder": {},
    "UperNetDecoder": {"decoder_channels": 16, "decoder_scale_modules": True, "necks": []},
    "FCNDecoder": {"decoder_channels": 16, "necks": [], "backbone_out_indices": [-1]},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The tiles of the page, and a checkpoint; each test runs there."""
    place = tmp_path_factory.mktemp("terratorch")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        torch.manual_seed(0)
        multimae_eo.save(multimae_eo.MultiMAE(multimae_eo.sized("demo")), "runs/demo/checkpoint")
        main(shlex.split(SYNTHESIZE)[1:])
        exec(compile(SNIPPETS[0], "terratorch.md", "exec"), {})
        yield place


def test_fit_and_predict_as_a_newcomer_would(folder):
    (folder / "segment.yaml").write_text(YAML.replace("accelerator: auto", "accelerator: cpu"))
    bin_ = Path(sys.executable).parent
    for command in (FIT, PREDICT):
        words = shlex.split(command)
        done = subprocess.run([bin_ / words[0], *words[1:]], capture_output=True, text=True, cwd=folder)
        assert done.returncode == 0, done.stderr[-3000:]
    maps = sorted((folder / "runs" / "terratorch" / "maps").rglob("*.tif"))
    assert len(maps) == 12
    with rasterio.open(maps[0]) as file:
        assert file.shape == (64, 64)
        assert set(file.read(1).ravel()) <= {0, 1}


@pytest.mark.parametrize("decoder", [d for d in DECODERS if d != "UNetDecoder"])
def test_other_decoders(folder, decoder):
    config = yaml.safe_load(YAML)
    config["trainer"] |= {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "limit_train_batches": 2}
    args = config["model"]["init_args"]["model_args"]
    args |= {"decoder": decoder, **DECODERS[decoder]}
    (folder / f"{decoder}.yaml").write_text(yaml.safe_dump(config))
    cli = build_lightning_cli(["fit", "--config", f"{decoder}.yaml"])
    assert cli.trainer.global_step == 2
    start = multimae_eo.load("runs/demo/checkpoint").blocks[0].attn.qkv.weight
    assert not torch.equal(cli.model.model.encoder.encoder.blocks[0].attn.qkv.weight, start)
    batch = next(iter(cli.datamodule.val_dataloader()))
    with torch.no_grad():
        assert cli.model(batch["image"]).output.shape == (len(batch["image"]), 2, 64, 64)


def test_the_page_on_several_sensors(folder, capsys):
    exec(compile(SNIPPETS[1], "terratorch.md", "exec"), {})
    size = "torch.Size([2, 96, 8, 8])"
    assert capsys.readouterr().out.strip() == f"[96, 96, 96, 96] {size} {size}"


def build(name="multimae_eo_demo", **options):
    torch.manual_seed(0)
    return BACKBONE_REGISTRY.build(name, **options).eval()


def images(edge=64):
    generator = torch.Generator().manual_seed(0)
    s2 = torch.randint(200, 3000, (2, 12, edge, edge), generator=generator)
    return {"S2L2A": s2, "DEM": 812 + 9 * torch.randn(2, 1, edge, edge, generator=generator)}


def test_keys_in_any_order_and_a_missing_one(folder):
    backbone = build(modalities=["S2L2A", "DEM"], units="dn")
    given = images()
    both, swapped = backbone(given), backbone(dict(reversed(given.items())))
    assert all(torch.equal(a, b) for a, b in zip(both, swapped, strict=True))
    one = backbone({"DEM": given["DEM"]})
    nan = backbone({"S2L2A": torch.full((2, 12, 64, 64), torch.nan), "DEM": given["DEM"]})
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(one, nan, strict=True))
    assert not torch.allclose(one[-1], both[-1], atol=1e-3)


def test_concat_keeps_each_modality_in_its_place(folder):
    backbone = build(modalities=["S2L2A", "DEM"], units="dn", merge="concat", out_indices=[-1])
    assert backbone.inputs == ("rgb", "red_edge", "swir", "nir", "elevation")
    assert backbone.out_channels == [5 * 96]
    (found,) = backbone({"DEM": images()["DEM"]})
    parts = found.unflatten(1, (5, 96))
    assert (parts[:, :4] == 0).all()
    assert (parts[:, 4] != 0).any(dim=1).all()


@pytest.mark.parametrize("size", [(64, 64), (56, 56), (40, 120), (61, 77)])
def test_sizes(folder, size):
    model = EncoderDecoderFactory().build_model(
        task="segmentation",
        backbone="multimae_eo_demo",
        backbone_bands=["BLUE", "GREEN", "RED"],
        backbone_units="dn",
        backbone_product="L2A",
        backbone_out_indices=[-1],
        decoder="FCNDecoder",
        decoder_channels=8,
        num_classes=3,
    )
    assert model(torch.randint(200, 3000, (2, 3, *size))).output.shape == (2, 3, *size)
    alone = build(bands=["BLUE", "GREEN", "RED"], units="dn", product="L2A")
    rows, columns = (-(-edge // 8) for edge in size)
    assert alone(torch.randint(200, 3000, (2, 3, *size)))[-1].shape == (2, 96, rows, columns)


def test_weights_are_those_of_the_checkpoint_and_copies_work(folder):
    backbone = build("multimae_eo", checkpoint="runs/demo/checkpoint", modalities=["S2L2A"], units="dn")
    encoder = multimae_eo.load("runs/demo/checkpoint")
    given = {"S2L2A": images()["S2L2A"]}
    with pytest.warns(UserWarning, match="no input for B01 B09"):
        wanted = encoder.see(given, units="dn").places()
    assert torch.equal(backbone(given)[-1], wanted)
    assert torch.equal(copy.deepcopy(backbone)(given)[-1], wanted)


def test_mistakes(folder):
    with pytest.raises(CheckpointError, match="No pre-trained weights come with this package"):
        build(pretrained=True)
    with pytest.raises(CheckpointError, match=r"not of size base: it has width 96 and depth 4, expected 768 and 12"):
        build("multimae_eo_base", checkpoint="runs/demo/checkpoint")
    with pytest.raises(UnknownNameError, match="Did you mean 'S2L2A'"):
        build(modalities=["S2L2"])
    with pytest.raises(UnknownNameError, match="band 'INFRARED'"):
        build(bands=["INFRARED"])
    with pytest.raises(ConfigError, match="rising indices"):
        build(out_indices=[0, 9])
    with pytest.raises(UnknownNameError, match="merge"):
        build(merge="max")
    backbone = build(bands=["BLUE", "GREEN", "RED"], units="dn", product="L2A")
    with pytest.raises(DataError, match="standardised numbers"):
        backbone(torch.randn(2, 3, 64, 64))
