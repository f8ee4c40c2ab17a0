"""Adding to a USD file: whoever reads meanwhile or after a kill finds the file as it was, or as it is."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pxr import Sdf, Tf, Usd

from scenemill.schemas.errors import SourceError
from scenemill.trainers.usd import appending as module
from scenemill.trainers.usd.appending import appending
from scenemill.trainers.usd.arrays import to_value
from scenemill.trainers.usd.stages import open_grown

HEAD = 88


def points(iteration: int, count: int = 500) -> Any:
    return np.random.default_rng(iteration).standard_normal((count, 3)).astype(np.float32)


def add(path: Path, iteration: int, count: int = 500) -> None:
    with appending(path) as layer:
        prim = Sdf.CreatePrimInLayer(layer, "/item")
        prim.specifier, prim.typeName = Sdf.SpecifierDef, "Mesh"
        found = layer.GetAttributeAtPath("/item.points")
        attribute = found or Sdf.AttributeSpec(prim, "points", Sdf.ValueTypeNames.Point3fArray)
        layer.SetTimeSample(attribute.path, iteration, to_value("point3f[]", points(iteration, count)))


def held(data: bytes, folder: Path) -> dict[float, Any]:
    """What a file of these bytes holds, in a layer of its own."""
    path = folder / f"copy_{random.getrandbits(64)}.usd"
    path.write_bytes(data)
    layer = Sdf.Layer.OpenAsAnonymous(str(path))
    times = layer.ListTimeSamplesForPath("/item.points")
    return {number: np.array(layer.QueryTimeSample("/item.points", number)) for number in times}


def same(found: dict[float, Any], iterations: int, count: int = 500) -> bool:
    return list(found) == list(range(iterations)) and all(
        np.array_equal(found[number], points(number, count)) for number in range(iterations)
    )


def test_what_is_added_is_read_and_what_was_there_stays_in_place(tmp_path: Path) -> None:
    path = tmp_path / "new" / "item.usd"
    add(path, 0)
    for iteration in range(1, 6):
        before = path.read_bytes()
        add(path, iteration)
        after = path.read_bytes()
        assert after[HEAD : len(before)] == before[HEAD:] and same(held(after, tmp_path), iteration + 1)
    assert path.read_bytes().startswith(b"PXR-USDC") and [file.name for file in path.parent.iterdir()] == ["item.usd"]


def test_a_file_cut_off_within_a_call_is_the_file_before_the_call(tmp_path: Path) -> None:
    path = tmp_path / "item.usd"
    for iteration in range(3):
        add(path, iteration)
    before = path.read_bytes()
    add(path, 3, count=100_000)  # written in several pieces
    after = path.read_bytes()
    for length in (len(before), len(before) + 1, len(before) + 5000, (len(before) + len(after)) // 2, len(after) - 1, len(after)):
        killed = before[:HEAD] + after[HEAD:length]  # the head is written last
        assert same(held(killed, tmp_path), 3)


def test_the_first_copy_of_the_structure_serves_until_the_new_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, seen = tmp_path / "item.usd", []
    for iteration in range(3):
        add(path, iteration)
    write, opened = os.pwrite, module._opened

    def watched_write(handle: int, data: bytes, at: int) -> int:
        written = write(handle, data, at)
        seen.append(path.read_bytes())
        return written

    def watched_open(place: Path) -> Any:
        layer = opened(place)
        seen.append(path.read_bytes())
        return layer

    monkeypatch.setattr(os, "pwrite", watched_write)
    monkeypatch.setattr(module, "_opened", watched_open)
    before = path.read_bytes()
    add(path, 3)
    assert len(seen) == 4 and all(same(held(data, tmp_path), 3) for data in seen)
    assert seen[-1][:HEAD] == before[:HEAD]


@contextmanager
def writer(path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that adds to a file, which is killed in the end; it has begun."""
    script = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\nfrom test_usd_appending import go_on\ngo_on({str(path)!r})"
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None and process.stdout.readline() == b"begun\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def go_on(path: str) -> None:
    """Add some hundred iterations to a file, and say so once it has begun."""
    begun = len(held(Path(path).read_bytes(), Path(path).parent)) if Path(path).exists() else 0
    for iteration in range(begun, begun + 400):
        add(Path(path), iteration)
        if iteration == begun + 1:
            print("begun", flush=True)
    time.sleep(60)


