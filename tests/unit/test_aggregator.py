"""The aggregator: names and sizes of the public weights, values against plain loops in float64, frames, gradients, precision."""

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from scenemill.schemas.errors import ConfigError
from scenemill.trainers.nvpanoptix3d.aggregator import (
    SPECIAL_TOKENS,
    Aggregator,
    PatchEmbedding,
    input_size,
    normalise,
    prepare_images,
)
from scenemill.trainers.nvpanoptix3d.blocks import Block, BlockStack, checkpoint_blocks, rotary_tables, rotate

Array = NDArray[Any]
Weights = Mapping[str, Array]
M = TypeVar("M", bound=nn.Module)

TINY: dict[str, Any] = {"embed_dim": 64, "num_heads": 4, "depth": 4, "patch_depth": 2, "patch_heads": 4, "pos_grid": 16}
SMALL: dict[str, Any] = {"embed_dim": 24, "num_heads": 3, "depth": 2, "patch_depth": 2, "patch_heads": 2, "pos_grid": 4}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def shaken(module: M, seed: int = 3) -> M:
    """The module with weights that matter everywhere: new tokens and layer scales would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            scale = 0.5 if parameter.ndim < 2 or "token" in name or "pos_embed" in name else parameter[0].numel() ** -0.5
            parameter.copy_(scale * noise + (1.0 if name.endswith(("norm.weight", "norm1.weight", "norm2.weight")) else 0.0))
    return module


def images_of(*shape: int, seed: int = 5) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


# names and sizes


def block_shapes(width: int, head_width: int = 0) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "norm1.weight": (width,),
        "norm1.bias": (width,),
        "attn.qkv.weight": (3 * width, width),
        "attn.qkv.bias": (3 * width,),
        "attn.proj.weight": (width, width),
        "attn.proj.bias": (width,),
        "ls1.gamma": (width,),
        "norm2.weight": (width,),
        "norm2.bias": (width,),
        "mlp.fc1.weight": (4 * width, width),
        "mlp.fc1.bias": (4 * width,),
        "mlp.fc2.weight": (width, 4 * width),
        "mlp.fc2.bias": (width,),
        "ls2.gamma": (width,),
    }
    if head_width:
        shapes |= {f"attn.{which}_norm.{kind}": (head_width,) for which in "qk" for kind in ("weight", "bias")}
    return shapes


def aggregator_shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "camera_token": (1, 2, 1, 1024),
        "register_token": (1, 2, 4, 1024),
        "patch_embed.cls_token": (1, 1, 1024),
        "patch_embed.pos_embed": (1, 1370, 1024),
        "patch_embed.register_tokens": (1, 4, 1024),
        "patch_embed.mask_token": (1, 1024),
        "patch_embed.patch_embed.proj.weight": (1024, 3, 14, 14),
        "patch_embed.patch_embed.proj.bias": (1024,),
        "patch_embed.norm.weight": (1024,),
        "patch_embed.norm.bias": (1024,),
    }
    for stack, head_width in (("patch_embed.blocks", 0), ("frame_blocks", 64), ("global_blocks", 64)):
        for i in range(24):
            shapes |= {f"{stack}.{i}.{name}": shape for name, shape in block_shapes(1024, head_width).items()}
    return shapes


def test_defaults_have_the_names_and_sizes_of_the_public_weights() -> None:
    with torch.device("meta"):
        model = Aggregator()
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert shapes == aggregator_shapes()
    assert len(shapes) == 1210
    assert sum(parameter.numel() for parameter in model.parameters()) == 909_112_320
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}
    assert list(model.buffers()) == []  # so that a model made without memory is complete once its weights are in


def test_weights_load_by_strict_names_into_a_model_made_without_memory() -> None:
    source = shaken(Aggregator(**SMALL))
    with torch.device("meta"):
        model = Aggregator(**SMALL)
    model.load_state_dict(source.state_dict(), strict=True, assign=True)
    images = images_of(1, 1, 3, 28, 42)
    assert torch.equal(model(images)[-1], source(images)[-1])


def test_new_weights_are_spread_as_the_source_spreads_them() -> None:
    torch.manual_seed(0)
    model = Aggregator(**TINY)
    weights = model.state_dict()
    for name, value in weights.items():
        if name.endswith(".gamma"):
            assert (value == (1.0 if name.startswith("patch_embed") else np.float32(0.01))).all(), name
        if name.endswith(("qkv.weight", "proj.weight", "fc1.weight", "fc2.weight")) and value.ndim == 2:
            assert float(value.abs().max()) == pytest.approx(math.sqrt(6 / sum(value.shape)), rel=0.02), name
    for name in ("camera_token", "register_token", "patch_embed.cls_token", "patch_embed.register_tokens"):
        assert 0.5e-6 < float(weights[name].std()) < 1.5e-6
    assert float(weights["patch_embed.pos_embed"].std()) == pytest.approx(0.02, rel=0.05)
    assert not weights["patch_embed.mask_token"].any()


# input


@pytest.mark.parametrize(
    ("padded", "input_width", "size"),
    [
        ((256, 320), 448, (364, 448)),  # 25.6 patches
        ((256, 320), 112, (84, 112)),  # 6.4
        ((96, 128), 28, (28, 28)),  # 1.5: to even
        ((160, 128), 28, (28, 28)),  # 2.5: to even
    ],
)
def test_the_input_is_as_wide_as_wanted_and_high_in_whole_patches(
    padded: tuple[int, int], input_width: int, size: tuple[int, int]
) -> None:
    assert input_size(*padded, input_width) == size


def test_an_input_width_that_cuts_a_patch_is_refused() -> None:
    with pytest.raises(ConfigError, match="input width 450: allowed are multiples of 14"):
        input_size(256, 320, 450)


def test_images_are_padded_scaled_and_resized_by_their_four_neighbours() -> None:
    images = (images_of(2, 3, 50, 90) * 255).round()
    prepared = prepare_images(images, size_divisibility=32, input_width=70)
    assert prepared.shape == (2, 1, 3, 42, 70) and prepared.dtype == torch.float32  # 64 x 96, and 46.7 rows: 3.33 patches
    padded = np.zeros((2, 3, 64, 96))
    padded[:, :, :50, :90] = images.numpy() / 255
    expected = np.zeros((2, 3, 42, 70))
    for row in range(42):
        for column in range(70):
            y, x = max((row + 0.5) * 64 / 42 - 0.5, 0), max((column + 0.5) * 96 / 70 - 0.5, 0)
            j, i = int(y), int(x)
            j1, i1, v, u = min(j + 1, 63), min(i + 1, 95), y - j, x - i
            upper = padded[:, :, j, i] * (1 - u) + padded[:, :, j, i1] * u
            lower = padded[:, :, j1, i] * (1 - u) + padded[:, :, j1, i1] * u
            expected[:, :, row, column] = upper * (1 - v) + lower * v
    np.testing.assert_allclose(prepared[:, 0].numpy(), expected, atol=1e-5)
    assert torch.equal(prepare_images(images.byte(), size_divisibility=32, input_width=70), prepared)


def test_an_image_of_the_right_size_only_changes_its_scale() -> None:
    images = (images_of(1, 3, 224, 448) * 255).round()
    assert torch.equal(prepare_images(images)[:, 0], images / 255)


# values, against loops in float64


def layer_norm(x: Array, weights: Weights, name: str, eps: float) -> Array:
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)
    return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(x: Array, weights: Weights, name: str) -> Array:
    out: Array = x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]
    return out


def gelu(x: Array) -> Array:
    out: Array = 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    return out


def turned(vector: Array, y: float, x: float) -> Array:
    """One head of one token, its pairs as complex numbers: (channel j, channel j + quarter) of each half."""
    quarter = len(vector) // 4
    out = np.zeros_like(vector)
    for half, position in enumerate((y, x)):
        for j in range(quarter):
            first, second = half * 2 * quarter + j, half * 2 * quarter + quarter + j
            pair = complex(vector[first], vector[second]) * np.exp(1j * position * 100 ** (-2 * j / (2 * quarter)))
            out[first], out[second] = pair.real, pair.imag
    return out


def attention(x: Array, weights: Weights, name: str, heads: int, places: list[tuple[int, int]] | None) -> Array:
    tokens, width = x.shape
    each = width // heads
    qkv = linear(x, weights, f"{name}.qkv")
    mixed = np.zeros_like(x)
    for head in range(heads):
        q, k, v = (qkv[:, part * width + head * each : part * width + (head + 1) * each] for part in range(3))
        if places is not None:
            q, k = layer_norm(q, weights, f"{name}.q_norm", 1e-5), layer_norm(k, weights, f"{name}.k_norm", 1e-5)
            q = np.array([turned(q[n], *places[n]) for n in range(tokens)])
            k = np.array([turned(k[n], *places[n]) for n in range(tokens)])
        for n in range(tokens):
            scores = np.exp(np.einsum("d,md->m", q[n], k) / math.sqrt(each))
            mixed[n, head * each : (head + 1) * each] = np.einsum("m,md->d", scores / scores.sum(), v)
    return linear(mixed, weights, f"{name}.proj")


def block(
    x: Array, weights: Weights, name: str, heads: int, *, eps: float = 1e-5, places: list[tuple[int, int]] | None = None
) -> Array:
    seen = attention(layer_norm(x, weights, f"{name}norm1", eps), weights, f"{name}attn", heads, places)
    x = x + weights[f"{name}ls1.gamma"] * seen
    hidden = gelu(linear(layer_norm(x, weights, f"{name}norm2", eps), weights, f"{name}mlp.fc1"))
    out: Array = x + weights[f"{name}ls2.gamma"] * linear(hidden, weights, f"{name}mlp.fc2")
    return out


def cubic(x: float) -> float:
    """Keys' cubic with the coefficient -0.5."""
    x = abs(x)
    if x < 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def resize_matrix(length: int, out: int) -> Array:
    """(out, length): the cubic, as wide as a pixel of the coarser of both, cut at the border."""
    step = length / out
    width = max(step, 1.0)
    rows = np.array([[cubic((n + 0.5 - (m + 0.5) * step) / width) for n in range(length)] for m in range(out)])
    rows /= rows.sum(axis=1, keepdims=True)
    return rows


