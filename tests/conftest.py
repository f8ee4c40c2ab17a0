"""What the suites share: made-up raw folders, and the real views where they are."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from scenemill.transforms.worlds import write_world
from tests.forked import CommandLine, Server, forked

ROOT = Path(__file__).resolve().parents[1]

os.environ["WANDB_MODE"] = "disabled"  # no test tells the world, also where a developer is logged in
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # begun in the background by a script: commands would ignore Ctrl+C as well
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def front3d_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small made-up 3D-Front folder; tests must not change it."""
    folder = tmp_path_factory.mktemp("worlds") / "front3d"
    write_world("front3d", folder, scenes=3, views=2, seed=11, grid=64)
    return folder


@pytest.fixture(scope="session")
def matterport_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small made-up Matterport3D folder; tests must not change it."""
    folder = tmp_path_factory.mktemp("worlds") / "matterport"
    write_world("matterport", folder, scenes=3, views=2, seed=11, grid=64)
    return folder


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """What commands are forked from."""
    with forked(tmp_path_factory.mktemp("logs")) as made:
        yield made


@pytest.fixture(scope="session")
def command_line(server: Server) -> CommandLine:
    """The command line, in processes that cost no imports."""
    return CommandLine(server)


@pytest.fixture(scope="session")
def services() -> Iterator[dict[str, str]]:
    """Object stores of both kinds, each with a bucket "mill" that all tests share; scheme -> URL."""
    from tests.unit.object_services import both_services  # needs what not every machine has

    with both_services("mill") as found:
        yield found


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real views, named by SCENEMILL_REAL_DATA."""
    folder = Path(os.environ.get("SCENEMILL_REAL_DATA", ROOT.parent / "shared"))
    if not (folder / "data" / "front3d").is_dir():
        pytest.skip(f"no real views in {folder}; name their folder with SCENEMILL_REAL_DATA")
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get("SCENEMILL_FULL") != "1":
        skip = pytest.mark.skip(reason="long form: set SCENEMILL_FULL=1, or run make faults or make overfit")
        for item in items:
            if "full" in item.keywords:
                item.add_marker(skip)
