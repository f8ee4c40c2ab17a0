"""Raw folder to store, against the naive way: rows 1, 5 to 9 and 11 of the bars. Run: python benchmarks/ingest.py [RAW_FOLDER]

RAW_FOLDER is a 3D-Front folder; without one, the real views under SCENEMILL_REAL_DATA, or made-up rooms. Times are CPU time of
one process unless the row says wall; every row is measured in turn with what it is compared to.
"""

import os
import resource
import shutil
import subprocess
import sys
import time
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import numcodecs.blosc
import numpy as np
import OpenEXR
import zarr
from pairs import Pair, measure, print_row
from PIL import Image
from zarr.codecs import BloscCodec

from scenemill.pipelines.folder import read_folder
from scenemill.pipelines.ingest import build_part, ingest
from scenemill.pipelines.plan import make_plan
from scenemill.pipelines.runners.groups import run_groups
from scenemill.schemas.config import IngestConfig
from scenemill.schemas.places import on_disk
from scenemill.transforms import folders, npz
from scenemill.transforms.parts import PartPlan
from scenemill.transforms.sources import Listed, Source, raw_files
from scenemill.transforms.store import open_store
from scenemill.transforms.worlds import write_world

Arrays = dict[str, Any]


def find_input() -> Path:
    if len(sys.argv) > 1:
        return Path(sys.argv[1])
    real = Path(os.environ.get("SCENEMILL_REAL_DATA", "../shared")) / "data" / "front3d"
    if real.is_dir():
        return real
    made = Path("build") / "bench-world"
    if not made.is_dir():
        write_world("front3d", made, scenes=3, views=6, seed=0)
    return made


def naive_volumes(root: Path, paths: dict[str, str]) -> Arrays:
    """The volumes as every public loader reads them, cast to the same dtypes."""
    segmentation = np.load(root / paths["segmentation"])["data"]
    return {
        "geometry": np.load(root / paths["geometry"])["data"].astype(np.float32),
        "semantic_3d": segmentation[0].astype(np.uint8),
        "instance_3d": segmentation[1].astype(np.uint16),
        "weighting": np.load(root / paths["weighting"])["data"].astype(np.uint8),
    }


def naive_sample(root: Path, paths: dict[str, str]) -> Arrays:
    """One view, by the usual library calls."""
    segmap = np.load(root / paths["segmap"])["data"]
    return {
        "rgb": np.asarray(Image.open(root / paths["rgb"])),
        "depth": OpenEXR.File(str(root / paths["depth"])).channels()["Z"].pixels,
        "semantic_2d": segmap[..., 0].astype(np.uint8),
        "instance_2d": segmap[..., 1].astype(np.uint16),
        **naive_volumes(root, paths),
    }


def our_volumes(source: Source, paths: dict[str, str], arrays: Arrays) -> None:
    for kind, names in (("geometry", ["geometry"]), ("segmentation", ["semantic_3d", "instance_3d"]), ("weighting", ["weighting"])):
        data = folders.read_file(source.root, paths[kind], 1 << 30)
        dtypes = ("float64", "float32", "int32", "int16", "uint8")
        npz.read_volumes(data, "data", [arrays[name] for name in names], dtypes, rotated=True)


def bench_read(source: Source, listed: list[Listed]) -> None:
    arrays = source.new_arrays()
    views = [raw_files(source, view) for view in listed]

    def ours() -> None:
        for paths in views:
            our_volumes(source, paths, arrays)

    def naive() -> None:
        for paths in views:
            naive_volumes(on_disk(source.root), paths)

    print_row(1, "raw volumes to canonical arrays, CRC checked, vs np.load + cast", measure(ours, naive, len(views), 5), "<= 0.13")


