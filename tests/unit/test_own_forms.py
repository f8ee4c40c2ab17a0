"""Sources of one's own: what a form may say, how its code is found and run, what is listed, and what becomes of its mistakes."""

import pickle
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from scenemill.pipelines.examine import checks_of, examine
from scenemill.pipelines.folder import read_folder
from scenemill.pipelines.runners.options import RunnerConfig
from scenemill.pipelines.schedule.files import load_schedule
from scenemill.schemas.config import IngestConfig
from scenemill.schemas.dataset import DatasetConfig
from scenemill.schemas.errors import ConfigError, Conflict, SourceError
from scenemill.schemas.fields import Field, fields_of
from scenemill.schemas.forms import Form, Listed, RawFile, fill, from_json, to_json
from scenemill.schemas.jobs import IngestSpec
from scenemill.schemas.labels import LABELS, Label
from scenemill.schemas.sample import SampleKey
from scenemill.schemas.tables import Finding
from scenemill.transforms import own_forms
from scenemill.transforms.layout import Layout
from scenemill.transforms.own_forms import find_own, load_form
from scenemill.transforms.sources import Source, list_samples, open_source, read_sample
from scenemill.transforms.sums import sums_of

ROOM = {field.name: field for field in fields_of("front3d")}
RGB = ROOM["rgb"]
TOWN = Label(1, "town hall", True, (1, 2, 3))

CODE = """
from scenemill import Field, Finding, Form, Listed, RawFile, SourceError, fill
from scenemill.schemas.fields import fields_of
from scenemill.transforms.images import read_png

RGB, DEPTH = fields_of("front3d")[:2]
HEIGHT = Field("height", ("row", "column"), "int16", -1, "cm", "above the floor", "height")

def list_samples(root):
    return [Listed(f"{path.parent.name}/{path.stem}", ("train",)) for path in root.glob("*/*.png")]

def paths(key):
    return {"rgb": f"{key.scene}/{key.image}.png", "height": f"{key.scene}/{key.image}.txt"}

def read_rgb(data, arrays, facts):
    fill(arrays["rgb"], read_png(data, arrays["rgb"].shape[:2], {"RGB": "uint8"}))

def read_height(data, arrays, facts):
    values = [int(word) for word in data.split()]
    arrays["height"].reshape(-1)[:len(values)] = values

FILES = (RawFile("rgb", ("rgb",), read_rgb), RawFile("height", ("height",), read_height))
SOURCE = Form("heights", (RGB, HEIGHT), FILES, list_samples, paths)
"""


def decode(data: bytes, arrays: Any, facts: dict[str, Any]) -> None:
    raise SourceError("never", "called", "not called")


def no_samples(root: Any) -> list[Listed]:
    return []


def no_paths(key: SampleKey) -> dict[str, str]:
    return {"rgb": f"{key}.png"}


def form(fields: tuple[Field, ...] = (RGB,), files: tuple[RawFile, ...] | None = None, **more: Any) -> Form:
    given = (RawFile("rgb", tuple(field.name for field in fields), decode),) if files is None else files
    fields = tuple(replace(field, origin="rgb") for field in fields) if files is None else fields
    return Form(**{"name": "mine", "fields": fields, "files": given, "list_samples": no_samples, "paths": no_paths, **more})


