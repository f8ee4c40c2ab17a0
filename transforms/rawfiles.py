"""Writing the raw files of one view, fast and without a clock: the same view gives the same bytes.

A volume of 256 voxels a side is 134 MB of which a view fills a few percent. It never exists here as a whole: it is deflated plane
by plane, each plane byte-aligned and independent of the others (a full flush), and planes of one value are deflated once.
"""

import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from itertools import chain
from pathlib import Path
from struct import pack
from typing import Any, Final

import numpy as np
from numpy.typing import DTypeLike, NDArray
from PIL import Image
from zlib_ng import zlib_ng

from scenemill.schemas.labels import LABELS, WALL
from scenemill.transforms.geometry import FREE_SPACE, TRUNCATION_VOXELS, front3d_frustum
from scenemill.transforms.rendering import IMAGE_SIZE, Box, Camera, Columns

_DEFLATE_LEVEL: Final = 2  # a third of the bytes of level 1 on constant planes, at the same speed
_END_OF_STREAM: Final = b"\x03\x00"  # an empty last block
_DOS_DATE: Final = 0x21  # 1980-01-01, the earliest a zip archive can say
_OWNER_READS_AND_WRITES: Final = 0o600 << 16
_CAMPOSE_INTRINSIC: Final = ((277.12811989, 0.0, 160.0), (0.0, 311.76912635, 120.0), (0.0, 0.0, 1.0))
_CAMPOSE_FOV: Final = (1.0471975803375244, 0.7348438501358032)  # as released: wrong for this image size, like the intrinsic
_DEPTH_UNITS: Final = 4000  # of Matterport3D's depth images, per metre


@dataclass(frozen=True)
class View:
    """All that the files of one view say; fields over the frustum are (N, R), see ``Columns``.

    Attributes:
        boxes: the world.
        camera: where it is seen from.
        columns: the frustum.
        rgb: (H, W, 3) uint8.
        depth_m: (H, W) float32, metres along the camera's Z axis.
        hit: (H, W) uint8, the box a pixel sees.
        distance: (N, R) float32, voxels, unsigned, at most 12.
        nearest: (N, R) uint8, the box whose face is the nearest.
        hidden: (N, R) bool, True behind the visible depth.
    """

    boxes: Sequence[Box]
    camera: Camera
    columns: Columns
    rgb: NDArray[np.uint8]
    depth_m: NDArray[np.float32]
    hit: NDArray[np.uint8]
    distance: NDArray[np.float32]
    nearest: NDArray[np.uint8]
    hidden: NDArray[np.bool_]

    @property
    def semantic(self) -> NDArray[np.uint32]:
        """(boxes,) class of every box."""
        return np.array([box.semantic for box in self.boxes], np.uint32)

    @property
    def instance(self) -> NDArray[np.uint32]:
        """(boxes,) instance id of every box."""
        return np.array([box.instance for box in self.boxes], np.uint32)


