"""The GPU paths, checked against the CPU to the bit and timed: python benchmarks/gpu.py [DEVICE]. Needs torch and numpy alone.

Everything is made here from a seed: a batch of volumes as blocks (as many as a real view has), occupancy planes, two label volumes.
Ends with exit code 1 where a result differs, and 2 without a GPU.
"""

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from scenemill.schemas.dataset import DatasetConfig
from scenemill.schemas.experiment import BackboneConfig, ModelConfig
from scenemill.trainers.batches import prefetched
from scenemill.trainers.collate import Batch, Packed, expand_batch, pack
from scenemill.trainers.metrics import panoptic_reconstruction_quality
from scenemill.trainers.nvpanoptix3d.losses import Stage1Loss, Targets
from scenemill.trainers.nvpanoptix3d.stage1 import Stage1, Stage1Output
from scenemill.trainers.order import Visit
from scenemill.trainers.planes import PLANE_SIZE, PLANES, plane_occupancy, plane_tables
from scenemill.trainers.segments import segments_from_labels
from scenemill.trainers.stages import in_float32
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


def milliseconds(run: Callable[[], object], device: torch.device, rounds: int = 30) -> float:
    """Median wall time, the device's work included."""
    times = []
    for _ in range(rounds + 3):
        synchronize(device)
        start = time.perf_counter()
        run()
        synchronize(device)
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[3:])


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


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
    rng = np.random.default_rng(2)
    coarse = rng.integers(0, 13, (2, 32, 32, 32)).repeat(8, 1).repeat(8, 2).repeat(8, 3)
    distance = torch.from_numpy((3 * rng.random((GRID,) * 3)).astype(np.float32))
    frustum = torch.ones((GRID,) * 3, dtype=torch.bool)

    def score(on: torch.device) -> Any:
        labels = [torch.from_numpy(part).int().to(on) for part in coarse]
        true, predicted = (segments_from_labels(part, part, (10, 11)) for part in labels)
        near = distance.to(on)
        return panoptic_reconstruction_quality(true, near, predicted, near, frustum.to(on), "front3d")

    found, expected = score(device), score(torch.device("cpu"))
    if any(not np.array_equal(found[rule].array, expected[rule].array) for rule in expected):
        raise SystemExit("PRQ: counts differ from the CPU")
    print("PRQ: counts equal to the CPU's")
    there, here = milliseconds(lambda: score(device), device, 2), milliseconds(lambda: score(torch.device("cpu")), device, 2)
    print(f"  {there:.0f} ms there, {here:.0f} ms on the CPU")


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


def stage1_config(device: torch.device) -> ModelConfig:
    """Full size on a GPU; a few channels elsewhere, to try this script."""
    if device.type == "cuda":
        return ModelConfig()
    narrow = BackboneConfig(
        input_width=112,
        embed_dim=64,
        num_heads=4,
        depth=4,
        patch_depth=2,
        patch_heads=4,
        pos_grid=16,
        tap_layers=(0, 1, 2, 3),
        camera_depth=1,
        dpt_features=32,
        dpt_channels=(16, 24, 32, 32),
        pixel_channels=(8, 16, 32, 64),
    )
    return ModelConfig(backbone=narrow)


def bench_stage1(device: torch.device) -> None:
    """A training step of stage 1, images and targets on the device already: fp32, bf16, and bf16 compiled; losses must agree."""
    if find_spec("scipy") is None:
        print("stage 1 step: not run, matching masks needs scipy")
        return
    config, size = stage1_config(device), PLANE_SIZE
    model = Stage1(config, size).to(device).train()
    criterion = Stage1Loss().to(device)
    rng = np.random.default_rng(3)
    images = torch.from_numpy(rng.integers(0, 256, (2, 3, 240, 320)).astype(np.uint8)).to(device)
    masks = torch.zeros((6, 256, 320), dtype=torch.bool, device=device)
    for number in range(6):
        masks[number, 40 * number : 40 * number + 40] = True
    targets = Targets(
        labels=[torch.tensor([1, 2, 3, 4, 10, 11], device=device)] * 2,
        masks=[masks] * 2,
        depth=torch.full((2, 256, 320), 2.0, device=device),
        loss_weight=torch.ones(2, device=device),
        mp_occ=torch.zeros((2, PLANES, *size), dtype=torch.bool, device=device),
        transformed_depth=torch.full((2, *size), 2.0, device=device),
    )

    def step(network: Callable[[torch.Tensor], Stage1Output], half: bool) -> float:
        model.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            output = network(images)
        total, _ = criterion(in_float32(output), targets, torch.Generator(device).manual_seed(0))
        total.backward()
        return float(total.detach())

    kinds: list[tuple[str, Any, bool]] = [("fp32", model, False), ("bf16", model, True)]
    if device.type == "cuda":
        kinds.append(("bf16 compiled", torch.compile(model), True))
    expected = step(model, False)
    for name, network, half in kinds:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        loss = step(network, half)
        if abs(loss - expected) > 0.03 * abs(expected):
            raise SystemExit(f"stage 1, {name}: loss {loss}, fp32 {expected}")
        spent = milliseconds(partial(step, network, half), device, 5)
        memory = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0
        print(f"stage 1 step, {name}: {spent:.0f} ms for 2 images, {2000 / spent:.1f} images/s, loss {loss:.4f}, {memory:.1f} GiB")


def main() -> int:
    device = torch.device(sys.argv[1] if len(sys.argv) > 1 else "cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        print("no GPU here: nothing was checked", file=sys.stderr)
        return 2
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name(device) if device.type == 'cuda' else device}")
    for bench in (bench_expand, bench_planes, bench_metric, bench_prefetch, bench_stage1):
        bench(device)
    return 0


if __name__ == "__main__":
    sys.exit(main())
