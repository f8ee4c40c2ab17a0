"""The network of stage 2: released names and counts, and the whole of it against a naive one over dictionaries of voxels."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from scenemill.schemas.errors import ConfigError
from scenemill.schemas.experiment import ModelConfig
from scenemill.trainers.nvpanoptix3d.completion import Completion, CompletionOutput, mask_logits, occupied_rows, quarter_frustum
from scenemill.trainers.nvpanoptix3d.projector import Projector
from scenemill.trainers.nvpanoptix3d.sparse import SparseTensor, sparse_tensor
from scenemill.trainers.nvpanoptix3d.stage1 import Stage1
from tests.unit.naive_completion import Rows, complete

GRID = 64
QUERIES, HIDDEN, CONVS = 3, 6, 2
WIDTHS: dict[str, Any] = {"unet_features": 4, "unet_output_channels": 5, "mask_dim": 3, "depth_dim": 2, "num_classes": 1}
ROW = 2 + 5 + 1 + 4

# ---- released names ----------------------------------------------------------------------------------------------------------


def block(name: str, width: int, out: int, shortcut: int = 0) -> dict[str, tuple[int, ...]]:
    """Of a sparse block; ``shortcut`` is how many taps its shortcut has, 0 without."""
    shapes: dict[str, tuple[int, ...]] = {f"{name}.conv1.weight": (27, width, out), f"{name}.conv2.weight": (27, out, out)}
    if shortcut:
        shapes |= {f"{name}.downsample.0.weight": (shortcut, width, out), f"{name}.downsample.0.bias": (out,)}
    return shapes


def dense_block(name: str, width: int, out: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.conv1.weight": (out, width, 3, 3, 3), f"{name}.conv2.weight": (out, out, 3, 3, 3)}


def linear(name: str, width: int, out: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, width), f"{name}.bias": (out,)}


def expected_shapes(multi_scale: bool) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for part, width in enumerate((2, 512, 13, 16)):
        shapes |= block(f"input_encoders.{part}", width, 16, 1)
    for level, (width, out) in enumerate(((64, 16), (16, 32))):
        shapes |= block(f"level_encoders.{level}.0", width, out, 64) | block(f"level_encoders.{level}.1", out, out)
    for level, (width, out) in enumerate(((32, 64), (64, 128), (128, 128)), 2):
        shapes |= dense_block(f"level_encoders.{level}.0", width, out) | dense_block(f"level_encoders.{level}.1", out, out)
        shapes[f"level_encoders.{level}.0.downsample.weight"] = (out, width, 4, 4, 4)
    for level, out in enumerate((16, 32, 64) if multi_scale else ()):
        shapes |= block(f"feature_adapters.{level}.0", 272, out, 1)
    shapes |= {"level_decoders.0.0.weight": (64, 48, 16), "level_decoders.1.0.weight": (64, 96, 32)}
    shapes |= block("level_decoders.1.3", 32, 32)
    for level, (width, out) in enumerate(((128, 32), (256, 64), (128, 128)), 2):
        shapes[f"level_decoders.{level}.0.weight"] = (width, out, 4, 4, 4)
    for head in ("level_occupancy_heads.0", "geometry_head"):
        shapes |= block(f"{head}.2", 16, 16) | {f"{head}.3.weight": (27, 16, 1), f"{head}.3.bias": (1,)}
    shapes |= linear("level_occupancy_heads.1.block", 32, 1) | linear("level_occupancy_heads.2", 64, 1)
    shapes |= block("level_segm_embeddings.0.2", 16, 16) | block("level_segm_embeddings.1", 48, 48)
    for index in (0, 1):
        shapes |= dense_block(f"level_segm_embeddings.2.{index}", 64, 64)
    for level, out in enumerate((16, 48, 64)):
        shapes |= linear(f"level_segm_query_projection.{level}", 256, out)
    return shapes


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("multi_scale", "parameters"), [(True, 10_223_972), (False, 9_225_716)])
def test_released_names_shapes_and_count(multi_scale: bool, parameters: int) -> None:
    with torch.device("meta"):
        completion = Completion(use_multi_scale=multi_scale)
    assert shapes_of(completion) == expected_shapes(multi_scale)
    assert count(completion) == parameters


def test_both_stages_have_the_entries_and_parameters_of_released_checkpoints() -> None:
    with torch.device("meta"):
        stage1, projector = Stage1(ModelConfig(), (120, 160)), Projector()
        completions = Completion(use_multi_scale=True), Completion()
    entries = [len(stage1.state_dict()) + len(projector.state_dict()) + len(each.state_dict()) for each in completions]
    assert entries == [2095, 2083]
    parameters = [count(stage1) + count(projector) + count(each) for each in completions]
    assert parameters == [1_388_534_794, 1_387_536_538]


# ---- made-up inputs ----------------------------------------------------------------------------------------------------------


def completion_of(*, multi_scale: bool = False, seed: int = 0, **settings: Any) -> Completion:
    torch.manual_seed(seed)
    return Completion(grid_dimensions=GRID, use_multi_scale=multi_scale, convs_dim=CONVS, hidden_dim=HIDDEN, **(WIDTHS | settings))


def scattered(samples: int, channels: int, size: int, random: torch.Generator, count: int = 14) -> SparseTensor:
    """Some voxels of each sample near the far corner of a grid, a few of them outside, and one at the near end."""
    stride = GRID // size
    near = torch.randint(size - 12 // stride, size + 2, (samples, count, 3), generator=random)
    near[:, 0] = torch.tensor([-1, 0, 2])
    sample = torch.arange(samples)[:, None, None].expand(samples, count, 1)
    coords = torch.unique(torch.cat([sample, near], dim=2).flatten(0, 1), dim=0)
    return sparse_tensor(coords, torch.randn(len(coords), channels, generator=random), stride)


Inputs = tuple[SparseTensor, list[SparseTensor] | None, Tensor, Tensor]


def inputs_of(samples: int = 1, *, multi_scale: bool = False, seed: int = 0, count: int = 14) -> Inputs:
    random = torch.Generator().manual_seed(seed)
    features = scattered(samples, ROW, GRID, random, count)
    scales = [scattered(samples, CONVS + 4, GRID // stride, random, count) for stride in (2, 4, 8)]
    queries = torch.randn(samples, QUERIES, HIDDEN, generator=random)
    frustum = torch.zeros(samples, GRID, GRID, GRID, dtype=torch.bool)
    frustum[:, 56:, 56:, 56:] = True  # two cells of the quarter grid a side
    return features, scales if multi_scale else None, queries, frustum


def double(inputs: Inputs) -> Inputs:
    def one(tensor: SparseTensor) -> SparseTensor:
        return tensor.with_features(tensor.features.double())

    features, scales, queries, frustum = inputs
    return one(features), scales and [one(each) for each in scales], queries.double(), frustum


def rows_of(tensor: SparseTensor) -> Rows:
    voxels = [tuple(row) for row in tensor.coords.tolist()]
    assert len(set(voxels)) == len(voxels) and voxels == sorted(voxels)
    return dict(zip(voxels, tensor.features.detach().double().numpy(), strict=True))


def flat(output: CompletionOutput) -> list[Any]:
    return [output.geometry, *output.occupancies, *output.masks]


def assert_equal_rows(rows: Rows, expected: Rows) -> None:
    assert rows.keys() == expected.keys()
    for voxel, row in rows.items():
        np.testing.assert_allclose(row, expected[voxel], rtol=1e-9, atol=1e-9, err_msg=str(voxel))


def finite_cells(volume: Tensor) -> Rows:
    """The cells of a dense output (B, C, d, d, d) that are not minus infinity; no cell is in part."""
    finite = volume.detach().isfinite()
    assert torch.equal(finite.any(dim=1), finite.all(dim=1)) and bool((volume[~finite] == -torch.inf).all())
    places = finite[:, 0].nonzero()
    return {tuple(place): volume.detach().double()[place[0], :, *place[1:]].numpy() for place in places.tolist()}


def assert_equal_naive(completion: Completion, inputs: Inputs) -> CompletionOutput:
    output: CompletionOutput = completion.double()(*double(inputs))
    features, scales, queries, _ = double(inputs)
    frustum = np.zeros((len(queries), 16, 16, 16), bool)
    frustum[:, 14:, 14:, 14:] = True
    expected = complete(
        {name: value.numpy() for name, value in completion.state_dict().items()},
        rows_of(features),
        [rows_of(each) for each in scales or ()],
        queries.numpy(),
        frustum,
        widths=completion.input_widths,
        f=WIDTHS["unet_features"],
        grid=GRID,
        truncation=completion.truncation,
    )
    parts = [expected.distance, *expected.occupancies, *expected.masks]
    for part, rows in zip(flat(output), parts, strict=True):
        assert_equal_rows(finite_cells(part) if isinstance(part, Tensor) else rows_of(part), rows)
    return output


# ---- the network -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("samples", "multi_scale"), [(1, False), (2, True)])
def test_the_network_is_its_definition(samples: int, multi_scale: bool) -> None:
    completion = completion_of(multi_scale=multi_scale, truncation=0.1)
    output = assert_equal_naive(completion, inputs_of(samples, multi_scale=multi_scale, count=10))
    _, half, full = output.occupancies
    assert 0 < len(output.geometry.support) < len(full.support)  # something was pruned, and something kept
    assert [half.stride, full.stride, output.geometry.stride] == [2, 1, 1]
    distance = output.geometry.features.detach()
    assert float(distance.min()) == 0 and float(distance.max()) == 0.1 and bool(((distance > 0) & (distance < 0.1)).any())


def silenced(completion: Completion) -> Completion:
    """Nothing is occupied on any grid."""
    for name in ("2.bias", "1.block.bias", "0.3.bias"):
        nn.init.constant_(completion.level_occupancy_heads.get_parameter(name), -100)
    return completion


def test_all_rows_in_the_grid_go_on_where_nothing_is_occupied() -> None:
    output = assert_equal_naive(silenced(completion_of()), inputs_of(count=4))
    _, _, full = output.occupancies
    assert float(full.features.detach().max()) < 0
    assert torch.equal(output.geometry.coords, full.coords)


def test_every_sample_that_would_go_on_with_nothing_goes_on_with_what_it_has() -> None:
    """Samples: one with an occupied row, one without, one without a row in the grid, one without rows, one occupied outside."""
    sample = torch.tensor([0, 0, 0, 1, 1, 2, 2, 4, 4])
    logit = torch.tensor([5.0, -5.0, 5.0, -1.0, 0.0, -1.0, 9.0, 9.0, -1.0])
    within = torch.tensor([1, 1, 0, 1, 0, 0, 0, 0, 1], dtype=torch.bool)
    coords = torch.stack([sample, torch.arange(9), torch.zeros(9, dtype=torch.int64), torch.zeros(9, dtype=torch.int64)], dim=1)
    keep = occupied_rows(sparse_tensor(coords, logit[:, None]), within, 5)
    assert keep.tolist() == [True, False, False, True, False, True, True, False, True]


def test_a_row_is_occupied_above_one_half_in_halved_precision_too() -> None:
    coords = torch.tensor([[0, 0, 0, place] for place in range(4)])
    logit = torch.tensor([[-0.001], [0.0], [0.001], [1.0]], dtype=torch.bfloat16)
    keep = occupied_rows(sparse_tensor(coords, logit), torch.ones(4, dtype=torch.bool), 1)
    assert keep.tolist() == [False, False, True, True]


def test_the_frustum_of_the_quarter_grid_is_a_pool_of_two_cells_of_four() -> None:
    mask = torch.rand(2, 16, 16, 16, generator=torch.Generator().manual_seed(1)) < 0.1
    pooled = functional.max_pool3d(mask.float(), 2, stride=4)
    assert torch.equal(quarter_frustum(mask), pooled > 0)
    assert 0 < int(pooled.sum()) < pooled.numel()


def test_every_row_meets_the_queries_of_its_own_sample() -> None:
    random = torch.Generator().manual_seed(2)
    queries, rows = torch.randn(4, 3, 5, generator=random), torch.randn(6, 5, generator=random)
    sample = torch.tensor([0, 0, 2, 2, 2, 3])  # none of sample 1
    coords = torch.stack([sample, torch.arange(6), torch.arange(6), torch.arange(6)], dim=1)
    logits = mask_logits(sparse_tensor(coords, rows), queries)
    torch.testing.assert_close(logits.features, torch.stack([queries[s] @ row for s, row in zip(sample, rows, strict=True)]))


def alone(tensor: SparseTensor, sample: int) -> SparseTensor:
    own = tensor.coords[:, 0] == sample
    return sparse_tensor(tensor.coords[own] - torch.tensor([sample, 0, 0, 0]), tensor.features[own], tensor.stride)


def test_two_samples_together_are_each_as_it_is_alone() -> None:
    completion = completion_of(multi_scale=True).double()
    features, scales, queries, frustum = double(inputs_of(2, multi_scale=True))
    assert scales is not None
    frustum[1, :, :, 60:] = False
    together: CompletionOutput = completion(features, scales, queries, frustum)
    for sample in (0, 1):
        own = slice(sample, sample + 1)
        single = completion(alone(features, sample), [alone(each, sample) for each in scales], queries[own], frustum[own])
        for one, both in zip(flat(single), flat(together), strict=True):
            if isinstance(both, Tensor):
                torch.testing.assert_close(one, both[own])
            else:
                assert isinstance(one, SparseTensor)
                assert_equal_rows(rows_of(one), rows_of(alone(both, sample)))


def values_of(output: CompletionOutput) -> list[Tensor]:
    """Of each part of an output what it says: a dense one in the frustum, a sparse one at its rows."""
    return [part[part != -torch.inf] if isinstance(part, Tensor) else part.features.flatten() for part in flat(output)]


def loss_of(output: CompletionOutput) -> Tensor:
    return torch.stack([part.square().mean() for part in values_of(output)]).sum()


def gradients_of(completion: Completion, inputs: Inputs) -> dict[str, Tensor]:
    torch.autograd.backward(loss_of(completion(*inputs)))
    return {name: parameter.grad for name, parameter in completion.named_parameters() if parameter.grad is not None}


def test_every_parameter_and_every_input_has_a_gradient() -> None:
    features, scales, queries, frustum = inputs_of(multi_scale=True)
    leaves = [features.features, queries, *(each.features for each in scales or ())]
    for leaf in leaves:
        leaf.requires_grad_()
    completion = completion_of(multi_scale=True)
    gradients = gradients_of(completion, (features, scales, queries, frustum))
    without = {name for name, gradient in gradients.items() if not (gradient.isfinite().all() and gradient.any())}
    assert gradients.keys() - without == dict(completion.named_parameters()).keys()
    assert all(leaf.grad is not None and leaf.grad.isfinite().all() and leaf.grad.any() for leaf in leaves)


def test_a_finite_difference_agrees_with_the_gradient() -> None:
    """Of the whole network, along one direction; so small a step takes no row over the threshold."""
    completion, inputs = completion_of(multi_scale=True).double(), double(inputs_of(multi_scale=True))
    gradients, random = gradients_of(completion, inputs), torch.Generator().manual_seed(5)
    steps = {name: torch.randn(each.shape, generator=random, dtype=each.dtype) for name, each in gradients.items()}
    losses = []
    with torch.no_grad():
        for size in (1e-8, -2e-8):
            for name, parameter in completion.named_parameters():
                parameter.add_(steps[name], alpha=size)
            losses.append(float(loss_of(completion(*inputs))))
    slope = sum(float((gradient * steps[name]).sum()) for name, gradient in gradients.items())
    assert (losses[0] - losses[1]) / 2e-8 == pytest.approx(slope, rel=1e-4)


def bytes_of_rows_kept(completion: Completion, inputs: Inputs) -> int:
    """For the backward pass; volumes and weights have more axes."""
    kept = 0

    def note(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.nbytes if tensor.ndim == 2 else 0
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        completion(*inputs)
    return kept


def test_computing_again_keeps_less_and_changes_nothing() -> None:
    inputs = inputs_of(multi_scale=True)
    plain, again = (completion_of(multi_scale=True, recompute=recompute) for recompute in (False, True))
    assert bytes_of_rows_kept(again, inputs) < bytes_of_rows_kept(plain, inputs) / 2
    torch.testing.assert_close(gradients_of(again, inputs), gradients_of(plain, inputs))


def test_halved_precision_says_nearly_the_same() -> None:
    """Rows near the threshold may go either way; what is said has nearly the same size everywhere, and gradients are finite."""
    completion, inputs = completion_of(multi_scale=True), inputs_of(multi_scale=True)
    expected = values_of(completion(*inputs))
    with torch.autocast("cpu", torch.bfloat16):
        near = values_of(completion(*inputs))
    assert near[1].dtype == torch.bfloat16
    losses = [torch.stack([part.float().square().mean() for part in parts]) for parts in (near, expected)]
    torch.testing.assert_close(losses[0], losses[1], rtol=0.1, atol=0)
    torch.testing.assert_close(losses[0].sum(), losses[1].sum(), rtol=0.03, atol=0)
    assert [len(part) for part in near] == pytest.approx([len(part) for part in expected], rel=0.05)
    torch.autograd.backward(losses[0].sum())
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in completion.parameters())


def test_a_state_goes_strictly_into_another_network() -> None:
    first, second = completion_of(multi_scale=True, seed=1), completion_of(multi_scale=True, seed=2)
    inputs = inputs_of(multi_scale=True)
    second.load_state_dict(first.state_dict(), strict=True)
    assert all(torch.equal(a, b) for a, b in zip(values_of(first(*inputs)), values_of(second(*inputs)), strict=True))


def test_a_grid_of_three_coarsest_cells_a_side_works_and_smaller_ones_are_refused() -> None:
    features, _, queries, frustum = inputs_of()
    completion = Completion(grid_dimensions=96, convs_dim=CONVS, hidden_dim=HIDDEN, **WIDTHS)
    output = completion(features, None, queries, functional.pad(frustum, (0, 32) * 3))
    assert output.masks[0].shape == (1, QUERIES, 24, 24, 24) and len(output.geometry.support)
    for grid in (32, 80, 0):
        with pytest.raises(ConfigError, match=f"grid_dimensions {grid}: allowed are multiples of 32 from 64"):
            Completion(grid_dimensions=grid, **WIDTHS)


def test_a_distance_without_its_sign_is_one_channel() -> None:
    features, _, queries, frustum = inputs_of()
    completion = completion_of(sign_channel=False)
    assert completion.input_widths == (1, 5, 1, 4)
    assert len(completion(features.with_features(features.features[:, 1:]), None, queries, frustum).geometry.support)


def test_inputs_that_do_not_fit_are_refused() -> None:
    features, scales, queries, frustum = inputs_of(multi_scale=True)
    plain, adapted = completion_of(), completion_of(multi_scale=True)
    with pytest.raises(ConfigError, match=r"strides \[1, 2, 4, 8\]: expected \[1\]; use_multi_scale"):
        plain(features, scales, queries, frustum)
    with pytest.raises(ConfigError, match=r"strides \[1\]: expected \[1, 2, 4, 8\]"):
        adapted(features, None, queries, frustum)
    assert scales is not None
    with pytest.raises(ConfigError, match=r"strides \[1, 8, 4, 2\]: expected \[1, 2, 4, 8\]"):
        adapted(features, scales[::-1], queries, frustum)
    with pytest.raises(ConfigError, match="rows of 11 channels"):
        plain(features.with_features(features.features[:, 1:]), None, queries, frustum)
    for wrong in (frustum[:, :32], frustum.float(), frustum.expand(2, -1, -1, -1)):
        with pytest.raises(ConfigError, match=r"expected \(1, 64, 64, 64\) torch\.bool"):
            plain(features, None, queries, wrong)
