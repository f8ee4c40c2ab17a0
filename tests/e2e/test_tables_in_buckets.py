"""Metric tables in a bucket: the rows of a disk, once each, whoever writes beside and whatever fails; and no secret in any message."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

pytest.importorskip("obstore", reason="obstore is not installed: pip install 'scenemill[cloud]'")
pytest.importorskip("moto", reason="moto is not installed: pip install 'moto[server]'")

from typer.testing import CliRunner

from scenemill.pipelines import tables
from scenemill.pipelines.cli import app
from scenemill.pipelines.query import query
from scenemill.pipelines.tables import TABLES, append_run, read_table
from scenemill.schemas.errors import ConfigError, NotPublished, TransientError
from scenemill.schemas.places import Place
from scenemill.transforms import object_clients
from scenemill.transforms.objects import place_of
from tests.unit.object_services import SECRET, Fault, Proxy, be_nobody, used_by_proxy
from tests.unit.test_tables_delta import rows_of

NAMES = "SELECT DISTINCT run FROM scores WHERE run NOT LIKE 'published/%' ORDER BY run"


@pytest.fixture(params=["s3", "gs"])
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def net(services: dict[str, str], scheme: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    with used_by_proxy(monkeypatch, services[scheme]) as between:
        be_nobody(monkeypatch, between.url)
        yield between


@pytest.fixture
def bucket(net: Proxy, scheme: str) -> Place:
    return place_of(f"{scheme}://mill/{uuid4().hex[:8]}")


def in_order(folder: Any, name: str) -> list[str]:
    return sorted(map(str, read_table(folder, name).to_pylist()))


def ours_in(folder: Any) -> list[str]:
    return sorted(row["run"] for row in read_table(folder, "scores").to_pylist() if not row["published"])


def test_the_rows_are_those_of_a_disk_and_a_run_is_added_once(bucket: Place, net: Proxy, tmp_path: Path) -> None:
    with pytest.raises(NotPublished, match="no metric tables here"):
        read_table(bucket, "scores")
    net.faults += [Fault("PUT", "/_delta_log/", "slow down", times=2), Fault("PUT", "/scores/_delta_log/0", "lose answer", times=3)]
    for folder in (bucket, tmp_path):
        for run in ("a", "b", "a"):
            append_run(folder, run, rows_of(run))
    for name in TABLES:
        timeless = [[row.partition("'created'")[0] for row in in_order(folder, name)] for folder in (bucket, tmp_path)]
        assert timeless[0] == timeless[1]
    assert query(bucket, NAMES).to_pylist() == [{"run": "a"}, {"run": "b"}]


@pytest.mark.full
def test_of_writers_at_once_nobody_loses_a_row(bucket: Place) -> None:
    runs = [f"{writer}-{number}" for writer in range(3) for number in range(2)]
    with ThreadPoolExecutor(len(runs)) as pool:
        list(pool.map(lambda run: append_run(bucket, run, rows_of(run)), [*runs, *runs[:2]]))
    assert ours_in(bucket) == runs
    assert sorted(row["run"] for row in read_table(bucket, "depths").to_pylist()) == runs


@pytest.mark.full
def test_a_run_that_was_broken_off_is_seen_when_it_is_whole(bucket: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    append_run(bucket, "a", rows_of("a"))

    def stop(step: str) -> None:
        if step == "metric rows committed":
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(tables, "reached", stop)
        append_run(bucket, "b", rows_of("b"))
    assert ours_in(bucket) == ["a"]
    append_run(bucket, "b", rows_of("b"))
    assert ours_in(bucket) == ["a", "b"]
    assert in_order(bucket, "counts") == sorted(str(row) for run in "ab" for row in rows_of(run)["counts"].to_pylist())


@pytest.mark.full
def test_what_the_service_refuses_or_throttles_is_told_without_its_words(
    bucket: Place, net: Proxy, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = place_of(f"{scheme}://nobucket/tables")
    attempts: list[Callable[[], object]] = [lambda: append_run(nowhere, "a", rows_of("a")), lambda: query(nowhere, NAMES)]
    for attempt in attempts:
        with pytest.raises(ConfigError, match="no such bucket") as refused:
            attempt()
        assert SECRET not in str(refused.value)
    append_run(bucket, "a", rows_of("a"))
    impatient = {"max_retries": "1", "retry_timeout": "1s"}
    monkeypatch.setattr(tables, "delta_options", lambda *given: object_clients.delta_options(*given) | impatient)
    net.faults.append(Fault("PUT", "/counts/", "slow down", times=1000))
    with pytest.raises(TransientError, match="503") as throttled:
        append_run(bucket, "b", rows_of("b"))
    assert "AKIDOFNOBODY" not in str(throttled.value)
    assert throttled.value.__context__ is None
    net.faults.clear()
    append_run(bucket, "b", rows_of("b"))
    assert ours_in(bucket) == ["a", "b"]


@pytest.mark.full
def test_sql_sees_the_tables_and_no_other_object(bucket: Place) -> None:
    append_run(bucket, "a", rows_of("a"))
    for sql in (
        f"SELECT * FROM read_parquet('{bucket}/scores/*.parquet')",
        "SELECT getenv('AWS_SECRET_ACCESS_KEY')",
        "INSTALL httpfs",
    ):
        with pytest.raises(ConfigError) as refused:
            query(bucket, sql)
        assert SECRET not in str(refused.value)


@pytest.mark.full
def test_the_commands_take_uris(bucket: Place) -> None:
    append_run(bucket, "mine", rows_of("mine"))
    for words in (["query", str(bucket), NAMES], ["report", str(bucket)]):
        ended = CliRunner().invoke(app, words, env={"COLUMNS": "300"}, catch_exceptions=False)
        assert ended.exit_code == 0
        assert "mine" in ended.output
