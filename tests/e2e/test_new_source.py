"""A source of one's own, as the examples have it: made-up data, every promise of a source, a store, and all that reads one."""

import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from scenemill import DatasetConfig, SceneDataset, SceneLoader, Store, open_store
from scenemill.pipelines.cli import app
from scenemill.pipelines.conformance import broken_promises
from scenemill.pipelines.forecast import forecast
from scenemill.pipelines.ingest import ingest
from scenemill.pipelines.reports.sheet import contact_sheet
from scenemill.pipelines.viewer.cut import Budget
from scenemill.pipelines.viewer.store import StoreRoot
from scenemill.schemas.config import IngestConfig
from scenemill.schemas.errors import ConfigError
from scenemill.transforms.verify import verify_store

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SOURCE = f"{EXAMPLES / 'rgbd_source.py'}:SOURCE"
FIELDS = ["rgb", "depth", "semantic_2d", "instance_2d", "intrinsics", "world_from_camera", "confidence"]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two made-up scenes of a view each; tests must not change them."""
    folder = tmp_path_factory.mktemp("rgbd") / "raw"
    runpy.run_path(str(EXAMPLES / "rgbd_world.py"))["write_rgbd_world"](folder, scenes=2, views=1, seed=3)
    return folder


@pytest.fixture(scope="module")
def work(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two stores of it, once every promise was found kept; tests must not change them."""
    folder = tmp_path_factory.mktemp("work")
    assert broken_promises(SOURCE, raw, folder) == []
    return folder


@pytest.fixture
def store(work: Path) -> Store:
    return open_store(work / "one")


def test_the_example_is_short() -> None:
    assert len((EXAMPLES / "rgbd_source.py").read_text().splitlines()) < 100


def test_the_store_holds_what_the_files_do_and_is_whole(store: Store, raw: Path) -> None:
    assert store.layout.source == "rgbd" and [field.name for field in store.layout.fields] == FIELDS
    assert verify_store(store.root).broken == ()
    for key in store.keys:
        scene, image = key.split("/")
        with Image.open(raw / scene / "depth" / f"{image}.png") as depth:
            assert np.array_equal(store.read(key)["depth"], np.asarray(depth) / np.float32(1000))
        assert store.read(key, by_zarr=True) == store.read(key)
    assert [set(FIELDS) - set(store.facts(key)["fields"]) for key in store.keys].count(set()) < len(store)


