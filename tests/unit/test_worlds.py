"""Made-up worlds keep every promise of the released datasets. The codes (S1, G1, ...) are those of the invariants in the docs.

Files are read here with numpy, Pillow and OpenEXR only, never with our own readers, so that both can be wrong only once.
"""

import hashlib
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import OpenEXR
import pytest
from numpy.typing import NDArray
from PIL import Image

from scenemill.schemas.errors import ConfigError
from scenemill.schemas.labels import CEILING, FLOOR, LABELS, WALL
from scenemill.transforms.geometry import (
    FRONT3D_INTRINSICS,
    TRUNCATION_VOXELS,
    back_project,
    camera_index,
    front3d_frustum,
    matterport_frustum,
    voxel_size_m,
)
from scenemill.transforms.rendering import Box, Camera, cast_rays, find_free, frustum_columns, measure_distance, place
from scenemill.transforms.worlds import write_world

SIZE = (320, 240)
K = np.array(FRONT3D_INTRINSICS)
THINGS = [label.id for label in LABELS if label.thing]
ALL_CLASSES = {label.id for label in LABELS[1:]}


@dataclass(frozen=True)
class RawView:
    """One view as its files say, volumes turned image-aligned."""

    scene: str
    grid: int
    rgb: NDArray[np.uint8]
    depth_m: NDArray[np.float32]
    segmap: NDArray[np.uint32]
    geometry: NDArray[Any]
    semantic: NDArray[np.int32]
    instance: NDArray[np.int32]
    weight: NDArray[np.int16]
    frustum: NDArray[np.bool_]
    pose: dict[str, NDArray[Any]]

    def voxel_of_pixel(self) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """(3, H, W) nearest voxel of every pixel, and (H, W) True where that voxel is in the frustum."""
        centre = camera_index("front3d", K, SIZE, self.grid)
        voxel = np.rint(back_project(self.depth_m, K, centre, self.grid)).astype(np.intp)
        assert voxel.min() >= 0 and voxel.max() < self.grid
        return voxel, self.frustum[tuple(voxel)]

    def ids(self, semantic: NDArray[Any], instance: NDArray[Any]) -> set[tuple[int, int]]:
        """The (class, instance) pairs of the things in a pair of maps or volumes."""
        thing = np.isin(semantic, THINGS)
        codes = np.unique(semantic[thing].astype(np.int64) * 1000 + instance[thing])
        return {(int(code) // 1000, int(code) % 1000) for code in codes}

    def image_ids(self) -> set[tuple[int, int]]:
        return self.ids(self.segmap[..., 0], self.segmap[..., 1])

    def volume_ids(self) -> set[tuple[int, int]]:
        return self.ids(self.semantic, self.instance)


def load_npz(path: Path, key: str = "data") -> NDArray[Any]:
    with np.load(path) as file:
        array: NDArray[Any] = file[key]
    return array


def load_depth(path: Path) -> NDArray[np.float32]:
    channels = OpenEXR.File(str(path)).channels()
    assert list(channels) == ["Z"]
    pixels: NDArray[np.float32] = channels["Z"].pixels
    return pixels


def load_view(folder: Path, image: str, grid: int) -> RawView:
    semantic, instance = load_npz(folder / f"segmentation_{image}.mapped.npz")[:, ::-1, ::-1]
    with np.load(folder / f"campose_{image}.npz") as file:
        pose = dict(file)
    return RawView(
        scene=folder.name,
        grid=grid,
        rgb=np.array(Image.open(folder / f"rgb_{image}.png")),
        depth_m=load_depth(folder / f"depth_{image}.exr"),
        segmap=load_npz(folder / f"segmap_{image}.mapped.npz"),
        geometry=load_npz(folder / f"geometry_{image}.npz")[::-1, ::-1],
        semantic=semantic,
        instance=instance,
        weight=load_npz(folder / f"weighting_{image}.npz")[::-1, ::-1],
        frustum=load_npz(folder.parent.parent / "meta" / "frustum_mask.npz", "mask")[::-1, ::-1],
        pose=pose,
    )


def load_views(root: Path, grid: int) -> list[RawView]:
    return [load_view(path.parent, path.stem[-4:], grid) for path in sorted(root.glob("data/*/rgb_*.png"))]


def digest(root: Path) -> dict[str, str]:
    paths = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.fixture(scope="module", params=[(64, 3), (128, 1)], ids=["grid64", "grid128"])
def views(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[RawView]:
    grid, scenes = request.param
    root = tmp_path_factory.mktemp("front3d")
    write_world("front3d", root, scenes=scenes, views=6, seed=5, grid=grid)
    return load_views(root, grid)


@pytest.fixture(scope="module")
def front3d(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("layout")
    write_world("front3d", root, scenes=3, views=2, grid=64)
    return root


@pytest.fixture(scope="module")
def matterport(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("matterport")
    write_world("matterport", root, scenes=2, views=8, grid=64)
    return root


# --- 3D-Front: what must hold in every view


def test_s1_arrays_have_the_released_keys_dtypes_and_shapes(views: Sequence[RawView]) -> None:
    for view in views:
        cube = (view.grid,) * 3
        assert view.rgb.shape == (240, 320, 3) and view.rgb.dtype == np.uint8
        assert view.depth_m.shape == (240, 320) and view.depth_m.dtype == np.float32
        assert view.segmap.shape == (240, 320, 2) and view.segmap.dtype == np.uint32
        assert view.geometry.shape == cube and view.geometry.dtype == np.float64
        assert view.semantic.shape == cube and view.semantic.dtype == np.int32
        assert view.weight.shape == cube and view.weight.dtype == np.int16
        assert view.frustum.shape == cube and view.frustum.dtype == np.bool_


def test_g1_distance_is_within_truncation_and_reaches_it(views: Sequence[RawView]) -> None:
    for view in views:
        assert view.geometry.min() >= 0.0 and view.geometry.max() == TRUNCATION_VOXELS


def test_g2_distance_is_float32_in_float64(views: Sequence[RawView]) -> None:
    for view in views:
        assert np.array_equal(view.geometry, view.geometry.astype(np.float32))


def test_g3_neighbouring_voxels_differ_by_at_most_one(views: Sequence[RawView]) -> None:
    for view in views:
        for axis in range(3):
            one, other = (np.moveaxis(view.geometry, axis, 0)[part] for part in (slice(1, None), slice(None, -1)))
            both = (one < TRUNCATION_VOXELS) & (other < TRUNCATION_VOXELS)
            assert np.abs(one - other)[both].max() <= 1.00001


def test_g4_nothing_is_measured_outside_the_frustum(views: Sequence[RawView]) -> None:
    for view in views:
        assert np.array_equal(view.frustum, front3d_frustum(view.grid))
        assert (view.geometry[~view.frustum] == TRUNCATION_VOXELS).all()


def test_l1_labelled_voxels_are_those_within_one_of_a_surface(views: Sequence[RawView]) -> None:
    for view in views:
        assert np.array_equal(view.semantic > 0, view.geometry < 1.0)


def test_l2_only_things_have_instances_in_the_volume(views: Sequence[RawView]) -> None:
    for view in views:
        assert np.array_equal(view.instance > 0, np.isin(view.semantic, THINGS))


def test_l3_an_instance_has_one_class_in_all_views_of_a_scene(views: Sequence[RawView]) -> None:
    kinds: dict[tuple[str, int], set[int]] = {}
    for view in views:
        stuff = np.unique(view.segmap.reshape(-1, 2), axis=0).tolist()
        for semantic, instance in [*view.volume_ids(), *stuff]:
            kinds.setdefault((view.scene, instance), set()).add(semantic)
    assert {len(classes) for classes in kinds.values()} == {1}
    assert max(instance for _, instance in kinds) > 255


def test_l4_every_thing_in_the_image_is_in_the_volume(views: Sequence[RawView]) -> None:
    for view in views:
        assert view.image_ids() <= view.volume_ids()


def test_l5_l6_images_have_no_void_and_one_floor(views: Sequence[RawView]) -> None:
    for view in views:
        semantic, instance = view.segmap[..., 0], view.segmap[..., 1]
        assert set(np.unique(semantic)) <= ALL_CLASSES and instance.min() > 0
        assert len(np.unique(instance[semantic == FLOOR])) == 1


def test_every_view_shows_wall_floor_and_a_few_things(views: Sequence[RawView]) -> None:
    for view in views:
        assert {WALL, FLOOR} <= set(np.unique(view.segmap[..., 0])) and len(view.image_ids()) >= 3


def test_every_wall_has_its_own_id_in_the_image(views: Sequence[RawView]) -> None:
    for scene in {view.scene for view in views}:
        walls = [view.segmap[..., 1][view.segmap[..., 0] == WALL] for view in views if view.scene == scene]
        assert len(np.unique(np.concatenate(walls))) >= 4


def test_all_twelve_classes_occur_in_images_and_volumes_of_a_scene(views: Sequence[RawView]) -> None:
    for scene in {view.scene for view in views}:
        mine = [view for view in views if view.scene == scene]
        assert set(np.concatenate([np.unique(view.segmap[..., 0]) for view in mine])) == ALL_CLASSES
        assert set(np.concatenate([np.unique(view.semantic) for view in mine])) == ALL_CLASSES | {0}


def test_w1_w2_w3_weights_mark_surface_and_frustum(views: Sequence[RawView]) -> None:
    for view in views:
        assert set(np.unique(view.weight)) == {1, 2, 5, 10}
        assert np.array_equal(view.weight >= 5, view.geometry < 3.0)
        assert (view.weight[~view.frustum] == 1).all()


def test_w4_voxels_behind_the_visible_depth_weigh_double(views: Sequence[RawView]) -> None:
    for view in views:
        point = np.argwhere(view.frustum) - camera_index("front3d", K, SIZE, view.grid)
        column, row = (np.rint(K[a, a] * point[:, a] / point[:, 2] + K[a, 2]).astype(int) for a in (0, 1))
        seen = (column >= 0) & (column < 320) & (row >= 0) & (row < 240)
        behind = view.depth_m[row[seen], column[seen]] < point[seen, 2] * voxel_size_m(view.grid)
        double = np.isin(view.weight[view.frustum][seen], (2, 10))
        assert seen.mean() > 0.98 and (double == behind).mean() > 0.999


def test_d1_depth_is_between_near_and_far(views: Sequence[RawView]) -> None:
    for view in views:
        assert view.depth_m.min() > 0.4 and view.depth_m.max() < 6.0


def test_p1_depth_lands_on_the_surface_exactly_where_the_frustum_reaches(views: Sequence[RawView]) -> None:
    for view in views:
        voxel, inside = view.voxel_of_pixel()
        assert np.array_equal(view.geometry[tuple(voxel)] < 1.0, inside)
        assert inside.mean() > 0.9  # a border of half a voxel is lost, and voxels are four times as wide at 64


def test_p2_p4_p5_labels_of_pixels_and_voxels_agree(views: Sequence[RawView]) -> None:
    for view in views:
        voxel, inside = view.voxel_of_pixel()
        semantic, instance = view.semantic[tuple(voxel)][inside], view.instance[tuple(voxel)][inside]
        seen, seen_instance = np.moveaxis(view.segmap[inside], -1, 0)
        things = np.isin(seen, THINGS) & np.isin(semantic, THINGS)
        assert (instance[(seen >= WALL) & (semantic >= WALL)] == 0).all()
        assert (seen == semantic).mean() >= 0.97
        assert (seen_instance[things] == instance[things]).mean() >= 0.95


def test_c1_c2_pose_is_level_and_puts_the_floor_at_zero(views: Sequence[RawView]) -> None:
    for view in views:
        pose = view.pose["camera2world"]
        assert np.allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3)) and np.isclose(np.linalg.det(pose[:3, :3]), 1.0)
        assert pose[2, 3] == 0.75
        floor_m = (back_project(view.depth_m, K, np.zeros(3), 256) * 0.03)[:, view.segmap[..., 0] == FLOOR]
        assert np.abs(pose[2, :3] @ floor_m + pose[2, 3]).max() < 1e-5


def test_pose_file_agrees_with_itself(views: Sequence[RawView]) -> None:
    for view in views:
        pose = view.pose
        assert np.allclose(pose["camera2world"], pose["blender_matrix"] @ np.diag([1.0, -1.0, -1.0, 1.0]))
        assert np.array_equal(pose["blender_location"], pose["camera2world"][:3, 3])
        tilt, _, turn = pose["blender_rotation_euler"]
        about_x = np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
        about_z = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
        assert np.allclose(about_z @ about_x, pose["blender_matrix"][:3, :3])
        assert pose["room_id"].dtype == np.int64 and pose["intrinsic"].shape == (3, 3)


def test_m1_surfaces_of_one_view_lie_on_those_of_another(views: Sequence[RawView]) -> None:
    mine = [view for view in views if view.scene == views[0].scene][:3]
    centre, size = camera_index("front3d", K, SIZE, mine[0].grid), voxel_size_m(mine[0].grid)
    for one, other in permutations(mine, 2):
        found = np.argwhere(one.semantic > 0)
        point = np.c_[(found - centre) * size, np.ones(len(found))] @ one.pose["camera2world"].T
        moved = np.rint((point @ np.linalg.inv(other.pose["camera2world"]).T)[:, :3] / size + centre).astype(int)
        known = ((moved >= 0) & (moved < one.grid)).all(axis=1)
        found, moved = found[known], moved[known]
        shared = other.frustum[tuple(moved.T)]
        assert (other.geometry[tuple(moved[shared].T)] < 2.0).all()


def test_no_two_views_are_the_same(views: Sequence[RawView]) -> None:
    assert len({view.rgb.tobytes() for view in views}) == len({view.depth_m.tobytes() for view in views}) == len(views)


# --- 3D-Front: the folder


def test_front3d_folder_holds_exactly_the_released_files(front3d: Path) -> None:
    stems = {"rgb": "png", "depth": "exr", "segmap": "mapped.npz", "geometry": "npz", "segmentation": "mapped.npz"}
    stems |= {"weighting": "npz", "campose": "npz"}
    records = [record for split in ("train", "val", "test") for record in json.loads((front3d / f"{split}.json").read_text())]
    views = {f"data/{record['scene_id']}/{stem}_{record['image_id']}.{end}" for record in records for stem, end in stems.items()}
    lists = {"train.json", "val.json", "test.json", "label_map.json", "meta/frustum_mask.npz"}
    assert set(digest(front3d)) == views | lists
    assert all(len(record["scene_id"]) == 36 and len(record["image_id"]) == 4 for record in records)
    assert all(record["height"] == 240 and record["width"] == 320 and len(record) == 4 for record in records)


def test_archives_are_sound_dated_1980_and_packed_as_released(front3d: Path) -> None:
    for path in front3d.rglob("*.npz"):
        with zipfile.ZipFile(path) as archive:
            assert archive.testzip() is None
            members = archive.infolist()
        assert {member.date_time for member in members} == {(1980, 1, 1, 0, 0, 0)}
        stored = zipfile.ZIP_STORED if path.name.startswith("campose") else zipfile.ZIP_DEFLATED
        assert {member.compress_type for member in members} == {stored}


def test_depth_files_are_scan_lines_with_zip_compression(front3d: Path) -> None:
    header = OpenEXR.File(str(next(front3d.rglob("depth_*.exr")))).header()
    assert header["compression"] == OpenEXR.ZIP_COMPRESSION and header["type"] == OpenEXR.scanlineimage
    assert header["lineOrder"] == OpenEXR.INCREASING_Y


def test_label_map_lists_the_twelve_classes(front3d: Path) -> None:
    labels = json.loads((front3d / "label_map.json").read_text())
    assert [label["id"] for label in labels] == list(range(1, 13))
    assert labels[11] == {"color": [70, 70, 70], "isthing": 0, "id": CEILING, "trainId": CEILING, "name": "ceiling"}


@pytest.mark.parametrize(("scenes", "sizes"), [(1, (1, 0, 0)), (2, (1, 1, 0)), (3, (1, 1, 1)), (5, (3, 1, 1))])
def test_splits_share_no_scene_and_fill_up_in_order(scenes: int, sizes: tuple[int, int, int], tmp_path: Path) -> None:
    write_world("front3d", tmp_path, scenes=scenes, views=1, grid=64)
    splits = [json.loads((tmp_path / f"{split}.json").read_text()) for split in ("train", "val", "test")]
    assert tuple(map(len, splits)) == sizes
    assert len({record["scene_id"] for records in splits for record in records}) == scenes


def test_summary_counts_what_is_there(tmp_path: Path) -> None:
    summary = write_world("synthetic_hospital", tmp_path, scenes=1, views=2, grid=64)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert (summary.source, summary.scenes, summary.views) == ("synthetic_hospital", 1, 2)
    assert (summary.files, summary.size_bytes) == (len(files), sum(path.stat().st_size for path in files))


@pytest.mark.parametrize("source", ["front3d", "matterport"])
def test_same_seed_same_bytes_and_another_seed_another_world(source: str, tmp_path: Path) -> None:
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        write_world(source, tmp_path / name, scenes=1, views=2, seed=seed, grid=64)
    one, again, other = (digest(tmp_path / name) for name in ("one", "again", "other"))
    views = {path: sum_ for path, sum_ in one.items() if path.startswith("data/") and "intrinsics" not in path}
    assert one == again
    assert not views.keys() & other.keys() and not set(views.values()) & set(other.values())


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"source": "scannet"}, "Use one of front3d"),
        ({"scenes": 0}, "at least 1 scene"),
        ({"views": 0}, "at least 1 scene"),
        ({"views": 10_001}, "four digits"),
        ({"seed": -1}, "seed from 0"),
        ({"grid": 100}, "Use one of 256, 128, 64"),
    ],
)
def test_bad_arguments_are_config_errors_that_say_what_to_do(changed: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        write_world(**{"source": "front3d", "out": tmp_path / "new", "scenes": 1, "views": 1, **changed})
    assert not (tmp_path / "new").exists()


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(ConfigError, match="Name a new folder"):
        write_world("front3d", tmp_path, scenes=1, views=1)
    with pytest.raises(ConfigError, match="Name a new folder"):
        write_world("front3d", tmp_path / "mine.txt", scenes=1, views=1)


# --- Matterport3D


def matterport_views(root: Path) -> list[tuple[Path, str, str, NDArray[np.float64]]]:
    """Scene folder, name, ``<angle>_<rot>`` and intrinsics of every view."""
    found = []
    for path in sorted(root.glob("data/*/*.jpg")):
        name, view = path.stem.split("_i")
        found.append((path.parent, name, view, np.load(path.parent / f"{name}_intrinsics_{view[0]}.npy")))
    return found


def test_matterport_folder_holds_exactly_the_released_files(matterport: Path) -> None:
    records = [record for split in ("train", "val", "test") for record in json.loads((matterport / f"{split}.json").read_text())]
    expected = {"train.json", "val.json", "test.json", "label_map.json"}
    for record in records:
        scene, (name, angle, rot) = record["scene_id"], record["image_id"].split("_")
        assert len(scene) == 11 and len(name) == 32 and angle in "12" and rot in "012345"
        expected |= {f"data/{scene}/{name}_i{angle}_{rot}.jpg", f"data/{scene}/{name}_intrinsics_{angle}.npy"}
        expected |= {f"data/{scene}/{name}_{kind}{angle}_{rot}.mapped.npz" for kind in ("segmap", "segmentation")}
        expected |= {f"data/{scene}/{name}_{kind}{angle}_{rot}.npz" for kind in ("geometry", "weighting")}
        expected |= {f"depth_gen/{scene}/{name}_d{angle}_{rot}.png", f"room_mask/{scene}/{name}_rm{angle}_{rot}.png"}
    assert len(records) == 16 and set(digest(matterport)) == expected


def test_matterport_intrinsics_are_shared_by_the_yaws_and_anisotropic(matterport: Path) -> None:
    for _, _, _, intrinsics in matterport_views(matterport):
        assert intrinsics.shape == (4, 4) and intrinsics.dtype == np.float64 and intrinsics[0, 0] > intrinsics[1, 1] + 10


def test_matterport_distance_is_signed_and_ends_at_the_frustum(matterport: Path) -> None:
    for folder, name, view, intrinsics in matterport_views(matterport):
        distance, outside = (load_npz(folder / f"{name}_geometry{view}.npz", key) for key in ("data", "mask"))
        assert distance.dtype == np.float32 and outside.dtype == np.bool_
        assert np.array_equal(~outside, matterport_frustum(intrinsics, SIZE, 64))
        assert (distance[outside] == -12.0).all() and distance[~outside].min() > -12.0
        assert 1.0 < distance.max() <= np.float32(11.999999)


def test_matterport_labels_and_weights_follow_their_bands(matterport: Path) -> None:
    for folder, name, view, _ in matterport_views(matterport):
        distance, outside = (load_npz(folder / f"{name}_geometry{view}.npz", key) for key in ("data", "mask"))
        semantic, instance = load_npz(folder / f"{name}_segmentation{view}.mapped.npz")
        weight = load_npz(folder / f"{name}_weighting{view}.npz")
        assert np.array_equal(semantic > 0, (np.abs(distance) < 3.0) & ~outside)
        assert np.array_equal(semantic > 0, instance > 0) and {WALL} <= set(np.unique(semantic))
        assert np.array_equal(weight >= 25, (distance > -1.0) & (distance < 3.0) & ~outside)
        assert set(np.unique(weight)) == {1, 2, 25, 50} and (weight[outside] == 1).all()


def test_matterport_depth_lands_on_the_surface_and_splits_air_from_solid(matterport: Path) -> None:
    for folder, name, view, intrinsics in matterport_views(matterport):
        raw = np.array(Image.open(matterport / "depth_gen" / folder.name / f"{name}_d{view}.png"))
        depth_m = (raw / 4000).astype(np.float32)
        distance, outside = (load_npz(folder / f"{name}_geometry{view}.npz", key) for key in ("data", "mask"))
        voxel = np.rint(back_project(depth_m, intrinsics, camera_index("matterport", intrinsics, SIZE, 64), 64)).astype(int)
        kept = (raw > 0) & ~outside[tuple(voxel)]
        assert raw.dtype == np.uint16 and 0.0 < (raw == 0).mean() < 0.02 and kept.mean() > 0.85
        assert np.abs(distance[tuple(voxel)][kept]).max() < 1.0
        point = back_project(0.8 * depth_m, intrinsics, camera_index("matterport", intrinsics, SIZE, 64), 64)
        before = distance[tuple(np.rint(point).astype(int))][kept & ~outside[tuple(np.rint(point).astype(int))]]
        assert before.min() > -1.0 and (before > 0.0).mean() > 0.9 and distance[~outside].min() < -1.0


def test_matterport_room_mask_is_where_the_segmap_names_this_room(matterport: Path) -> None:
    elsewhere = 0
    for folder, name, view, _ in matterport_views(matterport):
        segmap = load_npz(folder / f"{name}_segmap{view}.mapped.npz")
        observed = np.array(Image.open(matterport / "room_mask" / folder.name / f"{name}_rm{view}.png"))
        assert segmap.shape == (240, 320, 3) and segmap.dtype == np.uint32 and segmap[..., :2].min() > 0
        assert np.array_equal(observed, np.where(segmap[..., 2] == 0, 255, 0))
        elsewhere += int((segmap[..., 2] > 0).sum())
    assert elsewhere > 0


# --- the arithmetic below it all


def _box(centre: tuple[float, float, float], half: tuple[float, float, float], yaw: float = 0.0) -> Box:
    return Box(centre, half, yaw, 1, 1, (0.5, 0.5, 0.5), (1.0, 1.0, 0.0))


def test_a_ray_meets_the_front_of_a_box_at_its_distance() -> None:
    camera = Camera((1.0, 2.0, 0.75), np.pi / 2, FRONT3D_INTRINSICS)  # looks along world y
    boxes = [_box((1.0, 9.0, 0.75), (9.0, 0.5, 9.0)), _box((1.5, 5.0, 0.75), (0.25, 0.5, 0.5))]
    depth_m, hit = cast_rays(place(boxes, camera), K, SIZE)
    column = 159.5 + 277.1281435 * 0.5 / 2.5  # the small box, half a metre right of the axis and 2.5 m away
    assert depth_m[120, round(column)] == 2.5 and hit[120, round(column)] == 1
    assert depth_m[120, 100] == 6.5 and hit[120, 100] == 0


def test_distance_equals_that_to_points_on_the_faces() -> None:
    camera, box = Camera((0.0, 0.0, 1.0), 0.3, FRONT3D_INTRINSICS), _box((2.4, 0.9, 0.8), (0.6, 0.4, 0.5), yaw=0.7)
    columns = frustum_columns("front3d", 64, FRONT3D_INTRINSICS)
    distance, _ = measure_distance(place([box], camera), columns)
    fine = np.stack(np.meshgrid(*(np.linspace(-half, half, 61) for half in box.half)), axis=-1).reshape(-1, 3)
    own = fine[(np.isclose(np.abs(fine), box.half)).any(axis=1)]
    world = own @ _about_z(box.yaw).T + box.centre - np.array(camera.position)
    face = world @ _about_z(camera.heading) @ np.array([[0, 0, 1], [-1, 0, 0], [0, -1, 0]]) / 0.12 + columns.centre
    for n, row in np.argwhere((distance < 9.0) & columns.inside)[::500]:
        voxel = np.array([columns.i[n], columns.row[row], columns.k[n]])
        assert abs(distance[n, row] - np.linalg.norm(face - voxel, axis=1).min()) < 0.15


def _about_z(angle: float) -> NDArray[np.float64]:
    return np.array([[np.cos(angle), -np.sin(angle), 0.0], [np.sin(angle), np.cos(angle), 0.0], [0.0, 0.0, 1.0]])


def test_free_space_is_the_hollow_less_the_solids() -> None:
    camera = Camera((0.0, 0.0, 1.0), 0.0, FRONT3D_INTRINSICS)
    columns = frustum_columns("front3d", 64, FRONT3D_INTRINSICS)
    hollow, solid = (place([_box((2.0, 0.0, 1.0), half)], camera) for half in ((2.0, 2.0, 1.0), (0.5, 0.5, 0.5)))
    free = find_free(hollow, solid, columns)
    ahead_m = (columns.k - columns.centre[2]) * 0.12
    on_axis = free[:, round(columns.centre[1]) - columns.first_row][columns.i == round(columns.centre[0])]
    expected = (ahead_m < 1.5) | ((ahead_m > 2.5) & (ahead_m < 4.0))
    assert np.array_equal(on_axis, expected[columns.i == round(columns.centre[0])])
