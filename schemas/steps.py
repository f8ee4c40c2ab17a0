"""Steps: the named moments between two changes on a disk, at which the fault tests end a process.

At each of them a kill must lose nothing, and show nothing half: whoever runs the same again gets the bytes of an unbroken run.
"""

import os
import signal
from collections.abc import Mapping
from typing import Final

STEPS: Final[Mapping[str, tuple[str, ...]]] = {
    "ingest": (
        "lock taken",
        "sums written",
        "shards written",
        "shard placed",
        "part tables written",
        "receipt written",
        "tables written",
        "array documents written",
        "version written",
        "swapped",
        "run written",
    ),
    "file": ("file flushed", "file placed"),
    "scoring": ("group done", "metric tables made", "metric rows committed"),
    "checkpoint": ("checkpoint begun", "checkpoint written", "checkpoint placed", "latest pointed"),
    "training": ("step taken", "point drawn", "status told", "scene watched"),
    "prediction": ("prediction withdrawn", "prediction written"),
    "results": ("results taken", "result sent", "results noted"),
    "timelapse": ("structure copied", "head moved", "head restored", "layer saved"),
    "schedule": (
        "run queued",
        "run begun",
        "conversion begun",
        "conversion ended",
        "outcome recorded",
        "alert begun",
        "alert sent",
        "alert recorded",
    ),
    "job": (
        "request kept",
        "job queued",
        "job begun",
        "process begun",
        "process known",
        "command ended",
        "exit kept",
        "end recorded",
        "cancel recorded",
        "end asked",
    ),
}
"""What is done -> its steps, in their order."""

_KNOWN: Final = frozenset(step for steps in STEPS.values() for step in steps)


def reached(step: str) -> None:
    """Mark a step; with ``SCENEMILL_KILL_AT=STEP`` or ``STEP:N`` the process dies here, the N-th time it comes by (fault tests)."""
    assert step in _KNOWN, step
    name, _, times = os.environ.get("SCENEMILL_KILL_AT", "").partition(":")
    if name == step:
        _passed.append(step)
        if len(_passed) >= int(times or 1):
            os.kill(os.getpid(), signal.SIGKILL)


_passed: list[str] = []
