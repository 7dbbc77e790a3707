"""Opens HDF5 files that a stranger may have written: no other file is followed, and nothing is as large as it claims.

HDF5 itself follows links to other files, keeps arrays in raw files beside it or puts them together from others, and
inflates whatever a chunk holds.
"""

import math
import mmap
import os
import struct
from collections.abc import Iterator
from typing import Any

import h5py
import numpy as np
from isal import igzip_lib

from multimae_eo.errors import DataError, UnreadError

# Bytes of one tile, image or chunk in memory: 13 bands of 2,048 px are 109 MB, and MMEarth's tiles are 64 or 128 px.
LARGEST = 1 << 28
MOST_TILES = 1 << 25  # of a data set; MMEarth has 1.2 million
_HEAP = b"GCOL\x01\0\0\0"  # how a heap of texts begins
_MANY = 1_000  # chunks of one read that are not looked at one by one
_RATIO = 1032  # the largest of deflate
_HARMLESS = 1 << 20  # bytes that a chunk may inflate to, whatever it should
NOT_STORED = (OSError, RuntimeError, ValueError, OverflowError, MemoryError)  # what h5py says of a chunk without bytes


def open_hdf5(path: str | os.PathLike[str]) -> h5py.File:
    """An HDF5 file to read, which holds all of its arrays itself; raises DataError."""
    try:
        file = h5py.File(path, "r")
    except (OSError, RuntimeError, ValueError) as error:
        raise UnreadError(f"'{path}' cannot be read as HDF5, it may be truncated: {error}. Fetch it again.") from error
    try:
        wrong = file.visititems_links(lambda name, link: _elsewhere(file, name, link))
    except Exception as error:  # damaged groups make h5py raise nearly anything
        wrong = f"the list of its arrays cannot be read ({error})"
    if wrong is not None:
        file.close()
        raise DataError(
            f"'{path}': {wrong}; expected every array within the file. Nothing else was opened. Fetch it anew, or copy "
            "what you trust into one file: h5py's File.copy with expand_external."
        )
    return file


def _elsewhere(file: h5py.File, name: str, link: Any) -> str | None:
    """Where the numbers of an array are, if not in the file; h5py does not bear an error that is raised here."""
    try:
        if isinstance(link, h5py.ExternalLink):
            return f"'{name}' is a link to '{link.path}' of the file '{link.filename}'"
        if isinstance(link, h5py.SoftLink):
            return f"'{name}' is a link to '{link.path}'"
        found = file[name]
        if isinstance(found, h5py.Dataset) and found.is_virtual:
            return (
                f"'{name}' is put together from others ({', '.join(s.file_name for s in found.virtual_sources()[:3])})"
            )
        if isinstance(found, h5py.Dataset) and found.external:
            return f"'{name}' is kept in the file '{found.external[0][0]}'"
    except Exception as error:  # damaged arrays, too
        return f"'{name}' cannot be read, it may be damaged ({error})"
    return None


