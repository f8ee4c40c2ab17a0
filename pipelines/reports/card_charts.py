"""Charts of a dataset card, for PNG files and for pages."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from scenemill.pipelines.reports.card import Card
from scenemill.pipelines.reports.charts import COLORS, STYLE, svg

_BINS: Final = 24
_DPI: Final = 120
_NARROW: Final = (4.9, 2.6)


@dataclass(frozen=True)
class Plot:
    """A chart that is drawn when it is asked for.

    Attributes:
        title: above it.
        alt: what it shows, for those who do not see it.
        size: width and height in inches.
        draw: into axes.
    """

    title: str
    alt: str
    size: tuple[float, float]
    draw: Callable[[Axes], None]

    def figure(self) -> Figure:
        """The chart, drawn in the style of all charts."""
        with matplotlib.rc_context(STYLE):
            figure = Figure(figsize=self.size, layout="constrained", dpi=_DPI)
            self.draw(figure.subplots())
            return figure


def plots_of(card: Card) -> dict[str, Plot]:
    """The charts of a card by name: those of which it has any value."""
    total = card.facts["stored"]
    known = {
        "classes": _classes(card) if card.classes and total else None,
        "instances": _instances(card.instances_2d) if any(card.instances_2d) else None,
        "depth": _depths(card.depth_m, card.length_unit) if card.depth_m else None,
        "observed": _observed(card.observed) if card.observed else None,
    }
    return {name: plot for name, plot in known.items() if plot is not None}


def _classes(card: Card) -> Plot:
    total = card.facts["stored"]
    names = [count.label.name for count in card.classes]
    series = {"image": [count.views_2d for count in card.classes], "volume": [count.views_3d for count in card.classes]}
    series = {name: values for name, values in series.items() if any(values)}

    def draw(axes: Axes) -> None:
        thick = 0.8 / max(1, len(series))
        for number, (name, values) in enumerate(series.items()):
            places = [place - 0.4 + (number + 0.5) * thick for place in range(len(names))]
            axes.barh(places, [100 * value / total for value in values], thick * 0.9, color=COLORS[number], label=name)
        axes.set_yticks(range(len(names)), names)
        axes.set(xlim=(0, 100), ylim=(len(names) - 0.5, -0.5), xlabel="samples that show the class, percent")
        axes.grid(axis="x")
        axes.tick_params(length=0)
        axes.spines["left"].set_visible(False)
        if len(series) > 1:
            axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))

    told = ", ".join(f"{name} {100 * max(values) / total:.0f}" for name, *values in zip(names, *series.values(), strict=True))
    return Plot("Classes", f"Percent of samples that show each class: {told}", (9.6, 0.8 + 0.3 * len(names)), draw)


def _instances(counts: Sequence[int]) -> Plot:
    def draw(axes: Axes) -> None:
        axes.hist(counts, bins=min(_BINS, max(1, max(counts) - min(counts) + 1)), color=COLORS[0])
        _count_samples(axes, "instances in the image")

    middle = sorted(counts)[len(counts) // 2]
    return Plot("Instances per view", f"Instances per image: {min(counts)} to {max(counts)}, median {middle}", _NARROW, draw)


def _depths(ranges: Sequence[tuple[float, float]], unit: str) -> Plot:
    nearest, farthest = ([pair[end] for pair in ranges] for end in (0, 1))
    low, high = min(nearest), max(farthest)

    def draw(axes: Axes) -> None:
        for number, (name, values) in enumerate({"nearest": nearest, "farthest": farthest}.items()):
            axes.hist(values, bins=_BINS, range=(low, high), color=COLORS[number], alpha=0.75, label=name)
        _count_samples(axes, f"depth of a view, {unit}")
        axes.legend(frameon=False)

    return Plot("Depth range", f"Nearest and farthest depth of each view: {low:.2f} to {high:.2f} {unit}", _NARROW, draw)


def _observed(shares: Sequence[float]) -> Plot:
    percents = [100 * share for share in shares]

    def draw(axes: Axes) -> None:
        axes.hist(percents, bins=_BINS, color=COLORS[2])
        _count_samples(axes, "voxels observed, percent of the volume")

    told = f"Share of each volume that is observed: {min(percents):.1f} to {max(percents):.1f} percent"
    return Plot("Observed share", told, _NARROW, draw)


def _count_samples(axes: Axes, what: str) -> None:
    axes.set(xlabel=what, ylabel="samples")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y")
    axes.tick_params(length=0)
    axes.spines["left"].set_visible(False)


def to_png(plot: Plot) -> bytes:
    """The chart as a PNG file: the same bytes for the same values."""
    sink = io.BytesIO()
    plot.figure().savefig(sink, format="png", metadata={"Software": None})
    return sink.getvalue()


def to_svgs(plots: Mapping[str, Plot]) -> dict[str, str]:
    """The charts as elements of a page."""
    return {name: svg(plot.figure(), f"card-{name}", plot.alt) for name, plot in plots.items()}
