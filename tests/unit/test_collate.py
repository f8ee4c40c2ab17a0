"""Examples become a batch, a batch one buffer and a batch again, and nothing is lost or moved on the way."""

import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from scenemill.schemas.dataset import DatasetConfig
from scenemill.schemas.errors import ConfigError
from scenemill.trainers.collate import Batch, Packed, collate, expand_batch, pack
from scenemill.trainers.examples import Example, Skipped
from scenemill.trainers.instances import Instances
from scenemill.trainers.order import Visit
from scenemill.trainers.volumes import LEVELS, Canvas, VolumeBatch, expand

CPU = torch.device("cpu")
BLOCK = (16, 16, 16)
DTYPES = (
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
)
SHAPES = st.lists(st.integers(0, 5), max_size=4).map(tuple)


def volumes_of(seed: int, masks: int) -> VolumeBatch:
    """One sample's volumes on a grid of 64: a block of distances, one of weights, and ten voxels a mask."""
    rng = np.random.default_rng(seed)
    place = torch.tensor([[0, *rng.integers(0, 4, 3)]], dtype=torch.int16)
    return VolumeBatch(
        distance_places=place,
        distance=torch.from_numpy((12 * rng.random((1, *BLOCK))).astype(np.float32)),
        weight_places=place,
        weight=torch.from_numpy(rng.choice(np.array([1, 5, 25], np.uint8), (1, *BLOCK))),
        mask_voxels=torch.from_numpy(rng.integers(0, 64**3, 10 * masks).astype(np.int32)),
        mask_ends=10 * torch.arange(1, masks + 1),
        masks_of=torch.tensor([masks]),
        frustum_places=torch.empty((0, 4), dtype=torch.int16),
        frustum=torch.empty((0, *BLOCK), dtype=torch.bool),
        grid=64,
        truncation=12.0,
    )


def example_of(seed: int, *, shape: tuple[int, int] = (6, 8), masks: int = 2, volumes: bool = False) -> Example:
    """An example of random content: no padding value occurs in the image, the labels and the depth."""
    rng = np.random.default_rng(seed)
    ids = 100 * seed + np.arange(masks, dtype=np.int64)
    tensors = {
        "image": torch.from_numpy(rng.integers(0, 100, (3, *shape)).astype(np.uint8)),
        "semantic": torch.from_numpy(rng.integers(1, 13, shape).astype(np.uint8)),
        "depth": torch.from_numpy(1 + rng.random(shape).astype(np.float32)),
        "room_mask": torch.ones(shape, dtype=torch.bool),
        "intrinsic": torch.from_numpy(rng.random((4, 4)).astype(np.float32)),
    }
    return Example(
        key=f"scene/{seed:04}",
        visit=Visit(seed, 0, seed, 0),
        size=(240, 320),
        unpadded=shape,
        tensors=tensors,
        instances=Instances(ids, ids % 9 + 1, np.ones((masks, *shape), bool), rng.random(masks).astype(np.float32)),
        volumes=volumes_of(seed, masks) if volumes else None,
    )


def batch_of(tensors: dict[str, Tensor], volumes: VolumeBatch | None = None) -> Batch:
    return Batch(
        ("a/1",), (Visit(0, 0, 0, 0),), ((1, 1),), ((1, 1),), tensors, torch.tensor([0]), volumes, (Skipped("b/2", "why"),)
    )


def check_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert torch.equal(found[name], tensor), name


def facts_of(batch: Batch) -> tuple[Any, ...]:
    return batch.keys, batch.visits, batch.sizes, batch.unpadded, batch.masks_of.tolist(), batch.skipped


def check_round_trip(batch: Batch) -> Packed:
    packed = pack(batch)
    for found in (packed.unpack(CPU), pickle.loads(pickle.dumps(packed)).unpack(CPU)):
        check_same(found.tensors, batch.tensors)
        assert facts_of(found) == facts_of(batch)
        assert (found.volumes is None) == (batch.volumes is None)
        if found.volumes is not None and batch.volumes is not None:
            check_same(found.volumes.tensors(), batch.volumes.tensors())
            assert (found.volumes.grid, found.volumes.truncation) == (batch.volumes.grid, batch.volumes.truncation)
    return packed


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(DTYPES), SHAPES), max_size=8), st.integers(0, 2**32 - 1))
def test_packing_and_unpacking_changes_nothing(kinds: list[tuple[torch.dtype, tuple[int, ...]]], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        f"{number}": torch.randint(0, 100, shape, generator=generator).to(dtype) for number, (dtype, shape) in enumerate(kinds)
    }
    packed = check_round_trip(batch_of(tensors))
    assert all(start % 64 == 0 for *_, start in packed.slots)
    assert packed.rest.tensors == {} and packed.rest.size_byte == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 4), (1, 2, 3)])
