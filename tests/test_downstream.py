"""Labelled data of the synthetic world: layout, splits by block, nested partitions, labels that agree, statistics."""

import ast
import io
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from multimae_eo.data.geobench import GeoBench
from multimae_eo.data.geobench_names import SYNTHETIC
from multimae_eo.data.layout import SENTINEL2_CHANNELS
from multimae_eo.data.synthetic import classes as c
from multimae_eo.data.synthetic import make_tile
from multimae_eo.data.synthetic.climate import block_of, draw_place
from multimae_eo.data.synthetic.downstream import (
    FIRST_WORLD,
    KEYS,
    SETS,
    TRAIN_SHARES,
    choose_tiles,
    generate_downstream,
    training_order,
)
from multimae_eo.data.synthetic.fields import stream
from multimae_eo.data.synthetic.ground import NUM_STATES, ground_states
from multimae_eo.data.synthetic.world import make_ground_and_tile
from multimae_eo.errors import ConfigError, DataError, UnknownNameError

TILES, SEED, PX = 130, 8, 16


class Plain(pickle.Unpickler):
    """Refuses everything but built-in values."""

    def find_class(self, module: str, name: str) -> Any:
        raise AssertionError(f"the pickle asks for {module}.{name}")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate_downstream(
        tmp_path_factory.mktemp("down"), tiles=TILES, seed=SEED, tile_px=PX, workers=1, progress=None
    )


def folder(root: Path, name: str) -> Path:
    return root / SETS[name] / name


def partition(root: Path, kind: str = "default", name: str = "synthetic-class") -> dict[str, list[str]]:
    return json.loads((folder(root, name) / f"{kind}_partition.json").read_text())


