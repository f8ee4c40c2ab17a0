"""What the viewer is pointed at: stores, predictions, metric tables and logs, by name, each looked at again from time to time."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any, Final

from scenemill.pipelines.viewer.log import LogRoot
from scenemill.pipelines.viewer.predictions import PredictionsRoot, find_predictions
from scenemill.pipelines.viewer.store import StoreRoot
from scenemill.pipelines.viewer.tables import TablesRoot
from scenemill.schemas.errors import ConfigError, SceneMillError
from scenemill.schemas.places import Place, Remote
from scenemill.trainers.timelapse_parser import TimelapseParser
from scenemill.transforms.layout import ROOT, hash_of
from scenemill.transforms.objects import place_of

Root = LogRoot | StoreRoot | PredictionsRoot | TablesRoot
Sampled = StoreRoot | PredictionsRoot

_DEPTH: Final = 2  # folders below one that is nothing itself, in which stores and the like are looked for
_REMOTE_POLL_S: Final = 10.0  # between looks at what is in an object store: each is a request


class Roots:
    """All that one viewer shows.

    Args:
        paths: the folders given; one that is no store, predictions, tables or log itself stands for those in it. In an object
            store, a store or metric tables.
        poll_s: how long a look at the folders counts; in an object store at least ten seconds.

    Raises:
        ConfigError: no such folder.
        StoreError: a store that cannot be opened.
    """

    def __init__(self, paths: Sequence[Place], poll_s: float = 1.0) -> None:
        self._paths, self._poll_s = tuple(map(place_of, paths)), poll_s
        self._remote = {path: recognise_remote(path) for path in self._paths if isinstance(path, Remote)}
        self._found: list[tuple[str, Place]] = []
        self._roots: dict[str, Root] = {}
        self._looks: dict[Place, tuple[float, str]] = {}
        self._lock = threading.Lock()
        self._looked, self._revision = float("-inf"), ""
        self._recognise()

    def __iter__(self) -> Iterator[Root]:
        return iter(self._roots.values())

    def revision(self) -> str:
        """Another one whenever anything shown has changed; the folders are looked at once in ``poll_s``, however often this is asked."""
        with self._lock:
            if time.monotonic() - self._looked >= self._poll_s:
                with suppress(SceneMillError):  # what is only half there yet, or gone for a moment, is opened at a later look
                    self._recognise()
                self._revision = hash_of([[root.name, self._look(root)] for root in self])
                self._looked = time.monotonic()
            return self._revision

    def _look(self, root: Root) -> str:
        if not isinstance(root.path, Remote):
            return root.look()
        looked, seen = self._looks.get(root.path, (float("-inf"), ""))
        if time.monotonic() - looked >= _REMOTE_POLL_S:
            seen = root.look()
            self._looks[root.path] = (time.monotonic(), seen)
        return seen

    def _recognise(self) -> None:
        """Open what the folders hold by now; what was there before stays as it is."""
        found: list[tuple[str, Place]] = []
        for path in self._paths:
            found.extend([self._remote[path]] if isinstance(path, Remote) else recognise(path))
        if found == self._found:
            return
        held = {(root.kind, root.path): root for root in self}
        roots = {root.name: root for root in open_roots(found, held)}
        for root in roots.values():
            if isinstance(root, PredictionsRoot):
                root.stores = tuple(other for other in roots.values() if isinstance(other, StoreRoot))
        self._found, self._roots = found, roots

    def index(self) -> dict[str, Any]:
        """What there is, as JSON takes it."""
        revision = self.revision()
        return {
            "version": 1,
            "revision": revision,
            "poll_s": self._poll_s,
            "roots": [{"name": root.name, "kind": root.kind, **self._describe(root)} for root in self],
        }

    def _describe(self, root: Root) -> dict[str, Any]:
        described = root.describe()
        for one in (described, *described.get("items", ())):
            if one.get("error"):
                one["error"] = self.without_paths(one["error"])
        return described

    def named(self, name: str) -> Root:
        """A root by its name.

        Raises:
            ConfigError: none has it.
        """
        if name not in self._roots:
            raise ConfigError(f"nothing called {name[:80]!r} is shown; there is {', '.join(self._roots)}")
        return self._roots[name]

    def sample(self, key: str) -> dict[str, Any]:
        """What every root knows of a sample, by name: of stores and predictions what can be shown, of tables its rows.

        Args:
            key: of the sample, or the name of a prediction's folder.

        Raises:
            ConfigError: no root has it.
        """
        key = next((found for root in self if isinstance(root, StoreRoot) and (found := root.key_of(key)) != key), key)
        roots = [root for root in self if isinstance(root, Sampled) and root.holds(key)]
        held = {root.name: {**root.sample(key), "stamp": root.stamp(key)} for root in roots}
        if not held:
            raise ConfigError(f"no sample {key[:200]!r}; it was removed, or never was")
        rows = {root.name: root.sample(key) for root in self if isinstance(root, TablesRoot)}
        return {"key": key, "roots": held, "metrics": rows}

    def without_paths(self, text: str) -> str:
        """A message with names in place of the folders' paths: those are nobody's business beyond this machine."""
        for root in self:
            for path in sorted(_names_of(root.path), key=len, reverse=True):
                text = text.replace(path, root.name)
        return text


def _names_of(path: Place) -> set[str]:
    return {str(path)} if isinstance(path, Remote) else {str(path), str(path.absolute()), str(path.resolve())}


def recognise_remote(path: Remote) -> tuple[str, Remote]:
    """The kind and place of what a folder in an object store is.

    Raises:
        ConfigError: neither a store nor metric tables.
        TransientError: the service does not answer.
    """
    for kind, sign in (("store", path / ROOT), ("tables", path / "scores" / "_delta_log")):
        if sign.exists():
            return kind, path
    raise ConfigError(f"{path}: neither a store nor metric tables; logs and predictions are shown from a disk: fetch them to one")


def recognise(path: Path) -> list[tuple[str, Path]]:
    """The kinds and places of what a folder is, or else of what is in it; a log, maybe an empty one, if that is nothing.

    Raises:
        ConfigError: no such folder.
    """
    if not path.is_dir():
        raise ConfigError(f"{path}: no such folder; give a log of 3D checkpoints, a store, predictions or metric tables")
    own = _kind_of(path)
    found = [(own, path)] if own else list(_within(path, _DEPTH))
    return found if any(kind != "log" for kind, _ in found) else [("log", path)]


def _within(path: Path, depth: int) -> Iterator[tuple[str, Path]]:
    """What folders in a folder are; one that has nothing but files of a log, at whatever depth, is one log."""
    for child in sorted(path.iterdir()):
        if not child.is_dir() or child.is_symlink() or child.name.startswith("."):
            continue
        own = _kind_of(child)
        deeper = list(_within(child, depth - 1)) if depth > 1 and not own else []
        if own:
            yield own, child
        elif any(kind != "log" for kind, _ in deeper):
            yield from deeper
        elif TimelapseParser.get_filepaths(child):
            yield "log", child


def _kind_of(path: Path) -> str:
    """What a folder is by its own files; "" for a log or nothing."""
    if (path / ROOT).is_file() and (path / "versions").is_dir():
        return "store"
    if (path / "scores" / "_delta_log").is_dir():
        return "tables"
    return "predictions" if next(find_predictions(path), None) else ""


def open_roots(found: Iterable[tuple[str, Place]], held: Mapping[tuple[str, Place], Root]) -> Iterator[Root]:
    """Roots of these kinds and places, each under a name of its own: that of its folder, with a number where another has it.

    Args:
        found: kinds and places.
        held: roots that are open already; each is taken once.
    """
    classes: dict[str, Callable[[str, Any], Root]] = {
        "store": StoreRoot,
        "predictions": PredictionsRoot,
        "tables": TablesRoot,
        "log": LogRoot,
    }
    left = dict(held)
    taken = {root.name for root in held.values()}
    for kind, path in found:
        if root := left.pop((kind, path), None):
            yield root
            continue
        stem = (path if isinstance(path, Remote) else path.resolve()).name or kind
        name = next(one for one in _numbered(stem) if one not in taken)
        taken.add(name)
        yield classes[kind](name, path)


def _numbered(stem: str) -> Iterator[str]:
    yield stem
    yield from (f"{stem}_{number}" for number in count(2))
