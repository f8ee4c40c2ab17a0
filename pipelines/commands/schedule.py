"""The commands of schedules: run what is due, see what was, pause, and catch up on the past."""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scenemill.schemas.errors import ConfigError

if TYPE_CHECKING:
    from scenemill.pipelines.schedule.runs import RunTable
    from scenemill.schemas.schedule import ScheduleConfig

schedule = typer.Typer(help="Conversions by the clock: a YAML file each, run on this machine or by Airflow.", no_args_is_help=True)

Where = Annotated[Path, typer.Argument(help="Folder of schedules, or the file of one.")]
Name = Annotated[str, typer.Argument(help="Name of a schedule.")]
State = Annotated[
    Path | None, typer.Option(help="Folder of the scheduler's memory and logs. Default: .scenemill beside the files.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document for machines.")]
_INTERRUPTED = 130  # of the shell, for a command that was stopped from the keyboard


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.add_typer(schedule, name="schedule")


@schedule.command()
def run(
    where: Where,
    state: State = None,
    once: Annotated[bool, typer.Option("--once", help="Do what is due now, then leave; for timers of the system.")] = False,
    at_once: Annotated[int, typer.Option(min=1, help="Conversions at a time, each of another schedule and store.")] = 1,
) -> None:
    """Do what is due, when it is due. It may be killed at any time: started again, it goes on where it was."""
    from scenemill.pipelines.schedule.files import load_schedules
    from scenemill.pipelines.schedule.scheduler import Scheduler, convert_under, locked_state

    schedules = list(load_schedules(where).values())
    folder = _state(where, state)
    with locked_state(folder) as lock:
        scheduler = Scheduler(schedules, folder, convert_under(lock), on_event=_log)
        if once:
            if "failed" in scheduler.run_once():
                raise typer.Exit(3)
            return
        try:
            scheduler.run(at_once)
        except KeyboardInterrupt:
            _log("stopped; what was under way is run again at the next start")
            os._exit(_INTERRUPTED)  # conversions end with this process, not this process with them


@schedule.command("list")
def list_schedules(where: Where, state: State = None, as_json: AsJson = False) -> None:
    """List the schedules, when each is due next, and how its newest run went. Says what is wrong in the files."""
    from scenemill.pipelines.schedule.clock import utc_now
    from scenemill.pipelines.schedule.files import load_schedules
    from scenemill.pipelines.schedule.scheduler import open_runs

    loaded, runs = load_schedules(where), open_runs(_state(where, state))
    rows = [{"file": str(path), **_row(one, runs, utc_now())} for path, one in loaded.items()]
    if as_json:
        print(json.dumps(rows, default=str))
    else:
        columns = ("name", "when", "next_due", "last_run", "state")
        headings = ("name", "when", "next due (UTC)", "last run from", "state")
        _print_table(headings, [[_cell(row[column]) for column in columns] for row in rows])


def _row(one: "ScheduleConfig", runs: "RunTable", now: datetime) -> dict[str, Any]:
    from scenemill.pipelines.schedule.times import next_due

    newest = runs.history(one.name, 1)
    return {
        "name": one.name,
        "when": f"{one.cron} {one.timezone}" if one.cron else f"every {one.every}",
        "next_due": "paused" if one.name in runs.paused() else next_due(one, now),
        "last_run": newest[0].interval_start if newest else None,
        "state": newest[0].state if newest else None,
    }


