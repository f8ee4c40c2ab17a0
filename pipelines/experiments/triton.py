"""A Triton model repository: stage 1 as an ONNX file, and a Python model that calls it and completes in space.

    REPOSITORY/nvpanoptix3d_2d/config.pbtxt     tensors of the ONNX file, as it has them
    REPOSITORY/nvpanoptix3d_2d/1/model.onnx     stage 1 and the projector; large weights lie beside it
    REPOSITORY/nvpanoptix3d_2d/1/model.py       with the Python backend, which runs the file by ONNX Runtime
    REPOSITORY/nvpanoptix3d/config.pbtxt        the tensors that a client sends and gets
    REPOSITORY/nvpanoptix3d/1/model.py          calls nvpanoptix3d_2d
    REPOSITORY/nvpanoptix3d/1/spec.yaml         sizes and network; no path of this machine
    REPOSITORY/nvpanoptix3d/1/rules.json        what post-processing keeps
    REPOSITORY/nvpanoptix3d/1/weights.pth       of stage 2; tensors alone

Source: names and shapes of the tensors as NvPanoptix3D serves them; the model configuration of Triton.
"""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final
from uuid import uuid4

from scenemill.pipelines.experiments.specs import resolved
from scenemill.schemas.dataset import DatasetConfig, SplitConfig
from scenemill.schemas.errors import ConfigError
from scenemill.schemas.experiment import ExperimentConfig
from scenemill.trainers.devices import best_device
from scenemill.trainers.nvpanoptix3d.export import FIXED, ExportModel, TensorForm, export_onnx, read_forms
from scenemill.trainers.nvpanoptix3d.stage1 import Stage1
from scenemill.trainers.nvpanoptix3d.stage2 import SceneCompletion
from scenemill.trainers.nvpanoptix3d.weights import load_stage1
from scenemill.trainers.predict import rules_of
from scenemill.trainers.serving import load_completion, prepared_sizes, scene_inputs, scene_outputs, write_completer
from scenemill.trainers.stages import make_stage1
from scenemill.transforms.publish import write_whole

SCENE: Final = "nvpanoptix3d"
STAGE_1: Final = "nvpanoptix3d_2d"
BACKENDS: Final = ("onnxruntime", "python")
DEVICES: Final = ("cpu", "gpu")

_SHIPPED: Final = Path(__file__).parent / "shipped" / "triton"
_VERSION: Final = "1"
_TYPES: Final = {"float32": "TYPE_FP32", "int32": "TYPE_INT32", "int64": "TYPE_INT64", "uint8": "TYPE_UINT8", "bool": "TYPE_BOOL"}


@dataclass(frozen=True)
class ServedModel:
    """A model as a server has it.

    Attributes:
        name: of the model and its folder.
        backend: of Triton.
        device: "cpu" or "gpu".
        inputs, outputs: as a client sees them; -1 for any number of images.
        max_batch_size: images in a batch; 0 where shapes are whole.
    """

    name: str
    backend: str
    device: str
    inputs: tuple[TensorForm, ...]
    outputs: tuple[TensorForm, ...]
    max_batch_size: int = 0

    def config_text(self) -> str:
        """The text of config.pbtxt."""
        lines = [f'name: "{self.name}"', f'backend: "{self.backend}"', f"max_batch_size: {self.max_batch_size}"]
        lines += [*self._tensors("input", self.inputs), *self._tensors("output", self.outputs)]
        lines.append(f"instance_group [ {{ count: 1 kind: KIND_{self.device.upper()} }} ]")
        if self.max_batch_size:
            lines.append("dynamic_batching { }")
        return "\n".join(lines) + "\n"

    def _tensors(self, group: str, forms: Sequence[TensorForm]) -> Iterator[str]:
        for form in forms:
            shape = form.shape[1:] if self.max_batch_size else form.shape
            yield f'{group} [ {{ name: "{form.name}" data_type: {_TYPES[form.dtype]} dims: {list(shape)} }} ]'


