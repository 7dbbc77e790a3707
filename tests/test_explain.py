"""What a path is, in plain words: every kind, made by the package itself, real samples, and what is neither."""

import functools
import json
import re
import shlex
import shutil
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import ROOT
from geobench_files import write_set
from rasterio.enums import Resampling
from rasterio.shutil import copy as copy_raster
from scenes import BANDS, save_model, save_predictor, smooth, write_raster, write_scene
from worlds import PAPER_ARRAYS, rewrite, write_world

from multimae_eo import cli
from multimae_eo.checkpoint import load_model
from multimae_eo.data.geobench_sets import SETS
from multimae_eo.data.mmearth import read_statistics
from multimae_eo.data.packing import pack
from multimae_eo.data.synthetic import generate_scene
from multimae_eo.errors import CheckpointError, DataError, MultiMAEError
from multimae_eo.explain import source as sources
from multimae_eo.explain import tiles
from multimae_eo.explain.kinds import EXPECTED, explain
from multimae_eo.explain.page import WIDTH, command, share, table
from multimae_eo.explain.scene import guess_unit
from multimae_eo.explain.source import EUROSAT, USUAL, usual_order
from multimae_eo.modalities import MODALITIES

# What the commands of a page leave to the reader.
LEFT = ("CHECKPOINT", "FINETUNED", "ON_OR_OFF", "NAME", "DIR", "TASK", "IMPORT.yaml")


def facts_of(text: str) -> dict[str, str]:
    """Lines that begin with a name, and what follows until the next; of several with one name the last."""
    found, name = {}, ""
    for line in text.splitlines():
        if match := re.match(r"  ([\w+-]+(?: \w+)?) {2,}(\S.*)", line):
            name = match[1]
            found[name] = match[2]
        elif name and line.startswith("     "):
            found[name] += " " + line.strip()
        else:
            name = ""
    return found


def commands_of(text: str) -> list[list[str]]:
    """The command lines of a page as words, without the program's name; all of them must be known to the parser."""
    lines = text.replace("\\\n", "").splitlines()
    found = [shlex.split(line, comments=True)[1:] for line in lines if line.strip().startswith("multimae-eo ")]
    for words in found:
        if words[0] in cli.COMMANDS and "takes" not in words and not any(place in " ".join(words) for place in LEFT):
            parser().parse_args(cli.as_parsed(words))
    return found


parser = functools.cache(cli.build_parser)


def wide_lines(text: str, *paths: Path) -> list[str]:
    """Lines wider than a page; those with a path may be."""
    return [line for line in text.splitlines() if len(line) > WIDTH and not any(str(p) in line for p in paths)]


# Checkpoints and runs.


def test_a_pretrained_checkpoint(tmp_path, monkeypatch):
    path = save_model(tmp_path / "model")
    number = sum(p.numel() for p in load_model(path).parameters())
    monkeypatch.setattr("safetensors.torch.load_file", None)  # no weight is read
    text = explain(path)
    told = facts_of(text)
    assert text.startswith("Pre-trained checkpoint\n")
    assert told["parameters"].startswith(f"{number / 1e6:.2f} M (encoder ")
    assert told["model"].startswith("demo: 4 blocks, 96 wide, 3 heads")
    assert "56 x 56 px of 10 m (560 m), patches of 8 x 8 px" in told["images"]
    assert "rgb:patch" in told["predicts"]
    for name in ("rgb", "swir", "land_cover"):
        assert re.search(rf"^  {name} +{' '.join(MODALITIES[name].bands)} ", text, re.MULTILINE)
    assert re.search(r"^  land_cover .* class codes \(11\) +40 m +WorldCover$", text, re.MULTILINE)
    assert f'encoder = multimae_eo.load("{path}")' in text
    assert 'encoder(images, bands=["B04", "B03", "B02"], units="dn", product="L2A")' in text
    assert {words[0] for words in commands_of(text)} == {"finetune", "embed"}
    assert not wide_lines(text, tmp_path)
    assert explain(path / "config.json") == text


