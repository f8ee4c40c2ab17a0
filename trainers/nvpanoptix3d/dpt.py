"""Tokens to maps: depth with its confidence, and the four feature maps res2..res5, from four outputs of the aggregator.

Both heads start alike: the patch tokens of four tapped layers become maps, of which two grow, one stays and one shrinks. The depth
head then fuses them from coarse to fine; the pixel head only sets their widths.

Two orders differ from the definition, neither in what comes out. A 1x1 convolution after a bilinear resize is done before it: the
weights of a resize add up to 1, so the two swap. A 1x1 convolution after a transposed convolution is multiplied into its kernel.
Both save most of the work of their layer.

Source: the depth head of VGGT-1B, and the "DPT to pixel decoder" of NvPanoptix3D; names of parameters as in the released weights.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from scenemill.schemas.errors import ConfigError
from scenemill.trainers.nvpanoptix3d.aggregator import PATCH, SPECIAL_TOKENS

DPT_CHANNELS: Final = (256, 512, 1024, 1024)
PIXEL_CHANNELS: Final = (256, 512, 1024, 2048)

POSITION_BASE: Final = 100.0
POSITION_RATIO: Final = 0.1
"""What a position map is multiplied by where it is added."""

DEPTH_HIDDEN: Final = 32
"""Channels before the last convolution of the depth head, at every width: as in VGGT."""


def position_map(channels: int, size: tuple[int, int], image_size: tuple[int, int], device: torch.device | str = "cpu") -> Tensor:
    """Sines and cosines of where a cell of a map lies in the image: half of the channels for x, half for y.

    Positions are cell centres; from the centre to a corner of the image is 1. Of one axis come all sines, then all cosines, of the
    position times a frequency that falls from 1 by powers of 100.

    Args:
        channels: C, a multiple of 4.
        size: (h, w) of the map.
        image_size: (H, W), whose aspect counts.

    Returns:
        (C, h, w) float32, computed in float64. Kept for the next call: not to be written to.

    Raises:
        ConfigError: ``channels`` is not a multiple of 4.

    >>> position_map(4, (1, 2), (3, 4))[:2].flatten(1).tolist()  # sin and cos of -0.4 and 0.4
    [[-0.3894183337688446, 0.3894183337688446], [0.9210609793663025, 0.9210609793663025]]
    """
    if channels % 4:
        raise ConfigError(f"a position map of {channels} channels: allowed are multiples of 4")
    make = _position_map if torch.compiler.is_compiling() else _kept_position_map
    return make(channels, size, image_size[1] / image_size[0], torch.device(device))


def _position_map(channels: int, size: tuple[int, int], aspect: float, device: torch.device) -> Tensor:
    diagonal = math.hypot(aspect, 1.0)
    exponents = torch.arange(channels // 4, dtype=torch.float64, device=device) / (channels // 4)
    frequencies = torch.pow(POSITION_BASE, -exponents)

    def waves(cells: int, span: float) -> Tensor:
        last = span * (cells - 1) / cells
        positions = torch.linspace(-last, last, cells, dtype=torch.float64, device=device)
        angles = frequencies[:, None] * positions
        return torch.cat([angles.sin(), angles.cos()]).float()

    rows, columns = size
    x = waves(columns, aspect / diagonal)[:, None, :].expand(-1, rows, -1)
    y = waves(rows, 1 / diagonal)[:, :, None].expand(-1, -1, columns)
    return torch.cat([x, y])


@lru_cache(maxsize=16)
def _kept_position_map(channels: int, size: tuple[int, int], aspect: float, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # what is kept must also serve a training step
        made = _position_map(channels, size, aspect, torch.device("cpu"))
        return torch.from_numpy(made.numpy()).to(device)  # by way of NumPy: a constant of a graph that is being traced


def add_position(conv: nn.Conv2d, maps: Tensor, size: tuple[int, int], image_size: tuple[int, int]) -> Tensor:
    """What a convolution made, plus a tenth of its position map.

    Args:
        conv: names the width, which with the sizes is known before any tensor is: a traced graph holds the map as a constant.
        maps: (N, C, h, w), any floating dtype.
        size: (h, w).
        image_size: (H, W).

    Returns:
        (N, C, h, w) float32.
    """
    return torch.add(maps, position_map(conv.out_channels, size, image_size, maps.device), alpha=POSITION_RATIO)


def resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear, corners aligned: (N, C, h, w) -> (N, C, *size)."""
    return functional.interpolate(maps, size, mode="bilinear", align_corners=True)


