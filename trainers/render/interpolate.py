"""Features of the corners interpolated at the pixels, with gradients to features and positions by formula.

With g the incoming gradient at a pixel, p its centre, v0, v1, v2 the corners of its face in unscaled image coordinates, m = v1 - v0,
n = v2 - v0, s = p - v0 and k = m x n + copysign(eps, m x n), the weights are w1 = (s x n) / k, w2 = (m x s) / k, w0 = 1 - w1 - w2. The
gradient to a feature is w g; that to positions is that of the weights with p held fixed. Which face wins has no gradient.

Source: Chen et al., "Learning to Predict 3D Objects with an Interpolation-based Differentiable Renderer", NeurIPS 2019, section 3.1.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from scenemill.trainers.render.pairs import Raster
from scenemill.trainers.render.winners import Weights, barycentric, corner_columns, perspective_weights


@dataclass(frozen=True)
class Covered:
    """Pixels that show a face, and how it is interpolated.

    Attributes:
        pixel: (n,) int64, flat numbers, each once.
        face: (n,) int64, flat numbers.
        raster: the images.
        eps: of ``barycentric``.
        perspective: weights in space, else on the screen.
    """

    pixel: Tensor
    face: Tensor
    raster: Raster
    eps: float
    perspective: bool

    def centres(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """x and y, (n,), scaled, in the dtype of ``like``."""
        x, y = self.raster.centres(like)
        return x.index_select(0, self.pixel), y.index_select(0, self.pixel)


def interpolate(image: Tensor, z: Tensor, features: Tensor, covered: Covered) -> Tensor:
    """(B * H * W, D): features at the covered pixels, 0 elsewhere.

    Args:
        image: (N, 3, 2), corners on the image plane, unscaled.
        z: (N, 3), depths of the corners; has a gradient only with ``covered.perspective``.
        features: (N, 3, D), of the corners.
        covered: which pixels.
    """
    found: Tensor = _Interpolate.apply(image, z, features, covered)  # type: ignore[no-untyped-call]
    return found


def add_by_face(rows: Tensor, face: Tensor, count: int) -> Tensor:
    """Sums of rows (n, C) with the same face, (count, C)."""
    return rows.new_zeros((count, rows.shape[1])).index_add_(0, face, rows)


class _Interpolate(Function):
    @staticmethod
    def forward(ctx: Any, image: Tensor, z: Tensor, features: Tensor, covered: Covered) -> Tensor:
        raster = covered.raster
        x, y = covered.centres(image)
        weights = barycentric(corner_columns(image * raster.multiplier), covered.face, x, y, covered.eps)
        inner = perspective_weights(weights, _depths(z, covered))[0] if covered.perspective else weights
        rows = sum(weight[:, None] * _at_corner(features, corner, covered) for corner, weight in enumerate(inner))
        ctx.covered = covered
        ctx.save_for_backward(image, z, features, *weights)
        out = features.new_zeros((raster.pixels, features.shape[2]))
        out[covered.pixel] = rows
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        image, z, features, *weights = ctx.saved_tensors
        covered, count = ctx.covered, len(image)
        of_image, of_z, of_features = None, None, None
        back = gradient.index_select(0, covered.pixel)
        inner = perspective_weights(weights, _depths(z, covered))[0] if covered.perspective else weights
        if ctx.needs_input_grad[2]:
            rows = torch.cat([weight[:, None] * back for weight in inner], dim=1)
            of_features = add_by_face(rows, covered.face, count).view(features.shape)
        if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
            slopes = [(_at_corner(features, corner, covered) * back).sum(dim=1) for corner in range(3)]
            if covered.perspective:
                slopes, z_slopes = _through_perspective(slopes, weights, inner, _depths(z, covered))
                of_z = add_by_face(z_slopes, covered.face, count) if ctx.needs_input_grad[1] else None
            of_image = add_by_face(_position_slopes(image, slopes, covered), covered.face, count).view(image.shape)
        return of_image, of_z, of_features, None


def _at_corner(features: Tensor, corner: int, covered: Covered) -> Tensor:
    """(n, D); one corner at a time, as features may be wide."""
    return features[:, corner].index_select(0, covered.face)


def _depths(z: Tensor, covered: Covered) -> Weights:
    first, second, third = (column.index_select(0, covered.face) for column in corner_columns(z[..., None]))
    return first, second, third


def _through_perspective(slopes: list[Tensor], weights: Any, inner: Any, z: Weights) -> tuple[list[Tensor], Tensor]:
    """Gradients to weights in space as gradients to weights on the screen, and as (n, 3) to depths."""
    mean = sum(slope * weight for slope, weight in zip(slopes, inner, strict=True))
    depth = perspective_weights(weights, z)[1]
    shares = [(slope - mean) * depth for slope in slopes]
    on_screen = [share / corner for share, corner in zip(shares, z, strict=True)]
    of_z = [-share * weight / corner**2 for share, weight, corner in zip(shares, weights, z, strict=True)]
    return on_screen, torch.stack(of_z, dim=1)


def _position_slopes(image: Tensor, slopes: list[Tensor], covered: Covered) -> Tensor:
    """(n, 6): gradients to the corners of the faces, given those to the weights on the screen; see the module."""
    ax, ay, bx, by, cx, cy = (column.index_select(0, covered.face) for column in corner_columns(image))
    x, y = (scaled / covered.raster.multiplier for scaled in covered.centres(image))
    mx, my, nx, ny, sx, sy = bx - ax, by - ay, cx - ax, cy - ay, x - ax, y - ay
    area = mx * ny - nx * my
    area = area + area.new_full((), covered.eps).copysign(area)
    second, third = (slopes[1] - slopes[0]) / area, (slopes[2] - slopes[0]) / area
    whole = (second * (sx * ny - nx * sy) + third * (mx * sy - sx * my)) / area  # the part of the gradient through k
    of_m = (third * sy - whole * ny, whole * nx - third * sx)
    of_n = (whole * my - second * sy, second * sx - whole * mx)
    of_s = (second * ny - third * my, third * mx - second * nx)
    of_a = [-(m + n + s) for m, n, s in zip(of_m, of_n, of_s, strict=True)]
    return torch.stack([*of_a, *of_m, *of_n], dim=1)
