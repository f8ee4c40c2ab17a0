"""Batches from stores: a map-style dataset, what puts its examples together, and the loader that keeps a device fed.

    dataset = SceneDataset("store", "train", DatasetConfig(enable_3d=True))
    loader = SceneLoader(dataset, batch_size=2, workers=4, device="cuda")
    for batch in loader:                     # one epoch, or the rest of it
        loss = model(batch)
        save(order=loader.state)             # two integers: SceneLoader(..., start=state) goes on from there

Volumes travel as blocks (``trainers/volumes.py``) and become dense on the device. The order of samples is that of
``trainers/order.py``; PyTorch's ``DataLoader`` runs the workers.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from scenemill.schemas.dataset import DatasetConfig
from scenemill.schemas.errors import ConfigError, Corrupt
from scenemill.schemas.fields import VIEWS
from scenemill.schemas.places import Place, Remote
from scenemill.trainers.collate import Batch, Packed, collate, expand_batch, occupancy_below, pack
from scenemill.trainers.examples import Example, ExampleReader, Skipped, needed_fields
from scenemill.trainers.order import Order, Visit
from scenemill.trainers.planes import PLANES
from scenemill.trainers.sidefiles import Generated, frustum_of, generated_root, list_generated
from scenemill.trainers.volumes import Canvas, interpolated

if TYPE_CHECKING:
    from scenemill.transforms.store import Store

OnError = Literal["raise", "skip", "replace"]
ON_ERROR: Final = ("raise", "skip", "replace")


@dataclass(frozen=True)
class _Member:
    """The samples of one store in a dataset: those that are stored, then generated images, each with the row of a stored one.

    Keys and paths are Arrow arrays: no Python string per sample, which forked workers would copy by counting references.
    """

    store: "Store"
    keys: Any
    rows: NDArray[np.int64]
    has_room_mask: NDArray[np.bool_]
    reader: ExampleReader
    raw: Path | None = None  # the folder that the paths of generated images are in
    paths: Any = ()
    shows: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))  # the places of the stored ones they show

    def key(self, place: int) -> str:
        """``scene/image`` of a sample."""
        return str(self.keys[place].as_py())

    def read(self, place: int, visit: Visit) -> Example:
        """Make the example of a sample."""
        return self.reader.read(visit=visit, **self._located(place))

    def read_only(self, place: int) -> int:
        """Read a sample and make nothing of it; see ``ExampleReader.read_only``."""
        return self.reader.read_only(**self._located(place))

    def _located(self, place: int) -> dict[str, Any]:
        """What a sample is read from."""
        row = {"row": int(self.rows[place]), "has_room_mask": bool(self.has_room_mask[place])}
        number = place - (len(self.rows) - len(self.shows))
        if self.raw is None or number < 0:
            return {"key": self.key(place), **row}
        sample = self.key(int(self.shows[number]))
        return {"key": sample, **row, "image": Generated(self.key(place), sample, self.raw, str(self.paths[number].as_py()))}


class SceneDataset(Dataset[Example | Skipped]):
    """The samples of one or more stores, as examples a model can be trained on; ``SceneLoader`` stacks them to batches.

    Args:
        stores: open stores, their folders, or their URIs in object stores.
        split: name of a split list; None for all samples.
        config: what an example holds; None for the defaults. Without ``enable_3d`` and ``enable_mp_occ`` no volume is ever read.
        training: True to augment, and to add the generated images that ``augmentation.gen_aug_weight`` asks for, each a sample with
            the labels of a stored one; False for the fixed preparation of validation and test.
        seed: of augmentation.
        planes: of multi-plane occupancy.
        on_error: what happens when a stored sample cannot be read: "raise"; "skip", it is left out of its batch and counted; or
            "replace", the next sample that can be read takes its place and it is counted.

    Raises:
        ConfigError: no store, no samples in the split, stores whose images or grids differ, a value out of its range, or a file that
            ``config`` names and that is not there or no such file.
        Corrupt: (from indexing) a sample cannot be read; the message names part, file and sample, and how to repair.
    """

    def __init__(
        self,
        stores: "Store | str | Place | Sequence[Store | str | Place]",
        split: str | None = None,
        config: DatasetConfig | None = None,
        *,
        training: bool = False,
        seed: int = 0,
        planes: int = PLANES,
        on_error: OnError = "raise",
    ) -> None:
        if on_error not in ON_ERROR:
            raise ConfigError(f"on_error={on_error!r}: allowed is {', '.join(map(repr, ON_ERROR))}")
        if not 0 <= seed < 2**64:
            raise ConfigError(f"seed {seed}; give 0 to 2**64 - 1")
        opened = [
            _opened(store) for store in (stores if isinstance(stores, Sequence) and not isinstance(stores, str) else [stores])
        ]
        self.config = config = config or DatasetConfig()
        _check_alike(opened, config)
        self.on_error = on_error
        frustums = [frustum_of(config, store) if config.enable_3d else None for store in opened]
        alone = len(opened) == 1  # a frustum that all samples share is then the dataset's, and no sample has it
        raw = generated_root(config) if training and config.augmentation.gen_aug_weight else None
        with_rooms = any(store.layout.source == "matterport" for store in opened)
        reader = partial(ExampleReader, config=config, training=training, seed=seed, planes=planes, with_rooms=with_rooms)
        self._members = [
            _member(store, split, reader(store, frustum=None if alone else frustum), raw)
            for store, frustum in zip(opened, frustums, strict=True)
        ]
        self._ends = np.cumsum([len(member.rows) for member in self._members])
        if not self._ends[-1]:
            names = ", ".join(sorted({name for store in opened for name in _splits(store)}))
            raise ConfigError(f"no samples in split {split!r} of {', '.join(str(store.root) for store in opened)}; it has {names}")
        if raw is not None and not any(len(member.shows) for member in self._members):
            raise ConfigError(f"0 generated images for split {split!r} under {raw}; expected augment/<scene>/rgb_<image>*.png")
        self.frustum = torch.from_numpy(frustums[0]) if alone and frustums[0] is not None else None

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def parts(self) -> NDArray[np.int64]:
        """(N,) the part that holds each sample, numbered over all stores."""
        numbers, first = [], 0
        for member in self._members:
            numbers.append(first + member.rows // member.store.layout.samples_per_part)
            first = int(numbers[-1].max(initial=first - 1)) + 1
        return np.concatenate(numbers)

    @property
    def sources(self) -> NDArray[np.int64]:
        """(N,) the store of each sample, from 0 in the order given."""
        return np.repeat(np.arange(len(self._members)), np.diff(self._ends, prepend=0))

    @property
    def is_remote(self) -> bool:
        """Whether a store is in an object store: worker processes that read it are not to be forked from one that has."""
        return any(isinstance(member.store.root, Remote) for member in self._members)

    def key(self, sample: int) -> str:
        """``scene/image`` of a sample."""
        member, place = self._place(sample)
        return member.key(place)

    def _place(self, sample: int) -> tuple[_Member, int]:
        number = int(np.searchsorted(self._ends, sample, side="right"))
        return self._members[number], sample - (int(self._ends[number - 1]) if number else 0)

    def __getitem__(self, place: int | Visit) -> Example | Skipped:
        visit = place if isinstance(place, Visit) else Visit(range(len(self))[place], 0, range(len(self))[place], 0)
        try:
            return self._read(visit)
        except Corrupt as error:
            if self.on_error == "raise":
                raise
            return self._replacement(visit, Skipped(self.key(visit.sample), str(error)))

    def _read(self, visit: Visit) -> Example:
        member, place = self._place(visit.sample)
        return member.read(place, visit)

    def read_only(self, visit: Visit) -> int:
        """Read and decode what a visit needs and make nothing of it: for measuring. Returns the bytes of its stored chunks."""
        member, place = self._place(visit.sample)
        return member.read_only(place)

    def _replacement(self, visit: Visit, skipped: Skipped) -> Example | Skipped:
        if self.on_error == "skip":
            return skipped
        for further in range(1, len(self)):
            try:
                example = self._read(visit._replace(sample=(visit.sample + further) % len(self)))
            except Corrupt:
                continue
            return replace(example, replaces=skipped)
        raise Corrupt(f"none of {len(self)} samples can be read; the first says: {skipped.reason}")


def _opened(store: "Store | str | Place") -> "Store":
    if isinstance(store, str | Path | Remote):
        from scenemill.transforms.store import open_store

        return open_store(store)
    return store


def _check_alike(stores: "Sequence[Store]", config: DatasetConfig) -> None:
    if not stores:
        raise ConfigError("no stores; give at least one")
    for store in stores:
        if store.layout.source == VIEWS:
            raise ConfigError(f"store {store.root} holds views of objects, not of rooms: scenemill fit, or its read(), takes them")
        _check_fields(store, config)
    if len({(store.layout.grid, store.layout.image) for store in stores}) > 1:
        told = "; ".join(f"{store.root}: grid {store.layout.grid}, image {store.layout.image}" for store in stores)
        raise ConfigError(f"stores of one dataset have one grid and one image size; these have {told}")


def _check_fields(store: "Store", config: DatasetConfig) -> None:
    """Refuse a store of a source of one's own whose samples lack what an example is made of."""
    layout = store.layout
    needed = needed_fields(config, own_frustum=not layout.frustum)
    lacking = needed - {field.name for field in layout.fields}
    if lacking:
        raise ConfigError(
            f"store {store.root}, of the source {layout.source!r}, has no {', '.join(sorted(lacking))}; images alone need "
            "enable_3d=False and enable_mp_occ=False (bench-loader: --2d --no-planes), and its read() gives what it has"
        )
    optional = {field.name for field in layout.fields if not field.required} & needed
    without = [names for names in store.samples["fields"].to_pylist() if not optional <= {*names}] if optional else []
    if without:
        raise ConfigError(
            f"store {store.root}: {len(without)} samples lack one of {', '.join(sorted(optional))}; make these required in the form, "
            "and samples without them are rejected"
        )


