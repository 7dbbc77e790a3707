"""Every entry of docs/faq.md is the text of an error that is raised here, and says what to do."""

import os
import re
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from torch.utils.data import Dataset

pytest.importorskip("h5py")
pytest.importorskip("lightning")
rasterio = pytest.importorskip("rasterio")

from geobench_files import image, write_set  # noqa: E402
from geotiff_scene import make_scene, only  # noqa: E402
from geotiff_scene import write as write_tiff  # noqa: E402
from scenes import BANDS, save_model, save_predictor, smooth, write_raster, write_scene  # noqa: E402
from worlds import corrupt, edited, read_array, rewrite, write_world  # noqa: E402

import multimae_eo  # noqa: E402
from multimae_eo import sized  # noqa: E402
from multimae_eo.cli import main  # noqa: E402
from multimae_eo.data.folder import GeoTIFFFolder  # noqa: E402
from multimae_eo.data.geobench import GeoBench  # noqa: E402
from multimae_eo.data.geotiff import import_geotiffs  # noqa: E402
from multimae_eo.data.mmearth import MMEarth, read_statistics  # noqa: E402
from multimae_eo.data.patience import Patience  # noqa: E402
from multimae_eo.errors import MultiMAEError, UnreadError  # noqa: E402
from multimae_eo.finetune_options import FinetuneOptions, LabelledOptions, MachineOptions  # noqa: E402
from multimae_eo.inputs import read_images  # noqa: E402
from multimae_eo.integrations.backbone import encoder_of  # noqa: E402
from multimae_eo.maps import predict_map  # noqa: E402
from multimae_eo.maps.options import PredictOptions, SourceOptions, TileOptions  # noqa: E402
from multimae_eo.modalities import MODALITIES  # noqa: E402
from multimae_eo.options import DataOptions, ModelOptions, OptimOptions, PretrainOptions, TrainerOptions  # noqa: E402
from multimae_eo.reference import convert  # noqa: E402
from multimae_eo.tasks.evaluate import device_of  # noqa: E402
from multimae_eo.tasks.examples import Steps  # noqa: E402
from multimae_eo.tasks.finetune import finetune  # noqa: E402
from multimae_eo.tasks.labels import summarise  # noqa: E402
from multimae_eo.tasks.loading import Loader  # noqa: E402
from multimae_eo.tasks.run import build, pretrain  # noqa: E402
from multimae_eo.tasks.samples import set_up  # noqa: E402
from multimae_eo.tasks.state import StateFile  # noqa: E402

PAGE = (ROOT / "docs" / "faq.md").read_text()
ENTRIES = {key: text for text, key in re.findall(r"^### `(.+)` \{#([\w-]+)\}$", PAGE, re.MULTILINE)}
RGB = ["B04", "B03", "B02"]
ALL = sized("demo", inputs=("rgb", "nir", "elevation", "land_cover", "sar"), targets=("rgb",))
CASES: dict[str, Callable[[Path], object]] = {}


def case(key: str):
    def keep(cause: Callable[[Path], object]) -> Callable[[Path], object]:
        CASES[key] = cause
        return cause

    return keep


def images(bands: int = 3, edge: int = 16, samples: int = 2) -> np.ndarray:
    return np.random.default_rng(0).integers(200, 3000, (samples, bands, edge, edge))


def reading(key: str, given: object, **stated: object) -> None:
    """A case of arrays that are not read."""
    plain = {"bands": RGB, "units": "dn", "product": "L2A"} if not isinstance(given, dict) else {}
    CASES[key] = lambda _: read_images(given, ALL, **{**plain, **stated})


reading("unit-not-stated", images(), units=None)
reading("product-not-stated", images(), product=None)
reading("looks-like-reflectance", images() / 10_000)
reading("looks-like-dn", images(), units="reflectance")
reading("looks-like-standardised", images() / 500 - 3.0)
reading("looks-like-8-bit", (images() % 256).astype(np.uint8))
reading("looks-like-linear-power", {"S1GRD": images(2) / 3000}, product="descending")
reading("none-of-this-unit", {"DEM": np.full((2, 16, 16), -32768)})
reading("codes-without-a-meaning", {"LULC": np.full((2, 16, 16), 3)})
reading("bands-not-named", images(), bands=None)
reading("unknown-band", images(), bands=["B04", "B03", "B2O"])
reading("both-one-band", images(), bands=["B04", "B03", "red"])
reading("feed-no-input", images(1), bands=["B04"])
reading("have-the-shape", images(4))
reading("bands-of-a-key", {"S2L2A": images(13)})
reading("differ-in-shape", {"B04": images(1), "B03": images(1), "B02": images(1, edge=8)}, units="dn", product="L2A")


