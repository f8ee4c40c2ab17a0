"""Files of schedules become settings; what is wrong with one is told by field, with what is allowed; nothing secret is told."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
import yaml

from scenemill.pipelines.schedule.files import load_schedule, load_schedules, schedule_schema
from scenemill.schemas.config import IngestConfig
from scenemill.schemas.errors import ConfigError
from scenemill.schemas.schedule import Interval, ScheduleConfig, complete, parse_duration, stamp
from scenemill.transforms.objects import place_of

LEAST = {"source": "front3d", "input": "raw", "output": "store", "cron": "0 3 * * *", "start": "2026-01-01"}


def written(folder: Path, file: str = "nightly.yaml", /, **changed: Any) -> Path:
    values = {name: value for name, value in {**LEAST, **changed}.items() if value is not None}
    (folder / file).write_text(yaml.safe_dump(values))
    return folder / file


def refusal(folder: Path, **changed: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load_schedule(written(folder, **changed))
    return str(caught.value)


def test_a_file_of_five_lines_is_a_schedule(tmp_path: Path) -> None:
    schedule = load_schedule(written(tmp_path))
    assert (schedule.name, schedule.source, schedule.cron, schedule.every) == ("nightly", "front3d", "0 3 * * *", None)
    assert (schedule.input, schedule.output) == (str(tmp_path / "raw"), str(tmp_path / "store"))
    assert schedule.begins == datetime(2026, 1, 1, tzinfo=UTC)
    assert (schedule.catch_up, schedule.overlap, schedule.retries, schedule.alerts.ends) == ("latest", "wait", 2, ("failed",))


def test_dates_and_times_need_no_quotes(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(
        "source: front3d\ninput: raw\noutput: store\nevery: 6h\nstart: 2026-01-01 06:00:00\ntimezone: Asia/Tokyo\n"
        "backfill: {start: 2026-01-02, end: 2026-01-03}\n"
    )
    schedule = load_schedule(path)
    assert schedule.begins.astimezone(UTC) == datetime(2025, 12, 31, 21, tzinfo=UTC)
    assert (schedule.backfill.start, schedule.backfill.end) == ("2026-01-02", "2026-01-03")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"source": "scannet"}, "source='scannet': allowed is 'front3d'"),
        ({"source": None}, "source: not set"),
        ({"start": None, "input": None}, "input: not set"),
        ({"cron": None}, "cron, every: set one of the two"),
        ({"every": "6h"}, "cron, every: set one of the two"),
        ({"cron": None, "every": "6 hours"}, "every='6 hours': allowed is a whole number with s, m, h, d or w"),
        ({"cron": None, "every": "30s"}, "every='30s': allowed is 1m or more"),
        ({"cron": "0 3 * *"}, "cron='0 3 * *': allowed is minute, hour, day, month and weekday"),
        ({"cron": "0 3 * * 1"}, "weekdays by name"),
        ({"cron": "0 3 1 * mon"}, "not beside days of the month"),
        ({"cron": "0 3 last * *"}, "cron='0 3 last"),
        ({"timezone": "Berlin"}, "timezone='Berlin': allowed is a name such as Europe/Berlin"),
        ({"timezone": "../etc/passwd"}, "timezone='../etc/passwd'"),
        ({"start": "soon"}, "start='soon': allowed is a date or a time"),
        ({"output": "out/{day}"}, "output='out/{day}': allowed is a path"),
        ({"output": "out/{date.__class__}"}, "output='out/{date.__class__}'"),
        ({"output": "out/{date:>{start}}"}, "allowed is a path"),
        ({"output": "out/{"}, "output='out/{'"),
        ({"name": "a b"}, "name='a b': allowed is letters"),
        ({"name": "../a"}, "name='../a'"),
        ({"catch_up": "none"}, "catch_up='none': allowed is 'latest', 'all'"),
        ({"overlap": "kill"}, "overlap='kill': allowed is 'wait', 'skip'"),
        ({"retries": -1}, "retries=-1: allowed is 0..100"),
        ({"retry_delay": "5"}, "retry_delay='5'"),
        ({"timeout": "0m"}, "timeout='0m'"),
        ({"max_rejected": 1.5}, "max_rejected is 1.5; give a share from 0.0 to 1.0"),
        ({"max_rejected": -1}, "max_rejected=-1: allowed is a share"),
        ({"source": "views", "precision": "float16"}, "only volumes of rooms have another"),
        ({"backfill": {"start": "2026-01-01"}}, "backfill.end='': allowed is a time"),
        ({"backfill": {"start": "2025-01-01", "end": "2026-01-01"}}, "backfill.start='2025-01-01': allowed is a time after start"),
        ({"alerts": {"ends": ["never"]}}, "alerts.ends=['never']: allowed is 'failed', 'skipped', 'succeeded'"),
        (
            {"alerts": {"webhook": "https://a.example/x", "webhook_env": "HOOK"}},
            "alerts.webhook_env='HOOK': allowed is null beside",
        ),
        ({"alerts": {"command": "rm -rf"}}, "alerts.command='rm -rf': allowed is a list of texts"),
        ({"colour": "red"}, "colour: no such setting"),
    ],
)
def test_what_is_wrong_is_told_by_field_with_what_is_allowed(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    told = refusal(tmp_path, **changed)
    assert said in told
    assert told.startswith(str(tmp_path / "nightly.yaml"))


@pytest.mark.parametrize("webhook", ["ftp://s3cr3t.example/x", "https://me:s3cr3t@a.example", "${S3CR3T_s3cr3t}", "s3cr3t", 5])
def test_a_wrong_webhook_is_refused_without_showing_it(tmp_path: Path, webhook: Any) -> None:
    told = refusal(tmp_path, alerts={"webhook": webhook})
    assert "alerts.webhook: allowed is an http or https URL" in told
    assert "s3cr3t" not in told


def test_all_that_is_wrong_in_a_folder_is_told_at_once(tmp_path: Path) -> None:
    written(tmp_path, "a.yaml", cron="x", timezone="y")
    written(tmp_path, "b.yaml", source=None)
    written(tmp_path, "c.yaml")
    with pytest.raises(ConfigError) as caught:
        load_schedules(tmp_path)
    assert [word in str(caught.value) for word in ("cron='x'", "timezone='y'", "b.yaml: source", "c.yaml")] == [
        True,
        True,
        True,
        False,
    ]


def test_files_are_read_in_the_order_of_their_names_and_names_are_given_once(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no schedule")
    paths = [written(tmp_path, "b.yml"), written(tmp_path, "a.yaml", name="first")]
    assert [schedule.name for schedule in load_schedules(tmp_path).values()] == ["first", "b"]
    assert list(load_schedules(paths[0])) == [paths[0]]
    written(tmp_path, "c.yaml", name="b")
    with pytest.raises(ConfigError, match="name='b' is that of"):
        load_schedules(tmp_path)


def test_an_empty_folder_is_said_aloud(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="0 schedules; expected a file, or a folder with files"):
        load_schedules(tmp_path)


def test_a_run_converts_the_folders_of_its_interval() -> None:
    schedule = ScheduleConfig(
        source="matterport",
        input="/in/{date}",
        output="/out/{start}/{end}",
        timezone="America/New_York",
        splits=("train",),
        workers=3,
        max_rejected=0.25,
    )
    interval = Interval(datetime(2026, 7, 2, 2, 30, tzinfo=UTC), datetime(2026, 7, 3, 2, 30, tzinfo=UTC))
    assert schedule.ingest_config(interval) == IngestConfig(
        "matterport",
        Path("/in/2026-07-01"),  # the evening before, in New York
        Path("/out/20260702T023000Z/20260703T023000Z"),
        splits=("train",),
        workers=3,
        max_rejected=0.25,
    )


def test_braces_in_the_name_of_the_folder_are_no_placeholders(tmp_path: Path) -> None:
    folder = tmp_path / "{odd} name"
    folder.mkdir()
    schedule = load_schedule(written(folder, output="{date}/store"))
    made = schedule.ingest_config(Interval(schedule.begins, schedule.begins + timedelta(days=1)))
    assert (made.input, made.output) == (folder / "raw", folder / "2026-01-01" / "store")


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_folders_in_buckets_are_as_good_and_have_placeholders_too(tmp_path: Path, scheme: str) -> None:
    schedule = load_schedule(written(tmp_path, input=f"{scheme}://mill/raw/{{date}}", output=f"{scheme}://mill/stores//"))
    made = schedule.ingest_config(Interval(schedule.begins, schedule.begins + timedelta(days=1)), place_of)
    assert (made.input, made.output) == (place_of(f"{scheme}://mill/raw/2026-01-01"), place_of(f"{scheme}://mill/stores"))


@pytest.mark.parametrize("uri", ["http://mill/raw", "s3://mill/../raw", "s3://mill/a#b", "file:///raw"], ids=lambda uri: uri[:12])
@pytest.mark.parametrize("setting", ["input", "output"])
def test_a_uri_that_names_no_folder_is_refused_when_the_file_is_read(tmp_path: Path, setting: str, uri: str) -> None:
    told = refusal(tmp_path, **{setting: uri})
    assert told.startswith(f"{tmp_path / 'nightly.yaml'}: {setting}={uri!r}: ")


def test_a_share_and_a_count_stay_what_they_are(tmp_path: Path) -> None:
    shares = [load_schedule(written(tmp_path, max_rejected=value)).max_rejected for value in (1, 1.0, 0.01, None)]
    assert [(type(value), value) for value in shares] == [(int, 1), (float, 1.0), (float, 0.01), (type(None), None)]


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("5m", 300), ("6h", 21600), ("2d", 172800), ("1w", 604800)])
def test_durations_are_read(text: str, seconds: int) -> None:
    assert parse_duration(text).total_seconds() == seconds


def test_stamps_are_in_utc() -> None:
    schedule = ScheduleConfig(timezone="Asia/Kolkata")
    assert stamp(schedule.time("2026-01-01T05:30")) == "20260101T000000Z"
    assert stamp(schedule.time("2026-01-01T05:30+01:00")) == "20260101T043000Z"
    with pytest.raises(ConfigError, match="'noon': allowed is a date"):
        schedule.time("noon")


def test_the_json_schema_agrees_with_the_reader(tmp_path: Path) -> None:
    validator = jsonschema.Draft202012Validator(json.loads(json.dumps(schedule_schema())))
    fine: list[dict[str, Any]] = [
        {},
        {"cron": None, "every": "1d"},
        {"retries": 5, "alerts": {"ends": ["failed", "skipped"]}},
        {"max_rejected": 0.5},
    ]
    wrong: list[dict[str, Any]] = [
        {"every": "1d"},
        {"cron": None},
        {"source": "x"},
        {"retries": 101},
        {"start": None},
        {"colour": 1},
    ]
    for changed in fine:
        load_schedule(written(tmp_path, **changed))
    for changed in wrong:
        refusal(tmp_path, **changed)
    judged = [
        validator.is_valid({name: value for name, value in {**LEAST, **changed}.items() if value is not None})
        for changed in (*fine, *wrong)
    ]
    assert judged == [True] * len(fine) + [False] * len(wrong)


def test_a_complete_schedule_passes_and_stays_as_it_is(tmp_path: Path) -> None:
    schedule = load_schedule(written(tmp_path))
    complete(schedule)
    with pytest.raises(ConfigError, match=r"^output: not set"):
        complete(replace(schedule, output=""))
