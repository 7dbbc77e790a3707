"""Reconstruction losses: per pixel, over hidden valid pixels, per sample first, with counts that add up over ranks."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from multimae_eo.codecs import Encoded
from multimae_eo.encoder import layout_of, with_absent
from multimae_eo.masking import TokenMask
from multimae_eo.modalities import Continuous
from multimae_eo.model import Decoder, MultiMAE
from multimae_eo.raster import Batch
from multimae_eo.shapes import Bool, Float


class ViewLosses(NamedTuple):
    """Per view: the sum over samples of their mean loss, and the number of samples that have any hidden valid pixel.

    Both [t], in the order of the model's targets. Sums and counts add over micro-batches and ranks.
    """

    total: Float[Tensor, " t"]
    samples: Float[Tensor, " t"]

    def mean(self) -> Float[Tensor, " t"]:
        """Mean over samples; 0 for a view without any."""
        return self.total / self.samples.clamp(min=1)


def pixel_errors(predicted: Float[Tensor, "b c h w"], target: Encoded, kind: str) -> Float[Tensor, "b h w"]:
    """Error per pixel, averaged over its valid channels; 0 where there is none.

    kind: "squared", "absolute" or "cross_entropy" (one-hot target).
    """
    predicted = predicted.float()
    if kind == "cross_entropy":
        return -(target.values * predicted.log_softmax(dim=1)).sum(dim=1)
    difference = (predicted - target.values).masked_fill(~target.valid, 0.0)
    error = difference.square() if kind == "squared" else difference.abs()
    return error.sum(dim=1) / target.valid.sum(dim=1).clamp(min=1)


def sample_means(error: Float[Tensor, "b h w"], counted: Bool[Tensor, "b h w"]) -> tuple[Tensor, Tensor]:
    """Mean over the counted pixels of each sample -> (sum over samples, number of samples with any), scalars."""
    number = counted.sum(dim=(1, 2))
    means = error.masked_fill(~counted, 0.0).sum(dim=(1, 2)) / number.clamp(min=1)
    return means.sum(), (number > 0).sum().float()


def counted_pixels(model: MultiMAE, batch: Batch, mask: TokenMask | None) -> dict[str, Bool[Tensor, "b h w"]]:
    """Per view of the targets: the valid pixels whose token is hidden.

    All valid ones count where the modality is no input, or with mask None.
    """
    layout = layout_of(model.config, batch)
    full = with_absent(model.config, batch, tuple(model.config.modalities))
    hidden = None if mask is None else mask.hidden(*layout.shape)
    pixels = {}
    for view, decoder in model.views():
        known = decoder.codec.valid(full[decoder.modality]).any(dim=1)
        if hidden is not None and decoder.modality in layout.names:
            tokens = hidden[:, layout.names.index(decoder.modality)].unflatten(1, layout.grid)
            edge = decoder.patch
            known = known & tokens.repeat_interleave(edge, dim=1).repeat_interleave(edge, dim=2)
        pixels[view] = known
    return pixels


def count_samples(model: MultiMAE, batch: Batch, mask: TokenMask | None) -> Float[Tensor, " t"]:
    """How many samples count for each target; known before any forward pass, so that it can be summed over ranks."""
    return torch.stack([p.any(dim=(1, 2)).sum().float() for p in counted_pixels(model, batch, mask).values()])


def loss_kind(model: MultiMAE, decoder: Decoder) -> str:
    """The error that a decoder's modality is measured with."""
    modality = model.config.modalities[decoder.modality]
    return modality.loss if isinstance(modality, Continuous) else "cross_entropy"


def reconstruction_losses(
    model: MultiMAE, predicted: dict[str, Tensor], batch: Batch, mask: TokenMask | None
) -> ViewLosses:
    """Losses of predictions against the batch over hidden valid pixels (docs/model.md, 6); mask None: over all.

    predicted: network numbers per view, as `MultiMAE.forward` returns them; batch: rasters in physical units.
    Modalities absent from the batch count no sample, and their parameters get a gradient of exactly zero.
    """
    full = with_absent(model.config, batch, tuple(model.config.modalities))
    counted = counted_pixels(model, batch, mask)
    pairs = []
    for view, decoder in model.views():
        target = decoder.codec.encode(full[decoder.modality])
        error = pixel_errors(predicted[view], target, loss_kind(model, decoder))
        pairs.append(sample_means(error, counted[view]))
    totals, samples = zip(*pairs, strict=True)
    return ViewLosses(torch.stack(totals), torch.stack(samples))


class UncertaintyWeights(nn.Module):
    """Learned weights: exp(-s) L + s with one s per view, and nothing for a view that no sample of the batch has."""

    def __init__(self, num_views: int):
        super().__init__()
        self.log_variance = nn.Parameter(torch.zeros(num_views))

    def forward(
        self, losses: Float[Tensor, " t"], present: Bool[Tensor, " t"], share: float = 1.0
    ) -> Float[Tensor, " t"]:
        """losses: parts that sum to the means per view; present: views that any sample of the global batch has.

        share: the part of the batch that these losses stand for, so that s is added once in all.
        """
        return torch.where(present, (-self.log_variance).exp() * losses + share * self.log_variance, 0.0)
