"""Rasters of a stranger: nothing that they point at is opened, no code runs, and absurd sizes are refused."""

import itertools
import json
import os
import pickle
import re
import struct
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

rasterio = pytest.importorskip("rasterio")
h5py = pytest.importorskip("h5py")

from scenes import CRS, NORTH, WEST, write_raster  # noqa: E402
from test_hostile import Payload, bounded  # noqa: E402

from multimae_eo.data.geotiff_source import open_raster  # noqa: E402
from multimae_eo.errors import ConfigError, DataError  # noqa: E402
from multimae_eo.explain.kinds import explain  # noqa: E402
from multimae_eo.maps.finding import look  # noqa: E402
from multimae_eo.maps.layers import Window, open_file  # noqa: E402
from multimae_eo.maps.options import SourceOptions, read_scene_file  # noqa: E402
from multimae_eo.maps.scene import open_scene  # noqa: E402

SECRET = 4242
_NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server, its log and address; in a process of its own, as GDAL lets no other thread work while it waits."""
    folder = tmp_path_factory.mktemp("server")
    with open(folder / "log", "a") as log:
        command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", str(folder)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        port = re.search(r"port (\d+)", process.stdout.readline())[1]
        yield folder / "log", f"http://127.0.0.1:{port}"
        process.terminate()
        process.wait()


class Asked(NamedTuple):
    """What a server on this machine was asked for."""

    log: Path
    address: str

    def remote(self) -> str:
        """An address that GDAL has not met yet; it remembers those where there is nothing."""
        return f"/vsicurl/{self.address}/{next(_NUMBERS)}.tif"

    def anything(self) -> bool:
        """Since the last time that this was called."""
        found = bool(self.log.read_text())
        os.truncate(self.log, 0)
        return found


@pytest.fixture
def asked(server) -> Asked:
    os.truncate(server[0], 0)
    return Asked(*server)


def array(value: int, size: int = 32) -> np.ndarray:
    return np.full((1, size, size), value, np.uint16)


def virtual(target: str, size: int = 32) -> str:
    """A VRT of another file."""
    return (
        f'<VRTDataset rasterXSize="{size}" rasterYSize="{size}"><SRS>{CRS}</SRS>'
        '<Metadata><MDI key="INTERNAL_MASK_FLAGS_1">2</MDI></Metadata>'
        f"<GeoTransform>{WEST}, 10, 0, {NORTH}, 0, -10</GeoTransform>"
        f'<VRTRasterBand dataType="UInt16" band="1"><SimpleSource><SourceFilename>{target}</SourceFilename>'
        "<SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>"
    )


def refused(path: Path, says: str) -> None:
    """By everything that opens rasters."""
    with pytest.raises(DataError, match=says):
        open_file(path)
    with pytest.raises(DataError, match=says):
        open_raster(path)
    with pytest.raises((DataError, ConfigError), match=says):
        look("s2", SourceOptions(str(path), bands=["B04"]))
    with pytest.raises(DataError):
        explain(path)


@pytest.mark.parametrize("end", [".tif", ".jp2", ".vrt"])
def test_a_vrt_under_any_name(end, tmp_path, asked):
    secret = write_raster(tmp_path / "secret.tif", array(SECRET))
    path = tmp_path / f"a{end}"
    for target in (str(secret), asked.remote()):
        path.write_text(virtual(target))
        if target == str(secret):
            with rasterio.open(path) as file:
                assert file.read(1)[0, 0] == SECRET  # what GDAL does
        for way in (open_file, open_raster):
            with pytest.raises(DataError, match="cannot be read as a GeoTIFF"):
                way(path)
        with pytest.raises(DataError):
            explain(path)
        assert not asked.anything()


@pytest.mark.parametrize("end", [".msk", ".ovr", ".msk.ovr"])
def test_side_files_that_are_a_vrt(end, tmp_path, asked):
    path = write_raster(tmp_path / "a.tif", array(900))
    if end == ".msk.ovr":
        write_raster(tmp_path / "a.tif.msk", array(255).astype(np.uint8))
    Path(f"{path}{end}").write_text(virtual(asked.remote(), 16 if end == ".ovr" else 32))
    with suppress(rasterio.errors.RasterioIOError), rasterio.open(path) as file:
        file.read(1, out_shape=(16, 16))
        file.read_masks(1)
    assert asked.anything() or end == ".msk.ovr"  # GDAL asks the server
    refused(path, rf"a.tif{end}', which belongs to .*is no TIFF file but begins with b'<VRT'")
    assert not asked.anything()


def test_a_mask_that_is_a_tiff_is_read(tmp_path):
    path = write_raster(tmp_path / "a.tif", array(900))
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(path, "r+") as file:
        file.write_mask(np.eye(32, dtype=bool))
    assert Path(f"{path}.msk").is_file()
    with open_file(path) as file:
        assert (file.read_masks(1) > 0).sum() == 32


@pytest.mark.parametrize("where", ["beside", "inside"])
def test_overviews_in_another_file(where, tmp_path, asked):
    path, target = write_raster(tmp_path / "a.tif", array(900)), asked.remote()
    if where == "beside":
        item = f'<Metadata domain="OVERVIEWS"><MDI key="OVERVIEW_FILE">{target}</MDI></Metadata>'
        Path(f"{path}.aux.xml").write_text(f"<PAMDataset>{item}</PAMDataset>")
    else:
        with rasterio.open(path, "r+") as file:
            file.update_tags(ns="OVERVIEWS", OVERVIEW_FILE=target)
        assert not Path(f"{path}.aux.xml").exists()
    with rasterio.open(path) as file:
        file.read(1, out_shape=(16, 16))
    assert asked.anything()  # GDAL asks the server
    refused(path, "names another file to read overviews from")
    assert not asked.anything()


def test_metadata_with_entities(tmp_path):
    """The XML of GDAL knows no entities: neither those that grow nor those of other files."""
    path = write_raster(tmp_path / "a.tif", array(900))
    (tmp_path / "secret.txt").write_text("SECRET")
    laughs = "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 10))
    top = f'<!DOCTYPE a [<!ENTITY a0 "x">{laughs}<!ENTITY s SYSTEM "{tmp_path}/secret.txt">]>'
    notes = f'{top}<PAMDataset><Metadata><MDI key="k">&s;&a9;</MDI></Metadata></PAMDataset>'
    Path(f"{path}.aux.xml").write_text(notes)
    folder = tmp_path / "S2A_MSIL2A_20230601T000000_N0509_R001_T32TPT_20230601T000000.SAFE"
    write_raster(folder / "GRANULE" / "IMG_DATA" / "R10m" / "T32_20230601_B04_10m.tif", array(2000))
    (folder / "MTD_MSIL2A.xml").write_text(notes)
    with bounded(50):
        with open_file(path) as file:
            assert not {"SECRET", "x" * 10**6} & set(file.tags().values())
        assert "SECRET" not in explain(path) + explain(folder)


PATHS = (
    "/vsicurl/http://127.0.0.1:1/a.tif",
    "/vsizip/a.zip/a.tif",
    'NETCDF:"a.nc":B04',
    "HDF5:a.h5://B04",
    "GTIFF_DIR:1:a.tif",
)


@pytest.mark.parametrize("path", PATHS)
def test_paths_that_are_more_than_paths(path, tmp_path, asked):
    path = path.replace("http://127.0.0.1:1", asked.address)
    for look_at in (
        lambda: open_raster(Path(path)),
        lambda: look("s2", SourceOptions(path)),
        lambda: explain(Path(path)),
    ):
        with pytest.raises(DataError, match="does not exist"):
            look_at()
    assert not asked.anything()


def test_absurd_sizes(tmp_path):
    def tiff(**tags: int) -> Path:
        known = {256: 8, 257: 8, 258: 16, 259: 1, 262: 1, 273: 8, 277: 1, 278: 8, 279: 128} | {
            int(k[1:]): v for k, v in tags.items()
        }
        entries = b"".join(struct.pack("<HHII", k, 4, 1, v) for k, v in sorted(known.items()))
        path = tmp_path / "a.tif"
        path.write_bytes(b"II*\0" + struct.pack("<IH", 8, len(known)) + entries + bytes(200))
        return path

    open_file(tiff()).close()
    tiles = {"t322": 65536, "t323": 65536, "t324": 8, "t325": 128}
    for tags in ({"t256": 2**31 - 1, "t257": 2**31 - 1}, {"t256": 2**21}, {"t256": 2**20, "t257": 2**20, **tiles}):
        with bounded(50), pytest.raises(DataError, match=r"a.tif'"):
            open_file(tiff(**tags))


# --- STAC items, NetCDF and Zarr


def item(href: str, **more: object) -> dict:
    return {
        **{"type": "Feature", "stac_version": "1.0.0", "id": "a", "bbox": [9, 47, 10, 48], "stac_extensions": []},
        "geometry": {"type": "Polygon", "coordinates": [[[9, 47], [10, 47], [10, 48], [9, 48], [9, 47]]]},
        "properties": {"datetime": "2023-06-01T00:00:00Z", "proj:epsg": 32632},
        "assets": {"red": {"href": href, "type": "image/tiff"}},
        **{"links": [], **more},
    }


@pytest.mark.parametrize("way", ["absolute", "upwards", "file", "ftp", "zip", "curl", "prefix", "self"])
def test_an_item_whose_assets_are_elsewhere(way, tmp_path, asked):
    pytest.importorskip("odc.stac")
    secret = write_raster(tmp_path / "secret.tif", array(SECRET))
    hrefs = {
        **{"absolute": str(secret), "upwards": "../secret.tif", "file": f"file://{secret}", "self": "secret.tif"},
        **{"ftp": f"ftp{asked.address[4:]}/a.tif", "zip": f"zip+{asked.address}/a.zip!a.tif"},
        "curl": asked.remote(),
        "prefix": f'NETCDF:"{secret}":B04',
    }
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "item.json"
    links = [{"rel": "self", "href": str(tmp_path / "item.json")}] if way == "self" else []
    path.write_text(json.dumps(item(hrefs[way], links=links)))
    with pytest.raises(DataError):
        open_scene({"s2": SourceOptions(str(path), offset="off")}, ("B04",)).read(Window(0, 0, 8, 8))
    with pytest.raises(DataError):
        explain(path)
    assert not asked.anything()


def test_an_item_whose_asset_is_a_vrt(tmp_path):
    pytest.importorskip("odc.stac")
    secret = write_raster(tmp_path / "secret.tif", array(SECRET))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "red.tif").write_text(virtual(str(secret)))
    path = tmp_path / "in" / "item.json"
    path.write_text(json.dumps(item("./red.tif")))
    with pytest.raises(DataError, match="cannot be read as a GeoTIFF"):
        open_scene({"s2": SourceOptions(str(path), offset="off")}, ("B04",))


@pytest.mark.parametrize("content", [b"[" * 10**5, b"[]", b"{}", b'{"type": "Feature", "stac_version": [1]}', b"\xff"])
def test_items_that_make_no_sense(content, tmp_path):
    pytest.importorskip("pystac")
    (tmp_path / "item.json").write_bytes(content)
    with pytest.raises(DataError, match=r"item.json"):
        look("s2", SourceOptions(str(tmp_path / "item.json")))


def test_netcdf_that_points_elsewhere_or_claims_too_much(tmp_path):
    pytest.importorskip("h5netcdf")
    for name in ("link", "large"):
        path = tmp_path / f"{name}.nc"
        with h5py.File(path, "w") as file:
            if name == "link":
                file["B04"] = h5py.ExternalLink("/etc/passwd", "/")
            else:
                file.create_dataset("x", (10**12,), "f8", chunks=(1024,))
        says = "'B04' is a link to" if name == "link" else "'x' is not read: .*would take 8e"
        with bounded(50), pytest.raises(DataError, match=says):
            look("s2", SourceOptions(str(path)))


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("kind", ["pickle", "large"])
def test_zarr_that_runs_code_or_claims_too_much(version, kind, tmp_path):
    pytest.importorskip("zarr")
    store, target = tmp_path / "a.zarr", tmp_path / "owned"
    place = store / "x"
    place.mkdir(parents=True)
    length = 10**12 if kind == "large" else 3
    if version == 2:
        (store / ".zgroup").write_text('{"zarr_format": 2}')
        packed = {"id": kind} if kind == "pickle" else None
        about = {"zarr_format": 2, "shape": [length], "chunks": [3], "dtype": "<f8", "fill_value": 0, "order": "C"}
        (place / ".zarray").write_text(
            json.dumps({**about, "compressor": None, "filters": [packed] if packed else None})
        )
        (place / ".zattrs").write_text('{"_ARRAY_DIMENSIONS": ["x"]}')
    else:
        (store / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group", "attributes": {}}')
        codecs = [{"name": "bytes"}, *([{"name": "numcodecs.pickle"}] if kind == "pickle" else [])]
        grid = {"name": "regular", "configuration": {"chunk_shape": [3]}}
        about = {"zarr_format": 3, "node_type": "array", "shape": [length], "data_type": "float64", "codecs": codecs}
        (place / "zarr.json").write_text(json.dumps({**about, "chunk_grid": grid, "dimension_names": ["x"]}))
    (place / "0").write_bytes(pickle.dumps(Payload(target)))
    says = "is packed with '.*pickle', which may do anything" if kind == "pickle" else "claims the shape"
    with bounded(50), pytest.raises(DataError, match=says):
        look("s2", SourceOptions(str(store)))
    assert not target.exists()


def test_a_scene_file_of_aliases_and_tags(tmp_path):
    path = tmp_path / "scene.yaml"
    laughs = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
    for text in (laughs, "s2: !!python/object/apply:os.system ['true']", "[" * 10**5, "a: " + "x" * (5 << 20)):
        path.write_text(text)
        with bounded(100), pytest.raises(ConfigError, match="is no YAML file that can be read"):
            read_scene_file(path)
