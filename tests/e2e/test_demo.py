"""The whole line on made-up rooms: shortly, to see that it runs; as long as it is shipped, to see what it learns."""

from pathlib import Path

import pytest

from scenemill.pipelines.demo import run_line


def silent(*_: object) -> None:
    pass


def test_the_line_runs_from_rooms_to_an_answer_and_again_without_work(tmp_path: Path) -> None:
    line = run_line(tmp_path, silent, silent, steps_2d=3, steps_3d=2)
    assert list(line.seconds) == ["make rooms", "ingest", "train stage 1", "train stage 2", "evaluate", "query"]
    assert {(row["model"], row["metric"]) for row in line.scores.to_pylist()} == {
        (model, metric) for model in ("untrained", "trained") for metric in ("prq", "pq")
    }
    again = run_line(tmp_path, silent, silent, steps_2d=3, steps_3d=2)
    assert again.scores.equals(line.scores)


@pytest.mark.full
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("source", "least"), [("front3d", 80), ("matterport", 50)])
def test_the_line_lifts_prq_far_above_the_untrained_model(source: str, least: float, tmp_path: Path) -> None:
    """Volumes of Matterport3D have floors and things that the image does not show, and which count all the same."""
    line = run_line(tmp_path, silent, silent, source=source)
    assert line.quality("untrained") < 5
    assert line.quality("trained") > least
