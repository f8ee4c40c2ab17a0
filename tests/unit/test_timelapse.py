"""3D checkpoints: every iteration comes back as it was given, by usd-core, by ours and as Kaolin would read it; files are valid."""

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pxr import Sdf, Usd, UsdGeom, UsdShade

import scenemill
from scenemill.schemas.errors import ConfigError, SourceError
from scenemill.trainers import usd
from scenemill.trainers.timelapse import BatchError, Timelapse, TimelapseParser
from tests.unit.usd_checks import errors_in_file, opened, place_of, times, value


def drawn(seed: int, *size: int) -> torch.Tensor:
    return torch.rand(size, generator=torch.Generator().manual_seed(seed))


def numbers(seed: int, below: int, *size: int) -> torch.Tensor:
    return torch.randint(0, below, size, generator=torch.Generator().manual_seed(seed))


def textures(seed: int) -> usd.PBRMaterial:
    return usd.PBRMaterial(
        diffuse_texture=drawn(seed, 3, 6, 5),
        roughness_texture=drawn(seed + 1, 1, 6, 5),
        normals_texture=drawn(seed + 2, 3, 6, 5) * 2 - 1,
        is_specular_workflow=True,
    )


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Path]:
    """A folder for a log; every file in it is valid in the end, whatever the test did."""
    yield tmp_path / "log"
    for path in (tmp_path / "log").rglob("*.usd"):
        assert errors_in_file(path) == [], path


def only(log: Path, kind: str, category: str, time: float, **options: Any) -> Any:
    """The one prim of sample 0 at an iteration, as our parser reads it."""
    (prim,) = TimelapseParser(log).read(kind, category, 0, time, **options).prims
    return prim


def test_the_public_name_is_ours() -> None:
    assert scenemill.Timelapse is Timelapse and scenemill.TimelapseParser is TimelapseParser


def test_a_batch_of_meshes_comes_back_at_every_iteration(log: Path) -> None:
    faces, uvs, corners = (
        [numbers(1, 6, 4, 3), numbers(2, 5, 3, 5)],
        [drawn(3, 9, 2), drawn(4, 5, 2)],
        [numbers(5, 9, 4, 3), numbers(6, 5, 3, 5)],
    )
    normals = [drawn(7, 4, 3, 3), drawn(8, 3, 5, 3)]
    writer = Timelapse(log)
    vertices = {time: [drawn(20 + time, 6, 3), drawn(50 + time, 5, 3)] for time in (0, 10, 20)}
    writer.add_mesh_batch(0, "a/b", vertices[0], faces, uvs, corners, normals)
    for time in (10, 20):
        writer.add_mesh_batch(iteration=time, category="a/b", vertices_list=vertices[time])
    assert sorted(path.name for path in (log / "a" / "b").iterdir()) == ["mesh_0.usd", "mesh_1.usd"]
    for time in (0, 10, 20):
        for number in range(2):
            read = usd.import_mesh(log / "a" / "b" / f"mesh_{number}.usd", time=time, with_normals=True)
            assert read is not None and torch.equal(read.vertices, vertices[time][number])
            assert torch.equal(read.faces, faces[number]) and read.face_uvs_idx is not None and read.uvs is not None
            assert torch.equal(read.face_uvs_idx, corners[number]) and torch.allclose(read.uvs, uvs[number])
            assert read.face_normals is not None and torch.equal(read.face_normals, normals[number])
            ours: Any = TimelapseParser(log).read("mesh", "a/b", number, time).prims[0]
            assert np.array_equal(ours.vertices, vertices[time][number]) and np.array_equal(ours.indices, faces[number].reshape(-1))


def test_stages_have_the_layout_of_kaolin(log: Path) -> None:
    Timelapse(log, "Z", meters_per_unit=1.0, fps=5).add_mesh_batch(3, "", [drawn(0, 4, 3)], [numbers(0, 4, 2, 3)])
    path = log / "mesh_0.usd"
    assert path.read_bytes().startswith(b"PXR-USDC")
    stage = opened(path)
    assert (UsdGeom.GetStageUpAxis(stage), UsdGeom.GetStageMetersPerUnit(stage), stage.GetTimeCodesPerSecond()) == ("Z", 1.0, 5.0)
    assert [(str(prim.GetPath()), str(prim.GetTypeName())) for prim in stage.Traverse()] == [
        ("/World", "Xform"),
        ("/mesh_0", "Mesh"),
    ]
    assert stage.GetDefaultPrim().GetPath() == "/mesh_0" and (stage.GetStartTimeCode(), stage.GetEndTimeCode()) == (3, 3)
    mesh = UsdGeom.Mesh(stage.GetDefaultPrim())
    assert mesh.GetSubdivisionSchemeAttr().Get() == "none" and mesh.GetPointsAttr().GetTimeSamples() == [3]
    assert list(mesh.GetFaceVertexCountsAttr().Get(3)) == [3, 3]
    box = np.array(mesh.GetExtentAttr().Get(3))
    assert np.array_equal(box, np.stack([drawn(0, 4, 3).numpy().min(0), drawn(0, 4, 3).numpy().max(0)]))


def test_units_are_hundredths_where_nothing_is_said(log: Path) -> None:
    Timelapse(log).add_mesh_batch(0, "", [drawn(0, 4, 3)])
    stage = opened(log / "mesh_0.usd")
    assert stage.GetRootLayer().pseudoRoot.GetInfo("metersPerUnit") == 0.01 and UsdGeom.GetStageUpAxis(stage) == "Y"
    assert not stage.HasAuthoredMetadata("timeCodesPerSecond")


