"""A store handed on to other tools: xarray, tables, raw folders, COCO, meshes and cards."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
import trimesh
import xarray
import yaml
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from scenemill import Store, open_store
from scenemill.pipelines.cli import app
from scenemill.pipelines.exports.coco import export_coco
from scenemill.pipelines.exports.mesh import export_mesh, sample_mesh
from scenemill.pipelines.exports.raw import export_raw
from scenemill.pipelines.ingest import ingest
from scenemill.pipelines.reports.card import card_of, write_card
from scenemill.pipelines.reports.card_text import to_markdown
from scenemill.pipelines.synth import synth_views
from scenemill.schemas.config import IngestConfig
from scenemill.schemas.errors import ConfigError, Corrupt
from scenemill.schemas.labels import LABELS
from scenemill.schemas.places import on_disk
from scenemill.trainers import usd
from scenemill.transforms.sources import list_samples, open_source, read_sample

SOURCES = ("front3d", "matterport", "views")
OF_THE_FILES = {"part", "row", "digest", "files", "raw_byte", "stored_byte"}
"""Columns of the samples table that speak of bytes of files, which no store keeps, or of what was rejected beside a sample."""


def stored(source: str, raw: Path, store: Path, **settings: Any) -> Store:
    ingest(IngestConfig(source, raw, store, samples_per_part=4, **settings))
    return open_store(store)


@pytest.fixture(scope="module")
def stores(front3d_world: Path, matterport_world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Store]:
    """A store of each source; that of front3d lacks a rejected sample, and one of its samples has no pose."""
    folder = tmp_path_factory.mktemp("interop")
    front3d = folder / "raw" / "front3d"
    shutil.copytree(front3d_world, front3d)
    files = sorted(front3d.glob("data/*/geometry_*.npz"))
    files[1].unlink()
    next(files[2].parent.glob("campose_*.npz")).unlink()
    synth_views(folder / "raw" / "clock", "clock", views=4, size=32, seed=2)
    raws = {"front3d": front3d, "matterport": matterport_world, "views": folder / "raw" / "clock"}
    return {source: stored(source, raws[source], folder / source) for source in SOURCES}


def same(one: NDArray[Any], other: NDArray[Any]) -> bool:
    return one.dtype == other.dtype and np.array_equal(one, other, equal_nan=one.dtype.kind == "f")


@pytest.mark.parametrize(("source", "chunked"), [("front3d", False), ("front3d", True), ("matterport", False), ("views", False)])
def test_xarray_has_every_value_of_every_counted_sample(stores: dict[str, Store], source: str, chunked: bool) -> None:
    store = stores[source]
    dataset = store.to_xarray(chunked)
    assert dataset["sample"].to_index().tolist() == store.keys
    assert dataset["split"].values.tolist() == store.samples["split"].to_pylist()
    assert all((dataset[field.name].chunks is not None) == chunked for field in store.layout.fields)
    for key in store.keys:
        sample = store.read(key)
        for field in store.layout.fields:
            values = dataset[field.name].sel(sample=key)
            assert values.dims == field.axes and values.attrs["units"] == field.unit
            expected = sample[field.name] if field.name in sample else np.full(values.shape, field.fill, field.dtype)
            assert same(values.values, expected)


def test_xarray_leaves_out_rows_that_no_manifest_names(stores: dict[str, Store]) -> None:
    store = stores["front3d"]
    assert store.manifest["rejected"] == 1
    assert store.group["rgb"].shape[0] > len(store) == store.to_xarray().sizes["sample"]  # type: ignore[union-attr]
    assert np.isnan(store.to_xarray()["world_from_camera"].values).all(axis=(1, 2)).sum() == 1


def test_xarray_reads_slices_steps_and_lists_of_volumes(stores: dict[str, Store]) -> None:
    store = stores["front3d"]
    lazy = store.to_xarray(False)["geometry"]
    whole = np.stack([store.read(key)["geometry"] for key in store.keys])
    assert same(lazy[1:4, 5, 3:60:7, [9, 2]].values, whole[1:4, 5, 3:60:7][..., [9, 2]])
    assert same(lazy[::-2, -1].values, whole[::-2, -1])
    assert same(lazy[[3, 0]].transpose("z", "sample", "x", "y").values, whole[[3, 0]].transpose(3, 0, 1, 2))
    assert lazy[0:0].values.shape == (0, 64, 64, 64)
    assert lazy[2, 3, 4, 5].item() == whole[2, 3, 4, 5]


def test_xarray_says_when_a_shard_is_missing_instead_of_giving_fill_values(stores: dict[str, Store], tmp_path: Path) -> None:
    copied = Path(shutil.copytree(on_disk(stores["matterport"].root), tmp_path / "store"))
    dataset = open_store(copied).to_xarray(False)
    slot = stores["matterport"].facts(stores["matterport"].keys[0])["row"] // 4
    (copied / f"semantic_3d/c/{slot}/0/0/0").unlink()
    assert dataset["rgb"][0].values.any()
    with pytest.raises(Corrupt, match=f"semantic_3d/c/{slot}/0/0/0 is missing"):
        _ = dataset["semantic_3d"][0].values


def test_xarray_writes_a_zarr_copy_of_a_selection(stores: dict[str, Store], tmp_path: Path) -> None:
    chosen = stores["views"].to_xarray(False).isel(sample=[1, 3])[["depth", "semantic"]]
    chosen.to_zarr(tmp_path / "copy", zarr_format=2)
    read = xarray.open_zarr(tmp_path / "copy", chunks=None)
    assert same(read["semantic"].values, np.stack([stores["views"].read(key)["semantic"] for key in stores["views"].keys[1::2]]))


def test_tables_are_read_by_pandas_and_duckdb_without_a_copy_on_disk(stores: dict[str, Store]) -> None:
    store = stores["front3d"]
    assert store.samples.to_pandas()["key"].tolist() == store.keys
    counted = duckdb.from_arrow(store.samples).aggregate("split, count(*) AS n", "split").fetchall()
    assert dict(counted) == {split: store.samples["split"].to_pylist().count(split) for split in ("train", "val", "test")}


def test_tables_are_read_by_polars(stores: dict[str, Store]) -> None:
    polars = pytest.importorskip("polars")
    assert polars.from_arrow(stores["front3d"].samples)["key"].to_list() == stores["front3d"].keys


def test_tables_are_data_sets_of_hugging_face(stores: dict[str, Store], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    assert datasets.Dataset(stores["front3d"].samples)["key"][:] == stores["front3d"].keys


def assert_same_content(store: Store, again: Store, but: tuple[str, ...] = ()) -> None:
    assert again.keys == store.keys and again.layout == store.layout
    for key in store.keys:
        one, other = store.read(key), again.read(key)
        assert one.arrays.keys() == other.arrays.keys()
        assert [name for name in one.arrays if name not in but and not same(one[name], other[name])] == []
        facts = {name for name in one.facts if one.facts[name] != other.facts[name]}
        assert facts <= OF_THE_FILES


@pytest.mark.parametrize("source", SOURCES)
def test_exported_raw_files_are_read_as_the_arrays_that_are_stored(stores: dict[str, Store], source: str, tmp_path: Path) -> None:
    store = stores[source]
    done = export_raw(store, tmp_path / "raw")
    listed, findings = list_samples(source, tmp_path / "raw")
    assert [one.key for one in listed] == store.keys and findings == {}
    assert [list(one.splits) for one in listed] == store.samples["splits"].to_pylist()
    opened = open_source(source, tmp_path / "raw", listed)
    assert (opened.grid, opened.image) == (store.layout.grid, store.layout.image)
    for one in listed:
        sample, findings_of_one = read_sample(opened, one)
        expected = store.read(one.key)
        assert findings_of_one == [] and sample.arrays.keys() == expected.arrays.keys()
        changed = [name for name in sample.arrays if not same(sample[name], expected[name])]
        assert changed == list(done.inexact)
        for name in changed:  # of a JPEG of the best quality
            assert np.abs(sample[name].astype(int) - expected[name]).max() <= 4


@pytest.mark.parametrize("source", [*(pytest.param(name, marks=pytest.mark.full) for name in SOURCES[:2]), "views"])
def test_exported_raw_folder_gives_the_same_store_again(stores: dict[str, Store], source: str, tmp_path: Path) -> None:
    store = stores[source]
    done = export_raw(store, tmp_path / "raw")
    assert done.inexact == (("rgb",) if source == "matterport" else ())
    assert done.files == len([path for path in (tmp_path / "raw").rglob("*") if path.is_file()])
    again = stored(source, tmp_path / "raw", tmp_path / "again")
    assert again.manifest["rejected"] == 0
    assert_same_content(store, again, done.inexact)


@pytest.mark.full
@pytest.mark.parametrize(("source", "precision"), [("front3d", "float16"), ("front3d", "fixed16"), ("matterport", "fixed16")])
def test_exported_distances_of_less_precision_are_stored_as_they_were(
    source: str, precision: str, front3d_world: Path, matterport_world: Path, tmp_path: Path
) -> None:
    raw = {"front3d": front3d_world, "matterport": matterport_world}[source]
    store = stored(source, raw, tmp_path / "store", precision=precision)
    assert "geometry" in export_raw(store, tmp_path / "raw").inexact
    again = stored(source, tmp_path / "raw", tmp_path / "again", precision=precision)
    for key in again.keys:
        assert same(again.read(key)["geometry"], store.read(key)["geometry"])


@pytest.mark.real
@pytest.mark.full
@pytest.mark.parametrize("source", ["front3d", "matterport"])
def test_real_views_come_back_from_an_exported_raw_folder(source: str, real_data: Path, tmp_path: Path) -> None:
    store = stored(source, real_data / "data" / source, tmp_path / "store")
    done = export_raw(store, tmp_path / "raw")
    assert_same_content(store, stored(source, tmp_path / "raw", tmp_path / "again"), done.inexact)


def test_exports_leave_a_folder_with_something_in_it_alone(stores: dict[str, Store], tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("kept")
    for export in (export_raw, export_coco):
        with pytest.raises(ConfigError, match="not an empty folder"):
            export(stores["front3d"], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_export_that_fails_leaves_nothing(stores: dict[str, Store], tmp_path: Path) -> None:
    copied = Path(shutil.copytree(on_disk(stores["matterport"].root), tmp_path / "store"))
    next(copied.glob("weighting/c/1/0/0/0")).unlink()
    with pytest.raises(Corrupt, match="weighting"):
        export_raw(open_store(copied), tmp_path / "raw")
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def read_coco(folder: Path, split: str) -> tuple[dict[str, Any], dict[str, NDArray[np.int64]]]:
    """A reader of its own: the document, and for each image the ids that its PNG file holds."""
    document = json.loads((folder / "annotations" / f"panoptic_{split}.json").read_text())
    maps = {}
    for annotation in document["annotations"]:
        red, green, blue = np.moveaxis(
            np.asarray(Image.open(folder / "annotations" / f"panoptic_{split}" / annotation["file_name"])), -1, 0
        )
        maps[annotation["file_name"]] = red.astype(int) + 256 * green.astype(int) + 256**2 * blue.astype(int)
    return document, maps


@pytest.mark.parametrize("source", ["front3d", "matterport"])
def test_coco_export_says_the_labels_of_every_pixel(stores: dict[str, Store], source: str, tmp_path: Path) -> None:
    store = stores[source]
    done = export_coco(store, tmp_path / "coco")
    seen = []
    for split, count in done.splits.items():
        document, maps = read_coco(tmp_path / "coco", split)
        categories = {category["id"]: category for category in document["categories"]}
        assert [(c["id"], c["name"], bool(c["isthing"]), tuple(c["color"])) for c in categories.values()] == [
            (label.id, label.name, label.thing, label.color) for label in LABELS[1:]
        ]
        assert len(document["images"]) == len(document["annotations"]) == count
        for image, annotation in zip(document["images"], document["annotations"], strict=True):
            key = image["file_name"].removesuffix(".png")
            seen.append(key)
            sample, ids = store.read(key), maps[annotation["file_name"]]
            assert annotation["image_id"] == image["id"] == store.keys.index(key) + 1
            assert (image["height"], image["width"]) == ids.shape
            assert same(np.asarray(Image.open(tmp_path / "coco" / "images" / image["file_name"])), sample["rgb"])
            assert {info["id"] for info in annotation["segments_info"]} == set(np.unique(ids)) - {0}
            assert np.array_equal(ids == 0, sample["semantic_2d"] == 0)
            for info in annotation["segments_info"]:
                rows, columns = np.nonzero(ids == info["id"])
                box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
                assert (info["area"], info["bbox"]) == (len(rows), box)
                assert set(sample["semantic_2d"][rows, columns]) == {info["category_id"]}
                instances = set(sample["instance_2d"][rows, columns])
                is_thing = categories[info["category_id"]]["isthing"]
                assert not is_thing or len(instances) == 1
                assert info["iscrowd"] == int(bool(is_thing) and instances == {0})
    assert sorted(seen) == store.keys


def test_mesh_files_of_every_kind_hold_the_same_surface(stores: dict[str, Store], tmp_path: Path) -> None:
    store = stores["front3d"]
    mesh = sample_mesh(store, store.keys[0])
    for suffix in (".ply", ".glb"):
        done = export_mesh(store, store.keys[0], tmp_path / f"mesh{suffix}")
        read: Any = trimesh.load(tmp_path / f"mesh{suffix}", force="mesh", process=False)
        assert (len(read.vertices), len(read.faces)) == (done.vertices, done.faces) == (len(mesh.vertices), len(mesh.faces))
        assert np.array_equal(read.vertices[read.faces].astype(np.float32), mesh.vertices[mesh.faces])
        assert np.array_equal(read.visual.vertex_colors[read.faces][..., :3], mesh.colors[mesh.faces])
    for suffix in (".usd", ".usda"):
        export_mesh(store, store.keys[0], tmp_path / f"mesh{suffix}")
        found = usd.import_mesh(str(tmp_path / f"mesh{suffix}"))
        assert found is not None and np.array_equal(found.vertices.numpy(), mesh.vertices)
    present = {segment >> 16 for segment in np.unique(mesh.segments).tolist()}
    assert present - {0} <= set(store.facts(store.keys[0])["classes_3d"]) and len(present) > 3


def test_verbs_say_what_a_store_cannot_give(stores: dict[str, Store], tmp_path: Path) -> None:
    views = stores["views"]
    with pytest.raises(ConfigError, match="has no field semantic_2d"):
        export_coco(views, tmp_path / "coco")
    with pytest.raises(ConfigError, match="a surface is cut from the volumes of rooms"):
        export_mesh(views, views.keys[0], tmp_path / "mesh.ply")
    with pytest.raises(ConfigError, match=r"no mesh is written to \.obj; give \.ply, \.glb, \.usd"):
        export_mesh(stores["front3d"], stores["front3d"].keys[0], tmp_path / "mesh.obj")
    with pytest.raises(ConfigError, match=r"finite numbers above 0"):
        export_mesh(stores["front3d"], stores["front3d"].keys[0], tmp_path / "mesh.ply", iso=-1.0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("source", ["front3d", "views"])
def test_card_says_what_the_store_holds(stores: dict[str, Store], source: str, tmp_path: Path) -> None:
    store = stores[source]
    files = write_card(card_of(store), tmp_path / "README.md")
    text = (tmp_path / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    matter = yaml.safe_load(front)
    assert {one["config_name"]: one["data_files"] for one in matter["configs"]} == {
        name: table["path"] for name, table in store.manifest["tables"].items()
    }
    assert matter["license"] == "other" and matter["size_categories"] == ["n<1K"]
    for field in store.layout.fields:
        count = sum(field.name in names for names in store.samples["fields"].to_pylist())
        name = re.escape(field.name.replace("_", "\\_"))
        assert re.search(rf"^\| {name} \|.*\| {field.dtype} \|.*\| {count} \|", body, re.MULTILINE)
    for label in store.layout.labels[1:]:
        counts = [sum(label.id in row for row in store.samples[name].to_pylist()) for name in ("classes_2d", "classes_3d")]
        assert f"| {label.id} | {label.name} | {'thing' if label.thing else 'stuff'} |" in body
        assert f"| {counts[0]} | {counts[1]} |" in body
    assert set(re.findall(r"\]\((.*?)\)", body)) == {path.name for path in files if path.suffix == ".png"}
    assert len(files) == (3 if source == "views" else 5)
    for path in files[:-1]:
        assert np.asarray(Image.open(path).convert("L")).std() > 10  # not blank


def test_card_is_the_same_every_time(stores: dict[str, Store], tmp_path: Path) -> None:
    held = []
    for _ in range(2):
        held.append({path.name: path.read_bytes() for path in write_card(card_of(stores["views"]), tmp_path / "README.md")})
    assert held[0] == held[1]


def test_card_tells_rejected_samples_and_their_findings(stores: dict[str, Store]) -> None:
    text = to_markdown(card_of(stores["front3d"]))
    assert "1 rejected" in text and "| error | presence | geometry | 1 |" in text
    assert "![" not in text  # without files there is nothing to show


def test_card_page_stands_for_itself(stores: dict[str, Store], tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["card", str(stores["front3d"].root), "--html", str(tmp_path / "card.html")])
    assert done.stdout.strip() == str(tmp_path / "card.html")
    html = (tmp_path / "card.html").read_text()
    assert html.count("<svg") == 4 and "<script" not in html and not re.search(r'(src|href)="(?!#)', html)
    assert "world_from_camera" in html and "#dc143c" in html


@pytest.mark.parametrize("verb", ["export-raw", "export-coco"])
def test_verbs_write_to_disks_alone(stores: dict[str, Store], verb: str) -> None:
    done = CliRunner().invoke(app, [verb, str(stores["matterport"].root), "s3://bucket/out"])
    assert isinstance(done.exception, ConfigError) and "needs a folder on a disk" in str(done.exception)


def test_verbs_print_one_document_for_machines(stores: dict[str, Store], tmp_path: Path) -> None:
    root, key = str(stores["matterport"].root), stores["matterport"].keys[0]
    for verb in (
        ["card", root],
        ["export-raw", root, str(tmp_path / "raw")],
        ["export-coco", root, str(tmp_path / "coco")],
        ["export-mesh", root, key, str(tmp_path / "mesh.ply")],
    ):
        done = CliRunner().invoke(app, [*verb, "--json"])
        assert done.exit_code == 0, done.output
        assert isinstance(json.loads(done.stdout), dict)
    assert CliRunner().invoke(app, ["card", root]).stdout.startswith("---\npretty_name: matterport")
    assert {path.name for path in tmp_path.iterdir()} == {"raw", "coco", "mesh.ply"}
