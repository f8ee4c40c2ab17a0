"""A report on a terminal: leaderboards, curves of trainings, errors of depth, worst samples."""

from collections.abc import Iterable, Sequence
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from scenemill.pipelines.reports.report import Board, Depth, Fit, Report, Study, fit_figures
from scenemill.pipelines.reports.results import printable
from scenemill.pipelines.reports.series import Curve, Lineage, describe, measures, percent, starred, title
from scenemill.schemas.published import GROUPS

_SHOWN: Final = 8
"""Checkpoints of a training that are shown at the least, where there are so many; the best come besides."""

_EXAMINED: Final = ("prq", "pq")
"""Metrics whose worst samples are named: those of depth-aware quality are nearly the same, and on the page."""

_INDENT, _FIGURE_WIDTH = 4, 7  # signs before the figures of a board, and of each
_PLACE_WIDTH, _CURVE_WIDTH = 14, 26  # signs of epoch and step, and of a curve with a rule of usual length


def print_report(console: Console, told: Report) -> None:
    """The leaderboards, the curves, errors of depth, and the worst samples of the newest run on each source and metric."""
    for board in told.boards:
        console.print(Text(f"\n{title(board.source, board.metric)}, in percent", style="bold"))
        _print_board(console, board)
    for lineage in told.lineages:
        print_lineage(console, lineage)
    if told.depths:
        console.print(Text("\nDepth, means over samples, delta_1 in percent", style="bold"))
        console.print(_drawn_depths(told.depths))
    if told.fits:
        console.print(Text("\nFitted meshes, means over held-out views, IoU and SSIM in percent", style="bold"))
        console.print(_drawn_fits(told.fits))
    for study in {(study.source, study.metric): study for study in reversed(told.studies)}.values():
        if study.metric in _EXAMINED:
            _print_worst(console, study)
    if not told.runs:
        console.print("\nNo runs of our own yet: only what others published.")


def print_lineage(console: Console, lineage: Lineage) -> None:
    """How quality went over a training: as many curves side by side as fit, the best checkpoint of each marked by a star."""
    told = f"\n{title(lineage.source)}, split {printable(lineage.split)}, {printable(lineage.name)}: the training, in percent"
    console.print(Text(told, style="bold"))
    beside = max(1, (console.width - _PLACE_WIDTH) // _CURVE_WIDTH)
    for start in range(0, len(lineage.curves), beside):
        console.print(_drawn_curves(lineage, lineage.curves[start : start + beside]))
    console.print(Text(f"{len(lineage.steps)} checkpoints in {printable(lineage.training)}; * is the best of all", style="dim"))


def _drawn_curves(lineage: Lineage, curves: Sequence[Curve]) -> Table:
    drawn = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    for name in ("epoch", "step"):
        drawn.add_column(name, justify="right", no_wrap=True)
    for curve in curves:
        heads = [f"{measures(curve.metric)[0]}\n{printable(curve.rule)}\n{GROUPS[0]}", *(f"\n\n{group}" for group in GROUPS[1:])]
        for head in heads:
            drawn.add_column(Text(head), justify="right", overflow="fold", min_width=6, max_width=9)
    for place in _chosen(curves, len(lineage.steps)):
        names = ("–" if value is None else str(value) for value in (lineage.epochs[place], lineage.steps[place]))
        drawn.add_row(*names, *(starred(curve, group, place) for curve in curves for group in GROUPS))
    return drawn


def _chosen(curves: Iterable[Curve], points: int) -> list[int]:
    """Which checkpoints are shown: the first, the last, some between at equal distances, and the best."""
    even = {round(place * (points - 1) / (_SHOWN - 1)) for place in range(_SHOWN)}
    best = {curve.best(group) for curve in curves for group in GROUPS}
    return sorted(even | {place for place in best if place is not None})


def _print_board(console: Console, board: Board) -> None:
    """Of each series a line that says what it is, over as many as that takes, and a line of figures."""
    names = [measures(board.metric)[place] for place in board.places]
    console.print(Text(" " * _INDENT + "".join(f"{name:>{3 * _FIGURE_WIDTH}}" for name in names), style="bold"))
    console.print(_figures(GROUPS * len(names), "bold"))
    for one in board.series:
        console.print(Text.assemble((printable(one.model), "bold"), ", ", (describe(one), "dim"), overflow="fold"))
        values = [one.groups.get(group, (None, None, None))[place] for place in board.places for group in GROUPS]
        console.print(_figures(map(percent, values)))


def _figures(texts: Iterable[str], style: str = "") -> Text:
    return Text(" " * _INDENT + "".join(f"{text:>{_FIGURE_WIDTH}}" for text in texts), style=style)


def _drawn_depths(depths: Iterable[Depth]) -> Table:
    drawn = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    drawn.add_column("run", overflow="fold")
    drawn.add_column("split")
    for name in ("samples", "abs rel", "RMSE, m", "delta_1"):
        drawn.add_column(name, justify="right", no_wrap=True)
    for depth in depths:
        names = Text(printable(depth.run)), Text(printable(depth.split))
        drawn.add_row(*names, str(depth.samples), f"{depth.abs_rel:.4f}", f"{depth.rmse_m:.4f}", percent(depth.delta_1))
    return drawn


def _drawn_fits(fits: Iterable[Fit]) -> Table:
    drawn = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    drawn.add_column("mesh", overflow="fold")
    drawn.add_column("from")
    for name in ("views", "epochs", "mask IoU", "PSNR, dB", "SSIM", "Chamfer", "seconds"):
        drawn.add_column(name, justify="right", no_wrap=True)
    for fit in fits:
        names = Text.assemble((printable(fit.model), "bold"), "\n", (printable(fit.run), "dim")), Text(printable(fit.template))
        drawn.add_row(*names, *fit_figures(fit))
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
