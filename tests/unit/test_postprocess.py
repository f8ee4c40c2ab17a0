"""Post-processing: each rule by a hand-made case, all of them against plain loops."""

import math
from dataclasses import asdict

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from scenemill.trainers.nvpanoptix3d.postprocess import (
    PanopticImage,
    Rules,
    Segment,
    panoptic_image,
    postprocess,
    postprocess_reduced,
)

RULES = Rules()
NONE = 13
WALL, FLOOR = 10, 11


def logits_of(*said: tuple[int, float]) -> Tensor:
    """(Q, 14): what a softmax turns into these labels and scores."""
    rows = []
    for label, score in said:
        row = torch.full((14,), math.log((1 - score) / 13))
        row[label] = math.log(score)
        rows.append(row)
    return torch.stack(rows)


def mask_of(*rows: list[float]) -> Tensor:
    """(H, W): what a sigmoid turns into these values."""
    return torch.tensor(rows).logit()


def image_of(said: list[tuple[int, float]], masks: list[Tensor], rules: Rules = RULES) -> PanopticImage:
    return panoptic_image(logits_of(*said), torch.stack(masks), torch.ones(masks[0].shape), rules)


def ids(image: PanopticImage) -> list[list[int]]:
    return [[int(value) for value in row] for row in image.panoptic_seg]


def test_segments_are_numbered_in_the_order_of_queries() -> None:
    found = image_of([(3, 0.9), (WALL, 0.8)], [mask_of([0.9, 0.9, 0.1, 0.1]), mask_of([0.2, 0.2, 0.9, 0.9])])
    assert ids(found) == [[1, 1, 2, 2]]
    assert [asdict(segment) for segment in found.segments] == [
        {"id": 1, "isthing": True, "category_id": 3},
        {"id": 2, "isthing": False, "category_id": WALL},
    ]
    assert found.panoptic_seg.dtype == torch.int32 and found.semantic.shape == (13, 1, 4)
    assert found.semantic_map.tolist() == [[3, 3, WALL, WALL]]
    torch.testing.assert_close(found.semantic[3], torch.tensor([[0.81, 0.81, 0, 0]]))
    torch.testing.assert_close(found.semantic[WALL], torch.tensor([[0, 0, 0.72, 0.72]]))
    assert int((found.semantic != 0).sum()) == 4


@pytest.mark.parametrize(("said", "kept"), [((3, 0.41), True), ((3, 0.39), False), ((NONE, 0.9), False), ((0, 0.9), True)])
def test_a_query_is_kept_for_its_score_unless_it_says_no_object(said: tuple[int, float], kept: bool) -> None:
    assert bool(image_of([said], [mask_of([0.9, 0.9])]).segments) == kept


def test_the_score_must_exceed_the_threshold() -> None:
    logits = torch.zeros(1, 2)  # the score is one half, exactly
    at, below = Rules(object_mask_threshold=0.5), Rules(object_mask_threshold=0.49)
    mask, depth = mask_of([0.9])[None], torch.ones(1, 1)
    assert panoptic_image(logits, mask, depth, at).segments == ()
    assert panoptic_image(logits, mask, depth, below).segments == (Segment(1, False, 0),)


def test_void_may_be_a_segment_and_is_stuff() -> None:
    found = image_of([(0, 0.9), (0, 0.8)], [mask_of([0.9, 0.1, 0.3]), mask_of([0.1, 0.9, 0.2])])
    assert found.segments == (Segment(1, False, 0),) and ids(found) == [[1, 1, 1]]
    assert found.semantic_map.tolist() == [[0, 0, 0]] and found.semantic[0].all()


def test_a_pixel_is_of_the_query_with_the_largest_score_times_mask() -> None:
    found = image_of([(3, 0.5), (4, 0.9)], [mask_of([0.9, 0.9]), mask_of([0.6, 0.1])])
    assert ids(found) == [[2, 1]]  # 0.45 to 0.54, and 0.45 to 0.09


def test_ties_are_the_first_query_s() -> None:
    found = image_of([(3, 0.9), (4, 0.9)], [mask_of([0.9, 0.9]), mask_of([0.9, 0.9])])
    assert ids(found) == [[1, 1]] and found.segments == (Segment(1, True, 3),)


