"""The model: tokenizers, an encoder that sees any subset of modalities, a decoder per view, and MultiMAE of all."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from multimae_eo.codecs import Codec, codec_for
from multimae_eo.config import TABLE_SIZE, ModelConfig
from multimae_eo.errors import BatchError, SizeError, UnknownNameError
from multimae_eo.layers import NORM_EPS, Block, CrossAttention, Mlp, PositionTable, patchify, unpatchify
from multimae_eo.masking import TokenMask
from multimae_eo.modalities import Categorical, View
from multimae_eo.raster import Batch, Raster, token_valid


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

    def forward(self, batch: Batch, mask: TokenMask | None = None) -> Float[Tensor, "b k d"]:
        """Tokens after the last block: the visible ones, then the global ones.

        batch: {modality: Raster [b, c, h, w]} in physical units, any non-empty subset of the inputs in any order.
        mask: which tokens are visible; None shows all valid tokens of the modalities in the batch, in the model's
        order (then invalid tokens keep their places, nothing attends to them, and their output means nothing).
        """
        return self.intermediates(batch, mask)[-1]

    def intermediates(self, batch: Batch, mask: TokenMask | None = None) -> list[Float[Tensor, "b k d"]]:
        """The output of every block; arguments as in `forward`."""
        x, keys = self._sequence(batch, mask)
        outputs = []
        for block in self.blocks:
            if self.grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, keys, use_reentrant=False)
            else:
                x = block(x, keys)
            outputs.append(x)
        return outputs

    def see(self, batch: Batch) -> Seen:
        """All tokens of the modalities in the batch with their validity: what heads and probes work on."""
        layout = layout_of(self.config, batch)
        x, keys = self._sequence(batch, None)
        assert keys is not None
        for block in self.blocks:
            x = block(x, keys)
        return Seen(x, keys, layout._replace(names=tuple(name for name in layout.names if name in batch)))

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
            keys = torch.cat([keys, keys.new_ones(len(x), self.config.num_global_tokens)], dim=1)
        return torch.cat([x, self.global_tokens.expand(len(x), -1, -1).to(x.dtype)], dim=1), keys

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


class Shared(NamedTuple):
    """What all decoders have in common: which tokens are visible, and where they stand.

    which: [b, k, m], one-hot modality of a visible token; table: positions of all places [n, e], and of the visible
    tokens [b, k, e].
    """

    mask: TokenMask
    layout: TokenLayout
    which: Float[Tensor, "b k m"]
    table: Float[Tensor, "n e"]
    visible_table: Float[Tensor, "b k e"]


class Decoder(nn.Module):
    """Predicts one view from what the encoder saw: cross-attention, a few blocks, a linear layer to pixels.

    Source: docs/model.md, section 5. It builds its own slice of the sequence and the visible tokens, nothing else.
    """

    def __init__(self, view: View, config: ModelConfig):
        super().__init__()
        modality, dim = config.modalities[view.modality], config.decoder_dim
        self.modality, self.patch = view.modality, config.patch_edge(view.modality)
        self.full_precision = isinstance(modality, Categorical)
        self.codec: Codec = codec_for(modality, view.standardize, self.patch)
        self.context = nn.Linear(config.dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.modality_embeddings = nn.Parameter(torch.zeros(len(config.inputs), dim))
        self.query_norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.context_norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.cross = CrossAttention(dim, config.decoder_heads)
        self.out_norm, self.mlp = nn.LayerNorm(dim, eps=NORM_EPS), Mlp(dim)
        self.blocks = nn.ModuleList([Block(dim, config.decoder_heads) for _ in range(config.decoder_depth)])
        self.out = nn.Linear(dim, modality.channels * self.patch**2)
        self.apply(initialise)

    def forward(self, seen: Float[Tensor, "b k e"], shared: Shared) -> Float[Tensor, "b c h w"]:
        """seen: visible, then global tokens as `context` projects them. Returns network numbers."""
        mask = shared.mask
        num_visible = mask.visible.shape[1]
        visible, rest = seen[:, :num_visible], seen[:, num_visible:]
        queries = self._queries(visible, shared)
        # A product instead of an index: its gradient is the same to the bit every time, and has no atomic sums.
        embedded = visible + shared.which @ self.modality_embeddings + shared.visible_table
        keys = None
        if mask.real is not None:
            keys = torch.cat([mask.real, mask.real.new_ones(len(rest), rest.shape[1])], dim=1)
        context = torch.cat([embedded.to(rest.dtype), rest], dim=1)
        x = self.cross(self.query_norm(queries), self.context_norm(context), keys)
        x = x + self.mlp(self.out_norm(x))
        for block in self.blocks:
            x = block(x)
        return unpatchify(self.out(x), self.patch, shared.layout.grid)

    def _queries(self, visible: Tensor, shared: Shared) -> Tensor:
        """The target's slice of the sequence: its visible tokens in their places, mask tokens elsewhere."""
        mask, layout = shared.mask, shared.layout
        number = layout.num_tokens
        queries = self.mask_token.to(visible.dtype).expand(len(visible), number + 1, -1)
        if self.modality not in layout.names:
            return queries[:, :number] + shared.table
        place = mask.visible - layout.start(self.modality)
        inside = (place >= 0) & (place < number)
        if mask.real is not None:
            inside = inside & mask.real
        place = torch.where(inside, place, number)  # one place more than there are tokens takes all others
        queries = queries.scatter(1, place[..., None].expand_as(visible), visible)[:, :number]
        return queries + self.modality_embeddings[layout.names.index(self.modality)] + shared.table


