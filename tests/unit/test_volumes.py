"""Targets made from blocks: equal, to the bit, to dense operations on whole volumes; and memory that is drawn again."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows it by
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from scenemill.trainers.volumes import EDGE, LEVELS, Canvas, VolumeBatch, expand, join, mask_offsets

WEIGHTS = np.array([1, 2, 5, 10, 25, 50], np.uint8)
LIMIT = 12.0
BELOW = (12.0, 6.0, 8.0)
BLOCK = (EDGE, EDGE, EDGE)
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def places_of(rng: np.random.Generator, grid: int, count: int) -> NDArray[np.int16]:
    """(count, 4): some of the 27 blocks at one of the eight corners of the grid, so that neighbours and borders occur."""
    side = grid // EDGE
    corner = rng.choice([0, side - 3], 3)
    block = np.argwhere(np.ones((3, 3, 3), bool)) + corner
    chosen = block[rng.permutation(27)[:count]]
    return np.concatenate([np.zeros((count, 1), np.int64), chosen], axis=1).astype(np.int16)


def distances_of(rng: np.random.Generator, count: int) -> NDArray[np.float32]:
    """Blocks of all distances, of whole numbers, and of one distance that lies on a threshold."""
    kinds = (
        12 * rng.random((count, *BLOCK)),
        rng.integers(0, 13, (count, *BLOCK)),
        np.broadcast_to(rng.choice([0.0, 3.0, 6.0, 8.0, 12.0], (count, 1, 1, 1)), (count, *BLOCK)),
    )
    return np.choose(rng.integers(0, 3, (count, 1, 1, 1)), kinds).astype(np.float32)


def weights_of(rng: np.random.Generator, count: int) -> NDArray[np.uint8]:
    """Blocks of all weights, of one weight, and of one weight but for a single voxel."""
    even = np.broadcast_to(rng.choice(WEIGHTS, (count, 1, 1, 1)), (count, *BLOCK))
    flawed = even.copy()
    flawed[(np.arange(count), *rng.integers(0, EDGE, (3, count)))] = rng.choice(WEIGHTS, count)
    return np.choose(rng.integers(0, 3, (count, 1, 1, 1)), (rng.choice(WEIGHTS, (count, *BLOCK)), even, flawed)).astype(np.uint8)


def voxels_of(rng: np.random.Generator, grid: int) -> NDArray[np.int64]:
    """The voxels of one mask: a box, which may end at a border, and some anywhere; in any order."""
    inside = np.zeros((grid,) * 3, bool)
    low = rng.integers(0, grid, 3)
    inside[tuple(slice(start, start + size) for start, size in zip(low, rng.integers(0, 20, 3), strict=True))] = True
    inside[tuple(rng.integers(0, grid, (3, 20)))] = True
    return rng.permutation(np.flatnonzero(inside))


def sample_of(seed: int, grid: int, *, blocks: int = 3, weights: int = 3, masks: int = 2, frustum: int = 0) -> VolumeBatch:
    """One sample from a seed: so many blocks, masks (the last of several is empty), and blocks of frustum."""
    rng = np.random.default_rng(seed)
    voxels = [voxels_of(rng, grid) if number == 0 or number < masks - 1 else np.empty(0, np.int64) for number in range(masks)]
    return VolumeBatch(
        distance_places=torch.from_numpy(places_of(rng, grid, blocks)),
        distance=torch.from_numpy(distances_of(rng, blocks)),
        weight_places=torch.from_numpy(places_of(rng, grid, weights)),
        weight=torch.from_numpy(weights_of(rng, weights)),
        mask_voxels=torch.from_numpy(np.concatenate([np.empty(0), *voxels]).astype(np.int32)),
        mask_ends=torch.from_numpy(np.cumsum([len(mask) for mask in voxels], dtype=np.int64)),
        masks_of=torch.tensor([masks]),
        frustum_places=torch.from_numpy(places_of(rng, grid, frustum)),
        frustum=torch.from_numpy(rng.random((frustum, *BLOCK)) < 0.5),
        grid=grid,
        truncation=LIMIT,
    )


def samples_of(grid: int) -> st.SearchStrategy[VolumeBatch]:
    count = st.integers(0, 5)
    return st.builds(
        sample_of, st.integers(0, 2**32 - 1), st.just(grid), blocks=count, weights=count, masks=st.integers(0, 3), frustum=count
    )


def batches_of(grid: int) -> st.SearchStrategy[VolumeBatch]:
    return st.lists(samples_of(grid), min_size=1, max_size=3).map(join)


def filled(batch: VolumeBatch, places: Tensor, values: Tensor, fill: float) -> Tensor:
    """(B, g, g, g) float32: whole volumes, block by block."""
    volumes = torch.full((len(batch), *(batch.grid,) * 3), fill)
    for (sample, *block), value in zip(places.tolist(), values, strict=True):
        x, y, z = (slice(EDGE * index, EDGE * (index + 1)) for index in block)
        volumes[sample, x, y, z] = value.float()
    return volumes


def resized(volumes: Tensor, size: int) -> Tensor:
    return F.interpolate(volumes[:, None], size=(size,) * 3, mode="trilinear", align_corners=True)[:, 0]


def pooled(masks: Tensor, step: int) -> Tensor:
    """(N, ...) bool: windows of twice the step; max-pool takes no batch of none."""
    if not len(masks):
        return masks[:, ::step, ::step, ::step]
    return F.max_pool3d(masks[:, None].float(), kernel_size=2 * step, stride=step, padding=step // 2)[:, 0].bool()


def dense_targets(batch: VolumeBatch, below: tuple[float, float, float]) -> dict[str, Tensor]:
    """What ``expand`` returns, by plain operations on whole volumes."""
    sizes = [batch.grid, batch.grid // 2, batch.grid // 4]
    distance = filled(batch, batch.distance_places, batch.distance, batch.truncation)
    weight = filled(batch, batch.weight_places, batch.weight, 1.0)
    masks = torch.zeros((len(batch.mask_ends), batch.grid**3), dtype=torch.bool)
    ends = [0, *batch.mask_ends.tolist()]
    for mask, start, end in zip(masks, ends[:-1], ends[1:], strict=True):
        mask[batch.mask_voxels[start:end].long()] = True
    masks = masks.view(-1, *(batch.grid,) * 3)
    found = {"geometry": distance.clamp(max=below[0])}
    for level, (name, size, limit) in enumerate(zip(LEVELS, sizes, below, strict=True)):
        found[f"occupancy_{name}"] = ((resized(distance, size) if level else distance) < limit).float()
        found[f"weighting3d_{name}"] = resized(weight, size) if level else weight
        found[f"gt_masks_3d_{name}"] = pooled(masks, 1 << level) if level else masks
    if len(batch.frustum_places):
        found["frustum_mask"] = filled(batch, batch.frustum_places, batch.frustum, 0.0).bool()
    return found


def check_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert torch.equal(found[name], tensor), name


def copied(targets: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in targets.items()}


def addresses(targets: dict[str, Tensor]) -> dict[str, int]:
    return {name: tensor.data_ptr() for name, tensor in targets.items()}


@pytest.mark.parametrize("grid", [64, 128])
def test_targets_from_blocks_equal_dense_operations(grid: int) -> None:
    @settings(max_examples=60 if grid == 64 else 20, deadline=None)
    @given(batches_of(grid), st.sampled_from([BELOW, (3.0, 6.0, 8.0), (12.0, 12.0, 11.5), (0.5, 20.0, 1e-3)]))
    def check(batch: VolumeBatch, below: tuple[float, float, float]) -> None:
        check_equal(expand(batch, below), dense_targets(batch, below))

    check()


@pytest.mark.parametrize("grid", [64, 128, 256])
def test_the_last_voxel_of_every_level_is_the_last_of_the_grid(grid: int) -> None:
    batch = sample_of(0, grid, blocks=1, weights=1, masks=0)
    last = torch.tensor([[0, *(grid // EDGE - 1,) * 3]], dtype=torch.int16)
    batch = replace(
        batch, distance_places=last, weight_places=last, weight=torch.from_numpy(weights_of(np.random.default_rng(3), 1))
    )
    found = expand(batch, BELOW)
    for name in LEVELS:
        assert found[f"weighting3d_{name}"][0, -1, -1, -1] == batch.weight[0, -1, -1, -1]
    check_equal(found, dense_targets(batch, BELOW))


def test_a_smaller_limit_ends_the_full_grid_alone() -> None:
    batch = sample_of(4, 64)
    far, near = expand(batch, BELOW), expand(batch, (3.0, *BELOW[1:]))
    assert torch.equal(near.pop("geometry"), far.pop("geometry").clamp(max=3.0))
    assert torch.equal(near.pop("occupancy_256"), (dense_targets(batch, BELOW)["geometry"] < 3).float())
    far.pop("occupancy_256")
    check_equal(near, far)


def test_a_batch_of_nothing_is_free_space_of_weight_one() -> None:
    found = expand(sample_of(0, 64, blocks=0, weights=0, masks=0), BELOW)
    assert {name: sorted(set(tensor.flatten().tolist())) for name, tensor in found.items()} == {
        "geometry": [LIMIT],
        **{f"occupancy_{name}": [0.0] for name in LEVELS},
        **{f"weighting3d_{name}": [1.0] for name in LEVELS},
        **{f"gt_masks_3d_{name}": [] for name in LEVELS},
    }
    assert [tuple(found[f"gt_masks_3d_{name}"].shape) for name in LEVELS] == [(0, size, size, size) for size in (64, 32, 16)]


def test_masks_may_overlap_and_be_empty() -> None:
    one = sample_of(5, 64, masks=1)
    voxels = one.mask_voxels
    twice = replace(
        one,
        mask_voxels=torch.cat([voxels, voxels, voxels[:7]]),
        mask_ends=torch.tensor([len(voxels), len(voxels), 2 * len(voxels), 2 * len(voxels) + 7]),
        masks_of=torch.tensor([4]),
    )
    found = expand(twice, BELOW)
    check_equal(found, dense_targets(twice, BELOW))
    first, empty, second, part = found["gt_masks_3d_64"]
    assert torch.equal(first, second) and not empty.any() and part.any() and not (part & ~first).any()


def test_frustums_are_there_where_the_batch_has_them() -> None:
    with_frustum, without = sample_of(6, 64, frustum=4), sample_of(6, 64)
    assert "frustum_mask" not in expand(without, BELOW)
    mixed = join([without, with_frustum])
    found = expand(mixed, BELOW)["frustum_mask"]
    assert found.dtype == torch.bool and not found[0].any() and int(found[1].sum()) == int(with_frustum.frustum.sum())


@settings(max_examples=20, deadline=None)
@given(st.lists(samples_of(64), min_size=1, max_size=3))
def test_a_joined_batch_expands_to_what_its_samples_expand_to(samples: list[VolumeBatch]) -> None:
    joined = join(samples)
    apart = [expand(sample, BELOW) for sample in samples]
    assert len(joined) == len(samples) and joined.size_byte == sum(sample.size_byte for sample in samples)
    for name, tensor in expand(joined, BELOW).items():
        if name != "frustum_mask":
            assert torch.equal(tensor, torch.cat([targets[name] for targets in apart])), name
    masks = expand(joined, BELOW)["gt_masks_3d_64"]
    for (first, end), targets in zip(mask_offsets(joined.masks_of), apart, strict=True):
        assert torch.equal(masks[first:end], targets["gt_masks_3d_64"])


def test_joining_changes_none_of_the_samples() -> None:
    samples = [sample_of(seed, 64, frustum=1) for seed in (1, 2)]
    before = [copied(sample.tensors()) for sample in samples]
    join(samples)
    for sample, tensors in zip(samples, before, strict=True):
        check_equal(sample.tensors(), tensors)
    assert join(samples[:1]) is samples[0]


@pytest.mark.parametrize("other", [sample_of(1, 128), replace(sample_of(1, 64), truncation=3.0)])
def test_samples_of_other_sizes_are_not_joined(other: VolumeBatch) -> None:
    with pytest.raises(ValueError, match="differ in grid or truncation; give each kind a loader of its own"):
        join([sample_of(1, 64), other])


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(batches_of(64), st.booleans()), min_size=2, max_size=6), st.sampled_from([BELOW, (3.0, 13.0, 8.0)]))
def test_one_canvas_gives_what_new_memory_gives_and_never_changes_what_is_held(
    drawn: list[tuple[VolumeBatch, bool]], below: tuple[float, float, float]
) -> None:
    canvas = Canvas()
    held: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []
    for batch, keep in drawn:
        found = expand(batch, below, canvas)
        expected = expand(batch, below)
        check_equal(found, expected)
        if keep:
            held.append((found, expected))
        del found
    for found, expected in held:
        check_equal(found, expected)


@pytest.mark.parametrize("grid", [64, 128])
def test_memory_is_drawn_again_once_let_go(grid: int) -> None:
    canvas = Canvas()
    large = join([sample_of(seed, grid, masks=2, frustum=2) for seed in (1, 2, 3)])
    found = expand(large, BELOW, canvas)
    first = addresses(found)
    assert addresses(expand(large, BELOW, canvas)).items() & first.items() == set()
    del found
    for samples in (1, 3, 2):  # fewer samples and masks find room in what was made for more
        smaller = join([sample_of(seed + 10, grid, masks=1 + seed % 2, frustum=1) for seed in range(samples)])
        again = expand(smaller, BELOW, canvas)
        assert addresses(again) == first
        check_equal(again, dense_targets(smaller, BELOW))
        del again


def test_too_small_a_memory_gives_way_to_a_larger_one() -> None:
    canvas = Canvas()
    small, large = sample_of(1, 64, masks=1), join([sample_of(seed, 64, masks=4) for seed in (2, 3)])
    for batch in (small, large, small, large):
        check_equal(expand(batch, BELOW, canvas), dense_targets(batch, BELOW))
    first = addresses(expand(large, BELOW, canvas))
    assert addresses(expand(small, BELOW, canvas)) == first
    assert all(len(sheets) == 1 for sheets in canvas._sheets.values())


def views_of(targets: dict[str, Tensor]) -> Iterator[tuple[str, Any]]:
    """What a caller may hold instead of the tensors."""
    yield "a slice", {name: tensor[:1, 3:40] for name, tensor in targets.items()}
    yield "another shape", {name: tensor.view(-1) for name, tensor in targets.items()}
    yield "another axis", {name: tensor[..., None].transpose(1, 2) for name, tensor in targets.items()}
    yield "an array", {name: tensor.numpy()[:, 1:9] for name, tensor in targets.items()}
    yield "without gradient", {name: tensor.detach() for name, tensor in targets.items()}


@pytest.mark.parametrize("kind", range(5))
def test_a_view_keeps_its_memory_from_being_drawn_again(kind: int) -> None:
    canvas = Canvas()
    found = expand(sample_of(1, 64, frustum=3), BELOW, canvas)
    views = list(views_of(found))[kind][1]
    first = addresses(found)
    before = {name: torch.as_tensor(view).clone() for name, view in views.items()}
    del found
    assert addresses(expand(sample_of(2, 64, frustum=3), BELOW, canvas)).items() & first.items() == set()
    for name, view in views.items():
        assert torch.equal(torch.as_tensor(view), before[name]), name
    del view, views
    again = [addresses(expand(sample_of(seed, 64, frustum=3), BELOW, canvas)) for seed in (3, 4)]
    assert again[0] == again[1] == first


def test_two_batches_in_turn_live_in_two_memories() -> None:
    canvas = Canvas()
    seen = set()
    found = None
    for seed in range(8):
        found = expand(sample_of(seed, 64), BELOW, canvas)  # the one before is held until this one is made
        seen.add(found["geometry"].data_ptr())
    assert len(seen) == 2


def test_a_batch_on_the_same_device_is_equal() -> None:
    batch = sample_of(7, 64, frustum=2)
    check_equal(batch.to(torch.device("cpu")).tensors(), batch.tensors())
    assert batch.size_byte == sum(tensor.nbytes for tensor in batch.tensors().values())


@CUDA
@pytest.mark.parametrize("grid", [64, 128, 256])
def test_a_gpu_expands_to_the_same_bits(grid: int) -> None:
    batch = join([sample_of(seed, grid, masks=seed, frustum=2) for seed in range(3)])
    moved = batch.pin_memory().to(torch.device("cuda"), non_blocking=True)
    found = expand(moved, BELOW)
    assert all(tensor.is_cuda for tensor in found.values())
    check_equal({name: tensor.cpu() for name, tensor in found.items()}, expand(batch, BELOW))


@CUDA
def test_pinned_blocks_are_equal() -> None:
    batch = sample_of(8, 64, frustum=2)
    pinned = batch.pin_memory()
    assert all(tensor.is_pinned() for tensor in pinned.tensors().values() if tensor.numel())
    check_equal(pinned.tensors(), batch.tensors())
