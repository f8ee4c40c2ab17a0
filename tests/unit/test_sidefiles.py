"""Files that settings name beside the samples: label maps, frustum masks, generated images; how they are found, read, and act."""

import json
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from scenemill.pipelines.experiments.specs import read_spec, spec_text
from scenemill.pipelines.experiments.training import open_dataset
from scenemill.pipelines.ingest import ingest
from scenemill.schemas.config import IngestConfig
from scenemill.schemas.dataset import AugmentationConfig, DatasetConfig, SplitConfig
from scenemill.schemas.errors import ConfigError, Corrupt
from scenemill.schemas.labels import BUILT_IN, LABELS
from scenemill.schemas.places import on_disk
from scenemill.trainers.batches import SceneDataset, SceneLoader
from scenemill.trainers.collate import Batch, collate
from scenemill.trainers.nvpanoptix3d.losses import targets_of
from scenemill.trainers.order import Visit
from scenemill.trainers.sidefiles import (
    check_label_map,
    frustum_of,
    generated_root,
    label_map_of,
    list_generated,
    read_generated,
)
from scenemill.transforms.geometry import front3d_frustum
from scenemill.transforms.store import Store, open_store

# Python 3.12 warns of every fork beside threads; PyTorch's workers are forked
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

AS_STORED = AugmentationConfig(train_min_size=(240,), train_max_size=960)
IMAGES = DatasetConfig(enable_mp_occ=False, augmentation=AS_STORED)
VOLUMES = DatasetConfig(enable_3d=True, enable_mp_occ=False, augmentation=AS_STORED)


