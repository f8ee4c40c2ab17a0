"""Fuzz targets: the files of raw folders. Arrays, images, split lists, cameras."""

import io
import json
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from scenemill.schemas.errors import ConfigError, SourceError
from scenemill.schemas.sample import SampleKey
from scenemill.transforms import folders, front3d, images, matterport3d, npz, views
from scenemill.transforms.sources import Source, list_samples, raw_files, read_bytes
from scenemill.transforms.view_cameras import read_metadata
from scenemill.transforms.view_sets import convert_camera_sets
from tests.faults.fuzz_target import BETWEEN, SECRET, FuzzTarget, part, parted, right

SHAPE: Final = (2, 3, 4)
SIZE: Final = (6, 8)
_VALUES: Final = np.arange(24, dtype=np.float64).reshape(SHAPE)
_NPY_WORDS: Final = (
    *(b"\x93NUMPY\x01\0", b"\x93NUMPY\x02\0", b"'descr': ", b"'fortran_order': ", b"'shape': ", b"True", b"False", b"(2, 3, 4)"),
    *(b"'<f8'", b"'<f4'", b"'|O'", b"'>f8'", b"'|u1'", b"'|b1'", b"'<i8'", b"(0, 999999999999999999, 999999999999999999)"),
    *(b"(1, 1, 1, 1, 1, 1, 1, 1)", b"()", b"(24,)", b"'<f2'", b"'?'", b"'<u4'", b"(-1, 4)"),
)
_ZIP_WORDS: Final = (b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07", b"data.npy", b"\xff\xff\xff\xff")
_JSON_WORDS: Final = (
    *(b'"', b"[", b"]", b"{", b"}", b",", b":", b"null", b"true", b"NaN", b"Infinity", b"-1", b"1e999", b"1" * 400, b"\\ud800"),
    *(b"\\u0000", b"..", b"../", b"/etc/passwd", b"[" * 60, b"\xc3\xa9", b"\xef\xbb\xbf", b"%2e%2e", b"\xd9\xa1", b"link/"),
)


def npy(array: NDArray[Any]) -> bytes:
    """An npy file."""
    target = io.BytesIO()
    np.save(target, array, allow_pickle=False)
    return target.getvalue()


def framed(data: bytes) -> bytes:
    """An npy file: of a header and a body that are written as two files, or the bytes as they are."""
    if BETWEEN not in data:
        return data
    header, body = part(data, 2)
    return b"\x93NUMPY\x01\0" + len(header[:65000]).to_bytes(2, "little") + header[:65000] + body


def unframed(data: bytes) -> bytes:
    """The same for the other way: ``framed`` gives the file back, whatever the length of its header has become."""
    start = 10 + int.from_bytes(data[8:10], "little")
    return parted((data[10:start], data[start:]))


def archive(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip archive."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", method) as opened:
        for name, body in members.items():
            opened.writestr(name, body)
    return target.getvalue()


def picture(form: str, mode: str = "RGB", size: tuple[int, int] = SIZE) -> bytes:
    """A small image."""
    target = io.BytesIO()
    values = np.arange(size[0] * size[1] * 4, dtype=np.uint8).reshape(*size, 4)
    Image.fromarray(values, "RGBA").convert(mode).save(target, form)
    return target.getvalue()


def npz_file(folder: Path) -> FuzzTarget:
    """Whole archives."""

    def read(data: bytes) -> None:
        names = npz.member_names(data)
        right(all(isinstance(name, str) for name in names), "names that are no text")
        found = npz.read_array(data, "data", SHAPE, ("float64",))
        right(found.shape == SHAPE and found.dtype == np.float64, f"{found.shape} {found.dtype}")
        right(npz.probe_shape(data, "data") == SHAPE, "another shape by probe_shape")
        target = np.empty(SHAPE, np.float32)
        npz.read_volumes(data, "data", [target], ("float64",), rotated=True)
        right(target[::-1, ::-1].tobytes() == found.astype(np.float32).tobytes(), "two readers differ")

    seeds = tuple(
        archive({"data.npy": npy(np.array(_VALUES, order=order)), **more}, method)  # type: ignore[call-overload]
        for order in "CF"
        for method in (0, 8)
        for more in ({}, {"more.npy": npy(_VALUES[0])})
    )
    return FuzzTarget("npz", seeds, read, words=_NPY_WORDS + _ZIP_WORDS, longest_byte=2048)


def npz_member(folder: Path) -> FuzzTarget:
    """What lies in an archive: right sums and sizes around any bytes."""

    def read(data: bytes) -> None:
        whole = archive({"data.npy": framed(data)}, zipfile.ZIP_STORED)
        volume = np.empty(SHAPE, np.uint16)
        npz.read_volumes(whole, "data", [volume], front3d.LABEL_DTYPES, rotated=False)
        found = npz.read_array(whole, "data", None, front3d.LABEL_DTYPES)
        right(found.shape == SHAPE and (found == volume).all(), "two readers differ")

    seeds = tuple(npy(np.array(_VALUES.astype(kind), order=order)) for kind in front3d.LABEL_DTYPES for order in "CF")  # type: ignore[call-overload]
    seeds += tuple(map(unframed, seeds))
    return FuzzTarget("npz_member", seeds, read, words=_NPY_WORDS, longest_byte=512)


def npy_file(folder: Path) -> FuzzTarget:
    """Arrays of any shape, and the maps of views."""
    kinds = ("bool", "uint8", "int16", "int64", "float16", "float32", "float64")
    by_kind = {file.kind: file for file in views.FILES}
    matterport = {file.kind: file for file in matterport3d.FILES}

    def read(data: bytes) -> None:
        data = framed(data)
        found = npz.read_npy(data, None, kinds)
        right(found.dtype.name in kinds and found.nbytes <= len(data), f"{found.dtype} of {found.nbytes} bytes")
        maps: dict[str, NDArray[Any]] = {"semantic": np.zeros(SIZE, np.uint16), "depth": np.zeros(SIZE, np.float32)}
        if found.shape == (4, 4) and found.dtype.itemsize > 2:
            matterport["intrinsics"].decode(data, {"intrinsics": np.zeros((4, 4))}, {})
            return
        by_kind["semantic" if found.dtype.kind in "biu" else "depth_linear"].decode(data, maps, {})

    seeds: tuple[bytes, ...] = (
        npy(np.ones(SIZE, np.uint8)),
        npy(np.ones((*SIZE, 1), np.float32)),
        npy(np.full(SIZE, np.inf, np.float16)),
    )
    seeds = (*seeds, npy(np.eye(4)), npy(np.array(3.0)), npy(np.zeros((0, 5), bool)))
    return FuzzTarget("npy", (*seeds, *map(unframed, seeds)), read, words=_NPY_WORDS, longest_byte=512)


def exr_file(folder: Path) -> FuzzTarget:
    """Depth images."""
    import OpenEXR

    path, depth = folder / "depth.exr", np.linspace(0, 4, SIZE[0] * SIZE[1], dtype=np.float32).reshape(SIZE)
    seeds = []
    for compression in (OpenEXR.ZIP_COMPRESSION, OpenEXR.NO_COMPRESSION, OpenEXR.PIZ_COMPRESSION, OpenEXR.RLE_COMPRESSION):
        OpenEXR.File({"compression": compression, "type": OpenEXR.scanlineimage}, {"Z": depth}).write(str(path))
        seeds.append(path.read_bytes())

    def read(data: bytes) -> None:
        found = images.read_exr_depth(data, SIZE)
        right(found.shape == SIZE and found.dtype == np.float32, f"{found.shape} {found.dtype}")

    words = (b"channels\0chlist\0", b"compression\0compression\0", b"dataWindow\0box2i\0", b"lineOrder\0lineOrder\0")
    more = (
        b"displayWindow\0box2i\0",
        b"tiles\0tiledesc\0",
        b"type\0string\0",
        b"Z\0\2\0\0\0",
        b"preview\0preview\0",
        b"\xff\xff\xff\x7f",
    )
    return FuzzTarget("exr", tuple(seeds), read, words=words + more, longest_byte=2048)


def png_file(folder: Path) -> FuzzTarget:
    """Colour images and label maps."""
    modes = {"RGB": "uint8", "RGBA": "uint8", "L": "uint8", "1": "uint8", "I;16": "uint16", "I": "int32"}

    def read(data: bytes) -> None:
        _probe(data)
        found = images.read_png(data, SIZE, modes)
        right(found.shape[:2] == SIZE and found.ndim in (2, 3), str(found.shape))
        right(found.dtype.name in modes.values(), str(found.dtype))

    seeds = tuple(picture("PNG", mode) for mode in ("RGB", "RGBA", "L", "1", "P", "LA"))
    words = (b"IHDR", b"IDAT", b"IEND", b"PLTE", b"tRNS", b"acTL", b"fcTL", b"fdAT", b"zTXt", b"iCCP", b"eXIf", b"iTXt")
    return FuzzTarget("png", seeds, lambda data: read(_resealed(data)), words=words, longest_byte=1024)


def _resealed(data: bytes) -> bytes:
    """A PNG file with right checksums, so that damage gets further than these; the last byte says whether."""
    if not data or data[-1] & 1:
        return data
    pieces, place = [data[:8]], 8
    while place + 8 <= len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        body = data[place + 4 : place + 8 + length]
        pieces.append(data[place : place + 4] + body + struct.pack(">I", zlib.crc32(body)))
        place += 12 + length
    return b"".join(pieces)


def _probe(data: bytes) -> None:
    try:
        height, width = images.probe_size(data)
    except SourceError:
        return
    right(height > 0 and width > 0, f"{height} x {width}")


def jpeg_file(folder: Path) -> FuzzTarget:
    """Colour images without checksums."""

    def read(data: bytes) -> None:
        _probe(data)
        found = images.read_jpeg(data, SIZE)
        right(found.shape == (*SIZE, 3) and found.dtype == np.uint8, f"{found.shape} {found.dtype}")

    words: tuple[bytes, ...] = (
        b"\xff\xd8\xff\xe0",
        b"\xff\xc0",
        b"\xff\xc2",
        b"\xff\xc4",
        b"\xff\xda",
        b"\xff\xdb",
        b"\xff\xdd",
        b"\xff\xd9",
        b"JFIF\0",
    )
    words += (b"Exif\0\0", b"ICC_PROFILE\0", b"Adobe\0", b"MM\0*", b"II*\0", b"\xff\xe1", b"\xff\xe2", b"\xff\xee", b"MPF\0")
    return FuzzTarget(
        "jpeg", (picture("JPEG"), picture("JPEG", "L"), picture("JPEG", "CMYK")), read, words=words, longest_byte=2048
    )


def _world(folder: Path) -> Path:
    """A raw folder with one file, a link that leads out of it, and a secret beside it."""
    root = folder / "raw" / "root"
    (root / "data" / "scene").mkdir(parents=True)
    (root / "data" / "scene" / "rgb_0001.png").write_bytes(b"inside")
    (root / "data" / "link").symlink_to(folder / "raw")
    (folder / "raw" / "secret.png").write_bytes(SECRET)
    return root


def _read_list(source: Source, path: Path, data: bytes) -> None:
    path.write_bytes(data)
    listed, findings = list_samples("front3d", source.root, [f"train={path}"])
    right(len({str(one.key) for one in listed}) == len(listed), "a sample twice")
    right(all(one.blocks for many in findings.values() for one in many if one.severity == "error"), "an error that does not block")
    for entry in folders.read_list(path):
        right((entry.key is None) == bool(entry.problem), f"{entry}")
        right(entry.key is None or SampleKey(entry.key.scene, entry.key.image) == entry.key, f"{entry.key}")
    for one in listed[:3]:
        for relative in raw_files(source, one).values():
            right(".." not in relative.split("/"), relative)
        try:
            found = read_bytes(source, one, source.files[0])
        except SourceError:
            continue
        right(found in (b"inside", None), "bytes from outside of the folder")


def _lists(suffix: str, seeds: tuple[bytes, ...], words: tuple[bytes, ...]) -> Callable[[Path], FuzzTarget]:
    def make(folder: Path) -> FuzzTarget:
        root = _world(folder)
        read = partial(_read_list, Source("front3d", root, 64, SIZE), root / f"train{suffix}")
        return FuzzTarget(f"list_{suffix[1:]}", seeds, read, (ConfigError,), words, 1024)

    return make


_RECORD: Final = {"scene_id": "scene", "image_id": "0001", "height": 6, "width": 8, "file_name": "data/scene/rgb_0001.png"}
_LISTED: Final = (
    json.dumps([_RECORD, {"scene_id": "scene", "image_id": "0002"}]).encode(),
    json.dumps([_RECORD | {"file_name": "data/link/secret.png"}, _RECORD | {"image_id": "0001.mapped"}]).encode(),
)
_RECORD_WORDS: Final = (
    b'"scene_id": "scene"',
    b'"image_id": "0001"',
    b'"file_name": ',
    b'"data/scene/rgb_0001.png"',
    b'"height": 6',
)
_LINES: Final = (b"scene/0001\nscene/0002.mapped\n", b"scene/0001\n\n  ../scene/0001 \n\xff/\xfe\nscene/0003")

list_json: Final = _lists(".json", _LISTED, _JSON_WORDS + _RECORD_WORDS)
list_txt: Final = _lists(
    ".txt", _LINES, (b"scene/", b"0001", b".mapped", b"../", b"\n", b"\r", b"\0", b"\xe2\x80\xae", b"\xed\xa0\x80")
)

_MATRIX: Final = np.eye(4).tolist()
_METADATA: Final = {
    "camera_properties": {
        "resolution": {"width": 8, "height": 6},
        "clipping_range": [0.1, 10.0],
        "horizontal_aperture": 20.955,
        "focal_length": 24.0,
        "tf_mat": _MATRIX,
    },
    "asset_transforms": [["clock", _MATRIX]],
    "bbox_2d_tight": {"a": [0, 1, 2, 3]},
}


def view_metadata(folder: Path) -> FuzzTarget:
    """The camera of a view."""
    words = tuple(f'"{name}": '.encode() for name in (*_METADATA["camera_properties"], *_METADATA))

    def read(data: bytes) -> None:
        found = read_metadata(data)
        right(found.transform.shape == (4, 3) and bool(np.isfinite(found.transform).all()), "transform")
        right(found.projection.shape == (3, 1), "projection")
        right(all(0 < side <= 1 << 15 for side in found.image), f"{found.image}")
        right(all(matrix.shape == (4, 4) for _, matrix in found.assets), "assets")
        arrays: dict[str, NDArray[Any]] = {"camera_transform": np.zeros((4, 3)), "camera_projection": np.zeros((3, 1))}
        facts: dict[str, Any] = {}
        next(file for file in views.FILES if file.kind == "metadata").decode(data, arrays, facts)
        right(len(facts["intrinsics"]) in (9, 16) and len(facts["world_from_camera"]) == 16, "facts")

    return FuzzTarget("metadata", (json.dumps(_METADATA).encode(),), read, words=_JSON_WORDS + words, longest_byte=2048)


def camera_set(folder: Path) -> FuzzTarget:
    """NeRF's cameras and the images that they name."""
    root, out = folder / "raw" / "set", folder / "out"
    root.mkdir(parents=True)
    (root / "r_0.png").write_bytes(picture("PNG", "RGBA", (2, 2)))
    (root / "r_1.jpg").write_bytes(picture("JPEG", "RGB", (2, 2)))
    (folder / "raw" / "secret.png").write_bytes(picture("PNG", "RGB", (3, 3)))
    path = root / "transforms.json"

    def read(data: bytes) -> None:
        shutil.rmtree(out, ignore_errors=True)
        path.write_bytes(data)
        count = convert_camera_sets([path], out)
        right(count == len(list(out.glob("*_rgb.png"))), "another number of views")
        sizes = {images.probe_size(file.read_bytes()) for file in out.glob("*_rgb.png")}
        right(sizes <= {(2, 2)}, f"images of {sizes}: from outside of the folder")

    frames = [{"file_path": name, "transform_matrix": _MATRIX} for name in ("./r_0", "r_1.jpg", "../secret")]
    seeds = tuple(json.dumps({"camera_angle_x": 0.7, "frames": one}).encode() for one in (frames[:2], frames[2:]))
    words = (b'"file_path": ', b'"transform_matrix": ', b'"camera_angle_x": ', b'"./r_0"', b'"r_1.jpg"', b"../secret.png")
    return FuzzTarget("camera_set", seeds, read, (SourceError, ConfigError), _JSON_WORDS + words, 2048, light=60)


def campose(folder: Path) -> FuzzTarget:
    """The poses of 3D-Front: an archive of eight small arrays, of which an input says which one it takes the place of."""
    given = {"camera2world": np.eye(4), "blender_matrix": np.eye(4), "blender_location": np.zeros(3), "fov_x": np.float64(1)}
    given |= {"blender_rotation_euler": np.zeros(3), "intrinsic": np.eye(3), "fov_y": np.float64(1), "room_id": np.int64(3)}
    whole = {name: npy(np.asarray(array)) for name, array in given.items()}
    decode = next(file for file in front3d.FILES if file.kind == "campose").decode

    def read(data: bytes) -> None:
        members = whole | {[*whole][data[0] % len(whole)]: framed(data[1:])} if data else {}
        arrays: dict[str, NDArray[Any]] = {"world_from_camera": np.zeros((4, 4))}
        facts: dict[str, Any] = {}
        decode(archive({f"{name}.npy": body for name, body in members.items()}, 0), arrays, facts)
        right(len(facts["campose"]["blender_matrix"]) == 16 and isinstance(facts["campose"]["room_id"], int), "facts")

    seeds = tuple(bytes([number]) + body for number, body in enumerate(whole.values()))
    seeds += tuple(one[:1] + unframed(one[1:]) for one in seeds)
    return FuzzTarget("campose", seeds, read, words=_NPY_WORDS, longest_byte=512)


def frustum(folder: Path) -> FuzzTarget:
    """The mask of what a camera sees."""

    def read(data: bytes) -> None:
        found = np.empty(SHAPE, np.bool_)
        npz.read_volumes(data, "mask", [found], ("bool",), rotated=True)
        right(set(np.unique(found.view("u1")).tolist()) <= {0, 1}, "neither true nor false")

    seeds = tuple(archive({"mask.npy": npy(np.ones(SHAPE, bool))}, method) for method in (0, 8))
    return FuzzTarget("frustum", seeds, read, words=_NPY_WORDS + _ZIP_WORDS, longest_byte=1024)


TARGETS: Final[dict[str, Callable[[Path], FuzzTarget]]] = {
    "npz": npz_file,
    "npz_member": npz_member,
    "npy": npy_file,
    "exr": exr_file,
    "png": png_file,
    "jpeg": jpeg_file,
    "list_json": list_json,
    "list_txt": list_txt,
    "metadata": view_metadata,
    "camera_set": camera_set,
    "campose": campose,
    "frustum": frustum,
}
