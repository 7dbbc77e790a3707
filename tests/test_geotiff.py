"""Import of GeoTIFFs: what is written equals the files pixel by pixel."""

import math
from pathlib import Path

import numpy as np
import pytest

rasterio = pytest.importorskip("rasterio")
pytest.importorskip("h5py")

from geotiff_scene import (  # noqa: E402
    HEIGHT,
    L1C,
    L2A,
    ORIGIN,
    WIDTH,
    fails,
    load,
    make_scene,
    numbers,
    only,
    options,
    quiet,
    read,
    write,
)

from multimae_eo.data.geotiff import import_geotiffs  # noqa: E402
from multimae_eo.data.geotiff_baseline import Survey, decide  # noqa: E402
from multimae_eo.data.import_options import ImportOptions, SourceOptions  # noqa: E402
from multimae_eo.data.layout import SENTINEL2_CHANNELS  # noqa: E402
from multimae_eo.errors import ConfigError  # noqa: E402


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    return make_scene(tmp_path)


def test_every_array_equals_its_file(scene: Path) -> None:
    said: list[str] = []
    arrays, info, splits, stats = load(import_geotiffs(options(scene), say=said.append))
    assert len(info) == 2 * 2 * 12
    assert splits == {"train": list(range(24)), "val": list(range(24, 48)), "test": []}
    for row, (name, entry) in enumerate(info.items()):
        place, product, i, j = name.split("_")
        window = (slice(None), slice(16 * int(i), 16 * int(i) + 16), slice(16 * int(j), 16 * int(j) + 16))
        raw = read(scene / f"{product.lower()}/{place}.tif").astype(int)[window]
        for number, band in enumerate(L1C if product == "L1C" else L2A):
            expected = raw[number] - 1000 if product == "L1C" else raw[number]
            np.testing.assert_array_equal(arrays["sentinel2"][row, SENTINEL2_CHANNELS.index(band)], expected)
        if product == "L2A":
            assert not arrays["sentinel2"][row, 10].any()
        np.testing.assert_array_equal(arrays["aster"][row, 0], np.rint(read(scene / f"dem/{place}.tif")[window][0]))
        classes = np.array([0, 80, 10, 0])[read(scene / f"lc/{place}.tif")[window]]
        np.testing.assert_array_equal(arrays["esa_worldcover"][row], classes)
        np.testing.assert_array_equal(arrays["sentinel1"][row, 4:6], read(scene / f"s1/{place}.tif")[window])
        assert np.isneginf(arrays["sentinel1"][row, [0, 1, 2, 3, 6, 7]]).all()
        assert entry["S2_DATE"] == "2021-07-23"
        assert entry["S2_type"] == product.lower()
        assert entry["transform"] == [10, 0, ORIGIN[0] + 160 * int(j), 0, -10, ORIGIN[1] - 160 * int(i)]
        assert entry["CRS"] == "EPSG:32632"
        assert arrays["metadata"][row].item() == (name.encode(), product.lower().encode())
    slope = math.degrees(math.atan(math.hypot(5, 2.4) / 10))
    assert set(np.unique(arrays["aster"][:, 1])) == {round(slope)}
    assert stats["aster"]["mean"][1] == round(slope)
    l1c = arrays["sentinel2"][[i for i, name in enumerate(info) if "L1C" in name]]
    np.testing.assert_allclose(stats["sentinel2_l1c"]["mean"], l1c.mean(axis=(0, 2, 3), dtype=float))
    assert any("alp L1C: 12 tiles" in line and "428 of 3500 pixels lie in no tile" in line for line in said)


def test_position_is_the_centre_of_the_tile(scene: Path) -> None:
    _, info, _, _ = load(import_geotiffs(only(scene, "s2_l2a", places=["alp"], splits={}), say=quiet))
    entry = info["alp_L2A_0_0"]
    # 80 m east and south of (500000, 5000000): the central meridian 9 E of zone 32, and 45.15351 N.
    assert entry["lon"] == pytest.approx(9 + 80 / (111320 * math.cos(math.radians(45.15))), abs=1e-5)
    assert entry["lat"] == pytest.approx(45.153516 - 80 / 111130, abs=2e-4)
    assert entry["BANDS"]["sentinel2"] == ["B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8A", "B8", "B9", "B11", "B12"]
    assert entry["BANDS"]["sentinel1_desc"] is None
    assert entry["place"] == "alp"
    assert entry["files"] == {"s2_l2a": "l2a/alp.tif"}


