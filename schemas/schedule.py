"""Settings of a schedule: which raw folder is converted into which store, how often, from when on, and who is told how it went.

A schedule cuts time into intervals, by a cron line or by a length. The run of an interval is due when the interval is over.
"""

import re
import string
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from scenemill.schemas.config import PRECISIONS, IngestConfig
from scenemill.schemas.errors import ConfigError
from scenemill.schemas.fields import SOURCES
from scenemill.schemas.places import Place
from scenemill.schemas.settings import About, refuse, settle, shorten

REQUIRED: Final = ("source", "input", "output", "start")
PLACEHOLDERS: Final = ("date", "start", "end")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_DURATION: Final = "a whole number with s, m, h, d or w: 90m, 6h, 1d"
_TIME: Final = "a date or a time: 2026-01-31, 2026-01-31T06:00; in the schedule's timezone, if it names none"
_CRON: Final = "minute, hour, day, month and weekday, such as 0 3 * * mon; weekdays by name, and not beside days of the month"
_CRON_FIELDS: Final = (r"[\d*,/-]+",) * 3 + (r"[\d*,/-]+|[a-z,-]+", r"\*|[a-z,-]+")
_NAME: Final = "letters, digits, dots, dashes and underscores, at most 100"
_ZONE: Final = "a name such as Europe/Berlin"
_ADDRESS: Final = "an http or https URL without user and password; name a secret one by webhook_env"
_PLACED: Final = "a path or the URI of one, in which {date}, {start} and {end} stand for those of the interval"


@dataclass(frozen=True)
class Interval:
    """The span of time that one run converts: from ``start`` up to, and without, ``end``. Both are aware of their timezone."""

    start: datetime
    end: datetime


@dataclass(frozen=True)
class BackfillConfig:
    """Past intervals that are converted as well, each once, after all that is due."""

    start: str = field(default="", metadata=About(help="The first interval begins then or later.", words=_TIME))
    end: str = field(default="", metadata=About(help="The last interval is over by then.", words=_TIME))

    def __post_init__(self) -> None:
        settle(self)
        times = (("start", self.start), ("end", self.end))
        wrong = [(name, value, _TIME) for name, value in times if value and _read_time(value) is None]
        given = [value for _, value in times if value]
        wrong += [(name, value, "a time, as the other one is given") for name, value in times if not value and given]
        _refuse_all(wrong)


@dataclass(frozen=True)
class AlertsConfig:
    """Who is told how runs end. A failing alert is recorded with the run, and changes nothing else."""

    ends: tuple[str, ...] = field(
        default=("failed",),
        metadata=About(help="The ends that are told.", options=("failed", "skipped", "succeeded")),
    )
    webhook: str | None = field(
        default=None, metadata=About(help="Address to which a JSON document is posted.", words=_ADDRESS, secret=True)
    )
    webhook_env: str | None = field(
        default=None, metadata=About(help="Environment variable with that address, where the address is a secret.")
    )
    command: tuple[str, ...] = field(
        default=(), metadata=About(help="A program and its arguments, run without a shell; it reads the document as its input.")
    )

    def __post_init__(self) -> None:
        settle(self)
        if self.webhook is not None and not is_address(self.webhook):
            raise ConfigError(f"webhook: allowed is {_ADDRESS}")
        refuse(None not in (self.webhook, self.webhook_env), "webhook_env", self.webhook_env, "null beside webhook")


