"""Meshes into OBJ files, their materials into an MTL file beside it, and images of these as PNG.

Source: Wavefront's OBJ and MTL formats; the keys are those that ``import_mesh`` reads.
"""

import re
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from scenemill.schemas.errors import ConfigError
from scenemill.trainers.obj.mtl import to_pbr
from scenemill.trainers.surface_mesh import SurfaceMesh
from scenemill.trainers.usd.arrays import to_host
from scenemill.trainers.usd.materials import PBRMaterial
from scenemill.trainers.usd.textures import TextureFolder, to_pixels
from scenemill.transforms.publish import write_whole

_COLORS: Final = (("Kd", "diffuse_color"), ("Ks", "specular_color"))
_VALUES: Final = (("Pr", "roughness_value"), ("Pm", "metallic_value"), ("d", "opacity_value"))
_MAPS: Final = (
    ("map_Kd", "diffuse"),
    ("map_Ks", "specular"),
    ("map_d", "opacity"),
    ("map_Ns", "roughness"),
    ("map_refl", "metallic"),
    ("bump", "normals"),
    ("disp", "displacement"),
)


def export_mesh(path: str | PathLike[str], mesh: SurfaceMesh, overwrite: bool = False) -> None:
    """Write a mesh as ``NAME.obj``, its materials as ``NAME.mtl``, and their images as ``NAME_0_diffuse.png`` and so on.

    Args:
        path: of the OBJ file.
        mesh: a single one, or a batch of one; it is written as it is in the world. Faces without a material come first, for the format
            cannot take one back.
        overwrite: replace files that are there.

    Raises:
        FileExistsError: the OBJ or the MTL file is there, and shall not be replaced.
        ConfigError: several meshes; positions, coordinates or normals that are not finite; assignments of materials that are not there.
    """
    path = Path(path)
    library = path.with_suffix(".mtl")
    if not overwrite and (path.exists() or library.exists()):
        raise FileExistsError(f"{path} or {library.name} is there; give overwrite=True to replace both")
    mesh = prepared(mesh)
    lines = [*_number_lines("v", mesh.vertices)]
    if mesh.uvs is not None:
        uvs = to_host(mesh.uvs)
        lines += _number_lines("vt", np.stack([uvs[:, 0], 1 - uvs[:, 1]], axis=1))
    if mesh.normals is not None:
        lines += _number_lines("vn", mesh.normals)
    materials = to_physical(mesh.materials or [])
    names = unique_names(materials)
    if materials:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(library, _library_text(materials, names, path).encode())
        lines.insert(0, f"mtllib {library.name}")
    lines += _face_lines(mesh, names)
    write_whole(path, ("\n".join(lines) + "\n").encode())


def prepared(mesh: SurfaceMesh, is_sparse: bool = True) -> SurfaceMesh:
    """A single mesh in the world on the CPU, with indexed coordinates and normals as far as it has any; nothing computes itself.

    Args:
        mesh: a single one, or a batch of one.
        is_sparse: corners may lack coordinates or normals (-1). Else they get the first coordinates, as ``face_uvs`` has it, and normals
            that not all corners have are left out.

    Raises:
        ConfigError: several meshes, or assignments of materials that are not there.
    """
    if len(mesh) != 1:
        raise ConfigError(f"{len(mesh)} meshes; a file takes one: index the batch, or SurfaceMesh.flatten it")
    single = mesh[0].detach().cpu().as_transformed()
    single.allow_auto_compute = False
    if single.has_attribute("face_uvs"):
        single.ensure_indexed_attribute("uvs")
    if single.has_attribute("face_normals"):
        single.ensure_indexed_attribute("normals")
    if not single.has_attribute("normals") and single.has_attribute("vertex_normals"):
        single.normals, single.face_normals_idx = single.vertex_normals, single.faces
    for values, rows in (("uvs", "face_uvs_idx"), ("normals", "face_normals_idx")):
        if not (single.has_attribute(values) and single.has_attribute(rows) and len(getattr(single, values))):
            setattr(single, values, None)
    if not is_sparse and single.uvs is not None:
        single.face_uvs_idx = single.face_uvs_idx.clamp(min=0)
    if not is_sparse and single.normals is not None and bool((single.face_normals_idx < 0).any()):
        single.normals = None
    assigned, count = single.material_assignments, len(single.materials or [])
    if assigned is not None and len(assigned) and int(assigned.max()) >= count:
        raise ConfigError(f"faces of material {int(assigned.max())} of {count}; give materials from 0, -1 for none")
    return single


