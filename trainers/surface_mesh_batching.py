"""An attribute of a mesh in another kind of batch.

Source: the conversions are those of Kaolin's ``rep.SurfaceMesh``, Apache 2.0.
"""

from typing import Any

import torch

from scenemill.schemas.errors import ConfigError
from scenemill.trainers.surface_mesh_attributes import Batching


def convert_attribute_batching(
    val: Any,
    from_batching: Batching,
    to_batching: Batching,
    is_tensor: bool = True,
    fixed_topology: bool = False,
    batch_size: int | None = None,
) -> Any:
    """A value in another kind of batch; tensors are views of the given ones where that can be.

    Args:
        val: in the form of ``from_batching``: a tensor, or a list of tensors for LIST. Other values than tensors are in a list with one
            for each mesh, for LIST and FIXED alike.
        from_batching: what it is in.
        to_batching: what it shall be in.
        is_tensor: of tensors.
        fixed_topology: one tensor serves all meshes of a FIXED batch.
        batch_size: number of meshes; None for as many as the value tells, one where it does not.

    Raises:
        ConfigError: ``batch_size`` is not that of the value; several meshes for NONE; tensors of a list that cannot be stacked, or that
            differ where one shall serve all.
    """
    told = _told_size(val, from_batching, is_tensor, fixed_topology)
    if batch_size is not None and told not in (None, batch_size):
        raise ConfigError(f"a value of {told} meshes in a batch of {batch_size}; give one for each mesh")
    count = batch_size if batch_size is not None else (1 if told is None else told)
    if from_batching == to_batching or count == 0:
        return val
    if to_batching == Batching.NONE and count != 1:
        raise ConfigError(f"a batch of {count} meshes is not one mesh; take one of them first")
    if not is_tensor:
        return _wrapped(val, from_batching, to_batching)
    one_each = _listed(val, from_batching, fixed_topology, count)
    if to_batching == Batching.LIST:
        return one_each
    if to_batching == Batching.NONE:
        return one_each[0]
    return _common(one_each) if fixed_topology else _stacked(one_each)


def convert_transform(val: torch.Tensor, to_batching: Batching, count: int) -> torch.Tensor:
    """A transform in another kind of batch: (4, 4) for NONE, else (count, 4, 4)."""
    if to_batching == Batching.NONE:
        return val.reshape(4, 4)
    return val.expand(count, 4, 4)


def _told_size(val: Any, batching: Batching, is_tensor: bool, fixed_topology: bool) -> int | None:
    if batching == Batching.NONE:
        return 1
    return None if batching == Batching.FIXED and is_tensor and fixed_topology else len(val)


def _wrapped(val: Any, from_batching: Batching, to_batching: Batching) -> Any:
    if to_batching == Batching.NONE:
        return val[0]
    return [val] if from_batching == Batching.NONE else val


def _listed(val: Any, batching: Batching, fixed_topology: bool, count: int) -> list[torch.Tensor]:
    if batching == Batching.LIST:
        return list(val)
    if batching == Batching.NONE or fixed_topology:
        return [val] * count
    return list(val.unbind(0))


def _stacked(tensors: list[torch.Tensor]) -> torch.Tensor:
    if len({tensor.shape for tensor in tensors}) > 1:
        raise ConfigError(f"tensors of {[list(tensor.shape) for tensor in tensors]} cannot be stacked; give equal shapes")
    return torch.stack(tensors) if len(tensors) > 1 else tensors[0].unsqueeze(0)


def _common(tensors: list[torch.Tensor]) -> torch.Tensor:
    if not all(torch.equal(tensor, tensors[0]) for tensor in tensors[1:]):
        raise ConfigError("the meshes have different faces; only meshes with the same faces make a FIXED batch")
    return tensors[0]
