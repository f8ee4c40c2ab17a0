"""Files beside the samples, which the settings of a data set name: a label map, a frustum mask, generated images.

A path is taken as it is given, else as one inside a split's ``base_dir``; nothing there may lead out of that folder.
"""

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from scenemill.schemas.dataset import DatasetConfig
from scenemill.schemas.errors import ConfigError, Corrupt, SourceError
from scenemill.schemas.experiment import ExperimentConfig
from scenemill.schemas.labels import BUILT_IN, LabelMap, read_label_map
from scenemill.transforms.folders import find_root, read_file
from scenemill.transforms.geometry import front3d_frustum

if TYPE_CHECKING:
    from scenemill.transforms.store import Store

GENERATED: Final = "augment"
"""The folder beside ``data/`` that holds generated images."""

_FRUSTUM_FILE: Final = "meta/frustum_mask.npz"
_LIMIT_BYTE: Final = 1 << 26
_LABEL_MAP_LIMIT_BYTE: Final = 1 << 20
_FIRST, _LAST = "rgb_", ".png"


def label_map_of(config: DatasetConfig) -> LabelMap:
    """The label map that ``label_map`` names, read once per process; the built-in list where it names none.

    Raises:
        ConfigError: no such file, several that differ, or one that is no label map.
    """
    if not config.label_map:
        return BUILT_IN
    return _label_map(config.label_map, config.contiguous_id, _base_dirs(config))


def check_label_map(config: ExperimentConfig) -> LabelMap:
    """The label map of an experiment, whose model has an output for each class.

    Raises:
        ConfigError: the label map cannot be read, or leaves a class that the model has no output for.
    """
    labels, outputs = label_map_of(config.dataset), config.model.sem_seg_head.num_classes
    if config.dataset.label_map and (largest := max(labels.learned)) >= outputs:
        ids = ", ".join(str(label.id) for label in labels.sources(largest))
        raise ConfigError(
            f"dataset.label_map={config.dataset.label_map!r}: ids {ids} are learned as {largest}, but "
            f"model.sem_seg_head.num_classes={outputs}: give them a trainId below that, or 0 for classes that teach nothing"
        )
    return labels


@lru_cache(maxsize=8)
def _label_map(path: str, contiguous: bool, bases: tuple[str, ...]) -> LabelMap:
    data = _read_named("label_map", path, bases, _LABEL_MAP_LIMIT_BYTE)
    try:
        entries = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"dataset.label_map={path!r}: no readable JSON ({error}); give an array of categories") from error
    return read_label_map(entries, f"dataset.label_map={path!r}", contiguous=contiguous)


def frustum_of(config: DatasetConfig, store: "Store") -> NDArray[np.bool_] | None:
    """The frustum that all samples of a store share, as ``frustum_mask_path`` says; None where each sample has its own.

    The path of the data set's own mask names the one in the store. An empty one stands for the mask that the camera of 3D-Front
    gives: in closed form, which equals the released file in every voxel. The mask of inference for images from anywhere, which is
    cut from another camera centre, would not fit the volumes. Another file is a mask in the orientation of the released one.

    Returns:
        (X, Y, Z) bool, image-aligned, True inside.

    Raises:
        ConfigError: no such file, several that differ, or one that is no mask of the store's grid.
        Corrupt: the store's frustum differs from its checksum.
    """
    if not store.layout.frustum:
        return None
    path, bases = config.frustum_mask_path, _base_dirs(config)
    if not path:
        return front3d_frustum(store.layout.grid)
    if _is_own_mask(path, bases):
        return store.frustum
    return _read_mask(path, bases, store.layout.grid)


def _is_own_mask(path: str, bases: Iterable[str]) -> bool:
    own = (os.path.normpath(Path(base, path)) == os.path.normpath(Path(base, _FRUSTUM_FILE)) for base in bases)
    return path == _FRUSTUM_FILE or any(own)


def _read_mask(path: str, bases: tuple[str, ...], grid: int) -> NDArray[np.bool_]:
    from scenemill.transforms.npz import read_volumes

    mask = np.empty((grid,) * 3, np.bool_)
    try:
        read_volumes(_read_named("frustum_mask_path", path, bases, _LIMIT_BYTE), "mask", [mask], ("bool",), rotated=True)
    except SourceError as error:
        raise ConfigError(
            f"dataset.frustum_mask_path={path!r}: found {error.observed}; allowed is a mask of the store's grid, {error.expected}"
        ) from error
    if not mask.any():
        raise ConfigError(f"dataset.frustum_mask_path={path!r}: no voxel is inside; give a mask that is True inside")
    return mask


