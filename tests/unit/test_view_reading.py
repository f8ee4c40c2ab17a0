"""Reading in a process of its own: whatever a file does to it, everything else is answered, and the right file is told."""

import os
import random
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from scenemill import Timelapse
from scenemill.pipelines.viewer.reading import UsdReader
from scenemill.pipelines.viewer.server import serve
from scenemill.schemas.errors import ConfigError, SourceError
from scenemill.trainers.usd import PBRMaterial
from tests.unit import view_tasks as tasks
from tests.unit.view_client import ask

QUADS = np.array([[0, 1, 2, 3], [1, 4, 5, 2]])
PLACES = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [2, 0, 0], [2, 1, 0]], np.float32)
ROOT = str(Path(__file__).parents[2])
TASKS = ("tests.unit.view_tasks",)
FULL = os.environ.get("SCENEMILL_FULL") == "1"


@pytest.fixture(scope="module")
def tasks_are_found() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", ROOT)
        yield


@pytest.fixture(scope="module")
def reader(tasks_are_found: None) -> Iterator[UsdReader]:
    reader = UsdReader(TASKS, limit_s=3)
    yield reader
    reader.close()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "good.usd").write_bytes(b"good")
    return tmp_path / "good.usd"


def sibling(file: Path, name: str, content: bytes) -> Path:
    file.with_name(name).write_bytes(content)
    return file.with_name(name)


def test_a_function_is_called_with_what_was_given_in_one_other_process(reader: UsdReader, file: Path) -> None:
    assert reader.ask(tasks.given, file, 1, "two", three=[3]) == ("good.usd", (1, "two"), {"three": [3]})
    assert reader.ask(tasks.process, file) == reader.ask(tasks.process, file) != os.getpid()
    np.testing.assert_array_equal(reader.ask(tasks.draw, file, 7), tasks.draw(file, 7))
    assert reader.ask(tasks.shout, file) == reader.ask(tasks.size, file) == 4


def test_errors_that_are_meant_come_back_as_they_are(reader: UsdReader, file: Path) -> None:
    before = reader.ask(tasks.process, file)
    with pytest.raises(ConfigError, match=r"^no such item; give another$"):
        reader.ask(tasks.refuse, file)
    assert reader.verdict(file) == "" and reader.ask(tasks.process, file) == before


def test_an_answer_orders_nothing(reader: UsdReader, file: Path) -> None:
    with pytest.raises(SourceError, match=r"no readable USD file at .*good\.usd"):
        reader.ask(tasks.order, file)
    assert not file.with_suffix(".done").exists()
    tasks.order(file).__reduce__()[0](file.with_suffix(".done"))
    assert file.with_suffix(".done").is_dir()  # it would have been carried out


def test_a_file_that_ends_its_reader_is_told_and_not_read_again_until_it_changes(reader: UsdReader, file: Path) -> None:
    bad = sibling(file, "bad.usd", b"bad")
    asked_before = reader.ask(tasks.process, file)
    for _ in range(3):
        with pytest.raises(SourceError, match=r"no readable USD file at .*/bad\.usd \(reading it ends the process: SIGABRT\)"):
            reader.ask(tasks.die_if_bad, bad)
        assert reader.ask(tasks.die_if_bad, file) == 4
    readers = bad.with_suffix(".log").read_text().split()
    assert len(set(readers)) == len(readers) == 2 and readers[0] == str(asked_before)  # a new one has been asked too, and no third
    assert "SIGABRT" in reader.verdict(bad) and reader.verdict(file) == ""
    bad.write_bytes(b"mended")
    assert reader.verdict(bad) == "" and reader.ask(tasks.die_if_bad, bad) == 6


def test_a_file_is_not_blamed_for_what_another_did_to_the_process(tasks_are_found: None, file: Path) -> None:
    reader, other = UsdReader(TASKS), sibling(file, "other.usd", b"other")
    assert reader.ask(tasks.die_as_second, file) == 4 and reader.ask(tasks.die_as_second, other) == 5
    assert reader.verdict(file) == reader.verdict(other) == ""
    reader.close()


@pytest.mark.parametrize(
    ("read", "given", "limit_s", "told"),
    [
        (tasks.hang, (), 0.5, "takes more than 0.5 s"),
        (tasks.fill, (1 << 30,), 30, "takes too much memory"),
        (tasks.stumble, (), 30, "IndexError: list index out of range"),
    ],
)
def test_time_memory_and_what_nobody_foresaw_are_faults_of_the_file(
    tasks_are_found: None, file: Path, read: Callable[..., Any], given: tuple[int, ...], limit_s: float, told: str
) -> None:
    reader, bad = UsdReader(TASKS, limit_s, limit_byte=1 << 28), sibling(file, "bad.usd", b"")
    with pytest.raises(SourceError, match=told):
        reader.ask(read, bad, *given)
    assert told in reader.verdict(bad) and reader.verdict(file) == ""
    reader.close()
    reader = UsdReader(TASKS, limit_byte=1 << 28)
    assert reader.ask(tasks.fill, file, 1 << 27) == 1  # half of the limit
    reader.close()


def test_a_child_ends_when_nobody_asks_and_when_it_is_closed_and_questions_begin_another(tasks_are_found: None, file: Path) -> None:
    reader = UsdReader(TASKS, idle_s=0.1)
    first = psutil.Process(reader.ask(tasks.process, file))
    assert first.wait(20) in (0, None)  # of itself
    second = psutil.Process(reader.ask(tasks.process, file))
    reader.close()
    assert second.pid != first.pid and not second.is_running()
    assert reader.ask(tasks.size, file) == 4
    reader.close()


