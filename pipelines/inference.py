"""Prediction from images alone: a folder of them, or the samples of a store, to a folder of predictions.

Each image gets a folder (see ``pipelines/predictions.py``), whole or not there: what is complete is not predicted again. An image that
cannot be read never ends a run: it is told in the outcome, and in ``failures.json`` beside the folders.
"""

import io
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError

from scenemill.pipelines.folder import OnProgress, no_progress
from scenemill.pipelines.predictions import Prediction, folder_of, write_prediction
from scenemill.pipelines.sheet import depth_colors, instance_colors, label_colors
from scenemill.schemas.errors import ConfigError, SourceError
from scenemill.schemas.experiment import ExperimentConfig
from scenemill.schemas.labels import LABELS, Label
from scenemill.transforms.geometry import FRONT3D_INTRINSICS, adjust_intrinsics
from scenemill.transforms.publish import write_whole
from scenemill.transforms.store import Store, open_store

if TYPE_CHECKING:
    from scenemill.trainers.augment import View
    from scenemill.trainers.collate import Batch
    from scenemill.trainers.nvpanoptix3d.postprocess import PanopticImage
    from scenemill.trainers.nvpanoptix3d.stage1 import Stage1, Stage1Output

FAILURES: Final = "failures.json"
FILES: Final = ("panoptic_2d.npy", "depth_2d.npy", "view.png", "segments.json")
"""What a complete folder of stage 1 has."""

_SUFFIXES: Final = (".jpg", ".png")
_OTHER_SUFFIXES: Final = (".jpeg", ".jpe", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".heic")
_LIMIT_BYTE: Final = 1 << 28
_CAMERA_SIZE: Final = (320, 240)  # of the images that the fixed camera of 3D-Front is told for
_GAP, _LINE = 6, 20
_INK, _PAPER = (29, 37, 48), (255, 255, 255)


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
    model: "Stage1",
    images_dir: Path,
    results_dir: Path,
    on_progress: OnProgress = no_progress,
    *,
    overwrite: bool = False,
) -> Inferred:
    """Predict every ``*.jpg`` and ``*.png`` of a folder; folders within it are not read.

    Args:
        config: how images are prepared, how many at once (``dataset.test.batch_size``), and what is kept.
        model: of stage 1, on the device it is to run on.
        images_dir: the images; a file's name without its suffix is the image's id.
        results_dir: gets a folder for each image.
        on_progress: called after each batch.
        overwrite: True to predict anew what is there.

    Raises:
        ConfigError: no such folder, no image in it, or a model whose classes have no names.
    """
    check_classes(config)
    listed = list_images(images_dir, results_dir, overwrite=overwrite)
    facts = {fact.image: fact for fact in listed.facts}
    size = config.dataset.test.batch_size
    for start in range(0, len(listed.todo), size):
        on_progress("Predicting", start, len(listed.todo))
        facts |= {fact.image: fact for fact in infer_files(config, model, listed.todo[start : start + size], results_dir)}
    on_progress("Predicting", len(listed.todo), len(listed.todo))
    return write_outcome(results_dir, facts, listed.passed_over)


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


def list_images(images_dir: Path, results_dir: Path, *, overwrite: bool = False) -> Listed:
    """The images of a folder, and which of them are to be predicted.

    Raises:
        ConfigError: no such folder, or no image in it.
    """
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
    first: dict[str, Path] = {FAILURES: results_dir / FAILURES}
    todo, facts = [], []
    for path in images:
        holder = first.setdefault(path.stem, path)
        if holder is not path:
            facts.append(Fact(path.name, "failed", f"its predictions would have the name of {holder.name}; rename one of the two"))
        elif not overwrite and is_complete(results_dir / path.stem):
            facts.append(Fact(path.name, "skipped"))
        else:
            todo.append(path)
    return Listed(tuple(todo), tuple(facts), others)


def is_complete(folder: Path) -> bool:
    """Whether a folder has all that a prediction of stage 1 has."""
    return all((folder / name).is_file() for name in FILES)


