"""The MMEarth reader against an independent reading of the same bytes; statistics, splits, files and processes."""

import json
import math
import os
import pickle
import shutil
from collections import Counter

import numpy as np
import pytest
import torch

h5py = pytest.importorskip("h5py")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch.utils.data import DataLoader, Dataset  # noqa: E402
from worlds import edited, read_array, rewrite, write_world  # noqa: E402

from multimae_eo.data.chunks import TileChunks  # noqa: E402
from multimae_eo.data.layout import ARRAYS, SPLITS  # noqa: E402
from multimae_eo.data.mmearth import MMEarth, read_statistics  # noqa: E402
from multimae_eo.data.tiles import blocked, find  # noqa: E402
from multimae_eo.errors import ConfigError, DataError, StatisticsError  # noqa: E402
from multimae_eo.modalities import MODALITIES, Continuous, Statistics, get_modality  # noqa: E402

ALL = list(MODALITIES.values())
SIX = ("rgb", "red_edge", "swir", "nir", "elevation", "land_cover")

# The file's own order of bands, from the description of MMEarth: B8A comes before B8.
FILE_ORDER = ["B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8A", "B8", "B9", "B10", "B11", "B12"]
SENTINEL2 = {"rgb": "B4 B3 B2", "red_edge": "B5 B6 B7", "swir": "B11 B12", "nir": "B8A B8"}


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    """A world of random numbers in which every kind of no data occurs, in every array."""
    folder = write_world(tmp_path_factory.mktemp("noisy"), "noisy", tiles=12, arrays=tuple(ARRAYS))
    random = np.random.default_rng(5)
    shape = (12, 13, 64, 64)
    rewrite(folder, "sentinel2", random.integers(0, 65536, shape, np.uint16) * (random.random(shape) > 0.1))
    sar = random.normal(-12, 5, (12, 8, 64, 64)).astype(np.float32)
    for value in (-np.inf, np.inf, np.nan):
        sar[random.random(sar.shape) < 0.05] = value
    orbits = read_array(folder, "sentinel1")[:, :, -1, -1]
    rewrite(folder, "sentinel1", np.where(np.isfinite(orbits)[..., None, None], sar, np.float32(-np.inf)))
    aster = random.integers(-400, 6000, (12, 2, 64, 64), np.int16)
    rewrite(folder, "aster", np.where(random.random(aster.shape) < 0.1, np.int16(-32768), aster))
    codes = np.array([0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 100, 255], np.uint8)
    rewrite(folder, "esa_worldcover", random.choice(codes, (12, 1, 64, 64)))
    canopy = random.integers(0, 64, (12, 2, 64, 64), np.int8)
    rewrite(folder, "canopy_height_eth", np.where(random.random(canopy.shape) < 0.1, np.int8(127), canopy))
    return folder


def expected(file, name: str, row: int) -> tuple[np.ndarray, np.ndarray, str]:
    """Values, validity and product of a tile, as the description of MMEarth has them."""
    if name in SENTINEL2:
        values = file["sentinel2"][row][[FILE_ORDER.index(b) for b in SENTINEL2[name].split()]]
        return values, values != 0, file["metadata"][row]["S2_type"].decode().upper()
    if name == "elevation":
        values = file["aster"][row, :1]
        return values, values != -32768, "ASTER"
    if name == "land_cover":
        values = file["esa_worldcover"][row]
        return values, ~np.isin(values, [0, 255]), "WorldCover"
    if name == "canopy_height":
        both = file["canopy_height_eth"][row]
        return both[:1], (both[:1] != 127) & (both[1:] != 127), "ETH"
    assert name == "sar"
    ascending, descending = file["sentinel1"][row, :2], file["sentinel1"][row, 4:6]
    if np.isfinite(ascending).any() and not np.isfinite(descending).any():
        return ascending, np.isfinite(ascending), "ascending"
    return descending, np.isfinite(descending), "descending"


