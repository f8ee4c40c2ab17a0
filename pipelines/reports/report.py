"""The questions one asks of metric tables every time, asked once: who leads, how trainings went, on what they go wrong."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from scenemill.pipelines.query import query_all
from scenemill.pipelines.reports.series import Key, Lineage, Series, fold, gather, key_of, lineages, order_of, percent
from scenemill.schemas.labels import LABELS
from scenemill.schemas.places import Place
from scenemill.schemas.published import GROUPS, PUBLISHED

RUNS: Final = 6
"""Runs that are looked at closely: the newest of each source, metric and rule; as many as colours one can tell apart."""

WORST: Final = 10
"""Samples named of each of these runs."""

BINS: Final = 20
"""Of the histograms, over 0 to 1."""

_SCORES: Final = "SELECT * FROM scores ORDER BY created, run, split, rule <> 'reference', rule"
_FITS: Final = """
    SELECT run, model, template, fits.views, epochs, avg(mask_iou) AS mask_iou, avg(psnr_db) AS psnr_db, avg(ssim) AS ssim, chamfer, seconds
    FROM fits JOIN renders USING (run)
    JOIN (SELECT run, min(model) AS model, min(created) AS created FROM scores GROUP BY run) USING (run)
    GROUP BY ALL ORDER BY min(created), run"""
_OF_RUNS: Final = """
    JOIN (SELECT DISTINCT run, split AS scored FROM scores) AS runs USING (run)
    WHERE scored IN (split, 'all')"""
"""What a run has scores of: one split, or all samples, of which every row tells its own."""

_SAMPLES: Final = f"""
    SELECT run, scored AS split, metric, rule, key, sum(tp) AS tp, sum(fp) AS fp, sum(fn) AS fn,
           avg(iou_sum / (tp + fp / 2 + fn / 2)) FILTER (tp + fn > 0) AS quality
    FROM counts {_OF_RUNS} GROUP BY ALL HAVING quality IS NOT NULL"""
_WORST: Final = f"""
    SELECT * FROM ({_SAMPLES})
    QUALIFY row_number() OVER (PARTITION BY run, split, metric, rule ORDER BY quality, key) <= {WORST}
    ORDER BY quality, key"""
_BIN: Final = f"CAST(least(floor({{value}} * {BINS}), {BINS - 1}) AS INTEGER) AS bin"
_QUALITIES: Final = f"""
    SELECT run, split, metric, rule, {_BIN.format(value="quality")}, count(*) AS number FROM ({_SAMPLES}) GROUP BY ALL"""
_MATCHES: Final = f"""
    SELECT run, scored AS split, metric, rule, {_BIN.format(value="iou_sum / tp")}, sum(tp) AS number
    FROM counts {_OF_RUNS} AND tp > 0 GROUP BY ALL"""
_DEPTHS: Final = f"""
    SELECT run, scored AS split, count(*) AS samples, avg(abs_rel) AS abs_rel, avg(rmse_m) AS rmse_m, avg(delta_1) AS delta_1
    FROM depths {_OF_RUNS} GROUP BY ALL ORDER BY run, scored"""


@dataclass(frozen=True)
class Board:
    """The leaderboard of one source and metric: published results first, then ours by time, of each training the best and the last."""

    source: str
    metric: str
    series: tuple[Series, ...]

    @property
    def places(self) -> tuple[int, ...]:
        """Which of quality (0), segmentation (1) and recognition (2) any of its series has."""
        held = [values for one in self.series for values in (one.groups.get(group) for group in GROUPS) if values]
        return tuple(place for place in range(3) if any(values[place] is not None for values in held))


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

    Of each training only the best and the last checkpoint are looked at.

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
    """Mean errors of depth of one run on one split: of the runs that are on a board."""

    run: str
    split: str
    samples: int
    abs_rel: float
    rmse_m: float
    delta_1: float


@dataclass(frozen=True)
class Fit:
    """A mesh that was fitted to views; qualities are means over the views that it was measured on.

    Attributes:
        run, model: its id and name.
        template: the mesh it began as.
        views: that it was fitted to.
        epochs: that it took.
        mask_iou: fraction.
        psnr_db: decibels.
        ssim: fraction; None for images that are too small.
        chamfer: distance to the true surface, unit of the scene; None where that is not known.
        seconds: of the fit.
    """

    run: str
    model: str
    template: str
    views: int
    epochs: int
    mask_iou: float
    psnr_db: float
    ssim: float | None
    chamfer: float | None
    seconds: float


@dataclass(frozen=True)
class Report:
    """What the metric tables of a folder say; ``runs`` is how many runs are ours."""

    folder: Place
    runs: int
    boards: tuple[Board, ...]
    lineages: tuple[Lineage, ...]
    studies: tuple[Study, ...]
    depths: tuple[Depth, ...]
    fits: tuple[Fit, ...]


def report(folder: Place) -> Report:
    """Ask the tables of a folder everything a report tells.

    Raises:
        NotPublished: no tables there.
    """
    questions = [_SCORES, _WORST, _QUALITIES, _MATCHES, _DEPTHS, _FITS]
    scores, worst, qualities, matches, depths, fitted = query_all(folder, questions)
    fits = tuple(Fit(**row) for row in fitted.to_pylist())
    told = {fit.run for fit in fits}
    series = [one for one in gather(scores.to_pylist()) if one.run not in told]
    listed = fold(series)
    runs = {one.run for one in listed}
    samples = _by_series(worst)
    bins = _by_series(qualities), _by_series(matches)
    studies = (_study(kind, found, samples, *bins) for kind, found in _kinds(listed).items())
    return Report(
        folder,
        len({one.run for one in series if not one.published}) + len(fits),
        tuple(_boards(listed)),
        lineages(series),
        tuple(study for study in studies if study.classes or any(study.worst)),
        tuple(Depth(**row) for row in depths.to_pylist() if row["run"] in runs),
        fits,
    )


_Rows = Mapping[Key, list[dict[str, Any]]]


def _by_series(table: pa.Table) -> _Rows:
    rows: dict[Key, list[dict[str, Any]]] = defaultdict(list)
    for row in table.to_pylist():
        rows[key_of(row)].append(row)
    return rows


def _boards(series: list[Series]) -> Iterable[Board]:
    kinds: dict[tuple[str, str], list[Series]] = defaultdict(list)
    for one in series:
        kinds[one.source, one.metric].append(one)
    order = {result.run: place for place, result in enumerate(PUBLISHED)}
    for (source, metric), found in sorted(kinds.items(), key=lambda item: (item[0][0], order_of(item[0][1], ""))):
        yield Board(source, metric, tuple(sorted(found, key=lambda one: order.get(one.run, len(order)))))


def _kinds(series: list[Series]) -> dict[tuple[str, str, str], list[Series]]:
    """Our runs by source, metric and rule, newest first: PRQ before PQ, and the rule of the reference before others."""
    kinds: dict[tuple[str, str, str], list[Series]] = defaultdict(list)
    for one in reversed(series):
        if not one.published:
            kinds[one.source, one.metric, one.rule].append(one)
    return dict(sorted(kinds.items(), key=lambda item: (item[0][0], order_of(*item[0][1:]))))


def _study(kind: tuple[str, str, str], found: list[Series], worst: _Rows, qualities: _Rows, matches: _Rows) -> Study:
    series = tuple(found[:RUNS])
    keys = [one.key for one in series]
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


def fit_figures(fit: Fit) -> list[str]:
    """Views, epochs, mask IoU, PSNR, SSIM, Chamfer distance and seconds of a fit, for the eye."""
    chamfer = "" if fit.chamfer is None else f"{fit.chamfer:.4g}"
    qualities = percent(fit.mask_iou), f"{fit.psnr_db:.2f}", percent(fit.ssim)
    return [f"{fit.views:,}", f"{fit.epochs:,}", *qualities, chamfer, f"{fit.seconds:.0f}"]
