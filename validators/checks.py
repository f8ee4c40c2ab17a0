"""Is this sample true? An ordered tuple of small functions, cheap ones first; each yields what it finds.

The rules and their levels are those measured on the released views of both datasets (27 of 3D-Front, one of Matterport3D). What
holds in every 3D-Front view to the voxel rejects a sample that breaks it; what holds statistically only warns; Matterport3D's
volumes keep fewer promises, so there only form, range and finiteness reject. Views of objects have checks of their own
(``view_checks.py``), and sources of one's own those of rooms that hold for any camera (``own_checks.py``).
"""

from collections.abc import Iterable
from typing import Final

import numpy as np

from scenemill.schemas.fields import VIEWS
from scenemill.schemas.labels import FLOOR
from scenemill.schemas.sample import Sample
from scenemill.schemas.tables import Finding, Severity
from scenemill.validators.check import Check, Found, M
from scenemill.validators.measures import Measured, Rules
from scenemill.validators.own_checks import OWN_CHECKS
from scenemill.validators.own_measures import MeasuredOwn
from scenemill.validators.view_checks import VIEW_CHECKS
from scenemill.validators.view_measures import MeasuredView

CHECKS_VERSION: Final = "1"
"""Raised whenever a check may judge a sample otherwise: samples are then checked anew."""

TRUNCATION: Final = 12.0
NEAR_M, FAR_M = 0.4, 6.0
_FARTHEST_PLAUSIBLE_M: Final = 60.0  # beyond any room: depth in another unit
_PIXELS_OFF_SURFACE: Final = 0.001
_PIXELS_IN_FRUSTUM: Final = 0.5  # fewer only with depth in another unit; every released view has more than 0.97
_SURFACE_SHARE_MATTERPORT: Final = 0.5
_CLASS_AGREEMENT: Final = 0.97
_INSTANCE_AGREEMENT: Final = 0.95
_SMALLEST_THING_PIXELS: Final = 200
_STEEPEST: Final = 1.001
_WEIGHTS: Final = {True: (1, 2, 5, 10), False: (1, 2, 25, 50)}  # 3D-Front form; Matterport3D


def check_sample(sample: Sample, rules: Rules) -> tuple[list[Finding], Measured]:
    """Run every check that fits the sample.

    Returns:
        The findings, in the order of ``CHECKS``, ``VIEW_CHECKS`` or ``OWN_CHECKS``, and the counts they were judged by.
    """
    known = set(sample.arrays)
    if rules.source == VIEWS:
        view = MeasuredView(sample, rules)
        return _run(VIEW_CHECKS, view, known), view
    if rules.own_fields:
        own = MeasuredOwn(sample, rules)
        return _run(CAMERA_CHECKS, own, known) + _run(OWN_CHECKS, own, known), own
    if rules.frustum is not None or "outside" in known:
        known.add("frustum")
    measured = Measured(sample, rules)
    return _run(CHECKS, measured, known), measured


def _run(checks: Iterable[Check[M]], measured: M, known: set[str]) -> list[Finding]:
    findings: list[Finding] = []
    with np.errstate(all="ignore"):  # values that are no numbers are found, not warned of
        for check in checks:
            if known.issuperset(check.fields) and (measured.rules.front3d_form or not check.front3d_only):
                findings.extend(check.run(measured))
    return findings


def _finding(check: str, field: str, severity: Severity, observed: str, expected: str) -> Found:
    yield Finding(check, field, severity, observed, expected)


def _strict(measured: Measured) -> Severity:
    """Rejects in the 3D-Front form, warns elsewhere."""
    return "error" if measured.rules.front3d_form else "warning"


def _finite(measured: Measured) -> Found:
    for name in ("depth", "intrinsics", "world_from_camera"):
        if name in measured.sample and (count := np.count_nonzero(~np.isfinite(measured.sample[name]))):
            yield Finding("finite", name, "error", f"{count} values that are NaN or infinite", "finite values")


