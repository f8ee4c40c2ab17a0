"""Frustum geometry: the known numbers of 3D-Front, tables against matrices, masks against plain loops, the measured camera."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from scenemill.schemas.errors import ConfigError
from scenemill.trainers.nvpanoptix3d.frustum import (
    Frustum,
    back_project,
    frustum_box,
    inference_mask,
    voxel_pixels,
)
from scenemill.transforms.geometry import FRONT3D_INTRINSICS, adjust_intrinsics, camera_index, front3d_frustum, matterport_frustum
from scenemill.transforms.geometry import back_project as points_of

K = np.array(FRONT3D_INTRINSICS)
RELEASED_K = np.array([[269.42, 0, 159.21068022, 0], [0, 252.6984375, 125.21473998, 0], [0, 0, 1, 0], [0, 0, 0, 1]])  # Matterport3D
WIDE_K = np.array([[130.3, 0, 150.7], [0, 141.9, 121.3], [0, 0, 1.0]])  # sees more than the grid holds
SMALL = Frustum(plane_size=(30, 40), grid=64, voxel_m=0.12)


def everywhere(grid: int) -> torch.Tensor:
    return torch.ones((grid,) * 3, dtype=torch.bool)


def test_the_box_of_3d_front_is_the_known_one() -> None:
    low, edges = frustum_box(K, Frustum())
    assert edges.tolist() == [231, 174, 187]
    assert (-low).tolist() == pytest.approx([115.109, 86.242, -13.333], abs=5e-4)
    half_low, half_edges = frustum_box(adjust_intrinsics(K, (320, 240), (160, 120)), Frustum(image_size=(160, 120)))
    assert half_edges.tolist() == [231, 174, 187]
    assert half_low.tolist() == pytest.approx([-114.748, -85.881, 13.333], abs=5e-4)


@pytest.mark.parametrize("intrinsics", [K, RELEASED_K, WIDE_K])
def test_a_box_is_around_its_eight_corners(intrinsics: NDArray[np.float64]) -> None:
    inverse = np.linalg.inv(intrinsics[:3, :3])
    corners = np.array([inverse @ (u * d, v * d, d) for u in (0, 320) for v in (0, 240) for d in (0.4, 6.0)])
    for times in (1, 2, 4, 8):
        low, edges = frustum_box(intrinsics, Frustum().coarser(times))
        voxels = corners / (0.03 * times)
        np.testing.assert_allclose(low, voxels.min(axis=0))
        assert edges.tolist() == [math.ceil(edge) for edge in voxels.max(axis=0) - voxels.min(axis=0)]


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_as_many_voxels_of_3d_front_are_kept_as_are_known(dtype: type[np.floating[Any]]) -> None:
    """With the frustum of inference and with that of the data set."""
    camera = K.astype(dtype)
    made = inference_mask(camera, Frustum())
    assert int(made.sum()) == 2_672_341
    kept, pixels = back_project(made, voxel_pixels(camera, Frustum()))
    assert int(kept.sum()) == len(pixels) == 2_638_749
    assert not (kept & ~made).any()
    shared = torch.from_numpy(front3d_frustum(256))
    assert int((made ^ shared).sum()) == 41_263
    assert int(voxel_pixels(camera, Frustum()).kept(shared).sum()) == 2_617_284


@pytest.mark.real
def test_as_many_voxels_are_kept_of_the_released_frustum(real_data: Path) -> None:
    released = np.load(real_data / "data" / "front3d" / "meta" / "frustum_mask.npz")["mask"]
    mask = torch.from_numpy(np.ascontiguousarray(np.flip(released, (0, 1))))
    assert int(mask.sum()) == 2_659_390
    assert int(voxel_pixels(K, Frustum()).kept(mask).sum()) == 2_617_284


def by_matrices(intrinsics: NDArray[np.float64], voxels: NDArray[np.int64], frustum: Frustum) -> NDArray[np.float64]:
    """(N, 3) float64: (u, v, depth) of voxels, through the reference's 4x4 matrices."""
    height, width = frustum.plane_size
    camera, grid_from_metres = np.eye(4), np.eye(4)
    camera[:3, :3] = adjust_intrinsics(intrinsics, frustum.image_size, (width, height))[:3, :3]
    ends = [(u * d, v * d, d, 1) for d in (0.4, 6.0) for u in (0, width) for v in (0, height)]
    corners = (np.array(ends) @ np.linalg.inv(camera).T)[:, :3] / frustum.voxel_m
    grid_from_metres[[0, 1, 2], [0, 1, 2]] = 1 / frustum.voxel_m
    grid_from_metres[:3, 3] = -corners.min(axis=0)
    padding = (frustum.grid - np.ceil(corners.max(axis=0) - corners.min(axis=0))) / 2
    inside = np.concatenate([voxels - padding - 1, np.ones((len(voxels), 1))], axis=1)
    seen = inside @ np.linalg.inv(grid_from_metres).T @ camera.T
    return np.stack([seen[:, 0] / seen[:, 2], seen[:, 1] / seen[:, 2], seen[:, 2]], axis=1)


