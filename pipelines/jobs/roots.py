"""The folders that jobs may read and write, and whether a path is in one of them, symbolic links followed."""

import glob
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from scenemill.pipelines.experiments.checkpoints import PATTERN
from scenemill.schemas.errors import ConfigError

RESULTS: Final = "results"
"""The folder in a job's own to which it writes where its spec says nothing else."""

_DEEPEST: Final = 100  # parts of a pattern
_SIGNS: Final = frozenset("*?[")


class JobRoots:
    """What is in reach of a service's jobs: some folders, and the results of its jobs. Of its own folder nothing else is.

    Args:
        roots: the folders.
        home: the service's own, with a folder for each job in ``jobs``.

    Raises:
        ConfigError: no such folder.
    """

    def __init__(self, roots: Iterable[Path], home: Path) -> None:
        given = list(roots)
        for root in given:
            if not root.is_dir():
                raise ConfigError(f"root {root}: no such folder; give folders that are there")
        self._roots = tuple(root.resolve() for root in given)
        self._home = home.resolve()

    def folder(self, job: str) -> Path:
        """A job's own folder."""
        return self._home / "jobs" / job

    def locate(self, setting: str, text: str) -> str:
        """The path that a setting names, absolute and without links.

        Args:
            setting: dotted name, for messages.
            text: as it was given; ``evaluate.checkpoint`` alone may be a pattern.

        Raises:
            ConfigError: not absolute, or out of reach.
        """
        path = Path(text)
        if not path.is_absolute():
            raise ConfigError(f"{setting}={text[:200]!r}: allowed is an absolute path in one of the service's roots")
        if setting == "evaluate.checkpoint" and not os.path.exists(path) and not _SIGNS.isdisjoint(text):  # noqa: PTH110 - see below
            return self._locate_pattern(setting, path)
        found = self._reach(setting, path)
        if setting == "evaluate.checkpoint" and os.path.isdir(found):  # noqa: PTH112 - those of Path raise for names that are too long
            self._reach_all(setting, found.glob(PATTERN))
        return str(found)

    def check_inside(self, setting: str, text: str, bases: Sequence[str]) -> None:
        """Refuse a relative path that leads out of reach from any of the folders that it may be in.

        Raises:
            ConfigError: it does.
        """
        if ".." in Path(text).parts:
            raise ConfigError(f"{setting}={text[:200]!r}: allowed is a path without '..'")
        self._reach_all(setting, (Path(base) / text for base in bases if base))

    def _locate_pattern(self, setting: str, path: Path) -> str:
        fixed = next(number for number, part in enumerate(path.parts) if not _SIGNS.isdisjoint(part))
        if ".." in path.parts[fixed:]:
            raise ConfigError(f"{setting}={str(path)[:200]!r}: allowed is a pattern without '..'")
        if path.parts.count("**") > 1 or len(path.parts) > _DEEPEST:  # a second "**" looks below each folder of the first
            raise ConfigError(f"{setting}={str(path)[:200]!r}: allowed is a pattern of {_DEEPEST} parts, one of them '**'")
        base = self._reach(setting, Path(*path.parts[:fixed]))
        pattern = str(Path(glob.escape(str(base)), *path.parts[fixed:]))
        self._reach_all(setting, map(Path, glob.glob(pattern, recursive=True)))  # noqa: PTH207 - the base may hold such signs
        return pattern

    def _reach_all(self, setting: str, paths: Iterable[Path]) -> None:
        for path in paths:
            self._reach(setting, path)

    def _reach(self, setting: str, path: Path) -> Path:
        """A path without links; refused where it is out of reach."""
        found = Path(os.path.realpath(path))
        if self._is_result(found) if found.is_relative_to(self._home) else any(map(found.is_relative_to, self._roots)):
            return found
        raise ConfigError(f"{setting}={str(path)[:200]!r}: not in one of the service's roots; move it there, or name another")

    def _is_result(self, path: Path) -> bool:
        parts = path.relative_to(self._home).parts
        return len(parts) >= 3 and (parts[0], parts[2]) == ("jobs", RESULTS)