def test_overlapping_tiles_and_absent_arrays(scene: Path) -> None:
    wanted = only(scene, "s2_l2a", stride_px=8, places=["alp"], splits={})
    arrays, info, _, _ = load(import_geotiffs(wanted, say=quiet))
    assert len(info) == 5 * 7
    assert set(arrays) == {"sentinel2", "lat", "lon", "month", "metadata"}
    raw = read(scene / "l2a/alp.tif")
    np.testing.assert_array_equal(arrays["sentinel2"][list(info).index("alp_L2A_3_5"), 3], raw[3, 24:40, 40:56])


def test_dark_pixels_stay_measured_and_missing_ones_missing(tmp_path: Path) -> None:
    raw = numbers(13, low=1200)
    raw[10] = 1010
    raw[3, 0, :4] = (0, 700, 1000, 1001)
    raw[:, 1, 0] = 9999
    write(tmp_path / "l1c/alp.tif", raw)
    wanted = only(tmp_path, "s2_l1c", s2_l1c=SourceOptions("l1c/{place}.tif", L1C, nodata=9999), splits={})
    arrays, *_ = load(import_geotiffs(wanted, say=quiet))
    assert arrays["sentinel2"][0, 3, 0, :4].tolist() == [0, 1, 1, 1]
    assert not arrays["sentinel2"][0, :, 1, 0].any()


def test_marks_for_no_data(scene: Path) -> None:
    dem = np.full((1, HEIGHT, WIDTH), 100, np.int16)
    dem[0, 2, 2] = -9999
    write(scene / "dem/alp.tif", dem, nodata=-9999)
    s1 = np.full((2, HEIGHT, WIDTH), -10, np.float64)
    s1[0, 0, 0], s1[1, 0, 1] = np.nan, -np.inf
    write(scene / "s1/alp.tif", s1)
    l2a = numbers(12).astype(np.int16)
    l2a[0, 0, 0], l2a[1, 0, 0] = -5, 0
    write(scene / "l2a/alp.tif", l2a)
    lc = np.full((1, HEIGHT, WIDTH), 40, np.uint8)
    lc[0, 0, 0], lc[0, 0, 1] = 255, 0
    write(scene / "lc/alp.tif", lc)
    sources = {"s2_l1c": None, "s2_l2a": SourceOptions("l2a/{place}.tif", L2A)}
    sources["worldcover"] = SourceOptions("lc/{place}.tif")
    wanted = options(scene, places=["alp"], splits={}, s1_pass_of={"alp": "ascending"}, **sources)
    arrays, info, *_ = load(import_geotiffs(wanted, say=quiet))
    unknown = np.argwhere(arrays["aster"][0, 1] == -32768).tolist()
    assert np.argwhere(arrays["aster"][0, 0] == -32768).tolist() == [[2, 2]]
    assert unknown == [[1, 2], [2, 1], [2, 2], [2, 3], [3, 2]]
    assert np.isneginf(arrays["sentinel1"][0, 0, 0, 0])
    assert np.isneginf(arrays["sentinel1"][0, 1, 0, 1])
    assert arrays["sentinel1"][0, 0, 0, 1] == -10
    assert np.isneginf(arrays["sentinel1"][:, 2:]).all()
    assert arrays["sentinel2"][0, :2, 0, 0].tolist() == [0, 0]
    assert arrays["esa_worldcover"][0, 0, 0, :3].tolist() == [0, 0, 40]
    assert next(iter(info.values()))["BANDS"]["sentinel1_asc"] == ["VV", "VH"]


def test_bands_that_are_left_out_and_a_scale(tmp_path: Path) -> None:
    raw = np.random.default_rng(0).uniform(0.01, 0.4, (4, HEIGHT, WIDTH)).astype(np.float32)
    write(tmp_path / "l2a/alp.tif", raw)
    source = SourceOptions("l2a/{place}.tif", ["blue", "-", "B4", "B10"], scale=10000)
    arrays, *_ = load(import_geotiffs(only(tmp_path, "s2_l2a", s2_l2a=source, splits={}), say=quiet))
    np.testing.assert_array_equal(arrays["sentinel2"][0, 1], np.rint(raw[0, :16, :16] * 10000))
    np.testing.assert_array_equal(arrays["sentinel2"][0, 3], np.rint(raw[2, :16, :16] * 10000))
    assert not arrays["sentinel2"][:, [0, 2, *range(4, 13)]].any()


