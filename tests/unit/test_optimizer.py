"""How weights move: groups, what is frozen, schedules by value, clipping against torch, seeds."""

import os
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from scenemill.schemas.errors import ConfigError
from scenemill.trainers.nvpanoptix3d.optimizer import (
    Schedule,
    clip_gradients,
    freeze,
    make_optimizer,
    multi_step,
    parameter_groups,
    set_learning_rate,
    set_randomness,
    warmup_poly,
)


class Small(nn.Module):
    """A backbone and heads with a layer of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
        self.heads = nn.ModuleDict(
            {"conv": nn.Conv2d(4, 4, 1), "norm": nn.GroupNorm(2, 4), "batch": nn.BatchNorm2d(4), "query": nn.Embedding(5, 4)}
        )
        self.level = nn.Parameter(torch.ones(3, 4))
        self.again = self.heads["conv"]


def names_of(model: nn.Module, group: dict[str, list[Tensor]]) -> set[str]:
    return {name for name, parameter in model.named_parameters() if any(parameter is held for held in group["params"])}


def test_groups_are_by_module_path_and_kind_of_layer() -> None:
    model = Small()
    groups = {group["name"]: group for group in parameter_groups(model, lr=1.0, weight_decay=0.05, backbone_multiplier=0.1)}
    expected = {
        "backbone": ({"backbone.0.weight", "backbone.0.bias"}, 0.1, 0.05),
        "backbone, no decay": ({"backbone.1.weight", "backbone.1.bias"}, 0.1, 0.0),
        "heads": ({"level", "heads.conv.weight", "heads.conv.bias"}, 1.0, 0.05),
        "heads, no decay": (
            {"heads.norm.weight", "heads.norm.bias", "heads.batch.weight", "heads.batch.bias", "heads.query.weight"},
            1.0,
            0.0,
        ),
    }
    assert set(groups) == set(expected)
    for name, (parameters, lr, decay) in expected.items():
        assert names_of(model, groups[name]) == parameters
        assert groups[name]["lr"] == groups[name]["initial_lr"] == pytest.approx(lr) and groups[name]["weight_decay"] == decay
    assert sum(len(group["params"]) for group in groups.values()) == len(list(model.parameters()))


def test_frozen_parameters_are_in_no_group() -> None:
    model = Small()
    assert freeze(model, ["backbone", "heads.norm.weight", "level"]) == []
    groups = parameter_groups(model, lr=1.0)
    held = set[str]().union(*(names_of(model, group) for group in groups))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert (
        held
        == trained
        == {"heads.conv.weight", "heads.conv.bias", "heads.norm.bias", "heads.query.weight"}
        | {
            "heads.batch.weight",
            "heads.batch.bias",
        }
    )


def test_unknown_paths_are_reported_and_the_rest_is_frozen() -> None:
    model = Small()
    assert freeze(model, ["backbone.7", "", "nothing", "backbone.0"]) == ["backbone.7", "", "nothing"]
    assert not model.backbone[0].weight.requires_grad and model.backbone[1].weight.requires_grad


def test_optimizers_have_the_values_of_the_reference() -> None:
    adam = make_optimizer(Small(), lr=1e-3)
    assert isinstance(adam, torch.optim.AdamW)
    assert all(group["betas"] == (0.9, 0.999) and group["eps"] == 1e-8 for group in adam.param_groups)
    assert {(group["lr"], group["weight_decay"]) for group in adam.param_groups} == {
        (1e-4, 0.05),
        (1e-4, 0.0),
        (1e-3, 0.05),
        (1e-3, 0.0),
    }
    sgd = make_optimizer(Small(), "sgd", lr=1e-3, momentum=0.8)
    assert isinstance(sgd, torch.optim.SGD) and all(group["momentum"] == 0.8 for group in sgd.param_groups)


def test_a_wrong_kind_and_a_model_without_freedom_are_refused() -> None:
    with pytest.raises(ConfigError, match="allowed is AdamW, sgd"):
        make_optimizer(Small(), "lion")
    model = Small()
    freeze(model, ["backbone", "heads", "level"])
    with pytest.raises(ConfigError, match="nothing is left to train"):
        make_optimizer(model)


def test_what_gets_no_gradient_is_not_moved_by_decay() -> None:
    model = Small()
    optimizer = make_optimizer(model, lr=1e-2)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    model.backbone(torch.ones(1, 3)).square().sum().backward()
    optimizer.step()
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved and all(name.startswith("backbone") for name in moved)


def test_warmup_poly_is_a_line_times_a_power() -> None:
    for step in range(101):
        line = 0.25 + 0.75 * step / 20 if step < 20 else 1.0
        assert warmup_poly(step, 100, 0.25, 20) == pytest.approx(line * (1 - step / 100) ** 0.9)
    assert warmup_poly(0, 100) == 1 and warmup_poly(100, 100) == 0  # no warm-up by default
    for step in (-1, 101):
        with pytest.raises(ConfigError, match=f"step {step}: the schedule ends at 100"):
            warmup_poly(step, 100)


def test_multi_step_is_that_of_torch() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    torchs = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 5], gamma=0.3)
    for epoch in range(8):
        assert multi_step(epoch, [5, 2], 0.3) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        torchs.step()


@pytest.mark.parametrize("kind", ["WarmupPoly", "Warmuppoly", "warmuppoly"])
def test_schedules_are_named_in_any_case(kind: str) -> None:
    assert Schedule(kind, max_steps=10).factor(5, 90) == pytest.approx(0.5**0.9)
    assert Schedule(kind.lower().replace("warmuppoly", "MULTISTEP")).factor(5, 90) == pytest.approx(0.1)
    with pytest.raises(ConfigError, match="allowed is MultiStep, WarmupPoly"):
        Schedule("cosine")


def test_every_group_follows_the_schedule_from_its_own_rate() -> None:
    optimizer = make_optimizer(Small(), lr=1e-3)
    for factor in (0.5, 0.25):  # each of the initial rate, not of the last
        set_learning_rate(optimizer, factor)
        for group in optimizer.param_groups:
            assert group["lr"] == pytest.approx((1e-4 if group["name"].startswith("backbone") else 1e-3) * factor)


def test_initial_rates_are_in_the_state() -> None:
    optimizer, other = make_optimizer(Small(), lr=1e-3), make_optimizer(Small(), lr=1.0)
    set_learning_rate(optimizer, 0.5)
    other.load_state_dict(optimizer.state_dict())
    assert [group["lr"] for group in other.param_groups] == [group["lr"] for group in optimizer.param_groups]
    assert [group["initial_lr"] for group in other.param_groups] == [group["initial_lr"] for group in optimizer.param_groups]


def parameters_with_gradients() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    held = [nn.Parameter(torch.ones(shape)) for shape in ((3, 4), (5,), (2, 2), (1,))]
    for parameter, scale in zip(held[:3], (1.0, 10.0, 1e-3), strict=True):
        parameter.grad = scale * torch.randn(parameter.shape, generator=generator)
    return held


def gradients_of(held: list[nn.Parameter]) -> list[Tensor]:
    return [parameter.grad for parameter in held if parameter.grad is not None]


@pytest.mark.parametrize("limit", [0.1, 1e3])
def test_full_clipping_is_that_of_torch(limit: float) -> None:
    ours, torchs = parameters_with_gradients(), parameters_with_gradients()
    norm = clip_gradients(iter(ours), limit, norm_type=1.0)  # the type is of each parameter's norm only
    assert torch.equal(norm, nn.utils.clip_grad_norm_(torchs, limit))
    for mine, theirs in zip(gradients_of(ours), gradients_of(torchs), strict=True):
        assert torch.equal(mine, theirs)
    total = torch.cat([gradient.flatten() for gradient in gradients_of(ours)]).norm()
    assert float(total) == pytest.approx(min(float(norm), limit), rel=1e-4)
    assert ours[3].grad is None


@pytest.mark.parametrize(("norm_type", "order"), [(2.0, 2.0), (1, 1.0), ("inf", float("inf"))])
def test_clipping_each_parameter_leaves_small_gradients_alone(norm_type: float | str, order: float) -> None:
    ours, before = parameters_with_gradients(), parameters_with_gradients()
    norm = clip_gradients(ours, 0.1, norm_type=norm_type, clip_type="norm")
    for mine, theirs in zip(gradients_of(ours), gradients_of(before), strict=True):
        length = float(torch.linalg.vector_norm(theirs, order))
        torch.testing.assert_close(mine, theirs * min(1.0, 0.1 / (length + 1e-6)))
    assert torch.equal(gradients_of(ours)[2], gradients_of(before)[2])
    assert torch.equal(norm, nn.utils.get_total_norm(gradients_of(before)))


@pytest.mark.parametrize("clip_type", ["full", "norm"], ids=["of all", "of each"])
def test_clipping_tells_of_gradients_that_are_no_numbers(clip_type: str) -> None:
    held = parameters_with_gradients()
    gradients_of(held)[0][0, 0] = float("nan")
    assert not clip_gradients(held, clip_type=clip_type).isfinite()
    assert float(clip_gradients([nn.Parameter(torch.ones(2))], clip_type=clip_type)) == 0


def attention_kernels() -> tuple[bool, bool]:
    cuda: Any = torch.backends.cuda  # without types
    return cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled()


@pytest.fixture
def randomness_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cudnn, cuda = torch.backends.cudnn, torch.backends.cuda
    flags = cudnn.benchmark, cudnn.deterministic, *attention_kernels()
    strict, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    yield
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
    cudnn.benchmark, cudnn.deterministic = flags[:2]
    cuda.enable_flash_sdp(flags[2])
    cuda.enable_mem_efficient_sdp(flags[3])
    torch.use_deterministic_algorithms(strict, warn_only=warns)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]


@pytest.mark.usefixtures("randomness_as_before")
def test_a_seed_repeats_all_three_generators() -> None:
    def draws() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    set_randomness(1234)
    first = draws()
    assert draws() != first
    set_randomness(1234)
    assert draws() == first
    set_randomness(-1)  # seeds nothing: the draws go on
    after = draws()
    set_randomness(1234)
    assert draws() == first and after != first
    assert draws() == after


@pytest.mark.usefixtures("randomness_as_before")
@pytest.mark.parametrize("deterministic", [True, False])
def test_repetition_or_speed_is_said_to_torch(deterministic: bool) -> None:
    set_randomness(-1, benchmark=not deterministic, deterministic=deterministic)
    assert torch.backends.cudnn.benchmark != deterministic and torch.backends.cudnn.deterministic == deterministic
    assert torch.are_deterministic_algorithms_enabled() == deterministic
    assert torch.is_deterministic_algorithms_warn_only_enabled() or not deterministic
    assert attention_kernels() == (not deterministic, not deterministic)
