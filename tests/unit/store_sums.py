"""A store as checksums, for tests of runs that must leave the same bytes."""

import hashlib
from pathlib import Path

LOCK = ".scenemill.lock"


def sums_of(store: Path) -> dict[str, str]:
    """Relative path -> SHA-256 of every file but the lock and what depends on time and place: the folder of runs."""
    files = [path for path in store.rglob("*") if path.is_file() and path.name != LOCK]
    named = {path.relative_to(store): path for path in files}
    return {
        name.as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for name, path in named.items() if name.parts[0] != "runs"
    }
