"""Token masks: which tokens of all modalities are visible, drawn outside of the model from an explicit generator."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from multimae_eo.errors import BatchError
from multimae_eo.shapes import Bool, Float, Int


class TokenMask(NamedTuple):
    """The visible tokens of a batch, as positions in the model's sequence of m modalities x n tokens.

    visible: [b, k]; real: [b, k], False for a place that a sample could not fill, or None where all are filled
    (whether it is given is decided by configuration, never by looking at the data; docs/design.md, E).
    """

    visible: Int[Tensor, "b k"]
    real: Bool[Tensor, "b k"] | None = None

    def hidden(self, num_modalities: int, num_tokens: int) -> Bool[Tensor, "b m n"]:
        """Which tokens are not visible."""
        total = num_modalities * num_tokens
        places = self.visible if self.real is None else torch.where(self.real, self.visible, total)
        hidden = self.visible.new_ones((len(self.visible), total + 1), dtype=torch.bool)
        return hidden.scatter(1, places, False)[:, :total].unflatten(1, (num_modalities, num_tokens))


def mask_from_hidden(hidden: Bool[Tensor, "b m n"]) -> TokenMask:
    """An explicit mask; every sample must leave the same number of tokens visible, else BatchError."""
    visible = ~hidden.flatten(1)
    counts = visible.sum(1)
    if len(counts) and (counts != counts[0]).any():
        raise BatchError(f"every sample of a mask needs the same number of visible tokens, got {counts.tolist()}.")
    return TokenMask(visible.nonzero()[:, 1].reshape(len(hidden), -1))


class MaskNoise(NamedTuple):
    """The randomness of masks; with the validity of the tokens it decides them, on any device.

    order: [*b, m, n] uniform; log_share: [*b, m], logarithms of Gamma(alpha_m) variables; chosen: [*b, m], the subset
    of modalities that is filled first.
    """

    order: Float[Tensor, "*b m n"]
    log_share: Float[Tensor, "*b m"]
    chosen: Bool[Tensor, "*b m"]


def draw_noise(
    generator: np.random.Generator,
    shape: Sequence[int],
    *,
    alpha: float | Sequence[float] = 1.0,
    random_subset: bool = False,
) -> MaskNoise:
    """Draw the randomness of masks of shape [*b, m, n].

    alpha: of the symmetric Dirichlet, or one per modality. random_subset: first choose one of the non-empty subsets of
    the modalities, each equally likely; the others are visible only where the chosen ones lack tokens.
    """
    *batch, num_modalities, _ = shape
    order = generator.random(tuple(shape), dtype=np.float32)
    alphas = np.broadcast_to(np.asarray(alpha, dtype=np.float64), (*batch, num_modalities))
    # Gamma(a) = Gamma(a + 1) U^(1/a); in logarithms it does not underflow for small a.
    log_share = np.log(generator.standard_gamma(alphas + 1)) + np.log1p(-generator.random(alphas.shape)) / alphas
    subset = generator.integers(1, 2**num_modalities, batch) if random_subset else np.full(batch, 2**num_modalities - 1)
    chosen = np.asarray(subset)[..., None] >> np.arange(num_modalities) & 1
    return MaskNoise(
        torch.from_numpy(order), torch.from_numpy(log_share.astype(np.float32)), torch.from_numpy(chosen.astype(bool))
    )


def place_mask(valid: Bool[Tensor, "b m n"], noise: MaskNoise, num_visible: int, *, keys: bool = False) -> TokenMask:
    """The mask that some randomness gives on some validity: exactly `num_visible` tokens, none of them invalid.

    Visible are the tokens with the smallest (rank + 1/2) / G_m, rank among the valid tokens of a modality and
    G_m ~ Gamma(alpha_m): Sainte-Lague apportionment of the budget to Dirichlet votes (docs/model.md, 3), in three
    tiers: chosen modalities, the others, invalid tokens. Where a sample has fewer valid tokens than the budget, its
    mask holds invalid tokens too, which `TokenMask.real` then marks: pass keys=True, or check `enough_tokens` before.
    """
    order = torch.where(valid, noise.order, 2.0)
    rank = order.argsort(dim=-1, stable=True).argsort(dim=-1)
    score = (rank + 0.5).log() - noise.log_share[..., None]
    tier = torch.where(valid, torch.where(noise.chosen[..., None], 0, 1), 2)
    by_score = score.flatten(1).argsort(dim=-1, stable=True)
    by_tier = tier.flatten(1).gather(1, by_score).argsort(dim=-1, stable=True)
    visible = by_score.gather(1, by_tier)[:, :num_visible].sort(dim=-1).values
    return TokenMask(visible, valid.flatten(1).gather(1, visible) if keys else None)


def enough_tokens(num_valid: int, num_visible: int, where: str) -> None:
    """Raise BatchError where a sample has fewer valid tokens than the budget."""
    if num_valid < num_visible:
        raise BatchError(
            f"{where}: {num_valid} valid tokens, but {num_visible} are to be visible. Lower the budget (in "
            "pre-training mask.num_visible), leave the tile out, or allow short samples (mask.short_samples=mask)."
        )


def sample_mask(
    valid: Bool[Tensor, "b m n"],
    num_visible: int,
    *,
    generator: np.random.Generator,
    alpha: float | Sequence[float] = 1.0,
    random_subset: bool = False,
) -> TokenMask:
    """Draw masks for a batch; raises BatchError where a sample has fewer valid tokens than `num_visible`."""
    for row, number in enumerate(valid.flatten(1).sum(1).tolist()):
        enough_tokens(number, num_visible, f"sample {row} of the batch")
    noise = draw_noise(generator, valid.shape, alpha=alpha, random_subset=random_subset)
    return place_mask(valid, MaskNoise(*(part.to(valid.device) for part in noise)), num_visible)