def infer_files(config: ExperimentConfig, model: "Stage1", files: Sequence[Path], results_dir: Path) -> list[Fact]:
    """Predict some images as one batch, and write what is found.

    Returns:
        A fact for each, in their order.
    """
    from scenemill.trainers.predict import predict_reduced, prepare_image, stack_images
    from scenemill.trainers.sidefiles import label_map_of

    labels = label_map_of(config.dataset).labels
    views: dict[Path, View] = {}
    reasons: dict[Path, str] = {}
    for path in files:
        try:
            views[path] = prepare_image(read_image(path), config.dataset)
        except SourceError as error:
            reasons[path] = str(error)
    if views:
        images = stack_images([view.rgb for view in views.values()])
        found = predict_reduced(model, images, [view.unpadded_shape for view in views.values()], config)
        camera = adjust_intrinsics(np.array(FRONT3D_INTRINSICS), _CAMERA_SIZE, config.dataset.target_size)
        for (path, view), image in zip(views.items(), found, strict=True):
            height, width = view.unpadded_shape
            if reason := _write(results_dir, path.stem, image, view.rgb[:height, :width], camera, labels):
                reasons[path] = reason
    return [Fact(path.name, "failed" if path in reasons else "written", reasons.get(path, "")) for path in files]


def read_image(path: Path) -> NDArray[np.uint8]:
    """The colours of a JPEG or PNG file, turned upright as its EXIF entry says; what is transparent counts as if it were not.

    Returns:
        (H, W, 3) uint8.

    Raises:
        SourceError: it cannot be read, or has more than 8 bits to a grey value.
    """
    try:
        if not path.is_file():
            raise SourceError("presence", "no file", "an image")
        with path.open("rb") as file:
            data = file.read(_LIMIT_BYTE + 1)
    except SourceError:
        raise
    except OSError as error:
        raise SourceError("presence", f"a file that cannot be opened ({error.strerror})", "an image") from error
    if len(data) > _LIMIT_BYTE:
        raise SourceError("container", f"more than {_LIMIT_BYTE >> 20} MiB", "a smaller image")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
                if image.mode.startswith(("I", "F")):
                    raise SourceError("dtype", f"image mode {image.mode}", "8 bits to a value")
                upright = ImageOps.exif_transpose(image)
                return np.array(upright.convert("RGB"))
    except SourceError:
        raise
    except UnidentifiedImageError as error:
        raise SourceError("container", f"{len(data)} bytes that are no readable image", "a JPEG or PNG file") from error
    except Exception as error:  # Pillow's decoders raise many classes on hostile bytes
        raise SourceError("container", f"no readable image ({str(error)[:120]})", "a JPEG or PNG file") from error


def infer_store(
    config: ExperimentConfig,
    model: "Stage1",
    store: Store | Path,
    split: str,
    predictions: Path,
    on_progress: OnProgress = no_progress,
    *,
    overwrite: bool = False,
    reduced: bool = False,
    on_output: "Callable[[Batch, Stage1Output], None] | None" = None,
) -> Inferred:
    """Predict the samples of a store, for ``scenemill score``.

    Args:
        config, model, on_progress, overwrite: see ``infer_folder``.
        store: open, or its folder.
        split: which samples; "" for all.
        predictions: gets a folder for each, named by ``folder_of``.
        reduced: True for maps of ``dataset.reduced_target_size``, as ``infer_folder`` writes; else they have the images' size, and
            scoring them gives the numbers of ``evaluate``.
        on_output: called with each batch, which then has all that ``config`` asks for, and with what the model says of it; not with
            ``reduced``.

    Raises:
        ConfigError: no such samples, two of one folder, or a model whose classes have no names.
    """
    from scenemill.trainers.batches import SceneDataset
    from scenemill.trainers.collate import collate
    from scenemill.trainers.predict import predict_images, predict_reduced
    from scenemill.trainers.sidefiles import label_map_of

    check_classes(config)
    labels = label_map_of(config.dataset).labels
    store = store if isinstance(store, Store) else open_store(store)
    images_only = replace(config.dataset, enable_3d=False, enable_mp_occ=False)
    wanted = images_only if on_output is None else config.dataset
    dataset = SceneDataset(store, split or None, wanted, planes=config.model.mp_occ.num_planes, on_error="skip")
    keys = [dataset.key(sample) for sample in range(len(dataset))]
    if len({folder_of(key) for key in keys}) < len(keys):
        raise ConfigError(f"store {store.root}: two keys of one prediction folder (SCENE_IMAGE); predict them split by split")
    done = [not overwrite and is_complete(predictions / folder_of(key)) for key in keys]
    facts = {key: Fact(key, "skipped") for key, there in zip(keys, done, strict=True) if there}
    todo = [sample for sample, there in enumerate(done) if not there]
    size = config.dataset.test.batch_size
    for start in range(0, len(todo), size):
        on_progress("Predicting", start, len(todo))
        batch = collate([dataset[sample] for sample in todo[start : start + size]])
        facts |= {skipped.key: Fact(skipped.key, "failed", skipped.reason) for skipped in batch.skipped}
        if not batch.keys:
            continue
        if reduced:
            found = predict_reduced(model, batch["image"], batch.unpadded, config, batch.tensors.get("room_mask_buol"))
        else:
            room = batch.tensors.get("room_mask")
            watch = None if on_output is None else partial(on_output, batch)
            found = predict_images(model, batch["image"], batch.unpadded, config, room, size=batch.sizes[0], on_output=watch)
        for index, (key, image) in enumerate(zip(batch.keys, found, strict=True)):
            height, width = batch.unpadded[index]
            rgb = batch["image"][index, :, :height, :width].permute(1, 2, 0).cpu().numpy()
            reason = _write(predictions, key, image, rgb, batch["intrinsic"][index].cpu().numpy().astype(np.float64), labels)
            facts[key] = Fact(key, "failed" if reason else "written", reason)
    on_progress("Predicting", len(todo), len(todo))
    return write_outcome(predictions, facts, ())


