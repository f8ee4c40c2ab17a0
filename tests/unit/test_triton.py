"""A model repository as a server reads it: its configuration, and its models run by a stand-in for Triton that holds them to it."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from google.protobuf import text_format
from numpy.typing import NDArray
from tritonclient.grpc import model_config_pb2
from typer.testing import CliRunner

from scenemill.pipelines.cli import app
from scenemill.pipelines.experiments import triton
from scenemill.pipelines.experiments.specs import load_spec
from scenemill.pipelines.experiments.triton import SCENE, STAGE_1, ServedModel, export_triton
from scenemill.schemas.errors import ConfigError
from scenemill.schemas.experiment import ExperimentConfig
from scenemill.trainers.checkpoint import load_checkpoint, save_checkpoint
from scenemill.trainers.nvpanoptix3d import weights
from scenemill.trainers.nvpanoptix3d.export import TensorForm
from scenemill.trainers.nvpanoptix3d.frustum import inference_mask
from scenemill.trainers.nvpanoptix3d.postprocess3d import postprocess_volumes
from scenemill.trainers.nvpanoptix3d.stage2 import ImageFeatures, Stage2, Stage2Output
from scenemill.trainers.predict import prepare_image, rules_of, stack_images
from scenemill.trainers.serving import Completer, scene_inputs, scene_outputs
from scenemill.transforms.geometry import FRONT3D_INTRINSICS
from tests.unit.triton_stand_in import (
    Request,
    Response,
    Server,
    Tensor,
    TritonError,
    forms_of,
    make_library,
    make_response,
    read_config,
)

ROOT = Path(__file__).resolve().parents[2]
SPEC = ROOT / "pipelines" / "experiments" / "shipped" / "tiny_front3d_3d.yaml"
SIZES = ("model.backbone.input_width=112", "model.frustum3d.unet_features=4", "model.frustum3d.unet_output_channels=4")
KEEP_ALL = (*SIZES, "model.object_mask_threshold=0", "model.overlap_threshold=0")
K = np.array(FRONT3D_INTRINSICS)
LABELS = [
    {"name": f"class {number}", "id": number, "trainId": number, "isthing": 1 - number % 2, "color": [number] * 3}
    for number in range(1, 13)
]
SCENE_INPUTS = {
    "image": ("TYPE_UINT8", [1, 240, 320, 3]),
    "frustum_mask": ("TYPE_BOOL", [1, 64, 64, 64]),
    "intrinsic": ("TYPE_FP32", [1, 4, 4]),
}
SCENE_OUTPUTS = {
    "panoptic_seg_2d": ("TYPE_INT32", [30, 40]),
    "depth_2d": ("TYPE_FP32", [30, 40]),
    "panoptic_seg_3d": ("TYPE_INT32", [64, 64, 64]),
    "geometry_3d": ("TYPE_FP32", [64, 64, 64]),
    "semantic_seg_3d": ("TYPE_INT32", [64, 64, 64]),
}
IMAGE_OUTPUTS = {
    "pred_logits": ("TYPE_FP32", [16, 14]),
    "pred_masks": ("TYPE_FP32", [16, 128, 160]),
    "pred_depths": ("TYPE_FP32", [1, 128, 160]),
    "encoder_features": ("TYPE_FP32", [64, 24, 32]),
    "segm_decoder_out": ("TYPE_FP32", [16, 32]),
    "occupancy_preds": ("TYPE_FP32", [24, 30, 40]),
    "enc_feat_0": ("TYPE_FP32", [32, 3, 4]),
    "enc_feat_1": ("TYPE_FP32", [32, 6, 8]),
    "enc_feat_2": ("TYPE_FP32", [32, 12, 16]),
    "ori_pred_masks": ("TYPE_FP32", [16, 24, 32]),
}


@pytest.fixture(autouse=True, scope="module")
def server_library() -> Iterator[dict[str, Any]]:
    """Where models call each other: the server under "at"."""
    place: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "triton_python_backend_utils", make_library(place))
        yield place


def lively_model(config: ExperimentConfig) -> Stage2:
    """Random weights whose image has several segments, and depths that vary."""
    torch.manual_seed(0)
    model = Stage2(config.model, config.dataset, rules_of(config)).eval()
    with torch.no_grad():
        predictor: Any = model.sem_seg_head.predictor
        predictor.class_embed.weight.mul_(20)
        predictor.mask_embed.layers[-1].weight.mul_(20)
        last: Any = model.backbone.depth_head.scratch.output_conv2[2]
        last.weight.mul_(20)
        last.bias[0] = 1
    return model


@dataclass(frozen=True)
class Made:
    """A checkpoint and the repository made of it."""

    config: ExperimentConfig
    model: Stage2
    repository: Path
    printed: str


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """By the command, for a server without ONNX Runtime, with a label map that the server will not have."""
    folder = tmp_path_factory.mktemp("triton")
    (folder / "labels.json").write_text(json.dumps(LABELS))
    given = [*KEEP_ALL, f"dataset.label_map={folder / 'labels.json'}", "encryption_key=swordfish"]
    given += [f"export.checkpoint={folder / 'stage2.pth'}", "export.batch_size=-1", "export.on_cpu=true"]
    config = load_spec(SPEC, given)
    model = lively_model(config)
    save_checkpoint(folder / "stage2.pth", {"state_dict": {f"model.{name}": held for name, held in model.state_dict().items()}})
    repository = folder / "new" / "models"
    options = ["--repository", str(repository), "--backend", "python", "--max-batch-size", "4"]
    done = CliRunner().invoke(app, ["export-triton", "-e", str(SPEC), *options, *given])
    assert done.exit_code == 0, done.output
    (folder / "labels.json").unlink()
    return Made(config, model, repository, done.output)


@pytest.fixture(scope="module")
def loaded(made: Made) -> Server:
    return Server(made.repository).load()


@pytest.fixture
def server(loaded: Server, server_library: dict[str, Any]) -> Server:
    server_library["at"] = loaded
    return loaded


def picture(seed: int = 0) -> NDArray[np.uint8]:
    """(240, 320, 3) uint8 of squares."""
    squares = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return np.kron(squares, np.ones((40, 40, 1), np.uint8))


def predict_in_process(made: Made, rgb: NDArray[np.uint8], mask: torch.Tensor) -> dict[str, NDArray[Any]]:
    view = prepare_image(rgb, made.config.dataset)
    with torch.inference_mode():
        return arrays_of(made, made.model(stack_images([view.rgb]), [view.unpadded_shape], torch.from_numpy(K)[None], mask[None]))


def complete_in_process(made: Made, repository: Path, rgb: NDArray[np.uint8], mask: torch.Tensor) -> dict[str, NDArray[Any]]:
    """The same, with what the exported file says of the image."""
    view = prepare_image(rgb, made.config.dataset)
    session = ort.InferenceSession(str(repository / STAGE_1 / "1" / "model.onnx"), providers=["CPUExecutionProvider"])
    images = view.rgb.transpose(2, 0, 1)[None].astype(np.float32)
    logits, masks, depths, encoded, queries, planes, *scales = map(
        torch.from_numpy, session.run(None, {"batch_inputs": images})[:9]
    )
    features = ImageFeatures(logits, masks, depths, encoded, queries, planes, scales)
    with torch.inference_mode():
        camera = torch.from_numpy(K.astype(np.float32))[None]
        return arrays_of(made, made.model.complete(features, (256, 320), [(240, 320)], camera, mask[None]))


def arrays_of(made: Made, found: Stage2Output) -> dict[str, NDArray[Any]]:
    image, model = found.images[0], made.model
    (volume,) = postprocess_volumes(found.volumes, found.pred_logits, 64, rules=model.rules, truncation=model.truncation)
    assert len(image.segments) > 1 and len(volume.segments) > 1 and (volume.distance < 3).sum() > 1000  # worth comparing
    assert image.depth.max() - image.depth.min() > 1
    tensors = (image.panoptic_seg, image.depth, volume.panoptic, volume.distance, volume.semantic)
    return {name: tensor.numpy() for name, tensor in zip(SCENE_OUTPUTS, tensors, strict=True)}


def test_repository_holds_these_files_and_nothing_lies_beside_it(made: Made) -> None:
    files = {path.relative_to(made.repository).as_posix() for path in made.repository.rglob("*") if path.is_file()}
    stage_1 = {f"{STAGE_1}/{name}" for name in ("config.pbtxt", "1/model.onnx", "1/model.py")}
    scene = {f"{SCENE}/{name}" for name in ("config.pbtxt", "1/model.py", "1/spec.yaml", "1/rules.json", "1/weights.pth")}
    assert files == stage_1 | scene
    assert [path.name for path in made.repository.parent.iterdir()] == ["models"]
    assert (made.repository.stat().st_mode & 0o055) == 0o055  # the server may be another user
    assert "geometry_3d  float32 64x64x64" in made.printed and "batch_inputs  float32 -1x3x256x320" in made.printed


def test_scene_has_the_documented_tensors(made: Made) -> None:
    config = read_config(made.repository / SCENE / "config.pbtxt")
    assert (config.name, config.backend, config.max_batch_size) == ("nvpanoptix3d", "python", 0)
    assert forms_of(config.input) == SCENE_INPUTS and list(forms_of(config.input)) == list(SCENE_INPUTS)
    assert forms_of(config.output) == SCENE_OUTPUTS
    assert [each.kind for each in config.instance_group] == [model_config_pb2.ModelInstanceGroup.KIND_CPU]


def test_full_size_has_the_documented_shapes() -> None:
    config = load_spec(SPEC.with_name("front3d_3d.yaml"), [])
    model = ServedModel(SCENE, "python", "gpu", tuple(scene_inputs(config)), tuple(scene_outputs(config)))
    read = text_format.Parse(model.config_text(), model_config_pb2.ModelConfig())
    cube = [256, 256, 256]
    assert forms_of(read.input) == {**SCENE_INPUTS, "frustum_mask": ("TYPE_BOOL", [1, *cube])}
    assert forms_of(read.output) == {
        name: (kind, [120, 160] if name.endswith(("2d",)) else cube) for name, (kind, _) in SCENE_OUTPUTS.items()
    }
    assert [each.kind for each in read.instance_group] == [model_config_pb2.ModelInstanceGroup.KIND_GPU]


def test_stage_1_takes_the_image_as_inference_prepares_it_in_batches(made: Made) -> None:
    config = read_config(made.repository / STAGE_1 / "config.pbtxt")
    assert (made.config.export.input_height, made.config.dataset.target_size) == (240, (320, 240))
    assert (config.backend, config.max_batch_size, config.HasField("dynamic_batching")) == ("python", 4, True)
    assert forms_of(config.input) == {"batch_inputs": ("TYPE_FP32", [3, 256, 320])}
    assert forms_of(config.output) == IMAGE_OUTPUTS  # all that have an axis of images


def test_one_image_at_a_time_keeps_whole_shapes_and_needs_no_python(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server_library: dict[str, Any]
) -> None:
    def export_fixed(model: Any, path: Path, **asked: Any) -> Any:
        """The file that is there, for one image: a full export takes long."""
        assert (asked["height"], asked["width"], asked["batch_size"], asked["plugin"]) == (256, 320, 1, False)
        proto = onnx.load(made.repository / STAGE_1 / "1" / "model.onnx")
        for tensor in (*proto.graph.input, *proto.graph.output[:-1]):
            tensor.type.tensor_type.shape.dim[0].dim_value = 1
        path.parent.mkdir(parents=True)
        onnx.save(proto, path)
        return SimpleNamespace(path=path)

    def load(path: Path, key: str, **_: bool) -> dict[str, Any]:
        assert (path.name, key) == ("stage2.pth", "swordfish")
        return {"state_dict": made.model.state_dict()}

    monkeypatch.setattr(triton, "export_onnx", export_fixed)
    monkeypatch.setattr(weights, "load_checkpoint", load)
    monkeypatch.setattr(triton, "rules_of", lambda _: made.model.rules)
    config = replace(made.config, export=replace(made.config.export, batch_size=1))
    first, _ = export_triton(config, tmp_path / "models")
    assert not (tmp_path / "models" / STAGE_1 / "1" / "model.py").exists()
    read = read_config(tmp_path / "models" / STAGE_1 / "config.pbtxt")
    assert (read.backend, read.max_batch_size, read.HasField("dynamic_batching")) == ("onnxruntime", 0, False)
    assert forms_of(read.input) == {"batch_inputs": ("TYPE_FP32", [1, 3, 256, 320])}
    whole = {name: (kind, [1, *shape]) for name, (kind, shape) in IMAGE_OUTPUTS.items()}
    assert forms_of(read.output) == {**whole, "orig_pad_shape": ("TYPE_INT64", [2])}
    assert first.outputs[-1] == TensorForm("orig_pad_shape", "int64", (2,))
    monkeypatch.undo()
    server_library["at"] = served = Server(tmp_path / "models").load()
    mask = inference_mask(K, made.model.frustum)
    expected = complete_in_process(made, tmp_path / "models", picture(), mask)
    for name, got in served.ask(picture(), mask.numpy(), K).items():
        assert np.array_equal(got, expected[name]), name


def test_served_scene_is_the_one_predicted_in_process(made: Made, server: Server) -> None:
    mask = inference_mask(K, made.model.frustum)
    for seed in (0, 1):
        got = server.ask(picture(seed), mask.numpy(), K)
        for name, expected in complete_in_process(made, made.repository, picture(seed), mask).items():
            assert np.array_equal(got[name], expected), name
        plain = predict_in_process(made, picture(seed), mask)
        assert np.array_equal(got["panoptic_seg_2d"], plain["panoptic_seg_2d"])
        assert np.abs(got["depth_2d"] - plain["depth_2d"]).max() <= 1e-4
        for name in ("geometry_3d", "panoptic_seg_3d", "semantic_seg_3d"):  # a voxel at one half is there or is not, and its
            assert (np.abs(got[name] - plain[name]) > 1e-3).mean() <= 1e-3, name  # neighbours follow


def test_mask_of_the_client_counts(made: Made, server: Server) -> None:
    mask = inference_mask(K, made.model.frustum).numpy()
    near = mask & (np.arange(64) < 32)
    got, whole = server.ask(picture(), near, K), server.ask(picture(), mask, K)
    assert not np.array_equal(got["geometry_3d"], whole["geometry_3d"])
    assert np.array_equal(got["panoptic_seg_2d"], whole["panoptic_seg_2d"])
    bytes_ = (near.view(np.uint8) * 7).view(bool)  # what is not 0 is True
    assert np.array_equal(server.ask(picture(), bytes_, K)["geometry_3d"], got["geometry_3d"])


def test_label_map_is_in_the_repository_and_paths_and_secrets_are_not(made: Made, server: Server) -> None:
    assert made.model.rules.things == tuple(range(2, 13, 2))
    assert server.models[SCENE].completer.model.rules == made.model.rules
    spec = (made.repository / SCENE / "1" / "spec.yaml").read_text()
    assert "swordfish" not in spec and str(made.repository.parents[1]) not in spec
    held = load_checkpoint(made.repository / SCENE / "1" / "weights.pth")["state_dict"]
    assert {name.split(".")[0] for name in held} == {"completion", "projector"}
    assert all(torch.equal(tensor, made.model.state_dict()[name]) for name, tensor in held.items())
    assert not any(parameter.is_meta for parameter in server.models[SCENE].completer.model.completion.parameters())


@pytest.mark.parametrize(
    ("camera", "words"),
    [
        (np.full((4, 4), np.nan), "focal lengths above 0"),
        (np.zeros((4, 4)), "focal lengths above 0"),
        (np.where(np.arange(16).reshape(4, 4) == 1, 5.0, K), r"allowed is \(\(f, 0, c\)"),
    ],
    ids=["no number", "no camera", "skewed"],
)
def test_wrong_camera_is_told_to_its_client_alone(server: Server, camera: NDArray[np.float64], words: str) -> None:
    image, mask = picture()[None], np.ones((1, 64, 64, 64), bool)
    wrong, right = (
        Request([Tensor("image", image), Tensor("frustum_mask", mask), Tensor("intrinsic", each[None].astype(np.float32))])
        for each in (camera, K)
    )
    first, second = server.answer(SCENE, [wrong, right])
    assert first.error_ is not None and not second.has_error()
    with pytest.raises(TritonError, match=words):
        raise first.error_


def test_error_of_stage_1_reaches_the_client(server: Server, server_library: dict[str, Any]) -> None:
    class Broken(Server):
        def answer(self, name: str, requests: Sequence[Request], asked: Sequence[str] = ()) -> list[Response]:
            return [make_response(error=TritonError("no memory")) for _ in requests]

    server_library["at"] = Broken(server.repository)
    with pytest.raises(TritonError, match="no memory"):
        server.ask(picture(), np.ones((64, 64, 64), bool), K)


def test_requests_that_come_together_are_answered_apart(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = [np.random.default_rng(count).random((count, 3, 256, 320), np.float32) * 255 for count in (1, 2, 1)]
    requests = [Request([Tensor("batch_inputs", images)]) for images in batches]
    runs: list[int] = []
    session = server.models[STAGE_1].session

    class Counted:
        def run(self, names: Sequence[str], feed: Mapping[str, NDArray[Any]]) -> Any:
            runs.append(len(feed["batch_inputs"]))
            return session.run(names, feed)

    monkeypatch.setattr(server.models[STAGE_1], "session", Counted())
    responses = server.answer(STAGE_1, requests)
    assert runs == [4]
    for images, response in zip(batches, responses, strict=True):
        for row, image in enumerate(images):
            alone = session.run(list(IMAGE_OUTPUTS), {"batch_inputs": image[None]})
            for tensor, wanted in zip(response.tensors, alone, strict=True):
                assert len(tensor.array) == len(images)
                assert np.abs(tensor.array[row] - wanted[0]).max() <= 1e-3, tensor.name()


def test_gpu_without_cuda_in_onnxruntime_is_refused(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(TritonError, match="onnxruntime-gpu"):
        Server(made.repository, kind="GPU")._load(
            made.repository / STAGE_1, read_config(made.repository / STAGE_1 / "config.pbtxt")
        )


def test_damaged_rules_are_told(made: Made, tmp_path: Path) -> None:
    for text in ("", "[]", '{"things": null, "color": 1}', '{"object_mask_threshold": 0.5}'):
        (tmp_path / "rules.json").write_text(text)
        with pytest.raises(ConfigError, match=r"rules\.json: no rules"):
            Completer(made.config, tmp_path)
    with pytest.raises(ConfigError, match=r"rules\.json: no rules"):
        Completer(made.config, tmp_path / "none")


@pytest.mark.parametrize(
    ("overrides", "options", "words"),
    [
        (["dataset.enable_3d=false"], {}, "dataset.enable_3d=false"),
        (["export.checkpoint=''"], {}, "export.checkpoint is empty"),
        (["export.batch_size=2"], {}, "export.batch_size=2"),
        (["export.checkpoint=nothing.pth"], {}, "no such file"),
        ([], {"backend": "tensorflow"}, "onnxruntime or python"),
        ([], {"device": "tpu"}, "cpu or gpu"),
        ([], {"max_batch_size": 0}, "1 and more"),
    ],
)
def test_export_refuses(tmp_path: Path, overrides: list[str], options: dict[str, Any], words: str) -> None:
    config = load_spec(SPEC, ["export.checkpoint=some.pth", *overrides])
    with pytest.raises(ConfigError, match=words):
        export_triton(config, tmp_path / "models", **options)
    assert list(tmp_path.iterdir()) == []


def test_checkpoint_of_stage_1_is_refused_by_what_it_lacks(made: Made, tmp_path: Path) -> None:
    state = {name: held for name, held in made.model.state_dict().items() if name.startswith(("backbone", "sem_seg_head"))}
    save_checkpoint(tmp_path / "stage1.pth", {"state_dict": state})
    config = load_spec(SPEC, [f"export.checkpoint={tmp_path / 'stage1.pth'}"])
    with pytest.raises(ConfigError, match=r"missing: completion"):
        export_triton(config, tmp_path / "models")
    assert [path.name for path in tmp_path.iterdir()] == ["stage1.pth"]


def test_what_is_there_stays(tmp_path: Path) -> None:
    config = load_spec(SPEC, ["export.checkpoint=some.pth"])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("years")
    (tmp_path / "file").write_text("of mine")
    for taken in (tmp_path / "full", tmp_path / "file"):
        with pytest.raises(ConfigError, match="give a new or empty folder"):
            export_triton(config, taken)
    with pytest.raises(ConfigError, match="cannot be written"):
        export_triton(config, tmp_path / "file" / "below")
    with pytest.raises(ConfigError, match="cannot be written"), triton._placed_whole(tmp_path / "late") as folder:
        (folder / "new").write_text("whole")
        (tmp_path / "late").mkdir()
        (tmp_path / "late" / "other").write_text("another's")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "full", "late", "other", "thesis.tex"]


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with triton._placed_whole(tmp_path / "empty") as folder:
        (folder / "new").write_text("whole")
        assert not any((tmp_path / "empty").iterdir())
    assert [path.name for path in tmp_path.rglob("*")] == ["empty", "new"]
