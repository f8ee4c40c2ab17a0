"""Cutting to budgets: everything is kept below them, and above them an even, true choice that says what was left out."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from scenemill.pipelines.viewer.cut import CORNER, FACE, VERTEX, cut_mesh, cut_points, cut_voxels
from scenemill.schemas.errors import SourceError

HERE = np.eye(4)


def wave(side: int) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """A square surface of quads: (side ** 2, 3) vertices, ((side - 1) ** 2, 4) faces."""
    x, z = np.meshgrid(np.linspace(0, 1, side), np.linspace(0, 1, side))
    vertices = np.stack([x, 0.1 * np.sin(6 * x), z], -1).reshape(-1, 3).astype(np.float32)
    number = np.arange(side * side, dtype=np.int32).reshape(side, side)
    faces = np.stack([number[:-1, :-1], number[:-1, 1:], number[1:, 1:], number[1:, :-1]], -1).reshape(-1, 4)
    return vertices, faces


def test_points_below_the_budget_are_all_there_each_with_its_own_values() -> None:
    points = np.random.default_rng(1).normal(size=(50, 3))
    part = cut_points(points, HERE, 50, colors=np.arange(150, dtype=np.uint8).reshape(50, 3), widths=None)
    order = np.lexsort(part.arrays["positions"].T)
    expected = np.lexsort(points.astype(np.float32).T)
    np.testing.assert_array_equal(part.arrays["positions"][order], points.astype(np.float32)[expected])
    np.testing.assert_array_equal(part.arrays["colors"][order], np.arange(150, dtype=np.uint8).reshape(50, 3)[expected])
    assert (part.present, part.shown, part.notes) == (50, 50, ()) and "widths" not in part.arrays


def test_points_above_the_budget_are_chosen_evenly_and_any_first_part_of_them_is_even_too() -> None:
    points = np.zeros((100_000, 3), np.float32)
    points[:, 0] = np.repeat([0, 1, 2, 3], 25_000)  # written one quarter after another
    part = cut_points(points, HERE, 8_000)
    assert (part.present, part.shown) == (100_000, 8_000)
    assert part.notes == ("8,000 of 100,000 points, an even choice",)
    for first in (8_000, 1_000):
        shares = np.bincount(part.arrays["positions"][:first, 0].astype(int), minlength=4) / first
        np.testing.assert_allclose(shares, 0.25, atol=0.06)


@given(st.sets(st.tuples(*[st.integers(-9, 9)] * 3), max_size=60), st.integers(8, 60))
def test_voxels_become_the_finest_blocks_that_fit_and_cover_every_voxel(occupied: set[tuple[int, int, int]], budget: int) -> None:
    voxels = np.array(sorted(occupied), np.int64).reshape(-1, 3)
    part = cut_voxels(voxels, HERE, budget)
    size = next(side for side in (1, 2, 4, 8, 16) if len({tuple(row) for row in (voxels // side).tolist()}) <= budget)
    assert {tuple(row) for row in part.arrays["positions"].tolist()} == {tuple(row) for row in (voxels // size).tolist()}
    for cell in part.arrays["positions"].astype(float):
        low, high = ((part.matrix @ np.r_[cell + reach, 1])[:3] for reach in (-0.5, 0.5))
        np.testing.assert_allclose([low, high], [size * cell - 0.5, size * (cell + 1) - 0.5])  # from its first voxel to its last
    assert (part.present, part.shown) == (len(voxels), len(part.arrays["positions"]))
    assert bool(part.notes) == (size > 1)


def test_a_block_has_the_values_of_its_first_voxel() -> None:
    voxels = np.array([[x, 0, 0] for x in range(20)])
    part = cut_voxels(voxels, HERE, 10, colors=np.arange(20, dtype=np.uint8)[:, None])
    assert part.arrays["positions"].tolist() == [[x, 0, 0] for x in range(10)]
    assert part.arrays["colors"].reshape(-1).tolist() == list(range(0, 20, 2))
    assert part.notes == ("20 voxels drawn as blocks of 2 a side",)


def test_voxel_indices_that_do_not_fit_are_refused() -> None:
    with pytest.raises(SourceError, match="32768"):
        cut_voxels(np.array([[0, 0, 32768]]), HERE, 10)


def test_faces_become_fans_and_every_attribute_stays_at_its_place() -> None:
    positions = np.random.default_rng(2).normal(size=(7, 3)).astype(np.float32)
    counts, indices = np.array([3, 5, 4]), np.array([0, 1, 2, 2, 3, 4, 5, 6, 6, 0, 1, 5])
    attributes = {
        "height": (np.arange(7.0), VERTEX),
        "face": (np.array([100, 200, 300]), FACE),
        "corner": (np.arange(12) * 10, CORNER),
    }
    part = cut_mesh(positions, counts, indices, attributes, HERE, 100)
    expected = []  # (corner numbers, face) of each triangle, by hand
    start = 0
    for face, count in enumerate(counts):
        expected += [((start, start + k, start + k + 1), face) for k in range(1, count - 1)]
        start += count
    assert part.arrays["indices"].tolist() == [[indices[c] for c in corners] for corners, _ in expected]
    assert part.arrays["face"].tolist() == [[100, 200, 300][face] for _, face in expected]
    assert part.arrays["corner"].tolist() == [10 * c for corners, _ in expected for c in corners]
    np.testing.assert_array_equal(part.arrays["positions"], positions)
    assert part.arrays["height"].tolist() == list(range(7))
    assert part.places == {"height": VERTEX, "face": FACE, "corner": CORNER} and part.shown == part.present == 6


@pytest.mark.parametrize("budget", [3000, 300])
def test_a_mesh_above_the_budget_keeps_its_shape_and_its_attributes(budget: int) -> None:
    positions, faces = wave(60)
    side_of_face = (positions[faces].mean(1)[:, 0] > 0.5).astype(np.int32)
    part = cut_mesh(positions, np.full(len(faces), 4), faces.reshape(-1), {"side": (side_of_face, FACE)}, HERE, budget)
    assert part.present == 2 * len(faces) and budget / 3 < part.shown <= budget
    assert part.notes and f"{part.shown:,} of {part.present:,}" in part.notes[0]
    drawn = part.arrays["positions"][part.arrays["indices"]]
    given = {tuple(row) for row in positions.tolist()}
    assert all(tuple(row) in given for row in drawn.reshape(-1, 3).tolist())  # no vertex is invented
    cell = 3 / np.sqrt(budget)
    np.testing.assert_allclose(drawn.reshape(-1, 3).min(0), positions.min(0), atol=cell)
    np.testing.assert_allclose(drawn.reshape(-1, 3).max(0), positions.max(0), atol=cell)
    area = np.linalg.norm(np.cross(drawn[:, 1] - drawn[:, 0], drawn[:, 2] - drawn[:, 0]), axis=1).sum() / 2
    corners = positions[faces]
    true = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 3] - corners[:, 0]), axis=1).sum()
    assert area == pytest.approx(true, rel=0.15)  # no holes, nothing twice
    wrong = (drawn.mean(1)[:, 0] > 0.5) != part.arrays["side"].astype(bool)
    assert (np.abs(drawn.mean(1)[wrong, 0] - 0.5) < 2 * cell).all()  # triangles keep the values of the faces they come from
    assert len(part.arrays["indices"]) == len(part.arrays["side"]) == part.shown


def test_vertices_of_no_triangle_are_not_sent_where_they_are_most() -> None:
    positions = np.arange(3000, dtype=np.float32).reshape(1000, 3)
    part = cut_mesh(positions, np.array([3]), np.array([10, 900, 500]), {"id": (np.arange(1000), VERTEX)}, HERE, 10)
    assert len(part.arrays["positions"]) == 3
    assert part.arrays["id"][part.arrays["indices"]].tolist() == [[10, 900, 500]]


def test_a_mesh_of_far_and_unknown_vertices_is_still_cut() -> None:
    positions, faces = wave(40)
    positions[5], positions[700] = np.nan, np.inf
    part = cut_mesh(positions, np.full(len(faces), 4), faces.reshape(-1), {}, HERE, 200)
    assert 0 < part.shown <= 200


@pytest.mark.parametrize(
    ("counts", "indices", "told"),
    [([3, 3], [0, 1, 2], "6 corners in all, 3 indices"), ([3], [0, 1, 9], "vertex 9"), ([3], [0, -1, 2], "vertex")],
)
def test_faces_that_do_not_fit_their_vertices_are_refused(counts: Any, indices: Any, told: str) -> None:
    with pytest.raises(SourceError, match=told):
        cut_mesh(np.zeros((3, 3), np.float32), np.array(counts), np.array(indices), {}, HERE, 10)


def test_nothing_is_cut_to_nothing() -> None:
    none = np.zeros((0, 3), np.float32)
    assert cut_points(none, HERE, 5).shown == cut_voxels(none.astype(int), HERE, 5).shown == 0
    assert cut_mesh(none, np.zeros(0, int), np.zeros(0, int), {}, HERE, 5).arrays["indices"].shape == (0, 3)
