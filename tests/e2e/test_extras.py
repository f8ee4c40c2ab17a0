"""Each extra alone has what its verbs need: they run where nothing else is installed."""

import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
RUN = "import sys; sys.path.insert(0, {site!r}); sys.argv[0] = 'scenemill'; from scenemill.pipelines.cli import main; main()"

Run = Callable[..., subprocess.CompletedProcess[str]]


def installed_with(extras: str) -> set[str]:
    """Names of the distributions that come with the package and some of its extras, separated by commas."""
    found: dict[str, set[str]] = {}
    waiting = [("scenemill", set(filter(None, extras.split(","))))]
    while waiting:
        name, asked = waiting.pop()
        if asked <= found.get(name, {""}) - {""} and name in found:
            continue
        found[name] = found.get(name, set()) | asked
        try:
            needed = [Requirement(line) for line in distribution(name).requires or ()]
        except PackageNotFoundError:
            continue
        waiting += [
            (canonicalize_name(one.name), set(one.extras))
            for one in needed
            if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in {"", *found[name]})
        ]
    return set(found) - {"scenemill"}


def link_site(site: Path, names: set[str]) -> None:
    """A folder of links to what some distributions brought, and to the package."""
    site.mkdir()
    (site / "scenemill").symlink_to(ROOT / "scenemill")
    for name in names:
        try:
            held = distribution(name)
        except PackageNotFoundError:
            continue
        for top in {file.parts[0] for file in held.files or ()} - {"..", "__pycache__"}:
            source, place = Path(str(held.locate_file(top))), site / top
            if source.exists() and not place.exists():
                place.symlink_to(source)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run the command line, or ``python -c``, with some extras alone."""
    folder = tmp_path_factory.mktemp("extras")

    def with_extras(extras: str, *command: str, script: str = RUN) -> subprocess.CompletedProcess[str]:
        site = folder / (extras or "none")
        if not site.exists():
            link_site(site, installed_with(extras))
        python = [sys.executable, "-I", "-S", "-c", script.format(site=str(site)), *command]
        return subprocess.run(python, check=False, cwd=folder, capture_output=True, text=True)

    return with_extras


def told(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def store(run: Run, front3d_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("extras_store") / "store"
    told(run("ingest", "ingest", "front3d", "--input", str(front3d_world), "--output", str(folder)))
    return folder


def test_a_site_lacks_what_its_extras_do_not_name(run: Run) -> None:
    """So that the other tests can fail."""
    assert "apache_beam is not installed" in run("train", "validate", "front3d", "--input", ".").stderr
    assert "torch is not installed" in run("", "order", ".").stderr


def test_a_store_is_read_with_no_extra(run: Run, store: Path, tmp_path: Path) -> None:
    assert "whole" in told(run("", "verify", str(store)))
    assert "front3d" in told(run("", "show", str(store)))
    assert "6 samples" in told(run("", "export-raw", str(store), str(tmp_path / "raw")))


def test_a_machine_that_trains_from_a_store_needs_neither_beam_nor_tables(
    run: Run, store: Path, front3d_world: Path, tmp_path: Path
) -> None:
    settings = [
        f"results_dir={tmp_path}",
        f"dataset.train.base_dir={store}",
        "train.is_dry_run=true",
        "dataset.train.num_workers=0",
    ]
    done = told(run("train", "train", "-e", "tiny_front3d_2d", *settings))
    (checkpoint,) = re.findall(r"\S+\.pth", done)
    image = next(front3d_world.rglob("rgb_*.png"))
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "one.png").write_bytes(image.read_bytes())
    settings = [f"results_dir={tmp_path}", f"inference.checkpoint={checkpoint}", f"inference.images_dir={tmp_path / 'images'}"]
    assert "1 written" in told(run("train", "inference", "-e", "tiny_front3d_2d", *settings))


@pytest.mark.full
@pytest.mark.parametrize(
    ("extras", "modules"),
    [
        ("ingest,tables,train", "evaluation batch_evaluation tuning demo"),
        ("tables", "query report tables"),
        ("view", "view_server view_reading"),
        ("jobs", "jobs_server jobs_worker jobs_client"),
        ("ingest,schedule", "schedule_process schedule_runs"),
        ("train", "training inference exporting triton"),
        ("train,tables", "fitting"),
    ],
)
def test_what_verbs_load_comes_with_their_extras(run: Run, extras: str, modules: str) -> None:
    lines = [f"import scenemill.pipelines.{module}" for module in modules.split()]
    told(run(extras, script="import sys; sys.path.insert(0, {site!r}); " + "; ".join(lines)))
