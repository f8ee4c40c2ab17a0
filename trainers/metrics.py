"""Panoptic reconstruction quality (PRQ = RSQ x RRQ) and panoptic quality: match segments, count, merge, reduce.

Two matching rules, and no number without the name of its rule:

- ``reference``: as published: ground-truth segments in table order take the first prediction of their class above the threshold.
  Below an IoU of 0.5 several may qualify, so the result depends on the order of both tables.
- ``best``: the matching of greatest total IoU among pairs of one class above the threshold; no order matters.

Counts are whole numbers, sums of IoU too (in units of 2**-40), so any split of the samples over workers gives the same totals.
Source: Uni-3D's evaluator, to which NvPanoptix3D's, BUOL's and Dahnert's agree on equal masks.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np

from scenemill.schemas.errors import ConfigError
from scenemill.trainers.overlap import Overlaps, surface_overlaps
from scenemill.trainers.segments import Array, Segments

Rule = Literal["reference", "best"]
RULES: Final[tuple[Rule, ...]] = ("reference", "best")
PRQ_THRESHOLD: Final = 0.25
THINGS: Final = tuple(range(1, 10))
STUFF: Final = {"front3d": (10, 11), "matterport": (10, 11, 12)}

_UNIT: Final = 1 << 40
_CLASSES: Final = 256
_IOU, _TP, _FP, _FN = range(4)


def form_of(source: str) -> str:
    """The settings a source is measured by: those of 3D-Front, or of Matterport3D."""
    return "matterport" if source == "matterport" else "front3d"


@dataclass(frozen=True)
class SurfaceRule:
    """Which voxels of segments the 3D metric compares.

    Attributes:
        iso: a true surface is closer than this, voxels (``dataset.iso_value``).
        iso_predicted: a predicted surface is closer than this (``model.frustum3d.iso_recon_value``).
        factor: the grid is coarser by this (``dataset.downsample_factor``).
    """

    iso: float
    iso_predicted: float
    factor: int

    def __str__(self) -> str:
        return f"iso {self.iso:g} and {self.iso_predicted:g}, grid / {self.factor}"


PUBLISHED: Final = {"front3d": SurfaceRule(1.0, 1.0, 1), "matterport": SurfaceRule(2.0, 2.0, 2)}
"""By the form of the source: what the published numbers were counted by."""


@dataclass(frozen=True)
class ClassCounts:
    """What was counted of one class.

    Attributes:
        tp, fp, fn: matched pairs, unmatched predictions, unmatched ground-truth segments.
        iou_sum: sum of the IoU of the matched pairs.
    """

    tp: int
    fp: int
    fn: int
    iou_sum: float

    @property
    def segmentation(self) -> float:
        """RSQ or SQ: mean IoU of the matched pairs; 0 without one."""
        return self.iou_sum / self.tp if self.tp else 0.0

    @property
    def recognition(self) -> float:
        """RRQ or RQ: TP / (TP + FP/2 + FN/2); 0 without a segment."""
        return self.tp / (self.tp + self.fp / 2 + self.fn / 2) if self.tp + self.fp + self.fn else 0.0

    @property
    def quality(self) -> float:
        """PRQ or PQ: segmentation times recognition."""
        return self.iou_sum / (self.tp + self.fp / 2 + self.fn / 2) if self.tp + self.fp + self.fn else 0.0


@dataclass(frozen=True)
class Average:
    """Unweighted means over classes; None where no class counts.

    Attributes:
        quality, segmentation, recognition: fractions.
        classes: how many were averaged.
    """

    quality: float | None
    segmentation: float | None
    recognition: float | None
    classes: int


class Tally:
    """Counts per class that add up: over samples, workers and machines, in any order, to the same totals to the bit.

    Attributes:
        array: (256, 4) int64: sum of IoU in units of 2**-40, TP, FP, FN, by class id. ``torch.distributed`` may sum it as it is.
    """

    def __init__(self, array: np.ndarray[Any, np.dtype[np.int64]] | None = None) -> None:
        self.array = np.zeros((_CLASSES, 4), np.int64) if array is None else array

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(self.array + other.array)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tally) and bool(np.array_equal(self.array, other.array))

    __hash__ = None  # type: ignore[assignment]  # holds an array

    def __repr__(self) -> str:
        return f"Tally({ {label: self[label] for label in self.classes} })"

    def __getitem__(self, label: int) -> ClassCounts:
        iou, tp, fp, fn = (int(value) for value in self.array[label])
        return ClassCounts(tp, fp, fn, iou / _UNIT)

    @property
    def classes(self) -> tuple[int, ...]:
        """Ids of the classes with a segment on either side."""
        return tuple(int(label) for label in np.flatnonzero(self.array[:, _TP:].sum(axis=1)))

    @property
    def true_classes(self) -> tuple[int, ...]:
        """Ids of the classes with a ground-truth segment."""
        return tuple(int(label) for label in np.flatnonzero(self.array[:, _TP] + self.array[:, _FN]))

    def add(self, label: int, *, tp: int = 0, fp: int = 0, fn: int = 0, iou: int = 0) -> None:
        """Count segments of a class; ``iou`` as ``scaled_iou`` gives it.

        Raises:
            ConfigError: a class id that is none.
        """
        if not 0 <= label < _CLASSES:
            raise ConfigError(f"class id {label}; class ids are 0 to {_CLASSES - 1}")
        self.array[label] += (iou, tp, fp, fn)

    def average(self, classes: Iterable[int] | None = None, counted: Literal["true", "any", "all"] = "true") -> Average:
        """Mean over classes.

        Args:
            classes: ids to average over; None for all.
            counted: which of them: "true" those with ground truth (PRQ), "any" those with a segment on either side (COCO), "all" even
                those without one, as 0 (the 2D reference).

        Returns:
            The means, None each where no class is left.
        """
        present = {"true": self.true_classes, "any": self.classes, "all": range(_CLASSES)}[counted]
        labels = sorted(set(present if classes is None else classes) & set(present))
        if not labels:
            return Average(None, None, None, 0)
        counts = [self[label] for label in labels]
        quality, segmentation, recognition = (
            float(np.mean([getattr(count, name) for count in counts])) for name in ("quality", "segmentation", "recognition")
        )
        return Average(quality, segmentation, recognition, len(labels))


def merge(tallies: Iterable[Tally]) -> Tally:
    """The sum of many."""
    return sum(tallies, Tally())


def tally_matches(overlaps: Overlaps, true: Segments, predicted: Segments, rule: Rule, threshold: float) -> Tally:
    """Match segments of one class whose IoU exceeds ``threshold``, and count.

    Args:
        overlaps: of the two.
        true, predicted: in table order.
        rule: "reference" or "best".
        threshold: IoU that a match must exceed.

    Raises:
        ConfigError: no such rule.
    """
    if rule not in RULES:
        raise ConfigError(f"rule {rule!r} is not known; use {' or '.join(RULES)}")
    iou = overlaps.iou()
    same = np.asarray(true.classes, np.int64)[:, None] == np.asarray(predicted.classes, np.int64)[None, :]
    fits = same & (iou > threshold)
    pairs = _first_come(fits) if rule == "reference" else _best(np.where(fits, iou, 0.0))
    tally = Tally()
    for row, column in pairs:
        union = int(overlaps.true_sizes[row] + overlaps.predicted_sizes[column] - overlaps.shared[row, column])
        tally.add(true.classes[row], tp=1, iou=scaled_iou(int(overlaps.shared[row, column]), union))
    matched_rows, matched_columns = {row for row, _ in pairs}, {column for _, column in pairs}
    for row, label in enumerate(true.classes):
        tally.add(label, fn=int(row not in matched_rows))
    for column, label in enumerate(predicted.classes):
        tally.add(label, fp=int(column not in matched_columns))
    return tally


def scaled_iou(shared: int, union: int) -> int:
    """An IoU in units of 2**-40, rounded: whole numbers add up the same in any order."""
    return (2 * shared * _UNIT + union) // (2 * union)


def _first_come(fits: np.ndarray[Any, np.dtype[np.bool_]]) -> list[tuple[int, int]]:
    taken: set[int] = set()
    pairs = []
    for row, columns in enumerate(fits):
        free = next((int(column) for column in np.flatnonzero(columns) if int(column) not in taken), None)
        if free is not None:
            taken.add(free)
            pairs.append((row, free))
    return pairs


def _best(weight: np.ndarray[Any, np.dtype[np.float64]]) -> list[tuple[int, int]]:
    if not weight.any():
        return []
    from scipy.optimize import linear_sum_assignment  # only this rule needs it

    rows, columns = linear_sum_assignment(weight, maximize=True)
    return [(int(row), int(column)) for row, column in zip(rows, columns, strict=True) if weight[row, column] > 0]


def panoptic_reconstruction_quality(
    true: Segments,
    true_distance: Array,
    predicted: Segments,
    predicted_distance: Array,
    frustum: Array,
    source: str,
    rules: Sequence[Rule] = RULES,
    surface: SurfaceRule | None = None,
) -> dict[Rule, Tally]:
    """Counts of one sample for PRQ, RSQ and RRQ, by rule.

    Args:
        true, predicted: segments of (X, Y, Z) volumes, image-aligned.
        true_distance, predicted_distance: (X, Y, Z) floats, voxels.
        frustum: (X, Y, Z) bool, True inside.
        source: whose settings to use: surface within 1 voxel at full resolution for 3D-Front and its form, 2 voxels at half of it
            for Matterport3D.
        rules: which.
        surface: other settings than those.

    Raises:
        ConfigError: the shapes differ.
    """
    held = surface or PUBLISHED[form_of(source)]
    overlaps = surface_overlaps(
        true, true_distance, predicted, predicted_distance, frustum, held.iso, held.factor, iso_predicted=held.iso_predicted
    )
    return {rule: tally_matches(overlaps, true, predicted, rule, PRQ_THRESHOLD) for rule in rules}