def test_a_file_is_whole_whenever_its_writer_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "item.usd"
    for attempt in range(3):
        with writer(path) as process:
            time.sleep(0.01 * attempt + random.random() * 0.05)
            process.send_signal(signal.SIGKILL)
        found = held(path.read_bytes(), tmp_path)
        assert len(found) >= 2 and same(found, len(found))


def test_another_process_reads_whole_states_while_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "item.usd"
    states: list[int] = []
    add(path, 0)
    with writer(path):
        while not states or (states[-1] < 400 and len(states) < 2000):
            layer = open_grown(Sdf.Layer.OpenAsAnonymous, path)
            number = layer.ListAllTimeSamples()[-1]
            assert np.array_equal(np.array(layer.QueryTimeSample("/item.points", number)), points(int(number)))
            states.append(layer.GetNumTimeSamplesForPath("/item.points"))
            assert number == states[-1] - 1
    assert states == sorted(states) and states[-1] > states[0]


def test_a_file_that_grows_while_it_is_opened_is_opened_again_and_a_broken_one_told(tmp_path: Path) -> None:
    """As if usd-core had measured the file before an iteration was added, and looked for the structure after it."""
    path, tries = tmp_path / "item.usd", [0]
    add(path, 0)

    def opened(name: str) -> "Sdf.Layer":
        before = path.read_bytes()
        if tries[0] < 2:
            add(path, 1 + tries[0])
            path.with_name("cut.usd").write_bytes(path.read_bytes()[: len(before)])
            name = str(path.with_name("cut.usd"))
        tries[0] += 1
        return Sdf.Layer.OpenAsAnonymous(name)

    assert open_grown(opened, path).GetNumTimeSamplesForPath("/item.points") == 3 and tries == [3]
    broken = tmp_path / "broken.usd"
    broken.write_bytes(path.read_bytes()[:-40])
    with pytest.raises((Tf.ErrorException, AttributeError)):
        open_grown(Sdf.Layer.OpenAsAnonymous, broken).ListAllTimeSamples()


def test_stages_held_in_this_process_see_what_was_added(tmp_path: Path) -> None:
    path = tmp_path / "item.usd"
    add(path, 0)
    stage = Usd.Stage.Open(str(path))
    add(path, 7)
    assert stage.GetAttributeAtPath("/item.points").GetTimeSamples() == [0, 7]
    path.unlink()
    add(path, 9)
    assert stage.GetAttributeAtPath("/item.points").GetTimeSamples() == [9]


def test_an_error_within_the_block_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "item.usd"
    with pytest.raises(KeyError), appending(path) as layer:
        Sdf.CreatePrimInLayer(layer, "/other")
        raise KeyError
    assert not path.exists()
    add(path, 0)
    stage = Usd.Stage.Open(str(path))
    with pytest.raises(KeyError), appending(path) as layer:
        Sdf.CreatePrimInLayer(layer, "/other")
        raise KeyError
    assert not stage.GetPrimAtPath("/other") and same(held(path.read_bytes(), tmp_path), 1)
    add(path, 1)
    assert same(held(path.read_bytes(), tmp_path), 2)


def test_a_text_file_becomes_binary_and_keeps_what_it_held(tmp_path: Path) -> None:
    path = tmp_path / "item.usd"
    path.write_text('#usda 1.0\ndef Mesh "item"\n{\n    point3f[] points.timeSamples = { 4: [(1, 2, 3)] }\n}\n')
    with pytest.raises(KeyError), appending(path):
        raise KeyError
    assert path.read_text().startswith("#usda")
    add(path, 5)
    found = held(path.read_bytes(), tmp_path)
    assert path.read_bytes().startswith(b"PXR-USDC") and list(found) == [4, 5] and found[4].tolist() == [[1, 2, 3]]


@pytest.mark.parametrize("data", [b"PXR-USDC", b"PXR-USDC" + bytes(80), b"PXR-USDC" + b"\xff" * 400, b"no USD at all", b""])
def test_what_is_no_usd_file_is_refused_and_left_as_it_is(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "item.usd"
    path.write_bytes(data)
    with pytest.raises(SourceError, match="move it away"), appending(path):
        pass
    assert path.read_bytes() == data
