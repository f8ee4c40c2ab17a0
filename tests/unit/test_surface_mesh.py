"""Surface meshes: what they hold, what they compute, and what they say, against loops over faces and arithmetic."""

import copy
import logging
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scenemill.schemas.errors import ConfigError
from scenemill.trainers.surface_mesh import SurfaceMesh
from scenemill.trainers.surface_mesh_text import tensor_info
from scenemill.trainers.usd import PBRMaterial

Batching = SurfaceMesh.Batching


def random_parts(seed: int, vertices: int = 7, faces: int = 5, size: int = 3) -> dict[str, Any]:
    """A single mesh with all that is stored of one."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "vertices": torch.randn(vertices, 3, generator=generator),
        "faces": torch.stack([torch.randperm(vertices, generator=generator)[:size] for _ in range(faces)]),
        "normals": torch.nn.functional.normalize(torch.randn(6, 3, generator=generator), dim=-1),
        "face_normals_idx": torch.randint(0, 6, (faces, size), generator=generator),
        "uvs": torch.rand(8, 2, generator=generator),
        "face_uvs_idx": torch.randint(0, 8, (faces, size), generator=generator),
        "material_assignments": torch.randint(-1, 2, (faces,), generator=generator).short(),
        "materials": [{"material_name": "one"}, {"material_name": "two"}],
    }


def bare(seed: int, **sizes: int) -> SurfaceMesh:
    parts = random_parts(seed, **sizes)
    return SurfaceMesh(parts["vertices"], parts["faces"])


def naive_corners(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return torch.tensor([[values[row].tolist() for row in face] for face in index.tolist()])


def naive_means(count: int, faces: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """The mean at each vertex of the values of its corners, corner by corner."""
    means = []
    for vertex in range(count):
        found = [values[f, c].double() for f in range(len(faces)) for c in range(faces.shape[1]) if faces[f, c] == vertex]
        means.append(torch.stack(found).mean(dim=0) if found else torch.zeros(values.shape[-1], dtype=torch.float64))
    return torch.stack(means).float()


def naive_flat_normals(corners: torch.Tensor) -> torch.Tensor:
    normals = []
    for a, b, c in corners.tolist():
        (ux, uy, uz), (vx, vy, vz) = ([q - p for p, q in zip(a, other, strict=True)] for other in (b, c))
        normal = torch.tensor([uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx])
        normals.append((normal / normal.norm()).expand(3, 3))
    return torch.stack(normals)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(3, 5))
def test_corners_take_the_values_of_their_rows(seed: int, size: int) -> None:
    parts = random_parts(seed, size=size)
    mesh = SurfaceMesh(**parts)
    assert torch.equal(mesh.face_vertices, naive_corners(parts["vertices"], parts["faces"]))
    assert torch.equal(mesh.face_uvs, naive_corners(parts["uvs"], parts["face_uvs_idx"]))
    assert torch.equal(mesh.face_normals, naive_corners(parts["normals"], parts["face_normals_idx"]))
    assert torch.allclose(mesh.vertex_normals, naive_means(7, parts["faces"], mesh.face_normals), atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4))
def test_colors_and_features_go_from_vertices_to_corners_and_back(seed: int, width: int) -> None:
    mesh, values = bare(seed), torch.rand(7, width)
    mesh.vertex_features = values
    assert torch.equal(mesh.face_features, naive_corners(values, mesh.faces))
    other, at_corners = bare(seed), torch.rand(5, 3, width)
    other.face_colors = at_corners
    assert torch.allclose(other.vertex_colors, naive_means(7, other.faces, at_corners), atol=1e-6)


def test_triangles_without_normals_get_those_of_their_planes() -> None:
    mesh = bare(3)
    expected = naive_flat_normals(mesh.vertices[mesh.faces])
    assert torch.allclose(mesh.face_normals, expected, atol=1e-5)
    turned = SurfaceMesh(mesh.vertices, mesh.faces.flip(1))
    assert torch.allclose(turned.face_normals, -expected, atol=1e-5)


def test_a_triangle_of_no_area_has_a_normal_of_no_length_and_no_nan() -> None:
    mesh = SurfaceMesh(torch.zeros(3, 3), torch.tensor([[0, 1, 2]]))
    assert mesh.face_normals.tolist() == [[[0.0, 0.0, 0.0]] * 3] and mesh.vertex_normals.abs().max() == 0


def test_normals_of_vertices_come_before_those_of_planes() -> None:
    mesh = bare(4)
    mesh.vertex_normals = torch.nn.functional.normalize(torch.randn(7, 3), dim=-1)
    assert torch.equal(mesh.face_normals, naive_corners(mesh.vertex_normals, mesh.faces))


def test_normals_that_some_corners_lack_give_way_to_those_of_planes() -> None:
    parts = random_parts(5)
    parts["face_normals_idx"][2, 1] = -1
    assert torch.allclose(SurfaceMesh(**parts).face_normals, naive_flat_normals(parts["vertices"][parts["faces"]]), atol=1e-5)


def test_a_corner_without_coordinates_gets_the_first() -> None:
    parts = random_parts(6)
    parts["face_uvs_idx"][0, 2] = -1
    mesh = SurfaceMesh(**parts)
    assert torch.equal(mesh.face_uvs[0, 2], parts["uvs"][0]) and mesh.face_uvs_idx[0, 2] == -1


def test_quads_have_no_normals_without_further_knowledge(caplog: pytest.LogCaptureFixture) -> None:
    mesh = bare(7, size=4)
    assert mesh.face_normals is None and "only triangles" in caplog.text and not mesh.is_triangular()
    mesh.unset_attributes_return_none = False
    with pytest.raises(AttributeError, match="only triangles"):
        _ = mesh.face_normals


@pytest.mark.parametrize(("slant", "sign"), [(0.0, 1), (-0.2, 1), (-0.5, -1)])
def test_tangents_point_where_u_grows(slant: float, sign: int) -> None:
    """On a sphere with v along latitude and u along longitude, slanted or not, the tangents are the eastward directions."""
    rings, segments = 12, 24
    latitude, longitude = torch.meshgrid(torch.linspace(-1.2, 1.2, rings), torch.linspace(0, 3, segments), indexing="ij")
    points = torch.stack([latitude.cos() * longitude.cos(), latitude.cos() * longitude.sin(), latitude.sin()], dim=-1).reshape(
        -1, 3
    )
    number = torch.arange(rings * segments).reshape(rings, segments)
    low, right, up, far = number[:-1, :-1], number[:-1, 1:], number[1:, :-1], number[1:, 1:]
    faces = torch.cat([torch.stack([low, right, far], -1).reshape(-1, 3), torch.stack([low, far, up], -1).reshape(-1, 3)])
    uvs = torch.stack([sign * longitude / 3 + slant * latitude, latitude], dim=-1).reshape(-1, 2)
    mesh = SurfaceMesh(points, faces, uvs=uvs, face_uvs_idx=faces, vertex_normals=points)
    east = torch.stack([-longitude.sin(), longitude.cos(), torch.zeros_like(longitude)], dim=-1).reshape(-1, 3)
    inner = number[1:-1, 1:-1].reshape(-1)
    assert ((mesh.vertex_tangents * east).sum(-1)[inner] * sign > 0.99).all()
    assert (mesh.vertex_tangents * points).sum(-1).abs().max() < 1e-5
    assert torch.equal(mesh.face_tangents, mesh.vertex_tangents[faces])


def test_the_gradient_reaches_what_an_attribute_was_computed_from() -> None:
    mesh = bare(8)
    mesh.vertices.requires_grad = True
    mesh.face_vertices.sum().backward()
    counts = torch.bincount(mesh.faces.reshape(-1), minlength=7).float()
    assert torch.equal(mesh.vertices.grad, counts[:, None].expand(7, 3))
    assert not mesh.has_attribute("face_vertices") and mesh.face_normals.requires_grad
    with torch.no_grad():
        _ = mesh.face_vertices
    assert not mesh.has_attribute("face_vertices"), "a value without its gradient must not stay"


def test_what_was_computed_is_kept_and_what_it_needed_too() -> None:
    mesh = bare(9)
    assert mesh.get_attributes(only_tensors=True) == ["vertices", "faces"]
    assert mesh.get_or_compute_attribute("face_normals", should_cache=False).shape == (5, 3, 3)
    assert mesh.get_attributes(only_tensors=True) == ["vertices", "faces"]
    assert mesh.face_normals is mesh.face_normals
    assert mesh.get_attributes(only_tensors=True) == ["vertices", "faces", "face_vertices", "face_normals"]
    mesh.vertices.requires_grad = True
    assert mesh.get_or_compute_attribute("vertex_normals", should_cache=True) is mesh.get_attribute("vertex_normals")


def test_a_new_value_drops_what_was_computed_from_the_old_one_and_keeps_what_was_given() -> None:
    mesh = bare(10)
    given_uvs = torch.rand(5, 3, 2)
    mesh.face_uvs = given_uvs
    before = mesh.vertex_normals
    mesh.vertices = -mesh.vertices @ torch.diag(torch.tensor([1.0, 2.0, 3.0]))
    assert not mesh.has_attribute("vertex_normals") and not torch.allclose(mesh.vertex_normals, before)
    assert mesh.face_uvs is given_uvs
    mesh.face_normals = torch.ones(5, 3, 3)
    mesh.vertices = mesh.vertices * 2
    assert torch.equal(mesh.face_normals, torch.ones(5, 3, 3)), "what was set is no longer computed"


def test_better_sources_set_later_are_used() -> None:
    mesh = bare(10)
    flat = mesh.face_normals
    mesh.vertex_normals = torch.ones(7, 3)
    assert torch.equal(mesh.face_normals, torch.ones(5, 3, 3)) and flat.norm(dim=-1).max() < 1.1
    mesh.normals, mesh.face_normals_idx = torch.zeros(1, 3), torch.zeros(5, 3, dtype=torch.int64)
    assert torch.equal(mesh.face_normals, torch.zeros(5, 3, 3))


def test_nothing_computes_itself_where_that_is_off() -> None:
    mesh = bare(11)
    mesh.allow_auto_compute = False
    assert mesh.face_vertices is None and mesh.probably_can_compute_attribute("face_vertices")
    assert mesh.get_or_compute_attribute("face_vertices").shape == (5, 3, 3)
    mesh.unset_attributes_return_none = False
    with pytest.raises(AttributeError, match="allow_auto_compute is off"):
        _ = mesh.vertex_normals


@pytest.mark.parametrize("name", ["uvs", "face_uvs", "vertex_colors", "transform"])
def test_what_cannot_be_had_is_none_or_an_error(name: str) -> None:
    mesh = bare(12)
    assert getattr(mesh, name) is None and mesh.get_attribute(name) is None and not mesh.has_or_can_compute_attribute(name)
    mesh.unset_attributes_return_none = False
    for ask in (mesh.get_attribute, mesh.get_or_compute_attribute, lambda one: getattr(mesh, one)):
        with pytest.raises(AttributeError, match=name):
            ask(name)


def test_only_known_names_can_be_set_or_asked_for() -> None:
    mesh = bare(13)
    with pytest.raises(AttributeError, match="no attribute 'colour' to set"):
        mesh.colour = 1
    for ask in (mesh.get_attribute, mesh.describe_attribute, mesh.has_or_can_compute_attribute, mesh.get_or_compute_attribute):
        with pytest.raises(AttributeError, match="colour"):
            ask("colour")
    assert not mesh.has_attribute("colour")
    with pytest.raises(AttributeError, match="has not been set"):
        del mesh.uvs


def test_none_takes_an_attribute_away() -> None:
    mesh = SurfaceMesh(**random_parts(14))
    mesh.uvs = None
    del mesh.normals
    assert not mesh.has_attribute("uvs") and not mesh.has_attribute("normals") and mesh.uvs is None
    mesh.uvs = None
    assert not mesh.has_attribute("uvs")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("faces", torch.zeros(5, dtype=torch.int64)),
        ("face_uvs", torch.zeros(5, 4, 2)),
        ("face_normals_idx", torch.zeros(4, 3, dtype=torch.int64)),
        ("vertex_colors", torch.zeros(6, 3)),
        ("uvs", torch.zeros(4, 3)),
        ("transform", torch.zeros(3, 4)),
        ("material_assignments", [0] * 5),
    ],
)
def test_shapes_that_do_not_fit_are_refused(name: str, value: Any, caplog: pytest.LogCaptureFixture) -> None:
    parts = random_parts(15) | {name: value}
    with pytest.raises(ConfigError, match=name):
        SurfaceMesh(**parts)
    lax = SurfaceMesh(**parts, strict_checks=False)
    assert not lax.check_sanity() and name in caplog.text and SurfaceMesh(**random_parts(15)).check_sanity()


def test_vertices_and_faces_must_be_tensors() -> None:
    with pytest.raises(ConfigError, match="ndarray"):
        SurfaceMesh(torch.zeros(3, 3).numpy(), torch.zeros(1, 3))  # type: ignore[arg-type]


def test_a_mesh_without_faces_or_vertices_is_one() -> None:
    empty = SurfaceMesh(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int64))
    assert (
        empty.check_sanity() and len(empty) == 1 and empty.face_normals.shape == (0, 3, 3) and empty.vertex_normals.shape == (0, 3)
    )


def test_words_name_each_tensor_and_what_can_be_computed() -> None:
    mesh = SurfaceMesh(**random_parts(16))
    lines = str(mesh).split("\n")
    assert lines[0] == "SurfaceMesh object with batching strategy NONE"
    assert lines[1] == "            vertices: [7, 3] (torch.float32)[cpu]  "
    assert lines[7] == "material_assignments: [5] (torch.int16)[cpu]  " and lines[8] == "           materials: list of length 2"
    flat = "(normals, face_normals_idx) or (vertex_normals, faces) or (vertices, faces)"
    assert f"        face_normals: if possible, computed on access from: {flat}" in lines and repr(mesh) == str(mesh)
    assert mesh.describe_attribute("face_uvs") == "None"
    assert mesh.describe_attribute("allow_auto_compute") == "  allow_auto_compute: True"
    mesh.vertices = torch.tensor([[-1.0, 0, 0], [4, 0, 0]])
    assert mesh.describe_attribute("vertices", print_stats=True).endswith("  - [min -1.0000, max 4.0000, mean 0.5000] ")
    assert "is_leaf=True, device=cpu" in mesh.to_string(detailed=True)
    assert tensor_info(torch.zeros(0, 3), "none", print_stats=True).endswith("[min nan, max nan, mean nan] ")


def test_words_of_a_list_have_a_line_for_each_mesh() -> None:
    mesh = SurfaceMesh(**random_parts(17)).set_batching(Batching.LIST)
    assert mesh.describe_attribute("uvs").split("\n") == [
        "                 uvs: [",
        "                      0: [8, 2] (torch.float32)[cpu]  ",
        "                      ]",
    ]
    assert mesh.describe_attribute("materials").split("\n")[1] == "                      0: list of length 2"


def test_the_table_of_attributes_tells_shapes_by_the_kind_of_batch() -> None:
    fixed = SurfaceMesh.attribute_info_string(Batching.FIXED).split("\n")
    assert fixed[0] == "Expected SurfaceMesh contents for batching strategy FIXED"
    assert "            vertices: (torch.FloatTensor) of shape ['B', 'V', 3]" in fixed
    assert "               faces: (torch.IntTensor)   of shape ['F', 'FSz']" in fixed
    assert fixed[-1] == "           materials: non-tensor attribute"
    listed = SurfaceMesh.attribute_info_string(Batching.LIST).split("\n")
    assert "            face_uvs: [torch.FloatTensor] of shapes ['F_i', 'FSz_i', 2]" in listed


def test_copies_share_tensors_and_nothing_else() -> None:
    mesh = SurfaceMesh(**random_parts(18)).set_batching(Batching.LIST)
    shallow, deep = copy.copy(mesh), copy.deepcopy(mesh)
    assert shallow.vertices[0] is mesh.vertices[0] and shallow.vertices is not mesh.vertices
    shallow.uvs = None
    assert (
        mesh.has_attribute("uvs") and torch.equal(deep.vertices[0], mesh.vertices[0]) and deep.vertices[0] is not mesh.vertices[0]
    )
    loaded = pickle.loads(pickle.dumps(mesh))
    assert loaded.get_attributes() == mesh.get_attributes() and torch.equal(loaded.faces[0], mesh.faces[0])
    assert loaded.face_vertices[0].shape == (5, 3, 3)


def test_a_dictionary_has_what_is_set() -> None:
    mesh = SurfaceMesh(**random_parts(19))
    named = mesh.as_dict()
    assert set(named) == {*random_parts(19), "batching", "allow_auto_compute", "unset_attributes_return_none"}
    assert named["uvs"] is mesh.uvs and set(mesh.as_dict(only_tensors=True)) == {*random_parts(19)} - {"materials"}


def test_dtypes_devices_and_gradients_change_in_a_copy() -> None:
    mesh = SurfaceMesh(**random_parts(20))
    mesh.materials = [PBRMaterial("one", diffuse_texture=torch.rand(2, 2, 3)), {"Kd": torch.rand(3), "note": "text"}]
    half = mesh.float_tensors_to(torch.float16)
    assert half.vertices.dtype == half.uvs.dtype == torch.float16 and half.faces.dtype == torch.int64
    assert mesh.vertices.dtype == torch.float32
    mesh.vertices.requires_grad = mesh.uvs.requires_grad = True
    assert not mesh.detach().vertices.requires_grad
    partly = mesh.detach(attributes=["uvs"])
    assert partly.vertices.requires_grad and not partly.uvs.requires_grad and mesh.uvs.requires_grad
    away = mesh.to("meta")
    assert away.faces.is_meta and away.materials[0].diffuse_texture.is_meta and away.materials[1]["Kd"].is_meta
    assert away.materials[1]["note"] == "text" and not mesh.materials[0].diffuse_texture.is_meta
    assert mesh.to("meta", attributes=["faces"]).faces.is_meta and not mesh.to("meta", ["faces"]).uvs.is_meta
    assert torch.equal(mesh.cpu(["faces"]).faces, mesh.faces)


def test_indices_are_made_of_values_of_corners() -> None:
    mesh = bare(21)
    mesh.face_uvs = torch.rand(5, 3, 2)
    mesh.ensure_indexed_attribute("uvs")
    assert torch.equal(mesh.uvs[mesh.face_uvs_idx], mesh.face_uvs) and len(mesh.uvs) == 15
    batch = SurfaceMesh(torch.rand(2, 7, 3), mesh.faces, face_uvs=torch.rand(2, 5, 3, 2))
    batch.ensure_indexed_attribute("uvs")
    assert batch.check_sanity() and torch.equal(batch[1].uvs[batch[1].face_uvs_idx], batch.face_uvs[1])
    with pytest.raises(ConfigError, match="no face_uvs"):
        bare(22).ensure_indexed_attribute("uvs")
    with pytest.raises(ConfigError, match="vertices"):
        mesh.ensure_indexed_attribute("vertices")


def test_what_goes_wrong_on_access_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    mesh = SurfaceMesh(torch.zeros(2, 3), torch.tensor([[0, 1, 2]]))
    with caplog.at_level(logging.WARNING):
        assert mesh.face_vertices is None
    assert "face_vertices" in caplog.text and "out of" in caplog.text
