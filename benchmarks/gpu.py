"""The GPU paths, checked against the CPU to the bit and timed: python benchmarks/gpu.py [DEVICE]. Needs torch and numpy alone.

Everything is made here from a seed: a batch of volumes as blocks (as many as a real view has), occupancy planes, two label volumes.
Ends with exit code 1 where a result differs, and 2 without a GPU.
"""

import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from gpu_models import bench_compiled, bench_sparse, bench_stage1, bench_stage2, milliseconds, synchronize
from gpu_render import bench_render

from scenemill.schemas.dataset import DatasetConfig
from scenemill.trainers.batches import prefetched
from scenemill.trainers.collate import Batch, Packed, expand_batch, pack
from scenemill.trainers.metrics import panoptic_reconstruction_quality
from scenemill.trainers.order import Visit
from scenemill.trainers.planes import plane_occupancy, plane_tables
from scenemill.trainers.segments import segments_from_labels
from scenemill.trainers.volumes import EDGE, Canvas, VolumeBatch, expand
from scenemill.transforms.geometry import FRONT3D_INTRINSICS

GRID, TRUNCATION = 256, 12.0
BLOCKS, WEIGHT_BLOCKS, VOXELS, MASKS = 170, 850, 40_000, 5
BELOW = (12.0, 6.0, 8.0)


