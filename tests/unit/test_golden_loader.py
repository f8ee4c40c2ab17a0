"""The golden numbers of the loader: every real view, through a store and the loader, gives what is known of it."""

import json
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows it by
from torch import Tensor
from torch.utils.data import DataLoader

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
from reference import ReferenceDataset, Tensors, stage2_sample

from scenemill.pipelines.ingest import ingest
from scenemill.schemas.config import IngestConfig
from scenemill.schemas.dataset import AugmentationConfig, DatasetConfig
from scenemill.trainers.batches import SceneDataset, SceneLoader
from scenemill.trainers.collate import Batch, collate, expand_batch
from scenemill.transforms.sources import Listed, Source, raw_files

pytestmark = pytest.mark.real

LEVELS = ("256", "128", "64")
COMPARED = (
    "70f7c6c1-c48f-4106-bcef-40b80b84bbad/0014",  # four pixels of ceiling
    "70f7c6c1-c48f-4106-bcef-40b80b84bbad/0021",  # a thing of 146 pixels
    "front3d-sample/0007",
)
AS_STORED = AugmentationConfig(train_min_size=(240,), train_max_size=960)
NEAR = (0.0, 3.0)

Known = dict[str, Any]


@dataclass(frozen=True)
class Counted:
    """What is counted in one view's tensors, and what is known of it, under the same names."""

    key: str
    found: Known
    known: Known


def count(mask: Tensor) -> int:
    return int(torch.count_nonzero(mask))


def total(values: Tensor) -> float:
    return float(values.double().sum())


def counted(batch: Batch, known: Known) -> Known:
    """All numbers of one view."""
    (targets,) = batch.instances
    depth = batch["transformed_depth"][0]
    coarse = F.max_pool3d(batch["frustum_mask"][:, None].float(), kernel_size=2, stride=4)
    named = [{"instance": id if id > 0 else None, "class": label} for id, label in zip(*ids_of(batch), strict=True)]
    pixels = [(count(mask), float(mean)) for mask, mean in zip(targets.gt_masks, targets.mean_depths, strict=True)]
    spaces = [[count(mask) for mask in batch[f"gt_masks_3d_{level}"]] for level in LEVELS]
    return {
        "raw_sem_counts": {str(label): pixels for label, pixels in Counter(batch["raw_sem_seg"].flatten().tolist()).items()},
        "raw_depth_int_sum": int(batch["raw_depth"].long().sum()),
        "depth_160x120": {
            "sum": total(depth),
            "at_vu": {place: float(depth[tuple(map(int, place.split(",")))]) for place in known["depth_160x120"]["at_vu"]},
        },
        "masks2d": [name | {"pixels": size, "mean_depth": mean} for name, (size, mean) in zip(named, pixels, strict=True)],
        "occupancy_counts": {
            "256_lt12": count(batch["occupancy_256"]),
            "256_lt3": count(batch["geometry"] < 3),
            "128_lt6": count(batch["occupancy_128"]),
            "64_lt8": count(batch["occupancy_64"]),
        },
        "tudf_sum": total(batch["geometry"]),
        "weight_sums": {level: total(batch[f"weighting3d_{level}"]) for level in LEVELS},
        "masks3d": [
            ({"stuff_class": name["class"]} if name["instance"] is None else {"instance": name["instance"]})
            | dict(zip(LEVELS, sizes, strict=True))
            for name, sizes in zip(named, zip(*spaces, strict=True), strict=True)
        ],
        "frustum_voxels": count(batch["frustum_mask"]),
        "frustum_voxels_64": count(coarse),
        "occupied_cells": count(batch["mp_occ"]),
    }


def ids_of(batch: Batch) -> tuple[list[int], list[int]]:
    return batch["gt_ids"].tolist(), batch["gt_classes"].tolist()


@pytest.fixture(scope="module")
def golden(real_data: Path) -> dict[str, Known]:
    path = real_data / "golden" / "loader" / "views.json"
    if not path.is_file():
        pytest.skip(f"no golden numbers: {path}")
    views = json.loads(path.read_bytes())["views"]
    return {f"{known['view']['scene']}/{known['view']['image']}": known for known in views}


