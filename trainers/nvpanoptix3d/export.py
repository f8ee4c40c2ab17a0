"""Stage 1 as an ONNX file.

Everything but the number of images is fixed in the file: sizes, paddings, position embeddings. The exporter traces and forgets sizes
on the way; it then writes the traced number of images into the graph. ``onnx_rules`` and ``_tidy`` tell it what it lost.

Source: names and shapes of inputs and outputs as in NvPanoptix3D.
"""

import hashlib
import importlib
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from scenemill.schemas.errors import ConfigError, SceneMillError
from scenemill.trainers.nvpanoptix3d.aggregator import PATCH, input_size, padded_size
from scenemill.trainers.nvpanoptix3d.deformable import map_size
from scenemill.trainers.nvpanoptix3d.onnx_rules import DOMAIN, sized_rules, swapped_attention
from scenemill.trainers.nvpanoptix3d.projector import Projector
from scenemill.trainers.nvpanoptix3d.stage1 import Stage1

INPUT: Final = "batch_inputs"

OUTPUTS: Final = (
    "pred_logits",
    "pred_masks",
    "pred_depths",
    "encoder_features",
    "segm_decoder_out",
    "occupancy_preds",
    "enc_feat_0",
    "enc_feat_1",
    "enc_feat_2",
    "ori_pred_masks",
    "orig_pad_shape",
)

FIXED: Final = "orig_pad_shape"
"""The output that is the same for any number of images."""

BATCH: Final = "batch"
"""Name of the axis of images."""

OPSETS: Final = range(16, 21)
"""GridSample is in ONNX from 16; the tracing exporter of torch ends at 20."""

LIMIT: Final = 1e-3
"""Largest difference from PyTorch that is let pass."""

CHECKED_BATCHES: Final = (1, 2)

LARGE_BYTE: Final = 1 << 30
"""Weights from this size on go to a file of their own: a protocol buffer cannot exceed 2 GiB."""

LEAST_SIDE: Final = 32