@dataclass(frozen=True)
class ScheduleConfig:
    """One schedule. Whether all is there that a schedule needs is told by ``complete``, for a file may be read before it is.

    Raises:
        ConfigError: values of another type or out of range.
    """

    name: str = field(
        default="",
        metadata=About(help="Name of the schedule. Default: that of its file.", words=_NAME),
    )
    source: str | None = field(default=None, metadata=About(help="What the raw folder is.", options=SOURCES))
    input: str = field(
        default="", metadata=About(help="The raw folder, from the folder of this file on, or its URI.", words=_PLACED)
    )
    output: str = field(default="", metadata=About(help="The store, from the folder of this file on, or its URI.", words=_PLACED))
    cron: str | None = field(default=None, metadata=About(help="When intervals end and begin.", words=_CRON))
    every: str | None = field(default=None, metadata=About(help="Length of intervals, instead of cron.", words=_DURATION))
    timezone: str = field(default="UTC", metadata=About(help="Of cron and times.", words=_ZONE))
    start: str = field(default="", metadata=About(help="The first interval begins then or later.", words=_TIME))
    catch_up: str = field(
        default="latest",
        metadata=About(help="Which intervals are made up for that came due while nothing ran.", options=("latest", "all")),
    )
    overlap: str = field(
        default="wait",
        metadata=About(
            help="What becomes of an interval that is due while a run of the schedule is under way.", options=("wait", "skip")
        ),
    )
    retries: int = field(default=2, metadata=About(help="Further tries of a run that failed.", least=0, most=100))
    retry_delay: str = field(default="5m", metadata=About(help="Time before each of them.", words=_DURATION))
    timeout: str | None = field(default=None, metadata=About(help="Time after which a try is ended.", words=_DURATION))
    splits: tuple[str, ...] = field(default=(), metadata=About(help="Split lists to take; empty for all."))
    workers: int = field(default=1, metadata=About(help="Processes of a run.", least=1))
    max_rejected: int | float | None = field(
        default=None,
        metadata=About(
            help="Publish only if at most these are rejected.", words="a share such as 0.01, a count such as 20, or null", least=0
        ),
    )
    precision: str = field(default="float32", metadata=About(help="How volumes of distances are stored.", options=PRECISIONS))
    samples_per_part: int | None = field(
        default=None, metadata=About(help="Samples in one part; null for the store's own.", least=1, most=4096)
    )
    backfill: BackfillConfig = field(
        default_factory=BackfillConfig, metadata=About(help="Past intervals that are converted as well.")
    )
    alerts: AlertsConfig = field(default_factory=AlertsConfig, metadata=About(help="Who is told how runs end."))

    def __post_init__(self) -> None:
        settle(self)
        wrong = [] if re.fullmatch(r"([A-Za-z0-9][\w.-]{0,99})?", self.name, re.ASCII) else [("name", self.name, _NAME)]
        wrong += [(name, text, _PLACED) for name, text in (("input", self.input), ("output", self.output)) if not _is_placed(text)]
        wrong += [("cron", self.cron, _CRON)] if self.cron is not None and not _is_cron(self.cron) else []
        lengths = (("every", self.every), ("retry_delay", self.retry_delay), ("timeout", self.timeout))
        wrong += [(name, text, _DURATION) for name, text in lengths if text is not None and _read_duration(text) is None]
        wrong += [] if _is_zone(self.timezone) else [("timezone", self.timezone, _ZONE)]
        wrong += [("start", self.start, _TIME)] if self.start and _read_time(self.start) is None else []
        _refuse_all(wrong)

    @property
    def zone(self) -> ZoneInfo:
        """The timezone of cron and times."""
        return ZoneInfo(self.timezone)

    @property
    def begins(self) -> datetime:
        """``start``, aware of its timezone."""
        return self.time(self.start)

    def time(self, text: str) -> datetime:
        """A time of the file or the command line, aware of its timezone.

        Raises:
            ConfigError: no time.
        """
        read = _read_time(text)
        if read is None:
            raise ConfigError(f"{text!r}: allowed is {_TIME}")
        return read if read.tzinfo else read.replace(tzinfo=self.zone)

    def placed(self, setting: str, interval: Interval) -> str:
        """``input`` or ``output`` of the run of an interval: a path or a URI."""
        date = f"{interval.start.astimezone(self.zone):%Y-%m-%d}"
        text: str = getattr(self, setting)
        return text.format(date=date, start=stamp(interval.start), end=stamp(interval.end))

    def ingest_config(self, interval: Interval, place: Callable[[str], Place] = Path) -> IngestConfig:
        """What the run of an interval does.

        Args:
            interval: what it converts.
            place: what a path or a URI names; by itself this file knows folders alone.

        Raises:
            ConfigError: values that do not fit each other.
        """
        return IngestConfig(
            source=str(self.source),
            input=place(self.placed("input", interval)),
            output=place(self.placed("output", interval)),
            splits=self.splits,
            workers=self.workers,
            max_rejected=self.max_rejected,
            precision=self.precision,
            samples_per_part=self.samples_per_part,
        )


