"""Rendered views show what is there, and our importer and renderer show it again."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import default_collate

from scenemill.pipelines.synth import synth_views
from scenemill.schemas.errors import ConfigError, SourceError
from scenemill.trainers.mesh_files import import_mesh
from scenemill.trainers.render.camera import generate_perspective_projection
from scenemill.trainers.render.dibr import dibr_rasterization
from scenemill.trainers.render.prepare import prepare_vertices
from scenemill.trainers.render.texture import texture_mapping
from scenemill.trainers.surface_mesh import SurfaceMesh
from scenemill.trainers.synthetic_views import import_synthetic_view
from scenemill.trainers.usd.materials import PBRMaterial
from scenemill.trainers.view_worlds import Shots, ShownMesh, cameras_of, render_view, show_mesh, show_object
from scenemill.transforms.view_cameras import ViewMetadata, looking_at, projection_of
from scenemill.transforms.view_objects import OBJECTS, by_position, make_object


@pytest.fixture(scope="module", params=OBJECTS)
def rendered(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of views of a made-up object, with the object beside them; named like it."""
    folder = tmp_path_factory.mktemp("views") / str(request.param)
    synth_views(folder, request.param, views=2, size=64, seed=5)
    return folder


def everything(folder: Path, number: int) -> dict[str, Any]:
    sensors = ("depth_linear", "semantic", "instance", "normals", "bbox_2d_tight", "bbox_2d_loose")
    return import_synthetic_view(folder, number, **dict.fromkeys(sensors, True), strict=True)


def render_again(mesh: SurfaceMesh, view: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """(H, W, 3) image and (H, W) mask of an imported mesh from an imported camera, as a fit renders them."""
    assert mesh.face_uvs is not None and mesh.materials is not None
    camera = view["metadata"]
    height, width = view["rgb"].shape[:2]
    corners, on_image, normals = prepare_vertices(
        mesh.vertices[None], mesh.faces, camera["cam_proj"], camera_transform=camera["cam_transform"][None]
    )
    uvs = torch.stack([mesh.face_uvs[..., 0], 1 - mesh.face_uvs[..., 1]], dim=-1)
    features = [uvs[None], torch.ones_like(uvs[None, ..., :1])]
    (places, cover), _, face = dibr_rasterization(height, width, corners[..., 2], on_image, features, normals[..., 2])
    texture = mesh.materials[0].chw().diffuse_texture[None].float()
    return (texture_mapping(places, texture, "bilinear") * cover)[0], face[0] >= 0


def test_importer_and_renderer_show_the_views_again(rendered: Path) -> None:
    mesh = import_mesh(rendered / "truth" / f"{rendered.name}.obj", triangulate=True)
    assert mesh is not None
    for number in range(2):
        view = everything(rendered, number)
        image, again = render_again(mesh, view)
        object_ = view["semantic"] > 0
        assert (object_ & again).sum() / (object_ | again).sum() > 0.995
        inner = torch.nn.functional.max_pool2d((~object_)[None].float(), 3, 1, 1)[0] == 0  # edges are smoothed, textures sharp
        assert (image - view["rgb"])[inner].abs().mean() < 0.05
        assert np.corrcoef(image[inner].flatten(), view["rgb"][inner].flatten())[0, 1] > 0.95


def test_labels_depth_normals_and_boxes_agree(rendered: Path) -> None:
    for number in range(2):
        view = everything(rendered, number)
        on = view["semantic"] > 0
        assert view["semantic"].unique().tolist() == [0, 1] and torch.equal(view["instance"], view["semantic"])
        assert torch.equal(view["depth_linear"] > 0, on) and torch.equal(view["normals"].any(dim=-1), on)
        normals = view["normals"][on] * 2 - 1
        assert normals.norm(dim=1).sub(1).abs().max() < 0.02
        rows, columns = on.nonzero().T
        box = view["bbox_2d_tight"][0]["bbox"]
        assert [box[end] for end in ("x_min", "y_min", "x_max", "y_max")] == [
            int(end) for end in (columns.min(), rows.min(), columns.max(), rows.max())
        ]
        near, far = view["metadata"]["clipping_range"]
        assert near < view["depth_linear"][on].min() and view["depth_linear"].max() < far
        assert not on[0].any() and not on[-1].any() and not on[:, 0].any() and not on[:, -1].any()


def test_every_pixel_of_the_sphere_shows_the_point_its_ray_meets_first() -> None:
    mesh, size = show_object(make_object("sphere")), 48
    for camera in cameras_of(mesh, Shots(views=3, size=size, seed=1), "sphere"):
        view = render_view(mesh, camera)
        row, column = np.mgrid[:size, :size]
        image = np.stack([(2 * column + 1 - size) / size, (size - 2 * row - 1) / size], axis=-1)
        ray = np.concatenate([image / camera.projection[:2, 0], -np.ones((size, size, 1))], axis=-1) @ camera.transform[:3].T
        eye = -camera.transform[3] @ camera.transform[:3].T
        half, rest, square = ray @ eye, eye @ eye - 0.25, (ray * ray).sum(axis=-1)
        root = half**2 - rest * square
        depth = (-half - np.sqrt(np.maximum(root, 0))) / square  # along the view axis, for the ray's third coordinate is -1
        point = eye + depth[..., None] * ray
        assert view.labels is not None and view.depth is not None and view.normals is not None
        on = view.labels > 0
        assert np.count_nonzero(on != (root > 0)) < 0.02 * on.sum()
        inner = on & (root > 0.05 * root.max())  # away from the edge, where a polygon differs more
        np.testing.assert_allclose(view.depth[inner], depth[inner], atol=0.006)
        np.testing.assert_allclose(view.normals[inner], 2 * point[inner], atol=0.12)
        shown, wanted = view.rgb[inner] / 255.0, by_position(point[inner])
        cosine = (shown * wanted).sum(axis=-1) / np.linalg.norm(shown, axis=-1) / np.linalg.norm(wanted, axis=-1)
        assert np.quantile(cosine, 0.02) > 0.99  # the checker is brightness alone
        assert np.median(np.abs(shown - wanted)) < 0.02


def square_mesh(**given: Any) -> SurfaceMesh:
    """A square from (-1, -1) to (1, 1) in the plane z = 0, of two triangles, with uvs that have v down."""
    vertices = torch.tensor([[-1.0, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]])
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]])
    uvs = torch.tensor([[0.0, 1], [1, 1], [1, 0], [0, 0]])
    return SurfaceMesh(vertices, faces, uvs=uvs, face_uvs_idx=faces, **given)


