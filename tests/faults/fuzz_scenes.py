"""Fuzz targets: meshes, scenes and logs of 3D checkpoints.

USD is read by usd-core, which may end its process over a damaged file; so it is read as the viewer reads it, in a child, whose end is an
error like any other. What the child runs is not seen by the coverage of this process.
"""

import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from scenemill.pipelines.viewer.reading import UsdReader
from scenemill.schemas.errors import ConfigError, SceneMillError, SourceError
from scenemill.trainers import gltf, obj
from scenemill.trainers.surface_mesh import SurfaceMesh
from scenemill.trainers.timelapse import Timelapse
from scenemill.trainers.timelapse_parser import LABELS_FILE, TYPES, TimelapseParser, read_labels
from scenemill.trainers.usd.items import Summary, read_item, summarise
from scenemill.trainers.usd.triangulate import NonHomogeneousMeshError
from tests.faults.fuzz_raw import picture
from tests.faults.fuzz_target import SECRET, FuzzTarget, part, parted, right

_POINTS: Final = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float32)
_FACES: Final = np.array([[0, 1, 2], [0, 1, 3]])


def _check_mesh(mesh: SurfaceMesh) -> None:
    vertices, faces = mesh.vertices, mesh.faces
    right(vertices.ndim == 2 and vertices.shape[1] == 3 and vertices.dtype == torch.float32, f"vertices {tuple(vertices.shape)}")
    right(bool(torch.isfinite(vertices).all()), "vertices that are not finite")
    right(faces.ndim == 2 and faces.dtype == torch.int64, f"faces {tuple(faces.shape)}")
    right(not faces.numel() or (int(faces.min()) >= 0 and int(faces.max()) < len(vertices)), "faces of no vertices")
    assigned, materials = mesh.material_assignments, mesh.materials
    if assigned is not None and assigned.numel():
        right(int(assigned.min()) >= -1 and int(assigned.max()) < len(materials or []), "faces of no material")


def obj_mesh(folder: Path) -> FuzzTarget:
    """An OBJ file and its MTL file."""
    home = folder / "meshes"
    (home / "below").mkdir(parents=True)
    (home / "paint.png").write_bytes(picture("PNG", "RGB", (2, 2)))
    (folder / "secret.png").write_bytes(picture("PNG", "RGB", (3, 3)))
    (folder / "secret.mtl").write_bytes(b"newmtl secret\nKd 1 0 0\n")
    (home / "link").symlink_to(folder)

    def read(data: bytes) -> None:
        mesh_text, material_text = part(data, 2)
        (home / "mesh.obj").write_bytes(mesh_text)
        (home / "mesh.mtl").write_bytes(material_text)
        for raw in (False, True):
            mesh = obj.import_mesh(home / "mesh.obj", True, True, triangulate=True, raw_materials=raw)
            assert mesh is not None
            _check_mesh(mesh)
        assert mesh is not None
        images = [one for material in mesh.materials or [] for one in material.values() if isinstance(one, torch.Tensor)]
        right(all(one.shape[:2] == (2, 2) for one in images if one.ndim == 3), "an image from outside of the folder")
        right(all(material.get("material_name") != "secret" for material in mesh.materials or []), "a material from outside")

    mesh_text = b"mtllib mesh.mtl\nv 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nvt 0 0\nvt 1 1\nvn 0 0 1\nusemtl red\nf 1/1/1 2/2/1 3/1/1\n"
    mesh_text += b"f -1 -2 -3\n"
    quads = b"v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nvt 0 0\nvn 0 0 1\nusemtl red\nf 1 2 3 4\nf 1//1 2//1 \\\n 3//1\n"
    material_text = (
        b"newmtl red\nKd 1 0 0\nKs 0 0 0\nPr 0.5\nd 0.3\nmap_Kd -s 1 1 1 paint.png\nmap_Pm -imfchan r paint.png\nillum 2\n"
    )
    words = (
        *(
            b"v ",
            b"vt ",
            b"vn ",
            b"f ",
            b"usemtl ",
            b"mtllib ",
            b"newmtl ",
            b"Kd ",
            b"map_Kd ",
            b"bump -bm 1 ",
            b"disp ",
            b"Pr ",
            b"-o 1 1 1 ",
            b"-imfchan m ",
        ),
        *(
            b"\\\n",
            b"#",
            b"1/1/1",
            b"1//1",
            b"1/2/",
            b"-1/-1/-1",
            b"nan",
            b"inf",
            b"1e40",
            b"../secret.png",
            b"../secret.mtl",
            b"link/secret.mtl",
            b"/etc/passwd",
        ),
        *(
            b"mesh.mtl",
            b"paint.png",
            b"\xef\xbb\xbf",
            b"\0",
            b"\x85",
            b"\xe2\x80\xa8",
            b"\x1c",
            b"\xd9\xa1",
            b"1_0",
            b"refl",
            b"map_d ",
            b"d ",
            b"Ka spectral a.rfl 1",
        ),
    )
    seeds = (parted((mesh_text, material_text)), quads, parted((mesh_text.replace(b"mesh.mtl", b"../secret.mtl"), material_text)))
    refusals = (SourceError, NonHomogeneousMeshError) if issubclass(NonHomogeneousMeshError, SceneMillError) else (SourceError,)
    return FuzzTarget("obj", seeds, read, refusals, words, 1024, warns=True)


