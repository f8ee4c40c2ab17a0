"""OBJ files out: what was written reads back, and reads as the format has it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from scenemill.schemas.errors import ConfigError
from scenemill.trainers import obj
from scenemill.trainers.surface_mesh import SurfaceMesh
from scenemill.trainers.usd import PBRMaterial


def random_mesh(seed: int, faces: int = 5, size: int = 3, **more: Any) -> SurfaceMesh:
    """A mesh whose corners all have coordinates (in 256ths, which 1 - v keeps whole) and normals."""
    generator = torch.Generator().manual_seed(seed)
    parts: dict[str, Any] = {
        "vertices": torch.randn(7, 3, generator=generator) * 10 ** torch.randn(7, 1, generator=generator),
        "faces": torch.randint(0, 7, (faces, size), generator=generator),
        "uvs": torch.randint(0, 257, (6, 2), generator=generator) / 256,
        "face_uvs_idx": torch.randint(0, 6, (faces, size), generator=generator),
        "normals": torch.randn(4, 3, generator=generator),
        "face_normals_idx": torch.randint(0, 4, (faces, size), generator=generator),
    }
    return SurfaceMesh(**parts | more)


def full_material(seed: int, name: str = "") -> PBRMaterial:
    """A material with all that an MTL file keeps, images in 255ths."""
    generator = torch.Generator().manual_seed(seed)

    def image(channels: int) -> torch.Tensor:
        return torch.randint(0, 256, (3, 5, channels), generator=generator) / 255

    return PBRMaterial(
        name,
        diffuse_color=(0.1, 0.2, 0.3),
        specular_color=(0.4, 0.5, 0.6),
        roughness_value=0.7,
        metallic_value=0.8,
        opacity_value=0.9,
        diffuse_texture=image(3),
        specular_texture=image(3),
        opacity_texture=image(1),
        roughness_texture=image(1),
        metallic_texture=image(1),
        normals_texture=image(3) * 2 - 1,
        displacement_texture=image(1),
    )


def read(path: Path) -> SurfaceMesh:
    mesh = obj.import_mesh(path, with_materials=True, with_normals=True, raw_materials=False)
    assert mesh is not None
    return mesh


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 6), st.integers(3, 5), st.booleans(), st.booleans())
def test_a_mesh_comes_back_to_the_bit(
    tmp_path_factory: pytest.TempPathFactory, seed: int, faces: int, size: int, has_uvs: bool, is_sparse: bool
) -> None:
    mesh, path = random_mesh(seed, faces, size), tmp_path_factory.mktemp("out") / "mesh.obj"
    if not has_uvs:
        mesh.uvs = None
    if is_sparse and faces:
        mesh.face_normals_idx[0] = -1
        mesh.face_uvs_idx[-1, -1] = -1
    obj.export_mesh(path, mesh)
    back = read(path)
    assert torch.equal(back.vertices, mesh.vertices) and torch.equal(back.normals, mesh.normals)
    if faces:
        assert torch.equal(back.faces, mesh.faces) and torch.equal(back.face_normals_idx, mesh.face_normals_idx)
        assert not has_uvs or (torch.equal(back.face_uvs_idx, mesh.face_uvs_idx) and torch.equal(back.uvs, mesh.uvs))
        assert has_uvs or (back.face_uvs_idx == -1).all()


def test_the_text_is_what_the_format_has(tmp_path: Path) -> None:
    mesh = SurfaceMesh(
        torch.tensor([[0, 0, 0], [1, 0, 0], [0, 0.1, 0]]),
        torch.tensor([[0, 1, 2], [2, 1, 0]]),
        uvs=torch.tensor([[0.25, 0.25]]),
        face_uvs_idx=torch.zeros(2, 3, dtype=torch.int64),
        materials=[PBRMaterial("red paint", diffuse_color=(1, 0, 0))],
        material_assignments=torch.tensor([0, -1]),
    )
    obj.export_mesh(tmp_path / "thing.obj", mesh)
    assert (tmp_path / "thing.obj").read_text().split("\n") == [
        "mtllib thing.mtl",
        "v 0 0 0",
        "v 1 0 0",
        "v 0 0.100000001 0",
        "vt 0.25 0.75",
        "f 3/1 2/1 1/1",
        "usemtl red_paint",
        "f 1/1 2/1 3/1",
        "",
    ]
    assert (tmp_path / "thing.mtl").read_text() == "newmtl red_paint\nKd 1 0 0\n"


def test_materials_come_back_with_their_images(tmp_path: Path) -> None:
    materials: list[Any] = [full_material(1, "shiny"), full_material(2), PBRMaterial("shiny")]
    materials.append({"material_name": "raw", "Kd": torch.rand(3)})
    mesh = random_mesh(1, materials=materials, material_assignments=torch.tensor([2, 0, 1, 0, 3]))
    obj.export_mesh(tmp_path / "mesh.obj", mesh)
    back = read(tmp_path / "mesh.obj")
    assert [one.material_name for one in back.materials] == ["material_1", "raw", "shiny", "shiny_2"]
    assert back.material_assignments.tolist() == [3, 2, 0, 2, 1]
    for given_one, found in ((materials[0], back.materials[2]), (materials[1], back.materials[0])):
        for name, value in vars(given_one).items():
            if isinstance(value, torch.Tensor):
                assert torch.allclose(getattr(found, name), value, atol=1e-7), name
    assert torch.equal(back.materials[1].diffuse_color, materials[3]["Kd"])
    with Image.open(tmp_path / "mesh_0_normals.png") as image:
        expected = np.rint((materials[0].normals_texture.numpy() + 1) / 2 * 255)
        assert np.array_equal(np.asarray(image), expected)
    assert sorted(path.name for path in tmp_path.glob("mesh_1_*")) == [
        f"mesh_1_{name}.png" for name in ("diffuse", "displacement", "metallic", "normals", "opacity", "roughness", "specular")
    ]


def test_faces_without_a_material_come_first_and_others_keep_their_order(tmp_path: Path) -> None:
    assigned = torch.tensor([0, -1, 1, -1, 0])
    mesh = random_mesh(2, materials=[PBRMaterial("a"), PBRMaterial("b")], material_assignments=assigned)
    obj.export_mesh(tmp_path / "mesh.obj", mesh)
    back, order = read(tmp_path / "mesh.obj"), [1, 3, 0, 2, 4]
    assert back.material_assignments.tolist() == [-1, -1, 0, 1, 0] and torch.equal(back.faces, mesh.faces[order])
    assert torch.equal(back.face_uvs_idx, mesh.face_uvs_idx[order])


def test_values_of_corners_and_of_vertices_are_written_too(tmp_path: Path) -> None:
    plain = random_mesh(3)
    for name, normals in (("face_normals", torch.randn(5, 3, 3)), ("vertex_normals", torch.randn(7, 3))):
        mesh = SurfaceMesh(plain.vertices, plain.faces, face_uvs=torch.randint(0, 9, (5, 3, 2)) / 8)
        setattr(mesh, name, normals)
        expected = mesh.face_normals
        obj.export_mesh(tmp_path / "mesh.obj", mesh, overwrite=True)
        back = read(tmp_path / "mesh.obj")
        assert torch.equal(back.face_normals, expected) and torch.equal(back.face_uvs, mesh.face_uvs)
        assert not mesh.has_attribute("uvs"), "what was given stays as it was"


def test_nothing_that_was_not_there_is_made_up(tmp_path: Path) -> None:
    plain = random_mesh(4)
    obj.export_mesh(tmp_path / "mesh.obj", SurfaceMesh(plain.vertices, plain.faces))
    text = (tmp_path / "mesh.obj").read_text()
    assert {line.split()[0] for line in text.splitlines()} == {"v", "f"} and "/" not in text
    assert not (tmp_path / "mesh.mtl").exists()


def test_a_mesh_is_written_as_it_is_in_the_world(tmp_path: Path) -> None:
    move = torch.tensor([[0, -2, 0, 1], [2, 0, 0, 2], [0, 0, 2, 3], [0, 0, 0, 1]], dtype=torch.float64)
    mesh = random_mesh(5, transform=move).to_batched()
    obj.export_mesh(tmp_path / "mesh.obj", mesh)
    x, y, z = random_mesh(5).vertices.unbind(1)
    assert torch.allclose(read(tmp_path / "mesh.obj").vertices, torch.stack([1 - 2 * y, 2 + 2 * x, 3 + 2 * z], dim=1))


def test_files_are_replaced_only_if_asked(tmp_path: Path) -> None:
    mesh, path = random_mesh(6, materials=[PBRMaterial("a")]), tmp_path / "new" / "mesh.obj"
    obj.export_mesh(path, mesh)
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="overwrite"):
        obj.export_mesh(path, random_mesh(7))
    assert path.read_bytes() == before
    path.unlink()
    with pytest.raises(FileExistsError, match=r"mesh\.mtl"):
        obj.export_mesh(path, mesh)
    obj.export_mesh(path, random_mesh(7), overwrite=True)
    assert torch.equal(read(path).vertices, random_mesh(7).vertices)


def test_meshes_that_a_file_cannot_hold_are_refused(tmp_path: Path) -> None:
    path, two = tmp_path / "mesh.obj", SurfaceMesh.cat([random_mesh(8), random_mesh(9)], fixed_topology=False)
    with pytest.raises(ConfigError, match="2 meshes"):
        obj.export_mesh(path, two)
    with pytest.raises(ConfigError, match="material 3 of 1"):
        obj.export_mesh(path, random_mesh(8, materials=[PBRMaterial()], material_assignments=torch.full((5,), 3)))
    endless = random_mesh(8)
    endless.vertices[2, 1] = torch.nan
    with pytest.raises(ConfigError, match="v: numbers that are not finite"):
        obj.export_mesh(path, endless)
    assert not path.exists()
