"""The network of shaders that says a material in USD: a surface, and a reader for each of its images.

Source: UsdPreviewSurface, UsdUVTexture and UsdPrimvarReader of OpenUSD; the plain layout is that of Kaolin's ``io.usd``, Apache 2.0.
"""

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scenemill.trainers.usd.arrays import to_host, to_rows
from scenemill.trainers.usd.authoring import Author
from scenemill.trainers.usd.materials import INPUTS, THRESHOLD, WORKFLOW, Input
from scenemill.trainers.usd.textures import to_pixels

SaveImage = Callable[[str, NDArray[np.uint8]], str]
"""Keeps the image of a map, by the map's name, and says by which path the USD file finds it."""

_log = logging.getLogger(__name__)


def define_material(author: Author, path: str, material: Any, save_image: SaveImage) -> Any:
    """Write a material.

    Args:
        author: writes.
        path: of the material's prim in the scene.
        material: a ``PBRMaterial``, or anything with its attributes, such as Kaolin's.
        save_image: keeps the images.

    Returns:
        The prim's spec.

    Raises:
        ConfigError: an image that is none.
    """
    prim, shader = author.prim(path, "Material"), author.prim(f"{path}/Shader", "Shader")
    author.fix(shader, "info:id", "token", "UsdPreviewSurface", uniform=True)
    for one in INPUTS:
        _put_input(author, path, shader, material, one, save_image)
    author.declare(shader, f"inputs:{THRESHOLD}", "float")
    if getattr(material, "opacity_threshold", None) is not None:
        author.put(shader, f"inputs:{THRESHOLD}", "float", _number(material.opacity_threshold), constant=True)
    author.put(shader, f"inputs:{WORKFLOW}", "int", int(getattr(material, "is_specular_workflow", False)), constant=True)
    for output in ("surface", "displacement"):
        author.declare(shader, f"outputs:{output}", "token")
        author.connect(author.declare(prim, f"outputs:{output}", "token"), f"{path}/Shader.outputs:{output}")
    if any(getattr(material, f"transmittance_{what}", None) is not None for what in ("value", "texture")):
        _log.warning("%s: transmittance is left out; USD's preview surface has none", path)
    return prim


def bind_material(author: Author, prim: Any, path: str) -> None:
    """Let a prim have a material.

    Args:
        author: writes.
        prim: the spec of the prim, or of one of its variants.
        path: of the material in the scene.
    """
    if author.strict:
        author.apply(prim, "MaterialBindingAPI")
    author.point(prim, "material:binding", [path])


def _put_input(author: Author, path: str, shader: Any, material: Any, one: Input, save_image: SaveImage) -> None:
    name, reader = f"inputs:{one.name}", f"{path}/{one.map}_texture"
    author.declare(shader, name, one.kind)
    before, value = author.held(shader, name), getattr(material, one.field, None) if one.field else None
    if value is not None:
        author.put(shader, name, one.kind, _number(value) if one.kind == "float" else _color(f"{one.field} of {path}", value), True)
    image = getattr(material, f"{one.map}_texture", None)
    if image is not None:
        pixels = to_pixels(f"{one.map}_texture of {path}", _from_zero(image) if one.map == "normals" else image)
        _put_reader(author, path, material, one, before, save_image(one.map, pixels))
        author.connect(author.declare(shader, name, one.kind), f"{reader}.outputs:{'r' if one.kind == 'float' else 'rgb'}")
    elif value is not None and author.strict and author.is_there(reader):
        _put_number(author, author.prim(reader, "Shader"), value)


def _put_reader(author: Author, path: str, material: Any, one: Input, before: Any, file: str) -> None:
    """The shader that reads an image.

    Args:
        author: writes.
        path: of the material.
        material: has the colour space.
        one: the input.
        before: the number that the input had without an image at the iterations before, or None.
        file: path of the image.
    """
    is_new = not author.is_there(f"{path}/{one.map}_texture")
    reader = author.prim(f"{path}/{one.map}_texture", "Shader")
    author.fix(reader, "info:id", "token", "UsdUVTexture", uniform=True)
    if is_new and before is not None and author.strict:
        author.fix(reader, "inputs:file", "asset", "")
        author.fix(reader, "inputs:fallback", "float4", _rgba(before))
    author.put(reader, "inputs:file", "asset", file)
    space = getattr(material, f"{one.map}_colorspace", None)
    if space is not None:
        author.put(reader, "inputs:colorspace", "token", space, constant=True)
    _put_outputs(author, reader, one)
    if author.strict:
        _put_reading(author, path, reader, one, space or "auto")


def _put_outputs(author: Author, reader: Any, one: Input) -> None:
    for channel in "r" if one.kind == "float" else "rgb":
        author.declare(reader, f"outputs:{channel}", "float")
    if one.kind != "float":
        author.declare(reader, "outputs:rgb", "float3" if author.strict else one.kind)


def _put_reading(author: Author, path: str, reader: Any, one: Input, space: str) -> None:
    """How an image is to be read: where on the surface, and as what numbers."""
    is_data = one.kind != "color3f"
    author.put(reader, "inputs:sourceColorSpace", "token", "raw" if space == "auto" and is_data else space, constant=True)
    if one.map == "normals":  # stored from 0 to 1
        author.fix(reader, "inputs:scale", "float4", [2, 2, 2, 1])
        author.fix(reader, "inputs:bias", "float4", [-1, -1, -1, 0])
    st = author.prim(f"{path}/st_reader", "Shader")
    author.fix(st, "info:id", "token", "UsdPrimvarReader_float2", uniform=True)
    author.fix(st, "inputs:varname", "string", "st")
    author.declare(st, "outputs:result", "float2")
    author.connect(author.declare(reader, "inputs:st", "float2"), f"{path}/st_reader.outputs:result")


def _put_number(author: Author, reader: Any, value: Any) -> None:
    """A reader without an image at this time gives a number instead."""
    author.put(reader, "inputs:file", "asset", "")
    author.put(reader, "inputs:fallback", "float4", _rgba(value), constant=True)


def _number(value: Any) -> float:
    return float(to_host(value).reshape(-1)[0])


def _color(what: str, value: Any) -> list[float]:
    rows: list[list[float]] = to_rows(what, to_host(value)[None], 3).tolist()
    return rows[0]


def _from_zero(normals: Any) -> Any:
    """Normals from -1 to 1 as numbers from 0 to 1; bytes are so already."""
    array = to_host(normals)
    return array if array.dtype == np.uint8 else (array + 1) / 2


def _rgba(value: Any) -> list[float]:
    numbers = to_host(value).reshape(-1).tolist()
    return [*(numbers if len(numbers) == 3 else numbers[:1] * 3), 1.0]
