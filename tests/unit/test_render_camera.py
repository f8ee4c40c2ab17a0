"""Cameras: numbers that are arithmetic, and what holds of any camera."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from scenemill.schemas.errors import ConfigError
from scenemill.trainers.render import (
    face_normals,
    generate_perspective_projection,
    generate_rotate_translate_matrices,
    generate_transformation_matrix,
    perspective_camera,
    prepare_vertices,
    rotate_translate_points,
)

UP = torch.tensor([[0.0, 1.0, 0.0]], dtype=torch.float64)


def cameras(seed: int, count: int = 3) -> tuple[Tensor, Tensor]:
    """Positions on all sides, and what they look at near the origin; never straight up or down."""
    generator = torch.Generator().manual_seed(seed)
    position = torch.nn.functional.normalize(torch.randn(count, 3, dtype=torch.float64, generator=generator), dim=1)
    position = position * torch.tensor([4.0, 1.5, 4.0], dtype=torch.float64) + torch.tensor([2.0, 0.0, 2.0], dtype=torch.float64)
    return position, 0.3 * torch.randn(count, 3, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_projection_of_45_degrees_for_four_thirds(dtype: torch.dtype) -> None:
    found = generate_perspective_projection(math.pi / 4, 4 / 3, dtype)
    expected = torch.tensor([[1.810660171779821], [2.414213562373095], [-1.0]], dtype=dtype)  # 1 + sqrt 2, and 3/4 of it
    assert found.dtype == dtype and found.shape == (3, 1)
    torch.testing.assert_close(found, expected)


def test_the_field_of_view_spans_the_image() -> None:
    """At 3 in front of a camera of 90 degrees and ratio 2 one sees 3 up and 6 to the right."""
    projection = generate_perspective_projection(math.pi / 2, 2.0)
    points = torch.tensor([[[6.0, 3.0, -3.0], [-6.0, 0.0, -3.0], [0.0, -1.5, -3.0]]])
    expected = torch.tensor([[[1.0, 1.0], [-1.0, 0.0], [0.0, -0.5]]])
    torch.testing.assert_close(perspective_camera(points, projection), expected)
    both = perspective_camera(points.expand(2, -1, -1), torch.stack([projection, 2 * projection]))
    torch.testing.assert_close(both, expected.expand(2, -1, -1))


def test_a_camera_on_the_z_axis_is_the_world_moved() -> None:
    position, origin = torch.tensor([[0.0, 0.0, 4.0]]), torch.zeros(1, 3)
    rotation, translation = generate_rotate_translate_matrices(position, origin, UP.float())
    assert torch.equal(rotation[0], torch.eye(3)) and torch.equal(translation, position)
    matrix = generate_transformation_matrix(position, origin, UP.float())
    assert torch.equal(matrix[0], torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, -4]]))


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000))
def test_the_matrix_and_the_pair_of_rotation_and_position_agree(seed: int) -> None:
    position, look_at = cameras(seed)
    points = torch.randn(3, 7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    matrix = generate_transformation_matrix(position, look_at, UP)
    rotation, translation = generate_rotate_translate_matrices(position, look_at, UP)
    expected = torch.cat([points, torch.ones_like(points[..., :1])], dim=2) @ matrix
    for trans in (translation, translation[..., None]):
        torch.testing.assert_close(rotate_translate_points(points, rotation, trans), expected, rtol=0, atol=1e-8)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000))
def test_what_a_camera_looks_at_is_straight_ahead_and_up_is_up(seed: int) -> None:
    position, look_at = cameras(seed)
    matrix = generate_transformation_matrix(position, look_at, UP)
    points = torch.stack([position, look_at, look_at + UP], dim=1)
    origin, target, above = (torch.cat([points, torch.ones_like(points[..., :1])], dim=2) @ matrix).unbind(1)
    distance = (position - look_at).norm(dim=1)
    torch.testing.assert_close(origin, torch.zeros_like(origin), rtol=0, atol=1e-12)
    torch.testing.assert_close(target, torch.stack([0 * distance, 0 * distance, -distance], dim=1), rtol=0, atol=1e-12)
    assert (above[:, 0].abs() < 1e-12).all() and (above[:, 1] > 0).all()
    torch.testing.assert_close(torch.linalg.det(matrix[:, :3]), torch.ones(3, dtype=torch.float64))


def test_one_direction_is_repeated_for_many_cameras_and_the_reverse() -> None:
    position, look_at = cameras(0)
    for make in (generate_transformation_matrix, generate_rotate_translate_matrices):
        many = make(position, look_at, UP.expand(3, -1))
        torch.testing.assert_close(make(position, look_at, UP), many)
        ups = torch.cat([UP, -UP])
        one, all_of = make(position[:1], look_at[:1], ups), make(position[:1].expand(2, -1), look_at[:1].expand(2, -1), ups)
        torch.testing.assert_close(one[0], all_of[0])


def test_faces_come_out_in_camera_space_and_on_the_image_in_both_ways() -> None:
    position, look_at = cameras(4)
    vertices = torch.randn(3, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    faces = torch.tensor([[0, 1, 2], [4, 2, 1]])
    projection = generate_perspective_projection(math.pi / 4, 1.5, torch.float64)
    matrix = generate_transformation_matrix(position, look_at, UP)
    corners, image, normals = prepare_vertices(vertices, faces, projection, camera_transform=matrix)
    rotation, translation = generate_rotate_translate_matrices(position, look_at, UP)
    for other, held in zip(
        prepare_vertices(vertices, faces, projection, rotation, translation), (corners, image, normals), strict=True
    ):
        torch.testing.assert_close(other, held, rtol=1e-7, atol=1e-7)
    for batch, face, corner in torch.cartesian_prod(torch.arange(3), torch.arange(2), torch.arange(3)).tolist():
        vertex = vertices[batch, faces[face, corner]]
        seen = vertex @ matrix[batch, :3] + matrix[batch, 3]
        torch.testing.assert_close(corners[batch, face, corner], seen)
        on_image = torch.stack([seen[0] * projection[0, 0], seen[1] * projection[1, 0]]) / -seen[2]
        torch.testing.assert_close(image[batch, face, corner], on_image)
    torch.testing.assert_close(normals, face_normals(corners, unit=True))
    assert torch.autograd.grad(image.sum(), vertices)[0].any()


def test_a_face_whose_corners_turn_left_shows_its_front() -> None:
    vertices = torch.tensor([[[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]])
    matrix = generate_transformation_matrix(torch.tensor([[0.0, 0.0, 4.0]]), torch.zeros(1, 3), UP.float())
    projection = generate_perspective_projection(math.pi / 4)
    normals = prepare_vertices(vertices, torch.tensor([[0, 1, 2], [0, 2, 1]]), projection, camera_transform=matrix)[2]
    assert normals[0].tolist() == [[0, 0, 1], [0, 0, -1]]


def test_no_camera_or_two_are_refused() -> None:
    vertices, faces, projection = torch.zeros(1, 3, 3), torch.tensor([[0, 1, 2]]), generate_perspective_projection(1.0)
    rotation, position, matrix = torch.eye(3)[None], torch.zeros(1, 3), torch.zeros(1, 4, 3)
    for given_ in ({}, {"camera_rot": rotation}, {"camera_trans": position}):
        with pytest.raises(AssertionError, match="no camera: give camera_transform, or both"):
            prepare_vertices(vertices, faces, projection, **given_)
    for given_ in ({"camera_rot": rotation, "camera_trans": position}, {"camera_trans": position}):
        with pytest.raises(AssertionError, match="two cameras") as caught:
            prepare_vertices(vertices, faces, projection, camera_transform=matrix, **given_)
        assert isinstance(caught.value, ConfigError)
