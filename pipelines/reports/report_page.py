"""A report as one page that stands for itself: it loads nothing, runs nothing, and opens anywhere for as long as there are browsers."""

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from scenemill.pipelines.reports.charts import COLORS, bars, curves, histogram
from scenemill.pipelines.reports.page_frame import framed
from scenemill.pipelines.reports.report import BINS, Board, Depth, Fit, Report, Study, fit_figures, report
from scenemill.pipelines.reports.results import printable
from scenemill.pipelines.reports.series import Curve, Lineage, Series, measures, percent, place_of, starred, title
from scenemill.schemas.places import Place
from scenemill.schemas.published import GROUPS
from scenemill.transforms.publish import write_whole


def write_html(folder: Place, path: Path) -> Report:
    """Write the report of a folder of metric tables as one page, whole or not at all, and return what it tells.

    Raises:
        NotPublished: no tables there.
    """
    told = report(folder)
    write_whole(path, page(told).encode())
    return told


def page(told: Report) -> str:
    """A report as HTML: leaderboards, the curves of trainings, then a closer look at our newest runs."""
    ours = f"{told.runs} run{'' if told.runs == 1 else 's'} of our own" if told.runs else "no runs of our own yet"
    summary = f"{_text(told.folder.name)}: {ours}, beside what others published. All scores are percentages."
    parts = [_contents(told), *(_board(number, board) for number, board in enumerate(told.boards))]
    parts += [_lineage(number, lineage) for number, lineage in enumerate(told.lineages)]
    parts += [_study(number, study) for number, study in enumerate(told.studies)]
    parts += [_depths(told.depths)] if told.depths else []
    parts += [_fits(told.fits)] if told.fits else []
    return framed(title="Panoptic 3D scene reconstruction: results", summary=summary, body="\n".join(parts))


def _text(text: str) -> str:
    return escape(printable(text))


def _contents(told: Report) -> str:
    boards = [(f"board-{number}", title(board.source, board.metric)) for number, board in enumerate(told.boards)]
    trainings = [(f"training-{number}", _training_title(lineage)) for number, lineage in enumerate(told.lineages)]
    studies = [(f"study-{number}", _study_title(study)) for number, study in enumerate(told.studies)]
    depths = [("depth", "Errors")] if told.depths else []
    fits = [("fits", "Fits")] if told.fits else []
    lines = (("Leaderboards", boards), ("Trainings", trainings), ("Closely", studies), ("Depth", depths), ("Meshes", fits))
    return f'<nav aria-label="Contents">{"".join(_links(*line) for line in lines if line[1])}</nav>'


def _links(name: str, links: Iterable[tuple[str, str]]) -> str:
    return f"<p><b>{name}</b>" + "".join(f'<a href="#{anchor}">{escape(text)}</a>' for anchor, text in links) + "</p>"


def _board(number: int, board: Board) -> str:
    names = "".join(
        f'<th class="n first" colspan="{len(GROUPS)}" scope="colgroup">{escape(measures(board.metric)[place])}</th>'
        for place in board.places
    )
    groups = "".join(_cell("th", group.capitalize(), place == 0) for _ in board.places for place, group in enumerate(GROUPS))
    ours = [one.published for one in board.series].index(False) if any(not one.published for one in board.series) else None
    rows = "\n".join(_line(one, board.places, place == ours) for place, one in enumerate(board.series))
    return (
        f'<h2 id="board-{number}">{escape(title(board.source, board.metric))}: leaderboard</h2>\n'
        f'<div class="card"><table>\n<thead><tr><th rowspan="2" scope="col">Model</th>{names}</tr>\n<tr>{groups}</tr></thead>\n'
        f"<tbody>\n{rows}\n</tbody></table></div>"
    )


def _line(one: Series, places: Iterable[int], first_of_ours: bool) -> str:
    values = [(one.groups.get(group, (None, None, None))[place], group) for place in places for group in GROUPS]
    cells = "".join(_cell("td", percent(value), group == GROUPS[0]) for value, group in values)
    style = "" if one.published else f' class="ours{" mark" if first_of_ours else ""}"'
    badge = '<span class="badge">published</span>' if one.published else '<span class="badge ours">ours</span>'
    return f'<tr{style}><th scope="row">{_text(one.model)} {badge}{_about(one)}</th>{cells}</tr>'


