"""Materials into stages and files, and out of them.

Source: UsdShade of OpenUSD; the names and arguments are those of Kaolin's ``io.usd``, Apache 2.0.
"""

import logging
from collections.abc import Iterator, Sequence
from itertools import chain, count
from os import PathLike
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from scenemill.schemas.errors import ConfigError, SourceError
from scenemill.trainers.usd.authoring import Author, to_prim_name
from scenemill.trainers.usd.materials import INPUTS, THRESHOLD, WORKFLOW, Input, PBRMaterial
from scenemill.trainers.usd.shading import bind_material, define_material
from scenemill.trainers.usd.stages import at_time, create_stage, find_prim, get_scene_paths, open_stage
from scenemill.trainers.usd.textures import TextureFolder, read_texture

VARIANTS: Final = "shadingVariant"
"""The variant set of a mesh with a variant for each of its materials."""

_CHANNELS: Final = {"r": slice(0, 1), "g": slice(1, 2), "b": slice(2, 3), "a": slice(3, 4), "rgb": slice(0, 3)}

_log = logging.getLogger(__name__)


def export_material(
    material: Any,
    file_or_stage: Any,
    scene_path: str | None = None,
    texture_path: str | PathLike[str] | None = None,
    bound_prims: Sequence[Any] | None = None,
    texture_file_prefix: str | None = None,
    shader_name: str | None = None,
    time: float | None = None,
    overwrite_textures: bool = False,
    strict: bool = False,
) -> tuple[str, Any]:
    """Write a material and save the stage; without a time it takes the place of what is there.

    Args:
        material: a ``PBRMaterial``, or anything with its attributes.
        file_or_stage: an open stage; or a path, of a file that is made if it is not there.
        scene_path: of the material; None for a new one below ``/World/Looks``, or the material's name where that is a path.
        texture_path: folder of the images, seen from the file; None for ``textures``.
        bound_prims: prims that shall have the material.
        texture_file_prefix: of the images' names; None for the last part of ``scene_path`` and "_".
        shader_name: None for the material's; only UsdPreviewSurface is written.
        time: None for values that hold at any time.
        overwrite_textures: replace images of the same names; else they get a number.
        strict: write also what validators want.

    Returns:
        The path in the scene, and the material (``UsdShade.Material``).

    Raises:
        ConfigError: another shader, or an image that is none.
    """
    from pxr import Usd, UsdShade

    shader_name = shader_name or getattr(material, "shader_name", "UsdPreviewSurface")
    if shader_name != "UsdPreviewSurface":
        raise ConfigError(f"shader {shader_name!r}; only UsdPreviewSurface is written")
    is_new = not isinstance(file_or_stage, Usd.Stage) and not Path(file_or_stage).exists()
    stage = create_stage(file_or_stage) if is_new else open_stage(file_or_stage)
    path = scene_path or _free_path(stage, getattr(material, "material_name", None) or "")
    prefix = f"{path.rsplit('/', 1)[-1]}_" if texture_file_prefix is None else texture_file_prefix
    put_material(stage, path, material, str(texture_path or "textures"), prefix, time, overwrite_textures, strict)
    for prim in bound_prims or ():
        author = Author.on_stage(stage, time, strict)
        bind_material(author, author.prim(prim.GetPath(), ""), path)
    stage.Save()
    return path, UsdShade.Material(stage.GetPrimAtPath(path))


def put_material(
    stage: Any, path: str, material: Any, folder: str, prefix: str, time: float | None, overwrite_textures: bool, strict: bool
) -> None:
    """Write a material into a stage, and its images beside the stage's file; see ``export_material``."""
    if time is None and stage.GetPrimAtPath(path):
        stage.RemovePrim(path)
    textures = TextureFolder(Path(stage.GetRootLayer().realPath).parent / folder)

    def save_image(name: str, pixels: NDArray[np.uint8]) -> str:
        saved = textures.save(name, f"{prefix}{name}", pixels, overwrite_textures)
        return saved if Path(folder).is_absolute() else f"{Path(folder).as_posix()}/{saved}"

    define_material(Author.on_stage(stage, time, strict), path, material, save_image)


def _free_path(stage: Any, name: str) -> str:
    """A path for a material that no prim has, by the material's name: a path itself, a text, or nothing."""
    taken = set(get_scene_paths(stage))
    parts = [to_prim_name(part) for part in name.split("/") if part]
    stem = ("/" if "/" in name else "/World/Looks/") + "/".join(parts or ["material"])
    numbered = (f"{stem}_{number}" for number in count())
    return next(path for path in chain([stem] if parts else [], numbered) if path not in taken)


def import_material(
    file_or_stage: Any, scene_path: str, texture_path: str | PathLike[str] | None = None, time: float | None = None
) -> Any:
    """Read a material.

    Args:
        file_or_stage: a path or a stage.
        scene_path: of the material; it may be in a variant that is not selected.
        texture_path: folder of the images, seen from the file, where they are no longer where the file says.
        time: None for values that hold at any time.

    Returns:
        A ``PBRMaterial`` with textures (H, W, C); for another shader than UsdPreviewSurface a dictionary of its inputs.

    Raises:
        ConfigError: no material there.
        SourceError: an image is missing or unreadable.
    """
    stage = open_stage(file_or_stage)
    for variant in with_variants(stage, scene_path):
        prim = variant.GetPrimAtPath(scene_path)
        if prim and prim.GetTypeName() == "Material":
            return read_material(prim, time, texture_path)
    raise ConfigError(
        f"no material at {scene_path} of {stage.GetRootLayer().identifier}: {find_prim(stage, scene_path).GetTypeName()}"
    )


