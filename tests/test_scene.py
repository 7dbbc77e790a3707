"""Scenes: sources of any kind on one grid, the same numbers whichever window is read, in the model's units."""

import json
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

rasterio = pytest.importorskip("rasterio")

from rasterio.shutil import copy as copy_raster  # noqa: E402
from rasterio.transform import Affine, from_origin  # noqa: E402
from rasterio.warp import Resampling, reproject, transform_bounds  # noqa: E402
from rasterio.warp import transform as warp_points  # noqa: E402
from scenes import BANDS, CRS, NORTH, WEST, smooth, write_raster, write_scene  # noqa: E402

from multimae_eo.errors import ConfigError, DataError, GridError, UnknownNameError  # noqa: E402
from multimae_eo.maps.finding import look  # noqa: E402
from multimae_eo.maps.layers import Window, pieces  # noqa: E402
from multimae_eo.maps.options import GridOptions, SourceOptions, read_scene_file  # noqa: E402
from multimae_eo.maps.scene import open_scene  # noqa: E402


def opened(sources, wanted=BANDS, grid=None):
    return open_scene({n: SourceOptions(s) if isinstance(s, str) else s for n, s in sources.items()}, wanted, grid)


def whole(scene):
    return scene.read(Window(0, 0, scene.grid.height, scene.grid.width))


def test_two_sources_on_one_grid_by_name_of_band(tmp_path):
    scene = opened(write_scene(tmp_path), ("B04", "B08", "dem"))
    assert scene.bands == ("B04", "B08", "dem")
    values, valid = whole(scene)
    s2 = rasterio.open(tmp_path / "s2.tif").read()
    assert np.array_equal(values[0], s2[BANDS.index("B04")])
    assert not valid[:2, :20, :30].any()
    assert valid[2].all()
    assert scene.sources[0].found.product == "L2A"
    beyond, there = scene.read(Window(-10, -20, 30, 40))
    assert not there[:, :10].any()
    assert not there[:, :, :20].any()
    assert np.array_equal(beyond[2, 10:, 20:], values[2, :20, :20])


@pytest.mark.parametrize("kind", ["other resolution", "other crs", "rotated"])
def test_any_window_of_a_warped_source_is_part_of_the_whole(tmp_path, kind):
    paths = write_scene(tmp_path)
    field = smooth((1, 120, 130), seed=3, low=0, high=500).astype(np.float32)
    if kind == "other resolution":
        write_raster(tmp_path / "dem.tif", field, pixel=30.0, west=WEST - 300, north=NORTH + 300)
    elif kind == "other crs":
        west, _, east, north = transform_bounds(CRS, "EPSG:4326", WEST, NORTH - 1300, WEST + 1500, NORTH)
        step = (east - west) / 100
        write_raster(
            tmp_path / "dem.tif", field, crs="EPSG:4326", transform=from_origin(west - step, north + step, step, step)
        )
    else:
        turned = from_origin(WEST - 300, NORTH + 100, 20, 20) @ Affine.rotation(10)
        write_raster(tmp_path / "dem.tif", field, transform=turned)
    scene = opened(paths, ("B04", "dem"))
    values, valid = whole(scene)
    for window in (Window(0, 0, 56, 56), Window(37, 61, 44, 70), Window(100, 140, 50, 50)):
        part, there = scene.read(window)
        inside = np.s_[:, window.top : window.top + window.height, window.left : window.left + window.width]
        rows, columns = values[inside].shape[1:]
        assert np.array_equal(part[:, :rows, :columns], values[inside])
        assert np.array_equal(there[:, :rows, :columns], valid[inside])
    expected = np.full(values.shape[1:], np.nan, np.float32)
    with rasterio.open(tmp_path / "dem.tif") as dem:
        onto = {"dst_transform": scene.grid.transform, "dst_crs": scene.grid.crs, "dst_nodata": np.nan}
        reproject(rasterio.band(dem, 1), expected, **onto, resampling=Resampling.bilinear)
    both = np.isfinite(expected) & valid[1]
    assert both.mean() > 0.9 * np.isfinite(expected).mean() > 0
    assert np.abs(expected - values[1])[both].max() < 2