def patch_grid(image_size: tuple[int, int]) -> tuple[int, int]:
    """(h, w) in patches of an image of (H, W) pixels.

    Raises:
        ConfigError: ``image_size`` is not in whole patches.
    """
    if image_size[0] % PATCH or image_size[1] % PATCH:
        raise ConfigError(f"images of {image_size}: allowed are multiples of {PATCH} a side")
    return image_size[0] // PATCH, image_size[1] // PATCH


class TapMaps(nn.Module):
    """The start of both heads: the four tapped outputs as maps of given widths, at the patch grid."""

    def __init__(self, embed_dim: int, channels: Sequence[int]) -> None:
        super().__init__()
        first, second, _, last = channels
        self.norm = nn.LayerNorm(2 * embed_dim)
        self.projects = nn.ModuleList(nn.Conv2d(2 * embed_dim, width, 1) for width in channels)
        self.resize_layers = nn.ModuleList(
            [
                nn.ConvTranspose2d(first, first, 4, stride=4),
                nn.ConvTranspose2d(second, second, 2, stride=2),
                nn.Identity(),
                nn.Conv2d(last, last, 3, stride=2, padding=1),
            ]
        )

    def tap_maps(self, taps: Sequence[Tensor], image_size: tuple[int, int], special: int) -> list[Tensor]:
        """Four maps with their positions, before they are resized.

        Args:
            taps: four of (B, S, special + h·w, 2·embed_dim): outputs of the aggregator, shallow first.
            image_size: (H', W') of the images the aggregator saw, in pixels; the patch grid (h, w) follows.
            special: how many tokens precede the patches.

        Returns:
            Four of (B·S, channels, h, w), h and w in patches.

        Raises:
            ConfigError: see ``patch_grid``.
        """
        grid = patch_grid(image_size)
        maps = []
        for tap, project in zip(taps, self.projects, strict=True):
            assert isinstance(project, nn.Conv2d)
            patches = self.norm(tap[:, :, special:].flatten(0, 1)).unflatten(1, grid).permute(0, 3, 1, 2)
            maps.append(add_position(project, project(patches), grid, image_size))
        return maps


class ResidualUnit(nn.Module):
    """conv(relu(conv(relu x))) + relu x: the shortcut carries what is left of x after the ReLU.

    Source: VGGT, whose ReLU works in place and so changes what its shortcut adds.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, maps: Tensor) -> Tensor:
        """(N, width, h, w) -> the same shape."""
        maps = functional.relu(maps)
        out: Tensor = self.conv2(functional.relu(self.conv1(maps))) + maps
        return out


class Fusion(nn.Module):
    """A coarse map joined by a finer one, and resized.

    Args:
        width: channels in and out.
        skip: whether there is a finer map to join; not so for the coarsest.
    """

    def __init__(self, width: int, *, skip: bool = True) -> None:
        super().__init__()
        self.out_conv = nn.Conv2d(width, width, 1)
        if skip:
            self.resConfUnit1 = ResidualUnit(width)
        self.resConfUnit2 = ResidualUnit(width)

    def forward(self, coarse: Tensor, size: tuple[int, int], skip: Tensor | None = None) -> Tensor:
        """(N, width, h, w), and perhaps a skip of the same shape -> (N, width, *size)."""
        if skip is not None:
            coarse = coarse + self.resConfUnit1(skip)
        return resize(self.out_conv(self.resConfUnit2(coarse)), size)


class Scratch(nn.Module):
    """What the depth head learns beyond its maps: their common width, four fusions, and the two ends."""

    def __init__(self, features: int, channels: Sequence[int]) -> None:
        super().__init__()
        for level, width in enumerate(channels, 1):
            self.add_module(f"layer{level}_rn", nn.Conv2d(width, features, 3, padding=1, bias=False))
        self.refinenet1 = Fusion(features)
        self.refinenet2 = Fusion(features)
        self.refinenet3 = Fusion(features)
        self.refinenet4 = Fusion(features, skip=False)
        self.output_conv1 = nn.Conv2d(features, features // 2, 3, padding=1)
        self.output_conv2 = nn.Sequential(
            nn.Conv2d(features // 2, DEPTH_HIDDEN, 3, padding=1), nn.ReLU(), nn.Conv2d(DEPTH_HIDDEN, 2, 1)
        )

    def fuse(self, maps: Sequence[Tensor], grid: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Four maps, fused from the coarsest to the finest.

        Args:
            maps: (N, channels of a level, ...), of 4, 2, 1 and half times the size of the patch grid.
            grid: (h, w) of the patch grid.

        Returns:
            o1..o4: (N, features, ...), of 8, 4, 2 and 1 times the size of the patch grid.
        """
        first, second, third, fourth = (self.get_submodule(f"layer{level}_rn")(each) for level, each in enumerate(maps, 1))
        o4 = self.refinenet4(fourth, grid)
        o3 = self.refinenet3(o4, _times(grid, 2), third)
        o2 = self.refinenet2(o3, _times(grid, 4), second)
        o1 = self.refinenet1(o2, _times(grid, 8), first)
        return o1, o2, o3, o4


