"""Voxels: numbers of cells, lookups by table and by search, and derived supports, against sets and dictionaries."""

from collections.abc import Sequence
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from scenemill.schemas.errors import ConfigError
from scenemill.trainers.nvpanoptix3d import voxels
from scenemill.trainers.nvpanoptix3d.voxels import Box, Finder, Support, box_around, sorted_distinct

Voxel = tuple[int, ...]
FAR = 10**5  # a box that reaches so far has too many cells for a table


def tensor_of(rows: Sequence[Voxel]) -> Tensor:
    return torch.tensor(list(rows), dtype=torch.int64).view(-1, 4)


def voxels_of(coords: Tensor) -> list[Voxel]:
    return [tuple(row) for row in coords.tolist()]


def made_up(seed: int, count: int = 60, *, spread: int = 5) -> Tensor:
    """Rows of three samples on both sides of zero; some share a coordinate."""
    generator = torch.Generator().manual_seed(seed)
    axes = torch.randint(-spread, spread, (count, 3), generator=generator)
    return torch.cat([torch.randint(0, 3, (count, 1), generator=generator), axes], dim=1)


@pytest.fixture(params=["table", "search"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How voxels are looked up."""
    if request.param == "search":
        monkeypatch.setattr(voxels, "CELLS_PER_VOXEL", 0)
        monkeypatch.setattr(voxels, "CELLS_ANYWAY", 0)
    return str(request.param)


def test_a_box_numbers_its_cells_from_zero_in_the_order_of_sample_x_y_z() -> None:
    box = Box((1, -2, 0, 5), (2, 3, 2, 4))
    cells = list(product(range(1, 3), range(-2, 1), range(2), range(5, 9)))
    assert box.cells == len(cells) == 48
    assert box.numbers(tensor_of(cells)).tolist() == list(range(48))
    assert voxels_of(box.coords(torch.arange(48))) == cells
    assert box.step(1, -1, 2) == cells.index((1, 0, 0, 7)) - cells.index((1, -1, 1, 5))


@given(st.lists(st.tuples(st.integers(0, 3), *[st.integers(-FAR, FAR)] * 3), min_size=1, max_size=20), st.integers(0, 4))
def test_numbers_of_cells_lead_back_and_keep_the_order(rows: list[Voxel], margin: int) -> None:
    box = box_around(tensor_of(rows), margin)
    numbers = box.numbers(tensor_of(rows))
    assert voxels_of(box.coords(numbers)) == rows
    assert all(0 <= number < box.cells for number in numbers.tolist())
    assert voxels_of(box.coords(numbers.sort().values)) == sorted(rows)


def test_a_box_is_as_large_as_needed() -> None:
    coords = tensor_of([(1, 3, -4, 0), (1, 5, 2, 0)])
    assert box_around(coords) == Box((1, 3, -4, 0), (1, 3, 7, 1))
    assert box_around(coords, 2) == Box((0, 1, -6, -2), (3, 7, 11, 5))


def test_coordinates_that_cannot_be_numbered_are_refused() -> None:
    with pytest.raises(ConfigError, match="too far apart"):
        box_around(tensor_of([(0, 0, 0, 0), (0, 2**21, 2**21, 2**21)]))


@pytest.mark.parametrize("seed", range(3))
def test_coordinates_are_sorted_and_made_distinct(seed: int, way: str) -> None:
    coords = made_up(seed)
    assert voxels_of(sorted_distinct(coords)) == sorted(set(voxels_of(coords)))


@pytest.mark.parametrize(("first", "edge"), [(0, 1), (-1, 2), (-1, 3), (0, 4), (0, 2)])
def test_neighbours_are_found(first: int, edge: int, way: str) -> None:
    coords = made_up(3)[torch.randperm(60, generator=torch.Generator().manual_seed(1))]
    coords = tensor_of(list(dict.fromkeys(voxels_of(coords))))
    row_of = {voxel: row for row, voxel in enumerate(voxels_of(coords))}
    finder = Finder(coords)
    assert (finder.count and finder.table is None) == (way == "search")
    places = torch.cat([coords, made_up(4, spread=9), tensor_of([(0, FAR, 0, 0), (7, 0, 0, 0), (1, 0, -FAR, FAR)])])
    expected = [
        [row_of.get((s, x + dx, y + dy, z + dz), len(coords)) for dx, dy, dz in product(range(first, first + edge), repeat=3)]
        for s, x, y, z in voxels_of(places)
    ]
    assert finder.find(places, first, edge).tolist() == expected


def test_a_place_next_to_the_edge_of_what_is_there_has_no_other_neighbours(way: str) -> None:
    """Every place around a single voxel, further than any kernel reaches."""
    finder = Finder(tensor_of([(4, 7, -7, 0)]))
    places = [(s, 7 + x, -7 + y, z) for s in (3, 4, 5) for x, y, z in product(range(-9, 10), repeat=3)]
    for first, edge in ((-1, 3), (0, 4)):
        steps = list(product(range(first, first + edge), repeat=3))
        found = finder.find(tensor_of(places), first, edge)
        hits = {(places[place], steps[step]) for place, step in (found == 0).nonzero().tolist()}
        assert hits == {((4, 7 - dx, -7 - dy, -dz), (dx, dy, dz)) for dx, dy, dz in steps}


def test_nothing_is_found_where_nothing_is() -> None:
    finder = Finder(tensor_of([]))
    assert finder.find(made_up(0), -1, 3).tolist() == [[0] * 27] * 60
    assert finder.find(tensor_of([]), -1, 3).shape == (0, 27)
    assert Finder(made_up(0)).find(tensor_of([]), 0, 4).shape == (0, 64)


def test_far_voxels_are_looked_up_without_a_table() -> None:
    coords = tensor_of([(0, 0, 0, 0), (0, FAR, FAR, FAR), (1, -FAR, 3, 1)])
    assert Finder(coords).table is None
    assert Finder(coords).find(coords).tolist() == [[0], [1], [2]]
    assert voxels_of(sorted_distinct(coords.flip(0))) == sorted(voxels_of(coords))


def test_shared_coordinates_are_noticed(way: str) -> None:
    coords = sorted_distinct(made_up(0))
    assert Support(coords).distinct and Support(coords[:0]).distinct
    assert not Support(torch.cat([coords, coords[4:5]])).distinct


def test_halving_rounds_down() -> None:
    coords = made_up(5)
    halved = Support(coords, 2).halved
    assert voxels_of(halved.coords) == sorted({(s, x // 2, y // 2, z // 2) for s, x, y, z in voxels_of(coords)})
    assert halved.stride == 4


def test_doubling_grows_four_cells_along_each_axis() -> None:
    coords = made_up(6, 20)
    doubled = Support(coords, 4).doubled
    steps = list(product(range(4), repeat=3))
    grown = {(s, 2 * x + dx, 2 * y + dy, 2 * z + dz) for s, x, y, z in voxels_of(coords) for dx, dy, dz in steps}
    assert voxels_of(doubled.coords) == sorted(grown)
    assert doubled.stride == 2
    assert torch.equal(doubled.halved.coords, Support(doubled.coords, 2).halved.coords) and doubled.halved.stride == 4


def test_the_finest_voxels_grow_no_finer_ones() -> None:
    with pytest.raises(ConfigError, match="stride 1 cannot grow"):
        _ = Support(made_up(0)).doubled


@pytest.mark.parametrize("coords", [torch.zeros(3, 3, dtype=torch.int64), torch.zeros(4, dtype=torch.int64), torch.zeros(3, 4)])
def test_other_coordinates_are_refused(coords: Tensor) -> None:
    with pytest.raises(ConfigError, match=r"give \(N, 4\) int64"):
        Support(coords)
