"""Label maps: what is learned of which class, and what is a thing, against the rules written out; and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scenemill.schemas.errors import ConfigError
from scenemill.schemas.labels import BUILT_IN, LABELS, Label, LabelMap, read_label_map

IDS = tuple(range(1, 13))


def entry(id: int, /, **changed: Any) -> dict[str, Any]:
    """The entry of a class, as the published files have it."""
    label = LABELS[id]
    usual = {"color": list(label.color), "isthing": int(label.thing), "id": id, "trainId": id, "name": label.name}
    return {**usual, **changed}


def entries(**changed: dict[str, Any]) -> list[dict[str, Any]]:
    """All twelve; ``_5={"isthing": 0}`` changes the fifth class."""
    return [entry(id, **changed.get(f"_{id}", {})) for id in IDS]


def read(listed: object, contiguous: bool = False) -> LabelMap:
    return read_label_map(listed, "map.json", contiguous=contiguous)


@pytest.mark.parametrize("contiguous", [False, True])
def test_the_published_list_is_the_built_in_one(contiguous: bool) -> None:
    found = read(entries(), contiguous)
    assert found == BUILT_IN and found.labels == LABELS and found.keeps_ids and found.classes == IDS


@pytest.mark.real
@pytest.mark.parametrize("contiguous", [False, True])
@pytest.mark.parametrize("source", ["front3d", "matterport"])
def test_the_label_maps_of_the_real_data_are_the_built_in_list(source: str, contiguous: bool, real_data: Path) -> None:
    assert read(json.loads((real_data / "data" / source / "label_map.json").read_bytes()), contiguous) == BUILT_IN


@given(st.integers(0, 300), st.sets(st.integers(1, 255)))
def test_the_built_in_list_leaves_things_and_stuff_to_the_settings(count: int, stuff: set[int]) -> None:
    assert BUILT_IN.things(count) == tuple(range(1, min(count, 255) + 1))
    assert BUILT_IN.stuff(stuff) == tuple(sorted(stuff))


def part_of(id: int, thing: bool, count: int, stuff: set[int]) -> str:
    """The rule in words: a map decides where it differs from the built-in list, else the settings do."""
    if thing != LABELS[id].thing:
        return "thing" if thing else "stuff"
    return "thing" if id <= count else "stuff" if id in stuff else "neither"


@given(st.lists(st.booleans(), min_size=12, max_size=12), st.integers(0, 12), st.sets(st.integers(1, 12)), st.permutations(IDS))
def test_a_map_decides_where_it_differs_from_the_built_in_list(
    flags: list[bool], count: int, stuff: set[int], order: list[int]
) -> None:
    stuff = {id for id in stuff if id > count}
    learned = dict(zip(IDS, order, strict=True))
    found = read([entry(id, isthing=int(flag), trainId=learned[id]) for id, flag in zip(IDS, flags, strict=True)])
    parts = {id: part_of(id, flag, count, stuff) for id, flag in zip(IDS, flags, strict=True)}
    assert set(found.things(count)) == {learned[id] for id in IDS if parts[id] == "thing"}
    assert set(found.stuff(stuff)) == {learned[id] for id in IDS if parts[id] == "stuff"}
    for id, flag in zip(IDS, flags, strict=True):
        assert found.labels[learned[id]] == Label(learned[id], LABELS[id].name, flag, LABELS[id].color)


def test_classes_are_learned_as_one_and_some_teach_nothing() -> None:
    found = read(entries(_6={"trainId": 5}, _9={"trainId": 0}, _12={"trainId": 255}))
    assert found.learned == (0, 1, 2, 3, 4, 5, 5, 7, 8, 0, 10, 11, 0) and not found.keeps_ids
    assert found.classes == (1, 2, 3, 4, 5, 7, 8, 10, 11)
    assert found.labels[5].name == "table" and found.labels[6].name == "class 6"
    assert [label.name for label in found.sources(5)] == ["table", "desk"]
    assert found.things() == (1, 2, 3, 4, 5, 7, 8) and found.stuff((10, 11, 12)) == (10, 11)


def test_a_class_that_only_others_are_learned_as_has_the_first_ones_name_and_colour() -> None:
    found = read(entries(_1={"trainId": 2}, _2={"trainId": 1, "color": [1, 2, 3], "name": "crib"}, _3={"trainId": 2}))
    assert found.labels[1] == Label(1, "crib", True, (1, 2, 3))
    assert found.labels[2] == Label(2, "cabinet", True, LABELS[1].color)


def test_ids_may_be_left_out_of_a_list_that_is_not_contiguous() -> None:
    found = read([entry(3, name="seat"), entry(10)])
    assert found.keeps_ids and found.things() == BUILT_IN.things() and found.stuff((10, 11)) == (10, 11)
    assert [label.name for label in found.labels[1:5]] == ["class 1", "class 2", "seat", "class 4"]
    assert [label.thing for label in found.labels] == [label.thing for label in LABELS]


def test_classes_beyond_a_contiguous_list_teach_nothing() -> None:
    found = read([entry(id) for id in IDS[:9]], contiguous=True)
    assert found.learned == (*range(10), 0, 0, 0)
    assert found.things() == tuple(range(1, 10)) and found.stuff((10, 11, 12)) == ()


@pytest.mark.parametrize(
    ("listed", "told"),
    [
        ({}, r"map.json holds \{\}: allowed is a JSON array of 1 to 12 objects"),
        ([], "allowed is a JSON array of 1 to 12 objects"),
        ([entry(1), 7], r"map.json\[1\] is 7: allowed is an object with id, trainId, isthing, name and color"),
        ([entry(1, id=0)], r"map.json\[0\]: id=0: allowed is 1 to 12: stores hold no other class"),
        ([entry(1, id=13)], "id=13: allowed is 1 to 12"),
        ([entry(1, id=True)], "id=True: allowed is 1 to 12"),
        ([entry(1, id="1")], "id='1': allowed is 1 to 12"),
        ([entry(1, id=1.0)], "id=1.0: allowed is 1 to 12"),
        ([{name: value for name, value in entry(1).items() if name != "id"}], "id=None: allowed is 1 to 12"),
        ([entry(1, trainId=13)], "trainId=13: allowed is 0 to 12, or 255"),
        ([entry(1, trainId=-1)], "trainId=-1: allowed is 0 to 12, or 255"),
        ([entry(1, isthing=2)], "isthing=2: allowed is 0 or 1"),
        ([entry(1, isthing=None)], "isthing=None: allowed is 0 or 1"),
        ([entry(1, name="")], "name='': allowed is text of 1 to 64 characters"),
        ([entry(1, name="a" * 65)], "allowed is text of 1 to 64 characters"),
        ([entry(1, name="a\x1b[2J")], "allowed is text of 1 to 64 characters"),
        ([entry(1, name="stuff")], "but for all, things, stuff, void"),
        ([entry(1, color=[1, 2])], r"color=\[1, 2\]: allowed is \[red, green, blue\], each 0 to 255"),
        ([entry(1, color=[1, 2, 256])], "each 0 to 255"),
        ([entry(1, color="red")], "each 0 to 255"),
        ([entry(1), entry(1)], r"has the ids \[1, 1\]: allowed is each once"),
        ([entry(1), entry(10, trainId=1)], "ids 1, 10 have the trainId 1: allowed are things alone, or stuff alone"),
        ([entry(1, trainId=2)], "trainId 2 is that of id 2 too, which has no entry: give it one"),
        ([entry(1), entry(2, name="cabinet")], "allowed is another for each class that is learned"),
    ],
)
def test_what_is_wrong_is_told_with_file_entry_and_what_is_allowed(listed: object, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        read(listed)


@pytest.mark.parametrize("ids", [(2, 1), (1, 3), (2, 3), (1, 1)])
def test_a_contiguous_list_counts_from_1(ids: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"with contiguous_id=true allowed is 1, 2, 3, ...; else set that to false"):
        read([entry(id) for id in ids], contiguous=True)


def test_true_and_false_are_flags_too_and_further_keys_are_no_error() -> None:
    found = read([entry(5, isthing=False, supercategory="furniture"), entry(6, isthing=True)])
    assert found.things() == (1, 2, 3, 4, 6, 7, 8, 9) and found.stuff((10, 11)) == (5, 10, 11)
