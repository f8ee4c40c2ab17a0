"""How distances are stored: as they are, or in fewer bits with a measured error.

``fixed16`` keeps the truncation range in 16-bit steps (unsigned 0..12 for 3D-Front, signed for Matterport3D); ``scale_factor`` in
the array's attributes turns its integers into voxels, as xarray does by itself. Truncation and fill values stay exact.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from scenemill.schemas.fields import Field

_TRUNCATION: Final = 12.0


@dataclass(frozen=True)
class Storage:
    """How one field's values lie in the store.

    Attributes:
        dtype: of the stored array.
        fill: stored value of what is not there.
        scale: stored integers times this are the field's values; None for values stored as they are.
    """

    dtype: str
    fill: float | int | bool
    scale: float | None = None

    def encode(self, values: NDArray[Any]) -> NDArray[Any]:
        """Values of a field as they are stored."""
        if self.scale is None:
            return values.astype(self.dtype, copy=False)
        return np.rint(values * np.float32(1 / self.scale)).astype(self.dtype)

    def decode(self, stored: NDArray[Any], dtype: str) -> NDArray[Any]:
        """Stored values as the field's own dtype."""
        if self.scale is None:
            return stored.astype(dtype, copy=False)
        return stored * np.float32(self.scale)


def storage_of(field: Field, precision: str) -> Storage:
    """How ``field`` is stored at a precision: distances by it, all else as it is.

    Args:
        field: a row of the field table.
        precision: "float32", "float16" or "fixed16".
    """
    if field.name != "geometry" or precision == "float32":
        return Storage(field.dtype, field.fill)
    if precision == "float16":
        return Storage("float16", field.fill)
    if float(field.fill) > 0:
        return Storage("uint16", 65535, _TRUNCATION / 65535)
    return Storage("int16", -32767, _TRUNCATION / 32767)
