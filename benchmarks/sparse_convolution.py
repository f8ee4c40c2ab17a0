"""Sparse layers against dense ones, and against a product and an ``index_add`` per offset. Run: python benchmarks/sparse_convolution.py

A made-up room at 128³: about 60 000 voxels within 1.5 cells of a surface, 21 of 27 neighbours there. One core; CPU time; medians, and
medians of ratios round by round. Results are compared before anything is timed. Neighbours are looked up anew in every round where the
row says so; otherwise they are known, as from the second layer of a level on.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pairs import measure
from torch import Tensor, nn
from torch.nn import functional

from scenemill.trainers.nvpanoptix3d.sparse import SparseTensor, Support, sparse_tensor
from scenemill.trainers.nvpanoptix3d.sparse_layers import GenerativeConv, SparseBlock, StridedConv, SubmanifoldConv
from scenemill.trainers.nvpanoptix3d.sparse_links import submanifold_links

SIZE = 128
BOXES = (  # centre and half the size of each, in cells: the room, then what stands in it
    ((64, 64, 64), (30, 16, 35)),
    ((46, 74, 54), (8, 6, 13)),
    ((82, 72, 80), (8, 8, 6)),
    ((76, 75, 44), (6, 5, 6)),
)
Layer = Callable[[Tensor], Tensor]


def room() -> Tensor:
    """(N, 4) int64: the voxels near the faces of some boxes, turned by 20 degrees about the vertical axis, y."""
    cells = torch.stack(torch.meshgrid(*[torch.arange(SIZE)] * 3, indexing="ij"), dim=-1).double() - SIZE / 2
    sine, cosine = 0.342, 0.940
    x, y, z = cells.unbind(dim=-1)
    turned = torch.stack([cosine * x - sine * z, y, sine * x + cosine * z], dim=-1) + SIZE / 2
    near = torch.zeros(SIZE, SIZE, SIZE, dtype=torch.bool)
    for centre, half in BOXES:
        beyond = (turned - torch.tensor(centre)).abs() - torch.tensor(half)
        distance = beyond.clamp(min=0).norm(dim=-1) + beyond.amax(dim=-1).clamp(max=0)
        near |= distance.abs() < 1.5
    return functional.pad(near.nonzero(), (1, 0))


def volume_of(tensor: SparseTensor, size: int) -> Tensor:
    """(1, C, size, size, size)."""
    sample, x, y, z = tensor.coords.T
    volume = torch.zeros(1, tensor.features.shape[1], size, size, size)
    volume.movedim(1, -1)[sample, x, y, z] = tensor.features.detach()
    return volume


def per_offset(tensor: SparseTensor, weight: Tensor) -> Tensor:
    """A 3x3x3 convolution, one offset after the other: gather, multiply, add at the places."""
    sources = submanifold_links(tensor.support).forward[0].sources
    out = tensor.features.new_zeros(len(sources), weight.shape[2])
    for rows, matrix in zip(sources.unbind(dim=1), weight, strict=True):
        there = (rows < len(sources)).nonzero()[:, 0]
        out = out.index_add(0, there, tensor.features[rows[there]] @ matrix)
    return out


def steps(layer: Layer, features: Tensor, module: nn.Module) -> tuple[Callable[[], object], Callable[[], object]]:
    """Forwards without a graph; forwards and back."""
    weights = torch.randn_like(layer(features).detach())

    def forward() -> None:
        with torch.no_grad():
            layer(features)

    def both() -> None:
        features.grad = None
        module.zero_grad()
        torch.autograd.backward(layer(features), weights)

    return forward, both


def peak_mib(step: Callable[[], object]) -> float:
    """What a step needs beyond what is there, in MiB, as Linux counts pages."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # pages that were freed count as used until they are given back
    Path("/proc/self/clear_refs").write_text("5")  # the peak is from now on
    before = _status("VmRSS")
    step()
    return (_status("VmHWM") - before) / 1024


