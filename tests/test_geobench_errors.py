"""What the GEO-Bench reader refuses: labels, pickles, bands, files, partitions and statistics; and what it tells."""

import json
import os
import pickle

import numpy as np
import pytest

h5py = pytest.importorskip("h5py")

from geobench_files import NO_DATA_CLASS, edit, image, relabel, write_set  # noqa: E402

from multimae_eo.data.geobench import GeoBench  # noqa: E402
from multimae_eo.data.geobench_sets import SETS  # noqa: E402
from multimae_eo.errors import ConfigError, DataError, StatisticsError, UnknownNameError  # noqa: E402


@pytest.fixture
def eurosat(tmp_path):
    return write_set(tmp_path, "m-eurosat", size=8)


@pytest.fixture
def cashew(tmp_path):
    return write_set(tmp_path, "m-cashew-plant", size=16)


# --- labels


def test_class_0_is_left_out_only_where_and_if_it_is_said(cashew, tmp_path):
    for name in NO_DATA_CLASS:
        with pytest.raises(ConfigError, match=r"class 0 means no data.*data\.ignore_class0"):
            GeoBench(tmp_path, name)
    write_set(tmp_path, "m-chesapeake", size=8)
    for choice in (True, False):
        with pytest.raises(ConfigError, match="'m-chesapeake' has no class 0 to leave out"):
            GeoBench(tmp_path, "m-chesapeake", ignore_class0=choice)
    left_out, scored = (GeoBench(tmp_path, "m-cashew-plant", ignore_class0=choice) for choice in (True, False))
    sample_id, path = image(cashew)
    with h5py.File(path) as file:
        mask = file["label"][()]
    assert (mask == 0).any()
    assert np.array_equal(left_out.label(sample_id).known, mask != 0)
    assert scored.label(sample_id).known.all()
    assert np.array_equal(left_out.read(sample_id).label.values, np.maximum(mask - 1, 0))
    assert np.array_equal(scored.read(sample_id).label.values, mask)
    assert left_out.about.notes[-1] != scored.about.notes[-1]
    assert left_out.about.classes == scored.about.classes[1:]
    assert left_out.fingerprint() != scored.fingerprint()


BAD_CLASSES = {
    "10": (10, "the label is 10; expected 0 to 9"),
    "-1": (-1, "the label is -1; expected 0 to 9"),
    "a float": (3.0, "the label is 3.0; expected a whole number"),
    "a float of numpy": (np.float64(3), "expected a whole number"),
    "true": (True, "the label is True; expected a whole number"),
    "text": ("3", "the label is '3'"),
    "a list": ([3], r"the label is \[3\]"),
    "nothing": (None, "has no entry 'label'"),
}


@pytest.mark.parametrize("bad", BAD_CLASSES)
def test_labels_that_are_no_class_are_refused(eurosat, tmp_path, bad):
    label, message = BAD_CLASSES[bad]
    sample_id = relabel(eurosat, label)
    data = GeoBench(tmp_path, "m-eurosat")
    for read in (data.label, data.read):
        with pytest.raises(DataError, match=message) as error:
            read(sample_id)
        assert f"{sample_id}.hdf5" in str(error.value)


def test_multi_hot_labels(tmp_path):
    folder = write_set(tmp_path, "m-bigearthnet", size=4)
    data = GeoBench(tmp_path, "m-bigearthnet")
    hot = [int(c in (8, 12, 27)) for c in range(43)]
    for label in (hot, np.array(hot), np.array(hot, np.uint8), np.array(hot, np.float32), [bool(h) for h in hot]):
        read = data.label(relabel(folder, label))
        assert read.values.dtype == np.float32
        assert read.values.tolist() == hot
    assert data.about.classes[12].name == "Permanently irrigated land"
    assert not data.label(relabel(folder, [0] * 43)).values.any()
    for bad in (
        hot[:-1],
        [*hot, 0],
        3,
        [2, *hot[1:]],
        [0.5, *hot[1:]],
        [float("nan"), *hot[1:]],
        [hot],
        "1" * 43,
        [[1], []],
    ):
        with pytest.raises(DataError, match="expected 43 numbers that are 0 or 1"):
            data.label(relabel(folder, bad))


