"""The networks' part of the GPU check: sparse layers against the CPU, and training steps of both stages at full size."""

import copy
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from scenemill.schemas.dataset import DatasetConfig
from scenemill.schemas.experiment import (
    BackboneConfig,
    Frustum3dConfig,
    MaskFormerConfig,
    ModelConfig,
    ProjectionConfig,
    SemSegHeadConfig,
)
from scenemill.trainers.nvpanoptix3d.frustum import inference_mask
from scenemill.trainers.nvpanoptix3d.losses import Stage1Loss, Targets
from scenemill.trainers.nvpanoptix3d.losses3d import GridTargets, Stage2Loss, VolumeTargets
from scenemill.trainers.nvpanoptix3d.postprocess import Rules
from scenemill.trainers.nvpanoptix3d.sparse import sparse_tensor
from scenemill.trainers.nvpanoptix3d.sparse_layers import GenerativeConv, SparseBlock, StridedConv, SubmanifoldConv
from scenemill.trainers.nvpanoptix3d.stage1 import Stage1, Stage1Output
from scenemill.trainers.nvpanoptix3d.stage2 import Stage2
from scenemill.trainers.planes import PLANE_SIZE, PLANES
from scenemill.trainers.stages import in_float32
from scenemill.transforms.geometry import FRONT3D_INTRINSICS


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


def bench_compiled(device: torch.device) -> None:
    """The same step of stage 1, compiled: last of all, since compiling takes minutes."""
    if device.type == "cuda":
        bench_stage1(device, ("bf16 compiled",))


def bench_stage1(device: torch.device, kinds: Sequence[str] = ("fp32", "bf16")) -> None:
    """A training step of stage 1, images and targets on the device already; losses must agree with those of fp32."""
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

    expected = step(model, False)
    for name in kinds:
        network: Any = torch.compile(model) if name.endswith("compiled") else model
        half = name.startswith("bf16")
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        loss = step(network, half)
        if abs(loss - expected) > 0.03 * abs(expected):
            raise SystemExit(f"stage 1, {name}: loss {loss}, fp32 {expected}")
        spent = milliseconds(partial(step, network, half), device, 5)
        memory = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0
        print(f"stage 1 step, {name}: {spent:.0f} ms for 2 images, {2000 / spent:.1f} images/s, loss {loss:.4f}, {memory:.1f} GiB")


