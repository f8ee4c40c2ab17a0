# %% [markdown]
# # A textured mesh from images, by differentiable rendering
#
# A sphere is bent and painted until it looks like an object in every one of its views. The renderer is DIB-R: inside the silhouette
# its pixels have gradients to textures and vertices, outside they have a soft mask that pulls vertices to where the object should be.
#
# This is the way of Kaolin's DIB-R tutorial, on the CPU or a GPU. `scenemill fit` does the same with resume, metrics and files; here every
# step is in plain sight. Run it as a script, or cell by cell:
#
#     python examples/dibr_tutorial.py --views 24 --size 64 --epochs 8

# %%
import argparse
from pathlib import Path

import torch

from scenemill import IngestConfig, Timelapse, ingest, open_store
from scenemill.pipelines.synth import synth_views
from scenemill.trainers.render import (
    center_points,
    dibr_rasterization,
    image_loss,
    laplacian_loss,
    mask_iou,
    prepare_vertices,
    texture_mapping,
    uniform_laplacian,
)
from scenemill.trainers.render.object_views import ObjectViews
from scenemill.trainers.render.templates import icosphere
from scenemill.trainers.usd import PBRMaterial

parser = argparse.ArgumentParser()
parser.add_argument("--out", type=Path, default=Path("tutorial"))
parser.add_argument("--views", type=int, default=50)
parser.add_argument("--size", type=int, default=96)
parser.add_argument("--epochs", type=int, default=20)
settings, _ = parser.parse_known_args()
device = "cuda" if torch.cuda.is_available() else "cpu"

# %% [markdown]
# ## 1. Views
#
# Images, masks and cameras of an object. Here they are rendered from a made-up clock; a folder of your own in the same form, or images with
# poses in the form of NeRF's Blender scenes (`scenemill convert-views`), are read the same way. Ingesting checks them: a camera that does
# not see the object, a mask of another size or an image that is there twice is told now, not after an hour of fitting.

# %%
raw, store = settings.out / "clock", settings.out / "store"
if not raw.exists():
    synth_views(raw, "clock", views=settings.views, size=settings.size)
ingest(IngestConfig("views", raw, store), lambda doing, done, total: None)
opened = open_store(store)
views = ObjectViews(opened, tuple(opened.keys))
print(f"{len(views)} views of {views.size[1]} x {views.size[0]} pixels")

# %% [markdown]
# ## 2. What is learned
#
# The vertices of a sphere of 1 280 triangles, where its middle is, and a texture that starts white. The triangles stay as they are, and
# each keeps its place in the texture. Files have v down; the renderer wants v up.

# %%
template = icosphere()
faces = torch.from_numpy(template.faces).to(device)
uvs = torch.from_numpy(template.uvs).to(device)
face_uvs = torch.stack([uvs[:, 0], 1 - uvs[:, 1]], dim=1)[torch.from_numpy(template.face_uvs_idx).to(device)]

initial = 0.375 * torch.from_numpy(template.vertices).to(device)[None]
vertices = initial.clone().requires_grad_()
shift = torch.zeros(3, device=device, requires_grad=True)
texture = torch.ones(1, 3, 200, 200, device=device, requires_grad=True)
laplacian = uniform_laplacian(initial.shape[1], faces, sparse=True)

shape = torch.optim.Adam([vertices, shift], lr=5e-4)
paint = torch.optim.Adam([texture], lr=5e-2)
schedules = [torch.optim.lr_scheduler.StepLR(held, step_size=20, gamma=0.5) for held in (shape, paint)]

# %% [markdown]
# ## 3. Rendering
#
# Vertices go to the cameras and onto their image planes; the rasteriser says for each pixel where in the texture it is, and a mask that
# is 1 where the mesh is at all; the texture is looked up there.


# %%
def render(moved: torch.Tensor, transform: torch.Tensor, projection: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (B, H, W, 3) and soft masks (B, H, W) of the mesh."""
    batch = len(transform)
    corners, on_image, normals = prepare_vertices(moved.expand(batch, -1, -1), faces, projection, camera_transform=transform)
    features = [part.expand(batch, -1, -1, -1) for part in (face_uvs, torch.ones_like(face_uvs[..., :1]))]
    found, soft_mask, _ = dibr_rasterization(*views.size, corners[..., 2], on_image, features, normals[..., 2])
    colors = texture_mapping(found[0], texture.expand(batch, -1, -1, -1), "bilinear")
    return (colors * found[1]).clamp(0, 1), soft_mask


# %% [markdown]
# ## 4. The fit
#
# Images should agree, masks should agree, and neighbours should move together. After every epoch the mesh is written as a 3D checkpoint.

# %%
log = Timelapse(settings.out / "logs")
log.add_mesh_batch(0, "optimized_mesh", [initial[0]], [faces], [template.uvs], [template.face_uvs_idx])
losses: list[float] = []  # of each epoch, the mean over its steps
for epoch in range(settings.epochs):
    order = views.order(0, epoch).tolist()
    steps = []
    for start in range(0, len(order), 2):
        view = views.read(order[start : start + 2], device)
        moved = center_points(vertices) + shift
        image, soft_mask = render(moved, view.camera_transform, view.camera_projection)
        loss = (
            0.1 * image_loss(image, view.image)
            + 1.0 * mask_iou(soft_mask, view.mask)
            + 0.03 * laplacian_loss(vertices, initial, laplacian)
        )
        for optimizer in (shape, paint):
            optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        for optimizer in (shape, paint):
            optimizer.step()
        steps.append(float(loss.detach()))
    for schedule in schedules:
        schedule.step()
    losses.append(sum(steps) / len(steps))
    print(f"epoch {epoch + 1}: loss {losses[-1]:.4f}")
    painted = {"rgb": PBRMaterial(diffuse_texture=texture[0].detach().clamp(0, 1))}
    log.add_mesh_batch(epoch + 1, "optimized_mesh", [moved[0]], materials_list=[painted])

# %% [markdown]
# ## 5. Looking at it
#
#     scenemill view tutorial
#
# shows the mesh over the epochs beside the views. `scenemill fit views tutorial/store --out fit` goes the same way with held-out views,
# metric tables, resume after a kill, and the mesh as OBJ and USD.

# %%
print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}; see it with: scenemill view {settings.out}")
