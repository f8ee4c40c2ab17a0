"""What a person meets at the terminal: how a command is stopped, hushed, coloured, completed and cut off by a pipe."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from scenemill.transforms.store import open_store
from scenemill.transforms.worlds import write_world

COMMAND = (sys.executable, "-m", "scenemill.pipelines.cli")
PLAIN = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")} | {"COLUMNS": "100"}


def run(*arguments: object, env: Mapping[str, str] = PLAIN) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, env=env, check=False)


def completed(words: str, count: int) -> list[str]:
    """What the shell would offer for the word with this number."""
    asked = {"_SCENEMILL_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(count)}
    code = "import sys; from scenemill.pipelines.cli import app; sys.argv = ['scenemill']; app(prog_name='scenemill')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=PLAIN | asked, check=False)
    return done.stdout.split()


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("terminal") / "raw"
    write_world("front3d", folder, scenes=2, views=4, seed=2, grid=64)
    return folder


@pytest.fixture(scope="module")
def store(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stores") / "store"
    done = run("--quiet", "ingest", "front3d", "--input", raw, "--output", folder, "--samples-per-part", 1)
    assert (done.returncode, done.stderr) == (0, "")
    assert "8 in = 8 stored" in done.stdout
    return folder


def test_ctrl_c_ends_an_ingest_and_its_workers_in_one_line_and_the_next_run_goes_on(raw: Path, store: Path, tmp_path: Path) -> None:
    out = tmp_path / "store"
    ingest = (*COMMAND, "ingest", "front3d", "--input", raw, "--output", out, "--samples-per-part", "1", "--workers", "2")
    with subprocess.Popen(
        ingest, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=PLAIN, start_new_session=True
    ) as process:
        deadline = time.monotonic() + 120
        while not list(out.glob("parts/*/receipt.json")) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert said.splitlines()[-1] == "Stopped: what is finished is kept; run the same command again to go on"
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    finished = len(list(out.glob("parts/*/receipt.json")))
    again = run("ingest", "front3d", "--input", raw, "--output", out, "--samples-per-part", 1, "--json")
    assert json.loads(again.stdout)["parts_built"] == 8 - finished < 8
    assert open_store(out).version == open_store(store).version


def test_ctrl_c_ends_a_command_that_keeps_nothing_in_one_line(tmp_path: Path) -> None:
    with subprocess.Popen(
        [*COMMAND, "synth", "front3d", tmp_path / "raw", "--scenes", "300"], stderr=subprocess.PIPE, text=True, env=PLAIN
    ) as process:
        while not (tmp_path / "raw").exists():
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60)[1].splitlines() == ["Stopped: by Ctrl+C"]
    assert process.returncode == 130


def test_quiet_leaves_errors_and_results_alone(store: Path) -> None:
    assert run("-q", "verify", store).stderr == ""
    assert "Verifying parts" in run("verify", store).stderr
    assert "NotPublished" in run("-q", "verify", store.parent / "none").stderr


def test_verbose_says_where_an_error_came_from_and_stays_an_error_of_the_caller(tmp_path: Path) -> None:
    plain, verbose = run("show", tmp_path), run("--verbose", "show", tmp_path)
    assert plain.returncode == verbose.returncode == 2
    assert "Traceback" not in plain.stderr and "in open_store" in verbose.stderr
    assert verbose.stderr.splitlines()[-1] == plain.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("env", "coloured"),
    [({}, False), ({"FORCE_COLOR": "1"}, True), ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False)],
    ids=["piped", "forced", "refused"],
)
def test_colours_are_for_terminals_and_those_who_ask(env: dict[str, str], coloured: bool, tmp_path: Path) -> None:
    assert ("\x1b[1;31m" in run("show", tmp_path, env=PLAIN | env).stderr) is coloured


def test_a_pipe_that_is_closed_early_is_no_error(store: Path) -> None:
    done = subprocess.run(
        ["bash", "-c", 'set -o pipefail; "$@" | head -c 1; echo; exit ${PIPESTATUS[0]}', "bash", *COMMAND, "show", store],
        capture_output=True,
        text=True,
        env=PLAIN,
        check=False,
    )
    assert done.stderr == "" and done.returncode in (0, 1)


def test_a_place_that_cannot_be_written_is_named_without_a_traceback() -> None:
    done = run("synth", "front3d", "/proc/raw")
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert done.stderr.startswith("ConfigError: /proc/raw: ")


def test_a_shell_completes_sources_experiments_and_keys(store: Path) -> None:
    assert completed("scenemill ingest m", 2) == ["matterport"]
    assert completed("scenemill train -e tiny_front", 3) == ["tiny_front3d_2d", "tiny_front3d_3d"]
    assert completed(f"scenemill show {store} ", 3) == open_store(store).keys
    assert completed(f"scenemill show {store}/none ", 3) == []


def test_no_verb_shows_the_first_three_to_try() -> None:
    shown = run().stdout
    for verb in ("synth", "ingest", "show"):
        assert f"\n   scenemill {verb} " in shown


def test_a_verb_typed_wrong_is_answered_with_the_right_one() -> None:
    done = run("ingst")
    assert (done.returncode, "Did you mean 'ingest'?" in done.stderr) == (2, True)
