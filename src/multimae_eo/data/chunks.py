"""Reads HDF5 arrays of one chunk per tile: stored bytes straight from the file, inflated by ISA-L."""

from typing import Any

import h5py
import numpy as np

from multimae_eo.data.hdf5 import NOT_STORED, inflated, read, size_of


class TileChunks:
    """The tiles of an array, one chunk each; `tiles[row]` is one of them, as `dataset[row]` would give it.

    Chunks that are deflated or stored plainly are read past HDF5's filters, which are slower; any other
    layout is left to HDF5. The array is read-only. Raises what h5py does (OSError, ValueError, IndexError), and OSError
    where a tile claims to be too large, or inflates to more than it claims.
    """

    def __init__(self, dataset: h5py.Dataset):
        self.dataset, self.shape, self.dtype = dataset, dataset.shape[1:], dataset.dtype
        stored = dataset.id.get_create_plist()
        filters = [stored.get_filter(i)[0] for i in range(stored.get_nfilters())]
        self.direct = dataset.chunks == (1, *self.shape) and filters in ([], [h5py.h5z.FILTER_DEFLATE])
        self.deflated, self.bytes = bool(filters), size_of(dataset, self.shape)
        self.rest = (0,) * len(self.shape)

    def __getitem__(self, row: int) -> Any:
        if not self.direct:
            return self._through_hdf5(row)
        try:
            skipped, stored = self.dataset.id.read_direct_chunk((row, *self.rest))
        except NOT_STORED:
            return self._through_hdf5(row)  # a chunk that was never written, or an error that h5py explains better
        if skipped:
            return self._through_hdf5(row)
        content = inflated(stored, self.bytes) if self.deflated else stored
        if len(content) != self.bytes:
            raise OSError(f"the chunk holds {len(content)} bytes, expected {self.bytes}")
        return np.frombuffer(content, self.dtype).reshape(self.shape)[()]

    def _through_hdf5(self, row: int) -> Any:
        if not -len(self.dataset) <= row < len(self.dataset):
            raise IndexError(f"there are {len(self.dataset)} rows")
        row %= len(self.dataset)
        return read(self.dataset, (slice(row, row + 1), *(slice(0, n) for n in self.shape)))[0]
