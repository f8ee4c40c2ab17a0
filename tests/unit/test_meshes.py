"""Meshes of volumes: closed shells at the level, each point of what it encloses, where the camera sees it; PLY files read back by hand."""

import struct
from collections import Counter
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial import KDTree

from scenemill.schemas.errors import ConfigError
from scenemill.schemas.labels import CEILING, FLOOR, LABELS, WALL
from scenemill.schemas.sample import Sample
from scenemill.trainers.segments import segments_from_labels
from scenemill.transforms.geometry import camera_index, voxel_size_m
from scenemill.transforms.meshes import UNLABELLED, PanopticMesh, panoptic_mesh, to_ply, upright, write_ply
from scenemill.transforms.sources import Listed, Source, list_samples, open_source, read_sample

CHAIR, SOFA = 3, 4
HERE = np.zeros(3)  # a camera in the first voxel
Volume = NDArray[np.float32]


def mesh_of(
    distance: Volume, panoptic: NDArray[Any] | None = None, classes: dict[int, int] | None = None, iso: float = 1.0
) -> PanopticMesh:
    """With voxels of a metre and the camera in the first one, vertices are indices."""
    panoptic = np.zeros(distance.shape, np.int32) if panoptic is None else panoptic
    return panoptic_mesh(distance, panoptic, classes or {}, iso=iso, voxel_m=1.0, centre=HERE)


def distance_to_sphere(grid: int, middle: float, radius: float) -> Volume:
    axes = np.meshgrid(*[np.arange(grid, dtype=np.float64)] * 3, indexing="ij")
    return np.asarray(np.sqrt(sum((axis - middle) ** 2 for axis in axes)) - radius, np.float32)


def noise(seed: int, grid: int = 5) -> Volume:
    return np.random.default_rng(seed).uniform(-2, 2, (grid,) * 3).astype(np.float32)


def enclosed_volume(mesh: PanopticMesh) -> float:
    """By tetrahedra to the first voxel; positive where triangles turn counter-clockwise as seen from outside."""
    a, b, c = np.moveaxis(mesh.vertices[mesh.faces].astype(np.float64), 1, 0)
    return float(np.sum(a * np.cross(b, c)) / 6)


def edges_of(mesh: PanopticMesh) -> Counter[tuple[int, int]]:
    return Counter((int(face[i]), int(face[(i + 1) % 3])) for face in mesh.faces for i in range(3))


def check_closed(mesh: PanopticMesh) -> None:
    edges = edges_of(mesh)
    assert set(edges.values()) <= {1}
    assert {(end, start) for start, end in edges} == set(edges)


def voxels_around(vertex: NDArray[np.float32]) -> list[tuple[int, ...]]:
    """Those less than a voxel away along every axis: the ends of the edge that the vertex lies on, or the corners of its cell."""
    near = [[i for i in range(int(at) - 1, int(at) + 3) if abs(i - at) < 1] for at in vertex]
    return list(product(*near))


# --- the shell


def test_the_shell_of_a_plane_is_two_levels_thick() -> None:
    distance = np.broadcast_to(np.abs(np.arange(9) - 4.35), (6, 6, 9)).astype(np.float32)
    mesh = mesh_of(distance, iso=0.75)
    within = [vertex for vertex in mesh.vertices.tolist() if 0 <= min(vertex[:2]) <= max(vertex[:2]) <= 5]
    assert {round(vertex[2], 5) for vertex in within} == {3.6, 5.1} and len(within) == 2 * 36


def test_a_vertex_is_in_the_camera_frame_in_metres() -> None:
    distance = np.full((4, 5, 6), 3, np.float32)
    distance[1, 2, 3] = 0  # the level is a third of the way to each neighbour
    centre = np.array([0.5, 1.5, -2.0])
    mesh = panoptic_mesh(distance, np.zeros(distance.shape, int), {}, iso=1.0, voxel_m=0.03, centre=centre)
    third = 1 / 3
    around = [(1 + third, 2, 3), (1 - third, 2, 3), (1, 2 + third, 3), (1, 2 - third, 3), (1, 2, 3 + third), (1, 2, 3 - third)]
    expected = [[(at - middle) * 0.03 for at, middle in zip(place, centre, strict=True)] for place in around]
    assert sorted(mesh.vertices.tolist()) == pytest.approx(np.array(sorted(expected)), abs=1e-6)
    assert mesh.vertices.dtype == np.float32 and mesh.faces.dtype == np.int32 and mesh.faces.shape == (8, 3)


