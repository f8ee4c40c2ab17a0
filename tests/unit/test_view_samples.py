"""Stores, predictions and metric tables in the viewer: what is shown equals what is stored, and one sample is one place in space."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from scenemill import Store, open_store
from scenemill.pipelines.ingest import ingest
from scenemill.pipelines.predictions import Prediction, folder_of, write_prediction
from scenemill.pipelines.score import ScoreConfig, score
from scenemill.pipelines.synth import synth_views
from scenemill.pipelines.viewer.cut import USUAL, Budget
from scenemill.pipelines.viewer.predictions import PredictionsRoot
from scenemill.pipelines.viewer.roots import Roots, recognise
from scenemill.pipelines.viewer.store import StoreRoot
from scenemill.pipelines.viewer.tables import TablesRoot
from scenemill.schemas.config import IngestConfig
from scenemill.schemas.errors import ConfigError, NotPublished, SourceError
from scenemill.transforms.layout import ROOT
from tests.unit.view_worlds import told_of, write_samples


@pytest.fixture(scope="module")
def world(front3d_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store, predictions of its samples, tables of their scores, and an empty folder beside them."""
    folder = tmp_path_factory.mktemp("view")
    write_samples(front3d_world, folder, 6)
    (folder / "nothing").mkdir()
    return folder


@pytest.fixture
def store(world: Path) -> Store:
    return open_store(world / "store")


@pytest.fixture
def roots(world: Path) -> Iterator[Roots]:
    yield Roots([world], 0)


def test_a_folder_stands_for_what_is_in_it(roots: Roots) -> None:
    assert [(root.name, root.kind) for root in roots] == [("store", "store"), ("tables", "tables"), ("told", "predictions")]


def test_a_folder_that_is_nothing_yet_is_an_empty_log(world: Path) -> None:
    assert recognise(world / "nothing") == [("log", world / "nothing")]
    with pytest.raises(ConfigError, match="no such folder"):
        recognise(world / "none")


def test_what_comes_into_a_folder_later_is_shown_and_what_was_there_keeps_its_name(world: Path, tmp_path: Path) -> None:
    roots = Roots([tmp_path], 0)
    assert [root.kind for root in roots] == ["log"] and roots.revision() == roots.revision()
    empty = roots.revision()
    shutil.copytree(world / "told", tmp_path / "b" / "told")
    assert roots.revision() != empty and [(root.name, root.kind) for root in roots] == [("told", "predictions")]
    first = roots.named("told")
    shutil.copytree(world / "told", tmp_path / "a" / "told")
    shutil.copytree(world / "store", tmp_path / "store")
    roots.revision()
    assert [(root.name, root.kind) for root in roots] == [("told_2", "predictions"), ("told", "predictions"), ("store", "store")]
    assert roots.named("told") is first and first.stores == (roots.named("store"),)  # type: ignore[union-attr]


def test_a_store_that_is_half_there_is_opened_when_it_is_whole(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world / "store", tmp_path / "store")
    document = (tmp_path / "store" / ROOT).read_bytes()
    (tmp_path / "store" / ROOT).unlink()
    roots = Roots([tmp_path], 0)
    (tmp_path / "store" / ROOT).write_bytes(document[:100])
    roots.revision()
    assert [root.kind for root in roots] == ["log"]
    (tmp_path / "store" / ROOT).write_bytes(document)
    roots.revision()
    assert [root.kind for root in roots] == ["store"]


def test_roots_of_one_name_are_told_apart(world: Path) -> None:
    roots = Roots([world / "store", world / "nothing", world / "store"], 0)
    assert [root.name for root in roots] == ["store", "nothing", "store_2"]
    with pytest.raises(ConfigError, match="there is store, nothing, store_2"):
        roots.named("stor")


def test_pictures_and_planes_hold_the_stored_values(world: Path, store: Store) -> None:
    root, key = StoreRoot("store", world / "store"), store.keys[1]
    sample = store.read(key)
    for name in ("rgb", "semantic_2d", "instance_2d"):
        np.testing.assert_array_equal(root.plane(key, name, "", 0).values, sample[name])
    depth = root.plane(key, "depth", "", 0)
    np.testing.assert_array_equal(depth.values, sample["depth"])
    valid = sample["depth"][sample["depth"] > 0]
    assert (
        depth.scale is not None
        and depth.scale["unit"] == "m"
        and depth.scale["low"] <= valid.min() * 1.01
        and depth.scale["high"] >= valid.max() * 0.99
    )


