"""A packed copy of a data set: the bands that training needs, uncompressed, in .npy shards, read at random.

A tile is one record of a NumPy structured array: one field per modality, values [c, h, w] in the type they came
in, with that type's missing value wherever nothing was measured, and one field for the products. Source of the format:
NumPy's NPY format 1.0 (NEP 1). Why this one: docs/performance.md.
"""

import hashlib
import io
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from multimae_eo.data.hdf5 import LARGEST, MOST_TILES
from multimae_eo.data.tiles import INDEX, Buffers, Tiles, find, read_json
from multimae_eo.errors import DataError, StatisticsError, UnreadError
from multimae_eo.modalities import Modality
from multimae_eo.raster import Batch

FORMAT = 1
PRODUCTS = ".products"  # a field that no modality can be called like
TILES = "_tiles.npy"
TILE = np.dtype([("tile_id", "S100"), ("lat", "<f4"), ("lon", "<f4")])


@dataclass(frozen=True)
class Stored:
    """How one modality lies in a pack; missing: the value that stands for no data, as text ("-inf" is no JSON)."""

    bands: tuple[str, ...]
    products: tuple[str, ...]
    dtype: str
    missing: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "bands", tuple(self.bands))
        object.__setattr__(self, "products", tuple(self.products))
        if not self.bands or not all(isinstance(word, str) for word in (*self.bands, *self.products, self.dtype)):
            raise ValueError("bands, products and dtype must be text")
        dtype = np.dtype(self.dtype)
        if dtype.kind not in "iuf" or dtype.shape:
            raise ValueError(f"dtype {self.dtype!r} holds no numbers")
        dtype.type(float(self.missing))


@dataclass(frozen=True)
class Shard:
    """One file: its tiles, the bytes before the first of them, and the checksum of all of it."""

    tiles: int
    header: int
    sha256: str


@dataclass(frozen=True)
class Index:
    """What NAME_pack.json says; source: the file that was packed, and its size in bytes."""

    source: str
    source_bytes: int
    tiles: int
    tile_px: int
    tiles_per_shard: int
    modalities: dict[str, Stored]
    shards: list[Shard]
    tiles_sha256: str = ""

    def __post_init__(self) -> None:
        numbers = [getattr(self, name) for name in ("tiles", "tile_px", "tiles_per_shard")]
        numbers += [number for shard in self.shards for number in (shard.tiles, shard.header)]
        if any(type(number) is not int or number < 1 for number in numbers):
            raise ValueError("sizes must be whole numbers")
        if self.tiles > MOST_TILES or self.tile_px**2 > LARGEST or self.record.itemsize > LARGEST:
            raise ValueError(f"expected at most {MOST_TILES} tiles of {LARGEST} bytes")
        if sum(self.sizes) != self.tiles:
            raise ValueError("sizes must add up")

    @property
    def record(self) -> np.dtype:
        """The type of a tile's record."""
        edge = self.tile_px
        fields = [(name, s.dtype, (len(s.bands), edge, edge)) for name, s in self.modalities.items()]
        return np.dtype([*fields, (PRODUCTS, "u1", (len(self.modalities),))])

    @property
    def sizes(self) -> list[int]:
        """How many tiles each shard has, or will have."""
        full, rest = divmod(self.tiles, self.tiles_per_shard)
        return [self.tiles_per_shard] * full + [rest] * (rest > 0)


