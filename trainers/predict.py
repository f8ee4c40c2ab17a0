"""What a model finds: segments, classes and depth of images, at their size or at the smaller one that files have, and volumes."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from scenemill.schemas.dataset import DatasetConfig
from scenemill.schemas.experiment import ExperimentConfig
from scenemill.trainers.augment import View, prepare, resize_rgb
from scenemill.trainers.nvpanoptix3d.aggregator import padded_size
from scenemill.trainers.nvpanoptix3d.deformable import map_size
from scenemill.trainers.nvpanoptix3d.frustum import inference_mask
from scenemill.trainers.nvpanoptix3d.postprocess import PanopticImage, Rules, Size, postprocess, postprocess_reduced
from scenemill.trainers.nvpanoptix3d.postprocess3d import PanopticVolume, postprocess_volumes
from scenemill.trainers.nvpanoptix3d.stage1 import Stage1Output
from scenemill.trainers.nvpanoptix3d.stage2 import Stage2, Stage2Output
from scenemill.trainers.sidefiles import label_map_of


def rules_of(config: ExperimentConfig) -> Rules:
    """What the settings keep of what queries say.

    Raises:
        ConfigError: the label map cannot be read.
    """
    held = config.dataset
    return Rules(
        object_mask_threshold=config.model.object_mask_threshold,
        overlap_threshold=config.model.overlap_threshold,
        num_thing_classes=held.num_thing_classes,
        depth_scale=held.depth_scale,
        things=label_map_of(held).things(held.num_thing_classes) if held.label_map else None,
    )


def prepare_image(rgb: NDArray[np.uint8], config: DatasetConfig) -> View:
    """An image that comes without a store, of any size, prepared as the loader prepares those of test splits.

    Args:
        rgb: (H, W, 3) uint8.
        config: what a batch holds.

    Returns:
        The image with its padding; its other maps say nothing.
    """
    sized = resize_rgb(rgb, config.target_size, "bicubic")
    shape = (sized.shape[0], sized.shape[1])
    empty = View(sized, np.zeros(shape, np.uint8), np.zeros(shape, np.int32), np.zeros(shape, np.float32))
    return prepare(empty, config.augmentation)


def stack_images(images: Sequence[NDArray[np.uint8]]) -> Tensor:
    """(B, 3, H, W) uint8 of (H, W, 3) images of one size."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode; afterwards each of its parts is in the mode it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def output_size(images: Tensor, config: ExperimentConfig) -> Size:
    """(height, width) that the network's outputs for (B, 3, Hp, Wp) images are of: theirs, and the padding that it adds."""
    return padded_size(map_size(images), config.model.mask_former.size_divisibility)


def predict_images(
    model: nn.Module,
    images: Tensor,
    unpadded: Sequence[Size],
    config: ExperimentConfig,
    room_mask: Tensor | None = None,
    *,
    size: Size | None = None,
    on_output: Callable[[Stage1Output], None] | None = None,
) -> list[PanopticImage]:
    """What the model finds in images, at their own sizes.

    Args:
        model: of stage 1.
        images: (B, 3, Hp, Wp) uint8 or float32, 0..255, on any device, padding included.
        unpadded: (height, width) of each image without padding.
        config: what is kept.
        room_mask: (B, Hp, Wp) bool on any device, True inside; depth outside is 0.
        size: (height, width) of the results where it is not that of the images.
        on_output: called with the model's output, for losses.
    """
    with evaluating(model), torch.inference_mode():
        output: Stage1Output = model(images.to(_device(model)))
        if on_output is not None:
            on_output(output)
        return images_of(output, output_size(images, config), unpadded, config, room_mask, size=size)


