"""Metric tables: whole runs, once each, whoever writes beside; and the published results as the fact sheet gives them."""

import os
import signal
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from multiprocessing import get_context
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake

from scenemill.pipelines import tables
from scenemill.pipelines.query import query
from scenemill.pipelines.tables import append_run, datasets, read_table
from scenemill.schemas.errors import ConfigError, Conflict, Corrupt, NotPublished
from scenemill.schemas.published import PUBLISHED, published_scores
from scenemill.schemas.tables import COUNTS, DEPTHS, FITS, SCORES, table_of

HOSTILE = ("../../etc/passwd", "a'; DROP TABLE scores; --", "日本 ü \u202e\x1b[2J", "x" * 3000, "published?", "run=1/%2e", "\n")


def counts(run: str, **changes: Any) -> dict[str, Any]:
    row = {"run": run, "store_version": "v", "key": "s/1", "split": "test", "metric": "prq", "rule": "reference"}
    return {**row, "class_id": 3, "class_name": "chair", "tp": 1, "fp": 1, "fn": 0, "iou_sum": 0.5, **changes}


def score(run: str, **changes: Any) -> dict[str, Any]:
    row: dict[str, Any] = {"run": run, "model": "m", "source": "front3d", "split": "test", "store_version": "v", "metric": "prq"}
    row |= {"rule": "reference", "group": "all", "quality": 0.4, "segmentation": 0.5, "recognition": 0.8, "samples": 1}
    return {**row, "published": False, "origin": "test", "created": datetime(2026, 1, 1, tzinfo=UTC), **changes}


def depth(run: str) -> dict[str, Any]:
    row = {"run": run, "store_version": "v", "key": "s/1", "split": "test"}
    return {**row, "pixels": 9, "abs_rel": 0.1, "rmse_m": 0.2, "delta_1": 0.9}


def rows_of(run: str, samples: int = 2) -> Mapping[str, pa.Table]:
    return {
        "counts": table_of(COUNTS, [counts(run, key=f"s/{number}") for number in range(samples)]),
        "depths": table_of(DEPTHS, [depth(run)]),
        "scores": table_of(SCORES, [score(run)]),
    }


def log_of(folder: Path, name: str) -> int:
    return len(list((folder / name / "_delta_log").glob("*.json")))


def ours(folder: Path) -> list[str]:
    return sorted(row["run"] for row in read_table(folder, "scores").to_pylist() if not row["published"])


def write_runs(folder: Path, writer: int, runs: int) -> None:
    for number in range(runs):
        append_run(folder, f"{writer}-{number}", rows_of(f"{writer}-{number}"))


def test_rows_come_back_as_they_went_in(tmp_path: Path) -> None:
    append_run(tmp_path / "t", "a", rows_of("a"))
    for name, table in rows_of("a").items():
        found = read_table(tmp_path / "t", name)
        assert found.schema.equals(tables.TABLES[name])
        assert [row for row in found.to_pylist() if row["run"] == "a"] == table.to_pylist()


def test_new_tables_hold_the_published_results_once(tmp_path: Path) -> None:
    for run in ("a", "b"):
        append_run(tmp_path, run, rows_of(run))
    found = [row for row in read_table(tmp_path, "scores").to_pylist() if row["published"]]
    assert sorted(found, key=str) == sorted(published_scores().to_pylist(), key=str)


def test_a_repeated_run_adds_nothing(tmp_path: Path) -> None:
    append_run(tmp_path, "a", rows_of("a"))
    before = {name: log_of(tmp_path, name) for name in tables.TABLES}
    later = {**rows_of("a", samples=7), "scores": table_of(SCORES, [score("a", created=datetime(2027, 1, 1, tzinfo=UTC))])}
    append_run(tmp_path, "a", later)
    assert {name: log_of(tmp_path, name) for name in tables.TABLES} == before
    assert read_table(tmp_path, "counts").num_rows == 2


