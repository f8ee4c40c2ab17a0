"""The form of multi-view renders of one object: file names, file contents, and what is odd about them.

    <i>_rgb.png            colour; alpha is dropped
    <i>_metadata.json      camera: ``view_cameras.py``
    <i>_semantic.npy       label of the pixel, (H, W) or (H, W, 1); 0 is background. Or <i>_semantic.png
    <i>_instance.npy       instance id of the pixel, of these shapes
    <i>_depth_linear.npy   distance along the view axis; infinite or 0 where nothing is seen
    <i>_normals.png        normals; alpha is dropped

Colour and metadata are there for every view, the others where they are. ``<i>`` counts from 0. All lie in one folder, the scene, or
in a folder for each scene (``view_folders.py``).

Source: the synthetic views that ``kaolin.io.render`` of NVIDIA Kaolin imports.
"""

import re
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from scenemill.schemas.errors import SourceError
from scenemill.schemas.sample import SampleKey
from scenemill.transforms import images, npz
from scenemill.transforms.sources import Arrays, RawFile
from scenemill.transforms.view_cameras import intrinsics_of, read_metadata, world_from_camera_of
from scenemill.transforms.view_folders import KIND_OF_ENDING, number_of_rgb

_IMAGE_ID: Final = re.compile(r"\d+\Z", re.ASCII)
_LABEL_DTYPES: Final = ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "bool")
_DEPTH_DTYPES: Final = ("float32", "float64", "float16")
_LIMIT_BYTE: Final = 1 << 28
_COLORS: Final = {"RGB": "uint8", "RGBA": "uint8"}


def paths(key: SampleKey) -> dict[str, str]:
    """Kind -> path inside a folder that holds a folder for each scene.

    Raises:
        SourceError: the image id is no number.

    >>> paths(SampleKey("clock", "7"))["depth_linear"]
    'clock/7_depth_linear.npy'
    """
    if not _IMAGE_ID.match(key.image):
        raise SourceError("list", f"image id {key.image!r}", "the number of a view: the <i> of <i>_rgb.png")
    return {kind: f"{key.scene}/{key.image}_{ending}" for ending, kind in KIND_OF_ENDING.items()}


def image_of_rgb(name: str) -> str:
    """Image id of a colour file's name, or "" for any other file."""
    return number_of_rgb(name)


def _rgb(data: bytes, arrays: Arrays, facts: dict[str, Any]) -> None:
    arrays["rgb"][...] = images.read_png(data, arrays["rgb"].shape[:2], _COLORS)[..., :3]


def _normals(data: bytes, arrays: Arrays, facts: dict[str, Any]) -> None:
    arrays["normals"][...] = images.read_png(data, arrays["normals"].shape[:2], _COLORS)[..., :3]


def _metadata(data: bytes, arrays: Arrays, facts: dict[str, Any]) -> None:
    """Fills the camera; the facts say it in the terms of the other sources too, and what the checks hold it against."""
    read = read_metadata(data)
    arrays["camera_transform"][...] = read.transform
    arrays["camera_projection"][...] = read.projection
    facts.update(
        intrinsics=intrinsics_of(read.projection, read.image).ravel().tolist(),
        world_from_camera=world_from_camera_of(read.transform).ravel().tolist(),
        resolution=read.image,
        clipping_range=read.clipping_range,
        asset_position=read.assets[0][1][3, :3].tolist() if read.assets else None,
    )


def _semantic(data: bytes, arrays: Arrays, facts: dict[str, Any]) -> None:
    facts["semantic_is_npy"] = True
    _fill_labels(_map(data, arrays["semantic"].shape, _LABEL_DTYPES), arrays["semantic"])


def _semantic_image(data: bytes, arrays: Arrays, facts: dict[str, Any]) -> None:
    if "semantic_is_npy" in facts:
        raise SourceError("twice", "a semantic map as npy and as png", "one of the two: remove the other")
    modes = {"L": "uint8", "1": "uint8", "I;16": "uint16", "I": "int32"}
    _fill_labels(images.read_png(data, arrays["semantic"].shape, modes), arrays["semantic"])


def _instance(data: bytes, arrays: Arrays, facts: dict[str, Any]) -> None:
    _fill_labels(_map(data, arrays["instance"].shape, _LABEL_DTYPES), arrays["instance"])


def _depth(data: bytes, arrays: Arrays, facts: dict[str, Any]) -> None:
    depth = _map(data, arrays["depth"].shape, _DEPTH_DTYPES)
    arrays["depth"][...] = np.where(np.isposinf(depth), 0, depth)


def _map(data: bytes, shape: tuple[int, ...], dtypes: tuple[str, ...]) -> NDArray[Any]:
    """The (H, W) map of an npy file that holds (H, W) or (H, W, 1)."""
    found = npz.read_npy(data, None, dtypes, _LIMIT_BYTE)
    if found.shape not in (shape, (*shape, 1)):
        raise SourceError("shape", str(found.shape)[:80], f"{shape} or {(*shape, 1)}, as the image")
    return found.reshape(shape)


def _fill_labels(values: NDArray[Any], target: NDArray[Any]) -> None:
    most = np.iinfo(target.dtype).max
    if values.min() < 0 or values.max() > most:
        raise SourceError("range", f"labels from {values.min()} to {values.max()}", f"0 to {most}")
    target[...] = values


FILES: Final = (
    RawFile("rgb", ("rgb",), _rgb),
    RawFile("metadata", ("camera_transform", "camera_projection"), _metadata),
    RawFile("semantic", ("semantic",), _semantic, required=False),
    RawFile("semantic_image", ("semantic",), _semantic_image, required=False),
    RawFile("instance", ("instance",), _instance, required=False),
    RawFile("depth_linear", ("depth",), _depth, required=False),
    RawFile("normals", ("normals",), _normals, required=False),
)
