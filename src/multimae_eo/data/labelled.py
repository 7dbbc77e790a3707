"""Labelled data: what every source of it says of itself, and how its bands become the rasters that a model is fed."""

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch

from multimae_eo.config import TaskName
from multimae_eo.errors import ConfigError, DataError, StatisticsError, shown
from multimae_eo.modalities import Categorical, Continuous, MapClass, Modality, Statistics
from multimae_eo.raster import Batch, by_modality

SplitName = Literal["train", "valid", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "valid", "test")

# Colours of classes that have none of their own: Okabe and Ito's, then the rest of Tol's muted set.
_COLORS = (
    *("#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7", "#f0e442", "#000000", "#332288"),
    *("#882255", "#44aa99", "#999933", "#aa4499", "#ddcc77", "#117733", "#88ccee", "#cc6677"),
)


def numbered_classes(names: Sequence[str]) -> tuple[MapClass, ...]:
    """Classes with their indices as codes, in colours that differ."""
    return tuple(MapClass(i, name, _COLORS[i % len(_COLORS)]) for i, name in enumerate(names))


@dataclass(frozen=True)
class Description:
    """What a labelled data set is.

    name: also the product that its own statistics are filed under (docs/design.md, C).
    bands: canonical names of the channels of a sample, in their order.
    classes: in the order of their indices, which are the labels; empty for regression. unit: of a regression's labels.
    products: those of the package's statistics whose units these data have ("L2A", "ASTER"); none: units of their own.
    notes: what was corrected or left out; every result says it.
    """

    name: str
    task: TaskName
    bands: tuple[str, ...]
    classes: tuple[MapClass, ...] = ()
    unit: str = ""
    products: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def dense(self) -> bool:
        """Whether every pixel has a label."""
        return self.task in ("segmentation", "regression")


class Label(NamedTuple):
    """One label and whether it counts.

    values: classification int64 []; multilabel float32 [classes] of 0 and 1; segmentation int64 [h, w]; regression
    float32 [h, w] in the data set's unit. known: bool, [] or [h, w]; where it is False, `values` is anything in range.
    """

    values: np.ndarray
    known: np.ndarray


class Sample(NamedTuple):
    """One image in the data set's own units with its label. values: float32 [c, h, w]; valid: bool [c, h, w]."""

    values: np.ndarray
    valid: np.ndarray
    label: Label


def blank(about: Description, edge: int) -> Sample:
    """A sample of which nothing was measured and no label is known; edge: of its image in pixels."""
    size = (edge, edge)
    shape = size if about.dense else (len(about.classes),) if about.task == "multilabel" else ()
    dtype = np.int64 if about.task in ("classification", "segmentation") else np.float32
    values = np.zeros((len(about.bands), *size), np.float32)
    return Sample(values, values > 0, Label(np.zeros(shape, dtype), np.zeros(size if about.dense else (), bool)))


class Labelled(Protocol):
    """A source of labelled images; reading is by id, so that any process can do it."""

    about: Description
    ids: Mapping[SplitName, tuple[str, ...]]

    def read(self, sample_id: str) -> Sample:
        """One image with its label."""
        ...

    def label(self, sample_id: str) -> Label:
        """The label alone, without reading the image where that is cheaper."""
        ...

    def statistics(self) -> Mapping[str, tuple[float, float]]:
        """Mean and standard deviation of every continuous band over the training split, in the data set's units."""
        ...

    def fingerprint(self) -> str:
        """A short text that changes when what `read` returns may have changed."""
        ...


def check_ids(ids: Mapping[SplitName, Sequence[str]], where: str, *, allow_leaks: bool = False) -> None:
    """Raise DataError for an empty split, an id given twice, or one that is in two splits (unless that is allowed)."""
    seen: dict[str, str] = {}
    for split in SPLITS:
        if not ids.get(split):
            raise DataError(f"{where}: split '{split}' is empty; every split needs at least one sample.")
        sample_id, times = Counter(ids[split]).most_common(1)[0]
        if times > 1:
            raise DataError(f"{where}: split '{split}' names '{sample_id}' more than once.")
        for sample_id in ids[split]:
            other = seen.setdefault(sample_id, split)
            if other != split and not allow_leaks:
                raise DataError(
                    f"{where}: '{sample_id}' is in '{other}' and in '{split}', so the {split} split would leak into "
                    "the other. Remove it from one of them, or set data.allow_leaks to true."
                )


