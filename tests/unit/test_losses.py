"""Losses of stage 1: every formula against plain loops, the order of draws against a recount, gradients, empty images."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed
from torch.nn import functional

from scenemill.schemas.errors import ConfigError
from scenemill.trainers.collate import Batch
from scenemill.trainers.nvpanoptix3d.losses import (
    Stage1Loss,
    Targets,
    class_loss,
    depth_loss,
    mask_losses,
    mean_mask_count,
    occupancy_loss,
    targets_of,
    uncertain_points,
    weighted_mean,
)
from scenemill.trainers.nvpanoptix3d.matching import draw_points, match, sample_points

CLASSES = 13
POINTS = 50


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_targets(counts: tuple[int, ...] = (3, 2), weight: tuple[float, ...] = (1.0, 0.5)) -> Targets:
    """Made-up images of 16 x 24 pixels; planes of 4 x 6."""
    images = len(counts)
    return Targets(
        labels=[torch.randint(1, CLASSES, (count,), generator=seeded(count)) for count in counts],
        masks=[random(count, 16, 24, seed=count) > 0 for count in counts],
        depth=random(images, 16, 24, seed=1).clamp(min=0),
        loss_weight=torch.tensor(weight),
        mp_occ=random(images, 5, 4, 6, seed=2) > 0,
        transformed_depth=random(images, 4, 6, seed=3).clamp(min=0),
    )


def make_predictions(images: int = 2, layers: int = 2, *, seed: int = 0) -> dict[str, Any]:
    def output(layer: int) -> dict[str, Tensor]:
        masks = (2 * random(images, 6, 8, 12, seed=seed + 20 + layer)).requires_grad_()
        return {"pred_logits": random(images, 6, CLASSES + 1, seed=seed + 10 + layer).requires_grad_(), "pred_masks": masks}

    return output(0) | {
        "aux_outputs": [output(layer) for layer in range(1, layers + 1)],
        "pred_depths": random(images, 1, 10, 14, seed=seed + 30).abs().requires_grad_(),
        "occupancy_preds": random(images, 5, 4, 6, seed=seed + 40).requires_grad_(),
    }


def tensors_of(predictions: dict[str, Any]) -> list[Tensor]:
    """All tensors, in the order of their keys."""
    flat = [value for value in predictions.values() if isinstance(value, Tensor)]
    return flat + [value for output in predictions["aux_outputs"] for value in output.values()]


def test_weighted_mean_divides_by_the_weights() -> None:
    values = torch.tensor([1.0, 2.0, 6.0])
    assert float(weighted_mean(values, torch.tensor([1.0, 0.0, 0.5]))) == pytest.approx((1 + 3) / 1.5)
    assert float(weighted_mean(values, torch.zeros(3))) == 0
    assert float(weighted_mean(torch.zeros(0), torch.zeros(0))) == 0
    assert float(weighted_mean(values, torch.full((3,), 1e-13))) == pytest.approx(9e-13 / 1e-12, rel=1e-4)


def test_class_loss_is_a_plain_mean_over_queries() -> None:
    logits = random(2, 4, CLASSES + 1)
    labels, pairs = [torch.tensor([5, 7]), torch.tensor([2])], [([1, 3], [1, 0]), ([0], [0])]
    weight, scale = [1.0, 0.25], [1.0] * CLASSES + [0.1]
    true = [[13, 7, 13, 5], [2, 13, 13, 13]]
    per_image = [
        sum(scale[t] * (math.log(sum(math.exp(v) for v in row)) - float(row[t])) for row, t in zip(image, ts, strict=True)) / 4
        for image, ts in zip(logits, true, strict=True)
    ]
    expected = sum(w * value for w, value in zip(weight, per_image, strict=True)) / 1.25
    matched = [(torch.tensor(queries), torch.tensor(masks)) for queries, masks in pairs]
    found = class_loss(logits, labels, matched, torch.tensor(weight), torch.tensor(scale))
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_mask_losses_are_their_formulas() -> None:
    logits, true = 3 * random(3, 8, 12, seed=1), random(3, 16, 24, seed=2) > 0
    points, weight = draw_points((3, POINTS), "cpu", seeded(3)), [1.0, 0.5, 0.5]
    entropies, dices = [], []
    for index in range(3):
        xs = sample_points(logits[index][None, None], points[index][None]).flatten().tolist()
        ts = sample_points(true[index][None, None].float(), points[index][None]).flatten().tolist()
        pairs = list(zip(xs, ts, strict=True))
        entropies.append(sum(t * math.log1p(math.exp(-x)) + (1 - t) * math.log1p(math.exp(x)) for x, t in pairs) / POINTS)
        inside = [1 / (1 + math.exp(-x)) for x in xs]
        shared = sum(s * t for s, t in zip(inside, ts, strict=True))
        dices.append(1 - (2 * shared + 1) / (sum(inside) + sum(ts) + 1))
    found = mask_losses(logits, true, points, torch.tensor(weight))
    for value, per_mask in zip(found, (entropies, dices), strict=True):
        assert float(value) == pytest.approx(sum(w * x for w, x in zip(weight, per_mask, strict=True)) / 2, rel=1e-5)


def test_depth_loss_counts_known_pixels_of_the_resized_target() -> None:
    predicted, depth = random(2, 1, 5, 7).abs(), random(2, 10, 14, seed=1).clamp(min=0)
    true = functional.interpolate(depth[:, None], size=(5, 7), mode="bilinear", align_corners=False)  # zeros included
    blocks = depth.view(2, 5, 2, 7, 2).mean(dim=(2, 4))  # which is what halving is
    torch.testing.assert_close(true[:, 0], blocks)
    errors = []
    for image in range(2):
        known = [(float(p), float(t)) for p, t in zip(predicted[image].flatten(), blocks[image].flatten(), strict=True) if t > 0]
        assert 5 < len(known) < 35 or blocks[image].min() > 0
        errors.append(sum(abs(p - t) for p, t in known) / len(known))
    found = depth_loss(predicted, depth, torch.tensor([1.0, 3.0]))
    assert float(found) == pytest.approx((errors[0] + 3 * errors[1]) / 4, rel=1e-5)


def test_depth_that_is_nowhere_known_has_no_error_and_no_gradient() -> None:
    predicted, depth = random(2, 1, 5, 7).abs().requires_grad_(), random(2, 5, 7, seed=1).abs() + 1
    depth[1] = 0
    loss = depth_loss(predicted, depth, torch.ones(2))
    assert float(loss.detach()) == pytest.approx(float((predicted[0, 0] - depth[0]).abs().mean().detach()) / 2)
    (gradient,) = torch.autograd.grad(loss, predicted)
    assert gradient[0].all() and not gradient[1].any()


def test_occupancy_is_summed_over_planes_and_averaged_over_known_pixels() -> None:
    logits, occupied = random(3, 4, 2, 3), random(3, 4, 2, 3, seed=1) > 0
    depth = torch.tensor([[[0.0, 1.0, 2.0], [0.0, 0.0, -1.0]], [[1.0] * 3] * 2, [[0.0] * 3] * 2])
    errors = []
    for image in range(3):
        total, pixels = 0.0, 0
        for v in range(2):
            for u in range(3):
                if depth[image, v, u] != 0:
                    pixels += 1
                    for s in range(4):
                        sign = -1 if occupied[image, s, v, u] else 1
                        total += math.log1p(math.exp(sign * float(logits[image, s, v, u])))
        errors.append(total / max(pixels, 1))
    assert errors[2] == 0
    found = occupancy_loss(logits, occupied, depth, torch.tensor([1.0, 2.0, 1.0]))
    assert float(found) == pytest.approx((errors[0] + 2 * errors[1]) / 4, rel=1e-5)


@pytest.mark.parametrize(("oversample", "importance", "chosen"), [(3.0, 0.75, 37), (1.0, 1.0, 50), (2.5, 0.0, 0)])
def test_points_are_the_least_certain_candidates_and_fresh_ones(oversample: float, importance: float, chosen: int) -> None:
    logits = 4 * random(4, 8, 12).requires_grad_()
    found = uncertain_points(logits, POINTS, oversample=oversample, importance=importance, generator=seeded(5))
    generator = seeded(5)
    candidates = torch.rand(4, int(oversample * POINTS), 2, generator=generator)
    fresh = torch.rand(4, POINTS - chosen, 2, generator=generator)
    assert found.shape == (4, POINTS, 2) and not found.requires_grad
    assert torch.equal(found[:, chosen:], fresh)
    for mask in range(4):
        certainty = sample_points(logits.detach()[mask][None, None], candidates[mask][None]).flatten().abs()
        expected = candidates[mask][certainty.argsort()[:chosen]]
        assert {tuple(point) for point in found[mask, :chosen].tolist()} == {tuple(point) for point in expected.tolist()}


def test_draws_come_in_the_order_that_is_promised() -> None:
    """Matching points image by image, candidates, the rest; then the same of the auxiliary outputs."""
    predictions, targets = make_predictions(), make_targets()
    loss = Stage1Loss(train_num_points=POINTS)
    _, found = loss(predictions, targets, seeded(7))
    generator = seeded(7)
    outputs = [("", predictions), ("_0", predictions["aux_outputs"][0]), ("_1", predictions["aux_outputs"][1])]
    for suffix, output in outputs:
        drawn = [torch.rand(1, POINTS, 2, generator=generator)[0] for _ in range(2)]
        pairs = match(output["pred_logits"], output["pred_masks"], targets.labels, targets.masks, drawn)
        predicted = torch.cat([output["pred_masks"][image][queries] for image, (queries, _) in enumerate(pairs)])
        true = torch.cat([targets.masks[image][masks] for image, (_, masks) in enumerate(pairs)])
        points = uncertain_points(predicted, POINTS, generator=generator)
        weight = torch.tensor([1.0] * 3 + [0.5] * 2)
        mask, dice = mask_losses(predicted, true, points, weight)
        entropy = class_loss(output["pred_logits"], targets.labels, pairs, targets.loss_weight, loss.empty_weight)
        assert torch.equal(found[f"loss_mask{suffix}"], mask) and torch.equal(found[f"loss_dice{suffix}"], dice)
        assert torch.equal(found[f"loss_ce{suffix}"], entropy)


def test_the_same_generator_state_gives_the_same_losses() -> None:
    predictions, targets, loss = make_predictions(), make_targets(), Stage1Loss(train_num_points=POINTS)
    generator = seeded(1)
    state = generator.get_state()
    first, _ = loss(predictions, targets, generator)
    other, _ = loss(predictions, targets, generator)
    generator.set_state(state)
    again, _ = loss(predictions, targets, generator)
    torch.manual_seed(1)
    of_torch, _ = loss(predictions, targets)
    assert torch.equal(first, again) and torch.equal(first, of_torch) and not torch.equal(first, other)


def test_total_is_the_weighted_sum_and_names_are_those_of_the_reference() -> None:
    predictions, targets = make_predictions(), make_targets()
    loss = Stage1Loss(
        class_weight=1.5, mask_weight=2.5, dice_weight=3.5, depth_weight=4.5, mp_occ_weight=0.5, train_num_points=POINTS
    )
    total, found = loss(predictions, targets, seeded(0))
    per_layer = {f"loss_{kind}{suffix}" for kind in ("ce", "mask", "dice") for suffix in ("", "_0", "_1")}
    assert set(found) == per_layer | {"loss_depth", "loss_mp_occ"}
    scale = {"ce": 1.5, "mask": 2.5, "dice": 3.5, "depth": 4.5, "mp": 0.5}
    expected = sum(scale[name.split("_")[1]] * float(value.detach()) for name, value in found.items())
    assert float(total.detach()) == pytest.approx(expected, rel=1e-5)


def test_auxiliary_outputs_are_taught_only_with_deep_supervision() -> None:
    predictions, targets = make_predictions(), make_targets()
    total, found = Stage1Loss(train_num_points=POINTS, deep_supervision=False)(predictions, targets, seeded(0))
    _, deep = Stage1Loss(train_num_points=POINTS)(predictions, targets, seeded(0))
    assert set(found) == {"loss_ce", "loss_mask", "loss_dice", "loss_depth", "loss_mp_occ"}
    assert all(torch.equal(found[name], deep[name]) for name in found)
    total.backward()
    assert predictions["aux_outputs"][0]["pred_masks"].grad is None


def test_class_weights_are_in_the_state_as_in_released_checkpoints() -> None:
    state = Stage1Loss(no_object_weight=0.2).state_dict()
    assert list(state) == ["empty_weight"]
    torch.testing.assert_close(state["empty_weight"], torch.tensor([1.0] * 13 + [0.2]))


def test_every_prediction_has_a_finite_gradient() -> None:
    predictions = make_predictions()
    total, _ = Stage1Loss(train_num_points=POINTS)(predictions, make_targets(), seeded(0))
    total.backward()
    for tensor in tensors_of(predictions):
        assert tensor.grad is not None and tensor.grad.isfinite().all() and tensor.grad.any()


def test_queries_without_a_mask_learn_nothing_about_masks() -> None:
    predictions, targets = make_predictions(1, 0), make_targets((2,), (1.0,))
    Stage1Loss(train_num_points=POINTS)(predictions, targets, seeded(0))[0].backward()
    touched = predictions["pred_masks"].grad[0].flatten(1).any(dim=1)
    assert int(touched.sum()) == 2
    assert predictions["pred_logits"].grad[0].any(dim=1).all()


def test_an_image_without_masks_teaches_classes_alone() -> None:
    predictions, targets = make_predictions(), make_targets((0, 2), (1.0, 1.0))
    total, found = Stage1Loss(train_num_points=POINTS)(predictions, targets, seeded(0))
    total.backward()
    assert all(value.isfinite() for value in found.values())
    assert not predictions["pred_masks"].grad[0].any() and predictions["pred_masks"].grad[1].any()
    assert predictions["pred_logits"].grad[0].any()


def test_a_batch_without_any_mask_depth_or_occupancy_has_zero_gradients() -> None:
    """All void: every gradient exists, as several processes need, and is zero; classes learn "no object"."""
    predictions, targets = make_predictions(), make_targets((0, 0), (1.0, 1.0))
    nothing = torch.zeros_like
    depth, planes = nothing(targets.depth), torch.zeros(2, 4, 6)
    total, found = Stage1Loss(train_num_points=POINTS)(
        predictions, replace(targets, depth=depth, transformed_depth=planes), seeded(0)
    )
    total.backward()
    assert {name for name, value in found.items() if value != 0} == {"loss_ce", "loss_ce_0", "loss_ce_1"}
    for name in ("pred_masks", "pred_depths", "occupancy_preds"):
        assert torch.equal(predictions[name].grad, nothing(predictions[name]))
    assert predictions["pred_logits"].grad.isfinite().all() and predictions["pred_logits"].grad.any()


def test_a_batch_without_weight_costs_nothing() -> None:
    predictions = make_predictions()
    total, _ = Stage1Loss(train_num_points=POINTS)(predictions, make_targets(weight=(0.0, 0.0)), seeded(0))
    total.backward()
    assert float(total.detach()) == 0
    assert not any(tensor.grad.any() for tensor in tensors_of(predictions) if tensor.grad is not None)


def test_weights_of_images_decide_and_more_masks_than_queries_do_not_matter() -> None:
    predictions, targets = make_predictions(), make_targets((9, 2), (0.0, 2.0))
    _, found = Stage1Loss(train_num_points=POINTS)(predictions, targets, seeded(0))
    sum(found.values()).backward()
    assert not predictions["pred_logits"].grad[0].any() and predictions["pred_logits"].grad[1].any()
    assert not predictions["pred_depths"].grad[0].any() and not predictions["occupancy_preds"].grad[0].any()


def test_a_perfect_prediction_costs_almost_nothing() -> None:
    targets = make_targets((2,), (1.0,))
    masks = torch.full((1, 6, 16, 24), -30.0)
    masks[0, 1:3] = torch.where(targets.masks[0], 30.0, -30.0)
    logits = torch.full((1, 6, 14), -30.0)
    logits[0, :, 13] = 30
    logits[0, [1, 2]] = torch.where(torch.arange(14) == targets.labels[0][:, None], 30.0, -30.0)
    assert targets.mp_occ is not None
    output: dict[str, Any] = {"pred_logits": logits, "pred_masks": masks}
    output |= {"pred_depths": targets.depth[:, None], "occupancy_preds": torch.where(targets.mp_occ, 30.0, -30.0)}
    _, found = Stage1Loss(train_num_points=4000, importance_sample_ratio=0.0)(output, targets, seeded(0))
    values = {name: float(value) for name, value in found.items()}
    assert values["loss_ce"] < 1e-6 and values["loss_depth"] == 0 and values["loss_mp_occ"] < 1e-6
    assert values["loss_dice"] < 0.25  # between pixels a true mask is neither 0 nor 1


def test_targets_without_occupancy_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"stage 1 needs dataset\.enable_mp_occ"):
        Stage1Loss(train_num_points=POINTS)(make_predictions(), replace(make_targets(), mp_occ=None))


def make_batch() -> Batch:
    tensors = {
        "depth": torch.ones(2, 5, 7),
        "gt_ids": torch.tensor([4, -1, 9]),
        "gt_classes": torch.tensor([3, 10, 5]),
        "gt_masks": torch.ones(3, 5, 7, dtype=torch.bool),
        "mean_depths": torch.ones(3),
        "mp_occ": torch.zeros(2, 3, 4, 4, dtype=torch.bool),
        "transformed_depth": torch.ones(2, 4, 4),
    }
    sizes = ((5, 7), (5, 7))
    return Batch(("a/1", "a/2"), (), sizes, sizes, tensors, torch.tensor([2, 1]))


def test_targets_of_a_batch_are_padded_like_the_images() -> None:
    targets = targets_of(make_batch(), (8, 8))
    assert [label.tolist() for label in targets.labels] == [[3, 10], [5]]
    assert [tuple(mask.shape) for mask in targets.masks] == [(2, 8, 8), (1, 8, 8)]
    for padded in (*targets.masks, targets.depth):
        assert padded[:, :5, :7].all() and not padded[:, 5:].any() and not padded[:, :, 7:].any()
    assert targets.loss_weight.tolist() == [1.0, 1.0]
    assert targets.mp_occ is not None and targets.transformed_depth is not None
    with pytest.raises(ConfigError, match="give their padded size"):
        targets_of(make_batch(), (8, 6))


def test_targets_of_a_batch_without_planes_have_none() -> None:
    batch = make_batch()
    kept = {name: tensor for name, tensor in batch.tensors.items() if name not in {"mp_occ", "transformed_depth"}}
    targets = targets_of(replace(batch, tensors=kept), (5, 7))
    assert targets.mp_occ is None and targets.transformed_depth is None


def test_masks_are_counted_by_weight_and_one_at_least() -> None:
    masks = [torch.zeros(3, 2, 2), torch.zeros(0, 2, 2), torch.zeros(4, 2, 2)]
    assert float(mean_mask_count(masks, torch.tensor([1.0, 1.0, 0.5]))) == 5
    assert float(mean_mask_count(masks, torch.tensor([0.1, 1.0, 0.1]))) == 1


def test_masks_are_counted_on_average_over_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    masks, weight = [torch.zeros(3, 2, 2)], torch.ones(1)
    if not distributed.is_available():
        pytest.skip("this torch has no processes that talk")
    distributed.init_process_group("gloo", init_method=(tmp_path / "store").as_uri(), rank=0, world_size=1)
    try:
        assert float(mean_mask_count(masks, weight)) == 3
        monkeypatch.setattr(distributed, "all_reduce", lambda total: total.add_(7))  # a second process has 7
        monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
        assert float(mean_mask_count(masks, weight)) == 5
    finally:
        distributed.destroy_process_group()
