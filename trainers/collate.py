"""Putting examples together: a batch, the one buffer it travels in, and its dense volumes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from torch import Tensor

from scenemill.schemas.dataset import DatasetConfig
from scenemill.schemas.errors import ConfigError
from scenemill.trainers.augment import IGNORE_LABEL
from scenemill.trainers.examples import Example, Skipped
from scenemill.trainers.order import Visit
from scenemill.trainers.volumes import LEVELS, Canvas, VolumeBatch, expand, join, mask_offsets

_PADDING: Final = {"image": 128, "semantic": IGNORE_LABEL}  # of images smaller than the largest of their batch; anything else: 0
_OF_INSTANCES: Final = ("gt_", "mean_depths")  # what has a row for each instance begins so; anything else has one for each sample


@dataclass(frozen=True)
class InstanceTargets:
    """What one sample of a batch teaches about instances: things by ascending id, then stuff by ascending class.

    Attributes:
        gt_ids: (N,) int64, raw instance ids; -1 for stuff.
        gt_classes: (N,) int64.
        gt_masks: (N, H, W) bool.
        gt_depths: (N, H, W) float32, the depth map in metres, N times the same memory.
        mean_depths: (N,) float32, metres.
        loss_weight: of this sample; below 1 for a generated image.
        gt_masks_3d_256, gt_masks_3d_128, gt_masks_3d_64: (N, g, g, g) bool at the full, half and quarter grid; None without volumes.
    """

    gt_ids: Tensor
    gt_classes: Tensor
    gt_masks: Tensor
    gt_depths: Tensor
    mean_depths: Tensor
    loss_weight: float = 1.0
    gt_masks_3d_256: Tensor | None = None
    gt_masks_3d_128: Tensor | None = None
    gt_masks_3d_64: Tensor | None = None


@dataclass(frozen=True)
class Batch:
    """Samples stacked on a device, with their keys.

    ``batch["image"]`` and so on are the stacked tensors; ``tensors`` has them all:

    - image: (B, 3, H, W) uint8, RGB. semantic: (B, H, W) uint8. depth: (B, H, W) float32, metres, 0 invalid.
    - intrinsic: (B, 4, 4) float32, pixels of ``target_size``. transformed_depth: (B, 120, 160) float32, metres.
    - mp_occ: (B, 100, 120, 160) bool, occupied cells of the planes in front of the camera.
    - room_mask: (B, H, W) bool, room_mask_buol: (B, 120, 160) bool; Matterport3D.
    - raw_sem_seg: (B, h, w) uint8 with void as 13, raw_inst_seg, raw_depth: int32, depth in 1/256 m; validation and test.
    - semantic_3d: (B, g, g, g) uint8, instance_3d: (B, g, g, g) int32, classes and instances; validation and test, with volumes.
    - what ``volumes.expand`` lists, and frustum_mask: (B, g, g, g) bool, True inside; with volumes.

    Attributes:
        keys: ``scene/image`` of each sample.
        visits: the place of each sample in the order.
        sizes: (height, width) of each stored image.
        unpadded: (height, width) of each image without padding.
        tensors: see above.
        masks_of: (B,) int64, instances of each sample.
        volumes: blocks that are not expanded yet; None otherwise.
        skipped: samples left out or replaced because they could not be read.
        loss_weights: of each sample; empty for 1 each.
    """

    keys: tuple[str, ...]
    visits: tuple[Visit, ...]
    sizes: tuple[tuple[int, int], ...]
    unpadded: tuple[tuple[int, int], ...]
    tensors: dict[str, Tensor]
    masks_of: Tensor
    volumes: VolumeBatch | None = None
    skipped: tuple[Skipped, ...] = ()
    loss_weights: tuple[float, ...] = ()

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    @property
    def instances(self) -> list[InstanceTargets]:
        """The instances of each sample, as views of the batch's tensors."""
        volumes = [f"gt_masks_3d_{level}" for level in LEVELS if f"gt_masks_3d_{level}" in self.tensors]
        weights = self.loss_weights or (1.0,) * len(self.masks_of)
        found = []
        for sample, (first, end) in enumerate(mask_offsets(self.masks_of)):
            ids, classes, masks, mean_depths, *dense = (
                self.tensors[name][first:end] for name in ("gt_ids", "gt_classes", "gt_masks", "mean_depths", *volumes)
            )
            depth = self.tensors["depth"][sample]
            depths = depth.expand(end - first, *depth.shape)
            found.append(InstanceTargets(ids, classes, masks, depths, mean_depths, weights[sample], *dense))
        return found

    def one(self, sample: int) -> "Batch":
        """The batch of one of its samples alone, as views.

        Raises:
            ConfigError: its volumes are blocks still.
        """
        if self.volumes is not None:
            raise ConfigError("a batch whose volumes are blocks has no part of one sample: expand it first")
        first, end = mask_offsets(self.masks_of)[sample]
        own = {
            name: tensor[first:end] if name.startswith(_OF_INSTANCES) else tensor[sample : sample + 1]
            for name, tensor in self.tensors.items()
        }
        here = slice(sample, sample + 1)
        return Batch(
            self.keys[here],
            self.visits[here],
            self.sizes[here],
            self.unpadded[here],
            own,
            self.masks_of[here],
            loss_weights=self.loss_weights[here],
        )

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "Batch":
        """The same on another device; ``masks_of`` stays, the host asks for it."""
        device = torch.device(device)
        moved = {name: tensor.to(device, non_blocking=non_blocking) for name, tensor in self.tensors.items()}
        volumes = None if self.volumes is None else self.volumes.to(device, non_blocking=non_blocking)
        return replace(self, tensors=moved, volumes=volumes)

    def pin_memory(self) -> "Batch":
        """The same in page-locked memory, from which a GPU copies by itself."""
        pinned = {name: tensor.pin_memory() for name, tensor in self.tensors.items()}
        return replace(self, tensors=pinned, volumes=None if self.volumes is None else self.volumes.pin_memory())

    @property
    def size_byte(self) -> int:
        """Bytes of all tensors and blocks."""
        return sum(tensor.nbytes for tensor in self.tensors.values()) + (0 if self.volumes is None else self.volumes.size_byte)


