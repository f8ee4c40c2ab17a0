"""The query decoder against torch's own attention, written out; what it masks, what it learns from, what it leaves alone."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from scenemill.schemas.errors import ConfigError
from scenemill.trainers.nvpanoptix3d.deformable import sine_position
from scenemill.trainers.nvpanoptix3d.query_decoder import (
    UNUSED,
    Attention,
    QueryDecoder,
    QueryOutput,
    QueryPrediction,
    SelfAttention,
    seen_positions,
)

CPU = torch.device("cpu")
SIZES = [(2, 3), (4, 6), (8, 12)]


def tiny(dec_layers: int = 4, pre_norm: bool = False, convs_dim: int = 32) -> QueryDecoder:
    """The tiny configuration."""
    torch.manual_seed(3)
    return QueryDecoder(
        convs_dim=convs_dim,
        hidden_dim=32,
        num_object_queries=16,
        nheads=4,
        dim_feedforward=64,
        dec_layers=dec_layers,
        mask_dim=24,
        depth_dim=20,
        pre_norm=pre_norm,
    )


def inputs(
    batch: int = 2, width: int = 32, sizes: list[tuple[int, int]] = SIZES, mask_dim: int = 24
) -> tuple[list[Tensor], Tensor, list[Tensor]]:
    """Encoded maps, mask features and depth features."""
    random = torch.Generator().manual_seed(batch)
    encoded, depth = ([torch.randn(batch, width, *size, generator=random) for size in sizes] for _ in range(2))
    height, across = sizes[-1]
    return encoded, torch.randn(batch, mask_dim, 2 * height, 2 * across, generator=random), depth


def full_size_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes as released checkpoints have them, relative to the predictor."""
    shapes: dict[str, tuple[int, ...]] = {
        "query_feat.weight": (100, 256),
        "query_embed.weight": (100, 256),
        "level_embed.weight": (3, 256),
        "depth_level_embed.weight": (3, 256),
    }

    def layer(name: str, *shape: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]

    for index in range(9):
        for kind, attention in (
            ("transformer_self_attention_layers", "self_attn"),
            ("transformer_cross_attention_layers", "multihead_attn"),
            ("depth_transformer_cross_attention_layers", "multihead_attn"),
            ("cross_transformer_attention_layers", "self_attn"),
        ):
            shapes[f"{kind}.{index}.{attention}.in_proj_weight"] = (768, 256)
            shapes[f"{kind}.{index}.{attention}.in_proj_bias"] = (768,)
            layer(f"{kind}.{index}.{attention}.out_proj", 256, 256)
            layer(f"{kind}.{index}.norm", 256)
        layer(f"transformer_ffn_layers.{index}.linear1", 2048, 256)
        layer(f"transformer_ffn_layers.{index}.linear2", 256, 2048)
        layer(f"transformer_ffn_layers.{index}.norm", 256)
    layer("decoder_norm", 256)
    layer("depth_decoder_norm", 256)
    layer("class_embed", 14, 256)
    for index in range(3):
        layer(f"mask_embed.layers.{index}", 256, 256)
        layer(f"depth_embed.layers.{index}", 256, 256)
    return shapes


def test_names_shapes_and_counts_are_those_of_released_weights() -> None:
    with torch.device("meta"):
        decoder = QueryDecoder()
    assert {name: tuple(value.shape) for name, value in decoder.state_dict().items()} == full_size_shapes()
    assert len(decoder.state_dict()) == 292
    assert sum(parameter.numel() for parameter in decoder.parameters()) == 19_407_118


def test_maps_of_another_width_are_projected() -> None:
    decoder = tiny(convs_dim=48)
    added = set(decoder.state_dict()) - set(tiny().state_dict())
    assert added == {
        f"{kind}.{level}.{part}" for kind in ("input_proj", "depth_input_proj") for level in range(3) for part in ("weight", "bias")
    }
    assert decoder.get_parameter("depth_input_proj.1.weight").shape == (32, 48, 1, 1)
    assert decoder(*inputs(width=48)).pred_logits.shape == (2, 16, 14)


def torch_attention(attention: Attention) -> nn.MultiheadAttention:
    """The same weights, by the same names."""
    twin = nn.MultiheadAttention(attention.out_proj.in_features, attention.heads, batch_first=True)
    twin.load_state_dict(attention.state_dict(), strict=True)
    return twin.eval()


