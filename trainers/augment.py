"""How one image, and every map that lies on its pixels, is varied before a model sees it.

The order is that of Mask2Former and Uni-3D: resize, crop, colour, flip, pad. The image is interpolated; labels, depth and room mask
are picked by index, so that no value appears that was not there, and a depth stays a distance in metres. What is drawn by chance
comes from a generator that the caller makes, one per sample; only the short edge is drawn for a whole batch.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from scenemill.schemas.dataset import AugmentationConfig
from scenemill.schemas.errors import ConfigError
from scenemill.trainers.segments import check_shapes

Scalar = TypeVar("Scalar", bound=np.generic)

IGNORE_LABEL: Final = 255
NO_INSTANCE: Final = -1
"""Instance id of padding."""

_GREY: Final = 128  # padding of the image
_DTYPES: Final = {"rgb": "uint8", "semantic": "uint8", "instance": "int32", "depth": "float32", "room_mask": "bool"}
_CROP_TRIES: Final = 10  # as in detectron2
# The ranges of the SSD detector's training (Liu et al., 2016), as in Mask2Former; hue in steps of two degrees.
_BRIGHTNESS: Final = 32.0
_CONTRAST: Final = (0.5, 1.5)
_SATURATION: Final = (0.5, 1.5)
_HUE: Final = 18
_HUES: Final = 180


@dataclass(frozen=True)
class View:
    """One image and what is known of its pixels.

    Attributes:
        rgb: (H, W, 3) uint8.
        semantic: (H, W) uint8, class ids; 255 where a pixel teaches nothing.
        instance: (H, W) int32, ids; -1 in the padding.
        depth: (H, W) float32, metres; 0 is invalid.
        room_mask: (H, W) bool, True inside the room; None where the source has none.
        padding: rows below and columns to the right that are no image.

    Raises:
        ConfigError: the shapes differ, or a dtype is another.
    """

    rgb: NDArray[np.uint8]
    semantic: NDArray[np.uint8]
    instance: NDArray[np.int32]
    depth: NDArray[np.float32]
    room_mask: NDArray[np.bool_] | None = None
    padding: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        if self.rgb.ndim != 3 or self.rgb.shape[2] != 3:
            raise ConfigError(f"rgb has the shape {self.rgb.shape}: give (H, W, 3)")
        present = {name: getattr(self, name) for name in _DTYPES if getattr(self, name) is not None}
        check_shapes(**{name: values[..., 0] if name == "rgb" else values for name, values in present.items()})
        for name, values in present.items():
            if values.dtype != _DTYPES[name]:
                raise ConfigError(f"{name} is {values.dtype}: give {_DTYPES[name]}")

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W), padding and all."""
        return self.rgb.shape[0], self.rgb.shape[1]

    @property
    def unpadded_shape(self) -> tuple[int, int]:
        """(H, W) of what is image."""
        return self.shape[0] - self.padding[0], self.shape[1] - self.padding[1]


def augment(view: View, config: AugmentationConfig, rng: np.random.Generator, short_edge: int) -> View:
    """The view as a model is trained on it.

    Args:
        view: the image and its maps; never changed.
        config: what to vary, and how far.
        rng: this sample's own generator; equal states give equal views.
        short_edge: pixels, from ``draw_short_edge``, the same for the whole batch.

    Raises:
        ConfigError: the view is padded already.
    """
    view = resize_view(view, shortest_edge_shape(view.shape, short_edge, config.train_max_size))
    if config.enable_crop:
        height, width = (min(asked, size) for asked, size in zip(config.crop_size, view.shape, strict=True))
        view = crop_view(view, draw_corner(view.semantic, (height, width), config.single_category_max_area, rng), (height, width))
    if config.color_aug_ssd:
        view = replace(view, rgb=vary_colors(view.rgb, rng))
    if config.random_flip and rng.random() < config.random_flip_prob:
        view = flip_view(view, config.random_flip)
    return pad_view(view, config.size_divisibility)


def prepare(view: View, config: AugmentationConfig) -> View:
    """The view as a model is validated and tested on it: one size, nothing left to chance.

    Raises:
        ConfigError: the view is padded already.
    """
    shape = shortest_edge_shape(view.shape, config.test_min_size, config.test_max_size)
    return pad_view(resize_view(view, shape), config.size_divisibility)


