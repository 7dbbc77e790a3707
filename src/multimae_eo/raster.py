"""Rasters, values with validity and product, and the crops and flips that move all modalities of a batch together."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from multimae_eo.errors import SizeError


class Raster(NamedTuple):
    """Values of one modality, which of them were measured, and which product they are of.

    values: [*b, c, h, w], in the modality's unit, or class codes; anything (NaN too) where not valid.
    valid: [*b, c or 1, h, w]; product: [*b], index into the modality's products.
    """

    values: Shaped[Tensor, "*b c h w"]
    valid: Bool[Tensor, "*b v h w"]
    product: Int[Tensor, "*b"]


Batch = dict[str, Raster]


def crop(batch: Batch, *, top: int, left: int, size: int) -> Batch:
    """Cut the same size x size pixels out of every raster; all must lie on one grid."""
    shapes = {name: tuple(r.values.shape[-2:]) for name, r in batch.items()}
    if len(set(shapes.values())) > 1:
        raise SizeError(f"a crop needs rasters on one grid, got {shapes}.")
    for name, (height, width) in shapes.items():
        if top < 0 or left < 0 or top + size > height or left + size > width:
            raise SizeError(
                f"'{name}': a {size} px crop at ({top}, {left}) leaves the raster of {height} x {width} px."
            )
    window = (..., slice(top, top + size), slice(left, left + size))
    return {name: Raster(r.values[window], r.valid[window], r.product) for name, r in batch.items()}


def flip(batch: Batch, *, horizontal: bool, vertical: bool) -> Batch:
    """Mirror every raster left-right (horizontal) and top-bottom (vertical)."""
    axes = [axis for axis, wanted in ((-1, horizontal), (-2, vertical)) if wanted]
    if not axes:
        return batch
    return {name: Raster(r.values.flip(axes), r.valid.flip(axes), r.product) for name, r in batch.items()}


def rows(batch: Batch, part: slice) -> Batch:
    """Some samples of a batch."""
    return {name: Raster(*(tensor[part] for tensor in raster)) for name, raster in batch.items()}


def pad(batch: Batch, *, strides: Mapping[str, int], multiple: int) -> Batch:
    """Pad every raster right and below with invalid pixels, to a frame whose edges `multiple` divides.

    strides: how many pixels of the frame one pixel of each raster spans; the frame covers the largest of the rasters.
    """
    frames = [[edge * strides[name] for edge in r.values.shape[-2:]] for name, r in batch.items()]
    height, width = (-(-max(edges) // multiple) * multiple for edges in zip(*frames, strict=True))
    padded = {}
    for name, raster in batch.items():
        rows, columns = raster.values.shape[-2:]
        margin = (0, width // strides[name] - columns, 0, height // strides[name] - rows)
        padded[name] = Raster(F.pad(raster.values, margin), F.pad(raster.valid, margin), raster.product)
    return padded


def majority(raster: Raster, codes: Sequence[int], stride: int) -> Raster:
    """Reduce classes to a grid `stride` times coarser: the commonest class among the valid pixels of each block.

    Ties go to the class that comes first in `codes`; a block without a valid pixel of a known class is invalid.
    """
    values, valid = raster.values, raster.valid
    height, width = values.shape[-2:]
    if height % stride or width % stride:
        raise SizeError(f"a raster of {height} x {width} px cannot be reduced {stride} times.")
    known = torch.tensor(codes, dtype=values.dtype, device=values.device)
    counted = (values == known[:, None, None]) & valid
    blocks = counted.unflatten(-1, (width // stride, stride)).unflatten(-3, (height // stride, stride))
    counts = blocks.sum(dim=(-1, -3), dtype=torch.int16)
    most, which = counts.max(dim=-3, keepdim=True)
    return Raster(known[which], most > 0, raster.product)


def token_valid(valid: Bool[Tensor, "*b v h w"], patch: int) -> Bool[Tensor, "*b n"]:
    """Which tokens are valid: those with at least half of the values of their patch (docs/design.md, A)."""
    *_, height, width = valid.shape
    blocks = valid.unflatten(-1, (width // patch, patch)).unflatten(-3, (height // patch, patch))
    share = blocks.sum(dim=(-1, -3, -5), dtype=torch.int32)
    return (2 * share >= valid.shape[-3] * patch * patch).flatten(-2)
