"""How near images, points and surfaces are: against scikit-image, against every pair of points, and by known surfaces."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from scenemill.schemas.errors import ConfigError
from scenemill.trainers.render import chamfer_distance, psnr, sample_surface, sided_distance, ssim, surface_distance
from tests.unit.naive_render import sphere


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [(11, 11), (24, 40)])
def test_image_measures_are_those_of_scikit_image(size: tuple[int, int]) -> None:
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    image = random(*size, 3)
    target = (image + 0.2 * random(*size, 3, seed=1)).clamp(0, 1)
    pair = (image.numpy(), target.numpy())
    assert math.isclose(float(psnr(image, target)), peak_signal_noise_ratio(*pair, data_range=1.0), rel_tol=1e-9)
    settings = {"channel_axis": 2, "data_range": 1.0, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    assert math.isclose(float(ssim(image, target)), structural_similarity(*pair, **settings), rel_tol=1e-9)


def test_equal_images_are_as_near_as_can_be() -> None:
    image = random(12, 13, 3)
    assert float(psnr(image, image)) == math.inf
    assert math.isclose(float(ssim(image, image)), 1.0)
    with pytest.raises(ConfigError, match="at least 11"):
        ssim(image[:10], image[:10])
    with pytest.raises(ConfigError, match=r"\(H, W, 3\)"):
        psnr(image, image[..., :2])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_distances_of_points_are_the_least_of_all_pairs(dtype: torch.dtype) -> None:
    here, there = (4 * random(3, count, 3, seed=count) - 2 for count in (17, 30))
    here, there = here.to(dtype), there.to(dtype)
    pairs = (here[:, :, None].double() - there[:, None].double()).square().sum(dim=-1)
    squares, index = sided_distance(here, there)
    assert squares.dtype == dtype and index.dtype == torch.int64
    assert torch.equal(index, pairs.argmin(dim=2))
    near = {torch.float16: 2e-3, torch.bfloat16: 1e-2}.get(dtype, 1e-6)
    torch.testing.assert_close(squares.double(), pairs.amin(dim=2), rtol=near, atol=near)
    there_and_back = (pairs.amin(dim=2), pairs.amin(dim=1))
    first, second = (square.mean(dim=1) for square in there_and_back)
    torch.testing.assert_close(chamfer_distance(here, there).double(), first + second, rtol=near, atol=near)
    torch.testing.assert_close(chamfer_distance(here, there, 1.5, 0.25).double(), 1.5 * first + 0.25 * second, rtol=near, atol=near)
    roots = sum(square.sqrt().mean(dim=1) for square in there_and_back)
    torch.testing.assert_close(chamfer_distance(here, there, squared=False).double(), roots, rtol=near, atol=near)


@pytest.mark.parametrize("squared", [True, False])
def test_points_are_drawn_to_the_nearest(squared: bool) -> None:
    here, there = random(2, 5, 3).requires_grad_(), random(2, 4, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda start, end: chamfer_distance(start, end, 0.5, 2.0, squared), (here, there))
    (still,) = torch.autograd.grad(chamfer_distance(here, here.detach(), squared=squared).sum(), here)
    assert not still.any()


def test_clouds_that_do_not_fit_are_refused() -> None:
    points = random(2, 5, 3)
    none = points[:, :0]
    assert sided_distance(none, points)[1].shape == (2, 0) and chamfer_distance(points[:0], points[:0]).shape == (0,)
    for wrong in (points[:1], points[0], points[..., :2], none, points.float(), points / 0):
        with pytest.raises(ConfigError, match="clouds of points"):
            chamfer_distance(points, wrong)
        with pytest.raises(ConfigError, match="clouds of points"):
            chamfer_distance(wrong, points)


def test_points_are_drawn_evenly_by_area() -> None:
    """Two triangles, one three times as large: shares of points, means, and the spread of a triangle's points."""
    vertices = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [5.0, 0.0, 0.0], [8.0, 0.0, 0.0], [5.0, 1.0, 0.0]])
    points = sample_surface(vertices, torch.tensor([[0, 1, 2], [3, 4, 5], [0, 0, 1]]), 40_000, torch.Generator().manual_seed(0))
    first = points[:, 0] < 2
    assert points.shape == (40_000, 3) and not points[:, 2].any()
    assert abs(float(first.float().mean()) - 0.25) < 0.01
    local = torch.where(first[:, None], points, (points - vertices[3]) / torch.tensor([3.0, 1.0, 1.0]))[:, :2]
    assert (local >= -1e-6).all() and (local.sum(1) <= 1 + 1e-5).all()
    for share in (first, ~first):
        np.testing.assert_allclose(local[share].mean(0), 1 / 3, atol=0.01)
        np.testing.assert_allclose(torch.cov(local[share].T), [[1 / 18, -1 / 36], [-1 / 36, 1 / 18]], atol=0.003)


def test_the_distance_of_two_spheres_is_that_of_their_radii() -> None:
    vertices, faces = sphere(40, 60)
    same = surface_distance(vertices, faces, vertices, faces, 4000)
    apart = surface_distance(vertices, faces, 1.2 * vertices, faces, 4000)
    assert same < 0.04
    assert abs(apart - 0.2) < 0.01
    assert surface_distance(vertices, faces, 1.2 * vertices, faces, 4000) == apart
    assert math.isclose(surface_distance(vertices, faces, vertices + 100, faces, 500), 100 * math.sqrt(3), rel_tol=0.02)


def test_a_mesh_without_area_has_no_points() -> None:
    vertices, faces = sphere()
    for wrong, some in ((vertices, faces[:0]), (0 * vertices, faces), (vertices * math.nan, faces)):
        with pytest.raises(ConfigError, match="no area"):
            surface_distance(vertices, faces, wrong, some)