def draw_short_edge(config: AugmentationConfig, rng: np.random.Generator) -> int:
    """One of ``train_min_size``, in pixels; to be drawn once per batch."""
    return config.train_min_size[int(rng.integers(len(config.train_min_size)))]


def shortest_edge_shape(shape: tuple[int, int], short_edge: int, longest: int) -> tuple[int, int]:
    """(H, W) with the shorter edge at ``short_edge``, or less where the longer would exceed ``longest``; the aspect ratio is kept.

    Source: the arithmetic of detectron2's ResizeShortestEdge, rounding included.

    >>> shortest_edge_shape((240, 320), 448, 768), shortest_edge_shape((240, 320), 448, 500)
    ((448, 597), (375, 500))
    """
    scale = short_edge / min(shape)
    height, width = (float(short_edge) if size == min(shape) else scale * size for size in shape)
    if max(height, width) > longest:
        scale = longest / max(height, width)
        height, width = height * scale, width * scale
    return max(1, int(height + 0.5)), max(1, int(width + 0.5))


def _nearest_index(old: int, new: int) -> NDArray[np.intp]:
    """Source index of each of ``new`` pixels.

    Pillow reaches the centres (n + 0.5) * old / new by adding up steps; where a centre lies on an edge of two pixels the sum's
    rounding decides. The same sum decides here.
    """
    steps = np.full(new, old / new)
    steps[0] *= 0.5
    return np.cumsum(steps).astype(np.intp)


def resize_nearest(values: NDArray[Scalar], shape: tuple[int, int]) -> NDArray[Scalar]:
    """A map in another size, each value that of the source pixel under the centre, as Pillow's NEAREST picks it.

    Args:
        values: (H, W), any dtype.
        shape: (H, W) of the result.

    Returns:
        ``values`` itself where the shape is the same.

    >>> resize_nearest(np.array([[10, 20, 30, 40]]), (1, 2))
    array([[20, 40]])
    """
    if values.shape == shape:
        return values
    rows, columns = (_nearest_index(old, new) for old, new in zip(values.shape, shape, strict=True))
    return values.take(rows, axis=0).take(columns, axis=1)


def resize_rgb(rgb: NDArray[np.uint8], size: tuple[int, int], resampling: Literal["bilinear", "bicubic"]) -> NDArray[np.uint8]:
    """An image in another size, interpolated by Pillow (which smooths before it shrinks).

    Args:
        rgb: (H, W, 3) uint8.
        size: (width, height), the order of Pillow and of ``target_size``.
        resampling: "bicubic" to bring a file to ``target_size``, "bilinear" to vary it, as the public implementations do.

    Returns:
        (H, W, 3) uint8; ``rgb`` itself where the size is the same.
    """
    if (rgb.shape[1], rgb.shape[0]) == tuple(size):
        return rgb
    from PIL import Image

    how = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[resampling]
    return np.array(Image.fromarray(rgb).resize(size, how))


def depth_plane(depth: NDArray[np.float32], shape: tuple[int, int]) -> NDArray[np.float32]:
    """The low-resolution depth that stage 2 lifts from.

    Args:
        depth: (H, W) float32, metres.
        shape: (H, W) of the result, the order of ``depth_size``; 240 x 320 to 120 x 160 takes source pixels 2n + 1.

    Returns:
        (H, W) float32, metres; always a copy, C-contiguous.
    """
    return np.array(resize_nearest(depth, shape), np.float32, order="C")


def _move(view: View, rgb: NDArray[np.uint8], move: Callable[[NDArray[Any]], NDArray[Any]]) -> View:
    """The view with another image, and with every map moved; C-contiguous, for torch takes no negative strides."""
    if view.padding != (0, 0):
        raise ConfigError(f"the view has padding {view.padding}: pad last")
    semantic, instance, depth = (np.ascontiguousarray(move(values)) for values in (view.semantic, view.instance, view.depth))
    room_mask = None if view.room_mask is None else np.ascontiguousarray(move(view.room_mask))
    return View(np.ascontiguousarray(rgb), semantic, instance, depth, room_mask)


def resize_view(view: View, shape: tuple[int, int]) -> View:
    """The view as (H, W) = ``shape``: the image bilinear, every map nearest; the view itself where it has that shape.

    Raises:
        ConfigError: the view is padded.
    """
    if view.shape == shape and view.padding == (0, 0):
        return view
    rgb = resize_rgb(view.rgb, (shape[1], shape[0]), "bilinear")
    return _move(view, rgb, lambda values: resize_nearest(values, shape))


