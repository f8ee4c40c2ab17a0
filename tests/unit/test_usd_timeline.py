"""Writing at one iteration changes no other: a layer on a timeline against a table of what each iteration was given."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pxr import Sdf, Usd

from scenemill.trainers.usd.authoring import ITERATION, Author
from scenemill.trainers.usd.reading import value_of

KINDS = {"floats": "point3f[]", "numbers": "int[]", "text": "token", "size": "float"}
CHOICES: dict[str, list[Any]] = {
    "floats": [np.full((2, 3), number, np.float32) for number in (0.1, -7.3, 1e8)] + [np.zeros((0, 3), np.float32)],
    "numbers": [np.array([1, 2], np.int32), np.array([3, 4], np.int32), np.array([5], np.int32)],
    "text": ["one", "two", "three"],
    "size": [0.1, 0.2, 3.0],
}

writes = st.lists(
    st.tuples(
        st.sampled_from([0, 1, 2, 3, 5, 8, 13.5]),
        st.dictionaries(st.sampled_from(list(KINDS)), st.integers(0, 2), min_size=1),
    ),
    min_size=1,
    max_size=9,
)


def write(layer: Any, time: float, given_now: dict[str, int], constant: bool) -> None:
    author = Author(layer, time, strict=True)
    prim = author.prim("/item", "Xform")
    for name, choice in given_now.items():
        author.put(prim, name, KINDS[name], CHOICES[name][choice], constant=constant)
    author.close(prim)


def expected(history: list[tuple[float, dict[str, int]]]) -> dict[float, dict[str, int]]:
    """What holds at each iteration: what it was given last, else what held at the one before it when it was first written.

    What neither an iteration nor any before it was ever given is taken over from those before once they are given it.
    """
    table: dict[float, dict[str, int]] = {}
    for time, given_now in history:
        before = max((other for other in table if other < time), default=None)
        table.setdefault(time, dict(table[before]) if before is not None else {}).update(given_now)
        for other in sorted(other for other in table if other > time):
            previous = max(earlier for earlier in table if earlier < other)
            table[other] = {**table[previous], **table[other]}
    return table


def read(stage: Any, name: str, time: float) -> Any:
    attribute = stage.GetAttributeAtPath(f"/item.{name}")
    found, plain = value_of(attribute, time), attribute.Get(time)
    if name in ("floats", "size"):  # usd-core's blend of equal numbers may be off by the last bit, ours is not
        np.testing.assert_allclose(np.array(plain), found, rtol=3e-7)
    else:
        assert np.array_equal(np.array(plain), found)
    return found.tobytes() if name in ("floats", "numbers") else found


def as_read(name: str, choice: int) -> Any:
    chosen = CHOICES[name][choice]
    return chosen.tobytes() if name in ("floats", "numbers") else (float(np.float32(chosen)) if name == "size" else chosen)


@given(writes)
@settings(max_examples=150, deadline=None)
def test_an_iteration_keeps_what_it_was_given_whatever_is_written_at_others(history: list[tuple[float, dict[str, int]]]) -> None:
    layer = written(*history)
    stage, table = Usd.Stage.Open(layer), expected(history)
    assert sorted(layer.ListAllTimeSamples()) == sorted(table)
    assert (stage.GetStartTimeCode(), stage.GetEndTimeCode()) == (min(table), max(table))
    for time, held in table.items():
        for name, choice in held.items():
            assert read(stage, name, time) == as_read(name, choice), (time, name)


@given(writes)
@settings(max_examples=100, deadline=None)
def test_constants_that_change_after_all_are_read_where_they_were_given(history: list[tuple[float, dict[str, int]]]) -> None:
    stage = Usd.Stage.Open(written(*history, constant=True))
    given_at = {(time, name): choice for time, given_now in history for name, choice in given_now.items()}
    for (time, name), choice in given_at.items():
        assert read(stage, name, time) == as_read(name, choice), (time, name)


def written(*history: tuple[float, dict[str, int]], constant: bool = False) -> Any:
    layer = Sdf.Layer.CreateAnonymous(".usdc")
    for time, given_now in history:
        write(layer, time, given_now, constant)
    return layer


def samples(layer: Any, name: str) -> list[float]:
    return list(layer.ListTimeSamplesForPath(f"/item.{name}"))


def test_what_is_the_same_is_not_written_again() -> None:
    layer = written(*((time, {"floats": 0, "numbers": 1}) for time in (0, 10, 20, 30)))
    assert samples(layer, "floats") == samples(layer, "numbers") == [0]


def test_an_iteration_at_which_nothing_changed_is_marked() -> None:
    layer = written((0, {"floats": 0}), (10, {"floats": 0}), (20, {"floats": 1}))
    assert samples(layer, ITERATION) == [10]
    assert sorted(layer.ListAllTimeSamples()) == [0, 10, 20]


def test_numbers_that_usd_blends_are_written_at_the_iteration_before_a_change() -> None:
    layer = written((0, {"floats": 0, "numbers": 0}), (10, {"floats": 0, "numbers": 0}), (20, {"floats": 1, "numbers": 1}))
    assert samples(layer, "floats") == [0, 10, 20] and samples(layer, "numbers") == [0, 20]


def test_the_first_value_of_a_constant_holds_at_any_time_until_it_changes() -> None:
    same = written((5, {"size": 0}), (9, {"size": 0}), constant=True)
    assert samples(same, "size") == [] and same.GetAttributeAtPath("/item.size").default == pytest.approx(0.1)
    changed = written((5, {"size": 0}), (9, {"size": 0}), (12, {"size": 1}), constant=True)
    assert samples(changed, "size") == [5, 9, 12]


def test_zeros_of_both_signs_and_no_numbers_are_told_apart_to_the_bit() -> None:
    layer = Sdf.Layer.CreateAnonymous(".usda")
    for time, number in ((0, 0.0), (1, -0.0), (2, math.nan), (3, math.nan)):
        author = Author(layer, time, strict=True)
        prim = author.prim("/item", "Xform")
        author.put(prim, "floats", "float[]", np.array([number], np.float32))
        author.close(prim)
    assert samples(layer, "floats") == [0, 1, 2]


def test_without_a_timeline_every_value_is_written_as_it_comes() -> None:
    layer = Sdf.Layer.CreateAnonymous(".usda")
    for time in (0, 10):
        author = Author(layer, time, strict=False)
        prim = author.prim("/item", "Xform")
        author.put(prim, "numbers", "int[]", np.array([1]), constant=True)
        author.close(prim)
    assert samples(layer, "numbers") == [0, 10] and not layer.HasEndTimeCode()
