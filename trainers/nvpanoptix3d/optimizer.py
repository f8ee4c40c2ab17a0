"""How weights move: which are frozen, how fast and with how much decay each of the others goes, and how far in one step.

A schedule has no state: its factor is a function of the step and the epoch, so a run that goes on has it at once, with the number of
steps of its present configuration.

Source: the optimiser of NvPanoptix3D as described in its fact sheet, which is that of Mask2Former.
"""

import os
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from scenemill.schemas.errors import ConfigError

NORMS: Final = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.GroupNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    nn.LayerNorm,
    nn.RMSNorm,
)
"""The normalisation layers; one of our own is a subclass."""

OPTIMIZERS: Final = ("adamw", "sgd")
SCHEDULES: Final = ("multistep", "warmuppoly")

_BETAS: Final = (0.9, 0.999)
_EPS: Final = 1e-8
_POWER: Final = 0.9


def set_randomness(seed: int, *, benchmark: bool = False, deterministic: bool = True) -> None:
    """Seed everything that draws, and say whether speed or repetition matters more.

    Loader processes draw their seeds from torch's.

    Args:
        seed: of Python, NumPy and torch, below 2^32; below 0 nothing is seeded.
        benchmark: cuDNN tries its algorithms and takes the fastest.
        deterministic: take algorithms that repeat themselves where there are any, and warn where there are none.
    """
    if seed >= 0:
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)  # of all devices
    torch.backends.cudnn.benchmark = benchmark
    torch.backends.cudnn.deterministic = deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # matrix products of a GPU repeat themselves only with it
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # thousands of writes a step, read by nothing
    torch.backends.cuda.enable_flash_sdp(not deterministic)
    torch.backends.cuda.enable_mem_efficient_sdp(not deterministic)


def freeze(model: nn.Module, paths: Iterable[str]) -> list[str]:
    """Take the gradient from parts of a model.

    Args:
        model: what is changed.
        paths: of modules or parameters, as ``backbone`` or ``sem_seg_head.predictor.class_embed.weight``.

    Returns:
        The paths at which the model has nothing; they are the caller's to report.
    """
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters())
    unknown = []
    for path in paths:
        if path in parameters:
            parameters[path].requires_grad_(False)
        elif path and path in modules:
            modules[path].requires_grad_(False)
        else:
            unknown.append(path)
    return unknown


def parameter_groups(
    model: nn.Module, *, lr: float, weight_decay: float = 0.05, backbone_multiplier: float = 0.1
) -> list[dict[str, Any]]:
    """The parameters that have a gradient, grouped by rate and decay; each once, however often it is used.

    Args:
        model: what is trained.
        lr: learning rate; times ``backbone_multiplier`` in modules whose path contains ``backbone``.
        weight_decay: of all but normalisation layers and embeddings, which have none.
        backbone_multiplier: see ``lr``.

    Returns:
        Of each group ``name``, ``params``, ``lr``, ``initial_lr`` and ``weight_decay``; in the order of its first parameter.
    """
    groups: dict[str, dict[str, Any]] = {}
    seen = set[Tensor]()
    for path, module in model.named_modules():
        slow, bare = "backbone" in path, isinstance(module, (*NORMS, nn.Embedding))
        name = f"{'backbone' if slow else 'heads'}{', no decay' if bare else ''}"
        rate = lr * backbone_multiplier if slow else lr
        for parameter in module.parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            new = {"name": name, "params": [], "lr": rate, "initial_lr": rate, "weight_decay": 0.0 if bare else weight_decay}
            groups.setdefault(name, new)["params"].append(parameter)
    return list(groups.values())


def make_optimizer(
    model: nn.Module,
    kind: str = "AdamW",
    *,
    lr: float = 2e-4,
    weight_decay: float = 0.05,
    backbone_multiplier: float = 0.1,
    momentum: float = 0.9,
) -> torch.optim.Optimizer:
    """An optimiser over ``parameter_groups``.

    Args:
        model: what is trained.
        kind: AdamW or SGD, upper or lower case.
        lr, weight_decay, backbone_multiplier: see ``parameter_groups``.
        momentum: of SGD.

    Raises:
        ConfigError: no such kind, or nothing to train.
    """
    if kind.lower() not in OPTIMIZERS:
        raise ConfigError(f"train.optim.type {kind!r}: allowed is AdamW, sgd")
    groups = parameter_groups(model, lr=lr, weight_decay=weight_decay, backbone_multiplier=backbone_multiplier)
    if not groups:
        raise ConfigError("nothing is left to train: every parameter is frozen; shorten train.freeze")
    if kind.lower() == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=momentum, weight_decay=weight_decay)
    return torch.optim.AdamW(groups, lr=lr, betas=_BETAS, eps=_EPS, weight_decay=weight_decay)


