"""What training does differently for the two stages: the network, what it is given, what it learns from, and how it is measured."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from scenemill.schemas.experiment import ExperimentConfig
from scenemill.trainers.collate import Batch
from scenemill.trainers.evaluate import Evaluation, evaluate_images
from scenemill.trainers.nvpanoptix3d.losses import Stage1Loss, targets_of
from scenemill.trainers.nvpanoptix3d.stage1 import Stage1, Stage1Output
from scenemill.trainers.nvpanoptix3d.weights import load_stage1, load_vggt

Losses = tuple[Tensor, dict[str, Tensor]]
"""The weighted sum, and every loss by name, not weighted."""


@dataclass(frozen=True)
class Stage:
    """One of the two stages.

    Attributes:
        latest: checkpoints' link is ``<latest>_latest.pth``.
        make_model: the network, with the weights that training begins with.
        make_criterion: the losses with their weights; has the buffer ``empty_weight``.
        inputs: of a batch, what the network is called with.
        compare: the losses of an output on its batch; points are drawn by the generator.
        evaluate: counts over the batches of a loader, which has the samples of this process; see ``Evaluation``.
    """

    latest: str
    make_model: Callable[[ExperimentConfig], nn.Module]
    make_criterion: Callable[[ExperimentConfig], nn.Module]
    inputs: Callable[[Batch], tuple[Any, ...]]
    compare: Callable[[nn.Module, Any, Batch, ExperimentConfig, torch.Generator], Losses]
    evaluate: Callable[[nn.Module, Iterable[Batch], ExperimentConfig], Evaluation]


def stage_of(config: ExperimentConfig) -> Stage:
    """The stage that ``dataset.enable_3d`` names."""
    return STAGE_1


def _make_stage1(config: ExperimentConfig) -> Stage1:
    model = Stage1(config.model, config.dataset.depth_size, recompute=config.train.activation_checkpoint)
    if config.model.backbone.pretrained_model_path:
        load_vggt(model.backbone, Path(config.model.backbone.pretrained_model_path))
    if config.train.checkpoint_2d:
        load_stage1(model, Path(config.train.checkpoint_2d), config.encryption_key or "")
    return model


def make_stage1_loss(config: ExperimentConfig) -> Stage1Loss:
    """The losses of stage 1 with the weights of a configuration."""
    held = config.model.mask_former
    return Stage1Loss(
        config.model.sem_seg_head.num_classes,
        class_weight=held.class_weight,
        mask_weight=held.mask_weight,
        dice_weight=held.dice_weight,
        depth_weight=held.depth_weight,
        mp_occ_weight=held.mp_occ_weight,
        no_object_weight=held.no_object_weight,
        train_num_points=held.train_num_points,
        oversample_ratio=held.oversample_ratio,
        importance_sample_ratio=held.importance_sample_ratio,
        deep_supervision=held.deep_supervision,
    )


def _image(batch: Batch) -> tuple[Tensor]:
    return (batch["image"],)


def _compare_stage1(
    criterion: nn.Module, output: Stage1Output, batch: Batch, config: ExperimentConfig, generator: torch.Generator
) -> Losses:
    found: Losses = criterion(in_float32(output), targets_of(batch, padded_size(batch, config)), generator)
    return found


def padded_size(batch: Batch, config: ExperimentConfig) -> tuple[int, int]:
    """(height, width) of the images of a batch after the network's own padding."""
    divisor = config.model.mask_former.size_divisibility
    height, width = (-(-length // divisor) * divisor for length in batch["image"].shape[-2:])
    return height, width


def in_float32(output: Stage1Output) -> dict[str, Any]:
    """What the losses of stage 1 compare, in float32 whatever the network computed in."""

    def pair(prediction: Any) -> dict[str, Tensor]:
        return {"pred_logits": prediction.pred_logits.float(), "pred_masks": prediction.pred_masks.float()}

    return {
        **pair(output),
        "aux_outputs": [pair(each) for each in output.aux_outputs],
        "pred_depths": output.pred_depths.float(),
        "occupancy_preds": output.occupancy_preds.float(),
    }


def _evaluate_stage1(model: nn.Module, loader: Iterable[Batch], config: ExperimentConfig) -> Evaluation:
    return evaluate_images(model, loader, config, config.dataset.name)


STAGE_1: Final = Stage("panoptic_recon_3d_model", _make_stage1, make_stage1_loss, _image, _compare_stage1, _evaluate_stage1)
