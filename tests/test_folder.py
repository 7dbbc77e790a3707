"""A user's own GeoTIFFs: tables and folders of masks, validity, statistics, and errors that name file and line."""

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from geotiff_scene import write

from multimae_eo.data.folder import GeoTIFFFolder, _scales
from multimae_eo.data.labelled import products_of, rasters, with_own_statistics
from multimae_eo.errors import ConfigError, DataError, GridError, UnknownNameError
from multimae_eo.modalities import MODALITIES

BANDS = ["blue", "-", "B8"]
CLASSES = ["water", "forest", "field"]
IMAGES = {"train": ["a.tif", "sub/b.tif", "c d.tif"], "valid": ["e.tif"], "test": ["f.tif"]}
SIZE = (6, 5)


def image(seed: int = 0, size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 5000, (3, *size)).astype(np.uint16)


def make(root: Path, labels: dict[str, str], *, column: str = "label", images: bool = True) -> Path:
    """Five images and their table; labels: by image, the first class where not named."""
    rows = [f"split,extra,path,{column}"]
    for seed, (split, name) in enumerate((s, n) for s, names in IMAGES.items() for n in names):
        if images:
            write(root / name, image(seed))
        rows.append(f"{split},x,{name},{labels.get(name, 'water')}")
    (root / "labels.csv").write_text("\n".join(rows) + "\n")
    return root


def source(root: Path, **changes: Any) -> GeoTIFFFolder:
    return GeoTIFFFolder(root, **{"task": "classification", "bands": BANDS, "classes": CLASSES, **changes})


def read_all(root: Path, **changes: Any) -> None:
    data = source(root, **changes)
    for ids in data.ids.values():
        for sample_id in ids:
            data.read(sample_id)


def fails(root: Path, *words: str, error: type[Exception] = DataError, **changes: Any) -> None:
    with pytest.raises(error) as caught:
        read_all(root, **changes)
    for word in words:
        assert word in str(caught.value), f"'{word}' is not in: {caught.value}"


def edit(root: Path, old: str, new: str) -> None:
    text = (root / "labels.csv").read_text()
    assert old in text
    (root / "labels.csv").write_text(text.replace(old, new))


def test_classification(tmp_path: Path):
    data = source(make(tmp_path, {"a.tif": "field", "sub/b.tif": "1"}), product="L2A", name="mine")
    assert data.ids == {split: tuple(names) for split, names in IMAGES.items()}
    assert (data.about.name, data.about.bands, data.about.products) == ("mine", ("B02", "B08"), ("L2A",))
    assert [c.name for c in data.about.classes] == CLASSES
    assert [int(data.label(i).values) for i in data.ids["train"]] == [2, 1, 0]
    read = data.read("sub/b.tif")
    assert np.array_equal(read.values, image(1)[[0, 2]])
    assert (read.values.dtype, read.label.values.dtype, read.valid.all()) == (np.float32, np.int64, True)
    again = pickle.loads(pickle.dumps(data))  # what a loader's worker gets
    assert np.array_equal(again.read("sub/b.tif").values, read.values)


def test_it_is_fed_as_every_other_source(tmp_path: Path):
    data = source(make(tmp_path, {}), product="L2A")
    with_bands = {name: m for name, m in MODALITIES.items() if set(m.bands) & set(data.about.bands)}
    own = with_own_statistics(with_bands, data.about, data.statistics())
    batch = rasters(data.read("a.tif"), data.about, own, products_of(own, data.about, "dataset"))
    assert {name: r.valid[:, 0, 0].tolist() for name, r in batch.items()} == {
        name: [band in data.about.bands for band in m.bands] for name, m in own.items()
    }
    assert products_of(with_bands, data.about, "model") == {n: m.products.index("L2A") for n, m in with_bands.items()}


def test_multilabel(tmp_path: Path):
    data = source(make(tmp_path, {"a.tif": "field; 0", "e.tif": ""}), task="multilabel")
    assert data.label("a.tif").values.tolist() == [1, 0, 1]
    assert data.label("e.tif").values.tolist() == [0, 0, 0]
    assert data.label("f.tif").values.dtype == np.float32


