"""The true surface of a stored sample as a mesh file, coloured by class."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from scenemill.schemas.errors import ConfigError
from scenemill.transforms.geometry import camera_index, voxel_size_m
from scenemill.transforms.meshes import PanopticMesh, panoptic_mesh, upright
from scenemill.transforms.store import Store

_FIELDS: Final = ("geometry", "semantic_3d", "instance_3d", "intrinsics")
_INSTANCES: Final = 1 << 16  # an instance id is below it


@dataclass(frozen=True)
class MeshExport:
    """What was written.

    Attributes:
        out: the file.
        key: the sample.
        vertices, faces: how many.
        size_byte: of the file.
    """

    out: str
    key: str
    vertices: int
    faces: int
    size_byte: int


def sample_mesh(store: Store, key: str, iso: float = 1.0) -> PanopticMesh:
    """The shell ``iso`` voxels around every surface of a sample, with classes and segments.

    Args:
        store: of rooms.
        key: ``scene/image``.
        iso: voxels, above 0; a distance has no sign, so each surface is a shell, twice as thick.

    Returns:
        Upright in the camera's frame: X right, Y up, Z towards the viewer, metres. A segment's id is its class times 65 536, plus the
        instance id.

    Raises:
        ConfigError: no such sample, no volumes, or an ``iso`` that is none.
        Corrupt: the store is damaged there.
    """
    facts = store.facts(key)
    if lacking := [name for name in _FIELDS if name not in facts["fields"]]:
        raise ConfigError(f"sample {key!r} has no field {', '.join(lacking)}; a surface is cut from the volumes of rooms")
    sample = store.read(key, _FIELDS)
    segments = sample["semantic_3d"].astype(np.int32) * _INSTANCES + sample["instance_3d"]
    size = facts["image_width_pixel"], facts["image_height_pixel"]
    mesh = panoptic_mesh(
        sample["geometry"],
        segments,
        {segment: segment // _INSTANCES for segment in np.unique(segments).tolist() if segment >= _INSTANCES},
        iso=iso,
        voxel_m=voxel_size_m(store.layout.grid),
        centre=camera_index(store.layout.source, sample["intrinsics"], size, store.layout.grid),
        labels=store.layout.labels,
    )
    return upright(mesh)


def export_mesh(store: Store, key: str, out: Path, iso: float = 1.0) -> MeshExport:
    """Write a sample's surface as PLY, glTF or USD, by the suffix of the file's name, whole or not at all.

    Args:
        store, key, iso: see ``sample_mesh``.
        out: see ``trainers.panoptic_files.write_panoptic``; a file that is there is replaced.

    Raises:
        ConfigError: see ``sample_mesh``; another suffix; no surface in the volume.
        Corrupt: the store is damaged there.
    """
    from scenemill.trainers.panoptic_files import SUFFIXES, write_panoptic

    if out.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"{out}: no mesh is written to {out.suffix or 'a file without a suffix'}; give {', '.join(SUFFIXES)}")
    mesh = sample_mesh(store, key, iso)
    if not len(mesh.faces):
        raise ConfigError(f"sample {key!r}: no distance is below {iso:g} voxels, so there is no surface; give a larger --iso")
    write_panoptic(out, mesh, store.layout.labels)
    return MeshExport(str(out), key, len(mesh.vertices), len(mesh.faces), out.stat().st_size)