def same_as_file(folder, tiles: MMEarth) -> Counter:
    """Compare every pixel of every modality; returns how often each product occurred."""
    seen: Counter = Counter()
    with h5py.File(folder / f"{folder.name}.h5", "r") as file:
        assert len(tiles) == len(file["metadata"])
        for row in range(len(tiles)):
            batch = tiles[row]
            assert list(batch) == [m.name for m in tiles.modalities]
            for modality in tiles.modalities:
                raster = batch[modality.name]
                values, valid, product = expected(file, modality.name, row)
                assert modality.products[raster.product] == product, (modality.name, row)
                np.testing.assert_array_equal(raster.valid.numpy(), valid, err_msg=modality.name)
                measured = raster.values.numpy()
                np.testing.assert_array_equal(measured[valid], values[valid], err_msg=modality.name)
                assert measured.dtype == values.dtype
                seen[modality.name, product] += 1
    return seen


def test_values_validity_and_product_of_every_modality(noisy):
    seen = same_as_file(noisy, MMEarth(noisy, ALL))
    assert {name for name, _ in seen} == {*SIX, "sar", "canopy_height"} == set(MODALITIES)
    assert seen["rgb", "L1C"] == seen["rgb", "L2A"] == 6
    assert (seen["sar", "descending"], seen["sar", "ascending"]) == (9, 3)


def test_tiles_of_128_pixels_and_another_order_of_modalities(tmp_path):
    folder = write_world(tmp_path, tiles=4, tile_px=128)
    tiles = MMEarth(tmp_path, [get_modality(n) for n in reversed(SIX)])
    assert tiles.tile_px == 128
    same_as_file(folder, tiles)


def test_no_data_is_in_the_noisy_world(noisy):
    tiles = MMEarth(noisy, ALL)
    for name in MODALITIES:
        share = np.mean([tiles[row][name].valid.float().mean() for row in (0, 5)])
        assert 0.7 < share < 0.97, name
    neither = tiles[3]["sar"]
    assert not neither.valid.any()
    deviation = read_array(noisy, "canopy_height_eth")[0]
    only_deviation = torch.from_numpy((deviation[:1] != 127) & (deviation[1:] == 127))
    assert only_deviation.any()
    assert not tiles[0]["canopy_height"].valid[only_deviation].any()


def test_one_measured_pixel_of_one_band_decides_the_orbit(noisy, tmp_path):
    folder = shutil.copytree(noisy, tmp_path / "noisy")
    sar = np.full((12, 8, 64, 64), -np.inf, np.float32)
    sar[:, :2] = -10
    for row, channel in enumerate((4, 5)):
        sar[row, channel, 9, 30] = -12.5
    sar[2, [2, 3, 6, 7]] = -20  # HH and HV do not count
    rewrite(folder, "sentinel1", sar)
    modality = get_modality("sar")
    tiles = MMEarth(folder, [modality])
    rasters = [tiles[row]["sar"] for row in range(3)]
    assert [modality.products[r.product] for r in rasters] == ["descending", "descending", "ascending"]
    assert rasters[0].valid.sum() == rasters[1].valid.sum() == 1
    assert rasters[1].values[1, 9, 30] == -12.5


def test_product_of_a_tile_from_tile_info_where_the_metadata_lacks_it(noisy, tmp_path):
    folder = shutil.copytree(noisy, tmp_path / "noisy")
    metadata = read_array(folder, "metadata")
    rewrite(folder, "metadata", metadata[["tile_id"]].astype([("tile_id", "S100")]))
    products = ["L2A"] * 5 + ["L1C"] * 7
    with edited(folder, "tile_info") as info:
        for entry, product in zip(metadata, products, strict=True):
            info[entry["tile_id"].decode()]["S2_type"] = product.lower()
    modality = get_modality("nir")
    tiles = MMEarth(folder, [modality])
    assert [modality.products[tiles[row]["nir"].product] for row in range(12)] == products
    assert [tiles.tile_id(row) for row in (0, 11)] == ["noisy_0000", "noisy_0011"]


def real_statistics(shared, tmp_path, name: str):
    source = shared / "real" / "mmearth_band_stats" / f"{name}_band_stats.json"
    if not source.is_file():
        pytest.skip(f"no real statistics: {source} does not exist")
    folder = tmp_path / name
    folder.mkdir()
    h5py.File(folder / f"{name}.h5", "w").close()
    shutil.copy(source, folder)
    return folder, source.read_text()


