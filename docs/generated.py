"""The reference pages that code itself says, as Markdown: fields, labels, checks, tables, commands and the public names.

Each function gives one page's text when the site is built; nothing of it is kept in a file.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import is_dataclass
from importlib import import_module
from typing import Any, Final

import pyarrow as pa
import typer

import scenemill
from scenemill.pipelines.cli import app
from scenemill.schemas import tables
from scenemill.schemas.fields import VIEWS, Field, fields_of
from scenemill.schemas.labels import LABELS
from scenemill.schemas.settings import settings
from scenemill.transforms.layout import CHUNK
from scenemill.validators.checks import CHECKS
from scenemill.validators.own_checks import OWN_CHECKS
from scenemill.validators.view_checks import VIEW_CHECKS

_SOURCES: Final = (
    ("3D-Front form", "front3d"),
    ("Matterport3D", "matterport"),
    ("Views of one object", VIEWS),
)
_CHECKS: Final = (
    ("Rooms", CHECKS),
    ("Views of one object", VIEW_CHECKS),
    ("Sources of your own, after those of the camera", OWN_CHECKS),
)
_MODULES: Final = (
    "schemas.sample",
    "schemas.fields",
    "schemas.labels",
    "schemas.forms",
    "schemas.config",
    "schemas.dataset",
    "schemas.errors",
    "schemas.fit",
    "schemas.places",
    "transforms.geometry",
    "transforms.images",
    "transforms.npz",
    "transforms.sources",
    "transforms.store",
    "trainers.gltf",
    "trainers.mesh_files",
    "trainers.metrics",
    "trainers.obj",
    "trainers.order",
    "trainers.render",
    "trainers.render.object_views",
    "trainers.render.templates",
    "trainers.surface_mesh",
    "trainers.synthetic_views",
    "trainers.usd",
    "pipelines.conformance",
    "pipelines.schedule.airflow",
    "pipelines.synth",
    "pipelines.viewer.frames",
)

_ROW: Final = "| {} |"


def field_table() -> str:
    """A table of fields for each form of a source."""
    return "\n\n".join(f"## {title}\n\n{_fields(fields_of(source))}" for title, source in _SOURCES)


def _fields(fields: Iterable[Field]) -> str:
    head = ("name", "axes", "dtype", "unit", "fill", "chunk", "source", "meaning")
    rows = []
    for field in fields:
        chunk = f"{CHUNK}^3" if field.is_volume else "whole"
        source = _code(field.origin) + ("" if field.required else ", may be missing")
        told = (_code(field.name), ", ".join(field.axes), field.dtype, field.unit, f"{field.fill}", chunk, source, field.meaning)
        rows.append(told)
    return _table(head, rows)


def label_table() -> str:
    """The built-in classes."""
    rows = [
        (label.id, label.name, "thing" if label.thing else "stuff" if label.id else "none", " ".join(map(str, label.color)))
        for label in LABELS
    ]
    return _table(("id", "name", "kind", "red, green, blue"), rows)


def check_tables() -> str:
    """The checks, in the order they run."""
    return "\n\n".join(
        f"## {title}\n\n" + _table(("check", "fields it reads", "for"), [_check(check) for check in checks])
        for title, checks in _CHECKS
    )


def _check(check: Any) -> tuple[str, str, str]:
    fields = ", ".join(map(_code, check.fields)) or "all"
    return _code(check.name), fields, "3D-Front form" if check.front3d_only else "all"


def table_schemas() -> str:
    """Columns of every table."""
    schemas = [held for held in vars(tables).values() if isinstance(held, pa.Schema)]
    return "\n\n".join(map(_schema, schemas))


def _schema(schema: pa.Schema) -> str:
    name, version = (schema.metadata[key].decode() for key in (b"scenemill.table", b"scenemill.version"))
    columns = [(_code(column.name), _code(str(column.type)), "yes" if column.nullable else "") for column in schema]
    return f"## {name}, version {version}\n\n" + _table(("column", "type", "may be null"), columns)


def verbs() -> Iterator[tuple[str, Any]]:
    """Every command of the command line, groups included, by the words that call it."""
    yield from _verbs("scenemill", typer.main.get_command(app))


def _verbs(words: str, command: Any) -> Iterator[tuple[str, Any]]:
    yield words, command
    for name, below in getattr(command, "commands", {}).items():
        yield from _verbs(f"{words} {name}", below)


def command_line() -> str:
    """Arguments and options of every verb."""
    return "\n\n".join(_verb(words, command) for words, command in verbs())


def _verb(words: str, command: Any) -> str:
    rows = [_parameter(parameter) for parameter in command.params if not getattr(parameter, "hidden", False)]
    taken = _table(("argument or option", "default", "meaning"), rows) if rows else ""
    return f"## `{words}`\n\n{(command.help or '').strip()}\n\n{taken}"


def _parameter(parameter: Any) -> tuple[str, str, str]:
    names = ", ".join(map(_code, parameter.opts + parameter.secondary_opts))
    if parameter.param_type_name == "argument":
        names = _code((parameter.metavar or parameter.name).upper())
    default = parameter.default
    shown = (
        ""
        if default is None or default is False or callable(default) or (isinstance(default, Sequence) and not default)
        else _code(f"{default}")
    )
    return names, "needed" if parameter.required else shown, getattr(parameter, "help", None) or ""


def public_names() -> str:
    """What ``import scenemill`` offers."""
    return "\n\n".join(_public(name, getattr(scenemill, name)) for name in scenemill.__all__ if not name.startswith("_"))


def _public(name: str, held: Any) -> str:
    """Its docstring; of a class of settings also what each of them means."""
    if not isinstance(held, type):
        return _directives([f".. autofunction:: scenemill.{name}"])
    said = _directives([f".. autoclass:: scenemill.{name}\n   :members:"])
    described = [one for one in settings(held) if one.about] if is_dataclass(held) else []
    rows = [(_code(one.name), one.about["help"]) for one in described]
    return f"{said}\n\n{_table(('setting', 'meaning'), rows)}" if rows else said


def public_module_names() -> list[str]:
    """Modules that code outside of the package may import from, beside ``scenemill`` itself."""
    return [f"scenemill.{module}" for module in _MODULES]


def public_modules() -> str:
    """Modules that code outside of the package may use."""
    parts = []
    for module in public_module_names():
        gathers = hasattr(import_module(module), "__path__")  # a package has its names from its modules
        option = "\n   :members:\n   :no-index:" + ("\n   :imported-members:" if gathers else "")
        parts.append(f"## `{module}`\n\n" + _directives([f".. automodule:: {module}{option}"]))
    return "\n\n".join(parts)


def _directives(texts: Iterable[str]) -> str:
    return "```{eval-rst}\n" + "\n\n".join(texts) + "\n```"


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(_ROW.format(" | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in line)) for line in lines)


PAGES: Final[dict[str, Callable[[], str]]] = {
    "fields": field_table,
    "labels": label_table,
    "checks": check_tables,
    "tables": table_schemas,
    "commands": command_line,
    "names": public_names,
    "modules": public_modules,
}
"""Name in a page's ``{generated}`` directive -> its text."""
