"""Results in a bucket: what a run writes arrives whole, the next run goes on from it on any machine, and of two runs one counts."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

pytest.importorskip("obstore", reason="obstore is not installed: pip install 'scenemill[cloud]'")
pytest.importorskip("moto", reason="moto is not installed: pip install 'moto[server]'")

from scenemill.pipelines.mirrored import OWNER, Results, results_at
from scenemill.schemas.errors import ConfigError, Conflict, TransientError
from scenemill.schemas.places import Remote
from scenemill.schemas.steps import STEPS
from scenemill.transforms import object_clients, objects
from scenemill.transforms.objects import place_of
from tests.unit.object_services import SECRET, Fault, Proxy, environment, used_by_proxy

WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from tests.unit.test_mirrored import go_on
from scenemill.pipelines.mirrored import results_at
from scenemill.transforms.objects import place_of
with results_at(place_of(sys.argv[1]), Path(sys.argv[2])) as results:
    go_on(results)
"""
"""A run in a process of its own."""


@pytest.fixture(params=["s3", pytest.param("gs", marks=pytest.mark.full)])
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def net(services: dict[str, str], scheme: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    with used_by_proxy(monkeypatch, services[scheme]) as between:
        yield between


@pytest.fixture
def place(net: Proxy, scheme: str) -> Remote:
    found = place_of(f"{scheme}://mill/{uuid4().hex[:8]}")
    assert isinstance(found, Remote)
    return found


def go_on(results: Results, steps: int = 3) -> None:
    """A run in small: checkpoints whose bytes follow from those of before, a log that grows, a link to the newest; sent after each."""
    latest, log = results.folder / "model_latest.pth", results.folder / "logs" / "log.txt"
    log.parent.mkdir(exist_ok=True)
    done = int(latest.read_text()[-1]) if latest.exists() else 0
    for step in range(done + 1, steps + 1):
        path = results.folder / f"model_{step}.pth"
        path.write_text((latest.read_text() if latest.exists() else "weights ") + str(step))
        with log.open("a") as file:
            file.write(f"step {step}\n")
        latest.unlink(missing_ok=True)
        latest.symlink_to(path.name)
        (results.folder / ".half").write_text("under way")
        results.send_meanwhile()


def held_by(place: Remote) -> dict[str, bytes]:
    """All objects of results but for the owner's."""
    return {path.below(place): path.read_bytes() for path in place.walk() if path.name != OWNER}


CHECKPOINTS = {f"model_{step}.pth": b"weights " + b"123"[:step] for step in (1, 2, 3)}
WHOLE = CHECKPOINTS | {"logs/log.txt": b"step 1\nstep 2\nstep 3\n"}


def test_another_machine_finds_what_was_written_and_sends_what_is_new_alone(place: Remote, net: Proxy, tmp_path: Path) -> None:
    net.faults += [
        Fault("PUT", "model_1", "slow down", times=2),
        Fault("PUT", "model_2", "cut"),
        Fault("PUT", OWNER, "lose answer"),
    ]
    net.faults += [Fault("PUT", "log.txt", "lose answer", times=2), Fault("HEAD", "", "slow down"), Fault("GET", "", "slow down")]
    with results_at(place, tmp_path / "one") as results:
        go_on(results)
        (results.folder / "tables").mkdir()
        (results.folder / "tables" / "rows").write_text("go elsewhere")
    assert held_by(place) == WHOLE
    assert results.tables == place / "tables"
    assert all(fault.times == 0 for fault in net.faults)
    net.faults.append(Fault("GET", "model_2", "cut answer"))
    net.requests.clear()
    with results_at(place, tmp_path / "two") as results:
        assert (results.folder / "model_latest.pth").readlink() == Path("model_3.pth")
        assert (results.folder / "logs/log.txt").read_bytes() == WHOLE["logs/log.txt"]
        go_on(results, 4)
        (results.folder / "model_1.pth").unlink()
    assert sorted(held_by(place)) == ["logs/log.txt", "model_2.pth", "model_3.pth", "model_4.pth"]
    assert net.count("PUT", "model_4") == 1
    assert net.count("PUT", "model_3") == net.count("PUT", "model_2") == 0


@pytest.mark.full
def test_the_machine_that_wrote_last_fetches_nothing(place: Remote, net: Proxy, tmp_path: Path) -> None:
    with results_at(place, tmp_path) as results:
        go_on(results)
    net.requests.clear()
    with results_at(place, tmp_path) as results:
        go_on(results)
    assert net.count("GET", "model") == net.count("PUT", "model") == net.count("PUT", "log") == 0
    assert held_by(place) == WHOLE


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_clients, "_TRIES", 1)
    monkeypatch.setitem(object_clients._RETRIES, "max_retries", 1)


