"""Whether a path is in reach of jobs: whatever way it is written and linked, it is where the system says it is."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scenemill.pipelines.jobs.roots import RESULTS, JobRoots
from scenemill.schemas.errors import ConfigError

JOB = "0123456789abcdef"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two roots, the service's folder inside the first, things outside, and links between them all."""
    top = tmp_path_factory.mktemp("roots").resolve()
    for folder in ("one/in", "two", "outside", f"one/home/jobs/{JOB}/{RESULTS}/train"):
        (top / folder).mkdir(parents=True)
    for file in ("one/in/a.pth", "outside/a.pth", "one/home/token", f"one/home/jobs/{JOB}/request.json"):
        (top / file).write_text("x")
    links = {
        "one/out": "outside",
        "one/back": "one/in",
        "one/file.pth": "outside/a.pth",
        "one/secret": "one/home/token",
        "outside/in": "one/in",
        "two/loop": "two/loop",
    }
    for link, target in links.items():
        (top / link).symlink_to(top / target)
    return top


@pytest.fixture(scope="module")
def roots(world: Path) -> JobRoots:
    return JobRoots([world / "one", world / "two"], world / "one" / "home")


@pytest.mark.parametrize("path", ["one", "one/in/a.pth", "two/new/folder", "one/back/a.pth", "outside/in/a.pth", "one/in/../in"])
def test_what_is_in_a_root_is_in_reach_by_its_true_path(world: Path, roots: JobRoots, path: str) -> None:
    assert roots.locate("input", str(world / path)) == os.path.realpath(world / path)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "outside",
        "one/out/a.pth",
        "one/file.pth",
        "one/in/../../outside",
        "one2",
        "onee/in",
        "one/home",
        "one/home/token",
        "one/secret",
        "one/home/jobs",
        f"one/home/jobs/{JOB}",
        f"one/home/jobs/{JOB}/request.json",
        f"one/home/jobs/{JOB}/{RESULTS}/../request.json",
    ],
)
def test_what_is_elsewhere_or_the_services_own_is_out_of_reach(world: Path, roots: JobRoots, path: str) -> None:
    with pytest.raises(ConfigError, match="not in one of the service's roots"):
        roots.locate("input", str(world / path))


def test_results_of_jobs_are_in_reach_although_the_service_has_them(world: Path, roots: JobRoots) -> None:
    result = world / "one" / "home" / "jobs" / JOB / RESULTS / "train"
    assert roots.locate("input", str(result)) == str(result)


@pytest.mark.parametrize("path", ["in", "./in", "~/in", "", "file:///etc"])
def test_a_relative_path_is_refused(roots: JobRoots, path: str) -> None:
    with pytest.raises(ConfigError, match="absolute"):
        roots.locate("input", path)


def test_a_link_that_changes_between_two_looks_is_seen(tmp_path: Path) -> None:
    (tmp_path / "root" / "good").mkdir(parents=True)
    roots, link = JobRoots([tmp_path / "root"], tmp_path / "home"), tmp_path / "root" / "link"
    link.symlink_to(tmp_path / "root" / "good")
    assert roots.locate("input", str(link)) == str((tmp_path / "root" / "good").resolve())
    link.unlink()
    link.symlink_to("/etc")
    with pytest.raises(ConfigError):
        roots.locate("input", str(link))


def test_a_pattern_of_checkpoints_may_name_nothing_outside(world: Path, roots: JobRoots) -> None:
    assert roots.locate("evaluate.checkpoint", str(world / "one" / "in" / "*.pth")) == str(world / "one" / "in" / "*.pth")
    for pattern in ("one/*.pth", "one/out/*.pth", "one/*/../../outside/a.pth", "*/in/a.pth", "one/o?t/a.pth", "one/home/*"):
        with pytest.raises(ConfigError):
            roots.locate("evaluate.checkpoint", str(world / pattern))


def test_a_folder_of_checkpoints_may_hold_no_links_to_outside(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "model_epoch_001.pth").write_text("x")
    (root / "model_epoch_001.pth").symlink_to(tmp_path / "model_epoch_001.pth")
    with pytest.raises(ConfigError, match="not in one"):
        JobRoots([root], tmp_path / "home").locate("evaluate.checkpoint", str(root))


def test_a_relative_file_beside_the_samples_stays_there(world: Path, roots: JobRoots) -> None:
    roots.check_inside("dataset.label_map", "in/a.pth", [str(world / "one"), ""])
    for text in ("../outside/a.pth", "out/a.pth", "file.pth"):
        with pytest.raises(ConfigError):
            roots.check_inside("dataset.label_map", text, [str(world / "one")])


def test_a_root_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        JobRoots([tmp_path / "nothing"], tmp_path / "home")


PARTS = (
    "one",
    "two",
    "outside",
    "in",
    "home",
    "jobs",
    JOB,
    RESULTS,
    "out",
    "back",
    "secret",
    "loop",
    "token",
    "a.pth",
    "..",
    ".",
    "new",
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=st.lists(st.sampled_from(PARTS), max_size=8))
def test_every_walk_ends_where_it_may_or_is_refused(world: Path, roots: JobRoots, parts: list[str]) -> None:
    path = str(world) + "/" + "/".join(parts)
    there = os.path.realpath(path)
    home, result = f"{world}/one/home", f"{world}/one/home/jobs/{JOB}/{RESULTS}"
    own = there == home or there.startswith(f"{home}/")
    if own:
        told = there.removeprefix(home).split("/")
        allowed = there == result or there.startswith(f"{result}/") or (told[1:2] == ["jobs"] and told[3:4] == [RESULTS])
    else:
        allowed = any(there == f"{world}/{root}" or there.startswith(f"{world}/{root}/") for root in ("one", "two"))
    try:
        assert roots.locate("input", path) == there
        assert allowed
    except ConfigError:
        assert not allowed


@pytest.mark.parametrize("pattern", ["**/a/**/*.pth", "**/**/*.pth", "*/" * 200 + "*.pth", "*/" * 5000])
def test_a_pattern_that_would_be_looked_for_without_end_is_refused(pattern: str, world: Path, roots: JobRoots) -> None:
    with pytest.raises(ConfigError, match=r"one of them '\*\*'"):
        roots.locate("evaluate.checkpoint", f"{world}/one/{pattern}")


@pytest.mark.parametrize("name", ["a" * 300, "a" * 5000, "a/" * 3000])
def test_a_name_that_no_disk_has_is_a_path_like_any_other(name: str, world: Path, roots: JobRoots) -> None:
    for setting in ("evaluate.checkpoint", "results_dir"):
        assert roots.locate(setting, f"{world}/one/{name}") == str(world / "one" / name)
        with pytest.raises(ConfigError, match="not in one of the service's roots"):
            roots.locate(setting, f"{world}/{name}")
