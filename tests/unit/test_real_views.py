"""The readers and checks on released views: equal to NumPy, without errors, with the numbers known of them."""

import json
import os
from collections import Counter
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import OpenEXR
import pytest
from numpy.typing import NDArray
from PIL import Image

from scenemill.pipelines.examine import read_frustum, rules_of
from scenemill.schemas.places import on_disk
from scenemill.schemas.sample import Sample, SampleKey
from scenemill.schemas.tables import Finding
from scenemill.transforms.geometry import FRONT3D_INTRINSICS, back_project, front3d_frustum, matterport_frustum
from scenemill.transforms.sources import Listed, Source, raw_files, read_sample
from scenemill.validators.checks import check_sample
from scenemill.validators.measures import Measured

pytestmark = pytest.mark.real

MEASURED_CENTRE = (127.085, 127.743, 21.677)  # of 3D-Front, image-aligned, +- 0.03 voxel
REAL = Path(os.environ.get("SCENEMILL_REAL_DATA", Path(__file__).resolve().parents[2].parent / "shared"))


@dataclass(frozen=True)
class Read:
    """A view as our reader gives it, and what is known of it."""

    source: Source
    listed: Listed
    sample: Sample
    findings: tuple[Finding, ...]
    measured: Measured
    known: dict[str, Any]

    @property
    def truncated(self) -> NDArray[np.float32]:
        """Unsigned distance, at most 12."""
        truncated: NDArray[np.float32] = np.minimum(np.abs(self.sample["geometry"]), np.float32(12))
        return truncated


@lru_cache(maxsize=2)
def arrays_of(source: Source) -> dict[str, NDArray[Any]]:
    return source.new_arrays()


def known_views() -> list[dict[str, Any]]:
    path = REAL / "golden" / "loader" / "views.json"
    views: list[dict[str, Any]] = json.loads(path.read_bytes())["views"] if path.is_file() else []
    return views


@pytest.fixture(
    scope="module",
    params=known_views(),
    ids=lambda known: f"{known['view']['dataset']}-{known['view']['image']}" if known else "none",
)
def view(request: pytest.FixtureRequest, real_data: Path) -> Read:
    """One view after the other: tests of one view share its reading."""
    known = request.param
    name, key = known["view"]["dataset"], f"{known['view']['scene']}/{known['view']['image']}"
    source, listed = Source(name, real_data / "data" / name, 256, (240, 320)), Listed(key, ())
    sample, findings = read_sample(source, listed, arrays_of(source))
    found, measured = check_sample(sample, rules_of(source))
    return Read(source, listed, sample, (*findings, *found), measured, known)


def load(path: Path, member: str = "data") -> NDArray[Any]:
    with np.load(path) as archive:
        array: NDArray[Any] = archive[member]
    return array


def test_every_array_equals_what_numpy_loads(view: Read) -> None:
    sample, front3d = view.sample, view.source.name == "front3d"
    paths = {kind: on_disk(view.source.root) / path for kind, path in raw_files(view.source, view.listed).items()}
    turn = (slice(None, None, -1), slice(None, None, -1)) if front3d else (slice(None), slice(None))
    geometry = load(paths["geometry"])[turn]
    np.testing.assert_array_equal(sample["geometry"], geometry)  # not rounded: every float64 is a float32
    del geometry
    for channel, name in enumerate(("semantic_3d", "instance_3d")):
        np.testing.assert_array_equal(sample[name], load(paths["segmentation"])[channel][turn])
    np.testing.assert_array_equal(sample["weighting"], load(paths["weighting"])[turn])
    segmap = load(paths["segmap"])
    for channel, name in enumerate(("semantic_2d", "instance_2d") if front3d else ("semantic_2d", "instance_2d", "room")):
        np.testing.assert_array_equal(sample[name], segmap[..., channel])
    np.testing.assert_array_equal(sample["rgb"], np.array(Image.open(paths["rgb"])))
    if front3d:
        np.testing.assert_array_equal(sample["depth"], OpenEXR.File(str(paths["depth"])).channels()["Z"].pixels)
        np.testing.assert_array_equal(sample["intrinsics"], FRONT3D_INTRINSICS)
        assert ("world_from_camera" in sample) == paths["campose"].is_file()
        if "world_from_camera" in sample:
            np.testing.assert_array_equal(sample["world_from_camera"], load(paths["campose"], "camera2world"))
    else:
        np.testing.assert_array_equal(sample["depth"], (np.array(Image.open(paths["depth"])) / 4000).astype(np.float32))
        np.testing.assert_array_equal(sample["intrinsics"], np.load(paths["intrinsics"]))
        np.testing.assert_array_equal(sample["outside"], load(paths["geometry"], "mask"))
    assert sample.facts["geometry_float32_exact"] is True
    assert sample.facts["raw_byte"] == sum(path.stat().st_size for path in paths.values() if path.is_file())


def test_no_view_has_an_error(view: Read) -> None:
    assert [finding for finding in view.findings if finding.blocks] == []


