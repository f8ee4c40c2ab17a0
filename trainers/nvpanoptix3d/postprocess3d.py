"""What queries say, as a volume: which segment a voxel is of, its class and its distance to a surface.

All work is done on rows: the voxels that stage 2 kept. A voxel without a row has no mask, and the largest distance.

Source: the 3D post-processing of NvPanoptix3D as described in its fact sheet, which is that of Uni-3D (Zhang et al. 2023).
"""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from scenemill.trainers.nvpanoptix3d.completion import CompletionOutput
from scenemill.trainers.nvpanoptix3d.postprocess import Rules, Segment, number_segments
from scenemill.trainers.nvpanoptix3d.sparse import SparseTensor, inside, prune, to_dense

FILLED_WITHIN: Final = 1.5
"""Voxels: so near to a surface, a voxel of no mask goes to the query that says most there. Source: as the module."""


@dataclass(frozen=True)
class PanopticVolume:
    """What was found in one sample, image-aligned, D voxels a side.

    Attributes:
        panoptic: (D, D, D) int32, id of a segment; 0 is none.
        segments: by ascending id, which is the order of the queries.
        distance: (D, D, D) float32, voxels, from 0 to the truncation; the truncation where nothing was predicted.
    """

    panoptic: Tensor
    segments: tuple[Segment, ...]
    distance: Tensor

    @property
    def semantic(self) -> Tensor:
        """(D, D, D) int32: class of the segment of each voxel; 0 where there is none."""
        classes = [0, *(segment.category_id for segment in self.segments)]
        return torch.tensor(classes, dtype=torch.int32, device=self.panoptic.device)[self.panoptic]


@torch.no_grad()
def postprocess_volumes(
    output: CompletionOutput, class_logits: Tensor, size: int, *, rules: Rules, truncation: float = 3.0
) -> list[PanopticVolume]:
    """The volumes of a batch.

    Args:
        output: of stage 2, in any precision. Its rows are distinct; those outside the grid are not used.
        class_logits: (B, Q, C + 1), of stage 1, the last class being "no object".
        size: D, voxels a side of the full grid.
        rules: what is kept.
        truncation: the largest distance, voxels.
    """
    distances = to_dense(output.geometry, len(class_logits), size, fill=truncation)[:, 0].float()
    masks = output.masks[-1]
    within = inside(masks, size)
    return [
        panoptic_volume(logits, prune(masks, within & (masks.coords[:, 0] == sample)), distance, rules)
        for sample, (logits, distance) in enumerate(zip(class_logits, distances, strict=True))
    ]


@torch.no_grad()
def panoptic_volume(class_logits: Tensor, masks: SparseTensor, distance: Tensor, rules: Rules) -> PanopticVolume:
    """The segments of one sample.

    A query is kept for its score, unless it says void or "no object". A voxel's owner is the kept query whose score times mask is the
    largest there, the first of equals. A query that owns any voxel of its own mask has a segment, or a part of the one segment of its
    stuff class: what it owns of its mask, and what it owns near a surface.

    Args:
        class_logits: (Q, C + 1).
        masks: (n, Q) logits; distinct rows of this sample, within the grid. Elsewhere all masks are 0.
        distance: (D, D, D) float32, voxels.
        rules: what is kept.
    """
    kept, label, score = _kept_queries(class_logits, rules)
    if not len(kept):
        return PanopticVolume(torch.zeros_like(distance, dtype=torch.int32), (), distance)
    mask = masks.features.index_select(1, kept).float().sigmoid()
    owner = (score * mask).argmax(dim=1)
    own = mask.gather(1, owner[:, None])[:, 0] >= 0.5
    region = torch.bincount(owner[own], minlength=len(kept))
    facts = torch.stack([label, region], dim=1).tolist()  # one wait for the device
    numbers, segments = number_segments([category for category, _ in facts], [voxels > 0 for _, voxels in facts], rules)
    ids = torch.tensor(numbers, dtype=torch.int32, device=distance.device)
    near = distance <= FILLED_WITHIN
    panoptic = torch.where(near, ids[0], 0)  # without a row all masks are 0: the first of equals
    x, y, z = masks.coords[:, 1:].unbind(dim=1)
    panoptic[x, y, z] = torch.where(own | near[x, y, z], ids[owner], 0)
    return PanopticVolume(panoptic, segments, distance)


def _kept_queries(class_logits: Tensor, rules: Rules) -> tuple[Tensor, Tensor, Tensor]:
    """(K,) int64 the queries that are kept, (K,) int64 their classes, (K,) float32 their scores."""
    score, label = class_logits.float().softmax(dim=1).max(dim=1)
    none = class_logits.shape[1] - 1
    kept = ((label != 0) & (label != none) & (score > rules.object_mask_threshold)).nonzero()[:, 0]
    return kept, label[kept], score[kept]
