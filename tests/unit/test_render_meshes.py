"""Operators and losses of meshes against loops over vertices, edges and faces."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from scenemill.schemas.errors import ConfigError
from scenemill.trainers.render import (
    adjacency_matrix,
    average_edge_length,
    center_points,
    edge_to_faces,
    face_normals,
    flatness_loss,
    image_loss,
    index_vertices_by_faces,
    laplacian_loss,
    mask_iou,
    uniform_laplacian,
    uniform_laplacian_smoothing,
)
from tests.unit.naive_render import sphere

VERTICES = 9
face_lists = st.lists(st.lists(st.integers(0, VERTICES - 1), min_size=3, max_size=3, unique=True), min_size=1, max_size=8)


def neighbours(faces: list[list[int]]) -> list[set[int]]:
    found: list[set[int]] = [set() for _ in range(VERTICES)]
    for face in faces:
        for place, vertex in enumerate(face):
            other = face[(place + 1) % len(face)]
            found[vertex].add(other)
            found[other].add(vertex)
    return found


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None, max_examples=50)
@given(face_lists)
def test_neighbours_and_their_means_are_those_of_a_loop(faces: list[list[int]]) -> None:
    near = neighbours(faces)
    expected = [[float(other in near[vertex]) for other in range(VERTICES)] for vertex in range(VERTICES)]
    given_ = torch.tensor(faces)
    assert adjacency_matrix(VERTICES, given_, sparse=False).tolist() == expected
    sparse = adjacency_matrix(VERTICES, given_)
    assert sparse.is_sparse and sparse.is_coalesced() and sparse.to_dense().tolist() == expected
    vertices = random(2, VERTICES, 3)
    laplacian = uniform_laplacian(VERTICES, given_)
    thin = uniform_laplacian(VERTICES, given_, sparse=True)
    assert laplacian.dtype == torch.float32 and thin.is_sparse and torch.equal(thin.to_dense(), laplacian)
    means = torch.stack([vertices[:, sorted(near[v])].mean(1) if near[v] else vertices[:, v] * 0 for v in range(VERTICES)], dim=1)
    torch.testing.assert_close(laplacian.double() @ vertices, means - vertices, rtol=0, atol=1e-6)
    torch.testing.assert_close(uniform_laplacian_smoothing(vertices, given_), means, rtol=0, atol=1e-6)


def test_a_vertex_of_no_face_has_only_its_diagonal() -> None:
    laplacian = uniform_laplacian(4, torch.tensor([[0, 1, 2]]))
    assert laplacian[3].tolist() == [0, 0, 0, -1] and not laplacian[:3, 3].any()


def test_quads_have_four_edges() -> None:
    assert adjacency_matrix(4, torch.tensor([[0, 1, 2, 3]]), sparse=False).sum(1).tolist() == [2, 2, 2, 2]


def test_a_large_mesh_needs_no_dense_matrix() -> None:
    """200 000 vertices: a dense Laplacian would take 160 GB."""
    count = 200_000
    faces = torch.stack([torch.arange(count - 2), torch.arange(1, count - 1), torch.arange(2, count)], dim=1)
    vertices = torch.arange(count, dtype=torch.float32)[None, :, None].expand(-1, -1, 3)
    moved = laplacian_loss(vertices, torch.zeros(1, 1, 3), uniform_laplacian(count, faces, sparse=True))
    ends = 2 * ((3 / 2) ** 2 + (2 / 3) ** 2)  # of a strip, all but the two first and two last are the mean of their neighbours
    torch.testing.assert_close(moved, torch.tensor(3 * ends), rtol=1e-2, atol=0)


def test_corners_are_gathered_with_gradients() -> None:
    values = random(2, 5, 4).requires_grad_()
    faces = torch.tensor([[0, 1, 2, 2], [4, 3, 2, 1], [0, 0, 0, 0]])
    found = index_vertices_by_faces(values, faces)
    assert found.shape == (2, 3, 4, 4)
    for face, corner in torch.cartesian_prod(torch.arange(3), torch.arange(4)).tolist():
        assert torch.equal(found[:, face, corner], values[:, faces[face, corner]])
    slope = torch.autograd.grad(found.sum(), values)[0]
    assert slope[0, :, 0].tolist() == torch.bincount(faces.flatten()).tolist()


def test_normals_are_at_right_angles_and_as_long_as_twice_the_area() -> None:
    corners = random(2, 6, 3, 3)
    found, unit = face_normals(corners), face_normals(corners, unit=True)
    sides = corners - corners.roll(1, dims=2)
    torch.testing.assert_close((found[..., None, :] * sides).sum(-1), torch.zeros(2, 6, 3, dtype=torch.float64))
    lengths = sides.norm(dim=-1)
    half = lengths.sum(-1) / 2
    heron = (half * (half - lengths[..., 0]) * (half - lengths[..., 1]) * (half - lengths[..., 2])).sqrt()
    torch.testing.assert_close(found.norm(dim=-1), 2 * heron)
    torch.testing.assert_close(unit * found.norm(dim=-1, keepdim=True), found)
    assert face_normals(torch.zeros(1, 1, 3, 3), unit=True).tolist() == [[[0, 0, 0]]]
    with pytest.raises(NotImplementedError, match="faces of 4 corners") as caught:
        face_normals(torch.zeros(1, 1, 4, 3))
    assert isinstance(caught.value, ConfigError)


def test_edges_of_a_closed_mesh_have_two_faces() -> None:
    _, faces = sphere(5, 6)
    found = edge_to_faces(faces)
    by_edge: dict[frozenset[int], list[int]] = {}
    for face, corners in enumerate(faces.tolist()):
        for place in range(3):
            by_edge.setdefault(frozenset((corners[place], corners[place - 1])), []).append(face)
    expected = [by_edge[edge] for edge in sorted(by_edge, key=sorted)]
    assert found.tolist() == expected and len(found) == len(faces) * 3 // 2


def test_no_faces_have_no_edges() -> None:
    none = torch.zeros(0, 3, dtype=torch.int64)
    assert edge_to_faces(none).shape == (0, 2)
    assert not adjacency_matrix(3, none, sparse=False).any()
    assert torch.equal(uniform_laplacian(3, none), -torch.eye(3))


def test_an_open_mesh_has_edges_without_a_second_face() -> None:
    with pytest.raises(ConfigError, match=r"the edge of vertices 0 and 1 has 1 face\(s\), and 4 edges in all"):
        edge_to_faces(torch.tensor([[0, 1, 2], [2, 1, 3]]))
    with pytest.raises(ConfigError, match=r"has 3 face\(s\)"):
        edge_to_faces(torch.tensor([[0, 1, 2], [0, 2, 1], [1, 0, 2]]))


def test_points_are_centred_by_their_box() -> None:
    points = random(2, 20, 3)
    found = center_points(points)
    torch.testing.assert_close(found.amin(1), -found.amax(1))
    torch.testing.assert_close(found - found[:, :1], points - points[:, :1])
    unit = center_points(points, normalize=True)
    longest = (points.amax(1) - points.amin(1)).amax(1)
    torch.testing.assert_close(unit * longest[:, None, None], found)
    assert center_points(torch.ones(1, 3, 3), normalize=True).tolist() == [[[0.0] * 3] * 3]
    assert center_points(torch.tensor([[[0.0], [0.5]]]), normalize=True, eps=2.0).flatten().tolist() == [-0.125, 0.125]


def test_edge_lengths_of_a_right_triangle() -> None:
    vertices = torch.tensor([[[0.0, 0.0, 0.0], [3.0, 0.0, 0.0], [0.0, 4.0, 0.0]]])
    both = torch.cat([vertices, 2 * vertices])
    assert average_edge_length(both, torch.tensor([[0, 1, 2], [2, 1, 0]])).tolist() == [[4, 4], [8, 8]]


def test_intersection_over_union_is_that_of_sets() -> None:
    generator = torch.Generator().manual_seed(0)
    lhs, rhs = (torch.rand(3, 6, 5, generator=generator) > 0.4 for _ in range(2))
    expected = 1 - sum(float((a & b).sum() / (a | b).sum()) for a, b in zip(lhs, rhs, strict=True)) / 3
    pairs = [(lhs, rhs), (lhs.int(), rhs), (lhs.double(), rhs.double()), (lhs.float(), rhs.long())]
    for a, b in pairs:
        assert math.isclose(float(mask_iou(a, b)), expected, abs_tol=1e-6)
    assert mask_iou(lhs.double(), rhs).dtype == torch.float64
    for half in (torch.float16, torch.bfloat16):  # whose own sums would not see a pixel among thousands
        thick, thin = torch.ones(1, 80, 60, dtype=half), torch.ones(1, 80, 60, dtype=torch.bool)
        thin[0, 0, :48] = False
        assert torch.equal(mask_iou(thick, thin), torch.tensor(0.01).to(half))
    assert float(mask_iou(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2))) == 1
    soft = torch.rand(2, 3, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(lambda mask: mask_iou(mask, rhs[:2, :3, :4]), (soft,))
    with pytest.raises(ConfigError, match=r"\(3, 6, 5\) and \(2, 6, 5\)"):
        mask_iou(lhs, rhs[:2])


def test_an_image_loss_is_a_mean_of_differences() -> None:
    assert float(image_loss(torch.tensor([0.0, 1.0, 0.5]), torch.tensor([0.5, 0.0, 0.5]))) == 0.5
    with pytest.raises(ConfigError, match="give one shape"):
        image_loss(torch.zeros(2, 3), torch.zeros(3))


def test_the_laplacian_loss_is_the_sum_of_squares_of_uneven_moves() -> None:
    vertices, faces = sphere(4, 5)
    initial, laplacian = vertices[None], uniform_laplacian(len(vertices), faces)
    moved = initial + random(2, len(vertices), 3)
    shift = moved - initial
    expected = ((laplacian.double() @ shift) ** 2).mean() * len(vertices) * 3
    for matrix in (laplacian, uniform_laplacian(len(vertices), faces, sparse=True)):
        torch.testing.assert_close(laplacian_loss(moved, initial, matrix), expected)
    assert float(laplacian_loss(initial + 3.0, initial, laplacian)) < 1e-10
    gradient = torch.autograd.grad(laplacian_loss(moved.requires_grad_(), initial, laplacian.to_sparse()), moved)[0]
    assert gradient.any()


def test_a_flat_pair_costs_nothing_and_a_fold_by_its_angle() -> None:
    angle = math.pi / 3
    normals = torch.tensor([[[0.0, 0.0, 2.0], [0.0, 0.0, 0.5], [math.sin(angle), 0.0, math.cos(angle)]]])
    edges = torch.tensor([[0, 1], [0, 2]])
    torch.testing.assert_close(flatness_loss(normals, edges), torch.tensor(0.25))
    torch.testing.assert_close(flatness_loss(normals.expand(4, -1, -1), edges), torch.tensor(0.25))
