"""What is shipped: a wheel built from the tree holds every module, and works without the tree."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "pipelines" / "viewer" / "page"
SHIPPED = ("scenemill", "schemas", "validators", "transforms", "trainers", "pipelines")


def test_a_built_wheel_holds_every_module_and_runs(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for name in SHIPPED:
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree / name)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(tree)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("scenemill-*.whl")
    with zipfile.ZipFile(wheel) as opened:
        held = {name for name in opened.namelist() if ".dist-info/" not in name}
        opened.extractall(tmp_path / "installed")
    modules = {
        (path.relative_to(ROOT) if name == "scenemill" else Path("scenemill") / path.relative_to(ROOT)).as_posix()
        for name in SHIPPED
        for path in (ROOT / name).rglob("*.py")
    }
    specs = {
        f"scenemill/pipelines/experiments/shipped/{path.name}"
        for path in (ROOT / "pipelines" / "experiments" / "shipped").glob("*.yaml")
    }
    assert len(specs) == 8
    page = {f"scenemill/pipelines/{path.relative_to(ROOT / 'pipelines').as_posix()}" for path in PAGE.rglob("*") if path.is_file()}
    assert len(page) > 10
    template = {f"scenemill/pipelines/runners/flex_template/{name}" for name in ("Dockerfile", "metadata.json", "main.py")}
    assert held == {*modules, *specs, *page, *template, "scenemill/py.typed"}
    script = "import scenemill, scenemill.pipelines.cli, scenemill.transforms.worlds; print(scenemill.__file__)"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True)
    assert Path(done.stdout.strip()).is_relative_to(tmp_path / "installed")


def test_the_tree_works_uninstalled() -> None:
    script = "import sys; sys.path.insert(0, '.'); import scenemill.schemas.fields as f; print(f.__file__)"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", script], cwd=ROOT, check=True, capture_output=True, text=True)
    assert Path(done.stdout.strip()).resolve() == ROOT / "schemas" / "fields.py"
