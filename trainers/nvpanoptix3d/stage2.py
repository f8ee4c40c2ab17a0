"""Stage 2: what stage 1 says of an image, brought into space: distance to surfaces, and a mask of voxels for every query.

Stage 1 is frozen, in evaluation mode also while stage 2 trains. (The reference leaves its batch norms in training mode, where they
drift.) ``complete`` takes what an exported stage 1 gives as well, so that the two can run in different places.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from scenemill.schemas.dataset import MEASURED, DatasetConfig
from scenemill.schemas.errors import ConfigError
from scenemill.schemas.experiment import ModelConfig
from scenemill.trainers.nvpanoptix3d.aggregator import padded_size
from scenemill.trainers.nvpanoptix3d.completion import Completion, CompletionOutput
from scenemill.trainers.nvpanoptix3d.deformable import map_size
from scenemill.trainers.nvpanoptix3d.frustum import Frustum
from scenemill.trainers.nvpanoptix3d.lifting import lift
from scenemill.trainers.nvpanoptix3d.postprocess import PanopticImage, Rules, Size, postprocess_reduced
from scenemill.trainers.nvpanoptix3d.projection import fuse, project, project_scales
from scenemill.trainers.nvpanoptix3d.projector import Projector
from scenemill.trainers.nvpanoptix3d.sparse import SparseTensor
from scenemill.trainers.nvpanoptix3d.stage1 import Backbone, SemSegHead, Stage1Output


class ImageFeatures(NamedTuple):
    """What stage 2 takes from stage 1 and the projector; the names are those of an exported file.

    Attributes:
        pred_logits: (B, Q, C + 1).
        pred_masks: (B, Q, h, w) logits, over the padded images at any resolution.
        pred_depths: (B, 1, h', w') metres, likewise.
        encoder_features: (B, mask_dim + depth_dim, h, w), mask features before projected depth features.
        segm_decoder_out: (B, Q, hidden_dim).
        occupancy_preds: (B, S, height, width) logits.
        enc_features: (B, convs_dim, h, w) each, coarse to fine.
    """

    pred_logits: Tensor
    pred_masks: Tensor
    pred_depths: Tensor
    encoder_features: Tensor
    segm_decoder_out: Tensor
    occupancy_preds: Tensor
    enc_features: Sequence[Tensor]


class Stage2Output(NamedTuple):
    """What both stages say of B images.

    Attributes:
        pred_logits, pred_masks: of stage 1; see ``Stage1Output``.
        images: the segments of each image at ``reduced_target_size``.
        volumes: of their space.
    """

    pred_logits: Tensor
    pred_masks: Tensor
    images: list[PanopticImage]
    volumes: CompletionOutput


def frustum_of(config: ModelConfig, dataset: DatasetConfig) -> Frustum:
    """The space that stage 2 fills, as the settings have it.

    Raises:
        ConfigError: the two settings of the small maps' size differ, or a measured camera in a grid of another size.
    """
    width, height = dataset.reduced_target_size
    if (height, width) != tuple(dataset.depth_size):
        raise ConfigError(
            f"dataset.reduced_target_size={[width, height]}: with dataset.depth_size={list(dataset.depth_size)} stage 2 needs "
            f"{list(reversed(dataset.depth_size))}; the one is [width, height], the other [height, width]"
        )
    return Frustum(
        image_size=dataset.target_size,
        plane_size=(height, width),
        grid=config.frustum3d.frustum_dims,
        voxel_m=config.projection.voxel_size,
        depth_min=dataset.depth_min,
        depth_max=dataset.depth_max,
        measured=dataset.name if dataset.geometry == MEASURED else "",
    )


class SceneCompletion(nn.Module):
    """What comes behind stage 1: its features brought into space and completed there.

    Args:
        config: ``model`` of an experiment.
        dataset: ``dataset`` of it: sizes, depths and where the camera is.
        rules: what post-processing of the image keeps.
        recompute: True to recompute activations of the sparse layers in the backward pass in place of keeping them.
    """

    def __init__(self, config: ModelConfig, dataset: DatasetConfig, rules: Rules, *, recompute: bool = False) -> None:
        super().__init__()
        self.frustum, self.rules = frustum_of(config, dataset), rules
        self.size_divisibility = config.mask_former.size_divisibility
        held, head = config.frustum3d, config.sem_seg_head
        self.truncation, self.sign_channel, self.use_multi_scale = (
            held.truncation,
            config.projection.sign_channel,
            held.use_multi_scale,
        )
        self.completion = Completion(
            grid_dimensions=held.grid_dimensions,
            truncation=self.truncation,
            unet_features=held.unet_features,
            unet_output_channels=held.unet_output_channels,
            use_multi_scale=self.use_multi_scale,
            sign_channel=self.sign_channel,
            mask_dim=head.mask_dim,
            depth_dim=head.depth_dim,
            num_classes=head.num_classes,
            convs_dim=head.convs_dim,
            hidden_dim=config.mask_former.hidden_dim,
            recompute=recompute,
        )
        self.projector = Projector(config.backbone.dpt_features, head.depth_dim)

    def padded(self, size: Size) -> Size:
        """(height, width) of images with the network's own padding."""
        return padded_size(size, self.size_divisibility)

    def complete(
        self,
        features: ImageFeatures,
        padded: Size,
        unpadded: Sequence[Size],
        intrinsic: Tensor,
        frustum_mask: Tensor,
        room_mask: Tensor | None = None,
    ) -> Stage2Output:
        """From what stage 1 said: post-processed, lifted, projected, and completed.

        Args:
            features: of B images.
            padded: (height, width) of the images with the network's padding.
            unpadded: (height, width) of each without padding.
            intrinsic: (B, 4, 4), pixels of ``dataset.target_size``.
            frustum_mask: (B, D, D, D) bool, True inside, image-aligned.
            room_mask: (B, height, width) bool of ``depth_size``; Matterport3D has one, ``room_mask_buol``.
        """
        images = self._describe(features, padded, unpadded, room_mask)
        semantic, depth = (torch.stack(maps) for maps in zip(*((image.semantic, image.depth) for image in images), strict=True))
        cameras: NDArray[np.float64] = intrinsic.detach().cpu().numpy().astype(np.float64)
        lifted = lift(
            semantic,
            depth,
            features.occupancy_preds.float(),
            cameras,
            self.frustum,
            frustum_mask,
            num_thing_classes=self.rules.num_thing_classes,
            room_mask=room_mask,
        )
        rows = project(
            features.encoder_features.float(),
            semantic,
            depth,
            cameras,
            self.frustum,
            padded,
            unpadded,
            truncation=self.truncation,
            sign_channel=self.sign_channel,
        )
        scales = self._scales(features, depth, cameras, padded, unpadded)
        fused, coarse = fuse(rows, lifted, scales)
        volumes = self.completion(fused, coarse or None, features.segm_decoder_out.float(), frustum_mask)
        return Stage2Output(features.pred_logits, features.pred_masks, images, volumes)

    def _describe(
        self, features: ImageFeatures, padded: Size, unpadded: Sequence[Size], room_mask: Tensor | None
    ) -> list[PanopticImage]:
        logits, masks, depths = (maps.float() for maps in (features.pred_logits, features.pred_masks, features.pred_depths))
        return postprocess_reduced(
            logits, masks, depths, padded, unpadded, self.frustum.plane_size, rules=self.rules, room_mask=room_mask
        )

    def _scales(
        self, features: ImageFeatures, depth: Tensor, cameras: NDArray[np.float64], padded: Size, unpadded: Sequence[Size]
    ) -> Sequence[SparseTensor]:
        if not self.use_multi_scale:
            return ()
        fine_first = [maps.float() for maps in reversed(features.enc_features)]
        return project_scales(fine_first, depth, cameras, self.frustum, padded, unpadded, truncation=self.truncation)


