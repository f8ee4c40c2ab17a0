"""The field table: one row per array of a sample. Checks, writer, reader, pages and documents all take from it.

Volumes are image-aligned: axis x grows to the image's right, y down, z with depth from the camera. An index is a voxel centre.
Camera frame: X right, Y down, Z forward, metres. Raw 3D-Front volumes are rotated by 180 degrees about the depth axis (flip axes
x and y to get them back); raw Matterport3D volumes are image-aligned already.

Views of objects keep the frame of their renderer: x right, y up, the camera looks along -z; lengths are units of their scene, and
points are rows that stand left of a matrix.
"""

from dataclasses import dataclass, replace
from typing import Any, Final

from scenemill.schemas.errors import ConfigError

FRONT3D_FORM: Final = ("front3d", "synthetic_hospital", "synthetic_warehouse")
ROOM_SOURCES: Final = (*FRONT3D_FORM, "matterport")
"""Views of rooms: image, depth, labels and volumes of a grid."""

VIEWS: Final = "views"
"""Multi-view renders of one object: images and their cameras, no volumes."""

SOURCES: Final = (*ROOM_SOURCES, VIEWS)


@dataclass(frozen=True)
class Field:
    """One array of a sample.

    Attributes:
        name: in Python, in the samples table, and of the Zarr array.
        axes: names of the axes behind the sample axis.
        dtype: of the stored values.
        fill: the value of what is not there; chunks full of it are not stored.
        unit: of the values; "" for labels and colours.
        meaning: in words.
        origin: raw file kind and member the values come from.
        required: False where a view may lack it.
        codec: (zstd level, blosc shuffle) that suits the values; measured in ``benchmarks/``.
    """

    name: str
    axes: tuple[str, ...]
    dtype: str
    fill: float | int | bool
    unit: str
    meaning: str
    origin: str
    required: bool = True
    codec: tuple[int, str] = (5, "shuffle")

    @property
    def is_volume(self) -> bool:
        """True for (x, y, z) arrays."""
        return self.axes == ("x", "y", "z")

    def shape(self, grid: int, image: tuple[int, int]) -> tuple[int, ...]:
        """Shape of one sample's array, for volumes of ``grid`` voxels a side and images of (height, width) pixels."""
        images = {"row": image[0], "column": image[1], "channel": 3}
        sizes = {"x": grid, "y": grid, "z": grid, **images, "to": 4, "from": 4, "world": 4, "camera": 3, "scale": 1}
        return tuple(sizes[axis] for axis in self.axes)


_IMAGE = ("row", "column")
_VOLUME = ("x", "y", "z")
_MATRIX = ("to", "from")

_FIELDS: Final = (
    Field("rgb", (*_IMAGE, "channel"), "uint8", 0, "", "colour: red, green, blue", "rgb", codec=(5, "noshuffle")),
    Field(
        "depth", _IMAGE, "float32", 0.0, "m", "distance along the camera's Z axis; 0 is invalid", "depth", codec=(7, "bitshuffle")
    ),
    Field("semantic_2d", _IMAGE, "uint8", 0, "", "class id of the pixel; 0 is void", "segmap:data[..., 0]", codec=(5, "noshuffle")),
    Field("instance_2d", _IMAGE, "uint16", 0, "", "instance id of the pixel, unique in its scene", "segmap:data[..., 1]"),
    Field(
        "geometry",
        _VOLUME,
        "float32",
        12.0,
        "voxel",
        "truncated distance to the nearest surface: unsigned, 0..12; 12 is far, unobserved or outside the frustum",
        "geometry:data",
    ),
    Field(
        "semantic_3d",
        _VOLUME,
        "uint8",
        0,
        "",
        "class id of the voxel; 0 is free space",
        "segmentation:data[0]",
        codec=(5, "noshuffle"),
    ),
    Field("instance_3d", _VOLUME, "uint16", 0, "", "instance id of the voxel", "segmentation:data[1]"),
    Field("weighting", _VOLUME, "uint8", 1, "", "loss weight of the voxel", "weighting:data", codec=(5, "noshuffle")),
    Field(
        "intrinsics", _MATRIX, "float64", 0.0, "pixel", "pinhole matrix K of the image; pixel centres are whole numbers", "constant"
    ),
    Field(
        "world_from_camera",
        _MATRIX,
        "float64",
        float("nan"),
        "m",
        "pose: camera (X right, Y down, Z forward) to world (Z up)",
        "campose:camera2world",
        required=False,
    ),
)