@pytest.mark.parametrize("west", [300_000, 500_000, 700_000])
@pytest.mark.parametrize("kind", ["tif", "nc"])
def test_a_source_may_cover_the_earth(tmp_path, west, kind):
    """Degrees x 10 as heights, which bilinear interpolation keeps."""
    xarray, step = pytest.importorskip("xarray"), 0.5
    longitudes, latitudes = np.arange(-180 + step / 2, 180, step), np.arange(90 - step / 2, -90, -step)
    heights = (10 * latitudes[:, None] + longitudes).astype(np.float32)
    if kind == "tif":
        transform = from_origin(-180, 90, step, step)
        path = write_raster(tmp_path / "dem.tif", heights[None], crs="EPSG:4326", transform=transform)
    else:
        pytest.importorskip("odc.geo.xr")
        cube = xarray.Dataset(
            {"dem": (("latitude", "longitude"), heights)}, {"latitude": latitudes, "longitude": longitudes}
        )
        path = tmp_path / "dem.nc"
        cube.odc.assign_crs("EPSG:4326").to_netcdf(path, engine="h5netcdf")
    s2 = write_raster(tmp_path / "s2.tif", smooth((1, 60, 70)).astype(np.uint16), ["B04"], west=west)
    scene = opened({"s2": SourceOptions(str(s2), offset="off"), "dem": str(path)}, ("B04", "dem"))
    values, valid = whole(scene)
    assert valid[1].all()
    xs, ys = np.meshgrid(west + 5 + 10.0 * np.arange(70), NORTH - 5 - 10.0 * np.arange(60))
    east, north = warp_points(CRS, "EPSG:4326", xs.ravel(), ys.ravel())
    assert np.abs(values[1].ravel() - (10 * np.array(north) + east)).max() < 1e-2


def test_classes_are_resampled_to_the_nearest(tmp_path):
    codes = np.random.default_rng(0).choice([10, 40, 80], (1, 60, 60)).astype(np.uint8)
    write_raster(tmp_path / "worldcover.tif", codes, pixel=30.0)
    scene = opened({**write_scene(tmp_path), "worldcover": str(tmp_path / "worldcover.tif")}, ("B04", "worldcover"))
    values, valid = whole(scene)
    assert set(np.unique(values[1][valid[1]])) == {10, 40, 80}


def test_per_band_files_take_the_finest(tmp_path):
    folder = (
        tmp_path / "S2A_MSIL2A_20230615T101601_N0509_R065_T32TQM_20230615T161201.SAFE" / "GRANULE" / "L2A" / "IMG_DATA"
    )
    field = smooth((1, 120, 120), low=1100).astype(np.uint16)
    for band, meters in (("B02", 10), ("B02", 20), ("B11", 20), ("SCL", 20)):
        size = 1200 // meters
        array = field[:, ::2, ::2] if meters == 20 else field
        if band == "SCL":
            array = np.full((1, size, size), 4, np.uint8)
            array[:, :10, :10] = 9
        write_raster(
            folder / f"R{meters}m" / f"T32TQM_20230615T101601_{band}_{meters}m.tif", array, pixel=float(meters)
        )
    found = look("s2", SourceOptions(str(folder.parents[2])))
    assert found.places["B02"].where.endswith("B02_10m.tif")
    assert (found.product, found.date) == ("L2A", "2023-06-15")
    scene = opened({"s2": str(folder.parents[2])}, ("B02", "B11"))
    assert scene.sources[0].offset == 1000
    assert any("scene classes" in note for note in scene.notes)
    values, valid = whole(scene)
    assert np.array_equal(values[0], np.maximum(field[0].astype(int) - 1000, 1))
    masked = opened({"s2": SourceOptions(str(folder.parents[2]), mask="SCL")}, ("B02", "B11"))
    values, valid = whole(masked)
    assert not valid[:, :20, :20].any()
    assert valid[:, 20:, 20:].all()
    assert masked.sources[0].offset == 1000


def test_jpeg_2000_as_esa_delivers_it(tmp_path):
    field = smooth((1, 120, 120)).astype(np.uint16)
    tif = write_raster(tmp_path / "x.tif", field)
    folder = tmp_path / "IMG_DATA"
    folder.mkdir()
    copy = {"driver": "JP2OpenJPEG", "QUALITY": "100", "REVERSIBLE": "YES"}
    copy_raster(tif, folder / "T32TQM_20200615T101601_B04_10m.jp2", **copy)
    scene = opened({"s2": SourceOptions(str(folder), offset="off", product="L2A")})
    assert np.array_equal(whole(scene)[0][0], field[0])
    assert scene.dates == ("2020-06-15",)


