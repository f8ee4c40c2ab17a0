"""Point clouds into stages and files, and out of them as tensors.

Source: Points and PointInstancer of UsdGeom; the names and arguments are those of Kaolin's ``io.usd``, Apache 2.0.
"""

import warnings
from collections.abc import Sequence
from os import PathLike
from typing import Any, NamedTuple

import torch

from scenemill.schemas.errors import ConfigError
from scenemill.trainers.usd.arrays import to_rows
from scenemill.trainers.usd.authoring import Author
from scenemill.trainers.usd.mesh_export import common_length, to_transforms
from scenemill.trainers.usd.pointclouds import POSITIONS, define_pointcloud
from scenemill.trainers.usd.reading import is_pointcloud, read_pointcloud
from scenemill.trainers.usd.stages import all_prims, find_prim, new_stage, open_stage, set_local_to_world_transform


class pointcloud_return_type(NamedTuple):  # the name that Kaolin gives it
    """A point cloud that was read.

    Attributes:
        points: (N, 3) float32.
        colors: (N, 3) float32 from 0 to 1; None for none.
        normals: None; files have none.
        transform: (4, 4) float64, world from the frame of the points; None for the identity.
    """

    points: torch.Tensor
    colors: torch.Tensor | None
    normals: torch.Tensor | None
    transform: torch.Tensor | None


def get_pointcloud_scene_paths(file_or_stage: Any, scene_path: str | None = None) -> list[str]:
    """The paths of all point clouds, or of those at and below a path."""
    stage = open_stage(file_or_stage)
    return [str(prim.GetPath()) for prim in _clouds_below(stage, scene_path)]


def _clouds_below(stage: Any, scene_path: str | None) -> list[Any]:
    root = find_prim(stage, "/" if scene_path is None else scene_path).GetPath()
    return [prim for prim in all_prims(stage) if is_pointcloud(prim) and prim.GetPath().HasPrefix(root)]


def get_pointcloud_bracketing_time_samples(stage: Any, scene_path: str, target_time: float) -> tuple[float, ...]:
    """The times of the samples of a cloud's points around a time.

    Raises:
        ConfigError: no point cloud there.
    """
    prim = find_prim(stage, scene_path)
    if not is_pointcloud(prim):
        raise ConfigError(f"{scene_path} is {prim.GetTypeName() or 'of no type'}; give the path of a point cloud")
    return tuple(prim.GetAttribute(POSITIONS[str(prim.GetTypeName())]).GetBracketingTimeSamples(target_time))


def import_pointcloud(file_or_stage: Any, scene_path: str | None = None, time: float | None = None) -> pointcloud_return_type:
    """All point clouds at and below a path as one in the world.

    Args:
        file_or_stage: a path or a stage.
        scene_path: None for the whole scene.
        time: None for values that hold at any time.

    Returns:
        The cloud, without a transform; with colours if all that it is made of have them.

    Raises:
        ConfigError: no such prim, or no cloud there; or no time was given, and all there is are samples.
    """
    stage = open_stage(file_or_stage)
    clouds = [_read(prim, time) for prim in _clouds_below(stage, scene_path)]
    if not clouds:
        raise ConfigError(f"no point cloud at {scene_path or '/'} of {stage.GetRootLayer().identifier}; give another path")
    points = torch.cat([_moved(cloud.points, cloud.transform) for cloud in clouds])
    colors = [cloud.colors for cloud in clouds if cloud.colors is not None]
    return pointcloud_return_type(points, torch.cat(colors) if len(colors) == len(clouds) else None, None, None)


def _moved(points: torch.Tensor, transform: torch.Tensor | None) -> torch.Tensor:
    return points if transform is None else (points.double() @ transform[:3, :3].T + transform[:3, 3]).float()


def import_pointclouds(
    file_or_stage: Any,
    scene_paths: Sequence[str] | None = None,
    times: Sequence[float | None] | None = None,
    return_list: bool = True,
) -> list[pointcloud_return_type] | dict[str, pointcloud_return_type]:
    """Point clouds, each in its own frame.

    Args:
        file_or_stage: a path or a stage.
        scene_paths: None for all of the scene.
        times: one for each path; None for values that hold at any time.
        return_list: a list, else a dictionary by path.

    Raises:
        ConfigError: no cloud at a path; or no time was given, and all there is are samples.
    """
    stage = open_stage(file_or_stage)
    paths = get_pointcloud_scene_paths(stage) if scene_paths is None else [str(path) for path in scene_paths]
    if times is not None and len(times) != len(paths):
        raise ConfigError(f"{len(times)} times for {len(paths)} point clouds; give one for each")
    found = {path: _read(find_prim(stage, path), time) for path, time in zip(paths, times or [None] * len(paths), strict=True)}
    return list(found.values()) if return_list else found


def _read(prim: Any, time: float | None) -> pointcloud_return_type:
    cloud = read_pointcloud(prim, time)
    colors = None if cloud.colors is None else torch.from_numpy(cloud.colors)[:, :3]
    transform = torch.from_numpy(cloud.transform)
    is_identity = torch.equal(transform, torch.eye(4, dtype=torch.float64))
    return pointcloud_return_type(torch.from_numpy(cloud.points), colors, None, None if is_identity else transform)