@pytest.fixture
def code(tmp_path: Path) -> Path:
    path = tmp_path / "code" / "my_source.py"
    path.parent.mkdir()
    path.write_text(CODE)
    return path


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Two scenes of two views of 3 x 2 pixels."""
    for number, name in enumerate(("a/0", "a/1", "b/0", "b/7")):
        path = tmp_path / "raw" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((2, 3, 3), number, np.uint8)).save(path)
        path.with_suffix(".txt").write_text(" ".join(map(str, range(number, number + 6))))
    return tmp_path / "raw"


def opened(code: Path, raw: Path) -> tuple[Source, list[Listed]]:
    reference = f"{code}:SOURCE"
    listed, _ = list_samples(reference, raw)
    return open_source(reference, raw, listed), listed


def findings_of(code: Path, raw: Path) -> list[Finding]:
    source, listed = opened(code, raw)
    return examine(source, listed[0])[1]


def change(code: Path, *pairs: tuple[str, str]) -> Path:
    text = code.read_text()
    for before, after in pairs:
        assert before in text
        text = text.replace(before, after)
    code.write_text(text)
    return code


# --- what a form may say


def test_a_form_says_which_fields_there_are() -> None:
    depth = ROOM["depth"]
    found = form((RGB, depth))
    assert [field.name for field in found.fields] == ["rgb", "depth"] and found.labels == LABELS


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"name": "front3d"}, "none of front3d"),
        ({"name": "My Data"}, "a-z, 0-9 and _"),
        ({"version": "a b"}, "version"),
        ({"grid": -1}, "grid -1"),
        ({"labels": (TOWN, TOWN)}, "each once"),
        ({"labels": (replace(TOWN, id=255),)}, "0 to 254"),
        ({"labels": (replace(TOWN, name=""),)}, "texts of 1 to 64"),
        ({"labels": (replace(TOWN, color=(0, 0, 256)),)}, "a colour"),
        ({"files": ()}, "one called 'rgb'"),
        ({"files": (RawFile("rgb", ("rgb",), decode), RawFile("rgb", ("rgb",), decode))}, "each once"),
        ({"files": (RawFile("rgb", ("rgb", "night"), decode),)}, "no fields of it"),
        ({"files": (RawFile("rgb", ("rgb",), decode, required=False),)}, "no required file gives"),
        ({"files": (RawFile("rgb", (), decode), RawFile("other", ("rgb",), decode))}, "gives no 'rgb'"),
        ({"fields": (RGB, ROOM["semantic_2d"]), "files": (RawFile("rgb", ("rgb", "semantic_2d"), decode),)}, "from 'segmap:data"),
    ],
)
def test_a_form_that_does_not_fit_is_refused_in_words(change: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        form(**change)


@pytest.mark.parametrize(
    ("field", "told"),
    [
        (replace(RGB, name="../rgb"), "a-z, 0-9 and _"),
        (replace(RGB, name="parts"), "none of frustum, parts"),
        (replace(RGB, axes=()), "at least one of"),
        (replace(RGB, axes=("row", "row")), "each once"),
        (replace(RGB, axes=("row", "time")), "at least one of"),
        (replace(RGB, name="cube", axes=("x", "y", "z")), "its source a grid"),
        (replace(RGB, name="slab", axes=("x", "y")), "axes x, y, z alone"),
        (replace(RGB, name="text", dtype="object"), "dtype 'object'"),
        (replace(RGB, name="low", fill=-1), "fill -1"),
        (replace(RGB, name="low", fill=0.5), "fill 0.5"),
        (replace(RGB, name="dense", codec=(10, "shuffle")), "codec"),
        (replace(ROOM["depth"], unit="mm"), "give it that, or another name"),
        (replace(ROOM["semantic_2d"], dtype="uint16"), "give it that, or another name"),
    ],
)
def test_a_field_that_no_store_can_hold_or_that_means_something_else_is_refused(field: Field, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        form((RGB, field) if field.name != "rgb" else (field,))


def test_fields_and_labels_come_back_from_a_manifest_as_they_were() -> None:
    fields = (RGB, ROOM["world_from_camera"], Field("far", ("row",), "float64", float("-inf"), "m", "x", "y"))
    layout = Layout("mine", 0, (2, 3), 4, "float32", "", fields, (TOWN,))
    back = Layout.from_manifest({"format": "scenemill-store/1", "layout": layout.to_json()})
    assert to_json(back.own_fields, back.own_labels) == to_json(fields, (TOWN,))
    assert back.fields[1].fill != back.fields[1].fill and back.fields[2].fill == float("-inf") and back.labels == (TOWN,)
    assert "own" not in Layout("front3d", 64, (2, 3), 4, "float32").to_json()


@pytest.mark.parametrize("name", ["../../etc", "runs", ""])
def test_a_manifest_whose_fields_would_leave_the_store_is_refused(name: str) -> None:
    held = to_json((RGB,), ())
    held["fields"][0]["name"] = name
    with pytest.raises(ConfigError, match="a-z, 0-9 and _"):
        from_json(held, 0)


@pytest.mark.parametrize(
    ("values", "dtype", "check"),
    [
        (np.zeros(3), "uint8", "shape"),
        (np.array([0, 256]), "uint8", "range"),
        (np.array([-1, 0]), "uint16", "range"),
        (np.array([0.5, 1]), "uint8", "range"),
        (np.array([np.nan, 1]), "uint8", "range"),
        (np.array([2, 0]), "bool", "range"),
        (np.array(["a", "b"]), "uint8", "dtype"),
    ],
)
def test_values_that_an_array_cannot_hold_are_never_wrapped(values: Any, dtype: str, check: str) -> None:
    target = np.full(2, 1, dtype)
    with pytest.raises(SourceError, match=f"^{check}:"):
        fill(target, values)
    assert target.tolist() == [1, 1]


def test_values_that_fit_are_filled_in() -> None:
    target = np.zeros(2, np.uint8)
    fill(target, [3.0, 255.0])
    assert target.tolist() == [3, 255]


# --- finding and running the code


def test_a_form_is_found_by_file_and_by_installed_module(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(code.parent)
    by_file, by_module = find_own(f"{code}:SOURCE"), find_own("my_source:SOURCE")
    assert by_file.form.name == by_module.form.name == "heights"
    assert by_file.digest == by_module.digest and by_file.reference == f"{code}:SOURCE"
    del sys.modules["my_source"]
    own_forms._import.cache_clear()


def test_nothing_is_left_beside_the_file(code: Path) -> None:
    find_own(f"{code}:SOURCE")
    assert [path.name for path in code.parent.iterdir()] == ["my_source.py"]


def test_a_relative_file_is_known_by_its_absolute_path(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(code.parent)
    assert find_own("my_source.py:SOURCE").reference == f"{code}:SOURCE"


@pytest.mark.parametrize(
    ("reference", "told"),
    [
        ("nothing.py:SOURCE", "No such file"),
        ("no_such_module:SOURCE", "cannot be imported: ModuleNotFoundError"),
        ("s3://bucket/source.py:SOURCE", "code on this machine"),
        ("my_source.py:", "write FILE.py:NAME"),
        (":SOURCE", "write FILE.py:NAME"),
        ("json.decoder:JSONDecoder", "JSONDecoder is type; make it a scenemill.Form"),
        ("sys:version", "no file"),
    ],
)
def test_a_reference_to_nothing_is_told(reference: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        find_own(reference)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("SOURCE = 1 / 0", r"ZeroDivisionError.*\(my_source.py, line 1\)"),
        ("def (", "SyntaxError"),
        ("import no_such_thing", "ModuleNotFoundError"),
        ("x = 1", "no SOURCE in it; its forms are none"),
        ("SOURCE = 1", "SOURCE is int; make it a scenemill.Form"),
        (CODE.replace("SOURCE =", "ROOMS ="), "no SOURCE in it; its forms are ROOMS"),
    ],
)
def test_code_that_cannot_be_run_is_told_with_its_line(text: str, told: str, code: Path) -> None:
    code.write_text(text)
    with pytest.raises(ConfigError, match=told):
        find_own(f"{code}:SOURCE")


def test_code_that_changes_under_way_is_a_conflict(code: Path) -> None:
    own = find_own(f"{code}:SOURCE")
    change(code, ("heights", "depths"))
    load_form.cache_clear()
    with pytest.raises(Conflict, match="changed while the run was under way"):
        load_form(own.reference, own.digest)


def test_a_source_goes_to_workers_by_reference(code: Path, raw: Path) -> None:
    source, listed = opened(code, raw)
    sent = pickle.dumps(source)
    load_form.cache_clear()
    back = pickle.loads(sent)
    assert back == source and len(sent) < 1000
    assert read_sample(back, listed[3])[0]["height"].tolist() == [[3, 4, 5], [6, 7, 8]]


# --- listing


def listing(code: Path, raw: Path, listed: str, splits: tuple[str, ...] = ()) -> tuple[list[Listed], dict[str, list[Finding]]]:
    change(code, ('[Listed(f"{path.parent.name}/{path.stem}", ("train",)) for path in root.glob("*/*.png")]', listed))
    return list_samples(f"{code}:SOURCE", raw, splits)


def test_samples_are_sorted_and_every_key_is_one_sample(code: Path, raw: Path) -> None:
    given = '[Listed("b/0", ("val",)), Listed("a/1", ("train",)), Listed("b/0", ("train",)), Listed("a/1", ("train",))]'
    listed, findings = listing(code, raw, given)
    assert listed == [Listed("a/1", ("train",)), Listed("b/0", ("train", "val"))]
    assert [(key, found.check, found.observed) for key, some in findings.items() for found in some] == [
        ("a/1", "list", "twice in train"),
        ("b/0", "split_overlap", "in the lists train, val"),
    ]


def test_splits_are_chosen_by_name(code: Path, raw: Path) -> None:
    given = '[Listed("b/0", ("val",)), Listed("a/1", ("train", "val")), Listed("a/0", ("train",))]'
    listed, _ = listing(code, raw, given, ("val",))
    assert listed == [Listed("a/1", ("val",)), Listed("b/0", ("val",))]
    with pytest.raises(ConfigError, match=r"--splits test: .* lists train, val"):
        list_samples(f"{code}:SOURCE", raw, ("test",))


def test_keys_that_name_nothing_become_findings(code: Path, raw: Path) -> None:
    listed, findings = listing(code, raw, '[Listed("../b", ("val",)), Listed("a", ("val",)), Listed("a/0", ("val",))]')
    assert [one.key for one in listed] == ["a/0"] and set(findings) == {"../b", "a"}
    assert all(found.blocks for some in findings.values() for found in some)


@pytest.mark.parametrize(
    ("listed", "told"),
    [
        ("1 / 0", "list_samples.* fails: ZeroDivisionError"),
        ("['a/0']", "give Listed"),
        ("[Listed('a/0', ())]", "give Listed"),
        ("[Listed('a/0', 'train')]", "give Listed"),
        ("[Listed('a/0', ('a b',))]", "give Listed"),
    ],
)
def test_a_listing_that_fails_is_told(listed: str, told: str, code: Path, raw: Path) -> None:
    with pytest.raises(ConfigError, match=told):
        listing(code, raw, listed)


def test_paths_that_leave_a_kind_out_are_told(code: Path, raw: Path) -> None:
    change(code, (', "height": f"{key.scene}/{key.image}.txt"', ""))
    with pytest.raises(ConfigError, match=r"paths\('./.'\) gives .*; give a path for each of \['rgb', 'height'\]"):
        opened(code, raw)


def test_an_empty_folder_says_so(code: Path, tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    with pytest.raises(ConfigError, match=r"0 samples under .*gives none"):
        read_folder(IngestConfig(f"{code}:SOURCE", tmp_path / "raw"), {}, None, lambda *args: None)


# --- reading


def test_what_a_decoder_leaves_unfilled_is_the_fill_and_nothing_of_the_sample_before(code: Path, raw: Path) -> None:
    source, listed = opened(code, raw)
    (raw / "a" / "0.txt").write_text("7")
    arrays = source.new_arrays()
    read_sample(source, listed[3], arrays)
    assert read_sample(source, listed[0], arrays)[0]["height"].tolist() == [[7, -1, -1], [-1, -1, -1]]


def test_what_a_decoder_raises_rejects_the_sample_and_names_the_line(code: Path, raw: Path) -> None:
    (raw / "a" / "0.txt").write_text("one two")
    (found,) = findings_of(code, raw)
    assert (found.check, found.field, found.blocks) == ("decode", "height", True)
    assert "ValueError" in found.observed and "(my_source.py, line " in found.observed


def test_files_that_lead_out_of_the_folder_are_not_read(code: Path, raw: Path) -> None:
    change(code, ('f"{key.scene}/{key.image}.txt"', '"../code/my_source.py"'))
    assert [(found.check, found.blocks) for found in findings_of(code, raw)] == [("path", True)]


CHECK = """
def check(sample):
    {body}

