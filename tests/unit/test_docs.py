"""What the documents say is true: links lead somewhere, commands and their options exist, Python runs or at least fits the package."""

import ast
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import scenemill
from scenemill.pipelines.cli import app
from scenemill.schemas.fields import SOURCES, fields_of
from scenemill.schemas.labels import LABELS
from scenemill.validators.checks import CHECKS

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
TEXTS = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
GOLDEN = ROOT / "tests" / "golden" / "stores" / "front3d"
_LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)")
_COMMAND = re.compile(r"^    (?:\$ )?(scenemill(?: .*)?)$")
_LEAVING = ("--version", "--install-completion")
"""Options that end the command line while it is parsed."""
_ALTERNATIVES = re.compile(r"\|[\w./]+")


def name_of(text: Path) -> str:
    return text.relative_to(ROOT).as_posix()


def anchors(text: Path) -> set[str]:
    """Names of a text's headings, as GitHub and MyST make them, and of those of a text that it shows."""
    said = text.read_text()
    shown = [anchors(ROOT / path) for path in re.findall(r"^```\{outside\} (\S+)$", said, re.MULTILINE)]
    headings = re.findall(r"^#+ (.*)$", said, re.MULTILINE)
    return set().union(*shown) | {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("text", TEXTS, ids=name_of)
def test_every_link_leads_to_a_file_and_a_heading(text: Path) -> None:
    for path, anchor in _LINK.findall(text.read_text()):
        target = (text.parent / path) if path else text
        assert target.exists(), f"{name_of(text)} links to {path}"
        assert not anchor or anchor in anchors(target), f"{name_of(text)} links to {path}#{anchor}"


def test_every_page_is_in_the_index() -> None:
    listed = {name for index in (DOCS, DOCS / "decisions") for name in _listed(index / "index.md")}
    pages = {path.relative_to(DOCS).with_suffix("").as_posix() for path in DOCS.rglob("*.md")}
    assert pages - {"index"} == {page for page in pages if any(fnmatchcase(page, name) for name in listed)}
    assert {name for name in listed if "*" not in name} <= pages


def _listed(index: Path) -> set[str]:
    blocks = re.findall(r"```\{toctree\}\n(.*?)```", index.read_text(), re.DOTALL)
    names = {line for block in blocks for line in block.splitlines() if line and not line.startswith(":")}
    return {(index.parent / name).relative_to(DOCS).as_posix() for name in names}


def commands(text: Path) -> Iterator[str]:
    """Command lines of a text: indented, with or without a prompt, on one line or on several."""
    for line in text.read_text().replace("\\\n", " ").splitlines():
        found = _COMMAND.match(line)
        if found:
            yield found[1]


def words_of(command: str) -> list[str]:
    """The words of a command line as a person would type them: of alternatives the first, without comments, dots and redirections."""
    typed = command.replace("<TAB>", "").replace("//BUCKET", "//bucket")
    words = shlex.split(typed, comments=True)[1:]
    if ">" in words:
        words = words[: words.index(">")]
    return [_typed(word) for word in words if word != "..." and word.strip("[]")]


def _typed(word: str) -> str:
    word = word if "=" in word and "/" in word else word.strip("[]")
    return {"N": "1", "SECONDS": "1", "PORT": "8080"}.get(word, _ALTERNATIVES.sub("", word))


def parse(words: list[str]) -> None:
    """Hold words against the real command line, running nothing.

    Raises:
        Exception: a verb, an option or a value is not known.
    """
    command: Any = typer.main.get_command(app)
    context: Any = None
    name = "scenemill"
    while hasattr(command, "commands"):
        context = command.make_context(name, list(words), parent=context)
        words = [*context._protected_args, *context.args]
        name, command, words = command.resolve_command(context, words)
    command.make_context(name, list(words), parent=context)


@pytest.mark.parametrize("text", [text for text in TEXTS if any(commands(text))], ids=name_of)
def test_every_command_of_the_documents_is_one_of_the_command_line(text: Path) -> None:
    wrong = {}
    for command in commands(text):
        words = words_of(command)
        if not words or "VERB" in words or words[0] in _LEAVING:
            continue
        try:
            parse(words)
        except Exception as error:
            wrong[command] = getattr(error, "message", None) or repr(error)
    assert wrong == {}


@pytest.mark.parametrize("words", [["ingests"], ["ingest", "front3d", "--imput", "raw"], ["jobs", "make"], ["show"]])
def test_a_command_that_is_not_one_is_noticed(words: list[str]) -> None:
    with pytest.raises(Exception, match=r"[Nn]o such|Missing"):
        parse(words)


def blocks(text: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", text.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("text", [text for text in TEXTS if blocks(text)], ids=name_of)
def test_every_python_block_compiles_and_imports_what_is_there(text: Path) -> None:
    for block in blocks(text):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("scenemill"):
                module = import_module(str(node.module))
                assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "scenemill":
                assert hasattr(scenemill, node.attr), node.attr


def test_the_first_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(GOLDEN, tmp_path / "store")
    monkeypatch.chdir(tmp_path)
    version = scenemill.open_store("store").version
    held: dict[str, Any] = {}
    exec(compile(blocks(ROOT / "README.md")[0].replace("9cd52201", version), "README.md", "exec"), held)
    assert held["sample"].key == held["store"].keys[0]


@pytest.fixture(scope="module")
def generated() -> dict[str, Any]:
    return runpy.run_path(str(DOCS / "generated.py"))


@pytest.fixture(scope="module")
def pages(generated: dict[str, Any]) -> dict[str, Callable[[], str]]:
    held: dict[str, Callable[[], str]] = generated["PAGES"]
    return held


def test_the_reference_has_every_field_label_check_and_verb(pages: dict[str, Callable[[], str]]) -> None:
    fields, labels, checks, verbs = (pages[name]() for name in ("fields", "labels", "checks", "commands"))
    assert all(f"| `{field.name}` |" in fields for source in SOURCES for field in fields_of(source))
    assert all(f"| {label.id} | {label.name} |" in labels for label in LABELS)
    assert all(f"| `{check.name}` |" in checks for check in CHECKS)
    assert "| `--seed` | `0` |" in verbs and "| `depth_min` | Near end of the frustum, metres" in pages["names"]()
    assert "## `scenemill ingest`" in verbs and "## `scenemill jobs create`" in verbs and "`--samples-per-part`" in verbs


def helps(command: Any, words: tuple[str, ...] = ()) -> Iterator[str]:
    """What help says of every verb."""
    yield CliRunner().invoke(app, [*words, "--help"]).output
    for name, below in getattr(command, "commands", {}).items():
        yield from helps(below, (*words, name))


def test_help_says_what_every_argument_takes_and_nothing_of_what_flags_take() -> None:
    shown = list(helps(typer.main.get_command(app)))
    assert len(shown) > 50 and any("<path|uri>" in text for text in shown)
    assert [text for text in shown if "Any" in text or "<bool>" in text] == []


def test_the_reference_has_every_table_and_every_public_name(pages: dict[str, Callable[[], str]]) -> None:
    tables, names = pages["tables"](), pages["names"]()
    assert {"samples", "findings", "runs", "counts", "scores"} <= set(re.findall(r"^## (\w+), version", tables, re.MULTILINE))
    assert all(f"scenemill.{name}\n" in names + "\n" for name in scenemill.__all__ if not name.startswith("_"))


def test_the_way_through_the_code_is_there() -> None:
    text = (DOCS / "code.md").read_text()
    steps = re.findall(r"`([\w/]+\.py):(\w+)`", text)
    assert len(steps) > 15
    for path, name in steps:
        defined = {
            node.name for node in ast.parse((ROOT / path).read_text()).body if isinstance(node, ast.FunctionDef | ast.ClassDef)
        }
        assert name in defined, f"{path}: no {name}"
    for path in re.findall(r"`([\w/]+\.py)`", text):
        assert (ROOT / path).is_file(), path


def test_the_folders_of_the_code_are_those_that_are_told() -> None:
    told = re.findall(r"^\| (`[\w`, ]+) \|", (DOCS / "code.md").read_text(), re.MULTILINE)
    names = {name for cell in told for name in re.findall(r"\w+", cell)}
    folders = {path.parent.name for path in (ROOT / "pipelines").glob("*/__init__.py")}
    assert {*folders, "schemas", "validators", "transforms", "trainers", "pipelines"} == names


def test_a_page_names_a_text_that_code_gives(pages: dict[str, Callable[[], str]]) -> None:
    named = {name for text in TEXTS for name in re.findall(r"^```\{generated\} (\w+)$", text.read_text(), re.MULTILINE)}
    assert named == set(pages)


def imported(code: str) -> Iterator[str]:
    """Modules of ours that a piece of Python imports from."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def examples() -> Iterator[tuple[str, str]]:
    """Every piece of Python that users are shown, by where it is."""
    for text in TEXTS:
        yield from ((name_of(text), block) for block in blocks(text))
    for path in sorted((ROOT / "examples").glob("*.py")):
        yield path.name, path.read_text()
    for path in sorted((ROOT / "examples").glob("*.ipynb")):
        cells = json.loads(path.read_text())["cells"]
        yield from ((path.name, "".join(cell["source"])) for cell in cells if cell["cell_type"] == "code")


def test_users_are_shown_public_names_and_modules_alone(generated: dict[str, Any]) -> None:
    public = {"scenemill", *generated["public_module_names"]()}
    shown = [(place, module) for place, code in examples() for module in imported(code) if module.split(".")[0] == "scenemill"]
    assert len(shown) > 20
    assert [(place, module) for place, module in shown if module not in public] == []


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("sphinx")
    command = [sys.executable, "-m", "sphinx", "-j", "2", "-E", "-W", "--keep-going", "-q", "-b", "html", str(DOCS), str(tmp_path)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    assert all((tmp_path / f"{name}.html").is_file() for name in ("index", "tour", "concepts", "store-format", "reference/names"))