def test_masks(cashew, tmp_path):
    data = GeoBench(tmp_path, "m-cashew-plant", ignore_class0=False)
    sample_id, path = image(cashew)

    def with_mask(mask, key="label"):
        def change(file):
            for old in [k for k in file if k.startswith("label")]:
                del file[old]
            if mask is not None:
                file[key] = mask

        edit(path, change)

    dated = np.arange(256).reshape(16, 16) % 7
    with_mask(dated.astype("uint8"), "label_2019-11-15")
    assert np.array_equal(data.label(sample_id).values, dated)
    assert np.array_equal(data.read(sample_id).label.values, dated)
    bad = {
        "the mask holds float32; expected integers": np.zeros((16, 16), "float32"),
        "the mask holds 7; expected 0 to 6": np.full((16, 16), 7),
        "the mask holds -1; expected 0 to 6": np.full((16, 16), -1),
        "expected an array of numbers": np.full((16, 16), b"x"),
    }
    for message, mask in bad.items():
        with_mask(mask)
        for read in (data.label, data.read):
            with pytest.raises(DataError, match=message):
                read(sample_id)
    with_mask(np.zeros((1, 16, 16), int))
    with pytest.raises(DataError, match=r"the mask has \(1, 16, 16\) pixels"):
        data.label(sample_id)
    with_mask(np.zeros((8, 16), int))
    with pytest.raises(DataError, match=r"the mask has \(8, 16\) pixels, the image \(16, 16\)"):
        data.read(sample_id)
    with_mask(None)
    with pytest.raises(DataError, match="has no array 'label'; it has 01 - Coastal aerosol_2019-11-15, "):
        data.label(sample_id)


# --- pickles


ATTRIBUTES = {
    "none": None,
    "a number": 3,
    "not a literal": "open('x')",
    "another literal": "[1, 2]",
    "cut": "b'\\x80\\x04",
    "deep": "(" * 5000,
}


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_an_attribute_that_is_no_pickle(eurosat, tmp_path, name):
    sample_id, path = image(eurosat)
    data = GeoBench(tmp_path, "m-eurosat")

    def change(file):
        del file.attrs["pickle"]
        if ATTRIBUTES[name] is not None:
            file.attrs["pickle"] = ATTRIBUTES[name]

    edit(path, change)
    with pytest.raises(DataError, match=r"the attribute 'pickle', which holds the label, is .*; expected text like"):
        data.read(sample_id)


class Attack:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


def test_hostile_files_are_refused(eurosat, tmp_path):
    """In the pickle, and in the text around it, which is a literal and never evaluated."""
    sample_id, path = image(eurosat)
    data, target = GeoBench(tmp_path, "m-eurosat"), tmp_path / "touched"
    hostile = pickle.dumps({"label": 1, "02 - Blue": Attack(target)})
    edit(path, lambda file: file.attrs.__setitem__("pickle", str(hostile)))
    for read in (data.label, data.read):
        with pytest.raises(DataError, match=r"asks for posix\.system.*nothing was executed"):
            read(sample_id)
    edit(path, lambda file: file.attrs.__setitem__("pickle", f"__import__('os').system('touch {target}')"))
    with pytest.raises(DataError, match="expected text like"):
        data.label(sample_id)
    assert not target.exists()


def test_pickles_of_masks_are_not_read_at_all(cashew, tmp_path):
    sample_id, path = image(cashew)
    edit(path, lambda file: file.attrs.__setitem__("pickle", str(pickle.dumps(Attack(tmp_path / "touched")))))
    GeoBench(tmp_path, "m-cashew-plant", ignore_class0=True).read(sample_id)
    assert not (tmp_path / "touched").exists()


def test_task_specs_are_never_opened(eurosat, tmp_path):
    (eurosat / "task_specs.pkl").write_bytes(pickle.dumps(Attack(tmp_path / "touched")))
    data = GeoBench(tmp_path, "m-eurosat")
    data.read(data.ids["test"][0])
    assert not (tmp_path / "touched").exists()


# --- bands


