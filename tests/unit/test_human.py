"""What commands print for a person: findings that can be read at any width and acted on, and a plan of nothing."""

import io
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest
from rich.console import Console

from scenemill.pipelines.forecast import Forecast
from scenemill.pipelines.reports.human import print_findings, print_forecast, print_runs
from scenemill.schemas.errors import NotPublished
from scenemill.transforms.store import open_store

KEY = "8b4ae5f1-a941-46a0-956a-26afbccdafe5/0001"


def console(width: int) -> tuple[Console, io.StringIO]:
    sink = io.StringIO()
    return Console(file=sink, width=width), sink


def finding(severity: str, key: str = KEY, observed: str = "ids [7] \x1b[2J") -> dict[str, str]:
    return {
        "severity": severity,
        "check": "labels_known",
        "field": "instance_2d",
        "key": key,
        "observed": observed,
        "expected": "ids of the table",
    }


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_finding_keeps_its_names_and_its_key_whole_at_any_width(width: int) -> None:
    drawn, sink = console(width)
    print_findings(drawn, pa.Table.from_pylist([finding("info"), finding("error"), finding("error", "b/1")]))
    lines = sink.getvalue().splitlines()
    assert [line.split("  ") for line in lines if "labels_known" in line] == [
        ["error", "labels_known", "instance_2d", "2 samples"],
        ["info", "labels_known", "instance_2d", "1 sample"],
    ]
    assert sum(line.strip() == f"for example {KEY}" for line in lines) == 2
    assert r"ids [7] \x1b[2J; expected ids of the table" in lines[1]
    assert all(len(line) <= width for line in lines)


def test_a_finding_about_no_field_leaves_no_gap() -> None:
    drawn, sink = console(80)
    print_findings(drawn, pa.Table.from_pylist([finding("warning") | {"field": ""}]))
    assert sink.getvalue().splitlines()[0] == "warning  labels_known  1 sample"


def test_a_finding_about_the_folder_is_about_no_sample() -> None:
    drawn, sink = console(80)
    print_findings(drawn, pa.Table.from_pylist([finding("info", key="") | {"field": "", "check": "list"}]))
    assert sink.getvalue().splitlines()[0] == "info  list" and "for example" not in sink.getvalue()


def test_no_finding_is_said() -> None:
    drawn, sink = console(80)
    print_findings(drawn, pa.Table.from_pylist([finding("info")]).slice(0, 0))
    assert sink.getvalue() == "Nothing found wrong.\n"


def test_a_plan_of_nothing_tells_no_rate_of_nothing() -> None:
    drawn, sink = console(80)
    print_forecast(drawn, Forecast(18, 17, 1, 0, 0, 0, 0, 0.0, 0, 0.0, 2))
    assert "18 in: 0 to build, 17 stored, 1 rejected before" in sink.getvalue()
    assert "Nothing to build" in sink.getvalue() and "ms per sample" not in sink.getvalue()


def test_a_raw_folder_taken_for_a_store_is_told_with_what_makes_one(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(NotPublished, match=f"it holds data/ .*--input {tmp_path} --output STORE"):
        open_store(tmp_path)
    with pytest.raises(NotPublished, match=f"--input DIR --output {tmp_path / 'store'}"):
        open_store(tmp_path / "store")


def test_the_runs_on_a_large_store_are_a_line_each_at_80_columns() -> None:
    run = {"started": datetime(2026, 11, 27, 6, 5, 59, tzinfo=UTC), "outcome": "published", "listed": 134_389, "stored": 134_000}
    runs = [run | {"rejected": 389, "seconds": 12_620.0, "version": "648d8aaa61d3cf77"}]
    runs.append(run | {"outcome": "stopped", "rejected": 134_389, "stored": 0, "seconds": 75.0, "version": None})
    drawn, sink = console(80)
    print_runs(drawn, pa.Table.from_pylist(runs))
    lines = [line.split() for line in sink.getvalue().splitlines()]
    assert lines[1:] == [
        ["2026-11-27", "06:05", "published", "134389", "134000", "389", "3", "h", "30", "min", "648d8aaa61d3"],
        ["2026-11-27", "06:05", "stopped", "134389", "0", "134389", "1", "min", "15", "s", "-"],
    ]
