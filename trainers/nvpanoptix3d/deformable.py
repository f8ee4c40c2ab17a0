"""Multi-scale deformable self-attention by ``grid_sample``, and the sine position encoding of a map.

A pyramid of maps travels as one row of tokens, (B, L, C): the pixels of all levels, each level row by row, one level after the
other. A token looks at a few points of every level: near its own place, at offsets it computes itself.

Source: Zhu et al., Deformable DETR, 2021, section 4.1 and appendix A.4; Carion et al., End-to-End Object Detection with
Transformers, 2020, appendix A.4 (positions).
"""

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from scenemill.schemas.errors import ConfigError

TEMPERATURE: Final = 10000.0
"""Ratio of the longest to the shortest wavelength of the position encoding."""


def map_size(features: Tensor) -> tuple[int, int]:
    """Height and width of (..., H, W) features, as plain integers, so that a traced graph holds constants."""
    return int(features.shape[-2]), int(features.shape[-1])


def sine_position(size: tuple[int, int], channels: int, device: torch.device) -> Tensor:
    """A fixed encoding of every pixel's place: half of the channels for its row, the other half for its column.

    Args:
        size: (H, W), in pixels.
        channels: a multiple of four.

    Returns:
        (H * W, channels) float32, pixels row by row.

    >>> sine_position((1, 2), 4, torch.device("cpu")).round(decimals=3).abs()
    tensor([[0., 1., 0., 1.],
            [0., 1., 0., 1.]])
    """
    height, width = size
    rows = _sine_axis(height, channels // 2, device)[:, None].expand(height, width, channels // 2)
    columns = _sine_axis(width, channels // 2, device)[None].expand(height, width, channels // 2)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1)


def _sine_axis(length: int, channels: int, device: torch.device) -> Tensor:
    """(length, channels): sine and cosine in turn of each coordinate, a full turn along the axis, over growing wavelengths."""
    place = torch.arange(1, length + 1, dtype=torch.float32, device=device) / (length + 1e-6) * (2 * math.pi)
    wavelength = TEMPERATURE ** (torch.arange(0, channels, 2, dtype=torch.float32, device=device) / channels)
    angle = place[:, None] / wavelength
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)


class Pyramid(NamedTuple):
    """Where the tokens of a row of maps lie.

    Attributes:
        sizes: (H, W) of each level, in pixels.
        centres: (L, 2) float32, (x, y) of each token's pixel centre, 0 to 1 across its map.
        extents: (levels, 2) float32, (W, H) of each level, in pixels.
    """

    sizes: tuple[tuple[int, int], ...]
    centres: Tensor
    extents: Tensor


def pyramid_of(sizes: Sequence[tuple[int, int]], device: torch.device) -> Pyramid:
    """The pyramid of maps of these sizes.

    >>> pyramid_of([(1, 2), (1, 1)], torch.device("cpu")).centres
    tensor([[0.2500, 0.5000],
            [0.7500, 0.5000],
            [0.5000, 0.5000]])
    """
    extents = torch.tensor([(width, height) for height, width in sizes], dtype=torch.float32, device=device)
    return Pyramid(tuple(sizes), torch.cat([_centres(height, width, device) for height, width in sizes]), extents)


def _centres(height: int, width: int, device: torch.device) -> Tensor:
    x = (torch.arange(width, dtype=torch.float32, device=device) + 0.5) / width
    y = (torch.arange(height, dtype=torch.float32, device=device) + 0.5) / height
    return torch.stack([x[None].expand(height, width), y[:, None].expand(height, width)], dim=-1).flatten(0, 1)


def deformable_attention(value: Tensor, sizes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of bilinear samples, zeros outside the maps. An export may put a fused operator in its place.

    Args:
        value: (B, L, heads, c), the tokens of all levels.
        sizes: (H, W) of each level, in pixels.
        locations: (B, N, heads, levels, points, 2) of the dtype of ``value``, (x, y), 0 to 1 from border to border of a map.
        weights: (B, N, heads, levels, points), of the same dtype.

    Returns:
        (B, N, heads * c), of the same dtype.
    """
    heads, width = int(value.shape[2]), int(value.shape[3])
    maps = torch.split(value, [h * w for h, w in sizes], dim=1)
    grids = (2 * locations - 1).transpose(1, 2).flatten(0, 1)  # (B * heads, N, levels, points, 2)
    shares = weights.transpose(1, 2).flatten(0, 1).unsqueeze(1)  # (B * heads, 1, N, levels, points)
    sums = []
    for level, (h, w) in enumerate(sizes):
        pixels = maps[level].permute(0, 2, 3, 1).reshape(-1, width, h, w)
        sampled = functional.grid_sample(pixels, grids[:, :, level], mode="bilinear", padding_mode="zeros", align_corners=False)
        sums.append((sampled * shares[:, :, :, level]).sum(dim=-1))
    total = sums[0]
    for more in sums[1:]:
        total = total + more
    return total.reshape(-1, heads * width, int(locations.shape[1])).transpose(1, 2)


class DeformableAttention(nn.Module):
    """Deformable self-attention over a pyramid; its parameters are named as in Deformable DETR."""

    def __init__(self, width: int, heads: int = 8, levels: int = 3, points: int = 4) -> None:
        if width % heads:
            raise ConfigError(f"deformable attention: width {width} is no multiple of {heads} heads; change one of them")
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        self.sampling_offsets = nn.Linear(width, heads * levels * points * 2)
        self.attention_weights = nn.Linear(width, heads * levels * points)
        self.value_proj = nn.Linear(width, width)
        self.output_proj = nn.Linear(width, width)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """At first every head looks along a direction of its own, point k at k + 1 pixels, all points with one weight."""
        nn.init.zeros_(self.sampling_offsets.weight)
        self.sampling_offsets.bias.copy_(_first_offsets(self.heads, self.levels, self.points).flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for linear in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, query: Tensor, source: Tensor, pyramid: Pyramid) -> Tensor:
        """What each token sees.

        Locations, samples and sums are float32 whatever the linear layers use: the 8 bits of a bfloat16 do not tell pixels apart.

        Args:
            query: (B, L, width), the tokens with their positions; they decide where to look.
            source: (B, L, width), the tokens that are looked at.
            pyramid: of L tokens.

        Returns:
            (B, L, width).
        """
        tokens, width = sum(h * w for h, w in pyramid.sizes), self.value_proj.out_features
        value: Tensor = self.value_proj(source)
        offsets = self.sampling_offsets(query).float().view(-1, tokens, self.heads, self.levels, self.points, 2)
        shares = self.attention_weights(query).float().view(-1, tokens, self.heads, self.levels * self.points).softmax(dim=-1)
        locations = pyramid.centres[:, None, None, None] + offsets / pyramid.extents[:, None]
        seen = deformable_attention(
            value.float().view(-1, tokens, self.heads, width // self.heads),
            pyramid.sizes,
            locations,
            shares.view(-1, tokens, self.heads, self.levels, self.points),
        )
        out: Tensor = self.output_proj(seen.to(value.dtype))
        return out


def _first_offsets(heads: int, levels: int, points: int) -> Tensor:
    """(heads, levels, points, 2) float32, (x, y) in pixels: directions around the square of side two, times 1, 2, 3, ..."""
    angle = torch.arange(heads, dtype=torch.float32) * (2 * math.pi / heads)
    direction = torch.stack([angle.cos(), angle.sin()], dim=-1)
    direction = direction / direction.abs().amax(dim=-1, keepdim=True)
    reach = torch.arange(1, points + 1, dtype=torch.float32)
    return (direction[:, None, None] * reach[:, None]).expand(heads, levels, points, 2)
