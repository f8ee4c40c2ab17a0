"""The whole line on made-up scenes, to see that it works here: rooms, store, both stages of training, evaluation, a query.

The tiny networks learn a handful of views by heart. That says nothing of how well they see rooms; it says that every part between a raw
folder and a number in a table does what it should.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pyarrow as pa

from scenemill.pipelines.experiments.evaluation import run_evaluation
from scenemill.pipelines.experiments.specs import read_spec, spec_text
from scenemill.pipelines.experiments.training import run_training
from scenemill.pipelines.ingest import ingest
from scenemill.pipelines.progress import OnProgress
from scenemill.pipelines.query import query
from scenemill.schemas.config import IngestConfig
from scenemill.schemas.experiment import ExperimentConfig
from scenemill.trainers.train import Step
from scenemill.transforms.worlds import write_world

GRID: Final = 64
SEED: Final = 7
VIEWS: Final = 3

SCORES: Final = """
    SELECT model, metric, "group", round(100 * quality, 1) AS quality, round(100 * segmentation, 1) AS segmentation,
           round(100 * recognition, 1) AS recognition
    FROM scores WHERE NOT published AND (metric = 'prq' AND rule = 'reference' OR metric = 'pq' AND rule = 'coco')
        AND "group" IN ('all', 'things', 'stuff') AND quality IS NOT NULL
    QUALIFY row_number() OVER (PARTITION BY model, metric, "group" ORDER BY created DESC) = 1
    ORDER BY metric DESC, model DESC, "group"
"""
"""The question asked at the end: panoptic quality of images and of volumes, in percent; the newest, where the line ran again."""


@dataclass(frozen=True)
class Line:
    """What the line came to.

    Attributes:
        seconds: of each step, in order.
        tables: folder of the metric tables.
        scores: the answer to ``SCORES``.
    """

    seconds: dict[str, float]
    tables: Path
    scores: pa.Table

    def quality(self, model: str, metric: str = "prq") -> float:
        """Of all classes, in percent; ``model`` is "untrained" or "trained"."""
        rows = [row for row in self.scores.to_pylist() if (row["model"], row["metric"], row["group"]) == (model, metric, "all")]
        return float(rows[0]["quality"])


def run_line(
    folder: Path,
    on_step: Callable[[Step], None],
    on_progress: OnProgress,
    *,
    source: str = "front3d",
    steps_2d: int = 600,
    steps_3d: int = 600,
) -> Line:
    """Go from nothing to a metric table; run again, it goes on where it was.

    Args:
        folder: gets the raw folder, the store, results of both stages, and the tables.
        on_step: told of every training step. on_progress: of all else.
        source: "front3d" or "matterport".
        steps_2d, steps_3d: of the two trainings.
    """
    clock: dict[str, float] = {}
    raw, store, tables = folder / "raw", folder / "store", folder / "tables"
    with _timed(clock, "make rooms"):
        if not raw.exists():
            write_world(source, raw, scenes=VIEWS, views=1, seed=SEED, grid=GRID)
    with _timed(clock, "ingest"):
        ingest(IngestConfig(source, raw, store), on_progress)
    with _timed(clock, "train stage 1"):
        first = run_training(_experiment(f"tiny_{source}_2d", store, folder / "stage1", steps_2d), on_step, on_progress)
    with _timed(clock, "train stage 2"):
        settings = f"train.checkpoint_2d={first.checkpoint}"
        begun = _experiment(f"tiny_{source}_3d", store, folder / "begun", 1, settings)
        learned = _experiment(f"tiny_{source}_3d", store, folder / "stage2", steps_3d, settings)
        checkpoints = {
            name: run_training(config, on_step, on_progress).checkpoint
            for name, config in (("untrained", begun), ("trained", learned))
        }
    with _timed(clock, "evaluate"):
        for name, checkpoint in checkpoints.items():
            more = (f"evaluate.checkpoint={checkpoint}", f"model_name={name}")
            run_evaluation(_experiment(f"tiny_{source}_3d", store, folder / name, 1, *more), on_progress, tables)
    with _timed(clock, "query"):
        scores = query(tables, SCORES, None, 60.0)
    return Line(clock, tables, scores)


def _experiment(name: str, store: Path, results: Path, steps: int, *more: str) -> ExperimentConfig:
    """A shipped experiment on all samples of the store, validated at its end alone."""
    splits = [f"dataset.{split}.base_dir={store}" for split in ("train", "test")]
    long = [f"train.{name}={steps}" for name in ("optim.max_steps", "num_epochs", "validation_interval", "checkpoint_interval")]
    return read_spec(spec_text(name), [f"results_dir={results}", *splits, *long, *more], name)


@contextmanager
def _timed(clock: dict[str, float], name: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    clock[name] = round(time.perf_counter() - began, 1)
