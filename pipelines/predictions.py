"""Predictions on disk: a folder per image, named ``SCENE_IMAGE``, as ``inference`` writes it.

    panoptic_2d.npy    (h, w) int32, segment ids, 0 is void; nearest-resized to the image where it is smaller
    depth_2d.npy       (h, w) float32, metres
    geometry.npz       data: (X, Y, Z) float32, distance in voxels, image-aligned; 3.0 where nothing was predicted
    panoptic.npz       data: (X, Y, Z) int32, segment ids, 0 is none
    semantic.npz       data: (X, Y, Z) uint8, class of each voxel's segment, 0 is none
    segments.json      {"image_id", "stage", "intrinsic", "segments_2d": [{"id", "isthing", "category_id"}], "segments_3d": [...]}
    view.png           input, instances, classes and depth side by side, for the eye
    pointcloud_0.usd   what the pixels see, in the image's colours and with their classes
    mesh.ply, mesh_0.usd   the surfaces of the volume, coloured by class

By the names of its USD files, and with ``labels.json`` beside the folders, the whole is a log of 3D checkpoints, too: ``TimelapseParser``
reads it.
The order of ``segments_3d`` is the table order that the reference rule matches in. A 2D model leaves out volumes and meshes.
Scoring reads neither pictures and meshes, nor ``semantic.npz``, nor ``intrinsic``, the image's 4 x 4 matrix: predictions made elsewhere
may lack them.
"""

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from scenemill.schemas.errors import SourceError
from scenemill.schemas.labels import LABELS, Label
from scenemill.schemas.steps import reached
from scenemill.transforms import folders, npz
from scenemill.transforms.publish import remove, withdraw, write_whole

_LIMIT_BYTE: Final = 1 << 28
_JSON_LIMIT_BYTE: Final = 1 << 24
_LARGEST_ID: Final = (1 << 63) - 1
_IDS: Final = ("int32", "int64", "uint16", "uint8", "int16", "uint32")
_FLOATS: Final = ("float32", "float64", "float16")


@dataclass(frozen=True)
class Prediction:
    """What a model says of one image.

    Attributes:
        panoptic_2d: (h, w) integers, segment ids.
        classes_2d: segment id -> class id.
        depth: (h, w) float32, metres.
        panoptic_3d: (X, Y, Z) integers, segment ids; None without a 3D model.
        classes_3d: segment id -> class id, in table order.
        distance: (X, Y, Z) float32, voxels; None without a 3D model.
    """

    panoptic_2d: NDArray[Any]
    classes_2d: Mapping[int, int]
    depth: NDArray[np.float32]
    panoptic_3d: NDArray[Any] | None = None
    classes_3d: Mapping[int, int] | None = None
    distance: NDArray[np.float32] | None = None


def folder_of(key: str) -> str:
    """Name of the folder that holds the prediction for a sample.

    >>> folder_of("scene/0001")
    'scene_0001'
    """
    return key.replace("/", "_")


def read_prediction(root: Path, key: str, grid: int) -> Prediction:
    """Read one prediction; nothing in it is trusted.

    Args:
        root: folder of the predictions.
        key: of the sample.
        grid: voxels a side that its volumes must have.

    Raises:
        SourceError: a file is missing, damaged, or of another form.
    """
    folder = folder_of(key)
    table = _read_segments(folders.read_file(root, f"{folder}/segments.json", _JSON_LIMIT_BYTE))
    panoptic_2d = npz.read_npy(folders.read_file(root, f"{folder}/panoptic_2d.npy", _LIMIT_BYTE), None, _IDS)
    depth = _to_float32(npz.read_npy(folders.read_file(root, f"{folder}/depth_2d.npy", _LIMIT_BYTE), None, _FLOATS))
    if panoptic_2d.ndim != 2 or depth.shape != panoptic_2d.shape or not depth.size:
        raise SourceError("shape", f"panoptic_2d {panoptic_2d.shape}, depth_2d {depth.shape}", "two maps of one size, with pixels")
    classes_2d = _classes(table, "segments_2d")
    if "segments_3d" not in table and not (root / folder / "panoptic.npz").exists():
        return Prediction(panoptic_2d, classes_2d, depth)
    volume = (grid,) * 3
    panoptic_3d = npz.read_array(folders.read_file(root, f"{folder}/panoptic.npz", _LIMIT_BYTE), "data", volume, _IDS, _LIMIT_BYTE)
    distance = npz.read_array(folders.read_file(root, f"{folder}/geometry.npz", _LIMIT_BYTE), "data", volume, _FLOATS, _LIMIT_BYTE)
    return Prediction(panoptic_2d, classes_2d, depth, panoptic_3d, _classes(table, "segments_3d"), _to_float32(distance))


