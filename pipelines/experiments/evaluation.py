"""A trained model into the metric tables: the test split predicted and scored."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

import scenemill
from scenemill.pipelines.experiments.checkpoints import Checkpoint, find_checkpoints, names_several
from scenemill.pipelines.experiments.inference import Inferred, Share, infer_store, join_outcomes
from scenemill.pipelines.experiments.specs import resolved
from scenemill.pipelines.experiments.training import Samples, begun, find_samples, load_model, refuse_nodes
from scenemill.pipelines.mirrored import Results
from scenemill.pipelines.progress import OnProgress, no_progress
from scenemill.pipelines.score import SCORING, ScoreConfig, score
from scenemill.schemas.dataset import SplitConfig
from scenemill.schemas.errors import ConfigError
from scenemill.schemas.experiment import ExperimentConfig
from scenemill.schemas.places import Place
from scenemill.trainers.collate import Batch
from scenemill.trainers.devices import run_on_devices
from scenemill.trainers.evaluate import Evaluation, image_losses
from scenemill.trainers.evaluate3d import surface_rule
from scenemill.trainers.nvpanoptix3d.stage1 import Stage1Output
from scenemill.trainers.sidefiles import frustum_of, label_map_of
from scenemill.trainers.stages import stage_of
from scenemill.transforms.store import Store, open_store

_GROUPS = {"all": "dpq", "things": "dpq_th", "stuff": "dpq_st"}
_VOLUME_METRICS = {"PRQ": "quality", "RSQ": "segmentation", "RRQ": "recognition"}
_METRICS = {"pq": "-1.0", "dpq_0.5": "0.5", "dpq_0.25": "0.25", "dpq_0.1": "0.1", "dpq_mean": "averages"}


@dataclass(frozen=True)
class Evaluated:
    """What the evaluation of a checkpoint came to.

    Attributes:
        run: its name in the metric tables.
        tables: their folder.
        checkpoint: what was evaluated.
        predictions: what was scored, a folder per sample; None where it was removed afterwards.
        kpi: the documentation's numbers: ``test_loss`` where the batches have what it compares, and qualities in percent.
        scores: its rows of the scores table.
        new: False for a run that was in the tables before; then nothing was predicted, and ``kpi`` has no loss.
    """

    run: str
    tables: Place
    checkpoint: Checkpoint
    predictions: Path | None
    kpi: Mapping[str, float]
    scores: pa.Table
    new: bool = True


@dataclass(frozen=True)
class Bench:
    """What all checkpoints of one evaluation share.

    Attributes:
        config: the experiment.
        samples: the test split.
        version: of its store.
        settings: digest of what decides numbers beside weights and samples.
        predictions, tables: folders.
    """

    config: ExperimentConfig
    samples: Samples
    version: str
    settings: str
    predictions: Path
    tables: Place

    @property
    def split(self) -> str:
        """The name of the test split; "" for all of the store."""
        return self.samples.split or ""

    def model_of(self, checkpoint: Checkpoint) -> str:
        """What a checkpoint's model is called in the tables."""
        return self.config.model_name or checkpoint.path.stem


def run_evaluation(config: ExperimentConfig, on_progress: OnProgress, tables: Place | None = None) -> Evaluated:
    """Predict the test split with a checkpoint and score it: the same numbers as ``scenemill score`` gives, and in the same tables.

    Args:
        config: the experiment; ``evaluate.checkpoint`` names one file (``run_evaluations`` takes several).
        on_progress: told of ingest, prediction and scoring.
        tables: folder of the metric tables; None for one in the results.

    Raises:
        ConfigError: no checkpoint, no test split, or weights that do not fit.
        Corrupt: a sample cannot be read; or the metrics of this installation fail their own cases.
    """
    named = config.evaluate.checkpoint
    if names_several(named):
        raise ConfigError(f"evaluate.checkpoint={named!r} names several checkpoints: name one, or call run_evaluations")
    (checkpoint,) = find_checkpoints(named, config.encryption_key or "")
    refuse_nodes("evaluate", config.evaluate.num_nodes)
    with begun(config, "evaluate") as results:
        bench = make_bench(config, results, on_progress, tables)
        return evaluate_checkpoint(bench, checkpoint, bench.predictions, "", on_progress)


def make_bench(config: ExperimentConfig, results: Results, on_progress: OnProgress, tables: Place | None) -> Bench:
    """Find the samples, and say where what becomes of them goes.

    Raises:
        ConfigError: no test split.
    """
    samples = find_samples(config, "test", on_progress)
    store = open_store(samples.store)
    settings = digest_settings(config, store)
    return Bench(config, samples, store.version, settings, results.folder / "predictions", tables or results.tables)


