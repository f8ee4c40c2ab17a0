"""A source of one's own: RGB-D video of rooms with labels, a folder per scene. Copy it, and make it say what your files are.

scenemill ingest examples/rgbd_source.py:SOURCE --input raw --output store

raw/train.txt, val.txt             names of scenes, one a line
raw/<scene>/intrinsics.txt         3 x 3, pixels, of colour and depth alike
raw/<scene>/color/<frame>.png      8-bit RGB
raw/<scene>/depth/<frame>.png      16-bit, millimetres along the camera's axis; 0 is invalid
raw/<scene>/pose/<frame>.txt       4 x 4, world from camera, metres; absent where tracking was lost
raw/<scene>/label/<frame>.png      16-bit, ids of the 40 classes of NYU
raw/<scene>/instance/<frame>.png   16-bit, 0 for none
raw/<scene>/confidence/<frame>.png 8-bit, 0 to 2, where the sensor gives it
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from scenemill import Field, Finding, Form, Listed, RawFile, Sample, SampleKey, SourceError, fill
from scenemill.schemas.fields import fields_of
from scenemill.schemas.forms import Arrays, Decode
from scenemill.schemas.places import Place
from scenemill.transforms.images import read_png

ROOM = {field.name: field for field in fields_of("front3d")}  # what one of these names means stands there
FIELDS = (
    ROOM["rgb"],
    ROOM["depth"],
    replace(ROOM["semantic_2d"], origin="label"),
    replace(ROOM["instance_2d"], origin="instance"),
    replace(ROOM["intrinsics"], origin="intrinsics"),
    replace(ROOM["world_from_camera"], origin="pose"),
    Field("confidence", ("row", "column"), "uint8", 0, "", "of the depth: 0 low, 1, 2 high", "confidence", required=False),
)

CLASS_OF_NYU = {3: 1, 4: 2, 5: 3, 6: 4, 7: 5, 14: 6, 17: 7, 35: 8, 1: 10, 2: 11, 22: 12}  # the rest is 9, "other"
CLASSES = np.array([0, *(CLASS_OF_NYU.get(nyu, 9) for nyu in range(1, 41))], np.uint8)


def list_samples(root: Place) -> Iterator[Listed]:
    for split in ("train", "val"):
        for scene in (root / f"{split}.txt").read_bytes().decode().split():
            for image in (root / scene / "color").iterdir():
                yield Listed(f"{scene}/{image.stem}", (split,))


def paths(key: SampleKey) -> dict[str, str]:
    images = {kind: f"{key.scene}/{kind}/{key.image}.png" for kind in ("color", "depth", "label", "instance", "confidence")}
    images["rgb"] = images.pop("color")
    return {**images, "pose": f"{key.scene}/pose/{key.image}.txt", "intrinsics": f"{key.scene}/intrinsics.txt"}


def read_rgb(data: bytes, arrays: Arrays, facts: dict[str, Any]) -> None:
    fill(arrays["rgb"], read_png(data, arrays["rgb"].shape[:2], {"RGB": "uint8"}))


def read_depth(data: bytes, arrays: Arrays, facts: dict[str, Any]) -> None:
    fill(arrays["depth"], read_png(data, arrays["depth"].shape, {"I;16": "uint16"}) / np.float32(1000))


def read_label(data: bytes, arrays: Arrays, facts: dict[str, Any]) -> None:
    nyu = read_png(data, arrays["semantic_2d"].shape, {"I;16": "uint16"})
    if nyu.max() >= len(CLASSES):
        raise SourceError("label_known", f"class {nyu.max()} of NYU", f"0 to {len(CLASSES) - 1}")
    fill(arrays["semantic_2d"], CLASSES[nyu])


def read_map(name: str, mode: str, dtype: str) -> Decode:
    return lambda data, arrays, facts: fill(arrays[name], read_png(data, arrays[name].shape, {mode: dtype}))


def read_pose(data: bytes, arrays: Arrays, facts: dict[str, Any]) -> None:
    fill(arrays["world_from_camera"], np.array(data.split(), float).reshape(4, 4))


def read_intrinsics(data: bytes, arrays: Arrays, facts: dict[str, Any]) -> None:
    arrays["intrinsics"][...] = np.eye(4)
    arrays["intrinsics"][:3, :3] = np.array(data.split(), float).reshape(3, 3)


def check_height(sample: Sample) -> Iterator[Finding]:
    if "world_from_camera" in sample and not 0.2 < (height := sample["world_from_camera"][2, 3]) < 2.5:
        yield Finding("camera_height", "world_from_camera", "warning", f"{height:.2f} m", "0.2 to 2.5 m above the floor")


FILES = (
    RawFile("rgb", ("rgb",), read_rgb),
    RawFile("depth", ("depth",), read_depth),
    RawFile("label", ("semantic_2d",), read_label),
    RawFile("instance", ("instance_2d",), read_map("instance_2d", "I;16", "uint16")),
    RawFile("intrinsics", ("intrinsics",), read_intrinsics),
    RawFile("pose", ("world_from_camera",), read_pose, required=False),
    RawFile("confidence", ("confidence",), read_map("confidence", "L", "uint8"), required=False),
)

SOURCE = Form("rgbd", FIELDS, FILES, list_samples, paths, checks=(check_height,))
