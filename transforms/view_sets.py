"""Sets of cameras and images in the form of NeRF's Blender scenes, as folders of views.

A ``transforms.json`` names images beside it and the pose of each; several of them (``transforms_train.json``, ``transforms_val.json``)
become one scene with split lists. Colours are laid on black by their alpha, and a pixel at least half opaque is object.

Source: the data of "NeRF: Representing Scenes as Neural Radiance Fields for View Synthesis" (2020), which states no clipping range.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from scenemill.schemas.errors import ConfigError, SourceError
from scenemill.schemas.sample import SampleKey
from scenemill.transforms import folders, images
from scenemill.transforms.view_cameras import SetCamera, ViewMetadata, projection_of, read_camera_set
from scenemill.transforms.view_writing import ObjectView, write_view

_LIMIT_BYTE: Final = 1 << 26
_ANY_RANGE: Final = (1e-3, 1e6)  # holds whatever a scene's unit is
_OPAQUE: Final = 128


def convert_camera_sets(files: Sequence[Path], out: Path) -> int:
    """Write the views of one or more camera sets into a folder, numbered as they are listed.

    Args:
        files: ``transforms.json`` or several ``transforms_SPLIT.json``; several also make the lists ``SPLIT.txt``.
        out: folder to write, new or empty; its name is that of the scene.

    Returns:
        The number of views.

    Raises:
        ConfigError: a file is no camera set, two are of one split, or ``out`` has something in it.
        SourceError: an image is missing, damaged or lies outside the file's folder.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists and is not an empty folder. Name a new folder, or remove this one first.")
    splits = [file.stem.removeprefix("transforms_") for file in files]
    if not files or len(set(splits)) < len(splits):
        raise ConfigError(f"camera sets of the splits {', '.join(splits) or 'none'}; give each once: transforms_SPLIT.json")
    scene = SampleKey(out.resolve().name, "0").scene
    sets = [read_camera_set(_load(file), str(file)) for file in files]
    out.mkdir(parents=True, exist_ok=True)
    number = 0
    for file, split, cameras in zip(files, splits, sets, strict=True):
        for place, camera in enumerate(cameras, number):
            view, metadata = _convert(file.resolve().parent, camera)
            write_view(out, place, view, metadata)
        numbers = range(number, number + len(cameras))
        if len(files) > 1:
            (out / f"{split}.txt").write_text("".join(f"{scene}/{place}\n" for place in numbers), encoding="utf-8")
        number += len(cameras)
    return number


def _load(file: Path) -> object:
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"camera set {file}: no readable JSON ({str(error)[:120]}); give a transforms.json") from error


def _convert(root: Path, camera: SetCamera) -> tuple[ObjectView, ViewMetadata]:
    pixels = _read_image(root, camera.image)
    size = pixels.shape[:2]
    metadata = ViewMetadata(camera.transform, projection_of(camera.fov_x, size), size, _ANY_RANGE, (), {})
    if pixels.shape[2] == 3:
        return ObjectView(pixels), metadata
    alpha = pixels[..., 3]
    rgb = np.rint(pixels[..., :3] * (alpha[..., None] / 255)).astype(np.uint8)
    return ObjectView(rgb, (alpha >= _OPAQUE).astype(np.int32)), metadata


def _read_image(root: Path, path: str) -> NDArray[Any]:
    """(H, W, 3) or (H, W, 4) uint8; a path without an ending is that of a PNG."""
    named = path if Path(path).suffix.lower() in (".png", ".jpg", ".jpeg") else f"{path}.png"
    try:
        data = folders.read_file(root, named.removeprefix("./"), _LIMIT_BYTE)
        size = images.probe_size(data)
        if named.endswith(".png"):
            return images.read_png(data, size, {"RGB": "uint8", "RGBA": "uint8"})
        return images.read_jpeg(data, size)
    except SourceError as error:
        raise SourceError(error.check, f"{named[:200]}: {error.observed}", error.expected) from error
