"""The encoder in torchgeo-bench, as its `BenchModel` asks; docs/torchgeo_bench.md has the preset."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchgeo_bench.datasets.base import BandSpec
from torchgeo_bench.models.interface import BenchModel

from multimae_eo.checkpoint import load, load_config
from multimae_eo.config import ModelConfig, SizeName, sized
from multimae_eo.data.labelled import Description, with_own_statistics
from multimae_eo.encoder import Encoder
from multimae_eo.errors import CheckpointError, ConfigError
from multimae_eo.inputs import SKIPPED
from multimae_eo.integrations.backbone import Backbone, Stated
from multimae_eo.modalities import find_band

# Names of torchgeo-bench that are not among our bands' own.
_NAMES = {"red_edge_4": "B8A", "swir_cirrus": "B10", "r": "B04", "g": "B03", "b": "B02"}
# Sensors whose bands of the same names stand in for Sentinel-2's, where a data set has none of these.
STAND_INS = ("landsat", "aerial", "planet", "worldview")
# The product that the statistics of a data set are filed under.
OWN = "bandspec"
# The files of two data sets of GEO-Bench have other bands under some names; their statistics give them away:
# m-eurosat has water vapour's numbers where B8A should be, m-brick-kiln colours of 8 bit where B12 should be.
_EUROSAT = {"B8A": "B09", "B09": "B10", "B10": "B11", "B11": "B12", "B12": "B8A"}
_BRICK_KILN = {"B06": "B07", "B07": "B8A", "B8A": "B11", "B09": "B12", "B10": SKIPPED, "B11": SKIPPED, "B12": SKIPPED}


class MultiMAEBench(BenchModel):
    """Frozen features for k-NN, linear and segmentation probes: the mean of all valid tokens, [b, width].

    bands: what torchgeo-bench says of the channels; they are matched by name, and wrong names of m-eurosat and
    m-brick-kiln are put right. checkpoint: a directory or Hub id. statistics: what images are standardised by: those of
    the data set ("dataset"), or the model's for a product ("L1C", "L2A"), where values are reflectance x 10000.
    pretrained: False, with a size, for random weights; never silently. Layers to segment by: "features.0" ... are maps
    [b, width, h / patch, w / patch], one per block. Raises CheckpointError, and ConfigError for data sets without a
    band that the model takes.
    """

    handles_own_normalization = True

    def __init__(
        self,
        bands: list[BandSpec],
        *,
        checkpoint: str | None = None,
        statistics: Literal["dataset", "L1C", "L2A"] = "dataset",
        pretrained: bool = True,
        size: SizeName | None = None,
        normalization: object = None,  # the runner's; the model standardises by itself
        name: object = None,
    ):
        super().__init__(bands=bands, normalization="identity")
        if pretrained is (checkpoint is None):
            raise CheckpointError("name a checkpoint, or set pretrained to false and a size for random weights.")
        names = names_of(bands)
        config = load_config(checkpoint) if checkpoint is not None else sized(size or "base")
        if statistics == "dataset":
            config = with_bandspec(config, bands, names)
        encoder = Encoder(config) if checkpoint is None else load(checkpoint, config)
        product = OWN if statistics == "dataset" else statistics
        self.backbone = Backbone(encoder, Stated(names, "dn", product))
        if not self.backbone.inputs:
            raise ConfigError(f"the data set has no bands of any input: {', '.join(b.name for b in bands)}.")
        self.features = nn.ModuleList(nn.Identity() for _ in encoder.blocks)
        self.eval()

    def _forward_patch_features(self, images: Tensor, _bboxes: Tensor | None = None) -> Tensor:
        """[b, c, h, w] as the data set has them -> [b, width]."""
        hooked = any(layer._forward_hooks for layer in self.features)
        depth = len(self.features)
        with torch.no_grad():
            seen = self.backbone.see_after(images, range(depth) if hooked else (depth - 1,))
            if hooked:
                for layer, found in zip(self.features, seen, strict=True):
                    layer(self.backbone.merged(found))
            return seen[-1].mean()


def names_of(bands: Sequence[BandSpec]) -> list[str]:
    """The canonical names of channels; "-" for those that no input can have."""
    has_own = any(band.sensor == "s2" for band in bands)
    left = STAND_INS if has_own else ()
    named = [None if band.sensor in left else find_band(_NAMES.get(band.name, band.name)) for band in bands]
    renamed = _renamed({name: band for name, band in zip(named, bands, strict=True) if name})
    names: list[str] = []
    for name in named:
        right = renamed.get(name, name) if name else None
        names.append(SKIPPED if right is None or right in names else right)
    return names


def _renamed(bands: Mapping[str, BandSpec]) -> Mapping[str, str]:
    """What bands are, whose files have others under their names."""
    if not {"B02", *_EUROSAT} <= bands.keys():
        return {}
    if bands["B09"].mean < 100 < bands["B10"].mean:
        return _EUROSAT
    return _BRICK_KILN if bands["B12"].max <= 255 < bands["B02"].max else {}


def with_bandspec(config: ModelConfig, bands: Sequence[BandSpec], names: Sequence[str]) -> ModelConfig:
    """The configuration with one product more, of the statistics that torchgeo-bench has of the data set."""
    known = {name: (band.mean, band.std) for name, band in zip(names, bands, strict=True) if name != SKIPPED}
    about = Description(OWN, "classification", tuple(known))
    named: dict[str, Any] = dict(config.modalities)
    return dataclasses.replace(config, modalities=with_own_statistics(named, about, known))
