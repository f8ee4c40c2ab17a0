"""Is this view of an object true? Its camera, its image, and the maps that go with it.

A camera that no renderer has, an image of another size, or one that shows nothing rejects a view: a fit would follow it. What only
makes a view less useful warns.
"""

import math
from typing import Final

import numpy as np

from scenemill.schemas.tables import Finding
from scenemill.validators.check import Check, Found
from scenemill.validators.view_measures import MeasuredView

_ORTHONORMAL: Final = 1e-4
_NARROWEST_DEG, _WIDEST_DEG = 1.0, 150.0
_MOST_LABELS: Final = 32  # more are grey levels of a smoothed mask
_FEWEST_PIXELS: Final = 16
_UNIT_LENGTH: Final = 0.1  # smoothing at edges shortens normals
_SHARE_TOLD: Final = 0.01
_LIT_TOLD: Final = 0.05  # of the background; pixels at a smoothed edge are lit too


def _finite(measured: MeasuredView) -> Found:
    for name in ("camera_transform", "camera_projection", "depth"):
        if name in measured.sample and (count := np.count_nonzero(~np.isfinite(measured.sample[name]))):
            yield Finding("finite", name, "error", f"{count} values that are NaN or infinite", "finite values")


def _camera(measured: MeasuredView) -> Found:
    rotation = measured.sample["camera_transform"][:3]
    error = float(np.abs(rotation.T @ rotation - np.eye(3)).max())
    if not error <= _ORTHONORMAL:
        observed = f"a rotation {error:.2g} from orthonormal"
        yield Finding("camera", "camera_transform", "error", observed, "orthonormal axes: take the scale out of tf_mat")
    elif np.linalg.det(rotation) < 0:
        yield Finding("camera", "camera_transform", "error", "a mirrored rotation", "determinant +1: another handedness?")


def _field_of_view(measured: MeasuredView) -> Found:
    angle = math.degrees(2 * math.atan(1 / float(measured.sample["camera_projection"][0, 0])))
    if not _NARROWEST_DEG <= angle <= _WIDEST_DEG:
        expected = f"{_NARROWEST_DEG:g} to {_WIDEST_DEG:g} degrees: aperture and focal length in one unit?"
        yield Finding("field_of_view", "camera_projection", "error", f"{angle:.3g} degrees wide", expected)


def _resolution(measured: MeasuredView) -> Found:
    """The metadata speak of the image that lies beside them; an image of another size was not read."""
    said, image = measured.sample.facts["resolution"], measured.rules.image
    if tuple(said) != image:
        observed, expected = (f"{width} x {height} pixels" for height, width in (said, image))
        yield Finding("resolution", "metadata", "error", f"{observed} by the metadata", f"{expected}, as the image")


def _clipping_range(measured: MeasuredView) -> Found:
    near, far = measured.sample.facts["clipping_range"]
    if not 0 < near < far:
        yield Finding("clipping_range", "metadata", "warning", f"{near:g} to {far:g}", "0 < near < far")


def _sees_asset(measured: MeasuredView) -> Found:
    """The first asset's origin lies before the camera, and in the image: it may lie beside the asset, so this only warns."""
    position = measured.sample.facts["asset_position"]
    if position is None:
        return
    x, y, z = np.append(position, 1.0) @ measured.sample["camera_transform"]
    scale_x, scale_y, _ = measured.sample["camera_projection"].ravel()
    if not z < 0:
        observed, expected = (
            f"the asset's origin {z:.3g} behind the camera",
            "one before it: is tf_mat camera from world, for rows?",
        )
        yield Finding("sees_object", "camera_transform", "warning", observed, expected)
    elif abs(x * scale_x) > -z or abs(y * scale_y) > -z:
        yield Finding(
            "sees_object", "camera_transform", "warning", "the asset's origin outside the image", "an object in the image"
        )


def _image(measured: MeasuredView) -> Found:
    rgb = measured.sample["rgb"]
    if (rgb == rgb[0, 0]).all():
        yield Finding("image", "rgb", "error", f"one colour, {rgb[0, 0].tolist()}, everywhere", "an object before a background")


