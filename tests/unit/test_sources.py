"""Raw folders as samples: what is listed, what is read, and what is said about the rest."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import OpenEXR
import pytest
from numpy.typing import NDArray
from PIL import Image

from scenemill.schemas.errors import ConfigError
from scenemill.schemas.fields import ROOM_SOURCES, fields_of
from scenemill.schemas.sample import Sample
from scenemill.schemas.tables import Finding
from scenemill.transforms import sources
from scenemill.transforms.geometry import FRONT3D_INTRINSICS
from scenemill.transforms.sources import (
    Listed,
    Source,
    digest_of,
    find_unlisted,
    list_samples,
    open_source,
    raw_files,
    read_bytes,
    read_sample,
)
from scenemill.transforms.worlds import write_world

FRONT3D_FILES = ("rgb", "depth", "segmap", "campose", "geometry", "segmentation", "weighting")
MATTERPORT_FILES = ("rgb", "depth", "segmap", "intrinsics", "room_mask", "geometry", "segmentation", "weighting")


def copy_of(world: Path, to: Path) -> Path:
    shutil.copytree(world, to, copy_function=os.link)
    return to


def opened(source: str, root: Path) -> tuple[Source, list[Listed]]:
    listed, findings = list_samples(source, root)
    assert not findings
    return open_source(source, root, listed), listed


def write_list(path: Path, *pairs: tuple[str, str], **rest: object) -> None:
    path.write_text(json.dumps([{"scene_id": scene, "image_id": image, **rest} for scene, image in pairs]))


def replace_file(path: Path, data: bytes) -> None:
    """Write a file anew: the other hard link keeps its bytes."""
    path.unlink()
    path.write_bytes(data)


def load(path: Path, member: str = "data") -> NDArray[Any]:
    with np.load(path) as archive:
        array: NDArray[Any] = archive[member]
    return array


# --- listing


def test_samples_are_sorted_unique_and_know_their_splits(tmp_path: Path) -> None:
    write_list(tmp_path / "test.json", ("b", "0003"), ("a", "0002"))
    write_list(tmp_path / "train.json", ("b", "0001"), ("a", "0010"), ("a", "0009"))
    listed, findings = list_samples("front3d", tmp_path)
    assert listed == [
        Listed("a/0002", ("test",)),
        Listed("a/0009", ("train",)),
        Listed("a/0010", ("train",)),
        Listed("b/0001", ("train",)),
        Listed("b/0003", ("test",)),
    ]
    assert findings == {}


def test_a_view_twice_in_a_list_is_one_sample_and_a_warning(tmp_path: Path) -> None:
    write_list(tmp_path / "train.json", ("a", "0001"), ("a", "0002"), ("a", "0001"))
    listed, findings = list_samples("front3d", tmp_path)
    assert [sample.key for sample in listed] == ["a/0001", "a/0002"]
    assert findings == {"a/0001": [Finding("list", "", "warning", "twice in the list 'train'", "once")]}


def test_a_view_in_two_lists_is_one_sample_of_both_splits_train_first(tmp_path: Path) -> None:
    for split in ("test", "train", "val"):
        write_list(tmp_path / f"{split}.json", ("a", "0001"))
    listed, findings = list_samples("front3d", tmp_path, ("val", "test", "train"))
    assert listed == [Listed("a/0001", ("train", "val", "test"))]
    assert findings == {"a/0001": [Finding("split_overlap", "", "warning", "in the lists train, val, test", "one split per view")]}


def test_a_view_in_two_lists_keeps_what_the_first_says_of_it(tmp_path: Path) -> None:
    write_list(tmp_path / "val.json", ("a", "0001"), height=1, width=2, file_name="val.png")
    write_list(tmp_path / "zoo.json", ("a", "0001"))
    listed, findings = list_samples("front3d", tmp_path)
    assert listed == [Listed("a/0001", ("val", "zoo"), "val.png", (1, 2))]
    assert [finding.observed for finding in findings["a/0001"]] == ["in the lists val, zoo"]


@pytest.mark.parametrize(
    ("source", "image"),
    [("front3d", "1"), ("front3d", "abcd"), ("front3d", "0001.png"), ("front3d", "a_1_2"), ("synthetic_warehouse", "١٢٣٤")]
    + [("matterport", "0001"), ("matterport", "a_1"), ("matterport", "a_1_2_3"), ("matterport", "a_x_1"), ("matterport", "a_12_3")],
)
def test_an_image_id_of_another_form_becomes_a_finding_at_its_place(source: str, image: str, tmp_path: Path) -> None:
    write_list(tmp_path / "train.json", ("a", image))
    listed, findings = list_samples(source, tmp_path)
    assert listed == []
    assert [(where, finding.check, finding.severity) for where, found in findings.items() for finding in found] == [
        ("train.json[0]", "list", "error")
    ]


def test_hostile_entries_become_findings_and_the_rest_is_listed(tmp_path: Path) -> None:
    write_list(tmp_path / "train.json", ("..", "0001"), ("a", "../../0001"), ("a", "0001"), ("/etc", "0001"))
    listed, findings = list_samples("front3d", tmp_path)
    assert [sample.key for sample in listed] == ["a/0001"]
    assert set(findings) == {"train.json[0]", "train.json[1]", "train.json[3]"}
    assert all(finding.blocks for found in findings.values() for finding in found)


def test_size_and_colour_path_come_from_the_list(tmp_path: Path) -> None:
    write_list(tmp_path / "train.json", ("a", "0001"), height=240, width=320, file_name="augment/a.png")
    assert list_samples("front3d", tmp_path)[0] == [Listed("a/0001", ("train",), "augment/a.png", (240, 320))]


@pytest.mark.parametrize("source", ROOM_SOURCES)
def test_every_made_up_view_is_listed_in_one_split(source: str, tmp_path: Path) -> None:
    write_world(source, tmp_path / "world", scenes=3, views=1, grid=64)
    listed, findings = list_samples(source, tmp_path / "world")
    assert sorted(sample.splits for sample in listed) == [("test",), ("train",), ("val",)]
    assert not findings and list(find_unlisted(source, tmp_path / "world", listed)) == []


def test_views_in_no_list_are_found_sorted(front3d_world: Path, tmp_path: Path) -> None:
    root = copy_of(front3d_world, tmp_path / "world")
    _, listed = opened("front3d", root)
    scene = listed[0].key.split("/")[0]
    for name in ("rgb_0999.png", "rgb_0998.png", "rgb_12.png", "rgb_0997.jpg", "depth_0996.exr", "rgb_0995.png.txt"):
        (root / "data" / scene / name).touch()
    (root / "data" / "new").mkdir()
    (root / "data" / "new" / "rgb_0001.png").touch()
    (root / "data" / "note.txt").touch()
    assert list(find_unlisted("front3d", root, listed)) == sorted([f"{scene}/0998", f"{scene}/0999", "new/0001"])
    assert list(find_unlisted("front3d", root, listed[1:]))[0 if scene < "new" else 1] == listed[0].key


def test_matterport_views_in_no_list_are_found(matterport_world: Path) -> None:
    _, listed = opened("matterport", matterport_world)
    assert list(find_unlisted("matterport", matterport_world, listed[2:])) == [listed[0].key, listed[1].key]


# --- opening


def test_sizes_are_those_of_most_views(front3d_world: Path, tmp_path: Path) -> None:
    root = copy_of(front3d_world, tmp_path / "world")
    _, listed = opened("front3d", root)
    for sample in listed[:2]:
        scene, image = sample.key.split("/")
        np.savez_compressed(root / "data" / scene / "new.npz", data=np.zeros((8, 8, 8)))
        (root / "data" / scene / "new.npz").replace(root / "data" / scene / f"geometry_{image}.npz")
        (root / "data" / scene / f"rgb_{image}.png").unlink()
        Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(root / "data" / scene / f"rgb_{image}.png")
    replace_file(root / raw_files(Source("front3d", root, 64, (240, 320)), listed[2])["geometry"], b"damaged")
    source = open_source("front3d", root, listed)
    assert (source.grid, source.image) == (64, (240, 320))


@pytest.mark.parametrize("shape", [(1, 1, 1), (8, 8, 9), (8, 8), (2, 8, 8, 8)])
def test_volumes_that_are_no_grid_have_no_voice(shape: tuple[int, ...], front3d_world: Path, tmp_path: Path) -> None:
    root = copy_of(front3d_world, tmp_path / "world")
    _, listed = opened("front3d", root)
    for sample in listed[:4]:
        scene, image = sample.key.split("/")
        path = root / "data" / scene / f"geometry_{image}.npz"
        path.unlink()
        np.savez_compressed(path, data=np.zeros(shape))
    source = open_source("front3d", root, listed)
    assert (source.grid, source.image) == (64, (240, 320))


def test_a_file_too_large_for_its_kind_is_refused_unread(
    front3d_world: Path, matterport_world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, world in (("front3d", front3d_world), ("matterport", matterport_world)):
        source, listed = opened(name, world)
        with monkeypatch.context() as patch:
            patch.setattr(sources, "_IMAGE_LIMIT_BYTE", 100)
            sample, findings = read_sample(source, listed[0])
        small = [file.kind for file in source.files if file.kind not in ("geometry", "segmentation", "weighting")]
        assert [(finding.check, finding.field) for finding in findings] == [("size", kind) for kind in small]
        assert {"geometry", "semantic_3d", "instance_3d", "weighting"} <= set(sample.arrays)


def test_given_sizes_are_taken_and_the_other_is_probed(front3d_world: Path) -> None:
    _, listed = opened("front3d", front3d_world)
    assert open_source("front3d", front3d_world, [], 32, (12, 16)) == Source("front3d", front3d_world, 32, (12, 16))
    assert open_source("front3d", front3d_world, listed, grid=32) == Source("front3d", front3d_world, 32, (240, 320))
    assert open_source("front3d", front3d_world, listed, image=(12, 16)) == Source("front3d", front3d_world, 64, (12, 16))


def test_a_folder_without_a_readable_view_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(ConfigError, match="no readable view among 1 tried"):
        open_source("front3d", tmp_path, [Listed("a/0001", ())])
    with pytest.raises(ConfigError, match="no readable view among 0 tried"):
        open_source("front3d", tmp_path, [])


# --- reading


@pytest.mark.parametrize("source", ["front3d", "synthetic_hospital", "synthetic_warehouse"])
def test_views_in_the_front3d_form_equal_their_files(source: str, front3d_world: Path) -> None:
    opened_source, listed = opened(source, front3d_world)
    for one in listed:
        sample, findings = read_sample(opened_source, one)
        scene, image = one.key.split("/")
        folder = front3d_world / "data" / scene
        segmap = load(folder / f"segmap_{image}.mapped.npz")
        segmentation = load(folder / f"segmentation_{image}.mapped.npz")[:, ::-1, ::-1]
        expected = {
            "rgb": np.array(Image.open(folder / f"rgb_{image}.png")),
            "depth": OpenEXR.File(str(folder / f"depth_{image}.exr")).channels()["Z"].pixels,
            "semantic_2d": segmap[..., 0],
            "instance_2d": segmap[..., 1],
            "geometry": load(folder / f"geometry_{image}.npz")[::-1, ::-1],
            "semantic_3d": segmentation[0],
            "instance_3d": segmentation[1],
            "weighting": load(folder / f"weighting_{image}.npz")[::-1, ::-1],
            "intrinsics": np.array(FRONT3D_INTRINSICS),
            "world_from_camera": load(folder / f"campose_{image}.npz", "camera2world"),
        }
        assert findings == [] and sample.key == one.key
        assert_equals(sample, expected, source)
        with np.load(folder / f"campose_{image}.npz") as pose:
            assert sample.facts["campose"] == {
                name: pose[name].ravel().tolist() if pose[name].ndim else pose[name].item()
                for name in pose
                if name != "camera2world"
            }
        assert sample.facts["geometry_float32_exact"] is True
        assert [file["kind"] for file in sample.facts["files"]] == list(FRONT3D_FILES)
        sizes = [path.stat().st_size for path in folder.glob(f"*_{image}.*")]
        assert sample.facts["raw_byte"] == sum(sizes) and len(sizes) == 7


def assert_equals(sample: Sample, expected: dict[str, NDArray[Any]], source: str) -> None:
    assert list(expected) == [field.name for field in fields_of(source)] and set(expected) == set(sample.arrays)
    for field in fields_of(source):
        assert sample[field.name].dtype == field.dtype, field.name
        assert np.array_equal(sample[field.name], expected[field.name]), field.name


def test_matterport_views_equal_their_files(matterport_world: Path) -> None:
    source, listed = opened("matterport", matterport_world)
    for one in listed:
        sample, findings = read_sample(source, one)
        scene, image = one.key.split("/")
        name, angle, rot = image.split("_")
        folder, view = matterport_world / "data" / scene, f"{angle}_{rot}"
        segmap, segmentation = (
            load(folder / f"{name}_segmap{view}.mapped.npz"),
            load(folder / f"{name}_segmentation{view}.mapped.npz"),
        )
        expected = {
            "rgb": np.array(Image.open(folder / f"{name}_i{view}.jpg")),
            "depth": (np.array(Image.open(matterport_world / "depth_gen" / scene / f"{name}_d{view}.png")) / 4000).astype(
                np.float32
            ),
            "semantic_2d": segmap[..., 0],
            "instance_2d": segmap[..., 1],
            "geometry": load(folder / f"{name}_geometry{view}.npz"),
            "semantic_3d": segmentation[0],
            "instance_3d": segmentation[1],
            "weighting": load(folder / f"{name}_weighting{view}.npz"),
            "intrinsics": np.load(folder / f"{name}_intrinsics_{angle}.npy"),
            "outside": load(folder / f"{name}_geometry{view}.npz", "mask"),
            "room": segmap[..., 2],
            "room_mask": np.array(Image.open(matterport_world / "room_mask" / scene / f"{name}_rm{view}.png")),
        }
        assert findings == [] and "campose" not in sample.facts
        assert_equals(sample, expected, "matterport")
        assert [file["kind"] for file in sample.facts["files"]] == list(MATTERPORT_FILES)


def test_arrays_given_are_filled_and_hold_nothing_of_the_view_before(front3d_world: Path) -> None:
    source, listed = opened("front3d", front3d_world)
    arrays = source.new_arrays()
    for array in arrays.values():
        array[...] = 1
    for one in (listed[0], listed[-1], listed[0]):
        sample, _ = read_sample(source, one, arrays)
        assert all(np.shares_memory(sample[name], arrays[name]) for name in sample.arrays)
        assert sample == read_sample(source, one)[0]


def test_intrinsics_are_scaled_with_the_image(front3d_world: Path) -> None:
    _, listed = opened("front3d", front3d_world)
    sample, findings = read_sample(Source("front3d", front3d_world, 64, (120, 160)), listed[0])
    assert sample["intrinsics"][0, 0] == pytest.approx(138.56407175) and sample["intrinsics"][:2, 2].tolist() == [79.5, 59.5]
    assert {(finding.check, finding.field) for finding in findings} == {("shape", "rgb"), ("shape", "depth"), ("shape", "segmap")}


@pytest.mark.parametrize(
    ("source", "kind", "optional"),
    [("front3d", kind, kind == "campose") for kind in FRONT3D_FILES]
    + [("matterport", kind, kind == "room_mask") for kind in MATTERPORT_FILES],
)
def test_a_missing_file_is_a_finding_unless_it_is_optional(
    source: str, kind: str, optional: bool, front3d_world: Path, matterport_world: Path, tmp_path: Path
) -> None:
    root = copy_of(matterport_world if source == "matterport" else front3d_world, tmp_path / "world")
    folder, listed = opened(source, root)
    whole, _ = read_sample(folder, listed[0])
    path = raw_files(folder, listed[0])[kind]
    (root / path).unlink()
    sample, findings = read_sample(folder, listed[0])
    file = next(file for file in folder.files if file.kind == kind)
    assert findings == ([] if optional else [Finding("presence", kind, "error", "no such file", path)])
    assert set(whole.arrays) - set(sample.arrays) == set(file.fields)
    assert all(np.array_equal(sample[name], whole[name]) for name in sample.arrays)
    assert sample.facts["digest"] != whole.facts["digest"]
    assert read_bytes(folder, listed[-1], file) is not None


@pytest.mark.parametrize("source", ["front3d", "matterport"])
def test_a_damaged_file_is_a_finding_and_the_others_are_read(
    source: str, front3d_world: Path, matterport_world: Path, tmp_path: Path
) -> None:
    root = copy_of(matterport_world if source == "matterport" else front3d_world, tmp_path / "world")
    folder, listed = opened(source, root)
    for file in folder.files:
        path = root / raw_files(folder, listed[0])[file.kind]
        data = path.read_bytes()
        replace_file(path, data[: len(data) // 2])
        sample, findings = read_sample(folder, listed[0])
        assert [(finding.check, finding.field, finding.severity) for finding in findings] == [("container", file.kind, "error")]
        assert not set(file.fields) & set(sample.arrays)
        assert len(sample.arrays) + len(file.fields) == len(folder.fields)
        replace_file(path, data)
    assert read_sample(folder, listed[0])[1] == []


def test_an_optional_file_that_is_damaged_or_a_folder_is_a_finding(front3d_world: Path, tmp_path: Path) -> None:
    root = copy_of(front3d_world, tmp_path / "world")
    folder, listed = opened("front3d", root)
    path = root / raw_files(folder, listed[0])["campose"]
    path.unlink()
    path.mkdir()
    sample, findings = read_sample(folder, listed[0])
    assert [(finding.check, finding.field) for finding in findings] == [("container", "campose")]
    assert "world_from_camera" not in sample and "campose" not in sample.facts


def test_a_pose_file_that_lacks_an_array_gives_no_pose(front3d_world: Path, tmp_path: Path) -> None:
    root = copy_of(front3d_world, tmp_path / "world")
    folder, listed = opened("front3d", root)
    path = root / raw_files(folder, listed[0])["campose"]
    with np.load(path) as archive:
        arrays = dict(archive)
    for name in arrays:
        path.unlink()
        np.savez(path, **{other: array for other, array in arrays.items() if other != name})
        sample, findings = read_sample(folder, listed[0])
        assert [(finding.check, finding.field) for finding in findings] == [("container", "campose")]
        assert "world_from_camera" not in sample and "campose" not in sample.facts


def test_labels_beyond_their_dtype_are_findings(front3d_world: Path, tmp_path: Path) -> None:
    root = copy_of(front3d_world, tmp_path / "world")
    folder, listed = opened("front3d", root)
    path = root / raw_files(folder, listed[0])["segmap"]
    labels = load(path)
    for channel, value, dtype in (
        (0, 256, "uint32"),
        (1, 65536, "uint32"),
        (0, -1, "int32"),
        (1, -1, "int16"),
        (1, 2**40, "int64"),
    ):
        changed = labels.astype(dtype)
        changed[5, 7, channel] = value
        path.unlink()
        np.savez_compressed(path, data=changed)
        sample, findings = read_sample(folder, listed[0])
        assert [(finding.check, finding.field) for finding in findings] == [("range", "segmap")]
        assert f"channel {channel}" in findings[0].observed and str(value) in findings[0].observed
        assert not {"semantic_2d", "instance_2d"} & set(sample.arrays)


def test_the_ends_of_the_ranges_of_labels_are_read(front3d_world: Path, tmp_path: Path) -> None:
    root = copy_of(front3d_world, tmp_path / "world")
    folder, listed = opened("front3d", root)
    path = root / raw_files(folder, listed[0])["segmap"]
    labels = np.zeros((240, 320, 2), np.int32)
    labels[0, 0] = 255, 65535
    path.unlink()
    np.savez_compressed(path, data=labels)
    sample, findings = read_sample(folder, listed[0])
    assert findings == []
    for channel, name in enumerate(("semantic_2d", "instance_2d")):
        assert np.array_equal(sample[name], labels[..., channel])


def test_a_room_mask_above_255_is_a_finding(matterport_world: Path, tmp_path: Path) -> None:
    root = copy_of(matterport_world, tmp_path / "world")
    folder, listed = opened("matterport", root)
    path = root / raw_files(folder, listed[0])["room_mask"]
    for most, expected in ((255, []), (256, [("range", "room_mask")])):
        path.unlink()
        Image.fromarray(np.full((240, 320), most, np.uint16)).save(path)
        sample, findings = read_sample(folder, listed[0])
        assert [(finding.check, finding.field) for finding in findings] == expected
        assert ("room_mask" in sample) == (most == 255)


# --- the list's own path of the colour image


def test_the_colour_image_comes_from_where_the_list_says(front3d_world: Path, tmp_path: Path) -> None:
    root = copy_of(front3d_world, tmp_path / "world")
    folder, listed = opened("front3d", root)
    pixels = np.random.default_rng(5).integers(0, 256, (240, 320, 3), np.uint8)
    (root / "augment").mkdir()
    Image.fromarray(pixels).save(root / "augment" / "dark.png")
    for given in ("augment/dark.png", str(root / "augment" / "dark.png")):
        sample, findings = read_sample(folder, Listed(listed[0].key, (), given))
        assert findings == [] and np.array_equal(sample["rgb"], pixels)
        assert sample.facts["files"][0]["path"] == "augment/dark.png"


@pytest.mark.parametrize(
    "given", ["../secret.png", "/etc/hostname", "augment/../../secret.png", "data/../../secret.png", "link/secret.png"]
)
def test_a_colour_image_outside_the_folder_is_refused(given: str, front3d_world: Path, tmp_path: Path) -> None:
    root = copy_of(front3d_world, tmp_path / "world")
    folder, listed = opened("front3d", root)
    Image.fromarray(np.zeros((240, 320, 3), np.uint8)).save(tmp_path / "secret.png")
    (root / "data" / "link").symlink_to(tmp_path)
    sample, findings = read_sample(folder, Listed(listed[0].key, (), given.replace("link/", "data/link/")))
    assert [(finding.check, finding.field) for finding in findings] == [("path", "rgb")] and "rgb" not in sample


# --- digests


def test_the_digest_changes_with_every_file_and_stays_with_the_same(
    front3d_world: Path, matterport_world: Path, tmp_path: Path
) -> None:
    for source, world in (("front3d", front3d_world), ("matterport", matterport_world)):
        root = copy_of(world, tmp_path / source)
        folder, listed = opened(source, root)
        digests = {read_sample(folder, listed[0])[0].facts["digest"]}
        for path in raw_files(folder, listed[0]).values():
            data = (root / path).read_bytes()
            replace_file(root / path, data[:-1] + bytes([data[-1] ^ 1]))
            digests.add(read_sample(folder, listed[0])[0].facts["digest"])
            replace_file(root / path, data)
        assert len(digests) == 1 + len(folder.files)
        assert read_sample(folder, listed[0])[0].facts["digest"] in digests
        assert read_sample(folder, listed[1])[0].facts["digest"] not in digests


def test_the_digest_is_over_kinds_and_sums_and_not_over_their_order() -> None:
    assert digest_of({"a": "1", "b": "2"}) == digest_of({"b": "2", "a": "1"})
    others: tuple[Callable[[], dict[str, str]], ...] = (
        lambda: {"a": "2", "b": "1"},
        lambda: {"a": "1"},
        lambda: {"a": "1", "c": "2"},
        lambda: {"a": "1", "b": "unreadable"},
        dict,
    )
    assert len({digest_of(make()) for make in others} | {digest_of({"a": "1", "b": "2"})}) == 6


def test_the_digest_does_not_depend_on_where_the_folder_lies(front3d_world: Path, tmp_path: Path) -> None:
    root = copy_of(front3d_world, tmp_path / "elsewhere")
    folder, listed = opened("front3d", front3d_world)
    moved, _ = opened("front3d", root)
    assert read_sample(folder, listed[0])[0].facts == read_sample(moved, listed[0])[0].facts
