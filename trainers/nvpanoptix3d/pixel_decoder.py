"""From the backbone's maps to mask features: a deformable encoder over the coarse maps, and a step up to the fine one.

Source: Cheng et al., Masked-attention Mask Transformer, 2022, section 3.2.1 and the pixel decoder of its public code, whose
parameter names these are.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from scenemill.schemas.errors import ConfigError
from scenemill.trainers.nvpanoptix3d.deformable import DeformableAttention, Pyramid, map_size, pyramid_of, sine_position

STRIDES: Final = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}
"""Nominal stride of each map, in pixels of the image; they decide which maps the step up takes."""

PIXEL_CHANNELS: Final = {"res2": 256, "res3": 512, "res4": 1024, "res5": 2048}
"""Channels of each map at full size."""

GROUPS: Final = 32
"""Groups of every group norm."""

SCALES: Final = 3
"""Maps that go on to the query decoder."""


class PixelFeatures(NamedTuple):
    """What the pixel decoder gives.

    Attributes:
        mask_features: (B, mask_dim, H, W), at the size of the finest map taken.
        enc_features: three of (B, convs_dim, h, w), the coarsest first: res5, res4, res3.
    """

    mask_features: Tensor
    enc_features: list[Tensor]


class PixelDecoder(nn.Module):
    """Deformable encoder and step up.

    Args:
        channels: of each input map by name, from fine to coarse.
        convs_dim: width of the encoder, a multiple of 32 and of ``nheads``.
        mask_dim: channels of the mask features.
        transformer_enc_layers, nheads, dim_feedforward, dropout: of the encoder.
        norm: of the convolutions of the step up: "GN", "LN", "SyncBN", or "" for a bias in its place.
        common_stride: stride of the mask features, at most that of the finest encoded map. One map is added for each halving
            between the two, counted from the finest map, as in the public code.
        deformable_transformer_encoder_in_features: the maps the encoder reads, in any order.
        recompute: keep only the input of each encoder layer while training and compute the layer again on the way back. At full
            size this saves 0.1 GB for each layer and image of 240 x 320.

    Raises:
        ConfigError: a setting that does not fit the others.
    """

    def __init__(
        self,
        channels: Mapping[str, int] = PIXEL_CHANNELS,
        *,
        convs_dim: int = 256,
        mask_dim: int = 256,
        transformer_enc_layers: int = 6,
        nheads: int = 8,
        dim_feedforward: int = 1024,
        dropout: float = 0.0,
        norm: str = "GN",
        common_stride: int = 4,
        deformable_transformer_encoder_in_features: Sequence[str] = ("res3", "res4", "res5"),
        recompute: bool = False,
    ) -> None:
        super().__init__()
        if convs_dim % GROUPS:
            raise ConfigError(f"convs_dim {convs_dim}: no multiple of the {GROUPS} groups of its norms; allowed is 32, 64, 96, ...")
        self.encoded = _coarsest_first(channels, deformable_transformer_encoder_in_features)
        self.added = _maps_to_add(channels, self.encoded, common_stride)
        self.input_proj = nn.ModuleList(_input_projection(channels[name], convs_dim) for name in self.encoded)
        self.transformer = _Transformer(
            convs_dim, len(self.encoded), transformer_enc_layers, nheads, dim_feedforward, dropout, recompute
        )
        for name in self.added:
            number = self._number(name)
            self.add_module(f"adapter_{number}", NormedConv(channels[name], convs_dim, 1, norm))
            self.add_module(f"layer_{number}", NormedConv(convs_dim, convs_dim, 3, norm))
        self.mask_features = nn.Conv2d(convs_dim, mask_dim, 1)
        _kaiming(self.mask_features)

    def _number(self, name: str) -> int:
        return len(self.added) - self.added.index(name)  # counted from the finest map

    def forward(self, features: Mapping[str, Tensor]) -> PixelFeatures:
        """Mask features and the encoded maps.

        Args:
            features: (B, channels, h, w) by name.
        """
        maps = self.transformer([project(features[name]) for project, name in zip(self.input_proj, self.encoded, strict=True)])
        for name in self.added:
            lateral = self.get_submodule(f"adapter_{self._number(name)}")(features[name])
            up = functional.interpolate(maps[-1], size=map_size(features[name]), mode="bilinear", align_corners=False)
            maps.append(functional.relu(self.get_submodule(f"layer_{self._number(name)}")(lateral + up)))
        return PixelFeatures(self.mask_features(maps[-1]), maps[:SCALES])


def _coarsest_first(channels: Mapping[str, int], names: Sequence[str]) -> list[str]:
    unknown = sorted(set(names) - set(channels))
    if unknown or not names:
        raise ConfigError(f"deformable_transformer_encoder_in_features {list(names)}: allowed is some of {', '.join(channels)}")
    return sorted(set(names), key=STRIDES.__getitem__, reverse=True)


def _maps_to_add(channels: Mapping[str, int], encoded: Sequence[str], common_stride: int) -> list[str]:
    """The maps above the encoded ones, the coarsest first."""
    stride = STRIDES[encoded[-1]]
    if not 0 < common_stride <= stride:
        raise ConfigError(
            f"common_stride {common_stride}: the finest encoded map, {encoded[-1]}, has {stride}; allowed is 1 to that"
        )
    steps = int(math.log2(stride) - math.log2(common_stride))
    added = sorted(channels, key=STRIDES.__getitem__)[:steps][::-1]
    if len(encoded) + len(added) < SCALES:
        raise ConfigError(f"{', '.join([*encoded, *added])}: the query decoder reads {SCALES} maps; encode more of them")
    return added


def _input_projection(channels: int, width: int) -> nn.Sequential:
    conv = nn.Conv2d(channels, width, 1)
    _kaiming(conv)
    return nn.Sequential(conv, nn.GroupNorm(GROUPS, width))


def _kaiming(conv: nn.Conv2d) -> None:
    nn.init.kaiming_uniform_(conv.weight, a=1)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


class NormedConv(nn.Conv2d):
    """A convolution that keeps the size, and its norm; without a norm it has a bias."""

    def __init__(self, channels: int, width: int, kernel: int, norm: str) -> None:
        super().__init__(channels, width, kernel, padding=kernel // 2, bias=norm == "")
        _kaiming(self)
        self.norm = _norm(norm, width)

    def forward(self, input: Tensor) -> Tensor:
        """(B, channels, h, w) to (B, width, h, w)."""
        out = super().forward(input)
        return out if self.norm is None else self.norm(out)


def _norm(name: str, channels: int) -> nn.Module | None:
    if name == "":
        return None
    if name == "GN":
        return nn.GroupNorm(GROUPS, channels)
    if name == "LN":
        return ChannelNorm(channels)
    if name == "SyncBN":
        return SyncNorm(channels)
    raise ConfigError(f'norm "{name}": allowed is "GN", "LN", "SyncBN" and ""')


class ChannelNorm(nn.Module):
    """Layer norm over the channels of each pixel.

    Source: eps 1e-6 as in the norm that detectron2 calls "LN".
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, features: Tensor) -> Tensor:
        """(B, channels, h, w) to the same."""
        normed = functional.layer_norm(features.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, 1e-6)
        return normed.permute(0, 3, 1, 2)


