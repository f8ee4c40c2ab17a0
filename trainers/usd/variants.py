"""The materials of a mesh over time: a variant for each, of which one is shown.

Source: the variant sets of OpenUSD; the layout is that of Kaolin's ``visualize.timelapse``, Apache 2.0.
"""

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scenemill.trainers.usd.authoring import Author, to_prim_name
from scenemill.trainers.usd.material_io import VARIANTS
from scenemill.trainers.usd.shading import bind_material, define_material

SaveMap = Callable[[str, str, NDArray[np.uint8]], str]
"""Keeps the image of a map, by the material's and the map's name, and says by which path the USD file finds it."""


def put_variants(author: Author, mesh_path: str, materials: Mapping[str, Any], save_map: SaveMap) -> None:
    """Write the materials of a mesh at one time, each into its variant; the last is selected.

    Materials that stand below the mesh without a variant, as some files of Kaolin's have them, get one first.

    Args:
        author: writes the mesh.
        mesh_path: of the mesh in the scene.
        materials: name -> a ``PBRMaterial``, or anything with its attributes.
        save_map: keeps the images.

    Raises:
        ConfigError: an image that is none.
    """
    mesh = author.prim(mesh_path, "Mesh")
    _take_in_loose(author.layer, mesh)
    for name, material in materials.items():
        variant = _variant_of(author.layer, mesh.path, name)
        inside, path = _within(author, mesh.path, variant), f"{mesh_path}/{to_prim_name(variant)}"
        prim = define_material(inside, path, material, partial(save_map, variant))
        if prim.name != name:
            prim.SetInfo("displayName", name)
        bind_material(inside, inside.prim(mesh_path, ""), path)
        mesh.variantSelections[VARIANTS] = variant


def _within(author: Author, mesh_path: Any, variant: str) -> Author:
    """One that writes what is at and below a mesh into one of its variants."""
    place = mesh_path.AppendVariantSelection(VARIANTS, variant)
    return Author(author.layer, author.time, author.strict, lambda path: path.ReplacePrefix(mesh_path, place))


def _variant_of(layer: Any, mesh_path: Any, name: str) -> str:
    """The variant of a material: its name where USD allows it, else one like it that no other material has."""
    variant = re.sub(r"[^A-Za-z0-9_-]|^$", "_", name)
    while (spec := layer.GetPrimAtPath(_material_path(mesh_path, variant))) and name not in (
        spec.name,
        spec.GetInfo("displayName"),
    ):
        variant += "_"
    return variant


def _material_path(mesh_path: Any, variant: str) -> Any:
    return mesh_path.AppendVariantSelection(VARIANTS, variant).AppendChild(to_prim_name(variant))


def _take_in_loose(layer: Any, mesh: Any) -> None:
    """Move the materials below a mesh into variants: their opinions, and a binding outside, would outdo those of any variant."""
    from pxr import Sdf

    loose = [child for child in mesh.nameChildren if child.typeName == "Material"]
    for child in loose:
        place, path = _material_path(mesh.path, child.name), child.path
        Sdf.CreatePrimInLayer(layer, place)
        Sdf.CopySpec(layer, path, layer, place)
        author = _within(Author(layer, None, strict=True), mesh.path, child.name)
        bind_material(author, author.prim(mesh.path, ""), str(path))
        del mesh.nameChildren[path.name]
    if loose and "material:binding" in mesh.relationships:
        mesh.RemoveProperty(mesh.relationships["material:binding"])
