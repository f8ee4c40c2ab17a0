"""Voxel grids into stages and files, and out of them as tensors.

Source: PointInstancer of UsdGeom; the names and arguments are those of Kaolin's ``io.usd``, Apache 2.0.
"""

from collections.abc import Sequence
from os import PathLike
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from scenemill.schemas.errors import ConfigError
from scenemill.trainers.usd.arrays import to_host
from scenemill.trainers.usd.authoring import Author
from scenemill.trainers.usd.mesh_export import common_length
from scenemill.trainers.usd.reading import is_voxelgrid, read_voxelgrid
from scenemill.trainers.usd.stages import all_prims, find_prim, new_stage, open_stage
from scenemill.trainers.usd.voxelgrids import define_voxelgrid


def to_occupied(what: str, voxelgrid: Any) -> NDArray[np.bool_]:
    """A grid as bool: what is not zero is occupied.

    Raises:
        ConfigError: not three axes, or one of no length.
    """
    grid = to_host(voxelgrid)
    if grid.ndim != 3 or not grid.size:
        raise ConfigError(f"{what}: {grid.shape}; give (X, Y, Z)")
    return np.asarray(grid != 0)


def add_voxelgrid(stage: Any, voxelgrid: Any, scene_path: Any, time: float | None = None, strict: bool = False) -> Any:
    """Add a voxel grid to a stage, which is not saved.

    Args:
        stage: the stage.
        voxelgrid: (X, Y, Z) bool or numbers; what is not zero is occupied.
        scene_path: of the grid.
        time: None for values that hold at any time.
        strict: write what viewers want beyond that, an extent; and on a timeline only what changed.

    Returns:
        The stage.

    Raises:
        ConfigError: a grid of another form.
    """
    author = Author.on_stage(stage, time, strict)
    author.close(define_voxelgrid(author, str(scene_path), to_occupied("voxelgrid", voxelgrid)))
    return stage


def export_voxelgrid(
    file_path: str | PathLike[str],
    voxelgrid: Any,
    scene_path: Any = "/World/VoxelGrids/voxelgrid_0",
    time: float | None = None,
    overwrite: bool = False,
    strict: bool = False,
) -> Any:
    """Write a voxel grid as a file; see ``add_voxelgrid``.

    Raises:
        FileExistsError: a file is there, and ``overwrite`` is not given.
        ConfigError: a grid of another form.
    """
    return export_voxelgrids(file_path, [voxelgrid], [scene_path], [time], overwrite, strict)


def export_voxelgrids(
    file_path: str | PathLike[str],
    voxelgrids: Sequence[Any],
    scene_paths: Sequence[Any] | None = None,
    times: Sequence[float | None] | None = None,
    overwrite: bool = False,
    strict: bool = False,
) -> Any:
    """Write several voxel grids as a file.

    Args:
        file_path: ``.usd`` or ``.usdc``, binary, or ``.usda``, text.
        voxelgrids: one (X, Y, Z) for each grid.
        scene_paths: None for ``/World/VoxelGrids/voxelgrid_0`` and so on.
        times: one for each grid; None for values that hold at any time.
        overwrite: replace a file that is there.
        strict: as in ``add_voxelgrid``.

    Returns:
        The stage (``Usd.Stage``), saved.

    Raises:
        FileExistsError: a file is there, and shall not be replaced.
        ConfigError: lists of different lengths, or a grid of another form.
    """
    count = common_length({"voxelgrids": voxelgrids, "scene_paths": scene_paths, "times": times})
    stage = new_stage(file_path, overwrite)
    for number, path in enumerate(scene_paths or [f"/World/VoxelGrids/voxelgrid_{number}" for number in range(count)]):
        add_voxelgrid(stage, voxelgrids[number], path, None if times is None else times[number], strict)
    stage.Save()
    return stage


def import_voxelgrid(file_or_stage: Any, scene_path: Any, time: float | None = None) -> torch.Tensor:
    """The voxel grid at a path, (X, Y, Z) bool; a cube where the file does not say otherwise.

    Raises:
        ConfigError: no instancer there; or no time was given, and all there is are samples.
        SourceError: voxels outside the grid.
    """
    stage = open_stage(file_or_stage)  # prims live as long as their stage
    return torch.from_numpy(read_voxelgrid(find_prim(stage, scene_path), time).occupied())


def import_voxelgrids(
    file_or_stage: Any, scene_paths: Sequence[Any] | None = None, times: Sequence[float | None] | None = None
) -> list[torch.Tensor]:
    """Voxel grids, in the order of their paths; None for all of the scene. See ``import_voxelgrid``.

    Raises:
        ConfigError: times of another number than paths; else as ``import_voxelgrid``.
    """
    stage = open_stage(file_or_stage)
    paths = [prim.GetPath() for prim in all_prims(stage) if is_voxelgrid(prim)] if scene_paths is None else list(scene_paths)
    if times is not None and len(times) != len(paths):
        raise ConfigError(f"{len(times)} times for {len(paths)} voxel grids; give one for each")
    return [import_voxelgrid(stage, path, time) for path, time in zip(paths, times or [None] * len(paths), strict=True)]
