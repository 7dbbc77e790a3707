"""The building blocks of the transformer: attention, blocks, patches and the sine-cosine position table."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multimae_eo.shapes import Bool, Float

# LayerNorm of encoder and decoders (docs/model.md, section 4).
NORM_EPS = 1e-6


def patchify(x: Float[Tensor, "b c h w"], patch: int) -> Float[Tensor, "b n cpp"]:
    """Cut into patches, row major; each is flattened channel-major."""
    batch, channels, height, width = x.shape
    cells = x.reshape(batch, channels, height // patch, patch, width // patch, patch)
    return cells.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * patch * patch)


def unpatchify(tokens: Float[Tensor, "b n cpp"], patch: int, grid: tuple[int, int]) -> Float[Tensor, "b c h w"]:
    """The inverse of `patchify` for a grid of (rows, columns) of patches."""
    batch, rows, columns = tokens.shape[0], *grid
    cells = tokens.reshape(batch, rows, columns, -1, patch, patch)
    return cells.permute(0, 3, 1, 4, 2, 5).reshape(batch, -1, rows * patch, columns * patch)


def sine_cosine_table(dim: int, rows: int, columns: int) -> Float[Tensor, "1 d rows columns"]:
    """Position table: channels [sin(i w), cos(i w), sin(j w), cos(j w)], i the row, j the column (docs/model.md, 2)."""
    # Named, as loading builds modules on a device without memory, but needs what is not in the file (checkpoint.py).
    omega, i, j = (torch.arange(n, dtype=torch.float64, device="cpu") for n in (dim // 4, rows, columns))
    omega = 10000.0 ** (-omega / (dim // 4))
    down, right = ((omega[:, None] * axis)[None] for axis in (i, j))  # [1, d / 4, rows], [1, d / 4, columns]
    tables = [f(down)[..., None].expand(-1, -1, -1, columns) for f in (torch.sin, torch.cos)]
    tables += [f(right)[..., None, :].expand(-1, -1, rows, -1) for f in (torch.sin, torch.cos)]
    return torch.cat(tables, dim=1).float()


class Mlp(nn.Module):
    """Linear to four times the width, exact GELU, linear back."""

    def __init__(self, dim: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        return self.fc2(F.gelu(self.fc1(x)))


def _attend(qkv: tuple[Tensor, ...], heads: int, keys: Tensor | None) -> Tensor:
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in qkv)
    mask = None if keys is None else keys[:, None, None, :]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


class Attention(nn.Module):
    """Multi-head self-attention; rows of qkv are q, k, v thirds, a head owns contiguous channels."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "b n d"], keys: Bool[Tensor, "b n"] | None = None) -> Float[Tensor, "b n d"]:
        """keys: which tokens may be attended to; None means all."""
        return self.proj(_attend(self.qkv(x).chunk(3, dim=-1), self.heads, keys))


class CrossAttention(nn.Module):
    """Multi-head attention of queries to a context; rows of kv are k, then v."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q, self.kv, self.proj = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)

    def forward(
        self, x: Float[Tensor, "b n d"], context: Float[Tensor, "b m d"], keys: Bool[Tensor, "b m"] | None = None
    ) -> Float[Tensor, "b n d"]:
        return self.proj(_attend((self.q(x), *self.kv(context).chunk(2, dim=-1)), self.heads, keys))


class Block(nn.Module):
    """Pre-norm transformer block with optional stochastic depth (per sample)."""

    def __init__(self, dim: int, heads: int, drop_path: float = 0.0):
        super().__init__()
        self.drop_path = drop_path
        self.norm1, self.attn = nn.LayerNorm(dim, eps=NORM_EPS), Attention(dim, heads)
        self.norm2, self.mlp = nn.LayerNorm(dim, eps=NORM_EPS), Mlp(dim)

    def forward(self, x: Float[Tensor, "b n d"], keys: Bool[Tensor, "b n"] | None = None) -> Float[Tensor, "b n d"]:
        x = x + self._drop(self.attn(self.norm1(x), keys))
        return x + self._drop(self.mlp(self.norm2(x)))

    def _drop(self, x: Tensor) -> Tensor:
        if not self.training or self.drop_path == 0:
            return x
        keep = x.new_empty(len(x), 1, 1).bernoulli_(1 - self.drop_path)
        return x * keep / (1 - self.drop_path)


class PositionTable(nn.Module):
    """The sine-cosine table resized to any grid of tokens; the grid of training is kept ready.

    table: edge of the square table; mode: "bicubic" or "bilinear"; pitch: tokens per table cell, to keep the distance
    that one token step means ("fixed_pitch"), or None to stretch the whole table over the grid ("resized", the paper).
    """

    ready: Tensor

    def __init__(self, dim: int, table: int, mode: str, training_grid: int, pitch: float | None = None):
        super().__init__()
        self.dim, self.table, self.mode, self.pitch = dim, table, mode, pitch
        self.register_buffer("ready", self._resize((training_grid, training_grid)), persistent=False)

    def forward(self, grid: tuple[int, int]) -> Float[Tensor, "n d"]:
        """Positions of a grid of (rows, columns) tokens, row major."""
        rows, columns = grid
        if rows * columns == len(self.ready) and rows == columns:
            return self.ready
        return self._resize(grid).to(self.ready)

    def _resize(self, grid: tuple[int, int]) -> Tensor:
        if self.pitch is None:
            table = sine_cosine_table(self.dim, self.table, self.table)
            resized = F.interpolate(table, size=grid, mode=self.mode, align_corners=False)
        else:  # one cell more than needed, so that rounding never loses the last token
            cells = [math.ceil(n / self.pitch) + 1 for n in grid]
            table = sine_cosine_table(self.dim, *cells)
            pitch = (self.pitch, self.pitch)
            resized = F.interpolate(
                table, scale_factor=pitch, mode=self.mode, align_corners=False, recompute_scale_factor=False
            )[..., : grid[0], : grid[1]]
        return resized.flatten(2).transpose(1, 2)[0]
