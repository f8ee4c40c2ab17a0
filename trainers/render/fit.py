"""The loop that bends a textured mesh until it looks like the views of an object.

Source: Kaolin's DIB-R tutorial: its losses, weights, optimiser and schedule, as ``schemas/fit.py`` has them.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from scenemill.schemas.errors import ConfigError
from scenemill.schemas.fit import FitConfig, told
from scenemill.trainers.checkpoint import load_checkpoint, save_checkpoint
from scenemill.trainers.render.image_quality import WINDOW, psnr, ssim
from scenemill.trainers.render.losses import flatness_loss, image_loss, laplacian_loss, mask_iou
from scenemill.trainers.render.mesh_operators import edge_to_faces, uniform_laplacian
from scenemill.trainers.render.object_views import ObjectViews, ViewBatch
from scenemill.trainers.render.textured_mesh import Rendered, TexturedMesh
from scenemill.transforms.publish import write_whole

CHECKPOINT: Final = "fit.pth"
STATUS: Final = "status.jsonl"


@dataclass(frozen=True)
class Epoch:
    """What an epoch came to.

    Attributes:
        epoch: from 0.
        epochs: of the fit.
        losses: of each step.
        mask_iou, psnr_db: mean over the held-out views; None where there is none.
        seconds: of the fit so far.
    """

    epoch: int
    epochs: int
    losses: tuple[float, ...]
    mask_iou: float | None
    psnr_db: float | None
    seconds: float


@dataclass(frozen=True)
class ViewQuality:
    """How near a mesh comes to one view.

    Attributes:
        key: of the view.
        mask_iou: intersection over union of what the mesh covers and the mask.
        psnr_db: of the image, background included.
        ssim: of the image; NaN for images smaller than its window.
    """

    key: str
    mask_iou: float
    psnr_db: float
    ssim: float


class Objective:
    """What a fit minimises.

    Args:
        config: weights, and how soft masks are.
        mesh: as it begins; moves of its vertices are counted from there.

    Raises:
        ConfigError: folds at edges are to be counted, and the mesh is not closed.
    """

    def __init__(self, config: FitConfig, mesh: TexturedMesh) -> None:
        self._config = config
        self._initial = mesh.vertices.detach().clone()[None]
        self._laplacian = uniform_laplacian(len(mesh.vertices), mesh.faces, sparse=True)
        self._edges = edge_to_faces(mesh.faces) if config.flat_weight else None

    def __call__(self, mesh: TexturedMesh, views: ViewBatch) -> Tensor:
        """(): the weighted sum of all terms over some views."""
        held, rendered = self._config, render(mesh, views, self._config)
        loss = held.image_weight * image_loss(rendered.image, views.image)
        loss = loss + held.mask_weight * mask_iou(rendered.soft_mask, views.mask)
        loss = loss + held.laplacian_weight * laplacian_loss(mesh.vertices[None], self._initial, self._laplacian)
        if self._edges is not None:
            loss = loss + held.flat_weight * flatness_loss(rendered.normals, self._edges)
        return loss


def render(mesh: TexturedMesh, views: ViewBatch, config: FitConfig) -> Rendered:
    """What the cameras of some views see of a mesh."""
    height, width = views.mask.shape[1:]
    soft = {"sigmainv": config.sigmainv, "boxlen": config.boxlen, "knum": config.knum}
    rendered: Rendered = mesh(views.camera_transform, views.camera_projection, (height, width), **soft)
    return rendered


def fit(
    config: FitConfig,
    mesh: TexturedMesh,
    views: ObjectViews,
    held_out: ObjectViews | None,
    folder: Path,
    on_epoch: Callable[[Epoch], None],
) -> list[Epoch]:
    """Fit a mesh to views. Run again, it goes on after the last whole epoch, to the same curve.

    Args:
        config: of the fit.
        mesh: as it begins, on the device that is to be used; fitted in place.
        views: to fit, in the unit of the mesh.
        held_out: to measure on after every epoch; None for none.
        folder: gets a checkpoint and ``STATUS``, a line for each epoch.
        on_epoch: told of every epoch.

    Returns:
        The epochs, those of earlier runs included.

    Raises:
        ConfigError: the folder holds the fit of another mesh, of other views, or with other settings.
        Corrupt: the store or the checkpoint is damaged.
    """
    device = mesh.vertices.device
    objective = Objective(config, mesh)
    optimizer = torch.optim.Adam(
        [{"params": [mesh.vertices, mesh.shift], "lr": config.vertex_lr}, {"params": [mesh.texture], "lr": config.texture_lr}]
    )
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, config.lr_step, config.gamma)
    identity = _identity(config, mesh, views)
    epochs = _resume(folder, identity, mesh, optimizer, schedule)
    began = time.monotonic() - (epochs[-1].seconds if epochs else 0.0)
    while len(epochs) < config.epochs and not _is_stuck(epochs, config.patience):
        losses = _run_epoch(config, mesh, views, objective, optimizer, len(epochs), device)
        schedule.step()
        found = measure(config, mesh, held_out) if held_out else []
        iou, quality = (_mean([getattr(one, name) for one in found]) for name in ("mask_iou", "psnr_db"))
        epochs.append(Epoch(len(epochs), config.epochs, losses, iou, quality, time.monotonic() - began))
        on_epoch(epochs[-1])  # first: what it leaves is left again after a kill, and never missing
        _save(folder, identity, mesh, optimizer, schedule, epochs)
    return epochs


def _run_epoch(
    config: FitConfig,
    mesh: TexturedMesh,
    views: ObjectViews,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    epoch: int,
    device: torch.device,
) -> tuple[float, ...]:
    order = views.order(config.seed, epoch).tolist()
    losses: list[float] = []
    for start in range(0, len(order), config.batch_size):
        loss = objective(mesh, views.read(order[start : start + config.batch_size], device))
        if not bool(torch.isfinite(loss)):
            raise ConfigError(f"the loss of epoch {epoch}, step {len(losses)} is {float(loss)}; lower vertex_lr or texture_lr")
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch has no types for it
        optimizer.step()
        losses.append(float(loss.detach()))
    return tuple(losses)


@torch.no_grad()
def measure(config: FitConfig, mesh: TexturedMesh, views: ObjectViews) -> list[ViewQuality]:
    """How near a mesh comes to each of some views, in their order; by hard masks."""
    found = []
    for place, key in enumerate(views.keys):
        view = views.read([place], mesh.vertices.device)
        rendered = render(mesh, view, config)
        iou = 1 - float(mask_iou(rendered.covered, view.mask))
        is_large = min(view.mask.shape[1:]) >= WINDOW
        likeness = float(ssim(rendered.image[0], view.image[0])) if is_large else float("nan")
        found.append(ViewQuality(key, iou, float(psnr(rendered.image[0], view.image[0])), likeness))
    return found


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _is_stuck(epochs: Sequence[Epoch], patience: int) -> bool:
    """Whether no epoch of the last few was better than all before them."""
    ious = [epoch.mask_iou for epoch in epochs if epoch.mask_iou is not None]
    return 0 < patience < len(ious) and max(ious[-patience:]) <= max(ious[:-patience])


# Going on -------------------------------------------------------------------------------------------------------------------------


def _identity(config: FitConfig, mesh: TexturedMesh, views: ObjectViews) -> dict[str, Any]:
    """What must be the same for a fit to go on: all but how long it goes."""
    settings = {name: value for name, value in told(config).items() if name not in ("epochs", "patience")}
    shape = [float(mesh.vertices.detach().double().square().sum()), len(mesh.vertices), len(mesh.faces)]
    return {"settings": settings, "template": shape, "views": list(views.keys), "store": views.store.version, "unit": views.unit}


def _save(folder: Path, identity: dict[str, Any], mesh: TexturedMesh, optimizer: Any, schedule: Any, epochs: list[Epoch]) -> None:
    document = {
        "identity": identity,
        "state_dict": mesh.state_dict(),
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "epochs": [asdict(epoch) for epoch in epochs],
    }
    save_checkpoint(folder / CHECKPOINT, document)
    write_whole(folder / STATUS, "".join(f"{json.dumps(_line(epoch))}\n" for epoch in epochs).encode())


def _line(epoch: Epoch) -> dict[str, Any]:
    mean = sum(epoch.losses) / len(epoch.losses)
    rest = {name: value for name, value in asdict(epoch).items() if name not in ("epochs", "losses")}
    return {**rest, "loss": mean, "last_loss": epoch.losses[-1]}


def _resume(folder: Path, identity: dict[str, Any], mesh: TexturedMesh, optimizer: Any, schedule: Any) -> list[Epoch]:
    """Take up what a folder holds, if anything; the epochs that are done."""
    if not (folder / CHECKPOINT).is_file():
        return []
    held = load_checkpoint(folder / CHECKPOINT)
    if changed := [name for name, value in identity.items() if held["identity"].get(name) != value]:
        raise ConfigError(f"{folder}: holds a fit with another {', '.join(changed)}; give another folder, or remove {CHECKPOINT}")
    mesh.load_state_dict(held["state_dict"])
    optimizer.load_state_dict(held["optimizer"])
    schedule.load_state_dict(held["schedule"])
    return [Epoch(**{**epoch, "losses": tuple(epoch["losses"])}) for epoch in held["epochs"]]
