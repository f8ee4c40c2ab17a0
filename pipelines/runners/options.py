"""Where the work of a run is done, and the options that each place needs. Imports nothing heavy: the command line reads it."""

from dataclasses import dataclass, fields
from typing import Final

from scenemill.schemas.errors import ConfigError

_TAKES: Final = {
    "local": ("threads",),
    "dask": ("dask_address",),
    "portable": ("job_endpoint", "worker_pool", "image", "beam_options"),
    "dataflow": (
        "project",
        "region",
        "temp_location",
        "image",
        "package",
        "machine_type",
        "max_workers",
        "dry_run",
        "beam_options",
    ),
}
_NEEDS: Final = {
    "local": (),
    "dask": ("dask_address",),
    "portable": ("job_endpoint",),
    "dataflow": ("project", "region", "temp_location", "image"),
}
RUNNERS: Final = tuple(_TAKES)
"""Names of the runners."""


@dataclass(frozen=True)
class RunnerConfig:
    """Where the work of a run is done; each runner takes the options that it needs and no others.

    Attributes:
        runner: one of ``RUNNERS``.
        threads: local: workers are threads of this process instead of processes.
        dask_address: dask: the scheduler, ``tcp://HOST:PORT``.
        job_endpoint: portable: the job service of a Beam runner, ``HOST:PORT``.
        worker_pool: portable: a Beam worker pool that runs the workers, ``HOST:PORT``; or give ``image``.
        image: portable, dataflow: the container image of the workers.
        project, region, temp_location: dataflow: as Dataflow's options of these names.
        package: dataflow: a wheel of scenemill that replaces the image's.
        machine_type, max_workers: dataflow: of the workers; None for the service's choice.
        dry_run: dataflow: tell what would be submitted, and submit nothing.
        beam_options: portable, dataflow: further options of Beam, ``NAME=VALUE``, or ``NAME`` of a switch.

    Raises:
        ConfigError: no such runner, an option that says nothing to it, or one that it needs and lacks.
    """

    runner: str = "local"
    threads: bool = False
    dask_address: str | None = None
    job_endpoint: str | None = None
    worker_pool: str | None = None
    image: str | None = None
    project: str | None = None
    region: str | None = None
    temp_location: str | None = None
    package: str | None = None
    machine_type: str | None = None
    max_workers: int | None = None
    dry_run: bool = False
    beam_options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.runner not in RUNNERS:
            raise ConfigError(f"runner {self.runner!r} is not known; use one of {', '.join(RUNNERS)}")
        for field in fields(self)[1:]:
            given = getattr(self, field.name) != field.default
            if given and field.name not in _TAKES[self.runner]:
                takers = " or ".join(name for name in RUNNERS if field.name in _TAKES[name])
                raise ConfigError(f"{_flag(field.name)} says nothing to --runner {self.runner}; leave it out, or use {takers}")
            if not given and field.name in _NEEDS[self.runner]:
                raise ConfigError(f"--runner {self.runner} needs {_flag(field.name)}")
        if self.runner == "portable" and (self.worker_pool is None) == (self.image is None):
            raise ConfigError("--runner portable needs either --worker-pool or --image, to know where its workers come from")
        if self.max_workers is not None and self.max_workers < 1:
            raise ConfigError(f"--max-workers is {self.max_workers}; it must be at least 1")


LOCAL: Final = RunnerConfig()
"""Processes on this machine."""


def _flag(name: str) -> str:
    return "--" + name.removesuffix("s" if name == "beam_options" else "").replace("_", "-")
