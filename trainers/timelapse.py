"""3D checkpoints of a training: batches of meshes, point clouds and voxel grids over iterations, as USD files that any viewer opens.

    <log_dir>/<category>/mesh_<i>.usd, pointcloud_<i>.usd, voxelgrid_<i>.usd
    <log_dir>/<category>/textures/mesh_<i>_<material>_<iteration>_<map>.png
    <log_dir>/labels.json

A file holds one sample of a batch at all iterations. What is the same as before is not written again.

Source: the classes and arguments of Kaolin's ``visualize.timelapse``, Apache 2.0; a user changes the import.
"""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from functools import partial
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scenemill.schemas.errors import ConfigError
from scenemill.trainers.timelapse_parser import LABELS_FILE, TimelapseParser
from scenemill.trainers.usd.arrays import to_rows
from scenemill.trainers.usd.authoring import Author
from scenemill.trainers.usd.items import writing
from scenemill.trainers.usd.meshes import MeshParts, define_mesh
from scenemill.trainers.usd.pointclouds import define_pointcloud
from scenemill.trainers.usd.stages import check_up_axis
from scenemill.trainers.usd.textures import TextureFolder
from scenemill.trainers.usd.variants import put_variants
from scenemill.trainers.usd.voxelgrid_io import to_occupied
from scenemill.trainers.usd.voxelgrids import define_voxelgrid
from scenemill.transforms.publish import write_whole

__all__ = ["LABELS_FILE", "BatchError", "Timelapse", "TimelapseParser"]


class BatchError(ConfigError, AssertionError):
    """Lists of a batch that do not fit together; Kaolin raises AssertionError."""


