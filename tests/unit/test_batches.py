"""Batches from made-up stores: the right samples with the right targets, however they are read, resumed, shared out or broken."""

import json
import pickle
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows it by
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from scenemill.pipelines.ingest import ingest
from scenemill.schemas.config import IngestConfig
from scenemill.schemas.dataset import AugmentationConfig, DatasetConfig
from scenemill.schemas.errors import ConfigError, Corrupt
from scenemill.schemas.places import on_disk
from scenemill.schemas.sample import Sample
from scenemill.trainers.batches import SceneDataset, SceneLoader
from scenemill.trainers.collate import Batch, collate, expand_batch
from scenemill.trainers.examples import Example, Skipped
from scenemill.trainers.order import Order, Visit, spread_sources
from scenemill.trainers.planes import plane_occupancy, plane_tables
from scenemill.transforms.store import Store, open_store

# Python 3.12 warns of every fork beside threads; PyTorch's workers are forked
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

STUFF = {"front3d": (10, 11), "matterport": (10, 11, 12)}
LEVELS = (("256", 0), ("128", 1), ("64", 2))
VOLUMES = ("geometry", "semantic_3d", "instance_3d", "weighting", "outside")
AS_STORED = AugmentationConfig(train_min_size=(240,), train_max_size=960)
VARIED = AugmentationConfig(train_min_size=(120, 160, 200, 240, 280, 320), color_aug_ssd=True)
IMAGES = DatasetConfig(enable_3d=False, enable_mp_occ=False, augmentation=AS_STORED)
STAGE_1 = DatasetConfig(augmentation=AS_STORED)
STAGE_2 = DatasetConfig(enable_3d=True, augmentation=AS_STORED)
RAW = {"raw_sem_seg", "raw_inst_seg", "raw_depth"}
SEED = 5


