"""What training does differently for the two stages: the network, what it is given, what it learns from, and how it is measured."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from scenemill.schemas.errors import ConfigError
from scenemill.schemas.experiment import ExperimentConfig
from scenemill.trainers.collate import Batch
from scenemill.trainers.evaluate import Evaluation, evaluate_images
from scenemill.trainers.evaluate3d import VolumeEvaluation, evaluate_volumes, scene_inputs
from scenemill.trainers.nvpanoptix3d.losses import Stage1Loss, targets_of
from scenemill.trainers.nvpanoptix3d.losses3d import Stage2Loss, volume_targets_of
from scenemill.trainers.nvpanoptix3d.stage1 import Stage1, Stage1Output
from scenemill.trainers.nvpanoptix3d.stage2 import Stage2, Stage2Output
from scenemill.trainers.nvpanoptix3d.weights import load_stage1, load_stage2, load_vggt
from scenemill.trainers.predict import output_size, rules_of

Losses = tuple[Tensor, dict[str, Tensor]]
"""The weighted sum, and every loss by name, not weighted."""


Watch = Callable[[Batch, Any], None]
"""Called with a batch and the network's output for it."""


@dataclass(frozen=True)
class Stage:
    """One of the two stages.

    Attributes:
        latest: checkpoints' link is ``<latest>_latest.pth``.
        make_model: the network, its weights random.
        load_first: the weights that training begins with, where settings name any.
        make_criterion: the losses with their weights; has the buffer ``empty_weight``.
        inputs: of a batch, what the network is called with.
        compare: the losses of an output on its batch; points are drawn by the generator.
        evaluate: counts over the batches of a loader, which has the samples of this process; shows each batch and what is said of it.
        kpi: the numbers of what was counted, named as in the documentation with "train", "val" or "test" where it does so.
    """

    latest: str
    make_model: Callable[[ExperimentConfig], nn.Module]
    load_first: Callable[[nn.Module, ExperimentConfig], None]
    make_criterion: Callable[[ExperimentConfig], nn.Module]
    inputs: Callable[[Batch], tuple[Any, ...]]
    compare: Callable[[nn.Module, Any, Batch, ExperimentConfig, torch.Generator], Losses]
    evaluate: Callable[[Any, nn.Module, Iterable[Batch], ExperimentConfig, Watch], Any]
    kpi: Callable[[Any, str], dict[str, float]]


class Lesson:
    """One batch to learn from, and what draws the points of its losses. No dataclass: wrappers of a network would take it to pieces.

    Attributes:
        batch: on the network's device.
        generator: on the same device.
    """

    def __init__(self, batch: Batch, generator: torch.Generator) -> None:
        self.batch, self.generator = batch, generator


class Learner(nn.Module):
    """A network with its losses: what several processes run in step, since it takes a batch and gives plain tensors.

    Args:
        config: of the experiment. network, criterion: of its stage.
    """

    def __init__(self, config: ExperimentConfig, network: nn.Module, criterion: nn.Module) -> None:
        super().__init__()
        self.stage, self.config = stage_of(config), config
        self.network, self.criterion = network, criterion

    def forward(self, lesson: Lesson) -> Losses:
        """The losses of a batch; they are computed in float32, whatever the network computes in."""
        output = self.network(*self.stage.inputs(lesson.batch))
        with torch.autocast(lesson.generator.device.type, enabled=False):
            return self.stage.compare(self.criterion, output, lesson.batch, self.config, lesson.generator)


def stage_of(config: ExperimentConfig) -> Stage:
    """The stage that ``dataset.enable_3d`` names."""
    return STAGE_2 if config.dataset.enable_3d else STAGE_1


def make_stage1(config: ExperimentConfig) -> Stage1:
    """The network of stage 1, its weights random."""
    return Stage1(config.model, config.dataset.depth_size, recompute=config.train.activation_checkpoint)


def make_stage2(config: ExperimentConfig) -> Stage2:
    """The network of both stages, its weights random."""
    return Stage2(config.model, config.dataset, rules_of(config), recompute=config.train.activation_checkpoint)


