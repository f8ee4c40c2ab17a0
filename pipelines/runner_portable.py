"""Beam runners behind a job service (Flink, Spark, Beam's own): options, and a look at whether the service is there."""

import difflib
import socket
from collections.abc import Sequence

from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.portable_runner import PortableRunner

from scenemill.pipelines.runner_options import RunnerConfig
from scenemill.schemas.errors import ConfigError

_PATIENCE_S = 5.0


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
    """Options of Beam from flags of ours and ``NAME=VALUE`` of the user's; "true" and "false" switch what is a switch.

    Raises:
        ConfigError: Beam has no option of this name.
    """
    known = PipelineOptions([]).get_all_options()
    for option in more:
        name, _, value = option.partition("=")
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            raise ConfigError(f"--beam-option {option}: Beam has no option {name!r}" + (f"; did you mean {near[0]}?" if near else ""))
        flags = [*flags, *([f"--{name}"] if known[name] is False and value == "true" else [f"--{name}={value}"])]
    return PipelineOptions(list(flags))


def _reach(flag: str, address: str) -> None:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(f"{flag} {address!r}: give HOST:PORT")
    try:
        socket.create_connection((host, int(port)), timeout=_PATIENCE_S).close()
    except OSError as error:
        raise ConfigError(f"{flag} {address}: nobody answers there ({error})") from error
