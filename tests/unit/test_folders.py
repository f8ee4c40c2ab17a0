"""Split lists of every form, kind and hostile; files are opened only where they belong."""

import json
import os
from pathlib import Path

import pytest

from scenemill.schemas.errors import ConfigError, SourceError
from scenemill.schemas.sample import SampleKey
from scenemill.transforms import folders
from scenemill.transforms.folders import ListEntry, find_lists, find_root, read_file, read_list, sha256, split_rank

HOSTILE = (
    "..",
    "a/b",
    "../../etc",
    "/etc",
    "a\\b",
    "",
    " ",
    "a b",
    ".hidden",
    "-rf",
    "a\0b",
    "a\nb",
    "ä",
    "x" * 129,
    "a..b",
    "\ud800",
)


def entries(path: Path) -> list[ListEntry]:
    return list(read_list(path))


def write(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


# --- lists


def test_json_records_become_keys_in_file_order(tmp_path: Path) -> None:
    records = [
        {"scene_id": "s2", "image_id": "0007", "height": 240, "width": 320},
        {"scene_id": "s1", "image_id": "0001", "height": 240, "width": 320, "file_name": "other/0001.png"},
        {"scene_id": "s1", "image_id": "0002"},
    ]
    assert entries(write(tmp_path / "train.json", records)) == [
        ListEntry(SampleKey("s2", "0007"), "", "train.json[0]", (240, 320)),
        ListEntry(SampleKey("s1", "0001"), "", "train.json[1]", (240, 320), "other/0001.png"),
        ListEntry(SampleKey("s1", "0002"), "", "train.json[2]"),
    ]


def test_text_lines_become_keys_with_and_without_the_mapped_ending(tmp_path: Path) -> None:
    path = write(tmp_path / "test.txt", "s2/0007\n\ns1/a_1_2.mapped\r\n  s3/0001  \n")
    assert entries(path) == [
        ListEntry(SampleKey("s2", "0007"), "", "test.txt[0]"),
        ListEntry(SampleKey("s1", "a_1_2"), "", "test.txt[2]"),
        ListEntry(SampleKey("s3", "0001"), "", "test.txt[3]"),
    ]


def test_the_mapped_ending_is_taken_off_json_ids_too(tmp_path: Path) -> None:
    path = write(tmp_path / "test.json", [{"scene_id": "s.mapped", "image_id": "a_1_2.mapped"}])
    assert entries(path)[0].key == SampleKey("s.mapped", "a_1_2")


@pytest.mark.parametrize("bad", HOSTILE)
@pytest.mark.parametrize("field", ["scene_id", "image_id"])
def test_hostile_ids_become_problems_and_leave_the_rest_alone(field: str, bad: str, tmp_path: Path) -> None:
    good = {"scene_id": "s", "image_id": "0001"}
    path = write(tmp_path / "train.json", [good, {**good, field: bad}, good])
    first, hostile, last = entries(path)
    assert first.key == last.key == SampleKey("s", "0001") and not first.problem
    assert hostile.key is None and "mend the list" in hostile.problem and hostile.where == "train.json[1]"


@pytest.mark.parametrize(
    "record",
    [None, 7, "s/0001", [], {}, {"scene_id": "s"}, {"image_id": "0001"}, {"scene_id": 5, "image_id": "0001"}]
    + [{"scene_id": "s", "image_id": value} for value in (1, None, ["0001"], {"a": 1}, True, 0.5)],
)
def test_records_of_another_form_become_problems(record: object, tmp_path: Path) -> None:
    entry = entries(write(tmp_path / "train.json", [record]))[0]
    assert entry.key is None and entry.problem and entry.where == "train.json[0]"


@pytest.mark.parametrize("path", [5, None, [], "a\nb", "a\0b", "\ud800", "x" * 1025])
def test_a_file_name_that_is_no_path_becomes_a_problem(path: object, tmp_path: Path) -> None:
    entry = entries(write(tmp_path / "train.json", [{"scene_id": "s", "image_id": "0001", "file_name": path}]))[0]
    assert entry.key is None and "file_name" in entry.problem


@pytest.mark.parametrize("line", ["s", "s/", "/0001", "s/0001/2", "../x", "s/..", "a b/c", "s\\0001"])
def test_text_lines_of_another_form_become_problems(line: str, tmp_path: Path) -> None:
    entry = entries(write(tmp_path / "train.txt", f"{line}\n"))[0]
    assert entry.key is None and entry.problem


def test_bytes_that_are_no_text_become_problems(tmp_path: Path) -> None:
    path = tmp_path / "train.txt"
    path.write_bytes(b"s/00\xff\xfe\ns/0002\n")
    bad, good = entries(path)
    assert bad.key is None and good.key == SampleKey("s", "0002")


def test_sizes_that_are_no_numbers_are_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "train.json", [{"scene_id": "s", "image_id": "1", "height": "240", "width": 320}])
    assert entries(path)[0].size is None


