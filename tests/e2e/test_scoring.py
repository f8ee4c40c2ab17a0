"""Predictions on disk to numbers: score, query, report and selfcheck, as a user runs them."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scenemill import Store, open_store
from scenemill.pipelines import score as scoring
from scenemill.pipelines.ingest import ingest
from scenemill.pipelines.predictions import Prediction, folder_of, read_prediction, write_prediction
from scenemill.pipelines.query import query
from scenemill.pipelines.score import ScoreConfig, score
from scenemill.schemas.config import IngestConfig
from scenemill.schemas.errors import ConfigError, Corrupt, NotPublished, SourceError
from scenemill.schemas.sample import Sample


def truth_as_told(sample: Sample, stuff: tuple[int, ...]) -> Prediction:
    """The truth in the form of a prediction: every wall polygon told apart, as the 2D reference counts them."""
    semantic, instance = sample["semantic_2d"].astype(int), sample["instance_2d"].astype(np.int32)
    classes_2d = {int(name): int(np.bincount(semantic[instance == name]).argmax()) for name in np.unique(instance[instance > 0])}
    labels, volume = sample["semantic_3d"].astype(int), sample["instance_3d"].astype(np.int32)
    volume[np.isin(labels, stuff)] = 0
    classes_3d = {int(name): int(np.bincount(labels[volume == name]).argmax()) for name in np.unique(volume[volume > 0])}
    for label in stuff:
        if (labels == label).any():
            volume[labels == label] = 60000 + label
            classes_3d[60000 + label] = label
    return Prediction(instance, classes_2d, sample["depth"], volume, classes_3d, sample["geometry"])


@pytest.fixture(scope="module", params=["front3d", pytest.param("matterport", marks=pytest.mark.full)])
def told(
    request: pytest.FixtureRequest, front3d_world: Path, matterport_world: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Store, Path]:
    """A store, and the truth of all its samples told as predictions."""
    folder = tmp_path_factory.mktemp(f"told-{request.param}")
    raw = front3d_world if request.param == "front3d" else matterport_world
    ingest(IngestConfig(request.param, raw, folder / "store"))
    store = open_store(folder / "store")
    for key in store:
        stuff = (10, 11) if request.param == "front3d" else (10, 11, 12)
        write_prediction(folder / "told", key, truth_as_told(store.read(key), stuff))
    return store, folder / "told"


def quality(scores: Any, metric: str, rule: str, group: str) -> float | None:
    rows = [row for row in scores.to_pylist() if (row["metric"], row["rule"], row["group"]) == (metric, rule, group)]
    assert len(rows) == 1
    return rows[0]["quality"]  # type: ignore[no-any-return]


def test_the_truth_scores_one(told: tuple[Store, Path], tmp_path: Path) -> None:
    store, predictions = told
    scored = score(ScoreConfig(predictions, store.root, tmp_path / "tables", model="truth"))
    assert (scored.samples, scored.missing) == (len(store), 0)
    for rule in ("reference", "best"):
        assert quality(scored.scores, "prq", rule, "all") == 1.0
    assert quality(scored.scores, "pq", "coco", "all") == pytest.approx(1.0)
    for group in ("wall", "floor", "chair"):
        assert quality(scored.scores, "pq", "reference", group) == 1.0
    depths = query(tmp_path / "tables", "SELECT max(abs_rel) AS worst, count(*) AS samples FROM depths").to_pylist()
    assert depths == [{"worst": 0.0, "samples": len(store)}]


def test_a_retried_run_adds_nothing_and_another_split_of_the_work_changes_nothing(told: tuple[Store, Path], tmp_path: Path) -> None:
    store, predictions = told
    first = score(ScoreConfig(predictions, store.root, tmp_path / "one"))
    assert list((tmp_path / "one" / ".work").iterdir()) == []
    again = score(ScoreConfig(predictions, store.root, tmp_path / "one"))
    assert again.run == first.run
    asked = 'SELECT * EXCLUDE (run) FROM counts ORDER BY "key", metric, rule, class_id'
    counts = query(tmp_path / "one", asked)
    assert counts.num_rows == query(tmp_path / "one", "SELECT DISTINCT * FROM counts").num_rows
    score(ScoreConfig(predictions, store.root, tmp_path / "two", workers=2))
    assert query(tmp_path / "two", asked).equals(counts)


def test_a_broken_off_run_goes_on_where_it_stopped(
    told: tuple[Store, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, predictions = told
    config = ScoreConfig(predictions, store.root, tmp_path / "tables")
    monkeypatch.setattr(scoring, "_GROUP", 2)
    calls: list[str] = []
    real = scoring.score_sample

    def failing(opened: Store, key: str, *given: Any) -> Any:
        calls.append(key)
        if len(calls) == 3:
            raise OSError(5, "the disk is gone")
        return real(opened, key, *given)

    monkeypatch.setattr(scoring, "score_sample", failing)
    with pytest.raises(OSError, match="the disk is gone"):
        score(config)
    with pytest.raises(NotPublished):
        query(tmp_path / "tables", "SELECT * FROM scores")
    calls[:] = ["counted"] * 9
    scored = score(config)
    assert scored.samples == len(store)
    assert len(calls) - 9 == len(store) - 2  # the first group was not scored again


def test_missing_predictions_are_never_left_out_in_silence(told: tuple[Store, Path], tmp_path: Path) -> None:
    store, predictions = told
    some = Path(shutil.copytree(predictions, tmp_path / "some"))
    shutil.rmtree(some / folder_of(store.keys[0]))
    with pytest.raises(ConfigError, match=f"1 of {len(store)} samples have no prediction"):
        score(ScoreConfig(some, store.root, tmp_path / "tables"))
    scored = score(ScoreConfig(some, store.root, tmp_path / "tables", allow_missing=True))
    assert (scored.samples, scored.missing) == (len(store) - 1, 1)


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("segments.json", b"{", "cannot be read"),
        ("segments.json", b'{"segments_2d": [{"id": 0, "category_id": 3}]}', "above 0"),
        ("segments.json", b'{"segments_2d": [{"id": 1, "category_id": 99}]}', "category_id"),
        ("segments.json", b'{"segments_2d": [{"id": 1, "category_id": 3}, {"id": 1, "category_id": 4}]}', "each once"),
        ("panoptic.npz", b"PK", "zip archive"),
        ("depth_2d.npy", b"\x93NUMPY", "ends early"),
    ],
)
def test_a_broken_prediction_is_named(told: tuple[Store, Path], tmp_path: Path, name: str, data: bytes, said: str) -> None:
    store, predictions = told
    broken = Path(shutil.copytree(predictions, tmp_path / "broken"))
    (broken / folder_of(store.keys[1]) / name).write_bytes(data)
    with pytest.raises(SourceError, match=said) as caught:
        score(ScoreConfig(broken, store.root, tmp_path / "tables"))
    assert folder_of(store.keys[1]) in str(caught.value)


def test_smaller_maps_are_resized_and_a_2d_model_needs_no_volumes(told: tuple[Store, Path], tmp_path: Path) -> None:
    store, predictions = told
    for key in store:
        full = read_prediction(predictions, key, store.layout.grid)
        half = Prediction(full.panoptic_2d[::2, ::2], full.classes_2d, full.depth[::2, ::2])
        write_prediction(tmp_path / "half", key, half)
    scored = score(ScoreConfig(tmp_path / "half", store.root, tmp_path / "tables"))
    assert {row["metric"] for row in scored.scores.to_pylist()} == {"pq", "dpq_0.5", "dpq_0.25", "dpq_0.1", "dpq_mean"}
    limits = [quality(scored.scores, f"dpq_{limit}", "reference", "things") or 0 for limit in ("0.5", "0.25", "0.1")]
    assert quality(scored.scores, "dpq_mean", "reference", "things") == pytest.approx(sum(limits) / 3)
    assert 0.8 < (quality(scored.scores, "pq", "coco", "all") or 0) < 1.0


def test_scoring_stops_where_the_metrics_are_wrong(
    told: tuple[Store, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scenemill.trainers import overlap

    store, predictions = told
    monkeypatch.setattr(overlap, "_thicken", lambda sets, axis: sets)
    with pytest.raises(Corrupt, match="selfcheck"):
        score(ScoreConfig(predictions, store.root, tmp_path / "tables"))
    assert not (tmp_path / "tables").exists()


def test_the_commands_tell_it(told: tuple[Store, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from scenemill.pipelines.cli import app

    store, predictions = told
    tables = tmp_path / "tables"

    def say(*arguments: object) -> str:
        app([str(argument) for argument in arguments], standalone_mode=False)
        return capsys.readouterr().out

    document = json.loads(
        say("score", "--predictions", predictions, "--store", store.root, "--tables", tables, "--model", "told", "--json")
    )
    assert document["samples"] == len(store)
    asked = json.loads(say("query", tables, "SELECT count(*) AS rows FROM scores WHERE NOT published", "--format", "json"))
    assert asked[0]["rows"] == len(document["scores"])
    assert "told" in say("report", tables, "--html", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "NvPanoptix3D" in page and "told" in page and "<script" not in page
    assert all(case["holds"] for case in json.loads(say("selfcheck", "--json")))
    with pytest.raises(ConfigError):
        say("query", tables, "COPY scores TO 'x.csv'")
