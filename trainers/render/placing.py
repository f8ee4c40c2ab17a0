"""Where a template begins: the point that all cameras look at, and the size of what their masks show there."""

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from scenemill.schemas.errors import ConfigError
from scenemill.schemas.fit import FitConfig
from scenemill.trainers.render.object_views import ObjectViews
from scenemill.trainers.render.templates import Template
from scenemill.trainers.render.textured_mesh import TexturedMesh

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


def place(
    template: Template, config: FitConfig, views: ObjectViews, held_out: ObjectViews
) -> tuple[TexturedMesh, ObjectViews, ObjectViews]:
    """The template where the object is, and the views in the unit in which it has the radius that the settings are meant for.

    Raises:
        ConfigError: a template of no size, or views that do not say where the object is.
    """
    vertices = torch.from_numpy(template.vertices)
    low, high = vertices.amin(dim=0), vertices.amax(dim=0)
    radius = float((high - low).max()) / 2
    if not np.isfinite(radius) or radius <= 0:
        raise ConfigError(f"the template has the radius {radius}; give a mesh with finite vertices that are not all at one place")
    centre = np.zeros(3)
    if config.scale is None:
        centre = look_at_point(np.stack([views.store.read(key, ["camera_transform"])["camera_transform"] for key in views.keys]))
        wanted = SHARE * seen_radius(views, centre)
        vertices = vertices - (low + high) / 2
    else:
        wanted = config.scale * radius
    unit = config.radius / wanted
    corners = np.stack([template.uvs[..., 0], 1 - template.uvs[..., 1]], axis=-1)[
        template.face_uvs_idx
    ]  # v up, as the renderer wants it
    mesh = TexturedMesh(
        vertices * (config.radius / radius), torch.from_numpy(template.faces), torch.from_numpy(corners), config.texture_size
    )
    mesh.shift.data += torch.from_numpy(centre * unit).float()
    return mesh, ObjectViews(views.store, views.keys, unit), ObjectViews(held_out.store, held_out.keys, unit)
