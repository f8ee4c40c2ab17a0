"""USD files: what viewers and Kaolin read. The one home of usd-core, which is imported where it is needed."""

from scenemill.trainers.usd.polygons import MESH_PATH as MESH_PATH
from scenemill.trainers.usd.polygons import SUFFIXES as SUFFIXES
from scenemill.trainers.usd.polygons import Polygons as Polygons
from scenemill.trainers.usd.polygons import panoptic_polygons as panoptic_polygons
from scenemill.trainers.usd.polygons import to_usd as to_usd
from scenemill.trainers.usd.polygons import write_mesh as write_mesh
