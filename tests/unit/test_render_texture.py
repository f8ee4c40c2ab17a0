"""Texture lookup against texels picked by arithmetic."""

import math

import pytest
import torch
from torch import Tensor

from scenemill.schemas.errors import ConfigError
from scenemill.trainers.render import texture_mapping

SQUARE = torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]])
CORNERS = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.5, 0.5]]])


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def bilinear(texture: Tensor, u: float, v: float, wrap: str) -> Tensor:
    """(C,): the four texels around a place, v up."""
    _, height, width = texture.shape
    x, y = u * width - 0.5, (1 - v) * height - 0.5
    column, row = math.floor(x), math.floor(y)

    def texel(j: int, i: int) -> Tensor:
        if wrap == "repeat":
            return texture[:, j % height, i % width]
        return texture[:, min(max(j, 0), height - 1), min(max(i, 0), width - 1)]

    upper = texel(row, column) * (1 - x + column) + texel(row, column + 1) * (x - column)
    lower = texel(row + 1, column) * (1 - x + column) + texel(row + 1, column + 1) * (x - column)
    return upper * (1 - y + row) + lower * (y - row)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_v_goes_up_and_corners_are_texels(dtype: torch.dtype) -> None:
    found = texture_mapping(CORNERS.to(dtype), SQUARE.to(dtype), "bilinear")
    assert found.dtype == dtype and found.flatten().tolist() == [2, 3, 0, 1, 1.5]
    assert texture_mapping(CORNERS[:, :4].to(dtype), SQUARE.to(dtype)).flatten().tolist() == [2, 3, 0, 1]


@pytest.mark.parametrize("wrap", ["clamp", "repeat"])
@pytest.mark.parametrize("size", [(5, 3), (1, 1), (2, 6)])
def test_bilinear_is_the_mean_of_four_texels(wrap: str, size: tuple[int, int]) -> None:
    texture, places = random(2, 3, *size), 3 * random(2, 40, 2, seed=1) - 1
    found = texture_mapping(places, texture, "bilinear", wrap=wrap)
    inside = places.clamp(0, 1) if wrap == "clamp" else places
    for batch, row in torch.cartesian_prod(torch.arange(2), torch.arange(40)).tolist():
        u, v = inside[batch, row].tolist()
        expected = bilinear(texture[batch], u, v, wrap)
        torch.testing.assert_close(found[batch, row], expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("wrap", ["clamp", "repeat"])
def test_nearest_is_the_texel_a_place_lies_in(wrap: str) -> None:
    texture, places = random(1, 2, 4, 7), 3 * random(1, 60, 2, seed=2) - 1
    found = texture_mapping(places, texture, wrap=wrap)
    inside = places.clamp(0, 1 - 1e-9) if wrap == "clamp" else places % 1
    column, row = (inside[0, :, 0] * 7).long(), ((1 - inside[0, :, 1]) * 4).clamp(max=3.999).long()
    assert torch.equal(found[0], texture[0, :, row, column].T)


@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic"])
def test_a_repeated_texture_is_that_of_its_tiles(mode: str) -> None:
    texture, places = random(1, 2, 4, 5), random(1, 50, 2, seed=3) + torch.tensor([1.0, 2.0])
    tiled = texture.repeat(1, 1, 5, 5)
    expected = texture_mapping((places + torch.tensor([1.0, 0.0])) / 5, tiled, mode)
    torch.testing.assert_close(texture_mapping(places, texture, mode, wrap="repeat"), expected, rtol=0, atol=1e-9)


def test_maps_and_lists_of_places_are_alike_and_stay_as_they_are() -> None:
    texture, places = random(2, 3, 4, 4), 2 * random(2, 6, 5, 2) - 0.5
    before = places.clone()
    found = texture_mapping(places, texture, "bicubic")
    assert found.shape == (2, 6, 5, 3) and torch.equal(places, before)
    assert torch.equal(found.flatten(1, 2), texture_mapping(places.flatten(1, 2), texture, "bicubic"))


@pytest.mark.parametrize("wrap", ["clamp", "repeat"])
def test_textures_and_places_have_gradients(wrap: str) -> None:
    texture, places = random(1, 2, 3, 4).requires_grad_(), (0.2 + 0.5 * random(1, 6, 2, seed=4)).requires_grad_()

    def look_up(places: Tensor, texture: Tensor) -> Tensor:
        return texture_mapping(places, texture, "bilinear", wrap=wrap)

    assert torch.autograd.gradcheck(look_up, (places, texture))


def test_wrong_lookups_say_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="mode 'cubic'"):
        texture_mapping(CORNERS, SQUARE, "cubic")
    with pytest.raises(ConfigError, match="wrap 'mirror'"):
        texture_mapping(CORNERS, SQUARE, wrap="mirror")
    with pytest.raises(ConfigError, match="one floating dtype"):
        texture_mapping(CORNERS.double(), SQUARE)
    for places, texture in ((CORNERS[0], SQUARE), (CORNERS, SQUARE[0]), (CORNERS.expand(2, -1, -1), SQUARE)):
        with pytest.raises(ConfigError, match="expected"):
            texture_mapping(places, texture)
