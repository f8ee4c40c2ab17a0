"""Matching: points against plain loops, costs against their formulas, assignments against all there are."""

import math
from itertools import permutations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from scenemill.trainers.nvpanoptix3d.matching import assign, draw_points, match, matching_cost, sample_points


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def by_loops(image: Tensor, x: float, y: float) -> float:
    """Bilinear between the centres of pixels, 0 outside."""
    height, width = image.shape
    column, row = x * width - 0.5, y * height - 0.5
    total = 0.0
    for i in (math.floor(row), math.floor(row) + 1):
        for j in (math.floor(column), math.floor(column) + 1):
            if 0 <= i < height and 0 <= j < width:
                total += (1 - abs(row - i)) * (1 - abs(column - j)) * float(image[i, j])
    return total


def test_sampling_is_bilinear_between_pixel_centres_and_zero_outside() -> None:
    maps, points = random(2, 3, 5, 7), draw_points((2, 40), "cpu", torch.Generator().manual_seed(1))
    points[0, :4] = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.5, 0.5]])
    found = sample_points(maps, points)
    expected = [[[by_loops(image, *point) for point in points[n].tolist()] for image in maps[n]] for n in range(2)]
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[0, :, 0], maps[0, :, 0, 0] / 4)  # of a corner, three quarters are outside
    torch.testing.assert_close(found[..., None], functional.grid_sample(maps, 2 * points[:, :, None] - 1, align_corners=False))


def test_a_map_without_rows_to_sample_gives_none() -> None:
    assert sample_points(torch.zeros(0, 1, 4, 4), torch.zeros(0, 9, 2)).shape == (0, 1, 9)
    assert sample_points(torch.zeros(1, 0, 4, 4), torch.zeros(1, 9, 2)).shape == (1, 0, 9)


def test_points_are_uniform_and_come_again_with_the_generator() -> None:
    points = draw_points((20_000,), "cpu", torch.Generator().manual_seed(3))
    assert points.shape == (20_000, 2) and points.dtype == torch.float32
    assert float(points.min()) >= 0 and float(points.max()) < 1
    torch.testing.assert_close(points.mean(dim=0), torch.full((2,), 0.5), atol=0.01, rtol=0)
    assert torch.equal(points, draw_points((20_000,), "cpu", torch.Generator().manual_seed(3)))
    torch.manual_seed(3)
    assert torch.equal(points, draw_points((20_000,), "cpu"))


def cost_by_loops(logits: Tensor, masks: Tensor, labels: Tensor, true: Tensor, points: Tensor, weights: list[float]) -> Tensor:
    cost = torch.zeros(len(logits), len(labels))
    for q in range(len(logits)):
        for n in range(len(labels)):
            xs = [by_loops(masks[q], *point) for point in points.tolist()]
            ts = [by_loops(true[n], *point) for point in points.tolist()]
            entropy = sum(math.log1p(math.exp(-x)) * t + math.log1p(math.exp(x)) * (1 - t) for x, t in zip(xs, ts, strict=True))
            inside = [1 / (1 + math.exp(-x)) for x in xs]
            shared = sum(s * t for s, t in zip(inside, ts, strict=True))
            dice = 1 - (2 * shared + 1) / (sum(inside) + sum(ts) + 1)
            probability = math.exp(logits[q, labels[n]]) / sum(math.exp(value) for value in logits[q])
            cost[q, n] = -weights[0] * probability + weights[1] * entropy / len(xs) + weights[2] * dice
    return cost


@pytest.mark.parametrize("weights", [[2.0, 5.0, 5.0], [1.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 0.5]])
def test_cost_is_its_formula(weights: list[float]) -> None:
    logits, masks, true = random(4, 6, seed=1), 3 * random(4, 5, 6, seed=2), random(3, 11, 13, seed=3) > 0
    labels, points = torch.tensor([0, 4, 4]), draw_points((17,), "cpu", torch.Generator().manual_seed(4))
    found = matching_cost(
        logits, masks, labels, true, points, class_weight=weights[0], mask_weight=weights[1], dice_weight=weights[2]
    )
    torch.testing.assert_close(found, cost_by_loops(logits, masks, labels, true, points, weights), atol=1e-5, rtol=1e-5)


def test_cost_has_no_gradient_and_stands_huge_logits() -> None:
    logits = random(4, 6).requires_grad_()
    masks = (1e4 * random(4, 5, 6)).requires_grad_()
    cost = matching_cost(logits, masks, torch.tensor([1]), torch.ones(1, 5, 6), torch.rand(9, 2))
    assert not cost.requires_grad and cost.isfinite().all()


@pytest.mark.parametrize(("queries", "masks"), [(5, 3), (4, 4), (3, 5), (1, 1), (6, 1), (4, 0)])
def test_assignment_is_the_cheapest_of_all(queries: int, masks: int) -> None:
    for seed in range(5):
        cost = random(queries, masks, seed=seed)
        rows, columns = assign(cost)
        assert rows.dtype == columns.dtype == torch.int64 and len(rows) == min(queries, masks)
        assert rows.tolist() == sorted(set(rows.tolist())) and len(set(columns.tolist())) == len(columns)
        assert set(zip(rows.tolist(), columns.tolist(), strict=True)) == cheapest(cost)


def cheapest(cost: Tensor) -> set[tuple[int, int]]:
    queries, masks = cost.shape
    if queries < masks:
        return {(query, mask) for mask, query in cheapest(cost.T)}
    choices = permutations(range(queries), masks)
    best = min(choices, key=lambda choice: sum(float(cost[query, mask]) for mask, query in enumerate(choice)))
    return {(query, mask) for mask, query in enumerate(best)}


def test_predictions_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="invalid numeric"):
        assign(torch.tensor([[float("nan"), 1.0]]))


def test_each_image_is_matched_with_its_own_points_and_masks() -> None:
    logits, masks = random(3, 5, 6, seed=1), random(3, 5, 8, 8, seed=2)
    labels = [torch.tensor([1, 2, 2]), torch.zeros(0, dtype=torch.int64), torch.tensor([3])]
    true = [random(len(label), 16, 16, seed=9) > 0 for label in labels]
    points = [draw_points((30,), "cpu", torch.Generator().manual_seed(seed)) for seed in range(3)]
    found = match(logits, masks, labels, true, points, class_weight=1.0)
    assert [len(queries) for queries, _ in found] == [3, 0, 1]
    for image, (queries, columns) in enumerate(found):
        cost = matching_cost(logits[image], masks[image], labels[image], true[image], points[image], class_weight=1.0)
        expected = assign(cost)
        assert torch.equal(queries, expected[0]) and torch.equal(columns, expected[1])


def test_a_query_that_predicts_a_mask_is_matched_with_it() -> None:
    true = torch.zeros(2, 8, 8, dtype=torch.bool)
    true[0, :, :4] = true[1, :4, 4:] = True
    masks = torch.full((1, 4, 8, 8), -8.0)
    masks[0, 2][true[0]] = masks[0, 1][true[1]] = 8.0
    ((queries, columns),) = match(torch.zeros(1, 4, 14), masks, [torch.tensor([3, 3])], [true], [torch.rand(200, 2)])
    assert (queries.tolist(), columns.tolist()) == ([1, 2], [1, 0])