class Stage2(SceneCompletion):
    """The network of both stages; at full size its keys and shapes are those of the released stage 2 weights.

    Args:
        config, dataset, rules, recompute: see ``SceneCompletion``.
    """

    def __init__(self, config: ModelConfig, dataset: DatasetConfig, rules: Rules, *, recompute: bool = False) -> None:
        super().__init__(config, dataset, rules, recompute=recompute)
        self.backbone = Backbone(config)
        self.sem_seg_head = SemSegHead(config, dataset.depth_size)
        for part in (self.backbone, self.sem_seg_head):
            part.requires_grad_(False)

    def train(self, mode: bool = True) -> "Stage2":
        """As usual, but for stage 1, which stays in evaluation mode."""
        super().train(mode)
        for part in (self.backbone, self.sem_seg_head):
            part.train(False)
        return self

    def forward(
        self,
        images: Tensor,
        unpadded: Sequence[Size],
        intrinsic: Tensor,
        frustum_mask: Tensor,
        room_mask: Tensor | None = None,
    ) -> Stage2Output:
        """What the network says of B images and the space they show.

        Args:
            images: (B, 3, H, W), 0..255, uint8 or float32.
            unpadded, intrinsic, frustum_mask, room_mask: see ``complete``.
        """
        with torch.no_grad():
            found: Stage1Output = self.sem_seg_head(self.backbone(images))
        projected = self.projector(found.depth_features, map_size(found.mask_features))
        features = ImageFeatures(
            found.pred_logits,
            found.pred_masks,
            found.pred_depths,
            torch.cat([found.mask_features, projected], dim=1),
            found.segm_decoder_out,
            found.occupancy_preds,
            found.enc_features,
        )
        return self.complete(features, self.padded(map_size(images)), unpadded, intrinsic, frustum_mask, room_mask)
