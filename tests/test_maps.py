"""Maps through the command line: georeferenced, without a seam, resumable to the byte, honest about what is missing."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

rasterio = pytest.importorskip("rasterio")

import torch  # noqa: E402
from rasterio.warp import transform_bounds  # noqa: E402
from scenes import (  # noqa: E402
    BANDS,
    CLASSES,
    NORTH,
    WEST,
    save_model,
    save_predictor,
    smooth,
    write_raster,
    write_scene,
)

import multimae_eo  # noqa: E402
from multimae_eo.cli import main  # noqa: E402
from multimae_eo.config import sized  # noqa: E402
from multimae_eo.maps import run as maps_run  # noqa: E402
from multimae_eo.maps.mapping import tiling_for  # noqa: E402
from multimae_eo.maps.options import TileOptions  # noqa: E402
from multimae_eo.raster import by_modality  # noqa: E402

QUIET = ["--tiles.progress", "false", "--tiles.threads", "1"]


@pytest.fixture(autouse=True)
def threads():
    number = torch.get_num_threads()
    yield
    torch.set_num_threads(number)


def arguments(command, checkpoint, sources, out, *more):
    given = [part for name, path in sources.items() for part in ("--source", f"{name}={path}")]
    return [command, str(checkpoint), *given, "--out", str(out), *QUIET, *more]


def read(path, *bands):
    with rasterio.open(path) as file:
        return file.read(list(bands) or None), file.profile, file.tags()


def fails(capfd, code, *words):
    def check(given):
        with pytest.raises(SystemExit) as stopped:
            main(given)
        said = capfd.readouterr().err.strip()
        assert stopped.value.code == code, said
        assert "Traceback" not in said
        assert len(said.splitlines()) < 10
        for word in words:
            assert word in said, said

    return check


def test_a_map_of_classes(tmp_path, capfd):
    cogeo = pytest.importorskip("rio_cogeo")
    sources, out = write_scene(tmp_path), tmp_path / "map.tif"
    main(arguments("predict", save_predictor(tmp_path / "task"), sources, out))
    assert f"Wrote {out}" in capfd.readouterr().out
    assert cogeo.cog_validate(str(out), strict=True)[0]
    codes, _, tags = read(out)
    with rasterio.open(sources["s2"]) as s2, rasterio.open(out) as file:
        assert (file.crs, file.transform, file.shape) == (s2.crs, s2.transform, s2.shape)
        assert file.colormap(1)[1] == (0, 255, 0, 255)
        assert file.nodata == 255
        assert json.loads(tags["CLASSES"]) == {str(c.code): c.name for c in CLASSES}
    assert (codes[0, :20, :30] == 255).all()
    assert set(np.unique(codes[0, 20:])) <= {0, 1, 2}
    assert len(np.unique(codes[0, 20:])) > 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dem.tif", "map.tif", "s2.tif", "task"]


def test_a_small_scene_is_one_tile(tmp_path):
    """The numbers of a map are those of the model."""
    sources, checkpoint = write_scene(tmp_path, height=56, width=56), save_predictor(tmp_path / "task")
    main(arguments("predict", checkpoint, sources, tmp_path / "map.tif", "--probabilities", "true"))
    shares, _, _ = read(tmp_path / "map.tif")
    model = multimae_eo.load_predictor(checkpoint)
    s2, dem = (read(sources[name])[0].astype(np.float32) for name in ("s2", "dem"))
    values = torch.from_numpy(np.concatenate([s2, dem]))[None]
    valid = torch.from_numpy(np.concatenate([s2 > 0, dem > -9999]))[None]
    modalities = model.config.modalities
    products = {n: m.products.index(model.task.products[n]) for n, m in modalities.items()}
    batch = by_modality(values, valid, [*BANDS, "dem"], modalities, products)
    expected = model(batch)[0].softmax(dim=0).detach().numpy()
    known = shares[0] != 255
    assert not known[:20, :30].any()
    assert known[20:, 30:].all()
    assert np.abs(shares / 250 - expected)[:, known].max() < 0.5 / 250 + 1e-4


@pytest.mark.parametrize("task", ["regression", "classification", "multilabel"])
def test_maps_of_other_tasks(tmp_path, task):
    sources, out = write_scene(tmp_path), tmp_path / "map.tif"
    main(arguments("predict", save_predictor(tmp_path / "task", task), sources, out))
    values, profile, _ = read(out)
    if task == "regression":
        assert profile["dtype"] == "float32"
        assert np.isnan(values[0, :20, :30]).all()
        assert np.isfinite(values[0, 20:]).all()
        with rasterio.open(out) as file:
            assert file.units == ("t/ha",)
    elif task == "multilabel":
        assert len(values) == 3
        assert (values[:, :20, :30] == 255).all()
    else:
        assert set(np.unique(values[0, 20:])) <= {0, 1, 2}


def stopped_after(number):
    """Strips that stop being written, as a killed process does."""
    saved = maps_run.Strips.save
    count = iter(range(1000))

    def save(self, *given):
        if next(count) == number:
            raise KeyboardInterrupt
        saved(self, *given)

    return save


@pytest.mark.parametrize("number", [0, 1, 3])
def test_an_interrupted_map_goes_on_to_the_same_bytes(tmp_path, capfd, monkeypatch, number):
    sources, checkpoint = write_scene(tmp_path), save_predictor(tmp_path / "task")
    monkeypatch.setattr(maps_run, "PANEL", 80)
    whole, broken = tmp_path / "whole.tif", tmp_path / "broken.tif"
    main(arguments("predict", checkpoint, sources, whole))
    with monkeypatch.context() as patched:
        patched.setattr(maps_run.Strips, "save", stopped_after(number))
        fails(capfd, 130, "interrupted", "the same command goes on")(arguments("predict", checkpoint, sources, broken))
    assert not broken.exists()
    assert len(list((tmp_path / ".broken.tif.unfinished").glob("*.npy"))) == number
    main(arguments("predict", checkpoint, sources, broken))
    assert broken.read_bytes() == whole.read_bytes()
    assert not (tmp_path / ".broken.tif.unfinished").exists()


def test_strips_of_other_options_are_not_used(tmp_path, capfd, monkeypatch):
    sources, checkpoint, out = write_scene(tmp_path), save_predictor(tmp_path / "task"), tmp_path / "map.tif"
    with monkeypatch.context() as patched:
        patched.setattr(maps_run.Strips, "save", stopped_after(2))
        fails(capfd, 130)(arguments("predict", checkpoint, sources, out, "--tiles.overlap", "8"))
    main(arguments("predict", checkpoint, sources, out))
    main(arguments("predict", checkpoint, sources, tmp_path / "other.tif"))
    assert out.read_bytes() == (tmp_path / "other.tif").read_bytes()


def test_strips_of_other_sources_are_not_used(tmp_path, capfd, monkeypatch):
    write_scene(tmp_path)
    checkpoint, scene = save_predictor(tmp_path / "task"), tmp_path / "scene.yaml"

    def mapped(out):
        return ["predict", str(checkpoint), "--scene", str(scene), "--out", str(tmp_path / out), *QUIET]

    scene.write_text("s2: {path: s2.tif, offset: 'off'}\ndem: dem.tif\n")
    with monkeypatch.context() as patched:
        patched.setattr(maps_run.Strips, "save", stopped_after(2))
        fails(capfd, 130)(mapped("map.tif"))
    scene.write_text("s2: {path: s2.tif, offset: 'on'}\ndem: dem.tif\n")
    main(mapped("map.tif"))
    main(mapped("fresh.tif"))
    assert (tmp_path / "map.tif").read_bytes() == (tmp_path / "fresh.tif").read_bytes()


def test_strips_of_other_names_are_not_used(tmp_path, capfd, monkeypatch):
    """Of files with one band the name of a source says which it is."""
    write_scene(tmp_path)
    checkpoint = save_predictor(tmp_path / "task", inputs=("rgb", "elevation"))
    for i in range(3):
        write_raster(tmp_path / f"{i}.tif", read(tmp_path / "s2.tif")[0][i : i + 1])

    def mapped(out, *files):
        sources = {band: tmp_path / f"{i}.tif" for band, i in zip(("B02", "B03", "B04"), files, strict=True)}
        more = [
            word for band in sources for word in (f"--source.{band}.product", "L2A", f"--source.{band}.offset", "off")
        ]
        return arguments("predict", checkpoint, {**sources, "dem": tmp_path / "dem.tif"}, tmp_path / out, *more)

    with monkeypatch.context() as patched:
        patched.setattr(maps_run.Strips, "save", stopped_after(2))
        fails(capfd, 130)(mapped("map.tif", 0, 1, 2))
    main(mapped("map.tif", 2, 1, 0))
    main(mapped("fresh.tif", 2, 1, 0))
    assert (tmp_path / "map.tif").read_bytes() == (tmp_path / "fresh.tif").read_bytes()


def test_strips_of_assets_that_changed_are_not_used(tmp_path, capfd, monkeypatch):
    pystac = pytest.importorskip("pystac")
    pytest.importorskip("odc.stac")
    write_scene(tmp_path)
    checkpoint = save_predictor(tmp_path / "task", inputs=("rgb",))
    west, south, east, north = transform_bounds("EPSG:32632", "EPSG:4326", WEST, NORTH - 1300, WEST + 1500, NORTH)
    corners = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    shape, about = {"type": "Polygon", "coordinates": [corners]}, {"proj:epsg": 32632}
    item = pystac.Item("tile", shape, [west, south, east, north], datetime(2023, 6, 1), about, collection="l2a")
    for band in ("B02", "B03", "B04"):
        item.add_asset(band, pystac.Asset(f"./{band}.tif"))
    (tmp_path / "item.json").write_text(json.dumps(item.to_dict()))

    def assets(first):
        for i, band in enumerate(("B02", "B03", "B04")):
            write_raster(tmp_path / f"{band}.tif", read(tmp_path / "s2.tif")[0][[first + i]], nodata=0)

    def mapped(out):
        more = ["--source.s2.product", "L2A", "--source.s2.offset", "off"]
        return arguments("predict", checkpoint, {"s2": tmp_path / "item.json"}, tmp_path / out, *more)

    assets(0)
    with monkeypatch.context() as patched:
        patched.setattr(maps_run.Strips, "save", stopped_after(2))
        fails(capfd, 130)(mapped("map.tif"))
    assets(5)
    main(mapped("map.tif"))
    main(mapped("fresh.tif"))
    assert (tmp_path / "map.tif").read_bytes() == (tmp_path / "fresh.tif").read_bytes()


@pytest.mark.slow
def test_a_killed_map_goes_on_to_the_same_bytes(tmp_path):
    sources, checkpoint = write_scene(tmp_path, height=700, width=300), save_predictor(tmp_path / "task")
    whole, broken = tmp_path / "whole.tif", tmp_path / "broken.tif"
    main(arguments("predict", checkpoint, sources, whole))
    for strips in (2, 5, 9):
        command = [sys.executable, "-m", "multimae_eo.cli", *arguments("predict", checkpoint, sources, broken)]
        process = subprocess.Popen(command)
        folder = tmp_path / ".broken.tif.unfinished"
        while len(list(folder.glob("strip_*.npy"))) < strips:
            assert process.poll() is None
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not broken.exists()
    main(arguments("predict", checkpoint, sources, broken))
    assert broken.read_bytes() == whole.read_bytes()


def spoil(path):
    """Break the block of the second row and column of a GeoTIFF."""
    with rasterio.open(path) as file:
        offset = int(file.get_tag_item("BLOCK_OFFSET_1_1", "TIFF", bidx=1))
    data = bytearray(path.read_bytes())
    data[offset : offset + 100] = bytes(100)
    path.write_bytes(data)


def test_a_damaged_block_is_named_and_left_out(tmp_path, capfd, monkeypatch):
    sources, checkpoint, out = write_scene(tmp_path), save_predictor(tmp_path / "task"), tmp_path / "map.tif"
    array, _, _ = read(sources["s2"])
    tags = {"PRODUCT": "L2A", "PROCESSING_BASELINE": "02.14"}
    about = {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate", "tags": tags}
    write_raster(tmp_path / "s2.tif", array, BANDS, **about)
    spoil(tmp_path / "s2.tif")
    fails(capfd, 3, f"'{out}' is written", sources["s2"], "rows 64 to 128, columns 64 to 128")(
        arguments("predict", checkpoint, sources, out)
    )
    codes = read(out)[0][0]
    assert (codes[64:128, 64:128] == 255).all()
    codes[64:128, 64:128] = 0
    assert (codes[20:128] != 255).all()
    with monkeypatch.context() as patched:  # what was damaged is not forgotten by a run that goes on
        patched.setattr(maps_run.Strips, "save", stopped_after(2))
        fails(capfd, 130)(arguments("predict", checkpoint, sources, tmp_path / "again.tif"))
    fails(capfd, 3, "is written")(arguments("predict", checkpoint, sources, tmp_path / "again.tif"))
    assert (tmp_path / "again.tif").read_bytes() == out.read_bytes()


def test_clouds_everywhere_give_no_data_not_a_guess(tmp_path):
    sources, checkpoint, out = write_scene(tmp_path), save_predictor(tmp_path / "task"), tmp_path / "map.tif"
    write_raster(tmp_path / "cloud.tif", np.ones((1, 130, 150), np.uint8))
    masked = ["--source.s2.mask", str(tmp_path / "cloud.tif"), "--source.s2.masked", "[1]"]
    main(arguments("predict", checkpoint, sources, out, *masked))
    assert (read(out)[0] == 255).all()


def test_a_missing_modality(tmp_path, capfd):
    sources, out = write_scene(tmp_path), tmp_path / "map.tif"
    only = {"s2": sources["s2"]}
    checkpoint = save_predictor(tmp_path / "task")
    fails(capfd, 2, "lacks elevation", "trained with rgb, nir, elevation", "--allow-missing true")(
        arguments("predict", checkpoint, only, out)
    )
    assert not out.exists()
    main(arguments("predict", checkpoint, only, out, "--allow-missing", "true"))
    dropping = save_predictor(tmp_path / "dropping", data={"drop_modality": 0.3})
    main(arguments("predict", dropping, only, tmp_path / "other.tif"))
    assert "Without elevation" in capfd.readouterr().err
    assert np.array_equal(read(out)[0], read(tmp_path / "other.tif")[0])


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--tiles.size", "60"], ["tiles.size 60", "patch, 8 px"]),
        (["--tiles.overlap", "40"], ["overlap 40", "half of the size"]),
        (["--tiles.margin", "12"], ["margin 12", "more than half of the overlap"]),
        (["--tiles.batch", "0"], ["tiles.batch", "got 0"]),
        (["--tiles.device", "abacus"], ["tiles.device 'abacus'"]),
        (["--tiles.threads", "0"], ["tiles.threads", "got 0"]),
        (["--source.s2.product", "L1C"], ["trained on rgb of product L2A", "L1C"]),
        (["--source.s2.offset", "maybe"], ["offset", "maybe"]),
        (["--source.s2.bnds", "[B02]"], ["bnds"]),
        (["--grid.crs", "EPSG:4326"], ["not in metres"]),
        (["--source", "dem=elsewhere.tif"], ["'elsewhere.tif'", "does not exist"]),
        (["--scene", "none.yaml"], ["none.yaml"]),
    ],
)
def test_bad_options(tmp_path, capfd, more, words):
    sources, checkpoint = write_scene(tmp_path), save_predictor(tmp_path / "task")
    fails(capfd, 2, *words)(arguments("predict", checkpoint, sources, tmp_path / "out" / "map.tif", *more))
    assert not (tmp_path / "out").exists()


def test_other_bad_input(tmp_path, capfd):
    sources, task, model = write_scene(tmp_path), save_predictor(tmp_path / "task"), save_model(tmp_path / "model")
    out = tmp_path / "map.tif"
    fails(capfd, 2, "no source is given", "--source s2=PATH")(arguments("predict", task, {}, out))
    fails(capfd, 2, "without a head")(arguments("predict", model, sources, out))
    fails(capfd, 2, "is a folder")(arguments("predict", task, sources, tmp_path))
    (tmp_path / "file").write_text("")
    fails(capfd, 2, "is no folder that can be written")(
        arguments("predict", task, sources, tmp_path / "file" / "map.tif")
    )
    regression = save_predictor(tmp_path / "regression", "regression")
    fails(capfd, 2, "a regression has none")(arguments("predict", regression, sources, out, "--probabilities", "true"))
    fails(capfd, 2, "no source has a band", "Needed: B04")(
        arguments("embed", model, {"x": write_raster(tmp_path / "x.tif", np.ones((1, 9, 9)))}, tmp_path / "e.tif")
    )
    fails(capfd, 2, "ends in .tif, .zarr, .parquet")(arguments("embed", model, sources, tmp_path / "e.png"))
    fails(capfd, 2, "dtype float16", "int8, float32")(
        arguments("embed", model, sources, tmp_path / "e.tif", "--dtype", "float16")
    )
    fails(capfd, 2, "--target is not set", "rgb")(arguments("fill", model, sources, out))
    fails(capfd, 2, "unknown target", "elevation:sample")(arguments("fill", model, sources, out, "--target", "canopy"))
    fails(capfd, 2, "knows no level")(arguments("fill", model, sources, out, "--target", "rgb:patch"))
    fails(capfd, 2, "masks must be 1 or more")(
        arguments("fill", model, sources, out, "--target", "rgb", "--masks", "0")
    )
    fails(capfd, 2, "nothing but elevation")(
        arguments("fill", model, {"dem": sources["dem"]}, out, "--target", "elevation")
    )
    fails(capfd, 2, "anchor", "10 bands")(
        arguments("fill", model, {"s2": sources["s2"]}, out, "--target", "elevation", "--anchor", sources["s2"])
    )
    assert not out.exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_keeps_what_is_finished(tmp_path, capfd, monkeypatch):
    sources, checkpoint, out = write_scene(tmp_path), save_predictor(tmp_path / "task"), tmp_path / "map.tif"
    saved, count = np.save, iter(range(100))

    def full(file, values):
        if next(count) == 2:
            with open("/dev/full", "wb") as device:
                device.write(b"x" * 100_000)
        saved(file, values)

    with monkeypatch.context() as patched:
        patched.setattr(np, "save", full)
        fails(capfd, 2, "could not be written", "No space left", "goes on from there")(
            arguments("predict", checkpoint, sources, out)
        )
    assert not out.exists()
    main(arguments("predict", checkpoint, sources, out))
    main(arguments("predict", checkpoint, sources, tmp_path / "whole.tif"))
    assert out.read_bytes() == (tmp_path / "whole.tif").read_bytes()


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("e.tif", "int8"),
        pytest.param("e.tif", "float32", marks=pytest.mark.slow),
        ("e.zarr", "float16"),
        ("e.parquet", "int8"),
    ],
)
def test_embeddings(tmp_path, name, dtype):
    """On a grid of their own, the same numbers in every format."""
    sources, out = write_scene(tmp_path), tmp_path / name
    checkpoint = save_model(tmp_path / "model")
    main(arguments("embed", checkpoint, sources, out, "--dtype", dtype))
    main(
        arguments("embed", checkpoint, sources, tmp_path / "reference.tif", "--dtype", "float32", "--preview", "false")
    )
    expected = read(tmp_path / "reference.tif")[0]
    assert expected.shape == (96, 17, 19)
    assert np.isnan(expected[:, 0, 0]).all()
    if name == "e.tif":
        with rasterio.open(out) as file:
            assert file.transform.a == 80
            found = file.read(masked=True).filled(0) * np.array(file.scales)[:, None, None]
            found[:, ~file.read_masks(1).astype(bool)] = np.nan
    elif name == "e.zarr":
        xarray = pytest.importorskip("xarray")
        store = xarray.open_zarr(out, consolidated=False, decode_coords="all")
        assert store.embeddings.dims == ("band", "y", "x")
        assert float(store.x[0]) == WEST + 40
        assert float(store.y[0]) == NORTH - 40
        assert "PROJCS" in store.spatial_ref.attrs["crs_wkt"]
        found = store.embeddings.values.astype(np.float32)
    else:
        parquet = pytest.importorskip("pyarrow.parquet")
        shapely = pytest.importorskip("shapely")
        table = parquet.read_table(out)
        about = json.loads(table.schema.metadata[b"geo"])
        scale = np.array(json.loads(table.schema.metadata[b"multimae_eo"])["scale"])
        assert about["columns"]["geometry"]["crs"]["id"]["code"] == 32632
        outline = shapely.from_wkb(table["geometry"][0].as_py())
        row, column = table["row"][0].as_py(), table["column"][0].as_py()
        assert outline.bounds == (
            WEST + 80 * column,
            NORTH - 80 * (row + 1),
            WEST + 80 * (column + 1),
            NORTH - 80 * row,
        )
        assert table["source_url"][0].as_py() == f"{sources['s2']}, {sources['dem']}"
        found = np.full(expected.shape, np.nan, np.float32)
        vectors = np.array(table["embeddings"].to_pylist()) * scale
        found[:, table["row"].to_numpy(), table["column"].to_numpy()] = vectors.T
    assert np.array_equal(np.isnan(found), np.isnan(expected))
    scale = np.nanmax(np.abs(expected))
    apart = np.abs(found - expected)[np.isfinite(expected)]
    assert np.quantile(apart, 0.999) < (0.02 if dtype == "int8" else 0.002) * scale
    assert (out.with_suffix(".png")).stat().st_size > 500
    main(arguments("embed", checkpoint, sources, out, "--dtype", dtype))  # replaces what was there


def test_a_layer_that_is_not_there(tmp_path):
    sources, out = write_scene(tmp_path), tmp_path / "out.tif"
    model = save_model(tmp_path / "model", targets=("elevation", "elevation:sample", "land_cover", "rgb"))
    only = {"s2": sources["s2"]}
    main(arguments("fill", model, only, out, "--target", "elevation", "--masks", "3"))
    values, _, _ = read(out)
    assert np.isfinite(values).all()  # also where the image has a gap: that is what filling is for
    assert (values[1] > 0).all()
    with rasterio.open(out) as file:
        assert file.units == ("m", "m")
        assert file.descriptions == ("dem", "dem: standard deviation over 3 masks")
    main(arguments("fill", model, only, tmp_path / "again.tif", "--target", "elevation", "--masks", "3"))
    assert out.read_bytes() == (tmp_path / "again.tif").read_bytes()
    main(arguments("fill", model, only, out, "--target", "land_cover", "--masks", "2"))
    codes = read(out)[0][0]
    assert set(np.unique(codes)) <= {10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 100}


def test_relief_becomes_metres_through_an_anchor(tmp_path):
    sources, out = write_scene(tmp_path), tmp_path / "out.tif"
    model, only = save_model(tmp_path / "model"), {"s2": sources["s2"]}
    main(arguments("fill", model, only, out, "--target", "elevation", "--masks", "2"))
    with rasterio.open(out) as file:
        assert file.descriptions[0] == "relative relief"
        assert file.units[0] == "standard deviations of a tile"
        assert "relative relief" in file.tags()["TITLE"]
    truth = read(sources["dem"])[0][0]
    coarse = truth[:126, :144].reshape(14, 9, 16, 9).mean((1, 3))[None].astype(np.float32)
    write_raster(tmp_path / "coarse.tif", coarse, pixel=90.0)
    main(
        arguments(
            "fill", model, only, out, "--target", "elevation", "--masks", "2", "--anchor", str(tmp_path / "coarse.tif")
        )
    )
    values, _, tags = read(out)
    assert np.isfinite(values).all()
    assert np.abs(values[0] - truth)[:120, :140].mean() < 0.25 * truth.std()
    assert tags["ANCHOR"].endswith("coarse.tif")


def test_gaps_are_filled_and_known_values_stay(tmp_path):
    sources, out, model = write_scene(tmp_path), tmp_path / "out.tif", save_model(tmp_path / "model")
    truth = read(sources["dem"])[0]
    holed = truth.copy()
    holed[:, 40:60, 50:80] = -9999
    write_raster(tmp_path / "dem.tif", holed, nodata=-9999)
    main(arguments("fill", model, sources, out, "--target", "elevation", "--masks", "2"))
    values, _, _ = read(out)
    gap = np.zeros(truth.shape[1:], bool)
    gap[40:60, 50:80] = True
    assert np.array_equal(values[0][~gap], truth[0][~gap])
    assert (values[1][~gap] == 0).all()
    assert np.isfinite(values[0]).all()
    assert np.abs(values[0] - truth[0])[gap].mean() < 2 * truth.std()
    main(arguments("fill", model, sources, out, "--target", "rgb", "--masks", "2"))
    image = read(out)[0]
    with rasterio.open(out) as file:
        assert file.descriptions[:3] == ("B04", "B03", "B02")
    assert np.array_equal(image[0, 20:], read(sources["s2"])[0][BANDS.index("B04"), 20:])
    assert np.isfinite(image).all()


def test_what_a_scene_has_of_the_bands_of_a_target_stays(tmp_path):
    sources, out, model = write_scene(tmp_path), tmp_path / "out.tif", save_model(tmp_path / "model")
    some = [b for b in BANDS if b != "B03"]
    stored = read(sources["s2"])[0][[BANDS.index(b) for b in some]]
    write_raster(tmp_path / "s2.tif", stored, some, tags={"PRODUCT": "L2A", "PROCESSING_BASELINE": "02.14"})
    main(arguments("fill", model, sources, out, "--target", "rgb", "--masks", "2"))
    red, green, blue, *spread = read(out)[0]
    assert np.array_equal(red[20:], stored[some.index("B04"), 20:])
    assert np.array_equal(blue[20:], stored[some.index("B02"), 20:])
    assert np.isfinite(green).all()
    assert (spread[1][20:] > 0).all()
    assert not spread[0][20:].any()


def test_an_anchor_is_used_and_read_to_its_end(tmp_path, capfd):
    sources, out = write_scene(tmp_path), tmp_path / "out.tif"
    model, only = save_model(tmp_path / "model", targets=("elevation", "rgb")), {"s2": sources["s2"]}
    anchor = ["--target", "elevation", "--masks", "2", "--anchor", sources["dem"]]
    fails(capfd, 2, "'elevation' is predicted in its unit and takes none")(arguments("fill", model, only, out, *anchor))
    assert not out.exists()
    relative, path = save_model(tmp_path / "relative"), Path(sources["dem"])
    write_raster(path, read(path)[0], tiled=True, blockxsize=64, blockysize=64, compress="deflate")
    spoil(path)
    fails(capfd, 3, "is written", "dem.tif' could not be read")(arguments("fill", relative, only, out, *anchor))


def test_no_embedding_where_no_token_is_valid(tmp_path):
    """Two of three bands are enough for a modality, and leave no room for gaps."""
    model, image = save_model(tmp_path / "model"), smooth((2, 64, 69)).astype(np.uint16)
    path = write_raster(tmp_path / "two.tif", image, ("B04", "B03"), tags={"PRODUCT": "L2A"})
    more = ["--source.s2.offset", "off", "--dtype", "float32", "--preview", "false"]
    main(arguments("embed", model, {"s2": path}, tmp_path / "e.tif", *more))
    found = read(tmp_path / "e.tif")[0]
    assert np.isnan(found[:, :, -1]).all()  # 5 of its 8 columns of pixels are there
    assert np.isfinite(found[:, :, :-1]).all()
    assert (np.abs(found[:, :, :-1]).sum(axis=0) > 0).all()


def test_a_scene_can_be_a_second_word(tmp_path):
    write_scene(tmp_path)
    (tmp_path / "scene.yaml").write_text("s2: s2.tif\ndem: dem.tif\n")
    model = save_model(tmp_path / "model")
    main(["embed", str(model), str(tmp_path / "scene.yaml"), "--out", str(tmp_path / "e.tif"), *QUIET])
    assert read(tmp_path / "e.tif")[2]["INPUTS"] == "rgb, red_edge, swir, nir, elevation"


def test_a_read_only_folder(tmp_path, capfd):
    if os.geteuid() == 0:
        pytest.skip("nothing is read-only to this user")
    sources, checkpoint = write_scene(tmp_path), save_predictor(tmp_path / "task")
    (tmp_path / "locked").mkdir(mode=0o500)
    fails(capfd, 2, "cannot be written")(arguments("predict", checkpoint, sources, tmp_path / "locked" / "map.tif"))
    shutil.rmtree(tmp_path / "locked")


@pytest.mark.parametrize(("module", "extra"), [("rasterio", "maps"), ("tqdm", "maps")])
def test_what_is_not_installed_is_named(tmp_path, capfd, monkeypatch, module, extra):
    for name in [n for n in sys.modules if n.startswith("multimae_eo.maps.") and not n.endswith("options")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    fails(capfd, 2, f"needs {module}", f"multimae-eo[{extra}]")(["predict", str(tmp_path)])


def test_tiles_are_as_large_as_what_a_model_was_trained_on():
    config = sized("demo")
    assert tiling_for(TileOptions(), config).size == 56
    assert tiling_for(TileOptions(), config, trained=120).size == 120
    assert tiling_for(TileOptions(size=64), config, trained=120).size == 64
    cells = tiling_for(TileOptions(), config, cell=8)
    assert (cells.size, cells.stride) == (7, 4)


def test_a_random_part_of_the_valid_tokens():
    from multimae_eo.maps.fill import random_part

    valid = torch.rand(3, 2, 49, generator=torch.manual_seed(0)) < 0.5
    valid[2] = False
    valid[2, 0, :3] = True
    mask = random_part(valid, torch.rand(3, 2, 49), 0.5)
    assert mask.visible.shape == (3, 49)
    for sample, (places, real) in enumerate(zip(mask.visible, mask.real, strict=True)):
        shown = places[real]
        assert len(shown) == -(-int(valid[sample].sum()) // 2) == len(set(shown.tolist()))
        assert valid[sample].flatten()[shown].all()


def test_numbers_that_int8_cannot_hold_are_counted():
    from multimae_eo.maps.embed import Quantized

    one = Quantized(np.array([1.0, 0.1]))
    stored = one(np.array([[[127.4, -3.0]], [[20.0, 1.0]]]), np.array([[True, True]]), None)
    assert stored.tolist() == [[[127, -3]], [[127, 10]]]
    assert one.note.startswith("25.00%")
    assert not Quantized(np.ones(1)).note
