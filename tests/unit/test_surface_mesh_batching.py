"""Batches of surface meshes: from one kind into another, taken apart, put together, and moved into the world."""

from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scenemill.schemas.errors import ConfigError
from scenemill.trainers.surface_mesh import SurfaceMesh
from scenemill.trainers.surface_mesh_joining import group_materials_by_name
from scenemill.trainers.usd import PBRMaterial

Batching = SurfaceMesh.Batching


def single(seed: int, vertices: int = 6, faces: int = 4, uvs: int = 5, **more: Any) -> SurfaceMesh:
    """A mesh of triangles with coordinates, normals of its corners and two materials."""
    generator = torch.Generator().manual_seed(seed)
    return SurfaceMesh(
        torch.randn(vertices, 3, generator=generator),
        torch.stack([torch.randperm(vertices, generator=generator)[:3] for _ in range(faces)]),
        uvs=torch.rand(uvs, 2, generator=generator),
        face_uvs_idx=torch.randint(0, uvs, (faces, 3), generator=generator),
        face_normals=torch.nn.functional.normalize(torch.randn(faces, 3, 3, generator=generator), dim=-1),
        material_assignments=torch.randint(-1, 2, (faces,), generator=generator).short(),
        materials=[{"material_name": f"a{seed}"}, {"material_name": "shared"}],
        **more,
    )


def same_topology(count: int) -> list[SurfaceMesh]:
    meshes = [single(seed) for seed in range(count)]
    for mesh in meshes:
        mesh.faces = meshes[0].faces
    return meshes


def turn(seed: int) -> torch.Tensor:
    """An affine transform with stretching and shear."""
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3] = torch.randn(3, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return matrix


def assert_same(one: SurfaceMesh, other: SurfaceMesh) -> None:
    assert one.get_attributes() == other.get_attributes() and one.batching == other.batching
    for name in one.get_attributes(only_tensors=True):
        first, second = getattr(one, name), getattr(other, name)
        pairs = zip(first, second, strict=True) if isinstance(first, list) else [(first, second)]
        assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in pairs), name
    assert one.materials == other.materials


@pytest.mark.parametrize("way", list(product(Batching, repeat=2)))
def test_one_mesh_goes_through_all_kinds_of_batch_and_comes_back(way: tuple[Any, ...]) -> None:
    mesh, expected = single(1, transform=turn(1)), single(1, transform=turn(1))
    for kind in way:
        assert mesh.set_batching(kind) is mesh and mesh.batching == kind and len(mesh) == 1 and mesh.check_sanity()
    assert_same(mesh.set_batching(Batching.NONE), expected)


@pytest.mark.parametrize("count", [1, 3])
def test_meshes_of_one_topology_are_stacked_and_taken_apart(count: int) -> None:
    meshes = same_topology(count)
    batch = SurfaceMesh.cat(meshes)
    assert batch.batching == Batching.FIXED and len(batch) == count and batch.check_sanity()
    assert torch.equal(batch.faces, meshes[0].faces) and torch.equal(batch.vertices, torch.stack([one.vertices for one in meshes]))
    assert batch.materials == [one.materials for one in meshes]
    batch.set_batching(Batching.LIST)
    assert isinstance(batch.faces, list) and batch.check_sanity()
    for number, one in enumerate(meshes):
        assert_same(batch[number], one)
        assert_same(batch.set_batching(Batching.FIXED)[number - count], one)
    with pytest.raises(IndexError):
        batch[count]


def test_meshes_of_any_topology_make_a_list() -> None:
    meshes = [single(1), single(2, vertices=9, faces=7)]
    batch = SurfaceMesh.cat(meshes, fixed_topology=False)
    assert batch.batching == Batching.LIST and len(batch) == 2
    assert_same(batch[1], meshes[1])
    with pytest.raises(ConfigError, match="vertices"):
        SurfaceMesh.cat(meshes)
    with pytest.raises(ConfigError, match="faces"):
        SurfaceMesh.cat([single(1), single(2)])


def test_batches_and_meshes_are_put_together_in_order() -> None:
    meshes = same_topology(4)
    pair = SurfaceMesh.cat(meshes[1:3])
    batch = SurfaceMesh.cat([meshes[0], pair, meshes[3].set_batching(Batching.LIST)])
    assert torch.equal(batch.vertices, torch.cat([meshes[0].vertices[None], pair.vertices, meshes[3].vertices[0][None]]))
    assert pair.batching == Batching.FIXED and len(pair) == 2, "what was given stays as it was"


