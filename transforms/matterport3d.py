"""The Matterport3D form: file names, file contents, and what is odd about them.

Volumes lie in the files image-aligned. Geometry is signed and carries the mask of what is outside the frustum; depth is a 16-bit
PNG in quarters of a millimetre; the third channel of the segmap is a room index.

Source: panoptic-reconstruction (Dahnert et al. 2021) and BUOL (re-rendered depth and room masks), measured on a released file.
"""

import re
from typing import Any, Final

import numpy as np

from scenemill.schemas.errors import SourceError
from scenemill.schemas.sample import SampleKey
from scenemill.transforms import images, npz
from scenemill.transforms.front3d import LABEL_DTYPES, read_segmap
from scenemill.transforms.sources import Arrays, RawFile

DEPTH_UNITS_PER_M: Final = 4000.0
_IMAGE_ID: Final = re.compile(r"([A-Za-z0-9]+)_(\d)_(\d)\Z", re.ASCII)
_RGB_NAME: Final = re.compile(r"([A-Za-z0-9]+)_i(\d)_(\d)\.jpg\Z", re.ASCII)


def paths(key: SampleKey) -> dict[str, str]:
    """Kind -> path inside the root.

    Raises:
        SourceError: the image id is not ``<name>_<angle>_<rot>``.

    >>> paths(SampleKey("QUCTc6BB5sX", "4e87_1_4"))["depth"]
    'depth_gen/QUCTc6BB5sX/4e87_d1_4.png'
    """
    match = _IMAGE_ID.match(key.image)
    if not match:
        raise SourceError("list", f"image id {key.image!r}", "<name>_<angle>_<rot>")
    name, angle, rot = match.groups()
    view = f"{angle}_{rot}"
    folder = f"data/{key.scene}"
    return {
        "rgb": f"{folder}/{name}_i{view}.jpg",
        "depth": f"depth_gen/{key.scene}/{name}_d{view}.png",
        "segmap": f"{folder}/{name}_segmap{view}.mapped.npz",
        "intrinsics": f"{folder}/{name}_intrinsics_{angle}.npy",
        "room_mask": f"room_mask/{key.scene}/{name}_rm{view}.png",
        "geometry": f"{folder}/{name}_geometry{view}.npz",
        "segmentation": f"{folder}/{name}_segmentation{view}.mapped.npz",
        "weighting": f"{folder}/{name}_weighting{view}.npz",
    }


def image_of_rgb(name: str) -> str:
    """Image id of a colour file's name, or "" for any other file."""
    match = _RGB_NAME.match(name)
    return "_".join(match.groups()) if match else ""


def _rgb(data: bytes, arrays: Arrays, facts: dict[str, Any]) -> None:
    arrays["rgb"][...] = images.read_jpeg(data, arrays["rgb"].shape[:2])


def _depth(data: bytes, arrays: Arrays, facts: dict[str, Any]) -> None:
    units = images.read_png(data, arrays["depth"].shape, {"I;16": "uint16"})
    np.divide(units, DEPTH_UNITS_PER_M, out=arrays["depth"], dtype=np.float32)


def _segmap(data: bytes, arrays: Arrays, facts: dict[str, Any]) -> None:
    read_segmap(data, (arrays["semantic_2d"], arrays["instance_2d"], arrays["room"]))


def _intrinsics(data: bytes, arrays: Arrays, facts: dict[str, Any]) -> None:
    arrays["intrinsics"][...] = npz.read_npy(data, (4, 4), ("float64", "float32"))


def _room_mask(data: bytes, arrays: Arrays, facts: dict[str, Any]) -> None:
    pixels = images.read_png(data, arrays["room_mask"].shape, {"L": "uint8", "1": "uint8", "I;16": "uint16"})
    if pixels.max() > 255:
        raise SourceError("range", f"values up to {pixels.max()}", "0 to 255")
    arrays["room_mask"][...] = pixels


def _geometry(data: bytes, arrays: Arrays, facts: dict[str, Any]) -> None:
    facts["geometry_float32_exact"] = npz.read_volumes(data, "data", [arrays["geometry"]], ("float32", "float64"), rotated=False)
    npz.read_volumes(data, "mask", [arrays["outside"]], ("bool",), rotated=False)


def _segmentation(data: bytes, arrays: Arrays, facts: dict[str, Any]) -> None:
    npz.read_volumes(data, "data", [arrays["semantic_3d"], arrays["instance_3d"]], LABEL_DTYPES, rotated=False)


def _weighting(data: bytes, arrays: Arrays, facts: dict[str, Any]) -> None:
    npz.read_volumes(data, "data", [arrays["weighting"]], LABEL_DTYPES, rotated=False)


FILES: Final = (
    RawFile("rgb", ("rgb",), _rgb),
    RawFile("depth", ("depth",), _depth),
    RawFile("segmap", ("semantic_2d", "instance_2d", "room"), _segmap),
    RawFile("intrinsics", ("intrinsics",), _intrinsics),
    RawFile("room_mask", ("room_mask",), _room_mask, required=False),
    RawFile("geometry", ("geometry", "outside"), _geometry, volume=True),
    RawFile("segmentation", ("semantic_3d", "instance_3d"), _segmentation, volume=True),
    RawFile("weighting", ("weighting",), _weighting, volume=True),
)
"""Cheap files first."""
