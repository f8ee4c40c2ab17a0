"""Running a function over groups of work with Beam on this machine. Keys, facts and receipts move; arrays never do."""

import json
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability.api import beam_provision_api_pb2
from apache_beam.runners.portability.fn_api_runner import fn_runner
from apache_beam.runners.portability.portable_runner import JobServiceHandle

from scenemill.schemas import errors
from scenemill.schemas.errors import SceneMillError

Group = TypeVar("Group")

_ERROR: Final = ".error.json"
Tables = tuple[pa.Table, ...]


def local_runner(options: PipelineOptions) -> fn_runner.FnApiRunner:
    """Beam's runner on this machine, by construction: by name it would drop the options on the way to worker processes, and
    ``DirectRunner`` would first try to fetch another runner's binary."""
    provision = beam_provision_api_pb2.ProvisionInfo(
        pipeline_options=JobServiceHandle.encode_pipeline_options(options.get_all_options())
    )
    return fn_runner.FnApiRunner(provision_info=fn_runner.ExtendedProvisionInfo(provision))


def local_options(workers: int) -> PipelineOptions:
    """One worker inside this process, or several processes."""
    mode = "multi_processing" if workers > 1 else "in_memory"
    return PipelineOptions(
        [],  # none of the caller's own arguments
        direct_running_mode=mode,
        direct_num_workers=workers,
        save_main_session=False,
        default_sdk_harness_log_level="ERROR",
    )


@dataclass(frozen=True)
class _Work(Generic[Group]):
    """What a worker does with one numbered group: call, and leave the tables it returns as files for the driver."""

    function: Callable[[Group], Tables]
    folder: Path

    def __call__(self, numbered: tuple[int, Group]) -> int:
        number, group = numbered
        try:
            tables = self.function(group)
        except (SceneMillError, OSError, KeyboardInterrupt) as error:
            note = {
                "kind": type(error).__name__,
                "message": getattr(error, "strerror", None) or str(error),
                "errno": getattr(error, "errno", None),
                "parts": [getattr(error, name, "") for name in ("check", "observed", "expected")],
            }
            (self.folder / f"{number}{_ERROR}").write_text(json.dumps(note))
            raise
        for place, table in enumerate(tables):
            pq.write_table(table, self.folder / f"{number}-{place}.tmp")
            (self.folder / f"{number}-{place}.tmp").replace(self.folder / f"{number}-{place}.parquet")
        (self.folder / f"{number}.done").touch()
        return number


def run_groups(
    label: str,
    function: Callable[[Group], Tables],
    groups: Sequence[Group],
    folder: Path,
    workers: int,
    on_done: Callable[[int], None] = lambda done: None,
    *,
    resume: bool = False,
) -> Iterator[Tables]:
    """Apply ``function`` to every group, on ``workers`` processes, and hand back its tables in the groups' order.

    Args:
        label: of the Beam step; reads as a sentence.
        function: group -> small tables; importable by worker processes, and safe to repeat.
        groups: small descriptions of work: keys, never arrays.
        folder: for what the workers return; empty, unless ``resume``.
        workers: 1 runs inside this process.
        on_done: called now and then with the number of groups done.
        resume: True to take over what ``folder`` holds of these very groups from a run that was broken off, and leave it there.

    Raises:
        Whatever ``function`` raises: scenemill's errors and OSError as themselves, others as Beam hands them on.
    """
    if not groups:
        return iter(())
    done = {int(path.stem) for path in folder.glob("*.done")}
    todo = [(number, group) for number, group in enumerate(groups) if number not in done]
    for old in folder.glob(f"*{_ERROR}"):
        old.unlink()
    if not todo:
        return _results(folder, len(groups), keep=resume)
    workers = min(workers, len(todo))
    options = local_options(workers)
    watch = _Watch(folder, on_done)
    try:
        with watch, _fail_fast(workers > 1), beam.Pipeline(runner=local_runner(options), options=options) as pipeline:
            keyed = pipeline | "List groups" >> beam.Create(todo, reshuffle=False)
            spread = keyed | "Spread over workers" >> beam.Reshuffle()
            spread | label >> beam.Map(_Work(function, folder))
    except Exception as error:
        original = _worker_error(folder)
        if original is None:
            raise
        raise original from error
    return _results(folder, len(groups), keep=resume)


def _worker_error(folder: Path) -> BaseException | None:
    """What a worker raised, as itself; Beam hands on another class."""
    for path in sorted(folder.glob(f"*{_ERROR}")):
        note = json.loads(path.read_text())
        kind = getattr(errors, note["kind"], None)
        if note["kind"] == "KeyboardInterrupt":
            return KeyboardInterrupt()
        if kind is errors.SourceError:
            return errors.SourceError(*note["parts"])
        if isinstance(kind, type) and issubclass(kind, SceneMillError):
            return kind(note["message"])
        return OSError(note["errno"], note["message"])
    return None


def _results(folder: Path, count: int, keep: bool) -> Iterator[Tables]:
    for number in range(count):
        files = sorted(folder.glob(f"{number}-*.parquet"))
        yield tuple(pq.ParquetFile(file).read(use_threads=False) for file in files)
        for file in () if keep else files:
            file.unlink()


class _Watch:
    """Counts finished groups in the background while the pipeline blocks."""

    def __init__(self, folder: Path, on_done: Callable[[int], None]) -> None:
        self._folder = folder
        self._on_done = on_done
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _count(self) -> None:
        self._on_done(sum(1 for _ in self._folder.glob("*.done")))

    def _run(self) -> None:
        while not self._stop.wait(0.25):
            self._count()

    def __enter__(self) -> "_Watch":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        self._count()


class _fail_fast:
    """End the process at once when a worker process is gone: Beam would wait for it for ever."""

    def __init__(self, enabled: bool) -> None:
        self._enabled = enabled
        self._before: Any = None

    def __enter__(self) -> None:
        if self._enabled:
            self._before, threading.excepthook = threading.excepthook, _end_process

    def __exit__(self, *error: object) -> None:
        if self._enabled:
            threading.excepthook = self._before


def _end_process(args: threading.ExceptHookArgs) -> None:
    cause = f"{type(args.exc_value).__name__}: {args.exc_value}".splitlines()[0][:200]
    print(f"\na worker process is gone ({cause}); run the same command again: finished parts are kept", file=sys.stderr, flush=True)
    os._exit(1)
