"""Multi-plane occupancy: tables against matrices, cells against plain loops, and the golden numbers of the real views."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from scenemill.schemas.errors import ConfigError
from scenemill.trainers.planes import PLANE_SIZE, PLANES, PlaneTables, plane_occupancy, plane_tables
from scenemill.transforms.geometry import FRONT3D_INTRINSICS, adjust_intrinsics, back_project, camera_index, front3d_frustum

K = np.array(FRONT3D_INTRINSICS)
RELEASED_K = np.array([[269.42, 0, 159.21068022, 0], [0, 252.6984375, 125.21473998, 0], [0, 0, 1, 0], [0, 0, 0, 1]])  # Matterport3D
IMAGE = (320, 240)
VOXEL_M = 0.03


def by_matrices(
    intrinsics: NDArray[np.float64], image: tuple[int, int], voxels: NDArray[np.float64], size: tuple[int, int] = PLANE_SIZE
) -> NDArray[np.float64]:
    """(N, 3) float64: (u, v, depth) of voxels of the full grid, through the reference's 4x4 matrices."""
    height, width = size
    camera = np.eye(4)
    camera[:3, :3] = adjust_intrinsics(intrinsics, image, (width, height))[:3, :3]
    inverse = np.linalg.inv(camera)
    corners = (
        np.array([inverse @ (u * d, v * d, d, 1) for d in (0.4, 6.0) for u in (0, width) for v in (0, height)])[:, :3] / VOXEL_M
    )
    frustum_from_camera = np.diag([1 / VOXEL_M, 1 / VOXEL_M, 1 / VOXEL_M, 1])
    frustum_from_camera[:3, 3] = -corners.min(axis=0)
    padding = (256 - np.ceil(corners.max(axis=0) - corners.min(axis=0))) / 2
    inside = np.concatenate([voxels - padding - 1, np.ones((len(voxels), 1))], axis=1)
    seen = inside @ np.linalg.inv(frustum_from_camera).T @ camera.T
    return np.stack([seen[:, 0] / seen[:, 2], seen[:, 1] / seen[:, 2], seen[:, 2]], axis=1)


def cells_of(tables: PlaneTables, i: NDArray[Any], j: NDArray[Any], k: NDArray[Any]) -> NDArray[np.int64]:
    """(N, 3): (plane, v, u) of voxels; -1 throughout where there is no cell."""
    cells = np.stack([tables.plane.numpy()[k], tables.v.numpy()[j, k], tables.u.numpy()[i, k]], axis=1).astype(np.int64)
    cells[(cells < 0).any(axis=1)] = -1
    return cells


@pytest.mark.parametrize("grid", [256, 128, 64])
@pytest.mark.parametrize(
    ("intrinsics", "image", "size", "planes", "near", "far"),
    [
        (K, IMAGE, PLANE_SIZE, 100, 0.4, 6.0),
        (RELEASED_K, IMAGE, PLANE_SIZE, 100, 0.4, 6.0),
        (RELEASED_K[:3, :3], (320, 240), (30, 40), 24, 0.4, 6.0),
        (adjust_intrinsics(K, IMAGE, (640, 480)), (640, 480), (60, 50), 7, 1.0, 4.5),
    ],
)
def test_tables_hold_what_the_matrices_give(
    grid: int,
    intrinsics: NDArray[np.float64],
    image: tuple[int, int],
    size: tuple[int, int],
    planes: int,
    near: float,
    far: float,
) -> None:
    tables = plane_tables(intrinsics, image, grid, planes=planes, size=size, depth_min=near, depth_max=far)
    assert (tables.u.shape, tables.v.shape, tables.plane.shape) == ((grid, grid), (grid, grid), (grid,))
    i, j, k = np.random.default_rng(5).integers(0, grid, (3, 200_000))
    centres = (np.stack([i, j, k], axis=1) + 0.5) * 256 / grid - 0.5
    with np.errstate(divide="ignore", invalid="ignore"):
        u, v, depth = by_matrices(intrinsics, image, centres, size).T
    kept = (depth >= near) & (depth <= far) & (u >= 0) & (u < size[1]) & (v >= 0) & (v < size[0])
    with np.errstate(invalid="ignore"):
        expected = np.where(kept, np.floor([depth * planes / far, v, u]), -1).astype(np.int64).T
        border = np.abs(np.array([u, v]) - np.rint([u, v])).min(axis=0) < 1e-4  # where float32 and float64 may part
    assert 0.05 < kept.mean() < 0.5 and border.mean() < 0.003
    np.testing.assert_array_equal(cells_of(tables, i, j, k)[~border], expected[~border])


def test_the_camera_of_3d_front_is_where_the_reference_puts_it() -> None:
    """(128.248, 127.881, 22.167), by one division each."""
    tables = plane_tables(K, IMAGE, 256)
    i, j, k = 100, 150, 200
    depth = (k - 22.1667) * 0.03
    assert tables.plane[k] == int(depth / 0.06) == 88
    assert tables.u[i, k] == int(79.5 + 138.56407175 * (i - 128.248) / (k - 22.1667)) == 57
    assert tables.v[j, k] == int(59.5 + 138.56407175 * (j - 127.881) / (k - 22.1667)) == 76


