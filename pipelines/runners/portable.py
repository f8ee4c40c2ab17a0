"""Beam runners behind a job service (Flink, Spark, Beam's own): options, and a look at whether the service is there."""

import contextlib
import difflib
import io
import socket
from collections.abc import Sequence
from typing import Final

from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.portable_runner import PortableRunner

from scenemill.pipelines.runners.options import RunnerConfig
from scenemill.schemas.errors import ConfigError

_PATIENCE_S: Final = 5.0


def portable_runner(runner: RunnerConfig) -> PortableRunner:
    """Beam's client of job services.

    Raises:
        ConfigError: nobody listens at the endpoint of the job service, or of the worker pool.
    """
    _reach("--job-endpoint", runner.job_endpoint or "")
    if runner.worker_pool is not None:
        _reach("--worker-pool", runner.worker_pool)
    return PortableRunner()


def portable_options(runner: RunnerConfig) -> PipelineOptions:
    """Options of a job whose workers are started by a worker pool, or in containers.

    Raises:
        ConfigError: Beam has no such option.
    """
    environment = ("DOCKER", runner.image) if runner.worker_pool is None else ("EXTERNAL", runner.worker_pool)
    flags = [
        f"--job_endpoint={runner.job_endpoint}",
        f"--environment_type={environment[0]}",
        f"--environment_config={environment[1]}",
        "--default_sdk_harness_log_level=ERROR",
    ]
    return beam_options(flags, runner.beam_options)


def beam_options(flags: Sequence[str], more: Sequence[str]) -> PipelineOptions:
    """Options of Beam: flags of ours, then the user's, ``NAME=VALUE`` or ``NAME``.

    Raises:
        ConfigError: Beam has no option of this name, or does not take its value.

    >>> beam_options(["--job_name=a"], ["num_workers=2"]).get_all_options(drop_default=True)
    {'job_name': 'a', 'num_workers': 2}
    """
    known = PipelineOptions([]).get_all_options()
    for option in more:
        name = option.partition("=")[0]
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            raise ConfigError(
                f"--beam-option {option}: Beam has no option {name!r}" + (f"; did you mean {near[0]}?" if near else "")
            )
    options = PipelineOptions([*flags, *(f"--{option}" for option in more)])
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            options.get_all_options()
    except SystemExit as error:
        raise ConfigError(f"--beam-option: {said.getvalue().strip().splitlines()[-1].partition('error: ')[2]}") from error
    return options


def _reach(flag: str, address: str) -> None:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(f"{flag} {address!r}: give HOST:PORT")
    try:
        socket.create_connection((host, int(port)), timeout=_PATIENCE_S).close()
    except OSError as error:
        raise ConfigError(f"{flag} {address}: nobody answers there ({error})") from error
