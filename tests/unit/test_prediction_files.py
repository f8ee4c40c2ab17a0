"""Predictions on disk: what is written is read, and what others wrote is refused where it is none."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from scenemill.pipelines.predictions import Prediction, read_prediction, write_prediction
from scenemill.pipelines.score import score_sample
from scenemill.schemas.errors import SourceError
from scenemill.transforms.store import open_store

GOLDEN = Path(__file__).parents[1] / "golden" / "stores" / "front3d"
KEY = "scene/0000"
GRID = 16


def write(folder: Path, flat: NDArray[Any], **table: Any) -> Path:
    """A prediction of a golden sample with maps like ``flat``, and other members in its table."""
    held = np.zeros((GRID,) * 3, np.int32)
    held[3:9] = 1
    depth = np.ones(flat.shape, np.float32)
    write_prediction(folder, KEY, Prediction(flat, {1: 3}, depth, held, {1: 3}, np.full((GRID,) * 3, 0.5, np.float32)))
    path = folder / "scene_0000" / "segments.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **table}))
    return folder


def test_what_is_written_is_read_and_scored(tmp_path: Path) -> None:
    flat = np.arange(48).reshape(6, 8) % 2
    found = read_prediction(write(tmp_path, flat), KEY, GRID)
    assert np.array_equal(found.panoptic_2d, flat) and found.classes_2d == found.classes_3d == {1: 3}
    assert score_sample(open_store(GOLDEN), KEY, tmp_path)[0]


@pytest.mark.parametrize("shape", [(0, 8), (6, 0), (0, 0)])
def test_maps_without_pixels_are_refused(shape: tuple[int, int], tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="with pixels"):
        read_prediction(write(tmp_path, np.ones(shape, np.int32)), KEY, GRID)


@pytest.mark.parametrize("name", ["segments_2d", "segments_3d"])
@pytest.mark.parametrize("number", [0, -1, 1 << 63, 10**4000, 1.0, True, "1", None])
def test_ids_that_no_map_can_hold_are_refused(name: str, number: object, tmp_path: Path) -> None:
    table: dict[str, Any] = {name: [{"id": number, "category_id": 3}]}
    write(tmp_path, np.ones((6, 8), np.int32), **table)
    with pytest.raises(SourceError, match=name):
        read_prediction(tmp_path, KEY, GRID)


def test_the_largest_id_is_one(tmp_path: Path) -> None:
    write(tmp_path, np.ones((6, 8), np.int32), segments_3d=[{"id": (1 << 63) - 1, "category_id": 3}])
    assert score_sample(open_store(GOLDEN), KEY, tmp_path)[0]


@pytest.mark.parametrize("file", ["depth_2d.npy", "geometry.npz"])
def test_numbers_too_large_for_the_dtype_are_infinite(file: str, tmp_path: Path) -> None:
    write(tmp_path, np.ones((6, 8), np.int32))
    path = tmp_path / "scene_0000" / file
    if file.endswith(".npy"):
        np.save(path, np.full((6, 8), 1e300))
    else:
        np.savez(path, data=np.full((GRID,) * 3, 1e300))
    found = read_prediction(tmp_path, KEY, GRID)
    assert found.distance is not None
    assert np.isinf(found.depth if file.endswith(".npy") else found.distance).all()
    assert score_sample(open_store(GOLDEN), KEY, tmp_path)[0]