def add_pointcloud(
    stage: Any,
    scene_path: Any = None,
    points: Any = None,
    colors: Any = None,
    local_to_world: torch.Tensor | None = None,
    time: float | None = None,
    overwrite: bool = False,
    points_type: str = "point_instancer",
    strict: bool = False,
    **old_names: Any,
) -> Any:
    """Add a point cloud to a stage, which is not saved.

    Args:
        stage: the stage.
        scene_path: of the cloud.
        points: (N, 3) numbers.
        colors: (N, 3) or (N, 4), or one; floats from 0 to 1 or uint8.
        local_to_world: (4, 4), world from the frame of the points.
        time: None for values that hold at any time.
        overwrite: replace a prim of this path.
        points_type: "point_instancer" or "usd_geom_points".
        strict: write what viewers and validators want beyond that: extents, what has a colour each; and on a timeline only what changed.
        old_names: ``pointcloud`` and ``color``, what points and colours were called.

    Returns:
        The stage.

    Raises:
        ConfigError: another type than the prim has; values that do not fit the points.
    """
    scene_path, points = _in_new_order(scene_path, points, None)
    points, colors = _under_new_names(points, colors, old_names)
    if overwrite:
        stage.RemovePrim(str(scene_path))
    author = Author.on_stage(stage, time, strict)
    author.close(define_pointcloud(author, str(scene_path), to_rows("points", points, 3), points_type, colors))
    if local_to_world is not None:
        set_local_to_world_transform(stage, str(scene_path), local_to_world, time)
    return stage


def export_pointcloud(
    file_path: str | PathLike[str],
    scene_path: Any = "/World/PointClouds/pointcloud_0",
    points: Any = None,
    colors: Any = None,
    local_to_world: torch.Tensor | None = None,
    up_axis: str = "Y",
    time: float | None = None,
    points_type: str = "point_instancer",
    overwrite: bool = False,
    strict: bool = False,
    **old_names: Any,
) -> Any:
    """Write a point cloud as a file; see ``add_pointcloud``.

    Args:
        file_path: ``.usd`` or ``.usdc``, binary, or ``.usda``, text.
        scene_path, points, colors, local_to_world, time, points_type, strict, old_names: as in ``add_pointcloud``.
        up_axis: "Y" or "Z".
        overwrite: replace a file that is there.

    Returns:
        The stage (``Usd.Stage``), saved.

    Raises:
        FileExistsError: a file is there, and shall not be replaced.
        ConfigError: values that do not fit the points.
    """
    scene_path, points = _in_new_order(scene_path, points, "/World/PointClouds/pointcloud_0")
    points, colors = _under_new_names(points, colors, old_names)
    stage = new_stage(file_path, overwrite, up_axis)
    add_pointcloud(stage, scene_path, points, colors, local_to_world, time, points_type=points_type, strict=strict)
    stage.Save()
    return stage


def export_pointclouds(
    file_path: str | PathLike[str],
    scene_paths: Any = None,
    points: Any = None,
    colors: Sequence[Any] | None = None,
    local_to_world: torch.Tensor | None = None,
    up_axis: str = "Y",
    times: Sequence[float | None] | None = None,
    points_type: str = "point_instancer",
    overwrite: bool = False,
    strict: bool = False,
    **old_names: Any,
) -> Any:
    """Write several point clouds as a file; see ``export_pointcloud``.

    Args:
        file_path: ``.usd`` or ``.usdc``, binary, or ``.usda``, text.
        scene_paths: None for ``/World/PointClouds/pointcloud_0`` and so on.
        points, colors, times: one for each cloud; None for none.
        local_to_world: (4, 4), of all, or (N, 4, 4).
        up_axis: "Y" or "Z".
        points_type: of all clouds.
        overwrite: replace a file that is there.
        strict: as in ``add_pointcloud``.
        old_names: ``pointclouds``, what the points were called.

    Returns:
        The stage (``Usd.Stage``), saved.

    Raises:
        FileExistsError: a file is there, and shall not be replaced.
        TypeError: the transform is no tensor.
        ConfigError: lists of different lengths, or values that do not fit the points.
    """
    if scene_paths is not None and not isinstance(scene_paths[0], str):
        points, scene_paths = scene_paths, points
        _warn("the points as second argument", "points=")
    points, colors = _under_new_names(points, colors, old_names)
    count = common_length({"scene_paths": scene_paths, "points": points, "colors": colors, "times": times})
    transforms = to_transforms(local_to_world, count)
    stage = new_stage(file_path, overwrite, up_axis)
    for number, path in enumerate(scene_paths or [f"/World/PointClouds/pointcloud_{number}" for number in range(count)]):
        own, time = None if colors is None else colors[number], None if times is None else times[number]
        add_pointcloud(stage, path, points[number], own, transforms[number], time, points_type=points_type, strict=strict)
    stage.Save()
    return stage


_NEW_NAMES = {"pointcloud": "points", "pointclouds": "points", "color": "colors"}


def _under_new_names(points: Any, colors: Any, old_names: dict[str, Any]) -> tuple[Any, Any]:
    given = {"points": points, "colors": colors}
    for name, value in old_names.items():
        if name not in _NEW_NAMES:
            raise TypeError(f"unknown argument {name}; give one of {', '.join(given)}")
        _warn(f"{name}=", f"{_NEW_NAMES[name]}=")
        given[_NEW_NAMES[name]] = value
    if given["points"] is None:
        raise ConfigError("no points; give points=")
    return given["points"], given["colors"]


def _in_new_order(scene_path: Any, points: Any, default: Any) -> tuple[Any, Any]:
    """The path before the points; they were the other way round once."""
    if not hasattr(scene_path, "shape"):
        return scene_path, points
    _warn("the points as second argument", "points=")
    return default if points is None else points, scene_path


def _warn(old: str, new: str) -> None:
    warnings.warn(f"{old} is deprecated; give {new}", DeprecationWarning, stacklevel=4)
