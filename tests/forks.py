"""Runs the command line again and again without paying for its imports each time; a program of its own, ``python -m tests.forks``.

Reads requests from standard input, one JSON document a line, and answers each on standard output:

    {"args": ["ingest", ...], "env": {...}, "out": PATH, "err": PATH, "cwd": PATH}
                                      forks a process that runs the command  ->  its process id
    {"deed": NAME, "given": {...}, ...}  the same for a function of ``tests/faults/deeds.py``
    {"wait": PID}                     ->  its exit code, below zero for a signal
    {"load": MODULE}                  imports what later forks shall find imported  ->  0
"""

import importlib
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from scenemill.pipelines.cli import main

DEEDS = "tests.faults.deeds"
NEEDED = ("great_expectations", "OpenEXR", "scenemill.pipelines.ingest", "scenemill.pipelines.reports.human")
"""What most commands import."""


def run(do: Callable[..., None], env: Mapping[str, str | None], out: str, err: str, cwd: str, asked: Mapping[str, Any]) -> NoReturn:
    """Be the command or the deed: own session, own logs, no way back."""
    os.setsid()
    for stream, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for name, value in env.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    tempfile.tempdir = None  # looked up again, as the variables may name another
    os.chdir(cwd)
    code: Any = 1
    try:
        do(**asked)
        code = 0
    except SystemExit as leave:
        code = leave.code
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def do(args: list[str] | None = None, deed: str = "", given: dict[str, Any] | None = None) -> None:
    if args is not None:
        sys.argv = ["scenemill", *args]
        main()
    else:
        getattr(importlib.import_module(DEEDS), deed)(**given or {})


def load(module: str) -> int:
    importlib.import_module(module)
    return 0


def exit_code(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def serve(do: Callable[..., None]) -> None:
    """Answer until nobody asks; what is asked is done by a function, in a process of its own."""
    for line in sys.stdin:
        request = json.loads(line)
        if "load" in request:
            answer = load(request["load"])
        elif "wait" in request:
            answer = exit_code(request["wait"])
        else:
            how = {name: request.pop(name) for name in ("env", "out", "err", "cwd")}
            answer = os.fork() or run(do, **how, asked=request)
        print(answer, flush=True)


if __name__ == "__main__":
    for needed in NEEDED:
        load(needed)
    serve(do)
