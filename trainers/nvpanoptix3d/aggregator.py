"""Images to tokens: the DINOv2 patch embedding and the alternating attention of VGGT, within a frame and over all frames.

Source: VGGT-1B and the backbone of NvPanoptix3D, whose released weights load with strict names.
"""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from scenemill.schemas.errors import ConfigError
from scenemill.trainers.nvpanoptix3d.blocks import BlockStack, Rotary, rotary_tables

PATCH: Final = 14
"""Pixels a side of a patch."""

REGISTERS: Final = 4

SPECIAL_TOKENS: Final = 1 + REGISTERS
"""Camera and registers: what precedes the patches in the tokens of a frame."""

MEAN: Final = (0.485, 0.456, 0.406)
STD: Final = (0.229, 0.224, 0.225)
"""Of red, green and blue over ImageNet, in 0..1."""

TOKEN_SIGMA: Final = 1e-6
POSITION_SIGMA: Final = 0.02
"""Of new tokens and new position embeddings, as in DINOv2."""


def input_size(height: int, width: int, input_width: int = 448) -> tuple[int, int]:
    """(H, W) in pixels that a padded image is resized to: the wanted width, and the height in whole patches.

    Raises:
        ConfigError: ``input_width`` is not a whole number of patches.

    >>> input_size(256, 320)
    (364, 448)
    """
    if input_width % PATCH:
        raise ConfigError(f"input width {input_width}: allowed are multiples of {PATCH}")
    return round(height * input_width / width / PATCH) * PATCH, input_width


def padded_size(size: tuple[int, int], divisibility: int = 32) -> tuple[int, int]:
    """(height, width) of images with the padding that the network adds: what its outputs are of.

    >>> padded_size((240, 320), 32)
    (256, 320)
    """
    height, width = size
    return height + -height % divisibility, width + -width % divisibility


def prepare_images(images: Tensor, *, size_divisibility: int = 32, input_width: int = 448) -> Tensor:
    """Images of a batch as the aggregator reads them: padded right and below with 0, resized, one frame each.

    Args:
        images: (B, 3, H, W) uint8 or float32, RGB, 0..255.
        size_divisibility: both sides are padded to multiples of this, before the resize.
        input_width: see ``input_size``.

    Returns:
        (B, 1, 3, H', W') float32, 0..1; not yet normalised, which the aggregator does.
    """
    height, width = int(images.shape[-2]), int(images.shape[-1])  # plain integers, so that a traced graph holds constants
    lower, wider = padded_size((height, width), size_divisibility)
    padded = functional.pad(images.float(), (0, wider - width, 0, lower - height)) / 255
    size = input_size(lower, wider, input_width)
    return functional.interpolate(padded, size, mode="bilinear", align_corners=False)[:, None]


def normalise(images: Tensor) -> Tensor:
    """(..., 3, H, W), 0..1, less the mean of its channel, by its standard deviation."""
    channels = zip(images.unbind(-3), MEAN, STD, strict=True)
    return torch.stack([(channel - mean) / std for channel, mean, std in channels], dim=-3)


def whole_patches(images: Tensor) -> tuple[int, int]:
    """Rows and columns of patches of images (..., H, W).

    Raises:
        ValueError: a side is not a whole number of patches.
    """
    height, width = images.shape[-2:]
    if height % PATCH or width % PATCH:
        raise ValueError(f"images of {height} x {width} pixels: sides are multiples of {PATCH}; see prepare_images")
    return height // PATCH, width // PATCH


class PatchProjection(nn.Module):
    """Every patch of an image to one token."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, PATCH, stride=PATCH)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, patches, width), row by row."""
        tokens: Tensor = self.proj(images)
        return tokens.flatten(2).transpose(1, 2)


