"""What the suites find in a samples table, and what they leave behind."""

import hashlib
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from scenemill.schemas.errors import ConfigError
from scenemill.schemas.tables import SAMPLES, table_of
from scenemill.validators.derived import facts_of
from scenemill.validators.suites import DOCS_INDEX, RESULT_FILE, expect

Row = dict[str, Any]


def make_row(index: int, source: str = "front3d") -> Row:
    """A stored sample that gives no cause for complaint; every scene has four views."""
    front3d = source != "matterport"
    scene, image = f"scene{index // 4}", f"{index:04}"
    pose = np.eye(4)
    pose[2, 3] = 0.75
    return {
        "key": f"{scene}/{image}",
        "scene": scene,
        "image": image,
        "split": "train",
        "splits": ["train"],
        "part": "part0",
        "row": index,
        "digest": hashlib.sha256(f"{index}".encode()).hexdigest(),
        "fields": ["rgb"],
        "grid": 64,
        "image_height_pixel": 240,
        "image_width_pixel": 320,
        "intrinsics": np.eye(4).ravel().tolist(),
        "world_from_camera": pose.ravel().tolist() if front3d else None,
        "campose": None,
        "classes_2d": [3, 10, 11],
        "classes_3d": [3, 10, 11],
        "instances_2d": [0, 7],
        "instances_3d": [0, 7],
        "things_2d": 1,
        "things_3d": 1,
        "depth_min_m": 0.8,
        "depth_max_m": 4.1,
        "depth_valid_share": 1.0,
        "geometry_min_voxel": 1e-4 if front3d else -12.0,
        "geometry_max_voxel": 12.0,
        "geometry_float32_exact": True,
        "geometry_error_max_voxel": 0.0,
        "voxels_observed": 2000,
        "voxels_occupied": 300,
        "voxels_labelled": 300 if front3d else 900,
        "depth_on_surface_share": 1.0,
        "labels_agree_share": 0.995,
        "warnings": 0,
        "raw_byte": 1000,
        "stored_byte": 900,
        "files": [],
    }


def make_table(count: int, source: str = "front3d", spoil: Callable[[list[Row]], object] = lambda rows: None) -> pa.Table:
    rows = [make_row(index, source) for index in range(count)]
    spoil(rows)
    return table_of(SAMPLES, rows)


@pytest.mark.parametrize("source", ["front3d", "synthetic_hospital", "synthetic_warehouse", "matterport"])
def test_a_good_table_meets_every_expectation(source: str) -> None:
    for count in (1, 40):
        expected = expect(source, make_table(count, source), None)
        assert expected.failed == ()
        assert expected.met == expected.expectations > 30
        assert not expected.blocks


WRONG = (
    ("key", "scene0/0000", "critical", "2 of 40 rows have scene0/0000"),
    ("key", "scene0", "critical", "1 of 40 rows have scene0"),
    ("row", 0, "critical", "2 of 40 rows have 0"),
    ("row", -1, "critical", "expected at least 0"),
    ("digest", "ABC", "critical", "1 of 40 rows have ABC"),
    ("digest", hashlib.sha256(b"0").hexdigest(), "warning", "expected every value once"),
    ("split", "", "critical", "not empty"),
    ("part", "", "critical", "not empty"),
    ("grid", 128, "critical", "1 of 40 rows have 128 (samples scene4/0018); expected 64 as in most rows"),
    ("image_width_pixel", 640, "critical", "expected 320"),
    ("depth_min_m", 0.0, "critical", "more than 0"),
    ("depth_max_m", float("nan"), "critical", "a value in every row"),
    ("depth_max_m", 6.5, "warning", "1 of 40 rows have 6.5"),
    ("depth_valid_share", 0.0, "critical", "more than 0"),
    ("geometry_min_voxel", -0.5, "critical", "at least 0 and less than 1"),
    ("geometry_max_voxel", 11.0, "critical", "expected 12"),
    ("geometry_error_max_voxel", 0.1, "critical", "at most 0.00390625"),
    ("depth_on_surface_share", 0.99, "critical", "1 of 40 rows have 0.99 (samples scene6/0027); expected at least 0.998"),
    ("voxels_observed", 0, "critical", "at least 1"),
    ("raw_byte", 0, "critical", "at least 1"),
    ("stored_byte", 0, "critical", "at least 1"),
)


