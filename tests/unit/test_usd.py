"""USD files: every value comes back by usd-core itself, its validators find nothing, the same polygons are the same bytes."""

import hashlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pxr import Usd, UsdGeom, UsdValidation

from scenemill.schemas.errors import ConfigError
from scenemill.schemas.labels import LABELS
from scenemill.trainers.usd import MESH_PATH, SUFFIXES, Polygons, panoptic_polygons, to_usd, write_mesh
from scenemill.transforms.meshes import PanopticMesh, panoptic_mesh, upright

LAMP, FLOOR = 8, 11


def room(empty: bool = False) -> PanopticMesh:
    """A floor, a lamp in two pieces with an id each, and something without a class."""
    distance, panoptic = np.full((12, 10, 11), 3, np.float32), np.zeros((12, 10, 11), np.int32)
    if not empty:
        distance[:, 8], panoptic[:, 8] = 0.25, 5
        distance[3, 3, 3], panoptic[3, 3, 3] = 0, 2
        distance[8, 3, 3], panoptic[8, 3, 3] = 0, 9
        distance[5, 2, 8] = 0
    classes = {5: FLOOR, 2: LAMP, 9: LAMP}
    return upright(panoptic_mesh(distance, panoptic, classes, iso=1.0, voxel_m=0.03, centre=np.array([6.0, 5.0, -4.0])))


def house() -> Polygons:
    """A square, a triangle on it, and a pentagon beside it."""
    points = np.array([(0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 0), (0.5, 1.5, 0), (3, 0, 0), (3, 1, 0), (2, 2, 0)], np.float64)
    indices = np.array([0, 1, 2, 3, 3, 2, 4, 1, 5, 6, 7, 2], np.int64)
    per_vertex = {"height": np.arange(8, dtype=np.int64) - 3, "warmth": np.linspace(0, 1, 24, dtype=np.float64).reshape(8, 3)}
    per_face = {
        "displayColor": np.array([(255, 0, 51), (0, 102, 0), (1, 2, 3)], np.uint8),
        "semantic_id": np.array([1, 2, 1], np.uint8),
    }
    return Polygons(
        points, np.array([4, 3, 5]), indices, per_vertex, per_face, {"walls": np.array([2, 0]), "roof": np.array([1], np.uint64)}
    )


def opened(path: Path, polygons: Polygons) -> Any:
    write_mesh(path, polygons)
    return Usd.Stage.Open(str(path))


def mesh_in(stage: Any) -> Any:
    return UsdGeom.Mesh(stage.GetPrimAtPath(MESH_PATH))


def primvar(stage: Any, name: str) -> tuple[Any, str, str]:
    found = UsdGeom.PrimvarsAPI(mesh_in(stage)).GetPrimvar(name)
    return np.array(found.Get()), found.GetInterpolation(), str(found.GetTypeName())


def errors_in(stage: Any) -> list[str]:
    """What any of usd-core's validators says."""
    context = UsdValidation.ValidationContext(UsdValidation.ValidationRegistry().GetOrLoadAllValidators())
    return [f"{error.GetName()}: {error.GetMessage()}" for error in context.Validate(stage)]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("polygons", [panoptic_polygons(room()), panoptic_polygons(room(empty=True)), house()])
def test_validators_find_nothing(polygons: Polygons, suffix: str, tmp_path: Path) -> None:
    assert errors_in(opened(tmp_path / f"mesh{suffix}", polygons)) == []


def test_validators_would_find_what_is_wrong(tmp_path: Path) -> None:
    stage = opened(tmp_path / "mesh.usda", house())
    stage.ClearMetadata("metersPerUnit")
    mesh_in(stage).GetPrim().GetAttribute("subsetFamily:semantics:familyType").Set(UsdGeom.Tokens.partition)
    UsdGeom.Subset(stage.GetPrimAtPath(f"{MESH_PATH}/roof")).GetIndicesAttr().Set([1, 2])
    assert len(errors_in(stage)) >= 2


def test_a_stage_says_its_units_its_up_axis_and_where_to_begin(tmp_path: Path) -> None:
    stage = opened(tmp_path / "mesh.usd", house())
    assert (UsdGeom.GetStageMetersPerUnit(stage), UsdGeom.GetStageUpAxis(stage)) == (1.0, "Y")
    assert [str(prim.GetPath()) for prim in stage.TraverseAll() if prim.GetTypeName() != "GeomSubset"] == ["/World", MESH_PATH]
    assert str(stage.GetDefaultPrim().GetPath()) == "/World"


