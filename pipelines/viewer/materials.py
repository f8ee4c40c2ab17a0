"""Materials of a mesh for the page: values as JSON, images as arrays."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

SIDE_PIXEL: Final = 2048
"""The longest side of an image that is sent; of larger ones every second, third or later pixel is."""

_VALUES: Final = {
    "diffuse": "diffuse_color",
    "specular": "specular_color",
    "roughness": "roughness_value",
    "metallic": "metallic_value",
    "clearcoat": "clearcoat_value",
    "clearcoat_roughness": "clearcoat_roughness_value",
    "opacity": "opacity_value",
    "threshold": "opacity_threshold",
    "ior": "ior_value",
}
_MAPS: Final = ("diffuse", "roughness", "metallic", "normals", "opacity")
_FOREIGN: Final = "has another shader than UsdPreviewSurface: drawn plain"


def cut_materials(materials: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, NDArray[np.uint8]], tuple[str, ...]]:
    """What the page needs of materials.

    Args:
        materials: name -> a ``PBRMaterial``, textures (H, W, C); or a dictionary, of another shader.

    Returns:
        By name ``values`` and ``maps``, of each map its ``array`` and color ``space``; the arrays, (H, W, C) uint8; and what to know.
    """
    described: dict[str, Any] = {}
    arrays: dict[str, NDArray[np.uint8]] = {}
    notes = tuple(f"material {name} {_FOREIGN}" for name, material in materials.items() if isinstance(material, Mapping))
    for number, (name, material) in enumerate(materials.items()):
        textures = {} if isinstance(material, Mapping) else _textures(material)
        stored = {f"map.{number}.{kind}": _pixels(kind, texture) for kind, texture in textures.items()}
        maps = {
            kind: {"array": array, "space": getattr(material, f"{kind}_colorspace")}
            for kind, array in zip(textures, stored, strict=True)
        }
        described[name] = {"values": {} if isinstance(material, Mapping) else _values(material), "maps": maps}
        arrays |= stored
    return described, arrays, notes


def _values(material: Any) -> dict[str, float | list[float]]:
    """The values that are said and finite; a single one as a number."""
    given = {name: getattr(material, attribute) for name, attribute in _VALUES.items()}
    listed = {name: value.numpy(force=True).reshape(-1).tolist() for name, value in given.items() if value is not None}
    return {name: value if len(value) > 1 else value[0] for name, value in listed.items() if value and np.isfinite(value).all()}


def _textures(material: Any) -> dict[str, NDArray[Any]]:
    given = {kind: getattr(material, f"{kind}_texture") for kind in _MAPS}
    return {kind: texture.numpy(force=True) for kind, texture in given.items() if texture is not None and texture.numel()}


def _pixels(kind: str, texture: NDArray[Any]) -> NDArray[np.uint8]:
    """An image as bytes; normals, from -1 to 1, as colours are."""
    step = -(-max(texture.shape[:2]) // SIDE_PIXEL)
    chosen = texture[::step, ::step]
    unit = (chosen + 1) / 2 if kind == "normals" else chosen
    pixels: NDArray[np.uint8] = (np.nan_to_num(unit).clip(0, 1) * 255).round().astype(np.uint8)
    return pixels