@pytest.mark.parametrize(("threshold", "accepted"), [(0.5, True), (0.51, False)])
def test_a_query_must_own_enough_of_its_mask(threshold: float, accepted: bool) -> None:
    masks = [mask_of([0.9, 0.9, 0.9, 0.9]), mask_of([0.9, 0.9, 0.1, 0.1])]  # the second takes half of the first
    found = image_of([(3, 0.5), (4, 0.9)], masks, Rules(overlap_threshold=threshold))
    if accepted:
        assert ids(found) == [[2, 2, 1, 1]] and [segment.category_id for segment in found.segments] == [3, 4]
    else:
        assert ids(found) == [[1, 1, 0, 0]] and [segment.category_id for segment in found.segments] == [4]


def test_owned_pixels_outside_the_mask_count_as_owned_but_are_not_of_the_segment() -> None:
    """Owned are 3 of a mask of 4, and one of these is inside it: 3/4 passes where 1/4 would not."""
    masks = [mask_of([0.9, 0.4, 0.4, 0.9, 0.9, 0.9]), mask_of([0.1, 0.1, 0.1, 0.9, 0.9, 0.9])]
    found = image_of([(3, 0.8), (4, 0.9)], masks)
    assert ids(found) == [[1, 0, 0, 2, 2, 2]]


def test_a_query_that_owns_nothing_of_its_mask_is_left_out() -> None:
    """It owns a pixel where it says little, and its mask is another's."""
    masks = [mask_of([0.9, 0.3]), mask_of([0.95, 0.1])]
    found = image_of([(3, 0.8), (4, 0.9)], masks)
    assert ids(found) == [[1, 0]] and found.segments == (Segment(1, True, 4),)


def test_a_query_without_a_mask_or_without_a_pixel_is_left_out() -> None:
    assert image_of([(3, 0.9)], [mask_of([0.4, 0.3])]).segments == ()
    found = image_of([(3, 0.5), (4, 0.9)], [mask_of([0.6, 0.6]), mask_of([0.9, 0.9])])
    assert ids(found) == [[1, 1]] and found.segments == (Segment(1, True, 4),)


def test_queries_of_one_stuff_class_are_one_segment_and_things_never_are() -> None:
    masks = [mask_of([0.9 if column == query else 0.1 for column in range(5)]) for query in range(5)]
    found = image_of([(WALL, 0.9), (3, 0.9), (WALL, 0.8), (3, 0.8), (FLOOR, 0.9)], masks)
    assert ids(found) == [[1, 2, 1, 3, 4]]
    assert [segment.category_id for segment in found.segments] == [WALL, 3, 3, FLOOR]
    assert [segment.isthing for segment in found.segments] == [False, True, True, False]


def test_what_is_a_thing_is_a_matter_of_the_class() -> None:
    masks = [mask_of([0.9, 0.1]), mask_of([0.1, 0.9])]
    assert ids(image_of([(9, 0.9), (9, 0.9)], masks)) == [[1, 2]]
    assert ids(image_of([(9, 0.9), (9, 0.9)], masks, Rules(num_thing_classes=8))) == [[1, 1]]


def test_a_label_map_may_say_what_a_thing_is() -> None:
    """Walls are things, chairs stuff: two walls are two, and the pixel of nobody goes to a chair."""
    rules = Rules(things=(1, WALL))
    masks = [mask_of([0.9, 0.1, 0.1, 0.4]), mask_of([0.1, 0.9, 0.1, 0.4]), mask_of([0.1, 0.1, 0.9, 0.3])]
    found = image_of([(WALL, 0.9), (WALL, 0.9), (3, 0.9)], masks, rules)
    assert ids(found) == [[1, 2, 3, 3]] and [segment.isthing for segment in found.segments] == [True, True, False]
    usual = image_of([(WALL, 0.9), (WALL, 0.9), (3, 0.9)], masks)
    assert ids(usual) == [[1, 1, 2, 1]]
    nothing = image_of([(WALL, 0.9), (3, 0.9)], [masks[0], masks[2]], Rules(things=()))
    assert [segment.isthing for segment in nothing.segments] == [False, False]


