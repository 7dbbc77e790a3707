"""Reads GEO-Bench v1 sets, with the names of their bands and classes corrected, and without unpickling anything.

Source: GEO-Bench (Lacoste et al., NeurIPS 2023), folders classification_v1.0 and segmentation_v1.0; and the labelled
sets that the synthetic world writes in the same layout. What each set holds is in `geobench_sets`.
"""

import ast
import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from multimae_eo import documents
from multimae_eo.data import inert_pickle
from multimae_eo.data.geobench_sets import SETS, GeoBenchSet, Layer
from multimae_eo.data.hdf5 import check_heaps, open_hdf5
from multimae_eo.data.hdf5 import read as read_array
from multimae_eo.data.labelled import SPLITS, Description, Label, Sample, SplitName, check_class, check_ids, check_mask
from multimae_eo.errors import ConfigError, DataError, MultiMAEError, StatisticsError, UnknownNameError, shown

DEFAULT_PARTITION = "default"
PARTITIONS = (DEFAULT_PARTITION, "0.01x", "0.02x", "0.05x", "0.10x", "0.20x", "0.50x", "1.00x")
PARTITION_LAYOUT = '{"train": [ids], "valid": [ids], "test": [ids]}'

# As many as GEO-Bench itself took for its band_stats.json.
_MEASURED_IMAGES = 1000
_LONGEST_PICKLE = 1 << 24  # characters; those of GEO-Bench have some 10,000
_DATE = re.compile(r"_(\d{4}-\d{2}-\d{2}.*)")


