"""Rasters, values with validity and product, and the cuts and flips that move all modalities of a batch together."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multimae_eo.errors import SizeError
from multimae_eo.modalities import Categorical, Modality
from multimae_eo.shapes import Bool, Int, Shaped


class Raster(NamedTuple):
    """Values of one modality, which of them were measured, and which product they are of.

    values: [*b, c, h, w], in the modality's unit, or class codes; anything (NaN too) where not valid.
    valid: [*b, c or 1, h, w]; product: [*b], index into the modality's products.
    """

    values: Shaped[Tensor, "*b c h w"]
    valid: Bool[Tensor, "*b v h w"]
    product: Int[Tensor, "*b"]


Batch = dict[str, Raster]


def cut(batch: Batch, window: Int[Tensor, "b 4"], size: int) -> Batch:
    """Cut size x size pixels out of every sample, one place per sample; all rasters must lie on one grid.

    window: top, left, and 1 where the sample is then mirrored left-right, and top-bottom. It is not looked at here, as
    that would wait for the device: whoever draws it keeps it inside. One gather per tensor, on any device.
    """
    shapes = {name: tuple(r.values.shape[-2:]) for name, r in batch.items()}
    if len(set(shapes.values())) > 1:
        raise SizeError(f"a crop needs rasters on one grid, got {shapes}.")
    height, width = next(iter(shapes.values()))
    if size > min(height, width):
        raise SizeError(f"a {size} px crop is larger than the rasters of {height} x {width} px.")
    top, left, mirror, turn = window[:, :, None].unbind(1)
    step = torch.arange(size, device=window.device)
    ys = top + torch.where(turn == 1, size - 1 - step, step)
    xs = left + torch.where(mirror == 1, size - 1 - step, step)
    places = (ys[:, :, None] * width + xs[:, None, :]).flatten(1)[:, None]

    def cut_one(x: Tensor) -> Tensor:
        flat = x.flatten(2)
        return flat.gather(2, places.expand(-1, x.shape[1], -1)).unflatten(2, (size, size))

    return {name: Raster(cut_one(r.values), cut_one(r.valid), r.product) for name, r in batch.items()}


def flip(batch: Batch, *, horizontal: bool, vertical: bool) -> Batch:
    """Mirror every raster left-right (horizontal) and top-bottom (vertical)."""
    axes = [axis for axis, wanted in ((-1, horizontal), (-2, vertical)) if wanted]
    if not axes:
        return batch
    return {name: Raster(r.values.flip(axes), r.valid.flip(axes), r.product) for name, r in batch.items()}


def by_modality(
    values: Shaped[Tensor, "*b c h w"],
    valid: Bool[Tensor, "*b c h w"],
    bands: Sequence[str],
    modalities: Mapping[str, Modality],
    products: Mapping[str, int],
) -> Batch:
    """The rasters of images whose channels are these bands; bands of a modality that they lack are valid nowhere.

    products: the index of the product that each modality is read as.
    """
    channel = {band: i for i, band in enumerate(bands)}
    *leading, _, height, width = values.shape
    nothing = values.new_zeros(*leading, height, width)
    batch = {}
    for name, modality in modalities.items():
        places = [channel.get(band) for band in modality.bands]
        own = [nothing if i is None else values[..., i, :, :] for i in places]
        there = [nothing.bool() if i is None else valid[..., i, :, :] for i in places]
        product = torch.full(tuple(leading), products[name], dtype=torch.int64, device=values.device)
        batch[name] = Raster(torch.stack(own, dim=-3), torch.stack(there, dim=-3), product)
    return batch


def rows(batch: Batch, part: slice | int) -> Batch:
    """Some samples of a batch, or one of them without the batch's dimension."""
    return {name: Raster(*(tensor[part] for tensor in raster)) for name, raster in batch.items()}


def joined(batches: Sequence[Batch]) -> Batch:
    """Several batches of the same modalities and sizes as one."""
    return {n: Raster(*map(torch.cat, zip(*(b[n] for b in batches), strict=True))) for n in batches[0]}


