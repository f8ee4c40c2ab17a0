"""What the viewer makes of stores, predictions and tables that hold what no run of ours writes: it is told, or left out."""

import json
import math
import shutil
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from scenemill.pipelines.predictions import Prediction, write_prediction
from scenemill.pipelines.tables import append_run
from scenemill.pipelines.viewer.cut import USUAL
from scenemill.pipelines.viewer.predictions import PredictionsRoot
from scenemill.pipelines.viewer.store import StoreRoot
from scenemill.pipelines.viewer.tables import TablesRoot
from scenemill.schemas.errors import SourceError
from scenemill.schemas.tables import COUNTS, SCORES, table_of

GOLDEN = Path(__file__).parents[1] / "golden" / "stores" / "front3d"


@pytest.mark.parametrize("value", [math.nan, math.inf, 1.5e308])
def test_numbers_that_json_does_not_have_are_told_as_none(value: float, tmp_path: Path) -> None:
    same = {"run": "a", "store_version": "v", "split": "test", "metric": "prq", "rule": "reference"}
    count = {**same, "class_id": 3, "class_name": "chair", "key": "s/1", "tp": 0, "fp": 0, "fn": 1, "iou_sum": value}
    scored = {**same, "model": "m", "source": "front3d", "group": "all", "quality": math.nan, "published": False, "origin": "test"}
    scores = [{**scored, "created": datetime(2026, 1, 2, tzinfo=UTC)}]
    append_run(tmp_path, "a", {"counts": table_of(COUNTS, [count]), "scores": table_of(SCORES, scores)})
    root = TablesRoot("tables", tmp_path)
    told = root.describe(), root.worst("a", "prq", "reference", 0), root.sample("s/1")
    json.dumps(told, allow_nan=False)
    assert told[0]["runs"][0]["quality"] is None and told[1]["rows"][0]["quality"] is None and told[2][0]["quality"] is None


def test_a_matrix_that_no_camera_has_is_told(tmp_path: Path) -> None:
    root = StoreRoot("store", Path(shutil.copytree(GOLDEN, tmp_path / "store")))
    for what in ("surface", "voxels", "points"):
        with pytest.raises(SourceError, match="intrinsics: found a matrix that no camera has"):
            root.scene(root.store.keys[0], what, 0, USUAL)


STRANGE = {
    "lists of several lengths": [[1, 2], [3]],
    "no inverse": [[1] * 4] * 4,
    "numbers beyond all": [[1e308] * 4] * 4,
    "words": [["1"] * 4] * 4,
    "numbers that no float is": [[10**400] * 4] * 4,
    "an object": {},
    "a number": 3,
    "nothing": None,
    "nothing in lists": [[[[]]]],
}


@pytest.mark.parametrize("given", STRANGE.values(), ids=STRANGE)
def test_a_prediction_with_a_strange_camera_is_shown_around_the_middle(given: object, tmp_path: Path) -> None:
    flat, volume = np.ones((6, 8), np.int32), np.zeros((64, 64, 64), np.int32)
    volume[30:34, 30:34, 8:12] = 1
    write_prediction(
        tmp_path, "s/1", Prediction(flat, {1: 3}, np.ones((6, 8), np.float32), volume, {1: 3}, np.ones((64,) * 3, "f4"))
    )
    path = tmp_path / "s_1" / "segments.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), "intrinsic": given}))
    scene = PredictionsRoot("told", tmp_path).scene("s/1", "voxels", 0, USUAL)
    assert "around the middle" in scene.notes[0]
