"""Meshes, clouds, grids and groups through files: as usd-core reads them, and as they were given."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pxr import Gf, Usd, UsdGeom

from scenemill.schemas.errors import ConfigError, SourceError
from scenemill.trainers import usd
from scenemill.trainers.usd.arrays import bounds, to_integers, to_rows
from scenemill.trainers.usd.reading import value_of


def square_mesh() -> dict[str, Any]:
    """Two squares side by side, with coordinates and normals of their corners."""
    return {
        "vertices": torch.tensor([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [2, 0, 0], [2, 1, 0]], dtype=torch.float64),
        "faces": torch.tensor([[0, 1, 2, 3], [1, 4, 5, 2]]),
        "uvs": torch.tensor([[0.0, 0], [1, 0], [1, 0.25], [0, 0.25], [0.5, 1]]),
        "face_uvs_idx": torch.tensor([[0, 1, 2, 3], [1, 4, 4, 2]]),
        "face_normals": torch.nn.functional.normalize(torch.rand(2, 4, 3, generator=torch.Generator().manual_seed(1)), dim=-1),
    }


def stored_at(path: Path, attribute: str) -> Any:
    """What usd-core reads of an attribute."""
    stage = Usd.Stage.Open(str(path))
    return np.array(stage.GetAttributeAtPath(attribute).Get())


def turned(x: float, y: float, z: float) -> torch.Tensor:
    """A quarter turn about z, stretched along x, and moved."""
    return torch.tensor([[0, -1, 0, x], [2, 0, 0, y], [0, 0, 1, z], [0, 0, 0, 1]], dtype=torch.float64)


def test_a_mesh_comes_back(tmp_path: Path) -> None:
    given_parts = square_mesh()
    usd.export_mesh(tmp_path / "mesh.usda", "/World/one", **given_parts)
    read = usd.import_mesh(tmp_path / "mesh.usda", with_normals=True)
    assert read is not None and read.faces.dtype == torch.int64 and read.transform is None
    assert torch.equal(read.vertices, given_parts["vertices"].float()) and torch.equal(read.faces, given_parts["faces"])
    assert read.uvs is not None and torch.equal(read.uvs, given_parts["uvs"]) and read.face_uvs is not None
    assert torch.equal(read.face_uvs, given_parts["uvs"][given_parts["face_uvs_idx"]])
    assert read.face_normals is not None and torch.equal(read.face_normals, given_parts["face_normals"])
    stored = stored_at(tmp_path / "mesh.usda", "/World/one.primvars:st")
    assert np.allclose(stored[:, 1], 1 - given_parts["uvs"][:, 1].numpy())


def test_what_was_not_asked_for_or_is_not_there_is_none(tmp_path: Path) -> None:
    usd.export_mesh(tmp_path / "mesh.usda", **square_mesh())
    plain = usd.import_mesh(tmp_path / "mesh.usda")
    assert (
        plain is not None
        and not plain.has_attribute("face_normals")
        and plain.materials is None
        and plain.material_assignments is None
    )
    usd.export_mesh(tmp_path / "vertices.usda", vertices=torch.rand(4, 3))
    alone = usd.import_mesh(tmp_path / "vertices.usda", with_normals=True)
    assert alone is not None and alone.uvs is None and alone.faces.shape == (0, 3)
    assert not alone.has_attribute("face_normals")
    usd.export_mesh(tmp_path / "faces.usda", faces=torch.tensor([[0, 1, 2]]))
    faces = usd.import_mesh(tmp_path / "faces.usda")
    assert faces is not None and faces.faces.tolist() == [[0, 1, 2]] and faces.vertices.shape == (0, 3)
    usd.create_stage(tmp_path / "nothing.usda").Save()
    assert usd.import_mesh(tmp_path / "nothing.usda") is None


@pytest.mark.parametrize(("count", "place"), [(6, "vertex"), (2, "uniform"), (8, "faceVarying")])
def test_coordinates_without_indices_belong_to_as_many_elements(count: int, place: str, tmp_path: Path) -> None:
    mesh, uvs = square_mesh(), torch.rand(count, 2)
    usd.export_mesh(tmp_path / "mesh.usda", vertices=mesh["vertices"], faces=mesh["faces"], uvs=uvs)
    stage = Usd.Stage.Open(str(tmp_path / "mesh.usda"))
    assert UsdGeom.Primvar(stage.GetAttributeAtPath("/World/Meshes/mesh_0.primvars:st")).GetInterpolation() == place
    read = usd.import_mesh(stage)
    rows = {"vertex": mesh["faces"], "uniform": torch.tensor([[0] * 4, [1] * 4]), "faceVarying": torch.arange(8).reshape(2, 4)}
    assert read is not None and read.face_uvs_idx is not None and torch.equal(read.face_uvs_idx, rows[place])
    assert read.uvs is not None and torch.allclose(read.uvs, uvs)


def test_as_many_coordinates_as_vertices_stay_those_of_corners_with_indices(tmp_path: Path) -> None:
    mesh = square_mesh() | {"uvs": torch.rand(6, 2)}
    usd.export_mesh(tmp_path / "mesh.usda", **mesh)
    stage = Usd.Stage.Open(str(tmp_path / "mesh.usda"))
    primvar = UsdGeom.Primvar(stage.GetAttributeAtPath("/World/Meshes/mesh_0.primvars:st"))
    assert primvar.GetInterpolation() == "faceVarying"
    primvar.SetInterpolation("vertex")  # as files of Kaolin's say
    read = usd.import_mesh(stage)
    assert read is not None and read.face_uvs_idx is not None and torch.equal(read.face_uvs_idx, mesh["face_uvs_idx"])


@pytest.mark.parametrize("place", ["vertex", "uniform", "constant"])
def test_normals_of_any_elements_are_read(place: str, tmp_path: Path) -> None:
    mesh = square_mesh()
    stage = usd.create_stage(tmp_path / "mesh.usda")
    usd.add_mesh(stage, "/World/one", vertices=mesh["vertices"], faces=mesh["faces"])
    count = {"vertex": 6, "uniform": 2, "constant": 1}[place]
    normals = torch.nn.functional.normalize(torch.rand(count, 3), dim=-1)
    prim = UsdGeom.Mesh(stage.GetPrimAtPath("/World/one"))
    prim.CreateNormalsAttr(normals.tolist())
    prim.SetNormalsInterpolation(place)
    read = usd.import_mesh(stage, with_normals=True)
    assert read is not None
    if place == "vertex":
        assert (
            not read.has_attribute("face_normals")
            and read.vertex_normals is not None
            and torch.allclose(read.vertex_normals, normals)
        )
    else:
        assert read.face_normals is not None and torch.allclose(read.face_normals, normals[:, None].expand(2, 4, 3))


@pytest.mark.parametrize("kind", ["texCoord2f[]", "float2[]"])
def test_coordinates_under_other_names_are_found(kind: str, tmp_path: Path) -> None:
    from pxr import Sdf

    mesh = square_mesh()
    stage = usd.create_stage(tmp_path / "mesh.usda")
    api = UsdGeom.PrimvarsAPI(usd.add_mesh(stage, "/World/one", vertices=mesh["vertices"], faces=mesh["faces"]))
    api.CreatePrimvar("other", Sdf.ValueTypeNames.Float2Array, "vertex").Set([(0, 0)] * 6)
    api.CreatePrimvar("map" if kind == "texCoord2f[]" else "UVMap", Sdf.ValueTypeNames.Find(kind), "vertex").Set([(1, 0)] * 6)
    read = usd.import_mesh(stage)
    assert read is not None and read.uvs is not None and read.uvs[0].tolist() == [1, 1]


def test_meshes_are_merged_in_the_world_and_apart_in_their_own_frames(tmp_path: Path) -> None:
    mesh, move = square_mesh(), turned(1, 2, 3)
    parts: dict[str, Any] = {name: [tensor, tensor] for name, tensor in mesh.items()}
    usd.export_meshes(tmp_path / "meshes.usda", **parts, local_to_world=torch.stack([torch.eye(4), move]))
    apart = usd.import_meshes(tmp_path / "meshes.usda", with_normals=True)
    assert isinstance(apart, list) and [one.transform is None for one in apart] == [True, False]
    assert torch.equal(apart[1].vertices, apart[0].vertices) and apart[1].transform is not None
    assert torch.allclose(apart[1].transform, move)
    merged = usd.import_mesh(tmp_path / "meshes.usda", with_normals=True)
    assert merged is not None and merged.uvs is not None and merged.face_normals is not None and merged.face_uvs is not None
    world = (torch.cat([mesh["vertices"], torch.ones(6, 1)], 1) @ move.T)[:, :3].float()
    assert torch.allclose(merged.vertices, torch.cat([mesh["vertices"].float(), world]))
    assert torch.equal(merged.faces, torch.cat([mesh["faces"], mesh["faces"] + 6]))
    assert torch.equal(merged.face_uvs[2:], merged.face_uvs[:2])
    edge = (merged.vertices[merged.faces[2, 1]] - merged.vertices[merged.faces[2, 0]]).double()
    flat = torch.linalg.cross(edge, (merged.vertices[merged.faces[2, 2]] - merged.vertices[merged.faces[2, 0]]).double())
    assert torch.allclose(torch.nn.functional.normalize(flat, dim=0), torch.tensor([0.0, 0, 1], dtype=torch.float64), atol=1e-6)
    assert torch.allclose(merged.face_normals[2:].norm(dim=-1), torch.ones(2, 4))


def test_normals_stay_at_right_angles_to_stretched_faces(tmp_path: Path) -> None:
    vertices = torch.tensor([[0.0, 0, 0], [1, 0, 1], [0, 1, 0]])
    normal = torch.linalg.cross(vertices[1], vertices[2]) / 2**0.5
    place = turned(5, 6, 7)
    faces, normals = torch.tensor([[0, 1, 2]]), normal.expand(1, 3, 3)
    usd.export_mesh(tmp_path / "mesh.usda", vertices=vertices, faces=faces, face_normals=normals, local_to_world=place)
    read = usd.import_mesh(tmp_path / "mesh.usda", with_normals=True)
    assert read is not None and read.face_normals is not None
    sides = read.vertices[1:] - read.vertices[0]
    assert torch.allclose(sides @ read.face_normals[0, 0], torch.zeros(2), atol=1e-6)


def test_paths_find_what_is_at_and_below_whole_names(tmp_path: Path) -> None:
    stage = usd.create_stage(tmp_path / "scene.usda")
    for path in ("/World/a/one", "/World/a/two", "/World/ab"):
        usd.add_mesh(stage, path, vertices=torch.rand(3, 3), faces=torch.tensor([[0, 1, 2]]))
    usd.add_pointcloud(stage, "/World/a/cloud", torch.rand(3, 3))
    usd.add_voxelgrid(stage, torch.ones(2, 2, 2), "/World/a/grid")
    assert usd.get_mesh_scene_paths(stage) == ["/World/a/one", "/World/a/two", "/World/ab"]
    assert usd.get_mesh_scene_paths(stage, "/World/a") == ["/World/a/one", "/World/a/two"]
    assert usd.get_pointcloud_scene_paths(stage) == ["/World/a/cloud"]
    assert usd.get_scene_paths(stage, r".*/a", "mesh") == usd.get_mesh_scene_paths(stage)
    assert usd.get_scene_paths(stage, prim_types=["CUBE", "sphere"]) == ["/World/a/cloud/sphere", "/World/a/grid/cube"]
    assert usd.get_scene_paths(stage, conditional=lambda prim: prim.GetName() == "ab") == ["/World/ab"]
    by_path = usd.import_meshes(stage, ["/World/a", "/World/ab"], return_list=False)
    assert isinstance(by_path, dict) and list(by_path) == ["/World/a/one", "/World/a/two", "/World/ab"]
    with pytest.raises(ConfigError, match="No prim found at path /foo"):
        usd.import_meshes(stage, ["/foo"])


def test_instances_are_read_through_and_stay_instances(tmp_path: Path) -> None:
    stage = usd.create_stage(tmp_path / "scene.usda")
    usd.add_mesh(stage, "/Shapes/one", vertices=torch.rand(3, 3), faces=torch.tensor([[0, 1, 2]]))
    prim = stage.DefinePrim("/World/copy", "Xform")
    prim.GetReferences().AddInternalReference("/Shapes")
    prim.SetInstanceable(True)
    meshes: Any = usd.import_meshes(stage, return_list=False)
    assert sorted(meshes) == ["/Shapes/one", "/World/copy/one"] and prim.IsInstance()


def mixed(stage: Any) -> dict[str, torch.Tensor]:
    """A triangle, a pentagon and a square, each corner with a number of its own."""
    mesh = UsdGeom.Mesh.Define(stage, "/World/mixed")
    counts, indices = [3, 5, 4], [0, 1, 2, 2, 1, 3, 4, 5, 5, 4, 6, 7]
    mesh.CreatePointsAttr(np.arange(24).reshape(8, 3).tolist())
    mesh.CreateFaceVertexCountsAttr(counts)
    mesh.CreateFaceVertexIndicesAttr(indices)
    mesh.CreateNormalsAttr([(number, 0, 1) for number in range(12)])
    mesh.SetNormalsInterpolation("faceVarying")
    return {"counts": torch.tensor(counts), "indices": torch.tensor(indices)}


def test_faces_of_several_sizes_are_refused_left_out_or_cut_into_fans(tmp_path: Path) -> None:
    stage = usd.create_stage(tmp_path / "mixed.usda")
    mixed(stage)
    with pytest.raises(usd.NonHomogeneousMeshError, match=r"\[3, 4, 5\]"):
        usd.import_mesh(stage)
    assert usd.import_meshes(stage, heterogeneous_mesh_handler=usd.heterogeneous_mesh_handler_skip) == []
    assert usd.import_mesh(stage, heterogeneous_mesh_handler=usd.heterogeneous_mesh_handler_skip) is None
    expected = [[0, 1, 2], [2, 1, 3], [2, 3, 4], [2, 4, 5], [5, 4, 6], [5, 6, 7]]
    assert usd.heterogeneous_mesh_handler_naive_homogenize is usd.mesh_handler_naive_triangulate  # an older name
    for choice in ({"triangulate": True}, {"heterogeneous_mesh_handler": usd.mesh_handler_naive_triangulate}):
        read = usd.import_mesh(stage, with_normals=True, **choice)
        assert read is not None and read.faces.tolist() == expected and read.face_normals is not None
        assert read.face_normals[..., 0].tolist() == [[0, 1, 2], [3, 4, 5], [3, 5, 6], [3, 6, 7], [8, 9, 10], [8, 10, 11]]


def test_meshes_with_faces_of_different_size_are_one_only_if_cut(tmp_path: Path) -> None:
    faces = [torch.tensor([[0, 1, 2]]), torch.tensor([[0, 1, 2, 3]])]
    usd.export_meshes(tmp_path / "two.usda", vertices=[torch.rand(4, 3), torch.rand(4, 3)], faces=faces)
    with pytest.raises(usd.NonHomogeneousMeshError, match=r"\[3, 4\]"):
        usd.import_mesh(tmp_path / "two.usda")
    for choice in ({"triangulate": True}, {"heterogeneous_mesh_handler": usd.mesh_handler_naive_triangulate}):
        read = usd.import_mesh(tmp_path / "two.usda", **choice)
        assert read is not None and read.faces.tolist() == [[0, 1, 2], [4, 5, 6], [4, 6, 7]]
    left = usd.import_mesh(tmp_path / "two.usda", heterogeneous_mesh_handler=usd.heterogeneous_mesh_handler_skip)
    assert left is not None and left.faces.tolist() == [[0, 1, 2]]
    assert len(usd.import_meshes(tmp_path / "two.usda")) == 2


@given(st.lists(st.integers(3, 7), max_size=6), st.data())
@settings(max_examples=60, deadline=None)
def test_fans_and_what_belongs_to_them_are_cut_as_by_hand(counts: list[int], data: st.DataObject) -> None:
    corners = torch.arange(sum(counts)) * 10
    chosen = data.draw(st.lists(st.integers(0, max(len(counts) - 1, 0)), unique=True, max_size=len(counts)))
    named = {"some": torch.tensor(chosen, dtype=torch.int64)}
    _, sizes, cut, none, faces = usd.mesh_handler_naive_triangulate(
        torch.zeros(1, 3), torch.tensor(counts, dtype=torch.int64), corners, None, face_assignments=named
    )
    triangles, of_face, start = [], [], 0
    for number, count in enumerate(counts):
        for step in range(count - 2):
            triangles.append([10 * start, 10 * (start + step + 1), 10 * (start + step + 2)])
            of_face.append(number)
        start += count
    assert cut.reshape(-1, 3).tolist() == triangles and none is None and sizes.tolist() == [3] * len(triangles)
    assert faces["some"].tolist() == [place for face in chosen for place, owner in enumerate(of_face) if owner == face]


def test_assigned_ranges_of_faces_become_ranges_of_triangles() -> None:
    counts, ranges = torch.tensor([3, 5, 4, 3]), torch.tensor([[0, 2], [2, 4]])
    parts = usd.mesh_handler_naive_triangulate(torch.zeros(1, 3), counts, face_assignments={"all": ranges})
    assert parts[-1]["all"].tolist() == [[0, 4], [4, 7]]


def test_faces_are_assigned_to_materials_and_come_back(tmp_path: Path) -> None:
    mesh, materials = square_mesh(), [usd.PBRMaterial(diffuse_color=(1, 0, 0)), usd.PBRMaterial(roughness_value=0.5)]
    for strict in (False, True):
        path = tmp_path / f"mesh_{strict}.usda"
        usd.export_mesh(path, **mesh, material_assignments=torch.tensor([1, -1]), materials=materials, strict=strict)
        read = usd.import_mesh(path, with_materials=True, triangulate=True)
        assert read is not None and read.materials is not None and read.material_assignments is not None
        assert read.material_assignments.dtype == torch.int16 and read.material_assignments.tolist() == [1, 1, -1, -1]
        assert read.materials[0].diffuse_color.tolist() == [1, 0, 0] and read.materials[1].roughness_value.tolist() == [0.5]
        groups = usd.import_subsets(path, "/World/Meshes/mesh_0", "materialBind")
        assert [group["indices"].tolist() for group in groups.values()] == [[], [0]]


def test_a_material_of_the_whole_mesh_counts_where_no_group_has_its_own(tmp_path: Path) -> None:
    stage = usd.create_stage(tmp_path / "mesh.usda")
    prim = usd.add_mesh(stage, "/World/one", **square_mesh())
    group = usd.add_subset(stage, prim, "left", torch.tensor([0]), "materialBind")
    for name, holder in (("all", prim), ("left", group)):
        usd.export_material(usd.PBRMaterial(), stage, f"/World/Looks/{name}", bound_prims=[holder])
    read = usd.import_mesh(stage, with_materials=True)
    assert read is not None and read.material_assignments is not None and read.materials is not None
    assert [material.material_name[-4:] for material in read.materials] == ["/all", "left"]
    assert read.material_assignments.tolist() == [1, 0]


CLOUDS: list[Callable[[], Any]] = [lambda: torch.rand(7, 3), lambda: torch.zeros(0, 3), lambda: np.ones((1, 3), np.float64)]


@pytest.mark.parametrize("points_type", ["point_instancer", "usd_geom_points"])
@pytest.mark.parametrize("make", CLOUDS)
def test_a_cloud_comes_back(make: Callable[[], Any], points_type: str, tmp_path: Path) -> None:
    points = make()
    colors = torch.rand(len(points), 3)
    for name, own in (("plain", None), ("colored", colors)):
        usd.export_pointcloud(tmp_path / f"{name}.usda", "/World/cloud", points, own, points_type=points_type)
        read = usd.import_pointcloud(tmp_path / f"{name}.usda")
        assert np.array_equal(read.points.numpy(), np.asarray(points, np.float32)) and read.normals is None
        assert (read.colors is None) == (own is None) and read.transform is None
        if own is not None:
            assert read.colors is not None and torch.equal(read.colors, own)


def test_clouds_are_merged_in_the_world_and_apart_in_their_own_frames(tmp_path: Path) -> None:
    points, move = [torch.rand(3, 3), torch.rand(2, 3)], turned(0, 1, 0)
    usd.export_pointclouds(tmp_path / "clouds.usda", points=points, local_to_world=move)
    apart = usd.import_pointclouds(tmp_path / "clouds.usda")
    assert isinstance(apart, list) and all(torch.equal(one.points, own) for one, own in zip(apart, points, strict=True))
    assert all(one.transform is not None and torch.allclose(one.transform, move) for one in apart)
    merged = usd.import_pointcloud(tmp_path / "clouds.usda").points
    assert torch.allclose(merged, (torch.cat([torch.cat(points), torch.ones(5, 1)], 1).double() @ move.T)[:, :3].float())
    by_path = usd.import_pointclouds(tmp_path / "clouds.usda", return_list=False)
    assert list(by_path) == usd.get_pointcloud_scene_paths(tmp_path / "clouds.usda")


def test_old_forms_of_calls_still_work_and_say_what_is_new(tmp_path: Path) -> None:
    points, colors = torch.rand(3, 3), torch.rand(3, 3)
    stage = usd.create_stage(tmp_path / "stage.usda")
    with pytest.warns(DeprecationWarning, match="points="):
        usd.add_pointcloud(stage, points, "/World/one")
    with pytest.warns(DeprecationWarning, match="colors="):
        usd.add_pointcloud(stage, scene_path="/World/two", points=points, color=colors)
    assert usd.get_pointcloud_scene_paths(stage) == ["/World/one", "/World/two"]
    with pytest.warns(DeprecationWarning, match="second argument"):
        usd.export_pointcloud(tmp_path / "one.usda", points)
    with pytest.warns(DeprecationWarning, match="pointcloud="):
        usd.export_pointcloud(tmp_path / "two.usda", pointcloud=points)
    with pytest.warns(DeprecationWarning, match="second argument"):
        usd.export_pointclouds(tmp_path / "three.usda", [points, points])
    with pytest.warns(DeprecationWarning, match="pointclouds="):
        usd.export_pointclouds(tmp_path / "four.usda", pointclouds=[points])
    assert [len(usd.get_pointcloud_scene_paths(tmp_path / f"{name}.usda")) for name in ("one", "two", "three", "four")] == [
        1,
        1,
        2,
        1,
    ]
    with pytest.raises(TypeError, match="colour"):
        usd.add_pointcloud(stage, "/World/three", points, colour=colors)


@pytest.mark.parametrize(
    ("points", "width"),
    [
        (torch.tensor([[0.0, 0, 0], [2, 4, 8]]), 2 / 2 ** (1 / 3)),
        (torch.tensor([[0.0, 0, 0], [2, 4, 0]]), 4 / 2**0.5),
        (torch.tensor([[5.0, 5, 5]]), 1e-2),
    ],
)
def test_points_are_as_wide_as_if_they_filled_the_cloud_evenly(points: torch.Tensor, width: float, tmp_path: Path) -> None:
    usd.export_pointcloud(tmp_path / "points.usda", "/one", points, points_type="usd_geom_points")
    usd.export_pointcloud(tmp_path / "spheres.usda", "/one", points)
    widths, scales = stored_at(tmp_path / "points.usda", "/one.widths"), stored_at(tmp_path / "spheres.usda", "/one.scales")
    assert np.allclose(widths, width) and np.allclose(scales, width) and scales.shape == points.shape


@pytest.mark.parametrize("shape", [(4, 4, 4), (2, 5, 3), (1, 1, 1), (3, 3, 3)])
def test_a_grid_comes_back_in_its_order(shape: tuple[int, int, int], tmp_path: Path) -> None:
    grid = torch.rand(shape, generator=torch.Generator().manual_seed(3)) < (0 if shape == (3, 3, 3) else 0.6)
    usd.export_voxelgrid(tmp_path / "grid.usda", grid.float() * 3, "/World/grid", strict=True)
    read = usd.import_voxelgrid(tmp_path / "grid.usda", "/World/grid")
    assert torch.equal(read, grid) and read.dtype == torch.bool
    assert np.array_equal(stored_at(tmp_path / "grid.usda", "/World/grid.positions"), torch.nonzero(grid).numpy())
    usd.export_voxelgrids(tmp_path / "grids.usda", [grid, grid])
    if len(set(shape)) == 1:  # the plain layout knows cubes only
        assert all(torch.equal(one, grid) for one in usd.import_voxelgrids(tmp_path / "grids.usda"))


def test_a_grid_that_does_not_say_its_size_reaches_to_its_last_voxel(tmp_path: Path) -> None:
    stage = usd.export_voxelgrid(tmp_path / "grid.usda", torch.eye(3)[None].expand(3, 3, 3), "/grid")
    stage.GetPrimAtPath("/grid").RemoveProperty("primvars:grid_size")
    assert usd.import_voxelgrid(stage, "/grid").shape == (3, 3, 3)
    stage.GetPrimAtPath("/grid").CreateAttribute("primvars:grid_size", value_type("int")).Set(2)
    with pytest.raises(SourceError, match="within a grid"):
        usd.import_voxelgrid(stage, "/grid")


def value_type(name: str) -> Any:
    from pxr import Sdf

    return Sdf.ValueTypeNames.Find(name)


def test_times_are_those_of_samples_and_reading_blends_between_them(tmp_path: Path) -> None:
    stage, points = usd.create_stage(tmp_path / "stage.usda"), [torch.tensor([[0.0, 0, 0]]), torch.tensor([[4.0, 0, 8]])]
    for time, own in ((2, points[0]), (6, points[1])):
        usd.add_pointcloud(stage, "/cloud", own, time=time)
    usd.add_mesh(stage, "/mesh", vertices=torch.rand(3, 3), time=9.5)
    stage.Save()
    assert usd.get_authored_time_samples(tmp_path / "stage.usda") == [2, 6, 9.5]
    assert usd.get_pointcloud_bracketing_time_samples(stage, "/cloud", 3) == (2, 6)
    assert usd.import_pointcloud(stage, "/cloud", 3).points.tolist() == [[1, 0, 2]]
    assert usd.import_pointcloud(stage, "/cloud", 100).points.tolist() == [[4, 0, 8]]
    assert usd.import_pointclouds(stage, ["/cloud"], [2])[0].points.tolist() == [[0, 0, 0]]  # type: ignore[index]
    with pytest.raises(ConfigError, match="from 2 to 6 and no other value; give a time"):
        usd.import_pointcloud(stage, "/cloud")
    with pytest.raises(ConfigError, match="give a time"):
        usd.import_mesh(stage, "/mesh")


@given(st.integers(1, 200), st.floats(-1024, 1024, width=32))
@settings(max_examples=60, deadline=None)
def test_between_two_equal_samples_their_value_is_read_to_the_bit(step: int, number: float) -> None:
    stage = Usd.Stage.CreateInMemory()
    attribute = UsdGeom.Mesh.Define(stage, "/mesh").CreatePointsAttr()
    for time in (0, 200 + step):
        attribute.Set([(number, 1 / 3, -number)], time)
    assert value_of(attribute, step).tobytes() == value_of(attribute, 0).tobytes()


def test_a_file_that_is_there_is_replaced_only_when_told(tmp_path: Path) -> None:
    path = tmp_path / "one.usda"
    held = usd.export_pointcloud(path, "/World/first", torch.rand(3, 3))
    calls: list[Callable[..., Any]] = [
        lambda **more: usd.export_mesh(path, vertices=torch.rand(3, 3), **more),
        lambda **more: usd.export_pointcloud(path, "/World/cloud", torch.rand(3, 3), **more),
        lambda **more: usd.export_voxelgrid(path, torch.ones(2, 2, 2), **more),
    ]
    for export in calls:
        with pytest.raises(FileExistsError, match="overwrite=True"):
            export()
        export(overwrite=True)
        assert not Usd.Stage.Open(str(path)).GetPrimAtPath("/World/first")
    assert held.GetPrimAtPath("/World/VoxelGrids/voxelgrid_0")  # whoever has it open sees the new one


def test_a_file_that_changed_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "one.usdc"
    usd.export_pointcloud(path, "/cloud", torch.zeros(1, 3))
    kept = Usd.Stage.Open(str(path))
    other = tmp_path / "other.usdc"
    usd.export_pointcloud(other, "/cloud", torch.ones(1, 3))
    path.write_bytes(other.read_bytes())
    assert kept and usd.import_pointcloud(path).points.tolist() == [[1, 1, 1]]


def test_transforms_are_set_in_the_world_whatever_stands_above(tmp_path: Path) -> None:
    stage = usd.create_stage(tmp_path / "stage.usda", "Z")
    above = UsdGeom.Xform.Define(stage, "/World/above")
    above.AddTranslateOp().Set((10, 0, 0))
    above.AddRotateZOp().Set(30)
    UsdGeom.Xform.Define(stage, "/World/above/below").AddTranslateOp().Set((1, 1, 1))
    stage.Save()
    assert UsdGeom.GetStageUpAxis(stage) == "Z"
    assert usd.get_local_to_world_transform(stage, "/World") is None
    path, wanted = tmp_path / "stage.usda", turned(7, 8, 9)
    usd.set_local_to_world_transform(path, "/World/above/below", wanted)
    found = usd.get_local_to_world_transform(path, "/World/above/below")
    assert found is not None and found.dtype == torch.float64 and torch.allclose(found, wanted)
    usd.set_local_to_world_transform(stage, stage.GetPrimAtPath("/World/above/below"), turned(1, 8, 9), time=4)
    usd.set_local_to_world_transform(stage, "/World/above/below", turned(3, 8, 9), time=6)
    at_five = usd.get_local_to_world_transform(stage, "/World/above/below", time=5)
    assert at_five is not None and torch.allclose(at_five[:, 3], turned(2, 8, 9)[:, 3])
    row = Gf.Matrix4d(UsdGeom.XformCache(6).GetLocalToWorldTransform(stage.GetPrimAtPath("/World/above/below"))).GetRow(3)
    assert np.allclose(row, (3, 8, 9, 1))


def test_groups_of_elements_come_back(tmp_path: Path) -> None:
    path = tmp_path / "mesh.usda"
    usd.export_mesh(path, "/World/one", **square_mesh())
    usd.add_subset(path, "/World/one", "left", torch.tensor([0]))
    usd.add_subset(path, "/World/one", "both", torch.tensor([1, 0]), family_name="other")
    found = usd.import_subsets(path, "/World/one")
    assert {name: (group["indices"].tolist(), group["family_name"]) for name, group in found.items()} == {
        "/World/one/left": ([0], "part"),
        "/World/one/both": ([1, 0], "other"),
    }
    assert list(usd.import_subsets(path, "/World/one", "other")) == ["/World/one/both"]
    with pytest.raises(ConfigError, match="already exists"):
        usd.add_subset(path, "/World/one", "left", torch.tensor([1]))
    usd.add_subset(path, "/World/one", "left", torch.tensor([1]), overwrite=True)
    assert usd.import_subsets(path, "/World/one", "part")["/World/one/left"]["indices"].tolist() == [1]
    with pytest.raises(ConfigError, match="No prim found at path /World/two"):
        usd.add_subset(path, "/World/two", "left", torch.tensor([0]))


@pytest.mark.parametrize(
    ("call", "kind", "told"),
    [
        (lambda path: usd.create_stage(path, "X"), ConfigError, "'Y' or 'Z'"),
        (usd.import_mesh, SourceError, "no file"),
        (lambda path: usd.export_mesh(path, faces=torch.tensor([0, 1, 2])), ConfigError, r"give \(F, 3 or more\)"),
        (lambda path: usd.export_mesh(path, faces=torch.tensor([[0, 1, -2]])), ConfigError, "from -2"),
        (lambda path: usd.export_mesh(path, faces=torch.tensor([[0, 1, 2.5]])), ConfigError, "not whole numbers"),
        (lambda path: usd.export_mesh(path, faces=torch.tensor([[0, 1, 2**31]])), ConfigError, "32 bits"),
        (lambda path: usd.export_mesh(path, vertices=torch.rand(3, 2)), ConfigError, r"give \(..., 3\)"),
        (lambda path: usd.export_mesh(path, vertices=np.array([["a", "b", "c"]])), ConfigError, "numbers"),
        (lambda path: usd.export_meshes(path, vertices=[torch.rand(3, 3)], faces=[]), ConfigError, "same length"),
        (lambda path: usd.export_pointcloud(path, points=torch.rand(3, 3), points_type="cubes"), ConfigError, "point_instancer"),
        (lambda path: usd.export_pointcloud(path, points=torch.rand(3, 3), colors=torch.rand(2, 3)), ConfigError, "give 3"),
        (lambda path: usd.export_pointcloud(path, points=torch.rand(3, 3), colors=torch.ones(3, 3).int()), ConfigError, "uint8"),
        (usd.export_pointcloud, ConfigError, "points="),
        (
            lambda path: usd.export_pointclouds(path, points=[torch.rand(3, 3)], local_to_world=torch.eye(3)),
            ConfigError,
            r"\(4, 4\)",
        ),
        (
            lambda path: usd.export_pointclouds(path, points=[torch.rand(3, 3)], local_to_world=[1]),  # type: ignore[arg-type]
            TypeError,
            "list",
        ),
        (lambda path: usd.export_voxelgrid(path, torch.rand(3, 3)), ConfigError, r"\(X, Y, Z\)"),
        (lambda path: usd.export_voxelgrids(path, []), ConfigError, "no grids"),
    ],
)
def test_calls_that_cannot_be_right_are_refused(
    call: Callable[[Path], Any], kind: type[Exception], told: str, tmp_path: Path
) -> None:
    if told == "no grids":
        assert usd.import_voxelgrids(call(tmp_path / "one.usda")) == []
        return
    with pytest.raises(kind, match=told):
        call(tmp_path / "one.usda")


def test_a_file_that_is_no_usd_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "one.usd").write_bytes(b"PXR-USDC" + b"\\0" * 200)
    with pytest.raises(SourceError, match="no readable USD file"):
        usd.import_mesh(tmp_path / "one.usd")


@given(st.lists(st.tuples(*[st.floats(width=32) for _ in range(3)]), max_size=6), st.floats(0, 5, width=32))
@settings(max_examples=80, deadline=None)
def test_bounds_are_those_of_finite_points(points: list[tuple[float, float, float]], half: float) -> None:
    array = np.array(points, np.float32).reshape(-1, 3)
    finite = [point for point in points if all(math.isfinite(number) for number in point)]
    box = bounds(array, half)
    assert box.dtype == np.float32 and np.isfinite(box).all()
    if not finite:
        assert (box[0] > box[1]).all()
    else:
        low, high = (
            np.array(best, np.float64)
            for best in ([min(axis) for axis in zip(*finite, strict=True)], [max(axis) for axis in zip(*finite, strict=True)])
        )
        largest = np.finfo(np.float32).max
        assert np.allclose(box[0], np.clip(low - half, -largest, largest), rtol=1e-6, atol=1e-6)
        assert np.allclose(box[1], np.clip(high + half, -largest, largest), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool])
def test_numbers_of_any_kind_and_layout_are_taken(dtype: torch.dtype) -> None:
    values = torch.tensor([[1, 0, 1], [0, 1, 1]]).to(dtype)
    assert to_rows("values", values, 3).tolist() == [[1, 0, 1], [0, 1, 1]] and to_rows(
        "values", values.T[:, [0, 1, 1]], 3
    ).shape == (3, 3)
    assert to_integers("values", values).tolist() == values.long().tolist() and to_integers("one", values[0, 0]).shape == ()
    needed = torch.rand(2, 3, requires_grad=True)
    assert np.array_equal(to_rows("values", needed, 3), needed.detach().numpy())


GOLDEN = "data/kaolin/golden_usda"


@pytest.mark.real
def test_plain_files_are_those_of_kaolin_to_the_byte(real_data: Path, tmp_path: Path) -> None:
    golden = real_data / GOLDEN
    vertices, faces = read_obj(real_data / "data/kaolin/obj/rocket.obj")
    usd.export_mesh(tmp_path / "mesh.usda", "/World/mesh_0", vertices, faces)
    spheres = usd.import_pointcloud(golden / "pointcloud_PointInstancer.usda")
    usd.export_pointcloud(tmp_path / "pointcloud_PointInstancer.usda", "/World/pointcloud", spheres.points)
    points = usd.import_pointcloud(golden / "pointcloud_GeomPoints_colors.usda")
    name = tmp_path / "pointcloud_GeomPoints_colors.usda"
    usd.export_pointcloud(name, "/World/pointcloud", points.points, points.colors, points_type="usd_geom_points")
    stage = usd.create_stage(tmp_path / "pbr_material_values.usda")
    for path in usd.get_scene_paths(golden / "pbr_material_values.usda", prim_types="Sphere"):
        own = path.replace("/World/", "/World/Looks/")
        material = usd.import_material(golden / "pbr_material_values.usda", own)
        usd.export_material(material, stage, own, bound_prims=[stage.DefinePrim(path, "Sphere")])
    assert len(list(golden.iterdir())) == 4
    for file in golden.iterdir():
        assert (tmp_path / file.name).read_text() == file.read_text(), file.name


def read_obj(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    rows = [line.split() for line in path.read_text().splitlines() if line.startswith(("v ", "f "))]
    vertices = [[float(number) for number in row[1:4]] for row in rows if row[0] == "v"]
    faces = [[int(corner.split("/")[0]) - 1 for corner in row[1:]] for row in rows if row[0] == "f"]
    return torch.tensor(vertices), torch.tensor(faces)


@pytest.mark.real
def test_files_of_others_are_read(real_data: Path) -> None:
    folder = real_data / "data/kaolin/usd"
    city = usd.import_mesh(folder / "amsterdam.usda", with_materials=True, with_normals=True)
    assert city is not None and city.vertices.shape == (1974, 3) and city.faces.shape == (1932, 4)
    assert city.materials is not None and len(city.materials) == 14 and city.material_assignments is not None
    assert set(city.material_assignments.tolist()) == set(range(14))
    parts: Any = usd.import_meshes(folder / "amsterdam.usda", triangulate=True)
    assert [len(part.vertices) for part in parts] == [4, 98, 98, 98, 386, 386, 98, 8, 98, 98, 98, 4, 4, 4, 386, 98, 4, 4]
    assert sum(len(part.faces) for part in parts) == 2 * 1932
    for name in ("ico_flat.usda", "ico_smooth.usdz"):
        ball = usd.import_mesh(folder / name, with_materials=True, with_normals=True)
        assert ball is not None and ball.vertices.shape == (42, 3) and ball.faces.shape == (80, 3)
        assert ball.face_normals is not None and ball.uvs is not None and ball.materials is not None
        assert torch.allclose(ball.materials[0].diffuse_color, torch.tensor([0.8, 0.011375, 0.015621]))
    rocket = usd.import_mesh(folder / "rocket_hetero.usd", "/Root", triangulate=True)
    assert rocket is not None and rocket.faces.shape == (832, 3)
    old = usd.import_pointcloud(folder / "rocket_pointcloud.v0.9.0.usda", "/World/pointcloud")
    new = usd.import_pointcloud(real_data / GOLDEN / "pointcloud_PointInstancer.usda", "/World/pointcloud")
    assert torch.equal(old.points, new.points)
    regions = usd.import_subsets(folder / "subsets_sample.usda", "/World/SimpleGaussians", "region")
    assert [group["indices"].tolist() for group in regions.values()] == [[2, 3]]
