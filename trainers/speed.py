"""How quickly a store turns into batches on this machine: each stage alone, then the whole loader, with and without workers."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from scenemill.schemas.dataset import DatasetConfig
from scenemill.schemas.places import Place
from scenemill.trainers.batches import SceneDataset, SceneLoader
from scenemill.trainers.collate import Batch, collate, expand_batch, pack
from scenemill.trainers.order import Visit
from scenemill.trainers.volumes import Canvas

STAGES: Final = ("read", "targets", "pack", "unpack", "expand")
"""What one process does to a batch: reading and decoding (checksums included), making targets, putting the batch into one buffer,
taking it out on the device, and making its volumes dense there."""


@dataclass(frozen=True)
class Feed:
    """Batches as a training loop sees them.

    Attributes:
        workers: processes that read ahead; 0 for none.
        samples_per_s: over the whole run.
        mb_per_s: megabytes of tensors handed out each second.
        wait_ms: how long each batch was waited for.
        stalled: share of the run that was spent waiting.
    """

    workers: int
    samples_per_s: float
    mb_per_s: float
    wait_ms: tuple[float, ...]
    stalled: float


@dataclass(frozen=True)
class LoaderSpeed:
    """What ``bench-loader`` measured.

    Attributes:
        store, samples: what was read; how many different samples.
        batch_size, device, step_ms: as asked.
        stored_byte: median stored size of the fields that one sample needs.
        moved_byte: median size of one sample between processes.
        dense_byte: median size of one sample's tensors.
        stage_ms: median milliseconds per sample of each stage, in one process.
        feeds: one for each number of workers.
    """

    store: str
    samples: int
    batch_size: int
    device: str
    step_ms: float
    stored_byte: int
    moved_byte: int
    dense_byte: int
    stage_ms: dict[str, float]
    feeds: tuple[Feed, ...]


def bench_loader(
    store: Place,
    split: str | None,
    config: DatasetConfig,
    *,
    batch_size: int,
    workers: Sequence[int],
    batches: int,
    device: str,
    step_ms: float,
    on_progress: Callable[[str, int, int], None],
) -> LoaderSpeed:
    """Measure a store's way to the device.

    Args:
        store: its folder. split: of its samples; None for all.
        config: what batches hold.
        batch_size: samples per batch.
        workers: numbers of processes to try.
        batches: how many to time; each feed first gives as many that are not timed.
        device: where batches go.
        step_ms: how long the loop pretends to work on each batch; 0 to take batches as they come.
        on_progress: told what is going on.

    Raises:
        ConfigError: no such split; no samples.
        Corrupt: a sample cannot be read.
    """
    dataset = SceneDataset(store, split, config, training=True)
    target = torch.device(device)
    stages, sizes = _time_stages(dataset, target, batch_size, batches, on_progress)
    feeds = []
    for done, count in enumerate(workers):
        on_progress("workers", done, len(workers))
        feeds.append(_time_feed(dataset, target, batch_size, count, batches, step_ms))
    on_progress("workers", len(workers), len(workers))
    return LoaderSpeed(str(store), len(dataset), batch_size, device, step_ms, *sizes, stages, tuple(feeds))


def _time_stages(
    dataset: SceneDataset, device: torch.device, batch_size: int, batches: int, on_progress: Callable[[str, int, int], None]
) -> tuple[dict[str, float], tuple[int, int, int]]:
    """Milliseconds per sample of each stage, and bytes per sample stored, moved and dense."""
    from scenemill.transforms.shards import use_one_thread

    use_one_thread()
    canvas, frustum = Canvas(), None if dataset.frustum is None else dataset.frustum.to(device)
    spent: dict[str, list[float]] = {stage: [] for stage in STAGES}
    sizes: list[tuple[int, int, int]] = []
    loader = SceneLoader(dataset, batch_size)
    for number in range(batches + 1):
        on_progress("stages", number, batches + 1)
        visits = _next_visits(loader)
        stored, read_ms = _timed(lambda of: sum(map(dataset.read_only, of)), visits, device)
        examples, made_ms = _timed(lambda of: [dataset[visit] for visit in of], visits, device)
        packed, pack_ms = _timed(lambda of: pack(collate(of)), examples, device)
        batch, unpack_ms = _timed(lambda of: of.unpack(device), packed, device)
        dense, expand_ms = _timed(lambda of: expand_batch(of, dataset.config, frustum, canvas), batch, device)
        if number:  # the first opens files and touches memory
            times = (read_ms, max(0.0, made_ms - read_ms), pack_ms, unpack_ms, expand_ms)
            for stage, milliseconds in zip(STAGES, times, strict=True):
                spent[stage].append(milliseconds / len(visits))
            sizes.append((stored // len(visits), packed.buffer.nbytes // len(visits), dense.size_byte // len(visits)))
        del batch, dense
    stage_ms = {stage: statistics.median(times) for stage, times in spent.items()}
    stored_byte, moved_byte, dense_byte = (int(statistics.median(column)) for column in zip(*sizes, strict=True))
    return stage_ms, (stored_byte, moved_byte, dense_byte)


def _next_visits(loader: SceneLoader) -> list[Visit]:
    visits = next(loader.order.batches(*loader.state))
    loader.state = loader.order.after(*loader.state, 1)
    return visits


def _timed(run: Callable[[Any], Any], given: Any, device: torch.device) -> tuple[Any, float]:
    """What ``run`` makes of ``given``, and the milliseconds it took."""
    start = time.perf_counter()
    result = run(given)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return result, 1000 * (time.perf_counter() - start)


def _time_feed(dataset: SceneDataset, device: torch.device, batch_size: int, workers: int, batches: int, step_ms: float) -> Feed:
    loader = SceneLoader(dataset, batch_size, workers=workers, device=device)
    stream = _endless(loader)
    for _ in range(batches):
        next(stream)
    waits, samples, byte = [], 0, 0
    start = time.perf_counter()
    for _ in range(batches):
        asked = time.perf_counter()
        batch = next(stream)
        waits.append(time.perf_counter() - asked)
        samples, byte = samples + len(batch), byte + batch.size_byte
        del batch
        time.sleep(step_ms / 1000)
    elapsed = time.perf_counter() - start
    return Feed(workers, samples / elapsed, byte / 1e6 / elapsed, tuple(1000 * wait for wait in waits), sum(waits) / elapsed)


def _endless(loader: SceneLoader) -> Iterator[Batch]:
    while True:
        yield from loader


def to_json(speed: LoaderSpeed) -> dict[str, Any]:
    """The figures for machines, waits as median, 99th percentile and longest."""
    feeds = [vars(feed) | {"wait_ms": wait_summary(feed.wait_ms)} for feed in speed.feeds]
    return vars(speed) | {"feeds": feeds}


def wait_summary(waits: Sequence[float]) -> dict[str, float]:
    """Median, 99th percentile and longest wait.

    >>> wait_summary([1.0, 2.0, 9.0])
    {'median': 2.0, 'p99': 9.0, 'longest': 9.0}
    """
    ordered = sorted(waits)
    return {"median": statistics.median(ordered), "p99": ordered[int(0.99 * len(ordered))], "longest": ordered[-1]}
