"""Occupancy-aware lifting against plain loops over pixels, planes and voxels; the order of filling; samples with nothing to lift."""

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from scenemill.schemas.errors import ConfigError
from scenemill.trainers.nvpanoptix3d.frustum import Frustum, inference_mask
from scenemill.trainers.nvpanoptix3d.lifting import fill_gaps, lift, live_cells, room_depth
from scenemill.transforms.geometry import FRONT3D_INTRINSICS, camera_index

K = np.array(FRONT3D_INTRINSICS)
RELEASED_K = np.array([[269.42, 0, 159.21068022, 0], [0, 252.6984375, 125.21473998, 0], [0, 0, 1, 0], [0, 0, 0, 1]])  # Matterport3D
WIDE_K = np.array([[130.3, 0, 150.7, 0], [0, 141.9, 121.3, 0], [0, 0, 1, 0], [0, 0, 0, 1]])  # sees more than the grid holds
CLASSES, PLANES, HEIGHT, WIDTH = 13, 24, 30, 40
SMALL = Frustum(plane_size=(HEIGHT, WIDTH), grid=64, voxel_m=0.12)
MEASURED = Frustum(plane_size=(HEIGHT, WIDTH), grid=64, voxel_m=0.12, measured="front3d")

Row = tuple[tuple[int, int, int], list[float]]


def fill_one_after_the_other(values: list[float]) -> list[float]:
    """The rule, in place."""
    for place, value in enumerate(values):
        if value == 0:
            before = [other for other in values[:place] if other != 0]
            behind = [other for other in values[place + 1 :] if other != 0]
            values[place] = max(min(before, default=0.0), min(behind, default=0.0))
    return values


depths_with_gaps = st.lists(st.one_of(st.just(0.0), st.integers(1, 9).map(float)), min_size=1, max_size=14)


@given(depths_with_gaps)
def test_gaps_are_filled_as_one_after_the_other(values: list[float]) -> None:
    assert fill_gaps(torch.tensor(values)).tolist() == fill_one_after_the_other(values.copy())


@given(st.lists(depths_with_gaps.map(lambda row: (row * 9)[:9]), min_size=1, max_size=4))
def test_rows_are_filled_each_for_itself(rows: list[list[float]]) -> None:
    assert fill_gaps(torch.tensor(rows)[None])[0].tolist() == [fill_one_after_the_other(row.copy()) for row in rows]


def naive_room_depth(semantic: Tensor, depth: Tensor, things: int) -> NDArray[np.float64]:
    """(H, W): erosion pixel by pixel with a window that ends at the border, then the two profiles."""
    height, width = depth.shape
    classes = [
        [max(range(len(semantic)), key=lambda c: (float(semantic[c, v, u]), -c)) for u in range(width)] for v in range(height)
    ]
    far = np.zeros((height, width))
    for v, u in product(range(height), range(width)):
        window = product(range(max(v - 2, 0), min(v + 3, height)), range(max(u - 2, 0), min(u + 3, width)))
        if all(classes[y][x] >= things + 1 for y, x in window):
            far[v, u] = float(depth[v, u])
    across = fill_one_after_the_other([float(far[:, u].max()) for u in range(width)])
    down = fill_one_after_the_other([float(far[v].max()) for v in range(height)])
    return np.array([[min(across[u], down[v]) for u in range(width)] for v in range(height)])


def scene(seed: int = 0, walls: float = 0.5) -> tuple[Tensor, Tensor, Tensor]:
    """A semantic volume with patches of classes, depth from 0.2 m to beyond the last plane, and occupancy."""
    generator = torch.Generator().manual_seed(seed)
    patches = torch.randint(0, 10, (5, 5), generator=generator)
    wall = torch.rand(5, 5, generator=generator) < walls
    patches = torch.where(wall, torch.randint(10, CLASSES, (5, 5), generator=generator), patches)
    classes = patches.repeat_interleave(6, dim=0).repeat_interleave(8, dim=1)
    score = torch.rand(HEIGHT, WIDTH, generator=generator) * (torch.rand(HEIGHT, WIDTH, generator=generator) < 0.99)
    semantic = torch.nn.functional.one_hot(classes, CLASSES).movedim(-1, 0) * score
    ramp = torch.linspace(0.7, 6.5, WIDTH).expand(HEIGHT, WIDTH)
    depth = (ramp + torch.rand(HEIGHT, WIDTH, generator=generator) - 0.5).clamp(min=0)
    return semantic, depth, 3 * torch.randn(PLANES, HEIGHT, WIDTH, generator=generator)


