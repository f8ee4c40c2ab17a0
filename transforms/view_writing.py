"""Writing the files of one view of an object, as ``views.py`` reads them: the same view gives the same bytes."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from scenemill.transforms.view_cameras import ViewMetadata, metadata_document


@dataclass(frozen=True)
class ObjectView:
    """All that the files of one view say; what is None gets no file.

    Attributes:
        rgb: (H, W, 3) uint8.
        labels: (H, W) int32, 0 is background; written as labels and as instance ids.
        depth: (H, W) float32, along the view axis; 0 where nothing is seen.
        normals: (H, W, 3) float32, unit vectors of the world; 0 where nothing is seen.
    """

    rgb: NDArray[np.uint8]
    labels: NDArray[np.int32] | None = None
    depth: NDArray[np.float32] | None = None
    normals: NDArray[np.float32] | None = None


def write_view(folder: Path, number: int, view: ObjectView, metadata: ViewMetadata) -> None:
    """Write the files of a view; boxes around what has a label are added to the metadata.

    Args:
        folder: of the scene, which is there.
        number: of the view.
        view: what its maps hold.
        metadata: its camera.
    """
    path = folder / str(number)
    Image.fromarray(view.rgb).save(f"{path}_rgb.png")
    if view.labels is not None:
        metadata = replace(metadata, boxes=_boxes(view.labels))
        np.save(f"{path}_semantic.npy", view.labels)
        np.save(f"{path}_instance.npy", view.labels)
    if view.depth is not None:
        np.save(f"{path}_depth_linear.npy", view.depth)
    if view.normals is not None:
        seen = view.normals.any(axis=-1, keepdims=True)
        Image.fromarray(np.where(seen, np.rint(127.5 * view.normals + 127.5), 0).astype(np.uint8)).save(f"{path}_normals.png")
    document = json.dumps(metadata_document(metadata), indent=1)
    (folder / f"{number}_metadata.json").write_text(document + "\n", encoding="utf-8")


def _boxes(labels: NDArray[np.int32]) -> Mapping[str, Any]:
    """The bounding box of what has a label, in pixels that it holds; drawn from pixels, the tight and the loose one are the same."""
    rows, columns = np.nonzero(labels)
    if not rows.size:
        return {"bbox_2d_tight": [], "bbox_2d_loose": []}
    ends = {"x_min": columns.min(), "y_min": rows.min(), "x_max": columns.max(), "y_max": rows.max()}
    box = {"file": ".", "class": "asset", "bbox": {name: int(end) for name, end in ends.items()}}
    return {"bbox_2d_tight": [box], "bbox_2d_loose": [box]}
