"""The model: the encoder, a decoder per view, and MultiMAE of both."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multimae_eo.codecs import Codec, codec_for
from multimae_eo.config import ModelConfig
from multimae_eo.encoder import Encoder, TokenLayout, initialise, layout_of, one_hot, positions, with_absent
from multimae_eo.layers import NORM_EPS, Block, CrossAttention, Mlp, unpatchify
from multimae_eo.masking import TokenMask
from multimae_eo.modalities import Categorical, View
from multimae_eo.raster import Batch
from multimae_eo.shapes import Float


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