def collate(examples: Sequence[Example | Skipped]) -> Batch:
    """Examples as one batch; smaller images are padded at the right and below with what their maps hold there.

    Returns:
        The batch, its volumes still blocks; without the skipped, which it lists.
    """
    found = [example for example in examples if isinstance(example, Example)]
    replaced = [example.replaces for example in found if example.replaces is not None]
    skipped = [example for example in examples if isinstance(example, Skipped)]
    names = found[0].tensors if found else ()
    tensors = {name: _stack([example.tensors[name] for example in found], _PADDING.get(name, 0)) for name in names}
    instances = [example.instances for example in found]
    if found:
        size = tensors["image"].shape[-2:]
        masks = [_padded(torch.from_numpy(held.masks), size, 0) for held in instances]
        tensors["gt_masks"] = torch.cat(masks) if len(masks) > 1 else masks[0]
        tensors["gt_ids"] = torch.from_numpy(np.concatenate([held.ids for held in instances]))
        tensors["gt_classes"] = torch.from_numpy(np.concatenate([held.classes for held in instances]))
        tensors["mean_depths"] = torch.from_numpy(np.concatenate([held.mean_depth for held in instances]))
    volumes = [example.volumes for example in found if example.volumes is not None]
    return Batch(
        keys=tuple(example.key for example in found),
        visits=tuple(example.visit for example in found),
        sizes=tuple(example.size for example in found),
        unpadded=tuple(example.unpadded for example in found),
        tensors=tensors,
        masks_of=torch.tensor([len(held.ids) for held in instances], dtype=torch.int64),
        volumes=join(volumes) if volumes else None,
        skipped=(*skipped, *replaced),
        loss_weights=tuple(example.loss_weight for example in found),
    )