def export_triton(
    config: ExperimentConfig, repository: Path, *, backend: str = "onnxruntime", device: str = "cpu", max_batch_size: int = 8
) -> tuple[ServedModel, ServedModel]:
    """Write a model repository of a stage 2 checkpoint, whole or not at all.

    Args:
        config: ``export.checkpoint``, ``.batch_size``, ``.opset_version``, ``.on_cpu``, ``model`` and ``dataset`` count. The size of
            the images of stage 1 is that which inference gives them, whatever ``export.input_height`` says.
        repository: a new or empty folder.
        backend: what runs stage 1 on the server: "onnxruntime", or "python" where the server has no other.
        device: what the models run on there, "cpu" or "gpu".
        max_batch_size: most images of stage 1 at once, where ``export.batch_size`` is -1.

    Returns:
        Stage 1, and the model that clients call.

    Raises:
        ConfigError: a setting that cannot be served, a folder with other things in it, or weights that do not fit.
        SceneMillError: ONNX Runtime and PyTorch differ; nothing was written.
        Corrupt: the checkpoint is damaged.
    """
    _check(config, backend, device, max_batch_size)
    with _placed_whole(repository) as folder:
        stage1, stage2 = _load(config)
        inputs, outputs = _write_onnx(config, stage1, stage2, folder / STAGE_1 / _VERSION)
        images = ServedModel(STAGE_1, backend, device, inputs, outputs)
        if config.export.batch_size == -1:  # an output without an axis of images cannot be batched, and this one never changes
            kept = tuple(form for form in outputs if form.name != FIXED)
            images = replace(images, outputs=kept, max_batch_size=max_batch_size)
        if backend == "python":
            _copy(folder, STAGE_1, "model_2d.py")
        scene = ServedModel(SCENE, "python", device, tuple(scene_inputs(config)), tuple(scene_outputs(config)))
        _copy(folder, SCENE, "model_3d.py")
        write_whole(folder / SCENE / _VERSION / "spec.yaml", resolved(_served(config)).encode())
        write_completer(folder / SCENE / _VERSION, stage2)
        for model in (images, scene):
            write_whole(folder / model.name / "config.pbtxt", model.config_text().encode())
    return images, scene


def _check(config: ExperimentConfig, backend: str, device: str, max_batch_size: int) -> None:
    held = config.export
    _refuse(backend not in BACKENDS, f"backend {backend!r}: allowed is {' or '.join(BACKENDS)}")
    _refuse(device not in DEVICES, f"device {device!r}: allowed is {' or '.join(DEVICES)}")
    _refuse(max_batch_size < 1, f"max_batch_size {max_batch_size}: allowed are 1 and more")
    _refuse(
        not config.dataset.enable_3d,
        "dataset.enable_3d=false: a server completes in space; give a spec and a checkpoint of stage 2",
    )
    _refuse(not held.checkpoint, "export.checkpoint is empty: name a checkpoint of stage 2 that train wrote")
    _refuse(
        held.batch_size not in (-1, 1), f"export.batch_size={held.batch_size}: images are served one by one; allowed are 1 and -1"
    )


def _refuse(wrong: bool, message: str) -> None:
    if wrong:
        raise ConfigError(message)


@contextmanager
def _placed_whole(target: Path) -> Iterator[Path]:
    """A folder to write in, which takes the name of ``target`` once all of it is there."""
    target = target.resolve()
    taken = target.exists() and (not target.is_dir() or any(target.iterdir()))
    _refuse(taken, f"{target}: there is something already; give a new or empty folder")
    temporary = target.with_name(f".{target.name}.{uuid4().hex}")
    with _refusing(target):
        temporary.mkdir(parents=True)
    try:
        yield temporary
        with _refusing(target):
            temporary.rename(target)  # onto an empty folder only: what came there meanwhile stays
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _refusing(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{target}: cannot be written ({error.strerror or error}); give another folder") from error


def _load(config: ExperimentConfig) -> tuple[Stage1, SceneCompletion]:
    """Both stages; the second without the weights of the first."""
    path, key = Path(config.export.checkpoint), config.encryption_key or ""
    stage2 = load_completion(config, rules_of(config), path, key)
    stage1 = make_stage1(config).eval()
    load_stage1(stage1, path, key)
    return stage1, stage2


def _write_onnx(
    config: ExperimentConfig, stage1: Stage1, stage2: SceneCompletion, folder: Path
) -> tuple[tuple[TensorForm, ...], tuple[TensorForm, ...]]:
    """Write the ONNX file; its inputs and outputs."""
    held, (_, (height, width)) = config.export, prepared_sizes(config)
    report = export_onnx(
        ExportModel(stage1, stage2.projector),
        folder / "model.onnx",
        height=height,
        width=width,
        batch_size=held.batch_size,
        opset_version=held.opset_version,
        verbose=held.verbose,
        on_cpu=held.on_cpu or best_device() == "cpu",
        plugin=False,  # only TensorRT has it
    )
    inputs, outputs = read_forms(report.path)
    return tuple(inputs), tuple(outputs)


def _copy(folder: Path, model: str, template: str) -> None:
    write_whole(folder / model / _VERSION / "model.py", (_SHIPPED / template).read_bytes())


def _served(config: ExperimentConfig) -> ExperimentConfig:
    """What a server reads of an experiment: no path, no secret, nothing of how it was trained."""
    empty: DatasetConfig = replace(
        config.dataset, train=SplitConfig(), val=SplitConfig(), test=SplitConfig(), label_map="", frustum_mask_path=""
    )
    model = replace(config.model, backbone=replace(config.model.backbone, pretrained_model_path=""))
    return ExperimentConfig(model=model, dataset=empty)
