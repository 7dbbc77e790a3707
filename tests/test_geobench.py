"""The GEO-Bench reader against independent readings of real files, and of all sets as `geobench_files` writes them."""

import json
import os
import pickle
import shutil

import numpy as np
import pytest
import torch

h5py = pytest.importorskip("h5py")

from geobench_files import FRACTIONS, NO_DATA_CLASS, edit, file_key, image, opened, relabel, write_partitions, write_set  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402

from multimae_eo.data import geobench  # noqa: E402
from multimae_eo.data.geobench import GeoBench  # noqa: E402
from multimae_eo.data.geobench_sets import SETS  # noqa: E402
from multimae_eo.data.labelled import rasters, with_own_statistics  # noqa: E402
from multimae_eo.errors import DataError  # noqa: E402
from multimae_eo.modalities import BANDS, MODALITIES, fed_by  # noqa: E402

# What the files of the real sets hold under which key, from the descriptions of EuroSAT, SustainBench and others.
S2_KEYS = {
    **{"B01": "01 - Coastal aerosol", "B02": "02 - Blue", "B03": "03 - Green", "B04": "04 - Red"},
    **{f"B0{n}": f"0{n} - Vegetation Red Edge" for n in (5, 6, 7)},
}
REAL = {
    "m-eurosat": {
        **S2_KEYS,
        **{"B08": "08 - NIR", "B09": "08A - Vegetation Red Edge", "B10": "09 - Water vapour"},
        **{"B11": "10 - SWIR - Cirrus", "B12": "11 - SWIR", "B8A": "12 - SWIR"},
    },
    "m-brick-kiln": {
        **{band: key for band, key in S2_KEYS.items() if band not in ("B06", "B07")},
        **{"B07": "06 - Vegetation Red Edge", "B8A": "07 - Vegetation Red Edge", "B08": "08 - NIR"},
        **{"B11": "08A - Vegetation Red Edge", "B12": "09 - Water vapour"},
    },
    "m-SA-crop-type": {
        **S2_KEYS,
        **{"B08": "08 - NIR", "B8A": "08A - Vegetation Red Edge", "B09": "09 - Water vapour"},
        **{"B11": "11 - SWIR", "B12": "12 - SWIR"},
    },
    "m-chesapeake": {"B04": "Red", "B03": "Green", "B02": "Blue", "B08": "NearInfrared"},
}


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """All sets, small, once."""
    root = tmp_path_factory.mktemp("geobench")
    for name in SETS:
        write_set(root, name, size=24, original_globals=name == "m-eurosat")
    return root


@pytest.fixture
def eurosat(tmp_path):
    return write_set(tmp_path, "m-eurosat", size=8)


@pytest.fixture
def cashew(tmp_path):
    return write_set(tmp_path, "m-cashew-plant", size=16)


# --- the real files


@pytest.fixture(scope="module")
def real(shared, tmp_path_factory):
    """The real sets with a partition each; where there are too few images, some stand for others."""
    root = tmp_path_factory.mktemp("real")
    for name in REAL:
        source = shared / "real/geobench" / SETS[name].folder / name
        folder = root / SETS[name].folder / name
        folder.mkdir(parents=True)
        shutil.copy(source / "band_stats.json", folder)
        files = sorted(source.glob("*.hdf5"))
        ids = []
        for i in range(max(3, len(files))):
            path = files[i % len(files)]
            again = "" if i < len(files) else f".again{i}"
            ids.append(path.name.removesuffix(".hdf5") + again)
            shutil.copy(path, folder / f"{ids[-1]}.hdf5")
        write_partitions(folder, {"train": ids[:-2], "valid": ids[-2:-1], "test": ids[-1:]})
    return root


@pytest.mark.parametrize("name", REAL)
def test_real_files_pixel_by_pixel(real, name):
    data = opened(real, name)
    assert set(data.about.bands) == set(REAL[name])
    for split in ("train", "valid", "test"):
        for sample_id in data.ids[split]:
            sample = data.read(sample_id)
            with h5py.File(data.folder / f"{sample_id}.hdf5") as file:
                for i, band in enumerate(data.about.bands):
                    raw = file[REAL[name][band]][()].astype(np.float32)
                    assert np.array_equal(sample.values[i], raw), band
                    zero_is_none = name in ("m-eurosat", "m-brick-kiln")
                    assert np.array_equal(sample.valid[i], raw != 0 if zero_is_none else np.ones(raw.shape, bool)), band
                if SETS[name].task == "segmentation":
                    mask = file["label"][()]
                    codes = [c.code for c in data.about.classes]  # what the file calls the classes that are left
                    assert np.array_equal(
                        np.take(codes, sample.label.values)[sample.label.known], mask[sample.label.known]
                    )
                    ignored = mask == 0 if name in NO_DATA_CLASS else np.zeros(mask.shape, bool)
                    assert np.array_equal(sample.label.known, ~ignored)
            assert sample.values.dtype == np.float32


