"""What a check is: a name, the fields it needs, and a function that yields what it finds."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from scenemill.schemas.tables import Finding
from scenemill.validators.measures import Measured

Found = Iterator[Finding]
M = TypeVar("M", bound=Measured)
"""The counts that a check judges."""


@dataclass(frozen=True)
class Check(Generic[M]):
    """A check and the fields it needs; a sample that lacks one has a finding already and is spared this one.

    Attributes:
        name: its own; where it looks for several things, its findings carry names of theirs.
        fields: fields it reads; "frustum" for the mask of the source, or the field "outside" of a sample that carries its own.
        run: what it does.
        front3d_only: True for promises that only the 3D-Front form makes.
    """

    name: str
    fields: tuple[str, ...]
    run: Callable[[M], Found]
    front3d_only: bool = False
