"""Projectors of depth features: released names and counts, sizes and pairing, and values against plain formulas."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from scenemill.trainers.nvpanoptix3d.projector import DepthProjector, Projector

SIZES = [(13, 16), (26, 32), (52, 64)]  # of the pixel decoder, coarsest first, for an image of 240x320
SMALL_SIZES = [(2, 3), (3, 5), (6, 10)]


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


def branch(halving: str, mixing: str) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {f"{halving}.0.weight": (256, 256, 3, 3), f"{mixing}.weight": (256, 256, 1, 1)}
    shapes |= {f"{halving}.{name}": (256,) for name in ("0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var")}
    return shapes | {f"{halving}.1.num_batches_tracked": (), f"{mixing}.bias": (256,)}


def maps_of(width: int, grid: tuple[int, int] = (3, 5)) -> list[Tensor]:
    random = torch.Generator().manual_seed(5)
    return [torch.randn(2, width, times * grid[0], times * grid[1], generator=random) for times in (8, 4, 2, 1)]


def test_the_depth_projector_has_the_released_names_shapes_and_count() -> None:
    with torch.device("meta"):
        projector = DepthProjector()
    expected: dict[str, tuple[int, ...]] = {}
    for level in range(4):
        expected |= branch(f"proj_convs1.{level}.conv_block", f"proj_convs2.{level}")
    assert shapes_of(projector) == expected and len(expected) == 36
    assert sum(parameter.numel() for parameter in projector.parameters()) == 2_625_536


def test_the_projector_of_stage_2_has_the_released_names_shapes_and_count() -> None:
    with torch.device("meta"):
        projector = Projector()
    assert shapes_of(projector) == branch("conv_block1", "conv_block2")
    assert sum(parameter.numel() for parameter in projector.parameters()) == 656_384


def test_shapes_of_an_image_of_240x320() -> None:
    with torch.device("meta"):
        maps = [torch.empty(1, 256, 26 * times, 32 * times) for times in (8, 4, 2, 1)]
        assert [tuple(each.shape) for each in DepthProjector()(maps, SIZES)] == [(1, 256, *size) for size in SIZES]
        assert Projector()(maps[3], (104, 128)).shape == (1, 256, 104, 128)


def plain(maps: Tensor, halving: nn.Sequential, mixing: nn.Conv2d, size: tuple[int, int]) -> Tensor:
    """As defined: halved, normed by the statistics of the batch, resized, and only then the 1x1 convolution."""
    conv, norm = halving[0], halving[1]
    assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
    maps = functional.conv2d(maps, conv.weight, conv.bias, stride=2, padding=1)
    deviation = torch.sqrt(maps.var((0, 2, 3), correction=0, keepdim=True) + 1e-5)
    maps = (maps - maps.mean((0, 2, 3), keepdim=True)) / deviation * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)
    wide = functional.interpolate(maps.clamp(min=0), size, mode="bilinear", align_corners=False)
    return functional.conv2d(wide, mixing.weight, mixing.bias)


def branch_of(projector: DepthProjector, level: int) -> tuple[nn.Sequential, nn.Conv2d]:
    halving, mixing = projector.get_submodule(f"proj_convs1.{level}.conv_block"), projector.proj_convs2[level]
    assert isinstance(halving, nn.Sequential) and isinstance(mixing, nn.Conv2d)
    return halving, mixing


def test_the_depth_projector_is_its_definition_coarsest_first() -> None:
    torch.manual_seed(6)
    projector, maps = DepthProjector(8, 12), maps_of(8)
    sizes = [(2, 3), (4, 7), (6, 10)]  # the second differs from what halving gives
    expected = [plain(maps[level], *branch_of(projector, level), size) for level, size in zip((3, 2, 1), sizes, strict=True)]
    torch.testing.assert_close(projector(maps, sizes), expected, rtol=1e-5, atol=1e-5)


def test_the_projector_of_stage_2_is_its_definition() -> None:
    torch.manual_seed(7)
    projector, maps = Projector(8, 12), maps_of(8)[3]
    expected = plain(maps, projector.conv_block1, projector.conv_block2, (12, 20))
    torch.testing.assert_close(projector(maps, (12, 20)), expected, rtol=1e-5, atol=1e-5)


def test_the_branch_of_the_finest_map_takes_no_part() -> None:
    projector, maps = DepthProjector(8, 12), maps_of(8)
    before = {name: value.clone() for name, value in projector.state_dict().items()}
    loss = torch.stack([each.square().sum() for each in projector(maps, SMALL_SIZES)]).sum()
    parameters = dict(projector.named_parameters())
    gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    without = {name for name, each in zip(parameters, gradients, strict=True) if each is None or float(each.abs().max()) < 1e-4}
    idle = {name for name in without if name.split(".")[1] == "0"}
    assert idle == {name for name, _ in projector.named_parameters() if name.split(".")[1] == "0"}
    # a bias before a batch norm moves nothing
    assert all(name.endswith("conv_block.0.bias") for name in without - idle)
    assert torch.equal(
        projector.state_dict()["proj_convs1.0.conv_block.1.running_mean"], before["proj_convs1.0.conv_block.1.running_mean"]
    )


def test_evaluation_uses_and_keeps_the_statistics() -> None:
    projector, maps = Projector(8, 12), maps_of(8)[3]
    projector(maps, (12, 20))
    kept = projector.state_dict()["conv_block1.1.running_mean"].clone()
    assert bool(kept.any())
    whole = projector.eval()(maps, (12, 20))
    torch.testing.assert_close(torch.cat([projector(each[None], (12, 20)) for each in maps]), whole)
    assert torch.equal(projector.state_dict()["conv_block1.1.running_mean"], kept)


def test_autocast_and_compile() -> None:
    projector, maps = DepthProjector(8, 8).eval(), maps_of(8)
    expected = projector(maps, SMALL_SIZES)
    with torch.autocast("cpu", torch.bfloat16):
        near = projector(maps, SMALL_SIZES)
    assert all(float((a.float() - b).detach().abs().max()) < 0.05 for a, b in zip(near, expected, strict=True))
    compiled = torch.compile(projector, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(maps, SMALL_SIZES), expected)
