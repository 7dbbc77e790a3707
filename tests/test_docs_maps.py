"""The page on maps runs, on a generated scene."""

import re
import shlex
from datetime import UTC, datetime

import pytest
from conftest import ROOT

rasterio = pytest.importorskip("rasterio")

from rasterio.warp import transform_bounds  # noqa: E402
from scenes import save_model, save_predictor  # noqa: E402

from multimae_eo.cli import main  # noqa: E402
from multimae_eo.data.synthetic import generate_scene  # noqa: E402

PAGE = (ROOT / "docs" / "maps.md").read_text()
COMMON = {"blue": "B02", "green": "B03", "red": "B04", "rededge1": "B05", "rededge2": "B06", "rededge3": "B07"}
COMMON |= {"nir": "B08", "nir08": "B8A", "swir16": "B11", "swir22": "B12"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scene = generate_scene("data", tile_px=96)
    (yaml,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    (scene / "scene.yaml").write_text(yaml)
    inputs = ("rgb", "red_edge", "swir", "nir", "elevation")
    save_predictor(tmp_path / "TASK", inputs=inputs, data={"drop_modality": 0.2})
    save_model(tmp_path / "MODEL")
    (tmp_path / "RUN").mkdir()
    return tmp_path


COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.strip().splitlines()]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands(command, folder):
    words = shlex.split(command.replace("--tile-px 512", "--tile-px 96").replace("--name scene", "--name other"))
    if "report" in words:
        main(shlex.split("predict TASK --scene data/scene/scene.yaml --out map.tif"))
    main(words[1:])
    if "--out" in words and words[words.index("--out") + 1].endswith(".tif"):
        with rasterio.open(words[words.index("--out") + 1]) as file:
            assert file.crs is not None


def test_from_a_search_to_a_map(folder, monkeypatch):
    """With a catalogue of one local item in the place of the one on the internet."""
    pystac = pytest.importorskip("pystac")
    pystac_client = pytest.importorskip("pystac_client")
    pytest.importorskip("odc.stac")
    with rasterio.open("data/scene/s2.tif") as file:
        bands, image, profile = dict(zip(file.descriptions, file.indexes, strict=True)), file.read(), file.profile
        west, south, east, north = outline = transform_bounds(file.crs, "EPSG:4326", *file.bounds)
        about = {"proj:epsg": file.crs.to_epsg()}
    corners = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    day = datetime(2023, 6, 1, tzinfo=UTC)
    item = pystac.Item("tile", {"type": "Polygon", "coordinates": [corners]}, list(outline), day, about)
    for name, band in COMMON.items():
        with rasterio.open(f"{name}.tif", "w", **{**profile, "count": 1}) as file:
            file.write(image[bands[band] - 1], 1)
        item.add_asset(name, pystac.Asset(str(folder / f"{name}.tif"), media_type="image/tiff", roles=["data"]))

    class Catalogue:
        def search(self, **_):
            return self

        def items(self):
            return iter([item])

    monkeypatch.setattr(pystac_client.Client, "open", lambda *_: Catalogue())
    (snippet,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len([line for line in snippet.splitlines() if line.strip()]) <= 12
    exec(compile(snippet, "maps.md", "exec"), {})
    with rasterio.open("map_of_item.tif") as file:
        assert file.crs.to_epsg() == about["proj:epsg"]
        assert set(file.read(1).ravel().tolist()) <= {0, 1, 2, 255}
