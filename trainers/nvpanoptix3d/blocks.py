"""Transformer blocks of the backbone: attention with optional q/k norm and rotary embedding, LayerScale, activation checkpointing.

Source: the blocks of DINOv2 and VGGT-1B; names of parameters as in the public weights.
"""

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from scenemill.schemas.errors import ConfigError

EPS: Final = 1e-5
"""Of the LayerNorms; 1e-6 in the patch embedding, as in DINOv2."""

GAMMA: Final = 0.01
"""LayerScale of a new block; 1 in the patch embedding, as in DINOv2."""

HIDDEN_RATIO: Final = 4

ROTARY_BASE: Final = 100.0

Rotary = tuple[Tensor, Tensor]
"""cos and sin of the angles of N tokens, each (N, 2, head width / 4) float32: [token, y or x, frequency]."""


def rotary_tables(positions: Tensor, head_width: int) -> Rotary:
    """cos and sin of position times frequency: one frequency per quarter of a head's channels, falling from 1 by powers of 100.

    Args:
        positions: (N, 2) float32, (y, x) of each token, in patches.
        head_width: channels of a head, a multiple of 4.

    Source: 2-D rotary embedding of VGGT-1B, frequencies 100^(-2j/h) with h half of the head width.
    """
    half = head_width // 2
    exponents = torch.arange(0, half, 2, device=positions.device, dtype=torch.float32) / half
    angles = positions[..., None] * torch.pow(ROTARY_BASE, -exponents)
    return angles.cos(), angles.sin()


def rotate(tokens: Tensor, rotary: Rotary) -> Tensor:
    """Turn channel pairs by the angles of their token: the first half of the channels by its y, the second half by its x.

    Args:
        tokens: (B, heads, N, head width). A pair is channel j and channel j + head width / 4 of the same half.

    Returns:
        The shape and dtype of ``tokens``; computed in float32.
    """
    cos, sin = rotary
    first, second = torch.unflatten(tokens, -1, (2, 2, -1)).unbind(-2)
    turned = torch.stack([first * cos - second * sin, second * cos + first * sin], dim=-2)
    return turned.flatten(-3).type_as(tokens)


class Attention(nn.Module):
    """Self-attention of ``heads`` heads over all tokens of a sequence.

    Raises:
        ConfigError: ``heads`` does not divide ``width``.
    """

    def __init__(self, width: int, heads: int, *, qk_norm: bool = False) -> None:
        super().__init__()
        if width % heads:
            raise ConfigError(f"{heads} heads for a width of {width}: allowed are divisors of the width")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = nn.LayerNorm(width // heads, eps=EPS) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(width // heads, eps=EPS) if qk_norm else nn.Identity()
        self.proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.qkv.weight)
        nn.init.xavier_uniform_(self.proj.weight)

    def forward(self, tokens: Tensor, rotary: Rotary | None = None) -> Tensor:
        """(B, N, width) -> (B, N, width)."""
        q, k, v = torch.unflatten(self.qkv(tokens), -1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        if rotary is not None:
            q, k = rotate(q, rotary), rotate(k, rotary)
        mixed = functional.scaled_dot_product_attention(q.type_as(v), k.type_as(v), v)
        projected: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return projected


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, width: int, hidden: int, out: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, out)
        nn.init.xavier_uniform_(self.fc1.weight)
        nn.init.xavier_uniform_(self.fc2.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., width) -> (..., out)."""
        out: Tensor = self.fc2(functional.gelu(self.fc1(tokens)))
        return out


class LayerScale(nn.Module):
    """One factor per channel."""

    def __init__(self, width: int, gamma: float = GAMMA) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), gamma))

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., width) -> (..., width)."""
        return tokens * self.gamma


class Block(nn.Module):
    """Pre-norm transformer block: x += g1 * attention(norm x), then x += g2 * mlp(norm x)."""

    def __init__(self, width: int, heads: int, *, qk_norm: bool = False, gamma: float = GAMMA, eps: float = EPS) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = Attention(width, heads, qk_norm=qk_norm)
        self.ls1 = LayerScale(width, gamma)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, HIDDEN_RATIO * width, width)
        self.ls2 = LayerScale(width, gamma)

    def forward(self, tokens: Tensor, rotary: Rotary | None = None) -> Tensor:
        """(B, N, width) -> (B, N, width); N tokens see each other."""
        tokens = tokens + self.ls1(self.attn(self.norm1(tokens), rotary))
        out: Tensor = tokens + self.ls2(self.mlp(self.norm2(tokens)))
        return out


class BlockStack(nn.ModuleList):
    """Equal blocks in a row.

    Attributes:
        checkpoint: activations inside a block are computed again in the backward pass instead of kept; may be set at any time.
    """

    def __init__(
        self,
        depth: int,
        width: int,
        heads: int,
        *,
        qk_norm: bool = False,
        gamma: float = GAMMA,
        eps: float = EPS,
        checkpoint: bool = False,
    ) -> None:
        super().__init__(Block(width, heads, qk_norm=qk_norm, gamma=gamma, eps=eps) for _ in range(depth))
        self.checkpoint = checkpoint

    def step(self, index: int, tokens: Tensor, rotary: Rotary | None = None) -> Tensor:
        """(B, N, width) -> (B, N, width), by one of the blocks."""
        stepped: Tensor
        if self.checkpoint and torch.is_grad_enabled():
            # nothing in a block is random, so the generator's state need not be kept
            stepped = checkpoint(self[index], tokens, rotary, use_reentrant=False, preserve_rng_state=False)
        else:
            stepped = self[index](tokens, rotary)
        return stepped

    def forward(self, tokens: Tensor, rotary: Rotary | None = None) -> Tensor:
        """(B, N, width) -> (B, N, width), by all blocks."""
        for index in range(len(self)):
            tokens = self.step(index, tokens, rotary)
        return tokens


def checkpoint_blocks(model: nn.Module, checkpoint: bool = True) -> None:
    """Switch activation checkpointing of every block stack in a model."""
    for module in model.modules():
        if isinstance(module, BlockStack):
            module.checkpoint = checkpoint
