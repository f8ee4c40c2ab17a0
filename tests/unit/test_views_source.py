"""Folders of views: what is listed, what is read, and what is said about the rest."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from scenemill.schemas.config import IngestConfig
from scenemill.schemas.errors import ConfigError
from scenemill.schemas.places import on_disk
from scenemill.schemas.sample import Sample
from scenemill.schemas.tables import Finding
from scenemill.transforms.sources import Listed, Source, find_root, find_unlisted, list_samples, open_source, read_sample
from scenemill.transforms.view_cameras import ViewMetadata, looking_at, projection_of
from scenemill.transforms.view_writing import ObjectView, write_view

SIZE = (6, 8)


def make_view(seed: int) -> ObjectView:
    """Maps of a disc of noise."""
    rng = np.random.default_rng(seed)
    row, column = np.mgrid[: SIZE[0], : SIZE[1]]
    labels = ((row - 2.5) ** 2 + (column - 3.5) ** 2 < 6).astype(np.int32)
    rgb = (rng.integers(1, 255, (*SIZE, 3)) * labels[..., None]).astype(np.uint8)
    normals = rng.normal(size=(*SIZE, 3))
    normals = (normals / np.linalg.norm(normals, axis=-1, keepdims=True) * labels[..., None]).astype(np.float32)
    return ObjectView(rgb, labels, (rng.uniform(1, 3, SIZE) * labels).astype(np.float32), normals)


def make_camera(seed: int) -> ViewMetadata:
    position = np.random.default_rng(seed).normal(size=3)
    transform = looking_at(4 * position / np.linalg.norm(position), np.zeros(3))
    return ViewMetadata(transform, projection_of(0.8, SIZE), SIZE, (1.0, 9.0), (("x.obj", np.eye(4)),), {})


def write_views(folder: Path, count: int, start: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        write_view(folder, number, make_view(start + number), make_camera(start + number))
    return folder


def read_first(root: Path) -> tuple[Sample, list[Finding]]:
    listed, _ = list_samples("views", root)
    return read_sample(open_source("views", root, listed), listed[0])


def found_in(root: Path) -> dict[str, list[tuple[str, str, str]]]:
    """Key -> (check, severity, observed) of what listing finds, but for the note that there is no list."""
    _, findings = list_samples("views", root)
    told = {key: [(one.check, str(one.severity), one.observed) for one in some] for key, some in findings.items()}
    told.pop("", None)
    return told


# --- listing


def test_a_folder_of_views_is_a_scene_named_like_it_and_all_views_are_train(tmp_path: Path) -> None:
    root = find_root("views", write_views(tmp_path / "clock", 3))
    listed, findings = list_samples("views", root)
    assert listed == [Listed(f"clock/{number}", ("train",)) for number in range(3)]
    assert list(findings) == [""] and [one.severity for one in findings[""]] == ["info"]
    assert "train.txt and a val.txt" in findings[""][0].expected


def test_a_folder_of_folders_is_a_scene_for_each_that_holds_views(tmp_path: Path) -> None:
    write_views(tmp_path / "b", 1)
    write_views(tmp_path / "a", 2, start=5)
    (tmp_path / "empty").mkdir()
    root = find_root("views", tmp_path)
    listed, _ = list_samples("views", root)
    assert [sample.key for sample in listed] == ["a/0", "a/1", "b/0"]
    source = open_source("views", root, listed)
    assert (source.lone_scene, source.grid, source.image) == ("", 0, SIZE)
    sample, findings = read_sample(source, listed[2])
    assert not findings and np.array_equal(sample["rgb"], make_view(0).rgb)


def test_lists_say_which_views_are_taken_and_in_which_split(tmp_path: Path) -> None:
    root = write_views(tmp_path / "clock", 4)
    (root / "train.txt").write_text("clock/0\nclock/2\n")
    (root / "val.txt").write_text("clock/1\nclock/x\n")
    listed, findings = list_samples("views", root)
    assert [(sample.key, sample.splits) for sample in listed] == [
        ("clock/0", ("train",)),
        ("clock/1", ("val",)),
        ("clock/2", ("train",)),
    ]
    assert {key: [one.check for one in some] for key, some in findings.items()} == {"val.txt[1]": ["list"]}
    assert list(find_unlisted("views", root, listed)) == ["clock/3"]


def test_json_beside_the_views_is_no_split_list(tmp_path: Path) -> None:
    root = write_views(tmp_path / "clock", 1)
    (root / "transforms.json").write_text(json.dumps({"frames": []}))
    assert [sample.splits for sample in list_samples("views", root)[0]] == [("train",)]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda root: None, "no such folder"),
        (lambda root: root.mkdir(), "0 views in it; expected <i>_rgb.png"),
        (lambda root: write_views(write_views(root, 1) / "inner", 1), "views lie in it and in inner/ too"),
    ],
)
def test_a_folder_without_views_or_of_two_forms_is_refused(make: Callable[[Path], object], said: str, tmp_path: Path) -> None:
    make(tmp_path / "clock")
    with pytest.raises(ConfigError, match=said):
        find_root("views", tmp_path / "clock")


def test_a_folder_name_that_is_no_key_rejects_its_views_and_says_so(tmp_path: Path) -> None:
    write_views(tmp_path / "my clock", 1)
    write_views(tmp_path / "vase", 1)
    listed, findings = list_samples("views", tmp_path)
    assert [sample.key for sample in listed] == ["vase/0"]
    assert findings["my clock/0"][0].blocks and findings["my clock/0"][0].expected == "another name of the folder"


def test_a_folder_name_that_is_no_text_is_told_as_text(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"clock\xff")
    write_views(folder, 1)
    (folder / "3_metadata.json").touch()
    listed, findings = list_samples("views", tmp_path)
    assert not listed and set(findings) == {"", "clock\\udcff/0", "clock\\udcff/3"}


# --- numbering


def test_views_without_a_gap_and_with_the_same_sensors_give_no_finding(tmp_path: Path) -> None:
    assert found_in(write_views(tmp_path / "clock", 12)) == {}


def test_a_gap_in_the_numbers_is_told_once(tmp_path: Path) -> None:
    root = write_views(tmp_path / "clock", 6)
    for path in (*root.glob("2_*"), *root.glob("3_*")):
        path.unlink()
    assert found_in(root) == {"clock/2": [("numbering", "warning", "no view 2, 3 below the last, 5")]}


def test_a_huge_number_is_told_without_counting_up_to_it(tmp_path: Path) -> None:
    root = write_views(tmp_path / "clock", 1)
    shutil.copy(root / "0_rgb.png", root / f"{10**200}_rgb.png")
    assert ("numbering", "warning") in [found[:2] for found in found_in(root)["clock/1"]]


def test_zeros_before_a_number_are_told(tmp_path: Path) -> None:
    root = write_views(tmp_path / "clock", 2)
    for path in list(root.glob("1_*")):
        path.rename(root / f"0{path.name}")
    assert found_in(root) == {"clock/01": [("numbering", "warning", "number 01 with zeros before it")]}


def test_metadata_without_an_image_and_a_missing_sensor_are_told(tmp_path: Path) -> None:
    root = write_views(tmp_path / "clock", 4)
    (root / "3_rgb.png").unlink()
    (root / "1_normals.png").unlink()
    assert found_in(root) == {
        "clock/1": [("sensors", "warning", "no normals, but 2 of 3 views have it")],
        "clock/3": [("stray", "warning", "depth_linear, instance, metadata, normals, semantic without an image")],
    }


def test_labels_as_png_count_as_the_same_sensor(tmp_path: Path) -> None:
    root = write_views(tmp_path / "clock", 2)
    labels = np.load(root / "1_semantic.npy")
    (root / "1_semantic.npy").unlink()
    Image.fromarray(labels.astype(np.uint8)).save(root / "1_semantic.png")
    assert found_in(root) == {}


# --- reading


def test_every_map_and_the_camera_come_out_as_they_were_written(tmp_path: Path) -> None:
    sample, findings = read_first(write_views(tmp_path / "clock", 1))
    view, camera = make_view(0), make_camera(0)
    assert not findings and view.normals is not None
    np.testing.assert_array_equal(sample["rgb"], view.rgb)
    np.testing.assert_array_equal(sample["semantic"], view.labels)
    np.testing.assert_array_equal(sample["instance"], view.labels)
    np.testing.assert_array_equal(sample["depth"], view.depth)
    on = view.labels == 1
    np.testing.assert_allclose(sample["normals"][on] / 127.5 - 1, view.normals[on], atol=0.5 / 127.5 + 1e-6)
    assert not sample["normals"][~on].any()
    np.testing.assert_array_equal(sample["camera_transform"], camera.transform)
    np.testing.assert_allclose(sample["camera_projection"], camera.projection, rtol=1e-12)
    assert {name: array.dtype.name for name, array in sample.arrays.items()} == {
        "rgb": "uint8",
        "camera_transform": "float64",
        "camera_projection": "float64",
        "semantic": "uint16",
        "instance": "uint16",
        "depth": "float32",
        "normals": "uint8",
    }


def replaced(root: Path, ending: str, array: NDArray[Any]) -> tuple[Sample, list[Finding]]:
    """The view, read after one of its npy files was written anew."""
    np.save(root / f"0_{ending}.npy", array)
    return read_first(root)


def test_alpha_is_dropped_from_images_and_normals(tmp_path: Path) -> None:
    root = write_views(tmp_path / "clock", 1)
    rgba = np.random.default_rng(3).integers(0, 255, (*SIZE, 4), np.uint8)
    for name in ("rgb", "normals"):
        Image.fromarray(rgba).save(root / f"0_{name}.png")
    sample, findings = read_first(root)
    assert not findings
    np.testing.assert_array_equal(sample["rgb"], rgba[..., :3])
    np.testing.assert_array_equal(sample["normals"], rgba[..., :3])


def test_maps_may_have_a_last_axis_and_any_integer_dtype(tmp_path: Path) -> None:
    root = write_views(tmp_path / "clock", 1)
    labels = np.arange(48, dtype=np.int64).reshape(*SIZE, 1)
    sample, findings = replaced(root, "semantic", labels)
    assert not findings
    np.testing.assert_array_equal(sample["semantic"], labels[..., 0])


def test_an_infinite_depth_is_nothing_seen(tmp_path: Path) -> None:
    depth = np.full(SIZE, np.inf, np.float32)
    depth[2, 3] = 2.5
    sample, findings = replaced(write_views(tmp_path / "clock", 1), "depth_linear", depth)
    assert not findings and sample["depth"][2, 3] == 2.5 and np.count_nonzero(sample["depth"]) == 1


def test_a_mask_of_a_png_reads_as_labels(tmp_path: Path) -> None:
    root = write_views(tmp_path / "clock", 1)
    mask = np.load(root / "0_semantic.npy").astype(np.uint8) * 255
    (root / "0_semantic.npy").unlink()
    Image.fromarray(mask).save(root / "0_semantic.png")
    sample, findings = read_first(root)
    assert not findings
    np.testing.assert_array_equal(sample["semantic"], mask)


def test_labels_as_npy_and_png_are_one_too_many(tmp_path: Path) -> None:
    root = write_views(tmp_path / "clock", 1)
    Image.fromarray(np.zeros(SIZE, np.uint8)).save(root / "0_semantic.png")
    _, findings = read_first(root)
    assert [(one.check, one.field, one.severity) for one in findings] == [("twice", "semantic_image", "error")]


@pytest.mark.parametrize(
    ("ending", "array", "check"),
    [
        ("semantic", np.zeros((5, 8), np.int32), "shape"),
        ("semantic", np.zeros((*SIZE, 2), np.int32), "shape"),
        ("semantic", np.zeros(SIZE, np.float32), "dtype"),
        ("semantic", np.full(SIZE, -1, np.int32), "range"),
        ("instance", np.full(SIZE, 70_000, np.int32), "range"),
        ("depth_linear", np.zeros(SIZE, np.int32), "dtype"),
        ("depth_linear", np.zeros(SIZE[::-1], np.float32), "shape"),
    ],
)
def test_a_map_of_another_form_rejects_the_view(ending: str, array: NDArray[Any], check: str, tmp_path: Path) -> None:
    _, findings = replaced(write_views(tmp_path / "clock", 1), ending, array)
    assert [(one.check, one.field, one.severity) for one in findings] == [(check, ending, "error")]


@pytest.mark.parametrize("ending", ["rgb.png", "metadata.json"])
def test_a_view_needs_an_image_and_metadata(ending: str, tmp_path: Path) -> None:
    root = write_views(tmp_path / "clock", 2)
    (root / f"0_{ending}").unlink()
    source = Source("views", root, 0, SIZE, "clock")
    _, findings = read_sample(source, Listed("clock/0", ("train",)))
    assert [(one.check, one.field, one.severity) for one in findings] == [("presence", ending.split(".", maxsplit=1)[0], "error")]


def test_sensors_that_are_not_there_are_left_out(tmp_path: Path) -> None:
    root = write_views(tmp_path / "clock", 1)
    for ending in ("semantic.npy", "instance.npy", "depth_linear.npy", "normals.png"):
        (root / f"0_{ending}").unlink()
    sample, findings = read_first(root)
    assert not findings and set(sample.arrays) == {"rgb", "camera_transform", "camera_projection"}


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    root = write_views(tmp_path / "clock", 1)
    (tmp_path / "secret.npy").write_bytes((root / "0_semantic.npy").read_bytes())
    (root / "0_semantic.npy").unlink()
    (root / "0_semantic.npy").symlink_to(tmp_path / "secret.npy")
    _, findings = read_first(root)
    assert [(one.check, one.field) for one in findings] == [("path", "semantic")]


def test_volumes_of_distances_are_not_stored_in_less_where_there_are_none() -> None:
    with pytest.raises(ConfigError, match="only volumes of rooms"):
        IngestConfig("views", Path("raw"), precision="float16")


@pytest.mark.real
def test_the_published_sample_is_read_as_it_is(real_data: Path) -> None:
    folder = real_data / "data" / "kaolin" / "synthetic"
    sample, findings = read_first(on_disk(find_root("views", folder)))
    assert (sample.key, findings, set(sample.arrays)) == (
        "synthetic/0",
        [],
        {"rgb", "camera_transform", "camera_projection", "normals"},
    )
    for name in ("rgb", "normals"):
        np.testing.assert_array_equal(sample[name], np.asarray(Image.open(folder / f"0_{name}.png"))[..., :3])
