"""Named groups of the elements of a prim.

Source: GeomSubset of UsdGeom; the names and arguments are those of Kaolin's ``io.usd``, Apache 2.0.
"""

from typing import Any

import torch

from scenemill.schemas.errors import ConfigError
from scenemill.trainers.usd.arrays import to_integers
from scenemill.trainers.usd.authoring import Author
from scenemill.trainers.usd.reading import value_of
from scenemill.trainers.usd.stages import find_prim, open_stage


def add_subset(
    file_or_stage: Any, prim: Any, name: str, indices: torch.Tensor, family_name: str = "part", overwrite: bool = False
) -> Any:
    """Add a group of elements to a prim; a file is saved.

    Args:
        file_or_stage: a path or a stage.
        prim: the prim or its path.
        name: of the group, a name that USD allows for a prim.
        indices: (n,) integers; faces of a mesh, else points.
        family_name: what the group is one of.
        overwrite: replace a group of this name.

    Returns:
        The group's prim.

    Raises:
        ConfigError: no such prim, or it has such a group.
    """
    from pxr import Usd

    stage = open_stage(file_or_stage)
    parent = find_prim(stage, prim)
    path = parent.GetPath().AppendChild(name)
    if stage.GetPrimAtPath(path) and not overwrite:
        raise ConfigError(f"{path} already exists; give overwrite=True to replace it, or another name")
    stage.RemovePrim(path)
    element = "face" if parent.GetTypeName() == "Mesh" else "point"
    define_subset(Author.on_stage(stage, None, strict=False), str(path), indices, family_name, element)
    if not isinstance(file_or_stage, Usd.Stage):
        stage.Save()
    return stage.GetPrimAtPath(path)


def define_subset(author: Author, path: str, indices: Any, family_name: str, element: str) -> Any:
    """Write a group of elements; see ``add_subset``."""
    subset = author.prim(path, "GeomSubset")
    author.fix(subset, "elementType", "token", element, uniform=True)
    author.fix(subset, "familyName", "token", family_name, uniform=True)
    author.fix(subset, "indices", "int[]", to_integers(f"indices of {path}", indices).reshape(-1))
    return subset


def import_subsets(file_or_stage: Any, prim: Any, family_name: str | None = None) -> dict[str, dict[str, Any]]:
    """The groups of a prim's elements.

    Args:
        file_or_stage: a path or a stage.
        prim: the prim or its path.
        family_name: only groups of this family; None for all.

    Returns:
        Path of a group -> its ``indices``, (n,) int64, and its ``family_name``.

    Raises:
        ConfigError: no such prim.
    """
    stage, found = open_stage(file_or_stage), {}
    for child in find_prim(stage, prim).GetChildren():
        if child.GetTypeName() != "GeomSubset":
            continue
        family, indices = child.GetAttribute("familyName").Get() or "", value_of(child.GetAttribute("indices"), None)
        if family_name in (None, family):
            numbers = torch.zeros(0, dtype=torch.int64) if indices is None else torch.from_numpy(indices).long()
            found[str(child.GetPath())] = {"indices": numbers, "family_name": str(family)}
    return found
