"""Rasterisation against a renderer that solves for the weights one pixel at a time, against rays in space, and by its gradients."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from scenemill.schemas.errors import ConfigError
from scenemill.trainers.render import rasterize
from tests.unit.naive_render import Faces, draw, read_obj, seen, soup, sphere, weights_at

CAMERAS = [(0.3, 0.4, 3.0), (2.0, 1.5, -2.0), (3.0, 0.2, 0.4)]


def features_of(faces: Faces, width: int = 3, seed: int = 5) -> Tensor:
    shape = (*faces.z.shape, width)
    return torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def one_face(*corners: tuple[float, float], z: tuple[float, float, float] = (-1.0, -1.0, -1.0)) -> Faces:
    return Faces(torch.tensor([[z]]).double(), torch.tensor([[corners]]).double(), torch.ones(1, 1).double())


def stacked(*faces: Faces) -> Faces:
    """Several faces of one image."""
    return Faces(*(torch.cat([getattr(face, name) for face in faces], dim=1) for name in ("z", "image", "normals_z")))


def index_of(size: tuple[int, int], faces: Faces, **settings: Any) -> list[list[int]]:
    found: list[list[int]] = rasterize(*size, faces.z, faces.image, features_of(faces), **settings)[1][0].tolist()
    return found


@pytest.mark.parametrize("cull", [False, True])
@pytest.mark.parametrize("size", [(32, 32), (19, 45)])
def test_a_sphere_from_three_sides_is_drawn_as_one_pixel_at_a_time(size: tuple[int, int], cull: bool) -> None:
    faces = seen(*sphere(), CAMERAS)
    features, valid = features_of(faces), faces.normals_z >= 0 if cull else None
    expected, index = draw(*size, faces, features, valid)
    found, face_idx = rasterize(*size, faces.z, faces.image, features, valid)
    assert (index >= 0).mean() > 0.2
    assert np.array_equal(face_idx, index)
    np.testing.assert_allclose(found, expected, atol=1e-9)


@pytest.mark.real
@pytest.mark.parametrize("cull", [False, True])
def test_the_textured_model_is_drawn_as_one_pixel_at_a_time(real_data: Path, cull: bool) -> None:
    vertices, triangles = read_obj(real_data / "data" / "kaolin" / "obj" / "model.obj")
    low, high = vertices.amin(0), vertices.amax(0)
    faces = seen((vertices - low) / (high - low), triangles, [(0.5, 0.5, 3.0), (2.0, 2.0, -2.0), (3.0, 0.5, 0.5)], 0.5)
    features, valid = features_of(faces), faces.normals_z >= 0 if cull else None
    expected, index = draw(32, 32, faces, features, valid)
    for dtype in (torch.float32, torch.float64):
        found, face_idx = rasterize(32, 32, faces.z.to(dtype), faces.image.to(dtype), features.to(dtype), valid)
        assert np.array_equal(face_idx, index)
        np.testing.assert_allclose(found, expected, atol=1e-5 if dtype == torch.float32 else 1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_triangles_at_random_are_drawn_as_one_pixel_at_a_time(seed: int) -> None:
    faces = soup(seed, 12)
    features, valid = features_of(faces), faces.normals_z >= 0
    expected, index = draw(13, 17, faces, features, valid)
    for chunk_bytes in (1, 20_000, 2**28):
        found, face_idx = rasterize(13, 17, faces.z, faces.image, features, valid, chunk_bytes=chunk_bytes)
        assert np.array_equal(face_idx, index)
        np.testing.assert_allclose(found, expected, atol=1e-9)


def test_float32_and_half_differ_by_rounding_alone() -> None:
    faces = seen(*sphere(), CAMERAS)
    features = features_of(faces)
    expected, index = rasterize(64, 64, faces.z, faces.image, features)
    found, face_idx = rasterize(64, 64, faces.z.float(), faces.image.float(), features.float())
    assert found.dtype == torch.float32
    same = face_idx == index
    assert same.float().mean() > 0.999
    torch.testing.assert_close(found[same].double(), expected[same], atol=1e-5, rtol=0)
    for half in (torch.float16, torch.bfloat16):
        z, image, rounded = (held.to(half) for held in (faces.z, faces.image, features))
        found, face_idx = rasterize(64, 64, z, image, rounded)
        again, index = rasterize(64, 64, z.float(), image.float(), rounded.float())
        assert found.dtype == half
        assert torch.equal(found, again.to(half)) and torch.equal(face_idx, index)


def test_pixel_centres_lie_as_the_conventions_say() -> None:
    """On 2 x 4 pixels, row 0 on top: x = -3/4, -1/4, 1/4, 3/4 and y = 1/2, -1/2."""
    upper_right = one_face((0.5, 0.25), (1.0, 0.25), (0.75, 1.0))
    assert index_of((2, 4), upper_right) == [[-1, -1, -1, 0], [-1, -1, -1, -1]]


def test_boxes_hold_their_lower_bound_and_not_their_upper() -> None:
    """Centres of 4 x 4 pixels are at +-1/4 and +-3/4: a box from -1/4 to 3/4 has four of them, and its lower left half all four."""
    lower = one_face((-0.25, -0.25), (0.75, -0.25), (-0.25, 0.75))
    upper = one_face((0.75, -0.25), (0.75, 0.75), (-0.25, 0.75))
    assert index_of((4, 4), lower) == [[-1] * 4, [-1, 0, 0, -1], [-1, 0, 0, -1], [-1] * 4]
    assert index_of((4, 4), upper) == [[-1] * 4, [-1, -1, 0, -1], [-1] * 4, [-1] * 4]  # its edge goes through this one


def test_a_point_on_a_shared_edge_belongs_to_both_faces_and_the_first_wins() -> None:
    left, right = one_face((0.0, -1.0), (0.0, 1.0), (-1.0, 0.0)), one_face((0.0, -1.0), (1.0, 0.0), (0.0, 1.0))
    column = [[-1], [0], [-1]]  # one pixel across, its centre at x = 0; the box of the left face ends there and does not hold it
    assert index_of((3, 1), right)[1] == [0]
    assert index_of((3, 1), left)[1] == [-1]
    assert index_of((3, 1), stacked(right, right))[1] == column[1]


def test_of_equal_depths_the_lowest_face_wins_whatever_the_chunks() -> None:
    square = one_face((-2.0, -2.0), (2.0, -2.0), (0.0, 3.0))
    for chunk_bytes in (1, 2**28):
        assert index_of((3, 3), stacked(square, square, square), chunk_bytes=chunk_bytes) == [[0] * 3] * 3


def test_larger_z_is_in_front_and_both_windings_show() -> None:
    far = one_face((-2.0, -2.0), (2.0, -2.0), (0.0, 3.0), z=(-2.0, -2.0, -2.0))
    near = one_face((-2.0, -2.0), (0.0, 3.0), (2.0, -2.0), z=(-1.0, -1.0, -1.0))
    assert index_of((2, 2), stacked(far, near)) == [[1, 1], [1, 1]]


def test_several_features_come_back_one_by_one() -> None:
    faces = soup(0, 10)
    wide = features_of(faces, 6)
    expected, index = rasterize(11, 9, faces.z, faces.image, wide)
    for kind in (list, tuple):
        parts, face_idx = rasterize(11, 9, faces.z, faces.image, kind([wide[..., :2], wide[..., 2:3], wide[..., 3:]]))
        assert isinstance(parts, tuple) and [part.shape[3] for part in parts] == [2, 1, 3]
        assert torch.equal(torch.cat(parts, dim=3), expected) and torch.equal(face_idx, index)


def test_faces_that_reach_behind_the_camera_are_left_out_unless_asked_for() -> None:
    behind = one_face((-2.0, -2.0), (2.0, -2.0), (0.0, 3.0), z=(-1.0, -1.0, 2.0))
    front = one_face((-2.0, -2.0), (2.0, -2.0), (0.0, 3.0), z=(-3.0, -3.0, -3.0))
    both = stacked(behind, front)
    assert index_of((1, 1), both) == [[1]]
    assert index_of((1, 1), both, near=None) == [[0]]
    assert index_of((1, 1), both, near=4.0) == [[-1]]


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_a_face_that_is_not_finite_is_left_out_and_the_others_stay(wrong: float) -> None:
    faces = soup(1, 6)
    image, z = faces.image.clone(), faces.z.clone()
    image[0, 2, 1, 0], z[1, 3, 2] = wrong, wrong
    kept = torch.ones(2, 6, dtype=torch.bool)
    kept[0, 2] = kept[1, 3] = False
    features = features_of(faces).requires_grad_()
    image.requires_grad_()
    found, index = rasterize(16, 16, z, image, features)
    expected, expected_index = rasterize(16, 16, faces.z, faces.image, features, kept)
    assert torch.equal(found, expected) and torch.equal(index, expected_index)
    torch.autograd.backward(found.sum())
    assert image.grad is not None and image.grad.isfinite().all()


def test_nothing_to_draw_is_an_empty_image() -> None:
    none = soup(0, 0)
    found, index = rasterize(4, 5, none.z, none.image, features_of(none, 2).requires_grad_())
    assert found.shape == (2, 4, 5, 2) and not found.any() and (index == -1).all()
    torch.autograd.backward(found.sum())
    faces = soup(0, 3)
    found, index = rasterize(4, 5, faces.z, faces.image, features_of(faces), torch.zeros(2, 3, dtype=torch.bool))
    assert not found.any() and (index == -1).all()
    assert rasterize(4, 5, faces.z[:0], faces.image[:0], features_of(faces)[:0])[0].shape == (0, 4, 5, 3)


def test_a_face_without_area_gives_numbers() -> None:
    line = one_face((-1.0, -1.0), (0.0, 0.0), (1.0, 1.0))
    image, features = line.image.requires_grad_(), features_of(line).requires_grad_()
    found, _ = rasterize(3, 3, line.z, image, features)
    torch.autograd.backward(found.sum())
    assert found.isfinite().all()
    assert image.grad is not None and image.grad.isfinite().all()


def by_autograd(size: tuple[int, int], image: Tensor, features: Tensor, index: Tensor, eps: float) -> Tensor:
    """Features of known winners by the formula of the weights, which autograd differentiates."""
    batch, row, column = (index >= 0).nonzero().unbind(1)
    face = index[batch, row, column]
    row, column = row.to(image.dtype), column.to(image.dtype)
    point = torch.stack([(2 * column + 1 - size[1]) / size[1], (size[0] - 2 * row - 1) / size[0]], dim=1)
    first, second, third = image[batch, face].unbind(1)
    m, n, s = second - first, third - first, point - first

    def cross(a: Tensor, b: Tensor) -> Tensor:
        return a[:, 0] * b[:, 1] - b[:, 0] * a[:, 1]

    area = cross(m, n)
    area = area + torch.copysign(torch.tensor(eps, dtype=area.dtype), area)
    w1, w2 = cross(s, n) / area, cross(m, s) / area
    weights = torch.stack([1 - w1 - w2, w1, w2], dim=1)
    out = torch.zeros((*index.shape, features.shape[3]), dtype=image.dtype)
    return out.index_put((index >= 0).nonzero(as_tuple=True), (weights[..., None] * features[batch, face]).sum(1))


@pytest.mark.parametrize("eps", [1e-8, 1e-3])
def test_gradients_are_those_of_the_formula_by_autograd(eps: float) -> None:
    faces = seen(*sphere(), CAMERAS)
    image, features = faces.image.requires_grad_(), features_of(faces).requires_grad_()
    found, index = rasterize(24, 30, faces.z, image, features, eps=eps)
    pull = torch.rand(found.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = torch.autograd.grad((by_autograd((24, 30), image, features, index, eps) * pull).sum(), (image, features))
    given = torch.autograd.grad((found * pull).sum(), (image, features))
    torch.testing.assert_close(given[0], expected[0], rtol=1e-9, atol=1e-9)
    if eps == 1e-8:  # what is drawn has the eps in scaled coordinates, where a large one counts for less
        torch.testing.assert_close(given[1], expected[1], rtol=1e-5, atol=1e-5)


def big_faces() -> Faces:
    """Two faces in space, whose edges keep away from the pixel centres of a 4 x 4 image."""
    return stacked(
        one_face((-1.6, -1.1), (1.7, -1.2), (0.1, 2.3), z=(-1.0, -2.0, -3.0)),
        one_face((-0.45, -1.4), (2.2, 0.1), (-0.4, 1.5), z=(-1.1, -1.2, -1.0)),
    )


@pytest.mark.parametrize("settings", [{}, {"perspective_correct": True}, {"perspective_correct": True, "grad_z": True}])
def test_gradients_are_those_of_finite_differences(settings: dict[str, Any]) -> None:
    faces = big_faces()

    def run(image: Tensor, features: Tensor, z: Tensor) -> Tensor:
        found: Tensor = rasterize(4, 4, z, image, features, **settings)[0]
        return found

    z = faces.z.clone().requires_grad_(bool(settings.get("grad_z")))
    assert set(rasterize(4, 4, z, faces.image, features_of(faces))[1].flatten().tolist()) == {0, 1, -1}
    assert torch.autograd.gradcheck(run, (faces.image.requires_grad_(), features_of(faces).requires_grad_(), z), atol=1e-5)


def test_depth_has_a_gradient_only_where_asked_for() -> None:
    faces = big_faces()
    z = faces.z.clone().requires_grad_()
    features = features_of(faces).requires_grad_()
    torch.autograd.backward(rasterize(4, 4, z, faces.image, features, perspective_correct=True)[0].sum())
    assert z.grad is None


def test_perspective_gives_what_a_ray_meets_in_space() -> None:
    """Corners in space, projected with a focal length of 1; the ray of a pixel meets the plane of the face where the feature is."""
    generator = torch.Generator().manual_seed(2)
    z = -1 - 3 * torch.rand(1, 6, 3, dtype=torch.float64, generator=generator)
    image = 2.4 * torch.rand(1, 6, 3, 2, dtype=torch.float64, generator=generator) - 1.2
    corners = torch.cat([image * -z[..., None], z[..., None]], dim=3)
    found, index = rasterize(21, 21, z, image, corners, perspective_correct=True)
    nearest = torch.full((21, 21), -torch.inf, dtype=torch.float64)
    for row, column in np.ndindex(21, 21):
        ray = np.array([(2 * column - 20) / 21, (20 - 2 * row) / 21, -1.0])
        hits = []
        for face, space in enumerate(corners[0].numpy()):
            weights = weights_at(image[0, face, None].numpy(), ray[:2])[0]
            normal = np.cross(space[1] - space[0], space[2] - space[0])
            hits.append(ray * (normal @ space[0]) / (normal @ ray) if weights.min() >= 0 else np.full(3, -np.inf))
        nearest[row, column] = max(hit[2] for hit in hits)
        if index[0, row, column] >= 0:
            np.testing.assert_allclose(found[0, row, column], hits[int(index[0, row, column])], atol=1e-9)
    shown = index[0] >= 0
    assert shown.float().mean() > 0.2
    torch.testing.assert_close(found[0, ..., 2][shown], nearest[shown], rtol=0, atol=1e-9)


def test_without_perspective_features_are_affine_on_the_screen() -> None:
    """A feature that is the image position itself comes out as the pixel's centre; with perspective only if depths are equal."""
    faces = big_faces()
    found, index = rasterize(4, 4, faces.z, faces.image, faces.image)
    row, column = (index[0] >= 0).nonzero().unbind(1)
    expected = torch.stack([(2 * column - 3) / 4, (3 - 2 * row) / 4], dim=1).double()
    torch.testing.assert_close(found[0, row, column], expected, rtol=0, atol=1e-9)