class Packed(Tiles):
    """Tiles of a packed copy, in a folder on disk or behind a URL; files are opened once per process.

    modalities: any of those that were packed, with the same bands. Raises DataError where files are missing or cut.
    """

    def __init__(self, root: str | os.PathLike[str], modalities: Sequence[Modality]):
        self.folder, self.name = find(root)
        self.path = self.folder / f"{self.name}{INDEX}"
        self.modalities = tuple(modalities)
        self.index = read_index(self.folder, self.name)
        self.tile_px, self.length = self.index.tile_px, self.index.tiles
        self.record = self.index.record
        self._stored = {m.name: _matching(m, self.index.modalities, self.path) for m in modalities}
        self.kinds = {n: (len(s.bands), s.dtype, float(s.missing)) for n, s in self._stored.items()}
        # Index of a product in the pack -> its index in the modality as it is asked for, -1 without statistics.
        self._products = {
            m.name: np.array([m.products.index(p) if p in m.products else -1 for p in self._stored[m.name].products])
            for m in modalities
        }
        self._place = {name: place for place, name in enumerate(self.index.modalities)}
        for number in range(len(self.index.shards)):
            self._check_shard(number)
        self._files: dict[int, BinaryIO] = {}
        self._owner = os.getpid()

    def read(self, rows: Sequence[int]) -> Batch:
        """See `Tiles.read`; one contiguous read per tile."""
        buffers = Buffers(len(rows), self.tile_px, self.kinds)
        kinds = np.empty((len(rows), len(self._place)), np.uint8)
        runs = self._runs({**buffers.values, PRODUCTS: kinds})
        for place, row in enumerate(rows):
            self._read_tile(row, [(offset, part[place]) for offset, part in runs])
        products = {}
        for name, known in self._products.items():
            chosen = kinds[:, self._place[name]]
            if (chosen >= len(known)).any():
                row = rows[int(np.argmax(chosen >= len(known)))]
                raise DataError(f"'{self.path}', row {row}: the tile is of no product of '{name}'; pack again.")
            products[name] = known[chosen]
        batch = buffers.batch(products)
        for name, found in products.items():
            if (found < 0).any():
                found[~batch[name].valid.flatten(1).any(dim=1).numpy()] = 0  # of a tile without a pixel, any would do
            if (found < 0).any():
                self._without_statistics(name, rows, found, kinds)
        return batch

    def tile_id(self, row: int) -> str:
        """The name of a tile."""
        return self._facts()[row]["tile_id"].decode(errors="replace")

    def places(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Latitude and longitude in degrees."""
        facts = self._facts()[rows]
        if not np.isfinite(facts["lat"]).all():
            raise DataError(f"'{self.path}': the packed file had no 'lat' and 'lon', which a split by blocks needs.")
        return facts["lat"], facts["lon"]

    def close(self) -> None:
        """Close the shards; the next read opens them again."""
        for file in self._files.values():
            file.close()
        self._files = {}

    def check(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Compare the checksum of every file with the index; raises DataError naming the first that differs."""
        files = [(shard_name(self.name, i), shard.sha256) for i, shard in enumerate(self.index.shards)]
        files.append((f"{self.name}{TILES}", self.index.tiles_sha256))
        for done, (file, expected) in enumerate(files, 1):
            found = checksum(self.folder / file)
            if found != expected:
                raise DataError(
                    f"'{self.folder / file}' is damaged: its SHA-256 is {found[:12]}..., expected {expected[:12]}.... "
                    "Delete the file and pack again with the same options; only that file is written anew."
                )
            if progress:
                progress(done, len(files))

    def _runs(self, parts: Mapping[str, np.ndarray]) -> list[tuple[int, np.ndarray]]:
        """Where the wanted fields begin within a record, in the order of the file."""
        assert self.record.fields is not None
        return sorted(((self.record.fields[name][1], part) for name, part in parts.items()), key=lambda run: run[0])

    def _read_tile(self, row: int, runs: Sequence[tuple[int, np.ndarray]]) -> None:
        if not 0 <= row < self.length:
            raise DataError(f"'{self.path}': row {row} is none of its {self.length} tiles.")
        number, place = divmod(row, self.index.tiles_per_shard)
        start = self.index.shards[number].header + place * self.record.itemsize
        try:
            file, position = self._file(number), -1
            for offset, part in runs:
                if start + offset != position:
                    file.seek(start + offset)
                if file.readinto(part.data) != part.nbytes:  # type: ignore[attr-defined]
                    raise UnreadError(f"'{self._shard(number)}' ends within row {row}, it is cut; pack again.")
                position = start + offset + part.nbytes
        except OSError as error:
            raise UnreadError(f"'{self._shard(number)}', row {row} cannot be read: {error}.") from error

    def _file(self, number: int) -> BinaryIO:
        if self._owner != os.getpid():  # a file position is shared with the process that opened it
            self._files, self._owner = {}, os.getpid()
        if number not in self._files:
            path = self._shard(number)
            # Through a URL a block holds one tile: what comes after it is not what is read next.
            remote = {"block_size": self.record.itemsize} if hasattr(path, "fs") else {"buffering": 0}
            self._files[number] = path.open("rb", **remote)  # type: ignore[call-overload]
        return self._files[number]

    def _shard(self, number: int) -> Path:
        return self.folder / shard_name(self.name, number)

    def _check_shard(self, number: int) -> None:
        """A shard must be there, and of the length that the index says."""
        path, shard = self._shard(number), self.index.shards[number]
        expected = shard.header + shard.tiles * self.record.itemsize
        found = path.stat().st_size if path.is_file() else 0
        if found != expected:
            raise DataError(
                f"'{path}' holds {found} bytes, expected {expected}; delete it and pack again with the same options, "
                "only that file is written anew."
            )

    def _facts(self) -> np.ndarray:
        path = self.folder / f"{self.name}{TILES}"
        try:
            if hasattr(path, "fs"):
                with path.open("rb") as file:
                    facts = np.load(io.BytesIO(file.read(2 * self.length * TILE.itemsize)))
            else:
                facts = np.load(path, mmap_mode="r")
        except Exception as error:  # damaged headers make numpy raise nearly anything
            raise DataError(f"'{path}' cannot be read: {error}. Delete it and pack again.") from error
        if facts.dtype != TILE or facts.shape != (self.length,):
            raise DataError(f"'{path}' holds {facts.dtype} {facts.shape}, expected {self.length} tiles; pack again.")
        return facts

    def _without_statistics(self, name: str, rows: Sequence[int], products: np.ndarray, kinds: np.ndarray) -> None:
        place = int(np.argmax(products < 0))
        product = self._stored[name].products[kinds[place, self._place[name]]]
        raise StatisticsError(
            f"'{self.path}', row {rows[place]}: the tile is of product {product}, of which '{name}' has no statistics."
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}


def read_index(folder: Path, name: str) -> Index:
    """The index of a pack; raises DataError where it is none, or is of another format."""
    path = folder / f"{name}{INDEX}"
    index = parse_index(read_json(folder, name, "pack"), path)
    if [shard.tiles for shard in index.shards] != index.sizes:
        raise DataError(f"'{path}' makes no sense (shards do not add up to {index.tiles} tiles); pack again.")
    return index


def parse_index(content: Any, path: Path) -> Index:
    """An index from JSON; raises DataError. path: where it was read, for the message."""
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else None
        raise DataError(f"'{path}' has format {found!r}, expected {FORMAT}; pack again with this version.")
    try:
        entries = {key: value for key, value in content.items() if key != "format"}
        entries["modalities"] = {name: Stored(**stored) for name, stored in entries["modalities"].items()}
        entries["shards"] = [Shard(**shard) for shard in entries["shards"]]
        return Index(**entries)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise DataError(f"'{path}' makes no sense ({error}); was it cut or edited? Pack again.") from error


def shard_name(name: str, number: int) -> str:
    """The file of a shard."""
    return f"{name}_{number:05d}.npy"


def _matching(modality: Modality, stored: Mapping[str, Stored], path: Path) -> Stored:
    if modality.name not in stored:
        raise DataError(
            f"'{path}' has no '{modality.name}'; it holds {', '.join(stored)}. Leave the modality out of model.inputs "
            "and model.targets, or pack again with it."
        )
    found = stored[modality.name]
    if found.bands != modality.bands:
        raise DataError(
            f"'{path}': '{modality.name}' has the bands {', '.join(found.bands)}, expected "
            f"{', '.join(modality.bands)}; pack again."
        )
    return found


def checksum(path: Path) -> str:
    """The SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def open_tiles(root: str | os.PathLike[str], modalities: Sequence[Modality]) -> Tiles:
    """The data set at `root`: a packed copy, or one in the MMEarth layout."""
    folder, name = find(root)
    if (folder / f"{name}{INDEX}").is_file():
        return Packed(root, modalities)
    from multimae_eo.data.mmearth import MMEarth

    return MMEarth(root, modalities)
