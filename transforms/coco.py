"""Labels of an image as the panoptic task of COCO has them: segments, and a PNG whose colours are their ids.

A segment's id says what it is: its class times 65 536, plus the instance id of a thing. As a colour it is R + 256 G + 65 536 B, so blue
is the class and red and green are the instance. Void is 0.

Source: the panoptic format of COCO (cocodataset.org, format of data; panopticapi).
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from scenemill.schemas.errors import ConfigError
from scenemill.schemas.labels import VOID, Label

_INSTANCES: Final = 1 << 16


def categories_of(labels: Sequence[Label]) -> list[dict[str, Any]]:
    """The classes but void, as COCO lists them.

    >>> categories_of([Label(0, "void", False, (0, 0, 0)), Label(3, "chair", True, (0, 0, 142))])
    [{'id': 3, 'name': 'chair', 'supercategory': 'thing', 'isthing': 1, 'color': [0, 0, 142]}]
    """
    kinds = {True: "thing", False: "stuff"}
    return [
        {
            "id": label.id,
            "name": label.name,
            "supercategory": kinds[label.thing],
            "isthing": int(label.thing),
            "color": list(label.color),
        }
        for label in labels
        if label.id != VOID
    ]


def segment_map(semantic: NDArray[np.uint8], instance: NDArray[np.uint16], labels: Sequence[Label]) -> NDArray[np.uint32]:
    """(H, W) uint32 ids of segments: of a class for stuff, of a class and an instance for things, 0 for void.

    Args:
        semantic: (H, W) uint8, class ids.
        instance: (H, W) uint16, instance ids.
        labels: what the class ids mean.

    Raises:
        ConfigError: a class id without a label.
    """
    known = {label.id: label.thing for label in labels} | {VOID: False}
    if strange := sorted({*np.unique(semantic).tolist()} - {*known}):
        raise ConfigError(f"class ids {strange} have no label; name them in the labels of the source, and ingest again")
    things = np.zeros(256, np.bool_)
    things[[number for number, thing in known.items() if thing]] = True
    ids: NDArray[np.uint32] = semantic.astype(np.uint32) * np.uint32(_INSTANCES)
    return ids + np.where(things[semantic], instance, 0).astype(np.uint32)


def segments_of(ids: NDArray[np.uint32], labels: Sequence[Label]) -> list[dict[str, Any]]:
    """The segments of a map, ascending by id: ``id``, ``category_id``, ``area`` in pixels, ``bbox`` (x, y, width, height), ``iscrowd``.

    A thing's pixels without an instance id are one crowd.
    """
    things: Mapping[int, bool] = {label.id: label.thing for label in labels}
    found, place, areas = np.unique(ids, return_inverse=True, return_counts=True)
    rows, columns = (np.broadcast_to(axis, ids.shape).ravel() for axis in np.ogrid[: ids.shape[0], : ids.shape[1]])
    low, high = np.full((2, len(found)), max(ids.shape)), np.zeros((2, len(found)), np.int64)
    for axis, values in enumerate((columns, rows)):
        np.minimum.at(low[axis], place.ravel(), values)
        np.maximum.at(high[axis], place.ravel(), values)
    segments = []
    for number, segment in enumerate(found.tolist()):
        category, instance = divmod(segment, _INSTANCES)
        if category != VOID:
            (x, y), (right, bottom) = low[:, number].tolist(), high[:, number].tolist()
            box = [x, y, right - x + 1, bottom - y + 1]
            crowd = int(things[category] and instance == 0)
            told = {"id": segment, "category_id": category, "area": int(areas[number]), "bbox": box, "iscrowd": crowd}
            segments.append(told)
    return segments


def colors_of(ids: NDArray[np.uint32]) -> NDArray[np.uint8]:
    """(H, W, 3) uint8: ids as colours, id = R + 256 G + 65 536 B.

    >>> colors_of(np.array([[0x030201]], np.uint32))
    array([[[1, 2, 3]]], dtype=uint8)
    """
    return np.stack([ids & 255, ids >> 8 & 255, ids >> 16 & 255], axis=-1).astype(np.uint8)
