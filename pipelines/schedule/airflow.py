"""Schedules as Airflow DAGs: the files that ``scenemill schedule`` runs, handed to an engine of many machines.

A file in Airflow's folder of DAGs holds these three lines; each schedule becomes a DAG of its name:

    # an Airflow DAG file
    from scenemill.pipelines.schedule.airflow import load_dags
    load_dags("/srv/schedules", globals(), command=("/srv/scenemill/bin/scenemill",))

A run of a DAG is one task: it calls scenemill's command line, in scenemill's own environment, with the end of the run's interval.
Airflow's environment needs this package without its dependencies. Written for Airflow 3.3, against ``airflow.sdk`` alone.
"""

import subprocess
from collections.abc import MutableMapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from scenemill.pipelines.schedule.alerts import has_address, send_alert
from scenemill.pipelines.schedule.files import load_schedules
from scenemill.schemas.schedule import ScheduleConfig, parse_duration

if TYPE_CHECKING:
    from airflow.sdk import DAG, Context

_ENDS: Final = {"failure": "failed", "success": "succeeded"}  # of a task in Airflow's words, and in those of a schedule's file


def load_dags(folder: Path | str, names: MutableMapping[str, Any], command: Sequence[str] = ("scenemill",)) -> None:
    """Make a DAG of every schedule, and give it a name where Airflow looks for it.

    Args:
        folder: of schedules, or the file of one.
        names: ``globals()`` of the file in Airflow's folder.
        command: what starts scenemill's command line: a path into its environment, and arguments if it takes some.

    Raises:
        ConfigError: something is wrong in a file; Airflow shows it as an import error.
    """
    for path, schedule in load_schedules(Path(folder)).items():
        names[schedule.name] = make_dag(path.resolve(), schedule, command)


def make_dag(path: Path, schedule: ScheduleConfig, command: Sequence[str]) -> "DAG":
    """The DAG of one schedule.

    Args:
        path: of its file, as the workers see it.
        schedule: what the file says.
        command: what starts scenemill's command line there.
    """
    from airflow.sdk import DAG, CronDataIntervalTimetable, DeltaDataIntervalTimetable, task

    timetable = (
        CronDataIntervalTimetable(schedule.cron, schedule.timezone)
        if schedule.cron is not None
        else DeltaDataIntervalTimetable(parse_duration(str(schedule.every)))
    )
    with DAG(
        schedule.name,
        schedule=timetable,
        start_date=schedule.begins,
        catchup=schedule.catch_up == "all",
        max_active_runs=1,
        tags=["scenemill", str(schedule.source)],
        doc_md=_about(path, schedule),
    ) as dag:
        told = {f"on_{end}_callback": _teller(schedule, state) for end, state in _ENDS.items() if _is_told(schedule, state)}

        def convert(at: str) -> None:
            subprocess.run([*command, "schedule", "convert", str(path), "--at", at], check=True)

        delay, length = parse_duration(schedule.retry_delay), parse_duration(schedule.timeout) if schedule.timeout else None
        make_task = task(retries=schedule.retries, retry_delay=delay, execution_timeout=length, **told)
        make_task(convert)("{{ (dag_run.data_interval_end or dag_run.run_after).isoformat() }}")
    return dag


def _is_told(schedule: ScheduleConfig, state: str) -> bool:
    return state in schedule.alerts.ends and has_address(schedule.alerts)


def _teller(schedule: ScheduleConfig, state: str) -> Any:
    def tell(context: "Context") -> None:
        print(f"alert: {send_alert(schedule.alerts, _document(schedule, state, context))}")

    return tell


def _document(schedule: ScheduleConfig, state: str, context: "Context") -> dict[str, object]:
    """What is told; the interval and the figures are in Airflow's own records, under the name of the run."""
    run = context["run_id"]
    return {"schedule": schedule.name, "run": run, "state": state, "text": f"scenemill {schedule.name} {run}: {state}"}


def _about(path: Path, schedule: ScheduleConfig) -> str:
    lines = [f"`{path}`: {schedule.source}, from `{schedule.input}` into `{schedule.output}`."]
    if schedule.backfill.start:
        span = f"--from-date {schedule.backfill.start} --to-date {schedule.backfill.end}"
        lines.append(f"Its backfill: `airflow backfill create --dag-id {schedule.name} {span}`")
    return "\n\n".join(lines)
