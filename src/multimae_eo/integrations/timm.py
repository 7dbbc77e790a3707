"""The habits of timm's vision transformers, and one modality as a plain ViT of timm."""

from collections.abc import Sequence
from typing import Any

import timm
import torch
from timm.models import FeatureInfo, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from multimae_eo.codecs import codec_for
from multimae_eo.config import SIZES
from multimae_eo.encoder import Encoder, Tokenizer
from multimae_eo.errors import ConfigError, UnknownNameError
from multimae_eo.inputs import Units
from multimae_eo.integrations.backbone import Backbone, Bands, Merge, Stated, encoder_of
from multimae_eo.layers import NORM_EPS
from multimae_eo.raster import Raster
from multimae_eo.shapes import Float


class TimmEncoder(Backbone):
    """An encoder with the methods of `timm.models.VisionTransformer`; images are what `Backbone` takes.

    Tokens are the global ones, as timm's prefix, then one per patch: the mean over the modalities that are valid there.
    There is no final norm. With num_classes a LayerNorm and a linear layer follow the mean over the patches.
    """

    def __init__(
        self,
        encoder: Encoder,
        stated: Stated,
        *,
        merge: Merge = "mean",
        num_classes: int = 0,
        global_pool: str = "avg",
    ):
        super().__init__(encoder, stated, merge=merge)
        config = encoder.config
        self.num_features = self.embed_dim = self.head_hidden_size = self.channels
        self.num_prefix_tokens = config.num_global_tokens
        info = [
            {"num_chs": self.channels, "reduction": config.patch_size, "module": f"encoder.blocks.{i}"}
            for i in range(config.depth)
        ]
        self.feature_info = FeatureInfo(info, tuple(range(config.depth)))
        self.fc_norm = nn.LayerNorm(self.channels, eps=NORM_EPS)
        self.reset_classifier(num_classes, global_pool)

    def forward(self, images: object) -> Tensor:
        """Scores [b, num_classes]; without classes one vector per image, or tokens where nothing pools."""
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: object) -> Float[Tensor, "b n d"]:
        """Tokens after the last block: [b, prefix + rows x columns, d]."""
        (seen,) = self.see_after(images, (-1,))
        return torch.cat([self._prefix(seen.tokens), self.merged(seen).flatten(2).transpose(1, 2)], dim=1)

    def forward_head(self, x: Float[Tensor, "b n d"], pre_logits: bool = False) -> Tensor:
        """Tokens to scores; pre_logits: stop before the classifier."""
        if self.global_pool == "avg":
            patches = x[:, self.num_prefix_tokens :]
            measured = (patches != 0).any(dim=-1, keepdim=True)  # patches where nothing was measured are 0
            x = self.fc_norm(patches.sum(dim=1) / measured.sum(dim=1).clamp(min=1))
        elif self.global_pool == "token":
            x = self.fc_norm(x[:, 0])
        return x if pre_logits else self.head(x)

    def forward_intermediates(
        self,
        x: object,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        output_dict: bool = False,
    ) -> Any:
        """Maps of features after some blocks, as timm's method of the same name; there is no norm to apply.

        indices: the last n blocks, or which; all by default. stop_early changes nothing but the time it takes.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise UnknownNameError("output_fmt", output_fmt, ("NCHW", "NLC"))
        depth = len(self.encoder.blocks)
        taken, _ = feature_take_indices(depth, indices)
        blocks = sorted({*taken} if intermediates_only else {*taken, depth - 1})
        seen = dict(zip(blocks, self.see_after(x, blocks), strict=True))
        maps = {i: self.merged(s) for i, s in seen.items()}
        prefix = {i: self._prefix(s.tokens) for i, s in seen.items()}
        patches = {i: m.flatten(2).transpose(1, 2) for i, m in maps.items()}
        images = [maps[i] if output_fmt == "NCHW" else patches[i] for i in taken]
        prefixes = [prefix[i] for i in taken]
        if output_dict:
            found: dict[str, Any] = {"image_intermediates": images}
            found |= {"image_intermediates_prefix": prefixes} if return_prefix_tokens else {}
            if not intermediates_only:
                found["image_features"] = torch.cat([prefix[depth - 1], patches[depth - 1]], dim=1)
            return found
        shown = list(zip(images, prefixes, strict=True)) if return_prefix_tokens else images
        return shown if intermediates_only else (torch.cat([prefix[depth - 1], patches[depth - 1]], dim=1), shown)

    def _prefix(self, tokens: Tensor) -> Tensor:
        prefix = tokens[:, -self.num_prefix_tokens :]
        return prefix if self.merge == "mean" else prefix.repeat(1, 1, len(self.inputs))

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier for so many classes; 0: none. global_pool: "avg", "token" (the first global one) or ""."""
        if global_pool is not None:
            if global_pool not in ("avg", "token", ""):
                raise UnknownNameError("global_pool", global_pool, ("avg", "token", ""))
            self.global_pool = global_pool
        self.num_classes = num_classes
        self.head = nn.Linear(self.channels, num_classes) if num_classes else nn.Identity()

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.head

    def no_weight_decay(self) -> set[str]:
        """Parameters that are not to decay, besides those of one dimension."""
        return {"encoder.global_tokens"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """How parameters fall into layers, for layer decay."""
        blocks = r"^encoder\.blocks" if coarse else [(r"^encoder\.blocks\.(\d+)", None), (r"^fc_norm", (99999,))]
        return {"stem": r"^encoder\.(?:global_tokens|tokenizers)", "blocks": blocks}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute blocks again in the backward pass instead of keeping what they computed."""
        self.encoder.grad_checkpointing = enable

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the blocks after the last of these, and the classifier."""
        taken, last = feature_take_indices(len(self.encoder.blocks), indices)
        self.encoder.blocks = self.encoder.blocks[: last + 1]
        if prune_head:
            self.reset_classifier(0, "")
        return taken


def timm_vit(encoder: Encoder, modality: str, image_size: int | None = None) -> nn.Module:
    """One modality of an encoder as a plain `timm.models.VisionTransformer`, with equal features.

    Its images are standardised ones, [b, channels, h, w] as `standardised` gives them, every pixel measured. Its prefix
    is the global tokens, its patches are in the same order; state_dict() is what timm loads. image_size: edge in pixels
    of the 10 m frame; that of training by default. Raises UnknownNameError or ConfigError.
    """
    config = encoder.config
    if modality not in config.input_modalities:
        raise UnknownNameError("input of the model", modality, config.input_modalities)
    described, patch = config.modalities[modality], config.patch_edge(modality)
    size = image_size or config.image_size
    if size % config.patch_size:
        raise ConfigError(f"image_size {size} is not a multiple of patch_size {config.patch_size}.")
    vit = timm.models.VisionTransformer(
        img_size=size // described.stride,
        patch_size=patch,
        in_chans=described.channels,
        num_classes=0,
        embed_dim=config.dim,
        depth=config.depth,
        num_heads=config.heads,
        reg_tokens=config.num_global_tokens - 1,
        no_embed_class=True,  # global tokens have no position
        final_norm=False,
        global_pool="token",
    )
    vit.load_state_dict(timm_state_dict(encoder, modality, size))
    return vit.eval()


def timm_state_dict(encoder: Encoder, modality: str, image_size: int) -> dict[str, Tensor]:
    """The weights of `timm_vit`, under timm's names."""
    config = encoder.config
    tokenizer = encoder.tokenizers[modality]
    assert isinstance(tokenizer, Tokenizer)
    patch, grid = tokenizer.patch, image_size // config.patch_size
    weights = {name: tensor for name, tensor in encoder.state_dict().items() if name.startswith("blocks.")}
    mode = "bilinear" if tokenizer.categorical else "bicubic"
    found = {
        "patch_embed.proj.weight": tokenizer.proj.weight.detach().unflatten(1, (-1, patch, patch)),
        "patch_embed.proj.bias": tokenizer.proj.bias.detach(),
        "pos_embed": encoder.positions[mode]((grid, grid))[None],
        "cls_token": encoder.global_tokens.detach()[:, :1],
        **weights,
    }
    if config.num_global_tokens > 1:
        found["reg_token"] = encoder.global_tokens.detach()[:, 1:]
    return {name: tensor.clone() for name, tensor in found.items()}


def standardised(encoder: Encoder, modality: str, raster: Raster) -> Float[Tensor, "b c h w"]:
    """A raster in physical units as the images of `timm_vit`."""
    config = encoder.config
    view = next((v for v in config.input_views if v.modality == modality), None)
    if view is None:
        raise UnknownNameError("input of the model", modality, config.input_modalities)
    codec = codec_for(config.modalities[modality], view.standardize, config.patch_edge(modality))
    return codec.to(raster.values.device).encode(raster).values


def _register(size: str) -> None:
    def build(
        pretrained: bool = False,
        *,
        checkpoint: str | None = None,
        bands: Bands | None = None,
        units: Units | None = None,
        product: str | Sequence[str] | None = None,
        nodata: float | None = 0,
        offset: float = 0,
        num_classes: int = 0,
        global_pool: str = "avg",
        drop_path_rate: float = 0.0,
        pretrained_cfg: object = None,  # these three are create_model's, for weights that timm would download
        pretrained_cfg_overlay: object = None,
        cache_dir: object = None,
    ) -> TimmEncoder:
        encoder = encoder_of(size, checkpoint, pretrained=pretrained, drop_path=drop_path_rate)
        stated = Stated(bands, units, product, nodata, offset)
        return TimmEncoder(encoder, stated, num_classes=num_classes, global_pool=global_pool)

    build.__name__ = f"multimae_eo_{size}"
    build.__doc__ = f"The encoder of size {size}: `timm.create_model('{build.__name__}', checkpoint=..., bands=...)`."
    globals()[build.__name__] = build
    register_model(build)


for _size in SIZES:
    _register(_size)
