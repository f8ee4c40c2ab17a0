"""Intervals of schedules: against a walk through every minute, by arithmetic, and across changes of the clock."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Final
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scenemill.pipelines.schedule.times import intervals, latest_interval, make_trigger, next_due
from scenemill.schemas.errors import ConfigError
from scenemill.schemas.schedule import Interval, ScheduleConfig

START: Final = datetime(2026, 2, 26, 22, 17, tzinfo=UTC)
DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
FIELDS: Final = (
    ("*/20", "0", "7,37", "10-50/20"),
    ("*", "*/5", "3", "1,13,22"),
    ("*", "1", "*/2", "27-28"),
    ("*", "3", "2,3"),
    ("*", "mon", "sat,sun", "tue-thu"),
)
crons = st.tuples(*map(st.sampled_from, FIELDS)).filter(lambda cron: "*" in (cron[2], cron[4])).map(" ".join)


def of(cron: str | None = None, every: str | None = None, start: datetime = START, timezone: str = "UTC") -> ScheduleConfig:
    return ScheduleConfig(name="a", cron=cron, every=every, start=start.isoformat(), timezone=timezone)


def numbers(field: str, low: int, high: int) -> set[int]:
    """What a field of a cron line allows, read in the plainest way."""
    allowed: set[int] = set()
    for part in field.split(","):
        span, _, step = part.partition("/")
        first, _, last = span.partition("-")
        if span == "*":
            first, last = str(low), str(high)
        if not first.isdigit():
            first, last = str(DAYS.index(first)), str(DAYS.index(last)) if last else ""
        allowed |= set(range(int(first), int(last or first) + 1, int(step or 1)))
    return allowed


def walk(cron: str, since: datetime, until: datetime, zone: str) -> Iterator[datetime]:
    """Every whole minute that a cron line names, by looking at all of them."""
    minute, hour, day, month, weekday = cron.split()
    allowed = (numbers(minute, 0, 59), numbers(hour, 0, 23), numbers(day, 1, 31), numbers(month, 1, 12), numbers(weekday, 0, 6))
    time = since + timedelta(seconds=-since.second % 60)
    while time <= until:
        local = time.astimezone(ZoneInfo(zone))
        parts = (local.minute, local.hour, local.day, local.month, local.weekday())
        if all(part in fits for part, fits in zip(parts, allowed, strict=True)):
            yield time
        time += timedelta(minutes=1)


@settings(deadline=None, max_examples=60)
@given(crons, st.integers(0, 72), st.integers(0, 24 * 5), st.sampled_from(["UTC", "Asia/Kolkata", "America/New_York"]))
def test_intervals_are_those_of_a_walk_through_every_minute(cron: str, skip_h: int, hours: int, zone: str) -> None:
    since, until = START + timedelta(hours=skip_h), START + timedelta(hours=skip_h + hours)
    expected = [Interval(*pair) for pair in pairwise(walk(cron, since, until, zone))]
    assert list(intervals(of(cron, timezone=zone), since, until)) == expected


@settings(deadline=None, max_examples=60)
@given(
    st.one_of(crons.map(lambda cron: (cron, None)), st.sampled_from(["1m", "90m", "7h", "3d"]).map(lambda every: (None, every))),
    st.integers(0, 24 * 9),
)
def test_the_latest_interval_is_the_last_of_all_and_the_next_due_the_first_after(
    how: tuple[str | None, str | None], hours: int
) -> None:
    schedule, until = of(*how), START + timedelta(hours=hours)
    every = list(intervals(schedule, START, until))
    assert latest_interval(schedule, until) == (every[-1] if every else None)
    due = next_due(schedule, until)
    assert due is not None and due > until
    later = list(intervals(schedule, START, due))
    assert len(later) == len(every) + 1 and later[-1].end == due


def test_lengths_are_counted_from_the_start_on() -> None:
    found = list(intervals(of(every="7h"), START + timedelta(hours=1), START + timedelta(hours=29)))
    assert found == [Interval(START + timedelta(hours=7 * n), START + timedelta(hours=7 * n + 7)) for n in (1, 2, 3)]


def test_no_interval_begins_before_the_schedule_does() -> None:
    long_ago = START - timedelta(days=400)
    assert next(intervals(of("0 0 * * *"), long_ago, START + timedelta(days=3))).start == datetime(2026, 2, 27, tzinfo=UTC)
    assert next(intervals(of(every="1d"), long_ago, START + timedelta(days=3))).start == START
    assert latest_interval(of("0 0 * * *"), START) is None
    assert next_due(of("0 0 * * *"), long_ago) == datetime(2026, 2, 28, tzinfo=UTC)


def test_a_year_of_days_has_one_short_and_one_long_one_where_clocks_change() -> None:
    """Source: clocks in Berlin go forward on 29 March 2026 and back on 25 October 2026."""
    schedule = of("0 12 * * *", start=datetime(2026, 1, 1, tzinfo=UTC), timezone="Europe/Berlin")
    found = list(intervals(schedule, schedule.begins, datetime(2027, 1, 1, tzinfo=UTC)))
    lengths = {interval.end.date().isoformat(): (interval.end - interval.start) // timedelta(hours=1) for interval in found}
    assert {day: hours for day, hours in lengths.items() if hours != 24} == {"2026-03-29": 23, "2026-10-25": 25}
    assert len(found) == 364


def test_an_hour_that_the_clock_leaves_out_or_has_twice_makes_intervals_without_gap_or_overlap() -> None:
    schedule = of("30 2 * * *", start=datetime(2026, 1, 1, tzinfo=UTC), timezone="Europe/Berlin")
    found = list(intervals(schedule, schedule.begins, datetime(2027, 1, 1, tzinfo=UTC)))
    assert all(one.end == other.start and one.start < one.end for one, other in pairwise(found))
    twice = [interval for interval in found if interval.end - interval.start == timedelta(hours=1)]
    assert [interval.end for interval in twice] == [datetime(2026, 10, 25, 1, 30, tzinfo=UTC)]  # the hour that comes twice


@pytest.mark.parametrize("cron", ["61 * * * *", "* 25 * * *", "* * 0 * *", "* * * 13 *", "* * * * monday", "5-1 * * * *"])
def test_a_line_with_numbers_out_of_range_is_refused(cron: str) -> None:
    with pytest.raises(ConfigError, match="schedule a: cron="):
        make_trigger(of(cron))


def test_a_day_that_never_comes_is_refused() -> None:
    with pytest.raises(ConfigError, match="never comes"):
        make_trigger(of("0 0 30 2 *"))


def test_the_latest_of_many_years_of_minutes_is_found_without_a_walk_through_them() -> None:
    schedule = of("* * * * *", start=datetime(2001, 1, 1, tzinfo=UTC))
    assert latest_interval(schedule, START) == Interval(START - timedelta(minutes=1), START)