@pytest.mark.parametrize("content", ["{", "", "[1,", '{"a": 1}', "7", '"s/0001"', "[" * 100_000, "[" + "9" * 5000 + "]"])
def test_what_is_no_json_list_is_a_config_error_that_names_the_file(content: str, tmp_path: Path) -> None:
    path = write(tmp_path / "train.json", content)
    with pytest.raises(ConfigError, match=r"train\.json"):
        entries(path)


@pytest.mark.parametrize("name", ["train.json", "train.txt"])
def test_a_list_beyond_all_measure_is_refused_unread(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / name, "s/0001\n" if name.endswith("txt") else [{"scene_id": "s", "image_id": "0001"}])
    monkeypatch.setattr(folders, "_LIST_LIMIT_BYTE", path.stat().st_size)
    assert [entry.key for entry in entries(path)] == [SampleKey("s", "0001")]
    monkeypatch.setattr(folders, "_LIST_LIMIT_BYTE", path.stat().st_size - 1)
    with pytest.raises(ConfigError, match="larger than"):
        entries(path)


# --- the folder


def test_the_root_is_the_folder_above_data(tmp_path: Path) -> None:
    (tmp_path / "set" / "data" / "scene").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "set")
    for given in ("set", "set/data", "set/../set", "link", "link/data"):
        assert find_root(tmp_path / given) == (tmp_path / "set").resolve()


def test_data_inside_data_is_taken_as_asked(tmp_path: Path) -> None:
    (tmp_path / "data" / "data").mkdir(parents=True)
    assert find_root(tmp_path / "data") == tmp_path / "data"


@pytest.mark.parametrize(
    ("given", "said"), [("none", "no such folder"), ("empty", "no data/ in it"), ("set/data/scene", "no data/ in it")]
)
def test_a_folder_without_data_is_a_config_error(given: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "set" / "data" / "scene").mkdir(parents=True)
    with pytest.raises(ConfigError, match=said):
        find_root(tmp_path / given)


def test_lists_are_found_in_the_order_of_splits_and_other_files_are_not(tmp_path: Path) -> None:
    record = [{"scene_id": "s", "image_id": "1"}]
    for name in ("zoo.json", "val.json", "test.json", "train.json", "extra.json"):
        write(tmp_path / name, record)
    write(tmp_path / "validation.txt", "s/1\n")
    write(tmp_path / "small.txt", "s/1\n")
    write(tmp_path / "label_map.json", [{"id": 1, "name": "cabinet"}])
    write(tmp_path / "empty.json", [])
    write(tmp_path / "settings.json", {"a": 1})
    write(tmp_path / "README.txt", "Read this first\n")
    write(tmp_path / "notes.md", "s/1\n")
    (tmp_path / "folder.json").mkdir()
    found = find_lists(tmp_path, ())
    assert list(found) == ["train", "val", "validation", "test", "extra", "small", "zoo"]
    assert found["validation"] == tmp_path / "validation.txt" and found["zoo"] == tmp_path / "zoo.json"


def test_of_two_forms_of_one_list_the_json_counts(tmp_path: Path) -> None:
    write(tmp_path / "train.txt", "s/2\n")
    write(tmp_path / "train.json", [{"scene_id": "s", "image_id": "1"}])
    assert find_lists(tmp_path, ()) == find_lists(tmp_path, ("train",)) == {"train": tmp_path / "train.json"}