@schedule.command()
def history(
    where: Where,
    name: Annotated[str | None, typer.Argument(help="Name of a schedule. Default: all.")] = None,
    state: State = None,
    limit: Annotated[int, typer.Option(min=1, help="At most this many runs, the newest intervals first.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List the runs: interval, outcome, counts, version of the store, seconds, and why one failed."""
    from scenemill.pipelines.schedule.scheduler import came_to, open_runs

    found = open_runs(_state(where, state)).history(name, limit)
    if as_json:
        print(json.dumps([asdict(one) for one in found], default=str))
        return
    if not found:
        typer.echo(f"0 runs{f' of {name}' if name else ''}; scenemill schedule run {where} does what is due")
    for one in found:
        tries = f", {one.attempt} tries" if one.attempt > 1 else ""
        typer.echo(f"{one.schedule}  {_cell(one.interval_start)} to {_cell(one.interval_end)} UTC  {one.state}{tries}")
        if words := came_to(one):
            typer.echo(f"    {words}")


@schedule.command()
def pause(where: Where, name: Name, state: State = None) -> None:
    """Let a schedule rest: nothing of it becomes due or begins until it is resumed."""
    _switch(where, name, state, "pause")


@schedule.command()
def resume(where: Where, name: Name, state: State = None) -> None:
    """Let a paused schedule go on; what it missed is made up for as its catch_up says."""
    _switch(where, name, state, "resume")


def _switch(where: Path, name: str, state: Path | None, verb: str) -> None:
    from scenemill.pipelines.schedule.scheduler import open_runs

    _named(where, name)
    getattr(open_runs(_state(where, state)), verb)(name)
    typer.echo(f"{name}: {verb}d")


@schedule.command()
def backfill(
    where: Where,
    name: Name,
    since: Annotated[
        str,
        typer.Option(
            "--from", help="The first interval begins then or later: 2026-01-31, or 2026-01-31T03:00; in the schedule's timezone."
        ),
    ],
    until: Annotated[str, typer.Option("--to", help="The last interval is over by then; written as --from.")],
    state: State = None,
    again: Annotated[bool, typer.Option("--again", help="Also runs that succeeded, not only failed and skipped ones.")] = False,
) -> None:
    """Queue the runs of past intervals; the scheduler does them after what is due."""
    from scenemill.pipelines.schedule.clock import utc_now
    from scenemill.pipelines.schedule.scheduler import open_runs, queue_backfill

    one = _named(where, name)
    states = ("failed", "skipped", *(("succeeded",) if again else ()))
    queued = queue_backfill(open_runs(_state(where, state)), one, one.time(since), one.time(until), utc_now(), states)
    typer.echo(f"{name}: {queued} run{'' if queued == 1 else 's'} queued")


@schedule.command()
def convert(
    file: Annotated[Path, typer.Argument(help="The file of a schedule.")],
    at: Annotated[
        str, typer.Option(help="The newest interval that is over then is converted: a time such as 2026-01-31T03:00. Default: now.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Convert one interval here and now, without the scheduler's memory: what other engines call."""
    from rich.console import Console

    from scenemill.pipelines.ingest import ingest
    from scenemill.pipelines.progress import log_lines
    from scenemill.pipelines.reports.human import print_outcome
    from scenemill.pipelines.schedule.clock import utc_now
    from scenemill.pipelines.schedule.files import load_schedule
    from scenemill.pipelines.schedule.times import latest_interval
    from scenemill.transforms.objects import place_of

    one = load_schedule(file)
    interval = latest_interval(one, one.time(at) if at else utc_now())
    if interval is None:
        raise ConfigError(f"{file}: no interval is over at {at or 'this time'}; the first begins at {one.start}")
    config = one.ingest_config(interval, place_of)
    outcome = ingest(config, log_lines)
    assert config.output is not None
    if as_json:
        figures = {name: getattr(outcome, name) for name in ("outcome", "version", "stored", "rejected", "new", "seconds")}
        print(json.dumps({"store": str(config.output), **asdict(interval), **figures}, default=str))
    else:
        print_outcome(Console(), config.output, outcome)


def _named(where: Path, name: str) -> "ScheduleConfig":
    from scenemill.pipelines.schedule.files import load_schedules

    named = {one.name: one for one in load_schedules(where).values()}
    if name not in named:
        raise ConfigError(f"schedule {name!r} is not known; there are {', '.join(named)}")
    return named[name]


def _state(where: Path, state: Path | None) -> Path:
    if not where.exists():
        raise ConfigError(f"{where}: not there; name a folder of schedules, or the file of one")
    return state or (where.parent if where.is_file() else where) / ".scenemill"


def _log(line: str) -> None:
    from scenemill.pipelines.schedule.clock import utc_now

    print(f"{utc_now():%Y-%m-%d %H:%M:%S}Z  {line}", file=sys.stderr, flush=True)


def _cell(value: object) -> str:
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M}"
    if value is None:
        return ""
    return str(value)


def _print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    Console().print(table)
