"""Stages: making and opening them, what is in them, and where it stands.

Transforms are (4, 4) tensors that act on columns: the translation is the last column. USD keeps it in the last row.

Source: Usd and UsdGeom of OpenUSD; the names and arguments are those of Kaolin's ``io.usd``, Apache 2.0.
"""

import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import torch

from scenemill.schemas.errors import ConfigError, SourceError
from scenemill.trainers.usd.arrays import to_value

_T = TypeVar("_T")
_TRIES: Final = 20

ALONE: Final = threading.RLock()
"""Held by whoever reads or writes files of a log: all threads share what usd-core has open of a file, and it breaks, process and all,
where one reads while another writes. A parser in a notebook and the training beside it are such threads."""


@contextmanager
def reading(path: str | PathLike[str]) -> Iterator[None]:
    """A turn at a file of a log.

    Raises:
        SourceError: what usd-core finds in it is no whole file; the block ends there.
    """
    from pxr import Tf

    with ALONE:
        try:
            yield
        except (Tf.ErrorException, Tf.CppException) as error:
            why = " ".join(str(error).split())[:200]
            raise SourceError("container", f"no readable USD file at {os.fspath(path)} ({why})", "a USD file") from error


def open_grown(open_file: Callable[[str], _T], path: str | PathLike[str]) -> _T:
    """Open a file that another process may be adding to: again, where it has grown meanwhile.

    usd-core measures a file before it reads where in it the structure is; of a file that grew in between, the structure lies behind
    the end that was measured.

    Args:
        open_file: opens a path; where that cannot be, gives None or raises ``Tf.ErrorException``.
        path: of the file.
    """
    from pxr import Tf

    for _ in range(_TRIES):
        size_byte = os.stat(path).st_size
        try:
            found = open_file(os.fspath(path))
        except Tf.ErrorException:
            if os.stat(path).st_size == size_byte:
                raise
        else:
            if found is not None or os.stat(path).st_size == size_byte:
                return found
    return open_file(os.fspath(path))


def create_stage(file_path: str | PathLike[str], up_axis: str = "Y") -> Any:
    """A new stage with an empty ``/World`` as its default prim; a file that is there is replaced.

    Args:
        file_path: ``.usd`` or ``.usdc``, binary, or ``.usda``, text.
        up_axis: "Y" or "Z".

    Returns:
        The stage (``Usd.Stage``), not saved yet.

    Raises:
        ConfigError: another axis.
    """
    from pxr import Sdf, Usd, UsdGeom

    check_up_axis(up_axis)
    Path(file_path).parent.mkdir(parents=True, exist_ok=True)
    held = Sdf.Layer.Find(str(file_path))
    if held:
        held.Clear()
    stage = Usd.Stage.Open(held) if held else Usd.Stage.CreateNew(str(file_path))
    stage.SetDefaultPrim(UsdGeom.Xform.Define(stage, "/World").GetPrim())
    UsdGeom.SetStageUpAxis(stage, up_axis)
    return stage


def check_up_axis(up_axis: str) -> None:
    """Refuse an axis that USD does not know as up.

    Raises:
        ConfigError: neither "Y" nor "Z".
    """
    if up_axis not in ("Y", "Z"):
        raise ConfigError(f"up_axis {up_axis!r}; give 'Y' or 'Z'")


def new_stage(file_path: str | PathLike[str], overwrite: bool, up_axis: str = "Y") -> Any:
    """A new stage for an export.

    Raises:
        FileExistsError: a file is there, and shall not be replaced.
    """
    if Path(file_path).exists() and not overwrite:
        raise FileExistsError(f"{file_path} is there; give overwrite=True to replace it, or another name")
    return create_stage(file_path, up_axis)


def open_stage(file_or_stage: Any) -> Any:
    """A stage: the one given, or that of a file as it is now.

    Args:
        file_or_stage: an open stage, or the path of a file.

    Raises:
        SourceError: no such file, or none that USD reads.
    """
    from pxr import Sdf, Tf, Usd

    if isinstance(file_or_stage, Usd.Stage):
        return file_or_stage
    path = str(file_or_stage)
    if not Path(path).is_file():
        raise SourceError("missing", f"no file {path}", "a USD file")
    held = Sdf.Layer.Find(path)
    try:
        if held and not held.dirty:  # usd-core keeps a layer as long as anyone has it, whatever becomes of its file
            open_grown(lambda _: held.Reload(), path)
        return open_grown(Usd.Stage.Open, path)
    except Tf.ErrorException as error:
        raise SourceError("container", f"no readable USD file at {path} ({str(error).strip()[:200]})", "a USD file") from error


