"""Many checkpoints in one go: each once, in order, on with what a killed batch left; the network is a stand-in here."""

import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from scenemill.pipelines.experiments import batch_evaluation, evaluation
from scenemill.pipelines.experiments.batch_evaluation import run_evaluations
from scenemill.pipelines.experiments.checkpoints import Checkpoint
from scenemill.pipelines.experiments.evaluation import Bench, Evaluated, digest_settings, kpi_of, run_evaluation
from scenemill.pipelines.experiments.specs import read_spec, spec_text
from scenemill.pipelines.experiments.training import Samples
from scenemill.pipelines.progress import OnProgress, no_progress
from scenemill.pipelines.tables import append_run, read_table
from scenemill.schemas.errors import ConfigError
from scenemill.schemas.experiment import ExperimentConfig
from scenemill.schemas.labels import LABELS
from scenemill.schemas.tables import SCORES, table_of
from scenemill.trainers.checkpoint import checkpoint_name, save_checkpoint


def save(folder: Path, step: int, weight: float | None = None) -> Path:
    path = folder / checkpoint_name(step // 10, step, "step")
    held = torch.tensor(float(step) if weight is None else weight)
    save_checkpoint(path, {"state_dict": {"a": held}, "epoch": step // 10, "global_step": step})
    return path


class Stand:
    """Stands in for prediction and scoring: the quality of all is the weight of the checkpoint, in percent."""

    def __init__(self, patch: pytest.MonkeyPatch, tables: Path) -> None:
        self.bench = Bench(ExperimentConfig(), Samples(Path("store"), "test"), "v1", "s1", tables.parent / "predictions", tables)
        self.steps: list[int | None] = []
        self.seen: list[list[str]] = []
        self.die_at: int | None = None
        patch.setattr(batch_evaluation, "make_bench", lambda config, *_: replace(self.bench, config=config))
        patch.setattr(batch_evaluation, "begun", lambda *_: nullcontext())
        patch.setattr(batch_evaluation, "evaluate_checkpoint", self.evaluate)

    def evaluate(self, bench: Bench, checkpoint: Checkpoint, predictions: Path, run: str, _: OnProgress) -> Evaluated:
        (predictions / "scene_1").mkdir(parents=True, exist_ok=True)
        self.seen.append([path.name for path in bench.predictions.iterdir()])
        if checkpoint.step == self.die_at:
            raise KeyboardInterrupt
        self.steps.append(checkpoint.step)
        quality = float(torch.load(checkpoint.path, weights_only=True)["state_dict"]["a"]) / 100
        about: dict[str, Any] = {
            "run": run,
            "model": "m",
            "source": "front3d",
            "split": bench.split,
            "store_version": bench.version,
        }
        about |= {"published": False, "origin": "o", "created": datetime(2026, 9, 1, tzinfo=UTC), "quality": quality}
        rows = [{**about, "metric": metric, "rule": rule, "group": "all"} for metric, rule in (("pq", "reference"), ("pq", "coco"))]
        scores = table_of(SCORES, rows)
        append_run(bench.tables, run, {"scores": scores})
        return Evaluated(run, bench.tables, checkpoint, predictions, {"test_loss": 1.0, **kpi_of(bench.config, scores)}, scores)


@pytest.fixture
def stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stand:
    return Stand(monkeypatch, tmp_path / "results" / "tables")


def experiment(named: Path | str, *more: str) -> ExperimentConfig:
    return read_spec("", [f"evaluate.checkpoint={named}", *more])


def evaluate(named: Path | str, *more: str) -> list[tuple[int | None, bool]]:
    return [(found.checkpoint.step, found.new) for found in run_evaluations(experiment(named, *more), no_progress)]


def test_every_checkpoint_is_a_run_of_its_own_and_evaluated_once(stand: Stand, tmp_path: Path) -> None:
    for step in (30, 10, 20):
        save(tmp_path / "train", step)
    first = list(run_evaluations(experiment(tmp_path / "train"), no_progress))
    assert [(found.checkpoint.step, found.new) for found in first] == [(10, True), (20, True), (30, True)]
    assert len({found.run for found in first}) == 3
    again = list(run_evaluations(experiment(tmp_path / "train"), no_progress))
    assert [found.new for found in again] == [False] * 3
    assert stand.steps == [10, 20, 30]
    for before, after in zip(first, again, strict=True):
        assert before.run == after.run and before.scores.equals(after.scores)
        assert after.kpi == {"test_dpq_-1.0_epoch": pytest.approx(float(before.checkpoint.step or 0))}
        assert set(before.kpi) == {"test_loss", *after.kpi}


def test_predictions_are_there_one_checkpoint_at_a_time_and_gone_in_the_end(stand: Stand, tmp_path: Path) -> None:
    for step in (10, 20, 30):
        save(tmp_path / "train", step)
    found = list(run_evaluations(experiment(tmp_path / "train"), no_progress))
    assert [[name[:22] for name in names] for names in stand.seen] == [[f"model_epoch_00{n}_step_0"] for n in (1, 2, 3)]
    assert list(stand.bench.predictions.iterdir()) == []
    assert {evaluated.predictions for evaluated in found} == {None}


def test_a_killed_batch_goes_on_and_leaves_nothing_behind(stand: Stand, tmp_path: Path) -> None:
    for step in (10, 20, 30):
        save(tmp_path / "train", step)
    stand.die_at = 20
    with pytest.raises(KeyboardInterrupt):
        evaluate(tmp_path / "train")
    (left,) = stand.bench.predictions.iterdir()
    assert (left / "scene_1").is_dir()  # to go on with
    stand.die_at = None
    assert evaluate(tmp_path / "train") == [(10, False), (20, True), (30, True)]
    assert stand.steps == [10, 20, 30]
    assert list(stand.bench.predictions.iterdir()) == []


def test_predictions_of_a_run_that_was_killed_as_it_removed_them_are_removed(stand: Stand, tmp_path: Path) -> None:
    save(tmp_path / "train", 10)
    evaluate(tmp_path / "train")
    left = stand.bench.predictions / stand.seen[0][0] / "scene_1"
    left.mkdir(parents=True)
    assert evaluate(tmp_path / "train") == [(10, False)]
    assert not left.exists()


def test_new_checkpoints_of_a_training_that_goes_on_are_evaluated_and_old_ones_are_not(stand: Stand, tmp_path: Path) -> None:
    save(tmp_path / "train", 10)
    evaluate(tmp_path / "train")
    save(tmp_path / "train", 20)
    assert evaluate(f"{tmp_path}/train/*_step_*.pth") == [(10, False), (20, True)]


@pytest.mark.parametrize(
    "change",
    [
        lambda stand, _: setattr(stand, "bench", replace(stand.bench, version="v2")),
        lambda stand, _: setattr(stand, "bench", replace(stand.bench, settings="s2")),
        lambda stand, _: setattr(stand, "bench", replace(stand.bench, samples=Samples(Path("store"), "val"))),
        lambda stand, _: setattr(stand, "bench", replace(stand.bench, tables=stand.bench.tables / "others")),
        lambda _, folder: save(folder, 10, weight=99.0),
    ],
    ids=["store", "settings", "split", "tables", "weights"],
)
def test_a_checkpoint_is_evaluated_again_where_its_numbers_may_differ(
    stand: Stand, tmp_path: Path, change: Callable[[Stand, Path], Any]
) -> None:
    save(tmp_path / "train", 10)
    assert evaluate(tmp_path / "train") == [(10, True)]
    change(stand, tmp_path / "train")
    assert evaluate(tmp_path / "train") == [(10, True)]


def test_a_copy_of_a_named_model_is_the_same_run(stand: Stand, tmp_path: Path) -> None:
    shutil.copy(save(tmp_path / "train", 10), tmp_path / "train" / "model_epoch_best.pth")
    assert evaluate(tmp_path / "train", "model_name=ours") == [(10, True), (10, False)]
    shutil.copytree(tmp_path / "train", tmp_path / "moved")
    assert evaluate(tmp_path / "moved", "model_name=ours") == [(10, False), (10, False)]
    assert evaluate(tmp_path / "moved", "model_name=theirs") == [(10, True), (10, False)]


def test_a_broken_checkpoint_is_told_before_any_is_evaluated(stand: Stand, tmp_path: Path) -> None:
    save(tmp_path / "train", 10)
    (tmp_path / "train" / "model_epoch_009.pth").write_bytes(b"no checkpoint")
    with pytest.raises(ConfigError, match=r"model_epoch_009\.pth"):
        evaluate(tmp_path / "train")
    assert stand.steps == []


def test_runs_of_others_are_left_alone(stand: Stand, tmp_path: Path) -> None:
    save(tmp_path / "train", 10)
    evaluate(tmp_path / "train", "model_name=ours")
    evaluate(tmp_path / "train", "model_name=theirs")
    runs = {row["run"] for row in read_table(stand.bench.tables, "scores").to_pylist() if not row["published"]}
    assert len(runs) == 2 and {run.rsplit("-", 1)[0] for run in runs} == {"ours", "theirs"}


def test_one_evaluation_refuses_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="names several checkpoints"):
        run_evaluation(experiment(tmp_path, f"results_dir={tmp_path}"), no_progress)


@pytest.mark.parametrize(
    ("run", "name", "overwrite"),
    [("r", "tiny_front3d_3d", False), ("", "tiny_front3d_3d", True), ("r", "tiny_front3d_2d", True), ("", "tiny_front3d_2d", True)],
)
def test_predictions_of_a_killed_run_are_kept_where_no_losses_are_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: str, name: str, overwrite: bool
) -> None:
    """Stage 2 goes on within a checkpoint; stage 1 must see every image for its loss; a folder without a run may be anyone's."""
    told: dict[str, Any] = {}

    def infer(*_: Any, **given: Any) -> None:
        told.update(given)
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluation, "infer_store", infer)
    monkeypatch.setattr(evaluation, "load_model", lambda *_: None)
    monkeypatch.setattr(evaluation, "open_store", lambda *_: None)
    bench = Bench(read_spec(spec_text(name), (), name), Samples(Path("store"), "test"), "v1", "s1", tmp_path, tmp_path / "tables")
    checkpoint = Checkpoint(tmp_path / "model_epoch_001.pth", 1, 10)
    with pytest.raises(KeyboardInterrupt):
        evaluation.evaluate_checkpoint(bench, checkpoint, tmp_path / "told", run, no_progress)
    assert (told["overwrite"], told["on_output"] is None) == (overwrite, name.endswith("3d"))


