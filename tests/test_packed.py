"""Packed copies: the same tiles to the bit, resumable, checksummed, behind URLs, and every way they can be damaged."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

h5py = pytest.importorskip("h5py")
pytest.importorskip("isal")

from worlds import read_array, rewrite, write_world  # noqa: E402

from multimae_eo.cli import main  # noqa: E402
from multimae_eo.data import packing  # noqa: E402
from multimae_eo.data.layout import ARRAYS, LayoutWriter, Tile, encode_tile  # noqa: E402
from multimae_eo.data.mmearth import MMEarth, read_statistics  # noqa: E402
from multimae_eo.data.packed import Packed, open_tiles  # noqa: E402
from multimae_eo.data.packing import pack  # noqa: E402
from multimae_eo.errors import ConfigError, DataError, StatisticsError  # noqa: E402
from multimae_eo.modalities import MODALITIES, Continuous, Statistics, get_modality  # noqa: E402

ALL = list(MODALITIES.values())
TILES, PER_SHARD = 11, 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A world with all arrays, with every mark that stands for no data."""
    folder = write_world(tmp_path_factory.mktemp("world"), "src", tiles=TILES, arrays=tuple(ARRAYS), seed=5)
    labels, sar = read_array(folder, "esa_worldcover"), read_array(folder, "sentinel1")
    labels[:, :, 10:20] = 255
    sar[:, :, 30:33] = np.nan
    sar[:, :, 34:35] = np.inf
    canopy = read_array(folder, "canopy_height_eth")
    canopy[:, 1, 40:50], canopy[:, 0, 50:55] = 127, -3
    for name, values in (("esa_worldcover", labels), ("sentinel1", sar), ("canopy_height_eth", canopy)):
        rewrite(folder, name, values)
    return folder


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """A complete pack."""
    return pack(folder, tmp_path_factory.mktemp("pack"), ALL, tiles_per_shard=PER_SHARD)


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / whole.name)


def same(one, two, rows) -> None:
    for name, mine in one.read(rows).items():
        other = two.read(rows)[name]
        for a, b in zip(mine, other, strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a.numpy(), b.numpy(), err_msg=name)


def test_a_pack_gives_the_tiles_of_its_source_to_the_bit(folder, whole):
    source, packed = MMEarth(folder, ALL), open_tiles(whole, ALL)
    assert isinstance(packed, Packed)
    assert (len(packed), packed.tile_px) == (TILES, 64)
    same(source, packed, [7, 0, 10, 3, 4, 4])
    assert [packed.tile_id(row) for row in (0, 10)] == ["src_0000", "src_0010"]
    for one, two in zip(source.places(np.arange(TILES)), packed.places(np.arange(TILES)), strict=True):
        np.testing.assert_array_equal(one, two)
    fields = {"val_fraction": 0.3, "seed": 3}
    for split, rows in source.splits(**fields).items():
        np.testing.assert_array_equal(rows, packed.splits(**fields)[split])
    assert read_statistics(whole, ALL) == read_statistics(folder, ALL)
    batch = packed[2]
    assert batch["canopy_height"].values.dtype == torch.int8
    assert not batch["land_cover"].valid[:, 10:20].any()
    assert not batch["sar"].valid[:, 30:33].any()


def test_some_modalities_of_a_pack_in_another_order_and_of_other_products(folder, whole):
    chosen = [get_modality(name) for name in ("nir", "elevation", "rgb")]
    statistics = dict(reversed(chosen[2].statistics.items()))
    chosen[2] = Continuous(**{**vars(chosen[2]), "statistics": statistics})
    packed = Packed(whole, chosen)
    same(MMEarth(folder, chosen), packed, [9, 1, 2])
    assert list(packed.read([0])) == ["nir", "elevation", "rgb"]
    assert packed.read([0, 1])["rgb"].product.tolist() == [1, 0]  # row 1 is L2A, which comes first here
    one = Continuous(**{**vars(chosen[2]), "statistics": {"L2A": statistics["L2A"]}})
    Packed(whole, [one]).read([1])
    with pytest.raises(StatisticsError, match="row 4: the tile is of product L1C, of which 'rgb' has no statistics"):
        Packed(whole, [one]).read([3, 4])