@pytest.mark.parametrize(("count", "place"), [(6, "vertex"), (4, "uniform"), (12, "faceVarying")])
def test_coordinates_belong_to_what_there_is_as_many_of(count: int, place: str, log: Path) -> None:
    writer = Timelapse(log)
    writer.add_mesh_batch(0, "", [drawn(0, 6, 3)], [numbers(0, 6, 4, 3)])
    writer.add_mesh_batch(5, "", uvs_list=[drawn(1, count, 2)])  # the counts are those of the call before
    assert place_of(log / "mesh_0.usd", "/mesh_0.primvars:st") == place
    assert np.allclose(only(log, "mesh", "", 5).uvs, drawn(1, count, 2))


def test_indices_make_coordinates_those_of_corners_however_many_there_are(log: Path) -> None:
    writer, corners = Timelapse(log), numbers(3, 6, 4, 3)
    writer.add_mesh_batch(0, "", [drawn(0, 6, 3)], [numbers(0, 6, 4, 3)], [drawn(1, 6, 2)], [corners])
    writer.add_mesh_batch(5, "", uvs_list=[drawn(2, 6, 2)])  # the indices hold on
    assert place_of(log / "mesh_0.usd", "/mesh_0.primvars:st") == "faceVarying"
    read = only(log, "mesh", "", 5)
    assert np.array_equal(read.uv_indices, corners.reshape(-1)) and np.allclose(read.uvs, drawn(2, 6, 2))


def test_indices_without_coordinates_are_left_out_and_told(log: Path, caplog: pytest.LogCaptureFixture) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Timelapse(log).add_mesh_batch(0, "", [drawn(0, 6, 3)], [numbers(0, 6, 4, 3)], None, [numbers(0, 6, 4, 3)])
    assert "face_uvs_idx without uvs" in caplog.text and only(log, "mesh", "", 0).uvs is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
@pytest.mark.parametrize("channels", [3, 4])
def test_colours_and_ids_of_meshes_come_back_where_they_belong(channels: int, dtype: torch.dtype, log: Path) -> None:
    writer, mesh = Timelapse(log), ([drawn(0, 6, 3)], [numbers(0, 6, 4, 3)])
    unit = {count: (drawn(1, count, channels) * 255).round() / 255 for count in (6, 4)}
    colors = {count: (one * 255).round().to(dtype) if dtype == torch.uint8 else one for count, one in unit.items()}
    writer.add_mesh_batch(0, "vertices", *mesh, vertex_colors_list=[colors[6]], semantic_ids_list=[numbers(2, 99, 6)])
    writer.add_mesh_batch(0, "faces", *mesh, face_colors_list=[colors[4]], semantic_ids_list=[numbers(2, 99, 4)])
    writer.add_mesh_batch(0, "one", *mesh, vertex_colors_list=[colors[4][0]], semantic_ids_list=[7])
    expected = {"vertices": (unit[6], numbers(2, 99, 6), "vertex"), "faces": (unit[4], numbers(2, 99, 4), "uniform")}
    expected["one"] = (unit[4][:1], torch.tensor([7]), "constant")
    for category, (own_colors, ids, place) in expected.items():
        read = only(log, "mesh", category, 0)
        assert (read.colors_at, read.semantic_ids_at) == (place, place)
        assert np.allclose(read.colors, own_colors, atol=1e-7) and np.array_equal(read.semantic_ids, ids)
        assert place_of(log / category / "mesh_0.usd", "/mesh_0.primvars:displayColor") == place


def test_one_colour_for_all_is_taken_where_each_has_had_its_own(log: Path) -> None:
    writer, points = Timelapse(log), [drawn(0, 5, 3)]
    writer.add_pointcloud_batch(0, "", points, [drawn(1, 5, 4)], semantic_ids=[numbers(1, 9, 5)])
    writer.add_pointcloud_batch(1, "", points, [torch.tensor([1.0, 0, 0])], semantic_ids=[3])
    read = only(log, "pointcloud", "", 1)
    assert np.array_equal(read.colors, np.tile([1.0, 0, 0, 1], (5, 1))) and read.semantic_ids.tolist() == [3] * 5
    assert np.array_equal(only(log, "pointcloud", "", 0).colors, drawn(1, 5, 4))


POINT_TYPES = ("point_instancer", "usd_geom_points")


@pytest.mark.parametrize("points_type", POINT_TYPES)
def test_clouds_come_back_with_colours_and_ids_whatever_their_size(points_type: str, log: Path) -> None:
    writer, counts = Timelapse(log), {0: 5, 10: 8, 20: 0, 30: 1, 40: 5}
    for time, count in counts.items():
        points, colors, ids = drawn(time, count, 3), drawn(time + 1, count, 3), numbers(time, 40, count)
        writer.add_pointcloud_batch(time, "c", [points, points + 1], [colors, None], points_type, semantic_ids=[ids, None])
    attribute = "positions" if points_type == "point_instancer" else "points"
    for time, count in counts.items():
        read = only(log, "pointcloud", "c", time)
        assert np.array_equal(read.points, drawn(time, count, 3)) and read.widths.shape == (count,)
        assert np.array_equal(read.colors, drawn(time + 1, count, 3)) and np.array_equal(
            read.semantic_ids, numbers(time, 40, count)
        )
        second: Any = TimelapseParser(log).read("pointcloud", "c", 1, time).prims[0]
        assert second.colors is None and second.semantic_ids is None
        cloud = usd.import_pointcloud(log / "c" / "pointcloud_0.usd", "/pointcloud_0", time)
        assert torch.equal(cloud.points, drawn(time, count, 3)) and cloud.colors is not None
        assert torch.equal(cloud.colors, drawn(time + 1, count, 3))
        assert value(log / "c" / "pointcloud_0.usd", f"/pointcloud_0.{attribute}", time).shape == (count, 3)
    assert place_of(log / "c" / "pointcloud_0.usd", "/pointcloud_0.primvars:displayColor") == "vertex"


