"""Feeds damaged files to the readers; a program of its own, so that a crash of a native decoder is seen and not suffered.

    python fuzzer.py KIND COUNT SEED FOLDER...

KIND is a reader; each FOLDER is a raw folder in one of the two forms (or a store, for "store"). Prints a JSON document that counts
what became of the damaged files and describes every one that got through. The same arguments make the same files.
"""

import json
import random
import resource
import shutil
import signal
import struct
import sys
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from scenemill.schemas.errors import ConfigError, SourceError, StoreError
from scenemill.transforms import images, npz
from scenemill.transforms.sources import Listed, RawFile, Source, list_samples, open_source, raw_files, read_bytes
from scenemill.transforms.store import open_store

SECONDS_PER_CASE: Final = 20
MEMORY_LIMIT_BYTE: Final = 4 << 30
MOST_DESCRIBED: Final = 20
NUMBERS: Final = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF, 1 << 62, (1 << 64) - 1)
IMAGE_KINDS: Final = ("rgb", "depth", "room_mask")

Random = random.Random
Mutation = Callable[[bytes, Random], bytes]
Read = Callable[[bytes], object]


def _place(data: bytes, rng: Random) -> int:
    """A position: half the time near an end, where headers and directories are."""
    if rng.random() < 0.5 or len(data) < 2:
        return rng.randrange(len(data) or 1)
    near = min(rng.choice((64, 512, 2048)), len(data))
    return rng.randrange(near) if rng.random() < 0.6 else len(data) - 1 - rng.randrange(near)


def _range(data: bytes, rng: Random) -> tuple[int, int]:
    start = _place(data, rng)
    return start, min(len(data), start + rng.choice((1, 2, 4, 8, 30, 200, 5000)))


def flip_bits(data: bytes, rng: Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        changed[_place(data, rng)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def set_number(data: bytes, rng: Random) -> bytes:
    """Write a number that is apt to break arithmetic over one that may be a length."""
    size = rng.choice((1, 2, 4, 8))
    start = _place(data, rng)
    number = (rng.choice(NUMBERS) & ((1 << 8 * size) - 1)).to_bytes(size, rng.choice(("little", "big")))
    return data[:start] + number + data[start + size :]


def truncate(data: bytes, rng: Random) -> bytes:
    return data[: _place(data, rng)]


def cut_out(data: bytes, rng: Random) -> bytes:
    start, stop = _range(data, rng)
    return data[:start] + data[stop:]


def repeat(data: bytes, rng: Random) -> bytes:
    start, stop = _range(data, rng)
    return data[:stop] + data[start:stop] * rng.choice((1, 2, 50)) + data[stop:]


def splice(data: bytes, rng: Random) -> bytes:
    """Overwrite one stretch of the file with another."""
    (start, stop), place = _range(data, rng), _place(data, rng)
    return data[:place] + data[start:stop] + data[place + stop - start :]


def scramble(data: bytes, rng: Random) -> bytes:
    start, stop = _range(data, rng)
    return data[:start] + rng.randbytes(stop - start) + data[stop:]


def append(data: bytes, rng: Random) -> bytes:
    return data + rng.randbytes(rng.choice((1, 4, 22, 1000)))


BLIND: Final[tuple[Mutation, ...]] = (flip_bits, flip_bits, set_number, truncate, cut_out, repeat, splice, scramble, append)


def damage(data: bytes, rng: Random) -> bytes:
    """One or two blind mutations."""
    for _ in range(rng.choice((1, 1, 1, 2))):
        data = rng.choice(BLIND)(data or b"\0", rng)
    return data


def reseal_npz(data: bytes, rng: Random) -> bytes:
    """Damage what lies inside an archive and make it whole again around that: right sizes, right checksums."""
    with zipfile.ZipFile(BytesIO(data)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    victim = rng.randrange(len(members))
    target = BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(target, "w", rng.choice((0, 8)), compresslevel=1) as archive:
        warnings.simplefilter("ignore", UserWarning)  # of names that are there twice
        for place, (name, body) in enumerate(members):
            archive.writestr(name, damage_npy(body, rng) if place == victim else body)
            if rng.random() < 0.02:
                archive.writestr(name, body)
    return target.getvalue()


HEADER_WORDS: Final = (
    *("{", "}", "(", ")", ",", ":", "'", '"', "None", "True", "nan", "-1", "0", "1e9", "10**99", "1_0", "0x10", "9" * 40, "L", "j"),
    *("'|O'", "'>f8'", "'<f4'", "'<M8[ns]'", "'<U9'", "'S3'", "'V8'", "[('a','<f8')]", "'(2,)<f4'", "'<f2'", "'|b1'", "'?'", "'O'"),
    *(
        "((((",
        "[" * 90,
        "-" * 300,
        "\\",
        "\n",
        "\t ",
        "#",
        "lambda: 0",
        "__import__('os')",
        "b'x'",
        "...",
        "{1: 2, 'a': 3}",
        "\0",
        "é",
    ),
)


def damage_npy(body: bytes, rng: Random) -> bytes:
    """Damage an npy file: its header text, or anything."""
    if rng.random() < 0.2:
        return damage(body, rng)
    start = 10 if body[6:7] == b"\x01" else 12
    stop = start + int.from_bytes(body[8:start], "little")
    text = body[start:stop].decode("latin-1")
    for _ in range(rng.choice((1, 1, 2, 3))):
        place, end = sorted((rng.randrange(len(text) + 1), rng.randrange(len(text) + 1)))
        text = text[:place] + rng.choice(HEADER_WORDS) + text[rng.choice((place, place, min(place + 4, end), end)) :]
    header = text.encode("latin-1")
    version = rng.choice((body[6:8], b"\x01\0", b"\x02\0", b"\x03\0"))
    length = len(header).to_bytes(2 if version[0] == 1 else 4, "little")
    return body[:6] + version + length + header + body[stop:]


def reseal_png(data: bytes, rng: Random) -> bytes:
    """Damage a PNG file's chunks and set their checksums right again."""
    chunks = _png_chunks(data)
    victim = rng.randrange(len(chunks))
    kind, body = chunks[victim]
    chunks[victim] = (rng.choice((kind, kind, kind, b"tRNS", b"PLTE", b"acTL", b"zTXt", b"iCCP", b"eXIf")), damage(body, rng))
    if rng.random() < 0.1:
        chunks.insert(rng.randrange(len(chunks)), rng.choice(chunks))
    pieces = [struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks]
    return data[:8] + b"".join(pieces)


def _png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    chunks, place = [], 8
    while place < len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        chunks.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + length]))
        place += 12 + length
    return chunks


