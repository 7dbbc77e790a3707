"""What sources of a user's own labelled data share: a checked description, named channels, statistics of the bands."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TypeVar

import numpy as np

from multimae_eo.config import TaskName
from multimae_eo.data.labelled import Description, Label, numbered_classes
from multimae_eo.data.layout import MODALITY_OF
from multimae_eo.errors import ConfigError, DataError, UnknownNameError
from multimae_eo.modalities import MODALITIES, Categorical, canonical_bands
from multimae_eo.units import EIGHT_BIT, looks_like

SKIPPED = "-"
MEASURED_IMAGES = 1000  # of the training split, for statistics
JUDGED_IMAGES = 5  # of the training split, whose numbers are judged at the start
_TASKS: tuple[TaskName, ...] = ("classification", "multilabel", "segmentation", "regression")
_DENSE = ("segmentation", "regression")
_CODES = frozenset(band for m in MODALITIES.values() if isinstance(m, Categorical) for band in m.bands)
Chosen = TypeVar("Chosen")


def named_channels(bands: Sequence[str]) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The channels of an image that are read, numbered from 0, and their canonical bands; "-" leaves one out.

    Raises UnknownNameError, or ConfigError where two channels are one band or none is left.
    """
    if isinstance(bands, str):
        raise ConfigError(f"bands is the text '{bands}'; expected a list of names, one per channel of an image.")
    channels = tuple(i for i, name in enumerate(bands) if name != SKIPPED)
    if not channels:
        raise ConfigError(
            f"bands is {list(bands)}; name the channels of an image in their order, '{SKIPPED}' for those to leave out."
        )
    return channels, canonical_bands(bands[i] for i in channels)


def describe(
    name: str,
    *,
    task: TaskName,
    bands: tuple[str, ...],
    classes: Sequence[str],
    unit: str,
    products: Sequence[str],
    ignore: Sequence[int],
) -> Description:
    """The description of a user's data; raises ConfigError where its parts contradict each other."""
    if task not in _TASKS:
        raise UnknownNameError("task", task, _TASKS)
    known = tuple(dict.fromkeys(p for m in MODALITIES.values() for p in m.products))
    for product in products:
        if product not in known:
            raise UnknownNameError("product", product, known)
    if not name or name in known:
        raise ConfigError(f"name is '{name}'; choose one that is not empty and no product's ({', '.join(known)}).")
    if isinstance(classes, str) or len(set(classes)) < len(classes) or not all(c and c == c.strip() for c in classes):
        raise ConfigError(f"classes is {classes!r}; expected a list of different names without blanks around them.")
    if task == "regression" and classes:
        raise ConfigError(f"classes is {list(classes)}, but a regression has none; leave it empty.")
    if task != "regression" and len(classes) < (1 if task == "multilabel" else 2):
        raise ConfigError(
            f"classes is {list(classes)}; {task} needs the names of its classes, in order of their index."
        )
    if ignore and task not in _DENSE:
        raise ConfigError(
            f"ignore is {list(ignore)}, but only the values of masks can be ignored, and {task} has none."
        )
    return Description(name, task, bands, numbered_classes(classes), unit, tuple(products))


def as_values(ignore: int | Sequence[int] | None) -> tuple[int, ...]:
    """Values of a mask that are no label, given as one, as several or as none."""
    if ignore is None:
        return ()
    return (ignore,) if isinstance(ignore, int) else tuple(ignore)


def regression_labels(values: np.ndarray, known: np.ndarray, size: tuple[int, int], where: str) -> Label:
    """Numbers per pixel, of the size of the image; unknown or not finite ones become 0. Raises DataError."""
    if values.shape != size:
        raise DataError(f"{where}: the mask has {values.shape} pixels, the image {size}; they must be equal.")
    if values.dtype.kind not in "iuf":
        raise DataError(f"{where}: the mask holds {values.dtype}; expected integers or floats.")
    known = known & np.isfinite(values)
    return Label(np.where(known, values, 0).astype(np.float32), known)


def evenly(chosen: Sequence[Chosen], limit: int = MEASURED_IMAGES) -> list[Chosen]:
    """At most `limit` of a sequence, spread evenly over it."""
    positions = np.linspace(0, len(chosen) - 1, min(len(chosen), limit)).round().astype(int)
    return [chosen[i] for i in positions.tolist()]


def check_units(
    ids: Sequence[str],
    read: Callable[[str], tuple[np.ndarray, np.ndarray]],
    bands: Sequence[str],
    where: str,
    *,
    remedies: Mapping[str, str],
) -> dict[str, np.ndarray]:
    """The valid numbers of some images per band; raises DataError where they cannot be of its unit, or are no class.

    read: as of `band_statistics`; images that it cannot read are passed by. remedies: {what numbers look like: remedy}.
    """
    seen: dict[str, list[np.ndarray]] = {}
    for sample_id in evenly(ids, JUDGED_IMAGES):
        with suppress(DataError):
            values, valid = read(sample_id)
            for i, band in enumerate(bands):
                seen.setdefault(band, []).append(values[i][valid[i]])
    judged = {band: np.concatenate(parts) for band, parts in seen.items()}
    for band, known in judged.items():
        modality = MODALITY_OF.get(band)
        if isinstance(modality, Categorical):
            known = known[known != 0]  # no class in any map
        guess = looks_like(modality, known) if modality is not None and known.size else None
        if modality is None or guess in (None, EIGHT_BIT):
            continue
        classes = f" with the codes {', '.join(map(str, modality.codes))}" if isinstance(modality, Categorical) else ""
        remedy = "Translate them." if classes else remedies.get(str(guess), "Convert them, or mark what is no number.")
        raise DataError(
            f"{where}: expected {modality.unit}{classes} in {band}, got {known.min():g} to {known.max():g}, which look "
            f"like {guess}. {remedy}"
        )
    return judged


def band_statistics(
    ids: Iterable[str], read: Callable[[str], tuple[np.ndarray, np.ndarray]], bands: Sequence[str]
) -> Mapping[str, tuple[float, float]]:
    """Mean and standard deviation of each band that is no map of classes, over valid pixels, one image at a time.

    read: values and validity [bands, h, w] of an image. Not numbers where a band has no valid pixel.
    """
    count, mean, spread = (np.zeros(len(bands)) for _ in range(3))
    for sample_id in ids:
        values, valid = read(sample_id)
        for i in range(len(bands)):
            kept = values[i][valid[i]].astype(np.float64)
            if kept.size:  # Chan, Golub and LeVeque (1983): combines means and squared deviations without cancellation
                total, off = count[i] + kept.size, kept.mean() - mean[i]
                spread[i] += np.square(kept - kept.mean()).sum() + off**2 * count[i] * kept.size / total
                mean[i] += off * kept.size / total
                count[i] = total
    return {
        band: (float(mean[i]), math.sqrt(spread[i] / count[i])) if count[i] else (math.nan, math.nan)
        for i, band in enumerate(bands)
        if band not in _CODES
    }