@pytest.mark.parametrize("intrinsics", [K, RELEASED_K, WIDE_K])
@pytest.mark.parametrize(
    "frustum",
    [
        SMALL,
        Frustum(plane_size=(60, 50), grid=32, voxel_m=0.2, depth_min=1.0, depth_max=4.5),
        Frustum(image_size=(640, 480), grid=96, voxel_m=0.077),
    ],
)
def test_back_projection_is_what_the_matrices_give(intrinsics: NDArray[np.float64], frustum: Frustum) -> None:
    grid, (height, width) = frustum.grid, frustum.plane_size
    voxels = np.stack(np.unravel_index(np.arange(grid**3), (grid,) * 3), axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        u, v, depth = by_matrices(intrinsics, voxels, frustum).T
    expected = (depth >= frustum.depth_min) & (depth <= frustum.depth_max) & (u >= 0) & (u < width) & (v >= 0) & (v < height)
    mask = torch.from_numpy(np.random.default_rng(0).random((grid,) * 3) < 0.7)
    kept, found = back_project(mask, voxel_pixels(intrinsics, frustum))
    close = np.abs(np.stack([u, u - width, v, v - height])).min(axis=0) < 1e-4  # where float32 and float64 may part
    expected &= mask.numpy().ravel()
    assert 0.02 < expected.mean() < 0.7 and close[expected].mean() < 1e-3
    np.testing.assert_array_equal(kept.numpy().ravel()[~close], expected[~close])
    assert found.dtype == torch.float32
    rows = np.flatnonzero(kept.numpy())  # in C order
    np.testing.assert_allclose(found.numpy(), np.stack([u, v, depth], axis=1)[rows], rtol=1e-5, atol=1e-4)


def test_the_reference_camera_looks_from_where_it_is_known_to() -> None:
    tables = voxel_pixels(K, Frustum())
    i, j, k = 100, 150, 200
    ahead = k - 22.1667
    assert float(tables.depth[k]) == pytest.approx(ahead * 0.03, abs=1e-4)
    assert float(tables.u[i, k]) == pytest.approx(79.5 + 138.56407175 * (i - 128.248) / ahead, abs=1e-3)
    assert float(tables.v[j, k]) == pytest.approx(59.5 + 138.56407175 * (j - 127.881) / ahead, abs=1e-3)


@pytest.mark.parametrize("intrinsics", [K, RELEASED_K, WIDE_K])
@pytest.mark.parametrize("measured", ["", "front3d"])
def test_the_window_is_the_smallest_box_with_all_that_is_seen(intrinsics: NDArray[np.float64], measured: str) -> None:
    pixels = voxel_pixels(intrinsics, Frustum(plane_size=(30, 40), grid=64, voxel_m=0.12, measured=measured))
    kept = pixels.kept(everywhere(64))
    for axis, extent in enumerate(pixels.window):
        seen = kept.movedim(axis, 0).flatten(1).any(dim=1).nonzero()[:, 0]
        assert (extent.start, extent.stop) == (int(seen[0]), int(seen[-1]) + 1)
    assert torch.equal(pixels.kept(everywhere(64), pixels.window), kept[pixels.window])


def test_depths_without_a_voxel_see_nothing() -> None:
    pixels = voxel_pixels(K, Frustum(plane_size=(30, 40), grid=64, voxel_m=0.12, depth_min=7.9, depth_max=8.0))
    kept, found = back_project(everywhere(64), pixels)
    assert not kept.any() and found.shape == (0, 3)
    assert pixels.kept(everywhere(64), pixels.window).tolist() == [[[False]]]


def test_cells_are_pixels_and_planes_rounded_down() -> None:
    pixels = voxel_pixels(RELEASED_K, SMALL)
    tables = pixels.cells(24, 6.0)
    assert (tables.planes, tables.size) == (24, (30, 40))
    for k in (5, 20, 27, 52, 60):
        depth = float(pixels.depth[k])
        assert int(tables.plane[k]) == (-1 if depth < 0 else min(math.floor(depth / 0.25), 23))
        assert tables.u[:, k].tolist() == [math.floor(u) for u in pixels.u[:, k].tolist()]
        assert tables.v[:, k].tolist() == [math.floor(v) for v in pixels.v[:, k].tolist()]
    deepest = float(pixels.depth.max())
    assert int(pixels.cells(24, deepest).plane.max()) == 23  # and not 24


@pytest.mark.parametrize("intrinsics", [K, RELEASED_K, WIDE_K])
def test_the_mask_of_inference_is_that_of_plain_loops(intrinsics: NDArray[np.float64]) -> None:
    frustum = Frustum(grid=20, voxel_m=0.384, depth_min=0.5, depth_max=5.0)
    (fx, _, cx), (_, fy, cy) = intrinsics[0, :3], intrinsics[1, :3]
    expected = np.zeros((20, 20, 20), np.bool_)
    for i, j, k in np.ndindex(20, 20, 20):
        x, y, z = (i - 10) * 0.384, (j - 10) * 0.384, 3.2 - 20 * 0.384 / 2 + k * 0.384
        if 0.5 <= z <= 5.0:
            expected[i, j, k] = 0 <= fx * x / z + cx < 320 and 0 <= fy * y / z + cy < 240
    assert 500 < expected.sum() < 6000
    np.testing.assert_array_equal(inference_mask(intrinsics, frustum).numpy(), expected)


def test_a_measured_mask_is_nearer_to_the_released_one() -> None:
    shared = front3d_frustum(256)

    def agreement(frustum: Frustum) -> float:
        made = inference_mask(K, frustum).numpy()
        return float((made & shared).sum() / (made | shared).sum())

    assert agreement(Frustum()) == pytest.approx(0.985, abs=5e-4)
    assert agreement(Frustum(measured="front3d")) > 0.995
    own = matterport_frustum(RELEASED_K, (320, 240), 256)
    measured = inference_mask(RELEASED_K, Frustum(measured="matterport")).numpy()
    assert float((measured & own).sum() / (measured | own).sum()) > 0.98


@pytest.mark.parametrize(("source", "intrinsics"), [("front3d", K), ("matterport", RELEASED_K)])
@pytest.mark.parametrize("grid", [256, 64])
def test_a_measured_voxel_falls_on_the_pixel_whose_ray_meets_it(source: str, intrinsics: NDArray[np.float64], grid: int) -> None:
    """By the way back, from pixels to voxels, of geometry.py."""
    frustum = Frustum(grid=grid, voxel_m=7.68 / grid, measured=source)
    tables = voxel_pixels(intrinsics, frustum)
    small = adjust_intrinsics(intrinsics, (320, 240), (160, 120))
    origin = camera_index(source, intrinsics, (320, 240), grid)
    for k in range(grid // 4, 3 * grid // 4, grid // 16):
        depth = float(tables.depth[k])
        assert depth == pytest.approx((k - origin[2]) * 7.68 / grid, rel=1e-5)
        points = points_of(np.full((120, 160), depth, np.float32), small, origin, grid)
        for axis, table in ((0, tables.u), (1, tables.v)):
            index = np.flatnonzero(table[:, k].numpy() >= 0)
            along = points[axis][0] if axis == 0 else points[axis][:, 0]
            nearest = np.abs(along[None] - index[:, None]).argmin(axis=1)
            assert len(index) > grid // 8
            np.testing.assert_array_equal(table[:, k].numpy()[index], nearest)


def test_tables_are_made_once_for_each_camera() -> None:
    first = voxel_pixels(K, SMALL)
    assert voxel_pixels(K.copy(), Frustum(plane_size=(30, 40), grid=64, voxel_m=0.12)) is first
    assert voxel_pixels(RELEASED_K, SMALL) is not first
    assert not torch.equal(voxel_pixels(RELEASED_K, SMALL).u, first.u)
    torch.testing.assert_close(voxel_pixels(K[:3, :3], SMALL).u, first.u)


def test_tables_made_without_gradients_serve_training() -> None:
    camera = K.copy()
    camera[0, 0] += 1
    with torch.inference_mode():
        made = voxel_pixels(camera, SMALL)
    assert not made.u.is_inference() and not made.depth.is_inference()


def test_what_cannot_be_placed_is_refused() -> None:
    skewed = K.copy()
    skewed[0, 1] = 0.5
    for function in (voxel_pixels, frustum_box, inference_mask):
        with pytest.raises(ConfigError, match="allowed is"):
            function(skewed, Frustum())
    with pytest.raises(ConfigError, match=r"voxel_size 0.03 with a measured camera: a grid of 64 needs 0.12"):
        Frustum(grid=64, measured="front3d")
    with pytest.raises(ConfigError, match=r"depth is \(40, 30\): expected \(30, 40\)"):
        SMALL.check_sizes(semantic=torch.zeros(1, 13, 30, 40), depth=torch.zeros(1, 40, 30))