def test_named_lists_may_lie_anywhere_and_come_in_the_order_of_splits(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    elsewhere = write(tmp_path / "mine.json", [])
    write(tmp_path / "set" / "test.txt", "s/1\n")
    write(tmp_path / "set" / "val.json", [])
    found = find_lists(tmp_path / "set", ("test", f"train={elsewhere}", "val"))
    assert list(found.items()) == [
        ("train", elsewhere),
        ("val", tmp_path / "set" / "val.json"),
        ("test", tmp_path / "set" / "test.txt"),
    ]


@pytest.mark.parametrize(
    ("splits", "said"),
    [
        (("missing",), "no file"),
        (("train=nowhere.json",), "no file nowhere.json"),
        (("../train",), "a split name is"),
        (("=x.json",), "a split name is"),
        (("x" * 65,), "a split name is"),
        (("train", "train"), "twice"),
    ],
)
def test_a_list_that_cannot_be_named_is_a_config_error(splits: tuple[str, ...], said: str, tmp_path: Path) -> None:
    write(tmp_path / "train.json", [])
    with pytest.raises(ConfigError, match=said):
        find_lists(tmp_path, splits)


def test_a_folder_without_lists_is_a_config_error(tmp_path: Path) -> None:
    write(tmp_path / "settings.json", {"a": 1})
    with pytest.raises(ConfigError, match="no split list in it"):
        find_lists(tmp_path, ())


def test_a_damaged_file_that_might_be_a_list_is_a_config_error(tmp_path: Path) -> None:
    write(tmp_path / "train.json", [])
    write(tmp_path / "more.json", "[{")
    with pytest.raises(ConfigError, match=r"more\.json: no readable JSON"):
        find_lists(tmp_path, ())
    assert list(find_lists(tmp_path, ("train",))) == ["train"]


def test_splits_are_ranked_train_val_test_then_by_name() -> None:
    names = ["zoo", "test", "validation", "a", "train", "val"]
    assert sorted(names, key=split_rank) == ["train", "val", "validation", "test", "a", "zoo"]


# --- files


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_bytes(b"secret")
    (tmp_path / "set" / "data" / "scene").mkdir(parents=True)
    (tmp_path / "set" / "data" / "scene" / "file").write_bytes(b"12345")
    return tmp_path / "set"


def refused(check: str, root: Path, relative: str, limit_byte: int = 100) -> None:
    with pytest.raises(SourceError) as caught:
        read_file(root, relative, limit_byte)
    assert caught.value.check == check, str(caught.value)


def test_a_file_is_read_up_to_its_limit(root: Path) -> None:
    assert read_file(root, "data/scene/file", 5) == b"12345"
    refused("size", root, "data/scene/file", 4)


def test_an_empty_file_is_read(root: Path) -> None:
    (root / "data" / "scene" / "empty").touch()
    assert read_file(root, "data/scene/empty", 0) == b""


def test_a_tree_may_be_a_link_to_another_disk(root: Path, tmp_path: Path) -> None:
    (tmp_path / "disk" / "scene").mkdir(parents=True)
    (tmp_path / "disk" / "scene" / "depth").write_bytes(b"far")
    (root / "depth_gen").symlink_to(tmp_path / "disk")
    assert read_file(root, "depth_gen/scene/depth", 100) == b"far"


def test_a_link_that_stays_inside_its_tree_is_followed(root: Path) -> None:
    (root / "data" / "scene" / "again").symlink_to("file")
    (root / "data" / "other").symlink_to("scene")
    assert read_file(root, "data/scene/again", 100) == read_file(root, "data/other/file", 100) == b"12345"


def test_links_that_lead_out_of_their_tree_are_refused(root: Path, tmp_path: Path) -> None:
    scene = root / "data" / "scene"
    (scene / "absolute").symlink_to(tmp_path / "outside" / "secret")
    (scene / "relative").symlink_to("../../../outside/secret")
    (scene / "folder").symlink_to(tmp_path / "outside")
    (tmp_path / "set2").mkdir()
    (tmp_path / "set2" / "file").write_bytes(b"a neighbour whose name begins alike")
    (scene / "alike").symlink_to(tmp_path / "set2" / "file")
    (root / "secret").symlink_to(tmp_path / "outside" / "secret")
    for name in ("data/scene/absolute", "data/scene/relative", "data/scene/folder/secret", "data/scene/alike", "secret"):
        refused("path", root, name)


@pytest.mark.parametrize(
    "relative", ["../outside/secret", "data/../../outside/secret", "/etc/hostname", "data/\0", "..", "data/.."]
)
def test_paths_that_lead_out_of_the_root_are_refused(relative: str, root: Path) -> None:
    refused("path", root, relative)


def test_missing_files_and_links_to_nowhere_are_told_as_missing(root: Path) -> None:
    (root / "data" / "scene" / "nowhere").symlink_to("gone")
    (root / "data" / "scene" / "circle").symlink_to("circle")
    for name in ("data/scene/none", "data/none/file", "data/scene/nowhere", "data/scene/file/below", "data/scene/circle"):
        refused("presence", root, name)
    refused("presence", root, "data/" + "x" * 5000)


def test_folders_and_pipes_are_no_files_and_do_not_block(root: Path) -> None:
    os.mkfifo(root / "data" / "scene" / "pipe")
    refused("container", root, "data/scene/pipe")
    refused("container", root, "data/scene")


def test_a_file_that_may_not_be_read_is_told(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", deny)
    with pytest.raises(SourceError, match="Permission denied") as caught:
        read_file(root, "data/scene/file", 100)
    assert caught.value.check == "presence" and caught.value.observed != "no such file"


def test_a_file_that_grows_or_shrinks_while_it_is_read_is_told(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, fstat = root / "data" / "scene" / "file", os.fstat
    for content in (b"123456", b"1234"):
        path.write_bytes(b"12345")

        def change_afterwards(handle: int, content: bytes = content) -> os.stat_result:
            status = fstat(handle)
            path.write_bytes(content)
            return status

        with monkeypatch.context() as patch:
            patch.setattr(os, "fstat", change_afterwards)
            refused("changed", root, "data/scene/file")


def test_checksums_are_sha256_in_hex() -> None:
    assert sha256(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
