"""What stage 1 learns from: class, mask and dice of the matched queries, depth, and multi-plane occupancy.

An image has a weight, and so have its masks. The weighted mean of x is sum(w x) / max(sum(w), 1e-12): without weight it is 0.

Random points are drawn in this order: of the last layer's output the matching points, image by image; the candidates of its matched
masks; the rest of their points; then the same of each auxiliary output. One seed therefore always gives the same losses.

Source: the losses of NvPanoptix3D as described in its fact sheet; points where a mask is uncertain are those of PointRend
(arXiv 1912.08193, section 3.1).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional

from scenemill.schemas.errors import ConfigError
from scenemill.trainers.collate import Batch
from scenemill.trainers.nvpanoptix3d.matching import Pairs, draw_points, match, sample_points

_LEAST_WEIGHT: Final = 1e-12


@dataclass(frozen=True)
class Targets:
    """What the images of a batch teach; all tensors on one device.

    Attributes:
        labels: of each image (N,) int64, classes.
        masks: of each image (N, H, W) bool, over the area that the network saw, padding included.
        depth: (B, H, W) float32, metres, 0 where unknown; over the same area.
        loss_weight: (B,) float32.
        mp_occ: (B, S, h, w) bool, occupied cells; None outside stage 1.
        transformed_depth: (B, h, w) float32, metres; occupancy is known where it is not 0. None outside stage 1.
    """

    labels: Sequence[Tensor]
    masks: Sequence[Tensor]
    depth: Tensor
    loss_weight: Tensor
    mp_occ: Tensor | None = None
    transformed_depth: Tensor | None = None


def targets_of(batch: Batch, size: tuple[int, int]) -> Targets:
    """The targets of a batch; what the network adds at the right and below is no mask's, and of unknown depth.

    Args:
        batch: with the instances and depth of its images.
        size: (height, width) of the images after the network's own padding.

    Raises:
        ConfigError: the images are larger than ``size``.
    """
    depth, instances = batch["depth"], batch.instances
    below, right = size[0] - depth.shape[-2], size[1] - depth.shape[-1]
    if below < 0 or right < 0:
        raise ConfigError(f"size {size}: the images of the batch are larger, {tuple(depth.shape[-2:])}; give their padded size")
    return Targets(
        labels=[image.gt_classes for image in instances],
        masks=[functional.pad(image.gt_masks, (0, right, 0, below)) for image in instances],
        depth=functional.pad(depth, (0, right, 0, below)),
        loss_weight=torch.tensor([image.loss_weight for image in instances], dtype=torch.float32, device=depth.device),
        mp_occ=batch.tensors.get("mp_occ"),
        transformed_depth=batch.tensors.get("transformed_depth"),
    )


def weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    """The mean of values, each as much as its weight; 0, with a gradient of 0, without values or without weight.

    Args:
        values, weight: (N,) float32.

    Returns:
        () float32.

    >>> weighted_mean(torch.tensor([1.0, 5.0]), torch.tensor([3.0, 1.0]))
    tensor(2.)
    """
    return (values * weight).sum() / weight.sum().clamp(min=_LEAST_WEIGHT)


def class_loss(
    class_logits: Tensor, labels: Sequence[Tensor], pairs: Sequence[Pairs], loss_weight: Tensor, class_weights: Tensor
) -> Tensor:
    """Cross entropy of every query's class; one without a mask should say "no object", the last class.

    Args:
        class_logits: (B, Q, C + 1) float32.
        labels: of each image (N,) int64.
        pairs: of each image the matched queries and masks.
        loss_weight: (B,) float32.
        class_weights: (C + 1,) float32. They scale, they do not take part in the mean over queries.

    Returns:
        () float32.
    """
    images, queries, classes = class_logits.shape
    true = torch.full((images, queries), classes - 1, dtype=torch.int64, device=class_logits.device)
    for row, label, (query, mask) in zip(true, labels, pairs, strict=True):
        row[query] = label[mask]
    entropy = functional.cross_entropy(class_logits.flatten(0, 1), true.flatten(), class_weights, reduction="none")
    return weighted_mean(entropy.view(images, queries).mean(dim=1), loss_weight)


@torch.no_grad()
def uncertain_points(
    mask_logits: Tensor, count: int, *, oversample: float = 3.0, importance: float = 0.75, generator: torch.Generator | None = None
) -> Tensor:
    """Points to compare masks at: most of them where a mask's logit is nearest to 0, the rest anywhere.

    Args:
        mask_logits: (M, h, w) float32.
        count: P, points of each mask.
        oversample: candidates are this times P.
        importance: floor of this times P are the most uncertain of the candidates, the others are drawn after them.
        generator: see ``draw_points``.

    Returns:
        (M, P, 2) float32, (x, y).
    """
    masks, device = len(mask_logits), mask_logits.device
    candidates = draw_points((masks, math.floor(oversample * count)), device, generator)
    chosen = math.floor(importance * count)
    certainty = sample_points(mask_logits[:, None], candidates)[:, 0].abs()
    nearest = certainty.topk(chosen, dim=1, largest=False).indices
    uncertain = candidates.gather(1, nearest[..., None].expand(-1, -1, 2))
    return torch.cat([uncertain, draw_points((masks, count - chosen), device, generator)], dim=1)


def mask_losses(mask_logits: Tensor, masks: Tensor, points: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Cross entropy and dice of matched masks, on points of each.

    Args:
        mask_logits: (M, h, w) float32.
        masks: (M, H, W) bool, the true mask of each, over the same area.
        points: (M, P, 2) float32.
        weight: (M,) float32, of the image that each is in.

    Returns:
        () float32 each.
    """
    logit, true = (sample_points(maps[:, None].float(), points)[:, 0] for maps in (mask_logits, masks))
    entropy = functional.binary_cross_entropy_with_logits(logit, true, reduction="none").mean(dim=1)
    inside = logit.sigmoid()
    dice = 1 - (2 * (inside * true).sum(dim=1) + 1) / (inside.sum(dim=1) + true.sum(dim=1) + 1)
    return weighted_mean(entropy, weight), weighted_mean(dice, weight)


