"""glTF files, in and out: meshes with metallic-rough materials. The one home of trimesh, which is imported where it is needed.

Source: Khronos glTF 2.0; the names and arguments follow Kaolin's ``io.gltf``, Apache 2.0.
"""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from scenemill.schemas.errors import ConfigError, SourceError
from scenemill.trainers.obj.writing import pixels_of, prepared, to_physical, unique_names
from scenemill.trainers.surface_mesh import SurfaceMesh
from scenemill.trainers.usd.arrays import to_host
from scenemill.trainers.usd.materials import PBRMaterial
from scenemill.transforms.publish import write_whole

SUFFIXES: Final = (".glb", ".gltf")
"""Of files that are read: one with everything in it, and one that names others."""

_ROUGHNESS, _METALLIC = 1, 2  # channels of the image of both


def import_mesh(path: str | PathLike[str]) -> SurfaceMesh | None:
    """The triangles of a file's scene as one mesh in its world, with materials and normals.

    Args:
        path: of a ``.glb`` or ``.gltf`` file. Other files that it names must be in its folder or below.

    Returns:
        ``vertices`` (V, 3) float32, ``faces`` (F, 3) int64, ``vertex_normals``; ``uvs``, v down, or ``vertex_colors`` from 0 to 1, where
        all of the scene has them; ``materials`` as ``PBRMaterial`` with textures (H, W, C), in the order of their use. Lines and points
        are left out. None if there is no triangle.

    Raises:
        ConfigError: trimesh is not installed.
        SourceError: missing, or no glTF file.
    """
    trimesh = _trimesh()
    path = Path(path)
    if not path.is_file():
        raise SourceError("missing", f"no file {path}", "a glTF file")
    try:
        return _whole(trimesh, trimesh.load_scene(str(path), process=False))
    except Exception as error:  # whatever a broken file makes of a parser without checks of its own
        raise SourceError("container", f"no readable glTF file at {path} ({str(error)[:200]})", "a glTF file") from error


def _whole(trimesh: Any, scene: Any) -> SurfaceMesh | None:
    """All triangles of a scene as one mesh; any error for what no mesh can have."""
    solids = [(transform, part) for transform, part in _placed(scene) if isinstance(part, trimesh.Trimesh) and len(part.faces)]
    if not solids:
        return None
    sources: list[Any] = []
    meshes = [_surface(part, transform, sources) for transform, part in solids]
    mesh = SurfaceMesh.flatten(meshes)
    mesh.materials = [_to_pbr(source) for source in sources]
    return mesh


def export_mesh(path: str | PathLike[str], mesh: SurfaceMesh, overwrite: bool = False) -> None:
    """Write a mesh of triangles as one binary file, with its images in it.

    Args:
        path: of a ``.glb`` file.
        mesh: a single one, or a batch of one; it is written as it is in the world. Faces are sorted by their materials, and each corner
            becomes a vertex where coordinates or normals differ there.
        overwrite: replace a file that is there.

    Raises:
        FileExistsError: the file is there, and shall not be replaced.
        ConfigError: trimesh is not installed; another suffix; several meshes; faces that are no triangles; positions that are not finite.
    """
    trimesh, path = _trimesh(), Path(path)
    if path.suffix.lower() != ".glb":
        raise ConfigError(f"{path}: glTF is written as one binary file; give a name that ends in .glb")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} is there; give overwrite=True to replace it")
    mesh = prepared(mesh, is_sparse=False)
    if not mesh.is_triangular() or not bool(torch.isfinite(mesh.vertices).all()):
        raise ConfigError(f"{path}: faces of {mesh.faces.shape[1]} corners or endless positions; give finite triangles")
    materials = to_physical(mesh.materials or [])
    names = unique_names(materials)
    scene, assigned = trimesh.Scene(), _assigned(mesh)
    for number in np.unique(assigned).tolist():
        is_known = number >= 0
        look = _from_pbr(trimesh, materials[number], names[number]) if is_known else None
        scene.add_geometry(_part(trimesh, mesh, assigned == number, look), geom_name=names[number] if is_known else "no_material")
    write_whole(path, scene.export(file_type="glb", include_normals=mesh.normals is not None))


