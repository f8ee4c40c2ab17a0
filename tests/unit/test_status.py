"""What a run says of itself: lines of status, TensorBoard's curves, and what Weights & Biases is told, read back from its files."""

import json
import os
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from socket import create_server
from typing import Any

import pytest

from scenemill.schemas.errors import ConfigError
from scenemill.schemas.experiment import ExperimentConfig, WandbConfig
from scenemill.trainers.status import Curves, StatusLog

_BLOCK = 32768  # of the log format: a record's pieces never cross one
_FULL, _LAST = 1, 4  # kinds of pieces that end a record


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Nobody is logged in, in no way, and nothing is printed; what the library has read of the environment is forgotten after."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "home" / ".netrc"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    yield
    if wandb := sys.modules.get("wandb"):
        wandb.teardown()


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="needs Weights & Biases: pip install 'scenemill[wandb]'")
    monkeypatch.setenv("WANDB_MODE", "offline")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A server that stands for the whole network; a function that says whether anybody called."""
    with create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        for name in ("HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{server.getsockname()[1]}")

        def called() -> bool:
            try:
                server.accept()[0].close()
            except BlockingIOError:
                return False
            return True

        yield called


def records(folder: Path) -> list[list[Any]]:
    """The records of each run of Weights & Biases in a folder, by time, once all are there: a run ends before its file does."""
    paths = list(folder.glob("wandb/*run-*/run-*.wandb"))
    deadline = time.monotonic() + 30
    while True:
        found = [list(records_of(path)) for path in paths]
        if all(any(record.HasField("exit") for record in each) for each in found):
            return sorted(found, key=lambda each: int(run_of(each).start_time.ToNanoseconds()))
        assert time.monotonic() < deadline, "the files of Weights & Biases are not finished"
        time.sleep(0.05)


def records_of(path: Path) -> Iterator[Any]:
    """Read the file as its format says: 7 bytes, then LevelDB's log in blocks, the first of which the 7 bytes belong to."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, record = path.read_bytes(), 7, b""
    while place < len(data):
        if _BLOCK - place % _BLOCK < 7:
            place += _BLOCK - place % _BLOCK
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (_FULL, _LAST):
            yield Record.FromString(record)
            record = b""


def histories(found: list[Any]) -> list[dict[str, float]]:
    items = [record.history.item for record in found if record.HasField("history")]
    return [{item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in each} for each in items]


def run_of(found: list[Any]) -> Any:
    return next(record.run for record in found if record.HasField("run"))


def exit_code(found: list[Any]) -> int:
    return next(int(record.exit.exit_code) for record in found if record.HasField("exit"))


def write_curves(folder: Path, wandb: WandbConfig, steps: range = range(3)) -> None:
    curves = Curves(folder, ExperimentConfig(wandb=wandb, encryption_key="sesame"))
    for step in steps:
        curves.write({"train_loss": 1 / (step + 1), "learning_rate": 1e-3}, step)
    curves.write({"val_dpq": 50.0}, steps[-1])
    curves.close()


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_status_is_a_line_of_json_for_each_thing_that_happened(tmp_path: Path) -> None:
    before = datetime.now().replace(microsecond=0)
    log = StatusLog(tmp_path / "new")
    log.write("STARTED", "Begins.")
    StatusLog(tmp_path / "new").write("RUNNING", verbosity="WARNING", epoch=3, kpi={"a": 0.5})
    first, second = (json.loads(line) for line in (tmp_path / "new" / "status.json").read_text().splitlines())
    written = datetime.strptime(f"{first.pop('date')} {first.pop('time')}", "%m/%d/%Y %H:%M:%S")
    assert before <= written <= datetime.now()
    assert first == {"status": "STARTED", "verbosity": "INFO", "message": "Begins."}
    assert {name: second[name] for name in ("status", "verbosity", "epoch", "kpi")} == {
        "status": "RUNNING",
        "verbosity": "WARNING",
        "epoch": 3,
        "kpi": {"a": 0.5},
    }
    assert "message" not in second


def test_curves_are_tensorboards_where_nobody_is_logged_in(tmp_path: Path, calls: Any) -> None:
    write_curves(tmp_path, WandbConfig())
    assert scalars(tmp_path, "train_loss") == [(0, 1.0), (1, 0.5), (2, pytest.approx(1 / 3))]
    assert scalars(tmp_path, "val_dpq") == [(2, 50.0)]
    assert [path.name for path in tmp_path.iterdir()] == ["tensorboard"]
    assert not calls()


