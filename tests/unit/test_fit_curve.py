"""The losses of a fit against those of a renderer by the book: every face at every pixel, plain autograd."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from scenemill.schemas.fit import FitConfig
from scenemill.trainers.render.fit import Objective
from scenemill.trainers.render.object_views import ViewBatch
from scenemill.trainers.render.templates import atlas, icosphere, load_template
from scenemill.trainers.render.textured_mesh import TexturedMesh
from scenemill.transforms.view_cameras import looking_at

SIZE = 24
STEPS = 20
CONFIG = FitConfig(vertex_lr=5e-3, texture_size=16, boxlen=0.1, sigmainv=1000.0)


def small_mesh(radii: tuple[float, float, float]) -> TexturedMesh:
    ball = icosphere(1)
    uvs = torch.from_numpy(ball.uvs[ball.face_uvs_idx])
    vertices = torch.from_numpy(ball.vertices) * torch.tensor(radii)
    return TexturedMesh(vertices, torch.from_numpy(ball.faces), uvs, CONFIG.texture_size)


def cameras() -> tuple[Tensor, Tensor]:
    """(4, 4, 3) and (4, 3, 1): around the origin."""
    positions = [(0.0, 0.3, 1.6), (1.6, 0.2, 0.1), (-0.4, 0.9, -1.3), (-1.4, -0.5, 0.5)]
    transforms = np.stack([looking_at(np.array(position), np.zeros(3)) for position in positions])
    half = math.tan(math.radians(40) / 2)
    return torch.from_numpy(transforms).float(), torch.tensor([1 / half, 1 / half, -1.0]).view(1, 3, 1).expand(4, -1, -1)


def pixel_centres() -> Tensor:
    """(P, 2): x right and y up, from -1 to 1, row by row from the top."""
    place = (2 * torch.arange(SIZE) + 1 - SIZE) / SIZE
    return torch.stack([place.repeat(SIZE), -place.repeat_interleave(SIZE)], dim=1)


def cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def shown(on_image: Tensor, z: Tensor, front: Tensor) -> tuple[Tensor, Tensor]:
    """(P,) faces, -1 for none, and (P, 3) weights of their corners."""
    corners = on_image[None] - pixel_centres()[:, None, None]  # (P, F, 3, 2)
    weights = torch.stack([cross(corners[:, :, (k + 1) % 3], corners[:, :, (k + 2) % 3]) for k in range(3)], dim=2)
    weights = weights / weights.sum(dim=2, keepdim=True)
    depth = torch.where((weights >= 0).all(dim=2) & front, (weights * z).sum(dim=2), -torch.inf)
    nearest, face = depth.max(dim=1)
    return torch.where(nearest > -torch.inf, face, -1), weights[torch.arange(len(face)), face]


def soft_mask(on_image: Tensor, face: Tensor) -> Tensor:
    """(P,): 1 on the mesh; else by the distance to the outlines of the first faces that are near."""
    centres = pixel_centres()
    low, high = on_image.amin(dim=1) - CONFIG.boxlen, on_image.amax(dim=1) + CONFIG.boxlen
    near = ((centres[:, None] >= low) & (centres[:, None] < high)).all(dim=2)
    near &= near.cumsum(dim=1) <= CONFIG.knum
    squared = []
    for k in range(3):
        start, end = on_image[:, k], on_image[:, (k + 1) % 3]
        along = ((centres[:, None] - start) * (end - start)).sum(dim=2) / (end - start).square().sum(dim=1)
        squared.append((centres[:, None] - start - along.clamp(0, 1)[..., None] * (end - start)).square().sum(dim=2))
    chance = torch.exp(-CONFIG.sigmainv * torch.stack(squared).amin(dim=0)) * near
    return torch.where(face >= 0, 1.0, 1 - (1 - chance).prod(dim=1))


def looked_up(texture: Tensor, uvs: Tensor) -> Tensor:
    """(P, 3): a texture (3, T, T), the first row on top, between the four nearest texels."""
    size = texture.shape[-1]
    x, y = (uvs[:, 0] * size - 0.5).clamp(0, size - 1), ((1 - uvs[:, 1]) * size - 0.5).clamp(0, size - 1)
    left, top = (part.detach().floor().long().clamp(max=size - 2) for part in (x, y))
    across, down = x - left, y - top
    rows = [texture[:, top + j, left] * (1 - across) + texture[:, top + j, left + 1] * across for j in (0, 1)]
    return (rows[0] * (1 - down) + rows[1] * down).T


def by_the_book(mesh: TexturedMesh, views: ViewBatch, initial: Tensor) -> Tensor:
    """The loss of a step."""
    box = (mesh.vertices.amin(dim=0) + mesh.vertices.amax(dim=0)) / 2
    world = mesh.vertices - box + mesh.shift
    images, masks = [], []
    for transform, projection in zip(views.camera_transform, views.camera_projection, strict=True):
        camera = world @ transform[:3] + transform[3]
        scaled = camera * projection[:, 0]
        corners, on_image = camera[mesh.faces], (scaled[:, :2] / scaled[:, 2:])[mesh.faces]
        normals = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        face, weights = shown(on_image, corners[..., 2].detach(), normals[:, 2] >= 0)
        uvs = (weights[..., None] * mesh.face_uvs[face]).sum(dim=1)
        images.append(torch.where((face >= 0)[:, None], looked_up(mesh.texture[0], uvs).clamp(0, 1), 0.0))
        masks.append(soft_mask(on_image, face))
    image, mask = torch.stack(images).view_as(views.image), torch.stack(masks).view_as(views.mask)
    both = (mask * views.mask).sum(dim=(1, 2))
    iou = both / ((mask + views.mask).sum(dim=(1, 2)) - both)
    moved = mesh.vertices - initial
    edges = torch.cat([mesh.faces[:, [0, 1]], mesh.faces[:, [1, 2]], mesh.faces[:, [2, 0]]])
    joined = torch.zeros(len(moved), len(moved))
    joined[edges[:, 0], edges[:, 1]] = joined[edges[:, 1], edges[:, 0]] = 1.0
    uneven = joined @ moved / joined.sum(dim=1, keepdim=True) - moved
    return 0.1 * (image - views.image).abs().mean() + (1 - iou.mean()) + 0.03 * uneven.square().sum()


def curve(mesh: TexturedMesh, views: ViewBatch, loss_of: object) -> list[float]:
    shape = {"params": [mesh.vertices, mesh.shift], "lr": CONFIG.vertex_lr}
    optimizer = torch.optim.Adam([shape, {"params": [mesh.texture], "lr": CONFIG.texture_lr}])
    losses = []
    for _ in range(STEPS):
        loss = loss_of(mesh, views)  # type: ignore[operator]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def test_the_first_losses_are_those_of_a_renderer_by_the_book() -> None:
    transform, projection = cameras()
    target = small_mesh((0.5, 0.3, 0.4))
    with torch.no_grad():
        target.texture.copy_(torch.rand(target.texture.shape, generator=torch.Generator().manual_seed(0)))
        truth = target(transform, projection, (SIZE, SIZE))
    views = ViewBatch(truth.image, truth.covered.float(), transform, projection)
    ours, plain = small_mesh((0.35, 0.35, 0.35)), small_mesh((0.35, 0.35, 0.35))
    initial = plain.vertices.detach().clone()
    expected = curve(plain, views, lambda mesh, held: by_the_book(mesh, held, initial))
    assert curve(ours, views, Objective(CONFIG, ours)) == pytest.approx(expected, rel=0.02)
    assert expected[-1] < 0.7 * expected[0]


def test_unseen_texels_take_the_colour_of_the_nearest_seen_one() -> None:
    mesh = small_mesh((1.0, 1.0, 1.0))
    with torch.no_grad():
        mesh.texture[0, :, 3, 4] = torch.tensor([0.2, 0.4, 1.5])
        mesh.texture[0, :, 12, 12] = torch.tensor([0.0, 0.0, 0.0])
    finished = mesh.finished_texture()
    assert finished[3, 4].tolist() == finished[0, 0].tolist() == pytest.approx([0.2, 0.4, 1.0])
    assert finished[15, 15].tolist() == finished[12, 12].tolist() == [0.0, 0.0, 0.0]


def test_faces_of_an_atlas_do_not_touch() -> None:
    uvs, corners = atlas(31)
    triangles = uvs[corners]
    low, high = triangles.min(axis=1), triangles.max(axis=1)
    assert uvs.min() > 0 and uvs.max() < 1
    middle = triangles.mean(axis=1)
    for face in range(31):
        others = np.delete(np.arange(31), face)
        inside = ((middle[others] > low[face]) & (middle[others] < high[face])).all(axis=1)
        assert inside.sum() <= 1  # the other half of its square, whose middle is in the box and not in the triangle
    first, second = (triangles[:, k] - triangles[:, 0] for k in (1, 2))
    areas = np.abs(first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0])
    assert areas == pytest.approx(areas[0], rel=1e-4)


def test_a_template_without_texture_coordinates_gets_some(tmp_path: Path) -> None:
    path = tmp_path / "tetrahedron.obj"
    path.write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nf 1 3 2\nf 1 2 4\nf 1 4 3\nf 2 3 4\n")
    template = load_template(str(path))
    assert template.vertices.shape == (4, 3) and template.faces.tolist() == [[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]]
    assert template.face_uvs_idx.shape == (4, 3) and len(template.uvs) == 12