def draw_corner(
    semantic: NDArray[np.uint8], shape: tuple[int, int], single_category_max_area: float, rng: np.random.Generator
) -> tuple[int, int]:
    """(top, left) of a crop in which no class fills too much.

    Ten corners are tried; the first with two classes or more, and with less than ``single_category_max_area`` of its labelled
    pixels in the most frequent one, is taken; if there is none, the last.

    Args:
        semantic: (H, W) uint8; 255 counts for nothing.
        shape: (H, W) of the crop, no larger than the map.
        single_category_max_area: 0..1; from 1 up the first corner is taken.
        rng: this sample's generator.

    Source: detectron2's RandomCrop_CategoryAreaConstraint.
    """
    top, left = 0, 0
    for _ in range(_CROP_TRIES):
        top, left = (int(rng.integers(size - asked + 1)) for size, asked in zip(semantic.shape, shape, strict=True))
        if single_category_max_area >= 1:
            break
        inside = semantic[top : top + shape[0], left : left + shape[1]]
        counts = np.bincount(inside.reshape(-1), minlength=IGNORE_LABEL + 1)
        counts[IGNORE_LABEL] = 0
        if counts.max() < single_category_max_area * counts.sum():  # never with one class alone, for the share is below 1
            break
    return top, left


def crop_view(view: View, corner: tuple[int, int], shape: tuple[int, int]) -> View:
    """The part of the view that starts at ``corner`` = (top, left) and has ``shape`` = (H, W).

    Raises:
        ConfigError: the part lies not wholly inside, or the view is padded.
    """
    if any(start < 0 or start + asked > size for start, asked, size in zip(corner, shape, view.shape, strict=True)):
        raise ConfigError(f"a crop of {shape} at {corner} leaves the image of {view.shape}")
    part = tuple(slice(start, start + asked) for start, asked in zip(corner, shape, strict=True))
    return _move(view, view.rgb[part], lambda values: values[part])


def flip_view(view: View, direction: str) -> View:
    """The view mirrored: "horizontal" swaps left and right, "vertical" top and bottom.

    Raises:
        ConfigError: another direction, or the view is padded.
    """
    axes = {"horizontal": 1, "vertical": 0}
    if direction not in axes:
        raise ConfigError(f"direction {direction!r}: give one of {', '.join(axes)}")
    return _move(view, np.flip(view.rgb, axes[direction]), lambda values: np.flip(values, axes[direction]))


