"""Maps of scenes: memory, throughput against the model alone, exactness of the blending, and seams.

    python benchmarks/maps.py [--json FILE] [--size 10980] [--model tiny] [--patch 16] [--tile 112] [--steps 120]

A model is fine-tuned on a synthetic segmentation task for a few steps, so that its probabilities mean something; a
scene of ten Sentinel-2 bands is written by mirroring one synthetic place. Then, each in a process of its own, `predict`
maps half of the scene and the whole scene; the memory is the most that each process held. Seams: how much probabilities
change from one pixel to the next across the borders of tiles, over how much they do elsewhere. The whole Sentinel-2
tile takes about half an hour on two cores.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import rasterio
import torch
from measure import Table, arguments, interleaved
from rasterio.windows import Window as RasterWindow

import multimae_eo
from multimae_eo.config import sized
from multimae_eo.data.synthetic import generate_downstream, generate_scene
from multimae_eo.finetune_options import FinetuneOptim, FinetuneOptions, LabelledOptions, MachineOptions
from multimae_eo.maps.feeding import bands_of, feed_of
from multimae_eo.maps.mapping import TileRows, tiling_for
from multimae_eo.maps.options import SourceOptions, TileOptions
from multimae_eo.maps.predict import predicting
from multimae_eo.maps.run import tiles_in
from multimae_eo.maps.scene import open_scene
from multimae_eo.maps.tiling import TileRow, Tiling, blend
from multimae_eo.maps.writing import blocks
from multimae_eo.tasks import task
from multimae_eo.tasks.finetune import finetune

INPUTS = ("rgb", "red_edge", "swir", "nir")
PLACE = 1024  # edge of the place that the scene repeats


def main(size: int, model: str, patch: int, tile: int, steps: int, path: Path | None) -> None:
    """Print the table."""
    table = Table(f"Maps: {model}, patch {patch}, tiles of {tile} px, a scene of {size} x {size} px and ten bands")
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        checkpoint = trained(here, model, patch, tile, steps)
        scene = write_scene(here, size)
        table.value("the scene, uncompressed", 20 * size * size / 1e9, "GB")
        throughput(table, checkpoint, scene, min(size, 1600))
        seams(table, checkpoint, scene, min(size, 1600))
        exactness(table)
        half = write_half(scene, size)
        found = {}
        for name, source in (("half of the scene", half), ("the whole scene", scene)):
            seconds, found[name] = mapped(checkpoint, source, here / "map.tif")
            table.value(f"{name}: peak memory", found[name], "GB", target=3.0)
            table.value(f"{name}: seconds, starting and writing included", seconds, "s")
        grown = found["the whole scene"] / found["half of the scene"]
        table.value("memory for twice the area, over that for half", grown, "", target=1.05)
        table.value("rio-cogeo accepts the map (1: yes)", float(accepted(here / "map.tif")), "", target=1.0)
    table.finish(path)


def trained(folder: Path, model: str, patch: int, tile: int, steps: int) -> Path:
    """A segmentation model of the wanted size, fine-tuned from random weights for a few steps."""
    config = sized(model, inputs=INPUTS, targets=INPUTS[:1], image_size=tile, patch_size=patch)
    multimae_eo.save(multimae_eo.MultiMAE(config), folder / "random")
    generate_downstream(folder / "labelled", tiles=60, tile_px=tile, workers=2)
    root = next(p for p in (folder / "labelled").rglob("synthetic-map") if p.is_dir()).parent
    options = FinetuneOptions(
        folder / "random",
        out=folder / "task",
        init="random",
        data=LabelledOptions(root=root, name="synthetic-map", workers=0, statistics="model", inputs=list(INPUTS)),
        optim=FinetuneOptim(batch_size=8, steps=steps, lr=0.02, warmup_epochs=0.5, layer_decay=1.0),
        trainer=MachineOptions(accelerator="cpu", progress=False),
    )
    task.RESAMPLES = 10  # its test scores are of no interest here
    finetune(options)
    return folder / "task" / "best"


def write_scene(folder: Path, size: int) -> Path:
    """One place, mirrored until it fills the scene, so that it has no edge of its own."""
    edge = min(PLACE, -(-size // 4) * 4)
    place = generate_scene(folder, "place", seed=5, tile_px=edge)
    with rasterio.open(place / "s2.tif") as file:
        image, profile, bands, tags = file.read(), file.profile, file.descriptions, file.tags()
    image = np.maximum(image, 1)  # a mapped pixel everywhere
    pair = np.concatenate([image, image[:, ::-1]], axis=1)
    pair = np.concatenate([pair, pair[:, :, ::-1]], axis=2)
    profile |= {"height": size, "width": size, "blockxsize": 512, "blockysize": 512, "BIGTIFF": "IF_SAFER", "zlevel": 1}
    with rasterio.open(folder / "scene.tif", "w", **profile) as file:
        for top, left, height, width in blocks(size, size, 512):
            ys, xs = (np.arange(start, start + n) % (2 * edge) for start, n in ((top, height), (left, width)))
            file.write(pair[:, ys][:, :, xs], window=RasterWindow(left, top, width, height))
        file.descriptions = bands
        file.update_tags(**tags)
    return folder / "scene.tif"


def write_half(scene: Path, size: int) -> Path:
    """The upper half of a scene."""
    half = scene.with_name("half.tif")
    with rasterio.open(scene) as file:
        profile = file.profile | {"height": size // 2}
        with rasterio.open(half, "w", **profile) as part:
            for top, left, height, width in blocks(size // 2, size, 512):
                window = RasterWindow(left, top, width, height)
                part.write(file.read(window=window), window=window)
            part.descriptions = file.descriptions
            part.update_tags(**file.tags())
    return half


def mapped(checkpoint: Path, source: Path, out: Path) -> tuple[float, float]:
    """Seconds and peak memory in GB of a process that maps a scene."""
    command = [sys.executable, "-m", "multimae_eo.cli", "predict", str(checkpoint), "--source", f"s2={source}"]
    began = time.perf_counter()
    process = subprocess.Popen([*command, "--out", str(out)], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, "predict failed"
    return time.perf_counter() - began, usage.ru_maxrss / 1e6


def opened(checkpoint: Path, source: Path, size: int):
    """A scene's tile rows as `predict` computes them, and the shape of its part."""
    model = multimae_eo.load_predictor(checkpoint)
    scene = open_scene({"s2": SourceOptions(str(source))}, bands_of(INPUTS, model.config.modalities))
    feed = feed_of(scene.bands, scene.product_of, model.config, model.task)
    options = TileOptions(progress=False)
    tiling = tiling_for(options, model.config)
    rows = TileRows(
        scene.read,
        feed,
        tiling,
        predicting(model),
        outputs=model.task.num_outputs,
        config=model.config,
        options=options,
    )
    return model, scene, rows, (size, size)