def test_real_statistics_are_those_of_the_modalities(shared, tmp_path):
    folder, text = real_statistics(shared, tmp_path, "data_1M_v001_64")
    assert "NaN" in text
    assert "Infinity" in text
    found = read_statistics(folder, ALL)
    for name, modality in MODALITIES.items():
        assert vars(found[name]) == vars(modality), name
        assert found[name].products == modality.products  # their order is the index of a raster's product


def test_real_statistics_of_another_variant_replace_those_of_the_modalities(shared, tmp_path):
    folder, _ = real_statistics(shared, tmp_path, "data_100k_v001")
    found = read_statistics(folder, ALL)
    assert found["elevation"].statistics["ASTER"].mean[0] == pytest.approx(745.726, abs=1e-3)
    assert found["rgb"].statistics["L2A"].mean[2] == pytest.approx(1439.674, abs=1e-3)
    assert found["rgb"].statistics["L1C"].std[2] == pytest.approx(1554.753, abs=1e-3)


def test_a_product_without_any_number_is_left_out(shared, tmp_path):
    folder, _ = real_statistics(shared, tmp_path, "data_1M_v001_64")
    one = Statistics((0.0,), (1.0,))
    cirrus = Continuous("cirrus", ("B10",), "reflectance x 10000", {"L1C": one, "L2A": one})
    found = read_statistics(folder, [cirrus])["cirrus"].statistics
    assert list(found) == ["L1C"]
    assert found["L1C"].mean[0] == pytest.approx(26.013, abs=1e-3)


def test_statistics_of_a_written_world(tmp_path):
    folder = write_world(tmp_path, tiles=6, products=("L2A",))
    found = read_statistics(tmp_path, [get_modality("rgb"), get_modality("land_cover")])
    assert list(found["rgb"].statistics) == ["L2A"]
    red = read_array(folder, "sentinel2")[:, 3].astype(float)
    assert found["rgb"].statistics["L2A"].mean[0] == pytest.approx(red[red > 0].mean(), rel=1e-9)
    assert found["rgb"].statistics["L2A"].std[0] == pytest.approx(red[red > 0].std(), rel=1e-6)
    assert found["land_cover"] == MODALITIES["land_cover"]
    with edited(folder, "band_stats") as table:
        table["sentinel2_l2a"]["mean"][2] = math.nan
    with pytest.raises(StatisticsError, match="band B03 of 'rgb', product L2A, has mean nan"):
        read_statistics(tmp_path, [get_modality("rgb")])
    assert read_statistics(tmp_path, [get_modality("nir")])


places = st.lists(st.tuples(st.floats(-90, 90), st.floats(-180, 180)), min_size=2, max_size=60)


@given(places, st.floats(0.01, 0.99), st.sampled_from([1.0, 1.5, 7.0]), st.integers(0, 2**32))
@settings(max_examples=200, deadline=None)
def test_a_split_by_blocks_never_cuts_a_block(points, fraction, degrees, seed):
    lat, lon = np.array(points).T
    blocks = [(math.floor(a / degrees), math.floor(b / degrees)) for a, b in points]
    if len(set(blocks)) == 1:
        with pytest.raises(DataError, match="one block"):
            blocked(lat, lon, fraction=fraction, degrees=degrees, seed=seed)
        return
    in_val = blocked(lat, lon, fraction=fraction, degrees=degrees, seed=seed)
    assert in_val.dtype == bool
    assert in_val.shape == lat.shape
    assert in_val.any()
    assert not in_val.all()
    inside, outside = ({b for b, v in zip(blocks, in_val, strict=True) if v == side} for side in (True, False))
    assert not inside & outside
    backwards = blocked(lat[::-1], lon[::-1], fraction=fraction, degrees=degrees, seed=seed)
    assert np.array_equal(backwards[::-1], in_val)
    whole = max(Counter(blocks).values())
    assert in_val.sum() < fraction * len(lat) + whole  # no more than one block beyond