@pytest.mark.parametrize("axis", ["x", "y", "z"])
@pytest.mark.parametrize("name", ["geometry", "semantic_3d", "instance_3d", "weighting"])
def test_a_plane_says_which_voxel_each_of_its_pixels_is(world: Path, store: Store, axis: str, name: str) -> None:
    root, key = StoreRoot("store", world / "store"), store.keys[0]
    volume = store.read(key, [name])[name]
    plane = root.plane(key, name, axis, 20)
    places: dict[str, Any] = {axis: np.full(plane.values.shape, 20)}
    rows, columns = np.indices(plane.values.shape)
    places[plane.right] = columns
    places[plane.down.removeprefix("-")] = plane.values.shape[0] - 1 - rows if plane.down.startswith("-") else rows
    np.testing.assert_array_equal(plane.values, volume[places["x"], places["y"], places["z"]])
    assert (plane.axis, plane.index, plane.size) == (axis, 20, len(volume))
    if plane.ids:
        assert {entry["id"]: entry["count"] for entry in plane.legend} == dict(
            zip(*(part.tolist() for part in np.unique(plane.values, return_counts=True)), strict=True)
        )


def test_views_of_an_object_are_pictures_in_their_own_units(tmp_path: Path) -> None:
    synth_views(tmp_path / "raw", "sphere", views=3, size=32)
    ingest(IngestConfig("views", tmp_path / "raw", tmp_path / "store"))
    root, store = StoreRoot("store", tmp_path / "store"), open_store(tmp_path / "store")
    shows = root.sample(store.keys[0])["shows"]
    assert {one["what"] for one in shows} >= {"rgb", "depth"} and {one["kind"] for one in shows} == {"picture"}
    for one in shows:
        assert root.plane(store.keys[0], one["what"], "", 0).values.shape[:2] == store.read(store.keys[0])["rgb"].shape[:2]
    scale = root.plane(store.keys[0], "depth", "", 0).scale
    assert scale is not None and scale["unit"] != "m"


def test_the_scale_of_distances_ends_at_the_truncation(world: Path, store: Store) -> None:
    plane = StoreRoot("store", world / "store").plane(store.keys[0], "geometry", "z", 32)
    assert plane.scale is not None and (plane.scale["low"], plane.scale["high"], plane.scale["unit"]) == (0, 12, "voxel")
    assert plane.scale["special"][0]["value"] == 12


def test_scenes_of_a_sample_lie_on_each_other(world: Path, store: Store) -> None:
    root, key = StoreRoot("store", world / "store"), store.keys[0]
    labels = store.read(key)["semantic_3d"]
    voxels, points, surface = (root.scene(key, what, 0, USUAL) for what in ("voxels", "points", "surface"))
    (part,) = voxels.parts
    assert {tuple(cell) for cell in part.arrays["positions"].tolist()} == {tuple(cell) for cell in np.argwhere(labels).tolist()}
    np.testing.assert_array_equal(part.arrays["ids.class"], labels[tuple(part.arrays["positions"].T)])
    voxel_m = part.matrix[0, 0]
    centres = part.arrays["positions"] @ part.matrix[:3, :3].T + part.matrix[:3, 3]
    placed = points.parts[0].arrays["positions"] @ points.parts[0].matrix[:3, :3].T + points.parts[0].matrix[:3, 3]
    for cloud in (placed[::97], surface.parts[0].arrays["positions"][::97]):
        nearest = np.array([np.abs(centres - place).max(1).min() for place in cloud])
        assert np.quantile(nearest, 0.9) < 2.5 * voxel_m  # metres, upright, the same frame
    assert placed[:, 2].max() < 0  # before the camera, which looks along -z
    assert voxels.unit == points.unit == surface.unit == "m"


