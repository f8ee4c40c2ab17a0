"""What is done with a trained model: evaluated into the metric tables, run over images, exported."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scenemill.pipelines.folder import OnProgress
from scenemill.pipelines.inference import infer_folder, infer_store
from scenemill.pipelines.score import ScoreConfig, score
from scenemill.pipelines.training import begin, find_samples, load_model
from scenemill.schemas.errors import ConfigError
from scenemill.schemas.experiment import ExperimentConfig
from scenemill.trainers.collate import Batch
from scenemill.trainers.devices import best_device
from scenemill.trainers.evaluate import Evaluation, image_losses
from scenemill.trainers.nvpanoptix3d.export import ExportModel, export_onnx, gen_trt_engine
from scenemill.trainers.nvpanoptix3d.projector import Projector
from scenemill.trainers.nvpanoptix3d.stage1 import Stage1Output
from scenemill.trainers.sidefiles import label_map_of
from scenemill.trainers.stages import stage_of

_GROUPS = {"all": "dpq", "things": "dpq_th", "stuff": "dpq_st"}
_METRICS = {"pq": "-1.0", "dpq_0.5": "0.5", "dpq_0.25": "0.25", "dpq_0.1": "0.1", "dpq_mean": "averages"}


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation came to.

    Attributes:
        run: its name in the metric tables.
        tables: their folder.
        predictions: what was scored, a folder per sample.
        kpi: the documentation's numbers: ``test_loss`` where the batches have what it compares, and qualities in percent.
    """

    run: str
    tables: Path
    predictions: Path
    kpi: Mapping[str, float]


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
    _refuse_stage_2(config)
    folder = begin(config, "evaluate")
    model = load_model(config, config.evaluate.checkpoint, "evaluate", best_device())
    samples = find_samples(config, "test", on_progress)
    predictions, tables = folder / "predictions", tables or folder / "tables"
    losses: list[float] = []
    judge = _judge(config, losses) if config.dataset.enable_mp_occ else None
    inferred = infer_store(
        config, model, samples.store, samples.split or "", predictions, on_progress, overwrite=True, on_output=judge
    )
    if inferred.failures:
        failure = inferred.failures[0]
        raise ConfigError(f"{len(inferred.failures)} samples have no prediction; the first, {failure.image}: {failure.reason}")
    name = config.model_name or Path(config.evaluate.checkpoint).stem
    labels = label_map_of(config.dataset)
    scored = score(
        ScoreConfig(predictions, samples.store, tables, model=name, split=samples.split or "", labels=labels), on_progress
    )
    mean = Evaluation.of_losses(losses).loss
    kpi = ({} if mean is None else {"test_loss": mean}) | {
        f"test_{_GROUPS[row['group']]}_{_METRICS[row['metric']]}_epoch": 100 * (row["quality"] or 0.0)
        for row in scored.scores.to_pylist()
        if row["rule"] == "reference" and row["metric"] in _METRICS and row["group"] in _GROUPS
    }
    return Evaluated(scored.run, tables, predictions, kpi)


def _judge(config: ExperimentConfig, losses: list[float]) -> Callable[[Batch, Stage1Output], None]:
    """What adds the loss of each image to a list, weighted as in training."""
    stage = stage_of(config)
    criterion = stage.make_criterion(config).to(best_device())

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
    _refuse_stage_2(config)
    if not config.inference.images_dir:
        raise ConfigError("inference.images_dir is empty: name a folder of .jpg or .png images")
    folder = begin(config, "inference")
    model = load_model(config, config.inference.checkpoint, "inference", best_device())
    done = infer_folder(config, model, Path(config.inference.images_dir), folder, on_progress, overwrite=overwrite)
    figures = f"{done.count('written')} written, {done.count('skipped')} there already, {done.count('failed')} failed"
    failures = "".join(f"\n{failure.image}: {failure.reason}" for failure in done.failures)
    passed = f"\npassed over, not *.jpg or *.png: {', '.join(done.passed_over)}" if done.passed_over else ""
    return f"{len(done.facts)} images: {figures}; in {folder}{failures}{passed}"


def run_export(config: ExperimentConfig) -> Iterator[str]:
    """Write the ONNX file.

    Returns:
        Lines that say where, and how far ONNX Runtime and PyTorch differ.

    Raises:
        ConfigError: no checkpoint, weights that do not fit, or a library is missing.
    """
    held = config.export
    folder = begin(config, "export")
    stage1 = load_model(config, held.checkpoint, "export", "cpu")
    backbone, head = config.model.backbone, config.model.sem_seg_head
    yield "the projector of stage 2 is not in a stage 1 checkpoint: encoder_features come from one that was never trained"
    report = export_onnx(
        ExportModel(stage1, Projector(backbone.dpt_features, head.depth_dim)),
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


def _refuse_stage_2(config: ExperimentConfig) -> None:
    if config.dataset.enable_3d:
        raise ConfigError("dataset.enable_3d=true: stage 2 is not there yet; set dataset.enable_3d=false")