def test_a_name_of_a_class_comes_before_an_index(tmp_path: Path):
    data = source(
        make(tmp_path, {"a.tif": "1"} | dict.fromkeys(["sub/b.tif", "c d.tif", "e.tif", "f.tif"], "0")),
        classes=["1", "0"],
    )
    assert [int(data.label(i).values) for i in data.ids["train"]] == [0, 1, 1]


def with_masks(root: Path, mask: np.ndarray, **profile: Any) -> Path:
    write(root / "masks/m.tif", mask[None], **profile)
    return make(root, dict.fromkeys((n for names in IMAGES.values() for n in names), "masks/m.tif"), column="mask")


def test_segmentation(tmp_path: Path):
    codes = np.random.default_rng(0).integers(0, 3, SIZE).astype(np.uint8)
    codes[0, :3] = 9, 255, 7
    data = source(with_masks(tmp_path, codes, nodata=9), task="segmentation", ignore=[255, 7])
    values, known = data.read("a.tif").label
    assert known.sum() == codes.size - 3
    assert not known[0, :3].any()
    assert np.array_equal(values[known], codes[known])
    assert values.dtype == np.int64
    assert (values[~known] == 0).all()


def test_regression(tmp_path: Path):
    metres = np.random.default_rng(0).normal(10, 3, SIZE).astype(np.float32)
    metres[0, :2] = np.nan, -99
    metres[1, 1] = 0
    data = source(with_masks(tmp_path, metres, nodata=-99), task="regression", classes=[], unit="m")
    values, known = data.read("a.tif").label
    assert (known.sum(), values.dtype) == (metres.size - 2, np.float32)
    assert np.array_equal(values[known], metres[known])
    assert (data.about.unit, data.about.dense) == ("m", True)
    assert np.isfinite(values).all()


def test_folders_without_a_table(tmp_path: Path):
    for seed, place in enumerate(
        ("train/images/a.tif", "train/images/b.TIFF", "val/images/a.tif", "test/images/c.tif")
    ):
        write(tmp_path / place, image(seed))
        write(tmp_path / place.replace("images", "masks"), np.full((1, *SIZE), seed % 3, np.uint8))
    (tmp_path / "train/images/readme.txt").write_text("no image")
    data = source(tmp_path, task="segmentation")
    assert data.ids["train"] == ("train/images/a.tif", "train/images/b.TIFF")
    assert data.ids["valid"] == ("val/images/a.tif",)
    assert (data.label("val/images/a.tif").values == 2).all()
    (tmp_path / "train/masks/a.tif").unlink()
    fails(tmp_path, "train/images/a.tif", "train/masks/a.tif' does not exist", task="segmentation")
    fails(tmp_path, "labels.csv' does not exist")


def test_what_was_not_measured(tmp_path: Path):
    """By the file's mark, by the option instead of it, and by not being finite; scaled after that."""
    make(tmp_path, {})
    floats = image().astype(np.float32)
    floats[0, 0, :3] = np.nan, -1, 0
    write(tmp_path / "a.tif", floats, nodata=-1)
    read = source(tmp_path, scale=0.5).read("a.tif")
    assert read.valid[0, 0].tolist() == [False, False, True, True, True]
    assert read.valid[1].all()
    assert np.array_equal(read.values[1], floats[2] * 0.5)
    assert np.isfinite(read.values).all()
    assert source(tmp_path, nodata=0).read("a.tif").valid[0, 0].tolist() == [False, True, False, True, True]


def test_a_scale_is_that_of_reflectances():
    assert _scales(["B02", "B01", "dem", "worldcover", "VV"], 1e4).tolist() == [1e4, 1e4, 1, 1, 1]
    assert _scales(["dem", "worldcover"], 0.1).tolist() == [0.1, 1]


def test_a_stated_scale_is_not_passed_over(tmp_path: Path):
    root = make(tmp_path, {})
    with rasterio.open(root / "e.tif", "r+") as file:
        file.offsets = (0.0, -5.0, -0.1)
    fails(root, "e.tif", "1 x number + -0.1 (channel 3)", "gdal_translate -unscale")
    with rasterio.open(root / "e.tif", "r+") as file:
        file.offsets, file.scales = (0.0, -5.0, 0.0), (1e-4, 1.0, 1e-4)  # the second is left out
    read_all(root)