def test_points_of_the_depth_map_have_the_colours_and_classes_of_their_pixels(world: Path, store: Store) -> None:
    root, key = StoreRoot("store", world / "store"), store.keys[0]
    sample = store.read(key)
    (part,) = root.scene(key, "points", 0, USUAL).parts
    assert part.shown == int((sample["depth"] > 0).sum())
    given = np.c_[sample["rgb"][sample["depth"] > 0], sample["semantic_2d"][sample["depth"] > 0]]
    shown = np.c_[part.arrays["colors"], part.arrays["ids.class"]]
    np.testing.assert_array_equal(np.sort(given, axis=0), np.sort(shown.astype(given.dtype), axis=0))


def test_what_a_sample_shows_can_be_shown(roots: Roots, store: Store) -> None:
    told = roots.sample(store.keys[0])
    assert set(told["roots"]) == {"store", "told"}
    for name, held in told["roots"].items():
        root: Any = roots.named(name)
        for one in held["shows"]:
            if one["kind"] == "scene":
                assert root.scene(store.keys[0], one["what"], 0, Budget(500, 500, 500)).parts
            else:
                plane = root.plane(store.keys[0], one["what"], "y" if one["kind"] == "volume" else "", 1)
                assert plane.values.ndim in (2, 3) and (plane.legend or plane.scale or plane.values.shape[2] == 3)
    json.dumps(told, allow_nan=False)


def test_a_predictions_voxels_are_where_the_stores_are(roots: Roots, store: Store) -> None:
    key = store.keys[0]
    mine, theirs = (roots.named(name).scene(key, "voxels", 0, USUAL) for name in ("told", "store"))  # type: ignore[union-attr]
    np.testing.assert_allclose(mine.parts[0].matrix, theirs.parts[0].matrix)
    assert mine.notes == ()


def test_a_prediction_that_nothing_places_says_so(world: Path, store: Store) -> None:
    scene = PredictionsRoot("told", world / "told").scene(store.keys[0], "voxels", 0, USUAL)
    assert scene.notes and scene.notes[0].startswith("around the middle of its space")


def test_a_predictions_maps_are_those_that_were_written(world: Path, store: Store) -> None:
    root, key = PredictionsRoot("told", world / "told"), store.keys[0]
    told = told_of(store.read(key))
    np.testing.assert_array_equal(root.plane(key, "segments", "", 0).values, told.panoptic_2d)
    np.testing.assert_array_equal(root.plane(key, "depth", "", 0).values, told.depth)
    expected = np.vectorize(lambda segment: told.classes_2d.get(segment, 0))(told.panoptic_2d)
    np.testing.assert_array_equal(root.plane(key, "classes", "", 0).values, expected)
    names = {entry["id"]: entry["name"] for entry in root.plane(key, "segments", "", 0).legend}
    assert names[0] == "none" and set(names) - {0} == set(told.classes_2d)


def test_broken_predictions_are_told_and_hide_no_others(world: Path, store: Store, tmp_path: Path) -> None:
    shutil.copytree(world / "told", tmp_path / "told")
    first, second, third, fourth = (tmp_path / "told" / folder_of(key) for key in store.keys[:4])
    (first / "segments.json").write_text("[1, 2")
    (second / "panoptic.npz").write_bytes(b"PK\x03\x04 and no more")
    (third / "depth_2d.npy").unlink()
    (fourth / "view.png").write_bytes(b"\x89PNG\r\n")
    root = PredictionsRoot("told", tmp_path / "told")
    assert root.samples("", "", 0)["total"] == len(store)
    for key in store.keys[:3]:
        with pytest.raises(SourceError):
            root.sample(key)
    with pytest.raises(SourceError, match="PNG"):
        root.plane(store.keys[3], "view", "", 0)
    assert root.sample(store.keys[4])["shows"]


def test_folders_that_are_gone_are_empty_and_the_others_stay(world: Path, tmp_path: Path) -> None:
    for name in ("store", "told", "tables"):
        shutil.copytree(world / name, tmp_path / name)
    roots = Roots([tmp_path / name for name in ("store", "told", "tables")], 0)
    before = roots.revision()
    shutil.rmtree(tmp_path / "told")
    shutil.rmtree(tmp_path / "tables")
    assert roots.revision() != before
    store, told, tables = roots.index()["roots"]
    assert (store["samples"], told["samples"]) == (6, 0) and "no metric tables here" in tables["error"]