def test_what_lies_outside_the_depths_or_the_image_has_no_cell() -> None:
    tables = plane_tables(K, IMAGE, 256)
    assert (tables.plane >= 0).nonzero().ravel()[[0, -1]].tolist() == [36, 222]  # 0.415 m and 5.995 m
    assert (tables.u[:, [0, 21, 35, 223]] == -1).all() and (tables.v[:, [0, 22, 35, 223]] == -1).all()
    assert tables.u[[0, 255], 222].tolist() == tables.v[[0, 255], 222].tolist() == [-1, -1]
    assert (int(tables.u.max()), int(tables.v.max()), int(tables.plane.max())) == (159, 119, 99)
    assert {table.dtype for table in (tables.u, tables.v, tables.plane)} == {torch.int32}


def test_the_farthest_depth_lies_in_the_last_plane() -> None:
    depths = (np.arange(256, dtype=np.float32) - np.float32(34.5) - 1) * np.float32(0.03) + np.float32(0.4)
    far = float(depths[100])
    tables = plane_tables(K, IMAGE, 256, planes=10, depth_max=far)
    assert tables.plane[[99, 100, 101]].tolist() == [9, 9, -1]


def test_the_grid_stays_where_it_is_when_depths_are_bounded() -> None:
    whole, part = plane_tables(K, IMAGE, 64), plane_tables(K, IMAGE, 64, depth_min=1.0, depth_max=3.0)
    kept = part.plane >= 0
    assert 0 < kept.sum() < (whole.plane >= 0).sum()
    assert torch.equal(part.u[:, kept], whole.u[:, kept]) and torch.equal(part.v[:, kept], whole.v[:, kept])


def test_what_the_tables_cannot_hold_is_refused() -> None:
    with pytest.raises(ConfigError, match="grid 100: allowed is 256, 128, 64"):
        plane_tables(K, IMAGE, 100)
    skewed = K.copy()
    skewed[0, 1] = 0.5
    with pytest.raises(ConfigError, match="allowed is"):
        plane_tables(skewed, IMAGE, 256)


def by_loops(voxels: NDArray[np.int64], tables: PlaneTables) -> NDArray[np.bool_]:
    """Every voxel after the other, and every neighbour of its cell."""
    grid = len(tables.plane)
    height, width = tables.size
    out = np.zeros((tables.planes + 2, height + 2, width + 2), np.bool_)
    for plane, v, u in cells_of(tables, voxels // grid**2, voxels // grid % grid, voxels % grid).tolist():
        if plane >= 0:
            out[plane : plane + 3, v : v + 3, u : u + 3] = True
    return out[1:-1, 1:-1, 1:-1]


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize(("grid", "count"), [(64, 0), (64, 1), (64, 300), (64, 30_000), (128, 4000), (256, 4000)])
def test_occupied_cells_are_those_of_plain_loops(grid: int, count: int, dtype: torch.dtype) -> None:
    random = np.random.default_rng(grid + count)
    voxels = random.integers(0, grid**3, count)  # in any order, and some twice
    for size, planes in ((PLANE_SIZE, PLANES), ((7, 9), 5), ((1, 3), 1)):
        tables = plane_tables(RELEASED_K, IMAGE, grid, planes=planes, size=size) if size[0] > 1 else flat_tables(grid)
        occupied = plane_occupancy(torch.from_numpy(voxels).to(dtype), tables)
        assert occupied.shape == (tables.planes, *tables.size) and occupied.dtype == torch.bool and occupied.is_contiguous()
        np.testing.assert_array_equal(occupied.numpy(), by_loops(voxels, tables))


def flat_tables(grid: int) -> PlaneTables:
    """One plane of 1 x 3: nothing to grow into but the two sides."""
    across = torch.full((grid, grid), -1, dtype=torch.int32)
    across[1] = 0
    return PlaneTables(across, torch.zeros_like(across), torch.zeros(grid, dtype=torch.int32), 1, (1, 3))


def test_neighbours_are_those_of_a_max_pool() -> None:
    tables = plane_tables(K, IMAGE, 64, planes=20, size=(12, 16))
    voxels = torch.from_numpy(np.random.default_rng(3).integers(0, 64**3, 400))
    hit = torch.zeros(20, 12, 16)
    grid = voxels.numpy()
    cells = cells_of(tables, grid // 4096, grid // 64 % 64, grid % 64)
    cells = cells[cells[:, 0] >= 0]
    hit[cells[:, 0], cells[:, 1], cells[:, 2]] = 1
    pooled = torch.nn.functional.max_pool3d(hit[None, None], 3, 1, 1)[0, 0]
    assert 0 < hit.sum() < pooled.sum() < pooled.numel()
    assert torch.equal(plane_occupancy(voxels, tables), pooled > 0)


def test_a_voxel_that_falls_nowhere_occupies_nothing() -> None:
    tables = plane_tables(K, IMAGE, 256)
    behind, beside, too_far = (128 * 256 + 128) * 256 + 10, (0 * 256 + 128) * 256 + 100, (128 * 256 + 128) * 256 + 230
    assert not plane_occupancy(torch.tensor([behind, beside, too_far]), tables).any()
    with pytest.raises(IndexError):
        plane_occupancy(torch.tensor([256**3]), tables)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same_cells() -> None:
    tables = plane_tables(K, IMAGE, 256)
    voxels = torch.from_numpy(np.random.default_rng(4).integers(0, 256**3, 100_000))
    on_gpu = plane_occupancy(voxels.cuda(), tables.to("cuda"))
    assert on_gpu.is_cuda and torch.equal(on_gpu.cpu(), plane_occupancy(voxels, tables))


def raw_view(data: Path, view: dict[str, str]) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.bool_]]:
    """Unsigned distance, intrinsics and frustum of a real view, by the plainest means."""
    root, image = data / "data" / view["dataset"], view["image"]
    folder = root / "data" / view["scene"]
    if view["dataset"] == "front3d":
        geometry = np.load(folder / f"geometry_{image}.npz")["data"].astype(np.float32)
        return np.minimum(np.flip(geometry, (0, 1)), np.float32(12)), K, front3d_frustum(256)
    name, angle, rot = image.split("_")
    with np.load(folder / f"{name}_geometry{angle}_{rot}.npz") as archive:
        distance, frustum = np.minimum(np.abs(archive["data"]), np.float32(12)), ~archive["mask"]
    return distance, np.load(folder / f"{name}_intrinsics_{angle}.npy"), frustum


