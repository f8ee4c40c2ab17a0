"""Sums and maxima over linked rows, and their gradients.

A convolution gathers, for some rows at a time, what they are linked to, side by side, and multiplies that with the stacked weights:
one gather and one product. Where far fewer channels come out than come in, it multiplies first. Its gradients gather what came back,
once, along the reverse links: one product is the gradient of the features, another that of the weights. Nothing is scattered, so
every sum is taken in the same order in every run. What is gathered at a time stays in a cache: memory grows with the voxels, not with
voxels times offsets.

Source: the sparse operators of NvPanoptix3D as described in its fact sheet; the method is our own.
"""

from collections.abc import Iterator
from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional

from scenemill.schemas.errors import ConfigError
from scenemill.trainers.nvpanoptix3d.sparse_links import Links, Part

THREAD_BYTES: Final = 2**21
DEVICE_BYTES: Final = 2**28
"""How much is gathered at a time: for each thread about a core's cache; on other devices enough to keep them busy."""

NARROWER: Final = 8
"""How many times fewer channels must come out than come in for rows to be multiplied before they are gathered."""

OFFSETS: Final = 9
"""How many offsets they are then multiplied with at a time."""


def convolve(features: Tensor, weight: Tensor, links: Links) -> Tensor:
    """The sum over a kernel's offsets of linked rows times weights.

    Args:
        features: (N, C) floating point. Under autocast the products, and what comes out, are of its type.
        weight: (K, C, out), a matrix per offset. Its gradient adds up in its own type.
        links: of N rows that come in.

    Returns:
        (M, out), M rows as in the links.

    Raises:
        ConfigError: the kernel takes another number of channels.
    """
    if features.shape[1] != weight.shape[1]:
        raise ConfigError(f"features have {features.shape[1]} channels, the kernel takes {weight.shape[1]}; change one of them")
    dtype, device = features.dtype, features.device.type
    if torch.is_autocast_enabled(device) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
    out: Tensor = _Convolution.apply(features, weight, links, dtype)  # type: ignore[no-untyped-call]
    return out


def pool(features: Tensor, links: Links) -> Tensor:
    """The largest of linked rows, channel by channel; every row that comes out has at least one.

    Args:
        features: (N, C) floating point.
        links: of N rows that come in.

    Returns:
        (M, C), M rows as in the links. The gradient goes to the first of equal values.
    """
    out: Tensor = _Pool.apply(features, links)  # type: ignore[no-untyped-call]
    return out