def complete(schedule: ScheduleConfig) -> None:
    """Hold the settings of a schedule against each other.

    Raises:
        ConfigError: one is missing, or two do not go together; all of it is told, a line for each.
    """
    wrong = [f"{name}: not set; every schedule needs it" for name in REQUIRED if not getattr(schedule, name)]
    if (schedule.cron is None) == (schedule.every is None):
        wrong.append("cron, every: set one of the two")
    if schedule.every is not None and parse_duration(schedule.every) < timedelta(minutes=1):
        wrong.append(f"every={schedule.every!r}: allowed is 1m or more")
    if schedule.backfill.start and schedule.start and schedule.time(schedule.backfill.start) < schedule.begins:
        wrong.append(f"backfill.start={schedule.backfill.start!r}: allowed is a time after start={schedule.start!r}")
    if not wrong:
        wrong += _ingest_problems(schedule)
    if wrong:
        raise ConfigError("\n".join(wrong))


def _ingest_problems(schedule: ScheduleConfig) -> Iterator[str]:
    try:
        schedule.ingest_config(Interval(schedule.begins, schedule.begins))
    except ConfigError as error:
        yield str(error)


def parse_duration(text: str) -> timedelta:
    """A length of time; a day has 24 hours.

    Raises:
        ConfigError: no duration.

    >>> parse_duration("90m")
    datetime.timedelta(seconds=5400)
    """
    read = _read_duration(text)
    if read is None:
        raise ConfigError(f"{text!r}: allowed is {_DURATION}")
    return read


def stamp(time: datetime) -> str:
    """A time in UTC, as part of a file name.

    >>> stamp(datetime(2026, 1, 31, 6, tzinfo=UTC))
    '20260131T060000Z'
    """
    return f"{time.astimezone(UTC):%Y%m%dT%H%M%SZ}"


def _refuse_all(wrong: Sequence[tuple[str, object, str]]) -> None:
    """Raise ConfigError with a line for each (name, value, what is allowed), if there are any."""
    if wrong:
        raise ConfigError("\n".join(f"{name}={shorten(value)}: allowed is {allowed}" for name, value, allowed in wrong))


def _read_duration(text: str) -> timedelta | None:
    match = re.fullmatch(r"([1-9]\d{0,5})([smhdw])", text, re.ASCII)
    return timedelta(**{_UNITS[match[2]]: int(match[1])}) if match else None


def _read_time(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None


def _is_zone(name: str) -> bool:
    try:
        return bool(ZoneInfo(name).key)
    except (ZoneInfoNotFoundError, ValueError, OSError):  # unknown; no name; a folder of names
        return False


def _is_cron(text: str) -> bool:
    """Whether every engine reads the line alike: they number weekdays from 0 on Sunday or on Monday, and differ on two kinds of days."""
    fields = text.lower().split()
    known = len(fields) == 5 and all(re.fullmatch(form, one) for form, one in zip(_CRON_FIELDS, fields, strict=True))
    return known and "*" in (fields[2], fields[4])


def _is_placed(text: str) -> bool:
    try:
        found = [(name, form, how) for _, name, form, how in string.Formatter().parse(text) if name is not None]
    except ValueError:
        return False
    return all(name in PLACEHOLDERS and not form and how is None for name, form, how in found)


def is_address(text: str) -> bool:
    """Whether a text is an http or https URL without user and password."""
    try:
        parts = urlsplit(text)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.username is None and parts.password is None