def _about(one: Series) -> str:
    split = f"split {one.split}" if one.split else "split not stated"
    if one.published:
        return f"<small>{_text(one.origin)}; {_text(split)}</small>"
    rule = f"{_text(split)}, rule <i>{_text(one.rule)}</i>"
    return f"<small>{_text(one.run)}; {rule}, {one.samples or 0:,} samples{place_of(one)}</small>"


def _cell(tag: str, text: str, first: bool = False) -> str:
    scope = ' scope="col"' if tag == "th" else ""
    return f'<{tag} class="n{" first" if first else ""}"{scope}>{escape(text)}</{tag}>'


def _training_title(lineage: Lineage) -> str:
    return f"{title(lineage.source)}, {printable(lineage.name)}"


def _lineage(number: int, lineage: Lineage) -> str:
    figures = "".join(_curve(f"curve-{number}-{place}", lineage, curve) for place, curve in enumerate(lineage.curves))
    keys = "".join(
        f'<li><span class="swatch" style="background: {color}"></span>{group.capitalize()}</li>'
        for group, color in zip(GROUPS, COLORS, strict=False)
    )
    about = f"{len(lineage.steps)} checkpoints in {printable(lineage.training)}, on split {printable(lineage.split)}."
    return (
        f'<h2 id="training-{number}">{escape(_training_title(lineage))}: quality over the training</h2>\n'
        f'<div class="card"><p class="faint">{escape(about)} A ring, or a star, marks the best.</p>'
        f'<ul class="legend row">{keys}</ul>\n<div class="pair">{figures}</div>\n{_steps(lineage)}</div>'
    )


def _curve(name: str, lineage: Lineage, curve: Curve) -> str:
    quality = measures(curve.metric)[0]
    best = curve.best(GROUPS[0])
    highest = "none" if best is None else f"{percent(curve.qualities[GROUPS[0]][best])} at {lineage.unit} {lineage.places[best]:,}"
    values = [curve.qualities[group] for group in GROUPS]
    alt = f"Curve: {quality} of all, things and stuff over the training; the table below has the numbers"
    drawing = curves(name, alt, lineage.places, values, (lineage.unit, quality))
    caption = f"{escape(quality)}, rule {_text(curve.rule)}<small>highest of all: {highest}</small>"
    return f"<figure><figcaption>{caption}</figcaption>{drawing}</figure>"


def _steps(lineage: Lineage) -> str:
    heads = [f"{measures(one.metric)[0]} {group}, {one.rule}" for one in lineage.curves for group in GROUPS]
    rows = [
        ["–" if step is None else f"{step:,}", "–" if epoch is None else f"{epoch:,}"]
        + [starred(one, group, place) for one in lineage.curves for group in GROUPS]
        for place, (epoch, step) in enumerate(zip(lineage.epochs, lineage.steps, strict=True))
    ]
    return f"{_numbers(['Step', 'Epoch', *heads], rows)}"


def _study_title(study: Study) -> str:
    return f"{title(study.source, study.metric)}, rule {printable(study.rule)}"


def _study(number: int, study: Study) -> str:
    older = f" Older runs left out: {study.older}." if study.older else ""
    quality = escape(measures(study.metric)[0])
    return (
        f'<h2 id="study-{number}">{escape(_study_title(study))}: our newest runs closely</h2>\n'
        f'<div class="card"><p class="faint">Newest first.{older}</p>{_legend(study.series)}\n'
        f"{_class_bars(number, study)}\n{_histograms(number, study)}</div>\n"
        f'<div class="card"><h3>Worst samples</h3>\n'
        f'<p class="faint">By the {quality} of the sample alone, which is the mean over the classes that are in it.</p>\n'
        + "\n".join(_worst(study, place) for place in range(len(study.series)))
        + "</div>"
    )


