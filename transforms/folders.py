"""Raw folders: finding split lists, and opening files without leaving the root or trusting what lies there."""

import hashlib
import io
import json
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, overload

from scenemill.schemas.errors import ConfigError, SourceError
from scenemill.schemas.places import Place, Remote
from scenemill.schemas.sample import SampleKey
from scenemill.transforms.objects import place_of

SPLIT_ORDER: Final = ("train", "val", "validation", "test")
_LIST_LIMIT_BYTE: Final = 1 << 28
_TEXT_LINE: Final = re.compile(r"[^/\s]+/[^/\s]+\Z")


@dataclass(frozen=True)
class ListEntry:
    """One line of one split list.

    Attributes:
        key: the sample it names; None where it names none.
        problem: why it names none, or "".
        where: ``file[position]``.
        size: (height, width) the list states, or None.
        rgb_path: the list's own path of the colour image, or "".
    """

    key: SampleKey | None
    problem: str
    where: str
    size: tuple[int, int] | None = None
    rgb_path: str = ""


@overload
def find_root(folder: Path) -> Path: ...


@overload
def find_root(folder: Place) -> Place: ...


def find_root(folder: Place) -> Place:
    """The folder above ``data/``; ``data/`` itself is taken for its parent.

    Raises:
        ConfigError: no such folder, or no ``data/`` in it.
    """
    for root in (folder, folder.parent):
        if (root / "data").is_dir() and (root == folder or folder.name == "data"):
            return root.resolve() if isinstance(root, Path) else root
    if not folder.is_dir():
        raise ConfigError(f"input {folder}: no such folder; give the folder that holds data/ and the split lists")
    raise ConfigError(f"input {folder}: no data/ in it; give the folder above data/<scene>/")


def find_lists(root: Place, splits: Sequence[str], *, needed: bool = True) -> dict[str, Place]:
    """Split name -> list file, in the order train, val, test, then by name.

    Args:
        root: the raw folder.
        splits: names, or ``name=path``; empty for every list in ``root``.
        needed: whether there must be one.

    Raises:
        ConfigError: a named list is missing or named twice, or there is none although one is needed.
    """
    if splits:
        named = [_named_list(root, split) for split in splits]
        found = dict(named)
        if len(found) < len(named):
            raise ConfigError(f"--splits {', '.join(splits)}: a split is named twice; name each once")
    else:
        files: list[Place] = sorted(root.iterdir(), reverse=True)  # train.json comes after train.txt, and counts
        found = {path.stem: path for path in files if path.suffix in (".json", ".txt") and path.is_file() and _is_list(path)}
    if needed and not found:
        raise ConfigError(
            f"input {root}: no split list in it; expected train.json, val.json or test.json, or name one with --splits NAME=FILE"
        )
    return dict(sorted(found.items(), key=lambda item: split_rank(item[0])))


def split_rank(split: str) -> tuple[int, str]:
    """Sort key of split names: train, val, test, then the others by name."""
    return (SPLIT_ORDER.index(split) if split in SPLIT_ORDER else len(SPLIT_ORDER), split)


def _named_list(root: Place, split: str) -> tuple[str, Place]:
    name, _, given = split.partition("=")
    if not re.fullmatch(r"[A-Za-z0-9_.\-]{1,64}", name):
        raise ConfigError(f"--splits {split!r}: a split name is letters, digits, '_', '-' and '.'")
    candidates: list[Place] = [place_of(given)] if given else [root / f"{name}.json", root / f"{name}.txt"]
    for path in candidates:
        if path.is_file():
            return name, path
    raise ConfigError(f"--splits {split!r}: no file {' or '.join(map(str, candidates))}")


def _is_list(path: Place) -> bool:
    """Whether a file in the root is a split list; one that is named like a list must be one, and reading it will say so."""
    if path.stem in SPLIT_ORDER:
        return True
    if path.suffix == ".txt":
        with _open_text(path) as lines:
            return bool(_TEXT_LINE.match(lines.readline(4096).strip()))
    records = _load_json(path)
    return isinstance(records, list) and bool(records) and isinstance(records[0], dict) and "scene_id" in records[0]


def read_list(path: Place) -> Iterator[ListEntry]:
    """The entries of a split list: a JSON array of records, or a text file of ``scene/image`` lines.

    Raises:
        ConfigError: no list at all. A bad entry is no error: it is yielded with its ``problem``.
    """
    if path.suffix == ".txt":
        yield from _read_text_list(path)
        return
    records = _load_json(path)
    if not isinstance(records, list):
        raise ConfigError(
            f"split list {path}: holds {type(records).__name__}; expected an array of records with scene_id and image_id"
        )
    for position, record in enumerate(records):
        yield _read_record(record, f"{path.name}[{position}]")


