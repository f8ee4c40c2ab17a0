"""An ingest as one Beam graph, for a service that shares no disk with the one who submits.

    settings -> list parts -> spread over workers -> build parts -> wait for all -> publish

The graph is the same whatever the size of the data. Listing and publishing are single steps on one worker; the last is the plain
ingest once more, which finds every part built and publishes. Every step may be repeated: a part of the same id has the same bytes.
"""

from collections.abc import Iterator

import apache_beam as beam
from apache_beam.metrics import Metrics

from scenemill.pipelines.ingest import build_part, ingest, survey
from scenemill.pipelines.runners.groups import spread_work
from scenemill.pipelines.runners.work import software
from scenemill.schemas.config import IngestConfig
from scenemill.schemas.errors import ConfigError, Corrupt
from scenemill.transforms import publish
from scenemill.transforms.layout import Layout
from scenemill.transforms.parts import PartPlan, finished_part
from scenemill.transforms.sources import Source

Build = tuple[Source, Layout, PartPlan]
"""What it takes to build one part, beside the store."""


def ingest_graph(pipeline: beam.Pipeline, config: IngestConfig) -> beam.PCollection:
    """Add an ingest to a pipeline.

    Args:
        pipeline: with any runner whose workers reach the input and the output.
        config: of the run, with an output.

    Returns:
        One element: the id of the version that was published.
    """
    settings = pipeline | "Take the settings" >> beam.Create([(config, software())], reshuffle=False)
    parts = settings | "List parts" >> beam.FlatMap(list_parts)
    built = spread_work("Build parts", _BuildPart(config), parts)
    counted = built | "Wait for all parts" >> beam.combiners.Count.Globally()
    return counted | "Publish" >> beam.Map(publish_parts, config)


def list_parts(settings: tuple[IngestConfig, str]) -> Iterator[Build]:
    """What is to be built: a worker lists, sums and plans.

    Raises:
        ConfigError: this worker has another version than the one who submitted.
        Conflict: another run holds the store.
    """
    config, wanted = settings
    if wanted != software():
        raise ConfigError(
            f"this worker's image has {software()}, the one who submitted {wanted}; build the image from the same wheel"
        )
    assert config.output is not None
    with publish.locked(config.output):
        folder, plan, finished = survey(config)
    done = {receipt.id for receipt in finished}
    for part in plan.parts:
        if part.id not in done:
            yield folder.source, plan.layout, part


class _BuildPart:
    """Builds one part, and counts what came of it, for the service's own page."""

    def __init__(self, config: IngestConfig) -> None:
        assert config.output is not None
        self._store = config.output

    def __call__(self, build: Build) -> str:
        source, layout, part = build
        build_part(source, layout, self._store, "", part)
        receipt = finished_part(self._store, part.id)
        if receipt is None:
            raise Corrupt(f"part {part.id}: it was built, and is not whole; look at the store's disk")
        for name in ("stored", "rejected", "raw_byte", "stored_byte"):
            Metrics.counter("scenemill", name).inc(getattr(receipt, name))
        return part.id


def publish_parts(built: int, config: IngestConfig) -> str:
    """Publish what the workers built; should raw files have changed meanwhile, build what that makes new.

    Args:
        built: number of parts.
        config: of the run.

    Returns:
        The id of the version.

    Raises:
        TooManyRejected: more than the settings allow.
    """
    version = ingest(config, built_by="dataflow", built=built).version
    assert version is not None
    return version
