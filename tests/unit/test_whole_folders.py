"""Folders that are written whole or not at all."""

import os
import signal
import time
from pathlib import Path

import pytest

from scenemill.schemas.errors import ConfigError, Conflict
from scenemill.transforms.whole_folders import whole_folder


def test_folder_has_its_name_when_all_is_written(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "below" / "out") as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "file").write_text("x")
        assert not (tmp_path / "below" / "out").exists()
    assert (tmp_path / "below" / "out" / "sub" / "file").read_text() == "x"
    assert [path.name for path in (tmp_path / "below").iterdir()] == ["out"]


def test_empty_folder_is_taken_and_a_full_one_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with whole_folder(tmp_path / "out") as folder:
        (folder / "file").write_text("x")
    with pytest.raises(ConfigError, match="not an empty folder"), whole_folder(tmp_path / "out"):
        pytest.fail("entered")


def test_failure_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), whole_folder(tmp_path / "out") as folder:
        (folder / "file").write_text("x")
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == []


def test_second_writer_is_refused_while_the_first_writes(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "out") as folder:
        (folder / "file").write_text("x")
        with pytest.raises(Conflict, match="another process is writing"), whole_folder(tmp_path / "out"):
            pytest.fail("entered")
    assert (tmp_path / "out" / "file").read_text() == "x"


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        with whole_folder(tmp_path / "out") as folder:
            (folder / "left").mkdir()
            (folder / "left" / "over").write_text("x")
            (folder / "link").symlink_to(tmp_path)
            time.sleep(60)
    until = time.monotonic() + 30
    while not (tmp_path / ".out.unfinished" / "link").is_symlink() and time.monotonic() < until:
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert not (tmp_path / "out").exists()
    with whole_folder(tmp_path / "out") as folder:
        (folder / "file").write_text("y")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["file"]
