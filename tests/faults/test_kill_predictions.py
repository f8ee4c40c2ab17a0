"""Kill what writes predictions or a log of 3D checkpoints, run again: the same files; and no reader takes half of one for whole."""

import hashlib
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import pytest

from scenemill.pipelines.predictions import folder_of, read_prediction
from scenemill.schemas.errors import SourceError
from scenemill.schemas.steps import STEPS
from scenemill.trainers.timelapse import TimelapseParser
from scenemill.trainers.usd.records import MeshData, PointData

if TYPE_CHECKING:
    from tests.faults.conftest import Mill

KEYS: Final = ["scene/1", "scene/2"]
FILES: Final = 7
KILLS: Final = (
    *("prediction withdrawn", "prediction withdrawn:2", "prediction written", "prediction written:2"),
    *(f"{step}:{number}" for step in STEPS["file"] for number in range(1, 2 * FILES + 1)),
)
SHORT: Final = ("prediction withdrawn", "file flushed:1", "file placed:6", "file flushed:7", "prediction written:2")
ITERATIONS: Final = [0, 1, 2]
DRAWN: Final = tuple(f"{step}:{number}" for step in STEPS["timelapse"] for number in range(1, 5))
SHORT_DRAWN: Final = ("structure copied:2", "head moved:1", "head restored:3", "layer saved:4")


def sums_of(root: Path) -> dict[str, str]:
    files = [path for path in root.rglob("*") if path.is_file()]
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def values_told(root: Path) -> list[int | None]:
    """The value of which each whole prediction is made, in all of its arrays; None where there is none."""
    found: list[int | None] = []
    for key in KEYS:
        if not (root / folder_of(key) / "segments.json").exists():
            found.append(None)
            continue
        told = read_prediction(root, key, 8)
        assert told.panoptic_3d is not None and told.distance is not None and told.classes_3d is not None
        arrays = (told.panoptic_2d, told.depth, told.panoptic_3d, told.distance)
        values = {int(value) for array in arrays for value in np.unique(array)} | {*told.classes_2d, *told.classes_3d}
        assert len(values) == 1
        found.append(values.pop())
    return found


@pytest.mark.parametrize("kill_at", [pytest.param(step, marks=() if step in SHORT else pytest.mark.full) for step in KILLS])
def test_predictions_are_of_the_old_model_or_the_new_or_not_there(kill_at: str, mill: "Mill", tmp_path: Path) -> None:
    mill.load("tests.faults.deeds", "scenemill.pipelines.predictions")
    whole, root = tmp_path / "whole", tmp_path / "told"
    assert mill.do("predict", root=whole, value=2, keys=KEYS).code == 0
    assert mill.do("predict", root=root, value=1, keys=KEYS).code == 0
    killed = mill.do("predict", kill_at, root=root, value=2, keys=KEYS)
    assert killed.code == -signal.SIGKILL, killed.said
    assert values_told(root) in ([1, 1], [None, 1], [2, 1], [2, None], [2, 2])
    again = mill.do("predict", root=root, value=2, keys=KEYS)
    assert again.code == 0, again.said
    assert sums_of(root) == sums_of(whole)


def test_a_first_prediction_that_is_not_whole_has_no_table(mill: "Mill", tmp_path: Path) -> None:
    mill.load("tests.faults.deeds", "scenemill.pipelines.predictions")
    for number in range(1, FILES):
        assert mill.do("predict", f"file placed:{number}", root=tmp_path, value=1, keys=KEYS).code == -signal.SIGKILL
        assert values_told(tmp_path) == [None, None]
        with pytest.raises((SourceError, OSError)):
            read_prediction(tmp_path, KEYS[0], 8)
        shutil.rmtree(tmp_path / folder_of(KEYS[0]))


def scenes_of(folder: Path) -> dict[tuple[str, float], tuple[bytes, ...]]:
    """(category, iteration) -> what the log holds there."""
    log = TimelapseParser(folder)
    found: dict[tuple[str, float], tuple[bytes, ...]] = {}
    for kind, category in (("pointcloud", "cloud"), ("mesh", "mesh")):
        if not (folder / category).is_dir() or category not in log.get_category_names_by_type(kind):
            continue
        for iteration in ITERATIONS:
            for prim in log.read(kind, category, 0, iteration).prims:
                assert isinstance(prim, PointData | MeshData)
                points = prim.points if isinstance(prim, PointData) else prim.vertices
                found[category, float(iteration)] = (np.asarray(points).tobytes(),)
    return found


@pytest.fixture(scope="module")
def drawn(mill: "Mill", tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A log after each of its iterations, never broken off."""
    mill.load("tests.faults.deeds", "scenemill.trainers.timelapse", "pxr.Usd")
    folder = tmp_path_factory.mktemp("drawn")
    logs = [folder / str(number) for number in range(len(ITERATIONS))]
    for number, log in enumerate(logs):
        assert mill.do("draw", folder=log, iterations=ITERATIONS[: number + 1]).code == 0
    return logs


@pytest.mark.parametrize("kill_at", [pytest.param(step, marks=() if step in SHORT_DRAWN else pytest.mark.full) for step in DRAWN])
def test_a_log_that_a_kill_left_is_read_and_goes_on(kill_at: str, mill: "Mill", drawn: list[Path], tmp_path: Path) -> None:
    killed = mill.do("draw", kill_at, folder=tmp_path / "log", iterations=ITERATIONS)
    assert killed.code == -signal.SIGKILL, killed.said
    readable_as_one_of(tmp_path / "log", drawn)
    again = mill.do("draw", folder=tmp_path / "log", iterations=ITERATIONS)
    assert again.code == 0, again.said
    assert scenes_of(tmp_path / "log") == scenes_of(drawn[-1])


def readable_as_one_of(log: Path, drawn: list[Path]) -> None:
    """Each category is as after one of the iterations."""
    found = scenes_of(log)
    for category in ("cloud", "mesh"):
        held = {at: values for at, values in found.items() if at[0] == category}
        assert held in [{}, *({at: values for at, values in scenes_of(one).items() if at[0] == category} for one in drawn)]


@pytest.mark.full
@pytest.mark.parametrize("seed", range(30))
def test_a_log_killed_at_a_random_time_is_read_and_goes_on(seed: int, mill: "Mill", drawn: list[Path], tmp_path: Path) -> None:
    rng = random.Random(f"log {seed}")
    for _ in range(3):
        pid = mill.start_deed("draw", folder=tmp_path / "log", iterations=ITERATIONS)
        time.sleep(rng.uniform(0.0, 0.2))
        os.kill(pid, signal.SIGKILL)
        assert mill.wait(pid).code in (0, -signal.SIGKILL)
    assert mill.do("draw", folder=tmp_path / "log", iterations=ITERATIONS).code == 0
    assert scenes_of(tmp_path / "log") == scenes_of(drawn[-1])
