"""A mapping run: which scene, which strips are left to compute, and what is said while it runs and where it fails."""

import ctypes
import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from tqdm import tqdm

from multimae_eo import __version__, checkpoint
from multimae_eo.data.geotiff_source import Grid
from multimae_eo.errors import ConfigError, IncompleteError, UnknownNameError
from multimae_eo.maps.layers import Window
from multimae_eo.maps.mapping import TileRows
from multimae_eo.maps.options import SourceOptions, TileOptions, as_sources, read_scene_file
from multimae_eo.maps.scene import Scene
from multimae_eo.maps.tiling import Tiling, blend, touching
from multimae_eo.maps.writing import CACHE, Layout, Strips, write_cog
from multimae_eo.modalities import MODALITIES, Modality
from multimae_eo.whole import held

PANEL = 8192  # columns that are worked on at once, so that memory does not grow with the width of a scene

# Blended results [k, h, w], validity [h, w] and where that is -> what is stored, [bands, h, w].
Encode = Callable[[np.ndarray, np.ndarray, Window], np.ndarray]


def map_scene(
    scene: Scene,
    rows: TileRows,
    out: Path,
    layout: Layout,
    encode: Encode,
    *,
    about: Mapping[str, Any],
    tiles: TileOptions,
    grid: Grid | None = None,
    write: Callable[[Strips, Grid, Layout], Path] = write_cog,
) -> Path:
    """Compute all strips of a map that are not finished yet, and write it; raises IncompleteError for damaged sources.

    about: what decides the numbers (see `about`); grid: of the map, where its cells are no pixels of the scene.
    """
    tags = {
        "SOFTWARE": f"multimae-eo {__version__}, checkpoint {about['weights']}",
        "INPUTS": ", ".join(rows.feed.modalities),
        "DATES": ", ".join(scene.dates),
    }
    grid, layout = grid or scene.grid, dataclasses.replace(layout, tags={**tags, **layout.tags})
    shape = grid.height, grid.width
    width = max(rows.tiling.size, PANEL // rows.cell)
    panels = [range(left, min(left + width, shape[1])) for left in range(0, shape[1], width)]
    for note in scene.notes:
        tqdm.write(note, file=sys.stderr)
    try:
        with (
            held(out.with_name(f".{out.name}.lock"), out),
            closing(scene),
            closing(rows),
        ):  # no thread reads when files close
            strips = Strips(out, about)
            scene.damage.add(strips.damage())
            compute(scene, rows, strips, encode, panels, shape, progress=tiles.progress)
            written = write(strips, grid, layout)
            strips.discard()
    except KeyboardInterrupt:
        raise KeyboardInterrupt("what is finished is kept; the same command goes on") from None
    if scene.damage:
        raise IncompleteError(
            f"'{written}' is written, with no data where a source is damaged: {scene.damage.describe()}."
        )
    return written


def compute(
    scene: Scene,
    rows: TileRows,
    strips: Strips,
    encode: Encode,
    panels: Sequence[range],
    shape: tuple[int, int],
    *,
    progress: bool,
) -> None:
    """Compute and keep the strips that are not finished yet."""
    number = {panel: tiles_in(rows.tiling, range(shape[0]), panel, shape) for panel in panels}
    with tqdm(total=sum(number.values()), unit=" tiles", disable=not progress) as bar:
        rows.computed = bar.update
        for panel in panels:
            rest = range(strips.done(panel.start), shape[0])
            bar.update(number[panel] - tiles_in(rows.tiling, rest, panel, shape))
            for top, values, valid in blend(rows.tiling, rest, panel, shape, rows.row) if rest else ():
                window = Window(top, panel.start, *valid.shape)
                strips.save(top, panel.start, encode(values, valid, window), scene.damage.listed())


def tiles_in(tiling: Tiling, rows: range, columns: range, shape: tuple[int, int]) -> int:
    """How many tiles a window of a scene is computed from."""
    if not len(rows):
        return 0
    tops, lefts = (tiling.origins(length) for length in shape)
    return len(touching(tiling, tops, rows)) * len(touching(tiling, lefts, columns))


def keep_freed_memory() -> None:
    """Let glibc keep what is freed; else it takes each large tensor from the system anew, page by page."""
    trim, mmap = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
    with suppress(OSError, AttributeError):  # another C library
        for parameter in (trim, mmap):
            ctypes.CDLL(None).mallopt(parameter, 1 << 30)


@contextmanager
def prepared(tiles: TileOptions) -> Iterator[None]:
    """The threads of torch, and a cache of GDAL that does not grow with the machine; raises ConfigError."""
    if tiles.threads is not None:
        if tiles.threads < 1:
            raise ConfigError(f"tiles.threads must be 1 or more; got {tiles.threads}.")
        torch.set_num_threads(tiles.threads)
    keep_freed_memory()
    with rasterio.Env(GDAL_CACHEMAX=CACHE):
        yield


def sources_of(options: Any, modalities: Mapping[str, Modality]) -> dict[str, SourceOptions]:
    """The sources of a scene file, if there is one, and those given one by one; raises UnknownNameError for a product.

    modalities: of the model.
    """
    given = dict(read_scene_file(options.scene)) if options.scene is not None else {}
    sources = as_sources({**given, **options.source})
    known = dict.fromkeys(p for m in (*MODALITIES.values(), *modalities.values()) for p in m.products)
    for name, source in sources.items():
        if source.product is not None and source.product not in known:
            raise UnknownNameError(f"product of source '{name}'", source.product, known)
    return sources


def about(options: Any, scene: Scene) -> dict[str, Any]:
    """What decides the numbers of a map: options, sources as they are read, weights, and the state of the files."""
    content = {k: v for k, v in dataclasses.asdict(options).items() if k not in ("out", "source", "scene")}
    content["tiles"] = {k: v for k, v in content["tiles"].items() if k != "progress"}
    sources = [
        {
            "name": s.found.name,
            "bands": [dataclasses.astuple(band) for band in s.layer.bands],
            "offset": s.offset,
            "product": s.found.product,
            "stated": s.stated,
            **dataclasses.asdict(s.found.options),
        }
        for s in scene.sources
    ]
    grid = [scene.grid.crs.to_wkt(), list(scene.grid.transform)[:6], scene.grid.height, scene.grid.width]
    paths = {source.found.path_of(band.place) for source in scene.sources for band in source.layer.bands}
    paths |= {source.found.options.path for source in scene.sources}
    paths |= {str(anchor)} if (anchor := content.get("anchor")) else set()
    return {
        "version": __version__,
        "options": content,
        "sources": sources,
        "grid": grid,
        "weights": checkpoint.fingerprint(options.checkpoint),
        "files": hashlib.sha256(json.dumps(states(sorted(paths))).encode()).hexdigest(),
    }


def states(paths: Sequence[str]) -> list[tuple[str, int, int]]:
    """Size and time of files, and of all files in folders; what is no path of this machine is left out."""
    found = [Path(path) for path in paths]
    files = [f for p in found for f in (sorted(p.rglob("*")) if p.is_dir() else [p]) if f.is_file()]
    return [(str(f), (s := f.stat()).st_size, s.st_mtime_ns) for f in files]