def _to_float32(values: NDArray[Any]) -> NDArray[np.float32]:
    """In the dtype that predictions have; infinite where a number is too large for it."""
    with np.errstate(over="ignore"):
        return values.astype(np.float32, copy=False)


def _read_segments(data: bytes) -> Mapping[str, Any]:
    try:
        table = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise SourceError("container", f"segments.json that cannot be read ({error})", "a JSON object") from error
    if not isinstance(table, dict):
        raise SourceError("container", f"segments.json holding {type(table).__name__}", "a JSON object")
    return table


def _classes(table: Mapping[str, Any], name: str) -> dict[int, int]:
    entries = table.get(name, [])
    known = {label.id for label in LABELS}
    classes: dict[int, int] = {}
    for entry in entries if isinstance(entries, list) else [None]:
        segment, label = (entry.get("id"), entry.get("category_id")) if isinstance(entry, dict) else (None, None)
        if type(segment) is not int or not 0 < segment <= _LARGEST_ID or segment in classes:
            raise SourceError(
                "container", f"{name} with the id {ascii(segment)[:40]}", "whole numbers above 0 of 64 bits, each once"
            )
        if type(label) is not int or label not in known:
            raise SourceError("label_known", f"{name} with the category_id {str(label)[:40]!r}", f"0 to {max(known)}")
        classes[segment] = label
    return classes


def write_prediction(
    root: Path,
    key: str,
    prediction: Prediction,
    *,
    intrinsic: NDArray[Any] | None = None,
    pictures: Mapping[str, bytes] | None = None,
    labels: Sequence[Label] = LABELS,
) -> None:
    """Write one prediction; the table comes last, so that a folder that has one is whole. One process writes a folder.

    Args:
        root: folder of the predictions.
        key: of the sample, or the name of the image.
        prediction: what to write.
        intrinsic: (4, 4) of the image, for the table.
        pictures: what is only to be looked at, pictures and meshes: the bytes of each file by name.
        labels: which classes are things.
    """
    folder = root / folder_of(key)
    files = {
        "panoptic_2d.npy": _npy(prediction.panoptic_2d.astype(np.int32)),
        "depth_2d.npy": _npy(prediction.depth.astype(np.float32)),
    }
    table: dict[str, Any] = {"image_id": folder.name, "stage": 1}
    if intrinsic is not None:
        table["intrinsic"] = intrinsic.tolist()
    table["segments_2d"] = _entries(prediction.classes_2d, labels)
    if prediction.panoptic_3d is not None and prediction.distance is not None:
        files["panoptic.npz"] = _npz(prediction.panoptic_3d.astype(np.int32))
        files["geometry.npz"] = _npz(prediction.distance.astype(np.float32))
        files["semantic.npz"] = _npz(class_volume(prediction))
        table.update(stage=2, segments_3d=_entries(prediction.classes_3d or {}, labels))
    files |= pictures or {}
    files["segments.json"] = json.dumps(table).encode()
    for left in folder.glob(".*"):
        remove(left)  # of a process that was killed
    if any(not (folder / name).is_file() or (folder / name).read_bytes() != data for name, data in files.items()):
        withdraw(folder / "segments.json")  # never beside maps of another prediction
        reached("prediction withdrawn")
    for name, data in files.items():
        write_whole(folder / name, data)
    reached("prediction written")


def _entries(classes: Mapping[int, int], labels: Sequence[Label]) -> list[dict[str, int]]:
    thing = {label.id: int(label.thing) for label in labels}
    return [{"id": int(segment), "isthing": thing[label], "category_id": int(label)} for segment, label in classes.items()]


def _npy(array: NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


def class_volume(prediction: Prediction) -> NDArray[np.uint8]:
    """(X, Y, Z) uint8: class of the segment of each voxel of a prediction that has volumes; 0 where there is none."""
    assert prediction.panoptic_3d is not None
    return classes_of(prediction.panoptic_3d, prediction.classes_3d or {})


def classes_of(segments: NDArray[Any], classes: Mapping[int, int]) -> NDArray[np.uint8]:
    """The class of each element's segment, uint8; 0 for a segment that has none.

    Args:
        segments: integers of any shape, segment ids.
        classes: segment id -> class id.

    >>> classes_of(np.array([[0, 7], [9, 7]]), {7: 3}).tolist()
    [[0, 3], [0, 3]]
    """
    result = np.zeros(segments.shape, np.uint8)
    named = segments > 0
    found, place = np.unique(segments[named], return_inverse=True)
    result[named] = np.array([classes.get(segment, 0) for segment in found.tolist()], np.uint8)[place]
    return result


def _npz(array: NDArray[Any]) -> bytes:
    """As ``np.savez_compressed``, by the quickest compression: volumes are mostly one value."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive, archive.open("data.npy", "w") as member:
        np.lib.format.write_array(member, np.ascontiguousarray(array), allow_pickle=False)
    return stream.getvalue()
