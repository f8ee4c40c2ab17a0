"""Sparse projection against plain loops over pixels, where maps are read, gradients, and both sides of the fusion."""

import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from scenemill.schemas.errors import ConfigError
from scenemill.trainers.nvpanoptix3d.frustum import Frustum, inference_mask, voxel_pixels
from scenemill.trainers.nvpanoptix3d.lifting import lift
from scenemill.trainers.nvpanoptix3d.projection import fuse, project, project_scales
from scenemill.trainers.nvpanoptix3d.sparse import SparseTensor, sparse_tensor
from scenemill.transforms.geometry import FRONT3D_INTRINSICS, adjust_intrinsics, camera_index
from scenemill.transforms.images import read_exr_depth

K = np.array(FRONT3D_INTRINSICS)
RELEASED_K = np.array([[269.42, 0, 159.21068022, 0], [0, 252.6984375, 125.21473998, 0], [0, 0, 1, 0], [0, 0, 0, 1]])  # Matterport3D
HEIGHT, WIDTH = 24, 33
SMALL = Frustum(plane_size=(HEIGHT, WIDTH), grid=64, voxel_m=0.12)
MEASURED = Frustum(plane_size=(HEIGHT, WIDTH), grid=64, voxel_m=0.12, measured="matterport")
PADDED, UNPADDED = (64, 96), (48, 66)
CLASSES, WIDE = 4, 3


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def depth_map(seed: int = 0, holes: float = 0.3) -> Tensor:
    """Metres, from nearer than the frustum to beyond it, some of them missing."""
    generator = torch.Generator().manual_seed(seed)
    depth = 7 * torch.rand(HEIGHT, WIDTH, generator=generator)
    return depth * (torch.rand(HEIGHT, WIDTH, generator=generator) >= holes)


def bilinear(maps: Tensor, x: float, y: float) -> list[float]:
    """(C, h, w) maps at a share of their width and height; 0 outside."""
    _, height, width = maps.shape
    column, row = x * width - 0.5, y * height - 0.5
    total = [0.0] * len(maps)
    for v, u in product((math.floor(row), math.floor(row) + 1), (math.floor(column), math.floor(column) + 1)):
        if 0 <= v < height and 0 <= u < width:
            weight = (1 - abs(row - v)) * (1 - abs(column - u))
            total = [sum_ + weight * value for sum_, value in zip(total, maps[:, v, u].tolist(), strict=True)]
    return total


