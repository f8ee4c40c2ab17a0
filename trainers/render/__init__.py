"""Differentiable rendering of meshes by DIB-R, on CPU and CUDA, in plain PyTorch.

Cameras, rasterisation, soft masks, textures, and the losses that bend a mesh to its views. Functions that are also in Kaolin's
``render.camera``, ``render.mesh``, ``metrics``, ``ops.mesh`` and ``ops.pointcloud`` have its names and arguments; the others are ours.
"""

from scenemill.trainers.render.camera import generate_perspective_projection as generate_perspective_projection
from scenemill.trainers.render.camera import generate_rotate_translate_matrices as generate_rotate_translate_matrices
from scenemill.trainers.render.camera import generate_transformation_matrix as generate_transformation_matrix
from scenemill.trainers.render.camera import perspective_camera as perspective_camera
from scenemill.trainers.render.camera import rotate_translate_points as rotate_translate_points
from scenemill.trainers.render.dibr import dibr_rasterization as dibr_rasterization
from scenemill.trainers.render.image_quality import psnr as psnr
from scenemill.trainers.render.image_quality import ssim as ssim
from scenemill.trainers.render.losses import average_edge_length as average_edge_length
from scenemill.trainers.render.losses import flatness_loss as flatness_loss
from scenemill.trainers.render.losses import image_loss as image_loss
from scenemill.trainers.render.losses import laplacian_loss as laplacian_loss
from scenemill.trainers.render.losses import mask_iou as mask_iou
from scenemill.trainers.render.losses import uniform_laplacian_smoothing as uniform_laplacian_smoothing
from scenemill.trainers.render.mesh_operators import adjacency_matrix as adjacency_matrix
from scenemill.trainers.render.mesh_operators import center_points as center_points
from scenemill.trainers.render.mesh_operators import edge_to_faces as edge_to_faces
from scenemill.trainers.render.mesh_operators import face_normals as face_normals
from scenemill.trainers.render.mesh_operators import index_vertices_by_faces as index_vertices_by_faces
from scenemill.trainers.render.mesh_operators import uniform_laplacian as uniform_laplacian
from scenemill.trainers.render.point_distance import chamfer_distance as chamfer_distance
from scenemill.trainers.render.point_distance import sided_distance as sided_distance
from scenemill.trainers.render.prepare import prepare_vertices as prepare_vertices
from scenemill.trainers.render.rasterization import rasterize as rasterize
from scenemill.trainers.render.soft_mask import dibr_soft_mask as dibr_soft_mask
from scenemill.trainers.render.surface_distance import sample_surface as sample_surface
from scenemill.trainers.render.surface_distance import surface_distance as surface_distance
from scenemill.trainers.render.texture import texture_mapping as texture_mapping