class Timelapse:
    """Writes batches of 3D data at iterations of a training.

    Every argument that ends with ``_list``, and colours, ids and widths, are batches: one entry for each sample, or one tensor with the
    samples along its first axis. Entries are tensors on any device, with or without a gradient, or arrays, of any kind of number. None
    for a batch or an entry leaves what there is: what was given once holds until something else is given. An iteration may be written
    again, which replaces what it had, and in any order; no other iteration changes by that.

    Each call leaves whole files, which others may read meanwhile; a kill in a call leaves them as they were. One process writes a file.

    Args:
        log_dir: the folder; made when it is needed. What is there goes on, also what Kaolin wrote.
        up_axis: "Y" or "Z", of new files.
        meters_per_unit: the size of a unit, for files that do not say; None for a hundredth, as USD takes it.
        fps: iterations a second when a file is played; None for what a file says, or USD assumes.

    Raises:
        ConfigError: another axis; a size or speed that is not above zero.
    """

    def __init__(
        self, log_dir: str | PathLike[str], up_axis: str = "Y", *, meters_per_unit: float | None = None, fps: float | None = None
    ) -> None:
        check_up_axis(up_axis)
        for name, value in (("meters_per_unit", meters_per_unit), ("fps", fps)):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ConfigError(f"{name}={value}; give a number above zero")
        self.logdir = log_dir
        self._settings = (up_axis, meters_per_unit, fps)
        self._textures: dict[Path, TextureFolder] = {}

    def add_mesh_batch(
        self,
        iteration: float = 0,
        category: str = "",
        vertices_list: Any = None,
        faces_list: Any = None,
        uvs_list: Any = None,
        face_uvs_idx_list: Any = None,
        face_normals_list: Any = None,
        materials_list: Any = None,
        *,
        vertex_colors_list: Any = None,
        face_colors_list: Any = None,
        semantic_ids_list: Any = None,
    ) -> None:
        """Write a batch of meshes.

        Args:
            iteration: 0 or more.
            category: the folder of the batch in the log; its parts are apart by "/".
            vertices_list: (V, 3) numbers each.
            faces_list: (F, n) integers each, n 3 or more.
            uvs_list: (U, 2) numbers each, v down as in images.
            face_uvs_idx_list: (F, n) integers each, rows of the uvs; only with uvs.
            face_normals_list: (F, n, 3) numbers each.
            materials_list: for each a ``PBRMaterial`` of ours or of Kaolin's, a list of them, or a dictionary by name.
            vertex_colors_list: (V, 3) or (V, 4) each, or one colour; floats from 0 to 1 or uint8.
            face_colors_list: (F, 3) or (F, 4) each, or one colour.
            semantic_ids_list: (F,) or (V,) integers each, or one.

        Raises:
            BatchError: batches of different lengths, or none at all.
            ConfigError: values of another form, or that do not fit together; a category outside the log; an iteration below zero.
        """
        batches = {
            "vertices": vertices_list,
            "faces": faces_list,
            "uvs": uvs_list,
            "face_uvs_idx": face_uvs_idx_list,
            "face_normals": face_normals_list,
            "materials": materials_list,
            "vertex_colors": vertex_colors_list,
            "face_colors": face_colors_list,
            "semantic_ids": semantic_ids_list,
        }
        for number, parts in _samples(batches):
            materials, name = parts.pop("materials"), f"mesh_{number}"
            with self._writing(category, name, iteration) as author:
                define_mesh(author, f"/{name}", MeshParts(**parts))
                if materials is not None:
                    put_variants(author, f"/{name}", _by_name(materials), partial(self._save_map, category, name, iteration))

    def add_pointcloud_batch(
        self,
        iteration: float = 0,
        category: str = "",
        pointcloud_list: Any = None,
        colors: Any = None,
        points_type: str = "point_instancer",
        *,
        semantic_ids: Any = None,
        widths: Any = None,
    ) -> None:
        """Write a batch of point clouds.

        Args:
            iteration: 0 or more.
            category: the folder of the batch in the log.
            pointcloud_list: (N, 3) numbers each; N may change and be 0.
            colors: (N, 3) or (N, 4) each, or one colour; floats from 0 to 1 or uint8.
            points_type: "point_instancer" or "usd_geom_points"; a file keeps its own.
            semantic_ids: (N,) integers each, or one.
            widths: (N,) diameters each, or one; None for those of the iterations before, and at first for about the distance of points.

        Raises:
            BatchError: batches of different lengths, or none at all.
            ConfigError: as ``add_mesh_batch``; another type of points than the file has; colours, ids or widths without points.
        """
        batches = {"points": pointcloud_list, "colors": colors, "semantic_ids": semantic_ids, "widths": widths}
        for number, parts in _samples(batches, needed="points"):
            name = f"pointcloud_{number}"
            points = to_rows(f"{category}/{name}", parts.pop("points"), 3)
            with self._writing(category, name, iteration) as author:
                define_pointcloud(author, f"/{name}", points, points_type, **parts)

    def add_voxelgrid_batch(
        self,
        iteration: float = 0,
        category: str = "",
        voxelgrid_list: Any = None,
        colors: Any = None,
        semantic_ids: Any = None,
        *,
        centered: bool = False,
    ) -> None:
        """Write a batch of voxel grids.

        Args:
            iteration: 0 or more.
            category: the folder of the batch in the log.
            voxelgrid_list: (X, Y, Z) bool or numbers each; what is not zero is occupied.
            colors: (X, Y, Z, 3) each, or (K, 3) of the K occupied voxels, z fastest, or one colour; a fourth number is opacity.
            semantic_ids: (X, Y, Z) integers each, or (K,), or one.
            centered: let a grid fill -0.5 to 0.5; else it is at about 0 to 1, as Kaolin has it.

        Raises:
            BatchError: batches of different lengths, or none at all.
            ConfigError: as ``add_mesh_batch``; colours or ids without a grid.
        """
        batches = {"voxelgrid": voxelgrid_list, "colors": colors, "semantic_ids": semantic_ids}
        for number, parts in _samples(batches, needed="voxelgrid"):
            name = f"voxelgrid_{number}"
            occupied = to_occupied(f"{category}/{name}", parts.pop("voxelgrid"))
            with self._writing(category, name, iteration) as author:
                define_voxelgrid(author, f"/{name}", occupied, **parts, centered=centered)

    def set_labels(self, labels: Mapping[int, str | tuple[str, tuple[float, float, float]]]) -> None:
        """Say what semantic ids mean, for the whole log; replaces what was said before.

        Args:
            labels: id -> name, or name and colour: three floats from 0 to 1, or three integers from 0 to 255.

        Raises:
            ConfigError: a colour of another form.
        """
        rows = [{"id": int(number), **_label(value)} for number, value in sorted(labels.items())]
        write_whole(Path(self.logdir, LABELS_FILE), json.dumps({"version": 1, "labels": rows}, indent=1).encode())

    def flush(self) -> None:
        """Nothing is held back: every call leaves whole files."""

    def close(self) -> None:
        """End writing; the same as ``flush``."""
        self.flush()

    def __enter__(self) -> "Timelapse":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _writing(self, category: str, name: str, iteration: float) -> AbstractContextManager[Author]:
        return writing(self._folder(category) / f"{name}.usd", _to_time(iteration), *self._settings)

    def _folder(self, category: str) -> Path:
        root = Path(self.logdir).resolve()
        folder = (root / category).resolve()
        if not folder.is_relative_to(root):
            raise ConfigError(f"category {category!r} leads out of {root}; give one within it")
        return folder

    def _save_map(self, category: str, name: str, iteration: float, material: str, map_name: str, pixels: NDArray[np.uint8]) -> str:
        folder = self._folder(category) / "textures"
        textures = self._textures.setdefault(folder, TextureFolder(folder))
        time = _to_time(iteration)
        shown = int(time) if time == int(time) else time
        return f"textures/{textures.save(f'{name}_{material}_{map_name}', f'{name}_{material}_{shown}_{map_name}', pixels)}"


