"""Stage 2 at its tiny size: from a trained stage 1 to volumes, meshes and rows of the metric tables."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from scenemill.pipelines.experiments.evaluation import run_evaluation
from scenemill.pipelines.experiments.inference import FILES, VOLUME_FILES
from scenemill.pipelines.experiments.specs import read_spec, spec_text
from scenemill.pipelines.experiments.training import run_inference, run_training
from scenemill.pipelines.predictions import class_volume, read_prediction
from scenemill.pipelines.query import query
from scenemill.schemas.errors import ConfigError
from scenemill.schemas.experiment import ExperimentConfig
from scenemill.trainers.batches import SceneDataset, SceneLoader
from scenemill.trainers.checkpoint import load_checkpoint
from scenemill.trainers.evaluate3d import evaluate_volumes
from scenemill.trainers.nvpanoptix3d.stage2 import Stage2
from scenemill.trainers.nvpanoptix3d.weights import load_all
from scenemill.trainers.predict import rules_of
from scenemill.trainers.stages import stage_of
from scenemill.trainers.timelapse import TimelapseParser
from scenemill.trainers.train import Trained
from scenemill.trainers.usd.records import MeshData
from scenemill.transforms.store import open_store
from scenemill.transforms.worlds import write_world

GRID = 64
STEPS = 3


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCENEMILL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def silent(*_: object) -> None:
    pass


def experiment(name: str, raw: Path, results: Path, *more: str) -> ExperimentConfig:
    given = [f"dataset.{split}.base_dir={raw}" for split in ("train", "val", "test")]
    settings = [f"results_dir={results}", *given, "dataset.train.num_workers=0", *more]
    return read_spec(spec_text(name), settings, name)


@pytest.fixture(scope="module", params=["front3d", pytest.param("matterport", marks=pytest.mark.full)])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path, Trained]:
    """The source, a raw folder, a stage 1 checkpoint, and what stage 2 came to."""
    source, folder = request.param, tmp_path_factory.mktemp(request.param)
    write_world(source, folder / "raw", scenes=2, views=1, seed=3, grid=GRID)
    first = run_training(
        experiment(f"tiny_{source}_2d", folder / "raw", folder / "one", "train.optim.max_steps=2", "dataset.val.base_dir="),
        silent,
        silent,
    )
    return (
        source,
        folder / "raw",
        first.checkpoint,
        run_training(stage2(source, folder / "raw", folder / "two", first), silent, silent),
    )


def stage2(source: str, raw: Path, results: Path, first: Trained | Path, *more: str) -> ExperimentConfig:
    checkpoint = first if isinstance(first, Path) else first.checkpoint
    steps = (f"train.optim.max_steps={STEPS}", f"train.checkpoint_2d={checkpoint}", "model.object_mask_threshold=0.0")
    return experiment(f"tiny_{source}_3d", raw, results, *steps, *more)


def test_stage_2_learns_and_leaves_stage_1_as_it_is(trained: tuple[str, Path, Path, Trained]) -> None:
    _, _, first, second = trained
    assert second.step == STEPS and second.checkpoint.name.startswith("model_epoch_")
    assert (second.checkpoint.parent / "nvpanoptix3d_model_latest.pth").resolve() == second.checkpoint
    before, after = (load_checkpoint(path)["state_dict"] for path in (first, second.checkpoint))
    shared = [name for name in before if name.startswith(("model.backbone.", "model.sem_seg_head."))]
    assert all(torch.equal(before[name], after[name]) for name in shared)  # batch norms' averages too
    assert {name.split(".")[1] for name in set(after) - set(before)} == {"completion", "projector"}
    assert set(second.kpi) == {"PRQ", "RSQ", "RRQ"}
    assert all(np.isfinite(second.losses))


def test_a_validation_leaves_predicted_and_true_surfaces(trained: tuple[str, Path, Path, Trained]) -> None:
    *_, second = trained
    folder = second.checkpoint.parent / "timelapse"
    found = TimelapseParser(folder)
    assert found.get_category_names_by_type("mesh") == ["predicted", "true"]
    assert found.labels[10][0] == "wall"
    for number in range(2):
        surface = found.read("mesh", "true", number, STEPS).prims[0]
        assert isinstance(surface, MeshData)
        points = np.asarray(surface.vertices)
        assert len(points) > 1000 and points[:, 2].max() < 0  # in front of a camera that looks along -Z


def test_a_resumed_stage_2_takes_the_same_steps(trained: tuple[str, Path, Path, Trained], tmp_path: Path) -> None:
    source, raw, first, whole = trained

    class Stopped(Exception):
        pass

    def stop(step: Any) -> None:
        if step.step == 0:
            raise Stopped

    with pytest.raises(Stopped):
        run_training(stage2(source, raw, tmp_path, first), stop, silent)
    rest = run_training(stage2(source, raw, tmp_path, first, "train.checkpoint_2d="), silent, silent)  # all of it is in the file
    assert rest.losses == whole.losses[1:]


def test_weights_of_both_stages_start_a_new_training(trained: tuple[str, Path, Path, Trained], tmp_path: Path) -> None:
    source, raw, _, second = trained
    more = ("train.checkpoint_2d=", f"train.checkpoint_3d={second.checkpoint}", "train.is_dry_run=true", "dataset.val.base_dir=")
    begun = run_training(stage2(source, raw, tmp_path, second, *more), silent, silent)
    assert begun.step == 1
    model = stage_of(stage2(source, raw, tmp_path, second)).make_model(stage2(source, raw, tmp_path, second))
    load_all(model, begun.checkpoint)


def test_stage_2_without_a_stage_1_is_refused(trained: tuple[str, Path, Path, Trained], tmp_path: Path) -> None:
    source, raw, first, _ = trained
    with pytest.raises(ConfigError, match="checkpoint_2d is empty"):
        run_training(stage2(source, raw, tmp_path, first, "train.checkpoint_2d="), silent, silent)


def test_evaluation_fills_the_metric_tables_with_what_validation_counts(
    trained: tuple[str, Path, Path, Trained], tmp_path: Path
) -> None:
    source, raw, first, second = trained
    config = stage2(source, raw, tmp_path, first, f"evaluate.checkpoint={second.checkpoint}")
    evaluated = run_evaluation(config, silent)
    assert set(evaluated.kpi) == {"PRQ", "RSQ", "RRQ"}
    rows = query(
        evaluated.tables, "SELECT \"group\", rule, tp, fp, fn FROM scores WHERE metric = 'prq' AND NOT published", None, 60.0
    )
    assert {"all", "things", "stuff", "wall"} <= set(rows["group"].to_pylist())
    model = Stage2(config.model, config.dataset, rules_of(config))
    load_all(model, second.checkpoint)
    dataset = SceneDataset(_store_of(config), None, config.dataset, planes=config.model.mp_occ.num_planes)
    counted = evaluate_volumes(model.eval(), SceneLoader(dataset, 1, shuffle=False), config)
    assert counted.kpi() == pytest.approx(evaluated.kpi)
    told = {(row["group"], row["rule"]): (row["tp"], row["fp"], row["fn"]) for row in rows.to_pylist()}
    for rule, tally in counted.tallies.items():
        (wall,) = (value for (group, name), value in told.items() if group == "wall" and name.startswith(rule))
        assert wall == (tally[10].tp, tally[10].fp, tally[10].fn)


def _store_of(config: ExperimentConfig) -> Any:
    from scenemill.pipelines.experiments.training import find_samples

    return open_store(find_samples(config, "test", silent).store)


def test_inference_writes_the_documented_files(trained: tuple[str, Path, Path, Trained], tmp_path: Path) -> None:
    source, raw, first, second = trained
    (tmp_path / "photos").mkdir()
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (300, 500, 3), dtype=np.uint8)).save(tmp_path / "photos" / "a.jpg")
    more = (f"inference.checkpoint={second.checkpoint}", f"inference.images_dir={tmp_path / 'photos'}")
    config = stage2(source, raw, tmp_path, first, *more)
    assert "1 written" in run_inference(config, silent)
    folder = tmp_path / "inference" / "a"
    assert {path.name for path in folder.iterdir()} == {*FILES, *VOLUME_FILES}
    found = read_prediction(tmp_path / "inference", "a", GRID)
    assert found.panoptic_2d.shape == (30, 40)
    assert found.panoptic_3d is not None and found.distance is not None
    assert found.panoptic_3d.shape == found.distance.shape == (GRID,) * 3
    assert found.distance.min() >= 0 and found.distance.max() == pytest.approx(config.model.frustum3d.truncation)
    with np.load(folder / "semantic.npz") as archive:
        assert np.array_equal(archive["data"], class_volume(found))
    told = json.loads((folder / "segments.json").read_text())
    assert told["stage"] == 2 and np.shape(told["intrinsic"]) == (4, 4)
    log = TimelapseParser(tmp_path / "inference")
    assert [log.get_category_names_by_type(kind) for kind in ("mesh", "pointcloud")] == [["a"], ["a"]]
    assert "1 there already" in run_inference(config, silent)


def test_several_devices_share_an_inference(trained: tuple[str, Path, Path, Trained], tmp_path: Path) -> None:
    source, raw, first, second = trained
    (tmp_path / "photos").mkdir()
    for name in "abc":
        Image.fromarray(np.full((240, 320, 3), 40 * ord(name) % 256, np.uint8)).save(tmp_path / "photos" / f"{name}.png")
    (tmp_path / "photos" / "d.png").write_bytes(b"no image")
    more = (f"inference.checkpoint={second.checkpoint}", f"inference.images_dir={tmp_path / 'photos'}")
    told = run_inference(stage2(source, raw, tmp_path, first, *more, "inference.gpu_ids=[0,1]"), silent)
    assert "3 written" in told and "1 failed" in told
    assert [entry["image"] for entry in json.loads((tmp_path / "inference" / "failures.json").read_text())] == ["d.png"]
