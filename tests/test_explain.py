"""What a path is, in plain words: every kind, made by the package itself, real samples, and what is neither."""

import functools
import json
import shlex
import shutil
from contextlib import suppress
from datetime import datetime

import h5py
import numpy as np
import pytest
import rasterio
from conftest import ROOT
from geobench_files import write_set
from scenes import BANDS, save_model, save_predictor, smooth, write_raster, write_scene
from worlds import PAPER_ARRAYS, rewrite, write_world

from multimae_eo import cli
from multimae_eo.checkpoint import load_model
from multimae_eo.data.mmearth import read_statistics
from multimae_eo.data.packing import pack
from multimae_eo.data.synthetic import generate_scene
from multimae_eo.errors import CheckpointError, DataError, MultiMAEError
from multimae_eo.explain.kinds import explain
from multimae_eo.explain.page import WIDTH, command, table
from multimae_eo.modalities import MODALITIES
from multimae_eo.visualize_tiles import save_tiles

# What the commands of a page leave to the reader.
LEFT = ("CHECKPOINT", "FINETUNED", "_OR_", "NAME", "DIR", "IMPORT.yaml")


def flat(text: str) -> str:
    """A page without its layout; no line but one with a path is wider than a page."""
    assert all(len(line) <= WIDTH or "/" in line for line in text.splitlines())
    return " ".join(text.split())


def says(text: str, *parts: str) -> None:
    assert [part for part in parts if part not in flat(text)] == [], text


def commands_of(text: str) -> list[list[str]]:
    """The command lines of a page as words, without the program's name; all of them must be known to the parser."""
    lines = text.replace("\\\n", "").splitlines()
    found = [shlex.split(line)[1:] for line in lines if line.strip().startswith("multimae-eo ") and "takes" not in line]
    for words in found:
        if not any(place in " ".join(words) for place in LEFT):
            parser().parse_args(cli.as_parsed(words))
    return found


parser = functools.cache(cli.build_parser)


def test_a_pretrained_checkpoint(tmp_path, monkeypatch):
    path = save_model(tmp_path / "model")
    number = sum(p.numel() for p in load_model(path).parameters())
    monkeypatch.setattr("safetensors.torch.load_file", None)  # no weight is read
    text = explain(path)
    says(text, "Pre-trained checkpoint ", f"parameters {number / 1e6:.2f} M (", "demo: 4 blocks, 96 wide, 3 heads")
    says(
        text, "images 56 x 56 px of 10 m (560 m), patches of 8 x 8 px", "rgb:patch", "swir B11 B12 reflectance x 10000"
    )
    says(text, 'encoder(images, bands=["B04", "B03", "B02"], units="dn", product="L2A")')
    assert {words[0] for words in commands_of(text)} == {"finetune", "embed"}
    assert explain(path / "config.json") == text
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="is not a safetensors file, or is damaged"):
        explain(path)


TUNED = {
    "segmentation": "for every pixel one of 3 classes: a, b, c",
    "multilabel": "for every image any number of 3 classes: a, b, c",
    "regression": "for every pixel a number in t/ha",
}


@pytest.mark.parametrize("task", TUNED)
def test_a_fine_tuned_checkpoint(task, tmp_path):
    path = save_predictor(tmp_path / "best", task, steps=7, image_px=32)
    text = explain(path)
    says(text, f"Fine-tuned checkpoint: {task} ", TUNED[task], "fine-tuned on images of 32 px", "recorded steps 7")
    assert commands_of(text)[0][:6] == ["predict", str(path), "--source", "s2=S2.tif", "--source", "dem=DEM.tif"]


