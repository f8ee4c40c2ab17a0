"""The command line from ``disk_forks.py``, on a disk that does as it is told."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.faults.conftest import Mill
from tests.forked import Done, forked


class QuickMill(Mill):
    """A mill whose every command may be given a disk of its own."""

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
    environment = {"LD_PRELOAD": str(library)} if library else {}
    with forked(logs, "tests.faults.disk_forks", *modules, environment=environment) as server:
        yield QuickMill(server)


def error_of(done: Done) -> str:
    """Name and message of the error that a command told, or all it said where it told none."""
    try:
        told = json.loads(done.out.strip().splitlines()[-1])
        return f"{told['error']}: {told['message']}"
    except (ValueError, LookupError, TypeError):
        return done.said
