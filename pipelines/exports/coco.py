"""A store's images and 2D labels as a data set in the panoptic format of COCO: the folder ``annotations`` has a
``panoptic_SPLIT.json`` for each split, and beside it, in ``panoptic_SPLIT/SCENE/IMAGE.png``, the segments' ids as colours; the images
themselves are ``images/SCENE/IMAGE.png``.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from PIL import Image

from scenemill.schemas.errors import ConfigError
from scenemill.transforms.coco import categories_of, colors_of, segment_map, segments_of
from scenemill.transforms.folders import split_rank
from scenemill.transforms.store import Store
from scenemill.transforms.whole_folders import whole_folder

_FIELDS: Final = ("rgb", "semantic_2d", "instance_2d")


@dataclass(frozen=True)
class CocoExport:
    """What was written.

    Attributes:
        out: the folder.
        version: of the store.
        splits: number of images of each split.
        segments: of all images together, each image counted once.
        categories: number of classes.
    """

    out: str
    version: str
    splits: dict[str, int]
    segments: int
    categories: int


def export_coco(store: Store, out: Path, on_progress: Callable[[int, int], None] = lambda done, total: None) -> CocoExport:
    """Write images, segments and categories, whole or not at all.

    Args:
        store: with the fields ``rgb``, ``semantic_2d`` and ``instance_2d``, and names for its classes.
        out: a new or empty folder.
        on_progress: told how many images are done, of how many.

    Raises:
        ConfigError: the store has no such fields or names, a class has no label, or the folder has something in it.
        Corrupt: the store is damaged.
    """
    lacking = [name for name in _FIELDS if name not in {field.name for field in store.layout.fields}]
    if lacking or not store.layout.labels:
        what = f"field {', '.join(lacking)}" if lacking else "names of classes"
        raise ConfigError(
            f"store {store.root}: source {store.layout.source!r} has no {what}; COCO's panoptic format is of rooms with labels"
        )
    with whole_folder(out) as folder:
        told = []
        for number, key in enumerate(store.keys):
            told.append(_export_image(store, key, number + 1, folder))
            on_progress(number + 1, len(store))
        splits = _write_splits(store, told, folder)
    segments = sum(len(annotation["segments_info"]) for _, annotation, _ in told)
    return CocoExport(str(out), store.version, splits, segments, len(categories_of(store.layout.labels)))


def _export_image(store: Store, key: str, number: int, folder: Path) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Write the files of one image; returns how it is listed, its annotation, and its splits."""
    sample = store.read(key, _FIELDS)
    ids = segment_map(sample["semantic_2d"], sample["instance_2d"], store.layout.labels)
    name, splits = f"{key}.png", sample.facts["splits"]
    for place, pixels in ("images", sample["rgb"]), *((f"annotations/panoptic_{split}", colors_of(ids)) for split in splits):
        path = folder / place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    height, width = ids.shape
    image = {"id": number, "file_name": name, "height": height, "width": width}
    annotation = {"image_id": number, "file_name": name, "segments_info": segments_of(ids, store.layout.labels)}
    return image, annotation, splits


def _write_splits(store: Store, told: list[tuple[dict[str, Any], dict[str, Any], list[str]]], folder: Path) -> dict[str, int]:
    info = {"description": f"{store.layout.source}, from a scenemill store", "version": store.version}
    counts = {}
    (folder / "annotations").mkdir(exist_ok=True)
    for split in sorted({split for *_, splits in told for split in splits}, key=split_rank):
        chosen = [(image, annotation) for image, annotation, splits in told if split in splits]
        images, annotations = [image for image, _ in chosen], [annotation for _, annotation in chosen]
        document = {
            "info": info,
            "images": images,
            "annotations": annotations,
            "categories": categories_of(store.layout.labels),
        }
        (folder / "annotations" / f"panoptic_{split}.json").write_text(json.dumps(document), encoding="utf-8")
        counts[split] = len(images)
    return counts
