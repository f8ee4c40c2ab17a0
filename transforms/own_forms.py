"""Sources of one's own: finding the file that a reference names, running it, and listing its raw folder.

A reference is ``FILE.py:NAME`` or ``package.module:NAME``. It is code, and only ever comes from the one who calls: no store, table
or request names any. Every process that reads loads it anew by its reference and checksum, so no function is ever sent anywhere.
"""

import importlib
import re
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from scenemill.schemas.errors import ConfigError, Conflict, SceneMillError, SourceError
from scenemill.schemas.forms import Arrays, Decode, Form, Listed, RawFile
from scenemill.schemas.places import Place
from scenemill.schemas.sample import Sample, SampleKey
from scenemill.schemas.tables import Finding
from scenemill.transforms.folders import sha256, split_rank

_SHORT: Final = 160
_FILE: Final = ".py"
_SPLIT: Final = re.compile(r"[A-Za-z0-9_.\-]{1,64}", re.ASCII)


@dataclass(frozen=True)
class Own:
    """A source of one's own, found.

    Attributes:
        reference: where its form is; a file by its absolute path.
        digest: SHA-256 of the code that it was read from.
        form: what it says.
    """

    reference: str
    digest: str
    form: Form


def find_own(reference: str) -> Own:
    """Find, and run, the code that a reference names.

    Raises:
        ConfigError: no such file, module or name, it cannot be run, or the name is no ``Form``.
    """
    place, name = _split(reference)
    if place.endswith(_FILE):
        path = Path(place).expanduser().resolve()
        place, digest = str(path), sha256(_read_code(path))
    else:
        digest = _import(place)[1]
    whole = f"{place}:{name}"
    return Own(whole, digest, load_form(whole, digest))


@lru_cache(maxsize=8)
def load_form(reference: str, digest: str) -> Form:
    """The form of a reference, run once per process.

    Args:
        reference: as ``find_own`` gives it.
        digest: of the code it shall be.

    Raises:
        ConfigError: it cannot be loaded here.
        Conflict: the code is another than it was.
    """
    place, name = _split(reference)
    if place.endswith(_FILE):
        code = _read_code(Path(place))
        _check_digest(sha256(code), digest, reference)
        module = _run(code, place)
    else:
        module, found = _import(place)
        _check_digest(found, digest, reference)
    if not hasattr(module, name):
        held = ", ".join(key for key, value in vars(module).items() if isinstance(value, Form))
        raise ConfigError(f"source {reference}: no {name} in it; its forms are {held or 'none'}")
    form = getattr(module, name)
    if not isinstance(form, Form):
        raise ConfigError(f"source {reference}: {name} is {type(form).__name__}; make it a scenemill.Form")
    return replace(form, files=tuple(_careful(file, form) for file in form.files))


def _split(reference: str) -> tuple[str, str]:
    place, _, name = reference.rpartition(":")
    if not place or not name.isidentifier() or ":" in place:
        raise ConfigError(f"source {reference!r}: write FILE.py:NAME or package.module:NAME, of code on this machine")
    return place, name


def _check_digest(found: str, wanted: str, reference: str) -> None:
    if found != wanted:
        raise Conflict(f"source {reference}: its code changed while the run was under way; run again")


def _read_code(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"source {path}: cannot be read ({error.strerror}); every worker needs it at this path") from error


def _run(code: bytes, place: str) -> ModuleType:
    """The bytes that were summed, run as a module: not read again, and leaving nothing beside the file."""
    module = ModuleType(f"scenemill_own_{sha256(code)[:16]}")
    module.__file__ = place
    sys.modules[module.__name__] = module  # dataclasses look themselves up there
    try:
        exec(compile(code, place, "exec"), module.__dict__)  # noqa: S102 (code that the user names on the command line)
    except Exception as error:
        raise ConfigError(f"source {place}: cannot be run: {tell(error)}") from error
    return module


@cache
def _import(name: str) -> tuple[ModuleType, str]:
    """An installed module, and the checksum of its file when it was imported."""
    try:
        module = importlib.import_module(name)
    except Exception as error:
        raise ConfigError(f"source {name}: cannot be imported: {tell(error)}; install it for every worker") from error
    file = getattr(module, "__file__", None)
    if not file:
        raise ConfigError(f"source {name}: no file; name the module that holds the form")
    return module, sha256(_read_code(Path(file)))


def tell(error: BaseException) -> str:
    """An error of foreign code in words: class, message and the line it came from."""
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, SyntaxError) or not frames:
        return f"{type(error).__name__}: {str(error)[:_SHORT]}"
    return f"{type(error).__name__}: {str(error)[:_SHORT]} ({Path(frames[-1].filename).name}, line {frames[-1].lineno})"