def _splits(store: "Store") -> set[str]:
    return {name for names in store.samples["splits"].to_pylist() for name in names}


def _member(store: "Store", split: str | None, reader: ExampleReader, raw: Path | None) -> _Member:
    samples = store.samples.select(["key", "row", "fields", "splits"])
    if split is not None:
        samples = samples.filter([split in names for names in samples["splits"].to_pylist()])
    has_room_mask = np.array(["room_mask" in names for names in samples["fields"].to_pylist()], bool)
    member = _Member(store, samples["key"].combine_chunks(), samples["row"].to_numpy().astype(np.int64), has_room_mask, reader)
    return member if raw is None else _with_generated(member, raw)


def _with_generated(member: _Member, raw: Path) -> _Member:
    """The samples of a store, and behind them the generated images of those samples."""
    import pyarrow as pa

    places = {key: place for place, key in enumerate(member.keys.to_pylist())}
    images = [image for image in list_generated(raw, member.store.keys) if image.sample in places]
    shows = np.array([places[image.sample] for image in images], np.int64)
    return replace(
        member,
        keys=pa.concat_arrays([member.keys, pa.array([image.key for image in images], member.keys.type)]),
        rows=np.concatenate([member.rows, member.rows[shows]]),
        has_room_mask=np.concatenate([member.has_room_mask, member.has_room_mask[shows]]),
        raw=raw,
        paths=pa.array([image.path for image in images], pa.string()),
        shows=shows,
    )


