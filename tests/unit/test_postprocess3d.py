"""Post-processing of volumes: each rule by a hand-made case, all of them against plain loops over every voxel of the grid."""

import math
from dataclasses import asdict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from scenemill.trainers.nvpanoptix3d.completion import CompletionOutput
from scenemill.trainers.nvpanoptix3d.postprocess import Rules, Segment
from scenemill.trainers.nvpanoptix3d.postprocess3d import PanopticVolume, panoptic_volume, postprocess_volumes
from scenemill.trainers.nvpanoptix3d.sparse import SparseTensor, sparse_tensor

RULES = Rules()
NONE = 13
WALL, FLOOR = 10, 11
FAR = 3.0


def logits_of(*said: tuple[int, float]) -> Tensor:
    """(Q, 14): what a softmax turns into these labels and scores."""
    rows = []
    for label, score in said:
        row = torch.full((14,), math.log((1 - score) / 13))
        row[label] = math.log(score)
        rows.append(row)
    return torch.stack(rows)


def line_of(said: list[tuple[int, float]], masks: list[list[float]], distance: list[float], rules: Rules = RULES) -> PanopticVolume:
    """The volume of rows (0, 0, z) with these mask values, a list for each query, and these distances; it is wider than the rows."""
    count, size = len(distance), len(distance) + 2
    coords = torch.zeros(count, 4, dtype=torch.int64)
    coords[:, 3] = torch.arange(count)
    volume = torch.full((size, size, size), FAR)
    volume[0, 0, :count] = torch.tensor(distance)
    logits = torch.tensor(masks).T.logit() if count else torch.zeros(0, len(said))
    return panoptic_volume(logits_of(*said), sparse_tensor(coords, logits), volume, rules)


def ids(found: PanopticVolume) -> list[int]:
    """Of the rows; everywhere else there is nothing."""
    count = found.panoptic.shape[-1] - 2
    rest = found.panoptic.clone()
    rest[0, 0, :count] = 0
    assert not rest.any()
    return [int(value) for value in found.panoptic[0, 0, :count]]


def test_segments_are_numbered_in_the_order_of_queries() -> None:
    found = line_of([(3, 0.9), (WALL, 0.8)], [[0.1, 0.9, 0.1], [0.9, 0.2, 0.9]], [FAR] * 3)
    assert ids(found) == [2, 1, 2]
    assert [asdict(segment) for segment in found.segments] == [
        {"id": 1, "isthing": True, "category_id": 3},
        {"id": 2, "isthing": False, "category_id": WALL},
    ]
    assert found.panoptic.dtype == torch.int32 and found.distance.dtype == torch.float32
    assert found.semantic.dtype == torch.int32 and found.semantic[0, 0].tolist() == [WALL, 3, WALL, 0, 0]
    assert torch.equal(found.semantic != 0, found.panoptic != 0)


@pytest.mark.parametrize(
    ("said", "kept"), [((3, 0.41), True), ((3, 0.39), False), ((NONE, 0.9), False), ((0, 0.9), False), ((12, 0.9), True)]
)
def test_a_query_is_kept_for_its_score_unless_it_says_void_or_no_object(said: tuple[int, float], kept: bool) -> None:
    assert bool(line_of([said], [[0.9, 0.9]], [FAR, FAR]).segments) == kept


def test_the_score_must_exceed_the_threshold() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, 0.0]])  # the score of class 1 is one half, exactly
    masks = sparse_tensor(torch.zeros(1, 4, dtype=torch.int64), torch.ones(1, 1))
    at, below = Rules(object_mask_threshold=0.5), Rules(object_mask_threshold=0.49)
    assert panoptic_volume(logits, masks, torch.ones(1, 1, 1), at).segments == ()
    assert panoptic_volume(logits, masks, torch.ones(1, 1, 1), below).segments == (Segment(1, True, 1),)


def test_a_voxel_is_of_the_query_with_the_largest_score_times_mask() -> None:
    found = line_of([(3, 0.5), (4, 0.9)], [[0.9, 0.9], [0.6, 0.1]], [FAR, FAR])
    assert ids(found) == [2, 1]  # 0.45 to 0.54, and 0.45 to 0.09


def test_ties_are_the_first_query_s() -> None:
    found = line_of([(3, 0.9), (4, 0.9)], [[0.9, 0.9], [0.9, 0.9]], [FAR, FAR])
    assert ids(found) == [1, 1] and found.segments == (Segment(1, True, 3),)


