"""What one image teaches about instances: a mask, a class and a mean depth of each thing and of each stuff class in it.

Source: the 2D targets of NvPanoptix3D, as described with the golden numbers of the loader.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from scenemill.schemas.errors import ConfigError
from scenemill.schemas.labels import VOID, LabelMap
from scenemill.trainers.metrics import STUFF, form_of
from scenemill.trainers.segments import check_shapes

STUFF_ID: Final = -1
"""The id of a stuff mask: it merges all instances of its class."""

EVALUATION_VOID: Final = 13  # number of classes + 1
_DEPTH_STEPS_PER_M: Final = 256
_LABELS: Final = 256  # as many as a byte holds


@dataclass(frozen=True)
class Instances:
    """The targets of one image: things by ascending id, then stuff by ascending class.

    Attributes:
        ids: (N,) int64, raw instance id of a thing; ``STUFF_ID`` for stuff.
        classes: (N,) int64.
        masks: (N, H, W) bool, True inside. A thing and stuff may share pixels, two things never do.
        mean_depth: (N,) float32, metres, over the pixels whose depth is known; 0 where none is.
    """

    ids: NDArray[np.int64]
    classes: NDArray[np.int64]
    masks: NDArray[np.bool_]
    mean_depth: NDArray[np.float32]


def stuff_of(source: str) -> tuple[int, ...]:
    """The stuff classes that get a mask: ceilings count in Matterport3D only.

    >>> stuff_of("front3d"), stuff_of("matterport")
    ((10, 11), (10, 11, 12))
    """
    return STUFF[form_of(source)]


def learned_classes(semantic: NDArray[np.uint8], labels: LabelMap) -> NDArray[np.uint8]:
    """The classes that a model learns, in place of the stored ones; the same array where a label map keeps every id.

    Args:
        semantic: any shape, uint8, stored classes.
        labels: what is learned of them; a value that is no stored class stays as it is.

    >>> labels = LabelMap(learned=(0, 1, 2, 3, 4, 5, 5, 7, 8, 0, 10, 11, 12))
    >>> learned_classes(np.array([5, 6, 9, 10], np.uint8), labels)
    array([ 5,  5,  0, 10], dtype=uint8)
    """
    if labels.keeps_ids:
        return semantic
    table = np.arange(_LABELS, dtype=np.uint8)
    table[: len(labels.learned)] = labels.learned
    found: NDArray[np.uint8] = table[semantic]
    return found


def instances_of(
    semantic: NDArray[np.uint8],
    instance: NDArray[np.integer[Any]],
    depth: NDArray[np.floating[Any]],
    *,
    min_pixels: int,
    stuff_classes: Sequence[int],
    thing_classes: Sequence[int],
    ignore_label: int,
) -> Instances:
    """The targets of one image.

    A thing is an instance of more than ``min_pixels`` pixels whose most frequent class (ties: the smallest; ignored pixels have a
    vote) is a thing class. A stuff class has one mask however few its pixels are.

    Args:
        semantic: (H, W) uint8; void and padding are ``ignore_label``.
        instance: (H, W) integers; 0 and below is no instance.
        depth: (H, W) floats, metres; 0 is unknown.
        min_pixels: instances of this many pixels or fewer are dropped.
        stuff_classes: classes that get one mask each.
        thing_classes: classes whose instances get a mask each, but for those that are stuff as well.
        ignore_label: of pixels that teach nothing; no mask is of this class.

    Raises:
        ConfigError: the shapes differ, or ``semantic`` is not uint8.

    >>> semantic, instance = np.array([[3, 3, 10]], np.uint8), np.array([[7, 7, 2]], np.uint16)
    >>> found = instances_of(semantic, instance, np.array([[1.0, 0.0, 2.0]], np.float32), min_pixels=0, stuff_classes=(10, 11),
    ...                      thing_classes=range(1, 10), ignore_label=255)
    >>> found.ids.tolist(), found.classes.tolist(), found.mean_depth.tolist()
    ([7, -1], [3, 10], [1.0, 2.0])
    """
    check_shapes(semantic=semantic, instance=instance, depth=depth)
    if semantic.dtype != np.uint8:
        raise ConfigError(f"semantic is {semantic.dtype}: allowed is uint8")
    names, pixels, total, known = _tables(semantic, instance, depth)
    majority = pixels.argmax(axis=1)
    is_thing = np.zeros(_LABELS, bool)
    is_thing[list(thing_classes)] = True
    is_thing[[ignore_label, *stuff_classes]] = False
    things = np.flatnonzero((names > 0) & (pixels.sum(axis=1) > min_pixels) & is_thing[majority])
    stuff = np.array([label for label in sorted({*stuff_classes} - {ignore_label}) if pixels[:, label].any()], np.int64)
    masks = np.empty((things.size + stuff.size, *semantic.shape), np.bool_)
    for mask, name in zip(masks, names[things].tolist(), strict=False):
        np.equal(instance, name, out=mask)
    for mask, label in zip(masks[things.size :], stuff.tolist(), strict=True):
        np.equal(semantic, label, out=mask)
    sums, counts = (np.concatenate([table[things].sum(axis=1), table[:, stuff].sum(axis=0)]) for table in (total, known))
    return Instances(
        np.concatenate([names[things], np.full(stuff.size, STUFF_ID, np.int64)]),
        np.concatenate([majority[things], stuff]),
        masks,
        (sums / np.maximum(counts, 1)).astype(np.float32),
    )


def _tables(semantic: NDArray[np.uint8], instance: NDArray[Any], depth: NDArray[Any]) -> tuple[NDArray[Any], ...]:
    """Ids, 0 for none, and for every pair of id and label, (ids, 256): pixels, sum of depth, pixels of known depth.

    Neighbours mostly have one id and one label: what is counted is not pixels but the few runs of equal ones.
    """
    ids, labels, metres = instance.reshape(-1), semantic.reshape(-1), depth.reshape(-1)
    starts = np.concatenate([[0], np.flatnonzero((ids[1:] != ids[:-1]) | (labels[1:] != labels[:-1])) + 1])
    names, row = np.unique(np.maximum(ids[starts], 0).astype(np.int64), return_inverse=True)
    place = row * _LABELS + labels[starts]
    lengths = np.diff(starts, append=ids.size)
    known = lengths if metres.min() > 0 else np.add.reduceat(metres > 0, starts, dtype=np.int64)
    per_run = (lengths, np.add.reduceat(metres, starts, dtype=np.float64), known)
    tables = (np.bincount(place, run, names.size * _LABELS).reshape(-1, _LABELS) for run in per_run)
    return (names, *tables)


def evaluation_semantic(semantic: NDArray[np.uint8], void: int = EVALUATION_VOID) -> NDArray[np.uint8]:
    """The true classes as the 2D evaluation takes them: void is 13, unless something else is given.

    >>> evaluation_semantic(np.array([0, 1, 12], np.uint8))
    array([13,  1, 12], dtype=uint8)
    """
    return np.where(semantic == VOID, np.uint8(void), semantic)


def depth_units(depth: NDArray[np.float32]) -> NDArray[np.int32]:
    """The true depth as the depth-aware quality takes it: steps of 1/256 m, cut off.

    >>> depth_units(np.array([0.0, 1.0, 2.999], np.float32))
    array([  0, 256, 767], dtype=int32)
    """
    return (depth * np.float32(_DEPTH_STEPS_PER_M)).astype(np.int32)