def test_a_part_of_a_batch_is_a_batch() -> None:
    batch = SurfaceMesh.cat(same_topology(4))
    for kind in (Batching.FIXED, Batching.LIST):
        part = batch.set_batching(kind)[1:3]
        assert part.batching == kind and len(part) == 2 and part.check_sanity() and len(part.materials) == 2
        assert torch.equal(part[1].vertices, batch[2].vertices)
    with pytest.raises(ConfigError, match="no slices"):
        _ = single(1)[:1]


def test_only_what_all_have_is_put_together() -> None:
    first, second = same_topology(2)
    second.uvs = None
    second.materials = None
    batch = SurfaceMesh.cat([first, second])
    assert not batch.has_attribute("uvs") and batch.has_attribute("face_uvs_idx") and not batch.has_attribute("materials")


def test_coordinates_of_different_number_become_those_of_corners(caplog: pytest.LogCaptureFixture) -> None:
    first, second = same_topology(1)[0], single(5, uvs=8)
    second.faces = first.faces
    batch = SurfaceMesh.cat([first, second])
    assert "uvs" in caplog.text and not batch.has_attribute("uvs") and not batch.has_attribute("face_uvs_idx")
    assert torch.equal(batch.face_uvs, torch.stack([first.face_uvs, second.face_uvs]))


def test_a_batch_may_leave_out_what_does_not_fit() -> None:
    first, second = same_topology(2)
    first.vertex_colors, second.vertex_colors = torch.rand(6, 3), torch.rand(6, 4)
    with pytest.raises(ConfigError, match="vertex_colors"):
        SurfaceMesh.cat([first, second])
    assert not SurfaceMesh.cat([first, second], skip_errors=True).has_attribute("vertex_colors")


def test_nothing_makes_no_batch_and_several_no_single_mesh() -> None:
    for join in (SurfaceMesh.cat, SurfaceMesh.flatten):
        with pytest.raises(ConfigError, match="no meshes"):
            join([])
    with pytest.raises(ConfigError, match="vertices cannot be in batching NONE"):
        SurfaceMesh.cat(same_topology(2)).set_batching(Batching.NONE)
    with pytest.raises(ValueError, match="OTHER"):
        single(1).set_batching("OTHER")  # type: ignore[arg-type]


def test_an_empty_batch_stays_as_it_is() -> None:
    empty = SurfaceMesh(torch.zeros(0, 4, 3), torch.zeros(2, 3, dtype=torch.int64))
    assert len(empty) == 0 and empty.set_batching(Batching.LIST).batching == Batching.FIXED


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 3))
def test_a_batch_computes_what_each_of_its_meshes_does(seed: int, count: int) -> None:
    meshes = [single(seed + number) for number in range(count)]
    for mesh in meshes:
        mesh.faces = meshes[0].faces
        mesh.face_normals = None
        mesh.vertex_features = torch.rand(6, 2)
    names = ("face_vertices", "face_normals", "face_uvs", "vertex_normals", "vertex_tangents", "face_features")
    fixed, listed = SurfaceMesh.cat(meshes), SurfaceMesh.cat(meshes, fixed_topology=False)
    for name in names:
        expected = [getattr(mesh, name) for mesh in meshes]
        assert torch.allclose(getattr(fixed, name), torch.stack(expected), atol=1e-6), name
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(getattr(listed, name), expected, strict=True)), name
    assert fixed.check_sanity() and listed.check_sanity()


def test_an_attribute_is_had_in_another_kind_of_batch_without_change() -> None:
    batch = SurfaceMesh.cat(same_topology(2))
    listed = batch.getattr_batched("face_vertices", Batching.LIST)
    assert isinstance(listed, list) and torch.equal(listed[1], batch.face_vertices[1]) and batch.batching == Batching.FIXED
    assert batch.getattr_batched("allow_auto_compute", Batching.LIST) is True
    assert batch.getattr_batched("vertex_colors", Batching.LIST) is None


