"""The synthetic world: pure in its seed, laid out as MMEarth is, and modalities that depend on each other."""

import json
import subprocess
import sys
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest

from multimae_eo.data.layout import ARRAYS, Tile, valid_pixels
from multimae_eo.data.synthetic import SHIFTED, generate, make_tile
from multimae_eo.data.synthetic.climate import BLOCK_DEGREES, sun
from multimae_eo.errors import ConfigError, DataError
from multimae_eo.modalities import WORLDCOVER

NUM = 400
B02, B03, B04, B08, B10 = 1, 2, 3, 8, 10
TREE, BARE, SNOW, WATER, MANGROVE, MOSS = 10, 60, 70, 80, 95, 100


@pytest.fixture(scope="module")
def tiles() -> list[Tile]:
    return [make_tile(7, index) for index in range(NUM)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate(tmp_path_factory.mktemp("worlds"), "w", tiles=48, seed=3, workers=1)


def same(a: Tile, b: Tile) -> bool:
    return all(np.array_equal(a.arrays[name], b.arrays[name]) for name in ARRAYS)


def contents(folder: Path, count: int | None = None) -> dict[str, np.ndarray]:
    with h5py.File(folder / f"{folder.name}.h5") as file:
        return {key: file[key][:count] for key in file}


def test_a_tile_is_a_function_of_seed_and_index():
    assert same(make_tile(1, 5), make_tile(1, 5))
    assert not same(make_tile(1, 5), make_tile(2, 5))
    assert not same(make_tile(1, 5), make_tile(1, 6))
    assert make_tile(1, 5).tile_id != make_tile(1, 6).tile_id


def test_shifted_worlds_are_northern_autumnal_and_noisy():
    ordinary, shifted = ([make_tile(first + 7, i) for i in range(40)] for first in (0, SHIFTED))
    assert min(abs(t.lat) for t in shifted) > 50 > min(abs(t.lat) for t in ordinary)
    assert all(date.fromisoformat(t.date).month in ((9, 10, 11) if t.lat > 0 else (3, 4, 5)) for t in shifted)

    def roughness(tiles: list[Tile]) -> float:
        """Of water in the near infrared, which has no texture of its own: what is left is noise."""
        found = []
        for tile in tiles:
            water = tile.arrays["esa_worldcover"][0] == WATER
            nir = tile.arrays["sentinel2"][B08].astype(float)
            step = np.abs(np.diff(nir, axis=0))[water[1:] & water[:-1] & (nir[1:] > 0) & (nir[:-1] > 0)]
            found += [np.median(step)] if step.size > 100 else []
        return float(np.median(found))

    assert roughness(shifted) > 1.5 * roughness(ordinary)


def test_files_are_the_same_for_any_number_of_workers_and_tiles(world: Path, tmp_path: Path):
    parallel = generate(tmp_path, "w", tiles=48, seed=3, workers=3)
    for suffix in ("band_stats", "splits", "tile_info"):
        assert (parallel / f"w_{suffix}.json").read_bytes() == (world / f"w_{suffix}.json").read_bytes()
    alone, other = contents(world), contents(parallel)
    assert alone.keys() == other.keys()
    for key, values in alone.items():
        assert np.array_equal(values, other[key]), key
    fewer = contents(generate(tmp_path, "fewer", tiles=9, seed=3, workers=2))
    for key, values in fewer.items():
        assert np.array_equal(values, alone[key][:9]), key


def test_layout(world: Path):
    with h5py.File(world / "w.h5") as file:
        assert set(file) == {*ARRAYS, "lat", "lon", "month", "metadata"}
        for name, spec in ARRAYS.items():
            assert file[name].shape == (48, spec.channels, 64, 64)
            assert file[name].dtype == np.dtype(spec.dtype)
        products = [row["S2_type"].decode() for row in file["metadata"][:]]
        cirrus = file["sentinel2"][:, B10]
        assert np.isneginf(file["sentinel1"][:][:, [2, 3, 6, 7]]).all()
    assert set(products) == {"l1c", "l2a"}
    for product, band in zip(products, cirrus, strict=True):
        assert (band == 0).all() == (product == "l2a")
    infos = list(json.loads((world / "w_tile_info.json").read_text()).values())
    assert [info["S2_type"] for info in infos] == products
    for info in infos:
        zone = int((info["lon"] + 180) // 6) + 1
        assert info["CRS"] == f"EPSG:{326 if info['lat'] >= 0 else 327}{zone:02d}"
        assert "2017-01-01" <= info["S2_DATE"] <= "2020-12-31"
    statistics = json.loads((world / "w_band_stats.json").read_text())
    used = {"sentinel2_l1c": range(13), "sentinel2_l2a": [*range(10), 11, 12], "sentinel1": (4, 5), "aster": (0, 1)}
    for key, bands in {**used, "canopy_height_eth": range(2)}.items():
        for band in bands:
            assert all(np.isfinite(statistics[key][what][band]) for what in ("mean", "std", "min", "max")), (key, band)
            assert statistics[key]["std"][band] > 0


def test_splits_are_blocked(world: Path, tmp_path: Path):
    infos = list(json.loads((world / "w_tile_info.json").read_text()).values())
    splits = json.loads((world / "w_splits.json").read_text())
    assert sorted(splits["train"] + splits["val"]) == list(range(48))
    owner: dict[tuple[int, int], str] = {}
    for split, rows in splits.items():
        for row in rows:
            block = int(infos[row]["lat"] // BLOCK_DEGREES), int(infos[row]["lon"] // BLOCK_DEGREES)
            assert owner.setdefault(block, split) == split
    for seed in range(4):
        for fraction in (0.01, 0.99):
            name = f"{seed}-{fraction}"
            folder = generate(tmp_path, name, tiles=2, tile_px=16, seed=seed, val_fraction=fraction, workers=1)
            few = json.loads((folder / f"{name}_splits.json").read_text())
            assert len(few["train"]) == len(few["val"]) == 1


def test_regions_hold_several_tiles_and_each_its_own_block():
    one = [make_tile(0, index, 16) for index in range(0, 600, 200)]
    assert len({(t.lat // BLOCK_DEGREES, t.lon // BLOCK_DEGREES) for t in one}) == 1
    assert 0 < np.ptp([t.lat for t in one]) < 1
    many = [make_tile(0, index, 16) for index in range(200)]
    assert len({(t.lat // BLOCK_DEGREES, t.lon // BLOCK_DEGREES) for t in many}) == 200


def test_every_class_appears(tiles: list[Tile]):
    counts = np.bincount(np.concatenate([t.arrays["esa_worldcover"].ravel() for t in tiles]), minlength=101)
    assert {c.code for c in WORLDCOVER} <= set(np.flatnonzero(counts))
    assert set(np.flatnonzero(counts)) <= {0, *(c.code for c in WORLDCOVER)}
    assert counts.max() < 0.5 * counts.sum()


def test_class_maps_are_coherent(tiles: list[Tile]):
    maps = np.stack([t.arrays["esa_worldcover"][0] for t in tiles])
    assert (maps[:, 1:] == maps[:, :-1]).mean() > 0.9


def test_something_is_missing_but_little(tiles: list[Tile]):
    channels = {"sentinel2": [B04], "sentinel1": [4, 0], "aster": [0], "esa_worldcover": [0], "canopy_height_eth": [0]}
    for name, used in channels.items():
        valid = np.stack([valid_pixels(name, t.arrays[name])[used].any(axis=0) for t in tiles])
        assert 0.9 < valid.mean() < 1, name


def ndvi(tile: Tile) -> np.ndarray:
    s2 = tile.arrays["sentinel2"].astype(float)
    return (s2[B08] - s2[B04]) / np.maximum(s2[B08] + s2[B04], 1)


def over_class(tiles: list[Tile], code: int, measure: Callable[[Tile], np.ndarray]) -> np.ndarray:
    """Means of a measure over the pixels of a class, of every tile that has a hundred of them."""
    masks = [(t, t.arrays["esa_worldcover"][0] == code) for t in tiles]
    return np.array([measure(t)[mask].mean() for t, mask in masks if mask.sum() >= 100])


def backscatter(tile: Tile, channel: int) -> np.ndarray:
    s1 = tile.arrays["sentinel1"]
    image = s1[4 + channel] if np.isfinite(s1[4, 0, 0]) else s1[channel]
    return np.where(np.isfinite(image), image, np.nan)


def test_classes_look_and_echo_as_they_should(tiles: list[Tile]):
    assert np.median(over_class(tiles, TREE, ndvi)) > np.median(over_class(tiles, BARE, ndvi)) + 0.25
    assert np.median(over_class(tiles, WATER, ndvi)) < 0.1
    for channel, below in ((0, 5), (1, 7)):
        echo = partial(backscatter, channel=channel)
        assert np.nanmedian(over_class(tiles, WATER, echo)) < np.nanmedian(over_class(tiles, TREE, echo)) - below
    trees, bare = (over_class(tiles, code, lambda t: t.arrays["canopy_height_eth"][0] * 1.0) for code in (TREE, BARE))
    assert np.median(trees) > 8
    assert np.median(bare) < 2


def test_slopes_towards_the_sun_are_brighter(tiles: list[Tile]):
    """In steep forests, slopes that fall towards the sun are brighter than those behind, by the height model."""
    gains = {"north": [], "south": []}
    for tile in tiles:
        height, slope = tile.arrays["aster"].astype(float)
        forest = (tile.arrays["esa_worldcover"] == TREE).mean() > 0.7
        if slope.mean() > 5 and forest and height.min() > -1000:
            _, azimuth = sun(tile.lat, date.fromisoformat(tile.date).timetuple().tm_yday)
            down, east = np.gradient(height)
            fall = down * np.cos(azimuth) - east * np.sin(azimuth)
            light = tile.arrays["sentinel2"][B08].astype(float)
            ratio = light[fall > 0.7].mean() / light[fall < -0.7].mean()
            gains["north" if tile.lat > 0 else "south"].append(ratio)
    for gain in gains.values():
        assert len(gain) >= 5
        assert np.median(gain) > 1.03


def test_water_is_flat(tiles: list[Tile]):
    seen = 0
    for tile in tiles:
        water, height = tile.arrays["esa_worldcover"][0] == WATER, tile.arrays["aster"][0]
        measured = water & (height != -32768)
        if measured.any():
            seen += 1
            assert np.ptp(height[measured]) == 0
    assert seen > 20


def test_climate_orders_the_world(tiles: list[Tile]):
    maps = np.stack([t.arrays["esa_worldcover"] for t in tiles])
    share = {code: (maps == code).mean(axis=(1, 2, 3)) for code in (TREE, SNOW, MANGROVE, MOSS)}
    now = np.array([t.extra["temperature_c"] for t in tiles])
    lat = np.abs([t.lat for t in tiles])
    height = np.array([t.arrays["aster"][0].max() for t in tiles])
    assert now[lat < 20].mean() > now[lat > 55].mean() + 15
    assert now[share[SNOW] > 0.3].max() < now.mean()
    assert (share[MANGROVE][lat > 35] == 0).all()
    assert (share[MOSS][(lat < 30) & (height < 2000)] == 0).all()
    wet = np.array([t.extra["moisture"] for t in tiles])
    assert share[TREE][wet > 0.6].mean() > share[TREE][wet < 0.3].mean() + 0.3


def test_seasons(tiles: list[Tile]):
    """Forests of the middle latitudes are greener in summer, in both hemispheres."""
    greens: dict[bool, list[float]] = {True: [], False: []}
    for tile in tiles:
        forest = tile.arrays["esa_worldcover"][0] == TREE
        if forest.sum() > 500 and 40 < abs(tile.lat) < 65:
            month = (int(tile.date[5:7]) + (0 if tile.lat > 0 else 6)) % 12
            if month in (6, 7, 8) or month in (11, 0, 1, 2, 3):
                greens[month in (6, 7, 8)].append(float(ndvi(tile)[forest].mean()))
    assert np.median(greens[True]) > np.median(greens[False]) + 0.15


def test_haze_is_bluest_at_the_top_of_the_atmosphere(tiles: list[Tile]):
    """Over forests, blue exceeds green in L1C and falls below it in L2A."""
    ratio = {
        product: np.median(
            over_class(
                [t for t in tiles if t.product == product and t.extra["temperature_c"] > 8],
                TREE,
                lambda t: t.arrays["sentinel2"][B02] / np.maximum(t.arrays["sentinel2"][B03], 1.0),
            )
        )
        for product in ("L1C", "L2A")
    }
    assert ratio["L1C"] > 1 > ratio["L2A"]


def test_the_sun_stands_in_the_south_east_at_half_past_ten():
    altitude, azimuth = sun(45.0, 172)
    assert 50 < np.degrees(altitude) < 65
    assert 110 < np.degrees(azimuth) < 150
    assert np.degrees(sun(-45.0, 355)[1]) < 70


@pytest.mark.parametrize(
    "options",
    [
        {"tiles": 1},
        {"seed": -1},
        {"tile_px": 12},
        {"tile_px": 66},
        {"val_fraction": 0.0},
        {"val_fraction": 1.0},
        {"workers": 0},
    ],
)
def test_impossible_arguments(options: dict[str, float], tmp_path: Path):
    with pytest.raises(ConfigError, match=f"{next(iter(options))} is {next(iter(options.values()))}"):
        generate(tmp_path, **options)
    assert not list(tmp_path.iterdir())


def test_it_does_not_overwrite(world: Path):
    with pytest.raises(DataError, match="exists already"):
        generate(world.parent, "w", tiles=2)


@pytest.mark.parametrize("workers", [1, 2])
def test_interrupted_it_leaves_nothing(tmp_path: Path, workers: int):
    def interrupt(done: int, tiles: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path, tiles=4000, workers=workers, progress=interrupt)
    assert not list(tmp_path.iterdir())


def test_it_runs_from_a_script_without_a_guard_and_imports_no_torch(tmp_path: Path):
    script = (
        "import sys\nfrom multimae_eo.data.synthetic import generate\n"
        f"generate({str(tmp_path)!r}, tiles=40, tile_px=16, workers=2)\nprint('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-"], input=script, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "False", done.stderr
    assert (tmp_path / "synthetic" / "synthetic.h5").exists()
