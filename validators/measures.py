"""What is counted in one sample, once: the checks judge these numbers and the samples table keeps them.

Volumes are nearly empty, so everything is counted on the few voxels that hold something: their flat indices are found in one pass
and all else is a lookup.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scenemill.schemas.fields import FRONT3D_FORM, Field, fields_of
from scenemill.schemas.labels import LABELS, Label
from scenemill.schemas.sample import Sample

Index = NDArray[np.intp]


@dataclass(frozen=True)
class Rules:
    """What a source's samples are measured against.

    Attributes:
        source: its name.
        grid: voxels a side.
        image: (height, width) in pixels.
        frustum: (X, Y, Z) bool, True inside, where one mask serves the whole source; None where every sample carries its own.
        locate: sample -> (3, H, W) float64, the grid coordinates of the point that each pixel sees.
        labels: the classes that may occur.
        own_fields: of a source of one's own; () for a built-in source.
    """

    source: str
    grid: int
    image: tuple[int, int]
    frustum: NDArray[np.bool_] | None
    locate: Callable[[Sample], NDArray[np.float64]]
    labels: tuple[Label, ...] = LABELS
    own_fields: tuple[Field, ...] = ()

    @property
    def front3d_form(self) -> bool:
        """True for 3D-Front and the sources in its form: unsigned distances, labels and weights in exact bands."""
        return self.source in FRONT3D_FORM

    @cached_property
    def fields(self) -> dict[str, Field]:
        """The field table's rows by name."""
        return {field.name: field for field in self.own_fields or fields_of(self.source)}


