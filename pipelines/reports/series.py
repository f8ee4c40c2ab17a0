"""Scores as series, one for each run and rule; the checkpoints of one training as a curve; and what all of it is called."""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from scenemill.pipelines.reports.results import printable
from scenemill.schemas.published import GROUPS

MEASURES: Final[Mapping[str, tuple[str, str, str]]] = {
    "prq": ("PRQ", "RSQ", "RRQ"),
    "pq": ("PQ", "SQ", "RQ"),
    "dpq_mean": ("DPQ", "SQ", "RQ"),
    "dpq_0.5": ("DPQ 0.5", "SQ", "RQ"),
    "dpq_0.25": ("DPQ 0.25", "SQ", "RQ"),
    "dpq_0.1": ("DPQ 0.1", "SQ", "RQ"),
}
"""Metric -> what its quality, segmentation and recognition are called, in the order of a report."""

NAMES: Final[Mapping[str, str]] = {"front3d": "3D-Front", "matterport": "Matterport3D"}

Values = tuple[float | None, float | None, float | None]
"""Quality, segmentation, recognition: fractions."""

Key = tuple[str, str, str, str]
"""Run, split, metric and rule."""


@dataclass(frozen=True)
class Series:
    """One run on one split, by one rule: what has one score per group.

    Attributes:
        run: id of the run.
        model: its model.
        source: the data set.
        split: part of it; "" where a published result does not say.
        store_version: what version of the store.
        metric: a key of ``MEASURES``.
        rule: how segments were matched.
        samples: how many; None for published results.
        published: True for what others measured.
        origin: where the numbers come from.
        created: when they were made.
        training: folder of the checkpoint; None where no checkpoint is known.
        settings: tells apart evaluations of one checkpoint under several settings.
        epoch, step: of the checkpoint in its training; None where it does not say.
        groups: group or class name -> values.
        note: what it is among the checkpoints of its training; "" for one that stands alone.
    """

    run: str
    model: str
    source: str
    split: str
    store_version: str
    metric: str
    rule: str
    samples: int | None
    published: bool
    origin: str
    created: datetime
    training: str | None
    settings: str | None
    epoch: int | None
    step: int | None
    groups: Mapping[str, Values]
    note: str = ""

    @property
    def key(self) -> Key:
        """What tells it apart within its source."""
        return self.run, self.split, self.metric, self.rule

    @property
    def kin(self) -> Hashable:
        """The same for checkpoints of one training that were evaluated alike; for all else the run itself."""
        if self.training is None or (self.epoch is None and self.step is None):
            return self.source, self.split, self.run
        return self.source, self.split, self.store_version, self.training, self.settings

    @property
    def point(self) -> tuple[int, int]:
        """Epoch and step, of which -1 stands for one that is not known: what a training is ordered by."""
        return tuple(-1 if value is None else value for value in (self.epoch, self.step))  # type: ignore[return-value]  # two

    def quality(self, group: str) -> float | None:
        """Of a group or class; None where it has none."""
        return self.groups.get(group, (None, None, None))[0]


def key_of(row: Mapping[str, Any]) -> Key:
    """The key of the series that a row of any table speaks of."""
    return row["run"], row["split"], row["metric"], row["rule"]