def bench_convert(config: IngestConfig, source: Source, part: PartPlan, layout: Any) -> None:
    """Everything ``build_part`` does (read, sum, check, write, flush) against np.load + zarr-python."""
    views = [raw_files(source, planned.listed) for planned in part.samples]

    def ours() -> None:
        with TemporaryDirectory() as store:
            build_part(source, layout, Path(store), "", part)

    def naive() -> None:
        with TemporaryDirectory() as store:
            group = zarr.open_group(store, mode="w")
            made: dict[str, Any] = {}
            for row, paths in enumerate(views):
                for name, array in naive_sample(on_disk(source.root), paths).items():
                    if name not in made:
                        chunk = (
                            1,
                            *(
                                min(64, size) if array.ndim == 3 and size > 3 and array.shape[0] == source.grid else size
                                for size in array.shape
                            ),
                        )
                        made[name] = group.create_array(
                            name,
                            shape=(len(views), *array.shape),
                            dtype=array.dtype,
                            chunks=chunk,
                            shards=(1, *array.shape),
                            fill_value=12.0 if name == "geometry" else int(name == "weighting"),
                            compressors=BloscCodec(cname="zstd", clevel=5),
                        )
                    made[name][row] = array

    print_row(
        6, "one sample end to end, checked, vs np.load + zarr-python sharded write", measure(ours, naive, len(views), 3), "<= 0.25"
    )


def bench_beam(source: Source, parts: list[PartPlan], layout: Any) -> None:
    def loop(store: Path) -> None:
        for part in parts:
            build_part(source, layout, store, "", part)

    def beam(store: Path) -> None:
        (store / "returned").mkdir()
        list(run_groups("Build parts", partial(build_part, source, layout, store, ""), parts, store / "returned", 1))

    samples = sum(len(part.samples) for part in parts)
    pair = measure(partial(in_new_store, beam), partial(in_new_store, loop), samples, 3, time.perf_counter)
    print_row(7, "Beam in memory vs the bare loop (wall)", pair, "<= 1.15")


def in_new_store(work: Any) -> None:
    with TemporaryDirectory() as store:
        work(Path(store))


def bench_processes(source: Source, parts: list[PartPlan], layout: Any) -> None:
    """Two processes against Pool(2), start-up excluded: the time of all parts less the time of a third of them."""

    def beam(some: list[PartPlan]) -> float:
        with TemporaryDirectory() as folder:
            (Path(folder) / "returned").mkdir()
            start = time.perf_counter()
            list(
                run_groups("Build parts", partial(build_part, source, layout, Path(folder), ""), some, Path(folder) / "returned", 2)
            )
            return time.perf_counter() - start

    def pool(some: list[PartPlan]) -> float:
        with TemporaryDirectory() as folder:
            start = time.perf_counter()
            with get_context("spawn").Pool(2) as workers:
                workers.map(partial(build_part, source, layout, Path(folder), ""), some, chunksize=1)
            return time.perf_counter() - start

    few = parts[: len(parts) // 3]
    samples = sum(len(part.samples) for part in parts[len(few) :])
    ours, naive = ((way(parts) - way(few)) / samples * 1000 for way in (beam, pool))
    print_row(8, "two Beam processes vs Pool(2), start-up excluded (wall)", Pair(ours, naive, ours / naive), "<= 1.35")


def bench_memory(root: Path, counts: tuple[int, int]) -> None:
    peaks = []
    for count in counts:
        with TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "scenemill.pipelines.cli", "ingest", "front3d", "--input", str(root)]
            options = ["--output", f"{folder}/store", "--limit", str(count), "--workers", "2", "--samples-per-part", "4", "--json"]
            script = "import resource,subprocess,sys;subprocess.run(sys.argv[1:],check=True,stdout=subprocess.DEVNULL);"
            script += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
            done = subprocess.run([sys.executable, "-c", script, *command, *options], check=True, capture_output=True, text=True)
            peaks.append(int(done.stdout.split()[-1]) / 1024)
    print(
        f"| 9 | largest process of an ingest of {counts[0]} and of {counts[1]} samples, MiB | {peaks[0]:.0f} | {peaks[1]:.0f} "
        f"| {peaks[1] / peaks[0]:.3f} | <= 600, flat |",
        flush=True,
    )


