"""Sparse tensors: every function against dictionaries of voxels and against dense volumes; gradients; rows that share a coordinate."""

from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from scenemill.schemas.errors import ConfigError
from scenemill.trainers.nvpanoptix3d.sparse import (
    SparseTensor,
    Support,
    add_union,
    concat_union,
    from_dense,
    inside,
    max_pool,
    prune,
    sparse_tensor,
    to_dense,
)

Voxel = tuple[int, ...]


def made_up(seed: int, count: int = 50, channels: int = 3, *, stride: int = 1) -> SparseTensor:
    """Rows of two samples on both sides of zero, in no order; some share a coordinate. float64, with a gradient."""
    generator = torch.Generator().manual_seed(seed)
    axes = torch.randint(-3, 4, (count, 3), generator=generator)
    coords = torch.cat([torch.randint(0, 2, (count, 1), generator=generator), axes], dim=1)
    features = torch.randn(count, channels, generator=generator, dtype=torch.float64)
    return sparse_tensor(coords, features.requires_grad_(), stride)


def distinct(tensor: SparseTensor, *, last: bool = True) -> dict[Voxel, Tensor]:
    """Features by voxel; of rows of one coordinate the last, or the first."""
    rows = list(zip((tuple(row) for row in tensor.coords.tolist()), tensor.features, strict=True))
    return dict(rows if last else reversed(rows))


def check(found: SparseTensor, expected: dict[Voxel, Tensor], *leaves: Tensor) -> None:
    """Voxels sorted, features equal, and gradients of the leaves equal."""
    assert [tuple(row) for row in found.coords.tolist()] == sorted(expected)
    check_features(found.features, torch.stack([expected[voxel] for voxel in sorted(expected)]), *leaves)


