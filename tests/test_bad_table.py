"""One table of bad inputs for every command: exit code 2, a short message with culprit and remedy, and nothing left."""
# ruff: noqa: E501 (a row is a line)

import json
import os
import pickle
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

h5py = pytest.importorskip("h5py")
pytest.importorskip("lightning")
rasterio = pytest.importorskip("rasterio")
pytest.importorskip("xarray")

import geobench_files  # noqa: E402
from bad_inputs import check_message, fails  # noqa: E402
from batches import demo_config  # noqa: E402
from geotiff_scene import make_scene  # noqa: E402
from geotiff_scene import write as write_tiff  # noqa: E402
from scenes import BANDS, save_predictor, smooth, write_raster, write_scene  # noqa: E402
from worlds import corrupt, write_world  # noqa: E402

from multimae_eo import MultiMAE, Predictor, save  # noqa: E402
from multimae_eo.cli import ALL  # noqa: E402
from multimae_eo.config import TaskConfig  # noqa: E402
from multimae_eo.data.geobench_sets import SETS  # noqa: E402

# What the rows begin with; all paths are in a folder that holds what `make` writes.
ON_CPU = "--trainer.accelerator cpu --trainer.progress false"
PRETRAIN = (
    f"pretrain --data.root tiny --out out {ON_CPU} --trainer.devices 1 --trainer.panels 0 --trainer.loggers=[] "
    "--model.size demo --optim.steps 2 --optim.batch_size 4 --data.workers 0"
)
IMAGES = f"--checkpoint model --data.workers 0 --out out {ON_CPU}"
EUROSAT = "--data.root bench --data.name m-eurosat"
CASHEW = "--data.root bench --data.name m-cashew-plant --data.ignore_class0 true"
OWN = "--data.source folder --data.root own --data.folder.bands [B02,B03,B04] --data.folder.classes [a,b]"
FINETUNE, PROBE = f"finetune {IMAGES} --optim.steps 2", f"probe {IMAGES}"
GEOBENCH = f"geobench --checkpoint model --data-root bench --datasets m-eurosat --workers 0 --out out {ON_CPU}"
EVALUATE = f"evaluate label --out out/table.csv {ON_CPU}"
SCENE = "--source s2=scene/s2.tif --source dem=scene/dem.tif"
TILES = "--tiles.device cpu --tiles.progress false"
PREDICT = f"predict task {TILES} --out out/map.tif"
EMBED = f"embed model {TILES} --out out/embeddings.tif"
FILL = f"fill model {TILES} --masks 1 --out out/filled.tif"
IMPORT = "import --config import.yaml --out out"
RECONSTRUCT = "reconstruct model tiny --out out/picture.png"
EXPORT = "export model --product L2A --out out/model.pt2"

Spoil = Callable[[Path], object]
IMPORT_YAML = """\
root: tiffs
tile_px: 16
date: "2021-07-23"
s2_l2a: {files: "l2a/{place}.tif"}
dem: {files: "dem/{place}.tif"}
"""
FIRST_IMAGE, LAST_IMAGE = (f"bench/classification_v1.0/m-eurosat/id_00{i}.hdf5" for i in ("00", "11"))


def make(here: Path) -> None:
    """A little of everything: data of all layouts, checkpoints, a scene, a run."""
    torch.manual_seed(0)
    write_world(here, tiles=15, val=2)
    views = ("rgb", "nir", "elevation")
    config = demo_config(inputs=views, targets=("rgb", "elevation", "rgb:patch"))
    save(MultiMAE(config), here / "model")
    save_predictor(here / "task", inputs=views)
    inputs = ("rgb", "nir")
    about = TaskConfig(
        "classification", "linear", inputs, SETS["m-eurosat"].classes, products=dict.fromkeys(inputs, "L2A")
    )
    data = {"root": "bench", "name": "m-eurosat", "workers": 0}
    save(Predictor(config, about), here / "label", extra={"data": data})
    geobench_files.write_set(here / "bench", "m-eurosat", size=8)
    geobench_files.write_set(here / "bench", "m-cashew-plant", size=16)
    write_scene(here / "scene", 64, 72)
    make_scene(here / "tiffs")
    (here / "import.yaml").write_text(IMPORT_YAML)
    for i in range(4):
        write_raster(here / f"own/{i}.tif", smooth((3, 16, 16), i).astype(np.uint16))
    (here / "own/labels.csv").write_text(
        "path,label,split\n0.tif,a,train\n1.tif,b,train\n2.tif,a,valid\n3.tif,b,test\n"
    )
    (here / "run").mkdir()
    (here / "run/metrics.csv").write_text("step,kind,train/loss,val/loss\n0,val,,1.0\n1,train,0.9,\n")


# --- how the folder is spoilt


def nothing(here: Path) -> None:
    """The command alone is bad."""


def gone(name: str) -> Spoil:
    return lambda here: shutil.rmtree(here / name) if (here / name).is_dir() else (here / name).unlink()


