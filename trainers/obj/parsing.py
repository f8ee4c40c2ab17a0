"""The text of an OBJ file as arrays: positions, texture coordinates, normals, faces of any size, and what the lines say of materials.

Statements of other kinds (curves, groups, smoothing, lines and points) are passed over.

Source: Wavefront's Advanced Visualizer manual, appendix B1, object files.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from scenemill.schemas.errors import SourceError

LARGEST_BYTES: Final = 4 << 30
"""Of a text file that is read; a larger one is no mesh for one piece of memory."""

_KINDS: Final = ("v", "vt", "vn")


@dataclass
class Statements:
    """The lines of an OBJ file by kind, without their keywords.

    Attributes:
        values: "v", "vt", "vn" -> lines.
        faces: lines.
        before: for each run of faces between other statements: its first face, and how many v, vt and vn were before it.
        materials: (name, first face) of each ``usemtl``.
        libraries: the rest of each ``mtllib``.
    """

    values: dict[str, list[str]] = field(default_factory=lambda: {kind: [] for kind in _KINDS})
    faces: list[str] = field(default_factory=list)
    before: list[tuple[int, int, int, int]] = field(default_factory=list)
    materials: list[tuple[str, int]] = field(default_factory=list)
    libraries: list[str] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Arrays:
    """The numbers of an OBJ file.

    Attributes:
        vertices: (V, 3) float32.
        uvs: (U, 2) float32, v up; None for not asked for.
        normals: (N, 3) float32; None for not asked for.
        counts: (F,) corners of each face.
        rows: (C,) rows of vertices, uvs and normals of the corners, one face after another, from 0, -1 for none; None as above.
    """

    vertices: NDArray[np.float32]
    uvs: NDArray[np.float32] | None
    normals: NDArray[np.float32] | None
    counts: NDArray[np.int64]
    rows: list[NDArray[np.int64] | None]


def read_text(path: Path) -> str:
    """The text of a file, UTF-8 with or without a mark of its order of bytes.

    Raises:
        SourceError: missing, larger than ``LARGEST_BYTES``, or no such text.
    """
    try:
        if path.stat().st_size > LARGEST_BYTES:
            raise SourceError("size", f"{path.stat().st_size} bytes in {path}", f"at most {LARGEST_BYTES}; cut the file in pieces")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise SourceError("container", f"{path} is no UTF-8 text ({error})", "an OBJ or MTL file") from error
    except SourceError:
        raise
    except (OSError, ValueError) as error:  # the latter of names that no file can have
        raise SourceError("missing", f"no readable file {path} ({error})", "an OBJ or MTL file") from error


def split_statements(text: str) -> Statements:
    """The lines of a file by kind; comments and empty lines are left out, and lines that end in a backslash go on in the next."""
    found, counted = Statements(), -1
    values = found.values
    for line in joined_lines(text):
        keyword, _, rest = line.partition(" ")
        if keyword in values:
            values[keyword].append(rest)
        elif keyword == "f":
            counts = [len(values[kind]) for kind in _KINDS]
            if sum(counts) != counted:
                counted = sum(counts)
                found.before.append((len(found.faces), counts[0], counts[1], counts[2]))
            found.faces.append(rest)
        elif keyword == "usemtl":
            found.materials.append((rest.strip(), len(found.faces)))
        elif keyword == "mtllib":
            found.libraries.append(rest.strip())
    return found


def joined_lines(text: str) -> Sequence[str]:
    """The lines of an OBJ or MTL file without their ends, comments and tabs; those that go on in the next line are one."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\\\n", " ").replace("\t", " ")
    return [(line.partition("#")[0] if "#" in line else line).strip() for line in text.split("\n")]


def to_arrays(statements: Statements, with_uvs: bool, with_normals: bool, what: str) -> Arrays:
    """The numbers of a file.

    Args:
        statements: of the file.
        with_uvs, with_normals: read these, and the corners' numbers of them.
        what: the file, for messages.

    Raises:
        SourceError: text that is no number, a number that is not finite, a face of fewer than three corners, or a corner of what is not
            there.
    """
    widths = {"v": 3, **({"vt": 2} if with_uvs else {}), **({"vn": 3} if with_normals else {})}
    values = {kind: _numbers_of(statements.values[kind], width, f"{what}: {kind}") for kind, width in widths.items()}
    counts, rows = _corners_of(statements, {kind: len(array) for kind, array in values.items()}, what)
    columns = [np.ascontiguousarray(column) if kind in values else None for kind, column in zip(_KINDS, rows.T, strict=True)]
    return Arrays(values["v"], values.get("vt"), values.get("vn"), counts, columns)