def throughput(table: Table, checkpoint: Path, source: Path, size: int) -> None:
    """Tiles per second: read, cut, computed and blended, against the model alone on batches of the same tiles."""
    _, scene, rows, shape = opened(checkpoint, source, size)
    tiling, batches = rows.tiling, []
    work = rows.work

    def remembered(batch, places):
        batches.append((batch, places))
        return work(batch, places)

    def pipeline() -> None:
        for _ in blend(tiling, range(shape[0]), range(shape[1]), shape, rows.row):
            pass

    rows.work = remembered
    pipeline()
    rows.work, kept = work, list(batches)

    @torch.inference_mode()
    def alone() -> None:
        for batch, places in kept:
            work(batch, places)

    seconds = interleaved({"pipeline": pipeline, "alone": alone}, runs=3, warmup=0)
    number = tiles_in(tiling, range(shape[0]), range(shape[1]), shape)
    name = "encoder and head alone on the same tiles"
    table.rate("mapping, without the file", seconds["pipeline"], number, "tiles/s", name, seconds["alone"], 0.9)
    rows.close()
    scene.close()


def seams(table: Table, checkpoint: Path, source: Path, size: int) -> None:
    """Mean change of probabilities to the next pixel, at the borders of tiles and elsewhere.

    Inside tiles is measured on tiles side by side, away from their borders: overlaps are smoother than a tile, as two
    predictions are averaged there.
    """
    _, scene, rows, shape = opened(checkpoint, source, size)
    kinds = {"blended": rows.tiling, "side by side": Tiling(rows.tiling.size, rows.tiling.size, 0, rows.tiling.unit)}
    found = {}
    for name, rows.tiling in kinds.items():
        strips = [v for _, v, _ in blend(rows.tiling, range(size), range(size), shape, rows.row)]
        shares = np.concatenate(strips, axis=1)
        borders = {o + d for o in rows.tiling.origins(size) for d in (0, rows.tiling.size)}
        places = np.array(sorted(b for b in borders if 0 < b < size)) - 1
        steps = [np.abs(np.diff(shares, axis=axis)).mean(axis=(0, 3 - axis)) for axis in (1, 2)]
        found[name] = [
            np.mean([s[places].mean() for s in steps]),
            np.mean([np.delete(s, places).mean() for s in steps]),
        ]
    inside = found["side by side"][1]
    table.value("change of probabilities inside tiles, per pixel", float(inside), "")
    table.value("side by side: across borders of tiles, over that", float(found["side by side"][0] / inside), "")
    table.value("blended: across borders of tiles, over that", float(found["blended"][0] / inside), "", 1.05)
    table.value("blended: everywhere else, over that", float(found["blended"][1] / inside), "")
    rows.close()
    scene.close()