def _careful(file: RawFile, form: Form) -> RawFile:
    fills = {field.name: field.fill for field in form.fields if field.name in file.fields}
    return replace(file, decode=partial(_decode, file.decode, file.kind, fills))


def _decode(
    decode: Decode,
    kind: str,
    fills: Mapping[str, Any],
    data: bytes,
    arrays: Arrays,
    facts: dict[str, Any],
) -> None:
    """Decode into arrays that hold nothing of the sample before; whatever goes wrong there rejects the sample."""
    for name, value in fills.items():
        arrays[name][...] = value
    try:
        decode(data, arrays, facts)
    except (SceneMillError, MemoryError):
        raise
    except Exception as error:
        raise SourceError("decode", tell(error), f"a file of the kind {kind!r} that the source can read") from error


def check_own(form: Form, sample: Sample) -> Iterator[Finding]:
    """What the form's own checks find; one that fails rejects the sample, for nothing is known of it then."""
    for check in form.checks:
        try:
            yield from list(check(sample))
        except (SceneMillError, MemoryError):
            raise
        except Exception as error:
            name = getattr(check, "__name__", "check")
            yield Finding("check", "", "error", f"{name} failed: {tell(error)}", "an answer: mend the check, or the sample")


def paths_of(form: Form, key: SampleKey) -> dict[str, str]:
    """Kind -> path inside the raw folder.

    Raises:
        SourceError: the form has none for this key.
        ConfigError: its function fails, or leaves a kind out.
    """
    try:
        paths = dict(form.paths(key))
    except SceneMillError:
        raise
    except Exception as error:
        raise ConfigError(f"source {form.name!r}: paths({str(key)!r}) fails: {tell(error)}") from error
    kinds = [file.kind for file in form.files]
    if set(paths) != {*kinds} or not all(isinstance(path, str) and path for path in paths.values()):
        raise ConfigError(f"source {form.name!r}: paths({str(key)!r}) gives {str(paths)[:_SHORT]}; give a path for each of {kinds}")
    return {kind: paths[kind] for kind in kinds}


def list_own(own: Own, root: Place, splits: Sequence[str]) -> tuple[dict[str, Listed], dict[str, list[Finding]]]:
    """What the form lists, by key, and what is wrong with it.

    Args:
        own: the source.
        root: the raw folder.
        splits: names of the splits to take; empty for all.

    Raises:
        ConfigError: the form's function fails or gives something else, or there is no such split.
    """
    found: dict[str, Listed] = {}
    findings: dict[str, list[Finding]] = {}
    for given in _given(own, root):
        problem = _problem(own.form, given.key)
        if problem:
            findings.setdefault(ascii(given.key)[1:-1], []).append(Finding("list", "", "error", problem, "a key scene/image"))
            continue
        before = found.get(given.key)
        if before is not None and {*before.splits} & {*given.splits}:
            observed = f"twice in {', '.join(sorted({*before.splits} & {*given.splits}))}"
            findings.setdefault(given.key, []).append(Finding("list", "", "warning", observed, "once"))
        names = {*given.splits, *(before.splits if before else ())}
        found[given.key] = Listed(given.key, tuple(sorted(names, key=split_rank)), size=(before or given).size)
    return _chosen(found, splits, own), findings


def _given(own: Own, root: Place) -> Iterable[Listed]:
    try:
        listed = list(own.form.list_samples(root))
    except SceneMillError:
        raise
    except Exception as error:
        raise ConfigError(f"source {own.reference}: list_samples({root}) fails: {tell(error)}; is it the right folder?") from error
    for one in listed:
        if not _is_listed(one):
            raise ConfigError(f"source {own.reference}: list_samples gives {str(one)[:_SHORT]}; give Listed(key, (split, ...))")
    return listed


def _is_listed(one: object) -> bool:
    if not isinstance(one, Listed) or not isinstance(one.key, str) or not isinstance(one.splits, tuple):
        return False
    return bool(one.splits) and all(isinstance(name, str) and _SPLIT.fullmatch(name) for name in one.splits)


def _problem(form: Form, text: str) -> str:
    """Why a key is none of the form's; "" where it is one."""
    try:
        key = SampleKey.parse(text)
    except ConfigError as error:
        return str(error)
    try:
        paths_of(form, key)
    except SourceError as error:
        return str(error)
    return ""


def _chosen(found: dict[str, Listed], splits: Sequence[str], own: Own) -> dict[str, Listed]:
    known = sorted({name for one in found.values() for name in one.splits}, key=split_rank)
    if strange := [name for name in splits if name not in known]:
        raise ConfigError(
            f"--splits {', '.join(strange)}: {own.reference} lists {', '.join(known) or 'nothing'}; lists of files are its affair"
        )
    if not splits:
        return found
    kept = {key: replace(one, splits=tuple(name for name in one.splits if name in splits)) for key, one in found.items()}
    return {key: one for key, one in kept.items() if one.splits}