HOSTILE_IDS: Final[tuple[Any, ...]] = (
    *(
        "..",
        ".",
        "",
        "../secret",
        "a/../../secret",
        "/etc/passwd",
        "\\\\host\\share",
        "C:\\x",
        "~root",
        "-rf",
        "é",
        "\u202e",
        "\ud800",
    ),
    *("\0", "a\0b", "a\nb", "x" * 129, "x" * 1_000_000, "%2e%2e", "0001.mapped.mapped", ".mapped", "0001\n", "١٢٣٤", "CON", "a..b"),
    *(0, -1, 1.5, 1e999, None, True, [], {}, ["0001"], {"a": {}}, int("9" * 4000)),
)


def damage_list(data: bytes, rng: Random) -> bytes:
    """Damage a JSON split list: its bytes, or its values."""
    if rng.random() < 0.4:
        return damage(data, rng)
    records: list[Any] = json.loads(data)
    for _ in range(rng.choice((1, 2, 5))):
        victim = rng.randrange(len(records))
        name = rng.choice(("scene_id", "image_id", "height", "width", "file_name", "file_name", "more"))
        if isinstance(records[victim], dict):
            records[victim][name] = _hostile(records, rng)
        if rng.random() < 0.2:
            records[victim] = deepcopy(rng.choice(HOSTILE_IDS))
    document: Any = records if rng.random() < 0.95 else {"records": records}
    text = json.dumps(document)
    if rng.random() < 0.05:
        depth = rng.choice((50, 500, 900, 10_000, 100_000))
        text = text.replace('"scene_id": ', '"scene_id": ' + "[" * depth + "]" * depth + ', "x": ', 1)
    return text.encode()


def _hostile(records: list[Any], rng: Random) -> Any:
    stolen = rng.choice([record for record in records if isinstance(record, dict)] or [{}])
    paths = ("../secret.png", "data/../../secret.png", "data/link/secret.png", "data", "pipe")
    return deepcopy(rng.choice((*HOSTILE_IDS, *stolen.values(), *paths)))  # a copy: the next change may fall into it


