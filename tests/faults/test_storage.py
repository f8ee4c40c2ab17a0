"""A disk that fails at any call, fills up, is read-only, writes short, lies, or loses power: a clear end, nothing half, and the next run
comes to the same bytes."""

import errno
import itertools
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
import torch

from scenemill.pipelines.predictions import read_prediction
from scenemill.pipelines.tables import read_table
from scenemill.schemas.errors import ConfigError, Corrupt, NotPublished, SourceError, StoreError
from scenemill.trainers.checkpoint import find_resume, load_checkpoint
from scenemill.transforms.store import open_store
from scenemill.transforms.verify import verify_store
from tests.faults.conftest import Mill
from tests.faults.disk import CHANGES, Call, compile_disk, losses, read_journal
from tests.faults.quick import QuickMill, error_of, quick_mill
from tests.forked import Done

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("gcc") is None, reason="the failing disk is Linux's, and compiled by gcc"
)

ERRORS: Final = (errno.EIO, errno.ENOSPC, errno.EROFS)
YOUR_INPUT: Final = 2
FULL: Final = pytest.mark.full


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_disk(tmp_path_factory.mktemp("disk"))


@pytest.fixture(scope="module")
def quick(disk: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[QuickMill]:
    with quick_mill(tmp_path_factory.mktemp("logs"), disk, "torch") as made:
        yield made


@pytest.fixture(scope="module")
def half(quick: QuickMill, front3d_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of one split; tests must not change it."""
    store = tmp_path_factory.mktemp("half") / "store"
    done = quick.build(front3d_world, store, "--splits", "train")
    assert done.code == 0, done.said
    return store


@pytest.fixture(scope="module")
def recorded(
    quick: QuickMill, half: Path, front3d_world: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[Call]]:
    """The store with all splits, by a run that added to ``half``; and all that the run did to the disk."""
    folder = tmp_path_factory.mktemp("whole")
    store = Path(shutil.copytree(half, folder / "store"))
    (folder / "journal").mkdir()
    done = quick.build(front3d_world, store, journal=folder / "journal")
    assert done.code == 0, done.said
    return store, read_journal(folder / "journal", store)


def fails_clearly(done: Done, number: int) -> bool:
    """Whether a command ended with one error of the disk and no traceback."""
    return done.code == YOUR_INPUT and error_of(done).startswith("ConfigError") and os.strerror(number) in error_of(done)


def places(calls: list[Call], letter: str) -> int:
    """How many calls of a kind a run made."""
    return sum(CHANGES.get(call.kind) == letter for call in calls)


SHORT_FAULTS: Final = (("w", 0.9), ("r", 1.0))
FAULTS: Final = [
    *SHORT_FAULTS,
    *(pytest.param(letter, step / 12, marks=FULL) for letter, step in itertools.product("cwsrlum", range(13))),
]


@pytest.mark.parametrize(("letter", "share"), FAULTS)
@pytest.mark.parametrize("count", [pytest.param(1, marks=FULL, id="once"), pytest.param(0, id="for ever")])
def test_failing_call_of_an_ingest_is_told_and_the_next_run_completes(
    letter: str,
    share: float,
    count: int,
    quick: QuickMill,
    half: Path,
    recorded: tuple[Path, list[Call]],
    front3d_world: Path,
    tmp_path: Path,
) -> None:
    whole, calls = recorded
    store = Path(shutil.copytree(half, tmp_path / "store"))
    first = 1 + round(share * (places(calls, letter) - 1))
    number = random.Random(f"{letter} {share} {count}").choice(ERRORS)
    done = quick.build(front3d_world, store, fail=f"{number}:{first}:{count}", calls=letter)
    assert done.code == 0 or fails_clearly(done, number), done.said
    assert Mill.published(store) in (Mill.published(half), Mill.published(whole))
    again = quick.build(front3d_world, store)
    assert again.code == 0, again.said
    assert Mill.sums_of(store) == Mill.sums_of(whole)


def test_disk_that_writes_short_and_slowly_comes_to_the_same_bytes(
    quick: QuickMill, half: Path, recorded: tuple[Path, list[Call]], front3d_world: Path, tmp_path: Path
) -> None:
    store = Path(shutil.copytree(half, tmp_path / "store"))
    done = quick.build(front3d_world, store, short=1, slow_us=200)
    assert done.code == 0, done.said
    assert Mill.sums_of(store) == Mill.sums_of(recorded[0])


def end_of(calls: list[Call]) -> range:
    """The last calls of a run, from those on that publish."""
    named = [number for number, call in enumerate(calls) if call.kind == "renamed" and call.other == "zarr.json"]
    return range(named[-1] - 4, len(calls) + 1)


@pytest.mark.parametrize("ordered", [True, False], ids=["journal", "POSIX"])
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=FULL) for seed in range(1, 5))])
def test_reader_sees_the_old_store_or_the_new_one_after_any_loss_of_power(
    ordered: bool, seed: int, half: Path, recorded: tuple[Path, list[Call]], tmp_path: Path
) -> None:
    whole, calls = recorded
    old, new = Mill.published(half), Mill.published(whole)
    swapped = end_of(calls)[4]
    every = [*range(0, swapped, 150 if seed == 0 else 1), *end_of(calls)]
    seen = [(done, Mill.published(left)) for done, left in losses(half, calls, every, tmp_path, seed, ordered=ordered)]
    assert {version for done, version in seen if done <= swapped} == {old}
    assert {version for _, version in seen} == {old, new}
    assert seen[-1] == (len(calls), new)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=FULL) for seed in range(1, 60))])
def test_run_after_a_loss_of_power_comes_to_the_same_bytes(
    seed: int, quick: QuickMill, half: Path, recorded: tuple[Path, list[Call]], front3d_world: Path, tmp_path: Path
) -> None:
    whole, calls = recorded
    place = random.Random(seed).randrange(len(calls))
    for done, left in losses(half, calls, [place], tmp_path, seed, ordered=seed % 2 == 1):
        again = quick.build(front3d_world, left)
        assert again.code == 0, (done, again.said)
        assert Mill.sums_of(left) == Mill.sums_of(whole)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=FULL) for seed in range(1, 40))])
def test_what_a_lying_disk_lost_is_noticed_and_never_read_as_other_values(
    seed: int, half: Path, recorded: tuple[Path, list[Call]], tmp_path: Path
) -> None:
    """Flushes that do nothing: what was published may be gone, but no reader takes the rest for it."""
    whole, calls = recorded
    lied = [call for call in calls if "flushed" not in call.kind]
    true = open_store(whole)
    for _, left in losses(half, lied, [len(lied)], tmp_path, seed, ordered=seed % 2 == 1):
        try:
            opened = open_store(left)
            keys = opened.keys
        except StoreError:
            continue
        read = 0
        for key in keys:
            try:
                assert opened.read(key) == true.read(key)
                read += 1
            except StoreError:
                assert verify_store(left).broken
        assert read == len(keys) or verify_store(left).broken


@pytest.mark.parametrize("how", ["flip", "cut"])
@pytest.mark.parametrize("number", [3, *(pytest.param(number, marks=FULL) for number in (1, 2, *range(4, 77)))])
def test_read_that_lies_is_noticed(how: str, number: int, quick: QuickMill, recorded: tuple[Path, list[Call]]) -> None:
    """One of the 76 reads of a verification gives other bits, or fewer bytes: it is told, or read again."""
    store, _ = recorded
    done = quick.act("verify", store, "--json", root=store, read=f"{how}:{number}")
    assert done.code in (YOUR_INPUT, 3) or how == "cut", done.said
    assert "Traceback" not in done.said


def seen_runs(folder: Path) -> set[str]:
    try:
        return {run for run in read_table(folder, "scores")["run"].to_pylist() if run in ("first", "second")}
    except NotPublished:
        return set()


@pytest.fixture(scope="module")
def metrics(quick: QuickMill, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[Call], list[Call]]:
    """Metric tables before and after a second run, and what the first and the second did to the disk."""
    folder = tmp_path_factory.mktemp("metrics")
    done: list[list[Call]] = []
    for name, run in (("one", "first"), ("two", "second")):
        (folder / f"journal of {name}").mkdir()
        if name == "two":
            shutil.copytree(folder / "one", folder / "two")
        ended = quick.act("metrics", folder / name, run, root=folder / name, journal=folder / f"journal of {name}")
        assert ended.code == 0, ended.said
        done.append(read_journal(folder / f"journal of {name}", folder / name))
    return folder / "one", folder / "two", done[0], done[1]


@pytest.mark.parametrize("ordered", [True, False], ids=["journal", "POSIX"])
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=FULL) for seed in range(1, 40))])
@pytest.mark.parametrize("which", [0, 1], ids=["first run", "second run"])
def test_metric_tables_are_completed_after_any_loss_of_power(
    which: int,
    seed: int,
    ordered: bool,
    quick: QuickMill,
    metrics: tuple[Path, Path, list[Call], list[Call]],
    tmp_path: Path,
) -> None:
    one, two, first, second = metrics
    before, after, calls, run = (one, two, second, "second") if which else (None, one, first, "first")
    earlier = {"first"} if which else set()
    rng = random.Random(f"{seed} {which} {ordered}")
    scores = [number for number, call in enumerate(calls) if call.kind == "linked" and "scores/" in call.other]
    wanted = {len(calls), scores[-1] + 1, *(rng.randrange(len(calls)) for _ in range(2))}
    for done, left in losses(before, calls, sorted(wanted), tmp_path, seed, ordered=ordered):
        try:
            assert seen_runs(left) in (earlier, earlier | {run})
            assert done < len(calls) or seen_runs(left) == earlier | {run}
        except Corrupt as error:
            assert done < len(calls) and "again" in str(error)
        again = quick.act("metrics", left, run)
        assert again.code == 0, (done, again.said)
        assert seen_runs(left) == earlier | {run}
        assert read_table(left, "scores").sort_by("run").equals(read_table(after, "scores").sort_by("run"))


@pytest.mark.parametrize(
    ("letter", "number"),
    [("l", 2), ("w", 4), *(pytest.param(letter, number, marks=FULL) for letter in "cwsrm" for number in range(1, 40))],
)
def test_failing_call_of_a_commit_adds_no_run_and_the_next_completes(
    letter: str, number: int, quick: QuickMill, metrics: tuple[Path, Path, list[Call], list[Call]], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(metrics[0], tmp_path / "tables"))
    done = quick.act("metrics", folder, "second", root=folder, fail=f"{errno.ENOSPC}:{number}:0", calls=letter)
    assert seen_runs(folder) in ({"first"}, {"first", "second"})
    assert done.code != 0 or seen_runs(folder) == {"first", "second"}
    again = quick.act("metrics", folder, "second")
    assert again.code == 0, again.said
    assert read_table(folder, "scores").sort_by("run").equals(read_table(metrics[1], "scores").sort_by("run"))


@pytest.mark.parametrize("ordered", [True, False], ids=["journal", "POSIX"])
def test_checkpoint_is_the_old_one_or_the_new_one_after_any_loss_of_power(ordered: bool, quick: QuickMill, tmp_path: Path) -> None:
    results, path = tmp_path / "results", tmp_path / "results" / "model_epoch_001.pth"
    (tmp_path / "journal").mkdir()
    assert quick.act("checkpoint", path, 1).code == 0
    before = Path(shutil.copytree(results, tmp_path / "before"))
    latest = before / "model_latest.pth"
    latest.unlink()
    done = quick.act("checkpoint", path, 2, root=results, journal=tmp_path / "journal")
    assert done.code == 0, done.said
    calls = read_journal(tmp_path / "journal", results)
    old, new = (load_checkpoint(file)["state_dict"]["backbone.weight"] for file in (before / path.name, path))
    for number, left in losses(before, calls, range(len(calls) + 1), tmp_path, 0, ordered=ordered):
        found = load_checkpoint(left / path.name)["state_dict"]["backbone.weight"]
        assert torch.equal(found, new if number == len(calls) else found)
        assert torch.equal(found, old) or torch.equal(found, new)
        assert find_resume(None, left) in (None, (left / path.name).resolve())


@pytest.mark.parametrize("ordered", [True, False], ids=["journal", "POSIX"])
def test_prediction_is_whole_or_not_there_after_any_loss_of_power(ordered: bool, quick: QuickMill, tmp_path: Path) -> None:
    told = tmp_path / "told"
    (tmp_path / "journal").mkdir()
    assert quick.act("prediction", told, 1).code == 0
    before = Path(shutil.copytree(told, tmp_path / "before"))
    done = quick.act("prediction", told, 2, root=told, journal=tmp_path / "journal")
    assert done.code == 0, done.said
    calls = read_journal(tmp_path / "journal", told)
    whole = [read_prediction(root, "scene/0001", 64) for root in (before, told)]
    seen = set()
    for _, left in losses(before, calls, range(len(calls) + 1), tmp_path, 0, ordered=ordered):
        try:
            found = read_prediction(left, "scene/0001", 64)
        except SourceError:
            continue
        same = [(found.panoptic_2d == one.panoptic_2d).all() and (found.depth == one.depth).all() for one in whole]
        assert any(same)
        seen.add(same.index(True))
    assert seen == {0, 1}


@pytest.mark.parametrize("letter", ["w", *(pytest.param(letter, marks=FULL) for letter in "csr")])
def test_failing_call_leaves_the_checkpoint_of_before(letter: str, quick: QuickMill, tmp_path: Path) -> None:
    path = tmp_path / "results" / "model_epoch_001.pth"
    assert quick.act("checkpoint", path, 1).code == 0
    data = path.read_bytes()
    done = quick.act("checkpoint", path, 2, root=path.parent, fail=f"{errno.ENOSPC}:1:0", calls=letter)
    assert done.code != 0 and "No space left" in done.said
    assert path.read_bytes() == data
    assert sorted(file.name for file in path.parent.iterdir()) == ["model_epoch_001.pth", "model_latest.pth"]


def on_small_disk(folder: Path, size: str, script: str) -> subprocess.CompletedProcess[str]:
    """Run a script where ``folder`` is a file system of its own of so many bytes, in the script's own view of the system alone."""
    mount = f"mount -t tmpfs -o size={size} scenemill {folder} && exec {sys.executable} - "
    return subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount],
        input=script,
        capture_output=True,
        text=True,
        check=False,
    )


