"""What the contact sheet shows, and where."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from scenemill.pipelines.reports.sheet import (
    FREE,
    MARGIN,
    SIDE,
    VIEWS,
    WIDTH,
    Cut,
    contact_sheet,
    cut_of,
    depth_colors,
    distance_colors,
    instance_colors,
    label_colors,
    ramp,
    slice_of,
    weight_colors,
    write_sheet,
)
from scenemill.schemas.errors import ConfigError
from scenemill.schemas.fields import fields_of
from scenemill.schemas.labels import LABELS
from scenemill.schemas.sample import Sample
from scenemill.transforms.layout import Layout

LAMP, WALL = LABELS[8], LABELS[10]


def make_sample(grid: int, source: str = "front3d", image: tuple[int, int] = (24, 32)) -> Sample:
    """A view in which every array holds its fill value, depth is 2 m and colour grey."""
    arrays: dict[str, NDArray[Any]] = {
        field.name: np.full(field.shape(grid, image), field.fill, field.dtype) for field in fields_of(source)
    }
    arrays["rgb"][:] = 128
    arrays["depth"][:] = 2.0
    return Sample("scene/0001", arrays)


def places_of(sheet: Image.Image, color: tuple[int, int, int]) -> NDArray[np.intp]:
    """(N, 2): row and column of every pixel of exactly this colour."""
    return np.argwhere((np.asarray(sheet) == color).all(axis=-1))


def corner_of(sheet: Image.Image) -> tuple[int, int]:
    """Row and column where the slices of classes begin: the only wide areas in the colour of free space."""
    free = (np.asarray(sheet) == FREE).all(axis=-1)
    return int(np.flatnonzero(free.sum(axis=1) > SIDE)[0]), int(np.flatnonzero(free.sum(axis=0) > SIDE / 2)[0])


@pytest.mark.parametrize("axis", [view.axis for view in VIEWS])
def test_a_slice_shows_a_voxel_where_the_view_says(axis: str) -> None:
    volume = np.zeros((16, 16, 16), np.uint8)
    x, y, z = 3, 5, 11
    volume[x, y, z] = 1
    shown = {"z": (y, x), "y": (15 - z, x), "x": (y, z)}[axis]
    assert np.argwhere(slice_of(volume, axis, {"x": x, "y": y, "z": z}[axis])).tolist() == [list(shown)]


@pytest.mark.parametrize("grid", [16, 64])
def test_a_voxel_is_at_the_right_spot_of_all_three_panels(grid: int) -> None:
    sample = make_sample(grid)
    x, y, z = grid // 4, grid // 2, grid - 3
    sample["semantic_3d"][0, 0, 0] = sample["semantic_3d"][-1, -1, -1] = WALL.id
    sample["semantic_3d"][x, y, z] = LAMP.id
    assert cut_of(sample["semantic_3d"]) == Cut({"x": x, "y": y, "z": z}, {"x": 0, "y": 0, "z": 0}, grid)
    sheet = contact_sheet(sample, "front3d")
    top, left = corner_of(sheet)
    assert left == MARGIN
    scale = SIDE // grid
    for panel, (row, column) in enumerate([(y, x), (grid - 1 - z, x), (y, z)]):
        first = left + panel * (SIDE + MARGIN)
        found = places_of(sheet.crop((first, top, first + SIDE, top + SIDE)), LAMP.color)
        assert found.min(axis=0).tolist() == [row * scale, column * scale]
        assert found.max(axis=0).tolist() == [(row + 1) * scale - 1, (column + 1) * scale - 1]
        assert len(found) == scale * scale


def test_the_cut_goes_through_things_and_the_window_holds_all_labels() -> None:
    labels = np.zeros((64, 64, 64), np.uint8)
    labels[20:30, 40, 20:30] = WALL.id
    labels[25, 35:41, 28] = LAMP.id
    cut = cut_of(labels)
    assert (cut.index["x"], cut.index["z"]) == (25, 28)
    assert 35 <= cut.index["y"] <= 40
    assert SIDE % cut.size == 0
    for axis, (low, high) in {"x": (20, 29), "y": (35, 40), "z": (20, 29)}.items():
        assert cut.start[axis] <= low <= high < cut.start[axis] + cut.size <= 64


def test_without_things_the_cut_goes_through_what_is_labelled_and_else_through_the_middle() -> None:
    labels = np.zeros((16, 16, 16), np.uint8)
    assert cut_of(labels) == Cut({"x": 8, "y": 8, "z": 8}, {"x": 0, "y": 0, "z": 0}, 16)
    labels[:, 12, :] = WALL.id
    assert cut_of(labels).index["y"] == 12


def test_image_labels_are_shown_in_their_colors_where_they_are() -> None:
    sample = make_sample(16, image=(240, 320))
    sample["semantic_2d"][200:210, 10:30] = LAMP.id
    sheet = contact_sheet(sample, "front3d")
    gap = (WIDTH - 2 * MARGIN - 4 * 320) // 3
    left = MARGIN + 2 * (320 + gap)
    found = places_of(sheet.crop((left, 0, left + 320, 500)), LAMP.color)
    assert len(found) == 200
    black = places_of(sheet.crop((left, 0, left + 320, 500)), (0, 0, 0))
    assert (found.min(axis=0) - black.min(axis=0)).tolist() == [200, 10]


def test_the_legend_names_exactly_the_classes_that_are_there() -> None:
    sample = make_sample(16)
    sample["semantic_3d"][3, 3, 3] = LAMP.id
    sheet = contact_sheet(sample, "front3d")
    shown = {label.name for label in LABELS if len(places_of(sheet, label.color)) > 100}
    assert shown == {"void", "lamp"}


def test_invalid_depth_is_marked_and_near_is_brighter_than_far() -> None:
    depth = np.array([[0.0, 1.0, 3.0, np.nan]], np.float32)
    colors, near, far = depth_colors(depth)
    assert (near, far) == (1.0, 3.0)
    assert colors[0, 0].tolist() == colors[0, 3].tolist() == [255, 0, 255]
    assert (colors[0, 1].tolist(), colors[0, 2].tolist()) == ([253, 231, 37], [68, 1, 84])
    nothing, near, far = depth_colors(np.zeros((2, 2), np.float32))
    assert (near, far) == (0.0, 0.0)
    assert (nothing == (255, 0, 255)).all()


def test_signed_distances_are_white_at_the_surface_and_the_fill_is_set_apart() -> None:
    geometry = {
        source: next(field for field in fields_of(source) if field.name == "geometry") for source in ("front3d", "matterport")
    }
    signed = distance_colors(np.array([-12.0, -11.9, 0.0, 12.0], np.float32), geometry["matterport"])
    assert signed[2].tolist() == [247, 247, 247]
    assert signed[1, 2] > signed[1, 0]  # blue behind the surface
    assert signed[3, 0] > signed[3, 2]  # red before it
    unsigned = distance_colors(np.array([12.0, 11.9, 0.0], np.float32), geometry["front3d"])
    assert unsigned[2].tolist() == [253, 231, 37]
    assert signed[0].tolist() == unsigned[0].tolist() != unsigned[1].tolist()


def test_instance_colors_are_stable_and_distinct() -> None:
    ids = np.arange(0, 60)
    colors = instance_colors(ids)
    assert colors[0].tolist() == [0, 0, 0]
    assert len({tuple(color) for color in colors.tolist()}) == 60
    assert instance_colors(np.array([[7, 0], [41, 7]])).tolist() == colors[[[7, 0], [41, 7]]].tolist()


def test_colors_of_labels_weights_and_shares() -> None:
    assert label_colors(np.array([8, 200])).tolist() == [list(LAMP.color), [255, 0, 255]]
    assert ramp(np.array([0.0, 0.5, 1.0])).tolist() == [[68, 1, 84], [33, 144, 141], [253, 231, 37]]
    weights = weight_colors(np.array([1, 2, 5, 10]), 10)
    assert len({tuple(color) for color in weights.tolist()}) == 4
    assert (weights[0].tolist(), weights[3].tolist()) == ([68, 1, 84], [253, 231, 37])


@pytest.mark.parametrize(
    ("source", "lacks"), [("front3d", ()), ("matterport", ()), ("matterport", ("room_mask", "room", "weighting", "rgb"))]
)
def test_missing_fields_are_left_out(source: str, lacks: tuple[str, ...]) -> None:
    whole = make_sample(16, source)
    part = Sample(whole.key, {name: array for name, array in whole.arrays.items() if name not in lacks})
    heights = [contact_sheet(sample, source).height for sample in (whole, part)]
    assert heights[0] - heights[1] >= (SIDE if "weighting" in lacks else 0)
    assert contact_sheet(part, source).width == WIDTH


def test_a_sample_without_arrays_is_a_title() -> None:
    assert contact_sheet(Sample("scene/0001", {}), "front3d").size[0] == WIDTH


def test_an_unknown_source_is_refused() -> None:
    with pytest.raises(ConfigError, match="not known"):
        contact_sheet(make_sample(16), "kitti")


def test_facts_are_told_in_the_title_and_the_sheet_is_written_as_png(tmp_path: Path) -> None:
    bare = make_sample(16)
    facts = {"split": "train", "things_2d": 3, "things_3d": 2, "voxels_labelled": 22623, "depth_min_m": 0.9, "depth_max_m": 4.0}
    told = Sample(
        bare.key, bare.arrays, {**facts, "depth_valid_share": 1.0, "classes_3d": [3, 10], "labels_agree_share": 0.99, "warnings": 0}
    )
    write_sheet(told, Layout("front3d", 16, (12, 16), 4, "float32"), tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as written:
        assert written.format == "PNG"
        assert written.convert("RGB").tobytes() == contact_sheet(told, "front3d").tobytes()
        line = np.asarray(written)[MARGIN + 30 : MARGIN + 60]
    assert (line != 255).any()
    assert np.flatnonzero((line != 255).any(axis=(0, 2))).max() < WIDTH - MARGIN


def test_room_mask_takes_the_place_of_the_room() -> None:
    sample = make_sample(16, "matterport", (240, 320))
    sample["room_mask"][:, :160] = 255
    sheet = contact_sheet(sample, "matterport")
    found = places_of(sheet, (230, 230, 230))
    width = 256
    assert len(found) == width // 2 * 192
    assert found[:, 1].min() == MARGIN + 4 * (width + (WIDTH - 2 * MARGIN - 5 * width) // 4)