def _read_text_list(path: Place) -> Iterator[ListEntry]:
    if path.stat().st_size > _LIST_LIMIT_BYTE:
        raise ConfigError(f"split list {path}: larger than {_LIST_LIMIT_BYTE} bytes")
    with _open_text(path) as lines:
        for position, line in enumerate(lines):
            if text := line.strip():
                scene, _, image = text.removesuffix(".mapped").partition("/")  # Matterport3D test lists end in .mapped
                yield _entry(scene, image, f"{path.name}[{position}]")


def _open_text(path: Place) -> IO[str]:
    if isinstance(path, Path):
        return path.open(encoding="utf-8", errors="replace")
    return io.TextIOWrapper(io.BytesIO(path.read_bytes()), encoding="utf-8", errors="replace")


def _read_record(record: object, where: str) -> ListEntry:
    if not isinstance(record, dict) or "scene_id" not in record or "image_id" not in record:
        return ListEntry(None, "no record with scene_id and image_id", where)
    height, width = record.get("height"), record.get("width")
    stated = (height, width) if isinstance(height, int) and isinstance(width, int) else None
    rgb_path = record.get("file_name", "")
    if not isinstance(rgb_path, str) or len(rgb_path) > 1024 or not rgb_path.isprintable():  # also keeps lone surrogates out
        return ListEntry(None, "file_name is no path", where)
    image = record["image_id"]
    image = image.removesuffix(".mapped") if isinstance(image, str) else image
    return _entry(record["scene_id"], image, where, stated, rgb_path)


def _entry(scene: object, image: object, where: str, size: tuple[int, int] | None = None, rgb_path: str = "") -> ListEntry:
    try:
        return ListEntry(SampleKey(scene, image), "", where, size, rgb_path)  # type: ignore[arg-type]
    except ConfigError as error:
        return ListEntry(None, str(error), where)


def _load_json(path: Place) -> object:
    if path.stat().st_size > _LIST_LIMIT_BYTE:
        raise ConfigError(f"{path}: larger than {_LIST_LIMIT_BYTE} bytes; name the split lists with --splits")
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: no readable JSON ({error}); mend it, or name the split lists with --splits") from error


def read_file(root: Place, relative: str, limit_byte: int) -> bytes:
    """The bytes of one raw file.

    The first folder of ``relative`` may be a link (a tree kept on another disk); nothing below it may lead out of it. In an object
    store there are no links.

    Raises:
        SourceError: missing, not a plain file, too large, or outside its root.
    """
    if isinstance(root, Remote):
        data, size = _read_object(root, relative, limit_byte)
    else:
        handle, size = _open_inside(root, relative, limit_byte)
        with os.fdopen(handle, "rb") as file:
            data = file.read(size + 1)
    if len(data) != size:
        raise SourceError("changed", f"{len(data)} bytes read", f"{size}: the file changed while it was read")
    return data


def _read_object(root: Remote, relative: str, limit_byte: int) -> tuple[bytes, int]:
    try:
        path = root / relative
    except ConfigError as error:
        raise SourceError("path", f"{relative[:200]!r}, which is no key", "a file inside the raw folder") from error
    try:
        size = path.stat().st_size
        if size > limit_byte:
            raise SourceError("size", f"{size} bytes", f"at most {limit_byte}")
        return path.read_bytes(), size
    except FileNotFoundError as error:
        raise SourceError("presence", "no such file", relative) from error


def _open_inside(root: Path, relative: str, limit_byte: int) -> tuple[int, int]:
    tree, below, _ = relative.partition("/")
    if ".." in relative.split("/") or "\0" in relative:
        raise SourceError("path", f"{relative[:200]!r}, which leads out of the raw folder", "a file inside it")
    try:
        os.fsencode(relative)
    except UnicodeEncodeError as error:  # half a character
        raise SourceError("path", f"{relative[:200]!r}, which no file can be called", "a file inside the raw folder") from error
    inside = os.path.realpath(root / tree if below else root)
    path = os.path.realpath(root / relative)
    if path != inside and not path.startswith(inside + os.sep):
        raise SourceError("path", f"{relative[:200]!r}, which leads out of the raw folder", "a file inside it")
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # no waiting for a pipe's other end
    except FileNotFoundError as error:
        raise SourceError("presence", "no such file", relative) from error
    except (OSError, ValueError) as error:
        raise SourceError("presence", f"a file that cannot be opened ({error})", relative) from error
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode) or status.st_size > limit_byte:
        os.close(handle)
        if not stat.S_ISREG(status.st_mode):
            raise SourceError("container", "no plain file", relative)
        raise SourceError("size", f"{status.st_size} bytes", f"at most {limit_byte}")
    return handle, status.st_size


def sha256(data: bytes) -> str:
    """Checksum of some bytes, as everywhere in scenemill."""
    return hashlib.sha256(data).hexdigest()