@pytest.mark.parametrize(
    ("seed", "walls", "things"), [(0, 0.5, 9), (1, 0.9, 9), (2, 0.2, 9), (3, 0.5, 4), (4, 0.0, 9), (5, 1.0, 11)]
)
def test_the_room_is_bounded_by_what_is_deep_in_its_walls(seed: int, walls: float, things: int) -> None:
    semantic, depth, _ = scene(seed, walls)
    found = room_depth(semantic[None], depth[None], things)
    assert found.shape == (1, HEIGHT, WIDTH)
    np.testing.assert_array_equal(found[0].numpy(), naive_room_depth(semantic, depth, things).astype(np.float32))


def test_erosion_keeps_walls_at_the_border() -> None:
    """A window that leaves the image asks only of the pixels in it."""
    semantic = torch.zeros(1, CLASSES, 7, 7)
    semantic[:, 10] = 1
    depth = torch.arange(49.0).view(1, 7, 7) + 1
    assert torch.equal(room_depth(semantic, depth, 9)[0, 0], torch.full((7,), 7.0))  # the last of the first row
    semantic[0, 3, 3, 3] = 2  # one thing in the middle: a border one pixel wide remains
    far = room_depth(semantic, depth, 9)[0]
    assert far[3, 3] == 28 and far[0, 0] == 7 and far[6, 6] == 49


def test_live_planes_are_those_between_the_surface_and_the_bounds() -> None:
    nearest, furthest = torch.tensor([[[0, 10, 20, 24]]]), torch.tensor([[[0, 0, 23, 24]]])
    live = live_cells(nearest, furthest, 24)
    assert live.shape == (1, 24, 1, 4) and live.dtype == torch.bool
    expected = [[0, 1, 2, 3, 4], [], list(range(18, 24)), [22, 23]]
    assert [live[0, :, 0, u].nonzero()[:, 0].tolist() for u in range(4)] == expected


def naive_pixels(
    voxels: list[tuple[int, int, int]], camera: NDArray[np.float64], frustum: Frustum
) -> dict[tuple[int, int, int], tuple[float, float, float]]:
    """(u, v, depth) of each voxel that is seen, by the formulas of the description."""
    size, grid, voxel = (WIDTH, HEIGHT), frustum.grid, frustum.voxel_m
    focal = [float(camera[a, a]) * size[a] / frustum.image_size[a] for a in (0, 1)]
    centre = [float(camera[a, 2]) * (size[a] - 1) / (frustum.image_size[a] - 1) for a in (0, 1)]
    ends = [[(p - centre[a]) / focal[a] * d for p in (0, size[a]) for d in (0.4, 6.0)] for a in (0, 1)] + [[0.4, 6.0]]
    paddings = [(grid - math.ceil(max(each) / voxel - min(each) / voxel)) / 2 for each in ends]
    origin = [padding + 1 - min(each) / voxel for padding, each in zip(paddings, ends, strict=True)]
    if frustum.measured:
        origin = camera_index(frustum.measured, camera, frustum.image_size, grid).tolist()
    found = {}
    for index in voxels:
        x, y, z = ((place - start) * voxel for place, start in zip(index, origin, strict=True))
        if 0.4 <= z <= 6.0:
            u, v = focal[0] * x / z + centre[0], focal[1] * y / z + centre[1]
            if frustum.measured:
                u, v = round(u), round(v)
            if 0 <= u < WIDTH and 0 <= v < HEIGHT:
                found[index] = (u, v, float(np.float32(z)))
    return found


