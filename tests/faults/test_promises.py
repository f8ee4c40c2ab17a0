"""The built-in sources are held to the call that sources of one's own are held to."""

from pathlib import Path

import pytest

from scenemill.pipelines.conformance import broken_promises
from scenemill.pipelines.synth import synth_views


@pytest.fixture(scope="session")
def views_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few small views of an object, in a folder with split lists; tests must not change it."""
    folder = tmp_path_factory.mktemp("worlds") / "clock"
    synth_views(folder, "clock", views=3, size=32)
    (folder / "train.txt").write_text("clock/0\nclock/1\n")
    (folder / "val.txt").write_text("clock/2\n")
    return folder


@pytest.mark.full
@pytest.mark.parametrize("source", ["front3d", "matterport", "views"])
def test_built_in_sources_keep_every_promise(source: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    assert broken_promises(source, request.getfixturevalue(f"{source}_world"), tmp_path) == []