def test_scale_classes_and_masks_of_another_file(tmp_path):
    reflectance = (smooth((1, 80, 80)) / 10000).astype(np.float32)
    write_raster(tmp_path / "B04.tif", reflectance)
    write_raster(tmp_path / "cloud.tif", np.pad(np.ones((1, 8, 8), np.uint8), ((0, 0), (0, 32), (0, 32))), pixel=20.0)
    write_raster(tmp_path / "lulc.tif", np.full((1, 80, 80), 5, np.uint8))
    with pytest.raises(DataError, match=r"looks like reflectance. Set --source.B04.scale 10000"):
        opened({"B04": str(tmp_path / "B04.tif")}, ("B04",))
    with pytest.raises(DataError, match=r"codes that have no meaning here: 5; known: 10, 20"):
        opened({"lulc": str(tmp_path / "lulc.tif")}, ("worldcover",))
    mask = SourceOptions(str(tmp_path / "B04.tif"), scale=10000, offset="off", mask=str(tmp_path / "cloud.tif"))
    with pytest.raises(ConfigError, match="masked is not set"):
        opened({"B04": mask}, ("B04",))
    mask.masked = [1]
    with pytest.raises(ConfigError, match=r"classes names 51, which is no class of land_cover; its classes are 10, 20"):
        opened({"lulc": SourceOptions(str(tmp_path / "lulc.tif"), classes={5: 51, 6: 0})}, ("worldcover",))
    classes = SourceOptions(str(tmp_path / "lulc.tif"), classes={5: 50})
    values, valid = whole(opened({"B04": mask, "lulc": classes}, ("B04", "worldcover")))
    assert np.allclose(values[0][valid[0]], (reflectance[0] * 10000)[valid[0]])
    assert not valid[0, :16, :16].any()
    assert valid[0, 16:, 16:].all()
    assert (values[1] == 50).all()


def test_netcdf_and_zarr_and_open_data_sets(tmp_path):
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("odc.geo.xr")
    write_scene(tmp_path)
    field = smooth((2, 100, 110), seed=5, low=100, high=2000)
    x, y = WEST + 100 + 20 * (np.arange(110) + 0.5), NORTH - 20 * (np.arange(100) + 0.5)
    cube = xarray.Dataset(
        {n: (("time", "y", "x"), f[None].astype(np.float32)) for n, f in zip(("B03", "B11"), field, strict=True)},
        {"time": [np.datetime64("2021-05-04")], "y": y, "x": x},
    ).odc.assign_crs(CRS)
    cube.to_netcdf(tmp_path / "s2.nc", engine="h5netcdf")
    cube.to_zarr(tmp_path / "s2.zarr", consolidated=False)
    write_raster(tmp_path / "dem20.tif", smooth((1, 100, 110), low=0, high=10).astype(np.float32), ["dem"])
    grid = GridOptions(like=tmp_path / "dem20.tif")
    found = []
    for source in (str(tmp_path / "s2.nc"), str(tmp_path / "s2.zarr"), cube, cube.chunk(32)):
        given = SourceOptions(source, offset="off") if isinstance(source, str) else source
        scene = open_scene({"s2": given}, ("B03", "B11"), grid)
        found.append(whole(scene))
        part, there = scene.read(Window(30, 25, 40, 50))
        assert np.array_equal(part, found[-1][0][:, 30:70, 25:75])
        assert np.array_equal(there, found[-1][1][:, 30:70, 25:75])
    for values, valid in found[1:]:
        assert np.array_equal(values, found[0][0])
        assert np.array_equal(valid, found[0][1])
    values, valid = found[0]
    assert valid[:, 5:90, 15:100].all()
    assert not valid[:, :, :8].any()
    two = xarray.concat([cube, cube.assign_coords(time=[np.datetime64("2021-05-09")])], "time")
    two.to_netcdf(tmp_path / "two.nc", engine="h5netcdf")
    with pytest.raises(ConfigError, match=r"2 time steps; choose one: --source.s2.date 2021-05-04"):
        opened({"s2": str(tmp_path / "two.nc")}, ("B03",))
    chosen = open_scene(
        {"s2": SourceOptions(str(tmp_path / "two.nc"), date="2021-05-09", offset="off")}, ("B03",), grid
    )
    assert np.array_equal(whole(chosen)[0][0], values[0])
    assert chosen.dates == ("2021-05-09",)
    twice = two.assign_coords(time=[np.datetime64("2021-05-09T10:20:31"), np.datetime64("2021-05-09T10:20:34")])
    twice.to_netcdf(tmp_path / "twice.nc", engine="h5netcdf")
    with pytest.raises(ConfigError, match=r"2 time steps on 2021-05-09; .*groupby='solar_day'"):
        opened({"s2": SourceOptions(str(tmp_path / "twice.nc"), date="2021-05-09")}, ("B03",))


