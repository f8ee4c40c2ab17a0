"""Stage 1: from one RGB image to instance masks, classes, depth and occupancy planes."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from scenemill.schemas.experiment import ModelConfig
from scenemill.trainers.nvpanoptix3d.aggregator import Aggregator, prepare_images
from scenemill.trainers.nvpanoptix3d.blocks import checkpoint_blocks
from scenemill.trainers.nvpanoptix3d.camera import CameraHead
from scenemill.trainers.nvpanoptix3d.deformable import map_size
from scenemill.trainers.nvpanoptix3d.dpt import DepthHead, PixelHead
from scenemill.trainers.nvpanoptix3d.occupancy import OccupancyHead
from scenemill.trainers.nvpanoptix3d.pixel_decoder import STRIDES, PixelDecoder
from scenemill.trainers.nvpanoptix3d.projector import DepthProjector
from scenemill.trainers.nvpanoptix3d.query_decoder import QueryDecoder, QueryPrediction

FROZEN = ("backbone.aggregator", "backbone.camera_head")
"""Parts that are never trained: they run without gradients, in evaluation mode."""


class Features(NamedTuple):
    """What the backbone makes of B images.

    Attributes:
        pixel: res2 to res5, (B, C, h, w) each, fine to coarse.
        depth: (B, 1, H', W') float32, metres.
        depth_maps: o1 to o4, (B, dpt_features, h, w) each, fine to coarse.
        pose: (B, 9) translation, quaternion and field of view; nothing downstream reads it. None unless asked for.
    """

    pixel: tuple[Tensor, ...]
    depth: Tensor
    depth_maps: Sequence[Tensor]
    pose: Tensor | None


class Stage1Output(NamedTuple):
    """What stage 1 says of B images, with Q queries and C classes.

    Attributes:
        pred_logits: (B, Q, C + 1); the last is "no object".
        pred_masks: (B, Q, h, w) logits, a quarter of the backbone's image.
        pred_depths: (B, 1, H', W') metres.
        occupancy_preds: (B, S, height, width) logits.
        aux_outputs: classes and masks before each layer of the decoder.
        segm_decoder_out: (B, Q, hidden_dim) queries.
        mask_features: (B, mask_dim, h, w).
        enc_features: of the pixel decoder, coarse to fine.
        depth_features: (B, dpt_features, h', w') the depth head's coarsest map.
    """

    pred_logits: Tensor
    pred_masks: Tensor
    pred_depths: Tensor
    occupancy_preds: Tensor
    aux_outputs: list[QueryPrediction]
    segm_decoder_out: Tensor
    mask_features: Tensor
    enc_features: list[Tensor]
    depth_features: Tensor


class Backbone(nn.Module):
    """VGGT with two heads: depth as it comes, and a pyramid of features in its place of a convolutional network's.

    Args:
        config: ``model`` of an experiment.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        held = config.backbone
        self.input_width, self.size_divisibility = held.input_width, config.mask_former.size_divisibility
        self.taps = tuple(held.tap_layers)
        self.aggregator = Aggregator(held.embed_dim, held.num_heads, held.depth, held.patch_depth, held.patch_heads, held.pos_grid)
        self.camera_head = CameraHead(2 * held.embed_dim, held.num_heads, held.camera_depth)
        self.depth_head = DepthHead(held.embed_dim, held.dpt_features, held.dpt_channels)
        self.dpt2pixeldecoder = PixelHead(held.embed_dim, held.pixel_channels)

    def forward(self, images: Tensor, *, with_pose: bool = False) -> Features:
        """Features of (B, 3, H, W) images, 0..255."""
        prepared = prepare_images(images, size_divisibility=self.size_divisibility, input_width=self.input_width)
        size = map_size(prepared)
        with torch.no_grad():
            layers = (*self.taps, len(self.aggregator.frame_blocks) - 1) if with_pose else self.taps
            tokens = self.aggregator(prepared, taps=layers)
            pose = self.camera_head(tokens[-1])[-1][:, 0] if with_pose else None
        taps = tokens[: len(self.taps)]
        depth = self.depth_head(taps, size)
        return Features(self.dpt2pixeldecoder(taps, size), depth.depth, depth.features, pose)