@torch.no_grad()
def test_attention_is_that_of_torch_on_the_same_weights() -> None:
    torch.manual_seed(5)
    attention = Attention(32, 4)
    nn.init.normal_(attention.in_proj_bias)
    nn.init.normal_(attention.out_proj.bias)
    twin = torch_attention(attention)
    query, key, value = torch.randn(2, 7, 32), torch.randn(2, 11, 32), torch.randn(2, 11, 32)
    seen = torch.rand(2, 1, 7, 11) < 0.4
    seen[..., 0] = True
    blocked = (~seen).expand(2, 4, 7, 11).flatten(0, 1)
    torch.testing.assert_close(
        attention(query, key, value, seen), twin(query, key, value, attn_mask=blocked)[0], atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(attention(query, key, value), twin(query, key, value)[0], atol=1e-5, rtol=1e-5)


def test_attention_starts_as_torch_does() -> None:
    attention, bound = Attention(64, 4), (6 / 256) ** 0.5
    assert 0.95 * bound < float(attention.in_proj_weight.detach().abs().max()) <= bound
    assert not attention.in_proj_bias.any() and not attention.out_proj.bias.any()


def test_a_query_sees_its_mask_or_everything() -> None:
    logits = torch.full((1, 3, 4, 4), -2.0)
    logits[0, 0, :2, :2] = 5.0
    logits[0, 2] = 0.0  # one half exactly is inside
    seen = seen_positions(logits, (2, 2))
    assert seen.shape == (1, 1, 3, 4) and seen.dtype == torch.bool
    assert seen[0, 0].tolist() == [[True, False, False, False], [True] * 4, [True] * 4]


def test_masks_are_resized_before_they_are_cut() -> None:
    logits = torch.tensor([[[[-3.0, 5.0, -3.0, 1.0]]]])
    assert seen_positions(logits, (1, 2))[0, 0, 0].tolist() == [True, False]
    torch.manual_seed(0)
    logits = torch.randn(2, 5, 16, 24)
    expected = functional.interpolate(logits, size=(5, 7), mode="bilinear", align_corners=False).sigmoid().flatten(2) >= 0.5
    assert torch.equal(seen_positions(logits, (5, 7))[:, 0], expected)
    assert torch.equal(seen_positions(logits.bfloat16(), (16, 24))[:, 0], logits.bfloat16().float().sigmoid().flatten(2) >= 0.5)


def test_where_a_query_looks_carries_no_gradient() -> None:
    assert not seen_positions(torch.randn(1, 2, 4, 4, requires_grad=True), (2, 2)).requires_grad
    decoder, (encoded, mask_features, depth) = tiny(), inputs()
    mask_features.requires_grad_()
    out = decoder(encoded, mask_features, depth)
    torch.autograd.backward(out.pred_logits.sum())
    assert mask_features.grad is None


def by_torch(decoder: QueryDecoder, encoded: list[Tensor], mask_features: Tensor, depth: list[Tensor]) -> list[tuple[Tensor, ...]]:
    """Classes, masks and normed queries after each layer, with torch's attention and one image at a time."""
    kinds = (decoder.transformer_cross_attention_layers, decoder.depth_transformer_cross_attention_layers)
    embeds = (decoder.level_embed.weight, decoder.depth_level_embed.weight)
    place = decoder.query_embed.weight
    rows: list[tuple[Tensor, ...]] = []
    queries = decoder.query_feat.weight

    def predict() -> None:
        normed = decoder.decoder_norm(queries)
        masks = torch.einsum("qc,chw->qhw", decoder.mask_embed(normed), mask_features[0])
        rows.append((decoder.class_embed(normed)[None], masks[None], normed[None]))

    def block(module: nn.Module, step: str, memory: Tensor | None = None, position: Tensor | None = None) -> Tensor:
        pre = bool(getattr(module, "pre_norm"))  # noqa: B009
        norm = module.get_submodule("norm")
        read: Tensor = norm(queries) if pre else queries
        if step == "ffn":
            out: Tensor = module.get_submodule("linear2")(module.get_submodule("linear1")(read).relu())
        else:
            attention = module.get_submodule("self_attn" if memory is None else "multihead_attn")
            assert isinstance(attention, Attention)
            key, value = (read + place, read) if memory is None or position is None else (memory + position, memory)
            blocked = None if memory is None else hidden(rows[-1][1])
            out = torch_attention(attention)(read + place, key, value, attn_mask=blocked)[0]
        summed: Tensor = queries + out
        return summed if pre else norm(summed)

    def hidden(masks: Tensor) -> Tensor:
        blocked = (
            functional.interpolate(masks, size=SIZES[level], mode="bilinear", align_corners=False)[0].flatten(1).sigmoid() < 0.5
        )
        blocked[blocked.sum(-1) == blocked.shape[-1]] = False
        return blocked

    predict()
    for index, (attend, feed) in enumerate(
        zip(decoder.transformer_self_attention_layers, decoder.transformer_ffn_layers, strict=True)
    ):
        level = index % 3
        position = sine_position(SIZES[level], 32, CPU)
        for kind, features, embed in zip(kinds, (encoded, depth), embeds, strict=True):
            memory = features[level][0].flatten(1).T + embed[level]
            queries = block(kind[index], "cross", memory, position)
        queries = block(attend, "self")
        queries = block(feed, "ffn")
        predict()
    return rows


@torch.no_grad()
@pytest.mark.parametrize("pre_norm", [False, True])
def test_the_decoder_is_that_of_its_layers_written_out(pre_norm: bool) -> None:
    decoder, (encoded, mask_features, depth) = tiny(dec_layers=5, pre_norm=pre_norm), inputs(2)
    out = decoder(encoded, mask_features, depth)
    for image in range(2):
        one = slice(image, image + 1)
        rows = by_torch(decoder, [each[one] for each in encoded], mask_features[one], [each[one] for each in depth])
        found = [*out.aux_outputs, (out.pred_logits, out.pred_masks)]
        assert len(found) == len(rows) == 5
        for (logits, masks), (expected_logits, expected_masks, _) in zip(found, rows, strict=True):
            torch.testing.assert_close(logits[one], expected_logits, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(masks[one], expected_masks, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(out.segm_decoder_out[one], rows[-1][2], atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("dec_layers", [1, 2, 10])
def test_predictions_come_before_the_first_layer_and_after_each(dec_layers: int) -> None:
    decoder = tiny(dec_layers)
    out = decoder(*inputs())
    assert len(decoder.transformer_ffn_layers) == len(out.aux_outputs) == dec_layers - 1
    first = [*out.aux_outputs, out][0]
    torch.testing.assert_close(first.pred_logits[0], decoder.class_embed(decoder.decoder_norm(decoder.query_feat.weight)))


@torch.no_grad()
def test_shapes_are_those_of_one_image_at_reduced_widths() -> None:
    out = tiny()(*inputs(1, sizes=[(13, 16), (26, 32), (52, 64)]))
    assert out.pred_logits.shape == (1, 16, 14)
    assert out.pred_masks.shape == (1, 16, 104, 128)
    assert out.segm_decoder_out.shape == (1, 16, 32)
    assert {(aux.pred_logits.shape, aux.pred_masks.shape) for aux in out.aux_outputs} == {
        (out.pred_logits.shape, out.pred_masks.shape)
    }


def loss(out: QueryOutput) -> Tensor:
    predictions = [*out.aux_outputs, QueryPrediction(out.pred_logits, out.pred_masks)]
    return torch.stack([each.pred_logits.pow(3).mean() + each.pred_masks.square().mean() for each in predictions]).sum()


@pytest.mark.parametrize("pre_norm", [False, True])
def test_all_but_the_unused_parameters_receive_a_gradient(pre_norm: bool) -> None:
    decoder = tiny(pre_norm=pre_norm)
    torch.autograd.backward(loss(decoder(*inputs())))
    without = {name for name, parameter in decoder.named_parameters() if parameter.grad is None or not parameter.grad.any()}
    unused = {name for name, _ in decoder.named_parameters() if name.split(".")[0] in UNUSED}
    assert without == unused and len(unused) == 3 * 6 + 2 + 6
    assert {name.split(".")[0] for name in unused} == set(UNUSED)


def test_gradients_reach_both_kinds_of_features() -> None:
    encoded, mask_features, depth = inputs()
    for features in (*encoded, *depth):
        features.requires_grad_()
    torch.autograd.backward(loss(tiny()(encoded, mask_features, depth)))
    assert all(features.grad is not None and features.grad.any() for features in (*encoded, *depth))


@torch.no_grad()
def test_half_the_digits_give_nearly_the_same() -> None:
    decoder, given = tiny(dec_layers=2), inputs()
    exact = decoder(*given)
    with torch.autocast("cpu", torch.bfloat16):
        out = decoder(*given)
    assert float((out.pred_logits.float() - exact.pred_logits).abs().mean()) < 0.05
    assert float((out.pred_masks.float() - exact.pred_masks).abs().mean()) < 0.1


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="hidden_dim 30"):
        QueryDecoder(hidden_dim=30, nheads=5)
    with pytest.raises(ConfigError, match=r"hidden_dim 32: .* here 5"):
        QueryDecoder(hidden_dim=32, nheads=5)
    with pytest.raises(ConfigError, match="dec_layers 0"):
        QueryDecoder(dec_layers=0)


def test_layers_stand_alone() -> None:
    assert SelfAttention(16, 2)(torch.randn(3, 5, 16), torch.randn(5, 16)).shape == (3, 5, 16)


@torch.no_grad()
def test_it_compiles_as_one_graph() -> None:
    decoder, given = tiny().eval(), inputs()
    compiled = torch.compile(decoder, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*given).pred_masks, decoder(*given).pred_masks)


class MasksAndQueries(nn.Module):
    """What a traced graph may give: tensors, no list of pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = tiny()

    def forward(self, encoded: list[Tensor], mask_features: Tensor, depth: list[Tensor]) -> tuple[Tensor, Tensor]:
        out = self.decoder(encoded, mask_features, depth)
        return out.pred_masks, out.segm_decoder_out


@torch.no_grad()
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_a_trace_serves_any_batch() -> None:
    module = MasksAndQueries().eval()
    traced = torch.jit.trace(module, inputs(2))  # type: ignore[no-untyped-call]
    for batch in (1, 3):
        torch.testing.assert_close(traced(*inputs(batch)), module(*inputs(batch)))
