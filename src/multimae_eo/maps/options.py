"""The options of mapping, as plain dataclasses; imports neither torch nor rasterio."""

import dataclasses
import datetime
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from multimae_eo.documents import read_yaml
from multimae_eo.errors import ConfigError, UnknownNameError

# A bare on or off in YAML 1.1 is a boolean, so booleans are taken too.
Offset = Literal["auto", "on", "off"] | bool


@dataclass
class SourceOptions:
    """Where some bands of a scene are, and what their numbers mean.

    Args:
        path: a GeoTIFF or JPEG 2000 file; a folder with one file per band (.SAFE too); NetCDF (.nc) or Zarr (.zarr); a
            STAC item (.json).
        bands: band names in the order of the file (Zarr: of the arrays' names), "-" for one to leave out; by default
            the names that it states.
        product: what the values are of, for the model's statistics: "L1C", "L2A", ...; by default as the path, the
            name of the source or the metadata say.
        nodata: overrides the no-data value (and mask) that the file states; 0 in Sentinel-2 bands by default.
        scale: factor from the file's values to reflectance x 10000, metres or dB; by default what the file states.
        offset: whether Sentinel-2 bands carry the +1000 of ESA's processing baseline 04; auto judges tags and pixels.
        classes: maps of classes only: code in the file -> code of the model's class, 0 for no data.
        mask: a raster of clouds or scene classes; in a folder or STAC item the name of one of its bands, like "SCL".
        masked: values of the mask where the bands count as not measured; of an SCL: 0 1 3 8 9 10 by default.
        date: of the image, YYYY-MM-DD; chooses a time step of a NetCDF or Zarr that has several.
    """

    path: str
    bands: list[str] | None = None
    product: str | None = None
    nodata: float | None = None
    scale: float | None = None
    offset: Offset = "auto"
    classes: dict[int, int] | None = None
    mask: str | None = None
    masked: list[int] | None = None
    date: str | None = None

    @property
    def baseline(self) -> Literal["auto", "on", "off"]:
        """The offset, as a word."""
        if isinstance(self.offset, bool):
            return "on" if self.offset else "off"
        return self.offset


@dataclass
class GridOptions:
    """The grid of a map; by default that of the first source with 10 m pixels, else 10 m over the first source.

    Args:
        like: take the grid of this raster.
        crs: reference system, e.g. EPSG:32632; must be in metres, and not Mercator's.
        bounds: left, bottom, right, top in units of the grid's reference system; all of the first source by default.
    """

    like: Path | None = None
    crs: str | None = None
    bounds: tuple[float, float, float, float] | None = None


@dataclass
class TileOptions:
    """How a scene is cut into overlapping tiles.

    Args:
        size: edge of a tile in pixels; by default that of the images it was fine-tuned on, else pre-trained on.
        overlap: of neighbouring tiles in pixels; by default a quarter of the size, of embeddings half.
        margin: pixels at the edges of a tile that are not used, of the overlap.
        batch: tiles that go through the model at once.
        device: "auto", "cpu", "cuda", "cuda:1", ...
        threads: of torch on the CPU; by default torch's own number.
        progress: show a progress bar.
    """

    size: int | None = None
    overlap: int | None = None
    margin: int = 0
    batch: int = 32
    device: str = "auto"
    threads: int | None = None
    progress: bool = True


@dataclass
class PredictOptions:
    """Map what a fine-tuned checkpoint predicts over a scene of any size.

    Args:
        checkpoint: a checkpoint directory of fine-tuning.
        source: the scene's sources by name, NAME=PATH; or an object of options, as documented.
        scene: a YAML file of such sources.
        out: the map to write, a Cloud Optimized GeoTIFF.
        probabilities: write the probability of every class instead of the most probable class.
        allow_missing: go without modalities that the checkpoint was always trained with.
        grid: of the map.
        tiles: how the scene is cut up.
    """

    checkpoint: Path
    source: dict[str, str | SourceOptions] = field(default_factory=dict)
    scene: Path | None = None
    out: Path = Path("map.tif")
    probabilities: bool = False
    allow_missing: bool = False
    grid: GridOptions = field(default_factory=GridOptions)
    tiles: TileOptions = field(default_factory=TileOptions)


@dataclass
class EmbedOptions:
    """Embed a scene: one vector per patch, from the encoder of a checkpoint.

    Args:
        checkpoint: a checkpoint directory of pre-training or fine-tuning.
        source: the scene's sources by name, NAME=PATH; or an object of options, as documented.
        scene: a YAML file of such sources, or a raster.
        out: what to write: .tif (COG), .zarr, or .parquet (GeoParquet).
        dtype: of the numbers; int8 goes with a scale per dimension.
        preview: also write a picture of the first three principal components as red, green and blue.
        grid: of the scene.
        tiles: how the scene is cut up; overlap and margin in whole patches.
    """

    checkpoint: Path
    source: dict[str, str | SourceOptions] = field(default_factory=dict)
    scene: Path | None = None
    out: Path = Path("embeddings.tif")
    dtype: Literal["float16", "int8", "float32"] = "int8"
    preview: bool = True
    grid: GridOptions = field(default_factory=GridOptions)
    tiles: TileOptions = field(default_factory=TileOptions)