def test_3d_front_views_keep_all_promises_but_the_known_exceptions(view: Read) -> None:
    if view.source.name == "front3d":
        told = {finding.check for finding in view.findings}
        allowed = {"0004": {"things_in_both"}, "0021": {"small_thing"}, "0007": {"small_thing"}}
        assert told <= allowed.get(SampleKey.parse(view.listed.key).image, set())


def test_classes_and_depth_of_the_image_are_the_known_ones(view: Read) -> None:
    semantic, depth = view.sample["semantic_2d"], view.sample["depth"]
    counts = Counter(np.where(semantic == 0, 13, semantic).ravel().tolist())
    assert {str(label): count for label, count in counts.items()} == view.known["raw_sem_counts"]
    seen = np.where((depth < 0.4) | (depth > 6.0), np.float32(0), depth) if view.source.name == "matterport" else depth
    assert int((seen * 256).astype(np.int32).sum(dtype=np.int64)) == view.known["raw_depth_int_sum"]


def test_things_of_the_image_are_the_known_ones(view: Read) -> None:
    sample = view.sample
    for mask in view.known["masks2d"]:
        held = sample["instance_2d"] == mask["instance"] if mask["instance"] is not None else sample["semantic_2d"] == mask["class"]
        assert np.count_nonzero(held) == mask["pixels"]
    for mask in view.known["masks3d"]:
        if "instance" in mask:
            assert np.count_nonzero(sample["instance_3d"] == mask["instance"]) == mask["256"]
        else:
            assert np.count_nonzero(sample["semantic_3d"] == mask["stuff_class"]) == mask["256"]


def test_distances_and_weights_are_the_known_ones(view: Read) -> None:
    truncated, known = view.truncated, view.known
    assert float(truncated.sum(dtype=np.float64)) == pytest.approx(known["tudf_sum"], rel=1e-12)
    assert np.count_nonzero(truncated < 12) == known["occupancy_counts"]["256_lt12"]
    assert np.count_nonzero(truncated < 3) == known["occupancy_counts"]["256_lt3"]
    assert float(view.sample["weighting"].sum(dtype=np.int64)) == known["weight_sums"]["256"]


def test_the_frustum_is_the_known_one_and_that_of_the_closed_form(view: Read) -> None:
    inside = view.measured.frustum.reshape(256, 256, 256)
    assert np.count_nonzero(inside) == view.known["frustum_voxels"]
    if view.source.name == "front3d":
        np.testing.assert_array_equal(inside, front3d_frustum(256))
        assert read_frustum(view.source)[1] == []
    else:
        np.testing.assert_array_equal(inside, matterport_frustum(view.sample["intrinsics"], (320, 240), 256))


def counts_of(measured: Measured) -> dict[str, int]:
    valid, voxel = measured.seen
    return {
        "pixels": valid.size,
        "in_frustum": int(np.count_nonzero(measured.inside)),
        "tudf_lt1": int(np.count_nonzero(measured.on_surface)),
        "label3d_present": int(np.count_nonzero(valid & (measured.flat("semantic_3d")[voxel] > 0))),
        "label_equal": measured.class_agreement[0],
    }


def test_pixels_land_on_the_voxels_they_are_known_to_land_on(view: Read) -> None:
    """The known numbers are those of the centre measured on wall planes; with the closed form few pixels change sides."""
    if view.source.name != "front3d":
        assert "projection_check" not in view.known
        return
    known = view.known["projection_check"]

    def locate(sample: Sample) -> NDArray[np.float64]:
        return back_project(sample["depth"], sample["intrinsics"], np.array(MEASURED_CENTRE), 256)

    assert counts_of(Measured(view.sample, replace(view.measured.rules, locate=locate))) == known
    closed = counts_of(view.measured)
    assert np.array_equal(view.measured.inside, view.measured.on_surface)
    assert closed["in_frustum"] == closed["tudf_lt1"] == closed["label3d_present"] == view.measured.class_agreement[1]
    assert all(abs(count - known[name]) <= 0.004 * known["pixels"] for name, count in closed.items())


def test_facts_are_the_known_numbers(view: Read) -> None:
    facts, known = view.measured.facts(), view.known
    assert facts["classes_2d"] == sorted(0 if label == "13" else int(label) for label in known["raw_sem_counts"])
    assert facts["voxels_labelled"] == np.count_nonzero(view.sample["semantic_3d"])
    if view.source.name == "front3d":
        assert facts["voxels_observed"] == known["occupancy_counts"]["256_lt12"]
        assert facts["voxels_occupied"] == facts["voxels_labelled"]
        assert facts["depth_on_surface_share"] == pytest.approx(1.0, abs=0.001)
        assert 0.98 < facts["labels_agree_share"] <= 1.0 and facts["geometry_max_voxel"] == 12.0
    else:
        assert facts["geometry_min_voxel"] == -12.0 and 0.3 < facts["depth_on_surface_share"] < 0.5