def test_supersampling_averages_the_features_and_keeps_the_index() -> None:
    faces = soup(3, 9)
    features = features_of(faces)
    _, index = rasterize(10, 14, faces.z, faces.image, features)
    fine, _ = rasterize(30, 42, faces.z, faces.image, features)
    found, face_idx = rasterize(10, 14, faces.z, faces.image, features, supersample=3)
    torch.testing.assert_close(found, fine.view(2, 10, 3, 14, 3, 3).mean(dim=(2, 4)))
    assert torch.equal(face_idx, index)


def test_the_multiplier_changes_rounding_alone() -> None:
    faces = seen(*sphere(), CAMERAS)
    features = features_of(faces)
    found, index = rasterize(20, 20, faces.z, faces.image, features)
    for multiplier in (1.0, 64.0):
        other, face_idx = rasterize(20, 20, faces.z, faces.image, features, multiplier=multiplier)
        assert torch.equal(face_idx, index)
        torch.testing.assert_close(other, found, rtol=0, atol=1e-5)


@pytest.fixture
def _deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("_deterministic")
def test_torch_may_be_told_to_be_deterministic() -> None:
    faces = soup(4, 20)
    runs = []
    for _ in range(2):
        image = faces.image.clone().requires_grad_()
        torch.autograd.backward(rasterize(16, 16, faces.z, image, features_of(faces))[0].square().sum())
        assert image.grad is not None
        runs.append(image.grad)
    assert torch.equal(*runs)


