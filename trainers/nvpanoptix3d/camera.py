"""The camera of a frame from its camera token: position, orientation, field of view, refined in four rounds.

Source: the camera head of VGGT-1B. Nothing of NvPanoptix3D reads it: its geometry uses the intrinsics of the batch.
"""

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from scenemill.trainers.nvpanoptix3d.blocks import EPS, BlockStack, Mlp

POSE: Final = 9
"""Entries of a pose: translation 3, quaternion (x, y, z, w) 4, field of view h and w 2, in radians."""

ROUNDS: Final = 4


def pose_encoding(raw: Tensor) -> Tensor:
    """(..., 9): a pose as the rounds sum it up, its fields of view raised to at least 0."""
    return torch.cat([raw[..., :7], raw[..., 7:].relu()], dim=-1)


def pose_intrinsics(pose: Tensor, size: tuple[int, int]) -> Tensor:
    """Intrinsics in pixels of a camera that looks through the middle of its image.

    Args:
        pose: (..., 9), see ``POSE``; a field of view of 0 gives an infinite focal length.
        size: (H, W) of the image, in pixels.

    Returns:
        (..., 3, 3) float32.

    >>> pose_intrinsics(torch.tensor([0, 0, 0, 0, 0, 0, 1, torch.pi / 2, torch.pi / 2]), (240, 320)).round().tolist()
    [[160.0, 0.0, 160.0], [0.0, 120.0, 120.0], [0.0, 0.0, 1.0]]
    """
    height, width = size
    fov_h, fov_w = pose[..., 7:].float().unbind(-1)
    zero, one = torch.zeros_like(fov_h), torch.ones_like(fov_h)
    across = torch.stack([width / 2 / torch.tan(fov_w / 2), zero, one * (width / 2)], dim=-1)
    down = torch.stack([zero, height / 2 / torch.tan(fov_h / 2), one * (height / 2)], dim=-1)
    return torch.stack([across, down, torch.stack([zero, zero, one], dim=-1)], dim=-2)


class CameraHead(nn.Module):
    """Poses of the frames of a sequence; defaults are VGGT-1B.

    Args:
        width: channels of an aggregator output, twice its ``embed_dim``.
        depth: blocks of the trunk, in which the frames of a sequence see each other.
        checkpoint: see ``BlockStack``.
    """

    def __init__(self, width: int = 2048, num_heads: int = 16, depth: int = 4, *, checkpoint: bool = False) -> None:
        super().__init__()
        self.empty_pose_tokens = nn.Parameter(torch.zeros(1, 1, POSE))
        self.trunk = BlockStack(depth, width, num_heads, checkpoint=checkpoint)
        self.token_norm = nn.LayerNorm(width, eps=EPS)
        self.trunk_norm = nn.LayerNorm(width, eps=EPS)
        self.embed_pose = nn.Linear(POSE, width)
        self.poseLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 3 * width))
        self.pose_branch = Mlp(width, width // 2, POSE)

    def forward(self, tokens: Tensor) -> list[Tensor]:
        """Poses after each round; the last is the result.

        Args:
            tokens: (B, S, N, width), the output of the last layer of the aggregator; the camera token is the first of N.

        Returns:
            Four times (B, S, 9), see ``POSE``. As in the source, no gradient passes from a round to those before it.
        """
        camera = self.token_norm(tokens[:, :, 0])
        pose = self._refinement(camera, self.empty_pose_tokens)
        poses = [pose]
        for _ in range(1, ROUNDS):
            pose = pose.detach()
            pose = pose + self._refinement(camera, pose)
            poses.append(pose)
        return [pose_encoding(pose) for pose in poses]

    def _refinement(self, camera: Tensor, pose: Tensor) -> Tensor:
        """(B, S, 9) to add to ``pose``, (B, S, 9) or (1, 1, 9), given camera tokens (B, S, width)."""
        shift, scale, gate = self.poseLN_modulation(self.embed_pose(pose)).chunk(3, dim=-1)
        normed = functional.layer_norm(camera, camera.shape[-1:], eps=1e-6)
        refined: Tensor = self.pose_branch(self.trunk_norm(self.trunk(gate * (normed * (1 + scale) + shift) + camera)))
        return refined