class GeoBench:
    """One set of GEO-Bench v1; implements `labelled.Labelled`.

    root: the folder that holds classification_v1.0 and segmentation_v1.0 ($GEO_BENCH_DIR), or the set's own folder.
    partition: "default", or a fraction of the training split ("0.01x" to "1.00x").
    ignore_class0: for sets where class 0 means no data, whether such pixels are left out; None for all others.
    look: into one image, so that a wrong folder is found at once, and for the note on files of several dates.
    Raises UnknownNameError, ConfigError, or DataError where files are missing or splits overlap (see `allow_leaks`).
    No file stays open, so that any process may read.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        name: str,
        *,
        partition: str = DEFAULT_PARTITION,
        ignore_class0: bool | None = None,
        allow_leaks: bool = False,
        look: bool = True,
    ):
        if name not in SETS:
            raise UnknownNameError("GEO-Bench set", name, SETS)
        if partition not in PARTITIONS:
            raise UnknownNameError("partition", partition, PARTITIONS)
        self.set = SETS[name]
        self.ignore_class0 = ignore_class0
        choice = _choice(self.set, ignore_class0)
        self.folder = find(root, self.set)
        self.ids: Mapping[SplitName, tuple[str, ...]] = self._read_ids(partition, allow_leaks=allow_leaks)
        notes = (*self.set.notes, *choice, *(self._notes_of_dates() if look else ()))
        if partition != DEFAULT_PARTITION:
            notes += (f"training split reduced to partition {partition}",)
        bands = tuple(layer.band for layer in self.set.layers)
        classes = self.set.classes[1:] if ignore_class0 else self.set.classes
        self.about = Description(name, self.set.task, bands, classes, products=self.set.products, notes=notes)

    def _read_ids(self, partition: str, *, allow_leaks: bool) -> dict[SplitName, tuple[str, ...]]:
        path = self.folder / _partition_file(partition)
        if not path.is_file():
            found = sorted(p.name for p in self.folder.glob("*_partition.json"))
            raise DataError(
                f"'{path}' is missing; it says which images are for training. The folder has "
                f"{', '.join(found) or 'no partition file'}. Choose another data.partition, or fetch the set anew."
            )
        content = _read_json(path)
        if not isinstance(content, dict) or not all(_are_ids(content.get(split)) for split in SPLITS):
            raise DataError(f"'{path}': expected {PARTITION_LAYOUT}, with ids as text. Fetch the file anew.")
        ids = {split: tuple(content[split]) for split in SPLITS}
        present = set(os.listdir(self.folder))
        # Ids contain dots and commas, so a path is built from them and never taken apart.
        absent = [i for split in SPLITS for i in ids[split] if f"{i}.hdf5" not in present]
        if absent:
            total = sum(len(ids[split]) for split in SPLITS)
            raise DataError(
                f"'{path}' names {len(absent)} of {total} images that are not in the folder, the first "
                f"'{absent[0]}.hdf5'. Unpack all of the set's files there, or take a partition of those that are there."
            )
        check_ids(ids, f"'{path}'", allow_leaks=allow_leaks)
        return ids

    def _notes_of_dates(self) -> tuple[str, ...]:
        """Whether the first image holds several dates."""
        with self._open(self.ids["train"][0]) as (file, where):
            _, dates = _choose(self.set.layers, tuple(file), where)
        return ("of several dates in a file, the first is read",) if len(dates) > 1 else ()

    @contextmanager
    def _open(self, sample_id: str) -> Iterator[tuple[h5py.File, str]]:
        path = self.folder / f"{sample_id}.hdf5"
        if not path.is_file():
            raise DataError(f"'{path}' is missing; the set '{self.set.name}' has no image '{sample_id}'.")
        try:
            with open_hdf5(path) as file:
                yield file, f"'{path}'"
        except MultiMAEError:
            raise
        except Exception as error:  # damaged bytes make h5py raise nearly anything
            raise DataError(
                f"'{path}' cannot be read as HDF5, it may be truncated: {error}. Fetch it again."
            ) from error

    def read(self, sample_id: str) -> Sample:
        """One image in the package's units where the set's are a multiple of them; values that are none become 0."""
        with self._open(sample_id) as (file, where):
            keys, _ = _choose(self.set.layers, tuple(file), where)
            arrays = {
                layer.band: _array(file, keys[layer.band], where) for layer in self.set.layers if keys[layer.band]
            }
            size = self._size(arrays, keys, where)
            channels = [_channel(layer, arrays.get(layer.band), size) for layer in self.set.layers]
            label = self._label(file, where, size)
        values, valid = zip(*channels, strict=True)
        return Sample(np.stack(values), np.stack(valid), label)

    def label(self, sample_id: str) -> Label:
        """The label alone."""
        with self._open(sample_id) as (file, where):
            return self._label(file, where, None)

    def _size(self, arrays: Mapping[str, np.ndarray], keys: Mapping[str, str], where: str) -> tuple[int, int]:
        """Height and width, which all bands that are not optional must share."""
        needed = [layer.band for layer in self.set.layers if not layer.optional]
        shape = arrays[needed[0]].shape
        for band in needed:
            if arrays[band].shape != shape or len(shape) != 2:
                raise DataError(
                    f"{where}: '{keys[band]}' is {_pixels(arrays[band])}, '{keys[needed[0]]}' is "
                    f"{_pixels(arrays[needed[0]])}; expected one image [height, width] of one size per band. Resample "
                    "them to one grid; nothing is resampled here."
                )
        return shape

    def _label(self, file: h5py.File, where: str, size: tuple[int, int] | None) -> Label:
        if self.set.task == "segmentation":
            return self._mask(file, where, size)
        value, classes = _pickled_label(file, where), len(self.set.classes)
        if self.set.task == "multilabel":
            return Label(_multi_hot(value, classes, where), np.array(True))
        return Label(np.array(check_class(value, classes, where), np.int64), np.array(True))

    def _mask(self, file: h5py.File, where: str, size: tuple[int, int] | None) -> Label:
        keys = sorted(key for key in file if key.startswith("label"))
        if not keys:
            raise DataError(f"{where} has no array 'label'; it has {', '.join(file) or 'none'}.")
        codes = _array(file, keys[0], where)
        known = codes != 0 if self.ignore_class0 else np.ones(codes.shape, bool)
        if size is None and codes.ndim == 2:
            size = codes.shape
        label = check_mask(codes, known, len(self.set.classes), size or codes.shape[-2:], f"{where}, '{keys[0]}'")
        if not self.ignore_class0:
            return label
        return Label(np.where(known, label.values - 1, 0), known)  # the others are counted from 0

    def statistics(self) -> Mapping[str, tuple[float, float]]:
        """From band_stats.json, under the corrected names and in the units of `read`.

        Decibels are not linear in intensities, so bands that become decibels are measured, on up to 1000 images of the
        training split. A band that is optional may have none. Raises StatisticsError.
        """
        path = self.folder / "band_stats.json"
        if not path.is_file():
            raise StatisticsError(f"'{path}' is missing; the means and deviations of the bands come from it.")
        table = _read_json(path)
        if not isinstance(table, dict):
            raise StatisticsError(f"'{path}': expected an object with 'mean' and 'std' of each band.")
        found = {}
        for layer in self.set.layers:
            entries = [entry for key, entry in table.items() if _date_of(key, layer) is not None]
            if not layer.decibel and (entries or not layer.optional):
                found[layer.band] = _moments(entries, layer, table, path)
        return {**found, **self._measured([layer for layer in self.set.layers if layer.decibel])}

    def _measured(self, layers: Sequence[Layer]) -> dict[str, tuple[float, float]]:
        if not layers:
            return {}
        ids = self.ids["train"]
        chosen = np.unique(np.linspace(0, len(ids) - 1, min(len(ids), _MEASURED_IMAGES)).round().astype(int))
        sums = np.zeros((len(layers), 3))
        for i in chosen:
            with self._open(ids[i]) as (file, where):
                keys, _ = _choose(layers, tuple(file), where)
                for row, layer in zip(sums, layers, strict=True):
                    raw = _array(file, keys[layer.band], where)
                    values, valid = _channel(layer, raw, raw.shape)
                    numbers = values[valid].astype(np.float64)
                    row += (numbers.size, numbers.sum(), np.square(numbers).sum())
        if not sums[:, 0].all():
            raise StatisticsError(
                f"'{self.folder}': no valid pixel of {layers[int(sums[:, 0].argmin())].band} to measure."
            )
        mean = sums[:, 1] / sums[:, 0]
        std = np.sqrt(np.maximum(sums[:, 2] / sums[:, 0] - mean**2, 0))
        return {layer.band: (float(m), float(s)) for layer, m, s in zip(layers, mean, std, strict=True)}

    def fingerprint(self) -> str:
        """Changes with name, choice about class 0, any image file and the statistics; not with the partition."""
        digest = hashlib.sha256(f"{self.set.name} {self.ignore_class0}\n".encode())
        files = {e.name: e.stat() for e in os.scandir(self.folder) if e.name.endswith(".hdf5")}
        for name in sorted(files):
            digest.update(f"{name} {files[name].st_size} {files[name].st_mtime_ns}\n".encode())
        statistics = self.folder / "band_stats.json"
        digest.update(statistics.read_bytes() if statistics.is_file() else b"")
        return digest.hexdigest()[:16]


def find(root: str | os.PathLike[str], described: GeoBenchSet) -> Path:
    """The folder of a set: below `root`, with or without the benchmark's folder between, or `root` itself."""
    root = Path(root)
    places = [root / described.folder / described.name, root / described.name]
    if root.resolve().name == described.name:
        places.append(root)
    for place in places:
        if place.is_dir():
            return place
    raise DataError(
        f"'{places[0]}' is no folder. Expected the folder that holds '{described.folder}', or the folder of the "
        f"set itself, which must be called '{described.name}'; got '{root}'."
    )