@dataclass
class FillOptions:
    """Fill in a layer of a scene, or the gaps of one, from all others.

    Args:
        checkpoint: a checkpoint directory of pre-training.
        target: the modality to fill in, or its view: one of the checkpoint's targets.
        source: the scene's sources by name, NAME=PATH; or an object of options, as documented.
        scene: a YAML file of such sources, or a raster.
        out: the map to write, a Cloud Optimized GeoTIFF; its last band is the uncertainty.
        anchor: a coarse raster of the target, in its unit, for views that know no level of their own.
        masks: random choices of visible tokens, whose predictions are averaged and whose spread is the uncertainty.
        visible: which share of a tile's valid tokens each choice shows.
        keep: leave values of the target that the scene has as they are.
        seed: decides the masks.
        grid: of the map.
        tiles: how the scene is cut up.
    """

    checkpoint: Path
    target: str = ""
    source: dict[str, str | SourceOptions] = field(default_factory=dict)
    scene: Path | None = None
    out: Path = Path("filled.tif")
    anchor: Path | None = None
    masks: int = 8
    visible: float = 0.5
    keep: bool = True
    seed: int = 0
    grid: GridOptions = field(default_factory=GridOptions)
    tiles: TileOptions = field(default_factory=TileOptions)


@dataclass
class ReportOptions:
    """Show a run as one page of HTML: curves, pictures, results, and a map before and after.

    Args:
        run: folder of a run of pre-training or fine-tuning.
        map: a map to show; by default all that the folder holds.
        before: a raster that the map was made from, shown beside it.
        out: the page; report.html in the folder by default.
    """

    run: Path
    map: Path | None = None
    before: Path | None = None
    out: Path | None = None


def checked(name: str, options: SourceOptions) -> SourceOptions:
    """The options of a source, a date as text; raises ConfigError for what no option can be, wherever it comes from."""
    where, date = f"source '{name}'", options.date
    if isinstance(date, datetime.date):  # what YAML makes of one
        date = date.isoformat()[:10]
    number = isinstance(options.scale, int | float) and not isinstance(options.scale, bool) and options.scale > 0
    wrong = {
        "offset": not isinstance(options.offset, bool) and options.offset not in ("auto", "on", "off"),
        "scale": options.scale is not None and not number,
        "date": date is not None and not re.fullmatch(r"\d{4}-\d\d-\d\d", str(date)),
        "bands": options.bands is not None and not _are(options.bands, str),
        "masked": options.masked is not None and not _are(options.masked, int),
        "classes": options.classes is not None and not _are([*options.classes, *options.classes.values()], int),
    }
    expected = {
        "offset": "auto, on or off",
        "scale": "a positive number",
        "date": "a day as YYYY-MM-DD",
        "bands": "a list of names",
        "masked": "a list of whole numbers",
        "classes": "codes of the file and what they mean, {1: 80}",
    }
    for key, is_wrong in wrong.items():
        if is_wrong:
            raise ConfigError(f"{where}: {key} is {getattr(options, key)!r}; expected {expected[key]}.")
    return dataclasses.replace(options, date=date, path=str(options.path))


def _are(values: object, kind: type) -> bool:
    """Whether these are some values of a kind."""
    return isinstance(values, list) and bool(values) and all(type(value) is kind for value in values)


def as_sources(given: Mapping[str, str | SourceOptions]) -> dict[str, SourceOptions]:
    """Sources as objects of options; raises ConfigError where there is none."""
    if not given:
        raise ConfigError("no source is given; name at least one: --source s2=PATH.")
    return {name: SourceOptions(one) if isinstance(one, str) else one for name, one in given.items()}


def read_scene_file(path: Path) -> Mapping[str, Any]:
    """The sources of a YAML file: {name: path or options}; a raster or folder is a scene of one source."""
    if path.suffix.lower() not in (".yaml", ".yml"):
        return {path.stem: str(path)}
    import yaml

    try:
        content = yaml.safe_load(read_yaml(path))
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        why = str(error).splitlines()[0]
        raise ConfigError(
            f"'{path}' is no YAML file that can be read: {why}. Expected sources as 'name: path'."
        ) from error
    if not isinstance(content, dict) or not content:
        raise ConfigError(f"'{path}': expected sources as 'name: path' or 'name: {{path: ..., bands: [...]}}'.")
    return {str(name): value for name, value in _sources(path, content)}


def _sources(path: Path, content: Mapping[Any, Any]) -> Iterator[tuple[str, str | SourceOptions]]:
    known = SourceOptions.__dataclass_fields__

    def beside(text: str) -> str:
        return text if "://" in text else str(path.parent / text)

    for name, value in content.items():
        if isinstance(value, str):
            yield str(name), beside(value)
            continue
        if not isinstance(value, dict) or not isinstance(value.get("path"), str):
            raise ConfigError(f"'{path}': source '{name}' has no path; expected '{name}: {{path: ...}}'.")
        for key in value:
            if key not in known:
                raise UnknownNameError(f"option of source '{name}' in '{path}':", str(key), known)
        options = SourceOptions(**{**value, "path": beside(value["path"])})
        if isinstance(options.mask, str) and Path(beside(options.mask)).is_file():
            options.mask = beside(options.mask)
        yield str(name), options