def test_values_of_a_users_own_are_converted() -> None:
    convert, value = SurfaceMesh.convert_attribute_batching, torch.rand(1, 4)
    assert torch.equal(convert(value[0], Batching.NONE, Batching.FIXED), value)
    assert convert(value, Batching.FIXED, Batching.LIST, fixed_topology=True, batch_size=3) == [value] * 3
    assert convert(["one"], Batching.LIST, Batching.NONE, is_tensor=False) == "one"
    assert convert("one", Batching.NONE, Batching.FIXED, is_tensor=False) == ["one"]
    with pytest.raises(ConfigError, match="2 meshes in a batch of 3"):
        convert([value] * 2, Batching.LIST, Batching.FIXED, batch_size=3)
    with pytest.raises(ConfigError, match="not one mesh"):
        convert(["one", "two"], Batching.LIST, Batching.NONE, is_tensor=False)
    with pytest.raises(ConfigError, match="different faces"):
        convert([value, value + 1], Batching.LIST, Batching.FIXED, fixed_topology=True)


def naive_moved(points: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    rows = [matrix @ torch.tensor([*point, 1.0], dtype=torch.float64) for point in points.reshape(-1, 3).double().tolist()]
    return torch.stack(rows)[:, :3].reshape(points.shape).float()


@pytest.mark.parametrize("kind", list(Batching))
def test_the_world_moves_positions_and_keeps_normals_upright(kind: Any) -> None:
    matrix = turn(3)
    mesh = single(3, transform=matrix)
    mesh.face_normals = None
    edges, before = mesh.face_vertices[:, 1:] - mesh.face_vertices[:, :1], mesh.face_normals
    mesh.vertex_tangents = torch.nn.functional.normalize(torch.randn(6, 3), dim=-1)
    tangents = mesh.vertex_tangents
    moved = mesh.set_batching(kind).as_transformed()
    assert moved.batching == kind and not moved.has_attribute("transform") and mesh.has_attribute("transform")
    one = moved[0]
    assert torch.allclose(one.vertices, naive_moved(single(3).vertices, matrix), atol=1e-5)
    assert torch.allclose(one.face_vertices, one.vertices[one.faces], atol=1e-5)
    stretched = edges @ matrix[:3, :3].T.float()
    assert (one.face_normals[:, :1] * stretched).sum(-1).abs().max() < 1e-4
    assert torch.allclose(one.face_normals.norm(dim=-1), torch.ones(4, 3), atol=1e-5)
    straight = torch.nn.functional.normalize(tangents @ matrix[:3, :3].T.float(), dim=-1)
    assert torch.allclose(one.vertex_tangents, straight, atol=1e-5) and torch.equal(before, single_normals(3))


def single_normals(seed: int) -> torch.Tensor:
    mesh = single(seed)
    mesh.face_normals = None
    normals: torch.Tensor = mesh.face_normals
    return normals


def test_each_mesh_of_a_batch_has_its_own_transform() -> None:
    meshes = same_topology(3)
    meshes[0].transform, meshes[2].transform = turn(5).float(), turn(6).float()
    for fixed in (True, False):
        batch = SurfaceMesh.cat(meshes, fixed_topology=fixed)
        assert batch.transform.shape == (3, 4, 4) and batch.check_sanity() and torch.equal(batch.transform[1], torch.eye(4))
        moved = batch.as_transformed()
        for number, mesh in enumerate(meshes):
            assert torch.allclose(moved[number].vertices, mesh.as_transformed().vertices, atol=1e-6)
            assert torch.equal(batch[number].transform, batch.transform[number])


def test_one_transform_serves_a_whole_batch() -> None:
    batch = SurfaceMesh.cat(same_topology(2))
    batch.transform = turn(7)
    assert batch.check_sanity() and torch.equal(batch[1].transform, turn(7)) and torch.equal(batch[:1].transform, turn(7))
    assert torch.allclose(batch.as_transformed().vertices[1], naive_moved(batch.vertices[1], turn(7)), atol=1e-5)
    assert batch.set_batching(Batching.LIST).transform.shape == (2, 4, 4)


def test_flattened_meshes_keep_the_values_of_every_corner() -> None:
    meshes = [single(1, transform=turn(1)), single(2, vertices=9, faces=7, uvs=3), SurfaceMesh.cat(same_topology(2))]
    meshes[1].face_uvs_idx[2, 1] = -1
    flat = SurfaceMesh.flatten(meshes)
    singles = [meshes[0].as_transformed(), meshes[1], meshes[2][0], meshes[2][1]]
    assert flat.batching == Batching.NONE and flat.check_sanity() and not flat.has_attribute("transform")
    for name in ("face_vertices", "face_normals"):
        assert torch.equal(getattr(flat, name), torch.cat([getattr(one, name) for one in singles])), name
    assert flat.face_uvs_idx[6, 1] == -1 and (flat.face_uvs_idx < 0).sum() == 1
    flat.face_uvs_idx[6, 1] = len(meshes[0].uvs)
    assert torch.equal(flat.face_uvs, torch.cat([one.face_uvs for one in singles]))
    for number, (mesh, start) in enumerate(zip(singles, (0, 4, 11, 15), strict=True)):
        for face, own in enumerate(mesh.material_assignments.tolist()):
            named = int(flat.material_assignments[start + face])
            assert named == (-1 if own < 0 else own + 2 * number) and (own < 0 or flat.materials[named] is mesh.materials[own])
    assert flat.material_assignments.dtype == torch.int16


def test_flattened_meshes_share_materials_of_one_name_if_asked() -> None:
    meshes = [single(1), single(2)]
    plain, grouped = SurfaceMesh.flatten(meshes), SurfaceMesh.flatten(meshes, group_materials_by_name=True)
    assert [one["material_name"] for one in grouped.materials] == ["a1", "shared", "a2"] and len(plain.materials) == 4
    names = [[mesh.materials[k]["material_name"] if k >= 0 else "" for k in mesh.material_assignments] for mesh in (plain, grouped)]
    assert names[0] == names[1]


def test_a_mesh_without_materials_has_faces_without_one() -> None:
    plain = single(2)
    plain.materials = plain.material_assignments = None
    flat = SurfaceMesh.flatten([single(1), plain])
    assert flat.material_assignments[4:].tolist() == [-1] * 4 and len(flat.materials) == 2
    assert SurfaceMesh.flatten([plain]).materials is None


def test_flattened_meshes_take_the_values_of_corners_where_indices_are_missing() -> None:
    first, second = single(1), single(2)
    expected = torch.cat([first.face_uvs, second.face_uvs])
    second.face_uvs = second.get_or_compute_attribute("face_uvs", should_cache=False)
    second.uvs = None
    first.face_uvs = None
    assert not first.has_attribute("face_uvs")
    flat = SurfaceMesh.flatten([first, second])
    assert not flat.has_attribute("uvs") and torch.equal(flat.face_uvs, expected)
    first.uvs, first.face_uvs_idx = torch.zeros(0, 2), torch.full((4, 3), -1)
    assert SurfaceMesh.flatten([first, second]).face_uvs is None


def test_faces_of_different_size_are_not_flattened_and_other_attributes_may_be_left_out() -> None:
    quads = SurfaceMesh(torch.rand(4, 3), torch.tensor([[0, 1, 2, 3]]))
    with pytest.raises(ConfigError, match="corners"):
        SurfaceMesh.flatten([single(1), quads])
    first, second = single(1), single(2)
    first.vertex_features, second.vertex_features = torch.rand(6, 2), torch.rand(6, 3)
    with pytest.raises(ConfigError, match="vertex_features"):
        SurfaceMesh.flatten([first, second])
    assert not SurfaceMesh.flatten([first, second], skip_errors=True).has_attribute("vertex_features")


def test_meshes_without_faces_have_faces_of_any_size() -> None:
    points = SurfaceMesh(torch.rand(2, 3), torch.zeros(0, 3, dtype=torch.int64), face_normals=torch.zeros(0, 3, 3))
    quads = SurfaceMesh(torch.rand(4, 3), torch.tensor([[0, 1, 2, 3]]), face_normals=torch.rand(1, 4, 3))
    flat = SurfaceMesh.flatten([points, quads, points])
    assert flat.faces.tolist() == [[2, 3, 4, 5]] and len(flat.vertices) == 8 and torch.equal(flat.face_normals, quads.face_normals)
    assert SurfaceMesh.flatten([points, points]).faces.shape == (0, 3)


def test_materials_are_grouped_by_name_and_those_without_one_stay_apart() -> None:
    materials = [PBRMaterial(), PBRMaterial("x"), {"material_name": "y"}, {}, PBRMaterial("x"), {"material_name": "x"}]
    kept, assigned = group_materials_by_name(materials, torch.tensor([5, 4, 3, 2, 1, 0, -1]))
    assert kept == [materials[0], materials[1], materials[2], materials[3]]
    assert assigned is not None and assigned.tolist() == [1, 1, 3, 2, 1, 0, -1]
    assert group_materials_by_name(materials, None) == (kept, None)
