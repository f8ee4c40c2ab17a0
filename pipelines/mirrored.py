"""Results in object stores: written to a folder of the cache, and sent from there.

What there is in the bucket counts. A run fetches it first, where another machine wrote last, and so goes on from the newest checkpoint
there; it then takes the place by swapping a small object, ``OWNER``, in which every run writes a token of its own. Whoever swaps it last
holds the place: each write is made under a condition, after a look at the token, so a run that lost it writes over nothing, and ends.

Files go first, each whole or not at all; then ``OWNER``, which says where links point. Metric tables are not sent: they are written into
the bucket by themselves (``tables.py``), and others may write there too.
"""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from filelock import FileLock, Timeout

from scenemill.schemas.errors import ConfigError, Conflict, SceneMillError, TransientError
from scenemill.schemas.places import Place, Remote
from scenemill.schemas.steps import reached
from scenemill.transforms.publish import make_folder, remove, write_whole

OWNER: Final = ".scenemill-results.json"
"""The object that says which run holds a place of results, and where links point."""

_TABLES: Final = "tables"
_NOTE: Final = ".scenemill-sent.json"
_SENDERS: Final = 4


@dataclass(frozen=True)
class Results:
    """Where one run writes.

    Attributes:
        place: where the results are in the end.
        folder: on a disk: that place itself, or the one in the cache that is sent there.
        token: of the run; "" for a place on a disk.
    """

    place: Place
    folder: Path
    token: str = ""

    @property
    def tables(self) -> Place:
        """Of the metric tables, which are where the results are in the end."""
        return self.place / _TABLES

    def send(self) -> None:
        """Bring the place up to what the folder holds; nothing to do on a disk.

        Raises:
            Conflict: another run has taken the place.
            ConfigError: no right to write, or a file whose name is none for an object.
            TransientError: the service does not answer. All is in the folder, and a later call sends it.
        """
        if isinstance(self.place, Remote):
            _send(self.place, self.folder, self.token)

    def send_meanwhile(self) -> None:
        """As ``send``, for a run that goes on: a service that stays away is told on standard error, and the next call sends all.

        Raises:
            Conflict, ConfigError: as ``send``.
        """
        try:
            self.send()
        except TransientError as error:
            print(f"results are not sent yet: {error}", file=sys.stderr, flush=True)


@contextmanager
def results_at(place: Place, cache: Path) -> Iterator[Results]:
    """A place for the results of one run: one in a bucket is fetched and taken first, and what was written is sent in the end, also
    that of a run that fails.

    Args:
        place: a folder, made if it is not there; or one in a bucket.
        cache: where folders that stand for buckets are kept.

    Raises:
        Conflict: another run holds the place, or has taken it meanwhile.
        ConfigError: the place cannot be written.
        TransientError: the service does not answer; once there are results, the message says where they are.
    """
    if isinstance(place, Path):
        place.mkdir(parents=True, exist_ok=True)
        yield Results(place, place)
        return
    folder = cache / "results" / hashlib.sha256(str(place).encode()).hexdigest()[:16]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _alone(place, folder):
        results = Results(place, folder, _take(place, folder))
        try:
            yield results
        except BaseException:
            _send_after_failure(results)
            raise
        try:
            results.send()
        except TransientError as error:
            raise TransientError(f"{error}. All results are in {folder}, and the same command sends them") from None


@contextmanager
def _alone(place: Remote, folder: Path) -> Iterator[None]:
    """Keep other runs of this machine off the folder."""
    lock = FileLock(folder.with_name(f"{folder.name}.lock"))
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise Conflict(f"{place}: another run of this machine writes its results there; wait for it to end") from None
    try:
        yield
    finally:
        lock.release()


def _send_after_failure(results: Results) -> None:
    """What a failed run left; that it cannot be sent is told beside the failure, which counts."""
    try:
        results.send()
    except (SceneMillError, OSError) as error:
        print(f"results stay in {results.folder}: {error}", file=sys.stderr, flush=True)


def _take(place: Remote, folder: Path) -> str:
    """Bring the folder up to what the place holds, unless this machine was the last to write there, and take the place."""
    found, owner = _read(place)
    note = _read_note(folder)
    if owner.run not in note["runs"]:
        _fetch(place, folder, owner.links)
        note = _read_note(folder)
    owned, token = [run for run in note["runs"] if run == owner.run], uuid4().hex
    _write_note(folder, note | {"runs": [*owned, token]})  # first: whichever stands there, should we be killed now, was ours
    (place / OWNER).swap(_Owner(token, owner.links).document(), found)
    reached("results taken")
    return token


@dataclass(frozen=True)
class _Owner:
    """What ``OWNER`` says: the token of the run, and name -> where it points, relative to its own folder, of each link."""

    run: str
    links: dict[str, str]

    def document(self) -> bytes:
        return json.dumps(asdict(self), sort_keys=True).encode()