@dataclass(frozen=True)
class Planes:
    """A volume in pieces along its first axes, in C order.

    Attributes:
        shape, dtype: of the whole volume.
        fill: value of a plane that is None.
        planes: all planes in file order; the last two axes of ``shape`` are a plane.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fill: float
    planes: Iterable[NDArray[Any] | None]


@dataclass(frozen=True)
class _Packed:
    """Bytes on their way into a zip archive."""

    pieces: list[bytes]
    size: int
    crc: int


def planes_of(field: NDArray[Any], fill: float, dtype: DTypeLike, columns: Columns, *, rotated: bool) -> Planes:
    """A field over the frustum as a volume of a file.

    Args:
        field: (N, R), see ``Columns``.
        fill: the value outside the columns.
        dtype: of the file.
        columns: the frustum.
        rotated: True turns the volume by 180 degrees about the optical axis, as 3D-Front stores it.

    Returns:
        (X, Y, Z) volume in file orientation.
    """
    shape = (columns.grid,) * 3
    return Planes(shape, np.dtype(dtype), fill, _cut_planes(field, fill, np.dtype(dtype), columns, rotated))


def _cut_planes(
    field: NDArray[Any], fill: float, dtype: np.dtype[Any], columns: Columns, rotated: bool
) -> Iterator[NDArray[Any] | None]:
    top, bottom = columns.first_row, columns.first_row + field.shape[1]
    plane = np.full((columns.grid, columns.grid), fill, dtype)
    for i in reversed(range(columns.grid)) if rotated else range(columns.grid):
        first, last = columns.start[i], columns.start[i + 1]
        block = field[first:last]
        if not (block != fill).any():
            yield None
            continue
        part = (slice(top, bottom), slice(columns.k[first], columns.k[last - 1] + 1))
        plane[part] = block.T
        yield plane[::-1] if rotated else plane
        plane[part] = fill  # one buffer serves all planes: fresh ones cost more than the deflating


def _stack_planes(volumes: Sequence[Planes]) -> Planes:
    """Volumes of one shape as one volume with a new first axis."""
    first = volumes[0]
    return Planes((len(volumes), *first.shape), first.dtype, first.fill, chain.from_iterable(volume.planes for volume in volumes))


def write_npz(path: Path, members: Mapping[str, NDArray[Any] | Planes], *, deflate: bool = True) -> None:
    """Write an npz file that ``np.load`` reads: a zip archive with one npy member per key, dated 1980.

    Args:
        path: the file.
        members: arrays in the order of the file.
        deflate: False stores the bytes as they are, as 3D-Front does with poses.
    """
    directory, offset = [], 0
    with path.open("wb") as file:
        for key, array in members.items():
            packed = _pack(_npy_pieces(array), deflate)
            name = f"{key}.npy".encode()
            stored = sum(map(len, packed.pieces))
            common = pack("<HHHHHIIIHH", 20, 0, 8 if deflate else 0, 0, _DOS_DATE, packed.crc, stored, packed.size, len(name), 0)
            file.write(b"PK\x03\x04" + common + name)
            file.writelines(packed.pieces)
            rest = pack("<HHHII", 0, 0, 0, _OWNER_READS_AND_WRITES, offset)
            directory.append(b"PK\x01\x02" + pack("<H", 0x314) + common + rest + name)
            offset = file.tell()
        file.writelines(directory)
        file.write(b"PK\x05\x06" + pack("<HHHHIIH", 0, 0, len(directory), len(directory), sum(map(len, directory)), offset, 0))


def _npy_pieces(array: NDArray[Any] | Planes) -> Iterator[_Packed | bytes]:
    """The npy file of an array, a piece at a time; constant planes come already deflated."""
    header = BytesIO()
    described = {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False, "shape": array.shape}
    np.lib.format.write_array_header_1_0(header, described)
    yield header.getvalue()
    if isinstance(array, Planes):
        for plane in array.planes:
            yield _constant_plane(array.shape[-2:], array.dtype.str, array.fill) if plane is None else plane.tobytes()
    else:
        yield array.tobytes()


def _pack(pieces: Iterator[_Packed | bytes], deflate: bool) -> _Packed:
    packed, size, crc = [], 0, 0
    for piece in pieces:
        if isinstance(piece, _Packed):
            packed.extend(piece.pieces)
            size, crc = size + piece.size, zlib_ng.crc32_combine(crc, piece.crc, piece.size)
        else:
            packed.append(_deflate(piece) if deflate else piece)
            size, crc = size + len(piece), zlib_ng.crc32(piece, crc)
    if deflate:
        packed.append(_END_OF_STREAM)
    return _Packed(packed, size, crc)


def _deflate(data: bytes) -> bytes:
    compressor = zlib_ng.compressobj(_DEFLATE_LEVEL, zlib_ng.DEFLATED, -zlib.MAX_WBITS)
    return compressor.compress(data) + compressor.flush(zlib_ng.Z_FULL_FLUSH)


@lru_cache(maxsize=64)
def _constant_plane(shape: tuple[int, ...], dtype: str, fill: float) -> _Packed:
    data = np.full(shape, fill, dtype).tobytes()
    return _Packed([_deflate(data)], len(data), zlib_ng.crc32(data))


def write_front3d_mask(root: Path, grid: int) -> None:
    """Write meta/frustum_mask.npz, turned like the volumes."""
    write_mask(root, front3d_frustum(grid))


def write_mask(root: Path, frustum: NDArray[np.bool_]) -> None:
    """Write an image-aligned (X, Y, Z) frustum as meta/frustum_mask.npz, turned like the volumes."""
    (root / "meta").mkdir()
    write_npz(root / "meta" / "frustum_mask.npz", {"mask": frustum[::-1, ::-1]})


def write_front3d_view(folder: Path, image: str, view: View, room: int) -> None:
    """Write the seven files of one 3D-Front view.

    Args:
        folder: of the scene.
        image: image id, four digits.
        view: what they say.
        room: room id, for the pose file.
    """
    things = np.where(view.semantic < WALL, view.instance, 0)
    surface, band = view.distance < 1.0, view.distance < 3.0
    weight = (1 + view.hidden.astype(np.uint8)) * np.where(band, np.uint8(5), np.uint8(1))
    labels = (_label_planes(view, values, surface, rotated=True) for values in (view.semantic, things))
    geometry = planes_of(view.distance, TRUNCATION_VOXELS, np.float64, view.columns, rotated=True)
    Image.fromarray(view.rgb).save(folder / f"rgb_{image}.png", compress_level=1)
    write_depth_exr(folder / f"depth_{image}.exr", view.depth_m)
    write_npz(folder / f"segmap_{image}.mapped.npz", {"data": np.stack([view.semantic, view.instance], axis=-1)[view.hit]})
    write_npz(folder / f"geometry_{image}.npz", {"data": geometry})
    write_npz(folder / f"segmentation_{image}.mapped.npz", {"data": _stack_planes(list(labels))})
    write_npz(folder / f"weighting_{image}.npz", {"data": planes_of(weight, 1, np.int16, view.columns, rotated=True)})
    write_npz(folder / f"campose_{image}.npz", _describe_pose(view.camera, room), deflate=False)


def _label_planes(view: View, values: NDArray[np.uint32], where: NDArray[np.bool_], *, rotated: bool) -> Planes:
    labels = values.astype(np.uint16)[view.nearest] * where
    return planes_of(labels, 0, np.int32, view.columns, rotated=rotated)


def write_depth_exr(path: Path, depth_m: NDArray[np.float32]) -> None:
    """Write (H, W) float32 as the single channel Z of an OpenEXR file."""
    import OpenEXR  # 60 ms of import that Matterport3D does not need

    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    OpenEXR.File(header, {"Z": depth_m}).write(str(path))


def _describe_pose(camera: Camera, room: int) -> dict[str, NDArray[Any]]:
    """The arrays of a campose file; Blender's camera has Y up and looks along -Z."""
    forward = np.array([np.cos(camera.heading), np.sin(camera.heading), 0.0])
    pose = np.eye(4)
    pose[:3] = np.stack([(forward[1], -forward[0], 0.0), (0.0, 0.0, -1.0), forward, camera.position], axis=1)
    return {
        "camera2world": pose,
        "intrinsic": np.array(_CAMPOSE_INTRINSIC),
        "fov_x": np.array(_CAMPOSE_FOV[0]),
        "fov_y": np.array(_CAMPOSE_FOV[1]),
        "room_id": np.array(room, np.int64),
        "blender_matrix": pose @ np.diag([1.0, -1.0, -1.0, 1.0]),
        "blender_location": np.array(camera.position),
        "blender_rotation_euler": np.array([np.pi / 2, 0.0, camera.heading - np.pi / 2]),
    }


