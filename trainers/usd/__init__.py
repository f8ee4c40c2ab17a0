"""USD files: what viewers and Kaolin read. The one home of usd-core, which is imported where it is needed.

Meshes, point clouds, voxel grids and materials go in and out by functions that have the names and arguments of Kaolin's ``io.usd``.
"""

from scenemill.trainers.surface_mesh import SurfaceMesh as SurfaceMesh
from scenemill.trainers.usd.material_io import export_material as export_material
from scenemill.trainers.usd.material_io import import_material as import_material
from scenemill.trainers.usd.materials import PBRMaterial as PBRMaterial
from scenemill.trainers.usd.mesh_export import add_mesh as add_mesh
from scenemill.trainers.usd.mesh_export import export_mesh as export_mesh
from scenemill.trainers.usd.mesh_export import export_meshes as export_meshes
from scenemill.trainers.usd.mesh_import import get_mesh_scene_paths as get_mesh_scene_paths
from scenemill.trainers.usd.mesh_import import import_mesh as import_mesh
from scenemill.trainers.usd.mesh_import import import_meshes as import_meshes
from scenemill.trainers.usd.pointcloud_io import add_pointcloud as add_pointcloud
from scenemill.trainers.usd.pointcloud_io import export_pointcloud as export_pointcloud
from scenemill.trainers.usd.pointcloud_io import export_pointclouds as export_pointclouds
from scenemill.trainers.usd.pointcloud_io import get_pointcloud_bracketing_time_samples as get_pointcloud_bracketing_time_samples
from scenemill.trainers.usd.pointcloud_io import get_pointcloud_scene_paths as get_pointcloud_scene_paths
from scenemill.trainers.usd.pointcloud_io import import_pointcloud as import_pointcloud
from scenemill.trainers.usd.pointcloud_io import import_pointclouds as import_pointclouds
from scenemill.trainers.usd.pointcloud_io import pointcloud_return_type as pointcloud_return_type
from scenemill.trainers.usd.polygons import MESH_PATH as MESH_PATH
from scenemill.trainers.usd.polygons import SUFFIXES as SUFFIXES
from scenemill.trainers.usd.polygons import Polygons as Polygons
from scenemill.trainers.usd.polygons import panoptic_polygons as panoptic_polygons
from scenemill.trainers.usd.polygons import to_usd as to_usd
from scenemill.trainers.usd.polygons import write_mesh as write_mesh
from scenemill.trainers.usd.stages import create_stage as create_stage
from scenemill.trainers.usd.stages import get_authored_time_samples as get_authored_time_samples
from scenemill.trainers.usd.stages import get_local_to_world_transform as get_local_to_world_transform
from scenemill.trainers.usd.stages import get_scene_paths as get_scene_paths
from scenemill.trainers.usd.stages import set_local_to_world_transform as set_local_to_world_transform
from scenemill.trainers.usd.subsets import add_subset as add_subset
from scenemill.trainers.usd.subsets import import_subsets as import_subsets
from scenemill.trainers.usd.triangulate import NonHomogeneousMeshError as NonHomogeneousMeshError
from scenemill.trainers.usd.triangulate import (
    heterogeneous_mesh_handler_naive_homogenize as heterogeneous_mesh_handler_naive_homogenize,
)
from scenemill.trainers.usd.triangulate import heterogeneous_mesh_handler_skip as heterogeneous_mesh_handler_skip
from scenemill.trainers.usd.triangulate import mesh_handler_naive_triangulate as mesh_handler_naive_triangulate
from scenemill.trainers.usd.voxelgrid_io import add_voxelgrid as add_voxelgrid
from scenemill.trainers.usd.voxelgrid_io import export_voxelgrid as export_voxelgrid
from scenemill.trainers.usd.voxelgrid_io import export_voxelgrids as export_voxelgrids
from scenemill.trainers.usd.voxelgrid_io import import_voxelgrid as import_voxelgrid
from scenemill.trainers.usd.voxelgrid_io import import_voxelgrids as import_voxelgrids