def _times(size: tuple[int, int], factor: int) -> tuple[int, int]:
    return size[0] * factor, size[1] * factor


class Depth(NamedTuple):
    """What the depth head says of B samples of S frames.

    Attributes:
        depth: (B, S, H', W') float32, above 0, in the units of the trained depth.
        confidence: (B, S, H', W') float32, above 1.
        features: o1..o4, (B·S, dpt_features, h, w): h and w are 8, 4, 2 and 1 times those of the patch grid.
    """

    depth: Tensor
    confidence: Tensor
    features: tuple[Tensor, Tensor, Tensor, Tensor]


class DepthHead(TapMaps):
    """Depth, its confidence and the fused maps, from four tapped outputs of the aggregator.

    Args:
        embed_dim: half the width of an output of the aggregator.
        dpt_features: width of o1..o4, a multiple of 8.
        dpt_channels: widths of the four maps before fusion, multiples of 4.
    """

    def __init__(self, embed_dim: int = 1024, dpt_features: int = 256, dpt_channels: Sequence[int] = DPT_CHANNELS) -> None:
        super().__init__(embed_dim, dpt_channels)
        self.scratch = Scratch(dpt_features, dpt_channels)

    def forward(self, taps: Sequence[Tensor], image_size: tuple[int, int], special: int = SPECIAL_TOKENS) -> Depth:
        """Four of (B, S, special + h·w, 2·embed_dim) -> depth of images of ``image_size``; arguments as of ``tap_maps``."""
        maps = self.tap_maps(taps, image_size, special)
        resized = [layer(each) for layer, each in zip(self.resize_layers, maps, strict=True)]
        features = self.scratch.fuse(resized, patch_grid(image_size))
        narrow = self.scratch.output_conv1
        fine = add_position(narrow, resize(narrow(features[0]), image_size), image_size, image_size)
        logits = self.scratch.output_conv2(fine).float().unflatten(0, taps[0].shape[:2])
        return Depth(logits[:, :, 0].exp(), logits[:, :, 1].exp() + 1, features)


class PixelHead(TapMaps):
    """Feature maps res2..res5 for the pixel decoder and the occupancy head, from four tapped outputs of the aggregator.

    Args:
        embed_dim: half the width of an output of the aggregator, a multiple of 2.
        pixel_channels: widths of res2, res3, res4 and res5.
    """

    def __init__(self, embed_dim: int = 1024, pixel_channels: Sequence[int] = PIXEL_CHANNELS) -> None:
        width = 2 * embed_dim
        super().__init__(embed_dim, [width] * 4)
        self.unify_layers = nn.ModuleList(nn.Conv2d(width, channels, 1) for channels in pixel_channels)

    def forward(
        self, taps: Sequence[Tensor], image_size: tuple[int, int], special: int = SPECIAL_TOKENS
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Four of (B, S, special + h·w, 2·embed_dim) -> res2..res5; arguments as of ``tap_maps``.

        Returns:
            (B·S, channels, ...): 4h x 4w, 2h x 2w, h x w, and half of h x w, rounded up.
        """
        first, second, third, fourth = self.tap_maps(taps, image_size, special)
        unify = self.unify_layers
        res5: Tensor = unify[3](self.resize_layers[3](fourth))
        return self._grow(first, 0), self._grow(second, 1), unify[2](third), res5

    def _grow(self, maps: Tensor, level: int) -> Tensor:
        """The transposed convolution of a level and the 1x1 one behind it, as one."""
        grow, unify = self.resize_layers[level], self.unify_layers[level]
        assert isinstance(grow, nn.ConvTranspose2d) and isinstance(unify, nn.Conv2d)
        assert grow.bias is not None and unify.bias is not None
        mix = unify.weight[:, :, 0, 0]
        kernel = torch.einsum("imyx,om->ioyx", grow.weight, mix)
        return functional.conv_transpose2d(maps, kernel, mix @ grow.bias + unify.bias, stride=grow.stride)
