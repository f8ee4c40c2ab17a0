"""Made-up views of an object: a made-up object or a mesh file, rendered into a folder that ``ingest`` takes."""

from pathlib import Path
from typing import TYPE_CHECKING, Final

from scenemill.pipelines.progress import OnProgress, no_progress
from scenemill.schemas.errors import ConfigError
from scenemill.schemas.fields import VIEWS
from scenemill.transforms.view_objects import OBJECTS, make_object, write_obj
from scenemill.transforms.worlds import WorldSummary

if TYPE_CHECKING:
    from scenemill.trainers.surface_mesh import SurfaceMesh

TRUTH: Final = "truth"
"""Folder beside the views that holds the made-up object itself, as OBJ with its texture."""

MESH_ENDINGS: Final = (".obj", ".usd", ".usda", ".usdc", ".usdz", ".glb", ".gltf")


def synth_views(
    out: Path,
    shown: str,
    *,
    views: int = 100,
    size: int = 256,
    radius: float | None = None,
    elevation: tuple[float, float] = (-30.0, 60.0),
    seed: int = 0,
    on_progress: OnProgress = no_progress,
) -> WorldSummary:
    """Render views of an object from cameras around it; the same arguments give the same bytes.

    Args:
        out: folder to write, new or empty.
        shown: one of ``OBJECTS``, which is also written to ``truth/``; or a mesh file.
        views, size, radius, elevation, seed: as in ``trainers.view_worlds.Shots``.
        on_progress: told how far it is.

    Raises:
        ConfigError: no such object or file, an argument out of its range, or ``out`` has something in it.
    """
    from scenemill.trainers.view_worlds import Shots, show_mesh, show_object, write_views

    shots = Shots(views, size, radius, elevation, seed)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists and is not an empty folder. Name a new folder, or remove this one first.")
    if Path(shown).suffix.lower() in MESH_ENDINGS:
        mesh, name = show_mesh(_read_mesh(Path(shown))), Path(shown).name
    else:
        made = make_object(shown)
        mesh, name = show_object(made), write_obj(made, out / TRUTH, shown).name
    out.mkdir(parents=True, exist_ok=True)
    write_views(mesh, out, shots, name, lambda done, total: on_progress("Rendering views", done, total))
    sizes = [path.stat().st_size for path in out.rglob("*") if path.is_file()]
    return WorldSummary(VIEWS, 1, views, len(sizes), sum(sizes))


def _read_mesh(path: Path) -> "SurfaceMesh":
    from scenemill.trainers.mesh_files import import_mesh

    if not path.is_file():
        raise ConfigError(f"object {path}: no such file; give a mesh file, or one of {', '.join(OBJECTS)}")
    mesh = import_mesh(path, triangulate=True)
    if mesh is None:
        raise ConfigError(f"object {path}: no mesh in it; give a file with one")
    return mesh
