"""How the tracing exporter writes operators whose sizes it would lose, and deformable attention as one operator of TensorRT.

Source: the operators of ONNX from opset 16; the plugin's inputs as TensorRT documents them.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Final, cast

import torch
from torch import Tensor

from scenemill.trainers.nvpanoptix3d import deformable

DOMAIN: Final = "nvidia"
PLUGIN: Final = "MultiscaleDeformableAttnPlugin_TRT"
"""Operator that TensorRT has for deformable attention; nothing else runs it."""


@contextmanager
def sized_rules(opset: int) -> Iterator[None]:
    """How the exporter writes what would else lose its sizes.

    Only axis 0 is free, and only it ever holds the images: so a reshape may name all other sizes as numbers, and -1 for axis 0.
    """
    rules: dict[str, Callable[..., Any]] = {
        "aten::flatten": _write_reshape,
        "aten::unflatten": _write_reshape,
        "aten::reshape": _write_reshape,
        "aten::view": _write_reshape,
        "aten::pad": _write_pad,
        "aten::upsample_bilinear2d": _write_resize,
    }
    exporter: Any = torch.onnx  # not listed among its public names
    with ExitStack() as stack:
        for name, rule in rules.items():
            exporter.register_custom_op_symbolic(name, rule, opset)
            stack.callback(exporter.unregister_custom_op_symbolic, name, opset)
        yield


def _traced_sizes(g: Any) -> list[int]:
    """Of what the traced operation returns."""
    return list(g.original_node.output().type().sizes())


def _numbers(g: Any, values: Sequence[int]) -> Any:
    return g.op("Constant", value_t=torch.tensor(values, dtype=torch.int64))


def _sized(out: Any, source: Any, sizes: Sequence[int | None]) -> Any:
    out.setType(source.type().with_sizes(list(sizes)))
    return out


def _write_reshape(g: Any, source: Any, *_: Any) -> Any:
    sizes = _traced_sizes(g)[1:]
    return _sized(g.op("Reshape", source, _numbers(g, [-1, *sizes])), source, [None, *sizes])


def _write_pad(g: Any, source: Any, pads: Any, *_: Any) -> Any:
    """Zeros on the sides of the last two axes; ``pads`` is left, right, top, bottom."""
    node = pads.node()
    given = (
        node.t("value").tolist() if node.kind() == "onnx::Constant" else [each.node().t("value").item() for each in node.inputs()]
    )
    left, right, top, bottom = (int(each) for each in given)
    padded = g.op("Pad", source, _numbers(g, [0, 0, top, left, 0, 0, bottom, right]), mode_s="constant")
    return _sized(padded, source, [None, *_traced_sizes(g)[1:]])


def _write_resize(g: Any, source: Any, _: Any, align_corners: Any, *__: Any) -> Any:
    sizes = _traced_sizes(g)[1:]
    lead = g.op("Slice", g.op("Shape", source), _numbers(g, [0]), _numbers(g, [1]))
    whole = g.op("Concat", lead, _numbers(g, sizes), axis_i=0)
    empty = g.op("Constant", value_t=torch.tensor([], dtype=torch.float32))
    aligned = bool(align_corners.node().t("value").item())
    out = g.op(
        "Resize",
        source,
        empty,
        empty,
        whole,
        coordinate_transformation_mode_s="align_corners" if aligned else "half_pixel",
        mode_s="linear",
    )
    return _sized(out, source, [None, *sizes])


class _Plugin(torch.autograd.Function):
    """Deformable attention as one node of the graph; outside of an export it is not used."""

    @staticmethod
    def forward(_: Any, value: Tensor, sizes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        shapes = [(int(height), int(width)) for height, width in sizes.tolist()]
        return _grid_sampled(value, shapes, locations, weights)

    @staticmethod
    def symbolic(g: Any, value: Any, sizes: Any, starts: Any, locations: Any, weights: Any) -> Any:
        out = g.op(f"{DOMAIN}::{PLUGIN}", value, sizes, starts, locations, weights)
        return _sized(out, value, [None, None, None])


_grid_sampled = deformable.deformable_attention


def _plugin_attention(value: Tensor, sizes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """As ``deformable_attention``, by the plugin, which reads the sizes and the first token of every level as int32."""
    starts = [sum(height * width for height, width in sizes[:level]) for level in range(len(sizes))]
    tables = [torch.tensor(table, dtype=torch.int32, device=value.device) for table in (list(sizes), starts)]
    seen = cast(Tensor, _Plugin.apply(value, *tables, locations, weights))  # type: ignore[no-untyped-call]
    return seen.reshape(-1, int(locations.shape[1]), int(value.shape[2]) * int(value.shape[3]))  # some give heads an axis


@contextmanager
def swapped_attention() -> Iterator[None]:
    """Deformable attention by TensorRT's plugin, while a model is traced."""
    deformable.deformable_attention = _plugin_attention
    try:
        yield
    finally:
        deformable.deformable_attention = _grid_sampled
