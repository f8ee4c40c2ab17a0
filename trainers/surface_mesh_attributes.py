"""What a ``SurfaceMesh`` may hold: the names, in the order in which they are told, and the shape of each in the three kinds of batch.

Source: the attributes and shapes are those of Kaolin's ``rep.SurfaceMesh``, Apache 2.0.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final, NamedTuple

import torch

Size = int | str | None
"""Of an axis: a number, the name of one, or None for any."""


class Batching(StrEnum):
    """How a ``SurfaceMesh`` holds several meshes.

    NONE: one mesh, its arrays as they are. FIXED: B meshes with the same faces, one array of all with B first, and one array of faces.
    LIST: meshes of their own, a list of arrays.
    """

    NONE = "NONE"
    FIXED = "FIXED"
    LIST = "LIST"


class Attribute(NamedTuple):
    """A tensor of a mesh.

    Attributes:
        name: of the attribute.
        shape: of one mesh, by names of axes: V vertices, F faces, FSz corners of a face, VN normals, U texture coordinates, C any.
        is_float: holds floats, else integers.
    """

    name: str
    shape: tuple[int | str, ...]
    is_float: bool = True


TENSORS: Final = (
    Attribute("vertices", ("V", 3)),
    Attribute("faces", ("F", "FSz"), is_float=False),
    Attribute("face_vertices", ("F", "FSz", 3)),
    Attribute("normals", ("VN", 3)),
    Attribute("face_normals_idx", ("F", "FSz"), is_float=False),
    Attribute("face_normals", ("F", "FSz", 3)),
    Attribute("uvs", ("U", 2)),
    Attribute("face_uvs_idx", ("F", "FSz"), is_float=False),
    Attribute("face_uvs", ("F", "FSz", 2)),
    Attribute("vertex_normals", ("V", 3)),
    Attribute("vertex_tangents", ("V", 3)),
    Attribute("vertex_colors", ("V", "C")),
    Attribute("vertex_features", ("V", "C")),
    Attribute("face_tangents", ("F", "FSz", 3)),
    Attribute("face_colors", ("F", "FSz", "C")),
    Attribute("face_features", ("F", "FSz", "C")),
    Attribute("material_assignments", ("F",), is_float=False),
    Attribute("transform", (4, 4)),
)
TENSOR_NAMES: Final = tuple(one.name for one in TENSORS)
FLOAT_NAMES: Final = tuple(one.name for one in TENSORS if one.is_float)
SETTINGS: Final = ("batching", "allow_auto_compute", "unset_attributes_return_none")
MATERIALS: Final = "materials"
NAMES: Final = (*SETTINGS, MATERIALS, *TENSOR_NAMES)
"""Of all that a mesh has; no other attribute can be set."""

SHARED: Final = "faces"
"""What all meshes of a FIXED batch have in common."""

TRANSFORM: Final = "transform"
"""(4, 4) of one mesh; of a batch of either kind (B, 4, 4), or (4, 4) for all of them."""

_BY_NAME: Final = {one.name: one for one in TENSORS}


def expected_shape(name: str, batching: Batching, sizes: Mapping[str, Size]) -> list[Size]:
    """The shape of a tensor; of one of its list for LIST.

    Args:
        name: of the attribute.
        batching: of the mesh.
        sizes: name of an axis (and B, the meshes of a batch) -> its size, or what stands for it. Axes without one may have any size.

    >>> expected_shape("uvs", Batching.FIXED, {"B": 2, "U": "U"})
    [2, 'U', 2]
    """
    shape = [axis if isinstance(axis, int) else sizes.get(axis) for axis in _BY_NAME[name].shape]
    is_stacked = (batching == Batching.FIXED and name != SHARED) or (batching == Batching.LIST and name == TRANSFORM)
    return [sizes.get("B"), *shape] if is_stacked else shape


def attribute_info(batching: Batching) -> str:
    """A line of text for each attribute: its kind and its shape in a kind of batch."""
    suffix = "_i" if batching == Batching.LIST else ""
    axes = {axis for one in TENSORS for axis in one.shape if isinstance(axis, str)}
    sizes: dict[str, Size] = {"B": "B", **{axis: f"{axis}{suffix}" for axis in axes}}
    form, plural = ("[{}]", "s") if batching == Batching.LIST else ("({})", "")
    lines = [f"Expected SurfaceMesh contents for batching strategy {batching}"]
    for one in TENSORS:
        kind = form.format("torch.FloatTensor" if one.is_float else "torch.IntTensor")
        lines.append(f"{one.name:>20}: {kind:<19} of shape{plural} {expected_shape(one.name, batching, sizes)}")
    return "\n".join([*lines, f"{MATERIALS:>20}: non-tensor attribute"])


def flaws_of(values: Mapping[str, Any], batching: Batching, count: int) -> list[str]:
    """What is wrong with the shapes of a mesh, in words.

    Args:
        values: its tensors by name.
        batching: of the mesh.
        count: meshes in the batch.
    """
    sizes = _known_sizes(values, batching, count)
    found = [_flaw_of(name, value, batching, sizes) for name, value in values.items()]
    return [flaw for flaw in found if flaw is not None]


def _known_sizes(values: Mapping[str, Any], batching: Batching, count: int) -> dict[str, Size]:
    """The sizes of axes that the vertices and faces of a mesh tell; those of a LIST differ from mesh to mesh and are not told."""
    sizes: dict[str, Size] = {"B": count}
    vertices, faces = values.get("vertices"), values.get("faces")
    if batching == Batching.LIST:
        return sizes
    if isinstance(vertices, torch.Tensor) and vertices.ndim >= 2 and vertices.numel():
        sizes["V"] = vertices.shape[-2]
    if isinstance(faces, torch.Tensor) and faces.ndim == 2 and faces.numel():
        sizes["F"], sizes["FSz"] = faces.shape
    return sizes


def _flaw_of(name: str, value: Any, batching: Batching, sizes: Mapping[str, Size]) -> str | None:
    shape = expected_shape(name, batching, sizes)
    if name == TRANSFORM:
        is_fine = isinstance(value, torch.Tensor) and (value.shape == (4, 4) or _fits(value, shape))
        return None if is_fine else f"transform: {_form(value)}; give a tensor of (4, 4) or {shape}"
    if batching != Batching.LIST:
        return None if _fits(value, shape) else f"{name}: {_form(value)}; give a tensor of {shape} for batching {batching}"
    if not isinstance(value, list) or len(value) != sizes["B"]:
        return f"{name}: {_form(value)}; give a list of {sizes['B']} tensors for batching LIST"
    wrong = next((one for one in value if not _fits(one, shape)), None)
    return None if wrong is None else f"{name}: one is {_form(wrong)}; give tensors of {shape}"


def _fits(value: Any, shape: list[Size]) -> bool:
    if not isinstance(value, torch.Tensor) or value.ndim != len(shape):
        return False
    return all(size in (None, there) for size, there in zip(shape, value.shape, strict=True))


def _form(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor of {list(value.shape)}"
    return f"a list of {len(value)}" if isinstance(value, list) else type(value).__name__
