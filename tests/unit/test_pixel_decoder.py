"""Deformable attention against plain loops, positions against their formula, the pixel decoder against the same written out."""

import math
from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from scenemill.schemas.errors import ConfigError
from scenemill.trainers.nvpanoptix3d.deformable import (
    DeformableAttention,
    deformable_attention,
    pyramid_of,
    sine_position,
)
from scenemill.trainers.nvpanoptix3d.pixel_decoder import PIXEL_CHANNELS, EncoderLayer, PixelDecoder

CPU = torch.device("cpu")
TINY_CHANNELS = dict(zip(PIXEL_CHANNELS, (8, 16, 32, 64), strict=True))


def tiny(norm: str = "GN", layers: int = 1, recompute: bool = False, dropout: float = 0.0) -> PixelDecoder:
    """The tiny configuration, with offsets that vary from token to token."""
    torch.manual_seed(4)
    decoder = PixelDecoder(
        TINY_CHANNELS,
        convs_dim=32,
        mask_dim=32,
        transformer_enc_layers=layers,
        nheads=4,
        dim_feedforward=64,
        norm=norm,
        recompute=recompute,
        dropout=dropout,
    )
    for module in decoder.modules():
        if isinstance(module, DeformableAttention):
            torch.nn.init.normal_(module.sampling_offsets.weight, std=0.2)
            torch.nn.init.normal_(module.attention_weights.weight, std=0.2)
    return decoder


def maps(batch: int = 2, finest: tuple[int, int] = (16, 24), channels: Mapping[str, int] = TINY_CHANNELS) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(batch)
    height, width = finest
    return {
        name: torch.randn(batch, count, height >> step, width >> step, generator=random)
        for step, (name, count) in enumerate(channels.items())
    }


def full_size_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes as released checkpoints have them, relative to the pixel decoder."""
    shapes: dict[str, tuple[int, ...]] = {"transformer.level_embed": (3, 256)}

    def layer(name: str, *shape: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]

    for index, channels in enumerate((2048, 1024, 512)):
        layer(f"input_proj.{index}.0", 256, channels, 1, 1)
        layer(f"input_proj.{index}.1", 256)
    for index in range(6):
        prefix = f"transformer.encoder.layers.{index}."
        layer(prefix + "self_attn.sampling_offsets", 192, 256)
        layer(prefix + "self_attn.attention_weights", 96, 256)
        layer(prefix + "self_attn.value_proj", 256, 256)
        layer(prefix + "self_attn.output_proj", 256, 256)
        layer(prefix + "norm1", 256)
        layer(prefix + "linear1", 1024, 256)
        layer(prefix + "linear2", 256, 1024)
        layer(prefix + "norm2", 256)
    layer("mask_features", 256, 256, 1, 1)
    for name, kernel in (("adapter_1", 1), ("layer_1", 3)):
        shapes[f"{name}.weight"] = (256, 256, kernel, kernel)
        layer(f"{name}.norm", 256)
    return shapes


def test_names_shapes_and_counts_are_those_of_released_weights() -> None:
    with torch.device("meta"):
        decoder = PixelDecoder()
    assert {name: tuple(value.shape) for name, value in decoder.state_dict().items()} == full_size_shapes()
    assert len(decoder.state_dict()) == 117
    assert sum(parameter.numel() for parameter in decoder.parameters()) == 6_035_904


def bilinear(image: Tensor, x: float, y: float) -> Tensor:
    """(c,) of a (c, H, W) image at a place in pixels, the first pixel's centre at 0; zeros outside."""
    left, top = math.floor(x), math.floor(y)
    out = torch.zeros(image.shape[0], dtype=image.dtype)
    for column, across in ((left, left + 1 - x), (left + 1, x - left)):
        for row, down in ((top, top + 1 - y), (top + 1, y - top)):
            if 0 <= column < image.shape[2] and 0 <= row < image.shape[1]:
                out += across * down * image[:, row, column]
    return out