def test_queries_that_are_not_kept_own_nothing() -> None:
    found = line_of([(NONE, 0.9), (0, 0.9), (5, 0.3), (4, 0.5)], [[0.99], [0.99], [0.99], [0.6]], [FAR])
    assert ids(found) == [1] and found.segments == (Segment(1, True, 4),)


@pytest.mark.parametrize(("logit", "owned"), [(0.0, True), (-1e-3, False)])
def test_a_voxel_is_in_a_mask_from_one_half(logit: float, owned: bool) -> None:
    masks = sparse_tensor(torch.zeros(1, 4, dtype=torch.int64), torch.tensor([[logit]]))
    found = panoptic_volume(logits_of((3, 0.9)), masks, torch.full((1, 1, 1), FAR), RULES)
    assert int(found.panoptic.sum()) == int(owned) == len(found.segments)


def test_a_query_needs_a_voxel_of_its_mask_but_no_share_of_it() -> None:
    """The thing owns one of its mask's four voxels; the second wall none of its mask, which is another's."""
    masks = [[0.9, 0.9, 0.9, 0.9, 0.1], [0.1, 0.9, 0.9, 0.9, 0.1], [0.1, 0.6, 0.6, 0.6, 0.3]]
    found = line_of([(3, 0.5), (4, 0.9), (WALL, 0.9)], masks, [FAR] * 5, Rules(overlap_threshold=0.9))
    assert ids(found) == [1, 2, 2, 2, 0]
    assert [segment.category_id for segment in found.segments] == [3, 4]


def test_queries_of_one_stuff_class_are_one_segment_and_things_never_are() -> None:
    masks = [[0.9 if voxel == query else 0.1 for voxel in range(5)] for query in range(5)]
    found = line_of([(WALL, 0.9), (3, 0.9), (WALL, 0.8), (3, 0.8), (FLOOR, 0.9)], masks, [FAR] * 5)
    assert ids(found) == [1, 2, 1, 3, 4]
    assert [(segment.category_id, segment.isthing) for segment in found.segments] == [
        (WALL, False),
        (3, True),
        (3, True),
        (FLOOR, False),
    ]


def test_what_is_a_thing_is_a_matter_of_the_class() -> None:
    masks = [[0.9, 0.1], [0.1, 0.9]]
    assert ids(line_of([(9, 0.9), (9, 0.9)], masks, [FAR, FAR])) == [1, 2]
    assert ids(line_of([(9, 0.9), (9, 0.9)], masks, [FAR, FAR], Rules(num_thing_classes=8))) == [1, 1]


@pytest.mark.parametrize(("distance", "filled"), [(0.0, True), (1.5, True), (1.51, False), (FAR, False)])
def test_a_voxel_of_no_mask_near_a_surface_goes_to_its_owner(distance: float, filled: bool) -> None:
    found = line_of([(3, 0.9), (WALL, 0.9)], [[0.9, 0.1, 0.2], [0.1, 0.9, 0.4]], [FAR, FAR, distance])
    assert ids(found) == [1, 2, 2 if filled else 0]


def test_a_voxel_near_a_surface_stays_void_if_its_owner_has_no_segment() -> None:
    masks = [[0.9, 0.1], [0.2, 0.4]]  # the wall owns the second voxel, and has no mask at all
    found = line_of([(3, 0.9), (WALL, 0.9)], masks, [0.0, 0.0])
    assert ids(found) == [1, 0] and found.segments == (Segment(1, True, 3),)


def test_a_voxel_in_a_mask_keeps_its_segment_near_a_surface() -> None:
    assert ids(line_of([(3, 0.5), (4, 0.9)], [[0.9, 0.1], [0.3, 0.9]], [0.0, 0.0])) == [1, 2]


def test_where_all_masks_are_0_the_first_query_owns_a_voxel() -> None:
    """A mask far below 0 underflows; and a voxel with a distance but no mask has none either."""
    masks = sparse_tensor(torch.tensor([[0, 0, 0, 0], [0, 0, 0, 1]]), torch.tensor([[9.0, -9.0], [-200.0, -200.0]]))
    distance = torch.tensor([[[1.0, 1.0, 1.0, FAR]]])
    said = [(3, 0.5), (4, 0.9)]
    found = panoptic_volume(logits_of(*said), masks, distance, RULES)
    assert found.panoptic.tolist() == [[[1, 1, 1, 0]]]
    other = sparse_tensor(masks.coords, masks.features.flip(1))  # now the first has no segment
    assert panoptic_volume(logits_of(*said), other, distance, RULES).panoptic.tolist() == [[[1, 0, 0, 0]]]


