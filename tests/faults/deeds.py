"""What the kill tests do in processes that end at a step: one function a deed, given plain values."""

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

T0: Final = datetime(2026, 1, 1, tzinfo=UTC)
COUNTED: Final = 3
"""Samples of a run whose tables are written."""


def append(folder: str, run: str) -> None:
    """Write the rows of a run, some in each table."""
    from scenemill.pipelines.tables import TABLES, append_run
    from scenemill.schemas.tables import table_of

    tables = {name: table_of(schema, rows_of(schema, run)) for name, schema in TABLES.items()}
    append_run(Path(folder), run, tables)


def rows_of(schema: Any, run: str) -> list[dict[str, Any]]:
    """Rows that a run always has in a table: every value follows from the names of run and column."""
    values = {"string": "text", "int64": 7, "int32": 7, "double": 0.5, "bool": False, "timestamp[us, tz=UTC]": T0}
    common = {column.name: values[str(column.type)] for column in schema}
    numbered = "key" if "key" in common else "store_version"
    return [{**common, "run": run, numbered: f"{run} {number}"} for number in range(COUNTED)]


def save(folder: str, step: int, key: str = "") -> None:
    """Write a checkpoint whose values follow from the step, and let the newest's link point to it."""
    import torch

    from scenemill.trainers.checkpoint import checkpoint_name, point_latest, save_checkpoint

    held = {"model.a": torch.full((200, 300), float(step)), "model.b": torch.arange(step + 5)}
    path = Path(folder) / checkpoint_name(0, step, "step")
    save_checkpoint(path, {"state_dict": held, "global_step": step, "order": [0, step]}, key)
    point_latest(Path(folder), path, "model")


def predict(root: str, value: int, keys: list[str]) -> None:
    """Write predictions of which every array holds one value."""
    import numpy as np

    from scenemill.pipelines.predictions import Prediction, write_prediction

    flat, deep = np.full((6, 8), value, np.int32), np.full((8, 8, 8), value, np.int32)
    told = Prediction(flat, {value: value}, flat.astype(np.float32), deep, {value: value}, deep.astype(np.float32))
    for key in keys:
        write_prediction(Path(root), key, told, pictures={"view.png": b"a picture of " + str(value).encode()})


def draw(folder: str, iterations: list[int]) -> None:
    """Write a cloud and a mesh at iterations of a log, each with another number of points."""
    import numpy as np

    from scenemill.trainers.timelapse import Timelapse

    log = Timelapse(folder)
    for iteration in iterations:
        points = np.arange(3.0 * (iteration + 4)).reshape(-1, 3)
        log.add_pointcloud_batch(iteration, "cloud", [points], semantic_ids=[np.arange(len(points))])
        log.add_mesh_batch(iteration, "mesh", [points], [np.array([[0, 1, 2], [1, 2, 3]])])


CONVERSION: Final = """
import json, os, pathlib, sys
sys.stdin.buffer.read(1)
folder = pathlib.Path(sys.argv[1])
with (folder / "conversions").open("a") as told:
    told.write("converted\\n")
(folder / ".store").write_text("what is converted")
(folder / ".store").replace(folder / "store")
print(json.dumps({"stored": 4, "rejected": 1, "version": "9cd5"}))
"""


def schedule(folder: str, hours: int) -> None:
    """Do what is due of an hourly schedule, a number of hours after it began; the conversion is a program that tells each of its runs."""
    from scenemill.pipelines.schedule import process as schedule_process
    from scenemill.pipelines.schedule.scheduler import Scheduler, convert_under, locked_state
    from scenemill.schemas.schedule import AlertsConfig, ScheduleConfig

    setattr(schedule_process, "_COMMAND", (sys.executable, "-c", CONVERSION, folder))  # noqa: B010 - a constant, to mypy
    alerts = AlertsConfig(ends=("succeeded",), command=("tee", "-a", f"{folder}/alerts"))
    hourly = ScheduleConfig(
        name="hourly",
        source="front3d",
        input="/raw",
        output=f"{folder}/store",
        every="1h",
        start="2026-01-01",
        catch_up="all",
        alerts=alerts,
    )
    with locked_state(Path(folder) / "state") as lock:
        Scheduler([hourly], Path(folder) / "state", convert_under(lock), lambda: T0 + timedelta(hours=hours)).run_once()


JOB: Final = """
import pathlib, sys, time
with pathlib.Path("attempts").open("a") as told:
    told.write("begun\\n")
if "slow" in sys.argv and not pathlib.Path("hurry").exists():
    time.sleep(60)
pathlib.Path(".store").write_text("what the job makes")
pathlib.Path(".store").replace("store")
"""


def serve(folder: str, create: str = "", resume: str = "", *, cancel: bool = False) -> None:
    """A service's life: something is asked of it, and it works until nothing is left to do.

    Args:
        folder: holds the service's folder, and the one root.
        create: name of a job to create; with "slow" in it, one that ends only when it is told to, or in a hurry.
        resume: id of a job.
        cancel: cancel what runs, once its command has begun.
    """
    import time

    from scenemill.pipelines.jobs import worker as jobs_worker
    from scenemill.pipelines.jobs.desk import JobDesk
    from scenemill.pipelines.jobs.roots import JobRoots
    from scenemill.pipelines.jobs.specs import Command
    from scenemill.pipelines.jobs.store import JobStore
    from scenemill.schemas.jobs import JobRequest

    def command(kind: str, spec: dict[str, Any], roots: JobRoots, own: Path, given: Any) -> Command:
        slow = ("slow",) if "slow" in spec["input"] else ()
        return Command((sys.executable, "-c", JOB, *slow), None, {"store": str(own / "results" / "store")})

    setattr(jobs_worker, "make_command", command)  # noqa: B010 - not its own, to mypy
    home, root = Path(folder) / "home", Path(folder) / "root"
    home.mkdir(exist_ok=True)
    store, roots = JobStore(home / "jobs.sqlite"), JobRoots([root], home)
    desk, worker = JobDesk(store, roots, lambda: None), jobs_worker.JobWorker(store, roots, home, 1, 5.0)
    if create:
        (root / create).mkdir(exist_ok=True)
        desk.create(JobRequest("ingest", {"source": "front3d", "input": str(root / create)}, create))
    if resume:
        desk.resume(resume)
    until = time.monotonic() + 60
    while left := store.find(("queued", "running")):
        worker.step()
        for job in left if cancel else ():
            if job.state == "running" and (roots.folder(job.id) / "results" / "attempts").exists():
                desk.cancel(job.id)
                cancel = False
        if time.monotonic() > until:
            raise SystemExit(f"not done: {left}")
        time.sleep(0.02)
