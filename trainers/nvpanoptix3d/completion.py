"""Stage 2: from features of voxels to distance, occupancy and a mask per query, on three grids from coarse to fine.

A U-Net. Its two fine levels hold only the cells that are there, its three coarse ones all of them. On the way up each level says
which cells are occupied, and only those are refined on the next.

    full grid        encoded inputs, 4f        generative decoder, o -> occupancy, masks, distance
    half             encoder, f  ------------> generative decoder, 2f -> occupancy; masks of all that goes on, 3f
    quarter          encoder, 2f ------------> dense decoder, 4f -> occupancy, masks
    1/8, 1/16, 1/32  dense encoders, 4f, 8f, 8f, and their decoders

with f = ``unet_features`` and o = ``unet_output_channels``. In the lists of heads index 0 is the full grid, 1 half, 2 a quarter.

Source: NvPanoptix3D, which takes it from Uni-3D (Zhang et al. 2023); names of parameters as in the released weights.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from scenemill.schemas.errors import ConfigError
from scenemill.trainers.nvpanoptix3d.dense_layers import DenseBlock, dense_decoder, dense_encoder
from scenemill.trainers.nvpanoptix3d.sparse import SparseTensor, add_union, concat_union, from_dense, inside, prune, to_dense
from scenemill.trainers.nvpanoptix3d.sparse_layers import GenerativeConv, RowLinear, RowNorm, RowReLU, SparseBlock, SubmanifoldConv

LIFTED: Final = 3
"""Channels of a lifted row beside the classes: occupancy, and sign and size of a distance."""

STRIDES: Final = (1, 2, 4, 8)
"""Of the grids whose features come in: always the full one, and the other three with ``use_multi_scale``."""

COARSEST: Final = 32
"""Cells of the full grid per cell of the coarsest, a side."""


class CompletionOutput(NamedTuple):
    """What stage 2 says of B samples, with Q queries, on a grid of D cells a side.

    The rows of masks on the half grid are all that go on to the full grid: what is occupied, and what its encoder has. On the full
    grid they are the rows of ``geometry``.

    Attributes:
        geometry: (N, 1) distance to the nearest surface in voxels, 0 to the truncation, where the full grid is occupied.
        occupancies: logits; quarter grid (B, 1, D/4, D/4, D/4), minus infinity outside the frustum; half and full grid (N, 1) on
            all decoded rows in the grid, before those that are not occupied are left out.
        masks: logits; quarter grid (B, Q, D/4, D/4, D/4), minus infinity outside the frustum; half and full grid (N, Q).
    """

    geometry: SparseTensor
    occupancies: tuple[Tensor, SparseTensor, SparseTensor]
    masks: tuple[Tensor, SparseTensor, SparseTensor]


def quarter_frustum(mask: Tensor) -> Tensor:
    """The frustum on the quarter grid: a cell is in it where any of the first two cells a side of its four is.

    Args:
        mask: (B, D, D, D) bool, D a multiple of 4.

    Returns:
        (B, D/4, D/4, D/4) bool: the maximum over windows of 2 cells at every fourth cell.
    """
    mask = mask[:, ::4] | mask[:, 1::4]
    mask = mask[:, :, ::4] | mask[:, :, 1::4]
    return mask[..., ::4] | mask[..., 1::4]


def likely(logits: Tensor) -> Tensor:
    """(...) logits -> (...) bool: where the probability is above one half.

    In float32, for halved precision would round those that are barely above down to it.
    """
    return logits.float().sigmoid() > 0.5


def occupied_rows(logits: SparseTensor, within: Tensor, samples: int) -> Tensor:
    """Which rows go on to the next level: those in the grid that are likely occupied.

    A sample that would have none goes on with all its rows in the grid, and if it has none of these, with all its rows: the layers
    that follow then say something that a loss can correct. Each sample for itself, so that none depends on its batch.

    Args:
        logits: (N, 1) of occupancy.
        within: (N,) bool, in the grid.
        samples: B.

    Returns:
        (N,) bool.
    """
    sample = logits.coords[:, 0]
    keep = likely(logits.features[:, 0]) & within
    for otherwise in (within, torch.ones_like(within)):
        count = torch.zeros(samples, dtype=torch.int64, device=keep.device).index_add(0, sample, keep.long())
        keep = keep | (otherwise & (count == 0)[sample])
    return keep


def mask_logits(embedded: SparseTensor, queries: Tensor) -> SparseTensor:
    """The product of every row with every query of its sample.

    Args:
        embedded: (N, C), rows sorted by sample.
        queries: (B, Q, C).

    Returns:
        (N, Q) on the same rows.
    """
    counts = torch.bincount(embedded.coords[:, 0], minlength=len(queries)).tolist()
    products = [rows @ query.T for rows, query in zip(torch.split(embedded.features, counts), queries, strict=True)]
    # the largest tensor of all: one sample's needs no second copy
    return embedded.with_features(products[0] if len(products) == 1 else torch.cat(products))


def _level_encoders(inputs: int, f: int) -> nn.ModuleList:
    """To the half, quarter, 1/8, 1/16 and 1/32 grid: the first two sparse, a block that halves and one that keeps the grid."""
    sparse = [nn.Sequential(SparseBlock(width, out, stride=2), SparseBlock(out, out)) for width, out in ((inputs, f), (f, 2 * f))]
    return nn.ModuleList([*sparse, dense_encoder(2 * f, 4 * f), dense_encoder(4 * f, 8 * f), dense_encoder(8 * f, 8 * f)])


def _level_decoders(f: int, out: int) -> nn.ModuleList:
    """To the full, half, quarter, 1/8 and 1/16 grid; what comes in is what was encoded there beside what was decoded."""
    full = nn.Sequential(GenerativeConv(3 * f, out), RowNorm(), RowReLU())
    half = nn.Sequential(GenerativeConv(6 * f, 2 * f), RowNorm(), RowReLU(), SparseBlock(2 * f, 2 * f))
    dense = [dense_decoder(width, narrow) for width, narrow in ((8 * f, 2 * f), (16 * f, 4 * f), (8 * f, 8 * f))]
    return nn.ModuleList([full, half, *dense])


def _normed_block(width: int, *layers: nn.Module) -> nn.Sequential:
    """Norm, ReLU and a block over the rows of the full grid, and what follows."""
    return nn.Sequential(RowNorm(), RowReLU(), SparseBlock(width, width), *layers)


class Completion(nn.Module):
    """The network of stage 2 behind the lifting; at full size its keys and shapes are those of the released weights.

    Names and defaults of arguments are those of ``model`` in a specification file.

    Args:
        grid_dimensions: D, cells of the full grid a side, a multiple of 32 from 64.
        truncation: no distance is larger, voxels.
        unet_features: f, the width of the decoder.
        unet_output_channels: o, the width of its output.
        use_multi_scale: whether features enter on the half, quarter and eighth grid too, by way of ``feature_adapters``.
        sign_channel: whether a projected distance is two channels, its sign and its size, not one.
        mask_dim, depth_dim: of the projected mask and depth features.
        num_classes: C, of the projected classes; a lifted row has C + 3 channels.
        convs_dim: of the features of other scales, which have a lifted row beside them.
        hidden_dim: of the queries.
        recompute: True to recompute activations of the sparse layers in the backward pass in place of keeping them.

    Attributes:
        input_widths: channels of the four parts of a row, in this order: distance, mask and depth features, classes, lifted.

    Raises:
        ConfigError: the grid cannot be halved five times with more than one cell a side left.
    """

    def __init__(
        self,
        *,
        grid_dimensions: int = 256,
        truncation: float = 3.0,
        unet_features: int = 16,
        unet_output_channels: int = 16,
        use_multi_scale: bool = False,
        sign_channel: bool = True,
        mask_dim: int = 256,
        depth_dim: int = 256,
        num_classes: int = 13,
        convs_dim: int = 256,
        hidden_dim: int = 256,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        if grid_dimensions % COARSEST or grid_dimensions < 2 * COARSEST:
            raise ConfigError(f"grid_dimensions {grid_dimensions}: allowed are multiples of {COARSEST} from {2 * COARSEST}")
        self.grid, self.truncation, self.recompute = grid_dimensions, truncation, recompute
        lifted, f, out = num_classes + LIFTED, unet_features, unet_output_channels
        self.input_widths = (1 + sign_channel, mask_dim + depth_dim, num_classes, lifted)
        self.input_encoders = nn.ModuleList(SparseBlock(width, f, shortcut=True) for width in self.input_widths)
        self.level_encoders = _level_encoders(len(self.input_widths) * f, f)
        self.feature_adapters = nn.ModuleList(
            nn.Sequential(SparseBlock(convs_dim + lifted, width, shortcut=True))
            for width in ((f, 2 * f, 4 * f) if use_multi_scale else ())
        )
        self.level_decoders = _level_decoders(f, out)
        self.level_occupancy_heads = nn.ModuleList(
            [_normed_block(out, SubmanifoldConv(out, 1, bias=True)), RowLinear(2 * f, 1), nn.Linear(4 * f, 1)]
        )
        dense_embedding = nn.Sequential(DenseBlock(4 * f, 4 * f), DenseBlock(4 * f, 4 * f))
        self.level_segm_embeddings = nn.ModuleList([_normed_block(out), SparseBlock(3 * f, 3 * f), dense_embedding])
        self.level_segm_query_projection = nn.ModuleList(nn.Linear(hidden_dim, width) for width in (out, 3 * f, 4 * f))
        self.geometry_head = _normed_block(out, SubmanifoldConv(out, 1, bias=True))

    def forward(
        self, features: SparseTensor, multi_scale: Sequence[SparseTensor] | None, queries: Tensor, frustum_mask: Tensor
    ) -> CompletionOutput:
        """Distance, occupancy and masks of B samples.

        Rows are unique and sorted by sample, x, y, z; those outside the grid are legal.

        Args:
            features: stride 1, the parts of ``input_widths`` side by side.
            multi_scale: strides 2, 4 and 8, convs_dim + C + 3 channels each; None without ``use_multi_scale``.
            queries: (B, Q, hidden_dim).
            frustum_mask: (B, D, D, D) bool, x, y, z as in the rows.

        Raises:
            ConfigError: a shape is another, or features of other scales are missing, or not expected.
        """
        scales = multi_scale or ()
        self._check(features, scales, queries, frustum_mask)
        half, quarter, volumes = self._encode(features, scales, len(queries))
        volume = self._decode_dense(volumes)
        quarter_occupancy, quarter_masks, kept = self._say_quarter(volume, queries, quarter_frustum(frustum_mask))
        half_occupancy, kept = self._grow(1, concat_union(quarter, kept), len(queries))
        kept = concat_union(half, kept)
        half_masks = self._masks(1, kept, queries)
        full_occupancy, kept = self._grow(0, self._in_grid(kept), len(queries))
        distance = self._in_grid(self._run(self.geometry_head, kept))
        return CompletionOutput(
            geometry=distance.with_features(distance.features.clamp(0, self.truncation)),
            occupancies=(quarter_occupancy, half_occupancy, full_occupancy),
            masks=(quarter_masks, half_masks, self._masks(0, kept, queries)),
        )

    def _check(self, features: SparseTensor, scales: Sequence[SparseTensor], queries: Tensor, frustum_mask: Tensor) -> None:
        strides, expected = [each.stride for each in (features, *scales)], STRIDES[: 1 + len(self.feature_adapters)]
        if strides != list(expected):
            raise ConfigError(f"rows of strides {strides}: expected {list(expected)}; use_multi_scale takes more than 1")
        if features.features.shape[1] != sum(self.input_widths):
            raise ConfigError(f"rows of {features.features.shape[1]} channels: expected {self.input_widths} side by side")
        cells = (len(queries), *[self.grid] * 3)
        if frustum_mask.shape != cells or frustum_mask.dtype != torch.bool:
            raise ConfigError(f"frustum_mask {tuple(frustum_mask.shape)} {frustum_mask.dtype}: expected {cells} torch.bool")

    def _encode(
        self, features: SparseTensor, scales: Sequence[SparseTensor], samples: int
    ) -> tuple[SparseTensor, SparseTensor, list[Tensor]]:
        """What the encoders make of rows: on the half grid, on the quarter grid, and dense from the quarter grid down."""
        half = self._encode_rows(0, self._encode_inputs(features), scales)
        quarter = self._encode_rows(1, half, scales)
        dense = self._to_dense(quarter, samples)
        eighth = self.level_encoders[2](dense)
        if scales:
            eighth = eighth + self._to_dense(self._run(self.feature_adapters[2], scales[2]), samples)
        sixteenth = self.level_encoders[3](eighth)
        return half, quarter, [dense, eighth, sixteenth, self.level_encoders[4](sixteenth)]

    def _encode_inputs(self, features: SparseTensor) -> SparseTensor:
        """Every part of the rows to f channels, side by side."""
        parts = torch.split(features.features, list(self.input_widths), dim=1)
        encoded = [
            self._run(encoder, features.with_features(part)).features
            for encoder, part in zip(self.input_encoders, parts, strict=True)
        ]
        return features.with_features(torch.cat(encoded, dim=1))

    def _encode_rows(self, level: int, rows: SparseTensor, scales: Sequence[SparseTensor]) -> SparseTensor:
        encoded = self._run(self.level_encoders[level], rows)
        return add_union(encoded, self._run(self.feature_adapters[level], scales[level])) if scales else encoded

    def _decode_dense(self, volumes: Sequence[Tensor]) -> Tensor:
        """Back from the coarsest volume to the quarter grid; after each step beside what was encoded there: 4f channels."""
        volume = volumes[-1]
        for level, encoded in zip((4, 3, 2), reversed(volumes[:-1]), strict=True):
            volume = torch.cat([encoded, self.level_decoders[level](volume)], dim=1)
        return volume

    def _say_quarter(self, volume: Tensor, queries: Tensor, frustum: Tensor) -> tuple[Tensor, Tensor, SparseTensor]:
        """Occupancy and masks on the quarter grid, and the cells that go on."""
        occupancy = self.level_occupancy_heads[2](volume.movedim(1, -1)).movedim(-1, 1)
        embedded = self.level_segm_embeddings[2](volume)
        masks = torch.einsum("bqc,bcxyz->bqxyz", self.level_segm_query_projection[2](queries), embedded)
        outside = ~frustum[:, None]
        kept = from_dense(volume, likely(occupancy[:, 0]) & frustum, 4)
        return occupancy.masked_fill(outside, -torch.inf), masks.masked_fill(outside, -torch.inf), kept

    def _grow(self, level: int, rows: SparseTensor, samples: int) -> tuple[SparseTensor, SparseTensor]:
        """Rows decoded to the next finer grid: what is said of their occupancy, in the grid, and the rows that go on."""
        decoded = self._run(self.level_decoders[level], rows)
        occupancy = self._run(self.level_occupancy_heads[level], decoded)
        kept = occupied_rows(occupancy, self._within(occupancy), samples)
        return self._in_grid(occupancy), prune(decoded, kept)

    def _masks(self, level: int, rows: SparseTensor, queries: Tensor) -> SparseTensor:
        embedded = self._in_grid(self._run(self.level_segm_embeddings[level], rows))
        return mask_logits(embedded, self.level_segm_query_projection[level](queries))

    def _within(self, rows: SparseTensor) -> Tensor:
        return inside(rows, self.grid // rows.stride)

    def _in_grid(self, rows: SparseTensor) -> SparseTensor:
        return prune(rows, self._within(rows))

    def _to_dense(self, rows: SparseTensor, samples: int) -> Tensor:
        return to_dense(rows, samples, self.grid // rows.stride)

    def _run(self, part: nn.Module, rows: SparseTensor) -> SparseTensor:
        """A part of the network over rows; see ``recompute``."""
        done: SparseTensor
        if self.recompute and torch.is_grad_enabled():
            # nothing here is random, so the generator's state need not be kept
            done = checkpoint(part, rows, use_reentrant=False, preserve_rng_state=False)
        else:
            done = part(rows)
        return done
