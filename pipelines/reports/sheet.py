"""A contact sheet: all that one stored sample holds, on one page for the eye.

Every panel is natural to look at: x to the right and y down as in the image. Seen from the side, z runs to the right; seen from
above, z runs up, away from the camera.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from scenemill.schemas.fields import SOURCES, Field, fields_of
from scenemill.schemas.labels import LABELS, Label
from scenemill.schemas.sample import Sample
from scenemill.transforms.layout import Layout

SIDE: Final = 384
"""Width and height of a slice of a volume, in pixels: a multiple of most grids."""

WIDTH: Final = 1400
MARGIN: Final = 24
FREE: Final = (238, 240, 243)
"""Colour of free space in slices of classes."""

_TITLE: Final = 26
_NAME: Final = 17
_SMALL: Final = 14
_INK: Final = (29, 37, 48)
_FAINT: Final = (90, 101, 114)
_PAPER: Final = (255, 255, 255)
_STRANGE: Final = (255, 0, 255)
_UNSEEN: Final = (40, 40, 44)
_AIR: Final = 4  # voxels around the labelled ones: the band of weights reaches 3 beyond a surface

KNOWN: Final = frozenset(field.name for source in SOURCES for field in fields_of(source))
"""Fields of the built-in sources; only a source of one's own has others."""

Colors = NDArray[np.uint8]
Color = tuple[int, int, int]

_VIRIDIS: Final = (
    *((68, 1, 84), (71, 44, 122), (59, 81, 139), (44, 113, 142), (33, 144, 141)),
    *((39, 173, 129), (92, 200, 99), (170, 220, 50), (253, 231, 37)),
)
"""Nine points of the colour map viridis: equal steps look equal, also in grey and to the colour-blind."""

_BLUE_RED: Final = (
    *((33, 102, 172), (67, 147, 195), (146, 197, 222), (209, 229, 240), (247, 247, 247)),
    *((253, 219, 199), (244, 165, 130), (214, 96, 77), (178, 24, 43)),
)
"""ColorBrewer's RdBu with nine classes, blue first: white is the surface."""


@dataclass(frozen=True)
class View:
    """One of the three orthogonal cuts through a volume.

    Attributes:
        axis: the axis it is cut across.
        name: what one sees.
        right: the axis that runs to the right.
        other: the third axis.
        way: where that one runs.
    """

    axis: str
    name: str
    right: str
    other: str
    way: str


VIEWS: Final = (
    View("z", "front view", "x", "y", "down"),
    View("y", "top view", "x", "z", "up"),
    View("x", "side view", "z", "y", "down"),
)


def write_sheet(sample: Sample, layout: Layout, path: Path) -> None:
    """Write the contact sheet of a sample of a store as a PNG."""
    contact_sheet(sample, layout.source, layout.own_fields, layout.labels).save(path, format="PNG")


def contact_sheet(sample: Sample, source: str, own_fields: Sequence[Field] = (), labels: Sequence[Label] = LABELS) -> Image.Image:
    """The contact sheet of a sample: images, legend, and three slices of every volume.

    Args:
        sample: as stored; fields it lacks are left out. What ``facts`` holds is told in the title.
        source: one of ``schemas.fields.SOURCES``.
        own_fields: of a source of one's own; () for a built-in one.
        labels: names and colours of classes.

    Returns:
        RGB, 1400 pixels wide.

    Raises:
        ConfigError: no such source.
    """
    fields = {field.name: field for field in own_fields or fields_of(source) if field.name in sample}
    rows = [_title(sample, own=bool(own_fields)), _images(sample, fields, labels), _legend(_classes(sample, labels))]
    volumes = [field for field in fields.values() if field.name in ("geometry", "semantic_3d", "weighting")]
    if volumes:
        known = sample["semantic_3d"] if "semantic_3d" in fields else np.zeros_like(sample[volumes[0].name], np.uint8)
        cut = cut_of(known)
        rows.extend(_volume(sample[field.name], field, cut, labels) for field in volumes)
    return _below([row for row in rows if row.height], MARGIN, MARGIN)


@dataclass(frozen=True)
class Cut:
    """Which planes of the volumes are shown, and which part of them.

    Attributes:
        index: axis -> the plane across it.
        start: axis -> first voxel shown.
        size: voxels shown along every axis.
    """

    index: Mapping[str, int]
    start: Mapping[str, int]
    size: int


