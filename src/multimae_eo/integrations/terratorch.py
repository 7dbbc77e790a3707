"""The encoder as a backbone of TerraTorch: `multimae_eo_base` and its other sizes, and `multimae_eo` of any checkpoint.

TerraTorch finds it once this module is imported; a YAML does that with the callback `Register`.
"""

from collections.abc import Mapping, Sequence

from lightning.pytorch import Callback
from terratorch.registry import TERRATORCH_BACKBONE_REGISTRY
from torch import Tensor

from multimae_eo.config import SIZES
from multimae_eo.encoder import Encoder
from multimae_eo.errors import ConfigError
from multimae_eo.inputs import Units
from multimae_eo.integrations.backbone import Backbone, Bands, Merge, Stated, encoder_of, keys_of


class Register(Callback):
    """Does nothing but be named in a YAML, which imports this module and so registers the backbones."""


class TerraTorchBackbone(Backbone):
    """An encoder as TerraTorch wants one: images in, a list of maps of features out, one per block.

    Images are a tensor [b, c, h, w] or {key: tensor}, in physical units: leave the means of the data module at 0 and
    the deviations at 1. A key may be missing in a batch, as long as one is there.
    """

    def __init__(
        self,
        encoder: Encoder,
        stated: Stated,
        *,
        merge: Merge = "mean",
        out_indices: Sequence[int] | None = None,
    ):
        super().__init__(encoder, stated, merge=merge)
        depth = encoder.config.depth
        taken = [i % depth for i in out_indices or range(depth) if -depth <= i < depth]
        if len(taken) != len(out_indices or range(depth)) or taken != sorted(set(taken)):
            raise ConfigError(f"out_indices {out_indices}: expected rising indices of {depth} blocks, -1 the last.")
        self.out_indices = tuple(taken)
        self.out_channels = [self.channels] * len(taken)

    def forward(self, images: Tensor | Mapping[str, Tensor]) -> list[Tensor]:
        """[b, c, h, w] or several by key -> per block [b, channels, h / patch, w / patch]."""
        return [self.merged(seen) for seen in self.see_after(images, self.out_indices)]

    def freeze(self) -> None:
        """Train no weight of the encoder."""
        self.requires_grad_(False)


def _register(name: str, size: str | None) -> None:
    def build(
        pretrained: bool = False,
        checkpoint: str | None = None,
        bands: Bands | None = None,
        modalities: Sequence[str] | None = None,
        units: Units | None = None,
        product: str | Sequence[str] | None = None,
        nodata: float | None = 0,
        offset: float = 0,
        merge: Merge = "mean",
        out_indices: Sequence[int] | None = None,
        drop_path_rate: float = 0.0,
    ) -> TerraTorchBackbone:
        if bands is not None and modalities is not None:
            raise ConfigError("bands and modalities are both given; modalities is for images of several keys.")
        encoder = encoder_of(size, checkpoint, pretrained=pretrained, drop_path=drop_path_rate)
        stated = Stated(bands if modalities is None else keys_of(modalities), units, product, nodata, offset)
        return TerraTorchBackbone(encoder, stated, merge=merge, out_indices=out_indices)

    build.__name__ = name
    globals()[name] = TERRATORCH_BACKBONE_REGISTRY.register(build)


_register("multimae_eo", None)
for _size in SIZES:
    _register(f"multimae_eo_{_size}", _size)
