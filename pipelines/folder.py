"""A raw folder, listed and summed: what ``plan``, ``validate`` and ``ingest`` all begin with."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import pyarrow as pa

from scenemill.pipelines.examine import read_frustum
from scenemill.pipelines.progress import OnProgress
from scenemill.pipelines.runners.groups import run_groups
from scenemill.schemas.config import IngestConfig
from scenemill.schemas.errors import ConfigError
from scenemill.schemas.fields import VIEWS, is_reference
from scenemill.schemas.tables import FINDINGS, SAMPLES, Finding, table_of
from scenemill.transforms import sums
from scenemill.transforms.layout import Layout
from scenemill.transforms.sources import Listed, Source, find_root, find_unlisted, list_samples, open_source
from scenemill.transforms.view_folders import FOLDER_CHECKS

LIST_CHECKS: Final = ("list", "unlisted", "duplicate", "split_overlap", "frustum_mask", *FOLDER_CHECKS)
"""Checks of the folder as a whole: judged anew in every run."""

_SUM_GROUP: Final = 64


@dataclass(frozen=True)
class Folder:
    """A raw folder, listed and summed.

    Attributes:
        source: its form and sizes.
        samples: what the lists name, sorted by key.
        sums: key -> checksums of the raw files.
        findings: key -> what is wrong with the lists or between views; "" for the folder itself.
    """

    source: Source
    samples: tuple[Listed, ...]
    sums: Mapping[str, sums.Sums]
    findings: Mapping[str, Sequence[Finding]]

    @property
    def unnamed(self) -> list[str]:
        """Places in the lists that name no sample; each counts as one rejected."""
        return [key for key, found in self.findings.items() if key and any(finding.blocks for finding in found)]

    @property
    def listed(self) -> int:
        """How many samples the lists ask for."""
        return len(self.samples) + len(self.unnamed)


def read_folder(
    config: IngestConfig, remembered: Mapping[str, sums.Sums], layout: Layout | None, on_progress: OnProgress
) -> Folder:
    """List the samples of a raw folder and sum their files, reading only those that changed since they were remembered.

    Raises:
        ConfigError: no folder, no list, or nothing readable in it.
    """
    root = find_root(config.source, config.input)
    listed, findings = list_samples(config.source, root, config.splits)
    if not listed:
        if is_reference(config.source):
            raise ConfigError(f"0 samples under {root}: list_samples of {config.source} gives none; is it the right folder?")
        expected = "<i>_rgb.png" if config.source == VIEWS else "data/<scene>/rgb_*"
        raise ConfigError(f"0 samples in the split lists under {root}; expected {expected} and lists that name them")
    everything = listed
    listed = listed[: config.limit]
    source = open_source(config.source, root, listed, layout.grid if layout else None, layout.image if layout else None)
    glance = sums.Glance(root)
    known = {sample.key: remembered[sample.key] for sample in listed if _is_fresh(source, sample, remembered, glance)}
    unknown = [sample for sample in listed if sample.key not in known]
    groups = [unknown[start : start + _SUM_GROUP] for start in range(0, len(unknown), _SUM_GROUP)]
    with TemporaryDirectory() as work:
        function = partial(sums.sums_tables, source)
        done = run_groups(
            "Sum raw files", function, groups, Path(work), 1, lambda done: on_progress("Summing raw files", done, len(groups))
        )
        for (table,) in done:
            known.update(sums.sums_from(table))
    found = {key: list(some) for key, some in findings.items()}
    for key in find_unlisted(config.source, root, everything):
        found.setdefault(key, []).append(
            Finding("unlisted", "", "info", "in the folder, in no list that was read", "a list that names it")
        )
    _compare_views(listed, source, known, found)
    return Folder(source, tuple(listed), known, found)


def _is_fresh(source: Source, listed: Listed, remembered: Mapping[str, sums.Sums], glance: sums.Glance) -> bool:
    held = remembered.get(listed.key)
    return held is not None and held.fingerprint == sums.fingerprint_of(source, listed, glance)


def _compare_views(
    listed: Sequence[Listed], source: Source, known: Mapping[str, sums.Sums], found: dict[str, list[Finding]]
) -> None:
    """Findings for views whose list states another image size, of equal content under two keys, and of such in two splits."""
    for sample in listed:
        if sample.size is not None and sample.size != source.image:
            observed, expected = (" x ".join(map(str, size)) for size in (sample.size, source.image))
            found.setdefault(sample.key, []).append(
                Finding("list", "rgb", "warning", f"{observed} pixels by the list", f"{expected} pixels")
            )
    same: dict[str, list[Listed]] = defaultdict(list)
    for sample in listed:
        if content := known[sample.key].content:
            same[content].append(sample)
    what = "image" if source.telling_files == ("rgb",) else "image, depth and labels"
    for group in same.values():
        for sample in group if len(group) > 1 else ():
            others = [other for other in group if other is not sample]
            names = ", ".join(other.key for other in others[:3])
            found.setdefault(sample.key, []).append(Finding("duplicate", "", "warning", f"{what} of {names}", "every view once"))
            if strange := sorted({split for other in others for split in other.splits} - set(sample.splits)):
                observed = f"the same content in {', '.join(strange)}"
                found[sample.key].append(Finding("split_overlap", "", "warning", observed, "one split per view"))


def with_splits(samples: pa.Table, listed: Sequence[Listed]) -> pa.Table:
    """The samples table with the splits of today's lists; samples that none of them names keep theirs."""
    today = {sample.key: list(sample.splits) for sample in listed}
    held = zip(samples["key"].to_pylist(), samples["splits"].to_pylist(), strict=True)
    splits = [today.get(key, before) for key, before in held]
    columns = {
        "split": pa.array([names[0] for names in splits], pa.string()),
        "splits": pa.array(splits, SAMPLES.field("splits").type),
    }
    for name, column in columns.items():
        samples = samples.set_column(samples.schema.get_field_index(name), SAMPLES.field(name), column)
    return samples


def sort_findings(findings: pa.Table) -> pa.Table:
    """The findings table in its one order."""
    return findings.sort_by([(name, "ascending") for name in ("key", "check", "field", "observed")])


def folder_findings(folder: Folder) -> pa.Table:
    """Rows of the findings table about lists, between views, and of the folder itself."""
    rows = [
        {"key": key, "digest": "", "rejected": finding.blocks, **asdict(finding)}
        for key, found in folder.findings.items()
        for finding in found
    ]
    rows += [{"key": "", "digest": "", "rejected": False, **asdict(finding)} for finding in read_frustum(folder.source)[1]]
    return table_of(FINDINGS, rows)