def test_void_pixels_go_to_the_stuff_query_that_says_most_there() -> None:
    said = [(3, 0.9), (WALL, 0.9), (FLOOR, 0.6), (WALL, 0.5)]
    masks = [
        mask_of([0.9, 0.1, 0.1, 0.1, 0.45, 0.4]),
        mask_of([0.1, 0.9, 0.1, 0.1, 0.2, 0.1]),
        mask_of([0.1, 0.1, 0.9, 0.1, 0.3, 0.2]),
        mask_of([0.1, 0.1, 0.1, 0.9, 0.3, 0.48]),
    ]
    found = image_of(said, masks)
    assert ids(found) == [[1, 2, 3, 2, 2, 2]]  # void: thing 0.405 > wall 0.18 = floor 0.18 > wall 0.15; last: wall 0.24
    torch.testing.assert_close(found.semantic[WALL, 0], torch.tensor([0, 0.81, 0, 0.45, 0.18, 0.24]))
    assert not found.semantic[3, 0, 4:].any() and found.semantic_map[0, 4:].tolist() == [WALL, WALL]


def test_stuff_that_is_not_accepted_takes_no_void_pixels() -> None:
    masks = [mask_of([0.9, 0.1, 0.3]), mask_of([0.8, 0.2, 0.4])]  # the wall is within the thing: it owns none of its mask
    found = image_of([(3, 0.9), (WALL, 0.6)], masks)
    assert ids(found) == [[1, 0, 0]] and int((found.semantic != 0).sum()) == 1


def test_void_pixels_stay_void_without_stuff() -> None:
    assert ids(image_of([(3, 0.9)], [mask_of([0.9, 0.4])])) == [[1, 0]]


def test_depth_is_limited_with_and_without_a_kept_query() -> None:
    depth = torch.tensor([[-1.0, 3.0, 30.0]])
    for label in (3, NONE):
        found = panoptic_image(logits_of((label, 0.9)), mask_of([0.9, 0.9, 0.9])[None], depth, RULES)
        assert found.depth.tolist() == [[0, 3, 25]]
    assert panoptic_image(logits_of((3, 0.9)), mask_of([0.9] * 3)[None], depth, Rules(depth_scale=2.0)).depth.tolist() == [
        [0, 2, 2]
    ]


def test_without_a_kept_query_there_is_nothing() -> None:
    found = image_of([(NONE, 0.9), (3, 0.3)], [mask_of([0.9, 0.9]), mask_of([0.9, 0.9])])
    assert found.segments == () and ids(found) == [[0, 0]] and found.panoptic_seg.dtype == torch.int32
    assert found.semantic.shape == (13, 1, 2) and not found.semantic.any() and found.semantic_map.tolist() == [[0, 0]]


def by_loops(logits: Tensor, masks: Tensor, rules: Rules) -> tuple[Tensor, list[Segment], Tensor]:
    """The seven steps, one query and one pixel after the other."""
    probability, sigmoid = logits.softmax(dim=1), masks.sigmoid()
    height, width = masks.shape[1:]
    pixels = [(v, u) for v in range(height) for u in range(width)]
    kept = [q for q in range(len(logits)) if probability[q].argmax() != NONE and probability[q].max() > rules.object_mask_threshold]
    panoptic, semantic = torch.zeros(height, width, dtype=torch.int32), torch.zeros(13, height, width)
    if not kept:
        return panoptic, [], semantic
    score = {q: probability[q].max() for q in kept}
    label = {q: int(probability[q].argmax()) for q in kept}
    owner = {(v, u): max(kept, key=lambda q: (float(score[q] * sigmoid[q, v, u]), -q)) for v, u in pixels}
    segments, opened, stuff = list[Segment](), dict[int, int](), list[tuple[int, int]]()
    for q in kept:
        owned = [pixel for pixel in pixels if owner[pixel] == q]
        full = [pixel for pixel in pixels if sigmoid[q][pixel] >= 0.5]
        region = [pixel for pixel in owned if pixel in full]
        if not (owned and full and region) or len(owned) / len(full) < rules.overlap_threshold:
            continue
        thing = 1 <= label[q] <= rules.num_thing_classes
        name = opened.get(label[q], 0) if not thing else 0
        if not name:
            name = len(segments) + 1
            segments.append(Segment(name, thing, label[q]))
        if not thing:
            opened[label[q]] = name
            stuff.append((q, name))
        for v, u in region:
            panoptic[v, u] = name
            semantic[label[q], v, u] = score[q] * sigmoid[q, v, u]
    for v, u in pixels:
        if panoptic[v, u] == 0 and stuff:
            q, name = max(stuff, key=lambda known: (float(score[known[0]] * sigmoid[known[0], v, u]), -known[0]))
            panoptic[v, u] = name
            semantic[label[q], v, u] = score[q] * sigmoid[q, v, u]
    return panoptic, segments, semantic


