"""The error tree, grouped by what the person who catches an error does next.

Every message says what, where, and what to do now. Each class also is the builtin that a Python reader expects.
"""


class SceneMillError(Exception):
    """Anything scenemill raises on purpose."""


class ConfigError(SceneMillError, ValueError):
    """The call is wrong: fix it. Exit code 2."""


class SourceError(SceneMillError, OSError):
    """One raw file is unusable; inside a run it becomes a finding and the run goes on.

    Attributes:
        check: name of the check that failed, as in the findings table.
        observed: what was found, in words.
        expected: what was wanted, in words.
    """

    def __init__(self, check: str, observed: str, expected: str) -> None:
        super().__init__(f"{check}: found {observed}; expected {expected}")
        self.check = check
        self.observed = observed
        self.expected = expected

    def __reduce__(self) -> tuple[type["SourceError"], tuple[str, str, str]]:
        return (type(self), (self.check, self.observed, self.expected))


class StoreError(SceneMillError):
    """Something about a store."""


class NotPublished(StoreError, FileNotFoundError):
    """There is nothing to read here yet."""


class Corrupt(StoreError, ValueError):
    """A checksum or a count differs from what was published: stop, the message names the part."""


class WrongVersion(StoreError, ValueError):
    """Written by another format version; the message carries the command that converts it."""


class Conflict(StoreError, RuntimeError):
    """Another run holds or has published this store: read again, retry."""


class TooManyRejected(SceneMillError, RuntimeError):
    """More samples were rejected than allowed; nothing was published. Exit code 3."""


class TransientError(SceneMillError, OSError):
    """A passing fault of storage or network: the only class that retry code catches."""