def depth_loss(predicted: Tensor, depth: Tensor, loss_weight: Tensor) -> Tensor:
    """Mean absolute error of depth, in metres, where the true depth is known; an image where it is nowhere known has no error.

    Args:
        predicted: (B, 1, h, w) float32, metres.
        depth: (B, H, W) float32, metres, 0 where unknown, over the same area. It is resized as it is: beside unknown pixels a known
            depth shrinks, and counts.
        loss_weight: (B,) float32.

    Returns:
        () float32.
    """
    true = functional.interpolate(depth[:, None], size=predicted.shape[-2:], mode="bilinear", align_corners=False)
    known = true > 0
    error = torch.where(known, (predicted - true).abs(), 0).sum(dim=(1, 2, 3)) / known.sum(dim=(1, 2, 3)).clamp(min=1)
    return weighted_mean(error, loss_weight)


def occupancy_loss(logits: Tensor, occupied: Tensor, depth: Tensor, loss_weight: Tensor) -> Tensor:
    """Cross entropy of the cells of all planes, summed over the planes, averaged over the pixels whose depth is known.

    Args:
        logits: (B, S, h, w) float32.
        occupied: (B, S, h, w) bool.
        depth: (B, h, w) float32, not 0 where occupancy is known; an image where it is nowhere known has no error.
        loss_weight: (B,) float32.

    Returns:
        () float32.
    """
    known = depth != 0
    entropy = functional.binary_cross_entropy_with_logits(logits, occupied.float(), reduction="none").sum(dim=1)
    error = torch.where(known, entropy, 0).sum(dim=(1, 2)) / known.sum(dim=(1, 2)).clamp(min=1)
    return weighted_mean(error, loss_weight)


@torch.no_grad()
def mean_mask_count(masks: Sequence[Tensor], loss_weight: Tensor) -> Tensor:
    """How many masks a process has, each as much as its image weighs, on average over processes; 1 at least.

    Stage 2 divides by it; the means of stage 1 are those of each process alone.

    Args:
        masks: of each image (N, ...).
        loss_weight: (B,) float32.

    Returns:
        () float32.
    """
    total = (loss_weight * loss_weight.new_tensor([len(image) for image in masks])).sum()
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(total)
        total = total / distributed.get_world_size()
    return total.clamp(min=1)


