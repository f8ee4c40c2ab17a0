"""Cameras of views of an object: from the metadata of a view and back, and from sets of cameras in a ``transforms.json``.

A camera is a (4, 3) transform and a (3, 1) projection. Points are rows: ``[x, y, z, 1] @ transform`` is in the camera's frame, x
right, y up, looking along -z; ``q = p * projection`` lies at ``q[:2] / q[2]`` of the image, from -1 to 1, x right and y up.
Aperture and focal length share a unit, and the aperture is that of the image's width.

Source: the synthetic views that ``kaolin.io.render`` of NVIDIA Kaolin imports; ``transforms.json`` of NeRF's Blender scenes.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from scenemill.schemas.errors import ConfigError, SourceError

APERTURE_MM: Final = 20.955
FOCAL_MM: Final = 24.0
"""The lens that a view is written with where nothing else is asked for: that of the published sample, 47.2 degrees wide."""

_NARROWEST: Final = 1e-9  # radians, of an angle of view that is one
_LARGEST_PIXEL: Final = 1 << 15
_LENS_STEPS: Final = 32  # of the last digit; tangents and their inverses are exact to a few
_CV_FROM_GL: Final = np.diag([1.0, -1.0, -1.0])  # x right, y down, z forward from x right, y up, -z forward

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class ViewMetadata:
    """What the metadata file of a view says.

    Attributes:
        transform: (4, 3) float64, camera from world.
        projection: (3, 1) float64.
        image: (height, width) in pixels.
        clipping_range: nearest and farthest distance along the view axis.
        assets: name and (4, 4) float64 world from asset, for rows, of everything in the scene.
        boxes: "bbox_2d_tight" and "bbox_2d_loose" as they stand in the file, where they do.
    """

    transform: Matrix
    projection: Matrix
    image: tuple[int, int]
    clipping_range: tuple[float, float]
    assets: tuple[tuple[str, Matrix], ...]
    boxes: Mapping[str, Any]


def read_metadata(data: bytes) -> ViewMetadata:
    """The content of a ``<i>_metadata.json``.

    Raises:
        SourceError: no such document; says which entry is wrong.
    """
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise SourceError("container", f"no readable JSON ({str(error)[:120]})", "a metadata document") from error
    camera = _entry(document, "camera_properties", dict)
    resolution = _entry(camera, "resolution", dict)
    size = tuple(_entry(resolution, name, int) for name in ("height", "width"))
    if not all(0 < side <= _LARGEST_PIXEL for side in size):
        raise SourceError("metadata", f"resolution {size[1]} x {size[0]}", f"1 to {_LARGEST_PIXEL} pixels a side")
    matrix = _numbers(camera, "tf_mat", (4, 4))
    if not np.allclose(matrix[:, 3], (0, 0, 0, 1), atol=1e-6):
        raise SourceError("metadata", f"last column {matrix[:, 3].tolist()} of tf_mat", "0, 0, 0, 1: a matrix for rows")
    lens = [float(_numbers(camera, name, ())) for name in ("horizontal_aperture", "focal_length")]
    if min(lens) <= 0 or field_of_view(*lens) < _NARROWEST:
        raise SourceError("metadata", f"aperture {lens[0]:g} and focal length {lens[1]:g}", "both above 0, and an angle of view")
    near, far = _numbers(camera, "clipping_range", (2,)).tolist()
    assets = tuple(_asset(entry) for entry in _entry(document, "asset_transforms", list))
    boxes = {name: document[name] for name in ("bbox_2d_tight", "bbox_2d_loose") if name in document}
    return ViewMetadata(matrix[:, :3], projection_of(field_of_view(*lens), size), size, (near, far), assets, boxes)


def _entry(document: object, name: str, kind: type) -> Any:
    found = document.get(name) if isinstance(document, dict) else None
    if not isinstance(found, kind) or isinstance(found, bool):
        expected = {dict: "an object", list: "a list", int: "a whole number"}[kind]
        raise SourceError("metadata", f"{name} {str(found)[:80]!r}", f"{expected} there")
    return found


def _numbers(document: Mapping[str, Any], name: str, shape: tuple[int, ...]) -> Matrix:
    return _as_numbers(document.get(name), name, shape)


def _as_numbers(found: object, name: str, shape: tuple[int, ...]) -> Matrix:
    try:
        values = np.array(found)
        if values.dtype.kind not in "iuf" or values.shape != shape or not np.isfinite(values).all():
            raise ValueError
    except ValueError as error:
        expected = " x ".join(map(str, shape)) or "one"
        raise SourceError("metadata", f"{name} {str(found)[:80]!r}", f"{expected} finite number{'s' if shape else ''}") from error
    return values.astype(np.float64)


def _asset(entry: object) -> tuple[str, Matrix]:
    if not isinstance(entry, list) or len(entry) != 2 or not isinstance(entry[0], str):
        raise SourceError("metadata", f"asset_transforms entry {str(entry)[:80]!r}", "[name, 4 x 4 matrix]")
    return entry[0], _as_numbers(entry[1], "asset_transforms", (4, 4))


def field_of_view(aperture: float, focal: float) -> float:
    """Horizontal angle in radians; aperture and focal length in one unit.

    >>> round(math.degrees(field_of_view(20.955, 24.0)), 2)
    47.17
    """
    return 2 * math.atan(aperture / (2 * focal))


def projection_of(fov_x: float, image: tuple[int, int], *, legacy: bool = False) -> Matrix:
    """The projection of a camera of a horizontal field of view.

    Args:
        fov_x: horizontal angle in radians.
        image: (height, width) in pixels; pixels are square.
        legacy: True to take the angle for the vertical one, as Kaolin does: the same where the image is square, else wrong.

    Returns:
        (3, 1) float64: scales of x and y, and -1.

    >>> projection_of(math.pi / 2, (240, 320)).ravel().round(4).tolist()
    [1.0, 1.3333, -1.0]
    """
    ratio, tangent = image[1] / image[0], math.tan(fov_x / 2)
    scales = (1 / (ratio * tangent), 1 / tangent) if legacy else (1 / tangent, ratio / tangent)
    return np.array([[scales[0]], [scales[1]], [-1.0]])


def field_of_view_of(projection: Matrix) -> float:
    """Horizontal angle of a (3, 1) projection, in radians."""
    return 2 * math.atan(1 / float(projection[0, 0]))


def intrinsics_of(projection: Matrix, image: tuple[int, int]) -> Matrix:
    """(4, 4) float64 pinhole matrix in pixels, as the other sources have it: whole numbers are pixel centres, y is down.

    Args:
        projection: (3, 1).
        image: (height, width) in pixels.
    """
    height, width = image
    matrix = np.eye(4)
    matrix[0, 0], matrix[1, 1] = projection[0, 0] * width / 2, projection[1, 0] * height / 2
    matrix[:2, 2] = (width - 1) / 2, (height - 1) / 2
    return matrix


def world_from_camera_of(transform: Matrix) -> Matrix:
    """(4, 4) float64 pose for columns, as the other sources have it: camera (x right, y down, z forward) to world.

    Args:
        transform: (4, 3) camera from world for rows, of an orthonormal rotation.
    """
    pose = np.eye(4)
    pose[:3, :3] = transform[:3] @ _CV_FROM_GL
    with np.errstate(over="ignore", invalid="ignore"):  # of a rotation that is none, which the checks tell
        pose[:3, 3] = -transform[:3] @ transform[3]
    return pose


def cameras_around(count: int, elevation: tuple[float, float], seed: int) -> Matrix:
    """Directions from a centre to cameras that look at it, spread evenly over a band of the sphere; y is up.

    Args:
        count: number of cameras.
        elevation: lowest and highest angle above the horizon in degrees, from -90 to 90.
        seed: another seed turns and shifts them.

    Returns:
        (count, 3) float64 unit vectors.

    Source: M. Roberts, the additive sequence of the plastic number, which leaves no gaps whatever the count.
    """
    plastic = 1.32471795724474602596
    step = np.array([1 / plastic, 1 / plastic**2])
    share = (np.random.default_rng(seed).random(2) + np.arange(count)[:, None] * step) % 1
    low, high = np.sin(np.radians(elevation))
    height = low + (high - low) * share[:, 1]
    flat, azimuth = np.sqrt(1 - height**2), 2 * np.pi * share[:, 0]
    return np.stack([flat * np.sin(azimuth), height, flat * np.cos(azimuth)], axis=1)


def looking_at(position: Matrix, target: Matrix) -> Matrix:
    """(4, 3) float64 transform of a camera at a position, looking at a target, y up; straight above or below it, -z is up.

    Args:
        position, target: (3,), apart from each other.
    """
    backward = (position - target) / np.linalg.norm(position - target)
    up = np.array([0.0, 1.0, 0.0]) if abs(backward[1]) < 1 - 1e-9 else np.array([0.0, 0.0, -1.0])
    right = np.cross(up, backward)
    right /= np.linalg.norm(right)
    axes = np.stack([right, np.cross(backward, right), backward], axis=1)
    return np.concatenate([axes, -(position @ axes)[None]])


def metadata_document(metadata: ViewMetadata) -> dict[str, Any]:
    """The document that ``read_metadata`` reads back; the lens is one of ``APERTURE_MM`` with the focal length that fits."""
    height, width = metadata.image
    matrix = np.concatenate([metadata.transform, [[0.0], [0.0], [0.0], [1.0]]], axis=1)
    return {
        "camera_properties": {
            "resolution": {"width": width, "height": height},
            "clipping_range": list(metadata.clipping_range),
            "horizontal_aperture": APERTURE_MM,
            "focal_length": APERTURE_MM / 2 * float(metadata.projection[0, 0]),
            "tf_mat": matrix.tolist(),
        },
        "asset_transforms": [[name, world.tolist()] for name, world in metadata.assets],
        **metadata.boxes,
    }


def exact_document(metadata: ViewMetadata) -> dict[str, Any]:
    """``metadata_document`` with a lens from which ``read_metadata`` gets the very projection, to the bit.

    Raises:
        ConfigError: no lens gives it: it was not read from one.
    """
    document = metadata_document(metadata)
    camera = document["camera_properties"]
    for aperture, focal in _lenses_near(float(metadata.projection[0, 0])):
        if np.array_equal(projection_of(field_of_view(aperture, focal), metadata.image), metadata.projection):
            camera.update(horizontal_aperture=aperture, focal_length=focal)
            return document
    raise ConfigError(f"projection {metadata.projection.ravel().tolist()}: no lens of {metadata.image} pixels gives it")


def _lenses_near(scale: float) -> Iterator[tuple[float, float]]:
    """Lenses of a projection's first scale: of the usual aperture, then of any, each with the next numbers below and above."""
    for aperture, focal in ((APERTURE_MM, APERTURE_MM / 2 * scale), (1 / scale, 0.5)):
        for step in sorted(range(-_LENS_STEPS, _LENS_STEPS + 1), key=abs):
            if aperture == APERTURE_MM:
                yield aperture, focal + step * math.ulp(focal)
            else:
                yield aperture + step * math.ulp(aperture), focal


