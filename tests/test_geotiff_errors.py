"""Import of GeoTIFFs: every bad input is named with its remedy, and nothing is left behind."""

from pathlib import Path
from typing import Any

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

from multimae_eo.data import geotiff  # noqa: E402
from multimae_eo.data.geotiff import import_geotiffs  # noqa: E402
from multimae_eo.data.import_options import ImportOptions, SourceOptions  # noqa: E402
from multimae_eo.errors import ConfigError, DataError, GridError, UnknownNameError  # noqa: E402


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    return make_scene(tmp_path)


def test_grids_that_differ(scene: Path) -> None:
    dem, path = read(scene / "dem/alp.tif"), scene / "dem/alp.tif"
    write(path, dem, crs="EPSG:32633")
    fails(GridError, options(scene), "dem/alp.tif", "l1c/alp.tif", "EPSG:32632", "EPSG:32633", "gdalwarp")
    write(path, dem, origin=(ORIGIN[0] + 0.2, ORIGIN[1]))
    fails(
        GridError, options(scene), "dem/alp.tif", "500000.2", "-te 500000 4999500 500700 5000000 -ts 70 50 -r bilinear"
    )
    write(path, dem[:, :-1])
    fails(GridError, options(scene), "70 x 50 px", "70 x 49 px")
    write(path, dem, edge=30)
    fails(GridError, options(scene), "dem/alp.tif", "10 x 10 m", "30 x 30", "gdalwarp")
    write(path, dem, edge=0.0001, origin=(9, 45), crs="EPSG:4326")
    fails(GridError, options(scene), "EPSG:4326", "gdalwarp")
    write(path, dem, transform=rasterio.Affine(10, 1, ORIGIN[0], 1, -10, ORIGIN[1]))
    fails(GridError, options(scene), "north-up")
    write(path, dem, origin=(1e6, 8.4e6), crs="EPSG:3857")
    fails(GridError, options(scene), "EPSG:3857 distorts them to 4.", "m on the ground", "gdalwarp")
    write(path, dem, crs=None)
    fails(GridError, options(scene), "no coordinate reference system", "gdal_edit.py")


def test_bands_that_do_not_fit(scene: Path) -> None:
    def l1c(bands: list[str] | None) -> ImportOptions:
        return options(scene, s2_l1c=SourceOptions("l1c/{place}.tif", bands))

    fails(DataError, l1c(L2A), "l1c/alp.tif", "expected 12 bands", "the file has 13", "s2_l1c.bands")
    fails(DataError, l1c(None), "l1c/alp.tif", "does not describe its 13 bands", "s2_l1c.bands")
    fails(ConfigError, l1c(["B1a", *L1C[1:]]), "unknown band 'B1a'", "Did you mean 'B8A'", "l1c/alp.tif")
    fails(ConfigError, l1c(["B02", *L1C[1:]]), "both B02")
    fails(UnknownNameError, l1c(["VV", *L1C[1:]]), "unknown band of s2_l1c", "'VV'")
    fails(ConfigError, l1c(["-"] * 13), "leaves every band out")
    write(scene / "dem/alp.tif", np.zeros((2, HEIGHT, WIDTH), np.int16))
    fails(DataError, options(scene), "dem/alp.tif", "expected 1 bands (dem)", "the file has 2")