def find_prim(stage: Any, prim_or_path: Any) -> Any:
    """A prim of a stage, by itself or by its path.

    Raises:
        ConfigError: none is there.
    """
    from pxr import Usd

    if isinstance(prim_or_path, Usd.Prim):
        return prim_or_path
    prim = stage.GetPrimAtPath(str(prim_or_path))
    if not prim:
        raise ConfigError(f"No prim found at path {prim_or_path} of {stage.GetRootLayer().identifier}; give one of get_scene_paths")
    return prim


def get_scene_paths(
    file_or_stage: Any,
    scene_path_regex: str | None = None,
    prim_types: str | Sequence[str] | None = None,
    conditional: Callable[[Any], bool] = lambda prim: True,
) -> list[str]:
    """The paths of prims, in the order of the scene.

    Args:
        file_or_stage: a path or a stage.
        scene_path_regex: of the paths' beginnings; None for all.
        prim_types: one or several, whatever the case of their letters; None for all.
        conditional: of the prims (``Usd.Prim``).
    """
    types = None if prim_types is None else {one.lower() for one in ([prim_types] if isinstance(prim_types, str) else prim_types)}
    stage = open_stage(file_or_stage)
    return [
        str(prim.GetPath())
        for prim in all_prims(stage)
        if (types is None or str(prim.GetTypeName()).lower() in types)
        and re.match(scene_path_regex or "", str(prim.GetPath()))
        and conditional(prim)
    ]


def all_prims(stage: Any) -> list[Any]:
    """The prims of a stage, those of instances too."""
    from pxr import Usd

    return list(Usd.PrimRange.Stage(stage, Usd.TraverseInstanceProxies()))


def get_authored_time_samples(file_or_stage: Any) -> list[float]:
    """All times at which anything of a stage has a sample, sorted."""
    stage = open_stage(file_or_stage)
    attributes = [attribute for prim in all_prims(stage) for attribute in prim.GetAttributes()]
    return sorted({time for attribute in attributes for time in attribute.GetTimeSamples()})


def at_time(time: Any) -> Any:
    """A time as USD takes it: None is that of the values which hold at any time."""
    from pxr import Usd

    return Usd.TimeCode.Default() if time is None else Usd.TimeCode(time)


def get_local_to_world_transform(file_or_stage: Any, prim_or_path: Any, time: float | None = None) -> torch.Tensor | None:
    """Where a prim stands in the world.

    Args:
        file_or_stage: a path or a stage.
        prim_or_path: of the stage.
        time: None for the value that holds at any time.

    Returns:
        (4, 4) float64, world from prim; None for the identity.

    Raises:
        ConfigError: no such prim.
    """
    stage = open_stage(file_or_stage)  # prims live as long as their stage
    matrix = world_from_prim(find_prim(stage, prim_or_path), time)
    return None if np.array_equal(matrix, np.eye(4)) else torch.from_numpy(matrix)


def world_from_prim(prim: Any, time: float | None) -> Any:
    """The transform of a prim into the world, (4, 4) float64, acting on columns."""
    from pxr import UsdGeom

    return np.array(UsdGeom.XformCache(at_time(time)).GetLocalToWorldTransform(prim), np.float64).T.copy()


def set_local_to_world_transform(file_or_stage: Any, prim_or_path: Any, matrix: torch.Tensor, time: float | None = None) -> None:
    """Let a prim stand somewhere in the world, wherever its parents stand; a file is saved.

    Args:
        file_or_stage: a path or a stage.
        prim_or_path: of the stage.
        matrix: (4, 4), world from prim.
        time: None for a value that holds at any time.

    Raises:
        TypeError: the matrix is no tensor.
        ConfigError: it is not (4, 4), or there is no such prim.
    """
    from pxr import Usd, UsdGeom

    if not isinstance(matrix, torch.Tensor):
        raise TypeError(f"transform of {prim_or_path}: {type(matrix).__name__}; give a (4, 4) tensor")
    if matrix.shape != (4, 4):
        raise ConfigError(f"transform of {prim_or_path}: {tuple(matrix.shape)}; give (4, 4)")
    stage = open_stage(file_or_stage)
    prim = find_prim(stage, prim_or_path)
    world = to_value("matrix4d", matrix.double().numpy(force=True).T)
    parent = UsdGeom.XformCache(at_time(time)).GetParentToWorldTransform(prim)
    UsdGeom.Xformable(prim).MakeMatrixXform().Set(world * parent.GetInverse(), at_time(time))
    if not isinstance(file_or_stage, Usd.Stage):
        stage.Save()
