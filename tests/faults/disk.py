"""A disk that fails or loses power: ``disk.c`` compiled, its settings, and what is left on a disk after a loss of power.

A run is recorded once, call by call. What a loss of power after any of its calls leaves is then worked out: bytes that were not flushed may
be lost, and so may names whose folder was not.
"""

import os
import random
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SOURCE: Final = Path(__file__).with_name("disk.c")
CHANGES: Final[Mapping[str, str]] = {
    "created": "c",
    "written": "w",
    "flushed": "s",
    "folder flushed": "s",
    "renamed": "r",
    "linked": "l",
    "removed": "u",
    "folder removed": "u",
    "folder made": "m",
    "pointed": "c",
}
"""What the journal calls a change -> its letter in DISK_CALLS."""


def compile_disk(folder: Path) -> Path:
    """The library, compiled."""
    library = folder / "disk.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", library, SOURCE, "-lpthread"], check=True)
    return library


@dataclass(frozen=True)
class Call:
    """One change that a process made below the folder.

    Attributes:
        kind: one of ``CHANGES``, or "opened" or "emptied".
        path: what was changed, below the folder; of a rename and a link, the name that there was.
        other: the new name; of a link by name, what it points to.
        data: bytes of the file then, where they are kept.
    """

    kind: str
    path: str
    other: str
    data: bytes | None


def read_journal(journal: Path, root: Path) -> list[Call]:
    """What was done below a folder, in order."""
    calls = []
    for line in (journal / "log").read_text().splitlines():
        kind, path, other, _, kept = line.split("\t")
        paths = [os.path.relpath(name, root) if name and kind != "pointed" else name for name in (path, other)]
        if kind == "pointed":
            paths[0] = os.path.relpath(path, root)
        calls.append(Call(kind, paths[0], paths[1], (journal / kept).read_bytes() if kept != "0" else None))
    return calls


@dataclass(eq=False)
class _File:
    """A file, whatever its names: the bytes that are safe, and those that a process sees."""

    safe: bytes | None
    seen: bytes

    def left(self, rng: random.Random) -> bytes:
        """What a loss of power leaves of it."""
        return rng.choice((b"", bytes(len(self.seen)), self.seen)) if self.safe is None else self.safe


@dataclass(frozen=True)
class _Link:
    target: str


_Node = _File | _Link | None  # None is a folder
_Change = tuple[str, _Node, bool]  # name, what it names, True where it goes


class Disk:
    """A disk while a process writes to it: the names that are safe, and those that are not yet.

    Args:
        before: a folder as it was, all of it safe.
        ordered: True for a disk whose every flush makes all earlier names safe, as journals do; False for one that promises no more than
            POSIX says: a name is safe once its own folder is flushed.
    """

    def __init__(self, before: Path | None, *, ordered: bool) -> None:
        self._ordered = ordered
        self._safe: dict[str, _Node] = {".": None}
        for path in sorted(before.rglob("*")) if before is not None else ():
            data = None if path.is_dir() else path.read_bytes()
            self._safe[os.path.relpath(path, before)] = None if data is None else _File(data, data)
        self._seen = dict(self._safe)
        self._waiting: list[tuple[_Change, ...]] = []

    def do(self, call: Call) -> None:
        """Play one call."""
        node = self._seen.get(call.path)
        if call.kind == "created":
            self._change((call.path, _File(None, b""), False))
        elif call.kind in ("written", "emptied") and isinstance(node, _File):
            node.safe = None
        elif call.kind == "flushed" and isinstance(node, _File):
            node.safe = node.seen = call.data or b""
            self._settle(None)
        elif call.kind == "folder flushed":
            self._settle(call.path)
        elif call.kind == "renamed":
            self._keep(node, call)
            self._change((call.path, None, True), (call.other, node, False))
        elif call.kind == "linked":
            self._keep(node, call)
            self._change((call.other, node, False))
        elif call.kind in ("removed", "folder removed"):
            self._change((call.path, None, True))
        elif call.kind == "folder made":
            self._change((call.path, None, False))
        elif call.kind == "pointed":
            self._change((call.path, _Link(call.other), False))

    @staticmethod
    def _keep(node: _Node, call: Call) -> None:
        if isinstance(node, _File) and call.data is not None:
            node.seen = call.data

    def _change(self, *changes: _Change) -> None:
        _apply(self._seen, changes)
        self._waiting.append(changes)

    def _settle(self, folder: str | None) -> None:
        """Make the names of a folder safe; on an ordered disk, all."""
        rest = []
        for changes in self._waiting:
            if self._ordered or folder in {str(Path(name).parent) for name, _, _ in changes}:
                _apply(self._safe, changes)
            else:
                rest.append(changes)
        self._waiting = rest

    def lose_power(self, target: Path, rng: random.Random) -> Path:
        """Write what is left to a new folder."""
        names = dict(self._safe)
        kept = rng.randint(0, len(self._waiting))
        for number, changes in enumerate(self._waiting):
            if number < kept if self._ordered else rng.random() < 0.5:
                _apply(names, changes)
        target.mkdir()
        for name, node in sorted(names.items()):
            path = target / name
            if name == "." or not path.parent.is_dir():
                continue
            if isinstance(node, _File):
                path.write_bytes(node.left(rng))
            elif isinstance(node, _Link):
                path.symlink_to(node.target)
            else:
                path.mkdir()
        return target


def _apply(names: dict[str, _Node], changes: Sequence[_Change]) -> None:
    for name, node, goes in changes:
        if goes:
            names.pop(name, None)
        else:
            names[name] = node


def losses(
    before: Path | None, calls: Sequence[Call], places: Sequence[int], folder: Path, seed: int, *, ordered: bool
) -> Iterator[tuple[int, Path]]:
    """What a loss of power leaves after so many of the calls, each as a folder that is removed again.

    Yields:
        Calls that were done, and the folder.
    """
    disk, wanted = Disk(before, ordered=ordered), set(places)
    for done in range(len(calls) + 1):
        if done in wanted:
            left = disk.lose_power(folder / f"left-{done}", random.Random(f"{seed} {done}"))
            yield done, left
            shutil.rmtree(left, ignore_errors=True)
        if done < len(calls):
            disk.do(calls[done])
