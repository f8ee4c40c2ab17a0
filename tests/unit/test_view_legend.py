"""Legends: names and colours of the ids that are there, equal wherever an id is shown."""

import numpy as np

from scenemill.pipelines.viewer.legend import MOST_ENTRIES, UNLABELLED, class_names, legend, segment_names, voxel_names
from scenemill.schemas.labels import LABELS


def test_entries_are_counted_named_and_coloured_by_the_labels() -> None:
    ids = np.array([[3, 3, 10], [0, 3, 77]], np.uint8)
    entries = legend(ids, class_names())
    assert [(entry["id"], entry["name"], entry["count"]) for entry in entries] == [
        (0, "void", 1),
        (3, "chair", 3),
        (10, "wall", 1),
        (77, "77", 1),
    ]
    assert entries[1]["color"] == list(LABELS[3].color) and entries[0]["color"] == list(UNLABELLED)


def test_the_colour_of_an_id_without_one_is_its_own_and_the_same_everywhere() -> None:
    alone = {entry["id"]: entry["color"] for entry in legend(np.array([5]), {})}
    among = {entry["id"]: entry["color"] for entry in legend(np.arange(-2, 40), {})}
    assert alone[5] == among[5]
    assert among[-2] == among[0] == list(UNLABELLED)
    assert len({tuple(color) for id, color in among.items() if id > 0}) > 30  # told apart


def test_of_very_many_ids_those_of_most_elements_are_named() -> None:
    ids = np.concatenate([np.arange(1, 3001), np.arange(2001, 3001)])
    entries = legend(ids, {})
    assert len(entries) == MOST_ENTRIES == 1000
    assert [entry["id"] for entry in entries] == list(range(2001, 3001)) and all(entry["count"] == 2 for entry in entries)


def test_segments_are_named_after_their_classes_and_0_of_a_volume_is_free_space() -> None:
    names = voxel_names(segment_names({41: 3, 42: 200}))
    assert {id: name for id, (name, _) in names.items()} == {0: "free space", 41: "chair", 42: "unknown"}
    assert names[41][1] is None and legend(np.array([41]), names)[0]["color"] == legend(np.array([41]), {})[0]["color"]


def test_no_ids_make_no_entries() -> None:
    assert legend(np.zeros(0, np.int32), class_names()) == []
