"""A volume as blocks is the volume: held against the same thing said in plain NumPy."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from scenemill.transforms.blocks import EDGE, Blocks, blocked, blocks_with_content

Fill = float | int | bool
FILLS: tuple[tuple[str, Fill], ...] = (
    ("float32", 12.0),
    ("float32", -12.0),
    ("float32", 0.0),
    ("uint8", 0),
    ("uint8", 1),
    ("uint16", 0),
    ("uint16", 12),
    ("bool", True),
    ("bool", False),
)


@st.composite
def volumes(draw: st.DrawFn, *, cubes: bool = False) -> tuple[NDArray[Any], Fill]:
    """A volume with a few voxels, a few full blocks or nothing that is not fill, and its fill value."""
    dtype, fill = draw(st.sampled_from(FILLS))
    sides = draw(st.lists(st.integers(1, 4), min_size=3, max_size=3))
    shape = [EDGE * (sides[0] if cubes else side) for side in sides]
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    volume = np.full(shape, fill, dtype)
    for _ in range(draw(st.integers(0, 5))):
        corner = [int(rng.integers(size)) for size in shape]
        size = draw(st.sampled_from([1, 2, EDGE]))
        target = volume[tuple(slice(start, start + size) for start in corner)]
        target[...] = rng.integers(0, 2, target.shape) if dtype == "bool" else rng.integers(0, 13, target.shape)
        if dtype == "float32" and draw(st.booleans()):
            target.flat[0] = draw(st.sampled_from([np.nan, np.inf, -12.0, 11.999999, -0.0]))
    return volume, fill


def block_at(volume: NDArray[Any], place: tuple[int, ...]) -> NDArray[Any]:
    return volume[tuple(slice(EDGE * p, EDGE * (p + 1)) for p in place)]


def places_of(volume: NDArray[Any]) -> list[tuple[int, ...]]:
    return list(np.ndindex(*(size // EDGE for size in volume.shape)))


def blocks_of(volume: NDArray[Any], fill: Fill) -> Blocks:
    """The blocks of a cube, found one by one."""
    places = [place for place in places_of(volume) if not (block_at(volume, place) == fill).all()]
    values = [block_at(volume, place) for place in places]
    return Blocks(
        np.array(places, np.int64).reshape(-1, 3),
        np.array(values, volume.dtype).reshape(-1, EDGE, EDGE, EDGE),
        fill,
        len(volume),
    )


@settings(deadline=None)
@given(volumes())
def test_blocks_with_content_are_those_with_any_other_value(drawn: tuple[NDArray[Any], Fill]) -> None:
    volume, fill = drawn
    found = blocks_with_content(volume, fill)
    assert found.dtype == np.bool_
    assert found.shape == tuple(size // EDGE for size in volume.shape)
    assert all(found[place] == (block_at(volume, place) != fill).any() for place in places_of(volume))


@pytest.mark.parametrize(("dtype", "fill"), FILLS)
def test_one_voxel_anywhere_is_content(dtype: str, fill: Fill) -> None:
    other = not fill if dtype == "bool" else 5
    volume = np.full((32, 32, 32), fill, dtype)
    assert not blocks_with_content(volume, fill).any()
    rng = np.random.default_rng(1)
    corners = [(x, y, z) for x in (0, 15, 16, 31) for y in (0, 15, 16, 31) for z in (0, 7, 8, 15, 16, 31)]
    for voxel in [*corners, *map(tuple, rng.integers(0, 32, (30, 3)).tolist())]:
        volume[voxel] = other
        assert np.argwhere(blocks_with_content(volume, fill)).tolist() == [[size // EDGE for size in voxel]]
        volume[voxel] = fill


def test_a_volume_is_not_changed_by_the_question_what_it_holds() -> None:
    volume = np.random.default_rng(2).integers(0, 2, (16, 32, 48)).astype(bool)
    before = volume.copy()
    blocks_with_content(volume, False)
    np.testing.assert_array_equal(volume, before)


@settings(deadline=None)
@given(volumes())
def test_a_blocked_view_shows_each_block(drawn: tuple[NDArray[Any], Fill]) -> None:
    volume, _ = drawn
    view = blocked(volume)
    assert np.shares_memory(view, volume)
    assert view.shape == (*(size // EDGE for size in volume.shape), EDGE, EDGE, EDGE)
    for place in places_of(volume):
        np.testing.assert_array_equal(view[place], block_at(volume, place))


@pytest.mark.parametrize("edge", [1, 2, 8, 32])
def test_a_blocked_view_of_another_edge_can_be_written(edge: int) -> None:
    volume = np.zeros((32, 64, 32), np.uint16)
    blocked(volume, edge)[0, 1, -1] = 7
    assert (volume[:edge, edge : 2 * edge, -edge:] == 7).all()
    assert np.count_nonzero(volume) == edge**3


@settings(deadline=None)
@given(volumes(cubes=True))
def test_blocks_made_dense_are_the_volume(drawn: tuple[NDArray[Any], Fill]) -> None:
    volume, fill = drawn
    blocks = blocks_of(volume, fill)
    dense = blocks.dense()
    assert dense.dtype == volume.dtype
    assert len(blocks) == np.count_nonzero(blocks_with_content(volume, fill))
    assert dense.flags.c_contiguous
    np.testing.assert_array_equal(dense, volume)


@settings(deadline=None)
@given(volumes(cubes=True), st.integers(0, 12))
def test_chosen_voxels_are_those_of_the_volume(drawn: tuple[NDArray[Any], Fill], wanted: int) -> None:
    volume, fill = drawn
    blocks = blocks_of(volume, fill)
    held = np.kron(blocks_with_content(volume, fill), np.ones((EDGE,) * 3, bool))
    for chosen, expected in (
        (np.ones(blocks.values.shape, bool), np.flatnonzero(held)),
        (blocks.values != fill, np.flatnonzero(volume != fill)),
        (blocks.values == wanted, np.flatnonzero(volume == wanted) if wanted != fill else None),
        (np.zeros(blocks.values.shape, bool), np.empty(0)),
    ):
        found = blocks.voxels_where(chosen)
        assert found.dtype == np.int64
        if expected is not None:
            assert sorted(found.tolist()) == expected.tolist()
        np.testing.assert_array_equal(volume.reshape(-1)[found], blocks.values[chosen])


def test_no_blocks_are_a_volume_of_fill() -> None:
    blocks = Blocks(np.empty((0, 3), np.int64), np.empty((0, EDGE, EDGE, EDGE), np.float32), -12.0, 48)
    assert len(blocks) == 0
    assert blocks.dense().shape == (48, 48, 48)
    assert (blocks.dense() == -12.0).all()
    assert blocks.voxels_where(np.empty((0, EDGE, EDGE, EDGE), bool)).tolist() == []
