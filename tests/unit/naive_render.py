"""A renderer by the book, one pixel at a time in float64, and the meshes that tests draw with both."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scenemill.trainers.render import generate_perspective_projection, generate_transformation_matrix, prepare_vertices

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Faces:
    """(B, F, 3), (B, F, 3, 2), (B, F): what a renderer is given."""

    z: Tensor
    image: Tensor
    normals_z: Tensor


def sphere(rings: int = 8, around: int = 12) -> tuple[Tensor, Tensor]:
    """(V, 3) float64 and (F, 3): a sphere of radius 1, faces turned outwards."""
    down = torch.arange(1, rings, dtype=torch.float64) * math.pi / rings
    turn = torch.arange(around, dtype=torch.float64) * 2 * math.pi / around
    belt = [torch.stack([angle.sin() * turn.cos(), angle.cos().expand(around), angle.sin() * turn.sin()], dim=1) for angle in down]
    vertices = torch.cat([torch.tensor([[0.0, 1.0, 0.0], [0.0, -1.0, 0.0]], dtype=torch.float64), *belt])
    faces = []
    for step in range(around):
        after = (step + 1) % around
        faces.append((0, 2 + after, 2 + step))
        last = 2 + (rings - 2) * around
        faces.append((1, last + step, last + after))
        for ring in range(rings - 2):
            first = 2 + ring * around
            faces.append((first + step, first + after, first + around + step))
            faces.append((first + after, first + around + after, first + around + step))
    return vertices, torch.tensor(faces)


def read_obj(path: Path) -> tuple[Tensor, Tensor]:
    """Vertices (V, 3) float64 and triangles (F, 3)."""
    rows = [line.split() for line in path.read_text().splitlines() if line.strip()]
    vertices = [[float(number) for number in row[1:4]] for row in rows if row[0] == "v"]
    faces = [[int(corner.split("/")[0]) - 1 for corner in row[1:4]] for row in rows if row[0] == "f"]
    return torch.tensor(vertices, dtype=torch.float64), torch.tensor(faces)


def seen(vertices: Tensor, faces: Tensor, positions: list[tuple[float, float, float]], centre: float = 0.0) -> Faces:
    """Faces as cameras at some positions see them that look at (centre, centre, centre), 45 degrees high."""
    dtype, count = vertices.dtype, len(positions)
    position = torch.tensor(positions, dtype=dtype)
    up = torch.tensor([[0.0, 1.0, 0.0]], dtype=dtype)
    matrix = generate_transformation_matrix(position, torch.full((count, 3), centre, dtype=dtype), up)
    projection = generate_perspective_projection(math.pi / 4, 1.0, dtype)
    corners, image, normals = prepare_vertices(vertices.expand(count, -1, -1), faces, projection, camera_transform=matrix)
    return Faces(corners[..., 2], image, normals[..., 2])


def soup(seed: int, count: int, batch: int = 2) -> Faces:
    """Triangles at random, some of them partly beyond the image, both windings."""
    generator = torch.Generator().manual_seed(seed)
    middle = 2.4 * torch.rand(batch, count, 1, 2, dtype=torch.float64, generator=generator) - 1.2
    image = middle + torch.rand(batch, count, 3, 2, dtype=torch.float64, generator=generator) - 0.5
    z = -1 - torch.rand(batch, count, 3, dtype=torch.float64, generator=generator)
    return Faces(z, image, torch.rand(batch, count, dtype=torch.float64, generator=generator) - 0.3)


def centre_of(row: int, column: int, height: int, width: int) -> Array:
    """x and y of the centre of a pixel."""
    return np.array([(2 * column + 1 - width) / width, (height - 2 * row - 1) / height])


def weights_at(triangles: Array, point: Array) -> Array:
    """(n, 3): barycentric weights by solving for them: they sum to 1 and give the point."""
    rows = np.concatenate([triangles.swapaxes(1, 2), np.ones((len(triangles), 1, 3))], axis=1)
    return np.linalg.solve(rows, np.tile(np.append(point, 1.0)[:, None], (len(triangles), 1, 1)))[..., 0]


def draw(height: int, width: int, faces: Faces, features: Tensor, valid: Tensor | None = None) -> tuple[Array, NDArray[np.int64]]:
    """Features (B, H, W, D) and faces (B, H, W)."""
    batch, count = faces.z.shape[:2]
    drawn = np.ones((batch, count), bool) if valid is None else valid.numpy()
    found, index = np.zeros((batch, height, width, features.shape[3])), np.full((batch, height, width), -1)
    for place in np.ndindex(batch, height, width):
        point, triangles = centre_of(place[1], place[2], height, width), faces.image[place[0]].numpy()
        boxed = (point >= triangles.min(1)).all(1) & (point < triangles.max(1)).all(1) & drawn[place[0]]
        near, best = boxed.nonzero()[0], -np.inf
        for face, weights in zip(near, weights_at(triangles[near], point), strict=True):
            depth = weights @ faces.z[place[0], face].numpy()
            if weights.min() >= 0 and depth > best:
                best, index[place] = depth, face
                found[place] = weights @ features[place[0], face].numpy()
    return found, index


def outline_square(triangle: Array, point: Array) -> float:
    """Squared distance to the nearest point of the three edges."""
    squares = []
    for start, stop in zip(triangle, np.roll(triangle, -1, axis=0), strict=True):
        along = stop - start
        share = np.clip((point - start) @ along / (along @ along), 0.0, 1.0)
        squares.append(float(((start + share * along - point) ** 2).sum()))
    return min(squares)


def soft_mask(faces: Faces, index: NDArray[np.int64], sigmainv: float, boxlen: float, knum: int, nearest: bool = False) -> Array:
    """(B, H, W)."""
    batch, height, width = index.shape
    mask = np.ones((batch, height, width))
    for place in np.ndindex(batch, height, width):
        if index[place] >= 0:
            continue
        point, squares = centre_of(place[1], place[2], height, width), []
        for triangle in faces.image[place[0]].numpy():
            if (point >= triangle.min(0) - boxlen).all() and (point < triangle.max(0) + boxlen).all():
                squares.append(outline_square(triangle, point))
        squares = sorted(squares)[:knum] if nearest else squares[:knum]
        mask[place] = 1 - np.prod([1 - math.exp(-sigmainv * square) for square in squares])
    return mask