@dataclass
class _Sampler:
    """The places of the next batches, from the state the loader has when it is asked."""

    order: Order
    state: tuple[int, int] = (0, 0)

    def __iter__(self) -> Iterator[list[Visit]]:
        return self.order.batches(*self.state)

    def __len__(self) -> int:
        return self.order.steps(*self.state)


@dataclass
class SceneLoader:
    """Batches of a dataset on a device, in an order that a seed decides and two integers resume.

    Iterating gives each ``trainers.collate.Batch``, which says shapes, dtypes and units, from ``state`` to the end of its epoch, and
    moves ``state`` on with each that is handed out. One on the CPU is drawn in memory that is used again once nobody holds it.

    Attributes:
        dataset: what to read.
        batch_size: samples per batch on each rank.
        workers: processes that read ahead; 0 to read in this one.
        threads: threads of this process that read ahead, in place of workers: nothing is handed over, but Python runs one at a time.
        device: where batches go. On a GPU, copies and expansion overlap with the work on the batch before.
        shuffle: True for training; False for one pass in the order of the keys.
        seed, rank, world_size, window, weights: as in ``Order``; weights are per store.
        state: (epoch, position) of the next batch.
        dense: False to leave volumes as blocks, for a model or a step that expands them itself.
        prefetch: batches each worker reads ahead.
        skipped: the samples that could not be read so far, in the order they were met.

    Raises:
        ConfigError: a value out of its range, or two that do not fit.
        Corrupt: (from iterating) as ``SceneDataset``.
    """

    dataset: SceneDataset
    batch_size: int = 1
    workers: int = 0
    threads: int = 0
    device: str | torch.device = "cpu"
    shuffle: bool = True
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    window: int = 32
    weights: tuple[float, ...] | None = None
    state: tuple[int, int] = (0, 0)
    dense: bool = True
    prefetch: int = 2
    skipped: list[Skipped] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.device = torch.device(self.device)
        self.order = Order(
            self.dataset.parts,
            self.batch_size,
            seed=self.seed,
            rank=self.rank,
            world_size=self.world_size,
            window=self.window,
            shuffle=self.shuffle,
            sources=self.dataset.sources if self.weights else None,
            weights=self.weights,
        )
        if self.shuffle and self.world_size > 1 and self.dataset.on_error == "skip":
            raise ConfigError(
                'on_error="skip" would leave some ranks with fewer batches: use "replace" or "raise" when training on several'
            )
        if self.threads and (self.workers or self.device.type == "cuda"):
            raise ConfigError(f"threads={self.threads}: allowed without workers and on the CPU; a GPU is fed by workers")
        self._sampler = _Sampler(self.order, self.state)
        self._canvas = Canvas()
        self._frustum = self.dataset.frustum.to(self.device) if self.dataset.frustum is not None else None
        self._batches = self._read_ahead() if self.workers or self.device.type == "cuda" else None

    def _read_ahead(self) -> "DataLoader[Any]":
        return DataLoader(
            self.dataset,
            batch_sampler=self._sampler,
            num_workers=self.workers,
            collate_fn=partial(_collate_packed, self.dataset.config if torch.device(self.device).type == "cpu" else None),
            pin_memory=torch.device(self.device).type == "cuda",
            persistent_workers=self.workers > 0,
            prefetch_factor=self.prefetch if self.workers else None,
            worker_init_fn=_start_worker,
            multiprocessing_context="spawn" if self.workers and self.dataset.is_remote else None,  # see object_clients.client
        )

    def _read(self) -> Iterable[Batch | Packed]:
        """The batches from the state on, as they are read."""
        if self._batches is not None:
            return self._batches
        if self.threads:
            return self._read_by_threads()
        return (collate([self.dataset[visit] for visit in visits]) for visits in self._sampler)

    def _read_by_threads(self) -> Iterator[Batch]:
        ready: deque[Future[Batch]] = deque()
        with ThreadPoolExecutor(self.threads, "batches") as threads:
            try:
                for visits in self._sampler:
                    ready.append(threads.submit(self._make, visits))
                    if len(ready) > self.threads * self.prefetch:
                        yield ready.popleft().result()
                while ready:
                    yield ready.popleft().result()
            finally:
                threads.shutdown(cancel_futures=True)

    def _make(self, visits: list[Visit]) -> Batch:
        return _interpolated(collate([self.dataset[visit] for visit in visits]), self.dataset.config)

    def __len__(self) -> int:
        return self.order.steps(*self.state)

    def __iter__(self) -> Iterator[Batch]:
        self._sampler.state = start = self.state
        batches = prefetched(self._read(), torch.device(self.device), self._finish)
        for step in range(1, len(self) + 1):
            batch = next(batches)
            self.state = self.order.after(*start, step)
            self.skipped.extend(batch.skipped)
            if batch.keys:
                yield batch
            del batch  # so that the next may be drawn in its memory

    def _finish(self, batch: Batch) -> Batch:
        if not self.dense:
            return batch
        with _one_thread(self.workers + self.threads > 0):
            return expand_batch(batch, self.dataset.config, self._frustum, self._canvas)


