"""Panoptic quality of an image (PQ = SQ x RQ), plain and depth-aware, counted two ways, each under its own name.

- ``reference``: as NvPanoptix3D counts: ground-truth walls are not merged, and only void pixels without an instance id are taken out
  of a union. Its averages run over all classes (12 without a label map), absent ones as 0.
- ``coco``: as the panoptic task of COCO defines it: every stuff class is one segment on both sides, all void pixels are taken out of a
  union, and averages run over the classes that occur.

Source: panopticapi; the 2D evaluator of NvPanoptix3D as described with the golden numbers.
"""

from collections.abc import Mapping
from typing import Any, Final, Literal

import numpy as np

from scenemill.schemas.errors import ConfigError
from scenemill.schemas.labels import BUILT_IN, LabelMap
from scenemill.trainers.metrics import Average, Tally, form_of, scaled_iou
from scenemill.trainers.overlap import Overlaps, flat_overlaps
from scenemill.trainers.segments import Array, Segments, check_shapes, like, to_numpy

PixelRule = Literal["reference", "coco"]
PIXEL_RULES: Final[tuple[PixelRule, ...]] = ("reference", "coco")
PQ_THRESHOLD: Final = 0.5
DEPTH_LIMITS: Final = (0.5, 0.25, 0.1)
"""Relative depth errors beyond which the depth-aware quality drops a pixel."""

METRICS: Final[tuple[tuple[str, PixelRule, float | None], ...]] = (
    *(("pq", rule, None) for rule in PIXEL_RULES),
    *((f"dpq_{limit:g}", "reference", limit) for limit in DEPTH_LIMITS),
)
"""What is counted of an image: metric and rule, as in the metric tables, and the depth limit."""

_DEPTH_STEPS_PER_M: Final = 256
_STUFF_2D: Final = (10, 11, 12)


def score_image(
    semantic: Array,
    instance: Array,
    depth_m: Array,
    segments: Array,
    classes: Mapping[int, int],
    told_m: Array,
    source: str,
    labels: LabelMap = BUILT_IN,
) -> tuple[dict[tuple[str, str], Tally], dict[str, float] | None]:
    """All counts of one image, and the errors of its depth.

    Args:
        semantic, instance, segments, classes, source, labels: see ``panoptic_quality``.
        depth_m: (H, W) floats, true depth in metres; at most 0 is invalid.
        told_m: (H, W) floats, predicted depth in metres.

    Returns:
        (metric, rule) -> counts, in the order of ``METRICS``; and ``depth_errors``.

    Raises:
        ConfigError: the shapes differ.
    """
    error = relative_depth_error(depth_m, told_m)
    tallies: dict[tuple[str, str], Tally] = {
        (metric, rule): panoptic_quality(semantic, instance, segments, classes, source, rule, error, limit, labels)
        for metric, rule, limit in METRICS
    }
    return tallies, depth_errors(depth_m, told_m)


def panoptic_quality(
    semantic: Array,
    instance: Array,
    segments: Array,
    classes: Mapping[int, int],
    source: str,
    rule: PixelRule,
    depth_error: Array | None = None,
    limit: float | None = None,
    labels: LabelMap = BUILT_IN,
) -> Tally:
    """Counts of one image.

    Args:
        semantic: (H, W) integers, true class ids, as they are learned; 0 is void.
        instance: (H, W) integers, true instance ids.
        segments: (H, W) integers, predicted segment ids; 0 for none.
        classes: segment id -> class id; a segment that it lacks, or of class 0, is void.
        source: whose labels they are: in Matterport3D every pixel, void ones too, counts as one of an instance.
        rule: "reference" or "coco".
        depth_error: (H, W) floats from ``relative_depth_error``; needed with ``limit``.
        limit: predicted pixels with a larger relative depth error are void; None for plain PQ.
        labels: which classes are stuff.

    Raises:
        ConfigError: shapes differ, or no such rule.
    """
    check_shapes(semantic=semantic, instance=instance, segments=segments)
    if rule not in PIXEL_RULES:
        raise ConfigError(f"rule {rule!r} is not known; use {' or '.join(PIXEL_RULES)}")
    merged = labels.stuff(_STUFF_2D) if rule == "coco" else ()
    true = _true_segments(to_numpy(semantic), to_numpy(instance), merge=merged)
    kept = to_numpy(segments)
    if limit is not None:
        if depth_error is None:
            raise ConfigError("a depth limit needs depth_error")
        kept = np.where(to_numpy(depth_error) > limit, 0, kept)
    predicted = _predicted_segments(kept, classes, merge=merged)
    void = to_numpy(semantic) == 0
    bare = void if rule == "coco" else void & (to_numpy(instance) == 0) & (form_of(source) == "front3d")
    on_void, on_bare = (
        np.bincount(predicted.index[mask].reshape(-1), minlength=len(predicted.classes) + 1)[1:] for mask in (void, bare)
    )
    return _count(flat_overlaps(true, predicted), true, predicted, on_void, on_bare)


