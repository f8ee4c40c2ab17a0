"""Layers over sparse tensors.

A kernel's weights are (K, in, out), one matrix per offset, x slowest and z fastest. What is called a norm here works on every row for
itself, over its channels, and not over voxels.

Source: NvPanoptix3D as described in its fact sheet; names of parameters as in the released weights.
"""

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from scenemill.schemas.errors import ConfigError
from scenemill.trainers.nvpanoptix3d.sparse import SparseTensor, add_union
from scenemill.trainers.nvpanoptix3d.sparse_kernels import convolve
from scenemill.trainers.nvpanoptix3d.sparse_links import generative_links, strided_links, submanifold_links

EPSILON: Final = 1e-5
"""Added to the variance of a row."""


class _Kernel(nn.Module):
    """Weights and bias, at first uniform within one over the square root of how many values add up.

    Args:
        edge: of the kernel; it has edge³ offsets.
        width, out: channels that come in and go out.
        bias: whether there is one.
        transposed: whether weights are scaled by ``out`` in place of ``width``.
    """

    def __init__(self, edge: int, width: int, out: int, *, bias: bool, transposed: bool = False) -> None:
        super().__init__()
        limit, scale = ((edge**3 * channels) ** -0.5 for channels in (width, out if transposed else width))
        self.weight = nn.Parameter(torch.empty(edge**3, width, out).uniform_(-scale, scale))
        self.bias = nn.Parameter(torch.empty(out).uniform_(-limit, limit)) if bias else None

    def _biased(self, features: Tensor) -> Tensor:
        return features if self.bias is None else features + self.bias.to(features.dtype)


class SubmanifoldConv(_Kernel):
    """A 3x3x3 convolution on the voxels there are: what comes out is on the same support. Voxels must be distinct."""

    def __init__(self, width: int, out: int, bias: bool = False) -> None:
        super().__init__(3, width, out, bias=bias)

    def forward(self, tensor: SparseTensor) -> SparseTensor:
        """(N, width) -> (N, out) on the same support."""
        links = submanifold_links(tensor.support)
        return tensor.with_features(self._biased(convolve(tensor.features, self.weight, links)))


class PointwiseConv(_Kernel):
    """A product of each row with one matrix, and a bias."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__(1, width, out, bias=True)

    def forward(self, tensor: SparseTensor) -> SparseTensor:
        """(N, width) -> (N, out) on the same support."""
        return tensor.with_features(functional.linear(tensor.features, self.weight[0].T, self.bias))


class StridedConv(_Kernel):
    """A convolution of stride 2 onto ``support.halved``: voxel o sums over 2o + d. Voxels must be distinct.

    Args:
        width, out: channels.
        edge: 3, d from -1 to 1, without bias; or 4, d from 0 to 3, with bias.

    Raises:
        ConfigError: another edge.
    """

    def __init__(self, width: int, out: int, edge: int) -> None:
        if edge not in (3, 4):
            raise ConfigError(f"a strided convolution with an edge of {edge}; allowed are 3 and 4")
        super().__init__(edge, width, out, bias=edge == 4)
        self.edge = edge

    def forward(self, tensor: SparseTensor) -> SparseTensor:
        """(N, width) -> (M, out) on ``support.halved``, sorted, of twice the stride."""
        links = strided_links(tensor.support, self.edge)
        return SparseTensor(tensor.support.halved, self._biased(convolve(tensor.features, self.weight, links)))


class GenerativeConv(_Kernel):
    """A transposed 4x4x4 convolution of stride 2 that makes voxels: c adds to 2c + d, d from 0 to 3. Voxels must be distinct."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__(4, width, out, bias=False, transposed=True)

    def forward(self, tensor: SparseTensor) -> SparseTensor:
        """(N, width) -> (M, out) on ``support.doubled``, sorted, of half the stride.

        Raises:
            ConfigError: the stride is odd.
        """
        links = generative_links(tensor.support)
        return SparseTensor(tensor.support.doubled, convolve(tensor.features, self.weight, links))


class RowNorm(nn.Module):
    """Each row less its mean and over its deviation, by its own channels; no parameters."""

    def forward(self, tensor: SparseTensor) -> SparseTensor:
        """(N, C) -> (N, C) on the same support."""
        return tensor.with_features(functional.layer_norm(tensor.features, tensor.features.shape[1:], eps=EPSILON))


class RowReLU(nn.Module):
    """ReLU of every feature."""

    def forward(self, tensor: SparseTensor) -> SparseTensor:
        """(N, C) -> (N, C) on the same support."""
        return tensor.with_features(functional.relu(tensor.features))


class RowLinear(nn.Module):
    """A linear layer over rows; its parameters are those of ``block``, as in the released weights."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.block = nn.Linear(width, out)

    def forward(self, tensor: SparseTensor) -> SparseTensor:
        """(N, width) -> (N, out) on the same support."""
        return tensor.with_features(self.block(tensor.features))


class SparseBlock(nn.Module):
    """A residual block: convolution, norm, ReLU, convolution, norm, plus the shortcut, ReLU. Voxels must be distinct.

    The shortcut is what comes in, or ``downsample``, a convolution and a norm: of edge 4 with stride 2, else pointwise.

    Args:
        width, out: channels.
        stride: 1, or 2 for the support of twice the stride.
        shortcut: True for ``downsample`` even where stride and channels do not change.

    Raises:
        ConfigError: another stride.
    """

    def __init__(self, width: int, out: int, stride: int = 1, *, shortcut: bool = False) -> None:
        if stride not in (1, 2):
            raise ConfigError(f"a sparse block with a stride of {stride}; allowed are 1 and 2")
        super().__init__()
        self.conv1 = SubmanifoldConv(width, out) if stride == 1 else StridedConv(width, out, 3)
        self.conv2 = SubmanifoldConv(out, out)
        self.norm, self.relu = RowNorm(), RowReLU()
        if shortcut or stride == 2 or width != out:
            projection = PointwiseConv(width, out) if stride == 1 else StridedConv(width, out, 4)
            self.downsample: nn.Module = nn.Sequential(projection, RowNorm())
        else:
            self.downsample = nn.Identity()

    def forward(self, tensor: SparseTensor) -> SparseTensor:
        """(N, width) -> (M, out), on the same support, or on ``support.halved`` with stride 2."""
        inner = self.relu(self.norm(self.conv1(tensor)))
        out: SparseTensor = self.relu(add_union(self.norm(self.conv2(inner)), self.downsample(tensor)))
        return out
