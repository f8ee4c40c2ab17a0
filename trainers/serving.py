"""What a server makes of a scene: stage 1 is served apart, as an ONNX file; here is what comes before it and behind it, in arrays.

    completer = Completer(config, folder)                   # the folder that ``write_completer`` filled
    images = completer.prepare(image)                       # for stage 1, wherever it runs
    completer.complete(features, intrinsic, frustum_mask)   # what it said, completed in space

No process holds the weights of both stages.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils import dlpack

from scenemill.schemas.errors import ConfigError
from scenemill.schemas.experiment import ExperimentConfig
from scenemill.trainers.checkpoint import save_checkpoint
from scenemill.trainers.nvpanoptix3d.export import TensorForm
from scenemill.trainers.nvpanoptix3d.postprocess import Rules, Size
from scenemill.trainers.nvpanoptix3d.postprocess3d import postprocess_volumes
from scenemill.trainers.nvpanoptix3d.stage2 import ImageFeatures, SceneCompletion
from scenemill.trainers.nvpanoptix3d.weights import load_stage2
from scenemill.trainers.predict import prepare_image, stack_images
from scenemill.transforms.publish import write_whole

WEIGHTS: Final = "weights.pth"
RULES: Final = "rules.json"

SCALES: Final = ("enc_feat_0", "enc_feat_1", "enc_feat_2")
FEATURES: Final = (*(name for name in ImageFeatures._fields if name != "enc_features"), *SCALES)
"""The outputs of the exported file that are read here."""


def scene_inputs(config: ExperimentConfig) -> list[TensorForm]:
    """What a client sends: the image, where to complete, and the camera in pixels of that image."""
    (width, height), grid = config.dataset.target_size, config.model.frustum3d.frustum_dims
    return [
        TensorForm("image", "uint8", (1, height, width, 3)),
        TensorForm("frustum_mask", "bool", (1, grid, grid, grid)),
        TensorForm("intrinsic", "float32", (1, 4, 4)),
    ]


def scene_outputs(config: ExperimentConfig) -> list[TensorForm]:
    """What it gets: segments and metres of the image; segments, distance in voxels and classes of its space, image-aligned."""
    (width, height), grid = config.dataset.reduced_target_size, config.model.frustum3d.frustum_dims
    return [
        TensorForm("panoptic_seg_2d", "int32", (height, width)),
        TensorForm("depth_2d", "float32", (height, width)),
        TensorForm("panoptic_seg_3d", "int32", (grid, grid, grid)),
        TensorForm("geometry_3d", "float32", (grid, grid, grid)),
        TensorForm("semantic_seg_3d", "int32", (grid, grid, grid)),
    ]


def load_completion(config: ExperimentConfig, rules: Rules, checkpoint: Path, key: str = "") -> SceneCompletion:
    """What comes behind stage 1, with the weights of a checkpoint, in evaluation mode.

    Args:
        config: ``model`` and ``dataset`` count.
        rules: what post-processing keeps.
        checkpoint: of stage 2.
        key: passphrase of an encrypted one.

    Raises:
        ConfigError: as ``load_stage2``.
        Corrupt: truncated, damaged or altered.
    """
    model = SceneCompletion(config.model, config.dataset, rules)
    load_stage2(model, checkpoint, key)
    return model.eval()


def write_completer(folder: Path, model: SceneCompletion) -> None:
    """Write what a ``Completer`` reads beside its settings: the weights of stage 2, as they are, and the rules."""
    save_checkpoint(folder / WEIGHTS, {"state_dict": model.state_dict()})
    write_whole(folder / RULES, json.dumps(asdict(model.rules), indent=1).encode())


class Completer:
    """Everything but stage 1.

    Args:
        config: ``model`` and ``dataset`` count.
        folder: what ``write_completer`` filled.
        device: to complete on.

    Raises:
        ConfigError: weights or rules are missing, or do not fit the settings.
        Corrupt: weights truncated, damaged or altered.
    """

    def __init__(self, config: ExperimentConfig, folder: Path, device: str = "cpu") -> None:
        self.config, self.device = config, torch.device(device)
        self.model = load_completion(config, _read_rules(folder / RULES), folder / WEIGHTS)
        self.model.to(self.device)
        self.unpadded, prepared = prepared_sizes(config)
        self.padded = self.model.padded(prepared)  # the network pads what it is given

    def prepare(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The image as inference gives it to stage 1.

        Args:
            image: (1, height, width, 3), RGB, of ``dataset.target_size``.

        Returns:
            (1, 3, H, W), 0..255, padding included.
        """
        images = stack_images([prepare_image(image[0], self.config.dataset).rgb])
        return images.to(torch.float32, memory_format=torch.contiguous_format).numpy()

    def complete(
        self, features: Mapping[str, Any], intrinsic: NDArray[np.float32], frustum_mask: NDArray[np.bool_]
    ) -> dict[str, NDArray[Any]]:
        """The arrays of ``scene_outputs`` by name.

        Args:
            features: what the exported file says of ``prepare(image)``, under the names in ``FEATURES``: arrays or tensors of any
                library that has DLPack, on any device.
            intrinsic: (1, 4, 4), pixels of ``dataset.target_size``.
            frustum_mask: (1, D, D, D), True inside, image-aligned.

        Raises:
            ConfigError: no camera, or one that is skewed.
        """
        _check_camera(intrinsic[0])
        inside = torch.from_numpy(frustum_mask.view(np.uint8) != 0)  # a client's bytes may be others than 0 and 1
        camera, model = torch.from_numpy(intrinsic.astype(np.float64)), self.model
        with torch.inference_mode():
            found = model.complete(self._features(features), self.padded, [self.unpadded], camera, inside.to(self.device))
            (image,) = found.images
            (volume,) = postprocess_volumes(
                found.volumes, found.pred_logits, model.frustum.grid, rules=model.rules, truncation=model.truncation
            )
        tensors = (image.panoptic_seg, image.depth, volume.panoptic, volume.distance, volume.semantic)
        return {form.name: tensor.cpu().numpy() for form, tensor in zip(scene_outputs(self.config), tensors, strict=True)}

    def _features(self, given: Mapping[str, Any]) -> ImageFeatures:
        held: dict[str, Tensor] = {name: dlpack.from_dlpack(given[name]).to(self.device) for name in FEATURES}
        scales: Sequence[Tensor] = [held.pop(name) for name in SCALES]
        return ImageFeatures(**held, enc_features=scales)


def prepared_sizes(config: ExperimentConfig) -> tuple[Size, Size]:
    """(height, width) of an image of ``dataset.target_size`` as inference prepares it, without its padding and with it."""
    width, height = config.dataset.target_size
    view = prepare_image(np.zeros((height, width, 3), np.uint8), config.dataset)
    return view.unpadded_shape, view.shape


def _check_camera(camera: NDArray[np.float32]) -> None:
    focal = camera[[0, 1], [0, 1]]
    if not np.isfinite(camera).all() or not (focal > 0).all():
        raise ConfigError(f"intrinsic {camera.tolist()}: allowed is a camera with focal lengths above 0, in pixels of the image")


def _read_rules(path: Path) -> Rules:
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        return Rules(**{**held, "things": None if held["things"] is None else tuple(held["things"])})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: no rules of post-processing ({error}); export the model repository again") from error
