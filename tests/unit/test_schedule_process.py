"""A conversion in a process of its own: its answer, its time, its end by a signal, and its end with who started it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scenemill.pipelines.schedule import process as schedule_process
from scenemill.pipelines.schedule.process import convert_apart
from scenemill.schemas.config import IngestConfig


def stand_in(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Let another program take the place of the conversion."""
    monkeypatch.setattr(schedule_process, "_COMMAND", (sys.executable, "-c", script))


def config(folder: Path) -> IngestConfig:
    return IngestConfig("front3d", folder / "raw", folder / "store", splits=("train", "val"), max_rejected=0.5)


def test_the_process_is_told_all_settings_and_its_answer_is_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = (
        "import sys, json, pickle; asked = pickle.load(sys.stdin.buffer); print('noise', file=sys.stderr)\n"
        "print(json.dumps({'version': repr(asked), 'stored': 7, 'rejected': 1}))"
    )
    stand_in(monkeypatch, script)
    result = convert_apart(config(tmp_path), tmp_path / "logs" / "a.log")
    assert (result.reason, result.stored, result.rejected, result.version) == ("", 7, 1, repr(config(tmp_path)))
    assert (tmp_path / "logs" / "a.log").read_text() == "noise\n"


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("import os; os.kill(os.getpid(), 9)", "its process was ended by signal 9 (Killed); see"),
        ("raise SystemExit(70)", "its process ended with exit code 70; see"),
    ],
)
def test_a_process_without_an_answer_is_a_failure_with_its_reason(
    script: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch, script)
    result = convert_apart(config(tmp_path), tmp_path / "a.log")
    assert result.reason.startswith(said)
    assert (result.stored, result.version) == (None, None)


def test_a_process_that_takes_too_long_is_ended_with_those_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = (
        "import subprocess, sys, time, pathlib\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(child.pid)); time.sleep(600)"
    )
    stand_in(monkeypatch, script)
    result = convert_apart(config(tmp_path), tmp_path / "a.log", timeout_s=2.0)
    assert result.reason.startswith("its process was ended by signal 9 (Killed) after its timeout of 2 s")
    assert_gone(int((tmp_path / "pid").read_text()))


def test_workers_that_a_killed_process_leaves_are_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = (
        "import subprocess, sys, os, pathlib\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(child.pid)); os.kill(os.getpid(), 9)"
    )
    stand_in(monkeypatch, script)
    convert_apart(config(tmp_path), tmp_path / "a.log")
    assert_gone(int((tmp_path / "pid").read_text()))


def test_a_call_that_is_wrong_is_answered_in_words(tmp_path: Path) -> None:
    """By the true process."""
    result = convert_apart(config(tmp_path), tmp_path / "a.log")
    assert result.reason.startswith("ConfigError: ")
    assert str(tmp_path / "raw") in result.reason
    assert result.seconds > 0


def test_a_conversion_ends_when_who_started_it_is_killed(tmp_path: Path) -> None:
    """The true process, held up on its way; its starter is killed, and it is gone with the lock that it held."""
    told = tmp_path / "told"
    held = (
        "import os, time; from pathlib import Path; import scenemill.pipelines.schedule.process as process\n"
        "from scenemill.transforms.publish import write_whole\n"
        f"process._convert = lambda _: (write_whole(Path({str(told)!r}), str(os.getpid()).encode()), time.sleep(600))\n"
        "process.main()"
    )
    starter = (
        "import sys; from pathlib import Path; import scenemill.pipelines.schedule.process as process\n"
        "from scenemill.schemas.config import IngestConfig\n"
        f"process._COMMAND = (sys.executable, '-c', {held!r})\n"
        f"process.convert_apart(IngestConfig('front3d', Path('raw'), Path('store')), Path({str(tmp_path / 'log')!r}))"
    )
    with subprocess.Popen([sys.executable, "-c", starter]) as process:
        wait_for(told)
        process.send_signal(signal.SIGKILL)
    assert_gone(int(told.read_text()))


def wait_for(path: Path) -> None:
    until = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < until, f"{path} did not come"
        time.sleep(0.02)


def assert_gone(pid: int) -> None:
    """Within a minute no process has this id, or only what is left of one that nobody waits for."""
    until = time.monotonic() + 60
    while is_alive(pid):
        assert time.monotonic() < until, f"process {pid} lives on"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return not state.strip().startswith("Z")
