"""One long-living process that ingests, reads and scores over and over, and a verdict on whether it grows; a program of its own.

    python tests/faults/soak.py --minutes 60 [--folder FOLDER]

Each round ingests a made-up folder with two workers (in turn all of it anew, then a split, then the rest), reads the store by a loader
with two workers, and scores the truth, told as predictions, with two workers. After each round it looks at memory, Python objects, open
files, threads, processes, temporary files and shared memory. The first third is warm-up. A figure grows if the median of the slopes
between all pairs of rounds after that (Theil-Sen) says so beyond its limit. Prints a JSON document; ends with 1 if anything grew.
"""

import argparse
import ctypes
import gc
import json
import shutil
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import Final

import numpy as np
import psutil

from scenemill import AugmentationConfig, DatasetConfig, SceneDataset, SceneLoader, open_store
from scenemill.pipelines.ingest import ingest
from scenemill.pipelines.predictions import Prediction, write_prediction
from scenemill.pipelines.score import ScoreConfig, score
from scenemill.schemas.config import IngestConfig
from scenemill.transforms.worlds import write_world

LIMITS: Final = {
    "memory_mib": 24.0,
    "objects": 5000.0,
    "files": 2.0,
    "threads": 2.0,
    "processes": 1.0,
    "temporary": 2.0,
    "shared": 1.0,
}
"""How much each figure may grow from the end of the warm-up to the end."""


@dataclass(frozen=True)
class Look:
    """What the process holds after a round: itself, its children, and what it left in the folders of the system."""

    round: int
    seconds: float
    memory_mib: float
    objects: int
    files: int
    threads: int
    processes: int
    temporary: int
    shared: int


def memory_byte(process: psutil.Process) -> int:
    """Memory that a process has written; not the pages of libraries, which are its own or shared as others come and go."""
    status = Path(f"/proc/{process.pid}/status")
    if not status.is_file():
        return int(process.memory_full_info().uss)
    return next(int(line.split()[1]) << 10 for line in status.read_text().splitlines() if line.startswith("RssAnon:"))


def look(number: int, began: float) -> Look:
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)  # free pieces that the C library keeps are no growth
    me = psutil.Process()
    children = me.children(recursive=True)
    shared = Path("/dev/shm")
    return Look(
        number,
        time.monotonic() - began,
        memory_byte(me) / 2**20,
        len(gc.get_objects()),
        me.num_fds(),
        threading.active_count(),
        1 + len(children),
        len(list(Path(tempfile.gettempdir()).iterdir())),
        len(list(shared.iterdir())) if shared.is_dir() else 0,
    )


def tell_truth(store: Path, predictions: Path) -> None:
    """The truth of each sample as a prediction: a segment per class."""
    opened = open_store(store)
    for key in opened:
        sample = opened.read(key)
        flat, volume = (sample[name].astype(np.int32) for name in ("semantic_2d", "semantic_3d"))
        classes = [{int(label): int(label) for label in np.unique(labels[labels > 0])} for labels in (flat, volume)]
        write_prediction(predictions, key, Prediction(flat, classes[0], sample["depth"], volume, classes[1], sample["geometry"]))


def play_round(number: int, raw: Path, folder: Path) -> None:
    """Ingest, read and score once."""
    store, predictions, tables = folder / "store", folder / "told", folder / "tables"
    steps = (("train",), ()) if number % 2 else ((),)
    for splits in steps:
        ingest(IngestConfig("front3d", raw, store, splits, workers=2, samples_per_part=2))
    config = DatasetConfig(
        enable_3d=True, enable_mp_occ=False, augmentation=AugmentationConfig(train_min_size=(240,), train_max_size=960)
    )
    loader = SceneLoader(SceneDataset(store, None, config, training=True), batch_size=1, workers=2)
    assert sum(len(batch.keys) for batch in loader) == len(open_store(store))
    tell_truth(store, predictions)
    scored = score(ScoreConfig(predictions, store, tables, workers=2))
    assert scored.missing == 0
    for path in (store, predictions, tables):
        shutil.rmtree(path)


def growth(looks: list[Look], name: str) -> float:
    """How much a figure grew over these looks, by the median of all slopes."""
    points = [(seen.round, float(getattr(seen, name))) for seen in looks]
    slopes = [(second[1] - first[1]) / (second[0] - first[0]) for first, second in combinations(points, 2)]
    return median(slopes) * (points[-1][0] - points[0][0]) if slopes else 0.0


def judge(looks: list[Look]) -> dict[str, float]:
    """The figures that grew beyond their limits after the warm-up, and by how much."""
    steady = looks[len(looks) // 3 :]
    grown = {name: growth(steady, name) for name in LIMITS}
    return {name: value for name, value in grown.items() if value > LIMITS[name]}


def soak(minutes: float, folder: Path) -> list[Look]:
    """Play rounds for so long, three at the least."""
    raw, began = folder / "raw", time.monotonic()
    looks: list[Look] = []
    write_world("front3d", raw, scenes=3, views=2, seed=1, grid=64)
    mine = folder / "temporary"
    mine.mkdir()
    tempfile.tempdir = str(mine)
    while len(looks) < 3 or time.monotonic() - began < 60 * minutes:
        play_round(len(looks), raw, folder)
        looks.append(look(len(looks), began))
        print(looks[-1], file=sys.stderr, flush=True)
    return looks


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--minutes", type=float, default=60.0)
    asked.add_argument("--folder", type=Path, help="New or empty. Default: a temporary one.")
    given = asked.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        looks = soak(given.minutes, folder)
        tempfile.tempdir = None
    steady = looks[len(looks) // 3 :]
    figures = {name: [getattr(steady[0], name), getattr(steady[-1], name), round(growth(steady, name), 2)] for name in LIMITS}
    grown = judge(looks)
    print(json.dumps({"rounds": len(looks), "minutes": looks[-1].seconds / 60, "first, last, growth": figures, "grew": grown}))
    sys.exit(1 if grown else 0)


if __name__ == "__main__":
    main()