def test_the_fraction_and_the_seed_of_a_split_by_blocks():
    random = np.random.default_rng(0)
    lat, lon = random.uniform(-60, 70, 20000), random.uniform(-180, 180, 20000)
    for fraction in (0.01, 0.2, 0.7):
        drawn = [blocked(lat, lon, fraction=fraction, seed=seed) for seed in (0, 0, 1)]
        assert np.array_equal(drawn[0], drawn[1])
        assert not np.array_equal(drawn[0], drawn[2])
        assert all(abs(d.mean() - fraction) < 0.002 for d in drawn)
        band = (lat >= 20) & (lat < 21)
        east = (lon >= 60) & (lon < 61)
        assert 0 < drawn[0][band].mean() < 1 or fraction == 0.01  # blocks of one latitude are drawn apart
        assert 0 < drawn[0][east].mean() < 1 or fraction == 0.01
    for wrong in ({"degrees": 0.5}, {"fraction": 0.0}, {"fraction": 1.0}):
        with pytest.raises(ConfigError, match="blocks of at least 1 degree and a fraction"):
            blocked(lat, lon, **{"fraction": 0.1, **wrong})


def test_splits_by_blocks_where_the_release_has_train_only(tmp_path):
    folder = write_world(tmp_path, tiles=30)
    splits = MMEarth(folder, ALL[:1]).splits(val_fraction=0.2, seed=3)
    assert sorted([*splits["train"], *splits["val"]]) == list(range(30))
    assert not len(splits["test"])
    with open(folder / "tiny_tile_info.json") as file:
        info = json.load(file)
    blocks = [(math.floor(info[f"tiny_{r:04d}"]["lat"]), math.floor(info[f"tiny_{r:04d}"]["lon"])) for r in range(30)]
    assert len(set(blocks)) == 10
    assert not {blocks[r] for r in splits["train"]} & {blocks[r] for r in splits["val"]}
    assert len(splits["val"]) == 6
    with pytest.raises(ConfigError, match=r"0\.5"):
        MMEarth(folder, ALL[:1]).splits(val_fraction=0.2, block_degrees=0.5)


def test_splits_of_the_release_are_kept(tmp_path):
    folder = write_world(tmp_path, tiles=12, val=3, test=2)
    splits = MMEarth(folder, ALL[:1]).splits(val_fraction=0.5, seed=1)
    assert {s: splits[s].tolist() for s in SPLITS} == {
        "train": list(range(7)),
        "val": [7, 8, 9],
        "test": [10, 11],
    }


@pytest.mark.parametrize(
    ("split", "again"), [("val", "'train' and again in 'val'"), ("test", "'train' and again in 'test'")]
)
def test_a_row_is_of_one_split(tmp_path, split, again):
    folder = write_world(tmp_path, tiles=12, val=3, test=2)
    with edited(folder, "splits") as table:
        table[split] += table["train"][4:6]
    with pytest.raises(DataError, match=rf"splits\.json': row 4 is named in {again}"):
        MMEarth(folder, ALL[:1]).splits(val_fraction=0.5)
    with edited(folder, "splits") as table:
        table[split], table["train"] = table[split][:-2], [*table["train"], 2]
    with pytest.raises(DataError, match=r"row 2 is named in 'train' and again in 'train'"):
        MMEarth(folder, ALL[:1]).splits(val_fraction=0.5)


@pytest.mark.parametrize("row", [12, -1, 10**9])
@pytest.mark.parametrize("split", SPLITS)
def test_rows_of_a_split_that_the_file_lacks(tmp_path, split, row):
    folder = write_world(tmp_path, tiles=12)
    with edited(folder, "splits") as table:
        table[split] = [0, row, 3]
    with pytest.raises(DataError, match=rf"splits\.json.*'{split}' names row {row}\b.* 12 rows"):
        MMEarth(folder, ALL[:1]).splits(val_fraction=0.5)


def test_a_data_set_is_found_by_its_folder_or_its_parent(tmp_path):
    folder = write_world(tmp_path, "one", tiles=2)
    assert find(folder) == find(tmp_path) == (folder, "one")
    write_world(tmp_path, "two", tiles=2)
    assert find(folder) == (folder, "one")
    with pytest.raises(DataError, match=r"several data sets.*one\.h5.*two\.h5"):
        find(tmp_path)


@pytest.fixture
def calls(monkeypatch):
    """Counts what is opened and which array is read."""
    counts: Counter = Counter()
    opened, read = h5py.File, TileChunks.__getitem__

    def open_file(*args, **kwargs):
        counts["open"] += 1
        return opened(*args, **kwargs)

    def getitem(self, row):
        counts[self.dataset.name.strip("/")] += 1
        return read(self, row)

    monkeypatch.setattr(h5py, "File", open_file)
    monkeypatch.setattr(TileChunks, "__getitem__", getitem)
    return counts