def _depth_range(measured: Measured) -> Found:
    depth = measured.flat("depth")
    valid = depth[depth > 0]
    if not valid.size:
        yield from _finding("depth_range", "depth", "error", "no pixel above 0", "metres above 0")
        return
    low, high = float(valid.min()), float(valid.max())
    if depth.min() < 0:
        yield from _finding("depth_range", "depth", "error", f"depth of {depth.min():.3f} m", "0 for invalid, above 0 else")
    if np.median(valid) > _FARTHEST_PLAUSIBLE_M:
        yield from _finding("depth_unit", "depth", "error", f"a median of {np.median(valid):.0f}", "metres: another unit?")
    elif low < NEAR_M or high > FAR_M:
        yield from _finding("depth_range", "depth", "warning", f"{low:.3f} to {high:.3f} m", f"{NEAR_M} to {FAR_M} m")
    if measured.rules.front3d_form and valid.size < depth.size:
        yield from _finding("depth_range", "depth", "warning", f"{depth.size - valid.size} invalid pixels", "none")


def _intrinsics(measured: Measured) -> Found:
    matrix = measured.sample["intrinsics"]
    height, width = measured.rules.image
    focal = (matrix[0, 0], matrix[1, 1])
    rest = matrix.copy()
    rest[0, 0] = rest[1, 1] = 1.0
    rest[0, 2] = rest[1, 2] = 0.0
    if not np.allclose(rest, np.eye(4), atol=1e-6):
        yield from _finding(
            "intrinsics", "intrinsics", "error", "a matrix with skew or another last row", "fx, fy, cx, cy and ones"
        )
    if not all(0.2 * width < value < 10 * width for value in focal):
        yield from _finding(
            "intrinsics", "intrinsics", "error", f"focal lengths {focal[0]:.1f}, {focal[1]:.1f} px", f"0.2 to 10 x {width} px"
        )
    elif max(focal) > 1.5 * min(focal):
        yield from _finding(
            "intrinsics", "intrinsics", "warning", f"focal lengths {focal[0]:.1f}, {focal[1]:.1f} px", "nearly square pixels"
        )
    for centre, size in ((matrix[0, 2], width), (matrix[1, 2], height)):
        if not 0 < centre < size - 1:
            yield from _finding(
                "intrinsics", "intrinsics", "error", f"principal point {centre:.1f} px", f"inside the image of {size} px"
            )
        elif abs(centre - (size - 1) / 2) > size / 4:
            yield from _finding(
                "intrinsics", "intrinsics", "warning", f"principal point {centre:.1f} px", f"near the middle of {size} px"
            )


def _pose(measured: Measured) -> Found:
    pose = measured.sample["world_from_camera"]
    rotation = pose[:3, :3]
    if not np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-4) or np.linalg.det(rotation) < 0:
        yield from _finding(
            "pose", "world_from_camera", "error", "a rotation that is not orthonormal", "an orthonormal rotation, determinant +1"
        )
    if not np.allclose(pose[3], (0, 0, 0, 1), atol=1e-9):
        yield from _finding("pose", "world_from_camera", "error", f"last row {pose[3].tolist()}", "0, 0, 0, 1")


def _labels_2d(measured: Measured) -> Found:
    yield from _unknown_classes(measured, measured.pairs_2d[:, 1], "semantic_2d")
    void = int(np.count_nonzero(measured.flat("semantic_2d") == 0))
    if measured.rules.front3d_form and void:
        yield from _finding("labels_2d", "semantic_2d", "warning", f"{void} void pixels", "none")


def _labels_3d(measured: Measured) -> Found:
    yield from _unknown_classes(measured, measured.classes_3d, "semantic_3d")
    if not measured.labelled.size:
        yield from _finding("labels_3d", "semantic_3d", "error", "no labelled voxel", "a labelled surface")


def _unknown_classes(measured: Measured, classes: np.ndarray[tuple[int, ...], np.dtype[np.generic]], field: str) -> Found:
    present = set(np.flatnonzero(np.bincount(classes.astype(np.int64))).tolist()) if classes.size else set()
    known = {label.id for label in measured.rules.labels}
    if unknown := sorted(present - known):
        yield Finding("label_known", field, "error", f"class ids {', '.join(map(str, unknown[:8]))}", f"0 to {max(known)}")


