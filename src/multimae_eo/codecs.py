"""Codecs turn rasters into network numbers and back; which one depends on the kind of the modality, never its name."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from multimae_eo.modalities import Categorical, Continuous, Modality, Standardization
from multimae_eo.raster import Raster
from multimae_eo.shapes import Bool, Float, Shaped

# Inside the root of every standardisation (docs/model.md, sections 1 and 5).
EPS = 1e-6


class Encoded(NamedTuple):
    """Network numbers [b, channels, h, w], zero where invalid, and their validity [b, channels or 1, h, w]."""

    values: Float[Tensor, "b c h w"]
    valid: Bool[Tensor, "b v h w"]


class Standardize(nn.Module):
    """Measurements: z-scored per band by the statistics of the sample's product, then per patch or sample if asked.

    Source: docs/model.md, sections 1 and 5. Network numbers have no unit; physical ones are in the modality's unit.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, modality: Continuous, standardize: Standardization, patch: int):
        super().__init__()
        self.standardize, self.patch = standardize, patch
        for name in ("mean", "std"):
            rows = [getattr(s, name) for s in modality.statistics.values()]
            table = torch.tensor(rows, dtype=torch.float32, device="cpu")[:, :, None, None]
            self.register_buffer(name, table, persistent=False)

    def valid(self, raster: Raster) -> Bool[Tensor, "b c h w"]:
        """Which network numbers are valid."""
        return raster.valid.expand_as(raster.values)

    def encode(self, raster: Raster) -> Encoded:
        """Raster in physical units -> Encoded; invalid values, whatever they are, become 0."""
        valid = self.valid(raster)
        scores = self._scores(raster, valid)
        if self.standardize != "band":
            shift, scale = self._local(scores, valid)
            scores = ((scores - shift) / scale).masked_fill_(~valid, 0.0)
        return Encoded(scores, valid)

    def decode(self, values: Float[Tensor, "b c h w"], like: Raster) -> Float[Tensor, "b c h w"]:
        """Network numbers -> physical units.

        like: gives the product and, for views standardised per patch or sample, the level and scale that such a view
        does not know, from its valid values; without a valid value these stay at the statistics of the product.
        """
        if self.standardize != "band":
            valid = self.valid(like)
            shift, scale = self._local(self._scores(like, valid), valid)
            values = values * scale + shift
        return values * self.std[like.product] + self.mean[like.product]

    def _scores(self, raster: Raster, valid: Tensor) -> Tensor:
        scores = (raster.values.float() - self.mean[raster.product]) / self.std[raster.product]
        return scores.masked_fill_(~valid, 0.0)

    def _local(self, scores: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        return (
            patch_moments(scores, valid, self.patch) if self.standardize == "patch" else trimmed_moments(scores, valid)
        )


class OneHot(nn.Module):
    """Classes: codes become one-hot vectors, and scores the code of the largest; unknown codes are invalid."""

    codes: Tensor

    def __init__(self, modality: Categorical):
        super().__init__()
        self.register_buffer("codes", torch.tensor(modality.codes, device="cpu"), persistent=False)

    def valid(self, raster: Raster) -> Bool[Tensor, "b 1 h w"]:
        """Which pixels are of a known class."""
        return self._one_hot(raster).any(dim=-3, keepdim=True)

    def encode(self, raster: Raster) -> Encoded:
        """Raster of class codes [b, 1, h, w] -> Encoded with one channel per class."""
        return Encoded(self._one_hot(raster).float(), self.valid(raster))

    def decode(self, values: Float[Tensor, "b c h w"], like: Raster | None = None) -> Shaped[Tensor, "b 1 h w"]:
        """Scores per class -> class codes."""
        return self.codes[values.argmax(dim=-3, keepdim=True)]

    def _one_hot(self, raster: Raster) -> Bool[Tensor, "b c h w"]:
        return (raster.values == self.codes.to(raster.values.dtype)[:, None, None]) & raster.valid


Codec = Standardize | OneHot


def codec_for(modality: Modality, standardize: Standardization, patch: int) -> Codec:
    """The codec of a view; patch: edge of a patch on the modality's own grid."""
    return Standardize(modality, standardize, patch) if isinstance(modality, Continuous) else OneHot(modality)


def patch_moments(values: Tensor, valid: Tensor, patch: int) -> tuple[Tensor, Tensor]:
    """Mean and sqrt(unbiased variance + eps) of the valid values of each patch, all channels together.

    values, valid [b, c, h, w] -> two tensors [b, 1, h, w], constant within a patch.
    """
    *_, height, width = values.shape
    blocks = (width // patch, patch), (height // patch, patch)

    def split(x: Tensor) -> Tensor:
        return x.unflatten(-1, blocks[0]).unflatten(-3, blocks[1])

    cells, known = split(values), split(valid)
    axes = (-1, -3, -5)
    mean, scale = _moments(cells, known, axes)
    return tuple(
        m.expand(*m.shape[:-4], height // patch, patch, width // patch, patch).flatten(-4, -3).flatten(-2)
        for m in (mean, scale)
    )  # type: ignore[return-value]


def trimmed_moments(values: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and sqrt(unbiased variance + eps) per sample and channel, without the lowest and highest tenth.

    Of n valid values, floor(0.1 n) lowest and all from floor(0.9 n) up are left out (docs/model.md, section 1).
    values, valid [b, c, h, w] -> two tensors [b, c, 1, 1].
    """
    known = valid.flatten(-2)
    ordered = torch.where(known, values.flatten(-2), torch.inf).sort(dim=-1).values
    number = known.sum(dim=-1, keepdim=True)
    low, high = number // 10, number * 9 // 10
    high = torch.where(high > low, high, number)
    rank = torch.arange(ordered.shape[-1], device=values.device)
    mean, scale = _moments(ordered, (rank >= low) & (rank < high), (-1,))
    return mean[..., None], scale[..., None]


def _moments(values: Tensor, counted: Tensor, axes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    number = counted.sum(dim=axes, keepdim=True)
    mean = torch.where(counted, values, 0.0).sum(dim=axes, keepdim=True) / number.clamp(min=1)
    squares = torch.where(counted, values - mean, 0.0).square().sum(dim=axes, keepdim=True)
    return mean, (squares / (number - 1).clamp(min=1) + EPS).sqrt()
