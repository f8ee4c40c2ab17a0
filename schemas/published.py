"""Results that others published for the same two data sets, as rows of the scores table.

Percentages are copied digit for digit; ``published_scores`` turns them into the fractions the table holds. What a source does not
say stays empty: no counts anywhere, no split outside the product documentation, no things and stuff in most READMEs.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import pyarrow as pa

from scenemill.schemas.tables import SCORES, table_of

Percent = float | None
Groups = tuple[Percent, Percent, Percent]
"""All, things, stuff."""

GROUPS: Final = ("all", "things", "stuff")
PREFIX: Final = "published"
"""Runs of published results begin with it; no other run may."""

_NONE: Final[Groups] = (None, None, None)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)  # the rows are the same bytes wherever and whenever they are added


@dataclass(frozen=True)
class Published:
    """One published row: a model on a data set, in percent.

    Attributes:
        model: its name as the source writes it.
        source: "front3d" or "matterport".
        variant: tells apart several results of one model on one data set.
        split: the split it was measured on; "" where the source does not say.
        origin: where the numbers stand.
        prq: panoptic reconstruction quality of all classes, things and stuff.
        rsq: reconstructed segmentation quality, likewise.
        rrq: reconstructed recognition quality, likewise.
    """

    model: str
    source: str
    variant: str
    split: str
    origin: str
    prq: Groups
    rsq: Groups = _NONE
    rrq: Groups = _NONE

    @property
    def run(self) -> str:
        """The run id of its rows."""
        return f"{PREFIX}/{self.model}/{self.source}/{self.variant}"


def _documented(model: str, source: str, prq: Groups, rsq: Groups, rrq: Groups) -> Published:
    split = "test" if source == "front3d" else "val"
    return Published(model, source, "documentation", split, "product documentation of NvPanoptix3D", prq, rsq, rrq)


def _all(prq: float, rsq: Percent = None, rrq: Percent = None) -> tuple[Groups, Groups, Groups]:
    return (prq, None, None), (rsq, None, None), (rrq, None, None)


_BUOL: Final = "README of chtsy/buol"
_UNI3D: Final = "README of mlpc-ucsd/Uni-3D"

PUBLISHED: Final = (
    _documented("BUOL", "front3d", (54.01, 49.73, 73.30), (63.81, 60.57, 78.37), (82.99, 80.67, 93.42)),
    _documented("Uni3D", "front3d", (52.76, 47.29, 77.41), (60.98, 56.56, 80.87), (84.26, 81.81, 95.31)),
    _documented("NvPanoptix3D", "front3d", (54.32, 49.74, 74.90), (62.95, 58.98, 80.80), (83.94, 82.15, 92.00)),
    _documented("BUOL", "matterport", (14.47, 10.97, 24.94), (45.71, 45.30, 46.93), (30.91, 23.81, 52.22)),
    _documented("Uni3D", "matterport", (16.32, 13.21, 29.33), (44.36, 44.58, 44.09), (36.48, 29.33, 65.19)),
    _documented("NvPanoptix3D", "matterport", (17.63, 14.79, 28.04), (45.27, 45.68, 43.31), (38.98, 32.26, 64.02)),
    Published("BUOL", "front3d", "repository", "", _BUOL, (54.05, 49.77, 73.34), (63.72, None, None), (83.14, None, None)),
    Published("BUOL", "matterport", "repository", "", _BUOL, (14.54, 11.02, 25.09), (45.91, None, None), (31.08, None, None)),
    Published("Uni3D", "front3d", "single-scale", "", f"{_UNI3D}, single-scale", *_all(52.51, 60.89, 83.97)),
    Published("Uni3D", "front3d", "multi-scale", "", f"{_UNI3D}, multi-scale", *_all(53.53, 61.69, 84.69)),
    Published("Uni3D", "matterport", "authors", "", "published by the authors of Uni-3D", *_all(16.58, 44.26, 36.68)),
    Published("Dahnert et al.", "front3d", "paper", "", "paper of Dahnert et al. 2021", *_all(46.77)),
    Published("Dahnert et al.", "front3d", "checkpoint", "", "released checkpoint of Dahnert et al. (about)", *_all(43.0)),
)
"""In the order of the published tables: the product documentation first, then what the authors themselves give."""


def published_scores() -> pa.Table:
    """The published results as rows of the scores table, the same bytes every time."""
    return table_of(SCORES, [row for result in PUBLISHED for row in _rows(result)])


def _rows(result: Published) -> Iterator[dict[str, Any]]:
    for place, group in enumerate(GROUPS):
        if result.prq[place] is None:
            continue
        yield {
            "run": result.run,
            "model": result.model,
            "source": result.source,
            "split": result.split,
            "store_version": "",
            "metric": "prq",
            "rule": "reference",
            "group": group,
            "quality": _fraction(result.prq[place]),
            "segmentation": _fraction(result.rsq[place]),
            "recognition": _fraction(result.rrq[place]),
            "published": True,
            "origin": result.origin,
            "created": _EPOCH,
        }


def _fraction(percent: Percent) -> float | None:
    return None if percent is None else round(percent / 100, 6)
