"""Panoptic quality of images against sets of pixels, a pair of segments at a time."""

from collections import defaultdict
from collections.abc import Iterable, Mapping

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from scenemill.trainers.metrics import Tally
from scenemill.trainers.panoptic import PixelRule, panoptic_quality, relative_depth_error

Name = tuple[int, int]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

VOID = 0
STUFF = (10, 11, 12)
SIZES = ((1, 1), (1, 6), (4, 5), (7, 8))


def image(seed: int) -> tuple[Ints, Ints, Ints, dict[int, int], Floats, Floats]:
    """Few true classes and instances in patches, predicted segments near them, of the right class or any, and two depths.

    Things and stuff may share an instance id; classes, segments and depths may be missing on either side.
    """
    rng = np.random.default_rng(seed)
    height, width = SIZES[rng.integers(len(SIZES))]

    def patches(names: int) -> Ints:
        coarse = rng.integers(0, names, (height // 2 + 1, width // 2 + 1))
        return coarse.repeat(2, axis=0).repeat(2, axis=1)[:height, :width]

    parts = patches(4)
    labels = np.append(rng.choice([VOID, 3, 10], 2), rng.integers(0, 13, 2))
    semantic, instance = labels[parts] * int(rng.random() > 0.1), patches(3) * rng.choice([0, 1, 70_000])
    segments = np.where(rng.random((height, width)) < rng.choice([0.0, 0.1, 0.4]), patches(9), 2 * parts + instance % 2)
    classes = {}
    for name in range(1, 9):
        inside = semantic[segments == name]
        classes[name] = int(inside[0]) if len(inside) and rng.random() < 0.8 else int(rng.integers(0, 13))
    classes.pop(int(rng.integers(1, 9)))
    depth_m = rng.choice([0.0, 0.001, 1.0, 2.5], (height, width), p=[0.1, 0.1, 0.4, 0.4])
    return semantic, instance, segments, classes, depth_m, depth_m * rng.choice([1.0, 1.06, 0.75, 1.5, 3.0], (height, width))


def expected(true: Ints, told: Ints, rule: PixelRule) -> dict[int, list[float]]:
    """Per class the sum of IoU, TP, FP and FN, where pixels are (class, id) pairs, flat: (n, 2) and (n, 2)."""
    sides: tuple[defaultdict[Name, set[int]], ...] = (defaultdict(set), defaultdict(set))
    for side, names in zip(sides, (true, told), strict=True):
        for pixel, (label, name) in enumerate(names.tolist()):
            side[label, 0 if label == VOID or (rule == "coco" and label in STUFF) else name].add(pixel)
    void = {pixel for pixel, (label, _) in enumerate(true.tolist()) if label == VOID}
    bare = void if rule == "coco" else {pixel for pixel in void if true[pixel, 1] == 0}
    counts: defaultdict[int, list[float]] = defaultdict(lambda: [0.0, 0, 0, 0])
    matched: set[tuple[int, Name]] = set()
    for (label, name), pixels in sides[0].items():
        for other, covered in sides[1].items():
            shared, union = len(pixels & covered), len((pixels | covered) - (bare & covered))
            if label == other[0] != VOID and 2 * shared > union:
                counts[label][0] += shared / union
                counts[label][1] += 1
                matched |= {(0, (label, name)), (1, other)}
    for number, side in enumerate(sides):
        for segment, pixels in side.items():
            forgiven = number == 1 and 2 * len(pixels & void) > len(pixels)
            if segment[0] != VOID and (number, segment) not in matched and not forgiven:
                counts[segment[0]][3 - number] += 1
    return dict(counts)


def pairs(labels: Iterable[int], names: Iterable[int]) -> Ints:
    return np.array([*zip(labels, names, strict=True)], np.int64).reshape(-1, 2)


def predicted(segments: Ints, classes: Mapping[int, int], wrong: NDArray[np.bool_]) -> Ints:
    kept = np.where(wrong, 0, segments).reshape(-1).tolist()
    return pairs((classes.get(name, VOID) for name in kept), kept)


def same(tally: Tally, counts: dict[int, list[float]]) -> None:
    assert set(tally.classes) == set(counts)
    for label, (iou_sum, *wanted) in counts.items():
        held = tally[label]
        assert [held.tp, held.fp, held.fn] == wanted
        assert held.iou_sum == pytest.approx(iou_sum, abs=1e-9)


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 10**6), source=st.sampled_from(["front3d", "matterport"]))
@example(seed=0, source="front3d")
def test_images_are_counted_as_sets_of_pixels_are(seed: int, source: str) -> None:
    semantic, instance, segments, classes, depth_m, told_m = image(seed)
    # in Matterport3D the ids are ranks, from 1
    ids = 1 + np.unique(instance, return_inverse=True)[1].reshape(instance.shape) if source == "matterport" else instance
    true = pairs(semantic.reshape(-1).tolist(), ids.reshape(-1).tolist())
    nowhere = np.zeros(segments.shape, np.bool_)
    rules: tuple[PixelRule, ...] = ("reference", "coco")
    for rule in rules:
        tally = panoptic_quality(semantic, instance, segments, classes, source, rule)
        same(tally, expected(true, predicted(segments, classes, nowhere), rule))
    steps, told_steps = ((256 * depth).astype(np.int64) for depth in (depth_m, told_m))
    for limit in (0.5, 0.25, 0.1):
        wrong = (steps > 0) & (abs(told_steps - steps) > limit * steps)
        tally = panoptic_quality(
            semantic, instance, segments, classes, source, "reference", relative_depth_error(depth_m, told_m), limit
        )
        same(tally, expected(true, predicted(segments, classes, wrong), "reference"))
