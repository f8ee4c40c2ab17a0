"""Schedules by a real Airflow: its import of the DAGs, runs of them by the command line of this environment, and their alerts.

Needs Airflow in an environment of its own, which SCENEMILL_AIRFLOW names; "make airflow" makes it. See docs/scheduling.md.
"""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from scenemill.transforms.store import open_store

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = os.environ.get("SCENEMILL_AIRFLOW", "")
pytestmark = pytest.mark.skipif(not ENVIRONMENT, reason="no Airflow: name an environment with it by SCENEMILL_AIRFLOW")

IMPORTED = """
import json, sys
from airflow.dag_processing.dagbag import DagBag
bag = DagBag(sys.argv[1])
facts = {
    name: [dag.timetable.serialize() if hasattr(dag.timetable, "serialize") else str(dag.timetable), dag.catchup, dag.max_active_runs]
    + [[task.task_id, task.retries, task.retry_delay.total_seconds(), task.execution_timeout.total_seconds()] for task in dag.tasks]
    for name, dag in bag.dags.items()
}
print("TOLD" + json.dumps({"dags": facts, "errors": list(bag.import_errors.values())}, default=str))
"""
RUN = """
import json, sys
from datetime import datetime
from airflow.dag_processing.dagbag import DagBag
dag = DagBag(sys.argv[1]).dags[sys.argv[2]]
run = dag.test(logical_date=datetime.fromisoformat(sys.argv[3]) if sys.argv[3] else None)
print("TOLD" + json.dumps(str(run.state)))
"""


class Airflow:
    """An Airflow with a database and a folder of DAGs of its own."""

    def __init__(self, home: Path) -> None:
        self.dags, self.schedules = home / "dags", home / "schedules"
        self.dags.mkdir(parents=True)
        self.schedules.mkdir()
        command = (sys.executable, "-m", "scenemill.pipelines.cli")
        (self.dags / "scenemill_dags.py").write_text(
            '"""An Airflow DAG file."""\nfrom scenemill.pipelines.schedule.airflow import load_dags\n'
            f"load_dags({str(self.schedules)!r}, globals(), command={command!r})\n"
        )
        self._environment = os.environ | {
            "AIRFLOW_HOME": str(home),
            "AIRFLOW__CORE__DAGS_FOLDER": str(self.dags),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        }
        self._call("-m", "airflow", "db", "migrate")

    def _call(self, *args: str) -> str:
        python = str(Path(ENVIRONMENT).resolve() / "bin" / "python")
        done = subprocess.run([python, *args], env=self._environment, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        return done.stdout

    def ask(self, script: str, *args: str) -> Any:
        """What a script in Airflow's environment tells."""
        (line,) = [line for line in self._call("-c", script, str(self.dags), *args).splitlines() if line.startswith("TOLD")]
        return json.loads(line.removeprefix("TOLD"))

    def write(self, name: str, raw: Path, more: str) -> None:
        text = f"source: front3d\ninput: {raw}\noutput: ../stores/{name}/{{date}}\nstart: 2026-01-01\n"
        (self.schedules / f"{name}.yaml").write_text(text + more)


@pytest.fixture(scope="module")
def airflow(tmp_path_factory: pytest.TempPathFactory, front3d_world: Path) -> Airflow:
    home = tmp_path_factory.mktemp("airflow")
    made = Airflow(home)
    tell = f"[{sys.executable}, -c, \"import sys; open(sys.argv[1], 'w').write(sys.stdin.read())\", {home / 'told.json'}]"
    made.write("nightly", front3d_world, "cron: 0 3 * * *\ntimezone: Europe/Berlin\ncatch_up: all\ntimeout: 2h\n")
    made.write("often", front3d_world, "every: 6h\nretries: 0\ntimeout: 1h\n")
    made.write("bad", home / "nothing", f"every: 1d\nretries: 0\ntimeout: 1h\nalerts: {{command: {tell}}}\n")
    return made


def stores(airflow: Airflow, name: str) -> list[str]:
    return sorted(path.name for path in (airflow.schedules.parent / "stores" / name).glob("*"))


def newest_quarter() -> str:
    """The day on which the newest quarter of a day began that is over."""
    now = datetime.now(UTC)
    return f"{now - timedelta(hours=now.hour % 6 + 6):%Y-%m-%d}"


def test_every_schedule_is_a_dag_as_its_file_says(airflow: Airflow) -> None:
    told = airflow.ask(IMPORTED)
    assert told["errors"] == []
    dags = told["dags"]
    assert set(dags) == {"nightly", "often", "bad"}
    assert "0 3 * * *" in str(dags["nightly"][0]) and "Europe/Berlin" in str(dags["nightly"][0])
    assert dags["nightly"][1:] == [True, 1, ["convert", 2, 300.0, 7200.0]]
    assert dags["often"][1:] == [False, 1, ["convert", 0, 300.0, 3600.0]]


def test_a_run_converts_its_interval_by_the_command_line(airflow: Airflow) -> None:
    """The run of the 5th is that of the night before: it ends at 3 o'clock in Berlin."""
    assert airflow.ask(RUN, "nightly", "2026-01-05T02:00:00+00:00") == "success"
    assert stores(airflow, "nightly") == ["2026-01-04"]
    assert open_store(airflow.schedules.parent / "stores" / "nightly" / "2026-01-04").keys


def test_a_run_by_hand_converts_the_newest_interval(airflow: Airflow) -> None:
    before = newest_quarter()
    assert airflow.ask(RUN, "often", "") == "success"
    assert stores(airflow, "often")[0] in (before, newest_quarter())


def test_a_run_that_fails_is_failed_and_told(airflow: Airflow) -> None:
    assert airflow.ask(RUN, "bad", "2026-01-05T00:00:00+00:00") == "failed"
    told = json.loads((airflow.schedules.parent / "told.json").read_text())
    assert (told["schedule"], told["state"]) == ("bad", "failed")


def test_a_broken_file_is_an_import_error_that_says_what_is_wrong(airflow: Airflow) -> None:
    broken = airflow.schedules / "broken.yaml"
    broken.write_text("source: front3d\ncron: each day\n")
    try:
        (error,) = airflow.ask(IMPORTED)["errors"]
    finally:
        broken.unlink()
    assert "cron='each day': allowed is minute, hour, day" in error
