"""Reads any map-style PyTorch data sets that yield dictionaries of images and labels, as those of TorchGeo do."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from multimae_eo.config import TaskName
from multimae_eo.data.labelled import SPLITS, Label, Sample, SplitName, check_class, check_ids, check_mask
from multimae_eo.data.layout import MODALITY_OF
from multimae_eo.data.own_data import (
    SKIPPED,
    as_values,
    band_statistics,
    check_units,
    describe,
    evenly,
    named_channels,
    regression_labels,
)
from multimae_eo.errors import DataError, UnknownNameError
from multimae_eo.modalities import Categorical, canonical_band


class Items(Protocol):
    """A data set that is indexed by whole numbers."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Mapping[str, Any]: ...


class TorchSource:
    """Labelled images from map-style data sets; implements `labelled.Labelled` (docs/torch_datasets.md).

    splits: {"train": ..., "valid": ..., "test": ...}; an item is {"image": [c, h, w], and "label": a class index, or 0
        and 1 per class (multilabel), or "mask": [h, w] or [1, h, w] (segmentation, regression)}, arrays or tensors; it
        may have "valid": bool [c, h, w], [1, h, w] or [h, w]. NaN is invalid, and unknown in the mask of a regression.
        They must yield the same item every time: leave out what augments or normalises.
    name: of the data set. bands: what the channels of an image are, in their order; "-" leaves one out.
    classes: their names in the order of their indices; none for regression. unit: of a regression's labels.
    products: the package's products whose units the images have, such as ("L2A",). ignore: values of masks that are no
        label. statistics: {band: (mean, standard deviation)}; measured on the training split if not given.
    Raises ConfigError for options that contradict each other, DataError for an empty split, and where numbers cannot be
    of `products`, or are no class of a map of classes among the bands.
    """

    def __init__(
        self,
        splits: Mapping[SplitName, Items],
        *,
        name: str,
        task: TaskName,
        bands: Sequence[str],
        classes: Sequence[str] = (),
        unit: str = "",
        products: Sequence[str] = (),
        ignore: int | Sequence[int] | None = None,
        statistics: Mapping[str, tuple[float, float]] | None = None,
    ):
        for split in splits:
            if split not in SPLITS:
                raise UnknownNameError("split", split, SPLITS)
        self._splits, self._names, self._ignore = dict(splits), tuple(bands), as_values(ignore)
        self._channels, read_bands = named_channels(bands)
        self.about = describe(
            name, task=task, bands=read_bands, classes=classes, unit=unit, products=products, ignore=self._ignore
        )
        self._statistics: Mapping[str, tuple[float, float]] | None = None
        if statistics is not None:
            self._statistics = {canonical_band(band): moments for band, moments in statistics.items()}
        self.ids: Mapping[SplitName, tuple[str, ...]] = {
            split: tuple(f"{split}/{i}" for i in range(len(splits[split]) if split in splits else 0))
            for split in SPLITS
        }
        check_ids(self.ids, f"'{name}'")
        # Without a product of the package's, numbers may have any unit; codes of classes mean one thing only.
        meant = {b: MODALITY_OF[b] for b in read_bands if b in MODALITY_OF}
        known = [b for b, m in meant.items() if isinstance(m, Categorical) or {*products} & {*m.products}]
        places = [read_bands.index(band) for band in known]

        def pixels(sample_id: str) -> tuple[np.ndarray, np.ndarray]:
            values, valid = self._pixels(sample_id)
            return values[places], valid[places]

        if known:
            remedies = {"reflectance": "Multiply them by 10000."}
            check_units(self.ids["train"], pixels, known, f"'{name}'", remedies=remedies)

    def read(self, sample_id: str) -> Sample:
        """One image with its label; 0 where an image is invalid. Raises DataError."""
        item, where = self._item(sample_id)
        values, valid = self._image(item, where)
        return Sample(values, valid, self._label(item, (values.shape[1], values.shape[2]), where))

    def label(self, sample_id: str) -> Label:
        """The label alone; raises DataError."""
        item, where = self._item(sample_id)
        return self._label(item, None, where)

    def statistics(self) -> Mapping[str, tuple[float, float]]:
        """As given, else mean and standard deviation over up to 1,000 training images, spread evenly."""
        if self._statistics is None:
            self._statistics = band_statistics(evenly(self.ids["train"]), self._pixels, self.about.bands)
        return self._statistics

    def fingerprint(self) -> str:
        """Changes with the options, the lengths, and the first, middle and last item of any split."""
        lengths = {split: len(self.ids[split]) for split in SPLITS}
        digest = hashlib.sha256(repr((self.about, self._names, self._ignore, lengths)).encode())
        for ids in self.ids.values():
            for sample_id in dict.fromkeys((ids[0], ids[len(ids) // 2], ids[-1])):
                values, valid, label = self.read(sample_id)
                for array in (values, valid, *label):
                    digest.update(f"{array.shape} {array.dtype}".encode() + array.tobytes())
        return digest.hexdigest()[:16]

    def _item(self, sample_id: str) -> tuple[Mapping[str, Any], str]:
        """An item, and how errors call it."""
        split, _, number = sample_id.partition("/")
        if split not in SPLITS or not number.isdecimal() or int(number) >= len(self.ids[split]):
            raise DataError(f"'{self.about.name}' has no image '{sample_id}'.")
        where = f"'{self.about.name}', {sample_id}"
        item = self._splits[split][int(number)]
        if not isinstance(item, Mapping):
            raise DataError(f"{where}: the item is {type(item).__name__}; expected a dictionary with 'image'.")
        return item, where

    def _pixels(self, sample_id: str) -> tuple[np.ndarray, np.ndarray]:
        return self._image(*self._item(sample_id))

    def _image(self, item: Mapping[str, Any], where: str) -> tuple[np.ndarray, np.ndarray]:
        """float32 and bool, both [bands, h, w]."""
        image = _array(item, "image", where)
        if image.ndim != 3 or len(image) != len(self._names):
            raise DataError(
                f"{where}: the image is {image.shape}; expected [{len(self._names)}, height, width], channels "
                f"{', '.join(self._names)}. Name every channel in bands, '{SKIPPED}' for those to leave out."
            )
        if image.dtype.kind not in "iuf":
            raise DataError(f"{where}: the image holds {image.dtype}; expected integers or floats.")
        values = image[list(self._channels)].astype(np.float32)
        valid = np.isfinite(values) & _measured(item["image"], image.shape)[list(self._channels)]
        if "valid" in item:
            given = _array(item, "valid", where)
            if given.dtype != bool or given.shape not in (image.shape, (1, *image.shape[1:]), image.shape[1:]):
                raise DataError(f"{where}: 'valid' is {given.dtype} {given.shape}; expected bool like the image.")
            valid &= np.broadcast_to(given, image.shape)[list(self._channels)]
        return np.where(valid, values, np.float32(0)), valid

    def _label(self, item: Mapping[str, Any], size: tuple[int, int] | None, where: str) -> Label:
        if self.about.dense:
            return self._mask(item, size, where)
        label, classes = _array(item, "label", where), len(self.about.classes)
        if self.about.task == "classification":
            if label.size != 1:
                raise DataError(f"{where}: the label has the shape {label.shape}; expected one class index.")
            return Label(np.array(check_class(label.reshape(())[()], classes, where), np.int64), np.array(True))
        if label.shape != (classes,) or label.dtype.kind not in "iufb" or not np.isin(label, (0, 1)).all():
            raise DataError(
                f"{where}: the label is {label.dtype} {label.shape}; expected {classes} numbers that are 0 or 1, one "
                "per class."
            )
        return Label(label.astype(np.float32), np.array(True))

    def _mask(self, item: Mapping[str, Any], size: tuple[int, int] | None, where: str) -> Label:
        """size: of the image, which the mask must have."""
        mask = _array(item, "mask", where)
        mask = mask[0] if mask.ndim == 3 and len(mask) == 1 else mask
        if mask.ndim != 2:
            raise DataError(f"{where}: the mask is {mask.shape}; expected [height, width] or [1, height, width].")
        mask = mask.astype(np.uint8) if mask.dtype == bool else mask
        known = ~np.isin(mask, self._ignore) & _measured(item["mask"], mask.shape)
        size = size or (mask.shape[0], mask.shape[1])
        if self.about.task == "segmentation":
            return check_mask(mask, known, len(self.about.classes), size, where)
        return regression_labels(mask, known, size, where)


def _array(item: Mapping[str, Any], key: str, where: str) -> np.ndarray:
    if key not in item:
        raise DataError(f"{where}: the item has no '{key}'; it has {', '.join(map(str, item)) or 'nothing'}.")
    value = item[key]
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    return np.asarray(value)


def _measured(value: Any, shape: tuple[int, ...]) -> np.ndarray:
    """What the mask of a NumPy masked array leaves."""
    return ~np.broadcast_to(np.ma.getmaskarray(value).reshape(shape) if np.ma.isMaskedArray(value) else False, shape)