def sample(root: Path, name: str, sample_id: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    with h5py.File(folder(root, name) / f"{sample_id}.hdf5") as file:
        arrays = {key: dataset[()] for key, dataset in file.items()}
        facts = Plain(io.BytesIO(ast.literal_eval(file.attrs["pickle"]))).load()
    return arrays, facts


def every_id(root: Path) -> list[str]:
    return [i for ids in partition(root).values() for i in ids]


def test_layout(root: Path):
    assert {p.relative_to(root).as_posix() for p in root.glob("*/*")} == {f"{f}/{name}" for name, f in SETS.items()}
    kinds = {**dict.fromkeys(KEYS[:12], "uint16"), "VV": "float32", "VH": "float32", "dem": "int16"}
    for name in SETS:
        files = {p.name for p in folder(root, name).iterdir()}
        tables = {"band_stats.json", "default_partition.json", *(f"{s}x_train_partition.json" for s in TRAIN_SHARES)}
        assert files == {f"{i}.hdf5" for i in every_id(root)} | tables
        arrays, facts = sample(root, name, every_id(root)[5])
        label = {"label": "int16"} if name == "synthetic-map" else {}
        assert {key: str(array.dtype) for key, array in arrays.items()} == {**kinds, **label}
        assert {array.shape for array in arrays.values()} == {(PX, PX)}
        assert facts["bands_order"] == list(KEYS)
        assert all(set(facts[key]) == {"date", "spatial_resolution"} for key in KEYS)


def test_bands_are_those_of_the_tile(root: Path):
    """Of the same world, so that no band has moved; radar is of one orbit, in which it has something."""
    seen = set()
    for sample_id in every_id(root)[:40]:
        arrays, _ = sample(root, "synthetic-class", sample_id)
        tile = make_tile(FIRST_WORLD + SEED, int(sample_id.split("-")[1]), PX)
        assert tile.product == "L2A"
        for key in KEYS[:12]:
            band = "B" + key[:3].removesuffix(" ").removeprefix("0" if key[2] == "A" else "")
            assert np.array_equal(arrays[key], tile.arrays["sentinel2"][SENTINEL2_CHANNELS.index(band)]), key
        assert np.array_equal(arrays["dem"], tile.arrays["aster"][0])
        first = 4 if np.isfinite(tile.arrays["sentinel1"][4]).any() else 0
        radar = tile.arrays["sentinel1"][first : first + 2]
        seen.add(first if np.isfinite(radar).any() else None)
        for key, values in zip(("VV", "VH"), radar, strict=True):
            assert np.array_equal(arrays[key], np.where(np.isfinite(values), values, np.nan), equal_nan=True)
    assert {0, 4} <= seen


def test_files_are_the_same_for_any_number_of_workers(root: Path, tmp_path: Path):
    generate_downstream(tmp_path, tiles=TILES, seed=SEED, tile_px=PX, workers=2)
    files = sorted(p.relative_to(root) for p in root.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file())
    for file in files:
        assert (root / file).read_bytes() == (tmp_path / file).read_bytes(), file


def test_one_set_alone_is_the_same(root: Path, tmp_path: Path):
    generate_downstream(tmp_path, tiles=TILES, seed=SEED, tile_px=PX, workers=1, sets=["synthetic-map"])
    assert [p.name for p in tmp_path.iterdir()] == ["segmentation_v1.0"]
    for path in folder(root, "synthetic-map").iterdir():
        assert path.read_bytes() == (folder(tmp_path, "synthetic-map") / path.name).read_bytes()


@pytest.mark.parametrize("tiles", [10, 11, 15, 200, 1000, 2003])
def test_split_counts_are_exact_and_no_block_is_in_two(tiles: int):
    for seed in range(3):
        world = FIRST_WORLD + seed
        chosen = choose_tiles(world, tiles)
        splits = list(chosen.values())
        want = round(0.5 * tiles), round(0.1 * tiles)
        assert (splits.count("train"), splits.count("valid")) == want
        assert splits.count("test") == tiles - sum(want)
        owner: dict[tuple[int, int], str] = {}
        for index, split in list(chosen.items())[:300]:
            place = draw_place(stream(world, index), world, index)
            assert place.product == "L2A"
            assert owner.setdefault(block_of(place.lat, place.lon), split) == split


def test_places_are_not_those_of_pretraining(root: Path):
    places = {(t.lat, t.lon) for t in (make_tile(SEED, i, PX) for i in range(100))}
    assert not places & {(f["lat"], f["lon"]) for f in (sample(root, "synthetic-class", i)[1] for i in every_id(root))}


def test_splits_are_written_as_chosen(root: Path):
    chosen = choose_tiles(FIRST_WORLD + SEED, TILES)
    for split, ids in partition(root).items():
        assert ids == [f"{FIRST_WORLD + SEED}-{i:06d}" for i, s in chosen.items() if s == split]


def test_labels_agree_among_the_sets(root: Path):
    for sample_id in every_id(root):
        states = sample(root, "synthetic-map", sample_id)[0]["label"]
        counts = np.bincount(states.ravel(), minlength=NUM_STATES)
        label = sample(root, "synthetic-class", sample_id)[1]["label"]
        hot = sample(root, "synthetic-multilabel", sample_id)[1]["label"]
        assert type(label) is int
        assert counts[label] == counts.max()
        assert (counts[:label] < counts.max()).all()
        assert hot == [int(n >= 0.05 * PX * PX) for n in counts]
        assert hot[label] == 1


def test_partitions_are_nested_and_stratified(root: Path):
    full = partition(root)
    label = {i: sample(root, "synthetic-class", i)[1]["label"] for i in full["train"]}
    present = {i: set(np.unique(sample(root, "synthetic-map", i)[0]["label"])) for i in full["train"]}
    before: set[str] = set()
    for share in TRAIN_SHARES:
        part = partition(root, f"{share}x_train")
        assert part == partition(root, f"{share}x_train", "synthetic-map")
        assert (part["valid"], part["test"]) == (full["valid"], full["test"])
        kept = set(part["train"])
        assert before <= kept <= set(full["train"])
        assert len(kept) == len(part["train"])
        assert {label[i] for i in kept} == set(label.values())
        assert set.union(*(present[i] for i in kept)) == set.union(*present.values())
        before = kept
    assert partition(root, "1.00x_train") == full
    assert len(partition(root, "0.50x_train")["train"]) == round(0.5 * len(full["train"]))


def test_the_order_of_training_tiles_is_stratified():
    """From any length on at which the proportions can hold, no class is off by two tiles; rare ones come first."""
    rng = np.random.default_rng(0)
    classes = rng.choice(5, 600, p=[0.6, 0.25, 0.1, 0.04, 0.01])
    counts = np.zeros((600, 12), int)
    counts[np.arange(600), classes] = 95
    counts[:, 0] += 5 * (classes != 0)
    counts[17, 7] = 1  # a state that is the label of no tile
    order, least = training_order(counts, stream(0))
    assert sorted(order) == list(range(600))
    assert least == 6
    assert set(classes[order[:least]]) == set(range(5))
    assert 17 in order[:least]
    for length in range(150, 600, 50):
        found = np.bincount(classes[order[:length]], minlength=5)
        assert np.abs(found - length * np.bincount(classes, minlength=5) / 600).max() < 2
    assert order != training_order(counts, stream(1))[0]


def test_a_tile_that_is_the_richest_in_two_rare_states_comes_once():
    counts = np.zeros((40, 12), int)
    counts[:, 0] = 100
    counts[9, 3] = counts[9, 4] = 2
    order, least = training_order(counts, stream(0))
    assert sorted(order) == list(range(40))
    assert least == 2


def test_statistics(root: Path):
    statistics = json.loads((folder(root, "synthetic-class") / "band_stats.json").read_text())
    assert statistics == json.loads((folder(root, "synthetic-map") / "band_stats.json").read_text())
    tiles = [sample(root, "synthetic-map", i)[0] for i in partition(root)["train"]]
    assert set(statistics) == set(KEYS)
    for key, found in statistics.items():
        values = np.stack([t[key] for t in tiles]).astype(float)
        no_data = {"VV": np.nan, "VH": np.nan, "dem": -32768}.get(key, 0)
        values = values[np.isfinite(values) & (values != no_data)]
        assert len(values) < len(tiles) * PX**2  # something is missing, so that it matters
        want = {"min": values.min(), "max": values.max(), "mean": values.mean(), "std": values.std()}
        assert found == pytest.approx(want, rel=1e-9), key


def test_states_follow_the_ground():
    seen = np.zeros(NUM_STATES, int)
    for index in range(120):
        ground, tile = make_ground_and_tile(5, index, 32)
        states = ground_states(*ground)
        seen += np.bincount(states.ravel(), minlength=NUM_STATES)
        codes = ground.cover.codes
        assert np.isin(states[codes == c.WATER], (0, 1)).all()
        assert (codes[states == 0] == c.WATER).all()
        assert (states[codes == c.BUILT] == 2).all()
        assert np.isin(states[codes == c.TREE], (8, 9, 10)).all()
        assert np.isin(states[codes == c.CROP], (1, 6, 7)).all()
        assert (states[codes == c.SNOW] == 1).all()
        if tile.extra["temperature_c"] > 15:
            assert ((states == 1) <= (codes == c.SNOW)).all()
        green = ground.surface.green
        assert (green[states == 4] >= 0.4).all()
        assert (green[states == 5] < 0.4).all()
        assert (ground.surface.crop[states == 6] >= 0.4).all()
        assert (ground.surface.crop[states == 7] < 0.4).all()
        assert (ground.surface.needles[states == 8] >= 0.5).all()
        assert (ground.surface.leaves[states == 9] >= 0.5).all()
        assert (ground.surface.leaves[states == 10] < 0.5).all()
    assert (seen > 0).all()
    assert len(SYNTHETIC) == NUM_STATES


def test_the_reader_of_geobench_takes_them(root: Path):
    tasks = {"synthetic-class": (), "synthetic-multilabel": (NUM_STATES,), "synthetic-map": (PX, PX)}
    for name, shape in tasks.items():
        data = GeoBench(root, name, partition="0.10x")
        read = data.read(data.ids["train"][0])
        arrays, _ = sample(root, name, data.ids["train"][0])
        assert read.label.values.shape == shape
        assert np.array_equal(read.values[data.about.bands.index("B8A")], arrays["08A - Vegetation Red Edge"])
        assert data.statistics()["dem"][1] > 0


@pytest.mark.parametrize("workers", [1, 2])
def test_interrupted_it_leaves_nothing(tmp_path: Path, workers: int):
    def interrupt(done: int, tiles: int) -> None:
        assert not list(tmp_path.glob("[!.]*"))
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate_downstream(tmp_path, tiles=3000, tile_px=PX, workers=workers, progress=interrupt)
    assert not list(tmp_path.iterdir())


def test_it_does_not_overwrite(root: Path, tmp_path: Path):
    (tmp_path / "segmentation_v1.0" / "synthetic-map").mkdir(parents=True)
    with pytest.raises(DataError, match=r"synthetic-map.*exists already"):
        generate_downstream(tmp_path, tiles=10, tile_px=PX)
    assert [p.name for p in tmp_path.rglob("*")] == ["segmentation_v1.0", "synthetic-map"]


@pytest.mark.parametrize(
    "options",
    [{"tiles": 9}, {"seed": -1}, {"tile_px": 30}, {"workers": 0}, {"sets": []}, {"sets": ["synthetic-map"] * 2}],
)
def test_impossible_arguments(options: dict[str, Any], tmp_path: Path):
    with pytest.raises(ConfigError, match=f"{next(iter(options))} is "):
        generate_downstream(tmp_path, **options)
    assert not list(tmp_path.iterdir())


def test_an_unknown_set_is_named(tmp_path: Path):
    with pytest.raises(UnknownNameError, match="Did you mean 'synthetic-map'"):
        generate_downstream(tmp_path, sets=["synthetic-maps"])


def test_it_imports_no_torch(tmp_path: Path):
    script = (
        "import sys\nfrom multimae_eo.data.synthetic.downstream import generate_downstream\n"
        f"generate_downstream({str(tmp_path)!r}, tiles=40, tile_px=16, workers=2)\nprint('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-"], input=script, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "False", done.stderr
