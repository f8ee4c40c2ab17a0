"""The token that clients of the job service must have: from the environment, else in a file that only its owner reads."""

import os
import secrets
import stat
from pathlib import Path
from typing import Final

from scenemill.schemas.errors import ConfigError

TOKEN_VARIABLE: Final = "SCENEMILL_JOBS_TOKEN"  # noqa: S105 (a name)
"""Of the environment; it counts before any file."""

TOKEN_FILE: Final = "token"  # noqa: S105 (a name)
"""In the service's folder."""

_SHORTEST: Final = 16  # characters


def default_home() -> Path:
    """The service's folder where none is named, in the user's state."""
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "scenemill" / "jobs"


def make_token(home: Path) -> str:
    """The token of a service; one is made when there is none.

    Raises:
        ConfigError: one that is short or holds other signs, or a file that others can read.
    """
    path = home / TOKEN_FILE
    if not os.environ.get(TOKEN_VARIABLE) and not path.exists():
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
    return read_token(path)


def read_token(path: Path) -> str:
    """The token of the environment, else that of a file.

    Raises:
        ConfigError: as ``make_token``; or there is none.
    """
    given = os.environ.get(TOKEN_VARIABLE)
    if given:
        return _checked(given, f"the token in {TOKEN_VARIABLE}")
    try:
        with path.open() as file:
            held = os.fstat(file.fileno())
            token = file.read(4096).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"token {path}: {getattr(error, 'strerror', None) or 'no text'}; start scenemill serve-jobs, which makes it, "
            f"name its file with --token-file, or set {TOKEN_VARIABLE}"
        ) from error
    if held.st_uid != os.geteuid() or stat.S_IMODE(held.st_mode) & 0o077:
        raise ConfigError(f"token {path}: others can read it, or own it; chmod 600 it, or remove it for a new one")
    return _checked(token, f"token {path}")


def _checked(token: str, what: str) -> str:
    if len(token) < _SHORTEST or not (token.isascii() and token.isalnum()):
        raise ConfigError(f"{what}: {len(token)} characters; allowed are {_SHORTEST} letters and digits, or more")
    return token