def _trimesh() -> Any:
    try:
        import trimesh
    except ImportError as error:
        raise ConfigError('glTF files need trimesh; install it with: pip install "scenemill[mesh]"') from error
    return trimesh


def _placed(scene: Any) -> list[tuple[NDArray[np.float64], Any]]:
    """The parts of a scene with their transforms into the world, in the order of the file; trimesh keeps nodes in none."""
    order = {name: number for number, name in enumerate(scene.geometry)}
    places = [(order[name], node, transform) for node in scene.graph.nodes_geometry for transform, name in [scene.graph[node]]]
    parts = list(scene.geometry.values())
    return [(transform, parts[number]) for number, _, transform in sorted(places, key=lambda place: place[:2])]


def _surface(part: Any, transform: NDArray[np.float64], sources: list[Any]) -> SurfaceMesh:
    """A part of a scene; its material is added to the sources, unless it is there."""
    vertices, faces = torch.from_numpy(np.array(part.vertices, np.float32)), torch.from_numpy(np.array(part.faces, np.int64))
    if not torch.isfinite(vertices).all() or faces.min() < 0 or faces.max() >= len(vertices) or not np.isfinite(transform).all():
        raise ValueError("corners that are not there, or not finite")
    is_moved = not np.array_equal(transform, np.eye(4))
    mesh = SurfaceMesh(vertices, faces, transform=torch.from_numpy(np.array(transform, np.float64)) if is_moved else None)
    mesh.vertex_normals = torch.from_numpy(np.array(part.vertex_normals, np.float32))
    number, visual = -1, part.visual
    if visual.kind == "texture":
        if visual.uv is not None:
            uvs = np.array(visual.uv, np.float32)
            mesh.uvs = torch.from_numpy(np.stack([uvs[:, 0], 1 - uvs[:, 1]], axis=1))
            mesh.face_uvs_idx = faces
        if not any(source is visual.material for source in sources):
            sources.append(visual.material)
        number = next(place for place, source in enumerate(sources) if source is visual.material)
    elif visual.kind == "vertex":
        mesh.vertex_colors = torch.from_numpy(np.array(visual.vertex_colors, np.float32) / 255)
    mesh.material_assignments = torch.full((len(faces),), number, dtype=torch.int16)
    return mesh


def _to_pbr(source: Any) -> PBRMaterial:
    """A material as trimesh has it."""
    source = source if hasattr(source, "baseColorTexture") else source.to_pbr()
    color = np.ones(4) if source.baseColorFactor is None else np.asarray(source.baseColorFactor, np.float64)
    color = color / 255 if color.max() > 1 else color
    base, both, normals = (
        _image(getattr(source, name)) for name in ("baseColorTexture", "metallicRoughnessTexture", "normalTexture")
    )
    sees_through = source.alphaMode in ("BLEND", "MASK")
    rough, metallic = (1.0 if value is None else float(value) for value in (source.roughnessFactor, source.metallicFactor))
    return PBRMaterial(
        material_name=source.name or "",
        diffuse_color=color[:3],
        opacity_value=color[3] if sees_through else None,
        opacity_threshold=(0.5 if source.alphaCutoff is None else source.alphaCutoff) if source.alphaMode == "MASK" else None,
        roughness_value=rough,
        metallic_value=metallic,
        diffuse_texture=None if base is None else base[..., :3] * torch.tensor(color[:3], dtype=torch.float32),
        opacity_texture=base[..., 3:] * color[3] if base is not None and base.shape[-1] == 4 and sees_through else None,
        roughness_texture=None if both is None else both[..., _ROUGHNESS : _ROUGHNESS + 1] * rough,
        metallic_texture=None if both is None else both[..., _METALLIC : _METALLIC + 1] * metallic,
        normals_texture=None if normals is None else normals[..., :3] * 2 - 1,
        diffuse_colorspace="sRGB",
        roughness_colorspace="raw",
        metallic_colorspace="raw",
        normals_colorspace="raw",
    )


def _image(image: Any) -> torch.Tensor | None:
    """(H, W, 3 or 4) float32 from 0 to 1."""
    if image is None:
        return None
    mode = "RGBA" if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info else "RGB"
    return torch.from_numpy(np.array(image.convert(mode))).float() / 255


