"""OBJ and MTL files, in and out.

Meshes are ``SurfaceMesh``; the functions that read have the names and arguments of Kaolin's ``io.obj``.
"""

from scenemill.trainers.obj.assignments import process_materials_and_assignments as process_materials_and_assignments
from scenemill.trainers.obj.errors import MaterialError as MaterialError
from scenemill.trainers.obj.errors import MaterialFileError as MaterialFileError
from scenemill.trainers.obj.errors import MaterialLoadError as MaterialLoadError
from scenemill.trainers.obj.errors import MaterialNotFoundError as MaterialNotFoundError
from scenemill.trainers.obj.errors import create_missing_materials_error_handler as create_missing_materials_error_handler
from scenemill.trainers.obj.errors import default_error_handler as default_error_handler
from scenemill.trainers.obj.errors import ignore_error_handler as ignore_error_handler
from scenemill.trainers.obj.errors import skip_error_handler as skip_error_handler
from scenemill.trainers.obj.mtl import load_mtl as load_mtl
from scenemill.trainers.obj.mtl import to_pbr as to_pbr
from scenemill.trainers.obj.reading import import_mesh as import_mesh
from scenemill.trainers.obj.writing import export_mesh as export_mesh
