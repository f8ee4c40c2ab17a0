"""Cases whose answer is arithmetic, run in seconds before anyone trusts a number: the metrics of this very installation.

A case is a name, what the code says, and what must come out; sizes are small enough to count by hand.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from scenemill.trainers.metrics import Rule, Tally, merge, panoptic_reconstruction_quality
from scenemill.trainers.panoptic import panoptic_quality, pq_averages, relative_depth_error
from scenemill.trainers.segments import Segments, segments_from_labels, segments_from_panoptic

_GRID = 24
_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Case:
    """One case.

    Attributes:
        name: what it tries.
        observed: what the code says.
        expected: what must come out.
    """

    name: str
    observed: float
    expected: float

    @property
    def holds(self) -> bool:
        """True where the two agree to 1e-9."""
        return abs(self.observed - self.expected) <= _TOLERANCE


def run_selfcheck() -> list[Case]:
    """Run every case."""
    return [*_volumes(), *_rules(), *_images(), *_depth()]


def _scene(*boxes: tuple[int, int, tuple[int, int, int], int]) -> tuple[np.ndarray[Any, Any], dict[int, int]]:
    """A volume of cubes: (id, class, lowest corner, edge)."""
    volume = np.zeros((_GRID,) * 3, np.int32)
    for name, _, (x, y, z), edge in boxes:
        volume[x : x + edge, y : y + edge, z : z + edge] = name
    return volume, {name: label for name, label, _, _ in boxes}


def _truth(volume: np.ndarray[Any, Any], classes: dict[int, int]) -> Segments:
    semantic = np.zeros_like(volume)
    for name, label in classes.items():
        semantic[volume == name] = label
    return segments_from_labels(semantic, volume, (10, 11))


def _compare(true: tuple[Any, Any], predicted: tuple[Any, Any], source: str = "front3d") -> dict[Rule, Tally]:
    near, inside = np.zeros((_GRID,) * 3, np.float32), np.ones((_GRID,) * 3, np.bool_)
    return panoptic_reconstruction_quality(_truth(*true), near, segments_from_panoptic(*predicted), near, inside, source)


def _volumes() -> Iterator[Case]:
    """A cube of edge 2 is thickened to edge 4, so 64 voxels; moved by one voxel it shares 48 of 80."""
    here, there = _scene((7, 3, (4, 4, 4), 2)), _scene((1, 3, (5, 4, 4), 2))
    yield Case("3D: the same cube", _compare(here, here)["reference"][3].quality, 1.0)
    yield Case("3D: a cube one voxel away", _compare(here, there)["reference"][3].quality, 48 / 80)
    yield Case("3D: nothing predicted", _compare(here, _scene())["reference"][3].quality, 0.0)
    wrong = _compare(here, _scene((1, 5, (4, 4, 4), 2)))["reference"]
    yield Case("3D: wrong class, missed", wrong[3].fn + wrong[3].tp, 1.0)
    yield Case("3D: wrong class, class without truth not averaged", wrong.average().classes, 1.0)
    # half resolution: the cube's two voxels on an axis reach the cells 2 and 3 (max over 2n - 1 .. 2n + 1), thickened to 4: 64 cells;
    # a voxel further they still reach 2 and 3, and another one further 3 and 4: 3 of 5 cells shared on that axis
    for by, shared in ((0, 1.0), (1, 1.0), (2, 3 / 5)):
        moved = _scene((1, 3, (4 + by, 4, 4), 2))
        yield Case(f"3D at half resolution: {by} voxels away", _compare(here, moved, "matterport")["best"][3].quality, shared)


def _rules() -> Iterator[Case]:
    """A bar of 8 cubes told as 5 + 3: the published rule takes whichever comes first, the best rule the larger."""
    bar, parts = _scene(), _scene()
    for volume, cut in ((bar[0], 12), (parts[0], 9)):
        volume[4:cut, 4:6, 4:6] = 1
    parts[0][9:12, 4:6, 4:6] = 2
    bar[1][1], parts[1][1], parts[1][2] = 3, 3, 3
    first, second = (bar[0], bar[1]), parts
    turned = (parts[0], {2: 3, 1: 3})
    yield Case("order: the larger part first", _compare(first, second)["reference"][3].iou_sum, 7 / 10)
    yield Case("order: the smaller part first", _compare(first, turned)["reference"][3].iou_sum, 5 / 10)
    yield Case("order: best rule, either way", _compare(first, turned)["best"][3].iou_sum, 7 / 10)
    tallies = [_compare(first, second)["best"], _compare(first, turned)["reference"], _compare(first, first)["best"]]
    yield Case("merging in another order", float(merge(tallies) == merge(reversed(tallies))), 1.0)


def _images() -> Iterator[Case]:
    """A wall of two polygons, told as one: half of it is missed by the reference, all of it found by COCO's definition."""
    semantic = np.full((4, 10), 10, np.uint8)
    instance = np.repeat([[5, 6]], 5, axis=1).repeat(4, axis=0).astype(np.uint16)
    told = np.ones((4, 10), np.int32)
    reference = panoptic_quality(semantic, instance, told, {1: 10}, "front3d", "reference")
    coco = panoptic_quality(semantic, instance, told, {1: 10}, "front3d", "coco")
    yield Case("2D: two wall polygons told as one, reference", reference[10].fn + reference[10].fp, 3.0)
    yield Case("2D: two wall polygons told as one, COCO", coco[10].quality, 1.0)
    average = pq_averages(
        panoptic_quality(semantic, instance, instance.astype(np.int32), {5: 10, 6: 10}, "front3d", "reference"), "reference"
    )
    yield Case("2D: perfect, absent classes as 0", average["all"].quality or 0.0, 1 / 12)


def _depth() -> Iterator[Case]:
    """Depth wrong by a third in half of the pixels: gone at a limit of 0.25, kept at 0.5."""
    depth = np.full((2, 4), 3.0, np.float32)
    wrong = depth.copy()
    wrong[:, 2:] = 4.0
    error = relative_depth_error(depth, wrong)
    semantic, segments = np.full((2, 4), 3, np.uint8), np.ones((2, 4), np.int32)
    for limit, expected in ((0.5, 1.0), (0.25, 0.0)):
        tally = panoptic_quality(semantic, segments, segments, {1: 3}, "front3d", "reference", error, limit)
        yield Case(f"depth-aware PQ, limit {limit}", tally[3].quality, expected)
