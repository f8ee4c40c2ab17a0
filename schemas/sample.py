"""A sample: one camera view of one scene or object, as a key and named arrays. The same type as read, as checked and as stored.

What each array holds (axes, dtype, unit, frame) stands in ``schemas/fields.py``.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scenemill.schemas.errors import ConfigError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,127}\Z", re.ASCII)


@dataclass(frozen=True, order=True)
class SampleKey:
    """Names one view: ``scene/image``. Both halves are plain file-name parts, so a key can never leave its folder.

    Raises:
        ConfigError: a half is empty, too long, or holds anything but letters, digits, ``_``, ``-`` and ``.``.

    >>> str(SampleKey("70f7c6c1", "0001"))
    '70f7c6c1/0001'
    >>> SampleKey.parse("70f7c6c1/0001").image
    '0001'
    """

    scene: str
    image: str

    def __post_init__(self) -> None:
        for part in (self.scene, self.image):
            if not isinstance(part, str) or not _NAME.match(part) or ".." in part:
                raise ConfigError(
                    f"key {str(self.scene)[:80]!r}/{str(self.image)[:80]!r}: a scene or image id is 1 to 128 letters, digits, "
                    "'_', '-' and '.', starting with a letter or digit, without '..'; mend the list or the call"
                )

    @classmethod
    def parse(cls, text: str) -> "SampleKey":
        """The key that ``str()`` wrote."""
        scene, _, image = text.partition("/")
        return cls(scene, image)

    def __str__(self) -> str:
        return f"{self.scene}/{self.image}"


@dataclass(frozen=True)
class Sample:
    """One view.

    Attributes:
        key: ``scene/image``.
        arrays: field name -> array, in the axes, dtype, unit and frame of the field table (``schemas/fields.py``; ``Store.layout.fields``
            of a store of one's own form); fields the view does not have are absent.
        facts: what is known besides the arrays: a row of the samples table, or the part of it that is known so far.
    """

    key: str
    arrays: Mapping[str, NDArray[Any]]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.arrays[name]

    def __contains__(self, name: object) -> bool:
        return name in self.arrays

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sample) or self.key != other.key or set(self.arrays) != set(other.arrays):
            return False
        return all(
            np.array_equal(array, other.arrays[name], equal_nan=array.dtype.kind == "f") for name, array in self.arrays.items()
        )

    __hash__ = None  # type: ignore[assignment]  # holds arrays