class ExportModel(nn.Module):
    """Stage 1 and the projector of stage 2, with the outputs of the exported file.

    Args:
        stage1: shared, not copied.
        projector: from a stage 2 checkpoint. A new one is untrained, and with it the second half of ``encoder_features``: the caller
            says so.
    """

    def __init__(self, stage1: Stage1, projector: Projector) -> None:
        super().__init__()
        self.stage1 = stage1
        self.projector = projector

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """(Hp, Wp) of images of ``height`` x ``width``, padded as the network does."""
        return padded_size((height, width), self.stage1.backbone.size_divisibility)

    def forward(self, batch_inputs: Tensor) -> tuple[Tensor, ...]:
        """The tensors named in ``OUTPUTS``, for Q queries, C classes and S planes.

        Args:
            batch_inputs: (B, 3, H, W) float32, RGB, 0..255.

        Returns:
            pred_logits (B, Q, C + 1); pred_masks (B, Q, Hp/2, Wp/2) logits; pred_depths (B, 1, Hp/2, Wp/2) metres;
            encoder_features (B, mask_dim + depth_dim, h, w), mask features before projected depth features; segm_decoder_out
            (B, Q, hidden_dim); occupancy_preds (B, S, height, width) logits; enc_feat_0..2 (B, convs_dim, ...), coarse to fine;
            ori_pred_masks (B, Q, h, w), the masks as the decoder gives them; orig_pad_shape (2,) int64, (Hp, Wp).
        """
        found = self.stage1(batch_inputs)
        padded = self.padded_size(*map_size(batch_inputs))
        half = (padded[0] // 2, padded[1] // 2)
        projected = self.projector(found.depth_features, map_size(found.mask_features))
        return (
            found.pred_logits,
            _resize(found.pred_masks, half),
            _resize(found.pred_depths, half),
            torch.cat([found.mask_features, projected], dim=1),
            found.segm_decoder_out,
            found.occupancy_preds,
            *found.enc_features,
            found.pred_masks,
            torch.tensor(padded, dtype=torch.int64, device=batch_inputs.device),
        )


def _resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return functional.interpolate(maps, size, mode="bilinear", align_corners=False)


@dataclass(frozen=True)
class ExportReport:
    """What was written.

    Attributes:
        path: the ONNX file.
        files: the ONNX file and, if the weights are apart, the file that holds them. They belong in one folder.
        size_byte: of all files.
        opset: of the file.
        shapes: of the input and every output by name; -1 stands for any number of images.
        plugin: whether deformable attention is the TensorRT operator. Such a file was not compared: no other runtime runs it.
        differences: largest difference from PyTorch of every output, over all batches compared, as a share of the output's largest
            value where that is above 1; empty with ``plugin``.
    """

    path: Path
    files: tuple[Path, ...]
    size_byte: int
    opset: int
    shapes: dict[str, tuple[int, ...]]
    plugin: bool
    differences: dict[str, float]

    @property
    def largest_difference(self) -> float:
        """Over all outputs; 0 where nothing was compared."""
        return max(self.differences.values(), default=0.0)


def export_onnx(
    model: ExportModel,
    path: str | Path,
    *,
    height: int = 256,
    width: int = 320,
    batch_size: int = -1,
    opset_version: int = 17,
    verbose: bool = False,
    on_cpu: bool = False,
    plugin: bool | None = None,
) -> ExportReport:
    """Write an ONNX file of images of one size, checked by ONNX and, without ``plugin``, against PyTorch.

    The file appears whole or not at all; weights of ``LARGE_BYTE`` and more lie beside it, in a file named by their checksum. The model
    is given back as it was.

    Args:
        path: of the file; an older one is replaced.
        height, width: of the images in pixels, before padding.
        batch_size: of the file; -1 for any.
        opset_version: one of ``OPSETS``.
        verbose: print the graph.
        on_cpu: trace on the CPU, else on the current CUDA device.
        plugin: deformable attention as TensorRT's operator, in place of GridSample; None for "not on the CPU".

    Raises:
        ConfigError: a setting out of its range, ONNX or ONNX Runtime are not installed, or no CUDA device is there.
        SceneMillError: ONNX Runtime and PyTorch differ by more than ``LIMIT``; nothing was written.
    """
    path = Path(path)
    _refuse(
        height < LEAST_SIDE or width < LEAST_SIDE, f"image of {height} x {width} pixels: allowed are {LEAST_SIDE} and more a side"
    )
    _refuse(batch_size != -1 and batch_size < 1, f"batch_size {batch_size}: allowed are 1 and more, and -1 for any")
    _refuse(opset_version not in OPSETS, f"opset_version {opset_version}: allowed are {OPSETS[0]} to {OPSETS[-1]}")
    _refuse(path.is_dir(), f"{path}: a folder; name the file to write")
    _refuse(not on_cpu and not torch.cuda.is_available(), "export: no CUDA device; set on_cpu to trace on the CPU")
    onnx = _library("onnx", "onnx")
    plugin = not on_cpu if plugin is None else plugin
    if not plugin:
        _library("onnxruntime", "onnxruntime")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder, ExitStack() as stack:
        stack.enter_context(_as_exported(model, height, width))
        made = Path(folder) / path.name
        with _on_device(model, "cpu" if on_cpu else "cuda"):
            _trace(model, made, (height, width), batch_size, opset_version, verbose, plugin)
        shapes = _known_shapes(model, (height, width), batch_size)
        data = _tidy(onnx, made, shapes)
        onnx.checker.check_model(str(made), full_check=True)
        differences = {}
        if not plugin:
            with _on_device(model, "cpu"):
                differences = _compare(model, made, (height, width), CHECKED_BATCHES if batch_size == -1 else (batch_size,))
        worst = max(differences, key=differences.__getitem__, default="")
        if not all(each <= LIMIT for each in differences.values()):  # "not <=": true for NaN as well
            raise SceneMillError(
                f"{path}: ONNX Runtime and PyTorch differ by {differences[worst]:.2g} in {worst}, allowed is {LIMIT}; nothing was written. "
                "Try another opset_version, or report it"
            )
        files = _place(made, data, path)
    size = sum(file.stat().st_size for file in files)
    return ExportReport(path, files, size, opset_version, shapes, plugin, differences)


class TensorForm(NamedTuple):
    """What a tensor must be.

    Attributes:
        name: of the tensor.
        dtype: as numpy names it.
        shape: -1 for any number of images.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]


def read_forms(path: Path) -> tuple[list[TensorForm], list[TensorForm]]:
    """Inputs and outputs of an ONNX file, in its order; weights are not read.

    Raises:
        ConfigError: ONNX is not installed.
    """
    onnx = _library("onnx", "onnx")
    graph = onnx.load(str(path), load_external_data=False).graph

    def form(each: Any) -> TensorForm:
        held = each.type.tensor_type
        shape = tuple(-1 if axis.dim_param else axis.dim_value for axis in held.shape.dim)
        return TensorForm(each.name, onnx.helper.tensor_dtype_to_np_dtype(held.elem_type).name, shape)

    return [form(each) for each in graph.input], [form(each) for each in graph.output]


def _refuse(wrong: bool, message: str) -> None:
    if wrong:
        raise ConfigError(message)


def _library(name: str, package: str) -> Any:
    """A library that only exports need.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f'export: {name} is not installed; run "pip install {package}"') from error


