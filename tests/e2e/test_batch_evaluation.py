"""A training's checkpoints, evaluated in one go, and its curve in the report: stage 1 at its tiny size."""

from pathlib import Path
from typing import Any

import pytest

from scenemill.pipelines.cli import app
from scenemill.pipelines.experiments.batch_evaluation import run_evaluations
from scenemill.pipelines.experiments.evaluation import run_evaluation
from scenemill.pipelines.experiments.specs import read_spec, spec_text
from scenemill.pipelines.experiments.training import run_training
from scenemill.pipelines.query import query
from scenemill.pipelines.reports.report import report
from scenemill.schemas.experiment import ExperimentConfig
from scenemill.transforms.worlds import write_world

STEPS = (2, 4, 6)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCENEMILL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def silent(*_: object) -> None:
    pass


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with raw views and, in ``out``, a training that left a checkpoint every two steps."""
    folder = tmp_path_factory.mktemp("batch")
    write_world("front3d", folder / "raw", scenes=3, views=1, seed=5, grid=64)
    run_training(experiment(folder, folder / "out"), silent, silent)
    return folder


def settings(folder: Path, results: Path, *more: str) -> list[str]:
    places = [f"dataset.{split}.base_dir={folder / 'raw'}" for split in ("train", "test")]
    steps = ["train.optim.max_steps=6", "train.checkpoint_interval=2", "train.checkpoint_interval_unit=step"]
    return [f"results_dir={results}", *places, *steps, "dataset.val.base_dir=", "dataset.train.num_workers=0", *more]


def experiment(folder: Path, results: Path, *more: str) -> ExperimentConfig:
    return read_spec(spec_text("tiny_front3d_2d"), settings(folder, results, *more), "tiny")


@pytest.mark.full
def test_a_folder_is_evaluated_to_the_numbers_of_its_checkpoints_alone(trained: Path, tmp_path: Path) -> None:
    named = f"evaluate.checkpoint={trained / 'out' / 'train'}"
    batch = list(run_evaluations(experiment(trained, tmp_path / "batch", named), silent))
    assert [(found.checkpoint.step, found.new) for found in batch] == [(step, True) for step in STEPS]
    alone = f"evaluate.checkpoint={batch[1].checkpoint.path}"
    one = run_evaluation(experiment(trained, tmp_path / "one", alone), silent)
    assert one.kpi == batch[1].kpi and "test_loss" in one.kpi
    changed = ("run", "created")
    assert one.scores.drop_columns(changed).equals(batch[1].scores.drop_columns(changed))
    assert one.predictions is not None and len(list(one.predictions.glob("*/segments.json"))) == 3
    assert list((tmp_path / "batch" / "evaluate" / "predictions").iterdir()) == []

    asked = "SELECT DISTINCT epoch, step, training, origin FROM scores WHERE step IS NOT NULL ORDER BY step"
    folder = str((trained / "out" / "train").resolve())
    assert [(row["epoch"], row["step"], row["training"]) for row in query(batch[0].tables, asked).to_pylist()] == [
        (found.checkpoint.epoch, found.checkpoint.step, folder) for found in batch
    ]
    assert query(batch[0].tables, "SELECT count(DISTINCT run) AS runs FROM counts").to_pylist() == [{"runs": 3}]
    (lineage,) = report(batch[0].tables).lineages
    assert (lineage.steps, lineage.name) == (STEPS, "out/train")


@pytest.mark.full
def test_the_commands_evaluate_each_checkpoint_once_and_show_the_curve(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def say(*arguments: object) -> str:
        app([str(argument) for argument in arguments], standalone_mode=False)
        return capsys.readouterr().out

    def evaluate(named: str, *more: str) -> str:
        return say("evaluate", "-e", "tiny_front3d_2d", *settings(trained, tmp_path, f"evaluate.checkpoint={named}", *more))

    first = evaluate(f"{trained}/out/train/*_0000[24].pth")
    assert "2 evaluated, 0 in the tables before" in first and first.count("test_loss") == 2
    again = evaluate(f"{trained}/out/train")
    assert "1 evaluated, 2 in the tables before" in again and again.count("not evaluated again") == 2
    other = evaluate(f"{trained}/out/train", "model.object_mask_threshold=0.0")  # other numbers: another curve
    assert "3 evaluated, 0 in the tables before" in other
    told = " ".join(say("report", tmp_path / "evaluate" / "tables", "--html", tmp_path / "report.html").split())
    assert told.count("3 checkpoints in") == 2 and "last of 3 checkpoints" in told
    assert (tmp_path / "report.html").read_text().count("quality over the training") == 2
    one = evaluate(f"{trained}/out/train/model_epoch_006_step_00006.pth").split()
    assert one[:5] == ["model_epoch_006_step_00006.pth,", "epoch", "6,", "step", "6"]
    assert {"PQ", "TP", "FP", "FN", "wall", "chair", "test_loss"} <= set(one)