def gather(rows: Iterable[Mapping[str, Any]]) -> list[Series]:
    """Rows of the scores table as series, in the order of the rows."""
    gathered: dict[tuple[str, Key], list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        gathered[row["source"], key_of(row)].append(row)
    told = [name for name in Series.__dataclass_fields__ if name not in ("groups", "note")]
    return [
        Series(
            **{name: one[0][name] for name in told},
            groups={row["group"]: (row["quality"], row["segmentation"], row["recognition"]) for row in one},
        )
        for one in gathered.values()
    ]


def fold(series: Sequence[Series]) -> list[Series]:
    """Of each training the best and the last checkpoint alone, with a note of what was left out; all else as it is.

    Args:
        series: from the oldest; of runs of one checkpoint the newest counts.
    """
    same: dict[Hashable, list[Series]] = defaultdict(list)
    for one in series:
        same[one.kin, one.metric, one.rule].append(one)
    ends = {(one.source, one.key): one for alike in same.values() for one in _ends(alike)}
    return [ends[one.source, one.key] for one in series if (one.source, one.key) in ends]


def _ends(alike: list[Series]) -> list[Series]:
    """The best and the last of the checkpoints of a training, as one where they are the same."""
    if len(alike) == 1:
        return alike
    points = _newest(alike)
    if len(points) == 1:
        return [replace(points[0], note=f"newest of {len(alike)} runs of this checkpoint")]
    best, last = max(points, key=_rank), points[-1]
    left = len(alike) - (1 if best is last else 2)
    more = f"; {left} more run{'' if left == 1 else 's'} left out" if left else ""
    if best is last:
        return [replace(last, note=f"best and last of {len(points)} checkpoints{more}")]
    return [
        replace(best, note=f"best of {len(points)} checkpoints"),
        replace(last, note=f"last of {len(points)} checkpoints{more}"),
    ]


def _newest(alike: Iterable[Series]) -> list[Series]:
    """The newest run of each checkpoint, in the order of training."""
    points = {one.point: one for one in alike}
    return [points[place] for place in sorted(points)]


def _rank(one: Series) -> float:
    quality = one.quality("all")
    return -1.0 if quality is None else quality


@dataclass(frozen=True)
class Curve:
    """Quality over the checkpoints of a training, by one metric and rule.

    Attributes:
        metric: a key of ``MEASURES``.
        rule: how segments were matched.
        qualities: group -> a fraction for each checkpoint; None where it has none.
    """

    metric: str
    rule: str
    qualities: Mapping[str, tuple[float | None, ...]]

    def best(self, group: str) -> int | None:
        """Index of the checkpoint of highest quality, the first of equals; None where none has a quality."""
        ranks = [-1.0 if value is None else value for value in self.qualities[group]]
        best = max(range(len(ranks)), key=ranks.__getitem__)
        return None if self.qualities[group][best] is None else best


@dataclass(frozen=True)
class Lineage:
    """Several checkpoints of one training, evaluated alike.

    Attributes:
        source, split: on what.
        name: the model's, if it is one for all checkpoints, and the end of the training's folder.
        training: that folder.
        epochs, steps: of each checkpoint, in order; None where it does not say.
        curves: by metric and rule.
    """

    source: str
    split: str
    name: str
    training: str
    epochs: tuple[int | None, ...]
    steps: tuple[int | None, ...]
    curves: tuple[Curve, ...]

    @property
    def unit(self) -> str:
        """What checkpoints are counted in: "step", or "epoch" where a step is not known."""
        return "epoch" if None in self.steps else "step"

    @property
    def places(self) -> tuple[int, ...]:
        """Of the checkpoints, in ``unit``."""
        counted = self.epochs if self.unit == "epoch" else self.steps
        return tuple(-1 if value is None else value for value in counted)


def lineages(series: Iterable[Series]) -> tuple[Lineage, ...]:
    """The trainings of which several checkpoints were evaluated, by source and age.

    Args:
        series: from the oldest; of runs of one checkpoint the newest counts.
    """
    alike: dict[Hashable, list[Series]] = defaultdict(list)
    for one in series:
        alike[one.kin].append(one)
    found = [_lineage(same) for same in alike.values() if len({one.point for one in same}) > 1]
    return tuple(sorted(found, key=lambda one: one.source))


def _lineage(same: Sequence[Series]) -> Lineage:
    points = _newest(same)
    kinds = sorted({(one.metric, one.rule) for one in same}, key=lambda kind: order_of(*kind))
    models = {one.model for one in same}
    training = points[0].training or ""
    end = "/".join(Path(training).parts[-2:])
    return Lineage(
        points[0].source,
        points[0].split,
        f"{models.pop()} in {end}" if len(models) == 1 else end,
        training,
        tuple(one.epoch for one in points),
        tuple(one.step for one in points),
        tuple(_curve(same, kind, [one.point for one in points]) for kind in kinds),
    )


def _curve(same: Iterable[Series], kind: tuple[str, str], places: Iterable[tuple[int, int]]) -> Curve:
    held = {one.point: one for one in same if (one.metric, one.rule) == kind}
    points = [held.get(place) for place in places]
    return Curve(*kind, {group: tuple(point.quality(group) if point else None for point in points) for group in GROUPS})


def order_of(metric: str, rule: str) -> tuple[int, str, bool, str]:
    """Where a metric and rule stand in a report: PRQ before PQ, and the rule of the reference before others."""
    place = list(MEASURES).index(metric) if metric in MEASURES else len(MEASURES)
    return place, metric, rule != "reference", rule


def percent(value: float | None) -> str:
    """A fraction as the published tables write it.

    >>> percent(0.5432), percent(None)
    ('54.32', '–')
    """
    return "–" if value is None else f"{100 * value:.2f}"


def describe(series: Series) -> str:
    """What one must know of a series to compare it: where published, or run, split, rule, number of samples and checkpoint."""
    split = f"split {series.split}" if series.split else "split not stated"
    if series.published:
        return f"published, {split}: {printable(series.origin)}"
    return f"{printable(series.run)}, {printable(split)}, rule {printable(series.rule)}, {series.samples or 0} samples" + place_of(
        series
    )


def place_of(series: Series) -> str:
    """Where a series stands in its training, to be added to what it is; "" where that is not known."""
    said = [f", {name} {value}" for name, value in (("epoch", series.epoch), ("step", series.step)) if value is not None]
    return "".join(said) + (f" ({series.note})" if series.note else "")


def starred(curve: Curve, group: str, place: int) -> str:
    """The quality of one checkpoint in percent; a star before the best."""
    return ("*" if place == curve.best(group) else "") + percent(curve.qualities[group][place])


def title(source: str, metric: str = "") -> str:
    """A heading for one source, and one metric of it."""
    named = printable(NAMES.get(source, source))
    return f"{named}, {measures(metric)[0]}" if metric else named


def measures(metric: str) -> tuple[str, str, str]:
    """What quality, segmentation and recognition are called in one metric."""
    return MEASURES.get(metric, (printable(metric), "segmentation", "recognition"))