def patch_tokens(image: Array, weights: Weights, heads: int, depth: int, grid: int) -> Array:
    """(patches, width) of one normalised image (3, H, W)."""
    rows, columns = image.shape[1] // 14, image.shape[2] // 14
    kernel, bias = weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"]
    stored = weights["pos_embed"][0, 1:].reshape(grid, grid, -1)
    position = np.einsum("ra,cb,abd->rcd", resize_matrix(grid, rows), resize_matrix(grid, columns), stored)
    tokens = [weights["cls_token"][0, 0] + weights["pos_embed"][0, 0], *weights["register_tokens"][0]]
    for row in range(rows):
        for column in range(columns):
            patch = image[:, 14 * row : 14 * row + 14, 14 * column : 14 * column + 14]
            tokens.append(np.einsum("dcij,cij->d", kernel, patch) + bias + position[row, column])
    x = np.array(tokens)
    for i in range(depth):
        x = block(x, weights, f"blocks.{i}.", heads, eps=1e-6)
    return layer_norm(x, weights, "norm", 1e-6)[5:]


def sequence_tokens(images: Array, weights: Weights, sizes: Mapping[str, int]) -> list[Array]:
    """Outputs of all layers, each (S, tokens, 2 * width), of one sequence (S, 3, H, W) in 0..1."""
    patch_weights = {name.removeprefix("patch_embed."): value for name, value in weights.items() if name.startswith("patch_embed.")}
    rows, columns = images.shape[2] // 14, images.shape[3] // 14
    places = [(0, 0)] * 5 + [(row + 1, column + 1) for row in range(rows) for column in range(columns)]
    frames = []
    for number, image in enumerate(images):
        normal = (image - np.array([0.485, 0.456, 0.406])[:, None, None]) / np.array([0.229, 0.224, 0.225])[:, None, None]
        patches = patch_tokens(normal, patch_weights, sizes["patch_heads"], sizes["patch_depth"], sizes["pos_grid"])
        entry = min(number, 1)
        frames.append(np.concatenate([weights["camera_token"][0, entry], weights["register_token"][0, entry], patches]))
    outputs = []
    for i in range(sizes["depth"]):
        framed = [block(frame, weights, f"frame_blocks.{i}.", sizes["num_heads"], places=places) for frame in frames]
        joined = block(np.concatenate(framed), weights, f"global_blocks.{i}.", sizes["num_heads"], places=places * len(frames))
        frames = np.split(joined, len(frames))
        outputs.append(np.concatenate([np.array(framed), np.array(frames)], axis=-1))
    return outputs