def test_every_wrong_value_is_found_and_named() -> None:
    def spoil(rows: list[Row]) -> None:
        for row, (column, value, _, _) in zip(rows[10:], WRONG, strict=False):
            row[column] = value

    expected = expect("front3d", make_table(40, spoil=spoil), None)
    for column, _, severity, told in WRONG:
        found = [failed.what for failed in expected.failed if (failed.column, failed.severity) == (column, severity)]
        assert any(told in what for what in found), (column, told, expected.failed)
    assert {failed.column for failed in expected.failed} <= {column for column, *_ in WRONG}
    assert expected.blocks
    assert expected.met == expected.expectations - len(expected.failed)
    assert [failed.severity for failed in expected.failed] == sorted(failed.severity for failed in expected.failed)


@pytest.mark.parametrize(
    ("values", "column", "severity"),
    [
        ({"voxels_labelled": 299}, "occupied_not_labelled", "critical"),
        ({"classes_2d": [3, 13]}, "classes_2d_max", "critical"),
        ({"classes_3d": []}, "classes_3d_max", "critical"),
        ({"world_from_camera": np.diag([1, 1, 2, 1.0]).ravel().tolist()}, "pose_error", "critical"),
        ({"world_from_camera": np.diag([1, 1, -1, 1.0]).ravel().tolist()}, "pose_error", "critical"),
    ],
)
def test_what_lists_and_matrices_hold_is_judged(values: Row, column: str, severity: str) -> None:
    expected = expect("front3d", make_table(8, spoil=lambda rows: rows[5].update(values)), None)
    found = {failed.column: failed for failed in expected.failed}
    assert found[column].severity == severity
    assert "scene1/0005" in found[column].what


def test_what_holds_in_most_rows_bears_an_exception() -> None:
    def spoil(rows: list[Row]) -> None:
        rows[5].update(labels_agree_share=0.9, things_3d=0, things_2d=0, warnings=1)

    assert expect("front3d", make_table(40, spoil=spoil), None).failed == ()


def test_shares_of_the_whole_table_are_judged_from_27_rows_on() -> None:
    def spoil(rows: list[Row]) -> None:
        for row in rows:
            row.update(classes_2d=[3, 11], warnings=1)

    found = {failed.column: failed for failed in expect("front3d", make_table(27, spoil=spoil), None).failed}
    assert set(found) == {"shows_wall", "warned"}
    assert found["shows_wall"].what == "found 0; expected a mean of at least 0.87 and at most 1"
    assert expect("front3d", make_table(26, spoil=spoil), None).failed == ()


def test_a_scene_and_a_file_in_two_splits_are_told_but_do_not_block() -> None:
    def spoil(rows: list[Row]) -> None:
        rows[5].update(splits=["val"], split="val", digest=rows[0]["digest"])

    expected = expect("front3d", make_table(8, spoil=spoil), None)
    found = {failed.column: failed.what for failed in expected.failed}
    assert set(found) == {"digest", "splits_of_digest", "splits_of_scene"}
    assert "scene0/0000, scene1/0005" in found["splits_of_digest"]
    assert "4 of 8 rows have 2" in found["splits_of_scene"]
    assert not expected.blocks


def test_samples_outside_a_store_are_not_asked_for_row_and_split() -> None:
    def spoil(rows: list[Row]) -> None:
        for row in rows:
            row.update(row=-1, part="", split="", splits=[], stored_byte=0)

    assert expect("front3d", make_table(8, spoil=spoil), None).failed == ()


def test_matterport_warns_of_depth_off_the_surface() -> None:
    def spoil(rows: list[Row]) -> None:
        for row in rows:
            row["depth_on_surface_share"] = 0.39

    expected = expect("matterport", make_table(8, "matterport", spoil), None)
    assert [(failed.severity, failed.column) for failed in expected.failed] == [("warning", "depth_on_surface_share")]
    assert len(re.findall(r"scene\d/", expected.failed[0].what)) == 3


def test_an_empty_table_is_a_critical_failure(tmp_path: Path) -> None:
    expected = expect("front3d", SAMPLES.empty_table(), tmp_path)
    assert (expected.expectations, expected.met, expected.blocks) == (1, 0, True)
    assert expected.failed[0].what == "found 0; expected at least one row"
    assert (tmp_path / DOCS_INDEX).is_file()


