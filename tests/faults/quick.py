"""The command line from ``disk_forks.py``, on a disk that does as it is told."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.faults.conftest import Done, Mill

FORKS: Final = Path(__file__).with_name("disk_forks.py")


class QuickMill(Mill):
    """A mill whose every command may be given a disk of its own."""

    def begin(self, *args: object, environment: dict[str, str] | None = None) -> int:
        """Start a command; returns its process id."""
        self._started += 1
        log = self._logs / f"{self._started}.txt"
        pid = self._ask({"args": [str(arg) for arg in args], "env": environment or {}, "log": str(log)})
        self._log_of[pid] = log
        return pid

    def act(self, *args: object, root: Path | None = None, kill_at: str = "", room_mib: int = 0, **disk: object) -> Done:
        """Run a command; ``fail="28:3:0"`` is ``DISK_FAIL`` for what is below ``root``, and so on. With ``room_mib`` it gets so much
        memory beside what it begins with, and no more."""
        environment = {f"DISK_{name.upper()}": str(value) for name, value in disk.items()}
        environment |= {"DISK_ROOT": str(root or ""), "SCENEMILL_KILL_AT": kill_at, "MEMORY_ROOM_MIB": str(room_mib or "")}
        return self.wait(self.begin(*args, environment=environment))

    def build(
        self, world: Path, store: Path, *options: object, root: Path | None = None, kill_at: str = "", **disk: object
    ) -> Done:
        """Ingest a made-up folder, two samples to a part."""
        return self.act(*self.ingest_args(world, store, *options), root=root or store, kill_at=kill_at, room_mib=0, **disk)


@contextmanager
def quick_mill(logs: Path, library: Path | None = None, *modules: str) -> Iterator[QuickMill]:
    """A mill, with modules imported before its commands; with a library, all of them write through it."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | ({"LD_PRELOAD": str(library)} if library else {})
    with (
        (logs / "forks.txt").open("w") as said,
        subprocess.Popen(
            [sys.executable, str(FORKS), *modules],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
        ) as server,
    ):
        yield QuickMill(server, logs)
        server.kill()


def error_of(done: Done) -> str:
    """Name and message of the error that a command told, or all it said where it told none."""
    try:
        told = json.loads(done.said.strip().splitlines()[-1])
        return f"{told['error']}: {told['message']}"
    except (ValueError, LookupError, TypeError):
        return done.said
