"""Groups of work on a Dask cluster: each task is a small Beam pipeline on a worker. A lost worker's groups are done again.

Not Beam's own runner for Dask: that loses elements without an error where a graph has branches, files or windows.
"""

import logging
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from typing import Any, Final
from uuid import uuid4

from scenemill.pipelines.runners.groups import run_here
from scenemill.pipelines.runners.options import RunnerConfig
from scenemill.pipelines.runners.work import Group, Work
from scenemill.schemas.errors import ConfigError, TransientError

_TASKS_PER_WORKER: Final = 4
_PATIENCE_S: Final = 20
_one_at_a_time = threading.Lock()


def run_on_dask(label: str, work: Work[Group], todo: Sequence[tuple[int, Group]], runner: RunnerConfig) -> None:
    """Do numbered groups of work on the workers of a cluster.

    Raises:
        Whatever the work raises, as itself.
        ConfigError: there is no cluster, or it has no workers.
        TransientError: the same groups were lost with several workers, or the scheduler is gone.
    """
    from distributed import KilledWorker, as_completed

    with _cluster(runner.dask_address or "") as client:
        run = uuid4().hex
        futures = [
            client.submit(_do, label, work, some, key=f"scenemill-{run}-{number}", pure=False)
            for number, some in enumerate(_share(todo, max(1, sum(client.nthreads().values()))))
        ]
        try:
            for future in as_completed(futures, loop=client.loop):
                future.result()
        except KilledWorker as error:
            raise TransientError(
                f"a task was lost with {error.last_worker.address} and other workers before it, for want of memory perhaps;"
                " run the same command again: finished parts are kept"
            ) from error
        except CancelledError as error:
            raise TransientError(
                f"--dask-address {runner.dask_address}: the scheduler is gone; start it and run the same command again:"
                " finished parts are kept"
            ) from error
        finally:
            client.cancel(futures)


def _share(todo: Sequence[tuple[int, Group]], workers: int) -> list[Sequence[tuple[int, Group]]]:
    """Tasks: a few for each worker, so that a lost one costs little and the last ones end together."""
    size = -(-len(todo) // (_TASKS_PER_WORKER * workers))
    return [todo[start : start + size] for start in range(0, len(todo), size)]


def _do(label: str, work: Work[Any], todo: Sequence[tuple[int, Any]]) -> int:
    """One task, on a worker: a Beam pipeline within its process, which reads into arrays of its own."""
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)  # what it logs of a failure, the driver tells
    with _one_at_a_time:  # a worker of several threads has one process, and so one pipeline at a time
        run_here(label, work, todo, 1)
    return len(todo)


@contextmanager
def _cluster(address: str) -> Iterator[Any]:
    try:
        from distributed import Client
    except ModuleNotFoundError as error:
        raise ConfigError("--runner dask needs Dask: pip install 'scenemill[dask]', here and on every worker") from error
    try:
        client = Client(address, timeout=_PATIENCE_S, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--dask-address {address!r}: no scheduler answers there ({error}); give tcp://HOST:PORT") from error
    with client:
        try:
            client.wait_for_workers(1, timeout=_PATIENCE_S)
        except TimeoutError as error:
            raise ConfigError(
                f"--dask-address {address}: the scheduler has no workers; start some: dask worker {address}"
            ) from error
        yield client
