"""Is this sample of a source of one's own true? The checks of rooms that hold for any camera in a room, field by field.

A field of a name that rooms have too means the same, so it is held to the same: a depth in metres, a pinhole camera, a rigid pose,
classes of the label list. What volumes promise differs from source to source: that is for the form's own checks.
"""

from typing import Final

import numpy as np

from scenemill.schemas.tables import Finding
from scenemill.validators.check import Check, Found
from scenemill.validators.own_measures import MeasuredOwn


def _finite(measured: MeasuredOwn) -> Found:
    """Numbers that are none, but where the field says that they are the fill."""
    for name, field in measured.rules.fields.items():
        if name not in measured.sample or not field.dtype.startswith("float") or not np.isfinite(field.fill):
            continue
        if count := int(np.count_nonzero(~np.isfinite(measured.flat(name)))):
            yield Finding(
                "finite", name, "error", f"{count} values that are NaN or infinite", f"finite values, {field.fill:g} for none"
            )


def _depth(measured: MeasuredOwn) -> Found:
    depth = measured.flat("depth")
    if not (depth > 0).any():
        yield Finding("depth_range", "depth", "error", "no pixel above 0", "metres above 0")
    elif depth.min() < 0:
        yield Finding("depth_range", "depth", "error", f"depth of {depth.min():.3f} m", "0 for invalid, above 0 else")
    elif (median := float(np.median(depth[depth > 0]))) > _FARTHEST_PLAUSIBLE_M:
        yield Finding("depth_unit", "depth", "error", f"a median of {median:.0f}", "metres: another unit?")


def _classes(measured: MeasuredOwn, field: str) -> Found:
    known = {label.id for label in measured.rules.labels}
    if unknown := sorted({*np.unique(measured.flat(field)).tolist()} - known - {0}):
        observed = f"class ids {', '.join(map(str, unknown[:8]))}"
        yield Finding("label_known", field, "error", observed, "ids of the form's labels")


_FARTHEST_PLAUSIBLE_M: Final = 60.0  # beyond any room: depth in another unit

OWN_CHECKS: Final[tuple[Check[MeasuredOwn], ...]] = (
    Check("finite", (), _finite),
    Check("depth_range", ("depth",), _depth),
    Check("labels_2d", ("semantic_2d",), lambda measured: _classes(measured, "semantic_2d")),
    Check("labels_3d", ("semantic_3d",), lambda measured: _classes(measured, "semantic_3d")),
)