@pytest.mark.parametrize("points_type", POINT_TYPES)
def test_colours_that_no_longer_fit_their_points_are_not_read(points_type: str, log: Path) -> None:
    writer = Timelapse(log)
    writer.add_pointcloud_batch(0, "", [drawn(0, 5, 3)], [drawn(1, 5, 3)], points_type)
    writer.add_pointcloud_batch(1, "", [drawn(2, 7, 3)], None, points_type)
    assert only(log, "pointcloud", "", 1).colors is None and only(log, "pointcloud", "", 0).colors is not None


@pytest.mark.parametrize("points_type", POINT_TYPES)
def test_clouds_have_a_width_that_stays_and_the_size_of_their_first_iteration(points_type: str, log: Path) -> None:
    writer, first = Timelapse(log), drawn(0, 1000, 3)
    writer.add_pointcloud_batch(0, "", [first], points_type=points_type)
    sides = first.amax(0) - first.amin(0)
    expected = float(sides.min()) / 10
    assert np.allclose(only(log, "pointcloud", "", 0).widths, expected)
    for time, count in ((1, 1000), (2, 10), (3, 500)):
        writer.add_pointcloud_batch(time, "", [drawn(time, count, 3) * 9], points_type=points_type)
        assert np.allclose(only(log, "pointcloud", "", time).widths, expected)
    for time in (0, 1):
        assert np.allclose(only(log, "pointcloud", "", time).widths, expected)
    path = log / "pointcloud_0.usd"
    box = value(path, "/pointcloud_0.extent", 2)
    assert np.allclose(box[0], drawn(2, 10, 3).numpy().min(0) * 9 - expected / 2)


@pytest.mark.parametrize("points_type", POINT_TYPES)
def test_widths_are_taken_as_they_are_given(points_type: str, log: Path) -> None:
    writer, path = Timelapse(log), log / "pointcloud_0.usd"
    widths = [drawn(1, 4), torch.tensor(0.5), drawn(2, 4)]
    for time, width in enumerate(widths):
        writer.add_pointcloud_batch(time, "", [drawn(0, 4, 3) + time], points_type=points_type, widths=[width])
    writer.add_pointcloud_batch(7, "moved", [drawn(0, 4, 3)], points_type=points_type)
    writer.add_pointcloud_batch(8, "moved", [drawn(0, 6, 3)], points_type=points_type)
    writer.add_pointcloud_batch(9, "moved", [drawn(0, 2, 3)], points_type=points_type, widths=[torch.tensor([0.25, 3.0])])
    for time, width in enumerate(widths):
        assert np.allclose(only(log, "pointcloud", "", time).widths, width.expand(4))
    assert np.allclose(only(log, "pointcloud", "moved", 9).widths, [0.25, 3])
    half = (drawn(1, 4) / 2)[:, None].numpy()
    assert np.allclose(value(path, "/pointcloud_0.extent", 0)[1], (drawn(0, 4, 3).numpy() + half).max(0))


def test_an_instancer_repeats_a_sphere_with_as_many_scales_as_points(log: Path) -> None:
    Timelapse(log).add_pointcloud_batch(4, "", [drawn(0, 27, 3)])
    stage = opened(log / "pointcloud_0.usd")
    instancer = UsdGeom.PointInstancer(stage.GetDefaultPrim())
    assert [str(path) for path in instancer.GetPrototypesRel().GetTargets()] == ["/pointcloud_0/sphere"]
    assert UsdGeom.Sphere(stage.GetPrimAtPath("/pointcloud_0/sphere")).GetRadiusAttr().Get() == 0.5
    scales = np.array(instancer.GetScalesAttr().Get(4))
    assert scales.shape == (27, 3) and np.allclose(scales, float((drawn(0, 27, 3).amax(0) - drawn(0, 27, 3).amin(0)).min()) / 3)
    assert list(instancer.GetProtoIndicesAttr().Get(4)) == [0] * 27


@pytest.mark.parametrize("points_type", POINT_TYPES)
@pytest.mark.parametrize("changing", [False, True])
def test_what_stays_the_same_is_written_once(points_type: str, changing: bool, log: Path) -> None:
    writer, count = Timelapse(log), 2000
    for time in range(6):
        own = count + (time if changing else 0)
        writer.add_pointcloud_batch(
            time, "", [drawn(time, own, 3)], [drawn(9, count, 3)[:own] if not changing else drawn(9, own, 3)], points_type
        )
    path = log / "pointcloud_0.usd"
    payload = 12 * count * 6 + 12 * count * (6 if changing else 1) + (12 * count if points_type == "point_instancer" else 0)
    assert path.stat().st_size < 1.1 * payload
    assert times(path, "/pointcloud_0.primvars:displayColor") == ([0, 1, 2, 3, 4, 5] if changing else [0])
    assert times(path, "/pointcloud_0.widths" if points_type == "usd_geom_points" else "/pointcloud_0.protoIndices") == (
        [0, 1, 2, 3, 4, 5] if changing else []
    )


@pytest.mark.parametrize("shape", [(4, 4, 4), (3, 5, 2), (1, 1, 1)])
@pytest.mark.parametrize("form", ["dense", "listed", "one"])
def test_grids_come_back_with_colours_and_ids(form: str, shape: tuple[int, int, int], log: Path) -> None:
    writer, shares = Timelapse(log), {0: 0.5, 10: 0.0, 20: 0.9, 30: 1.0}
    for time, share in shares.items():
        grid = drawn(time, *shape) < share
        colors, ids = drawn(time + 1, *shape, 3), numbers(time, 50, *shape)
        if form == "listed":
            colors, ids = colors[grid], ids[grid]
        elif form == "one":
            colors, ids = colors[0, 0, 0], ids[0, 0, 0]
        writer.add_voxelgrid_batch(time, "v", [grid if time else grid.float() * 2], [colors], [ids])
    for time, share in shares.items():
        grid = drawn(time, *shape) < share
        read = only(log, "voxelgrid", "v", time)
        assert np.array_equal(read.occupied(), grid) and read.shape == shape
        assert np.array_equal(read.voxels, torch.nonzero(grid))
        colors, ids = drawn(time + 1, *shape, 3), numbers(time, 50, *shape)
        assert np.array_equal(read.colors, colors[0, 0, 0].expand(int(grid.sum()), 3) if form == "one" else colors[grid])
        assert np.array_equal(read.semantic_ids, ids[0, 0, 0].expand(int(grid.sum())) if form == "one" else ids[grid])
        assert torch.equal(usd.import_voxelgrid(log / "v" / "voxelgrid_0.usd", "/voxelgrid_0", time), grid)


