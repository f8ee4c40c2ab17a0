"""When the intervals of a schedule end and begin. The maths of cron lines, timezones and lengths is APScheduler's."""

from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from scenemill.schemas.errors import ConfigError
from scenemill.schemas.schedule import Interval, ScheduleConfig, parse_duration

if TYPE_CHECKING:
    from apscheduler.triggers.base import BaseTrigger

_FIRST_LOOK: Final = timedelta(hours=1)


def make_trigger(schedule: ScheduleConfig) -> "BaseTrigger":
    """What fires when an interval ends and the next begins.

    Raises:
        ConfigError: the cron line has numbers out of range, or names no time that ever comes.
    """
    from apscheduler.triggers.cron import CronTrigger
    from apscheduler.triggers.interval import IntervalTrigger

    if schedule.every is not None:
        return IntervalTrigger(
            seconds=int(parse_duration(schedule.every).total_seconds()), start_date=schedule.begins, timezone=UTC
        )
    try:
        trigger = CronTrigger.from_crontab(str(schedule.cron).lower(), timezone=schedule.zone)
    except ValueError as error:
        raise ConfigError(f"schedule {schedule.name}: cron={schedule.cron!r}: {error}") from error
    if trigger.get_next_fire_time(None, schedule.begins) is None:
        raise ConfigError(f"schedule {schedule.name}: cron={schedule.cron!r} never comes; see the day and the month")
    return trigger


def intervals(schedule: ScheduleConfig, since: datetime, until: datetime) -> Iterator[Interval]:
    """The whole intervals of a schedule between two times, in order, in UTC; none begins before the schedule does.

    Args:
        schedule: whose.
        since: the first begins then or later.
        until: the last is over by then.
    """
    for start, end in pairwise(_fires(make_trigger(schedule), max(since, schedule.begins))):
        if end > until:
            return
        yield Interval(start, end)


def latest_interval(schedule: ScheduleConfig, until: datetime) -> Interval | None:
    """The newest interval that is over at a time; None before the first."""
    span = _FIRST_LOOK
    while True:  # backwards in growing steps: a trigger knows only what comes next
        since = max(schedule.begins, until - span)
        if found := deque(intervals(schedule, since, until), maxlen=1):
            return found[0]
        if since == schedule.begins:
            return None
        span *= 4


def next_due(schedule: ScheduleConfig, after: datetime) -> datetime | None:
    """When the next interval is over, in UTC; None where no further time comes."""
    trigger = make_trigger(schedule)
    first = next(_fires(trigger, schedule.begins))  # where the first interval begins: none is over then
    return next((time for time in _fires(trigger, max(after, first)) if time > max(after, first)), None)


def _fires(trigger: "BaseTrigger", since: datetime) -> Iterator[datetime]:
    time = trigger.get_next_fire_time(None, since)
    while time is not None:
        yield time.astimezone(UTC)
        time = trigger.get_next_fire_time(time, time)
