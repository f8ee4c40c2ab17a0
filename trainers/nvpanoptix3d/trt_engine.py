"""A TensorRT engine from an ONNX file."""

import importlib
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

import torch

from scenemill.schemas.errors import ConfigError, SceneMillError
from scenemill.transforms.publish import write_whole

PRECISIONS: Final = ("FP32", "FP16")


def gen_trt_engine(
    onnx_file: str | Path,
    trt_engine: str | Path,
    *,
    batch_size: int = -1,
    workspace_mb: int = 1024,
    min_batch_size: int = 1,
    opt_batch_size: int = 1,
    max_batch_size: int = 1,
    data_type: str = "FP32",
    layers_precision: Sequence[str] = (),
    timing_cache: str | Path | None = None,
    gpu_id: int = 0,
    verbose: bool = False,
) -> Path:
    """Build a TensorRT engine from an exported file. The engine serves the kind of GPU and the version it was built with.

    Args:
        onnx_file: best one with the plugin; TensorRT has the operator.
        trt_engine: file to write, whole or not at all.
        batch_size: of the engine; -1 for the range below. A file of one batch size has only that.
        workspace_mb: scratch memory of the build, in MB; 0 for TensorRT's own limit.
        min_batch_size, opt_batch_size, max_batch_size: of an engine for a range, and the size it is fastest at.
        data_type: FP32 or FP16, in which layers may then run.
        layers_precision: "NAME:PRECISION" each, NAME with ``*`` for any letters; these layers run so whatever ``data_type`` says.
        timing_cache: file of measured kernels, read if it exists and written behind the build.
        gpu_id: the GPU to build on and for.
        verbose: TensorRT says all it has to.

    Returns:
        The path of the engine.

    Raises:
        ConfigError: a setting out of its range, a file that is not there, no TensorRT, or no GPU.
        SceneMillError: TensorRT cannot read the file or build the engine.
    """
    source, target = Path(onnx_file), Path(trt_engine)
    batches = (min_batch_size, opt_batch_size, max_batch_size) if batch_size == -1 else (batch_size,) * 3
    _refuse(batch_size != -1 and batch_size < 1, f"batch_size {batch_size}: allowed are 1 and more, and -1 for a range")
    _refuse(batches[0] < 1 or list(batches) != sorted(batches), f"batch sizes {batches}: allowed is 1 <= min <= opt <= max")
    _refuse(workspace_mb < 0, f"workspace_mb {workspace_mb}: allowed are 0 and more")
    _refuse(data_type.upper() not in PRECISIONS, f"data_type {data_type}: allowed are {', '.join(PRECISIONS)}")
    _refuse(gpu_id < 0, f"gpu_id {gpu_id}: allowed are 0 and more")
    layers = _layer_rules(layers_precision)
    _refuse(not source.is_file(), f"{source}: no such file; export the model first")
    _refuse(target.is_dir() or target.resolve() == source.resolve(), f"{target}: a folder, or the ONNX file; name another")
    trt = _tensorrt()
    cache = Path(timing_cache) if timing_cache is not None else None
    with torch.cuda.device(gpu_id):
        built, timings = _build(trt, source, batches, workspace_mb, data_type.upper(), layers, cache, verbose)
    write_whole(target, built)
    if cache is not None:
        write_whole(cache, timings)
    return target


def _layer_rules(given: Sequence[str]) -> list[tuple[str, str]]:
    """Pattern and precision of each "NAME:PRECISION"; a name may hold colons itself."""
    rules = []
    for each in given:
        name, colon, precision = each.rpartition(":")
        wrong = not colon or not name or precision.upper() not in PRECISIONS
        _refuse(wrong, f'layers_precision "{each}": allowed is NAME:PRECISION, with a precision of {", ".join(PRECISIONS)}')
        rules.append((name, precision.upper()))
    return rules


