"""What fuzz.py feeds: each reader of files with valid files to start from, and structures of its format to draw."""

import contextlib
import io
import json
import pickle
import shutil
import struct
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import hypothesis.strategies as st
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
import geobench_files
import scenes
import worlds
from rasterio.errors import NotGeoreferencedWarning

from multimae_eo import MultiMAE, Predictor, checkpoint, cli, config, reference
from multimae_eo.data import download, inert_pickle, releases
from multimae_eo.data.geobench import GeoBench
from multimae_eo.data.mmearth import MMEarth, read_statistics
from multimae_eo.data.packed import Packed
from multimae_eo.data.packing import pack
from multimae_eo.errors import ConfigError, DataError
from multimae_eo.explain import checkpoint as _c  # noqa: F401
from multimae_eo.explain import geobench as _g  # noqa: F401
from multimae_eo.explain import kinds, scene, tiles  # noqa: F401
from multimae_eo.inputs import read_images
from multimae_eo.maps.finding import look
from multimae_eo.maps.layers import Window
from multimae_eo.maps.options import ReportOptions, SourceOptions, read_scene_file
from multimae_eo.maps.report import write_report
from multimae_eo.maps.scene import open_scene
from multimae_eo.modalities import MODALITIES, get_modality
from multimae_eo.options import PretrainOptions, check
from multimae_eo.tasks import rows

warnings.simplefilter("ignore")
warnings.simplefilter("ignore", NotGeoreferencedWarning)
torch.set_num_threads(1)
SMALL = {"dim": 8, "depth": 1, "heads": 1, "decoder_dim": 4, "decoder_depth": 1, "decoder_heads": 1, "image_size": 16}
Read = Callable[[bytes], object]


@dataclass
class Parser:
    """A reader, given a share of the inputs by its weight; make: valid files, and a function that reads bytes."""

    name: str
    weight: float
    make: Callable[[Path], tuple[list[bytes], Read]]
    structures: Any = None
    seeds: list[bytes] = field(default_factory=list)
    read: Read = print

    def prepare(self) -> None:
        self.seeds, self.read = self.make(Path(tempfile.mkdtemp()))
        if self.structures is trees:
            found = [json.loads(seed) for seed in self.seeds]
            self.structures = trees(found)


# Structures

_LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, -1, 2**31, 2**63, 10**30, 1e308]),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(["../../x", "/etc/passwd", "rgb", "B04", "rgb:patch", "\0", "a" * 500]),
)
VALUES = st.recursive(
    _LEAVES, lambda v: st.lists(v, max_size=4) | st.dictionaries(st.text(max_size=6), v, max_size=3), max_leaves=8
)


