"""Sparse layers: every convolution against the dense one on the same voxels, forwards and back; memory, precision, order, nothing."""

import copy
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from scenemill.schemas.errors import ConfigError
from scenemill.trainers.nvpanoptix3d import sparse_kernels
from scenemill.trainers.nvpanoptix3d.sparse import SparseTensor, Support, prune, sparse_tensor
from scenemill.trainers.nvpanoptix3d.sparse_layers import (
    GenerativeConv,
    PointwiseConv,
    RowLinear,
    RowNorm,
    RowReLU,
    SparseBlock,
    StridedConv,
    SubmanifoldConv,
)

Layer = Callable[[int, int], nn.Module]

LOW = -4  # the least coordinate of made-up voxels
SIZE = 9  # and how many there are from it on
ORIGIN = 8  # where a coordinate of 0 is in dense volumes; even, so that it still is where it belongs after halving
EDGE = 20  # of dense volumes

CONVOLUTIONS: dict[str, Layer] = {
    "submanifold": SubmanifoldConv,
    "with bias": lambda width, out: SubmanifoldConv(width, out, bias=True),
    "strided 3": lambda width, out: StridedConv(width, out, 3),
    "strided 4": lambda width, out: StridedConv(width, out, 4),
    "generative": GenerativeConv,
    "pointwise": PointwiseConv,
}
each_convolution = pytest.mark.parametrize("name", CONVOLUTIONS)


def made_up(channels: int, *, share: float = 0.2, seed: int = 0, dtype: torch.dtype = torch.float64) -> SparseTensor:
    """Voxels of two samples on both sides of zero, in no order, of stride 2."""
    generator = torch.Generator().manual_seed(seed)
    cells = (torch.rand(2, SIZE, SIZE, SIZE, generator=generator) < share).nonzero()
    coords = cells[torch.randperm(len(cells), generator=generator)] + torch.tensor([0, LOW, LOW, LOW])
    features = torch.randn(len(coords), channels, generator=generator, dtype=torch.float64).to(dtype)
    return sparse_tensor(coords, features.requires_grad_(), 2)