def test_real_eurosat_is_the_original_tile(real, shared):
    rasterio = pytest.importorskip("rasterio")
    order = [*(f"B0{n}" for n in range(1, 10)), "B10", "B11", "B12", "B8A"]
    with rasterio.open(shared / "real/eurosat_ms/AnnualCrop/AnnualCrop_1.tif") as file:
        original = dict(zip(order, file.read().astype(np.float32), strict=True))
    data = GeoBench(real, "m-eurosat")
    sample = data.read("id_0000")
    for band, values in zip(data.about.bands, sample.values, strict=True):
        assert np.array_equal(values, original[band]), band
    assert data.about.classes[sample.label.values].name == "Annual crop"


def test_real_statistics_are_of_the_bands_that_they_name(real):
    eurosat, kiln = GeoBench(real, "m-eurosat").statistics(), GeoBench(real, "m-brick-kiln").statistics()
    assert set(eurosat) == {*S2_KEYS, "B08", "B8A", "B09", "B10", "B11", "B12"}
    assert eurosat["B10"][0] < 20 < 500 < eurosat["B09"][0]  # hardly anything is seen in the cirrus band
    assert eurosat["B8A"][0] == pytest.approx(3382.48, abs=0.01)
    assert kiln["B12"] == pytest.approx((1171.65, 713.684), abs=0.01)
    assert 60 not in {round(mean) for mean, _ in kiln.values()}
    # Statistics of five images are the statistics of these images.
    data = GeoBench(real, "m-eurosat")
    values = np.stack([data.read(f"id_{i:04d}").values for i in range(5)])
    for i, band in enumerate(data.about.bands):
        assert values[:, i].mean() == pytest.approx(eurosat[band][0], rel=0.05), band


def test_real_chesapeake_classes_look_like_their_names(real):
    """Class 1 is water and 2 trees, so 0 cannot be water, whatever the set's own metadata say."""
    data = GeoBench(real, "m-chesapeake")
    sample = data.read("id_000051")
    red, green, _, nir = sample.values
    index = {c.name: c.code for c in data.about.classes}
    greenness = [(nir - red)[sample.label.values == code].mean() for code in range(7) if code in sample.label.values]
    water = sample.label.values == index["Water"]
    assert (green - nir)[water].mean() > 0.3
    assert max(greenness) == (nir - red)[sample.label.values == index["Tree canopy and forest"]].mean()
    assert 0 not in sample.label.values


def test_real_overlapping_splits_are_refused_unless_allowed(shared):
    root = shared / "real/geobench"
    with pytest.raises(DataError, match=r"'id_0000' is in 'train' and in 'valid'.*data.allow_leaks"):
        GeoBench(root, "m-eurosat")
    data = GeoBench(root, "m-eurosat", allow_leaks=True)
    assert data.ids["test"] == tuple(f"id_{i:04d}" for i in range(5))
    assert data.label("id_0003").values == 0


# --- all sets, as written by geobench_files


@pytest.mark.parametrize("name", SETS)
def test_every_set_is_read(everything, name):
    data, described = opened(everything, name), SETS[name]
    assert {split: len(ids) for split, ids in data.ids.items()} == {"train": 6, "valid": 3, "test": 3}
    assert data.about.task == described.task
    assert data.about.bands == tuple(layer.band for layer in described.layers)
    for ids in data.ids.values():
        for sample_id in ids:
            sample = data.read(sample_id)
            assert sample.values.shape == sample.valid.shape == (len(described.layers), 24, 24)
            assert np.isfinite(sample.values).all()
            assert sample.valid[:, 1:].all()
            alone = data.label(sample_id)
            assert np.array_equal(alone.values, sample.label.values)
            assert np.array_equal(alone.known, sample.label.known)
    statistics = data.statistics()
    names = fed_by(data.about.bands, MODALITIES)
    assert names
    with_own_statistics({n: MODALITIES[n] for n in names}, data.about, statistics)
    batch = rasters(sample, data.about, {n: MODALITIES[n] for n in names}, dict.fromkeys(names, 0))
    assert all(raster.values.shape[-2:] == (24, 24) for raster in batch.values())