def test_statistics_are_those_of_valid_training_pixels(tmp_path: Path):
    make(tmp_path, {})
    holed = image(0) + np.uint16(1000)
    holed[0, :2], holed[2] = 0, 0
    write(tmp_path / "a.tif", holed, nodata=0)
    data = source(tmp_path)
    found = data.statistics()
    stacks = np.stack([holed, image(1), image(2)]).astype(float)
    for band, channel in (("B02", 0), ("B08", 2)):
        values = stacks[:, channel][stacks[:, channel] != 0]
        assert found[band] == pytest.approx((values.mean(), values.std()), rel=1e-9)
    (tmp_path / "a.tif").unlink()
    assert data.statistics() is found


def test_a_map_of_classes_has_no_statistics(tmp_path: Path):
    for seed, name in enumerate(n for names in IMAGES.values() for n in names):
        values = image(seed)
        values[1] = np.array(MODALITIES["land_cover"].codes)[values[1] % 11]
        write(tmp_path / name, values)
    bands = ["B02", "worldcover", "dem"]
    assert set(source(make(tmp_path, {}, images=False), bands=bands).statistics()) == {"B02", "dem"}


def test_fingerprint(tmp_path: Path):
    make(tmp_path, {})
    first = source(tmp_path).fingerprint()
    assert first == source(tmp_path).fingerprint()
    others = [
        source(tmp_path, **change).fingerprint() for change in ({"nodata": 3}, {"scale": 2.0}, {"product": "L2A"})
    ]
    os.utime(tmp_path / "a.tif", ns=(1, 1))
    others.append(source(tmp_path).fingerprint())
    edit(tmp_path, "a.tif,water", "a.tif,field")
    others.append(source(tmp_path).fingerprint())
    assert len({first, *others}) == 6


def test_leaks_must_be_allowed(tmp_path: Path):
    make(tmp_path, {})
    edit(tmp_path, "e.tif", "./sub/../a.tif")
    fails(tmp_path, "'a.tif' is in 'train' and in 'valid'")
    assert source(tmp_path, allow_leaks=True).ids["valid"] == ("a.tif",)
    edit(tmp_path, "./sub/../a.tif,water", "./sub/../a.tif,field")
    fails(tmp_path, "line 5: 'a.tif' has another label", "line 2", allow_leaks=True)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("a.tif,water", "a.tif,watr", ["labels.csv', line 2", "'watr'", "Did you mean 'water'"]),
        ("a.tif,water", "a.tif,3", ["line 2", "the label is 3", "0 to 2"]),
        ("a.tif,water", "a.tif,-1", ["line 2", "the label is -1"]),
        ("a.tif,water", "a.tif,1.0", ["line 2", "'1.0'", "whole number"]),
        ("a.tif,water", "a.tif,", ["line 2", "the label is ''"]),
        ("a.tif,water", "a.tif,water,more", ["line 2", "more cells than columns"]),
        ("a.tif,water", ",water", ["line 2", "column 'path' is empty"]),
        ("sub/b.tif", "sub/x.tif", ["line 3", "sub/x.tif' does not exist"]),
        ("sub/b.tif", "a.tif", ["line 3: 'a.tif' is given again", "line 2"]),
        ("valid,x", "dev,x", ["line 5", "the split is 'dev'", "train, valid, test"]),
        ("valid,x", "train,x", ["labels.csv", "split 'valid' is empty"]),
        ("split,extra", "part,extra", ["no column 'split'", "part, extra, path, label"]),
    ],
)
def test_errors_of_the_table(tmp_path: Path, old: str, new: str, words: list[str]):
    make(tmp_path, {})
    edit(tmp_path, old, new)
    fails(tmp_path, *words)