def _true_segments(semantic: np.ndarray[Any, Any], instance: np.ndarray[Any, Any], merge: tuple[int, ...]) -> Segments:
    """Every pair of class and instance; those of merged classes are one."""
    code = semantic.astype(np.int64) * (1 << 32) + np.where(np.isin(semantic, merge), 0, instance)
    found, place = np.unique(code[semantic != 0], return_inverse=True)
    index = np.zeros(semantic.shape, np.int32)
    index[semantic != 0] = place + 1
    return Segments(index, tuple(int(value) for value in found >> 32), tuple(int(value) for value in found & 0xFFFFFFFF))


def _predicted_segments(segments: np.ndarray[Any, Any], classes: Mapping[int, int], merge: tuple[int, ...]) -> Segments:
    """The segments that have a class and a pixel; those of merged classes are one."""
    found, place = np.unique(segments, return_inverse=True)
    labels = [int(classes.get(int(name), 0)) if name > 0 else 0 for name in found]
    keys = [(label, 0 if label in merge else int(name)) for label, name in zip(labels, found, strict=True)]
    table = sorted({key for key in keys if key[0] != 0})
    number = np.array([table.index(key) + 1 if key[0] != 0 else 0 for key in keys], np.int32)
    index = number[place].reshape(segments.shape)
    return Segments(index, tuple(label for label, _ in table), tuple(name for _, name in table))


def _count(
    overlaps: Overlaps, true: Segments, predicted: Segments, on_void: np.ndarray[Any, Any], on_bare: np.ndarray[Any, Any]
) -> Tally:
    """Above an IoU of 0.5 no segment has two partners, so matching needs no order."""
    union = overlaps.true_sizes[:, None] + overlaps.predicted_sizes[None, :] - overlaps.shared - on_bare[None, :]
    same = np.asarray(true.classes, np.int64)[:, None] == np.asarray(predicted.classes, np.int64)[None, :]
    rows, columns = np.nonzero(same & (overlaps.shared > PQ_THRESHOLD * union))
    tally = Tally()
    for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
        tally.add(true.classes[row], tp=1, iou=scaled_iou(int(overlaps.shared[row, column]), int(union[row, column])))
    for row in set(range(len(true.classes))) - set(rows.tolist()):
        tally.add(true.classes[row], fn=1)
    for column in set(range(len(predicted.classes))) - set(columns.tolist()):
        if 2 * on_void[column] <= overlaps.predicted_sizes[column]:
            tally.add(predicted.classes[column], fp=1)
    return tally


def relative_depth_error(true_depth_m: Array, predicted_depth_m: Array) -> Array:
    """|predicted - true| / true in steps of 1/256 m, as the depth-aware quality takes it.

    It is 0 where the true depth is invalid, NaN too, and elsewhere infinite where the predicted one is NaN.

    Args:
        true_depth_m, predicted_depth_m: (H, W) floats, metres; at most 0 is invalid.
    """
    true, predicted = (
        np.trunc(to_numpy(depth).astype(np.float64) * _DEPTH_STEPS_PER_M) for depth in (true_depth_m, predicted_depth_m)
    )
    error = np.where(true > 0, np.abs(predicted - true) / np.maximum(true, 1), 0.0)
    return like(np.where(np.isnan(error), np.inf, error), true_depth_m)


def pq_averages(tally: Tally, rule: PixelRule, labels: LabelMap = BUILT_IN) -> dict[str, Average]:
    """All, things and stuff, averaged as the rule does; ``labels`` says which classes these are."""
    counted: Literal["all", "any"] = "all" if rule == "reference" else "any"
    groups = {"all": labels.classes, "things": labels.things(), "stuff": labels.stuff(_STUFF_2D)}
    return {name: tally.average(classes, counted=counted) for name, classes in groups.items()}


def depth_errors(true_depth_m: Array, predicted_depth_m: Array, near_m: float = 0.4, far_m: float = 6.0) -> dict[str, float] | None:
    """Errors of one image's depth over pixels whose true depth lies from ``near_m`` to ``far_m``; no reference reports these.

    Returns:
        ``pixels``, ``abs_rel``, ``rmse_m`` and ``delta_1`` (share of pixels within a factor of 1.25); None without such a pixel.

    Raises:
        ConfigError: the shapes differ.
    """
    check_shapes(true_depth_m=true_depth_m, predicted_depth_m=predicted_depth_m)
    true, predicted = (to_numpy(depth).astype(np.float64) for depth in (true_depth_m, predicted_depth_m))
    valid = (true >= near_m) & (true <= far_m)
    if not valid.any():
        return None
    true, predicted = true[valid], predicted[valid]
    ratio = np.maximum(predicted, 1e-9) / true
    return {
        "pixels": float(true.size),
        "abs_rel": float(np.mean(np.abs(predicted - true) / true)),
        "rmse_m": float(np.sqrt(np.mean((predicted - true) ** 2))),
        "delta_1": float(np.mean(np.maximum(ratio, 1 / ratio) < 1.25)),
    }