def naive_points(
    depth: Tensor, camera: NDArray[np.float64], frustum: Frustum, times: int = 1
) -> list[tuple[int, int, list[int], float]]:
    """Of each pixel with a depth, by rows: x, y, the voxel of its point, and how far the point lies behind that voxel's front."""
    image, voxel, grid = np.array(frustum.image_size), frustum.voxel_m * times, frustum.grid // times
    height, width = HEIGHT // times, WIDTH // times
    metres = [[float(depth[y * times, x * times]) for x in range(width)] for y in range(height)]
    pixels = [(x, y, metres[y][x]) for y in range(height) for x in range(width) if 0.4 <= metres[y][x] <= 6.0]
    found = []
    for x, y, z in pixels or [(width // 2, height // 2, 0.0)]:
        if frustum.measured:
            small = adjust_intrinsics(camera, frustum.image_size, (WIDTH, HEIGHT))[:3, :3]
            point = np.linalg.inv(small) @ (x * times * z, y * times * z, z)
            place = point / voxel + camera_index(frustum.measured, camera, frustum.image_size, grid) + 0.5
            part = place[2] - math.trunc(place[2])
        else:
            inverse = np.linalg.inv(camera[:3, :3])
            ends = np.array([inverse @ (u * d, v * d, d) for u in (0, image[0]) for v in (0, image[1]) for d in (0.4, 6.0)]) / voxel
            inside = inverse @ (x / width * image[0] * z, y / height * image[1] * z, z) / voxel - ends.min(axis=0)
            place = inside + np.floor((grid - np.ceil(ends.max(axis=0) - ends.min(axis=0))) / 2)
            part = inside[2] - math.trunc(inside[2])
        found.append((x, y, [math.floor(axis) for axis in place], part))
    return found


def assert_rows(found: SparseTensor, coords: list[list[int]], features: list[list[float]]) -> None:
    assert found.coords.tolist() == coords
    np.testing.assert_allclose(found.features.detach().numpy(), np.array(features), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("camera", [K, RELEASED_K], ids=["front3d", "matterport"])
@pytest.mark.parametrize("frustum", [SMALL, MEASURED], ids=["reference", "measured"])
@pytest.mark.parametrize(("reach", "sign_channel"), [(3, True), (1, False)])
def test_rows_are_those_of_plain_loops(camera: NDArray[np.float64], frustum: Frustum, reach: int, sign_channel: bool) -> None:
    maps, semantic, depth = random(WIDE, 13, 17), random(CLASSES, HEIGHT, WIDTH, seed=1), depth_map(2)
    coords, features = [], []
    for x, y, (i, j, k), part in naive_points(depth, camera, frustum):
        if frustum.measured:
            across, down = (x + 0.5) / WIDTH, (y + 0.5) / HEIGHT
            read = bilinear(maps, across * UNPADDED[1] / PADDED[1], down * UNPADDED[0] / PADDED[0])
            read += semantic[:, y, x].tolist()
        else:
            read = bilinear(maps, x / (PADDED[1] / 2), y / (PADDED[0] / 2)) + bilinear(semantic, x / WIDTH, y / HEIGHT)
        for step in range(-reach, reach + 1):
            e = part + step
            coords.append([0, i, j, k + step])
            features.append([*([float(np.sign(e)), abs(e)] if sign_channel else [e]), *read])
    found = project(
        *(maps[None], semantic[None], depth[None], camera[None], frustum, PADDED, [UNPADDED]),
        truncation=float(reach),
        sign_channel=sign_channel,
    )
    assert len(coords) > 1000 and found.stride == 1
    assert_rows(found, coords, features)


@pytest.mark.parametrize("camera", [K, RELEASED_K], ids=["front3d", "matterport"])
@pytest.mark.parametrize("frustum", [SMALL, MEASURED], ids=["reference", "measured"])
def test_rows_of_other_scales_are_those_of_plain_loops(camera: NDArray[np.float64], frustum: Frustum) -> None:
    scales, depth = [random(WIDE, 8 >> level, 12 >> level, seed=level) for level in range(3)], depth_map(3)
    found = project_scales([maps[None] for maps in scales], depth[None], camera[None], frustum, PADDED, [UNPADDED])
    assert [one.stride for one in found] == [2, 4, 8]
    for maps, rows, times, reach in zip(scales, found, (2, 4, 8), (2, 1, 0), strict=True):
        coords, features = [], []
        for x, y, (i, j, k), _ in naive_points(depth, camera, frustum, times):
            if frustum.measured:
                across, down = (x * times + 0.5) / WIDTH, (y * times + 0.5) / HEIGHT
                read = bilinear(maps, across * UNPADDED[1] / PADDED[1], down * UNPADDED[0] / PADDED[0])
            else:
                read = bilinear(maps, x / (2 * maps.shape[2]), y / (2 * maps.shape[1]))
            for step in range(-reach, reach + 1):
                coords.append([0, i, j, k + step])
                features.append(read)
        assert len(coords) >= 5
        assert_rows(rows, coords, features)


@pytest.mark.parametrize("nothing", [0.0, 0.39, 6.01, math.nan])
def test_without_any_depth_the_middle_pixel_sees_the_camera(nothing: float) -> None:
    depth = torch.full((1, HEIGHT, WIDTH), nothing)
    maps, semantic = random(1, WIDE, 13, 17), random(1, CLASSES, HEIGHT, WIDTH, seed=1)
    found = project(maps, semantic, depth, K[None], SMALL, PADDED, [UNPADDED])
    origin = 115.109 / 4 + 3, 86.242 / 4 + 10, -13.3333 / 4 + 8
    assert found.coords.tolist() == [[0, *(math.floor(axis) for axis in (*origin[:2], origin[2] + step))] for step in range(-3, 4)]
    behind = -1 / 3 + torch.arange(-3.0, 4.0)  # the frustum begins 3 1/3 voxels further on
    torch.testing.assert_close(found.features[:, 0] * found.features[:, 1], behind, rtol=0, atol=1e-5)
    read = bilinear(maps[0], WIDTH // 2 / (PADDED[1] / 2), HEIGHT // 2 / (PADDED[0] / 2))
    np.testing.assert_allclose(found.features[:, 2 : 2 + WIDE], [read] * 7, rtol=1e-4, atol=1e-5)
    scale = project_scales([maps], depth, K[None], SMALL, PADDED, [UNPADDED])[0]
    assert scale.coords.shape == (5, 4)


def read_parts(frustum: Frustum) -> list[tuple[int, int, int, int]]:
    """(last row, rows, last column, columns) of each of the maps of a full-size view, that anything was read from."""
    scales = [torch.ones(1, 1, 52 >> level, 64 >> level, requires_grad=True) for level in range(3)]
    depth = torch.full((1, 120, 160), 2.0)
    rows = project_scales(scales, depth, K[None], frustum, (256, 320), [(240, 320)])
    found = []
    for maps, one in zip(scales, rows, strict=True):
        (gradient,) = torch.autograd.grad(one.features.sum(), maps)
        used = gradient[0, 0].nonzero()
        found.append((int(used[:, 0].max()) + 1, maps.shape[2], int(used[:, 1].max()) + 1, maps.shape[3]))
    return found


def test_the_reference_reads_a_corner_of_other_scales_and_measured_the_whole() -> None:
    for last_row, rows, last_column, columns in read_parts(Frustum()):
        assert last_column / columns == pytest.approx(0.62, abs=0.08) and last_row / rows == pytest.approx(0.58, abs=0.08)
    for last_row, rows, last_column, columns in read_parts(Frustum(measured="front3d")):
        assert last_column == columns and abs(last_row - rows * 240 / 256) < 1  # what is below is padding


@pytest.mark.parametrize(("source", "camera"), [("front3d", K), ("matterport", RELEASED_K)])
@pytest.mark.parametrize("times", [1, 2])
def test_measured_both_ways_agree(source: str, camera: NDArray[np.float64], times: int) -> None:
    """From a voxel to its pixel, and with the voxel's depth from there to the same voxel; so do its levels."""
    frustum = Frustum(measured=source)
    tables = voxel_pixels(camera, frustum.coarser(times))
    random_ = np.random.default_rng(1)
    depth, expected = torch.zeros(120, 160), {}
    for i, j, k in random_.integers([40 // times, 60 // times, 50 // times], [216 // times, 196 // times, 150 // times], (800, 3)):
        u, v = int(tables.u[i, k]), int(tables.v[j, k])
        if u >= 0 and v >= 0 and u % times == v % times == 0:
            depth[v, u] = tables.depth[k]
            expected[v, u] = [0, i, j, k]
    assert len(expected) > 40
    maps = torch.zeros(1, 1, 4, 4)
    if times == 1:
        rows = project(
            maps, torch.zeros(1, 1, 120, 160), depth[None], camera[None], frustum, (256, 320), [(240, 320)], truncation=0
        )
    else:
        rows = project_scales([maps], depth[None], camera[None], frustum, (256, 320), [(240, 320)], truncation=0)[0]
    assert rows.coords.tolist() == [expected[place] for place in sorted(expected)]


def test_measured_projection_lies_within_what_is_lifted() -> None:
    """A wall four metres ahead: every voxel that a pixel sees is lifted with features, at the same coordinate."""
    frustum = Frustum(measured="front3d")
    depth, semantic = torch.full((1, 120, 160), 4.0), torch.zeros(1, 13, 120, 160)
    semantic[:, 10] = 0.9
    lifted = lift(semantic, depth, torch.zeros(1, 100, 120, 160), K[None], frustum, inference_mask(K, frustum)[None])
    seen = project(torch.zeros(1, 1, 4, 4), semantic, depth, K[None], frustum, (256, 320), [(240, 320)], truncation=0)
    full = {tuple(place) for place in lifted.coords[lifted.features.any(dim=1)].tolist()}
    there = [tuple(place) in full for place in seen.coords.tolist()]
    assert sum(there) / len(there) > 0.98  # but for pixels at the frustum's sides


@pytest.mark.real
def test_measured_projection_meets_the_surfaces_of_a_real_view(real_data: Path) -> None:
    """The distance in the voxel that a pixel's depth is in, in voxels: below one for nearly all pixels, or not."""
    folder = real_data / "data" / "front3d" / "data" / "70f7c6c1-c48f-4106-bcef-40b80b84bbad"
    distance = np.flip(np.load(folder / "geometry_0001.npz")["data"].astype(np.float32), (0, 1))
    depth = torch.from_numpy(read_exr_depth((folder / "depth_0001.exr").read_bytes(), (240, 320)).copy())[None]

    def near(measured: str) -> float:
        frustum = Frustum(plane_size=(240, 320), measured=measured)
        empty = torch.zeros(1, 1, 240, 320)
        seen = project(empty, empty, depth, K[None], frustum, (240, 320), [(240, 320)], truncation=0)
        return float((distance[tuple(seen.coords[:, 1:].T.numpy())] < 1).mean())

    assert near("front3d") > 0.985
    assert near("") < 0.8


def test_gradients_are_those_of_a_linear_map() -> None:
    """What is read is linear in the maps: the gradient's product with other maps is what is read from these."""
    maps, semantic, depth = random(1, WIDE, 13, 17).requires_grad_(), random(1, CLASSES, HEIGHT, WIDTH, seed=1), depth_map(2)[None]
    direction = random(1, WIDE, 13, 17, seed=5)
    for frustum in (SMALL, MEASURED):
        arguments = (semantic, depth, K[None], frustum, PADDED, [UNPADDED])
        found = project(maps, *arguments)
        weight = random(*found.features.shape, seed=6)
        (gradient,) = torch.autograd.grad((found.features * weight).sum(), maps)
        along = (project(direction, *arguments).features * weight)[:, 2 : 2 + WIDE].sum()
        assert float((gradient * direction).sum()) == pytest.approx(float(along), rel=1e-4)
        (scale,) = project_scales([maps], depth, K[None], frustum, PADDED, [UNPADDED])
        (gradient,) = torch.autograd.grad((scale.features * weight[: len(scale.support), :WIDE]).sum(), maps)
        (other,) = project_scales([direction], depth, K[None], frustum, PADDED, [UNPADDED])
        along = (other.features * weight[: len(scale.support), :WIDE]).sum()
        assert float((gradient * direction).sum()) == pytest.approx(float(along), rel=1e-4)


def test_places_have_no_gradient() -> None:
    depth = depth_map(2)[None].requires_grad_()
    found = project(random(1, WIDE, 13, 17), random(1, CLASSES, HEIGHT, WIDTH), depth, K[None], SMALL, PADDED, [UNPADDED])
    assert not found.features.requires_grad


def test_two_samples_are_projected_as_one_and_one() -> None:
    """Each by its own camera, and by its own part of the padded image."""
    maps, semantic = random(2, WIDE, 13, 17), random(2, CLASSES, HEIGHT, WIDTH, seed=1)
    depth, cameras, unpadded = torch.stack([depth_map(2), depth_map(3)]), np.stack([RELEASED_K, K]), [UNPADDED, (60, 90)]
    for frustum in (SMALL, MEASURED):
        both = project(maps, semantic, depth, cameras, frustum, PADDED, unpadded)
        scales = project_scales([maps, maps], depth, cameras, frustum, PADDED, unpadded)
        start, begun = 0, [0, 0]
        for sample in range(2):
            own = slice(sample, sample + 1)
            alone = project(maps[own], semantic[own], depth[own], cameras[own], frustum, PADDED, unpadded[own])
            end = start + len(alone.support)
            assert torch.equal(both.features[start:end], alone.features)
            assert torch.equal(both.coords[start:end, 1:], alone.coords[:, 1:]) and (both.coords[start:end, 0] == sample).all()
            start = end
            levels = project_scales([maps[own]] * 2, depth[own], cameras[own], frustum, PADDED, unpadded[own])
            for level, (together, one) in enumerate(zip(scales, levels, strict=True)):
                part = slice(begun[level], begun[level] + len(one.support))
                assert torch.equal(together.features[part], one.features)
                assert (together.coords[part, 0] == sample).all()
                begun[level] = part.stop
        assert start == len(both.support) and begun == [len(one.support) for one in scales]


def naive_union(sides: list[tuple[dict[tuple[int, ...], list[float]], int]]) -> dict[tuple[int, ...], list[float]]:
    places = sorted(set().union(*(side for side, _ in sides)))
    return {place: [value for side, width in sides for value in side.get(place, [0.0] * width)] for place in places}


def last_rows(tensor: SparseTensor) -> dict[tuple[int, ...], list[float]]:
    """Later rows replace earlier ones of their coordinate."""
    return {tuple(place): row for place, row in zip(tensor.coords.tolist(), tensor.features.tolist(), strict=True)}


def pooled(tensor: SparseTensor) -> SparseTensor:
    """The largest of what is within one of the first child of each cell of twice the size; the first row of a coordinate counts."""
    first: dict[tuple[int, ...], list[float]] = {}
    for place, row in zip(tensor.coords.tolist(), tensor.features.tolist(), strict=True):
        first.setdefault(tuple(place), row)
    cells = sorted({(sample, i // 2, j // 2, k // 2) for sample, i, j, k in first})
    rows = []
    for sample, i, j, k in cells:
        around = [(sample, 2 * i + a, 2 * j + b, 2 * k + c) for a, b, c in product((-1, 0, 1), repeat=3)]
        rows.append(np.max([first[place] for place in around if place in first], axis=0, initial=-np.inf).tolist())
    return sparse_tensor(torch.tensor(cells), torch.tensor(rows), 2 * tensor.stride)


def scattered(count: int, width: int, size: int, stride: int, seed: int) -> SparseTensor:
    generator = torch.Generator().manual_seed(seed)
    coords = torch.randint(0, size, (count, 4), generator=generator)
    coords[:, 0] = torch.arange(count) * 2 // count
    coords[:, 1:] -= 1  # some lie outside the grid
    return sparse_tensor(coords, torch.randn(count, width, generator=generator), stride)


def test_fusion_puts_both_sides_together_on_every_level() -> None:
    projected, lifted = scattered(300, 5, 8, 1, 0), scattered(500, 3, 12, 1, 1)
    for level in range(4):  # isolated cells would hold no first child's neighbour
        more = torch.cartesian_prod(torch.arange(2), *[torch.arange(0, 12, 2**level)] * 3)
        coords = torch.cat([more, lifted.coords]) if level == 0 else lifted.coords
        lifted = sparse_tensor(coords, random(len(coords), 3, seed=level))
    scales = [scattered(60, 2, 6 >> level, 2 << level, 7 + level) for level in range(3)]
    first, others = fuse(projected, lifted, scales)
    side = lifted
    for found, (left, width), right in zip(
        [first, *others], [(projected, 5), *[(scale, 2) for scale in scales]], range(4), strict=True
    ):
        if right:
            side = pooled(side)
        expected = naive_union([(last_rows(left), width), (last_rows(side), 3)])
        assert found.stride == 2**right
        assert_rows(found, [list(place) for place in expected], list(expected.values()))


def test_fusion_without_other_scales_has_one_level() -> None:
    first, others = fuse(scattered(30, 5, 4, 1, 0), scattered(50, 3, 4, 1, 1))
    assert others == [] and first.features.shape[1] == 8


def test_a_released_view_has_543_and_272_channels() -> None:
    """And seven, five, three rows and one for each pixel, as the truncation halves and is rounded."""
    frustum = Frustum()
    depth, semantic = torch.zeros(1, 120, 160), torch.zeros(1, 13, 120, 160)
    depth[0, 40:56, 80:96] = 2.0
    depth[0, 48:56, 80:96] = 3.0
    lifted = lift(semantic, depth, torch.zeros(1, 100, 120, 160), K[None], frustum, inference_mask(K, frustum)[None])
    projected = project(random(1, 512, 104, 128), semantic, depth, K[None], frustum, (256, 320), [(240, 320)])
    maps = [random(1, 256, 52 >> level, 64 >> level) for level in range(3)]
    scales = project_scales(maps, depth, K[None], frustum, (256, 320), [(240, 320)])
    assert [len(rows.support) for rows in (projected, *scales)] == [256 * 7, 64 * 5, 16 * 3, 4 * 1]
    first, others = fuse(projected, lifted, scales)
    assert first.features.shape[1] == 543 and [one.features.shape[1] for one in others] == [272] * 3
    assert [one.stride for one in (first, *others)] == [1, 2, 4, 8]
    keys = first.coords.tolist()
    assert keys == sorted(keys) and len({tuple(key) for key in keys}) == len(keys)


def test_maps_that_do_not_fit_are_refused() -> None:
    maps, semantic = random(1, WIDE, 13, 17), random(1, CLASSES, HEIGHT, WIDTH)
    with pytest.raises(ConfigError, match=r"depth is \(33, 24\): expected \(24, 33\)"):
        project(maps, semantic, depth_map().T[None], K[None], SMALL, PADDED, [UNPADDED])
    with pytest.raises(ConfigError, match=r"semantic is \(13, 17\): expected \(24, 33\)"):
        project(maps, maps, depth_map()[None], K[None], SMALL, PADDED, [UNPADDED])
    with pytest.raises(ConfigError, match=r"depth is \(12, 33\)"):
        project_scales([maps], depth_map()[None, ::2], K[None], SMALL, PADDED, [UNPADDED])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_projects_the_same() -> None:
    maps, semantic, depth = random(1, WIDE, 13, 17), random(1, CLASSES, HEIGHT, WIDTH, seed=1), depth_map(2)[None]
    on_cpu = project(maps, semantic, depth, K[None], SMALL, PADDED, [UNPADDED])
    on_gpu = project(maps.cuda(), semantic.cuda(), depth.cuda(), K[None], SMALL, PADDED, [UNPADDED])
    assert torch.equal(on_gpu.coords.cpu(), on_cpu.coords)
    torch.testing.assert_close(on_gpu.features.cpu(), on_cpu.features, rtol=1e-4, atol=1e-5)