def pad_view(view: View, divisor: float) -> View:
    """The view with rows below and columns to the right, until both edges are multiples of ``divisor``.

    The padding is grey (128), of no class (255), of instance -1, at depth 0 and outside the room. A divisor of 1 or less adds none.

    Raises:
        ConfigError: the view is padded already, to another multiple.

    Source: the loader of Uni-3D and NvPanoptix3D.
    """
    shape = tuple(-(-size // int(divisor)) * int(divisor) for size in view.shape) if divisor > 1 else view.shape
    if shape == view.shape:
        return view

    def pad(values: NDArray[Scalar], fill: int) -> NDArray[Scalar]:
        padded = np.full((*shape, *values.shape[2:]), fill, values.dtype)
        padded[: values.shape[0], : values.shape[1]] = values
        return padded

    if view.padding != (0, 0):
        raise ConfigError(f"the view has padding {view.padding}: pad once")
    return View(
        rgb=pad(view.rgb, _GREY),
        semantic=pad(view.semantic, IGNORE_LABEL),
        instance=pad(view.instance, NO_INSTANCE),
        depth=pad(view.depth, 0),
        room_mask=None if view.room_mask is None else pad(view.room_mask, 0),
        padding=(shape[0] - view.shape[0], shape[1] - view.shape[1]),
    )


def vary_colors(rgb: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """The image with brightness, contrast, saturation and hue each changed, or not, by the toss of a coin.

    Brightness moves by up to 32, contrast and saturation are multiplied by 0.5 to 1.5, hue turns by up to 36 degrees in steps of
    two; another coin says whether contrast comes before or after colour.

    Source: Mask2Former's ColorAugSSDTransform, after the SSD detector.
    """
    tossed = rng.random(5) < 0.5
    drawn = (rng.uniform(-_BRIGHTNESS, _BRIGHTNESS), rng.uniform(*_CONTRAST), rng.uniform(*_SATURATION))
    hue = int(rng.integers(-_HUE, _HUE + 1))
    return change_colors(
        rgb,
        brightness=drawn[0] if tossed[0] else 0.0,
        contrast=drawn[1] if tossed[1] else 1.0,
        saturation=drawn[2] if tossed[2] else 1.0,
        hue=hue if tossed[3] else 0,
        contrast_first=bool(tossed[4]),
    )


def change_colors(
    rgb: NDArray[np.uint8],
    *,
    brightness: float = 0.0,
    contrast: float = 1.0,
    saturation: float = 1.0,
    hue: int = 0,
    contrast_first: bool = True,
) -> NDArray[np.uint8]:
    """The image in other colours; every step clips to 0..255 and drops fractions, as the reference does.

    Args:
        rgb: (H, W, 3) uint8.
        brightness: is added to every channel.
        contrast: every channel is multiplied by it.
        saturation: saturation (HSV) is multiplied by it; grey stays grey.
        hue: turns the hue (HSV), in steps of two degrees.
        contrast_first: contrast before saturation and hue, or after.

    Returns:
        (H, W, 3) uint8; ``rgb`` itself where nothing changes.

    >>> change_colors(np.array([[[255, 0, 0], [9, 9, 9]]], np.uint8), hue=60).tolist()
    [[[0, 255, 0], [9, 9, 9]]]
    """
    if brightness:
        rgb = _levels(1.0, brightness)[rgb]
    if contrast_first and contrast != 1:
        rgb = _levels(contrast)[rgb]
    if saturation != 1 or hue:
        turned, saturated, value = _hsv_from_rgb(rgb)
        rgb = _rgb_from_hsv((turned + hue) % _HUES, _levels(saturation)[saturated], value)
    if not contrast_first and contrast != 1:
        rgb = _levels(contrast)[rgb]
    return rgb


def _levels(factor: float, shift: float = 0.0) -> NDArray[np.uint8]:
    """(256,) uint8: what each of the 256 levels becomes."""
    levels = np.arange(256, dtype=np.float32) * np.float32(factor) + np.float32(shift)
    return levels.clip(0, 255).astype(np.uint8)


def _hsv_from_rgb(rgb: NDArray[np.uint8]) -> tuple[NDArray[np.int16], NDArray[np.uint8], NDArray[np.uint8]]:
    """Hue, saturation and value, (H, W) each, in the ranges of OpenCV's 8-bit HSV: 0..179, 0..255, 0..255; grey has hue 0.

    Rounded to the nearest. OpenCV rounds through tables and differs by one in some colours, never by more.
    """
    red, green, blue = np.moveaxis(rgb, 2, 0).astype(np.int16, order="C")
    value = np.maximum(np.maximum(red, green), blue)
    spread = value - np.minimum(np.minimum(red, green), blue)
    saturation = spread * np.float32(255) / np.maximum(value, 1) + np.float32(0.5)
    reddest, greenest = value == red, value == green
    ahead = np.where(reddest, green - blue, np.where(greenest, blue - red, red - green))
    sector = np.where(reddest, np.float32(_HUES), np.where(greenest, np.float32(_HUES + 60), np.float32(_HUES + 120)))
    hue = (ahead * np.float32(30) / np.maximum(spread, 1) + (sector + np.float32(0.5))).astype(np.int16)
    hue[hue >= _HUES] -= _HUES
    return hue, saturation.astype(np.uint8), value.astype(np.uint8)


def _rgb_from_hsv(hue: NDArray[np.int16], saturation: NDArray[np.uint8], value: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W, 3) uint8, rounded to the nearest; how far a channel falls below ``value`` depends on hue alone, so on a table."""
    chroma = saturation * (value * np.float32(1 / 255))
    rgb = np.empty((*hue.shape, 3), np.uint8)
    for channel, start in enumerate((5, 3, 1)):  # where, in sixths of the circle, red, green and blue begin to fall
        sixth = (start + np.arange(_HUES, dtype=np.float32) / np.float32(30)) % 6
        fall = np.minimum(sixth, 4 - sixth).clip(0, 1)
        rgb[..., channel] = np.rint(value - fall.take(hue) * chroma)
    return rgb