def test_a_stac_item_is_read_with_odc_stac(tmp_path):
    pystac = pytest.importorskip("pystac")
    pytest.importorskip("odc.stac")
    field = smooth((2, 90, 100), low=1100).astype(np.uint16)
    for name, array in zip(("red", "nir"), field, strict=True):
        write_raster(tmp_path / f"{name}.tif", array[None], nodata=0)
    outline = transform_bounds(CRS, "EPSG:4326", WEST, NORTH - 900, WEST + 1000, NORTH)
    west, south, east, north = outline
    corners = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    about = {"s2:processing_baseline": "05.09", "proj:epsg": 32632}
    shape = {"type": "Polygon", "coordinates": [corners]}
    item = pystac.Item("tile", shape, list(outline), datetime(2023, 6, 1), about, collection="sentinel-2-l2a")
    for name in ("red", "nir"):
        item.add_asset(name, pystac.Asset(str(tmp_path / f"{name}.tif"), media_type="image/tiff", roles=["data"]))
    (tmp_path / "item.json").write_text(json.dumps(item.to_dict()))
    scene = opened({"s2": str(tmp_path / "item.json")}, ("B04", "B08"))
    assert scene.bands == ("B04", "B08")
    assert (scene.sources[0].offset, scene.sources[0].found.product) == (1000, "L2A")
    assert scene.dates == ("2023-06-01",)
    assert (scene.grid.height, scene.grid.width) == (90, 100)
    values, valid = scene.read(Window(10, 20, 30, 40))
    assert np.array_equal(values, field[:, 10:40, 20:60].astype(int) - 1000)
    assert valid.all()
    assert np.array_equal(open_scene({"s2": item}, ("B04",)).read(Window(10, 20, 30, 40))[0], values[:1])
    beyond, there = scene.read(Window(-10, 80, 30, 40))
    assert there[:, 10:, :20].all()
    assert there.sum() == 2 * 20 * 20
    assert not beyond[~there].any()


WAYS = {
    "asset": lambda numbers: numbers,
    "asset, with a prefix": lambda numbers: {f"raster:{k}": v for k, v in numbers.items()},
    "its band": lambda numbers: {"bands": [{"name": "dem", **{f"raster:{k}": v for k, v in numbers.items()}}]},
    "raster:bands": lambda numbers: {"raster:bands": [numbers]},
}


@pytest.mark.parametrize("way", WAYS)
def test_numbers_that_a_stac_item_states(tmp_path, way):
    pystac = pytest.importorskip("pystac")
    pytest.importorskip("odc.stac")
    item = pystac.Item("tile", None, None, datetime(2023, 6, 1), {})
    fields = WAYS[way]({"nodata": -9999, "scale": 0.1, "offset": 5})
    item.add_asset("dem", pystac.Asset("https://nowhere.invalid/dem.tif", extra_fields=fields))
    (tmp_path / "item.json").write_text(json.dumps(item.to_dict()))
    place = look("dem", SourceOptions(str(tmp_path / "item.json"))).places["dem"]
    assert (place.nodata, place.scale, place.offset) == (-9999, 0.1, 5)


