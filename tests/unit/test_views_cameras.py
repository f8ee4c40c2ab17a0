"""Cameras of views: what the metadata say, in the terms of the other sources, and out of other forms."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scenemill.schemas.errors import ConfigError, SourceError
from scenemill.trainers.render.camera import generate_transformation_matrix
from scenemill.transforms.view_cameras import (
    ViewMetadata,
    cameras_around,
    field_of_view,
    field_of_view_of,
    intrinsics_of,
    looking_at,
    metadata_document,
    projection_of,
    read_camera_set,
    read_metadata,
    world_from_camera_of,
)

SIZES = st.integers(2, 2000)
ANGLES = st.floats(0.1, 2.5)


def document(**changed: Any) -> dict[str, Any]:
    """A metadata document, some entries of its camera replaced; None takes one out."""
    camera = {
        "resolution": {"width": 40, "height": 30},
        "clipping_range": [0.5, 9.0],
        "horizontal_aperture": 20.0,
        "focal_length": 10.0,
        "tf_mat": [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [1, 2, -5, 1]],
        **changed,
    }
    camera = {name: value for name, value in camera.items() if value is not None}
    return {"camera_properties": camera, "asset_transforms": [["a.usd", np.eye(4).tolist()]]}


def read(found: object) -> ViewMetadata:
    return read_metadata(json.dumps(found).encode())


def turned(seed: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """A rotation."""
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    rotation: np.ndarray[Any, np.dtype[np.float64]] = q * np.sign(np.linalg.det(q))
    return rotation


def test_metadata_say_camera_size_range_and_assets() -> None:
    found = read(document())
    assert found.transform.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 2, -5]]
    assert found.projection.ravel() == pytest.approx([1.0, 40 / 30, -1.0])  # aperture twice the focal length: 90 degrees
    assert (found.image, found.clipping_range, found.boxes) == ((30, 40), (0.5, 9.0), {})
    assert [(name, matrix.tolist()) for name, matrix in found.assets] == [("a.usd", np.eye(4).tolist())]


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ([], "camera_properties"),
        ({"camera_properties": 3}, "camera_properties '3'"),
        (document(resolution=None), "resolution 'None'"),
        (document(resolution={"width": 40}), "height 'None'"),
        (document(resolution={"width": 40.5, "height": 30}), "width '40.5'"),
        (document(resolution={"width": True, "height": 30}), "width 'True'"),
        (document(resolution={"width": 0, "height": 30}), "resolution 0 x 30"),
        (document(resolution={"width": 1 << 20, "height": 30}), "1 to 32768 pixels"),
        (document(tf_mat=None), "tf_mat 'None'"),
        (document(tf_mat=[[1, 2], [3, 4]]), "4 x 4 finite numbers"),
        (document(tf_mat=[[1, 0, 0, 0]] * 3 + [[1, 2]]), "4 x 4 finite numbers"),
        (document(tf_mat=[["1"] * 4] * 4), "4 x 4 finite numbers"),
        (document(tf_mat=[[1, 0, 0, float("nan")]] * 4), "4 x 4 finite numbers"),
        (document(tf_mat=np.eye(4).tolist()[:3] + [[1.0, 2.0, 3.0, 2.0]]), "last column"),
        (document(tf_mat=np.array([[1, 0, 0, 5], [0, 1, 0, 5], [0, 0, 1, 5], [0, 0, 0, 1]]).tolist()), "a matrix for rows"),
        (document(focal_length=0), "both above 0"),
        (document(focal_length=1e308, horizontal_aperture=1e-308), "an angle of view"),
        (document(focal_length="24"), "one finite number"),
        (document(horizontal_aperture=-1), "both above 0"),
        (document(clipping_range=[1]), "2 finite numbers"),
        ({**document(), "asset_transforms": None}, "asset_transforms 'None'"),
        ({**document(), "asset_transforms": [["a"]]}, "name, 4 x 4 matrix"),
        ({**document(), "asset_transforms": [["a", [1]]]}, "asset_transforms '\\[1\\]'"),
    ],
)
def test_a_wrong_entry_is_refused_by_name(found: object, said: str) -> None:
    with pytest.raises(SourceError, match=said):
        read(found)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_bytes_that_are_no_json_are_refused(data: bytes) -> None:
    with pytest.raises(SourceError, match="no readable JSON"):
        read_metadata(data)


@given(ANGLES, SIZES, SIZES, st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_a_written_document_reads_back_as_the_same_camera(fov: float, height: int, width: int, seed: int) -> None:
    transform = np.concatenate([turned(seed), np.random.default_rng(seed).normal(size=(1, 3))])
    boxes = {"bbox_2d_tight": [1], "bbox_2d_loose": []}
    written = ViewMetadata(transform, projection_of(fov, (height, width)), (height, width), (0.5, 7.0), (("x", np.eye(4)),), boxes)
    found = read(metadata_document(written))
    np.testing.assert_array_equal(found.transform, written.transform)
    np.testing.assert_allclose(found.projection, written.projection, rtol=1e-12)
    assert (found.image, found.clipping_range, found.boxes) == (written.image, written.clipping_range, boxes)


@given(ANGLES, SIZES, SIZES)
def test_the_horizontal_angle_spans_the_width_and_pixels_are_square(fov: float, height: int, width: int) -> None:
    scale_x, scale_y, sign = projection_of(fov, (height, width)).ravel()
    assert math.tan(fov / 2) * scale_x == pytest.approx(1.0)  # a point at half the angle lies on the right edge
    assert scale_x * width == pytest.approx(scale_y * height)
    assert sign == -1
    assert field_of_view_of(projection_of(fov, (height, width))) == pytest.approx(fov)


def test_the_legacy_projection_takes_the_angle_for_the_vertical_one() -> None:
    tangent = math.tan(0.4)
    assert projection_of(0.8, (30, 40), legacy=True).ravel() == pytest.approx([30 / 40 / tangent, 1 / tangent, -1])
    np.testing.assert_array_equal(projection_of(0.8, (32, 32), legacy=True), projection_of(0.8, (32, 32)))


@given(ANGLES, st.integers(2, 64), st.integers(2, 64), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_pose_and_pinhole_see_a_point_at_the_pixel_where_the_projection_does(
    fov: float, height: int, width: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    transform = np.concatenate([turned(seed), rng.normal(size=(1, 3))])
    projection = projection_of(fov, (height, width))
    in_camera = np.array([*rng.uniform(-1, 1, 2), rng.uniform(-9, -1)])
    point = (in_camera - transform[3]) @ transform[:3].T
    column = (in_camera[0] * projection[0, 0] / -in_camera[2] * width + width - 1) / 2  # x = (2 column + 1 - W) / W
    row = (height - 1 - in_camera[1] * projection[1, 0] / -in_camera[2] * height) / 2
    pose = world_from_camera_of(transform)
    assert np.linalg.det(pose[:3, :3]) == pytest.approx(1.0)
    seen = intrinsics_of(projection, (height, width)) @ np.linalg.inv(pose) @ [*point, 1.0]
    assert (seen[:2] / seen[2]).tolist() == pytest.approx([column, row])
    assert seen[2] == pytest.approx(-in_camera[2])


@given(st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_a_camera_that_looks_at_a_point_is_that_of_the_renderer(seed: int) -> None:
    position, target = np.random.default_rng(seed).normal(size=(2, 3))
    eye, aim, up = (torch.from_numpy(part)[None] for part in (position, target, np.array([0.0, 1.0, 0.0])))
    expected = generate_transformation_matrix(eye, aim, up)[0]
    np.testing.assert_allclose(looking_at(position, target), expected.numpy(), atol=1e-9)


@pytest.mark.parametrize("height", [3.0, -3.0])
def test_a_camera_straight_above_or_below_looks_at_its_point_too(height: float) -> None:
    transform = looking_at(np.array([0.0, height, 0.0]), np.zeros(3))
    np.testing.assert_allclose(transform[:3].T @ transform[:3], np.eye(3), atol=1e-12)
    np.testing.assert_allclose(transform[3], [0, 0, -3], atol=1e-12)


@given(st.integers(1, 300), st.floats(-90, 90), st.floats(-90, 90), st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_cameras_lie_on_their_band_of_the_sphere(count: int, one: float, other: float, seed: int) -> None:
    low, high = sorted((one, other))
    found = cameras_around(count, (low, high), seed)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0)
    elevation = np.degrees(np.arcsin(np.clip(found[:, 1], -1, 1)))
    assert found.shape == (count, 3) and low - 1e-4 <= elevation.min() and elevation.max() <= high + 1e-4


def test_cameras_leave_no_gap_and_another_seed_moves_all_of_them() -> None:
    found = cameras_around(100, (-90, 90), 0)
    anywhere = np.random.default_rng(0).normal(size=(2000, 3))
    anywhere /= np.linalg.norm(anywhere, axis=1, keepdims=True)
    nearest = np.degrees(np.arccos((anywhere @ found.T).max(axis=1)))
    assert nearest.max() < 25  # a hundred caps of 11.5 degrees would cover the sphere if caps could tile it
    assert np.abs(found - cameras_around(100, (-90, 90), 1)).max(axis=1).min() > 1e-3
    np.testing.assert_array_equal(found, cameras_around(100, (-90, 90), 0))


def test_a_camera_set_is_world_from_camera_for_columns() -> None:
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = turned(4), (1.0, 2.0, 3.0)
    frames: list[dict[str, Any]] = [{"file_path": "./train/r_0", "transform_matrix": pose.tolist()}]
    frames.append({**frames[0], "camera_angle_x": 0.5})
    found = read_camera_set({"camera_angle_x": 0.7, "frames": frames}, "transforms.json")
    assert [(camera.image, camera.fov_x) for camera in found] == [("./train/r_0", 0.7), ("./train/r_0", 0.5)]
    in_camera = np.array([0.3, -0.2, -4.0])
    world = pose @ [*in_camera, 1.0]
    np.testing.assert_allclose(world @ found[0].transform, in_camera, atol=1e-12)


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({}, "no list of frames"),
        ({"frames": []}, "no list of frames"),
        ([1], "no list of frames"),
        ({"camera_angle_x": 0.7, "frames": [3]}, "frames\\[0\\]: no file_path"),
        ({"frames": [{"file_path": "a", "transform_matrix": np.eye(4).tolist()}]}, "camera_angle_x 'None'"),
        ({"camera_angle_x": 4, "frames": [{"file_path": "a", "transform_matrix": np.eye(4).tolist()}]}, "0 to pi"),
        ({"camera_angle_x": 1, "frames": [{"file_path": "a", "transform_matrix": [[0] * 4] * 4}]}, "4 x 4 pose"),
        ({"camera_angle_x": 1, "frames": [{"file_path": "a"}]}, "4 x 4 pose"),
    ],
)
def test_a_camera_set_of_another_form_is_refused_at_its_place(document: object, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_camera_set(document, "transforms.json")


@pytest.mark.real
def test_the_published_sample_has_its_astronaut_where_the_image_shows_it(real_data: Path) -> None:
    found = read_metadata((real_data / "data" / "kaolin" / "synthetic" / "0_metadata.json").read_bytes())
    assert found.image == (1024, 1024) and found.clipping_range == (1.0, 1e6)
    assert math.degrees(field_of_view_of(found.projection)) == pytest.approx(math.degrees(field_of_view(20.955, 24.0)), abs=1e-4)
    x, y, z = np.append(found.assets[0][1][3, :3], 1) @ found.transform
    assert z == pytest.approx(-24.98, abs=0.01)
    column, row = (x / -z * found.projection[0, 0] + 1) * 512, (1 - y / -z * found.projection[1, 0]) * 512
    assert (column, row) == (pytest.approx(455, abs=3), pytest.approx(715, abs=3))  # between the boots, by the picture


def test_a_transform_of_huge_numbers_has_no_pose_and_no_warning() -> None:
    assert not np.isfinite(world_from_camera_of(np.full((4, 3), 1e200))[:3, 3]).any()
