"""One stored sample as a model sees it: image, instances, depth, occupancy planes, and the blocks its volumes' targets come from."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scenemill.schemas.dataset import MEASURED, DatasetConfig
from scenemill.schemas.errors import ConfigError
from scenemill.schemas.fields import Field
from scenemill.schemas.labels import LABELS, VOID
from scenemill.trainers.augment import (
    IGNORE_LABEL,
    View,
    augment,
    depth_plane,
    draw_short_edge,
    prepare,
    resize_nearest,
    resize_rgb,
)
from scenemill.trainers.instances import (
    EVALUATION_VOID,
    Instances,
    depth_units,
    evaluation_semantic,
    instances_of,
    learned_classes,
    stuff_of,
)
from scenemill.trainers.order import Visit
from scenemill.trainers.planes import PlaneTables, plane_occupancy, plane_tables
from scenemill.trainers.sidefiles import Generated, label_map_of, read_generated
from scenemill.trainers.volumes import VolumeBatch
from scenemill.transforms.geometry import FULL_GRID, TRUNCATION_VOXELS, adjust_intrinsics, camera_index

if TYPE_CHECKING:
    from scenemill.transforms.blocks import Blocks
    from scenemill.transforms.store import Store

Arrays = dict[str, NDArray[Any]]

_IMAGE_FIELDS: Final = ("rgb", "depth", "semantic_2d", "instance_2d", "intrinsics")
_VOLUME_FIELDS: Final = ("weighting", "semantic_3d", "instance_3d")
_OF_SAMPLE, _OF_BATCH = 0, 1  # two kinds of randomness


@dataclass(frozen=True)
class Example:
    """One sample, ready to be put into a batch.

    Attributes:
        key: ``scene/image``.
        visit: why it is read now.
        size: (height, width) of the stored image.
        unpadded: (height, width) of the image within ``tensors["image"]``.
        tensors: what batches stack.
        instances: masks, classes and mean depths of the image.
        volumes: blocks; None without volumes.
        loss_weight: of the sample; below 1 for a generated image.
        replaces: the sample that should have been here but could not be read.
    """

    key: str
    visit: Visit
    size: tuple[int, int]
    unpadded: tuple[int, int]
    tensors: dict[str, Tensor]
    instances: Instances
    volumes: VolumeBatch | None
    loss_weight: float = 1.0
    replaces: "Skipped | None" = None


@dataclass(frozen=True)
class Skipped:
    """A sample that could not be read, and why: part, file, and how to repair."""

    key: str
    reason: str


class ExampleReader:
    """Makes examples of one store's samples.

    Args:
        store: to read from.
        config: what to make.
        training: True to augment.
        seed: of augmentation.
        planes: of multi-plane occupancy.
        with_rooms: True to give every image a room mask, all True where the source has none.
        frustum: (X, Y, Z) bool, to give every sample; None where each has its own, or the batch has one for all.

    Raises:
        ConfigError: the label map cannot be read.
    """

    def __init__(
        self,
        store: "Store",
        config: DatasetConfig,
        *,
        training: bool,
        seed: int,
        planes: int,
        with_rooms: bool,
        frustum: NDArray[np.bool_] | None = None,
    ) -> None:
        self._store = store
        self._config = config
        self._training = training
        self._seed = seed
        self._with_rooms = with_rooms
        self._plane_count = planes
        self._fields = {field.name: field for field in store.layout.fields}
        self._matterport = store.layout.source == "matterport"
        own = _own_classes(store, config) if store.layout.labels != LABELS else None
        self._evaluation_void = IGNORE_LABEL if own else EVALUATION_VOID
        self._labels = label_map_of(config)
        stuff = stuff_of(store.layout.source) if config.stuff_classes is None else config.stuff_classes
        self._stuff, self._things = own or (self._labels.stuff(stuff), self._labels.things(config.num_thing_classes))
        self._shared_frustum = None if frustum is None else _frustum_blocks(frustum)

    def read(self, key: str, row: int, visit: Visit, *, has_room_mask: bool, image: Generated | None = None) -> Example:
        """Make one example.

        Args:
            key: of the sample in the store.
            row: of it.
            visit: why.
            has_room_mask: whether it has one.
            image: the generated image to take in place of its own; the example then has that image's key.

        Raises:
            Corrupt: a file is missing or damaged; the message names file, sample and repair.
        """
        arrays = self._image_arrays(key, row, has_room_mask, image)
        config = self._config
        if self._matterport:
            arrays["depth"] = _without_far(arrays["depth"], config.depth_min, config.depth_max)
        if config.depth_bound:
            arrays["depth"] = _bounded(arrays["depth"], config.depth_min, config.depth_max)
        view = self._view(arrays, visit)
        found = instances_of(
            view.semantic,
            view.instance,
            view.depth,
            min_pixels=config.min_instance_pixels,
            stuff_classes=self._stuff,
            thing_classes=self._things,
            ignore_label=IGNORE_LABEL,
        )
        tensors = self._image_tensors(arrays, view, has_room_mask)
        volumes = None
        if config.enable_3d or config.enable_mp_occ:
            distance = self._distance(key, row)
            if config.enable_mp_occ:
                tensors["mp_occ"] = self._planes(arrays["intrinsics"], distance)
            if config.enable_3d:
                weight, *labelled = self._labels_and_weight(key, row)
                volumes = self._volumes(distance, weight, labelled, found, self._shared_frustum or self._own_frustum(key, row))
                tensors |= {} if self._training else _true_volumes(distance.grid, *labelled)
        size = (arrays["rgb"].shape[0], arrays["rgb"].shape[1])
        own_key, loss_weight = (key, 1.0) if image is None else (image.key, config.augmentation.gen_aug_weight)
        return Example(own_key, visit, size, view.unpadded_shape, tensors, found, volumes, loss_weight)

    def read_only(self, key: str, row: int, *, has_room_mask: bool, image: Generated | None = None) -> int:
        """Read and decode all that ``read`` would, and make nothing of it: for measuring.

        Returns:
            Bytes of the stored chunks; a generated image is none.
        """
        names = list(self._image_arrays(key, row, has_room_mask, image))
        names = names if image is None else [name for name in names if name != "rgb"]
        if self._config.enable_3d or self._config.enable_mp_occ:
            self._distance(key, row)
            names.append("geometry")
        if self._config.enable_3d:
            self._labels_and_weight(key, row)
            self._own_frustum(key, row)
            names += ["weighting", "semantic_3d", "instance_3d", *(["outside"] if "outside" in self._fields else [])]
        return sum(self._store.reader.stored_byte(self._fields[name], row) for name in names)

    def _image_arrays(self, key: str, row: int, has_room_mask: bool, image: Generated | None) -> Arrays:
        """The maps of an image, its classes as they are learned."""
        names = [*_IMAGE_FIELDS, *(["room_mask"] if has_room_mask else [])]
        arrays = {}
        for name in names:
            if name == "rgb" and image is not None:
                arrays[name] = read_generated(image, self._store.layout.image)
                continue
            with self._store.guarded(key, row, [self._fields[name]]):
                arrays[name] = self._store.reader.array(self._fields[name], row)
        arrays["semantic_2d"] = learned_classes(arrays["semantic_2d"], self._labels)
        return arrays

    def _view(self, arrays: Arrays, visit: Visit) -> View:
        config = self._config
        semantic = arrays["semantic_2d"]
        if not semantic.all():
            semantic = np.where(semantic == VOID, np.uint8(IGNORE_LABEL), semantic)
        width, height = config.target_size
        room_mask = arrays["room_mask"] > 0 if "room_mask" in arrays else None
        if room_mask is None and self._with_rooms:
            room_mask = np.ones(semantic.shape, bool)
        view = View(
            rgb=resize_rgb(arrays["rgb"], config.target_size, "bicubic"),
            semantic=resize_nearest(semantic, (height, width)),
            instance=resize_nearest(arrays["instance_2d"].astype(np.int32), (height, width)),
            depth=resize_nearest(arrays["depth"], (height, width)),
            room_mask=None if room_mask is None else resize_nearest(room_mask, (height, width)),
        )
        if not self._training:
            return prepare(view, config.augmentation)
        short_edge = draw_short_edge(config.augmentation, _generator(self._seed, _OF_BATCH, 0, visit.batch))
        return augment(view, config.augmentation, _generator(self._seed, _OF_SAMPLE, visit.epoch, visit.position), short_edge)

    def _image_tensors(self, arrays: Arrays, view: View, has_room_mask: bool) -> dict[str, Tensor]:
        config = self._config
        height, width = arrays["rgb"].shape[:2]
        intrinsics = adjust_intrinsics(arrays["intrinsics"], (width, height), config.target_size)
        semantic = view.semantic
        if config.ignore_label != IGNORE_LABEL:
            semantic = np.where(semantic == IGNORE_LABEL, np.uint8(config.ignore_label), semantic)
        tensors = {
            "image": torch.from_numpy(np.ascontiguousarray(view.rgb)).permute(2, 0, 1),  # channels last in memory
            "semantic": torch.from_numpy(np.ascontiguousarray(semantic)),
            "depth": torch.from_numpy(np.ascontiguousarray(view.depth)),
            "transformed_depth": torch.from_numpy(depth_plane(arrays["depth"], config.depth_size)),
            "intrinsic": torch.from_numpy(intrinsics.astype(np.float32)),
        }
        if view.room_mask is not None:
            plane = (
                resize_nearest(arrays["room_mask"], config.depth_size) > 0 if has_room_mask else np.ones(config.depth_size, bool)
            )
            tensors["room_mask"] = torch.from_numpy(np.ascontiguousarray(view.room_mask))
            tensors["room_mask_buol"] = torch.from_numpy(np.ascontiguousarray(plane))
        if not self._training:
            tensors["raw_sem_seg"] = torch.from_numpy(evaluation_semantic(arrays["semantic_2d"], self._evaluation_void))
            tensors["raw_inst_seg"] = torch.from_numpy(arrays["instance_2d"].astype(np.int32))
            tensors["raw_depth"] = torch.from_numpy(depth_units(arrays["depth"]))
        return tensors

    def _distance(self, key: str, row: int) -> "Blocks":
        """The unsigned distance, truncated as in the files; blocks that are all truncation may be among the rest.

        Not at ``truncation_range``: the coarser levels are interpolated from what the files hold.
        """
        field = self._fields["geometry"]
        with self._store.guarded(key, row, [field]):
            blocks = self._store.reader.blocks(field, row)
        np.abs(blocks.values, out=blocks.values)
        np.minimum(blocks.values, np.float32(TRUNCATION_VOXELS), out=blocks.values)
        return blocks

    def _planes(self, intrinsics: NDArray[np.float64], distance: "Blocks") -> Tensor:
        tables = _tables(
            intrinsics.tobytes(),
            (self._store.layout.image[1], self._store.layout.image[0]),
            distance.grid,
            self._plane_count,
            self._config.depth_size,
            (self._config.depth_min, self._config.depth_max),
            self._store.layout.source if self._config.geometry == MEASURED else "",
        )
        return plane_occupancy(torch.from_numpy(distance.voxels_where(distance.values < self._config.occupancy_band)), tables)

    def _volumes(
        self, distance: "Blocks", weight: "Blocks", labelled: Sequence[NDArray[Any]], found: Instances, frustum: "Blocks | None"
    ) -> VolumeBatch:
        """Blocks and masks; ``labelled`` are the voxels that have a label, their classes and their instances."""
        voxels, semantic, instance = labelled
        inside = [
            voxels[instance == id if id > 0 else semantic == label] for id, label in zip(found.ids, found.classes, strict=True)
        ]
        return VolumeBatch(
            distance_places=_places(distance),
            distance=torch.from_numpy(distance.values),
            weight_places=_places(weight),
            weight=torch.from_numpy(weight.values),
            mask_voxels=torch.from_numpy(np.concatenate([np.empty(0, np.int32), *inside]).astype(np.int32)),
            mask_ends=torch.from_numpy(np.cumsum([len(mask) for mask in inside], dtype=np.int64)),
            masks_of=torch.tensor([len(inside)]),
            frustum_places=_places(frustum) if frustum else torch.empty((0, 4), dtype=torch.int16),
            frustum=torch.from_numpy(frustum.values if frustum else np.empty((0, *distance.values.shape[1:]), bool)),
            grid=distance.grid,
            truncation=TRUNCATION_VOXELS,
        )

    def _labels_and_weight(self, key: str, row: int) -> "tuple[Blocks, NDArray[Any], NDArray[Any], NDArray[Any]]":
        """Blocks of the weight; voxels that have a label, their classes as they are learned, and their instances."""
        weight, semantic, instance = (self._fields[name] for name in ("weighting", "semantic_3d", "instance_3d"))
        with self._store.guarded(key, row, [semantic, instance]):
            voxels, (classes, instances) = self._store.reader.voxels([semantic, instance], row)
        with self._store.guarded(key, row, [weight]):
            return self._store.reader.blocks(weight, row), voxels, learned_classes(classes, self._labels), instances

    def _own_frustum(self, key: str, row: int) -> "Blocks | None":
        field: Field | None = self._fields.get("outside")
        if field is None:
            return None
        with self._store.guarded(key, row, [field]):
            blocks = self._store.reader.blocks(field, row)
        np.logical_not(blocks.values, out=blocks.values)
        return blocks


def needed_fields(config: DatasetConfig, *, own_frustum: bool) -> set[str]:
    """Names of the fields that examples are made of; with volumes also the frustum, where samples have their own."""
    volumes = {*_VOLUME_FIELDS, *(["outside"] if own_frustum else [])} if config.enable_3d else set()
    return {*_IMAGE_FIELDS, *volumes, *(["geometry"] if config.enable_3d or config.enable_mp_occ else [])}


def _own_classes(store: "Store", config: DatasetConfig) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The stuff and the things of a source of one's own, by its own labels."""
    if config.label_map:
        raise ConfigError(
            f"label_map={config.label_map!r} speaks of the built-in classes; store {store.root} has labels of its own, and what is "
            "learned of them is for its form to say"
        )
    kinds = {
        thing: tuple(label.id for label in store.layout.labels if label.id != VOID and label.thing is thing)
        for thing in (False, True)
    }
    stuff = kinds[False] if config.stuff_classes is None else config.stuff_classes
    return stuff, tuple(label for label in kinds[True] if label not in stuff)