def _load_stage1(model: nn.Module, config: ExperimentConfig) -> None:
    if config.model.backbone.pretrained_model_path:
        load_vggt(model.get_submodule("backbone"), Path(config.model.backbone.pretrained_model_path))
    if config.train.checkpoint_2d:
        load_stage1(model, Path(config.train.checkpoint_2d), config.encryption_key or "")


def _load_both(model: nn.Module, config: ExperimentConfig) -> None:
    """Stage 1 from ``checkpoint_2d``, the rest from ``checkpoint_3d``; all of it from there where it is the only one.

    Raises:
        ConfigError: neither is set: stage 2 learns from what a trained stage 1 says.
    """
    first, second, key = config.train.checkpoint_2d, config.train.checkpoint_3d, config.encryption_key or ""
    if not first and not second:
        raise ConfigError("train.checkpoint_2d is empty: stage 2 learns from a trained stage 1; name its checkpoint")
    load_stage1(model, Path(first or second), key)
    if second:
        load_stage2(model, Path(second), key)


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


def make_stage2_loss(config: ExperimentConfig) -> Stage2Loss:
    """The losses of stage 2 with the weights of a configuration."""
    held, former = config.model.frustum3d, config.model.mask_former
    return Stage2Loss(
        config.model.sem_seg_head.num_classes,
        surface_weight=held.surface_weight,
        completion_weights=held.completion_weights,
        panoptic_weight=held.panoptic_weight,
        class_weight=former.class_weight,
        mask_weight=former.mask_weight,
        dice_weight=former.dice_weight,
        no_object_weight=former.no_object_weight,
        train_num_points=former.train_num_points,
    )


def _image(batch: Batch) -> tuple[Tensor]:
    return (batch["image"],)


def _compare_stage1(
    criterion: nn.Module, output: Stage1Output, batch: Batch, config: ExperimentConfig, generator: torch.Generator
) -> Losses:
    found: Losses = criterion(in_float32(output), targets_of(batch, output_size(batch["image"], config)), generator)
    return found


def _compare_stage2(
    criterion: nn.Module, output: Stage2Output, batch: Batch, config: ExperimentConfig, generator: torch.Generator
) -> Losses:
    targets = volume_targets_of(batch, output_size(batch["image"], config))
    found: Losses = criterion(output.volumes, output.pred_logits.float(), output.pred_masks.float(), targets, generator)
    return found


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


def _evaluate_stage1(
    model: nn.Module, criterion: nn.Module, loader: Iterable[Batch], config: ExperimentConfig, watch: Watch
) -> Evaluation:
    def compare(output: Any, batch: Batch, generator: torch.Generator) -> Losses:
        watch(batch, output)
        return _compare_stage1(criterion, output, batch, config, generator)

    return evaluate_images(model, loader, config, config.dataset.name, compare)


def _evaluate_stage2(
    model: Stage2, criterion: nn.Module, loader: Iterable[Batch], config: ExperimentConfig, watch: Watch
) -> VolumeEvaluation:
    return evaluate_volumes(model, loader, config, watch)


def _kpi_stage1(found: Evaluation, prefix: str) -> dict[str, float]:
    return found.kpi(prefix)


def _kpi_stage2(found: VolumeEvaluation, prefix: str) -> dict[str, float]:
    return found.kpi()


STAGE_1: Final = Stage(
    latest="panoptic_recon_3d_model",
    make_model=make_stage1,
    load_first=_load_stage1,
    make_criterion=make_stage1_loss,
    inputs=_image,
    compare=_compare_stage1,
    evaluate=_evaluate_stage1,
    kpi=_kpi_stage1,
)

STAGE_2: Final = Stage(
    latest="nvpanoptix3d_model",
    make_model=make_stage2,
    load_first=_load_both,
    make_criterion=make_stage2_loss,
    inputs=scene_inputs,
    compare=_compare_stage2,
    evaluate=_evaluate_stage2,
    kpi=_kpi_stage2,
)
