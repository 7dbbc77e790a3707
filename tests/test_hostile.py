"""Files of a stranger: no code runs, memory stays bounded, only our own errors come out."""

import json
import pickle
import resource
import struct
import sys
import time
import zipfile
import zlib
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

h5py = pytest.importorskip("h5py")
pytest.importorskip("lightning")

from geobench_files import edit, image, opened, write_set  # noqa: E402
from test_bad_input import fails  # noqa: E402
from worlds import write_world  # noqa: E402

from multimae_eo import MultiMAE, checkpoint, reference, sized  # noqa: E402
from multimae_eo.config import MOST_PARAMETERS, SIZES, num_parameters  # noqa: E402
from multimae_eo.data import hdf5, inert_pickle  # noqa: E402
from multimae_eo.data.mmearth import MMEarth  # noqa: E402
from multimae_eo.data.packed import Packed  # noqa: E402
from multimae_eo.data.packing import pack  # noqa: E402
from multimae_eo.errors import CheckpointError, DataError  # noqa: E402
from multimae_eo.modalities import get_modality  # noqa: E402

BOMB = 1 << 28  # bytes that a hostile file would take


@contextmanager
def bounded(megabytes: int = 300):
    """Memory must not grow by more."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < megabytes * 1024


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    fields = {"inputs": ("rgb", "land_cover"), "targets": ("rgb",), "depth": 1, "dim": 12}
    return checkpoint.save(MultiMAE(sized("demo", **fields)), tmp_path_factory.mktemp("model") / "model")


@pytest.fixture
def copied(model, tmp_path) -> Path:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((model / name).read_bytes())
    return tmp_path


# --- config.json


def described(folder: Path, change) -> None:
    content = json.loads((folder / "config.json").read_text())
    change(content["model"])
    (folder / "config.json").write_text(json.dumps(content))


def classes(code: int):
    def change(model: dict) -> None:
        model["modalities"]["land_cover"]["classes"][0]["code"] = code

    return change


ABSURD = {
    "10 TB of weights": (lambda m: m.update(dim=16384, heads=8, depth=256), r"8.25e\+11 parameters \(3\d+ GB\)"),
    "endless blocks": (lambda m: m.update(depth=10**9), "depth must be at most 256, got 1000000000"),
    "endless decoders": (lambda m: m.update(decoder_depth=10**9), "decoder_depth must be at most 256"),
    "wide": (lambda m: m.update(dim=4 * 10**12, heads=1), "dim must be at most 16384"),
    "a table of 2 GB": (lambda m: m.update(image_size=8192, patch_size=4, dim=96), "a table of positions of 1.611 GB"),
    "a huge frame": (lambda m: m.update(image_size=8 * 10**9), "image_size must be at most 8192"),
    "many tokens": (lambda m: m.update(num_global_tokens=10**12), "num_global_tokens must be at most 16384"),
    "a class of a huge code": (classes(10**12), "code of a class must lie in 0 to 65535, got 1000000000000"),
    "a stride of 0": (lambda m: m["modalities"]["land_cover"].update(stride=0), "stride from 1 to 224"),
    "no statistics": (lambda m: m["modalities"]["rgb"]["statistics"]["L2A"].update(mean=[1]), "expected 3 means"),
    "statistics of NaN": (
        lambda m: m["modalities"]["rgb"]["statistics"]["L2A"].update(std=[float("nan")] * 3),
        "deviations positive",
    ),
}


@pytest.mark.parametrize("name", ABSURD)
def test_a_model_that_nothing_could_hold_is_refused_before_it_is_built(name, copied):
    change, says = ABSURD[name]
    described(copied, change)
    with bounded(50), pytest.raises(CheckpointError, match=rf"config.json'.*{says}"):
        checkpoint.load(copied)


def test_the_parameters_are_counted_from_the_description():
    for size in SIZES:
        with torch.device("meta"):
            module = MultiMAE(sized(size))
        assert num_parameters(module.config) == sum(p.numel() for p in module.parameters())
    assert num_parameters(sized("large")) * 30 < MOST_PARAMETERS


TEXTS = {
    "nested": (b"[" * 100_000, "is not JSON"),
    "a number of many digits": (b'{"format": ' + b"9" * 10_000 + b"}", "is not JSON"),
    "given twice": (b'{"format": 1, "format": 2}', "'format' is given twice"),
    "no text": (b"\xff\xfe\x00\xd8", "is not JSON"),
    "too long": (b'{"a": "' + bytes(65 << 20), "expected at most 67108864. It was not read"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_config_that_is_no_json(name, copied):
    content, says = TEXTS[name]
    (copied / "config.json").write_bytes(content)
    del content
    with bounded(), pytest.raises(CheckpointError, match=says):
        checkpoint.load(copied)


# --- weights


def tensors(header: object, length: int | None = None, body: bytes = bytes(64)) -> bytes:
    text = json.dumps(header).encode() if not isinstance(header, bytes) else header
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def one(dtype="F32", shape=(16,), offsets=(0, 64)) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


HEADERS = {
    "overlong": tensors({}, 2**63),
    "beyond the file": tensors({"a": one()}, 10**6),
    "overlapping": tensors({"a": one(), "b": one()}),
    "with a hole": tensors({"a": one(shape=(8,), offsets=(0, 32)), "b": one(shape=(4,), offsets=(48, 64))}),
    "of more than the file holds": tensors({"a": one(shape=(10**12,), offsets=(0, 4 * 10**12))}),
    "of a shape beyond its bytes": tensors({"a": one(shape=(2**40, 2**40), offsets=(0, 64))}),
    "of an unknown type": tensors({"a": one(dtype="X1")}),
    "with a name twice": tensors(b'{"a":%b,"a":%b}' % ((json.dumps(one()).encode(),) * 2)),
    "backwards": tensors({"a": one(offsets=(64, 0))}),
    "negative": tensors({"a": one(offsets=(-64, 0))}),
    "no object": tensors([1, 2]),
    "no text": tensors(b"\xff" * 40),
}


@pytest.mark.parametrize("name", HEADERS)
def test_weights_with_a_header(name, copied):
    (copied / "model.safetensors").write_bytes(HEADERS[name])
    with bounded(50), pytest.raises(CheckpointError, match=r"model.safetensors'"):
        checkpoint.load(copied)


class Payload:
    """A pickle that would create a file when loaded."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return (open, (str(self.target), "w"))