def as_float64(module: nn.Module) -> dict[str, Array]:
    return {name: value.detach().double().numpy() for name, value in module.state_dict().items()}


@pytest.mark.parametrize(("batch", "frames", "height", "width"), [(2, 1, 28, 42), (1, 2, 42, 28), (1, 3, 14, 84), (1, 1, 56, 56)])
def test_outputs_equal_plain_loops(batch: int, frames: int, height: int, width: int) -> None:
    model = shaken(Aggregator(**SMALL))
    images = images_of(batch, frames, 3, height, width)
    outputs = [output.detach().numpy() for output in model(images)]
    assert len(outputs) == 2
    for sample in range(batch):
        expected = sequence_tokens(images[sample].double().numpy(), as_float64(model), SMALL)
        for layer in range(2):
            assert float(expected[layer].std()) > 0.3
            np.testing.assert_allclose(outputs[layer][sample], expected[layer], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("rows", "columns"), [(3, 5), (26, 32), (1, 9), (9, 4), (7, 7)])
def test_positions_are_resized_by_a_widened_cubic(rows: int, columns: int) -> None:
    vit = shaken(PatchEmbedding(4, 2, 0, 7))
    stored = as_float64(vit)["pos_embed"]
    expected = np.einsum(
        "ra,cb,abd->rcd", resize_matrix(7, rows), resize_matrix(7, columns), stored[0, 1:].reshape(7, 7, 4)
    ).reshape(-1, 4)
    positions = vit.positions(rows, columns).detach().numpy()
    np.testing.assert_allclose(positions[0, 1:], expected, atol=1e-5)
    np.testing.assert_array_equal(positions[0, 0], vit.pos_embed[0, 0].detach().numpy())
    assert (vit.positions(rows, columns) is vit.pos_embed) == (rows == columns == 7)


