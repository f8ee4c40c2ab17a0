"""Store to batches, against the naive way: rows 2 to 4 and 10 of the bars. Run: python benchmarks/loader.py [RAW_FOLDER]

RAW_FOLDER is a 3D-Front folder; without one, the real views under SCENEMILL_REAL_DATA, or made-up rooms. One core: CPU time of one
process, unless the row says wall. Before anything is timed, every tensor is compared with the reference's, to the bit.
"""

import resource
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from ingest import copies, find_input, naive_volumes
from pairs import measure, print_row
from reference import ReferenceDataset, reference_2d_sample, stage2_sample
from torch.utils.data import DataLoader, Dataset

from scenemill import open_store
from scenemill.pipelines.folder import read_folder
from scenemill.pipelines.ingest import ingest
from scenemill.schemas.config import IngestConfig
from scenemill.schemas.dataset import AugmentationConfig, DatasetConfig
from scenemill.trainers.batches import SceneDataset, SceneLoader
from scenemill.trainers.order import Visit
from scenemill.transforms.shards import use_one_thread
from scenemill.transforms.sources import raw_files

VOLUMES = ("geometry", "semantic_3d", "instance_3d", "weighting")
AS_STORED = AugmentationConfig(train_min_size=(240,), train_max_size=960)
STAGE_2 = DatasetConfig(enable_3d=True, enable_mp_occ=False, augmentation=AS_STORED)
IMAGES = DatasetConfig(enable_3d=False, enable_mp_occ=False, augmentation=AS_STORED)
PLANES = DatasetConfig(enable_3d=False, enable_mp_occ=True, augmentation=AS_STORED)
SHARED = ("geometry", *(f"{kind}_{level}" for kind in ("occupancy", "weighting3d", "gt_masks_3d") for level in (256, 128, 64)))


def loader(store: Path, config: DatasetConfig, **settings: Any) -> SceneLoader:
    return SceneLoader(SceneDataset(store, None, config, training=True), **settings)


def exhaust(batches: SceneLoader) -> None:
    """One epoch, each batch let go before the next."""
    for _ in batches:
        pass


def check_equal(store: Path, root: Path, views: dict[str, dict[str, str]]) -> None:
    for batch in loader(store, STAGE_2, shuffle=False):
        expected = stage2_sample(root, views[batch.keys[0]])
        for name in (*SHARED, "frustum_mask"):
            ours = batch[name] if name.startswith("gt_") else batch[name][0]
            if ours.dtype != expected[name].dtype or not torch.equal(ours, expected[name]):
                raise SystemExit(f"{batch.keys[0]}: {name} differs from the reference")
        for name in ("image", "gt_masks", "gt_classes"):
            ours = batch[name][0] if name == "image" else batch[name]
            if not torch.equal(ours, expected[name]):
                raise SystemExit(f"{batch.keys[0]}: {name} differs from the reference")
    print(f"{len(views)} views: every target equals the reference's, to the bit\n", flush=True)


def bench_volumes(store: Path, root: Path, views: dict[str, dict[str, str]]) -> None:
    opened = open_store(store)

    def ours() -> None:
        for key in views:
            opened.read(key, VOLUMES)

    def naive() -> None:
        for paths in views.values():
            naive_volumes(root, paths)

    def fill() -> None:
        for _ in views:
            for value, dtype in ((12, "f4"), (0, "u1"), (0, "u2"), (1, "u1")):
                np.full((opened.layout.grid,) * 3, value, dtype)

    print_row(2, "store to canonical volumes vs np.load + cast", measure(ours, naive, len(views), 3), "<= 0.040")
    print_row(2, "the same vs allocating and filling them", measure(ours, fill, len(views), 5), "<= 2.5")


def bench_stage2(store: Path, root: Path, views: dict[str, dict[str, str]]) -> None:
    batches = loader(store, STAGE_2)

    def naive() -> None:
        for paths in views.values():
            stage2_sample(root, paths)

    print_row(
        3,
        "the full stage-2 sample vs the reference's operations",
        measure(lambda: exhaust(batches), naive, len(views), 3),
        "<= 0.040",
    )


