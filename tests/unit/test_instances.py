"""The 2D targets of an image: by hand, against plain loops over masks, and against the golden numbers of the real views."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import OpenEXR
import pytest
from numpy.typing import NDArray
from PIL import Image

from scenemill.schemas.errors import ConfigError
from scenemill.schemas.labels import BUILT_IN, LabelMap
from scenemill.trainers.instances import (
    STUFF_ID,
    Instances,
    depth_units,
    evaluation_semantic,
    instances_of,
    learned_classes,
    stuff_of,
)

VOID = 255


def found_in(
    semantic: NDArray[Any],
    instance: NDArray[Any],
    depth: NDArray[np.float32],
    min_pixels: int = 0,
    stuff: tuple[int, ...] = (10, 11),
    things: int = 9,
) -> Instances:
    return instances_of(
        semantic, instance, depth, min_pixels=min_pixels, stuff_classes=stuff, thing_classes=range(1, things + 1), ignore_label=VOID
    )


def line(*pixels: tuple[int, int]) -> tuple[NDArray[np.uint8], NDArray[np.int32], NDArray[np.float32]]:
    """An image of one row, of (class, instance) pixels, one metre away."""
    pairs = np.array(pixels).reshape(-1, 2)
    return pairs[None, :, 0].astype(np.uint8), pairs[None, :, 1].astype(np.int32), np.ones((1, len(pairs)), np.float32)


def names_and_classes(found: Instances) -> list[tuple[int, int]]:
    return list(zip(found.ids.tolist(), found.classes.tolist(), strict=True))


def test_things_come_by_id_then_stuff_by_class() -> None:
    found = found_in(*line((11, 3), (2, 70), (1, 9), (10, 4), (5, 341), (11, 8)))
    assert names_and_classes(found) == [(9, 1), (70, 2), (341, 5), (STUFF_ID, 10), (STUFF_ID, 11)]
    assert found.masks[:, 0].astype(int).tolist() == [
        [0, 0, 1, 0, 0, 0],
        [0, 1, 0, 0, 0, 0],
        [0, 0, 0, 0, 1, 0],
        [0, 0, 0, 1, 0, 0],
        [1, 0, 0, 0, 0, 1],
    ]


def test_an_instance_needs_more_pixels_than_the_least() -> None:
    image = line((1, 1), (1, 1), (2, 2), (2, 2), (2, 2), (10, 3))
    assert names_and_classes(found_in(*image, min_pixels=2)) == [(2, 2), (STUFF_ID, 10)]
    assert names_and_classes(found_in(*image, min_pixels=1)) == [(1, 1), (2, 2), (STUFF_ID, 10)]


@pytest.mark.parametrize(
    ("votes", "expected"),
    [
        ((4, 3, 3), [(7, 3)]),
        ((4, 3), [(7, 3)]),  # a tie: the smallest
        ((9, 10), [(7, 9), (STUFF_ID, 10)]),
        ((9, 10, 10), [(STUFF_ID, 10)]),
        ((9, VOID), [(7, 9)]),
        ((9, VOID, VOID), []),
        ((12, 12), []),  # neither a thing nor, here, stuff
        ((0, 0, 3), []),
    ],
)
def test_the_most_frequent_class_decides_and_every_pixel_votes(votes: tuple[int, ...], expected: list[tuple[int, int]]) -> None:
    found = found_in(*line(*((label, 7) for label in votes)))
    assert names_and_classes(found) == expected
    if expected and expected[0][0] == 7:
        assert found.masks[0].all()  # its mask is the instance, whatever its pixels are labelled


def test_ids_of_0_and_below_are_no_instance() -> None:
    assert names_and_classes(found_in(*line((3, 0), (3, -1), (3, -1), (3, 5)))) == [(5, 3)]
    found = found_in(*line((VOID, -1), (VOID, 0)))
    assert found.ids.shape == found.classes.shape == found.mean_depth.shape == (0,) and found.masks.shape == (0, 1, 2)


def test_settings_say_what_a_thing_is_and_what_stuff_is() -> None:
    image = line((9, 1), (10, 2), (12, 3), (8, 4))
    assert names_and_classes(found_in(*image, things=8)) == [(4, 8), (STUFF_ID, 10)]
    assert names_and_classes(found_in(*image, stuff=(12, 10))) == [(1, 9), (4, 8), (STUFF_ID, 10), (STUFF_ID, 12)]
    assert names_and_classes(found_in(*image, stuff=(9,))) == [(4, 8), (STUFF_ID, 9)]
    assert names_and_classes(found_in(*image, stuff=(), things=10)) == [(1, 9), (2, 10), (4, 8)]
    assert found_in(*line((VOID, 1)), stuff=(VOID,)).ids.size == 0
    assert [stuff_of(source) for source in ("front3d", "synthetic_hospital", "matterport")] == [(10, 11), (10, 11), (10, 11, 12)]


def test_mean_depth_leaves_out_unknown_pixels() -> None:
    semantic, instance, depth = line((1, 1), (1, 1), (1, 1), (2, 2), (10, 2), (10, 0))
    depth[0] = 1.0, 0.0, 4.0, 0.0, 0.0, 0.5
    found = found_in(semantic, instance, depth)
    assert names_and_classes(found) == [(1, 1), (2, 2), (STUFF_ID, 10)]
    assert found.mean_depth.tolist() == [2.5, 0.0, 0.5]


def test_arrays_are_of_the_promised_types() -> None:
    semantic, instance, depth = line((1, 1), (10, 2))
    for ids in (instance, instance.astype(np.uint16), instance.astype(np.int64)):
        found = found_in(semantic, ids, depth.astype(np.float64))
        arrays = (found.ids, found.classes, found.masks, found.mean_depth)
        assert [array.dtype for array in arrays] == [np.int64, np.int64, np.bool_, np.float32]


def test_what_does_not_fit_is_refused() -> None:
    semantic, instance, depth = line((1, 1), (10, 2))
    with pytest.raises(ConfigError, match="shapes differ"):
        found_in(semantic, instance[:, :1], depth)
    with pytest.raises(ConfigError, match="semantic is int32: allowed is uint8"):
        found_in(semantic.astype(np.int32), instance, depth)


def by_loops(
    semantic: NDArray[Any], instance: NDArray[Any], depth: NDArray[Any], min_pixels: int
) -> list[tuple[int, int, Any, float]]:
    """The rules as they are written, one mask after the other."""
    masks = []
    for name in sorted(set(instance.ravel().tolist())):
        mask = instance == name
        labels = semantic[mask].tolist()
        most = min(set(labels), key=lambda label: (-labels.count(label), label))
        if name > 0 and len(labels) > min_pixels and 1 <= most <= 9:
            masks.append((name, most, mask))
    masks += [(STUFF_ID, label, semantic == label) for label in (10, 11) if (semantic == label).any()]
    return [(*kept, depth[kept[2]].sum(dtype=np.float64) / max(1, (depth[kept[2]] > 0).sum())) for kept in masks]


@pytest.mark.parametrize("seed", range(20))
def test_random_images_give_what_plain_loops_give(seed: int) -> None:
    random = np.random.default_rng(seed)
    shape = (int(random.integers(1, 30)), int(random.integers(1, 30)))
    block = int(random.integers(1, 6))
    coarse = [random.integers(low, high, shape) for low, high in ((0, 14), (-1, 9))]
    classes, instance = (np.kron(values, np.ones((block, block), np.int64))[: shape[0], : shape[1]] for values in coarse)
    semantic = np.where(random.random(shape) < 0.1, VOID, classes).astype(np.uint8)
    depth = np.where(random.random(shape) < 0.3, 0, random.uniform(0.4, 6, shape)).astype(np.float32)
    found, expected = found_in(semantic, instance, depth, min_pixels=block), by_loops(semantic, instance, depth, block)
    assert names_and_classes(found) == [(name, label) for name, label, _, _ in expected]
    assert found.mean_depth == pytest.approx([mean for *_, mean in expected], rel=1e-6)
    for mask, (_, _, known, _) in zip(found.masks, expected, strict=True):
        np.testing.assert_array_equal(mask, known)


def test_learned_classes_take_the_place_of_the_stored_ones() -> None:
    labels = LabelMap(learned=(0, 2, 1, 0, 4, 5, 5, 7, 8, 9, 10, 10, 12))
    stored = np.array([[0, 1, 2, 3], [5, 6, 11, 200]], np.uint8)
    found = learned_classes(stored, labels)
    assert found.tolist() == [[0, 2, 1, 0], [5, 5, 10, 200]] and found.dtype == np.uint8
    assert learned_classes(stored, BUILT_IN) is stored


def test_void_is_13_when_evaluating() -> None:
    semantic = np.arange(13, dtype=np.uint8).reshape(1, 13)
    assert evaluation_semantic(semantic).tolist() == [[13, *range(1, 13)]] and semantic[0, 0] == 0


def test_depth_is_cut_off_to_whole_units() -> None:
    units = depth_units(np.array([[0, 1 / 256, 0.99 / 256, 6.0, 5.9999]], np.float32))
    assert units.tolist() == [[0, 1, 0, 1536, 1535]] and units.dtype == np.int32


def raw_view(data: Path, view: dict[str, str]) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Segmap and depth of a real view, by the plainest means."""
    root, image = data / "data" / view["dataset"], view["image"]
    folder = root / "data" / view["scene"]
    if view["dataset"] == "front3d":
        depth = OpenEXR.File(str(folder / f"depth_{image}.exr")).channels()["Z"].pixels
        return np.load(folder / f"segmap_{image}.mapped.npz")["data"], depth
    name, angle, rot = image.split("_")
    metres = (np.array(Image.open(root / "depth_gen" / view["scene"] / f"{name}_d{angle}_{rot}.png")) / 4000).astype(np.float32)
    segmap = np.load(folder / f"{name}_segmap{angle}_{rot}.mapped.npz")["data"]
    return segmap, np.where((metres < 0.4) | (metres > 6.0), np.float32(0), metres)


