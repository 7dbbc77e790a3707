"""The three TerraMesh scenes, imported with the config of the project: what is written equals the files."""

import json
from pathlib import Path

import numpy as np
import pytest

rasterio = pytest.importorskip("rasterio")
h5py = pytest.importorskip("h5py")

from multimae_eo.data.geotiff import import_geotiffs  # noqa: E402
from multimae_eo.data.import_options import ImportOptions, SourceOptions  # noqa: E402
from multimae_eo.data.layout import SENTINEL2_CHANNELS  # noqa: E402

L1C = ["B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12"]
L2A = [band for band in L1C if band != "B10"]
ROOT = Path(__file__).resolve().parent.parent
PLACES = ("282D_485L_3_3", "433D_629L_3_1", "609U_541L_3_0")


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as file:
        return file.read()


def load(folder: Path) -> tuple[dict[str, np.ndarray], dict, dict, dict]:
    """arrays, tile_info, splits, band_stats"""
    with h5py.File(folder / f"{folder.name}.h5") as file:
        arrays = {name: dataset[:] for name, dataset in file.items()}
    kinds = ("tile_info", "splits", "band_stats")
    info, splits, stats = (json.loads((folder / f"{folder.name}_{kind}.json").read_text()) for kind in kinds)
    return arrays, info, splits, stats


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