def test_processes_at_once_lose_no_row(tmp_path: Path) -> None:
    """Three processes make the tables and append four runs each, all at once."""
    context = get_context("spawn")
    writers = [context.Process(target=write_runs, args=(tmp_path, writer, 4)) for writer in range(3)]
    for process in writers:
        process.start()
    for process in writers:
        process.join(120)
    assert [process.exitcode for process in writers] == [0, 0, 0]
    assert ours(tmp_path) == sorted(f"{writer}-{number}" for writer in range(3) for number in range(4))
    assert read_table(tmp_path, "counts").num_rows == 24
    assert read_table(tmp_path, "depths").num_rows == 12
    assert DeltaTable(str(tmp_path / "counts")).version() == 12  # one to create it, one for each run
    assert DeltaTable(str(tmp_path / "scores")).version() == 13  # and one for the published results
    assert read_table(tmp_path, "scores").num_rows == 12 + published_scores().num_rows


def race(folder: Path, attempt: int, samples: int, rounds: int, start: Barrier, told: "Queue[tuple[int, bool]]") -> None:
    """Append run a to one new folder after the other, each when all racers are there; tells what was refused."""
    for number in range(rounds):
        rows = {**rows_of("a", samples), "scores": table_of(SCORES, [score("a", samples=samples)])}
        start.wait(60)
        try:
            append_run(folder / str(number), "a", rows)
            told.put((attempt, True))
        except Conflict:
            told.put((attempt, False))


def raced(folder: Path, samples: list[int], rounds: int) -> list[bool]:
    """What each attempt of each round came to; an attempt has so many rows of counts."""
    context = get_context("spawn")
    start, told = context.Barrier(len(samples)), context.Queue()
    racers = [context.Process(target=race, args=(folder, place, n, rounds, start, told)) for place, n in enumerate(samples)]
    for process in racers:
        process.start()
    found = [told.get(timeout=60)[1] for _ in range(rounds * len(samples))]
    for process in racers:
        process.join(60)
    assert [process.exitcode for process in racers] == [0] * len(samples)
    return found


def test_attempts_at_one_run_at_once_add_it_once(tmp_path: Path) -> None:
    """Four processes make the tables and append the same run at the same moment, again and again, and none is refused."""
    assert all(raced(tmp_path, [2, 2, 2, 2], rounds=10))
    for folder in tmp_path.iterdir():
        assert ours(folder) == ["a"]
        rows = {name: read_table(folder, name).num_rows for name in tables.TABLES}
        assert rows == {"counts": 2, "depths": 1, "renders": 0, "fits": 0, "scores": 1 + published_scores().num_rows}
        assert {name: log_of(folder, name) for name in tables.TABLES} == {
            "counts": 2,
            "depths": 2,
            "renders": 2,
            "fits": 2,
            "scores": 3,
        }


def test_attempts_with_other_rows_at_once_leave_one_of_them(tmp_path: Path) -> None:
    assert any(raced(tmp_path, [1, 2, 3], rounds=6))
    for folder in tmp_path.iterdir():
        (judged,) = (row for row in read_table(folder, "scores").to_pylist() if not row["published"])
        assert read_table(folder, "counts").num_rows == judged["samples"]


@pytest.mark.parametrize("others", [(), ("c", "d")])
def test_a_run_that_another_process_adds_between_look_and_commit_is_not_added_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: tuple[str, ...]
) -> None:
    append_run(tmp_path, "a", rows_of("a"))

    def overtaken(*given: Any, **more: Any) -> None:
        monkeypatch.setattr(tables, "write_deltalake", write_deltalake)
        for run in ("b", *others):
            assert tables._commit(tmp_path, "counts", run, rows_of(run)["counts"])
        write_deltalake(*given, **more)

    monkeypatch.setattr(tables, "write_deltalake", overtaken)
    assert not tables._commit(tmp_path, "counts", "b", rows_of("b")["counts"])
    found = tables._read(tmp_path, "counts", tables._open(tmp_path, "counts"), ["run"])["run"].to_pylist()
    assert sorted(found) == sorted(2 * ("a", "b", *others))