def test_an_interrupted_question_leaves_no_answer_for_the_next(
    tasks_are_found: None, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: Any) -> None:
        raise KeyboardInterrupt

    reader = UsdReader(TASKS)
    assert reader.ask(tasks.size, file) == 4
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("scenemill.pipelines.viewer.reading._Answers.load", interrupt)
        reader.ask(tasks.given, file)
    assert reader.ask(tasks.size, file) == 4
    reader.close()


def test_many_threads_each_get_their_own_answers(reader: UsdReader, file: Path) -> None:
    found: dict[int, float] = {}

    def ask_often(seed: int) -> None:
        found[seed] = sum(float(reader.ask(tasks.draw, file, seed + turn)[0, 0]) for turn in range(5))

    threads = [threading.Thread(target=ask_often, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {seed: sum(float(tasks.draw(file, seed + turn)[0, 0]) for turn in range(5)) for seed in range(6)}


def test_a_script_that_serves_is_not_run_again_and_takes_its_reader_along_when_it_ends(tmp_path: Path) -> None:
    Timelapse(tmp_path / "log").add_pointcloud_batch(0, "p", [PLACES])
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
            import sys, urllib.request
            print("begun", flush=True)
            from scenemill.pipelines.viewer.server import serve
            from scenemill.pipelines.viewer.reading import READER
            from tests.unit.view_tasks import process
            from pathlib import Path
            viewer = serve(sys.argv[1])
            scene = f"{viewer.url}api/scene?root=log&item=pointcloud/p/0"
            print(urllib.request.urlopen(scene).status, READER.ask(process, Path(sys.argv[1])))
            viewer.close()
        """)
    )
    environment = {**os.environ, "PYTHONPATH": ROOT}
    command = [sys.executable, str(script), str(tmp_path / "log")]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=100, cwd=tmp_path, env=environment)
    begun, told = done.stdout.splitlines()
    assert (done.returncode, done.stderr, begun, told.split()[0]) == (0, "", "begun", "200")
    assert not psutil.pid_exists(int(told.split()[1]))


def write_log(folder: Path) -> None:
    """A file of every kind, with all that it may have, at two iterations."""
    random_ = np.random.default_rng(3)
    materials = {"painted": PBRMaterial(diffuse_texture=torch.rand(3, 4, 4)), "red": PBRMaterial(diffuse_color=(0.9, 0.0, 0.0))}
    with Timelapse(folder) as log:
        for iteration in (0, 10):
            log.add_mesh_batch(
                iteration,
                "m",
                [PLACES + iteration],
                [QUADS],
                [PLACES[:, :2]],
                [QUADS],
                materials_list=[materials],
                semantic_ids_list=[np.array([3, 5])],
            )
            points = random_.normal(size=(200, 3)).astype(np.float32)
            log.add_pointcloud_batch(iteration, "p", [points], colors=[points.clip(0, 1)], semantic_ids=[np.arange(200)])
            log.add_voxelgrid_batch(iteration, "v", [random_.random((6, 6, 6)) > 0.5])


def flip(data: bytes, chance: random.Random) -> bytes:
    """A file with one to eight bits turned, half of them in its tables, which stand at the end."""
    damaged = bytearray(data)
    for _ in range(chance.choice([1, 1, 2, 8])):
        start = chance.choice([0, 2 * len(data) // 3])
        damaged[chance.randrange(start, len(data))] ^= 1 << chance.randrange(8)
    return bytes(damaged)


def write_damaged(log: Path, each: int) -> list[str]:
    """Damaged files of every kind beside the whole ones: their items."""
    chance = random.Random(5)
    wholes = sorted(log.rglob("*_0.usd"))
    assert len(wholes) == 3
    items = []
    for whole in wholes:
        kind, data = whole.stem.removesuffix("_0"), whole.read_bytes()
        for number in range(1, each + 1):
            whole.with_name(f"{kind}_{number}.usd").write_bytes(flip(data, chance))
            items.append(f"{kind}/{whole.parent.name}/{number}")
    return items


@pytest.mark.full
def test_whatever_bytes_are_damaged_the_viewer_answers_and_all_else_stays_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scenemill.trainers.timelapse_parser._PAUSES_S", ())
    reader = UsdReader(limit_s=5)
    monkeypatch.setattr("scenemill.pipelines.viewer.log.READER", reader)
    write_log(tmp_path / "log")
    damaged = write_damaged(tmp_path / "log", 300 if FULL else 70)
    wholes = ["mesh/m/0", "pointcloud/p/0", "voxelgrid/v/0"]
    with serve(tmp_path / "log", poll_s=0.1) as viewer:

        def show(item: str, time_: float) -> Any:
            return ask(viewer.url, "/api/scene", {"root": "log", "item": item, "time": time_})

        right = [show(item, 10).frame[1] for item in wholes]
        told = {each["item"]: each["error"] for each in ask(viewer.url, "/api/index").json["roots"][0]["items"]}
        assert told.keys() == {*wholes, *damaged}
        outcomes = set()
        for turn, item in enumerate(damaged):
            answers = [show(item, time_) for time_ in (0, 10)]
            is_told = bool(told[item]) and "takes more than" not in told[item]  # a busy machine may be too slow once, and not again
            outcomes |= {(is_told, answer.status) for answer in answers}
            assert all(answer.error["what"] for answer in answers if answer.status != 200)
            np.testing.assert_equal(show(wholes[turn % 3], 10 + turn).frame[1], right[turn % 3])  # another time is not from memory
        assert outcomes == {(False, 200), (False, 422), (True, 422)}
        assert not any(told[item] for item in wholes) and ask(viewer.url, "/api/health").status == 200
    reader.close()
