"""Meshes that a fit can begin from: a sphere of even triangles, and a place in the texture for meshes that have none."""

import math
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from scenemill.schemas.errors import ConfigError
from scenemill.trainers.mesh_files import import_mesh
from scenemill.trainers.surface_mesh import SurfaceMesh

SPHERE: Final = "sphere"
"""Name of the template that is always there."""

_RING = 5  # vertices of an icosahedron in each of its two rings
_WIDE, _HIGH = 5.5, 3.0  # of its net, in edges and in rows


class Template(NamedTuple):
    """A triangle mesh with a place in the texture for each corner.

    Attributes:
        vertices: (V, 3) float32.
        faces: (F, 3) int64, vertex numbers, counter-clockwise as seen from outside.
        uvs: (U, 2) float32, texture coordinates, v down as in image files.
        face_uvs_idx: (F, 3) int64, rows of ``uvs``.
    """

    vertices: NDArray[np.float32]
    faces: NDArray[np.int64]
    uvs: NDArray[np.float32]
    face_uvs_idx: NDArray[np.int64]


def load_template(name: str) -> Template:
    """A template: ``SPHERE``, or a mesh file; one without texture coordinates gets a place in the texture for each face.

    Raises:
        ConfigError, SourceError: as ``read_surface``.
    """
    if name == SPHERE:
        return icosphere()
    mesh = read_surface("template", name)
    assert mesh.vertices is not None and mesh.faces is not None
    faces = mesh.faces.numpy().astype(np.int64)
    uvs, corners = atlas(len(faces))
    if mesh.uvs is not None and mesh.face_uvs_idx is not None and bool((mesh.face_uvs_idx >= 0).all()):
        uvs, corners = mesh.uvs.numpy().astype(np.float32), mesh.face_uvs_idx.numpy().astype(np.int64)
    return Template(mesh.vertices.numpy().astype(np.float32), faces, uvs, corners)


def read_surface(role: str, path: str) -> SurfaceMesh:
    """The triangles of a mesh file.

    Args:
        role: what the file is for, as errors call it.
        path: OBJ, USD or GLB.

    Returns:
        A mesh with vertices (V, 3) and faces (F, 3), in the frame and unit of the file.

    Raises:
        ConfigError: no such file, or no faces in it.
        SourceError: a damaged file.
    """
    if not Path(path).is_file():
        raise ConfigError(f"{role} {path}: no such file; name a mesh: OBJ, USD or GLB")
    mesh = import_mesh(path, triangulate=True)
    if mesh is None or mesh.vertices is None or mesh.faces is None or not len(mesh.faces):
        raise ConfigError(f"{role} {path}: no faces; give a mesh of triangles or polygons")
    return mesh


def icosphere(level: int = 3) -> Template:
    """A sphere of radius 1 around the origin: an icosahedron, each edge divided into ``2 ** level``, unfolded in the texture.

    >>> [len(part) for part in icosphere(3)]
    [642, 1280, 729, 1280]
    """
    corners, flat = _icosahedron()
    weights, small = _divided(2**level)
    points = np.einsum("pc,fcx->fpx", weights, corners).reshape(-1, 3)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    places = np.einsum("pc,fcx->fpx", weights, flat).reshape(-1, 2)
    numbers = (np.arange(len(corners))[:, None, None] * len(weights) + small).reshape(-1, 3)
    vertices, vertex = _joined(points)
    uvs, uv = _joined(places)
    return Template(vertices.astype(np.float32), vertex[numbers], uvs.astype(np.float32), uv[numbers])


def _icosahedron() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(20, 3, 3) corners of an icosahedron, and (20, 3, 2) where they are in its net, v down, within [0, 1]."""
    latitude = math.atan(0.5)
    triangles = []
    for i in range(_RING):
        upper, lower = [(i, 1), (i + 1, 1)], [(i + 0.5, 2), (i + 1.5, 2)]  # column and row in the net
        triangles += [[upper[0], upper[1], (i + 0.5, 0)], [upper[0], lower[0], upper[1]]]
        triangles += [[lower[0], lower[1], upper[1]], [lower[1], lower[0], (i + 1.0, 3)]]
    net = np.array(triangles, np.float64)
    height = np.array([math.pi / 2, latitude, -latitude, -math.pi / 2])[net[..., 1].astype(int)]
    angle = net[..., 0] * 2 * math.pi / _RING
    corners = np.stack([np.cos(height) * np.sin(angle), np.sin(height), np.cos(height) * np.cos(angle)], axis=-1)
    return corners, net / [_WIDE, _HIGH]


def _divided(parts: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """A triangle with each edge in some parts: (P, 3) weights of its corners at each point, and (parts ** 2, 3) points of its triangles."""
    points = [(i, j) for i in range(parts + 1) for j in range(parts + 1 - i)]
    place = {point: number for number, point in enumerate(points)}
    upright = [(place[i, j], place[i + 1, j], place[i, j + 1]) for i, j in points if i + j < parts]
    turned = [(place[i + 1, j], place[i + 1, j + 1], place[i, j + 1]) for i, j in points if i + j < parts - 1]
    weights = np.array([(parts - i - j, i, j) for i, j in points], np.float64) / parts
    return weights, np.array(upright + turned, np.int64)


def _joined(points: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Points that are the same but for rounding as one, and the number of each."""
    _, first, number = np.unique(points.round(9) + 0.0, axis=0, return_index=True, return_inverse=True)
    return points[first], number.reshape(-1)


def atlas(faces: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """A triangle of the texture for each face, for meshes without texture coordinates: (3F, 2) uvs and (F, 3) rows of them.

    Two faces share a square of a grid, apart by a fifth of it, so that neighbours do not bleed into each other.
    """
    side = max(1, math.ceil(math.sqrt(math.ceil(faces / 2))))
    number = np.arange(faces)
    square = np.stack([number // 2 % side, number // 2 // side], axis=1)[:, None]
    lower = np.array([[0.1, 0.1], [0.7, 0.1], [0.1, 0.7]])
    triangles = np.where((number % 2 == 0)[:, None, None], lower, 1 - lower)
    uvs = ((square + triangles) / side).reshape(-1, 2).astype(np.float32)
    return uvs, np.arange(3 * faces, dtype=np.int64).reshape(-1, 3)