@pytest.mark.parametrize(("times", "added"), [(1, True), (2, True), (9, False)])
def test_a_table_that_changes_between_look_and_commit_is_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int, added: bool
) -> None:
    append_run(tmp_path, "a", rows_of("a"))
    changes = iter(range(times))

    def overtaken(*given: Any, **more: Any) -> None:
        for change in changes:
            DeltaTable(str(tmp_path / "counts")).alter.set_table_properties({"delta.checkpointInterval": str(50 + change)})
            break
        write_deltalake(*given, **more)

    monkeypatch.setattr(tables, "write_deltalake", overtaken)
    if added:
        assert tables._commit(tmp_path, "counts", "b", rows_of("b")["counts"])
    else:
        with pytest.raises(Conflict, match=r"'b' could not be added to counts .*Run the same again"):
            tables._commit(tmp_path, "counts", "b", rows_of("b")["counts"])
    found = tables._read(tmp_path, "counts", tables._open(tmp_path, "counts"), ["run"])["run"].to_pylist()
    assert found.count("b") == 2 * added


def test_a_table_left_out_has_no_rows_in_another_attempt_either(tmp_path: Path) -> None:
    append_run(tmp_path, "a", rows_of("a"))
    tables._commit(tmp_path, "counts", "b", rows_of("b")["counts"])
    with pytest.raises(Conflict, match="'b' has other rows in counts"):
        append_run(tmp_path, "b", {"scores": rows_of("b")["scores"]})
    assert ours(tmp_path) == ["a"]


def die_before(folder: Path, run: str, name: str) -> None:
    """Append a run in a process that is killed just before it would commit one table."""
    commit = tables._commit

    def killed(where: Path, table: str, of: str, rows: pa.Table) -> bool:
        if (table, of) == (name, run):
            os.kill(os.getpid(), signal.SIGKILL)
        return commit(where, table, of, rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "_commit", killed)
        append_run(folder, run, rows_of(run))


@pytest.mark.parametrize("name", ["counts", "depths", "scores"])
def test_a_killed_run_is_not_seen_and_its_repetition_completes_it(tmp_path: Path, name: str) -> None:
    append_run(tmp_path, "a", rows_of("a"))
    process = get_context("spawn").Process(target=die_before, args=(tmp_path, "b", name))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert DeltaTable(str(tmp_path / "counts")).transaction_version("b") == (None if name == "counts" else 1)
    for table in tables.TABLES:
        assert set(read_table(tmp_path, table)["run"].to_pylist()) <= {"a", *(result.run for result in PUBLISHED)}
    assert query(tmp_path, "SELECT DISTINCT run FROM counts UNION SELECT run FROM depths").to_pylist() == [{"run": "a"}]
    append_run(tmp_path, "b", rows_of("b"))
    assert ours(tmp_path) == ["a", "b"]
    assert read_table(tmp_path, "counts").num_rows == 4
    assert read_table(tmp_path, "depths").num_rows == 2


NEW_COLUMNS = ("training", "settings", "epoch", "step")


def make_version_1(folder: Path) -> list[dict[str, Any]]:
    """Tables as version 1 wrote them, of the published results and run "old"; their rows of scores."""
    old = pa.schema([column for column in SCORES if column.name not in NEW_COLUMNS])
    published, scores = (table.drop_columns(NEW_COLUMNS) for table in (published_scores(), rows_of("old")["scores"]))
    for name, schema in (("counts", COUNTS), ("depths", DEPTHS), ("scores", old)):
        DeltaTable.create(str(folder / name), schema, configuration={"delta.appendOnly": "true"})
    for name, run, rows in (
        ("scores", "published", published),
        *((name, "old", rows_of("old")[name]) for name in ("counts", "depths")),
        ("scores", "old", scores),
    ):
        once = CommitProperties(app_transactions=[Transaction(run, 1)])
        write_deltalake(DeltaTable(str(folder / name)), rows, mode="append", commit_properties=once)
    return [*published.to_pylist(), *scores.to_pylist()]


def by_text(rows: Iterable[Any]) -> list[Any]:
    return sorted(rows, key=str)


