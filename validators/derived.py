"""Scalars that a suite judges and the samples table does not hold: worked out of its lists, matrices and rows together."""

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from scenemill.schemas.labels import FLOOR, WALL


def facts_of(samples: pa.Table) -> pa.Table:
    """The scalar columns of a samples table, and scalars derived from its lists and matrices.

    Derived: ``classes_2d_max``, ``classes_3d_max``; ``shows_wall``, ``shows_floor`` and ``warned`` (0 or 1); ``things_not_in_3d``
    (things of the image less those of the volume); ``occupied_not_labelled`` (voxels); ``splits_of_digest`` and ``splits_of_scene``
    (number of splits that hold these files, or this scene); ``views_of_camera`` (views of the scene with this pose and lens);
    ``camera_height_m`` and ``pose_error`` (largest departure of the rotation from an orthonormal one of determinant 1), NaN where
    there is no pose.
    """
    samples = samples.combine_chunks()
    facts = {name: samples[name] for name in samples.column_names if not pa.types.is_nested(samples.schema.field(name).type)}
    pose = _poses(samples["world_from_camera"])
    derived = {
        "classes_2d_max": _greatest(samples["classes_2d"]),
        "classes_3d_max": _greatest(samples["classes_3d"]),
        "shows_wall": _holds(samples["classes_2d"], WALL),
        "shows_floor": _holds(samples["classes_2d"], FLOOR),
        "warned": pc.cast(pc.greater(samples["warnings"], 0), pa.int64()),
        "things_not_in_3d": pc.subtract(samples["things_2d"], samples["things_3d"]),
        "occupied_not_labelled": pc.subtract(samples["voxels_occupied"], samples["voxels_labelled"]),
        "splits_of_digest": _splits_of(samples["digest"], samples["splits"]),
        "splits_of_scene": _splits_of(samples["scene"], samples["splits"]),
        "views_of_camera": _views_of_camera(samples["scene"], pose, samples["intrinsics"]),
        "camera_height_m": pose[:, 2, 3],
        "pose_error": _rotation_error(pose[:, :3, :3]),
    }
    return pa.table({**facts, **derived})


def _entries(lists: pa.ChunkedArray) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Row and value of every entry of a column of lists."""
    whole = pa.concat_arrays(lists.chunks) if lists.num_chunks else pa.array([], lists.type)
    return whole.value_parent_indices().to_numpy(zero_copy_only=False), whole.flatten().to_numpy(zero_copy_only=False)


def _greatest(lists: pa.ChunkedArray) -> NDArray[np.int64]:
    greatest = np.zeros(len(lists), np.int64)
    np.maximum.at(greatest, *_entries(lists))
    return greatest


def _holds(lists: pa.ChunkedArray, value: int) -> NDArray[np.int64]:
    rows, values = _entries(lists)
    holds = np.zeros(len(lists), np.int64)
    holds[rows[values == value]] = 1
    return holds


def _splits_of(names: pa.ChunkedArray, splits: pa.ChunkedArray) -> NDArray[np.int64]:
    """For every row: how many splits hold any row of its name."""
    ids = np.unique(names.to_numpy().astype(str), return_inverse=True)[1]
    rows, split = _entries(splits)
    pairs = np.unique(np.stack([ids[rows], np.unique(split.astype(str), return_inverse=True)[1]]), axis=1)
    count: NDArray[np.int64] = np.bincount(pairs[0], minlength=len(ids) + 1)[ids]
    return count


def _views_of_camera(scenes: pa.ChunkedArray, poses: NDArray[np.float64], intrinsics: pa.ChunkedArray) -> NDArray[np.int64]:
    """For every row: how many rows of its scene have its pose and lens; 1 where there is no pose."""
    cameras = [
        (scene, pose.tobytes(), tuple(lens)) if np.isfinite(pose).all() else row
        for row, (scene, pose, lens) in enumerate(zip(scenes.to_pylist(), poses, intrinsics.to_pylist(), strict=True))
    ]
    count = Counter(cameras)
    return np.array([count[camera] for camera in cameras], np.int64)


def _poses(column: pa.ChunkedArray) -> NDArray[np.float64]:
    """(rows, 4, 4) float64, NaN where there is no pose."""
    poses = np.full((len(column), 16), np.nan)
    given = pc.equal(pc.list_value_length(column), 16).fill_null(False)
    poses[given.to_numpy()] = pc.list_flatten(column.filter(given)).to_numpy().reshape(-1, 16)
    return poses.reshape(-1, 4, 4)


def _rotation_error(rotation: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore"):  # no pose is NaN
        skew = np.abs(rotation @ rotation.transpose(0, 2, 1) - np.eye(3)).max(axis=(1, 2), initial=0)
        error: NDArray[np.float64] = np.maximum(skew, np.abs(np.linalg.det(rotation) - 1))
    return error
