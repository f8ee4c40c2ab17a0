"""Readers and damaged files: the right values or a SourceError, never anything else, whatever lies in the folder."""

import io
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import tracemalloc
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from scenemill.pipelines.experiments.specs import read_spec
from scenemill.pipelines.predictions import Prediction, read_prediction, write_prediction
from scenemill.schemas.errors import ConfigError, SourceError
from scenemill.schemas.tables import FINDINGS, Finding, table_of
from scenemill.transforms import folders, images, npz
from scenemill.transforms.objects import place_of
from scenemill.transforms.parts import finding_rows
from scenemill.transforms.sources import Listed, Source, find_unlisted, list_samples, open_source, read_sample

FUZZER: Final = Path(__file__).with_name("fuzzer.py")
PEAK_LIMIT_BYTE: Final = 1 << 30
BOMB_LIMIT_BYTE: Final = 1 << 26
SIZE: Final = (240, 320)
SMALL: Final = np.arange(24, dtype=np.float64).reshape(2, 3, 4)


def fuzz(kind: str, count: int, seed: int, *roots: Path) -> dict[str, Any]:
    """Run the fuzzer in a process of its own, with decoders that may crash."""
    command = [sys.executable, "-X", "faulthandler", str(FUZZER), kind, str(count), str(seed), *map(str, roots)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, timeout=580)
    assert done.returncode == 0, done.stderr[-3000:]
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@pytest.fixture
def worlds(front3d_world: Path, matterport_world: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Copies that a test may change."""
    return Path(shutil.copytree(front3d_world, tmp_path / "front3d")), Path(
        shutil.copytree(matterport_world, tmp_path / "matterport")
    )


FUZZES: Final = [
    pytest.param("files", 8_000, 0, id="files"),
    pytest.param("lists", 4_000, 0, id="lists"),
    *(pytest.param("files", 40_000, seed, id=f"files-{seed}", marks=pytest.mark.full) for seed in range(1, 6)),
    pytest.param("lists", 50_000, 1, id="lists-1", marks=pytest.mark.full),
]


@pytest.mark.parametrize(("kind", "count", "seed"), FUZZES)
def test_damaged_raw_files_are_refused_or_read_right(
    kind: str, count: int, seed: int, worlds: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    report = fuzz(kind, count, seed, *worlds)
    with capsys.disabled():
        print(f"\nfuzz {kind}, seed {seed}: {report['executions']} executions, {report['outcomes']}")
    assert report["wrong"] == []
    assert report["executions"] == count and report["outcomes"]["refused"] > 0 and report["outcomes"]["equal"] > 0
    assert report["peak_byte"] < PEAK_LIMIT_BYTE


@pytest.mark.full
@pytest.mark.parametrize(("count", "seed"), [(1_000, 0), pytest.param(20_000, 1, marks=pytest.mark.full)])
def test_damaged_store_documents_are_refused_or_read_right(
    count: int, seed: int, small_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = fuzz("store", count, seed, Path(shutil.copytree(small_store, tmp_path / "store")))
    with capsys.disabled():
        print(f"\nfuzz store, seed {seed}: {report['executions']} executions, {report['outcomes']}")
    assert report["wrong"] == []


# npz


def npy(array: NDArray[Any]) -> bytes:
    target = io.BytesIO()
    np.save(target, array)
    return target.getvalue()


def npy_of(header: str, body: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(header)) + header.encode() + body


def archive(members: dict[str, bytes] | list[tuple[str, bytes]], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    target = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(target, "w", method) as opened:
        warnings.simplefilter("ignore", UserWarning)  # of a name that is there twice
        for name, body in members.items() if isinstance(members, dict) else members:
            opened.writestr(name, body)
    return target.getvalue()


def read_small(data: bytes) -> NDArray[Any]:
    return npz.read_array(data, "data", SMALL.shape, ("float64",))


def volume_of(data: bytes) -> NDArray[Any]:
    target = np.empty(SMALL.shape, np.float32)
    npz.read_volumes(data, "data", [target], ("float64",), rotated=False)
    return target


def patched(data: bytes, before: bytes, after: bytes) -> bytes:
    assert before in data
    return data.replace(before, after)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("order", ["C", "F"])
def test_order_and_compression_change_nothing(method: int, order: str) -> None:
    data = archive({"data.npy": npy(np.array(SMALL, order=order))}, method)  # type: ignore[call-overload]
    np.testing.assert_array_equal(read_small(data), SMALL)
    np.testing.assert_array_equal(volume_of(data), SMALL)


def test_archive_written_as_a_stream_is_read() -> None:
    class Stream(io.BytesIO):
        def seekable(self) -> bool:
            return False

        def seek(self, *args: int) -> int:
            raise io.UnsupportedOperation

        def tell(self) -> int:
            raise io.UnsupportedOperation

    stream = Stream()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("data.npy", npy(SMALL))
    np.testing.assert_array_equal(read_small(stream.getvalue()), SMALL)


def test_zip64_archive_is_read() -> None:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as opened, opened.open("data.npy", "w", force_zip64=True) as member:
        member.write(npy(SMALL))
    np.testing.assert_array_equal(read_small(target.getvalue()), SMALL)


class Bait:
    """Writes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (Path.write_text, (self.path, "unpickled"))


@pytest.mark.parametrize("descr", ["|O", "O", "|O8", "<O8"])
def test_nothing_is_unpickled(descr: str, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': (1,), }}\n"
    member = npy_of(header, pickle.dumps(Bait(marker)))
    for read in (read_small, volume_of):
        with pytest.raises(SourceError):
            read(archive({"data.npy": member}))
    with pytest.raises(SourceError):
        npz.read_npy(member, (1,), ("float64",))
    with pytest.raises(SourceError):
        read_small(pickle.dumps(Bait(marker)))
    assert not marker.exists()


HEADERS: Final = (
    "{'descr': '<f8', 'fortran_order': False, 'shape': (-2, -3, 4), }",
    "{'descr': '<f8', 'fortran_order': False, 'shape': (2, 3, 1000000000000000000), }",
    f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({'9' * 400},), }}",
    "{'descr': '<f8', 'fortran_order': False, 'shape': (2.0, 3, 4), }",
    "{'descr': '<f8', 'fortran_order': False, 'shape': (True, 3, 4), }",
    "{'descr': '<f8', 'fortran_order': False, 'shape': None, }",
    "{'descr': '<f8', 'fortran_order': False}",
    "{'descr': '<f8', 'fortran_order': 2, 'shape': (2, 3, 4), }",
    "{'descr': '>f8', 'fortran_order': False, 'shape': (2, 3, 4), }",
    "{'descr': '<c16', 'fortran_order': False, 'shape': (2, 3, 4), }",
    "{'descr': '<M8[s]', 'fortran_order': False, 'shape': (2, 3, 4), }",
    "{'descr': '<U2', 'fortran_order': False, 'shape': (2, 3, 4), }",
    "{'descr': '|V8', 'fortran_order': False, 'shape': (2, 3, 4), }",
    "{'descr': [('a', '<f8')], 'fortran_order': False, 'shape': (2, 3, 4), }",
    "{'descr': ('<f8', (2,)), 'fortran_order': False, 'shape': (2, 3, 4), }",
    "{'descr': 'no such type', 'fortran_order': False, 'shape': (2, 3, 4), }",
    "{'descr': '<f99', 'fortran_order': False, 'shape': (2, 3, 4), }",
    "{" * 3000,
    "(" * 3000,
    "-" * 3000,
    "'''",
    "  \n \t  x\n   y",
    "__import__('os').abort()",
    "",
    "\0" * 118,
    "é" * 50,
    "x" * 60000,
)


