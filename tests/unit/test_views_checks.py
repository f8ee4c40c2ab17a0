"""What the checks find in a view of an object, and what they leave alone."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from scenemill.schemas.sample import Sample
from scenemill.schemas.tables import SAMPLES, Finding, table_of
from scenemill.transforms.parts import sample_row
from scenemill.transforms.view_cameras import intrinsics_of, looking_at, projection_of, world_from_camera_of
from scenemill.validators.checks import check_sample
from scenemill.validators.derived import facts_of
from scenemill.validators.measures import Rules
from scenemill.validators.suites import expect

SIZE = (24, 32)
Arrays = dict[str, NDArray[Any]]
Facts = dict[str, Any]


def never(sample: Sample) -> NDArray[np.float64]:
    raise AssertionError("a view of an object has no voxels to look for")


RULES = Rules("views", 0, SIZE, None, never)


def good_view() -> tuple[Arrays, Facts]:
    """A view of a ball that gives no cause for complaint."""
    row, column = np.mgrid[: SIZE[0], : SIZE[1]]
    mask = (row - 11.5) ** 2 + (column - 15.5) ** 2 < 64
    transform, projection = looking_at(np.array([0.0, 1.0, 4.0]), np.zeros(3)), projection_of(0.8, SIZE)
    arrays: Arrays = {
        "rgb": np.where(mask[..., None], np.uint8(200), np.uint8(0)) * np.ones(3, np.uint8),
        "camera_transform": transform,
        "camera_projection": projection,
        "semantic": mask.astype(np.uint16),
        "instance": mask.astype(np.uint16) * 3,
        "depth": np.where(mask, 3.5, 0).astype(np.float32),
        "normals": np.where(mask[..., None], np.array([128, 128, 255], np.uint8), np.uint8(0)),
    }
    facts: Facts = {
        "resolution": SIZE,
        "clipping_range": (1.0, 9.0),
        "asset_position": [0.0, 0.0, 0.0],
        "intrinsics": intrinsics_of(projection, SIZE).ravel().tolist(),
        "world_from_camera": world_from_camera_of(transform).ravel().tolist(),
    }
    return arrays, facts


def judge(spoil: Callable[[Arrays, Facts], object]) -> list[Finding]:
    arrays, facts = good_view()
    spoil(arrays, facts)
    return check_sample(Sample("ball/0", arrays, facts), RULES)[0]


def put(name: str, change: Callable[[NDArray[Any]], NDArray[Any]]) -> Callable[[Arrays, Facts], object]:
    """Replaces an array by what a function makes of it."""
    return lambda arrays, facts: arrays.update({name: change(arrays[name].copy())})


def at(place: Any, value: Any) -> Callable[[NDArray[Any]], NDArray[Any]]:
    def change(array: NDArray[Any]) -> NDArray[Any]:
        array[place] = value
        return array

    return change


def test_a_good_view_gives_no_finding() -> None:
    assert judge(lambda arrays, facts: None) == []


@pytest.mark.parametrize("field", ["semantic", "instance", "depth", "normals"])
def test_a_view_without_a_sensor_is_spared_its_checks(field: str) -> None:
    found = judge(lambda arrays, facts: arrays.pop(field))
    assert [(one.check, one.severity) for one in found] == ([("mask", "warning")] if field == "semantic" else [])


def mirror(transform: NDArray[Any]) -> NDArray[Any]:
    return transform * [-1, 1, 1]


WRONG = {
    "nan in the camera": (put("camera_transform", at((3, 0), np.nan)), "finite", "camera_transform", "error"),
    "infinite depth": (put("depth", at((11, 15), np.inf)), "finite", "depth", "error"),
    "scaled axes": (put("camera_transform", lambda m: m * 1.01), "camera", "camera_transform", "error"),
    "mirrored axes": (put("camera_transform", mirror), "camera", "camera_transform", "error"),
    "telescope": (put("camera_projection", lambda p: p * [[200], [200], [1]]), "field_of_view", "camera_projection", "error"),
    "fisheye": (put("camera_projection", lambda p: p / [[20], [20], [1]]), "field_of_view", "camera_projection", "error"),
    "other resolution": (lambda arrays, facts: facts.update(resolution=(32, 24)), "resolution", "metadata", "error"),
    "far before near": (lambda arrays, facts: facts.update(clipping_range=(9.0, 1.0)), "clipping_range", "metadata", "warning"),
    "near at the camera": (lambda arrays, facts: facts.update(clipping_range=(0.0, 1.0)), "clipping_range", "metadata", "warning"),
    "asset behind": (
        lambda arrays, facts: facts.update(asset_position=[0.0, 1.0, 9.0]),
        "sees_object",
        "camera_transform",
        "warning",
    ),
    "asset beside": (lambda arrays, facts: facts.update(asset_position=[9.0, 0, 0]), "sees_object", "camera_transform", "warning"),
    "depth below 0": (put("depth", at((0, 0), -1)), "depth", "depth", "error"),
    "hole in the depth": (put("depth", at((11, 15), 0)), "depth_on_mask", "depth", "warning"),
    "stray instance": (put("instance", at((0, 0), 7)), "instances", "instance", "warning"),
    "short normals": (put("normals", lambda n: n // 2 + 64), "normals", "normals", "warning"),
    "lit background": (put("rgb", lambda rgb: rgb | 9), "background", "rgb", "info"),
    "object on the border": (
        lambda arrays, facts: (
            [arrays[name].__setitem__((0, 3), value) for name, value in (("semantic", 1), ("depth", 3.5))]
            + [arrays["normals"].__setitem__((0, 3), (255, 128, 128))]
        ),
        "cropped",
        "semantic",
        "info",
    ),
}


@pytest.mark.parametrize(("spoil", "check", "field", "severity"), WRONG.values(), ids=WRONG.keys())
def test_one_thing_wrong_is_one_finding(spoil: Callable[[Arrays, Facts], object], check: str, field: str, severity: str) -> None:
    found = judge(spoil)
    assert [(one.check, one.field, one.severity) for one in found] == [(check, field, severity)]
    assert found[0].observed and found[0].expected


def test_an_image_of_one_colour_rejects_the_view() -> None:
    found = judge(put("rgb", np.zeros_like))
    assert [(one.check, one.severity) for one in found] == [("image", "error")]


@pytest.mark.parametrize(
    ("labels", "severity", "observed"),
    [
        (np.zeros(SIZE, np.uint16), "error", "nothing but background"),
        (np.ones(SIZE, np.uint16), "warning", "no background"),
        (np.eye(*SIZE, dtype=np.uint16) * (np.arange(32) < 9), "warning", "9 pixels of object"),
        (np.arange(SIZE[0] * SIZE[1], dtype=np.uint16).reshape(SIZE) % 40, "warning", "40 labels"),
    ],
)
def test_a_mask_that_no_silhouette_can_be_fitted_to_is_told(labels: NDArray[np.uint16], severity: str, observed: str) -> None:
    found = [one for one in judge(put("semantic", lambda mask: labels)) if one.check == "mask"]
    assert [(one.severity, one.observed) for one in found] == [(severity, observed)]


def test_a_field_of_view_is_measured_in_degrees_across() -> None:
    found = judge(put("camera_projection", lambda p: projection_of(math.radians(151), SIZE)))
    assert found[0].observed == "151 degrees wide"
    assert not judge(put("camera_projection", lambda p: projection_of(math.radians(149), SIZE)))


# --- the table


def row(number: int, **changed: Any) -> dict[str, Any]:
    """A stored view's row of the samples table, from another place each."""
    arrays, facts = good_view()
    transform = looking_at(np.array([number + 1.0, 1.0, 4.0]), np.zeros(3))
    facts["world_from_camera"] = world_from_camera_of(transform).ravel().tolist()
    facts |= {"digest": f"{number:064x}", "raw_byte": 5, "files": []}
    sample = Sample(f"ball/{number}", arrays, facts)
    made = sample_row(sample, check_sample(sample, RULES)[1].facts(), [])
    return {**made, "split": "train", "splits": ["train"], "part": "p", "row": number, "stored_byte": 4, **changed}


