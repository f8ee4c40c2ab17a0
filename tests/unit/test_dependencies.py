"""What is installed with the package is what it imports, each with a lowest version, under licences that let it be used with it."""

import ast
import configparser
import re
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Final

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT: Final = Path(__file__).resolve().parents[2]
PARTS: Final = ("pipelines", "schemas", "trainers", "transforms", "validators")
TOOLS: Final = ("dev", "docs")
"""Extras for those who build the package."""

UNSEEN: Final = {
    "google-apitools": "Beam's Google parts import it",
    "google-auth-httplib2": "Beam's Google parts import it",
    "google-cloud-dataflow-client": "Beam submits jobs with it",
    "google-cloud-storage": "Beam stages files with it",
    "fsspec": "files of others are read in ranges through it, and older ones hand errors back as data",
    "onnx": "imported by name, for those who export without it are told what to install",
    "pandas": "Great Expectations checks tables as its frames",
    "tensorboard": "torch.utils.tensorboard writes with it",
}
"""Declared, and imported by others than the package: why."""

LENT: Final = {
    "airflow": "an engine of its own, which imports the package",
    "tensorrt": "comes with the machine's CUDA",
    "triton": "comes with torch where there is CUDA",
    "triton_python_backend_utils": "of the server that runs the file",
}
"""Imported where they are, and never installed with the package."""

REFUSED: Final = re.compile(r"\b(AGPL|GPL|GNU (Affero )?General|SSPL|BUSL|Commons.Clause)", re.IGNORECASE)
"""Of licences; the LGPL is not among them."""


@cache
def declared() -> dict[str, tuple[Requirement, ...]]:
    """Extra -> what it asks for; "" for what every installation has."""
    held = configparser.ConfigParser()
    held.read(ROOT / "setup.cfg")
    lists = {"": held["options"]["install_requires"], **held["options.extras_require"]}
    return {extra: tuple(map(Requirement, filter(None, text.splitlines()))) for extra, text in lists.items()}


def names(extras: set[str]) -> set[str]:
    return {canonicalize_name(one.name) for extra in extras for one in declared()[extra]}


USED: Final = set(declared()) - set(TOOLS)


@cache
def imported() -> dict[str, str]:
    """Module of others -> a file of the package that imports it, whenever it does."""
    found: dict[str, str] = {}
    for path in (path for part in PARTS for path in (ROOT / part).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level and node.module:
                modules = [node.module]
            if (
                isinstance(node, ast.Call)
                and ast.unparse(node.func).endswith("import_module")
                and isinstance(node.args[0], ast.Constant)
            ):
                modules = [str(node.args[0].value)]
            found |= {module: str(path.relative_to(ROOT)) for module in modules}
    own = {"scenemill", "__future__", *sys.stdlib_module_names}
    return {module: path for module, path in found.items() if module.partition(".")[0] not in own}


@cache
def modules_of(name: str) -> frozenset[str]:
    """Modules that a distribution brings; none where it is not installed."""
    try:
        files = distribution(name).files or ()
    except PackageNotFoundError:
        return frozenset()
    paths = (
        re.sub(r"(/__init__)?(\.[\w-]+)*\.(py|so|pyd)$", "", str(file)) for file in files if file.suffix in (".py", ".so", ".pyd")
    )
    return frozenset(path.replace("/", ".") for path in paths)


def brought_by(module: str, name: str) -> bool:
    """Whether a distribution brings a module, or the first part of it that is no namespace of many."""
    held = modules_of(name)
    words = module.split(".")
    return any(".".join(words[:count]) in held for count in range(1, len(words) + 1))


def test_whatever_is_imported_is_asked_for() -> None:
    missing = {module: path for module, path in imported().items() if not any(brought_by(module, name) for name in names(USED))}
    assert {module.partition(".")[0] for module in missing} <= set(LENT), missing


def test_whatever_is_asked_for_is_imported_or_has_its_reason() -> None:
    absent = {name for name in names(USED) if not modules_of(name)}  # an extra that is not installed here
    unused = {name for name in names(USED) - absent if not any(brought_by(module, name) for module in imported())}
    assert unused == set(UNSEEN) - absent, unused ^ set(UNSEEN)


@pytest.mark.parametrize("extra", declared())
def test_every_version_has_a_lowest_and_nothing_comes_from_elsewhere(extra: str) -> None:
    for one in declared()[extra]:
        assert one.url is None, f"{one}: from an address"
        assert any(bound.operator in (">=", "==", "~=") for bound in one.specifier), f"{one}: no lowest version"


def is_refused(expression: str, classifiers: list[str]) -> bool:
    """Whether none of the licences that one may choose from lets a distribution be used with the package."""
    if expression:
        return all(REFUSED.search(choice) for choice in expression.split(" OR "))
    licences = [line for line in classifiers if line.startswith("License ::")]
    return bool(licences) and all(REFUSED.search(line) for line in licences)


@pytest.mark.parametrize(
    ("expression", "classifier", "refused"),
    [
        ("MIT", "", False),
        ("GPL-3.0-only", "", True),
        ("MIT AND GPL-2.0-or-later", "", True),
        ("Apache-2.0 OR GPL-2.0-only", "", False),
        ("LGPL-3.0-only", "", False),
        ("", "License :: OSI Approved :: GNU Affero General Public License v3", True),
        ("", "License :: OSI Approved :: GNU General Public License v3 (GPLv3)", True),
        ("", "License :: OSI Approved :: GNU Lesser General Public License v3 (LGPLv3)", False),
        ("", "Topic :: Scientific/Engineering", False),
    ],
)
def test_a_licence_is_known_by_what_it_says(expression: str, classifier: str, refused: bool) -> None:
    assert is_refused(expression, [classifier]) == refused


def test_licences_let_it_be_used() -> None:
    """Of all that is installed with the package, and with that in turn."""
    waiting, seen, refused = names(USED), set[str](), []
    while waiting:
        name = waiting.pop()
        seen.add(name)
        try:
            found = distribution(name)
        except PackageNotFoundError:
            continue
        (expression,) = found.metadata.get_all("License-Expression") or [""]
        if is_refused(expression, found.metadata.get_all("Classifier") or []):
            refused.append(name)
        needed = (Requirement(line) for line in found.requires or ())
        waiting |= {
            canonicalize_name(one.name) for one in needed if one.marker is None or one.marker.evaluate({"extra": ""})
        } - seen
    assert len(seen) > 50 and refused == []
