"""Stored files beside those of stores, damaged in every kind of their bytes: told, or the same values; where no sum covers them, told
or not, but never an error of another kind."""

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from scenemill.pipelines.predictions import Prediction, folder_of, read_prediction, write_prediction
from scenemill.pipelines.tables import append_run, read_table
from scenemill.schemas.errors import SceneMillError
from scenemill.schemas.published import published_scores
from scenemill.schemas.tables import SCORES
from scenemill.trainers.checkpoint import load_checkpoint, save_checkpoint

DAMAGES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "flip": lambda data, rng: flipped(data, rng.randrange(len(data)), rng),
    "flip the head": lambda data, rng: flipped(data, rng.randrange(min(64, len(data))), rng),
    "flip the end": lambda data, rng: flipped(data, len(data) - 1 - rng.randrange(min(256, len(data))), rng),
    "zero": lambda data, rng: zeroed(data, rng.randrange(len(data))),
    "cut": lambda data, rng: data[: rng.randrange(len(data))],
    "lengthen": lambda data, rng: data + rng.randbytes(rng.choice((1, 22, 5000))),
}
TIMES = 40 if os.environ.get("SCENEMILL_FULL") == "1" else 12
KEY = "scene/0001"


def flipped(data: bytes, place: int, rng: random.Random) -> bytes:
    changed = bytearray(data)
    changed[place] ^= 1 << rng.randrange(8)
    return bytes(changed)


def zeroed(data: bytes, place: int) -> bytes:
    return data[:place] + bytes(min(512, len(data) - place)) + data[place + 512 :]


def damaged(path: Path, how: str) -> Iterator[None]:
    """The file with one damage after the other; as it was in the end."""
    data, rng = path.read_bytes(), random.Random(f"{path.name} {how}")
    for _ in range(TIMES):
        path.write_bytes(DAMAGES[how](data, rng))
        yield
    path.write_bytes(data)


@pytest.mark.parametrize("mapped", [False, True], ids=["read", "mapped"])
@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_checkpoint_is_told_or_has_its_values(how: str, mapped: bool, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    weights = {"backbone.weight": torch.randn(64, 32), "sem_seg_head.count": torch.arange(100)}
    save_checkpoint(path, {"state_dict": weights, "epoch": 3})
    told = 0
    for _ in damaged(path, how):
        try:
            found = load_checkpoint(path, mapped=mapped)
        except SceneMillError:
            told += 1
            continue
        assert found["epoch"] == 3
        assert all(torch.equal(found["state_dict"][name], value) for name, value in weights.items())
    assert told > TIMES // 6 or how == "lengthen"


def test_weights_of_another_file_in_a_checkpoint_are_told(tmp_path: Path) -> None:
    """As a disk leaves them that exchanged two blocks."""
    for name, seed in (("one", 1), ("two", 2)):
        rng = torch.Generator().manual_seed(seed)
        save_checkpoint(tmp_path / f"{name}.pth", {"state_dict": {"backbone.weight": torch.randn(4096, generator=rng)}})
    one, two = ((tmp_path / f"{name}.pth").read_bytes() for name in ("one", "two"))
    assert len(one) == len(two)
    (tmp_path / "one.pth").write_bytes(one[:4096] + two[4096:8192] + one[8192:])
    with pytest.raises(SceneMillError, match="damaged"):
        load_checkpoint(tmp_path / "one.pth")


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_prediction_of_volumes_is_told_or_has_its_values(how: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    volume, distance = rng.integers(0, 3, (32, 32, 32), np.int32), rng.random((32, 32, 32), np.float32)
    flat, depth = np.ones((6, 8), np.int32), np.ones((6, 8), np.float32)
    write_prediction(tmp_path, KEY, Prediction(flat, {1: 1}, depth, volume, {1: 1, 2: 2}, distance))
    for name in ("panoptic.npz", "geometry.npz"):
        for _ in damaged(tmp_path / folder_of(KEY) / name, how):
            try:
                found = read_prediction(tmp_path, KEY, 32)
            except (SceneMillError, OSError):
                continue
            assert found.panoptic_3d is not None and found.distance is not None
            assert (np.array_equal(found.panoptic_3d, volume), np.array_equal(found.distance, distance)) == (True, True)


@pytest.mark.parametrize("how", DAMAGES)
def test_damaged_metric_tables_are_told_and_nothing_else_is_raised(how: str, tmp_path: Path) -> None:
    """Parquet as Delta Lake writes it has no sums: a flipped bit may leave another value, which is not noticed."""
    rows = published_scores().slice(0, 4)
    rows = rows.set_column(rows.column_names.index("run"), SCORES.field("run"), [["first"] * rows.num_rows])
    append_run(tmp_path / "tables", "first", {"scores": rows})
    whole = read_table(tmp_path / "tables", "scores").num_rows
    told = 0
    for path in sorted((tmp_path / "tables" / "scores").rglob("*.*")):
        for _ in damaged(path, how):
            try:
                found = read_table(tmp_path / "tables", "scores")
            except SceneMillError:
                told += 1
                continue
            assert found.schema == SCORES and found.num_rows <= whole
    assert told or how == "lengthen"
