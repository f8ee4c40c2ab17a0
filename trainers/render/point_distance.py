"""How near clouds of points are to each other.

Source: ``sided_distance`` and ``chamfer_distance`` of ``kaolin.metrics.pointcloud`` 0.18.
"""

import torch
from torch import Tensor

from scenemill.schemas.errors import ConfigError
from scenemill.trainers.render.rasterization import in_float32


def sided_distance(p1: Tensor, p2: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distance of each point of one cloud to the nearest of another, and which that is.

    Args:
        p1: (B, N, 3), and
        p2: (B, M, 3), M above 0, of one dtype on one device.

    Returns:
        (B, N) with gradients to both; and (B, N) int64, of equally near points any. Float16 and bfloat16 are computed in float32. The
        search itself runs on the CPU.

    Raises:
        ConfigError: shapes, dtypes or devices that do not fit, no points to be near to, or coordinates that are not finite.

    >>> sided_distance(torch.tensor([[[0.0, 0.0, 0.0]]]), torch.tensor([[[3.0, 0.0, 0.0], [0.0, 2.0, 0.0]]]))
    (tensor([[4.]]), tensor([[1]]))
    """
    away, index = _to_nearest(p1, p2)
    return away.square().sum(dim=-1).to(p1.dtype), index


def chamfer_distance(p1: Tensor, p2: Tensor, w1: float = 1.0, w2: float = 1.0, squared: bool = True) -> Tensor:
    """(B,): ``w1`` times the mean distance of points to the other cloud, and ``w2`` times that of the other cloud's points back.

    Args:
        p1: (B, N, 3), N above 0, and
        p2: (B, M, 3), as ``sided_distance`` takes them.
        w1: weight of the way from ``p1`` to ``p2``.
        w2: weight of the way back.
        squared: means of squared distances, else of distances: their gradient is 0 where two points meet.

    >>> points = torch.tensor([[[0.0, 0.0, 0.0], [4.0, 0.0, 0.0]]])
    >>> chamfer_distance(points, points[:, :1]), chamfer_distance(points, points[:, :1], w1=0.5, squared=False)
    (tensor([8.]), tensor([1.]))
    """
    means = []
    for start, end in ((p1, p2), (p2, p1)):
        away = _to_nearest(start, end)[0]
        means.append((away.square().sum(dim=-1) if squared else torch.linalg.vector_norm(away, dim=-1)).mean(dim=-1))
    return (w1 * means[0] + w2 * means[1]).to(p1.dtype)


def _to_nearest(start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """From each point of ``start`` to the nearest of ``end``, (B, N, 3), and its number (B, N)."""
    from scipy.spatial import KDTree

    _check(start, end)
    pairs = zip(start.detach().cpu().double().numpy(), end.detach().cpu().double().numpy(), strict=True)
    found = [torch.from_numpy(KDTree(there).query(here)[1]) for here, there in pairs]
    index = torch.stack(found).to(start.device) if found else torch.zeros(start.shape[:2], dtype=torch.int64, device=start.device)
    return in_float32(start) - in_float32(end).take_along_dim(index[..., None], dim=1), index


def _check(start: Tensor, end: Tensor) -> None:
    shapes = f"{tuple(start.shape)} and {tuple(end.shape)}"
    if start.ndim != 3 or end.ndim != 3 or len(start) != len(end) or not start.shape[2] == end.shape[2] == 3:
        raise ConfigError(f"clouds of points are {shapes}, expected (B, N, 3) and (B, M, 3)")
    if not end.shape[1]:
        raise ConfigError(f"clouds of points are {shapes}: one without points is near to none")
    if start.dtype != end.dtype or start.device != end.device or not start.is_floating_point():
        kinds = f"{start.dtype} on {start.device} and {end.dtype} on {end.device}"
        raise ConfigError(f"clouds of points are {kinds}: give both in one floating dtype, on one device")
    if not (start.isfinite().all() and end.isfinite().all()):
        raise ConfigError("clouds of points hold coordinates that are not finite: leave those points out")
