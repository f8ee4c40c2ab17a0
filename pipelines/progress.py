"""What a long command shows while it works: a bar on a terminal, plain lines in a log."""

import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from scenemill.pipelines.terminal import console_of, is_quiet

if TYPE_CHECKING:
    from scenemill.trainers.train import Step

OnProgress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""

_EVERY_S = 10.0

_last: dict[str, float] = {}


def no_progress(doing: str, done: int, total: int) -> None:
    """For callers who do not watch."""


@contextmanager
def progress(quiet: bool = False) -> Iterator[Callable[[str, int, int], None]]:
    """A bar on a terminal, a line for every tenth in a log, nothing for machines."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = console_of(stderr=True)
    if quiet or is_quiet():
        yield lambda doing, done, total: None
    elif not console.is_terminal:
        yield _log_line()
    else:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, transient=True) as bar:
            tasks: dict[str, Any] = {}

            def show(doing: str, done: int, total: int) -> None:
                if doing not in tasks:
                    tasks[doing] = bar.add_task(doing, total=total)
                bar.update(tasks[doing], completed=done, total=total)

            yield show


def _log_line() -> Callable[[str, int, int], None]:
    last: dict[str, int] = {}

    def show(doing: str, done: int, total: int) -> None:
        tenth = 10 * done // max(1, total)
        if last.get(doing) != tenth:
            last[doing] = tenth
            print(f"{doing}: {done} of {total}", file=sys.stderr, flush=True)

    return show


def log_lines(doing: str, done: int, total: int) -> None:
    """A line on standard error, at most one in ten seconds for the same thing, and one when it is done."""
    now = time.monotonic()
    if is_quiet():
        return
    if done >= total or now - _last.get(doing, 0.0) > _EVERY_S:
        _last[doing] = now
        print(f"{doing}: {done} of {total}", file=sys.stderr, flush=True)


@contextmanager
def training_bar(processes: int = 1) -> Iterator[Callable[["Step"], None]]:
    """What shows training steps: loss, rate, wait, memory and time left; lines in place of a bar when several processes train."""
    if processes > 1 or is_quiet() or not console_of(stderr=True).is_terminal:
        yield log_step
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("epoch {task.fields[epoch]}  loss {task.fields[loss]:.3f}  {task.fields[rate]:.1f} samples/s"),
        TextColumn("wait {task.fields[wait]:.0f} ms  {task.fields[memory]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console_of(stderr=True)) as bar:
        task = bar.add_task("train", total=None, epoch=0, loss=float("nan"), rate=0.0, wait=0.0, memory="")

        def show(step: "Step") -> None:
            bar.update(
                task,
                completed=step.step + 1,
                total=step.steps,
                epoch=step.epoch,
                loss=step.losses["train_loss"],
                rate=step.samples_per_s,
                wait=step.wait_ms,
                memory=_memory(),
            )

        yield show


def log_step(step: "Step") -> None:
    """A line on standard error, at most one in ten seconds, and one for the last step."""
    now = time.monotonic()
    if is_quiet():
        return
    if step.step + 1 == step.steps or now - _last.get("step", 0.0) > _EVERY_S:
        _last["step"] = now
        figures = f"loss {step.losses['train_loss']:.3f}, {step.samples_per_s:.1f} samples/s, waited {step.wait_ms:.0f} ms"
        print(f"epoch {step.epoch}, step {step.step + 1} of {step.steps}: {figures}, {_memory()}", file=sys.stderr, flush=True)


def _memory() -> str:
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB"