def test_the_shell_of_a_sphere_encloses_what_lies_between_two_spheres() -> None:
    mesh = mesh_of(distance_to_sphere(32, 15.4, 10.0), iso=1.5)
    radius = np.linalg.norm(mesh.vertices - 15.4, axis=1)
    assert np.abs(np.abs(radius - 10.0) - 1.5).max() < 0.05
    assert enclosed_volume(mesh) == pytest.approx(4 / 3 * np.pi * (11.5**3 - 8.5**3), rel=0.01)
    check_closed(mesh)


def test_the_sign_of_a_distance_makes_no_difference() -> None:
    signed = distance_to_sphere(16, 7.4, 4.0)
    assert (signed < -1).any()
    one, other = mesh_of(signed), mesh_of(np.abs(signed))
    assert np.array_equal(one.vertices, other.vertices) and np.array_equal(one.faces, other.faces)


@settings(deadline=None)
@given(st.integers(0, 10**9))
def test_any_shell_is_closed_and_turns_outwards(seed: int) -> None:
    mesh = mesh_of(noise(seed))
    check_closed(mesh)
    assert enclosed_volume(mesh) > 0
    assert mesh.vertices.min() > -1 and mesh.vertices.max() < 5  # less than a voxel beyond the grid


@settings(deadline=None)
@given(st.integers(0, 10**9))
def test_vertices_on_edges_are_where_the_distance_is_the_level(seed: int) -> None:
    distance = np.pad(np.abs(noise(seed)), 1, constant_values=2)
    for vertex in mesh_of(distance).vertices:
        ends = voxels_around(vertex)
        if len(ends) == 2:
            part = float(np.abs(vertex - ends[0]).sum())
            value = (1 - part) * distance[ends[0]] + part * distance[ends[1]]
            assert value == pytest.approx(1, abs=2e-3)


def test_where_a_surface_leaves_the_grid_the_shell_is_closed() -> None:
    distance = np.broadcast_to(np.abs(np.arange(8) - 3.3), (5, 5, 8)).astype(np.float32)
    mesh = mesh_of(distance)
    check_closed(mesh)
    assert 2 * 4 * 4 < enclosed_volume(mesh) < 2 * 6 * 6


def test_a_level_within_voxels_leaves_no_triangle_without_area() -> None:
    distance = np.full((7, 7, 7), 3, np.float32)
    distance[2:5, 2:5, 2:5], distance[3, 3, 3] = 1, 0  # whole numbers: the level runs through voxels
    mesh = mesh_of(distance, np.where(distance < 1, 8, 0), {8: CHAIR})
    corners = mesh.vertices[mesh.faces].astype(np.float64)
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1) / 2
    assert area.min() > 0
    assert set(mesh.segments.tolist()) == {8}
    check_closed(mesh)


def test_what_lies_around_the_shell_changes_nothing() -> None:
    small, around = noise(5), np.full((16, 12, 14), 2.0, np.float32)
    small[[0, -1]] = small[:, [0, -1]] = small[:, :, [0, -1]] = 2.0
    around[6:11, 4:9, 7:12] = small
    ids = np.arange(small.size).reshape(small.shape)
    ids_around = np.zeros(around.shape, int)
    ids_around[6:11, 4:9, 7:12] = ids
    one, other = mesh_of(small, ids), mesh_of(around, ids_around)
    np.testing.assert_allclose(other.vertices, one.vertices + (6, 4, 7), atol=1e-6)
    assert np.array_equal(one.faces, other.faces) and np.array_equal(one.segments, other.segments)


@pytest.mark.parametrize("everywhere", [3, 1, -1, -3])
def test_a_volume_without_a_surface_is_an_empty_mesh(everywhere: int) -> None:
    mesh = mesh_of(np.full((4, 4, 4), everywhere, np.float32))
    assert [array.shape for array in (mesh.vertices, mesh.faces, mesh.colors)] == [(0, 3)] * 3
    assert mesh.classes.shape == mesh.segments.shape == mesh.face_classes.shape == (0,)
    assert mesh.vertices.dtype == np.float32 and mesh.faces.dtype == np.int32


# --- what it is of


@settings(deadline=None)
@given(st.integers(0, 10**9))
def test_a_vertex_is_of_the_voxel_it_encloses(seed: int) -> None:
    distance = np.pad(np.abs(noise(seed, 4)), 1, constant_values=2)
    ids = np.arange(1, distance.size + 1).reshape(distance.shape)
    mesh = mesh_of(distance, ids)
    for vertex, segment in zip(mesh.vertices, mesh.segments, strict=True):
        nearest = min(voxels_around(vertex), key=lambda voxel: float(distance[voxel]))
        assert distance[nearest] < 1 and segment == ids[nearest]