def _samples(batches: Mapping[str, Any], needed: str = "") -> Iterator[tuple[int, dict[str, Any]]]:
    """What each sample of a batch is given; samples that are given nothing are left out."""
    lengths = {name: len(batch) for name, batch in batches.items() if batch is not None}
    if len(set(lengths.values())) != 1:
        raise BatchError(f"batches of {lengths or 'nothing'}; give at least one, all of the same length")
    for number in range(next(iter(lengths.values()))):
        parts = {name: None if batch is None else batch[number] for name, batch in batches.items()}
        if needed and parts[needed] is None and any(part is not None for part in parts.values()):
            raise ConfigError(f"sample {number} has no {needed}; give it with its colours, ids and widths")
        if any(part is not None for part in parts.values()):
            yield number, parts


def _by_name(materials: Any) -> dict[str, Any]:
    """The materials of a mesh by name, as numbers where they have none."""
    if isinstance(materials, Mapping):
        return {str(name): material for name, material in materials.items()}
    several = materials if isinstance(materials, list | tuple) else [materials]
    return {str(number): material for number, material in enumerate(several)}


def _to_time(iteration: Any) -> float:
    time = float(iteration)
    if not (math.isfinite(time) and time >= 0):
        raise ConfigError(f"iteration {iteration}; give a number from 0")
    return time


def _label(value: str | tuple[str, tuple[float, float, float]]) -> dict[str, Any]:
    name, color = (value, None) if isinstance(value, str) else value
    if color is None:
        return {"name": name, "color": None}
    parts = [float(part) / (255 if isinstance(part, int | np.integer) else 1) for part in color]
    if len(parts) != 3 or not all(0 <= part <= 1 for part in parts):
        raise ConfigError(f"colour {color} of label {name!r}; give three floats from 0 to 1, or three integers from 0 to 255")
    return {"name": name, "color": parts}