def test_assets_in_several_resolutions(tmp_path):
    pystac = pytest.importorskip("pystac")
    pytest.importorskip("odc.stac")
    about = {"platform": "sentinel-2a", "processing:version": "05.11"}
    item = pystac.Item("tile", None, None, datetime(2023, 6, 1), about)
    for name in ("B04_60m", "B04_10m", "SCL_60m", "SCL_20m"):
        pixel = int(name[-3:-1])
        item.add_asset(name, pystac.Asset(f"https://nowhere.invalid/{name}.jp2", extra_fields={"gsd": pixel}))
    found = look("s2", SourceOptions("item"), item)
    assert {band: place.where for band, place in found.places.items()} == {"B04": "B04_10m", "SCL": "SCL_20m"}
    assert found.tags["processing_baseline"] == "05.11"


def test_pictures_of_a_stac_item_are_no_bands(tmp_path):
    pystac = pytest.importorskip("pystac")
    item = pystac.Item("tile", None, None, datetime(2023, 6, 1), {}, collection="sentinel-2-l2a")
    names = [{"name": "B04", "common_name": "red"}, {"name": "B03", "common_name": "green"}]
    for key, bands in (("overview", names), ("visual", names), ("B04", names[:1])):
        item.add_asset(key, pystac.Asset(f"https://example.org/{key}.tif", extra_fields={"eo:bands": bands}))
    assert {name: place.where for name, place in look("s2", SourceOptions("x"), item).places.items()} == {"B04": "B04"}


def test_a_folder_is_of_one_image(tmp_path):
    one, other = "T32TQM_20230615T101601_", "T32TQM_20230620T101559_"
    plane = np.full((1, 8, 8), 500, np.uint16)
    write_raster(tmp_path / "a" / f"{one}B04.tif", plane)
    write_raster(tmp_path / "b" / f"{other}B03.tif", plane)
    with pytest.raises(ConfigError, match="bands of several days: B04 of 2023-06-15, B03 of 2023-06-20"):
        look("s2", SourceOptions(str(tmp_path)))
    write_raster(tmp_path / "b" / f"{other}B04.tif", plane)
    with pytest.raises(ConfigError, match=r"2 files of B04: .*20230615.*20230620.*folder of one image"):
        look("s2", SourceOptions(str(tmp_path)))
    assert set(look("s2", SourceOptions(str(tmp_path), bands=["B03"])).places) == {"B03"}
    assert look("s2", SourceOptions(str(tmp_path / "b"))).date == "2023-06-20"


def test_the_grid_can_be_chosen(tmp_path):
    paths = write_scene(tmp_path)
    part = opened(paths, ("dem",), GridOptions(bounds=(WEST + 102, NORTH - 500, WEST + 600, NORTH - 200)))
    assert part.grid.bounds == (WEST + 100, NORTH - 500, WEST + 600, NORTH - 200)
    assert np.array_equal(whole(part)[0], whole(opened(paths, ("dem",)))[0][:, 20:50, 10:60])
    other = opened(paths, ("dem",), GridOptions(crs="EPSG:32633"))
    assert other.grid.crs.to_epsg() == 32633
    write_raster(
        tmp_path / "coarse.tif",
        np.full((1, 5, 5), 100, np.float32),
        ["dem"],
        crs="EPSG:4326",
        transform=from_origin(9, 48, 0.01, 0.01),
    )
    assert opened({"dem": str(tmp_path / "coarse.tif")}, ("dem",)).grid.crs.to_epsg() == 32632


@pytest.mark.parametrize(
    ("grid", "kind", "says"),
    [
        (GridOptions(crs="EPSG:4326"), ConfigError, "not in metres"),
        (GridOptions(crs="nowhere"), ConfigError, "no reference system"),
        (GridOptions(bounds=(0, 0, 1, 1)), ConfigError, "outside of the grid"),
        (GridOptions(like=Path("none.tif")), DataError, "none.tif"),
    ],
)
def test_impossible_grids(tmp_path, grid, kind, says):
    with pytest.raises(kind, match=says):
        opened(write_scene(tmp_path), ("dem",), grid)


