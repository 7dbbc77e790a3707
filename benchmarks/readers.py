"""How fast tiles are read, at random and in one process: straight from the HDF5 file, and from packed copies.

    python benchmarks/readers.py [--json FILE] [--tiles 2000] [--batch 128] [--runs 9] [--formats 1]

Writes a synthetic world in the layout of MMEarth64 (gzip, one chunk per tile and array). The rival is
torchgeo.datasets.MMEarth with the arrays sentinel2, aster and esa_worldcover; ours have validity too, and finished
samples the labels at 40 m. The formats that a packed copy could have had are compared where zarr, litdata and
webdataset are installed. Needs torchgeo; a few minutes.
"""

import io
import tempfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import torch
from measure import Table, arguments, interleaved

from multimae_eo import sized
from multimae_eo.data.mmearth import MMEarth
from multimae_eo.data.packed import Packed
from multimae_eo.data.packing import pack
from multimae_eo.data.synthetic import generate
from multimae_eo.data.tiles import Tiles
from multimae_eo.raster import OwnGrids

NAME = "data_1M_v001_64"  # what torchgeo calls MMEarth64
ARRAYS = ("sentinel2", "aster", "esa_worldcover")


def main(tiles: int, batch: int, runs: int, formats: bool, path: Path | None) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    config = sized("base")
    modalities = list(config.modalities.values())
    table = Table(f"Reading tiles of 64 px, in batches of {batch}, at random, one process and thread")
    with tempfile.TemporaryDirectory() as folder:
        world = generate(folder, NAME, tiles=tiles)
        packed = pack(world, Path(folder) / "packed", modalities)
        rows = np.random.default_rng(0).permutation(tiles)[: min(tiles, 8 * batch)].tolist()
        grids = OwnGrids(config.modalities)
        sources = {"hdf5": MMEarth(world, modalities), "packed": Packed(packed, modalities)}
        works = {f"{name}, finished samples": reading(s, rows, batch, grids) for name, s in sources.items()}
        works["packed, tiles"] = reading(sources["packed"], rows, batch)
        works["torchgeo"] = torchgeo(Path(folder), rows[: len(rows) // 4])
        seconds = interleaved(works, runs=runs)
        theirs = [4 * s for s in seconds["torchgeo"]]
        targets = {"hdf5, finished samples": 5.0, "packed, tiles": 40.0, "packed, finished samples": None}
        for name, target in targets.items():
            table.rate(name, seconds[name], len(rows), "tiles/s", "torchgeo", theirs, target)
        table.value("bytes per tile, HDF5", (world / f"{NAME}.h5").stat().st_size / tiles / 1e3, "KB")
        table.value("bytes per tile, packed", sum(f.stat().st_size for f in packed.iterdir()) / tiles / 1e3, "KB")
        if formats:
            compare(table, Path(folder), sources["hdf5"], sources["packed"], rows, batch, runs)
    table.finish(path)


def reading(source: Tiles, rows: list[int], batch: int, grids: OwnGrids | None = None) -> Callable[[], None]:
    """Batches of whole tiles with validity, and where grids are given with labels reduced to 40 m."""

    def work() -> None:
        for first in range(0, len(rows), batch):
            tiles = source.read(rows[first : first + batch])
            if grids is not None:
                grids(tiles)

    return work


def torchgeo(folder: Path, rows: list[int]) -> Callable[[], None]:
    """The rival's samples, which are normalised, without validity."""
    from torchgeo.datasets import MMEarth as Rival

    theirs = Rival(str(folder), subset="MMEarth64", modalities=ARRAYS)
    theirs.indices = list(rows)  # the same tiles, whatever the split

    def work() -> None:
        for index in range(len(rows)):
            theirs[index]

    return work


def compare(table: Table, folder: Path, source: Tiles, ours: Tiles, rows: list[int], batch: int, runs: int) -> None:
    """The same bytes in other formats, read at random as raw arrays; webdataset only in order, which is all it does."""
    tiles = [
        np.concatenate([r.values.numpy().view(np.uint8).ravel() for r in source[i].values()])
        for i in range(len(source))
    ]
    data = np.stack(tiles)
    readers = {"packed, raw": lambda: [ours.read(rows[i : i + batch]) for i in range(0, len(rows), batch)] and None}
    for make in (contiguous_hdf5, zarr_shards, litdata_chunks, webdataset_tars):
        try:
            readers[make.__name__.replace("_", " ")] = make(folder, data, rows)
        except ImportError as error:
            print(f"left out: {error}")
    seconds = interleaved(readers, runs=max(3, runs // 2))
    for name, taken in seconds.items():
        if name != "packed, raw":
            table.rate(f"format: {name}", taken, len(rows), "tiles/s", "packed", seconds["packed, raw"])


def contiguous_hdf5(folder: Path, data: np.ndarray, rows: list[int]) -> Callable[[], None]:
    """One uncompressed array, through h5py."""
    with h5py.File(folder / "contiguous.h5", "w") as file:
        file["tiles"] = data
    dataset = h5py.File(folder / "contiguous.h5", "r")["tiles"]
    return lambda: [dataset[row] for row in rows] and None


def zarr_shards(folder: Path, data: np.ndarray, rows: list[int]) -> Callable[[], None]:
    """Zarr v3: one chunk per tile, 256 in a shard, default compression."""
    import zarr

    shape = (len(data), data.shape[1])
    array = zarr.create_array(
        str(folder / "tiles.zarr"), shape=shape, chunks=(1, shape[1]), shards=(256, shape[1]), dtype="u1"
    )
    array[:] = data
    few = rows[: max(1, len(rows) // 4)]
    return lambda: [array[row] for _ in range(4) for row in few] and None


def litdata_chunks(folder: Path, data: np.ndarray, rows: list[int]) -> Callable[[], None]:
    """LitData: its own chunks of 64 MB, by index."""
    from litdata import StreamingDataset
    from litdata.streaming.writer import BinaryWriter

    target = folder / "litdata"
    target.mkdir()
    writer = BinaryWriter(str(target), chunk_bytes="64MB")
    for index, tile in enumerate(data):
        writer[index] = {"tile": tile}
    writer.done()
    writer.merge()
    dataset = StreamingDataset(str(target))
    return lambda: [dataset[row] for row in rows] and None


def webdataset_tars(folder: Path, data: np.ndarray, rows: list[int]) -> Callable[[], None]:
    """WebDataset: tar files, read in order."""
    import webdataset

    with webdataset.TarWriter(str(folder / "tiles.tar")) as sink:
        for index, tile in enumerate(data):
            content = io.BytesIO()
            np.save(content, tile)
            sink.write({"__key__": f"{index:06d}", "npy": content.getvalue()})

    def work() -> None:
        stream = webdataset.WebDataset(str(folder / "tiles.tar"), shardshuffle=False).decode()
        for number, _ in enumerate(stream, 1):
            if number == len(rows):
                break

    return work


if __name__ == "__main__":
    given = arguments(__doc__, tiles=2000, batch=128, runs=9, formats=1)
    main(given.tiles, given.batch, given.runs, bool(given.formats), given.json)
