"""What is counted in one view of an object: the part of ``Measured`` that needs no volumes."""

from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scenemill.validators.measures import Measured


class MeasuredView(Measured):
    """A view of an object with its counts."""

    @cached_property
    def mask(self) -> NDArray[np.bool_]:
        """(H, W) bool, True on the object; the view must have ``semantic``."""
        mask: NDArray[np.bool_] = self.sample["semantic"] > 0
        return mask

    @cached_property
    def labels(self) -> list[int]:
        """The labels that occur, ascending, 0 among them; [] for a view without ``semantic``."""
        return self._values("semantic")

    def _values(self, name: str) -> list[int]:
        found: list[int] = np.flatnonzero(np.bincount(self.flat(name))).tolist() if name in self.sample else []
        return found

    def facts(self) -> dict[str, Any]:
        """Columns of the samples table that speak of the values; those that speak of voxels say that there are none."""
        depth = self.flat("depth") if "depth" in self.sample else np.zeros(0, np.float32)
        valid = depth[depth > 0]
        no_voxels = ("geometry_min_voxel", "geometry_max_voxel", "voxels_observed", "voxels_occupied", "voxels_labelled")
        no_shares = ("depth_on_surface_share", "labels_agree_share")
        return {
            "fields": [name for name in self.rules.fields if name in self.sample],
            "grid": self.rules.grid,
            "image_height_pixel": self.rules.image[0],
            "image_width_pixel": self.rules.image[1],
            "classes_2d": self.labels,
            "classes_3d": [],
            "instances_2d": self._values("instance"),
            "instances_3d": [],
            "things_2d": sum(label > 0 for label in self.labels),
            "things_3d": 0,
            "depth_min_m": float(valid.min()) if valid.size else 0.0,
            "depth_max_m": float(valid.max()) if valid.size else 0.0,
            "depth_valid_share": valid.size / max(1, depth.size),
            "geometry_float32_exact": True,
            **dict.fromkeys(no_voxels, 0),
            **dict.fromkeys(no_shares, 0.0),
        }
