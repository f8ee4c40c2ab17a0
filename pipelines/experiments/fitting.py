"""From a store of views to a textured mesh: the fit, its 3D checkpoints, the mesh as files, and how good it is in the metric tables.

<results>/fit.pth, status.jsonl     the fit so far, and a line for each epoch
<results>/timelapse/                the mesh over the epochs, as 3D checkpoints
<results>/mesh.obj, mesh.usd, ...   the mesh in the end, with its texture
<results>/views.png                 some views: true, before, after
"""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from scenemill.pipelines.experiments.training import cache_folder
from scenemill.pipelines.mirrored import Results, results_at
from scenemill.pipelines.reports.prediction_sheet import to_png
from scenemill.pipelines.tables import append_run
from scenemill.schemas.errors import ConfigError
from scenemill.schemas.fields import VIEWS
from scenemill.schemas.fit import FitConfig, told
from scenemill.schemas.places import Place
from scenemill.schemas.tables import FITS, RENDERS, SCORES, table_of
from scenemill.trainers.devices import best_device
from scenemill.trainers.render.fit import Epoch, ViewQuality, fit, measure
from scenemill.trainers.render.object_views import ObjectViews
from scenemill.trainers.render.placing import place
from scenemill.trainers.render.results import FitLog, distance_to, export, rendered
from scenemill.trainers.render.templates import SPHERE, Template, load_template, read_surface
from scenemill.trainers.render.textured_mesh import TexturedMesh
from scenemill.trainers.surface_mesh import SurfaceMesh
from scenemill.transforms.publish import write_whole
from scenemill.transforms.store import Store, open_store

RULE: Final = "held-out views"
_EVERY: Final = 10  # of the views one is held out, where no split is named
_SHOWN: Final = 6  # views in the picture
_SEND_EVERY_S: Final = 60.0  # while a fit goes on
_GAP, _LINE = 6, 20
_CAPTION: Final = 112  # pixels that "before, IoU 0.84" takes: smaller views are drawn larger by a whole factor


@dataclass(frozen=True)
class FitJob:
    """One fit, and where all of it is.

    Attributes:
        store: of the source ``views``.
        results: gets everything; where it is in a bucket, from a folder of the cache.
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

    store: Place
    results: Place
    settings: FitConfig
    template: str = SPHERE
    split: str = ""
    held_out: str = ""
    scene: str = ""
    truth: Path | None = None
    tables: Place | None = None
    name: str = "fit"
    device: str = ""


@dataclass(frozen=True)
class Fitted:
    """What a fit came to.

    Attributes:
        run: its id in the metric tables.
        results: where all of it is.
        epochs: all of them.
        before, after: quality on each held-out view.
        chamfer: distance to the true surface, in the scene's unit; None without one.
    """

    run: str
    results: Place
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
        ConfigError: no such store, split, scene, template, truth or device, or views that cannot be fitted.
        Corrupt: the store is damaged.
        Conflict, TransientError: as ``results_at``, where the results are in a bucket.
    """
    store = open_store(job.store)
    views, held_out = choose_views(store, job)
    template = load_template(job.template)
    true = read_surface("truth", str(job.truth)) if job.truth else None
    with results_at(job.results, cache_folder()) as results:
        return _fit(job, results, store, template, (views, held_out), true, on_epoch)


def _fit(
    job: FitJob,
    results: Results,
    store: Store,
    template: Template,
    chosen: tuple[ObjectViews, ObjectViews],
    true: SurfaceMesh | None,
    on_epoch: Callable[[Epoch], None],
) -> Fitted:
    mesh, views, held_out = place(template, job.settings, *chosen)
    mesh.to(job.device or best_device())
    before = measure(job.settings, mesh, held_out)
    pictures = [rendered(mesh, held_out, job.settings, _SHOWN)]
    log = FitLog(results.folder / "timelapse", mesh, template, views.unit)
    sent = time.monotonic()

    def watch(epoch: Epoch) -> None:
        nonlocal sent
        if time.monotonic() - sent > _SEND_EVERY_S:  # what the epochs until the last one left
            results.send_meanwhile()
            sent = time.monotonic()
        log.write(epoch.epoch + 1)
        on_epoch(epoch)

    epochs = fit(job.settings, mesh, views, held_out, results.folder, watch)
    after = measure(job.settings, mesh, held_out)
    pictures.append(rendered(mesh, held_out, job.settings, _SHOWN))
    export(results.folder, mesh, template, views.unit)
    write_whole(results.folder / "views.png", to_png(draw_views(held_out, pictures, (before, after))))
    chamfer = distance_to(true, mesh, views.unit) if true else None
    run = _write_tables(job, results, store, mesh, views, epochs, after, chamfer)
    return Fitted(run, results.place, tuple(epochs), tuple(before), tuple(after), chamfer)


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


def draw_views(
    views: ObjectViews, pictures: Sequence[Sequence[NDArray[np.uint8]]], qualities: Sequence[Sequence[ViewQuality]]
) -> Image.Image:
    """Views as they are, and as renderings before and after the fit are, one below the other.

    Args:
        views: the true ones.
        pictures: for before and after, (H, W, 3) uint8 of the first views.
        qualities: for before and after, of each view.
    """
    factor = max(1, -(-_CAPTION // views.size[1]))
    height, width = (factor * size for size in views.size)
    count = len(pictures[0])
    true = [(views.read([place]).image[0].numpy() * 255).round().astype(np.uint8) for place in range(count)]
    rows = (("true", true, None), ("before", pictures[0], qualities[0]), ("after", pictures[1], qualities[1]))
    size = (count * (width + _GAP) - _GAP, len(rows) * (height + _LINE))
    sheet = Image.new("RGB", size, (255, 255, 255))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    for line, (name, images, found) in enumerate(rows):
        top = line * (height + _LINE)
        for column, image in enumerate(images):
            left = column * (width + _GAP)
            words = views.keys[column].rpartition("/")[2] if found is None else f"IoU {found[column].mask_iou:.2f}"
            draw.text((left + 2, top + 3), f"{name}, {words}" if column == 0 else words, fill=(29, 37, 48), font=font)
            sheet.paste(Image.fromarray(image).resize((width, height), Image.Resampling.NEAREST), (left, top + _LINE))
    return sheet


def _write_tables(
    job: FitJob,
    results: Results,
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
    append_run(job.tables or results.tables, run, tables)
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
        "origin": str(job.results.absolute() if isinstance(job.results, Path) else job.results),
        "created": datetime.now(UTC),
    }
