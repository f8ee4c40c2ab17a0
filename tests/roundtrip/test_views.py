"""Views of objects from raw folder to store and back: every value, by every reader; and what becomes of views that are wrong."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from scenemill import SceneDataset, open_store
from scenemill.pipelines.cli import app
from scenemill.pipelines.forecast import forecast
from scenemill.pipelines.ingest import Outcome, ingest
from scenemill.pipelines.reports.sheet import contact_sheet
from scenemill.pipelines.synth import synth_views
from scenemill.pipelines.validate import validate
from scenemill.schemas.config import IngestConfig
from scenemill.schemas.errors import ConfigError, SourceError, TooManyRejected
from scenemill.schemas.fields import fields_of
from scenemill.trainers.synthetic_views import import_synthetic_view
from scenemill.transforms.layout import Layout, shard_path
from scenemill.transforms.ranges import LocalRanges
from scenemill.transforms.reader import ShardReader
from scenemill.transforms.shards import ShardWriter
from scenemill.transforms.sources import find_root, list_samples, open_source, read_sample
from scenemill.transforms.verify import verify_store
from scenemill.transforms.view_cameras import ViewMetadata, looking_at, projection_of
from scenemill.transforms.view_sets import convert_camera_sets
from scenemill.transforms.view_writing import ObjectView, write_view


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Views of the clock; tests must not change them."""
    folder = tmp_path_factory.mktemp("raw") / "clock"
    synth_views(folder, "clock", views=6, size=32, seed=2)
    return folder


@pytest.fixture
def copied(raw: Path, tmp_path: Path) -> Path:
    """Views that a test may change."""
    return Path(shutil.copytree(raw, tmp_path / "raw" / "clock"))