@pytest.mark.parametrize(
    ("task", "title", "predicts"),
    [
        ("segmentation", "segmentation, 3 classes", "for every pixel one of a, b, c (head convnext)"),
        ("multilabel", "multilabel, 3 classes", "for every image any number of a, b, c (head linear)"),
        ("regression", "regression in t/ha", "for every pixel a number in t/ha, head linear_dense"),
    ],
)
def test_a_fine_tuned_checkpoint(task, title, predicts, tmp_path):
    path = save_predictor(tmp_path / "best", task, steps=7, data={"drop_modality": 0.3, "name": "fields"}, image_px=32)
    text = explain(path)
    told = facts_of(text)
    assert text.startswith(f"Fine-tuned checkpoint: {title}\n")
    assert told["predicts"] == predicts
    assert told["images"].endswith("fine-tuned on images of 32 px")
    assert told["needs"].startswith("any one of its inputs")
    assert "steps 7; data name fields" in told["recorded"]
    words = commands_of(text)[0]
    assert words[:2] == ["predict", str(path)]
    assert "s2=S2.tif" in words
    assert "dem=DEM.tif" in words


def test_damaged_checkpoints(tmp_path):
    path = save_model(tmp_path / "model")
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="is not a safetensors file, or is damaged"):
        explain(path)
    weights.unlink()
    with pytest.raises(CheckpointError, match="does not exist; the checkpoint is not complete"):
        explain(path)
    (path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="is not JSON"):
        explain(path)