def _numbers_of(lines: Sequence[str], width: int, what: str) -> NDArray[np.float32]:
    """The first numbers of each line, (N, width); lines may have more."""
    if not lines:
        return np.zeros((0, width), np.float32)
    if not all(lines):
        raise SourceError("values", f"{what}: a line without numbers", f"{width} numbers in each line")
    try:
        rows = np.loadtxt(lines, dtype=np.float64, usecols=range(width), ndmin=2, comments=None)
    except ValueError as error:
        raise SourceError("values", f"{what}: {error}", f"{width} numbers in each line") from error
    with np.errstate(over="ignore"):
        values = rows.astype(np.float32)
    endless = ~np.isfinite(values).all(axis=1)
    if endless.any():
        raise SourceError("values", f"{what} number {endless.argmax() + 1}: {rows[endless.argmax()].tolist()}", "finite numbers")
    return values


def _corners_of(statements: Statements, sizes: Mapping[str, int], what: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(F,) corners of each face, and (C, 3) rows of v, vt and vn; those whose kind has a size are within it, or -1 for none."""
    tokens = [line.split() for line in statements.faces]
    counts = np.fromiter(map(len, tokens), np.int64, len(tokens))
    if (counts < 3).any():
        raise SourceError("faces", f"{what}: a face {statements.faces[int((counts < 3).argmax())]!r}", "three or more corners")
    try:
        given = _given_numbers(list(chain.from_iterable(tokens)))
    except (ValueError, OverflowError) as error:
        raise SourceError("faces", f"{what}: {error}", "corners as 1, 1/2, 1//3 or 1/2/3") from error
    rows = _rows_from_zero(given, counts, statements)
    for kind, size in sizes.items():
        column = _KINDS.index(kind)
        wrong = (rows[:, column] >= size) | (rows[:, column] < (0 if kind == "v" else -1))
        if wrong.any():
            number = int(given[wrong.argmax(), column])
            raise SourceError(
                "faces", f"{what}: a corner with {kind} {number} of {size}", f"{kind} from 1 to {size}, or -1 to -{size}"
            )
    return counts, rows


def _given_numbers(corners: list[str]) -> NDArray[np.int64]:
    """(C, 3) numbers as they are written, 0 for none."""
    slashes = {corner.count("/") for corner in corners}
    if len(slashes) == 1 and max(slashes) <= 2:
        width = max(slashes) + 1
        numbers = " ".join(corners).replace("//", "/0/").replace("/", " ").split()
        if len(numbers) == width * len(corners):  # else some are left out at the end, as in "1/2/"
            given = np.zeros((len(corners), 3), np.int64)
            given[:, :width] = np.fromiter(map(int, numbers), np.int64, len(numbers)).reshape(-1, width)
            return given
    parts = [corner.split("/") for corner in corners]
    long = next((corner for corner, part in zip(corners, parts, strict=True) if len(part) > 3), None)
    if long is not None:
        raise ValueError(f"a corner {long!r}")
    padded = ([int(one or 0) for one in part] + [0, 0] for part in parts)
    return np.array([row[:3] for row in padded], np.int64).reshape(-1, 3)


def _rows_from_zero(given: NDArray[np.int64], counts: NDArray[np.int64], statements: Statements) -> NDArray[np.int64]:
    """Rows from 0, -1 for none, -2 and below for what is out of range; negative numbers count back from where their face is."""
    rows = given - 1
    if (given < 0).any():
        first, *before = np.array(statements.before, np.int64).T
        lengths = np.diff([*first, len(counts)])
        for column, known in enumerate(before):
            known = np.repeat(np.repeat(known, lengths), counts)
            back = np.where(given[:, column] + known >= 0, given[:, column] + known, -2)
            rows[:, column] = np.where(given[:, column] < 0, back, rows[:, column])
    return rows