@case("no-input-for")
def _(_: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_images(images(4), ALL, bands=[*RGB, "B01"], units="dn", product="L2A")


@case("multiple-of-the-patch")
def _(_: Path) -> None:
    multimae_eo.Encoder(ALL)(images(edge=20), bands=RGB, units="dn", product="L2A")


@case("one-frame")
def _(_: Path) -> None:
    given = {"S2": images(), "DEM": np.full((2, 24, 24), 300.0)}
    multimae_eo.Encoder(ALL)(given, bands={"S2": RGB}, units="dn", product="L2A")


# --- checkpoints


@case("no-checkpoint")
def _(tmp: Path) -> None:
    multimae_eo.load(tmp)


@case("not-on-the-hub")
def _(tmp: Path) -> None:
    multimae_eo.load("nobody/no-such-model")


@case("does-not-fit")
def _(tmp: Path) -> None:
    model = save_model(tmp / "model")
    multimae_eo.load(model, sized("tiny"))


@case("damaged-weights")
def _(tmp: Path) -> None:
    (save_model(tmp / "model") / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1")
    multimae_eo.load(tmp / "model")


@case("without-a-head")
def _(tmp: Path) -> None:
    multimae_eo.load_predictor(save_model(tmp / "model"))


@case("weights-wanted")
def _(_: Path) -> None:
    encoder_of("base", None, pretrained=True)


@case("not-tensors")
def _(tmp: Path) -> None:
    (tmp / "weights.pth").write_text("<!DOCTYPE html>")
    convert(tmp / "weights.pth", tmp / "out")


@case("heads-not-known")
def _(tmp: Path) -> None:
    tensors = {
        "global_tokens": torch.zeros(1, 1, 32),
        "input_adapters.rgb.proj.weight": torch.zeros(32, 3, 8, 8),
        "output_adapters.rgb.out_proj.weight": torch.zeros(192, 16),
        "output_adapters.rgb.mask_token": torch.zeros(1, 1, 16),
        "encoder.0.norm1.weight": torch.zeros(32),
        "output_adapters.rgb.decoder_transformer.0.norm1.weight": torch.zeros(16),
    }
    torch.save({"model": tensors}, tmp / "weights.pth")
    convert(tmp / "weights.pth", tmp / "out")


# --- pre-training


def options(root: Path, out: Path, **changes: object) -> PretrainOptions:
    machine = TrainerOptions(accelerator="cpu", devices=1, panels=0, loggers=[], progress=False, log_every=1)
    model = ModelOptions(size="demo")
    optim = OptimOptions(batch_size=4, steps=1)
    data = DataOptions(root=root, workers=0, val_fraction=0.2)
    parts = {"model": model, "optim": optim, "data": data, "trainer": machine}
    return PretrainOptions(out=out, **{**parts, **changes})


@case("no-array")
def _(tmp: Path) -> None:
    views = ["rgb", "sar"]
    world = write_world(tmp, tiles=6)
    with edited(world, "band_stats") as table:
        table["sentinel1"] = {"mean": [-10.0] * 8, "std": [5.0] * 8}
    build(options(world, tmp / "out", model=ModelOptions(size="demo", inputs=views, targets=views)))


@case("no-data-set")
def _(tmp: Path) -> None:
    build(options(tmp, tmp / "out"))


@case("truncated-hdf5")
def _(tmp: Path) -> None:
    (tmp / "tiny.h5").write_text("<!DOCTYPE html>")
    main(["inspect", str(tmp / "tiny.h5")])


@case("damaged-row")
def _(tmp: Path) -> None:
    world = write_world(tmp, tiles=6)
    corrupt(world, "sentinel2", 5)
    main(["pack", str(world), str(tmp / "out")])


@case("one-block")
def _(tmp: Path) -> None:
    world = write_world(tmp, tiles=6)
    for name in ("lat", "lon"):
        rewrite(world, name, np.repeat(read_array(world, name)[:1], 6, axis=0))
    build(options(world, tmp / "out"))


@case("valid-tokens")
def _(tmp: Path) -> None:
    world = write_world(tmp, tiles=12)
    rewrite(world, "sentinel2", np.zeros_like(read_array(world, "sentinel2")))
    views = ["rgb", "nir"]
    pretrain(options(world, tmp / "out", model=ModelOptions(size="demo", inputs=views, targets=views)))


@case("holds-a-run")
def _(tmp: Path) -> None:
    world, out = write_world(tmp, tiles=12), tmp / "out"
    out.mkdir()
    (out / "metrics.csv").write_text("step\n")
    pretrain(options(world, out))


@case("not-finite")
def _(tmp: Path) -> None:
    optim = OptimOptions(batch_size=4, steps=4, lr=1e30, warmup_steps=1, warmup_lr=1e30, max_skipped=1)
    pretrain(options(write_world(tmp, tiles=12), tmp / "out", optim=optim))


@case("being-written")
def _(tmp: Path) -> None:
    hold = "import sys, pathlib, multimae_eo.whole as w\nwith w.claimed(pathlib.Path(sys.argv[1])): print(1); input()"
    command = [sys.executable, "-uc", hold, str(tmp / "out")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        try:
            pretrain(options(write_world(tmp, tiles=12), tmp / "out"))
        finally:
            holder.communicate(b"\n")


def unreadable() -> object:
    raise UnreadError("row 3 cannot be read: the chunk is damaged.")


@case("tried-again")
def _(tmp: Path) -> None:
    Patience(0, 0, None).read("row 3", unreadable)


@case("too-many-unread")
def _(tmp: Path) -> None:
    patience = Patience(0, 1, tmp / "unread.csv")
    for name in ("row 3", "row 4"):
        patience.read(name, unreadable)


class Killed(Dataset[int]):
    def __getitem__(self, index: int) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return index


@case("killed-readers")
def _(tmp: Path) -> None:
    list(Loader(Killed(), [[0]], workers=1, collate_fn=list, retries=0))


@case("no-room-for-the-state")
def _(tmp: Path) -> None:
    StateFile().save_checkpoint({"global_step": 7}, Path("/proc/none/last.ckpt"))


@case("statistics-of-one-product")
def _(tmp: Path) -> None:
    world = write_world(tmp, tiles=6)
    with edited(world, "band_stats") as table:
        del table["sentinel2_l1c"]
    MMEarth(world, list(read_statistics(world, [MODALITIES["rgb"]]).values())).read([0, 1])


@case("unknown-modality")
def _(_: Path) -> None:
    ModelOptions(inputs=["RGB"]).config()


@case("batch-too-large")
def _(tmp: Path) -> None:
    build(options(write_world(tmp, tiles=6), tmp / "out", optim=OptimOptions()))


@case("multiple-of-the-devices")
def _(_: Path) -> None:
    Steps(np.arange(100), batch_size=10, steps=1, seed=0, ranks=4)


@case("cannot-be-cropped")
def _(tmp: Path) -> None:
    build(options(write_world(tmp, tiles=12, tile_px=32), tmp / "out"))


@case("trainer-cannot-be-used")
def _(tmp: Path) -> None:
    run = TrainerOptions(accelerator="gpu", panels=0, loggers=[], progress=False)
    pretrain(options(write_world(tmp, tiles=12), tmp / "out", trainer=run))


# --- fine-tuning


def folder(tmp: Path, *, bands: int = 4, mask: int = 1, label: str = "", splits: str = "train,valid,test") -> Path:
    """GeoTIFFs with a table: masks of classes 0 and 1, or one label."""
    rows = ["path,label,split" if label else "path,mask,split"]
    for i, split in enumerate(splits.split(",")):
        write_tiff(tmp / f"{i % 3}.tif", images(bands, 16, 1)[0].astype(np.uint16))
        codes = np.zeros((1, 16, 16), np.uint8)
        codes[0, :4] = mask
        write_tiff(tmp / f"m{i % 3}.tif", codes)
        rows.append(f"{i % 3}.tif,{label or f'm{i % 3}.tif'},{split}")
    (tmp / "labels.csv").write_text("\n".join(rows) + "\n")
    return tmp


def opened(root: Path, **changes: object) -> GeoTIFFFolder:
    plain = {"task": "segmentation", "bands": ["B02", "B03", "B04", "B08"], "classes": ["a", "b"]}
    return GeoTIFFFolder(root, **{**plain, **changes})


@case("cannot-be-fed")
def _(tmp: Path) -> None:
    set_up(opened(folder(tmp)), ALL, LabelledOptions(inputs=["sar"]))


@case("half-of-its-bands")
def _(tmp: Path) -> None:
    set_up(opened(folder(tmp), bands=["B04", "B01", "-", "-"]), ALL, LabelledOptions())


@case("none-of-the-products")
def _(tmp: Path) -> None:
    set_up(opened(folder(tmp)), ALL, LabelledOptions(statistics="model"))


@case("leak")
def _(tmp: Path) -> None:
    opened(folder(tmp, splits="train,valid,test,test"))


@case("mask-holds")
def _(tmp: Path) -> None:
    summarise(opened(folder(tmp, mask=255)))


@case("expected-channels")
def _(tmp: Path) -> None:
    opened(folder(tmp, bands=5)).read("0.tif")


@case("one-class")
def _(tmp: Path) -> None:
    summarise(opened(folder(tmp, label="a"), task="classification"))


@case("class-0")
def _(tmp: Path) -> None:
    write_set(tmp, "m-cashew-plant", size=16)
    GeoBench(tmp, "m-cashew-plant")


@case("refused-pickle")
def _(tmp: Path) -> None:
    import pickle

    import h5py

    sample_id, path = image(write_set(tmp, "m-eurosat", size=8))
    with h5py.File(path, "r+") as file:
        file.attrs["pickle"] = str(pickle.dumps({"label": Path("x")}))
    GeoBench(tmp, "m-eurosat").label(sample_id)


@case("holds-a-fine-tuning")
def _(tmp: Path) -> None:
    (tmp / "config.yaml").write_text("")
    finetune(FinetuneOptions(checkpoint=tmp, out=tmp))


@case("checkpoint-not-set")
def _(tmp: Path) -> None:
    finetune(FinetuneOptions(out=tmp / "out"), opened(folder(tmp)))


@case("no-gpu")
def _(_: Path) -> None:
    device_of(MachineOptions(accelerator="gpu"))


@case("no-cell")
def _(tmp: Path) -> None:
    words = ["--data-root", str(tmp), "--datasets", "m-eurosat", "--out", str(tmp / "out")]
    main(["geobench", "--checkpoint", str(save_model(tmp / "model")), *words])


# --- maps


def mapping(tmp: Path, sources: dict[str, object], **fields: object) -> None:
    found = {name: SourceOptions(one) if isinstance(one, str) else one for name, one in sources.items()}
    tiles = TileOptions(progress=False, device="cpu")
    predict_map(PredictOptions(save_predictor(tmp / "task"), source=found, out=tmp / "map.tif", tiles=tiles, **fields))


@case("no-source-band")
def _(tmp: Path) -> None:
    path = write_raster(tmp / "x.tif", smooth((1, 64, 64)).astype(np.uint16), ["B01"])
    mapping(tmp, {"s2": str(path)})


@case("no-source-file")
def _(tmp: Path) -> None:
    mapping(tmp, {"s2": "none.tif"})


@case("no-geotiff")
def _(tmp: Path) -> None:
    (tmp / "x.vrt").write_text("<VRTDataset></VRTDataset>")
    mapping(tmp, {"s2": str(tmp / "x.vrt")})


@case("unknown-product")
def _(tmp: Path) -> None:
    mapping(tmp, {"s2": SourceOptions(write_scene(tmp)["s2"], product="L9Z")})


@case("tile-size")
def _(tmp: Path) -> None:
    options = TileOptions(size=13)
    predict_map(PredictOptions(save_predictor(tmp / "task"), source=write_scene(tmp), tiles=options))


@case("target-not-set")
def _(tmp: Path) -> None:
    main(["fill", str(save_model(tmp / "model")), "--source", f"s2={write_scene(tmp)['s2']}"])


@case("does-not-describe")
def _(tmp: Path) -> None:
    path = write_raster(tmp / "x.tif", smooth((3, 64, 64)).astype(np.uint16))
    mapping(tmp, {"s2": str(path)})


@case("scene-of-reflectance")
def _(tmp: Path) -> None:
    path = write_raster(tmp / "x.tif", (smooth((10, 64, 64)) / 10_000).astype(np.float32), BANDS)
    mapping(tmp, {"s2": SourceOptions(str(path), product="L2A")})


@case("offset-of-a-scene")
def _(tmp: Path) -> None:
    path = write_raster(tmp / "x.tif", np.full((10, 64, 64), 700, np.uint16), BANDS)
    mapping(tmp, {"s2": SourceOptions(str(path), product="L2A")}, allow_missing=True)


@case("scene-lacks")
def _(tmp: Path) -> None:
    mapping(tmp, {"s2": write_scene(tmp)["s2"]})


@case("no-reference-system")
def _(tmp: Path) -> None:
    path = write_raster(tmp / "x.tif", smooth((10, 64, 64)).astype(np.uint16), BANDS, crs=None)
    mapping(tmp, {"s2": SourceOptions(str(path), product="L2A", offset="off")})


@case("no-overlap")
def _(tmp: Path) -> None:
    scene = write_scene(tmp)
    write_raster(tmp / "dem.tif", smooth((1, 64, 64)).astype(np.float32), west=900_000)
    mapping(tmp, scene)


# --- import


@case("another-grid")
def _(tmp: Path) -> None:
    scene = make_scene(tmp)
    write_tiff(scene / "dem/alp.tif", np.full((1, 50, 70), 300, np.float32), origin=(500_005.0, 5_000_000.0))
    import_geotiffs(only(scene, "s2_l2a", dem=only(scene, "dem").dem), say=lambda _: None)


@case("ten-metres")
def _(tmp: Path) -> None:
    scene = make_scene(tmp)
    with rasterio.open(scene / "l2a/alp.tif") as file:
        values, names = file.read(), file.descriptions
    write_tiff(scene / "l2a/alp.tif", values, edge=20, names=names)
    import_geotiffs(only(scene, "s2_l2a"), say=lambda _: None)


@case("offset-of-files")
def _(tmp: Path) -> None:
    scene = make_scene(tmp)
    with rasterio.open(scene / "l2a/alp.tif") as file:
        values, names = file.read(), file.descriptions
    write_tiff(scene / "l2a/alp.tif", np.maximum(values, 700), names=names)
    import_geotiffs(only(scene, "s2_l2a"), say=lambda _: None)


# --- the command line


@case("not-installed")
def _(tmp: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(sys.modules, "multimae_eo.tasks.run")  # so that it is imported again
        patch.setitem(sys.modules, "lightning", None)
        main(["pretrain", "--data.root", str(tmp)])


@case("unknown-option")
def _(tmp: Path) -> None:
    main(["pretrain", "--optim.batchsize", "8"])


@case("no-options")
def _(tmp: Path) -> None:
    (tmp / "run.yaml").write_text("")
    main(["pretrain", "--config", str(tmp / "run.yaml")])


@case("class-path")
def _(tmp: Path) -> None:
    (tmp / "run.yaml").write_text("trainer: {class_path: os.PathLike}\n")
    main(["pretrain", "--config", str(tmp / "run.yaml")])


@case("no-folder")
def _(tmp: Path) -> None:
    (tmp / "out").write_text("")
    main(["synthesize", "--out", str(tmp / "out"), "--tiles", "2", "--tile_px", "16", "--workers", "1"])


@case("not-written")
def _(tmp: Path) -> None:
    (tmp / "out").write_text("")
    main(["reconstruct", str(save_model(tmp / "model")), str(write_world(tmp)), "--out", str(tmp / "out/picture.png")])


@case("exists-already")
def _(tmp: Path) -> None:
    (tmp / "world").mkdir()
    main(["synthesize", "--out", str(tmp), "--name", "world"])


@case("broke-off")
def _(tmp: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("multimae_eo.data.web.BACKOFF_S", ())
        main(["download", "mmearth64", "--out", str(tmp), "--base", "http://127.0.0.1:9"])


def test_every_entry_has_a_cause_and_every_cause_an_entry():
    assert set(ENTRIES) == set(CASES)
    assert len(ENTRIES) >= 25


def as_pattern(text: str) -> str:
    """The text of an entry, where ... stands for anything."""
    return ".*".join(re.escape(part.strip()) for part in text.split("...") if part.strip())


@pytest.mark.parametrize("key", CASES)
def test_the_error_is_raised(key, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    try:
        CASES[key](tmp_path)
    except (MultiMAEError, UserWarning) as error:
        said = str(error)
    except SystemExit:
        said = capfd.readouterr().err
    else:
        pytest.fail("nothing was raised")
    assert re.search(as_pattern(ENTRIES.get(key, "?")), said, re.DOTALL), said


@pytest.mark.parametrize("key", ENTRIES)
def test_an_entry_says_what_it_means_and_what_to_do(key):
    (body,) = re.findall(rf"\{{#{key}\}}\n\n(.*?)(?=\n##|\Z)", PAGE, re.DOTALL)
    assert "**Do:**" in body
