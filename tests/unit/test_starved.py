"""Memory that runs out where Python or a library says it badly: a thread that never begins, an error that is wrapped in another.

Threads that begin late, or have ended, end nothing.
"""

import json
import subprocess
import sys
from typing import NoReturn

import pytest

from scenemill.pipelines import cli

# what the interpreter does to a thread without memory: it is gone before it has said that it runs
SCRIPT = """
import _thread, sys, threading, time
from scenemill.pipelines import cli, starved
starved._LOOK_S, starved._LOOKS = 0.05, 20
sys.argv = ["scenemill", *sys.argv[1:]]

class Unborn(threading.Thread):
    def _bootstrap(self):
        _thread.exit()

class Late(threading.Thread):
    def _bootstrap(self):
        time.sleep(0.03)
        super()._bootstrap()

starved.end_when_starved(cli._tell_starved)
for _ in range(10):
    Late(target=time.sleep, args=(0.02,)).start()
    time.sleep(0.02)
print("begun", flush=True)
Unborn().start()
print("never said")
"""


def run(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", SCRIPT, *words], capture_output=True, text=True, timeout=60, check=False)


def test_a_process_whose_thread_never_begins_ends_with_one_line() -> None:
    done = run()
    assert (done.returncode, done.stdout) == (1, "begun\n")
    assert done.stderr == (
        "MemoryError: memory ran out (for a thread); give the command more, or let it do less at once, and run it again\n"
    )


def test_machines_are_told_as_of_any_other_error() -> None:
    done = run("--json")
    told = json.loads(done.stdout.splitlines()[-1])
    assert (done.returncode, told["error"], told["exit"]) == (1, "MemoryError", 1)


def wrapped(told: BaseException | None, *, hidden: bool = False) -> RuntimeError:
    """As Beam does to what it meets while it makes a graph."""
    error = RuntimeError("Unable to translate")
    error.__cause__ = None if hidden else told
    error.__context__ = told
    error.__suppress_context__ = hidden
    return error


@pytest.mark.parametrize(
    ("error", "is_of_memory"),
    [
        (wrapped(MemoryError()), True),
        (wrapped(wrapped(OSError("Cannot allocate memory"))), True),
        (wrapped(ImportError("/lib/a.so: failed to map segment from shared object")), True),
        (wrapped(ImportError("/lib/a.so: failed to map segment from shared object: Operation not permitted")), False),
        (wrapped(ValueError("of something else")), False),
        (wrapped(MemoryError(), hidden=True), False),
    ],
)
def test_want_of_memory_is_told_whatever_it_is_wrapped_in(
    error: RuntimeError, is_of_memory: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(**_: object) -> NoReturn:
        raise error

    monkeypatch.setattr(cli, "app", run)
    monkeypatch.setattr(cli, "end_when_starved", lambda tell: None)
    monkeypatch.setattr("sys.argv", ["scenemill", "verify"])
    with pytest.raises(SystemExit if is_of_memory else RuntimeError) as ended:
        cli.main()
    assert capsys.readouterr().err.startswith("MemoryError: memory ran out") is is_of_memory
    assert not is_of_memory or (isinstance(ended.value, SystemExit) and ended.value.code == 1)