def _stack(tensors: Sequence[Tensor], fill: int) -> Tensor:
    if len(tensors) == 1:
        return tensors[0][None]
    if len({tensor.shape for tensor in tensors}) == 1:
        return torch.stack(list(tensors))
    height, width = (max(tensor.shape[axis] for tensor in tensors) for axis in (-2, -1))
    return torch.stack([_padded(tensor, (height, width), fill) for tensor in tensors])


def _padded(tensor: Tensor, size: Sequence[int], fill: int) -> Tensor:
    below, right = size[0] - tensor.shape[-2], size[1] - tensor.shape[-1]
    return torch.nn.functional.pad(tensor, (0, right, 0, below), value=fill) if below or right else tensor


def occupancy_below(config: DatasetConfig) -> tuple[float, float, float]:
    """The thresholds of occupancy at the full, the half and the quarter grid, in voxels."""
    quarter, half = config.occ_truncation_lvl
    return config.occupancy_band, half, quarter


def expand_batch(batch: Batch, config: DatasetConfig, frustum: Tensor | None, canvas: Canvas | None = None) -> Batch:
    """A batch with its volumes dense, on the device they are on.

    Args:
        batch: of ``collate``.
        config: what the batch was made by.
        frustum: (g, g, g) bool on the same device, where all samples share one; not copied per sample.
        canvas: CPU memory to draw in again; None for new memory.
    """
    if batch.volumes is None:
        return batch
    dense = expand(batch.volumes, occupancy_below(config), canvas)
    if frustum is not None:
        dense["frustum_mask"] = frustum.expand(len(batch), *frustum.shape)
    return replace(batch, tensors=batch.tensors | dense, volumes=None)


_ALIGNED_BYTE: Final = 64
_Slot = tuple[str, torch.dtype, tuple[int, ...], int]  # of a tensor: name, dtype, shape, first byte


@dataclass(frozen=True)
class Packed:
    """A batch whose tensors are one buffer: one hand-over between processes, one copy to a GPU, whatever their number.

    Attributes:
        buffer: (bytes,) uint8.
        slots: where each tensor lies in it.
        rest: the batch without its tensors.
    """

    buffer: Tensor
    slots: tuple[_Slot, ...]
    rest: Batch

    def pin_memory(self) -> "Packed":
        """The same in page-locked memory, from which a GPU copies by itself."""
        return replace(self, buffer=self.buffer.pin_memory())

    def unpack(self, device: torch.device) -> Batch:
        """The batch on a device; its tensors are views of one copy of the buffer, or of the buffer itself."""
        buffer = self.buffer.to(device, non_blocking=True)
        tensors = {name: _view(buffer, dtype, shape, start) for name, dtype, shape, start in self.slots}
        blocks = {name.removeprefix(_VOLUMES): tensors.pop(name) for name in list(tensors) if name.startswith(_VOLUMES)}
        volumes = self.rest.volumes
        return replace(self.rest, tensors=tensors, volumes=None if volumes is None else volumes.with_tensors(blocks))


_VOLUMES: Final = "volumes."


def pack(batch: Batch) -> Packed:
    """A batch as one buffer."""
    tensors = dict(batch.tensors)
    volumes = batch.volumes
    if volumes is not None:
        blocks = volumes.tensors()
        tensors |= {_VOLUMES + name: tensor for name, tensor in blocks.items()}
        volumes = volumes.with_tensors({name: tensor[:0].clone() for name, tensor in blocks.items()})
    slots, size = [], 0
    for name, tensor in tensors.items():
        slots.append((name, tensor.dtype, tuple(tensor.shape), size))
        size += -(-tensor.nbytes // _ALIGNED_BYTE) * _ALIGNED_BYTE
    buffer = torch.empty(size, dtype=torch.uint8)
    for name, dtype, shape, start in slots:
        _view(buffer, dtype, shape, start).copy_(tensors[name])
    return Packed(buffer, tuple(slots), replace(batch, tensors={}, volumes=volumes))


def _view(buffer: Tensor, dtype: torch.dtype, shape: tuple[int, ...], start: int) -> Tensor:
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    return buffer[start : start + size].view(dtype).view(shape)