def cut_of(labels: NDArray[Any]) -> Cut:
    """Where to cut the volumes of a sample.

    Args:
        labels: (X, Y, Z), the classes of its voxels.

    Returns:
        For every axis the plane with the most voxels of things (of any class, where there are no things), and a window that holds
        all labelled voxels in whole pixels; without labels the middle of the whole grid.
    """
    grid = labels.shape[0]
    places = np.nonzero(labels)
    if not places[0].size:
        return Cut(dict.fromkeys("xyz", grid // 2), dict.fromkeys("xyz", 0), grid)
    things = np.isin(labels[places], [label.id for label in LABELS if label.thing])
    shown = [place[things] if things.any() else place for place in places]
    index = {axis: int(np.bincount(place).argmax()) for axis, place in zip("xyz", shown, strict=True)}
    extent = max(int(place.max() - place.min()) + 1 for place in places)
    fitting = (size for size in range(extent + 2 * _AIR, SIDE + 1) if SIDE % size == 0)
    size = min(grid, next(fitting, grid))
    middle = [(int(place.max()) + int(place.min()) + 1 - size) // 2 for place in places]
    return Cut(index, {axis: min(max(0, low), grid - size) for axis, low in zip("xyz", middle, strict=True)}, size)


def slice_of(volume: NDArray[Any], axis: str, index: int) -> NDArray[Any]:
    """One plane of an (X, Y, Z) volume as rows and columns of a picture, in the orientation that ``VIEWS`` tells.

    >>> volume = np.zeros((4, 4, 4)); volume[0, 1, 3] = 7
    >>> [np.argwhere(slice_of(volume, axis, index)).tolist() for axis, index in (("z", 3), ("y", 1), ("x", 0))]
    [[[1, 0]], [[0, 0]], [[1, 3]]]
    """
    if axis == "z":
        return volume[:, :, index].T
    return volume[:, index, :].T[::-1] if axis == "y" else volume[index]


def label_colors(labels: NDArray[Any], known: Sequence[Label] = LABELS) -> Colors:
    """Classes in the colours of a list, that of ``schemas/labels.py`` if none is given; magenta for one that is not in it."""
    table = np.full((256, 3), _STRANGE, np.uint8)
    for label in known:
        table[label.id] = label.color
    colors: Colors = table[labels]
    return colors


def voxel_colors(labels: NDArray[Any], known: Sequence[Label] = LABELS) -> Colors:
    """Classes of voxels in the same colours; free space is light, for some of the colours are nearly black."""
    return np.where((labels == 0)[..., None], np.array(FREE, np.uint8), label_colors(labels, known))


def instance_colors(instances: NDArray[Any]) -> Colors:
    """A colour per id, the same in every picture; 0 is black.

    Steps of the golden ratio and its relatives keep neighbouring ids apart in hue, saturation and brightness.
    """
    ids, place = np.unique(instances, return_inverse=True)
    hue = (ids * 0.6180339887) % 1
    saturation = 0.45 + 0.5 * ((ids * 0.7548776662) % 1)
    value = np.where(ids == 0, 0, 0.65 + 0.35 * ((ids * 0.5698402910) % 1))
    channel = np.abs((hue[:, None] * 6 + np.array([0, 4, 2])) % 6 - 3) - 1
    bright = value[:, None] * (1 - saturation[:, None] * (1 - np.clip(channel, 0, 1)))
    colors: Colors = (255 * bright).astype(np.uint8)[place.reshape(instances.shape)]
    return colors


def ramp(share: NDArray[Any], points: Sequence[Color] = _VIRIDIS) -> Colors:
    """Colours for shares of 0 to 1."""
    at = np.linspace(0, 1, len(points))
    channels = [np.interp(share, at, [point[channel] for point in points]) for channel in range(3)]
    colors: Colors = np.rint(np.stack(channels, axis=-1)).astype(np.uint8)
    return colors


def depth_colors(depth: NDArray[Any]) -> tuple[Colors, float, float]:
    """Depth from near (bright) to far (dark), invalid pixels magenta; and the nearest and farthest depth in metres."""
    valid = np.isfinite(depth) & (depth > 0)
    near, far = (float(depth[valid].min()), float(depth[valid].max())) if valid.any() else (0.0, 0.0)
    share = (far - np.where(valid, depth, far)) / max(far - near, 1e-6)
    return np.where(valid[..., None], ramp(share), np.array(_STRANGE, np.uint8)), near, far


def distance_colors(distance: NDArray[Any], field: Field) -> Colors:
    """Distances: surfaces bright, far dark; signed ones white at the surface, red before and blue behind it. The fill is grey."""
    fill = float(field.fill)
    colors = ramp(1 - distance / fill) if fill > 0 else ramp((distance - fill) / (-2 * fill), _BLUE_RED)
    return np.where((distance == fill)[..., None], np.array(_UNSEEN, np.uint8), colors)


def weight_colors(weights: NDArray[Any], most: int) -> Colors:
    """Weights from 1 (dark) to ``most`` (bright) in equal ratios."""
    return ramp(np.log(np.maximum(weights, 1)) / np.log(max(most, 2)))


def _title(sample: Sample, *, own: bool) -> Image.Image:
    return _below([_text(sample.key, _TITLE), _text(_facts(sample.facts, own), _SMALL, _FAINT)], 8)


def _facts(facts: Mapping[str, Any], own: bool) -> str:
    """What is known of the sample, in one line."""
    told: tuple[tuple[str, Callable[[], str]], ...] = (
        ("split", lambda: f"split {facts['split'] or 'unknown'}"),
        *(_facts_of_own(facts) if own else _facts_of_object(facts) if facts.get("grid") == 0 else _facts_of_room(facts)),
        ("warnings", lambda: f"{facts['warnings']} warnings"),
    )
    return "  |  ".join(say() for name, say in told if facts.get(name) is not None)


def _facts_of_room(facts: Mapping[str, Any]) -> tuple[tuple[str, Callable[[], str]], ...]:
    return (
        ("depth_max_m", lambda: f"{_depth_range(facts, 'm')}, {facts['depth_valid_share']:.1%} valid"),
        ("classes_3d", lambda: f"{sum(label > 0 for label in facts['classes_3d'])} classes"),
        ("things_2d", lambda: f"things: {facts['things_2d']} in the image, {facts['things_3d']} in the volume"),
        ("voxels_labelled", lambda: f"{facts['voxels_labelled']:,} voxels labelled"),
        ("labels_agree_share", lambda: f"labels of pixels and voxels agree in {facts['labels_agree_share']:.1%}"),
    )


def _facts_of_object(facts: Mapping[str, Any]) -> tuple[tuple[str, Callable[[], str]], ...]:
    return (
        ("depth_max_m", lambda: _depth_range(facts, "units of the scene") if facts["depth_max_m"] else "no depth"),
        ("things_2d", lambda: f"labels: {facts['things_2d']}"),
    )


def _facts_of_own(facts: Mapping[str, Any]) -> tuple[tuple[str, Callable[[], str]], ...]:
    return (
        ("depth_max_m", lambda: f"{_depth_range(facts, 'm')}, {facts['depth_valid_share']:.1%} valid"),
        (
            "classes_2d",
            lambda: f"{sum(label > 0 for label in facts['classes_2d'])} classes, {facts['things_2d']} things in the image",
        ),
    )


def _depth_range(facts: Mapping[str, Any], unit: str) -> str:
    return f"depth {facts['depth_min_m']:.2f} to {facts['depth_max_m']:.2f} {unit}"


def _images(sample: Sample, fields: Mapping[str, Field], labels: Sequence[Label]) -> Image.Image:
    """The image row: colour, depth, classes, instances, and the room of the view; of an object its mask and normals; and what a
    source of one's own has besides."""
    room = "room_mask" if "room_mask" in fields else "room"
    of_object = ("semantic", "instance", "depth", "normals") if "camera_transform" in fields else ()
    names = [name for name in ("rgb", *(of_object or ("depth", "semantic_2d", "instance_2d", room))) if name in fields]
    names += [name for name, field in fields.items() if name not in KNOWN and field.axes == ("row", "column")]
    width = 320 if len(names) <= 4 else min(256, (WIDTH - 2 * MARGIN) // len(names) - 12)
    panels = []
    for name in names:
        colors, detail, bar = _image_colors(sample[name], fields[name], labels)
        height = round(width * colors.shape[0] / colors.shape[1])
        picture = _scaled(colors, width, height, smooth=name == "rgb")
        if name == "instance_2d":
            _write_ids(picture, sample[name])
        panels.append(_panel(picture, fields[name], detail, bar))
    return _beside(panels, (WIDTH - 2 * MARGIN - width * len(panels)) // max(1, len(panels) - 1))


def _image_colors(array: NDArray[Any], field: Field, labels: Sequence[Label]) -> tuple[Colors, str, Image.Image | None]:
    """Colours of one image-shaped field, what to say of it, and its scale."""
    if field.name == "rgb":
        return array, f"{array.shape[1]} x {array.shape[0]} pixels", None
    if field.name == "normals":
        return array, "red, green, blue: x, y, z of the world", None
    if field.name == "depth":
        return _depth_panel(array, field)
    if field.name == "semantic_2d":
        return label_colors(array, labels), f"{len(np.unique(array[array > 0]))} classes", None
    if field.name == "semantic":
        share = np.count_nonzero(array) / array.size
        return instance_colors(array), f"mask: {share:.1%} of the image; labels: {len(np.unique(array[array > 0]))}", None
    if field.name in ("instance_2d", "instance"):
        return instance_colors(array), f"{len(np.unique(array[array > 0]))} ids", None
    if field.name == "room":
        return instance_colors(array), "black is the room of the view", None
    if field.name not in KNOWN:
        return _plain_panel(array)
    return np.repeat((array > 0)[..., None], 3, axis=2) * np.uint8(230), "white is the room of the view", None


def _plain_panel(array: NDArray[Any]) -> tuple[Colors, str, None]:
    """A map that nothing is known of: its least value dark, its greatest bright, magenta where it is no number."""
    known = np.isfinite(array)
    low, high = (float(array[known].min()), float(array[known].max())) if known.any() else (0.0, 0.0)
    share = (np.where(known, array, low).astype(np.float64) - low) / max(high - low, 1e-12)
    return np.where(known[..., None], ramp(share), np.array(_STRANGE, np.uint8)), f"{low:g} (dark) to {high:g} (bright)", None


def _depth_panel(depth: NDArray[Any], field: Field) -> tuple[Colors, str, Image.Image]:
    """Depth in colours. In a room every pixel should have one, so magenta stands out; around an object there is nothing to see."""
    colors, near, far = depth_colors(depth)
    bar = _scale(220, near, far, field.unit)
    unseen = 1 - np.count_nonzero(depth > 0) / depth.size
    if field.unit != "m":
        return np.where((depth > 0)[..., None], colors, np.array(_UNSEEN, np.uint8)), f"{unseen:.1%} see nothing, grey", bar
    return colors, f"{unseen:.1%} invalid, magenta" if unseen else "no invalid pixel", bar


def _write_ids(picture: Image.Image, instances: NDArray[Any]) -> None:
    """Write the id of every instance that takes at least one pixel of 100 at the pixel nearest to its middle."""
    draw = ImageDraw.Draw(picture)
    for instance, count in zip(*np.unique(instances, return_counts=True), strict=True):
        if instance == 0 or count < instances.size / 100:
            continue
        places = np.argwhere(instances == instance)
        row, column = places[np.argmin(((places - places.mean(axis=0)) ** 2).sum(axis=1))]
        at = (column * picture.width / instances.shape[1], row * picture.height / instances.shape[0])
        draw.text(at, str(instance), fill="white", stroke_fill="black", stroke_width=2, font=_font(_SMALL), anchor="mm")


def _volume(volume: NDArray[Any], field: Field, cut: Cut, labels: Sequence[Label]) -> Image.Image:
    """Three slices of a volume and a key to their colours."""
    paint, key = _painter(volume, field, labels)
    x, y, z = (slice(cut.start[axis], cut.start[axis] + cut.size) for axis in "xyz")
    panels = []
    for view in VIEWS:
        plane = slice_of(volume[x, y, z], view.axis, cut.index[view.axis] - cut.start[view.axis])
        ends = {axis: f"{axis} {start}..{start + cut.size - 1}" for axis, start in cut.start.items()}
        detail = f"{view.name}, {view.axis} = {cut.index[view.axis]}: {ends[view.right]} right, {ends[view.other]} {view.way}"
        panels.append(_panel(_scaled(paint(plane), SIDE, SIDE), field, detail))
    return _beside([*panels, key], MARGIN)


def _painter(volume: NDArray[Any], field: Field, labels: Sequence[Label]) -> tuple[Callable[[NDArray[Any]], Colors], Image.Image]:
    """How to colour slices of a volume, and a key to the colours."""
    if field.name == "geometry":
        unsigned, limit = float(field.fill) > 0, abs(float(field.fill))
        bar = _scale(110, 0.0 if unsigned else -limit, limit, field.unit, _VIRIDIS[::-1] if unsigned else _BLUE_RED)
        note = _legend([("far or unseen" if unsigned else "unseen", _UNSEEN)], 1)
        return lambda plane: distance_colors(plane, field), _below([_text("distance", _SMALL), bar, note], 6)
    if field.name == "weighting":
        found = np.flatnonzero(np.bincount(volume.reshape(-1), minlength=2))
        most = int(found.max())
        entries = [(f"weight {weight}", _color(weight_colors(np.array(weight), most))) for weight in found.tolist()]
        return lambda plane: weight_colors(plane, most), _legend(entries, 1)
    key = _legend([("free space", FREE), *_classes_of(volume[volume > 0], labels)], 1)
    return lambda plane: voxel_colors(plane, labels), key


def _classes(sample: Sample, labels: Sequence[Label]) -> list[tuple[str, Color]]:
    """Names and colours of the classes that the image or the volume shows."""
    arrays = [sample["semantic_2d"].reshape(-1)] if "semantic_2d" in sample else []
    if "semantic_3d" in sample:
        arrays.append(sample["semantic_3d"][sample["semantic_3d"] > 0])
    return _classes_of(np.concatenate(arrays), labels) if arrays else []


def _classes_of(ids: NDArray[Any], labels: Sequence[Label]) -> list[tuple[str, Color]]:
    found = np.flatnonzero(np.bincount(ids.reshape(-1), minlength=1)).tolist()
    names = {label.id: label.name for label in labels}
    return [(f"{id} {names.get(id, 'unknown')}", _color(label_colors(np.array(id), labels))) for id in found]


def _color(values: NDArray[Any]) -> Color:
    red, green, blue = values.tolist()
    return red, green, blue


def _legend(entries: Sequence[tuple[str, Color]], columns: int = 0) -> Image.Image:
    """Colour patches with names, in ``columns`` columns; 0 for all in one line."""
    patches = []
    for name, color in entries:
        patch = Image.new("RGB", (16, 16), color)
        ImageDraw.Draw(patch).rectangle((0, 0, 15, 15), outline=_FAINT)
        patches.append(_beside([patch, _text(name, _SMALL)], 6))
    return _below(patches, 4) if columns else _beside(patches, 18)


def _scale(width: int, low: float, high: float, unit: str, points: Sequence[Color] = _VIRIDIS[::-1]) -> Image.Image:
    """A colour bar from ``low`` to ``high``, its ends and middle written below."""
    scale = Image.new("RGB", (width + 30, 34), _PAPER)
    bar = np.repeat(ramp(np.linspace(0, 1, width), points)[None], 12, axis=0)
    scale.paste(Image.fromarray(bar), (0, 0))
    draw = ImageDraw.Draw(scale)
    for share, anchor in ((0.0, "la"), (0.5, "ma"), (1.0, "ra")):
        value = f"{low + share * (high - low):.3g}" + (f" {unit}" if share == 1 else "")
        draw.text((share * width + (30 if share == 1 else 0), 15), value, fill=_FAINT, font=_font(_SMALL), anchor=anchor)
    return scale


def _panel(picture: Image.Image, field: Field, detail: str, foot: Image.Image | None = None) -> Image.Image:
    """A picture under its field's name and unit."""
    name = f"{field.name} ({field.unit})" if field.unit else field.name
    return _below([_text(name, _NAME), _text(detail, _SMALL, _FAINT), picture, *([foot] if foot else [])], 6)


def _scaled(colors: Colors, width: int, height: int, *, smooth: bool = False) -> Image.Image:
    resample = Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST
    return Image.fromarray(np.ascontiguousarray(colors)).resize((width, height), resample)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


def _text(text: str, size: int, color: Color = _INK) -> Image.Image:
    font = _font(size)
    line = Image.new("RGB", (int(font.getbbox(text)[2]) + 2, size + 4), _PAPER)
    ImageDraw.Draw(line).text((0, size), text, fill=color, font=font, anchor="ls")
    return line


def _beside(parts: Sequence[Image.Image], gap: int) -> Image.Image:
    """Pictures side by side, their tops in line."""
    width = sum(part.width for part in parts) + gap * max(0, len(parts) - 1)
    whole = Image.new("RGB", (width, max((part.height for part in parts), default=0)), _PAPER)
    left = 0
    for part in parts:
        whole.paste(part, (left, 0))
        left += part.width + gap
    return whole


def _below(parts: Sequence[Image.Image], gap: int, margin: int = 0) -> Image.Image:
    """Pictures below each other, their left edges in line; with a margin, as wide as the sheet."""
    height = sum(part.height for part in parts) + gap * max(0, len(parts) - 1)
    width = WIDTH if margin else max((part.width for part in parts), default=0)
    whole = Image.new("RGB", (width, height + 2 * margin), _PAPER)
    top = margin
    for part in parts:
        whole.paste(part, (margin, top))
        top += part.height + gap
    return whole
