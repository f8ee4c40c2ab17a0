"""From label arrays to segments: which voxels or pixels belong to which instance or stuff region, in which order, of which class.

NumPy arrays and torch tensors (on any device) give the same segments; nothing but the voxels that carry a label is touched twice.
Source: the ground-truth tables of NvPanoptix3D, Uni-3D and BUOL, as described with the golden numbers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scenemill.schemas.errors import ConfigError

Array = Any
"""A NumPy array or a torch tensor."""


def is_tensor(array: Array) -> bool:
    """True for a torch tensor; torch is not imported to find out."""
    return type(array).__module__.split(".")[0] == "torch"


def to_numpy(array: Array) -> np.ndarray[Any, Any]:
    """The array on the CPU as NumPy."""
    return array.cpu().numpy() if is_tensor(array) else np.asarray(array)


def like(values: np.ndarray[Any, Any], array: Array) -> Array:
    """NumPy values in the kind of array, and on the device, of another."""
    if not is_tensor(array):
        return values
    import torch

    return torch.as_tensor(values, device=array.device)


def flat_nonzero(array: Array) -> Array:
    """Flat indices of the values that are not zero."""
    flat = array.reshape(-1)
    return flat.nonzero().reshape(-1) if is_tensor(array) else np.flatnonzero(flat if flat.dtype == bool else flat != 0)


@dataclass(frozen=True)
class Segments:
    """Segments of one sample, in table order: the order in which the reference rule matches them.

    Attributes:
        index: any shape, uint8 or int32; 0 where there is none, k for the k-th segment of the table (counted from 1).
        classes: class id of each segment.
        names: the segments' own ids, as in the labels they came from.
    """

    index: Array
    classes: tuple[int, ...]
    names: tuple[int, ...]


def segments_from_labels(semantic: Array, instance: Array, stuff: Sequence[int]) -> Segments:
    """Ground-truth segments: every instance of a thing class by ascending id, then every stuff class present, in list order.

    Args:
        semantic: integer array, class ids; 0 is void or free space.
        instance: integer array of the same shape, 0 for no instance.
        stuff: class ids whose voxels form one segment each.

    An instance's class is its most frequent class that is neither 0 nor stuff (ties: the smallest); an instance without one, such
    as a wall's, is no segment. ``names`` of stuff segments are their class ids, negated.

    Raises:
        ConfigError: the shapes differ.
    """
    check_shapes(semantic=semantic, instance=instance)
    flat_semantic, flat_instance = semantic.reshape(-1), instance.reshape(-1)
    place = flat_nonzero(flat_semantic)
    classes, ids = to_numpy(flat_semantic[place]).astype(np.int64), to_numpy(flat_instance[place]).astype(np.int64)
    is_stuff = np.isin(classes, np.asarray(stuff, np.int64))
    of_thing = ~is_stuff & (ids > 0)
    names, thing_classes = _majority(ids[of_thing], classes[of_thing])
    present = [label for label in stuff if bool(np.any(classes == label))]
    table = np.zeros(max(int(ids.max(initial=0)), 0) + 1, np.int64)
    table[names] = np.arange(1, len(names) + 1)
    index = table[ids]
    for number, label in enumerate(present, len(names) + 1):
        index[classes == label] = number
    unlabelled = flat_nonzero(_unlabelled_instances(flat_semantic, flat_instance))
    segments = _scatter(semantic, place, index, len(names) + len(present))
    if len(unlabelled):  # voxels of an instance that carry no class still belong to it
        found = to_numpy(flat_instance[unlabelled]).astype(np.int64)
        known = np.where(found < len(table), table[np.minimum(found, len(table) - 1)], 0)
        segments.reshape(-1)[unlabelled] = like(known.astype(to_numpy(segments.reshape(-1)[:1]).dtype), segments)
    return Segments(
        segments,
        (*(int(label) for label in thing_classes), *present),
        (*(int(name) for name in names), *(-label for label in present)),
    )


def _unlabelled_instances(semantic: Array, instance: Array) -> Array:
    return (semantic == 0) & (instance != 0)


def _majority(ids: np.ndarray[Any, Any], classes: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Ascending ids, and the most frequent class of each (ties: the smallest)."""
    if not ids.size:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    pairs, counts = np.unique(ids * 65536 + classes, return_counts=True)
    order = np.lexsort((pairs % 65536, -counts, pairs // 65536))
    names, first = np.unique(pairs[order] // 65536, return_index=True)
    return names, pairs[order][first] % 65536


def segments_from_panoptic(panoptic: Array, classes: Mapping[int, int]) -> Segments:
    """Predicted segments: one per entry of ``classes``, in its order; class 0 is dropped, ids that ``classes`` lacks belong to none.

    Args:
        panoptic: integer array, segment ids; 0 for none.
        classes: segment id -> class id.

    Raises:
        ConfigError: a segment id is 0 or below.
    """
    if any(name <= 0 for name in classes):
        raise ConfigError(f"predicted segment ids {sorted(classes)[:5]}: ids are above 0, which means no segment")
    names = [name for name, label in classes.items() if label != 0]
    place = flat_nonzero(panoptic)
    found = to_numpy(panoptic.reshape(-1)[place]).astype(np.int64)
    known = np.array(sorted(names), np.int64)
    number = np.array([names.index(name) + 1 for name in known.tolist()], np.int64)
    if known.size:
        at = np.minimum(np.searchsorted(known, found), known.size - 1)
        index = np.where(known[at] == found, number[at], 0)
    else:
        index = np.zeros(found.size, np.int64)
    return Segments(_scatter(panoptic, place, index, len(names)), tuple(int(classes[name]) for name in names), tuple(names))


def _scatter(pattern: Array, place: Array, index: np.ndarray[Any, Any], count: int) -> Array:
    """An array shaped like ``pattern`` with ``index`` at the flat places ``place``, 0 elsewhere."""
    dtype = "uint8" if count < 256 else "int32"
    if is_tensor(pattern):
        import torch

        out: Array = torch.zeros(pattern.shape, dtype=getattr(torch, dtype), device=pattern.device)
    else:
        out = np.zeros(pattern.shape, dtype)
    out.reshape(-1)[place] = like(index.astype(dtype), out)
    return out


def check_shapes(**arrays: Array) -> None:
    """Refuse arrays of different shapes.

    Raises:
        ConfigError: they differ.
    """
    shapes = {name: tuple(array.shape) for name, array in arrays.items()}
    if len(set(shapes.values())) > 1:
        raise ConfigError("shapes differ: " + ", ".join(f"{name} {shape}" for name, shape in shapes.items()))
