"""Values over time in one layer, on which no iteration disturbs another.

USD keeps a value as a default, which holds at any time, or as samples. Between two samples it blends numbers and holds whole numbers,
texts and paths; before the first sample it takes the first, after the last the last. On a timeline a value holds from the iteration at
which it was given until another is given: what is the same as before is not written again, and where a new sample would change what is
read at another iteration, the value of that one is written beside it.

Source: the value resolution of OpenUSD, and the rules for writers of the Timelapse specification.
"""

from bisect import bisect_left, bisect_right
from typing import Any

from scenemill.trainers.usd.arrays import is_stepped, same_value


class Timeline:
    """One time among those of a layer.

    Args:
        layer: the layer (``Sdf.Layer``); the times of its samples by now are the other iterations.
        time: at which values are given.
    """

    def __init__(self, layer: Any, time: float) -> None:
        times = sorted(layer.ListAllTimeSamples())
        at, behind = bisect_left(times, time), bisect_right(times, time)
        self.layer, self.time, self._times = layer, time, times
        self._before = times[at - 1] if at else None
        self._after = times[behind] if behind < len(times) else None

    def put(self, attribute: Any, value: Any, stepped: bool, constant: bool) -> None:
        """Give an attribute a value at the time, and leave what is read at the others.

        Args:
            attribute: its spec (``Sdf.AttributeSpec``).
            value: of the attribute's type.
            stepped: USD does not blend values of this type.
            constant: the value is expected to stay: the first one given is the default, which holds at any time.
        """
        if same_value(self.value_at(attribute, self.time), value) and (stepped or not self._is_blended(attribute)):
            return
        if constant and not self._is_sampled(attribute) and attribute.default is None:
            attribute.default = value
            return
        kept = {time: self.value_at(attribute, time) for time in self._disturbed(attribute, stepped)}
        held = {time: value for time in self._until_next(attribute, stepped) if self.value_at(attribute, time) is None}
        for time, one in {**kept, **held, self.time: value}.items():
            if one is not None:
                self.layer.SetTimeSample(attribute.path, time, one)

    def value_at(self, attribute: Any, time: float) -> Any:
        """The value last given at a time or before it, else the default, else None."""
        sampled, lower, _ = self.layer.GetBracketingTimeSamplesForPath(attribute.path, time)
        if not sampled:
            return attribute.default
        return self.layer.QueryTimeSample(attribute.path, lower) if lower <= time else None

    def close(self) -> None:
        """Let everything else hold at this time too, and say in the layer from when to when there are samples."""
        if self._before is not None and self._after is not None:
            self.layer.Traverse("/", self._hold)
        self.layer.startTimeCode = min([*self._times[:1], self.time])
        self.layer.endTimeCode = max([*self._times[-1:], self.time])

    def _hold(self, path: Any) -> None:
        """Write what an attribute holds by now at a time at which USD would blend its samples."""
        attribute = self.layer.GetAttributeAtPath(path) if path.IsPropertyPath() else None
        if attribute and not is_stepped(str(attribute.typeName)) and self._is_blended(attribute):
            self.layer.SetTimeSample(path, self.time, self.value_at(attribute, self.time))

    def _is_sampled(self, attribute: Any) -> bool:
        return bool(self.layer.GetNumTimeSamplesForPath(attribute.path))

    def _is_blended(self, attribute: Any) -> bool:
        sampled, lower, upper = self.layer.GetBracketingTimeSamplesForPath(attribute.path, self.time)
        return bool(sampled and lower < self.time < upper)

    def _disturbed(self, attribute: Any, stepped: bool) -> set[float]:
        """The other iterations at which a sample at this one would change what is read."""
        times = {self._after}
        if not self._is_sampled(attribute) and self._before is not None:
            times.add(self._times[0])  # the default counts no more once there are samples
        if not stepped:
            times.add(self._before)
        return {time for time in times if time is not None and not self._has_sample(attribute, time)}

    def _until_next(self, attribute: Any, stepped: bool) -> list[float]:
        """The last iteration before the attribute's next sample, up to which a value given now shall hold unblended."""
        sampled, _, upper = self.layer.GetBracketingTimeSamplesForPath(attribute.path, self.time)
        if stepped or not sampled or upper <= self.time:
            return []
        return [time for time in self._times[: bisect_left(self._times, upper)][-1:] if time > self.time]

    def _has_sample(self, attribute: Any, time: float) -> bool:
        sampled, lower, _ = self.layer.GetBracketingTimeSamplesForPath(attribute.path, time)
        return bool(sampled and lower == time)