def test_types_and_values_that_do_not_fit(scene: Path) -> None:
    write(scene / "s1/alp.tif", np.full((2, HEIGHT, WIDTH), -10, np.int16))
    fails(DataError, options(scene), "s1/alp.tif", "expected floats (dB)", "int16")
    write(scene / "s1/alp.tif", np.full((2, HEIGHT, WIDTH), 0.1, np.float32))
    fails(DataError, options(scene), "s1/alp.tif", "linear power", "log10")
    leaked = np.full((2, HEIGHT, WIDTH), 0.1, np.float32)
    leaked[:, 0, 0] = -1e-4  # what a filter leaves
    write(scene / "s1/alp.tif", leaked)
    fails(DataError, options(scene), "s1/alp.tif", "linear power", "log10")
    marked = np.full((2, HEIGHT, WIDTH), -10, np.float32)
    marked[:, 0, 0] = -9999
    write(scene / "s1/alp.tif", marked)
    fails(DataError, options(scene), "s1/alp.tif", "expected dB, got -9999", "set s1.nodata")
    only_l2a = only(scene, "s2_l2a")
    write(scene / "lc/alp.tif", np.ones((1, HEIGHT, WIDTH), np.float32))
    fails(DataError, options(scene), "lc/alp.tif", "expected integers", "float32")
    write(scene / "l2a/alp.tif", np.full((12, HEIGHT, WIDTH), 0.3, np.float32), names=L2A)
    fails(DataError, only_l2a, "l2a/alp.tif", "look like reflectance", "s2_l2a.scale: 10000")
    write(scene / "l2a/alp.tif", np.full((12, HEIGHT, WIDTH), 120, np.uint8), names=L2A)
    fails(DataError, only_l2a, "l2a/alp.tif", "8-bit numbers: a picture", "Take the bands")
    write(scene / "l2a/alp.tif", np.full((12, HEIGHT, WIDTH), 70000, np.int32), names=L2A)
    fails(DataError, only_l2a, "l2a/alp.tif", "at most 65535", "70000")
    write(scene / "l2a/alp.tif", np.full((12, HEIGHT, WIDTH), 1j, np.complex64), names=L2A)
    fails(DataError, only_l2a, "complex64")


def test_a_stated_scale_is_not_passed_over(scene: Path) -> None:
    """A number that means 0.0001 of reflectance is the unit; what else a file states would change its values."""

    def state(path: str, scale: float, offset: float = 0.0) -> None:
        with rasterio.open(scene / path, "r+") as file:
            file.scales, file.offsets = [scale] * file.count, [offset] * file.count

    state("l1c/alp.tif", 1e-4)
    import_geotiffs(options(scene, out=scene / "stated"), say=quiet)
    state("dem/alp.tif", 0.5)
    fails(DataError, options(scene), "dem/alp.tif", "0.5 x number + 0", "gdal_translate -unscale")
    state("dem/alp.tif", 1)
    state("l1c/alp.tif", 1e-4, -0.1)
    fails(DataError, options(scene), "l1c/alp.tif", "0.0001 x number + -0.1 (channel 1)", "then scale: 10000")


def test_scenes_without_measured_pixels_and_marks_that_were_not_declared(scene: Path) -> None:
    write(scene / "l2a/alp.tif", np.zeros((12, HEIGHT, WIDTH), np.uint16), names=L2A)
    fails(DataError, only(scene, "s2_l2a"), "l2a/alp.tif", "no measured pixel", "places")
    only_bay = {"places": ["bay"], "splits": {}}
    dem = np.full((1, HEIGHT, WIDTH), -9999, np.int16)
    write(scene / "dem/bay.tif", dem)
    fails(DataError, options(scene, **only_bay), "dem/bay.tif", "got -9999", "dem.nodata")
    write(scene / "dem/bay.tif", dem, nodata=-9999)
    fails(DataError, options(scene, **only_bay), "dem/bay.tif", "no measured pixel", "dem.optional")
    sparse = numbers(12)
    sparse[:, ::2], sparse[:, :, ::2] = 0, 0
    write(scene / "l2a/bay.tif", sparse, names=L2A)
    fails(DataError, only(scene, "s2_l2a", **only_bay), "no tile has 50%", "min_valid")


def test_files_that_are_missing_or_broken(scene: Path) -> None:
    (scene / "s1/bay.tif").unlink()
    fails(DataError, options(scene), "'s1/{place}.tif' of s1 for place 'bay'", "s1.optional", "places")
    wanted = options(scene, s1=SourceOptions("s1/{place}.tif", ["VV", "VH"], optional=True), name="partly")
    arrays, _, splits, _ = load(import_geotiffs(wanted, say=quiet))
    assert np.isneginf(arrays["sentinel1"][splits["val"]]).all()
    wanted.out = scene / "other"
    (scene / "dem/alp.tif").write_text("not a raster")
    fails(DataError, wanted, "dem/alp.tif", "cannot be read as a GeoTIFF")
    virtual = '<VRTDataset rasterXSize="70" rasterYSize="50"></VRTDataset>'
    (scene / "dem/alp.tif").write_text(virtual)
    fails(DataError, wanted, "dem/alp.tif", "cannot be read as a GeoTIFF")