def volumes(seed: int) -> VolumeBatch:
    """One sample's volumes, as large as a real view's."""
    rng = np.random.default_rng(seed)

    def places(count: int) -> torch.Tensor:
        chosen = np.sort(rng.choice((GRID // EDGE) ** 3, count, replace=False))
        return torch.from_numpy(np.stack([np.zeros_like(chosen), chosen >> 8, chosen >> 4 & 15, chosen & 15], 1).astype(np.int16))

    block = (EDGE, EDGE, EDGE)
    return VolumeBatch(
        distance_places=places(BLOCKS),
        distance=torch.from_numpy((12 * rng.random((BLOCKS, *block))).astype(np.float32)),
        weight_places=places(WEIGHT_BLOCKS),
        weight=torch.from_numpy(rng.choice(np.array([1, 2, 5, 10], np.uint8), (WEIGHT_BLOCKS, *block))),
        mask_voxels=torch.from_numpy(np.sort(rng.integers(0, GRID**3, VOXELS)).astype(np.int32)),
        mask_ends=torch.from_numpy(np.linspace(VOXELS // MASKS, VOXELS, MASKS).astype(np.int64)),
        masks_of=torch.tensor([MASKS]),
        frustum_places=torch.empty((0, 4), dtype=torch.int16),
        frustum=torch.empty((0, *block), dtype=torch.bool),
        grid=GRID,
        truncation=TRUNCATION,
    )


def packed(seed: int) -> Packed:
    """A batch as a worker hands it over."""
    image = torch.randint(0, 256, (1, 3, 240, 320), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    tensors = {"image": image, "depth": torch.ones(1, 240, 320)}
    size = ((240, 320),)
    return pack(Batch(("a/0",), (Visit(0, 0, 0, 0),), size, size, tensors, torch.tensor([MASKS]), volumes(seed)))


def check(name: str, found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    wrong = [key for key, value in expected.items() if not torch.equal(found[key].cpu(), value)]
    if wrong or set(found) != set(expected):
        raise SystemExit(f"{name}: {', '.join(wrong)} differ from the CPU")
    print(f"{name}: equal to the CPU to the bit")


def bench_expand(device: torch.device) -> None:
    blocks = volumes(0)
    moved = blocks.to(device)
    check("expand", expand(moved, BELOW), expand(blocks, BELOW))
    canvas = Canvas()
    there, here = milliseconds(lambda: expand(moved, BELOW), device), milliseconds(lambda: expand(blocks, BELOW, canvas), device)
    dense = sum(tensor.nbytes for tensor in expand(blocks, BELOW, canvas).values())
    print(f"  {blocks.size_byte / 1e6:.1f} MB of blocks to {dense / 1e6:.0f} MB: {there:.2f} ms there, {here:.2f} ms on the CPU")


def bench_planes(device: torch.device) -> None:
    tables = plane_tables(np.array(FRONT3D_INTRINSICS), (320, 240), GRID)
    voxels = torch.from_numpy(np.sort(np.random.default_rng(1).choice(GRID**3, 250_000, replace=False)))
    there, on_device = voxels.to(device), tables.to(device)
    check("planes", {"mp_occ": plane_occupancy(there, on_device)}, {"mp_occ": plane_occupancy(voxels, tables)})
    spent, here = (milliseconds(partial(plane_occupancy, *pair), device) for pair in ((there, on_device), (voxels, tables)))
    print(f"  250 000 voxels: {spent:.2f} ms there, {here:.2f} ms on the CPU")


def bench_metric(device: torch.device) -> None:
    """Two labellings of three walls, cut into segments, about as many voxels as a real view has: tensors there against NumPy here."""
    rng = np.random.default_rng(2)
    distance = np.full((GRID,) * 3, 12.0, np.float32)
    room = distance[64:192, 80:176, 48:208]
    for axis in range(3):
        for step in range(4):
            part = np.moveaxis(room, axis, 0)[step]
            part[:] = np.minimum(part, abs(step - 0.5))
    coarse = rng.integers(1, 13, (2, 32, 32, 32), np.uint8).repeat(8, 1).repeat(8, 2).repeat(8, 3)
    coarse[:, distance > 3] = 0
    here = (*coarse, distance, np.ones((GRID,) * 3, bool))
    there = tuple(torch.from_numpy(array).to(device) for array in here)

    def score(given: tuple[Any, ...]) -> Any:
        true, predicted = (segments_from_labels(labels, labels, (10, 11)) for labels in given[:2])
        return panoptic_reconstruction_quality(true, given[2], predicted, given[2], given[3], "front3d")

    found, expected = score(there), score(here)
    if any(not np.array_equal(found[rule].array, expected[rule].array) for rule in expected):
        raise SystemExit("PRQ: counts differ from the CPU")
    print("PRQ: counts equal to the CPU's")
    spent, spent_here = (milliseconds(partial(score, given), device, 5) for given in (there, here))
    print(f"  {int((coarse[0] > 0).sum())} labelled voxels: {spent:.0f} ms there, {spent_here:.0f} ms by NumPy on the CPU")


def bench_prefetch(device: torch.device) -> None:
    """A pretended step of matrix products: with the prefetcher it should take no longer than by itself."""
    config, count = DatasetConfig(enable_3d=True, enable_mp_occ=False), 20
    given = [packed(seed) for seed in range(4)]
    if device.type == "cuda":
        given = [batch.pin_memory() for batch in given]
    matrix = torch.rand((6144, 6144), device=device) if device.type == "cuda" else torch.rand((256, 256))

    def stream() -> Iterator[Packed]:
        return (given[number % len(given)] for number in range(count))

    def step() -> None:
        for _ in range(4):
            torch.mm(matrix, matrix)

    def steps_alone() -> None:
        for _ in range(count):
            step()

    def finish(batch: Batch) -> Batch:
        return expand_batch(batch, config, None)

    def ahead() -> None:
        for _ in prefetched(stream(), device, finish):
            step()

    def in_turn() -> None:
        for batch in stream():
            finish(batch.unpack(device))
            synchronize(device)
            step()
            synchronize(device)

    last = [expand_batch(given[3].unpack(torch.device("cpu")), config, None)]
    for batch in prefetched(stream(), device, finish):
        last.append(batch)
        del last[1:-1]
    check("prefetch", last[1].tensors, last[0].tensors)
    alone, together, apart = (milliseconds(run, device, 5) / count for run in (steps_alone, ahead, in_turn))
    print(f"  step alone {alone:.2f} ms; with batches ahead {together:.2f} ms; in turn {apart:.2f} ms")


def main() -> int:
    device = torch.device(sys.argv[1] if len(sys.argv) > 1 else "cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        print("no GPU here: nothing was checked", file=sys.stderr)
        return 2
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name(device) if device.type == 'cuda' else device}")
    small = (bench_expand, bench_planes, bench_metric, bench_prefetch, bench_sparse, bench_render)
    for bench in (*small, bench_stage1, bench_stage2, bench_compiled):
        bench(device)
    return 0


if __name__ == "__main__":
    sys.exit(main())