def test_bad_sources_are_named(tmp_path):
    paths = write_scene(tmp_path)
    far = write_raster(tmp_path / "far" / "dem.tif", np.ones((1, 20, 20), np.float32), west=WEST + 90_000)
    nowhere = write_raster(tmp_path / "nowhere" / "dem.tif", np.ones((1, 20, 20), np.float32), crs=None)
    unnamed = write_raster(tmp_path / "unnamed.tif", np.ones((3, 20, 20), np.float32))
    (tmp_path / "text.tif").write_text("no raster")
    (tmp_path / "empty").mkdir()
    for sources, kind, says in (
        ({**paths, "dem": str(far)}, GridError, "'dem'.*does not overlap the scene"),
        ({"dem": str(nowhere)}, GridError, "no coordinate reference system"),
        ({"x": str(unnamed)}, DataError, r"does not describe its 3 bands.*--source.x.bands"),
        ({"x": SourceOptions(str(unnamed), bands=["B02"])}, ConfigError, "names 1.*it has 3"),
        ({"x": SourceOptions(str(unnamed), bands=["B02", "B2", "B04"])}, ConfigError, "two bands 'B02'"),
        ({"x": SourceOptions(str(unnamed), bands=["B02", "B33", "B04"])}, UnknownNameError, "B33"),
        ({"s2": str(tmp_path / "text.tif")}, DataError, "cannot be read as a GeoTIFF"),
        ({"s2": str(tmp_path / "none.tif")}, DataError, "does not exist"),
        ({"s2": str(tmp_path / "empty")}, DataError, "named after a band"),
        ({"a": paths["dem"], "dem": paths["dem"]}, ConfigError, "band 'dem' is in"),
        ({"a": SourceOptions(paths["dem"], bands=["dem"]), "dem": paths["dem"]}, ConfigError, "band 'dem' is in"),
    ):
        with pytest.raises(kind, match=says):
            opened(sources, ("B02", "B03", "B04", "dem"))


def test_what_cannot_be_told_is_asked_for(tmp_path):
    flat = np.full((4, 60, 60), 800, np.uint16)
    flat[2:] = 1600
    write_raster(tmp_path / "s2.tif", flat, BANDS[:4])
    with pytest.raises(ConfigError, match=r"--source.s2.offset on .* or off"):
        opened({"s2": str(tmp_path / "s2.tif")})
    for said, offset in (("on", 1000), ("off", 0), (True, 1000)):
        assert opened({"s2": SourceOptions(str(tmp_path / "s2.tif"), offset=said)}).sources[0].offset == offset


def test_a_scene_file(tmp_path):
    write_scene(tmp_path)
    file = tmp_path / "scene.yaml"
    file.write_text("s2: {path: s2.tif, offset: 'off'}\ndem: dem.tif\n")
    sources = read_scene_file(file)
    assert sources["s2"] == SourceOptions(str(tmp_path / "s2.tif"), offset="off")
    assert sources["dem"] == str(tmp_path / "dem.tif")
    assert read_scene_file(tmp_path / "s2.tif") == {"s2": str(tmp_path / "s2.tif")}
    for text, says in (
        ("- a", "expected sources"),
        ("s2: {pth: a}", "no path"),
        ("s2: {path: a, bnds: []}", "bands"),
        ("[", "YAML"),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError, match=says):
            read_scene_file(file)


def test_pieces_cover_a_window_once():
    seen = np.zeros((30, 40), int)
    for top, left, bottom, right in pieces(3, 5, 29, 37, 8):
        seen[top:bottom, left:right] += 1
    assert (seen[3:29, 5:37] == 1).all()
    assert seen.sum() == 26 * 32


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"offset": 1000}, "offset is 1000; expected auto, on or off"),
        ({"offset": "On"}, "offset is 'On'"),
        ({"scale": "10000"}, "scale is '10000'; expected a positive number"),
        ({"scale": True}, "scale is True"),
        ({"date": "June"}, "date is 'June'; expected a day"),
        ({"masked": []}, r"masked is \[\]; expected a list of whole numbers"),
        ({"bands": "B02"}, "bands is 'B02'; expected a list of names"),
        ({"classes": {"1": 80}}, "classes is"),
    ],
)
def test_options_of_any_origin_are_checked(tmp_path, options, says):
    path = write_scene(tmp_path)["s2"]
    with pytest.raises(ConfigError, match=says):
        opened({"s2": SourceOptions(path, **options)})


def test_a_date_of_yaml_is_a_date(tmp_path):
    write_scene(tmp_path)
    (tmp_path / "scene.yaml").write_text("s2: {path: s2.tif, date: 2023-06-01}\n")
    assert opened(dict(read_scene_file(tmp_path / "scene.yaml"))).dates == ("2023-06-01",)