def test_polygons_of_any_size_come_back(tmp_path: Path) -> None:
    given = house()
    stage = opened(tmp_path / "mesh.usd", given)
    mesh = mesh_in(stage)
    assert np.array_equal(np.array(mesh.GetPointsAttr().Get()), given.points.astype(np.float32))
    assert list(mesh.GetFaceVertexCountsAttr().Get()) == [4, 3, 5]
    assert list(mesh.GetFaceVertexIndicesAttr().Get()) == given.indices.tolist()
    assert mesh.GetSubdivisionSchemeAttr().Get() == "none"
    assert [tuple(corner) for corner in mesh.GetExtentAttr().Get()] == [(0, 0, 0), (3, 2, 0)]


def test_values_come_back_where_they_were_given(tmp_path: Path) -> None:
    stage = opened(tmp_path / "mesh.usd", house())
    color, where, kind = primvar(stage, "displayColor")
    assert (where, kind) == ("uniform", "color3f[]")
    assert (color * 255).round().tolist() == [[255, 0, 51], [0, 102, 0], [1, 2, 3]] and color.max() == 1
    heights, where, kind = primvar(stage, "height")
    assert (heights.tolist(), where, kind) == ([-3, -2, -1, 0, 1, 2, 3, 4], "vertex", "int[]")
    warmth, where, kind = primvar(stage, "warmth")
    assert (where, kind) == ("vertex", "color3f[]")
    assert np.array_equal(warmth, np.linspace(0, 1, 24).reshape(8, 3).astype(np.float32))
    ids, where, kind = primvar(stage, "semantic_id")
    assert (ids.tolist(), where, kind) == ([1, 2, 1], "uniform", "int[]")


def test_a_panoptic_mesh_comes_back_with_its_ids(tmp_path: Path) -> None:
    mesh = room()
    stage = opened(tmp_path / "mesh.usd", panoptic_polygons(mesh))
    assert np.array_equal(np.array(mesh_in(stage).GetPointsAttr().Get()), mesh.vertices)
    assert np.array_equal(np.array(mesh_in(stage).GetFaceVertexIndicesAttr().Get()).reshape(-1, 3), mesh.faces)
    assert set(mesh_in(stage).GetFaceVertexCountsAttr().Get()) == {3}
    for name, expected in (("semantic_id", mesh.classes), ("segment_id", mesh.segments)):
        ids, where, _ = primvar(stage, name)
        assert where == "vertex" and np.array_equal(ids, expected)
    color, where, _ = primvar(stage, "displayColor")
    assert where == "vertex" and np.array_equal((color * 255).round(), mesh.colors)
    assert set(mesh.segments.tolist()) == {0, 2, 5, 9} and set(mesh.classes.tolist()) == {0, LAMP, FLOOR}


def test_faces_are_grouped_under_the_names_of_classes(tmp_path: Path) -> None:
    mesh = room()
    stage = opened(tmp_path / "mesh.usd", panoptic_polygons(mesh))
    subsets = UsdGeom.Subset.GetAllGeomSubsets(mesh_in(stage))
    named = {label.name: label.id for label in LABELS}
    assert sorted(subset.GetPrim().GetName() for subset in subsets) == ["floor", "lamp"]
    for subset in subsets:
        own = named[subset.GetPrim().GetName()]
        expected = [number for number, face in enumerate(mesh.faces) if sum(mesh.classes[vertex] == own for vertex in face) >= 2]
        assert list(subset.GetIndicesAttr().Get()) == expected and expected
    assert (
        UsdGeom.Subset.GetFamilyType(mesh_in(opened(tmp_path / "two.usd", panoptic_polygons(mesh))), "semantics")
        == "nonOverlapping"
    )