def test_a_row_says_what_the_view_holds_and_that_there_are_no_voxels() -> None:
    made = row(0)
    assert made["fields"] == ["rgb", "camera_transform", "camera_projection", "semantic", "instance", "depth", "normals"]
    assert (made["grid"], made["image_height_pixel"], made["image_width_pixel"]) == (0, *SIZE)
    assert (made["classes_2d"], made["instances_2d"], made["things_2d"]) == ([0, 1], [0, 3], 1)
    assert (made["depth_min_m"], made["depth_max_m"]) == (3.5, 3.5)
    count = int(np.count_nonzero(good_view()[0]["semantic"]))
    assert made["depth_valid_share"] == count / (SIZE[0] * SIZE[1])
    assert made["voxels_observed"] == made["things_3d"] == 0 and made["classes_3d"] == []


def test_a_good_table_of_views_meets_every_expectation_also_with_held_out_views() -> None:
    table = table_of(SAMPLES, [row(0), row(1), row(2, split="val", splits=["val"])])
    expected = expect("views", table)
    assert expected.failed == () and expected.expectations > 30


def test_two_views_from_one_camera_are_told_with_their_keys() -> None:
    again = {"world_from_camera": row(0)["world_from_camera"]}
    other_scene = {"scene": "cube", "key": "cube/7"}
    table = table_of(SAMPLES, [row(0), row(1), row(2, **again), row(3, **again, **other_scene)])
    assert facts_of(table)["views_of_camera"].to_pylist() == [2, 1, 2, 1]
    failed = expect("views", table).failed
    assert [(one.severity, one.column) for one in failed] == [("warning", "views_of_camera")]
    assert "ball/0" in failed[0].what and "ball/2" in failed[0].what


def test_one_pose_with_two_lenses_is_two_cameras() -> None:
    other = projection_of(0.4, SIZE)
    table = table_of(
        SAMPLES,
        [
            row(0),
            row(1, world_from_camera=row(0)["world_from_camera"], intrinsics=intrinsics_of(other, SIZE).ravel().tolist()),
        ],
    )
    assert facts_of(table)["views_of_camera"].to_pylist() == [1, 1]