def holds(name: str, content: str | bytes = "") -> Spoil:
    def spoil(here: Path) -> None:
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return spoil


def cut(name: str) -> Spoil:
    return lambda here: os.truncate(here / name, (here / name).stat().st_size // 2)


def folder(name: str) -> Spoil:
    return lambda here: (here / name).mkdir(parents=True)


def edited(name: str, **entries: Any) -> Spoil:
    """Entries of a JSON file are replaced; a__b is the entry b of the entry a."""

    def spoil(here: Path) -> None:
        content = json.loads((here / name).read_text())
        for path, value in entries.items():
            *above, last = path.split("__")
            place = content
            for key in above:
                place = place[key]
            place[last] = value
        (here / name).write_text(json.dumps(content))

    return spoil


def without(name: str, key: str) -> Spoil:
    """An entry of a JSON file is left out."""

    def spoil(here: Path) -> None:
        content = json.loads((here / name).read_text())
        del content[key]
        (here / name).write_text(json.dumps(content))

    return spoil


def raster(name: str, values: np.ndarray, bands: Any = (), **about: Any) -> Spoil:
    return lambda here: write_raster(here / name, values, bands, **about)


def numbers(bands: int) -> np.ndarray:
    return smooth((bands, 64, 72)).astype(np.uint16)


def all_corrupt(here: Path) -> None:
    for row in range(15):
        corrupt(here / "tiny", "sentinel2", row)


def hostile(here: Path) -> None:
    with h5py.File(here / FIRST_IMAGE, "r+") as file:
        file.attrs["pickle"] = str(pickle.dumps({"label": Path("x")}))


def other_label(here: Path) -> None:
    geobench_files.relabel(here / "bench/classification_v1.0/m-eurosat", 10)


def other_mask(here: Path) -> None:
    _, path = geobench_files.image(here / "bench/segmentation_v1.0/m-cashew-plant")
    geobench_files.edit(path, lambda file: file["label"].write_direct(np.full((16, 16), 77, "int16")))


def moved(here: Path) -> None:
    values = np.full((1, 50, 70), 300, np.float32)
    write_tiff(here / "tiffs/dem/alp.tif", values, origin=(500_005.0, 5_000_000.0))


def other_weights(here: Path) -> None:
    torch.save({"fc.weight": torch.zeros(3)}, here / "weights.pth")


@dataclass(frozen=True)
class Bad:
    """One bad input. culprit, remedy: patterns that the message holds; process: it is run as a process too."""

    group: str
    name: str
    command: str
    culprit: str
    remedy: str
    spoil: Spoil = nothing
    process: bool = False


# fmt: off
TABLE = (
    # --- data sets
    Bad("data", "no tiles", PRETRAIN, "'tiny' holds no NAME.h5", "expected a data set in the MMEarth layout", gone("tiny/tiny.h5")),
    Bad("data", "no statistics", PRETRAIN, "tiny_band_stats.json' is missing", "needs it beside", gone("tiny/tiny_band_stats.json")),
    Bad("data", "statistics are no JSON", PRETRAIN, "tiny_band_stats.json' is not JSON", "Fetch or write it again", holds("tiny/tiny_band_stats.json", "{")),
    Bad("data", "an empty split", PRETRAIN, "tiny_splits.json': split 'train' is empty", "split 'train'", edited("tiny/tiny_splits.json", train=[])),
    Bad("data", "no such row", PRETRAIN, "tiny_splits.json': split 'train' names row 99", "has 15 rows", edited("tiny/tiny_splits.json", train=[99])),
    Bad("data", "every tile is damaged", PRETRAIN, "tiny.h5', array 'sentinel2', row", "Fetch the file again", all_corrupt),
    Bad("data", "half a file", PRETRAIN, "tiny.h5' cannot be read as HDF5", "Fetch it again", cut("tiny/tiny.h5")),
    Bad("data", "reconstruct an empty split", f"{RECONSTRUCT} --split test", "split 'test' is empty", "another --split"),
    Bad("data", "reconstruct damaged tiles", RECONSTRUCT, "array 'sentinel2', row", "Fetch the file again", all_corrupt),
    Bad("data", "pack nothing", "pack none out", "'none' is no folder", "expected one that holds NAME.h5"),
    Bad("data", "pack damaged tiles", "pack tiny out", "tiny.h5', array 'sentinel2', row", "take the row out of the splits", all_corrupt),
    Bad("data", "pack into itself", "pack tiny .", "'tiny' holds the data set itself", "give another --out"),
    Bad("data", "pack half a file", "pack tiny out", "tiny.h5' cannot be read as HDF5", "Fetch it again", cut("tiny/tiny.h5")),
    Bad("data", "pack what is not there", "pack tiny out --modalities [sar]", "no statistics for 'sar'", "expected sentinel1"),
    Bad("data", "no benchmark", f"{FINETUNE} --data.root none --data.name m-eurosat", "m-eurosat' is no folder", "Expected the folder that holds 'classification_v1.0'"),
    Bad("data", "half an image", f"{FINETUNE} {EUROSAT}", "id_0000.hdf5' cannot be read as HDF5", "Fetch it again", cut(FIRST_IMAGE)),
    Bad("data", "no table", f"{FINETUNE} {OWN}", "own/labels.csv' does not exist", "expected this table", gone("own/labels.csv")),
    Bad("data", "table with semicolons", f"{FINETUNE} {OWN}", "labels.csv' has no column 'path'", "separated by commas", holds("own/labels.csv", "path;label;split\n0.tif;a;train\n")),
    Bad("data", "unknown class", f"{FINETUNE} {OWN}", "labels.csv', line 2: unknown class 'zebra'", "Known: a, b", holds("own/labels.csv", "path,label,split\n0.tif,zebra,train\n")),
    Bad("data", "one image in two splits", f"{FINETUNE} {OWN}", "'0.tif' is in 'train' and in 'test'", "Remove it from one", holds("own/labels.csv", "path,label,split\n0.tif,a,train\n1.tif,b,train\n2.tif,a,valid\n0.tif,a,test\n")),
    Bad("data", "no image", f"{FINETUNE} {OWN}", "labels.csv', line 3: 'own/1.tif' does not exist", "Correct the path", gone("own/1.tif")),
    Bad("data", "bands of another file", f"{FINETUNE} {OWN} --data.folder.bands [B02,B03,B04,B08]", "own/0.tif': expected 4 channels .*, the file has 3", "'-' for those to leave out"),
    Bad("data", "label without a class", f"{PROBE} {EUROSAT}", "id_0000.hdf5': the label is 10", "expected 0 to 9", other_label),
    Bad("data", "hostile label", f"{PROBE} {EUROSAT}", "id_0000.hdf5': the pickle asks for pathlib", "nothing was executed. Do not use the file", hostile),
    Bad("data", "mask without a class", f"{PROBE} {CASHEW} --protocols linear", "id_0000.hdf5'.* the mask holds 77", "expected 0 to 6", other_mask),
    Bad("data", "k-NN of pixels", f"{PROBE} {CASHEW} --protocols knn", "'m-cashew-plant' has a label per pixel", "choose --protocols linear"),
    Bad("data", "no data sets", GEOBENCH.replace("bench --datasets m-eurosat", "none"), "data_root 'none' holds none", "m-eurosat, m-so2sat"),
    Bad("data", "nothing that can be run", GEOBENCH, "none of 2 cells could be run.*id_0000.hdf5' cannot be read", "Fetch it again", cut(FIRST_IMAGE)),
    Bad("data", "results of another command", GEOBENCH, "out/results.csv: no results", "Give another --out", holds("out/results.csv", "a,b\n1,2\n")),
    Bad("data", "data that have moved", f"{EVALUATE} --root none", "none/classification_v1.0/m-eurosat' is no folder", "Expected the folder that holds"),
    Bad("data", "half a test image", EVALUATE, "id_0011.hdf5' cannot be read as HDF5", "Fetch it again", cut(LAST_IMAGE)),
    Bad("data", "inspect nothing", "inspect none", "'none' does not exist", "check the path"),
    Bad("data", "inspect a web page", "inspect page.h5", "page.h5' cannot be read as HDF5", "Fetch it again", holds("page.h5", "<html>")),
    Bad("data", "inspect an empty folder", "inspect empty", "'empty' cannot be explained: it is a folder that holds nothing", "Expected a checkpoint directory", folder("empty")),
    Bad("data", "verify no data set", "verify empty", "'empty' holds no NAME.h5", "expected a data set in the MMEarth layout", folder("empty")),
    Bad("data", "import from nowhere", f"{IMPORT} --root none", "root 'none' is no folder", "expected the one that the files lie in", process=True),
    Bad("data", "import half a file", IMPORT, "tiffs/l2a/alp.tif' cannot be read as a GeoTIFF", "Convert or fetch it again", cut("tiffs/l2a/alp.tif")),
    Bad("data", "import another grid", IMPORT, "tiffs/dem/alp.tif' .dem. lies on another grid", "Resample it: gdalwarp", moved),
    Bad("data", "import no date", IMPORT, "place 'alp' has no date", "Give it as `date`", holds("import.yaml", IMPORT_YAML.replace("date:", "#"))),
    Bad("data", "import again", IMPORT, "out/imported' exists already", "choose another name", folder("out/imported")),
    Bad("data", "report of damaged results", "report run", "run/results.json' is not JSON", "write it again", holds("run/results.json", "{")),
    Bad("data", "report of damaged metrics", "report run", "'run': metrics.csv is damaged", "Mend it, or delete it", holds("run/metrics.csv", b"\xff\xfe\x00")),
    Bad("data", "report of nothing", "report empty", "'empty' holds no metrics.csv", "is it the folder of a run", folder("empty")),
    Bad("data", "no server", "download mmearth64 --out out --base http://127.0.0.1:9", "http://127.0.0.1:9/.*Connection refused", "the same command goes on"),
    # --- files of options
    Bad("config", "no file", f"{PRETRAIN} --config none.yaml", "config.*none.yaml'", "See multimae-eo"),
    Bad("config", "broken", f"{PRETRAIN} --config bad.yaml", "Problems parsing config.*line 2", "expected ',' or ']'", holds("bad.yaml", "optim: [1\n")),
    Bad("config", "empty", f"{FINETUNE} --config bad.yaml", "config: the file holds no options", "expected lines such as", holds("bad.yaml")),
    Bad("config", "a list", f"{PROBE} --config bad.yaml", "config: the file holds no options", "expected lines such as", holds("bad.yaml", "- seed\n")),
    Bad("config", "no text", f"{GEOBENCH} --config bad.yaml", "config: .*no text in UTF-8", "Save it so", holds("bad.yaml", b"\xff\xfe\x00")),
    Bad("config", "a folder", "demo --out out --config run", "config.*run'", "See multimae-eo"),
    Bad("config", "unknown option", f"{PRETRAIN} --config bad.yaml", "optim.batchsize", "Did you mean 'optim.batch_size'", holds("bad.yaml", "optim: {batchsize: 3}\n"), process=True),
    Bad("config", "unknown option of the demo", "demo --out out --config bad.yaml", "pretrain.optim.batchsize", "Did you mean 'pretrain.optim.batch_size'", holds("bad.yaml", "pretrain: {optim: {batchsize: 3}}\n")),
    Bad("config", "no number", f"{FINETUNE} --config bad.yaml", "optim.lr.*fast", "Expected a .*float", holds("bad.yaml", "optim: {lr: fast}\n")),
    Bad("config", "a tag of Python", f"{PRETRAIN} --config bad.yaml", "python/object/apply:os.system", "See multimae-eo", holds("bad.yaml", "out: !!python/object/apply:os.system ['touch owned']\n")),
    Bad("config", "a class", f"{PRETRAIN} --config bad.yaml", "'subprocess.Popen' is not accepted as class_path", "an option is a value", holds("bad.yaml", "trainer: {class_path: subprocess.Popen, init_args: {args: [touch, owned]}}\n")),
    Bad("config", "import, unknown key", IMPORT, "'file' is not accepted", "Did you mean 'files'", holds("import.yaml", IMPORT_YAML.replace("files: \"l2a", "file: \"l2a"))),
    Bad("config", "import, unknown source", IMPORT, "s2_l3a", "See multimae-eo|Did you mean", holds("import.yaml", IMPORT_YAML.replace("s2_l2a", "s2_l3a"))),
    Bad("config", "import, no place", IMPORT, "no file in 'tiffs' matches 'S2/{place}.tif'", "Check root and template", holds("import.yaml", IMPORT_YAML.replace("l2a/", "S2/"))),
    Bad("config", "scene, no path", f"{PREDICT} --scene bad.yaml", "bad.yaml': source 's2' has no path", "expected 's2: {path", holds("bad.yaml", "s2: {pth: x}\n")),
    Bad("config", "scene, unknown option", f"{EMBED} --scene bad.yaml", "unknown option of source 's2' in 'bad.yaml': 'zebra'", "Known: path, bands", holds("bad.yaml", "s2: {path: scene/s2.tif, zebra: 1}\n")),
    Bad("config", "scene, broken", f"{FILL} --scene bad.yaml --target elevation", "bad.yaml' is no YAML file that can be read", "Expected sources as", holds("bad.yaml", "[1")),
    # --- checkpoints
    Bad("checkpoint", "reconstruct with none", RECONSTRUCT, "'model' is no checkpoint: it has no config.json", "Expected a directory written by pre-training", gone("model")),
    Bad("checkpoint", "reconstruct fine-tuned", RECONSTRUCT.replace("model", "task"), "task' is of a fine-tuned model, which has no decoders", "Give the pre-trained one"),
    Bad("checkpoint", "finetune, no weights", f"{FINETUNE} {EUROSAT}", "model/model.safetensors' does not exist", "Copy it anew", gone("model/model.safetensors")),
    Bad("checkpoint", "finetune, not set", f"{FINETUNE} {EUROSAT}".replace("--checkpoint model", ""), "--checkpoint is not set", "give it on the command line"),
    Bad("checkpoint", "finetune, not on the Hub", f"{FINETUNE} {EUROSAT}".replace("--checkpoint model", "--checkpoint nobody/none"), "'nobody/none' is no folder, and no model", "pre-train your own"),
    Bad("checkpoint", "probe, a pointer", f"{PROBE} {EUROSAT}", "model/model.safetensors' is not a safetensors file", "Fetch it again", holds("model/model.safetensors", "version https://git-lfs.github.com/spec/v1")),
    Bad("checkpoint", "probe, other sizes", f"{PROBE} {EUROSAT}", "model.safetensors' does not fit the model: 'blocks.2", "Is it of another size", edited("model/config.json", model__depth=7)),
    Bad("checkpoint", "geobench, half its weights", GEOBENCH, "model/model.safetensors' is not a safetensors file", "Fetch it again", cut("model/model.safetensors")),
    Bad("checkpoint", "geobench, newer", GEOBENCH, "model/config.json' has format 2", "expected 1", edited("model/config.json", format=2)),
    Bad("checkpoint", "evaluate pre-trained", EVALUATE.replace("label", "model"), "'model' is a pre-trained model without a head", "expected a fine-tuned one"),
    Bad("checkpoint", "evaluate, other data", EVALUATE, "'label', entry 'extra.data' describes no data", "another version", edited("label/config.json", extra__data={"zebra": 1})),
    Bad("checkpoint", "evaluate, data unknown", EVALUATE.replace("label", "task"), "'task' does not say where its data are", "Evaluate it from Python too"),
    Bad("checkpoint", "predict, a run", PREDICT.replace("task", "run"), "'run' is no checkpoint", "Expected a directory written by"),
    Bad("checkpoint", "predict, half a description", f"{PREDICT} {SCENE}", "task/config.json' is not JSON", "Fetch or write it again", cut("task/config.json")),
    Bad("checkpoint", "embed, impossible", f"{EMBED} {SCENE}", "model/config.json': .*image_size 57", "multiple of patch_size 8", edited("model/config.json", model__image_size=57)),
    Bad("checkpoint", "fill, fine-tuned", FILL.replace("model", "task") + f" {SCENE} --target elevation", "task' is of a fine-tuned model, which has no decoders", "Give the pre-trained one"),
    Bad("checkpoint", "export, an entry is missing", EXPORT, "config.json': .*missing entries .'heads'", "another version", lambda here: edited("model/config.json", model={k: v for k, v in json.loads((here / "model/config.json").read_text())["model"].items() if k != "heads"})(here)),
    Bad("checkpoint", "inspect, no weights", "inspect model", "model/model.safetensors' does not exist", "Copy it anew", gone("model/model.safetensors"), process=True),
    Bad("checkpoint", "inspect, no model", "inspect model", "model/config.json' has no entry 'model'", "was it cut or edited", without("model/config.json", "model")),
    Bad("checkpoint", "inspect weights alone", "inspect weights.pth", "'weights.pth' holds weights outside of a checkpoint", "multimae-eo convert weights.pth", other_weights),
    Bad("checkpoint", "convert nothing", "convert none.pth out", "'none.pth' does not exist", "expected a .pth or .safetensors file"),
    Bad("checkpoint", "convert a folder", "convert model out", "'model' is a folder", "expected a .pth or .safetensors file"),
    Bad("checkpoint", "convert a web page", "convert weights.pth out", "'weights.pth' is not a file of tensors", "Expected a dictionary of tensors", holds("weights.pth", "<!DOCTYPE html>")),
    Bad("checkpoint", "convert other weights", "convert weights.pth out", "'weights.pth' holds no input or output adapters", "the paper's layout", other_weights),
    # --- scenes
    Bad("scene", "none", PREDICT, "no source is given", "name at least one: --source s2=PATH"),
    Bad("scene", "no file", f"{PREDICT} --source s2=none.tif", "source 's2' .'none.tif'. does not exist", "Check the path"),
    Bad("scene", "no raster", f"{EMBED} --source s2=x.tif", "'x.tif' cannot be read as a GeoTIFF", "Convert or fetch it again", holds("x.tif", "hello")),
    Bad("scene", "half a file", f"{PREDICT} {SCENE}", "scene/s2.tif' cannot be read", "Convert or fetch it again", cut("scene/s2.tif")),
    Bad("scene", "bands without names", f"{PREDICT} --source s2=x.tif", "source 's2' .'x.tif'. does not describe its 3 bands", "--source.s2.bands", raster("x.tif", numbers(3))),
    Bad("scene", "too few names", f"{PREDICT} --source s2=x.tif --source.s2.bands [B02,B03]", "bands names 2 .*but it has 3", "'-' for one to leave out", raster("x.tif", numbers(3))),
    Bad("scene", "no band of the model", f"{EMBED} --source s2=x.tif", "no source has a band that is needed.*'x.tif'.: B01", "Needed: B04", raster("x.tif", numbers(1), ["B01"])),
    Bad("scene", "reflectance", f"{PREDICT} --source s2=x.tif", "'x.tif'.: expected reflectance x 10000", "Set --source.s2.scale 10000", raster("x.tif", (numbers(10) / 10_000).astype(np.float32), BANDS)),
    Bad("scene", "an offset or none", f"{EMBED} --source s2=x.tif", "'x.tif'.: whether its values carry the .1000", "--source.s2.offset on", raster("x.tif", np.full((10, 64, 72), 700, np.uint16), BANDS)),
    Bad("scene", "no reference system", f"{PREDICT} {SCENE}", "scene/s2.tif'. has no coordinate reference system", "gdal_edit.py -a_srs", raster("scene/s2.tif", numbers(10), BANDS, crs=None)),
    Bad("scene", "two places", f"{PREDICT} {SCENE}", "scene/dem.tif'. does not overlap the scene", "choose the grid with --grid.like", raster("scene/dem.tif", smooth((1, 64, 72)).astype(np.float32), west=900_000)),
    Bad("scene", "a band twice", f"{EMBED} {SCENE} --source again=scene/s2.tif", "band 'B02' is in source 's2'", "leave one out with '-'"),
    Bad("scene", "an input is missing", f"{PREDICT} --source s2=scene/s2.tif", "the scene lacks elevation", "--allow-missing true"),
    Bad("scene", "unknown product", f"{PREDICT} {SCENE} --source.s2.product L9Z", "unknown product of source 's2' 'L9Z'", "Known: .*L2A"),
    Bad("scene", "no STAC item", f"{PREDICT} --source s2=item.json", "'item.json' is no STAC item", "Expected the JSON of one", holds("item.json", '{"stac_version": "1.0.0"}')),
    Bad("scene", "no NetCDF", f"{EMBED} --source s2=x.nc", "'x.nc'. cannot be read as NetCDF or Zarr", "Fetch or write it again", holds("x.nc", "hello")),
    Bad("scene", "an empty folder", f"{PREDICT} --source s2=empty", "source 's2' .'empty'.: expected files named after a band", "Name a file instead", folder("empty")),
    Bad("scene", "a mask without meaning", f"{PREDICT} {SCENE} --source.s2.mask scene/dem.tif", "--source.s2.masked is not set", "which values of 'scene/dem.tif' mean clouds"),
    Bad("scene", "nothing to fill from", f"{FILL} --source dem=scene/dem.tif --target elevation", "nothing but elevation", "add a source"),
    Bad("scene", "anchor of ten bands", f"{FILL} {SCENE} --target elevation --anchor scene/s2.tif", "anchor 'scene/s2.tif' has 10 bands", "elevation has 1"),
    Bad("scene", "bounds elsewhere", f"{EMBED} {SCENE} --grid.bounds [0,0,10,10]", "grid.bounds .* lie outside", "Give ones within it"),
    Bad("scene", "a grid in degrees", f"{PREDICT} {SCENE} --grid.crs EPSG:4326", "grid.crs 'EPSG:4326' is not in metres", "take the UTM zone"),
    Bad("scene", "report, no map", "report run --map none.tif", "'none.tif' cannot be read as a GeoTIFF", "Convert or fetch it again"),
    Bad("scene", "inspect half a file", "inspect scene/s2.tif", "scene/s2.tif' cannot be read", "Convert or fetch it again", cut("scene/s2.tif"), process=True),
    # --- arguments
    Bad("arguments", "none", "", "expected .* one of {pretrain,reconstruct", "See multimae-eo --help"),
    Bad("arguments", "unknown command", "pretrian --out out", "invalid choice: 'pretrian'", "'pretrain', 'reconstruct'", process=True),
    Bad("arguments", "unknown option", "synthesize --tile 4", "--tile 4", "Did you mean 'tiles'"),
    Bad("arguments", "nothing to reconstruct", "reconstruct", "reconstruct.checkpoint", "required"),
    Bad("arguments", "unknown shell", "completion fish", "shell.*fish", "'bash', 'zsh', 'tcsh'"),
    Bad("arguments", "a range", f"{PRETRAIN} --optim.betas [2,3]", "optim.betas", "below 1; got 2"),
    Bad("arguments", "too large a batch", f"{PRETRAIN} --optim.batch_size 14", "optim.batch_size 14 is larger than the 13 training tiles", "lower it"),
    Bad("arguments", "unknown modality", f"{PRETRAIN} --model.inputs [rgbb]", "unknown modality 'rgbb'", "Did you mean 'rgb'"),
    Bad("arguments", "unknown device", f"{PRETRAIN} --trainer.accelerator abacus", "accelerator 'abacus'", "cpu"),
    Bad("arguments", "a run is there", PRETRAIN, "'out' holds a run", "--resume true", holds("out/metrics.csv")),
    Bad("arguments", "reconstruct into a file", RECONSTRUCT, "out/picture.png' could not be written", "Give another --out", holds("out")),
    Bad("arguments", "reconstruct over a folder", "reconstruct model tiny --out run", "'run' could not be written", "Give another --out"),
    Bad("arguments", "no such head", f"{FINETUNE} {EUROSAT} --head convnext", "head 'convnext' does not fit classification", "expected linear or attentive"),
    Bad("arguments", "unknown data set", f"{FINETUNE} --data.root bench --data.name m-eurosta", "'m-eurosta'", "Did you mean 'm-eurosat'"),
    Bad("arguments", "no folder of data", f"{FINETUNE} --data.name m-eurosat", "data.root is not set", "give the folder"),
    Bad("arguments", "finetune on no device", f"{FINETUNE} {EUROSAT} --trainer.accelerator abacus", "accelerator 'abacus'", "cpu"),
    Bad("arguments", "unknown protocol", f"{PROBE} {EUROSAT} --protocols knm", "unknown protocol 'knm'", "Did you mean 'knn'"),
    Bad("arguments", "earlier results are damaged", f"{PROBE} {EUROSAT}", "out/results.json' is not JSON of results", "give another --out", holds("out/results.json", "{")),
    Bad("arguments", "no seeds", f"{GEOBENCH} --seeds 0", "seeds must be 1 or more", "got 0"),
    Bad("arguments", "a negative seed", f"{GEOBENCH} --first_seed -1", "first_seed must be 0 or more", "got -1"),
    Bad("arguments", "unknown partition", f"{GEOBENCH} --partitions 0.1x", "unknown partition '0.1x'", "Did you mean '0.10x'"),
    Bad("arguments", "drop what is not there", f"{EVALUATE} --drop zebra", "'zebra'", "Known: rgb, nir"),
    Bad("arguments", "drop everything", f"{EVALUATE} --drop rgb --drop nir", "--drop leaves no modality", "the model has rgb, nir"),
    Bad("arguments", "a table in a file", EVALUATE, "'out' is no folder that can be written", "Give another one", holds("out")),
    Bad("arguments", "tiles of 13 px", f"{PREDICT} {SCENE} --tiles.size 13", "tiles.size 13", "a multiple of the model's patch, 8 px"),
    Bad("arguments", "no tile at once", f"{EMBED} {SCENE} --tiles.batch 0", "tiles.batch must be 1 or more", "got 0"),
    Bad("arguments", "a map in a file", f"{PREDICT} {SCENE}", "'out' is no folder that can be written", "Give another one", holds("out")),
    Bad("arguments", "embeddings as a picture", f"{EMBED} {SCENE} --out out/e.png", "out 'out/e.png'", "ends in .tif, .zarr, .parquet"),
    Bad("arguments", "numbers that COGs lack", f"{EMBED} {SCENE} --dtype float16", "dtype float16", ".tif takes int8, float32"),
    Bad("arguments", "no target", f"{FILL} {SCENE}", "--target is not set", "One of rgb, elevation"),
    Bad("arguments", "a target without a level", f"{FILL} {SCENE} --target rgb:patch", "target 'rgb:patch' knows no level", "take one of rgb, elevation"),
    Bad("arguments", "no masks", f"{FILL} {SCENE} --target elevation --masks 0", "masks must be 1 or more", "got 0"),
    Bad("arguments", "report of no folder", "report none", "'none' is no folder", "name the folder of a run"),
    Bad("arguments", "report over a folder", "report run --out run", "'run' cannot be written", "Give another --out"),
    Bad("arguments", "export to a zip", EXPORT.replace("pt2", "zip"), "out 'out/model.zip'", "ends in .onnx or .pt2"),
    Bad("arguments", "export, unknown input", f"{EXPORT} --inputs rgbb", "unknown input 'rgbb'", "Did you mean 'rgb'"),
    Bad("arguments", "export, no size", f"{EXPORT} --image_size 0", "image_size 0", "multiple of the patch size 8"),
    Bad("arguments", "export, unknown product", EXPORT.replace("L2A", "L9Z"), "not stated by 'L9Z'", "pass product='L1C' or another of L1C, L2A"),
    Bad("arguments", "export into a file", EXPORT, "out/model.pt2' could not be written", "Give another --out", holds("out")),
    Bad("arguments", "unknown release", "download mmearth46 --out out", "unknown data set 'mmearth46'", "Did you mean 'mmearth64'"),
    Bad("arguments", "no web address", "download mmearth64 --out out --base ftp://x", "base 'ftp://x'", "expected http://"),
    Bad("arguments", "download no file", "download mmearth64 --out out --only zebra", "unknown file 'zebra'", "Known: LICENSE-data"),
    Bad("arguments", "import nothing", "import --root tiffs --out out", "name Sentinel-2 files", "s2_l1c.files or s2_l2a.files"),
    Bad("arguments", "import too large tiles", f"{IMPORT} --tile_px 64", "70 x 50 px is smaller than a tile of 64 px", "Choose a smaller tile_px"),
    Bad("arguments", "import into a file", IMPORT, "'out.*' is no folder that can be written", "Give another one", holds("out")),
    Bad("arguments", "pack nothing at all", "pack tiny out --modalities []", "modalities is empty", "name at least one"),
    Bad("arguments", "shards of no tile", "pack tiny out --tiles_per_shard 0", "tiles_per_shard must be 1 or more", "got 0"),
    Bad("arguments", "one tile", "synthesize --out out --tiles 1", "tiles is 1", "expected at least 2"),
    Bad("arguments", "tiles of 10 px", "synthesize --out out --tile_px 10", "tile_px is 10", "a multiple of 4"),
    Bad("arguments", "a world is there", "synthesize --out . --name tiny", "'tiny' exists already", "choose another name"),
    Bad("arguments", "a world in a file", "synthesize --out out --tiles 2 --tile_px 16 --workers 1", "'out.*' is no folder that can be written", "Give another one", holds("out")),
    Bad("arguments", "labels in a file", "synthesize --out out --layout geobench --tiles 10 --tile_px 16 --workers 1", "'out.*' is no folder that can be written", "Give another one", holds("out")),
    Bad("arguments", "a path for a name", "synthesize --out out --name a/b --tiles 2 --tile_px 16", "got 'a/b'", "a plain folder name"),
    Bad("arguments", "a demo over a run", "demo --out run", "'run' is not empty and is no earlier demo", "choose another --out"),
    Bad("arguments", "a demo in a file", "demo --out out", "'out' is no folder", "choose another --out", holds("out")),
    Bad("arguments", "a demo without labels", "demo --out out --labelled_tiles 1", "labelled_tiles is 1", "expected at least 10"),
    Bad("arguments", "a demo without a batch", "demo --out out --pretrain.optim.batch_size 0", "optim.batch_size must be 1 or more", "got 0"),
)
# fmt: on
GROUPS = ("data", "config", "checkpoint", "scene", "arguments")


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    here = tmp_path_factory.mktemp("original")
    make(here)
    return here


@pytest.fixture(autouse=True)
def quick(monkeypatch) -> Iterator[None]:
    """No second try of a server that refuses, no Hub, one thread."""
    monkeypatch.setattr("multimae_eo.data.web.BACKOFF_S", ())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def listing(here: Path) -> dict[str, object]:
    """All that is in a folder: of files size and time, of folders that they are there."""
    return {
        str(path.relative_to(here)): (path.stat().st_size, path.stat().st_mtime_ns) if path.is_file() else "folder"
        for path in sorted(here.rglob("*"))
    }


def spoilt(bad: Bad, original: Path, tmp_path: Path, monkeypatch) -> tuple[Path, dict[str, object]]:
    """A copy of the folder, spoilt, in which the command then runs, and what it holds."""
    here = shutil.copytree(original, tmp_path / "here")
    bad.spoil(here)
    monkeypatch.chdir(here)
    monkeypatch.setattr("multimae_eo.data.patience.PAUSE_S", 0.01)  # between attempts to read
    return here, listing(here)


def check_words(bad: Bad, message: str) -> None:
    for pattern in (bad.culprit, bad.remedy):
        assert re.search(pattern, message, re.DOTALL), f"'{pattern}' is not in: {message}"


@pytest.mark.parametrize("bad", TABLE, ids=lambda bad: f"{bad.group}: {bad.name}")
def test_a_bad_input(bad, original, tmp_path, monkeypatch, capfd):
    here, before = spoilt(bad, original, tmp_path, monkeypatch)
    check_words(bad, fails(shlex.split(bad.command), [], capfd))
    assert listing(here) == before


@pytest.mark.parametrize("bad", [bad for bad in TABLE if bad.process], ids=lambda bad: f"{bad.group}: {bad.name}")
def test_a_process_of_its_own(bad, original, tmp_path, monkeypatch):
    here, before = spoilt(bad, original, tmp_path, monkeypatch)
    command = [sys.executable, "-m", "multimae_eo.cli", *shlex.split(bad.command)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    check_words(bad, check_message(done.returncode, done.stderr, []))
    assert "Traceback" not in done.stdout
    assert listing(here) == before


def test_a_config_imports_nothing(tmp_path, monkeypatch, capfd):
    """What a class_path names is not imported, to begin with: that alone would execute a module."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "someones.py").write_text("open('owned', 'w')\n\nclass Options:\n    pass\n")
    (tmp_path / "bad.yaml").write_text("trainer: {class_path: someones.Options}\n")
    fails(
        ["pretrain", "--config", "bad.yaml"],
        ["'someones.Options' is not accepted", "neither code nor another file"],
        capfd,
    )
    assert not (tmp_path / "owned").exists()
    assert "someones" not in sys.modules


def test_the_table_covers_every_command_and_group():
    names = [(bad.group, bad.name) for bad in TABLE]
    assert len(set(names)) == len(names) >= 80
    assert {bad.command.split()[0] for bad in TABLE if bad.command} >= set(ALL)
    assert min(Counter(bad.group for bad in TABLE)[group] for group in GROUPS) >= 15
    assert [bad.group for bad in TABLE if bad.process] == ["data", "config", "checkpoint", "scene", "arguments"]