@pytest.mark.parametrize("name", SETS)
def test_statistics_are_those_of_what_is_read(everything, name):
    data = opened(everything, name)
    samples = [data.read(i) for i in data.ids["train"]]
    for c, band in enumerate(data.about.bands):
        values = np.concatenate([s.values[c][s.valid[c]] for s in samples]).astype(np.float64)
        assert data.statistics()[band] == pytest.approx((values.mean(), values.std()), rel=1e-4), band


def test_values_and_no_data_of_each_key(everything):
    data = GeoBench(everything, "synthetic-map")
    sample_id = data.ids["valid"][0]
    sample = data.read(sample_id)
    with h5py.File(data.folder / f"{sample_id}.hdf5") as file:
        raw = np.stack([file[layer.key][()].astype(np.float32) for layer in SETS["synthetic-map"].layers])
        codes = file["label"][()]
    none = np.isin(raw, (0, -32768)) | np.isnan(raw)
    assert none[:, 0, 0].all()
    assert np.array_equal(sample.valid, ~none)
    assert np.array_equal(sample.values[~none], raw[~none])
    assert not sample.values[none].any()
    assert np.array_equal(sample.label.values, codes)
    assert sample.label.known.all()
    # 0 is a number like any other where it does not mean none.
    edit(data.folder / f"{sample_id}.hdf5", lambda file: file["dem"].write_direct(np.zeros((24, 24), "int16")))
    assert GeoBench(everything, "synthetic-map").read(sample_id).valid[data.about.bands.index("dem")].all()


def test_so2sat_in_the_units_of_the_package(everything):
    data = GeoBench(everything, "m-so2sat")
    sample_id, path = image(data.folder)
    with h5py.File(path) as file:
        blue, vv, vh = (file[k][()] for k in ("02 - Blue", "06 - VV.LEE Filtered", "05 - VH.LEE Filtered"))
    values = dict(zip(data.about.bands, data.read(sample_id).values, strict=True))
    assert np.allclose(values["B02"], blue * 10000)
    assert np.allclose(values["VV"], 10 * np.log10(vv), atol=1e-4)
    assert np.allclose(values["VH"], 10 * np.log10(vh), atol=1e-4)
    stored = json.loads((data.folder / "band_stats.json").read_text())["02 - Blue"]
    assert data.statistics()["B02"] == pytest.approx((stored["mean"] * 10000, stored["std"] * 10000))


def test_intensities_without_a_logarithm_are_invalid(tmp_path):
    folder = write_set(tmp_path, "m-so2sat", size=8)
    sample_id, path = image(folder)
    vv = np.array([0, -1, np.nan, np.inf, 1, 10, 0.1, 0.01] * 8, "float32").reshape(8, 8)
    edit(path, lambda file: file["06 - VV.LEE Filtered"].write_direct(vv))
    data = GeoBench(tmp_path, "m-so2sat")
    sample = data.read(sample_id)
    c = data.about.bands.index("VV")
    assert np.array_equal(sample.valid[c, 0], [False] * 4 + [True] * 4)
    assert np.allclose(sample.values[c, 0], [0, 0, 0, 0, 0, 10, -10, -20])
    assert np.isfinite(data.statistics()["VV"]).all()


def test_the_table_is_consistent():
    counts = {"m-eurosat": 10, "m-so2sat": 17, "m-bigearthnet": 43, "m-brick-kiln": 2, "m-forestnet": 12, "m-pv4ger": 2}
    counts |= {"m-cashew-plant": 7, "m-SA-crop-type": 10, "m-chesapeake": 7, "m-pv4ger-seg": 2, "m-nz-cattle": 2}
    counts |= {"m-NeonTree": 2, "synthetic-class": 12, "synthetic-multilabel": 12, "synthetic-map": 12}
    assert {name: len(described.classes) for name, described in SETS.items()} == counts
    for name, keys in REAL.items():
        assert {layer.band: layer.key for layer in SETS[name].layers} == keys
    assert [c.name for c in SETS["m-chesapeake"].classes][:3] == ["No data", "Water", "Tree canopy and forest"]
    products = {product for m in MODALITIES.values() for product in m.products}
    for described in SETS.values():
        bands = [layer.band for layer in described.layers]
        assert len(set(bands)) == len(bands) == len({layer.key for layer in described.layers})
        assert set(bands) <= set(BANDS)
        assert set(described.products) <= products
        assert [c.code for c in described.classes] == list(range(len(described.classes)))
        assert len({c.name for c in described.classes}) == len(described.classes)
        assert described.folder == f"{'segment' if described.task == 'segmentation' else 'classific'}ation_v1.0"
    assert len({c.color for c in SETS["synthetic-map"].classes}) == 12


