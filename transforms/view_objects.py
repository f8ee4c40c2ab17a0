"""Made-up textured objects whose surface is known exactly: for views to fit, and to measure a fit against.

Each is one or more outlines turned about an axis. Its texture is painted from a colour for every point of the surface, so that
shape and colour can be told apart in any view. Objects lie around the origin, at most one unit across, y up.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from scenemill.schemas.errors import ConfigError

TEXTURE: Final = 256  # texels a side, of each part
_AROUND: Final = 64  # corners of a turned outline
_CHECKS: Final = 8  # squares of a checker along a unit

Array = NDArray[np.float64]
Paint = Callable[[Array], Array]
"""Colours in [0, 1] of points of a surface, both (..., 3)."""


@dataclass(frozen=True)
class TexturedObject:
    """Triangles with a texture; closed, and counter-clockwise as seen from outside.

    Attributes:
        vertices: (V, 3) float64.
        faces: (F, 3) int64, rows of ``vertices``.
        uvs: (U, 2) float64, v up.
        face_uvs_idx: (F, 3) int64, rows of ``uvs``.
        texture: (T, T * parts, 3) uint8, the first row on top.
    """

    vertices: Array
    faces: NDArray[np.int64]
    uvs: Array
    face_uvs_idx: NDArray[np.int64]
    texture: NDArray[np.uint8]


def make_object(name: str) -> TexturedObject:
    """A made-up object.

    Raises:
        ConfigError: no such object; names those there are.
    """
    if name not in OBJECTS:
        raise ConfigError(f"object {name!r} is not known; use one of {', '.join(OBJECTS)}, or a mesh file")
    return join_parts(OBJECTS[name]())


def revolve(outline: Array, paint: Paint, around: int = _AROUND) -> TexturedObject:
    """An outline turned about the y axis.

    Args:
        outline: (N, 2), radius and height of its points: from the lowest point of the axis to the highest, or closed, counter-clockwise.
        paint: its colours.
        around: corners of a turn.
    """
    rows, columns = np.meshgrid(np.arange(len(outline)), np.arange(around + 1), indexing="ij")
    on_axis = outline[:, 0] == 0
    closed = bool((outline[0] == outline[-1]).all())
    vertex = np.where(on_axis[:, None], rows * around, rows % (len(outline) - closed) * around + columns % around)
    length = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(outline, axis=0), axis=1))])
    uvs = np.stack([columns / around, np.broadcast_to((length / length[-1])[:, None], columns.shape)], axis=-1)
    corners = np.arange(uvs[..., 0].size).reshape(columns.shape)
    quads = np.stack([corners[:-1, :-1], corners[:-1, 1:], corners[1:, 1:], corners[1:, :-1]], axis=-1).reshape(-1, 4)
    face_uvs_idx = np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])
    faces = vertex.reshape(-1)[face_uvs_idx]
    whole = (faces != np.roll(faces, 1, axis=1)).all(axis=1)  # at the axis one of the two triangles has no area
    points = turn(outline[:, None], columns[:, :-1] / around).reshape(-1, 3)
    used, faces = np.unique(faces[whole], return_inverse=True)
    texture = _paint_texture(outline, length / length[-1], paint)
    return TexturedObject(points[used], faces.reshape(-1, 3), uvs.reshape(-1, 2), face_uvs_idx[whole], texture)


def turn(outline: Array, share: Array) -> Array:
    """(..., 3) points of an outline (..., 2) turned about the y axis by shares of a turn, from z over x."""
    angle = 2 * np.pi * share
    radius, height = np.broadcast_arrays(*np.moveaxis(outline, -1, 0))
    radius, height, angle = np.broadcast_arrays(radius, height, angle)
    return np.stack([radius * np.sin(angle), height, radius * np.cos(angle)], axis=-1)


def _paint_texture(outline: Array, share: Array, paint: Paint) -> NDArray[np.uint8]:
    """(T, T, 3) uint8: the colours of a turned outline, at the centres of texels."""
    centre = (np.arange(TEXTURE) + 0.5) / TEXTURE
    along = np.stack([np.interp(centre[::-1], share, outline[:, axis]) for axis in range(2)], axis=-1)
    colors = paint(turn(along[:, None], centre[None]))
    return np.rint(255 * np.clip(colors, 0, 1)).astype(np.uint8)


def moved(part: TexturedObject, matrix: Array, offset: Sequence[float] = (0.0, 0.0, 0.0)) -> TexturedObject:
    """A part elsewhere: ``vertices @ matrix + offset``, with a (3, 3) matrix of positive determinant."""
    vertices = part.vertices @ matrix + np.array(offset)
    return TexturedObject(vertices, part.faces, part.uvs, part.face_uvs_idx, part.texture)


def join_parts(parts: Sequence[TexturedObject]) -> TexturedObject:
    """Parts as one object, their textures side by side; half a texel at the seams is left out, so that no part bleeds into another."""
    vertex_start = np.cumsum([0, *(len(part.vertices) for part in parts)])
    uv_start = np.cumsum([0, *(len(part.uvs) for part in parts)])
    uvs = [
        np.stack([(place + (0.5 + part.uvs[:, 0] * (TEXTURE - 1)) / TEXTURE) / len(parts), part.uvs[:, 1]], axis=1)
        for place, part in enumerate(parts)
    ]
    return TexturedObject(
        np.concatenate([part.vertices for part in parts]),
        np.concatenate([part.faces + start for part, start in zip(parts, vertex_start[:-1], strict=True)]),
        np.concatenate(uvs),
        np.concatenate([part.face_uvs_idx + start for part, start in zip(parts, uv_start[:-1], strict=True)]),
        np.concatenate([part.texture for part in parts], axis=1),
    )


def write_obj(shown: TexturedObject, folder: Path, name: str) -> Path:
    """Write an object as ``name.obj`` with its material and texture beside it; the path of the first."""
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(shown.texture).save(folder / f"{name}.png")
    (folder / f"{name}.mtl").write_text(f"newmtl {name}\nKd 1 1 1\nmap_Kd {name}.png\n", encoding="utf-8")
    corners = np.stack([shown.faces, shown.face_uvs_idx], axis=-1) + 1
    lines = [f"mtllib {name}.mtl"]
    lines += ["v {:.9g} {:.9g} {:.9g}".format(*vertex) for vertex in shown.vertices.tolist()]
    lines += ["vt {:.9g} {:.9g}".format(*uv) for uv in shown.uvs.tolist()]
    lines.append(f"usemtl {name}")
    lines += ["f " + " ".join(f"{vertex}/{uv}" for vertex, uv in face) for face in corners.tolist()]
    path = folder / f"{name}.obj"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def by_position(points: Array) -> Array:
    """Red, green and blue by x, y and z, on a checker of light and dark squares."""
    squares = np.floor((points + 1e-9) * _CHECKS).sum(axis=-1) % 2
    colors: Array = (points + 0.5) * (0.55 + 0.45 * squares)[..., None]
    return colors


def _arc(radius: float, centre: tuple[float, float], count: int, whole: bool) -> Array:
    """(count + 1, 2) points of half a circle from below to above, or of a whole one."""
    angle = np.linspace(-np.pi / 2, np.pi / 2, count + 1) if not whole else np.linspace(-np.pi, np.pi, count + 1)
    points = np.stack([centre[0] + radius * np.cos(angle), centre[1] + radius * np.sin(angle)], axis=1)
    if whole:
        points[-1] = points[0]
    else:
        points[[0, -1], 0] = centre[0]
    return points


def _sphere() -> list[TexturedObject]:
    return [revolve(_arc(0.5, (0.0, 0.0), 32, whole=False), by_position)]


def _torus() -> list[TexturedObject]:
    return [revolve(_arc(0.15, (0.35, 0.0), 32, whole=True), by_position)]


def _vase() -> list[TexturedObject]:
    """A hollow one: up the outer wall, over the rim, down the inner one."""
    height = np.linspace(-0.5, 0.5, 33)
    outer = 0.2 + 0.09 * np.sin(2 * np.pi * (height + 0.35)) + 0.05 * height
    inside = slice(None, 2, -1)
    inner = np.stack([outer[inside] - 0.03, height[inside]], axis=1)
    outline = np.concatenate([[[0.0, -0.5]], np.stack([outer, height], axis=1), inner, [[0.0, inner[-1, 1]]]])
    return [revolve(outline, by_position)]


def _clock() -> list[TexturedObject]:
    """A round table clock that shows ten past ten, on two feet, with a bell."""
    body = np.array([[0.0, -0.1], [0.3, -0.1], [0.34, -0.08], [0.34, 0.08], [0.32, 0.1], [0.3, 0.1], [0.3, 0.09], [0.0, 0.09]])
    dense = np.concatenate([np.linspace(start, end, 5)[:-1] for start, end in pairwise(body)] + [body[-1:]])
    upright = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])  # y, the axis, to z
    ball = revolve(_arc(0.07, (0.0, 0.0), 12, whole=False), _plain(0.85, 0.65, 0.2), around=24)
    parts = [moved(revolve(dense, _clock_paint), upright)]
    parts += [moved(ball, np.eye(3), place) for place in ((-0.22, -0.33, 0.0), (0.22, -0.33, 0.0), (0.0, 0.38, 0.0))]
    return parts


def _plain(red: float, green: float, blue: float) -> Paint:
    return lambda points: np.broadcast_to(np.array([red, green, blue]), points.shape)


def _clock_paint(points: Array) -> Array:
    """A dial on the front of the body, whose axis is still y here; red round it and blue behind."""
    right, up = points[..., 0], -points[..., 2]
    radius, angle = np.hypot(right, up), np.arctan2(right, up)
    front = (points[..., 1] > 0.085) & (radius < 0.3)
    tick = (radius > 0.24) & (np.abs((angle * 6 / np.pi + 0.5) % 1 - 0.5) < 0.12)
    hands = _on_hand(right, up, 2 * np.pi / 6, 0.22, 0.012) | _on_hand(right, up, 2 * np.pi * 61 / 72, 0.15, 0.018)
    paint = np.where((points[..., 1] > -0.085)[..., None], (0.75, 0.12, 0.1), (0.1, 0.2, 0.55))
    return np.where(front[..., None], np.where((tick | hands)[..., None], 0.05, 0.95), paint)


def _on_hand(right: Array, up: Array, angle: float, length: float, half_width: float) -> NDArray[np.bool_]:
    """True on a hand that points a clockwise angle away from up."""
    along = right * np.sin(angle) + up * np.cos(angle)
    across = right * np.cos(angle) - up * np.sin(angle)
    on_hand: NDArray[np.bool_] = (along > 0) & (along < length) & (np.abs(across) < half_width)
    return on_hand


OBJECTS: Final[Mapping[str, Callable[[], list[TexturedObject]]]] = {
    "sphere": _sphere,
    "torus": _torus,
    "vase": _vase,
    "clock": _clock,
}
"""The parts of each object, by name."""
