"""What the fault suites share: running the command line, breaking it off, and telling what it left."""

import hashlib
import shutil
from pathlib import Path
from typing import Final

import pytest

from scenemill.schemas.errors import NotPublished
from scenemill.transforms.store import open_store
from scenemill.transforms.verify import verify_store
from tests.forked import CommandLine, Done, Server

LOCK: Final = ".scenemill.lock"


class Mill(CommandLine):
    """A command line whose commands are broken off, and a look at what they leave."""

    def start(self, *args: object, kill_at: str = "") -> int:
        """Start a command; it kills itself at a step of ``STEPS`` if one is named. Returns its process id."""
        return self.begin(*args, environment={"SCENEMILL_KILL_AT": kill_at})

    def start_deed(self, deed: str, kill_at: str = "", **given: object) -> int:
        """Start a function of ``deeds.py``; what it is given are plain values. Returns its process id."""
        plain = {name: str(value) if isinstance(value, Path) else value for name, value in given.items()}
        return self.fork({"deed": deed, "given": plain}, {"SCENEMILL_KILL_AT": kill_at})

    def do(self, deed: str, kill_at: str = "", **given: object) -> Done:
        """Do a deed, and wait for the end of it."""
        return self.wait(self.start_deed(deed, kill_at, **given))

    def start_ingest(self, world: Path, store: Path, *options: object, kill_at: str = "") -> int:
        """Start to ingest a made-up folder, two samples to a part."""
        return self.start(*self.ingest_args(world, store, *options), kill_at=kill_at)

    def run(self, *args: object, kill_at: str = "") -> Done:
        """Start a command and wait for its end."""
        return self.wait(self.start(*args, kill_at=kill_at))

    def ingest(self, world: Path, store: Path, *options: object, kill_at: str = "") -> Done:
        """Ingest a made-up folder, and wait for the end of it."""
        return self.wait(self.start_ingest(world, store, *options, kill_at=kill_at))

    @staticmethod
    def ingest_args(world: Path, store: Path, *options: object) -> list[object]:
        """The command that ingests a made-up folder."""
        source = "matterport" if (world / "depth_gen").is_dir() else "front3d"
        return ["ingest", source, "--input", world, "--output", store, "--samples-per-part", 2, "--json", *options]

    @staticmethod
    def sums_of(store: Path) -> dict[str, str]:
        """Relative path -> SHA-256 of every file that must not depend on what befell the run: all but run logs and the lock."""
        files = [path for path in store.rglob("*") if path.is_file() and path.name != LOCK]
        named = {path.relative_to(store): path for path in files}
        return {
            name.as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for name, path in named.items()
            if name.parts[0] != "runs"
        }

    @staticmethod
    def published(store: Path) -> str | None:
        """Version that a reader sees, all of it read and verified; None where nothing is published."""
        try:
            opened = open_store(store)
        except NotPublished:
            return None
        assert [opened.read(key).key for key in opened] == opened.keys
        assert verify_store(store).broken == ()
        return opened.version


@pytest.fixture(scope="session")
def mill(server: Server) -> Mill:
    return Mill(server)


@pytest.fixture(scope="session")
def small_store(front3d_world: Path, mill: Mill, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of ``front3d_world``, published in one run; tests must not change it."""
    store = tmp_path_factory.mktemp("stores") / "front3d"
    done = mill.ingest(front3d_world, store)
    assert done.code == 0, done.said
    return store


@pytest.fixture(scope="session")
def train_store(front3d_world: Path, mill: Mill, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of the train split of ``front3d_world`` alone; tests must not change it."""
    store = tmp_path_factory.mktemp("stores") / "train"
    done = mill.ingest(front3d_world, store, "--splits", "train")
    assert done.code == 0, done.said
    return store


@pytest.fixture(scope="session")
def grown_store(front3d_world: Path, train_store: Path, mill: Mill, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``train_store`` with the other splits added by a second run; tests must not change it."""
    store = Path(shutil.copytree(train_store, tmp_path_factory.mktemp("stores") / "grown"))
    done = mill.ingest(front3d_world, store)
    assert done.code == 0, done.said
    return store
