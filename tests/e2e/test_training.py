"""Stage 1 at its tiny size, from a raw folder to checkpoints, and from a checkpoint on."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scenemill.pipelines.experiments.evaluation import run_evaluation
from scenemill.pipelines.experiments.specs import read_spec, spec_text
from scenemill.pipelines.experiments.training import find_samples, run_training
from scenemill.pipelines.experiments.tuning import searched, tune
from scenemill.pipelines.query import query
from scenemill.schemas.errors import ConfigError
from scenemill.schemas.experiment import ExperimentConfig
from scenemill.trainers.checkpoint import load_checkpoint
from scenemill.trainers.nvpanoptix3d.losses import Stage1Loss
from scenemill.trainers.timelapse import TimelapseParser
from scenemill.trainers.train import Step
from scenemill.trainers.usd.records import PointData
from scenemill.transforms.store import open_store
from scenemill.transforms.worlds import write_world

STEPS = 6


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("training") / "raw"
    write_world("front3d", folder, scenes=3, views=2, seed=5, grid=64)
    return folder


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCENEMILL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def settings(raw: Path, results: Path, *more: str) -> list[str]:
    given = [f"dataset.{split}.base_dir={raw}" for split in ("train", "val", "test")]
    return [f"results_dir={results}", *given, "dataset.train.num_workers=0", f"train.optim.max_steps={STEPS}", *more]


def experiment(raw: Path, results: Path, *more: str) -> ExperimentConfig:
    return read_spec(spec_text("tiny_front3d_2d"), settings(raw, results, *more), "tiny")


def silent(*_: object) -> None:
    pass


def test_a_training_writes_documented_checkpoints_status_and_curves(raw: Path, tmp_path: Path) -> None:
    steps: list[Step] = []
    every_two = experiment(raw, tmp_path, "train.checkpoint_interval=2")
    trained = run_training(every_two, steps.append, silent)
    folder = tmp_path / "train"
    assert (trained.step, len(trained.losses)) == (STEPS, STEPS)
    assert [step.step for step in steps] == list(range(STEPS))
    written = sorted(path.name for path in folder.glob("model_*.pth"))
    assert written == ["model_epoch_000_step_00002.pth", "model_epoch_001_step_00004.pth", "model_epoch_002_step_00006.pth"]
    assert (folder / "panoptic_recon_3d_model_latest.pth").resolve().name == written[-1]
    held = load_checkpoint(folder / written[-1])
    assert held["global_step"] == STEPS
    assert all(name.startswith(("model.", "criterion.")) for name in held["state_dict"])
    lines = [json.loads(line) for line in (folder / "status.json").read_text().splitlines()]
    assert (lines[0]["status"], lines[0]["message"]) == ("STARTED", "Starting NVPanoptix3D train.")
    assert lines[-1]["status"] == "SUCCESS"
    assert {"epoch", "step", "max_epoch", "max_step", "time_per_epoch", "time_per_step", "eta"} <= set(lines[1])
    assert {"val_dpq_-1.0_epoch", "val_dpq_averages_epoch"} <= set(trained.kpi)
    assert list((folder / "tensorboard").glob("events.out.*"))
    assert "enable_3d: false" in (folder / "experiment.yaml").read_text()
    shown = TimelapseParser(folder / "timelapse")
    assert shown.get_category_names_by_type("pointcloud") == ["predicted", "true"]
    cloud = shown.read("pointcloud", "true", 0, STEPS).prims[0]
    assert isinstance(cloud, PointData)
    points = np.asarray(cloud.points)
    assert len(points) > 10_000 and -6.5 < points[:, 2].min() < points[:, 2].max() < 0  # metres, seen along -Z


def test_a_stopped_training_goes_on_to_the_same_curve(raw: Path, tmp_path: Path) -> None:
    """Stopped within an epoch, resumed with another number of workers: the same losses and weights, to the bit."""
    whole = run_training(experiment(raw, tmp_path / "whole", "train.checkpoint_interval=3"), silent, silent)

    class Stopped(Exception):
        pass

    def stop(step: Step) -> None:
        if step.step == 2:
            raise Stopped

    with pytest.raises(Stopped):
        run_training(experiment(raw, tmp_path / "parts", "train.checkpoint_interval=3"), stop, silent)
    stopped = json.loads((tmp_path / "parts" / "train" / "status.json").read_text().splitlines()[-1])
    assert (stopped["status"], stopped["verbosity"]) == ("FAILURE", "ERROR")
    rest = run_training(
        experiment(raw, tmp_path / "parts", "train.checkpoint_interval=3", "dataset.train.num_workers=1"), silent, silent
    )
    assert rest.losses == whole.losses[3:]
    first, second = (load_checkpoint(trained.checkpoint) for trained in (whole, rest))
    assert all(torch.equal(first["state_dict"][name], second["state_dict"][name]) for name in first["state_dict"])
    assert first["order"] == second["order"]


@pytest.mark.full
def test_a_training_interrupted_within_a_step_loses_no_sample(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run_training(experiment(raw, tmp_path / "whole"), silent, silent)
    judged = Stage1Loss.forward
    calls: list[int] = []

    def interrupt(*given: Any, **more: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return judged(*given, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Stage1Loss, "forward", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_training(experiment(raw, tmp_path / "parts"), silent, silent)
    rest = run_training(experiment(raw, tmp_path / "parts"), silent, silent)
    assert rest.losses == whole.losses[3:]


def test_a_killed_training_goes_on(raw: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from scenemill.pipelines.cli import main; main()", "train", "-e", "tiny_front3d_2d"]
    given = settings(raw, tmp_path, "train.checkpoint_interval=2", "train.optim.max_steps=400")
    process = subprocess.Popen([*command, *given], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    latest = tmp_path / "train" / "panoptic_recon_3d_model_latest.pth"
    deadline = time.monotonic() + 240
    while not latest.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = load_checkpoint(latest)["global_step"]
    assert done >= 2
    resumed = run_training(experiment(raw, tmp_path, f"train.optim.max_steps={done + 2}"), silent, silent)
    assert (resumed.step, len(resumed.losses)) == (done + 2, 2)


def test_an_encrypted_training_needs_its_key(raw: Path, tmp_path: Path) -> None:
    trained = run_training(experiment(raw, tmp_path, "encryption_key=sesame", "train.is_dry_run=true"), silent, silent)
    with pytest.raises(ConfigError, match="key"):
        load_checkpoint(trained.checkpoint)
    with pytest.raises(ConfigError, match="key"):
        run_evaluation(experiment(raw, tmp_path, "encryption_key=other", f"evaluate.checkpoint={trained.checkpoint}"), silent)
    assert load_checkpoint(trained.checkpoint, "sesame")["global_step"] == 1


@pytest.mark.full
def test_bf16_losses_agree_with_fp32(raw: Path, tmp_path: Path) -> None:
    few = ("train.optim.max_steps=3", "dataset.val.base_dir=")
    losses = [
        run_training(experiment(raw, tmp_path / precision, f"train.precision={precision}", *few), silent, silent).losses
        for precision in ("fp32", "bf16")
    ]
    assert len(losses[0]) == 3
    for exact, rounded in zip(*losses, strict=True):
        assert rounded == pytest.approx(exact, rel=0.05)


def test_a_checkpoint_is_evaluated_into_the_metric_tables(raw: Path, tmp_path: Path) -> None:
    trained = run_training(experiment(raw, tmp_path, "train.is_dry_run=true"), silent, silent)
    evaluated = run_evaluation(experiment(raw, tmp_path, f"evaluate.checkpoint={trained.checkpoint}"), silent)
    assert {"test_dpq_-1.0_epoch", "test_dpq_th_0.5_epoch", "test_dpq_st_averages_epoch"} <= set(evaluated.kpi)
    kpi = dict(evaluated.kpi)
    assert 0 < kpi.pop("test_loss") < 1000
    assert all(0 <= value <= 100 for value in kpi.values())
    assert (evaluated.tables / "scores").is_dir()


def test_a_label_map_and_generated_images_train_and_validation_has_the_loss_of_evaluation(raw: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(raw, tmp_path / "raw"))
    view = json.loads((folder / "train.json").read_bytes())[0]
    name = f"rgb_{view['image_id']}"
    generated = folder / "augment" / view["scene_id"] / f"{name}_night.png"
    generated.parent.mkdir(parents=True)
    shutil.copy(folder / "data" / view["scene_id"] / f"{name}.png", generated)
    labels = json.loads((folder / "label_map.json").read_bytes())
    labels[9] |= {"isthing": 1, "name": "panel"}  # walls become things
    labels[5]["trainId"] = 5  # desks are tables
    (folder / "label_map.json").write_text(json.dumps(labels))
    lists = [f"dataset.{split}.json_path={name}.json" for split, name in (("train", "train"), ("val", "val"), ("test", "val"))]
    more = (*lists, "dataset.label_map=label_map.json", "dataset.augmentation.gen_aug_weight=0.5", "train.optim.max_steps=3")
    trained = run_training(experiment(folder, tmp_path, *more, "dataset.train.batch_size=1"), silent, silent)
    assert load_checkpoint(trained.checkpoint)["order"] == [1, 0]  # two views and one image are an epoch
    evaluated = run_evaluation(experiment(folder, tmp_path, *more, f"evaluate.checkpoint={trained.checkpoint}"), silent)
    assert evaluated.kpi["test_loss"] == trained.kpi["val_loss"]
    names = query(evaluated.tables, "SELECT DISTINCT class_id, class_name FROM counts", None, 60.0).to_pylist()
    assert {"class_id": 10, "class_name": "panel"} in names and 6 not in {row["class_id"] for row in names}


@pytest.mark.full
def test_two_processes_train_one_model(raw: Path, tmp_path: Path) -> None:
    more = ("train.num_gpus=2", "train.gpu_ids=[0,1]", "dataset.train.batch_size=1", "train.optim.max_steps=2")
    trained = run_training(experiment(raw, tmp_path, *more), silent, silent)
    assert (trained.step, len(trained.losses)) == (2, 2)
    held = load_checkpoint(trained.checkpoint)
    assert held["order"] == [0, 4]  # two steps of two samples
    resumed = run_training(experiment(raw, tmp_path, "train.optim.max_steps=3"), silent, silent)  # by one process
    assert (resumed.step, len(resumed.losses)) == (3, 1)


@pytest.mark.full
@pytest.mark.real
def test_the_real_views_train(real_data: Path, tmp_path: Path) -> None:
    config = experiment(real_data / "data" / "front3d", tmp_path, "train.optim.max_steps=2", "dataset.val.base_dir=''")
    trained = run_training(config, silent, silent)
    assert trained.step == 2
    assert all(0 < loss < 1000 for loss in trained.losses)


def test_a_search_goes_on_where_it_was_stopped(raw: Path, tmp_path: Path) -> None:
    config = experiment(raw, tmp_path, "train.optim.max_steps=1")
    stopped: list[int] = []

    def stop(step: Step) -> None:
        stopped.append(step.step)
        if len(stopped) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(config, 2, stop, silent)
    tuned = tune(config, 2, silent, silent)
    assert tuned.trials == 2
    names = [name for name, _, _ in searched(config)]
    assert names == ["train.optim.lr", "train.optim.backbone_multiplier", "train.optim.weight_decay"]
    assert list(tuned.best[2]) == names
    assert all(low <= tuned.best[2][name] <= high for name, low, high in searched(config))
    models = query(tuned.folder / "tables", "SELECT DISTINCT model FROM scores WHERE NOT published", None, 60.0)
    assert len(models) == 2


@pytest.mark.parametrize(
    ("override", "told"),
    [("dataset.train.base_dir=", "base_dir"), ("dataset.enable_3d=true", "stage 2"), ("dataset.train.json_path=none.json", "none")],
)
def test_a_training_says_what_it_lacks(raw: Path, tmp_path: Path, override: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        run_training(experiment(raw, tmp_path, override), silent, silent)


def test_runs_that_read_one_raw_folder_at_once_wait_for_each_other(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCENEMILL_CACHE", str(tmp_path / "cache"))
    config = experiment(raw, tmp_path / "results")
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: find_samples(config, "train", silent), range(4)))
    assert len(set(found)) == 1
    assert len(open_store(found[0].store).keys) > 0


def test_a_loss_that_is_not_finite_ends_a_training_and_is_named(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    true_forward = Stage1Loss.forward

    def overflow(self: Stage1Loss, *given: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        total, losses = true_forward(self, *given)
        return total * float("inf"), losses | {"loss_depth": losses["loss_depth"] * float("inf")}

    monkeypatch.setattr(Stage1Loss, "forward", overflow)
    with pytest.raises(ArithmeticError, match=r"^step 0: the loss is not finite \(loss_depth inf\); samples \S+/\d+, \S+/\d+$"):
        run_training(experiment(raw, tmp_path, "dataset.train.num_workers=0"), silent, silent)
    last = json.loads((tmp_path / "train" / "status.json").read_text().splitlines()[-1])
    assert last["status"] == "FAILURE" and "loss_depth inf" in last["message"]