def test_one_open_file_and_one_read_per_array_and_tile(noisy, calls):
    tiles = MMEarth(noisy, ALL)
    calls.clear()
    for row in (0, 7, 3, 7):
        _ = tiles[row]
    assert calls == {"open": 1, **dict.fromkeys([*ARRAYS, "metadata"], 4)}
    calls.clear()
    only = MMEarth(noisy, [get_modality("elevation")])
    _ = only[0], only[1]
    assert calls == {"open": 2, "aster": 2}  # once to check the file, once to read it


class Reads(Dataset):
    """Which process read a row, how often it had opened a file by then, and a number of the row."""

    def __init__(self, tiles, counts):
        self.tiles, self.counts = tiles, counts

    def __len__(self):
        return len(self.tiles)

    def __getitem__(self, row):
        raster = self.tiles[row]["rgb"]
        return os.getpid(), self.counts["open"], raster.values.double().sum().item()


def test_every_process_opens_the_file_once(noisy, calls):
    tiles = MMEarth(noisy, ALL)
    alone = [tiles[row]["rgb"].values.double().sum().item() for row in range(12)]
    before = calls["open"]
    loader = DataLoader(Reads(tiles, calls), batch_size=None, num_workers=2, multiprocessing_context="fork")
    pids, opened, sums = zip(*loader, strict=True)
    assert list(sums) == alone
    assert len(set(pids)) == 2
    assert os.getpid() not in pids
    assert set(opened) == {before + 1}
    assert tiles[0]["rgb"].values.double().sum().item() == alone[0]
    assert calls["open"] == before


def test_a_reader_pickles_without_its_open_file(noisy):
    tiles = MMEarth(noisy, ALL)
    first = tiles[4]
    again = pickle.loads(pickle.dumps(tiles))[4]
    for name, raster in first.items():
        for mine, other in zip(raster, again[name], strict=True):
            np.testing.assert_array_equal(mine.numpy(), other.numpy(), err_msg=name)
    tiles.close()
    assert torch.equal(tiles[4]["rgb"].values, first["rgb"].values)


@pytest.mark.parametrize("number", [3, 100_001])
def test_arrays_of_a_chunk_per_tile_that_were_never_written(number, tmp_path):
    with h5py.File(tmp_path / "t.h5", "w") as file:
        shape = (number, 1, 16, 16)
        file.create_dataset("esa_worldcover", shape, "uint8", chunks=(1, *shape[1:]), compression="gzip", shuffle=True)
        for name in ("lat", "lon"):
            file.create_dataset(name, (number, 2), "f4", chunks=(1, 2), compression="gzip", fillvalue=1)
        file["lat"][number - 1] = (0, 1)
    tiles = MMEarth(tmp_path, [MODALITIES["land_cover"]])
    assert not tiles.read([0, number - 1])["land_cover"].valid.any()
    assert np.allclose(tiles.places(np.array([0, number - 1])), [[45, 0], [45, 45]])


def test_half_of_a_modality_is_enough(tmp_path):
    table = {"sentinel2_l2a": {"mean": [1000.0] * 13, "std": [500.0] * 13}}
    table["sentinel2_l2a"]["mean"][7] = table["sentinel2_l2a"]["std"][7] = math.nan  # B8A
    (tmp_path / "t_band_stats.json").write_text(json.dumps(table))
    (tmp_path / "t.h5").touch()
    usual = MODALITIES["nir"].statistics["L2A"]
    found = read_statistics(tmp_path, [MODALITIES["nir"]])["nir"].statistics["L2A"]
    assert (found.mean, found.std) == ((usual.mean[0], 1000.0), (usual.std[0], 500.0))
    table["sentinel2_l2a"]["std"][8] = math.nan  # B08 has a mean: that is no number that was not measured
    (tmp_path / "t_band_stats.json").write_text(json.dumps(table))
    with pytest.raises(StatisticsError, match="band B08 of 'nir'"):
        read_statistics(tmp_path, [MODALITIES["nir"]])
