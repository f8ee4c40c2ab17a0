"""Point clouds: instances of a sphere, or points with widths.

Source: PointInstancer and Points of UsdGeom; the names, the arguments and the plain layout are those of Kaolin's ``io.usd``, Apache 2.0.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from scenemill.schemas.errors import ConfigError
from scenemill.trainers.usd.arrays import bounds, to_host
from scenemill.trainers.usd.authoring import Author
from scenemill.trainers.usd.primvars import VERTEX, put_colors, put_ids

POINT_TYPES: Final = {"point_instancer": "PointInstancer", "usd_geom_points": "Points"}
"""How a cloud is kept -> the type of its prim."""

POSITIONS: Final = {"PointInstancer": "positions", "Points": "points"}
"""Type of a prim -> its attribute that holds the points."""

_SHAPES: Final = {"sphere": ("radius", 0.5), "cube": ("size", 1.0)}  # what says its size, and that of one unit across
_SMALLEST: Final = 1e-2  # width of a point that has no others around it


def define_pointcloud(
    author: Author,
    path: Any,
    points: NDArray[np.float32],
    points_type: str,
    colors: Any = None,
    semantic_ids: Any = None,
    widths: Any = None,
) -> Any:
    """Write a point cloud.

    Args:
        author: writes.
        path: of its prim.
        points: (N, 3) float32.
        points_type: one of ``POINT_TYPES``.
        colors: as ``put_colors`` takes them; None leaves them.
        semantic_ids: as ``put_ids`` takes them; None leaves them.
        widths: (N,) or one, diameters in the unit of the points; None for those that the cloud has, and at first ``default_width``.

    Returns:
        The prim's spec.

    Raises:
        ConfigError: another type of points than these, or than the prim has; values that do not fit the points.
    """
    prim = define_points_prim(author, path, points_type)
    count, box = len(points), bounds(points)
    given = None if widths is None else _to_widths(prim, widths, count)
    if points_type == "point_instancer":
        author.put(prim, "positions", "point3f[]", points)
        reach = put_instances(author, path, prim, "sphere", count, default_width(box, count), given)
    else:
        author.put(prim, "points", "point3f[]", points)
        reach = _put_widths(author, prim, count, default_width(box, count), given)
    if author.strict:
        author.put(prim, "extent", "float3[]", bounds(points, reach / 2))
    if colors is not None:
        put_colors(author, prim, colors, {VERTEX: len(points)})
    if semantic_ids is not None:
        put_ids(author, prim, semantic_ids, {VERTEX: len(points)})
    return prim


def define_points_prim(author: Author, path: Any, points_type: str) -> Any:
    """The spec of a cloud's prim, of the type that it has or shall have.

    Raises:
        ConfigError: an unknown type, or another than the prim has.
    """
    if points_type not in POINT_TYPES:
        raise ConfigError(f"points_type {points_type!r}; give one of {', '.join(POINT_TYPES)}")
    prim, kind = author.prim(path, ""), POINT_TYPES[points_type]
    if prim.typeName not in ("", kind):
        raise ConfigError(f"points_type {points_type!r} for {path}, which is {prim.typeName}; go on with that, or write elsewhere")
    prim.typeName = kind
    return prim


def default_width(box: NDArray[np.float32], count: int) -> float:
    """The width of a point: the shortest side of the cloud by the number of points along it, as if they filled it evenly.

    A flat cloud takes its longest side, over the number along a square; a cloud that is one place takes a hundredth.

    Args:
        box: (2, 3) float32, of ``bounds``.
        count: points.
    """
    if not count or (box[0] > box[1]).any():
        return _SMALLEST
    sides = box[1] - box[0]
    even, flat = sides.min() / np.float32(count ** (1 / 3)), sides.max() / np.float32(count**0.5)
    return float(even) or float(flat) or _SMALLEST


def put_instances(
    author: Author, path: Any, prim: Any, shape: str, count: int, width: float, widths: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """What an instancer needs beside its positions: what it repeats, and how large.

    Args:
        author: writes.
        path: of the instancer in the scene.
        prim: its spec.
        shape: "sphere" or "cube".
        count: instances.
        width: of all of them, where the instancer has none yet.
        widths: (count,) of each; None for the width that they have.

    Returns:
        How wide the instances are: (count,) or one.
    """
    child, (name, unit) = author.prim(f"{path}/{shape}", shape.capitalize()), _SHAPES[shape]
    author.point(prim, "prototypes", [f"{path}/{shape}"])
    author.put(prim, "protoIndices", "int[]", np.zeros(count, np.int32), constant=True)
    if not author.strict or author.held(child, name) is None:
        author.fix(child, name, "double", unit)
        widths = np.full(count, width, np.float32) if widths is None else widths
    if widths is None:
        return _keep_width(author, prim, child, count, width)
    scales = widths * np.float32(unit / author.held(child, name))
    author.put(prim, "scales", "float3[]", np.repeat(scales[:, None], 3, axis=1), constant=True)
    return widths


def _keep_width(author: Author, prim: Any, child: Any, count: int, width: float) -> NDArray[np.float32]:
    """Let all instances have the width that they have.

    USD wants as many scales as instances, twelve bytes each. Where they are the same at all times and their number changes, they go,
    and the shape itself takes the size.
    """
    (name, unit), scales = _SHAPES[child.name], author.held(prim, "scales")
    if scales is None:
        return np.asarray(author.held(child, name) / unit, np.float32)
    width = float(scales[0][0]) if len(scales) else width
    if author.is_sampled(prim, "scales"):
        author.put(prim, "scales", "float3[]", np.full((count, 3), width, np.float32))
    elif len(scales) != count:
        author.remove(prim, "scales")
        author.fix(child, name, "double", unit * width)
    return np.asarray(width, np.float32)


def _put_widths(author: Author, prim: Any, count: int, width: float, widths: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """The diameters of points: those given, else the width that they have."""
    held = author.held(prim, "widths") if author.strict else None
    if widths is None:
        widths = np.full(count, held[0] if held else width, np.float32)
    attribute = author.put(prim, "widths", "float[]", widths, constant=True)
    if author.strict:
        attribute.SetInfo("interpolation", VERTEX)
    return widths


def _to_widths(prim: Any, widths: Any, count: int) -> NDArray[np.float32]:
    array = to_host(widths).astype(np.float32)
    if array.shape not in ((), (1,), (count,)) or not (array >= 0).all():
        raise ConfigError(f"widths of {prim.name}: {array.shape}; give {count} or one, none below zero")
    return np.ascontiguousarray(np.broadcast_to(array, (count,)))
