"""The house rules that a machine can hold: who imports whom, where the heavy libraries live, what is packaged."""

import ast
import configparser
import copy
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from scenemill.schemas import errors

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("schemas", "validators", "transforms", "trainers", "pipelines")
MAY_IMPORT = {
    "schemas": {"schemas"},
    "validators": {"schemas", "validators"},
    "transforms": {"schemas", "transforms"},
    "trainers": {"schemas", "transforms", "trainers"},
    "pipelines": {*FOLDERS},
}
ENDS = ("commands", "exports", "jobs", "schedule", "viewer")
HOMES = {
    "airflow": ("pipelines/schedule/airflow.py",),
    "apache_beam": ("pipelines/",),
    "apscheduler": ("pipelines/schedule/",),
    "distributed": ("pipelines/runners/dask_cluster.py",),
    "torch": ("trainers/",),
    "great_expectations": ("validators/suites.py",),
    "zarr": ("transforms/store.py",),
    "obstore": ("transforms/object",),
    "boto3": ("transforms/object_clients.py",),
    "botocore": ("transforms/object_clients.py",),
    "numcodecs": ("transforms/shards.py",),
    "OpenEXR": ("transforms/images.py", "transforms/rawfiles.py"),
    "pxr": ("trainers/usd/",),
    "skimage": ("transforms/meshes.py",),
    "trimesh": ("trainers/gltf.py",),
    "duckdb": ("pipelines/query.py",),
    "xarray": ("transforms/xarrays.py", "transforms/store.py"),  # the latter for its types alone
    "deltalake": ("pipelines/tables.py",),
    "matplotlib": ("pipelines/reports/charts.py", "pipelines/reports/card_charts.py"),
    "lightning_fabric": ("trainers/devices.py", "trainers/train.py"),
    "optuna": ("pipelines/experiments/tuning.py",),
    "onnx": ("trainers/nvpanoptix3d/export.py",),
    "onnxruntime": ("trainers/nvpanoptix3d/export.py", "pipelines/experiments/shipped/triton/"),  # the latter runs in a server
    "tensorrt": ("trainers/nvpanoptix3d/trt_engine.py",),
    "pyrage": ("trainers/checkpoint.py",),
    "wandb": ("trainers/status.py",),
    "starlette": ("pipelines/viewer/answers.py", "pipelines/viewer/guard.py", "pipelines/web_access.py", "pipelines/jobs/"),
    "uvicorn": ("pipelines/viewer/server.py", "pipelines/jobs/server.py", "pipelines/web_patience.py"),
    "fastapi": ("pipelines/jobs/answers.py",),
    "httpx": ("pipelines/jobs/client.py",),
    "prometheus_client": ("pipelines/jobs/metrics.py",),
    "psutil": ("pipelines/jobs/process.py", "pipelines/jobs/run.py"),
}


def sources() -> Iterator[tuple[str, ast.Module]]:
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text())


def imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def public(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef | ast.ClassDef]]:
    """Public functions, classes and methods; the bodies of overloads are elsewhere."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node.name, node
            for member in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(member, ast.FunctionDef) and not member.name.startswith("_"):
                    yield f"{node.name}.{member.name}", member


def raised(function: ast.AST) -> set[str]:
    """Errors of ours that a function raises itself, by name."""
    made = (node.exc for node in ast.walk(function) if isinstance(node, ast.Raise))
    names = {call.func.id for call in made if isinstance(call, ast.Call) and isinstance(call.func, ast.Name)}
    return names & {name for name in vars(errors) if name[0].isupper()}


def untold(tree: ast.Module) -> dict[str, set[str]]:
    """What docstrings leave out: "docstring", or the names of errors that are raised."""
    found = {}
    for name, node in public(tree):
        told = ast.get_docstring(node) or ""
        if not any(isinstance(mark, ast.Name) and mark.id == "overload" for mark in node.decorator_list):
            kinds = raised(node) if isinstance(node, ast.FunctionDef) else set()
            found[name] = {kind for kind in kinds if not re.search(rf"\b{kind}\b", told)} | ({"docstring"} if not told else set())
    return {name: missing for name, missing in found.items() if missing}


def test_every_public_docstring_names_the_errors_that_are_raised() -> None:
    """Those of verbs are their help, where every error is told by exit code."""
    verbs = ("pipelines/commands/",)
    wrong = {path: missing for path, tree in sources() if not path.startswith(verbs) and (missing := untold(tree))}
    assert wrong == {}


def test_a_docstring_that_leaves_out_an_error_is_noticed() -> None:
    text = 'def f():\n    """F."""\n    raise ConfigError("x")\ndef g(): ...\ndef h():\n    """ConfigError: x."""\n    raise ConfigError\n'
    assert untold(ast.parse(text)) == {"f": {"ConfigError"}, "g": {"docstring"}}


def test_every_folder_imports_only_what_it_may() -> None:
    wrong = []
    for path, tree in sources():
        for name in imported(tree):
            parts = name.split(".")
            if parts[0] == "scenemill" and len(parts) > 1 and parts[1] not in MAY_IMPORT[path.split("/")[0]]:
                wrong.append(f"{path}: {name}")
            if parts[0] in FOLDERS:
                wrong.append(f"{path}: bare {name}")
    assert wrong == []


def test_what_users_run_is_imported_by_the_command_line_alone() -> None:
    """A verb may stand on anything; nothing stands on a verb, on a server, on the scheduler or on an export."""
    found = []
    for path, tree in sources():
        for module in imported(tree):
            package, _, rest = module.removeprefix("scenemill.pipelines.").partition(".")
            allowed = ("pipelines/cli.py",) if package == "commands" else ("pipelines/commands/",)
            if package in ENDS and rest and not path.startswith((*allowed, f"pipelines/{package}/")):
                found.append((path, module))
    assert found == []


def test_heavy_libraries_stay_in_their_homes() -> None:
    wrong = [
        f"{path}: {name}"
        for path, tree in sources()
        for name in imported(tree)
        for library, homes in HOMES.items()
        if name.split(".")[0] == library and not path.startswith(homes)
    ]
    assert wrong == []


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys; sys.argv = ['scenemill', '--help']\n"
        "from scenemill.pipelines.cli import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        f"print(sorted({{name.split('.')[0] for name in sys.modules}} & {set(HOMES) | {'numpy', 'pyarrow'}}))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_trainers_import_with_numpy_and_torch_alone() -> None:
    files = [
        path.relative_to(ROOT).with_suffix("") for path in sorted((ROOT / "trainers").rglob("*.py")) if path.stem != "__init__"
    ]
    modules = [f"scenemill.{'.'.join(file.parts)}" for file in files]
    script = (
        f"import sys, importlib\nfor name in {modules}: importlib.import_module(name)\n"
        f"print(sorted({{name.split('.')[0] for name in sys.modules}} & {set(HOMES) - {'torch'} | {'pyarrow', 'zlib_ng', 'PIL', 'scipy'}}))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert len(modules) >= 5
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("folder", FOLDERS)
def test_bare_names_are_never_imported(folder: str) -> None:
    assert folder not in sys.modules


def test_every_package_is_listed_in_setup_cfg() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = set(config["options"]["packages"].split())
    found = {
        f"scenemill.{init.parent.relative_to(ROOT).as_posix().replace('/', '.')}"
        for folder in FOLDERS
        for init in (ROOT / folder).rglob("__init__.py")
    }
    assert listed == {"scenemill", *found}


def test_public_names_exist_and_are_listed() -> None:
    import scenemill

    assert all(getattr(scenemill, name) is not None for name in scenemill.__all__)
    assert dir(scenemill) == sorted(scenemill.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = scenemill.nothing


def test_errors_are_also_the_builtin_a_reader_expects() -> None:
    expected = {
        "ConfigError": ValueError,
        "SourceError": OSError,
        "NotPublished": FileNotFoundError,
        "Corrupt": ValueError,
        "WrongVersion": ValueError,
        "Conflict": RuntimeError,
        "TooManyRejected": RuntimeError,
        "TransientError": OSError,
    }
    for name, builtin in expected.items():
        assert issubclass(getattr(errors, name), (errors.SceneMillError,))
        assert issubclass(getattr(errors, name), builtin)


def test_source_error_survives_the_way_between_processes() -> None:
    from scenemill.schemas.errors import SourceError

    error = copy.copy(SourceError("shape", "3", "4"))  # by the same way as between processes: __reduce__
    assert (error.check, error.observed, error.expected) == ("shape", "3", "4")
