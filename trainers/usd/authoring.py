"""Writing prims, their values and what they point to into one layer, at one time.

Values are written as they come, or along a timeline. Below usd-core's stages: nothing is composed, so an item costs what its values cost.

Source: the scene description of OpenUSD (Sdf).
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, Final

from scenemill.trainers.usd.arrays import is_stepped, same_value, to_value
from scenemill.trainers.usd.timeline import Timeline

ITERATION: Final = "userProperties:iteration"
"""Attribute that marks an iteration at which an item was given and nothing of it had changed."""


def to_prim_name(text: str) -> str:
    """A name that USD allows for a prim, readable where the text is.

    >>> to_prim_name("night stand"), to_prim_name("2 seats"), to_prim_name("")
    ('night_stand', '_2_seats', '_')
    """
    return re.sub(r"^(?=[0-9]|$)|[^A-Za-z0-9_]", "_", text)


class Author:
    """Writes into one layer.

    Args:
        layer: the layer (``Sdf.Layer``).
        time: of the values; None for values that hold at any time.
        strict: write what viewers and validators want beyond the values, and only what changed.
        locate: from the path of a prim in the scene to its place in the layer; the same where it is None.
    """

    def __init__(self, layer: Any, time: float | None, strict: bool, locate: Callable[[Any], Any] | None = None) -> None:
        self.layer, self.time, self.strict = layer, time, strict
        self._locate = locate or (lambda path: path)
        self._timeline = Timeline(layer, time) if strict and time is not None else None

    @classmethod
    def on_stage(cls, stage: Any, time: float | None, strict: bool) -> "Author":
        """One that writes where a stage is edited."""
        target = stage.GetEditTarget()
        return cls(target.GetLayer(), time, strict, target.MapToSpecPath)

    def prim(self, path: Any, kind: str) -> Any:
        """The spec of a prim, defined with a type; "" leaves the type it has."""
        from pxr import Sdf

        spec = Sdf.CreatePrimInLayer(self.layer, self._locate(Sdf.Path(path)))
        if kind:
            spec.typeName = kind
        place = spec.path
        while place.IsPrimPath():
            self.layer.GetPrimAtPath(place).specifier = Sdf.SpecifierDef
            place = place.GetParentPath()
        return spec

    def is_there(self, path: Any) -> bool:
        """Whether the layer has a prim of this path in the scene."""
        from pxr import Sdf

        return bool(self.layer.GetPrimAtPath(self._locate(Sdf.Path(path))))

    def declare(self, prim: Any, name: str, kind: str, uniform: bool = False) -> Any:
        """The spec of an attribute, as it is or new and without a value."""
        from pxr import Sdf

        found = self.layer.GetAttributeAtPath(prim.path.AppendProperty(name))
        variability = Sdf.VariabilityUniform if uniform else Sdf.VariabilityVarying
        return found or Sdf.AttributeSpec(prim, name, Sdf.ValueTypeNames.Find(kind), variability)

    def put(self, prim: Any, name: str, kind: str, value: Any, constant: bool = False) -> Any:
        """Give an attribute a value at the time.

        Args:
            prim: its prim's spec.
            name: of the attribute.
            kind: USD's name of its type.
            value: what ``to_value`` takes for it.
            constant: expected to stay the same, so that the first value holds at any time (only on a timeline).

        Returns:
            The attribute's spec.
        """
        attribute, held = self.declare(prim, name, kind), to_value(kind, value)
        if self._timeline:
            self._timeline.put(attribute, held, is_stepped(kind), constant)
        elif self.time is None:
            attribute.default = held
        else:
            self.layer.SetTimeSample(attribute.path, self.time, held)
        return attribute

    def fix(self, prim: Any, name: str, kind: str, value: Any, uniform: bool = False) -> Any:
        """Give an attribute a value that holds at any time."""
        attribute, held = self.declare(prim, name, kind, uniform), to_value(kind, value)
        if not same_value(attribute.default, held):
            attribute.default = held
        return attribute

    def held(self, prim: Any, name: str) -> Any:
        """The value that an attribute has by now at the time, as USD keeps it; None for none."""
        attribute = self.layer.GetAttributeAtPath(prim.path.AppendProperty(name))
        if not attribute:
            return None
        return self._timeline.value_at(attribute, self._timeline.time) if self._timeline else attribute.default

    def interpolation(self, attribute: Any) -> str:
        """Of which elements an attribute has values, in USD's words; "" for not said."""
        return str(attribute.GetInfo("interpolation")) if attribute.HasInfo("interpolation") else ""

    def is_sampled(self, prim: Any, name: str) -> bool:
        """Whether an attribute has samples."""
        return bool(self.layer.GetNumTimeSamplesForPath(prim.path.AppendProperty(name)))

    def remove(self, prim: Any, name: str) -> None:
        """Take an attribute away, with its values at all times."""
        prim.RemoveProperty(self.layer.GetAttributeAtPath(prim.path.AppendProperty(name)))

    def point(self, prim: Any, name: str, targets: Sequence[Any]) -> None:
        """Let a relationship point to these prims and no others."""
        from pxr import Sdf

        found = self.layer.GetRelationshipAtPath(prim.path.AppendProperty(name))
        relationship = found or Sdf.RelationshipSpec(prim, name, False)
        relationship.targetPathList.explicitItems = [Sdf.Path(str(target)) for target in targets]

    def connect(self, attribute: Any, source: str) -> None:
        """Let an attribute take its value from the one of this path in the scene, and from no others."""
        from pxr import Sdf

        attribute.connectionPathList.explicitItems = [Sdf.Path(source)]

    def apply(self, prim: Any, schema: str) -> None:
        """Apply an API schema to a prim, once."""
        from pxr import Sdf

        applied = prim.GetInfo("apiSchemas") if prim.HasInfo("apiSchemas") else Sdf.TokenListOp()
        if schema not in applied.GetAppliedItems():
            applied.prependedItems = [schema, *applied.prependedItems]
            prim.SetInfo("apiSchemas", applied)

    def close(self, prim: Any) -> None:
        """End a timeline's time: mark it on a prim if no sample was written at it, and note from when to when there are samples."""
        from pxr import Sdf

        if self._timeline is None or self.time is None:
            return
        if self.time not in self.layer.ListAllTimeSamples():
            found = self.layer.GetAttributeAtPath(prim.path.AppendProperty(ITERATION))
            mark = found or Sdf.AttributeSpec(prim, ITERATION, Sdf.ValueTypeNames.Double, Sdf.VariabilityVarying, True)
            self.layer.SetTimeSample(mark.path, self.time, float(self.time))
        self._timeline.close()
