"""The recipes of the golden metric cases: predictions made from the truth by small, deterministic operations.

Source: the description that comes with the golden numbers.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Recipe = Sequence[Mapping[str, Any]]
Volume = NDArray[Any]


def cook_volume(
    recipe: Recipe, panoptic: Volume, distance: Volume, classes: Mapping[int, int]
) -> tuple[Volume, Volume, dict[int, int]]:
    """Apply 3D operations, left to right."""
    panoptic, distance, held = panoptic.copy(), distance.copy(), dict(classes)
    for step in recipe:
        panoptic, distance = _cook_volume(step, panoptic, distance, held)
    return panoptic, distance, held


def _cook_volume(step: Mapping[str, Any], panoptic: Volume, distance: Volume, classes: dict[int, int]) -> tuple[Volume, Volume]:
    size, kind = panoptic.shape[0], step["op"]
    if kind == "shift":
        return tuple(_shift(array, step["axis"], step["by"], fill) for array, fill in ((panoptic, 0), (distance, 12)))  # type: ignore[return-value]
    if kind == "mirror":
        return np.flip(panoptic, step["axis"]).copy(), np.flip(distance, step["axis"]).copy()
    if kind == "split":
        place = np.argwhere(panoptic == step["id"])
        along = place[:, step["axis"]]
        cut = np.sort(along)[int(np.floor(step["quantile"] * len(along)))]
        new = max(classes) + 1
        panoptic[tuple(place[along >= cut].T)] = new
        classes[new] = classes[step["id"]]
    elif kind == "add_df":
        distance = np.clip(distance + np.float32(step["delta"]), 0, 12).astype(np.float32)
    elif kind == "crop":
        outside = np.ones(size, bool)
        outside[step["lo"] : step["hi"]] = False
        beyond = tuple(outside if axis == step["axis"] else slice(None) for axis in range(3))
        panoptic[beyond], distance[beyond] = 0, 12
    elif kind == "hash_drop":
        x, y, z = np.meshgrid(*[np.arange(size, dtype=np.uint64)] * 3, indexing="ij", sparse=True)
        hashed = ((x * np.uint64(73856093)) ^ (y * np.uint64(19349663)) ^ (z * np.uint64(83492791))) % np.uint64(1 << 32)
        panoptic[hashed % np.uint64(step["mod"]) == step["rem"]] = 0
    elif kind == "renumber_reverse":
        names = {name: 1000 + len(classes) - 1 - rank for rank, name in enumerate(sorted(classes))}
        renumbered = np.zeros_like(panoptic)
        for name, new in names.items():
            renumbered[panoptic == name] = new
        held = {names[name]: label for name, label in classes.items()}
        classes.clear()
        classes.update(held)
        panoptic = renumbered
    elif kind == "add_box":
        new = max(classes, default=0) + 1
        box = tuple(slice(low, high) for low, high in zip(step["lo"], step["hi"], strict=True))
        panoptic[box], distance[box], classes[new] = new, 0, step["class"]
    else:
        _cook_segments(step, panoptic, classes, {name: name for name in classes}, "id")
    return panoptic, distance


def _shift(array: Volume, axis: int, by: int, fill: float) -> Volume:
    moved = np.full_like(array, fill)
    size = array.shape[axis]
    target, source = ([slice(None)] * array.ndim for _ in range(2))
    target[axis], source[axis] = slice(max(by, 0), size + min(by, 0)), slice(max(-by, 0), size - max(by, 0))
    moved[tuple(target)] = array[tuple(source)]
    return moved


def _cook_segments(step: Mapping[str, Any], segments: Volume, classes: dict[int, int], of: Mapping[int, int], name: str) -> None:
    """Operations on whole segments, the same in 2D and 3D; ``of`` turns the recipe's ids into segment ids."""
    kind = step["op"]
    if kind == "drop":
        _remove(segments, classes, of[step[name]])
    elif kind == "drop_class":
        for segment in [segment for segment, label in classes.items() if label == step["class"]]:
            _remove(segments, classes, segment)
    elif kind == "merge":
        segments[segments == of[step["from"]]] = of[step["into"]]
        classes.pop(of[step["from"]])
    elif kind in ("merge_things_by_class", "merge_stuff"):
        for label in range(1, 10) if kind == "merge_things_by_class" else (10, 11, 12):
            first, *others = sorted(segment for segment, held in classes.items() if held == label) or [0]
            for other in others:
                segments[segments == other] = first
                classes.pop(other)
    elif kind == "relabel":
        classes[of[step[name]]] = step["class"]
    elif kind == "swap_classes":
        swap = {step["a"]: step["b"], step["b"]: step["a"]}
        classes.update({segment: swap.get(label, label) for segment, label in classes.items()})
    elif kind == "empty":
        segments[...] = 0
        classes.clear()
    elif kind != "identity":
        raise ValueError(f"operation {kind!r} is not known")


def _remove(segments: Volume, classes: dict[int, int], segment: int) -> None:
    segments[segments == segment] = 0
    classes.pop(segment)


def cook_image(
    recipe: Recipe, segments: Volume, classes: Mapping[int, int], of: Mapping[int, int], semantic: Volume, depth: Volume
) -> tuple[Volume, dict[int, int], Volume, Volume]:
    """Apply 2D operations, left to right.

    Returns:
        Segments, their classes, the true classes (void boxes cut in), and the predicted depth.
    """
    segments, held, semantic, depth = segments.copy(), dict(classes), semantic.copy(), depth.astype(np.float32)
    for step in recipe:
        kind = step["op"]
        if kind == "shift":
            segments = _shift(_shift(segments, 1, step["dx"], 0), 0, step["dy"], 0)
        elif kind == "split":
            place = np.argwhere(segments == of[step["inst"]])
            along = place[:, "vu".index(step["axis"])]
            cut = np.sort(along)[int(np.floor(step["quantile"] * len(along)))]
            new = max(held) + 1
            segments[tuple(place[along >= cut].T)] = new
            held[new] = held[of[step["inst"]]]
        elif kind in ("void_box", "gt_void_box", "depth_scale"):
            left, top, right, bottom = step.get("box") or (step["u0"], step["v0"], step["u1"], step["v1"])
            box = (slice(top, bottom), slice(left, right))
            if kind == "depth_scale":
                depth[box] *= np.float32(step["factor"])
            else:
                (segments if kind == "void_box" else semantic)[box] = 0
        elif kind == "hash_drop":
            v, u = np.meshgrid(*[np.arange(size, dtype=np.uint64) for size in segments.shape], indexing="ij", sparse=True)
            hashed = ((u * np.uint64(73856093)) ^ (v * np.uint64(19349663))) % np.uint64(1 << 32)
            segments[hashed % np.uint64(step["mod"]) == step["rem"]] = 0
        else:
            _cook_segments(step, segments, held, of, "inst")
    return segments, held, semantic, depth
