"""Kill what trains, run again: the same checkpoints, curves and 3D checkpoints as of a training that nothing broke off, to the bit."""

import hashlib
import os
import random
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader  # type: ignore[import-untyped]

from scenemill.schemas.steps import STEPS
from scenemill.trainers.checkpoint import find_resume, load_checkpoint
from scenemill.trainers.snapshots import SAMPLES
from scenemill.trainers.timelapse import TimelapseParser
from scenemill.trainers.usd.records import PointData

if TYPE_CHECKING:
    from tests.faults.conftest import Mill

SAVES: Final = STEPS["checkpoint"]
KEYS: Final = ("", pytest.param("a passphrase", marks=pytest.mark.full, id="encrypted"))
TRAINED: Final = 4
EVERY: Final = 2
KILLS: Final = (
    *(f"{step}:{times}" for step in SAVES for times in (1, 2)),
    *(f"step taken:{times}" for times in range(1, TRAINED + 1)),
    *("point drawn:1", "point drawn:3", "point drawn:5", "status told:1", "status told:4", "scene watched:1", "scene watched:2"),
    *(
        "scene watched:3",
        "file flushed:1",
        "file flushed:2",
        "head moved:1",
        "head restored:2",
        "structure copied:2",
        "layer saved:3",
    ),
)
SEEDS: Final = [(0, 2), *(pytest.param(seed, 3, marks=pytest.mark.full) for seed in range(1, 20))]
"""Seed -> kills before the training is left to end."""


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("kill_at", SAVES)
def test_the_checkpoint_of_before_stands_until_the_next_is_whole(kill_at: str, key: str, mill: "Mill", tmp_path: Path) -> None:
    mill.load("tests.faults.deeds", "scenemill.trainers.checkpoint")
    assert mill.do("save", folder=tmp_path, step=1, key=key).code == 0
    killed = mill.do("save", kill_at, folder=tmp_path, step=2, key=key)
    assert killed.code == -signal.SIGKILL, killed.said
    path = find_resume(None, tmp_path)
    assert path is not None
    assert load_checkpoint(path, key)["global_step"] == (2 if kill_at == "latest pointed" else 1)
    for step in (2, 3):
        assert mill.do("save", folder=tmp_path, step=step, key=key).code == 0
    held = {path.name for path in tmp_path.iterdir()}
    assert held == {"model_latest.pth", *(f"model_epoch_000_step_{step:05d}.pth" for step in (1, 2, 3))}
    for step in (1, 2, 3):
        assert load_checkpoint(tmp_path / f"model_epoch_000_step_{step:05d}.pth", key)["order"] == [0, step]


def train_args(store: Path, results: Path) -> list[object]:
    """A training of stage 1 at a size of which a step takes a tenth of a second."""
    sizes = [
        f"dataset.augmentation.{name}"
        for name in ("train_min_size=[64]", "train_max_size=96", "test_min_size=64", "test_max_size=96")
    ]
    return [
        *("train", "-e", "tiny_front3d_2d", f"results_dir={results}", "dataset.train.num_workers=0", *sizes),
        *(f"dataset.{split}.base_dir={store}" for split in ("train", "val")),
        *("dataset.target_size=[80,60]", "model.backbone.input_width=56", "train.validation_interval=1"),
        *(f"train.optim.max_steps={TRAINED}", f"train.checkpoint_interval={EVERY}"),
    ]


def sums_of(folder: Path) -> dict[str, str]:
    """SHA-256 of the checkpoints."""
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.pth")}


def scenes_of(folder: Path) -> dict[tuple[str, int, float], list[bytes]]:
    """(category, sample, step) -> points and class ids that a log holds; the files may have spent bytes of a step taken twice."""
    log = TimelapseParser(folder / "timelapse")
    found = {}
    for category in log.get_category_names_by_type("pointcloud"):
        for sample in range(SAMPLES):
            for step in range(1, TRAINED + 1):
                cloud = log.read("pointcloud", category, sample, step).prims[0]
                assert isinstance(cloud, PointData)
                arrays = (cloud.points, cloud.colors, cloud.semantic_ids)
                found[category, sample, float(step)] = [np.asarray(array).tobytes() for array in arrays]
    return found


def curves_of(folder: Path) -> dict[tuple[str, int], set[float]]:
    """(curve, step) -> the values that were drawn there, of all that do not tell time."""
    found: dict[tuple[str, int], set[float]] = {}
    for path in sorted((folder / "tensorboard").glob("events.out.*")):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.tag != "wait_ms":
                    number = value.tensor.float_val[0] if value.HasField("tensor") else value.simple_value
                    found.setdefault((value.tag, event.step), set()).add(number)
    return found


def read_whole(folder: Path) -> None:
    """Whatever has a name is whole: checkpoints can be read, and a link points to one."""
    for path in folder.glob("*.pth"):
        assert load_checkpoint(path)["global_step"] in range(1, TRAINED + 1)


@pytest.fixture(scope="module")
def trainer(mill: "Mill") -> "Mill":
    modules = ("scenemill.pipelines.experiments.training", "scenemill.trainers.timelapse", "pxr.Usd", "torch.utils.tensorboard")
    mill.load(*modules, "scenemill.pipelines.experiments.specs", "lightning_fabric", "scipy.optimize")
    return mill


@pytest.fixture(scope="module")
def trained(trainer: "Mill", small_store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """The folder of a training that nothing broke off, and its seconds."""
    results = tmp_path_factory.mktemp("trained")
    began = time.monotonic()
    done = trainer.run(*train_args(small_store, results))
    assert done.code == 0, done.said
    return results / "train", time.monotonic() - began


def same_as_unbroken(folder: Path, whole: Path) -> None:
    assert sums_of(folder) == sums_of(whole)
    assert curves_of(folder) == curves_of(whole)
    assert scenes_of(folder) == scenes_of(whole)
    assert not list(folder.glob(".*.part"))


@pytest.mark.full
@pytest.mark.parametrize("kill_at", KILLS)
def test_a_training_killed_at_a_step_comes_to_the_same(
    kill_at: str, trainer: "Mill", small_store: Path, trained: tuple[Path, float], tmp_path: Path
) -> None:
    killed = trainer.run(*train_args(small_store, tmp_path), kill_at=kill_at)
    assert killed.code == -signal.SIGKILL, killed.said
    read_whole(tmp_path / "train")
    again = trainer.run(*train_args(small_store, tmp_path))
    assert again.code == 0, again.said
    same_as_unbroken(tmp_path / "train", trained[0])


@pytest.mark.parametrize(("seed", "kills"), SEEDS)
def test_a_training_killed_at_random_times_comes_to_the_same(
    seed: int, kills: int, trainer: "Mill", small_store: Path, trained: tuple[Path, float], tmp_path: Path
) -> None:
    rng, (whole, seconds) = random.Random(f"training {seed}"), trained
    for _ in range(kills):
        pid = trainer.start(*train_args(small_store, tmp_path))
        time.sleep(rng.uniform(0.0, seconds))
        os.kill(pid, signal.SIGKILL)
        assert trainer.wait(pid).code in (0, -signal.SIGKILL)
        read_whole(tmp_path / "train")
    again = trainer.run(*train_args(small_store, tmp_path))
    assert again.code == 0, again.said
    same_as_unbroken(tmp_path / "train", whole)