@pytest.mark.parametrize("backend", ["auto", "cuda", "torch"])
def test_every_backend_is_the_same_code(backend: str) -> None:
    faces = soup(0, 5)
    expected = rasterize(8, 8, faces.z, faces.image, features_of(faces))
    assert torch.equal(rasterize(8, 8, faces.z, faces.image, features_of(faces), backend=backend)[0], expected[0])


def test_wrong_calls_say_what_is_wrong() -> None:
    faces = soup(0, 5)
    features = features_of(faces)
    with pytest.raises(ValueError, match="backend 'opengl': give one of 'auto', 'cuda', 'torch'"):
        rasterize(8, 8, faces.z, faces.image, features, backend="opengl")
    for name in ("nvdiffrast", "nvdiffrast_fwd"):
        with pytest.raises(ConfigError, match="nvdiffrast is not used here; 'auto' runs"):
            rasterize(8, 8, faces.z, faces.image, features, backend=name)
    with pytest.raises(ConfigError, match=r"face_features is \(2, 4, 3, 3\)"):
        rasterize(8, 8, faces.z, faces.image, features[:, :4])
    with pytest.raises(ConfigError, match=r"face_vertices_z is \(2, 5, 2\)"):
        rasterize(8, 8, faces.z[..., :2], faces.image, features)
    with pytest.raises(ConfigError, match="valid_faces"):
        rasterize(8, 8, faces.z, faces.image, features, torch.ones(5, dtype=torch.bool))
    for z, held in ((faces.z.float(), features), (faces.z, features.float()), (faces.z, features.long())):
        with pytest.raises(ConfigError, match="give all in one floating dtype"):
            rasterize(8, 8, z, faces.image, held)
    with pytest.raises(ConfigError, match="face_features is empty"):
        rasterize(8, 8, faces.z, faces.image, [])
    with pytest.raises(ConfigError, match="0 x 8 pixels"):
        rasterize(0, 8, faces.z, faces.image, features)
    with pytest.raises(ConfigError, match="grad_z has no effect"):
        rasterize(8, 8, faces.z, faces.image, features, grad_z=True)
    with pytest.raises(ConfigError, match="near must be above 0, not None"):
        rasterize(8, 8, faces.z, faces.image, features, perspective_correct=True, near=None)
    with pytest.raises(ConfigError, match="multiplier 0: give a number above 0"):
        rasterize(8, 8, faces.z, faces.image, features, multiplier=0)
    with pytest.raises(ConfigError, match="supersample 0"):
        rasterize(8, 8, faces.z, faces.image, features, supersample=0)
