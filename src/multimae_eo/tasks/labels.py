"""What the labels of a training split hold: checked before training, with warnings for the result row."""

from dataclasses import dataclass

import numpy as np

from multimae_eo.data.labelled import Labelled
from multimae_eo.errors import DataError


@dataclass(frozen=True)
class LabelSummary:
    """Counts of the classes in the training split, or mean and deviation of its values; and what is amiss."""

    counts: tuple[int, ...] = ()
    mean: float = 0.0
    std: float = 1.0
    warnings: tuple[str, ...] = ()


def summarise(source: Labelled) -> LabelSummary:
    """Read all training labels; raises DataError where they hold nothing that can be learned.

    counts: images (classification, multilabel) or pixels (segmentation) of each class.
    """
    about = source.about
    labels = (source.label(sample_id) for sample_id in source.ids["train"])
    where = f"'{about.name}', split 'train'"
    if about.task == "regression":
        number, total, squares = map(sum, zip(*(_moments(label.values[label.known]) for label in labels), strict=True))
        return _values(number, total, squares, where)
    size = len(about.classes)
    counts = np.zeros(size, np.int64)
    for label in labels:
        if about.task == "multilabel":
            counts += label.values.astype(np.int64) * bool(label.known)
        else:
            counts += np.bincount(np.asarray(label.values)[label.known].ravel(), minlength=size)
    there = [about.classes[i].name for i in np.flatnonzero(counts)]
    if len(there) < (1 if about.task == "multilabel" else 2):
        raise DataError(
            f"{where} holds {f'one class only, {there[0]!r}' if there else 'no known label'}; expected two."
        )
    missing = [c.name for c, n in zip(about.classes, counts, strict=True) if not n]
    warnings = (f"missing in train: {', '.join(missing)}",) if missing else ()
    return LabelSummary(tuple(counts.tolist()), warnings=warnings)


def _moments(values: np.ndarray) -> tuple[float, float, float]:
    values = values.astype(np.float64)
    return float(values.size), float(values.sum()), float(np.square(values).sum())


def _values(number: float, total: float, squares: float, where: str) -> LabelSummary:
    if not number:
        raise DataError(f"{where} holds no known value; expected some.")
    mean = total / number
    variance = squares / number - mean**2
    if variance <= 1e-12 * mean**2:
        raise DataError(f"{where}: all values are {mean:.6g}; expected values that differ.")
    return LabelSummary(mean=mean, std=float(np.sqrt(variance)))
