"""Layers over dense volumes: the coarse half of the stage-2 network, where most cells hold something.

The norm here is the usual instance norm, of each channel over space. The sparse layers beside it norm each row over its own channels.

Source: NvPanoptix3D; names of parameters as in the released weights.
"""

from torch import Tensor, nn
from torch.nn import functional

from scenemill.schemas.errors import ConfigError


class DenseBlock(nn.Module):
    """Residual block: convolution, norm, ReLU, convolution, norm, plus the shortcut, ReLU. No convolution has a bias.

    The shortcut of a halving block is a convolution of edge 4, without a norm; otherwise it is the volume itself.

    Args:
        width: channels that go in.
        out: channels that come out.
        stride: 1, or 2 to halve the volume.

    Raises:
        ConfigError: another stride, or another width out of a block that does not halve.
    """

    def __init__(self, width: int, out: int, *, stride: int = 1) -> None:
        super().__init__()
        if stride not in {1, 2} or (stride == 1 and width != out):
            raise ConfigError(f"stride {stride}, {width} to {out} channels: allowed are stride 2, or stride 1 of equal widths")
        self.conv1 = nn.Conv3d(width, out, 3, stride=stride, padding=1, bias=False)
        self.conv2 = nn.Conv3d(out, out, 3, padding=1, bias=False)
        self.downsample = nn.Conv3d(width, out, 4, stride=2, padding=1, bias=False) if stride == 2 else nn.Identity()

    def forward(self, volume: Tensor) -> Tensor:
        """(B, width, d, d, d) -> (B, out, d / stride, d / stride, d / stride); at least 2 cells a side must be left."""
        inner = functional.relu(functional.instance_norm(self.conv1(volume)))
        return functional.relu(functional.instance_norm(self.conv2(inner)) + self.downsample(volume))


def dense_encoder(width: int, out: int) -> nn.Sequential:
    """A block that halves the volume and one that keeps it: (B, width, d, d, d) -> (B, out, d/2, d/2, d/2)."""
    return nn.Sequential(DenseBlock(width, out, stride=2), DenseBlock(out, out))


def dense_decoder(width: int, out: int) -> nn.Sequential:
    """Transposed convolution, norm, ReLU: (B, width, d, d, d) -> (B, out, 2d, 2d, 2d)."""
    grow = nn.ConvTranspose3d(width, out, 4, stride=2, padding=1, bias=False)
    return nn.Sequential(grow, nn.InstanceNorm3d(out), nn.ReLU())