def test_a_zip_of_weights_that_would_blow_up(tmp_path):
    torch.save({"model": {"a": torch.zeros(4)}}, tmp_path / "plain.pth")
    with zipfile.ZipFile(tmp_path / "plain.pth") as plain, zipfile.ZipFile(tmp_path / "bomb.pth", "w", 8) as bomb:
        for entry in plain.infolist():
            zeros = entry.filename.endswith("/data/0")
            bomb.writestr(entry.filename, bytes(BOMB) if zeros else plain.read(entry))
    with bounded(100), pytest.raises(CheckpointError, match=r"its entries would take 26843.* but the file has"):
        reference.read(tmp_path / "bomb.pth")
    torch.save({"model": {"a": torch.zeros(1).expand(10**6, 10**6)}}, tmp_path / "view.pth")
    with (
        bounded(50),
        pytest.raises(CheckpointError, match="tensor 'a': expected one whose numbers are all"),
    ):
        reference.read(tmp_path / "view.pth")
    torch.save(
        {"model": {"a": torch.sparse_coo_tensor([[0]], [1.0], (10**12,), check_invariants=True)}},
        tmp_path / "sparse.pth",
    )
    with bounded(50), pytest.raises(CheckpointError):
        reference.read(tmp_path / "sparse.pth")


def test_a_pickle_with_a_text_without_end(tmp_path):
    """torch would look through the name for seconds, to give advice."""
    (tmp_path / "long.pth").write_bytes(b"\x80\x02c" + b"a." * 100_000 + b"\nb\n.")
    began = time.perf_counter()
    with pytest.raises(CheckpointError, match=r"a text of 20\d+ characters, expected at most 4096"):
        reference.read(tmp_path / "long.pth")
    assert time.perf_counter() - began < 2


# --- pickles of labels


def tuples_of_tuples(depth: int) -> bytes:
    return b"\x80\x04)" + b"\x942\x86" * depth


