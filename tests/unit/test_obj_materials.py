"""Materials of OBJ files: values, images, handlers of errors, and which face has which."""

import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from scenemill.schemas.errors import ConfigError, SourceError
from scenemill.trainers import obj

FACES = "v 0 0 0\nv 1 0 0\nv 0 1 0\nvt 0 0\nvt 1 0\nvt 0 1\n"
FACE = "f 1/1 2/2 3/3\n"


def image_at(path: Path, mode: str = "RGB", seed: int = 0) -> np.ndarray[Any, Any]:
    """An image file of random pixels, 4 wide and 3 high, and its pixels as RGB."""
    width = len(mode) if mode != "P" else 1
    pixels = np.random.default_rng(seed).integers(0, 256, (3, 4, width), dtype=np.uint8)
    image = Image.fromarray(pixels[..., 0] if width == 1 else pixels, "L" if mode == "P" else None)
    path.parent.mkdir(parents=True, exist_ok=True)
    (image.convert("P") if mode == "P" else image).save(path)
    return np.repeat(pixels, 3, axis=2) if width == 1 else pixels[..., :3]


def library_at(folder: Path, text: str) -> Path:
    path = folder / "some.mtl"
    path.write_text(text, encoding="utf-8")
    return path


def mesh_at(folder: Path, materials: str, faces: str) -> Path:
    library_at(folder, materials)
    path = folder / "mesh.obj"
    path.write_text(f"mtllib some.mtl\n{FACES}{faces}", encoding="utf-8")
    return path


def test_values_and_images_are_read_under_their_keys(tmp_path: Path) -> None:
    pixels = image_at(tmp_path / "a b.png")
    text = (
        "Kd 9 9 9\nnewmtl one\nKd 0.5 0.25 1\nKa 0 0 0\nNs 10\nillum 2\nmap_Kd a b.png\nnewmtl two words\nPr 0.5\n d 0.25 # open\n"
    )
    materials = obj.load_mtl(library_at(tmp_path, text))
    assert list(materials) == ["one", "two words"] and list(materials["one"]) == ["material_name", "Kd", "Ka", "map_Kd"]
    assert materials["one"]["Kd"].tolist() == [0.5, 0.25, 1] and materials["one"]["Kd"].dtype == torch.float32
    assert torch.equal(materials["one"]["map_Kd"], torch.from_numpy(pixels)) and materials["two words"]["Pr"].tolist() == [0.5]
    assert materials["two words"]["material_name"] == "two words" and materials["two words"]["d"].tolist() == [0.25]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
def test_images_of_any_kind_have_three_channels(mode: str, tmp_path: Path) -> None:
    pixels = image_at(tmp_path / "map.png", mode)
    (material,) = obj.load_mtl(library_at(tmp_path, "newmtl one\nmap_Ks map.png\n")).values()
    assert material["map_Ks"].dtype == torch.uint8 and np.array_equal(material["map_Ks"].numpy(), pixels)


@pytest.mark.parametrize(("letter", "channel"), [("r", 0), ("g", 1), ("b", 2)])
def test_an_option_picks_a_channel_and_others_are_passed_over(letter: str, channel: int, tmp_path: Path) -> None:
    pixels = image_at(tmp_path / "maps" / "map.png")
    line = f"map_d -s 1 1 1 -clamp on -imfchan {letter} -mm 0 1 maps\\map.png"
    (material,) = obj.load_mtl(library_at(tmp_path, f"newmtl one\n{line}\n")).values()
    assert np.array_equal(material["map_d"].numpy(), pixels[..., channel : channel + 1])


BROKEN = {
    "missing.png": "map_Kd missing.png",
    "none": "map_Kd .",
    "not an image": "map_Kd text.png",
    "outside": "map_Kd ../outside.png",
    "absolute": "map_Kd /etc/hostname",
    "too few": "Kd 1 2",
    "words": "Kd a b c",
    "nan": "Ks nan 0 0",
    "nul": "map_Kd a\0b.png",
    "long": f"map_Kd {'x' * 5000}.png",
}


@pytest.mark.parametrize("line", BROKEN.values(), ids=BROKEN)
def test_a_line_that_cannot_be_read_is_told_to_the_handler_and_left_out(line: str, tmp_path: Path) -> None:
    folder = tmp_path / "mesh"
    image_at(tmp_path / "outside.png")
    folder.mkdir()
    (folder / "text.png").write_text("no image")
    path = library_at(folder, f"newmtl one\n{line}\nKa 1 1 1\n")
    with pytest.raises(obj.MaterialLoadError, match=r"some\.mtl"):
        obj.load_mtl(path)
    seen: list[tuple[Exception, dict[str, Any]]] = []
    materials = obj.load_mtl(path, lambda error, **known: seen.append((error, known)))
    assert set(materials["one"]) == {"material_name", "Ka"} and len(seen) == 1
    assert (
        isinstance(seen[0][0], obj.MaterialLoadError) and seen[0][1]["data"] == line.split() and seen[0][1]["mtl_path"] == str(path)
    )
    with pytest.warns(UserWarning, match="some.mtl"):
        obj.load_mtl(path, obj.skip_error_handler)
    assert set(obj.load_mtl(path, obj.ignore_error_handler)["one"]) == {"material_name", "Ka"}