def places(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The ways to everything within a JSON value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [here, *(place for key, part in inside for place in places(part, (*here, key)))]


def trees(valid: list[Any], dump: Callable[[Any], str] = json.dumps) -> Any:
    """Valid JSON with one to three entries replaced."""
    ways = [places(v)[:2000] for v in valid]

    @st.composite
    def drawn(draw: Any) -> bytes:
        which = draw(st.integers(0, len(valid) - 1))
        value = json.loads(json.dumps(valid[which]))
        for _ in range(draw(st.integers(1, 3))):
            way, new = draw(st.sampled_from(ways[which])), draw(VALUES)
            if not way:
                continue
            inner = value
            with contextlib.suppress(LookupError, TypeError):
                for key in way[:-1]:
                    inner = inner[key]
                inner[way[-1]] = new
        return dump(value).encode(errors="replace")

    return drawn()


@st.composite
def pickles(draw: Any) -> bytes:
    """Operations in any order."""
    names = st.sampled_from(
        ["numpy dtype", "numpy ndarray", "numpy.core.multiarray scalar", "os system", "datetime date"]
    )
    short = st.binary(max_size=20).map(lambda b: b"C" + bytes([len(b)]) + b)
    words = st.text(max_size=8).map(
        lambda t: b"X" + struct.pack("<I", len(t.encode(errors="replace"))) + t.encode(errors="replace")
    )
    operations = st.one_of(
        st.sampled_from(
            [
                b"(",
                b")",
                b"]",
                b"}",
                b"t",
                b"l",
                b"d",
                b"R",
                b"b",
                b"0",
                b"2",
                b"s",
                b"u",
                b"a",
                b"e",
                b"N",
                b"\x85",
                b"\x86",
                b"\x87",
                b"\x94",
                b"\x8f",
                b"\x90",
                b"\x91",
                b"\x81",
                b"\x93",
                b"i",
                b"o",
            ]
        ),
        names.map(lambda n: b"c" + n.replace(" ", "\n").encode() + b"\n"),
        st.integers(0, 255).map(lambda n: b"h" + bytes([n])),
        st.integers(0, 2**32 - 1).map(lambda n: b"r" + struct.pack("<I", n)),
        st.integers(-(2**31), 2**31 - 1).map(lambda n: b"J" + struct.pack("<i", n)),
        short,
        words,
    )
    return b"\x80\x04" + b"".join(draw(st.lists(operations, max_size=40))) + b"."


@st.composite
def tensor_files(draw: Any) -> bytes:
    """Headers of safetensors with any offsets, shapes and types."""
    number = st.integers(0, 200) | st.sampled_from([2**31, 2**63, 2**64 - 1, -1])
    kind = st.sampled_from(["F32", "F16", "BF16", "I64", "BOOL", "F8_E4M3", "F4", "C64", "X", "U8"])
    entry = st.fixed_dictionaries(
        {"dtype": kind, "shape": st.lists(number, max_size=3), "data_offsets": st.lists(number, min_size=1, max_size=3)}
    )
    names = st.sampled_from(["encoder.global_tokens", "a", "b", "__metadata__", ""])
    header = json.dumps(draw(st.dictionaries(names, entry, max_size=4) | VALUES)).encode()
    length = draw(st.sampled_from([len(header)] * 4 + [0, 2**31, 2**63, len(header) + 1, 10**8]))
    return struct.pack("<Q", length) + header + bytes(draw(st.integers(0, 200)))


@st.composite
def archives(draw: Any) -> bytes:
    buffer = io.BytesIO()
    parts = st.sampled_from(["m-eurosat", "..", "classification_v1.0", "a.hdf5", "", ".", "C:", "\\", "x" * 300])
    with zipfile.ZipFile(buffer, "w", draw(st.sampled_from([0, 8]))) as archive:
        for _ in range(draw(st.integers(0, 4))):
            archive.writestr(
                "/".join(draw(st.lists(parts, min_size=1, max_size=4))) or "x", draw(st.binary(max_size=30))
            )
    return buffer.getvalue()


@st.composite
def hdf5_files(draw: Any, arrays: tuple[str, ...]) -> bytes:
    """Arrays of any type, shape, chunks and filter, links of any kind."""
    buffer = io.BytesIO()
    kinds = st.sampled_from(["uint16", "int16", "uint8", "float32", "float64", "S5", "O", "complex64", "bool"])
    with h5py.File(buffer, "w") as file:
        for name in arrays:
            how, edge = draw(st.integers(0, 9)), draw(st.sampled_from([0, 1, 2, 4, 100, 10**5, 2**31]))
            shape = tuple(draw(st.lists(st.sampled_from([0, 1, 2, 4, 13, edge]), max_size=4)))
            with contextlib.suppress(Exception):
                if how == 0:
                    file[name] = h5py.ExternalLink("other.h5", name)
                elif how == 1:
                    file[name] = h5py.SoftLink("/" + draw(st.sampled_from(arrays)))
                elif how == 2:
                    file.create_dataset(name, shape, draw(kinds), external=[("other.raw", 0, h5py.h5f.UNLIMITED)])
                elif how == 3:
                    file.create_group(name)
                elif how == 4:
                    file[name] = draw(st.integers() | st.text() | st.floats())
                else:
                    type_ = h5py.string_dtype() if (kind := draw(kinds)) == "O" else kind
                    packed = draw(st.sampled_from([None, "gzip", "lzf"]))
                    file.create_dataset(
                        name, shape, type_, chunks=draw(st.sampled_from([None, True])), compression=packed
                    )
        file.attrs["pickle"] = draw(st.text(max_size=20) | st.just(str(pickle.dumps({"label": 3}))) | st.integers(0, 9))
    return buffer.getvalue()


@st.composite
def tiffs(draw: Any) -> bytes:
    """A directory of tags with any values."""
    tags = sorted(
        draw(
            st.sets(
                st.sampled_from(
                    [
                        256,
                        257,
                        258,
                        259,
                        262,
                        273,
                        277,
                        278,
                        279,
                        284,
                        317,
                        322,
                        323,
                        324,
                        325,
                        339,
                        33550,
                        33922,
                        34735,
                        42112,
                        42113,
                        330,
                        347,
                    ]
                ),
                min_size=3,
            )
        )
    )
    number = st.sampled_from([0, 1, 2, 3, 8, 16, 32, 64, 200, 65535, 2**31, 2**32 - 1])
    entries = b"".join(
        struct.pack(
            "<HHII", tag, draw(st.integers(0, 13)), draw(st.sampled_from([0, 1, 1, 1, 2, 4, 10**6])), draw(number)
        )
        for tag in tags
    )
    return (
        b"II*\0"
        + struct.pack("<IH", 8, len(tags))
        + entries
        + struct.pack("<I", draw(number))
        + draw(st.binary(max_size=300))
    )


LINES = st.lists(
    st.one_of(
        st.sampled_from(["dn", "reflectance", "L2A", "L1C", "B04", "b3", "blue", "-", "VV", "S2L2A", ""]),
        st.text(max_size=10),
    ),
    max_size=12,
).map(lambda lines: "\n".join(lines).encode(errors="replace"))
TABLES = st.lists(
    st.lists(
        st.sampled_from(
            [
                "step",
                "kind",
                "train/loss",
                "val/loss",
                "val/rgb",
                "train",
                "val",
                "0",
                "1",
                "nan",
                "x",
                "1e999",
                '"',
                "",
            ]
        )
        | st.text(max_size=5),
        max_size=6,
    ).map(",".join),
    max_size=6,
).map(lambda lines: "\n".join(lines).encode(errors="replace"))


# Readers


def into(path: Path, read: Callable[[], object]) -> Read:
    """Bytes are written to a file, and that is read."""

    def one(data: bytes) -> None:
        path.write_bytes(data)
        read()

    return one


def model_json(folder: Path) -> tuple[list[bytes], Read]:
    small = config.ModelConfig(**SMALL, inputs=("rgb", "land_cover"), targets=("rgb", "elevation:sample"))
    path = checkpoint.save(MultiMAE(small), folder / "a")
    return [(path / "config.json").read_bytes()], into(path / "config.json", lambda: checkpoint.load(path))


def task_json(folder: Path) -> tuple[list[bytes], Read]:
    small = config.ModelConfig(**SMALL, inputs=("rgb",), targets=("rgb",))
    about = config.TaskConfig("segmentation", "linear_dense", ("rgb",), classes=scenes.CLASSES)
    path = checkpoint.save(Predictor(small, about), folder / "a")
    return [(path / "config.json").read_bytes()], into(path / "config.json", lambda: checkpoint.load_predictor(path))


def weights(folder: Path) -> tuple[list[bytes], Read]:
    path = checkpoint.save(MultiMAE(config.ModelConfig(**SMALL, inputs=("rgb",), targets=("rgb",))), folder / "a")
    seed = (path / "model.safetensors").read_bytes()

    def read() -> None:
        checkpoint.load(path)

    return [seed, seed[:2000]], into(path / "model.safetensors", read)


def converted(folder: Path) -> tuple[list[bytes], Read]:
    tensors = {
        "global_tokens": torch.zeros(1, 1, 32),
        "input_adapters.rgb.proj.weight": torch.zeros(32, 3, 8, 8),
        "output_adapters.rgb.out_proj.weight": torch.zeros(192, 16),
        "output_adapters.rgb.mask_token": torch.zeros(1, 1, 16),
        "encoder.0.norm1.weight": torch.zeros(32),
        "output_adapters.rgb.decoder_transformer.0.norm1.weight": torch.zeros(16),
    }
    (folder / "config.json").write_text('{"encoder_heads": 2, "decoder_heads": 2}')
    seeds, path = [], folder / "weights.pth"
    for content, new in (({"model": tensors}, True), (tensors, False)):
        torch.save(content, path, _use_new_zipfile_serialization=new)
        seeds.append(path.read_bytes())

    def read() -> None:
        found = reference.read(path)
        with contextlib.suppress(reference.CheckpointError):  # most are no whole model, which is not what is looked for
            reference.translate(found, reference.config_of(found))

    return seeds, into(path, read)


def labels(folder: Path) -> tuple[list[bytes], Read]:
    seeds = [
        geobench_files.pickled(["02 - Blue"], 3),
        geobench_files.pickled(["02 - Blue"], [0, 1, 1], original_globals=True),
    ]
    seeds += [pickle.dumps({"label": np.arange(5)}, protocol=p) for p in (2, 4, 5)]
    return [*seeds, pickle.dumps({"label": np.float32(3)})], lambda data: inert_pickle.loads(data, "'x'")


def benchmark_set(name: str, file: str) -> Callable[[Path], tuple[list[bytes], Read]]:
    def make(folder: Path) -> tuple[list[bytes], Read]:
        place = geobench_files.write_set(folder, name, train=2, valid=1, test=1, size=4)
        first, image = geobench_files.image(place)
        path = image if file == "image" else place / file

        def read() -> None:
            found = geobench_files.opened(folder, name)
            found.statistics()
            assert isinstance(found, GeoBench)
            found.read(first)

        return [path.read_bytes()], into(path, read)

    return make


def mmearth(file: str) -> Callable[[Path], tuple[list[bytes], Read]]:
    def make(folder: Path) -> tuple[list[bytes], Read]:
        place = worlds.write_world(folder, tiles=4, tile_px=8, arrays=tuple(worlds.ARRAYS))
        if file == "tiny_tile_info.json":
            with h5py.File(place / "tiny.h5", "r+") as content:
                ids = content["metadata"]["tile_id"]
                del content["metadata"]
                content["metadata"] = np.array([(i,) for i in ids], [("tile_id", "S100")])

        def read() -> None:
            found = read_statistics(place, [get_modality(n) for n in MODALITIES])
            data = MMEarth(place, list(found.values()))
            try:
                data.read([0, data.length - 1])
                data.tile_id(0)
                data.splits(val_fraction=0.5)
            finally:
                data.close()

        return [(place / file).read_bytes()], into(place / file, read)

    return make


def packed(file: str) -> Callable[[Path], tuple[list[bytes], Read]]:
    def make(folder: Path) -> tuple[list[bytes], Read]:
        place = worlds.write_world(folder / "in", tiles=4, tile_px=8)
        modalities = list(read_statistics(place, [get_modality(n) for n in ("rgb", "land_cover")]).values())
        out = pack(place, folder / "out", modalities, tiles_per_shard=2)

        def read() -> None:
            data = Packed(out, modalities)
            try:
                data.read([0, data.length - 1])
                data.tile_id(0)
                data.places(np.arange(data.length))
            finally:
                data.close()

        return [(out / file).read_bytes()], into(out / file, read)

    return make


def options(folder: Path) -> tuple[list[bytes], Read]:
    found = sorted((Path(__file__).parents[2] / "configs").rglob("*.yaml"))
    seeds = [p.read_bytes() for p in found if b"recipe" in p.read_bytes() or "pretrain" in str(p)][:6]
    seeds.append(
        b"model: {size: demo, inputs: [rgb, nir]}\nmask: {num_visible: 9}\noptim: {lr: 1e-3, betas: [0.9, 0.95]}\n"
    )
    seeds.append(b"a: &a [1, 2]\nb: &b [*a, *a]\nmodel: {class_path: evil.Evil}\n")
    cli.ALL["pretrain"] = (PretrainOptions, check)  # what comes after them is not begun
    path = folder / "c.yaml"

    def read() -> None:
        with contextlib.redirect_stderr(io.StringIO()) as err:
            try:
                cli.main(["pretrain", "--config", str(path)])
            except SystemExit as ended:
                if ended.code != 2 or len(err.getvalue().splitlines()) > 9:
                    raise RuntimeError(f"exit code {ended.code}: {err.getvalue()}") from ended
                raise ConfigError(err.getvalue()) from None

    return seeds, into(path, read)


def sources(folder: Path) -> tuple[list[bytes], Read]:
    seeds = [
        b"s2: {path: s2.tif, offset: 'off', bands: [B02, B03], date: 2020-01-01}\ndem: dem.tif\n",
        b"a: &a {path: x}\nb: *a\n",
    ]
    path = folder / "scene.yaml"

    def read() -> None:
        for name, one in read_scene_file(path).items():
            look(name, one if isinstance(one, SourceOptions) else SourceOptions(one))

    return seeds, into(path, read)


def names(folder: Path) -> tuple[list[bytes], Read]:
    about = config.ModelConfig(**SMALL, inputs=("rgb", "sar"), targets=("rgb",))

    def read(data: bytes) -> None:
        units, product, *bands = (data.decode(errors="replace") + "\n" * (data.count(b"\n") < 1)).split("\n")
        images = torch.full((1, max(1, len(bands)), 16, 16), 900.0)
        read_images(images, about, bands=bands, units=units or None, product=product or None)

    return [b"dn\nL2A\nB04\nB03\nB02", b"reflectance\nL1C\nred\ngreen\nblue\n-", b"dn\n\nVV\nVH"], read


def run_file(file: str) -> Callable[[Path], tuple[list[bytes], Read]]:
    table = b"step,kind,train/loss,val/loss,val/rgb\n0,train,1.5,,\n1,train,1.2,,\n1,val,,1.1,0.9\n"
    scores = {
        "best": {"accuracy": [0.5, 0.4, 0.6]},
        "last": {"accuracy": [0.5, None, 0.6]},
        "confusion": [[1, 2], [3, 4]],
    }
    seeds = {"metrics.csv": table, "results.json": json.dumps({**scores, "classes": ["a", "b"]}).encode()}

    def make(folder: Path) -> tuple[list[bytes], Read]:
        for name, content in seeds.items():
            (folder / name).write_bytes(content)

        def read() -> None:
            kinds.explain(folder)
            write_report(ReportOptions(folder))
            rows.truncate(folder / "metrics.csv", {"train": 10, "val": 10})

        return [seeds[file]], into(folder / file, read)

    return make


def raster(file: str, driver: str) -> Callable[[Path], tuple[list[bytes], Read]]:
    def make(folder: Path) -> tuple[list[bytes], Read]:
        path, seeds = folder / file.removesuffix(".aux.xml"), []
        for extra in ({}, {"compress": "deflate", "tiled": True, "blockxsize": 16, "blockysize": 16}):
            options_ = {"driver": driver, **(extra if driver == "GTiff" else {})}
            values = scenes.smooth((3, 20, 20)).astype(np.uint16)
            scenes.write_raster(path, values, ("B02", "B03", "B04") if driver == "GTiff" else (), **options_)
            seeds.append(path.read_bytes())
        if file.endswith(".aux.xml"):
            seeds = [
                b'<PAMDataset><Metadata domain="IMAGERY"><MDI key="a">b</MDI></Metadata>'
                b'<PAMRasterBand band="1"><NoDataValue>0</NoDataValue></PAMRasterBand></PAMDataset>'
            ]

        def read() -> None:
            source = SourceOptions(str(path), bands=["B02", "B03", "B04"], offset="off", product="L2A", scale=1)
            opened = open_scene({"s2": source}, ("B02", "B03", "B04"))
            try:
                opened.read(Window(0, 0, 20, 20))
            finally:
                opened.close()

        return seeds, into(folder / file, read)

    return make


def stac(folder: Path) -> tuple[list[bytes], Read]:
    scenes.write_raster(folder / "red.tif", scenes.smooth((1, 20, 20)).astype(np.uint16))
    item = {
        **{
            "type": "Feature",
            "stac_version": "1.0.0",
            "id": "a",
            "bbox": [9, 47, 10, 48],
            "links": [],
            "stac_extensions": [],
        },
        "geometry": {"type": "Polygon", "coordinates": [[[9, 47], [10, 47], [10, 48], [9, 48], [9, 47]]]},
        "properties": {"datetime": "2023-06-01T00:00:00Z", "s2:processing_baseline": "05.09", "proj:epsg": 32632},
        "assets": {
            "red": {
                "href": "./red.tif",
                "type": "image/tiff",
                "raster:bands": [{"nodata": 0, "scale": 1, "offset": 0}],
                "eo:bands": [{"name": "B04"}],
            }
        },
        "collection": "sentinel-2-l2a",
    }
    return [json.dumps(item).encode()], into(folder / "item.json", lambda: kinds.explain(folder / "item.json"))


def cube(folder: Path) -> tuple[list[bytes], Read]:
    import odc.geo.xr  # noqa: F401
    import xarray

    x, y = np.arange(8) * 10.0 + 500_005, 5_299_995 - np.arange(8) * 10.0
    made = xarray.Dataset(
        {b: (("y", "x"), np.ones((8, 8), np.int16)) for b in ("B02", "B04")}, {"x": x, "y": y}
    ).odc.assign_crs(32632)
    made.to_netcdf(folder / "a.nc", engine="h5netcdf")
    path = folder / "a.nc"

    def read() -> None:
        found = look("s2", SourceOptions(str(path), offset="off"))
        try:
            found.cube[next(iter(found.places.values())).where].isel(
                dict.fromkeys(found.cube.odc.spatial_dims, slice(0, 4))
            ).load()
        except (OSError, RuntimeError, ValueError, LookupError, StopIteration, AttributeError, TypeError) as error:
            raise DataError("as a layer of a scene notes") from error
        finally:
            found.cube.close()

    return [path.read_bytes()], into(path, read)


EXPLAINED = (
    "a.tif",
    "a.jp2",
    "config.json",
    "a.h5",
    "a.hdf5",
    "a_pack.json",
    "default_partition.json",
    "metrics.csv",
    "item.json",
    "a.nc",
    "a.bin",
    "model.safetensors",
)


def explained(folder: Path) -> tuple[list[bytes], Read]:
    seeds = [
        b"\0II*\0" + bytes(60),
        b"\x02{}",
        b"\x03\x89HDF\r\n\x1a\n" + bytes(80),
        b"\x07step,kind\n",
        b'\x08{"stac_version": 1}',
        b"\x09CDF\x01" + bytes(50),
    ]

    def read(data: bytes) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        path = folder / EXPLAINED[(data[0] if data else 0) % len(EXPLAINED)]
        path.write_bytes(data[1:])
        for what in (path, folder):
            with contextlib.suppress(DataError):
                kinds.explain(what)
        kinds.explain(path)

    return seeds, read


def unpacked(folder: Path) -> tuple[list[bytes], Read]:
    buffer, path, out = io.BytesIO(), folder / "m-eurosat.zip", folder / "m-eurosat"
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m-eurosat/a.hdf5", bytes(2000))
        archive.writestr("classification_v1.0/m-eurosat/b.json", "{}")

    def read() -> None:
        shutil.rmtree(out, ignore_errors=True)
        with download._on_disk(path):
            download._unpack(path, out, lambda: None)
        assert not [p for p in folder.iterdir() if p.name not in ("m-eurosat", "m-eurosat.zip")]

    return [buffer.getvalue()], into(path, read)


def listed(folder: Path) -> tuple[list[bytes], Read]:
    entries = [
        {"path": f"classification_v1.0/{n}.zip", "size": 9, "lfs": {"oid": "ab" * 32, "size": 9}}
        for n in ("m-eurosat", "m-so2sat")
    ]
    return [json.dumps([*entries, {"path": "README.md", "size": 1}]).encode()], lambda data: releases.hub_files(
        "geobench", None, data
    )


_MMEARTH = ("sentinel2", "aster", "esa_worldcover", "lat", "lon", "metadata", "sentinel1", "canopy_height_eth")
_EUROSAT = tuple(layer.key for layer in geobench_files.SETS["m-eurosat"].layers)
PARSERS = [
    Parser("config.json, model", 10, model_json, trees),
    Parser("config.json, task", 6, task_json, trees),
    Parser("model.safetensors", 10, weights, tensor_files()),
    Parser("convert .pth", 6, converted),
    Parser("inert pickle", 16, labels, pickles()),
    Parser("GEO-Bench image", 3, benchmark_set("m-eurosat", "image"), hdf5_files(_EUROSAT)),
    Parser("GEO-Bench mask", 2, benchmark_set("m-cashew-plant", "image")),
    Parser("GEO-Bench partition", 3, benchmark_set("m-eurosat", "default_partition.json"), trees),
    Parser("GEO-Bench statistics", 3, benchmark_set("m-eurosat", "band_stats.json"), trees),
    Parser("MMEarth .h5", 4, mmearth("tiny.h5"), hdf5_files(_MMEARTH)),
    *(
        Parser(f"MMEarth {kind}", 2, mmearth(f"tiny_{kind}.json"), trees)
        for kind in ("splits", "band_stats", "tile_info")
    ),
    Parser("pack index", 6, packed("tiny_pack.json"), trees),
    Parser("pack tiles", 3, packed("tiny_tiles.npy")),
    Parser("pack shard", 2, packed("tiny_00000.npy")),
    Parser("options in YAML", 0.8, options),
    Parser("scene in YAML", 3, sources),
    Parser("band and unit names", 4, names, LINES),
    Parser("metrics.csv", 2, run_file("metrics.csv"), TABLES),
    Parser("results.json", 2, run_file("results.json"), trees),
    Parser("GeoTIFF", 3, raster("a.tif", "GTiff"), tiffs()),
    Parser("GeoTIFF .aux.xml", 1.5, raster("a.tif.aux.xml", "GTiff")),
    Parser("JPEG 2000", 1.5, raster("a.jp2", "JP2OpenJPEG")),
    Parser("STAC item", 1.5, stac, trees),
    Parser("NetCDF", 1, cube),
    Parser("inspect", 3, explained),
    Parser("zip of GEO-Bench", 4, unpacked, archives()),
    Parser("list of the Hub", 4, listed, trees),
]