def test_tables_that_are_no_csv_in_utf8(tmp_path: Path):
    make(tmp_path, {})
    text = (tmp_path / "labels.csv").read_text()
    (tmp_path / "labels.csv").write_bytes(b"\xef\xbb\xbf" + text.replace("valid,", "val,").encode())
    assert source(tmp_path).ids["valid"] == ("e.tif",)
    (tmp_path / "labels.csv").write_bytes(text.replace("water", "größe").encode("latin-1"))
    fails(tmp_path, "labels.csv' cannot be read as CSV in UTF-8")
    (tmp_path / "labels.csv").write_text("")
    fails(tmp_path, "got nothing")


def test_errors_of_images(tmp_path: Path):
    make(tmp_path, {})
    fails(tmp_path, "a.tif'", "expected 2 channels (blue, B8), the file has 3", bands=["blue", "B8"])
    whole = (tmp_path / "e.tif").read_bytes()
    (tmp_path / "e.tif").write_bytes(whole[:200])
    fails(tmp_path, "e.tif' cannot be read as a GeoTIFF")
    (tmp_path / "e.tif").unlink()
    write(tmp_path / "e.tif", image(size=(60, 50)), compress="deflate")
    whole = bytearray((tmp_path / "e.tif").read_bytes())
    whole[2000:4000] = b"\xff" * 2000  # among the pixels; the directory stands behind them
    (tmp_path / "e.tif").write_bytes(whole)
    fails(tmp_path, "e.tif' cannot be read; it is truncated or damaged")
    (tmp_path / "e.tif").unlink()
    write(tmp_path / "e.tif", image().astype(np.complex64))
    fails(tmp_path, "e.tif' holds complex64")
    with pytest.raises(DataError, match="has no image 'nix'"):
        source(tmp_path).read("nix")


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (np.zeros((5, 5), np.uint8), ["the mask has (5, 5) pixels, the image (6, 5)"]),
        (np.full(SIZE, 3, np.uint8), ["the mask holds 3", "0 to 2"]),
        (np.zeros(SIZE, np.float32), ["the mask holds float32"]),
    ],
)
def test_errors_of_masks(tmp_path: Path, mask: np.ndarray, words: list[str]):
    fails(with_masks(tmp_path, mask), "masks/m.tif' (", "labels.csv', line 2)", *words, task="segmentation")


def test_errors_of_masks_of_numbers(tmp_path: Path):
    with_masks(tmp_path, np.zeros((5, 5), np.float32))
    fails(tmp_path, "the mask has (5, 5) pixels", "line 2", task="regression", classes=[])
    write(tmp_path / "masks/m.tif", image())
    fails(tmp_path, "the mask has 3 channels", task="regression", classes=[])


@pytest.mark.parametrize(
    ("changes", "error", "word"),
    [
        ({"task": "segment"}, UnknownNameError, "Did you mean 'segmentation'"),
        ({"bands": ["blue", "-", "B88"]}, UnknownNameError, "'B88'"),
        ({"bands": ["blue", "-", "B2"]}, ConfigError, "both B02"),
        ({"bands": []}, ConfigError, "bands is []"),
        ({"classes": []}, ConfigError, "classes is []"),
        ({"classes": ["a", "a"]}, ConfigError, "different names"),
        ({"task": "regression"}, ConfigError, "a regression has none"),
        ({"product": "L2B"}, UnknownNameError, "Did you mean 'L2A'"),
        ({"name": "L2A"}, ConfigError, "name is 'L2A'"),
        ({"scale": 0.0}, ConfigError, "scale is 0"),
        ({"ignore": 255}, ConfigError, "ignore is [255]"),
        ({"table": "other.csv"}, DataError, "other.csv' does not exist"),
    ],
)
def test_impossible_options(tmp_path: Path, changes: dict[str, Any], error: type[Exception], word: str):
    fails(make(tmp_path, {}), word, error=error, **changes)


def test_a_missing_folder(tmp_path: Path):
    fails(tmp_path / "nowhere", "nowhere' is no folder")


def test_numbers_that_maps_would_refuse(tmp_path: Path):
    make(tmp_path, {})
    for name in (n for names in IMAGES.values() for n in names):
        write(tmp_path / name, image().astype(np.float32) / 10_000)
    fails(tmp_path, "expected reflectance x 10000 in B02", "which look like reflectance. Set scale: 10000.")
    assert source(tmp_path, scale=10_000).read("a.tif").values.max() > 1000
    for name in (n for names in IMAGES.values() for n in names):
        write(tmp_path / name, image())
    fails(tmp_path, "expected class with the codes 10,", "Translate them.", bands=["B02", "worldcover", "-"])