SOURCE = Form("heights", (RGB, HEIGHT), FILES, list_samples, paths, checks=(check,))
"""


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ('yield Finding("tall", "height", "warning", "x", "y")', ("tall", "warning")),
        ('return [Finding("tall", "height", "error", "x", "y")]', ("tall", "error")),
        ("return sample['nothing']", ("check", "error")),
    ],
)
def test_checks_of_the_form_are_run_and_a_failing_one_rejects(body: str, found: tuple[str, str], code: Path, raw: Path) -> None:
    code.write_text(CODE + CHECK.format(body=body))
    assert [(one.check, one.severity) for one in findings_of(code, raw)] == [found]


def with_field(code: Path, field: str, value: str) -> Path:
    """The height, as another field of one value."""
    return change(
        code,
        (
            'HEIGHT = Field("height", ("row", "column"), "int16", -1, "cm", "above the floor", "height")',
            f'from dataclasses import replace\nHEIGHT = replace({field}, origin="height")',
        ),
        ('("height",), read_height', "(HEIGHT.name,), read_height"),
        ("    values = [int(word) for word in data.split()]\n", ""),
        ('arrays["height"].reshape(-1)[:len(values)] = values', f"arrays[HEIGHT.name][...] = {value}"),
    )


@pytest.mark.parametrize(
    ("field", "value", "check"),
    [
        ("DEPTH", "2.5", ""),
        ("DEPTH", "0", "depth_range"),
        ("DEPTH", "-2", "depth_range"),
        ("DEPTH", "2500", "depth_unit"),
        ("DEPTH", "float('nan')", "finite"),
        ('{f.name: f for f in fields_of("front3d")}["semantic_2d"]', "12", ""),
        ('{f.name: f for f in fields_of("front3d")}["semantic_2d"]', "13", "label_known"),
        ('Field("warmth", ("row", "column"), "float32", 0.0, "K", "x", "height")', "float('inf')", "finite"),
        ('Field("warmth", ("row", "column"), "float32", float("nan"), "K", "x", "height")', "float('inf')", ""),
        ('{f.name: f for f in fields_of("front3d")}["intrinsics"]', "0", "intrinsics"),
        ('{f.name: f for f in fields_of("front3d")}["world_from_camera"]', "1", "pose"),
    ],
)
def test_fields_that_rooms_have_too_are_held_to_the_same(field: str, value: str, check: str, code: Path, raw: Path) -> None:
    found = {one.check for one in findings_of(with_field(code, field, value), raw) if one.blocks}
    assert check in found if check else not found


# --- who may name code


@pytest.mark.parametrize("spec", [IngestSpec, DatasetConfig])
def test_no_request_names_code(spec: Any) -> None:
    given = (
        {"name": "my_source.py:SOURCE"}
        if spec is DatasetConfig
        else {"source": "my_source.py:SOURCE", "input": "raw", "output": "store"}
    )
    with pytest.raises(ConfigError, match="allowed is 'front3d'"):
        spec(**given)


def test_no_schedule_names_code(tmp_path: Path) -> None:
    path = tmp_path / "nightly.yaml"
    path.write_text("source: my_source.py:SOURCE\ninput: raw\noutput: store\nstart: 2026-01-01\n")
    with pytest.raises(ConfigError, match="source"):
        load_schedule(path)


# --- provenance


def test_changed_code_judges_anew_and_its_place_does_not(code: Path, raw: Path, tmp_path: Path) -> None:
    before = checks_of(opened(code, raw)[0])
    other = tmp_path / "elsewhere.py"
    other.write_text(CODE)
    assert checks_of(opened(other, raw)[0]) == before
    code.write_text(f"{CODE}\n# a note")
    assert checks_of(opened(code, raw)[0]) != before


def test_sums_that_other_code_remembered_are_made_anew(code: Path, raw: Path) -> None:
    """Whether a file that is not there counts is for the code to say."""
    (raw / "a" / "0.txt").unlink()
    source, listed = opened(code, raw)
    before = sums_of(source, listed[0])
    change(
        code,
        ('"cm", "above the floor", "height")', '"cm", "above the floor", "height", required=False)'),
        ("read_height))", "read_height, required=False))"),
    )
    source, listed = opened(code, raw)
    after = sums_of(source, listed[0])
    assert after.digest != before.digest and after.fingerprint != before.fingerprint
    assert examine(source, listed[0])[0].facts["digest"] == after.digest


def test_the_version_of_the_form_and_its_code_judge_with_the_checks(code: Path, raw: Path) -> None:
    first = checks_of(opened(code, raw)[0])
    second = checks_of(opened(change(code, ("paths)", 'paths, version="2")')), raw)[0])
    assert first.startswith("1+heights-1-") and second.startswith("1+heights-2-") and first[-16:] != second[-16:]


@pytest.mark.parametrize(("precision", "told"), [("float16", "only volumes of rooms")])
def test_what_speaks_of_distances_is_refused(precision: str, told: str, code: Path, raw: Path) -> None:
    with pytest.raises(ConfigError, match=told):
        IngestConfig(f"{code}:SOURCE", raw, precision=precision)


def test_workers_of_dataflow_have_modules_and_no_files_of_this_machine() -> None:
    pytest.importorskip("google.cloud.dataflow", reason="the extra gcp is not installed")
    from scenemill.pipelines.runners.dataflow import dataflow_options

    runner = RunnerConfig("dataflow", project="p-id", region="us-central1", temp_location="gs://bucket/tmp", image="registry/it:1")
    config = IngestConfig("my_source.py:SOURCE", Path("gs://bucket/raw"), Path("gs://bucket/store"))
    with pytest.raises(ConfigError, match="put it into their image as a module"):
        dataflow_options(config, runner)
    options = dataflow_options(replace(config, source="my_lab.Rooms:SOURCE"), runner)
    assert str(options.get_all_options()["job_name"]).startswith("scenemill-ingest-my-lab-rooms-source-")


MATTERPORT = """
from scenemill import Form
from scenemill.schemas.fields import fields_of
from scenemill.transforms import matterport3d, sources

def list_samples(root):
    return sources.list_samples("matterport", root)[0]

SOURCE = Form("rooms", fields_of("matterport"), matterport3d.FILES, list_samples, matterport3d.paths, grid=64)
"""


def test_a_form_with_volumes_reads_and_counts_what_the_built_in_source_does(matterport_world: Path, code: Path) -> None:
    code.write_text(MATTERPORT)
    source, listed = opened(code, matterport_world)
    same, _ = list_samples("matterport", matterport_world)
    built_in = open_source("matterport", matterport_world, same)
    assert listed == same and source.grid == built_in.grid == 64
    found = [examine(one, listed[0]) for one in (source, built_in)]
    assert found[0][0] == found[1][0] and found[0][1] == []
    own, room = (facts for _, _, facts in found)
    assert own.pop("geometry_float32_exact") and {name for name in room if own[name] != room[name]} <= {
        "depth_on_surface_share",  # the camera lies in the grid as in 3D-Front
        "labels_agree_share",
    }