# --- settings that decide numbers


def store(frustum: bool = True) -> Any:
    """As much of a store as settings look at."""
    return SimpleNamespace(layout=SimpleNamespace(frustum=frustum, grid=8), frustum=np.ones((8, 8, 8), bool))


def settings(*more: str, name: str = "tiny_front3d_3d", opened: Any = None) -> str:
    return digest_settings(read_spec(spec_text(name), more, name), opened or store())


@pytest.mark.parametrize(
    "setting",
    [
        "results_dir=elsewhere",
        "evaluate.checkpoint=other.pth",
        "evaluate.num_gpus=2",
        "train.optim.lr=0.005",
        "dataset.test.base_dir=elsewhere",
        "dataset.test.batch_size=3",
        "dataset.train.num_workers=0",
        "model_name=other",
        "encryption_key=sesame",
    ],
)
def test_settings_that_change_no_number_are_the_same(setting: str) -> None:
    assert settings(setting) == settings()


@pytest.mark.parametrize(
    "setting",
    [
        "model.object_mask_threshold=0.31",
        "model.overlap_threshold=0.41",
        "dataset.iso_value=1.5",
        "dataset.target_size=[160,120]",
        "dataset.enable_3d=false",
        "dataset.geometry=measured",
    ],
)
def test_settings_that_decide_numbers_are_told_apart(setting: str) -> None:
    assert settings(setting) != settings()


def test_a_frustum_counts_by_its_voxels() -> None:
    other = store()
    other.frustum[0, 0, 0] = False
    own = "dataset.frustum_mask_path=meta/frustum_mask.npz"
    assert settings(own, opened=other) != settings(own)
    assert settings(own, "dataset.enable_3d=false", opened=other) == settings(own, "dataset.enable_3d=false")  # images have none


def test_a_label_map_counts_by_what_it_says(tmp_path: Path) -> None:
    digests: list[str] = []
    for wall_is_thing in (False, True, False):
        entries = [
            {"id": label.id, "trainId": label.id, "name": label.name, "color": list(label.color)}
            | {"isthing": int(label.thing or (label.name == "wall" and wall_is_thing))}
            for label in LABELS[1:]
        ]
        folder = tmp_path / str(len(digests))
        folder.mkdir()
        (folder / "labels.json").write_text(json.dumps(entries))
        digests.append(settings("dataset.label_map=labels.json", f"dataset.test.base_dir={folder}"))
    assert digests[0] == digests[2] != digests[1]
