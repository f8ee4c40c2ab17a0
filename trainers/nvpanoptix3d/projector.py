"""Depth features brought to the maps they go with: three levels for the decoder of stage 1, one map for the lifting of stage 2.

As in dpt.py, a 1x1 convolution after a bilinear resize is done before it, with the same result.

Source: NvPanoptix3D; names of parameters as in the released weights.
"""

from collections.abc import Sequence
from typing import Final

from torch import Tensor, nn
from torch.nn import functional

LEVELS: Final = 4


def _halving(width: int) -> nn.Sequential:
    """3x3 convolution of stride 2, batch norm and ReLU."""
    return nn.Sequential(nn.Conv2d(width, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU())


def _resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear, corners not aligned: (N, C, h, w) -> (N, C, *size)."""
    return functional.interpolate(maps, size, mode="bilinear", align_corners=False)


class HalvingBlock(nn.Module):
    """3x3 convolution of stride 2, batch norm and ReLU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv_block = _halving(width)

    def forward(self, maps: Tensor) -> Tensor:
        """(N, width, h, w) -> (N, width, h/2, w/2), rounded up."""
        halved: Tensor = self.conv_block(maps)
        return halved


class DepthProjector(nn.Module):
    """The fused maps of the depth head at the sizes of the pixel decoder's features, for the joint decoder.

    Of its four branches, the one for the finest map exists in released weights but nothing reads its result: it is never computed,
    its parameters get no gradient and its batch norm keeps the statistics it has.

    Args:
        features: width of the maps of the depth head (``dpt_features``).
        width: of what comes out (``convs_dim``); the 1x1 convolutions change it.
    """

    def __init__(self, features: int = 256, width: int = 256) -> None:
        super().__init__()
        self.proj_convs1 = nn.ModuleList(HalvingBlock(features) for _ in range(LEVELS))
        self.proj_convs2 = nn.ModuleList(nn.Conv2d(features, width, 1) for _ in range(LEVELS))

    def forward(self, maps: Sequence[Tensor], sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Three maps, coarsest first.

        Args:
            maps: o1..o4 of the depth head, fine to coarse: (B, features, h, w) each.
            sizes: (h, w) of the pixel decoder's features, coarsest first.

        Returns:
            (B, width, *size) for each of ``sizes``.
        """
        levels = range(LEVELS - 1, 0, -1)
        return [
            _resize(self.proj_convs2[level](self.proj_convs1[level](maps[level])), (size[0], size[1]))
            for level, size in zip(levels, sizes, strict=True)
        ]


class Projector(nn.Module):
    """The coarsest map of the depth head at the size of the mask features, for the lifting into space.

    Args:
        features: width of the map of the depth head (``dpt_features``).
        width: of what comes out (``depth_dim``); the 1x1 convolution changes it.
    """

    def __init__(self, features: int = 256, width: int = 256) -> None:
        super().__init__()
        self.conv_block1 = _halving(features)
        self.conv_block2 = nn.Conv2d(features, width, 1)

    def forward(self, depth_features: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, features, h, w) -> (B, width, *size)."""
        return _resize(self.conv_block2(self.conv_block1(depth_features)), size)