def check_golden_numbers(data: Path, known: dict[str, Any]) -> None:
    distance, intrinsics, frustum = raw_view(data, known["view"])
    tables, golden = plane_tables(intrinsics, IMAGE, 256), known["multiplane_occupancy"]
    kept = (tables.u.numpy() >= 0)[:, None, :] & (tables.v.numpy() >= 0)[None] & frustum
    assert int(kept.sum()) == known["backprojection_kept"]
    assert hits(np.flatnonzero(kept), tables) == golden["cells_hit"]
    for name, limit in (("lt12", 12), ("lt3", 3)):
        voxels = np.flatnonzero(distance < limit)
        assert frustum.reshape(-1)[voxels].all()
        assert int(kept.reshape(-1)[voxels].sum()) == golden[name]["voxels_positive"]
        assert hits(voxels, tables) == golden[name]["cells_any_positive"]
        assert int(plane_occupancy(torch.from_numpy(voxels), tables).sum()) == golden[name]["cells_after_max_pool"]


def hits(voxels: NDArray[np.int64], tables: PlaneTables) -> int:
    cells = cells_of(tables, voxels >> 16, voxels >> 8 & 255, voxels & 255)
    flat = (cells[:, 0] * 120 + cells[:, 1]) * 160 + cells[:, 2]
    return int(np.bincount(flat[cells[:, 0] >= 0], minlength=1).astype(bool).sum())


def known_views(data: Path) -> dict[str, dict[str, Any]]:
    views = json.loads((data / "golden" / "loader" / "views.json").read_bytes())["views"]
    assert len(views) == 18
    return {known["view"]["image"]: known for known in views}


@pytest.mark.real
@pytest.mark.parametrize("image", ["0001", "0014", "0007", "4e8783c34d27454e95c4bedd4f62154f_1_4"])
def test_real_views_give_the_golden_numbers(real_data: Path, image: str) -> None:
    check_golden_numbers(real_data, known_views(real_data)[image])


@pytest.mark.real
@pytest.mark.full
def test_all_real_views_give_the_golden_numbers(real_data: Path) -> None:
    for known in known_views(real_data).values():
        check_golden_numbers(real_data, known)


def test_measured_planes_hold_the_surface_that_each_pixel_sees() -> None:
    intrinsics, size = np.array(FRONT3D_INTRINSICS), (320, 240)
    origin = camera_index("front3d", intrinsics, size, 256)
    small = adjust_intrinsics(intrinsics, size, (160, 120))
    depth = np.full((120, 160), 2.0, np.float32) + np.linspace(0, 1, 160, dtype=np.float32)
    voxel = np.rint(back_project(depth, small, origin, 256)).astype(np.int64)[:, 20:100, 30:130].reshape(3, -1)
    flat = torch.from_numpy((voxel[0] * 256 + voxel[1]) * 256 + voxel[2])
    rows, columns = np.mgrid[20:100, 30:130].reshape(2, -1)
    plane = np.floor(depth[rows, columns] * 100 / 6).astype(np.int64)

    def seen(occupied: torch.Tensor) -> float:
        return float(occupied[plane, rows, columns].float().mean())

    measured = plane_occupancy(flat, plane_tables(intrinsics, size, 256, origin=origin))
    reference = plane_occupancy(flat, plane_tables(intrinsics, size, 256))
    assert seen(measured) > 0.999
    assert seen(reference) <= seen(measured)