@pytest.mark.parametrize("header", HEADERS, ids=range(len(HEADERS)))
def test_strange_npy_header_is_refused(header: str) -> None:
    data = archive({"data.npy": npy_of(header + "\n", SMALL.tobytes())})
    for read in (read_small, volume_of):
        with pytest.raises(SourceError):
            read(data)


ENDLESS: Final = ("(0, 999999999999999999, 999999999999999999)", f"({'1, ' * 70})")


@pytest.mark.parametrize("shape", ENDLESS, ids=["no array of no bytes", "seventy axes"])
def test_shape_that_numpy_cannot_make_is_refused(shape: str) -> None:
    body = b"" if "0" in shape else b"x"
    member = npy_of(f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}\n", body)
    with pytest.raises(SourceError):
        npz.read_npy(member, None, ("uint8",))
    with pytest.raises(SourceError):
        npz.read_array(archive({"data.npy": member}), "data", None, ("uint8",))


@pytest.mark.parametrize("category", [[], {}, True, 1.0, None, "1"], ids=repr)
def test_segment_of_what_is_no_class_is_refused(category: object, tmp_path: Path) -> None:
    prediction = Prediction(np.ones((2, 2), np.int32), {1: 1}, np.ones((2, 2), np.float32))
    write_prediction(tmp_path, "scene/0001", prediction)
    table = tmp_path / "scene_0001" / "segments.json"
    table.write_text(json.dumps({"segments_2d": [{"id": 1, "category_id": category}]}))
    with pytest.raises(SourceError):
        read_prediction(tmp_path, "scene/0001", 64)


