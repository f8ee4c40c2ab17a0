"""A prediction for the eye: image, instances, classes and depth side by side, and the surfaces of its volume as meshes."""

import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from scenemill.pipelines.predictions import Prediction
from scenemill.pipelines.sheet import depth_colors, instance_colors, label_colors
from scenemill.schemas.experiment import ExperimentConfig
from scenemill.schemas.labels import LABELS, Label
from scenemill.transforms.geometry import camera_index, voxel_size_m
from scenemill.transforms.meshes import panoptic_mesh, to_ply, upright

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
    classes = np.zeros(1 + max(prediction.classes_2d, default=0), np.uint8)
    classes[list(prediction.classes_2d)] = list(prediction.classes_2d.values())
    semantic = classes[prediction.panoptic_2d]
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
    """The surfaces that were found, coloured by class: the bytes of ``mesh.ply`` and ``mesh.usd``; nothing without volumes.

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
    return {"mesh.ply": to_ply(upright(mesh)), "mesh.usd": to_usd(panoptic_polygons(upright(mesh), labels), ".usd")}