def test_an_image_of_too_many_pixels_is_told_to_the_handler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image_at(tmp_path / "map.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5)
    with pytest.raises(obj.MaterialLoadError, match="decompression bomb"):
        obj.load_mtl(library_at(tmp_path, "newmtl one\nmap_Kd map.png\n"))


def test_links_do_not_lead_out_of_the_folder_unless_it_is_made_larger(tmp_path: Path) -> None:
    pixels = image_at(tmp_path / "images" / "map.png")
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "link.png").symlink_to(tmp_path / "images" / "map.png")
    for line in ("map_Kd link.png", "map_Kd ../images/map.png"):
        path = mesh_at(folder, f"newmtl one\n{line}\n", f"usemtl one\n{FACE}")
        with pytest.raises(obj.MaterialLoadError, match="outside"):
            obj.import_mesh(path, with_materials=True)
        mesh = obj.import_mesh(path, with_materials=True, texture_root=tmp_path)
        assert mesh is not None and np.array_equal(mesh.materials[0]["map_Kd"].numpy(), pixels)


@pytest.mark.parametrize("line", ["missing.mtl", "../some.mtl", "/etc/hostname", "a\0b.mtl", "x" * 5000])
def test_a_file_of_materials_that_is_not_there_is_told_to_the_handler(line: str, tmp_path: Path) -> None:
    folder = tmp_path / "mesh"
    folder.mkdir()
    library_at(tmp_path, "newmtl one\n")
    (folder / "mesh.obj").write_text(f"mtllib {line}\n{FACES}{FACE}")
    with pytest.raises(obj.MaterialFileError):
        obj.import_mesh(folder / "mesh.obj", with_materials=True)
    mesh = obj.import_mesh(folder / "mesh.obj", with_materials=True, error_handler=obj.ignore_error_handler)
    assert mesh is not None and mesh.materials == [] and mesh.material_assignments.tolist() == [-1]
    with pytest.raises(obj.MaterialFileError):
        obj.load_mtl(tmp_path / "missing.mtl", obj.default_error_handler)
    assert obj.load_mtl(tmp_path / "missing.mtl", obj.ignore_error_handler) == {}


def test_faces_have_the_materials_named_before_them_and_materials_are_sorted(tmp_path: Path) -> None:
    faces = f"{FACE}usemtl b\n{FACE}{FACE}usemtl unused\nusemtl a\n{FACE}usemtl b\n{FACE}usemtl c\n"
    path = mesh_at(tmp_path, "".join(f"newmtl {name}\nKd 1 1 1\n" for name in ("c", "unused", "b", "a")), faces)
    mesh = obj.import_mesh(path, with_materials=True)
    assert mesh is not None and [one["material_name"] for one in mesh.materials] == ["a", "b", "c", "unused"]
    assert mesh.material_assignments.tolist() == [-1, 1, 1, 0, 1] and mesh.material_assignments.dtype == torch.int16


def test_several_files_and_names_with_spaces_are_found(tmp_path: Path) -> None:
    (tmp_path / "one.mtl").write_text("newmtl one\n")
    (tmp_path / "two.mtl").write_text("newmtl two\n")
    (tmp_path / "the third.mtl").write_text("newmtl thrée\n", encoding="utf-8")
    (tmp_path / "mesh.obj").write_text(
        f"mtllib one.mtl two.mtl\nmtllib the third.mtl\n{FACES}usemtl thrée\n{FACE}", encoding="utf-8"
    )
    mesh = obj.import_mesh(tmp_path / "mesh.obj", with_materials=True)
    assert mesh is not None and [one["material_name"] for one in mesh.materials] == ["one", "thrée", "two"]
    assert mesh.material_assignments.tolist() == [1]


def test_a_name_without_a_material_is_an_error_left_out_or_made_up(tmp_path: Path) -> None:
    path = mesh_at(tmp_path, "newmtl b\n", f"usemtl a\n{FACE}usemtl b\n{FACE}")
    with pytest.raises(obj.MaterialNotFoundError, match="'a'"):
        obj.import_mesh(path, with_materials=True)
    for handler, warns in ((obj.skip_error_handler, True), (obj.ignore_error_handler, False)):
        mesh = read_warned(partial(obj.import_mesh, path, with_materials=True, error_handler=handler), warns)
        assert mesh.material_assignments.tolist() == [-1, 0] and len(mesh.materials) == 1
    create = obj.create_missing_materials_error_handler
    mesh = read_warned(lambda: obj.import_mesh(path, with_materials=True, error_handler=create), True)
    assert (
        mesh.material_assignments.tolist() == [0, 1] and mesh.materials[0]["material_name"] == "a" and "error" in mesh.materials[0]
    )
    assert mesh.materials[0]["Kd"].shape == (3,) and 0 <= mesh.materials[0]["Kd"].min() <= mesh.materials[0]["Kd"].max() <= 1
    physical = read_warned(lambda: obj.import_mesh(path, True, error_handler=create, raw_materials=False), True)
    assert physical.materials[0].material_name == "a" and physical.materials[0].diffuse_color.shape == (3,)


