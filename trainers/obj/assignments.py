"""Which face has which material: names and ranges of faces as a sorted list and a number for each face.

Source: the names, the arguments and the results are those of Kaolin's ``io.materials``, Apache 2.0.
"""

from collections.abc import Mapping
from typing import Any

import torch

from scenemill.schemas.errors import ConfigError
from scenemill.trainers.obj.errors import Handler, MaterialNotFoundError


def process_materials_and_assignments(
    materials_dict: Mapping[str, Any],
    material_assignments_dict: Mapping[str, torch.Tensor],
    error_handler: Handler,
    num_faces: int,
    error_context_str: str = "",
) -> tuple[list[Any], torch.Tensor]:
    """The materials sorted by name, and the number of each face's.

    Args:
        materials_dict: by name.
        material_assignments_dict: name -> (K,) integers, faces; or (K, 2), first faces and those after the last.
        error_handler: is told of names without a material; what it returns, if it is not None, becomes the material.
        num_faces: F.
        error_context_str: where this is, for messages.

    Returns:
        The materials, and (F,) int16, -1 for none. Where a face is named twice, the material that comes later in the alphabet has it.

    Raises:
        ConfigError: assignments of another shape, of faces that are not there, or more materials than int16 can number.
    """
    materials = dict(materials_dict)
    where = f" of {error_context_str}" if error_context_str else ""
    for name in sorted(set(material_assignments_dict) - set(materials)):
        error = MaterialNotFoundError(f"no material {name!r} for faces{where}", "a material file that defines it")
        found = error_handler(error, material_name=name)
        if found is not None:
            materials[name] = _named(found, name)
    names = sorted(materials)
    if len(names) > torch.iinfo(torch.int16).max:
        raise ConfigError(f"{len(names)} materials{where}; at most {torch.iinfo(torch.int16).max} can be numbered")
    assigned = torch.full((num_faces,), -1, dtype=torch.int16)
    for number, name in enumerate(names):
        if name in material_assignments_dict:
            assigned[_faces(name, material_assignments_dict[name], num_faces)] = number
    return [materials[name] for name in names], assigned


def _named(material: Any, name: str) -> Any:
    if isinstance(material, Mapping):
        return {**material, "material_name": name}
    material.material_name = name
    return material


def _faces(name: str, assigned: torch.Tensor, count: int) -> torch.Tensor:
    if assigned.ndim == 2 and assigned.shape[1] == 2:
        ranges = [torch.arange(start, end) for start, end in assigned.tolist()]
        assigned = torch.cat(ranges) if ranges else torch.zeros(0, dtype=torch.int64)
    if assigned.ndim != 1 or (len(assigned) and not 0 <= int(assigned.min()) <= int(assigned.max()) < count):
        raise ConfigError(f"faces of material {name!r}: {list(assigned.shape)}; give (K,) or (K, 2) numbers below {count}")
    return assigned.long()