class SemSegHead(nn.Module):
    """From features to masks, classes and occupancy planes.

    Args:
        config: ``model`` of an experiment.
        planes_size: (height, width) of the occupancy planes.
    """

    def __init__(self, config: ModelConfig, planes_size: tuple[int, int]) -> None:
        super().__init__()
        head, former, backbone = config.sem_seg_head, config.mask_former, config.backbone
        self.pixel_decoder = PixelDecoder(
            dict(zip(STRIDES, backbone.pixel_channels, strict=True)),
            convs_dim=head.convs_dim,
            mask_dim=head.mask_dim,
            transformer_enc_layers=head.transformer_enc_layers,
            nheads=former.nheads,
            dim_feedforward=former.transformer_dim_feedforward,
            dropout=former.dropout,
            norm=head.norm,
            common_stride=head.common_stride,
            deformable_transformer_encoder_in_features=head.deformable_transformer_encoder_in_features,
        )
        self.predictor = QueryDecoder(
            convs_dim=head.convs_dim,
            hidden_dim=former.hidden_dim,
            num_classes=head.num_classes,
            num_object_queries=former.num_object_queries,
            nheads=former.nheads,
            dim_feedforward=former.dim_feedforward,
            dec_layers=former.dec_layers,
            mask_dim=head.mask_dim,
            depth_dim=head.depth_dim,
            pre_norm=former.pre_norm,
        )
        self.occupancy_module = OccupancyHead(backbone.pixel_channels, config.mp_occ.num_planes, planes_size)
        self.depth_projector = DepthProjector(backbone.dpt_features, head.convs_dim)

    def forward(self, features: Features) -> Stage1Output:
        """What the head makes of the backbone's features."""
        decoded = self.pixel_decoder(dict(zip(STRIDES, features.pixel, strict=True)))
        sizes = [(level.shape[-2], level.shape[-1]) for level in decoded.enc_features]
        found = self.predictor(decoded.enc_features, decoded.mask_features, self.depth_projector(features.depth_maps, sizes))
        return Stage1Output(
            pred_logits=found.pred_logits,
            pred_masks=found.pred_masks,
            pred_depths=features.depth,
            occupancy_preds=self.occupancy_module(features.pixel),
            aux_outputs=found.aux_outputs,
            segm_decoder_out=found.segm_decoder_out,
            mask_features=decoded.mask_features,
            enc_features=decoded.enc_features,
            depth_features=features.depth_maps[-1],
        )


class Stage1(nn.Module):
    """The network of stage 1; at full size its keys and shapes are those of the released weights.

    Args:
        config: ``model`` of an experiment.
        planes_size: (height, width) of the occupancy planes: ``dataset.depth_size``.
        recompute: True to recompute activations in the backward pass in place of keeping them.
    """

    def __init__(self, config: ModelConfig, planes_size: tuple[int, int], *, recompute: bool = False) -> None:
        super().__init__()
        self.backbone = Backbone(config)
        self.sem_seg_head = SemSegHead(config, planes_size)
        self.sem_seg_head.pixel_decoder.transformer.recompute = recompute
        checkpoint_blocks(self, recompute)
        for path in FROZEN:
            self.get_submodule(path).requires_grad_(False)

    def forward(self, images: Tensor) -> Stage1Output:
        """What the network says of (B, 3, H, W) images, 0..255, uint8 or float32."""
        found: Stage1Output = self.sem_seg_head(self.backbone(images))
        return found

    def train(self, mode: bool = True) -> "Stage1":
        """As usual, but for the frozen parts, which stay in evaluation mode."""
        super().train(mode)
        for path in FROZEN:
            self.get_submodule(path).train(False)
        return self