@pytest.fixture(scope="module")
def front3d_store(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("golden") / "front3d"
    ingest(IngestConfig("front3d", real_data / "data" / "front3d", store, samples_per_part=8))
    return store


@pytest.fixture(scope="module")
def matterport_store(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("golden")
    raw, given = folder / "raw", real_data / "data" / "matterport"
    raw.mkdir()
    for tree, target in (("data", "data"), ("depth_gen", "depth_gen"), ("room_mask", "room_mask_derived")):
        (raw / tree).symlink_to((given / target).resolve(), target_is_directory=True)
    (raw / "val.json").write_bytes((given / "val.json").read_bytes())
    ingest(IngestConfig("matterport", raw, folder / "store"))
    return folder / "store"


@pytest.fixture(scope="module")
def views(golden: dict[str, Known], front3d_store: Path, matterport_store: Path) -> list[Counted]:
    """Every view, one at a time in memory."""
    found = []
    for store in (front3d_store, matterport_store):
        dataset = SceneDataset(store, None, DatasetConfig(enable_3d=True))
        for batch in SceneLoader(dataset, shuffle=False):
            known = golden[batch.keys[0]]
            cells = known["multiplane_occupancy"]["lt12"]["cells_after_max_pool"]
            found.append(Counted(batch.keys[0], counted(batch, known), known | {"occupied_cells": cells}))
    assert sorted(view.key for view in found) == sorted(golden)
    return found


@pytest.mark.parametrize(
    "name", ["raw_sem_counts", "raw_depth_int_sum", "occupancy_counts", "masks3d", "frustum_voxels", "frustum_voxels_64"]
)
def test_what_is_counted_is_known(views: list[Counted], name: str) -> None:
    for view in views:
        assert view.found[name] == view.known[name], view.key


@pytest.mark.parametrize(("name", "rel"), [("tudf_sum", 1e-9), ("weight_sums", 1e-5), ("occupied_cells", 1e-3)])
def test_what_is_summed_is_known(views: list[Counted], name: str, rel: float) -> None:
    for view in views:
        assert view.found[name] == pytest.approx(view.known[name], rel=rel), view.key


def test_the_plane_of_depths_is_known(views: list[Counted]) -> None:
    for view in views:
        found, known = view.found["depth_160x120"], view.known["depth_160x120"]
        assert found["at_vu"] == known["at_vu"], view.key
        assert found["sum"] == pytest.approx(known["sum"], rel=1e-12), view.key


def test_the_masks_of_the_image_are_known(views: list[Counted]) -> None:
    for view in views:
        for found, known in zip(view.found["masks2d"], view.known["masks2d"], strict=True):
            assert found == known | {"mean_depth": pytest.approx(known["mean_depth"], rel=1e-5)}, view.key


def paths_of(real_data: Path, key: str) -> tuple[Path, dict[str, str]]:
    root = real_data / "data" / "front3d"
    return root, raw_files(Source("front3d", root, 256, (240, 320)), Listed(key, ()))


def read(dataset: SceneDataset, key: str) -> Batch:
    (place,) = (number for number in range(len(dataset)) if dataset.key(number) == key)
    return expand_batch(collate([dataset[place]]), dataset.config, dataset.frustum)


def check_equal(batch: Batch, expected: Tensors) -> None:
    """Every tensor of the batch that the reference has, under either's name for it, to the bit."""
    renamed = {"depth_160x120": "transformed_depth", "gt_depths": "mean_depths", "semantic_2d": "semantic"}
    for name, tensor in expected.items():
        ours = renamed.get(name, name)
        if ours not in batch:
            assert name in ("instance_2d", "frustum_mask_64")
            continue
        found = batch[ours] if name.startswith("gt_") else batch[ours][0]
        if name == "gt_depths":
            torch.testing.assert_close(found, tensor, rtol=1e-5, atol=0)  # sums of another order
        elif name == "semantic_2d":
            assert torch.equal(found.long(), tensor)
        else:
            assert found.dtype == tensor.dtype and torch.equal(found, tensor), name


@pytest.mark.parametrize("key", COMPARED)
def test_a_view_equals_the_reference_to_the_bit(real_data: Path, front3d_store: Path, key: str) -> None:
    expected = stage2_sample(*paths_of(real_data, key))
    for training in (True, False):
        config = DatasetConfig(enable_3d=True, augmentation=AS_STORED)
        check_equal(read(SceneDataset(front3d_store, None, config, training=training), key), expected)


def test_a_smaller_truncation_equals_the_reference_to_the_bit(
    real_data: Path, front3d_store: Path, golden: dict[str, Known]
) -> None:
    key = COMPARED[0]
    dataset = SceneDataset(front3d_store, None, DatasetConfig(enable_3d=True, truncation_range=NEAR))
    batch = read(dataset, key)
    root, paths = paths_of(real_data, key)
    (expected,) = DataLoader(ReferenceDataset(root, [paths], truncation=NEAR[1]), batch_size=None)
    check_equal(batch, expected)
    known = golden[key]["multiplane_occupancy"]["lt3"]["cells_after_max_pool"]
    assert count(batch["mp_occ"]) == pytest.approx(known, rel=1e-3)
