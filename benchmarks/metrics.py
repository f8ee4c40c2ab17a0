"""PRQ of real 256^3 views against the mask-stack way: one full mask per segment, one pair at a time, as the public evaluators do.

Run: python benchmarks/metrics.py [FRONT3D_FOLDER]; without real views, made-up rooms. One core; CPU time; medians of ratios.
"""

import tracemalloc
from typing import Any

import numpy as np
import torch
from ingest import find_input
from numpy.typing import NDArray
from pairs import measure

from scenemill.trainers.metrics import STUFF, panoptic_reconstruction_quality, tally_matches
from scenemill.trainers.overlap import Overlaps
from scenemill.trainers.segments import Segments, segments_from_labels, segments_from_panoptic
from scenemill.transforms.geometry import front3d_frustum
from scenemill.transforms.sources import list_samples, open_source, read_sample

Volume = NDArray[Any]


def naive_mask(volume: Volume, name: int, distance: Volume, frustum: Volume) -> Volume:
    surface: Volume = (volume == name) & (np.abs(distance) < 1.0)
    x, y, z = np.nonzero(surface)
    mask = np.zeros_like(surface)
    for dx in range(3):
        for dy in range(3):
            for dz in range(3):
                inside = (x + dx < 256) & (y + dy < 256) & (z + dz < 256)
                mask[x[inside] + dx, y[inside] + dy, z[inside] + dz] = True
    mask &= frustum
    return mask


def naive_overlaps(true: Segments, predicted: Segments, distance: Volume, frustum: Volume) -> Overlaps:
    masks = [[naive_mask(side.index, k + 1, distance, frustum) for k in range(len(side.classes))] for side in (true, predicted)]
    shared = np.zeros((len(masks[0]), len(masks[1])), np.int64)
    for row, first in enumerate(masks[0]):
        for column, second in enumerate(masks[1]):
            if true.classes[row] == predicted.classes[column]:
                shared[row, column] = np.count_nonzero(first & second)
    sizes = [np.array([np.count_nonzero(mask) for mask in side], np.int64) for side in masks]
    return Overlaps(sizes[0], sizes[1], shared)


def split_up(semantic: Volume, instance: Volume, parts: int) -> tuple[Volume, dict[int, int]]:
    """Every class cut into ``parts`` x ``parts`` columns: as many segments as a crowded scene has."""
    panoptic = np.zeros(semantic.shape, np.int32)
    classes: dict[int, int] = {}
    slab = np.arange(256) * parts // 256
    column = slab[:, None, None] * parts + slab[None, None, :]
    for label in np.unique(semantic[semantic > 0]).tolist():
        for number in range(parts * parts):
            name = len(classes) + 1
            place = (semantic == label) & (column == number)
            if place.any():
                panoptic[place], classes[name] = name, label
    return panoptic, classes


def main() -> None:
    torch.set_num_threads(1)
    root = find_input()
    listed, _ = list_samples("front3d", root)
    source = open_source("front3d", root, listed)
    frustum = front3d_frustum(256)
    print("| what | segments | ours ms | mask stack ms | ratio | faster |\n|---|---|---|---|---|---|")
    for view, parts in ((0, 1), (0, 4), (0, 8)):
        sample, _ = read_sample(source, listed[view])
        distance = np.minimum(np.abs(sample["geometry"]), 12)
        panoptic, classes = split_up(sample["semantic_3d"], sample["instance_3d"], parts)
        true = segments_from_panoptic(panoptic, classes)
        predicted = segments_from_panoptic(np.roll(panoptic, 1, 0), classes)
        pair = measure(
            lambda d=distance, t=true, p=predicted: panoptic_reconstruction_quality(t, d, p, d, frustum, "front3d"),  # type: ignore[misc]
            lambda d=distance, t=true, p=predicted: tally_matches(naive_overlaps(t, p, d, frustum), t, p, "reference", 0.25),  # type: ignore[misc]
            1,
            3,
        )
        fast = panoptic_reconstruction_quality(true, distance, predicted, distance, frustum, "front3d")["reference"]
        assert fast == tally_matches(naive_overlaps(true, predicted, distance, frustum), true, predicted, "reference", 0.25)
        counted = f"{len(true.classes)} x {len(predicted.classes)}"
        times = f"{pair.ours_ms:.0f} | {pair.naive_ms:.0f} | {pair.ratio:.3f} | {1 / pair.ratio:.0f}x"
        print(f"| PRQ of one view | {counted} | {times} |", flush=True)
    semantic, instance = sample["semantic_3d"].astype(np.int32), sample["instance_3d"].astype(np.int32)
    tracemalloc.start()
    true = segments_from_labels(semantic, instance, STUFF["front3d"])
    panoptic_reconstruction_quality(true, distance, true, distance, frustum, "front3d")
    peak, volumes = tracemalloc.get_traced_memory()[1], semantic.nbytes + instance.nbytes
    print(f"\nlargest extra memory, labels to counts: {peak / 2**20:.0f} MiB, {peak / volumes:.2f}x of the two label volumes")


if __name__ == "__main__":
    main()