def test_a_prediction_that_changed_is_read_again(world: Path, store: Store, tmp_path: Path) -> None:
    shutil.copytree(world / "told", tmp_path / "told")
    root, key = PredictionsRoot("told", tmp_path / "told"), store.keys[0]
    look, stamp, before = root.look(), root.stamp(key), root.plane(key, "classes", "", 0).values
    told = told_of(store.read(key))
    write_prediction(
        tmp_path / "told", key, Prediction(told.panoptic_2d * 0, {}, told.depth, told.panoptic_3d, told.classes_3d, told.distance)
    )
    assert root.look() != look and root.stamp(key) != stamp
    assert before.any() and not root.plane(key, "classes", "", 0).values.any()


def test_a_picture_of_a_prediction_is_shown_as_it_is(world: Path, store: Store, tmp_path: Path) -> None:
    shutil.copytree(world / "told", tmp_path / "told")
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "told" / folder_of(store.keys[0]) / "view.png")
    root = PredictionsRoot("told", tmp_path / "told")
    assert {"view"} <= {one["what"] for one in root.sample(store.keys[0])["shows"]}
    np.testing.assert_array_equal(root.plane(store.keys[0], "view", "", 0).values, pixels)


def test_predictions_behind_a_link_that_leads_out_are_not_listed(world: Path, store: Store, tmp_path: Path) -> None:
    (tmp_path / "told").mkdir()
    (tmp_path / "told" / "linked").symlink_to(world / "told" / folder_of(store.keys[0]))
    shutil.copytree(world / "told" / folder_of(store.keys[1]), tmp_path / "told" / "own")
    assert [row["key"] for row in PredictionsRoot("told", tmp_path / "told").samples("", "", 0)["rows"]] == ["own"]


def test_samples_are_found_by_text_and_split(world: Path, store: Store) -> None:
    root = StoreRoot("store", world / "store")
    key = store.keys[2]
    assert [row["key"] for row in root.samples(key[5:].upper(), "", 0)["rows"]] == [key]
    splits = root.describe()["splits"]
    assert sum(splits.values()) == len(store)
    for split, count in splits.items():
        assert root.samples("", split, 0)["total"] == count
    assert root.samples("", "", 4)["rows"] == root.samples("", "", 0)["rows"][4:]
    assert root.samples(".*", "", 0)["total"] == 0  # a text, no pattern


def test_findings_name_the_samples_and_fields_they_are_about(front3d_world: Path, tmp_path: Path) -> None:
    shutil.copytree(front3d_world, tmp_path / "raw")
    geometry = sorted((tmp_path / "raw" / "data").rglob("geometry_*.npz"))[0]
    volume = np.load(geometry)["data"]
    np.savez_compressed(geometry, data=volume[:-1])
    ingest(IngestConfig("front3d", tmp_path / "raw", tmp_path / "store"))
    root = StoreRoot("store", tmp_path / "store")
    found = root.findings("", "error", 0)
    assert found["total"] >= 1 and {row["severity"] for row in found["rows"]} == {"error"}
    row = next(row for row in found["rows"] if row["field"] == "geometry")
    assert row["rejected"] and not row["stored"] and row["key"].startswith(geometry.parent.name)
    assert root.describe()["rejected"] == 1 and root.findings("geometry", "", 0)["total"] >= 1
    assert root.findings("no such text", "", 0)["total"] == 0


def test_a_new_version_of_a_store_appears_at_the_next_look(front3d_world: Path, tmp_path: Path) -> None:
    shutil.copytree(front3d_world, tmp_path / "raw")
    lists = json.loads((tmp_path / "raw" / "train.json").read_text())
    (tmp_path / "raw" / "train.json").write_text(json.dumps(lists[:1]))
    ingest(IngestConfig("front3d", tmp_path / "raw", tmp_path / "store"))
    root = StoreRoot("store", tmp_path / "store")
    look, samples = root.look(), root.describe()["samples"]
    assert root.look() == look
    (tmp_path / "raw" / "train.json").write_text(json.dumps(lists))
    ingest(IngestConfig("front3d", tmp_path / "raw", tmp_path / "store"))
    assert root.describe()["samples"] == samples
    assert root.look() != look and root.describe()["samples"] > samples