def _legend(series: Iterable[Series]) -> str:
    items = (
        f'<li><span class="swatch" style="background: {color}"></span>{_text(one.model)}{_about(one)}</li>'
        for one, color in zip(series, COLORS, strict=False)
    )
    return f'<ul class="legend">{"".join(items)}</ul>'


def _class_bars(number: int, study: Study) -> str:
    quality = measures(study.metric)[0]
    values = [[one.groups.get(name, (None,))[0] for name in study.classes] for one in study.series]
    names = [printable(name) for name in study.classes]
    drawing = bars(f"classes-{number}", f"Bars: {quality} of each class; the table below has the numbers", names, values, quality)
    rows = [[name, *(percent(row[place]) for row in values)] for place, name in enumerate(names)]
    numbers = _numbers(["Class", *_columns(study.series)], rows)
    return f"<figure><figcaption>{escape(quality)} of each class</figcaption>{drawing}</figure>\n{numbers}"


def _histograms(number: int, study: Study) -> str:
    quality = measures(study.metric)[0]
    kinds = (
        ("samples", f"{quality} of one sample", "Samples by quality", study.qualities),
        ("matches", "mean IoU of the matches of one class in one sample", "Matched segments by overlap", study.matches),
    )
    figures, rows = [], [[f"{100 * place // BINS} to {100 * (place + 1) // BINS}"] for place in range(BINS)]
    for name, unit, caption, bins in kinds:
        drawing = histogram(f"{name}-{number}", f"Histogram: {unit}; the table below has the numbers", bins, unit)
        figures.append(f"<figure><figcaption>{escape(caption)}</figcaption>{drawing}</figure>")
        for place, row in enumerate(rows):
            row.extend(f"{one[place]:,}" for one in bins)
    columns = [f"{what}, {column}" for what in ("Samples", "Matches") for column in _columns(study.series)]
    return f'<div class="pair">{"".join(figures)}</div>\n{_numbers(["Percent", *columns], rows)}'


def _columns(series: Sequence[Series]) -> list[str]:
    return [f"{one.model}, {one.run}" for one in series]


def _numbers(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return f"<details><summary>Numbers</summary>{_table(heads, rows)}</details>"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = f'<th scope="col">{_text(heads[0])}</th>' + "".join(
        f'<th class="n" scope="col">{_text(name)}</th>' for name in heads[1:]
    )
    lines = (f'<tr><th scope="row">{_text(row[0])}</th>' + "".join(_cell("td", text) for text in row[1:]) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _worst(study: Study, place: int) -> str:
    one = study.series[place]
    rows = [[s.key, percent(s.quality), f"{s.tp:,}", f"{s.fp:,}", f"{s.fn:,}"] for s in study.worst[place]]
    listed = _table(["Sample", measures(study.metric)[0], "Matched", "Invented", "Missed"], rows) if rows else "<p>No counts.</p>"
    return f"<details{' open' if place == 0 else ''}><summary>{_text(one.model)}{_about(one)}</summary>{listed}</details>"


def _fits(fits: Iterable[Fit]) -> str:
    rows = [[f"{fit.model} ({fit.run}), from {fit.template}", *fit_figures(fit)] for fit in fits]
    heads = ["Mesh", "Views", "Epochs", "Mask IoU, %", "PSNR, dB", "SSIM, %", "Chamfer", "Seconds"]
    note = "Means over held-out views; the Chamfer distance to the true surface is in the unit of its scene."
    return f'<h2 id="fits">Fitted meshes</h2>\n<div class="card"><p class="faint">{note}</p>{_table(heads, rows)}</div>'


def _depths(depths: Iterable[Depth]) -> str:
    rows = [
        [f"{d.run}; split {d.split}", f"{d.samples:,}", f"{d.abs_rel:.4f}", f"{d.rmse_m:.4f}", percent(d.delta_1)] for d in depths
    ]
    heads = ["Run", "Samples", "Abs rel", "RMSE, m", "Delta < 1.25, %"]
    note = "Means over samples, of pixels whose true depth is 0.4 to 6 m. None of the published results reports depth."
    return f'<h2 id="depth">Depth</h2>\n<div class="card"><p class="faint">{note}</p>{_table(heads, rows)}</div>'