def test_tables_of_version_1_are_read_and_asked_as_they_are(tmp_path: Path) -> None:
    rows = [{**row, **dict.fromkeys(NEW_COLUMNS)} for row in make_version_1(tmp_path)]
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert by_text(read_table(tmp_path, "scores").to_pylist()) == by_text(rows)
    asked = query(tmp_path, "SELECT * FROM scores").cast(SCORES)
    assert by_text(asked.to_pylist()) == by_text(rows)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_tables_that_a_folder_is_too_old_for_are_empty_until_a_run_is_added(tmp_path: Path) -> None:
    make_version_1(tmp_path)
    assert not (tmp_path / "fits").exists()
    assert read_table(tmp_path, "fits").equals(FITS.empty_table())
    assert query(tmp_path, "SELECT count(*) AS rows FROM renders").to_pylist() == [{"rows": 0}]
    fit = {"run": "new", "store_version": "v", "template": "sphere", "settings": "{}", "views": 9, "held_out": 1, "epochs": 5}
    told = table_of(FITS, [fit | {"vertices": 642, "faces": 1280, "loss": 0.1, "seconds": 2.0}])
    append_run(tmp_path, "new", {**rows_of("new"), "fits": told})
    assert read_table(tmp_path, "fits").equals(told)
    assert query(tmp_path, "SELECT template, chamfer FROM fits").to_pylist() == [{"template": "sphere", "chamfer": None}]


def test_a_run_added_to_tables_of_version_1_brings_the_new_columns(tmp_path: Path) -> None:
    rows = [{**row, **dict.fromkeys(NEW_COLUMNS)} for row in make_version_1(tmp_path)]
    place = {"training": "out/train", "settings": "abc", "epoch": 3, "step": 1 << 40}
    added = table_of(SCORES, [score("new", **place)])
    for _ in range(2):
        append_run(tmp_path, "new", {**rows_of("new"), "scores": added})
    append_run(tmp_path, "old", rows_of("old"))  # is there already
    assert by_text(read_table(tmp_path, "scores").to_pylist()) == by_text([*rows, *added.to_pylist()])
    asked = query(tmp_path, "SELECT run, epoch, step FROM scores WHERE step IS NOT NULL")
    assert asked.to_pylist() == [{"run": "new", "epoch": 3, "step": 1 << 40}]
    assert read_table(tmp_path, "counts").num_rows == 4


def test_processes_at_once_lose_no_row_of_tables_of_version_1(tmp_path: Path) -> None:
    make_version_1(tmp_path)
    context = get_context("spawn")
    writers = [context.Process(target=write_runs, args=(tmp_path, writer, 3)) for writer in range(3)]
    for process in writers:
        process.start()
    for process in writers:
        process.join(120)
    assert [process.exitcode for process in writers] == [0, 0, 0]
    assert ours(tmp_path) == ["0-0", "0-1", "0-2", "1-0", "1-1", "1-2", "2-0", "2-1", "2-2", "old"]
    assert DeltaTable(str(tmp_path / "scores")).version() == 12  # created, two runs of version 1, columns, nine runs, from 0


def test_two_attempts_are_never_mixed(tmp_path: Path) -> None:
    append_run(tmp_path, "a", rows_of("a"))
    tables._commit(tmp_path, "counts", "b", rows_of("b", samples=3)["counts"])
    with pytest.raises(Conflict, match="'b' has other rows in counts"):
        append_run(tmp_path, "b", rows_of("b", samples=2))
    shuffled = rows_of("b", samples=3)["counts"].take([2, 0, 1])
    append_run(tmp_path, "b", {**rows_of("b"), "counts": shuffled})
    assert read_table(tmp_path, "counts").num_rows == 5


def test_a_killed_creation_is_completed(tmp_path: Path) -> None:
    DeltaTable.create(str(tmp_path / "counts"), COUNTS)
    with pytest.raises(NotPublished, match="no metric tables"):
        read_table(tmp_path, "counts")
    append_run(tmp_path, "a", rows_of("a"))
    assert read_table(tmp_path, "scores").num_rows == 1 + published_scores().num_rows


@pytest.mark.parametrize("run", HOSTILE)
def test_a_run_may_be_called_anything(tmp_path: Path, run: str) -> None:
    folder = tmp_path / "tables"
    append_run(folder, run, rows_of(run))
    append_run(folder, run, rows_of(run))
    assert ours(folder) == [run]
    assert read_table(folder, "counts")["run"].to_pylist() == [run, run]
    assert [path.name for path in tmp_path.iterdir()] == ["tables"]
    assert sorted(path.name for path in folder.iterdir()) == sorted(tables.TABLES)
    assert {path.suffix for path in (folder / "counts").iterdir() if path.is_file()} == {".parquet"}  # no folder named by a run


