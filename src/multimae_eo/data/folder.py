"""Reads a folder of a user's own GeoTIFFs with labels from a table, or with masks beside the images."""

import csv
import hashlib
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rasterio.enums import MaskFlags
from rasterio.errors import RasterioError

from multimae_eo.config import TaskName
from multimae_eo.data.geotiff_baseline import OFFSET, Survey, decide
from multimae_eo.data.geotiff_source import check_stated, open_raster
from multimae_eo.data.labelled import SPLITS, Label, Sample, SplitName, check_class, check_ids, check_mask
from multimae_eo.data.layout import MODALITY_OF, SENTINEL2_CHANNELS
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
from multimae_eo.errors import ConfigError, DataError, GridError, UnknownNameError
from multimae_eo.modalities import REFLECTANCE, Continuous, find_band

_SPLIT_NAMES: Mapping[str, SplitName] = {**{split: split for split in SPLITS}, "val": "valid"}
_SUFFIXES = (".tif", ".tiff")


@dataclass(frozen=True)
class _Row:
    """One image: its label, or the file that holds it; `said`: what the table says of it; `where` the table says it."""

    image: Path
    label: Label | None
    mask: Path | None
    said: str
    where: str


class GeoTIFFFolder:
    """A user's own GeoTIFFs with their labels; implements `labelled.Labelled` (docs/own_geotiffs.md).

    root: the folder. table: a CSV in it with the columns path, split, and label (mask for segmentation and
        regression). Where there is none, masks lie in <split>/masks under the names of the images in <split>/images.
    bands: what the channels of the images are, in their order; "-" leaves one out.
    classes: their names in the order of their indices; none for regression. unit: of a regression's labels.
    product: the package's product whose units the files have once multiplied by `scale`, such as "L2A". offset: taken
        off reflectance x 10000 after that: 1000 for images of processing baseline 04. By default nothing is.
    nodata: value of an image that was not measured, instead of what the files say; where they say nothing, 0 in bands
        of Sentinel-2. ignore: values of masks that are no label. name: of the data set; the folder's by default.
        allow_leaks: an image may be in two splits.
    Raises ConfigError for options that contradict each other, and where a product is named, no offset, and the values
    carry one; DataError for a table or files that cannot be used, and for numbers that cannot be reflectance x 10000,
    dB or m, which maps would refuse. Reading raises GridError where a mask lies elsewhere than its image.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        task: TaskName,
        bands: Sequence[str],
        table: str = "labels.csv",
        classes: Sequence[str] = (),
        product: str | None = None,
        nodata: float | None = None,
        scale: float = 1.0,
        offset: float | None = None,
        ignore: int | Sequence[int] | None = None,
        unit: str = "",
        name: str | None = None,
        allow_leaks: bool = False,
    ):
        self.root, self.table = Path(root), Path(root) / table
        if not self.root.is_dir():
            raise DataError(f"'{self.root}' is no folder; expected the one that holds the images.")
        if not math.isfinite(scale) or scale <= 0:
            raise ConfigError(f"scale is {scale}; expected a positive number.")
        self._names, self._nodata, self._scale, self._offset = tuple(bands), nodata, scale, offset or 0.0
        self._channels, read_bands = named_channels(bands)
        self._scales = _scales(read_bands, scale)
        self._ignore = as_values(ignore)
        products = () if product is None else (product,)
        name = self.root.resolve().name if name is None else name
        self.about = describe(
            name, task=task, bands=read_bands, classes=classes, unit=unit, products=products, ignore=self._ignore
        )
        self._rows: dict[str, _Row] = {}
        self._statistics: Mapping[str, tuple[float, float]] | None = None
        ids: dict[SplitName, dict[str, _Row]] = {split: {} for split in SPLITS}
        for split, sample_id, row in self._table_rows() if self.table.is_file() else self._folder_rows():
            if sample_id in ids[split]:
                raise DataError(f"{row.where}: '{sample_id}' is given again, after {ids[split][sample_id].where}.")
            first = self._rows.setdefault(sample_id, row)
            if first.said != row.said:
                raise DataError(f"{row.where}: '{sample_id}' has another label than in {first.where}.")
            ids[split][sample_id] = row
        self.ids: Mapping[SplitName, tuple[str, ...]] = {split: tuple(rows) for split, rows in ids.items()}
        check_ids(self.ids, f"'{self.table if self.table.is_file() else self.root}'", allow_leaks=allow_leaks)
        remedies = {"reflectance": "Set scale: 10000."}
        seen = check_units(self.ids["train"], self._image, self.about.bands, f"'{self.root}'", remedies=remedies)
        if product is not None and offset is None:
            self._check_offset(product, {b: v for b, v in seen.items() if b in SENTINEL2_CHANNELS and v.size})

    def _check_offset(self, product: str, seen: Mapping[str, np.ndarray]) -> None:
        """Raise ConfigError where values of reflectance carry the offset, which a product's have not."""
        darkest = {band: int(np.percentile(values, 1)) for band, values in seen.items()}
        judged = decide(product, {}, Survey(darkest, 0)) if darkest else None
        if judged is not None and judged.offset == "on":
            raise ConfigError(
                f"'{self.root}': the values seem to carry the +{OFFSET} of processing baseline 04, which {product} is "
                f"without here: {judged.why}. Set offset: {OFFSET}, or offset: 0 if they do not."
            )

    def _table_rows(self) -> Iterator[tuple[SplitName, str, _Row]]:
        said = "mask" if self.about.dense else "label"
        for where, cells in _cells(self.table, ("path", "split", said)):
            if cells["split"].lower() not in _SPLIT_NAMES:
                raise DataError(f"{where}: the split is '{cells['split']}'; expected one of {', '.join(SPLITS)}.")
            split = _SPLIT_NAMES[cells["split"].lower()]
            image = _existing(self.root, cells["path"], "path", where)
            mask = _existing(self.root, cells[said], said, where) if self.about.dense else None
            label = None if self.about.dense else self._parse(cells[said], where)
            sample_id = Path(os.path.relpath(image, self.root)).as_posix()
            yield split, sample_id, _Row(image, label, mask, cells[said], where)

    def _folder_rows(self) -> Iterator[tuple[SplitName, str, _Row]]:
        """Without a table: every image of <split>/images with the mask of the same name."""
        folders = {n: s for n, s in _SPLIT_NAMES.items() if (self.root / n / "images").is_dir()}
        if not self.about.dense or not folders:
            wanted = " or the folders train/images, train/masks and so on" if self.about.dense else ""
            raise DataError(f"'{self.table}' does not exist; expected this table{wanted}.")
        if "valid" in folders and "val" in folders:
            raise DataError(f"'{self.root}' has the folders valid and val, which are one split; rename one.")
        for folder, split in folders.items():
            for image in sorted((self.root / folder / "images").iterdir()):
                if image.suffix.lower() in _SUFFIXES:
                    where = f"'{image}'"
                    mask = _existing(self.root, f"{folder}/masks/{image.name}", "mask", where)
                    yield split, f"{folder}/images/{image.name}", _Row(image, None, mask, mask.name, where)

    def _parse(self, text: str, where: str) -> Label:
        names = [c.name for c in self.about.classes]
        if self.about.task == "classification":
            return Label(np.array(_class_index(text, names, where), np.int64), np.array(True))
        hot = np.zeros(len(names), np.float32)
        for part in filter(None, map(str.strip, text.split(";"))):
            hot[_class_index(part, names, where)] = 1
        return Label(hot, np.array(True))

    def read(self, sample_id: str) -> Sample:
        """One image with its label; 0 where an image was not measured. Raises DataError."""
        values, valid = self._image(sample_id)
        return Sample(values, valid, self._label(sample_id, (values.shape[1], values.shape[2])))

    def label(self, sample_id: str) -> Label:
        """The label alone; raises DataError."""
        return self._label(sample_id, None)

    def statistics(self) -> Mapping[str, tuple[float, float]]:
        """Mean and standard deviation of every band over up to 1,000 training images, spread evenly."""
        if self._statistics is None:
            self._statistics = band_statistics(evenly(self.ids["train"]), self._image, self.about.bands)
        return self._statistics

    def fingerprint(self) -> str:
        """Changes with the options, the table, and the size or date of any file."""
        options = (self.about, self._names, self._nodata, self._scale, self._offset, self._ignore, self.ids)
        digest = hashlib.sha256(repr(options).encode())
        digest.update(self.table.read_bytes() if self.table.is_file() else b"")
        for sample_id, row in self._rows.items():
            for path in filter(None, (row.image, row.mask)):
                found = path.stat()
                digest.update(f"{sample_id} {path} {found.st_size} {found.st_mtime_ns}\n".encode())
        return digest.hexdigest()[:16]

    def _row(self, sample_id: str) -> _Row:
        if sample_id not in self._rows:
            raise DataError(f"'{self.root}' has no image '{sample_id}'.")
        return self._rows[sample_id]

    def _image(self, sample_id: str) -> tuple[np.ndarray, np.ndarray]:
        """float32 and bool, both [bands, h, w]."""
        row = self._row(sample_id)
        with open_raster(row.image) as dataset:
            if dataset.count != len(self._names):
                raise DataError(
                    f"'{row.image}': expected {len(self._names)} channels ({', '.join(self._names)}), the file has "
                    f"{dataset.count}. Name every channel of the file in bands, '{SKIPPED}' for those to leave out."
                )
            self._check_order(row.image, dataset.descriptions)
            for channel, band, scale in zip(self._channels, self.about.bands, self._scales.tolist(), strict=True):
                check_stated(row.image, dataset, channel, reflectance=band in SENTINEL2_CHANNELS, scale=scale)
            raw, valid = _pixels(dataset, [i + 1 for i in self._channels], row.image, masks=self._nodata is None)
            unsaid = [dataset.mask_flag_enums[i] == [MaskFlags.all_valid] for i in self._channels]
        if self._nodata is not None:
            valid = raw != self._nodata
        else:  # as in ESA's products
            dark = [said and band in SENTINEL2_CHANNELS for said, band in zip(unsaid, self.about.bands, strict=True)]
            valid[dark] &= raw[dark] != 0
        valid &= np.isfinite(raw)
        values = np.where(valid, raw * self._scales[:, None, None], 0).astype(np.float32)
        if self._offset:  # what falls below 0 was measured all the same
            lower = valid & np.isin(self.about.bands, SENTINEL2_CHANNELS)[:, None, None]
            values[lower] = np.maximum(values[lower] - self._offset, 1)
        return values, valid

    def _check_order(self, path: Path, descriptions: Sequence[str | None]) -> None:
        """Raise DataError where a file describes its channels as the named bands in another order."""
        said = [find_band(descriptions[channel] or "") for channel in self._channels]
        if tuple(said) != self.about.bands and {*said} == {*self.about.bands}:
            raise DataError(
                f"'{path}' describes its channels as {', '.join(map(str, said))}, but bands names them "
                f"{', '.join(self.about.bands)}. Bring its channels to that order, or mend its descriptions."
            )

    def _label(self, sample_id: str, size: tuple[int, int] | None) -> Label:
        """size: of the image, which the mask must have."""
        row = self._row(sample_id)
        if row.label is not None:
            return row.label
        assert row.mask is not None
        where = f"'{row.mask}' ({row.where})"
        with open_raster(row.mask) as dataset:
            if dataset.count != 1:
                raise DataError(f"{where}: the mask has {dataset.count} channels; expected one.")
            check_stated(row.mask, dataset, 0, reflectance=False, scale=1)
            if size is not None:
                _check_place(row.image, dataset, where)
            codes, known = (array[0] for array in _pixels(dataset, [1], row.mask))
        known &= ~np.isin(codes, self._ignore)
        size = size or (codes.shape[0], codes.shape[1])
        if self.about.task == "segmentation":
            return check_mask(codes, known, len(self.about.classes), size, where)
        return regression_labels(codes, known, size, where)


