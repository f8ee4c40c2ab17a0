"""The network of stage 2 once more, naively: dictionaries of voxels and loops, in float64, by the text of its definition."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

Voxel = tuple[int, ...]
"""(sample, x, y, z)."""

Row = NDArray[np.float64]
Rows = dict[Voxel, Row]
Weights = Mapping[str, Row]


def offsets(edge: int) -> list[tuple[int, ...]]:
    """Of a kernel, x slowest."""
    first = -1 if edge == 3 else 0
    return list(product(range(first, first + edge), repeat=3))


def moved(voxel: Voxel, offset: tuple[int, ...], scale: int = 1) -> Voxel:
    (sample, x, y, z), (dx, dy, dz) = voxel, offset
    return sample, scale * x + dx, scale * y + dy, scale * z + dz


def conv(rows: Rows, weight: Row, places: Iterable[Voxel], scale: int = 1) -> Rows:
    taps = list(zip(offsets(round(len(weight) ** (1 / 3))), weight, strict=True))
    done: Rows = {}
    for place in places:
        found = [(rows[near], tap) for offset, tap in taps if (near := moved(place, offset, scale)) in rows]
        done[place] = np.sum([row @ tap for row, tap in found], axis=0) if found else np.zeros(weight.shape[2])
    return done


def grown(rows: Rows, weight: Row) -> Rows:
    done: Rows = {}
    for voxel, row in rows.items():
        for offset, value in zip(offsets(4), row @ weight, strict=True):
            place = moved(voxel, offset, 2)
            done[place] = done.get(place, np.zeros_like(value)) + value
    return done


def normed(rows: Rows) -> Rows:
    return {voxel: (row - row.mean()) / np.sqrt(row.var() + 1e-5) for voxel, row in rows.items()}


def positive(rows: Rows) -> Rows:
    return {voxel: row.clip(min=0) for voxel, row in rows.items()}


def shifted(rows: Rows, bias: Row) -> Rows:
    return {voxel: row + bias for voxel, row in rows.items()}


def union(*sides: tuple[Rows, int]) -> Rows:
    voxels = sorted(set().union(*(rows for rows, _ in sides)))
    return {voxel: np.concatenate([rows.get(voxel, np.zeros(width)) for rows, width in sides]) for voxel in voxels}


def added(a: Rows, b: Rows) -> Rows:
    none = np.zeros_like(next(iter(b.values())))
    return {voxel: a.get(voxel, none) + b.get(voxel, none) for voxel in a.keys() | b.keys()}


def block(weights: Weights, name: str, rows: Rows, stride: int = 1) -> Rows:
    places = sorted({(voxel[0], *(cell // stride for cell in voxel[1:])) for voxel in rows})
    inner = positive(normed(conv(rows, weights[f"{name}.conv1.weight"], places, stride)))
    inner = normed(conv(inner, weights[f"{name}.conv2.weight"], places))
    shortcut = rows
    if (weight := weights.get(f"{name}.downsample.0.weight")) is not None:
        shortcut = normed(shifted(conv(rows, weight, places, stride), weights[f"{name}.downsample.0.bias"]))
    return positive(added(inner, shortcut))


def head(weights: Weights, name: str, rows: Rows) -> Rows:
    rows = block(weights, f"{name}.2", positive(normed(rows)))
    return shifted(conv(rows, weights[f"{name}.3.weight"], rows), weights[f"{name}.3.bias"])


def linear(weights: Weights, name: str, rows: Rows) -> Rows:
    return {voxel: weights[f"{name}.weight"] @ row + weights[f"{name}.bias"] for voxel, row in rows.items()}


def in_grid(voxel: Voxel, size: int) -> bool:
    return all(0 <= cell < size for cell in voxel[1:])


def cropped(rows: Rows, size: int) -> Rows:
    return {voxel: row for voxel, row in rows.items() if in_grid(voxel, size)}


def volume_of(rows: Rows, samples: int, width: int, size: int) -> Tensor:
    volume = np.zeros((samples, size, size, size, width))
    for voxel, row in cropped(rows, size).items():
        volume[voxel] = row
    return torch.from_numpy(volume).movedim(-1, 1)


def dense_norm(volume: Tensor) -> Tensor:
    mean, variance = volume.mean((2, 3, 4), keepdim=True), volume.var((2, 3, 4), correction=0, keepdim=True)
    return (volume - mean) / torch.sqrt(variance + 1e-5)


def dense_block(weights: Weights, name: str, volume: Tensor, stride: int = 1) -> Tensor:
    first, second = (torch.from_numpy(weights[f"{name}.{each}.weight"]) for each in ("conv1", "conv2"))
    inner = dense_norm(functional.conv3d(volume, first, stride=stride, padding=1)).clamp(min=0)
    inner = dense_norm(functional.conv3d(inner, second, padding=1))
    if stride == 2:
        volume = functional.conv3d(volume, torch.from_numpy(weights[f"{name}.downsample.weight"]), stride=2, padding=1)
    return (inner + volume).clamp(min=0)


def dense_encoder(weights: Weights, name: str, volume: Tensor) -> Tensor:
    return dense_block(weights, f"{name}.1", dense_block(weights, f"{name}.0", volume, 2))


def occupied(decoded: Rows, logits: Rows, size: int) -> Rows:
    """What is in the grid and likely; of a sample without any, what is in the grid; without even that, everything."""
    kept: Rows = {}
    for sample in {voxel[0] for voxel in decoded}:
        own = {voxel: row for voxel, row in decoded.items() if voxel[0] == sample}
        near = cropped(own, size)
        kept |= {voxel: row for voxel, row in near.items() if 1 / (1 + np.exp(-logits[voxel][0])) > 0.5} or near or own
    return kept


def masks_of(weights: Weights, level: int, rows: Rows, queries: Row) -> Rows:
    projected = queries @ weights[f"level_segm_query_projection.{level}.weight"].T
    projected = projected + weights[f"level_segm_query_projection.{level}.bias"]
    return {voxel: projected[voxel[0]] @ row for voxel, row in rows.items()}


class Naive(NamedTuple):
    """Distance, then occupancies and masks of the quarter, half and full grid; of the quarter grid the cells in the frustum."""

    distance: Rows
    occupancies: tuple[Rows, Rows, Rows]
    masks: tuple[Rows, Rows, Rows]


def encode(
    weights: Weights, features: Rows, widths: Sequence[int], f: int, scales: Sequence[Rows], samples: int, grid: int
) -> tuple[Rows, Rows, list[Tensor]]:
    """Rows of the half and quarter grid, and volumes from the quarter grid down."""
    ends = np.cumsum(widths)[:-1]
    parts = [{voxel: np.split(row, ends)[part] for voxel, row in features.items()} for part in range(4)]
    rows, sparse = union(*((block(weights, f"input_encoders.{part}", parts[part]), f) for part in range(4))), []
    for level in (0, 1):
        rows = block(weights, f"level_encoders.{level}.1", block(weights, f"level_encoders.{level}.0", rows, 2))
        if scales:
            rows = added(rows, block(weights, f"feature_adapters.{level}.0", scales[level]))
        sparse.append(rows)
    volumes = [volume_of(rows, samples, 2 * f, grid // 4)]
    for level in (2, 3, 4):
        volumes.append(dense_encoder(weights, f"level_encoders.{level}", volumes[-1]))
        if scales and level == 2:
            volumes[-1] += volume_of(block(weights, "feature_adapters.2.0", scales[2]), samples, 4 * f, grid // 8)
    return sparse[0], sparse[1], volumes


def decode(weights: Weights, volumes: Sequence[Tensor]) -> Tensor:
    """The volume of the quarter grid."""
    volume = volumes[-1]
    for level in (4, 3, 2):
        weight = torch.from_numpy(weights[f"level_decoders.{level}.0.weight"])
        volume = dense_norm(functional.conv_transpose3d(volume, weight, stride=2, padding=1)).clamp(min=0)
        volume = torch.cat([volumes[level - 2], volume], dim=1)
    return volume


def cells(volume: Tensor, frustum: NDArray[np.bool_]) -> Rows:
    places: list[list[int]] = np.argwhere(frustum).tolist()
    return {tuple(place): volume.movedim(1, -1)[tuple(place)].numpy() for place in places}


def complete(
    weights: Weights,
    features: Rows,
    scales: Sequence[Rows],
    queries: Row,
    frustum: NDArray[np.bool_],
    *,
    widths: Sequence[int],
    f: int,
    grid: int,
    truncation: float,
) -> Naive:
    """The whole network; ``widths`` are those of the four parts of a row, ``frustum`` is (B, d, d, d) of the quarter grid."""
    half, quarter, volumes = encode(weights, features, widths, f, scales, len(queries), grid)
    volume = decode(weights, volumes)
    inner = cells(volume, frustum)
    quarter_logits = linear(weights, "level_occupancy_heads.2", inner)
    kept = {voxel: row for voxel, row in inner.items() if quarter_logits[voxel][0] > 0}
    for index in (0, 1):
        volume = dense_block(weights, f"level_segm_embeddings.2.{index}", volume)
    quarter_masks = masks_of(weights, 2, cells(volume, frustum), queries)

    rows = grown(union((quarter, 2 * f), (kept, 4 * f)), weights["level_decoders.1.0.weight"])
    rows = block(weights, "level_decoders.1.3", positive(normed(rows)))
    half_logits = linear(weights, "level_occupancy_heads.1.block", rows)
    kept = union((half, f), (occupied(rows, half_logits, grid // 2), 2 * f))
    half_masks = masks_of(weights, 1, block(weights, "level_segm_embeddings.1", kept), queries)

    rows = positive(normed(grown(cropped(kept, grid // 2), weights["level_decoders.0.0.weight"])))
    full_logits = head(weights, "level_occupancy_heads.0", rows)
    kept = occupied(rows, full_logits, grid)
    full_masks = masks_of(weights, 0, block(weights, "level_segm_embeddings.0.2", positive(normed(kept))), queries)
    distance = {voxel: row.clip(0, truncation) for voxel, row in head(weights, "geometry_head", kept).items()}
    return Naive(
        cropped(distance, grid),
        (quarter_logits, cropped(half_logits, grid // 2), cropped(full_logits, grid)),
        (quarter_masks, cropped(half_masks, grid // 2), cropped(full_masks, grid)),
    )