def predict_reduced(
    model: nn.Module, images: Tensor, unpadded: Sequence[Size], config: ExperimentConfig, room_mask: Tensor | None = None
) -> list[PanopticImage]:
    """The same at ``dataset.reduced_target_size``, as inference writes it: post-processed at half the size of the images.

    Args:
        model, images, unpadded, config: see ``predict_images``.
        room_mask: (B, h, w) bool, True inside: of the images without padding, at any resolution; ``room_mask_buol`` of a batch.
    """
    width, height = config.dataset.reduced_target_size
    with evaluating(model), torch.inference_mode():
        output: Stage1Output = model(images.to(_device(model)))
        return postprocess_reduced(
            output.pred_logits.float(),
            output.pred_masks.float(),
            output.pred_depths.float(),
            output_size(images, config),
            unpadded,
            (height, width),
            rules=rules_of(config),
            room_mask=None if room_mask is None else _resized(room_mask, (height, width)).to(output.pred_depths.device),
        )


def predict_scenes(
    model: Stage2,
    images: Tensor,
    unpadded: Sequence[Size],
    config: ExperimentConfig,
    intrinsics: NDArray[Any],
    frusta: Sequence[NDArray[np.bool_]] | None,
    room_mask: Tensor | None = None,
) -> list[tuple[PanopticImage, PanopticVolume]]:
    """What the model finds in images, at ``dataset.reduced_target_size``, and in the space they show.

    Args:
        model: of stage 2.
        images, unpadded, config: see ``predict_images``.
        intrinsics: (B, 4, 4), pixels of ``dataset.target_size``.
        frusta: of each image (D, D, D) bool, True inside, image-aligned; None for what its camera sees.
        room_mask: (B, h, w) bool, True inside: of the images without padding, at any resolution; ``room_mask_buol`` of a batch.
    """
    device, height_width = _device(model), model.frustum.plane_size
    room = None if room_mask is None else _resized(room_mask, height_width).to(device)
    if frusta is None:
        masks = [inference_mask(camera.astype(np.float64), model.frustum) for camera in intrinsics]
    else:
        masks = [torch.from_numpy(frustum) for frustum in frusta]
    cameras = torch.from_numpy(np.array(intrinsics, np.float32))
    with evaluating(model), torch.inference_mode():
        output: Stage2Output = model(images.to(device), unpadded, cameras, torch.stack(masks).to(device), room)
        return list(zip(output.images, volumes_of(output, config), strict=True))


def volumes_of(output: Stage2Output, config: ExperimentConfig) -> list[PanopticVolume]:
    """What an output of the model says of the space of each image."""
    held = config.model.frustum3d
    return postprocess_volumes(
        output.volumes, output.pred_logits.float(), held.frustum_dims, rules=rules_of(config), truncation=held.truncation
    )


@torch.inference_mode()
def images_of(
    output: Stage1Output,
    padded: Size,
    unpadded: Sequence[Size],
    config: ExperimentConfig,
    room_mask: Tensor | None = None,
    *,
    size: Size | None = None,
) -> list[PanopticImage]:
    """What an output of the model says of its images; see ``predict_images``.

    Args:
        output: of the model.
        padded: see ``output_size``.
        unpadded, config, room_mask, size: see ``predict_images``.
    """
    if room_mask is not None:
        room_mask = room_mask.to(output.pred_depths.device)
        if size is not None and any(tuple(own) != tuple(size) for own in unpadded):
            cut = [mask[None, :height, :width] for mask, (height, width) in zip(room_mask, unpadded, strict=True)]
            room_mask = torch.cat([_resized(mask, size) for mask in cut])
    logits, masks, depths = (maps.float() for maps in (output.pred_logits, output.pred_masks, output.pred_depths))
    return postprocess(logits, masks, depths, padded, unpadded, rules=rules_of(config), size=size, room_mask=room_mask)


def _resized(masks: Tensor, size: Size) -> Tensor:
    """(B, h, w) bool in another size, nearest neighbour."""
    if tuple(masks.shape[-2:]) == tuple(size):
        return masks
    return functional.interpolate(masks[:, None].float(), size=size, mode="nearest-exact")[:, 0] > 0


def _device(model: nn.Module) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