def test_an_instancer_of_voxels_says_what_it_is_and_how_large(log: Path) -> None:
    Timelapse(log).add_voxelgrid_batch(0, "", [torch.ones(2, 4, 3)])
    stage = opened(log / "voxelgrid_0.usd")
    prim = stage.GetDefaultPrim()
    assert prim.GetAttribute("primvars:kaolin_type").Get() == "VoxelGrid" and prim.GetAttribute("primvars:grid_size").Get() == 4
    assert (
        prim.GetAttribute("primvars:grid_size").GetTimeSamples() == []
        and UsdGeom.Cube(stage.GetPrimAtPath("/voxelgrid_0/cube")).GetSizeAttr().Get() == 1
    )
    scales = np.array(UsdGeom.PointInstancer(prim).GetScalesAttr().Get(0))
    assert scales.shape == (24, 3) and (scales == 1).all()


@pytest.mark.parametrize("size", [1, 2, 5])
def test_grids_stand_where_kaolin_puts_them_or_in_the_middle(size: int, log: Path) -> None:
    grid = torch.ones(size, size, size)
    writer = Timelapse(log)
    writer.add_voxelgrid_batch(0, "kaolin", [grid])
    writer.add_voxelgrid_batch(0, "middle", [grid], centered=True)
    corners = np.array([[0, 0, 0], [size - 1] * 3])
    for category, expected in (("kaolin", (corners - 0.5) / max(size - 1, 1)), ("middle", (corners + 0.5) / size - 0.5)):
        transform = only(log, "voxelgrid", category, 0).transform
        assert np.allclose(corners @ transform[:3, :3].T + transform[:3, 3], expected)
    assert np.allclose([(corners[0] - 0.5 + 0.5) / size - 0.5, (corners[1] + 0.5 + 0.5) / size - 0.5], [[-0.5] * 3, [0.5] * 3])


def test_a_grid_may_become_finer_and_another_shape(log: Path) -> None:
    writer = Timelapse(log)
    grids = {0: torch.ones(2, 2, 2), 1: torch.ones(4, 4, 4), 2: torch.ones(4, 3, 2), 3: torch.ones(2, 2, 2)}
    for time, grid in grids.items():
        writer.add_voxelgrid_batch(time, "", [grid])
    for time, grid in grids.items():
        read = only(log, "voxelgrid", "", time)
        assert read.shape == tuple(grid.shape) and np.allclose(read.transform[0, 0], 1 / (max(grid.shape) - 1))


def bound_materials(path: Path) -> dict[str, str]:
    """Variant -> what usd-core says the mesh has in it."""
    stage = opened(path)
    variants = stage.GetDefaultPrim().GetVariantSet("shadingVariant")
    found = {}
    for name in variants.GetVariantNames():
        variants.SetVariantSelection(name)
        found[name] = str(UsdShade.MaterialBindingAPI(stage.GetDefaultPrim()).ComputeBoundMaterial()[0].GetPath())
    stage.Reload()
    return found


def test_materials_come_back_at_every_iteration_each_in_its_variant(log: Path) -> None:
    writer, mesh = (
        Timelapse(log),
        {"vertices_list": [drawn(0, 6, 3)], "faces_list": [numbers(0, 6, 4, 3)], "uvs_list": [drawn(1, 6, 2)]},
    )
    values = {time: usd.PBRMaterial(diffuse_color=(0, 1, 0), roughness_value=time / 20) for time in (0, 10)}
    maps = {time: textures(time) for time in (0, 10)}
    writer.add_mesh_batch(0, "test", **mesh, materials_list=[{"values": values[0], "textures": maps[0]}])
    writer.add_mesh_batch(10, "test", materials_list=[{"values": values[10], "textures": maps[10]}])
    path = log / "test" / "mesh_0.usd"
    for time in (0, 10):
        for name in ("diffuse", "roughness", "normals"):
            assert (log / "test" / "textures" / f"mesh_0_textures_{time}_{name}.png").is_file()
        plain = usd.import_material(path, "/mesh_0/values", time=time)
        assert plain.diffuse_color.tolist() == [0, 1, 0] and plain.roughness_value.tolist() == [time / 20]
        textured = usd.import_material(path, "/mesh_0/textures", time=time)
        assert torch.allclose(textured.diffuse_texture, maps[time].hwc().diffuse_texture, atol=1 / 255)
        assert torch.allclose(textured.roughness_texture, maps[time].hwc().roughness_texture, atol=1 / 255)
        assert torch.allclose(textured.normals_texture, maps[time].hwc().normals_texture, atol=2 / 255)
        assert textured.is_specular_workflow
        assert set(only(log, "mesh", "test", time).materials) == {"values", "textures"}
    assert opened(path).GetDefaultPrim().GetVariantSet("shadingVariant").GetVariantSelection() == "textures"
    assert bound_materials(path) == {"values": "/mesh_0/values", "textures": "/mesh_0/textures"}


def test_materials_that_come_after_the_mesh_get_their_variants_too(log: Path) -> None:
    writer = Timelapse(log)
    writer.add_mesh_batch(0, "", [drawn(0, 6, 3)], [numbers(0, 6, 4, 3)], [drawn(1, 6, 2)])
    for time in (1, 2):
        writer.add_mesh_batch(time, "", materials_list=[{"a": textures(time), "b": usd.PBRMaterial(ior_value=1.5)}])
    assert bound_materials(log / "mesh_0.usd") == {"a": "/mesh_0/a", "b": "/mesh_0/b"}
    assert np.array_equal(only(log, "mesh", "", 2).vertices, drawn(0, 6, 3))