@pytest.mark.parametrize("kind", ["l1c", "dem", "s1", "lc"])
def test_truncated_files(scene: Path, kind: str) -> None:
    path = scene / kind / "alp.tif"
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    fails(DataError, options(scene), f"{kind}/alp.tif", "truncated")


def test_a_file_that_breaks_while_tiles_are_written(scene: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def interrupted(*args: Any, **kwargs: Any) -> None:
        calls.append(args)
        if len(calls) == 20:
            raise KeyboardInterrupt

    monkeypatch.setattr(geotiff.LayoutWriter, "add", interrupted)
    with pytest.raises(KeyboardInterrupt):
        import_geotiffs(options(scene), say=quiet)
    assert not list((scene / "out").iterdir())


def test_classes_without_a_meaning(scene: Path) -> None:
    def classes(table: dict[int, int] | None) -> ImportOptions:
        return options(scene, worldcover=SourceOptions("lc/{place}.tif", classes=table))

    fails(DataError, classes({1: 80, 2: 10}), "lc/alp.tif", "no meaning here: 3", "worldcover.classes")
    fails(DataError, classes(None), "lc/alp.tif", "1, 2, 3", "taken as WorldCover codes")
    fails(UnknownNameError, classes({1: 80, 2: 11, 3: 0}), "WorldCover code of class 2", "'11'")


def test_options_that_contradict_the_files(scene: Path) -> None:
    fails(GridError, options(scene, tile_px=64), "l1c/alp.tif", "70 x 50 px is smaller than a tile of 64 px", "tile_px")
    fails(UnknownNameError, options(scene, splits={"bay": "valid"}), "split of place 'bay'", "Did you mean 'val'")
    fails(UnknownNameError, options(scene, splits={"boy": "val"}), "unknown place 'boy'", "Did you mean 'bay'")
    fails(UnknownNameError, options(scene, places=["alps"], splits={}), "Did you mean 'alp'")
    fails(UnknownNameError, options(scene, baseline_offset_of={"alp": "on"}), "alp_L1C")
    fails(DataError, options(scene, root=scene / "nowhere"), "is no folder")
    fails(DataError, only(scene, "s2_l2a", s2_l2a=SourceOptions("S2/{place}.tif")), "no place found", "S2/{place}.tif")
    fails(DataError, only(scene, "s2_l2a", date=None), "alp", "no date", "dates")
    fails(ConfigError, options(scene, date="23.07.2021"), "YYYY-MM-DD")
    fails(ConfigError, options(scene, date="2021-02-30"), "YYYY-MM-DD")
    fails(ConfigError, only(scene, "dem"), "s2_l1c.files or s2_l2a.files")
    fails(ConfigError, options(scene, dem=SourceOptions("dem/{place}.tif", classes={1: 10})), "only worldcover")
    fails(ConfigError, options(scene, min_valid=2), "min_valid")
    fails(ConfigError, options(scene, name="../up"), "plain folder name")


def test_duplicate_places(scene: Path) -> None:
    write(scene / "more/l2a/alp.tif", numbers(12), names=L2A)
    wanted = only(scene, "s2_l2a", s2_l2a=SourceOptions("**/l2a/{place}.tif"))
    fails(DataError, wanted, "two files of s2_l2a are place 'alp'", "more/l2a/alp.tif", "s2_l2a.files")


def test_an_existing_data_set_is_kept(scene: Path) -> None:
    folder = import_geotiffs(options(scene), say=quiet)
    before = (folder / "imported.h5").read_bytes()
    with pytest.raises(DataError, match="exists already"):
        import_geotiffs(options(scene), say=quiet)
    assert (folder / "imported.h5").read_bytes() == before