def _true_volumes(grid: int, voxels: NDArray[Any], semantic: NDArray[Any], instance: NDArray[Any]) -> dict[str, Tensor]:
    """The labels of all voxels, dense: what predicted volumes are measured by."""
    found = {}
    for name, dtype, values in (("semantic_3d", torch.uint8, semantic), ("instance_3d", torch.int32, instance)):
        found[name] = torch.zeros((grid,) * 3, dtype=dtype)
        found[name].view(-1)[torch.from_numpy(voxels).long()] = torch.from_numpy(values.astype(np.int32)).to(dtype)
    return found


def _places(blocks: "Blocks") -> Tensor:
    places = np.zeros((len(blocks), 4), np.int16)
    places[:, 1:] = blocks.places
    return torch.from_numpy(places)


def _frustum_blocks(frustum: NDArray[np.bool_]) -> "Blocks":
    from scenemill.transforms.blocks import Blocks, blocked, blocks_with_content

    content = blocks_with_content(frustum, False)
    return Blocks(np.argwhere(content), blocked(frustum)[content], False, len(frustum))


def _generator(seed: int, kind: int, *place: int) -> np.random.Generator:
    """Randomness of its own for every place: equal places, equal numbers."""
    key, counter = (np.array(words, np.uint64) for words in ((seed, kind), (0, 0, *place)))  # a list of large ones becomes floats
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


@lru_cache(maxsize=64)
def _tables(
    intrinsics: bytes,
    image_size: tuple[int, int],
    grid: int,
    planes: int,
    size: tuple[int, int],
    depths: tuple[float, float],
    measured: str,
) -> PlaneTables:
    """The tables of one camera; ``measured`` names the source whose measured camera centre counts, "" for the reference's placing."""
    camera = np.frombuffer(intrinsics, np.float64).reshape(4, 4)
    origin = camera_index(measured, camera, image_size, FULL_GRID) if measured else None
    return plane_tables(camera, image_size, grid, planes=planes, size=size, depth_min=depths[0], depth_max=depths[1], origin=origin)


def _without_far(depth: NDArray[np.float32], nearest: float, furthest: float) -> NDArray[np.float32]:
    """Depths beyond what the sensor is trusted with become invalid: 0."""
    return np.where((depth < nearest) | (depth > furthest), np.float32(0), depth)


def _bounded(depth: NDArray[np.float32], nearest: float, furthest: float) -> NDArray[np.float32]:
    return np.where(depth > 0, np.clip(depth, np.float32(nearest), np.float32(furthest)), depth)
