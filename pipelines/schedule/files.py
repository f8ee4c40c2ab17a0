"""Files of schedules: YAML into ``ScheduleConfig``, one schedule a file, and their JSON Schema."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any, Final

from scenemill.pipelines.experiments.specs import load_tree, override_settings, settings_schema
from scenemill.schemas.errors import ConfigError
from scenemill.schemas.schedule import REQUIRED, Interval, ScheduleConfig, complete
from scenemill.schemas.settings import settings
from scenemill.transforms.objects import place_of

PATTERNS: Final = ("*.yaml", "*.yml")


def load_schedule(path: Path) -> ScheduleConfig:
    """The schedule of a file. Its name is the file's, if it gives none; its paths are absolute, its URIs as they are.

    Raises:
        ConfigError: no such file, or something is wrong with what it says; all of it is told.
    """
    tree = load_tree(path)
    schedule = override_settings(ScheduleConfig, _as_text(tree), (), str(path))
    folder = path.resolve().parent
    try:
        schedule = replace(schedule, name=schedule.name or path.stem)
        complete(schedule)
        _check_places(schedule)
    except ConfigError as error:
        raise ConfigError("\n".join(f"{path}: {line}" for line in str(error).split("\n"))) from error
    return replace(schedule, input=_absolute(folder, schedule.input), output=_absolute(folder, schedule.output))


def load_schedules(where: Path) -> dict[Path, ScheduleConfig]:
    """The schedules of a folder, or of one file, by file and in the order of their names.

    Raises:
        ConfigError: nothing there, something wrong in a file (all files are told), or a name twice.
    """
    paths = [where] if where.is_file() else sorted(path for pattern in PATTERNS for path in where.glob(pattern))
    if not paths:
        raise ConfigError(f"{where}: 0 schedules; expected a file, or a folder with files {', '.join(PATTERNS)}")
    schedules, wrong = {}, []
    for path in paths:
        try:
            schedules[path] = load_schedule(path)
        except ConfigError as error:
            wrong.append(str(error))
    of_name: dict[str, Path] = {}
    for path, schedule in schedules.items():
        if (first := of_name.setdefault(schedule.name, path)) != path:
            wrong.append(f"{path}: name={schedule.name!r} is that of {first}; give each schedule its own")
    if wrong:
        raise ConfigError("\n".join(wrong))
    return schedules


def schedule_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a schedule's file. What depends on two settings is not in it, but for cron and every."""
    return {
        **settings_schema("scenemill schedule", settings(ScheduleConfig)),
        "required": list(REQUIRED),
        "oneOf": [{"required": ["cron"]}, {"required": ["every"]}],
    }


def _check_places(schedule: ScheduleConfig) -> None:
    first = Interval(schedule.begins, schedule.begins)
    for name in ("input", "output"):
        try:
            place_of(schedule.placed(name, first))
        except ConfigError as error:
            raise ConfigError(f"{name}={getattr(schedule, name)!r}: {error}") from error


def _as_text(tree: Mapping[Any, Any]) -> dict[Any, Any]:
    """YAML reads ``start: 2026-01-01`` as a date; settings are given as text."""
    plain = {key: value.isoformat() if isinstance(value, date) else value for key, value in tree.items()}
    return {key: _as_text(value) if isinstance(value, dict) else value for key, value in plain.items()}


def _absolute(folder: Path, path: str) -> str:
    if "://" in path:
        return path
    escaped = str(folder).replace("{", "{{").replace("}", "}}")  # braces of the folder's name are no placeholders
    return str((Path(escaped) / path).resolve())