def test_tiles_with_too_few_measured_values_are_dropped(tmp_path: Path) -> None:
    raw = numbers(12)
    raw[:, :16, :16] = 0
    raw[:, :12, 16:32] = 0
    write(tmp_path / "l2a/alp.tif", raw, names=L2A)
    wanted = only(tmp_path, "s2_l2a", splits={})
    _, info, _, _ = load(import_geotiffs(wanted, say=quiet))
    assert "alp_L2A_0_0" not in info
    assert "alp_L2A_0_1" not in info
    assert len(info) == 10
    wanted.min_valid, wanted.name = 0, "all"
    _, info, _, _ = load(import_geotiffs(wanted, say=quiet))
    assert len(info) == 11


def test_a_transform_that_differs_in_the_tenth_digit_is_the_same_grid(scene: Path) -> None:
    dem = read(scene / "dem/alp.tif")
    write(scene / "dem/alp.tif", dem, origin=(ORIGIN[0] + 1e-5, ORIGIN[1] - 0.09))
    import_geotiffs(options(scene), say=quiet)


def test_dates_come_from_tags_where_options_name_none(scene: Path) -> None:
    _, info, _, _ = load(import_geotiffs(options(scene, date=None, dates={"bay": "2020-02-29"}), say=quiet))
    assert {entry["place"]: entry["S2_DATE"] for entry in info.values()} == {"alp": "2021-07-21", "bay": "2020-02-29"}
    for product, names in (("l1c", L1C), ("l2a", L2A)):
        tags = {"TIFFTAG_DATETIME": "2019:05:06 10:11:12"}
        write(scene / f"{product}/alp.tif", read(scene / f"{product}/alp.tif"), tags=tags, names=names)
    _, info, _, _ = load(import_geotiffs(options(scene, date=None, name="tagged"), say=quiet))
    assert info["alp_L1C_0_0"]["S2_DATE"] == "2019-05-06"


def test_templates(scene: Path) -> None:
    for place in ("alp", "bay"):
        write(scene / f"x/{place}/{place}_2021[a]_L2A.tif", numbers(12), names=L2A)
    source = SourceOptions("x/{place}/{place}_*[a]_L2A.tif")
    _, info, _, _ = load(import_geotiffs(only(scene, "s2_l2a", s2_l2a=source), say=quiet))
    assert {entry["place"] for entry in info.values()} == {"alp", "bay"}
    source = SourceOptions(str(scene / "l2a" / "*.tif"))
    _, info, _, _ = load(import_geotiffs(only(scene, "s2_l2a", s2_l2a=source, name="stems"), say=quiet))
    assert {entry["place"] for entry in info.values()} == {"alp", "bay"}


def test_overlap_between_splits_is_told(scene: Path) -> None:
    said: list[str] = []
    import_geotiffs(options(scene), say=said.append)
    assert any("'alp' (train) and 'bay' (val) overlap" in line for line in said)


def judge(product: str, darkest: dict[str, int], **tags: str) -> str:
    return decide(product, tags, Survey(darkest, 5000)).offset


def test_baseline_offset_is_judged_by_tag_cirrus_and_floor() -> None:
    clear = {"B02": 1180, "B03": 1220, "B04": 1170, "B11": 1400, "B12": 1200, "B08": 1600}
    assert judge("L2A", clear) == "on"
    assert judge("L2A", {**clear, "B12": 230}) == "off"
    assert judge("L2A", {**clear, "B12": 800}) == "undecided"
    assert judge("L2A", dict.fromkeys(clear, 3000)) == "undecided"
    assert judge("L2A", {"B02": 1100}) == "undecided"
    assert judge("L1C", {"B02": 1800, "B04": 1500, "B10": 1012}) == "on"
    assert judge("L1C", {"B02": 1800, "B04": 1500, "B10": 12}) == "off"
    bright = {"B02": 3000, "B03": 3000, "B04": 3000, "B11": 2000}
    assert judge("L2A", bright, processing_baseline="05.09") == "on"
    assert judge("L2A", bright, processing_baseline="N0400") == "on"
    assert judge("L2A", bright, **{"s2:processing_baseline": "2.14"}) == "off"
    assert judge("L2A", {**bright, "B11": 90}, processing_baseline="05.09") == "undecided"
    assert judge("L2A", bright, processing_baseline="unknown") == "undecided"