def _base_dirs(config: DatasetConfig) -> tuple[str, ...]:
    """The folders that the splits name, each once; beside ``data/`` itself the one above it."""
    named = [Path(split.base_dir) for split in (config.train, config.val, config.test) if split.base_dir]
    found = [folder for base in named for folder in ([base, base.parent] if base.name == "data" else [base])]
    return tuple(dict.fromkeys(map(str, found)))


def _read_named(setting: str, path: str, bases: tuple[str, ...], limit_byte: int) -> bytes:
    """The bytes of a file that a setting names."""
    if _is_file(Path(path)):
        whole = Path(path).resolve()
        places = [(whole.parent, whole.name)]
    else:
        places = [(Path(base), path) for base in bases if not Path(path).is_absolute() and _is_file(Path(base, path))]
    if not places:
        tried = ", ".join(dict.fromkeys([path, *(str(Path(base, path)) for base in bases)]))
        raise ConfigError(f"dataset.{setting}={path!r}: no file {tried}; give the whole path of one")
    try:
        found = {read_file(root, relative, limit_byte) for root, relative in places}
    except SourceError as error:
        raise ConfigError(f"dataset.{setting}={path!r}: found {error.observed}; allowed is {error.expected}") from error
    if len(found) > 1:
        told = ", ".join(str(root / relative) for root, relative in places)
        raise ConfigError(f"dataset.{setting}={path!r}: {told} differ; give the whole path of one")
    return found.pop()


def _is_file(path: Path) -> bool:
    return os.path.isfile(path)  # noqa: PTH113 - False, too, for what no path can be


class Generated(NamedTuple):
    """A generated image: a sample of its own, with the labels of a stored one.

    Attributes:
        key: ``scene/image``, the image named as its file is.
        sample: key of the sample whose labels it has.
        root: the raw folder.
        path: inside it.
    """

    key: str
    sample: str
    root: Path
    path: str


def generated_root(config: DatasetConfig) -> Path:
    """The raw folder that holds the generated images of the training split.

    Raises:
        ConfigError: ``train.base_dir`` is a store, no raw folder, or has no generated images.
    """
    base, asked = config.train.base_dir, f"augmentation.gen_aug_weight={config.augmentation.gen_aug_weight:g}"
    wanted = f"name the raw folder that holds data/ and {GENERATED}/, or set the weight to 0"
    if not base or Path(base, "zarr.json").is_file():
        told = "is a store, which holds no generated images" if base else "is empty"
        raise ConfigError(f"dataset.{asked}, but dataset.train.base_dir={base!r} {told}: {wanted}")
    root = find_root(Path(base))
    if not (root / GENERATED).is_dir():
        raise ConfigError(f"dataset.{asked}, but there is no folder {root / GENERATED}: {wanted}")
    return root


def list_generated(root: Path, samples: Iterable[str]) -> Iterator[Generated]:
    """The generated images of some samples: ``augment/<scene>/rgb_<image>*.png``, by scene and name.

    A file belongs to the longest image id that its name begins with.

    Args:
        root: the raw folder.
        samples: keys of all samples, also of those that no image is wanted of: they tell whose a file is.

    Raises:
        ConfigError: a name that is no text.
    """
    images = defaultdict(list)
    for sample in samples:
        scene, _, image = sample.partition("/")
        images[scene].append(image)
    for scene in sorted(images):
        for name in _names(root / GENERATED / scene):
            owner = max((image for image in images[scene] if name.startswith(_FIRST + image)), key=len, default="")
            if owner:
                stem = name.removeprefix(_FIRST).removesuffix(_LAST)
                yield Generated(f"{scene}/{stem}", f"{scene}/{owner}", root, f"{GENERATED}/{scene}/{name}")


def _names(folder: Path) -> list[str]:
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    found = sorted(name for name in names if name.startswith(_FIRST) and name.endswith(_LAST))
    for name in found:
        if not name.isprintable():
            raise ConfigError(f"generated image {name!a} in {folder}: its name is no text; rename it")
    return found


def read_generated(image: Generated, size: tuple[int, int]) -> NDArray[np.uint8]:
    """The colours of a generated image.

    Args:
        image: which.
        size: (height, width) of the stored images, which it must have.

    Returns:
        (H, W, 3) uint8.

    Raises:
        Corrupt: missing, damaged, or of another form or size.
    """
    from scenemill.transforms.images import read_png

    try:
        rgb = read_png(read_file(image.root, image.path, _LIMIT_BYTE), size, {"RGB": "uint8"})
    except SourceError as error:
        raise Corrupt(
            f"generated image {image.root / image.path}: {error}; sample {image.key} cannot be read. Replace or remove it"
        ) from error
    return np.array(rgb, np.uint8)  # a copy, which may be written to