PICKLES = {
    "room for 2^28 objects": b"\x80\x04Nr\x00\x00\x00\x10.",
    "2^60 objects as a key": tuples_of_tuples(60) + b"}" + tuples_of_tuples(60)[2:] + b"NsR.",
    "2^60 objects": tuples_of_tuples(60) + b".",
}


@pytest.mark.parametrize("name", PICKLES)
def test_small_pickles_that_ask_for_much(name):
    with bounded(50), pytest.raises(DataError, match=r"is damaged \(ValueError: it (asks|stands) for"):
        inert_pickle.loads(PICKLES[name], "'a.hdf5'")


def relabelled(folder: Path, data: bytes) -> str:
    sample_id, path = image(folder)
    edit(path, lambda file: file.attrs.__setitem__("pickle", str(data)))
    return sample_id


def test_a_label_of_lists_of_the_same_lists(tmp_path):
    folder = write_set(tmp_path, "m-bigearthnet", size=8)
    nested: list = [1]
    for _ in range(40):
        nested = [nested, nested]
    sample_id = relabelled(folder, pickle.dumps({"label": nested}))
    with bounded(50), pytest.raises(DataError, match="expected 43 numbers"):
        opened(tmp_path, "m-bigearthnet").read(sample_id)


def test_a_label_of_many_digits(tmp_path):
    folder = write_set(tmp_path, "m-eurosat", size=8)
    sample_id = relabelled(folder, pickle.dumps({"label": 10**5000}))
    with pytest.raises(DataError, match="the label is a"):
        opened(tmp_path, "m-eurosat").read(sample_id)


def test_a_payload_in_a_label_of_a_set(tmp_path):
    folder, target = write_set(tmp_path, "m-eurosat", size=8), tmp_path / "owned"
    sample_id = relabelled(folder, pickle.dumps({"label": Payload(target)}))
    with pytest.raises(DataError, match="nothing was executed"):
        opened(tmp_path, "m-eurosat").read(sample_id)
    assert not target.exists()


# --- HDF5


def elsewhere(folder: Path, key: str) -> dict:
    """Ways to have an array outside of its file; all point at one that is there and fits."""
    shape, dtype, other = (8, 8), "int16", str(folder / "other.h5")
    with h5py.File(folder / "other.h5", "w") as file:
        file[key] = np.full(shape, 77, dtype)
    np.full(shape, 77, dtype).tofile(folder / "other.raw")
    layout = h5py.VirtualLayout(shape, dtype)
    layout[:] = h5py.VirtualSource(other, key, shape)
    return {
        "external link": lambda f: f.__setitem__(key, h5py.ExternalLink(other, key)),
        "soft link": lambda f: (
            f.__setitem__("x", h5py.ExternalLink(other, "/")),
            f.__setitem__(key, h5py.SoftLink(f"/x/{key}")),
        ),
        "raw file": lambda f: f.create_dataset(key, shape, dtype, external=str(folder / "other.raw")),
        "virtual": lambda f: f.create_virtual_dataset(key, layout),
    }


@pytest.mark.parametrize("how", ["external link", "soft link", "raw file", "virtual"])
def test_hdf5_that_points_at_other_files(how, tmp_path):
    folder, key = write_set(tmp_path, "m-eurosat", size=8), "02 - Blue"
    sample_id, path = image(folder)
    make = elsewhere(tmp_path, key)[how]
    edit(path, lambda file: file.__delitem__(key))
    edit(path, make)
    with h5py.File(path) as file:
        assert file[key][0, 0] == 77  # what h5py does
    with pytest.raises(DataError, match=rf"'{path}': '.*' is (a link|kept|put together).*expected every array within"):
        opened(tmp_path, "m-eurosat").read(sample_id)
    world = write_world(tmp_path / "world", tiles=2, tile_px=8)
    with h5py.File(world / "tiny.h5", "r+") as file:
        file["notes"] = h5py.ExternalLink("/etc/passwd", "/")
    with pytest.raises(DataError, match=r"tiny.h5': 'notes' is a link to '/' of the file '/etc/passwd'"):
        MMEarth(world, [get_modality("rgb")])