def test_offline_every_setting_and_number_is_written_and_nobody_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: None, calls: Any
) -> None:
    (tmp_path / "main.py").write_text("pass")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_PROGRAM", "main.py")
    told = WandbConfig(project="P", entity="E", group="G", run_id="r1", tags=("a", "b"), name="N", save_code=True)
    write_curves(tmp_path, told)
    (found,) = records(tmp_path)
    run = run_of(found)
    assert (run.project, run.entity, run.run_group, run.run_id, run.display_name) == ("P", "E", "G", "r1", "N")
    assert list(run.tags) == ["a", "b"]
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert config["train"]["optim"]["lr"] == ExperimentConfig().train.optim.lr
    assert "encryption_key" not in config
    assert b"sesame" not in b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    points = [{name: row[name] for name in row if not name.startswith("_") or name == "_step"} for row in histories(found)]
    assert points == [
        {"_step": 0, "train_loss": 1.0, "learning_rate": 1e-3},
        {"_step": 1, "train_loss": 0.5, "learning_rate": 1e-3},
        {"_step": 2, "train_loss": 1 / 3, "learning_rate": 1e-3, "val_dpq": 50.0},
    ]
    assert exit_code(found) == 0
    assert [path.read_text() for path in tmp_path.glob("wandb/*run-*/files/code/*")] == ["pass"]
    assert not calls()


def test_a_training_that_goes_on_is_one_run(tmp_path: Path, offline: None) -> None:
    write_curves(tmp_path / "a", WandbConfig(), range(3))
    write_curves(tmp_path / "a", WandbConfig(), range(3, 5))
    write_curves(tmp_path / "b", WandbConfig(), range(3))
    first, second = records(tmp_path / "a")
    (other,) = records(tmp_path / "b")
    assert run_of(first).run_id == run_of(second).run_id != run_of(other).run_id
    assert [row["_step"] for row in histories(first) + histories(second)] == [0, 1, 2, 3, 4]


def test_a_run_that_fails_is_told_so(tmp_path: Path, offline: None) -> None:
    curves = Curves(tmp_path, ExperimentConfig())
    with pytest.raises(ArithmeticError):
        try:
            raise ArithmeticError
        finally:
            curves.close()
    (found,) = records(tmp_path)
    assert exit_code(found) == 1


def test_what_tensorboard_gets_is_copied_not_written_twice(tmp_path: Path, offline: None) -> None:
    write_curves(tmp_path / "copied", WandbConfig(sync_tensorboard=True))
    write_curves(tmp_path / "written", WandbConfig())
    for name in ("copied", "written"):
        (found,) = records(tmp_path / name)
        losses = [row["train_loss"] for row in histories(found) if "train_loss" in row]
        assert losses == pytest.approx([1, 1 / 2, 1 / 3])


@pytest.mark.parametrize(("reinit", "runs"), [(False, ["a"]), (True, ["a", "b"])])
def test_a_second_run_in_one_process_is_one_of_its_own_where_allowed(
    tmp_path: Path, offline: None, reinit: bool, runs: list[str]
) -> None:
    first = Curves(tmp_path / "a", ExperimentConfig(wandb=WandbConfig(run_id="a")))
    second = Curves(tmp_path / "b", ExperimentConfig(wandb=WandbConfig(run_id="b", reinit=reinit)))
    second.write({"x": 1.0}, 0)
    second.close()
    first.close()
    found = [run_of(each).run_id for name in ("a", "b") for each in records(tmp_path / name)]
    assert found == runs


@pytest.mark.parametrize(("enable", "mode"), [(False, "offline"), (True, "disabled")])
def test_nothing_is_written_where_it_is_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, enable: bool, mode: str) -> None:
    monkeypatch.setenv("WANDB_MODE", mode)
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    write_curves(tmp_path, WandbConfig(enable=enable))
    assert [path.name for path in tmp_path.iterdir()] == ["tensorboard"]


@pytest.mark.parametrize(("name", "value"), [("WANDB_MODE", "offline"), ("WANDB_API_KEY", "x" * 40)])
def test_a_missing_library_is_told_to_who_asked_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    write_curves(tmp_path / "silent", WandbConfig())
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=rf"{name} is set, but Weights & Biases is not installed: .*scenemill\[wandb\]"):
        Curves(tmp_path, ExperimentConfig())
    write_curves(tmp_path / "off", WandbConfig(enable=False))


def test_what_the_library_refuses_is_an_error_of_the_call(tmp_path: Path, offline: None) -> None:
    with pytest.raises(ConfigError, match="Weights & Biases refuses"):
        Curves(tmp_path, ExperimentConfig(wandb=WandbConfig(run_id="a/b")))


@pytest.mark.parametrize("login", ["WANDB_API_KEY", "NETRC"])
def test_where_one_is_logged_in_the_server_is_called_and_its_silence_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: Any, login: str
) -> None:
    pytest.importorskip("wandb", reason="needs Weights & Biases: pip install 'scenemill[wandb]'")
    monkeypatch.setenv("WANDB_BASE_URL", os.environ["HTTP_PROXY"])
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "1")
    if login == "NETRC":
        host = os.environ["HTTP_PROXY"].removeprefix("http://")
        (tmp_path / "netrc").write_text(f"machine {host}\n  login user\n  password {'x' * 40}\n")
        (tmp_path / "netrc").chmod(0o600)
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    else:
        monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    with pytest.raises(ConfigError, match="Weights & Biases refuses"):
        Curves(tmp_path, ExperimentConfig())
    assert calls()
