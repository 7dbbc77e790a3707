"""Writes small fake GEO-Bench v1 sets in the original layout: keys, types, pickled labels, statistics, partitions."""

import json
import pickle
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import h5py
import numpy as np

from multimae_eo.data.geobench import GeoBench
from multimae_eo.data.geobench_sets import SETS, GeoBenchSet, Layer

NO_DATA_CLASS = ("m-cashew-plant", "m-SA-crop-type")

FRACTIONS = ("0.01", "0.02", "0.05", "0.10", "0.20", "0.50", "1.00")

# What the original files hold besides the bands that are read: key -> type. Sizes as the bands, but for the cube.
EXTRAS = {
    "m-so2sat": {
        **dict.fromkeys(("01 - VH.Real", "02 - VH.Imaginary", "03 - VV.Real", "04 - VV.Imaginary"), "float32"),
        **dict.fromkeys(("07 - VH.LEE Filtered.Real", "08 - VV.LEE Filtered.Imaginary"), "float32"),
    },
    "m-brick-kiln": dict.fromkeys(("10 - SWIR - Cirrus", "11 - SWIR", "12 - SWIR"), "float64"),
    "m-cashew-plant": {"Cloud Probability": "float32"},
    "m-SA-crop-type": {"Cloud Probability": "int16"},
    "m-NeonTree": {"Neon": "int16"},
}
DATES = {"m-cashew-plant": "2019-11-15", "m-forestnet": "2016-01-01", "m-nz-cattle": "2018-01-01"}
TYPES = {
    "m-eurosat": "int16",
    "m-so2sat": "float32",
    "m-bigearthnet": "float32",
    "m-brick-kiln": "float64",
    "m-cashew-plant": "float32",
    "m-SA-crop-type": "int16",
    "m-chesapeake": "float32",
}
EIGHT_BIT = ("m-forestnet", "m-pv4ger", "m-SA-crop-type", "m-pv4ger-seg", "m-nz-cattle", "m-NeonTree")


def sample_ids(name: str, count: int) -> list[str]:
    """Ids as the set has them, with the dots and commas that its own have."""
    patterns = {
        "m-forestnet": "-{i}.6655276613404206_128.1211044868538_2016_01_01",
        "m-pv4ger": "5.8955{i:04d},51.01899493",
        "m-pv4ger-seg": "5.8955{i:04d},51.01899493",
        "m-brick-kiln": "examples_0_{i}",
        "m-SA-crop-type": "ref_south_africa_crops_competition_v1_train_labels_{i:04d}_0",
    }
    return [patterns.get(name, "id_{i:04d}").format(i=i) for i in range(count)]


def file_key(name: str, key: str) -> str:
    return f"{key}_{DATES[name]}" if name in DATES else key


def type_of(described: GeoBenchSet, layer: Layer) -> str:
    if layer.band == "chm" or layer.band in ("VV", "VH"):
        return "float32"
    if described.name.startswith("synthetic"):
        return "int16"
    return TYPES.get(described.name, "uint8")


def write_set(
    root: Path,
    name: str,
    *,
    train: int = 6,
    valid: int = 3,
    test: int = 3,
    seed: int = 0,
    size: int | None = None,
    original_globals: bool = False,
    no_data: bool = True,
) -> Path:
    """Write the set below `root` and return its folder.

    Classes take turns, so that every class occurs in every split that is long enough, and bands depend on the class a
    little. size: edge in pixels, the set's own without it. original_globals: pickle labels with classes of the
    original packages. no_data: the first pixel of every band that can have none has none.
    """
    described = SETS[name]
    folder = root / described.folder / name
    folder.mkdir(parents=True)
    ids = sample_ids(name, train + valid + test)
    splits = {"train": ids[:train], "valid": ids[train : train + valid], "test": ids[train + valid :]}
    sums: dict[str, list[np.ndarray]] = {}
    random = np.random.default_rng(seed)
    for split, members in splits.items():
        for i, sample_id in enumerate(members):
            arrays, label = draw_image(random, described, i, size or described.size_px, no_data=no_data)
            write_image(folder / f"{sample_id}.hdf5", arrays, label, original_globals=original_globals)
            if split == "train":
                for key, array in arrays.items():
                    sums.setdefault(key, []).append(array)
    write_statistics(folder, described, sums)
    write_partitions(folder, splits)
    return folder


