"""Made-up objects: closed, of known volume, painted where they are, and written as any reader of OBJ takes them."""

import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from scenemill.schemas.errors import ConfigError
from scenemill.transforms.view_objects import (
    OBJECTS,
    TEXTURE,
    TexturedObject,
    by_position,
    join_parts,
    make_object,
    moved,
    revolve,
    write_obj,
)

Plane = NDArray[np.float64]
MADE = {name: make_object(name) for name in OBJECTS}


def volume(made: TexturedObject) -> float:
    a, b, c = made.vertices[made.faces].transpose(1, 0, 2)
    return float((a * np.cross(b, c)).sum() / 6)


def edges(made: TexturedObject) -> list[tuple[int, int]]:
    return [tuple(edge) for face in made.faces.tolist() for edge in zip(face, face[1:] + face[:1], strict=True)]


def area(one: Plane, other: Plane) -> Plane:
    """Twice the signed area of triangles in a plane, by two of their edges (..., 2)."""
    found: Plane = one[..., 0] * other[..., 1] - one[..., 1] * other[..., 0]
    return found


@pytest.mark.parametrize("name", OBJECTS)
def test_an_object_is_closed_outward_and_within_a_unit(name: str) -> None:
    made = MADE[name]
    found = edges(made)
    assert len(set(found)) == len(found) and set(found) == {(b, a) for a, b in found}
    assert volume(made) > 0
    assert np.abs(made.vertices).max() <= 0.5
    assert (np.unique(made.faces) == np.arange(len(made.vertices))).all()
    assert made.uvs.min() >= 0 and made.uvs.max() <= 1


def test_sphere_and_torus_have_the_volume_of_their_outline_turned_by_corners() -> None:
    segment = 64 / (2 * np.pi) * np.sin(2 * np.pi / 64)  # of a disc: a polygon of 64 corners
    angle = np.linspace(-np.pi / 2, np.pi / 2, 33)
    radius, height = 0.5 * np.cos(angle), 0.5 * np.sin(angle)
    cones = sum(
        (top - low) * (a * a + a * b + b * b) / 3 for a, b, low, top in zip(radius, radius[1:], height, height[1:], strict=False)
    )
    assert volume(MADE["sphere"]) == pytest.approx(np.pi * segment * cones)
    tube = 16 * np.sin(2 * np.pi / 32) * 0.15**2  # a polygon of 32 corners, whose centre runs round
    assert volume(MADE["torus"]) == pytest.approx(2 * np.pi * 0.35 * tube * segment)


@pytest.mark.parametrize("name", ["sphere", "torus", "vase"])
def test_texture_has_at_every_corner_the_colour_of_that_place(name: str) -> None:
    made = MADE[name]
    corners, uvs = made.vertices[made.faces].reshape(-1, 3), made.uvs[made.face_uvs_idx].reshape(-1, 2)
    row = np.clip(((1 - uvs[:, 1]) * TEXTURE).astype(int), 0, TEXTURE - 1)
    column = np.clip((uvs[:, 0] * TEXTURE).astype(int), 0, TEXTURE - 1)
    hue = made.texture[row, column] / 255
    hue /= np.linalg.norm(hue, axis=1, keepdims=True) + 1e-9
    wanted = by_position(corners)
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True) + 1e-9
    angle = np.degrees(np.arccos(np.clip((hue * wanted).sum(axis=1), -1, 1)))  # light and dark squares differ in brightness alone
    assert np.median(angle) < 1 and np.quantile(angle, 0.99) < 4


def test_the_clock_shows_ten_past_ten_on_a_light_dial() -> None:
    """The dial's pixels are looked up by their place on the front, through the mesh."""
    made = MADE["clock"]
    corners, uvs = made.vertices[made.faces], made.uvs[made.face_uvs_idx]
    front = (np.abs(corners[..., 2] - 0.09) < 1e-6).all(axis=1)
    a, b, c = corners[front].transpose(1, 0, 2)[..., :2]

    def color(hour: float, radius: float) -> float:
        point = radius * np.array([math.sin(hour / 6 * math.pi), math.cos(hour / 6 * math.pi)])
        weights = np.stack([area(b - point, c - point), area(c - point, a - point), area(a - point, b - point)]) / area(
            b - a, c - a
        )
        face = int(np.argmax(weights.min(axis=0)))
        u, v = weights[:, face] @ uvs[front][face]
        return float(made.texture[int((1 - v) * TEXTURE), int(u * TEXTURE * 4)].mean())

    assert color(2, 0.2) < 60 and color(10 + 1 / 6, 0.12) < 60  # the minute's hand and the hour's
    assert color(10 + 1 / 6, 0.2) > 200 and color(6, 0.1) > 200 and color(2, 0.235) > 200
    assert color(12, 0.27) < 60 and color(12.5, 0.27) > 200  # a tick at every hour


def test_parts_keep_their_shape_and_their_own_texels() -> None:
    outline = np.array([[0.0, -0.1], [0.2, -0.1], [0.2, 0.1], [0.0, 0.1]])

    def painted(shade: float) -> TexturedObject:
        return revolve(outline, lambda points: np.full(points.shape, shade), 8)

    parts = [painted(shade) for shade in (0.0, 1.0, 0.4)]
    whole = join_parts([part if place == 0 else moved(part, np.eye(3), (place, 0, 0)) for place, part in enumerate(parts)])
    assert volume(whole) == pytest.approx(3 * volume(parts[0]))
    texels = whole.texture[..., 0]
    assert [int(texels[:, place * TEXTURE : (place + 1) * TEXTURE].mean()) for place in range(3)] == [0, 255, 102]
    for place, part in enumerate(parts):
        own = whole.uvs[place * len(part.uvs) : (place + 1) * len(part.uvs), 0] * 3 * TEXTURE
        assert own.min() >= place * TEXTURE + 0.5 - 1e-9 and own.max() <= (place + 1) * TEXTURE - 0.5 + 1e-9


@pytest.mark.parametrize("name", OBJECTS)
def test_a_written_object_reads_back_from_plain_obj(name: str, tmp_path: Path) -> None:
    made = MADE[name]
    lines = [line.split() for line in write_obj(made, tmp_path / "truth", name).read_text().splitlines()]
    vertices = np.array([line[1:] for line in lines if line[0] == "v"], float)
    uvs = np.array([line[1:] for line in lines if line[0] == "vt"], float)
    faces = np.array([[corner.split("/") for corner in line[1:]] for line in lines if line[0] == "f"], int) - 1
    np.testing.assert_allclose(vertices[faces[..., 0]], made.vertices[made.faces], atol=1e-8)
    np.testing.assert_allclose(uvs[faces[..., 1]], made.uvs[made.face_uvs_idx], atol=1e-8)
    assert (tmp_path / "truth" / f"{name}.mtl").read_text() == f"newmtl {name}\nKd 1 1 1\nmap_Kd {name}.png\n"
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "truth" / f"{name}.png")), made.texture)


def test_an_unknown_object_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match="'teapot' is not known; use one of sphere, torus, vase, clock, or a mesh file"):
        make_object("teapot")
