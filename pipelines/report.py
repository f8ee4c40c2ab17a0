"""The questions one asks of metric tables every time, asked once: who leads, on which classes, on which samples it goes wrong."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
from rich.console import Console
from rich.table import Table
from rich.text import Text

from scenemill.pipelines.query import query_all
from scenemill.pipelines.results import printable
from scenemill.schemas.labels import LABELS
from scenemill.schemas.published import GROUPS, PUBLISHED

RUNS: Final = 6
"""Runs that are looked at closely: the newest of each source, metric and rule; as many as colours one can tell apart."""

WORST: Final = 10
"""Samples named of each of these runs."""

BINS: Final = 20
"""Of the histograms, over 0 to 1."""

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

_SCORES: Final = "SELECT * FROM scores ORDER BY created, run, split, rule <> 'reference', rule"
_SAMPLES: Final = """
    SELECT run, split, metric, rule, key, sum(tp) AS tp, sum(fp) AS fp, sum(fn) AS fn,
           avg(iou_sum / (tp + fp / 2 + fn / 2)) FILTER (tp + fn > 0) AS quality
    FROM counts GROUP BY ALL HAVING quality IS NOT NULL"""
_WORST: Final = f"""
    SELECT * FROM ({_SAMPLES})
    QUALIFY row_number() OVER (PARTITION BY run, split, metric, rule ORDER BY quality, key) <= {WORST}
    ORDER BY quality, key"""
_BIN: Final = f"CAST(least(floor({{value}} * {BINS}), {BINS - 1}) AS INTEGER) AS bin"
_QUALITIES: Final = f"""
    SELECT run, split, metric, rule, {_BIN.format(value="quality")}, count(*) AS number FROM ({_SAMPLES}) GROUP BY ALL"""
_MATCHES: Final = f"""
    SELECT run, split, metric, rule, {_BIN.format(value="iou_sum / tp")}, sum(tp) AS number
    FROM counts WHERE tp > 0 GROUP BY ALL"""
_DEPTHS: Final = """
    SELECT run, split, count(*) AS samples, avg(abs_rel) AS abs_rel, avg(rmse_m) AS rmse_m, avg(delta_1) AS delta_1
    FROM depths GROUP BY ALL ORDER BY run, split"""

Values = tuple[float | None, float | None, float | None]
"""Quality, segmentation, recognition: fractions."""


@dataclass(frozen=True)
class Series:
    """One run on one split, by one rule: what has one score per group.

    Attributes:
        run: id of the run.
        model: its model.
        source: the data set.
        split: part of it; "" where a published result does not say.
        metric: a key of ``MEASURES``.
        rule: how segments were matched.
        samples: how many; None for published results.
        published: True for what others measured.
        origin: where the numbers come from.
        created: when they were made.
        groups: group or class name -> values.
    """

    run: str
    model: str
    source: str
    split: str
    metric: str
    rule: str
    samples: int | None
    published: bool
    origin: str
    created: datetime
    groups: Mapping[str, Values]


@dataclass(frozen=True)
class Board:
    """The leaderboard of one source and metric: published results first, then ours by time."""

    source: str
    metric: str
    series: tuple[Series, ...]


@dataclass(frozen=True)
class Worst:
    """One of a run's worst samples, with the segments of all its classes."""

    key: str
    quality: float
    tp: int
    fp: int
    fn: int


@dataclass(frozen=True)
class Study:
    """A closer look at our newest runs on one source by one metric and rule; all tuples but ``classes`` run parallel to ``series``.

    Attributes:
        source: the data set.
        metric: a key of ``MEASURES``.
        rule: how segments were matched.
        series: the runs, newest first.
        older: how many runs were left out.
        classes: classes that any of them has a score for, in the order of the labels.
        worst: the samples of lowest quality.
        qualities: samples in each of ``BINS`` bins of quality.
        matches: matched pairs in each of ``BINS`` bins of their IoU, which is averaged over the pairs of one class in one sample.
    """

    source: str
    metric: str
    rule: str
    series: tuple[Series, ...]
    older: int
    classes: tuple[str, ...]
    worst: tuple[tuple[Worst, ...], ...]
    qualities: tuple[tuple[int, ...], ...]
    matches: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Depth:
    """Mean errors of depth of one run on one split."""

    run: str
    split: str
    samples: int
    abs_rel: float
    rmse_m: float
    delta_1: float