def _check_place(image: Path, mask: Any, where: str) -> None:
    """Raise GridError where an image and its mask say both where they lie, and that is not the same."""
    with open_raster(image) as dataset:
        if dataset.crs is None or mask.crs is None or dataset.shape != mask.shape:
            return  # another size is told by what the labels are checked for
        apart = np.abs(np.subtract(dataset.bounds, mask.bounds)).max()
        if dataset.crs != mask.crs or apart > max(dataset.res) / 2:
            raise GridError(
                f"{where}: the mask lies at {', '.join(f'{b:.10g}' for b in mask.bounds)} ({mask.crs}), its image at "
                f"{', '.join(f'{b:.10g}' for b in dataset.bounds)} ({dataset.crs}). Bring it to the image's grid: "
                "gdalwarp -r near with -t_srs, -te and -ts."
            )


def _scales(bands: Sequence[str], scale: float) -> np.ndarray:
    """The factor of each band: that of reflectances is not one of heights beside them, and classes have none."""
    units = [MODALITY_OF[b].unit if isinstance(MODALITY_OF.get(b), Continuous) else "" for b in bands]
    meant = {REFLECTANCE} if REFLECTANCE in units else {*units} - {""}
    return np.array([scale if unit in meant else 1.0 for unit in units])


def _cells(table: Path, wanted: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Where a row stands, and what it says in the wanted columns; raises DataError."""
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = {(name or "").strip(): name for name in reader.fieldnames or ()}
            for name in wanted:
                if name not in columns:
                    raise DataError(
                        f"'{table}' has no column '{name}'; expected {', '.join(wanted)}, separated by commas, got "
                        f"{', '.join(columns) or 'nothing'}."
                    )
            for row in reader:
                where = f"'{table}', line {reader.line_num}"
                if None in row:
                    raise DataError(f"{where}: there are more cells than columns; put text that has commas in quotes.")
                yield where, {name: (row[columns[name]] or "").strip() for name in wanted}
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"'{table}' cannot be read as CSV in UTF-8 ({error}). Save it so.") from error


def _existing(root: Path, text: str, column: str, where: str) -> Path:
    path = root / text
    if not text or not path.is_file():
        raise DataError(
            f"{where}: "
            + (
                f"'{path}' does not exist. Correct the path, or take the line out."
                if text
                else f"column '{column}' is empty."
            )
        )
    return path


def _class_index(text: str, names: Sequence[str], where: str) -> int:
    """From the name of a class, else from its index; raises DataError."""
    if text in names:
        return names.index(text)
    if re.fullmatch(r"[+-]?\d+", text):
        return check_class(int(text), len(names), where)
    if not text or re.fullmatch(r"[+-]?[\d.]+([eE][+-]?\d+)?", text):
        raise DataError(
            f"{where}: the label is '{text}'; expected the name of a class, or its index as a whole number."
        )
    raise DataError(f"{where}: {UnknownNameError('class', text, names)}")


def _pixels(dataset: Any, indexes: list[int], path: Path, *, masks: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of some channels and, by the file's own marks, which were measured; both [channels, h, w]."""
    try:
        raw = dataset.read(indexes)
        valid = dataset.read_masks(indexes) > 0 if masks else np.ones(raw.shape, bool)
    except RasterioError as error:
        raise DataError(f"'{path}' cannot be read; it is truncated or damaged. Fetch it again. ({error})") from error
    if raw.dtype.kind not in "iuf":
        raise DataError(f"'{path}' holds {raw.dtype}; expected integers or floats. Convert it first.")
    return raw, valid