@pytest.mark.parametrize("name", ["with space", "ü #?&+=@", "a'b\"c", "日本"])
def test_folders_may_have_odd_names(tmp_path: Path, name: str) -> None:
    append_run(tmp_path / name, "a", rows_of("a"))
    assert query(tmp_path / name, "SELECT count(*) AS rows FROM counts").to_pylist() == [{"rows": 2}]
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["a%41", "a[1]", "a|b", "a^b", "a\\b", "a\nb"])
def test_folders_that_delta_cannot_name_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="use another folder"):
        append_run(tmp_path / name, "a", rows_of("a"))
    assert list(tmp_path.iterdir()) == []


def test_tables_without_rows(tmp_path: Path) -> None:
    append_run(tmp_path, "a", {**rows_of("a"), "counts": COUNTS.empty_table(), "depths": DEPTHS.empty_table()})
    append_run(tmp_path, "b", {"scores": rows_of("b")["scores"]})
    assert read_table(tmp_path, "counts").equals(COUNTS.empty_table())
    assert query(tmp_path, "SELECT * FROM depths").num_rows == 0
    assert ours(tmp_path) == ["a", "b"]


def wrong_type(run: str) -> pa.Table:
    table = rows_of(run)["counts"]
    return table.set_column(8, pa.field("tp", pa.int32(), nullable=False), table["tp"].cast(pa.int32()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": None}, "it has no scores"),
        ({"scores": SCORES.empty_table()}, "it has no scores"),
        ({"counts": wrong_type("a")}, r"it lacks 'pyarrow\.Field<tp: int64 not null>'"),
        ({"counts": rows_of("a")["counts"].drop_columns(["fn"])}, r"it lacks 'pyarrow\.Field<fn"),
        ({"counts": rows_of("a")["counts"].append_column("more", pa.array([1, 2]))}, r"'pyarrow\.Field<more: int64>' is no column"),
        ({"counts": rows_of("a")["counts"].select(COUNTS.names[::-1])}, "in another order"),
        ({"counts": pa.Table.from_pylist([counts("a", tp=None)], COUNTS)}, "no value in a row of tp"),
        ({"counts": rows_of("b")["counts"]}, "holds rows of 'b'"),
        ({"tallies": rows_of("a")["counts"]}, "no table is called tallies"),
    ],
)
def test_what_is_not_as_it_must_be_is_refused_whole(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    given = {name: table for name, table in {**rows_of("a"), **changes}.items() if table is not None}
    with pytest.raises(ConfigError, match=message):
        append_run(tmp_path, "a", given)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("run", ["", "published", "published/BUOL/front3d/mine"])
def test_run_ids_that_are_taken(tmp_path: Path, run: str) -> None:
    with pytest.raises(ConfigError, match="a run id is not empty"):
        append_run(tmp_path, run, rows_of(run))


def test_no_tables_and_no_such_table(tmp_path: Path) -> None:
    with pytest.raises(NotPublished, match="no metric tables here"):
        datasets(tmp_path)
    with pytest.raises(ConfigError, match="there are counts, depths, fits, renders, scores"):
        read_table(tmp_path, "score")


def test_rows_cannot_be_deleted(tmp_path: Path) -> None:
    append_run(tmp_path, "a", rows_of("a"))
    with pytest.raises(Exception, match=r"append-only|appendOnly|append only"):
        DeltaTable(str(tmp_path / "counts")).delete()


def percentages(model: str, source: str, variant: str = "documentation") -> dict[str, list[float | None]]:
    rows = [row for row in published_scores().to_pylist() if row["run"] == f"published/{model}/{source}/{variant}"]
    measures = ("quality", "segmentation", "recognition")
    return {row["group"]: [None if row[name] is None else round(100 * row[name], 6) for name in measures] for row in rows}


def test_published_rows_are_those_of_the_tables() -> None:
    """From the fact sheet of metrics, section 7."""
    expected = {
        ("BUOL", "front3d"): "54.01 / 49.73 / 73.30 | 63.81 / 60.57 / 78.37 | 82.99 / 80.67 / 93.42",
        ("Uni3D", "front3d"): "52.76 / 47.29 / 77.41 | 60.98 / 56.56 / 80.87 | 84.26 / 81.81 / 95.31",
        ("NvPanoptix3D", "front3d"): "54.32 / 49.74 / 74.90 | 62.95 / 58.98 / 80.80 | 83.94 / 82.15 / 92.00",
        ("BUOL", "matterport"): "14.47 / 10.97 / 24.94 | 45.71 / 45.30 / 46.93 | 30.91 / 23.81 / 52.22",
        ("Uni3D", "matterport"): "16.32 / 13.21 / 29.33 | 44.36 / 44.58 / 44.09 | 36.48 / 29.33 / 65.19",
        ("NvPanoptix3D", "matterport"): "17.63 / 14.79 / 28.04 | 45.27 / 45.68 / 43.31 | 38.98 / 32.26 / 64.02",
    }
    for (model, source), line in expected.items():
        cells = [[float(value) for value in cell.split("/")] for cell in line.split("|")]
        by_group = {group: [cell[place] for cell in cells] for place, group in enumerate(("all", "things", "stuff"))}
        assert percentages(model, source) == by_group


def test_other_published_values() -> None:
    assert percentages("BUOL", "front3d", "repository") == {
        "all": [54.05, 63.72, 83.14],
        "things": [49.77, None, None],
        "stuff": [73.34, None, None],
    }
    assert percentages("BUOL", "matterport", "repository")["all"] == [14.54, 45.91, 31.08]
    assert percentages("Uni3D", "front3d", "single-scale") == {"all": [52.51, 60.89, 83.97]}
    assert percentages("Uni3D", "front3d", "multi-scale") == {"all": [53.53, 61.69, 84.69]}
    assert percentages("Uni3D", "matterport", "authors") == {"all": [16.58, 44.26, 36.68]}
    assert percentages("Dahnert et al.", "front3d", "paper") == {"all": [46.77, None, None]}


@pytest.mark.parametrize(
    ("model", "source", "stuff"), [(m, "front3d", 2) for m in ("BUOL", "Uni3D", "NvPanoptix3D")] + [("BUOL", "matterport", 3)]
)
def test_all_is_the_mean_over_nine_things_and_the_stuff(model: str, source: str, stuff: int) -> None:
    rows = percentages(model, source)
    for whole, things, of_stuff in zip(rows["all"], rows["things"], rows["stuff"], strict=True):
        assert whole is not None and things is not None and of_stuff is not None
        assert abs((9 * things + stuff * of_stuff) / (9 + stuff) - whole) < 0.0125  # both sides are rounded to 0.01


def test_published_rows_are_the_same_every_time() -> None:
    table = published_scores()
    assert table.equals(published_scores())
    assert len({result.run for result in PUBLISHED}) == len(PUBLISHED)
    assert set(table["published"].to_pylist()) == {True}
    assert table["tp"].null_count == table["samples"].null_count == table.num_rows


def test_text_that_is_none_is_told_by_tables_and_by_questions(tmp_path: Path) -> None:
    append_run(tmp_path, "run", rows_of("run", 1))
    (file,) = (tmp_path / "counts").glob("*.parquet")
    before = file.stat().st_size
    pq.write_table(pq.ParquetFile(file).read(), file, compression="none", use_dictionary=False, write_statistics=False)
    data = file.read_bytes()
    assert data.count(b"chair") == 1
    file.write_bytes(data.replace(b"chair", b"\xffhair"))
    log = max((tmp_path / "counts" / "_delta_log").glob("*.json"))
    log.write_text(log.read_text().replace(f'"size":{before}', f'"size":{len(data)}'))
    with pytest.raises(Corrupt, match="UTF8"):
        read_table(tmp_path, "counts")
    with pytest.raises(ConfigError, match=r"(?i)utf-?8"):
        query(tmp_path, "SELECT class_name FROM counts")