@contextmanager
def _as_exported(model: ExportModel, height: int, width: int) -> Iterator[None]:
    """In evaluation mode, without gradients, with the patch grid fixed; everything as it was behind it."""
    aggregator, training = model.stage1.backbone.aggregator, model.training
    rows, columns = input_size(*model.padded_size(height, width), model.stage1.backbone.input_width)
    _refuse(rows == 0, f"image of {height} x {width} pixels: too flat for an input width of {columns}")
    before = aggregator.grid, aggregator.patch_embed.resized
    try:
        model.eval()
        with torch.no_grad():
            aggregator.fix_grid(rows // PATCH, columns // PATCH)
            yield
    finally:
        aggregator.grid, aggregator.patch_embed.resized = before
        model.train(training)


@contextmanager
def _on_device(model: ExportModel, device: str) -> Iterator[None]:
    before = next(model.parameters()).device
    try:
        model.to(device)
        yield
    finally:
        model.to(before)


def _trace(model: ExportModel, path: Path, size: tuple[int, int], batch_size: int, opset: int, verbose: bool, plugin: bool) -> None:
    """Write the graph as the exporter makes it, perhaps with a file per weight beside it."""
    images = _images(CHECKED_BATCHES[-1] if batch_size == -1 else batch_size, size).to(next(model.parameters()).device)
    axes = {name: {0: BATCH} for name in (INPUT, *OUTPUTS) if name != FIXED} if batch_size == -1 else None
    with ExitStack() as stack:
        stack.enter_context(_quiet())
        stack.enter_context(sized_rules(opset))
        if plugin:
            stack.enter_context(swapped_attention())
        torch.onnx.export(
            model,
            (images,),
            str(path),
            dynamo=False,
            verbose=verbose,
            opset_version=opset,
            do_constant_folding=False,
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            dynamic_axes=axes,
            custom_opsets={DOMAIN: 1} if plugin else None,
        )


def _images(batch: int, size: tuple[int, int]) -> Tensor:
    """(batch, 3, *size) float32 of noise, 0..255."""
    return torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(batch)) * 255


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings that tracing is bound to give: sizes are meant to be constants, and this exporter is meant."""
    with warnings.catch_warnings():
        jit: Any = torch.jit  # not listed among its public names
        warnings.simplefilter("ignore", jit.TracerWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"(torch|scenemill)\..*")
        warnings.filterwarnings("ignore", message="Constant folding", category=UserWarning)
        yield


def _known_shapes(model: ExportModel, size: tuple[int, int], batch_size: int) -> dict[str, tuple[int, ...]]:
    """Of the input and every output by name, as PyTorch has them; -1 for any number of images."""
    images = _images(1, size).to(next(model.parameters()).device)
    tensors = zip((INPUT, *OUTPUTS), (images, *model(images)), strict=True)
    return {name: tuple(each.shape) if name == FIXED else (batch_size, *each.shape[1:]) for name, each in tensors}


def _tidy(onnx: Any, path: Path, shapes: dict[str, tuple[int, ...]]) -> Path | None:
    """Write a graph again with the shapes of its outputs, and of nothing within: what is traced there is one number of images.

    Returns:
        The file of the weights, named by their checksum, where they are large; None where they stay in the graph.
    """
    proto = onnx.load(str(path))
    for file in path.parent.iterdir():
        file.unlink()
    del proto.graph.value_info[:]
    for each in (*proto.graph.input, *proto.graph.output):
        axes = [onnx.TensorShapeProto.Dimension(dim_value=size) for size in shapes[each.name]]
        if shapes[each.name][0] == -1:
            axes[0] = onnx.TensorShapeProto.Dimension(dim_param=BATCH)
        each.type.tensor_type.shape.CopyFrom(onnx.TensorShapeProto(dim=axes))
    if sum(len(weight.raw_data) for weight in proto.graph.initializer) < LARGE_BYTE:
        onnx.save_model(proto, str(path))
        return None
    checksum = hashlib.sha256()
    for weight in proto.graph.initializer:
        checksum.update(weight.raw_data)
    name = f"{path.name}.{checksum.hexdigest()[:16]}.data"
    onnx.save_model(proto, str(path), save_as_external_data=True, all_tensors_to_one_file=True, location=name)
    data = path.with_name(name)
    data.chmod(path.stat().st_mode)  # ONNX keeps the weights from other users, who may read the graph
    return data


def _compare(model: ExportModel, path: Path, size: tuple[int, int], batches: Sequence[int]) -> dict[str, float]:
    """Largest difference of every output, on random images, between ONNX Runtime and PyTorch on the CPU.

    As a share of the output's largest value where that is above 1: logits of trained weights are tens, and round accordingly.
    """
    session = _library("onnxruntime", "onnxruntime").InferenceSession(str(path), providers=["CPUExecutionProvider"])
    differences = dict.fromkeys(OUTPUTS, 0.0)
    for batch in batches:
        images = _images(batch, size)
        for name, wanted, got in zip(OUTPUTS, model(images), session.run(None, {INPUT: images.numpy()}), strict=True):
            if got.shape != tuple(wanted.shape):
                raise SceneMillError(f"{path.name}: {name} of {batch} images is {got.shape}, not {tuple(wanted.shape)}; report it")
            apart = (
                (torch.from_numpy(got).double() - wanted.double()).abs().max() / wanted.double().abs().max().clamp(min=1)
            ).item()
            differences[name] = apart if apart != apart else max(differences[name], apart)  # noqa: PLR0124  NaN stays
    return differences


def _place(made: Path, data: Path | None, path: Path) -> tuple[Path, ...]:
    """Give finished files their names: the weights first, then in one step the graph that names them; then drop older weights."""
    files = [path]
    if data is not None:
        files.append(path.with_name(data.name))
        _move(data, files[1])
    _move(made, path)
    for stale in path.parent.iterdir():
        named = stale.name.startswith(f"{path.name}.") and stale.name.endswith(".data")
        if named and stale not in files:
            stale.unlink(missing_ok=True)
    return tuple(files)


def _move(source: Path, target: Path) -> None:
    with source.open("rb") as file:
        os.fsync(file.fileno())
    source.replace(target)