def read_warned(read: Callable[[], Any], warns: bool) -> Any:
    if not warns:
        return read()
    with pytest.warns(UserWarning, match="material"):
        return read()


def test_handlers_raise_what_is_not_theirs_and_errors_can_be_sent_on() -> None:
    with pytest.raises(ZeroDivisionError):
        obj.create_missing_materials_error_handler(ZeroDivisionError())
    with pytest.warns(UserWarning, match="gone"):
        assert obj.create_missing_materials_error_handler(obj.MaterialFileError("gone")) is None
    for kind in (obj.MaterialFileError, obj.MaterialLoadError, obj.MaterialNotFoundError):
        error = pickle.loads(pickle.dumps(kind("this", "that")))
        assert type(error) is kind and isinstance(error, obj.MaterialError) and isinstance(error, SourceError)
        assert (error.observed, error.expected) == ("this", "that") and "this" in error.args[0]


def test_assignments_are_lists_of_faces_or_ranges() -> None:
    materials = {"b": {"n": 1}, "a": {"n": 2}}
    listed = {"a": torch.tensor([0, 4]), "b": torch.tensor([1, 2])}
    ranges = {"a": torch.tensor([[0, 1], [4, 5]]), "b": torch.tensor([[1, 3]])}
    for assigned in (listed, ranges):
        found, numbers = obj.process_materials_and_assignments(materials, assigned, obj.default_error_handler, 6)
        assert found == [{"n": 2}, {"n": 1}] and numbers.tolist() == [0, 1, 1, -1, 0, -1] and numbers.dtype == torch.int16
    for wrong in (torch.tensor([6]), torch.tensor([-1]), torch.zeros(2, 3), torch.tensor([[5, 7]])):
        with pytest.raises(ConfigError, match="faces of material 'a'"):
            obj.process_materials_and_assignments(materials, {"a": wrong}, obj.default_error_handler, 6)
    many: dict[str, Any] = {str(number): {} for number in range(40_000)}
    with pytest.raises(ConfigError, match="at most 32767"):
        obj.process_materials_and_assignments(many, {}, obj.default_error_handler, 1)


def test_physical_materials_have_what_the_file_says() -> None:
    grey = torch.arange(12, dtype=torch.uint8).reshape(3, 4, 1).expand(3, 4, 3)
    raw = {
        "Kd": torch.rand(3),
        "Ks": torch.rand(3),
        "Ka": torch.rand(3),
        "Pr": torch.rand(1),
        "Pm": torch.rand(1),
        "d": torch.rand(1),
    }
    maps = {"map_Kd": "diffuse", "map_Ks": "specular", "map_d": "opacity", "map_Ns": "roughness", "map_refl": "metallic"}
    raw |= {key: grey + number for number, key in enumerate(maps)} | {"disp": grey, "bump": grey, "map_Ka": grey}
    material = obj.to_pbr({"material_name": "x", **raw})
    assert material.material_name == "x" and material.diffuse_color is raw["Kd"] and material.specular_color is raw["Ks"]
    assert (material.roughness_value, material.metallic_value, material.opacity_value) == (raw["Pr"], raw["Pm"], raw["d"])
    for number, name in enumerate(maps.values()):
        assert torch.equal(getattr(material, f"{name}_texture"), (grey + number).float() / 255), name
    assert torch.equal(material.normals_texture, grey.float() / 255 * 2 - 1)
    assert torch.equal(material.displacement_texture, grey.float() / 255)


@pytest.mark.real
def test_kaolins_materials_are_read_but_for_the_missing_image(real_data: Path) -> None:
    path = real_data / "data" / "kaolin" / "simple_obj" / "model.obj"
    with pytest.raises(obj.MaterialLoadError, match="map_Ks"):
        obj.import_mesh(path, with_materials=True)
    with pytest.warns(UserWarning, match="map_Ks"):
        mesh = obj.import_mesh(path, with_materials=True, error_handler=obj.skip_error_handler)
    assert mesh is not None and mesh.material_assignments.tolist() == [0, 1] and len(mesh.materials) == 3
    first, second, third = mesh.materials
    assert set(first) == {"material_name", "Ka", "Kd", "Ks", "map_Ka", "map_Kd"} and set(third) == {
        "material_name",
        "Ka",
        "Kd",
        "Ks",
    }
    assert first["Kd"].tolist() == pytest.approx([0.4, 0.3, 0.2])
    for key, name in (("map_Ka", "ambient_tex_002"), ("map_Kd", "diffuse_tex_002"), ("map_Ks", "spec_col_tex_002")):
        with Image.open(path.parent / f"{name}.png") as image:
            assert np.array_equal(second[key].numpy(), np.asarray(image.convert("RGB")))