def test_a_root_may_be_the_set_or_any_folder_above(everything):
    folder = everything / "classification_v1.0/m-forestnet"
    for root in (everything, folder.parent, folder, str(folder)):
        assert GeoBench(root, "m-forestnet").folder == folder


def test_partitions_shrink_the_training_split_alone(tmp_path):
    write_set(tmp_path, "m-pv4ger", train=100, size=4)
    for partition in geobench.PARTITIONS:
        data = GeoBench(tmp_path, "m-pv4ger", partition=partition)
        share = 1.0 if partition == "default" else float(partition[:-1])
        assert len(data.ids["train"]) == round(100 * share)
        assert (len(data.ids["valid"]), len(data.ids["test"])) == (3, 3)
        assert any(partition in note for note in data.about.notes) == (partition != "default")
    assert geobench.PARTITIONS[1:] == tuple(f"{f}x" for f in FRACTIONS)


def test_the_fingerprint_changes_with_what_may_be_read(eurosat, tmp_path):
    first = GeoBench(tmp_path, "m-eurosat").fingerprint()
    assert GeoBench(tmp_path, "m-eurosat", partition="0.50x").fingerprint() == first
    seen = {first}

    def changed() -> bool:
        now = GeoBench(tmp_path, "m-eurosat").fingerprint()
        new = now not in seen
        seen.add(now)
        return new

    _, path = image(eurosat, "test")
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert changed()
    path.write_bytes(path.read_bytes() + b" ")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert changed()
    (eurosat / "band_stats.json").write_text("{}")
    assert changed()
    assert not changed()


def test_processes_read_the_same(everything):
    data = opened(everything, "m-SA-crop-type")
    assert pickle.loads(pickle.dumps(data)).about == data.about
    reading = Reading(data)
    for alone, parallel in zip(DataLoader(reading), DataLoader(reading, num_workers=2), strict=True):
        assert torch.equal(alone, parallel)


class Reading(torch.utils.data.Dataset):
    def __init__(self, data):
        self.data = data

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return torch.from_numpy(self.data.read(self.data.ids["train"][index]).values)


def test_files_are_written_as_the_original_has_them(everything):
    """The writer of these tests: dated keys, labels where they belong, ids with dots and commas."""
    with h5py.File(next((everything / "classification_v1.0/m-forestnet").glob("*.hdf5"))) as file:
        assert sorted(file) == [
            f"0{n} - {b}_2016-01-01" for n, b in enumerate(("Blue", "Green", "Red", "NIR", "SWIR1", "SWIR2"), 2)
        ]
    with h5py.File(next((everything / "segmentation_v1.0/m-nz-cattle").glob("*.hdf5"))) as file:
        assert "label_2018-01-01" in file
    assert file_key("m-eurosat", "02 - Blue") == "02 - Blue"
    assert all(
        "." in path.name.removesuffix(".hdf5") for path in (everything / "classification_v1.0/m-pv4ger").glob("*.hdf5")
    )
    for name, described in SETS.items():
        data = opened(everything, name)
        if described.task != "segmentation":
            seen = np.sum([data.label(i).values for i in data.ids["train"]], axis=0)
            assert (
                (seen > 0).all()
                if described.task == "multilabel"
                else seen == sum(i % len(described.classes) for i in range(6))
            )
        else:
            assert set(np.unique(data.label(data.ids["train"][0]).values)) == set(range(len(data.about.classes)))


def test_labels_of_every_kind_that_counts(eurosat, tmp_path):
    for label in (7, np.int64(7), np.uint8(7)):
        sample_id = relabel(eurosat, label)
        read = GeoBench(tmp_path, "m-eurosat").label(sample_id)
        assert (read.values.dtype, read.values.shape, int(read.values), bool(read.known)) == (np.int64, (), 7, True)