def test_without_a_kept_query_or_without_rows_there_is_nothing() -> None:
    nothing = line_of([(NONE, 0.9), (0, 0.9), (3, 0.3)], [[0.9, 0.9]] * 3, [0.0, 1.0])
    assert nothing.segments == () and ids(nothing) == [0, 0] and nothing.panoptic.dtype == torch.int32
    assert nothing.distance[0, 0].tolist() == [0, 1, FAR, FAR] and not nothing.semantic.any()
    empty = sparse_tensor(torch.zeros(0, 4, dtype=torch.int64), torch.zeros(0, 1))
    found = panoptic_volume(logits_of((3, 0.9)), empty, torch.zeros(2, 2, 2), RULES)
    assert found.segments == () and not found.panoptic.any() and found.panoptic.dtype == torch.int32


def by_loops(
    logits: Tensor, masks: SparseTensor, distances: SparseTensor, sample: int, size: int, rules: Rules, truncation: float
) -> tuple[Tensor, list[Segment], Tensor]:
    """The steps of the definition on dense volumes, one voxel and one query after the other."""
    places = [(x, y, z) for x in range(size) for y in range(size) for z in range(size)]
    distance, sigmoid = torch.full((size,) * 3, truncation), torch.zeros(len(logits), size, size, size)
    rows = 0
    for (of, *at), (value,) in zip(distances.coords.tolist(), distances.features.tolist(), strict=True):
        if of == sample and tuple(at) in places:
            distance[tuple(at)] = value
    for (of, *at), row in zip(masks.coords.tolist(), masks.features.sigmoid(), strict=True):
        if of == sample and tuple(at) in places:
            sigmoid[(slice(None), *at)] = row
            rows += 1
    probability = logits.softmax(dim=1)
    label, score = [int(row.argmax()) for row in probability], [row.max() for row in probability]
    kept = [q for q in range(len(logits)) if label[q] not in {0, NONE} and score[q] > rules.object_mask_threshold]
    panoptic, segments, opened, named = torch.zeros((size,) * 3, dtype=torch.int32), list[Segment](), dict[int, int](), {}
    if not kept or not rows:
        return panoptic, segments, distance
    owner = {at: max(kept, key=lambda q: (float(score[q] * sigmoid[(q, *at)]), -q)) for at in places}
    for q in kept:
        region = [at for at in places if owner[at] == q and sigmoid[(q, *at)] >= 0.5]
        if not region:
            continue
        thing = 1 <= label[q] <= rules.num_thing_classes
        if thing or label[q] not in opened:
            opened[label[q]] = len(segments) + 1
            segments.append(Segment(len(segments) + 1, thing, label[q]))
        named[q] = opened[label[q]]
        for at in region:
            panoptic[at] = named[q]
    for at in places:
        if panoptic[at] == 0 and distance[at] <= 1.5:
            panoptic[at] = named.get(owner[at], 0)
    return panoptic, segments, distance