def warmup_poly(step: int, max_steps: int, warmup_factor: float = 1.0, warmup_iters: int = 0) -> float:
    """The share of the learning rate that a step has: a line up from ``warmup_factor``, times (1 - step / max_steps)^0.9.

    Args:
        step: steps done before, 0..``max_steps``.
        max_steps: where the rate is 0.
        warmup_factor: where the line begins.
        warmup_iters: steps until the line is at 1.

    Raises:
        ConfigError: ``step`` is beyond ``max_steps``, where there is no value.

    >>> [round(warmup_poly(step, 100, 0.1, 10), 3) for step in (0, 5, 10, 100)]
    [0.1, 0.525, 0.91, 0.0]
    """
    if not 0 <= step <= max_steps:
        raise ConfigError(f"step {step}: the schedule ends at {max_steps}; stop there, or raise train.optim.max_steps")
    done = step / warmup_iters if step < warmup_iters else 1.0
    return float((warmup_factor * (1 - done) + done) * (1 - step / max_steps) ** _POWER)


def multi_step(epoch: int, milestones: Sequence[int], gamma: float = 0.1) -> float:
    """The share of the learning rate that an epoch has: ``gamma`` for every milestone reached.

    Args:
        epoch: epochs done before.
        milestones: epochs.
        gamma: factor at each.

    >>> [round(multi_step(epoch, [2, 4]), 3) for epoch in (0, 1, 2, 3, 4)]
    [1.0, 1.0, 0.1, 0.1, 0.01]
    """
    return float(gamma ** sum(milestone <= epoch for milestone in milestones))


@dataclass(frozen=True)
class Schedule:
    """How the learning rate changes. Names and defaults are those of ``train.optim`` in a specification file.

    Attributes:
        kind: MultiStep or WarmupPoly, upper or lower case.
        max_steps, warmup_factor, warmup_iters: of WarmupPoly.
        milestones, gamma: of MultiStep; milestones in epochs.
    """

    kind: str = "MultiStep"
    max_steps: int = 160_000
    warmup_factor: float = 1.0
    warmup_iters: int = 0
    milestones: tuple[int, ...] = (88, 96)
    gamma: float = 0.1

    def __post_init__(self) -> None:
        if self.kind.lower() not in SCHEDULES:
            raise ConfigError(f"train.optim.lr_scheduler {self.kind!r}: allowed is MultiStep, WarmupPoly")

    def factor(self, step: int, epoch: int) -> float:
        """The share of the learning rate of a step.

        Args:
            step: steps done before, in all epochs.
            epoch: epochs done before.
        """
        if self.kind.lower() == "multistep":
            return multi_step(epoch, self.milestones, self.gamma)
        return warmup_poly(step, self.max_steps, self.warmup_factor, self.warmup_iters)


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Give every group its initial learning rate times ``factor``, for the steps to come."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


def clip_gradients(
    parameters: Iterable[Tensor], limit: float = 0.1, *, norm_type: float | str = 2.0, clip_type: str = "full"
) -> Tensor:
    """Shorten gradients that are too long.

    Args:
        parameters: whose gradients are changed; those without one are left out.
        limit: of the norm, above 0.
        norm_type: of each parameter's norm, ``inf`` for the largest entry; of the norm of all it is always 2.
        clip_type: ``full`` for one L2 norm of all gradients; anything else for a norm of each parameter's.

    Returns:
        () float32: the L2 norm of all gradients before; not finite if one of them is not.
    """
    held = [parameter for parameter in parameters if parameter.grad is not None]
    if clip_type == "full":
        return nn.utils.clip_grad_norm_(held, limit)
    total = nn.utils.get_total_norm([parameter.grad for parameter in held if parameter.grad is not None])
    for parameter in held:
        nn.utils.clip_grad_norm_(parameter, limit, norm_type=float(norm_type))
    return total