def write_outcome(results_dir: Path, facts: Mapping[str, Fact], passed_over: tuple[str, ...]) -> Inferred:
    """The outcome, its failures also as ``failures.json``: a list, empty where all went well."""
    outcome = Inferred(results_dir, tuple(facts[name] for name in sorted(facts)), passed_over)
    failures = [{"image": fact.image, "reason": fact.reason} for fact in outcome.failures]
    write_whole(results_dir / FAILURES, json.dumps(failures, indent=1).encode())
    return outcome


def _write(
    root: Path,
    key: str,
    found: "PanopticImage",
    rgb: NDArray[np.uint8],
    intrinsic: NDArray[np.float64],
    labels: Sequence[Label],
) -> str:
    """Write what was found in one image; returns why it could not be, or ""."""
    classes = {segment.id: segment.category_id for segment in found.segments}
    prediction = Prediction(found.panoptic_seg.cpu().numpy(), classes, found.depth.cpu().numpy())
    if not np.isfinite(prediction.depth).all():
        return "the model's depth is no number; are its weights those of a run that went wrong?"
    try:
        view = _png(draw_view(rgb, prediction, labels))
        write_prediction(root, key, prediction, intrinsic=intrinsic, view=view, labels=labels)
    except OSError as error:
        return f"its predictions cannot be written ({error.strerror or error})"
    return ""


def _png(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


def draw_view(rgb: NDArray[np.uint8], prediction: Prediction, labels: Sequence[Label] = LABELS) -> Image.Image:
    """An image and what was found in it, side by side: input, instances, classes, depth; names of the classes below.

    Args:
        rgb: (H, W, 3) uint8; the maps are drawn in its size.
        prediction: maps of the same view, in any size.
        labels: names and colours of the classes.
    """
    height, width = rgb.shape[:2]
    classes = np.zeros(1 + max(prediction.classes_2d, default=0), np.uint8)
    classes[list(prediction.classes_2d)] = list(prediction.classes_2d.values())
    semantic = classes[prediction.panoptic_2d]
    depth, near, far = depth_colors(prediction.depth)
    panels = (
        (f"input, {width} x {height}", rgb),
        (f"instances: {len(prediction.classes_2d)} segments", instance_colors(prediction.panoptic_2d)),
        ("classes", label_colors(semantic, labels)),
        (f"depth, {near:.2f} (bright) to {far:.2f} m", depth),
    )
    view = Image.new("RGB", (len(panels) * (width + _GAP) - _GAP, height + 2 * _LINE), _PAPER)
    draw, font = ImageDraw.Draw(view), ImageFont.load_default(size=12)
    for place, (title, colors) in enumerate(panels):
        left = place * (width + _GAP)
        draw.text((left + 2, 3), title, fill=_INK, font=font)
        picture = Image.fromarray(np.ascontiguousarray(colors)).resize((width, height), Image.Resampling.NEAREST)
        view.paste(picture, (left, _LINE))
    right = 2
    for name, color in _legend(semantic, labels):
        top = _LINE + height + 4
        draw.rectangle((right, top, right + 12, top + 12), fill=color)
        draw.text((right + 17, top), name, fill=_INK, font=font)
        right += 17 + int(font.getlength(name)) + 14
    return view


def _legend(semantic: NDArray[Any], labels: Sequence[Label]) -> Iterator[tuple[str, tuple[int, int, int]]]:
    present = set(np.unique(semantic).tolist())
    return ((label.name, label.color) for label in labels if label.id in present)
