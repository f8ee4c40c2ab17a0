"""What stage 2 learns from: distance, occupancy, and the masks of the matched queries, on three grids.

The grids are named after a full grid of 256 voxels a side: 64 is the quarter, 128 the half and 256 the full grid, whatever their real
sizes. On the quarter grid predictions are compared in every cell of the frustum, on the other two at their rows: the voxels that are
there, by coordinates of their own grid.

Which query answers for which instance is decided in the image, by what stage 1 says of it; stage 1 learns nothing here. Points to
compare images at are the only random draw, image by image.

Source: the stage 2 losses of NvPanoptix3D as described in its fact sheet; they come from Uni-3D (Zhang et al. 2023). There as here a
predicted distance, which never exceeds the truncation, is compared with a true one that does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from scenemill.schemas.errors import ConfigError
from scenemill.trainers.collate import Batch
from scenemill.trainers.nvpanoptix3d.completion import CompletionOutput
from scenemill.trainers.nvpanoptix3d.losses import Targets, mean_mask_count, targets_of, weighted_mean
from scenemill.trainers.nvpanoptix3d.matching import Pairs, draw_points, match
from scenemill.trainers.nvpanoptix3d.sparse import SparseTensor, from_dense, inside
from scenemill.trainers.volumes import LEVELS

GRIDS: Final = tuple(reversed(LEVELS))
"""Names of the three grids from coarse to fine: the order of predictions and of ``completion_weights``."""


@dataclass(frozen=True)
class GridTargets:
    """What one grid of D voxels a side teaches.

    Attributes:
        occupancy: (B, D, D, D) float32, 1 where occupied, else 0.
        weighting: (B, D, D, D) float32, how much a voxel counts.
        masks: of each sample (N, D, D, D) bool, of the same instances as the masks of its image.
    """

    occupancy: Tensor
    weighting: Tensor
    masks: Sequence[Tensor]


@dataclass(frozen=True)
class VolumeTargets:
    """What the samples of a batch teach stage 2; all tensors on one device.

    Attributes:
        image: what their images teach: labels and masks to match by, weights.
        geometry: (B, D, D, D) float32, distance to the nearest surface in voxels, on the full grid.
        grids: the quarter, the half and the full grid.
    """

    image: Targets
    geometry: Tensor
    grids: tuple[GridTargets, GridTargets, GridTargets]


def volume_targets_of(batch: Batch, size: tuple[int, int]) -> VolumeTargets:
    """The targets of a batch.

    Args:
        batch: with instances and dense volumes.
        size: (height, width) of the images after the network's own padding.

    Raises:
        ConfigError: the batch has no volumes, or its images are larger than ``size``.
    """
    if "geometry" not in batch:
        raise ConfigError("the batch has no geometry; stage 2 needs dataset.enable_3d, and the batch expanded")
    quarter, half, full = (
        GridTargets(
            occupancy=batch[f"occupancy_{grid}"],
            weighting=batch[f"weighting3d_{grid}"],
            masks=[getattr(sample, f"gt_masks_3d_{grid}") for sample in batch.instances],
        )
        for grid in GRIDS
    )
    return VolumeTargets(targets_of(batch, size), batch["geometry"], (quarter, half, full))


def values_at(volumes: Tensor, rows: SparseTensor) -> Tensor:
    """What dense volumes hold at the voxels of rows.

    Args:
        volumes: (B, D, D, D).
        rows: N rows within the grid.

    Returns:
        (N,), of the dtype of ``volumes``.
    """
    assert bool(inside(rows, volumes.shape[-1]).all()), "a row lies outside the grid of its target"
    sample, x, y, z = rows.coords.unbind(dim=1)
    return volumes[sample, x, y, z]


def geometry_loss(distance: SparseTensor, geometry: Tensor, weighting: Tensor, loss_weight: Tensor) -> Tensor:
    """Mean absolute error of distance over rows, in voxels, each row as much as its sample weighs.

    Args:
        distance: (N, 1) float32, voxels.
        geometry: (B, D, D, D) float32, voxels. It is not truncated.
        weighting: (B, D, D, D) float32. It scales, it does not take part in the mean over rows.
        loss_weight: (B,) float32.

    Returns:
        () float32.
    """
    error = (distance.features[:, 0] - values_at(geometry, distance)).abs() * values_at(weighting, distance)
    return weighted_mean(error, loss_weight[distance.coords[:, 0]])


def dense_occupancy_loss(logits: Tensor, target: GridTargets, loss_weight: Tensor) -> Tensor:
    """Cross entropy of occupancy, averaged over the cells of the frustum; a sample without such a cell has no error.

    Args:
        logits: (B, 1, D, D, D) float32, minus infinity outside the frustum.
        target: of the same grid; its weighting does not take part in the mean over cells.
        loss_weight: (B,) float32.

    Returns:
        () float32.
    """
    known = in_frustum(logits)
    entropy = functional.binary_cross_entropy_with_logits(logits[:, 0], target.occupancy, target.weighting, reduction="none")
    error = torch.where(known, entropy, 0).sum(dim=(1, 2, 3)) / known.sum(dim=(1, 2, 3)).clamp(min=1)
    return weighted_mean(error, loss_weight)


def in_frustum(logits: Tensor) -> Tensor:
    """The cells that a dense prediction of occupancy speaks of: (B, 1, D, D, D) float32 -> (B, D, D, D) bool.

    Only minus infinity says "outside". A logit that is not a number stays inside: it must show in the loss.
    """
    return logits[:, 0] != -torch.inf


def sparse_occupancy_loss(logits: SparseTensor, target: GridTargets, loss_weight: Tensor) -> Tensor:
    """Cross entropy of occupancy, averaged over rows, each as much as its sample weighs.

    Args:
        logits: (N, 1) float32.
        target: of the same grid; its weighting does not take part in the mean over rows.
        loss_weight: (B,) float32.

    Returns:
        () float32.
    """
    entropy = functional.binary_cross_entropy_with_logits(
        logits.features[:, 0], values_at(target.occupancy, logits), values_at(target.weighting, logits), reduction="none"
    )
    return weighted_mean(entropy, loss_weight[logits.coords[:, 0]])


def mask_errors(logits: SparseTensor, target: GridTargets, pairs: Sequence[Pairs]) -> Tensor:
    """Cross entropy of the matched masks of each sample: averaged over its rows, summed over its masks; 0 without a row.

    Memory goes with rows times matched queries: no mask of the whole grid is made.

    Args:
        logits: (N, Q) float32; rows outside the grid are not compared.
        target: of the same grid; its weighting does not take part in the mean over rows.
        pairs: of each sample the matched queries and masks.

    Returns:
        (B,) float32.
    """
    errors = []
    for sample, (rows, (queries, masks)) in enumerate(zip(_rows_of_samples(logits, target), pairs, strict=True)):
        x, y, z = logits.coords[rows, 1:].unbind(dim=1)
        predicted = logits.features.T.index_select(0, queries).index_select(1, rows)
        true = target.masks[sample][masks[:, None], x, y, z].to(predicted.dtype)
        weighting = target.weighting[sample, x, y, z]
        entropy = functional.binary_cross_entropy_with_logits(predicted, true, weighting, reduction="sum")
        errors.append(entropy / max(len(rows), 1))
    return torch.stack(errors)


@torch.no_grad()
def lost_masks(logits: SparseTensor, target: GridTargets, pairs: Sequence[Pairs]) -> Tensor:
    """How many matched masks each sample loses for it has no row; masks without a voxel are none to lose.

    Args:
        logits: (N, Q) float32; rows outside the grid do not count.
        target: of the same grid.
        pairs: of each sample the matched queries and masks.

    Returns:
        (B,) float32; 0 for a sample with rows.
    """
    lost = [
        0 if len(rows) else int(masks[found].flatten(1).any(dim=1).sum())
        for rows, masks, (_, found) in zip(_rows_of_samples(logits, target), target.masks, pairs, strict=True)
    ]
    return logits.features.new_tensor(lost)


def _rows_of_samples(logits: SparseTensor, target: GridTargets) -> list[Tensor]:
    """Of each sample (n,) int64: its rows in the grid."""
    within = inside(logits, target.weighting.shape[-1])
    return [(within & (logits.coords[:, 0] == sample)).nonzero()[:, 0] for sample in range(len(target.weighting))]


class Stage2Loss(nn.Module):
    """All losses of stage 2.

    Attributes:
        empty_weight: (C + 1,) float32, the weights of the classes in stage 1: 1, and ``no_object_weight`` for the last. No class is
            learnt here, but checkpoints have it.
        weights: of each loss.
    """

    empty_weight: Tensor

    def __init__(
        self,
        num_classes: int = 13,
        *,
        surface_weight: float = 5.0,
        completion_weights: Sequence[float] = (50.0, 25.0, 10.0),
        panoptic_weight: float = 25.0,
        class_weight: float = 2.0,
        mask_weight: float = 5.0,
        dice_weight: float = 5.0,
        no_object_weight: float = 0.1,
        train_num_points: int = 12544,
    ) -> None:
        """Names and defaults are those of ``model.frustum3d`` and ``model.mask_former`` in a specification file.

        Args:
            num_classes: C, without "no object".
            surface_weight: of the distance loss.
            completion_weights: of the occupancy losses, from coarse to fine.
            panoptic_weight: of the mask loss of each grid.
            class_weight, mask_weight, dice_weight: of the costs of matching.
            no_object_weight: of the class "no object".
            train_num_points: P, where images are compared to match.

        Raises:
            ConfigError: there are not three ``completion_weights``.
        """
        super().__init__()
        if len(completion_weights) != len(GRIDS):
            raise ConfigError(f"completion_weights {list(completion_weights)}: give three, for the quarter, half and full grid")
        self.weights = {"loss_geometry": surface_weight}
        self.weights |= {f"loss_occupancy_{grid}": weight for grid, weight in zip(GRIDS, completion_weights, strict=True)}
        self.weights |= {f"loss_panoptic_{grid}": panoptic_weight for grid in GRIDS}
        self.costs = {"class_weight": class_weight, "mask_weight": mask_weight, "dice_weight": dice_weight}
        self.points = train_num_points
        self.register_buffer("empty_weight", torch.tensor([1.0] * num_classes + [no_object_weight]))

    def forward(
        self,
        output: CompletionOutput,
        class_logits: Tensor,
        mask_logits: Tensor,
        targets: VolumeTargets,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compare predictions with targets, in float32 whatever the network computed in.

        Args:
            output: of stage 2.
            class_logits: (B, Q, C + 1), of stage 1.
            mask_logits: (B, Q, h, w), of stage 1.
            targets: of the same samples.
            generator: what draws the points of matching; None for torch's own.

        Returns:
            The sum of all losses times their weights, and every loss by name, not weighted.
        """
        output, image = _in_float32(output), targets.image
        points = [draw_points((self.points,), class_logits.device, generator) for _ in image.labels]
        pairs = match(class_logits, mask_logits, image.labels, image.masks, points, **self.costs)
        full = targets.grids[-1]
        found = [geometry_loss(output.geometry, targets.geometry, full.weighting, image.loss_weight)]
        found += occupancy_losses(output, targets)
        found += panoptic_losses(output, targets, pairs)
        losses = dict(zip(self.weights, found, strict=True))
        total = torch.stack([self.weights[name] * loss for name, loss in losses.items()]).sum()
        return total, losses


