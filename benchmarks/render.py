"""The renderer against plain PyTorch over all faces x pixels, forward and backward. Run: python benchmarks/render.py

A torus on a third of the image, 3 features, boxlen 0.02, knum 30; one core; CPU time; medians. Both must agree in features, soft mask and
gradients before anything is timed. The plain way takes the pixels in blocks, as no memory holds all pairs; of large images it does every
n-th block, and time and memory are scaled to the whole image.
"""

from collections.abc import Callable
from functools import partial

import torch
from gpu_render import View, render_step, torus_view
from pairs import measure
from sparse_convolution import peak_mib
from torch import Tensor

SIGMAINV, BOXLEN, KNUM = 7000.0, 0.02, 30
BLOCK = 4_000_000
"""Pairs of faces and pixels in a block of the plain way."""

OFTEN = 5
"""Steps of ours per round: the plain way leaves the caches full of its own."""

CASES = (((20, 32), 64, 1), ((20, 32), 256, 4), ((20, 32), 512, 16), ((100, 100), 512, 256))
"""Segments of the torus, pixels a side, and of how many blocks the plain way does one."""

Corner = tuple[Tensor, Tensor]


def cross(a: Corner, b: Corner) -> Tensor:
    return a[0] * b[1] - a[1] * b[0]


def dense_features(faces: tuple[Tensor, ...], corners: list[Corner], inside_box: Tensor) -> tuple[Tensor, Tensor]:
    """(P, D) and (P,): features and where a face is shown, of (F, P) pairs."""
    z, features, valid = faces
    weights = torch.stack([cross(corners[1], corners[2]), cross(corners[2], corners[0]), cross(corners[0], corners[1])])
    weights = weights / weights.sum(0)
    shown = (weights >= 0).all(0) & inside_box & valid[:, None]
    depth = (weights * z.T[..., None]).sum(0).masked_fill(~shown, -torch.inf)
    best = depth.argmax(0)
    covered = shown.any(0)
    at = weights[:, best, torch.arange(len(best))]
    return torch.einsum("cp,pcd->pd", at, features[best]) * covered[:, None], covered


def dense_mask(corners: list[Corner], near: Tensor, covered: Tensor) -> Tensor:
    """(P,): the soft mask of (F, P) pairs."""
    squares = []
    for end in range(3):
        (ax, ay), (bx, by) = corners[end], corners[(end + 1) % 3]
        dx, dy = bx - ax, by - ay
        share = (-(ax * dx + ay * dy) / (dx * dx + dy * dy)).clamp(0, 1)
        squares.append((ax + share * dx).square() + (ay + share * dy).square())
    counted = near & (near.cumsum(0) <= KNUM)
    p = torch.exp(-SIGMAINV * torch.stack(squares).amin(0)) * counted
    return torch.where(covered, 1.0, 1 - (1 - p).prod(0))


def dense_block(view: View, size: int, pixel: Tensor) -> tuple[Tensor, Tensor]:
    """Features (P, D) and soft mask (P,) of some pixels."""
    z, image, normals = (held[0] for held in view.prepared())
    x, y = (2 * (pixel % size) + 1 - size) / size, (size - 2 * (pixel // size) - 1) / size
    low, high = image.amin(1), image.amax(1)

    def boxed(margin: float) -> Tensor:
        across = (x >= low[:, :1] - margin) & (x < high[:, :1] + margin)
        return across & (y >= low[:, 1:] - margin) & (y < high[:, 1:] + margin)

    corners = [(image[:, corner, :1] - x, image[:, corner, 1:] - y) for corner in range(3)]
    features, covered = dense_features((z, view.features[0], normals >= 0), corners, boxed(0.0))
    return features, dense_mask(corners, boxed(BOXLEN), covered)


def dense_step(view: View, size: int, every: int) -> tuple[Tensor, Tensor]:
    """Features and soft mask of every n-th block of pixels, and gradients to vertices and features."""
    view.vertices.grad = view.features.grad = None
    found = []
    for pixel in blocks(view, size, every):
        features, mask = dense_block(view, size, pixel)
        torch.autograd.backward(features.square().sum() + mask.square().sum())
        found.append((features.detach(), mask.detach()))
    return torch.cat([features for features, _ in found]), torch.cat([mask for _, mask in found])


def blocks(view: View, size: int, every: int) -> tuple[Tensor, ...]:
    parts: tuple[Tensor, ...] = torch.split(torch.arange(size * size), max(1, BLOCK // len(view.faces)))
    return parts[every // 2 :: every]


def check(view: View, size: int) -> None:
    features, mask, _ = render_step(view, size)
    ours = (features.flatten(0, 2), mask.flatten(), view.vertices.grad, view.features.grad)
    plain = (*dense_step(view, size, 1), view.vertices.grad, view.features.grad)
    for one, other, bound in zip(ours, plain, (1e-4, 1e-4, 1e-3, 1e-3), strict=True):
        assert one is not None and other is not None
        torch.testing.assert_close(one, other, rtol=0, atol=bound * max(1.0, float(other.abs().max())))


def bench(segments: tuple[int, int], size: int, every: int) -> None:
    view = torus_view(*segments)
    count, done = len(blocks(view, size, 1)), len(blocks(view, size, every))
    scale = count / done
    ours: Callable[[], object] = partial(render_step, view, size)

    def often() -> None:
        for _ in range(OFTEN):
            ours()

    pair = measure(often, partial(dense_step, view, size, every), 1, 3)
    memory = peak_mib(ours)
    block = peak_mib(partial(dense_step, view, size, count)) * count
    spent, ratio = pair.naive_ms * scale, pair.ratio / OFTEN / scale
    row = f"{pair.ours_ms / OFTEN:.1f} | {spent:.0f} | {ratio:.5f} | {1 / ratio:.0f}x | {memory:.0f} | {block:.0f}"
    print(f"| {len(view.faces)} faces, {size} x {size} | {row} | 1 in {every} |", flush=True)


def main() -> None:
    torch.set_num_threads(1)
    check(torus_view(*CASES[0][0]), 64)
    print(
        "| what | ours ms | plain ms | ratio | faster | ours MiB | plain MiB at once | blocks done |\n|---|---|---|---|---|---|---|---|"
    )
    for segments, size, every in CASES:
        bench(segments, size, every)


if __name__ == "__main__":
    main()
