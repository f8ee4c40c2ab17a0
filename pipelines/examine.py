"""One view, read and judged: what ``ingest`` and ``validate`` share up to the write."""

import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from scenemill.schemas.errors import SourceError
from scenemill.schemas.fields import FRONT3D_FORM
from scenemill.schemas.labels import Label
from scenemill.schemas.sample import Sample
from scenemill.schemas.tables import FINDINGS, SAMPLES, Finding, table_of
from scenemill.transforms import folders, geometry, npz
from scenemill.transforms.own_forms import check_own
from scenemill.transforms.parts import finding_rows, sample_row
from scenemill.transforms.sources import Listed, Source, read_sample
from scenemill.validators.checks import CHECKS_VERSION, check_sample
from scenemill.validators.measures import Rules

FRUSTUM_FILE = "meta/frustum_mask.npz"


def read_frustum(source: Source) -> tuple[NDArray[np.bool_] | None, list[Finding]]:
    """The mask that serves the whole of a source in the 3D-Front form, image-aligned, and what is wrong with its file.

    Where the file is missing or unusable the closed form, equal to the released mask in every voxel, takes its place, and a finding
    says so. None for Matterport3D, whose views carry their own.
    """
    if source.name not in FRONT3D_FORM:
        return None, []
    mask = np.empty((source.grid,) * 3, np.bool_)
    try:
        npz.read_volumes(folders.read_file(source.root, FRUSTUM_FILE, 1 << 26), "mask", [mask], ("bool",), rotated=True)
    except SourceError as error:
        observed = f"{error.observed}; the closed form is used"
        return geometry.front3d_frustum(source.grid), [Finding(error.check, "frustum_mask", "warning", observed, FRUSTUM_FILE)]
    return mask, []


@lru_cache(maxsize=2)
def rules_of(source: Source) -> Rules:
    """What the samples of a source are measured against; worked out once per process."""
    size = (source.image[1], source.image[0])

    def locate(sample: Sample) -> NDArray[np.float64]:
        centre = geometry.camera_index(source.name, sample["intrinsics"], size, source.grid)
        return geometry.back_project(sample["depth"], sample["intrinsics"], centre, source.grid)

    own = (source.own.labels, source.own.fields) if source.own else ()
    return Rules(source.name, source.grid, source.image, read_frustum(source)[0], locate, *own)


def checks_of(source: Source) -> str:
    """The version of all that judges a source's samples, and for one of one's own of the code that reads them too."""
    own = source.own
    return f"{CHECKS_VERSION}+{own.name}-{own.version}-{source.digest[:16]}" if own else CHECKS_VERSION


def own_labels_of(source: Source) -> tuple[Label, ...] | None:
    """The classes of a source of one's own; None for a built-in one."""
    return source.own.labels if source.own else None


_held = threading.local()


def _arrays_of(source: Source) -> dict[str, NDArray[Any]]:
    """Arrays that this thread fills again and again."""
    if getattr(_held, "source", None) != source:
        _held.source, _held.arrays = source, source.new_arrays()
    arrays: dict[str, NDArray[Any]] = _held.arrays
    return arrays


def examine(source: Source, listed: Listed) -> tuple[Sample, list[Finding], dict[str, Any]]:
    """Read and check one view.

    Returns:
        The sample (its arrays live until the next call in this thread), its findings, and, if none of them blocks, its facts.
    """
    sample, findings = read_sample(source, listed, _arrays_of(source))
    found, measured = check_sample(sample, rules_of(source))
    findings = findings + found
    if source.own and not any(finding.blocks for finding in findings):
        findings = findings + list(check_own(source.own, sample))
    blocked = any(finding.blocks for finding in findings)
    return sample, findings, {} if blocked else measured.facts()


def examine_tables(source: Source, samples: Sequence[Listed]) -> tuple[pa.Table, pa.Table]:
    """Examine some views without storing them: rows of the samples table, and of the findings table."""
    rows: list[dict[str, Any]] = []
    findings: list[dict[str, Any]] = []
    for listed in samples:
        sample, found, facts = examine(source, listed)
        if facts:
            rows.append(sample_row(sample, facts, found))
        findings.extend(finding_rows(sample, found, rejected=not facts))
    return table_of(SAMPLES, rows), table_of(FINDINGS, findings)
