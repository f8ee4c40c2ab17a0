"""The process that a job's command is run by: it outlives the service, and writes down how the command ended.

    python -m scenemill.pipelines.jobs.run FOLDER

reads ``command.json`` (arguments, folder to work in), writes ``process.json`` (itself), adds to ``log.txt`` what the command prints, and
leaves ``exit.json`` when it has ended. Signals to the group of processes reach the command; this process waits for what comes of them.
Standard library and psutil alone, beside the names of steps, so that it starts at once.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from scenemill.schemas.steps import reached

COMMAND, PROCESS, EXIT, LOG = "command.json", "process.json", "exit.json", "log.txt"

_ASKED_TO_END: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run_command(folder: Path) -> int:
    """Run the command of a job's folder to its end; its exit code."""
    for number in _ASKED_TO_END:
        signal.signal(number, lambda *_: None)  # not SIG_IGN, which the command would inherit
    write_json(folder / PROCESS, {"pid": os.getpid()})
    reached("process known")
    told = json.loads((folder / COMMAND).read_text())
    with (folder / LOG).open("ab") as log:
        code = subprocess.call(told["arguments"], cwd=told["folder"], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    reached("command ended")
    write_json(folder / EXIT, {"code": code})
    reached("exit kept")
    return code


def write_json(path: Path, document: Any) -> None:
    """Write a file that only its owner reads; readers see the one of before or this one."""
    temporary = path.with_name(f".{path.name}")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(document, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


if __name__ == "__main__":
    sys.exit(run_command(Path(sys.argv[1])))
