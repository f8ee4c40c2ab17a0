"""What is done with a trained model: evaluated into the metric tables, run over images, exported."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from scenemill.pipelines.folder import OnProgress, no_progress
from scenemill.pipelines.inference import Inferred, Share, infer_folder, infer_store, join_outcomes
from scenemill.pipelines.score import ScoreConfig, score
from scenemill.pipelines.training import Samples, begin, find_samples, load_model
from scenemill.schemas.errors import ConfigError
from scenemill.schemas.experiment import ExperimentConfig
from scenemill.trainers.collate import Batch
from scenemill.trainers.devices import best_device, run_on_devices
from scenemill.trainers.evaluate import Evaluation, image_losses
from scenemill.trainers.evaluate3d import surface_rule
from scenemill.trainers.nvpanoptix3d.export import ExportModel, export_onnx, gen_trt_engine
from scenemill.trainers.nvpanoptix3d.projector import Projector
from scenemill.trainers.nvpanoptix3d.stage1 import Stage1Output
from scenemill.trainers.nvpanoptix3d.weights import load_projector, load_stage1
from scenemill.trainers.sidefiles import label_map_of
from scenemill.trainers.stages import make_stage1, stage_of

_GROUPS = {"all": "dpq", "things": "dpq_th", "stuff": "dpq_st"}
_VOLUME_METRICS = {"PRQ": "quality", "RSQ": "segmentation", "RRQ": "recognition"}
_METRICS = {"pq": "-1.0", "dpq_0.5": "0.5", "dpq_0.25": "0.25", "dpq_0.1": "0.1", "dpq_mean": "averages"}


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation came to.

    Attributes:
        run: its name in the metric tables.
        tables: their folder.
        predictions: what was scored, a folder per sample.
        kpi: the documentation's numbers: ``test_loss`` where the batches have what it compares, and qualities in percent.
        scores: its rows of the scores table.
    """

    run: str
    tables: Path
    predictions: Path
    kpi: Mapping[str, float]
    scores: pa.Table


def run_evaluation(config: ExperimentConfig, on_progress: OnProgress, tables: Path | None = None) -> Evaluated:
    """Predict the test split with a checkpoint and score it: the same numbers as ``scenemill score`` gives, and in the same tables.

    Args:
        config: the experiment.
        on_progress: told of ingest, prediction and scoring.
        tables: folder of the metric tables; None for one in the results.

    Raises:
        ConfigError: no checkpoint, no test split, or weights that do not fit.
        Corrupt: a sample cannot be read; or the metrics of this installation fail their own cases.
    """
    _refuse_nodes("evaluate", config.evaluate.num_nodes)
    folder = begin(config, "evaluate")
    samples = find_samples(config, "test", on_progress)
    predictions, tables = folder / "predictions", tables or folder / "tables"
    held = config.evaluate
    predict = partial(_predict_share, config, samples, predictions, on_progress)
    shares = run_on_devices(predict, held.num_gpus, held.gpu_ids)
    inferred = join_outcomes([outcome for outcome, _ in shares])
    if inferred.failures:
        failure = inferred.failures[0]
        raise ConfigError(f"{len(inferred.failures)} samples have no prediction; the first, {failure.image}: {failure.reason}")
    scored = score(
        ScoreConfig(
            predictions,
            samples.store,
            tables,
            model=config.model_name or Path(held.checkpoint).stem,
            split=samples.split or "",
            labels=label_map_of(config.dataset),
            surface=surface_rule(config),
        ),
        on_progress,
    )
    mean = Evaluation.of_losses([loss for _, losses in shares for loss in losses]).loss
    rows = [row for row in scored.scores.to_pylist() if row["rule"].startswith("reference")]
    kpi = volume_kpi(rows) if config.dataset.enable_3d else ({} if mean is None else {"test_loss": mean}) | image_kpi(rows)
    return Evaluated(scored.run, tables, predictions, kpi, scored.scores)


def _predict_share(
    config: ExperimentConfig,
    samples: Samples,
    predictions: Path,
    on_progress: OnProgress,
    number: int,
    of_all: int,
    device: str,
) -> tuple[Inferred, list[float]]:
    """Predict one of several shares of a split; what it came to, and the loss of each image where stage 1 is evaluated."""
    model = load_model(config, config.evaluate.checkpoint, "evaluate", device)
    losses: list[float] = []
    judged = config.dataset.enable_mp_occ and not config.dataset.enable_3d
    inferred = infer_store(
        config,
        model,
        samples.store,
        samples.split or "",
        predictions,
        no_progress if number else on_progress,
        overwrite=True,
        on_output=_judge(config, losses, device) if judged else None,
        share=Share(number, of_all),
    )
    return inferred, losses


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


