"""What queries say, as a picture: which segment a pixel is of, its class and its depth.

Source: the 2D post-processing of NvPanoptix3D as described in its fact sheet. Where no query is kept, depth is limited here as
everywhere; the reference leaves it as it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

Size = tuple[int, int]
"""(height, width) in pixels."""


@dataclass(frozen=True)
class Rules:
    """Names and defaults are those of a specification file.

    Attributes:
        object_mask_threshold: a query's score must be above it.
        overlap_threshold: the least share of its own mask that a query must own.
        num_thing_classes: class c is a thing where 1 <= c <= this.
        depth_scale: metres; no depth is larger.
        things: the classes that are things, where a label map says so; None for those that ``num_thing_classes`` says.
    """

    object_mask_threshold: float = 0.4
    overlap_threshold: float = 0.5
    num_thing_classes: int = 9
    depth_scale: float = 25.0
    things: tuple[int, ...] | None = None

    def is_thing(self, label: int) -> bool:
        """Whether things of a class are counted one by one."""
        return 1 <= label <= self.num_thing_classes if self.things is None else label in self.things


@dataclass(frozen=True)
class Segment:
    """One thing, or all of a stuff class; ``dataclasses.asdict`` gives what ``segments.json`` has.

    Attributes:
        id: in the panoptic map, from 1.
        isthing: whether it is a thing.
        category_id: class; 0, void, may occur.
    """

    id: int
    isthing: bool
    category_id: int


@dataclass(frozen=True)
class PanopticImage:
    """What was found in one image.

    Attributes:
        panoptic_seg: (H, W) int32, id of a segment; 0 is void.
        segments: by ascending id.
        depth: (H, W) float32, metres.
        semantic: (C, H, W) float32, at a pixel of a segment its score times its mask, in the channel of its class; else 0.
    """

    panoptic_seg: Tensor
    segments: tuple[Segment, ...]
    depth: Tensor
    semantic: Tensor

    @property
    def semantic_map(self) -> Tensor:
        """(H, W) int32: class of the segment of each pixel; 0 where there is none."""
        classes = [0, *(segment.category_id for segment in self.segments)]
        return torch.tensor(classes, dtype=torch.int32, device=self.panoptic_seg.device)[self.panoptic_seg.long()]


@torch.no_grad()
def postprocess(
    class_logits: Tensor,
    mask_logits: Tensor,
    depth: Tensor,
    padded: Size,
    unpadded: Sequence[Size],
    *,
    rules: Rules,
    size: Size | None = None,
    room_mask: Tensor | None = None,
) -> list[PanopticImage]:
    """The images of a batch at their own sizes, without padding.

    Args:
        class_logits: (B, Q, C + 1) float32, the last class being "no object".
        mask_logits: (B, Q, h, w) float32.
        depth: (B, 1, h', w') float32, metres.
        padded: size of the images that the network saw, padding included.
        unpadded: of each image, its size without padding.
        rules: what is kept.
        size: of the results; None for the unpadded sizes. What the network said is resized, not what becomes of it.
        room_mask: (B, H, W) bool, from the results' upper left corner, or larger; depth outside is 0. Matterport3D has one.
    """
    found = []
    for index, own in enumerate(unpadded):
        masks, metres = (_fit(maps[index], padded, own, size or own) for maps in (mask_logits, depth))
        image = panoptic_image(class_logits[index], masks, metres[0], rules)
        found.append(image if room_mask is None else _inside(image, room_mask[index]))
    return found


@torch.no_grad()
def postprocess_reduced(
    class_logits: Tensor,
    mask_logits: Tensor,
    depth: Tensor,
    padded: Size,
    unpadded: Sequence[Size],
    size: Size,
    *,
    rules: Rules,
    room_mask: Tensor | None = None,
) -> list[PanopticImage]:
    """The same at half the size: what stage 2 lifts into space, and what inference writes.

    Args:
        class_logits, mask_logits, depth, padded, unpadded, rules: see ``postprocess``; sizes are those of the whole images.
        size: (height, width) of the results: (120, 160). Halves that differ are resized.
        room_mask: (B, H, W) bool of that size; the one named ``room_mask_buol``.
    """
    halves = [(height // 2, width // 2) for height, width in unpadded]
    half = (padded[0] // 2, padded[1] // 2)
    return postprocess(class_logits, mask_logits, depth, half, halves, rules=rules, size=size, room_mask=room_mask)


def _fit(maps: Tensor, padded: Size, unpadded: Size, size: Size) -> Tensor:
    """(N, h, w) resized to the padded size, cut to the unpadded, resized to ``size`` where that differs."""
    cut = _resize(maps, padded)[:, : unpadded[0], : unpadded[1]]
    return _resize(cut, size)


def _resize(maps: Tensor, size: Size) -> Tensor:
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return functional.interpolate(maps[None], size=size, mode="bilinear", align_corners=False)[0]


def _inside(image: PanopticImage, room: Tensor) -> PanopticImage:
    height, width = image.depth.shape
    depth = torch.where(room[:height, :width], image.depth, 0)
    return PanopticImage(image.panoptic_seg, image.segments, depth, image.semantic)


@torch.no_grad()
def panoptic_image(class_logits: Tensor, mask_logits: Tensor, depth: Tensor, rules: Rules) -> PanopticImage:
    """The segments of one image.

    A query is kept for its score. A pixel's owner is the kept query whose score times mask is the largest there. A query is accepted
    if it owns enough of its mask; then what it owns of its mask is a segment, or of the one segment of its stuff class. Pixels of no
    segment go to the accepted stuff query that says most there, if there is one.

    Args:
        class_logits: (Q, C + 1) float32.
        mask_logits: (Q, H, W) float32, of the size of the result.
        depth: (H, W) float32, metres.
        rules: what is kept.
    """
    none = class_logits.shape[1] - 1
    score, label = class_logits.softmax(dim=1).max(dim=1)
    kept = (label != none) & (score > rules.object_mask_threshold)
    metres = depth.clamp(0, rules.depth_scale)
    score, label, mask = score[kept], label[kept], mask_logits[kept].sigmoid()
    if not len(label):
        empty = torch.zeros(depth.shape, dtype=torch.int32, device=depth.device)
        return PanopticImage(empty, (), metres, mask_logits.new_zeros((none, *depth.shape)))
    value = score[:, None, None] * mask
    most, owner = value.max(dim=0)
    own = mask >= 0.5
    inside = own.gather(0, owner[None])[0]
    ids, segments = _segments(label, owner, own.sum(dim=(1, 2)), inside, rules)
    panoptic = torch.where(inside, ids[owner], 0)
    category = label[owner]
    stuff = _accepted_stuff(label, ids, rules)
    if len(stuff):
        void = panoptic == 0
        most_stuff, place = value[stuff].max(dim=0)
        filler = stuff[place]
        panoptic, category = torch.where(void, ids[filler], panoptic), torch.where(void, label[filler], category)
        most = torch.where(void, most_stuff, most)
    channels = torch.arange(none, device=category.device)[:, None, None]
    semantic = torch.where((channels == category) & (panoptic > 0), most, 0)
    return PanopticImage(panoptic, segments, metres, semantic)


def _segments(label: Tensor, owner: Tensor, full: Tensor, inside: Tensor, rules: Rules) -> tuple[Tensor, tuple[Segment, ...]]:
    """(K,) int32, the segment of each kept query, 0 where it is not accepted; and the segments.

    Args:
        label: (K,) int64.
        owner: (H, W) int64, 0..K - 1.
        full: (K,) int64, pixels of each query's own mask.
        inside: (H, W) bool, True where a pixel is in its owner's own mask.
        rules: what is accepted.
    """
    count = len(label)
    area = torch.bincount(owner.flatten(), minlength=count)
    region = torch.bincount(owner[inside], minlength=count)
    facts = torch.stack([label, area, full, region], dim=1).tolist()  # one wait for the device
    accepted = [bool(owned and whole and left) and owned / whole >= rules.overlap_threshold for _, owned, whole, left in facts]
    ids, segments = number_segments([category for category, *_ in facts], accepted, rules)
    return torch.tensor(ids, dtype=torch.int32, device=label.device), segments


def number_segments(categories: Sequence[int], accepted: Sequence[bool], rules: Rules) -> tuple[list[int], tuple[Segment, ...]]:
    """Segments of queries, from 1 in the order of the queries: each thing opens one, stuff joins the one of its class.

    Args:
        categories: class of each query.
        accepted: whether it gets a segment.
        rules: what is a thing.

    Returns:
        The segment of each query, 0 where it is not accepted; and the segments.
    """
    ids, segments, opened = [], list[Segment](), dict[int, int]()
    for category, taken in zip(categories, accepted, strict=True):
        if not taken:
            ids.append(0)
            continue
        thing = rules.is_thing(category)
        if thing or category not in opened:
            opened[category] = len(segments) + 1
            segments.append(Segment(opened[category], thing, category))
        ids.append(opened[category])
    return ids, tuple(segments)


def _accepted_stuff(label: Tensor, ids: Tensor, rules: Rules) -> Tensor:
    """(S,) int64: the kept queries that are stuff and have a segment."""
    thing = (label >= 1) & (label <= rules.num_thing_classes)
    if rules.things is not None:
        thing = torch.isin(label, torch.tensor(rules.things, dtype=label.dtype, device=label.device))
    return torch.nonzero((ids > 0) & ~thing)[:, 0]
