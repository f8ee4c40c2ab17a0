"""The runs on a store as one page: what each did, how long its stages took, and what was wrong with samples of the newest version."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Final

import pyarrow.compute as pc

from scenemill.pipelines.reports.charts import COLORS
from scenemill.pipelines.reports.human import size
from scenemill.pipelines.reports.page_frame import framed
from scenemill.pipelines.reports.results import printable
from scenemill.transforms.publish import write_whole
from scenemill.transforms.store import Store

STAGES: Final = {
    "list_seconds": "list and plan",
    "build_seconds": "build parts",
    "judge_seconds": "judge the whole",
    "publish_seconds": "publish",
}
"""Columns of the runs table, and what a run does in that time."""

_COLUMNS: Final = ("run", "outcome", "in = stored + rejected", "parts built", "read", "written", "time", "version")


def write_runs(store: Store, path: Path) -> None:
    """Write the page of a store's runs, whole or not at all."""
    write_whole(path, runs_page(store).encode())


def runs_page(store: Store) -> str:
    """A store's runs as HTML, the newest first.

    Args:
        store: open, at any version; the runs are those of all versions.
    """
    runs = store.runs.sort_by([("started", "descending")]).to_pylist()
    summary = (
        f"{len(runs)} run{'' if len(runs) == 1 else 's'} on {_text(store.root.name)}, a store of {_text(store.layout.source)}; "
    )
    summary += f"its version {_text(store.version)} holds {len(store):,} samples."
    body = [_table("Runs", _COLUMNS, [_row(run) for run in runs]), _stages(runs), _findings(store)]
    return framed(f"Runs on {_text(store.root.name)}", summary, "\n".join(body))


def _row(run: Mapping[str, Any]) -> list[str]:
    where = f"{run['started']:%Y-%m-%d %H:%M} UTC, {run['runner'] or 'local'}, {run['workers']} worker{'' if run['workers'] == 1 else 's'}"
    return [
        f"{_text(run['run'])}<small>{_text(run['command'])} {_text(run['input'])}; {where}</small>",
        _text(run["outcome"]),
        f"{run['listed']:,} = {run['stored']:,} + {run['rejected']:,}",
        f"{run['parts_built']:,} of {run['parts']:,}",
        _unbroken(size(run["raw_byte"])),
        _unbroken(size(run["stored_byte"])),
        _unbroken(f"{run['seconds']:.1f} s"),
        _text(run["version"] or "none"),
    ]


def _stages(runs: Sequence[Mapping[str, Any]]) -> str:
    """Where the time of each run went, as a bar of its stages."""
    timed = [run for run in runs if run["build_seconds"] is not None]
    if not timed:
        return ""
    longest = max(run["seconds"] for run in timed) or 1.0
    names = zip(COLORS, STAGES.values(), strict=False)
    legend = "".join(f'<li><i class="swatch" style="background:{color}"></i>{escape(name)}</li>' for color, name in names)
    bars = "".join(f"<p><small>{_text(run['run'])}, {run['seconds']:.1f} s</small>{_bar(run, longest)}</p>" for run in timed)
    return f'<h2>Where the time went</h2><div class="card"><ul class="legend row">{legend}</ul>{bars}</div>'


def _bar(run: Mapping[str, Any], longest: float) -> str:
    parts = [(color, name, run[column] or 0.0) for color, (column, name) in zip(COLORS, STAGES.items(), strict=False)]
    pieces = "".join(
        f'<i title="{escape(name)}: {seconds:.1f} s" style="background:{color};width:{100 * seconds / longest:.2f}%;height:.9rem"></i>'
        for color, name, seconds in parts
    )
    return f'<span style="display:flex" role="img" aria-label="{_told(parts)}">{pieces}</span>'


def _told(parts: Iterable[tuple[str, str, float]]) -> str:
    return ", ".join(f"{escape(name)} {seconds:.1f} s" for _, name, seconds in parts)


def _findings(store: Store) -> str:
    """How many samples each check spoke of, the severe ones first."""
    found = store.findings
    if not found.num_rows:
        return "<h2>Findings</h2><p>None: every sample passed every check.</p>"
    summed = found.group_by(["severity", "check", "field", "rejected"]).aggregate([("key", "count_distinct")])
    order = {"error": 0, "warning": 1, "info": 2}
    rows = sorted(summed.to_pylist(), key=lambda row: (order.get(row["severity"], 3), -row["key_count_distinct"], row["check"]))
    example = {(row["check"], row["field"]): row for row in reversed(found.to_pylist())}
    lines = [
        [
            _text(row["severity"]),
            _text(row["check"]),
            _text(row["field"]),
            f"{row['key_count_distinct']:,}",
            "rejected" if row["rejected"] else "stored",
            _example(example[row["check"], row["field"]]),
        ]
        for row in rows
    ]
    rejected = pc.sum(found["rejected"].cast("int64")).as_py()
    words = f"{found.num_rows:,} finding{'' if found.num_rows == 1 else 's'}, {rejected:,} of them about rejected samples."
    heads = ("severity", "check", "field", "samples", "outcome", "for example")
    return f"<h2>Findings</h2><p>{words}</p>" + _table("", heads, lines)


def _example(row: Mapping[str, Any]) -> str:
    return f"{_text(row['key'])}<small>{_text(row['observed'])}; expected {_text(row['expected'])}</small>"


def _table(title: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A card with a table; cells are HTML."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in heads)
    lines = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    heading = f"<h2>{escape(title)}</h2>" if title else ""
    return f'{heading}<div class="card"><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>'


def _unbroken(figure: str) -> str:
    """A figure that stays on one line with its unit."""
    return figure.replace(" ", "&nbsp;")


def _text(text: str) -> str:
    return escape(printable(text))