@pytest.mark.parametrize("many", [False, True])
def test_materials_may_be_one_or_a_list(many: bool, log: Path) -> None:
    one = textures(4)
    Timelapse(log).add_mesh_batch(7, "", [drawn(0, 6, 3)], materials_list=[[one, usd.PBRMaterial(ior_value=2)] if many else one])
    materials = only(log, "mesh", "", 7).materials
    assert set(materials) == ({"0", "1"} if many else {"0"})
    assert torch.allclose(materials["0"].diffuse_texture, one.hwc().diffuse_texture, atol=1 / 255)
    assert (log / "textures" / "mesh_0_0_7_diffuse.png").is_file()


def test_a_material_of_any_name_keeps_it(log: Path) -> None:
    names = ["night stand", "night/stand", "../../out", "2", "Würfel"]
    batch = {
        name: usd.PBRMaterial(roughness_value=number / 8, diffuse_texture=drawn(number, 3, 2, 2))
        for number, name in enumerate(names)
    }
    for time in (0, 1):
        Timelapse(log).add_mesh_batch(time, "", [drawn(0, 6, 3)], materials_list=[batch])
    materials = only(log, "mesh", "", 1).materials
    assert {name: float(material.roughness_value) for name, material in materials.items()} == {
        name: number / 8 for number, name in enumerate(names)
    }
    assert len(list((log / "textures").iterdir())) == 2 * len(names) and sorted(path.name for path in log.iterdir()) == [
        "mesh_0.usd",
        "textures",
    ]


def test_values_that_never_change_are_defaults_and_images_that_do_not_are_shared(log: Path) -> None:
    writer, material = Timelapse(log), textures(3)
    material.roughness_value = torch.tensor([0.5])
    for time in (0, 5, 9):
        writer.add_mesh_batch(time, "", [drawn(time, 6, 3)], materials_list=[{"m": material}])
    path = log / "mesh_0.usd"
    layer = Sdf.Layer.FindOrOpen(str(path))
    sampled: set[str] = set()
    layer.Traverse("/", lambda place: sampled.add(place.name) if layer.GetNumTimeSamplesForPath(place) else None)
    assert sampled == {"points", "extent", "inputs:file"}
    files = [log / "textures" / f"mesh_0_m_{time}_diffuse.png" for time in (0, 5, 9)]
    assert len({file.stat().st_ino for file in files}) == 1
    with Image.open(files[2]) as stored:
        assert np.array_equal(np.array(stored), (material.hwc().diffuse_texture.numpy() * 255).astype(np.uint8))


def test_an_image_that_an_iteration_has_is_never_replaced(log: Path) -> None:
    for seed in (1, 2):
        Timelapse(log).add_mesh_batch(0, "", [drawn(0, 6, 3)], materials_list=[{"m": textures(seed)}])
    names = sorted(path.name for path in (log / "textures").iterdir() if "diffuse" in path.name)
    assert names == ["mesh_0_m_0_diffuse.png", "mesh_0_m_0_diffuse_0.png"]
    read = only(log, "mesh", "", 0).materials["m"]
    assert torch.allclose(read.diffuse_texture, textures(2).hwc().diffuse_texture, atol=1 / 255)


def test_a_map_may_come_and_go(log: Path) -> None:
    writer, mesh = Timelapse(log), [drawn(0, 6, 3)]
    steps = [
        usd.PBRMaterial(roughness_value=0.25),
        usd.PBRMaterial(roughness_texture=drawn(1, 1, 5, 6)),
        usd.PBRMaterial(roughness_value=0.75),
    ]
    for time, material in enumerate(steps):
        writer.add_mesh_batch(time, "", mesh, materials_list=[{"m": material}])
    first, second, third = (only(log, "mesh", "", time).materials["m"] for time in range(3))
    assert first.roughness_texture is None and first.roughness_value.tolist() == [0.25]
    assert torch.allclose(second.roughness_texture[..., 0], drawn(1, 1, 5, 6)[0], atol=1 / 255)
    assert third.roughness_texture is None and third.roughness_value.tolist() == [0.75]
    fallbacks = [value(log / "mesh_0.usd", "/mesh_0/m/roughness_texture.inputs:fallback", time)[0] for time in (0, 2)]
    assert fallbacks == [0.25, 0.75]


def test_no_textures_make_no_folder(log: Path) -> None:
    Timelapse(log).add_mesh_batch(0, "a", [drawn(0, 6, 3)], materials_list=[usd.PBRMaterial(ior_value=1)])
    assert [path.name for path in (log / "a").iterdir()] == ["mesh_0.usd"]


def tensors(form: str, values: torch.Tensor) -> Any:
    if form == "grad":
        return values.clone().requires_grad_()
    if form == "strided":
        return values.repeat_interleave(2, dim=-1)[..., ::2]
    kinds = {"half": torch.float16, "bfloat": torch.bfloat16, "double": torch.float64}
    return values.numpy() if form == "array" else values.to(kinds.get(form, torch.float32))