def _no_mask(measured: MeasuredView) -> Found:
    if "semantic" not in measured.sample:
        yield Finding("mask", "semantic", "warning", "no map of labels", "<i>_semantic.npy or .png: no silhouette can be fitted")


def _mask(measured: MeasuredView) -> Found:
    count = int(np.count_nonzero(measured.mask))
    if not count:
        yield Finding("mask", "semantic", "error", "nothing but background", "labels above 0 on the object")
    elif count < _FEWEST_PIXELS:
        yield Finding("mask", "semantic", "warning", f"{count} pixels of object", f"at least {_FEWEST_PIXELS}: a nearer camera")
    elif count == measured.mask.size:
        yield Finding("mask", "semantic", "warning", "no background", "0 around the object")
    if len(measured.labels) > _MOST_LABELS:
        observed = f"{len(measured.labels)} labels"
        yield Finding("mask", "semantic", "warning", observed, f"at most {_MOST_LABELS}: grey levels of a smoothed mask?")


def _cropped(measured: MeasuredView) -> Found:
    mask = measured.mask
    border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
    if border.any() and not mask.all():
        observed = f"{np.count_nonzero(border)} pixels of object on the border"
        yield Finding("cropped", "semantic", "info", observed, "none: part of the silhouette is cut off")


def _background(measured: MeasuredView) -> Found:
    lit = int(np.count_nonzero(measured.sample["rgb"].any(axis=-1) & ~measured.mask))
    outside = measured.mask.size - int(np.count_nonzero(measured.mask))
    if lit > _LIT_TOLD * outside:
        observed = f"{lit / outside:.1%} of the background is not black"
        yield Finding("background", "rgb", "info", observed, "black, where colours are compared with a render")


def _instances(measured: MeasuredView) -> Found:
    stray = int(np.count_nonzero((measured.sample["instance"] > 0) & ~measured.mask))
    if stray:
        yield Finding("instances", "instance", "warning", f"{stray} pixels with an instance but no label", "0 on the background")


def _depth(measured: MeasuredView) -> Found:
    depth = measured.sample["depth"]
    if (count := int(np.count_nonzero(depth < 0))) > 0:
        yield Finding("depth", "depth", "error", f"{count} pixels below 0", "distances along the view axis, 0 for nothing")
    if not (depth > 0).any():
        yield Finding("depth", "depth", "error", "no pixel above 0", "distances to the object")


def _depth_on_mask(measured: MeasuredView) -> Found:
    bare = int(np.count_nonzero(measured.mask & ~(measured.sample["depth"] > 0)))
    if bare:
        observed = f"{bare} of {np.count_nonzero(measured.mask)} pixels of object without a depth"
        yield Finding("depth_on_mask", "depth", "warning", observed, "a depth on every pixel of the object")


def _normals(measured: MeasuredView) -> Found:
    normals = measured.sample["normals"][measured.mask].astype(np.float32) / 127.5 - 1
    off = int(np.count_nonzero(np.abs(np.linalg.norm(normals, axis=-1) - 1) > _UNIT_LENGTH))
    if off > _SHARE_TOLD * len(normals):
        observed = f"{off / len(normals):.1%} of the object's normals not of length 1"
        yield Finding("normals", "normals", "warning", observed, "n / 2 + 1 / 2 of unit normals n")


VIEW_CHECKS: Final[tuple[Check[MeasuredView], ...]] = (
    Check("finite", (), _finite),
    Check("camera", ("camera_transform",), _camera),
    Check("field_of_view", ("camera_projection",), _field_of_view),
    Check("resolution", ("camera_transform",), _resolution),
    Check("clipping_range", ("camera_transform",), _clipping_range),
    Check("sees_object", ("camera_transform", "camera_projection"), _sees_asset),
    Check("image", ("rgb",), _image),
    Check("no_mask", (), _no_mask),
    Check("mask", ("semantic",), _mask),
    Check("cropped", ("semantic",), _cropped),
    Check("background", ("rgb", "semantic"), _background),
    Check("instances", ("instance", "semantic"), _instances),
    Check("depth", ("depth",), _depth),
    Check("depth_on_mask", ("depth", "semantic"), _depth_on_mask),
    Check("normals", ("normals", "semantic"), _normals),
)