def test_runs(tmp_path):
    run = tmp_path / "run"
    (run / "state").mkdir(parents=True)
    (run / "metrics.csv").write_text("step,kind,val/loss\n0,val,3.5\n40,val,1.25\n")
    (run / "config.yaml").write_text("seed: 0\n")
    text = explain(run)
    assert "trained 40 steps, last validation loss 1.25; not finished, or it was interrupted" in flat(text)
    assert [words[0] for words in commands_of(text)] == ["pretrain", "report"]
    save_predictor(run / "best")
    (run / "results.json").write_text(json.dumps({"best": {"miou": [0.5, 0.4, 0.6]}, "last": None}))
    text = explain(run / "config.yaml")
    assert "on test miou 0.500 (0.400 to 0.600)" in flat(text)
    assert commands_of(text) == [["inspect", str(run / "best")], ["report", str(run)]]
    (run / "results.json").write_text("[")
    with pytest.raises(DataError, match=r"results.json' is not JSON"):
        explain(run)


def test_a_data_set_of_tiles_and_its_picture(world, tmp_path):
    text = explain(world, out=tmp_path / "tiles.png")
    splits = json.loads((world / "synthetic_splits.json").read_text())
    assert "Data set in the MMEarth layout: 60 tiles of 64 x 64 px (640 m)" in text
    assert f"splits train {len(splits['train'])}, val {len(splits['val'])} places " in flat(text)
    with h5py.File(world / "synthetic.h5") as file:
        share_of = (file["metadata"]["S2_type"] == b"l2a").mean()
    assert f"nir B8A B08 L1C {100 - 100 * share_of:.0f} %, L2A {100 * share_of:.0f} %" in flat(text)
    assert all(f" {m.name} {' '.join(m.bands)} " in flat(text) for m in MODALITIES.values())
    assert " no: " not in text
    assert commands_of(text) == [["pretrain", "--data.root", str(world)]]
    assert text.endswith(f"Look at {tmp_path / 'tiles.png'}.")
    assert (tmp_path / "tiles.png").read_bytes().startswith(b"\x89PNG")
    assert explain(world.parent) == explain(world / "synthetic.h5") == text.rsplit("\n\n", 1)[0]
    many = np.zeros(4000)  # as a density, without months
    assert save_tiles(many, many + 9, np.empty(0, int), many - 1, tmp_path / "many.png", title="many").exists()


def test_what_a_data_set_lacks(tmp_path):
    folder = write_world(tmp_path, arrays=PAPER_ARRAYS, tile_px=32)
    text = explain(folder)
    assert "sar VV VH no: it has no array 'sentinel1', which 'sar' needs canopy_height" in flat(text)
    assert "--model.image_size 32" in text
    assert "--model.inputs" not in text
    rewrite(folder, "aster", np.zeros((24, 2, 32, 32), np.float64))
    text = explain(folder)
    assert "expected int16 [tiles, 2, height, width], got float64" in flat(text)
    assert "'[rgb,red_edge,swir,nir,land_cover]'" in text
    commands_of(text)
    (folder / "tiny_band_stats.json").unlink()
    assert "no: it is missing" in explain(folder)
    for name in ("lat", "month"):
        rewrite(folder, name, None)
    text = explain(folder, out=tmp_path / "tiles.png")
    assert "places not known" in flat(text)
    assert text.endswith("No picture: it is not known where the tiles lie.")
    assert not (tmp_path / "tiles.png").exists()


def test_tiles_without_a_pixel_are_no_product(tmp_path):
    folder = write_world(tmp_path, arrays=(*PAPER_ARRAYS, "sentinel1", "canopy_height_eth"), tile_px=32)
    with h5py.File(folder / "tiny.h5", "r+") as file:
        for i in range(18):
            file["sentinel1"][i] = -np.inf
        file["canopy_height_eth"][...] = 127
    text = flat(explain(folder))
    assert "sar VV VH descending 8 %, ascending 8 %, none in 83 % " in text  # two of the others have none either
    assert "canopy_height chm no: no pixel is measured in the 24 tiles that were read" in text


def test_a_packed_copy(world, tmp_path):
    chosen = [MODALITIES[name] for name in ("rgb", "elevation")]
    folder = pack(world, tmp_path, list(read_statistics(world, chosen).values()), tiles_per_shard=40)
    text = explain(folder, out=tmp_path / "tiles.png")
    assert text.startswith("Packed copy of a data set: 60 tiles of 64 x 64 px (640 m)")
    assert text.splitlines()[3:5] == explain(world).splitlines()[3:5]  # splits and places
    assert "nir B8A B08 no: it has no 'nir' elevation" in flat(text)
    assert "'[rgb,elevation:sample]'" in text
    commands_of(text)
    assert (tmp_path / "tiles.png").exists()


