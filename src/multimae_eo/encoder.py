"""The encoder: tokenizers, and a ViT over the tokens of any subset of the modalities; all that embedding needs."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from multimae_eo.codecs import Codec, codec_for
from multimae_eo.config import TABLE_SIZE, ModelConfig
from multimae_eo.errors import BatchError, ConfigError, SizeError, UnknownNameError
from multimae_eo.inputs import Units, is_batch, read_images
from multimae_eo.layers import Block, PositionTable, patchify
from multimae_eo.masking import TokenMask
from multimae_eo.modalities import Categorical, View
from multimae_eo.raster import Batch, Raster, token_valid
from multimae_eo.shapes import Bool, Float


class TokenLayout(NamedTuple):
    """Where the tokens of each modality stand in the sequence: modality by modality in the model's order, row major."""

    names: tuple[str, ...]
    grid: tuple[int, int]

    @property
    def num_tokens(self) -> int:
        """Tokens of one modality."""
        return self.grid[0] * self.grid[1]

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.names), self.num_tokens

    def start(self, name: str) -> int:
        return self.names.index(name) * self.num_tokens


def layout_of(config: ModelConfig, batch: Mapping[str, Raster]) -> TokenLayout:
    """The layout of a batch; raises BatchError, SizeError or UnknownNameError where the batch does not fit."""
    frames = {}
    for name, raster in batch.items():
        if name not in config.modalities:
            raise UnknownNameError("modality", name, config.modalities)
        modality = config.modalities[name]
        channels, *size = raster.values.shape[-3:]
        if channels != len(modality.bands):
            raise BatchError(f"'{name}': expected {len(modality.bands)} bands {modality.bands}, got {channels}.")
        frames[name] = tuple(edge * modality.stride for edge in size)
    if not frames:
        raise BatchError(f"the batch is empty; give at least one of {', '.join(config.input_modalities)}.")
    if len(set(frames.values())) > 1:
        raise SizeError(f"all modalities must cover one frame; on the 10 m grid they cover {frames} px.")
    height, width = next(iter(frames.values()))
    if height % config.patch_size or width % config.patch_size:
        raise SizeError(
            f"{height} x {width} px is not a multiple of the patch size {config.patch_size}; "
            "crop, or pad right and below with invalid pixels."
        )
    grid = (height // config.patch_size, width // config.patch_size)
    return TokenLayout(config.input_modalities, grid)


class Tokenizer(nn.Module):
    """Turns a raster into tokens: codec, patches, one linear projection."""

    def __init__(self, view: View, config: ModelConfig):
        super().__init__()
        modality = config.modalities[view.modality]
        self.patch = config.patch_edge(view.modality)
        self.codec: Codec = codec_for(modality, view.standardize, self.patch)
        self.proj = nn.Linear(modality.channels * self.patch**2, config.dim)
        self.categorical = isinstance(modality, Categorical)
        # One-hot patches have one 1 per pixel; this scale gives their tokens that of the tokens of a three-band image.
        image = 3 * config.patch_size**2
        self.one_hot_std = (2 * image / (config.dim + image)) ** 0.5 / self.patch

    def forward(self, raster: Raster) -> tuple[Float[Tensor, "b n d"], Bool[Tensor, "b n"]]:
        """Raster [b, c, h, w] -> tokens, and which of them are valid."""
        encoded = self.codec.encode(raster)
        return self.proj(patchify(encoded.values, self.patch)), token_valid(encoded.valid, self.patch)

    def patches(self, raster: Raster) -> Float[Tensor, "b n cpp"]:
        """Raster [b, c, h, w] -> what the projection is given."""
        return patchify(self.codec.encode(raster).values, self.patch)


class Seen(NamedTuple):
    """What the encoder makes of all tokens of a batch.

    tokens: [b, m n + g, d], of the modalities in `layout` (those in the batch), then the global ones; valid: which of
    them mean anything.
    """

    tokens: Float[Tensor, "b k d"]
    valid: Bool[Tensor, "b k"]
    layout: TokenLayout

    def mean(self) -> Float[Tensor, "b d"]:
        """One vector per sample: the mean over all valid tokens, global ones included."""
        weight = self.valid[..., None].to(self.tokens.dtype)
        return self.tokens.masked_fill(~self.valid[..., None], 0.0).sum(dim=1) / weight.sum(dim=1)

    def places(self) -> Float[Tensor, "b d rows columns"]:
        """One vector per patch: the mean over the modalities that have a valid token there; 0 where none has."""
        number = math.prod(self.layout.shape)
        tokens = self.tokens[:, :number].unflatten(1, self.layout.shape)
        valid = self.valid[:, :number].unflatten(1, self.layout.shape)[..., None]
        mean = tokens.masked_fill(~valid, 0.0).sum(dim=1) / valid.sum(dim=1).clamp(min=1)
        return mean.transpose(1, 2).unflatten(2, self.layout.grid)

    def anything(self) -> Bool[Tensor, "b rows columns"]:
        """Whether any modality has a valid token at a patch."""
        valid = self.valid[:, : math.prod(self.layout.shape)].unflatten(1, self.layout.shape)
        return valid.any(dim=1).unflatten(1, self.layout.grid)


class Encoder(nn.Module):
    """A ViT over the tokens of any subset of the modalities, followed by global tokens; no final norm.

    Stands alone: fine-tuning and embedding need nothing else. Source: docs/model.md, section 4.
    grad_checkpointing: in training, compute blocks again in the backward pass instead of keeping what they computed.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.tokenizers = nn.ModuleDict({v.modality: Tokenizer(v, config) for v in config.input_views})
        self.positions = nn.ModuleDict({mode: positions(config, config.dim, mode) for mode in ("bicubic", "bilinear")})
        self.global_tokens = nn.Parameter(torch.zeros(1, config.num_global_tokens, config.dim))
        rates = [config.drop_path * i / max(1, config.depth - 1) for i in range(config.depth)]
        self.blocks = nn.ModuleList([Block(config.dim, config.heads, rate) for rate in rates])
        self.grad_checkpointing = False
        self.apply(initialise)

    def forward(
        self,
        images: object,
        mask: TokenMask | None = None,
        *,
        bands: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
        units: Units | None = None,
        product: str | Sequence[str] | None = None,
    ) -> Float[Tensor, "b k d"]:
        """Tokens after the last block: the visible ones, then the global ones.

        images: a batch {modality: Raster [b, c, h, w]} in physical units, any non-empty subset of the inputs in any
        order; or arrays of named bands, with bands, units and product as in `read_images`, whose errors these raise.
        mask: which tokens are visible; None shows all valid tokens of the modalities in the batch, in the model's
        order (then invalid tokens keep their places, nothing attends to them, and their output means nothing).
        """
        batch = self.read(images, bands=bands, units=units, product=product)
        return self._blocks(*self._sequence(batch, mask), (-1,))[0]

    def intermediates(self, batch: Batch, mask: TokenMask | None = None) -> list[Float[Tensor, "b k d"]]:
        """The output of every block; a batch of rasters and a mask as in `forward`."""
        return self._blocks(*self._sequence(batch, mask), range(len(self.blocks)))

    def see(
        self,
        images: object,
        *,
        bands: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
        units: Units | None = None,
        product: str | Sequence[str] | None = None,
    ) -> Seen:
        """All tokens with their validity, for heads, vectors and maps of features; arguments as in `forward`."""
        return self.see_after(self.read(images, bands=bands, units=units, product=product), (-1,))[0]

    def see_after(self, batch: Batch, blocks: Iterable[int]) -> list[Seen]:
        """As `see`, after each of some blocks (indices from 0, or from the last one as -1), in the model's order."""
        layout = layout_of(self.config, batch)
        x, keys = self._sequence(batch, None)
        assert keys is not None
        layout = layout._replace(names=tuple(name for name in layout.names if name in batch))
        return [Seen(tokens, keys, layout) for tokens in self._blocks(x, keys, blocks)]

    def read(
        self,
        images: object,
        *,
        bands: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
        units: Units | None = None,
        product: str | Sequence[str] | None = None,
        nodata: float | None = 0,
        offset: int | float = 0,
        judge: bool = True,
    ) -> Batch:
        """Arrays of named bands as a batch on the encoder's device (see `read_images`); a batch stays as it is."""
        if is_batch(images):
            return images
        return read_images(
            images,
            self.config,
            bands=bands,
            units=units,
            product=product,
            nodata=nodata,
            offset=offset,
            judge=judge,
            device=self.global_tokens.device,
        )

    def _blocks(self, x: Tensor, keys: Tensor | None, kept: Iterable[int]) -> list[Tensor]:
        """The outputs of some blocks, in the order of the model."""
        kept, depth, outputs = set(kept), len(self.blocks), []
        if strange := kept - set(range(-depth, depth)):
            raise ConfigError(f"there is no block {strange.pop()}; expected -{depth} to {depth - 1}.")
        wanted = {i % depth for i in kept}
        for i, block in enumerate(self.blocks):
            if self.grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, keys, use_reentrant=False)
            else:
                x = block(x, keys)
            if i in wanted:
                outputs.append(x)
        return outputs

    def valid_tokens(self, batch: Batch) -> Bool[Tensor, "b m n"]:
        """Which tokens of all inputs are valid; those of absent modalities are not."""
        layout = layout_of(self.config, batch)
        full = with_absent(self.config, batch)
        return torch.stack([self._validity(name, full[name]) for name in layout.names], dim=1)

    def _tokenizer(self, name: str) -> Tokenizer:
        return cast(Tokenizer, self.tokenizers[name])

    def _validity(self, name: str, raster: Raster) -> Tensor:
        tokenizer = self._tokenizer(name)
        return token_valid(tokenizer.codec.valid(raster), tokenizer.patch)

    def _sequence(self, batch: Batch, mask: TokenMask | None) -> tuple[Tensor, Tensor | None]:
        layout, keys = layout_of(self.config, batch), None if mask is None else mask.real
        if mask is None:
            names = tuple(name for name in layout.names if name in batch)
            if not names:
                raise BatchError(f"no input in the batch: got {', '.join(batch)}; inputs: {', '.join(layout.names)}.")
            tokens, valid = zip(*(self._tokenizer(name)(batch[name]) for name in names), strict=True)
            x, keys = torch.cat(tokens, dim=1) + self._tables(names, layout.grid), torch.cat(valid, dim=1)
        else:
            x = self._visible(with_absent(self.config, batch), mask, layout)
        if keys is not None:
            keys = torch.cat([keys, keys.new_ones(x.shape[0], self.config.num_global_tokens)], dim=1)
        return torch.cat([x, self.global_tokens.expand(x.shape[0], -1, -1).to(x.dtype)], dim=1), keys

    def _visible(self, batch: Batch, mask: TokenMask, layout: TokenLayout) -> Tensor:
        """The visible tokens alone: each patch in the columns of its own modality, all projected at once.

        The same numbers as projecting all tokens and choosing some, for a fraction of the memory.
        """
        tokenizers = [self._tokenizer(name) for name in layout.names]
        patches = [t.patches(batch[name]) for name, t in zip(layout.names, tokenizers, strict=True)]
        which = one_hot(mask.visible // layout.num_tokens, len(tokenizers), patches[0].dtype)
        rows = (mask.visible % layout.num_tokens)[..., None]
        parts = [p.gather(1, rows.expand(-1, -1, p.shape[2])) * which[..., i : i + 1] for i, p in enumerate(patches)]
        weights = [*(t.proj.weight for t in tokenizers), torch.stack([t.proj.bias for t in tokenizers], dim=1)]
        tokens = F.linear(torch.cat([*parts, which], dim=2), torch.cat(weights, dim=1))
        return tokens + self._tables(layout.names, layout.grid)[mask.visible]

    def _tables(self, names: Sequence[str], grid: tuple[int, int]) -> Float[Tensor, "n d"]:
        """The positions of all tokens of some modalities."""
        modes = ["bilinear" if self._tokenizer(name).categorical else "bicubic" for name in names]
        return torch.cat([self.positions[mode](grid) for mode in modes])


def one_hot(index: Tensor, number: int, dtype: torch.dtype) -> Tensor:
    """[*b] -> [*b, number]; unlike torch's, it does not look at the values, so that the host need not wait for them."""
    return (index[..., None] == torch.arange(number, device=index.device)).to(dtype)


def positions(config: ModelConfig, dim: int, mode: str) -> PositionTable:
    """The position table of a model for tokens of width `dim`."""
    table, grid = TABLE_SIZE // config.patch_size, config.image_size // config.patch_size
    return PositionTable(dim, table, mode, grid, None if config.positions == "resized" else grid / table)


def with_absent(config: ModelConfig, batch: Batch, names: Sequence[str] | None = None) -> Batch:
    """The batch with every absent modality as a raster that is valid nowhere (docs/design.md, G)."""
    names = config.input_modalities if names is None else names
    present = next(iter(batch))
    first, stride = batch[present], config.modalities[present].stride
    *leading, _, rows, columns = first.values.shape
    full = {}
    for name in names:
        if name in batch:
            full[name] = batch[name]
            continue
        modality = config.modalities[name]
        size = (rows * stride // modality.stride, columns * stride // modality.stride)
        values = torch.zeros(*leading, len(modality.bands), *size, device=first.values.device)
        full[name] = Raster(values, torch.zeros_like(values, dtype=torch.bool), torch.zeros_like(first.product))
    return full


def initialise(module: nn.Module) -> None:
    """Model.md, section 4: Xavier-uniform linear layers (q, k, v apart), zero biases, truncated normal tokens."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
    for name, parts in (("qkv", 3), ("kv", 2)):
        if isinstance(layer := getattr(module, name, None), nn.Linear):
            for part in layer.weight.chunk(parts):
                nn.init.xavier_uniform_(part)
    if isinstance(module, Tokenizer) and module.categorical:
        bound = 3**0.5 * module.one_hot_std
        nn.init.uniform_(module.proj.weight, -bound, bound)
    for name in ("global_tokens", "mask_token", "modality_embeddings"):
        if isinstance(token := getattr(module, name, None), nn.Parameter):
            nn.init.trunc_normal_(token, std=0.02)
