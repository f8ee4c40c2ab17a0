"""Training on several processes: copies of the model (DDP), shares of it (FSDP), and processes started on machines of their own."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from scenemill.pipelines.experiments.specs import read_spec, spec_text
from scenemill.pipelines.experiments.training import run_training
from scenemill.schemas.experiment import ExperimentConfig
from scenemill.trainers.checkpoint import load_checkpoint
from scenemill.trainers.train import Trained
from scenemill.transforms.worlds import write_world

TWO = ("train.num_gpus=2", "train.gpu_ids=[0,1]", "dataset.train.batch_size=1")


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes") / "raw"
    write_world("front3d", folder, scenes=3, views=2, seed=5, grid=64)
    return folder


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCENEMILL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def settings(raw: Path, results: Path, *more: str) -> list[str]:
    given = [f"dataset.{split}.base_dir={raw}" for split in ("train", "val", "test")]
    return [f"results_dir={results}", *given, "dataset.train.num_workers=0", *more]


def experiment(raw: Path, results: Path, *more: str) -> ExperimentConfig:
    return read_spec(spec_text("tiny_front3d_2d"), settings(raw, results, *more), "tiny")


def silent(*_: object) -> None:
    pass


@pytest.fixture(scope="module")
def trained(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trained]:
    """Two steps of two samples: by copies, by shares, and by one process."""
    folder = tmp_path_factory.mktemp("trained")
    steps = ("train.optim.max_steps=2", "train.iters_per_epoch=2")
    alone = ("dataset.train.batch_size=2",)
    kinds = {"ddp": (*TWO, "train.distributed_strategy=ddp"), "fsdp": (*TWO, "train.distributed_strategy=fsdp"), "alone": alone}
    return {name: run_training(experiment(raw, folder / name, *steps, *more), silent, silent) for name, more in kinds.items()}


def test_shares_of_a_model_learn_what_copies_learn(trained: dict[str, Trained]) -> None:
    assert trained["fsdp"].losses == pytest.approx(trained["ddp"].losses, rel=1e-5)


def test_several_processes_measure_what_one_measures(trained: dict[str, Trained]) -> None:
    """The counts of their shares of the validation split add up to those of the whole."""
    assert trained["ddp"].kpi == pytest.approx(trained["fsdp"].kpi, abs=1.0)
    assert set(trained["ddp"].kpi) == set(trained["alone"].kpi)


def test_a_checkpoint_is_the_same_file_however_many_wrote_it(trained: dict[str, Trained]) -> None:
    copies, shares, alone = (load_checkpoint(trained[name].checkpoint) for name in ("ddp", "fsdp", "alone"))
    shapes = [{name: tensor.shape for name, tensor in held["state_dict"].items()} for held in (copies, shares, alone)]
    assert shapes[0] == shapes[1] == shapes[2]
    # averages of batch norms are left out: copies take those of the first process at every step
    names = [name for name, tensor in copies["state_dict"].items() if tensor.is_floating_point() and "running" not in name]
    one, other = (torch.cat([held["state_dict"][name].flatten() for name in names]) for held in (copies, shares))
    assert float((one - other).norm() / one.norm()) < 1e-4
    moments = [
        {number: kept["exp_avg"].shape for number, kept in held["optimizer"]["state"].items()} for held in (copies, shares, alone)
    ]
    assert moments[0] == moments[1] == moments[2]
    assert copies["order"] == shares["order"] == alone["order"]


@pytest.mark.full
def test_what_shares_began_one_process_finishes_and_the_reverse(raw: Path, trained: dict[str, Trained], tmp_path: Path) -> None:
    further = ("train.optim.max_steps=3", "train.num_epochs=9", "train.validation_interval=9")
    resumed = {
        (begun, by): run_training(
            experiment(
                raw,
                tmp_path / f"{begun}-{by}",
                *further,
                *(("dataset.train.batch_size=2",) if by == "alone" else (*TWO, f"train.distributed_strategy={by}")),
                f"train.resume_training_checkpoint_path={trained[begun].checkpoint}",
            ),
            silent,
            silent,
        )
        for begun, by in (("fsdp", "alone"), ("fsdp", "fsdp"), ("alone", "alone"), ("alone", "fsdp"))
    }
    assert all((run.step, len(run.losses)) == (3, 1) for run in resumed.values())
    weights = {name: load_checkpoint(run.checkpoint)["state_dict"] for name, run in resumed.items()}
    for begun in ("fsdp", "alone"):
        # the same samples from the same weights; each process draws points of its own, so losses agree roughly only
        by_one, by_two = weights[begun, "alone"], weights[begun, "fsdp"]
        name = "model.sem_seg_head.predictor.query_feat.weight"
        assert float((by_one[name] - by_two[name]).abs().max()) < 5e-3


@pytest.mark.full
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_stage_2_learns_on_two_processes(strategy: str, raw: Path, trained: dict[str, Trained], tmp_path: Path) -> None:
    more = (*TWO, f"train.distributed_strategy={strategy}", f"train.checkpoint_2d={trained['alone'].checkpoint}")
    given = settings(raw, tmp_path, *more, "train.optim.max_steps=2")
    second = run_training(read_spec(spec_text("tiny_front3d_3d"), given, "tiny"), silent, silent)
    assert (second.step, len(second.losses), set(second.kpi)) == (2, 2, {"PRQ", "RSQ", "RRQ"})
    assert any(".completion." in name for name in load_checkpoint(second.checkpoint)["state_dict"])


@pytest.mark.full
def test_machines_of_one_training_find_each_other(raw: Path, tmp_path: Path) -> None:
    """Two nodes of one process each, on this machine: one training, and one checkpoint, of the first node."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    given = settings(
        raw, tmp_path, "train.num_nodes=2", "dataset.train.batch_size=1", "train.optim.max_steps=2", "dataset.val.base_dir="
    )
    script = "from scenemill.pipelines.cli import main; main()"
    nodes = [
        subprocess.Popen(
            [sys.executable, "-c", script, "train", "-e", "tiny_front3d_2d", *given],
            env={**os.environ, "NODE_RANK": str(node), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": "0"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for node in (0, 1)
    ]
    told = [node.communicate(timeout=300)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], "\n".join(told)
    lines = [json.loads(line) for line in (tmp_path / "train" / "status.json").read_text().splitlines()]
    assert [line["status"] for line in lines if line["status"] != "RUNNING"] == ["STARTED", "SUCCESS"]
    checkpoint = (tmp_path / "train" / "panoptic_recon_3d_model_latest.pth").resolve()
    assert load_checkpoint(checkpoint)["order"] == [0, 4]  # two steps of two samples