def replaced(world: Path, array: str, shape: tuple, chunks: tuple, content: bytes | None = None, **extra) -> None:
    with h5py.File(world / "tiny.h5", "r+") as file:
        dtype = file[array].dtype
        del file[array]
        made = file.create_dataset(array, shape, dtype, chunks=chunks, compression="gzip", **extra)
        if content is not None:
            made.id.write_direct_chunk((0,) * len(shape), content)


@cache
def zeros(size: int) -> bytes:
    packer, block = zlib.compressobj(9), bytes(1 << 24)
    return b"".join(packer.compress(block) for _ in range(size >> 24)) + packer.flush()


@pytest.mark.parametrize("chunks", [(1, 13, 8, 8), (1, 1, 8, 8)])
def test_a_chunk_that_inflates_to_more_than_it_is(chunks, tmp_path):
    world = write_world(tmp_path, tiles=2, tile_px=8)
    replaced(world, "sentinel2", (2, 13, 8, 8), chunks, zeros(BOMB))
    tiles = MMEarth(world, [get_modality("rgb")])
    with bounded(100), pytest.raises(DataError, match=r"'sentinel2', row 0 cannot be read: the chunk holds more than"):
        tiles.read([0])
    folder = write_set(tmp_path, "m-eurosat", size=8)
    sample_id, path = image(folder)
    with h5py.File(path, "r+") as file:
        del file["02 - Blue"]
        made = file.create_dataset("02 - Blue", (8, 8), "int16", chunks=(8, 8), compression="gzip")
        made.id.write_direct_chunk((0, 0), zeros(BOMB))
    with bounded(100), pytest.raises(DataError, match="more than 128 bytes"):
        opened(tmp_path, "m-eurosat").read(sample_id)


def test_a_chunk_among_many_that_inflates_to_more_than_it_is(tmp_path):
    numbers = np.random.default_rng(0).random((3000, 2)).astype(np.float32)
    with h5py.File(tmp_path / "many.h5", "w") as file:
        made = file.create_dataset("lat", data=numbers, chunks=(1, 2), compression="gzip")
        assert np.array_equal(hdf5.read(made), numbers)
        assert np.array_equal(hdf5.read(made, (slice(7, 2999), slice(1, 2))), numbers[7:2999, 1:])
        made.id.write_direct_chunk((1500, 0), zeros(BOMB))
        with bounded(100), pytest.raises(OSError, match="the chunk holds more than 8 bytes"):
            hdf5.read(made)


SHAPES = {
    "a tile of 100,000 px": ((2, 13, 10**5, 10**5), (1, 13, 64, 64), "would take 2.6e.11 bytes"),
    "a billion tiles": ((10**9, 13, 8, 8), (1, 13, 8, 8), "expected 1 to 33554432 tiles"),
    "no tile": ((0, 13, 8, 8), (1, 13, 8, 8), "expected 1 to 33554432 tiles"),
}


@pytest.mark.parametrize("name", SHAPES)
def test_claims_of_a_data_set(name, tmp_path):
    world, (shape, chunks, says) = write_world(tmp_path, tiles=2, tile_px=8), SHAPES[name]
    for array, channels in (("sentinel2", 13), ("aster", 2), ("esa_worldcover", 1)):
        of = (shape[0], channels, *shape[2:])
        replaced(world, array, of, (1, channels, *chunks[2:]), maxshape=(None, *of[1:]))
    with bounded(50), pytest.raises(DataError, match=says):
        MMEarth(world, [get_modality("rgb")]).read([0])


def test_places_that_do_not_belong_to_the_tiles(tmp_path):
    world = write_world(tmp_path, tiles=2, tile_px=8)
    with h5py.File(world / "tiny.h5", "r+") as file:
        del file["lat"]
        file.create_dataset("lat", (10**12, 2), "f4", chunks=(1024, 2))
    with bounded(50), pytest.raises(DataError, match="no array 'lat' of two numbers per tile"):
        MMEarth(world, [get_modality("rgb")]).places(np.arange(2))


def test_images_that_claim_to_be_huge(tmp_path):
    folder = write_set(tmp_path, "m-eurosat", size=8)
    sample_id, path = image(folder)
    with h5py.File(path, "r+") as file:
        del file["02 - Blue"]
        file.create_dataset("02 - Blue", (10**6, 10**6), "int16", chunks=(64, 64))
    with bounded(50), pytest.raises(DataError, match=r"would take 2e.12 bytes, expected at most 268435456"):
        opened(tmp_path, "m-eurosat").read(sample_id)