def check_features(found: Tensor, expected: Tensor, *leaves: Tensor) -> None:
    assert torch.equal(found, expected)
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(9), dtype=found.dtype)
    gradients = [torch.autograd.grad((each * weights).sum(), leaves) for each in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


def shuffled(tensor: SparseTensor, seed: int = 0) -> SparseTensor:
    order = torch.randperm(len(tensor.support), generator=torch.Generator().manual_seed(seed))
    return sparse_tensor(tensor.coords[order], tensor.features[order], tensor.stride)


def one_row_each(tensor: SparseTensor) -> SparseTensor:
    """In no order."""
    rows = distinct(tensor)
    return shuffled(sparse_tensor(torch.tensor(list(rows)), torch.stack(list(rows.values())), tensor.stride))


def empty(channels: int = 3, *, stride: int = 1) -> SparseTensor:
    return sparse_tensor(torch.zeros(0, 4, dtype=torch.int64), torch.zeros(0, channels, dtype=torch.float64), stride)


def test_a_sparse_tensor_has_a_row_per_voxel() -> None:
    support = made_up(0).support
    for features in (torch.zeros(49, 3), torch.zeros(50)):
        with pytest.raises(ConfigError, match="50 voxels need as many rows"):
            SparseTensor(support, features)


def test_other_features_share_the_support() -> None:
    tensor = made_up(0, stride=4)
    other = tensor.with_features(torch.ones(50, 7))
    assert other.support is tensor.support and other.coords is tensor.support.coords and other.stride == 4
    assert torch.equal(other.features, torch.ones(50, 7))


@pytest.mark.parametrize("seed", range(4))
def test_a_union_puts_features_side_by_side_and_the_last_row_of_a_voxel_counts(seed: int) -> None:
    a, b = made_up(seed, 60, 3, stride=2), made_up(seed + 10, 40, 2, stride=2)
    ours, others = distinct(a), distinct(b)
    assert len(ours) < 60 and len(others) < 40  # some do share a coordinate
    zeros = torch.zeros(3, dtype=torch.float64)
    expected = {voxel: torch.cat([ours.get(voxel, zeros), others.get(voxel, zeros[:2])]) for voxel in {*ours, *others}}
    found = concat_union(a, b)
    check(found, expected, a.features, b.features)
    assert found.stride == 2


def test_a_union_may_have_one_tensor_or_three() -> None:
    tensors = [made_up(seed, 20, seed + 1) for seed in range(3)]
    check(concat_union(tensors[0]), distinct(tensors[0]), tensors[0].features)
    step_by_step = concat_union(concat_union(*tensors[:2]), tensors[2])
    check(concat_union(*tensors), distinct(step_by_step), *(tensor.features for tensor in tensors))


@pytest.mark.parametrize("seed", range(3))
def test_a_sum_is_over_the_voxels_that_either_has(seed: int) -> None:
    a, b = made_up(seed), made_up(seed + 10)
    ours, others = distinct(a), distinct(b)
    zeros = torch.zeros(3, dtype=torch.float64)
    check(
        add_union(a, b),
        {voxel: ours.get(voxel, zeros) + others.get(voxel, zeros) for voxel in {*ours, *others}},
        a.features,
        b.features,
    )


def test_a_sum_on_one_support_stays_on_it() -> None:
    tensor = made_up(0)
    found = add_union(tensor, tensor.with_features(2 * tensor.features))
    assert found.support is tensor.support and torch.equal(found.features, 3 * tensor.features)


def test_levels_are_not_joined() -> None:
    with pytest.raises(ConfigError, match=r"strides \[1, 2\]"):
        concat_union(made_up(0), made_up(1, stride=2))
    with pytest.raises(ConfigError, match=r"strides \[1, 2\]"):
        add_union(made_up(0, stride=2), made_up(1))
    with pytest.raises(ConfigError, match="give tensors of one level"):
        concat_union()


def test_pruning_keeps_the_order() -> None:
    tensor = made_up(1, stride=8)
    keep = torch.rand(50, generator=torch.Generator().manual_seed(0)) < 0.5
    found = prune(tensor, keep)
    assert torch.equal(found.coords, tensor.coords[keep]) and found.stride == 8
    check_features(found.features, tensor.features[keep], tensor.features)


def test_pruning_nothing_keeps_what_is_known_of_the_voxels() -> None:
    tensor = made_up(1)
    assert prune(tensor, torch.ones(50, dtype=torch.bool)) is tensor
    assert len(prune(tensor, torch.zeros(50, dtype=torch.bool)).support) == 0


@pytest.mark.parametrize("keep", [torch.ones(49, dtype=torch.bool), torch.ones(50), torch.ones(50, 1, dtype=torch.bool)])
def test_pruning_takes_a_truth_value_per_row(keep: Tensor) -> None:
    with pytest.raises(ConfigError, match=r"give \(50,\) bool"):
        prune(made_up(0), keep)


def test_inside_means_in_the_grid() -> None:
    axes = list(product((-1, 0, 3, 4), repeat=3))
    support = Support(torch.tensor([(5, *axis) for axis in axes]))
    expected = [set(axis) <= {0, 3} for axis in axes]
    assert inside(support, 4).tolist() == expected
    assert inside(SparseTensor(support, torch.zeros(64, 1)), 4).tolist() == expected


@pytest.mark.parametrize("fill", [0.0, 3.0])
def test_a_volume_has_the_voxels_of_the_grid_and_the_last_row_of_each(fill: float) -> None:
    tensor = made_up(2, 200)
    rows = distinct(tensor)
    blank = torch.full((3,), fill, dtype=torch.float64)
    expected = torch.stack([rows.get(cell, blank) for cell in product(range(2), range(3), range(3), range(3))])
    assert len(rows) < 200 and any((expected != fill).all(dim=1)) and any((expected == fill).all(dim=1))
    found = to_dense(tensor, samples=2, size=3, fill=fill)
    check_features(found, expected.view(2, 3, 3, 3, 3).movedim(-1, 1), tensor.features)


def test_a_volume_has_only_the_samples_asked_for() -> None:
    tensor = made_up(2, 200)
    assert torch.equal(to_dense(tensor, samples=1, size=3)[0], to_dense(tensor, samples=2, size=3)[0])
    assert not to_dense(tensor, samples=4, size=3)[2:].any()


def test_cells_of_a_mask_become_voxels() -> None:
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(2, 3, 4, 5, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(2, 4, 5, 6, generator=generator) < 0.3
    found = from_dense(dense, mask, stride=4)
    expected: dict[Voxel, Tensor] = {
        (s, x, y, z): dense[s, :, x, y, z] for s, x, y, z in product(range(2), range(4), range(5), range(6)) if mask[s, x, y, z]
    }
    assert found.stride == 4
    check(found, expected, dense)


def test_a_volume_becomes_voxels_and_a_volume_again() -> None:
    dense = torch.randn(2, 3, 4, 4, 4)
    mask = torch.rand(2, 4, 4, 4) < 0.3
    again = to_dense(from_dense(dense, mask, 1), samples=2, size=4, fill=-7)
    assert torch.equal(again, torch.where(mask[:, None], dense, -7))


@pytest.mark.parametrize("mask", [torch.ones(1, 4, 4, 4), torch.ones(1, 1, 4, 4, 4, dtype=torch.bool)])
def test_a_mask_of_another_form_is_refused(mask: Tensor) -> None:
    with pytest.raises(ConfigError, match=r"give \(1, 4, 4, 4\) bool"):
        from_dense(torch.zeros(1, 2, 4, 4, 4), mask, 1)


@pytest.mark.parametrize("seed", range(4))
def test_a_pool_takes_the_largest_around_and_the_first_row_of_a_voxel(seed: int) -> None:
    tensor = made_up(seed, 60)
    rows, steps = distinct(tensor, last=False), list(product((-1, 0, 1), repeat=3))
    assert len(rows) < 60
    expected = {
        (s, *cell): torch.stack(
            [rows[near] for dx, dy, dz in steps if (near := (s, 2 * cell[0] + dx, 2 * cell[1] + dy, 2 * cell[2] + dz)) in rows]
        ).amax(dim=0)
        for s, *cell in {(s, x // 2, y // 2, z // 2) for s, x, y, z in rows}
    }
    found = max_pool(tensor)
    check(found, expected, tensor.features)
    assert found.stride == 2


def test_a_pool_of_a_full_volume_is_the_dense_one() -> None:
    """Values are few, so that many are equal: of these the first gets the gradient, as in a dense pool."""
    volume = torch.randint(-3, 0, (2, 4, 6, 6, 6), generator=torch.Generator().manual_seed(0)).double().requires_grad_()
    pooled = max_pool(from_dense(volume, torch.ones(2, 6, 6, 6, dtype=torch.bool), 1))
    dense = functional.max_pool3d(volume, kernel_size=3, stride=2, padding=1)
    found = to_dense(pooled, samples=2, size=3)
    weights = torch.randn(found.shape, dtype=torch.float64)
    assert torch.equal(found, dense)
    gradients = [torch.autograd.grad((each * weights).sum(), volume)[0] for each in (found, dense)]
    torch.testing.assert_close(*gradients)


def test_pools_follow_each_other() -> None:
    tensor = made_up(0, 60)
    thrice = max_pool(max_pool(max_pool(tensor)))
    assert thrice.stride == 8
    assert {tuple(row) for row in thrice.coords.tolist()} == {(s, x // 8, y // 8, z // 8) for s, x, y, z in distinct(tensor)}


@pytest.mark.parametrize(
    "function",
    [
        lambda tensor: max_pool(tensor).features,
        lambda tensor: add_union(tensor, made_up(7)).features,
        lambda tensor: concat_union(made_up(7), tensor).features,
        lambda tensor: to_dense(tensor, samples=2, size=4),
    ],
)
def test_the_order_of_distinct_rows_does_not_matter(function: Callable[[SparseTensor], Tensor]) -> None:
    tensor = one_row_each(made_up(3))
    assert torch.equal(function(tensor), function(shuffled(tensor, 1)))


def test_nothing_stays_nothing() -> None:
    none, some = empty(), one_row_each(made_up(0))
    for found in (
        concat_union(none, none),
        max_pool(none),
        add_union(none, empty()),
        prune(none, torch.zeros(0, dtype=torch.bool)),
    ):
        assert len(found.support) == 0 and found.features.shape[0] == 0
    assert concat_union(none, none).features.shape == (0, 6) and max_pool(none).stride == 2
    assert torch.equal(to_dense(none, 2, 4, fill=3), torch.full((2, 3, 4, 4, 4), 3.0, dtype=torch.float64))
    check(add_union(none, some), distinct(some), some.features)
    nothing = from_dense(torch.ones(1, 2, 3, 3, 3), torch.zeros(1, 3, 3, 3, dtype=torch.bool), 1)
    assert nothing.features.shape == (0, 2) and nothing.coords.shape == (0, 4)


def test_types_of_features_are_kept() -> None:
    tensor = made_up(0)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        half = tensor.with_features(tensor.features.to(dtype))
        for found in (max_pool(half), concat_union(half, half), add_union(half, half), prune(half, half.features[:, 0] > 0)):
            assert found.features.dtype == dtype
        assert to_dense(half, 2, 4).dtype == dtype