def _choice(described: GeoBenchSet, ignore_class0: bool | None) -> tuple[str, ...]:
    """The note about class 0; raises ConfigError where the choice is missing or makes no sense."""
    if not described.class0_is_no_data:
        if ignore_class0 is not None:
            raise ConfigError(
                f"data.ignore_class0 is {ignore_class0}, but '{described.name}' has no class 0 to leave out."
            )
        return ()
    if ignore_class0 is None:
        raise ConfigError(
            f"'{described.name}': class 0 means no data, and scores differ by whether it counts. Set "
            "data.ignore_class0 to true (left out of the loss and of every score) or to false (scored like any class, "
            "as GEO-Bench does)."
        )
    return ("class 0 (no data) is left out" if ignore_class0 else "class 0 (no data) is scored like any class",)


def _partition_file(partition: str) -> str:
    return f"{partition}_partition.json" if partition == DEFAULT_PARTITION else f"{partition}_train_partition.json"


def _read_json(path: Path) -> Any:
    return documents.read_json(path, DataError)


def _are_ids(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(i, str) for i in value)


def _date_of(key: str, layer: Layer) -> str | None:
    """The date behind a key of this band, "" without one; None for a key of anything else."""
    # The canopy height model is spelt with spaces and without them.
    name, wanted = key.replace(" ", ""), layer.key.replace(" ", "")
    if name == wanted:
        return ""
    dated = _DATE.fullmatch(name[len(wanted) :]) if name.startswith(wanted) else None
    return dated[1] if dated else None