@pytest.mark.parametrize("version", [b"\x00\x00", b"\x03\x00", b"\x01\x01", b"\xff\xff"])
def test_unknown_npy_version_is_refused(version: bytes) -> None:
    whole = npy(SMALL)
    with pytest.raises(SourceError):
        read_small(archive({"data.npy": whole[:6] + version + whole[8:]}))


def strange_archives() -> Iterator[tuple[str, bytes]]:
    member = npy(SMALL)
    whole = archive({"data.npy": member})
    stored = archive({"data.npy": member}, zipfile.ZIP_STORED)
    entry, crc = whole.rindex(b"PK\x01\x02"), struct.pack("<I", zlib.crc32(member))
    yield "empty", b""
    yield "no archive", b"not a zip file at all"
    yield "no member", archive({})
    yield "other member", archive({"other.npy": member})
    yield "member twice", archive([("data.npy", member), ("data.npy", member)])
    yield "archive in the archive", archive({"data.npy": whole})
    yield "pickled member", archive({"data.npy": member, "data.pkl": b"x"})
    yield "leading path", archive({"../data.npy": member})
    yield "bzip2", archive({"data.npy": member}, zipfile.ZIP_BZIP2)
    yield "lzma", archive({"data.npy": member}, zipfile.ZIP_LZMA)
    yield "encrypted", whole[: entry + 8] + b"\x01\0" + whole[entry + 10 :]
    yield "wrong checksum, deflated", patched(whole, crc, b"\1\2\3\4")
    yield "wrong checksum, stored", patched(stored, crc, b"\1\2\3\4")
    yield "member too long for its header", archive({"data.npy": member + b"\0" * 8})
    yield "member too short for its header", archive({"data.npy": member[:-8]})
    yield "stored under the name of deflated", patched(whole, b"\x08\0", b"\0\0")
    yield "many members", archive({f"{number}.npy": b"" for number in range(1000)} | {"data.npy": member})
    for offset, name in ((20, "compressed size"), (24, "size"), (42, "offset")):
        for number in (0, 1, 0x7FFFFFFF, 0xFFFFFFFF):
            yield f"{name} {number:#x}", whole[: entry + offset] + struct.pack("<I", number) + whole[entry + offset + 4 :]


STRANGE: Final = [pytest.param(data, id=name) for name, data in strange_archives() if name != "offset 0x0"]


@pytest.mark.parametrize("data", STRANGE)
def test_strange_archive_is_refused(data: bytes) -> None:
    for read in (read_small, volume_of):
        with pytest.raises(SourceError):
            read(data)


