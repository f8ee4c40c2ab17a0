"""The store against what users could pick instead: bytes and time of one sample's four volumes, in one run on the same samples.

Run in an environment of its own, because two of the peers force other versions than the project's:

    python3 -m venv build/peers
    build/peers/bin/pip install -e . webdataset mosaicml-streaming litdata torch torchvision
    scenemill ingest front3d --input RAW --output build/peers-store --limit 6 --samples-per-part 6
    build/peers/bin/python benchmarks/peers.py build/peers-store [ROUNDS]

Every form holds the same arrays (geometry float32, semantic uint8, instance uint16, weighting uint8; 256^3, image-aligned), is read back
equal to the bit before anything is timed, and gives torch tensors, of which one byte in 4 KiB is then read: a form that maps its file
into memory has to show it. One thread, page cache warm, every form in turn, ROUNDS rounds after an uncounted one; medians, and the
median of the ratios round by round. KiB are all files of the form, with those it leaves behind when read. The
store's part is full, as all but the last of a large store are: a shard's index has room for all its samples. A peer that is not
installed is skipped. Exit status 1: some peer takes fewer bytes and less CPU time than the store.

The forms, as somebody who knows the library would write them:

* WebDataset: one tar; per sample an npz as NumPy compresses it, or one Blosc blob per volume.
* MDS: ndarray columns in shards of one sample, whole shards compressed with zstd and inflated to disk when first read, so that it has two
  times; or one Blosc blob per volume in bytes columns.
* litdata: NumPy arrays, a chunk per sample: as they are; zstd in the chunk, inflated at each read; zstd around the chunk, inflated to
  disk when first read.
* Parquet: one Blosc blob per volume, a row group per sample, mapped into memory.

A Blosc blob is zstd with byte shuffle at level 6, where bytes and time bend; Parquet shows the smallest and the quickest codec as well.
"""

import contextlib
import gc
import importlib
import io
import os
import shutil
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numcodecs
import numcodecs.blosc
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from scenemill import open_store

VOLUMES: Final = ("geometry", "semantic_3d", "instance_3d", "weighting")
DTYPES: Final = {"geometry": "float32", "semantic_3d": "uint8", "instance_3d": "uint16", "weighting": "uint8"}
SHAPE: Final = (256, 256, 256)
PAGE_BYTE: Final = 4096

Volumes = dict[str, NDArray[Any]]
Tensors = dict[str, torch.Tensor]
Samples = Callable[[], Iterator[Volumes]]
Epoch = Callable[[], Iterable[Tensors]]


@dataclass(frozen=True)
class Form:
    """One way to keep the samples.

    Attributes:
        name: as in the table.
        library: the module it needs.
        write: puts the samples into a folder.
        open: gives a function that reads all of them once.
        first: True to time the first reading, of a fresh copy in every round.
    """

    name: str
    library: str
    write: Callable[[Path, Samples], None]
    open: Callable[[Path], Epoch]
    first: bool = False


@dataclass
class Measured:
    """Rounds of one form, in milliseconds per sample."""

    size_kib: float
    write_ms: float
    cpu_ms: list[float] = field(default_factory=list)
    wall_ms: list[float] = field(default_factory=list)


def load(name: str) -> Any:
    """A peer's module: it has no types, and is no dependency."""
    return importlib.import_module(name)


def why_not(name: str) -> str:
    """Why a peer's module cannot be imported, or "": it may be absent, or not fit the torch beside it."""
    try:
        load(name)
    except (ImportError, OSError, RuntimeError) as error:
        return str(error)
    return ""


def read_volumes(store: Any, key: str) -> Volumes:
    sample = store.read(key, VOLUMES)
    return {name: np.asarray(sample[name]) for name in VOLUMES}


def to_tensors(volumes: Volumes) -> Tensors:
    return {name: torch.from_numpy(volume) for name, volume in volumes.items()}


class Blobs:
    """Volumes as one Blosc blob each."""

    def __init__(self, codec: str, level: int) -> None:
        self.codec = numcodecs.Blosc(codec, level, numcodecs.Blosc.SHUFFLE)

    def encode(self, volumes: Volumes) -> dict[str, bytes]:
        return {name: bytes(self.codec.encode(np.ascontiguousarray(volume))) for name, volume in volumes.items()}

    def decode(self, blobs: dict[str, Any]) -> Tensors:
        volumes = {name: np.empty(SHAPE, DTYPES[name]) for name in VOLUMES}
        for name, volume in volumes.items():
            self.codec.decode(blobs[name], volume)
        return to_tensors(volumes)


BLOBS: Final = Blobs("zstd", 6)


def write_npz_tar(folder: Path, samples: Samples) -> None:
    with load("webdataset").TarWriter(str(folder / "samples.tar")) as tar:
        for row, volumes in enumerate(samples()):
            file = io.BytesIO()
            np.savez_compressed(file, allow_pickle=False, **volumes)
            tar.write({"__key__": f"{row:04}", "npz": file.getvalue()})