@dataclass(frozen=True)
class SetCamera:
    """One camera of a ``transforms.json``.

    Attributes:
        image: path of its image as it stands there, without or with an ending.
        transform: (4, 3) float64, camera from world, for rows.
        fov_x: horizontal angle in radians.
    """

    image: str
    transform: Matrix
    fov_x: float


def read_camera_set(document: object, where: str) -> list[SetCamera]:
    """The cameras of a ``transforms.json``: world from camera for columns, the camera with x right, y up, looking along -z.

    Args:
        document: as JSON gives it: ``camera_angle_x`` in radians for all or in each frame, and ``frames`` of ``file_path`` and
            ``transform_matrix``.
        where: the file, for messages.

    Raises:
        ConfigError: another form; names the entry.
    """
    frames = document.get("frames") if isinstance(document, dict) else None
    if not isinstance(document, dict) or not isinstance(frames, list) or not frames:
        raise ConfigError(f"{where}: no list of frames; expected camera_angle_x and frames, as NeRF's Blender scenes have them")
    return [_set_camera(frame, document.get("camera_angle_x"), f"{where}: frames[{n}]") for n, frame in enumerate(frames)]


def _set_camera(frame: object, shared_angle: object, where: str) -> SetCamera:
    if not isinstance(frame, dict) or not isinstance(frame.get("file_path"), str):
        raise ConfigError(f"{where}: no file_path; expected file_path and transform_matrix")
    angle = frame.get("camera_angle_x", shared_angle)
    if not isinstance(angle, (int, float)) or not 0 < angle < math.pi:
        raise ConfigError(f"{where}: camera_angle_x {str(angle)[:40]!r}; expected an angle of 0 to pi radians")
    try:
        world_from_camera = _as_numbers(frame.get("transform_matrix"), "transform_matrix", (4, 4))
        transform = np.linalg.inv(world_from_camera).T[:, :3].astype(np.float64)
    except (SourceError, np.linalg.LinAlgError) as error:
        raise ConfigError(f"{where}: {error}; expected a 4 x 4 pose of the camera") from error
    return SetCamera(frame["file_path"], transform, float(angle))
