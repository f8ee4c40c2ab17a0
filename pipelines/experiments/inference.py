"""Prediction from images alone: a folder of them, or the samples of a store, to a folder of predictions.

Each image gets a folder (see ``pipelines/predictions.py``), whole or not there: what is complete is not predicted again. An image that
cannot be read never ends a run: it is told in the outcome, and in ``failures.json`` beside the folders.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from scenemill.pipelines.experiments.photos import read_image
from scenemill.pipelines.predictions import Prediction, folder_of, write_prediction
from scenemill.pipelines.progress import OnProgress, no_progress
from scenemill.pipelines.reports.prediction_sheet import POINTS, SURFACE, draw_meshes, draw_points, draw_view, to_png
from scenemill.schemas.errors import ConfigError, SourceError
from scenemill.schemas.experiment import ExperimentConfig
from scenemill.schemas.labels import LABELS, Label
from scenemill.schemas.places import Place
from scenemill.transforms.geometry import FRONT3D_INTRINSICS, adjust_intrinsics
from scenemill.transforms.publish import write_whole
from scenemill.transforms.store import Store, open_store

if TYPE_CHECKING:
    from scenemill.trainers.augment import View
    from scenemill.trainers.collate import Batch
    from scenemill.trainers.nvpanoptix3d.postprocess import PanopticImage
    from scenemill.trainers.nvpanoptix3d.postprocess3d import PanopticVolume
    from scenemill.trainers.nvpanoptix3d.stage1 import Stage1, Stage1Output
    from scenemill.trainers.nvpanoptix3d.stage2 import Stage2

Item = TypeVar("Item")

FAILURES: Final = "failures.json"
FILES: Final = ("panoptic_2d.npy", "depth_2d.npy", POINTS, "view.png", "segments.json")
"""What a complete folder of stage 1 has."""

VOLUME_FILES: Final = ("geometry.npz", "semantic.npz", "panoptic.npz", "mesh.ply", SURFACE)
"""And of stage 2 besides."""

_SUFFIXES: Final = (".jpg", ".png")
_OTHER_SUFFIXES: Final = (".jpeg", ".jpe", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".heic")
_CAMERA_SIZE: Final = (320, 240)  # of the images that the fixed camera of 3D-Front is told for


@dataclass(frozen=True)
class Fact:
    """What became of one image.

    Attributes:
        image: name of its file, or key of the sample.
        state: "written", "skipped" because it was there, or "failed".
        reason: why it failed.
    """

    image: str
    state: Literal["written", "skipped", "failed"]
    reason: str = ""


@dataclass(frozen=True)
class Share:
    """One of several equal shares of a list: every ``of_all``-th item.

    Attributes:
        number: from 0.
        of_all: how many shares there are.
    """

    number: int
    of_all: int

    def of(self, items: Sequence[Item]) -> Sequence[Item]:
        """The items of this share.

        >>> Share(1, 3).of("abcdef")
        'be'
        """
        return items[self.number :: self.of_all]


ALL: Final = Share(0, 1)


@dataclass(frozen=True)
class Inferred:
    """What an inference came to.

    Attributes:
        results: the folder of the predictions.
        facts: one for each image, in their order.
        passed_over: files that are images, but not ``*.jpg`` or ``*.png``.
    """

    results: Path
    facts: tuple[Fact, ...]
    passed_over: tuple[str, ...] = ()

    def count(self, state: str) -> int:
        """How many images were "written", "skipped" or "failed"."""
        return sum(fact.state == state for fact in self.facts)

    @property
    def failures(self) -> tuple[Fact, ...]:
        """The images without a prediction, and why."""
        return tuple(fact for fact in self.facts if fact.state == "failed")


def infer_folder(
    config: ExperimentConfig,
    model: "Stage1 | Stage2",
    images_dir: Path,
    results_dir: Path,
    on_progress: OnProgress = no_progress,
    *,
    overwrite: bool = False,
    share: Share = ALL,
) -> Inferred:
    """Predict every ``*.jpg`` and ``*.png`` of a folder; folders within it are not read.

    Args:
        config: how images are prepared, how many at once (``dataset.test.batch_size``), and what is kept.
        model: of the stage that ``dataset.enable_3d`` names, on the device it is to run on.
        images_dir: the images; a file's name without its suffix is the image's id.
        results_dir: gets a folder for each image.
        on_progress: called after each batch.
        overwrite: True to predict anew what is there.
        share: of the images, for one of several that predict side by side; what the outcome writes is left to whoever has them all.

    Raises:
        ConfigError: no such folder, no image in it, or a model whose classes have no names.
    """
    check_classes(config)
    listed = list_images(config, images_dir, results_dir, overwrite=overwrite, share=share)
    facts = {fact.image: fact for fact in listed.facts}
    todo, size = listed.todo, config.dataset.test.batch_size
    for start in range(0, len(todo), size):
        on_progress("Predicting", start, len(todo))
        facts |= {fact.image: fact for fact in infer_files(config, model, todo[start : start + size], results_dir)}
    on_progress("Predicting", len(todo), len(todo))
    outcome = Inferred(results_dir, tuple(facts[name] for name in sorted(facts)), listed.passed_over)
    return write_outcome(outcome) if share == ALL else outcome


def check_classes(config: ExperimentConfig) -> None:
    """Refuse a model whose predictions no reader would take, before anything is predicted.

    Raises:
        ConfigError: it knows more classes than have names, or the label map does not fit it.
    """
    from scenemill.trainers.sidefiles import check_label_map

    check_label_map(config)
    classes = config.model.sem_seg_head.num_classes
    if classes > len(LABELS):
        raise ConfigError(
            f"model.sem_seg_head.num_classes={classes}: predictions name one of {len(LABELS)} classes; train with those"
        )


@dataclass(frozen=True)
class Listed:
    """The images of a folder.

    Attributes:
        todo: to be predicted, by name.
        facts: of the others: they are done, or cannot be.
        passed_over: see ``Inferred``.
    """

    todo: tuple[Path, ...]
    facts: tuple[Fact, ...]
    passed_over: tuple[str, ...]


def list_images(
    config: ExperimentConfig, images_dir: Path, results_dir: Path, *, overwrite: bool = False, share: Share = ALL
) -> Listed:
    """The images of a folder, and which of them are to be predicted.

    Args:
        config: of the stage that is to predict.
        images_dir, results_dir, overwrite: see ``infer_folder``.
        share: of all images, whatever of them is done: others may be at work.

    Raises:
        ConfigError: no such folder, or no image in it.
    """
    from scenemill.trainers.timelapse import LABELS_FILE

    if not images_dir.is_dir():
        raise ConfigError(f"images_dir {images_dir}: no such folder; give one with *.jpg or *.png")
    files = sorted(path for path in images_dir.iterdir() if not path.name.startswith(".") and not path.is_dir())
    others = tuple(
        path.name for path in files if path.suffix not in _SUFFIXES and path.suffix.lower() in _SUFFIXES + _OTHER_SUFFIXES
    )
    images = [path for path in files if path.suffix in _SUFFIXES]
    if not images:
        told = f"; {len(others)} images of other names, such as {others[0]}: rename or convert them" if others else ""
        raise ConfigError(f"0 images under {images_dir}; expected *.jpg or *.png{told}")
    first: dict[str, Path] = {name: results_dir / name for name in (FAILURES, LABELS_FILE)}
    holders = [first.setdefault(path.stem, path) for path in images]
    todo, facts = [], []
    for path, holder in share.of(list(zip(images, holders, strict=True))):
        if holder is not path:
            facts.append(Fact(path.name, "failed", f"its predictions would have the name of {holder.name}; rename one of the two"))
        elif not overwrite and is_complete(config, results_dir / path.stem):
            facts.append(Fact(path.name, "skipped"))
        else:
            todo.append(path)
    return Listed(tuple(todo), tuple(facts), others)


def is_complete(config: ExperimentConfig, folder: Path) -> bool:
    """Whether a folder has all that a prediction of the configured stage has."""
    wanted = FILES + (VOLUME_FILES if config.dataset.enable_3d else ())
    return all((folder / name).is_file() for name in wanted)


def infer_files(config: ExperimentConfig, model: "Stage1 | Stage2", files: Sequence[Path], results_dir: Path) -> list[Fact]:
    """Predict some images as one batch, and write what is found. Their camera is taken to be that of 3D-Front.

    Returns:
        A fact for each, in their order.
    """
    from scenemill.trainers.predict import prepare_image

    views: dict[Path, View] = {}
    reasons: dict[Path, str] = {}
    for path in files:
        try:
            views[path] = prepare_image(read_image(path), config.dataset)
        except SourceError as error:
            reasons[path] = str(error)
    if views:
        images = [view.rgb for view in views.values()]
        camera = adjust_intrinsics(np.array(FRONT3D_INTRINSICS), _CAMERA_SIZE, config.dataset.target_size)
        found = _predict_photos(config, model, images, [view.unpadded_shape for view in views.values()], camera)
        for (path, view), prediction in zip(views.items(), found, strict=True):
            height, width = view.unpadded_shape
            if reason := _write(config, results_dir, path.stem, prediction, view.rgb[:height, :width], camera):
                reasons[path] = reason
    return [Fact(path.name, "failed" if path in reasons else "written", reasons.get(path, "")) for path in files]


def _predict_photos(
    config: ExperimentConfig,
    model: "Stage1 | Stage2",
    images: Sequence[NDArray[np.uint8]],
    unpadded: Sequence[tuple[int, int]],
    camera: NDArray[np.float64],
) -> list[Prediction]:
    """What is found in images that come without volumes, all taken by one camera."""
    from scenemill.trainers.nvpanoptix3d.stage2 import Stage2
    from scenemill.trainers.predict import predict_reduced, predict_scenes, stack_images

    stacked = stack_images(images)
    if not isinstance(model, Stage2):
        return [_prediction(image) for image in predict_reduced(model, stacked, unpadded, config)]
    cameras = np.broadcast_to(camera, (len(images), 4, 4))
    return [_prediction(*scene) for scene in predict_scenes(model, stacked, unpadded, config, cameras, None)]


def infer_store(
    config: ExperimentConfig,
    model: "Stage1 | Stage2",
    store: Store | Place,
    split: str,
    predictions: Path,
    on_progress: OnProgress = no_progress,
    *,
    overwrite: bool = False,
    reduced: bool = False,
    on_output: "Callable[[Batch, Stage1Output], None] | None" = None,
    share: Share = ALL,
) -> Inferred:
    """Predict the samples of a store, for ``scenemill score``.

    Args:
        config, model, on_progress, overwrite: see ``infer_folder``.
        store: open, or its folder.
        split: which samples; "" for all.
        predictions: gets a folder for each, named by ``folder_of``.
        reduced: True for maps of ``dataset.reduced_target_size``, as ``infer_folder`` writes; else they have the images' size, and
            scoring them gives the numbers of ``evaluate``. Those of stage 2 are always reduced.
        on_output: called with each batch, which then has all that ``config`` asks for, and with what stage 1 says of it; not with
            ``reduced``.
        share: of the samples, for one of several that predict side by side.

    Raises:
        ConfigError: no such samples, two of one folder, or a model whose classes have no names.
    """
    from scenemill.trainers.batches import SceneDataset
    from scenemill.trainers.collate import collate

    check_classes(config)
    store = store if isinstance(store, Store) else open_store(store)
    images_only = replace(config.dataset, enable_3d=False, enable_mp_occ=False)
    wanted = images_only if on_output is None else config.dataset
    dataset = SceneDataset(store, split or None, wanted, planes=config.model.mp_occ.num_planes, on_error="skip")
    keys = [dataset.key(sample) for sample in range(len(dataset))]
    if len({folder_of(key) for key in keys}) < len(keys):
        raise ConfigError(f"store {store.root}: two keys of one prediction folder (SCENE_IMAGE); predict them split by split")
    samples = share.of(range(len(keys)))
    todo = [sample for sample in samples if overwrite or not is_complete(config, predictions / folder_of(keys[sample]))]
    facts = {keys[sample]: Fact(keys[sample], "skipped") for sample in set(samples) - set(todo)}
    size = config.dataset.test.batch_size
    for start in range(0, len(todo), size):
        on_progress("Predicting", start, len(todo))
        batch = collate([dataset[sample] for sample in todo[start : start + size]])
        facts |= {skipped.key: Fact(skipped.key, "failed", skipped.reason) for skipped in batch.skipped}
        found = _predict_batch(config, model, batch, store, reduced=reduced, on_output=on_output) if batch.keys else []
        for index, (key, prediction) in enumerate(zip(batch.keys, found, strict=True)):
            height, width = batch.unpadded[index]
            rgb = batch["image"][index, :, :height, :width].permute(1, 2, 0).cpu().numpy()
            reason = _write(config, predictions, key, prediction, rgb, batch["intrinsic"][index].numpy().astype(np.float64))
            facts[key] = Fact(key, "failed" if reason else "written", reason)
    on_progress("Predicting", len(todo), len(todo))
    outcome = Inferred(predictions, tuple(facts[name] for name in sorted(facts)))
    return write_outcome(outcome) if share == ALL else outcome


def _predict_batch(
    config: ExperimentConfig,
    model: "Stage1 | Stage2",
    batch: "Batch",
    store: Store,
    *,
    reduced: bool,
    on_output: "Callable[[Batch, Stage1Output], None] | None",
) -> list[Prediction]:
    from scenemill.trainers.nvpanoptix3d.stage2 import Stage2
    from scenemill.trainers.predict import predict_images, predict_reduced, predict_scenes

    room = batch.tensors.get("room_mask_buol")
    if isinstance(model, Stage2):
        frusta = _frusta(config, store, batch.keys)
        found = predict_scenes(model, batch["image"], batch.unpadded, config, batch["intrinsic"].numpy(), frusta, room)
        return [_prediction(*scene) for scene in found]
    if reduced:
        return [_prediction(image) for image in predict_reduced(model, batch["image"], batch.unpadded, config, room)]
    watch = None if on_output is None else partial(on_output, batch)
    room = batch.tensors.get("room_mask")
    images = predict_images(model, batch["image"], batch.unpadded, config, room, size=batch.sizes[0], on_output=watch)
    return [_prediction(image) for image in images]


def _frusta(config: ExperimentConfig, store: Store, keys: Sequence[str]) -> list[NDArray[np.bool_]]:
    """Of each sample (D, D, D) bool, True inside: its frustum."""
    from scenemill.trainers.sidefiles import frustum_of

    common = frustum_of(config.dataset, store)
    return [~store.read(key, ["outside"])["outside"] if common is None else common for key in keys]


def join_outcomes(outcomes: Sequence[Inferred]) -> Inferred:
    """The outcomes of all shares as one, written."""
    facts = {fact.image: fact for outcome in outcomes for fact in outcome.facts}
    return write_outcome(replace(outcomes[0], facts=tuple(facts[name] for name in sorted(facts))))


def write_outcome(outcome: Inferred) -> Inferred:
    """The failures of an outcome as ``failures.json``: a list, empty where all went well. Returns the outcome."""
    failures = [{"image": fact.image, "reason": fact.reason} for fact in outcome.failures]
    write_whole(outcome.results / FAILURES, json.dumps(failures, indent=1).encode())
    return outcome


def _prediction(image: "PanopticImage", volume: "PanopticVolume | None" = None) -> Prediction:
    classes = {segment.id: segment.category_id for segment in image.segments}
    flat = Prediction(image.panoptic_seg.cpu().numpy(), classes, image.depth.cpu().numpy())
    if volume is None:
        return flat
    return replace(
        flat,
        panoptic_3d=volume.panoptic.cpu().numpy(),
        classes_3d={segment.id: segment.category_id for segment in volume.segments},
        distance=volume.distance.cpu().numpy(),
    )


def _write(
    config: ExperimentConfig,
    root: Path,
    key: str,
    found: Prediction,
    rgb: NDArray[np.uint8],
    intrinsic: NDArray[np.float64],
) -> str:
    """Write what was found in one image; returns why it could not be, or ""."""
    from scenemill.trainers.sidefiles import label_map_of

    labels = label_map_of(config.dataset).labels
    if not np.isfinite(found.depth).all() or (found.distance is not None and not np.isfinite(found.distance).all()):
        return "the model's depth or distance is no number; are its weights those of a run that went wrong?"
    try:
        meshes = draw_meshes(config, found, intrinsic, labels) | draw_points(config, found, rgb, intrinsic)
        pictures = meshes | {"view.png": to_png(draw_view(rgb, found, labels))}
        _name_classes(root, labels)  # first: whoever finds all predictions complete writes nothing more
        write_prediction(root, key, found, intrinsic=intrinsic, pictures=pictures, labels=labels)
    except OSError as error:
        return f"its predictions cannot be written ({error.strerror or error})"
    return ""


def _name_classes(root: Path, labels: Sequence[Label]) -> None:
    """Say what class ids mean, once, as a log of 3D checkpoints does."""
    from scenemill.trainers.timelapse import LABELS_FILE, Timelapse

    if not (root / LABELS_FILE).is_file():
        Timelapse(root).set_labels({label.id: (label.name, label.color) for label in labels})