def test_undecided_files_are_all_named_and_can_be_told(scene: Path) -> None:
    for place in ("alp", "bay"):
        write(scene / f"l2a/{place}.tif", numbers(12, low=2000), names=L2A)
    fails(ConfigError, only(scene, "s2_l2a"), "alp_L2A", "bay_L2A", "baseline_offset_of")
    wanted = only(
        scene, "s2_l2a", baseline_offset_of={"alp_L2A": True, "bay_L2A": "off"}
    )  # YAML reads a bare on as true
    arrays, info, splits, _ = load(import_geotiffs(wanted, say=quiet))
    raw = numbers(12, low=2000)[1, :16, :16]
    np.testing.assert_array_equal(arrays["sentinel2"][splits["train"][0], 1], raw - 1000)
    np.testing.assert_array_equal(arrays["sentinel2"][splits["val"][0], 1], raw)
    assert info["alp_L2A_0_0"]["baseline_offset"] == "on"
    said: list[str] = []
    import_geotiffs(options(scene, baseline_offset="off", name="against"), say=said.append)
    assert any("l1c/alp.tif: baseline offset off (given by the options, but by itself it looks on" in s for s in said)
    wanted = only(scene, "s2_l2a", baseline_offset="off", name="off")
    arrays, *_ = load(import_geotiffs(wanted, say=quiet))
    np.testing.assert_array_equal(arrays["sentinel2"][0, 1], raw)


ROOT = Path(__file__).resolve().parent.parent
PLACES = ("282D_485L_3_3", "433D_629L_3_1", "609U_541L_3_0")


@pytest.fixture(scope="module")
def terramesh(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[str]]:
    """The folder of the scenes, the data set imported from it with configs/import_terramesh.yaml, and what was said."""
    yaml = pytest.importorskip("yaml")
    root = shared / "real" / "terramesh"
    if not root.is_dir():
        pytest.skip(f"no TerraMesh scenes: {root} does not exist")
    config = yaml.safe_load((ROOT / "configs" / "import_terramesh.yaml").read_text())
    for key in ("s2_l1c", "s2_l2a", "dem", "worldcover", "s1"):
        config[key] = SourceOptions(**config[key])
    said: list[str] = []
    out = tmp_path_factory.mktemp("terramesh")
    return root, import_geotiffs(ImportOptions(out=out, root=root, **config), say=said.append), said


def test_terramesh_equals_its_files(terramesh: tuple[Path, Path, list[str]]) -> None:
    root, folder, _ = terramesh
    arrays, info, splits, stats = load(folder)
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 144, "val": 72, "test": 0}
    esa = np.array([0, 80, 10, 90, 40, 50, 60, 70, 0, 30, 0])
    rows = {name: row for row, name in enumerate(info)}
    assert {info[list(info)[row]]["place"] for row in splits["val"]} == {"433D_629L_3_1"}
    for place, (i, j) in zip(PLACES, ((0, 5), (3, 2), (5, 5)), strict=True):
        window = (slice(None), slice(32 * i, 32 * i + 64), slice(32 * j, 32 * j + 64))
        files = {
            kind: read(root / kind / f"{place}.tif")[window] for kind in ("S2L1C", "S2L2A", "DEM", "LULC", "S1RTC")
        }
        for product in ("L1C", "L2A"):
            row = rows[f"{place}_{product}_{i}_{j}"]
            offset = 1000 if product == "L1C" or place == "433D_629L_3_1" else 0
            bands = L1C if product == "L1C" else L2A
            order = [bands.index(band) for band in SENTINEL2_CHANNELS if band in bands]
            expected = np.maximum(files[f"S2{product}"].astype(int)[order] - offset, 1)
            here = [k for k, band in enumerate(SENTINEL2_CHANNELS) if band in bands]
            np.testing.assert_array_equal(arrays["sentinel2"][row][here], expected)
            np.testing.assert_array_equal(arrays["aster"][row, :1], files["DEM"])
            np.testing.assert_array_equal(arrays["esa_worldcover"][row], esa[files["LULC"]])
            channel = 4 if place == "282D_485L_3_3" else 0
            expected = files["S1RTC"].astype(np.float32)
            np.testing.assert_array_equal(arrays["sentinel1"][row, channel : channel + 2], expected)
    assert 0 < stats["sentinel2_l1c"]["mean"][10] < 100  # cirrus


def test_terramesh_offsets_agree_between_the_products(terramesh: tuple[Path, Path, list[str]]) -> None:
    """An independent check: short-wave infrared hardly sees the atmosphere, so both products must agree there."""
    _, folder, said = terramesh
    arrays, info, _, _ = load(folder)
    decisions = [line.split("baseline offset ")[1].split()[0] for line in said if "baseline offset" in line]
    assert decisions == ["on", "off", "on", "on", "on", "off"]
    for place in PLACES:
        median = {
            product: np.median(
                arrays["sentinel2"][[r for r, n in enumerate(info) if n.startswith(f"{place}_{product}")]][:, 12]
            )
            for product in ("L1C", "L2A")
        }
        assert 0.9 < median["L2A"] / median["L1C"] < 1.5, f"{place}: {median}"
