"""What a run is asked to do: the same frozen object from the command line, a file, or a test."""

import math
import re
from dataclasses import dataclass
from typing import Final

from scenemill.schemas.errors import ConfigError
from scenemill.schemas.fields import SOURCES, VIEWS, is_reference
from scenemill.schemas.places import Place

PRECISIONS: Final = ("float32", "float16", "fixed16")
SAMPLES_PER_PART: Final = 64


@dataclass(frozen=True)
class IngestConfig:
    """One conversion of a raw folder into a store.

    Attributes:
        source: one of ``schemas.fields.SOURCES``, or a form of one's own as ``FILE.py:NAME`` or ``package.module:NAME``: code that is
            run, here and on every worker.
        input: the raw folder: the one above ``data/``; of views, the folder of an object's views or one of such folders.
        output: the store, a folder or in an object store; None where nothing is written.
        splits: names of split lists, or ``name=path``; empty for every list found in ``input``; views without a list are all "train".
        limit: at most this many samples, the first in key order; None for all.
        workers: processes on this machine.
        max_rejected: share (0..1) or count of samples that may be rejected; None for no limit.
        precision: how volumes of distances are stored; float32 is lossless.
        samples_per_part: samples in one shard; None for the store's own, or 64 in a new store.
        repair: rebuild the samples of parts whose files are damaged.

    Raises:
        ConfigError: a value is out of its range.
    """

    source: str
    input: Place
    output: Place | None = None
    splits: tuple[str, ...] = ()
    limit: int | None = None
    workers: int = 1
    max_rejected: float | int | None = None
    precision: str = "float32"
    samples_per_part: int | None = None
    repair: bool = False

    def __post_init__(self) -> None:
        if self.source not in SOURCES and not is_reference(self.source):
            raise ConfigError(
                f"source {self.source!r} is not known; use one of {', '.join(SOURCES)}, or FILE.py:NAME for one of your own"
            )
        if self.precision not in PRECISIONS:
            raise ConfigError(f"precision {self.precision!r} is not known; use one of {', '.join(PRECISIONS)}")
        if (self.source == VIEWS or is_reference(self.source)) and self.precision != PRECISIONS[0]:
            raise ConfigError(f"precision {self.precision!r}: only volumes of rooms have another; leave it at {PRECISIONS[0]!r}")
        for name, least in (("limit", 1), ("workers", 1), ("samples_per_part", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name} is {value}; it must be at least {least}")
        if self.max_rejected is not None and not 0 <= self.max_rejected <= (
            1 if isinstance(self.max_rejected, float) else math.inf
        ):
            raise ConfigError(f"max_rejected is {self.max_rejected}; give a share from 0.0 to 1.0, or a count")
        if self.samples_per_part is not None and self.samples_per_part > 4096:
            raise ConfigError(f"samples_per_part is {self.samples_per_part}; it must be at most 4096")

    def rejected_allowed(self, listed: int) -> int:
        """How many of ``listed`` samples may be rejected."""
        if self.max_rejected is None:
            return listed
        if isinstance(self.max_rejected, float):
            return math.floor(self.max_rejected * listed + 1e-9)
        return self.max_rejected


def parse_max_rejected(text: str) -> float | int:
    """``"1%"`` as a share, ``"20"`` as a count.

    Raises:
        ConfigError: neither.

    >>> parse_max_rejected("1%"), parse_max_rejected("20")
    (0.01, 20)
    """
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", text.strip()):
        share = float(match[1]) / 100
        if share <= 1:
            return share
    elif re.fullmatch(r"\d+", text.strip()):
        return int(text)
    raise ConfigError(f"--max-rejected {text!r}: give a share such as 1% (at most 100%) or a count such as 20")