class Stage1Loss(nn.Module):
    """All losses of stage 1.

    Attributes:
        empty_weight: (C + 1,) float32, weights of the classes: 1, and ``no_object_weight`` for the last. Checkpoints have it.
        weights: of each kind of loss, without the number of an auxiliary output.
    """

    empty_weight: Tensor

    def __init__(
        self,
        num_classes: int = 13,
        *,
        class_weight: float = 2.0,
        mask_weight: float = 5.0,
        dice_weight: float = 5.0,
        depth_weight: float = 5.0,
        mp_occ_weight: float = 5.0,
        no_object_weight: float = 0.1,
        train_num_points: int = 12544,
        oversample_ratio: float = 3.0,
        importance_sample_ratio: float = 0.75,
        deep_supervision: bool = True,
    ) -> None:
        """Names and defaults are those of ``model.mask_former`` in a specification file.

        Args:
            num_classes: C, without "no object".
            class_weight, mask_weight, dice_weight: of the losses, and of the costs of matching.
            depth_weight, mp_occ_weight: of the losses.
            no_object_weight: of the class "no object".
            train_num_points: P, where masks are compared.
            oversample_ratio, importance_sample_ratio: see ``uncertain_points``.
            deep_supervision: whether auxiliary outputs are taught.
        """
        super().__init__()
        self.weights = {
            "loss_ce": class_weight,
            "loss_mask": mask_weight,
            "loss_dice": dice_weight,
            "loss_depth": depth_weight,
            "loss_mp_occ": mp_occ_weight,
        }
        self.costs = {"class_weight": class_weight, "mask_weight": mask_weight, "dice_weight": dice_weight}
        self.points = train_num_points
        self.oversample = oversample_ratio
        self.importance = importance_sample_ratio
        self.deep_supervision = deep_supervision
        self.register_buffer("empty_weight", torch.tensor([1.0] * num_classes + [no_object_weight]))

    def forward(
        self, predictions: Mapping[str, Any], targets: Targets, generator: torch.Generator | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compare predictions with targets.

        Args:
            predictions: ``pred_logits`` (B, Q, C + 1), ``pred_masks`` (B, Q, h, w), ``aux_outputs``, a list of these two for each
                earlier layer, ``pred_depths`` (B, 1, h, w) in metres, ``occupancy_preds`` (B, S, h, w); all float32.
            targets: of the same images.
            generator: what draws the points; None for torch's own.

        Returns:
            The sum of all losses times their weights, and every loss by name, not weighted.

        Raises:
            ConfigError: the targets lack occupancy.
        """
        losses = self._set_losses(predictions, targets, generator)
        losses["loss_depth"] = depth_loss(predictions["pred_depths"], targets.depth, targets.loss_weight)
        if targets.mp_occ is None or targets.transformed_depth is None:
            raise ConfigError("the batch has no mp_occ or no transformed_depth; stage 1 needs dataset.enable_mp_occ")
        losses["loss_mp_occ"] = occupancy_loss(
            predictions["occupancy_preds"], targets.mp_occ, targets.transformed_depth, targets.loss_weight
        )
        total = self._total(losses)
        for layer, output in enumerate(predictions.get("aux_outputs", ()) if self.deep_supervision else ()):
            found = self._set_losses(output, targets, generator)
            total = total + self._total(found)
            losses |= {f"{name}_{layer}": loss for name, loss in found.items()}
        return total, losses

    def _total(self, losses: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([self.weights[name] * loss for name, loss in losses.items()]).sum()

    def _set_losses(self, output: Mapping[str, Tensor], targets: Targets, generator: torch.Generator | None) -> dict[str, Tensor]:
        """Class, mask and dice losses of one layer's output."""
        class_logits, mask_logits = output["pred_logits"], output["pred_masks"]
        points = [draw_points((self.points,), class_logits.device, generator) for _ in targets.labels]
        pairs = match(class_logits, mask_logits, targets.labels, targets.masks, points, **self.costs)
        entropy = class_loss(class_logits, targets.labels, pairs, targets.loss_weight, self.empty_weight)
        predicted = torch.cat([image[queries] for image, (queries, _) in zip(mask_logits, pairs, strict=True)])
        true = torch.cat([image[masks] for image, (_, masks) in zip(targets.masks, pairs, strict=True)])
        weight = torch.cat([image.expand(len(queries)) for image, (queries, _) in zip(targets.loss_weight, pairs, strict=True)])
        drawn = uncertain_points(
            predicted, self.points, oversample=self.oversample, importance=self.importance, generator=generator
        )
        mask, dice = mask_losses(predicted, true, drawn, weight)
        return {"loss_ce": entropy, "loss_mask": mask, "loss_dice": dice}