def _status(name: str) -> int:
    """KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


@dataclass(frozen=True)
class Case:
    """A sparse layer, and a dense one with its weights."""

    name: str
    module: nn.Module
    tensor: SparseTensor
    dense: Layer
    size: int

    def ours(self, features: Tensor) -> Tensor:
        found: Tensor = self.module(self.tensor.with_features(features)).features
        return found


def dense_weight(weight: Tensor) -> Tensor:
    """(K, in, out) -> (out, in, k, k, k)."""
    edge = round(len(weight) ** (1 / 3))
    return weight.view(edge, edge, edge, *weight.shape[1:]).permute(4, 3, 0, 1, 2)


def cases(coords: Tensor) -> list[Case]:
    fine = Support(coords)

    def on(support: Support, channels: int) -> SparseTensor:
        return SparseTensor(support, torch.randn(len(support), channels, requires_grad=True))

    def dense_conv(module: Any, volume: Tensor, **settings: int) -> Tensor:
        return functional.conv3d(volume, dense_weight(module.weight), module.bias, **settings)

    def dense_grown(module: Any, volume: Tensor) -> Tensor:
        return functional.conv_transpose3d(volume, dense_weight(module.weight).transpose(0, 1), stride=2)

    found = []
    for width, out in ((16, 16), (16, 32), (32, 32)):
        layer = SubmanifoldConv(width, out)
        found.append(Case(f"k 3, {width} to {out}", layer, on(fine, width), partial(dense_conv, layer, padding=1), SIZE))
    for edge, padding in ((3, 1), (4, 0)):
        strided = StridedConv(16, 32, edge)
        dense = partial(dense_conv, strided, stride=2, padding=padding)
        found.append(Case(f"k {edge}, stride 2, 16 to 32", strided, on(fine, 16), dense, SIZE))
    grown = GenerativeConv(48, 16)
    found.append(Case("transposed k 4, 48 to 16", grown, on(fine.halved, 48), partial(dense_grown, grown), SIZE // 2))
    return found


def check(case: Case) -> None:
    found = case.module(case.tensor)
    _, x, y, z = found.coords.T
    volume = case.dense(volume_of(case.tensor, case.size))[0]
    inside = (found.coords[:, 1:] < torch.tensor(volume.shape[1:])).all(dim=1)
    expected = volume[:, x[inside], y[inside], z[inside]].T
    torch.testing.assert_close(found.features[inside], expected, rtol=1e-3, atol=1e-4)


def print_pair(name: str, ours: Callable[[], object], other: Callable[[], object]) -> None:
    pair = measure(ours, other, 1, 3)
    memory = [f"{peak_mib(step):.0f}" for step in (ours, other)]
    times = f"{pair.ours_ms:.1f} | {pair.naive_ms:.1f} | {pair.ratio:.3f} | {1 / pair.ratio:.1f}x"
    print(f"| {name} | {times} | {' | '.join(memory)} |", flush=True)


def bench_case(case: Case) -> None:
    check(case)
    volume = volume_of(case.tensor, case.size).requires_grad_()
    pairs = zip(steps(case.ours, case.tensor.features, case.module), steps(case.dense, volume, case.module), strict=True)
    for kind, (ours, dense) in zip(("forward", "forward, backward"), pairs, strict=True):
        print_pair(f"{case.name}, {kind}, vs dense", ours, dense)


def bench_offsets(coords: Tensor) -> None:
    layer, tensor = SubmanifoldConv(16, 32), sparse_tensor(coords, torch.randn(len(coords), 16, requires_grad=True))

    def ours(features: Tensor) -> Tensor:
        found: Tensor = layer(tensor.with_features(features)).features
        return found

    def other(features: Tensor) -> Tensor:
        return per_offset(tensor.with_features(features), layer.weight)

    torch.testing.assert_close(ours(tensor.features), other(tensor.features), rtol=1e-3, atol=1e-4)
    pairs = zip(steps(ours, tensor.features, layer), steps(other, tensor.features, layer), strict=True)
    for kind, pair in zip(("forward", "forward, backward"), pairs, strict=True):
        print_pair(f"k 3, 16 to 32, {kind}, vs index_add per offset", *pair)


def bench_block(coords: Tensor) -> None:
    """A whole block, neighbours looked up in every round, as for a new scene."""
    block, features = SparseBlock(16, 16), torch.randn(len(coords), 16, requires_grad=True)
    first, second = (dense_weight(layer.weight) for layer in (block.conv1, block.conv2))
    volume = volume_of(sparse_tensor(coords, features), SIZE).requires_grad_()

    def ours(features: Tensor) -> Tensor:
        found: Tensor = block(sparse_tensor(coords, features)).features
        return found

    def dense(volume: Tensor) -> Tensor:
        inner = functional.instance_norm(functional.conv3d(volume, first.detach(), padding=1)).relu()
        return (functional.instance_norm(functional.conv3d(inner, second.detach(), padding=1)) + volume).relu()

    print_pair("block, 16, neighbours included, forward, backward", steps(ours, features, block)[1], steps(dense, volume, block)[1])


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    coords = room()
    sources = submanifold_links(Support(coords)).forward[0].sources
    there = float((sources < len(coords)).sum() / len(coords))
    print(f"{len(coords)} voxels at {SIZE}³, {there:.1f} neighbours each\n")
    print("| what | sparse ms | other ms | ratio | faster | sparse MiB | other MiB |\n|---|---|---|---|---|---|---|")
    for case in cases(coords):
        bench_case(case)
    bench_offsets(coords)
    bench_block(coords)
    spent = measure(lambda: submanifold_links(Support(coords)), lambda: Support(coords).halved, 1, 5)
    print(f"\nneighbours looked up in {spent.ours_ms:.1f} ms; halved in {spent.naive_ms:.1f} ms")


if __name__ == "__main__":
    main()