def damage_text_list(data: bytes, rng: Random) -> bytes:
    """The same for a list of lines."""
    lines = data.split(b"\n")
    for _ in range(rng.choice((1, 2, 5))):
        word = rng.choice([str(one).encode("utf-8", "surrogatepass") for one in HOSTILE_IDS])
        lines.insert(
            rng.randrange(len(lines)),
            rng.choice((word, word + b"/" + word, lines[0] + b".mapped", b"../" + lines[0], b"\xff/\xfe")),
        )
    return damage(b"\n".join(lines), rng) if rng.random() < 0.5 else b"\n".join(lines)


def damage_json(data: bytes, rng: Random) -> bytes:
    """Damage a document of a store: its bytes, or one of its values."""
    if rng.random() < 0.6:
        return damage(data, rng)
    document: Any = json.loads(data)
    node, name = document, rng.choice(list(document))
    while isinstance(node[name], dict | list) and node[name] and rng.random() < 0.85:
        node = node[name]
        name = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
    node[name] = rng.choice((None, 0, 1, -1, 1e300, float("nan"), "", "\ud800", "x", [], {}, [[]], 2**70, True, node[name]))
    return json.dumps(document).encode()


@dataclass(frozen=True)
class Target:
    """A reader with a file it reads.

    Attributes:
        name: of the file's kind.
        data: the whole file.
        read: bytes -> anything that can be compared; raises only what it says.
        expected: what it makes of the whole file.
        mutations: each with whether the reader must notice it, or read the very values of the whole file.
    """

    name: str
    data: bytes
    read: Read
    expected: object
    mutations: tuple[tuple[Mutation, bool], ...]


def same(one: object, other: object) -> bool:
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return bool(one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes())
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(value, other[name]) for name, value in one.items())
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other) or repr(one) == repr(other)


def file_targets(root: Path) -> Iterator[Target]:
    """Every kind of raw file of a folder, as the source's table decodes it."""
    name = "matterport" if (root / "depth_gen").is_dir() else "front3d"
    listed, _ = list_samples(name, root)
    source = open_source(name, root, listed)
    for file in source.files:
        data = read_bytes(source, listed[0], file)
        assert data is not None
        read = partial(decode, source, file, source.new_arrays())
        yield Target(f"{name} {file.kind}", data, read, read(data), mutations_of(data))
    if name == "front3d":
        data = (root / "meta" / "frustum_mask.npz").read_bytes()
        read_mask = partial(read_volume, (source.grid,) * 3)
        yield Target("frustum", data, read_mask, read_mask(data), mutations_of(data))


def mutations_of(data: bytes) -> tuple[tuple[Mutation, bool], ...]:
    if data[:2] == b"PK":
        return ((damage, True), (damage, True), (reseal_npz, False))
    if data[1:4] == b"PNG":
        return ((damage, True), (damage, True), (reseal_png, False))
    if data[:6] == b"\x93NUMPY":
        return ((damage, False), (damage_npy, False))
    return ((damage, False),)  # JPEG carries no checksum; OpenEXR one per block of compressed lines


def decode(source: Source, file: RawFile, arrays: dict[str, NDArray[Any]], data: bytes) -> object:
    facts: dict[str, Any] = {}
    file.decode(data, arrays, facts)
    if source.name == "front3d" and file.kind == "geometry":
        npz.probe_shape(data, "data")
    if file.kind in IMAGE_KINDS and data[:4] != b"\x76\x2f\x31\x01":
        images.probe_size(data)
    return [arrays[name].copy() for name in file.fields], facts


def read_volume(shape: tuple[int, ...], data: bytes) -> object:
    mask = np.empty(shape, np.bool_)
    npz.read_volumes(data, "mask", [mask], ("bool",), rotated=True)
    return mask


def list_targets(root: Path) -> Iterator[Target]:
    """The split lists, in both their forms; what they name is read, and may not lie outside the folder."""
    name = "matterport" if (root / "depth_gen").is_dir() else "front3d"
    records = json.loads((root / "train.json").read_bytes())
    lines = "\n".join(f"{record['scene_id']}/{record['image_id']}" for record in records).encode()
    (root.parent / "secret.png").write_bytes(b"secret")
    if not (root / "data" / "link").is_symlink():
        (root / "data" / "link").symlink_to(root.parent)
    for suffix, data, mutation in ((".json", json.dumps(records).encode(), damage_list), (".txt", lines, damage_text_list)):
        read = partial(read_listed, name, root, root.parent / f"{root.name}{suffix}")
        yield Target(f"{name} {suffix} list", data, read, read(data), ((mutation, False),))