def bench_images(store: Path, root: Path, views: dict[str, dict[str, str]]) -> None:
    images = loader(store, IMAGES)

    def naive() -> None:
        for paths in views.values():
            reference_2d_sample(root, paths)

    print_row(
        4,
        "a 2D sample vs the raw files",
        measure(lambda: exhaust(images), naive, len(views), 5),
        "<= 0.20",
    )


def bench_feed(store: Path, root: Path, views: dict[str, dict[str, str]], wide: Path) -> None:
    """Two workers for the reference, two threads or two workers for ours, wall: batches of one as they reach the training loop."""
    dataset = ReferenceDataset(root, list(views.values()))
    reference: DataLoader[Any] = DataLoader(dataset, batch_size=None, num_workers=2, persistent_workers=True)
    feeds = {"two threads": loader(wide, STAGE_2, threads=2), "two workers": loader(wide, STAGE_2, workers=2)}
    list_through(reference)
    naive_s = sorted(seconds(partial(list_through, reference)) / len(views) for _ in range(3))[1]
    for what, feed in feeds.items():
        exhaust(feed)
        ours_s = sorted(seconds(partial(exhaust, feed)) / len(feed.dataset) for _ in range(5))[2]
        figures = f"{1000 * ours_s:.1f} | {1000 * naive_s:.1f} | {ours_s / naive_s:.4f}"
        print(f"| 10 | training feed by {what}, vs two workers of the reference (wall) | {figures} | <= 0.020 |", flush=True)


class Decoding(Dataset[int]):
    """The decoding of a dataset's samples, and nothing else: checksums and all, for bytes read."""

    def __init__(self, dataset: SceneDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, sample: int) -> int:
        return self.dataset.read_only(Visit(sample, 0, sample, 0))


def bench_scaling(wide: Path) -> None:
    """One worker and two, wall: decoding alone, and with the hand-over of blocks to the training process."""
    decoding = Decoding(SceneDataset(wide, None, STAGE_2, training=True))
    bare: list[DataLoader[Any]] = [
        DataLoader(decoding, batch_size=None, num_workers=count, persistent_workers=True, worker_init_fn=lambda _: use_one_thread())
        for count in (1, 2)
    ]
    blocks = [loader(wide, STAGE_2, workers=count, dense=False) for count in (1, 2)]
    for what, (one, two) in (("decode", bare), ("decode and hand over", blocks)):
        list_through(one)
        list_through(two)
        ratios = sorted(seconds(partial(list_through, one)) / seconds(partial(list_through, two)) for _ in range(5))
        print(f"two workers {what} {ratios[2]:.2f} times as many samples a second as one", flush=True)


def list_through(batches: Iterable[object]) -> None:
    for _ in batches:
        pass


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def bench_memory(wide: Path) -> None:
    """Largest memory of this process after one and after four epochs of batches."""
    batches = loader(wide, STAGE_2)
    peaks = []
    for epochs in (1, 3):
        for _ in range(epochs):
            exhaust(batches)
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    print(f"largest memory of this process: {peaks[0]:.0f} MiB after 1 epoch, {peaks[1]:.0f} MiB after 4")


def main() -> None:
    torch.set_num_threads(1)
    use_one_thread()
    root = find_input()
    with TemporaryDirectory() as scratch:
        store, wide = Path(scratch) / "store", Path(scratch) / "wide"
        ingest(IngestConfig("front3d", root, store, limit=12, samples_per_part=8))
        many = copies(root, Path(scratch) / "raw", 4)
        ingest(IngestConfig("front3d", many, wide, samples_per_part=8, workers=2))
        folder = read_folder(IngestConfig("front3d", root, limit=12), {}, None, lambda *_: None)
        views = {listed.key: raw_files(folder.source, listed) for listed in folder.samples}
        check_equal(store, root, views)
        print("| row | what | ours ms | compared ms | ratio | bar |\n|---|---|---|---|---|---|")
        bench_volumes(store, root, views)
        bench_stage2(store, root, views)
        bench_images(store, root, views)
        bench_feed(store, root, views, wide)
        bench_scaling(wide)
        bench_memory(wide)


if __name__ == "__main__":
    main()