def may_mount(folder: Path) -> bool:
    return shutil.which("unshare") is not None and on_small_disk(folder, "1m", "").returncode == 0


FULL_DISK: Final = """
import subprocess, sys
from pathlib import Path
command = [sys.executable, "-m", "scenemill.pipelines.cli", "ingest", "front3d", "--input", {world!r}, "--output", {store!r},
           "--samples-per-part", "2", "--json"]
full = subprocess.run(command, capture_output=True, text=True)
print(full.returncode, full.stdout, full.stderr)
assert full.returncode == 2 and "No space left" in full.stdout and "Traceback" not in full.stderr
assert not (Path({store!r}) / "zarr.json").exists()
subprocess.run(["mount", "-o", "remount,ro", {folder!r}], check=True)
fixed = subprocess.run(command, capture_output=True, text=True)
print(fixed.returncode, fixed.stdout, fixed.stderr)
assert fixed.returncode == 2 and "Read-only" in fixed.stdout and "Traceback" not in fixed.stderr
subprocess.run(["mount", "-o", "remount,rw,size=64m", {folder!r}], check=True)
roomy = subprocess.run(command, capture_output=True, text=True)
print(roomy.returncode, roomy.stdout, roomy.stderr)
assert roomy.returncode == 0
subprocess.run([sys.executable, "-m", "scenemill.pipelines.cli", "verify", {store!r}], check=True)
"""


@pytest.mark.full
@pytest.mark.parametrize("size", ["256k", "900k", "1500k"])
def test_store_on_a_disk_that_is_full_and_then_read_only_is_completed_once_there_is_room(
    size: str, front3d_world: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    if not may_mount(folder):
        pytest.skip("this system lets no user mount a file system of their own")
    script = FULL_DISK.format(world=str(front3d_world), store=str(folder / "store"), folder=str(folder))
    done = on_small_disk(folder, size, script)
    assert done.returncode == 0, done.stdout + done.stderr


def test_folder_of_metric_tables_that_cannot_be_written_is_told(quick: QuickMill, tmp_path: Path) -> None:
    done = quick.act("metrics", tmp_path / "tables", "first", root=tmp_path / "tables", fail=f"{errno.EROFS}:1:0", calls="m")
    assert done.code != 0 and "Read-only file system" in done.said
    with pytest.raises((NotPublished, ConfigError)):
        read_table(tmp_path / "tables", "scores")
