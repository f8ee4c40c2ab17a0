"""Depth and pixel heads: released names and counts, and every order, resize and shortcut against plain formulas."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from scenemill.schemas.errors import ConfigError
from scenemill.trainers.nvpanoptix3d.dpt import DepthHead, Fusion, PixelHead, ResidualUnit, add_position, position_map, resize

IMAGE = (364, 448)  # of 240x320, padded to 256x320
SMALL = (42, 70)  # 3 x 5 patches
TINY_PIXELS = (8, 16, 32, 64)


def small_depth_head() -> DepthHead:
    torch.manual_seed(1)
    return DepthHead(6, 8, (4, 12, 8, 16))


def small_pixel_head() -> PixelHead:
    torch.manual_seed(2)
    return PixelHead(6, (3, 4, 5, 7))


def taps_of(embed_dim: int, image: tuple[int, int] = SMALL, frames: tuple[int, int] = (2, 1), special: int = 5) -> list[Tensor]:
    random = torch.Generator().manual_seed(3)
    tokens = special + image[0] // 14 * (image[1] // 14)
    return [torch.randn(*frames, tokens, 2 * embed_dim, generator=random) for _ in range(4)]


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


def both(name: str, *shape: int, transposed: bool = False) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": (shape[1 if transposed else 0],)}


def test_the_depth_head_has_the_released_names_shapes_and_count() -> None:
    with torch.device("meta"):
        head = DepthHead()
    expected = both("norm", 2048)
    for level, width in enumerate((256, 512, 1024, 1024)):
        expected |= both(f"projects.{level}", width, 2048, 1, 1)
        expected[f"scratch.layer{level + 1}_rn.weight"] = (256, width, 3, 3)
        expected |= both(f"scratch.refinenet{level + 1}.out_conv", 256, 256, 1, 1)
        for unit in (1, 2) if level < 3 else (2,):
            for conv in (1, 2):
                expected |= both(f"scratch.refinenet{level + 1}.resConfUnit{unit}.conv{conv}", 256, 256, 3, 3)
    expected |= both("resize_layers.0", 256, 256, 4, 4) | both("resize_layers.1", 512, 512, 2, 2)
    expected |= both("resize_layers.3", 1024, 1024, 3, 3) | both("scratch.output_conv1", 128, 256, 3, 3)
    expected |= both("scratch.output_conv2.0", 32, 128, 3, 3) | both("scratch.output_conv2.2", 2, 32, 1, 1)
    assert shapes_of(head) == expected and len(expected) == 62
    assert sum(parameter.numel() for parameter in head.parameters()) == 32_654_562


def test_the_pixel_head_has_the_released_names_shapes_and_count() -> None:
    with torch.device("meta"):
        head = PixelHead()
    expected = both("norm", 2048)
    for level, (width, edge) in enumerate(zip((256, 512, 1024, 2048), (4, 2, 0, 3), strict=True)):
        expected |= both(f"projects.{level}", 2048, 2048, 1, 1) | both(f"unify_layers.{level}", width, 2048, 1, 1)
        expected |= both(f"resize_layers.{level}", 2048, 2048, edge, edge) if edge else {}
    assert shapes_of(head) == expected and len(expected) == 24
    assert sum(parameter.numel() for parameter in head.parameters()) == 146_298_624


def test_shapes_of_an_image_of_240x320_at_full_width() -> None:
    with torch.device("meta"):
        taps = [torch.empty(1, 1, 837, 2048) for _ in range(4)]
        depth, confidence, maps = DepthHead()(taps, IMAGE)
        features = PixelHead()(taps, IMAGE)
    assert depth.shape == confidence.shape == (1, 1, *IMAGE)
    assert [tuple(each.shape[1:]) for each in maps] == [(256, 208, 256), (256, 104, 128), (256, 52, 64), (256, 26, 32)]
    assert [tuple(each.shape[1:]) for each in features] == [(256, 104, 128), (512, 52, 64), (1024, 26, 32), (2048, 13, 16)]


def test_the_tiny_configuration_runs_on_a_real_image_size() -> None:
    taps = taps_of(64, (84, 112), (2, 1))
    depth, confidence, maps = DepthHead(64, 32, (16, 24, 32, 32))(taps, (84, 112))
    assert depth.shape == confidence.shape == (2, 1, 84, 112) and depth.dtype == torch.float32
    assert bool((depth > 0).all()) and bool((confidence > 1).all())
    assert [tuple(each.shape) for each in maps] == [(2, 32, 6 * n, 8 * n) for n in (8, 4, 2, 1)]
    features = PixelHead(64, TINY_PIXELS)(taps, (84, 112))
    assert [tuple(each.shape) for each in features] == [(2, 8, 24, 32), (2, 16, 12, 16), (2, 32, 6, 8), (2, 64, 3, 4)]


@pytest.mark.parametrize(("channels", "size", "image"), [(8, (3, 5), (42, 70)), (12, (2, 2), (28, 28)), (4, (1, 4), (10, 30))])
def test_position_map_is_its_formula(channels: int, size: tuple[int, int], image: tuple[int, int]) -> None:
    aspect = image[1] / image[0]
    diagonal = math.sqrt(aspect**2 + 1)
    rows, columns = size
    found = position_map(channels, size, image)
    assert found.shape == (channels, rows, columns) and found.dtype == torch.float32
    for row in range(rows):
        for column in range(columns):
            # n steps from -end to +end, where end leaves half a cell to the border
            x = (2 * column - (columns - 1)) / columns * aspect / diagonal
            y = (2 * row - (rows - 1)) / rows / diagonal
            for half, position in enumerate((x, y)):
                for k in range(channels // 4):
                    angle = position * 100 ** (-k / (channels / 4))
                    first = half * channels // 2
                    assert found[first + k, row, column].item() == pytest.approx(math.sin(angle), abs=1e-7)
                    assert found[first + channels // 4 + k, row, column].item() == pytest.approx(math.cos(angle), abs=1e-7)


def test_position_map_is_made_once_and_serves_training_after_inference() -> None:
    with torch.inference_mode():
        kept = position_map(16, (7, 9), (98, 126))
    assert kept is position_map(16, (7, 9), (98, 126)) and not kept.is_inference()
    assert position_map(16, (7, 9), (98, 125)) is not kept
    with pytest.raises(ConfigError, match="multiples of 4"):
        position_map(6, (2, 2), (28, 28))


def test_a_tenth_of_the_position_is_added() -> None:
    conv, maps = nn.Conv2d(3, 8, 1), torch.randn(2, 8, 3, 5)
    torch.testing.assert_close(add_position(conv, maps, (3, 5), SMALL), maps + 0.1 * position_map(8, (3, 5), SMALL))


def test_resize_aligns_corners() -> None:
    maps = torch.randn(1, 1, 4, 3, dtype=torch.float64)
    found = resize(maps, (7, 8))
    for row in range(7):
        for column in range(8):
            y, x = row * 3 / 6, column * 2 / 7
            top, left = min(int(y), 2), min(int(x), 1)
            value = sum(
                float(maps[0, 0, top + i, left + j]) * (1 - abs(y - top - i)) * (1 - abs(x - left - j))
                for i in (0, 1)
                for j in (0, 1)
            )
            assert found[0, 0, row, column].item() == pytest.approx(value)


def test_the_shortcut_of_a_residual_unit_carries_what_relu_leaves() -> None:
    unit = ResidualUnit(4)
    assert unit.conv2.bias is not None
    nn.init.zeros_(unit.conv2.weight)
    nn.init.zeros_(unit.conv2.bias)
    maps = torch.randn(1, 4, 3, 3)
    torch.testing.assert_close(unit(maps), maps.clamp(min=0))


Weights = Mapping[str, Tensor]


def conv(maps: Tensor, weights: Weights, name: str, **settings: Any) -> Tensor:
    return functional.conv2d(maps, weights[f"{name}.weight"], weights.get(f"{name}.bias"), **settings)


def plain_maps(taps: Sequence[Tensor], weights: Weights) -> list[Tensor]:
    """The four resized maps, as defined."""
    maps = []
    for level, tap in enumerate(taps):
        normed = functional.layer_norm(tap[:, :, 5:], tap.shape[-1:], weights["norm.weight"], weights["norm.bias"])
        tokens = normed.reshape(-1, 15, tap.shape[-1])
        each = torch.stack([sample.T.reshape(-1, 3, 5) for sample in tokens])
        each = conv(each, weights, f"projects.{level}")
        each = each + 0.1 * position_map(each.shape[1], (3, 5), SMALL)
        name = f"resize_layers.{level}"
        if level < 2:
            stride = 4 >> level
            each = functional.conv_transpose2d(each, weights[f"{name}.weight"], weights[f"{name}.bias"], stride=stride)
        if level == 3:
            each = conv(each, weights, name, stride=2, padding=1)
        maps.append(each)
    return maps


def plain_unit(maps: Tensor, weights: Weights, name: str) -> Tensor:
    hidden = conv(maps.clamp(min=0), weights, f"{name}.conv1", padding=1)
    return conv(hidden.clamp(min=0), weights, f"{name}.conv2", padding=1) + maps.clamp(min=0)


def plain_fusion(coarse: Tensor, skip: Tensor | None, size: Sequence[int], weights: Weights, name: str) -> Tensor:
    """As defined: joined, a unit, resized, and only then the 1x1 convolution."""
    if skip is not None:
        coarse = coarse + plain_unit(skip, weights, f"{name}.resConfUnit1")
    wide = functional.interpolate(plain_unit(coarse, weights, f"{name}.resConfUnit2"), size, mode="bilinear", align_corners=True)
    return conv(wide, weights, f"{name}.out_conv")


def plain_depth(taps: Sequence[Tensor], weights: Weights) -> list[Tensor]:
    """Depth, confidence, o1, o2, o3, o4, as defined."""
    maps = plain_maps(taps, weights)
    l1, l2, l3, l4 = (conv(each, weights, f"scratch.layer{level}_rn", padding=1) for level, each in enumerate(maps, 1))
    o4 = plain_fusion(l4, None, (3, 5), weights, "scratch.refinenet4")
    o3 = plain_fusion(o4, l3, (6, 10), weights, "scratch.refinenet3")
    o2 = plain_fusion(o3, l2, (12, 20), weights, "scratch.refinenet2")
    o1 = plain_fusion(o2, l1, (24, 40), weights, "scratch.refinenet1")
    fine = conv(o1, weights, "scratch.output_conv1", padding=1)
    fine = functional.interpolate(fine, SMALL, mode="bilinear", align_corners=True)
    fine = fine + 0.1 * position_map(fine.shape[1], SMALL, SMALL)
    logits = conv(conv(fine, weights, "scratch.output_conv2.0", padding=1).clamp(min=0), weights, "scratch.output_conv2.2")
    depth, confidence = torch.exp(logits[:, 0]), 1 + torch.exp(logits[:, 1])
    return [depth.view(*taps[0].shape[:2], *SMALL), confidence.view(*taps[0].shape[:2], *SMALL), o1, o2, o3, o4]


def plain_pixels(taps: Sequence[Tensor], weights: Weights) -> list[Tensor]:
    """res2..res5 as defined: resized first, their width set last."""
    return [conv(each, weights, f"unify_layers.{level}") for level, each in enumerate(plain_maps(taps, weights))]


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    return dict(module.named_parameters())


def gradients(outputs: Sequence[Tensor], module: nn.Module) -> list[Tensor]:
    """Of a sum with other weights for every output, by every parameter."""
    loss = torch.stack([(each * torch.linspace(-1, 1, each.numel()).view_as(each)).sum() for each in outputs]).sum()
    return list(torch.autograd.grad(loss, list(module.parameters())))


@pytest.mark.parametrize("frames", [(2, 1), (1, 3)])
def test_the_depth_head_is_its_definition(frames: tuple[int, int]) -> None:
    head, taps = small_depth_head(), taps_of(6, frames=frames)
    depth, confidence, maps = head(taps, SMALL)
    expected = plain_depth(taps, weights_of(head))
    torch.testing.assert_close([depth, confidence, *maps], expected, rtol=1e-5, atol=1e-5)
    head, taps = head.double(), [tap.double() for tap in taps]  # in float32 the order of sums alone makes more than 1e-4
    depth, confidence, maps = head(taps, SMALL)
    found, wanted = gradients([depth, confidence, *maps], head), gradients(plain_depth(taps, weights_of(head)), head)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert all(bool(gradient.any()) for gradient in found)


def test_the_pixel_head_is_its_definition() -> None:
    head, taps = small_pixel_head(), taps_of(6)
    features = head(taps, SMALL)
    expected = plain_pixels(taps, weights_of(head))
    assert [tuple(each.shape) for each in features] == [(2, 3, 12, 20), (2, 4, 6, 10), (2, 5, 3, 5), (2, 7, 2, 3)]
    torch.testing.assert_close(list(features), expected, rtol=1e-5, atol=1e-5)
    head, taps = head.double(), [tap.double() for tap in taps]
    found = gradients(head(taps, SMALL), head)
    torch.testing.assert_close(found, gradients(plain_pixels(taps, weights_of(head)), head), rtol=1e-4, atol=1e-4)
    assert all(bool(gradient.any()) for gradient in found)


def test_the_coarsest_fusion_has_no_unit_for_a_skip() -> None:
    fusion, maps = Fusion(4, skip=False), torch.randn(1, 4, 2, 3)
    assert not any("resConfUnit1" in name for name in fusion.state_dict())
    torch.testing.assert_close(
        fusion(maps, (3, 5)), plain_fusion(maps, None, (3, 5), {f"r.{k}": v for k, v in weights_of(fusion).items()}, "r")
    )


def test_special_tokens_are_not_looked_at() -> None:
    head, taps = small_depth_head(), taps_of(6)
    changed = [torch.cat([tap[:, :, :5] + 1, tap[:, :, 5:]], dim=2) for tap in taps]
    assert torch.equal(head(taps, SMALL).depth, head(changed, SMALL).depth)
    assert torch.equal(head([tap[:, :, 3:] for tap in taps], SMALL, special=2).depth, head(taps, SMALL).depth)


def test_images_must_be_in_whole_patches() -> None:
    with pytest.raises(ConfigError, match="multiples of 14"):
        small_depth_head()(taps_of(6), (42, 71))


def test_autocast_keeps_depth_in_float32_and_near() -> None:
    depth_head, pixel_head, taps = small_depth_head(), small_pixel_head(), taps_of(6)
    with torch.autocast("cpu", torch.bfloat16):
        depth, confidence, _ = depth_head(taps, SMALL)
        features = pixel_head(taps, SMALL)
    assert depth.dtype == confidence.dtype == torch.float32 and {each.dtype for each in features} == {torch.bfloat16}
    torch.testing.assert_close(depth, depth_head(taps, SMALL).depth, rtol=0.05, atol=0.05)
    for found, expected in zip(features, pixel_head(taps, SMALL), strict=True):
        torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.05)


def test_both_heads_compile_as_one_graph() -> None:
    depth_head, pixel_head, taps = small_depth_head(), small_pixel_head(), taps_of(6)

    def run(taps: list[Tensor]) -> list[Tensor]:
        depth, confidence, maps = depth_head(taps, SMALL)
        return [depth, confidence, *maps, *pixel_head(taps, SMALL)]

    compiled = torch.compile(run, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(taps), run(taps))
