"""A thread that finds no memory to begin with: the process ends, with its word; threads that begin late or end end nothing."""

import json
import subprocess
import sys

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
