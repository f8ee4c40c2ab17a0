"""An ingest on Dataflow: the job's options, checked before anything is sent; what would be submitted; submitting and waiting."""

import hashlib
import re
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import apache_beam as beam
from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions, WorkerOptions
from apache_beam.options.pipeline_options_validator import PipelineOptionsValidator
from apache_beam.portability.api import beam_runner_api_pb2

from scenemill.pipelines.runners.graph import ingest_graph
from scenemill.pipelines.runners.options import RunnerConfig
from scenemill.pipelines.runners.portable import beam_options
from scenemill.schemas.config import IngestConfig
from scenemill.schemas.errors import ConfigError, SceneMillError

_LIMIT_BYTE: Final = 10 << 20
"""Of a job's graph. Source: the quotas in Dataflow's documentation."""

_BUCKET: Final = re.compile(r"gs://[a-z0-9][-_a-z0-9.]+[a-z0-9]/.+")
_LOOPBACK: Final = re.compile(r"http://(localhost|127\.0\.0\.1):\d+/?")


@dataclass(frozen=True)
class Job:
    """A job, submitted or only described.

    Attributes:
        name, project, region, image: as the service gets them.
        input, output: folders.
        steps: labels of the graph's steps, in order.
        graph_byte: size of the graph.
        options: all that differ from Beam's defaults.
        id: given by the service; None where nothing was submitted.
        state: in the end.
    """

    name: str
    project: str
    region: str
    image: str
    input: str
    output: str
    steps: tuple[str, ...]
    graph_byte: int
    options: dict[str, Any]
    id: str | None = None
    state: str = "not submitted"


def run_on_dataflow(config: IngestConfig, runner: RunnerConfig) -> Job:
    """Submit an ingest and wait for its end; with ``dry_run`` say what would be submitted, without network or credentials.

    Raises:
        ConfigError: the service would refuse an option, or its workers could not reach a folder.
        SceneMillError: the job did not end well; the message has its last word.
    """
    options = dataflow_options(config, runner)
    _check_folders(config, options)
    from apache_beam.runners.dataflow.dataflow_runner import DataflowPipelineResult, DataflowRunner, DataflowRuntimeException

    service = DataflowRunner()
    pipeline = beam.Pipeline(runner=service, options=options)
    ingest_graph(pipeline, config)
    submitted = pipeline.run()
    job = _describe(config, options, service.proto_pipeline)
    if not isinstance(submitted, DataflowPipelineResult):
        return job
    try:
        return replace(job, id=submitted.job_id(), state=submitted.wait_until_finish())
    except DataflowRuntimeException as error:
        raise SceneMillError(f"Dataflow job {job.name}, {submitted.job_id()}: {error}") from error


def dataflow_options(config: IngestConfig, runner: RunnerConfig) -> PipelineOptions:
    """The job's options, as Beam holds them.

    Raises:
        ConfigError: Beam or the service would refuse one.
    """
    _need_client()
    if config.repair:
        raise ConfigError("--repair reads the whole store again and again; run it with --runner local beside the store")
    if ".py:" in config.source:
        raise ConfigError(
            f"source {config.source}: a file of this machine, which Dataflow's workers do not have; put it into their image as a module, "
            "and name it package.module:NAME"
        )
    where = (runner.temp_location or "").rstrip("/")
    flags = {
        "project": runner.project,
        "region": runner.region,
        "temp_location": where,
        "staging_location": f"{where}/staging",
        "job_name": _job_name(config),
        "labels": "tool=scenemill",
        "sdk_container_image": runner.image,
        "sdk_location": "container",
        "extra_package": runner.package,
        "machine_type": runner.machine_type,
        "max_num_workers": runner.max_workers,
        "number_of_worker_harness_threads": 1,  # a process for each core: decoding holds Python's lock
        "dry_run": "true" if runner.dry_run else None,
    }
    options = beam_options([f"--{name}={value}" for name, value in flags.items() if value is not None], runner.beam_options)
    _check_options(options)
    if runner.package is not None and not (runner.package.endswith(".whl") and Path(runner.package).is_file()):
        raise ConfigError(f"--package {runner.package}: no wheel there; make one: pip wheel --no-deps SCENEMILL")
    return options


def _need_client() -> None:
    try:
        for client in ("dataflow", "storage"):
            import_module(f"google.cloud.{client}")
    except ImportError as error:
        raise ConfigError("--runner dataflow needs Google's clients: pip install 'scenemill[gcp]'") from error


def _job_name(config: IngestConfig) -> str:
    """The same for every run into one store: the service refuses a second job of a name while the first runs."""
    store = hashlib.sha256(str(config.output).encode()).hexdigest()[:8]
    return f"scenemill-ingest-{re.sub('[^a-z0-9]+', '-', config.source.lower()).strip('-')}-{store}"


def _is_loopback(options: PipelineOptions) -> bool:
    return bool(_LOOPBACK.fullmatch(options.view_as(GoogleCloudOptions).dataflow_endpoint))


def _check_options(options: PipelineOptions) -> None:
    """Hold the options against the service's rules; a bad bucket first, since Beam would use another without a word."""
    from apache_beam.runners.dataflow.dataflow_runner import DataflowRunner

    if _is_loopback(options):
        return
    cloud = options.view_as(GoogleCloudOptions)
    for name in ("temp_location", "staging_location"):
        if not _BUCKET.fullmatch(getattr(cloud, name)):
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(cloud, name)!r}: give gs://BUCKET/FOLDER")
    offline = PipelineOptions.from_dictionary({**options.get_all_options(drop_default=True), "dry_run": "true"})
    if errors := PipelineOptionsValidator(offline, DataflowRunner()).validate():
        raise ConfigError(f"Dataflow would refuse this job: {'; '.join(errors)}")


def _check_folders(config: IngestConfig, options: PipelineOptions) -> None:
    """Workers of the service reach buckets and nothing else; one on this machine reaches what this machine does."""
    if config.output is None:
        raise ConfigError("ingest needs an output store")
    if _is_loopback(options):
        return
    for flag, path in (("--input", config.input), ("--output", config.output)):
        if not _BUCKET.fullmatch(str(path)):
            raise ConfigError(f"{flag} {path}: workers of Dataflow cannot reach a folder of this machine; give gs://BUCKET/FOLDER")


def _describe(config: IngestConfig, options: PipelineOptions, graph: beam_runner_api_pb2.Pipeline) -> Job:
    cloud = options.view_as(GoogleCloudOptions)
    (root,) = graph.root_transform_ids
    steps = graph.components.transforms[root].subtransforms
    size = graph.ByteSize()
    if size > _LIMIT_BYTE:
        raise ConfigError(f"the graph has {size} bytes, the service takes {_LIMIT_BYTE}; please report it")
    return Job(
        name=cloud.job_name,
        project=cloud.project,
        region=cloud.region,
        image=options.view_as(WorkerOptions).sdk_container_image,
        input=str(config.input),
        output=str(config.output),
        steps=tuple(graph.components.transforms[step].unique_name for step in steps),
        graph_byte=size,
        options=options.get_all_options(drop_default=True),
    )
