"""The clock of a scheduler, and whether somebody has set it."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from threading import Event, Thread
from typing import Final

LOOK_S: Final = 2.0
_SET_S: Final = 30.0
"""More than clocks are put right by in small steps."""


def utc_now() -> datetime:
    """The time."""
    return datetime.now(UTC)


@contextmanager
def watched_clock(on_moved: Callable[[timedelta], object]) -> Iterator[None]:
    """Compare the clock with one that nobody sets, until the end of the block.

    Args:
        on_moved: told, in a thread of its own, by how much the clock was set, back or forth, or how long the machine slept.
    """
    ended = Event()

    def watch() -> None:
        ahead = time.time() - time.monotonic()
        while not ended.wait(LOOK_S):
            moved = time.time() - time.monotonic() - ahead
            if abs(moved) > _SET_S:
                ahead += moved
                on_moved(timedelta(seconds=round(moved)))

    thread = Thread(target=watch, name="clock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
