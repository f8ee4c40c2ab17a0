"""The exported file against PyTorch, its names and shapes, how it is placed; the engine's options as far as no GPU is needed."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from scenemill.pipelines.experiments.specs import load_spec
from scenemill.schemas.errors import ConfigError, SceneMillError
from scenemill.trainers.nvpanoptix3d import deformable, export
from scenemill.trainers.nvpanoptix3d.export import ExportModel, export_onnx
from scenemill.trainers.nvpanoptix3d.projector import Projector
from scenemill.trainers.nvpanoptix3d.stage1 import Stage1
from scenemill.trainers.nvpanoptix3d.trt_engine import gen_trt_engine

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

SMALL = "model.backbone.input_width=112"
SPEC = Path(__file__).resolve().parents[2] / "pipelines" / "experiments" / "shipped" / "tiny_front3d_2d.yaml"
CLOSE = 3e-4  # a third of what the export allows; the largest seen is 1.6e-4


@pytest.fixture(scope="module")
def model() -> ExportModel:
    config = load_spec(SPEC, [SMALL])
    torch.manual_seed(3)
    made = ExportModel(Stage1(config.model, config.dataset.depth_size), Projector(32, 32))
    for name, buffer in made.named_buffers():  # batch norms that have seen something
        if name.endswith("running_mean"):
            buffer.normal_(std=0.1)
    for module in made.modules():
        if isinstance(module, deformable.DeformableAttention):  # offsets that vary from token to token
            torch.nn.init.normal_(module.sampling_offsets.weight, std=0.05)
            torch.nn.init.normal_(module.attention_weights.weight, std=0.05)
    return made


def expected_shapes(batch: int, height: int = 256) -> dict[str, tuple[int, ...]]:
    return {
        "batch_inputs": (batch, 3, height, 320),
        "pred_logits": (batch, 16, 14),
        "pred_masks": (batch, 16, 128, 160),
        "pred_depths": (batch, 1, 128, 160),
        "encoder_features": (batch, 64, 24, 32),
        "segm_decoder_out": (batch, 16, 32),
        "occupancy_preds": (batch, 24, 30, 40),
        "enc_feat_0": (batch, 32, 3, 4),
        "enc_feat_1": (batch, 32, 6, 8),
        "enc_feat_2": (batch, 32, 12, 16),
        "ori_pred_masks": (batch, 16, 24, 32),
        "orig_pad_shape": (2,),
    }


def test_file_has_the_documented_names_shapes_and_values_for_any_batch(model: ExportModel, tmp_path: Path) -> None:
    path = tmp_path / "new" / "stage1.onnx"
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = export_onnx(model, path, on_cpu=True)
    assert report.shapes == expected_shapes(-1) and report.opset == 17 and not report.plugin
    assert list(report.differences) == list(export.OUTPUTS) and report.largest_difference <= CLOSE
    assert report.files == (path,) and list(path.parent.iterdir()) == [path] and report.size_byte == path.stat().st_size
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [each.name for each in session.get_inputs()] == ["batch_inputs"]
    assert [each.name for each in session.get_outputs()] == list(export.OUTPUTS)
    images = torch.rand(3, 3, 256, 320, generator=torch.Generator().manual_seed(9)) * 255  # a batch nobody has checked
    got = dict(zip(export.OUTPUTS, session.run(None, {"batch_inputs": images.numpy()}), strict=True))
    assert {"batch_inputs": tuple(images.shape)} | {name: each.shape for name, each in got.items()} == expected_shapes(3)
    with torch.no_grad():
        found = model.eval().stage1(images)
    assert np.abs(got["ori_pred_masks"] - found.pred_masks.numpy()).max() <= CLOSE
    assert np.abs(got["encoder_features"][:, :32] - found.mask_features.numpy()).max() <= CLOSE
    assert got["orig_pad_shape"].tolist() == [256, 320] and got["orig_pad_shape"].dtype == np.int64
    after = model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], value) for name, value in before.items())
    assert model.stage1.backbone.aggregator.grid is None and model.stage1.backbone.aggregator.patch_embed.resized is None


@pytest.mark.parametrize("opset", [16, pytest.param(20, marks=pytest.mark.full)])
def test_images_that_need_padding_and_other_opsets(model: ExportModel, tmp_path: Path, opset: int) -> None:
    path = tmp_path / "one.onnx"
    model.train()
    report = export_onnx(model, path, height=240, batch_size=1, opset_version=opset, on_cpu=True)
    assert model.training and not model.stage1.backbone.aggregator.training  # as it was
    assert report.shapes == expected_shapes(1, height=240)
    assert report.largest_difference <= CLOSE
    assert [each.version for each in onnx.load(str(path)).opset_import if not each.domain] == [opset]


def test_plugin_stands_in_the_graph_with_five_inputs(model: ExportModel, tmp_path: Path) -> None:
    path = tmp_path / "plugin.onnx"
    report = export_onnx(model, path, on_cpu=True, plugin=True)
    assert report.plugin and report.differences == {} and report.shapes == expected_shapes(-1)
    proto = onnx.load(str(path))
    nodes = [node for node in proto.graph.node if node.domain == "nvidia"]
    assert [node.op_type for node in nodes] == ["MultiscaleDeformableAttnPlugin_TRT"]  # the tiny encoder has one layer
    assert len(nodes[0].input) == 5 and len(nodes[0].output) == 1
    assert not any(node.op_type == "GridSample" for node in proto.graph.node)
    assert {each.domain: each.version for each in proto.opset_import}["nvidia"] == 1
    constants = {node.output[0]: node.attribute[0].t for node in proto.graph.node if node.op_type == "Constant"}
    sizes, starts = (onnx.numpy_helper.to_array(constants[name]) for name in nodes[0].input[1:3])
    assert sizes.tolist() == [[3, 4], [6, 8], [12, 16]] and starts.tolist() == [0, 12, 60]
    assert sizes.dtype == starts.dtype == np.int32
    assert deformable.deformable_attention.__name__ == "deformable_attention"  # given back


@pytest.mark.full
def test_large_weights_lie_beside_the_graph_and_old_ones_go(
    model: ExportModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "LARGE_BYTE", 1 << 10)
    path, other = tmp_path / "big.onnx", tmp_path / "other.onnx"
    other.write_bytes(b"not ours")
    (tmp_path / ".big.onnx.killed").mkdir()  # what a killed run leaves disturbs nobody
    first = export_onnx(model, path, batch_size=1, on_cpu=True)
    assert len(first.files) == 2 and all(file.is_file() for file in first.files) and first.largest_difference <= CLOSE
    assert first.files[1].stat().st_mode == path.stat().st_mode  # who may read the one may read the other
    again = export_onnx(model, path, batch_size=1, on_cpu=True)
    assert again.files == first.files
    monkeypatch.undo()
    small = export_onnx(model, path, batch_size=1, on_cpu=True)
    assert small.files == (path,) and not first.files[1].exists() and other.read_bytes() == b"not ours"


def test_a_file_that_differs_is_not_placed(model: ExportModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "old.onnx"
    path.write_bytes(b"old")
    for wrong in (float("nan"), 1.0):
        monkeypatch.setattr(export, "_compare", lambda *_, wrong=wrong: {"pred_logits": 0.0, "pred_masks": wrong})
        with pytest.raises(SceneMillError, match="nothing was written"):
            export_onnx(model, path, batch_size=1, on_cpu=True)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"height": 16}, "32 and more"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"opset_version": 15}, "16 to 20"),
        ({"opset_version": 21}, "16 to 20"),
    ],
)
def test_export_refuses(model: ExportModel, tmp_path: Path, settings: dict[str, int], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        export_onnx(model, tmp_path / "no.onnx", on_cpu=True, **settings)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="tells what is said without a GPU")
def test_export_without_gpu_names_the_way_out(model: ExportModel, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="on_cpu"):
        export_onnx(model, tmp_path / "no.onnx")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda a, b: gen_trt_engine(a.with_name("none.onnx"), b), "no such file"),
        (lambda a, b: gen_trt_engine(a, a), "name another"),
        (lambda a, b: gen_trt_engine(a, b, batch_size=0), "batch_size 0"),
        (lambda a, b: gen_trt_engine(a, b, min_batch_size=2), "min <= opt <= max"),
        (lambda a, b: gen_trt_engine(a, b, workspace_mb=-1), "workspace_mb -1"),
        (lambda a, b: gen_trt_engine(a, b, data_type="INT8"), "FP32, FP16"),
        (lambda a, b: gen_trt_engine(a, b, gpu_id=-1), "gpu_id -1"),
        (lambda a, b: gen_trt_engine(a, b, layers_precision=["/conv"]), "NAME:PRECISION"),
        (lambda a, b: gen_trt_engine(a, b, layers_precision=["/conv:INT8"]), "NAME:PRECISION"),
    ],
)
def test_engine_refuses(tmp_path: Path, call: Callable[[Path, Path], Path], words: str) -> None:
    source = tmp_path / "a.onnx"
    source.write_bytes(b"")
    with pytest.raises(ConfigError, match=words):
        call(source, tmp_path / "a.engine")


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="tells what is said without TensorRT")
def test_engine_without_tensorrt_says_what_to_install(tmp_path: Path) -> None:
    source = tmp_path / "a.onnx"
    source.write_bytes(b"")
    with pytest.raises(ConfigError, match=r"pip install tensorrt.*NVIDIA GPU"):
        gen_trt_engine(source, tmp_path / "a.engine", data_type="fp16", layers_precision=["/a:b/*:fp32"], max_batch_size=4)
    assert not (tmp_path / "a.engine").exists()