@pytest.mark.parametrize("form", ["grad", "half", "bfloat", "double", "strided", "array", "batch"])
def test_tensors_and_arrays_of_any_kind_are_taken(form: str, log: Path) -> None:
    vertices, writer = (drawn(0, 2, 6, 3) * 16).round() / 16, Timelapse(log)
    grids = (drawn(1, 2, 3, 3, 3) > 0.5).float()
    batch = tensors(form, vertices) if form == "batch" else [tensors(form, one) for one in vertices]
    writer.add_mesh_batch(0, "", batch, numbers(1, 6, 2, 4, 3))
    writer.add_pointcloud_batch(0, "", batch, batch, semantic_ids=torch.tensor([4, 5]))
    writer.add_voxelgrid_batch(0, "", tensors(form, grids) if form == "batch" else [tensors(form, one) for one in grids])
    parser = TimelapseParser(log)
    for number in range(2):
        assert np.array_equal(parser.read("mesh", "", number, 0).prims[0].vertices, vertices[number])  # type: ignore[union-attr]
        cloud: Any = parser.read("pointcloud", "", number, 0).prims[0]
        assert np.array_equal(cloud.points, vertices[number]) and np.array_equal(cloud.colors, vertices[number])
        assert cloud.semantic_ids.tolist() == [4 + number] * 6
        grid: Any = parser.read("voxelgrid", "", number, 0).prims[0]
        assert np.array_equal(grid.occupied(), grids[number].bool())


@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 3), st.booleans()), min_size=1, max_size=8), st.sampled_from(POINT_TYPES)
)
@settings(max_examples=25, deadline=None)
def test_iterations_in_any_order_and_again_hold_what_they_were_given_last(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, int, bool]], points_type: str
) -> None:
    log = tmp_path_factory.mktemp("log")
    writer = Timelapse(log)
    held: dict[int, int] = {}
    for time, seed, reopened in steps:
        writer = Timelapse(log) if reopened else writer
        writer.add_pointcloud_batch(time, "", [drawn(seed, seed + 1, 3)], [drawn(seed + 9, seed + 1, 3)], points_type)
        writer.add_mesh_batch(time, "", [drawn(seed, 4, 3)], [numbers(seed, 4, 2, 3)])
        held[time] = seed
    parser = TimelapseParser(log)
    assert parser.items["mesh", "", 0].times == parser.items["pointcloud", "", 0].times == tuple(sorted(held))
    for time, seed in held.items():
        cloud, mesh = only(log, "pointcloud", "", time), only(log, "mesh", "", time)
        assert np.array_equal(cloud.points, drawn(seed, seed + 1, 3)) and np.array_equal(cloud.colors, drawn(seed + 9, seed + 1, 3))
        assert np.array_equal(mesh.vertices, drawn(seed, 4, 3)) and np.array_equal(mesh.indices, numbers(seed, 4, 2, 3).reshape(-1))
    stage = opened(log / "mesh_0.usd")
    assert (stage.GetStartTimeCode(), stage.GetEndTimeCode()) == (min(held), max(held))


def test_nothing_given_for_a_sample_leaves_its_file(log: Path) -> None:
    writer = Timelapse(log)
    writer.add_mesh_batch(0, "", [None, drawn(0, 4, 3)])
    assert [path.name for path in log.iterdir()] == ["mesh_1.usd"]
    writer.add_mesh_batch(1, "", [drawn(1, 4, 3), None], semantic_ids_list=[None, 5])
    read: Any = TimelapseParser(log).read("mesh", "", 1, 1).prims[0]
    assert np.array_equal(read.vertices, drawn(0, 4, 3)) and read.semantic_ids.tolist() == [5]


def test_a_log_goes_on_after_it_was_deleted(log: Path) -> None:
    writer = Timelapse(log)
    writer.add_mesh_batch(0, "a", [drawn(0, 4, 3)])
    held = Usd.Stage.Open(str(log / "a" / "mesh_0.usd"))
    (log / "a" / "mesh_0.usd").unlink()
    writer.add_mesh_batch(4, "a", [drawn(1, 4, 3)])
    assert held and TimelapseParser(log).items["mesh", "a", 0].times == (4,)


def test_labels_come_back_and_stand_in_the_log(log: Path) -> None:
    with Timelapse(log) as writer:
        assert TimelapseParser(log).labels == {}
        writer.set_labels({3: "chair", -1: ("nothing", (0, 51, 255)), 7: ("lamp", (0.25, 0.5, 1.0))})
        writer.flush()
    assert TimelapseParser(log).labels == {3: ("chair", None), -1: ("nothing", (0, 0.2, 1)), 7: ("lamp", (0.25, 0.5, 1.0))}
    assert [row["id"] for row in json.loads((log / "labels.json").read_text())["labels"]] == [-1, 3, 7]
    (log / "labels.json").write_text("[]")
    with pytest.raises(SourceError, match=r"labels\.json"):
        _ = TimelapseParser(log).labels


VERTICES, FACES = [drawn(0, 6, 3)], [numbers(0, 6, 4, 3)]