def pad(batch: Batch, *, strides: Mapping[str, int], multiple: int) -> Batch:
    """Pad every raster right and below with invalid pixels, to a frame whose edges `multiple` divides.

    strides: how many pixels of the frame one pixel of each raster spans; the frame covers the largest of the rasters.
    Raises SizeError where they are not of one size, but for what a coarser grid reaches over the edge.
    """
    frames = [[edge * strides[name] for edge in r.values.shape[-2:]] for name, r in batch.items()]
    # A grid reaches over the edge of what it covers by less than one of its own pixels.
    over = [[edge - strides[name] for edge in frame] for name, frame in zip(batch, frames, strict=True)]
    if any(max(f[i] for f in over) >= min(f[i] for f in frames) for i in (0, 1)):
        sizes = ", ".join(f"{n} {frame[0]} x {frame[1]}" for n, frame in zip(batch, frames, strict=True))
        raise SizeError(f"images of one place must be of one size in pixels of 10 m, got {sizes}. Resample them first.")
    height, width = (-(-max(edges) // multiple) * multiple for edges in zip(*frames, strict=True))
    padded = {}
    for name, raster in batch.items():
        rows, columns = raster.values.shape[-2:]
        margin = (0, width // strides[name] - columns, 0, height // strides[name] - rows)
        padded[name] = Raster(F.pad(raster.values, margin), F.pad(raster.valid, margin), raster.product)
    return padded


class Majority(nn.Module):
    """Reduces classes to a grid `stride` times coarser: the commonest class among the valid pixels of each block.

    Ties go to the class that comes first in `codes`; a block without a valid pixel of a known class is invalid.
    """

    codes: Tensor
    ones: Tensor
    shifts: Tensor

    def __init__(self, codes: Sequence[int], stride: int):
        super().__init__()
        self.stride, self.unknown = stride, max(255, *codes) + 1
        # Several classes are counted at once, each in some bits of a number: a block adds at most stride^2 to each.
        self.bits = (stride * stride).bit_length()
        shifts = self.bits * torch.arange(63 // self.bits)
        tables = []
        for group in torch.tensor(codes).split(len(shifts)):
            tables.append(torch.zeros(self.unknown + 1, dtype=torch.int64))
            tables[-1][group] = 1 << shifts[: len(group)]
        for name, table in (("codes", torch.tensor(codes)), ("ones", torch.stack(tables)), ("shifts", shifts)):
            self.register_buffer(name, table, persistent=False)  # on the device, so that no step waits for a copy

    def forward(self, raster: Raster) -> Raster:
        """Raster of codes [*b, 1, h, w] -> [*b, 1, h / stride, w / stride]; raises SizeError."""
        height, width = raster.values.shape[-2:]
        if height % self.stride or width % self.stride:
            raise SizeError(f"a raster of {height} x {width} px cannot be reduced {self.stride} times.")
        codes = raster.values
        known = raster.valid
        codes = codes.short() if codes.dtype == torch.int8 else codes
        if codes.dtype != torch.uint8:  # the last place of the tables is of no class
            known = known & (codes >= 0) & (codes < self.unknown) & (codes == codes.round())
        index = torch.where(known, codes.int(), self.unknown).flatten()
        sums = torch.stack([self._sums(ones.index_select(0, index), raster.values) for ones in self.ones], dim=-1)
        counts = (sums[..., None] >> self.shifts & (1 << self.bits) - 1).flatten(-2)[..., : len(self.codes)]
        most, which = counts.max(dim=-1)
        return Raster(self.codes[which].to(raster.values.dtype), most > 0, raster.product)

    def _sums(self, ones: Tensor, like: Tensor) -> Tensor:
        """Sums over blocks; first over their rows, which lie far apart, then over what is left of each."""
        height, width = like.shape[-2:]
        rows = ones.view(like.shape).unflatten(-2, (height // self.stride, self.stride)).sum(dim=-2)
        return rows.unflatten(-1, (width // self.stride, self.stride)).sum(dim=-1)


class OwnGrids(nn.Module):
    """Reduces the classes of a batch that live on a coarser grid than 10 m to it."""

    def __init__(self, modalities: Mapping[str, Modality]):
        super().__init__()
        coarse = {name: m for name, m in modalities.items() if isinstance(m, Categorical) and m.stride > 1}
        self.reduce = nn.ModuleDict({name: Majority(m.codes, m.stride) for name, m in coarse.items()})

    def forward(self, batch: Batch) -> Batch:
        """Rasters at 10 m -> rasters on their own grids, in the same order."""
        return batch | {name: reduce(batch[name]) for name, reduce in self.reduce.items() if name in batch}


def token_valid(valid: Bool[Tensor, "*b v h w"], patch: int) -> Bool[Tensor, "*b n"]:
    """Which tokens are valid: those with at least half of the values of their patch (docs/design.md, A)."""
    *_, height, width = valid.shape
    blocks = valid.unflatten(-1, (width // patch, patch)).unflatten(-3, (height // patch, patch))
    share = blocks.sum(dim=(-1, -3, -5), dtype=torch.int32)
    return (2 * share >= valid.shape[-3] * patch * patch).flatten(-2)
