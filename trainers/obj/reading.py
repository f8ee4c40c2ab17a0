"""Meshes out of OBJ files.

Source: Wavefront's OBJ format; the names, the arguments and the results are those of Kaolin's ``io.obj``, Apache 2.0.
"""

from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scenemill.trainers.obj.assignments import process_materials_and_assignments
from scenemill.trainers.obj.errors import Handler, MaterialFileError, default_error_handler
from scenemill.trainers.obj.mtl import inside, load_mtl, to_pbr
from scenemill.trainers.obj.parsing import Arrays, Statements, read_text, split_statements, to_arrays
from scenemill.trainers.surface_mesh import SurfaceMesh
from scenemill.trainers.usd.triangulate import NonHomogeneousMeshError, mesh_handler_naive_triangulate

FaceHandler = Callable[..., tuple[Any, ...] | None]
"""Makes faces of several sizes into faces of one size, or None to leave the mesh out; see ``mesh_handler_naive_triangulate``."""


def import_mesh(
    path: str | PathLike[str],
    with_materials: bool = False,
    with_normals: bool = False,
    error_handler: Handler | None = None,
    heterogeneous_mesh_handler: FaceHandler | None = None,
    triangulate: bool = False,
    raw_materials: bool = True,
    *,
    texture_root: str | PathLike[str] | None = None,
) -> SurfaceMesh | None:
    """The faces of a file as one mesh, on the CPU.

    Args:
        path: of the file.
        with_materials: read materials, their images, and texture coordinates.
        with_normals: read normals.
        error_handler: is told what is wrong with materials; None to raise it. See ``default_error_handler``, ``skip_error_handler``,
            ``ignore_error_handler`` and ``create_missing_materials_error_handler``.
        heterogeneous_mesh_handler: for faces of several sizes; None refuses them.
        triangulate: cut all faces into triangles.
        raw_materials: give dictionaries, as ``load_mtl`` does; else ``PBRMaterial``.
        texture_root: the folder that material files and images must be in; None for that of the file.

    Returns:
        ``vertices`` (V, 3) float32 and ``faces`` (F, n) int64; with materials ``uvs`` (U, 2) float32, v down, ``face_uvs_idx`` (F, n)
        int64, -1 for none, ``materials`` sorted by name and ``material_assignments`` (F,) int16, -1 for none; with normals ``normals``
        (N, 3) float32 and ``face_normals_idx``. None if the handler left the mesh out.

    Raises:
        SourceError: the file is missing, unreadable, or has values that no mesh can have.
        MaterialError: by the default handler, materials that are missing or unreadable.
        NonHomogeneousMeshError: faces of several sizes, and no handler.
    """
    path, handler = Path(path), error_handler or default_error_handler
    statements = split_statements(read_text(path))
    arrays = to_arrays(statements, with_materials, with_normals, str(path))
    root = path.parent if texture_root is None else Path(texture_root)
    materials = _materials(statements, path, handler, root) if with_materials else {}
    assigned = _assigned(statements, len(arrays.counts)) if with_materials else {}
    sized = _of_one_size(arrays, assigned, heterogeneous_mesh_handler, triangulate, path)
    if sized is None:
        return None
    vertices, faces, uv_rows, normal_rows, assigned = sized
    mesh = SurfaceMesh(vertices, faces, face_uvs_idx=uv_rows, face_normals_idx=normal_rows)
    if arrays.normals is not None:
        mesh.normals = torch.from_numpy(arrays.normals)
    if arrays.uvs is not None:
        mesh.uvs = torch.from_numpy(np.stack([arrays.uvs[:, 0], 1 - arrays.uvs[:, 1]], axis=1))
        found, mesh.material_assignments = process_materials_and_assignments(materials, assigned, handler, len(faces), str(path))
        mesh.materials = found if raw_materials else [to_pbr(material) for material in found]
    return mesh


def _materials(statements: Statements, path: Path, handler: Handler, root: Path) -> dict[str, Any]:
    """The materials of all files that are named; of equal names the latest."""
    materials: dict[str, Any] = {}
    for line in statements.libraries:
        whole = path.parent / line
        for name in [line] if _is_file(whole) else line.split():  # names may have spaces, and there may be several
            try:
                library = inside(path.parent / name, root)
            except (OSError, ValueError) as error:
                handler(
                    MaterialFileError(str(error), "a file of materials in the folder of its mesh"),
                    mtl_path=name,
                    mtl_data=materials,
                )
            else:
                materials.update(load_mtl(library, handler, root))
    return materials


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # no file can have such a name
        return False


def _assigned(statements: Statements, count: int) -> dict[str, torch.Tensor]:
    """Name of a material -> (K, 2) first faces and those after the last, also of names that no face follows."""
    ends = [first for _, first in statements.materials[1:]] + [count]
    ranges: dict[str, list[tuple[int, int]]] = {}
    for (name, first), end in zip(statements.materials, ends, strict=False):
        ranges.setdefault(name, []).extend([(first, end)] if end > first else [])
    return {name: torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2) for name, pairs in ranges.items()}


def _of_one_size(
    arrays: Arrays, assigned: dict[str, torch.Tensor], handler: FaceHandler | None, triangulate: bool, path: Path
) -> tuple[Any, ...] | None:
    """Vertices, (F, n) rows of vertices, coordinates and normals, and assignments; None if the handler left the mesh out."""
    vertices, counts = torch.from_numpy(arrays.vertices), torch.from_numpy(arrays.counts)
    corners = [None if rows is None else torch.from_numpy(rows) for rows in arrays.rows]
    is_even = bool((counts == counts[:1]).all())
    if not is_even and handler is None and not triangulate:
        raise NonHomogeneousMeshError(
            f"{path}: faces of {sorted(set(counts.tolist()))} corners; give triangulate=True or a heterogeneous_mesh_handler"
        )
    if not is_even or (triangulate and bool((counts != 3).any())):
        chosen = mesh_handler_naive_triangulate if handler is None or is_even else handler
        handled = chosen(vertices, counts, *corners, face_assignments=assigned)
        if handled is None:
            return None
        vertices, counts, *corners, assigned = handled
    size = int(counts[0]) if len(counts) else 3
    return (vertices, *(None if rows is None else rows.reshape(-1, size) for rows in corners), assigned)