class SyncNorm(nn.SyncBatchNorm):
    """Batch norm over the images of all processes; on a CPU over those of its own process."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, channels, h, w) to the same."""
        if input.device.type == "cpu":
            return super(nn.SyncBatchNorm, self).forward(input)
        return super().forward(input)


class _Transformer(nn.Module):
    """The encoder over the tokens of all its maps; adds to each position a learned vector of the level."""

    def __init__(self, width: int, levels: int, layers: int, heads: int, inner: int, dropout: float, recompute: bool) -> None:
        super().__init__()
        self.recompute = recompute
        self.level_embed = nn.Parameter(torch.randn(levels, width))
        stack = nn.ModuleList(EncoderLayer(width, levels, heads, inner, dropout) for _ in range(layers))
        self.encoder = nn.ModuleDict({"layers": stack})

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """(B, width, h, w) each, to the same."""
        sizes, width, device = [map_size(features) for features in maps], self.level_embed.shape[1], maps[0].device
        levels = zip(sizes, self.level_embed.unbind(), strict=True)
        positions = [sine_position(size, width, device) + level for size, level in levels]
        position = torch.cat(positions).to(maps[0].dtype)
        tokens = torch.cat([features.flatten(2).transpose(1, 2) for features in maps], dim=1)
        pyramid = pyramid_of(sizes, device)
        for layer in self.encoder["layers"].children():
            if self.recompute and self.training:
                tokens = checkpoint(layer, tokens, position, pyramid, use_reentrant=False)
            else:
                tokens = layer(tokens, position, pyramid)
        parts = torch.split(tokens, [height * width for height, width in sizes], dim=1)
        return [part.transpose(1, 2).reshape(-1, width, *size) for part, size in zip(parts, sizes, strict=True)]


class EncoderLayer(nn.Module):
    """Deformable self-attention, then a feed-forward network; a norm after each."""

    def __init__(self, width: int, levels: int = 3, heads: int = 8, inner: int = 1024, dropout: float = 0.0) -> None:
        super().__init__()
        self.self_attn = DeformableAttention(width, heads, levels)
        self.norm1 = nn.LayerNorm(width)
        self.linear1 = nn.Linear(width, inner)
        self.linear2 = nn.Linear(inner, width)
        self.norm2 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        for linear in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(linear.weight)

    def forward(self, tokens: Tensor, position: Tensor, pyramid: Pyramid) -> Tensor:
        """(B, L, width) to the same; ``position`` is (L, width)."""
        tokens = self.norm1(tokens + self.dropout(self.self_attn(tokens + position, tokens, pyramid)))
        inner = self.dropout(functional.relu(self.linear1(tokens)))
        out: Tensor = self.norm2(tokens + self.dropout(self.linear2(inner)))
        return out
