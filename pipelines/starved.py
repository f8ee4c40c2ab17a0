"""The end of a process in which a thread was begun that found no memory to begin with.

Python's ``Thread.start`` waits until the new thread says that it runs, and for ever where that died of want of memory before it could
(https://github.com/python/cpython/issues/140746, open as of 3.14). Whatever a command keeps may be killed at any moment and gone on
from, so a process that waits like that is ended.
"""

import _thread
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Final

_LOOK_S: Final = 1.0
_LOOKS: Final = 45
"""Looks at which the same thread has not begun: looks, and not seconds, in which a process may have been stopped."""
_STACK_BYTE: Final = 1 << 20
_watched: set[int] = set()
"""The processes that are looked at: this one, and those that it was forked from."""


def end_when_starved(tell: Callable[[], None]) -> None:
    """From now on, end this process with exit code 1 if a thread of it does not begin in time. Asked again, it is as it was.

    Args:
        tell: says so first; it may raise whatever it likes.
    """
    if os.getpid() in _watched:
        return
    _watched.add(os.getpid())
    usual = threading.stack_size(_STACK_BYTE)
    _thread.start_new_thread(_look, (tell,))  # which waits for nothing
    threading.stack_size(usual)


def _look(tell: Callable[[], None]) -> None:
    seen: Counter[threading.Thread] = Counter()
    while max(seen.values(), default=0) < _LOOKS:
        time.sleep(_LOOK_S)
        with suppress(MemoryError):  # of this look
            begun = [thread for thread in threading.enumerate() if not thread.is_alive()]
            seen = Counter({thread: seen[thread] + 1 for thread in begun})
    with suppress(BaseException):
        tell()
    os._exit(1)
