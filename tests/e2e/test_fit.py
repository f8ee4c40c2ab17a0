"""From views of an object to a textured mesh, as a user runs it: the shape is found, a stopped fit goes on, and all of it is told."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scenemill.pipelines.experiments.fitting import FitJob, choose_views, run_fit
from scenemill.pipelines.ingest import ingest
from scenemill.pipelines.progress import no_progress
from scenemill.pipelines.query import query
from scenemill.schemas.config import IngestConfig
from scenemill.schemas.errors import ConfigError
from scenemill.schemas.fit import PRESETS, FitConfig
from scenemill.trainers.mesh_files import import_mesh
from scenemill.trainers.render.fit import CHECKPOINT, STATUS, Epoch
from scenemill.trainers.render.placing import SHARE, place
from scenemill.trainers.render.results import CATEGORY, MESHES
from scenemill.trainers.render.templates import icosphere, load_template
from scenemill.trainers.timelapse import TimelapseParser
from scenemill.trainers.usd.records import MeshData
from scenemill.trainers.view_worlds import Shots, ShownMesh, write_views
from scenemill.transforms.store import open_store

HALF_AXES = (0.65, 0.4, 0.5)
MIDDLE = (2.0, -1.0, 0.5)
"""Where the object is: not at the origin, as a scene may have it."""


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Many short operations on small images lose more by waiting for threads than they gain."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ellipsoid as OBJ."""
    ball = icosphere()
    vertices = ball.vertices * np.array(HALF_AXES) + np.array(MIDDLE)
    path = tmp_path_factory.mktemp("truth") / "ellipsoid.obj"
    lines = ["v {} {} {}".format(*vertex) for vertex in vertices.tolist()]
    path.write_text("\n".join([*lines, *("f {} {} {}".format(*face) for face in (ball.faces + 1).tolist())]) + "\n")
    return path


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen views of the ellipsoid, whose colours say where on it a point is."""
    ball = icosphere()
    corners = torch.from_numpy(ball.vertices)[torch.from_numpy(ball.faces)]
    vertices = torch.from_numpy(ball.vertices * np.array(HALF_AXES) + np.array(MIDDLE)).float()
    nothing = torch.zeros(len(ball.faces), 3, 2)
    shown = ShownMesh(vertices, torch.from_numpy(ball.faces), nothing, (corners + 1) / 2, (), torch.full((len(ball.faces),), -1))
    folder = tmp_path_factory.mktemp("views")
    raw = folder / "ellipsoid"
    raw.mkdir()
    write_views(shown, raw, Shots(views=16, size=48), "ellipsoid.obj")
    ingest(IngestConfig("views", raw, folder / "store"), no_progress)
    return folder / "store"


TOY = FitConfig(epochs=10, vertex_lr=5e-3, texture_size=64)


def job(store: Path, results: Path, settings: FitConfig = TOY, **more: object) -> FitJob:
    return FitJob(store, results, settings, device="cpu", **more)  # type: ignore[arg-type]


def silent(_: Epoch) -> None:
    pass


def test_a_sphere_becomes_the_object_that_the_views_show(store: Path, truth: Path, tmp_path: Path) -> None:
    fitted = run_fit(job(store, tmp_path, truth=truth), silent)
    assert fitted.mean("mask_iou", "before") < 0.85
    assert fitted.mean("mask_iou") > 0.92
    assert fitted.mean("psnr_db") > fitted.mean("psnr_db", "before") + 8
    assert fitted.epochs[-1].losses[-1] < 0.3 * fitted.epochs[0].losses[0]
    assert fitted.chamfer is not None and fitted.chamfer < 0.04  # the draw of points alone makes about 0.01
    found = import_mesh(tmp_path / "mesh.obj")
    assert found is not None and found.vertices is not None
    low, high = found.vertices.amin(dim=0).numpy(), found.vertices.amax(dim=0).numpy()
    assert (low + high) / 2 == pytest.approx(MIDDLE, abs=0.05)
    assert (high - low) / 2 == pytest.approx(HALF_AXES, abs=0.08)


def test_the_template_begins_within_the_object(store: Path, tmp_path: Path) -> None:
    views, held_out = choose_views(open_store(store), job(store, tmp_path))
    mesh, views, _ = place(load_template("sphere"), TOY, views, held_out)
    placed = mesh.placed().detach() / views.unit
    middle, radius = placed.mean(dim=0), (placed - placed.mean(dim=0)).norm(dim=1)
    assert middle.tolist() == pytest.approx(MIDDLE, abs=0.01)
    assert radius.tolist() == pytest.approx([SHARE * 0.6] * len(radius), rel=0.15)  # seen from all sides the object is about 0.6
    assert TOY.radius / float(radius.mean()) == pytest.approx(views.unit, rel=1e-4)


def test_everything_is_left_behind(store: Path, tmp_path: Path) -> None:
    told: list[Epoch] = []
    fitted = run_fit(job(store, tmp_path, FitConfig(epochs=2, texture_size=16), name="toy"), told.append)
    assert {path.name for path in tmp_path.iterdir()} >= {CHECKPOINT, STATUS, "timelapse", "tables", "views.png", *MESHES}
    lines = [json.loads(line) for line in (tmp_path / STATUS).read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [epoch.epoch for epoch in told] == [0, 1]
    assert lines[1]["mask_iou"] == pytest.approx(fitted.mean("mask_iou"))
    with Image.open(tmp_path / "views.png") as picture:
        assert picture.size == (2 * 144 + 6, 3 * (144 + 20))  # three times as large, for room to write
    log = TimelapseParser(tmp_path / "timelapse")
    (item,) = [held for held in log.dir_info["mesh"] if held["category"] == CATEGORY]
    assert (item["ids"], item["end_time"]) == ([0], 2)
    first, last = (log.read("mesh", CATEGORY, 0, time).prims[0] for time in (0, 2))
    assert isinstance(first, MeshData) and isinstance(last, MeshData)
    assert not np.array_equal(first.vertices, last.vertices) and "rgb" in last.materials
    fits = query(tmp_path / "tables", "SELECT * FROM fits").to_pylist()
    assert [(row["run"], row["views"], row["held_out"], row["vertices"]) for row in fits] == [(fitted.run, 14, 2, 642)]
    renders = query(tmp_path / "tables", "SELECT key, mask_iou FROM renders ORDER BY key").to_pylist()
    assert renders == [{"key": one.key, "mask_iou": one.mask_iou} for one in fitted.after]
    scores = query(tmp_path / "tables", "SELECT model, quality FROM scores WHERE metric = 'mask_iou'").to_pylist()
    assert scores == [{"model": "toy", "quality": pytest.approx(fitted.mean("mask_iou"))}]


def test_a_stopped_fit_goes_on_to_the_same_curve(store: Path, tmp_path: Path) -> None:
    settings = FitConfig(epochs=3, texture_size=16, lr_step=1)
    whole = run_fit(job(store, tmp_path / "whole", settings), silent)

    def stop(epoch: Epoch) -> None:
        if epoch.epoch == 1:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        run_fit(job(store, tmp_path / "stopped", settings), stop)
    resumed = run_fit(job(store, tmp_path / "stopped", settings), silent)
    assert [epoch.losses for epoch in resumed.epochs] == [epoch.losses for epoch in whole.epochs]
    assert (tmp_path / "stopped" / "mesh.obj").read_bytes() == (tmp_path / "whole" / "mesh.obj").read_bytes()
    with pytest.raises(ConfigError, match="another settings"):
        run_fit(job(store, tmp_path / "stopped", FitConfig(epochs=3, texture_size=16, lr_step=1, seed=5)), silent)


def test_a_fit_without_progress_ends_early(store: Path, tmp_path: Path) -> None:
    still = FitConfig(epochs=9, texture_size=16, vertex_lr=1e-12, patience=2)
    assert len(run_fit(job(store, tmp_path, still), silent).epochs) == 3


def test_the_first_tutorial_goes_the_same_way_at_its_own_scale(store: Path, tmp_path: Path) -> None:
    settings = FitConfig(**{**vars(PRESETS["original"]), "epochs": 4, "texture_size": 16})
    fitted = run_fit(job(store, tmp_path, settings), silent)
    assert np.mean(fitted.epochs[-1].losses) < np.mean(fitted.epochs[0].losses)
    found = import_mesh(tmp_path / "mesh.usd")
    assert found is not None and found.vertices is not None
    assert found.vertices.mean(dim=0).tolist() == pytest.approx(MIDDLE, abs=0.1)  # in the unit of the views, not of the fit


def test_what_cannot_be_fitted_is_told(store: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no object 'vase'; there are ellipsoid"):
        run_fit(job(store, tmp_path, scene="vase"), silent)
    with pytest.raises(ConfigError, match="no views"):
        run_fit(job(store, tmp_path, split="val"), silent)
    empty = tmp_path / "empty.obj"
    empty.write_text("v 0 0 0\n")
    with pytest.raises(ConfigError, match="no faces"):
        run_fit(job(store, tmp_path, template=str(empty)), silent)
    away = tmp_path / "away.obj"
    with pytest.raises(ConfigError, match=r"template .*away.obj: no such file"):
        run_fit(job(store, tmp_path, template=str(away)), silent)
    with pytest.raises(ConfigError, match=r"truth .*away.obj: no such file"):
        run_fit(job(store, tmp_path / "never", truth=away), silent)
    assert not (tmp_path / "never").exists()  # told before the first epoch, not after the last one