@pytest.mark.parametrize(
    ("call", "kind", "told"),
    [
        (lambda writer: writer.add_mesh_batch(), BatchError, "nothing"),
        (lambda writer: writer.add_mesh_batch(0, "", VERTICES, []), BatchError, "same length"),
        (lambda writer: writer.add_mesh_batch(0, "", VERTICES, FACES * 2), AssertionError, "'vertices': 1, 'faces': 2"),
        (lambda writer: writer.add_pointcloud_batch(0, ""), AssertionError, "nothing"),
        (lambda writer: writer.add_pointcloud_batch(0, "", colors=VERTICES), ConfigError, "no points"),
        (lambda writer: writer.add_voxelgrid_batch(0, "", semantic_ids=[3]), ConfigError, "no voxelgrid"),
        (lambda writer: writer.add_mesh_batch(-1, "", VERTICES), ValueError, "from 0"),
        (lambda writer: writer.add_mesh_batch(float("nan"), "", VERTICES), ValueError, "from 0"),
        (lambda writer: writer.add_mesh_batch(0, "../out", VERTICES), ValueError, "leads out"),
        (lambda writer: writer.add_mesh_batch(0, "/tmp", VERTICES), ValueError, "leads out"),
        (lambda writer: writer.add_mesh_batch(0, "a/../../out", VERTICES), ValueError, "leads out"),
        (lambda writer: writer.add_pointcloud_batch(0, "", VERTICES, points_type="dots"), ValueError, "usd_geom_points"),
        (lambda writer: writer.add_pointcloud_batch(0, "", VERTICES, [drawn(0, 5, 3)]), ConfigError, "give 6"),
        (lambda writer: writer.add_pointcloud_batch(0, "", VERTICES, widths=[drawn(0, 5)]), ConfigError, "give 6 or one"),
        (lambda writer: writer.add_pointcloud_batch(0, "", VERTICES, widths=[-drawn(0, 6)]), ConfigError, "below zero"),
        (lambda writer: writer.add_voxelgrid_batch(0, "", [torch.ones(2, 2, 2)], [drawn(0, 7, 3)]), ConfigError, "give 8"),
        (lambda writer: writer.add_voxelgrid_batch(0, "", [torch.ones(2, 2)]), ConfigError, r"\(X, Y, Z\)"),
        (
            lambda writer: writer.add_mesh_batch(
                0, "", VERTICES, FACES, vertex_colors_list=[drawn(0, 6, 3)], face_colors_list=[drawn(0, 4, 3)]
            ),
            ConfigError,
            "give one",
        ),
        (
            lambda writer: writer.add_mesh_batch(0, "", VERTICES, FACES, semantic_ids_list=[numbers(0, 3, 5)]),
            ConfigError,
            r"give 4 \(uniform\) or 6",
        ),
        (
            lambda writer: writer.add_mesh_batch(0, "", VERTICES, FACES, semantic_ids_list=[numbers(0, 3, 2, 2)]),
            ConfigError,
            "a list of them",
        ),
        (lambda writer: writer.set_labels({1: ("one", (0.5, 2.0, 0))}), ConfigError, "three floats"),
    ],
)
def test_calls_that_cannot_be_right_are_refused(
    call: Callable[[Timelapse], None], kind: type[Exception], told: str, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=told):
        call(Timelapse(tmp_path / "log"))
    assert not list(tmp_path.rglob("*.usd"))


@pytest.mark.parametrize(
    ("options", "told"), [({"up_axis": "X"}, "'Z'"), ({"meters_per_unit": 0}, "above zero"), ({"fps": -1}, "above zero")]
)
def test_settings_that_cannot_be_right_are_refused(options: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=told):
        Timelapse(tmp_path, **options)


def test_a_file_keeps_what_its_points_and_values_are(log: Path) -> None:
    writer = Timelapse(log)
    writer.add_pointcloud_batch(0, "", VERTICES, [torch.tensor([1.0, 0, 0])])
    with pytest.raises(ValueError, match="which is PointInstancer"):
        writer.add_pointcloud_batch(1, "", VERTICES, points_type="usd_geom_points")
    with pytest.raises(ConfigError, match="constant in the calls before"):
        writer.add_pointcloud_batch(1, "", VERTICES, VERTICES)
    writer.add_mesh_batch(0, "", VERTICES, FACES, [drawn(0, 6, 2)], vertex_colors_list=VERTICES)
    with pytest.raises(ConfigError, match="vertex in the calls before"):
        writer.add_mesh_batch(1, "", face_colors_list=[drawn(0, 4, 3)])
    with pytest.raises(ConfigError, match="vertex in the calls before"):
        writer.add_mesh_batch(1, "", uvs_list=[drawn(0, 12, 2)])
    assert TimelapseParser(log).items["pointcloud", "", 0].times == TimelapseParser(log).items["mesh", "", 0].times == (0,)


def test_a_link_out_of_the_log_is_refused(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "log" / "link").symlink_to(tmp_path / "out")
    with pytest.raises(ConfigError, match="leads out"):
        Timelapse(tmp_path / "log").add_mesh_batch(0, "link", VERTICES)
    assert not list((tmp_path / "out").iterdir())


def test_numbers_that_are_none_do_not_spoil_a_file(log: Path) -> None:
    broken = drawn(0, 6, 3)
    broken[2, 1], broken[4, 0] = float("nan"), float("inf")
    writer = Timelapse(log)
    writer.add_mesh_batch(0, "", [broken], FACES)
    writer.add_pointcloud_batch(0, "", [broken])
    assert np.array_equal(only(log, "mesh", "", 0).vertices, broken, equal_nan=True)
    finite = broken[[0, 1, 3, 5]].numpy()
    assert np.array_equal(value(log / "mesh_0.usd", "/mesh_0.extent", 0), np.stack([finite.min(0), finite.max(0)]))
    assert only(log, "pointcloud", "", 0).widths[0] > 0


def test_faces_given_each_time_cost_nothing_after_the_first(log: Path) -> None:
    faces, writer = [numbers(1, 3000, 6000, 3)], Timelapse(log)
    for time in range(5):
        writer.add_mesh_batch(time, "", [drawn(time, 3000, 3)], faces)
    assert times(log / "mesh_0.usd", "/mesh_0.faceVertexIndices") == [0]
    first = 6000 * 3 * 4  # at most, as integers
    assert (log / "mesh_0.usd").stat().st_size < 5 * 3000 * 12 + first + 5 * 2000