def test_missing_bands_and_sizes(eurosat, tmp_path):
    data = GeoBench(tmp_path, "m-eurosat")
    sample_id, path = image(eurosat)

    def replaced(value):
        def change(file):
            file.pop("03 - Green", None)
            if value is not None:
                file["03 - Green"] = value

        edit(path, change)

    replaced(None)
    with pytest.raises(DataError, match=r"no array '03 - Green' \(band B03\); it has 01 - Coastal.*12 - SWIR") as error:
        data.read(sample_id)
    assert str(path) in str(error.value)
    with pytest.raises(DataError, match="no array '03 - Green'"):  # found at once, by the first image
        GeoBench(tmp_path, "m-eurosat")
    for shape in ((4, 4), (8, 9), (1, 8, 8)):
        replaced(np.ones(shape, "int16"))
        pixels = " x ".join(map(str, shape))
        with pytest.raises(DataError, match=f"'03 - Green' is {pixels} px, .* is 8 x 8 px.*nothing is resampled"):
            data.read(sample_id)
    replaced(np.full((8, 8), b"text"))
    with pytest.raises(DataError, match=r"'03 - Green' is .*expected an array of numbers"):
        data.read(sample_id)


def test_of_several_dates_the_first_that_all_bands_have(cashew, tmp_path):
    data = GeoBench(tmp_path, "m-cashew-plant", ignore_class0=True)
    assert not any("several dates" in note for note in data.about.notes)
    sample_id, path = image(cashew)
    keys = [layer.key for layer in SETS["m-cashew-plant"].layers]

    def later(file):
        for i, key in enumerate(keys):
            for date in ("2019-11-10", "2020-02-08"):
                if not (i == 3 and date == "2019-11-10"):  # one band lacks the earliest date
                    file[f"{key}_{date}"] = np.full((16, 16), 77, "float32")

    edit(path, later)
    again = GeoBench(tmp_path, "m-cashew-plant", ignore_class0=True)
    assert any("several dates" in note for note in again.about.notes)
    with h5py.File(path) as file:
        expected = [file[f"{key}_2019-11-15"][()] for key in keys]
    assert np.array_equal(again.read(sample_id).values, expected)
    edit(path, lambda file: [file.pop(f"{keys[0]}_{date}") for date in ("2019-11-15", "2020-02-08")])
    with pytest.raises(DataError, match="no date has all bands"):
        again.read(sample_id)


def test_the_canopy_height_model_may_be_absent_or_elsewhere(tmp_path):
    folder = write_set(tmp_path, "m-NeonTree", size=20)
    data = GeoBench(tmp_path, "m-NeonTree")
    sample_id, path = image(folder)
    c = data.about.bands.index("chm")
    heights = data.read(sample_id).values[c]
    assert heights.any()

    def move(key, value):
        def change(file):
            for old in [k for k in file if "Canopy" in k]:
                del file[old]
            if value is not None:
                file[key] = value

        edit(path, change)

    move("Canopy Height Model", heights)
    assert np.array_equal(data.read(sample_id).values[c], heights)
    for key, value in (("CanopyHeightModel", np.ones((2, 2, 1))), ("CanopyHeightModel", np.ones((2, 2))), ("", None)):
        move(key, value)
        sample = data.read(sample_id)
        assert not sample.valid[c].any()
        assert not sample.values[c].any()
        assert sample.valid[:c].all()
    table = json.loads((folder / "band_stats.json").read_text())
    del table["CanopyHeightModel"]
    (folder / "band_stats.json").write_text(json.dumps(table))
    assert set(data.statistics()) == {"B04", "B03", "B02"}


