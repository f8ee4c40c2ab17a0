"""What a USD file says before its data is read: which way is up, and which files it is made of.

Source: the layer metadata of OpenUSD, and its list of dependencies.
"""

import os
from os import PathLike

from scenemill.schemas.errors import SourceError
from scenemill.trainers.usd.stages import open_grown, reading


def files_of(path: str | PathLike[str]) -> list[str]:
    """The files that reading a USD file opens: itself, the layers and images that it names, those of all variants and times.

    Args:
        path: of the file.

    Returns:
        Real paths, sorted. What a file names and is not there is left out.

    Raises:
        SourceError: no USD file there, or a damaged one.
    """
    from pxr import UsdUtils

    with reading(path):
        layers, assets, _ = UsdUtils.ComputeAllDependencies(os.fspath(path))
        if not layers:
            raise _unreadable(path)
        return sorted({os.path.realpath(layer.realPath) for layer in layers} | {os.path.realpath(asset) for asset in assets})


def up_axis_of(path: str | PathLike[str]) -> str:
    """Which axis of a USD file points up: "Y", also where it does not say, or "Z".

    Raises:
        SourceError: no USD file there, or a damaged one.
    """
    from pxr import Sdf

    with reading(path):
        layer = open_grown(lambda name: Sdf.Layer.OpenAsAnonymous(name, metadataOnly=True), path)
        if not layer:
            raise _unreadable(path)
        return "Z" if str(layer.pseudoRoot.GetInfo("upAxis")) == "Z" else "Y"


def _unreadable(path: str | PathLike[str]) -> SourceError:
    return SourceError("container", f"no readable USD file at {os.fspath(path)}", "a USD file")
