"""From a job's spec to the command that does it: the spec is checked, its paths are held against the roots, its secrets taken out."""

import copy
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from scenemill.pipelines.experiments.specs import json_schema, override_settings, settings_schema
from scenemill.pipelines.jobs.roots import RESULTS, JobRoots
from scenemill.schemas.config import IngestConfig, parse_max_rejected
from scenemill.schemas.errors import ConfigError
from scenemill.schemas.experiment import ExperimentConfig, results_folder
from scenemill.schemas.fields import VIEWS
from scenemill.schemas.fit import FitConfig
from scenemill.schemas.jobs import FitSpec, IngestSpec, kind_of
from scenemill.schemas.settings import settings, shorten, walk

SPEC_FILE: Final = "spec.json"
"""In a job's folder: the experiment as its command reads it."""

REQUEST_FILE: Final = "request.json"
"""Beside it: the spec as it was given. Both hold secrets, and only their owner reads them."""

_PARENT: Final = re.compile(r"\{parent\.([a-z]+)\}(/.*)?")
_INSIDE_BASE: Final = ("json_path", "label_map", "frustum_mask_path")  # may be relative, to a split's base_dir
_SPHERE: Final = "sphere"
_LATEST: Final = "*_latest.pth"

Place = Callable[[str, str], str]
Spec = dict[str, Any]


@dataclass(frozen=True)
class Command:
    """What a job runs.

    Attributes:
        arguments: of the process.
        spec: for ``SPEC_FILE``, secrets included; None where the arguments say it all.
        results: paths that it will leave, by name.
    """

    arguments: tuple[str, ...]
    spec: Spec | None
    results: Mapping[str, str]


def schema_of(kind: str) -> dict[str, Any]:
    """JSON Schema of a kind's spec, as ``scenemill schema`` prints it; its ``default`` is a whole spec.

    Raises:
        ConfigError: no such kind.
    """
    held = kind_of(kind).settings
    schema = json_schema(kind) if held is ExperimentConfig else settings_schema(f"scenemill {kind}", settings(held))
    return {**schema, "default": _tree(held())}


def check_spec(kind: str, spec: Spec, roots: JobRoots, parent: str | None) -> None:
    """Refuse a spec that can never run.

    Args:
        kind: of the job.
        spec: as it was given.
        roots: where its paths may be.
        parent: kind of its parent; None for no parent.

    Raises:
        ConfigError: a setting is wrong, out of reach, or asks for what the parent does not leave.
    """
    _check_text(spec)
    offered = kind_of(parent).results if parent else ()

    def place(setting: str, text: str) -> str:
        if not text.startswith("{parent."):
            return roots.locate(setting, text)
        asked = _PARENT.fullmatch(text)
        if not asked or asked[1] not in offered:
            allowed = ", ".join(f"{{parent.{name}}}" for name in offered) or "a path: this job has no parent"
            raise ConfigError(f"{setting}={shorten(text)}: allowed is {allowed}")
        return text

    _place_paths(kind, spec, place, roots)


def check_needed(kind: str, spec: Spec) -> None:
    """Refuse a spec that leaves its command nothing to do.

    Raises:
        ConfigError: a path that is needed is empty.
    """
    held = {name: value for name, _, value in walk(override_settings(kind_of(kind).settings, spec, (), kind))}
    if missing := [name for name in kind_of(kind).needed if not held[name]]:
        raise ConfigError(f"{kind}: {', '.join(missing)} not given; name a path: {missing[0]}=/data/...")


def without_secrets(kind: str, spec: Spec) -> Spec:
    """A copy of a spec that anybody may see."""
    shown = copy.deepcopy(spec)
    for name, setting, _ in walk(kind_of(kind).settings()):
        if setting.about.get("secret"):
            group, _, last = name.rpartition(".")
            (_group(shown, group) if group else shown).pop(last, None)
    return shown


def make_command(kind: str, spec: Spec, roots: JobRoots, folder: Path, given: Mapping[str, str]) -> Command:
    """The command of a job that is to start now.

    Args:
        kind: of the job.
        spec: as it was given.
        roots: where its paths may be; they are looked at again, for links may have changed.
        folder: the job's own.
        given: what its parent left.

    Raises:
        ConfigError: as ``check_spec``; or the parent left nothing of that name.
    """

    def place(setting: str, text: str) -> str:
        asked = _PARENT.fullmatch(text)
        if asked and asked[1] not in given:
            raise ConfigError(f"{setting}: the parent left no {asked[1]}; look at its log")
        return roots.locate(setting, given[asked[1]] + (asked[2] or "") if asked else text)

    placed = _place_paths(kind, spec, place, roots)
    results = folder / RESULTS
    if kind == "ingest":
        return _ingest(override_settings(IngestSpec, placed, (), kind), results)
    if kind == "fit":
        return _fit(override_settings(FitSpec, placed, (), kind), results)
    return _experiment(kind, placed, results, folder)


