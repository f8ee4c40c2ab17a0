"""The metrics against a plain, slow implementation, and what must not change them."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from scenemill.schemas.errors import ConfigError
from scenemill.trainers.metrics import STUFF, Rule, Tally, merge, panoptic_reconstruction_quality, scaled_iou, tally_matches
from scenemill.trainers.overlap import surface_overlaps
from scenemill.trainers.panoptic import depth_errors, panoptic_quality, pq_averages, relative_depth_error
from scenemill.trainers.segments import Segments, segments_from_labels, segments_from_panoptic
from scenemill.trainers.selfcheck import run_selfcheck

GRID = 12
ISO_FACTOR = {"front3d": (1.0, 1), "matterport": (2.0, 2)}

Scene = tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any], dict[int, int], NDArray[Any], NDArray[Any]]


def made(seed: int, segments: int) -> Scene:
    """Random boxes: true classes, instances and distances; predicted ids, classes and distances; a frustum."""
    rng = np.random.default_rng(seed)
    semantic, instance, panoptic = (
        np.zeros((GRID,) * 3, np.uint8),
        np.zeros((GRID,) * 3, np.uint16),
        np.zeros((GRID,) * 3, np.int32),
    )
    classes = {}
    for name in range(1, segments + 1):
        low = rng.integers(0, GRID - 2, 3)
        high = low + rng.integers(1, 5, 3)
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        label = int(rng.integers(1, 13))
        semantic[box], instance[box] = label, name if label < 10 else 0
        moved = tuple(slice(max(0, a + d), b + d) for a, b, d in zip(low, high, rng.integers(-1, 2, 3), strict=True))
        panoptic[moved] = 10 * name
        classes[10 * name] = label if rng.random() < 0.8 else int(rng.integers(1, 13))
    distance, told = (rng.choice([0.5, 1.0, 1.5, 3.0], (GRID,) * 3, p=[0.7, 0.1, 0.1, 0.1]).astype(np.float32) for _ in range(2))
    return semantic, instance, distance, panoptic, classes, told, rng.random((GRID,) * 3) < 0.9


def slow_mask(segment: NDArray[Any], distance: NDArray[Any], frustum: NDArray[Any], iso: float, factor: int) -> NDArray[Any]:
    surface = segment & (np.abs(distance) < iso)
    if factor == 2:
        padded = np.pad(surface, 1)
        half = GRID // 2
        surface = np.array(
            [
                [[padded[2 * x : 2 * x + 3, 2 * y : 2 * y + 3, 2 * z : 2 * z + 3].any() for z in range(half)] for y in range(half)]
                for x in range(half)
            ]
        )
        frustum = frustum[::2, ::2, ::2]
    thick = np.zeros_like(surface)
    for x, y, z in np.argwhere(surface):
        thick[x : x + 3, y : y + 3, z : z + 3] = True
    kept: NDArray[Any] = thick & frustum
    return kept


def slow_counts(scene: Scene, source: str) -> dict[int, list[float]]:
    """One mask pair at a time, first come first served, as the public evaluators do."""
    semantic, instance, distance, panoptic, classes, told, frustum = scene
    iso, factor = ISO_FACTOR[source]
    stuff = STUFF[source]
    truth: list[tuple[int, NDArray[Any]]] = []
    for name in np.unique(instance[instance > 0]):
        labels = semantic[instance == name]
        labels = labels[(labels > 0) & ~np.isin(labels, stuff)]
        if labels.size:
            inside = (instance == name) & ~np.isin(semantic, stuff)
            truth.append((int(np.bincount(labels).argmax()), slow_mask(inside, distance, frustum, iso, factor)))
    truth += [(label, slow_mask(semantic == label, distance, frustum, iso, factor)) for label in stuff if (semantic == label).any()]
    told_masks = [(label, slow_mask(panoptic == name, told, frustum, iso, factor)) for name, label in classes.items()]
    counts: dict[int, list[float]] = {}
    taken: set[int] = set()
    for label, mask in truth:
        row = counts.setdefault(label, [0.0, 0, 0, 0])
        for number, (other, candidate) in enumerate(told_masks):
            union = np.count_nonzero(mask | candidate)
            iou = np.count_nonzero(mask & candidate) / union if union else 0.0
            if other == label and number not in taken and iou > 0.25:
                taken.add(number)
                row[0], row[1] = row[0] + iou, row[1] + 1
                break
        else:
            row[3] += 1
    for number, (label, _) in enumerate(told_masks):
        if number not in taken:
            counts.setdefault(label, [0.0, 0, 0, 0])[2] += 1
    return counts


def score(scene: Scene, source: str) -> dict[Rule, Tally]:
    semantic, instance, distance, panoptic, classes, told, frustum = scene
    true = segments_from_labels(semantic, instance, STUFF[source])
    return panoptic_reconstruction_quality(true, distance, segments_from_panoptic(panoptic, classes), told, frustum, source)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), segments=st.integers(0, 12), source=st.sampled_from(["front3d", "matterport"]))
def test_equal_to_one_mask_pair_at_a_time(seed: int, segments: int, source: str) -> None:
    scene = made(seed, segments)
    tally = score(scene, source)["reference"]
    expected = slow_counts(scene, source)
    assert set(tally.classes) == set(expected)
    for label, (iou, tp, fp, fn) in expected.items():
        counts = tally[label]
        assert (counts.tp, counts.fp, counts.fn) == (tp, fp, fn)
        assert counts.iou_sum == pytest.approx(iou, abs=1e-9)
        assert counts.quality == pytest.approx(counts.segmentation * counts.recognition, abs=1e-12)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), source=st.sampled_from(["front3d", "matterport"]))
def test_tensors_and_arrays_give_the_same_numbers(seed: int, source: str) -> None:
    scene = made(seed, 9)
    tensors = tuple(
        torch.from_numpy(part.astype(np.int32) if part.dtype.kind == "u" else part) if isinstance(part, np.ndarray) else part
        for part in scene
    )
    assert score(tensors, source) == score(scene, source)  # type: ignore[arg-type]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_best_rule_knows_no_order_and_no_names(seed: int) -> None:
    semantic, instance, distance, panoptic, classes, told, frustum = made(seed, 10)
    turned = {name: classes[name] for name in reversed(classes)}
    renamed = {name + 7: label for name, label in classes.items()}
    first = score((semantic, instance, distance, panoptic, classes, told, frustum), "front3d")["best"]
    assert score((semantic, instance, distance, panoptic, turned, told, frustum), "front3d")["best"] == first
    shifted = np.where(panoptic > 0, panoptic + 7, 0)
    assert score((semantic, instance, distance, shifted, renamed, told, frustum), "front3d")["best"] == first


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 6))
def test_any_split_over_workers_gives_the_same_totals_to_the_bit(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    tallies = []
    for _ in range(12):
        tally = Tally()
        for label in range(1, 13):
            shared, union = sorted(rng.integers(1, 10**6, 2).tolist())
            tally.add(label, tp=1, iou=scaled_iou(shared, union), fp=int(rng.integers(3)))
        tallies.append(tally)
    whole = merge(tallies)
    order = rng.permutation(12)
    parts = [merge(tallies[i] for i in order[worker::count]) for worker in range(count)]
    assert merge(parts) == whole
    summed = torch.stack([torch.from_numpy(part.array) for part in parts]).sum(dim=0)
    assert np.array_equal(summed.numpy(), whole.array)


def test_perfect_is_one_and_empty_is_zero() -> None:
    semantic, instance, distance, *_ = made(5, 10)
    distance[...] = 0
    true = segments_from_labels(semantic, instance, STUFF["front3d"])
    inside = np.ones((GRID,) * 3, np.bool_)
    for rule, tally in panoptic_reconstruction_quality(true, distance, true, distance, inside, "front3d").items():
        assert tally.average().quality == 1.0, rule
    nothing = segments_from_panoptic(np.zeros_like(instance), {})
    for tally in panoptic_reconstruction_quality(true, distance, nothing, distance, inside, "front3d").values():
        assert (tally.average().quality, tally.average().classes) == (0.0, len(set(true.classes)))
    void = segments_from_labels(np.zeros_like(semantic), np.zeros_like(instance), STUFF["front3d"])
    for tally in panoptic_reconstruction_quality(void, distance, true, distance, inside, "front3d").values():
        assert tally.average().quality is None


def test_more_than_sixty_three_segments_are_counted() -> None:
    volume = np.zeros((GRID,) * 3, np.int32)
    place = np.argwhere(np.ones((5, 5, 5), bool)) * 2
    for name, (x, y, z) in enumerate(place, 1):
        volume[x, y, z] = name
    segments = segments_from_panoptic(volume, {name: 1 + name % 9 for name in range(1, 126)})
    near, inside = np.zeros((GRID,) * 3, np.float32), np.ones((GRID,) * 3, np.bool_)
    overlaps = surface_overlaps(segments, near, segments, near, inside, 1.0, 1)
    masks = [slow_mask(volume == name, near, inside, 1.0, 1) for name in range(1, 126)]
    assert overlaps.true_sizes.tolist() == [int(mask.sum()) for mask in masks]
    for a, b in ((0, 0), (0, 1), (3, 100), (62, 63), (64, 65), (124, 99)):
        assert overlaps.shared[a, b] == np.count_nonzero(masks[a] & masks[b])
    assert tally_matches(overlaps, segments, segments, "best", 0.25).average().quality == 1.0


def test_voxels_without_a_class_belong_to_their_instance_and_stuff_to_no_instance() -> None:
    semantic, instance = np.zeros((2, 2, 2), np.uint8), np.zeros((2, 2, 2), np.uint16)
    instance[0] = 3
    semantic[0, 0] = 4
    semantic[0, 1, 0] = 10
    instance[1, 1, 1] = 9  # never labelled: no segment
    for labels, ids in ((semantic, instance), (torch.from_numpy(semantic), torch.from_numpy(instance.astype(np.int32)))):
        segments = segments_from_labels(labels, ids, (10, 11))
        assert (segments.classes, segments.names) == ((4, 10), (3, -10))
        assert np.asarray(segments.index).tolist() == [[[1, 1], [2, 1]], [[0, 0], [0, 0]]]


def test_ids_and_shapes_that_make_no_sense_are_clear_errors() -> None:
    volume = np.zeros((4, 4, 4), np.int32)
    with pytest.raises(ConfigError, match="ids are above 0"):
        segments_from_panoptic(volume, {0: 3})
    with pytest.raises(ConfigError, match="shapes differ"):
        segments_from_labels(volume, volume[:2], (10, 11))
    empty = Segments(volume.astype(np.uint8), (), ())
    with pytest.raises(ConfigError, match="shapes differ"):
        surface_overlaps(empty, volume, empty, volume, np.ones((4, 4, 2), bool), 1.0, 1)
    with pytest.raises(ConfigError, match="rule 'greedy'"):
        tally_matches(surface_overlaps(empty, volume, empty, volume, volume == 0, 1.0, 1), empty, empty, "greedy", 0.25)  # type: ignore[arg-type]


@pytest.mark.parametrize("stuff", [10, 11, 12])
@pytest.mark.parametrize("source", ["front3d", "matterport"])
def test_stuff_is_merged_by_coco_and_not_by_the_reference(source: str, stuff: int) -> None:
    semantic = np.full((6, 8), stuff, np.uint8)
    instance = np.repeat(np.arange(1, 5), 2)[None].repeat(6, axis=0)
    told = np.ones((6, 8), np.int32)
    reference = panoptic_quality(semantic, instance, told, {1: stuff}, source, "reference")
    coco = panoptic_quality(semantic, instance, told, {1: stuff}, source, "coco")
    assert (reference[stuff].tp, reference[stuff].fn, reference[stuff].fp) == (0, 4, 1)
    assert (coco[stuff].tp, coco[stuff].fn, coco[stuff].fp) == (1, 0, 0)
    assert pq_averages(coco, "coco")["all"].quality == 1.0
    assert pq_averages(coco, "reference")["all"].quality == pytest.approx(1 / 12)


def test_void_pixels_cost_nothing() -> None:
    semantic = np.full((6, 8), 3, np.uint8)
    semantic[:, :3] = 0
    instance = np.where(semantic > 0, 5, 0)
    told = np.ones((6, 8), np.int32)
    for rule in ("reference", "coco"):
        assert panoptic_quality(semantic, instance, told, {1: 3}, "front3d", rule)[3].quality == 1.0
    on_void = np.where(semantic == 0, 2, 1)
    assert panoptic_quality(semantic, instance, on_void, {1: 3, 2: 4}, "front3d", "reference")[4].fp == 0


def test_depth_errors_are_those_of_the_formulas() -> None:
    true, told = np.array([[1.0, 2.0, 0.0, 7.0]]), np.array([[1.5, 2.0, 3.0, 1.0]])
    errors = depth_errors(true, told)
    assert errors == pytest.approx({"pixels": 2, "abs_rel": 0.25, "rmse_m": (0.25 / 2) ** 0.5, "delta_1": 0.5})
    assert depth_errors(np.zeros((2, 2)), told[:, :2].repeat(2, 0)) is None
    assert relative_depth_error(true, told).tolist() == [[0.5, 0.0, 0.0, 6 / 7]]
    unknown = np.array([[np.nan, 2.0, 0.0, np.nan]])
    assert relative_depth_error(true, unknown).tolist() == [[np.inf, 0.0, 0.0, np.inf]]
    assert relative_depth_error(unknown, true).tolist() == [[0.0, 0.0, 0.0, 0.0]]


def test_selfcheck_holds_and_would_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(run_selfcheck()) > 12 and all(case.holds for case in run_selfcheck())
    from scenemill.trainers import overlap

    monkeypatch.setattr(overlap, "_thicken", lambda sets, axis: sets)
    assert not all(case.holds for case in run_selfcheck())


@pytest.mark.parametrize("label", [-1, 256])
def test_a_class_id_that_is_none_is_refused_not_wrapped(label: int) -> None:
    with pytest.raises(ConfigError, match=f"class id {label}; class ids are 0 to 255"):
        Tally().add(label, tp=1)
