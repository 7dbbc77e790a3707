"""Reads HDF5 arrays of one chunk per tile: stored bytes straight from the file, inflated by ISA-L."""

from typing import Any

import h5py
import numpy as np
from isal import isal_zlib


class TileChunks:
    """The tiles of an array, one chunk each; `tiles[row]` is one of them, as `dataset[row]` would give it.

    Chunks that are deflated or stored plainly are read past HDF5's filters, which are slower; any other
    layout is left to HDF5. The array is read-only. Raises what h5py does (OSError, ValueError, IndexError).
    """

    def __init__(self, dataset: h5py.Dataset):
        self.dataset, self.shape, self.dtype = dataset, dataset.shape[1:], dataset.dtype
        stored = dataset.id.get_create_plist()
        filters = [stored.get_filter(i)[0] for i in range(stored.get_nfilters())]
        self.direct = dataset.chunks == (1, *self.shape) and filters in ([], [h5py.h5z.FILTER_DEFLATE])
        self.deflated, self.bytes = bool(filters), self.dtype.itemsize * int(np.prod(self.shape))
        self.rest = (0,) * len(self.shape)

    def __getitem__(self, row: int) -> Any:
        if not self.direct:
            return self.dataset[row]
        try:
            skipped, stored = self.dataset.id.read_direct_chunk((row, *self.rest))
        except (OSError, RuntimeError, ValueError, OverflowError):
            return self.dataset[row]  # a chunk that was never written, or an error that h5py explains better
        if skipped:
            return self.dataset[row]
        return np.frombuffer(self._inflated(stored), self.dtype).reshape(self.shape)[()]

    def _inflated(self, stored: bytes) -> bytes:
        try:
            content = isal_zlib.decompress(stored, bufsize=self.bytes) if self.deflated else stored
        except isal_zlib.IsalError as error:  # type: ignore[misc]
            raise OSError(f"the chunk cannot be inflated ({error})") from error
        if len(content) != self.bytes:
            raise OSError(f"the chunk holds {len(content)} bytes, expected {self.bytes}")
        return content
