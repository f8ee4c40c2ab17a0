"""Logs in the viewer: frames hold what a training wrote, at the iteration asked for; files that are broken or lead out are told."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scenemill import Timelapse
from scenemill.pipelines.viewer.cut import FULL, USUAL, Budget
from scenemill.pipelines.viewer.log import LogRoot
from scenemill.schemas.errors import ConfigError, SourceError
from scenemill.trainers.usd import PBRMaterial

QUADS = np.array([[0, 1, 2, 3], [1, 4, 5, 2]])
PLACES = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [2, 0, 0], [2, 1, 0]], np.float32)


def scene_of(log: Path, item: str, time: float = 0, budget: Budget = USUAL) -> Any:
    return LogRoot("log", log).scene(item, "", time, budget)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


def test_the_index_lists_items_with_iterations_and_attributes(log: Path) -> None:
    with Timelapse(log) as writer:
        for time in (0, 10, 2.5):
            writer.add_mesh_batch(time, "a/b", [PLACES + time] * 2, [QUADS] * 2, vertex_colors_list=[PLACES / 2] * 2)
        writer.add_pointcloud_batch(10, "", [PLACES], semantic_ids=[np.arange(6)])
    described = LogRoot("log", log).describe()
    found = {one["item"]: (described["timelines"][one["timeline"]], one["attributes"], one["error"]) for one in described["items"]}
    assert found == {
        "mesh/a/b/0": ([0, 2.5, 10], ["colors"], ""),
        "mesh/a/b/1": ([0, 2.5, 10], ["colors"], ""),
        "pointcloud//0": ([10], ["semantic_ids"], ""),
    }
    json.dumps(described, allow_nan=False)
    assert scene_of(log, "pointcloud//0").parts[0].shown == 6


def test_a_mesh_of_quads_is_drawn_as_triangles_with_its_colours_ids_uvs_and_normals(log: Path) -> None:
    uvs = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32)
    corners = np.array([[0, 1, 2, 3], [3, 2, 1, 0]])
    normals = np.random.default_rng(0).normal(size=(2, 4, 3)).astype(np.float32)
    colors = np.array([[255, 0, 0], [0, 0, 255]], np.uint8)
    with Timelapse(log) as writer:
        writer.set_labels({4: ("chair", (1.0, 0.5, 0.0)), 9: "lamp"})
        given = ([PLACES], [QUADS], [uvs], [corners], [normals])
        writer.add_mesh_batch(0, "m", *given, face_colors_list=[colors], semantic_ids_list=[np.array([4, 9])])
    scene = scene_of(log, "mesh/m/0")
    (part,) = scene.parts
    assert part.arrays["indices"].tolist() == [[0, 1, 2], [0, 2, 3], [1, 4, 5], [1, 5, 2]]
    assert part.places == {"uvs": "corner", "normals": "corner", "colors": "face", "ids.semantic id": "face"}
    picked = np.array([[0, 1, 2], [0, 2, 3]])
    np.testing.assert_allclose(
        part.arrays["uvs"].reshape(4, 3, 2), np.concatenate([uvs[corners[0][picked]], uvs[corners[1][picked]]])
    )
    np.testing.assert_allclose(part.arrays["normals"].reshape(4, 3, 3), np.concatenate([normals[0][picked], normals[1][picked]]))
    assert part.arrays["colors"].tolist() == [[255, 0, 0]] * 2 + [[0, 0, 255]] * 2
    assert part.arrays["ids.semantic id"].tolist() == [4, 4, 9, 9]
    legend = {entry["id"]: (entry["name"], entry["count"]) for entry in scene.legends["semantic id"]}
    assert legend == {4: ("chair", 1), 9: ("lamp", 1)}
    assert scene.legends["semantic id"][0]["color"] == [255, 128, 0]


def test_a_scene_is_the_iteration_nearest_to_the_one_asked_for_and_says_both(log: Path) -> None:
    with Timelapse(log) as writer:
        for time in (0, 10, 20):
            writer.add_pointcloud_batch(time, "p", [PLACES + time])
    for asked, shown in ((0, 0), (4, 0), (5, 10), (19, 20), (1e9, 20)):
        scene = scene_of(log, "pointcloud/p/0", asked)
        assert (scene.time, scene.requested) == (shown, asked)
        np.testing.assert_allclose(scene.parts[0].arrays["positions"].min(0), [shown, shown, shown])


def test_point_colours_ids_and_widths_stay_with_their_points(log: Path) -> None:
    points = np.random.default_rng(1).normal(size=(500, 3)).astype(np.float32)
    colors = (np.arange(1500) % 256).astype(np.uint8).reshape(500, 3)
    with Timelapse(log) as writer:
        writer.add_pointcloud_batch(0, "p", [points], colors=[colors], semantic_ids=[np.arange(500)])
    (part,) = scene_of(log, "pointcloud/p/0").parts
    ids = part.arrays["ids.semantic id"]
    np.testing.assert_array_equal(part.arrays["positions"], points[ids])
    np.testing.assert_array_equal(part.arrays["colors"], colors[ids])
    assert (part.arrays["widths"] == part.arrays["widths"][0]).all() and part.arrays["widths"][0] > 0


def test_voxels_keep_colours_and_the_transform_that_their_file_says(log: Path) -> None:
    grid = np.zeros((4, 4, 4), bool)
    grid[1, 2, 3] = grid[3, 0, 0] = True
    with Timelapse(log) as writer:
        writer.add_voxelgrid_batch(0, "as kaolin", [grid], colors=[np.array([[1.0, 0, 0], [0, 1, 0]])])
        writer.add_voxelgrid_batch(0, "centred", [grid], centered=True)
    (part,) = scene_of(log, "voxelgrid/as kaolin/0").parts
    assert part.arrays["positions"].tolist() == [[1, 2, 3], [3, 0, 0]] and part.arrays["positions"].dtype == np.int16
    assert part.arrays["colors"].tolist() == [[255, 0, 0], [0, 255, 0]]
    np.testing.assert_allclose((part.matrix @ [1, 2, 3, 1])[:3], (np.array([1, 2, 3]) - 0.5) / 3, atol=1e-6)
    (part,) = scene_of(log, "voxelgrid/centred/0").parts
    np.testing.assert_allclose((part.matrix @ [1, 2, 3, 1])[:3], (np.array([1, 2, 3]) - 1.5) / 4, atol=1e-6)


def test_materials_come_with_values_and_maps_of_the_iteration(log: Path) -> None:
    image = np.zeros((3, 2, 5), np.float32)
    image[0, :, :2] = 1
    uvs = [np.zeros((6, 2), np.float32)]
    with Timelapse(log) as writer:
        for time, shade in ((0, 0.25), (10, 0.75)):
            materials = {
                "painted": PBRMaterial(diffuse_texture=torch.tensor(image) * shade, normals_texture=torch.zeros(3, 2, 5)),
                "gold": PBRMaterial(diffuse_color=(1.0, 0.8, 0.25), metallic_value=1.0),
            }
            writer.add_mesh_batch(time, "m", [PLACES], [QUADS], uvs, [QUADS], materials_list=[materials])
    for time, shade in ((0, 0.25), (10, 0.75)):
        (part,) = scene_of(log, "mesh/m/0", time).parts
        painted, gold = part.materials["painted"], part.materials["gold"]
        np.testing.assert_allclose(gold["values"]["diffuse"], [1.0, 0.8, 0.25])
        assert gold["values"]["metallic"] == 1 and not gold["maps"]
        pixels = part.arrays[painted["maps"]["diffuse"]["array"]]
        assert pixels.shape == (2, 5, 3) and pixels.dtype == np.uint8
        np.testing.assert_allclose(pixels[..., 0], np.moveaxis(image, 0, -1)[..., 0] * shade * 255, atol=1)
        np.testing.assert_allclose(part.arrays[painted["maps"]["normals"]["array"]], 127, atol=1)  # straight up and aside alike: 0


def test_a_mesh_whose_image_is_gone_is_shown_without_materials_and_says_so(log: Path) -> None:
    with Timelapse(log) as writer:
        material = PBRMaterial(diffuse_texture=torch.rand(3, 4, 4))
        writer.add_mesh_batch(0, "m", [PLACES], [QUADS], [np.zeros((6, 2))], [QUADS], materials_list=[material])
    for path in (log / "m" / "textures").iterdir():
        path.unlink()
    scene = scene_of(log, "mesh/m/0")
    assert scene.parts[0].shown == 4 and not scene.parts[0].materials
    assert scene.notes and scene.notes[0].startswith("without materials: ")


def test_up_axis_is_that_of_the_file(log: Path) -> None:
    Timelapse(log / "z", "Z").add_pointcloud_batch(0, "p", [PLACES])
    Timelapse(log / "y").add_pointcloud_batch(0, "p", [PLACES])
    assert [scene_of(log, f"pointcloud/{axis}/p/0").up for axis in "zy"] == ["Z", "Y"]


def test_empty_clouds_grids_and_meshes_are_scenes_without_bounds(log: Path) -> None:
    none = np.zeros((0, 3), np.float32)
    with Timelapse(log) as writer:
        writer.add_pointcloud_batch(0, "p", [none])
        writer.add_voxelgrid_batch(0, "v", [np.zeros((3, 3, 3), bool)])
        writer.add_mesh_batch(0, "m", [none], [np.zeros((0, 3), int)])
    for item in ("pointcloud/p/0", "voxelgrid/v/0", "mesh/m/0"):
        scene = scene_of(log, item)
        header = json.loads(scene.encode()[8:].split(b'"buffers"')[0].rstrip(b", ") + b"}")
        assert header["bounds"] is None and [part["shown"] for part in header["parts"]] == [0]


def test_points_that_are_nowhere_do_not_blow_up_the_box(log: Path) -> None:
    points = PLACES.copy()
    points[0], points[1] = np.nan, np.inf
    Timelapse(log).add_pointcloud_batch(0, "p", [points])
    scene = scene_of(log, "pointcloud/p/0")
    assert json.loads(scene.encode()[8:].split(b'"notes"')[0].split(b'"bounds":')[1].rstrip(b","))[1] == [2, 1, 0]


def test_budgets_hold_for_each_thing_that_is_drawn(log: Path) -> None:
    points = np.random.default_rng(2).normal(size=(300, 3)).astype(np.float32)
    Timelapse(log).add_pointcloud_batch(0, "p", [points])
    assert scene_of(log, "pointcloud/p/0", budget=Budget(100, 100, 100)).parts[0].shown == 100
    assert scene_of(log, "pointcloud/p/0", budget=FULL).parts[0].shown == 300


def test_one_broken_file_hides_no_other_and_is_read_again_when_it_changes(log: Path) -> None:
    Timelapse(log).add_pointcloud_batch(0, "good", [PLACES])
    (log / "bad").mkdir()
    whole = (log / "good" / "pointcloud_0.usd").read_bytes()
    (log / "bad" / "pointcloud_0.usd").write_bytes(whole[:200])
    (log / "bad" / "mesh_3.usd").write_bytes(b"")
    root = LogRoot("log", log)
    before = root.look()
    errors = {one["item"]: one["error"] for one in root.describe()["items"]}
    assert errors["pointcloud/good/0"] == "" and "USD file" in errors["pointcloud/bad/0"] and "USD file" in errors["mesh/bad/3"]
    with pytest.raises(SourceError, match="USD file"):
        root.scene("pointcloud/bad/0", "", 0, USUAL)
    (log / "bad" / "pointcloud_0.usd").write_bytes(whole)
    assert root.look() != before
    assert root.scene("pointcloud/bad/0", "", 0, USUAL).parts[0].shown == 6


def test_looks_tell_changes_and_nothing_else(log: Path) -> None:
    writer = Timelapse(log)
    writer.add_pointcloud_batch(0, "p", [PLACES])
    root = LogRoot("log", log)
    looks, stamps = [root.look(), root.look()], [root.stamp("pointcloud/p/0")]
    assert looks[0] == looks[1]
    writer.add_pointcloud_batch(10, "p", [PLACES])
    looks.append(root.look())
    stamps.append(root.stamp("pointcloud/p/0"))
    writer.set_labels({1: "chair"})
    looks.append(root.look())
    stamps.append(root.stamp("pointcloud/p/0"))
    (log / "p" / "pointcloud_0.usd").unlink()
    looks.append(root.look())
    assert len(set(looks)) == 4 and stamps[0] != stamps[1] == stamps[2]
    assert root.describe()["items"] == []


def test_labels_of_another_form_are_told_and_the_ids_keep_their_numbers(log: Path) -> None:
    Timelapse(log).add_pointcloud_batch(0, "p", [PLACES], semantic_ids=[np.arange(6)])
    (log / "labels.json").write_text('{"labels": 3}')
    root = LogRoot("log", log)
    assert "Timelapse.set_labels" in root.describe()["error"]
    assert [entry["name"] for entry in root.scene("pointcloud/p/0", "", 0, USUAL).legends["semantic id"]] == list("012345")


@pytest.mark.parametrize(
    "item", ["", "mesh", "mesh/p/0", "pointcloud/p/1", "pointcloud/../p/0", "pointcloud/p/-1", "pointcloud/p/²"]
)
def test_items_that_are_not_there_are_refused(log: Path, item: str) -> None:
    Timelapse(log).add_pointcloud_batch(0, "p", [PLACES])
    with pytest.raises(ConfigError, match="no item"):
        scene_of(log, item)


def test_a_link_that_leads_out_of_the_log_is_not_followed(log: Path, tmp_path: Path) -> None:
    Timelapse(tmp_path / "secret").add_pointcloud_batch(0, "p", [PLACES])
    Timelapse(log).add_pointcloud_batch(0, "p", [PLACES])
    (log / "p" / "pointcloud_1.usd").symlink_to(tmp_path / "secret" / "p" / "pointcloud_0.usd")
    (log / "labels.json").symlink_to(tmp_path / "secret" / "p" / "pointcloud_0.usd")
    root = LogRoot("log", log)
    told = {one["item"]: one for one in root.describe()["items"]}
    assert "leads out of the log" in told["pointcloud/p/1"]["error"] and told["pointcloud/p/1"]["attributes"] == []
    assert "leads out of the log" in root.describe()["error"]
    with pytest.raises(SourceError, match="leads out of the log"):
        root.scene("pointcloud/p/1", "", 0, USUAL)
    assert root.scene("pointcloud/p/0", "", 0, USUAL).parts[0].shown == 6


@pytest.mark.parametrize("named", ["sublayer", "reference", "image"])
def test_a_file_that_names_one_outside_the_log_is_not_read(log: Path, tmp_path: Path, named: str) -> None:
    Timelapse(tmp_path / "secret").add_mesh_batch(0, "p", [PLACES], [QUADS])
    secret = tmp_path / "secret" / "p" / "mesh_0.usd"
    (tmp_path / "picture.png").write_bytes(b"not for everyone")
    text = {
        "sublayer": f"#usda 1.0\n(\n    subLayers = [@{secret}@]\n)\n",
        "reference": f'#usda 1.0\ndef Mesh "mesh_0" (\n    references = @{secret}@</mesh_0>\n)\n{{\n}}\n',
        "image": f'#usda 1.0\ndef Mesh "mesh_0"\n{{\n    asset look = @{tmp_path / "picture.png"}@\n}}\n',
    }[named]
    (log / "m").mkdir(parents=True)
    (log / "m" / "mesh_0.usd").write_text(text)
    with pytest.raises(SourceError, match="leads out of the log"):
        scene_of(log, "mesh/m/0")


def test_a_file_too_large_to_read_is_told(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Timelapse(log).add_pointcloud_batch(0, "p", [PLACES])
    monkeypatch.setattr("scenemill.pipelines.viewer.log.LIMIT_BYTE", 100)
    with pytest.raises(SourceError, match="at most 100"):
        scene_of(log, "pointcloud/p/0")


@pytest.mark.real
def test_kaolins_own_log_is_shown(real_data: Path) -> None:
    root = LogRoot("log", real_data / "data" / "kaolin" / "timelapse_notexture")
    described = root.describe()
    assert {one["item"].rpartition("/")[0] for one in described["items"]} == {
        "mesh/ground_truth",
        "mesh/output",
        "pointcloud/input",
        "pointcloud/output",
        "voxelgrid/output",
    }
    for one in described["items"]:
        times = described["timelines"][one["timeline"]]
        assert times in ([0], list(range(0, 101, 10)))
        scene = root.scene(one["item"], "", times[-1], USUAL)
        assert scene.time == times[-1] and scene.parts[0].shown > 500
