"""Dense layers of stage 2 against their definition, with the norm written out."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from scenemill.schemas.errors import ConfigError
from scenemill.trainers.nvpanoptix3d.dense_layers import DenseBlock, dense_decoder, dense_encoder


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


def volume_of(channels: int, cells: int) -> Tensor:
    return torch.randn(2, channels, cells, cells, cells, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def normed(volume: Tensor) -> Tensor:
    """Every channel of every sample for itself, over space."""
    flat = volume.flatten(2)
    flat = (flat - flat.mean(2, keepdim=True)) / torch.sqrt(flat.var(2, correction=0, keepdim=True) + 1e-5)
    return flat.view_as(volume)


def padded_windows(volume: Tensor, edge: int, stride: int) -> Tensor:
    """(B, C, d, d, d) -> (B, d', d', d', C, edge, edge, edge), one cell of zeros around."""
    volume = functional.pad(volume, (1,) * 6)
    return volume.unfold(2, edge, stride).unfold(3, edge, stride).unfold(4, edge, stride).movedim(1, 4)


def convolved(volume: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
    windows = padded_windows(volume, weight.shape[-1], stride)
    return torch.einsum("bxyzcijk,ocijk->boxyz", windows, weight)


@pytest.mark.parametrize(("width", "out", "stride"), [(3, 3, 1), (3, 5, 2), (4, 4, 2)])
def test_a_block_is_its_definition(width: int, out: int, stride: int) -> None:
    torch.manual_seed(1)
    block, volume = DenseBlock(width, out, stride=stride).double(), volume_of(width, 6)
    weights = dict(block.named_parameters())
    inner = normed(convolved(volume, weights["conv1.weight"], stride)).clamp(min=0)
    inner = normed(convolved(inner, weights["conv2.weight"]))
    shortcut = convolved(volume, weights["downsample.weight"], 2) if stride == 2 else volume
    torch.testing.assert_close(block(volume), (inner + shortcut).clamp(min=0))


def test_an_encoder_halves_and_has_the_released_names() -> None:
    encoder = dense_encoder(3, 5)
    expected: dict[str, tuple[int, ...]] = {"0.conv1.weight": (5, 3, 3, 3, 3), "0.downsample.weight": (5, 3, 4, 4, 4)}
    expected |= dict.fromkeys(("0.conv2.weight", "1.conv1.weight", "1.conv2.weight"), (5, 5, 3, 3, 3))
    assert shapes_of(encoder) == expected
    assert encoder.double()(volume_of(3, 6)).shape == (2, 5, 3, 3, 3)


def test_a_decoder_is_its_definition() -> None:
    torch.manual_seed(2)
    decoder, volume = dense_decoder(3, 2).double(), volume_of(3, 4)
    assert shapes_of(decoder) == {"0.weight": (3, 2, 4, 4, 4)}
    grown = torch.zeros(2, 2, 10, 10, 10, dtype=torch.float64)
    for x, y, z in torch.cartesian_prod(*[torch.arange(4)] * 3).tolist():
        tap = torch.einsum("bcxyz,co->boxyz", volume, decoder.get_parameter("0.weight")[:, :, x, y, z])
        grown[:, :, x : x + 8 : 2, y : y + 8 : 2, z : z + 8 : 2] += tap
    inner = grown[:, :, 1:9, 1:9, 1:9].detach()
    torch.testing.assert_close(decoder(volume).detach(), normed(inner).clamp(min=0))


@pytest.mark.parametrize(("width", "out", "stride"), [(3, 4, 1), (4, 4, 3)])
def test_a_shortcut_that_does_not_fit_is_refused(width: int, out: int, stride: int) -> None:
    with pytest.raises(ConfigError, match="allowed are stride 2, or stride 1 of equal widths"):
        DenseBlock(width, out, stride=stride)