def test_a_small_source_on_a_large_grid_is_looked_at_where_it_is(tmp_path):
    write_raster(tmp_path / "dem.tif", np.full((1, 1500, 1500), 400, np.float32))
    small = smooth((10, 60, 60), low=1050, high=3000).astype(np.uint16)
    tags = {"PRODUCT": "L2A", "PROCESSING_BASELINE": "05.09"}
    write_raster(tmp_path / "s2.tif", small, BANDS, west=WEST + 7030, north=NORTH - 3310, tags=tags)
    sources = {"dem": str(tmp_path / "dem.tif"), "s2": str(tmp_path / "s2.tif")}
    assert opened(sources, (*BANDS, "dem")).sources[1].offset == 1000
    write_raster(tmp_path / "s2.tif", np.zeros_like(small), BANDS, tags=tags)  # nothing to look at: the tag decides
    assert opened(sources, (*BANDS, "dem")).sources[1].offset == 1000
    write_raster(tmp_path / "s2.tif", np.zeros_like(small), BANDS)
    with pytest.raises(ConfigError, match="no pixel that was looked at is measured"):
        opened(sources, (*BANDS, "dem"))


def test_scales_that_files_state_are_applied(tmp_path):
    path = write_raster(tmp_path / "dem.tif", np.full((1, 60, 60), 4321, np.int16))
    with rasterio.open(path, "r+") as file:
        file.scales, file.offsets = (0.1,), (0.0,)
    assert np.allclose(whole(opened({"dem": str(path)}, ("dem",)))[0], 432.1)
    assert np.allclose(whole(opened({"dem": SourceOptions(str(path), scale=1.0)}, ("dem",)))[0], 4321)
    stored = smooth((10, 60, 60), low=1050, high=3000).astype(np.uint16)
    stored[:, 0, 0], stored[:, 0, 1] = 950, 0  # water, and no data
    path = write_raster(tmp_path / "s2.tif", stored, BANDS)
    with rasterio.open(path, "r+") as file:  # as ESA means it: reflectance = DN / 10000 - 0.1
        file.scales, file.offsets = (1e-4,) * 10, (-0.1,) * 10
    scene = opened({"s2": str(path)})
    assert scene.sources[0].offset == 0
    wanted = np.where(stored > 0, np.maximum(stored.astype(float) - 1000, 1), 0)
    values, valid = whole(scene)
    assert np.allclose(values, wanted, atol=0.01)
    assert np.array_equal(valid, stored > 0)
    for said in ({"offset": "on"}, {"offset": "on", "scale": 1.0}):  # the same, said twice, is done once
        assert np.allclose(whole(opened({"s2": SourceOptions(str(path), **said)}))[0], wanted, atol=1)
    radar = write_raster(tmp_path / "s1.tif", np.full((2, 60, 60), -1200, np.int16), ["VV", "VH"])
    with pytest.raises(DataError, match="expected dB, got -1200"):
        opened({"s1": str(radar)}, ("VV", "VH"))


@pytest.mark.parametrize("pixel", [10.0, 20.0])
def test_the_mask_of_a_file_counts(tmp_path, pixel):
    write_raster(tmp_path / "dem.tif", np.full((1, 60, 60), 400, np.float32))
    path = tmp_path / "s2.tif"
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        write_raster(path, smooth((10, 60, 60)).astype(np.uint16), BANDS, pixel=pixel, tags={"PRODUCT": "L2A"})
        with rasterio.open(path, "r+") as file:
            file.write_mask(np.repeat(np.arange(60) < 20, 60).reshape(60, 60))
    grid = GridOptions(like=tmp_path / "dem.tif")
    _, valid = whole(opened({"s2": SourceOptions(str(path), offset="off")}, BANDS, grid))
    first = int(20 * pixel / 10)
    assert valid[:, 1 : first - 2, 1:-1].all()
    assert not valid[:, first + 2 :].any()


@pytest.mark.parametrize("pixel", [10.0, 20.0, 11.0])
@pytest.mark.parametrize("missing", [None, 0, 7777])
def test_each_band_has_its_own_no_data(tmp_path, pixel, missing):
    stored = np.full((2, 60, 60), 2000, np.uint16)
    stored[0, :, 30:] = missing or 0
    path = write_raster(tmp_path / "s2.tif", stored, ("B04", "B08"), pixel=pixel, nodata=missing)
    like = write_raster(tmp_path / "like.tif", np.zeros((1, 120, 120), np.uint8))
    options = SourceOptions(str(path), offset="off", product="L2A")
    values, valid = whole(opened({"s2": options}, ("B04", "B08"), GridOptions(like=like)))
    assert set(np.unique(values[0])) == {0, 2000}
    edge = round(30 * pixel / 10)
    assert valid[0, :60, : edge - 1].all()
    assert not valid[0, :, edge + 1 :].any()
    assert valid[1, :60, :60].all()


