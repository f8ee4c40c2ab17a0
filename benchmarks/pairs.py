"""Timing pairs in one process: two ways of doing the same work, in turn, CPU time, medians, and the ratio round by round."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Pair:
    """Median CPU milliseconds of two ways per unit of work, and the median of the ratios round by round."""

    ours_ms: float
    naive_ms: float
    ratio: float


def measure(
    ours: Callable[[], object], naive: Callable[[], object], units: int, rounds: int, clock: Callable[[], float] = time.process_time
) -> Pair:
    """Run both ways in turn, ``rounds`` times after one uncounted round."""
    times: list[tuple[float, float]] = []
    for _ in range(rounds + 1):
        spent = []
        for way in (ours, naive):
            start = clock()
            way()
            spent.append(clock() - start)
        times.append((spent[0], spent[1]))
    counted = times[1:]
    scale = 1000 / units
    return Pair(
        statistics.median(a for a, _ in counted) * scale,
        statistics.median(b for _, b in counted) * scale,
        statistics.median(a / b for a, b in counted),
    )


def print_row(number: int, what: str, pair: Pair, bar: str) -> None:
    """One line of the table that ``benchmarks/README.md`` keeps."""
    print(f"| {number} | {what} | {pair.ours_ms:.1f} | {pair.naive_ms:.1f} | {pair.ratio:.3f} | {bar} |", flush=True)