def results_left(promised: Mapping[str, str]) -> dict[str, str]:
    """What is there of the results of a job that succeeded; of a folder of checkpoints the newest one."""
    left = {name: path for name, path in promised.items() if Path(path).exists()}
    if "checkpoint" in left:
        latest = list(Path(left.pop("checkpoint")).glob(_LATEST))
        if len(latest) == 1 and latest[0].is_file():
            left["checkpoint"] = str(latest[0].resolve())
    return left


def _check_text(spec: Spec) -> None:
    """Refuse what no file and no argument could hold: numbers that are none, halves of characters, zero bytes."""
    try:
        text = json.dumps(spec, allow_nan=False, ensure_ascii=False)
        text.encode()
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"spec: not plain JSON ({type(error).__name__}); give numbers, texts, lists and mappings") from error
    if "\\u0000" in text:
        raise ConfigError("spec: a text with a zero byte in it; leave it out")


def _place_paths(kind: str, spec: Spec, place: Place, roots: JobRoots) -> Spec:
    """A copy of a checked spec, whose paths are those that ``place`` makes of them."""
    config: Any = override_settings(kind_of(kind).settings, spec, (), kind)
    held = {name: value for name, _, value in walk(config)}
    paths = {name: held[name] for name in kind_of(kind).paths if held[name] and (name, held[name]) != ("template", _SPHERE)}
    inside = {name: text for name, text in paths.items() if name.endswith(_INSIDE_BASE) and not text.startswith(("/", "{"))}
    placed = {name: place(name, text) for name, text in paths.items() if name not in inside}
    bases = [path for name, path in placed.items() if name.endswith(".base_dir") and not path.startswith("{")]
    for name, text in inside.items():
        roots.check_inside(name, text, bases)
    made = copy.deepcopy(spec)
    for name, path in placed.items():
        group, _, last = name.rpartition(".")
        _group(made, group)[last] = path
    if isinstance(config, IngestSpec):
        _check_ingest(config)
        made["splits"] = [_place_split(split, place) for split in config.splits]
    return made


def _place_split(split: str, place: Place) -> str:
    name, equals, path = split.partition("=")
    if "," in split or "/" in name or not name:
        raise ConfigError(f"splits: {shorten(split)}: allowed is NAME or NAME=FILE, without a comma")
    return f"{name}={place('splits', path)}" if equals else name


def _check_ingest(spec: IngestSpec) -> None:
    """Refuse what the options of an ingest do not allow together."""
    allowed = None if spec.max_rejected is None else parse_max_rejected(spec.max_rejected)
    IngestConfig(spec.source, Path(spec.input), precision=spec.precision, max_rejected=allowed)


def _group(tree: Spec, dotted: str) -> Spec:
    """The mapping of a group of settings, made where it is not there."""
    for part in dotted.split(".") if dotted else ():
        if tree.get(part) is None:
            tree[part] = {}
        tree = tree[part]
    return tree


def _tree(config: Any) -> Spec:
    """All settings of an object as JSON takes them."""
    tree: Spec = {}
    for setting in settings(type(config)):
        value = getattr(config, setting.name)
        tree[setting.name] = _tree(value) if setting.is_group else list(value) if isinstance(value, tuple) else value
    return tree


def _cli(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "scenemill.pipelines.cli", *arguments)


def _experiment(kind: str, spec: Spec, results: Path, folder: Path) -> Command:
    config = override_settings(ExperimentConfig, spec, (), kind)
    if not config.results_dir and not getattr(config, kind).results_dir:
        spec = {**spec, "results_dir": str(results)}
        config = replace(config, results_dir=str(results))
    written = str(Path(results_folder(config, kind)).resolve())
    left = {"results": written, **({"checkpoint": written} if kind == "train" else {})}
    return Command(_cli(kind, "-e", str(folder / SPEC_FILE)), spec, left)


def _ingest(spec: IngestSpec, results: Path) -> Command:
    output = spec.output or str(results / "store")
    options = {
        "input": spec.input,
        "output": output,
        "limit": spec.limit,
        "workers": spec.workers,
        "max-rejected": spec.max_rejected,
        "precision": spec.precision,
        "samples-per-part": spec.samples_per_part,
    }
    splits = [f"--splits={split}" for split in spec.splits]
    repair = ["--repair"] if spec.repair else []
    return Command(_cli("ingest", spec.source, *_options(options), *splits, *repair), None, {"store": output})


def _fit(spec: FitSpec, results: Path) -> Command:
    out = spec.out or str(results)
    options = {
        "out": out,
        "template": spec.template,
        "split": spec.split,
        "held-out": spec.held_out,
        "scene": spec.scene,
        "truth": spec.truth or None,
        "tables": spec.tables or None,
        "name": spec.name,
        "device": spec.device,
    }
    plain = FitConfig()
    changed = [
        f"{setting.name}={json.dumps(value)}"
        for setting in settings(FitConfig)
        if (value := getattr(spec.settings, setting.name)) != getattr(plain, setting.name)
    ]
    return Command(_cli("fit", VIEWS, spec.store, *changed, *_options(options)), None, {"results": out})


def _options(values: Mapping[str, object]) -> Iterator[str]:
    """Options of the command line, each with its value in one argument, so that no value is taken for an option."""
    return (f"--{name}={value}" for name, value in values.items() if value is not None)
