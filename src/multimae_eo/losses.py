"""Reconstruction losses: per pixel, over hidden valid pixels, per sample first, with counts that add up over ranks."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from multimae_eo.codecs import Encoded
from multimae_eo.masking import TokenMask
from multimae_eo.modalities import Continuous
from multimae_eo.model import Decoder, MultiMAE, layout_of, with_absent
from multimae_eo.raster import Batch


class ViewLosses(NamedTuple):
    """Per view: the sum over samples of their mean loss, and the number of samples that have any hidden valid pixel.

    Both [t], in the order of the model's targets. Sums and counts add over micro-batches and ranks.
    """

    total: Float[Tensor, " t"]
    samples: Float[Tensor, " t"]

    def mean(self) -> Float[Tensor, " t"]:
        """Mean over samples; 0 for a view without any."""
        return self.total / self.samples.clamp(min=1)


def pixel_errors(
    predicted: Float[Tensor, "b c h w"], target: Encoded, kind: str
) -> tuple[Float[Tensor, "b h w"], Bool[Tensor, "b h w"]]:
    """Error per pixel, averaged over its valid channels, and which pixels have one.

    kind: "squared", "absolute" or "cross_entropy" (one-hot target).
    """
    predicted = predicted.float()
    if kind == "cross_entropy":
        error = -(target.values * predicted.log_softmax(dim=1)).sum(dim=1)
        return error, target.valid[:, 0]
    difference = torch.where(target.valid, predicted - target.values, 0.0)
    error = difference.square() if kind == "squared" else difference.abs()
    number = target.valid.sum(dim=1)
    return error.sum(dim=1) / number.clamp(min=1), number > 0


def sample_means(error: Float[Tensor, "b h w"], counted: Bool[Tensor, "b h w"]) -> tuple[Tensor, Tensor]:
    """Mean over the counted pixels of each sample -> (sum over samples, number of samples with any), scalars."""
    number = counted.sum(dim=(1, 2))
    means = torch.where(counted, error, 0.0).sum(dim=(1, 2)) / number.clamp(min=1)
    return means.sum(), (number > 0).sum().float()


def hidden_pixels(model: MultiMAE, batch: Batch, mask: TokenMask | None) -> dict[str, Bool[Tensor, "b h w"]]:
    """Per modality of the targets: the pixels whose token is hidden; all of them where it is no input, or mask None."""
    layout = layout_of(model.config, batch)
    rows, columns = layout.grid
    size = len(next(iter(batch.values())).values)
    device = next(iter(batch.values())).values.device
    everything = torch.ones(size, rows, columns, dtype=torch.bool, device=device)
    hidden = None if mask is None else mask.hidden(*layout.shape)
    pixels = {}
    for name, modality in model.config.modalities.items():
        tokens = everything
        if hidden is not None and name in layout.names:
            tokens = hidden[:, layout.names.index(name)].unflatten(1, (rows, columns))
        edge = model.config.patch_edge(name)
        pixels[name] = tokens.repeat_interleave(edge, dim=1).repeat_interleave(edge, dim=2)
        assert pixels[name].shape[1] * modality.stride == rows * model.config.patch_size
    return pixels


def loss_kind(model: MultiMAE, decoder: Decoder) -> str:
    """The error that a decoder's modality is measured with."""
    modality = model.config.modalities[decoder.modality]
    return modality.loss if isinstance(modality, Continuous) else "cross_entropy"


def reconstruction_losses(
    model: MultiMAE, predicted: dict[str, Tensor], batch: Batch, mask: TokenMask | None
) -> ViewLosses:
    """Losses of predictions against the batch over hidden valid pixels (docs/model.md, section 6); mask None counts all.

    predicted: network numbers per view, as `MultiMAE.forward` returns them; batch: rasters in physical units.
    Modalities absent from the batch count no sample, and their parameters get a gradient of exactly zero.
    """
    full = with_absent(model.config, batch, tuple(model.config.modalities))
    hidden = hidden_pixels(model, batch, mask)
    totals, samples = [], []
    for view, decoder in model.views():
        target = decoder.codec.encode(full[decoder.modality])
        error, known = pixel_errors(predicted[view], target, loss_kind(model, decoder))
        total, number = sample_means(error, known & hidden[decoder.modality])
        totals.append(total)
        samples.append(number)
    return ViewLosses(torch.stack(totals), torch.stack(samples))


class UncertaintyWeights(nn.Module):
    """Learned weights exp(-s) L + s, one s per view; nothing for a view that no sample of the batch has."""

    def __init__(self, num_views: int):
        super().__init__()
        self.log_variance = nn.Parameter(torch.zeros(num_views))

    def forward(self, losses: Float[Tensor, " t"], present: Bool[Tensor, " t"]) -> Float[Tensor, " t"]:
        """losses: means per view; present: which views any sample of the global batch has."""
        return torch.where(present, (-self.log_variance).exp() * losses + self.log_variance, 0.0)
