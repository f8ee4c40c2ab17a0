"""Losses of stage 2: every formula against plain loops over voxels, gradients against finite differences, empty samples."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from scenemill.schemas.errors import ConfigError
from scenemill.trainers.collate import Batch
from scenemill.trainers.nvpanoptix3d.completion import CompletionOutput
from scenemill.trainers.nvpanoptix3d.losses import Targets
from scenemill.trainers.nvpanoptix3d.losses3d import (
    GRIDS,
    GridTargets,
    Stage2Loss,
    VolumeTargets,
    dense_occupancy_loss,
    geometry_loss,
    in_frustum,
    lost_masks,
    mask_errors,
    sparse_occupancy_loss,
    values_at,
    volume_targets_of,
)
from scenemill.trainers.nvpanoptix3d.matching import Pairs, match
from scenemill.trainers.nvpanoptix3d.sparse import SparseTensor, sparse_tensor

CLASSES, QUERIES, POINTS = 13, 6, 40
SIZE = 8
"""Voxels a side of the full grid; the half has 4, the quarter 2."""

COUNTS, WEIGHT = (3, 0, 2), (1.0, 0.5, 0.25)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=seeded(seed))


def rows_in(size: int, channels: int, counts: Sequence[int], *, seed: int = 0) -> SparseTensor:
    """Distinct random rows of samples, shuffled together, with features that are leaves."""
    generator = seeded(seed)
    coords = []
    for sample, count in enumerate(counts):
        cells = torch.randperm(size**3, generator=generator)[:count]
        axes = [cells // size**2, cells // size % size, cells % size]
        coords.append(torch.stack([torch.full_like(cells, sample), *axes], dim=1))
    together = torch.cat(coords)
    shuffled = together[torch.randperm(len(together), generator=generator)]
    features = 2 * torch.randn(len(shuffled), channels, generator=generator)
    return sparse_tensor(shuffled, features.requires_grad_(), stride=SIZE // size)


def grid_of(size: int, masks: Sequence[int] = COUNTS, *, seed: int = 0) -> GridTargets:
    samples = len(masks)
    return GridTargets(
        occupancy=(random(samples, size, size, size, seed=seed) > 0).float(),
        weighting=1 + random(samples, size, size, size, seed=seed + 1).abs(),
        masks=[random(count, size, size, size, seed=seed + 2 + count) > 0 for count in masks],
    )


def make_targets(masks: Sequence[int] = COUNTS, weight: Sequence[float] = WEIGHT) -> VolumeTargets:
    samples = len(masks)
    image = Targets(
        labels=[torch.randint(1, CLASSES, (count,), generator=seeded(count)) for count in masks],
        masks=[random(count, 16, 24, seed=count) > 0 for count in masks],
        depth=torch.zeros(samples, 16, 24),
        loss_weight=torch.tensor(weight),
    )
    quarter, half, full = (grid_of(SIZE >> level, masks, seed=10 * level) for level in (2, 1, 0))
    return VolumeTargets(image, 12 * random(samples, SIZE, SIZE, SIZE, seed=5).abs(), (quarter, half, full))


def dense_in(frustum: Tensor, channels: int, seed: int) -> Tensor:
    """(B, channels, ...) random logits, minus infinity outside a frustum, with a gradient."""
    logits = 2 * random(len(frustum), channels, *frustum.shape[1:], seed=seed)
    return logits.masked_fill(~frustum[:, None], -torch.inf).requires_grad_()


def make_output(half: Sequence[int] = (9, 7, 5), full: Sequence[int] = (30, 11, 20), *, seed: int = 0) -> CompletionOutput:
    """Predictions of samples with so many rows each; masks have fewer rows than occupancies, as pruning leaves."""
    frustum = random(len(full), 2, 2, 2, seed=seed + 1) > -0.5
    distance = rows_in(SIZE, 1, full, seed=seed + 2)
    features = distance.features.detach().abs().clamp(0.1, 2.9).requires_grad_()
    return CompletionOutput(
        geometry=distance.with_features(features),
        occupancies=(
            dense_in(frustum, 1, seed + 3),
            rows_in(SIZE // 2, 1, [2 * count for count in half], seed=seed + 4),
            rows_in(SIZE, 1, [2 * count for count in full], seed=seed + 5),
        ),
        masks=(
            dense_in(frustum, QUERIES, seed + 6),
            rows_in(SIZE // 2, QUERIES, half, seed=seed + 7),
            rows_in(SIZE, QUERIES, full, seed=seed + 8),
        ),
    )


def leaves_of(output: CompletionOutput) -> list[Tensor]:
    """All predictions of an output, as what gradients go to."""
    parts: list[Tensor | SparseTensor] = [output.geometry, *output.occupancies, *output.masks]
    return [part if isinstance(part, Tensor) else part.features for part in parts]


def entropy_of(logit: float, true: float) -> float:
    """Of one prediction, by its definition."""
    inside = 1 / (1 + math.exp(-logit))
    return -true * math.log(inside) - (1 - true) * math.log(1 - inside)


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def voxels(tensor: SparseTensor) -> list[tuple[tuple[int, int, int, int], list[float]]]:
    """Coordinates and features of every row."""
    rows = zip(tensor.coords.tolist(), tensor.features.tolist(), strict=True)
    return [((sample, x, y, z), values) for (sample, x, y, z), values in rows]


def weighted(values: Sequence[float], weight: Sequence[float]) -> float:
    return sum(w * value for w, value in zip(weight, values, strict=True)) / max(sum(weight), 1e-12)


def geometry_by_loops(distance: SparseTensor, geometry: Tensor, weighting: Tensor, weight: Sequence[float]) -> float:
    errors = [abs(value - float(geometry[at])) * float(weighting[at]) for at, (value,) in voxels(distance)]
    return weighted(errors, [weight[at[0]] for at, _ in voxels(distance)])


def occupancy_by_loops(logits: SparseTensor, target: GridTargets, weight: Sequence[float]) -> float:
    errors = [entropy_of(value, float(target.occupancy[at])) * float(target.weighting[at]) for at, (value,) in voxels(logits)]
    return weighted(errors, [weight[at[0]] for at, _ in voxels(logits)])


def cells_of(logits: Tensor, sample: int) -> list[tuple[int, int, int]]:
    """The cells of a sample that lie in its frustum."""
    size = logits.shape[-1]
    cells = [(x, y, z) for x in range(size) for y in range(size) for z in range(size)]
    return [at for at in cells if float(logits[(sample, 0, *at)]) != -math.inf]


def dense_by_loops(logits: Tensor, target: GridTargets, weight: Sequence[float]) -> float:
    errors = []
    for sample in range(len(logits)):
        found = []
        for at in cells_of(logits, sample):
            logit, occupied = float(logits[(sample, 0, *at)]), float(target.occupancy[(sample, *at)])
            found.append(entropy_of(logit, occupied) * float(target.weighting[(sample, *at)]))
        errors.append(mean(found))
    return weighted(errors, weight)


def masks_by_loops(
    rows: Sequence[tuple[tuple[int, int, int, int], list[float]]], target: GridTargets, pairs: Sequence[Pairs]
) -> list[float]:
    """Of each sample: for each matched mask, the mean over its rows of weighted entropy, all added."""
    errors = []
    for sample, (queries, masks) in enumerate(pairs):
        own = [(at, values) for at, values in rows if at[0] == sample]
        per_mask = []
        for query, mask in zip(queries.tolist(), masks.tolist(), strict=True):
            found = []
            for at, values in own:
                true = float(target.masks[sample][(mask, *at[1:])])
                found.append(entropy_of(values[query], true) * float(target.weighting[at]))
            per_mask.append(mean(found))
        errors.append(sum(per_mask))
    return errors


def all_by_loops(output: CompletionOutput, targets: VolumeTargets, pairs: Sequence[Pairs]) -> dict[str, float]:
    """Every loss as the text of its definition has it."""
    weight = targets.image.loss_weight.tolist()
    quarter, half, full = targets.grids
    dense, half_rows, full_rows = output.occupancies[0].detach(), *output.occupancies[1:]
    losses = {
        "loss_geometry": geometry_by_loops(output.geometry, targets.geometry, full.weighting, weight),
        "loss_occupancy_64": dense_by_loops(dense, quarter, weight),
        "loss_occupancy_128": occupancy_by_loops(half_rows, half, weight),
        "loss_occupancy_256": occupancy_by_loops(full_rows, full, weight),
    }
    cells = [
        ((sample, *at), output.masks[0][(sample, slice(None), *at)].tolist())
        for sample in range(len(dense))
        for at in cells_of(dense, sample)
    ]
    count = max(1.0, sum(w * len(masks) for w, masks in zip(weight, targets.image.masks, strict=True)))
    for name, rows, target in zip(GRIDS, (cells, voxels(output.masks[1]), voxels(output.masks[2])), targets.grids, strict=True):
        errors = masks_by_loops(rows, target, pairs)
        if name != "64":
            for sample, (_, masks) in enumerate(pairs):
                if not any(at[0] == sample for at, _ in rows):
                    errors[sample] = sum(bool(target.masks[sample][mask].any()) for mask in masks.tolist())
        losses[f"loss_panoptic_{name}"] = sum(w * error for w, error in zip(weight, errors, strict=True)) / count
    return losses


def make_image_logits(samples: int = 3) -> tuple[Tensor, Tensor]:
    return random(samples, QUERIES, CLASSES + 1, seed=90), 2 * random(samples, QUERIES, 8, 12, seed=91)


def make_pairs(*matched: dict[int, int]) -> list[Pairs]:
    """For each sample the mask of each matched query."""
    return [(torch.tensor(list(of), dtype=torch.int64), torch.tensor(list(of.values()), dtype=torch.int64)) for of in matched]


PAIRS = make_pairs({1: 2, 4: 0, 5: 1}, {}, {0: 1, 3: 0})


def test_geometry_is_compared_row_by_row_and_not_truncated() -> None:
    geometry, weighting = torch.full((2, 4, 4, 4), 3.0), torch.ones(2, 4, 4, 4)
    geometry[0, 1, 2, 3], weighting[1, 3, 0, 2] = 12.0, 5.0
    rows = sparse_tensor(torch.tensor([[0, 1, 2, 3], [1, 3, 0, 2]]), torch.tensor([[3.0], [1.5]]))
    found = geometry_loss(rows, geometry, weighting, torch.tensor([1.0, 3.0]))
    assert float(found) == pytest.approx((9 + 3 * 5 * 1.5) / 4)


def test_losses_at_rows_are_their_formulas() -> None:
    rows, target = rows_in(SIZE, 1, (30, 12, 0)), grid_of(SIZE)
    geometry = random(3, SIZE, SIZE, SIZE, seed=3).abs()
    found = geometry_loss(rows, geometry, target.weighting, torch.tensor(WEIGHT))
    assert float(found.detach()) == pytest.approx(geometry_by_loops(rows, geometry, target.weighting, WEIGHT), rel=1e-5)
    found = sparse_occupancy_loss(rows, target, torch.tensor(WEIGHT))
    assert float(found.detach()) == pytest.approx(occupancy_by_loops(rows, target, WEIGHT), rel=1e-5)


def test_dense_occupancy_is_averaged_over_the_frustum_of_each_sample() -> None:
    frustum = random(3, 4, 4, 4, seed=1) > 0.5
    frustum[1] = False
    logits, target = dense_in(frustum, 1, 2), grid_of(4)
    assert torch.equal(in_frustum(logits), frustum)
    found = dense_occupancy_loss(logits, target, torch.tensor(WEIGHT))
    assert float(found.detach()) == pytest.approx(dense_by_loops(logits.detach(), target, WEIGHT), rel=1e-5)
    (gradient,) = torch.autograd.grad(found, logits)
    assert gradient.isfinite().all() and torch.equal(gradient[:, 0] != 0, frustum)


def test_a_logit_that_is_no_number_is_not_taken_for_the_outside() -> None:
    logits, target = torch.zeros(1, 1, 2, 2, 2), grid_of(2, (0,))
    logits[0, 0, 1, 0, 1] = torch.nan
    assert dense_occupancy_loss(logits, target, torch.ones(1)).isnan()


def test_mask_errors_are_means_over_rows_summed_over_masks() -> None:
    rows, target = rows_in(4, QUERIES, (12, 5, 7)), grid_of(4)
    found = mask_errors(rows, target, PAIRS).tolist()
    assert found == pytest.approx(masks_by_loops(voxels(rows), target, PAIRS), rel=1e-5)
    assert found[1] == 0 and min(found[0], found[2]) > 0


@given(st.integers(0, 2**32))
@settings(max_examples=20, deadline=None)
def test_the_order_of_rows_and_the_other_samples_do_not_matter(seed: int) -> None:
    rows, target = rows_in(4, QUERIES, (12, 5, 7)), grid_of(4)
    order = torch.randperm(len(rows.coords), generator=seeded(seed))
    shuffled = sparse_tensor(rows.coords[order], rows.features[order], rows.stride)
    expected = mask_errors(rows, target, PAIRS)
    torch.testing.assert_close(mask_errors(shuffled, target, PAIRS), expected)
    of_last = rows.coords[:, 0] == 2
    last = sparse_tensor(rows.coords[of_last] - torch.tensor([2, 0, 0, 0]), rows.features[of_last], rows.stride)
    alone = GridTargets(target.occupancy[2:], target.weighting[2:], target.masks[2:])
    torch.testing.assert_close(mask_errors(last, alone, PAIRS[2:]), expected[2:])


def test_mask_rows_outside_the_grid_are_not_compared() -> None:
    rows, target = rows_in(4, QUERIES, (12, 5, 7)), grid_of(4)
    outside = torch.tensor([[0, -1, 2, 2], [2, 0, 4, 0], [0, 1, 1, 4]])
    features = torch.cat([100 * torch.ones(3, QUERIES), rows.features])
    more = sparse_tensor(torch.cat([outside, rows.coords]), features, rows.stride)
    assert torch.equal(mask_errors(more, target, PAIRS), mask_errors(rows, target, PAIRS))
    only = sparse_tensor(outside, 100 * torch.ones(3, QUERIES), rows.stride)
    assert mask_errors(only, target, PAIRS).tolist() == [0, 0, 0]
    assert lost_masks(only, target, PAIRS).tolist() == [3, 0, 2]


def test_other_rows_lie_in_the_grid() -> None:
    volumes = random(2, 3, 3, 3)
    for outside in ([0, 3, 0, 0], [0, 0, -1, 0]):
        with pytest.raises(AssertionError, match="outside the grid"):
            values_at(volumes, sparse_tensor(torch.tensor([[1, 2, 2, 2], outside]), torch.zeros(2, 1)))
    rows = sparse_tensor(torch.tensor([[1, 2, 0, 1], [0, 0, 2, 2]]), torch.zeros(2, 1))
    assert values_at(volumes, rows).tolist() == [float(volumes[1, 2, 0, 1]), float(volumes[0, 0, 2, 2])]


def test_a_sample_without_rows_loses_its_matched_masks_that_are_not_empty() -> None:
    target = grid_of(4)
    target.masks[0][0] = False
    assert lost_masks(rows_in(4, QUERIES, (0, 3, 2)), target, PAIRS).tolist() == [2, 0, 0]
    assert lost_masks(rows_in(4, QUERIES, (0, 0, 0)), target, PAIRS).tolist() == [2, 0, 2]
    assert lost_masks(rows_in(4, QUERIES, (1, 0, 1)), target, PAIRS).tolist() == [0, 0, 0]
    unmatched = make_pairs({4: 0, 5: 1}, {}, {})  # of the first sample's masks one is empty, one has no query
    assert lost_masks(rows_in(4, QUERIES, (0, 0, 0)), target, unmatched).tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    ("half", "full", "weight"),
    [
        ((9, 7, 5), (30, 11, 20), WEIGHT),
        ((0, 7, 5), (30, 0, 0), WEIGHT),
        ((9, 7, 0), (0, 0, 0), (1.0, 0.0, 1.0)),
        ((9, 7, 5), (30, 11, 20), (0.1, 0.0, 0.2)),
    ],
)
def test_all_losses_are_those_of_plain_loops(half: tuple[int, ...], full: tuple[int, ...], weight: tuple[float, ...]) -> None:
    """The points of matching are drawn sample by sample; nothing else is drawn."""
    output, targets, (class_logits, mask_logits) = make_output(half, full), make_targets(weight=weight), make_image_logits()
    generator = seeded(7)
    total, found = Stage2Loss(train_num_points=POINTS)(output, class_logits, mask_logits, targets, generator)
    drawn = seeded(7)
    points = [torch.rand(POINTS, 2, generator=drawn) for _ in range(3)]
    assert torch.equal(generator.get_state(), drawn.get_state())
    pairs = match(class_logits, mask_logits, targets.image.labels, targets.image.masks, points)
    expected = all_by_loops(output, targets, pairs)
    assert {name: float(value.detach()) for name, value in found.items()} == pytest.approx(expected, rel=1e-5)
    scale = {"geometry": (5,), "occupancy": (50, 25, 10), "panoptic": (25, 25, 25)}
    factors = [factor for kind in scale.values() for factor in kind]
    assert float(total.detach()) == pytest.approx(sum(map(math.prod, zip(factors, expected.values(), strict=True))), rel=1e-5)


def test_every_weight_has_its_loss() -> None:
    output, targets, image = make_output(), make_targets(), make_image_logits()
    settled = {"surface_weight": 2.0, "completion_weights": (3.0, 5.0, 7.0), "panoptic_weight": 11.0}
    total, found = Stage2Loss(train_num_points=POINTS, **settled)(output, *image, targets, seeded(0))  # type: ignore[arg-type]
    value = {name: float(loss.detach()) for name, loss in found.items()}
    assert list(value) == ["loss_geometry", *(f"loss_{kind}_{grid}" for kind in ("occupancy", "panoptic") for grid in GRIDS)]
    assert GRIDS == ("64", "128", "256")
    expected = 2 * value["loss_geometry"] + 11 * sum(value[f"loss_panoptic_{grid}"] for grid in GRIDS)
    expected += 3 * value["loss_occupancy_64"] + 5 * value["loss_occupancy_128"] + 7 * value["loss_occupancy_256"]
    assert float(total.detach()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("costs", [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)])
def test_costs_of_matching_decide_who_learns(costs: tuple[float, float, float]) -> None:
    output, targets, (class_logits, mask_logits) = make_output(), make_targets(), make_image_logits()
    names = dict(zip(("class_weight", "mask_weight", "dice_weight"), costs, strict=True))
    Stage2Loss(train_num_points=POINTS, **names)(output, class_logits, mask_logits, targets, seeded(3))[0].backward()  # type: ignore[arg-type]
    drawn = seeded(3)
    points = [torch.rand(POINTS, 2, generator=drawn) for _ in range(3)]
    pairs = match(class_logits, mask_logits, targets.image.labels, targets.image.masks, points, **names)
    for logits in (output.masks[1], output.masks[2]):
        assert logits.features.grad is not None
        for sample, (queries, _) in enumerate(pairs):
            learns = logits.features.grad[logits.coords[:, 0] == sample].any(dim=0)
            assert learns.nonzero()[:, 0].tolist() == queries.tolist()


def test_every_prediction_has_a_finite_gradient_and_stage_1_has_none() -> None:
    output, targets = make_output(), make_targets()
    image = [logits.requires_grad_() for logits in make_image_logits()]
    Stage2Loss(train_num_points=POINTS)(output, *image, targets, seeded(0))[0].backward()
    for leaf in leaves_of(output):
        assert leaf.grad is not None and leaf.grad.isfinite().all() and leaf.grad.any()
    for dense in (output.occupancies[0], output.masks[0]):
        assert dense.grad is not None and not dense.grad[dense == -torch.inf].any()
    assert all(logits.grad is None for logits in image)


def test_losses_are_float32_of_what_a_halved_precision_said() -> None:
    def in_dtype(output: CompletionOutput, dtype: torch.dtype) -> CompletionOutput:
        def of(part: SparseTensor) -> SparseTensor:
            return part.with_features(part.features.to(dtype))

        (dense, half, full), (masks, half_masks, full_masks) = output.occupancies, output.masks
        return CompletionOutput(
            of(output.geometry), (dense.to(dtype), of(half), of(full)), (masks.to(dtype), of(half_masks), of(full_masks))
        )

    halved, targets, image = in_dtype(make_output(), torch.bfloat16), make_targets(), make_image_logits()
    total, found = Stage2Loss(train_num_points=POINTS)(halved, *image, targets, seeded(0))
    exact, expected = Stage2Loss(train_num_points=POINTS)(in_dtype(halved, torch.float32), *image, targets, seeded(0))
    assert total.dtype == torch.float32 and torch.equal(total, exact)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def check_gradient(loss: Callable[[Tensor], Tensor], leaf: Tensor) -> None:
    assert torch.autograd.gradcheck(loss, leaf.detach().double().requires_grad_())


def doubled(target: GridTargets) -> GridTargets:
    return GridTargets(target.occupancy.double(), target.weighting.double(), target.masks)


def test_gradients_are_those_of_finite_differences() -> None:
    target, small = doubled(grid_of(4)), doubled(grid_of(2))
    weight = torch.tensor(WEIGHT, dtype=torch.float64)
    one, many = rows_in(4, 1, (6, 3, 4)), rows_in(4, QUERIES, (6, 3, 4))
    geometry = 10 + random(3, 4, 4, 4).abs().double()  # nowhere the predicted distance, where there is no gradient
    check_gradient(lambda leaf: geometry_loss(one.with_features(leaf), geometry, target.weighting, weight), one.features)
    check_gradient(lambda leaf: sparse_occupancy_loss(one.with_features(leaf), target, weight), one.features)
    check_gradient(lambda leaf: mask_errors(many.with_features(leaf), target, PAIRS), many.features)
    frustum, dense = random(3, 1, 2, 2, 2, seed=4) > 0, random(3, 1, 2, 2, 2)
    check_gradient(lambda leaf: dense_occupancy_loss(leaf.masked_fill(~frustum, -torch.inf), small, weight), dense)


def test_without_a_matched_mask_masks_learn_nothing() -> None:
    output, targets = make_output(), make_targets((0, 0, 0))
    total, found = Stage2Loss(train_num_points=POINTS)(output, *make_image_logits(), targets, seeded(0))
    total.backward()
    assert all(float(found[f"loss_panoptic_{grid}"].detach()) == 0 for grid in GRIDS)
    for part in output.masks:
        leaf = part if isinstance(part, Tensor) else part.features
        assert leaf.grad is not None and not leaf.grad.any()
    assert output.geometry.features.grad is not None and output.geometry.features.grad.any()


def test_without_rows_and_without_a_frustum_losses_are_finite_and_lost_masks_count() -> None:
    output, targets = make_output((0, 0, 0), (0, 0, 0)), make_targets()
    nowhere = torch.zeros(3, 2, 2, 2, dtype=torch.bool)
    output = output._replace(
        occupancies=(dense_in(nowhere, 1, 0), *output.occupancies[1:]), masks=(dense_in(nowhere, QUERIES, 0), *output.masks[1:])
    )
    total, found = Stage2Loss(train_num_points=POINTS)(output, *make_image_logits(), targets, seeded(0))
    total.backward()
    value = {name: float(loss.detach()) for name, loss in found.items()}
    assert {name for name, loss in value.items() if loss} == {"loss_panoptic_128", "loss_panoptic_256"}
    lost = (1.0 * 3 + 0.25 * 2) / (1.0 * 3 + 0.25 * 2)
    assert value["loss_panoptic_128"] == value["loss_panoptic_256"] == lost
    for leaf in leaves_of(output):
        assert leaf.grad is not None and not leaf.grad.any()


def test_samples_without_weight_cost_nothing() -> None:
    output, targets = make_output((0, 7, 5), (30, 11, 0)), make_targets(weight=(0.0, 0.0, 0.0))
    total, _ = Stage2Loss(train_num_points=POINTS)(output, *make_image_logits(), targets, seeded(0))
    total.backward()
    assert float(total.detach()) == 0
    assert not any(leaf.grad.any() for leaf in leaves_of(output) if leaf.grad is not None)


def test_one_of_two_samples_has_the_losses_it_has_alone() -> None:
    output, targets, image = make_output((9, 0), (30, 0)), make_targets((3, 2), (1.0, 0.0)), make_image_logits(2)
    _, both = Stage2Loss(train_num_points=POINTS)(output, *image, targets, seeded(0))
    (dense, *finer), (masks, *finer_masks) = output.occupancies, output.masks
    alone = CompletionOutput(output.geometry, (dense[:1], finer[0], finer[1]), (masks[:1], finer_masks[0], finer_masks[1]))
    first = VolumeTargets(
        Targets(targets.image.labels[:1], targets.image.masks[:1], targets.image.depth[:1], torch.ones(1)),
        targets.geometry[:1],
        tuple(GridTargets(grid.occupancy[:1], grid.weighting[:1], grid.masks[:1]) for grid in targets.grids),  # type: ignore[arg-type]
    )
    _, one = Stage2Loss(train_num_points=POINTS)(alone, image[0][:1], image[1][:1], first, seeded(0))
    for name, value in one.items():
        torch.testing.assert_close(both[name], value)


def test_a_perfect_prediction_costs_almost_nothing() -> None:
    targets = make_targets((2,), (1.0,))
    quarter, half, full = targets.grids

    def certain(true: Tensor) -> Tensor:
        return torch.where(true > 0, 30.0, -30.0)

    def at_all(size: int, volumes: Tensor) -> SparseTensor:
        coords = torch.ones(1, size, size, size).nonzero()
        return sparse_tensor(coords, volumes.flatten(1).T)

    def masks_of(grid: GridTargets) -> Tensor:
        return torch.cat([certain(torch.zeros(1, *grid.masks[0].shape[1:])), certain(grid.masks[0].float())])

    labels = torch.cat([torch.tensor([13]), targets.image.labels[0]])
    class_logits = torch.where(torch.arange(14) == labels[:, None], 30.0, -30.0)[None]
    mask_logits = torch.cat([torch.full((1, 16, 24), -30.0), certain(targets.image.masks[0].float())])[None]
    output = CompletionOutput(
        at_all(SIZE, targets.geometry),
        (
            certain(quarter.occupancy)[:, None],
            at_all(SIZE // 2, certain(half.occupancy)),
            at_all(SIZE, certain(full.occupancy)),
        ),
        (masks_of(quarter)[None], at_all(SIZE // 2, masks_of(half)), at_all(SIZE, masks_of(full))),
    )
    total, found = Stage2Loss(train_num_points=2000)(output, class_logits, mask_logits, targets, seeded(0))
    assert float(total) < 1e-6 and float(found["loss_geometry"]) == 0
    _, wrong = Stage2Loss(train_num_points=2000)(
        output._replace(masks=(-output.masks[0], *output.masks[1:])), class_logits, mask_logits, targets, seeded(0)
    )
    assert float(wrong["loss_panoptic_64"]) > 20


def test_class_weights_are_in_the_state_as_in_released_checkpoints() -> None:
    state = Stage2Loss(no_object_weight=0.2).state_dict()
    assert list(state) == ["empty_weight"]
    torch.testing.assert_close(state["empty_weight"], torch.tensor([1.0] * 13 + [0.2]))


def test_occupancy_needs_a_weight_for_each_grid() -> None:
    with pytest.raises(ConfigError, match="give three"):
        Stage2Loss(completion_weights=(1.0, 2.0))


def make_batch() -> Batch:
    tensors = {
        "depth": torch.ones(2, 5, 7),
        "gt_ids": torch.tensor([4, -1, 9]),
        "gt_classes": torch.tensor([3, 10, 5]),
        "gt_masks": torch.ones(3, 5, 7, dtype=torch.bool),
        "mean_depths": torch.ones(3),
        "geometry": random(2, SIZE, SIZE, SIZE),
    }
    for level, grid in enumerate(reversed(GRIDS)):
        size = SIZE >> level
        tensors[f"occupancy_{grid}"] = random(2, size, size, size, seed=level)
        tensors[f"weighting3d_{grid}"] = random(2, size, size, size, seed=level + 10)
        tensors[f"gt_masks_3d_{grid}"] = random(3, size, size, size, seed=level + 20) > 0
    sizes = ((5, 7), (5, 7))
    return Batch(("a/1", "a/2"), (), sizes, sizes, tensors, torch.tensor([2, 1]))


def test_targets_of_a_batch_are_its_volumes_from_coarse_to_fine() -> None:
    batch = make_batch()
    targets = volume_targets_of(batch, (8, 8))
    assert [label.tolist() for label in targets.image.labels] == [[3, 10], [5]]
    assert [tuple(mask.shape) for mask in targets.image.masks] == [(2, 8, 8), (1, 8, 8)]
    assert targets.geometry is batch["geometry"]
    for name, grid in zip(GRIDS, targets.grids, strict=True):
        assert grid.occupancy is batch[f"occupancy_{name}"] and grid.weighting is batch[f"weighting3d_{name}"]
        assert torch.equal(torch.cat(list(grid.masks)), batch[f"gt_masks_3d_{name}"]) and [len(m) for m in grid.masks] == [2, 1]
    assert [grid.occupancy.shape[-1] for grid in targets.grids] == [2, 4, 8]


def test_a_batch_without_volumes_is_refused() -> None:
    batch = make_batch()
    kept = {name: tensor for name, tensor in batch.tensors.items() if name != "geometry"}
    with pytest.raises(ConfigError, match=r"stage 2 needs dataset\.enable_3d"):
        volume_targets_of(replace(batch, tensors=kept), (8, 8))