def test_a_heap_of_texts_without_an_end(tmp_path):
    """HDF5 itself never comes back from this one."""
    folder = write_set(tmp_path, "m-eurosat", size=8)
    sample_id, path = image(folder)
    content = bytearray(path.read_bytes())
    first = content.index(b"GCOL") + 16
    content[first : first + 16] = bytes(16)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"is damaged at byte .* in a heap"):
        opened(tmp_path, "m-eurosat").read(sample_id)


# --- side files and packs


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd", "..", "a/../../secret", "id_0000\0"])
def test_partitions_that_name_files_elsewhere(name, tmp_path):
    folder = write_set(tmp_path, "m-eurosat", size=8)
    (tmp_path / "secret.hdf5").write_bytes(image(folder)[1].read_bytes())
    path = folder / "default_partition.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "train": [name]}))
    with pytest.raises(DataError, match="images that are not in the folder"):
        opened(tmp_path, "m-eurosat")


def test_a_pack_that_claims_more_than_it_holds(tmp_path):
    world = write_world(tmp_path / "in", tiles=4, tile_px=8)
    modalities = [get_modality("rgb")]
    out = pack(world, tmp_path / "out", modalities, tiles_per_shard=4)
    path, tiles = out / "tiny_pack.json", out / "tiny_tiles.npy"
    index, kept = json.loads(path.read_text()), tiles.read_bytes()
    for change, says in (
        ({"tile_px": 10**6}, "expected at most"),
        ({"tiles": 10**12, "tiles_per_shard": 10**12}, "makes no sense"),
        ({"source": 1, "tile_px": 16}, "holds .* bytes, expected"),
        ({"modalities": {"rgb": {**index["modalities"]["rgb"], "dtype": "O"}}}, "makes no sense"),
        ({"modalities": {"../../x": index["modalities"]["rgb"]}}, "has no 'rgb'"),
    ):
        path.write_text(json.dumps({**index, **change}))
        with bounded(50), pytest.raises(DataError, match=says):
            Packed(out, modalities)
    path.write_text(json.dumps(index))
    for old, new in (
        (b"(4,)", b"(9**9,)"),
        (b"(4,), }   ", b"(10**9,), "),
        (b"|S100", b"|O   "),
        (b"(4,), }      ", b"(1000000,), }"),
    ):
        tiles.write_bytes(kept.replace(old, new.ljust(len(old))) if len(new) <= len(old) else kept[:60])
        with bounded(50), pytest.raises(DataError, match=r"tiny_tiles.npy'"):
            Packed(out, modalities).tile_id(0)


# --- configs

CODE = "open({target!r}, 'w')\nclass Evil: pass\n"
LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
CONFIGS = {
    "python tag": ("out: !!python/object/apply:os.system ['touch {target}']\n", "constructor"),
    "python name": ("out: !!python/name:evil.Evil\n", "constructor"),
    "class path": ("model: {{class_path: evil.Evil}}\n", "neither code nor another file"),
    "class path with arguments": ("model: {{class_path: evil.Evil, init_args: {{size: demo}}}}\n", "neither code nor"),
    "name of a class": ("model: evil.Evil\n", "neither code nor another file"),
    "another file": ("model: other.yaml\n", "neither code nor another file"),
    "billion laughs": (LAUGHS + "model: *a11\n", "its aliases stand for"),
    "itself": ("model: &a {{size: *a}}\n", "its aliases stand for"),
    "nested": ("model: " + "[" * 5000, "nesting"),
    "long": ("model: " + "x" * (1 << 21), "expected at most"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_hostile_config(name, tmp_path, capfd, monkeypatch):
    text, says = CONFIGS[name]
    target = tmp_path / "owned"
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text(CODE.format(target=str(target)))
    (tmp_path / "other.yaml").write_text("class_path: evil.Evil\n")
    (tmp_path / "c.yaml").write_text(text.format(target=target) if "{" in text else text)
    with bounded(100):
        fails(["pretrain", "--config", "c.yaml", "--data.root", "none"], [says], capfd)
    assert not target.exists()
    assert "evil" not in sys.modules