def test_a_pack_is_npy_files_that_numpy_reads(whole):
    records = np.load(whole / "src_00001.npy", mmap_mode="r")
    assert records.shape == (PER_SHARD,)
    red = Packed(whole, ALL).read([5])["rgb"].values[0].numpy()
    np.testing.assert_array_equal(records[1]["rgb"], red)
    assert [len(np.load(whole / f"src_{i:05d}.npy", mmap_mode="r")) for i in range(3)] == [4, 4, 3]


def test_a_pack_pickles_and_is_opened_once_per_process(whole):
    packed = Packed(whole, ALL)
    packed.read([0, 5, 10, 1])
    assert len(packed._files) == 3
    same(packed, pickle.loads(pickle.dumps(packed)), [5])
    if hasattr(os, "fork") and (child := os.fork()) == 0:
        before = packed._files[0]
        packed.read([2])
        os._exit(0 if packed._files[0] is not before and list(packed._files) == [0] else 1)
    assert os.waitpid(child, 0)[1] == 0
    packed.close()
    same(packed, Packed(whole, ALL), [3])


def test_a_pack_behind_a_url(folder, whole):
    fsspec = pytest.importorskip("fsspec")
    pytest.importorskip("upath")
    memory = fsspec.filesystem("memory")
    memory.put(str(whole), "/bucket/src", recursive=True)
    try:
        packed = open_tiles("memory://bucket/src", ALL)
        same(MMEarth(folder, ALL), packed, [8, 1, 10])
        assert packed.tile_id(6) == "src_0006"
        packed.check()
        assert len(packed.splits(val_fraction=0.3)["val"]) > 0
    finally:
        memory.rm("/bucket", recursive=True)
    with pytest.raises(DataError, match="is no folder"):
        open_tiles("memory://bucket/other", ALL)
    with pytest.raises(ConfigError, match=r"cannot be reached.*universal-pathlib"):
        open_tiles("nosuch://bucket/other", ALL)


def test_packing_goes_on_where_it_was_stopped(folder, whole, tmp_path, monkeypatch):
    written = []

    def stopped(source, rows, *args):
        if rows.start == 2 * PER_SHARD and len(written) == 2:
            raise KeyboardInterrupt
        written.append(rows.start)
        return write(source, rows, *args)

    write = packing._write_shard
    monkeypatch.setattr(packing, "_write_shard", stopped)
    with pytest.raises(KeyboardInterrupt):
        pack(folder, tmp_path, ALL, tiles_per_shard=PER_SHARD)
    with pytest.raises(DataError, match=r"holds no NAME\.h5"):
        open_tiles(tmp_path / "src", ALL)
    written.append("again")
    seen = []
    pack(folder, tmp_path, ALL, tiles_per_shard=PER_SHARD, progress=lambda *done: seen.append(done))
    assert written == [0, 4, "again", 8]
    assert seen == [(4, 11), (8, 11), (11, 11)]
    files = {path.name: path.read_bytes() for path in (tmp_path / "src").iterdir()}
    assert files == {path.name: path.read_bytes() for path in whole.iterdir()}
    pack(folder, tmp_path, ALL, tiles_per_shard=PER_SHARD)  # complete: checked only
    assert len(written) == 4
    (tmp_path / "src" / "src_00001.npy").unlink()
    pack(folder, tmp_path, ALL, tiles_per_shard=PER_SHARD)
    assert written[4:] == [4]
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "src").iterdir()}


