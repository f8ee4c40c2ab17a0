"""Object queries that look in turn at semantic and at depth features, each only where its last mask was.

Source: Cheng et al., Masked-attention Mask Transformer, 2022, section 3.2; Zhang et al., Uni-3D, 2023, for the second attention, to
depth. The parameter names are those of released weights.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from scenemill.schemas.errors import ConfigError
from scenemill.trainers.nvpanoptix3d.deformable import map_size, sine_position

LEVELS: Final = 3
"""Maps the layers look at in turn, the coarsest first."""

UNUSED: Final = ("cross_transformer_attention_layers", "depth_decoder_norm", "depth_embed")
"""Modules that checkpoints hold and nothing calls: their parameters never receive a gradient."""


class QueryPrediction(NamedTuple):
    """What the queries say after one layer.

    Attributes:
        pred_logits: (B, Q, classes + 1), the last for "no object".
        pred_masks: (B, Q, H, W), logits at the size of the mask features.
    """

    pred_logits: Tensor
    pred_masks: Tensor


class QueryOutput(NamedTuple):
    """What the decoder gives.

    Attributes:
        pred_logits, pred_masks: as in ``QueryPrediction``, after the last layer.
        aux_outputs: the predictions before the first layer and after each but the last.
        segm_decoder_out: (B, Q, hidden_dim), the queries after the last layer and the norm.
    """

    pred_logits: Tensor
    pred_masks: Tensor
    aux_outputs: list[QueryPrediction]
    segm_decoder_out: Tensor


class QueryDecoder(nn.Module):
    """The decoder with joint depth.

    Args:
        convs_dim: channels of the encoded maps and of the projected depth; if they are not ``hidden_dim`` they are projected.
        hidden_dim: width of the queries, a multiple of four and of ``nheads``.
        num_classes: without "no object".
        num_object_queries: how many queries.
        nheads, dim_feedforward: of the layers.
        dec_layers: layers plus one, which is the number of predictions.
        mask_dim: channels of the mask features.
        depth_dim: width of ``depth_embed``, which nothing uses.
        pre_norm: norm the input of a block, not the sum behind it.

    Raises:
        ConfigError: a setting that does not fit the others.
    """

    def __init__(
        self,
        *,
        convs_dim: int = 256,
        hidden_dim: int = 256,
        num_classes: int = 13,
        num_object_queries: int = 100,
        nheads: int = 8,
        dim_feedforward: int = 2048,
        dec_layers: int = 10,
        mask_dim: int = 256,
        depth_dim: int = 256,
        pre_norm: bool = False,
    ) -> None:
        super().__init__()
        if hidden_dim % nheads or hidden_dim % 4:
            raise ConfigError(f"hidden_dim {hidden_dim}: allowed is a multiple of four and of nheads, here {nheads}")
        if dec_layers < 1:
            raise ConfigError(f"dec_layers {dec_layers}: it counts the layers plus one; allowed is 1 and more")
        layers = range(dec_layers - 1)
        self.transformer_self_attention_layers = nn.ModuleList(SelfAttention(hidden_dim, nheads, pre_norm) for _ in layers)
        self.transformer_cross_attention_layers = nn.ModuleList(CrossAttention(hidden_dim, nheads, pre_norm) for _ in layers)
        self.transformer_ffn_layers = nn.ModuleList(FeedForward(hidden_dim, dim_feedforward, pre_norm) for _ in layers)
        self.depth_transformer_cross_attention_layers = nn.ModuleList(CrossAttention(hidden_dim, nheads, pre_norm) for _ in layers)
        self.decoder_norm = nn.LayerNorm(hidden_dim)
        self.query_feat = nn.Embedding(num_object_queries, hidden_dim)
        self.query_embed = nn.Embedding(num_object_queries, hidden_dim)
        self.level_embed = nn.Embedding(LEVELS, hidden_dim)
        self.depth_level_embed = nn.Embedding(LEVELS, hidden_dim)
        self.input_proj = nn.ModuleList(_projection(convs_dim, hidden_dim) for _ in range(LEVELS))
        self.depth_input_proj = nn.ModuleList(_projection(convs_dim, hidden_dim) for _ in range(LEVELS))
        self.class_embed = nn.Linear(hidden_dim, num_classes + 1)
        self.mask_embed = ThreeLinear(hidden_dim, mask_dim)
        self.cross_transformer_attention_layers = nn.ModuleList(SelfAttention(hidden_dim, nheads, pre_norm) for _ in layers)
        self.depth_decoder_norm = nn.LayerNorm(hidden_dim)
        self.depth_embed = ThreeLinear(hidden_dim, depth_dim)

    def forward(self, enc_features: Sequence[Tensor], mask_features: Tensor, depth_features: Sequence[Tensor]) -> QueryOutput:
        """Classes and masks of the queries.

        Args:
            enc_features: three of (B, convs_dim, h, w), the coarsest first.
            mask_features: (B, mask_dim, H, W).
            depth_features: projected depth features, of the same shapes as ``enc_features``.
        """
        sizes = [map_size(features) for features in enc_features]
        semantic = self._memories(enc_features, self.input_proj, self.level_embed)
        depth = self._memories(depth_features, self.depth_input_proj, self.depth_level_embed)
        queries = self.query_feat.weight[None].expand(mask_features.shape[0], -1, -1)
        normed, prediction = self._predict(queries, mask_features)
        predictions = [prediction]
        for index in range(len(self.transformer_ffn_layers)):
            level = index % LEVELS
            seen = seen_positions(prediction.pred_masks, sizes[level])
            queries = self._layer(index, queries, semantic[level], depth[level], seen)
            normed, prediction = self._predict(queries, mask_features)
            predictions.append(prediction)
        return QueryOutput(*prediction, predictions[:-1], normed)

    def _memories(self, maps: Sequence[Tensor], projections: nn.ModuleList, level_embed: nn.Embedding) -> list["Memory"]:
        memories = []
        for features, project, level in zip(maps, projections, level_embed.weight.unbind(), strict=True):
            value = project(features).flatten(2).transpose(1, 2) + level
            position = sine_position(map_size(features), level.shape[0], features.device)
            memories.append(Memory(value + position.to(value.dtype), value))
        return memories

    def _layer(self, index: int, queries: Tensor, semantic: "Memory", depth: "Memory", seen: Tensor) -> Tensor:
        place = self.query_embed.weight
        queries = self.transformer_cross_attention_layers[index](queries, place, semantic, seen)
        queries = self.depth_transformer_cross_attention_layers[index](queries, place, depth, seen)
        queries = self.transformer_self_attention_layers[index](queries, place)
        out: Tensor = self.transformer_ffn_layers[index](queries)
        return out

    def _predict(self, queries: Tensor, mask_features: Tensor) -> tuple[Tensor, QueryPrediction]:
        normed: Tensor = self.decoder_norm(queries)
        masks = torch.matmul(self.mask_embed(normed), mask_features.flatten(2))
        masks = masks.view(-1, self.query_feat.num_embeddings, *map_size(mask_features))
        return normed, QueryPrediction(self.class_embed(normed), masks)


class Memory(NamedTuple):
    """The tokens of one map, as attention reads them.

    Attributes:
        key: (B, h * w, width), with positions. value: (B, h * w, width), without.
    """

    key: Tensor
    value: Tensor


def seen_positions(mask_logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Where each query may look: inside its mask, or everywhere if its mask is empty at this size. No gradient.

    Args:
        mask_logits: (B, Q, H, W).
        size: (h, w) of the map looked at.

    Returns:
        (B, 1, Q, h * w) bool, True where it may look.

    >>> seen_positions(torch.tensor([[[[-1.0, 2.0]], [[-1.0, -2.0]]]]), (1, 2))[0, 0]
    tensor([[False,  True],
            [ True,  True]])
    """
    resized = functional.interpolate(mask_logits.detach().float(), size=size, mode="bilinear", align_corners=False)
    blocked = resized.sigmoid().flatten(2) < 0.5
    return (~blocked | blocked.all(dim=-1, keepdim=True)).unsqueeze(1)