def gltf_mesh(folder: Path) -> FuzzTarget:
    """A glTF file, binary or in JSON."""
    home = folder / "meshes"
    home.mkdir()
    (folder / "secret.bin").write_bytes(SECRET * 8)
    mesh = SurfaceMesh(torch.from_numpy(_POINTS), torch.from_numpy(_FACES))
    gltf.export_mesh(home / "whole.glb", mesh)
    whole = (home / "whole.glb").read_bytes()
    (home / "whole.glb").unlink()
    length = int.from_bytes(whole[12:16], "little")
    document, binary = json.loads(whole[20 : 20 + length]), whole[28 + length :]
    (home / "data.bin").write_bytes(binary)
    document["buffers"] = [{"byteLength": len(binary), "uri": "data.bin"}]
    text = json.dumps(document).encode()

    def read(data: bytes) -> None:
        path = home / ("mesh.glb" if data[:4] == b"glTF" else "mesh.gltf")
        path.write_bytes(data)
        found = gltf.import_mesh(path)
        if found is not None:
            _check_mesh(found)

    names = (
        b"accessors",
        b"bufferViews",
        b"byteLength",
        b"byteOffset",
        b"byteStride",
        b"componentType",
        b"count",
        b"type",
        b"mode",
        b"nodes",
        b"children",
    )
    words = tuple(
        b'"' + name + b'": '
        for name in (*names, b"mesh", b"matrix", b"scale", b"rotation", b"uri", b"sparse", b"materials", b"images", b"extensions")
    )
    more = (
        b'"../secret.bin"',
        b'"data:;base64,AAAA"',
        b'"http://example.com/x"',
        b'"/etc/passwd"',
        b"[0]",
        b"[[0]]",
        b"{}",
        b'"VEC3"',
        b"5126",
        b"-1",
        b'"SCALAR"',
    )
    return FuzzTarget(
        "gltf", (text, whole, text.replace(b"data.bin", b"../secret.bin")), read, (SourceError,), words + more, 2048, warns=True
    )


def log_labels(folder: Path) -> FuzzTarget:
    """The labels of a log."""
    path = folder / LABELS_FILE

    def read(data: bytes) -> None:
        path.write_bytes(data)
        for number, (name, color) in read_labels(folder).items():
            right(isinstance(number, int) and isinstance(name, str), f"{number!r} {name!r}")
            right(color is None or (len(color) == 3 and all(isinstance(one, float) for one in color)), f"{color!r}")

    seed = json.dumps(
        {"labels": [{"id": 1, "name": "wall", "color": [0.1, 0.2, 1]}, {"id": 2, "name": "bed", "color": None}]}
    ).encode()
    words = (
        b'"labels": ',
        b'"id": ',
        b'"name": ',
        b'"color": ',
        b"null",
        b"1e999",
        b"1" * 400,
        b"[",
        b"{",
        b'"',
        b"[" * 60,
        b"NaN",
        b"\\ud800",
        b"{}",
        b"[]",
        b'""',
    )
    return FuzzTarget("log_labels", (seed,), read, (SourceError,), words, 512)


def log_names(folder: Path) -> FuzzTarget:
    """The names of the files of a log, one a line; what the files hold is not looked at."""
    made = folder / "log"
    made.mkdir()
    logging.getLogger("scenemill").setLevel(logging.CRITICAL)  # files of other names are told, a line each

    def describe(path: Path) -> Summary:
        return Summary([0.0, 5.0], ["colors"])

    def read(data: bytes) -> None:
        with _named(made, data.split(b"\n")[:6]):
            parser = TimelapseParser(made, describe)
            right(set(parser.dir_info) == set(TYPES), "types")
            for (kind, category, number), path in parser.filepaths.items():
                right(kind in TYPES and number >= 0 and ".." not in category.split("/"), f"{kind} {category} {number}")
                right(Path(path).is_relative_to(made), path)
                right(parser.get_category_info(kind, category) is not None, category)

    seeds = (b"mesh_0.usd\npointcloud_1.usd", b"a/b/voxelgrid_17.usd\na/mesh_00.usd\na/mesh_0.usd", b".hidden/mesh_1.usd\nmesh.usd")
    words = (
        b"mesh_",
        b"pointcloud_",
        b"voxelgrid_",
        b".usd",
        b"/",
        b"0",
        b"9" * 30,
        b"9" * 4400,
        b"\xff",
        b"..",
        b".",
        b"\xd9\xa1",
        b" ",
        b"\n",
        b"-1",
        b"\xe2\x80\xae",
    )
    return FuzzTarget("log_names", seeds, read, (SourceError,), words, 256, light=60)