def check_class(value: object, num_classes: int, where: str) -> int:
    """A class index that is a whole number in range; raises DataError."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        raise DataError(f"{where}: the label is {shown(value)}; expected a whole number from 0 to {num_classes - 1}.")
    if not 0 <= value < num_classes:
        raise DataError(
            f"{where}: the label is {shown(int(value))}; expected 0 to {num_classes - 1} ({num_classes} classes)."
        )
    return int(value)


def check_mask(codes: np.ndarray, known: np.ndarray, num_classes: int, size: tuple[int, int], where: str) -> Label:
    """A mask of class indices of the size of its image; unknown pixels become 0. Raises DataError."""
    if codes.shape != size:
        raise DataError(f"{where}: the mask has {codes.shape} pixels, the image {size}; they must be equal.")
    if not np.issubdtype(codes.dtype, np.integer):
        raise DataError(f"{where}: the mask holds {codes.dtype}; expected integers from 0 to {num_classes - 1}.")
    wrong = codes[known & ((codes < 0) | (codes >= num_classes))]
    if wrong.size:
        raise DataError(
            f"{where}: the mask holds {int(wrong[0])}; expected 0 to {num_classes - 1} ({num_classes} classes), or a "
            "value that is declared as no data."
        )
    return Label(np.where(known, codes, 0).astype(np.int64), known)


def absent_bands(about: Description, modalities: Mapping[str, Modality]) -> tuple[str, ...]:
    """Bands of these modalities that the data set lacks; they are fed as invalid channels (docs/design.md, A)."""
    return tuple(band for m in modalities.values() for band in m.bands if band not in about.bands)


def with_own_statistics(
    modalities: Mapping[str, Modality], about: Description, statistics: Mapping[str, tuple[float, float]]
) -> dict[str, Modality]:
    """The modalities with one product more, named like the data set, of its own statistics.

    Absent bands, which never have a valid value, get mean 0 and deviation 1. Raises StatisticsError where a band that
    is there has no finite mean and positive deviation.
    """
    return {name: _with_product(m, about, statistics) for name, m in modalities.items()}


def _with_product(modality: Modality, about: Description, statistics: Mapping[str, tuple[float, float]]) -> Modality:
    if not isinstance(modality, Continuous) or not set(modality.bands) & set(about.bands):
        return modality
    rows = []
    for band in modality.bands:
        mean, std = statistics.get(band, (math.nan, math.nan)) if band in about.bands else (0.0, 1.0)
        if not (math.isfinite(mean) and math.isfinite(std) and std > 0):
            raise StatisticsError(
                f"'{about.name}': band {band} has mean {mean} and standard deviation {std}; both must be finite, and "
                "the deviation positive. Mend the statistics, or leave the modality out of the inputs."
            )
        rows.append((float(mean), float(std)))
    means, stds = zip(*rows, strict=True)
    return dataclasses.replace(modality, statistics={**modality.statistics, about.name: Statistics(means, stds)})


def products_of(
    modalities: Mapping[str, Modality], about: Description, statistics: Literal["dataset", "model"]
) -> dict[str, int]:
    """The product of each modality that these data are read as, as the index in `Raster.product`.

    "dataset": the data set's own (see `with_own_statistics`); "model": the one of the package whose units the data set
    has. Raises ConfigError where it has none of them.
    """
    chosen = {}
    for name, modality in modalities.items():
        wanted = about.products if statistics == "model" else (about.name,)
        found = [modality.products.index(p) for p in wanted if p in modality.products]
        if isinstance(modality, Categorical):
            found = [0]
        if not found:
            raise ConfigError(
                f"'{about.name}' has none of the products of '{name}' ({', '.join(modality.products)}), so the model's "
                "statistics do not fit its units; set data.statistics to dataset."
            )
        chosen[name] = found[0]
    return chosen


def rasters(
    sample: Sample, about: Description, modalities: Mapping[str, Modality], products: Mapping[str, int]
) -> Batch:
    """The rasters of one sample, [c, h, w] on its own 10 m frame; bands that the data set lacks are invalid."""
    values, valid = torch.from_numpy(sample.values).float(), torch.from_numpy(sample.valid)
    return by_modality(values, valid, about.bands, modalities, products)