def test_the_store_is_read_without_the_code(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scenemill.transforms.own_forms.load_form", lambda *args: pytest.fail("code was run"))
    again = open_store(store.root)
    assert again.layout.fields[-1].meaning == "of the depth: 0 low, 1, 2 high" and again.layout.labels[3].name == "chair"
    assert len(again.read(again.keys[0]).arrays) >= 5


def test_batches_of_images_come_from_it_and_volumes_are_refused(store: Store) -> None:
    images = DatasetConfig(enable_mp_occ=False)
    batches = list(SceneLoader(SceneDataset(store, None, images), batch_size=2))
    assert [key for batch in batches for key in batch.keys] == store.keys
    assert batches[0].tensors["image"].shape[:2] == (2, 3) and int(batches[0].masks_of.sum()) > 4
    with pytest.raises(ConfigError, match="has no geometry; images alone need enable_3d=False and enable_mp_occ=False"):
        SceneDataset(store, None, DatasetConfig())


def test_it_is_planned_shown_and_viewed_like_any_other(store: Store, raw: Path) -> None:
    assert forecast(IngestConfig(SOURCE, raw, store.root, samples_per_part=2)).kept == len(store)
    key = next(key for key in store.keys if "confidence" in store.facts(key)["fields"])
    sample = store.read(key)
    layout = store.layout
    assert contact_sheet(sample, layout.source, layout.own_fields, layout.labels).width == 1400
    assert isinstance(store.root, Path)
    root = StoreRoot("rgbd", store.root)
    shown = {entry["what"] for entry in root.sample(key)["shows"]}
    assert shown == {"points", "rgb", "depth", "semantic_2d", "instance_2d", "confidence"}
    assert root.plane(key, "confidence", "", 0).scale is not None
    assert root.scene(key, "points", 0.0, Budget(500, 500, 500)).parts[0].arrays["positions"].size > 0


def test_the_command_line_shows_and_refuses_it_in_words(store: Store, raw: Path, tmp_path: Path) -> None:
    def run(*words: object) -> tuple[int, str]:
        done = CliRunner().invoke(app, [str(word) for word in words])
        return done.exit_code, done.output + str(done.exception)

    assert "rgbd: images of 320 x 240 pixels" in run("show", store.root)[1]
    assert "source 'rgbd' is not known; use one of front3d" in run("plan", "rgbd", "--input", raw)[1]
    assert "No such file" in run("plan", "nothing.py:SOURCE", "--input", raw)[1]
    assert "list_samples" in run("validate", SOURCE, "--input", tmp_path)[1]


def test_changed_code_builds_new_parts_in_the_same_store_and_other_fields_are_refused(
    work: Path, raw: Path, tmp_path: Path
) -> None:
    store = shutil.copytree(work / "one", tmp_path / "store")
    before = open_store(store)
    mine = tmp_path / "mine.py"
    text = (EXAMPLES / "rgbd_source.py").read_text()
    mine.write_text(text)
    config = IngestConfig(f"{mine}:SOURCE", raw, store)
    assert ingest(config).outcome == "unchanged"  # wherever the file lies
    mine.write_text(text.replace("np.float32(1000)", "np.float32(500)"))
    outcome = ingest(config)
    after = open_store(store)
    assert outcome.outcome == "published" and outcome.new == len(before)
    assert {part["id"] for part in after.manifest["parts"]}.isdisjoint(part["id"] for part in before.manifest["parts"])
    key = before.keys[0]
    assert np.allclose(after.read(key)["depth"], 2 * before.read(key)["depth"])
    assert after.manifest["checks"] != before.manifest["checks"]
    mine.write_text(text.replace('"uint8", 0, "", "of the depth', '"uint16", 0, "", "of the depth'))
    with pytest.raises(ConfigError, match="fields confidence of the form are others than the store's"):
        ingest(config)


def test_a_broken_source_is_told_which_promise_it_breaks(raw: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    text = (EXAMPLES / "rgbd_source.py").read_text()
    mine.write_text(
        text.replace("def read_rgb", "COUNT = iter(range(256))\n\n\ndef read_rgb")
        .replace('fill(arrays["rgb"], read', 'arrays["rgb"][0, 0] = next(COUNT)\n    fill(arrays["rgb"][1:], read')
        .replace('{"RGB": "uint8"}))', '{"RGB": "uint8"})[1:])')
        .replace('RawFile("depth", ("depth",), read_depth)', 'RawFile("depth", ("depth",), lambda data, arrays, facts: None)')
        .replace('f"{split}.txt"', '"train.txt"')
    )
    told = broken_promises(f"{mine}:SOURCE", raw, tmp_path)
    assert any(line.endswith("rgb hold something of the sample read before, or of chance") for line in told)
    assert any("depth, empty: is taken for a good file" in line for line in told)
    assert any("split_overlap" in line for line in told)


LABELLED = """
from dataclasses import replace
from scenemill import Form, Label
import runpy
TOLD = runpy.run_path(EXAMPLE)
ROAD = tuple(Label(old.id + 20, f"kind {old.id}", old.thing, old.color) for old in TOLD["SOURCE"].labels[1:])

def read_label(data, arrays, facts):
    TOLD["read_label"](data, arrays, facts)
    arrays["semantic_2d"][arrays["semantic_2d"] > 0] += 20

FILES = tuple(replace(file, decode=read_label) if file.kind == "label" else file for file in TOLD["FILES"])
SOURCE = replace(TOLD["SOURCE"], name="kinds", files=FILES, labels=ROAD)
"""


def test_labels_of_its_own_are_shown_and_batched_but_neither_trained_nor_scored(raw: Path, store: Store, tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(f"EXAMPLE = {str(EXAMPLES / 'rgbd_source.py')!r}\n{LABELLED}")
    ingest(IngestConfig(f"{mine}:SOURCE", raw, tmp_path / "store"))
    own = open_store(tmp_path / "store")
    assert {label["name"] for label in own.manifest["labels"]} == {f"kind {number}" for number in range(1, 13)}
    key = own.keys[0]
    assert np.array_equal(
        own.read(key)["semantic_2d"], np.where(store.read(key)["semantic_2d"] > 0, store.read(key)["semantic_2d"] + 20, 0)
    )
    images = DatasetConfig(enable_mp_occ=False, stuff_classes=(10, 11, 12))
    kinds, rooms = (
        next(iter(SceneLoader(SceneDataset(one, None, config), batch_size=2)))
        for one, config in ((own, DatasetConfig(enable_mp_occ=False)), (store, images))
    )
    assert (kinds.tensors["gt_classes"] - 20).tolist() == rooms.tensors["gt_classes"].tolist()
    assert kinds.masks_of.tolist() == rooms.masks_of.tolist()
    with pytest.raises(ConfigError, match=r"label_map='map.json' speaks of the built-in classes"):
        SceneDataset(own, None, DatasetConfig(enable_mp_occ=False, label_map="map.json"))
    with pytest.raises(ConfigError, match="of the source 'kinds', has no built-in classes"):
        own.layout.check_built_in_classes("store")
    store.layout.check_built_in_classes("store")