def test_groups_of_any_name_keep_it(tmp_path: Path) -> None:
    names = ["night stand", "night-stand", "1st", "Würfel", ""]
    triangles: dict[str, Any] = {"counts": np.full(5, 3), "indices": np.zeros(15, int), "per_face": {}}
    polygons = replace(house(), **triangles, groups={name: np.array([place]) for place, name in enumerate(names)})
    stage = opened(tmp_path / "mesh.usda", polygons)
    subsets = UsdGeom.Subset.GetAllGeomSubsets(mesh_in(stage))
    assert errors_in(stage) == [] and len({subset.GetPrim().GetName() for subset in subsets}) == 5
    found = {subset.GetPrim().GetDisplayName(): list(subset.GetIndicesAttr().Get()) for subset in subsets}
    assert found == {name: [place] for place, name in enumerate(names)}


def test_classes_of_a_label_map_have_its_names(tmp_path: Path) -> None:
    renamed = [replace(label, name=f"kind {label.id}") for label in LABELS]
    stage = opened(tmp_path / "mesh.usd", panoptic_polygons(room(), renamed))
    subsets = UsdGeom.Subset.GetAllGeomSubsets(mesh_in(stage))
    assert [subset.GetPrim().GetDisplayName() for subset in subsets] == ["kind 8", "kind 11"]


def test_an_empty_mesh_is_a_stage_with_a_mesh_of_nothing(tmp_path: Path) -> None:
    stage = opened(tmp_path / "mesh.usd", panoptic_polygons(room(empty=True)))
    mesh = mesh_in(stage)
    assert [len(attribute.Get()) for attribute in (mesh.GetPointsAttr(), mesh.GetFaceVertexCountsAttr())] == [0, 0]
    assert primvar(stage, "segment_id")[0].size == 0
    assert UsdGeom.Subset.GetAllGeomSubsets(mesh) == []


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_same_polygons_are_the_same_bytes_in_any_process(suffix: str) -> None:
    script = (
        "import hashlib, sys; sys.path.insert(0, sys.argv[1])\n"
        f"from test_usd import house, to_usd\nprint(hashlib.sha256(to_usd(house(), {suffix!r})).hexdigest())"
    )
    folder = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", script, folder], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "5"}
    )
    data = to_usd(house(), suffix)
    assert done.stdout.strip() == hashlib.sha256(data).hexdigest() and to_usd(house(), suffix) == data
    assert data.startswith(b"#usda 1.0" if suffix == ".usda" else b"PXR-USDC")


def test_a_file_is_replaced_whole_and_nothing_stays_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "mesh.usd"
    write_mesh(path, panoptic_polygons(room()))
    write_mesh(path, house())
    assert path.read_bytes() == to_usd(house())
    assert [file.name for file in path.parent.iterdir()] == ["mesh.usd"]


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\.usd, \.usdc, \.usda"):
        write_mesh(tmp_path / "mesh.ply", house())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"points": np.zeros((8, 2))}, "points"),
        ({"points": np.full((8, 3), np.nan)}, "finite"),
        ({"counts": np.array([2, 5, 5])}, "3 or more"),
        ({"counts": np.array([4.0, 3.0, 5.0])}, "integers"),
        ({"counts": np.array([4, 3])}, "7 of 12"),
        ({"indices": np.full(12, 8)}, "0 to 7"),
        ({"indices": np.full(12, -1)}, "0 to 7"),
        ({"indices": np.zeros(12)}, "integers"),
        ({"per_vertex": {"warmth": np.zeros(8)}}, "ids of 32 bits"),
        ({"per_vertex": {"height": np.zeros(7, int)}}, "8 colours or 8 ids"),
        ({"per_vertex": {"height": np.full(8, 2**31)}}, "32 bits"),
        ({"per_vertex": {"displayColor": np.zeros(8, int)}, "per_face": {}}, "displayColor"),
        ({"per_face": {"displayColor": np.zeros((3, 4), np.uint8)}}, "3 colours"),
        ({"per_vertex": {"semantic_id": np.zeros(8, int)}}, "both"),
        ({"per_face": {"class id": np.zeros(3, int)}}, "'class id'"),
        ({"groups": {"walls": np.array([3])}}, "0 to 2"),
        ({"groups": {"walls": np.array([0]), "roof": np.array([0, 1])}}, "two groups"),
        ({"groups": {"walls": np.array([0, 0])}}, "twice"),
    ],
)
def test_polygons_that_do_not_fit_together_are_refused(change: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        replace(house(), **change)
