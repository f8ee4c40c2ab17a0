"""One conversion in a process of its own, so that a kill or a loss of memory takes that run alone.

The process is told what to do on its input and answers with a line of JSON on its output. It lives as long as its input is
open: when the scheduler goes, in whatever way, it goes as well, with its workers.
"""

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from scenemill.pipelines.schedule.runs import Result
from scenemill.pipelines.starved import end_when_starved
from scenemill.schemas.config import IngestConfig
from scenemill.schemas.errors import SceneMillError
from scenemill.schemas.steps import reached

_COMMAND: Final = (sys.executable, "-m", "scenemill.pipelines.schedule.process")
_REASON: Final = 2000  # characters: an answer must fit into a pipe that nobody reads yet


def convert_apart(config: IngestConfig, log: Path, timeout_s: float | None = None, lock: int | None = None) -> Result:
    """Convert in a process of its own, and wait for its end; whatever befalls it is in the result.

    Args:
        config: what to convert.
        log: file that gets what the process prints, at its end.
        timeout_s: seconds after which the process is ended.
        lock: descriptor of a locked file that stays locked until the process has ended, whatever becomes of this one.
    """
    began = time.monotonic()
    log.parent.mkdir(parents=True, exist_ok=True)
    kept = () if lock is None else (lock,)
    with (
        log.open("ab") as told,
        subprocess.Popen(
            _COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=told, pass_fds=kept, process_group=0
        ) as process,
    ):
        answer = _exchange(process, pickle.dumps(config), timeout_s)
    seconds = time.monotonic() - began
    if answer:
        return Result(**json.loads(answer), seconds=seconds)
    code = process.returncode
    ended = f"was ended by signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"ended with exit code {code}"
    late = f" after its timeout of {timeout_s:g} s" if timeout_s is not None and seconds >= timeout_s else ""
    return Result(reason=f"its process {ended}{late}; see {log}", seconds=seconds)


def _exchange(process: "subprocess.Popen[bytes]", request: bytes, timeout_s: float | None) -> bytes:
    """What the process answers; nothing where it was ended. Its input stays open until then."""
    assert process.stdin is not None and process.stdout is not None
    with suppress(BrokenPipeError, subprocess.TimeoutExpired):
        process.stdin.write(request)
        process.stdin.flush()
        reached("conversion begun")
        process.wait(timeout_s)
    _end_group(process.pid)  # with what a killed process leaves of its workers
    process.wait()
    return process.stdout.read()


def _end_group(group: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def main() -> None:
    """Convert what the input says, and answer; run as a process by ``convert_apart``."""
    answer = os.dup(1)
    os.dup2(2, 1)  # whatever libraries print is for the log
    end_when_starved(lambda: print("MemoryError: memory ran out (for a thread)", file=sys.stderr, flush=True))
    config = pickle.load(sys.stdin.buffer)  # noqa: S301 (of the process that started this one)
    threading.Thread(target=_end_with_input, daemon=True).start()
    os.write(answer, json.dumps(_convert(config)).encode())


def _end_with_input() -> None:
    while os.read(0, 1):  # by the system: at its end, Python waits for who holds its own buffer
        pass
    _end_group(os.getpid())
    os._exit(1)  # not the head of a group: started by hand


def _convert(config: IngestConfig) -> dict[str, Any]:
    from scenemill.pipelines.ingest import ingest
    from scenemill.pipelines.progress import log_lines

    try:
        outcome = ingest(config, log_lines)
    except Exception as error:
        if not isinstance(error, SceneMillError):
            traceback.print_exc()
        return {"reason": f"{type(error).__name__}: {error}"[:_REASON]}
    return {"stored": outcome.stored, "rejected": outcome.rejected, "version": outcome.version}


if __name__ == "__main__":
    main()
