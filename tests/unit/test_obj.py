"""OBJ files in: positions, coordinates, normals and faces against a reader of one line at a time, and broken files."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scenemill.schemas.errors import ConfigError, SourceError
from scenemill.trainers import obj
from scenemill.trainers.usd import NonHomogeneousMeshError, heterogeneous_mesh_handler_skip, mesh_handler_naive_triangulate

TETRAHEDRON = "v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nf 1 3 2\nf 1 2 4\nf 1 4 3\nf 2 3 4\n"


def written(folder: Path, text: str, name: str = "mesh.obj") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def naive_mesh(text: str) -> dict[str, Any]:
    """The lists of a file, line by line; each corner as (v, vt, vn) from 0, -1 for none."""
    found: dict[str, Any] = {"v": [], "vt": [], "vn": [], "f": []}
    for line in text.splitlines():
        words = line.split()
        if not words or words[0] not in found:
            continue
        if words[0] != "f":
            found[words[0]].append([float(word) for word in words[1:]])
            continue
        face = []
        for word in words[1:]:
            corner = [-1, -1, -1]
            for place, part in enumerate(word.split("/")):
                number = int(part or 0)
                corner[place] = number - 1 if number >= 0 else len(found[("v", "vt", "vn")[place]]) + number
            face.append(corner)
        found["f"].append(face)
    return found


@st.composite
def obj_texts(draw: st.DrawFn) -> str:
    """Files of triangles in which elements and faces take turns, and corners have any form."""
    lines, counts = [], {"v": 0, "vt": 0, "vn": 0}
    for _ in range(draw(st.integers(1, 4))):
        for kind, width in (("v", 3), ("vt", 2), ("vn", 3)):
            for _ in range(draw(st.integers(1, 4))):
                values = draw(st.lists(st.integers(-99, 99), min_size=width, max_size=width))
                lines.append(f"{kind} {' '.join(str(value / 8) for value in values)}")
                counts[kind] += 1
        form = draw(st.sampled_from(["v", "v/vt", "v//vn", "v/vt/vn", "any"]))
        for _ in range(draw(st.integers(0, 3))):
            corners = []
            for _ in range(3):
                own = draw(st.sampled_from(["v", "v/vt", "v//vn", "v/vt/vn"])) if form == "any" else form
                parts = [draw(st.integers(1, counts[part])) if part else None for part in own.split("/")]
                signs = [draw(st.booleans()) for _ in parts]
                kinds = own.split("/")
                shown = [
                    "" if part is None else str(part if positive else part - counts[kind] - 1)
                    for part, positive, kind in zip(parts, signs, kinds, strict=True)
                ]
                corners.append("/".join(shown))
            lines.append("f " + " ".join(corners))
    return "\n".join(lines)


@settings(max_examples=60, deadline=None)
@given(obj_texts())
def test_files_are_read_as_a_plain_reader_reads_them(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    mesh = obj.import_mesh(written(tmp_path_factory.mktemp("obj"), text), with_materials=True, with_normals=True)
    expected = naive_mesh(text)
    assert mesh is not None and mesh.vertices.tolist() == expected["v"] and mesh.normals.tolist() == expected["vn"]
    assert mesh.uvs.tolist() == [[u, 1 - v] for u, v in expected["vt"]]
    rows = torch.stack([mesh.faces, mesh.face_uvs_idx, mesh.face_normals_idx], dim=-1)
    assert rows.tolist() == expected["f"] and rows.dtype == torch.int64 and mesh.vertices.dtype == torch.float32


def test_what_is_not_asked_for_is_not_read(tmp_path: Path) -> None:
    path = written(tmp_path, "mtllib missing.mtl\n" + TETRAHEDRON + "vt nonsense\nvn nonsense\nf 1/9/9 2/9/9 3/9/9\n")
    mesh = obj.import_mesh(path)
    assert mesh is not None and mesh.get_attributes(only_tensors=True) == ["vertices", "faces"] and mesh.faces.shape == (5, 3)
    assert mesh.materials is None and mesh.uvs is None


def test_corners_without_coordinates_or_normals_have_none(tmp_path: Path) -> None:
    mesh = obj.import_mesh(written(tmp_path, TETRAHEDRON), True, True)
    assert mesh is not None and mesh.uvs.shape == (0, 2) and mesh.normals.shape == (0, 3)
    assert (mesh.face_uvs_idx == -1).all() and (mesh.face_normals_idx == -1).all()
    assert mesh.face_uvs is None and mesh.materials == [] and mesh.material_assignments.tolist() == [-1] * 4
    outward = mesh.face_vertices.mean(dim=1) - torch.full((3,), 0.25)
    assert ((mesh.face_normals[:, 0] * outward).sum(-1) > 0).all(), "normals come from the faces"


def test_spaces_comments_and_lines_that_go_on_are_understood(tmp_path: Path) -> None:
    lines = [
        "\ufeff# a tétraèdre",
        "  v\t0 0 0 # the origin",
        "v 1 0 0 0.5 0.5 0.5",
        "v 0 1 0",
        "v 0 0 1 1.0",
        "",
        "g x",
        "f 1/ 2// \\",
        " 3",
    ]
    text = "\r\n".join(lines)
    mesh = obj.import_mesh(written(tmp_path, text), True, True)
    assert mesh is not None and mesh.vertices.tolist() == [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert mesh.faces.tolist() == [[0, 1, 2]] and mesh.face_uvs_idx.tolist() == [[-1, -1, -1]]


def test_corners_may_end_in_slashes(tmp_path: Path) -> None:
    mixed = obj.import_mesh(written(tmp_path, TETRAHEDRON + "f 1/ 2/ 4/\nf 1// 2// 4//\n"), True, True)
    assert mixed is not None and mixed.faces[-2:].tolist() == [[0, 1, 3]] * 2 and (mixed.face_uvs_idx == -1).all()
    alike = obj.import_mesh(written(tmp_path, "v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1/ 2/ 3/\n"), True)
    assert alike is not None and alike.faces.tolist() == [[0, 1, 2]] and (alike.face_uvs_idx == -1).all()


@pytest.mark.parametrize("text", ["", "# nothing\n", "v 0 0 0\n", "v 1 2 3\nl 1 1\np 1\n"])
def test_a_file_without_faces_is_a_mesh_without_faces(text: str, tmp_path: Path) -> None:
    mesh = obj.import_mesh(written(tmp_path, text), True, True, triangulate=True)
    assert mesh is not None and mesh.faces.shape == (0, 3) and mesh.check_sanity() and mesh.material_assignments.shape == (0,)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("f 1 2 5", "v 5 of 4"),
        ("f 1 2 0", "v 0 of 4"),
        ("f 1 2 -5", "v -5 of 4"),
        ("f 1/2 2/2 3/2", "vt 2 of 1"),
        ("f 1/-2 2/1 3/1", "vt -2 of 1"),
        ("f 1//2 2//1 3//1", "vn 2 of 1"),
        ("f 1 2", "'1 2'"),
        ("f", "''"),
        ("f 1 2 x", "'x'"),
        ("f 1/1/1/1 2/1/1/1 3/1/1/1", "1/1/1/1"),
        ("f 1 2 1.5", "'1.5'"),
        ("f /1 /1 /1", "v 0 of 4"),
        ("f 1 2 99999999999999999999", "too"),
        ("v 1 2", "v: "),
        ("v", "without numbers"),
        ("v 1 2 nan", r"v number 5: \[1.0, 2.0, nan\]"),
        ("v 1 inf 2", "v number 5"),
        ("v 1 1e39 2", "v number 5"),
        ("v a b c", "could not convert string 'a'"),
        ("vt 1", "vt: "),
        ("vt nan 0", "vt number 2"),
        ("vn 0 0 nan", "vn number 2"),
    ],
)
def test_values_that_no_mesh_can_have_are_refused(line: str, message: str, tmp_path: Path) -> None:
    path = written(tmp_path, f"{TETRAHEDRON}vt 0 0\nvn 0 0 1\n{line}\n")
    with pytest.raises(SourceError, match=message) as caught:
        obj.import_mesh(path, True, True)
    assert str(path) in str(caught.value)


def test_files_that_are_none_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (tmp_path / "missing.obj", tmp_path, tmp_path / "nul\0.obj"):
        with pytest.raises(SourceError, match="missing"):
            obj.import_mesh(path)
    (tmp_path / "binary.obj").write_bytes(b"v \xff\xfe\x00")
    with pytest.raises(SourceError, match="no UTF-8"):
        obj.import_mesh(tmp_path / "binary.obj")
    monkeypatch.setattr("scenemill.trainers.obj.parsing.LARGEST_BYTES", 10)
    with pytest.raises(SourceError, match="at most 10"):
        obj.import_mesh(written(tmp_path, TETRAHEDRON))


@settings(max_examples=60, deadline=None)
@given(st.text(st.sampled_from("vtnf 0123456789/-.#\\\nusemtlib\x00é"), max_size=120))
def test_any_text_is_a_mesh_or_a_clear_error(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = written(tmp_path_factory.mktemp("obj"), text)
    try:
        mesh = obj.import_mesh(path, True, True, error_handler=obj.ignore_error_handler, triangulate=True)
    except (SourceError, ConfigError) as error:
        assert str(error)
    else:
        assert mesh is not None and mesh.check_sanity() and (not len(mesh.faces) or int(mesh.faces.max()) < len(mesh.vertices))


MIXED = """v 0 0 0
v 1 0 0
v 1 1 0
v 0 1 0
v 2 0 0
vt 0 0
vt 1 0
vn 0 0 1
usemtl b
f 1/1/1 2/2/1 3/1/1 4/2/1
usemtl a
f 2/1/1 5/2/1 3/1/1
"""


def test_faces_of_several_sizes_are_refused_left_out_or_cut(tmp_path: Path) -> None:
    path = written(tmp_path, MIXED)
    with pytest.raises(NonHomogeneousMeshError, match=r"\[3, 4\] corners"):
        obj.import_mesh(path)
    assert obj.import_mesh(path, heterogeneous_mesh_handler=heterogeneous_mesh_handler_skip) is None
    asked: dict[str, Any] = {
        "with_materials": True,
        "with_normals": True,
        "error_handler": obj.create_missing_materials_error_handler,
    }
    for more in ({"triangulate": True}, {"heterogeneous_mesh_handler": mesh_handler_naive_triangulate}):
        with pytest.warns(UserWarning, match="no material"):
            mesh = obj.import_mesh(path, **asked, **more)
        assert mesh is not None and mesh.faces.tolist() == [[0, 1, 2], [0, 2, 3], [1, 4, 2]]
        assert mesh.face_uvs_idx.tolist() == [[0, 1, 0], [0, 0, 1], [0, 1, 0]] and (mesh.face_normals_idx == 0).all()
        assert [one["material_name"] for one in mesh.materials] == ["a", "b"] and mesh.material_assignments.tolist() == [1, 1, 0]


def test_quads_stay_unless_triangles_are_asked_for(tmp_path: Path) -> None:
    path = written(tmp_path, "v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nf 1 2 3 4\nf -1 -2 -3 -4\n")
    quads, triangles = obj.import_mesh(path), obj.import_mesh(path, triangulate=True)
    assert quads is not None and quads.faces.tolist() == [[0, 1, 2, 3], [3, 2, 1, 0]]
    assert triangles is not None and triangles.faces.tolist() == [[0, 1, 2], [0, 2, 3], [3, 2, 1], [3, 1, 0]]


def test_a_handler_of_ones_own_gets_flat_features_and_ranges(tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    def first_triangles(vertices: Any, counts: Any, *features: Any, face_assignments: Any) -> Any:
        seen.update(counts=counts.tolist(), assigned={name: one.tolist() for name, one in face_assignments.items()})
        starts = counts.cumsum(0) - counts
        corners = starts[:, None] + torch.arange(3)
        return vertices, torch.full_like(counts, 3), *(None if one is None else one[corners] for one in features), face_assignments

    mesh = obj.import_mesh(written(tmp_path, MIXED), heterogeneous_mesh_handler=first_triangles)
    assert mesh is not None and mesh.faces.tolist() == [[0, 1, 2], [1, 4, 2]] and seen == {"counts": [4, 3], "assigned": {}}
    with pytest.warns(UserWarning):
        obj.import_mesh(written(tmp_path, MIXED), True, False, obj.skip_error_handler, first_triangles)
    assert seen["assigned"] == {"b": [[0, 1]], "a": [[1, 2]]}


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("sphere", (642, 3840, 0, 1280)),
        ("rocket", (426, 493, 430, 832)),
        ("model", (482, 610, 584, 960)),
        ("ico_flat", (42, 63, 80, 80)),
    ],
)
def test_kaolins_meshes_are_read_whole(name: str, sizes: tuple[int, ...], real_data: Path) -> None:
    path = real_data / "data" / "kaolin" / "obj" / f"{name}.obj"
    mesh = obj.import_mesh(path, True, True, error_handler=obj.ignore_error_handler)
    expected = naive_mesh(path.read_text())
    assert mesh is not None and (len(mesh.vertices), len(mesh.uvs), len(mesh.normals), len(mesh.faces)) == sizes
    rows = torch.stack([mesh.faces, mesh.face_uvs_idx, mesh.face_normals_idx], dim=-1)
    assert rows.tolist() == expected["f"] and torch.equal(mesh.vertices, torch.tensor(expected["v"]))
    assert torch.equal(mesh.uvs[:, 1], 1 - torch.tensor(expected["vt"])[:, 1])