def write_matterport_view(
    root: Path, scene: str, image: str, view: View, free: NDArray[np.bool_], invalid: NDArray[np.bool_]
) -> None:
    """Write the eight files of one Matterport3D view.

    Args:
        root: folder of the dataset.
        scene: scene id.
        image: image id, ``<name>_<angle>_<rot>``.
        view: what they say.
        free: (N, R) bool, True in air: there distances are above zero, elsewhere below.
        invalid: (H, W) bool, True where the depth image has no value.
    """
    name, angle, rot = image.split("_")
    folder, view_id, columns = root / "data" / scene, f"{angle}_{rot}", view.columns
    distance = np.minimum(view.distance, FREE_SPACE)
    signed = np.where(free, distance, -distance)
    signed[~columns.inside] = -TRUNCATION_VOXELS
    surface = (np.abs(signed) < 3.0) & columns.inside
    weight = (1 + view.hidden.astype(np.uint8)) * np.where((signed > -1.0) & (signed < 3.0), np.uint8(25), np.uint8(1))
    room = np.array([box.room for box in view.boxes], np.uint32)
    geometry = planes_of(signed, -TRUNCATION_VOXELS, np.float32, columns, rotated=False)
    mask = planes_of(~columns.inside, True, np.bool_, columns, rotated=False)
    segmap = np.stack([view.semantic, view.instance, room], axis=-1)[view.hit]
    labels = [_label_planes(view, values, surface, rotated=False) for values in (view.semantic, view.instance)]
    Image.fromarray(view.rgb).save(folder / f"{name}_i{view_id}.jpg", quality=92)
    np.save(folder / f"{name}_intrinsics_{angle}.npy", np.array(view.camera.intrinsics))
    write_npz(folder / f"{name}_segmap{view_id}.mapped.npz", {"data": segmap})
    write_npz(folder / f"{name}_geometry{view_id}.npz", {"data": geometry, "mask": mask})
    write_npz(folder / f"{name}_segmentation{view_id}.mapped.npz", {"data": _stack_planes(labels)})
    write_npz(folder / f"{name}_weighting{view_id}.npz", {"data": planes_of(weight, 1, np.int16, columns, rotated=False)})
    depth = np.where(invalid, 0, np.rint(view.depth_m * _DEPTH_UNITS)).astype(np.uint16)
    Image.fromarray(depth).save(root / "depth_gen" / scene / f"{name}_d{view_id}.png", compress_level=1)
    in_room = np.where(room[view.hit] == 0, np.uint8(255), np.uint8(0))
    Image.fromarray(in_room).save(root / "room_mask" / scene / f"{name}_rm{view_id}.png", compress_level=1)


def write_lists(
    root: Path,
    splits: Mapping[str, Sequence[tuple[str, str]]],
    image: tuple[int, int] = (IMAGE_SIZE[1], IMAGE_SIZE[0]),
) -> None:
    """Write train.json and its like, one per split, and label_map.json, in the form of the published files.

    Args:
        root: folder of the dataset.
        splits: split name to (scene id, image id) pairs.
        image: (height, width) of all images, pixels.
    """
    height, width = image
    for split, pairs in splits.items():
        records = [{"scene_id": scene, "image_id": image, "height": height, "width": width} for scene, image in pairs]
        (root / f"{split}.json").write_text(json.dumps(records), encoding="utf-8")
    labels = [
        {"color": list(label.color), "isthing": int(label.thing), "id": label.id, "trainId": label.id, "name": label.name}
        for label in LABELS[1:]
    ]
    (root / "label_map.json").write_text(json.dumps(labels, indent=1), encoding="utf-8")