def read_listed(name: str, root: Path, path: Path, data: bytes) -> object:
    path.write_bytes(data)
    listed, findings = list_samples(name, root, [f"train={path}"])
    source = Source(name, root, 64, (240, 320))
    first = listed[:3]
    for sample in first:
        read_first_file(source, sample)
    return len(listed), len(findings)


def read_first_file(source: Source, sample: Listed) -> None:
    paths = raw_files(source, sample)
    assert all(path.split("/")[0] in ("data", "depth_gen", "room_mask") for kind, path in paths.items() if kind != "rgb"), paths
    for file in source.files[:1]:
        try:
            data = read_bytes(source, sample, file)
        except SourceError:
            continue
        assert data != b"secret", f"{sample} leads out of the folder"


def store_targets(root: Path) -> Iterator[Target]:
    """The documents of a store, read through a copy of it that takes the place of the whole one."""
    copy = root.parent / f"{root.name}-damaged"
    shutil.copytree(root, copy, dirs_exist_ok=True)
    key = open_store(root).keys[0]
    expected = read_stored(copy, key)
    receipts = sorted(root.glob("parts/*/receipt.json"))[:1]
    tables = sorted(root.glob("tables/*.parquet"))
    for path in (root / "zarr.json", *receipts, *tables):
        read = partial(read_damaged, copy, path.relative_to(root), path.read_bytes(), key)
        yield Target(path.name, path.read_bytes(), read, expected, ((damage_json if path.suffix == ".json" else damage, True),))


def read_damaged(store: Path, path: Path, whole: bytes, key: str, data: bytes) -> object:
    (store / path).write_bytes(data)
    try:
        return read_stored(store, key)
    finally:
        (store / path).write_bytes(whole)


def read_stored(path: Path, key: str) -> object:
    store = open_store(path)
    sample = store.read(key)
    return dict(sample.arrays), sample.facts, store.findings.to_pylist(), store.frustum


TARGETS: Final[dict[str, Callable[[Path], Iterator[Target]]]] = {
    "files": file_targets,
    "lists": list_targets,
    "store": store_targets,
}


def attempt(target: Target, data: bytes, notice: bool) -> tuple[str, str]:
    """What became of one damaged file: ("equal", ""), ("refused", ""), ("other", "") or ("wrong", why)."""
    signal.alarm(SECONDS_PER_CASE)
    try:
        found = target.read(data)
    except (SourceError, ConfigError, StoreError):
        return "refused", ""
    except Exception as error:
        return "wrong", f"{type(error).__name__}: {str(error)[:200]}"
    finally:
        signal.alarm(0)
    if same(found, target.expected):
        return "equal", ""
    return ("wrong", "other values, and no error") if notice else ("other", "")


def fuzz(targets: list[Target], count: int, seed: int) -> dict[str, Any]:
    """Try ``count`` damaged files, in turn from every target."""
    outcomes: Counter[str] = Counter()
    wrong: list[str] = []
    for number in range(count):
        target = targets[number % len(targets)]
        rng = Random(f"{seed} {number}")
        mutation, notice = rng.choice(target.mutations)
        data = mutation(target.data, rng)
        outcome, why = attempt(target, data, notice)
        outcomes[outcome] += 1
        if outcome == "wrong" and len(wrong) < MOST_DESCRIBED:
            wrong.append(f"{target.name}, {mutation.__name__}, seed {seed}, case {number}: {why}")
    return {"executions": count, "outcomes": dict(outcomes), "wrong": wrong, "peak_byte": _peak_byte()}


def _time_is_up(number: int, frame: object) -> None:
    raise TimeoutError(f"no answer within {SECONDS_PER_CASE} s")


def main(kind: str, count: str, seed: str, *roots: str) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTE, MEMORY_LIMIT_BYTE))
    warnings.simplefilter("error")
    signal.signal(signal.SIGALRM, _time_is_up)
    targets = [target for root in roots for target in TARGETS[kind](Path(root).resolve())]
    print(json.dumps(fuzz(targets, int(count), int(seed))))


def _peak_byte() -> int:
    """Largest memory of this program; ``getrusage`` would count that of the process it was forked from."""
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * int(next(line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM")))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main(*sys.argv[1:])