@pytest.fixture(scope="module")
def front3d_store(front3d_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six samples, two to a part; tests must not change it."""
    return ingested("front3d", front3d_world, tmp_path_factory.mktemp("batches") / "front3d")


@pytest.fixture(scope="module")
def matterport_store(matterport_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six samples, two to a part, the first without a room mask, the others partly outside of it; tests must not change it."""
    folder = tmp_path_factory.mktemp("batches")
    shutil.copytree(matterport_world, folder / "raw")
    first, *others = sorted((folder / "raw" / "room_mask").glob("*/*.png"))
    first.unlink()
    for number, path in enumerate(others):
        mask = np.array(Image.open(path))
        mask[:, : 61 + 7 * number] = 0
        Image.fromarray(mask).save(path)
    return ingested("matterport", folder / "raw", folder / "store")


@pytest.fixture(scope="module")
def both(front3d_store: Path, matterport_store: Path) -> list[Path]:
    return [front3d_store, matterport_store]


@pytest.fixture(autouse=True)
def _workers_end() -> Iterator[None]:
    """Ends the workers of each test's loaders: PyTorch's wait five seconds each where a failed iteration is left to the collector."""
    yield
    for made in _MADE:
        iterator: Any = getattr(made._batches, "_iterator", None)
        if iterator is not None and made.workers:
            iterator._shutdown_workers()
    _MADE.clear()


_MADE: list[SceneLoader] = []


def ingested(source: str, raw: Path, store: Path) -> Path:
    outcome = ingest(IngestConfig(source, raw, store, samples_per_part=2))
    assert (outcome.stored, outcome.rejected) == (6, 0)
    return store


@pytest.fixture
def copied(front3d_store: Path, tmp_path: Path) -> Path:
    """A store to damage."""
    return Path(shutil.copytree(front3d_store, tmp_path / "copied"))


def damage(store: Path, *rows: int, field: str = "rgb") -> list[str]:
    """Flip a byte in the first chunk of some samples' arrays; returns their keys."""
    opened = open_store(store)
    for row in rows:
        slot, within = divmod(row, 2)
        (path,) = (path for path in (store / field / "c" / str(slot)).rglob("*") if path.is_file())
        chunks = len(opened.reader._forms[field][1])
        content = bytearray(path.read_bytes())
        index = np.frombuffer(content[-4 - 2 * chunks * 16 : -4], "<u8").reshape(2, chunks, 2)
        starts = [start for start in index[within, :, 0].tolist() if start < len(content)]
        content[starts[0] + 20] ^= 1
        path.write_bytes(content)
    keys = {facts["row"]: facts["key"] for facts in opened.samples.select(["row", "key"]).to_pylist()}
    return [keys[row] for row in rows]


def path_of(row: int, field: str) -> str:
    return f"{field}/c/{row // 2}/0/0" + ("/0" if field in ("rgb", *VOLUMES) else "")


def loader(
    stores: Path | Sequence[Path],
    config: DatasetConfig = IMAGES,
    *,
    split: str | None = None,
    training: bool = True,
    on_error: Any = "raise",
    **settings: Any,
) -> SceneLoader:
    dataset = SceneDataset(
        list(stores) if isinstance(stores, Sequence) else stores, split, config, training=training, seed=SEED, on_error=on_error
    )
    _MADE.append(SceneLoader(dataset, **{"seed": SEED, **settings}))
    return _MADE[-1]


def facts_of(batch: Batch) -> tuple[Any, ...]:
    return batch.keys, batch.visits, batch.sizes, batch.unpadded, batch.masks_of.tolist(), batch.skipped


def check_same_tensors(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


def check_same(found: Sequence[Batch], expected: Sequence[Batch]) -> None:
    assert [facts_of(batch) for batch in found] == [facts_of(batch) for batch in expected]
    for one, other in zip(found, expected, strict=True):
        check_same_tensors(one.tensors, other.tensors)
        assert (one.volumes is None) == (other.volumes is None)
        if one.volumes is not None and other.volumes is not None:
            check_same_tensors(one.volumes.tensors(), other.volumes.tensors())


def check_same_example(found: Example | Skipped, expected: Example | Skipped) -> None:
    check_same([collate([found])], [collate([expected])])


def visits_of(batches: Sequence[Batch]) -> list[list[Visit]]:
    return [list(batch.visits) for batch in batches]


# What a batch holds


def image_targets(sample: Sample, source: str) -> tuple[list[int], list[int], list[np.ndarray[Any, Any]]]:
    """Ids (-1 for stuff), classes and masks of one image, by plain loops."""
    semantic, instance = sample["semantic_2d"], sample["instance_2d"]
    ids, classes, masks = [], [], []
    for number in np.unique(instance).tolist():
        mask = instance == number
        votes = np.bincount(np.where(semantic == 0, 255, semantic)[mask], minlength=256)
        if number > 0 and mask.sum() > 200 and 1 <= votes.argmax() <= 9:
            ids.append(number)
            classes.append(int(votes.argmax()))
            masks.append(mask)
    for label in STUFF[source]:
        if (semantic == label).any():
            ids.append(-1)
            classes.append(label)
            masks.append(semantic == label)
    return ids, classes, masks


def resized(volume: Tensor, level: int) -> Tensor:
    size = (volume.shape[0] >> level,) * 3
    return F.interpolate(volume[None, None], size=size, mode="trilinear", align_corners=True)[0, 0]


def pooled(mask: Tensor, level: int) -> Tensor:
    step = 1 << level
    return F.max_pool3d(mask[None, None].float(), kernel_size=2 * step, stride=step, padding=step // 2)[0, 0].bool()


def true_depth(sample: Sample, source: str) -> np.ndarray[Any, Any]:
    depth = sample["depth"]
    return np.where((depth < 0.4) | (depth > 6.0), np.float32(0), depth) if source == "matterport" else depth


def expected_of(store: Store, key: str, limit: float = 12.0) -> dict[str, Tensor]:
    """The targets of one sample by dense operations on what the store holds."""
    sample, source = store.read(key), store.layout.source
    ids, classes, masks = image_targets(sample, source)
    depth = true_depth(sample, source)
    distance = torch.from_numpy(np.minimum(np.abs(sample["geometry"]), np.float32(12)))
    weight = torch.from_numpy(sample["weighting"].astype(np.float32))
    semantic, instance = (torch.from_numpy(sample[name].astype(np.int64)) for name in ("semantic_3d", "instance_3d"))
    in_space = [semantic == label if id < 0 else instance == id for id, label in zip(ids, classes, strict=True)]
    frustum = ~sample["outside"] if source == "matterport" else store.frustum
    assert frustum is not None and masks
    found = {
        "image": torch.from_numpy(sample["rgb"]).permute(2, 0, 1),
        "semantic": torch.from_numpy(np.where(sample["semantic_2d"] == 0, np.uint8(255), sample["semantic_2d"])),
        "depth": torch.from_numpy(depth),
        "transformed_depth": torch.from_numpy(depth[1::2, 1::2].copy()),
        "intrinsic": torch.from_numpy(sample["intrinsics"].astype(np.float32)),
        "gt_ids": torch.tensor(ids),
        "gt_classes": torch.tensor(classes),
        "gt_masks": torch.from_numpy(np.stack(masks)),
        "geometry": distance.clamp(max=limit),
        "frustum_mask": torch.from_numpy(frustum),
    }
    for (name, level), below in zip(LEVELS, (limit, 6.0, 8.0), strict=True):
        found[f"occupancy_{name}"] = ((resized(distance, level) if level else distance) < below).float()
        found[f"weighting3d_{name}"] = resized(weight, level) if level else weight
        found[f"gt_masks_3d_{name}"] = torch.stack([pooled(mask, level) if level else mask for mask in in_space])
    return found


@pytest.mark.parametrize("limit", [12.0, 3.0])
@pytest.mark.parametrize("source", ["front3d", "matterport"])
def test_stage_2_targets_equal_dense_operations_on_what_is_stored(source: str, limit: float, both: list[Path]) -> None:
    store = open_store(both[source == "matterport"])
    config = replace(STAGE_2, truncation_range=(0.0, limit))
    batches = loader(on_disk(store.root), config, batch_size=3, shuffle=False)
    seen = 0
    for batch in batches:
        ends = [0, *batch.masks_of.cumsum(0).tolist()]
        for number, (key, (first, end)) in enumerate(zip(batch.keys, pairwise(ends), strict=True)):
            for name, tensor in expected_of(store, key, limit).items():
                found = batch[name][first:end] if name.startswith("gt_") else batch[name][number]
                assert found.dtype == tensor.dtype and torch.equal(found, tensor), f"{key} {name}"
            seen += 1
    assert seen == 6


@pytest.mark.parametrize("source", ["front3d", "matterport"])
def test_mean_depths_are_those_of_the_masks(source: str, both: list[Path]) -> None:
    for batch in loader(both[source == "matterport"], shuffle=False, batch_size=4):
        for number, targets in enumerate(batch.instances):
            depth = batch["depth"][number].double()
            for mask, mean in zip(targets.gt_masks, targets.mean_depths, strict=True):
                known = depth[mask & (depth > 0)]
                assert float(mean) == pytest.approx(float(known.mean()) if len(known) else 0.0, rel=1e-6)


@pytest.mark.parametrize("limit", [12.0, 3.0])
@pytest.mark.parametrize("source", ["front3d", "matterport"])
def test_occupied_planes_are_those_of_the_dense_volume(source: str, limit: float, both: list[Path]) -> None:
    store = open_store(both[source == "matterport"])
    for batch in loader(on_disk(store.root), replace(STAGE_1, truncation_range=(0.0, limit)), shuffle=False):
        sample = store.read(batch.keys[0], ["geometry", "intrinsics"])
        occupied = np.flatnonzero(np.abs(sample["geometry"]) < limit)
        expected = plane_occupancy(torch.from_numpy(occupied), plane_tables(sample["intrinsics"], (320, 240), 64))
        assert expected.any() and torch.equal(batch["mp_occ"][0], expected)
        assert "geometry" not in batch and batch.volumes is None


def test_evaluation_has_the_true_maps_besides(both: list[Path]) -> None:
    for path in both:
        store = open_store(path)
        (train,) = (set(batch.tensors) for batch in loader(path, batch_size=6, shuffle=False))
        config = replace(IMAGES, augmentation=VARIED)
        (batch,) = loader(path, config, training=False, batch_size=6, shuffle=False)
        assert batch.tensors.keys() - train == RAW and train <= batch.tensors.keys()
        assert batch["image"].shape == (6, 3, 240, 320)  # nothing is left to chance
        for number, key in enumerate(batch.keys):
            sample = store.read(key, ["rgb", "semantic_2d", "instance_2d", "depth"])
            true = np.where(sample["semantic_2d"] == 0, 13, sample["semantic_2d"])
            assert torch.equal(batch["image"][number], torch.from_numpy(sample["rgb"]).permute(2, 0, 1))
            assert torch.equal(batch["raw_sem_seg"][number].long(), torch.from_numpy(true.astype(np.int64)))
            assert batch["raw_inst_seg"][number].tolist() == sample["instance_2d"].tolist()
            steps = np.trunc(true_depth(sample, store.layout.source) * np.float32(256))
            assert torch.equal(batch["raw_depth"][number].double(), torch.from_numpy(steps.astype(np.float64)))


def test_the_true_maps_keep_their_size_where_the_image_is_resized(front3d_store: Path) -> None:
    config = replace(IMAGES, augmentation=AugmentationConfig(test_min_size=120, size_divisibility=32))
    for batch in loader(front3d_store, config, training=False, shuffle=False):
        assert batch["raw_sem_seg"].shape == (1, 240, 320) and batch.sizes == ((240, 320),)
        assert batch["image"].shape == (1, 3, 128, 160) and batch.unpadded == ((120, 160),)
        assert (batch["image"][..., 120:, :] == 128).all() and not batch["gt_masks"][:, 120:].any()


def test_another_ignored_label_marks_the_same_pixels(front3d_store: Path) -> None:
    for usual, other in zip(
        loader(front3d_store, shuffle=False), loader(front3d_store, replace(IMAGES, ignore_label=77), shuffle=False), strict=True
    ):
        assert torch.equal(torch.where(usual["semantic"] == 255, 77, usual["semantic"]), other["semantic"])
        assert torch.equal(usual["gt_masks"], other["gt_masks"])


# Which samples, and in which order


def without_volumes(store: Path) -> Path:
    for name in (*VOLUMES, "frustum"):
        shutil.rmtree(store / name / "c", ignore_errors=True)
    return store


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("source", ["front3d", "matterport"])
def test_images_are_read_without_the_volumes(source: str, workers: int, both: list[Path], tmp_path: Path) -> None:
    given = both[source == "matterport"]
    bare = without_volumes(Path(shutil.copytree(given, tmp_path / "bare")))
    assert not list(bare.glob("geometry/c/**/*"))
    check_same(list(loader(bare, batch_size=2, workers=workers)), list(loader(given, batch_size=2)))


def test_planes_and_volumes_need_the_geometry_and_say_which_file(copied: Path) -> None:
    shutil.rmtree(copied / "geometry" / "c")
    for config in (STAGE_1, STAGE_2):
        with pytest.raises(Corrupt, match=r"part [0-9a-f]{16}: geometry/c/0/0/0/0 is missing; sample \S+/\d{4} cannot be read"):
            next(iter(loader(copied, config, shuffle=False)))


def test_a_missing_frustum_is_named_when_volumes_are_wanted(copied: Path) -> None:
    shutil.rmtree(copied / "frustum" / "c")
    with pytest.raises(Corrupt, match="frustum/c/0/0/0: differs from its checksum"):
        SceneDataset(copied, None, STAGE_2)
    assert len(list(loader(copied, STAGE_1))) == 6


def test_a_split_holds_the_samples_it_names(both: list[Path]) -> None:
    for path in both:
        store = open_store(path)
        for split in ("train", "val", "test", None):
            wanted = store.keys if split is None else store.keys_of(split)
            assert wanted and [key for batch in loader(path, split=split, shuffle=False) for key in batch.keys] == wanted
            dataset = SceneDataset(store, split, IMAGES)
            assert [dataset.key(place) for place in range(len(dataset))] == wanted
    mixed = SceneDataset(both, "val", IMAGES)
    assert mixed.sources.tolist() == [0, 0, 1, 1]
    assert [mixed.key(place) for place in range(4)] == [key for path in both for key in open_store(path).keys_of("val")]


def test_an_unknown_split_is_refused_with_those_there_are(both: list[Path]) -> None:
    with pytest.raises(ConfigError, match=r"no samples in split 'valid' of \S+, \S+; it has test, train, val"):
        SceneDataset(both, "valid")
    with pytest.raises(ConfigError, match="no stores; give at least one"):
        SceneDataset([])


def test_stores_of_other_sizes_are_refused(front3d_store: Path) -> None:
    one, other = open_store(front3d_store), open_store(front3d_store)
    for changed in ({"grid": 128}, {"image": (120, 160)}):
        other.layout = replace(one.layout, **changed)
        with pytest.raises(ConfigError, match="stores of one dataset have one grid and one image size; these have"):
            SceneDataset([one, other])


def test_a_sample_is_found_by_its_place_from_either_end(both: list[Path]) -> None:
    dataset = SceneDataset(both, None, IMAGES)
    assert len(dataset) == 12
    for place in range(12):
        example = dataset[place]
        assert isinstance(example, Example) and example.key == dataset.key(place)
        assert example.visit == Visit(place, 0, place, 0)
        check_same_example(dataset[place - 12], example)
    for place in (12, -13):
        with pytest.raises(IndexError):
            dataset[place]


def test_parts_are_those_of_the_stores_numbered_on(both: list[Path]) -> None:
    dataset = SceneDataset(both, None, IMAGES)
    named = [(path, facts["part"]) for path in both for facts in open_store(path).samples.to_pylist()]
    assert len(set(zip(named, dataset.parts.tolist(), strict=True))) == len(set(named)) == len(set(dataset.parts.tolist())) == 6
    assert SceneDataset(both, "val", IMAGES).parts.tolist()[0] != SceneDataset(both, "val", IMAGES).parts.tolist()[2]


@pytest.mark.parametrize(("batch_size", "shuffle"), [(1, True), (5, True), (5, False), (12, True), (40, True)])
def test_batches_come_in_the_order_of_the_order(batch_size: int, shuffle: bool, both: list[Path]) -> None:
    batches = loader(both, batch_size=batch_size, shuffle=shuffle, window=2)
    order = Order(batches.dataset.parts, batch_size, seed=SEED, shuffle=shuffle, window=2)
    for epoch in range(2):
        assert len(batches) == order.steps(epoch, batches.state[1])
        expected = list(order.batches(*batches.state))
        found = [(list(batch.visits), batch.keys) for batch in batches]
        assert found == [(visits, tuple(batches.dataset.key(visit.sample) for visit in visits)) for visits in expected]


@pytest.mark.parametrize("config", [replace(IMAGES, augmentation=VARIED), STAGE_2])
def test_workers_change_nothing(config: DatasetConfig, both: list[Path]) -> None:
    alone, shared = (loader(both, config, batch_size=5, workers=workers) for workers in (0, 2))
    for _ in range(2):
        check_same(list(shared), list(alone))
        assert shared.state == alone.state


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_resumed_at_any_step_goes_on_as_if_it_never_stopped(workers: int, both: list[Path]) -> None:
    config = replace(IMAGES, augmentation=VARIED)
    whole = loader(both, config, batch_size=5)
    batches, states = [], [whole.state]
    for _ in range(2):
        for batch in whole:
            batches.append(batch)
            states.append(whole.state)
    assert len(batches) == 5 and states[3] == (1, 3)  # 15 of 12 samples, then 10 more
    for step in range(5) if workers == 0 else (1, 4):
        resumed = loader(both, config, batch_size=5, workers=workers, state=json.loads(json.dumps(states[step])))
        rest = list(resumed)
        if step < 3:
            rest += list(resumed)
        check_same(rest, batches[step:])
        assert tuple(resumed.state) == states[-1]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_iteration_that_was_left_is_taken_up_where_it_was_left(workers: int, both: list[Path]) -> None:
    whole = list(loader(both, batch_size=2))
    batches = loader(both, batch_size=2, workers=workers)
    found: list[Batch] = []
    for taken in (1, 3, 1):
        for batch in batches:
            found.append(batch)
            taken -= 1
            if not taken:
                break
    found += list(batches)
    check_same(found, whole)
    assert batches.state == (1, 0)


def test_the_stream_runs_on_through_the_epochs(both: list[Path]) -> None:
    batches = loader(both, batch_size=5)
    visits = [visit for _ in range(5) for batch in batches for visit in batch.visits]
    assert [12 * visit.epoch + visit.position for visit in visits] == list(range(60)) and batches.state == (5, 0)
    for epoch in range(5):
        assert sorted(visit.sample for visit in visits if visit.epoch == epoch) == list(range(12))


@pytest.mark.parametrize("shuffle", [True, False])
def test_two_ranks_share_out_what_one_reads(shuffle: bool, both: list[Path]) -> None:
    config = replace(IMAGES, augmentation=VARIED)
    alone = list(loader(both, config, batch_size=4, shuffle=shuffle))
    ranks = [list(loader(both, config, batch_size=2, shuffle=shuffle, rank=rank, world_size=2)) for rank in range(2)]
    assert [len(batches) for batches in ranks] == [3, 3]
    for whole, *parts in zip(alone, *ranks, strict=True):
        assert [visit for part in parts for visit in part.visits] == list(whole.visits)
        for name in ("image", "gt_masks", "depth"):
            assert torch.equal(torch.cat([part[name] for part in parts]), whole[name]), name
    assert sorted(visit.sample for batch in (*ranks[0], *ranks[1]) for visit in batch.visits) == list(range(12))


# Several sources


def test_sources_mix_by_weight_and_all_have_rooms_and_frustums(both: list[Path]) -> None:
    stores = [open_store(path) for path in both]
    batches = loader(both, STAGE_2, batch_size=4, weights=(3.0, 1.0))
    found = [batch for _ in range(4) for batch in batches]
    of_source = batches.dataset.sources
    drawn = [int(of_source[visit.sample]) for batch in found for visit in batch.visits]
    assert drawn == spread_sources((3.0, 1.0))[: len(drawn)].tolist() and Counter(drawn).keys() == {0, 1}
    for batch in found:
        for number, (key, visit) in enumerate(zip(batch.keys, batch.visits, strict=True)):
            store = stores[of_source[visit.sample]]
            sample = store.read(key)
            if "room_mask" in store.facts(key)["fields"]:
                inside = sample["room_mask"] > 0
                assert torch.equal(batch["room_mask_buol"][number], torch.from_numpy(inside[1::2, 1::2].copy()))
            else:
                inside = np.ones((240, 320), bool)
                assert batch["room_mask_buol"][number].all()
            assert torch.equal(batch["room_mask"][number], torch.from_numpy(inside))
            assert torch.equal(batch["frustum_mask"][number], expected_of(store, key)["frustum_mask"])
            assert batch.instances[number].gt_classes.tolist() == image_targets(sample, store.layout.source)[1]


def test_an_image_without_a_room_mask_lies_wholly_in_its_room(matterport_store: Path) -> None:
    store = open_store(matterport_store)
    without = [key for key in store.keys if "room_mask" not in store.facts(key)["fields"]]
    assert len(without) == 1
    for batch in loader(matterport_store, shuffle=False):
        assert bool(batch["room_mask"].all()) == bool(batch["room_mask_buol"].all()) == (list(batch.keys) == without)


def test_one_source_of_the_3d_front_form_has_no_rooms(front3d_store: Path) -> None:
    assert not {"room_mask", "room_mask_buol"} & set(next(iter(loader(front3d_store))).tensors)


def test_two_stores_are_read_as_each_alone(both: list[Path]) -> None:
    mixed = list(loader(both, STAGE_2, shuffle=False))
    alone = [batch for path in both for batch in loader(path, STAGE_2, shuffle=False)]
    for one, other in zip(mixed, alone, strict=True):
        assert one.keys == other.keys
        check_same_tensors({name: one[name] for name in other.tensors}, other.tensors)
        assert one.tensors.keys() - other.tensors.keys() <= {"room_mask", "room_mask_buol"}


# Samples that cannot be read


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("field", "config"), [("rgb", IMAGES), ("depth", IMAGES), ("geometry", STAGE_1), ("weighting", STAGE_2)])
def test_a_damaged_sample_is_named_with_its_file_and_the_repair(
    field: str, config: DatasetConfig, workers: int, copied: Path
) -> None:
    (key,) = damage(copied, 2, field=field)
    part = open_store(copied).facts(key)["part"]
    batches = loader(copied, config, shuffle=False, workers=workers)
    keys: list[str] = []
    with pytest.raises(Corrupt) as refused:
        for batch in batches:
            keys += batch.keys
    for said in (
        f"part {part}: {path_of(2, field)} a checksum differs; sample {key} cannot be read.",
        f'"scenemill verify {copied}" says what is whole',
        '"scenemill ingest ... --repair" rebuilds it',
    ):
        assert said in str(refused.value)
    assert keys == open_store(copied).keys[:2] and batches.state == (0, 2) and batches.skipped == []


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_skipped_is_left_out_and_counted(workers: int, copied: Path) -> None:
    store = open_store(copied)
    keys = damage(copied, 0, 2, 3)
    batches = loader(copied, batch_size=2, shuffle=False, on_error="skip", workers=workers)
    found = list(batches)
    assert [batch.keys for batch in found] == [(store.keys[1],), tuple(store.keys[4:])]  # nothing is left of the second
    assert [skipped.key for skipped in batches.skipped] == keys and batches.state == (1, 0)
    assert [skipped.key for skipped in found[0].skipped] == keys[:1] and found[1].skipped == ()
    assert all("a checksum differs; sample" in skipped.reason for skipped in batches.skipped)
    whole = list(loader(copied, split="test", batch_size=2, shuffle=False))
    assert torch.equal(found[1]["image"], whole[0]["image"])


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_replaced_gives_way_to_the_next_that_can_be_read(workers: int, copied: Path) -> None:
    store = open_store(copied)
    keys = damage(copied, 1, 2, 5)
    batches = loader(copied, replace(IMAGES, augmentation=VARIED), batch_size=2, on_error="replace", workers=workers)
    (order,) = [list(batches.order.epoch_order(0))]
    found = list(batches)
    stands_in = {1: 3, 2: 3, 5: 0}
    expected = [stands_in.get(sample, sample) for sample in order]
    assert [key for batch in found for key in batch.keys] == [store.keys[sample] for sample in expected]
    assert [visit.sample for batch in found for visit in batch.visits] == expected
    assert [visit.position for batch in found for visit in batch.visits] == list(range(6))
    assert sorted(skipped.key for skipped in batches.skipped) == keys and batches.state == (1, 0)
    assert [len(batch) for batch in found] == [2, 2, 2]


def test_a_store_of_which_nothing_can_be_read_is_refused_or_skipped(copied: Path) -> None:
    keys = damage(copied, *range(6))
    with pytest.raises(Corrupt, match="none of 6 samples can be read; the first says: part "):
        next(iter(loader(copied, on_error="replace")))
    batches = loader(copied, batch_size=4, shuffle=False, on_error="skip")
    assert list(batches) == [] and [skipped.key for skipped in batches.skipped] == keys and batches.state == (1, 0)


def test_skipping_is_refused_where_ranks_would_part(both: list[Path]) -> None:
    with pytest.raises(ConfigError, match='on_error="skip" would leave some ranks with fewer batches: use "replace" or "raise"'):
        loader(both, on_error="skip", world_size=2)
    assert len(loader(both, on_error="skip", world_size=2, shuffle=False)) == 6
    assert len(loader(both, on_error="replace", world_size=2)) == 6
    with pytest.raises(ConfigError, match="on_error='ignore': allowed is 'raise', 'skip', 'replace'"):
        loader(both, on_error="ignore")


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_that_is_no_word_is_refused(seed: int, front3d_store: Path) -> None:
    with pytest.raises(ConfigError, match=f"seed {seed}; give 0 to "):
        SceneDataset(front3d_store, seed=seed)


# What is left to chance


def test_equal_visits_give_equal_examples_wherever_they_are_read(both: list[Path]) -> None:
    flipped = replace(VARIED, random_flip="horizontal", enable_crop=True, crop_size=(100, 100), single_category_max_area=0.5)
    config = replace(IMAGES, augmentation=flipped)
    first, second = (SceneDataset(both, None, config, training=True, seed=2**64 - 1) for _ in range(2))
    visits = [Visit(3, 2, 7, 28), Visit(9, 0, 0, 0), Visit(3, 0, 0, 0)]
    examples = [first[visit] for visit in visits]
    for visit, example in reversed(list(zip(visits, examples, strict=True))):
        check_same_example(second[visit], example)
    read = DataLoader(first, sampler=visits, batch_size=1, num_workers=2, collate_fn=collate)
    check_same(list(read), [collate([example]) for example in examples])


def images_at(dataset: SceneDataset, visits: Sequence[Visit]) -> list[bytes]:
    examples = [dataset[visit] for visit in visits]
    return [example.tensors["image"].numpy().tobytes() for example in examples if isinstance(example, Example)]


def test_another_epoch_position_or_seed_varies_the_same_sample_otherwise(front3d_store: Path) -> None:
    config = replace(IMAGES, augmentation=replace(VARIED, train_min_size=(120,)))
    visits = [Visit(0, epoch, position, 0) for epoch in range(4) for position in range(4)]
    found = [
        images_at(SceneDataset(front3d_store, None, config, training=True, seed=seed), visits)
        for seed in (1, 2, 2**64 - 2, 2**64 - 1, 1)
    ]
    assert found[0] == found[-1]
    assert all(len(set(images)) > 12 for images in found)
    for one, other in pairwise(found):
        assert sum(a != b for a, b in zip(one, other, strict=True)) > 12


def test_a_batch_shares_one_short_edge_on_all_ranks(both: list[Path]) -> None:
    config = replace(IMAGES, augmentation=VARIED)
    ranks = [loader(both, config, batch_size=2, rank=rank, world_size=2) for rank in range(2)]
    edges = []
    for _ in range(4):
        for batches in zip(*ranks, strict=True):
            sizes = {size for batch in batches for size in batch.unpadded}
            assert len(sizes) == 1 and all(batch["image"].shape[2:] == batch.unpadded[0] for batch in batches)
            edges.append(min(sizes.pop()))
    assert set(edges) <= set(VARIED.train_min_size) and len(set(edges)) >= 3


# Processes and memory


@pytest.mark.parametrize("config", [replace(IMAGES, augmentation=VARIED), STAGE_2])
def test_a_dataset_sent_to_another_process_reads_the_same(config: DatasetConfig, both: list[Path]) -> None:
    for stores in ([both[0]], [both[1]], both):
        dataset = SceneDataset(stores, "train", config, training=True, seed=SEED)
        dataset[0]  # with its files open
        sent = pickle.loads(pickle.dumps(dataset))
        assert len(sent) == len(dataset) and sent.parts.tolist() == dataset.parts.tolist()
        for place in range(len(dataset)):
            check_same_example(sent[place], dataset[place])


def test_a_spawned_process_reads_the_same(both: list[Path]) -> None:
    dataset = SceneDataset(both, "val", STAGE_2)
    spawned = DataLoader(dataset, batch_size=4, num_workers=1, multiprocessing_context="spawn", collate_fn=collate)
    check_same(list(spawned), [collate([dataset[place] for place in range(4)])])


@pytest.mark.parametrize("workers", [0, 2])
def test_held_batches_never_change_and_memory_is_used_again(workers: int, front3d_store: Path) -> None:
    batches = loader(front3d_store, STAGE_2, workers=workers)
    held, copies, seen = [], [], []
    for batch in batches:
        held.append(batch)
        copies.append(replace(batch, tensors={name: tensor.clone() for name, tensor in batch.tensors.items()}))
    check_same(held, copies)
    del held, batch
    for batch in batches:
        seen.append(batch["geometry"].data_ptr())
    assert len(set(seen)) <= 2


@pytest.mark.parametrize("workers", [0, 1])
def test_blocks_left_as_they_are_expand_to_the_dense_batch(workers: int, both: list[Path]) -> None:
    for stores in (both, both[:1]):
        blocks = loader(stores, STAGE_2, batch_size=3, dense=False, workers=workers)
        for batch, dense in zip(blocks, loader(stores, STAGE_2, batch_size=3), strict=True):
            assert batch.volumes is not None and "geometry" not in batch
            check_same([expand_batch(batch, STAGE_2, blocks.dataset.frustum)], [dense])


def on_gpu(stores: Sequence[Path], **settings: Any) -> Iterator[Batch]:
    for batch in loader(stores, STAGE_2, batch_size=3, device="cuda", **settings):
        assert all(tensor.is_cuda for tensor in batch.tensors.values())
        yield batch.to("cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_gpu_gets_the_same_batches(workers: int, both: list[Path]) -> None:
    for stores in (both, both[:1]):
        check_same(list(on_gpu(stores, workers=workers)), list(loader(stores, STAGE_2, batch_size=3)))


def test_threads_read_the_batches_that_one_process_reads(front3d_store: Path) -> None:
    config = DatasetConfig(enable_3d=True, augmentation=AugmentationConfig(color_aug_ssd=True))
    alone, threads = (SceneLoader(SceneDataset(front3d_store, None, config, training=True), 2, threads=count) for count in (0, 3))
    for _ in range(2):
        for one, other in zip(alone, threads, strict=True):
            assert one.keys == other.keys
            assert all(torch.equal(tensor, other[name]) for name, tensor in one.tensors.items())
    assert alone.state == threads.state


def test_threads_stop_when_the_caller_does(front3d_store: Path) -> None:
    loader = SceneLoader(SceneDataset(front3d_store, None, DatasetConfig(enable_mp_occ=False)), threads=2)
    first = next(iter(loader))
    assert loader.state == (0, 1)
    assert first.keys != next(iter(loader)).keys
    with pytest.raises(ConfigError, match="threads"):
        SceneLoader(loader.dataset, threads=1, workers=1)
