"""An encoder as other libraries want one: images of named bands and any size in, maps of features out."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from multimae_eo.checkpoint import NO_WEIGHTS, load
from multimae_eo.config import sized
from multimae_eo.encoder import Encoder, Seen
from multimae_eo.errors import BatchError, CheckpointError, UnknownNameError
from multimae_eo.inputs import SKIPPED, Units
from multimae_eo.modalities import IMAGE_KEYS, canonical_band, fed_by, find_band
from multimae_eo.raster import pad
from multimae_eo.shapes import Float

Merge = Literal["mean", "concat"]
Bands = Sequence[str] | Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Stated:
    """What is said of images that they do not say themselves; each as of `inputs.read_images`."""

    bands: Bands | None = None
    units: Units | None = None
    product: str | Sequence[str] | None = None
    nodata: float | None = 0.0
    offset: float = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "bands", spelt(self.bands))

    @property
    def names(self) -> list[str] | None:
        """The canonical names of the bands, of all keys; None where the images name them."""
        if self.bands is None:
            return None
        names = [n for own in self.bands.values() for n in own] if isinstance(self.bands, Mapping) else self.bands
        return [canonical_band(name) for name in names if name != SKIPPED]


class Backbone(nn.Module):
    """An encoder with all that it needs to know of the images it will be given.

    Whether their values can be of their unit is judged on the first images of each set of keys only, as it waits for
    the device.
    merge: how the modalities become one map: their mean where they are valid, or side by side in the model's order,
    with 0 where one is missing.
    """

    def __init__(self, encoder: Encoder, stated: Stated, *, merge: Merge = "mean"):
        super().__init__()
        if merge not in ("mean", "concat"):
            raise UnknownNameError("merge", merge, ("mean", "concat"))
        self.encoder, self.stated, self.merge = encoder, stated, merge
        self.judged: set[str] = set()  # keys
        self.patch_size = encoder.config.patch_size
        named = {name: encoder.config.modalities[name] for name in encoder.config.input_modalities}
        self.inputs = tuple(named) if stated.names is None else fed_by(stated.names, named)

    @property
    def channels(self) -> int:
        """Channels of a map of features."""
        return self.encoder.config.dim * (len(self.inputs) if self.merge == "concat" else 1)

    def see_after(self, images: object, blocks: Iterable[int]) -> list[Seen]:
        """What the encoder has seen after some blocks; sizes that the patch does not divide are padded as invalid.

        Raises what `Encoder.read` does, SizeError for images of several sizes, ConfigError for unknown blocks.
        """
        keys = set(images) if isinstance(images, Mapping) else {""}
        batch = self.encoder.read(images, **vars(self.stated), judge=not keys <= self.judged)
        self.judged |= keys
        strides = {name: self.encoder.config.modalities[name].stride for name in batch}
        return self.encoder.see_after(pad(batch, strides=strides, multiple=self.patch_size), blocks)

    def merged(self, seen: Seen) -> Float[Tensor, "b d rows columns"]:
        """The map of features of what was seen; raises BatchError where a place side by side is missing for some."""
        if self.merge == "mean":
            return seen.places()
        if strange := sorted(set(seen.layout.names) - set(self.inputs)):
            raise BatchError(
                f"{', '.join(strange)} is in the images, but bands only tell of {', '.join(self.inputs)}; with "
                "merge='concat' they must name all keys that the images will have."
            )
        number, parts = seen.layout.num_tokens, []
        for name in self.inputs:
            if name in seen.layout.names:
                start = seen.layout.start(name)
                valid = seen.valid[:, start : start + number, None]
                parts.append(seen.tokens[:, start : start + number].masked_fill(~valid, 0.0))
            else:
                parts.append(seen.tokens.new_zeros(seen.tokens.shape[0], number, seen.tokens.shape[2]))
        return torch.cat(parts, dim=-1).transpose(1, 2).unflatten(2, seen.layout.grid)


def encoder_of(
    size: str | None, checkpoint: str | None, *, pretrained: bool = False, drop_path: float = 0.0
) -> Encoder:
    """The encoder of a checkpoint (a directory or Hub id), or with random weights of a size.

    Raises CheckpointError where weights are wanted and none are named, or those named are of another size.
    """
    if checkpoint is None:
        if pretrained or size is None:
            raise CheckpointError(f"pre-trained weights are wanted: name a checkpoint. {NO_WEIGHTS}")
        return Encoder(sized(size, drop_path=drop_path))
    encoder = load(checkpoint)
    expected = sized(size) if size is not None else encoder.config
    found = encoder.config
    if (found.dim, found.depth, found.heads) != (expected.dim, expected.depth, expected.heads):
        raise CheckpointError(
            f"'{checkpoint}' is not of size {size}: it has width {found.dim} and depth {found.depth}, expected "
            f"{expected.dim} and {expected.depth}."
        )
    for i, block in enumerate(encoder.blocks):
        block.drop_path = drop_path * i / max(1, found.depth - 1)  # type: ignore[assignment]
    return encoder.train()


def spelt(bands: Bands | None) -> Bands | None:
    """Names as strings, where they are members of an enumeration, as TerraTorch has them."""
    if isinstance(bands, Mapping):
        return {key: [str(getattr(name, "value", name)) for name in names] for key, names in bands.items()}
    return None if bands is None else [str(getattr(name, "value", name)) for name in bands]


def keys_of(names: Iterable[str]) -> dict[str, list[str]]:
    """The bands that keys of images stand for; raises UnknownNameError."""
    found = {}
    for name in names:
        if name.upper() in IMAGE_KEYS:
            found[name] = list(IMAGE_KEYS[name.upper()][0])
        elif find_band(name) is not None:
            found[name] = [name]
        else:
            raise UnknownNameError("key of the images", name, IMAGE_KEYS)
    return found