@contextmanager
def little_memory() -> Iterator[None]:
    """Holds the body to the memory that its input and output may need."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < BOMB_LIMIT_BYTE
    finally:
        tracemalloc.stop()


def bomb(shape: tuple[int, ...], real_byte: int) -> bytes:
    """An archive of zeros whose header promises ``shape`` and whose directory promises as much."""
    header = npy_of(f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}\n")
    data = archive({"data.npy": header + bytes(real_byte)})
    promised = struct.pack("<I", min(0xFFFFFFFE, len(header) + 8 * int(np.prod(shape, dtype=object))))
    entry = data.rindex(b"PK\x01\x02")
    return data[: entry + 24] + promised + data[entry + 28 :]


@pytest.mark.parametrize(
    ("shape", "real_byte"),
    [((1250, 1000, 1000), 1 << 20), ((2, 3, 4), 1 << 27), ((1 << 40, 3, 4), 1 << 10), ((16, 1024, 1024), 1 << 27)],
    ids=["claims 10 GB", "holds more than it claims", "claims 100 TB", "holds 128 MB"],
)
def test_zip_bomb_is_refused_in_little_memory(shape: tuple[int, ...], real_byte: int) -> None:
    data = bomb(shape, real_byte)
    with little_memory():
        for read in (read_small, volume_of):
            with pytest.raises(SourceError):
                read(data)
        with pytest.raises(SourceError):
            npz.read_array(data, "data", None, ("float64",))


def test_directory_of_a_million_members_is_refused_in_little_memory() -> None:
    entry = b"PK\x01\x02" + struct.pack("<HHHHHHIIIHHHHHII", 20, 20, 0, 0, 0, 33, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0) + b"a.npy"
    count = 1_000_000
    data = entry * count + b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, count & 0xFFFF, count & 0xFFFF, len(entry) * count, 0, 0)
    with little_memory(), pytest.raises(SourceError):
        read_small(data)


# images


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, depth: int, colour: int, pixels: bytes = b"", more: bytes = b"") -> bytes:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    body = png_chunk(b"IDAT", zlib.compress(pixels))
    return b"\x89PNG\r\n\x1a\n" + header + more + body + png_chunk(b"IEND", b"")


RGB_LINES: Final = (b"\0" + bytes(960)) * 240
STRANGE_PNGS: Final = {
    "empty": b"",
    "huge": png(0x7FFFFFFF, 0x7FFFFFFF, 8, 2, RGB_LINES),
    "wide": png(1 << 30, 240, 8, 2, RGB_LINES),
    "none": png(0, 0, 8, 2),
    "16 bits": png(320, 240, 16, 2, (b"\0" + bytes(1920)) * 240),
    "palette": png(320, 240, 8, 3, (b"\0" + bytes(320)) * 240, png_chunk(b"PLTE", bytes(768))),
    "grey": png(320, 240, 8, 0, (b"\0" + bytes(320)) * 240),
    "alpha": png(320, 240, 8, 6, (b"\0" + bytes(1280)) * 240),
    "no lines": png(320, 240, 8, 2),
    "other size": png(321, 240, 8, 2, (b"\0" + bytes(963)) * 240),
    "two headers": png(320, 240, 8, 2, RGB_LINES, png_chunk(b"IHDR", struct.pack(">IIBBBBB", 320, 240, 16, 2, 0, 0, 0))),
    "header late": b"\x89PNG\r\n\x1a\n" + png_chunk(b"tEXt", b"a\0b") + png(320, 240, 8, 2, RGB_LINES)[8:],
    "no end": png(320, 240, 8, 2, RGB_LINES)[:-12],
    "truncated": png(320, 240, 8, 2, RGB_LINES)[:-40],
    "text bomb": png(320, 240, 8, 2, RGB_LINES, png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 27)))),
}


def test_plain_png_is_read() -> None:
    pixels = images.read_png(png(320, 240, 8, 2, RGB_LINES), SIZE, {"RGB": "uint8"})
    assert pixels.shape == (240, 320, 3) and pixels.dtype == np.uint8 and not pixels.any()


@pytest.mark.parametrize("data", STRANGE_PNGS.values(), ids=STRANGE_PNGS)
def test_strange_png_is_refused_in_little_memory(data: bytes) -> None:
    with little_memory(), pytest.raises(SourceError):
        images.read_png(data, SIZE, {"RGB": "uint8"})


def jpeg(mode: str = "RGB", size: tuple[int, int] = (320, 240)) -> bytes:
    target = io.BytesIO()
    Image.new(mode, size).save(target, "JPEG")
    return target.getvalue()


@pytest.mark.parametrize(
    "data",
    [b"", jpeg()[:20], jpeg()[:-200], jpeg("L"), jpeg("CMYK"), jpeg(size=(240, 320)), png(320, 240, 8, 2, RGB_LINES)],
    ids=["empty", "header only", "truncated", "grey", "cmyk", "turned", "png"],
)
def test_strange_jpeg_is_refused(data: bytes) -> None:
    with pytest.raises(SourceError):
        images.read_jpeg(data, SIZE)


@pytest.fixture(scope="module")
def depth_exr(front3d_world: Path) -> bytes:
    return sorted(front3d_world.glob("data/*/depth_*.exr"))[0].read_bytes()


def with_window(data: bytes, *corners: int) -> bytes:
    start = data.index(b"dataWindow\0box2i\0") + 21
    return data[:start] + struct.pack("<4i", *corners) + data[start + 16 :]


def with_flag(data: bytes, flag: int) -> bytes:
    return data[:4] + struct.pack("<I", 2 | flag) + data[8:]


STRANGE_EXRS: Final[dict[str, Callable[[bytes], bytes]]] = {
    "empty": lambda data: b"",
    "signature only": lambda data: data[:8],
    "tiled": lambda data: with_flag(data, 0x200),
    "deep": lambda data: with_flag(data, 0x800),
    "multi-part": lambda data: with_flag(data, 0x1000),
    "window of two thousand million lines": lambda data: with_window(data, 0, 0, 0x7FFFFFFE, 0x7FFFFFFE),
    "window around everything": lambda data: with_window(data, -0x80000000, -0x80000000, 0x7FFFFFFF, 0x7FFFFFFF),
    "window inside out": lambda data: with_window(data, 319, 239, 0, 0),
    "window moved": lambda data: with_window(data, 1, 1, 320, 240),
    "attribute of four gigabytes": lambda data: patched(
        data, b"lineOrder\0lineOrder\0\1\0\0\0", b"lineOrder\0lineOrder\0\xff\xff\xff\xff"
    ),
    "attribute twice": lambda data: patched(data, b"lineOrder\0lineOrder\0\1\0\0\0\0", b"lineOrder\0lineOrder\0\1\0\0\0\0" * 2),
    "half floats": lambda data: patched(data, b"Z\0\2", b"Z\0\1"),
    "whole numbers": lambda data: patched(data, b"Z\0\2", b"Z\0\0"),
    "other channel": lambda data: patched(data, b"Z\0\2", b"R\0\2"),
    "every second pixel": lambda data: patched(data, b"\1\0\0\0\1\0\0\0\0compression", b"\2\0\0\0\2\0\0\0\0compression"),
    "endless header": lambda data: data[:8] + b"a\0b\0\0\0\0\0" * 100_000,
    "truncated": lambda data: data[:-100],
    "no lines": lambda data: data[:400],
}


@pytest.mark.parametrize("change", STRANGE_EXRS.values(), ids=STRANGE_EXRS)
def test_strange_exr_is_refused_in_little_memory(change: Callable[[bytes], bytes], depth_exr: bytes) -> None:
    with little_memory(), pytest.raises(SourceError):
        images.read_exr_depth(change(depth_exr), SIZE)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"compression\0comp", b"c\xffmpression\0comp"),
        (b"lineOrder\0line", b"lineOrder\0l\xffne"),
        (b"type\0string", b"\xfe\xff\xfe\xff\0string"),
    ],
)
def test_exr_with_names_that_are_no_text_is_read_all_the_same(before: bytes, after: bytes, depth_exr: bytes) -> None:
    whole = images.read_exr_depth(depth_exr, SIZE)
    np.testing.assert_array_equal(images.read_exr_depth(patched(depth_exr, before, after), SIZE), whole)


# split lists


HOSTILE: Final[tuple[Any, ...]] = (
    *(
        "..",
        ".",
        "",
        "../x",
        "a/b",
        "/etc/passwd",
        "\\\\host\\share",
        "~root",
        "é",
        "\u202e",
        "\ud800",
        "\0",
        "a\0b",
        "a\nb",
        "0001\n",
    ),
    *(
        "a..b",
        "-rf",
        "x" * 129,
        "x" * 1_000_000,
        "\u0661\u0662\u0663\u0664",
        0,
        -1,
        1.5,
        float("inf"),
        None,
        True,
        [],
        {},
        [["0001"]],
    ),
)


def write_list(tmp_path: Path, text: str | bytes, name: str = "train.json") -> Path:
    path = tmp_path / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize("place", ["scene_id", "image_id"])
@pytest.mark.parametrize("value", HOSTILE, ids=lambda value: repr(value)[:20])
def test_hostile_id_names_no_sample(place: str, value: Any, tmp_path: Path) -> None:
    record = {"scene_id": "scene", "image_id": "0001"} | {place: value}
    path = write_list(tmp_path, json.dumps([record, {"scene_id": "scene", "image_id": "0002"}]))
    first, second = folders.read_list(path)
    assert first.key is None and first.problem and len(first.problem) < 1000
    assert str(second.key) == "scene/0002"


@pytest.mark.parametrize(
    "value", ["../secret.png", "data/../../secret.png", "data/link/secret.png", "/etc/passwd", "\0", "\ud800", "x" * 5000, 3, []]
)
def test_hostile_image_path_reads_nothing_outside(value: Any, worlds: tuple[Path, Path]) -> None:
    root = worlds[0]
    (root.parent / "secret.png").write_bytes(b"secret")
    (root / "data" / "link").symlink_to(root.parent)
    records = [record | {"file_name": value} for record in json.loads((root / "train.json").read_bytes())]
    write_list(root, json.dumps(records))
    listed, findings = list_samples("front3d", root, ["train"])
    source = Source("front3d", root, 64, SIZE)
    found = [finding for sample in listed for finding in read_sample(source, sample)[1] if finding.field == "rgb"]
    assert len(found) == len(records) if listed else len(findings) == len(records)


@pytest.mark.parametrize("depth", [100, 900, 10_000, 100_000])
def test_nested_list_is_a_finding_or_refused(depth: int, tmp_path: Path) -> None:
    path = write_list(tmp_path, '[{"image_id": "0001", "scene_id": ' + "[" * depth + "]" * depth + "}]")
    try:
        (entry,) = folders.read_list(path)
    except ConfigError:
        return
    assert entry.key is None and entry.problem


@pytest.mark.parametrize("text", [b"", b"[", b"{}", b"3", b"null", b'"x"', b"\xff\xfe\0", b"\0" * 100, b"[" * 100_000, b"9" * 5000])
def test_what_is_no_list_is_refused(text: bytes, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        list(folders.read_list(write_list(tmp_path, text)))


@pytest.mark.parametrize(
    "text", ["[1]", "[null]", "[[]]", '["a/b"]', '[{"scene_id": "a"}]', '[{"image_id": "0001"}]', "[NaN]", "[1e999]"]
)
def test_strange_record_names_no_sample(text: str, tmp_path: Path) -> None:
    (entry,) = folders.read_list(write_list(tmp_path, text))
    assert entry.key is None and entry.problem


def test_mapped_lines_name_their_view(tmp_path: Path) -> None:
    path = write_list(tmp_path, "scene/a_1_2.mapped\n\n  scene/b_1_2  \nnothing\n../x/y\n\xff/\xfe\n", "test.txt")
    assert [str(entry.key) for entry in folders.read_list(path)] == ["scene/a_1_2", "scene/b_1_2", "None", "None", "None"]


def test_list_of_a_terabyte_is_refused(tmp_path: Path) -> None:
    for name in ("train.json", "train.txt"):
        path = tmp_path / name
        with path.open("wb") as file:
            file.truncate(1 << 40)
        with little_memory(), pytest.raises(ConfigError):
            list(folders.read_list(path))


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to(path)], ids=["folder", "pipe", "loop"])
def test_list_that_is_no_file_is_refused(make: Callable[[Path], None], worlds: tuple[Path, Path]) -> None:
    path = worlds[0] / "train.json"
    path.unlink()
    make(path)
    for splits in (["train"], [f"train={path}"]):
        with pytest.raises(ConfigError):
            list_samples("front3d", worlds[0], splits)
    assert {sample.splits for sample in list_samples("front3d", worlds[0])[0]} == {("val",), ("test",)}


# what lies in the folder


def replace_with(make: Callable[[Path], None]) -> Callable[[Path], None]:
    def replace(path: Path) -> None:
        path.unlink()
        make(path)

    return replace


def lead_out(path: Path) -> None:
    outside = path.parents[3] / "outside"
    shutil.move(path, outside)
    path.symlink_to(outside)


def grow(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(1 << 40)


REPLACEMENTS: Final[dict[str, Callable[[Path], None]]] = {
    "missing": Path.unlink,
    "folder": replace_with(Path.mkdir),
    "pipe": replace_with(os.mkfifo),
    "loop": replace_with(lambda path: path.symlink_to(path)),
    "broken link": replace_with(lambda path: path.symlink_to("nowhere")),
    "device": replace_with(lambda path: path.symlink_to("/dev/zero")),
    "link out of the folder": lead_out,
    "terabyte": grow,
    "empty": replace_with(Path.touch),
}
OPTIONAL: Final = {"campose", "room_mask"}


@pytest.mark.parametrize("damage", REPLACEMENTS.values(), ids=REPLACEMENTS)
@pytest.mark.parametrize("place", [0, 1], ids=["front3d", "matterport"])
def test_strange_file_is_a_finding(place: int, damage: Callable[[Path], None], worlds: tuple[Path, Path]) -> None:
    root, name = worlds[place], ("front3d", "matterport")[place]
    listed, _ = list_samples(name, root)
    source = open_source(name, root, listed)
    whole, findings = read_sample(source, listed[0])
    assert findings == []
    for file in whole.facts["files"]:
        damage(root / file["path"])
    with little_memory():
        sample, findings = read_sample(source, listed[0])
    allowed = OPTIONAL if damage in (REPLACEMENTS["missing"], REPLACEMENTS["broken link"]) else set()
    assert {finding.field for finding in findings} == {file["kind"] for file in whole.facts["files"]} - allowed
    assert all(finding.blocks for finding in findings)
    assert set(sample.arrays) <= {"intrinsics"}


@pytest.mark.parametrize(
    "path",
    ["../secret", "data/../../secret", "/etc/passwd", "data/\0", "data/\ud800", "", ".", "data", "data/" + "x" * 5000, "a/b/c"],
)
def test_path_out_of_the_folder_is_refused(path: str, worlds: tuple[Path, Path]) -> None:
    (worlds[0].parent / "secret").write_bytes(b"secret")
    with pytest.raises(SourceError):
        folders.read_file(worlds[0], path, 1 << 20)


def test_first_folder_may_be_a_link(worlds: tuple[Path, Path]) -> None:
    root = worlds[0]
    listed, _ = list_samples("front3d", root)
    shutil.move(root / "data", root.parent / "elsewhere")
    (root / "data").symlink_to(root.parent / "elsewhere")
    assert read_sample(Source("front3d", root, 64, SIZE), listed[0])[1] == []


def test_scene_folder_with_a_name_that_is_no_text_can_be_told_of(worlds: tuple[Path, Path]) -> None:
    root = worlds[0]
    scene = Path(os.fsdecode(os.fsencode(root / "data") + b"/\xff\xfe"))
    scene.mkdir()
    (scene / "rgb_0001.png").write_bytes(b"")
    listed: list[Listed] = list_samples("front3d", root)[0]
    found = [Finding("unlisted", "", "info", key, "a list that names it") for key in find_unlisted("front3d", root, listed)]
    sample, _ = read_sample(Source("front3d", root, 64, SIZE), listed[0])
    rows = finding_rows(sample, found, rejected=False)
    assert len(found) == 1 and table_of(FINDINGS, rows).num_rows == 1


# what people write


@pytest.mark.parametrize("text", ["a: !!timestamp x", "a: !!bool maybe", "a: !!int ''", "a: !!float ''", "!!timestamp b: 1"])
def test_tag_that_its_value_does_not_fit_is_told(text: str) -> None:
    with pytest.raises(ConfigError, match="not a spec in YAML"):
        read_spec(text)


@pytest.mark.parametrize("odd", ["\u202e", "\udcff", "\u200b", "\u2028", "\x85", "\xa0", "\ufeff", "\n", "\0"], ids=ascii)
def test_invisible_character_is_in_no_key(odd: str) -> None:
    for place in (f"s3://bucket/a{odd}/b", f"gs://bucket/{odd}"):
        with pytest.raises(ConfigError):
            place_of(place)
    with pytest.raises(ConfigError):
        place_of("s3://bucket/a") / f"b{odd}"