def _projection(channels: int, width: int) -> nn.Module:
    if channels == width:
        return nn.Identity()
    conv = nn.Conv2d(channels, width, 1)
    nn.init.kaiming_uniform_(conv.weight, a=1)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


class Attention(nn.Module):
    """Attention of several heads, its parameters named and laid out as those of ``nn.MultiheadAttention``."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None = None) -> Tensor:
        """What each query gathers.

        Args:
            query: (B, Q, width).
            key, value: (B, L, width).
            seen: (B, 1, Q, L) bool, True where a query may look; None for everywhere.

        Returns:
            (B, Q, width).
        """
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        q, k, v = (
            self._of_heads(functional.linear(tokens, weight, bias))
            for tokens, weight, bias in zip((query, key, value), weights, biases, strict=True)
        )
        gathered = functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        out: Tensor = self.out_proj(gathered.transpose(1, 2).flatten(2))
        return out

    def _of_heads(self, tokens: Tensor) -> Tensor:
        """(B, N, width) to (B, heads, N, width / heads)."""
        return tokens.view(tokens.shape[0], -1, self.heads, self.out_proj.in_features // self.heads).transpose(1, 2)


class SelfAttention(nn.Module):
    """The queries look at each other."""

    def __init__(self, width: int, heads: int, pre_norm: bool = False) -> None:
        super().__init__()
        self.self_attn = Attention(width, heads)
        self.norm = nn.LayerNorm(width)
        self.pre_norm = pre_norm

    def forward(self, queries: Tensor, place: Tensor) -> Tensor:
        """(B, Q, width) to the same; ``place`` is (Q, width)."""
        read = self.norm(queries) if self.pre_norm else queries
        placed = read + place
        out: Tensor = queries + self.self_attn(placed, placed, read)
        return out if self.pre_norm else self.norm(out)


class CrossAttention(nn.Module):
    """The queries look at a map, where they may."""

    def __init__(self, width: int, heads: int, pre_norm: bool = False) -> None:
        super().__init__()
        self.multihead_attn = Attention(width, heads)
        self.norm = nn.LayerNorm(width)
        self.pre_norm = pre_norm

    def forward(self, queries: Tensor, place: Tensor, memory: Memory, seen: Tensor) -> Tensor:
        """(B, Q, width) to the same; ``place`` is (Q, width), ``seen`` as in ``Attention``."""
        read = self.norm(queries) if self.pre_norm else queries
        out: Tensor = queries + self.multihead_attn(read + place, memory.key, memory.value, seen)
        return out if self.pre_norm else self.norm(out)


class FeedForward(nn.Module):
    """Two linear layers on each query."""

    def __init__(self, width: int, inner: int, pre_norm: bool = False) -> None:
        super().__init__()
        self.linear1 = nn.Linear(width, inner)
        self.linear2 = nn.Linear(inner, width)
        self.norm = nn.LayerNorm(width)
        self.pre_norm = pre_norm
        for linear in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(linear.weight)

    def forward(self, queries: Tensor) -> Tensor:
        """(B, Q, width) to the same."""
        read = self.norm(queries) if self.pre_norm else queries
        out: Tensor = queries + self.linear2(functional.relu(self.linear1(read)))
        return out if self.pre_norm else self.norm(out)


class ThreeLinear(nn.Module):
    """Three linear layers with ReLU between them."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, out)])

    def forward(self, queries: Tensor) -> Tensor:
        """(B, Q, width) to (B, Q, out)."""
        first, second, third = self.layers
        out: Tensor = third(functional.relu(second(functional.relu(first(queries)))))
        return out
