"""The soft mask and the combined renderer: against one pixel at a time, by gradients, and against Kaolin's stored tensors."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from scenemill.schemas.errors import ConfigError
from scenemill.trainers.render import dibr_rasterization, dibr_soft_mask, mask_iou, rasterize
from scenemill.trainers.render.pairs import Raster, wanted_pixels
from scenemill.trainers.render.soft_mask import Settings, near_faces
from tests.unit.naive_render import Faces, read_obj, seen, soft_mask, soup, sphere

GOLDEN = [("simple", 7000, 0.2), ("simple", 70, 0.02), ("sphere", 7000, 0.02), ("sphere", 70, 0.01)]
CAMERAS = [(0.3, 0.4, 4.0), (2.0, 1.5, -3.0)]


def index_of(size: tuple[int, int], faces: Faces) -> Tensor:
    found: Tensor = rasterize(*size, faces.z, faces.image, faces.image, faces.normals_z >= 0)[1]
    return found


@pytest.mark.parametrize("select", ["index", "nearest"])
@pytest.mark.parametrize("knum", [0, 1, 4, 30])
@pytest.mark.parametrize(("sigmainv", "boxlen"), [(7000.0, 0.02), (70.0, 0.2), (7.0, 0.0)])
def test_soft_masks_are_those_of_one_pixel_at_a_time(sigmainv: float, boxlen: float, knum: int, select: str) -> None:
    for faces in (soup(0, 7), seen(*sphere(5, 7), CAMERAS)):
        index = index_of((14, 11), faces)
        expected = soft_mask(faces, index.numpy(), sigmainv, boxlen, knum, select == "nearest")
        assert 0.1 < (index < 0).float().mean() < 0.95
        for chunk_bytes in (1, 2**14, 2**28):
            found = dibr_soft_mask(faces.image, index, sigmainv, boxlen, knum, select=select, chunk_bytes=chunk_bytes)
            np.testing.assert_allclose(found, expected, atol=1e-9)


def test_float32_and_half_differ_by_rounding_alone() -> None:
    faces = seen(*sphere(), CAMERAS)
    index = index_of((40, 40), faces)
    expected = dibr_soft_mask(faces.image, index, 7000, 0.1)
    torch.testing.assert_close(dibr_soft_mask(faces.image.float(), index, 7000, 0.1).double(), expected, rtol=0, atol=2e-5)
    for half in (torch.float16, torch.bfloat16):
        rounded = faces.image.to(half)
        found = dibr_soft_mask(rounded, index, 7000, 0.1)
        assert found.dtype == half
        assert torch.equal(found, dibr_soft_mask(rounded.float(), index, 7000, 0.1).to(half))


def test_one_edge_gives_the_exponential_of_its_distance() -> None:
    """A square of 10 pixels, x = -0.9, -0.7, ...; the face ends at x = 0, so the centre at x = 0.1 is 0.1 away."""
    image = torch.tensor([[[(0.0, -9.0), (0.0, 9.0), (-0.5, 0.0)]]], dtype=torch.float64)
    index = rasterize(10, 10, -torch.ones(1, 1, 3, dtype=torch.float64), image, image)[1]
    mask = dibr_soft_mask(image, index, sigmainv=50, boxlen=0.35)
    assert torch.equal(mask[0, 5, :5] == 1, index[0, 5, :5] == 0)
    torch.testing.assert_close(mask[0, 5, 5:7], torch.tensor([math.exp(-0.5), math.exp(-4.5)], dtype=torch.float64))
    assert not mask[0, 5, 7:].any()  # farther than boxlen


def test_covered_pixels_are_1_and_have_no_gradient() -> None:
    image = soup(2, 5).image.requires_grad_()
    mask = dibr_soft_mask(image, torch.zeros(2, 6, 6, dtype=torch.int64), 70, 0.2)
    assert (mask == 1).all()
    torch.autograd.backward(mask.sum())
    assert image.grad is not None and not image.grad.any()


@pytest.mark.parametrize("select", ["index", "nearest"])
def test_gradients_are_those_of_finite_differences(select: str) -> None:
    faces = soup(5, 4, batch=1)
    index = index_of((5, 7), faces)
    assert 4 < (index < 0).sum() < 35

    def run(image: Tensor) -> Tensor:
        return dibr_soft_mask(image, index, 20.0, 0.4, 3, select=select)

    assert torch.autograd.gradcheck(run, (faces.image.requires_grad_(),), atol=1e-5)


def test_gradients_reach_edges_and_corners_of_every_number() -> None:
    """Six pixels around one triangle, one per edge and one per corner, and the distance by plain formulas of autograd."""
    corners = torch.tensor([[-0.31, -0.29], [0.33, -0.27], [0.02, 0.35]], dtype=torch.float64, requires_grad=True)
    index = torch.full((1, 9, 9), -1)
    found = dibr_soft_mask(corners[None, None], index, 3.0, 5.0, 1)
    expected = []
    kinds = set()
    for row, column in np.ndindex(9, 9):
        point = torch.tensor([(2 * column - 8) / 9, (8 - 2 * row) / 9], dtype=torch.float64)
        squares = []
        for end in range(3):
            start, along = corners[end], corners[(end + 1) % 3] - corners[end]
            share = ((point - start) @ along / (along @ along)).clamp(0, 1)
            squares.append((start + share * along - point).square().sum())
            kinds.add((end, 0.0 < float(share.detach()) < 1.0))
        expected.append(torch.exp(-3.0 * torch.stack(squares).min()))
    dense = torch.stack(expected).view(1, 9, 9)
    assert len(kinds) == 6
    torch.testing.assert_close(found, dense, rtol=0, atol=1e-9)
    pull = torch.rand(1, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    given, wanted = (torch.autograd.grad((mask * pull).sum(), corners)[0] for mask in (found, dense))
    torch.testing.assert_close(
        given, wanted, rtol=1e-4, atol=1e-6
    )  # 1e-7 is added to 1 - p, so near the outline they differ a little


def test_an_image_of_a_few_pixels_has_a_gradient() -> None:
    image = torch.tensor([[[(-0.2, -0.2), (0.2, -0.2), (0.0, 0.2)]]], requires_grad=True)
    torch.autograd.backward(dibr_soft_mask(image, torch.full((1, 2, 2), -1), 7.0, 2.0).sum())
    assert image.grad is not None and (image.grad[0, 0, :2] != 0).all()


def test_faces_without_size_give_numbers() -> None:
    image = torch.zeros(1, 2, 3, 2)
    image[0, 1] = 0.1
    image.requires_grad_()
    mask = dibr_soft_mask(image, torch.full((1, 3, 3), -1), 7.0, 2.0, 5)
    torch.autograd.backward(mask.sum())
    square = torch.tensor([0.0, 0.02], dtype=torch.float64)
    assert float(mask[0, 1, 1].detach()) == 1 - float((1 - torch.exp(-7 * square)).prod())
    assert image.grad is not None and image.grad.isfinite().all()


def test_faces_that_are_not_finite_or_not_valid_do_not_count() -> None:
    faces = soup(6, 6)
    index, valid = index_of((9, 9), faces), torch.ones(2, 6, dtype=torch.bool)
    valid[0, 1] = valid[1, 4] = False
    image = faces.image.clone()
    image[0, 1, 0, 0], image[1, 4, 2, 1] = float("nan"), float("inf")
    image.requires_grad_()
    found = dibr_soft_mask(image, index, 70, 0.2)
    expected = dibr_soft_mask(faces.image, index, 70, 0.2, valid_faces=valid)
    assert torch.equal(found, expected) and not torch.equal(found, dibr_soft_mask(faces.image, index, 70, 0.2))
    torch.autograd.backward(found.sum())
    assert image.grad is not None and image.grad.isfinite().all()


def test_no_faces_leave_an_empty_mask() -> None:
    image = torch.zeros(2, 0, 3, 2, requires_grad=True)
    mask = dibr_soft_mask(image, torch.full((2, 3, 4), -1))
    assert mask.shape == (2, 3, 4) and not mask.any()
    torch.autograd.backward(mask.sum())


@pytest.mark.parametrize("settings", [{}, {"sigmainv": 70, "boxlen": 0.2, "knum": 4, "multiplier": 100.0, "select": "nearest"}])
def test_the_combined_renderer_equals_its_two_halves(settings: dict[str, Any]) -> None:
    faces = seen(*sphere(), CAMERAS)
    features = [faces.image, faces.z[..., None]]
    found, mask, index = dibr_rasterization(30, 20, faces.z, faces.image, features, faces.normals_z, **settings)
    multiplier = settings.get("multiplier", 1000.0)
    expected, face_idx = rasterize(30, 20, faces.z, faces.image, features, faces.normals_z >= 0, multiplier)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert torch.equal(index, face_idx)
    assert torch.equal(mask, dibr_soft_mask(faces.image, face_idx, **{"multiplier": multiplier} | settings))


def test_faces_behind_the_camera_are_in_neither_half() -> None:
    faces = seen(*sphere(), [(0.0, 0.0, 1.5)])
    z = faces.z.clone()
    z[0, 5] = 0.5
    kept = torch.ones(1, z.shape[1], dtype=torch.bool)
    kept[0, 5] = False
    found, mask, index = dibr_rasterization(16, 16, z, faces.image, faces.image, faces.normals_z, 70, 0.2)
    other = [held[kept][None] for held in (faces.z, faces.image, faces.image, faces.normals_z)]
    expected, expected_mask, _ = dibr_rasterization(16, 16, other[0], other[1], other[2], other[3], 70, 0.2)
    assert torch.equal(found, expected) and torch.equal(mask, expected_mask) and 5 not in index


def test_wrong_calls_say_what_is_wrong() -> None:
    faces = soup(0, 3)
    index = torch.full((2, 4, 4), -1)
    with pytest.raises(ConfigError, match="select 'first': give one of 'index', 'nearest'"):
        dibr_soft_mask(faces.image, index, select="first")
    with pytest.raises(ConfigError, match="multiplier 0"):
        dibr_soft_mask(faces.image, index, multiplier=0)
    with pytest.raises(ConfigError, match="knum -1"):
        dibr_soft_mask(faces.image, index, knum=-1)
    with pytest.raises(ConfigError, match=r"expected \(2, H, W\)"):
        dibr_soft_mask(faces.image, index[:1])
    with pytest.raises(ConfigError, match=r"expected \(B, F, 3, 2\)"):
        dibr_soft_mask(faces.z, index)
    with pytest.raises(ConfigError, match="valid_faces"):
        dibr_soft_mask(faces.image, index, valid_faces=torch.ones(3, dtype=torch.bool))
    with pytest.raises(ConfigError, match="face_normals_z"):
        dibr_rasterization(4, 4, faces.z, faces.image, faces.image, faces.z)


def simple() -> Faces:
    """The triangles of the golden case of this name."""
    diamond = [[(-0.7, 0), (0, -0.7), (0, 0.7)], [(-0.7, 0), (0, 0.7), (0, -0.7)], [(0, -0.7), (0, 0.7), (0.7, 0)]]
    image = torch.tensor([diamond, [[(-0.7, -0.7), (0.7, -0.7), (-0.7, 0.7)]] * 3], dtype=torch.float64)
    z = [[(-2, -1, -1), (-2.5, -3, -3), (-2, -2, -2)], [(-2, -1, -3), (-2, -2, -2), (-2, -3, -1)]]
    return Faces(torch.tensor(z, dtype=torch.float64), image, torch.ones(2, 3))


def golden_faces(case: str, folder: Path) -> Faces:
    if case == "simple":
        return simple()
    vertices, triangles = read_obj(folder / "obj" / "model.obj")
    low, high = vertices.amin(0), vertices.amax(0)
    return seen((vertices - low) / (high - low), triangles, [(0.5, 0.5, 3.0), (2.0, 2.0, -2.0), (3.0, 0.5, 0.5)], 0.5)


def as_stored(image: Tensor, index: Tensor, sigmainv: float, boxlen: float, knum: int) -> tuple[np.ndarray[Any, Any], ...]:
    """p, face and kind, (B, H, W, knum): faces 1-based, 0 where there is no further one."""
    shape, faces = index.shape, image.shape[1]
    wanted = wanted_pixels(index < 0)
    settings = Settings(Raster(shape[0], shape[1], shape[2], 1000.0), sigmainv, boxlen, knum, False, 2**28)
    drawn = torch.ones(image.shape[:2], dtype=torch.bool).flatten()
    near = near_faces(image.reshape(-1, 3, 2), drawn, wanted, settings)
    stored = [np.zeros((shape.numel(), knum)) for _ in range(3)]
    filled: dict[int, int] = {}
    for row, slot in enumerate(near.slot.tolist()):
        rank = filled[slot] = filled.get(slot, -1) + 1
        values = (math.exp(-sigmainv * float(near.square[row])), int(near.face[row]) % faces + 1, int(near.kind[row]))
        for array, value in zip(stored, values, strict=True):
            array[int(wanted.pixel[slot]), rank] = value
    return tuple(array.reshape(*shape, knum) for array in stored)


@pytest.mark.real
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("case", "sigmainv", "boxlen"), GOLDEN)
def test_the_stored_tensors_of_kaolin_are_met(
    real_data: Path, case: str, sigmainv: float, boxlen: float, dtype: torch.dtype, turned: bool
) -> None:
    folder = real_data / "data" / "kaolin"
    golden = np.load(folder / "dibr" / f"{case}_{sigmainv}_{boxlen}.npz")
    faces, knum = golden_faces(case, folder), golden["close_face_idx"].shape[3]
    order = [2, 1, 0] if turned else [0, 1, 2]
    image, z = faces.image[:, :, order].to(dtype), faces.z[..., order].to(dtype)
    image.requires_grad_()
    _, index = rasterize(35, 31, z, image, image)
    mask = dibr_soft_mask(image, index, sigmainv, boxlen, knum, 1000.0)
    np.testing.assert_allclose(mask.detach(), golden["soft_mask"], atol=1e-5)
    share, face, kind = as_stored(image.detach(), index, sigmainv, boxlen, knum)
    np.testing.assert_allclose(share, golden["close_face_dist"], atol=1e-5)
    assert np.array_equal(face, golden["close_face_idx"])
    if not turned:
        assert (kind != golden["close_face_dist_type"]).mean() <= (0 if case == "simple" else 1e-4)
    target = torch.nn.functional.pad((index >= 0).to(dtype), (0, 5))[..., 5:]
    torch.autograd.backward(mask_iou(mask, target))
    assert image.grad is not None
    np.testing.assert_allclose(image.grad[:, :, order], golden["grad_face_vertices_image"], atol=1e-5)