def test_things_of_one_class_have_one_colour_and_ids_of_their_own() -> None:
    distance = np.full((9, 5, 5), 3, np.float32)
    distance[2, 2, 2] = distance[6, 2, 2] = 0
    panoptic = np.zeros(distance.shape, np.uint16)
    panoptic[2, 2, 2], panoptic[6, 2, 2] = 7, 40_000
    mesh = mesh_of(distance, panoptic, {40_000: SOFA, 7: SOFA})
    assert mesh.segments.tolist() == [7 if x < 4 else 40_000 for x in mesh.vertices[:, 0]]
    assert set(mesh.classes.tolist()) == {SOFA}
    assert mesh.colors.tolist() == [list(LABELS[SOFA].color)] * 12


def test_a_class_of_a_label_map_has_its_colour() -> None:
    distance = distance_to_sphere(9, 4.0, 2.0)
    labels = [replace(label, color=(label.id, 2, 3)) for label in LABELS[: SOFA + 1]]
    everywhere = np.ones(distance.shape, int)
    mesh = panoptic_mesh(distance, everywhere, {1: SOFA}, iso=1.0, voxel_m=1.0, centre=HERE, labels=labels)
    assert {tuple(color) for color in mesh.colors.tolist()} == {(SOFA, 2, 3)}
    with pytest.raises(ConfigError, match="0 to 4"):
        panoptic_mesh(distance, everywhere, {1: SOFA + 1}, iso=1.0, voxel_m=1.0, centre=HERE, labels=labels)


@pytest.mark.parametrize(("segment", "classes"), [(0, {}), (0, {1: CHAIR}), (5, {1: CHAIR}), (5, {5: 0})])
def test_what_has_no_class_is_grey(segment: int, classes: dict[int, int]) -> None:
    distance = distance_to_sphere(9, 4.0, 2.0)
    mesh = mesh_of(distance, np.full(distance.shape, segment), classes)
    assert set(mesh.segments.tolist()) == {segment} and set(mesh.classes.tolist()) == {0}
    assert {tuple(color) for color in mesh.colors.tolist()} == {UNLABELLED}


def test_no_class_has_the_colour_of_none() -> None:
    assert UNLABELLED not in [label.color for label in LABELS]


def test_a_face_is_of_the_class_that_most_of_its_corners_have() -> None:
    corners = list(product((1, 2, 3), repeat=3))
    faces = np.arange(81, dtype=np.int32).reshape(27, 3)
    classes = np.array(corners, np.int32).reshape(-1)
    mesh = PanopticMesh(np.zeros((81, 3), np.float32), faces, np.zeros((81, 3), np.uint8), classes, classes)
    assert mesh.face_classes.tolist() == [Counter(three).most_common(1)[0][0] for three in corners]


# --- where it is


def nearest_class(sample: Sample, source: str, grid: int) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """For every eighth pixel: the distance from the point that it sees to the nearest vertex, the class there, and its own class."""
    segments = segments_from_labels(sample["semantic_3d"], sample["instance_3d"], (WALL, FLOOR, CEILING))
    intrinsics, size, voxel = sample["intrinsics"], (320, 240), voxel_size_m(grid)
    centre = camera_index(source, intrinsics, size, grid)
    classes = dict(enumerate(segments.classes, 1))
    mesh = panoptic_mesh(sample["geometry"], segments.index, classes, iso=1.0, voxel_m=voxel, centre=centre)
    v, u = np.mgrid[4:240:8, 4:320:8]
    seen = np.stack([u, v, np.ones_like(u)], axis=-1) @ np.linalg.inv(intrinsics[:3, :3]).T * sample["depth"][v, u][..., None]
    away, vertex = KDTree(mesh.vertices).query(seen.reshape(-1, 3))
    return away, mesh.classes[vertex].astype(np.int64), sample["semantic_2d"][v, u].reshape(-1).astype(np.int64)


def check_seen(sample: Sample, source: str, grid: int) -> None:
    away, found, own = nearest_class(sample, source, grid)
    assert np.mean(away < 1.5 * voxel_size_m(grid)) > 0.9  # within the shell or at it; the rest lies outside the volume
    known = (own > 0) & (away < 1.5 * voxel_size_m(grid))
    assert np.mean(found[known] == own[known]) > 0.9


@pytest.mark.parametrize("source", ["front3d", "matterport"])
def test_a_made_up_view_sees_its_mesh_where_its_depth_is(source: str, front3d_world: Path, matterport_world: Path) -> None:
    root = front3d_world if source == "front3d" else matterport_world
    listed, _ = list_samples(source, root)
    sample, _ = read_sample(open_source(source, root, listed), listed[0])
    check_seen(sample, source, 64)


