"""Spec files: YAML or JSON into an ``ExperimentConfig``, and back; default files, JSON Schema, and the specs that come along.

Files are data only: no tags, no anchors, no links to other values. All that is wrong with a file is told at once, each by the full
name of its setting, its value, and what is allowed.
"""

import json
import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, TypeVar, get_args, get_origin

import yaml

from scenemill.schemas.errors import ConfigError
from scenemill.schemas.experiment import ACTIONS, ExperimentConfig
from scenemill.schemas.places import NO_CREDENTIALS, has_credentials, texts_in
from scenemill.schemas.settings import Setting, settings, shorten

LIMIT_BYTE: Final = 1 << 18  # a spec with all settings and their help is a tenth of this
_TOLD: Final = 40  # problems of one file
_NEAR: Final = 0.7  # how alike two names are, 0..1, for one to be meant by the other
_SHIPPED: Final = Path(__file__).parent / "shipped"
_TO_BE_SET: Final = "???"  # what the toolkit writes for a value that its user must fill in
_FLOAT: Final = "tag:yaml.org,2002:float"
_EXPONENT: Final = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$")  # YAML 1.1 takes 1e-4 for text, YAML 1.2 for a number
_WIDE: Final = 1 << 20
_READS: Final = {
    "train": ("train", "dataset", "model", "wandb"),
    "evaluate": ("evaluate", "dataset", "model"),
    "inference": ("inference", "dataset", "model"),
    "export": ("export", "model", "dataset"),
    "gen_trt_engine": ("gen_trt_engine",),
}
_TYPES: Final = {int: "integer", float: "number", str: "string", bool: "boolean", type(None): "null"}
Group = TypeVar("Group")


