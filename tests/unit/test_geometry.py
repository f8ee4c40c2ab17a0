"""Where voxels are: every closed form against plain loops and numbers measured on released files."""

import numpy as np
import pytest
from numpy.typing import NDArray

from scenemill.transforms.geometry import (
    FRONT3D_INTRINSICS,
    GRIDS,
    adjust_intrinsics,
    back_project,
    camera_index,
    front3d_frustum,
    frustum_corners,
    matterport_frustum,
    scale_index,
    voxel_size_m,
)

K = np.array(FRONT3D_INTRINSICS)
RELEASED_K = np.array([[269.42, 0, 159.21068022, 0], [0, 252.6984375, 125.21473998, 0], [0, 0, 1, 0], [0, 0, 0, 1]])  # Matterport3D
SIZE = (320, 240)


def test_a_voxel_spans_the_same_space_at_every_resolution() -> None:
    assert [voxel_size_m(grid) for grid in (256, 128, 64)] == [0.03, 0.06, 0.12]
    assert {grid * voxel_size_m(grid) for grid in GRIDS} == {7.68}


@pytest.mark.parametrize(
    ("index", "from_grid", "to_grid", "expected"),
    [
        (0.5, 256, 128, 0.0),
        (1.5, 256, 64, 0.0),
        (-0.5, 256, 64, -0.5),
        (255.5, 256, 64, 63.5),
        (0.0, 64, 256, 1.5),
        (7.25, 64, 64, 7.25),
    ],
)
def test_an_index_is_a_voxel_centre_at_every_resolution(index: float, from_grid: int, to_grid: int, expected: float) -> None:
    assert scale_index(index, from_grid, to_grid) == expected
    assert scale_index(expected, to_grid, from_grid) == index


def test_intrinsics_scale_focal_length_by_size_and_centre_by_size_less_one() -> None:
    adjusted = adjust_intrinsics(K, SIZE, (640, 120))
    assert adjusted.tolist() == [
        [2 * 277.1281435, 0, 159.5 * 639 / 319, 0],
        [0, 277.1281435 / 2, 119.5 * 119 / 239, 0],
        [0, 0, 1, 0],
        [0, 0, 0, 1],
    ]
    assert K.tolist() == [list(row) for row in FRONT3D_INTRINSICS]  # untouched
    assert np.array_equal(adjust_intrinsics(adjusted, (640, 120), SIZE), K)
    assert np.array_equal(adjust_intrinsics(K[:3, :3], SIZE, SIZE), K[:3, :3])


def test_the_smallest_corner_is_that_of_the_image_corners_at_near_and_far() -> None:
    corners = [
        ((u - cx) / f * z, (v - cy) / fy * z, z)
        for f, fy, cx, cy in [(RELEASED_K[0, 0], RELEASED_K[1, 1], RELEASED_K[0, 2], RELEASED_K[1, 2])]
        for u in (0, 320)
        for v in (0, 240)
        for z in (0.4 / 0.03, 6.0 / 0.03)
    ]
    assert frustum_corners(RELEASED_K, SIZE).min(axis=0) == pytest.approx(np.min(corners, axis=0))


def test_the_camera_of_3d_front_is_where_wall_planes_put_it() -> None:
    assert np.abs(camera_index("front3d", K, SIZE, 256) - (127.085, 127.743, 21.677)).max() < 0.03
    assert camera_index("front3d", K, SIZE, 256) == pytest.approx(-frustum_corners(K, SIZE).min(axis=0) + (12, 41.5, 35))


def test_the_camera_of_matterport_is_half_the_padding_from_the_corner() -> None:
    x, y, _ = frustum_corners(RELEASED_K, SIZE).min(axis=0)
    assert camera_index("matterport", RELEASED_K, SIZE, 256) == pytest.approx((-x + 9, -y + 33, 65 / 3))


@pytest.mark.parametrize("source", ["front3d", "synthetic_hospital", "matterport"])
def test_the_camera_is_one_point_at_every_resolution(source: str) -> None:
    full = camera_index(source, K, SIZE, 256)
    for grid in (128, 64):
        assert camera_index(source, K, SIZE, grid) == pytest.approx((full + 0.5) * grid / 256 - 0.5)


def released_mask(grid: int) -> NDArray[np.bool_]:
    """The mask as its formula, in file orientation, says it, voxel by voxel."""
    mask = np.zeros((grid,) * 3, np.bool_)
    at = [(index + 0.5) * 256 / grid - 0.5 for index in range(grid)]
    for i, x in enumerate(at):
        for j, y in enumerate(at):
            for k, z in enumerate(at):
                reach = z - 65 / 3
                wide = abs(x - 127.75) * 277.1281435 <= 160 * reach and abs(y - 126.88) * 277.1281435 <= 120 * reach
                mask[i, j, k] = 35 <= z <= 221 and wide
    return mask


def test_the_frustum_of_3d_front_is_the_released_one_turned() -> None:
    mask = front3d_frustum(256)[::-1, ::-1]
    places = np.argwhere(mask)
    assert mask.sum() == 2_659_390
    assert places.min(axis=0).tolist() == [13, 41, 35] and places.max(axis=0).tolist() == [242, 213, 221]
    assert np.array_equal(front3d_frustum(64)[::-1, ::-1], released_mask(64))
    assert not np.array_equal(front3d_frustum(64), released_mask(64))  # its two sides differ


def test_the_frustum_of_a_released_matterport_view_has_its_voxels() -> None:
    assert matterport_frustum(RELEASED_K, SIZE, 256).sum() == 3_000_069


def test_a_matterport_frustum_holds_the_voxels_that_the_image_sees() -> None:
    for intrinsics in (RELEASED_K, adjust_intrinsics(K, SIZE, SIZE)):
        centre = camera_index("matterport", intrinsics, SIZE, 64)
        frustum, near, far = matterport_frustum(intrinsics, SIZE, 64), 35.0, 221.0
        for i, j, k in np.random.default_rng(2).integers(0, 64, (4000, 3)):
            x, y, z = np.array([i, j, k]) - centre
            u = intrinsics[0, 0] * x / z + intrinsics[0, 2] if z > 0 else -1.0
            v = intrinsics[1, 1] * y / z + intrinsics[1, 2] if z > 0 else -1.0
            plane = (k + 0.5) * 4 - 0.5
            assert frustum[i, j, k] == (near <= plane <= far and 0 <= u <= 320 and 0 <= v <= 240)


def test_pixels_are_projected_back_by_the_pinhole_model() -> None:
    depth_m = np.linspace(0.25, 3.0, 12, dtype=np.float32).reshape(3, 4)
    intrinsics, centre = np.array([[2.0, 0, 1.5], [0, 4.0, 1.0], [0, 0, 1]]), np.array([10.0, 20.0, 30.0])
    points = back_project(depth_m, intrinsics, centre, 64)
    assert points.shape == (3, 3, 4) and points.dtype == np.float64
    for v in range(3):
        for u in range(4):
            z = float(depth_m[v, u]) / 0.12
            assert points[:, v, u] == pytest.approx((10 + (u - 1.5) / 2 * z, 20 + (v - 1.0) / 4 * z, 30 + z))


def test_the_principal_point_looks_straight_ahead() -> None:
    intrinsics = K.copy()
    intrinsics[:2, 2] = 160, 120
    centre = camera_index("front3d", intrinsics, SIZE, 256)
    point = back_project(np.full((240, 320), 3.0, np.float32), intrinsics, centre, 256)[:, 120, 160]
    assert point == pytest.approx(centre + (0, 0, 100))
