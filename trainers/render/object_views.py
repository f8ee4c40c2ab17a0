"""The views of one object as a fit reads them from a store: images, masks and cameras."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scenemill.schemas.errors import ConfigError
from scenemill.trainers.order import hash_range


class ViewBatch(NamedTuple):
    """Some views, stacked.

    Attributes:
        image: (B, H, W, 3) float32 in [0, 1], black beside the object.
        mask: (B, H, W) float32, 1 on the object.
        camera_transform: (B, 4, 3) float32, camera from world, for rows.
        camera_projection: (B, 3, 1) float32.
    """

    image: Tensor
    mask: Tensor
    camera_transform: Tensor
    camera_projection: Tensor


@dataclass(frozen=True, eq=False)
class ObjectViews:
    """Views of one object, read when they are asked for.

    Attributes:
        store: an open ``transforms.store.Store`` of the source ``views``.
        keys: of its samples.
        unit: lengths of the scene are multiplied by it.
    """

    store: Any
    keys: tuple[str, ...]
    unit: float = 1.0

    def __post_init__(self) -> None:
        if not self.keys:
            raise ConfigError(f"store {self.store.root}: no views to fit; name a split that has some")
        lacking = [key for key in self.keys if "semantic" not in self.store.facts(key)["fields"]]
        if lacking:
            raise ConfigError(
                f"{lacking[0]}: a view without a mask, one of {len(lacking)}; a fit needs the semantic map of every view"
            )
        if len({self._size(key) for key in self.keys}) > 1:
            raise ConfigError(f"store {self.store.root}: views of several sizes; render them at one size")

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the images in pixels."""
        return self._size(self.keys[0])

    def _size(self, key: str) -> tuple[int, int]:
        facts = self.store.facts(key)
        return facts["image_height_pixel"], facts["image_width_pixel"]

    def read(self, places: Sequence[int], device: torch.device | str = "cpu") -> ViewBatch:
        """Views by their places in ``keys``.

        Raises:
            Corrupt: the store is damaged there.
        """
        fields = ("rgb", "semantic", "camera_transform", "camera_projection")
        samples = [self.store.read(self.keys[place], list(fields)) for place in places]
        rgb, semantic, transform, projection = (np.stack([sample[name] for sample in samples]) for name in fields)
        mask = (semantic > 0).astype(np.float32)
        image = rgb.astype(np.float32) / 255 * mask[..., None]
        transform = transform * np.array([[1.0]] * 3 + [[self.unit]])  # the last row is the translation
        return ViewBatch(*(torch.from_numpy(part.astype(np.float32)).to(device) for part in (image, mask, transform, projection)))

    def order(self, seed: int, epoch: int) -> NDArray[np.int64]:
        """(N,) int64: the places of all views in the order of an epoch; the same for ever."""
        return np.argsort(hash_range(len(self), seed, epoch), kind="stable")
