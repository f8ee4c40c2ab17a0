"""What a scoring and an evaluation print: panoptic quality in percent, overall and of each class."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from scenemill.pipelines.reports.results import printable
from scenemill.pipelines.reports.series import measures, percent
from scenemill.schemas.published import GROUPS

if TYPE_CHECKING:
    from scenemill.pipelines.experiments.evaluation import Evaluated
    from scenemill.pipelines.score import Scored

_VALUES: Final = ("quality", "segmentation", "recognition")
_COUNTS: Final = ("tp", "fp", "fn")
_PQ: Final = "test_dpq_-1.0_epoch"
_LIMITED: Final = ("dpq_0.5", "dpq_0.25", "dpq_0.1", "dpq_mean")


def print_scored(console: Console, scored: "Scored") -> None:
    """The averages of a scoring, in percent."""
    drawn = Table("metric", "rule", "group", *_VALUES, "classes", box=None, header_style="bold", padding=(0, 1))
    for row in scored.scores.to_pylist():
        if row["group"] in GROUPS:
            cells = ("n/a" if row[name] is None else f"{100 * row[name]:.2f}" for name in _VALUES)
            drawn.add_row(row["metric"], row["rule"], row["group"], *cells, str(row["classes"]))
    console.print(drawn)
    console.print(f"run {scored.run}: {scored.samples} samples scored, {scored.missing} without a prediction", soft_wrap=True)


def print_evaluated(console: Console, evaluated: "Evaluated", *, volumes: bool) -> None:
    """Two tables of one evaluation, overall and per class, by the rule of the reference; then the loss, and where all of it is.

    Args:
        console: where to.
        evaluated: what is told.
        volumes: True for PRQ, of stage 2; False for PQ and depth-aware PQ, of stage 1.
    """
    metric = "prq" if volumes else "pq"
    rows = [row for row in evaluated.scores.to_pylist() if row["rule"].startswith("reference")]
    (rule,) = {row["rule"] for row in rows if row["metric"] == metric}
    console.print(Text(f"{printable(evaluated.checkpoint.path.name)}, {evaluated.checkpoint.place}", style="bold"))
    console.print(_overall(rows, (metric,) if volumes else (metric, *_LIMITED)))
    console.print(_per_class([row for row in rows if row["metric"] == metric and row["group"] not in GROUPS], metric))
    if "test_loss" in evaluated.kpi:
        console.print(f"test_loss {evaluated.kpi['test_loss']:.4f}", highlight=False)
    where = f"In percent, rule {rule}; run {printable(evaluated.run)} in {evaluated.tables}"
    console.print(Text(where), soft_wrap=True)


def _overall(rows: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> Table:
    """All, things and stuff: the values of the first metric, the quality of the others."""
    held = {(row["metric"], row["group"]): row for row in rows}
    drawn = _table("group", [*measures(metrics[0]), *(measures(metric)[0] for metric in metrics[1:]), "classes"])
    for group in GROUPS:
        first = held[metrics[0], group]
        others = (held.get((metric, group), {}).get("quality") for metric in metrics[1:])
        drawn.add_row(group, *(percent(value) for value in (*(first[name] for name in _VALUES), *others)), str(first["classes"]))
    return drawn


def _per_class(rows: Sequence[Mapping[str, Any]], metric: str) -> Table:
    drawn = _table("class", [*measures(metric), "TP", "FP", "FN"])
    for row in rows:
        values, counts = (percent(row[name]) for name in _VALUES), (f"{row[name]:,}" for name in _COUNTS)
        drawn.add_row(Text(printable(row["group"])), *values, *counts)
    return drawn


def _table(first: str, others: Sequence[str]) -> Table:
    drawn = Table(box=None, header_style="bold", padding=(0, 1))
    drawn.add_column(first)
    for name in others:
        drawn.add_column(name, justify="right", no_wrap=True)
    return drawn


def print_step(console: Console, evaluated: "Evaluated", *, volumes: bool) -> None:
    """One of several evaluations, in a line: which checkpoint, its quality, its run, and whether it was known before."""
    told, kpi = evaluated.checkpoint, evaluated.kpi
    figures = (
        {name: kpi[name] for name in ("PRQ", "RSQ", "RRQ")} if volumes else {"PQ": kpi[_PQ], "test_loss": kpi.get("test_loss")}
    )
    said = ", ".join(f"{name} {value:.2f}" for name, value in figures.items() if value is not None)
    kept = "" if evaluated.new else "; in the tables before, not evaluated again"
    line = f"{printable(told.path.name)}, {told.place}: {said}; run {printable(evaluated.run)}{kept}"
    console.print(Text(line), soft_wrap=True)
