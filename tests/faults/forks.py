"""Runs the command line again and again without paying for its imports each time; a program of its own.

Reads requests from standard input, one JSON document a line, and answers each on standard output:

    {"args": ["ingest", ...], "env": {...}, "log": PATH}    forks a process that runs the command  ->  its process id
    {"deed": NAME, "given": {...}, "env": ..., "log": ...}   the same for a function of ``deeds.py``
    {"wait": PID}                                            ->  its exit code, below zero for a signal
    {"load": MODULE}                                         imports what later forks shall find imported  ->  0
"""

import importlib
import json
import os
import sys
import traceback
from typing import Any, NoReturn

import great_expectations  # noqa: F401  (what the command would import, once)
import OpenEXR  # noqa: F401

from scenemill.pipelines import ingest  # noqa: F401
from scenemill.pipelines.cli import main
from scenemill.pipelines.reports import human  # noqa: F401


def run(env: dict[str, str], log: str, **asked: Any) -> NoReturn:
    """Be the command or the deed: own session, own log, no way back."""
    os.setsid()
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(handle, stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.update(env)
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
        getattr(importlib.import_module("deeds"), deed)(**given or {})


def load(module: str) -> int:
    importlib.import_module(module)
    return 0


def exit_code(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def serve() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        if "load" in request:
            answer = load(request["load"])
        elif "wait" in request:
            answer = exit_code(request["wait"])
        else:
            answer = os.fork() or run(**request)
        print(answer, flush=True)


if __name__ == "__main__":
    serve()