_MATTERPORT_GEOMETRY: Final = (
    "truncated signed distance to the nearest surface, -12..12: positive in free space; -12 is unseen or outside the frustum"
)
_MATTERPORT_ONLY: Final = (
    Field(
        "outside",
        _VOLUME,
        "bool",
        True,
        "",
        "True where the voxel lies outside the view's frustum",
        "geometry:mask",
        codec=(5, "noshuffle"),
    ),
    Field("room", _IMAGE, "uint16", 0, "", "room index of the pixel; 0 is the room of the view", "segmap:data[..., 2]"),
    Field(
        "room_mask",
        _IMAGE,
        "uint8",
        0,
        "",
        "above 0 where the pixel belongs to the room of the view",
        "room_mask",
        required=False,
        codec=(5, "noshuffle"),
    ),
)

_VIEW_FIELDS: Final = (
    Field("rgb", (*_IMAGE, "channel"), "uint8", 0, "", "colour: red, green, blue", "rgb", codec=(5, "noshuffle")),
    Field(
        "camera_transform",
        ("world", "camera"),
        "float64",
        float("nan"),
        "scene unit",
        "camera from world, for rows: (x, y, z, 1) @ M; the camera has x right, y up and looks along -z",
        "metadata:camera_properties.tf_mat",
    ),
    Field(
        "camera_projection",
        ("camera", "scale"),
        "float64",
        float("nan"),
        "",
        "image from camera: q = p * projection, then q[:2] / q[2], from -1 to 1 with x right and y up",
        "metadata:camera_properties",
    ),
    Field(
        "semantic", _IMAGE, "uint16", 0, "", "label of the pixel; 0 is background, the rest the object", "semantic", required=False
    ),
    Field("instance", _IMAGE, "uint16", 0, "", "instance id of the pixel; 0 is background", "instance", required=False),
    Field(
        "depth",
        _IMAGE,
        "float32",
        0.0,
        "scene unit",
        "distance along the view axis; 0 where nothing is seen",
        "depth_linear",
        required=False,
        codec=(7, "bitshuffle"),
    ),
    Field(
        "normals",
        (*_IMAGE, "channel"),
        "uint8",
        0,
        "",
        "normal n of the surface in the world's frame, as 255 * (n / 2 + 1 / 2)",
        "normals",
        required=False,
        codec=(5, "noshuffle"),
    ),
)


def is_reference(source: str) -> bool:
    """Whether the name of a source is a place in code: ``FILE.py:NAME`` or ``package.module:NAME`` (``schemas/forms.py``)."""
    return ":" in source


def fields_of(source: str) -> tuple[Field, ...]:
    """The fields of a source's samples, in the order they are stored.

    Raises:
        ConfigError: no such source.

    >>> [field.name for field in fields_of("matterport")][-3:]
    ['outside', 'room', 'room_mask']
    """
    if source in FRONT3D_FORM:
        return _FIELDS
    if source == "matterport":
        changed: dict[str, dict[str, Any]] = {
            "geometry": {"fill": -12.0, "meaning": _MATTERPORT_GEOMETRY},
            "intrinsics": {"origin": "intrinsics"},
        }
        common = tuple(replace(field, **changed.get(field.name, {})) for field in _FIELDS if field.name != "world_from_camera")
        return common + _MATTERPORT_ONLY
    if source == VIEWS:
        return _VIEW_FIELDS
    raise ConfigError(f"source {source!r} is not known; use one of {', '.join(SOURCES)}")


def raw_orientation(source: str) -> tuple[int, ...]:
    """Axes of a stored volume to flip to get the raw file's orientation back.

    >>> raw_orientation("front3d"), raw_orientation("matterport")
    ((0, 1), ())
    """
    return (0, 1) if source in FRONT3D_FORM else ()
