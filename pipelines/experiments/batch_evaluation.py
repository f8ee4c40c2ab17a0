"""Many checkpoints of a training, evaluated into one folder of metric tables: what curves are drawn from."""

import hashlib
from collections.abc import Iterator
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from scenemill.pipelines.experiments.checkpoints import Checkpoint, find_checkpoints
from scenemill.pipelines.experiments.evaluation import Bench, Evaluated, evaluate_checkpoint, kpi_of, make_bench
from scenemill.pipelines.experiments.training import begun, refuse_nodes
from scenemill.pipelines.progress import OnProgress
from scenemill.pipelines.tables import read_table
from scenemill.schemas.errors import NotPublished
from scenemill.schemas.experiment import ExperimentConfig
from scenemill.schemas.places import Place
from scenemill.schemas.tables import SCORES
from scenemill.transforms.publish import remove


def run_evaluations(config: ExperimentConfig, on_progress: OnProgress, tables: Place | None = None) -> Iterator[Evaluated]:
    """Evaluate every checkpoint of a folder or pattern, each once and as a run of its own; started again, it goes on.

    A run is named by what decides its numbers: weights, samples and settings. One that the tables have is told from there.
    Predictions are removed once they are scored, for those of many checkpoints would fill a disk; a checkpoint that is evaluated by
    itself leaves them.

    Args:
        config: the experiment; ``find_checkpoints`` says what ``evaluate.checkpoint`` may name.
        on_progress: told of ingest, checkpoints, prediction and scoring.
        tables: folder of the metric tables; None for one in the results.

    Returns:
        What each came to, by epoch and step, as soon as it is known.

    Raises:
        ConfigError: no checkpoints, one that is none, weights that do not fit, or no test split. All files are looked at before the
            first is evaluated; one that cannot be evaluated ends it, and the runs before it stay.
        Corrupt: a checkpoint or sample cannot be read, or the metrics of this installation fail their own cases.
    """
    checkpoints = find_checkpoints(config.evaluate.checkpoint, config.encryption_key or "")
    refuse_nodes("evaluate", config.evaluate.num_nodes)
    with begun(config, "evaluate") as results:
        bench = make_bench(config, results, on_progress, tables)
        for number, checkpoint in enumerate(checkpoints):
            on_progress("Checkpoints", number, len(checkpoints))
            yield _evaluate_once(bench, checkpoint, on_progress)
    on_progress("Checkpoints", len(checkpoints), len(checkpoints))


def _evaluate_once(bench: Bench, checkpoint: Checkpoint, on_progress: OnProgress) -> Evaluated:
    """Evaluate a checkpoint, unless the tables have its run."""
    model = bench.model_of(checkpoint)
    decided = f"{model} {bench.split} {bench.version} {bench.settings} {checkpoint.digest()}"
    digest = hashlib.sha256(decided.encode()).hexdigest()[:12]
    run, predictions = f"{model}-{digest}", bench.predictions / f"{checkpoint.path.stem}-{digest}"
    rows = _rows_of(bench.tables, run)
    if rows.num_rows:
        found = Evaluated(run, bench.tables, checkpoint, None, kpi_of(bench.config, rows), rows, new=False)
    else:
        found = replace(evaluate_checkpoint(bench, checkpoint, predictions, run, on_progress), predictions=None)
    remove(predictions)  # those of a run that was killed as it removed them, too
    return found


def _rows_of(tables: Place, run: str) -> pa.Table:
    """The scores of a finished run; no rows where it is not."""
    try:
        return read_table(tables, "scores").filter(pc.field("run") == run)
    except NotPublished:
        return SCORES.empty_table()