def load_spec(path: Path | str | None, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """The settings of a spec file, changed by ``key.sub=value``; None for the defaults.

    Raises:
        ConfigError: no such file, or something is wrong with what it or an override says; all of it is told.
    """
    if path is None:
        return read_spec("", overrides)
    return read_spec(read_text(path), overrides, str(path))


def load_tree(path: Path | None, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The mapping of a spec file, or of a spec that comes along by its name, changed by ``key.sub=value``; whatever its settings are.

    Raises:
        ConfigError: no such file, no mapping in it, or something is wrong with an override.
    """
    tree: dict[str, Any] = {}
    if path is not None:
        shipped = not path.is_file() and str(path) in list_specs()
        tree = read_tree(spec_text(str(path)) if shipped else read_text(path), str(path))
    for override in overrides:
        try:
            _override(tree, override)
        except ValueError as error:
            raise ConfigError(str(error)) from error
    return tree


def read_text(path: Path | str) -> str:
    """The text of a settings file.

    Raises:
        ConfigError: no such file, no text, or too much of it.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(LIMIT_BYTE + 1)
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; give a spec file") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not text in UTF-8 (byte {error.start}); give a YAML or JSON file") from error
    if len(data) > LIMIT_BYTE:
        raise ConfigError(f"{path}: larger than {LIMIT_BYTE >> 10} KiB, which no spec is")
    return text


def read_spec(text: str, overrides: Sequence[str] = (), name: str = "spec") -> ExperimentConfig:
    """The settings of a spec's text; ``name`` is what messages call it. A name that ends in .json is JSON, else both are tried.

    Raises:
        ConfigError: something is wrong with what it or an override says; all of it is told.

    >>> read_spec("train: {optim: {lr: 1e-3}}", ["train.num_epochs=3"]).train.optim.lr
    0.001
    """
    return override_settings(ExperimentConfig, read_tree(text, name), overrides, name)


def read_tree(text: str, name: str) -> dict[str, Any]:
    """The mapping that a spec's text holds, whatever its settings are; see ``read_spec``.

    Raises:
        ConfigError: no YAML and no JSON, or no mapping.
    """
    try:
        tree = _parse(text, name.endswith(".json"))
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from error
    if tree is not None and not isinstance(tree, dict):
        raise ConfigError(f"{name}: holds {shorten(tree)}; a spec is a mapping of settings, such as train: {{num_epochs: 10}}")
    return tree or {}


def override_settings(kind: type[Group], given: dict[str, Any], overrides: Sequence[str], name: str) -> Group:
    """Settings of a class from a mapping, changed by ``key.sub=value``; ``name`` is what messages call them.

    Raises:
        ConfigError: something is wrong with what the mapping or an override says; all of it is told.
    """
    wrong: list[str] = []
    for override in overrides:
        try:
            _override(given, override)
        except ValueError as error:
            wrong.append(str(error))
    config = _build(kind, given, "", wrong, kind)
    if len(wrong) == 1:
        raise ConfigError(f"{name}: {wrong[0]}")
    if wrong:
        more = [f"and {len(wrong) - _TOLD} more"] if len(wrong) > _TOLD else []
        raise ConfigError("\n  ".join([f"{name}: {len(wrong)} problems", *wrong[:_TOLD], *more]))
    return config


def default_spec(action: str) -> str:
    """A spec file with every setting at its default, with its help and range; first what the action reads.

    Raises:
        ConfigError: no such action.
    """
    first, rest = _ordered(action)
    lines = [f"# All settings and their defaults, for {action}. A setting that is left out has its default."]
    lines += _lines(ExperimentConfig(), first, explained=True)
    lines += [
        "",
        f"# What follows is for other actions; {action} does not read it.",
        *_lines(ExperimentConfig(), rest, explained=True),
    ]
    return "\n".join(lines) + "\n"


def resolved(config: ExperimentConfig) -> str:
    """The spec file that makes ``config``, every setting in it: what a run leaves as ``experiment.yaml``. Secrets are left out."""
    return "\n".join(_lines(config, settings(ExperimentConfig), explained=False)) + "\n"


def json_schema(action: str) -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a spec file; first what the action reads.

    Beyond the standard words, ``automl_enabled`` marks what a search over settings may vary; ``deprecated`` is what nothing reads.
    What depends on two settings is not in it. It knows options as they are spelled; ``load_spec`` takes some in any case.

    Raises:
        ConfigError: no such action.
    """
    first, rest = _ordered(action)
    return settings_schema(f"scenemill {action}", (*first, *rest))


def settings_schema(title: str, chosen: Sequence[Setting]) -> dict[str, Any]:
    """JSON Schema of settings of any class; see ``json_schema``."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title, **_group_schema(chosen)}


def list_specs() -> tuple[str, ...]:
    """Names of the specs that come along."""
    return tuple(sorted(path.stem for path in _SHIPPED.glob("*.yaml")))


def spec_text(name: str) -> str:
    """The text of a spec that comes along.

    Raises:
        ConfigError: no such spec.
    """
    if name not in list_specs():
        raise ConfigError(f"spec {name!r} is not known; use one of {', '.join(list_specs())}")
    return (_SHIPPED / f"{name}.yaml").read_text(encoding="utf-8")


class _Loader(yaml.SafeLoader):
    """Safe YAML with less in it: no aliases, no key twice."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(None, None, "anchors and aliases are not read: write the value out", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen if isinstance(key, yaml.ScalarNode) else False:
                raise yaml.MarkedYAMLError(None, None, f"{shorten(key.value)} twice", key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Safe YAML that quotes the texts which ``_Loader`` would read as numbers."""


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(_FLOAT, _EXPONENT, list("-+0123456789"))


def _parse(text: str, is_json: bool = False) -> Any:
    """Raises ValueError, in words, for what is no YAML and no JSON."""
    if is_json or text.lstrip().startswith("{"):
        try:
            return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
        except RecursionError:
            raise ValueError("nested too deeply") from None
        except ValueError as error:
            if is_json or not isinstance(error, json.JSONDecodeError):
                raise ValueError(f"not JSON: {error}") from error
    try:
        return yaml.load(text, _Loader)  # noqa: S506 (a safe one)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        told = ", ".join(part for part in (error.context, error.problem) if part)
        raise ValueError(f"not a spec in YAML: {told}{where}") from error
    except (ValueError, TypeError, OverflowError, LookupError, AttributeError, yaml.YAMLError) as error:
        told = (str(error).splitlines() or [type(error).__name__])[0]  # such as the 31st of February, or "!!int ''"
        raise ValueError(f"not a spec in YAML: {told}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{shorten(next(name for name in names if names.count(name) > 1))} twice")
    return made


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _override(tree: dict[Any, Any], text: str) -> None:
    """Set what ``key.sub=value`` says. Raises ValueError, in words."""
    dotted, equals, value = text.partition("=")
    if not equals or not dotted.strip():
        raise ValueError(f"{shorten(text)}: an override is key.sub=value, such as train.num_epochs=3")
    try:
        parsed = _parse(value) if value.strip() else ""
    except ValueError as error:
        raise ValueError(f"{dotted}: {error}; put text that YAML would take for more in quotes") from error
    if isinstance(parsed, dict):
        raise ValueError(f"{dotted}: a mapping; set one setting at a time, and put text with a colon in quotes")
    *groups, last = dotted.strip().split(".")
    for group in groups:
        inner = {} if tree.get(group) is None else tree[group]
        if not isinstance(inner, dict):
            raise ValueError(f"{dotted}: {group} is a value there, and holds no settings")
        tree[group] = inner
        tree = inner
    tree[last] = parsed


def _build(kind: type[Group], tree: dict[Any, Any], prefix: str, wrong: list[str], root: type) -> Group:
    """A settings object from its mapping; what is wrong is added to ``wrong``, and the defaults are returned instead."""
    known = {setting.name: setting for setting in settings(kind)}
    values: dict[str, Any] = {}
    for key, value in tree.items():
        setting = known.get(key)
        if setting is None:
            wrong.append(_unknown(f"{prefix}{key}", root) if len(wrong) < _TOLD else "")
        elif setting.is_group:
            if isinstance(value, dict):
                values[key] = _build(setting.hint, value, f"{prefix}{key}.", wrong, root)
            elif value is not None:
                names = ", ".join(inner.name for inner in settings(setting.hint))
                wrong.append(f"{prefix}{key}={shorten(value)}: allowed is a group of {names}")
        elif has_credentials(value) and not setting.about.get("secret"):
            wrong.append(f"{prefix}{key}: {NO_CREDENTIALS}")
        elif _links(value) and not setting.about.get("secret"):
            wrong.append(f"{prefix}{setting.shown(value)}: allowed is a value; ${{...}} is not replaced, so write it out")
        elif value != _TO_BE_SET:
            values[key] = value
    try:
        return kind(**values)
    except ConfigError as error:
        wrong += [f"{prefix}{line}" for line in str(error).split("\n")]
        return kind()


def _links(value: Any) -> bool:
    return any("${" in text for text in texts_in(value))


def _unknown(dotted: str, root: type) -> str:
    """Words for a setting that does not exist, with the name that was probably meant."""
    group, _, last = dotted.rpartition(".")
    anywhere: dict[str, str] = {}  # by the last part of the name, the first of its kind
    for name in _names(root):
        anywhere.setdefault(name.rpartition(".")[2], name)
    beside = {name.rpartition(".")[2]: name for name in _names(root) if name.rpartition(".")[0] == group}
    near = [names[part] for names in (beside, anywhere) for part in get_close_matches(last, names, 1, _NEAR)]
    meant = f"did you mean {near[0]}?" if near else f"allowed here is {', '.join(beside)}"
    return f"{shorten(dotted)[1:-1]}: no such setting; {meant}"


def _names(kind: type, prefix: str = "") -> Iterator[str]:
    for setting in settings(kind):
        yield f"{prefix}{setting.name}"
        if setting.is_group:
            yield from _names(setting.hint, f"{prefix}{setting.name}.")


def _ordered(action: str) -> tuple[tuple[Setting, ...], tuple[Setting, ...]]:
    """The settings of a spec: those that an action reads, in order, and the others."""
    if action not in ACTIONS:
        raise ConfigError(f"action {action!r} is not known; use one of {', '.join(ACTIONS)}")
    known = {setting.name: setting for setting in settings(ExperimentConfig)}
    first = [name for name, setting in known.items() if not setting.is_group] + list(_READS[action])
    return tuple(known[name] for name in first), tuple(setting for name, setting in known.items() if name not in first)


def _lines(config: Any, chosen: Sequence[Setting], *, explained: bool, indent: str = "") -> Iterator[str]:
    """The lines of a YAML file that make these settings of ``config``."""
    for setting in chosen:
        value = getattr(config, setting.name)
        if setting.is_group:
            if explained:
                yield from ([""] if not indent else [])
                yield f"{indent}# {setting.about['help']}"
            yield f"{indent}{setting.name}:"
            yield from _lines(value, settings(setting.hint), explained=explained, indent=f"{indent}  ")
            continue
        if explained:
            unread = " Accepted, but not read." if setting.about.get("dead") else ""
            automl = " AutoML may vary it." if setting.about.get("automl") else ""
            default = _scalar(setting.default)
            yield f"{indent}# {setting.about['help']}{unread}{automl} Allowed: {setting.allowed}. Default: {default}"
        if setting.about.get("secret") and value:
            yield f"{indent}{setting.name}: null  # was set; left out here"
        else:
            yield f"{indent}{setting.name}: {_scalar(value)}"


def _scalar(value: Any) -> str:
    """A value in one line of YAML."""
    plain = list(value) if isinstance(value, tuple) else value
    text = yaml.dump(plain, Dumper=_Dumper, default_flow_style=True, width=_WIDE, allow_unicode=True)
    text = text.removesuffix("\n").removesuffix("\n...")
    if "\n" in text:
        text = yaml.dump(plain, Dumper=_Dumper, default_flow_style=True, default_style='"', width=_WIDE).removesuffix("\n")
    return text


def _group_schema(chosen: Sequence[Setting]) -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            setting.name: {"description": setting.about["help"], **_group_schema(settings(setting.hint))}
            if setting.is_group
            else _setting_schema(setting)
            for setting in chosen
        },
    }


def _setting_schema(setting: Setting) -> dict[str, Any]:
    about, default = setting.about, setting.default
    words = f" Allowed: {about['words']}." if "words" in about else ""
    return {
        "description": f"{about['help']}{words}",
        **_type_schema(setting.hint, setting),
        "default": list(default) if isinstance(default, tuple) else default,
        **({"deprecated": True} if about.get("dead") else {}),
        **({"automl_enabled": True} if about.get("automl") else {}),
    }


def _type_schema(hint: Any, setting: Setting) -> dict[str, Any]:
    about, parts = setting.about, get_args(hint)
    if get_origin(hint) is tuple:
        count = {} if Ellipsis in parts else {"minItems": len(parts), "maxItems": len(parts)}
        return {"type": "array", "items": _type_schema(parts[0], setting), **count}
    if parts:
        return {"anyOf": [_type_schema(part, setting) for part in parts]}
    made: dict[str, Any] = {"type": _TYPES[hint]}
    if hint is not type(None) and "options" in about:
        made["enum"] = list(about["options"])
    if hint in (int, float):
        words = {"least": "minimum", "above": "exclusiveMinimum", "most": "maximum", "multiple": "multipleOf"}
        made |= {words[limit]: value for limit, value in about.items() if limit in words}
    return made
