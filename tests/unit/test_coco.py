"""Labels as COCO's panoptic segments, and cameras that come back to the bit."""

import json

import numpy as np
import pytest

from scenemill.schemas.errors import ConfigError
from scenemill.schemas.labels import LABELS
from scenemill.transforms.coco import colors_of, segment_map, segments_of
from scenemill.transforms.view_cameras import ViewMetadata, exact_document, field_of_view, projection_of, read_metadata


def test_stuff_is_one_segment_and_things_are_told_apart() -> None:
    semantic = np.array([[10, 10, 3], [0, 10, 3], [3, 0, 3]], np.uint8)
    instance = np.array([[1, 2, 500], [9, 3, 500], [7, 0, 0]], np.uint16)
    ids = segment_map(semantic, instance, LABELS)
    wall, chair = 10 << 16, 3 << 16
    assert ids.tolist() == [[wall, wall, chair + 500], [0, wall, chair + 500], [chair + 7, 0, chair]]
    assert segments_of(ids, LABELS) == [
        {"id": chair, "category_id": 3, "area": 1, "bbox": [2, 2, 1, 1], "iscrowd": 1},
        {"id": chair + 7, "category_id": 3, "area": 1, "bbox": [0, 2, 1, 1], "iscrowd": 0},
        {"id": chair + 500, "category_id": 3, "area": 2, "bbox": [2, 0, 1, 2], "iscrowd": 0},
        {"id": wall, "category_id": 10, "area": 3, "bbox": [0, 0, 2, 2], "iscrowd": 0},
    ]


def test_colors_hold_ids_of_every_class_and_instance() -> None:
    semantic = np.full((1, 3), 12, np.uint8)
    semantic[0, 1:] = 9
    instance = np.array([[65_535, 65_535, 256]], np.uint16)
    colors = colors_of(segment_map(semantic, instance, LABELS))
    assert colors.tolist() == [[[0, 0, 12], [255, 255, 9], [0, 1, 9]]]


def test_classes_without_a_label_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"class ids \[77\] have no label"):
        segment_map(np.full((2, 2), 77, np.uint8), np.zeros((2, 2), np.uint16), LABELS)


def test_written_lenses_give_the_very_projection_they_were_read_from() -> None:
    rng = np.random.default_rng(5)
    for _ in range(300):
        aperture, focal = rng.uniform(5, 60), rng.uniform(4, 200)
        image = (int(rng.integers(8, 2000)), int(rng.integers(8, 2000)))
        projection = projection_of(field_of_view(aperture, focal), image)
        metadata = ViewMetadata(rng.normal(size=(4, 3)), projection, image, (0.1, 9.0), (), {})
        read = read_metadata(json.dumps(exact_document(metadata)).encode())
        assert read.projection.tobytes() == projection.tobytes()
        assert read.transform.tobytes() == metadata.transform.tobytes()


def test_projection_of_no_lens_is_refused() -> None:
    metadata = ViewMetadata(np.zeros((4, 3)), np.array([[1.0], [2.0], [-1.0]]), (10, 10), (0.1, 9.0), (), {})
    with pytest.raises(ConfigError, match="no lens"):
        exact_document(metadata)