def test_a_store_that_is_gone_is_told_and_one_that_never_was_is_refused(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world / "store", tmp_path / "store")
    root = StoreRoot("store", tmp_path / "store")
    shutil.rmtree(tmp_path / "store")
    root.look()
    assert "nothing published here" in root.describe()["error"] and root.describe()["samples"] == 6
    with pytest.raises(NotPublished):
        StoreRoot("store", tmp_path / "nothing")


@pytest.mark.parametrize(
    ("what", "axis", "index"), [("geometry", "w", 0), ("geometry", "z", 64), ("pose", "", 0), ("../rgb", "", 0)]
)
def test_planes_that_are_not_there_are_refused(world: Path, store: Store, what: str, axis: str, index: int) -> None:
    with pytest.raises(ConfigError):
        StoreRoot("store", world / "store").plane(store.keys[0], what, axis, index)


def test_runs_list_scores_and_the_worst_samples_come_first(world: Path, store: Store) -> None:
    root = TablesRoot("tables", world / "tables")
    runs = root.describe()["runs"]
    assert {(run["model"], run["samples"]) for run in runs} == {("ours", len(store))}
    assert {run["metric"] for run in runs} >= {"pq", "prq"}
    run = next(run for run in runs if (run["metric"], run["rule"]) == ("pq", "coco"))
    worst = root.worst(run["run"], "pq", "coco", 0)
    qualities = [row["quality"] for row in worst["rows"]]
    assert worst["total"] == len(store) and qualities == sorted(qualities)
    for row in worst["rows"]:
        mine = [one for one in root.sample(row["key"]) if (one["metric"], one["rule"]) == ("pq", "coco")]
        true = [one["quality"] for one in mine if one["tp"] + one["fn"]]
        assert row["quality"] == pytest.approx(np.mean(true))
    assert any(row["fn"] for row in worst["rows"])  # the segment that was forgotten


@pytest.mark.parametrize("asked", [("none", "pq", "coco"), ("", "pq", "coco")])
def test_runs_that_are_not_there_are_refused(world: Path, asked: tuple[str, str, str]) -> None:
    with pytest.raises(ConfigError, match="no samples of run"):
        TablesRoot("tables", world / "tables").worst(*asked, 0)


def test_a_run_scored_meanwhile_appears_and_broken_tables_are_told(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world / "tables", tmp_path / "tables")
    root = TablesRoot("tables", tmp_path / "tables")
    look, runs = root.look(), len(root.describe()["runs"])
    score(ScoreConfig(world / "told", world / "store", tmp_path / "tables", model="later", split="val"))
    assert root.look() != look and len(root.describe()["runs"]) == 2 * runs
    log = tmp_path / "tables" / "scores" / "_delta_log"
    newest = max(file.name for file in log.glob("*.json"))
    (log / f"{int(newest.split('.')[0]) + 1:020}.json").write_text("{ no JSON")
    root.look()
    assert root.describe()["error"] and len(root.describe()["runs"]) == 2 * runs


def test_a_sample_is_known_by_its_key_and_by_the_name_of_its_prediction(roots: Roots, store: Store) -> None:
    key = store.keys[0]
    assert roots.sample(folder_of(key)) == roots.sample(key) and roots.sample(key)["key"] == key
    with pytest.raises(ConfigError, match="no sample"):
        roots.sample("nothing/0001")


@pytest.mark.full
@pytest.mark.real
def test_the_surface_of_a_real_view_has_its_classes(real_data: Path, tmp_path: Path) -> None:
    ingest(IngestConfig("front3d", real_data / "data" / "front3d", tmp_path / "store"))
    store = open_store(tmp_path / "store")
    root = StoreRoot("store", tmp_path / "store")
    labels = store.read(store.keys[0])["semantic_3d"]
    (part,) = root.scene(store.keys[0], "surface", 0, USUAL).parts
    assert part.shown <= USUAL.triangles and set(np.unique(part.arrays["ids.class"])) - {0} == set(np.unique(labels)) - {0}