def digest_settings(config: ExperimentConfig, store: Store) -> str:
    """Twelve digits that differ where anything does that decides predictions or how they count, but for weights and samples."""
    nowhere = replace(config.dataset, train=SplitConfig(), val=SplitConfig(), test=SplitConfig())
    told = resolved(ExperimentConfig(dataset=nowhere, model=config.model))
    digest = hashlib.sha256(f"{scenemill.__version__} {SCORING} {label_map_of(config.dataset)}\n{told}".encode())
    mask = frustum_of(config.dataset, store) if config.dataset.enable_3d else None
    if mask is not None:
        digest.update(mask.tobytes())
    return digest.hexdigest()[:12]


def evaluate_checkpoint(bench: Bench, checkpoint: Checkpoint, predictions: Path, run: str, on_progress: OnProgress) -> Evaluated:
    """Predict and score.

    Args:
        bench: on which samples and how.
        checkpoint: with what.
        predictions: their folder.
        run: its name in the tables. The folder is this run's then, and what a killed attempt left there is kept, but where losses
            are wanted. With "" all is predicted, and scoring makes a name of the predictions.
        on_progress: told of prediction and scoring.

    Raises:
        ConfigError: weights that do not fit, or a sample without a prediction.
        Corrupt: as ``run_evaluation``.
    """
    held = bench.config.evaluate
    predict = partial(_predict_share, bench, checkpoint, predictions, bool(run), on_progress)
    shares = run_on_devices(predict, held.num_gpus, held.gpu_ids)
    inferred = join_outcomes([outcome for outcome, _ in shares])
    if inferred.failures:
        failure = inferred.failures[0]
        told = f"{len(inferred.failures)} samples have no prediction; the first, {failure.image}: {failure.reason}"
        raise ConfigError(f"checkpoint {checkpoint.path}: {told}")
    scored = score(_scoring(bench, checkpoint, predictions, run), on_progress)
    mean = Evaluation.of_losses([loss for _, losses in shares for loss in losses]).loss
    kpi = ({} if mean is None else {"test_loss": mean}) | kpi_of(bench.config, scored.scores)
    return Evaluated(scored.run, bench.tables, checkpoint, predictions, kpi, scored.scores)


def _scoring(bench: Bench, checkpoint: Checkpoint, predictions: Path, run: str) -> ScoreConfig:
    return ScoreConfig(
        predictions,
        bench.samples.store,
        bench.tables,
        run=run,
        model=bench.model_of(checkpoint),
        split=bench.split,
        version=bench.version,
        labels=label_map_of(bench.config.dataset),
        surface=surface_rule(bench.config),
        checkpoint=checkpoint,
        settings=bench.settings,
    )


def _predict_share(
    bench: Bench,
    checkpoint: Checkpoint,
    predictions: Path,
    keep: bool,
    on_progress: OnProgress,
    number: int,
    of_all: int,
    device: str,
) -> tuple[Inferred, list[float]]:
    """Predict one of several shares of a split; what it came to, and the loss of each image where stage 1 is evaluated."""
    config = bench.config
    model = load_model(config, str(checkpoint.path), "evaluate", device)
    losses: list[float] = []
    judged = config.dataset.enable_mp_occ and not config.dataset.enable_3d
    inferred = infer_store(
        config,
        model,
        open_store(bench.samples.store, bench.version),
        bench.split,
        predictions,
        no_progress if number else on_progress,
        overwrite=judged or not keep,
        on_output=_judge(config, losses, device) if judged else None,
        share=Share(number, of_all),
    )
    return inferred, losses


def kpi_of(config: ExperimentConfig, scores: pa.Table) -> dict[str, float]:
    """The documentation's numbers in a run's rows of the scores table, in percent: those of the configured stage."""
    rows = [row for row in scores.to_pylist() if row["rule"].startswith("reference")]
    return volume_kpi(rows) if config.dataset.enable_3d else image_kpi(rows)


def image_kpi(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The documentation's numbers of stage 1 in rows of the scores table, in percent."""
    return {
        f"test_{_GROUPS[row['group']]}_{_METRICS[row['metric']]}_epoch": 100 * (row["quality"] or 0.0)
        for row in rows
        if row["metric"] in _METRICS and row["group"] in _GROUPS
    }


def volume_kpi(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The same of stage 2."""
    (row,) = [row for row in rows if row["metric"] == "prq" and row["group"] == "all"]
    return {name: 100 * (row[column] or 0.0) for name, column in _VOLUME_METRICS.items()}


def _judge(config: ExperimentConfig, losses: list[float], device: str) -> Callable[[Batch, Stage1Output], None]:
    """What adds the loss of each image to a list, weighted as in training."""
    stage = stage_of(config)
    criterion = stage.make_criterion(config).to(device)

    def compare(output: Stage1Output, batch: Batch, generator: Any) -> tuple[Any, Any]:
        return stage.compare(criterion, output, batch, config, generator)

    return lambda batch, output: losses.extend(image_losses(compare, output, batch))
