"""Pairs of faces and pixels: all that a loop over faces and pixels finds, in order, and never more at a time than allowed."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scenemill.trainers.render.pairs import PAIR_BYTES, Raster, face_boxes, face_pixel_pairs, wanted_pixels
from tests.unit.naive_render import centre_of, soup


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 1000), st.integers(1, 9), st.integers(1, 9), st.booleans(), st.sampled_from([1, 7 * PAIR_BYTES, 2**28]))
def test_pairs_are_those_of_a_loop(seed: int, height: int, width: int, some: bool, chunk_bytes: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    faces, margin = soup(seed, 5), 0.3 * float(torch.rand(1, generator=generator))
    drawn = torch.rand(2, 5, generator=generator) > 0.2
    mask = torch.rand(2, height, width, generator=generator) > (0.5 if some else -1)
    expected = []
    for batch, face in np.ndindex(2, 5):
        triangle = faces.image[batch, face].numpy()
        for row, column in np.ndindex(height, width):
            point = centre_of(row, column, height, width)
            inside = (point >= triangle.min(0) - margin).all() and (point < triangle.max(0) + margin).all()
            if inside and drawn[batch, face] and mask[batch, row, column]:
                expected.append((batch * 5 + face, (batch * height + row) * width + column))
    raster, wanted = Raster(2, height, width, 10.0), wanted_pixels(mask) if some else None
    boxes = face_boxes(10 * faces.image.reshape(-1, 3, 2), drawn.flatten(), raster, 10 * margin, wanted)
    found: list[tuple[int, int]] = []
    for face, pixel in face_pixel_pairs(boxes, raster, chunk_bytes, wanted):
        assert len(face) <= max(chunk_bytes // PAIR_BYTES, width)
        found += zip(face.tolist(), (pixel if wanted is None else wanted.pixel[pixel]).tolist(), strict=True)
    assert found == expected
    assert int(boxes.count.sum()) == len(expected)


@pytest.mark.parametrize("multiplier", [1.0, 1000.0])
def test_centres_are_those_of_the_conventions(multiplier: float) -> None:
    x, y = Raster(2, 3, 5, multiplier).centres(torch.zeros(1, dtype=torch.float64))
    expected = [centre_of(row, column, 3, 5) * multiplier for _ in range(2) for row in range(3) for column in range(5)]
    np.testing.assert_allclose(torch.stack([x, y], dim=1), expected, atol=1e-12)


def test_one_large_face_is_taken_apart_by_rows() -> None:
    raster = Raster(1, 300, 400, 1.0)
    corners = torch.tensor([[[-5.0, -5.0], [5.0, -5.0], [0.0, 5.0]]])
    chunks = list(face_pixel_pairs(face_boxes(corners, torch.ones(1, dtype=torch.bool), raster), raster, 1000 * PAIR_BYTES))
    assert [len(pixel) for _, pixel in chunks] == [800] * 150
    assert torch.equal(torch.cat([pixel for _, pixel in chunks]), torch.arange(120_000))