def open_npz_tar(folder: Path) -> Epoch:
    dataset = load("webdataset").WebDataset(str(folder / "samples.tar"), shardshuffle=False).decode()
    return lambda: (to_tensors({name: sample["npz"][name] for name in VOLUMES}) for sample in dataset)


def write_blob_tar(folder: Path, samples: Samples) -> None:
    with load("webdataset").TarWriter(str(folder / "samples.tar")) as tar:
        for row, volumes in enumerate(samples()):
            tar.write({"__key__": f"{row:04}"} | {f"{name}.blosc": blob for name, blob in BLOBS.encode(volumes).items()})


def open_blob_tar(folder: Path) -> Epoch:
    dataset = load("webdataset").WebDataset(str(folder / "samples.tar"), shardshuffle=False)
    return lambda: (BLOBS.decode({name: sample[f"{name}.blosc"] for name in VOLUMES}) for sample in dataset)


def write_mds(folder: Path, samples: Samples) -> None:
    columns = {name: f"ndarray:{DTYPES[name]}:{','.join(map(str, SHAPE))}" for name in VOLUMES}
    with load("streaming").MDSWriter(out=str(folder), columns=columns, compression="zstd", size_limit=1 << 20) as writer:
        for volumes in samples():
            writer.write(volumes)


def open_mds(folder: Path) -> Epoch:
    dataset = load("streaming").StreamingDataset(local=str(folder), batch_size=1)
    return lambda: (to_tensors(dataset[row]) for row in range(len(dataset)))


def write_mds_blobs(folder: Path, samples: Samples) -> None:
    with load("streaming").MDSWriter(out=str(folder), columns=dict.fromkeys(VOLUMES, "bytes")) as writer:
        for volumes in samples():
            writer.write(BLOBS.encode(volumes))


def open_mds_blobs(folder: Path) -> Epoch:
    dataset = load("streaming").StreamingDataset(local=str(folder), batch_size=1)
    return lambda: (BLOBS.decode(dataset[row]) for row in range(len(dataset)))


def read_for_litdata(store: str, row: int) -> Volumes:
    opened = open_store(store)
    return read_volumes(opened, opened.keys[row])


def write_litdata(store: str, rows: int, folder: Path, samples: Samples, **options: Any) -> None:
    """Its own process reads the samples from the store, because arrays given to it would be pickled."""
    with contextlib.redirect_stdout(sys.stderr):
        load("litdata").optimize(
            fn=partial(read_for_litdata, store),
            inputs=list(range(rows)),
            output_dir=str(folder),
            chunk_bytes=136 << 20,
            num_workers=1,
            verbose=False,
            **options,
        )


def open_litdata(folder: Path) -> Epoch:
    dataset = load("litdata").StreamingDataset(str(folder), shuffle=False)
    return lambda: map(to_tensors, dataset)


def write_parquet(blobs: Blobs, folder: Path, samples: Samples) -> None:
    schema = pa.schema([(name, pa.binary()) for name in VOLUMES])
    with pq.ParquetWriter(
        folder / "samples.parquet", schema, compression="none", use_dictionary=False, write_statistics=False
    ) as writer:
        for volumes in samples():
            writer.write_table(pa.Table.from_pylist([blobs.encode(volumes)], schema))


def open_parquet(blobs: Blobs, folder: Path) -> Epoch:
    file = pq.ParquetFile(folder / "samples.parquet", memory_map=True)

    def row(number: int) -> Tensors:
        table = file.read_row_group(number, use_threads=False)
        return blobs.decode({name: table[name][0].as_buffer() for name in VOLUMES})

    return lambda: map(row, range(file.num_row_groups))


def parquet(codec: str, level: int, why: str) -> Form:
    blobs = Blobs(codec, level)
    return Form(f"Parquet, Blosc {codec} {level}{why}", "pyarrow", partial(write_parquet, blobs), partial(open_parquet, blobs))


def forms_of(store: Path, rows: int) -> list[Form]:
    litdata = partial(write_litdata, str(store), rows)
    outside = partial(litdata, compression="zstd", compression_level="chunk")
    return [
        Form("WebDataset, npz", "webdataset", write_npz_tar, open_npz_tar),
        Form("WebDataset, Blosc zstd 6", "webdataset", write_blob_tar, open_blob_tar),
        Form("MDS, zstd shards, first reading", "streaming", write_mds, open_mds, first=True),
        Form("MDS, zstd shards, then", "streaming", write_mds, open_mds),
        Form("MDS, Blosc zstd 6", "streaming", write_mds_blobs, open_mds_blobs),
        Form("litdata, uncompressed", "litdata", litdata, open_litdata),
        Form("litdata, zstd in chunks", "litdata", partial(litdata, compression="zstd"), open_litdata),
        Form("litdata, zstd chunks, first reading", "litdata", outside, open_litdata, first=True),
        Form("litdata, zstd chunks, then", "litdata", outside, open_litdata),
        parquet("zstd", 6, ""),
        parquet("zstd", 9, " (smallest)"),
        parquet("blosclz", 5, " (quickest)"),
    ]