@pytest.mark.parametrize(("scale", "offset"), [(1.0, -1000.0), (1e-4, -0.1)])
@pytest.mark.parametrize("darkest", [1050, 2200])
def test_an_offset_that_a_file_states_is_taken_off_once(tmp_path, scale, offset, darkest):
    stored = smooth((4, 60, 60), low=darkest, high=4000).astype(np.uint16)
    bands = ("B02", "B03", "B04", "B08")
    path = write_raster(tmp_path / "s2.tif", stored, bands, tags={"PROCESSING_BASELINE": "05.09"})
    with rasterio.open(path, "r+") as file:
        file.scales, file.offsets = (scale,) * 4, (offset,) * 4
    for said, taken in (("auto", 1000), ("on", 1000), ("off", 0)):
        scene = opened({"s2": SourceOptions(str(path), offset=said, product="L2A")}, bands)
        assert np.allclose(whole(scene)[0], stored.astype(float) - taken, atol=0.01)


def test_a_mask_that_leaves_nothing_is_named(tmp_path):
    paths = write_scene(tmp_path)
    clear = np.zeros((1, 130, 150), np.uint8)
    clear[0, :5] = 1
    write_raster(tmp_path / "clouds.tif", clear, nodata=0)  # clear is no data: nothing is known to be clear
    options = SourceOptions(paths["s2"], mask=str(tmp_path / "clouds.tif"), masked=[1])
    assert "leaves no pixel" in opened({"s2": options}).notes[0]
    write_raster(tmp_path / "clouds.tif", clear)
    assert not opened({"s2": options}).notes


def test_images_across_the_180th_meridian(tmp_path):
    field = smooth((1, 60, 60)).astype(np.uint16)
    degrees = {"crs": "EPSG:4326", "transform": from_origin(179.9975, -17, 1e-4, 1e-4)}
    path = write_raster(tmp_path / "B04.tif", field, **degrees)
    options = {"B04": SourceOptions(str(path), offset="off", product="L2A")}
    with pytest.raises(GridError, match=r"beyond the 180th meridian.*gdalwarp -t_srs EPSG:32701"):
        opened(options, ("B04",))
    metres = {"crs": "EPSG:3857", "transform": from_origin(20_037_400, -1_900_000, 10, 10)}
    write_raster(path, field, **metres)
    with pytest.raises(GridError, match=r"beyond the 180th meridian.*EPSG:327(01|60)"):
        opened(options, ("B04",))
    write_raster(path, field, crs="EPSG:4326", transform=from_origin(179.9, -17, 1e-4, 1e-4))
    assert whole(opened(options, ("B04",)))[1].mean() > 0.9


def test_metres_of_mercator_are_none(tmp_path):
    path = write_raster(
        tmp_path / "dem.tif", np.full((1, 90, 90), 100, np.float32), crs="EPSG:3857", west=1e6, north=6e6
    )
    scene = opened({"dem": str(path)}, ("dem",))
    assert scene.grid.crs.to_epsg() == 32632
    assert 55 < scene.grid.height < 70  # pixels of 6.6 m on the ground
    with pytest.raises(ConfigError, match="not in metres"):
        opened({"dem": str(path)}, ("dem",), GridOptions(crs="EPSG:3857"))


def test_bands_of_a_folder_can_be_chosen(tmp_path):
    for band in ("B02", "B03"):
        write_raster(tmp_path / "s2" / f"{band}.tif", smooth((1, 60, 60)).astype(np.uint16))
    chosen = SourceOptions(str(tmp_path / "s2"), bands=["blue"], offset="off")
    assert opened({"s2": chosen}).bands == ("B02",)
    with pytest.raises(ConfigError, match="has no B04; it has B02 B03"):
        opened({"s2": SourceOptions(str(tmp_path / "s2"), bands=["B04"])})