def _read(place: Remote) -> tuple[bytes | None, _Owner]:
    """The object as it is, None for none, and what it says.

    Raises:
        ConfigError: it says something else.
    """
    try:
        found = (place / OWNER).read_bytes()
    except FileNotFoundError:
        return None, _Owner("", {})
    try:
        held = json.loads(found)
        return found, _Owner(str(held["run"]), {str(name): str(target) for name, target in held["links"].items()})
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ConfigError(f"{place / OWNER}: not written by scenemill, or damaged; give another place, or remove it") from error


def _read_note(folder: Path) -> dict[str, Any]:
    """What this machine knows of the place: ``runs``, the tokens of its last one; ``sent``, name -> size and time of each file."""
    path = folder / _NOTE
    return dict(json.loads(path.read_bytes())) if path.is_file() else {"runs": [], "sent": {}}


def _write_note(folder: Path, note: dict[str, Any]) -> None:
    write_whole(folder / _NOTE, json.dumps(note).encode())


def _fetch(place: Remote, folder: Path, links: dict[str, str]) -> None:
    """Make the folder what the place holds. What was not sent from it, as another machine went on without it, is put aside."""
    fetched = folder.with_name(
        f"{folder.name}.fetched"
    )  # whole, or not the folder: what is half fetched looks as if it were unsent
    remove(fetched)
    make_folder(fetched)
    found = {path.below(place): path for path in place.walk()}
    wanted = {name: path for name, path in found.items() if _is_sent(name)}
    for name in wanted:
        _inside(fetched, name).parent.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(_SENDERS) as pool:
        list(pool.map(lambda name: wanted[name].fetch(fetched / name), wanted))
    for name, target in links.items():
        link = _inside(fetched, name)
        _inside(fetched, str(Path(name).parent / target))
        link.unlink(missing_ok=True)
        link.symlink_to(target)
    _write_note(fetched, {"runs": [], "sent": {name: _stamp(fetched / name) for name in wanted}})
    if folder.is_dir() and _has_unsent(folder):
        aside = folder.with_name(f"{folder.name}.unsent-{uuid4().hex[:8]}")
        folder.rename(aside)
        print(f"{place}: another machine went on; what was not sent from this one is in {aside}", file=sys.stderr, flush=True)
    remove(folder)
    fetched.rename(folder)


def _has_unsent(folder: Path) -> bool:
    """Whether a folder holds what its place does not, as far as this machine knows."""
    files, _ = _list(folder)
    sent = _read_note(folder)["sent"]
    return any(sent.get(name) != stamp for name, stamp in files.items())


def _is_sent(name: str) -> bool:
    """Whether a file is one of the results: not of the tables, of those under way, nor ours."""
    parts = name.split("/")
    return parts[0] != _TABLES and not any(part.startswith(".") for part in parts)


def _inside(folder: Path, name: str) -> Path:
    """The path that an object's name stands for; refused where it leads elsewhere, for anyone may have written the object."""
    path = folder / name
    if not Path(os.path.normpath(path)).is_relative_to(folder):
        raise ConfigError(f"{name[:200]!r}: no name of a file of results; give a place that scenemill wrote")
    return path


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _send(place: Remote, folder: Path, token: str) -> None:
    note = _read_note(folder)
    sent: dict[str, list[int]] = note["sent"]
    files, links = _list(folder)
    check = partial(_check_ours, place, token)
    due = sorted(name for name in files if sent.get(name) != files[name])
    with ThreadPoolExecutor(_SENDERS) as pool:
        list(pool.map(lambda name: _send_one(place, folder, name, check), due))
    for name in sorted(set(sent) - set(files)):
        check()
        (place / name).unlink()
    (place / OWNER).swap(_Owner(token, links).document(), check())
    _write_note(folder, note | {"sent": files})
    reached("results noted")


def _list(folder: Path) -> tuple[dict[str, list[int]], dict[str, str]]:
    """The files of results with their stamps, and the links to them with where they point."""
    files, links = {}, {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if not _is_sent(name):
            continue
        if path.is_symlink() and path.resolve().is_relative_to(folder.resolve()):
            links[name] = os.path.relpath(path.resolve(), path.parent.resolve())
        else:
            files[name] = _stamp(path)
    return files, links


def _send_one(place: Remote, folder: Path, name: str, check: Callable[[], object]) -> None:
    (place / name).replace(folder / name, check)
    reached("result sent")


def _check_ours(place: Remote, token: str) -> bytes:
    """The owner's document, if it names this run."""
    found, owner = _read(place)
    if found is None or owner.run != token:
        raise Conflict(f"{place}: another run has taken this place for its results; run again, to go on from what it wrote")
    return found