class PatchEmbedding(nn.Module):
    """DINOv2 vision transformer with registers, of which only the patch tokens leave.

    Args:
        pos_grid: patches a side of the grid that position embeddings are stored for.
        checkpoint: see ``BlockStack``.

    Attributes:
        resized: position embeddings of the only grid to come, or None; see ``Aggregator.fix_grid``.
    """

    resized: Tensor | None

    def __init__(
        self, width: int = 1024, heads: int = 16, depth: int = 24, pos_grid: int = 37, *, checkpoint: bool = False
    ) -> None:
        super().__init__()
        self.pos_grid = pos_grid
        self.patch_embed = PatchProjection(width)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width).normal_(std=TOKEN_SIGMA))
        self.pos_embed = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1 + pos_grid**2, width), std=POSITION_SIGMA))
        self.register_tokens = nn.Parameter(torch.empty(1, REGISTERS, width).normal_(std=TOKEN_SIGMA))
        self.mask_token = nn.Parameter(torch.zeros(1, width))  # never read; the weights hold it
        self.blocks = BlockStack(depth, width, heads, gamma=1.0, eps=1e-6, checkpoint=checkpoint)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.register_buffer("resized", None, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W), normalised, sides in whole patches -> (N, patches, width), row by row."""
        rows, columns = images.shape[-2] // PATCH, images.shape[-1] // PATCH
        positions = self.positions(rows, columns)
        patches = self.patch_embed(images) + positions[:, 1:]
        special = torch.cat([self.cls_token + positions[:, :1], self.register_tokens], dim=1)
        tokens = torch.cat([special.expand(images.shape[0], -1, -1), patches], dim=1)
        kept: Tensor = self.norm(self.blocks(tokens)[:, 1 + REGISTERS :])
        return kept

    def positions(self, rows: int, columns: int) -> Tensor:
        """(1, 1 + rows * columns, width): position embeddings of the class token, unchanged, and of a grid of any size.

        The resize is bicubic with antialias, whose cubic has the coefficient -0.5 (without antialias it would be -0.75).
        """
        if self.resized is not None:
            return self.resized
        if rows == columns == self.pos_grid:
            return self.pos_embed
        stored = torch.unflatten(self.pos_embed[:, 1:].float(), 1, (self.pos_grid, self.pos_grid)).permute(0, 3, 1, 2)
        resized = functional.interpolate(stored, (rows, columns), mode="bicubic", align_corners=False, antialias=True)
        return torch.cat([self.pos_embed[:, :1], resized.flatten(2).transpose(1, 2).type_as(self.pos_embed)], dim=1)


class Aggregator(nn.Module):
    """Tokens of the frames of a sequence, by turns attending within their frame and over the sequence; defaults are VGGT-1B.

    Args:
        depth: frame blocks, and as many global blocks.
        patch_depth, patch_heads, pos_grid: of the patch embedding, which has the same width.
        checkpoint: see ``BlockStack``; ``checkpoint_blocks`` switches it later.

    Raises:
        ConfigError: heads do not divide the width, or the width of a head is no multiple of 4.
    """

    def __init__(
        self,
        embed_dim: int = 1024,
        num_heads: int = 16,
        depth: int = 24,
        patch_depth: int = 24,
        patch_heads: int = 16,
        pos_grid: int = 37,
        *,
        checkpoint: bool = False,
    ) -> None:
        super().__init__()
        self.head_width = embed_dim // num_heads
        if self.head_width % 4:
            raise ConfigError(f"heads of {self.head_width} channels: the rotary embedding needs a multiple of 4")
        self.patch_embed = PatchEmbedding(embed_dim, patch_heads, patch_depth, pos_grid, checkpoint=checkpoint)
        self.frame_blocks = BlockStack(depth, embed_dim, num_heads, qk_norm=True, checkpoint=checkpoint)
        self.global_blocks = BlockStack(depth, embed_dim, num_heads, qk_norm=True, checkpoint=checkpoint)
        self.camera_token = nn.Parameter(torch.empty(1, 2, 1, embed_dim).normal_(std=TOKEN_SIGMA))
        self.register_token = nn.Parameter(torch.empty(1, 2, REGISTERS, embed_dim).normal_(std=TOKEN_SIGMA))
        self.grid: tuple[int, int] | None = None

    def fix_grid(self, rows: int, columns: int) -> None:
        """Read images of one size from now on, in patches; their position embeddings become a constant that is not stored.

        For exporters, which know no antialiased resize and need sizes that do not come from a tensor.
        """
        self.patch_embed.resized = None
        self.patch_embed.resized = self.patch_embed.positions(rows, columns).detach().clone()
        self.grid = rows, columns

    def forward(self, images: Tensor, taps: Sequence[int] | None = None) -> list[Tensor]:
        """Outputs of the layers in ``taps``, in that order; those of all layers for None.

        Args:
            images: (B, S, 3, H, W) float32, 0..1: S frames of each sequence, sides in whole patches.
            taps: layers counted from 0. Outputs of other layers are not kept, layers behind the last tap not run.

        Returns:
            Each (B, S, 5 + patches, 2 * embed_dim): after the frame block, then after the global block. Tokens are the camera, four
            registers, and the patches row by row.

        Raises:
            ValueError: a side is not a whole number of patches.
        """
        batch, frames = images.shape[:2]
        rows, columns = self.grid or whole_patches(images)
        patches = self.patch_embed(normalise(images).flatten(0, 1))
        tokens = torch.cat([self._special_tokens(batch, frames), patches], dim=1)
        of_frame = self._rotary(rows, columns, images.device)
        of_sequence = of_frame[0].repeat(frames, 1, 1), of_frame[1].repeat(frames, 1, 1)
        wanted = range(len(self.frame_blocks)) if taps is None else taps
        outputs: dict[int, Tensor] = {}
        for layer in range(max(wanted) + 1):
            framed = self.frame_blocks.step(layer, tokens, of_frame)
            sequence = self.global_blocks.step(layer, framed.reshape(batch, -1, framed.shape[-1]), of_sequence)
            tokens = sequence.reshape(framed.shape)
            if layer in wanted:
                outputs[layer] = torch.unflatten(torch.cat([framed, tokens], dim=-1), 0, (batch, frames))
        return [outputs[layer] for layer in wanted]

    def _special_tokens(self, batch: int, frames: int) -> Tensor:
        """(B * S, 5, embed_dim): entry 0 for the first frame of each sequence, entry 1 for the others."""
        first, others = torch.cat([self.camera_token, self.register_token], dim=2).chunk(2, dim=1)
        special = torch.cat([first, others.expand(-1, frames - 1, -1, -1)], dim=1)
        return special.expand(batch, -1, -1, -1).flatten(0, 1)

    def _rotary(self, rows: int, columns: int, device: torch.device) -> Rotary:
        """Tables of one frame: patches are at (row + 1, column + 1), special tokens at (0, 0)."""
        y = torch.arange(1, rows + 1, device=device, dtype=torch.float32)
        x = torch.arange(1, columns + 1, device=device, dtype=torch.float32)
        patches = torch.stack([y[:, None].expand(rows, columns), x.expand(rows, columns)], dim=-1).flatten(0, 1)
        return rotary_tables(functional.pad(patches, (0, 0, SPECIAL_TOKENS, 0)), self.head_width)
