"""Squared distance of points to the outlines of triangles, and its gradient to the corners.

Six candidates: the lines of the edges 0-1, 1-2, 2-0, each only where the foot of the perpendicular lies within the edge, then the
corners 0, 1, 2. The first of the smallest counts; it is kept as a kind: 1 to 3 an edge, 4 to 6 a corner.
"""

from typing import Final

import torch
from torch import Tensor

EDGE_EPS: Final = 1e-7
"""Added to the squared length of an edge, in scaled coordinates: keeps edges without length finite."""

Columns = tuple[Tensor, ...]
Point = tuple[Tensor, Tensor]


def outline_distance(corners: Columns) -> tuple[Tensor, Tensor]:
    """Squared distance of the origin to the outline, and its kind.

    Args:
        corners: six tensors (n,), x and y of each corner relative to the point.

    Returns:
        (n,) in the square of the corners' unit, and (n,) uint8.
    """
    points = _points(corners)
    candidates = [_edge_distance(points[end], points[(end + 1) % 3]) for end in range(3)]
    candidates += [x * x + y * y for x, y in points]
    best, kind = candidates[0], torch.ones_like(candidates[0], dtype=torch.uint8)
    for number, candidate in enumerate(candidates[1:], start=2):
        kind = kind.masked_fill(candidate < best, number)
        best = torch.minimum(best, candidate)
    return best, kind


def outline_slopes(corners: Columns, kind: Tensor, eps: float) -> Tensor:
    """Gradient of the squared distance to the corners, (n, 6) as ``corners``; which candidate counts has none.

    Args:
        corners: of ``outline_distance``.
        kind: of ``outline_distance``.
        eps: added to the squared length of an edge, in the square of the corners' unit.
    """
    points = _points(corners)
    slopes = torch.zeros((len(kind), 6), dtype=corners[0].dtype, device=kind.device)
    for end in range(3):
        of_edge, of_corner = ((kind == number).nonzero()[:, 0] for number in (end + 1, end + 4))
        start, stop = end, (end + 1) % 3
        some = [_some(points[corner], of_edge) for corner in (start, stop)]
        for corner, pair in zip((start, stop), _edge_slopes(some[0], some[1], eps), strict=True):
            slopes[of_edge, 2 * corner], slopes[of_edge, 2 * corner + 1] = pair
        x, y = _some(points[end], of_corner)
        slopes[of_corner, 2 * end], slopes[of_corner, 2 * end + 1] = 2 * x, 2 * y
    return slopes


def _points(corners: Columns) -> list[Point]:
    return [(corners[0], corners[1]), (corners[2], corners[3]), (corners[4], corners[5])]


def _some(point: Point, rows: Tensor) -> Point:
    return point[0].index_select(0, rows), point[1].index_select(0, rows)


def _edge_distance(start: Point, stop: Point) -> Tensor:
    """(n,), to the line from one corner to the other, infinite where the foot lies beyond them."""
    (ax, ay), (bx, by) = start, stop
    over, along = by - ay, ax - bx
    cross = ax * by - ay * bx
    per_length = cross / (over * over + along * along + EDGE_EPS)
    foot_x, foot_y = per_length * over, per_length * along
    beyond = (ax - foot_x) * (bx - foot_x) + (ay - foot_y) * (by - foot_y) > 0
    return (cross * per_length).masked_fill(beyond, torch.inf)


def _edge_slopes(start: Point, stop: Point, eps: float) -> tuple[Point, Point]:
    """Gradient of ``cross^2 / (length^2 + eps)`` to both ends."""
    (ax, ay), (bx, by) = start, stop
    dx, dy = bx - ax, by - ay
    per_length = (ax * by - ay * bx) / (dx * dx + dy * dy + eps)
    turn, pull = 2 * per_length, 2 * per_length * per_length
    return (turn * by + pull * dx, pull * dy - turn * bx), (-turn * ay - pull * dx, turn * ax - pull * dy)