def test_foreign_hdf5(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["image"] = np.zeros(3)
    with pytest.raises(DataError, match="has no array 'metadata'"):
        explain(tmp_path / "x.h5")


def test_a_set_of_geobench(labelled_world):
    folder = labelled_world / "segmentation_v1.0" / "synthetic-map"
    text = explain(folder)
    says(text, "GEO-Bench set synthetic-map: segmentation, 12 classes ", "splits train 30, valid 6, test 24")
    says(
        text,
        "settings rgb-only, multispectral, rgb-relief",
        "lacks land_cover (needs worldcover), canopy_height (needs",
    )
    finetune = commands_of(text)[1]
    assert (ROOT / finetune[finetune.index("--config") + 1]).is_file()
    assert explain(next(folder.glob("*.hdf5"))) == text


def test_geobench_corrected_incomplete_and_foreign(tmp_path):
    eurosat = write_set(tmp_path, "m-eurosat", train=3, valid=2, test=2, size=8)
    text = flat(explain(eurosat))
    assert "units those of L1C" in text
    assert "band names corrected: what the files call 08A" in text
    cashew = explain(write_set(tmp_path, "m-cashew-plant", train=3, valid=2, test=2, size=8))
    assert all("--data.ignore_class0" in words for words in commands_of(cashew))
    next(eurosat.glob("*.hdf5")).unlink()
    text = explain(eurosat)
    assert "names 1 of 7 images that are not in the folder" in flat(text)
    assert commands_of(text) == [["download", "geobench:m-eurosat", "--out", str(tmp_path)]]
    text = explain(tmp_path)
    assert text.startswith("GEO-Bench: 2 sets\n")
    assert "m-eurosat classification 10 not complete rgb-only, multispectral" in flat(text)
    assert ["download", "geobench:NAME", "--out", str(tmp_path)] in commands_of(text)
    assert explain(tmp_path / "classification_v1.0") == text
    with pytest.raises(DataError, match="a set is known by the name of its folder"):
        explain(eurosat.rename(tmp_path / "mine"))


def test_the_synthetic_scene_and_the_command_that_embeds_it(tmp_path, monkeypatch):
    folder = generate_scene(tmp_path, tile_px=64)
    text = explain(folder)
    says(text, "of 4 rasters, as sources of one scene", "baseline 02.14", "lacks canopy_height (needs chm)")
    words = next(words for words in commands_of(text) if words[0] == "embed")
    assert [w for w in words if "=" in w] == [f"{n}={folder}/{n}.tif" for n in ("dem", "s1", "s2", "worldcover")]
    monkeypatch.chdir(tmp_path)
    words[1] = str(save_model(tmp_path / "model"))
    cli.main([*words, "--tiles.progress", "false", "--preview", "false"])
    assert (tmp_path / "embeddings.tif").exists()


def test_one_geotiff(tmp_path):
    write_scene(tmp_path)
    text = explain(tmp_path / "s2.tif")
    says(text, "GeoTIFF: 10 bands ", "grid EPSG:32632, 150 x 130 px of 10 x 10", "product L2A", "B08 s2.tif, 7 uint16 ")
    says(text, "numbers reflectance x 10000: 1", "+1000 the numbers do not carry it: tag PROCESSING_BASELINE")
    says(text, "feeds rgb, red_edge, swir, nir lacks")
    with rasterio.open(tmp_path / "s2.tif", "r+") as file:
        stored = file.read()
        file.write(np.where(stored, stored + 1000, 0).astype(np.uint16))
        file.scales, file.offsets = (1e-4,) * 10, (-0.1,) * 10
    says(explain(tmp_path / "s2.tif"), "+1000 the file's numbers carry it: the offset that it states takes it off")
    says(explain(tmp_path / "dem.tif"), "numbers m: 200 to 900 in dem")


FIELD, RGB = smooth((3, 50, 60), low=200, high=2000), ("B04", "B03", "B02")
FLOOR, DEGREES = np.maximum(FIELD, 1150), {"crs": "EPSG:4326", "pixel": 0.0001, "west": 8}
CIRRUS = np.r_[FLOOR, 0 * FIELD[:1] + 1008]  # a map does not look at B10, so that what it tells has to be said
WORD = {  # what needs a word: values, their type, bands, about the file, and what is told
    "any": (np.zeros((40, 8, 8)), "u2", (), {}, ["bands '[B02, B03, ...]'", "and 8 more bands", "cannot be mapped as"]),
    "degrees": (FIELD, "u2", RGB, DEGREES, ["a map resamples it to 10 m"]),
    "nowhere": (FIELD, "u2", RGB, {"crs": None}, ["gdal_edit.py -a_srs EPSG:<code>", "cannot be mapped as it is"]),
    "share": (FIELD / 1e4, "f4", RGB, {}, ["looks like reflectance. Set --source.s2.scale 10000", "embed CHECKPOINT"]),
    "picture": (FIELD / 8, "u1", RGB, {}, ["looks like 8-bit numbers", "cannot be mapped as it is"]),
    "dark": (FLOOR, "u2", RGB, {}, ["+1000 cannot be told: ", "--source.s2.offset ON_OR_OFF"]),
    "cirrus": (CIRRUS, "u2", (*RGB, "B10"), {}, ["taken off: the darkest", "--source.s2.offset on"]),
    "worldcover": (np.arange(1, 5).repeat(100).reshape(1, 20, 20), "u1", (), {}, ["no meaning here: 1, 2, 3, 4;"]),
}


@pytest.mark.parametrize("name", WORD)
def test_bands_places_and_units_that_need_a_word(name, tmp_path):
    values, kind, bands, about, told = WORD[name]
    says(explain(write_raster(tmp_path / f"{name}.tif", values.astype(kind), bands, **about)), *told)


def test_a_sentinel_2_product(tmp_path):
    safe = tmp_path / "S2A_MSIL2A_20230615T101601_N0509_R065_T32TQM_20230615T161201.SAFE"
    for band, metres in (("B02", 10), ("B04", 10), ("B03", 10), ("B11", 20), ("SCL", 20)):
        edge = 600 // metres
        array = np.full((1, edge, edge), 4, np.uint8) if band == "SCL" else smooth((1, edge, edge), low=1100)
        path = safe / "GRANULE" / "L2A" / "IMG_DATA" / f"R{metres}m" / f"T32TQM_20230615T101601_{band}_{metres}m.tif"
        write_raster(path, array.astype(np.uint8 if band == "SCL" else np.uint16), pixel=float(metres))
    text = explain(safe)
    says(
        text, ".SAFE: 5 bands", "date 2023-06-15 product L2A", "feeds rgb, swir (without B12)", "mask SCL", "+1000 the"
    )


def test_netcdf_and_zarr(tmp_path):
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("odc.geo.xr")
    field = smooth((4, 50, 60), low=100, high=2000).astype(np.float32).reshape(2, 2, 50, 60)
    x, y = 500_000 + 20 * (np.arange(60) + 0.5), 5_300_000 - 20 * (np.arange(50) + 0.5)
    arrays = {n: (("time", "y", "x"), f) for n, f in zip(("S2-L2A-B03", "heat"), field, strict=True)}
    days = [np.datetime64("2021-05-04"), np.datetime64("2021-05-09")]
    cube = xarray.Dataset(arrays, {"time": days, "y": y, "x": x}).odc.assign_crs("EPSG:32632")
    cube.to_netcdf(tmp_path / "s2.nc", engine="h5netcdf")
    cube.to_zarr(tmp_path / "s2.zarr", consolidated=False)
    for name, kind in (("s2.nc", "NetCDF"), ("s2.zarr", "Zarr")):
        options = "--source.s2.date 2021-05-09 --source.s2.product L1C_OR_L2A"
        says(explain(tmp_path / name), f"{kind}: 2 bands ", "grid EPSG:32632, 60 x 50 px of 20 x 20", options)


def test_a_stac_item(tmp_path):
    pystac = pytest.importorskip("pystac")
    pytest.importorskip("odc.stac")
    item = pystac.Item("tile", None, None, datetime(2023, 6, 1), {}, collection="sentinel-2-l2a")
    for name in ("red", "green", "blue", "visual"):
        item.add_asset(name, pystac.Asset(f"https://nowhere.invalid/{name}.tif"))  # nothing is fetched
    (tmp_path / "item.json").write_text(json.dumps(item.to_dict()))
    says(explain(tmp_path / "item.json"), "STAC item: 3 bands ", "date 2023-06-01 product L2A")


def test_folders_of_many_rasters(tmp_path):
    field = smooth((10, 20, 20)).astype(np.uint16)
    for name in ("a/s2.tif", "b/s2.tif", "b/s2_later.tif"):
        write_raster(tmp_path / name, field, BANDS)
    text = explain(tmp_path)
    assert text.startswith("3 rasters in 2 folders\n")
    assert commands_of(text)[1] == ["inspect", str(tmp_path / "a" / "s2.tif")]
    text = explain(tmp_path / "b")
    assert "of 2 rasters, some the same: each is a scene of its own" in text
    assert text.count("--source s2=") == 1


def test_what_is_nothing_of_the_package(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("some.txt", "other.json", "model.pth"):
        (tmp_path / name).write_text("{}")
    expected = {
        "nowhere/at/all": "does not exist",
        "empty": "it is a folder that holds nothing. Expected a checkpoint directory",
        "some.txt": "it is a file of another kind",
        "other.json": "cannot be explained",
        "model.pth": "such files are not opened here.*multimae-eo convert",
        "": "it is a folder that holds empty, model.pth, other.json, some.txt",
    }
    for name, message in expected.items():
        with pytest.raises(DataError, match=message):
            explain(tmp_path / name)


def test_any_file_cut_short_is_a_user_error(world, tmp_path):
    random = np.random.default_rng(0)
    generate_scene(tmp_path, tile_px=64)
    save_predictor(tmp_path / "best")
    shutil.copytree(world, tmp_path / "synthetic")
    pack(world, tmp_path / "packed", list(read_statistics(world, [MODALITIES["rgb"]]).values()))
    write_set(tmp_path / "bench", "m-so2sat", train=1, valid=1, test=1, size=8)
    for path in [p for p in sorted(tmp_path.rglob("*")) if p.is_file()]:
        whole = path.read_bytes()
        for size in (int(random.integers(len(whole))), int(0.97 * len(whole))):
            path.write_bytes(whole[:size])
            for place in (path, path.parent):
                with suppress(MultiMAEError):
                    explain(place)
        path.write_bytes(whole)


REAL = {
    "bigearthnet_v2": ["18 rasters in 9 folders"],
    "terramesh/S2L1C/282D_485L_3_3.tif": ["product L1C", "int16 1004 to 1020"],
    "ssl4eo_s12/s2c/20200604T054639_20200604T054831_T43RCP": ["Folder: 13 bands", "date 2020-06-04", "not carry it"],
    "geobench": ["GEO-Bench: 4 sets"],
    "geobench/classification_v1.0/m-eurosat": ["splits train 5", "would leak into the other", "allow_leaks true"],
    "geobench/segmentation_v1.0/m-chesapeake": ["settings rgb-only"],
    "worldcereal/worldcereal_preprocessed_inputs.nc": ["date 2021-10-01", "nir (without B8A), elevation"],
}


@pytest.mark.parametrize("path", REAL)
def test_real_samples(shared, path):
    if (shared / "real" / path).exists():
        says(explain(shared / "real" / path), *REAL[path])


def test_tables_and_commands_fit_the_page():
    assert flat(table(["name", "text"], [["a", "word " * 60], ["b", ""]]))
    long = command("embed", "CHECKPOINT", *["--source", "name=some folder of a file.tif"] * 5)
    assert flat(long)
    assert shlex.split(long.replace("\\\n", ""))[4] == "name=some folder of a file.tif"
