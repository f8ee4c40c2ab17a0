"""Reading a log: what there is, what changed, and what it looked like; logs of Kaolin, broken files and files being written."""

import json
import logging
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pxr import Sdf, Usd, UsdGeom

from scenemill.schemas.errors import ConfigError, SourceError
from scenemill.trainers import timelapse_parser as module
from scenemill.trainers.timelapse import Timelapse, TimelapseParser
from scenemill.trainers.timelapse_parser import Item
from scenemill.trainers.usd import PBRMaterial, import_mesh, import_pointcloud, import_voxelgrid
from scenemill.trainers.usd.items import Summary, read_item, summarise


def drawn(seed: int, *size: int) -> torch.Tensor:
    return torch.rand(size, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Meshes in two categories, clouds, and grids at the top."""
    writer = Timelapse(tmp_path / "log")
    for iteration in (0, 10, 25):
        writer.add_mesh_batch(iteration, "output", [drawn(iteration, 4, 3), drawn(iteration + 1, 4, 3)])
        writer.add_pointcloud_batch(iteration, "a/b", [drawn(iteration, 4, 3)], [drawn(iteration, 4, 3)], semantic_ids=[1])
    writer.add_mesh_batch(
        0, "ground_truth", [drawn(0, 4, 3)], [torch.tensor([[0, 1, 2]])], [drawn(0, 4, 2)], materials_list=[PBRMaterial()]
    )
    writer.add_voxelgrid_batch(2.5, "", [torch.ones(2, 2, 2)])
    return tmp_path / "log"


def test_a_log_is_listed_by_type_category_and_number(log: Path) -> None:
    parser = TimelapseParser(log)
    assert parser.logdir == str(log)
    assert parser.filepaths == {
        ("mesh", "ground_truth", 0): str(log / "ground_truth" / "mesh_0.usd"),
        ("mesh", "output", 0): str(log / "output" / "mesh_0.usd"),
        ("mesh", "output", 1): str(log / "output" / "mesh_1.usd"),
        ("pointcloud", "a/b", 0): str(log / "a" / "b" / "pointcloud_0.usd"),
        ("voxelgrid", "", 0): str(log / "voxelgrid_0.usd"),
    }
    assert parser.dir_info == {
        "mesh": [{"category": "ground_truth", "ids": [0], "end_time": 0}, {"category": "output", "ids": [0, 1], "end_time": 25}],
        "pointcloud": [{"category": "a/b", "ids": [0], "end_time": 25}],
        "voxelgrid": [{"category": "", "ids": [0], "end_time": 2.5}],
    }
    assert json.loads(json.dumps(parser.dir_info)) == parser.dir_info and isinstance(parser.dir_info["mesh"][1]["end_time"], int)
    assert parser.timestamps == {path: os.stat(path).st_mtime_ns for path in parser.filepaths.values()}
    counts = (parser.num_mesh_items(), parser.num_pointcloud_items(), parser.num_voxelgrid_items())
    assert counts == (3, 1, 1)
    assert (parser.num_mesh_categories(), parser.num_pointcloud_categories(), parser.num_voxelgrid_categories()) == (2, 1, 1)
    assert TimelapseParser.get_filepaths(str(log)) == parser.filepaths
    assert TimelapseParser.parse_filepath_info(parser.filepaths) == parser.dir_info


def test_items_say_their_times_and_what_they_have(log: Path) -> None:
    items = TimelapseParser(log).items
    assert items["mesh", "output", 1] == Item(str(log / "output" / "mesh_1.usd"), (0, 10, 25), ())
    assert items["pointcloud", "a/b", 0].attributes == ("colors", "semantic_ids")
    assert items["mesh", "ground_truth", 0].attributes == ("uvs", "materials")


def test_names_and_infos_are_given_for_known_types_and_categories(log: Path, caplog: pytest.LogCaptureFixture) -> None:
    parser = TimelapseParser(log)
    assert parser.get_category_names_by_type("mesh") == ["ground_truth", "output"]
    assert parser.get_category_names_by_type("sound") == [] and parser.get_category_info("sound", "output") is None
    assert parser.get_category_info("mesh", "output") == {"category": "output", "ids": [0, 1], "end_time": 25}
    assert parser.get_category_info("mesh", "nothing") is None
    assert parser.get_file_path("mesh", "output", "1") == parser.filepaths["mesh", "output", 1]  # type: ignore[arg-type]
    assert not caplog.records
    assert parser.get_file_path("mesh", "output", 7) is None and "no mesh 7 of category 'output'" in caplog.text


def test_no_log_is_an_empty_log(tmp_path: Path) -> None:
    parser = TimelapseParser(tmp_path / "nothing")
    assert parser.dir_info == {"mesh": [], "pointcloud": [], "voxelgrid": []} and not parser.check_for_updates()


def test_changes_are_noticed_once(log: Path) -> None:
    parser = TimelapseParser(str(log))
    assert not parser.check_for_updates()
    Timelapse(log).add_mesh_batch(200, "output", [drawn(0, 4, 3)])
    assert parser.check_for_updates() and not parser.check_for_updates()
    assert parser.get_category_info("mesh", "output") == {"category": "output", "ids": [0, 1], "end_time": 200}
    Timelapse(log).add_voxelgrid_batch(0, "new", [torch.ones(2, 2, 2)])
    assert parser.check_for_updates() and parser.get_category_names_by_type("voxelgrid") == ["", "new"]
    shutil.rmtree(log / "output")
    assert parser.check_for_updates() and parser.num_mesh_categories() == 1 and ("mesh", "output", 0) not in parser.items


def test_only_files_that_changed_are_opened_again(log: Path) -> None:
    opened: list[Path] = []

    def watched(path: Path) -> Summary:
        opened.append(path)
        return summarise(path)

    parser = TimelapseParser(log, watched)
    opened.clear()
    Timelapse(log).add_mesh_batch(200, "ground_truth", [drawn(0, 4, 3)])
    assert parser.check_for_updates() and opened == [log / "ground_truth" / "mesh_0.usd"]


@pytest.mark.parametrize(("asked", "taken"), [(-3, 0), (4.9, 0), (5, 10), (10, 10), (17, 10), (17.5, 25), (1e9, 25)])
def test_the_nearest_iteration_is_read_of_two_the_later(asked: float, taken: int, log: Path) -> None:
    snapshot = TimelapseParser(log).read("mesh", "output", 1, asked)
    (mesh,) = snapshot.prims
    assert (snapshot.type, snapshot.category, snapshot.id, snapshot.requested, snapshot.time) == ("mesh", "output", 1, asked, taken)
    assert np.array_equal(mesh.vertices, drawn(taken + 1, 4, 3))  # type: ignore[union-attr]


def test_iterations_are_blended_only_when_asked_for(log: Path) -> None:
    snapshot: Any = TimelapseParser(log).read("mesh", "output", 0, 4, snap=False)
    blend = drawn(0, 4, 3).numpy() * 0.6 + drawn(10, 4, 3).numpy() * 0.4
    assert snapshot.time == 4 and np.allclose(snapshot.prims[0].vertices, blend, atol=1e-6)


def test_what_other_attributes_have_between_their_samples_holds(tmp_path: Path) -> None:
    stage = Usd.Stage.CreateNew(str(tmp_path / "mesh_0.usd"))
    mesh = UsdGeom.Mesh.Define(stage, "/mesh_0")
    for iteration in (0, 5, 10):
        mesh.CreatePointsAttr().Set([(iteration, 0, 0)], iteration)
    color = mesh.CreateDisplayColorPrimvar("constant")
    for iteration in (0, 10):
        color.Set([(iteration, 0, 0)], iteration)
    stage.Save()
    snapshot: Any = TimelapseParser(tmp_path).read("mesh", "", 0, 5)
    assert snapshot.prims[0].vertices.tolist() == [[5, 0, 0]] and snapshot.prims[0].colors.tolist() == [[0, 0, 0]]


def test_a_file_may_hold_several_prims_and_values_for_all_times(tmp_path: Path) -> None:
    stage = Usd.Stage.CreateNew(str(tmp_path / "mesh_3.usd"))
    for number in range(2):
        place = UsdGeom.Xform.Define(stage, f"/World/place_{number}")
        place.AddTranslateOp().Set((number, 2, 3))
        mesh = UsdGeom.Mesh.Define(stage, f"/World/place_{number}/mesh")
        mesh.CreatePointsAttr([(0, 0, number)] * 4)
        mesh.CreateFaceVertexCountsAttr([4, 3])
        mesh.CreateFaceVertexIndicesAttr([0, 1, 2, 3, 0, 1, 2])
    stage.Save()
    parser = TimelapseParser(tmp_path)
    assert parser.items["mesh", "", 3].times == () and parser.dir_info["mesh"][0]["end_time"] == 0
    snapshot: Any = parser.read("mesh", "", 3, 17)
    assert [prim.path for prim in snapshot.prims] == ["/World/place_0/mesh", "/World/place_1/mesh"] and snapshot.time == 17
    assert [prim.transform[:3, 3].tolist() for prim in snapshot.prims] == [[0, 2, 3], [1, 2, 3]]
    assert snapshot.prims[1].vertices.tolist() == [[0, 0, 1]] * 4 and snapshot.prims[0].counts.tolist() == [4, 3]


def test_other_names_are_told_and_left_out(log: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.copy(log / "voxelgrid_0.usd", log / "voxelgrid.usd")
    shutil.copy(log / "voxelgrid_0.usd", log / "voxelgrid_new_7.usd")
    shutil.copy(log / "voxelgrid_0.usd", log / "voxelgrid_other_0.usd")
    shutil.copy(log / "voxelgrid_0.usd", log / "voxelgrid_1.usda")
    (log / ".hidden").mkdir()
    shutil.copy(log / "voxelgrid_0.usd", log / ".hidden" / "voxelgrid_0.usd")
    parser = TimelapseParser(log)
    assert parser.dir_info["voxelgrid"] == [{"category": "", "ids": [0, 7], "end_time": 2.5}]
    assert "voxelgrid.usd left out: no number" in caplog.text and "has its number" in caplog.text


def test_a_broken_file_hides_no_others_and_keeps_its_last_good_state(
    log: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PAUSES_S", (0.0, 0.0, 0.0))
    parser, path = TimelapseParser(log), log / "output" / "mesh_0.usd"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    (log / "output" / "mesh_2.usd").write_bytes(b"")
    assert parser.check_for_updates()
    broken, empty = parser.items["mesh", "output", 0], parser.items["mesh", "output", 2]
    assert broken.error and list(broken.times) == [0, 10, 25] and empty.error and not empty.times
    assert parser.dir_info["mesh"][1] == {"category": "output", "ids": [0, 1, 2], "end_time": 25}
    assert "no readable USD file" in caplog.text and parser.read("mesh", "output", 1, 0).prims
    with pytest.raises(SourceError, match="no readable USD file"):
        parser.read("mesh", "output", 0, 0)
    path.write_bytes(whole)
    assert parser.check_for_updates() and not parser.items["mesh", "output", 0].error and parser.read("mesh", "output", 0, 0).prims


def test_a_file_that_cannot_be_read_for_a_moment_is_read_again(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parser = TimelapseParser(log)
    pauses: list[float] = []

    def busy(*arguments: Any) -> Any:
        if len(pauses) < 3:
            raise SourceError("container", "nothing readable", "a file")
        return read_item(*arguments)

    monkeypatch.setattr(module, "read_item", busy)
    monkeypatch.setattr(time, "sleep", pauses.append)
    assert parser.read("mesh", "output", 0, 0).prims and pauses == [0.05, 0.1, 0.2]


def test_what_another_process_adds_is_read_though_this_one_holds_the_file(log: Path) -> None:
    parser, path = TimelapseParser(log), log / "output" / "mesh_0.usd"
    kept = Usd.Stage.Open(str(path))
    copy = log.parent / "copy.usd"
    shutil.copy(path, copy)
    layer = Sdf.Layer.FindOrOpen(str(copy))
    layer.SetTimeSample("/mesh_0.points", 30, layer.QueryTimeSample("/mesh_0.points", 0))
    layer.Save()
    shutil.copyfile(copy, path)
    assert kept and parser.check_for_updates() and list(parser.items["mesh", "output", 0].times) == [0, 10, 25, 30]
    snapshot: Any = parser.read("mesh", "output", 0, 40)
    assert np.array_equal(snapshot.prims[0].vertices, drawn(0, 4, 3))


def test_categories_count_each_number_once() -> None:
    info = TimelapseParser.CategoryInfo("output", ids=[3, 1], end_time=5)
    info.add_instance(2, 90)
    assert info.serializable() == {"category": "output", "ids": [1, 2, 3], "end_time": 90}
    assert TimelapseParser.CategoryInfo("none").serializable() == {"category": "none", "ids": [], "end_time": 0}
    with pytest.raises(ConfigError, match="sample 2 twice"):
        info.add_instance(2, 1)


def test_a_sample_that_is_not_there_is_told_with_those_that_are(log: Path) -> None:
    with pytest.raises(ConfigError, match=r"no mesh 5 of category 'output'.*ground_truth"):
        TimelapseParser(log).read("mesh", "output", 5, 0)


KAOLIN = Path("data/kaolin/timelapse_notexture")


@pytest.mark.real
def test_a_log_of_kaolin_is_listed_as_kaolin_lists_it(real_data: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        parser = TimelapseParser(real_data / KAOLIN)
    assert not caplog.records
    assert parser.dir_info == {
        "mesh": [
            {"category": "ground_truth", "ids": [0, 1], "end_time": 0},
            {"category": "output", "ids": [0, 1], "end_time": 100},
        ],
        "pointcloud": [{"category": "input", "ids": [0, 1], "end_time": 0}, {"category": "output", "ids": [0, 1], "end_time": 100}],
        "voxelgrid": [{"category": "output", "ids": [0, 1], "end_time": 100}],
    }
    for (kind, category, _), item in parser.items.items():
        assert item.times == (tuple(range(0, 101, 10)) if category == "output" else (0,)), kind


@pytest.mark.real
def test_every_iteration_of_a_log_of_kaolin_is_read_to_the_bit(real_data: Path) -> None:
    parser = TimelapseParser(real_data / KAOLIN)
    for (kind, category, number), path in parser.filepaths.items():
        stage = Usd.Stage.Open(path)
        prim = stage.GetDefaultPrim()
        for iteration in parser.items[kind, category, number].times:
            read: Any = parser.read(kind, category, number, iteration).prims[0]
            if kind == "mesh":
                assert np.array_equal(read.vertices, np.array(prim.GetAttribute("points").Get(iteration)))
                assert np.array_equal(read.indices, np.array(prim.GetAttribute("faceVertexIndices").Get(iteration)))
                mesh = import_mesh(path, time=iteration)
                assert mesh is not None and np.array_equal(mesh.faces.reshape(-1), read.indices)
            elif kind == "pointcloud":
                assert np.array_equal(read.points, np.array(prim.GetAttribute("points").Get(iteration)))
                assert np.allclose(read.widths, np.array(prim.GetAttribute("widths").Get(iteration)))
                assert torch.equal(import_pointcloud(path, time=iteration).points, torch.from_numpy(read.points))
            else:
                assert np.array_equal(read.voxels, np.array(prim.GetAttribute("positions").Get(iteration))) and read.shape == (
                    30,
                    30,
                    30,
                )
                assert np.allclose(read.transform[:3, 3], -0.5 / 29)
                assert np.array_equal(import_voxelgrid(path, prim.GetPath(), iteration), read.occupied())


@pytest.mark.real
def test_a_log_of_kaolin_goes_on(real_data: Path, tmp_path: Path) -> None:
    shutil.copytree(real_data / KAOLIN, tmp_path / "log", copy_function=shutil.copyfile)
    parser = TimelapseParser(tmp_path / "log")
    before: Any = {key: parser.read(key[0], key[1], key[2], 100).prims[0] for key in parser.filepaths if key[1] == "output"}
    writer = Timelapse(tmp_path / "log")
    writer.add_mesh_batch(200, "output", [before["mesh", "output", 0].vertices / 2])
    writer.add_pointcloud_batch(200, "output", [drawn(0, 9, 3)], points_type="usd_geom_points")
    writer.add_voxelgrid_batch(200, "output", [torch.ones(2, 3, 4)])
    assert parser.check_for_updates()
    assert all(
        info["end_time"] == 200 for kind in parser.dir_info for info in parser.dir_info[kind] if info["category"] == "output"
    )
    for key, old in before.items():
        again: Any = parser.read(key[0], key[1], key[2], 100).prims[0]
        for name in ("vertices", "indices", "points", "widths", "voxels", "transform"):
            assert np.array_equal(getattr(again, name, None), getattr(old, name, None))  # type: ignore[arg-type]
    mesh: Any = parser.read("mesh", "output", 0, 200).prims[0]
    assert np.array_equal(mesh.vertices, before["mesh", "output", 0].vertices / 2)
    assert np.array_equal(mesh.indices, before["mesh", "output", 0].indices)
    grid: Any = parser.read("voxelgrid", "output", 0, 200).prims[0]
    assert grid.shape == (2, 3, 4) and grid.occupied().all()
