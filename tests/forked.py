"""The command line in processes forked from one that has its imports behind it: what a test of a process pays is the process alone."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SAID: Final = "forks.txt"
ROOT: Final = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Done:
    """A command that has ended: its exit code, below zero for a signal, and what it said.

    Attributes:
        code: the exit code.
        out: standard output.
        err: standard error.
    """

    code: int
    out: str
    err: str

    @property
    def said(self) -> str:
        """All of it."""
        return self.out + self.err


class Server:
    """The process that the others are forked from."""

    def __init__(self, process: "subprocess.Popen[str]", logs: Path) -> None:
        self._process = process
        self._logs = logs
        self._logs_of: dict[int, tuple[Path, Path]] = {}
        self._started = 0

    def _ask(self, request: Mapping[str, object]) -> int:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, f"the process that commands are forked from has ended: {(self._logs / SAID).read_text()}"
        return int(answer)

    def load(self, *modules: str) -> None:
        """Have modules imported before the processes that need them are forked."""
        for module in modules:
            self._ask({"load": module})

    def fork(self, asked: Mapping[str, object], environment: Mapping[str, str | None], cwd: Path | None = None) -> int:
        """Start what is asked; variables that are None are taken away. Returns its process id."""
        self._started += 1
        out, err = (self._logs / f"{self._started}.{name}" for name in ("out", "err"))
        for log in (out, err):
            log.touch()  # a process may be killed before it opens it
        pid = self._ask({**asked, "env": environment, "out": str(out), "err": str(err), "cwd": str(cwd or Path.cwd())})
        self._logs_of[pid] = (out, err)
        return pid

    def wait(self, pid: int) -> Done:
        """Wait for the end of what was started."""
        code = self._ask({"wait": pid})
        return Done(code, *(log.read_text(errors="replace") for log in self._logs_of.pop(pid)))


class CommandLine:
    """Starts commands, and waits for them."""

    def __init__(self, server: Server) -> None:
        self.load, self.fork, self.wait = server.load, server.fork, server.wait

    def begin(self, *args: object, environment: Mapping[str, str | None] | None = None, cwd: Path | None = None) -> int:
        """Start a command; returns its process id."""
        return self.fork({"args": [str(arg) for arg in args]}, environment or {}, cwd)

    def call(self, *args: object, environment: Mapping[str, str | None] | None = None, cwd: Path | None = None) -> Done:
        """Start a command, and wait for its end."""
        return self.wait(self.begin(*args, environment=environment, cwd=cwd))


@contextmanager
def forked(
    logs: Path, program: str = "tests.forks", *modules: str, environment: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """A server, with modules imported before anything is asked."""
    told = os.environ | {"GX_ANALYTICS_ENABLED": "false", "OMP_NUM_THREADS": "1"} | dict(environment or {})
    with (
        (logs / SAID).open("w") as said,
        subprocess.Popen(
            [sys.executable, "-m", program],
            cwd=ROOT,
            env=told,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
        ) as process,
    ):
        server = Server(process, logs)
        server.load(*modules)
        yield server
        process.kill()