def exactness(table: Table) -> None:
    """The largest difference between blended tiles and one big tile, for a convolution that sees four pixels far."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 3, padding=1), torch.nn.Tanh(), torch.nn.Conv2d(8, 1, 7, padding=3)
    ).double()
    field = np.random.default_rng(0).normal(size=(300, 260))
    for layer in (network[0], network[2]):
        torch.nn.init.zeros_(layer.bias)

    @torch.no_grad()
    def work(part: np.ndarray) -> np.ndarray:
        return network(torch.from_numpy(np.ascontiguousarray(part))[None, None])[0, 0].numpy()

    tiling = Tiling(56, 40, 4)
    padded, weights = np.pad(field, 56), np.outer(tiling.weights(), tiling.weights())

    def row(top: int, lefts) -> TileRow:
        sums = np.zeros((2, 56, lefts[-1] - lefts[0] + 56), np.float32)
        for left in lefts:
            place = slice(left - lefts[0], left - lefts[0] + 56)
            sums[0, :, place] += work(padded[top + 56 : top + 112, left + 56 : left + 112]) * weights
            sums[1, :, place] += weights
        return TileRow(sums, np.ones(sums.shape[1:], bool), lefts[0])

    strips = [v[0] for _, v, _ in blend(tiling, range(300), range(260), field.shape, row)]
    whole = work(np.pad(field, 8))[8:-8, 8:-8]
    table.value(
        "blended tiles of a convolution against one big tile",
        float(np.abs(np.concatenate(strips) - whole).max()),
        "",
        1e-4,
    )


def accepted(path: Path) -> bool:
    """Whether rio-cogeo's validator takes a file for a Cloud Optimized GeoTIFF."""
    from rio_cogeo import cog_validate

    return cog_validate(str(path), strict=True)[0]


if __name__ == "__main__":
    given = arguments(__doc__, size=10980, model="tiny", patch=16, tile=112, steps=120)
    main(given.size, given.model, given.patch, given.tile, given.steps, given.json)
