"""Frames: what is encoded comes back to the bit, arrays the asker holds are named and not sent."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from scenemill.pipelines.viewer.frames import DTYPES, MAGIC, decode_frame, encode_frame, key_of, tag_of

some_array = st.sampled_from(sorted(DTYPES.values())).flatmap(
    lambda dtype: arrays.arrays(np.dtype(dtype), arrays.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=5))
)


@given(st.dictionaries(st.text(min_size=1, max_size=8), some_array, max_size=5), st.dictionaries(st.text(), st.integers()))
def test_a_frame_comes_back_to_the_bit(given_arrays: dict[str, NDArray[Any]], facts: dict[str, int]) -> None:
    facts.pop("buffers", None)
    header, read = decode_frame(encode_frame(facts, given_arrays))
    assert {name: header[name] for name in facts} == facts
    assert read.keys() == given_arrays.keys()
    for name, array in given_arrays.items():
        assert read[name].shape == array.shape and read[name].dtype == array.dtype
        assert read[name].tobytes() == array.tobytes()


def test_the_layout_is_the_one_that_is_told() -> None:
    frame = encode_frame({"of": "ä"}, {"a": np.arange(3, dtype=np.uint8), "b": np.arange(2, dtype=np.float32)})
    assert frame[:4] == MAGIC == b"SMF1"
    length = int.from_bytes(frame[4:8], "little")
    assert length % 8 == 0
    header = json.loads(frame[8 : 8 + length].decode())
    assert [header["buffers"][name]["offset"] for name in "ab"] == [0, 8]
    assert [header["buffers"][name]["size"] for name in "ab"] == [3, 8]
    assert header["buffers"]["b"]["dtype"] == "f32" and header["buffers"]["b"]["shape"] == [2]
    body = frame[8 + length :]
    assert body == bytes([0, 1, 2, 0, 0, 0, 0, 0]) + np.array([0, 1], "<f4").tobytes()


def test_an_array_that_is_held_is_named_and_not_sent() -> None:
    positions, colors = np.ones((1000, 3), np.float32), np.zeros((1000, 3), np.uint8)
    frame = encode_frame({}, {"positions": positions, "colors": colors}, known={key_of(positions)})
    header, read = decode_frame(frame)
    assert header["buffers"]["positions"] == {
        "key": key_of(positions),
        "dtype": "f32",
        "shape": [1000, 3],
        "offset": None,
        "size": 12000,
    }
    assert list(read) == ["colors"] and len(frame) < 4000


def test_keys_tell_apart_content_shape_and_dtype_and_nothing_else() -> None:
    array = np.arange(12, dtype=np.int32).reshape(3, 4)
    others = [
        array + 1,
        array.reshape(4, 3),
        array.astype(np.float32),
        array[:2],
        np.zeros((0, 4), np.int32),
        np.zeros((0, 3), np.int32),
    ]
    assert len({key_of(each) for each in [array, *others]}) == 7
    assert key_of(array) == key_of(np.ascontiguousarray(np.asfortranarray(array)))


def test_the_tag_of_a_frame_changes_with_any_value_in_it() -> None:
    first = encode_frame({"time": 1}, {"a": np.zeros(100, np.float32)})
    other = np.zeros(100, np.float32)
    other[99] = 1e-30
    assert tag_of(first) == tag_of(encode_frame({"time": 1}, {"a": np.zeros(100, np.float32)}))
    assert (
        len({tag_of(first), tag_of(encode_frame({"time": 1}, {"a": other})), tag_of(encode_frame({"time": 2}, {"a": other}))}) == 3
    )


def test_what_json_cannot_say_is_refused_rather_than_sent() -> None:
    with pytest.raises(ValueError, match="JSON"):
        encode_frame({"time": float("nan")}, {})