class Measured:
    """One sample with its counts; each is worked out when first asked for, and only from fields the sample has.

    Flat indices run over a volume in C order. ``observed`` are the voxels whose distance differs from the fill.
    """

    def __init__(self, sample: Sample, rules: Rules) -> None:
        self.sample = sample
        self.rules = rules

    def flat(self, name: str) -> NDArray[Any]:
        """A field as one axis, without a copy."""
        return self.sample[name].reshape(-1)

    @cached_property
    def observed(self) -> Index:
        """Voxels whose distance differs from the fill; NaN does."""
        return np.flatnonzero(self.flat("geometry") != self.rules.fields["geometry"].fill)

    @cached_property
    def distance(self) -> NDArray[np.float32]:
        """Distances of the observed voxels, in voxels."""
        return self.flat("geometry")[self.observed]

    @cached_property
    def labelled(self) -> Index:
        """Voxels with a class above 0."""
        return np.flatnonzero(self.flat("semantic_3d") != 0)

    @cached_property
    def classes_3d(self) -> NDArray[np.uint8]:
        """Classes of the labelled voxels."""
        return self.flat("semantic_3d")[self.labelled]

    @cached_property
    def instances_3d(self) -> NDArray[np.uint16]:
        """Instance ids of the labelled voxels."""
        return self.flat("instance_3d")[self.labelled]

    @cached_property
    def thing_classes(self) -> NDArray[np.uint8]:
        """Ids of the countable classes."""
        return np.array([label.id for label in self.rules.labels if label.thing], np.uint8)

    @cached_property
    def pairs_2d(self) -> NDArray[np.int64]:
        """(pairs, 3) int64: instance id, class and number of pixels, for every pair of the two that occurs."""
        return count_pairs(self.flat("instance_2d"), self.flat("semantic_2d"))

    @cached_property
    def pairs_3d(self) -> NDArray[np.int64]:
        """(pairs, 3) int64: instance id, class and number of voxels, for every pair of the two that occurs."""
        return count_pairs(self.instances_3d, self.classes_3d)

    def things(self, pairs: NDArray[np.int64]) -> NDArray[np.int64]:
        """Sorted ids of the instances of countable classes among ``pairs``."""
        return np.unique(pairs[np.isin(pairs[:, 1], self.thing_classes) & (pairs[:, 0] > 0), 0])

    @cached_property
    def frustum(self) -> NDArray[np.bool_]:
        """Flat (X * Y * Z,) bool, True inside."""
        if self.rules.frustum is not None:
            return self.rules.frustum.reshape(-1)
        inside: NDArray[np.bool_] = ~self.flat("outside")
        return inside

    @cached_property
    def seen(self) -> tuple[NDArray[np.bool_], Index]:
        """(H * W,) bool, True where a pixel's nearest voxel lies in the grid; and the flat index of that voxel (0 elsewhere)."""
        grid = self.rules.grid
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            voxel = np.rint(self._points()).reshape(3, -1)
            valid = (self.flat("depth") > 0) & ((voxel >= 0) & (voxel < grid)).all(axis=0)
        voxel = np.where(valid, voxel, 0).astype(np.intp)
        return valid, (voxel[0] * grid + voxel[1]) * grid + voxel[2]

    def _points(self) -> NDArray[np.float64]:
        try:
            return self.rules.locate(self.sample)
        except np.linalg.LinAlgError:  # a matrix that no camera has; a check of its own says so
            return np.full((3, self.sample["depth"].size), np.nan)

    @cached_property
    def inside(self) -> NDArray[np.bool_]:
        """(H * W,) bool, True where a pixel's voxel lies in the frustum."""
        valid, voxel = self.seen
        return np.logical_and(valid, self.frustum[voxel])

    @cached_property
    def on_surface(self) -> NDArray[np.bool_]:
        """(H * W,) bool, True where a pixel's voxel is less than one voxel from a surface."""
        valid, voxel = self.seen
        near: NDArray[np.bool_] = np.abs(self.flat("geometry")[voxel]) < 1
        return valid & near

    @cached_property
    def class_agreement(self) -> tuple[int, int]:
        """(pixels whose voxel has the pixel's class, pixels whose voxel has any)."""
        valid, voxel = self.seen
        volume = self.flat("semantic_3d")[voxel]
        both = valid & (volume > 0)
        return int(np.count_nonzero(both & (volume == self.flat("semantic_2d")))), int(np.count_nonzero(both))

    @cached_property
    def instance_agreement(self) -> tuple[int, int]:
        """(thing pixels whose thing voxel has the pixel's instance, thing pixels on thing voxels)."""
        valid, voxel = self.seen
        both = valid & np.isin(self.flat("semantic_2d"), self.thing_classes)
        both &= np.isin(self.flat("semantic_3d")[voxel], self.thing_classes)
        return int(np.count_nonzero(both & (self.flat("instance_3d")[voxel] == self.flat("instance_2d")))), int(
            np.count_nonzero(both)
        )

    def facts(self) -> dict[str, Any]:
        """Columns of the samples table that speak of the values. The sample must have every required field."""
        depth = self.flat("depth")
        valid = depth[depth > 0]
        agree, labelled = self.class_agreement
        inside = int(np.count_nonzero(self.inside))
        geometry_fill = float(self.rules.fields["geometry"].fill)
        return {
            "fields": [name for name in self.rules.fields if name in self.sample],
            "grid": self.rules.grid,
            "image_height_pixel": self.rules.image[0],
            "image_width_pixel": self.rules.image[1],
            "intrinsics": self.flat("intrinsics").tolist(),
            "world_from_camera": self.flat("world_from_camera").tolist() if "world_from_camera" in self.sample else None,
            "classes_2d": np.unique(self.pairs_2d[:, 1]).tolist(),
            "classes_3d": np.unique(self.pairs_3d[:, 1]).tolist(),
            "instances_2d": np.unique(self.pairs_2d[:, 0]).tolist(),
            "instances_3d": np.unique(self.pairs_3d[:, 0]).tolist(),
            "things_2d": len(self.things(self.pairs_2d)),
            "things_3d": len(self.things(self.pairs_3d)),
            "depth_min_m": float(valid.min()) if valid.size else 0.0,
            "depth_max_m": float(valid.max()) if valid.size else 0.0,
            "depth_valid_share": valid.size / depth.size,
            "geometry_min_voxel": min(float(self.distance.min()), geometry_fill) if self.distance.size else geometry_fill,
            "geometry_max_voxel": max(float(self.distance.max()), geometry_fill) if self.distance.size else geometry_fill,
            "voxels_observed": self.observed.size,
            "voxels_occupied": int(np.count_nonzero(np.abs(self.distance) < 1)),
            "voxels_labelled": self.labelled.size,
            "depth_on_surface_share": int(np.count_nonzero(self.inside & self.on_surface)) / max(1, inside),
            "labels_agree_share": agree / max(1, labelled),
        }


def count_pairs(instances: NDArray[np.uint16], classes: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Pairs that occur, with their counts; runs of equal neighbours are merged before they are sorted."""
    pairs = (instances.astype(np.uint32) << 8) | classes
    if not pairs.size:
        return np.empty((0, 3), np.int64)
    starts = np.concatenate([[0], np.flatnonzero(pairs[1:] != pairs[:-1]) + 1])
    lengths = np.diff(starts, append=pairs.size)
    found, place = np.unique(pairs[starts], return_inverse=True)
    counts = np.bincount(place, weights=lengths).astype(np.int64)
    return np.stack([(found >> 8).astype(np.int64), (found & 0xFF).astype(np.int64), counts], axis=1)