@pytest.mark.slow
def test_a_killed_packing_goes_on(tmp_path):
    world = write_world(tmp_path, "big", tiles=600)
    command = [sys.executable, "-m", "multimae_eo.cli", "pack", str(world), str(tmp_path / "out")]
    command += ["--tiles_per_shard", "20"]
    for _ in range(3):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        shards = len(list((tmp_path / "out").glob("big/big_*.npy")))
        while process.poll() is None and len(list((tmp_path / "out").glob("big/big_*.npy"))) < shards + 3:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not (tmp_path / "out" / "big" / "big_pack.json").exists()
    subprocess.run(command, check=True, capture_output=True)
    inputs = [m for m in ALL if m.name not in ("sar", "canopy_height")]
    same(MMEarth(world, inputs), Packed(tmp_path / "out", inputs), list(range(0, 600, 7)))
    assert not list((tmp_path / "out").rglob(".*"))


def test_the_command_line_packs_some_modalities(folder, tmp_path, capsys):
    main(["pack", str(folder), str(tmp_path), "--tiles_per_shard", "4", "--modalities", '["rgb", "elevation:sample"]'])
    said = capsys.readouterr()
    assert "complete and checked" in said.out
    assert "11/11 tiles" in said.err
    assert list(Packed(tmp_path, [get_modality("rgb")])._place) == ["rgb", "elevation"]


def damage(path, place=-100) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 0xFF
    path.write_bytes(bytes(content))


def edit(folder, **entries) -> None:
    path = folder / "src_pack.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


@pytest.mark.parametrize("file", ["src_00000.npy", "src_00002.npy", "src_tiles.npy"])
def test_a_damaged_file_is_named(folder, copy, file):
    Packed(copy, ALL).check()
    damage(copy / file)
    with pytest.raises(DataError, match=rf"{file}' is damaged.*[Dd]elete"):
        Packed(copy, ALL).check()
    if file != "src_tiles.npy":
        with pytest.raises(DataError, match=rf"{file}' is damaged.*delete it, and pack again"):
            pack(folder, copy.parent, ALL, tiles_per_shard=PER_SHARD)
        (copy / file).unlink()
    pack(folder, copy.parent, ALL, tiles_per_shard=PER_SHARD)
    Packed(copy, ALL).check()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda f: (f / "src_00001.npy").unlink(), r"src_00001\.npy' holds 0 bytes, expected \d+; delete it and pack"),
        (lambda f: os.truncate(f / "src_00002.npy", 1000), r"src_00002\.npy' holds 1000 bytes, expected"),
        (lambda f: edit(f, format=9), "has format 9, expected 1; pack again"),
        (lambda f: edit(f, tiles="many"), "makes no sense"),
        (lambda f: edit(f, tiles=0), "sizes must be whole numbers"),
        (lambda f: edit(f, shards=[]), "holds|makes no sense"),
        (lambda f: edit(f, shards=[{"file": "/etc/passwd"}]), "makes no sense"),
        (lambda f: edit(f, modalities={"rgb": {"bands": ["B04"]}}), "makes no sense"),
        (lambda f: edit(f, modalities=7), "makes no sense"),
        (lambda f: edit(f, extra=7), "makes no sense"),
        (lambda f: (f / "src_pack.json").write_text("{"), "is not JSON"),
        (lambda f: (f / "src_splits.json").unlink(), "is missing"),
    ],
)
def test_a_pack_that_is_not_whole(copy, change, says):
    change(copy)
    with pytest.raises(DataError, match=says):
        Packed(copy, ALL).splits(val_fraction=0.3)


def test_a_type_that_is_no_number_is_refused(copy):
    index = json.loads((copy / "src_pack.json").read_text())
    index["modalities"]["rgb"]["dtype"] = "O"
    edit(copy, **index)
    with pytest.raises(DataError, match="dtype 'O' holds no numbers"):
        Packed(copy, ALL)


