"""What a model says of a few samples, beside what is true, as 3D checkpoints over the steps of a training.

    <folder>/predicted/pointcloud_0.usd, <folder>/true/pointcloud_0.usd     stage 1: what depth and classes make of the image's pixels
    <folder>/predicted/mesh_0.usd, <folder>/true/mesh_0.usd                 stage 2: surfaces of the volumes, coloured by class

Metres, Y up, seen from where the camera stood; iterations are steps. ``Timelapse`` writes them; any USD viewer opens them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from scenemill.schemas.experiment import ExperimentConfig
from scenemill.schemas.labels import VOID
from scenemill.schemas.steps import reached
from scenemill.trainers.augment import IGNORE_LABEL
from scenemill.trainers.collate import Batch
from scenemill.trainers.metrics import STUFF, form_of
from scenemill.trainers.nvpanoptix3d.stage1 import Stage1Output
from scenemill.trainers.nvpanoptix3d.stage2 import Stage2Output
from scenemill.trainers.predict import images_of, volumes_of
from scenemill.trainers.segments import segments_from_labels
from scenemill.trainers.sidefiles import label_map_of
from scenemill.transforms.geometry import camera_index, voxel_size_m

SAMPLES: Final = 2
"""Of a split: the first ones."""

_EVERY: Final = 2  # pixels; a point for each would say no more
_NAMES: Final = ("predicted", "true")


class Snapshots:
    """Writes the 3D checkpoints of one validation.

    Args:
        folder: of the log.
        step: of the training.
        config: of the experiment.
    """

    def __init__(self, folder: Path, step: int, config: ExperimentConfig) -> None:
        from scenemill.trainers.timelapse import Timelapse

        self._log, self._step, self._config = Timelapse(folder, meters_per_unit=1.0), step, config
        self._seen = 0
        self._log.set_labels({label.id: (label.name, label.color) for label in label_map_of(config.dataset).labels})

    def watch(self, batch: Batch, output: Any) -> None:
        """Write what is said of the first samples; of others nothing.

        Args:
            batch: in the order of the split.
            output: of the network for it, of either stage.
        """
        draw = self._volume if isinstance(output, Stage2Output) else self._image
        for index in range(min(len(batch), SAMPLES - self._seen)):
            draw(batch, output, index)
            self._seen += 1
            reached("scene watched")

    def _image(self, batch: Batch, output: Stage1Output, index: int) -> None:
        padded = (batch["image"].shape[-2], batch["image"].shape[-1])
        found = images_of(output, padded, batch.unpadded, self._config, batch.tensors.get("room_mask"))[index]
        height, width = batch.unpadded[index]
        true = [batch[name][index, :height, :width].cpu().numpy() for name in ("depth", "semantic")]
        true[1] = np.where(np.isin(true[1], (IGNORE_LABEL, self._config.dataset.ignore_label)), VOID, true[1])
        rgb = batch["image"][index, :, :height, :width].permute(1, 2, 0).cpu().numpy()
        camera = self._camera(batch, index, (height, width))
        told = (found.depth.cpu().numpy(), found.semantic_map.cpu().numpy())
        for name, (depth, semantic) in zip(_NAMES, (told, true), strict=True):
            points, seen = back_projected(depth, camera, _EVERY)
            self._add(self._log.add_pointcloud_batch, name, points, rgb[seen], semantic_ids=semantic[seen].astype(np.int32))

    def _camera(self, batch: Batch, index: int, size: tuple[int, int]) -> NDArray[np.float64]:
        """(3, 3) float64, pixels of the image as the network saw it, which may be another size than ``target_size``."""
        width, height = self._config.dataset.target_size
        camera = batch["intrinsic"][index, :3, :3].cpu().numpy().astype(np.float64)
        return np.diag([size[1] / width, size[0] / height, 1.0]) @ camera

    def _volume(self, batch: Batch, output: Stage2Output, index: int) -> None:
        found = volumes_of(output, self._config)[index]
        classes = {segment.id: segment.category_id for segment in found.segments}
        predicted = (found.distance, found.panoptic, classes)
        stuff = label_map_of(self._config.dataset).stuff(STUFF[form_of(self._config.dataset.name)])
        segments = segments_from_labels(batch["semantic_3d"][index], batch["instance_3d"][index], stuff)
        true = (batch["geometry"][index], segments.index, dict(enumerate(segments.classes, 1)))
        camera = batch["intrinsic"][index].cpu().numpy().astype(np.float64)
        for name, (distance, panoptic, labels) in zip(_NAMES, (predicted, true), strict=True):
            self._mesh(name, distance.cpu().numpy(), panoptic.cpu().numpy(), labels, camera)

    def _mesh(
        self, name: str, distance: NDArray[np.float32], panoptic: NDArray[Any], classes: dict[int, int], camera: NDArray[np.float64]
    ) -> None:
        from scenemill.transforms.meshes import panoptic_mesh, upright

        held, grid = self._config.dataset, len(distance)
        mesh = upright(
            panoptic_mesh(
                distance,
                panoptic,
                classes,
                iso=held.iso_value,
                voxel_m=voxel_size_m(grid),
                centre=camera_index(held.name, camera, held.target_size, grid),
                labels=label_map_of(held).labels,
            )
        )
        ids = {"vertex_colors_list": mesh.colors, "semantic_ids_list": mesh.classes}
        self._add(self._log.add_mesh_batch, name, mesh.vertices, mesh.faces, **ids)

    def _add(self, add: Any, category: str, *parts: Any, **more: Any) -> None:
        """One sample, under its number: the samples before it are given nothing, and stay as they are."""

        def batch(part: Any) -> Sequence[Any]:
            return [*[None] * self._seen, part]

        add(self._step, category, *map(batch, parts), **{name: batch(part) for name, part in more.items()})


def back_projected(
    depth: NDArray[np.floating[Any]], camera: NDArray[np.float64], every: int = 1
) -> tuple[NDArray[np.float32], tuple[Any, ...]]:
    """Where pixels with a depth are, in space with Y up and the camera looking along -Z.

    Args:
        depth: (H, W) floats, metres; at most 0 is none.
        camera: (3, 3) float64, pixels of the map.
        every: take the first of so many rows and columns.

    Returns:
        (N, 3) float32, metres; and the row and column of each, for other maps of the same size.

    >>> back_projected(np.full((1, 1), 2.0), np.array([[100.0, 0, -50], [0, 100, -50], [0, 0, 1]]))[0]
    array([[ 1., -1., -2.]], dtype=float32)
    """
    row, column = np.nonzero(depth[::every, ::every] > 0)
    row, column = row * every, column * every
    metres = depth[row, column]
    x, y = (column - camera[0, 2]) / camera[0, 0] * metres, (row - camera[1, 2]) / camera[1, 1] * metres
    return np.stack([x, -y, -metres], axis=1).astype(np.float32), (row, column)