@dataclass(frozen=True)
class Report:
    """What the metric tables of a folder say."""

    folder: Path
    boards: tuple[Board, ...]
    studies: tuple[Study, ...]
    depths: tuple[Depth, ...]

    @property
    def runs(self) -> int:
        """How many runs are ours."""
        return len({series.run for board in self.boards for series in board.series if not series.published})


def report(folder: Path) -> Report:
    """Ask the tables of a folder everything a report tells.

    Raises:
        NotPublished: no tables there.
    """
    scores, worst, qualities, matches, depths = query_all(folder, [_SCORES, _WORST, _QUALITIES, _MATCHES, _DEPTHS])
    series = _series(scores.to_pylist())
    samples = _by_series(worst)
    bins = _by_series(qualities), _by_series(matches)
    return Report(
        folder,
        tuple(_boards(series)),
        tuple(_study(kind, found, samples, *bins) for kind, found in _kinds(series).items()),
        tuple(Depth(**row) for row in depths.to_pylist()),
    )


_Key = tuple[str, str, str, str]
_Rows = Mapping[_Key, list[dict[str, Any]]]


def _key(row: Mapping[str, Any]) -> _Key:
    return row["run"], row["split"], row["metric"], row["rule"]


def _by_series(table: pa.Table) -> _Rows:
    rows: dict[_Key, list[dict[str, Any]]] = defaultdict(list)
    for row in table.to_pylist():
        rows[_key(row)].append(row)
    return rows