def _one_class_per_instance(measured: Measured) -> Found:
    for field, pairs in (("instance_2d", measured.pairs_2d), ("instance_3d", measured.pairs_3d)):
        ids = pairs[pairs[:, 0] > 0, 0]
        if mixed := sorted(set(ids[1:][ids[1:] == ids[:-1]].tolist())):
            observed = f"instances {', '.join(map(str, mixed[:8]))} with several classes"
            yield Finding("one_class_per_instance", field, _strict(measured), observed, "one class each")


def _same_class_in_2d_and_3d(measured: Measured) -> Found:
    of_3d = dict(measured.pairs_3d[measured.pairs_3d[:, 0] > 0, :2].tolist())
    differ = [i for i, label in measured.pairs_2d[:, :2].tolist() if i in of_3d and of_3d[i] != label]
    if differ:
        observed = f"instances {', '.join(map(str, differ[:8]))} with another class in 3D"
        yield Finding("one_class_per_instance", "instance_3d", _strict(measured), observed, "the class of the image")


def _stuff_2d(measured: Measured) -> Found:
    floors = measured.pairs_2d[measured.pairs_2d[:, 1] == FLOOR, 0]
    if floors.size > 1:
        yield from _finding("one_floor", "instance_2d", "warning", f"{floors.size} floor instances", "one")


def _small_things(measured: Measured) -> Found:
    is_thing = np.isin(measured.pairs_2d[:, 1], measured.thing_classes)
    small = measured.pairs_2d[is_thing & (measured.pairs_2d[:, 2] <= _SMALLEST_THING_PIXELS)]
    if small.size:
        observed = f"instances {', '.join(map(str, small[:8, 0].tolist()))} of at most {_SMALLEST_THING_PIXELS} pixels"
        yield Finding("small_thing", "instance_2d", "info", observed, "more; training drops them")


def _things_in_both(measured: Measured) -> Found:
    in_2d, in_3d = set(measured.things(measured.pairs_2d).tolist()), set(measured.things(measured.pairs_3d).tolist())
    for only, field, place in ((in_2d - in_3d, "instance_3d", "the image"), (in_3d - in_2d, "instance_2d", "the volume")):
        if only:
            observed = f"things {', '.join(map(str, sorted(only)[:8]))} only in {place}"
            yield Finding("things_in_both", field, "warning", observed, "every thing in image and volume")


def _distance_range(measured: Measured) -> Found:
    distance = measured.distance
    if count := int(np.count_nonzero(~np.isfinite(distance))):
        yield from _finding("finite", "geometry", "error", f"{count} values that are NaN or infinite", "finite values")
        return
    if not distance.size:
        yield from _finding("distance_range", "geometry", "error", "nothing but the fill value", "a surface")
        return
    least = 0.0 if measured.rules.front3d_form else -TRUNCATION
    low, high = float(distance.min()), float(distance.max())
    if low < least or high > TRUNCATION:
        yield from _finding(
            "distance_range", "geometry", "error", f"{low:.6g} to {high:.6g} voxels", f"{least:g} to {TRUNCATION:g} voxels"
        )
    if distance.size == measured.sample["geometry"].size:
        fill = measured.rules.fields["geometry"].fill
        yield from _finding(
            "distance_unit", "geometry", "error", f"no voxel at {fill:g}", f"{fill:g} where nothing was seen: another unit?"
        )


def _distance_exact(measured: Measured) -> Found:
    if not measured.sample.facts.get("geometry_float32_exact", True):
        yield from _finding(
            "distance_exact", "geometry", "warning", "float64 values that float32 rounds", "values that float32 holds exactly"
        )