def test_rotation_turns_the_first_half_by_y_and_the_second_by_x() -> None:
    tokens = torch.ones(1, 1, 3, 8)
    turned_tokens = rotate(tokens, rotary_tables(torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 3.0]]), 8))
    assert torch.equal(turned_tokens[0, 0, 0], tokens[0, 0, 0])
    assert torch.equal(turned_tokens[0, 0, 1, 4:], tokens[0, 0, 1, 4:]) and torch.equal(
        turned_tokens[0, 0, 2, :4], tokens[0, 0, 2, :4]
    )
    slow, fast = 0.2, 2.0  # frequencies 1 and 0.1
    expected = [math.cos(a) + sign * math.sin(a) for sign in (-1, 1) for a in (fast, slow)]
    np.testing.assert_allclose(turned_tokens[0, 0, 1, :4].numpy(), expected, rtol=1e-5)


def test_rotated_products_depend_on_the_distance_alone() -> None:
    q, k = torch.randn(2, 1, 1, 1, 16, generator=torch.Generator().manual_seed(1)).unbind(0)

    def product(of_q: list[float], of_k: list[float]) -> float:
        at = [rotate(t, rotary_tables(torch.tensor([place]), 16)) for t, place in ((q, of_q), (k, of_k))]
        return float((at[0] * at[1]).sum())

    assert product([3.0, 5.0], [1.0, 9.0]) == pytest.approx(product([12.0, 6.0], [10.0, 10.0]), abs=1e-4)
    assert product([3.0, 5.0], [1.0, 9.0]) != pytest.approx(product([3.0, 5.0], [9.0, 1.0]), abs=1e-2)


def test_normalised_images_are_less_their_mean_by_their_deviation() -> None:
    images = images_of(2, 1, 3, 4, 5)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = (images - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(normalise(images), expected, rtol=1e-6, atol=1e-6)


# frames and taps


def alone(model: Aggregator) -> Aggregator:
    """The aggregator with global blocks that change nothing."""
    with torch.no_grad():
        for name, parameter in model.global_blocks.named_parameters():
            if name.endswith("gamma"):
                parameter.zero_()
    return model


def test_frame_attention_does_not_mix_frames_and_global_attention_does() -> None:
    images = images_of(1, 2, 3, 28, 28)
    other = torch.cat([images[:, :1], images_of(1, 1, 3, 28, 28, seed=8)], dim=1)
    model = shaken(Aggregator(**SMALL))
    first, second = model(images), model(other)
    assert torch.allclose(first[0][:, 0, :, :24], second[0][:, 0, :, :24], atol=1e-6)  # the first frame block has seen one frame
    assert not torch.allclose(first[0][:, 0, :, 24:], second[0][:, 0, :, 24:], atol=1e-2)
    first, second = alone(model)(images), model(other)
    assert torch.allclose(first[-1][:, 0], second[-1][:, 0], atol=1e-6)
    assert not torch.allclose(first[-1][:, 1], second[-1][:, 1], atol=1e-2)


def test_the_first_frame_has_special_tokens_of_its_own() -> None:
    model = alone(shaken(Aggregator(**SMALL)))
    images = images_of(2, 1, 3, 28, 28).expand(-1, 3, -1, -1, -1)
    before = model(images)[-1]
    assert not torch.allclose(before[:, 0], before[:, 1], atol=1e-2)
    assert torch.allclose(before[:, 1], before[:, 2], atol=1e-6)
    with torch.no_grad():
        model.camera_token[:, 1] += 1
        model.register_token[:, 1] -= 1
    after = model(images)[-1]
    assert torch.allclose(before[:, 0], after[:, 0], atol=1e-6)
    assert not torch.allclose(before[:, 1], after[:, 1], atol=1e-2)


def test_taps_give_the_same_outputs_in_their_order_and_run_no_further() -> None:
    model = shaken(Aggregator(**TINY))
    images = images_of(1, 1, 3, 28, 42)
    every = model(images)
    assert len(every) == 4
    assert all(torch.equal(a, b) for a, b in zip(model(images, taps=[2, 0]), (every[2], every[0]), strict=True))
    with torch.no_grad():
        model.get_parameter("frame_blocks.3.norm1.weight").fill_(torch.nan)
    assert torch.equal(model(images, taps=[2])[0], every[2])


def test_a_fixed_grid_gives_the_same_outputs_and_traces_for_any_batch() -> None:
    model = shaken(Aggregator(**SMALL)).requires_grad_(False)
    images = images_of(2, 1, 3, 28, 42)
    free, names = model(images), model.state_dict().keys()
    model.fix_grid(3, 2)
    model.fix_grid(2, 3)
    assert all(torch.equal(a, b) for a, b in zip(model(images), free, strict=True))
    assert model.state_dict().keys() == names
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        traced = torch.jit.trace(lambda batch: tuple(model(batch)), (images[:1],))  # type: ignore[no-untyped-call]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(traced(images), free, strict=True))


def test_images_that_cut_a_patch_are_refused() -> None:
    with pytest.raises(ValueError, match="images of 28 x 30 pixels"):
        Aggregator(**SMALL)(images_of(1, 1, 3, 28, 30))


def test_heads_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="5 heads for a width of 24"):
        Block(24, 5)
    with pytest.raises(ConfigError, match="heads of 6 channels"):
        Aggregator(24, 4, 1, 1, 2, 4)


