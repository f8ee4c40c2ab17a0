"""A dataset card as one page that stands for itself."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from scenemill.pipelines.reports.card import Card
from scenemill.pipelines.reports.card_charts import plots_of, to_svgs
from scenemill.pipelines.reports.card_text import class_rows, content_rows, field_rows, finding_rows, source_rows, split_rows
from scenemill.pipelines.reports.page_frame import framed
from scenemill.pipelines.reports.results import printable
from scenemill.transforms.publish import write_whole


def write_page(card: Card, path: Path) -> None:
    """Write a card as a page, whole or not at all."""
    write_whole(path, page(card).encode())


def page(card: Card) -> str:
    """A card as HTML; it loads nothing and runs nothing."""
    facts = card.facts
    summary = f"Version {facts['version']} of a scenemill store: {facts['stored']} samples, {facts['rejected']} rejected."
    parts = {
        "Contents": _table((), content_rows(card)),
        "In pictures": _plots(card),
        "Fields": _table(("field", "shape", "dtype", "unit", "samples", "meaning"), field_rows(card)),
        "Classes": _table(("id", "class", "kind", "colour", "images", "volumes"), class_rows(card)),
        "Splits": _table(("split", "samples"), split_rows(card)),
        "Checks": f"<p>Checks of version {_text(card.checks)}; a sample with an error is in no array.</p>"
        + (
            _table(("severity", "check", "field", "samples", "for example", "expected"), finding_rows(card))
            or "<p>Nothing was found.</p>"
        ),
        "Sources": _table(("raw file", "files", "bytes"), source_rows(card))
        + _table(("field", "values come from"), [(field.name, field.origin) for field, _ in card.fields]),
        "Licence": f"<p>{_text(card.licence)}</p>",
    }
    body = "\n".join(f'<h2>{title}</h2>\n<div class="card">{part}</div>' for title, part in parts.items() if part)
    return framed(title=f"{_text(facts['source'])}: what the store holds", summary=_text(summary), body=body)


def _plots(card: Card) -> str:
    plots = plots_of(card)
    drawn = {name: f"<figure><figcaption>{plots[name].title}</figcaption>{svg}</figure>" for name, svg in to_svgs(plots).items()}
    wide = drawn.pop("classes", "")
    return wide + (f'<div class="pair">{"".join(drawn.values())}</div>' if drawn else "")


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    if not rows:
        return ""
    cells = "".join(f'<th scope="col">{_text(name)}</th>' for name in columns)
    head = f"<thead><tr>{cells}</tr></thead>" if columns else ""
    return f"<table>{head}<tbody>{''.join(_line(row) for row in rows)}</tbody></table>"


def _line(row: Sequence[Any]) -> str:
    first, *rest = row
    return f'<tr><th scope="row">{_text(str(first))}</th>{"".join(_cell(str(cell)) for cell in rest)}</tr>'


def _cell(text: str) -> str:
    if len(text) == 7 and text[0] == "#":
        return f'<td><span class="badge" style="background:{_text(text)};color:transparent">&emsp;</span> {_text(text)}</td>'
    return f"<td>{_text(text)}</td>"


def _text(text: str) -> str:
    return escape(printable(text))