def photo(mesh: ShownMesh, size: int, supersample: int = 4) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The square, filling the image to its edges."""
    camera = ViewMetadata(
        looking_at(np.array([0, 0, 1.0]), np.zeros(3)), projection_of(math.pi / 2, (size, size)), (size, size), (0.1, 9), (), {}
    )
    return render_view(mesh, camera, supersample).rgb


@pytest.mark.parametrize("as_bytes", [False, True])
def test_a_texture_stands_upright_on_an_imported_mesh(as_bytes: bool) -> None:
    texture = torch.tensor([[[1.0, 0, 0], [0, 1, 0]], [[0, 0, 1], [1, 1, 1]]])
    material = PBRMaterial(diffuse_texture=(texture * 255).to(torch.uint8) if as_bytes else texture)
    mesh = square_mesh(materials=[material], material_assignments=torch.zeros(2, dtype=torch.int16))
    corners = photo(show_mesh(mesh), 16)[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert corners.tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]


def test_a_texture_goes_on_beyond_its_edges_where_coordinates_do() -> None:
    checker = torch.tensor([[[1.0] * 3, [0] * 3], [[0] * 3, [1] * 3]])
    material = PBRMaterial(diffuse_texture=checker.repeat_interleave(8, 0).repeat_interleave(8, 1))
    mesh = square_mesh(materials=[material], material_assignments=torch.zeros(2, dtype=torch.int16))
    once = photo(show_mesh(mesh), 32)
    mesh.uvs = mesh.uvs * 2
    twice = photo(show_mesh(mesh), 32)
    np.testing.assert_allclose(twice[4:12, 4:12].astype(int), twice[20:28, 4:12], atol=1)
    assert twice[4, 4] == pytest.approx(once[8, 8], abs=1) and twice[4, 12] == pytest.approx(once[8, 24], abs=1)


def test_faces_show_their_own_material_then_their_colours_then_white() -> None:
    red = PBRMaterial(diffuse_color=(1.0, 0, 0))
    picture = photo(show_mesh(square_mesh(materials=[red], material_assignments=torch.tensor([0, -1], dtype=torch.int16))), 16)
    assert picture[15, 10].tolist() == [255, 0, 0] and picture[1, 4].tolist() == [255, 255, 255]
    colors = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]])
    blended = photo(show_mesh(square_mesh(vertex_colors=colors)), 64, supersample=1).astype(int)
    assert blended[-1, 0] == pytest.approx([255, 0, 0], abs=6) and blended[0, -1] == pytest.approx([0, 0, 255], abs=6)
    assert blended[32, 32] == pytest.approx([127, 0, 127], abs=4)


def test_a_pixel_is_the_mean_of_its_samples_before_black() -> None:
    mesh = show_object(make_object("clock"))
    camera = cameras_of(mesh, Shots(views=1, size=24), "clock")[0]
    large = ViewMetadata(camera.transform, camera.projection, (96, 96), camera.clipping_range, (), {})
    samples = render_view(mesh, large, supersample=1).rgb.astype(float)
    wanted = np.stack([samples[row::4, column::4] for row in range(4) for column in range(4)]).mean(axis=0)
    np.testing.assert_allclose(render_view(mesh, camera).rgb, wanted, atol=1.01)


def test_a_mesh_that_is_elsewhere_is_seen_in_the_middle() -> None:
    made = show_object(make_object("vase"))
    away = ShownMesh(
        made.vertices * 10 + torch.tensor([100.0, -7, 3]),
        made.faces,
        made.face_uvs,
        made.face_colors,
        made.textures,
        made.face_texture,
    )
    for here, there in zip(*(cameras_of(mesh, Shots(views=2, size=32), "x") for mesh in (made, away)), strict=True):
        np.testing.assert_array_equal(render_view(away, there, 1).labels, render_view(made, here, 1).labels)


def test_the_same_call_writes_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        made = synth_views(tmp_path / name, "torus", views=2, size=16, seed=seed)
        assert (made.views, made.files) == (2, 2 * 6 + 3)
    files = [{path.name: path.read_bytes() for path in (tmp_path / name).rglob("*.*")} for name in ("one", "two", "three")]
    assert files[0] == files[1] and files[0]["0_rgb.png"] != files[2]["0_rgb.png"]
    assert files[0]["torus.obj"] == files[2]["torus.obj"]


def test_cameras_keep_radius_and_elevation_that_are_asked_for() -> None:
    mesh = show_object(make_object("sphere"))
    for camera in cameras_of(mesh, Shots(views=20, size=8, radius=2.5, elevation=(10, 20)), "x"):
        eye = -camera.transform[3] @ camera.transform[:3].T
        assert np.linalg.norm(eye) == pytest.approx(2.5)
        assert 10 <= math.degrees(math.asin(eye[1] / 2.5)) <= 20


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"views": 0}, "at least 1 view"),
        ({"size": 1}, "2 to 4096 pixels"),
        ({"size": 5000}, "2 to 4096 pixels"),
        ({"seed": -1}, "a seed from 0 up"),
        ({"elevation": (20.0, 10.0)}, "the lower one first"),
        ({"elevation": (-91.0, 10.0)}, "from -90 to 90"),
        ({"radius": 0.4}, "the object reaches 0.5 from its middle"),
    ],
)
def test_a_value_out_of_range_is_refused(given: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        synth_views(tmp_path / "out", "sphere", **{"views": 1, "size": 8, **given})


@pytest.mark.parametrize(("shown", "said"), [("teapot", "is not known"), ("none.obj", "no such file"), ("a.usda", "no such file")])
def test_an_object_that_is_not_there_is_refused(shown: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        synth_views(tmp_path / "out", shown)


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "note").touch()
    with pytest.raises(ConfigError, match="not an empty folder"):
        synth_views(tmp_path, "sphere")
    assert [path.name for path in tmp_path.iterdir()] == ["note"]


# --- the importer


def test_the_importer_has_a_key_for_what_is_asked_and_none_for_what_is_missing(tmp_path: Path) -> None:
    synth_views(tmp_path / "v", "sphere", views=2, size=16)
    (tmp_path / "v" / "1_normals.png").unlink()
    assert set(import_synthetic_view(tmp_path / "v", 0)) == {"rgb", "metadata"}
    found = import_synthetic_view(str(tmp_path / "v"), 1, rgb=False, normals=True, instance=True)
    assert set(found) == {"normals", "instance", "metadata"} and found["normals"] is None
    with pytest.raises(SourceError, match="no normals of view 1"):
        import_synthetic_view(tmp_path / "v", 1, normals=True, strict=True)
    with pytest.raises(SourceError, match="no readable file"):
        import_synthetic_view(tmp_path / "v", 2)


def test_the_importer_keeps_stored_dtypes_and_collates(tmp_path: Path) -> None:
    synth_views(tmp_path / "v", "sphere", views=3, size=16)
    views = [everything(tmp_path / "v", number) for number in range(3)]
    for name, array in (("semantic", "semantic.npy"), ("depth_linear", "depth_linear.npy")):
        stored = torch.from_numpy(np.load(tmp_path / "v" / f"0_{array}"))
        assert views[0][name].dtype == stored.dtype and torch.equal(views[0][name], stored)
    batch = default_collate(views)
    assert batch["rgb"].shape == (3, 16, 16, 3) and batch["rgb"].dtype == torch.float32
    shapes = {name: tuple(batch["metadata"][name].shape) for name in ("cam_proj", "cam_transform", "asset_transforms")}
    assert shapes == {"cam_proj": (3, 3, 1), "cam_transform": (3, 4, 3), "asset_transforms": (3, 4, 4)}


@pytest.mark.parametrize("legacy", [False, True])
def test_a_wide_image_has_the_right_projection_or_on_demand_that_of_kaolin(legacy: bool, tmp_path: Path) -> None:
    synth_views(tmp_path / "v", "sphere", views=1, size=16)
    path = tmp_path / "v" / "0_metadata.json"
    document = json.loads(path.read_text())
    document["camera_properties"]["resolution"] = {"width": 32, "height": 16}
    path.write_text(json.dumps(document))
    camera = document["camera_properties"]
    angle = 2 * np.arctan(camera["horizontal_aperture"] / (2 * camera["focal_length"]))
    found = import_synthetic_view(tmp_path / "v", 0, legacy_projection=legacy)["metadata"]["cam_proj"]
    right = torch.tensor([[1 / math.tan(angle / 2)], [2 / math.tan(angle / 2)], [-1.0]])
    torch.testing.assert_close(found, generate_perspective_projection(angle, 2.0) if legacy else right)


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY\x01\x00v\x00", b"no array"])
def test_a_damaged_array_is_told(damage: bytes, tmp_path: Path) -> None:
    synth_views(tmp_path / "v", "sphere", views=1, size=16)
    (tmp_path / "v" / "0_semantic.npy").write_bytes(damage)
    with pytest.raises(SourceError, match="no readable array"):
        import_synthetic_view(tmp_path / "v", 0, semantic=True)


@pytest.mark.real
def test_the_published_sample_is_what_kaolin_makes_of_it(real_data: Path) -> None:
    folder = real_data / "data" / "kaolin" / "synthetic"
    found = import_synthetic_view(folder, 0, normals=True, depth_linear=True, bbox_2d_tight=True, bbox_2d_loose=True)
    document = json.loads((folder / "0_metadata.json").read_text())
    for name in ("rgb", "normals"):
        pixels = torch.from_numpy(np.asarray(Image.open(folder / f"0_{name}.png")).copy())
        assert torch.equal(found[name], pixels[:, :, :3].float() / 255)
    assert found["depth_linear"] is None
    assert all(found[name] == document[name] for name in ("bbox_2d_tight", "bbox_2d_loose"))
    camera = document["camera_properties"]
    angle = 2 * np.arctan(camera["horizontal_aperture"] / (2 * camera["focal_length"]))
    metadata = found["metadata"]
    assert torch.equal(metadata["cam_proj"], generate_perspective_projection(angle, 1.0))
    assert torch.equal(metadata["cam_transform"], torch.tensor(camera["tf_mat"])[:, :3])
    assert torch.equal(metadata["asset_transforms"], torch.tensor(document["asset_transforms"][0][1]))
    assert metadata["clipping_range"] == camera["clipping_range"]
