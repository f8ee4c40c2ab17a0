"""Which query answers for which mask: points drawn on an image, the cost of every pair there, the cheapest assignment.

Nothing here has a gradient but ``sample_points``. Random points come from ``draw_points`` alone; every other function takes points, so
that a computation can be repeated.

Source: the matching of NvPanoptix3D as described in its fact sheet, which is that of Mask2Former (arXiv 2112.01527, section 3.3).
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

Pairs = tuple[Tensor, Tensor]
"""(M,) int64 queries, ascending, and (M,) int64 masks, one of each a pair; M is the smaller of the number of queries and of masks."""


def draw_points(shape: Sequence[int], device: torch.device | str, generator: torch.Generator | None = None) -> Tensor:
    """Points uniform in the unit square.

    Args:
        shape: of the result, without its last axis.
        device: of the result.
        generator: what draws, on its own device; None for the generator of ``device`` that ``torch.manual_seed`` seeds.

    Returns:
        (*shape, 2) float32, (x, y) in [0, 1): 0 is the left or upper border of an image, 1 the right or lower.
    """
    source = device if generator is None else generator.device
    return torch.rand((*shape, 2), generator=generator, device=source, dtype=torch.float32).to(device)


def sample_points(maps: Tensor, points: Tensor) -> Tensor:
    """The values of maps at points, bilinear between pixel centres; beyond the borders a map is 0.

    Args:
        maps: (N, C, H, W) floats.
        points: (N, P, 2) floats, (x, y); 0..1 spans a map from border to border, whatever its size.

    Returns:
        (N, C, P), of the dtype of ``maps``.

    >>> sample_points(torch.tensor([[[[1.0, 3.0]]]]), torch.tensor([[[0.25, 0.5], [0.5, 0.5], [1.0, 0.5]]]))
    tensor([[[1.0000, 2.0000, 1.5000]]])
    """
    grid = (2 * points - 1)[:, :, None]
    return functional.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)[..., 0]


@torch.no_grad()
def matching_cost(
    class_logits: Tensor,
    mask_logits: Tensor,
    labels: Tensor,
    masks: Tensor,
    points: Tensor,
    *,
    class_weight: float = 2.0,
    mask_weight: float = 5.0,
    dice_weight: float = 5.0,
) -> Tensor:
    """What it costs to let a query answer for a mask of its image.

    Args:
        class_logits: (Q, C + 1) float32, the last class being "no object".
        mask_logits: (Q, h, w) float32.
        labels: (N,) int64, classes of the true masks.
        masks: (N, H, W) bool or float, over the same area as ``mask_logits``.
        points: (P, 2) float32, where masks are compared; see ``draw_points``.
        class_weight, mask_weight, dice_weight: of minus the probability of the label, of cross entropy, and of dice.

    Returns:
        (Q, N) float32.
    """
    probability = class_logits.float().softmax(dim=1)[:, labels]
    logit, true = (sample_points(maps[None].float(), points[None])[0] for maps in (mask_logits, masks))
    entropy = (functional.softplus(-logit) @ true.T + functional.softplus(logit) @ (1 - true).T) / len(points)
    inside = logit.sigmoid()
    dice = 1 - (2 * inside @ true.T + 1) / (inside.sum(dim=1)[:, None] + true.sum(dim=1)[None] + 1)
    return mask_weight * entropy - class_weight * probability + dice_weight * dice


def assign(cost: Tensor) -> Pairs:
    """The pairs of least total cost.

    Args:
        cost: (Q, N) float32; on the CPU, or it is copied there.

    Returns:
        Queries and masks, on the CPU.

    Raises:
        ValueError: a cost is not a number: so are the predictions.

    >>> assign(torch.tensor([[4.0, 1.0], [2.0, 0.0], [3.0, 2.0]]))
    (tensor([0, 1]), tensor([1, 0]))
    """
    from scipy.optimize import linear_sum_assignment  # only training needs it

    queries, masks = linear_sum_assignment(cost.cpu().numpy())
    return torch.from_numpy(queries).long(), torch.from_numpy(masks).long()


def match(
    class_logits: Tensor,
    mask_logits: Tensor,
    labels: Sequence[Tensor],
    masks: Sequence[Tensor],
    points: Sequence[Tensor],
    *,
    class_weight: float = 2.0,
    mask_weight: float = 5.0,
    dice_weight: float = 5.0,
) -> list[Pairs]:
    """The pairs of every image of a batch.

    Args:
        class_logits: (B, Q, C + 1) float32.
        mask_logits: (B, Q, h, w) float32.
        labels: of each image (N,) int64.
        masks: of each image (N, H, W) bool or float.
        points: of each image (P, 2) float32.
        class_weight, mask_weight, dice_weight: see ``matching_cost``.

    Returns:
        Queries and masks of each image, on the device of the logits.
    """
    costs = [  # all of them before the first copy waits for the device
        matching_cost(*image, class_weight=class_weight, mask_weight=mask_weight, dice_weight=dice_weight)
        for image in zip(class_logits, mask_logits, labels, masks, points, strict=True)
    ]
    device = class_logits.device
    return [(queries.to(device), found.to(device)) for queries, found in map(assign, costs)]