def _series(rows: Iterable[Mapping[str, Any]]) -> list[Series]:
    """Rows of scores, gathered; in the order of the rows."""
    gathered: dict[tuple[str, _Key], list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        gathered[row["source"], _key(row)].append(row)
    told = ("run", "model", "source", "split", "metric", "rule", "samples", "published", "origin", "created")
    return [
        Series(
            **{name: one[0][name] for name in told},
            groups={row["group"]: (row["quality"], row["segmentation"], row["recognition"]) for row in one},
        )
        for one in gathered.values()
    ]


def _boards(series: list[Series]) -> Iterable[Board]:
    kinds: dict[tuple[str, str], list[Series]] = defaultdict(list)
    for one in series:
        kinds[one.source, one.metric].append(one)
    order = {result.run: place for place, result in enumerate(PUBLISHED)}
    for (source, metric), found in sorted(kinds.items(), key=lambda item: (item[0][0], _place(item[0][1]))):
        yield Board(source, metric, tuple(sorted(found, key=lambda one: order.get(one.run, len(order)))))


def _kinds(series: list[Series]) -> dict[tuple[str, str, str], list[Series]]:
    """Our runs by source, metric and rule, newest first: PRQ before PQ, and the rule of the reference before others."""
    kinds: dict[tuple[str, str, str], list[Series]] = defaultdict(list)
    for one in reversed(series):
        if not one.published:
            kinds[one.source, one.metric, one.rule].append(one)
    return dict(sorted(kinds.items(), key=lambda item: (item[0][0], _place(item[0][1]), item[0][2] != "reference", item[0])))


def _place(metric: str) -> tuple[int, str]:
    """Where a metric stands in a report."""
    return (list(MEASURES).index(metric) if metric in MEASURES else len(MEASURES), metric)


def _study(kind: tuple[str, str, str], found: list[Series], worst: _Rows, qualities: _Rows, matches: _Rows) -> Study:
    series = tuple(found[:RUNS])
    keys = [(one.run, one.split, one.metric, one.rule) for one in series]
    return Study(
        *kind,
        series,
        len(found) - len(series),
        _classes(series),
        tuple(
            tuple(Worst(row["key"], row["quality"], int(row["tp"]), int(row["fp"]), int(row["fn"])) for row in worst.get(key, ()))
            for key in keys
        ),
        tuple(_bins(qualities.get(key, ())) for key in keys),
        tuple(_bins(matches.get(key, ())) for key in keys),
    )


def _classes(series: Iterable[Series]) -> tuple[str, ...]:
    order = {label.name: label.id for label in LABELS}
    named = {name for one in series for name, values in one.groups.items() if name not in GROUPS and values[0] is not None}
    return tuple(sorted(named, key=lambda name: (order.get(name, len(order)), name)))


def _bins(rows: Iterable[Mapping[str, Any]]) -> tuple[int, ...]:
    numbers = [0] * BINS
    for row in rows:
        numbers[row["bin"]] = int(row["number"])
    return tuple(numbers)


def percent(value: float | None) -> str:
    """A fraction as the published tables write it.

    >>> percent(0.5432), percent(None)
    ('54.32', '–')
    """
    return "–" if value is None else f"{100 * value:.2f}"


def describe(series: Series) -> str:
    """What one must know of a series to compare it: where published, or run, split, rule and number of samples."""
    split = f"split {series.split}" if series.split else "split not stated"
    if series.published:
        return f"published, {split}: {printable(series.origin)}"
    return f"{printable(series.run)}, {printable(split)}, rule {printable(series.rule)}, {series.samples or 0} samples"


def title(source: str, metric: str) -> str:
    """A heading for one source and metric."""
    return f"{printable(NAMES.get(source, source))}, {measures(metric)[0]}"


def measures(metric: str) -> tuple[str, str, str]:
    """What quality, segmentation and recognition are called in one metric."""
    return MEASURES.get(metric, (printable(metric), "segmentation", "recognition"))


def print_report(console: Console, told: Report) -> None:
    """The leaderboards, errors of depth, and the worst samples of the newest run on each source and metric."""
    for board in told.boards:
        console.print(Text(f"\n{title(board.source, board.metric)}, in percent", style="bold"))
        console.print(_drawn(board))
    if told.depths:
        console.print(Text("\nDepth, means over samples", style="bold"))
        console.print(_drawn_depths(told.depths))
    for study in {(study.source, study.metric): study for study in reversed(told.studies)}.values():
        _print_worst(console, study)
    if not told.runs:
        console.print("\nNo runs of our own yet: only what others published.")


def _drawn(board: Board) -> Table:
    drawn = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    drawn.add_column("model", overflow="fold", min_width=16)
    for name in measures(board.metric):
        for group in GROUPS:
            drawn.add_column(f"{name}\n{group}", justify="right", no_wrap=True)
    for one in board.series:
        values = [percent(one.groups.get(group, (None, None, None))[place]) for place in range(3) for group in GROUPS]
        drawn.add_row(Text.assemble((printable(one.model), "bold"), "\n", (describe(one), "dim")), *values)
    return drawn


def _drawn_depths(depths: Iterable[Depth]) -> Table:
    drawn = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    drawn.add_column("run", overflow="fold")
    drawn.add_column("split")
    for name in ("samples", "abs rel", "RMSE, m", "delta < 1.25"):
        drawn.add_column(name, justify="right", no_wrap=True)
    for depth in depths:
        names = Text(printable(depth.run)), Text(printable(depth.split))
        drawn.add_row(*names, str(depth.samples), f"{depth.abs_rel:.4f}", f"{depth.rmse_m:.4f}", percent(depth.delta_1))
    return drawn


def _print_worst(console: Console, study: Study) -> None:
    if not study.worst[0]:
        return
    newest = study.series[0]
    heading = f"\nWorst samples of {printable(newest.model)}, {describe(newest)}: {title(study.source, study.metric)}"
    console.print(Text(heading, style="bold"))
    drawn = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    drawn.add_column("sample", overflow="fold")
    for name in (measures(study.metric)[0], "matched", "invented", "missed"):
        drawn.add_column(name, justify="right", no_wrap=True)
    for sample in study.worst[0]:
        drawn.add_row(Text(printable(sample.key)), percent(sample.quality), str(sample.tp), str(sample.fp), str(sample.fn))
    console.print(drawn)