def bench_store(source: Source, parts: list[PartPlan], layout: Any, config: IngestConfig) -> None:
    with TemporaryDirectory() as folder:
        ingest(IngestConfig(config.source, config.input, Path(folder) / "store", limit=config.limit))
        store = open_store(Path(folder) / "store")
        raw = sum(store.samples["raw_byte"].to_pylist())
        size = sum(file.stat().st_size for file in on_disk(store.root).rglob("*") if file.is_file() and "runs" not in file.parts)
        print(
            f"| 5 | bytes of the whole store vs the raw files, KiB per sample | {size / len(store) / 1024:.0f} | "
            f"{raw / len(store) / 1024:.0f} | {size / raw:.3f} | <= 0.42 |",
            flush=True,
        )
        plain = cast("zarr.Array[Any]", zarr.open_group(store.root, mode="r")["geometry"])
        rows = dict(zip(store.keys, store.samples["row"].to_pylist(), strict=True))
        paths = {key: raw_files(source, Listed(key, ())) for key in store.keys}
        for key in store.keys[:2]:
            expected = np.load(on_disk(source.root) / paths[key]["geometry"])["data"].astype(np.float32)[::-1, ::-1]
            assert np.array_equal(np.asarray(plain[rows[key]]), expected), key

        def ours() -> None:
            for key in store.keys:
                plain[rows[key]]

        def naive() -> None:
            for key in store.keys:
                np.load(on_disk(source.root) / paths[key]["geometry"])["data"].astype(np.float32)

        pair = measure(ours, naive, len(store), 3)
        print_row(11, f"geometry by plain zarr-python vs np.load + cast ({1 / pair.ratio:.1f}x faster)", pair, "<= 0.33")


def copies(root: Path, folder: Path, times: int) -> Path:
    """A raw folder with every view ``times`` times, under other ids: more samples of real content."""
    shutil.copytree(root / "meta", folder / "meta")
    records = []
    for path in sorted((root / "data").glob("*/rgb_*.png")):
        scene, image = path.parent.name, path.stem.removeprefix("rgb_")
        for number in range(times):
            target = folder / "data" / scene
            target.mkdir(parents=True, exist_ok=True)
            name = f"{number}{image}"
            for file in path.parent.glob(f"*_{image}.*"):
                shutil.copy(file, target / file.name.replace(f"_{image}.", f"_{name}."))
            records.append(f'{{"scene_id": "{scene}", "image_id": "{name}", "height": 240, "width": 320}}')
    (folder / "train.json").write_text(f"[{', '.join(records)}]")
    return folder


def main() -> None:
    numcodecs.blosc.use_threads = False
    zarr.config.set({"async.concurrency": 1, "threading.max_workers": 1})
    root = find_input()
    config = IngestConfig("front3d", root, limit=12)
    folder = read_folder(config, {}, None, lambda *_: None)
    plan = make_plan(config, folder, None)
    print(f"{len(folder.samples)} views of {root}, grid {folder.source.grid}\n")
    print("| row | what | ours ms | compared ms | ratio | bar |\n|---|---|---|---|---|---|")
    bench_read(folder.source, list(folder.samples))
    bench_store(folder.source, list(plan.parts), plan.layout, config)
    bench_convert(config, folder.source, plan.parts[0], plan.layout)
    with TemporaryDirectory() as more:
        many = IngestConfig("front3d", copies(root, Path(more), 4), samples_per_part=4)
        wide = read_folder(many, {}, None, lambda *_: None)
        parts = list(make_plan(many, wide, None).parts)
        layout = make_plan(many, wide, None).layout
        bench_beam(wide.source, parts[:12], layout)
        bench_processes(wide.source, parts, layout)
        bench_memory(Path(more), (len(wide.samples) // 2, len(wide.samples)))
    print(f"\npeak of this process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB; {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