def draw_image(
    random: np.random.Generator, described: GeoBenchSet, index: int, size: int, *, no_data: bool
) -> tuple[dict[str, np.ndarray], Any]:
    """The arrays of a file by key, with a mask among them, and the label that goes into the pickle (or None)."""
    classes, name = len(described.classes), described.name
    block = max(1, size // 8)
    y, x = np.mgrid[:size, :size] // block
    codes = (x + y + index) % classes if described.task == "segmentation" else np.full((size, size), index % classes)
    arrays = {}
    for layer in described.layers:
        shade = 0.4 * codes / classes + 0.6 * random.random((size, size))
        raw = to_numbers(shade, described, layer).astype(type_of(described, layer))
        if no_data and layer.no_data is not None:
            raw[0, 0] = layer.no_data
        arrays[file_key(name, layer.key)] = raw
    for key, kind in EXTRAS.get(name, {}).items():
        shape = (max(1, size // 10), max(1, size // 10), 5) if key == "Neon" else (size, size)
        arrays[file_key(name, key)] = random.integers(8, 255, shape).astype(kind)
    if described.task == "segmentation":
        key = file_key(name, "label") if name == "m-nz-cattle" else "label"
        arrays[key] = codes.astype("int64" if name == "m-chesapeake" else "int16")
        return arrays, None
    if described.task == "multilabel":
        return arrays, [int(c % 3 == index % 3) for c in range(classes)]
    return arrays, index % classes


def to_numbers(shade: np.ndarray, described: GeoBenchSet, layer: Layer) -> np.ndarray:
    """Numbers of the size that the set's own have, from ones between 0 and 1."""
    if layer.band == "chm":
        return 30 * shade
    if layer.band == "dem":
        return 200 + 900 * shade
    if layer.band in ("VV", "VH"):
        decibel = -20 + 15 * shade
        return 10 ** (decibel / 10) if layer.decibel else decibel
    if described.name in EIGHT_BIT:
        return 10 + 200 * shade
    if described.name in ("m-chesapeake", "m-so2sat"):
        return 0.05 + 0.5 * shade
    return 500 + 3000 * shade


def write_image(path: Path, arrays: dict[str, np.ndarray], label: Any, *, original_globals: bool = False) -> None:
    with h5py.File(path, "w") as file:
        for key, array in arrays.items():
            file.create_dataset(key, data=array)
        file.attrs["pickle"] = str(pickled(list(arrays), label, original_globals=original_globals))


def pickled(keys: Sequence[str], label: Any, *, original_globals: bool = False) -> bytes:
    with original_classes() as (band, affine, crs):
        content: dict[str, Any] = {} if label is None else {"label": label}
        for key in keys:
            content[key] = {"date": None, "date_id": None, "spatial_resolution": 10, "meta_info": None}
            if original_globals:
                content[key] |= {"band_info": band(key), "transform": affine(10.0, 0.0, 0.0), "crs": crs(4326)}
        content["bands_order"] = list(keys)
        return pickle.dumps(content, protocol=4)


@contextmanager
def original_classes() -> Iterator[list[type]]:
    """Classes that are pickled under the names which the published files have, whether or not these are installed."""

    def keep(self: Any, *args: Any) -> None:
        self.args = args

    found: list[type] = []
    modules: dict[str, Any] = {}
    for home, name in (("geobench.dataset", "Sentinel2"), ("affine", "Affine"), ("rasterio.crs", "CRS")):
        made = type(name, (), {"__init__": keep, "__module__": home, "__qualname__": name})
        modules[home] = types.ModuleType(home)
        setattr(modules[home], name, made)
        found.append(made)
    modules |= {parent: types.ModuleType(parent) for parent in ("geobench", "rasterio")}
    with mock.patch.dict(sys.modules, modules):
        yield found


def write_statistics(folder: Path, described: GeoBenchSet, arrays: dict[str, list[np.ndarray]]) -> None:
    """As the original, for keys without dates, of what is valid."""
    dates = f"_{DATES.get(described.name, '')}"
    missing = {file_key(described.name, layer.key): layer.no_data for layer in described.layers}
    table = {}
    for key, drawn in arrays.items():
        values = np.concatenate([a.ravel() for a in drawn]).astype(np.float64)
        values = values[np.isfinite(values) & (values != missing.get(key))]
        table[key.removesuffix(dates)] = {
            **{"min": values.min(), "max": values.max(), "mean": values.mean(), "std": values.std()},
            **{"median": float(np.median(values)), "percentile_1": float(np.percentile(values, 1))},
        }
    (folder / "band_stats.json").write_text(json.dumps(table, indent=1))


def write_partitions(folder: Path, splits: dict[str, list[str]]) -> None:
    (folder / "default_partition.json").write_text(json.dumps(splits))
    for fraction in FRACTIONS:
        kept = max(1, round(float(fraction) * len(splits["train"])))
        reduced = {**splits, "train": splits["train"][:kept]}
        (folder / f"{fraction}x_train_partition.json").write_text(json.dumps(reduced))


def opened(root: Path, name: str, **options: Any) -> GeoBench:
    """The set, without its class 0 where that means no data."""
    if name in NO_DATA_CLASS:
        options.setdefault("ignore_class0", True)
    return GeoBench(root, name, **options)


def image(folder: Path, split: str = "train", index: int = 0) -> tuple[str, Path]:
    """Id and file of an image."""
    ids = json.loads((folder / "default_partition.json").read_text())[split]
    return ids[index], folder / f"{ids[index]}.hdf5"


def edit(path: Path, change: Callable[[h5py.File], Any]) -> None:
    with h5py.File(path, "r+") as file:
        change(file)


def relabel(folder: Path, label: Any) -> str:
    """Give the first image another pickled label; returns its id."""
    sample_id, path = image(folder)
    with h5py.File(path) as file:
        arrays = {key: file[key][()] for key in file}
    write_image(path, arrays, label)
    return sample_id