class MultiMAE(nn.Module):
    """Encoder and one decoder per target view.

    `model(batch, mask)` predicts every target from the visible tokens; both arguments are explicit, so the model is
    deterministic. Source: "MultiMAE Meets Earth Observation", Sosa et al., ICIP 2025.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoders = nn.ModuleDict({str(v): Decoder(v, config) for v in config.target_views})
        self.decoder_positions = positions(config, config.decoder_dim, "bilinear")

    def forward(
        self, batch: Batch, mask: TokenMask, *, only: Sequence[str] | None = None
    ) -> dict[str, Float[Tensor, "b c h w"]]:
        """batch: rasters in physical units -> {view: network numbers} on the grid of the view's modality.

        Modalities that are no inputs are ignored, absent inputs count as valid nowhere. only: views to predict; all by
        default.
        """
        encoded = self.encoder(batch, mask)
        shared, predicted = self._shared(layout_of(self.config, batch), mask), {}
        for exact in (False, True):
            decoders = {v: d for v, d in self.views() if d.full_precision == exact and (only is None or v in only)}
            with torch.autocast(encoded.device.type, enabled=False) if exact else nullcontext():
                x = encoded.float() if exact else encoded
                for (view, decoder), seen in zip(decoders.items(), project(x, decoders.values()), strict=True):
                    predicted[view] = decoder(seen, shared)
        return {view: predicted[view] for view, _ in self.views() if view in predicted}

    def _shared(self, layout: TokenLayout, mask: TokenMask) -> Shared:
        table = self.decoder_positions(layout.grid)
        which = one_hot(mask.visible // layout.num_tokens, len(layout.names), table.dtype)
        return Shared(mask, layout, which, table, table[mask.visible % layout.num_tokens])

    def views(self) -> Iterator[tuple[str, Decoder]]:
        """The targets and their decoders, in the model's order."""
        return ((view, cast(Decoder, decoder)) for view, decoder in self.decoders.items())

    def reconstruct(self, batch: Batch, mask: TokenMask) -> dict[str, Tensor]:
        """As `forward`, but in physical units or class codes.

        Views standardised per patch or sample take their level and scale from the batch (see `Standardize.decode`).
        """
        full = with_absent(self.config, batch, tuple(self.config.modalities))
        predicted = self(batch, mask)
        return {v: d.codec.decode(predicted[v].float(), full[d.modality]) for v, d in self.views()}


def project(encoded: Tensor, decoders: Iterable[Decoder]) -> Sequence[Tensor]:
    """The encoder's tokens as each of some decoders projects them, in one product."""
    layers = [decoder.context for decoder in decoders]
    if not layers:
        return ()
    weight, bias = (torch.cat([getattr(layer, name) for layer in layers]) for name in ("weight", "bias"))
    return F.linear(encoded, weight, bias).split(layers[0].out_features, dim=-1)


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
