"""A prediction for the eye: image, instances, classes and depth side by side, the points it sees, and the surfaces of its volume.

Points and surfaces have the file names of a log of 3D checkpoints with a category for each prediction, and so the same viewers.
"""

import io
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from scenemill.pipelines.predictions import Prediction, classes_of
from scenemill.pipelines.reports.sheet import depth_colors, instance_colors, label_colors
from scenemill.schemas.experiment import ExperimentConfig
from scenemill.schemas.labels import LABELS, Label
from scenemill.transforms.geometry import camera_index, voxel_size_m
from scenemill.transforms.meshes import panoptic_mesh, to_ply, upright

POINTS: Final = "pointcloud_0.usd"
SURFACE: Final = "mesh_0.usd"

_POINTS_WIDE: Final = 160  # a point for each pixel of the documented maps; larger maps give no more
_GAP, _LINE = 6, 20
_INK, _PAPER = (29, 37, 48), (255, 255, 255)


def to_png(picture: Image.Image) -> bytes:
    """The bytes of a PNG file."""
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


def draw_view(rgb: NDArray[np.uint8], prediction: Prediction, labels: Sequence[Label] = LABELS) -> Image.Image:
    """An image and what was found in it, side by side: input, instances, classes, depth; names of the classes below.

    Args:
        rgb: (H, W, 3) uint8; the maps are drawn in its size.
        prediction: maps of the same view, in any size.
        labels: names and colours of the classes.
    """
    height, width = rgb.shape[:2]
    semantic = classes_of(prediction.panoptic_2d, prediction.classes_2d)
    depth, near, far = depth_colors(prediction.depth)
    panels = (
        (f"input, {width} x {height}", rgb),
        (f"instances: {len(prediction.classes_2d)} segments", instance_colors(prediction.panoptic_2d)),
        ("classes", label_colors(semantic, labels)),
        (f"depth, {near:.2f} (bright) to {far:.2f} m", depth),
    )
    view = Image.new("RGB", (len(panels) * (width + _GAP) - _GAP, height + 2 * _LINE), _PAPER)
    draw, font = ImageDraw.Draw(view), ImageFont.load_default(size=12)
    for place, (title, colors) in enumerate(panels):
        left = place * (width + _GAP)
        draw.text((left + 2, 3), title, fill=_INK, font=font)
        picture = Image.fromarray(np.ascontiguousarray(colors)).resize((width, height), Image.Resampling.NEAREST)
        view.paste(picture, (left, _LINE))
    right = 2
    for name, color in _legend(semantic, labels):
        top = _LINE + height + 4
        draw.rectangle((right, top, right + 12, top + 12), fill=color)
        draw.text((right + 17, top), name, fill=_INK, font=font)
        right += 17 + int(font.getlength(name)) + 14
    return view


def _legend(semantic: NDArray[Any], labels: Sequence[Label]) -> Iterator[tuple[str, tuple[int, int, int]]]:
    present = set(np.unique(semantic).tolist())
    return ((label.name, label.color) for label in labels if label.id in present)


def draw_meshes(
    config: ExperimentConfig, found: Prediction, intrinsic: NDArray[np.float64], labels: Sequence[Label]
) -> dict[str, bytes]:
    """The surfaces that were found, coloured by class: the bytes of ``mesh.ply`` and ``SURFACE``; nothing without volumes.

    Args:
        config: where surfaces are (``dataset.iso_value``), and whose grid it is.
        found: the prediction.
        intrinsic: (4, 4) float64 of the image, pixels of ``dataset.target_size``.
        labels: names and colours of the classes.
    """
    if found.distance is None or found.panoptic_3d is None:
        return {}
    from scenemill.trainers.usd import panoptic_polygons, to_usd

    held = config.dataset
    mesh = panoptic_mesh(
        found.distance,
        found.panoptic_3d,
        found.classes_3d or {},
        iso=held.iso_value,
        voxel_m=voxel_size_m(len(found.distance)),
        centre=camera_index(held.name, intrinsic, held.target_size, len(found.distance)),
        labels=labels,
    )
    return {"mesh.ply": to_ply(upright(mesh)), SURFACE: to_usd(panoptic_polygons(upright(mesh), labels), ".usd")}


def draw_points(
    config: ExperimentConfig, found: Prediction, rgb: NDArray[np.uint8], intrinsic: NDArray[np.float64]
) -> dict[str, bytes]:
    """What pixels with a depth see, in the image's colours and with the predicted classes: the bytes of ``POINTS``.

    Args:
        config: of which size the images are.
        found: the prediction.
        rgb: (H, W, 3) uint8, the image, in any size.
        intrinsic: (4, 4) float64 of the image, pixels of ``dataset.target_size``.
    """
    from scenemill.trainers.snapshots import back_projected
    from scenemill.trainers.timelapse import Timelapse

    height, width = found.depth.shape
    wide, high = config.dataset.target_size
    camera = np.diag([width / wide, height / high, 1.0]) @ intrinsic[:3, :3]
    points, (row, column) = back_projected(found.depth, camera, every=-(-width // _POINTS_WIDE))
    colors = rgb[row * rgb.shape[0] // height, column * rgb.shape[1] // width]
    ids = classes_of(found.panoptic_2d, found.classes_2d)[row, column].astype(np.int32)
    with tempfile.TemporaryDirectory() as folder:  # usd-core encodes binary layers into files only
        Timelapse(folder, meters_per_unit=1.0).add_pointcloud_batch(0, "", [points], [colors], semantic_ids=[ids])
        return {POINTS: Path(folder, POINTS).read_bytes()}
