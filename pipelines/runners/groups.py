"""Running a function over groups of work, here or elsewhere. Keys, facts and receipts move; arrays never do."""

import logging
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any, Final

import apache_beam as beam
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions
from apache_beam.portability.api import beam_provision_api_pb2
from apache_beam.runners.portability.fn_api_runner import fn_runner
from apache_beam.runners.portability.portable_runner import JobServiceHandle
from apache_beam.transforms.environments import SubprocessSDKEnvironment

from scenemill.pipelines.runners.options import LOCAL, RunnerConfig
from scenemill.pipelines.runners.work import (
    MARKER,
    Group,
    Tables,
    Watch,
    Work,
    done_groups,
    forget_errors,
    raised_by_worker,
    read_results,
    software,
)
from scenemill.schemas.errors import ConfigError

# in a notebook Beam asks for an extra that only draws collections
logging.getLogger("apache_beam.runners.interactive").setLevel(logging.ERROR)
_SIGNAL_S: Final = 0.2  # from a worker's end to the signal that ended it being seen here as well


def local_runner(options: PipelineOptions, processes: int = 1) -> fn_runner.FnApiRunner:
    """Beam's runner on this machine, by construction: by name it would drop the options on the way to worker processes, and
    ``DirectRunner`` would first try to fetch another runner's binary."""
    provision = beam_provision_api_pb2.ProvisionInfo(
        pipeline_options=JobServiceHandle.encode_pipeline_options(options.get_all_options())
    )
    command = f"exec {shlex.quote(sys.executable)} -m scenemill.pipelines.runners.worker_process"
    environment = SubprocessSDKEnvironment.from_command_string(command) if processes > 1 else None
    return fn_runner.FnApiRunner(default_environment=environment, provision_info=fn_runner.ExtendedProvisionInfo(provision))


def local_options(workers: int, *, threads: bool = False) -> PipelineOptions:
    """One worker inside this process, several threads of it, or several processes of ``local_runner``."""
    options = PipelineOptions(
        [],  # none of the caller's own arguments
        direct_num_workers=workers,
        save_main_session=False,
        default_sdk_harness_log_level="ERROR",
    )
    mode = "in_memory" if workers == 1 else "multi_threading" if threads else None  # None: the runner's own environment
    options.view_as(DirectOptions).direct_running_mode = mode
    return options


def run_groups(
    label: str,
    function: Callable[[Group], Tables],
    groups: Sequence[Group],
    folder: Path,
    workers: int,
    on_done: Callable[[int], None] = lambda done: None,
    *,
    resume: bool = False,
    runner: RunnerConfig = LOCAL,
    seen: Sequence[Path] = (),
) -> Iterator[Tables]:
    """Apply ``function`` to every group, and hand back its tables in the groups' order.

    Args:
        label: of the Beam step; reads as a sentence.
        function: group -> small tables; importable by workers, and safe to repeat.
        groups: small descriptions of work: keys, never arrays.
        folder: for what the workers return; empty, unless ``resume``. Workers on other machines must see it.
        workers: of the local runner; 1 runs inside this process.
        on_done: called now and then with the number of groups done.
        resume: True to take over what ``folder`` holds of these very groups from a run that was broken off, and leave it there.
        runner: where: local, dask or portable.
        seen: what workers on other machines must see beside ``folder``.

    Raises:
        Whatever ``function`` raises: scenemill's errors and OSError as themselves, others as the runner hands them on.
        ConfigError: workers elsewhere do not see the files of this machine, or have another version.
        Corrupt: the runner says that all is done, and it is not.
    """
    if not groups:
        return iter(())
    done = done_groups(folder)
    todo = [(number, group) for number, group in enumerate(groups) if number not in done]
    forget_errors(folder)
    if not todo:
        return read_results(folder, len(groups), keep=resume)
    (folder / MARKER).touch()
    work = Work(function, folder, (folder / MARKER, *seen), software())
    try:
        with Watch(folder, on_done):
            _run(label, work, todo, workers, runner)
    except Exception as error:
        original = raised_by_worker(folder, error)
        if original is None or type(original) is type(error):
            raise
        raise original from error
    return read_results(folder, len(groups), keep=resume)


def _run(label: str, work: Work[Group], todo: Sequence[tuple[int, Group]], workers: int, runner: RunnerConfig) -> None:
    if runner.runner == "dask":
        from scenemill.pipelines.runners.dask_cluster import run_on_dask  # an extra

        run_on_dask(label, work, todo, runner)
    elif runner.runner == "portable":
        from scenemill.pipelines.runners.portable import portable_options, portable_runner

        run_pipeline(label, work, todo, portable_runner(runner), portable_options(runner))
    elif runner.runner == "local":
        run_here(label, work, todo, workers, threads=runner.threads)
    else:
        raise ConfigError(f"runner {runner.runner} takes an ingest as a whole: use run_on_dataflow")


def run_here(label: str, work: Work[Group], todo: Sequence[tuple[int, Group]], workers: int, *, threads: bool = False) -> None:
    """Do numbered groups of work on this machine."""
    workers = min(workers, len(todo))
    options = local_options(workers, threads=threads)
    with _fail_fast(workers > 1 and not threads):
        run_pipeline(label, work, todo, local_runner(options, 1 if threads else workers), options)


def run_pipeline(
    label: str, work: Work[Group], todo: Sequence[tuple[int, Group]], runner: beam.runners.PipelineRunner, options: PipelineOptions
) -> None:
    """Do numbered groups of work by a Beam runner: the one graph, whichever runs it."""
    with beam.Pipeline(runner=runner, options=options) as pipeline:
        spread_work(label, work, pipeline | "List groups" >> beam.Create(todo, reshuffle=False))


def spread_work(label: str, work: Callable[[Any], Any], groups: beam.PCollection) -> beam.PCollection:
    """The step that does the work: each group on whatever worker is free."""
    return groups | "Spread over workers" >> beam.Reshuffle() | label >> beam.Map(work)


class _fail_fast:
    """End the process at once when a worker process is gone: Beam would wait for it for ever.

    Ctrl+C ends the workers too. That they go is then no failure, and this process ends as any that is interrupted.
    """

    def __init__(self, enabled: bool) -> None:
        self._enabled = enabled
        self._interrupted = False
        self._undo = ExitStack()

    def __enter__(self) -> None:
        if not self._enabled:
            return
        before, threading.excepthook = threading.excepthook, self._end_process
        self._undo.callback(setattr, threading, "excepthook", before)
        if threading.current_thread() is threading.main_thread():
            self._undo.callback(signal.signal, signal.SIGINT, signal.signal(signal.SIGINT, self._interrupt))

    def __exit__(self, *error: object) -> None:
        self._undo.close()

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self._interrupted = True
        signal.default_int_handler(number, frame)

    def _end_process(self, args: threading.ExceptHookArgs) -> None:
        time.sleep(_SIGNAL_S)
        if self._interrupted:
            return
        cause = f"{type(args.exc_value).__name__}: {args.exc_value}".splitlines()[0][:200]
        line = f"\na worker process is gone ({cause}); run the same command again: finished parts are kept"
        print(line, file=sys.stderr, flush=True)
        os._exit(1)
