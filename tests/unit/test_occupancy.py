"""The multi-plane occupancy head: released names and counts, and the rearranged convolutions against what defines them."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from scenemill.schemas.errors import ConfigError
from scenemill.trainers.nvpanoptix3d import occupancy
from scenemill.trainers.nvpanoptix3d.occupancy import OccupancyHead, UpBlock, conv_of_resized, moved_resize

TINY = (8, 16, 32, 64)
SIZES = ((104, 128), (52, 64), (26, 32), (13, 16))  # res2..res5 of an image of 240x320
SMALL_SIZES = ((12, 20), (6, 10), (3, 5), (2, 3))


def tiny_head() -> OccupancyHead:
    """Of the tiny configuration, with batch norms that do something in evaluation too."""
    torch.manual_seed(1)
    head = OccupancyHead(TINY, num_planes=24, depth_size=(30, 40))
    for module in head.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    return head


def features_of(sizes: tuple[tuple[int, int], ...] = SMALL_SIZES, count: int = 2) -> list[Tensor]:
    random = torch.Generator().manual_seed(2)
    return [torch.randn(count, width, *size, generator=random) for width, size in zip(TINY, sizes, strict=True)]


def norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    names = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{each}": (width,) for each in names} | {f"{name}.num_batches_tracked": ()}


def up_block(name: str, width: int, out: int) -> dict[str, tuple[int, ...]]:
    shapes = {f"{name}.conv1.weight": (out, width, 5, 5), f"{name}.conv1_2.weight": (out, out, 3, 3)}
    shapes[f"{name}.conv2.weight"] = (out, width, 5, 5)
    return shapes | norm(f"{name}.bn1", out) | norm(f"{name}.bn1_2", out) | norm(f"{name}.bn2", out)


def expected_shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"decoder.conv.weight": (1024, 2048, 1, 1)} | norm("decoder.bn", 1024)
    for level, width in enumerate((1024, 512, 256, 128), 1):
        shapes |= up_block(f"decoder.up{level}", width, width // 2)
    for level, width in enumerate((256, 512, 1024, 2048), 1):
        shapes |= up_block(f"multi_feature_fuser.up{level}", width, 16)
    shapes |= {"multi_feature_fuser.conv.weight": (64, 64, 5, 5)} | norm("multi_feature_fuser.bn", 64)
    shapes |= up_block("prediction.resize", 128, 128) | norm("prediction.bn0", 128) | norm("prediction.bn1", 128)
    shapes |= {f"prediction.conv{each}.weight": (128, 128, 5, 5) for each in (0, 1)}
    return shapes | {"prediction.conv2.weight": (100, 128, 5, 5), "prediction.conv2.bias": (100,)}


def test_released_names_shapes_and_count() -> None:
    with torch.device("meta"):
        head = OccupancyHead()
    assert {name: tuple(value.shape) for name, value in head.state_dict().items()} == expected_shapes()
    assert len(head.state_dict()) == 188
    assert sum(parameter.numel() for parameter in head.parameters()) == 45_345_764


def test_shape_of_what_comes_out() -> None:
    with torch.device("meta"):
        features = [torch.empty(1, width, *size) for width, size in zip((256, 512, 1024, 2048), SIZES, strict=True)]
        assert OccupancyHead()(features).shape == (1, 100, 120, 160)
    assert tiny_head()(features_of(((28, 32), (14, 16), (7, 8), (4, 4)))).shape == (2, 24, 30, 40)


def test_widths_follow_the_features() -> None:
    head = tiny_head()
    assert [up.conv1.out_channels for up in (head.decoder.up1, head.decoder.up2, head.decoder.up3, head.decoder.up4)] == [
        16,
        8,
        4,
        2,
    ]
    assert head.prediction.conv1.in_channels == 2 + 64
    with pytest.raises(ConfigError, match="multiples of 4"):
        OccupancyHead((6, 12, 24, 48))


@pytest.mark.parametrize(("cells", "size", "edge"), [(4, 9, 5), (3, 3, 5), (7, 4, 3), (1, 6, 5), (2, 1, 1)])
def test_moved_resize_is_its_formula(cells: int, size: int, edge: int) -> None:
    expected = torch.zeros(edge, cells, size)
    for tap in range(edge):
        for place in range(size):
            moved = place + tap - edge // 2
            if 0 <= moved < size:
                position = moved * (cells - 1) / (size - 1) if size > 1 else 0.0
                for cell in range(cells):
                    expected[tap, cell, place] = max(0.0, 1 - abs(position - cell))
    torch.testing.assert_close(moved_resize(cells, size, edge), expected.flatten(0, 1), rtol=1e-6, atol=1e-6)


def test_moved_resize_is_made_once_and_serves_training_after_inference() -> None:
    with torch.inference_mode():
        kept = moved_resize(3, 11, 5)
    assert kept is moved_resize(3, 11, 5) and not kept.is_inference()


def direct(maps: Tensor, weight: Tensor, size: tuple[int, int]) -> Tensor:
    wide = functional.interpolate(maps, size, mode="bilinear", align_corners=True)
    return functional.conv2d(wide, weight, padding=weight.shape[-1] // 2)


@pytest.mark.parametrize("gain", [0, 2, 1e9])
@pytest.mark.parametrize(
    ("cells", "size", "edge"), [((3, 4), (12, 16), 5), ((13, 16), (26, 31), 5), ((6, 5), (4, 3), 3), ((1, 2), (8, 8), 5)]
)
def test_both_orders_give_the_same(
    cells: tuple[int, int], size: tuple[int, int], edge: int, gain: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(occupancy, "GAIN", gain)
    torch.manual_seed(4)
    maps, weight = torch.randn(2, 7, *cells, requires_grad=True), torch.randn(6, 7, edge, edge, requires_grad=True)
    found, expected = conv_of_resized(maps, weight, size), direct(maps, weight, size)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-5)
    share = torch.randn_like(found)
    torch.testing.assert_close(
        torch.autograd.grad(found, (maps, weight), share),
        torch.autograd.grad(expected, (maps, weight), share),
        rtol=1e-4,
        atol=1e-4,
    )


def test_the_largest_layers_are_rearranged_and_the_finest_are_not() -> None:
    def pays(width: int, cells: tuple[int, int], size: tuple[int, int]) -> bool:
        return occupancy._pays(width, 5, cells, size)

    assert [pays(width, size, (208, 256)) for width, size in zip((256, 512, 1024, 2048), SIZES, strict=True)] == [
        False,
        True,
        True,
        True,
    ]
    assert pays(1024, SIZES[3], SIZES[2]) and pays(512, SIZES[2], SIZES[1]) and not pays(128, SIZES[0], (208, 256))


def plain_norm(maps: Tensor, layer: nn.BatchNorm2d) -> Tensor:
    if layer.training:
        mean, variance = maps.mean((0, 2, 3)), maps.var((0, 2, 3), correction=0)
    else:
        assert layer.running_mean is not None and layer.running_var is not None
        mean, variance = layer.running_mean, layer.running_var
    mean, variance, weight, bias = (each.view(-1, 1, 1) for each in (mean, variance, layer.weight, layer.bias))
    return (maps - mean) / torch.sqrt(variance + 1e-5) * weight + bias


def plain_up(block: UpBlock, maps: Tensor, size: tuple[int, int]) -> Tensor:
    first = plain_norm(direct(maps, block.conv1.weight, size), block.bn1).clamp(min=0)
    first = plain_norm(functional.conv2d(first, block.conv1_2.weight, padding=1), block.bn1_2)
    return (first + plain_norm(direct(maps, block.conv2.weight, size), block.bn2)).clamp(min=0)


def plain_head(head: OccupancyHead, features: list[Tensor], size: tuple[int, int]) -> Tensor:
    """As defined: sizes of res4, res3, res2 and twice res2 in turn; the decoder's channels before those of the fusion."""
    decoder, fuser, prediction = head.decoder, head.multi_feature_fuser, head.prediction
    twice = (2 * features[0].shape[2], 2 * features[0].shape[3])
    maps = plain_norm(functional.conv2d(features[3], decoder.conv.weight), decoder.bn).clamp(min=0)
    for block, to in zip((decoder.up1, decoder.up2, decoder.up3, decoder.up4), (*SMALL_SIZES[2::-1], twice), strict=True):
        maps = plain_up(block, maps, to)
    parts = []
    for level, each in enumerate(features, 1):
        up = fuser.get_submodule(f"up{level}")
        assert isinstance(up, UpBlock)
        parts.append(plain_up(up, each, twice))
    fused = plain_norm(functional.conv2d(torch.cat(parts, 1), fuser.conv.weight, padding=2), fuser.bn).clamp(min=0)
    maps = plain_up(prediction.resize, torch.cat([maps, fused], 1), size)
    maps = plain_norm(functional.conv2d(maps, prediction.conv0.weight, padding=2), prediction.bn0).clamp(min=0)
    maps = plain_norm(functional.conv2d(maps, prediction.conv1.weight, padding=2), prediction.bn1).clamp(min=0)
    return functional.conv2d(maps, prediction.conv2.weight, prediction.conv2.bias, padding=2)