def test_runs(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.csv").write_text("step,kind,val/loss\n0,val,3.5\n40,val,1.25\n")
    assert "not finished, or it was interrupted" in explain(run)
    save_model(run / "checkpoint")
    (run / "config.yaml").write_text("seed: 0\n")
    text = explain(run)
    assert text.startswith("Run of pre-training\n")
    assert facts_of(text)["trained"] == "40 steps, last validation loss 1.25"
    assert commands_of(text) == [["inspect", str(run / "checkpoint")], ["report", str(run)]]
    assert explain(run / "config.yaml") == text
    shutil.rmtree(run / "checkpoint")
    save_predictor(run / "best")
    (run / "results.json").write_text(json.dumps({"best": {"miou": [0.5, 0.4, 0.6]}, "last": None}))
    text = explain(run)
    assert text.startswith("Run of fine-tuning\n")
    assert "on test miou 0.500 (0.400 to 0.600)" in text
    (run / "results.json").write_text("[")
    with pytest.raises(DataError, match=r"results.json' is not JSON"):
        explain(run)


# Tiles.


def test_a_data_set_of_tiles_and_its_picture(world, tmp_path):
    text = explain(world, out=tmp_path / "tiles.png")
    told = facts_of(text)
    assert text.startswith("Data set in the MMEarth layout: 60 tiles of 64 x 64 px (640 m)")
    splits = json.loads((world / "synthetic_splits.json").read_text())
    assert told["splits"] == f"train {len(splits['train'])}, val {len(splits['val'])}"
    assert re.fullmatch(r"\d+\.\d [NS] to \d+\.\d [NS], \d+\.\d [EW] to \d+\.\d [EW]", told["places"])
    assert re.match(r"2017-\d\d-\d\d to 20\d\d-\d\d-\d\d; ", told["dates"])
    with h5py.File(world / "synthetic.h5") as file:
        share_of = (file["metadata"]["S2_type"] == b"l2a").mean()
    assert f"L2A {100 * share_of:.0f} %" in told["Sentinel-2"]
    for modality in MODALITIES.values():
        assert re.search(rf"^  {modality.name} +{' '.join(modality.bands)} +\w+ +\w+ ", text, re.MULTILINE)
    assert " no: " not in text
    assert commands_of(text)[0] == ["pretrain", "--data.root", str(world)]
    assert text.endswith(f"Look at {tmp_path / 'tiles.png'}.")
    assert (tmp_path / "tiles.png").read_bytes().startswith(b"\x89PNG")
    assert explain(world.parent) == explain(world / "synthetic.h5") == text.rsplit("\n\n", 1)[0]
    assert not wide_lines(text, world.parent)


def test_what_a_data_set_lacks(tmp_path):
    folder = write_world(tmp_path, arrays=PAPER_ARRAYS, tile_px=32)
    text = explain(folder)
    assert re.search(r"^  sar .* no: the file has no array 'sentinel1'$", text, re.MULTILINE)
    assert "pre-training holds some of train out for validation" in facts_of(text)["splits"]
    assert "--model.image_size 32" in text
    assert "--model.inputs" not in text
    rewrite(folder, "aster", np.zeros((24, 2, 32, 32), np.float64))
    (folder / "tiny_tile_info.json").unlink()
    text = explain(folder)
    assert "'aster' is float64 [24, 2, 32, 32], expected int16 [24, 2, 32, 32]" in " ".join(text.split())
    assert "'[rgb,red_edge,swir,nir,land_cover]'" in text
    assert facts_of(text)["dates"].startswith("the year is not known; every month")
    commands_of(text)
    (folder / "tiny_band_stats.json").unlink()
    text = explain(folder)
    assert facts_of(text)["statistics"] == "missing: tiny_band_stats.json"
    assert text.count(" no: no statistics (") == 4
    for name in ("lat", "metadata", "month"):
        rewrite(folder, name, None)
    text = explain(folder, out=tmp_path / "tiles.png")
    assert facts_of(text)["missing"] == "lat, month, metadata"
    assert facts_of(text)["places"].startswith("not known")
    assert text.endswith("No picture: it is not known where the tiles lie.")
    assert not (tmp_path / "tiles.png").exists()


def test_of_many_tiles_some_are_looked_at(world, monkeypatch):
    whole = explain(world)
    monkeypatch.setattr(tiles, "LOOKED_AT", 20)
    monkeypatch.setattr(tiles, "_SLICE", 5)
    assert [(s.start, s.stop) for s in tiles.slices(60)] == [(0, 5), (18, 23), (36, 41), (55, 60)]
    told = facts_of(explain(world))
    assert told["splits"] == facts_of(whole)["splits"]
    assert told["places"].endswith("(of 20 tiles that were looked at, spread evenly)")
    assert sum(map(len, (range(s.start, s.stop) for s in tiles.slices(1_229_001)))) == 20
    assert list(tiles.slices(3)) == [slice(0, 3)]


def test_a_packed_copy(world, tmp_path):
    chosen = [MODALITIES[name] for name in ("rgb", "elevation")]
    folder = pack(world, tmp_path, list(read_statistics(world, chosen).values()), tiles_per_shard=40)
    text = explain(folder, out=tmp_path / "tiles.png")
    assert text.startswith("Packed copy of 'synthetic.h5': 60 tiles of 64 x 64 px (640 m), ")
    assert "in 2 shards" in text.splitlines()[0]
    original = facts_of(explain(world))
    assert {k: facts_of(text)[k] for k in ("splits", "places", "Sentinel-2")} == {
        k: original[k] for k in ("splits", "places", "Sentinel-2")
    }
    assert re.search(r"^  nir +B8A B08 +no: it was not packed$", text, re.MULTILINE)
    assert "'[rgb,elevation:sample]'" in text
    commands_of(text)
    assert (tmp_path / "tiles.png").exists()
    facts = folder / "synthetic_tiles.npy"
    facts.write_bytes(facts.read_bytes()[:500])
    with pytest.raises(DataError, match="is cut or damaged"):
        explain(folder)
    (folder / "synthetic_pack.json").write_text("{}")
    with pytest.raises(DataError, match="has format None"):
        explain(folder)


def test_damaged_or_foreign_hdf5(tmp_path):
    path = tmp_path / "x" / "x.h5"
    path.parent.mkdir()
    path.write_bytes(b"nothing")
    with pytest.raises(DataError, match="cannot be read as HDF5"):
        explain(path.parent)
    with h5py.File(path, "w") as file:
        file["image"] = np.zeros(3)
        file.create_group("more")
    with pytest.raises(DataError, match="is no MMEarth layout: it holds image, more"):
        explain(path)


# GEO-Bench.


def test_a_set_of_geobench(labelled_world):
    folder = labelled_world / "segmentation_v1.0" / "synthetic-map"
    text = explain(folder)
    told = facts_of(text)
    assert text.startswith("GEO-Bench set synthetic-map: segmentation, 12 classes\n")
    assert told["splits"] == "train 30, valid 6, test 24"
    assert told["partitions"] == "default, 0.01x, 0.02x, 0.05x, 0.10x, 0.20x, 0.50x, 1.00x"
    assert told["settings"] == "rgb-only, multispectral, rgb-relief"
    assert told["lacks"] == "land_cover (needs worldcover), canopy_height (needs chm)"
    assert "(15 of 15 found)" in told["bands"]
    finetune = commands_of(text)[1]
    assert (ROOT / finetune[finetune.index("--config") + 1]).is_file()
    assert explain(next(folder.glob("*.hdf5"))) == text
    assert not wide_lines(text, labelled_world)


def test_corrections_choices_and_what_is_missing_of_a_set(tmp_path):
    eurosat = write_set(tmp_path, "m-eurosat", train=3, valid=2, test=2, size=8)
    text = explain(eurosat)
    assert "band names corrected: what the files call 08A" in " ".join(text.split())
    assert facts_of(text)["units"].startswith("those of L1C")
    next(eurosat.glob("*.hdf5")).unlink()
    (eurosat / "band_stats.json").unlink()
    text = explain(eurosat)
    assert facts_of(text)["splits"].endswith("1 of 7 images are not in the folder")
    assert facts_of(text)["statistics"] == "band_stats.json is missing"
    assert commands_of(text) == [["download", "geobench:m-eurosat", "--out", str(tmp_path)]]
    cashew = write_set(tmp_path, "m-cashew-plant", train=3, valid=2, test=2, size=8)
    text = explain(cashew)
    assert "say with --data.ignore_class0 whether it counts" in " ".join(text.split())
    assert "class 0 (no data) is" not in text
    assert all("--data.ignore_class0" in words for words in commands_of(text))
    neon = explain(write_set(tmp_path, "m-NeonTree", train=3, valid=2, test=2, size=20))
    assert facts_of(neon)["not read"] == "Neon"


def test_the_folder_of_all_sets(tmp_path):
    for name in ("m-eurosat", "m-pv4ger-seg"):
        write_set(tmp_path, name, train=3, valid=2, test=2, size=8)
    text = explain(tmp_path)
    assert text.startswith("GEO-Bench: 2 sets, 2 of the benchmark's twelve\n")
    assert re.search(r"^  m-eurosat +classification +10 +7 +rgb-only, multispectral$", text, re.MULTILINE)
    missing = facts_of(text)["missing"].split(", ")
    assert set(missing) == {n for n in SETS if n.startswith("m-")} - {"m-eurosat", "m-pv4ger-seg"}
    assert ["download", "geobench:NAME", "--out", str(tmp_path)] in commands_of(text)
    assert explain(tmp_path / "classification_v1.0") == text


def test_what_looks_like_geobench_and_is_not(tmp_path):
    folder = write_set(tmp_path, "m-eurosat", train=2, valid=1, test=1, size=8)
    with pytest.raises(DataError, match="is called 'mine'; a set is known by the name of its folder"):
        explain(folder.rename(tmp_path / "mine"))
    (tmp_path / "segmentation_v1.0").mkdir()
    with pytest.raises(DataError, match="but no set in them"):
        explain(tmp_path)
    empty = tmp_path / "segmentation_v1.0" / "m-nz-cattle"
    empty.mkdir()
    (empty / "default_partition.json").write_text("{}")
    with pytest.raises(DataError, match="holds no image"):
        explain(empty)


class Mark:
    """Touches a file where its pickle is executed."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_nothing_in_a_file_is_executed(tmp_path):
    import pickle

    folder, mark = write_set(tmp_path, "m-eurosat", train=2, valid=1, test=1, size=8), tmp_path / "mark"
    evil = pickle.dumps(Mark(mark))
    (folder / "task_specs.pkl").write_bytes(evil)
    for path in folder.glob("*.hdf5"):
        with h5py.File(path, "r+") as file:
            file.attrs["pickle"] = str(evil)
    explain(folder)
    explain(folder / "task_specs.pkl")
    (tmp_path / "model.pth").write_bytes(evil)
    with pytest.raises(DataError, match="multimae-eo convert"):
        explain(tmp_path / "model.pth")
    assert not mark.exists()
    pickle.loads(evil)
    assert mark.exists()  # it would have worked


# Scenes.


def test_the_synthetic_scene_and_the_command_that_embeds_it(tmp_path, monkeypatch):
    folder = generate_scene(tmp_path, tile_px=64)
    text = explain(folder)
    assert text.startswith("Folder of 4 rasters, as sources of one scene\n")
    assert facts_of(text)["lacks"] == "canopy_height (needs chm)"
    assert "baseline 02.14" in text
    assert not wide_lines(text, tmp_path)
    words = next(words for words in commands_of(text) if words[0] == "embed")
    assert [w for w in words if "=" in w] == [f"{n}={folder}/{n}.tif" for n in ("dem", "s1", "s2", "worldcover")]
    monkeypatch.chdir(tmp_path)
    words[1] = str(save_model(tmp_path / "model"))
    cli.main([*words, "--tiles.progress", "false", "--preview", "false"])
    assert (tmp_path / "embeddings.tif").exists()


def test_one_geotiff(tmp_path):
    write_scene(tmp_path)
    text = explain(tmp_path / "s2.tif")
    told = facts_of(text)
    assert text.startswith("GeoTIFF: 10 bands\n")
    assert told["size"] == "150 x 130 px (1.5 x 1.3 km)"
    assert told["place"] == "EPSG:32632 (WGS 84 / UTM zone 32N)"
    assert told["product"] == "L2A"
    assert told["numbers"].startswith("reflectance x 10000: 1")
    assert told["+1000"].startswith("the numbers do not carry it: tag PROCESSING_BASELINE")
    assert told["feeds"] == "rgb, red_edge, swir, nir"
    assert re.search(r"^  B08 +uint16 +0 .* nir$", text, re.MULTILINE)
    dem = facts_of(explain(tmp_path / "dem.tif"))
    assert dem["feeds"] == "elevation"
    assert dem["numbers"].startswith("m: 200 to 900")


def test_bands_without_names(tmp_path):
    rng = np.random.default_rng(0)
    for order in (USUAL, EUROSAT):
        field = rng.integers(1200, 4000, (13, 40, 40)).astype(np.uint16)
        field[order.index("B10")] = 1008
        told = facts_of(explain(write_raster(tmp_path / "any.tif", field)))
        assert f"taken as [{', '.join(order)}]" in told["bands"]
        assert told["product"].startswith("not stated; taken for L1C below, because it has B10")
        assert told["+1000"].startswith(
            "the numbers carry it, and it is taken off: the darkest hundredth of the cirrus"
        )
    radar = np.stack([rng.normal(-18, 1, (40, 40)), rng.normal(-11, 1, (40, 40))]).astype(np.float32)
    assert "taken as [VH, VV]" in facts_of(explain(write_raster(tmp_path / "radar.tif", radar)))["bands"]
    text = explain(write_raster(tmp_path / "many.tif", rng.integers(0, 3000, (40, 8, 8)).astype(np.uint16)))
    assert "say them in their order" in facts_of(text)["bands"]
    assert "and 8 more bands" in text
    assert "cannot be mapped as it is" in text
    assert usual_order([1.0] * 7) == (None, "")


def test_pixels_places_and_units_that_need_a_word(tmp_path):
    field = smooth((3, 50, 60), low=200, high=2000)
    bands = ("B04", "B03", "B02")
    degrees = {"crs": "EPSG:4326", "pixel": 0.0001, "west": 8, "north": 60}
    told = facts_of(explain(write_raster(tmp_path / "deg.tif", field.astype(np.uint16), bands, **degrees)))
    assert told["pixels"].startswith("0.0001 degrees (about 5.57 x 11.1 m here); maps are made on a grid of 10 m")
    told = facts_of(explain(write_raster(tmp_path / "coarse.tif", field.astype(np.uint16), bands, pixel=60.0)))
    assert told["pixels"] == "60 m; the models know pixels of 10 m, to which a map resamples it"
    text = explain(write_raster(tmp_path / "nowhere.tif", field.astype(np.uint16), bands, crs=None))
    assert "gdal_edit.py -a_srs EPSG:<code>" in text
    assert "cannot be mapped as it is" in text
    text = explain(write_raster(tmp_path / "share.tif", (field / 10_000).astype(np.float32), bands))
    assert "reflectance 0 to 1" in facts_of(text)["numbers"]
    assert "--source.s2.scale 10000" in " ".join(text.split())
    text = explain(write_raster(tmp_path / "picture.tif", (field / 8).astype(np.uint8), bands))
    assert facts_of(text)["numbers"].startswith("8-bit numbers: ")
    assert "cannot be mapped as it is" in text
    codes = write_raster(tmp_path / "lulc.tif", np.arange(4, dtype=np.uint8).repeat(100).reshape(1, 20, 20))
    assert "--source.worldcover.classes '{0: ?, 1: ?, 2: ?, 3: ?}'" in " ".join(explain(codes).split())
    floor = np.maximum(field, 1150).astype(np.uint16)
    text = explain(write_raster(tmp_path / "dark.tif", floor, bands))
    assert facts_of(text)["+1000"].startswith("cannot be told: ")
    assert "--source.s2.offset ON_OR_OFF" in text


@pytest.mark.parametrize("kind", ["overviews", "windows"])
def test_of_large_files_little_is_read(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "WHOLE", 1000)
    monkeypatch.setattr(sources, "SMALLEST", 64)
    field = smooth((2, 700, 800), low=300, high=3000).astype(np.uint16)
    path = write_raster(tmp_path / "s2.tif", field, ("B04", "B03"), tiled=True, blockxsize=64, blockysize=64)
    if kind == "overviews":
        import rasterio

        with rasterio.open(path, "r+") as file:
            file.build_overviews([2, 8, 16], Resampling.average)
    (seen, _) = sources.look_into(path).bands
    assert seen.values.size == (87 * 100 if kind == "overviews" else 25 * 64 * 64)
    assert np.allclose(np.percentile(seen.values, (10, 50, 90)), np.percentile(field[0], (10, 50, 90)), rtol=0.1)


def test_a_sentinel_2_product(tmp_path):
    safe = tmp_path / "S2A_MSIL2A_20230615T101601_N0509_R065_T32TQM_20230615T161201.SAFE"
    for band, metres in (("B02", 10), ("B04", 10), ("B03", 10), ("B11", 20), ("SCL", 20)):
        edge = 600 // metres
        array = np.full((1, edge, edge), 4, np.uint8) if band == "SCL" else smooth((1, edge, edge), low=1100)
        path = safe / "GRANULE" / "L2A" / "IMG_DATA" / f"R{metres}m" / f"T32TQM_20230615T101601_{band}_{metres}m.tif"
        write_raster(path, array.astype(np.uint8 if band == "SCL" else np.uint16), pixel=float(metres))
    copy_raster(
        path.parents[1] / "R10m" / "T32TQM_20230615T101601_B04_10m.tif", tmp_path / "B04.jp2", driver="JP2OpenJPEG"
    )
    text = explain(safe)
    told = facts_of(text)
    assert text.startswith(".SAFE: 5 bands\n")
    assert (told["date"], told["product"]) == ("2023-06-15", "L2A")
    assert told["pixels"].startswith("10 m, 20 m; ")
    assert told["feeds"] == "rgb, swir (without B12)"
    assert "mask SCL" in told["clouds"]
    assert told["+1000"].startswith("the numbers carry it")
    assert explain(tmp_path / "B04.jp2").startswith("JPEG 2000: 1 band\n")


def test_netcdf_and_zarr(tmp_path):
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("odc.geo.xr")
    field = smooth((2, 50, 60), seed=5, low=100, high=2000).astype(np.float32)
    x, y = 500_000 + 20 * (np.arange(60) + 0.5), 5_300_000 - 20 * (np.arange(50) + 0.5)
    arrays = {n: (("time", "y", "x"), np.stack([f, f])) for n, f in zip(("S2-L2A-B03", "heat"), field, strict=True)}
    days = [np.datetime64("2021-05-04"), np.datetime64("2021-05-09")]
    cube = xarray.Dataset(arrays, {"time": days, "y": y, "x": x}).odc.assign_crs("EPSG:32632")
    cube.to_netcdf(tmp_path / "s2.nc", engine="h5netcdf")
    cube.to_zarr(tmp_path / "s2.zarr", consolidated=False)
    for name, kind in (("s2.nc", "NetCDF"), ("s2.zarr", "Zarr")):
        text = explain(tmp_path / name)
        told = facts_of(text)
        assert text.startswith(f"{kind}: 2 bands\n")
        assert told["place"] == "EPSG:32632 (WGS 84 / UTM zone 32N)"
        assert told["dates"].startswith("2 time steps, 2021-05-04 to 2021-05-09")
        assert told["product"] == "L2A, as the names of the bands say"
        assert told["unknown"].startswith("heat: left out")
        assert "--source.s2.date 2021-05-09" in text
    (tmp_path / "bad.nc").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    with pytest.raises(DataError, match="cannot be read"):
        explain(tmp_path / "bad.nc")


def test_a_stac_item(tmp_path):
    pystac = pytest.importorskip("pystac")
    pytest.importorskip("odc.stac")
    item = pystac.Item("tile", None, None, datetime(2023, 6, 1), {}, collection="sentinel-2-l2a")
    for name in ("red", "green", "blue", "visual"):
        item.add_asset(name, pystac.Asset(f"https://nowhere.invalid/{name}.tif"))  # nothing is fetched
    (tmp_path / "item.json").write_text(json.dumps(item.to_dict()))
    text = explain(tmp_path / "item.json")
    assert text.startswith("STAC item: 3 bands\n")
    assert facts_of(text)["feeds"] == "rgb"
    assert (facts_of(text)["product"], facts_of(text)["date"]) == ("L2A", "2023-06-01")


def test_folders_of_many_rasters(tmp_path):
    field = smooth((10, 20, 20)).astype(np.uint16)
    for place in ("a", "b"):
        write_raster(tmp_path / "kinds" / "S2L2A" / f"{place}.tif", field, BANDS)
        write_raster(tmp_path / "kinds" / "DEM" / f"{place}.tif", field[:1].astype(np.int16))
        write_raster(tmp_path / "places" / place / "s2.tif", field, BANDS)
        write_raster(tmp_path / "places" / place / "dem.tif", field[:1].astype(np.int16))
    text = explain(tmp_path / "kinds")
    assert "A folder per kind of data" in text
    assert re.search(r"^  DEM/a.tif +dem +dem ", text, re.MULTILINE)
    assert "multimae-eo import" in text
    text = explain(tmp_path / "places")
    assert "A folder per place" in text
    assert re.search(r"^  a/s2.tif +s2 +10: B02 to B12 ", text, re.MULTILINE)
    for year in (2020, 2021):
        write_raster(tmp_path / "years" / f"s2_{year}.tif", field, BANDS)
    text = explain(tmp_path / "years")
    assert text.startswith("Folder of 2 rasters, some of the same bands: each is a scene of its own\n")
    assert text.count("--source s2=") == 1
    labelled = tmp_path / "labelled"
    write_raster(labelled / "images" / "a.tif", field, BANDS)
    (labelled / "labels.csv").write_text("path,label,split\nimages/a.tif,x,train\n")
    text = explain(labelled)
    assert text.startswith("Folder of labelled GeoTIFFs\n")
    assert f"--data.folder.bands '[{', '.join(BANDS)}]'" in text


@pytest.mark.parametrize(
    ("values", "band", "bands", "unit", "scale"),
    [
        (np.array([0.01, 0.4], np.float32), "B04", 4, "reflectance 0 to 1", 10_000),
        (np.array([120, 3000], np.uint16), "B04", 4, "reflectance x 10000", 1),
        (np.array([0, 255], np.uint8), "B04", 3, "8-bit numbers", None),
        (np.array([0, 90_000], np.int32), "B04", 3, "?", None),
        (np.array([-300.0, 4000.0]), "dem", 1, "m", 1),
        (np.array([-32768, 900], np.int16), "dem", 1, "?", None),
        (np.array([-25.0, -3.0, 2.0]), "VV", 2, "dB", 1),
        (np.array([0.001, 0.3]), "VV", 2, "linear power", None),
        (np.array([10, 95, 100], np.uint8), "worldcover", 1, "class codes", 1),
        (np.array([1, 2, 11], np.uint8), "worldcover", 1, "class codes", None),
        (np.array([1, 2, 11], np.uint8), None, 1, "class codes", None),
        (np.array([1, 2, 11], np.int16), None, 1, "?", None),
        (np.array([-5, 900], np.int16), None, 1, "m", 1),
        (np.array([5, 900], np.uint16), None, 1, "?", None),
        (np.array([-22.0, -9.0]), None, 2, "dB", 1),
        (np.array([0.001, 0.3]), None, 2, "linear power", None),
        (np.array([0.001, 0.3]), None, 3, "reflectance 0 to 1", 10_000),
        (np.array([50, 4000], np.int16), None, 12, "reflectance x 10000", 1),
        (np.array([-1.2, 0.1, 2.5]), "B04", 4, "?", None),
        (np.array([]), "B04", 1, "?", None),
    ],
)
def test_units_are_guessed_from_numbers(values, band, bands, unit, scale):
    guess = guess_unit(values, band, bands=bands)
    assert (guess.unit, guess.scale) == (unit, scale), guess.why
    assert guess.why


# What cannot be explained.


def test_what_is_nothing_of_the_package(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "none.txt").write_text("")
    (tmp_path / "some.bin.txt").write_text("text")
    (tmp_path / "run.yaml").write_text("seed: 0\n")
    (tmp_path / "other.json").write_text("{}")
    expected = {
        "nowhere/at/all": rf"does not exist. '{tmp_path}' holds empty, ",
        "empty": "it is an empty folder. Expected " + re.escape(EXPECTED[0]),
        "none.txt": "it is an empty file",
        "some.bin.txt": "it is a file of 4 bytes",
        "other.json": "cannot be explained",
        "run.yaml": "give it to a command, as --config or as --scene",
    }
    for name, message in expected.items():
        with pytest.raises(DataError, match=message):
            explain(tmp_path / name)
    save_model(tmp_path / "model")
    with pytest.raises(DataError, match=rf"Did you mean '{tmp_path}/model'"):
        explain(tmp_path)


def test_damaged_rasters(tmp_path):
    path = write_raster(tmp_path / "s2.tif", smooth((10, 64, 64)).astype(np.uint16), BANDS, compress="deflate")
    with path.open("r+b") as file:
        file.seek(1000)
        file.write(b"\xa5" * 60_000)
    with pytest.raises(DataError, match=r"s2.tif' cannot be read, it is truncated or damaged"):
        explain(path)
    path.write_bytes(b"II*\0")
    with pytest.raises(DataError, match="cannot be read as a GeoTIFF"):
        explain(path)


def test_any_file_cut_short_is_a_user_error(world, tmp_path):
    random = np.random.default_rng(0)
    generate_scene(tmp_path, tile_px=64)
    save_predictor(tmp_path / "best")
    shutil.copytree(world, tmp_path / "synthetic")
    write_set(tmp_path / "bench", "m-so2sat", train=1, valid=1, test=1, size=8)
    for path in [p for p in sorted(tmp_path.rglob("*")) if p.is_file()]:
        whole = path.read_bytes()
        for size in (int(random.integers(len(whole))), int(0.97 * len(whole))):
            path.write_bytes(whole[:size])
            for place in (path, path.parent):
                with suppress(MultiMAEError):
                    explain(place)
        path.write_bytes(whole)


# Real samples.


def test_real_samples(shared):
    real = shared / "real"
    told = {path: explain(real / path) for path in REAL if (real / path).exists()}
    for path, text in told.items():
        assert not wide_lines(text, real), path
        for expected in REAL[path]:
            assert expected in " ".join(text.split()), path


REAL = {
    "eurosat_ms/AnnualCrop/AnnualCrop_1.tif": ["this is the order of EuroSAT", "the numbers do not carry it"],
    "eurosat_ms/SeaLake/SeaLake_3000.tif": ["reflectance x 10000: 6 to 1097"],
    "bigearthnet_v2": ["A folder per place", "12: B01 to B12"],
    "bigearthnet_v2/sample_12798": ["taken as [VH, VV]", "feeds rgb, red_edge, swir, nir, sar"],
    "terramesh": ["A folder per kind of data", "S1RTC/282D_485L_3_3.tif"],
    "terramesh/S2L1C/282D_485L_3_3.tif": ["product L1C", "the numbers carry it, and it is taken off"],
    "terramesh/DEM/282D_485L_3_3.tif": ["the folder is called DEM", "m: 0 to 16"],
    "terramesh/LULC/282D_485L_3_3.tif": ["not those of WorldCover: 1, 2, 6, 9"],
    "terramesh/S1RTC/282D_485L_3_3.tif": ["taken as [VV, VH]", "date 2021-07-21"],
    "ssl4eo_s12/s2c/20200604T054639_20200604T054831_T43RCP": ["Folder of band files: 13 bands", "date 2020-06-04"],
    "geobench": ["4 of the benchmark's twelve"],
    "geobench/classification_v1.0/m-eurosat": ["(13 of 13 found)", "would leak into the other"],
    "geobench/classification_v1.0/m-brick-kiln": ["(10 of 10 found)", "not read 10 - SWIR - Cirrus"],
    "geobench/segmentation_v1.0/m-SA-crop-type": ["not read Cloud Probability"],
    "geobench/segmentation_v1.0/m-chesapeake": ["settings rgb-only", "(4 of 4 found)"],
}


def test_a_real_netcdf(shared):
    pytest.importorskip("odc.geo.xr")
    path = shared / "real" / "worldcereal" / "worldcereal_preprocessed_inputs.nc"
    if not path.exists():
        pytest.skip("no sample of WorldCereal")
    told = facts_of(explain(path))
    assert told["dates"].startswith("12 time steps, 2020-11-01 to 2021-10-01")
    assert told["feeds"] == "rgb, red_edge, swir, nir (without B8A), elevation"


# Text.


def test_tables_and_commands_fit_the_page():
    text = table(["name", "text"], [["a", "word " * 60], ["b", ""]])
    assert max(map(len, text.splitlines())) <= WIDTH
    long = command("embed", "CHECKPOINT", *["--source", "name=some folder/of a file.tif"] * 5)
    assert all(len(line) <= WIDTH for line in long.splitlines())
    assert shlex.split(long.replace("\\\n", ""))[4] == "name=some folder/of a file.tif"
    assert [share(n, 1000) for n in (0, 1, 500, 999, 1000)] == ["0 %", "under 1 %", "50 %", "over 99 %", "100 %"]
