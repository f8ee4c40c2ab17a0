"""What the commands print on: a console for a person, one JSON document for machines; and how much of it is wanted."""

import json
import logging
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict, is_dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn

if TYPE_CHECKING:
    from rich.console import Console

_NOISY: Final = ("apache_beam", "distributed")  # what they log of a failure is told once, by us
_wanted = {"quiet": False, "verbose": False}


def want(quiet: bool, verbose: bool) -> None:
    """How much this process says on standard error: with ``quiet`` errors alone, with ``verbose`` also what libraries log."""
    _wanted.update(quiet=quiet, verbose=verbose)
    for library in _NOISY:
        logging.getLogger(library).setLevel(logging.NOTSET if verbose else logging.CRITICAL)
    if verbose:
        logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")


def is_quiet() -> bool:
    """Whether progress is to be left out."""
    return _wanted["quiet"]


def console_of(stderr: bool = False) -> "Console":
    """A console; it honours NO_COLOR, FORCE_COLOR and TERM, and draws no colours into a file or a pipe."""
    from rich.console import Console

    return Console(stderr=stderr)


def say(document: Any, as_json: bool, lines: Callable[["Console"], None]) -> None:
    """Print a result: as JSON, or by what draws it for a person."""
    if as_json:
        print(json.dumps(asdict(document) if is_dataclass(document) and not isinstance(document, type) else document, default=str))
    else:
        lines(console_of())


def fail(error: Exception, code: int) -> NoReturn:
    """Say what went wrong, with ``verbose`` where it did, and leave."""
    if _wanted["verbose"]:
        traceback.print_exception(error)
    leave(type(error).__name__, str(error), code)


def leave(what: str, message: str, code: int) -> NoReturn:
    """End the process with a message: a line for a person, or a document for machines."""
    from rich.markup import escape

    if "--json" in sys.argv:
        print(json.dumps({"error": what, "message": message, "exit": code}))
    else:
        console_of(stderr=True).print(f"[bold red]{what}[/]: {escape(message)}", highlight=False, soft_wrap=True)
    sys.exit(code)