def _in_float32(output: CompletionOutput) -> CompletionOutput:
    def of(rows: SparseTensor) -> SparseTensor:
        return rows.with_features(rows.features.float())

    (dense, half, full), (dense_masks, half_masks, full_masks) = output.occupancies, output.masks
    return CompletionOutput(
        geometry=of(output.geometry),
        occupancies=(dense.float(), of(half), of(full)),
        masks=(dense_masks.float(), of(half_masks), of(full_masks)),
    )


def occupancy_losses(output: CompletionOutput, targets: VolumeTargets) -> list[Tensor]:
    """The occupancy losses of the three grids, () float32 each, from coarse to fine."""
    quarter, *finer = output.occupancies
    weight = targets.image.loss_weight
    first = dense_occupancy_loss(quarter, targets.grids[0], weight)
    return [first] + [sparse_occupancy_loss(rows, grid, weight) for rows, grid in zip(finer, targets.grids[1:], strict=True)]


def panoptic_losses(output: CompletionOutput, targets: VolumeTargets, pairs: Sequence[Pairs]) -> list[Tensor]:
    """The mask losses of the three grids, () float32 each, from coarse to fine: the sum over samples by the mean number of masks.

    On the half and the full grid a mask costs 1, without a gradient, where its sample has no row that could be of it.
    """
    dense, *finer = output.masks
    quarter = from_dense(dense, in_frustum(output.occupancies[0]), stride=4)
    errors = [mask_errors(quarter, targets.grids[0], pairs)]
    for rows, grid in zip(finer, targets.grids[1:], strict=True):
        errors.append(mask_errors(rows, grid, pairs) + lost_masks(rows, grid, pairs))
    weight = targets.image.loss_weight
    count = mean_mask_count(targets.image.masks, weight)
    return [(weight * each).sum() / count for each in errors]
