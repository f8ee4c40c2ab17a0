"""The program of a Dataflow flex template: parameters in, one graph out. The launcher submits it, and ends.

The parameters are described for the service in ``flex_template/metadata.json``.
"""

import argparse
from collections.abc import Sequence

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from scenemill.pipelines.runners.graph import ingest_graph
from scenemill.schemas.config import IngestConfig, parse_max_rejected
from scenemill.transforms.objects import place_of


def main(arguments: Sequence[str] | None = None) -> None:
    """Build the graph of an ingest and give it to the runner that the other arguments name.

    Args:
        arguments: parameters of the template, and options of Beam; None for those of the process.

    Raises:
        ConfigError: a parameter is out of its range.
    """
    given, others = parser().parse_known_args(arguments)
    options = PipelineOptions(others, save_main_session=False)
    pipeline = beam.Pipeline(options=options)
    ingest_graph(pipeline, _config(given))
    pipeline.run()  # not waited for: a launcher only hands over the graph


def parser() -> argparse.ArgumentParser:
    """The template's parameters."""
    parser = argparse.ArgumentParser(description="Ingest a raw folder into a store.", allow_abbrev=False)
    parser.add_argument("--source", required=True)
    parser.add_argument("--input", required=True, type=place_of)
    parser.add_argument("--output", required=True, type=place_of)
    parser.add_argument("--splits", default="")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--max_rejected")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--samples_per_part", type=int)
    return parser


def _config(given: argparse.Namespace) -> IngestConfig:
    return IngestConfig(
        source=given.source,
        input=given.input,
        output=given.output,
        splits=tuple(name.strip() for name in given.splits.split(",") if name.strip()),
        limit=given.limit,
        max_rejected=parse_max_rejected(given.max_rejected) if given.max_rejected else None,
        precision=given.precision,
        samples_per_part=given.samples_per_part,
    )