def _choose(layers: Sequence[Layer], keys: Sequence[str], where: str) -> tuple[dict[str, str], set[str]]:
    """The key of each band ("" for an optional one that is missing), and the dates of which the first was chosen.

    All bands are of one date, the first that every band has.
    """
    found = {la.band: {date: key for key in keys if (date := _date_of(key, la)) is not None} for la in layers}
    for layer in layers:
        if not found[layer.band] and not layer.optional:
            raise DataError(
                f"{where} has no array '{layer.key}' (band {layer.band}); it has {', '.join(keys) or 'none'}. It "
                "is another set, or damaged."
            )
    dates = [set(found[la.band]) for la in layers if not la.optional and "" not in found[la.band]]
    shared = set.intersection(*dates) if dates else set()
    if dates and not shared:
        raise DataError(f"{where}: no date has all bands; it has {', '.join(keys)}.")
    first = min(shared, default="")
    return {band: dated.get("", dated.get(first, "")) for band, dated in found.items()}, shared


def _array(file: h5py.File, key: str, where: str) -> np.ndarray:
    try:
        array = file[key]
    except (KeyError, RuntimeError) as error:
        raise DataError(f"{where}: '{key}' cannot be read: {error}. Fetch the file anew.") from error
    if not isinstance(array, h5py.Dataset) or array.dtype.kind not in "iufb":
        raise DataError(f"{where}: '{key}' is {getattr(array, 'dtype', 'a group')}; expected an array of numbers.")
    return np.asarray(read_array(array))


def _pixels(array: np.ndarray) -> str:
    return " x ".join(str(n) for n in array.shape) + " px"


def _channel(layer: Layer, raw: np.ndarray | None, size: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Values and validity [h, w] of one band in the units of `read`."""
    if raw is None or raw.shape != size:
        return np.zeros(size, np.float32), np.zeros(size, bool)
    values = raw.astype(np.float32)
    valid = np.isfinite(values)
    if layer.no_data is not None:
        valid &= raw != layer.no_data
    if layer.decibel:
        valid &= values > 0
        values = 10 * np.log10(np.where(valid, values, 1))
    return np.where(valid, values * np.float32(layer.scale), 0).astype(np.float32), valid


def _pickled_label(file: h5py.File, where: str) -> Any:
    """The entry 'label' of the text that is a pickle written as a Python literal."""
    text = None
    check_heaps(file.filename)
    try:
        text = file.attrs.get("pickle")
        data = ast.literal_eval(text) if isinstance(text, str) and len(text) <= _LONGEST_PICKLE else None
    except Exception:  # of damaged bytes h5py and the parser of literals make nearly anything
        data = None
    if not isinstance(data, bytes):
        raise DataError(
            f"{where}: the attribute 'pickle', which holds the label, is {text!r:.60}; expected text like b'...'. "
            "Fetch the file anew."
        )
    content = inert_pickle.loads(data, where)
    if not isinstance(content, dict) or "label" not in content:
        raise DataError(f"{where}: the attribute 'pickle' has no entry 'label'. The file belongs to another task.")
    return content["label"]


def _multi_hot(value: Any, classes: int, where: str) -> np.ndarray:
    plain = isinstance(value, list | tuple) and all(isinstance(v, int | float | np.number) for v in value)
    hot = np.asarray(value, np.float64 if plain else None) if plain or isinstance(value, np.ndarray) else np.zeros(0)
    if hot.shape != (classes,) or hot.dtype.kind not in "iufb" or not np.isin(hot, (0, 1)).all():
        raise DataError(
            f"{where}: the label is {shown(value)}; expected {classes} numbers that are 0 or 1, one per class."
        )
    return hot.astype(np.float32)


def _moments(entries: Sequence[Any], layer: Layer, table: Mapping[str, Any], path: Path) -> tuple[float, float]:
    if not entries:
        raise StatisticsError(f"'{path}' has no entry '{layer.key}' (band {layer.band}); it has {', '.join(table)}.")
    try:
        return float(entries[0]["mean"]) * layer.scale, float(entries[0]["std"]) * layer.scale
    except (KeyError, TypeError, ValueError, OverflowError):
        raise StatisticsError(f"'{path}': entry '{layer.key}' (band {layer.band}) has no 'mean' and 'std'.") from None