def naive_lift(
    maps: tuple[Tensor, Tensor, Tensor],
    camera: NDArray[np.float64],
    mask: NDArray[np.bool_],
    frustum: Frustum,
    things: int = 9,
    room: NDArray[np.bool_] | None = None,
) -> list[Row]:
    """Voxel after voxel: the rows with features in C order, then the empty ones."""
    semantic, depth, occupancy = maps
    step = 6.0 / PLANES
    depth = depth.clamp(max=6.0)
    bounds = naive_room_depth(semantic, depth, things)
    seen = naive_pixels([(i, j, k) for i, j, k in np.argwhere(mask).tolist()], camera, frustum)
    kept = {voxel: (min(math.floor(z / step), PLANES - 1), math.floor(v), math.floor(u)) for voxel, (u, v, z) in seen.items()}
    selected: dict[tuple[int, int, int], list[float]] = {}
    for voxel, (s, v, u) in kept.items():
        first = math.floor(np.float32(float(depth[v, u]) / step))
        last = math.floor(np.float32(bounds[v, u] / step))
        if first - 3 < s < last + 5 and (room is None or room[v, u]):
            t = (s - first) * step
            sigmoid = 1 / (1 + math.exp(-float(occupancy[s, v, u])))
            selected[voxel] = [*semantic[:, v, u].tolist(), sigmoid, float(np.sign(t)), abs(t)]
    around = {
        (i + a, j + b, k + c)
        for i, j, k in selected
        for a, b, c in product(range(-2, 3), repeat=3)
        if (i + a, j + b, k + c) in kept
    }
    empty = sorted(around - set(selected)) or ([] if selected else [(frustum.grid // 2 - 1,) * 3])
    back = 0 if frustum.measured else 1
    rows = [((i - back, j - back, k - back), features) for (i, j, k), features in selected.items()]
    rows += [((i // 2 * 2 - back, j // 2 * 2 - back, k // 2 * 2 - back), [0.0] * (len(semantic) + 3)) for i, j, k in empty]
    return [row for row in rows if min(row[0]) >= 0 and max(row[0]) <= frustum.grid - 1 - back]


def lift_one(
    maps: tuple[Tensor, Tensor, Tensor], camera: NDArray[np.float64], mask: Tensor, frustum: Frustum, **options: Any
) -> Any:
    semantic, depth, occupancy = maps
    return lift(semantic[None], depth[None], occupancy[None], camera[None], frustum, mask[None], **options)


def assert_rows(found: Any, expected: list[Row], sample: int = 0) -> None:
    coords = np.array([[sample, *place] for place, _ in expected])
    np.testing.assert_array_equal(found.coords.numpy()[found.coords[:, 0].numpy() == sample], coords)
    features = found.features[found.coords[:, 0] == sample].numpy()
    np.testing.assert_allclose(features, np.array([row for _, row in expected]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("camera", [K, RELEASED_K], ids=["front3d", "matterport"])
@pytest.mark.parametrize(("frustum", "seed", "walls"), [(SMALL, 0, 0.5), (MEASURED, 1, 0.8)], ids=["reference", "measured"])
def test_rows_are_those_of_plain_loops(camera: NDArray[np.float64], frustum: Frustum, seed: int, walls: float) -> None:
    maps, mask = scene(seed, walls), inference_mask(camera, frustum)
    found = lift_one(maps, camera, mask, frustum)
    expected = naive_lift(maps, camera, mask.numpy(), frustum)
    full = sum(any(features) for _, features in expected)
    assert 500 < full < len(expected) - 100  # both kinds of rows
    assert_rows(found, expected)
    assert found.stride == 1 and found.features.dtype == torch.float32


@pytest.mark.parametrize("frustum", [SMALL, MEASURED], ids=["reference", "measured"])
def test_a_mask_with_holes_the_room_and_other_things_decide(frustum: Frustum) -> None:
    """Also where the image sees more than the grid holds."""
    random = np.random.default_rng(7)
    maps, holes, room = scene(5), random.random((64, 64, 64)) < 0.3, random.random((HEIGHT, WIDTH)) < 0.7
    mask = torch.from_numpy(holes)
    found = lift_one(maps, WIDE_K, mask, frustum, num_thing_classes=4, room_mask=torch.from_numpy(room)[None])
    expected = naive_lift(maps, WIDE_K, holes, frustum, 4, room)
    assert len(found.support) < len(lift_one(maps, WIDE_K, mask, frustum, num_thing_classes=4).support)
    coords = np.array([place for place, _ in expected])
    assert coords[:, :2].min() == 0 and coords[:, :2].max() == (63 if frustum.measured else 62)
    assert_rows(found, expected)


def test_depths_are_bounded_by_the_settings() -> None:
    """Slabs follow depth_max, voxels nearer than depth_min are not seen, and what is deeper counts as the last depth."""
    near = Frustum(plane_size=(HEIGHT, WIDTH), grid=64, voxel_m=0.12, depth_min=1.0, depth_max=3.0)
    maps, mask = scene(2, 0.9), inference_mask(K, SMALL)
    found = lift_one(maps, K, mask, near)
    z = (found.coords[:, 3] + 1 - 8.5 - 1) * 0.12 + 0.4  # the voxel that was looked up
    full = found.features.any(dim=1)
    assert full.sum() > 100 and float(z[full].min()) >= 1.0 - 1e-6 and float(z[full].max()) <= 3.0 + 1e-6
    distance = found.features[full, -1]
    torch.testing.assert_close(distance / 0.125, (distance / 0.125).round(), rtol=0, atol=1e-4)  # of 24 slabs up to 3 m
    clipped = lift_one((maps[0], maps[1].clamp(max=3.0), maps[2]), K, mask, near)
    assert float(maps[1].max()) > 6 and torch.equal(clipped.features, found.features)


def test_two_samples_are_lifted_as_one_and_one_by_their_own_cameras() -> None:
    scenes, cameras = [scene(0), scene(1, 0.9)], [RELEASED_K, K]
    masks = [inference_mask(camera, SMALL) for camera in cameras]
    semantic, depth, occupancy = (torch.stack(maps) for maps in zip(*scenes, strict=True))
    both = lift(semantic, depth, occupancy, np.stack(cameras), SMALL, torch.stack(masks))
    alone = [lift_one(*sample, SMALL) for sample in zip(scenes, cameras, masks, strict=True)]
    alone[1].coords[:, 0] = 1
    assert torch.equal(both.coords, torch.cat([one.coords for one in alone]))
    assert torch.equal(both.features, torch.cat([one.features for one in alone]))
    assert (both.coords[1:, 0] >= both.coords[:-1, 0]).all()
    other = lift(semantic, depth, occupancy, np.stack(cameras[::-1]), SMALL, torch.stack(masks))
    assert not torch.equal(both.coords[: len(other.coords)], other.coords[: len(both.coords)])


def test_without_walls_only_what_is_before_the_fifth_plane_is_live() -> None:
    semantic, depth, occupancy = scene(4, walls=0.0)
    found = lift_one((semantic, depth, occupancy), K, inference_mask(K, SMALL), SMALL)
    full = found.features.any(dim=1)
    assert full.any()
    assert_rows(found, naive_lift((semantic, depth, occupancy), K, inference_mask(K, SMALL).numpy(), SMALL))
    z = (found.coords[full, 3] + 1 - 9.5) * 0.12 + 0.4
    assert float(z.max()) < 5 * 0.25


@pytest.mark.parametrize(("frustum", "middle"), [(SMALL, 29), (MEASURED, 30)])
def test_a_sample_with_nothing_to_lift_has_one_empty_row(frustum: Frustum, middle: int) -> None:
    """Voxel 31, moved to an even one like any empty row, then back by one. The other sample is not concerned."""
    empty, full = scene(4, walls=0.0), scene(1, 0.8)
    empty[1].fill_(5.0)  # live up to plane 4, from plane 18 on
    semantic, depth, occupancy = (torch.stack(maps) for maps in zip(empty, full, strict=True))
    masks = inference_mask(K, frustum).expand(2, -1, -1, -1)
    found = lift(semantic, depth, occupancy, np.stack([K, K]), frustum, masks)
    assert found.coords[0].tolist() == [0, middle, middle, middle] and not found.features[0].any()
    assert (found.coords[1:, 0] == 1).all()
    assert torch.equal(found.features[1:], lift_one(full, K, masks[0], frustum).features)


def test_no_room_no_frustum_or_no_depth_leave_one_empty_row() -> None:
    maps, mask = scene(1, 0.8), inference_mask(K, SMALL)
    nowhere = torch.zeros(1, HEIGHT, WIDTH, dtype=torch.bool)
    for found in (
        lift_one(maps, K, mask, SMALL, room_mask=nowhere),
        lift_one(maps, K, torch.zeros_like(mask), SMALL),
        lift_one(maps, K, mask, Frustum(plane_size=(HEIGHT, WIDTH), grid=64, voxel_m=0.12, depth_min=7.9, depth_max=8.0)),
    ):
        assert found.coords.tolist() == [[0, 29, 29, 29]] and not found.features.any()
    no_depth = lift_one((maps[0], torch.zeros(HEIGHT, WIDTH), maps[2]), K, mask, SMALL)  # live up to plane 4
    assert_rows(no_depth, naive_lift((maps[0], torch.zeros(HEIGHT, WIDTH), maps[2]), K, mask.numpy(), SMALL))


def test_empty_rows_crowd_at_even_voxels_near_the_full_ones() -> None:
    found = lift_one(scene(0), K, inference_mask(K, SMALL), SMALL)
    full = found.features.any(dim=1)
    count = int(full.sum())
    assert full[:count].all() and not full[count:].any()
    voxels = found.coords[:, 1:] + 1
    assert (voxels[count:] % 2 == 0).all() and (voxels[:count] % 2 == 1).any()
    assert len(voxels[:count].unique(dim=0)) == count
    times = voxels[count:].unique(dim=0, return_counts=True)[1]
    assert 2 <= int(times.max()) <= 8
    near = torch.cdist(voxels[count:].float(), voxels[:count].float(), p=torch.inf).amin(dim=1)
    assert float(near.max()) <= 3  # two, and one more by rounding


def test_nothing_lifted_has_a_gradient() -> None:
    semantic, depth, occupancy = scene(0)
    found = lift_one(
        (semantic.requires_grad_(), depth.requires_grad_(), occupancy.requires_grad_()), K, inference_mask(K, SMALL), SMALL
    )
    assert not found.features.requires_grad


def test_other_widths_of_classes_and_planes_are_taken_from_the_maps() -> None:
    semantic, depth, _ = scene(0)
    found = lift_one((semantic[:11], depth, torch.zeros(7, HEIGHT, WIDTH)), K, inference_mask(K, SMALL), SMALL)
    full = found.features[found.features.any(dim=1)]
    assert full.shape[1] == 14 and (full[:, 11] == 0.5).all()
    steps = full[:, 13] / (6.0 / 7)
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-5)


def test_maps_that_do_not_fit_are_refused() -> None:
    maps, mask = scene(0), inference_mask(K, SMALL)
    with pytest.raises(ConfigError, match=r"occupancy is \(40, 30\): expected \(30, 40\)"):
        lift_one((maps[0], maps[1], maps[2].transpose(1, 2)), K, mask, SMALL)
    with pytest.raises(ConfigError, match=r"frustum_mask is \(1, 32, 64, 64\): expected \(B, D, D, D\) with D = 64"):
        lift_one(maps, K, mask[:32], SMALL)


def test_rows_of_a_full_size_view_are_as_many_as_the_room_has() -> None:
    """An empty room, at full size: the voxels in front of, in and a little behind its walls, by their planes."""
    frustum = Frustum()
    mask = inference_mask(K, frustum)
    semantic = torch.zeros(1, CLASSES, 120, 160)
    semantic[:, 10] = 0.9
    found = lift(semantic, torch.full((1, 120, 160), 3.01), torch.zeros(1, 100, 120, 160), K[None], frustum, mask[None])
    full = found.features.any(dim=1)
    z = (found.coords[full, 3] + 1 - 35.5) * 0.03 + 0.4
    assert {int(plane) for plane in (z / 0.06).tolist()} == set(range(48, 55))  # 50 - 3 < s < 50 + 5
    kept = mask[:, :, int(found.coords[full, 3].min()) + 1 : int(found.coords[full, 3].max()) + 2]
    assert 0.97 < int(full.sum()) / int(kept.sum()) <= 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_lifts_the_same() -> None:
    maps, mask = scene(0), inference_mask(K, SMALL)
    on_gpu = lift_one((maps[0].cuda(), maps[1].cuda(), maps[2].cuda()), K, mask.cuda(), SMALL)
    on_cpu = lift_one(maps, K, mask, SMALL)
    assert torch.equal(on_gpu.coords.cpu(), on_cpu.coords)
    torch.testing.assert_close(on_gpu.features.cpu(), on_cpu.features)