def by_loops(value: Tensor, sizes: list[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """Every point after the other."""
    batch, tokens, heads, levels, points, _ = locations.shape
    out = torch.zeros(batch, tokens, heads, value.shape[3], dtype=value.dtype)
    start = 0
    for level, (height, width) in enumerate(sizes[:levels]):
        pixels = value[:, start : start + height * width].reshape(batch, height, width, heads, -1)
        start += height * width
        for b, n, head, point in torch.cartesian_prod(*map(torch.arange, (batch, tokens, heads, points))).tolist():
            x, y = locations[b, n, head, level, point].tolist()
            image = pixels[b, :, :, head].permute(2, 0, 1)
            out[b, n, head] += weights[b, n, head, level, point] * bilinear(image, x * width - 0.5, y * height - 0.5)
    return out.flatten(2)


def test_deformable_attention_is_that_of_plain_loops() -> None:
    torch.manual_seed(1)
    sizes = [(2, 3), (4, 5), (1, 7)]
    length = sum(height * width for height, width in sizes)
    value = torch.randn(2, length, 2, 3, dtype=torch.float64)
    locations = torch.rand(2, 6, 2, 3, 4, 2, dtype=torch.float64) * 1.6 - 0.3  # some of them outside
    weights = torch.rand(2, 6, 2, 3, 4, dtype=torch.float64)
    found = deformable_attention(value, sizes, locations, weights)
    assert found.shape == (2, 6, 6)
    torch.testing.assert_close(found, by_loops(value, sizes, locations, weights))


def attention_by_loops(attention: DeformableAttention, query: Tensor, source: Tensor, sizes: list[tuple[int, int]]) -> Tensor:
    """The whole module: heads, offsets in pixels of each level, weights over levels and points together."""
    batch, length, width = source.shape
    heads, levels, points = attention.heads, attention.levels, attention.points
    value = attention.value_proj(source).reshape(batch, length, heads, width // heads)
    offsets = attention.sampling_offsets(query).reshape(batch, length, heads, levels, points, 2)
    weights = attention.attention_weights(query).reshape(batch, length, heads, levels * points).softmax(-1)
    centres = [((x + 0.5) / w, (y + 0.5) / h) for h, w in sizes for y in range(h) for x in range(w)]
    extents = torch.tensor([(w, h) for h, w in sizes])
    locations = torch.tensor(centres)[:, None, None, None] + offsets / extents[:, None]
    out: Tensor = attention.output_proj(by_loops(value, sizes, locations, weights.reshape(batch, length, heads, levels, points)))
    return out


@torch.no_grad()
def test_a_token_looks_around_its_own_place_on_every_level() -> None:
    torch.manual_seed(2)
    sizes = [(2, 3), (4, 6)]
    attention = DeformableAttention(8, heads=2, levels=2, points=3)
    for linear in (attention.sampling_offsets, attention.attention_weights):
        torch.nn.init.normal_(linear.weight, std=0.5)
    query, source = torch.randn(2, 2, 30, 8)
    found = attention(query, source, pyramid_of(sizes, CPU))
    torch.testing.assert_close(found, attention_by_loops(attention, query, source, sizes), atol=1e-5, rtol=1e-5)


def test_at_first_the_heads_look_around_in_a_square() -> None:
    attention = DeformableAttention(16, heads=8, levels=3, points=4)
    offsets = attention.sampling_offsets.bias.detach().view(8, 3, 4, 2)
    around = torch.tensor([[1, 0], [1, 1], [0, 1], [-1, 1], [-1, 0], [-1, -1], [0, -1], [1, -1]], dtype=torch.float32)
    for level, point in ((0, 0), (2, 1), (1, 3)):
        torch.testing.assert_close(offsets[:, level, point], around * (point + 1), atol=1e-5, rtol=0)
    for name, parameter in attention.named_parameters():
        expected_zero = name not in ("sampling_offsets.bias", "value_proj.weight", "output_proj.weight")
        assert (not parameter.any()) == expected_zero, name
    bound = math.sqrt(6 / 32)
    assert 0.9 * bound < float(attention.value_proj.weight.detach().abs().max()) <= bound


def test_first_weights_are_as_published() -> None:
    decoder = PixelDecoder(TINY_CHANNELS, convs_dim=64, transformer_enc_layers=1)
    for name, fan_in in (("input_proj.0.0", 64), ("adapter_1", 8), ("layer_1", 64 * 9), ("mask_features", 64)):
        weight, bound = decoder.get_submodule(name).get_parameter("weight").detach(), math.sqrt(3 / fan_in)
        assert 0.9 * bound < float(weight.abs().max()) <= bound, name
    assert not decoder.mask_features.get_parameter("bias").any()
    assert 0.8 < float(decoder.transformer.level_embed.detach().std()) < 1.2


@pytest.mark.parametrize(("size", "channels"), [((3, 5), 8), ((13, 16), 256), ((1, 1), 4)])
def test_positions_are_those_of_the_formula(size: tuple[int, int], channels: int) -> None:
    found = sine_position(size, channels, CPU).view(*size, channels)
    assert found.dtype == torch.float32
    half = channels // 2
    for row in range(size[0]):
        for column in range(size[1]):
            for index in range(0, half, max(2, half // 4)):
                for place, length, first in ((row, size[0], 0), (column, size[1], half)):
                    angle = (place + 1) / (length + 1e-6) * 2 * math.pi / 10000 ** (index / half)
                    assert float(found[row, column, first + index]) == pytest.approx(math.sin(angle), abs=2e-6)
                    assert float(found[row, column, first + index + 1]) == pytest.approx(math.cos(angle), abs=2e-6)


def encoder_layer_by_loops(layer: EncoderLayer, tokens: Tensor, position: Tensor, sizes: list[tuple[int, int]]) -> Tensor:
    tokens = layer.norm1(tokens + attention_by_loops(layer.self_attn, tokens + position, tokens, sizes))
    out: Tensor = layer.norm2(tokens + layer.linear2(layer.linear1(tokens).relu()))
    return out


@torch.no_grad()
def test_the_pixel_decoder_is_that_of_its_parts_written_out() -> None:
    decoder, features = tiny(), maps(1, (16, 24))
    sizes = [(2, 3), (4, 6), (8, 12)]
    tokens, positions = [], []
    for index, (name, size) in enumerate(zip(("res5", "res4", "res3"), sizes, strict=True)):
        tokens.append(decoder.input_proj[index](features[name]).flatten(2).transpose(1, 2))
        positions.append(sine_position(size, 32, CPU) + decoder.transformer.level_embed[index])
    layer = decoder.get_submodule("transformer.encoder.layers.0")
    assert isinstance(layer, EncoderLayer)
    encoded = encoder_layer_by_loops(layer, torch.cat(tokens, dim=1), torch.cat(positions), sizes)
    expected = [encoded[:, :6], encoded[:, 6:30], encoded[:, 30:]]
    out = decoder(features)
    for found, part, size in zip(out.enc_features, expected, sizes, strict=True):
        torch.testing.assert_close(found, part.transpose(1, 2).reshape(1, 32, *size), atol=1e-5, rtol=1e-5)
    adapter, last = decoder.get_submodule("adapter_1"), decoder.get_submodule("layer_1")
    up = functional.interpolate(out.enc_features[2], scale_factor=2, mode="bilinear", align_corners=False)
    fine = norm_of(adapter)(functional.conv2d(features["res2"], adapter.get_parameter("weight"))) + up
    fine = norm_of(last)(functional.conv2d(fine, last.get_parameter("weight"), padding=1)).relu()
    torch.testing.assert_close(out.mask_features, decoder.mask_features(fine), atol=1e-5, rtol=1e-5)


def norm_of(conv: torch.nn.Module) -> Callable[[Tensor], Tensor]:
    norm = conv.get_submodule("norm")
    return lambda features: functional.group_norm(features, 32, norm.get_parameter("weight"), norm.get_parameter("bias"))


@torch.no_grad()
def test_shapes_are_those_of_one_image_at_reduced_widths() -> None:
    out = tiny()(maps(1, (104, 128)))
    assert out.mask_features.shape == (1, 32, 104, 128)
    assert [tuple(features.shape) for features in out.enc_features] == [(1, 32, 13, 16), (1, 32, 26, 32), (1, 32, 52, 64)]


def test_every_parameter_receives_a_gradient_and_computing_again_changes_none() -> None:
    gradients = []
    for recompute in (False, True):
        decoder = tiny(layers=2, recompute=recompute, dropout=0.1)
        torch.manual_seed(6)
        out = decoder(maps())
        (out.mask_features.square().mean() + sum(features.pow(3).mean() for features in out.enc_features)).backward()
        gradients.append({name: parameter.grad for name, parameter in decoder.named_parameters()})
    plain, again = gradients
    assert [name for name, gradient in plain.items() if gradient is None or not gradient.any()] == []
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient)


def test_dropout_acts_only_while_training() -> None:
    decoder = tiny(dropout=0.5)
    first, second = decoder(maps()).mask_features, decoder(maps()).mask_features
    assert not torch.equal(first, second)
    decoder.eval()
    assert torch.equal(decoder(maps()).mask_features, tiny()(maps()).mask_features)


@torch.no_grad()
def test_half_the_digits_give_nearly_the_same() -> None:
    decoder, features = tiny(), maps()
    exact = decoder(features)
    with torch.autocast("cpu", torch.bfloat16):
        out = decoder(features)
    for found, expected in zip((out.mask_features, *out.enc_features), (exact.mask_features, *exact.enc_features), strict=True):
        assert float((found.float() - expected).abs().mean()) < 0.02 * float(expected.abs().mean() + 1)


@pytest.mark.parametrize(("norm", "suffixes"), [("", ["bias", "weight"]), ("LN", ["norm.bias", "norm.weight", "weight"])])
def test_the_step_up_takes_other_norms(norm: str, suffixes: list[str]) -> None:
    decoder = tiny(norm)
    assert sorted(name for name in decoder.state_dict() if name.startswith("layer_1.")) == [f"layer_1.{s}" for s in suffixes]
    assert decoder(maps()).mask_features.isfinite().all()


@torch.no_grad()
def test_a_layer_norm_is_one_over_the_channels_of_a_pixel() -> None:
    features, norm = torch.randn(2, 32, 3, 4), tiny("LN").get_submodule("layer_1.norm")
    mean, variance = features.mean(1, keepdim=True), features.var(1, correction=0, keepdim=True)
    torch.testing.assert_close(norm(features), (features - mean) / (variance + 1e-6).sqrt())


def test_a_synchronised_norm_works_on_a_cpu() -> None:
    decoder = tiny("SyncBN")
    assert int(decoder.get_buffer("layer_1.norm.num_batches_tracked")) == 0
    decoder(maps()).mask_features.sum().backward()
    assert int(decoder.get_buffer("layer_1.norm.num_batches_tracked")) == 1
    decoder.eval()
    assert decoder(maps()).mask_features.isfinite().all()


@pytest.mark.parametrize(
    ("stride", "encoded", "added", "finest"),
    [
        (4, ("res5", "res3", "res4"), ["adapter_1"], (16, 24)),
        (8, ("res3", "res4", "res5"), [], (8, 12)),
        (4, ("res4", "res5"), ["adapter_1", "adapter_2"], (16, 24)),
        (4, ("res2", "res3", "res4", "res5"), [], (16, 24)),
    ],
)
def test_other_maps_and_strides(stride: int, encoded: tuple[str, ...], added: list[str], finest: tuple[int, int]) -> None:
    decoder = PixelDecoder(
        TINY_CHANNELS,
        convs_dim=32,
        mask_dim=8,
        transformer_enc_layers=1,
        common_stride=stride,
        deformable_transformer_encoder_in_features=encoded,
    )
    assert sorted({name.split(".")[0] for name in decoder.state_dict() if name.startswith("adapter")}) == added
    features = maps()
    out = decoder(features)
    assert out.mask_features.shape == (2, 8, *finest)
    assert [features.shape[2] for features in out.enc_features] == [2, 4, 8]
    if len(added) == 2:  # numbered from the finest map
        assert decoder.get_submodule("adapter_2").get_parameter("weight").shape[1] == TINY_CHANNELS["res3"]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="convs_dim 48"):
        PixelDecoder(TINY_CHANNELS, convs_dim=48)
    with pytest.raises(ConfigError, match='norm "BN": allowed is'):
        PixelDecoder(TINY_CHANNELS, convs_dim=32, norm="BN")
    with pytest.raises(ConfigError, match="finest encoded map, res3, has 8"):
        PixelDecoder(TINY_CHANNELS, convs_dim=32, common_stride=16)
    with pytest.raises(ConfigError, match="allowed is some of res2, res3, res4, res5"):
        PixelDecoder(TINY_CHANNELS, convs_dim=32, deformable_transformer_encoder_in_features=("res6",))
    with pytest.raises(ConfigError, match="reads 3 maps"):
        PixelDecoder(TINY_CHANNELS, convs_dim=32, deformable_transformer_encoder_in_features=("res3",))
    with pytest.raises(ConfigError, match="no multiple of 7 heads"):
        DeformableAttention(32, heads=7)


@torch.no_grad()
def test_it_compiles_as_one_graph() -> None:
    decoder = tiny(layers=2).eval()
    compiled = torch.compile(decoder, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(maps()).mask_features, decoder(maps()).mask_features)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_a_trace_serves_any_batch() -> None:
    decoder = tiny().eval()
    traced = torch.jit.trace(decoder, (maps(2),), strict=False)  # type: ignore[no-untyped-call]
    for batch in (1, 3):
        found, expected = traced(maps(batch)), decoder(maps(batch))
        torch.testing.assert_close(found[0], expected.mask_features)
        torch.testing.assert_close(list(found[1]), expected.enc_features)
