"""Materials through files: values, maps, colour spaces, bindings and names, as usd-core reads them and as they were given."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pxr import Usd, UsdShade

from scenemill.schemas.errors import ConfigError, SourceError
from scenemill.trainers import usd
from scenemill.trainers.usd.materials import INPUTS
from scenemill.trainers.usd.textures import TextureFolder, to_pixels

GENERATOR = torch.Generator().manual_seed(5)


def image(channels: int, height: int = 5, width: int = 7) -> torch.Tensor:
    return torch.rand(channels, height, width, generator=GENERATOR)


def full() -> usd.PBRMaterial:
    """A material with every value and every map that USD has."""
    values = {one.field: (0.25, 0.5, 0.75) if one.kind == "color3f" else 0.375 for one in INPUTS if one.field}
    maps = {f"{one.map}_texture": image(1 if one.kind == "float" else 3) for one in INPUTS}
    spaces = {f"{one.map}_colorspace": space for one, space in zip(INPUTS, ("sRGB", "raw", "auto") * 4, strict=False)}
    maps["normals_texture"] = image(3) * 2 - 1
    return usd.PBRMaterial(**values, **maps, **spaces, opacity_threshold=0.5, is_specular_workflow=True)  # type: ignore[arg-type]


def assert_same(read: Any, written: usd.PBRMaterial) -> None:
    for name, value in vars(written).items():
        other = getattr(read, name)
        if name.endswith("_texture") and value is not None:
            assert torch.allclose(other, value.permute(1, 2, 0), atol=(2 if name == "normals_texture" else 1) / 255), name
        elif isinstance(value, torch.Tensor):
            assert torch.allclose(other, value), name
        elif name != "material_name":
            assert other == value, name


@pytest.mark.parametrize("strict", [False, True])
def test_every_value_and_map_comes_back(strict: bool, tmp_path: Path) -> None:
    material = full()
    path, shader = usd.export_material(material, tmp_path / "one.usda", strict=strict)
    assert path == "/World/Looks/material_0" and UsdShade.Material(shader).GetPath() == path
    read = usd.import_material(tmp_path / "one.usda", path)
    assert_same(read, material)
    assert read.material_name == path
    names = {file.name for file in (tmp_path / "textures").iterdir()}
    assert names == {f"material_0_{one.map}.png" for one in INPUTS}


def test_what_is_not_said_is_not_there(tmp_path: Path) -> None:
    path, _ = usd.export_material(usd.PBRMaterial(), tmp_path / "one.usda")
    assert_same(usd.import_material(tmp_path / "one.usda", path), usd.PBRMaterial())
    assert not (tmp_path / "textures").exists()


def test_numbers_become_tensors_and_textures_turn() -> None:
    material = usd.PBRMaterial(
        diffuse_color=(1, 0, 0), ior_value=1.5, diffuse_texture=torch.rand(3, 8, 9), roughness_texture=torch.rand(8, 9, 1)
    )
    assert material.diffuse_color.dtype == torch.float32 and material.ior_value.shape == (1,)
    assert material.hwc().diffuse_texture.shape == (8, 9, 3) and material.hwc().roughness_texture.shape == (8, 9, 1)
    assert material.chw().diffuse_texture.shape == (3, 8, 9) and material.chw().roughness_texture.shape == (1, 8, 9)
    assert torch.equal(material.hwc().chw().diffuse_texture, material.diffuse_texture)


def test_a_material_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "one.usda"
    usd.export_material(full(), path, "/World/Looks/one")
    usd.export_material(usd.PBRMaterial(metallic_value=0.5), path, "/World/Looks/one")
    assert_same(usd.import_material(path, "/World/Looks/one"), usd.PBRMaterial(metallic_value=0.5))


def test_images_are_not_replaced_unless_told(tmp_path: Path) -> None:
    path, first = tmp_path / "one.usda", usd.PBRMaterial(diffuse_texture=image(3))
    usd.export_material(first, path, "/World/a/one")
    usd.export_material(usd.PBRMaterial(diffuse_texture=image(3)), path, "/World/b/one")
    assert_same(usd.import_material(path, "/World/a/one"), first)
    second = usd.PBRMaterial(diffuse_texture=image(3))
    usd.export_material(second, path, "/World/a/one", overwrite_textures=True)
    assert_same(usd.import_material(path, "/World/a/one"), second)
    assert {file.name for file in (tmp_path / "textures").iterdir()} == {"one_diffuse.png", "one_diffuse_0.png"}


def test_new_materials_get_paths_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "one.usda"
    names = ["", "", "red paint", "red paint", "/Looks/2nd", "/Looks/2nd"]
    paths = [usd.export_material(usd.PBRMaterial(material_name=name), path)[0] for name in names]
    assert paths == [
        "/World/Looks/material_0",
        "/World/Looks/material_1",
        "/World/Looks/red_paint",
        "/World/Looks/red_paint_0",
        "/Looks/_2nd",
        "/Looks/_2nd_0",
    ]


def test_moved_images_are_found_where_one_says(tmp_path: Path) -> None:
    material = usd.PBRMaterial(diffuse_texture=image(3))
    path, _ = usd.export_material(material, tmp_path / "one.usda", texture_path="maps/here", texture_file_prefix="x_")
    (tmp_path / "other" / "maps").mkdir(parents=True)
    (tmp_path / "maps" / "here").rename(tmp_path / "other" / "maps" / "here")
    for place in ("other", "other/maps/here", tmp_path / "other"):
        assert_same(usd.import_material(tmp_path / "one.usda", path, texture_path=place), material)
    with pytest.raises(SourceError, match=r"x_diffuse\.png"):
        usd.import_material(tmp_path / "one.usda", path)
    with pytest.raises(SourceError, match="no image maps/here"):
        usd.import_material(tmp_path / "one.usda", path, texture_path="elsewhere")


def test_values_over_time_are_read_at_their_times(tmp_path: Path) -> None:
    stage = usd.create_stage(tmp_path / "one.usda")
    materials = {time: usd.PBRMaterial(roughness_value=time / 8, diffuse_texture=image(3)) for time in (0, 4)}
    for time, material in materials.items():
        usd.export_material(material, stage, "/World/Looks/one", time=time, strict=True)
    for time, material in materials.items():
        assert_same(usd.import_material(stage, "/World/Looks/one", time=time), material)


def test_an_image_is_read_by_the_channel_that_is_connected(tmp_path: Path) -> None:
    stage, pixels = usd.create_stage(tmp_path / "one.usda"), image(4)
    usd.export_material(usd.PBRMaterial(diffuse_texture=pixels, roughness_texture=pixels), stage, "/one")
    reader = UsdShade.Shader(stage.GetPrimAtPath("/one/roughness_texture"))
    output = reader.CreateOutput("b", reader.GetOutput("r").GetTypeName())
    UsdShade.Shader(stage.GetPrimAtPath("/one/Shader")).GetInput("roughness").ConnectToSource(output)
    read = usd.import_material(stage, "/one")
    assert torch.allclose(read.roughness_texture[..., 0], pixels[2], atol=1 / 255)
    assert torch.allclose(read.diffuse_texture, pixels[:3].permute(1, 2, 0), atol=1 / 255)


def test_other_shaders_give_their_inputs_as_they_are(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stage = usd.create_stage(tmp_path / "one.usda")
    path, _ = usd.export_material(usd.PBRMaterial(roughness_value=0.5), stage, "/one")
    UsdShade.Shader(stage.GetPrimAtPath("/one/Shader")).SetShaderId("Another")
    read = usd.import_material(stage, path)
    assert read["material_name"] == "/one" and read["roughness"] == 0.5 and "no UsdPreviewSurface" in caplog.text
    with pytest.raises(ConfigError, match="only UsdPreviewSurface"):
        usd.export_material(usd.PBRMaterial(shader_name="Another"), stage)
    with pytest.raises(ConfigError, match="no material at /one/Shader"):
        usd.import_material(stage, "/one/Shader")
    with pytest.raises(ConfigError, match="No prim found at path /two"):
        usd.import_material(stage, "/two")


def test_transmittance_is_left_out_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, _ = usd.export_material(usd.PBRMaterial(transmittance_value=0.5), tmp_path / "one.usda")
    assert "transmittance is left out" in caplog.text
    assert usd.import_material(tmp_path / "one.usda", path).transmittance_value is None


class Other:
    """A material that is not ours, with some of the attributes."""

    diffuse_color = torch.tensor([0.5, 0.25, 0.125], requires_grad=True)
    roughness_value = 0.5
    specular_texture = torch.rand(3, 4, 5)
    specular_colorspace = "raw"


def test_anything_with_the_attributes_of_a_material_is_one(tmp_path: Path) -> None:
    path, _ = usd.export_material(Other(), tmp_path / "one.usda", strict=True)
    read = usd.import_material(tmp_path / "one.usda", path)
    assert read.diffuse_color.tolist() == [0.5, 0.25, 0.125] and read.roughness_value.tolist() == [0.5]
    assert torch.allclose(read.specular_texture, Other.specular_texture.permute(1, 2, 0), atol=1 / 255)


@given(
    st.sampled_from([1, 3, 4]),
    st.integers(1, 6),
    st.integers(1, 6),
    st.booleans(),
    st.sampled_from([torch.uint8, torch.float32, torch.float64, torch.float16]),
)
@settings(max_examples=60, deadline=None)
def test_pixels_are_cut_off_and_rounded_down(channels: int, height: int, width: int, last: bool, dtype: torch.dtype) -> None:
    size = (height, width, channels) if last else (channels, height, width)
    given_image = (
        torch.randint(0, 256, size).to(dtype)
        if dtype == torch.uint8
        else ((torch.rand(size) * 3 - 1) * 512).round().to(dtype) / 512
    )
    pixels = to_pixels("one", given_image).reshape(-1)
    is_first = size[0] in (1, 3, 4) and size[2] not in (1, 3, 4)
    ordered = given_image.permute(1, 2, 0) if is_first else given_image
    for pixel, number in zip(pixels.tolist(), ordered.reshape(-1).tolist(), strict=True):
        assert pixel == (number if dtype == torch.uint8 else min(max(int(np.float32(number) * 255 // 1), 0), 255))


@pytest.mark.parametrize(
    "wrong", [torch.rand(4, 4), torch.rand(2, 5, 5), torch.rand(3, 0, 5), torch.ones(3, 5, 5).int(), np.zeros((1, 2, 3, 4))]
)
def test_what_is_no_image_is_refused(wrong: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="diffuse_texture of /one"):
        usd.export_material(usd.PBRMaterial(diffuse_texture=wrong), tmp_path / "one.usda", "/one")
    with pytest.raises(ConfigError, match="diffuse_color of /one"):
        usd.export_material(usd.PBRMaterial(diffuse_color=(1, 2)), tmp_path / "one.usda", "/one")


def test_equal_images_that_follow_each_other_share_their_bytes(tmp_path: Path) -> None:
    folder, first, second = TextureFolder(tmp_path / "maps"), to_pixels("a", image(3)), to_pixels("b", image(1))
    names = [folder.save("one", f"one_{number}", pixels) for number, pixels in enumerate((first, first, second, first))]
    names += [folder.save("two", "two", first), folder.save("two", "two", second)]
    assert names == ["one_0.png", "one_1.png", "one_2.png", "one_3.png", "two.png", "two_0.png"]
    inodes = [(tmp_path / "maps" / name).stat().st_ino for name in names]
    assert inodes[0] == inodes[1] and inodes[3] == inodes[4] and len(set(inodes)) == 4
    for name, pixels in zip(names, (first, first, second, first, first, second), strict=True):
        with Image.open(tmp_path / "maps" / name) as stored:
            assert stored.format == "PNG" and np.array_equal(np.array(stored), pixels)
    assert not [file for file in (tmp_path / "maps").iterdir() if file.name.startswith(".")]


def test_an_image_that_went_away_is_written_again(tmp_path: Path) -> None:
    folder, pixels = TextureFolder(tmp_path), to_pixels("a", image(3))
    (tmp_path / folder.save("one", "one_0", pixels)).unlink()
    assert folder.save("one", "one_1", pixels) == "one_1.png" and (tmp_path / "one_1.png").stat().st_nlink == 1
    assert folder.save("one", "one_1", pixels, overwrite=True) == "one_1.png"
    assert [file.name for file in tmp_path.iterdir()] == ["one_1.png"]


def test_a_network_says_where_and_how_its_images_are_read(tmp_path: Path) -> None:
    path, _ = usd.export_material(full(), tmp_path / "one.usda", "/one", strict=True)
    stage = Usd.Stage.Open(str(tmp_path / "one.usda"))

    def said(name: str, entry: str) -> Any:
        return UsdShade.Shader(stage.GetPrimAtPath(f"{path}/{name}_texture")).GetInput(entry).Get()

    for one in INPUTS:
        source, output, _ = UsdShade.Shader(stage.GetPrimAtPath(f"{path}/{one.map}_texture")).GetInput("st").GetConnectedSource()
        assert source.GetPrim().GetPath() == f"{path}/st_reader" and output == "result"
        asked = getattr(full(), f"{one.map}_colorspace")
        assert said(one.map, "colorspace") == asked
        assert said(one.map, "sourceColorSpace") == ("raw" if asked == "auto" and one.kind != "color3f" else asked)
    assert UsdShade.Shader(stage.GetPrimAtPath(f"{path}/st_reader")).GetInput("varname").Get() == "st"
    assert tuple(said("normals", "scale")) == (2, 2, 2, 1) and tuple(said("normals", "bias")) == (-1, -1, -1, 0)
