"""The tour of the README, command by command, as a user runs it."""

import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from PIL import Image

import scenemill
from scenemill.pipelines.cli import main


def scenemill_command(*arguments: object, expect: int = 0) -> str:
    """In a process of its own in the long form; in this one in the short form, since nearly all the time goes into starts."""
    words, told = list(map(str, arguments)), {**os.environ, "COLUMNS": "160", "NO_COLOR": "1"}
    if os.environ.get("SCENEMILL_FULL") == "1":
        command = [sys.executable, "-m", "scenemill.pipelines.cli", *words]
        done = subprocess.run(command, capture_output=True, text=True, env=told, check=False)
        code, out, err = done.returncode, done.stdout, done.stderr
    else:
        code, out, err = run_here(words, told)
    assert code == expect, out + err
    return out + err if expect else out


def run_here(words: list[str], told: dict[str, str]) -> tuple[int, str, str]:
    """Exit code, output and errors of a command."""
    with (
        mock.patch.dict(os.environ, told),
        mock.patch.object(sys, "argv", ["scenemill", *words]),
        redirect_stdout(io.StringIO()) as out,
        redirect_stderr(io.StringIO()) as err,
        pytest.raises(SystemExit) as ended,
    ):
        main()
    return int(ended.value.code or 0), out.getvalue(), err.getvalue()


def machine(*arguments: object, expect: int = 0) -> Any:
    return json.loads(scenemill_command(*arguments, "--json", expect=expect))


@pytest.mark.parametrize(
    "source",
    [
        "front3d",
        *(pytest.param(name, marks=pytest.mark.full) for name in ("matterport", "synthetic_hospital", "synthetic_warehouse")),
    ],
)
def test_the_tour_works_for_every_source(source: str, tmp_path: Path) -> None:
    raw, store = tmp_path / "raw", tmp_path / "store"
    made = machine("synth", source, raw, "--scenes", 3, "--views", 2, "--seed", 3, "--grid", 64)
    assert made["views"] == 6
    flags = ("--input", raw, "--output", store, "--workers", 2, "--samples-per-part", 2)
    forecast = machine("plan", source, *flags)
    assert (forecast["listed"], forecast["new"], not store.exists()) == (6, 6, True)
    checked = machine("validate", source, "--input", raw, "--report", tmp_path / "report")
    assert (checked["listed"], checked["passed"], checked["rejected"]) == (6, 6, 0)
    assert (tmp_path / "report" / "docs" / "index.html").is_file()
    outcome = machine("ingest", source, *flags)
    assert (outcome["outcome"], outcome["listed"], outcome["stored"], outcome["rejected"]) == ("published", 6, 6, 0)
    assert 0.7 < forecast["stored_byte"] / outcome["stored_byte"] < 1.4
    assert machine("ingest", source, *flags)["outcome"] == "unchanged"
    assert machine("plan", source, *flags)["new"] == 0
    assert machine("verify", store)["broken"] == []
    facts = machine("show", store)
    assert (facts["stored"], facts["source"], facts["grid"], facts["splits"]) == (6, source, 64, {"train": 2, "val": 2, "test": 2})
    key = scenemill.open_store(store).keys[0]
    assert machine("show", store, key, "--png", tmp_path / "sheet.png")["key"] == key
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width >= 1000 and len(np.unique(np.asarray(sheet.convert("L")))) > 50
    listed = machine("versions", store)
    assert [row["version"] for row in listed] == [outcome["version"]]
    assert listed[0]["published"] is not None
    assert machine("clean", store)["paths"] == []


def test_a_person_sees_a_receipt_and_what_was_rejected(front3d_world: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    scenemill_command("synth", "front3d", raw, "--scenes", 1, "--views", 3, "--grid", 64)
    broken = next((raw / "data").glob("*/segmentation_*.npz"))
    broken.write_bytes(broken.read_bytes()[:2000])
    said = scenemill_command("ingest", "front3d", "--input", raw, "--output", tmp_path / "store")
    assert "3 in = 2 stored + 1 rejected" in said
    assert "segmentation" in said and "error" in said
    assert "1 rejected" in scenemill_command("validate", "front3d", "--input", raw, expect=3)
    assert "nothing was published" in scenemill_command(
        "ingest", "front3d", "--input", raw, "--output", tmp_path / "strict", "--max-rejected", "10%", expect=3
    )
    assert "2 stored, 1 rejected" in scenemill_command("show", tmp_path / "store")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("ingest", "front3d", "--input", "no/such/folder", "--output", "x"), "no such folder"),
        (("ingest", "kitti", "--input", ".", "--output", "x"), "source 'kitti' is not known"),
        (("ingest", "front3d", "--output", "x"), "--input"),
        (("show", "no/such/store"), "nothing published here"),
        (("mock-checkpoints", "s3://mill/log"), "this needs a folder on a disk"),
        (("card", "store", "--out", "gs://mill/card.md"), "this needs a folder on a disk"),
        (("schedule", "run", "gs://mill/schedules", "--once"), "this needs a folder on a disk"),
        (("verify", "no/such/store"), "nothing published here"),
        (("validate", "front3d", "--input", ".", "--max-rejected", "many"), "give a share such as 1%"),
        (("frobnicate",), "No such command"),
    ],
)
def test_wrong_input_exits_2_and_says_what_to_do(
    arguments: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in scenemill_command(*arguments, expect=2)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
@pytest.mark.full
def test_memory_does_not_grow_with_the_number_of_samples(tmp_path: Path) -> None:
    scenemill_command("synth", "front3d", tmp_path / "raw", "--scenes", 4, "--views", 4, "--grid", 128)
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from scenemill.pipelines.ingest import ingest\n"
        "from scenemill.schemas.config import IngestConfig\n"
        "ingest(IngestConfig('front3d', Path(sys.argv[1]), Path(sys.argv[2]), limit=int(sys.argv[3]), samples_per_part=4))\n"
        "status = Path('/proc/self/status').read_text()\n"  # not getrusage: its peak is handed down by the process that forked
        "print(int(status.split('VmHWM:')[1].split()[0]) / 1024)"
    )
    peaks = []
    for limit in (8, 16):
        command = [sys.executable, "-c", script, str(tmp_path / "raw"), str(tmp_path / f"store{limit}"), str(limit)]
        peaks.append(float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1]))
    assert max(peaks) < 600
    assert peaks[1] < 1.1 * peaks[0]