@pytest.fixture(scope="module")
def raw(front3d_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raw folder with generated images: two of the first view, one of the second; tests must not change it."""
    folder = Path(shutil.copytree(front3d_world, tmp_path_factory.mktemp("sidefiles") / "raw"))
    first, second = sorted((folder / "data").glob("*/rgb_*.png"))[:2]
    for number, (view, name) in enumerate([(first, "_night"), (first, "_0"), (second, "")]):
        path = folder / "augment" / view.parent.name / f"{view.stem}{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((240, 320, 3), 10 * number, np.uint8)).save(path)
    return folder


@pytest.fixture(scope="module")
def front3d(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Six samples, two to a part."""
    return ingested("front3d", raw, tmp_path_factory.mktemp("sidefiles") / "front3d")


@pytest.fixture(scope="module")
def matterport(matterport_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Six samples, two to a part."""
    return ingested("matterport", matterport_world, tmp_path_factory.mktemp("sidefiles") / "matterport")


def ingested(source: str, raw: Path, store: Path) -> Store:
    ingest(IngestConfig(source, raw, store, samples_per_part=2))
    return open_store(store)


def named(config: DatasetConfig, **bases: Path | str) -> DatasetConfig:
    return replace(config, **{split: SplitConfig(base_dir=str(base)) for split, base in bases.items()})  # type: ignore[arg-type]


def write_map(path: Path, **changed: dict[str, Any]) -> Path:
    """The published label map with some entries changed: ``_5={"trainId": 6}``."""
    usual = (
        {"color": list(one.color), "isthing": int(one.thing), "id": one.id, "trainId": one.id, "name": one.name} for one in LABELS
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([entry | changed.get(f"_{entry['id']}", {}) for entry in usual if entry["id"]]))
    return path


def batches(stores: Store | Sequence[Store], config: DatasetConfig, **settings: Any) -> list[Batch]:
    dataset = SceneDataset(stores, None, config, training=True)
    return list(SceneLoader(dataset, **{"batch_size": 2, "shuffle": False, **settings}))


def check_same(found: Sequence[Batch], expected: Sequence[Batch]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert (one.keys, one.visits, one.loss_weights, one.skipped) == (
            other.keys,
            other.visits,
            other.loss_weights,
            other.skipped,
        )
        ours, theirs = ((batch.tensors | (batch.volumes.tensors() if batch.volumes else {})) for batch in (one, other))
        assert ours.keys() == theirs.keys()
        for name, tensor in theirs.items():
            assert ours[name].dtype == tensor.dtype and torch.equal(ours[name], tensor), name


# How a file is found


def test_a_label_map_is_found_as_it_is_named_else_in_a_base_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = write_map(tmp_path / "given" / "map.json", _1={"name": "given"})
    write_map(tmp_path / "base" / "meta" / "map.json", _1={"name": "based"})
    bases = {"val": tmp_path / "base", "test": tmp_path / "none"}

    def name_of(path: Path | str) -> str:
        return label_map_of(named(replace(IMAGES, label_map=str(path)), **bases)).labels[1].name

    assert label_map_of(IMAGES) is BUILT_IN
    assert name_of(given) == "given"
    assert name_of("meta/map.json") == "based"
    monkeypatch.chdir(tmp_path / "given")
    assert name_of("map.json") == "given"
    write_map(tmp_path / "given" / "meta" / "map.json", _1={"name": "nearer"})
    assert name_of("./meta/map.json") == "nearer"


def test_a_file_that_is_nowhere_is_told_with_where_it_was_looked_for(tmp_path: Path) -> None:
    config = named(replace(IMAGES, label_map="none.json"), train=tmp_path / "a", test=tmp_path / "a" / "data")
    with pytest.raises(ConfigError) as refused:
        label_map_of(config)
    for said in ("dataset.label_map='none.json'", *(str(tmp_path / name / "none.json") for name in ("a", "a/data")), "whole path"):
        assert said in str(refused.value)
    for strange in ("\0", "a" * 5000, str(tmp_path)):
        with pytest.raises(ConfigError, match="no file"):
            label_map_of(replace(IMAGES, label_map=strange))


def test_a_relative_path_does_not_lead_out_of_its_base_dir(tmp_path: Path) -> None:
    write_map(tmp_path / "secret.json")
    (tmp_path / "base" / "meta").mkdir(parents=True)
    (tmp_path / "base" / "meta" / "link.json").symlink_to(tmp_path / "secret.json")
    for path in ("../secret.json", "meta/../../secret.json", "meta/link.json"):
        with pytest.raises(ConfigError, match="which leads out of the raw folder"):
            label_map_of(named(replace(IMAGES, label_map=path), train=tmp_path / "base"))


def test_two_base_dirs_with_maps_that_differ_are_refused(tmp_path: Path) -> None:
    for folder, name in (("a", "one"), ("b", "one"), ("c", "other")):
        write_map(tmp_path / folder / "map.json", _1={"name": name})
    config = replace(IMAGES, label_map="map.json")
    assert label_map_of(named(config, train=tmp_path / "a", val=tmp_path / "b")).labels[1].name == "one"
    with pytest.raises(ConfigError, match=r"a/map.json, \S+c/map.json differ; give the whole path of one"):
        label_map_of(named(config, train=tmp_path / "a", val=tmp_path / "c"))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"{", "no readable JSON"),
        (b"[" * 100_000, "no readable JSON"),
        (b"\xff", "no readable JSON"),
        (b"[" + b" " * (1 << 20) + b"]", "bytes; allowed is at most 1048576"),
        (b"{}", "allowed is a JSON array"),
    ],
)
def test_what_is_no_label_map_is_refused_with_its_path(content: bytes, told: str, tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=told) as refused:
        label_map_of(replace(IMAGES, label_map=str(path)))
    assert f"dataset.label_map={str(path)!r}" in str(refused.value)


def test_a_label_map_needs_an_output_of_the_model_for_each_class(tmp_path: Path) -> None:
    path = write_map(
        tmp_path / "map.json",
        **{f"_{id}": {"trainId": 3} for id in (10, 11, 12)},
        **{f"_{id}": {"trainId": 2} for id in range(2, 10)},
    )
    settings = [f"dataset.label_map={path}", "model.sem_seg_head.num_classes=4"]
    assert check_label_map(read_spec(spec_text("tiny_front3d_2d"), settings, "tiny")).classes == (1, 2, 3)
    settings[1] = "model.sem_seg_head.num_classes=3"
    with pytest.raises(ConfigError, match=r"ids 10, 11, 12 are learned as 3, but model.sem_seg_head.num_classes=3"):
        check_label_map(read_spec(spec_text("tiny_front3d_2d"), settings, "tiny"))


# What a label map does to batches


def test_a_label_map_equal_to_the_built_in_list_changes_no_bit(raw: Path, front3d: Store, matterport: Store) -> None:
    other = replace(IMAGES, num_thing_classes=7, stuff_classes=(12,), min_instance_pixels=0)
    for config, contiguous in ((VOLUMES, False), (VOLUMES, True), (other, False)):
        mapped = replace(config, label_map=str(raw / "label_map.json"), contiguous_id=contiguous)
        found, expected = (batches([front3d, matterport], one, dense=False) for one in (mapped, config))
        assert sum(len(batch) for batch in found) == 12
        check_same(found, expected)


def table_of(path: Path) -> NDArray[np.uint8]:
    table = np.zeros(256, np.uint8)
    for entry in json.loads(path.read_text()):
        table[entry["id"]] = entry["trainId"] if entry["trainId"] != 255 else 0
    return table


def targets_of_sample(
    store: Store, key: str, table: NDArray[np.uint8], things: set[int], stuff: list[int]
) -> list[tuple[int, Any, Any]]:
    """Class, mask and voxels of each target of a sample, by plain loops over what the store holds."""
    sample = store.read(key)
    image, volume = table[sample["semantic_2d"]], table[sample["semantic_3d"]]
    found = []
    for id in np.unique(sample["instance_2d"]).tolist():
        mask = sample["instance_2d"] == id
        votes = np.bincount(np.where(image == 0, 255, image)[mask], minlength=256)
        if id > 0 and mask.sum() > 200 and int(votes.argmax()) in things:
            found.append((int(votes.argmax()), mask, sample["instance_3d"] == id))
    return found + [(label, image == label, volume == label) for label in stuff if (image == label).any()]


def test_a_label_map_says_what_is_learned_and_what_is_a_thing(front3d: Store, tmp_path: Path) -> None:
    """Tables become stuff, walls things; desks are tables; chairs teach nothing; floor and bed change numbers."""
    path = write_map(
        tmp_path / "map.json",
        _5={"isthing": 0},
        _6={"isthing": 0, "trainId": 5},
        _10={"isthing": 1},
        _3={"trainId": 255},
        _11={"trainId": 2},
        _2={"trainId": 11},
    )
    table, seen = table_of(path), Counter[int]()
    for batch in batches(front3d, replace(VOLUMES, label_map=str(path))):
        for number, (key, targets) in enumerate(zip(batch.keys, batch.instances, strict=True)):
            expected = targets_of_sample(front3d, key, table, {1, 4, 7, 8, 9, 10, 11}, [2, 5])
            assert targets.gt_classes.tolist() == [label for label, _, _ in expected]
            assert targets.gt_masks_3d_256 is not None
            for mask, voxels, (_, image, volume) in zip(targets.gt_masks, targets.gt_masks_3d_256, expected, strict=True):
                assert np.array_equal(mask, image) and np.array_equal(voxels, volume)
            stored = front3d.read(key, ["semantic_2d"])["semantic_2d"]
            assert np.array_equal(batch["semantic"][number], np.where(table[stored] == 0, 255, table[stored]))
            seen.update(targets.gt_classes.tolist())
    assert {2, 10} <= set(seen) and seen[5] and 3 not in seen


def test_the_true_maps_of_evaluation_are_those_that_are_learned(front3d: Store, tmp_path: Path) -> None:
    path = write_map(tmp_path / "map.json", _10={"trainId": 11}, _3={"trainId": 0})
    dataset = SceneDataset(front3d, None, replace(IMAGES, label_map=str(path)))
    for place, key in enumerate(front3d):
        learned = table_of(path)[front3d.read(key, ["semantic_2d"])["semantic_2d"]]
        true = collate([dataset[place]])["raw_sem_seg"][0]
        assert np.array_equal(true, np.where(learned == 0, 13, learned))


# Frustum masks


def write_mask(path: Path, mask: NDArray[Any], name: str = "mask") -> Path:
    """A mask file in the orientation of the released one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **{name: mask[::-1, ::-1]})  # type: ignore[arg-type]
    return path


def test_the_data_sets_own_mask_is_the_one_in_the_store(raw: Path, front3d: Store, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for base in (raw, raw / "data", tmp_path):
        for path in ("meta/frustum_mask.npz", "./meta/frustum_mask.npz", str(base / "meta" / "frustum_mask.npz")):
            found = frustum_of(named(replace(VOLUMES, frustum_mask_path=path), train=base), front3d)
            assert found is front3d.frustum


def test_a_mask_from_the_camera_equals_the_file(front3d: Store) -> None:
    found = frustum_of(replace(VOLUMES, frustum_mask_path=""), front3d)
    assert found is not front3d.frustum and np.array_equal(found, front3d.frustum)  # type: ignore[arg-type]


@pytest.mark.real
def test_a_mask_from_the_camera_equals_the_released_file(real_data: Path) -> None:
    released = np.load(real_data / "data" / "front3d" / "meta" / "frustum_mask.npz")["mask"]
    assert np.array_equal(front3d_frustum(256), released[::-1, ::-1])


@pytest.fixture(scope="module")
def other_mask(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, NDArray[np.bool_]]:
    mask = np.random.default_rng(3).random((64, 64, 64)) < 0.2
    return write_mask(tmp_path_factory.mktemp("masks") / "other.npz", mask), mask


def test_another_mask_is_in_the_batches(other_mask: tuple[Path, NDArray[np.bool_]], front3d: Store, matterport: Store) -> None:
    path, mask = other_mask
    config = replace(VOLUMES, frustum_mask_path=str(path))
    for batch in batches(front3d, config):
        assert all(np.array_equal(found, mask) for found in batch["frustum_mask"])
    mixed = list(chain.from_iterable(batch["frustum_mask"] for batch in batches([front3d, matterport], config)))
    assert all(np.array_equal(found, mask) for found in mixed[:6])
    for key, found in zip(matterport, mixed[6:], strict=True):
        assert np.array_equal(found, ~matterport.read(key, ["outside"])["outside"])  # each sample keeps its own


def test_a_mask_is_found_in_a_base_dir_and_needs_no_file_without_volumes(
    other_mask: tuple[Path, NDArray[np.bool_]], front3d: Store
) -> None:
    path, mask = other_mask
    config = named(replace(VOLUMES, frustum_mask_path=path.name), test=path.parent)
    assert np.array_equal(frustum_of(config, front3d), mask)  # type: ignore[arg-type]
    without = replace(IMAGES, frustum_mask_path="none.npz")
    assert len(batches(front3d, without)) == 3
    with pytest.raises(ConfigError, match=r"dataset.frustum_mask_path='none.npz': no file none.npz; give the whole path"):
        batches(front3d, replace(without, enable_3d=True))


def test_matterport_keeps_the_masks_of_its_samples(matterport: Store) -> None:
    for path in ("", "meta/frustum_mask.npz", "none.npz"):
        assert frustum_of(replace(VOLUMES, frustum_mask_path=path), matterport) is None


class Burglar:
    def __reduce__(self) -> Any:
        return os.mkdir, ("burgled",)


@pytest.mark.parametrize("kind", ["shape", "dtype", "name", "pickle", "empty", "text"])
def test_what_is_no_mask_is_refused_and_never_unpickled(
    kind: str, front3d: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mask.npz"
    cube = np.ones((64, 64, 64), bool)
    told = {
        "shape": r"\(64, 64, 64\)",
        "dtype": "bool",
        "name": "a member 'mask'",
        "pickle": "mask",
        "empty": "no voxel",
        "text": "npz",
    }
    if kind == "text":
        path.write_text("no archive")
    else:
        made = {"shape": cube[:32], "dtype": cube.astype(np.uint8), "pickle": np.array([Burglar()] * 64), "empty": ~cube}.get(
            kind, cube
        )
        np.savez(path, **{"other" if kind == "name" else "mask": made})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=told[kind]) as refused:
        frustum_of(replace(VOLUMES, frustum_mask_path=str(path)), front3d)
    assert f"dataset.frustum_mask_path={str(path)!r}" in str(refused.value)
    assert not (tmp_path / "burgled").exists()


# Generated images


WEIGHT = 0.3
GENERATED = AugmentationConfig(train_min_size=(240,), train_max_size=960, gen_aug_weight=WEIGHT)
VARIED = replace(GENERATED, train_min_size=(120, 160, 200, 240), color_aug_ssd=True)


def generating(raw: Path, config: DatasetConfig = IMAGES, augmentation: AugmentationConfig = GENERATED) -> DatasetConfig:
    return named(replace(config, augmentation=augmentation), train=raw)


def test_a_file_belongs_to_the_longest_image_id_it_begins_with(tmp_path: Path) -> None:
    names = (
        "rgb_0001.png",
        "rgb_0001_a.png",
        "rgb_0001b.png",
        "rgb_00012.png",
        "rgb_00012_a.png",
        "rgb_00013.png",
        "rgb_0002x.png",
    )
    others = ("rgb_0003.png", "rgb_0001.jpg", "depth_0001.png", "0001.png", "rgb_0002")
    for name in (*names, *others):
        path = tmp_path / "augment" / "scene" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    found = list(list_generated(tmp_path, ["scene/0002", "scene/0001", "scene/00012", "other/0001"]))
    assert [(image.key, image.sample) for image in found] == [
        ("scene/0001", "scene/0001"),
        ("scene/00012", "scene/00012"),
        ("scene/00012_a", "scene/00012"),
        ("scene/00013", "scene/0001"),
        ("scene/0001_a", "scene/0001"),
        ("scene/0001b", "scene/0001"),
        ("scene/0002x", "scene/0002"),
    ]
    assert {(tmp_path / image.path).name for image in found} == set(names)
    (tmp_path / "augment" / "scene" / "rgb_0001\u202e.png").touch()
    with pytest.raises(ConfigError, match=r"'rgb_0001\\u202e.png' in \S+scene: its name is no text; rename it"):
        list(list_generated(tmp_path, ["scene/0001"]))


@pytest.mark.parametrize("config", [IMAGES, VOLUMES])
def test_generated_images_are_samples_with_the_labels_of_another_and_their_own_weight(
    config: DatasetConfig, raw: Path, front3d: Store
) -> None:
    plain, more = (SceneDataset(front3d, None, one, training=True) for one in (config, generating(raw, config)))
    first, second = front3d.keys[:2]
    assert len(more) == len(plain) + 3
    assert [more.key(place) for place in range(9)] == [*front3d.keys, f"{first}_0", f"{first}_night", second]
    assert more.parts.tolist() == [*plain.parts.tolist(), 0, 0, 0] and more.sources.tolist() == [0] * 9
    for place, shown, colour in ((6, 0, 10), (7, 0, 0), (8, 1, 20)):
        own, of = collate([more[Visit(place, 0, 5, 0)]]), collate([plain[Visit(shown, 0, 5, 0)]])
        assert own.keys == (more.key(place),) and own.loss_weights == (WEIGHT,) and of.loss_weights == (1.0,)
        assert (own["image"] == colour).all()
        for name in of.tensors.keys() - {"image"}:
            assert torch.equal(own[name], of[name]), name
        if own.volumes is not None and of.volumes is not None:
            assert all(torch.equal(tensor, of.volumes.tensors()[name]) for name, tensor in own.volumes.tensors().items())
        assert [targets.loss_weight for targets in own.instances] == [WEIGHT]


def test_losses_take_the_weights(raw: Path, front3d: Store) -> None:
    (batch,) = batches(front3d, generating(raw), batch_size=9)
    assert [targets.loss_weight for targets in batch.instances] == [1.0] * 6 + [WEIGHT] * 3
    assert targets_of(batch, (240, 320)).loss_weight.tolist() == pytest.approx([1.0] * 6 + [WEIGHT] * 3)


def test_a_split_has_the_generated_images_of_its_samples(raw: Path, front3d: Store) -> None:
    wanted = set(front3d.keys_of("train")) & set(front3d.keys[:2])
    dataset = SceneDataset(front3d, "train", generating(raw), training=True)
    extra = [dataset.key(place) for place in range(len(front3d.keys_of("train")), len(dataset))]
    assert extra and {key[: key.index("/") + 5] for key in extra} == wanted


def test_validation_has_none(raw: Path, front3d: Store) -> None:
    assert len(SceneDataset(front3d, None, generating(raw))) == 6
    assert len(SceneDataset(front3d, None, named(IMAGES, train=raw), training=True)) == 6  # the weight is 0


def stream(loaders: Sequence[SceneLoader], steps: int) -> list[tuple[str, float, bytes]]:
    """The samples of some steps of all ranks together, in the order of the stream."""
    found = []
    iterators = [chain.from_iterable(repeat(loader)) for loader in loaders]
    for _ in range(steps):
        for iterator in iterators:
            batch = next(iterator)
            images = (image.numpy().tobytes() for image in batch["image"])
            found += list(zip(batch.keys, batch.loss_weights, images, strict=True))
    return found


def test_order_ranks_workers_and_resuming_change_nothing(raw: Path, front3d: Store) -> None:
    dataset = SceneDataset(
        front3d, None, generating(raw, augmentation=replace(VARIED, train_min_size=(120,))), training=True, seed=4
    )
    whole = stream([SceneLoader(dataset, 4, seed=4)], 6)
    assert stream([SceneLoader(dataset, 1, seed=4, rank=rank, world_size=4) for rank in range(4)], 6) == whole
    assert stream([SceneLoader(dataset, 2, seed=4, rank=rank, world_size=2) for rank in range(2)], 6) == whole
    assert stream([SceneLoader(dataset, 4, seed=4, workers=2)], 6) == whole
    begun = SceneLoader(dataset, 4, seed=4)
    head = stream([begun], 2)
    assert head + stream([SceneLoader(dataset, 4, seed=4, state=begun.state)], 4) == whole
    assert Counter(weight for _, weight, _ in whole[:9]) == {1.0: 6, WEIGHT: 3}  # an epoch has each once
    assert len({image for key, _, image in whole if key == front3d.keys[0]}) > 1  # varied like any other


@pytest.fixture
def damaged(raw: Path, tmp_path: Path) -> Path:
    """A raw folder, the first of whose generated images is cut short."""
    folder = Path(shutil.copytree(raw, tmp_path / "damaged"))
    path = next(iter(sorted(folder.glob("augment/*/*_0.png"))))
    path.write_bytes(path.read_bytes()[:-30])
    return folder


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_told_like_a_broken_sample(workers: int, damaged: Path, front3d: Store) -> None:
    config, key = generating(damaged), f"{front3d.keys[0]}_0"
    loaders = {
        action: SceneLoader(
            SceneDataset(front3d, None, config, training=True, on_error=action),
            3,
            shuffle=False,
            workers=workers,
        )
        for action in ("raise", "skip", "replace")
    }
    with pytest.raises(
        Corrupt, match=rf"generated image \S+_0.png: container: found .*; sample {key} cannot be read. Replace or remove"
    ):
        list(loaders["raise"])
    assert [batch.keys for batch in loaders["skip"]][2] == (f"{front3d.keys[0]}_night", front3d.keys[1])
    assert [batch.loss_weights for batch in loaders["replace"]][2] == (WEIGHT,) * 3
    for action in ("skip", "replace"):
        assert [skipped.key for skipped in loaders[action].skipped] == [key]
        assert "Replace or remove" in loaders[action].skipped[0].reason


@pytest.mark.parametrize("kind", ["size", "grey", "jpeg", "missing", "link"])
def test_an_image_must_be_one_of_the_stored_size(kind: str, raw: Path, front3d: Store, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(raw, tmp_path / "raw"))
    image = next(list_generated(folder, front3d.keys))
    path = folder / image.path
    path.unlink()
    if kind == "link":
        path.symlink_to(raw / image.path)
    elif kind != "missing":
        shape = {"size": (120, 160, 3), "grey": (240, 320), "jpeg": (240, 320, 3)}[kind]
        Image.fromarray(np.zeros(shape, np.uint8)).save(path, "JPEG" if kind == "jpeg" else "PNG")
    told = {"size": "240 x 320 pixels", "grey": "image mode L", "jpeg": "PNG", "missing": "no such file", "link": "leads out of"}
    with pytest.raises(Corrupt, match=told[kind]):
        read_generated(image, front3d.layout.image)


def test_generated_images_need_a_raw_folder_that_holds_some(raw: Path, front3d: Store, matterport: Store, tmp_path: Path) -> None:
    for config, told in (
        (
            generating(on_disk(front3d.root)),
            rf"base_dir={str(front3d.root)!r} is a store, .*: name the raw folder that holds data/ and augment/",
        ),
        (named(generating(raw), train=""), "dataset.train.base_dir='' is empty: name the raw folder"),
        (generating(tmp_path), "no data/ in it"),
    ):
        with pytest.raises(ConfigError, match=told):
            SceneDataset(front3d, None, config, training=True)
    (tmp_path / "data").mkdir()
    with pytest.raises(
        ConfigError, match=r"dataset.augmentation.gen_aug_weight=0.3, but there is no folder \S+augment: name the raw"
    ):
        generated_root(generating(tmp_path))
    (tmp_path / "augment").mkdir()
    assert generated_root(generating(tmp_path / "data")) == tmp_path.resolve()
    with pytest.raises(ConfigError, match="0 generated images for split None under "):
        SceneDataset(front3d, None, generating(tmp_path), training=True)
    with pytest.raises(ConfigError, match="0 generated images"):
        SceneDataset(matterport, None, generating(raw), training=True)


def test_a_dataset_of_the_settings_has_its_label_map_and_generated_images(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCENEMILL_CACHE", str(tmp_path / "cache"))
    settings = [f"dataset.{split}.base_dir={raw}" for split in ("train", "val")]
    settings += [f"dataset.{split}.json_path={split}.json" for split in ("train", "val")]
    settings += ["dataset.label_map=label_map.json", f"dataset.augmentation.gen_aug_weight={WEIGHT}"]
    config = read_spec(spec_text("tiny_front3d_2d"), settings, "tiny")
    training, validation = (open_dataset(config, split, lambda *_: None, training=split == "train") for split in ("train", "val"))
    shown = [training.key(place) for place in range(len(training))]
    assert Counter(key[: key.index("/") + 5] for key in shown).most_common(1)[0][1] == 3  # a view and its two images
    assert len(validation) == 2
    with pytest.raises(ConfigError, match=r"dataset\.label_map='other\.json'"):
        open_dataset(
            read_spec(spec_text("tiny_front3d_2d"), [*settings, "dataset.label_map=other.json"], "tiny"), "val", lambda *_: None
        )