# training


def test_gradients_reach_every_parameter_but_the_unused() -> None:
    model = shaken(Aggregator(**SMALL))
    images = images_of(1, 2, 3, 28, 42).requires_grad_()
    torch.autograd.backward(model(images, taps=[1])[0].square().mean())
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()}
    assert without <= {"patch_embed.mask_token"}
    assert images.grad is not None and bool(images.grad.any())


def gradients(model: nn.Module, loss: Callable[[], Tensor]) -> dict[str, Tensor]:
    model.zero_grad()
    torch.autograd.backward(loss())
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def test_checkpointed_blocks_give_the_same_gradients_and_keep_less() -> None:
    model = shaken(Aggregator(**SMALL))
    images = images_of(1, 2, 3, 28, 42)
    kept = []

    def loss() -> Tensor:
        sizes = [0]

        def count(tensor: Tensor) -> Tensor:
            sizes[0] += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            value: Tensor = model(images)[-1].square().mean()
        kept.append(sizes[0])
        return value

    plain = gradients(model, loss)
    checkpoint_blocks(model)
    assert all(module.checkpoint for module in model.modules() if isinstance(module, BlockStack))
    again = gradients(model, loss)
    assert plain.keys() == again.keys()
    assert all(torch.equal(plain[name], again[name]) for name in plain)
    assert kept[1] < kept[0] / 3
    checkpoint_blocks(model, False)
    assert Aggregator(**SMALL, checkpoint=True).patch_embed.blocks.checkpoint and not model.frame_blocks.checkpoint


def test_bfloat16_stays_close() -> None:
    torch.manual_seed(0)
    model = shaken(Aggregator(**TINY))
    images = images_of(1, 2, 3, 42, 56)
    with torch.no_grad():
        exact = model(images)[-1]
        with torch.autocast("cpu", torch.bfloat16):
            mixed = model(images)[-1]
        pure = model.to(torch.bfloat16)(images.bfloat16())[-1]
    assert mixed.dtype == torch.float32 and pure.dtype == torch.bfloat16
    assert float((mixed - exact).abs().mean() / exact.abs().mean()) < 0.02
    assert float((pure - exact).abs().mean() / exact.abs().mean()) < 0.05


def test_the_whole_forward_is_one_graph() -> None:
    model = shaken(Aggregator(**SMALL))
    images = images_of(1, 2, 3, 28, 42)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images, taps=[1])[0], model(images, taps=[1])[0])


def test_the_tiny_configuration_runs() -> None:
    model = Aggregator(**TINY)
    images = prepare_images(torch.full((2, 3, 240, 320), 128, dtype=torch.uint8), input_width=112)
    assert images.shape == (2, 1, 3, 84, 112)
    outputs = model(images, taps=[0, 1, 2, 3])
    assert [tuple(output.shape) for output in outputs] == [(2, 1, SPECIAL_TOKENS + 6 * 8, 128)] * 4
    assert all(bool(output.isfinite().all()) for output in outputs)