@pytest.mark.parametrize("iterations", [40])
def test_memory_does_not_grow_with_iterations(iterations: int, tmp_path: Path) -> None:
    script = (
        "import resource, sys, torch\n"
        "from scenemill import Timelapse\n"
        "writer = Timelapse(sys.argv[1])\n"
        "peaks = []\n"
        "for iteration in range(int(sys.argv[2])):\n"
        "    writer.add_pointcloud_batch(iteration, '', [torch.rand(100_000, 3)], [torch.rand(100_000, 3)])\n"
        "    writer.add_voxelgrid_batch(iteration, '', [torch.rand(48, 48, 48) < 0.3])\n"
        "    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
        "print(peaks[9], peaks[-1])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), str(iterations)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    early, late = (int(number) for number in done.stdout.split())
    assert late - early < 10 * 1024  # KiB; the iterations between are 80 MB


def kaolin_file(path: Path, kind: str, iterations: list[int]) -> None:
    """A file as Kaolin writes it: samples of everything at each iteration, no units, an end that may be too late."""
    stage = Usd.Stage.CreateNew(str(path))
    stage.DefinePrim("/World", "Xform")
    prim = stage.DefinePrim(f"/{path.stem}", kind)
    stage.SetDefaultPrim(prim)
    UsdGeom.SetStageUpAxis(stage, "Y")
    for time in iterations:
        points = drawn(time, 5, 3).numpy()
        prim.GetAttribute("positions" if kind == "PointInstancer" else "points").Set(points.tolist(), time)
        if kind == "PointInstancer":
            child = stage.DefinePrim(prim.GetPath().AppendChild("sphere"), "Sphere")
            child.GetAttribute("radius").Set(0.5)
            prim.GetRelationship("prototypes").SetTargets([child.GetPath()])
            prim.GetAttribute("protoIndices").Set([0] * 5, time)
            prim.GetAttribute("scales").Set([(0.125,) * 3] * 5, time)
        elif kind == "Points":
            prim.GetAttribute("widths").Set([0.125] * 5, time)
            UsdGeom.Points(prim).GetDisplayColorAttr().Set(drawn(time + 1, 5, 3).tolist(), time)
        else:
            prim.GetAttribute("faceVertexCounts").Set([3, 3], time)
            prim.GetAttribute("faceVertexIndices").Set([0, 1, 2, 2, 3, 4], time)
            material = UsdShade.Material.Define(stage, prim.GetPath().AppendChild("old"))
            shader = UsdShade.Shader.Define(stage, material.GetPath().AppendChild("Shader"))
            shader.CreateIdAttr("UsdPreviewSurface")
            shader.CreateInput("roughness", Sdf.ValueTypeNames.Float).Set(0.25, time)
            material.CreateSurfaceOutput().ConnectToSource(shader.CreateOutput("surface", Sdf.ValueTypeNames.Token))
            prim.CreateRelationship("material:binding", False).SetTargets([material.GetPath()])
    stage.SetEndTimeCode(iterations[-1] + 1)
    stage.Save()


@pytest.mark.parametrize("points_type", POINT_TYPES)
@pytest.mark.parametrize("count", [5, 8])
def test_clouds_of_kaolin_go_on(points_type: str, count: int, log: Path) -> None:
    (log / "c").mkdir(parents=True)
    kaolin_file(log / "c" / "pointcloud_0.usd", "PointInstancer" if points_type == "point_instancer" else "Points", [0, 10])
    before = TimelapseParser(log)
    assert list(before.items["pointcloud", "c", 0].times) == [0, 10] and before.dir_info["pointcloud"][0]["end_time"] == 10
    old: Any = before.read("pointcloud", "c", 0, 10).prims[0]
    assert np.allclose(old.widths, 0.125) and (old.colors is None) == (points_type == "point_instancer")
    Timelapse(log).add_pointcloud_batch(20, "c", [drawn(20, count, 3)], [drawn(21, count, 3)], points_type)
    for time, size in ((0, 5), (10, 5), (20, count)):
        read = only(log, "pointcloud", "c", time)
        assert np.array_equal(read.points, drawn(time, size, 3)) and np.allclose(read.widths, 0.125)
        if points_type == "usd_geom_points" or time == 20:
            assert np.array_equal(read.colors, drawn(time + 1, size, 3))
    stage = opened(log / "c" / "pointcloud_0.usd")
    assert (stage.GetStartTimeCode(), stage.GetEndTimeCode()) == (0, 20)


def test_meshes_of_kaolin_go_on_with_their_materials(log: Path) -> None:
    log.mkdir()
    kaolin_file(log / "mesh_0.usd", "Mesh", [0, 10])
    assert only(log, "mesh", "", 10).materials["old"].roughness_value.tolist() == [0.25]
    old, new = usd.PBRMaterial(roughness_value=0.75), usd.PBRMaterial(roughness_value=0.5)
    Timelapse(log).add_mesh_batch(20, "", [drawn(20, 5, 3)], materials_list=[{"old": old, "new": new}])
    for time, roughness in ((0, 0.25), (10, 0.25), (20, 0.75)):
        read = only(log, "mesh", "", time)
        assert np.array_equal(read.vertices, drawn(time, 5, 3)) and read.indices.tolist() == [0, 1, 2, 2, 3, 4]
        assert read.materials["old"].roughness_value.tolist() == [roughness]
    assert bound_materials(log / "mesh_0.usd") == {"old": "/mesh_0/old", "new": "/mesh_0/new"}


def test_grids_of_kaolin_go_on_and_may_be_no_cubes(log: Path) -> None:
    log.mkdir()
    stage = usd.export_voxelgrid(log / "voxelgrid_0.usd", torch.eye(3)[None].expand(3, 3, 3), "/voxelgrid_0", time=0)
    stage.SetDefaultPrim(stage.GetPrimAtPath("/voxelgrid_0"))
    stage.Save()
    del stage
    Timelapse(log).add_voxelgrid_batch(10, "", [torch.ones(3, 2, 1)])
    assert only(log, "voxelgrid", "", 0).shape == (3, 3, 3) and only(log, "voxelgrid", "", 10).shape == (3, 2, 1)
    assert torch.equal(torch.from_numpy(only(log, "voxelgrid", "", 0).occupied()), torch.eye(3)[None].expand(3, 3, 3).bool())


def test_a_file_that_is_no_usd_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "mesh_0.usd").write_text("something else")
    with pytest.raises(SourceError, match="move it away"):
        Timelapse(tmp_path).add_mesh_batch(0, "", VERTICES)
    assert (tmp_path / "mesh_0.usd").read_text() == "something else"
