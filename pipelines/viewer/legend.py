"""Names and colours of ids: what the page shows beside a picture, from ``schemas/labels.py`` or a log's own labels."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from scenemill.pipelines.reports.sheet import FREE, instance_colors
from scenemill.schemas.labels import LABELS, Label

Color = tuple[int, int, int]
Names = Mapping[int, tuple[str, Color | None]]
"""Id -> name and colour; None for a colour made from the id."""

UNLABELLED: Final[Color] = (158, 166, 176)
"""Of what has no class: a grey that no class has."""

MOST_ENTRIES: Final = 1000
"""Of a legend; the rest, those with the fewest elements, is drawn in grey."""


def class_names(labels: Sequence[Label] = LABELS) -> dict[int, tuple[str, Color | None]]:
    """The names and colours of classes; void is drawn in grey, for on black a surface has no shape."""
    return {label.id: (label.name, label.color if label.id else UNLABELLED) for label in labels}


def voxel_names(names: Names) -> Names:
    """Names of ids in a plane of a volume, in which 0 is free space, drawn light."""
    return {**names, 0: ("free space", FREE)}


def segment_names(classes: Mapping[int, int], labels: Sequence[Label] = LABELS) -> dict[int, tuple[str, Color | None]]:
    """The names of segments: those of their classes, with a colour each.

    Args:
        classes: segment id -> class id.
        labels: what the class ids mean.
    """
    names = {label.id: label.name for label in labels}
    return {0: ("none", UNLABELLED)} | {segment: (names.get(label, "unknown"), None) for segment, label in classes.items()}


def legend(ids: NDArray[Any], names: Names) -> list[dict[str, Any]]:
    """The ids in an array, ascending: ``id``, ``name``, ``color`` (0 to 255) and ``count`` of each, as JSON takes it.

    An id without a name has its number for one. One without a colour has the colour of its number, the same everywhere; 0 and less grey.

    >>> [entry["name"] for entry in legend(np.array([3, 3, 77]), class_names())]
    ['chair', '77']
    """
    found, counts = np.unique(ids, return_counts=True)
    if len(found) > MOST_ENTRIES:
        largest = np.sort(np.argsort(-counts, kind="stable")[:MOST_ENTRIES])
        found, counts = found[largest], counts[largest]
    own = instance_colors(found.astype(np.int64)).tolist()
    return [_entry(*each, names) for each in zip(found.tolist(), counts.tolist(), own, strict=True)]


def _entry(number: int, count: int, own: Sequence[int], names: Names) -> dict[str, Any]:
    name, color = names.get(number, (str(number), None))
    return {"id": number, "name": name, "color": list(color or (own if number > 0 else UNLABELLED)), "count": count}
