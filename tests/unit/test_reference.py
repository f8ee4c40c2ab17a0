"""The reference operations give the golden numbers: what they say of a view, the fast path has to say."""

import json
import sys
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
from reference import ReferenceDataset, Tensors, stage2_sample

from scenemill.transforms.sources import Listed, Source, raw_files

pytestmark = pytest.mark.real

VIEWS = {
    "70f7c6c1-c48f-4106-bcef-40b80b84bbad/0014": "four pixels of ceiling",
    "70f7c6c1-c48f-4106-bcef-40b80b84bbad/0021": "a thing of 146 pixels",
    "front3d-sample/0007": "another scene, and a thing of 136 pixels",
}


@dataclass(frozen=True)
class Prepared:
    """One view by the reference operations, and what is known of it."""

    root: Path
    paths: dict[str, str]
    sample: Tensors
    known: dict[str, Any]


@cache
def golden(data: Path) -> dict[str, dict[str, Any]]:
    path = data / "golden" / "loader" / "views.json"
    if not path.is_file():
        pytest.skip(f"no golden numbers: {path}")
    views = json.loads(path.read_bytes())["views"]
    return {f"{known['view']['scene']}/{known['view']['image']}": known for known in views}


@pytest.fixture(scope="module", params=VIEWS)
def view(request: pytest.FixtureRequest, real_data: Path) -> Prepared:
    root = real_data / "data" / "front3d"
    paths = raw_files(Source("front3d", root, 256, (240, 320)), Listed(request.param, ()))
    return Prepared(root, paths, stage2_sample(root, paths), golden(real_data)[request.param])


def count(mask: torch.Tensor) -> int:
    return int(torch.count_nonzero(mask))


def test_targets_of_the_image_are_the_known_ones(view: Prepared) -> None:
    sample, masks = view.sample, view.known["masks2d"]
    assert sample["gt_ids"].tolist() == [-1 if mask["instance"] is None else mask["instance"] for mask in masks]
    assert sample["gt_classes"].tolist() == [mask["class"] for mask in masks]
    assert [count(mask) for mask in sample["gt_masks"]] == [mask["pixels"] for mask in masks]
    assert sample["gt_depths"].tolist() == pytest.approx([mask["mean_depth"] for mask in masks], rel=1e-5)
    counts = Counter(13 if label == 255 else label for label in sample["semantic_2d"].flatten().tolist())
    assert {str(label): pixels for label, pixels in counts.items()} == view.known["raw_sem_counts"]


def test_depths_are_the_known_ones(view: Prepared) -> None:
    sample, known = view.sample, view.known["depth_160x120"]
    assert int((sample["depth"] * 256).int().long().sum()) == view.known["raw_depth_int_sum"]
    assert float(sample["depth_160x120"].double().sum()) == pytest.approx(known["sum"], rel=1e-12)
    for place, value in known["at_vu"].items():
        v, u = map(int, place.split(","))
        assert float(sample["depth_160x120"][v, u]) == value


def test_distances_and_occupancy_are_the_known_ones(view: Prepared) -> None:
    sample, known = view.sample, view.known["occupancy_counts"]
    assert float(sample["geometry"].double().sum()) == pytest.approx(view.known["tudf_sum"], rel=1e-12)
    assert count(sample["geometry"] < 3) == known["256_lt3"]
    assert count(sample["occupancy_256"]) == known["256_lt12"]
    assert count(sample["occupancy_128"]) == known["128_lt6"]
    assert count(sample["occupancy_64"]) == known["64_lt8"]
    assert all(torch.equal(field, (field > 0).float()) for field in (sample[f"occupancy_{size}"] for size in (256, 128, 64)))


def test_weights_sum_to_the_known_numbers(view: Prepared) -> None:
    for size, known in view.known["weight_sums"].items():
        assert float(view.sample[f"weighting3d_{size}"].double().sum()) == pytest.approx(known, rel=1e-5)


def test_masks_in_space_have_the_known_sizes_and_the_order_of_the_image(view: Prepared) -> None:
    sample, masks = view.sample, view.known["masks3d"]
    assert sample["gt_ids"].tolist() == [mask.get("instance", -1) for mask in masks]
    for size in ("256", "128", "64"):
        found = sample[f"gt_masks_3d_{size}"]
        assert found.dtype == torch.bool and found.shape[1:] == (int(size),) * 3
        assert [count(mask) for mask in found] == [mask[size] for mask in masks]


def test_the_frustum_is_turned_as_the_volumes_are(view: Prepared) -> None:
    sample = view.sample
    assert count(sample["frustum_mask"]) == view.known["frustum_voxels"]
    assert count(sample["frustum_mask_64"]) == view.known["frustum_voxels_64"]
    assert count((sample["geometry"] < 12) & ~sample["frustum_mask"]) == 0


def test_a_smaller_truncation_changes_the_full_grid_alone(view: Prepared) -> None:
    (near,) = DataLoader(ReferenceDataset(view.root, [view.paths], truncation=3.0), batch_size=None)
    assert count(near.pop("occupancy_256")) == view.known["occupancy_counts"]["256_lt3"]
    assert torch.equal(near.pop("geometry"), view.sample["geometry"].clamp(max=3.0))
    assert near.keys() == view.sample.keys() - {"geometry", "occupancy_256"}
    assert all(torch.equal(tensor, view.sample[name]) for name, tensor in near.items())


def test_the_2d_part_is_the_same_without_the_volumes(view: Prepared) -> None:
    (flat,) = DataLoader(ReferenceDataset(view.root, [view.paths], only_2d=True), batch_size=None)
    assert "gt_masks" in flat and "geometry" not in flat
    assert all(torch.equal(tensor, view.sample[name]) for name, tensor in flat.items())