def made(name: str, width: int, out: int, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(seed)
    return CONVOLUTIONS[name](width, out).to(dtype)


def volume_of(tensor: SparseTensor) -> Tensor:
    """(2, C, EDGE, EDGE, EDGE), differentiable."""
    sample, x, y, z = tensor.coords.T
    volume = torch.zeros(2, EDGE, EDGE, EDGE, tensor.features.shape[1], dtype=tensor.features.dtype)
    return volume.index_put((sample, x + ORIGIN, y + ORIGIN, z + ORIGIN), tensor.features).movedim(-1, 1)


def rows_of(volume: Tensor, coords: Tensor, origin: int) -> Tensor:
    sample, x, y, z = coords.T
    return volume.movedim(1, -1)[sample, x + origin, y + origin, z + origin]


def dense_weight(weight: Tensor) -> Tensor:
    """(K, in, out) -> (out, in, k, k, k)."""
    edge = round(len(weight) ** (1 / 3))
    return weight.view(edge, edge, edge, *weight.shape[1:]).permute(4, 3, 0, 1, 2)


def dense(name: str, layer: Any, tensor: SparseTensor, coords: Tensor) -> Tensor:
    """What a dense layer says at the same voxels: zeros where there is none."""
    volume, weight = volume_of(tensor), dense_weight(layer.weight)
    if name == "strided 3":
        return rows_of(functional.conv3d(volume, weight, stride=2, padding=1), coords, ORIGIN // 2)
    if name == "strided 4":
        return rows_of(functional.conv3d(volume, weight, layer.bias, stride=2), coords, ORIGIN // 2)
    if name == "generative":
        return rows_of(functional.conv_transpose3d(volume, weight.transpose(0, 1), stride=2), coords, 2 * ORIGIN)
    return rows_of(functional.conv3d(volume, weight, layer.bias, padding=0 if name == "pointwise" else 1), coords, ORIGIN)


def gradients(result: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
    weights = torch.randn(result.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return torch.autograd.grad((result * weights.to(result.dtype)).sum(), leaves)


def values_and_gradients(layer: nn.Module, tensor: SparseTensor) -> list[Tensor]:
    found = layer(tensor).features
    return [found, *gradients(found, tensor.features, *layer.parameters())]


@each_convolution
@pytest.mark.parametrize(("width", "out"), [(3, 5), (6, 2), (20, 1)])
@pytest.mark.parametrize("share", [0.02, 0.3, 1.0])
def test_convolutions_are_the_dense_ones_on_the_voxels_there_are(name: str, width: int, out: int, share: float) -> None:
    tensor, layer = made_up(width, share=share), made(name, width, out)
    found = layer(tensor)
    expected = dense(name, layer, tensor, found.coords)
    torch.testing.assert_close(found.features, expected, rtol=1e-10, atol=1e-12)
    leaves = (tensor.features, *layer.parameters())
    torch.testing.assert_close(gradients(found.features, *leaves), gradients(expected, *leaves), rtol=1e-10, atol=1e-11)


@each_convolution
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    tensor = made_up(2, share=0.2)
    tensor = sparse_tensor(tensor.coords[:6], tensor.features.detach()[:6].requires_grad_(), 2)
    layer = made(name, 2, 2 if name != "generative" else 1)

    def convolve(features: Tensor, *_: Tensor) -> Tensor:
        found: Tensor = layer(tensor.with_features(features)).features
        return found

    assert torch.autograd.gradcheck(convolve, (tensor.features, *layer.parameters()))


@each_convolution
def test_voxels_that_come_out_are_those_that_are_promised(name: str) -> None:
    tensor = made_up(1)
    voxels = [tuple(voxel) for voxel in tensor.coords.tolist()]
    found = made(name, 1, 1)(tensor)
    if name == "generative":
        steps = list(product(range(4), repeat=3))
        grown = {(s, 2 * x + dx, 2 * y + dy, 2 * z + dz) for s, x, y, z in voxels for dx, dy, dz in steps}
        assert found.coords.tolist() == [list(voxel) for voxel in sorted(grown)] and found.stride == 1
    elif name.startswith("strided"):
        halves = sorted({(s, x // 2, y // 2, z // 2) for s, x, y, z in voxels})
        assert found.coords.tolist() == [list(voxel) for voxel in halves] and found.stride == 4
        assert found.support is tensor.support.halved
    else:
        assert found.support is tensor.support


def test_offsets_of_a_kernel_are_x_slowest_from_minus_one_or_from_zero() -> None:
    """One voxel in, one weight not zero: where it comes out tells the offset."""
    for name, first, edge in (("submanifold", -1, 3), ("strided 3", -1, 3), ("strided 4", 0, 4), ("generative", 0, 4)):
        for number, step in enumerate(product(range(first, first + edge), repeat=3)):
            layer: Any = made(name, 1, 1)
            layer.weight.data.zero_()[number] = 1
            if layer.bias is not None:
                layer.bias.data.zero_()
            voxel = torch.tensor([[0, 10, 20, 30]])
            if name == "generative":
                grown = layer(sparse_tensor(voxel, torch.ones(1, 1, dtype=torch.float64), 2))
                (place,) = grown.coords[grown.features[:, 0] != 0].tolist()
                assert place == [0, 20 + step[0], 40 + step[1], 60 + step[2]]
                continue
            near = voxel + torch.tensor([[0, *step]])
            coords = voxel if step == (0, 0, 0) else torch.cat([voxel, near])
            seen = layer(sparse_tensor(coords, (coords == near).all(dim=1, keepdim=True).double()))
            here = torch.tensor([0, 10, 20, 30] if name == "submanifold" else [0, 5, 10, 15])
            assert seen.features[(seen.coords == here).all(dim=1)].item() == 1


@each_convolution
def test_the_order_of_rows_changes_nothing_but_the_order(name: str) -> None:
    tensor, layer = made_up(4), made(name, 4, 3)
    order = torch.randperm(len(tensor.support), generator=torch.Generator().manual_seed(3))
    other = sparse_tensor(tensor.coords[order], tensor.features.detach()[order].requires_grad_(), 2)
    found, moved = layer(tensor), layer(other)
    kept = order if found.support is tensor.support else torch.arange(len(found.support))
    assert torch.equal(found.coords[kept], moved.coords)
    torch.testing.assert_close(found.features[kept], moved.features, rtol=1e-12, atol=1e-12)
    weights = torch.randn(found.features.shape, dtype=torch.float64)
    ours = torch.autograd.grad((found.features * weights).sum(), [tensor.features, *layer.parameters()])
    theirs = torch.autograd.grad((moved.features * weights[kept]).sum(), [other.features, *layer.parameters()])
    torch.testing.assert_close((ours[0][order], *ours[1:]), theirs, rtol=1e-11, atol=1e-11)


@each_convolution
def test_samples_do_not_see_each_other(name: str) -> None:
    tensor, layer = made_up(4), made(name, 4, 3)
    both = layer(tensor)
    for sample in range(2):
        alone = layer(prune(tensor, tensor.coords[:, 0] == sample))
        own = both.coords[:, 0] == sample
        assert torch.equal(both.coords[own], alone.coords)
        torch.testing.assert_close(both.features[own], alone.features, rtol=1e-12, atol=1e-12)


@each_convolution
@pytest.mark.parametrize(("width", "out"), [(4, 3), (24, 1)])
def test_how_much_is_gathered_at_a_time_does_not_matter(name: str, width: int, out: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tensor, layer = made_up(width, share=0.1), made(name, width, out)
    whole = values_and_gradients(layer, tensor)
    for some in (1, 10_000):
        monkeypatch.setattr(sparse_kernels, "THREAD_BYTES", some)
        torch.testing.assert_close(values_and_gradients(layer, tensor), whole, rtol=1e-11, atol=1e-11)


@each_convolution
def test_multiplying_first_is_the_same_as_gathering_first(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tensor, layer = made_up(7), made(name, 7, 3)
    found = []
    for narrower in (0, 10**9):
        monkeypatch.setattr(sparse_kernels, "NARROWER", narrower)
        found.append(values_and_gradients(layer, tensor))
    torch.testing.assert_close(*found, rtol=1e-11, atol=1e-11)


@each_convolution
def test_every_run_gives_the_same_bits(name: str) -> None:
    results = []
    for _ in range(2):
        tensor, layer = made_up(24, dtype=torch.float32), made(name, 24, 2, dtype=torch.float32)
        results.append(values_and_gradients(layer, tensor))
    assert all(torch.equal(first, second) for first, second in zip(*results, strict=True))


@each_convolution
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("width", "out"), [(8, 6), (32, 2)])
def test_halved_precision_is_nearly_the_same(name: str, dtype: torch.dtype, width: int, out: int) -> None:
    """Products are of the halved type, gradients of the type of what they belong to, in and out of the context."""
    tensor, layer = made_up(width, dtype=torch.float32), made(name, width, out, dtype=torch.float32)
    expected = values_and_gradients(layer, tensor)
    with torch.autocast("cpu", dtype):
        within = values_and_gradients(layer, tensor)
        found = layer(tensor).features
    outside = [found, *gradients(found, tensor.features, *layer.parameters())]
    assert [each.dtype for each in within] == [dtype] + [torch.float32] * (len(within) - 1)
    for other in (within, outside):
        for near, exact in zip(other, expected, strict=True):
            torch.testing.assert_close(near.float(), exact, rtol=0, atol=0.02 * float(exact.detach().abs().max()))


def test_gradients_of_weights_add_up_in_full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ones, a row at a time: a sum in bfloat16 would never get beyond 256."""
    monkeypatch.setattr(sparse_kernels, "THREAD_BYTES", 1)
    tensor, layer = made_up(1, share=0.8), SubmanifoldConv(1, 1)
    ones = torch.ones(len(tensor.support), 1)
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(tensor.with_features(ones)).features
    (counts,) = torch.autograd.grad(found.float().sum(), layer.weight)
    voxels = {tuple(voxel) for voxel in tensor.coords.tolist()}
    steps = product((-1, 0, 1), repeat=3)
    expected = [sum((s, x + dx, y + dy, z + dz) in voxels for s, x, y, z in voxels) for dx, dy, dz in steps]
    assert counts.flatten().tolist() == expected and min(expected) > 256


def test_full_precision_stays_full_where_only_the_backward_pass_is_halved() -> None:
    tensor, layer = made_up(8, dtype=torch.float32), made("submanifold", 8, 6, dtype=torch.float32)
    expected = values_and_gradients(layer, tensor)
    found = layer(tensor).features
    with torch.autocast("cpu", torch.bfloat16):
        within = gradients(found, tensor.features, *layer.parameters())
    assert all(torch.equal(*pair) for pair in zip(within, expected[1:], strict=True))


def test_what_is_kept_for_the_backward_pass_is_what_came_in() -> None:
    tensor, layer = made_up(16, share=0.5, dtype=torch.float32), made("submanifold", 16, 16, dtype=torch.float32)
    kept: list[Tensor] = []

    def keep(each: Tensor) -> Tensor:
        kept.append(each)
        return each

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda each: each):
        layer(tensor)
    assert {each.data_ptr() for each in kept} == {tensor.features.data_ptr(), *(each.data_ptr() for each in layer.parameters())}


class Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Watches how large tensors get, in bytes."""

    size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, tuple) else (result,):
            if isinstance(each, Tensor):
                self.size = max(self.size, each.nbytes)
        return result


@each_convolution
@pytest.mark.parametrize(("width", "out"), [(16, 16), (32, 4)])
def test_memory_grows_with_voxels_not_with_voxels_times_offsets(
    name: str, width: int, out: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sparse_kernels, "THREAD_BYTES", 1000)
    tensor, layer = made_up(width, share=0.6, dtype=torch.float32), made(name, width, out, dtype=torch.float32)
    found = layer(tensor)
    whole = max(tensor.features.nbytes, found.features.nbytes) + layer.weight.nbytes
    with Largest() as largest:  # type: ignore[no-untyped-call]
        torch.autograd.backward(layer(tensor).features, found.features.detach())
    assert found.features.nbytes <= largest.size <= 1.1 * whole


def test_neighbours_are_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = made_up(4)
    block, strided, grown = SparseBlock(4, 4).double(), SparseBlock(4, 4, stride=2).double(), GenerativeConv(4, 4).double()
    first = [layer(tensor).features for layer in (block, strided, grown)]

    def refuse(*_: object) -> None:
        raise AssertionError

    for support in (tensor.support, tensor.support.halved, tensor.support.doubled):
        monkeypatch.setattr(support.finder, "find", refuse)
    again = [layer(tensor.with_features(tensor.features)).features for layer in (block, strided, grown)]
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))


@each_convolution
def test_voxels_that_share_a_coordinate_are_refused_where_neighbours_count(name: str) -> None:
    tensor = made_up(3)
    twice = sparse_tensor(tensor.coords[[0, 1, 0]], tensor.features[[0, 1, 0]], 2)
    if name == "pointwise":
        assert len(made(name, 3, 2)(twice).support) == 3
        return
    with pytest.raises(ConfigError, match="share a coordinate"):
        made(name, 3, 2)(twice)


@each_convolution
def test_nothing_comes_of_nothing(name: str) -> None:
    none = sparse_tensor(torch.zeros(0, 4, dtype=torch.int64), torch.zeros(0, 3, requires_grad=True), 2)
    layer = made(name, 3, 2, dtype=torch.float32)
    found = layer(none)
    assert found.features.shape == (0, 2) and found.coords.shape == (0, 4)
    found.features.sum().backward()
    assert none.features.grad is not None and none.features.grad.shape == (0, 3)
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in layer.parameters())


def test_a_row_is_normalised_over_its_own_channels() -> None:
    tensor = made_up(6)
    found = RowNorm()(tensor)
    for row, normed in zip(tensor.features.tolist(), found.features.tolist(), strict=True):
        mean = sum(row) / 6
        deviation = (sum((value - mean) ** 2 for value in row) / 6 + 1e-5) ** 0.5
        assert normed == pytest.approx([(value - mean) / deviation for value in row])
    assert found.support is tensor.support and not list(RowNorm().parameters())


def test_relu_and_linear_work_on_rows() -> None:
    tensor, linear = made_up(3), RowLinear(3, 2).double()
    assert torch.equal(RowReLU()(tensor).features, tensor.features.clamp(min=0))
    torch.testing.assert_close(linear(tensor).features, tensor.features @ linear.block.weight.T + linear.block.bias)
    assert {name: tuple(value.shape) for name, value in linear.state_dict().items()} == {"block.weight": (2, 3), "block.bias": (2,)}


def normed(rows: Tensor) -> Tensor:
    return (rows - rows.mean(dim=1, keepdim=True)) / (rows.var(dim=1, keepdim=True, correction=0) + 1e-5).sqrt()


@pytest.mark.parametrize(("stride", "width", "shortcut"), [(1, 4, False), (1, 4, True), (1, 3, False), (2, 4, False), (2, 3, True)])
def test_a_block_is_two_convolutions_and_its_shortcut(stride: int, width: int, shortcut: bool) -> None:
    torch.manual_seed(0)
    block: Any = SparseBlock(width, 4, stride, shortcut=shortcut).double()
    tensor = made_up(width)
    found = block(tensor)
    name, other = ("strided 3", "strided 4") if stride == 2 else ("submanifold", "pointwise")
    inner = normed(dense(name, block.conv1, tensor, found.coords)).clamp(min=0)
    deep = normed(dense("submanifold", block.conv2, found.with_features(inner), found.coords))
    plain = stride == 1 and width == 4 and not shortcut
    around = tensor.features if plain else normed(dense(other, block.downsample[0], tensor, found.coords))
    expected = (deep + around).clamp(min=0)
    torch.testing.assert_close(found.features, expected, rtol=1e-9, atol=1e-9)
    leaves = (tensor.features, *block.parameters())
    torch.testing.assert_close(gradients(found.features, *leaves), gradients(expected, *leaves), rtol=1e-8, atol=1e-8)
    assert found.stride == 2 * stride


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


def test_names_and_shapes_are_those_of_the_released_weights() -> None:
    kernels = {"conv1.weight": (27, 2, 16), "conv2.weight": (27, 16, 16)}
    assert shapes(SparseBlock(2, 16)) == kernels | {"downsample.0.weight": (1, 2, 16), "downsample.0.bias": (16,)}
    halving = {"conv1.weight": (27, 64, 16), "conv2.weight": (27, 16, 16), "downsample.0.weight": (64, 64, 16)}
    assert shapes(SparseBlock(64, 16, stride=2)) == halving | {"downsample.0.bias": (16,)}
    assert shapes(SparseBlock(16, 16)) == {"conv1.weight": (27, 16, 16), "conv2.weight": (27, 16, 16)}
    assert shapes(SparseBlock(16, 16, shortcut=True)).keys() == shapes(SparseBlock(2, 16)).keys()
    assert shapes(GenerativeConv(48, 16)) == {"weight": (64, 48, 16)}
    assert shapes(SubmanifoldConv(16, 1, bias=True)) == {"weight": (27, 16, 1), "bias": (1,)}
    assert shapes(StridedConv(4, 5, 3)) == {"weight": (27, 4, 5)}


@pytest.mark.parametrize(
    ("name", "fan", "values"),
    [("with bias", 27 * 6, 27 * 6), ("strided 4", 64 * 6, 64 * 6), ("generative", 64 * 40, 0), ("pointwise", 6, 6)],
)
def test_weights_are_uniform_at_first(name: str, fan: int, values: int) -> None:
    layer: Any = made(name, 6, 40)
    scaled = layer.weight.detach().flatten() * fan**0.5
    assert 0.97 < scaled.abs().max() <= 1 and abs(float(scaled.mean())) < 0.15
    assert float(scaled.var()) == pytest.approx(1 / 3, rel=0.15)
    if values:
        assert 0.8 < (layer.bias.detach() * values**0.5).abs().max() <= 1


def test_a_block_can_be_copied_and_takes_the_state_of_another() -> None:
    first, second, tensor = SparseBlock(3, 4).double(), SparseBlock(3, 4).double(), made_up(3)
    second.load_state_dict(first.state_dict(), strict=True)
    for other in (second, copy.deepcopy(first)):
        assert torch.equal(other(tensor).features, first(tensor).features)


@pytest.mark.parametrize("name", ["submanifold", "strided 4", "generative"])
def test_other_channels_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="features have 3 channels, the kernel takes 4"):
        made(name, 4, 2)(made_up(3))


def test_other_strides_and_edges_are_refused() -> None:
    with pytest.raises(ConfigError, match="edge of 2; allowed are 3 and 4"):
        StridedConv(1, 1, 2)
    with pytest.raises(ConfigError, match="stride of 4; allowed are 1 and 2"):
        SparseBlock(1, 1, 4)
    with pytest.raises(ConfigError, match="stride 1 cannot grow"):
        GenerativeConv(1, 1)(SparseTensor(Support(made_up(1).coords, 1), made_up(1, dtype=torch.float32).features))
