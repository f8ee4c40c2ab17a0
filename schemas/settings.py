"""What a setting is: a typed field of a frozen dataclass, with a line of help and what it may be in the field's metadata."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Final, Required, TypedDict, cast, get_args, get_origin, get_type_hints

from scenemill.schemas.errors import ConfigError

_NAMES: Final = {
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("text", "texts"),
    bool: ("true or false", "true or false"),
    NoneType: ("null", "null"),
}
_LARGEST: Final = 2**63
_SHOWN: Final = 100  # characters of a wrong value


class About(TypedDict, total=False):
    """The metadata of a field. Limits are those of a number, or of each item of a list.

    Attributes:
        help: what the setting does, in one line.
        least, above, most: its range; ``above`` leaves the limit itself out.
        multiple: a whole number that divides it.
        options: the only values it may have, but for null where the type has null.
        any_case: options are recognised in capital and small letters alike, and kept as spelled in ``options``.
        words: what is allowed, where type and limits alone read badly or say too little.
        dead: accepted for the sake of existing files; nothing reads it.
        automl: a search over settings may vary it.
        secret: its value is never shown.
    """

    help: Required[str]
    least: float
    above: float
    most: float
    multiple: int
    options: tuple[str | int, ...]
    any_case: bool
    words: str
    dead: bool
    automl: bool
    secret: bool


@dataclass(frozen=True)
class Setting:
    """One field of a settings class.

    Attributes:
        name: of the field.
        hint: its type; a settings class for a group.
        about: its metadata.
        default: its default; an object of the class for a group.
    """

    name: str
    hint: Any
    about: About
    default: Any

    @property
    def is_group(self) -> bool:
        """Whether it holds settings, not a value."""
        return is_dataclass(self.hint)

    @property
    def limits(self) -> str:
        """Range or options in words; "" for none."""
        about = self.about
        if "words" in about:
            return about["words"]
        if "options" in about:
            return ", ".join(map(repr, about["options"]))
        words = []
        if "least" in about:
            words = [f"{about['least']}..{about['most']}" if "most" in about else f"{about['least']} or more"]
        elif "above" in about:
            words = [f"above {about['above']}", *([f"at most {about['most']}"] if "most" in about else [])]
        elif "most" in about:
            words = [f"at most {about['most']}"]
        return ", ".join([*words, *([f"a multiple of {about['multiple']}"] if "multiple" in about else [])])

    @property
    def allowed(self) -> str:
        """Type and limits in words."""
        if "words" in self.about:
            return self.about["words"]
        if "options" in self.about and get_origin(self.hint) is None:
            return self.limits
        hints = get_args(self.hint) if get_origin(self.hint) is UnionType else (self.hint,)
        each = "each " if get_origin(hints[0]) is tuple else ""
        first = f"{_type_words(hints[0])}, {each}{self.limits}," if self.limits else _type_words(hints[0])
        return " or ".join([first, *map(_type_words, hints[1:])]).removesuffix(",")

    def shown(self, value: object) -> str:
        """``name=value`` for a message, shortened; the name alone where the value is a secret."""
        return self.name if self.about.get("secret") else f"{self.name}={shorten(value)}"

    def read(self, value: object) -> Any:
        """The value in its declared form: a tuple for a list, a float for a whole number, an option as it is spelled.

        Raises:
            ConfigError: another type, or out of range.
        """
        try:
            typed = _typed(self.hint, value)
        except (ValueError, OverflowError) as error:
            quotes = ", in quotes" if self.hint in (str, str | None) and isinstance(value, int | float) else ""
            raise ConfigError(f"{self.shown(value)}: allowed is {self.allowed}{quotes}") from error
        try:
            return _within(self.about, typed)
        except ValueError as error:
            raise ConfigError(f"{self.shown(value)}: allowed is {self.limits}") from error


_KNOWN: Final[dict[type, tuple[Setting, ...]]] = {}  # looked up for every object that is made


def settings(kind: type) -> tuple[Setting, ...]:
    """The settings of a settings class, in order."""
    if kind not in _KNOWN:
        hints = get_type_hints(kind)
        _KNOWN[kind] = tuple(Setting(one.name, hints[one.name], cast(About, one.metadata), _default(one)) for one in fields(kind))
    return _KNOWN[kind]


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def settle(config: Any) -> None:
    """Bring every value of a new settings object into its declared form; to be called when it is made.

    Raises:
        ConfigError: values of another type or out of range, one line for each.
    """
    wrong = []
    for setting in settings(type(config)):
        try:
            object.__setattr__(config, setting.name, setting.read(getattr(config, setting.name)))
        except ConfigError as error:
            wrong.append(str(error))
    if wrong:
        raise ConfigError("\n".join(wrong))


def refuse(wrong: bool, name: str, value: object, allowed: str) -> None:
    """Raise ConfigError if ``wrong``: for what one setting alone cannot tell.

    Raises:
        ConfigError: ``wrong`` is True.
    """
    if wrong:
        raise ConfigError(f"{name}={shorten(value)}: allowed is {allowed}")


def walk(config: Any, prefix: str = "") -> Iterator[tuple[str, Setting, Any]]:
    """Dotted name, setting and value of every setting that is no group, in order."""
    for setting in settings(type(config)):
        name, value = f"{prefix}{setting.name}", getattr(config, setting.name)
        if setting.is_group:
            yield from walk(value, f"{name}.")
        else:
            yield name, setting, value


def shorten(value: object) -> str:
    """The value as Python writes it, cut where it is long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        text = f"<{type(value).__name__}>"  # a whole number of thousands of digits; lists within lists without end
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _type_words(hint: Any) -> str:
    if get_origin(hint) is UnionType:
        return " or ".join(map(_type_words, get_args(hint)))
    if get_origin(hint) is tuple:
        first, *others = get_args(hint)
        count = "" if Ellipsis in others else f"{len(others) + 1} "
        return f"a list of {count}{_NAMES[first][1]}"
    return "a group of settings" if is_dataclass(hint) else _NAMES[hint][0]


def _typed(hint: Any, value: Any) -> Any:
    if get_origin(hint) is UnionType:
        for part in get_args(hint):
            with suppress(ValueError):
                return _typed(part, value)
        raise ValueError
    if get_origin(hint) is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError
        parts = get_args(hint)
        parts = (parts[0],) * len(value) if parts[-1] is Ellipsis else parts
        return tuple(_typed(part, item) for part, item in zip(parts, value, strict=True))
    if isinstance(value, bool) and hint is not bool:
        raise ValueError
    if hint is float and isinstance(value, int):
        return float(value)
    if not isinstance(value, hint) or (hint is int and abs(value) >= _LARGEST):
        raise ValueError
    return value


def _within(about: About, value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_within(about, item) for item in value)
    if value is None:
        return value
    if "options" in about:
        for option in about["options"]:
            if value == option or (about.get("any_case") and str(value).casefold() == str(option).casefold()):
                return option
        raise ValueError
    if isinstance(value, int | float):
        low = "least" not in about or value >= about["least"]  # so written, a value that is not a number fails every limit
        above = "above" not in about or value > about["above"]
        high = "most" not in about or value <= about["most"]
        if not (low and above and high) or ("multiple" in about and value % about["multiple"]):
            raise ValueError
    return value