@pytest.mark.real
def test_a_real_view_sees_its_mesh_where_its_depth_is(real_data: Path) -> None:
    source = Source("front3d", real_data / "data" / "front3d", 256, (240, 320))
    sample, _ = read_sample(source, Listed("front3d-sample/0007", ()))
    check_seen(sample, "front3d", 256)


def test_an_upright_mesh_is_turned_not_mirrored() -> None:
    mesh = mesh_of(distance_to_sphere(12, 5.4, 3.0))
    turned = upright(mesh)
    assert np.array_equal(turned.vertices, np.stack([mesh.vertices[:, 0], -mesh.vertices[:, 1], -mesh.vertices[:, 2]], axis=1))
    assert enclosed_volume(turned) == pytest.approx(enclosed_volume(mesh)) and enclosed_volume(mesh) > 0
    assert turned.faces is mesh.faces and turned.segments is mesh.segments


# --- what is refused


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"distance": np.ones((2, 3, 4), np.float32)}, "one shape"),
        ({"distance": np.ones((3, 3), np.float32), "panoptic": np.ones((3, 3), int)}, "one shape"),
        ({"distance": np.full((3, 3, 3), np.nan, np.float32)}, "finite"),
        ({"distance": np.full((3, 3, 3), np.inf, np.float32)}, "finite"),
        ({"panoptic": np.ones((3, 3, 3), np.float32)}, "integers"),
        ({"panoptic": np.full((3, 3, 3), 2**31)}, "32 bits"),
        ({"iso": 0.0}, "above 0"),
        ({"iso": float("nan")}, "above 0"),
        ({"voxel_m": -0.03}, "above 0"),
        ({"classes": {1: 13}}, "{1: 13}"),
        ({"classes": {1: -1}}, "{1: -1}"),
        ({"classes": {0: CHAIR}}, "{0: 3}"),
    ],
)
def test_what_cannot_be_a_mesh_is_refused(change: dict[str, Any], told: str) -> None:
    given: dict[str, Any] = {
        "distance": np.zeros((3, 3, 3), np.float32),
        "panoptic": np.ones((3, 3, 3), int),
        "classes": {1: CHAIR},
        "iso": 1.0,
        "voxel_m": 0.03,
        "centre": HERE,
    }
    assert len(panoptic_mesh(**given).faces)
    with pytest.raises(ConfigError, match=told):
        panoptic_mesh(**(given | change))


# --- PLY


def read_ply(data: bytes) -> tuple[list[dict[str, float]], list[list[int]]]:
    """Vertices and faces by the header's own words, one value after the other."""
    head, body = data.split(b"end_header\n", 1)
    lines = [line.split() for line in head.decode().splitlines() if not line.startswith("comment")]
    assert lines[:2] == [["ply"], ["format", "binary_little_endian", "1.0"]]
    codes = {"float": "<f", "uchar": "<B", "int": "<i"}
    tables: dict[str, list[Any]] = {}
    at = 0

    def take(kind: str) -> Any:
        nonlocal at
        (value,) = struct.unpack_from(codes[kind], body, at)
        at += struct.calcsize(codes[kind])
        return value

    starts = [row for row, line in enumerate(lines) if line[0] == "element"]
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        _, name, count = lines[start]
        properties = lines[start + 1 : end]
        tables[name] = [
            {
                words[-1]: [take(words[3]) for _ in range(take(words[2]))] if words[1] == "list" else take(words[1])
                for words in properties
            }
            for _ in range(int(count))
        ]
    assert at == len(body)
    return tables["vertex"], [face["vertex_indices"] for face in tables["face"]]


def test_a_ply_file_holds_the_mesh(tmp_path: Path) -> None:
    distance = distance_to_sphere(10, 4.4, 2.0)
    mesh = mesh_of(distance, np.arange(1000).reshape(distance.shape), {segment: 1 + segment % 12 for segment in range(1, 1000)})
    write_ply(tmp_path / "mesh.ply", mesh)
    vertices, faces = read_ply((tmp_path / "mesh.ply").read_bytes())
    assert faces == mesh.faces.tolist() and len(faces) > 100
    assert [[vertex[axis] for axis in "xyz"] for vertex in vertices] == mesh.vertices.tolist()
    assert [[vertex[channel] for channel in ("red", "green", "blue")] for vertex in vertices] == mesh.colors.tolist()
    assert [vertex["semantic_id"] for vertex in vertices] == mesh.classes.tolist()
    assert [vertex["segment_id"] for vertex in vertices] == mesh.segments.tolist()
    assert [path.name for path in tmp_path.iterdir()] == ["mesh.ply"]


def test_an_empty_mesh_is_a_legal_ply_file() -> None:
    assert read_ply(to_ply(mesh_of(np.full((4, 4, 4), 3, np.float32)))) == ([], [])
