"""Trivial predictors of hidden pixels: what any model has to beat, over the same hidden valid pixels."""

from collections.abc import Iterable

import torch
from torch import Tensor

from multimae_eo.codecs import Encoded
from multimae_eo.encoder import layout_of, with_absent
from multimae_eo.layers import patchify
from multimae_eo.losses import counted_pixels, loss_kind, pixel_errors, sample_means
from multimae_eo.masking import TokenMask
from multimae_eo.modalities import Categorical
from multimae_eo.model import Decoder, MultiMAE
from multimae_eo.raster import Batch
from multimae_eo.shapes import Bool, Float

NAMES = ("band_mean", "visible_mean", "nearest_patch")
# How much of a histogram of visible classes is mixed with the training prior.
OBSERVED = 0.9


def class_priors(model: MultiMAE, batches: Iterable[Batch]) -> dict[str, Tensor]:
    """Shares of the classes of every categorical target over some batches of training tiles: {modality: [classes]}."""
    counts: dict[str, Tensor] = {}
    for batch in batches:
        for _, decoder in model.views():
            name = decoder.modality
            if isinstance(model.config.modalities[name], Categorical) and name in batch:
                seen = decoder.codec.encode(batch[name]).values.sum(dim=(0, 2, 3))
                counts[name] = counts.get(name, torch.zeros_like(seen)) + seen
    return {name: (n + 1) / (n + 1).sum() for name, n in counts.items()}


def trivial_losses(
    model: MultiMAE, batch: Batch, mask: TokenMask, priors: dict[str, Tensor]
) -> dict[str, dict[str, tuple[Tensor, Tensor]]]:
    """{view: {predictor: (sum over samples of their mean loss, number of samples)}}.

    band_mean: the statistics' mean, 0 in network numbers, or the training prior of the classes. visible_mean: the mean
    of the sample's visible patches of that modality. nearest_patch: the mean of the nearest visible patch, ties by
    index. Classes: histograms, mixed 0.9 to 0.1 with the prior. Without a visible patch: the band mean.
    """
    layout = layout_of(model.config, batch)
    hidden = mask.hidden(*layout.shape)
    full = with_absent(model.config, batch, tuple(model.config.modalities))
    counted = counted_pixels(model, batch, mask)
    losses: dict[str, dict[str, tuple[Tensor, Tensor]]] = {}
    for view, decoder in model.views():
        target = decoder.codec.encode(full[decoder.modality])
        visible = torch.zeros_like(hidden[:, 0])
        if decoder.modality in layout.names:
            visible = ~hidden[:, layout.names.index(decoder.modality)]
        for name, patches in predictions(target, visible, decoder, layout.grid, priors.get(decoder.modality)).items():
            maps = patches.transpose(1, 2).unflatten(2, layout.grid)
            pixels = maps.repeat_interleave(decoder.patch, 2).repeat_interleave(decoder.patch, 3)
            error = pixel_errors(pixels, target, loss_kind(model, decoder))
            losses.setdefault(view, {})[name] = sample_means(error, counted[view])
    return losses


def predictions(
    target: Encoded, visible: Bool[Tensor, "b n"], decoder: Decoder, grid: tuple[int, int], prior: Tensor | None
) -> dict[str, Float[Tensor, "b n c"]]:
    """Network numbers that each predictor gives for every patch (logarithms of probabilities for classes)."""
    channels = target.values.shape[1]
    known = target.valid.expand(-1, channels, -1, -1)

    def per_patch(x: Tensor) -> Tensor:
        return patchify(x.float(), decoder.patch).unflatten(2, (channels, -1)).sum(dim=3)

    shown = visible[..., None]
    sums, number = per_patch(target.values * known) * shown, per_patch(known) * shown
    nearest = nearest_visible(visible & (number.sum(dim=2) > 0), grid)
    pooled = sums.sum(1, keepdim=True).expand_as(sums), number.sum(1, keepdim=True).expand_as(sums)
    index = nearest.clamp(min=0)[..., None].expand_as(sums)
    found = (nearest >= 0)[..., None]
    local = sums.gather(1, index) * found, number.gather(1, index) * found
    nothing = torch.zeros_like(sums), torch.zeros_like(sums)
    return {name: _mean(*part, prior) for name, part in zip(NAMES, (nothing, pooled, local), strict=True)}


def _mean(sums: Tensor, number: Tensor, prior: Tensor | None) -> Tensor:
    mean = sums / number.clamp(min=1)
    if prior is None:
        return mean
    return torch.where(number > 0, OBSERVED * mean + (1 - OBSERVED) * prior, prior).log()


def nearest_visible(visible: Bool[Tensor, "b n"], grid: tuple[int, int]) -> Tensor:
    """For each patch the index of the nearest visible one, ties by index; -1 where none is visible -> [b, n]."""
    rows, columns = torch.meshgrid(*(torch.arange(g, device=visible.device) for g in grid), indexing="ij")
    places = torch.stack([rows.flatten(), columns.flatten()], dim=1)
    squared = (places[:, None] - places[None]).square().sum(dim=2)
    number = len(places)
    rank = squared * number + torch.arange(number, device=visible.device)
    far = int(rank.max()) + 1
    best = torch.where(visible[:, None, :], rank, far).min(dim=2)
    return torch.where(best.values < far, best.indices, -1)