def _distance_smooth(measured: Measured) -> Found:
    """Neighbours differ by at most one voxel; a damaged or shifted field does not."""
    grid, flat, fill = measured.rules.grid, measured.flat("geometry"), measured.rules.fields["geometry"].fill
    steep = 0
    for stride in (1, grid, grid * grid):
        has_next = (measured.observed // stride) % grid < grid - 1
        here = measured.observed[has_next]
        after = flat[here + stride]
        steep += int(np.count_nonzero((np.abs(flat[here] - after) > _STEEPEST) & (after != fill)))
    if steep:
        yield from _finding(
            "distance_smooth", "geometry", "warning", f"{steep} neighbours more than 1 voxel apart", "none: it is a distance"
        )


def _surface_in_frustum(measured: Measured) -> Found:
    stray = int(np.count_nonzero(~measured.frustum[measured.observed]))
    if stray:
        observed = f"{stray} voxels with a distance outside the frustum"
        yield Finding("surface_in_frustum", "geometry", _strict(measured), observed, "none: wrong orientation or mask?")


def _labels_on_surface(measured: Measured) -> Found:
    surface = measured.observed[measured.distance < 1]
    if not np.array_equal(surface, measured.labelled):
        count = np.setxor1d(surface, measured.labelled, assume_unique=True).size
        yield from _finding(
            "labels_on_surface", "semantic_3d", "error", f"{count} voxels differ", "labels exactly where the distance is below 1"
        )


def _labels_in_band(measured: Measured) -> Found:
    """Matterport3D labels the band of 3 voxels, and a few voxels outside the frustum."""
    far = int(np.count_nonzero(np.abs(measured.flat("geometry")[measured.labelled]) >= 3))
    if not measured.rules.front3d_form and far > 0.01 * measured.labelled.size:
        yield from _finding(
            "labels_on_surface", "semantic_3d", "warning", f"{far} labelled voxels 3 or more from a surface", "at most 1 %"
        )


def _things_have_instances(measured: Measured) -> Found:
    is_thing = np.isin(measured.classes_3d, measured.thing_classes)
    wrong = int(np.count_nonzero((measured.instances_3d > 0) != is_thing))
    total = int(np.count_nonzero(measured.flat("instance_3d")))
    wrong += total - int(np.count_nonzero(measured.instances_3d))
    if wrong:
        yield from _finding(
            "things_have_instances", "instance_3d", "error", f"{wrong} voxels", "an instance id on things and nowhere else"
        )


def _instances_have_classes(measured: Measured) -> Found:
    bare = int(np.count_nonzero(measured.flat("instance_3d"))) - int(np.count_nonzero(measured.instances_3d))
    if not measured.rules.front3d_form and bare:
        yield from _finding("things_have_instances", "instance_3d", "warning", f"{bare} instance voxels without a class", "none")


def _weights(measured: Measured) -> Found:
    allowed = _WEIGHTS[measured.rules.front3d_form]
    flat = measured.flat("weighting")
    other = flat.size - sum(int(np.count_nonzero(flat == value)) for value in allowed)
    if other:
        yield from _finding("weights", "weighting", "error", f"{other} voxels with another weight", ", ".join(map(str, allowed)))


def _weights_near_surface(measured: Measured) -> Found:
    near = measured.observed[measured.distance < 3]
    flat = measured.flat("weighting")
    light = int(np.count_nonzero(flat[near] < 5))
    heavy = int(np.count_nonzero(flat >= 5)) - (near.size - light)
    if light or heavy:
        observed = f"{light} light voxels near a surface, {heavy} heavy ones away from it"
        yield Finding("weights_near_surface", "weighting", "error", observed, "5 or more exactly where the distance is below 3")


def _weights_outside(measured: Measured) -> Found:
    stray = int(np.count_nonzero((measured.flat("weighting") != 1) & ~measured.frustum))
    if stray:
        yield Finding(
            "weights_outside", "weighting", _strict(measured), f"{stray} voxels outside the frustum weighted", "weight 1 outside"
        )


def _outside(measured: Measured) -> Found:
    share = np.count_nonzero(measured.sample["outside"]) / measured.sample["outside"].size
    if not 0.5 <= share <= 0.99:
        yield from _finding("outside", "outside", "error", f"{share:.1%} of the grid outside", "50 % to 99 %: True means outside")


def _room_mask(measured: Measured) -> Found:
    if not np.count_nonzero(measured.sample["room_mask"]):
        yield from _finding("room_mask", "room_mask", "warning", "no pixel in the room", "the room of the view")


def _depth_on_surface(measured: Measured) -> Found:
    """Depth and volume describe one scene: a pixel's voxel is within one voxel of a surface, if the frustum holds it."""
    inside, on_surface = measured.inside, measured.on_surface
    if measured.rules.front3d_form:
        off = int(np.count_nonzero(inside != on_surface))
        if off > _PIXELS_OFF_SURFACE * inside.size:
            yield Finding(
                "depth_on_surface",
                "depth",
                "error",
                f"{off} of {inside.size} pixels off the surface",
                f"at most {_PIXELS_OFF_SURFACE:.1%}",
            )
        if np.count_nonzero(inside) < _PIXELS_IN_FRUSTUM * inside.size:
            observed = f"{np.count_nonzero(inside) / inside.size:.1%} of pixels in the frustum"
            yield Finding("depth_on_surface", "depth", "error", observed, f"at least {_PIXELS_IN_FRUSTUM:.0%}: another unit?")
        return
    share = int(np.count_nonzero(inside & on_surface)) / max(1, int(np.count_nonzero(inside)))
    if share < _SURFACE_SHARE_MATTERPORT:
        expected = f"{_SURFACE_SHARE_MATTERPORT:.0%}: re-rendered depth lies on the surface, sensor depth does not"
        yield Finding("depth_on_surface", "depth", "warning", f"{share:.1%} of pixels on the surface", expected)


def _labels_agree(measured: Measured) -> Found:
    for check, (agree, both), least in (
        ("classes_agree", measured.class_agreement, _CLASS_AGREEMENT),
        ("instances_agree", measured.instance_agreement, _INSTANCE_AGREEMENT),
    ):
        if agree < least * both:
            yield Finding(check, "semantic_3d", "warning", f"{agree / both:.1%} of pixels agree with their voxel", f"{least:.0%}")


_POINTS: Final = ("depth", "intrinsics", "geometry")

CAMERA_CHECKS: Final[tuple[Check[Measured], ...]] = (
    Check("intrinsics", ("intrinsics",), _intrinsics),
    Check("pose", ("world_from_camera",), _pose),
)
"""Of any camera in a room, whatever its source."""

CHECKS: Final[tuple[Check[Measured], ...]] = (
    Check("finite", (), _finite),
    *CAMERA_CHECKS,
    Check("depth_range", ("depth",), _depth_range),
    Check("room_mask", ("room_mask",), _room_mask),
    Check("labels_2d", ("semantic_2d", "instance_2d"), _labels_2d),
    Check("one_floor", ("semantic_2d", "instance_2d"), _stuff_2d, front3d_only=True),
    Check("small_thing", ("semantic_2d", "instance_2d"), _small_things),
    Check("labels_3d", ("semantic_3d",), _labels_3d),
    Check("one_class_per_instance", ("semantic_2d", "instance_2d", "semantic_3d", "instance_3d"), _one_class_per_instance),
    Check("same_class", ("semantic_2d", "instance_2d", "semantic_3d", "instance_3d"), _same_class_in_2d_and_3d, front3d_only=True),
    Check("things_in_both", ("semantic_2d", "instance_2d", "semantic_3d", "instance_3d"), _things_in_both),
    Check("things_have_instances", ("semantic_3d", "instance_3d"), _things_have_instances, front3d_only=True),
    Check("instances_have_classes", ("semantic_3d", "instance_3d"), _instances_have_classes),
    Check("distance_range", ("geometry",), _distance_range),
    Check("distance_exact", ("geometry",), _distance_exact),
    Check("distance_smooth", ("geometry",), _distance_smooth, front3d_only=True),
    Check("outside", ("outside",), _outside),
    Check("surface_in_frustum", ("geometry", "frustum"), _surface_in_frustum, front3d_only=True),
    Check("labels_on_surface", ("geometry", "semantic_3d"), _labels_on_surface, front3d_only=True),
    Check("labels_in_band", ("geometry", "semantic_3d"), _labels_in_band),
    Check("weights", ("weighting",), _weights),
    Check("weights_near_surface", ("weighting", "geometry"), _weights_near_surface, front3d_only=True),
    Check("weights_outside", ("weighting", "frustum"), _weights_outside, front3d_only=True),
    Check("depth_on_surface", (*_POINTS, "frustum"), _depth_on_surface),
    Check("labels_agree", (*_POINTS, "semantic_2d", "instance_2d", "semantic_3d", "instance_3d"), _labels_agree),
)