def _tensorrt() -> Any:
    try:
        trt = importlib.import_module("tensorrt")
    except ImportError as error:
        raise ConfigError(
            'gen_trt_engine: tensorrt is not installed; run "pip install tensorrt" on a machine with an NVIDIA GPU, which it needs'
        ) from error
    _refuse(not torch.cuda.is_available(), "gen_trt_engine: no CUDA device; TensorRT needs an NVIDIA GPU")
    return trt


def _build(
    trt: Any,
    source: Path,
    batches: tuple[int, ...],
    workspace_mb: int,
    data_type: str,
    layers: Sequence[tuple[str, str]],
    cache: Path | None,
    verbose: bool,
) -> tuple[bytes, bytes]:
    """The engine and the timings."""
    logger = trt.Logger(trt.Logger.VERBOSE if verbose else trt.Logger.WARNING)
    trt.init_libnvinfer_plugins(logger, "")
    builder = trt.Builder(logger)
    explicit = getattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH", None)  # the only way, and without a flag, since 10
    major = int(trt.__version__.split(".")[0])
    network = builder.create_network(1 << int(explicit) if explicit is not None and major < 10 else 0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(source)):  # by path: weights beside the file are found
        errors = "; ".join(str(parser.get_error(index)) for index in range(parser.num_errors))
        raise SceneMillError(f"{source}: TensorRT cannot read it: {errors}")
    config = builder.create_builder_config()
    if workspace_mb:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_mb << 20)
    _set_precisions(trt, network, config, data_type, layers)
    _set_batches(builder, network, config, batches, source)
    timings = config.create_timing_cache(cache.read_bytes() if cache is not None and cache.is_file() else b"")
    config.set_timing_cache(timings, ignore_mismatch=False)
    built = builder.build_serialized_network(network, config)
    if built is None:
        raise SceneMillError(f"{source}: TensorRT built no engine; its log says why. Often workspace_mb is too small")
    return bytes(built), bytes(timings.serialize())


def _set_precisions(trt: Any, network: Any, config: Any, data_type: str, layers: Sequence[tuple[str, str]]) -> None:
    if data_type == "FP32" and not layers:
        return
    flags = trt.BuilderFlag
    _refuse(
        not hasattr(flags, "FP16"),
        f"data_type and layers_precision: TensorRT {trt.__version__} takes precisions from the ONNX file alone; install an older one",
    )
    if data_type == "FP16" or any(precision == "FP16" for _, precision in layers):
        config.set_flag(flags.FP16)
    kinds = {"FP32": trt.float32, "FP16": trt.float16}
    fixed = [*layers, *([("*", "FP32")] if data_type == "FP32" else [])]
    found = dict.fromkeys(layers, False)
    for layer in (network.get_layer(index) for index in range(network.num_layers)):
        rule = next((each for each in fixed if fnmatchcase(layer.name, each[0])), None)
        if rule is None or layer.num_outputs == 0 or layer.get_output(0).dtype not in kinds.values():
            continue
        layer.precision = kinds[rule[1]]
        if rule in found:
            found[rule] = True
    missing = [name for (name, _), seen in found.items() if not seen]
    _refuse(bool(missing), f"layers_precision: no layer of floating point is named {', '.join(missing)}")
    config.set_flag(flags.OBEY_PRECISION_CONSTRAINTS)


def _set_batches(builder: Any, network: Any, config: Any, batches: tuple[int, ...], source: Path) -> None:
    images = network.get_input(0)
    batch, *rest = tuple(images.shape)
    if batch != -1:
        _refuse(set(batches) != {batch}, f"{source}: made for batches of {batch}, not {batches}; set batch_size, or export with -1")
        return
    profile = builder.create_optimization_profile()
    profile.set_shape(images.name, *((size, *rest) for size in batches))
    config.add_optimization_profile(profile)


def _refuse(wrong: bool, message: str) -> None:
    if wrong:
        raise ConfigError(message)
