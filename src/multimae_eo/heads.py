"""Heads: what turns the tokens of the encoder into a label per sample, or per pixel."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multimae_eo.config import ModelConfig, TaskConfig
from multimae_eo.encoder import Seen, initialise
from multimae_eo.layers import NORM_EPS, CrossAttention, unpatchify
from multimae_eo.shapes import Float

# The dense head of the paper (docs/model.md, section 8): 6144 channels per token at width 768, which become 4 x 4
# pixels of 384 channels; other widths in proportion.
WIDENING, CELLS, CONVNEXT_BLOCKS = 8, 4, 4


class LinearHead(nn.Module):
    """Mean over all valid tokens, LayerNorm, linear (the paper's; docs/model.md, section 8)."""

    def __init__(self, dim: int, num_outputs: int):
        super().__init__()
        self.norm, self.out = nn.LayerNorm(dim, eps=NORM_EPS), nn.Linear(dim, num_outputs)
        self.apply(initialise)

    def forward(self, seen: Seen) -> Float[Tensor, "b k"]:
        return self.out(self.norm(seen.mean()))


class AttentiveHead(nn.Module):
    """One learned query attends to all valid tokens; LayerNorm, linear."""

    def __init__(self, dim: int, heads: int, num_outputs: int):
        super().__init__()
        self.query = nn.Parameter(torch.zeros(1, 1, dim))
        self.context_norm, self.cross = nn.LayerNorm(dim, eps=NORM_EPS), CrossAttention(dim, heads)
        self.norm, self.out = nn.LayerNorm(dim, eps=NORM_EPS), nn.Linear(dim, num_outputs)
        self.apply(initialise)
        nn.init.trunc_normal_(self.query, std=0.02)

    def forward(self, seen: Seen) -> Float[Tensor, "b k"]:
        query = self.query.expand(seen.tokens.shape[0], -1, -1)
        pooled = self.cross(query, self.context_norm(seen.tokens), seen.valid)
        return self.out(self.norm(pooled[:, 0]))


class Slots(nn.Module):
    """Gives every modality its own slot of channels, keyed by name (docs/design.md, J).

    A learned vector stands in the place of a token that is not valid, and in all places of an absent modality.
    """

    def __init__(self, names: Sequence[str], dim: int):
        super().__init__()
        self.names = tuple(names)
        self.absent = nn.Parameter(torch.zeros(len(self.names), dim))
        nn.init.trunc_normal_(self.absent, std=0.02)

    def forward(self, seen: Seen) -> Float[Tensor, "b n md"]:
        number = seen.layout.num_tokens
        slots = []
        for name, absent in zip(self.names, self.absent, strict=True):
            if name in seen.layout.names:
                places = slice(start := seen.layout.start(name), start + number)
                slots.append(torch.where(seen.valid[:, places, None], seen.tokens[:, places], absent))
            else:
                slots.append(absent.to(seen.tokens.dtype).expand(seen.tokens.shape[0], number, -1))
        return torch.cat(slots, dim=-1)


class LinearDenseHead(nn.Module):
    """LayerNorm and one linear layer from the slots of a token to the pixels of its patch."""

    def __init__(self, names: Sequence[str], dim: int, patch: int, num_outputs: int):
        super().__init__()
        self.patch = patch
        self.slots = Slots(names, dim)
        width = dim * len(names)
        self.norm, self.out = nn.LayerNorm(width, eps=NORM_EPS), nn.Linear(width, num_outputs * patch * patch)
        self.apply(initialise)

    def forward(self, seen: Seen) -> Float[Tensor, "b k h w"]:
        return unpatchify(self.out(self.norm(self.slots(seen))), self.patch, seen.layout.grid)


class ConvNeXtBlock(nn.Module):
    """7 x 7 depthwise convolution, LayerNorm, MLP of four times the width; residual, no layer scale."""

    def __init__(self, dim: int):
        super().__init__()
        self.depthwise = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + self.fc2(F.gelu(self.fc1(y))).permute(0, 3, 1, 2)


class ConvNeXtHead(nn.Module):
    """The paper's dense head: each token becomes 4 x 4 cells, four ConvNeXt blocks, 1 x 1 convolution, bilinear.

    Source: docs/model.md, section 8.
    """

    def __init__(self, names: Sequence[str], dim: int, patch: int, num_outputs: int):
        super().__init__()
        self.patch = patch
        self.slots = Slots(names, dim)
        channels = WIDENING * dim // CELLS**2
        self.widen = nn.Linear(dim * len(names), channels * CELLS**2)
        self.blocks = nn.Sequential(*(ConvNeXtBlock(channels) for _ in range(CONVNEXT_BLOCKS)))
        self.out = nn.Conv2d(channels, num_outputs, 1)
        self.apply(initialise)

    def forward(self, seen: Seen) -> Float[Tensor, "b k h w"]:
        rows, columns = seen.layout.grid
        cells = unpatchify(self.widen(self.slots(seen)), CELLS, (rows, columns))
        scores = self.out(self.blocks(cells))
        size = (rows * self.patch, columns * self.patch)
        return F.interpolate(scores, size=size, mode="bilinear", align_corners=False)


Head = LinearHead | AttentiveHead | LinearDenseHead | ConvNeXtHead


def build_head(config: ModelConfig, task: TaskConfig) -> Head:
    """The head that a task names, for the tokens of a model."""
    if task.head == "linear":
        return LinearHead(config.dim, task.num_outputs)
    if task.head == "attentive":
        return AttentiveHead(config.dim, config.heads, task.num_outputs)
    kind = LinearDenseHead if task.head == "linear_dense" else ConvNeXtHead
    return kind(task.inputs, config.dim, config.patch_size, task.num_outputs)
