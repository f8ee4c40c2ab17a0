"""What is counted in a sample of a source of one's own, from whichever fields it has."""

from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from scenemill.validators.measures import Measured, count_pairs

_ROOM: Final = ("depth", "semantic_2d", "instance_2d", "geometry", "semantic_3d", "instance_3d", "intrinsics", "outside")
"""With all of these a sample is counted as a room is."""


class MeasuredOwn(Measured):
    """A sample of a source of one's own with its counts; what speaks of a field that it lacks is 0 or empty."""

    @cached_property
    def pairs_2d(self) -> NDArray[np.int64]:
        """As of a room; instances are 0 where the sample has none."""
        classes = self.flat("semantic_2d")
        return count_pairs(
            self.flat("instance_2d") if "instance_2d" in self.sample else np.zeros(classes.shape, np.uint16), classes
        )

    def facts(self) -> dict[str, Any]:
        """Columns of the samples table that speak of the values."""
        if all(name in self.sample for name in _ROOM):
            return {"geometry_float32_exact": True, **super().facts()}
        depth = self.flat("depth") if "depth" in self.sample else np.zeros(0, np.float32)
        valid = depth[depth > 0]
        pairs = self.pairs_2d if "semantic_2d" in self.sample else np.empty((0, 3), np.int64)
        voxels = ("geometry_min_voxel", "geometry_max_voxel", "voxels_observed", "voxels_occupied", "voxels_labelled")
        return {
            "fields": [name for name in self.rules.fields if name in self.sample],
            "grid": self.rules.grid,
            "image_height_pixel": self.rules.image[0],
            "image_width_pixel": self.rules.image[1],
            "intrinsics": self._listed("intrinsics") or [],
            "world_from_camera": self._listed("world_from_camera"),
            "classes_2d": np.unique(pairs[:, 1]).tolist(),
            "classes_3d": self._values("semantic_3d"),
            "instances_2d": self._values("instance_2d"),
            "instances_3d": self._values("instance_3d"),
            "things_2d": len(self.things(pairs)),
            "things_3d": len(self.things(self.pairs_3d)) if {"semantic_3d", "instance_3d"} <= set(self.sample.arrays) else 0,
            "depth_min_m": float(valid.min()) if valid.size else 0.0,
            "depth_max_m": float(valid.max()) if valid.size else 0.0,
            "depth_valid_share": valid.size / max(1, depth.size),
            "geometry_float32_exact": True,
            **dict.fromkeys(voxels, 0),
            "depth_on_surface_share": 0.0,
            "labels_agree_share": 0.0,
        }

    def _listed(self, name: str) -> list[float] | None:
        return self.flat(name).tolist() if name in self.sample else None

    def _values(self, name: str) -> list[int]:
        return np.unique(self.flat(name)).tolist() if name in self.sample else []