def check_heaps(path: str | os.PathLike[str]) -> None:
    """Raise DataError for a store of texts in which HDF5 would never come to an end; looks through the whole file."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        start = content.find(_HEAP)
        while start >= 0:
            (size,) = struct.unpack_from("<Q", content, start + 8) if start + 16 <= len(content) else (0,)
            place, end = start + 16, min(start + size, len(content))
            while place + 16 <= end:
                number, _, length = struct.unpack_from("<HHxxxxQ", content, place)
                step = length if number == 0 else 16 + -(-length // 8) * 8
                if step < 16:
                    raise DataError(f"'{path}' is damaged at byte {place}: a text of {length} bytes in a heap.")
                place += step
            start = content.find(_HEAP, start + 4)


def size_of(dataset: h5py.Dataset, shape: tuple[int, ...]) -> int:
    """Bytes of a part of an array; raises OSError where it, or one of the chunks it comes from, is too large."""
    part, chunk = (dataset.dtype.itemsize * math.prod(edges) for edges in (shape, dataset.chunks or ()))
    if max(part, chunk) > LARGEST:
        what = f"a part of it, {list(shape)}," if part > LARGEST else f"its chunks {list(dataset.chunks)}"
        raise OSError(f"{what} would take {max(part, chunk):.4g} bytes, expected at most {LARGEST}")
    return part


def read(dataset: h5py.Dataset, part: tuple[slice, ...] | None = None) -> Any:
    """What `dataset[part]` gives, all of it by default; raises OSError where it claims or inflates to too much."""
    part = part or tuple(slice(0, length) for length in dataset.shape)
    shape = tuple(len(range(*s.indices(n))) for s, n in zip(part, dataset.shape, strict=True))
    size_of(dataset, shape)
    _check_chunks(dataset, part)
    step = _MANY * dataset.chunks[0] if dataset.chunks else 0
    if not step or shape[0] <= step or part[0].step not in (None, 1):
        return dataset[part]
    whole, first = np.empty(shape, dataset.dtype), part[0].indices(len(dataset))[0]
    for row in range(0, shape[0], step):  # HDF5 takes several kB of memory for each chunk of a read
        whole[row : row + step] = dataset[slice(first + row, first + min(row + step, shape[0])), *part[1:]]
    return whole


def _check_chunks(dataset: h5py.Dataset, part: tuple[slice, ...]) -> None:
    """Inflate the chunks of a part up to the size they should have; HDF5 would go on to whatever they hold."""
    stored = dataset.id.get_create_plist()
    filters = [stored.get_filter(i)[0] for i in range(stored.get_nfilters())]
    if h5py.h5z.FILTER_DEFLATE not in filters or 0 in dataset.shape:
        return
    place = filters.index(h5py.h5z.FILTER_DEFLATE)
    if any(f != h5py.h5z.FILTER_FLETCHER32 for f in filters[place + 1 :]):
        raise OSError("it is compressed more than once; expected gzip alone, or after a shuffle")
    room = size_of(dataset, dataset.chunks) + 4 * place  # a checksum
    for corner in _corners(dataset, part, room):
        try:
            skipped, content = dataset.id.read_direct_chunk(corner)
        except NOT_STORED:
            continue  # a chunk that was never written, or an error that h5py explains better
        if not skipped >> place & 1:
            inflated(content, room)


def _corners(dataset: h5py.Dataset, part: tuple[slice, ...], room: int) -> Iterator[tuple[int, ...]]:
    """Where the chunks of a part begin; where these are many, of those that could inflate to too much."""
    ends = [s.indices(length)[:2] for s, length in zip(part, dataset.shape, strict=True)]
    number = math.prod((b - 1) // c - a // c + 1 for (a, b), c in zip(ends, dataset.chunks, strict=True))
    if number > MOST_TILES:
        raise OSError(f"it is cut into {number:,} chunks, expected at most {MOST_TILES:,}")
    if number <= _MANY:
        for piece in dataset.iter_chunks(part):
            yield tuple(s.start // edge * edge for s, edge in zip(piece, dataset.chunks, strict=True))
        return
    suspects: list[tuple[int, ...]] = []

    def note(chunk: Any) -> None:
        if chunk.size * _RATIO > max(room, _HARMLESS):
            suspects.append(chunk.chunk_offset)

    try:
        dataset.id.chunk_iter(note)
    except (RuntimeError, ValueError) as error:
        raise OSError(f"the list of its chunks is damaged ({error})") from error
    yield from suspects


def inflated(stored: bytes, most: int) -> bytes:
    """The content of a deflated chunk; raises OSError where it is damaged, or is of more than `most` bytes."""
    try:
        content = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_ZLIB).decompress(stored, most + 1)
    except (igzip_lib.error, EOFError) as error:  # type: ignore[misc]
        raise OSError(f"the chunk cannot be inflated ({error})") from error
    if len(content) > most:
        raise OSError(f"the chunk holds more than {most} bytes")
    return content
