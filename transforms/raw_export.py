"""Stored samples as raw files again, in the layout of their source: what ``read_sample`` of that source reads back.

What a store does not keep does not come back: bytes of files (their arrays do, to the bit), Matterport3D's JPEG files (their pixels are
stored; encoded again they differ by a few levels), and of views the alpha of images, clipping ranges, placed assets and boxes.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import DTypeLike, NDArray
from PIL import Image

from scenemill.schemas.errors import ConfigError
from scenemill.schemas.fields import FRONT3D_FORM, VIEWS
from scenemill.schemas.sample import Sample, SampleKey
from scenemill.transforms import front3d, matterport3d, views
from scenemill.transforms.rawfiles import Planes, write_depth_exr, write_npz
from scenemill.transforms.view_cameras import ViewMetadata, exact_document

_JPEG_QUALITY: Final = 100
_CLIPPING_RANGE: Final = (0.01, 100_000.0)  # of views: no store keeps it, and no field depends on it


def write_raw_sample(root: Path, source: str, sample: Sample) -> tuple[str, ...]:
    """Write the raw files of a sample below a folder.

    Args:
        root: the raw folder.
        source: whose layout.
        sample: as ``Store.read`` returns it, with all its fields.

    Returns:
        Kinds of file whose arrays do not come back to the bit.

    Raises:
        ConfigError: a source of one's own: only its reader is known.
    """
    key = SampleKey.parse(sample.key)
    if source in FRONT3D_FORM:
        _write_front3d(_placed(root, front3d.paths(key)), sample)
        return ()
    if source == "matterport":
        _write_matterport(_placed(root, matterport3d.paths(key)), sample)
        return ("rgb",)
    if source == VIEWS:
        _write_view(_placed(root, views.paths(key)), sample)
        return ()
    raise ConfigError(f"source {source!r}: its form says how files are read, not how they are written; copy the raw folder itself")


def _placed(root: Path, paths: Mapping[str, str]) -> dict[str, Path]:
    placed = {kind: root / path for kind, path in paths.items()}
    for path in placed.values():
        path.parent.mkdir(parents=True, exist_ok=True)
    return placed


def _write_front3d(paths: Mapping[str, Path], sample: Sample) -> None:
    Image.fromarray(sample["rgb"]).save(paths["rgb"])
    write_depth_exr(paths["depth"], sample["depth"])
    _write_segmap(paths["segmap"], sample, ("semantic_2d", "instance_2d"))
    _write_volumes(paths, sample, {"data": _planes([sample["geometry"]], np.float64, rotated=True)}, rotated=True)
    if "world_from_camera" in sample:
        pose = {"camera2world": sample["world_from_camera"], **_campose(sample.facts["campose"])}
        write_npz(paths["campose"], pose, deflate=False)


def _campose(held: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    return {
        name: np.array(held[name], dtype).reshape(shape)
        for name, (shape, dtype) in front3d.CAMPOSE.items()
        if name != "camera2world"
    }


def _write_matterport(paths: Mapping[str, Path], sample: Sample) -> None:
    Image.fromarray(sample["rgb"]).save(paths["rgb"], quality=_JPEG_QUALITY, subsampling=0)
    units = np.rint(sample["depth"].astype(np.float64) * matterport3d.DEPTH_UNITS_PER_M).astype(np.uint16)
    Image.fromarray(units).save(paths["depth"])
    _write_segmap(paths["segmap"], sample, ("semantic_2d", "instance_2d", "room"))
    np.save(paths["intrinsics"], sample["intrinsics"])
    if "room_mask" in sample:
        Image.fromarray(sample["room_mask"]).save(paths["room_mask"])
    mask = _planes([sample["outside"]], np.bool_, rotated=False)
    geometry = {"data": _planes([sample["geometry"]], np.float32, rotated=False), "mask": mask}
    _write_volumes(paths, sample, geometry, rotated=False)


def _write_segmap(path: Path, sample: Sample, fields: tuple[str, ...]) -> None:
    write_npz(path, {"data": np.stack([sample[name] for name in fields], axis=-1).astype(np.uint32)})


def _write_volumes(paths: Mapping[str, Path], sample: Sample, geometry: Mapping[str, Planes], *, rotated: bool) -> None:
    write_npz(paths["geometry"], geometry)
    labels = _planes([sample["semantic_3d"], sample["instance_3d"]], np.int32, rotated=rotated)
    write_npz(paths["segmentation"], {"data": labels})
    write_npz(paths["weighting"], {"data": _planes([sample["weighting"]], np.int16, rotated=rotated)})


def _planes(volumes: list[NDArray[Any]], dtype: DTypeLike, *, rotated: bool) -> Planes:
    """Volumes as a file holds them, those of several stacked; a plane of one value is deflated once."""
    fill = volumes[0].flat[0]
    turned = [volume[::-1, ::-1] if rotated else volume for volume in volumes]
    shape = volumes[0].shape if len(volumes) == 1 else (len(volumes), *volumes[0].shape)

    def cut() -> Iterator[NDArray[Any] | None]:
        for volume in turned:
            for plane in volume:
                yield plane.astype(dtype) if (plane != fill).any() else None

    return Planes(shape, np.dtype(dtype), fill.item(), cut())


def _metadata(sample: Sample) -> str:
    image = sample["rgb"].shape[:2]
    camera = sample["camera_transform"], sample["camera_projection"]
    return json.dumps(exact_document(ViewMetadata(*camera, image, _CLIPPING_RANGE, (), {})), indent=1) + "\n"


def _write_view(paths: Mapping[str, Path], sample: Sample) -> None:
    Image.fromarray(sample["rgb"]).save(paths["rgb"])
    paths["metadata"].write_text(_metadata(sample), encoding="utf-8")
    for name, kind in (("semantic", "semantic"), ("instance", "instance"), ("depth", "depth_linear")):
        if name in sample:
            np.save(paths[kind], sample[name])
    if "normals" in sample:
        Image.fromarray(sample["normals"]).save(paths["normals"])
