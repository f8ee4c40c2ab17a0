"""A process that passes for one of a job."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scenemill.pipelines.jobs.process import MARK
from scenemill.pipelines.jobs.run import PROCESS, write_json


@contextmanager
def living(folder: Path) -> Iterator[None]:
    """The job of a folder has a process until the end of the block."""
    waiting = [sys.executable, "-S", "-c", "input()"]
    with subprocess.Popen(waiting, stdin=subprocess.PIPE, env={**os.environ, MARK: folder.name}) as process:
        write_json(folder / PROCESS, {"pid": process.pid})
        yield
        process.kill()
