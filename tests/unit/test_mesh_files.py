"""Meshes in and out of files by their suffix: the same mesh through each format, and glTF files against trimesh."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from scenemill.schemas.errors import ConfigError, SourceError
from scenemill.trainers.mesh_files import export_mesh, import_mesh
from scenemill.trainers.surface_mesh import SurfaceMesh
from scenemill.trainers.usd import NonHomogeneousMeshError, PBRMaterial

FORMATS = ("obj", "usd", "usda", "usdc", "glb")


def image(seed: int, channels: int = 3) -> torch.Tensor:
    return torch.randint(0, 256, (4, 6, channels), generator=torch.Generator().manual_seed(seed)) / 255


def box(**more: Any) -> SurfaceMesh:
    """A box of 12 triangles, each with coordinates of its own, flat normals, and one of two materials."""
    solid = trimesh.creation.box((1, 2, 3))
    faces = torch.from_numpy(np.array(solid.faces, np.int64))
    mesh = SurfaceMesh(
        torch.from_numpy(np.array(solid.vertices, np.float32)),
        faces,
        uvs=torch.arange(72).reshape(36, 2) / 128,
        face_uvs_idx=torch.arange(36).reshape(12, 3),
        materials=[
            PBRMaterial("cloth", diffuse_texture=image(1), roughness_value=0.5, metallic_value=0.0),
            PBRMaterial("metal", diffuse_color=(0.2, 0.4, 0.6), roughness_value=0.25, metallic_value=1.0),
        ],
        material_assignments=torch.tensor([0, 1] * 6),
        **more,
    )
    mesh.face_normals = mesh.get_or_compute_attribute("face_normals", should_cache=False)
    return mesh


def by_place(mesh: SurfaceMesh) -> dict[tuple[float, ...], int]:
    """The faces by the positions of their corners: a format may sort them."""
    return {tuple(corners.reshape(-1).tolist()): number for number, corners in enumerate(mesh.face_vertices)}


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_textured_mesh_comes_back_from_any_format(suffix: str, tmp_path: Path) -> None:
    mesh, path = box(), tmp_path / f"box.{suffix}"
    export_mesh(path, mesh)
    back = import_mesh(path)
    assert back is not None and back.batching == SurfaceMesh.Batching.NONE and back.check_sanity()
    places, own = by_place(back), by_place(mesh)
    assert len(own) == 12 and set(places) == set(own)
    for place, number in own.items():
        other = places[place]
        assert torch.allclose(back.face_uvs[other], mesh.face_uvs[number], atol=1e-6)
        assert torch.allclose(back.face_normals[other], mesh.face_normals[number], atol=1e-6)
        given_one, found = mesh.materials[mesh.material_assignments[number]], back.materials[back.material_assignments[other]]
        assert found.roughness_value.item() == given_one.roughness_value.item()
        assert found.metallic_value.item() == given_one.metallic_value.item()
        if given_one.diffuse_texture is not None:
            assert torch.equal(found.diffuse_texture, given_one.diffuse_texture)
        else:
            assert torch.allclose(found.diffuse_color, given_one.diffuse_color, atol=1 / 255)


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_bare_mesh_in_the_world_comes_back_from_any_format(suffix: str, tmp_path: Path) -> None:
    move = torch.tensor([[0.0, -1, 0, 4], [1, 0, 0, 5], [0, 0, 1, 6], [0, 0, 0, 1]])
    whole = box()
    mesh = SurfaceMesh(whole.vertices, whole.faces, transform=move).to_batched()
    export_mesh(tmp_path / f"box.{suffix}", mesh)
    back = import_mesh(tmp_path / f"box.{suffix}")
    x, y, z = whole.vertices.unbind(1)
    assert back is not None and torch.equal(back.faces, whole.faces)
    assert torch.allclose(back.vertices, torch.stack([4 - y, 5 + x, 6 + z], dim=1))
    assert back.uvs is None or not len(back.uvs)


@pytest.mark.parametrize("suffix", FORMATS)
def test_files_are_replaced_only_if_asked(suffix: str, tmp_path: Path) -> None:
    path, other = tmp_path / f"box.{suffix}", box()
    export_mesh(path, box())
    other.vertices = other.vertices * 2
    with pytest.raises(FileExistsError):
        export_mesh(path, other)
    export_mesh(path, other, overwrite=True)
    back = import_mesh(path)
    assert back is not None and back.vertices.abs().max() == 3


@pytest.mark.parametrize("suffix", ["obj", "usda"])
def test_quads_stay_or_are_cut(suffix: str, tmp_path: Path) -> None:
    quad, path = SurfaceMesh(torch.rand(4, 3), torch.tensor([[0, 1, 2, 3]])), tmp_path / f"quad.{suffix}"
    export_mesh(path, quad)
    plain, cut = import_mesh(path), import_mesh(path, triangulate=True)
    assert plain is not None and plain.faces.tolist() == [[0, 1, 2, 3]]
    assert cut is not None and cut.faces.tolist() == [[0, 1, 2], [0, 2, 3]]
    with pytest.raises(ConfigError, match="faces of 4 corners"):
        export_mesh(tmp_path / "quad.glb", quad)


def test_faces_of_several_sizes_need_to_be_cut(tmp_path: Path) -> None:
    path = tmp_path / "mixed.OBJ"
    path.write_text("v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nf 1 2 3 4\nf 1 2 3\n")
    with pytest.raises(NonHomogeneousMeshError):
        import_mesh(path)
    cut = import_mesh(str(path), True)
    assert cut is not None and len(cut.faces) == 3


def test_broken_materials_of_an_obj_file_are_left_out_with_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "mesh.obj"
    path.write_text("mtllib missing.mtl\nv 0 0 0\nv 1 0 0\nv 1 1 0\nf 1 2 3\n")
    with pytest.warns(UserWarning, match=r"missing\.mtl"):
        mesh = import_mesh(path)
    assert mesh is not None and mesh.materials == []


@pytest.mark.parametrize("suffix", ["usda", "glb"])
def test_corners_without_normals_or_coordinates_do_not_get_wrong_ones(suffix: str, tmp_path: Path) -> None:
    mesh, path = box(), tmp_path / f"box.{suffix}"
    expected = mesh.face_normals
    mesh.face_normals = None
    mesh.normals, mesh.face_normals_idx = torch.tensor([[0.6, 0.8, 0]]), torch.zeros(12, 3, dtype=torch.int64)
    mesh.face_normals_idx[3, 1] = mesh.face_uvs_idx[3, 1] = -1
    export_mesh(path, mesh)
    back = import_mesh(path)
    assert back is not None
    if suffix == "usda":
        assert not back.has_attribute("normals") and torch.allclose(back.face_normals, expected, atol=1e-6)
    else:
        assert not (back.vertex_normals @ torch.tensor([0.6, 0.8, 0]) > 0.999).any()
    other = by_place(back)[tuple(mesh.face_vertices[3].reshape(-1).tolist())]
    assert torch.allclose(back.face_uvs[other, 1], mesh.uvs[0])


@pytest.mark.parametrize("name", ["mesh.ply", "mesh", "mesh.usdz"])
def test_other_suffixes_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\.obj, \.usd"):
        export_mesh(tmp_path / name, box())
    if name != "mesh.usdz":
        with pytest.raises(ConfigError, match=r"\.glb, \.gltf"):
            import_mesh(tmp_path / name)
    with pytest.raises(ConfigError, match="ends in"):
        from scenemill.trainers import gltf

        gltf.export_mesh(tmp_path / "mesh.gltf", box())


@pytest.mark.parametrize("suffix", [*FORMATS, "usdz", "gltf"])
def test_files_that_are_missing_or_none_are_refused(suffix: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="missing"):
        import_mesh(tmp_path / f"missing.{suffix}")
    (tmp_path / f"broken.{suffix}").write_bytes(b"\xff\xfe glTF nothing of the kind")
    with pytest.raises(SourceError, match="container"):
        import_mesh(tmp_path / f"broken.{suffix}")


def test_without_trimesh_gltf_files_are_refused_and_others_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trimesh", None)
    triangle = SurfaceMesh(torch.rand(3, 3), torch.tensor([[0, 1, 2]]))
    with pytest.raises(ConfigError, match=r"scenemill\[mesh\]"):
        import_mesh(tmp_path / "box.glb")
    with pytest.raises(ConfigError, match=r"scenemill\[mesh\]"):
        export_mesh(tmp_path / "box.glb", triangle)
    export_mesh(tmp_path / "box.obj", triangle)
    assert import_mesh(tmp_path / "box.obj") is not None


def scene_at(path: Path, *parts: tuple[Any, np.ndarray[Any, Any]]) -> Path:
    scene = trimesh.Scene()
    for number, (part, transform) in enumerate(parts):
        scene.add_geometry(part, node_name=f"node_{number}", geom_name=f"part_{number}", transform=transform)
    path.write_bytes(scene.export(file_type="glb"))
    return path


def textured(material: Any) -> Any:
    corners = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]])
    visual = trimesh.visual.TextureVisuals(uv=np.array([[0.25, 0], [1, 0.25], [0, 1]]), material=material)
    return trimesh.Trimesh(corners, [[0, 1, 2]], visual=visual, process=False)


def test_the_nodes_of_a_gltf_scene_are_put_in_the_world(tmp_path: Path) -> None:
    move = np.array([[0, 0, 1, 5], [1, 0, 0, 6], [0, 1, 0, 7], [0, 0, 0, 1]], np.float64)
    material = trimesh.visual.material.PBRMaterial(name="one", roughnessFactor=0.5)
    mesh = import_mesh(scene_at(tmp_path / "two.glb", (textured(material), np.eye(4)), (textured(material), move)))
    assert mesh is not None and mesh.faces.tolist() == [[0, 1, 2], [3, 4, 5]] and mesh.faces.dtype == torch.int64
    expected = [[0, 0, 0], [1, 0, 0], [0, 1, 0], [5, 6, 7], [5, 7, 7], [5, 6, 8]]
    assert torch.allclose(mesh.vertices, torch.tensor(expected, dtype=torch.float32), atol=1e-6)
    assert torch.allclose(mesh.uvs, torch.tensor([[0.25, 1], [1, 0.75], [0, 0]] * 2))
    assert torch.allclose(mesh.vertex_normals, torch.tensor([[0.0, 0, 1]] * 3 + [[1, 0, 0]] * 3), atol=1e-6)
    names = [mesh.materials[number].material_name for number in mesh.material_assignments]
    assert names == ["one", "one"] and not mesh.has_attribute("transform")


def test_materials_of_a_gltf_file_are_read_with_their_factors(tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (2, 3, 4), dtype=np.uint8)
    both = np.random.default_rng(2).integers(0, 256, (2, 3, 3), dtype=np.uint8)
    material = trimesh.visual.material.PBRMaterial(
        name="glass",
        baseColorFactor=[1.0, 1.0, 1.0, 0.5],
        baseColorTexture=Image.fromarray(pixels),
        metallicRoughnessTexture=Image.fromarray(both),
        normalTexture=Image.fromarray(both),
        metallicFactor=0.5,
        roughnessFactor=1.0,
        alphaMode="MASK",
        alphaCutoff=0.25,
    )
    mesh = import_mesh(scene_at(tmp_path / "glass.glb", (textured(material), np.eye(4))))
    assert mesh is not None
    (found,) = mesh.materials
    assert found.material_name == "glass" and found.opacity_threshold.item() == 0.25 and found.metallic_value.item() == 0.5
    assert found.opacity_value.item() == pytest.approx(0.5, abs=1 / 255)
    assert np.allclose(found.diffuse_texture, pixels[..., :3] / 255) and found.diffuse_colorspace == "sRGB"
    assert np.allclose(found.opacity_texture, pixels[..., 3:] / 255 * found.opacity_value.item())
    assert np.allclose(found.roughness_texture, both[..., 1:2] / 255) and np.allclose(found.metallic_texture, both[..., 2:] / 510)
    assert np.allclose(found.normals_texture, both / 127.5 - 1, atol=1e-6)


def test_images_of_a_material_are_packed_as_gltf_has_them(tmp_path: Path) -> None:
    mesh = box()
    mesh.materials = [
        PBRMaterial(
            "all",
            diffuse_texture=image(1),
            opacity_texture=image(2, 1),
            roughness_texture=image(3, 1),
            metallic_texture=image(4, 1),
            normals_texture=image(5) * 2 - 1,
        )
    ]
    mesh.material_assignments = torch.zeros(12, dtype=torch.int16)
    export_mesh(tmp_path / "box.glb", mesh)
    (part,) = trimesh.load_scene(tmp_path / "box.glb", process=False).geometry.values()
    stored, (given_one,) = part.visual.material, mesh.materials
    assert stored.alphaMode == "BLEND" and stored.name == "all"
    assert np.array_equal(np.asarray(stored.baseColorTexture)[..., :3], given_one.diffuse_texture.numpy() * 255)
    assert np.array_equal(np.asarray(stored.baseColorTexture)[..., 3:], given_one.opacity_texture.numpy() * 255)
    assert np.array_equal(np.asarray(stored.metallicRoughnessTexture)[..., 1:2], given_one.roughness_texture.numpy() * 255)
    assert np.array_equal(np.asarray(stored.metallicRoughnessTexture)[..., 2:], given_one.metallic_texture.numpy() * 255)
    back = import_mesh(tmp_path / "box.glb")
    assert back is not None
    for name in ("diffuse", "opacity", "roughness", "metallic", "normals"):
        assert torch.allclose(getattr(back.materials[0], f"{name}_texture"), getattr(given_one, f"{name}_texture"), atol=1e-6), name
    given_one.opacity_texture = torch.rand(2, 2, 1)
    with pytest.raises(ConfigError, match="one size"):
        export_mesh(tmp_path / "other.glb", mesh)


def test_colors_of_vertices_go_through_gltf(tmp_path: Path) -> None:
    whole = box()
    mesh = SurfaceMesh(whole.vertices, whole.faces, vertex_colors=torch.arange(32).reshape(8, 4) * 8 / 255)
    export_mesh(tmp_path / "box.glb", mesh)
    back = import_mesh(tmp_path / "box.glb")
    assert back is not None and torch.allclose(back.face_colors, mesh.face_colors, atol=1e-6)


def test_a_gltf_file_without_triangles_has_no_mesh(tmp_path: Path) -> None:
    points = trimesh.PointCloud(np.random.default_rng(1).random((5, 3)))
    assert import_mesh(scene_at(tmp_path / "points.glb", (points, np.eye(4)))) is None


def test_a_gltf_file_names_no_files_outside_of_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(np.zeros((3, 3), np.float32).tobytes() + np.arange(3, dtype=np.uint32).tobytes())
    text = """{"asset": {"version": "2.0"}, "scene": 0, "scenes": [{"nodes": [0]}], "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "indices": 1}]}],
        "accessors": [{"bufferView": 0, "componentType": 5126, "count": 3, "type": "VEC3"},
                      {"bufferView": 1, "componentType": 5125, "count": 3, "type": "SCALAR"}],
        "bufferViews": [{"buffer": 0, "byteOffset": 0, "byteLength": 36}, {"buffer": 0, "byteOffset": 36, "byteLength": 12}],
        "buffers": [{"uri": "URI", "byteLength": 48}]}"""
    (folder / "inner.bin").write_bytes((tmp_path / "secret.bin").read_bytes())
    (folder / "fine.gltf").write_text(text.replace("URI", "inner.bin"))
    (folder / "bad.gltf").write_text(text.replace("URI", "../secret.bin"))
    fine = import_mesh(folder / "fine.gltf")
    assert fine is not None and fine.faces.tolist() == [[0, 1, 2]]
    with pytest.raises(SourceError, match=r"bad\.gltf"):
        import_mesh(folder / "bad.gltf")


@pytest.mark.real
def test_kaolins_meshes_are_the_same_in_both_formats(real_data: Path) -> None:
    folder = real_data / "data" / "kaolin"
    for name, suffix in (("ico_flat", "usda"), ("ico_smooth", "usdz")):
        one, other = import_mesh(folder / "obj" / f"{name}.obj"), import_mesh(folder / "usd" / f"{name}.{suffix}")
        assert one is not None and other is not None and torch.allclose(one.face_vertices, other.face_vertices, atol=1e-4)
        assert torch.allclose(one.face_uvs, other.face_uvs, atol=1e-4) and torch.allclose(
            one.face_normals, other.face_normals, atol=1e-3
        )
        assert torch.allclose(one.materials[0].diffuse_color, other.materials[0].diffuse_color, atol=1e-4)
