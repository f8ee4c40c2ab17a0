"""The multi-plane occupancy head: for every pixel of a small image, which of the planes in front of the camera hold something.

Most of its work, as defined, is 5x5 convolutions of maps that were just enlarged up to sixteen times. Enlarging is linear and treats
all channels alike, so the mixing of channels can go first, on the small map, once for each of the 25 taps; what remains, resizing
each tap and moving it into place, is a small matrix from the left and one from the right. ``conv_of_resized`` does so where it is
less work. Released widths at 240x320 then need 113 of 305 G multiplications, and the enlarged maps of 2048 channels never exist.

Source: the occupancy head of NvPanoptix3D, which comes from BUOL (Chu et al. 2023) and the up-projection of Hu et al. 2019; names of
parameters as in the released weights.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from scenemill.schemas.errors import ConfigError
from scenemill.trainers.nvpanoptix3d.dpt import PIXEL_CHANNELS, resize
from scenemill.trainers.planes import PLANE_SIZE, PLANES

EDGE: Final = 5
"""Side of the large kernels."""

FUSED: Final = 16
"""Channels that each of res2..res5 adds to the fusion, at every width: as in NvPanoptix3D."""

GAIN: Final = 2
"""How many times fewer multiplications the rearranged convolution must need to be taken."""


def conv_of_resized(maps: Tensor, weight: Tensor, size: tuple[int, int]) -> Tensor:
    """A bilinear resize with aligned corners, then a convolution with zeros around: in whichever order is less work.

    Args:
        maps: (N, C, h, w).
        weight: (out, C, k, k), k odd.
        size: (H, W) to resize to.

    Returns:
        (N, out, H, W).
    """
    out, width, edge, _ = weight.shape
    cells = _size(maps)
    if not _pays(width, edge, cells, size):
        return functional.conv2d(resize(maps, size), weight, padding=edge // 2)
    taps = functional.conv2d(maps, weight.permute(0, 2, 3, 1).reshape(-1, width, 1, 1))
    taps = torch.unflatten(taps, 1, (out, edge, edge)).transpose(3, 4).flatten(4).flatten(2, 3)  # (N, out, k·h, k·w)
    across = taps @ moved_resize(cells[1], size[1], edge, maps.device)
    return moved_resize(cells[0], size[0], edge, maps.device).T @ across


def _pays(width: int, edge: int, cells: tuple[int, int], size: tuple[int, int]) -> bool:
    """Whether mixing first is less work, by the multiplications for one channel that comes out."""
    rows, columns = cells
    direct = edge * edge * width * size[0] * size[1]
    mixing = edge * edge * width * rows * columns
    moving = edge * edge * rows * columns * size[1] + edge * rows * size[0] * size[1]
    return direct >= GAIN * (mixing + moving)


def moved_resize(cells: int, size: int, edge: int, device: torch.device | str = "cpu") -> Tensor:
    """The matrix that resizes one axis with aligned corners and moves the result by each tap of a kernel, zeros from outside.

    Args:
        cells: h, along the axis as it is.
        size: H, along the axis as it shall be.
        edge: k, taps of the kernel.

    Returns:
        (k·h, H) float32: [tap·h + cell, y] is the share of a cell in place y + tap - k // 2 of the resized axis.

    >>> moved_resize(2, 3, 1)
    tensor([[1.0000, 0.5000, 0.0000],
            [0.0000, 0.5000, 1.0000]])
    """
    make = _moved_resize if torch.compiler.is_compiling() else _kept_moved_resize
    return make(cells, size, edge, torch.device(device))


def _moved_resize(cells: int, size: int, edge: int, device: torch.device) -> Tensor:
    each = torch.eye(cells, device=device)[None]
    resized = functional.interpolate(each, size, mode="linear", align_corners=True)[0]
    padded = functional.pad(resized, (edge // 2, edge // 2))
    return torch.cat([padded[:, tap : tap + size] for tap in range(edge)])


@lru_cache(maxsize=64)
def _kept_moved_resize(cells: int, size: int, edge: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # what is kept must also serve a training step
        made = _moved_resize(cells, size, edge, torch.device("cpu"))
        return torch.from_numpy(made.numpy()).to(device)  # by way of NumPy: a constant of a graph that is being traced


def _conv(width: int, out: int, edge: int) -> nn.Conv2d:
    """A convolution that keeps the size, without bias."""
    return nn.Conv2d(width, out, edge, padding=edge // 2, bias=False)


class UpBlock(nn.Module):
    """A map resized, then two branches added: 5x5 and 3x3 convolutions, and one 5x5 convolution; batch norm after each."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.conv1 = _conv(width, out, EDGE)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv1_2 = _conv(out, out, 3)
        self.bn1_2 = nn.BatchNorm2d(out)
        self.conv2 = _conv(width, out, EDGE)
        self.bn2 = nn.BatchNorm2d(out)

    def forward(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        """(N, width, h, w) -> (N, out, *size)."""
        both = conv_of_resized(maps, torch.cat([self.conv1.weight, self.conv2.weight]), size)
        first, second = both.chunk(2, dim=1)
        deep = self.bn1_2(self.conv1_2(functional.relu(self.bn1(first))))
        return functional.relu(deep + self.bn2(second))


class Decoder(nn.Module):
    """res5 enlarged step by step to the sizes of res4, res3, res2 and twice res2, with the width of what it meets there.

    Args:
        channels: widths of res2..res5. Between them run 1x1 from res5 to the width of res4, then res3, res2, res2/2, res2/4.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        res2, res3, res4, res5 = channels
        self.conv = _conv(res5, res4, 1)
        self.bn = nn.BatchNorm2d(res4)
        self.up1 = UpBlock(res4, res3)
        self.up2 = UpBlock(res3, res2)
        self.up3 = UpBlock(res2, res2 // 2)
        self.up4 = UpBlock(res2 // 2, res2 // 4)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """res2..res5, (N, channels, h, w) each -> (N, res2/4, h, w), twice the size of res2."""
        res2, res3, res4, res5 = features
        maps = functional.relu(self.bn(self.conv(res5)))
        maps = self.up2(self.up1(maps, _size(res4)), _size(res3))
        out: Tensor = self.up4(self.up3(maps, _size(res2)), _size(res2, 2))
        return out


class Fuser(nn.Module):
    """res2..res5, each enlarged to one size in one step and ``FUSED`` channels wide, mixed."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        for level, width in enumerate(channels, 1):
            self.add_module(f"up{level}", UpBlock(width, FUSED))
        self.conv = _conv(4 * FUSED, 4 * FUSED, EDGE)
        self.bn = nn.BatchNorm2d(4 * FUSED)

    def forward(self, features: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """res2..res5, (N, channels, h, w) each -> (N, 4·FUSED, *size)."""
        maps = [self.get_submodule(f"up{level}")(each, size) for level, each in enumerate(features, 1)]
        return functional.relu(self.bn(self.conv(torch.cat(maps, dim=1))))


class Prediction(nn.Module):
    """The joined maps at the size of a plane, and from them a number per plane."""

    def __init__(self, width: int, planes: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size
        self.resize = UpBlock(width, width)
        self.conv0 = _conv(width, width, EDGE)
        self.bn0 = nn.BatchNorm2d(width)
        self.conv1 = _conv(width, width, EDGE)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, planes, EDGE, padding=EDGE // 2)

    def forward(self, maps: Tensor) -> Tensor:
        """(N, width, h, w) -> (N, planes, *size)."""
        maps = functional.relu(self.bn0(self.conv0(self.resize(maps, self.size))))
        logits: Tensor = self.conv2(functional.relu(self.bn1(self.conv1(maps))))
        return logits


class OccupancyHead(nn.Module):
    """Occupancy of every plane at every pixel of a small image, from res2..res5.

    The inner widths follow ``pixel_channels``: the decoder ends at a quarter of res2 (64 of 256), the fusion always has 4·16 = 64
    channels, and the prediction works on both together (128).

    Args:
        pixel_channels: widths of res2, res3, res4 and res5; that of res2 is a multiple of 4.
        num_planes: S. Plane s holds depths [s, s + 1) · depth_max / S.
        depth_size: (H, W) of what comes out.

    Raises:
        ConfigError: a quarter of res2 is no whole number of channels.
    """

    def __init__(
        self,
        pixel_channels: Sequence[int] = PIXEL_CHANNELS,
        num_planes: int = PLANES,
        depth_size: tuple[int, int] = PLANE_SIZE,
    ) -> None:
        super().__init__()
        if pixel_channels[0] % 4:
            raise ConfigError(f"pixel_channels[0] {pixel_channels[0]}: allowed are multiples of 4")
        self.decoder = Decoder(pixel_channels)
        self.multi_feature_fuser = Fuser(pixel_channels)
        self.prediction = Prediction(pixel_channels[0] // 4 + 4 * FUSED, num_planes, (depth_size[0], depth_size[1]))

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Logits of occupancy.

        Args:
            features: res2..res5, (B, channels, h, w) each, fine to coarse.

        Returns:
            (B, num_planes, *depth_size).
        """
        decoded = self.decoder(features)
        fused = self.multi_feature_fuser(features, _size(decoded))
        logits: Tensor = self.prediction(torch.cat([decoded, fused], dim=1))
        return logits


def _size(maps: Tensor, times: int = 1) -> tuple[int, int]:
    """As numbers, in a traced graph too: what is chosen and built by size is fixed there."""
    return times * int(maps.shape[2]), times * int(maps.shape[3])
