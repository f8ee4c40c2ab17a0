"""One 3D-Front view as the public loaders prepare it for training, from the raw files: what the fast path must equal, and outrun.

Written from the data sheet's description of the operations, whole arrays at a time: ``np.load`` of whole members, float64 to float32,
labels as int64, torch's own interpolation and max-pooling. It knows nothing of the store. Nothing in it is slow on purpose.

    from reference import ReferenceDataset, stage2_sample
    sample = stage2_sample(root, raw_files(source, listed))

Volumes are (X, Y, Z), image-aligned; N is the number of targets: kept things by ascending raw id, then stuff by ascending class.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path

import numpy as np
import OpenEXR
import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows it by
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

IGNORED = 255  # the training label of pixels without a class
LIMIT_VOXEL = 12.0  # distances end here, in the files and in what is interpolated
COARSE_OCCUPIED_VOXEL = {128: 6.0, 64: 8.0}  # ``occ_truncation_lvl``
DEPTH_SIZE = (160, 120)  # (width, height)

Tensors = dict[str, Tensor]
Read = Callable[[Path, Mapping[str, str]], Tensors]


def reference_2d_sample(root: Path, paths: Mapping[str, str], *, stuff: Sequence[int] = (10, 11), min_pixels: int = 200) -> Tensors:
    """Image, depth and 2D targets of one view.

    Args:
        root: the folder above ``data/``.
        paths: kind of raw file -> path inside ``root``.
        stuff: classes that get one mask each where they occur.
        min_pixels: things of this many pixels or fewer are no targets.

    Returns:
        ``image`` (3, H, W) uint8; ``depth`` (H, W) and ``depth_160x120`` (120, 160) float32, metres; ``semantic_2d`` (void is 255) and
        ``instance_2d`` (H, W) int64; ``gt_classes``, ``gt_ids`` (raw instance id, -1 for stuff) (N,) int64; ``gt_masks`` (N, H, W)
        bool; ``gt_depths`` (N,) float32, mean over the mask's pixels that have a depth.
    """
    with Image.open(root / paths["rgb"]) as file:
        image = torch.from_numpy(np.array(file.convert("RGB"))).permute(2, 0, 1).contiguous()
    depth = np.array(OpenEXR.File(str(root / paths["depth"])).channels()["Z"].pixels, np.float32)
    with np.load(root / paths["segmap"]) as archive:
        segmap = archive["data"].astype(np.int64)
    semantic, instance = segmap[..., 0].copy(), segmap[..., 1].copy()
    semantic[semantic == 0] = IGNORED

    classes, ids, masks = [], [], []
    for number in np.unique(instance):
        mask = instance == number
        if number <= 0 or np.count_nonzero(mask) <= min_pixels:
            continue
        labels, votes = np.unique(semantic[mask], return_counts=True)
        label = int(labels[np.argmax(votes)])  # on a tie the smallest
        if label != IGNORED and label not in stuff:
            classes.append(label)
            ids.append(int(number))
            masks.append(mask)
    for label in sorted(stuff):
        mask = semantic == label
        if mask.any():
            classes.append(label)
            ids.append(-1)
            masks.append(mask)

    stacked = torch.from_numpy(np.stack(masks) if masks else np.zeros((0, *semantic.shape), bool))
    inside = torch.from_numpy(depth) * stacked
    means = inside.sum((1, 2)) / (inside > 0).sum((1, 2)).clamp(min=1)
    return {
        "image": image,
        "depth": torch.from_numpy(depth),
        "depth_160x120": torch.from_numpy(np.array(Image.fromarray(depth).resize(DEPTH_SIZE, Image.Resampling.NEAREST))),
        "semantic_2d": torch.from_numpy(semantic),
        "instance_2d": torch.from_numpy(instance),
        "gt_classes": torch.tensor(classes, dtype=torch.int64),
        "gt_ids": torch.tensor(ids, dtype=torch.int64),
        "gt_masks": stacked,
        "gt_depths": means,
    }


def stage2_sample(
    root: Path,
    paths: Mapping[str, str],
    *,
    truncation: float = LIMIT_VOXEL,
    stuff: Sequence[int] = (10, 11),
    min_pixels: int = 200,
) -> Tensors:
    """All that the 3D stage trains on, of one view.

    Args:
        root: the folder above ``data/`` and ``meta/``.
        paths: kind of raw file -> path inside ``root``.
        truncation: where ``geometry`` and ``occupancy_256`` end, in voxels.
        stuff: classes that get one mask each where the image shows them.
        min_pixels: things of this many pixels or fewer are no targets.

    Returns:
        The arrays of ``reference_2d_sample`` and, for s in 256, 128, 64: ``geometry`` (256^3) float32; ``occupancy_<s>`` (s^3) float32,
        0 or 1; ``weighting3d_<s>`` (s^3) float32; ``gt_masks_3d_<s>`` (N, s^3) bool; ``frustum_mask`` (256^3) and
        ``frustum_mask_64`` (64^3) bool, the same tensors for every view: not to be written to.
    """
    sample = reference_2d_sample(root, paths, stuff=stuff, min_pixels=min_pixels)
    sample |= _distances(root / paths["geometry"], truncation)
    sample |= _weights(root / paths["weighting"])
    sample |= _masks(root / paths["segmentation"], sample["gt_ids"], sample["gt_classes"])
    sample |= _frustum(root / "meta" / "frustum_mask.npz")
    return sample


def _distances(path: Path, truncation: float) -> Tensors:
    with np.load(path) as archive:
        stored = archive["data"].astype(np.float32)
    distance = np.clip(np.abs(np.flip(stored, (0, 1))), 0.0, LIMIT_VOXEL)
    field = torch.from_numpy(np.ascontiguousarray(distance))
    geometry = field.clamp(max=truncation)
    coarse = {f"occupancy_{size}": (_resize(field, size) < limit).float() for size, limit in COARSE_OCCUPIED_VOXEL.items()}
    return {"geometry": geometry, "occupancy_256": (field < truncation).float(), **coarse}


def _weights(path: Path) -> Tensors:
    with np.load(path) as archive:
        stored = archive["data"]
    weights = torch.from_numpy(np.flip(stored, (0, 1)).astype(np.float32))
    return {"weighting3d_256": weights} | {f"weighting3d_{size}": _resize(weights, size) for size in (128, 64)}


def _masks(path: Path, ids: Tensor, classes: Tensor) -> Tensors:
    with np.load(path) as archive:
        stored = archive["data"]
    semantic, instance = torch.from_numpy(np.flip(stored, (1, 2)).astype(np.int64))
    masks = torch.zeros((len(ids), *semantic.shape), dtype=torch.bool)
    for mask, number, label in zip(masks, ids.tolist(), classes.tolist(), strict=True):
        torch.eq(*((semantic, label) if number < 0 else (instance, number)), out=mask)
    full = masks[:, None].float()
    return {
        "gt_masks_3d_256": masks,
        "gt_masks_3d_128": F.max_pool3d(full, kernel_size=4, stride=2, padding=1)[:, 0].bool(),
        "gt_masks_3d_64": F.max_pool3d(full, kernel_size=8, stride=4, padding=2)[:, 0].bool(),
    }


@cache
def _frustum(path: Path) -> Tensors:
    """Read once: one file serves the whole dataset."""
    with np.load(path) as archive:
        inside = torch.from_numpy(np.flip(archive["mask"], (0, 1)).copy())
    coarse = F.max_pool3d(inside[None, None].float(), kernel_size=2, stride=4)[0, 0].bool()
    return {"frustum_mask": inside, "frustum_mask_64": coarse}


def _resize(volume: Tensor, size: int) -> Tensor:
    return F.interpolate(volume[None, None], size=(size, size, size), mode="trilinear", align_corners=True)[0, 0]


class ReferenceDataset(Dataset[Tensors]):
    """The views of a raw folder one by one, for ``DataLoader(..., batch_size=None, num_workers=2)``: N differs from view to view.

    Args:
        root: the folder above ``data/``.
        views: kind of raw file -> path inside ``root``, per view.
        truncation: where ``geometry`` and ``occupancy_256`` end, in voxels.
        only_2d: True for the 2D stage's arrays alone.
    """

    def __init__(
        self, root: Path, views: Sequence[Mapping[str, str]], *, truncation: float = LIMIT_VOXEL, only_2d: bool = False
    ) -> None:
        self.root = root
        self.views = [dict(view) for view in views]
        self.read: Read = reference_2d_sample if only_2d else partial(stage2_sample, truncation=truncation)

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, index: int) -> Tensors:
        return self.read(self.root, self.views[index])
