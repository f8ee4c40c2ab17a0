"""Answers of queries: drawn for a person, or as CSV, JSON or Parquet for machines."""

import csv
import io
import json
import math
from collections.abc import Iterable
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

import pyarrow as pa
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from scenemill.schemas.errors import ConfigError
from scenemill.transforms.rows import to_parquet

FORMATS: Final = ("csv", "json", "parquet")
SHOWN: Final = 100
"""Rows that are drawn for a person."""


def to_bytes(table: pa.Table, form: str) -> bytes:
    """A table in one of ``FORMATS``: text in UTF-8; JSON is one list of objects, in which NaN and infinities are null.

    Raises:
        ConfigError: no such format.
    """
    if form == "csv":
        return _csv(table).encode()
    if form == "json":
        rows = [{name: _for_json(value) for name, value in row.items()} for row in table.to_pylist()]
        return (json.dumps(rows, ensure_ascii=False, default=str, indent=1) + "\n").encode()
    if form == "parquet":
        return to_parquet(table)
    raise ConfigError(f"format {form!r} is not known; use table (on a terminal), {', '.join(FORMATS)}")


def _csv(table: pa.Table) -> str:
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(table.column_names)
    for row in table.to_pylist():
        writer.writerow([json.dumps(value, default=str) if isinstance(value, list | dict) else value for value in row.values()])
    return sink.getvalue()


def _for_json(value: Any) -> Any:
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, list):
        return [_for_json(item) for item in value]
    if isinstance(value, dict):
        return {name: _for_json(item) for name, item in value.items()}
    return value.isoformat() if isinstance(value, datetime) else value


def print_table(console: Console, table: pa.Table) -> None:
    """Draw a table; one that is too wide for the console is drawn row by row, a line for each column."""
    rows = table.slice(0, SHOWN).to_pylist()
    drawn = Table(box=None, header_style="bold", padding=(0, 1))
    for column in table.schema:
        drawn.add_column(Text(printable(column.name)), justify="right" if _is_number(column.type) else "left", no_wrap=True)
    decimals = {name: decimals_of(row[name] for row in rows) for name in table.column_names}
    for row in rows:
        drawn.add_row(*(_cell(value, decimals[name]) for name, value in row.items()))
    if Measurement.get(console, console.options.update(max_width=1 << 16), drawn).maximum <= console.width:
        console.print(drawn)
    else:
        _print_rows(console, rows)
    more = f" (the first {SHOWN} are shown)" if table.num_rows > SHOWN else ""
    console.print(f"[dim]{table.num_rows} row{'' if table.num_rows == 1 else 's'}{more}[/]", highlight=False)


def _print_rows(console: Console, rows: list[dict[str, Any]]) -> None:
    for number, row in enumerate(rows, start=1):
        drawn = Table.grid(padding=(0, 2))
        for name, value in row.items():
            drawn.add_row(Text(printable(name), style="dim"), _cell(value, decimals_of([value])))
        console.rule(f"row {number}", align="left", style="dim")
        console.print(drawn)


def _is_number(type_: pa.DataType) -> bool:
    return bool(pa.types.is_integer(type_) or pa.types.is_floating(type_) or pa.types.is_decimal(type_))


def _cell(value: Any, decimals: int) -> Text:
    if value is None:
        return Text("null", style="dim")
    if isinstance(value, float):
        return Text(number(value, decimals))
    if isinstance(value, datetime):
        return Text(f"{value:%Y-%m-%d %H:%M:%S}")
    return Text("\n".join(printable(line) for line in str(value).splitlines()))


def decimals_of(values: Iterable[Any]) -> int:
    """How many decimals the numbers of a column need, four at most.

    >>> decimals_of([89.7, 100.0, None]), decimals_of([1 / 3])
    (1, 4)
    """
    told = (number(value).rstrip("0").partition(".")[2] for value in values if isinstance(value, float))
    return min(4, max(map(len, told), default=0))


def number(value: float, decimals: int = 4) -> str:
    """A number for a person: so many decimals, and powers of ten where those say nothing.

    >>> number(0.54321), number(0.0), number(1e-7), number(12345678.9)
    ('0.5432', '0.0000', '1.000e-07', '1.235e+07')
    """
    plain = value == 0 or not math.isfinite(value) or 1e-3 <= abs(value) < 1e6
    return f"{value:.{decimals}f}" if plain else f"{value:.3e}"


def printable(text: str) -> str:
    r"""Text without anything that steers a terminal or turns the direction of writing; such signs are written as escapes.

    >>> printable("run \x1b[2J é")
    'run \\x1b[2J é'
    """
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)
