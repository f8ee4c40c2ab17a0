"""Where a template begins: the point that all cameras look at, and the size of what their masks show there."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from scenemill.schemas.errors import ConfigError
from scenemill.trainers.render.object_views import ObjectViews

SHARE: Final = 0.75
"""Of the object's radius, of a template: it grows outwards. Source: the DIB-R tutorial."""

_MOST: Final = 64  # views that are looked at


def look_at_point(transforms: NDArray[np.float64]) -> NDArray[np.float64]:
    """(3,): the point nearest to all view axes, by least squares; for axes that are all parallel, one on them.

    Args:
        transforms: (N, 4, 3), camera from world, for rows.

    >>> facing = np.array([[[0, 0, -1.0], [0, 1, 0], [1, 0, 0], [0, 0, -4]], [[1, 0, 0.0], [0, 1, 0], [0, 0, 1], [0, 0, -2]]])
    >>> look_at_point(facing).round(6).tolist()
    [0.0, 0.0, 0.0]
    """
    rotations, translations = transforms[:, :3], transforms[:, 3]
    positions = -np.einsum("nwc,nc->nw", rotations, translations)
    axes = -rotations[:, :, 2]
    across = np.eye(3) - axes[:, :, None] * axes[:, None, :]
    sides = np.einsum("nij,nj->i", across, positions)
    point: NDArray[np.float64] = np.linalg.lstsq(across.sum(axis=0), sides, rcond=1e-6)[0]
    return point


def seen_radius(views: ObjectViews, centre: NDArray[np.float64]) -> float:
    """Radius of the object in the scene's unit: the median over views of the longer half side of its mask, at the centre's distance.

    Args:
        views: of the object, in the scene's own unit.
        centre: (3,), where the object is.

    Raises:
        ConfigError: no mask shows the object, or the centre is behind the cameras.
    """
    chosen = np.unique(np.linspace(0, len(views) - 1, min(len(views), _MOST)).astype(int))
    radii = [radius for place in chosen if (radius := _radius(views, int(place), centre)) is not None]
    if not radii:
        raise ConfigError(
            f"store {views.store.root}: no view shows the object in front of its camera; set the scale of the template"
        )
    return float(np.median(radii))


def _radius(views: ObjectViews, place: int, centre: NDArray[np.float64]) -> float | None:
    view = views.read([place])
    rows, columns = np.nonzero(view.mask[0].numpy())
    distance = -float((np.append(centre, 1.0) @ view.camera_transform[0].double().numpy())[2])
    if not len(rows) or distance <= 0:
        return None
    height, width = views.size
    across, up = (view.camera_projection[0, :2, 0].double().numpy()).tolist()
    half_wide = (columns.max() + 1 - columns.min()) / width / across
    half_high = (rows.max() + 1 - rows.min()) / height / up
    return float(max(half_wide, half_high)) * distance
