"""The 3D-Front form: file names, file contents, and what is odd about them.

Volumes lie in the files rotated by 180 degrees about the depth axis (axes 0 and 1 reversed); they leave this module image-aligned.
The ``intrinsic`` inside campose files does not fit the images; K is the constant of the dataset.

Source: panoptic-reconstruction (Dahnert et al. 2021), measured on released files.
"""

import re
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from scenemill.schemas.errors import SourceError
from scenemill.schemas.sample import SampleKey
from scenemill.transforms import geometry, images, npz
from scenemill.transforms.sources import Arrays, RawFile

LABEL_DTYPES: Final = ("uint32", "int32", "uint16", "int16", "uint8", "int64", "uint64")
CAMPOSE: Final = {
    "camera2world": ((4, 4), "float64"),
    "blender_matrix": ((4, 4), "float64"),
    "blender_location": ((3,), "float64"),
    "blender_rotation_euler": ((3,), "float64"),
    "intrinsic": ((3, 3), "float64"),
    "fov_x": ((), "float64"),
    "fov_y": ((), "float64"),
    "room_id": ((), "int64"),
}
"""Arrays of a campose file: shape and dtype."""

_RGB_NAME: Final = re.compile(r"rgb_(\d{4,})\.png\Z", re.ASCII)
_IMAGE_ID: Final = re.compile(r"\d{4,}\Z", re.ASCII)


def paths(key: SampleKey) -> dict[str, str]:
    """Kind -> path inside the root.

    Raises:
        SourceError: the image id is not one of this form.

    >>> paths(SampleKey("scene", "0001"))["segmap"]
    'data/scene/segmap_0001.mapped.npz'
    """
    if not _IMAGE_ID.match(key.image):
        raise SourceError("list", f"image id {key.image!r}", "at least four digits")
    folder, image = f"data/{key.scene}", key.image
    return {
        "rgb": f"{folder}/rgb_{image}.png",
        "depth": f"{folder}/depth_{image}.exr",
        "segmap": f"{folder}/segmap_{image}.mapped.npz",
        "geometry": f"{folder}/geometry_{image}.npz",
        "segmentation": f"{folder}/segmentation_{image}.mapped.npz",
        "weighting": f"{folder}/weighting_{image}.npz",
        "campose": f"{folder}/campose_{image}.npz",
    }


def image_of_rgb(name: str) -> str:
    """Image id of a colour file's name, or "" for any other file."""
    match = _RGB_NAME.match(name)
    return match[1] if match else ""


def constant(field: str, image: tuple[int, int]) -> NDArray[np.float64]:
    """Fields that no file holds: the intrinsics, scaled to the image's (height, width).

    Raises:
        SourceError: another field than the intrinsics.
    """
    if field != "intrinsics":
        raise SourceError("presence", f"no constant {field!r}", "intrinsics")
    return geometry.adjust_intrinsics(np.array(geometry.FRONT3D_INTRINSICS), (320, 240), (image[1], image[0]))


def _rgb(data: bytes, arrays: Arrays, facts: dict[str, Any]) -> None:
    arrays["rgb"][...] = images.read_png(data, arrays["rgb"].shape[:2], {"RGB": "uint8"})


def _depth(data: bytes, arrays: Arrays, facts: dict[str, Any]) -> None:
    arrays["depth"][...] = images.read_exr_depth(data, arrays["depth"].shape)


def _segmap(data: bytes, arrays: Arrays, facts: dict[str, Any]) -> None:
    read_segmap(data, (arrays["semantic_2d"], arrays["instance_2d"]))


def read_segmap(data: bytes, targets: tuple[NDArray[Any], ...]) -> None:
    """Fill (H, W) label maps from the channels of a segmap file.

    Raises:
        SourceError: damaged, of another form, or a label that its target cannot hold.
    """
    labels = npz.read_array(data, "data", (*targets[0].shape, len(targets)), LABEL_DTYPES)
    for channel, target in enumerate(targets):
        values = labels[..., channel]
        if values.min() < 0 or values.max() > np.iinfo(target.dtype).max:
            raise SourceError(
                "range", f"channel {channel} from {values.min()} to {values.max()}", f"0 to {np.iinfo(target.dtype).max}"
            )
        target[...] = values


def _geometry(data: bytes, arrays: Arrays, facts: dict[str, Any]) -> None:
    facts["geometry_float32_exact"] = npz.read_volumes(data, "data", [arrays["geometry"]], ("float64", "float32"), rotated=True)


def _segmentation(data: bytes, arrays: Arrays, facts: dict[str, Any]) -> None:
    npz.read_volumes(data, "data", [arrays["semantic_3d"], arrays["instance_3d"]], LABEL_DTYPES, rotated=True)


def _weighting(data: bytes, arrays: Arrays, facts: dict[str, Any]) -> None:
    npz.read_volumes(data, "data", [arrays["weighting"]], LABEL_DTYPES, rotated=True)


def _campose(data: bytes, arrays: Arrays, facts: dict[str, Any]) -> None:
    pose = {name: npz.read_array(data, name, shape, (dtype,)) for name, (shape, dtype) in CAMPOSE.items()}
    arrays["world_from_camera"][...] = pose.pop("camera2world")
    facts["campose"] = {name: array.ravel().tolist() if array.ndim else array.item() for name, array in pose.items()}


FILES: Final = (
    RawFile("rgb", ("rgb",), _rgb),
    RawFile("depth", ("depth",), _depth),
    RawFile("segmap", ("semantic_2d", "instance_2d"), _segmap),
    RawFile("campose", ("world_from_camera",), _campose, required=False),
    RawFile("geometry", ("geometry",), _geometry, volume=True),
    RawFile("segmentation", ("semantic_3d", "instance_3d"), _segmentation, volume=True),
    RawFile("weighting", ("weighting",), _weighting, volume=True),
)
"""Cheap files first."""