@pytest.fixture(scope="module")
def stored(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of them."""
    store = tmp_path_factory.mktemp("stored") / "store"
    outcome = run(raw, store)
    assert (outcome.outcome, outcome.listed, outcome.stored, outcome.rejected) == ("published", 6, 6, 0)
    return store


def run(raw: Path, store: Path, **options: Any) -> Outcome:
    return ingest(IngestConfig("views", raw, store, **{"samples_per_part": 4, **options}))


def checksums(store: Path) -> dict[str, str]:
    return {
        path.relative_to(store).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(store.rglob("*"))
        if path.is_file() and "runs" not in path.relative_to(store).parts and path.name != ".scenemill.lock"
    }


def test_what_went_in_comes_out_to_the_bit(raw: Path, stored: Path) -> None:
    store = open_store(stored)
    root = find_root("views", raw)
    listed, _ = list_samples("views", root)
    source = open_source("views", root, listed)
    assert store.keys == [sample.key for sample in listed] == [f"clock/{number}" for number in range(6)]
    for sample in listed:
        read, findings = read_sample(source, sample)
        assert not findings
        assert store.read(sample.key) == read == store.read(sample.key, by_zarr=True)
        facts = store.facts(sample.key)
        assert facts["fields"] == [field.name for field in fields_of("views")]
        assert facts["digest"] == read.facts["digest"]
        assert {file["path"] for file in facts["files"]} <= {path.name for path in raw.iterdir()}


def test_other_readers_see_the_same_values(stored: Path) -> None:
    store = open_store(stored)
    plain, dataset = zarr.open_group(stored, mode="r"), xarray.open_zarr(stored, consolidated=True)
    for key in store.keys:
        sample = store.read(key)
        for field in store.layout.fields:
            assert dataset[field.name].dims == ("sample", *field.axes)
            for reader in (plain[field.name], dataset[field.name]):
                np.testing.assert_array_equal(np.asarray(reader[store.facts(key)["row"]]), sample[field.name])


def test_the_store_says_the_camera_that_the_importer_of_files_says(raw: Path, stored: Path) -> None:
    store = open_store(stored)
    for number in range(6):
        sample, view = store.read(f"clock/{number}"), import_synthetic_view(raw, number)
        camera = view["metadata"]
        np.testing.assert_array_equal(sample["camera_transform"].astype(np.float32), camera["cam_transform"].numpy())
        np.testing.assert_array_equal(sample["camera_projection"].astype(np.float32), camera["cam_proj"].numpy())
        np.testing.assert_array_equal(sample["rgb"].astype(np.float32) / 255, view["rgb"].numpy())


def test_points_of_the_depth_map_of_one_view_lie_where_another_sees_them(stored: Path) -> None:
    """Depth, pinhole and pose of the table speak of one space: what two views both see has one depth in the second."""
    store = open_store(stored)
    views = []
    for key in store.keys:
        facts = store.facts(key)
        pose, lens = (np.reshape(facts[name], (4, 4)) for name in ("world_from_camera", "intrinsics"))
        views.append((store.read(key), pose, lens))
    close = total = 0
    for sample, pose, lens in views:
        row, column = np.nonzero(sample["depth"])
        depth = sample["depth"][row, column].astype(float)
        in_camera = np.linalg.inv(lens[:3, :3]) @ np.stack([column, row, np.ones(row.size)]) * depth
        world = pose @ np.concatenate([in_camera, np.ones((1, row.size))])
        for other, other_pose, other_lens in views:
            seen = other_lens[:3, :3] @ (np.linalg.inv(other_pose) @ world)[:3]
            pixel = np.rint(seen[:2] / seen[2]).astype(int)
            inside = ((pixel >= 0) & (pixel < 32)).all(axis=0)
            found = other["depth"][pixel[1, inside], pixel[0, inside]]
            behind_or_on = seen[2, inside] > found - 0.05  # a surface may hide a point, never lie behind it; 0 is none there
            close, total = close + int(np.count_nonzero(behind_or_on & (found > 0))), total + row.size
    assert close > 0.9 * total


@pytest.mark.full
def test_an_ingest_again_changes_nothing_and_gives_the_same_bytes_elsewhere(raw: Path, stored: Path, tmp_path: Path) -> None:
    before = checksums(stored)
    assert run(raw, stored).outcome == "unchanged"
    assert checksums(stored) == before
    run(raw, tmp_path / "store", workers=2)
    assert checksums(tmp_path / "store") == before
    assert not verify_store(stored).broken


def test_a_manifest_says_that_there_are_no_voxels(stored: Path) -> None:
    manifest = open_store(stored).manifest
    assert (manifest["voxel_m"], manifest["labels"], manifest["layout"]["grid"]) == (None, [], 0)
    assert open_store(stored).frustum is None


def test_a_dataset_of_rooms_takes_no_views(stored: Path) -> None:
    with pytest.raises(ConfigError, match="holds views of objects, not of rooms"):
        SceneDataset(stored, "train")


def test_held_out_views_come_by_lists_and_new_views_append(copied: Path, tmp_path: Path) -> None:
    run(copied, tmp_path / "store", limit=4)
    first = open_store(tmp_path / "store")
    assert first.keys_of("train") == first.keys == [f"clock/{number}" for number in range(4)]
    assert [row["check"] for row in first.findings.to_pylist() if row["key"] == ""] == ["list"]
    (copied / "train.txt").write_text("".join(f"clock/{number}\n" for number in range(5)))
    (copied / "val.txt").write_text("clock/5\n")
    outcome = run(copied, tmp_path / "store")
    second = open_store(tmp_path / "store")
    assert (outcome.new, len(second), second.keys_of("val")) == (2, 6, ["clock/5"])
    assert not [row for row in second.findings.to_pylist() if row["key"] == ""]  # there are lists now
    assert second.read("clock/2") == first.read("clock/2")


def test_wrong_views_are_rejected_by_name_and_the_rest_is_stored(copied: Path, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((16, 32, 3), np.uint8)).save(copied / "0_rgb.png")
    metadata = json.loads((copied / "1_metadata.json").read_text())
    metadata["camera_properties"]["tf_mat"] = (np.diag([2.0, 2, 2, 1]) @ metadata["camera_properties"]["tf_mat"]).tolist()
    (copied / "1_metadata.json").write_text(json.dumps(metadata))
    (copied / "2_metadata.json").unlink()
    np.save(copied / "3_semantic.npy", np.zeros((32, 32), np.int32))
    (copied / "5_depth_linear.npy").unlink()
    outcome = run(copied, tmp_path / "store")
    rows = outcome.findings.to_pylist()
    errors = {(row["key"], row["check"], row["field"]) for row in rows if row["severity"] == "error"}
    assert errors == {
        ("clock/0", "shape", "rgb"),
        ("clock/1", "camera", "camera_transform"),
        ("clock/2", "presence", "metadata"),
        ("clock/3", "mask", "semantic"),
    }
    assert all(row["observed"] and row["expected"] for row in rows)
    assert ("clock/5", "sensors", "depth_linear") in {(row["key"], row["check"], row["field"]) for row in rows}
    store = open_store(tmp_path / "store")
    assert store.keys == ["clock/4", "clock/5"] and "depth" not in store.read("clock/5") and "depth" in store.read("clock/4")
    with pytest.raises(TooManyRejected, match="4 of 6 samples rejected"):
        run(copied, tmp_path / "other", max_rejected=3)


def test_copies_of_a_view_and_of_a_camera_are_told(copied: Path) -> None:
    for ending in ("rgb.png", "metadata.json", "semantic.npy", "instance.npy", "depth_linear.npy", "normals.png"):
        shutil.copy(copied / f"0_{ending}", copied / f"6_{ending}")
    shutil.copy(copied / "1_metadata.json", copied / "2_metadata.json")
    result = validate(IngestConfig("views", copied))
    rows = result.findings.to_pylist()
    assert {(row["key"], row["observed"]) for row in rows if row["check"] == "duplicate"} == {
        ("clock/0", "image of clock/6"),
        ("clock/6", "image of clock/0"),
    }
    told = {failed.column: failed.what for failed in result.expected.failed}
    assert set(told) == {"digest", "views_of_camera"}
    assert told["views_of_camera"].startswith("4 of") and sum(f"clock/{n}" in told["views_of_camera"] for n in (0, 1, 2, 6)) == 3


def test_a_mended_folder_loses_its_old_findings(copied: Path, tmp_path: Path) -> None:
    (copied / "6_metadata.json").write_bytes((copied / "5_metadata.json").read_bytes())
    run(copied, tmp_path / "store")
    assert "stray" in open_store(tmp_path / "store").findings["check"].to_pylist()
    (copied / "6_metadata.json").unlink()
    run(copied, tmp_path / "store")
    assert "stray" not in open_store(tmp_path / "store").findings["check"].to_pylist()


def test_damage_in_a_store_is_named_and_repaired(raw: Path, stored: Path, tmp_path: Path) -> None:
    store = Path(shutil.copytree(stored, tmp_path / "store"))
    shard = next(path for path in sorted((store / "depth" / "c").rglob("*")) if path.is_file())
    data = bytearray(shard.read_bytes())
    data[40] ^= 1
    shard.unlink()
    shard.write_bytes(data)
    assert [broken.path for broken in verify_store(store).broken] == [shard.relative_to(store).as_posix()]
    broken_part = open_store(store).facts("clock/0")["part"]
    assert run(raw, store, repair=True).new == 4
    whole = open_store(store)
    assert all(whole.read(key) == open_store(stored).read(key) for key in whole.keys)
    assert {broken.part for broken in verify_store(store).broken} == {broken_part}  # of the old version, that is kept
    assert broken_part not in whole.samples["part"].to_pylist()


def test_a_plan_says_what_an_ingest_would_do(raw: Path, tmp_path: Path) -> None:
    expected = forecast(IngestConfig("views", raw, tmp_path / "store", samples_per_part=4))
    files = [path for path in raw.iterdir() if path.is_file()]
    assert (expected.listed, expected.new, expected.parts) == (6, 6, 2)
    assert expected.raw_byte == sum(path.stat().st_size for path in files) and expected.stored_byte > 0
    assert not (tmp_path / "store").exists()


def test_the_sheet_shows_image_mask_depth_and_normals(stored: Path) -> None:
    store = open_store(stored)
    sample = store.read("clock/0")
    sheet = np.asarray(contact_sheet(sample, "views"))
    width = (1400 - 48 - 5 * 256) // 4 + 256
    panels = [sheet[-400:, 24 + place * width :][:, :256] for place in range(5)]
    shades = [len(np.unique(panel.reshape(-1, 3), axis=0)) for panel in panels]
    assert sheet.shape[1] == 1400 and all(count > 2 for count in shades)
    normal = sample["normals"][16, 16]
    assert (panels[4] == normal).all(axis=-1).any()  # drawn without smoothing, so as stored
    lacking = store.read("clock/0", ["rgb", "camera_transform", "camera_projection"])
    assert contact_sheet(lacking, "views").size[0] == 1400


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    seed=st.integers(0, 2**32 - 1),
    sensors=st.sets(st.sampled_from(["labels", "depth", "normals"])),
)
def test_any_maps_survive_files_and_shards(
    tmp_path_factory: pytest.TempPathFactory, height: int, width: int, seed: int, sensors: set[str]
) -> None:
    folder, rng, size = tmp_path_factory.mktemp("any"), np.random.default_rng(seed), (height, width)
    (folder / "raw").mkdir()
    maps: dict[str, Any] = {
        "labels": rng.integers(0, 65536, size).astype(np.int32),
        "depth": np.abs(rng.normal(size=size)).astype(np.float32),
        "normals": rng.uniform(-1, 1, (*size, 3)).astype(np.float32),
    }
    rgb = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
    camera = ViewMetadata(looking_at(rng.normal(size=3), np.zeros(3)), projection_of(1.0, size), size, (0.1, 1.0), (), {})
    write_view(folder / "raw", 0, ObjectView(rgb, **{name: maps[name] for name in sensors}), camera)
    listed, _ = list_samples("views", folder / "raw")
    sample, findings = read_sample(open_source("views", folder / "raw", listed), listed[0])
    assert not findings
    np.testing.assert_array_equal(sample["rgb"], rgb)
    if "labels" in sensors:
        np.testing.assert_array_equal(sample["semantic"], maps["labels"])
    layout, store = Layout("views", 0, size, 3, "float32"), folder / "store"
    row = seed % 3
    for field in (field for field in layout.fields if field.name in sample):
        path = store / shard_path(field, 0)
        path.parent.mkdir(parents=True)
        shard = ShardWriter(path, layout, field)
        shard.append(row, sample[field.name])
        shard.close()
        reader = ShardReader(LocalRanges(store), layout, lambda slot, path: (store / path).stat().st_size)
        np.testing.assert_array_equal(reader.array(field, row), sample[field.name])


# --- camera sets


def write_set(folder: Path, name: str, count: int, alpha: bool = True) -> list[np.ndarray[Any, np.dtype[np.float64]]]:
    """Images with poses in the form of NeRF's Blender scenes; the poses, world from camera for columns."""
    folder.mkdir(parents=True, exist_ok=True)
    poses, frames = [], []
    for number in range(count):
        rng = np.random.default_rng([number, *name.encode()])
        transform = np.eye(4)
        transform[:, :3] = looking_at(rng.normal(size=3) * 4, np.zeros(3))
        poses.append(np.linalg.inv(transform.T).astype(np.float64))
        pixels = rng.integers(0, 256, (8, 10, 4 if alpha else 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}_{number}.png")
        frames.append({"file_path": f"./{name}_{number}", "transform_matrix": poses[-1].tolist()})
    (folder / f"{name}.json").write_text(json.dumps({"camera_angle_x": 0.7, "frames": frames}))
    return poses


def test_camera_sets_become_a_scene_with_split_lists(tmp_path: Path) -> None:
    source = tmp_path / "nerf"
    poses = write_set(source, "transforms_train", 3) + write_set(source, "transforms_val", 2)
    files = [source / "transforms_train.json", source / "transforms_val.json"]
    assert convert_camera_sets(files, tmp_path / "lego") == 5
    listed, findings = list_samples("views", tmp_path / "lego")
    assert [sample.splits for sample in listed] == [("train",)] * 3 + [("val",)] * 2 and not findings
    opened = open_source("views", find_root("views", tmp_path / "lego"), listed)
    for number, pose in enumerate(poses):
        sample, findings_of_view = read_sample(opened, listed[number])
        assert not findings_of_view
        name = f"transforms_train_{number}" if number < 3 else f"transforms_val_{number - 3}"
        rgba = np.asarray(Image.open(source / f"{name}.png")).astype(float)
        np.testing.assert_allclose(sample["rgb"], rgba[..., :3] * rgba[..., 3:] / 255, atol=0.5 + 1e-9)
        np.testing.assert_array_equal(sample["semantic"], rgba[..., 3] >= 128)
        np.testing.assert_allclose([0.1, 0.2, -3, 1] @ pose.T @ sample["camera_transform"][:, :3].astype(float), [0.1, 0.2, -3])
        assert sample["camera_projection"].ravel() == pytest.approx([1 / np.tan(0.35), 1 / np.tan(0.35) * 10 / 8, -1])


def test_a_camera_set_without_alpha_has_no_masks_and_one_alone_no_lists(tmp_path: Path) -> None:
    write_set(tmp_path / "nerf", "transforms", 2, alpha=False)
    assert convert_camera_sets([tmp_path / "nerf" / "transforms.json"], tmp_path / "lego") == 2
    assert sorted(path.name for path in (tmp_path / "lego").iterdir()) == [
        "0_metadata.json",
        "0_rgb.png",
        "1_metadata.json",
        "1_rgb.png",
    ]


@pytest.mark.parametrize(
    ("path", "error", "said"),
    [
        ("../secret", SourceError, "leads out of the raw folder"),
        ("missing", SourceError, "missing.png: no such file"),
        ("note.txt", SourceError, "note.txt.png: no such file"),
    ],
)
def test_an_image_that_is_missing_or_outside_is_refused(path: str, error: type[Exception], said: str, tmp_path: Path) -> None:
    write_set(tmp_path / "nerf", "transforms", 1)
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    frames = [{"file_path": path, "transform_matrix": np.eye(4).tolist()}]
    (tmp_path / "nerf" / "transforms.json").write_text(json.dumps({"camera_angle_x": 1.0, "frames": frames}))
    with pytest.raises(error, match=said):
        convert_camera_sets([tmp_path / "nerf" / "transforms.json"], tmp_path / "lego")


def test_no_set_a_set_twice_and_no_json_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    for files, said in (([], "none"), ([tmp_path / "a.json"] * 2, "give each once"), ([tmp_path / "a.json"], "no readable JSON")):
        with pytest.raises(ConfigError, match=said):
            convert_camera_sets(files, tmp_path / "lego")
    assert not (tmp_path / "lego").exists()


# --- the command line


def command(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    problem = "" if result.exception is None or isinstance(result.exception, SystemExit) else str(result.exception)
    return result.exit_code, f"{result.stdout}{problem}"


def test_the_commands_go_from_an_object_to_a_sheet(tmp_path: Path) -> None:
    made = command("synth", "views", tmp_path / "vase", "--object", "vase", "--views", 3, "--size", 24, "--elevation", -10, 45)
    assert made[0] == 0 and "1 object, 3 views, 21 files" in made[1]
    assert (tmp_path / "vase" / "truth" / "vase.obj").is_file()
    options = ("views", "--input", tmp_path / "vase")
    assert command("plan", *options, "--json")[0] == 0
    code, said = command("ingest", *options, "--output", tmp_path / "store", "--json")
    assert code == 0 and json.loads(said.splitlines()[-1])["stored"] == 3
    code, said = command("show", tmp_path / "store")
    assert code == 0 and "images of 24 x 24 pixels" in said and "voxels of" not in said
    code, said = command("show", tmp_path / "store", "vase/1", "--png", tmp_path / "sheet.png")
    assert code == 0 and "voxels_observed" not in said
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width == 1400
    assert command("verify", tmp_path / "store")[0] == 0


def test_validate_says_what_is_wrong_and_leaves_with_3(copied: Path) -> None:
    (copied / "2_metadata.json").write_text("{}")
    code, said = command("validate", "views", "--input", copied, "--json")
    told = json.loads(said.splitlines()[-1])
    assert code == 3 and (told["passed"], told["rejected"]) == (5, 1)
    assert ("error", "metadata") in {(row["severity"], row["field"]) for row in told["findings"]}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("views", "--scenes", 2), "--scenes says nothing of views"),
        (("views", "--grid", 64), "--grid says nothing of views"),
        (("front3d", "--object", "vase"), "--object says nothing of front3d"),
        (("scannet",), "'scannet' is not made of rooms"),
        (("views", "--object", "teapot"), "use one of sphere, torus, vase, clock"),
    ],
)
def test_options_of_the_other_kind_of_world_are_refused(arguments: tuple[Any, ...], said: str, tmp_path: Path) -> None:
    code, told = command("synth", arguments[0], tmp_path / "out", *arguments[1:])
    assert code != 0 and said in told


def test_a_camera_set_is_converted_from_the_command_line(tmp_path: Path) -> None:
    write_set(tmp_path / "nerf", "transforms", 2)
    code, said = command("convert-views", tmp_path / "lego", tmp_path / "nerf" / "transforms.json")
    assert code == 0 and "2 views" in said
    assert command("ingest", "views", "--input", tmp_path / "lego", "--output", tmp_path / "store", "--json")[0] == 0
    assert open_store(tmp_path / "store").keys == ["lego/0", "lego/1"]