def test_damaged_files(eurosat, tmp_path):
    data = GeoBench(tmp_path, "m-eurosat")
    sample_id, path = image(eurosat)
    whole = path.read_bytes()
    for damaged in (b"", whole[:1000], b"text" * 500, whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        for read in (data.read, data.label):
            with pytest.raises(DataError, match="cannot be read") as error:
                read(sample_id)
            assert str(path) in str(error.value)
    path.unlink()
    with pytest.raises(DataError, match=f"has no image '{sample_id}'"):
        data.read(sample_id)
    with pytest.raises(DataError, match="has no image 'id_99'"):
        data.label("id_99")


# --- folders, partitions, statistics


def test_folders_and_names(tmp_path):
    write_set(tmp_path, "m-eurosat", size=4)
    with pytest.raises(UnknownNameError, match=r"unknown GEO-Bench set 'm-eurosta'. Did you mean 'm-eurosat'\?"):
        GeoBench(tmp_path, "m-eurosta")
    with pytest.raises(UnknownNameError, match=r"unknown partition '0.1x'. Did you mean"):
        GeoBench(tmp_path, "m-eurosat", partition="0.1x")
    with pytest.raises(DataError, match=r"is no folder. Expected the folder that holds 'classification_v1.0'"):
        GeoBench(tmp_path / "nowhere", "m-eurosat")
    with pytest.raises(DataError, match="must be called 'm-so2sat'"):  # never one set read as another
        GeoBench(tmp_path / "classification_v1.0/m-eurosat", "m-so2sat")


BAD_PARTITIONS = {
    "text": ("{", "is not JSON"),
    "a list": ('["id_0000"]', r"expected \{\"train\""),
    "no valid": ('{"train": ["id_0000"], "val": ["id_0001"], "test": ["id_0002"]}', "expected"),
    "numbers": ('{"train": [0], "valid": [1], "test": [2]}', "ids as text"),
    "empty": ('{"train": ["id_0000"], "valid": [], "test": ["id_0001"]}', "split 'valid' is empty"),
    "absent": (
        '{"train": ["id_0000", "id_77"], "valid": ["id_0001"], "test": ["id_88"]}',
        "names 2 of 4 images that are not in the folder, the first 'id_77.hdf5'",
    ),
    "twice": ('{"train": ["id_0000", "id_0000"], "valid": ["id_0001"], "test": ["id_0002"]}', "more than once"),
    "leak": (
        '{"train": ["id_0000"], "valid": ["id_0001"], "test": ["id_0000"]}',
        "'id_0000' is in 'train' and in 'test'",
    ),
}


@pytest.mark.parametrize("name", BAD_PARTITIONS)
def test_bad_partitions(eurosat, tmp_path, name):
    content, message = BAD_PARTITIONS[name]
    path = eurosat / "0.10x_train_partition.json"
    path.write_text(content)
    with pytest.raises(DataError, match=message) as error:
        GeoBench(tmp_path, "m-eurosat", partition="0.10x")
    assert str(path) in str(error.value)
    GeoBench(tmp_path, "m-eurosat")


def test_a_missing_partition_names_those_that_are_there(eurosat, tmp_path):
    (eurosat / "default_partition.json").unlink()
    with pytest.raises(DataError, match=r"default_partition.json' is missing.*0.01x_train_partition.json, 0.02x"):
        GeoBench(tmp_path, "m-eurosat")
    assert len(GeoBench(tmp_path, "m-eurosat", partition="1.00x").ids["train"]) == 6


def test_bad_statistics(eurosat, tmp_path):
    data, path = GeoBench(tmp_path, "m-eurosat"), eurosat / "band_stats.json"
    table = json.loads(path.read_text())
    whole = data.statistics()
    # Under the key that the file has for the band, the last for B8A.
    bad = {
        r"no entry '12 - SWIR' \(band B8A\); it has 01 - Coastal": {k: v for k, v in table.items() if k != "12 - SWIR"},
        "entry '12 - SWIR' .* has no 'mean' and 'std'": {**table, "12 - SWIR": {"mean": 3}},
        "'12 - SWIR' .* has no 'mean'": {**table, "12 - SWIR": {"mean": "x", "std": 1}},
        "'12 - SWIR' .* has no 'mean' and": {**table, "12 - SWIR": [1, 2]},
        "expected an object": [1],
    }
    for message, content in bad.items():
        path.write_text(json.dumps(content))
        with pytest.raises(StatisticsError, match=message):
            data.statistics()
    path.write_text(json.dumps({f"{key}_2020-01-01": entry for key, entry in table.items()}))
    assert data.statistics() == whole
    path.unlink()
    with pytest.raises(StatisticsError, match=r"band_stats.json' is missing"):
        data.statistics()
