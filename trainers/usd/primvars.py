"""Colours and ids of the elements of a prim: one for all of them, or one for each vertex or face.

Source: the primvars of UsdGeom; ``displayColor`` and ``displayOpacity`` are what viewers show, ``semantic_id`` is ours.
"""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from scenemill.schemas.errors import ConfigError
from scenemill.trainers.usd.arrays import to_host, to_integers, to_unit
from scenemill.trainers.usd.authoring import Author

COLOR: Final = "primvars:displayColor"
OPACITY: Final = "primvars:displayOpacity"
SEMANTIC_ID: Final = "primvars:semantic_id"
"""Names of the attributes."""

CONSTANT: Final = "constant"
VERTEX: Final = "vertex"
UNIFORM: Final = "uniform"
"""One for all, one for each vertex, point or voxel, one for each face."""


def put_colors(author: Author, prim: Any, colors: Any, places: Mapping[str, int]) -> None:
    """Give a prim its colours.

    Args:
        author: writes.
        prim: the spec.
        colors: (n, 3) or (n, 4), or one (3,) or (4,); floats from 0 to 1 or uint8. The fourth is opacity.
        places: where colours may be, ``VERTEX`` or ``UNIFORM`` -> how many there are.

    Raises:
        ConfigError: colours of another form or number, or in another place than this prim's have been.
    """
    array = to_host(colors)
    if array.ndim not in (1, 2) or array.shape[-1] not in (3, 4) or not (array.dtype == np.uint8 or array.dtype.kind == "f"):
        raise ConfigError(
            f"colours of {prim.name}: {array.shape} {array.dtype}; give (n, 3) or (n, 4), floats from 0 to 1 or uint8"
        )
    unit = to_unit(array)
    _put(author, prim, COLOR, "color3f[]", unit[..., :3], 2, places)
    if array.shape[-1] == 4 or author.layer.GetAttributeAtPath(prim.path.AppendProperty(OPACITY)):
        opacity = unit[..., 3] if array.shape[-1] == 4 else np.ones(array.shape[:-1], np.float32)
        _put(author, prim, OPACITY, "float[]", opacity, 1, places)


def put_ids(author: Author, prim: Any, ids: Any, places: Mapping[str, int]) -> None:
    """Give a prim its semantic ids.

    Args:
        author: writes.
        prim: the spec.
        ids: (n,) integers of 32 bits, or one.
        places: where ids may be, as in ``put_colors``; the first that fits is taken.

    Raises:
        ConfigError: ids of another form or number, or in another place than this prim's have been.
    """
    array = to_integers(f"semantic ids of {prim.name}", ids)
    if array.ndim > 1:
        raise ConfigError(f"semantic ids of {prim.name}: {array.shape}; give a list of them, or one")
    _put(author, prim, SEMANTIC_ID, "int[]", array, 1, places)


def _put(author: Author, prim: Any, name: str, kind: str, values: NDArray[Any], rows: int, places: Mapping[str, int]) -> None:
    attribute = author.declare(prim, name, kind)
    known = author.interpolation(attribute)
    if values.ndim < rows:
        place = known or CONSTANT
        values = np.repeat(values[None], places.get(place, 1), axis=0)
    else:
        fits = [where for where, count in places.items() if count == len(values)]
        place = known if known in fits else next(iter(fits), "")
    if not place:
        wanted = " or ".join(f"{count} ({where})" for where, count in places.items())
        raise ConfigError(f"{name} of {prim.name}: {len(values)} values; give {wanted}, or one for all")
    if known and (place != known or place not in (CONSTANT, *places)):
        raise ConfigError(
            f"{name} of {prim.name}: {place}, but {known} in the calls before; give them so from the first call on, "
            "or write to another category"
        )
    author.put(prim, name, kind, values)
    if author.strict and not known:
        attribute.SetInfo("interpolation", place)
