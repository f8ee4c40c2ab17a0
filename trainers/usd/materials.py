"""Physically based materials: values and maps.

Source: the inputs of UsdPreviewSurface in OpenUSD; the fields are those of Kaolin's ``render.materials``, Apache 2.0.
"""

from dataclasses import dataclass, fields, replace
from typing import Any, Final, NamedTuple

import torch

_CHANNELS: Final = (1, 3, 4)


class Input(NamedTuple):
    """An input of the surface: the name of its map, the field of its value ("" for none), USD's name and type."""

    map: str
    field: str
    name: str
    kind: str


INPUTS: Final = (
    Input("diffuse", "diffuse_color", "diffuseColor", "color3f"),
    Input("roughness", "roughness_value", "roughness", "float"),
    Input("specular", "specular_color", "specularColor", "color3f"),
    Input("metallic", "metallic_value", "metallic", "float"),
    Input("normals", "", "normal", "normal3f"),
    Input("clearcoat", "clearcoat_value", "clearcoat", "float"),
    Input("clearcoat_roughness", "clearcoat_roughness_value", "clearcoatRoughness", "float"),
    Input("opacity", "opacity_value", "opacity", "float"),
    Input("ior", "ior_value", "ior", "float"),
    Input("displacement", "displacement_value", "displacement", "float"),
)
"""What a surface takes that may also come from an image."""

THRESHOLD: Final = "opacityThreshold"
WORKFLOW: Final = "useSpecularWorkflow"
"""Inputs that no image gives."""


@dataclass(eq=False)
class PBRMaterial:
    """A physically based material. What is None is not said; numbers become 1-d float tensors.

    Attributes:
        material_name: any text; a path of the scene for one that was read.
        shader_name: of USD's surface shader.
        is_specular_workflow: the specular colour counts, else the metallic value.
        diffuse_color, specular_color: (3,), from 0 to 1.
        roughness_value, metallic_value, clearcoat_value, clearcoat_roughness_value, opacity_value, opacity_threshold, ior_value,
            displacement_value, transmittance_value: (1,). USD's surface has no transmittance: it is not written.
        diffuse_texture and the like: (C, H, W) or (H, W, C), floats from 0 to 1 or uint8; normals from -1 to 1. Read: (H, W, C).
        diffuse_colorspace and the like: "auto", "raw" or "sRGB".
    """

    material_name: str = ""
    shader_name: str = "UsdPreviewSurface"
    is_specular_workflow: bool = False
    diffuse_color: Any = None
    specular_color: Any = None
    roughness_value: Any = None
    metallic_value: Any = None
    clearcoat_value: Any = None
    clearcoat_roughness_value: Any = None
    opacity_value: Any = None
    opacity_threshold: Any = None
    ior_value: Any = None
    displacement_value: Any = None
    transmittance_value: Any = None
    diffuse_texture: Any = None
    roughness_texture: Any = None
    metallic_texture: Any = None
    clearcoat_texture: Any = None
    clearcoat_roughness_texture: Any = None
    opacity_texture: Any = None
    ior_texture: Any = None
    specular_texture: Any = None
    normals_texture: Any = None
    displacement_texture: Any = None
    transmittance_texture: Any = None
    diffuse_colorspace: str = "auto"
    roughness_colorspace: str = "auto"
    metallic_colorspace: str = "auto"
    clearcoat_colorspace: str = "auto"
    clearcoat_roughness_colorspace: str = "auto"
    opacity_colorspace: str = "auto"
    ior_colorspace: str = "auto"
    specular_colorspace: str = "auto"
    normals_colorspace: str = "auto"
    displacement_colorspace: str = "auto"
    transmittance_colorspace: str = "auto"

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if one.name.endswith(("_color", "_value", "_threshold")) and value is not None and not isinstance(value, torch.Tensor):
                setattr(self, one.name, torch.as_tensor(value, dtype=torch.float32).reshape(-1))

    def hwc(self) -> "PBRMaterial":
        """This material with its textures (H, W, C)."""
        return self._turned((1, 2, 0), channels_at=0)

    def chw(self) -> "PBRMaterial":
        """This material with its textures (C, H, W)."""
        return self._turned((2, 0, 1), channels_at=2)

    def _turned(self, axes: tuple[int, int, int], channels_at: int) -> "PBRMaterial":
        textures = {one.name: getattr(self, one.name) for one in fields(self) if one.name.endswith("_texture")}
        tensors = {name: torch.as_tensor(texture) for name, texture in textures.items() if texture is not None}
        turned: dict[str, Any] = {
            name: texture.permute(axes) for name, texture in tensors.items() if _channels_at(texture) == channels_at
        }
        return replace(self, **turned)


def _channels_at(texture: torch.Tensor) -> int:
    """The axis of the channels: the first where only that one can be, else the last."""
    return 0 if texture.shape[0] in _CHANNELS and texture.shape[2] not in _CHANNELS else 2
