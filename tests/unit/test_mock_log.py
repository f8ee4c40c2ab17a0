"""Mock 3D checkpoints: every kind of item, on its way to the truth."""

from pathlib import Path

import numpy as np
import pytest

from scenemill.schemas.errors import ConfigError
from scenemill.trainers.mock_log import LABELS, write_mock_log
from scenemill.trainers.timelapse import TimelapseParser
from scenemill.trainers.usd.records import MeshData, PointData, VoxelData


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> TimelapseParser:
    folder = tmp_path_factory.mktemp("mock")
    assert write_mock_log(folder, iterations=21) == ("ground_truth", "input", "output")
    return TimelapseParser(folder)


def mesh_of(log: TimelapseParser, category: str, number: int, time: int) -> MeshData:
    found = log.read("mesh", category, number, time).prims[0]
    assert isinstance(found, MeshData)
    return found


def test_a_log_has_two_of_every_kind(log: TimelapseParser) -> None:
    held = {(kind, info["category"]): (info["ids"], info["end_time"]) for kind, infos in log.dir_info.items() for info in infos}
    assert held == {
        ("mesh", "ground_truth"): ([0, 1], 0),
        ("mesh", "output"): ([0, 1], 20),
        ("pointcloud", "input"): ([0, 1], 0),
        ("pointcloud", "output"): ([0, 1], 20),
        ("voxelgrid", "output"): ([0, 1], 20),
    }
    assert {number: label[0] for number, label in log.labels.items()} == {number: name for number, (name, _) in LABELS.items()}


def test_outputs_come_to_the_truth(log: TimelapseParser) -> None:
    for number in (0, 1):
        true = np.asarray(mesh_of(log, "ground_truth", number, 0).vertices)
        far, near, there = (np.abs(np.asarray(mesh_of(log, "output", number, time).vertices) - true).max() for time in (0, 10, 20))
        assert far > 1.9 * near > 0
        assert there < 1e-6
        assert mesh_of(log, "output", number, 0).materials["painted"].diffuse_texture is not None


def test_ids_are_those_of_thirds_of_the_height(log: TimelapseParser) -> None:
    cloud = log.read("pointcloud", "input", 1, 0).prims[0]
    assert isinstance(cloud, PointData) and cloud.semantic_ids is not None and cloud.colors is not None
    points = np.asarray(cloud.points)
    assert set(np.asarray(cloud.semantic_ids).tolist()) == {1, 2, 3}
    middle = np.abs(points[:, 1]) < 1 / 6 - 1e-4
    assert (np.asarray(cloud.semantic_ids)[middle] == 2).all()
    assert np.asarray(cloud.colors)[:, 0] == pytest.approx(points[:, 0] + 0.5, abs=1e-6)
    grid = log.read("voxelgrid", "output", 0, 20).prims[0]
    assert isinstance(grid, VoxelData) and grid.semantic_ids is not None
    assert 200 < len(grid.voxels) == len(grid.semantic_ids) <= 4000


def test_given_meshes_take_the_place_of_made_up_ones(tmp_path: Path) -> None:
    path = tmp_path / "square.obj"
    path.write_text("v 10 0 0\nv 12 0 0\nv 12 2 0\nv 10 2 0\nf 1 2 3 4\n")
    write_mock_log(tmp_path / "log", [path], iterations=1)
    found = mesh_of(TimelapseParser(tmp_path / "log"), "ground_truth", 0, 0)
    corners = [[-0.5, -0.5, 0], [0.5, -0.5, 0], [0.5, 0.5, 0], [-0.5, 0.5, 0]]
    assert np.asarray(found.vertices).tolist() == pytest.approx(np.array(corners))
    assert found.materials["painted"].diffuse_color is not None


def test_what_cannot_be_shown_is_told(tmp_path: Path) -> None:
    empty = tmp_path / "empty.obj"
    empty.write_text("v 0 0 0\n")
    with pytest.raises(ConfigError, match="no faces"):
        write_mock_log(tmp_path / "log", [empty])
    with pytest.raises(ConfigError, match="give 1 or more"):
        write_mock_log(tmp_path / "log", iterations=0)
