"""Meshes in words: a line for each attribute.

Source: the form of the lines is that of Kaolin's ``rep.SurfaceMesh``, Apache 2.0.
"""

from collections.abc import Iterable
from typing import Any

import torch


def tensor_info(tensor: torch.Tensor, name: str = "", print_stats: bool = False, detailed: bool = False) -> str:
    """A tensor in a line: its shape, dtype and device.

    Args:
        tensor: of any kind.
        name: stands before it.
        print_stats: also the smallest and largest value and the mean.
        detailed: also gradient, leaf and layout.

    >>> tensor_info(torch.zeros(2, 3), "points", print_stats=True)
    'points: [2, 3] (torch.float32)[cpu]  - [min 0.0000, max 0.0000, mean 0.0000] '
    """
    stats, details = "", ""
    if print_stats:
        smallest, largest = (tensor.min().item(), tensor.max().item()) if tensor.numel() else (float("nan"), float("nan"))
        stats = f" - [min {smallest:.4f}, max {largest:.4f}, mean {tensor.double().mean().item():.4f}]"
    if detailed:
        details = f" - req_grad={tensor.requires_grad}, is_leaf={tensor.is_leaf}, device={tensor.device}, layout={tensor.layout}"
    return f"{name}: {list(tensor.shape)} ({tensor.dtype})[{tensor.device}] {stats} {details}"


def describe(name: str, value: Any, is_batch: bool, print_stats: bool = False, detailed: bool = False) -> str:
    """An attribute of a mesh: a line, or one for each mesh of a list.

    Args:
        name: of the attribute.
        value: a tensor, a list of tensors, materials, or a setting.
        is_batch: of several meshes, each with a list of materials.
        print_stats, detailed: as in ``tensor_info``.
    """
    if isinstance(value, torch.Tensor):
        return tensor_info(value, f"{name:>20}", print_stats, detailed)
    if not isinstance(value, list):
        return f"{name:>20}: {value}"
    if name == "materials":
        return _block(name, (f"{_length(one)}" for one in value)) if is_batch else f"{name:>20}: {_length(value)}"
    return _block(name, (tensor_info(one, "", print_stats, detailed).removeprefix(": ") for one in value))


def _length(materials: Any) -> str:
    return f"list of length {len(materials)}"


def _block(name: str, lines: Iterable[str]) -> str:
    inner = [f"{number:>23}: {line}" for number, line in enumerate(lines)]
    return "\n".join([f"{name:>20}: [", *inner, f"{']':>23}"])