@contextmanager
def _one_thread(alone: bool) -> Iterator[None]:
    """Keep torch to one thread meanwhile: its others wait by spinning, on the cores that those who read ahead need."""
    before = torch.get_num_threads()
    if alone:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _start_worker(_: int) -> None:
    """One core per worker: the codec's own threads would fight with the other workers."""
    from scenemill.transforms.shards import use_one_thread

    use_one_thread()


def _collate_packed(config: DatasetConfig | None, examples: Sequence[Example | Skipped]) -> Packed:
    """A batch in one buffer; with a configuration, interpolated already, which spares the CPU that the batch goes to."""
    batch = collate(examples)
    return pack(batch if config is None else _interpolated(batch, config))


def _interpolated(batch: Batch, config: DatasetConfig) -> Batch:
    return batch if batch.volumes is None else replace(batch, volumes=interpolated(batch.volumes, occupancy_below(config)))


def _on(batch: Batch | Packed, device: torch.device) -> Batch:
    return batch.unpack(device) if isinstance(batch, Packed) else batch


def prefetched(batches: Iterable[Batch | Packed], device: torch.device, finish: Callable[[Batch], Batch]) -> Iterator[Batch]:
    """Batches on a device and finished there; on a GPU by a stream of their own, one batch ahead of the caller's work."""
    if device.type != "cuda":
        yield from (finish(_on(batch, device)) for batch in batches)
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    waiting: tuple[Batch, torch.cuda.Event] | None = None
    for batch in chain(batches, [None]):
        following = None
        if batch is not None:
            with torch.cuda.stream(stream):
                moved = finish(_on(batch, device))
                following = (moved, stream.record_event())
        if waiting is not None:
            ready, done = waiting
            current = torch.cuda.current_stream(device)
            current.wait_event(done)
            for tensor in ready.tensors.values():
                tensor.record_stream(current)
            yield ready
        waiting = following
