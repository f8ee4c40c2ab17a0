"""Which pixels each face may touch: the boxes of faces on the image, and the pairs of faces and pixels within them.

Nothing here is as large as faces x pixels. A face has a rectangle of pixels; a rectangle has rows; of each row the wanted pixels are a
run of consecutive numbers. Runs are laid out as pairs, some faces at a time, so that memory is bounded whatever the mesh. The same
tensor operations run on every device.

Pixel (row j, column i) of an H x W image has its centre at x = (2i + 1 - W) / W, y = (H - 2j - 1) / H, times a multiplier.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

PAIR_BYTES: Final = 320
"""Memory per pair of a chunk, all that is computed of it in float64 together."""

CHUNK_BYTES: Final = 256 * 2**20
"""Default of the memory that pairs may take at a time."""


@dataclass(frozen=True)
class Raster:
    """A batch of images as their pixel centres in coordinates of the image plane, scaled.

    Attributes:
        images: B.
        height: H.
        width: W.
        multiplier: scale of the coordinates.
    """

    images: int
    height: int
    width: int
    multiplier: float

    @property
    def pixels(self) -> int:
        """B * H * W."""
        return self.images * self.height * self.width

    def centres(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """x and y, (B * H * W,) each, of the pixels by flat number (image, row, column), in the dtype and on the device of ``like``."""
        shape = (self.images, self.height, self.width)
        x = _centres(self.width, self.multiplier, like).expand(shape)
        y = _centres(self.height, self.multiplier, like).flip(0)[:, None].expand(shape)
        return x.flatten(), y.flatten()


@dataclass(frozen=True)
class Boxes:
    """The rectangles of pixels of some faces; empty ones are left out.

    Attributes:
        face: (M,) int64, flat numbers (image, face), increasing.
        image: (M,) int64.
        top, bottom, left, right: (M,) int64, rows and columns; bottom and right are the first beyond.
        count: (M,) int64, wanted pixels of each.
    """

    face: Tensor
    image: Tensor
    top: Tensor
    bottom: Tensor
    left: Tensor
    right: Tensor
    count: Tensor

    def __getitem__(self, some: slice | Tensor) -> "Boxes":
        return Boxes(*(held[some] for held in vars(self).values()))


@dataclass(frozen=True)
class Wanted:
    """Some of the pixels of a raster, numbered in order, to count and list them by rectangle.

    Attributes:
        pixel: (P,) int64, flat numbers of the wanted pixels, increasing.
        before: (B * H * W + 1,) int64, how many wanted pixels come before each.
        table: (B, H + 1, W + 1) int32, how many lie above and left of each corner of pixels.
    """

    pixel: Tensor
    before: Tensor
    table: Tensor

    def centres(self, raster: Raster, like: Tensor) -> tuple[Tensor, Tensor]:
        """x and y, (P,), scaled, in the dtype of ``like``."""
        x, y = raster.centres(like)
        return x.index_select(0, self.pixel), y.index_select(0, self.pixel)


def wanted_pixels(mask: Tensor) -> Wanted:
    """Of a (B, H, W) bool mask, where True."""
    pad = torch.nn.functional.pad
    before = pad(mask.flatten().cumsum(0), (1, 0))
    table = mask.cumsum(2, dtype=torch.int32).cumsum(1, dtype=torch.int32)
    return Wanted(mask.flatten().nonzero()[:, 0], before, pad(table, (1, 0, 1, 0)))


def face_boxes(corners: Tensor, drawn: Tensor, raster: Raster, margin: float = 0.0, wanted: Wanted | None = None) -> Boxes:
    """Rectangles of the pixels whose centres lie in the bounding boxes of faces: min <= centre < max on both axes.

    Args:
        corners: (B * F, 3, 2), scaled as the raster. Faces with a coordinate that is not finite have no rectangle.
        drawn: (B * F,) bool: other faces have no rectangle.
        raster: the images.
        margin: widens the bounding boxes on every side, scaled.
        wanted: rectangles without such pixels are left out.
    """
    low, high = corners.amin(dim=1) - margin, corners.amax(dim=1) + margin
    columns, rows = (_centres(count, raster.multiplier, corners) for count in (raster.width, raster.height))
    left, right = (torch.searchsorted(columns, bound[:, 0].contiguous()) for bound in (low, high))
    bottom, top = (raster.height - torch.searchsorted(rows, bound[:, 1].contiguous()) for bound in (low, high))
    image = torch.arange(len(corners), device=corners.device) // max(1, len(corners) // max(1, raster.images))
    if wanted is None:
        count = (bottom - top) * (right - left)
    else:
        table, wide = wanted.table.flatten(), raster.width + 1
        first, last = ((image * (raster.height + 1) + row) * wide for row in (top, bottom))
        count = (table[last + right] - table[last + left] - table[first + right] + table[first + left]).long()
    kept = (drawn & corners.isfinite().all(dim=2).all(dim=1) & (count > 0)).nonzero()[:, 0]
    return Boxes(kept, image[kept], top[kept], bottom[kept], left[kept], right[kept], count[kept])


def face_pixel_pairs(
    boxes: Boxes, raster: Raster, chunk_bytes: int, wanted: Wanted | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of the faces and the pixels of their rectangles, chunk by chunk, in the order of faces.

    Args:
        boxes: of ``face_boxes`` for the same raster and the same ``wanted``.
        raster: the images.
        chunk_bytes: memory that may be spent on a chunk. A row of one face is never split.
        wanted: only these pixels.

    Yields:
        face (n,), flat numbers, increasing; and pixel (n,), flat numbers, or positions in ``wanted.pixel`` where given.
    """
    limit = max(1, chunk_bytes // PAIR_BYTES)
    for some in _pieces(torch.maximum(boxes.count, boxes.bottom - boxes.top), limit):  # a row without pixels takes memory too
        face, start, count = _rows(boxes[some], raster, wanted)
        for part in _pieces(count, limit):
            of, within = _enumerate(count[part])
            yield face[part].index_select(0, of), start[part].index_select(0, of) + within


def _centres(count: int, multiplier: float, like: Tensor) -> Tensor:
    """(count,) increasing."""
    numbers = torch.arange(1 - count, count, 2, dtype=torch.float64, device=like.device)
    return (numbers * multiplier / count).to(like.dtype)


def _rows(boxes: Boxes, raster: Raster, wanted: Wanted | None) -> tuple[Tensor, Tensor, Tensor]:
    """Per row of each rectangle: face, number of its first pixel, and how many there are."""
    of, within = _enumerate(boxes.bottom - boxes.top)
    first = (boxes.image * raster.height + boxes.top) * raster.width
    sides = (first + boxes.left, first + boxes.right)
    start, end = (side.index_select(0, of) + within * raster.width for side in sides)
    if wanted is not None:
        start, end = (wanted.before.index_select(0, side) for side in (start, end))
    return boxes.face.index_select(0, of), start, end - start


def _enumerate(counts: Tensor) -> tuple[Tensor, Tensor]:
    """For (M,) counts: which entry each of their sum belongs to, and its number there."""
    ends = counts.cumsum(0)
    total = int(ends[-1]) if len(ends) else 0
    of = torch.repeat_interleave(counts, output_size=total)
    within = torch.arange(total, device=counts.device) - (ends - counts).index_select(0, of)
    return of, within


def _pieces(counts: Tensor, limit: int) -> Iterator[slice]:
    """Consecutive entries whose counts sum to ``limit`` at most, or single ones."""
    ends = counts.cumsum(0)
    start = done = 0
    while start < len(counts):
        stop = max(start + 1, int(torch.searchsorted(ends, done + limit, right=True)))
        yield slice(start, stop)
        start, done = stop, int(ends[stop - 1])
