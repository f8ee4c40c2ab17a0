"""Charts of a report as SVG that can stand inside a page: no scripts, nothing from elsewhere, ids of their own.

Runs are told apart by colour alone here; the page around a chart names them, so that no text of a user gets into a drawing.
"""

import io
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Final

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLORS: Final = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")
"""Okabe and Ito 2008: six colours that the colour-blind can tell apart."""

_INK: Final = "#1d2530"
_FAINT: Final = "#5a6572"
_GRID: Final = "#e3e8ed"
_OF_THE_PAGE: Final = {_INK: "ink", _FAINT: "faint", _GRID: "line", "#ffffff": "paper"}
"""Colours that a page may replace, as by night, and its names of them."""

STYLE: Final[dict[Any, Any]] = {
    "svg.fonttype": "none",  # text stays text: it can be found, copied and read aloud
    "font.size": 9,
    "text.parse_math": False,
    "text.color": _INK,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _FAINT,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _FAINT,
    "ytick.color": _FAINT,
    "xtick.labelcolor": _FAINT,
    "ytick.labelcolor": _INK,
    "grid.color": _GRID,
}
"""Of every chart."""

_LABELLED: Final = 3  # with more bars a class, their numbers would touch


def bars(name: str, alt: str, classes: Sequence[str], values: Sequence[Sequence[float | None]], unit: str) -> str:
    """Horizontal bars, in percent: a group for each class, in it a bar for each run.

    Args:
        name: begins all ids of the drawing.
        alt: what the chart shows, for those who do not see it.
        classes: from top to bottom.
        values: fractions, a row for each run and in it one for each class; None draws nothing.
        unit: what is measured.
    """
    thick = 0.8 / len(values)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 0.6 + len(classes) * (0.12 + 0.11 * len(values))), layout="constrained")
        axes = figure.subplots()
        for number, row in enumerate(values):
            places = [place - 0.4 + (number + 0.5) * thick for place in range(len(classes))]
            drawn = axes.barh(places, [100 * (value or 0) for value in row], thick * 0.9, color=COLORS[number])
            if len(values) <= _LABELLED:
                texts = ["" if value is None else f"{100 * value:.1f}" for value in row]
                axes.bar_label(drawn, texts, padding=3, fontsize=7, color=_FAINT)
        axes.set_yticks(range(len(classes)), classes)
        axes.tick_params(length=0)
        axes.set(xlim=(0, 100), ylim=(len(classes) - 0.5, -0.5), xlabel=f"{unit}, percent")
        axes.grid(axis="x")
        axes.spines["left"].set_visible(False)
        return svg(figure, name, alt)


def histogram(name: str, alt: str, bins: Sequence[Sequence[int]], unit: str) -> str:
    """Outlined histograms over 0 to 100 percent, one for each run, as shares of the run so that runs of any size compare.

    Args:
        name: begins all ids of the drawing.
        alt: what the chart shows, for those who do not see it.
        bins: a row for each run, with the numbers of equal bins.
        unit: what is measured.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.9, 2.6), layout="constrained")
        axes = figure.subplots()
        for number, row in enumerate(bins):
            _outline(axes, row, COLORS[number], filled=number == 0)
        axes.set(xlim=(0, 100), xlabel=f"{unit}, percent", ylabel="share, percent")
        axes.set_ylim(bottom=0)
        axes.tick_params(length=0)
        axes.grid(axis="y")
        axes.spines["left"].set_visible(False)
        return svg(figure, name, alt)


def curves(name: str, alt: str, places: Sequence[int], values: Sequence[Sequence[float | None]], units: tuple[str, str]) -> str:
    """Lines over the places of a training, in percent; a ring marks the highest point of each, the first of equals.

    Args:
        name: begins all ids of the drawing.
        alt: what the chart shows, for those who do not see it.
        places: steps or epochs, ascending.
        values: fractions, a row for each line and in it one for each place; a None leaves a gap.
        units: what places are counted in, and what is measured.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.9, 2.8), layout="constrained")
        axes = figure.subplots()
        for row, color in zip(values, COLORS, strict=False):
            percents = [float("nan") if value is None else 100 * value for value in row]
            axes.plot(places, percents, color=color, linewidth=1.6, marker="o", markersize=2.5)
            points = [(value, place) for value, place in zip(percents, places, strict=True) if not math.isnan(value)]
            if points:
                value, place = max(points, key=lambda point: point[0])
                axes.plot(place, value, "o", color=color, markersize=7, markerfacecolor="none", markeredgewidth=1.4)
        axes.set(xlabel=units[0], ylabel=f"{units[1]}, percent")
        axes.set_ylim(bottom=0)
        axes.tick_params(length=0)
        axes.grid(axis="y")
        axes.spines["left"].set_visible(False)
        return svg(figure, name, alt)


def speed(stage_ms: Mapping[str, float], samples_per_s: Mapping[str, float], waits_ms: Sequence[float], path: Path) -> None:
    """What a loader takes, as a picture: milliseconds of each stage, samples a second, and how long batches were waited for.

    Args:
        stage_ms: stage -> milliseconds per sample in one process.
        samples_per_s: what read it -> samples a second.
        waits_ms: of the last of those, batch after batch.
        path: of a PNG or SVG file.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 2.8), layout="constrained", dpi=120)
        stages, rates, waits = figure.subplots(1, 3, width_ratios=(5, 4, 5))
        for axes, values, unit in ((stages, stage_ms, "ms per sample, one process"), (rates, samples_per_s, "samples per second")):
            drawn = axes.barh(list(values), list(values.values()), 0.7, color=COLORS[0])
            axes.bar_label(drawn, [f"{value:.3g}" for value in values.values()], padding=3, fontsize=8, color=_FAINT)
            axes.invert_yaxis()
            axes.set_xlabel(unit)
            axes.margins(x=0.18)
            axes.tick_params(length=0)
            axes.spines["left"].set_visible(False)
        waits.plot(range(1, len(waits_ms) + 1), waits_ms, color=COLORS[5], linewidth=1.2)
        waits.set(xlabel="batch", ylabel=f"waited, ms ({list(samples_per_s)[-1]})")
        waits.set_ylim(bottom=0)
        waits.grid(axis="y")
        figure.savefig(path)


def _outline(axes: Axes, row: Sequence[int], color: str, filled: bool) -> None:
    total = max(1, sum(row))
    edges = [100 * place / len(row) for place in range(len(row) + 1)]
    heights = [100 * count / total for count in row]
    if filled:
        axes.stairs(heights, edges, color=color, alpha=0.15, fill=True)
    axes.stairs(heights, edges, color=color, linewidth=1.8)


def svg(figure: Figure, name: str, alt: str) -> str:
    """The drawing as an element of a page."""
    sink = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # the reader's font draws it, not ours
        figure.savefig(sink, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    drawn = sink.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    drawn = re.sub(r"<metadata>.*?</metadata>|<style\b.*?</style>|<!--.*?-->", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", drawn)  # the library counts ids anew in every drawing
    for color, role in _OF_THE_PAGE.items():
        drawn = drawn.replace(f": {color}", f": var(--{role}, {color})")
    return drawn.replace("<svg ", f'<svg role="img" aria-label="{escape(alt)}" ', 1)
