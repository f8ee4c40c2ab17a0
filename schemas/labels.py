"""Class ids, names, colours, thing or stuff, for every source.

Source of the twelve categories and their colours: the label lists of Uni-3D and NVIDIA TAO, equal for 3D-Front and Matterport3D.
"""

from dataclasses import dataclass

VOID = 0


@dataclass(frozen=True)
class Label:
    """One semantic class.

    Attributes:
        id: value in the semantic arrays.
        name: what people call it.
        thing: True for countable objects, False for stuff (wall, floor, ceiling) and void.
        color: (red, green, blue), 0..255.
    """

    id: int
    name: str
    thing: bool
    color: tuple[int, int, int]


LABELS: tuple[Label, ...] = (
    Label(0, "void", False, (0, 0, 0)),
    Label(1, "cabinet", True, (220, 20, 60)),
    Label(2, "bed", True, (255, 0, 0)),
    Label(3, "chair", True, (0, 0, 142)),
    Label(4, "sofa", True, (0, 0, 70)),
    Label(5, "table", True, (0, 60, 100)),
    Label(6, "desk", True, (0, 80, 100)),
    Label(7, "dresser", True, (0, 0, 230)),
    Label(8, "lamp", True, (119, 11, 32)),
    Label(9, "other", True, (190, 50, 60)),
    Label(10, "wall", False, (102, 102, 156)),
    Label(11, "floor", False, (128, 64, 128)),
    Label(12, "ceiling", False, (70, 70, 70)),
)
"""The categories of 3D-Front and Matterport3D; the position in the tuple is the id."""

WALL, FLOOR, CEILING = 10, 11, 12
