"""How near an image is to another: PSNR and SSIM."""

import math
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from scenemill.schemas.errors import ConfigError

WINDOW: Final = 11
SIGMA: Final = 1.5
STABLE: Final = (0.01, 0.03)


def psnr(image: Tensor, target: Tensor) -> Tensor:
    """Peak signal to noise ratio in decibels, (): -10 log10 of the mean squared error; infinite for equal images.

    Args:
        image: (H, W, 3) in [0, 1].
        target: (H, W, 3) in [0, 1].

    >>> float(psnr(torch.zeros(8, 8, 3), torch.full((8, 8, 3), 0.1)).round())
    20.0
    """
    _check(image, target, 1)
    return -10 / math.log(10) * (image - target).square().mean().log()


def ssim(image: Tensor, target: Tensor) -> Tensor:
    """Structural similarity, (): mean over channels and over the pixels whose window of 11 x 11 lies in the image; 1 for equal images.

    Args:
        image: (H, W, 3) in [0, 1], H and W at least 11.
        target: (H, W, 3) in [0, 1].

    Source: Wang et al., "Image quality assessment: from error visibility to structural similarity", IEEE TIP 2004; Gaussian window of
    sigma 1.5, K1 = 0.01, K2 = 0.03.
    """
    _check(image, target, WINDOW)
    a, b = (held.movedim(2, 0)[:, None] for held in (image, target))
    mean_a, mean_b, square_a, square_b, product = (_blurred(held) for held in (a, b, a * a, b * b, a * b))
    spread_a, spread_b, shared = square_a - mean_a**2, square_b - mean_b**2, product - mean_a * mean_b
    c1, c2 = (factor**2 for factor in STABLE)
    likeness = (2 * mean_a * mean_b + c1) * (2 * shared + c2)
    return (likeness / ((mean_a**2 + mean_b**2 + c1) * (spread_a + spread_b + c2))).mean()


def _blurred(channels: Tensor) -> Tensor:
    """(C, 1, H, W) to (C, 1, H - 10, W - 10), along one axis after the other."""
    offsets = torch.arange(WINDOW, dtype=channels.dtype, device=channels.device) - WINDOW // 2
    weights = torch.softmax(-(offsets**2) / (2 * SIGMA**2), dim=0)
    return functional.conv2d(functional.conv2d(channels, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1))


def _check(image: Tensor, target: Tensor, least: int) -> None:
    if image.shape != target.shape or image.ndim != 3 or image.shape[2] != 3 or min(image.shape[:2]) < least:
        shapes = f"{tuple(image.shape)} and {tuple(target.shape)}"
        raise ConfigError(f"images of {shapes}: expected one shape (H, W, 3), H and W at least {least}")
