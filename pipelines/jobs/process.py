"""The processes of jobs: started in a session of their own, found again after a restart, asked to end, ended."""

import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import psutil

from scenemill.pipelines.jobs.roots import RESULTS
from scenemill.pipelines.jobs.run import COMMAND, EXIT, LOG, PROCESS, write_json
from scenemill.pipelines.jobs.specs import SPEC_FILE, Command
from scenemill.pipelines.jobs.token import TOKEN_VARIABLE

MARK: Final = "SCENEMILL_JOB"  # the variable of its environment by which a process is known as one of a job's
_SILENT: Final = [
    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
    (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
    (os.POSIX_SPAWN_DUP2, 1, 2),
]
_WIDE: Final = "160"  # columns of tables in logs
_SHOWN: Final = 300  # characters of a log's last line
_TAIL_BYTE: Final = 4096


class JobProcess:
    """The processes of one job.

    Args:
        folder: the job's own, named as the job.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._child: int | None = None
        self._asked = False

    def clear(self) -> None:
        """Forget how an earlier attempt went; before the next one is known to have begun."""
        for name in (PROCESS, EXIT):
            (self._folder / name).unlink(missing_ok=True)

    def start(self, command: Command, cache: Path) -> None:
        """Start the command; what it prints is added to the log.

        Args:
            command: what to run.
            cache: folder for stores made of raw folders, where the environment names none.

        Raises:
            OSError: the folder cannot be written to, or no process be started.
        """
        (self._folder / RESULTS).mkdir(exist_ok=True)
        if command.spec is not None:
            write_json(self._folder / SPEC_FILE, command.spec)
        told = {"arguments": command.arguments, "folder": str(self._folder / RESULTS), "results": dict(command.results)}
        write_json(self._folder / COMMAND, told)
        known = {name: value for name, value in os.environ.items() if name != TOKEN_VARIABLE}
        own = {"SCENEMILL_CACHE": str(cache), "COLUMNS": _WIDE, **known, MARK: self._folder.name, "PYTHONUNBUFFERED": "1"}
        arguments = [sys.executable, "-m", "scenemill.pipelines.jobs.run", str(self._folder)]
        self._child = os.posix_spawn(sys.executable, arguments, own, file_actions=_SILENT, setsid=True)

    @property
    def runs(self) -> bool:
        """Whether the process that waits for the command is alive."""
        if self._child is not None:
            ended, _ = os.waitpid(self._child, os.WNOHANG)
            self._child = None if ended else self._child
        return self._child is not None or self._leader() is not None

    @property
    def exit_code(self) -> int | None:
        """How the command ended; None where nothing says."""
        code = _read(self._folder / EXIT).get("code")
        return code if isinstance(code, int) else None

    @property
    def promised(self) -> dict[str, str]:
        """What the command leaves when all goes well, by name; ``Command.results``."""
        promised: dict[str, str] = _read(self._folder / COMMAND).get("results", {})
        return promised

    def ask_to_end(self) -> None:
        """Once, interrupt the group of processes, as from a keyboard."""
        leader = self._leader()
        if leader is not None and not self._asked:
            self._asked = True
            with suppress(ProcessLookupError):
                os.killpg(leader.pid, signal.SIGINT)

    def end(self) -> None:
        """Kill whatever is left of the job's processes, also those that left the group."""
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(MARK) == self._folder.name:
                    process.kill()

    def last_line(self) -> str:
        """The last that was printed."""
        with suppress(OSError), (self._folder / LOG).open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _TAIL_BYTE))
            lines = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
            return lines[-1].strip()[:_SHOWN] if lines else ""
        return ""

    def _leader(self) -> psutil.Process | None:
        """The process that was started, if it is alive; another one that got its number does not bear the job's mark.

        When a process began would tell as well, but not where the clock was set meanwhile.
        """
        told = _read(self._folder / PROCESS)
        with suppress(psutil.Error, KeyError):
            process = psutil.Process(told["pid"])
            if process.environ().get(MARK) == self._folder.name and process.status() != psutil.STATUS_ZOMBIE:
                return process
        return None


def _read(path: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        document = json.loads(path.read_text())
        return document if isinstance(document, dict) else {}
    return {}