def surface_rows(count: int, grid: int, channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Voxels of three walls of a room, and features."""
    rng = np.random.default_rng(4)
    flat = rng.choice(3 * grid * grid, min(count, 3 * grid * grid), replace=False)
    wall, a, b = flat // grid**2, flat // grid % grid, flat % grid
    coords = np.zeros((len(flat), 4), np.int64)
    for axis in range(3):
        own = wall == axis
        coords[own, 1 + (axis + 1) % 3], coords[own, 1 + (axis + 2) % 3] = a[own], b[own]
    coords = np.unique(coords, axis=0)
    return torch.from_numpy(coords), torch.from_numpy(rng.standard_normal((len(coords), channels)).astype(np.float32))


def bench_sparse(device: torch.device) -> None:
    """Every kind of sparse convolution, forward and backward, against the CPU within rounding, and timed."""
    coords, features = surface_rows(60_000, 128, 16)
    torch.manual_seed(0)
    layers = {
        "submanifold 3": SubmanifoldConv(16, 32),
        "strided 3": StridedConv(16, 32, 3),
        "strided 4": StridedConv(16, 32, 4),
        "generative 4": GenerativeConv(16, 16),
        "residual block": SparseBlock(16, 16),
    }
    for name, layer in layers.items():
        found = {}
        for place in (torch.device("cpu"), device):
            there = copy.deepcopy(layer).to(place)
            given = features.to(place, copy=True).requires_grad_()
            out = there(sparse_tensor(coords.to(place), given, stride=2))
            out.features.square().sum().backward()
            gradients = [held.grad.cpu() for held in (given, *there.parameters()) if held.grad is not None]
            found[place.type] = [out.features.detach().cpu(), *gradients]
        for one, other in zip(found[device.type], found["cpu"], strict=True):
            if not torch.allclose(one, other, rtol=1e-3, atol=1e-3 * float(other.abs().max())):
                raise SystemExit(f"{name}: differs from the CPU by {float((one - other).abs().max())}")
        layer.to(device)
        moved = (coords.to(device), features.to(device, copy=True).requires_grad_())

        def run(layer: Any = layer, moved: Any = moved) -> None:
            layer(sparse_tensor(moved[0], moved[1], stride=2)).features.square().sum().backward()

        print(f"{name}: equal to the CPU within rounding; {len(coords)} rows {milliseconds(run, device, 5):.1f} ms")


def stage2_config(device: torch.device) -> tuple[ModelConfig, DatasetConfig]:
    """Full size on a GPU; a few channels and a small grid elsewhere, to try this script."""
    if device.type == "cuda":
        return ModelConfig(frustum3d=Frustum3dConfig(use_multi_scale=True)), DatasetConfig(enable_3d=True)
    tiny = ModelConfig(
        backbone=stage1_config(device).backbone,
        sem_seg_head=SemSegHeadConfig(transformer_enc_layers=1, convs_dim=32, mask_dim=32, depth_dim=32),
        mask_former=MaskFormerConfig(
            num_object_queries=16, nheads=4, hidden_dim=32, dec_layers=4, transformer_dim_feedforward=64, dim_feedforward=64
        ),
        frustum3d=Frustum3dConfig(
            use_multi_scale=True, unet_features=4, unet_output_channels=4, grid_dimensions=64, frustum_dims=64
        ),
        projection=ProjectionConfig(voxel_size=0.12),
    )
    return tiny, DatasetConfig(enable_3d=True, reduced_target_size=(40, 30), depth_size=(30, 40))


def made_up_targets(grid: int, device: torch.device) -> VolumeTargets:
    """A wall at half depth, and six instances on it."""
    geometry = torch.full((1, grid, grid, grid), 12.0, device=device)
    geometry[..., grid // 2] = 0.0
    grids = []
    for size in (grid // 4, grid // 2, grid):
        masks = torch.zeros((6, size, size, size), dtype=torch.bool, device=device)
        for number in range(6):
            masks[number, number * size // 6 : (number + 1) * size // 6, :, size // 2] = True
        occupancy = torch.zeros((1, size, size, size), device=device)
        occupancy[..., size // 2 - 2 : size // 2 + 2] = 1.0
        grids.append(GridTargets(occupancy, torch.ones_like(occupancy), [masks]))
    masks = torch.zeros((6, 256, 320), dtype=torch.bool, device=device)
    for number in range(6):
        masks[number, 40 * number : 40 * number + 40] = True
    labels = [torch.tensor([1, 2, 3, 4, 10, 11], device=device)]
    image = Targets(labels, [masks], torch.full((1, 256, 320), 2.0, device=device), torch.ones(1, device=device))
    return VolumeTargets(image, geometry, (grids[0], grids[1], grids[2]))


def bench_stage2(device: torch.device) -> None:
    """A training step of stage 2 with random weights, which keep far more voxels than trained ones: fp32 and bf16."""
    if find_spec("scipy") is None:
        print("stage 2 step: not run, matching masks needs scipy")
        return
    config, dataset = stage2_config(device)
    torch.manual_seed(0)
    model = Stage2(config, dataset, Rules(object_mask_threshold=0.0)).to(device).train()
    criterion = Stage2Loss().to(device)
    camera = np.array(FRONT3D_INTRINSICS)
    frustum = inference_mask(camera, model.frustum)[None].to(device)
    images = torch.from_numpy(np.random.default_rng(3).integers(0, 256, (1, 3, 240, 320)).astype(np.uint8)).to(device)
    targets = made_up_targets(model.frustum.grid, device)
    cameras = torch.from_numpy(camera.astype(np.float32))[None]

    def step(half: bool) -> tuple[float, int]:
        model.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            output = model(images, [(240, 320)], cameras, frustum)
        logits, masks = output.pred_logits.float(), output.pred_masks.float()
        total, _ = criterion(output.volumes, logits, masks, targets, torch.Generator(device).manual_seed(0))
        total.backward()
        return float(total.detach()), len(output.volumes.geometry.support)

    for name, half in (("fp32", False), ("bf16", True)):
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        loss, rows = step(half)
        spent = milliseconds(partial(step, half), device, 3)
        memory = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0
        print(f"stage 2 step, {name}: {spent:.0f} ms for 1 scene of {rows} voxels, loss {loss:.4f}, {memory:.1f} GiB")