def _assigned(mesh: SurfaceMesh) -> NDArray[Any]:
    if mesh.material_assignments is None:
        return np.full(len(mesh.faces), -1)
    return to_host(mesh.material_assignments)


def _part(trimesh: Any, mesh: SurfaceMesh, faces: NDArray[np.bool_], look: Any) -> Any:
    """The faces of one material, each vertex with one coordinate and one normal."""
    columns = [to_host(mesh.faces)]
    columns += [to_host(mesh.face_uvs_idx)] if mesh.uvs is not None else []
    columns += [to_host(mesh.face_normals_idx)] if mesh.normals is not None else []
    rows = np.stack([column[faces] for column in columns], axis=-1).reshape(-1, len(columns))
    unique, corners = np.unique(rows, axis=0, return_inverse=True)
    visual = None
    if look is not None:
        uvs = to_host(mesh.uvs)[unique[:, 1]] * [1, -1] + [0, 1] if mesh.uvs is not None else None
        visual = trimesh.visual.TextureVisuals(uv=uvs, material=look)
    elif mesh.vertex_colors is not None:
        visual = trimesh.visual.ColorVisuals(vertex_colors=to_host(mesh.vertex_colors)[unique[:, 0]])
    normals = None if mesh.normals is None else to_host(mesh.normals)[unique[:, -1]]
    points = to_host(mesh.vertices)[unique[:, 0]]
    return trimesh.Trimesh(points, corners.reshape(-1, 3), vertex_normals=normals, visual=visual, process=False)


def _from_pbr(trimesh: Any, material: PBRMaterial, name: str) -> Any:
    """A material as trimesh wants it; what glTF has no place for is left out."""
    maps = {one: pixels_of(material, one) for one in ("diffuse", "opacity", "roughness", "metallic", "normals")}
    base, rough, metallic = maps["diffuse"], maps["roughness"], maps["metallic"]
    has_both = rough is not None or metallic is not None
    alpha = 1.0 if material.opacity_value is None else float(material.opacity_value)
    color = [1.0, 1.0, 1.0] if base is not None or material.diffuse_color is None else to_host(material.diffuse_color).tolist()
    is_open = alpha < 1 or maps["opacity"] is not None
    return trimesh.visual.material.PBRMaterial(
        name=name,
        baseColorFactor=[*color, alpha],
        baseColorTexture=_picture(_with_alpha(base, maps["opacity"])),
        metallicRoughnessTexture=_picture(_stacked([None, rough, metallic])) if has_both else None,
        roughnessFactor=1.0 if rough is not None or material.roughness_value is None else float(material.roughness_value),
        metallicFactor=1.0 if metallic is not None else float(material.metallic_value or 0),
        normalTexture=_picture(maps["normals"]),
        alphaMode="BLEND" if is_open else "OPAQUE",
    )


def _with_alpha(base: NDArray[np.uint8] | None, opacity: NDArray[np.uint8] | None) -> NDArray[np.uint8] | None:
    if opacity is None:
        return base
    layers = [None] * 3 if base is None else [*np.moveaxis(base[..., :3] if base.ndim == 3 else np.dstack([base] * 3), -1, 0)]
    return _stacked([*layers, opacity])


def _stacked(layers: Sequence[NDArray[np.uint8] | None]) -> NDArray[np.uint8]:
    """Images as the channels of one; the first channel of each, white for none.

    Raises:
        ConfigError: images of different sizes.
    """
    planes = [None if layer is None else layer if layer.ndim == 2 else layer[..., 0] for layer in layers]
    sizes = {plane.shape for plane in planes if plane is not None}
    if len(sizes) != 1:
        raise ConfigError(f"images of {sorted(sizes)} of one material; glTF keeps them in one image: give one size")
    white = np.full(sizes.pop(), 255, np.uint8)
    return np.stack([white if plane is None else plane for plane in planes], axis=-1)


def _picture(pixels: NDArray[np.uint8] | None) -> Any:
    from PIL import Image

    return None if pixels is None else Image.fromarray(pixels)