def with_variants(stage: Any, path: str) -> Iterator[Any]:
    """A stage, and then views of it in which another variant is selected on the prim at a path or on one above it."""
    from pxr import Sdf, Usd

    yield stage
    for place in reversed(Sdf.Path(path).GetPrefixes()):
        prim = stage.GetPrimAtPath(place)
        for name in prim.GetVariantSets().GetNames() if prim else ():
            chosen = prim.GetVariantSet(name).GetVariantSelection()
            for variant in prim.GetVariantSet(name).GetVariantNames():
                if variant != chosen:
                    session = Sdf.Layer.CreateAnonymous()
                    Sdf.CreatePrimInLayer(session, place).variantSelections[name] = variant
                    yield Usd.Stage.Open(stage.GetRootLayer(), session)


def materials_of(stage: Any, path: str, time: float | None) -> dict[str, Any]:
    """The materials of a prim, of all its variants, by name: below it and bound to it.

    Raises:
        SourceError: an image is missing or unreadable.
    """
    found: dict[str, Any] = {}
    for variant in with_variants(stage, path):
        prim = variant.GetPrimAtPath(path)
        below = [child for child in prim.GetChildren() if child.GetTypeName() == "Material"]
        bound = bound_material(prim)
        for material in [*below, *([bound] if bound else [])]:
            name = material.GetDisplayName() or material.GetName()
            if name not in found:
                found[name] = read_material(material, time)
    return found


def bound_material(prim: Any) -> Any:
    """The prim of the material that a prim has, by itself or from one above it; None for none."""
    while prim and not prim.IsPseudoRoot():
        for name in ("material:binding", "material:binding:preview", "material:binding:full"):
            targets = prim.GetRelationship(name).GetTargets() if prim.HasRelationship(name) else []
            material = prim.GetStage().GetPrimAtPath(targets[0]) if targets else None
            if material:
                return material
        prim = prim.GetParent()
    return None


def read_material(prim: Any, time: float | None, texture_path: str | PathLike[str] | None = None) -> Any:
    """Read the material of a prim; see ``import_material``."""
    from pxr import UsdShade

    source = UsdShade.Material(prim).ComputeSurfaceSource()
    shader = source[0] if isinstance(source, tuple) else source
    if not shader or shader.GetShaderId() != "UsdPreviewSurface":
        _log.warning("%s has no UsdPreviewSurface; its inputs are read as they are", prim.GetPath())
        inputs = shader.GetInputs() if shader else []
        return {"material_name": str(prim.GetPath()), **{one.GetBaseName(): one.Get(at_time(time)) for one in inputs}}
    read: dict[str, Any] = {"material_name": str(prim.GetPath())}
    for one in INPUTS:
        read.update(_read_input(shader, one, time, texture_path))
    for name, field, kind in ((THRESHOLD, "opacity_threshold", float), (WORKFLOW, "is_specular_workflow", bool)):
        value = shader.GetInput(name).Get(at_time(time)) if shader.GetInput(name) else None
        read.update({} if value is None else {field: kind(value)})
    return PBRMaterial(**read)


def _read_input(shader: Any, one: Input, time: float | None, texture_path: str | PathLike[str] | None) -> dict[str, Any]:
    """The fields of a material that an input of its surface says."""
    from pxr import UsdShade

    entry, read = shader.GetInput(one.name), {}
    if not entry:
        return {}
    for attribute in UsdShade.Utils.GetValueProducingAttributes(entry):
        if UsdShade.Utils.GetType(attribute.GetName()) == UsdShade.AttributeType.Output:
            read.update(_read_reader(attribute, one, time, texture_path))
    value = entry.Get(at_time(time))
    if value is not None and one.field:
        read[one.field] = torch.tensor(value if one.kind == "float" else list(value), dtype=torch.float32).reshape(-1)
    return read


def _read_reader(output: Any, one: Input, time: float | None, texture_path: str | PathLike[str] | None) -> dict[str, Any]:
    from pxr import UsdShade

    reader = UsdShade.Shader(output.GetPrim())
    file = reader.GetInput("file").Get(at_time(time)) if reader.GetInput("file") else None
    if file is None or not file.path:
        return {}
    spaces = (reader.GetInput(name) for name in ("colorspace", "sourceColorSpace"))
    space = next((value for value in (entry.Get(at_time(time)) for entry in spaces if entry) if value), "auto")
    image = _read_image(output, file, texture_path)
    channels = _CHANNELS.get(output.GetName().removeprefix("outputs:"), slice(None))
    image = image[..., channels] if image.shape[-1] > 1 else image
    return {f"{one.map}_texture": image * 2 - 1 if one.map == "normals" else image, f"{one.map}_colorspace": str(space)}


def _read_image(output: Any, file: Any, texture_path: str | PathLike[str] | None) -> torch.Tensor:
    """The image that a reader names: where the file says, or in another folder by its path or its name alone."""
    if texture_path is None:
        return read_texture(file.resolvedPath or file.path)
    folder = Path(output.GetStage().GetRootLayer().realPath).parent / texture_path
    places = [folder / file.path, folder / Path(file.path).name]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise SourceError("missing", f"no image {file.path} in {folder}", "the texture that the file names")
    return read_texture(str(found))
