"""A trained stage 1 for other runtimes: ONNX, and TensorRT made of it."""

from collections.abc import Iterator
from pathlib import Path

from scenemill.pipelines.experiments.training import begun
from scenemill.pipelines.mirrored import Results
from scenemill.schemas.errors import ConfigError
from scenemill.schemas.experiment import ExperimentConfig
from scenemill.trainers.devices import best_device
from scenemill.trainers.nvpanoptix3d.export import ExportModel, export_onnx
from scenemill.trainers.nvpanoptix3d.projector import Projector
from scenemill.trainers.nvpanoptix3d.trt_engine import gen_trt_engine
from scenemill.trainers.nvpanoptix3d.weights import load_projector, load_stage1
from scenemill.trainers.stages import make_stage1


def run_export(config: ExperimentConfig) -> Iterator[str]:
    """Write the ONNX file.

    Returns:
        Lines that say where, and how far ONNX Runtime and PyTorch differ.

    Raises:
        ConfigError: no checkpoint, weights that do not fit, or a library is missing.
    """
    if not config.export.checkpoint:
        raise ConfigError("export.checkpoint is empty: name a checkpoint that train wrote")
    with begun(config, "export") as results:
        yield from _export(config, results)


def _export(config: ExperimentConfig, results: Results) -> Iterator[str]:
    held = config.export
    stage1, key = make_stage1(config).eval(), config.encryption_key or ""
    load_stage1(stage1, Path(held.checkpoint), key)
    projector = Projector(config.model.backbone.dpt_features, config.model.sem_seg_head.depth_dim).eval()
    if not load_projector(projector, Path(held.checkpoint), key):
        yield "the projector of stage 2 is not in a stage 1 checkpoint: encoder_features come from one that was never trained"
    report = export_onnx(
        ExportModel(stage1, projector),
        held.onnx_file_2d or results.folder / "stage1.onnx",
        height=held.input_height,
        width=held.input_width,
        batch_size=held.batch_size,
        opset_version=held.opset_version,
        verbose=held.verbose,
        on_cpu=held.on_cpu or best_device() == "cpu",
    )
    for name, difference in report.differences.items():
        yield f"{name}  differs by at most {difference:.2g}"
    yield f"{results.place / report.path.name if report.path.parent == results.folder else report.path}"


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
