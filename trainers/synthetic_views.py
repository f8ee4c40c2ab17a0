"""One synthetic view of an object as tensors, straight from its files: a drop-in for ``kaolin.io.render.import_synthetic_view``.

A store of such views (``scenemill ingest views``) gives the same numbers, checked; see ``transforms/views.py`` for the files.

Source: the function of that name of NVIDIA Kaolin 0.18.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scenemill.schemas.errors import SourceError
from scenemill.transforms.view_cameras import ViewMetadata, field_of_view_of, projection_of, read_metadata


def import_synthetic_view(
    root_dir: str | os.PathLike[str],
    idx: int,
    rgb: bool = True,
    depth_linear: bool = False,
    semantic: bool = False,
    instance: bool = False,
    normals: bool = False,
    bbox_2d_tight: bool = False,
    bbox_2d_loose: bool = False,
    *,
    legacy_projection: bool = False,
    strict: bool = False,
) -> dict[str, Any]:
    """Read one view.

    Args:
        root_dir: folder of the views.
        idx: number of the view, from 0.
        rgb, depth_linear, semantic, instance, normals, bbox_2d_tight, bbox_2d_loose: what to read.
        legacy_projection: True for Kaolin's projection, which takes the horizontal angle for the vertical one: other only where the
            image is not square.
        strict: True to raise where something asked for is missing, instead of giving None.

    Returns:
        A key for each thing asked for:

        - ``rgb``, ``normals``: (H, W, 3) float32, bytes / 255; normals as stored, not brought to -1..1; alpha is dropped;
        - ``depth_linear``, ``semantic``, ``instance``: tensors of the stored dtype and shape;
        - ``bbox_2d_tight``, ``bbox_2d_loose``: lists as they stand in the metadata;

        and always ``metadata``: ``cam_transform`` (4, 3) float32, camera from world for rows; ``cam_proj`` (3, 1) float32;
        ``asset_transforms`` (4, 4) float32 of the first asset, where there is one; ``clipping_range``, two numbers. Views of one size
        collate with PyTorch's own ``default_collate``.

    Raises:
        SourceError: the metadata are missing, or a file is damaged; with ``strict``, anything asked for is missing.
    """
    view = Path(root_dir)
    metadata = read_metadata(_read(view / f"{idx}_metadata.json"))
    images = {"rgb": rgb, "normals": normals}
    arrays = {"depth_linear": depth_linear, "semantic": semantic, "instance": instance}
    boxes = {"bbox_2d_tight": bbox_2d_tight, "bbox_2d_loose": bbox_2d_loose}
    found: dict[str, Any] = {name: _import_png(view / f"{idx}_{name}.png") for name, asked in images.items() if asked}
    found |= {name: _import_npy(view / f"{idx}_{name}.npy") for name, asked in arrays.items() if asked}
    found |= {name: metadata.boxes.get(name) for name, asked in boxes.items() if asked}
    missing = [name for name, value in found.items() if value is None]
    if strict and missing:
        raise SourceError("presence", f"no {', '.join(missing)} of view {idx}", f"{view / f'{idx}_{missing[0]}'}.*, or its entry")
    return {**found, "metadata": _as_tensors(metadata, legacy_projection)}


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SourceError("presence", f"no readable file ({error.strerror})", str(path)) from error


def _import_png(path: Path) -> Tensor | None:
    """(H, W, 3) float32 from 0 to 1; None where there is no such file."""
    from scenemill.transforms.images import probe_size, read_png

    if not path.is_file():
        return None
    data = _read(path)
    pixels = read_png(data, probe_size(data), {"RGB": "uint8", "RGBA": "uint8"})
    return torch.from_numpy(np.array(pixels[..., :3])).float() / 255


def _import_npy(path: Path) -> Tensor | None:
    if not path.is_file():
        return None
    try:
        return torch.from_numpy(np.load(path, allow_pickle=False))
    except (ValueError, EOFError, TypeError) as error:
        raise SourceError("container", f"no readable array ({str(error)[:120]})", f"numbers in {path}") from error


def _as_tensors(metadata: ViewMetadata, legacy_projection: bool) -> dict[str, Any]:
    projection = metadata.projection
    if legacy_projection:
        projection = projection_of(field_of_view_of(projection), metadata.image, legacy=True)
    tensors: dict[str, Any] = {
        "cam_transform": torch.tensor(metadata.transform, dtype=torch.float32),
        "cam_proj": torch.tensor(projection, dtype=torch.float32),
        "clipping_range": list(metadata.clipping_range),
    }
    if metadata.assets:
        tensors["asset_transforms"] = torch.tensor(metadata.assets[0][1], dtype=torch.float32)
    return tensors
