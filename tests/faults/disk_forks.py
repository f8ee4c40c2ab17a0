"""As ``tests/forks.py``, for the tests of failing storage, which load ``disk.c`` before it: an ingest that does not judge the table
as a whole (which costs most of a small one, and no published byte depends on it), and the other writers of the house.

    ["ingest", ...]                  the command line
    ["metrics", FOLDER, RUN]         a run of one score, into metric tables
    ["checkpoint", FILE, SEED]       a checkpoint of random weights, and the link to the latest
    ["prediction", FOLDER, SEED]     a prediction for one image
"""

import os
import resource
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from scenemill.pipelines import ingest
from scenemill.pipelines.cli import main
from scenemill.pipelines.predictions import Prediction, write_prediction
from scenemill.pipelines.reports import human
from scenemill.pipelines.tables import append_run
from scenemill.schemas.tables import SCORES
from scenemill.validators.suites import Expected
from tests.forks import serve

assert human is not None  # imported so that children need not


def no_judgement(*args: object) -> Expected:
    return Expected(0, 0, ())


def score_row(run: str) -> dict[str, Any]:
    """A row with a value in every column that needs one."""
    row: dict[str, Any] = {}
    for column in SCORES:
        kind = column.type
        if pa.types.is_string(kind):
            row[column.name] = "any"
        elif pa.types.is_timestamp(kind):
            row[column.name] = datetime(2026, 1, 1, tzinfo=UTC)
        elif pa.types.is_boolean(kind):
            row[column.name] = True
        elif not column.nullable:
            row[column.name] = 1
    return row | {"run": run}


def add_metrics(folder: str, run: str) -> None:
    append_run(Path(folder), run, {"scores": pa.Table.from_pylist([score_row(run)], schema=SCORES)})


def add_checkpoint(path: str, seed: str) -> None:
    import torch

    from scenemill.trainers.checkpoint import point_latest, save_checkpoint

    weights = torch.randn(64, 64, generator=torch.Generator().manual_seed(int(seed)))
    save_checkpoint(Path(path), {"state_dict": {"backbone.weight": weights}})
    point_latest(Path(path).parent, Path(path), "model")


def add_prediction(root: str, seed: str) -> None:
    rng = np.random.default_rng(int(seed))
    segments, depth = rng.integers(0, 3, (12, 16)), rng.random((12, 16), np.float32)
    write_prediction(Path(root), "scene/0001", Prediction(segments, {1: 1, 2: 2}, depth))


def limit_memory(room_mib: int) -> None:
    """Let this process have so much more address space than it has, and no more."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + (room_mib << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def do(args: list[str]) -> None:
    vars(ingest)["expect"] = no_judgement
    if room := os.environ.get("MEMORY_ROOM_MIB"):
        limit_memory(int(room))
    sys.argv = ["scenemill", *args]
    others: dict[str, Callable[..., None]] = {"metrics": add_metrics, "checkpoint": add_checkpoint, "prediction": add_prediction}
    if args[0] in others:
        others[args[0]](*args[1:])
    else:
        main()


if __name__ == "__main__":
    serve(do)