def run_inference(config: ExperimentConfig, on_progress: OnProgress, *, overwrite: bool = False) -> str:
    """Predict a folder of images.

    Returns:
        What it came to, in a line.

    Raises:
        ConfigError: no checkpoint, no images, or weights that do not fit.
    """
    held = config.inference
    _refuse_nodes("inference", held.num_nodes)
    if not held.images_dir:
        raise ConfigError("inference.images_dir is empty: name a folder of .jpg or .png images")
    folder = begin(config, "inference")
    predict = partial(_infer_share, config, folder, on_progress, overwrite)
    done = join_outcomes(run_on_devices(predict, held.num_gpus, held.gpu_ids))
    figures = f"{done.count('written')} written, {done.count('skipped')} there already, {done.count('failed')} failed"
    failures = "".join(f"\n{failure.image}: {failure.reason}" for failure in done.failures)
    passed = f"\npassed over, not *.jpg or *.png: {', '.join(done.passed_over)}" if done.passed_over else ""
    return f"{len(done.facts)} images: {figures}; in {folder}{failures}{passed}"


def _infer_share(
    config: ExperimentConfig, folder: Path, on_progress: OnProgress, overwrite: bool, number: int, of_all: int, device: str
) -> Inferred:
    """Predict one of several shares of a folder."""
    model = load_model(config, config.inference.checkpoint, "inference", device)
    images, told = Path(config.inference.images_dir), no_progress if number else on_progress
    return infer_folder(config, model, images, folder, told, overwrite=overwrite, share=Share(number, of_all))


def run_export(config: ExperimentConfig) -> Iterator[str]:
    """Write the ONNX file.

    Returns:
        Lines that say where, and how far ONNX Runtime and PyTorch differ.

    Raises:
        ConfigError: no checkpoint, weights that do not fit, or a library is missing.
    """
    held = config.export
    folder = begin(config, "export")
    if not held.checkpoint:
        raise ConfigError("export.checkpoint is empty: name a checkpoint that train wrote")
    stage1, key = make_stage1(config).eval(), config.encryption_key or ""
    load_stage1(stage1, Path(held.checkpoint), key)
    projector = Projector(config.model.backbone.dpt_features, config.model.sem_seg_head.depth_dim).eval()
    if not load_projector(projector, Path(held.checkpoint), key):
        yield "the projector of stage 2 is not in a stage 1 checkpoint: encoder_features come from one that was never trained"
    report = export_onnx(
        ExportModel(stage1, projector),
        held.onnx_file_2d or folder / "stage1.onnx",
        height=held.input_height,
        width=held.input_width,
        batch_size=held.batch_size,
        opset_version=held.opset_version,
        verbose=held.verbose,
        on_cpu=held.on_cpu or best_device() == "cpu",
    )
    for name, difference in report.differences.items():
        yield f"{name}  differs by at most {difference:.2g}"
    yield f"{report.path}"


def run_gen_trt_engine(config: ExperimentConfig) -> str:
    """Build the TensorRT engine; returns its path.

    Raises:
        ConfigError: no TensorRT, no GPU, or no ONNX file.
    """
    held = config.gen_trt_engine
    if not held.onnx_file or not held.trt_engine:
        raise ConfigError("gen_trt_engine.onnx_file and gen_trt_engine.trt_engine: name the file to read and the one to write")
    options = held.tensorrt
    path = gen_trt_engine(
        held.onnx_file,
        held.trt_engine,
        batch_size=held.batch_size,
        workspace_mb=options.workspace_size,
        min_batch_size=options.min_batch_size,
        opt_batch_size=options.opt_batch_size,
        max_batch_size=options.max_batch_size,
        data_type=options.data_type,
        layers_precision=options.layers_precision,
        timing_cache=held.timing_cache,
        gpu_id=held.gpu_id,
        verbose=held.verbose,
    )
    return str(path)


def _refuse_nodes(action: str, count: int) -> None:
    if count > 1:
        raise ConfigError(
            f"{action}.num_nodes={count}: allowed is 1. On several machines predict a folder each, or run the Beam pipeline of "
            "scenemill.pipelines.run_inference"
        )