def test_a_call_that_cannot_be_right_is_refused() -> None:
    with pytest.raises(ConfigError, match="not known"):
        expect("kitti", make_table(1), None)
    with pytest.raises(ConfigError, match="lacks digest"):
        expect("front3d", make_table(1).drop_columns(["digest"]), None)


def test_derived_facts_are_arithmetic() -> None:
    def spoil(rows: list[Row]) -> None:
        rows[0].update(classes_2d=[], classes_3d=[1, 12, 11], warnings=3, things_2d=4, world_from_camera=None)
        rows[3].update(splits=["val", "test"])

    chunks = make_table(5, spoil=spoil)
    facts = facts_of(pa.concat_tables([chunks.slice(0, 2), chunks.slice(2)]))
    assert facts["classes_2d_max"].to_pylist() == [0, 11, 11, 11, 11]
    assert facts["classes_3d_max"].to_pylist() == [12, 11, 11, 11, 11]
    assert facts["shows_wall"].to_pylist() == [0, 1, 1, 1, 1]
    assert facts["warned"].to_pylist() == [1, 0, 0, 0, 0]
    assert facts["things_not_in_3d"].to_pylist() == [3, 0, 0, 0, 0]
    assert facts["splits_of_digest"].to_pylist() == [1, 1, 1, 2, 1]
    assert facts["splits_of_scene"].to_pylist() == [3, 3, 3, 3, 1]
    assert np.isnan(facts["camera_height_m"][0].as_py())
    assert facts["camera_height_m"].to_pylist()[1:] == [0.75] * 4
    assert facts["pose_error"].to_pylist()[1:] == [0.0] * 4


def test_nothing_but_the_folder_is_written_and_nothing_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a connection was tried")

    elsewhere, home = tmp_path / "elsewhere", tmp_path / "home"
    for folder in (elsewhere, home):
        folder.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("TMPDIR", str(elsewhere))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    expect("front3d", make_table(30), tmp_path / "out")
    assert list(elsewhere.iterdir()) == list(home.iterdir()) == []
    written = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert written == ["docs/expectations.html", "docs/index.html", "validation.json"]
    assert capfd.readouterr() == ("", "")
    assert os.environ["GX_ANALYTICS_ENABLED"] == "false"


def test_pages_are_whole_without_the_network(tmp_path: Path) -> None:
    def spoil(rows: list[Row]) -> None:
        rows[5].update(depth_min_m=0.0, digest="<b>&")

    expect("front3d", make_table(30, spoil=spoil), tmp_path)
    for name in ("index.html", "expectations.html"):
        page = (tmp_path / DOCS_INDEX).with_name(name).read_text(encoding="utf-8")
        assert not re.search(r"https?:|//[a-z]+\.|<script|<link|<img|@import|url\(|<iframe", page, re.IGNORECASE)
        assert "Content-Security-Policy" in page
        targets = set(re.findall(r'href="([^"]+)"', page))
        assert {target for target in targets if not target.startswith("#")} <= {"index.html", "expectations.html"}
        assert all(re.search(rf'id="?{re.escape(target[1:])}["\s]', page) for target in targets if target.startswith("#"))
    page = (tmp_path / DOCS_INDEX).read_text(encoding="utf-8")
    assert "<h1>front3d: 30 samples</h1>" in page
    assert "1 of 30 rows have 0 (samples scene1/0005); expected more than 0" in page
    assert "1 of 30 rows have &lt;b&gt;&amp;" in page
    assert "an index on the sample axis" in page


def test_the_result_is_written_as_plain_json(tmp_path: Path) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    expected = expect("front3d", make_table(30, spoil=lambda rows: rows[5].update(raw_byte=0)), tmp_path)
    result = json.loads((tmp_path / RESULT_FILE).read_text(encoding="utf-8"), parse_constant=refuse)
    assert result["success"] is False
    assert len(result["results"]) == expected.expectations
    failed = [found for found in result["results"] if not found["success"]]
    assert [found["expectation_config"]["meta"]["severity"] for found in failed] == ["critical"]
    assert failed[0]["result"]["partial_unexpected_index_list"] == [{"key": "scene1/0005", "raw_byte": 0}]


def test_the_library_is_imported_only_when_needed() -> None:
    script = "import sys, scenemill.validators.suites; sys.exit('great_expectations' in sys.modules or 'pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
