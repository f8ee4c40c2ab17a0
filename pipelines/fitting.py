"""From a store of views to a textured mesh: the fit, its 3D checkpoints, the mesh as files, and how good it is in the metric tables.

<results>/fit.pth, status.jsonl     the fit so far, and a line for each epoch
<results>/timelapse/                the mesh over the epochs, as 3D checkpoints
<results>/mesh.obj, mesh.usd, ...   the mesh in the end, with its texture
<results>/views.png                 some views: true, before, after
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from scenemill.pipelines.prediction_view import to_png
from scenemill.pipelines.tables import append_run
from scenemill.schemas.errors import ConfigError
from scenemill.schemas.fields import VIEWS
from scenemill.schemas.fit import FitConfig, told
from scenemill.schemas.tables import FITS, RENDERS, SCORES, table_of
from scenemill.trainers.devices import best_device
from scenemill.trainers.mesh_files import export_mesh, import_mesh
from scenemill.trainers.render.fit import Epoch, ViewQuality, fit, measure, render
from scenemill.trainers.render.object_views import ObjectViews
from scenemill.trainers.render.placing import SHARE, look_at_point, seen_radius
from scenemill.trainers.render.surface_distance import chamfer_distance
from scenemill.trainers.render.templates import Template, atlas, icosphere
from scenemill.trainers.render.textured_mesh import TexturedMesh
from scenemill.trainers.surface_mesh import SurfaceMesh
from scenemill.trainers.timelapse import Timelapse
from scenemill.trainers.usd.materials import PBRMaterial
from scenemill.transforms.publish import write_whole
from scenemill.transforms.store import Store, open_store

SPHERE: Final = "sphere"
"""Name of the template that is always there."""

CATEGORY: Final = "optimized_mesh"
"""Of the 3D checkpoints."""

MESHES: Final = ("mesh.obj", "mesh.usd")
"""What the fitted mesh is written as, each with its texture."""

RULE: Final = "held-out views"
_EVERY: Final = 10  # of the views one is held out, where no split is named
_SHOWN: Final = 6  # views in the picture
_GAP, _LINE = 6, 20


@dataclass(frozen=True)
class FitJob:
    """One fit, and where all of it is.

    Attributes:
        store: of the source ``views``.
        results: gets everything.
        settings: of the fit.
        template: a mesh file, or ``SPHERE``.
        split: the views to fit; "" for all.
        held_out: the split to measure on; "" for every tenth of the views, which are not fitted then.
        scene: of a store with several objects, which one; "" for the only one.
        truth: a mesh file with the true surface, in the frame of the views; None for none.
        tables: the metric tables; None for those in ``results``.
        name: of the result in the tables.
        device: "cpu", "cuda", ...; "" for the best there is.
    """

    store: Path
    results: Path
    settings: FitConfig
    template: str = SPHERE
    split: str = ""
    held_out: str = ""
    scene: str = ""
    truth: Path | None = None
    tables: Path | None = None
    name: str = "fit"
    device: str = ""


@dataclass(frozen=True)
class Fitted:
    """What a fit came to.

    Attributes:
        run: its id in the metric tables.
        results: the folder.
        epochs: all of them.
        before, after: quality on each held-out view.
        chamfer: distance to the true surface, in the scene's unit; None without one.
    """

    run: str
    results: Path
    epochs: tuple[Epoch, ...]
    before: tuple[ViewQuality, ...]
    after: tuple[ViewQuality, ...]
    chamfer: float | None

    def mean(self, name: str, when: str = "after") -> float:
        """Of a quality, ``mask_iou``, ``psnr_db`` or ``ssim``, over the views; ``when`` is "before" or "after"."""
        return float(np.mean([getattr(one, name) for one in getattr(self, when)]))


def run_fit(job: FitJob, on_epoch: Callable[[Epoch], None]) -> Fitted:
    """Fit, export, measure. Run again, it goes on.

    Args:
        job: what to fit.
        on_epoch: told of every epoch.

    Raises:
        ConfigError: no such store, split, scene, template or device, or views that cannot be fitted.
        Corrupt: the store is damaged.
    """
    store = open_store(job.store)
    device = torch.device(job.device or best_device())
    views, held_out = choose_views(store, job)
    template = load_template(job.template)
    mesh, views, held_out = place(template, job.settings, views, held_out)
    mesh.to(device)
    before = measure(job.settings, mesh, held_out)
    pictures = [rendered(mesh, held_out, job.settings)]
    job.results.mkdir(parents=True, exist_ok=True)
    log = _Log(job.results / "timelapse", mesh, template, views.unit)

    def watch(epoch: Epoch) -> None:
        log.write(epoch.epoch + 1)
        on_epoch(epoch)

    epochs = fit(job.settings, mesh, views, held_out, job.results, watch)
    after = measure(job.settings, mesh, held_out)
    pictures.append(rendered(mesh, held_out, job.settings))
    export(job.results, mesh, template, views.unit)
    write_whole(job.results / "views.png", to_png(draw_views(held_out, pictures, (before, after))))
    chamfer = _chamfer(mesh, views.unit, job.truth)
    run = _write_tables(job, store, mesh, views, epochs, after, chamfer)
    return Fitted(run, job.results, tuple(epochs), tuple(before), tuple(after), chamfer)


def choose_views(store: Store, job: FitJob) -> tuple[ObjectViews, ObjectViews]:
    """The views to fit, and those to measure on.

    Raises:
        ConfigError: no such split or scene, or no views in it.
    """
    if store.layout.source != VIEWS:
        raise ConfigError(f"store {store.root}: of the source {store.layout.source!r}; a fit needs one of {VIEWS!r}")
    scenes = sorted({key.split("/")[0] for key in store.keys})
    if not job.scene and len(scenes) > 1:
        raise ConfigError(f"store {store.root}: views of {len(scenes)} objects, such as {scenes[0]!r}; name one as the scene")
    if job.scene and job.scene not in scenes:
        raise ConfigError(f"store {store.root}: no object {job.scene!r}; there are {', '.join(scenes[:20])}")
    keys = [key for key in store.keys if key.split("/")[0] == (job.scene or scenes[0])]
    chosen = [key for key in keys if not job.split or job.split in store.facts(key)["splits"]]
    if job.held_out:
        measured = [key for key in keys if job.held_out in store.facts(key)["splits"]]
        chosen = [key for key in chosen if key not in set(measured)]
    else:
        measured = chosen[_EVERY // 2 :: _EVERY] or chosen[-1:]
        chosen = [key for key in chosen if key not in set(measured)]
    return ObjectViews(store, tuple(chosen)), ObjectViews(store, tuple(measured))


def load_template(name: str) -> Template:
    """A template: ``SPHERE``, or a mesh file; one without texture coordinates gets a place in the texture for each face.

    Raises:
        ConfigError: no such file, or no triangles in it.
    """
    if name == SPHERE:
        return icosphere()
    mesh = import_mesh(name, triangulate=True)
    if mesh is None or mesh.vertices is None or mesh.faces is None or not len(mesh.faces):
        raise ConfigError(f"template {name}: no faces; give a mesh of triangles or polygons, or {SPHERE!r}")
    faces = mesh.faces.numpy().astype(np.int64)
    uvs, corners = atlas(len(faces))
    if mesh.uvs is not None and mesh.face_uvs_idx is not None and bool((mesh.face_uvs_idx >= 0).all()):
        uvs, corners = mesh.uvs.numpy().astype(np.float32), mesh.face_uvs_idx.numpy().astype(np.int64)
    return Template(mesh.vertices.numpy().astype(np.float32), faces, uvs, corners)


def place(
    template: Template, config: FitConfig, views: ObjectViews, held_out: ObjectViews
) -> tuple[TexturedMesh, ObjectViews, ObjectViews]:
    """The template where the object is, and the views in the unit in which it has the radius that the settings are meant for.

    Raises:
        ConfigError: a template of no size, or views that do not say where the object is.
    """
    vertices = torch.from_numpy(template.vertices)
    low, high = vertices.amin(dim=0), vertices.amax(dim=0)
    radius = float((high - low).max()) / 2
    if not np.isfinite(radius) or radius <= 0:
        raise ConfigError(f"the template has the radius {radius}; give a mesh with finite vertices that are not all at one place")
    centre = np.zeros(3)
    if config.scale is None:
        centre = look_at_point(np.stack([views.store.read(key, ["camera_transform"])["camera_transform"] for key in views.keys]))
        wanted = SHARE * seen_radius(views, centre)
        vertices = vertices - (low + high) / 2
    else:
        wanted = config.scale * radius
    unit = config.radius / wanted
    corners = np.stack([template.uvs[..., 0], 1 - template.uvs[..., 1]], axis=-1)[
        template.face_uvs_idx
    ]  # v up, as the renderer wants it
    mesh = TexturedMesh(
        vertices * (config.radius / radius), torch.from_numpy(template.faces), torch.from_numpy(corners), config.texture_size
    )
    mesh.shift.data += torch.from_numpy(centre * unit).float()
    return mesh, ObjectViews(views.store, views.keys, unit), ObjectViews(held_out.store, held_out.keys, unit)


class _Log:
    """The mesh over the epochs as 3D checkpoints, in the unit of the scene."""

    def __init__(self, folder: Path, mesh: TexturedMesh, template: Template, unit: float) -> None:
        self._log, self._mesh, self._unit = Timelapse(folder), mesh, unit
        faces, uvs, corners = ([part] for part in template[1:])
        self._log.add_mesh_batch(0, CATEGORY, [self._vertices()], faces, uvs, corners)

    def _vertices(self) -> torch.Tensor:
        return self._mesh.placed().detach().cpu() / self._unit

    def write(self, epoch: int) -> None:
        """The mesh after so many epochs."""
        texture = self._mesh.texture[0].detach().clamp(0, 1).cpu()
        self._log.add_mesh_batch(
            epoch, CATEGORY, [self._vertices()], materials_list=[{"rgb": PBRMaterial(diffuse_texture=texture)}]
        )


def export(folder: Path, mesh: TexturedMesh, template: Template, unit: float) -> None:
    """The mesh as files, in the unit of the scene."""
    painted = PBRMaterial(diffuse_texture=mesh.finished_texture(), material_name="painted")
    fitted = SurfaceMesh(
        vertices=mesh.placed().detach().cpu() / unit,
        faces=mesh.faces.cpu(),
        uvs=torch.from_numpy(template.uvs),
        face_uvs_idx=torch.from_numpy(template.face_uvs_idx),
        material_assignments=torch.zeros(len(mesh.faces), dtype=torch.int16),
        materials=[painted],
    )
    for name in MESHES:
        export_mesh(folder / name, fitted, overwrite=True)


@torch.no_grad()
def rendered(mesh: TexturedMesh, views: ObjectViews, config: FitConfig) -> list[NDArray[np.uint8]]:
    """(H, W, 3) uint8 of the first few views: what is seen of a mesh."""
    places = [views.read([place], mesh.vertices.device) for place in range(min(len(views), _SHOWN))]
    images = [render(mesh, view, config).image[0].cpu().numpy() for view in places]
    return [(image * 255).round().astype(np.uint8) for image in images]


def draw_views(
    views: ObjectViews, pictures: Sequence[Sequence[NDArray[np.uint8]]], qualities: Sequence[Sequence[ViewQuality]]
) -> Image.Image:
    """Views as they are, and as renderings before and after the fit are, one below the other.

    Args:
        views: the true ones.
        pictures: for before and after, (H, W, 3) uint8 of the first views.
        qualities: for before and after, of each view.
    """
    height, width = views.size
    count = len(pictures[0])
    true = [(views.read([place]).image[0].numpy() * 255).round().astype(np.uint8) for place in range(count)]
    rows = (("true", true, None), ("before", pictures[0], qualities[0]), ("after", pictures[1], qualities[1]))
    size = (count * (width + _GAP) - _GAP, len(rows) * (height + _LINE))
    sheet = Image.new("RGB", size, (255, 255, 255))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    for line, (name, images, found) in enumerate(rows):
        top = line * (height + _LINE)
        for place, image in enumerate(images):
            left = place * (width + _GAP)
            words = views.keys[place].rpartition("/")[2] if found is None else f"IoU {found[place].mask_iou:.2f}"
            draw.text((left + 2, top + 3), f"{name}, {words}" if place == 0 else words, fill=(29, 37, 48), font=font)
            sheet.paste(Image.fromarray(image), (left, top + _LINE))
    return sheet


def _chamfer(mesh: TexturedMesh, unit: float, truth: Path | None) -> float | None:
    if truth is None:
        return None
    true = import_mesh(str(truth), triangulate=True)
    if true is None or true.vertices is None or true.faces is None:
        raise ConfigError(f"truth {truth}: no faces; give the mesh file of the true surface")
    return chamfer_distance(mesh.placed().cpu() / unit, mesh.faces.cpu(), true.vertices, true.faces.long())


def _write_tables(
    job: FitJob,
    store: Store,
    mesh: TexturedMesh,
    views: ObjectViews,
    epochs: Sequence[Epoch],
    after: Sequence[ViewQuality],
    chamfer: float | None,
) -> str:
    """Add the fit to the metric tables; its run."""
    settings = json.dumps(told(job.settings), sort_keys=True)
    digest = hashlib.sha256(
        f"{store.version} {settings} {job.template} {len(epochs)} {views.keys} {[one.key for one in after]}".encode()
    )
    run = f"{job.name}-{digest.hexdigest()[:12]}"
    common = {"run": run, "store_version": store.version}
    renders = [{**common, "split": job.held_out or "held out", **asdict(one)} for one in after]
    row = {
        **common,
        "template": Path(job.template).name,
        "settings": settings,
        "views": len(views),
        "held_out": len(after),
        "epochs": len(epochs),
        "vertices": len(mesh.vertices),
        "faces": len(mesh.faces),
        "loss": float(np.mean(epochs[-1].losses)),
        "seconds": epochs[-1].seconds,
        "chamfer": chamfer,
        "truth": job.truth.name if job.truth else None,
    }
    tables = {
        "renders": table_of(RENDERS, [_without_nan(one) for one in renders]),
        "fits": table_of(FITS, [row]),
        "scores": table_of(SCORES, [_score(job, common, name, after) for name in ("mask_iou", "ssim")]),
    }
    append_run(job.tables or job.results / "tables", run, tables)
    return run


def _without_nan(row: dict[str, Any]) -> dict[str, Any]:
    return {name: None if isinstance(value, float) and np.isnan(value) else value for name, value in row.items()}


def _score(job: FitJob, common: dict[str, Any], metric: str, after: Sequence[ViewQuality]) -> dict[str, Any]:
    """The mean of a quality over the views as a row of the scores."""
    values = [getattr(one, metric) for one in after]
    found = float(np.mean(values))
    return {
        **common,
        "model": job.name,
        "source": VIEWS,
        "split": job.held_out or "held out",
        "metric": metric,
        "rule": RULE,
        "group": "all",
        "quality": None if np.isnan(found) else found,
        "samples": len(after),
        "published": False,
        "origin": str(job.results.absolute()),
        "created": datetime.now(UTC),
    }