def rows_in(size: int, channels: int, counts: tuple[int, ...], generator: torch.Generator) -> SparseTensor:
    """Distinct random rows of samples, some of them outside the grid, shuffled together."""
    wide, coords = size + 2, []
    for sample, count in enumerate(counts):
        cells = torch.randperm(wide**3, generator=generator)[:count]
        axes = [cells // wide**2 - 1, cells // wide % wide - 1, cells % wide - 1]
        coords.append(torch.stack([torch.full_like(cells, sample), *axes], dim=1))
    together = torch.cat(coords)
    shuffled = together[torch.randperm(len(together), generator=generator)]
    return sparse_tensor(shuffled, 2 * torch.randn(len(shuffled), channels, generator=generator))


def make_output(
    counts: tuple[int, ...], size: int, queries: int, generator: torch.Generator, *, same_rows: bool = True
) -> CompletionOutput:
    masks = rows_in(size, queries, counts, generator)
    distances = masks if same_rows else rows_in(size, 1, counts, generator)
    distances = distances.with_features(3 * torch.rand(len(distances.coords), 1, generator=generator))
    dense, unread = torch.zeros(len(counts), 1, 1, 1, 1), sparse_tensor(torch.zeros(0, 4, dtype=torch.int64), torch.zeros(0, 1))
    return CompletionOutput(distances, (dense, unread, unread), (dense, unread, masks))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    counts=st.tuples(st.integers(0, 60), st.integers(0, 200)),
    same_rows=st.booleans(),
    truncation=st.sampled_from([3.0, 3.0, 1.2]),
)
def test_all_rules_together_are_those_of_plain_loops(
    seed: int, counts: tuple[int, int], same_rows: bool, truncation: float
) -> None:
    """Also where distances have other rows than masks, and where a truncation so small makes every voxel near."""
    size, queries, generator = 4, 8, torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(2, queries, 14, generator=generator)
    logits[..., [WALL, FLOOR]] += 2
    output = make_output(counts, size, queries, generator, same_rows=same_rows)
    found = postprocess_volumes(output, logits, size, rules=RULES, truncation=truncation)
    for sample, volume in enumerate(found):
        panoptic, segments, distance = by_loops(logits[sample], output.masks[2], output.geometry, sample, size, RULES, truncation)
        assert torch.equal(volume.panoptic, panoptic) and list(volume.segments) == segments
        assert torch.equal(volume.distance, distance)
        classes = {segment.id: segment.category_id for segment in segments}
        assert volume.semantic.flatten().tolist() == [classes.get(int(value), 0) for value in panoptic.flatten()]


def test_a_sample_s_volume_does_not_depend_on_its_batch() -> None:
    size, queries, generator = 6, 5, torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(3, queries, 14, generator=generator)
    output = make_output((40, 0, 90), size, queries, generator)
    together = postprocess_volumes(output, logits, size, rules=RULES)
    assert len(together) == 3 and together[0].segments and together[2].segments
    assert not together[1].segments and together[1].distance.eq(FAR).all() and not together[1].panoptic.any()
    for sample in (0, 2):
        own = output.geometry.coords[:, 0] == sample
        coords = output.geometry.coords[own] - torch.tensor([sample, 0, 0, 0])
        alone = output._replace(
            geometry=sparse_tensor(coords, output.geometry.features[own]),
            masks=(*output.masks[:2], sparse_tensor(coords, output.masks[2].features[own])),
        )
        (found,) = postprocess_volumes(alone, logits[sample : sample + 1], size, rules=RULES)
        assert torch.equal(found.panoptic, together[sample].panoptic) and found.segments == together[sample].segments
        assert torch.equal(found.distance, together[sample].distance)


def test_predictions_with_gradients_leave_none_behind() -> None:
    generator = torch.Generator().manual_seed(2)
    output = make_output((30,), 4, 3, generator)
    masks = output.masks[2].with_features(output.masks[2].features.requires_grad_())
    geometry = output.geometry.with_features(output.geometry.features.requires_grad_())
    learnt = output._replace(geometry=geometry, masks=(*output.masks[:2], masks))
    (found,) = postprocess_volumes(learnt, torch.randn(1, 3, 14, generator=generator), 4, rules=RULES)
    assert not found.distance.requires_grad and not found.panoptic.requires_grad


def test_a_halved_precision_is_compared_in_float32() -> None:
    """Products of scores and masks that bfloat16 cannot tell apart, and a distance it can."""
    masks = sparse_tensor(torch.zeros(1, 4, dtype=torch.int64), torch.tensor([[2.0, 2.0]]))
    halved = masks.with_features(masks.features.bfloat16())
    unread = sparse_tensor(torch.zeros(0, 4, dtype=torch.int64), torch.zeros(0, 1))
    distance = sparse_tensor(masks.coords, torch.tensor([[0.5]], dtype=torch.bfloat16))
    dense = torch.zeros(1, 1, 1, 1, 1)
    output = CompletionOutput(distance, (dense, unread, unread), (dense, unread, halved))
    (found,) = postprocess_volumes(output, logits_of((3, 0.9), (4, 0.9001))[None], 1, rules=RULES)
    assert found.segments == (Segment(1, True, 4),)
    assert found.distance.dtype == torch.float32 and found.distance.tolist() == [[[0.5]]]