def to_physical(materials: Sequence[Any]) -> list[PBRMaterial]:
    """Materials as physically based ones, also those that ``load_mtl`` gives."""
    return [to_pbr(material) if isinstance(material, Mapping) else material for material in materials]


def unique_names(materials: Sequence[PBRMaterial]) -> list[str]:
    """A name for each material: its own, in characters that all readers take; numbered where it has none, or another has it."""
    names: list[str] = []
    for number, material in enumerate(materials):
        name = re.sub(r"[\s#\\]+", "_", material.material_name) or f"material_{number}"
        names.append(name if name not in names else f"{name}_{number}")
    return names


def pixels_of(material: PBRMaterial, map_name: str) -> NDArray[np.uint8] | None:
    """The image of a material as it is stored, (H, W) or (H, W, C) uint8, normals as n * 0.5 + 0.5; None for none."""
    image = getattr(material, f"{map_name}_texture")
    if image is None:
        return None
    if map_name == "normals":
        tensor = torch.as_tensor(image)
        image = tensor if tensor.dtype == torch.uint8 else ((tensor.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return to_pixels(f"{map_name}_texture", image)


def _library_text(materials: Sequence[PBRMaterial], names: Sequence[str], path: Path) -> str:
    """The text of the MTL file; images are written on the way."""
    folder, lines = TextureFolder(path.parent), []
    for number, (material, name) in enumerate(zip(materials, names, strict=True)):
        lines.append(f"newmtl {name}")
        for key, field in (*_COLORS, *_VALUES):
            value = getattr(material, field)
            if value is not None:
                lines.append(f"{key} {' '.join(f'{one:.9g}' for one in to_host(value).reshape(-1).tolist())}")
        for key, map_name in _MAPS:
            pixels = pixels_of(material, map_name)
            if pixels is not None:
                file = folder.save(f"{number} {map_name}", f"{path.stem}_{number}_{map_name}", pixels, overwrite=True)
                lines.append(f"{key} {'-imfchan r ' if pixels.ndim == 2 else ''}{file}")
    return "\n".join(lines) + "\n"


def _number_lines(keyword: str, values: Any) -> list[str]:
    """A line for each row; nine digits give a float32 back to the bit."""
    rows = to_host(values)
    if not np.isfinite(rows).all():
        raise ConfigError(f"{keyword}: numbers that are not finite; take them out of the mesh first")
    form = f"{keyword} " + " ".join(["%.9g"] * rows.shape[1])
    return [form % tuple(row) for row in rows.tolist()]


def _face_lines(mesh: SurfaceMesh, names: Sequence[str]) -> list[str]:
    """The faces, each material's name before its faces."""
    corners = _corner_texts(mesh)
    if mesh.material_assignments is None:
        return [f"f {' '.join(face)}" for face in corners]
    assigned = to_host(mesh.material_assignments)
    order = np.argsort(assigned >= 0, kind="stable")
    lines, current = [], -1
    for number in order.tolist():
        if assigned[number] != current:
            current = assigned[number]
            lines.append(f"usemtl {names[current]}")
        lines.append(f"f {' '.join(corners[number])}")
    return lines


def _corner_texts(mesh: SurfaceMesh) -> list[list[str]]:
    """The corners of each face as 1, 1/2, 1//3 or 1/2/3."""
    faces = to_host(mesh.faces)
    missing = np.full(faces.shape, -1)
    uvs = missing if mesh.uvs is None else to_host(mesh.face_uvs_idx)
    normals = missing if mesh.normals is None else to_host(mesh.face_normals_idx)
    numbers = np.stack([faces, uvs, normals], axis=-1).reshape(-1, 3) + 1
    texts = [f"{v}/{t or ''}/{n or ''}".rstrip("/") for v, t, n in numbers.tolist()]
    size = faces.shape[1]
    return [texts[start : start + size] for start in range(0, len(texts), size)]