@pytest.mark.usefixtures("impatient")
def test_results_of_a_service_that_stays_away_are_kept_and_sent_by_the_next_run(
    place: Remote, net: Proxy, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    away = Fault("PUT", "model_", "slow down", times=1000)
    with (
        pytest.raises(TransientError, match=r"All results are in .*, and the same command sends them") as told,
        results_at(place, tmp_path) as results,
    ):
        net.faults.append(away)
        go_on(results)
    assert "not sent yet" in capfd.readouterr().err
    assert str(results.folder) in str(told.value) and SECRET not in str(told.value) and "AKIDOFNOBODY" not in str(told.value)
    away.times = 0
    with results_at(place, tmp_path) as results:
        assert (results.folder / "model_latest.pth").read_bytes() == WHOLE["model_3.pth"]
    assert held_by(place) == WHOLE


@pytest.mark.usefixtures("impatient")
def test_what_another_machine_went_on_without_is_put_aside(
    place: Remote, net: Proxy, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    away = Fault("PUT", "model_", "slow down", times=1000)
    with pytest.raises(TransientError), results_at(place, tmp_path / "one") as first:
        net.faults.append(away)
        go_on(first, 2)
    away.times = 0
    with results_at(place, tmp_path / "two") as second:
        go_on(second)
    for _ in range(2):
        with results_at(place, tmp_path / "one") as third:
            assert (third.folder / "model_latest.pth").read_bytes() == WHOLE["model_3.pth"]
    (aside,) = first.folder.parent.glob("*.unsent-*")
    assert (aside / "model_2.pth").read_bytes() == WHOLE["model_2.pth"] and str(aside) in capfd.readouterr().err
    assert {name: data for name, data in held_by(place).items() if "log" not in name} == {
        name: data for name, data in WHOLE.items() if "log" not in name
    }


@pytest.mark.full
def test_a_failed_run_leaves_what_it_had_and_fails_by_its_own_error(place: Remote, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), results_at(place, tmp_path) as results:
        (results.folder / "status.json").write_text("failed")
        1 / 0  # noqa: B018
    assert held_by(place) == {"status.json": b"failed"}


@pytest.mark.parametrize("scheme", ["s3", "gs"], indirect=True)
def test_a_run_whose_place_is_taken_writes_over_nothing_and_ends(place: Remote, net: Proxy, tmp_path: Path) -> None:
    with pytest.raises(Conflict, match="another run has taken this place"), results_at(place, tmp_path / "one") as first:
        go_on(first, 1)
        with results_at(place, tmp_path / "two") as second:
            go_on(second)
        go_on(first, 2)
    assert held_by(place) == WHOLE


@pytest.mark.full
def test_a_write_on_its_way_while_the_place_is_taken_counts_no_more(place: Remote, net: Proxy, tmp_path: Path) -> None:
    def take() -> None:
        with results_at(place, tmp_path / "two") as second:
            go_on(second)

    with pytest.raises(Conflict, match="another run"), results_at(place, tmp_path / "one") as first:
        go_on(first, 1)
        (first.folder / "logs/log.txt").write_text("a log of mine")
        net.faults.append(Fault("PUT", "log.txt", "slow down", before=take))
        first.send()
    assert held_by(place) == WHOLE


@pytest.mark.full
def test_a_second_run_of_this_machine_is_refused_at_once(place: Remote, tmp_path: Path) -> None:
    with results_at(place, tmp_path) as first:
        with pytest.raises(Conflict, match="another run of this machine"), results_at(place, tmp_path):
            pass
        go_on(first)
    assert held_by(place) == WHOLE


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_done(net: Proxy, scheme: str, tmp_path: Path) -> None:
    begun = False
    with pytest.raises(ConfigError, match="no such bucket") as told, results_at(place_of(f"{scheme}://nobodys/out"), tmp_path):
        begun = True
    assert not begun
    assert SECRET not in str(told.value)


@pytest.mark.parametrize(
    "said",
    [
        {"run": "a", "links": {"model_latest.pth": "../../../secret"}},
        *(
            pytest.param(said, marks=pytest.mark.full)
            for said in (
                {"run": "a", "links": {"../../x": "model"}},
                {"run": "a", "links": {"a": "/etc/passwd"}},
                {"run": "a"},
                ["a"],
            )
        ),
    ],
)
def test_what_somebody_else_wrote_there_leads_nowhere(said: object, place: Remote, tmp_path: Path) -> None:
    (place / OWNER).create(json.dumps(said).encode())
    with pytest.raises(ConfigError), results_at(place, tmp_path / "cache"):
        pass
    assert not [path for path in tmp_path.rglob("*") if path.is_symlink()]


@pytest.mark.full
def test_objects_that_were_copied_there_are_gone_on_from(place: Remote, tmp_path: Path) -> None:
    (place / "model_1.pth").create(b"weights 1")
    (place / "model_latest.pth").create(b"weights 1")
    (place / "logs/log.txt").create(b"step 1\n")
    with results_at(place, tmp_path) as results:
        go_on(results)
    assert held_by(place) == WHOLE


@pytest.mark.full
@pytest.mark.parametrize("scheme", ["s3"], indirect=True)
def test_what_one_request_cannot_carry_goes_in_several(
    place: Remote, net: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "_ONE_PUT_BYTE", 1 << 20)
    data = bytes(range(256)) * (12 << 12)
    net.faults += [Fault("PUT", "model_1.pth", "cut"), Fault("PUT", "model_1.pth", "slow down")]
    for content in (data, data[::-1]):
        with results_at(place, tmp_path) as results:
            (results.folder / "model_1.pth").write_bytes(content)
        assert held_by(place) == {"model_1.pth": content}
    assert net.count("POST", "model_1.pth") >= 4


KILLS = [
    *(pytest.param(step, marks=() if step == "result sent" else pytest.mark.full) for step in STEPS["results"]),
    *(pytest.param(f"{step}:{times}", marks=pytest.mark.full) for step in STEPS["results"][1:] for times in (2, 3)),
    *(pytest.param(f"file placed:{times}", marks=pytest.mark.full) for times in range(1, 6)),
]


@pytest.mark.parametrize("elsewhere", [False, pytest.param(True, marks=pytest.mark.full)])
@pytest.mark.parametrize("kill_at", KILLS)
def test_a_run_killed_anywhere_is_gone_on_with(kill_at: str, elsewhere: bool, place: Remote, net: Proxy, tmp_path: Path) -> None:
    variables = {**os.environ, **environment(net.url), "SCENEMILL_KILL_AT": kill_at}
    command = [sys.executable, "-c", WRITER, str(place), str(tmp_path / "one"), str(Path(__file__).parents[2])]
    assert subprocess.run(command, env=variables, check=False, timeout=120).returncode == -signal.SIGKILL
    with results_at(place, tmp_path / ("two" if elsewhere else "one")) as results:
        go_on(results)
        newest = (results.folder / "model_latest.pth").readlink()
    assert newest == Path("model_3.pth")
    held = held_by(place)
    lines = held.pop("logs/log.txt").decode().splitlines()
    assert held == CHECKPOINTS
    assert sorted(set(lines)) == ["step 1", "step 2", "step 3"]  # a step that was taken twice is told twice