class _Convolution(Function):
    """Products are of type ``dtype``; gradients are of the type of what they belong to."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, links: Links, dtype: torch.dtype) -> Tensor:
        ctx.links, ctx.dtype = links, features.dtype
        features = features.to(dtype)
        ctx.save_for_backward(features, weight)
        with torch.autocast(features.device.type, enabled=False):
            padded, weight = _with_row(features, 0), weight.to(dtype)
            out = features.new_empty((links.outputs, weight.shape[2]))
            for part in links.forward:
                products = _narrowed if _is_narrower(padded, part, weight) else _products
                rows = _rows_of(out, part)
                products(padded, part, weight, rows)
                _put(out, part, rows)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        features, weight = ctx.saved_tensors
        of_features, of_weight = torch.empty_like(features), torch.empty_like(weight)
        with torch.autocast(features.device.type, enabled=False):
            padded, turned = _with_row(gradient.to(features.dtype), 0), weight.to(features.dtype).transpose(1, 2)
            for part in ctx.links.backward:
                own, rows = _own(features, part), _rows_of(of_features, part)
                of_weight[part.offsets[:, 0]] = _reverse_products(padded, part, turned, own, rows, weight.dtype)
                _put(of_features, part, rows)
        return of_features.to(ctx.dtype), of_weight, None, None


def _products(padded: Tensor, part: Part, weight: Tensor, rows: Tensor) -> None:
    """To ``rows``, (n, s * out), those of a part."""
    stacked = _stacked(weight, part.offsets)
    for span, gathered in _chunks(padded, part.sources):
        torch.mm(gathered.flatten(1), stacked, out=rows[span])


def _is_narrower(padded: Tensor, part: Part, weight: Tensor) -> bool:
    """Whether few enough channels come out that it pays to multiply first and gather then."""
    rows, (_, repeated) = len(part.sources), part.offsets.shape
    return rows * weight.shape[1] >= NARROWER * len(padded) * repeated * weight.shape[2]


def _narrowed(padded: Tensor, part: Part, weight: Tensor, rows: Tensor) -> None:
    """The same as ``_products``, by sums of rows that are multiplied already: with a few offsets at a time, for memory."""
    rows.zero_()
    for start in range(0, len(part.offsets), OFFSETS):
        offsets, sources = part.offsets[start : start + OFFSETS], part.sources[:, start : start + OFFSETS]
        multiplied = padded @ weight[offsets].permute(2, 0, 1, 3).flatten(1)
        places = sources * len(offsets) + torch.arange(len(offsets), dtype=sources.dtype, device=sources.device)
        rows += functional.embedding_bag(places, multiplied.view(-1, rows.shape[1]), mode="sum")


def _reverse_products(padded: Tensor, part: Part, turned: Tensor, own: Tensor, rows: Tensor, dtype: torch.dtype) -> Tensor:
    """To ``rows``, (n, C), the gradient of features; what comes out is that of the weights of a part's offsets.

    Args:
        padded: (M + 1, out), the gradient that came back, and zeros.
        part: of the reverse links.
        turned: (K, out, C), the weights.
        own: (n, C), the features of the part's rows.
        rows: see above.
        dtype: in which the gradient of the weights adds up.

    Returns:
        (m, C, out).
    """
    stacked = _stacked(turned, part.offsets)
    slopes = torch.zeros_like(stacked, dtype=dtype)
    for span, gathered in _chunks(padded, part.sources):
        torch.mm(gathered.flatten(1), stacked, out=rows[span])
        slopes += gathered.flatten(1).T @ own[span]
    return slopes.view(len(part.offsets), -1, own.shape[1]).transpose(1, 2)


class _Pool(Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, links: Links) -> Tensor:
        (part,) = links.forward
        padded = _with_row(features, -torch.inf)
        out = features.new_empty((links.outputs, features.shape[1]))
        offset = torch.empty_like(out, dtype=torch.uint8)
        for span, gathered in _chunks(padded, part.sources):
            out[span], offset[span] = gathered.max(dim=1)
        ctx.links = links
        ctx.save_for_backward(offset)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (offset,) = ctx.saved_tensors
        padded, offset = _with_row(gradient, 0), _with_row(offset, 0)
        of_features = gradient.new_empty((ctx.links.inputs, gradient.shape[1]))
        for part in ctx.links.backward:
            rows = _rows_of(of_features, part).zero_()
            for sources, number in zip(part.sources.unbind(dim=1), part.offsets[:, 0], strict=True):
                rows += torch.where(offset.index_select(0, sources) == number, padded.index_select(0, sources), 0)
            _put(of_features, part, rows)
        return of_features, None


def _with_row(features: Tensor, value: float) -> Tensor:
    """One more row, all ``value``, for what is not there: (N, C) -> (N + 1, C)."""
    return torch.cat([features, features.new_full((1, features.shape[1]), value)])


def _stacked(weight: Tensor, offsets: Tensor) -> Tensor:
    """Weights of offsets (m, s), those of a column below those of the column before: (K, C, out) -> (m * C, s * out)."""
    return weight[offsets].transpose(1, 2).flatten(2).flatten(0, 1)


def _chunks(padded: Tensor, sources: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """For some rows (n, m) of sources at a time: which, and (n, m, C) what they are linked to."""
    count, columns = sources.shape
    budget = THREAD_BYTES * torch.get_num_threads() if padded.device.type == "cpu" else DEVICE_BYTES
    size = max(1, budget // max(1, columns * padded.shape[1] * padded.element_size()))
    for start in range(0, count, size):
        some = sources[start : start + size]
        yield slice(start, start + size), padded.index_select(0, some.flatten()).view(*some.shape, -1)


def _own(features: Tensor, part: Part) -> Tensor:
    """(n, C): the features of a part's rows, s = 1."""
    return features if part.targets is None else features.index_select(0, part.targets[:, 0])


def _rows_of(out: Tensor, part: Part) -> Tensor:
    """(n, s * C), where a part's rows are computed: in place if they are all there is."""
    return out if part.targets is None else out.new_empty((len(part.targets), part.targets.shape[1] * out.shape[1]))


def _put(out: Tensor, part: Part, rows: Tensor) -> None:
    """The rows of a part to their places in ``out``, (., C)."""
    if part.targets is not None:
        out.index_copy_(0, part.targets.flatten(), rows.view(-1, out.shape[1]))
