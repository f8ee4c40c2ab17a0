"""The renderer's part of the GPU check: a torus drawn there and on the CPU must agree; then milliseconds per view, forward and backward."""

import math
from dataclasses import dataclass
from functools import partial

import torch
from gpu_models import milliseconds
from torch import Tensor

from scenemill.trainers.render import (
    dibr_rasterization,
    generate_perspective_projection,
    generate_transformation_matrix,
    prepare_vertices,
)

CHECKED = (20, 32)
"""Segments of the torus that is compared: 1280 faces."""

TIMED = ((50, 100), (200, 250), (500, 1000))
"""10 000, 100 000 and 1 000 000 faces."""


@dataclass(frozen=True)
class View:
    """A torus before a camera, and what its faces carry.

    Attributes:
        vertices: (1, V, 3), with a gradient.
        faces: (F, 3) int64.
        camera: (1, 4, 3).
        features: (1, F, 3, 3), with a gradient.
    """

    vertices: Tensor
    faces: Tensor
    camera: Tensor
    features: Tensor

    def to(self, device: torch.device) -> "View":
        moved = [held.detach().to(device) for held in vars(self).values()]
        return View(moved[0].requires_grad_(), moved[1], moved[2], moved[3].requires_grad_())

    def prepared(self) -> tuple[Tensor, Tensor, Tensor]:
        """(1, F, 3) depths, (1, F, 3, 2) on the image, (1, F) z of the normals."""
        projection = generate_perspective_projection(math.pi / 4).to(self.camera.device)
        corners, image, normals = prepare_vertices(self.vertices, self.faces, projection, camera_transform=self.camera)
        return corners[..., 2], image, normals[..., 2]


def torus_view(rings: int, around: int) -> View:
    """2 * rings * around faces, seen from above at an angle: about a third of the image, with a hole, one side before the other."""
    i, j = torch.meshgrid(torch.arange(rings), torch.arange(around), indexing="ij")
    large, small = 2 * math.pi * j / around, 2 * math.pi * i / rings
    radius = 1 + 0.45 * small.cos()
    vertices = torch.stack([radius * large.cos(), 0.45 * small.sin(), radius * large.sin()], dim=-1).view(-1, 3)

    def number(row: Tensor, column: Tensor) -> Tensor:
        return (row % rings * around + column % around).flatten()

    a, b, c, d = number(i, j), number(i + 1, j), number(i + 1, j + 1), number(i, j + 1)
    faces = torch.cat([torch.stack([a, b, c], dim=1), torch.stack([a, c, d], dim=1)])
    position, up = torch.tensor([[0.5, 2.2, 3.4]]), torch.tensor([[0.0, 1.0, 0.0]])
    camera = generate_transformation_matrix(position, torch.zeros(1, 3), up)
    features = torch.rand(1, len(faces), 3, 3, generator=torch.Generator().manual_seed(0))
    return View(vertices[None].requires_grad_(), faces, camera, features.requires_grad_())


def render_step(view: View, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Features, soft mask and faces of one view, and gradients to vertices and features."""
    z, image, normals = view.prepared()
    features, mask, index = dibr_rasterization(size, size, z, image, view.features, normals)
    view.vertices.grad = view.features.grad = None
    torch.autograd.backward(features.square().sum() + mask.square().sum())
    return features.detach(), mask.detach(), index


def drawn(faces: tuple[Tensor, ...], device: torch.device) -> list[Tensor]:
    """Faces, features, soft mask, and gradients to corners and features, all on the CPU, of what is drawn on a device."""
    z, image, normals, features = (held.detach().to(device) for held in faces)
    image, features = image.requires_grad_(), features.requires_grad_()
    found, mask, index = dibr_rasterization(256, 256, z, image, features, normals)
    gradients = torch.autograd.grad(found.square().sum() + mask.square().sum(), (image, features))
    return [held.detach().cpu() for held in (index, found, mask, *gradients)]


def check_render(device: torch.device) -> None:
    """Faces must be equal in 999 of 1000 pixels, features there to 1e-4, soft masks to 1e-5; gradients, as a whole, to 1 %."""
    view = torus_view(*CHECKED)
    faces = (*view.prepared(), view.features)
    (index, *here), (found_index, *there) = drawn(faces, torch.device("cpu")), drawn(faces, device)
    same = found_index == index
    if same.float().mean() < 0.999:
        raise SystemExit(f"render: {1 - float(same.float().mean()):.2%} of the pixels show another face than on the CPU")
    apart = [float((one[same] - other[same]).abs().max()) for one, other in zip(there[:2], here[:2], strict=True)]
    apart += [float((one - other).norm() / other.norm()) for one, other in zip(there[2:], here[2:], strict=True)]
    names = ("features", "soft mask", "gradient to corners", "gradient to features")
    for name, difference, bound in zip(names, apart, (1e-4, 1e-5, 1e-2, 1e-2), strict=True):
        if difference > bound:
            raise SystemExit(f"render: {name} differ from the CPU by {difference}")
    print("render: equal to the CPU within rounding")


def bench_render(device: torch.device) -> None:
    """Agreement, then times: 512 x 512 pixels and three meshes on a GPU; a small one elsewhere, to try this script."""
    check_render(device)
    on_gpu = device.type == "cuda"
    for segments in TIMED if on_gpu else (CHECKED,):
        view, size = torus_view(*segments).to(device), 512 if on_gpu else 64
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(device)
        spent = milliseconds(partial(render_step, view, size), device, 10)
        memory = torch.cuda.max_memory_allocated(device) / 2**20 if on_gpu else 0.0
        print(f"  {len(view.faces)} faces, {size} x {size}: {spent:.1f} ms forward and backward, {memory:.0f} MiB")