@contextmanager
def _named(home: Path, names: list[bytes]) -> Iterator[None]:
    """Empty files of these names, those that can be."""
    shutil.rmtree(home)
    home.mkdir()
    for name in names:
        path = home / os.fsdecode(name).lstrip("/")
        if name and b"\0" not in name and b".." not in name.split(b"/"):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
            except OSError:
                continue
    yield


def _usd(name: str, suffix: str) -> Callable[[Path], FuzzTarget]:
    def make(folder: Path) -> FuzzTarget:
        (folder / "textures").mkdir()
        (folder.parent / "secret.usda").write_text(f'#usda 1.0\ndef Mesh "{SECRET.decode()}" {{}}\n')
        path, reader = folder / f"mesh_0{suffix}", UsdReader(limit_s=5.0, limit_byte=1 << 30)

        def read(data: bytes) -> None:
            path.write_bytes(data)
            summary = reader.ask(summarise, path)
            right(summary.times == sorted(summary.times), "times that are not sorted")
            for kind in TYPES:
                for prim in reader.ask(read_item, path, kind, 0.0, False, True):
                    right(SECRET.decode() not in str(prim.path), "a prim from outside")
                    _check_prim(prim)

        return FuzzTarget(
            name, tuple(_usd_seeds(folder, suffix)), read, (SourceError, ConfigError), _USD_WORDS, 4096, asks=True, light=3
        )

    return make


def _check_prim(prim: Any) -> None:
    transform = np.asarray(prim.transform)
    right(transform.shape == (4, 4), f"transform {transform.shape}")


def _usd_seeds(folder: Path, suffix: str) -> list[bytes]:
    from pxr import Sdf

    where = folder / "made"
    with Timelapse(where) as writer:
        for time in (0, 10):
            writer.add_mesh_batch(
                time, "m", vertices_list=[torch.from_numpy(_POINTS + time)], faces_list=[torch.from_numpy(_FACES)]
            )
            writer.add_pointcloud_batch(time, "p", [_POINTS], colors=[np.zeros((4, 3), np.uint8)])
            writer.add_voxelgrid_batch(time, "v", [np.eye(2, dtype=bool)[None]])
    found = []
    for path in sorted(where.rglob("*.usd")):
        layer = Sdf.Layer.FindOrOpen(str(path))
        out = folder / f"seed{suffix}"
        layer.Export(str(out))
        found.append(out.read_bytes())
        out.unlink()
    return [re.sub(rb"\n\s*\n", b"\n", one) if suffix == ".usda" else one for one in found]


_USD_WORDS: Final = (
    *(
        b"#usda 1.0\n",
        b"def Mesh ",
        b'"',
        b"{",
        b"}",
        b"(",
        b")",
        b"[",
        b"]",
        b"point3f[] points = ",
        b"int[] faceVertexCounts = ",
        b"int[] faceVertexIndices = ",
    ),
    *(
        b".timeSamples = {",
        b"subLayers = [@../secret.usda@]",
        b"references = @../secret.usda@",
        b"payload = ",
        b"@./a.usd[b]@",
        b"rel material:binding = </a>",
        b"custom ",
    ),
    *(
        b"variantSet ",
        b"over ",
        b"class ",
        b"instanceable = true",
        b"matrix4d xformOp:transform = ",
        b"uniform token[] xformOpOrder = ",
        b"None",
        b"inf",
        b"nan",
        b"-1",
    ),
    *(
        b"PXR-USDC",
        b"TOKENS\0",
        b"STRINGS\0",
        b"FIELDS\0",
        b"FIELDSETS\0",
        b"PATHS\0",
        b"SPECS\0",
        b"\xff" * 8,
        b"def PointInstancer ",
        b"def Points ",
        b"asset inputs:file = @../x.png@",
    ),
)


TARGETS: Final[dict[str, Callable[[Path], FuzzTarget]]] = {
    "obj": obj_mesh,
    "gltf": gltf_mesh,
    "log_labels": log_labels,
    "log_names": log_names,
    "usd_text": _usd("usd_text", ".usda"),
    "usd_crate": _usd("usd_crate", ".usdc"),
}
