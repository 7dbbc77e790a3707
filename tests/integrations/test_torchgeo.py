"""TorchGeo itself: its data sets and samplers through our transform into models and tasks; the page runs."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("torchgeo")
pytest.importorskip("timm")
pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries, in versions that pip chooses

import rasterio  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402
from torchgeo.datasets import EuroSAT  # noqa: E402

import multimae_eo  # noqa: E402
from multimae_eo import MultiMAE, sized  # noqa: E402
from multimae_eo.cli import main  # noqa: E402
from multimae_eo.data.mmearth import MMEarth  # noqa: E402
from multimae_eo.data.synthetic import generate  # noqa: E402
from multimae_eo.errors import BatchError, DataError, UnknownNameError  # noqa: E402
from multimae_eo.integrations.torchgeo import PhysicalMMEarth, ToRasters  # noqa: E402
from multimae_eo.raster import OwnGrids  # noqa: E402

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "torchgeo.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
(SYNTHESIZE,) = re.findall(r"```sh\n(.*?)\n```", PAGE, re.DOTALL)
CLASSES = "AnnualCrop Forest HerbaceousVegetation Highway Industrial Pasture PermanentCrop Residential River SeaLake"


def write_eurosat(root: Path) -> None:
    """Images of noise in the layout that TorchGeo reads."""
    generator = np.random.default_rng(0)
    place = root / EuroSAT.base_dir
    names = []
    for name in CLASSES.split():
        (place / name).mkdir(parents=True)
        for i in range(2):
            names.append(f"{name}_{i}.jpg")
            profile = {"driver": "GTiff", "count": 13, "height": 64, "width": 64, "dtype": "uint16"}
            with rasterio.open(place / name / f"{name}_{i}.tif", "w", **profile) as file:
                file.write(generator.integers(300, 3000, (13, 64, 64)).astype(np.uint16))
    for split in ("train", "val", "test"):
        (root / EuroSAT.split_filenames[split]).write_text("\n".join(names))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Everything that the page's snippets, run one after the other, leave behind."""
    place = tmp_path_factory.mktemp("torchgeo")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        torch.manual_seed(0)
        multimae_eo.save(MultiMAE(sized("demo")), "runs/demo/checkpoint")
        write_eurosat(place / "data" / "eurosat")
        generate("data/mmearth", "data_1M_v001_64", tiles=12, seed=3)
        patch.setattr(EuroSAT, "_verify", lambda self: None)  # of the download's checksum
        main(shlex.split(SYNTHESIZE)[1:])
        left: dict = {}
        for snippet in SNIPPETS:
            exec(compile(snippet, "torchgeo.md", "exec"), left)
        yield left


def test_the_page(page):
    assert page["model"](torch.randint(200, 3000, (1, 3, 64, 64))).shape == (1, 10)
    assert page["vectors"].shape == (4, 96)
    assert page["maps"].shape == (4, 96, 7, 7)
    assert tuple(page["rasters"]) == ("rgb", "red_edge", "swir", "nir", "elevation", "land_cover")


def test_bands_of_eurosat_are_matched_by_name(page):
    dataset = EuroSAT("data/eurosat", split="train")
    batch = next(iter(DataLoader(dataset, batch_size=4)))
    rasters = ToRasters(sized("demo"), bands=dataset.all_band_names, units="dn", product="L1C")(batch)
    with rasterio.open(Path("data/eurosat") / EuroSAT.base_dir / "AnnualCrop" / "AnnualCrop_0.tif") as file:
        b8a, b08 = file.read(13), file.read(8)  # B8A comes last in EuroSAT, first in the modality
    assert np.array_equal(rasters["nir"].values[0].numpy(), np.stack([b8a, b08]).astype(np.float32))
    assert rasters["nir"].product.tolist() == [0] * 4
    l1c = {"bands": dataset.all_band_names, "units": "dn", "product": "L1C"}
    with pytest.raises(DataError, match="looks like reflectance"):
        ToRasters(sized("demo"), **l1c)({"image": batch["image"] / 1e4})
    with pytest.raises(BatchError, match="no 'image'; it has label"):
        ToRasters(sized("demo"))({"label": 1})
    with pytest.raises(UnknownNameError, match="band 'B13'"):
        ToRasters(sized("demo"), bands=["B13"], units="dn")({"image": batch["image"][:, :1]})


def test_chips_stay_the_same_and_feed_a_task(page, tmp_path):
    from multimae_eo.finetune_options import FinetuneOptions
    from multimae_eo.tasks.finetune import finetune

    chips = page["splits"]["train"]
    assert len(chips) == 24
    assert torch.equal(chips[5]["image"], chips[5]["image"])
    assert page["data"].about.bands[6:8] == ("B8A", "B08")
    options = FinetuneOptions(checkpoint=Path("runs/demo/checkpoint"), out=tmp_path / "run")
    options.data.image_px, options.optim.steps, options.optim.batch_size, options.data.workers = 56, 2, 4, 0
    options.trainer.accelerator, options.trainer.progress = "cpu", False
    result = finetune(options, page["data"])
    assert set(result.best.metrics) >= {"miou"}


def test_a_benchmark_data_set_feeds_a_task(page, tmp_path):
    from multimae_eo.data.torch_dataset import TorchSource
    from multimae_eo.finetune_options import ProbeOptions
    from multimae_eo.tasks.probe_run import probe

    names = {"train": "train", "valid": "val", "test": "test"}
    splits = {ours: EuroSAT("data/eurosat", split=theirs) for ours, theirs in names.items()}
    options = {"bands": EuroSAT.all_band_names, "classes": splits["train"].classes, "products": ("L1C",)}
    data = TorchSource(splits, name="eurosat", task="classification", **options)
    probed = ProbeOptions(checkpoint=Path("runs/demo/checkpoint"), out=tmp_path / "probe", protocols="knn")
    row = probe(probed, data)[0]
    assert 0 <= row["metrics"]["accuracy"][0] <= 1


def test_mmearth_is_what_our_own_reader_reads(page):
    config = sized("demo", inputs=(*sized("demo").inputs, "sar"), targets=("rgb",))
    arrays = ("sentinel2", "sentinel1_asc", "sentinel1_desc", "aster", "esa_worldcover")
    theirs = PhysicalMMEarth("data/mmearth", subset="MMEarth64", modalities=arrays)
    theirs.indices = list(range(12))  # all tiles, whatever their split
    ours = MMEarth(Path("data/mmearth/data_1M_v001_64"), list(config.modalities.values()))
    read = OwnGrids(config.modalities)(ours.read(list(range(12))))
    found = ToRasters(config)(next(iter(DataLoader(theirs, batch_size=12))))
    assert tuple(found) == config.input_modalities
    for name in config.input_modalities:
        a, b = found[name], read[name]
        valid = b.valid.expand_as(b.values)
        assert torch.equal(a.valid.expand_as(valid), valid), name
        assert torch.equal(torch.where(valid, a.values.float(), 0.0), torch.where(valid, b.values.float(), 0.0)), name
        seen = valid.flatten(1).any(dim=1)
        assert torch.equal(a.product[seen], b.product[seen]), name
    one = ToRasters(config)(theirs[3])
    assert all(torch.equal(one[n].values[0].nan_to_num(), found[n].values[3].nan_to_num()) for n in found)
