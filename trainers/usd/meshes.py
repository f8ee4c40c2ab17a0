"""Meshes whose faces all have the same number of corners, with texture coordinates, normals, colours and ids.

Source: Mesh of UsdGeom; the names, the arguments and the plain layout are those of Kaolin's ``io.usd``, Apache 2.0.
"""

import logging
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from scenemill.schemas.errors import ConfigError
from scenemill.trainers.usd.arrays import bounds, to_integers, to_rows
from scenemill.trainers.usd.authoring import Author
from scenemill.trainers.usd.primvars import UNIFORM, VERTEX, put_colors, put_ids

ST: Final = "primvars:st"
"""Attribute of the texture coordinates; their indices are ``primvars:st:indices``."""

CORNER: Final = "faceVarying"
"""USD's word for one for each corner of each face."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class MeshParts:
    """What a call supplies of a mesh; None leaves what there is.

    Attributes:
        vertices: (V, 3) numbers.
        faces: (F, n) integers, n 3 or more.
        uvs: (..., 2) numbers, U rows of them; v goes down, as in images.
        face_uvs_idx: (F, n) integers, rows of ``uvs``.
        face_normals: (F, n, 3) or (F * n, 3) numbers.
        vertex_colors, face_colors: as ``put_colors`` takes them.
        semantic_ids: of the faces, of the vertices, or one.
    """

    vertices: Any = None
    faces: Any = None
    uvs: Any = None
    face_uvs_idx: Any = None
    face_normals: Any = None
    vertex_colors: Any = None
    face_colors: Any = None
    semantic_ids: Any = None


def define_mesh(author: Author, path: Any, parts: MeshParts) -> Any:
    """Write a mesh.

    Args:
        author: writes.
        path: of its prim.
        parts: what to write.

    Returns:
        The prim's spec.

    Raises:
        ConfigError: parts of another form, or that do not fit together.
    """
    prim = author.prim(path, "Mesh")
    if author.strict:
        author.fix(prim, "subdivisionScheme", "token", "none", uniform=True)  # else viewers round every corner off
    if parts.faces is not None:
        _put_faces(author, prim, parts.faces)
    if parts.vertices is not None:
        _put_vertices(author, prim, to_rows(f"vertices of {path}", parts.vertices, 3))
    if parts.uvs is not None:
        _put_uvs(author, prim, parts)
    elif parts.face_uvs_idx is not None:
        _log.warning("%s: face_uvs_idx without uvs is left out; give uvs in the same call", path)
    if parts.face_normals is not None:
        attribute = author.put(prim, "normals", "normal3f[]", to_rows(f"face_normals of {path}", parts.face_normals, 3))
        attribute.SetInfo("interpolation", CORNER)
    _put_colors_and_ids(author, prim, parts)
    return prim


def _put_faces(author: Author, prim: Any, faces: Any) -> None:
    indices = to_integers(f"faces of {prim.name}", faces)
    if indices.ndim != 2 or indices.shape[1] < 3 or (indices < 0).any():
        raise ConfigError(f"faces of {prim.name}: {indices.shape}, from {indices.min(initial=0)}; give (F, 3 or more) from 0")
    author.put(prim, "faceVertexCounts", "int[]", np.full(len(indices), indices.shape[1], np.int32))
    author.put(prim, "faceVertexIndices", "int[]", indices.reshape(-1))


def _put_vertices(author: Author, prim: Any, vertices: NDArray[np.float32]) -> None:
    author.put(prim, "points", "point3f[]", vertices)
    if author.strict:
        author.put(prim, "extent", "float3[]", bounds(vertices))


def _put_uvs(author: Author, prim: Any, parts: MeshParts) -> None:
    uvs = to_rows(f"uvs of {prim.name}", parts.uvs, 2)
    attribute, indexed = author.declare(prim, ST, "float2[]"), author.held(prim, f"{ST}:indices") is not None
    place, known = _place_of(author, prim, parts, len(uvs), indexed), author.interpolation(attribute)
    if author.strict and known not in ("", place) and not indexed:  # files of Kaolin's say "vertex" of some that have indices
        raise ConfigError(
            f"uvs of {prim.name}: {len(uvs)}, which makes them {place}, but {known} in the calls before; "
            "give them so from the first call on, or write to another category"
        )
    attribute.SetInfo("interpolation", place)
    author.put(prim, ST, "float2[]", np.stack([uvs[:, 0], 1 - uvs[:, 1]], axis=1))
    if parts.face_uvs_idx is not None:
        indices = to_integers(f"face_uvs_idx of {prim.name}", parts.face_uvs_idx)
        author.put(prim, f"{ST}:indices", "int[]", indices.reshape(-1))


def _place_of(author: Author, prim: Any, parts: MeshParts, count: int, indexed: bool) -> str:
    if parts.face_uvs_idx is not None or indexed:
        return CORNER
    if count == _count(author, prim, "points", parts.vertices):
        return VERTEX
    return UNIFORM if count == _count(author, prim, "faceVertexCounts", parts.faces) else CORNER


def _put_colors_and_ids(author: Author, prim: Any, parts: MeshParts) -> None:
    if parts.vertex_colors is None and parts.face_colors is None and parts.semantic_ids is None:
        return
    if parts.vertex_colors is not None and parts.face_colors is not None:
        raise ConfigError(f"{prim.name}: colours of vertices and of faces; USD shows one of them, give one")
    vertices = {VERTEX: _count(author, prim, "points", parts.vertices)}
    faces = {UNIFORM: _count(author, prim, "faceVertexCounts", parts.faces)}
    if parts.vertex_colors is not None:
        put_colors(author, prim, parts.vertex_colors, vertices)
    if parts.face_colors is not None:
        put_colors(author, prim, parts.face_colors, faces)
    if parts.semantic_ids is not None:
        put_ids(author, prim, parts.semantic_ids, {**faces, **vertices})


def _count(author: Author, prim: Any, name: str, supplied: Any) -> int:
    """How many elements there are: of what this call supplies, else of what the layer has by now; -1 for no one knows."""
    if supplied is not None:
        return len(supplied)
    held = author.held(prim, name) if author.strict else None
    return -1 if held is None else len(held)