def size_kib(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1024


def touch(tensors: Tensors) -> int:
    """Read one byte of every page: what has not been loaded yet is loaded now."""
    return sum(int(tensor.reshape(-1).view(torch.uint8)[::PAGE_BYTE].sum()) for tensor in tensors.values())


def read_all(epoch: Epoch) -> int:
    count = 0
    for tensors in epoch():
        touch(tensors)
        count += 1
    return count


def check_equal(name: str, epoch: Epoch, samples: Samples) -> None:
    for row, (tensors, volumes) in enumerate(zip(epoch(), samples(), strict=True)):
        for volume in VOLUMES:
            if not np.array_equal(tensors[volume].numpy(), volumes[volume]):
                raise SystemExit(f"{name}: {volume} of sample {row} differs from the store's")


class Subject:
    """One form in one folder, ready to be read round after round."""

    def __init__(self, form: Form, folder: Path, samples: Samples, count: int) -> None:
        self.form, self.folder, self.count = form, folder, count
        self.written = folder / "written"
        self.written.mkdir(parents=True)
        start = time.perf_counter()
        form.write(self.written, samples)
        write_ms = (time.perf_counter() - start) * 1000 / count
        size = size_kib(self.written)
        self.epoch = form.open(self.fresh_copy() if form.first else self.written)
        check_equal(form.name, self.epoch, samples)
        self.measured = Measured((size if form.first else size_kib(self.written)) / count, write_ms)

    def fresh_copy(self) -> Path:
        copy = self.folder / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self.written, copy)
        return copy

    def round(self) -> None:
        if self.form.first:
            self.epoch = self.form.open(self.fresh_copy())
        time_epoch(self.epoch, self.count, self.measured)


def time_epoch(epoch: Epoch, count: int, measured: Measured) -> None:
    gc.collect()
    cpu, wall = time.process_time(), time.perf_counter()
    if read_all(epoch) != count:
        raise SystemExit("a form gave another number of samples than it was given")
    measured.cpu_ms.append((time.process_time() - cpu) * 1000 / count)
    measured.wall_ms.append((time.perf_counter() - wall) * 1000 / count)


def median_ratio(ours: list[float], theirs: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(theirs[1:], ours[1:], strict=True))


def print_table(ours: Measured, peers: dict[str, Measured]) -> list[str]:
    """Print the table and the verdict; return the peers that are better in both."""
    print(
        "| format | KiB/sample | CPU ms/sample | wall ms/sample | write ms/sample | bytes vs ours | CPU time vs ours | wall vs ours |"
    )
    print("|---|---|---|---|---|---|---|---|")
    better = []
    for name, peer in {"this store": ours, **peers}.items():
        size, cpu = peer.size_kib / ours.size_kib, median_ratio(ours.cpu_ms, peer.cpu_ms)
        cpu_ms, wall_ms = statistics.median(peer.cpu_ms[1:]), statistics.median(peer.wall_ms[1:])
        write_ms = f"{peer.write_ms:.0f}" if peer.write_ms else "-"
        wall = median_ratio(ours.wall_ms, peer.wall_ms)
        print(
            f"| {name} | {peer.size_kib:,.0f} | {cpu_ms:.1f} | {wall_ms:.1f} | {write_ms} | {size:.2f}x | {cpu:.2f}x | {wall:.2f}x |"
        )
        if size < 1 and cpu < 1:
            better.append(name)
    print(f"\nBetter in both bytes and time: {', '.join(better)}" if better else "\nno peer is better in both bytes and time")
    return better


def main() -> int:
    torch.set_num_threads(1)
    numcodecs.blosc.use_threads = False
    pa.set_cpu_count(1)
    os.environ.setdefault("DISABLE_LITDATA_VERSION_CHECK", "1")
    warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
    if not 2 <= len(sys.argv) <= 3:
        print("usage: python benchmarks/peers.py STORE [ROUNDS]", file=sys.stderr)
        return 2
    root, rounds = Path(sys.argv[1]).resolve(), int(sys.argv[2]) if len(sys.argv) > 2 else 5
    store = open_store(root)
    count = len(store)

    def samples() -> Iterator[Volumes]:
        return (read_volumes(store, key) for key in store.keys)

    def our_epoch() -> Iterator[Tensors]:
        return map(to_tensors, samples())

    ours = Measured(sum(size_kib(root / name) for name in VOLUMES) / count, 0.0)
    subjects = []
    with TemporaryDirectory(dir=root.parent) as folder:
        forms = forms_of(root, count)
        problems = {library: problem for library in dict.fromkeys(form.library for form in forms) if (problem := why_not(library))}
        for library, problem in problems.items():
            print(f"{library}: skipped, cannot be imported ({problem})\n")
        for number, form in enumerate(form for form in forms if form.library not in problems):
            print(f"writing: {form.name}", file=sys.stderr)
            subjects.append(Subject(form, Path(folder) / str(number), samples, count))
        for _ in range(rounds + 1):
            time_epoch(our_epoch, count, ours)
            for subject in subjects:
                subject.round()
    print(f"{count} samples, {rounds} rounds\n")
    return 1 if print_table(ours, {subject.form.name: subject.measured for subject in subjects}) else 0


if __name__ == "__main__":
    sys.exit(main())
