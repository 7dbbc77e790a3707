"""TorchGeo's data sets and samplers as images of the model, and the model as a function of TorchGeo's kind."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchgeo.datasets import MMEarth

from multimae_eo.config import ModelConfig, SizeName
from multimae_eo.data.layout import ADDRESSES, valid_pixels
from multimae_eo.errors import BatchError, ConfigError, DataError
from multimae_eo.inputs import Units, read_images
from multimae_eo.integrations.backbone import Bands, Merge, Stated, encoder_of
from multimae_eo.integrations.timm import TimmEncoder
from multimae_eo.modalities import REFLECTANCE, Categorical, Modality
from multimae_eo.raster import Batch, Majority, Raster

# What TorchGeo calls the parts of an array of MMEarth's files: (array, product, first channel).
_PARTS = {"sentinel1_asc": ("sentinel1", "ascending", 0), "sentinel1_desc": ("sentinel1", "descending", 4)}


def multimae_eo(
    weights: str | None = None,
    *,
    size: SizeName | None = None,
    bands: Bands | None = None,
    units: Units | None = None,
    product: str | Sequence[str] | None = None,
    nodata: float | None = 0,
    offset: float = 0,
    merge: Merge = "mean",
    num_classes: int = 0,
    drop_path_rate: float = 0.0,
) -> TimmEncoder:
    """An encoder, as the model functions of TorchGeo give one; it has the methods of timm's (integrations/timm.py).

    weights: a checkpoint directory or Hub id; None and a size: random weights. bands, units, product, nodata, offset:
    of its images, as of `inputs.read_images`. Raises CheckpointError.
    """
    encoder = encoder_of(size, weights, pretrained=False, drop_path=drop_path_rate)
    return TimmEncoder(encoder, Stated(bands, units, product, nodata, offset), merge=merge, num_classes=num_classes)


class ToRasters:
    """A transform from samples or batches of TorchGeo to the rasters that a model takes.

    bands: what the channels of `image` are, as the data set says (`EuroSAT.all_band_names`, `dataset.bands`); nothing
    for `PhysicalMMEarth`. units, product, nodata, offset: as of `inputs.read_images`, whose errors calls raise.
    image: the entry of a sample that holds the image.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        bands: Bands | None = None,
        units: Units | None = None,
        product: str | Sequence[str] | None = None,
        nodata: float | None = 0,
        offset: float = 0,
        image: str = "image",
    ):
        self.config, self.image = config, image
        self.stated = Stated(bands, units, product, nodata, offset)

    def __call__(self, sample: Mapping[str, Any]) -> Batch:
        """A sample, or a batch as `stack_samples` or the default collation makes one -> {modality: [b, c, h, w]}."""
        if self.image in sample:
            return read_images(sample[self.image], self.config, **vars(self.stated))
        if found := _of_mmearth(sample, self.config):
            return found
        raise BatchError(f"the sample has no '{self.image}'; it has {', '.join(map(str, sample))}.")


class Chips(Dataset[dict[str, Any]]):
    """The chips that a sampler draws from a geographic data set, as a map-style one, the same every time.

    So a `RasterDataset` with a `RandomGeoSampler` or `GridGeoSampler` can be shuffled, split, and given to
    `data.torch_dataset.TorchSource`. The sampler is asked once, here.
    """

    def __init__(self, dataset: Any, sampler: Iterable[Any]):
        self.dataset, self.places = dataset, list(sampler)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.dataset[self.places[index]]


class PhysicalMMEarth(MMEarth):
    """TorchGeo's MMEarth in physical units: values as in the file, NaN where nothing was measured.

    TorchGeo's own samples are standardised before no data is looked for, and class 0 of their land cover is both trees
    and no data. Arguments are those of TorchGeo's; normalization_mode changes nothing. A sample also holds `s2_type`.
    """

    def _preprocess_modality(
        self, data: np.ndarray, modality: str, tile_info: dict[str, Any], bands: list[str]
    ) -> Tensor:
        array = _PARTS[modality][0] if modality in _PARTS else modality
        values = data[self._select_indices_for_modality(modality, bands)]
        if array not in {address.array for of in ADDRESSES.values() for address in of.values()}:
            return torch.from_numpy(values.astype(np.float32))
        known = valid_pixels(array, data)[self._select_indices_for_modality(modality, bands)]
        return torch.from_numpy(np.where(known, values, np.nan).astype(np.float32))

    def _retrieve_sample(self, ds_index: int) -> dict[str, Any]:
        sample: dict[str, Any] = super()._retrieve_sample(ds_index)
        tile_id = sample["tile_id"]  # a number since TorchGeo 0.9
        name = str(tile_id.item() if isinstance(tile_id, Tensor) else tile_id)
        return sample | {"s2_type": self.tile_info[name]["S2_type"]}


def _of_mmearth(sample: Mapping[str, Any], config: ModelConfig) -> Batch:
    """The rasters of a sample or batch of `PhysicalMMEarth`: of those modalities whose arrays are there."""
    found = {}
    for name in config.input_modalities:
        modality, choices, products = config.modalities[name], [], []
        for product in modality.products:
            bands = [c for band in modality.bands if (c := _channel(sample, band, product)) is not None]
            if len(bands) == len(modality.bands):
                own = torch.stack(bands, dim=1)
                index = torch.full((len(own),), modality.products.index(product), device=own.device)
                choices.append(Raster(own, torch.isfinite(own), index))
                products.append(product.lower())
        if not choices:
            continue
        found[name] = _chosen(sample, choices, products, modality)
        if isinstance(modality, Categorical) and modality.stride > 1:
            found[name] = Majority(modality.codes, modality.stride).to(found[name].values.device)(found[name])
    return found


def _channel(sample: Mapping[str, Any], band: str, product: str) -> Tensor | None:
    """One band of a batch [b, h, w], if the array that holds it is there."""
    address = ADDRESSES.get(band, {}).get(product)
    if address is None:
        return None
    part, first = next(
        ((name, first) for name, (array, of, first) in _PARTS.items() if (array, of) == (address.array, product)),
        (address.array, 0),
    )
    values = sample.get(f"image_{part}", sample.get(f"mask_{part}"))
    if values is None:
        return None
    if values.shape[-3] <= address.channel - first:
        raise DataError(f"'{part}' of the sample has {values.shape[-3]} bands; leave modality_bands as they are.")
    return values.reshape(-1, *values.shape[-3:])[:, address.channel - first]


def _chosen(sample: Mapping[str, Any], choices: list[Raster], products: list[str], modality: Modality) -> Raster:
    """Per sample the product that it says it is of, else the first that has a valid pixel.

    Raises ConfigError for images of a product that the model has no statistics of.
    """
    stated = sample.get("s2_type")
    kinds = [stated] if isinstance(stated, str) else stated
    strange = sorted(set(kinds or ()) - set(products))
    if strange and modality.unit == REFLECTANCE:
        raise ConfigError(
            f"images of {strange[0].upper()}, but the model knows {modality.name} of {', '.join(modality.products)}."
        )
    if kinds is not None and set(kinds) <= set(products):
        rows = [products.index(kind) for kind in kinds]
        return Raster(
            *(torch.stack([part[row][i] for i, row in enumerate(rows)]) for part in zip(*choices, strict=True))
        )
    chosen = choices[-1]
    for other in reversed(choices[:-1]):
        better = other.valid.flatten(1).any(dim=1)
        values, valid, product = (
            torch.where(better.reshape(-1, *[1] * (a.ndim - 1)), a, b) for a, b in zip(other, chosen, strict=True)
        )
        chosen = Raster(values, valid, product)
    return chosen