@pytest.mark.parametrize("training", [False, True])
def test_the_head_is_its_definition(training: bool) -> None:
    head, features = tiny_head().train(training), features_of()
    expected = plain_head(head, features, (30, 40))
    torch.testing.assert_close(head(features), expected, rtol=1e-4, atol=1e-4)


def test_batch_statistics_are_gathered_in_training_alone() -> None:
    head, features = tiny_head(), features_of()
    before = {name: value.clone() for name, value in head.state_dict().items()}
    head.eval()(features)
    assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items())
    head.train()(features)
    changed = {name for name, value in head.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if name.endswith(("running_mean", "running_var", "num_batches_tracked"))}


def test_gradients_are_those_of_the_definition_and_reach_all() -> None:
    head, features = tiny_head().eval(), features_of()
    share = torch.randn(2, 24, 30, 40)
    found = torch.autograd.grad(head(features), list(head.parameters()), share)
    expected = torch.autograd.grad(plain_head(head, features, (30, 40)), list(head.parameters()), share)
    for gradient, wanted in zip(found, expected, strict=True):
        assert float((gradient - wanted).abs().max()) <= 1e-4 * float(wanted.abs().max()) and bool(gradient.any())


def test_autocast_is_near() -> None:
    head, features = tiny_head().eval(), features_of()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = head(features)
    with torch.no_grad():
        expected = head(features)
    assert found.dtype == torch.bfloat16
    assert float((found.float() - expected).abs().max()) < 0.05 * float(expected.abs().max())


def test_the_head_compiles_as_one_graph() -> None:
    head, features = tiny_head().eval(), features_of()
    compiled = torch.compile(head, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(features), head(features))
