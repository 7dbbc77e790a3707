"""torchgeo-bench's own interface and band lists; and the page, with PANGAEA's base class stood in for."""

import re
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn

import multimae_eo
from multimae_eo import MultiMAE, sized

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "torchgeo_bench.md").read_text()
BENCH, PANGAEA = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries, in versions that pip chooses


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    return multimae_eo.save(MultiMAE(sized("demo")), "runs/demo/checkpoint")


@pytest.fixture
def bench(checkpoint):
    return pytest.importorskip("torchgeo_bench")


def images(bands, size=2, edge=64):
    """Noise with the statistics of the bands."""
    noise = torch.randn(size, len(bands), edge, edge, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor([getattr(b, k) for b in bands])[:, None, None] for k in ("mean", "std"))
    return mean + std * noise


def test_the_page_and_the_wrong_names_of_two_data_sets(bench, capsys):
    left: dict = {}
    exec(compile(BENCH, "torchgeo_bench.md", "exec"), left)
    assert "'08A - Vegetation Red Edge': 'B09'" in capsys.readouterr().out
    names = left["names_of"](left["bands"])
    assert names == ["B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B09", "B10", "B11", "B12", "B8A"]
    kiln = bench.datasets.get_bench_dataset_class("m-brick-kiln").bands
    assert left["names_of"](kiln)[5:] == ["B07", "B8A", "B08", "B11", "B12", "-", "-", "-"]


def test_every_data_set_that_has_bands_for_it(bench):
    from torchgeo_bench.datasets import get_bench_dataset_class, list_datasets

    from multimae_eo.errors import ConfigError
    from multimae_eo.integrations.torchgeo_bench import MultiMAEBench

    refused = []
    for name in list_datasets():
        bands = get_bench_dataset_class(name).bands
        try:
            model = MultiMAEBench(bands, checkpoint="runs/demo/checkpoint", normalization="bandspec_zscore")
        except ConfigError:
            refused.append(name)
            continue
        found = model.forward_patch_features(images(bands))
        assert found.shape == (2, 96), name
        assert torch.isfinite(found).all(), name
    assert refused == ["caffe"]


def test_what_is_fed_is_standardised_by_the_data_set(bench):
    from torchgeo_bench.datasets import get_bench_dataset_class

    from multimae_eo.integrations.torchgeo_bench import MultiMAEBench

    bands = get_bench_dataset_class("m-bigearthnet").bands
    model = MultiMAEBench(bands, checkpoint="runs/demo/checkpoint")
    batch = model.backbone.encoder.read(images(bands), **vars(model.backbone.stated))
    for name in ("rgb", "nir", "swir", "red_edge"):
        numbers = model.backbone.encoder.tokenizers[name].codec.encode(batch[name]).values
        assert abs(float(numbers.mean())) < 0.05
        assert abs(float(numbers.std()) - 1) < 0.05
    other = MultiMAEBench(bands, checkpoint="runs/demo/checkpoint", statistics="L2A")
    measured = images(bands).clamp(min=0)  # noise below 0 is no reflectance x 10000
    assert not torch.allclose(other(measured), model(measured))
    shuffled = [3, 1, 2, 0, *range(4, len(bands))]
    again = MultiMAEBench([bands[i] for i in shuffled], checkpoint="runs/demo/checkpoint")
    assert torch.equal(again(images(bands)[:, shuffled]), model(images(bands)))


def test_with_its_runner_and_its_segmentation_probe(bench):
    from hydra.utils import instantiate
    from omegaconf import OmegaConf
    from torchgeo_bench.datasets import get_bench_dataset_class
    from torchgeo_bench.models.interface import BenchModel
    from torchgeo_bench.segmentation_probe import SegmentationProbe

    bands = get_bench_dataset_class("pastis").bands
    (preset,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    model = instantiate(OmegaConf.create(preset), bands=bands, normalization="identity", _convert_="object")
    assert isinstance(model, BenchModel)
    probe = SegmentationProbe(model, layer_names=["features.3", "features.1"], num_classes=5, freeze_backbone=True)
    assert probe(images(bands)).shape == (2, 5, 64, 64)


def test_never_silently_random(bench):
    from torchgeo_bench.datasets import get_bench_dataset_class

    from multimae_eo.errors import CheckpointError
    from multimae_eo.integrations.torchgeo_bench import MultiMAEBench

    bands = get_bench_dataset_class("m-eurosat").bands
    with pytest.raises(CheckpointError, match="name a checkpoint"):
        MultiMAEBench(bands)
    with pytest.raises(CheckpointError, match="pretrained to false"):
        MultiMAEBench(bands, checkpoint="runs/demo/checkpoint", pretrained=False)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        MultiMAEBench(bands, checkpoint="runs/nothing/here")
    assert MultiMAEBench(bands, pretrained=False, size="demo")(images(bands)).shape == (2, 96)


def test_the_snippet_for_pangaea(checkpoint, monkeypatch):
    """Its base class has this signature; the licence keeps the real one out of our environments."""

    class Encoder(nn.Module):
        def __init__(
            self,
            model_name,
            input_bands,
            input_size,
            embed_dim,
            output_layers,
            output_dim,
            multi_temporal,
            multi_temporal_output,
            pyramid_output,
            encoder_weights,
            download_url,
        ):
            super().__init__()
            self.input_bands, self.output_layers, self.output_dim = input_bands, output_layers, output_dim

    for name in ("pangaea", "pangaea.encoders", "pangaea.encoders.base"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["pangaea.encoders.base"].Encoder = Encoder
    left: dict = {}
    exec(compile(PANGAEA, "pangaea", "exec"), left)
    bands = {"optical": ["B2", "B3", "B4", "B8", "B8A"], "sar": ["VV", "VH"]}
    config = sized("demo", inputs=("rgb", "nir", "sar"), targets=("rgb",))
    multimae_eo.save(MultiMAE(config), "runs/sar")
    model = left["MultiMAEEOEncoder"]("runs/sar", bands, 64, [1, 3]).eval()
    optical, sar = torch.randint(200, 3000, (2, 5, 1, 64, 64)), -9 + torch.randn(2, 2, 1, 64, 64)
    maps = model({"optical": optical, "sar": sar})
    assert [m.shape for m in maps] == [(2, 96, 8, 8)] * 2
    assert model.output_dim == [96, 96]
    zeros = optical.clone()
    zeros[:, 3:] = 0  # bands that PANGAEA fills in
    absent = multimae_eo.load("runs/sar").see(
        {"optical": optical[:, :3, 0], "sar": sar[:, :, 0]},
        bands={"optical": ["B2", "B3", "B4"], "sar": ["VV", "VH"]},
        units="dn",
        product=["L2A", "descending"],
    )
    assert torch.allclose(model({"optical": zeros, "sar": sar})[-1], absent.places(), atol=1e-5)
