"""Checking a raw folder without writing a store: the same listing, reading and checks as ``ingest``."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import pyarrow as pa

from scenemill.pipelines.examine import examine_tables, own_labels_of
from scenemill.pipelines.folder import Folder, folder_findings, read_folder, sort_findings, with_splits
from scenemill.pipelines.progress import OnProgress, no_progress
from scenemill.pipelines.runners.groups import run_groups
from scenemill.schemas.config import IngestConfig
from scenemill.schemas.tables import FINDINGS, SAMPLES
from scenemill.transforms.publish import write_whole
from scenemill.transforms.rows import to_parquet
from scenemill.transforms.sources import Listed, Source
from scenemill.validators.suites import Expected, expect

_GROUP: Final = 16


@dataclass(frozen=True)
class Validation:
    """What checking a raw folder came to.

    Attributes:
        folder: what was checked.
        samples: rows of the samples that pass, of no part and no row.
        findings: everything found.
        expected: how the table of samples as a whole was judged.
        passed, rejected: samples; together all that the lists ask for.
    """

    folder: Folder
    samples: pa.Table
    findings: pa.Table
    expected: Expected
    passed: int
    rejected: int


def validate(config: IngestConfig, report: Path | None = None, on_progress: OnProgress = no_progress) -> Validation:
    """Read and check every sample of a raw folder.

    Args:
        config: of the run; ``output`` is not used.
        report: folder for ``samples.parquet``, ``findings.parquet``, ``validation.json`` and the data docs; None for none.
        on_progress: told how far it is.

    Raises:
        ConfigError: the call or the folder does not fit.
    """
    folder = read_folder(config, {}, None, on_progress)
    samples, findings = _examine(config, folder.source, folder.samples, on_progress)
    samples = with_splits(samples, folder.samples).sort_by("key")
    findings = sort_findings(pa.concat_tables([findings, folder_findings(folder)]))
    expected = expect(folder.source.name, samples, report, own_labels_of(folder.source)) if samples.num_rows else Expected(0, 0, ())
    rejected = len(set(findings.filter(findings["rejected"])["key"].to_pylist()))
    if report is not None:
        write_whole(report / "samples.parquet", to_parquet(samples))
        write_whole(report / "findings.parquet", to_parquet(findings))
    return Validation(folder, samples, findings, expected, samples.num_rows, rejected)


def _examine(config: IngestConfig, source: Source, listed: Sequence[Listed], on_progress: OnProgress) -> tuple[pa.Table, pa.Table]:
    groups = [listed[start : start + _GROUP] for start in range(0, len(listed), _GROUP)]
    with TemporaryDirectory() as work:
        function = partial(examine_tables, source)
        tables = list(
            run_groups(
                "Examine views",
                function,
                groups,
                Path(work),
                config.workers,
                lambda done: on_progress("Checking samples", min(done * _GROUP, len(listed)), len(listed)),
            )
        )
    samples = pa.concat_tables([SAMPLES.empty_table(), *(pair[0].cast(SAMPLES) for pair in tables)])
    findings = pa.concat_tables([FINDINGS.empty_table(), *(pair[1].cast(FINDINGS) for pair in tables)])
    return samples, findings