def test_what_a_pack_does_not_hold(folder, whole, tmp_path):
    few = pack(folder, tmp_path, ALL[:1])
    with pytest.raises(DataError, match=r"has no 'nir'; it holds rgb\. Leave the modality out"):
        Packed(few, [get_modality("nir")])
    wider = Continuous("rgb", ("B04", "B02"), "DN", {"L2A": Statistics((0.0, 0.0), (1.0, 1.0))})
    with pytest.raises(DataError, match="'rgb' has the bands B04, B03, B02, expected B04, B02"):
        Packed(few, [wider])
    with pytest.raises(DataError, match="row 11 is none of its 11 tiles"):
        Packed(whole, ALL).read([11])
    with pytest.raises(DataError, match="row -1 is none"):
        Packed(whole, ALL).read([-1])


def test_packing_refuses_what_makes_no_sense(folder, copy, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="tiles_per_shard must be 1 or more; got 0"):
        pack(folder, tmp_path, ALL, tiles_per_shard=0)
    with pytest.raises(ConfigError, match="holds the data set itself"):
        pack(folder, folder.parent, ALL)
    with pytest.raises(ConfigError, match="a pack with another 'tiles_per_shard'; give the same options"):
        pack(folder, copy.parent, ALL, tiles_per_shard=5)
    with pytest.raises(ConfigError, match="a pack with another 'modalities'"):
        pack(folder, copy.parent, ALL[:2], tiles_per_shard=PER_SHARD)
    (copy / "src_pack.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        pack(folder, copy.parent, ALL, tiles_per_shard=PER_SHARD)
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DataError, match=r"needs 0\.0 GB more, but 0\.0 GB are free"):
        pack(folder, tmp_path / "full", ALL)


def test_a_source_without_places_packs_but_does_not_split(tmp_path):
    world = write_world(tmp_path, tiles=3)
    rewrite(world, "lat", None)
    packed = Packed(pack(world, tmp_path / "out", ALL[:1]), ALL[:1])
    with pytest.raises(DataError, match=r"had no 'lat' and 'lon', which a split by blocks needs"):
        packed.splits(val_fraction=0.5)


def test_what_cannot_be_packed_is_said_before_anything_is_written(whole, tmp_path):
    with pytest.raises(ConfigError, match="is a packed copy already"):
        pack(whole, tmp_path / "out", ALL)
    world = write_world(tmp_path, tiles=3)
    (world / "tiny_splits.json").unlink()
    with pytest.raises(DataError, match=r"tiny_splits\.json' is missing"):
        pack(world, tmp_path / "out", ALL[:1])
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written(folder, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"is no folder that can be written: Not a directory"):
        pack(folder, tmp_path / "file", ALL[:1])

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(packing, "_write_shard", full)
    with pytest.raises(DataError, match="No space left on device"):
        pack(folder, tmp_path / "out", ALL[:1])


def test_a_tile_without_radar_has_no_orbit(tmp_path):
    random = np.random.default_rng(0)
    with LayoutWriter(tmp_path / "plain", "d", tile_px=16, arrays=("sentinel2", "sentinel1")) as writer:
        for i in range(3):
            arrays = {"sentinel2": random.integers(200, 3000, (13, 16, 16)).astype(np.uint16)}
            if i != 1:
                arrays["sentinel1"] = np.full((8, 16, 16), -np.inf, np.float32)
                arrays["sentinel1"][:2] = random.normal(-12, 3, (2, 16, 16))  # ascending
            tile = Tile(f"t{i}", "L2A", 10.0, 20.0, "2020-01-01", arrays)
            writer.add(encode_tile(tile, ("sentinel2", "sentinel1"), 16))
    pack(tmp_path / "plain" / "d", tmp_path / "packed", [MODALITIES["sar"]])
    sar = read_statistics(tmp_path / "plain" / "d", [MODALITIES["sar"]])["sar"]
    assert sar.products == ("ascending",)
    read = Packed(tmp_path / "packed" / "d", [sar]).read([0, 1, 2])["sar"]
    assert read.product.tolist() == [0, 0, 0]
    assert read.valid.flatten(1).any(dim=1).tolist() == [True, False, True]
