"""Texture lookup."""

from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from scenemill.schemas.errors import ConfigError
from scenemill.trainers.render.rasterization import in_float32

REACH: Final = {"nearest": 0, "bilinear": 1, "bicubic": 2}
"""By mode, how many texels beyond the border a lookup within the texture may touch."""


def texture_mapping(texture_coordinates: Tensor, texture_maps: Tensor, mode: str = "nearest", *, wrap: str = "clamp") -> Tensor:
    """Textures at coordinates.

    Args:
        texture_coordinates: (B, h, w, 2) or (B, N, 2), u right and v up: (0, 0) is the lower left corner of the texture, (1, 1) the
            upper right one; texel centres lie half a texel within.
        texture_maps: (B, C, Ht, Wt), the first row on top.
        mode: "nearest", "bilinear" or "bicubic".
        wrap: beyond [0, 1] "clamp" goes on with the border, as Kaolin; "repeat" begins anew.

    Returns:
        (B, h, w, C) or (B, N, C), with gradients to both; on CUDA torch has no deterministic form of them.

    Raises:
        ConfigError: an unknown mode or wrap, or shapes, dtypes or devices that do not fit.

    Source: ``kaolin.render.mesh.texture_mapping`` 0.18; ``wrap`` is ours.

    >>> texture = torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]])
    >>> texture_mapping(torch.tensor([[[0.0, 0.0], [1.0, 1.0], [0.5, 0.5]]]), texture, "bilinear").flatten().tolist()
    [2.0, 1.0, 1.5]
    """
    _check(texture_coordinates, texture_maps, mode, wrap)
    batch, channels = texture_maps.shape[:2]
    places, textures = in_float32(texture_coordinates).reshape(batch, 1, -1, 2), in_float32(texture_maps)
    if wrap == "clamp":
        places = places.clamp(0, 1)
    else:
        places, textures = _repeated(places - places.floor(), textures, REACH[mode])
    grid = torch.stack([2 * places[..., 0] - 1, 1 - 2 * places[..., 1]], dim=-1)
    found = functional.grid_sample(textures, grid, mode=mode, padding_mode="border", align_corners=False)
    return found.movedim(1, -1).reshape(*texture_coordinates.shape[:-1], channels).to(texture_maps.dtype)


def _repeated(places: Tensor, textures: Tensor, reach: int) -> tuple[Tensor, Tensor]:
    """Textures with what follows beyond their borders, and the same places there; places in [0, 1)."""
    rows, columns = (torch.arange(-reach, size + reach, device=textures.device) % size for size in textures.shape[2:])
    wide = textures.index_select(2, rows).index_select(3, columns)
    size = torch.tensor(textures.shape[:1:-1], dtype=places.dtype, device=places.device)
    return (places * size + reach) / (size + 2 * reach), wide


def _check(coordinates: Tensor, textures: Tensor, mode: str, wrap: str) -> None:
    if mode not in REACH:
        raise ConfigError(f"mode {mode!r}: give one of {', '.join(map(repr, REACH))}")
    if wrap not in ("clamp", "repeat"):
        raise ConfigError(f"wrap {wrap!r}: give 'clamp' or 'repeat'")
    if coordinates.ndim not in (3, 4) or coordinates.shape[-1] != 2 or textures.ndim != 4 or len(coordinates) != len(textures):
        raise ConfigError(
            f"texture_coordinates {tuple(coordinates.shape)} and texture_maps {tuple(textures.shape)}: expected (B, h, w, 2) or "
            "(B, N, 2), and (B, C, Ht, Wt)"
        )
    if in_float32(coordinates).dtype != in_float32(textures).dtype or coordinates.device != textures.device:
        kinds = f"{coordinates.dtype} on {coordinates.device} and {textures.dtype} on {textures.device}"
        raise ConfigError(f"texture_coordinates and texture_maps are {kinds}: give both in one floating dtype, on one device")
