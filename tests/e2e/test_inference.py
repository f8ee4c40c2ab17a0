"""From a folder of images to a folder of predictions, as a user runs it: what is written, what is skipped, and what fails alone."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from scenemill.pipelines import predictions
from scenemill.pipelines.experiments import photos
from scenemill.pipelines.experiments.inference import FAILURES, FILES, Fact, Inferred, infer_folder, infer_store, is_complete
from scenemill.pipelines.experiments.photos import read_image
from scenemill.pipelines.experiments.run_inference import infer_folder_with_beam
from scenemill.pipelines.experiments.specs import load_spec
from scenemill.pipelines.ingest import ingest
from scenemill.pipelines.predictions import folder_of, read_prediction
from scenemill.pipelines.reports.prediction_sheet import POINTS
from scenemill.pipelines.score import ScoreConfig, score
from scenemill.schemas.config import IngestConfig
from scenemill.schemas.errors import ConfigError, SourceError
from scenemill.schemas.experiment import ExperimentConfig
from scenemill.schemas.places import on_disk
from scenemill.trainers.batches import SceneDataset, SceneLoader
from scenemill.trainers.evaluate import evaluate_images
from scenemill.trainers.nvpanoptix3d.stage1 import Stage1
from scenemill.trainers.timelapse import LABELS_FILE, TimelapseParser
from scenemill.trainers.usd.records import PointData
from scenemill.transforms.publish import write_whole
from scenemill.transforms.store import Store, open_store

SPEC = Path(__file__).resolve().parents[2] / "pipelines" / "experiments" / "shipped" / "tiny_front3d_2d.yaml"
KEEP_ALL = (
    *("model.object_mask_threshold=0", "model.overlap_threshold=0", "dataset.reduced_target_size=[160,120]"),
    *("dataset.enable_mp_occ=false", "dataset.test.batch_size=2"),
)
K: Any = [[277.1281435, 0, 159.5, 0], [0, 277.1281435, 119.5, 0], [0, 0, 1, 0], [0, 0, 0, 1]]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Threads of a small model spend their time waiting for each other where other work shares the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def config() -> ExperimentConfig:
    return load_spec(SPEC, list(KEEP_ALL))


def random_model(config: ExperimentConfig) -> Stage1:
    torch.manual_seed(3)
    return Stage1(config.model, config.dataset.depth_size)


@pytest.fixture(scope="module")
def model(config: ExperimentConfig) -> Stage1:
    return random_model(config)


@pytest.fixture(scope="module")
def store(front3d_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("inferred") / "store"
    ingest(IngestConfig("front3d", front3d_world, folder))
    return open_store(folder)


@pytest.fixture
def images(store: Store, tmp_path: Path) -> Path:
    """Three images of a store: PNG, PNG with transparency, and a larger JPEG."""
    folder = tmp_path / "images"
    folder.mkdir()
    first, second, third = (Image.fromarray(store.read(key, ["rgb"])["rgb"]) for key in store.keys[:3])
    first.save(folder / "a.png")
    second.convert("RGBA").save(folder / "b.png")
    third.resize((500, 400)).save(folder / "c.jpg")
    return folder


def arrays_of(folder: Path) -> tuple[Any, Any, dict[str, Any]]:
    table = json.loads((folder / "segments.json").read_text())
    return np.load(folder / "panoptic_2d.npy"), np.load(folder / "depth_2d.npy"), table


def content_of(results: Path) -> dict[str, bytes]:
    return {path.relative_to(results).as_posix(): path.read_bytes() for path in sorted(results.rglob("*")) if path.is_file()}


def states(outcome: Inferred) -> dict[str, str]:
    return {fact.image: fact.state for fact in outcome.facts}


def test_each_image_gets_the_documented_files(config: ExperimentConfig, model: Stage1, images: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    outcome = infer_folder(config, model, images, tmp_path / "results", lambda *told: seen.append(told))
    assert states(outcome) == {"a.png": "written", "b.png": "written", "c.jpg": "written"}
    assert seen == [("Predicting", 0, 3), ("Predicting", 2, 3), ("Predicting", 3, 3)]
    for name in ("a", "b", "c"):
        folder = tmp_path / "results" / name
        assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
        panoptic, depth, table = arrays_of(folder)
        assert (panoptic.dtype, panoptic.shape) == (np.int32, (120, 160))
        assert (depth.dtype, depth.shape) == (np.float32, (120, 160))
        assert list(table) == ["image_id", "stage", "intrinsic", "segments_2d"]
        assert (table["image_id"], table["stage"]) == (name, 1)
        assert np.array_equal(table["intrinsic"], K)
        assert {*np.unique(panoptic)} - {0} <= {segment["id"] for segment in table["segments_2d"]} and panoptic.any()
        assert all(set(segment) == {"id", "isthing", "category_id"} for segment in table["segments_2d"])
        with Image.open(folder / "view.png") as view:
            assert view.size == (4 * 320 + 18, 240 + 40)
    assert json.loads((tmp_path / "results" / FAILURES).read_text()) == []


def test_predictions_are_a_log_of_3d_checkpoints(config: ExperimentConfig, model: Stage1, images: Path, tmp_path: Path) -> None:
    """A point for each pixel, where a pinhole camera sees it, Y up and looking along -Z, with the class of its segment."""
    infer_folder(config, model, images, tmp_path)
    log = TimelapseParser(tmp_path)
    assert log.get_category_names_by_type("pointcloud") == ["a", "b", "c"]
    assert log.labels[10][0] == "wall"
    panoptic, depth, table = arrays_of(tmp_path / "a")
    cloud = log.read("pointcloud", "a", 0, 0).prims[0]
    assert isinstance(cloud, PointData) and cloud.semantic_ids is not None and cloud.colors is not None
    points = np.asarray(cloud.points)
    row, column = np.nonzero(depth > 0)
    assert len(points) == len(row) == len(cloud.colors)
    assert points[:, 2] == pytest.approx(-depth[row, column])
    across, down = points[:, 0] / -points[:, 2], -points[:, 1] / -points[:, 2]
    fx, fy, cx, cy = (
        np.asarray(table["intrinsic"])[place] / 2 for place in ((0, 0), (1, 1), (0, 2), (1, 2))
    )  # maps of half the size
    assert across * fx + cx == pytest.approx(column, abs=1e-3) and down * fy + cy == pytest.approx(row, abs=1e-3)
    classes = {segment["id"]: segment["category_id"] for segment in table["segments_2d"]}
    assert np.asarray(cloud.semantic_ids).tolist() == [classes.get(segment, 0) for segment in panoptic[row, column].tolist()]


def test_what_is_complete_is_skipped_and_what_is_not_is_made_whole(model: Stage1, images: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    config = load_spec(SPEC, [*KEEP_ALL, "dataset.test.batch_size=1"])  # other batches, other roundings
    infer_folder(config, model, images, results)
    written = content_of(results)
    (results / "b" / "segments.json").unlink()  # as a killed run leaves it
    (results / "c" / "view.png").unlink()
    stamp = (results / "a" / "segments.json").stat().st_mtime_ns
    outcome = infer_folder(config, model, images, results)
    assert states(outcome) == {"a.png": "skipped", "b.png": "written", "c.jpg": "written"}
    assert content_of(results) == written
    assert (results / "a" / "segments.json").stat().st_mtime_ns == stamp
    torch.manual_seed(8)
    other = Stage1(config.model, config.dataset.depth_size)
    infer_folder(config, other, images, results)
    assert content_of(results) == written
    assert infer_folder(config, other, images, results, overwrite=True).count("written") == 3
    assert content_of(results)["a/panoptic_2d.npy"] != written["a/panoptic_2d.npy"]


def test_a_killed_overwriting_never_leaves_a_table_beside_other_maps(
    config: ExperimentConfig, model: Stage1, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tmp_path / "results"
    infer_folder(config, model, images, results)

    def killed(path: Path, data: bytes) -> None:
        if path.name == "depth_2d.npy":
            raise KeyboardInterrupt
        write_whole(path, data)

    monkeypatch.setattr(predictions, "write_whole", killed)
    torch.manual_seed(8)
    with pytest.raises(KeyboardInterrupt):
        infer_folder(config, Stage1(config.model, config.dataset.depth_size), images, results, overwrite=True)
    assert not is_complete(config, results / "a") and is_complete(config, results / "b")


def spoil(images: Path) -> dict[str, str]:
    """Files that give no prediction, and a piece of what is said of each."""
    good = (images / "a.png").read_bytes()
    (images / "cut.png").write_bytes(good[: len(good) // 2])
    (images / "empty.jpg").write_bytes(b"")
    (images / "text.png").write_text("no image")
    (images / "gone.png").symlink_to(images / "nowhere")
    (images / "a.jpg").write_bytes((images / "c.jpg").read_bytes())  # sorts before a.png and takes its name
    Image.fromarray(np.zeros((9, 9), np.uint16)).save(images / "deep.png")
    (images / "failures.json.png").write_bytes(good)
    return {
        "cut.png": "no readable image",
        "empty.jpg": "no readable image",
        "text.png": "no readable image",
        "gone.png": "no file",
        "a.png": "name of a.jpg",
        "deep.png": "8 bits",
        "failures.json.png": "rename",
    }


def test_a_bad_image_fails_alone_and_is_told(config: ExperimentConfig, model: Stage1, images: Path, tmp_path: Path) -> None:
    expected = spoil(images)
    (images / "below").mkdir()
    shutil.copy(images / "b.png", images / "below" / "deeper.png")
    shutil.copy(images / "c.jpg", images / "D.JPG")
    shutil.copy(images / "c.jpg", images / "e.jpeg")
    shutil.copy(images / "c.jpg", images / "._c.jpg")
    (images / "notes.txt").write_text("hello")
    outcome = infer_folder(config, model, images, tmp_path / "results")
    assert {name for name, state in states(outcome).items() if state == "written"} == {"a.jpg", "b.png", "c.jpg"}
    assert {fact.image for fact in outcome.failures} == set(expected)
    assert all(expected[fact.image] in fact.reason for fact in outcome.failures)
    assert outcome.passed_over == ("D.JPG", "e.jpeg")
    told = json.loads((tmp_path / "results" / FAILURES).read_text())
    assert told == [{"image": fact.image, "reason": fact.reason} for fact in outcome.failures]
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == ["a", "b", "c", FAILURES, LABELS_FILE]


def test_a_folder_that_cannot_be_written_fails_alone(config: ExperimentConfig, model: Stage1, images: Path, tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "b").write_text("a file in the way")
    outcome = infer_folder(config, model, images, tmp_path / "results")
    assert states(outcome) == {"a.png": "written", "b.png": "failed", "c.jpg": "written"}
    assert "cannot be written" in outcome.failures[0].reason


def test_depth_that_is_no_number_is_not_written(config: ExperimentConfig, images: Path, tmp_path: Path) -> None:
    model = random_model(config)
    parts = [module for module in model.backbone.depth_head.modules() if isinstance(module, nn.Conv2d) and module.bias is not None]
    with torch.no_grad():
        for part in parts:
            assert part.bias is not None
            part.bias.fill_(float("nan"))
    outcome = infer_folder(config, model, images, tmp_path / "results")
    assert outcome.count("failed") == 3 and all("no number" in fact.reason for fact in outcome.failures)


def test_pictures_are_turned_upright(tmp_path: Path) -> None:
    upright = np.random.default_rng(1).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    turned = Image.fromarray(np.rot90(upright).copy())
    exif = turned.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    turned.save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "turned.png"), upright)


@pytest.mark.parametrize("mode", ["L", "P", "1", "LA", "CMYK"])
def test_every_kind_of_colours_becomes_rgb(mode: str, tmp_path: Path) -> None:
    path = tmp_path / ("image.jpg" if mode == "CMYK" else "image.png")
    Image.new("RGB", (8, 8), (255, 255, 255)).convert(mode).save(path)
    assert read_image(path).tolist() == np.full((8, 8, 3), 255).tolist()


def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (50, 50)).save(tmp_path / "large.png")
    for limit in (2000, 100):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(SourceError, match="exceeds limit"):
            read_image(tmp_path / "large.png")
    monkeypatch.setattr(photos, "_LIMIT_BYTE", 10)
    with pytest.raises(SourceError, match="a smaller image"):
        read_image(tmp_path / "large.png")


def test_calls_that_cannot_be_right_are_refused(config: ExperimentConfig, model: Stage1, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        infer_folder(config, model, tmp_path / "none", tmp_path / "results")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="0 images under"):
        infer_folder(config, model, tmp_path / "empty", tmp_path / "results")
    (tmp_path / "empty" / "a.JPG").touch()
    with pytest.raises(ConfigError, match=r"such as a\.JPG"):
        infer_folder(config, model, tmp_path / "empty", tmp_path / "results")
    many = replace(config, model=replace(config.model, sem_seg_head=replace(config.model.sem_seg_head, num_classes=20)))
    with pytest.raises(ConfigError, match="num_classes=20"):
        infer_folder(many, model, tmp_path, tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_a_store_and_its_images_as_files_give_the_same(
    config: ExperimentConfig, model: Stage1, store: Store, tmp_path: Path
) -> None:
    (tmp_path / "images").mkdir()
    for key in store:
        Image.fromarray(store.read(key, ["rgb"])["rgb"]).save(tmp_path / "images" / f"{folder_of(key)}.png")
    infer_folder(config, model, tmp_path / "images", tmp_path / "files")
    outcome = infer_store(config, model, store, "", tmp_path / "samples", reduced=True)
    assert [fact.image for fact in outcome.facts] == store.keys and outcome.count("written") == len(store)
    files, samples = content_of(tmp_path / "files"), content_of(tmp_path / "samples")
    assert files.keys() == samples.keys()
    for name in files:
        if not name.endswith(("segments.json", POINTS)):  # intrinsics of a batch have single precision
            assert files[name] == samples[name], name
    for key in store:
        _, _, table = arrays_of(tmp_path / "samples" / folder_of(key))
        assert np.allclose(table["intrinsic"], K)


def test_scoring_reads_what_a_store_was_predicted_to_hold(
    config: ExperimentConfig, model: Stage1, store: Store, tmp_path: Path
) -> None:
    split = store.samples["split"].to_pylist()[0]
    keys = store.keys_of(split)
    infer_store(config, model, store.root, split, tmp_path / "told")
    (tmp_path / "told" / folder_of(keys[0]) / "segments.json").unlink()
    outcome = infer_store(config, model, store.root, split, tmp_path / "told")
    assert states(outcome) == {key: "skipped" if number else "written" for number, key in enumerate(keys)}
    assert read_prediction(tmp_path / "told", keys[0], 64).depth.shape == (240, 320)
    scored = score(ScoreConfig(tmp_path / "told", store.root, tmp_path / "tables", split=split))
    loader = SceneLoader(SceneDataset(store, split, config.dataset), 1, shuffle=False)
    evaluation = evaluate_images(model, loader, config, "front3d")
    (quality,) = (
        row["quality"]
        for row in scored.scores.to_pylist()
        if (row["metric"], row["rule"], row["group"]) == ("pq", "reference", "all")
    )
    assert scored.samples == evaluation.samples == len(keys)
    assert evaluation.kpi("test")["test_dpq_-1.0_epoch"] == pytest.approx(100 * quality)


def test_a_damaged_sample_fails_alone(config: ExperimentConfig, model: Stage1, store: Store, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(on_disk(store.root), tmp_path / "store"))
    for path in (path for path in (damaged / "rgb" / "c").rglob("*") if path.is_file()):
        content = bytearray(path.read_bytes())
        content[20] ^= 1
        path.write_bytes(content)
    outcome = infer_store(config, model, damaged, "", tmp_path / "told")
    assert 1 <= len(outcome.failures) < len(store) and outcome.count("written") == len(store) - len(outcome.failures)
    assert all("rgb" in fact.reason for fact in outcome.failures)


def test_beam_gives_the_same_files_and_outcome(config: ExperimentConfig, model: Stage1, images: Path, tmp_path: Path) -> None:
    spoil(images)
    expected = infer_folder(config, model, images, tmp_path / "plain")
    load = partial(random_model, config)
    found = infer_folder_with_beam(config, load, images, tmp_path / "beam")
    assert found.facts == expected.facts and found.count("written") == 3
    assert content_of(tmp_path / "beam").keys() == content_of(tmp_path / "plain").keys()
    for name in ("a", "b", "c"):
        (ids, depth, table), (others, metres, told) = (arrays_of(tmp_path / way / name) for way in ("beam", "plain"))
        assert table == told and (ids != others).mean() < 0.002 and np.allclose(depth, metres, atol=1e-4)  # other batches
    again = infer_folder_with_beam(config, load, images, tmp_path / "beam")
    assert Fact("b.png", "skipped") in again.facts and again.count("written") == 0
