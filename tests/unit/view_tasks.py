"""What a child that reads is asked in tests, and may not live through; each takes the path of a file first, as readers do."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scenemill.schemas.errors import ConfigError

_seen: list[str] = []


def size(path: Path) -> int:
    return len(path.read_bytes())


def process(path: Path) -> int:
    return os.getpid()


def given(path: Path, *arguments: Any, **named: Any) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    return path.name, arguments, named


def die_if_bad(path: Path) -> int:
    """As usd-core does over damaged data; where it was called is left beside the file."""
    with path.with_suffix(".log").open("a") as log:
        log.write(f"{os.getpid()}\n")
    if b"bad" in path.read_bytes():
        os.kill(os.getpid(), signal.SIGABRT)
    return size(path)


def die_as_second(path: Path) -> int:
    """Dies in a process that has read another file, which is the one to blame."""
    _seen.append(path.name)
    if len(_seen) > 1:
        os.abort()
    return size(path)


def hang(path: Path) -> None:
    while True:
        time.sleep(0.01)


def fill(path: Path, size_byte: int) -> int:
    return int(np.ones(size_byte, np.uint8)[-1])


def stumble(path: Path) -> None:
    raise IndexError("list index out of range")


class Order:
    """What a file that has taken the reader over may answer: an order to the process that asked."""

    def __init__(self, path: Path) -> None:
        self.folder = str(path.with_suffix(".done"))

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.folder,)


def order(path: Path) -> Order:
    return Order(path)


def refuse(path: Path) -> None:
    raise ConfigError("no such item; give another")


def shout(path: Path) -> int:
    """Writes where answers go, as libraries do."""
    os.write(1, b"not an answer")
    print("nor this", flush=True)
    return size(path)


def draw(path: Path, seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(500_000, 3)).astype(np.float32)


def limits(path: Path) -> tuple[str, str]:
    return os.environ["TMPDIR"], os.environ["USDC_USE_PREAD"]