def test_every_dtype_and_empty_tensors_pass(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    check_round_trip(batch_of({"first": torch.ones(1, dtype=torch.bool), "second": torch.ones(shape, dtype=dtype)}))


def test_tensors_of_any_strides_pass() -> None:
    grid = torch.arange(24.0).view(2, 3, 4)
    check_round_trip(batch_of({"turned": grid.transpose(0, 2), "repeated": grid[0, 0].expand(5, 4), "stepped": grid[:, ::2, 1:]}))


@pytest.mark.parametrize("masks", [0, 3])
def test_volumes_pass_and_leave_no_copy_behind(masks: int) -> None:
    batch = collate([example_of(1, masks=masks, volumes=True), example_of(2, masks=1, volumes=True)])
    packed = check_round_trip(batch)
    assert batch.volumes is not None and packed.rest.volumes is not None
    assert packed.rest.size_byte == 0 and packed.buffer.nbytes >= batch.size_byte
    found = packed.unpack(CPU).volumes
    assert found is not None
    check_same(expand(found, (12.0, 6.0, 8.0)), expand(batch.volumes, (12.0, 6.0, 8.0)))


def test_unpacked_tensors_lie_in_one_buffer() -> None:
    packed = pack(collate([example_of(1, volumes=True)]))
    found = packed.unpack(CPU)
    assert found.volumes is not None
    tensors = [*found.tensors.values(), *found.volumes.tensors().values()]
    low, high = packed.buffer.data_ptr(), packed.buffer.data_ptr() + packed.buffer.nbytes
    assert all(low <= tensor.data_ptr() and tensor.data_ptr() + tensor.nbytes <= high for tensor in tensors if tensor.numel())


def test_examples_of_one_size_are_stacked_as_they_are() -> None:
    examples = [example_of(seed) for seed in (1, 2, 3)]
    batch = collate(examples)
    for name in examples[0].tensors:
        assert torch.equal(batch[name], torch.stack([example.tensors[name] for example in examples])), name
    assert len(batch) == 3 and "depth" in batch and "mp_occ" not in batch and batch.volumes is None
    assert batch.keys == ("scene/0001", "scene/0002", "scene/0003")
    assert [visit.sample for visit in batch.visits] == [1, 2, 3]
    assert batch.sizes == ((240, 320),) * 3 and batch.unpadded == ((6, 8),) * 3


def test_smaller_images_are_padded_at_the_right_and_below() -> None:
    small, wide, tall = (example_of(seed, shape=shape) for seed, shape in ((1, (4, 5)), (2, (3, 9)), (3, (7, 2))))
    batch = collate([small, wide, tall])
    padding = {"image": 128, "semantic": 255, "depth": 0, "room_mask": 0}
    for name, fill in padding.items():
        assert batch[name].shape[-2:] == (7, 9) and batch[name].dtype == small.tensors[name].dtype
        for number, example in enumerate((small, wide, tall)):
            height, width = example.unpadded
            assert torch.equal(batch[name][number, ..., :height, :width], example.tensors[name])
            assert (batch[name][number, ..., height:, :] == fill).all() and (batch[name][number, ..., width:] == fill).all()
    assert torch.equal(batch["intrinsic"][0], small.tensors["intrinsic"])
    assert batch.unpadded == ((4, 5), (3, 9), (7, 2))
    assert batch["gt_masks"].shape == (6, 7, 9) and batch["gt_masks"].dtype == torch.bool
    assert [int(mask.sum()) for mask in batch["gt_masks"]] == [20, 20, 27, 27, 14, 14]
    assert batch["gt_masks"][0, :4, :5].all() and batch["gt_masks"][2, :3].all() and batch["gt_masks"][5, :, :2].all()


@pytest.mark.parametrize("counts", [(0,), (2,), (2, 0, 3), (0, 0), (0, 4), (1, 0)])
def test_instances_are_views_of_their_own_part_of_the_batch(counts: tuple[int, ...]) -> None:
    examples = [example_of(seed + 1, shape=(6, 8 + seed), masks=masks, volumes=True) for seed, masks in enumerate(counts)]
    batch = expand_batch(collate(examples), DatasetConfig(enable_3d=True), None)
    assert batch.masks_of.tolist() == list(counts) and len(batch.instances) == len(counts)
    first = 0
    for number, (example, found) in enumerate(zip(examples, batch.instances, strict=True)):
        held, end = example.instances, first + counts[number]
        assert found.gt_ids.tolist() == held.ids.tolist() and found.gt_classes.tolist() == held.classes.tolist()
        assert found.mean_depths.tolist() == held.mean_depth.tolist() and found.loss_weight == 1.0
        assert found.gt_depths.shape == found.gt_masks.shape == (counts[number], *batch["depth"].shape[1:])
        assert all(torch.equal(depth, batch["depth"][number]) for depth in found.gt_depths)
        alone = expand_batch(collate([example]), DatasetConfig(enable_3d=True), None)
        for level in LEVELS:
            masks = getattr(found, f"gt_masks_3d_{level}")
            assert torch.equal(masks, alone[f"gt_masks_3d_{level}"]) and torch.equal(
                masks, batch[f"gt_masks_3d_{level}"][first:end]
            )
        if counts[number]:
            assert found.gt_masks.data_ptr() == batch["gt_masks"][first].data_ptr()
            assert found.gt_depths.untyped_storage().data_ptr() == batch["depth"].untyped_storage().data_ptr()
        first = end


def test_instances_without_volumes_have_no_masks_in_space() -> None:
    found = collate([example_of(1)]).instances[0]
    assert (found.gt_masks_3d_256, found.gt_masks_3d_128, found.gt_masks_3d_64) == (None, None, None)


def test_what_was_skipped_or_replaced_is_listed() -> None:
    skipped, replaced = Skipped("scene/0009", "damaged"), Skipped("scene/0008", "missing")
    batch = collate([example_of(1), skipped, replace(example_of(2), replaces=replaced)])
    assert batch.keys == ("scene/0001", "scene/0002") and batch.skipped == (skipped, replaced)
    assert len(batch["image"]) == len(batch.instances) == 2
    check_round_trip(batch)


def test_a_batch_of_which_nothing_is_left_says_what_was_skipped() -> None:
    skipped = Skipped("scene/0009", "damaged")
    batch = collate([skipped])
    assert len(batch) == 0 and batch.skipped == (skipped,) and batch.instances == [] and batch.size_byte == 0
    check_round_trip(batch)
    assert expand_batch(batch, DatasetConfig(enable_3d=True), None) is batch


def test_expanding_takes_the_thresholds_of_the_settings() -> None:
    batch = collate([example_of(1, volumes=True), example_of(2, volumes=True)])
    config = DatasetConfig(enable_3d=True, occ_truncation_lvl=(7.0, 5.0), truncation_range=(0.0, 3.0))
    assert batch.volumes is not None
    found = expand_batch(batch, config, None, Canvas())
    expected = expand(batch.volumes, (3.0, 5.0, 7.0))
    check_same({name: found[name] for name in expected}, expected)
    assert found.volumes is None and float(found["geometry"].max()) == 3.0


def test_one_frustum_serves_all_samples_without_a_copy() -> None:
    frustum = torch.rand(64, 64, 64) < 0.5
    batch = collate([example_of(seed, volumes=True) for seed in (1, 2, 3)])
    found = expand_batch(batch, DatasetConfig(enable_3d=True), frustum)["frustum_mask"]
    assert found.shape == (3, 64, 64, 64) and found.data_ptr() == frustum.data_ptr()
    assert all(torch.equal(one, frustum) for one in found)


def test_a_batch_on_the_same_device_is_equal() -> None:
    batch = collate([example_of(seed, volumes=True) for seed in (1, 2)])
    for moved in (batch.to("cpu"), batch.to(CPU, non_blocking=True)):
        check_same(moved.tensors, batch.tensors)
        assert facts_of(moved) == facts_of(batch) and moved.size_byte == batch.size_byte


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_batch_that_visits_a_gpu_comes_back_equal() -> None:
    batch = collate([example_of(seed, volumes=True) for seed in (1, 2)])
    there = (pack(batch).pin_memory().unpack(torch.device("cuda")), batch.pin_memory().to("cuda", non_blocking=True))
    for moved in there:
        torch.cuda.synchronize()
        assert all(tensor.is_cuda for tensor in moved.tensors.values()) and not moved.masks_of.is_cuda
        back = moved.to("cpu")
        check_same(back.tensors, batch.tensors)
        assert back.volumes is not None and batch.volumes is not None
        check_same(back.volumes.tensors(), batch.volumes.tensors())


def test_one_sample_of_a_batch_is_the_batch_of_that_sample() -> None:
    examples = [replace(example_of(seed, masks=seed % 3), loss_weight=1 / (seed + 1)) for seed in range(4)]
    batch = collate(examples)
    for number, example in enumerate(examples):
        one, alone = batch.one(number), collate([example])
        check_same(one.tensors, alone.tensors)
        assert facts_of(one) == facts_of(alone)
        assert one.loss_weights == alone.loss_weights == (1 / (number + 1),)


def test_a_batch_with_blocks_has_no_part_of_one_sample() -> None:
    batch = collate([example_of(0, volumes=True)])
    with pytest.raises(ConfigError, match="expand it first"):
        batch.one(0)
    dense = expand_batch(batch, DatasetConfig(enable_3d=True), None)
    assert torch.equal(dense.one(0)["geometry"], dense["geometry"])


def test_weights_of_the_loss_stay_with_their_samples() -> None:
    batch = collate([replace(example_of(0), loss_weight=0.1), Skipped("b/2", "why"), example_of(1)])
    packed = pickle.loads(pickle.dumps(pack(batch))).unpack(CPU)
    assert packed.loss_weights == (0.1, 1.0)
    assert [targets.loss_weight for targets in packed.instances] == [0.1, 1.0]
    assert [targets.loss_weight for targets in replace(packed, loss_weights=()).instances] == [1.0, 1.0]
