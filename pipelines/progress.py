"""What a long command shows while it works: a bar on a terminal, plain lines in a log."""

import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scenemill.trainers.train import Step

_EVERY_S = 10.0

_last: dict[str, float] = {}


def log_lines(doing: str, done: int, total: int) -> None:
    """A line on standard error, at most one in ten seconds for the same thing, and one when it is done."""
    now = time.monotonic()
    if done >= total or now - _last.get(doing, 0.0) > _EVERY_S:
        _last[doing] = now
        print(f"{doing}: {done} of {total}", file=sys.stderr, flush=True)


@contextmanager
def training_bar(processes: int = 1) -> Iterator[Callable[["Step"], None]]:
    """What shows training steps: loss, rate, wait, memory and time left; lines in place of a bar when several processes train."""
    if processes > 1 or not sys.stderr.isatty():
        yield log_step
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("epoch {task.fields[epoch]}  loss {task.fields[loss]:.3f}  {task.fields[rate]:.1f} samples/s"),
        TextColumn("wait {task.fields[wait]:.0f} ms  {task.fields[memory]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
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
    if step.step + 1 == step.steps or now - _last.get("step", 0.0) > _EVERY_S:
        _last["step"] = now
        figures = f"loss {step.losses['train_loss']:.3f}, {step.samples_per_s:.1f} samples/s, waited {step.wait_ms:.0f} ms"
        print(f"epoch {step.epoch}, step {step.step + 1} of {step.steps}: {figures}, {_memory()}", file=sys.stderr, flush=True)


def _memory() -> str:
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB"
