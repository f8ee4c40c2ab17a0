"""Mock 3D checkpoints: what a training that bends meshes to their truth would leave, in seconds and without a training.

ground_truth    the meshes as they are, with their textures
input           points of their surfaces, coloured, with ids
output          the meshes on their way from a lump to the truth; points and voxels on their way as well
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from scenemill.schemas.errors import ConfigError
from scenemill.trainers.render.surface_distance import sample_surface
from scenemill.trainers.timelapse import Timelapse
from scenemill.trainers.usd.materials import PBRMaterial

OBJECTS: Final = ("clock", "vase")
"""The meshes that are made up where none is given."""

LABELS: Final = {1: ("lower third", (66, 133, 190)), 2: ("middle third", (232, 163, 61)), 3: ("upper third", (90, 160, 90))}
"""What the ids mean."""

_POINTS: Final = 4000
_WIDTH: Final = 0.012  # of a point
_GRID: Final = 32
_EVERY: Final = 10


class _Subject:
    """A mesh around the origin, half a unit to each side at most, and how it looks at any time of the mock training."""

    def __init__(self, vertices: NDArray[Any], faces: NDArray[Any], more: dict[str, Any], seed: int) -> None:
        low, high = vertices.min(axis=0), vertices.max(axis=0)
        self.vertices = ((vertices - (low + high) / 2) / max(float((high - low).max()), 1e-9)).astype(np.float32)
        self.faces, self.more = faces.astype(np.int64), more
        generator = torch.Generator().manual_seed(seed)
        drawn = sample_surface(torch.from_numpy(self.vertices), torch.from_numpy(self.faces), _POINTS, generator)
        self.points = drawn.numpy()
        self._start = np.random.default_rng(seed).uniform(-0.5, 0.5, self.points.shape).astype(np.float32)

    def vertices_at(self, share: float) -> NDArray[np.float32]:
        """(V, 3): from a ball to the truth."""
        ball = self.vertices / np.maximum(np.linalg.norm(self.vertices, axis=1, keepdims=True), 1e-6) * 0.4
        moved: NDArray[np.float32] = ball + (self.vertices - ball) * np.float32(share)
        return moved

    def points_at(self, share: float) -> NDArray[np.float32]:
        """(N, 3): from anywhere to the surface."""
        moved: NDArray[np.float32] = self._start + (self.points - self._start) * np.float32(share)
        return moved

    def texture_at(self, share: float) -> torch.Tensor | None:
        """(H, W, 3) in [0, 1]: from grey to the texture; None without one."""
        texture = self.more.get("texture")
        return None if texture is None else 0.6 + (texture - 0.6) * share


def write_mock_log(
    folder: Path,
    objs: Sequence[Path] = (),
    iterations: int = 101,
    on_progress: Callable[[str, int, int], None] = lambda doing, done, total: None,
) -> tuple[str, ...]:
    """Write a log of mock checkpoints, one at every tenth iteration.

    Args:
        folder: of the log; what is there of these names is written again.
        objs: mesh files; empty for ``OBJECTS``.
        iterations: of the mock training.
        on_progress: told how far it is.

    Returns:
        The categories.

    Raises:
        ConfigError: a file that holds no faces, or no iterations.
    """
    if iterations < 1:
        raise ConfigError(f"iterations {iterations}: give 1 or more")
    found = [_read(path) for path in objs] or [_made_up(name) for name in OBJECTS]
    subjects = [_Subject(vertices, faces, more, seed) for seed, (vertices, faces, more) in enumerate(found)]
    times = range(0, iterations, _EVERY)
    with Timelapse(folder, meters_per_unit=1.0) as log:
        log.set_labels(LABELS)
        _write_truth(log, subjects)
        for number, time in enumerate(times):
            on_progress("Mock checkpoints", number, len(times))
            _write_outputs(log, subjects, time, number / max(len(times) - 1, 1))
    on_progress("Mock checkpoints", len(times), len(times))
    return ("ground_truth", "input", "output")


def _write_truth(log: Timelapse, subjects: Sequence[_Subject]) -> None:
    log.add_mesh_batch(
        0,
        "ground_truth",
        [one.vertices for one in subjects],
        [one.faces for one in subjects],
        [one.more.get("uvs") for one in subjects],
        [one.more.get("face_uvs_idx") for one in subjects],
        materials_list=[_material(one, 1.0) for one in subjects],
        semantic_ids_list=[_thirds(one.vertices[one.faces].mean(axis=1)) for one in subjects],
    )
    points = [one.points for one in subjects]
    log.add_pointcloud_batch(
        0,
        "input",
        points,
        [_colors(part) for part in points],
        semantic_ids=[_thirds(part) for part in points],
        widths=[_WIDTH] * len(points),
    )


def _write_outputs(log: Timelapse, subjects: Sequence[_Subject], time: int, share: float) -> None:
    log.add_mesh_batch(
        time,
        "output",
        [one.vertices_at(share) for one in subjects],
        [one.faces for one in subjects],
        [one.more.get("uvs") for one in subjects],
        [one.more.get("face_uvs_idx") for one in subjects],
        materials_list=[_material(one, share) for one in subjects],
        semantic_ids_list=[_thirds(one.vertices[one.faces].mean(axis=1)) for one in subjects],
    )
    points = [one.points_at(share) for one in subjects]
    ids = [_thirds(one.points) for one in subjects]
    colors = [_colors(one.points) for one in subjects]
    log.add_pointcloud_batch(time, "output", points, colors, semantic_ids=ids, widths=[_WIDTH] * len(points))
    grids = [_voxels(part, own) for part, own in zip(points, ids, strict=True)]
    log.add_voxelgrid_batch(time, "output", [grid > 0 for grid in grids], semantic_ids=grids, centered=True)


def _material(subject: _Subject, share: float) -> dict[str, PBRMaterial]:
    texture = subject.texture_at(share)
    if texture is None:
        return {"painted": PBRMaterial(diffuse_color=(0.35 + 0.4 * share, 0.55, 0.75 - 0.4 * share))}
    return {"painted": PBRMaterial(diffuse_texture=texture)}


def _thirds(points: NDArray[Any]) -> NDArray[np.int32]:
    """(N,) int32, ids of ``LABELS`` by height."""
    ids: NDArray[np.int32] = (1 + np.floor((points[:, 1] + 0.5) * 3).clip(0, 2)).astype(np.int32)
    return ids


def _colors(points: NDArray[Any]) -> NDArray[np.float32]:
    colors: NDArray[np.float32] = (points + 0.5).clip(0, 1).astype(np.float32)
    return colors


def _voxels(points: NDArray[Any], ids: NDArray[np.int32]) -> NDArray[np.int32]:
    """(G, G, G) int32: the id of a point in each voxel that has one; else 0."""
    grid = np.zeros((_GRID,) * 3, np.int32)
    place = np.floor((points + 0.5) * _GRID).clip(0, _GRID - 1).astype(int)
    grid[tuple(place.T)] = ids
    return grid


def _made_up(name: str) -> tuple[NDArray[Any], NDArray[Any], dict[str, Any]]:
    from scenemill.transforms.view_objects import make_object

    made = make_object(name)
    uvs = np.stack([made.uvs[:, 0], 1 - made.uvs[:, 1]], axis=1)  # v down, as files of images have it
    texture = torch.from_numpy(made.texture).float() / 255
    return made.vertices, made.faces, {"uvs": uvs, "face_uvs_idx": made.face_uvs_idx, "texture": texture}


def _read(path: Path) -> tuple[NDArray[Any], NDArray[Any], dict[str, Any]]:
    """A mesh file, whose own materials are left out: the mock training paints it."""
    from scenemill.trainers.mesh_files import import_mesh

    mesh = import_mesh(path, triangulate=True)
    if mesh is None or mesh.vertices is None or mesh.faces is None or not len(mesh.faces):
        raise ConfigError(f"{path}: no faces; give mesh files, or none for made-up meshes")
    return mesh.vertices.numpy(), mesh.faces.numpy(), {}