def test_zeros_of_sentinel2_are_not_measured(tmp_path: Path):
    values = image()
    values[:, :3] = 0
    make(tmp_path, {})
    write(tmp_path / "a.tif", values)
    assert source(tmp_path).read("a.tif").valid.mean() == 0.5
    assert source(tmp_path, bands=["B02", "-", "dem"]).read("a.tif").valid.mean() == 0.75  # a height of 0 m is one
    assert source(tmp_path, nodata=65535).read("a.tif").valid.all()
    write(tmp_path / "a.tif", values, nodata=9)
    assert source(tmp_path).read("a.tif").valid.all()


def test_channels_that_the_file_describes_in_another_order(tmp_path: Path):
    make(tmp_path, {})
    for names, wrong in ((("blue", "x", "B8"), False), (("B8", "x", "blue"), True), (("nir", "", "near"), False)):
        with rasterio.open(tmp_path / "sub/b.tif", "r+") as file:
            file.descriptions = names
        if wrong:
            fails(tmp_path, "b.tif' describes its channels as B08, B02, but bands names them B02, B08")
        else:
            read_all(tmp_path)


def test_masks_that_lie_elsewhere_or_state_a_scale(tmp_path: Path):
    root = make(tmp_path, dict.fromkeys(IMAGES["train"] + IMAGES["valid"] + IMAGES["test"], "m.tif"), column="mask")
    mask = np.ones((1, *SIZE), np.uint8)
    write(root / "m.tif", mask)
    read_all(root, task="segmentation")
    with rasterio.open(root / "m.tif", "r+") as file:
        file.scales = (0.01,)
    fails(root, "m.tif' states that a value is 0.01 x number + 0", task="segmentation")
    write(root / "m.tif", mask)
    with rasterio.open(root / "m.tif", "r+") as file:
        file.transform = file.transform @ file.transform.translation(3, 0)
    fails(root, "the mask lies at", "Bring it to the image's grid", error=GridError, task="segmentation")


def test_a_path_from_the_root_of_the_disk_is_the_same_image(tmp_path: Path):
    edit(make(tmp_path, {}), "test,x,f.tif", f"test,x,{tmp_path / 'a.tif'}")
    fails(tmp_path, "'a.tif' is in 'train' and in 'test'")


def test_a_scale_is_stated_for_what_no_scale_is_given(tmp_path: Path):
    make(tmp_path, {})
    with rasterio.open(tmp_path / "a.tif", "r+") as file:
        file.scales = (1.0, 1.0, 0.1)
    fails(tmp_path, "states that a value is 0.1 x number + 0 (channel 3)", bands=["B02", "-", "dem"], scale=2.0)


def test_the_offset_of_baseline_04(tmp_path: Path):
    make(tmp_path, {})
    for seed, name in enumerate(n for names in IMAGES.values() for n in names):
        write(tmp_path / name, np.random.default_rng(seed).integers(1050, 5000, (4, *SIZE)).astype(np.uint16))
    bands = ["B02", "B03", "B04", "B08"]
    fails(tmp_path, "carry the +1000", "Set offset: 1000", bands=bands, product="L2A", error=ConfigError)
    carried = source(tmp_path, bands=bands, product="L2A", offset=0)
    taken = source(tmp_path, bands=bands, product="L2A", offset=1000)
    own = source(tmp_path, bands=bands)  # statistics of its own
    assert np.array_equal(taken.read("a.tif").values, carried.read("a.tif").values - 1000)
    assert np.array_equal(own.read("a.tif").values, carried.read("a.tif").values)
    assert len({carried.fingerprint(), taken.fingerprint()}) == 2
    write(tmp_path / "a.tif", np.full((4, *SIZE), 900, np.uint16))
    read = source(tmp_path, bands=[*bands[:3], "dem"], product="L2A", offset=1000).read("a.tif")
    assert (read.values[:, 0, 0].tolist(), read.valid.all()) == ([1, 1, 1, 900], True)