@pytest.mark.parametrize("seed", range(8))
def test_all_rules_together_are_those_of_plain_loops(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(12, 14, generator=generator)
    logits[:, [0, WALL, FLOOR]] += 2
    coarse = 3 * torch.randn(1, 12, 3, 4, generator=generator)
    masks = functional.interpolate(coarse, size=(9, 12), mode="bilinear", align_corners=False)[0]
    rules = Rules(overlap_threshold=0.3 if seed % 2 else 0.5)
    found = panoptic_image(logits, masks, torch.ones(9, 12), rules)
    panoptic, segments, semantic = by_loops(logits, masks, rules)
    assert torch.equal(found.panoptic_seg, panoptic) and list(found.segments) == segments
    torch.testing.assert_close(found.semantic, semantic)


def make_batch(height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(height)
    logits = torch.stack([logits_of((3, 0.9), (WALL, 0.9), (NONE, 0.9))] * 2)
    return logits, 3 * torch.randn(2, 3, height, width, generator=generator), 5 * torch.rand(2, 1, 7, 9, generator=generator)


def test_a_batch_is_resized_to_the_padded_size_and_cut() -> None:
    logits, masks, depth = make_batch(4, 6)
    found = postprocess(logits, masks, depth, (16, 24), [(13, 24), (16, 21)], rules=RULES)
    for index, (image, (height, width)) in enumerate(zip(found, [(13, 24), (16, 21)], strict=True)):
        whole = functional.interpolate(masks[index : index + 1], size=(16, 24), mode="bilinear", align_corners=False)
        metres = functional.interpolate(depth[index : index + 1], size=(16, 24), mode="bilinear", align_corners=False)
        expected = panoptic_image(logits[index], whole[0, :, :height, :width], metres[0, 0, :height, :width], RULES)
        assert torch.equal(image.panoptic_seg, expected.panoptic_seg) and image.segments == expected.segments
        assert torch.equal(image.semantic, expected.semantic) and torch.equal(image.depth, expected.depth)
        assert image.depth.shape == image.semantic_map.shape == (height, width)


@pytest.mark.parametrize("size", [(6, 12), (8, 10)])
def test_the_reduced_form_is_the_same_at_half_the_size(size: tuple[int, int]) -> None:
    logits, masks, depth = make_batch(8, 12)
    found = postprocess_reduced(logits, masks, depth, (16, 24), [(13, 24), (13, 24)], size, rules=RULES)
    for index, image in enumerate(found):
        maps = [
            masks[index],
            functional.interpolate(depth[index : index + 1], size=(8, 12), mode="bilinear", align_corners=False)[0],
        ]
        cut = [part[:, :6, :12] for part in maps]  # 13 // 2 is 6
        if size != (6, 12):
            cut = [functional.interpolate(part[None], size=size, mode="bilinear", align_corners=False)[0] for part in cut]
        expected = panoptic_image(logits[index], cut[0], cut[1][0], RULES)
        assert torch.equal(image.panoptic_seg, expected.panoptic_seg) and torch.equal(image.depth, expected.depth)
        assert image.semantic.shape == (13, *size) and torch.equal(image.semantic, expected.semantic)


def test_depth_outside_the_room_is_zero() -> None:
    logits, masks, depth = make_batch(4, 6)
    room = torch.zeros(2, 16, 24, dtype=torch.bool)
    room[:, :, 5:] = True
    plain = postprocess(logits, masks, depth, (16, 24), [(13, 20)] * 2, rules=RULES)
    found = postprocess(logits, masks, depth, (16, 24), [(13, 20)] * 2, rules=RULES, room_mask=room)
    for image, before in zip(found, plain, strict=True):
        assert not image.depth[:, :5].any() and torch.equal(image.depth[:, 5:], before.depth[:, 5:]) and before.depth.all()
        assert torch.equal(image.panoptic_seg, before.panoptic_seg)
    half = postprocess_reduced(logits, masks, depth, (16, 24), [(16, 24)] * 2, (8, 12), rules=RULES, room_mask=room[:, :8, :12])
    assert not half[0].depth[:, :5].any() and half[0].depth[:, 5:].all()


def test_results_have_no_gradient() -> None:
    logits, masks, depth = make_batch(4, 6)
    found = postprocess(
        logits.requires_grad_(), masks.requires_grad_(), depth.requires_grad_(), (16, 24), [(16, 24)] * 2, rules=RULES
    )
    assert not found[0].semantic.requires_grad and not found[0].depth.requires_grad