@pytest.mark.real
def test_real_views_give_the_golden_numbers(real_data: Path) -> None:
    views = json.loads((real_data / "golden" / "loader" / "views.json").read_bytes())["views"]
    assert len(views) == 18
    for known in views:
        segmap, depth = raw_view(real_data, known["view"])
        semantic, instance = segmap[..., 0].astype(np.uint8), segmap[..., 1].astype(np.uint16)
        for ids in (instance, instance.astype(np.int32)):
            found = found_in(np.where(semantic == 0, np.uint8(VOID), semantic), ids, depth, 200, stuff_of(known["view"]["dataset"]))
            expected = [(STUFF_ID if mask["instance"] is None else mask["instance"], mask["class"]) for mask in known["masks2d"]]
            assert names_and_classes(found) == expected
            assert found.masks.sum(axis=(1, 2)).tolist() == [mask["pixels"] for mask in known["masks2d"]]
            assert found.mean_depth == pytest.approx([mask["mean_depth"] for mask in known["masks2d"]], rel=1e-6)
        labels, counts = np.unique(evaluation_semantic(semantic), return_counts=True)
        assert dict(zip(map(str, labels), counts.tolist(), strict=True)) == known["raw_sem_counts"]
        assert int(depth_units(depth).sum(dtype=np.int64)) == known["raw_depth_int_sum"]
